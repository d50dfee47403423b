//! What every kernel test shares: the comparer that holds a form to its f64 reference, and reproducible numbers.
//!
//! The rule is that of FlashAttention's tests: a form's error against f64 may be at most twice that of a plain
//! implementation in the same types (same input roundings, sequential sums, one rounding at the output). It knows no
//! operation. NaN fails every comparison here, so each is written `!(error <= bound)`.

#![allow(clippy::neg_cmp_op_on_partial_ord)] // see above

use crate::{Elem, Real};
#[cfg(target_arch = "x86_64")]
use crate::{Kernels, bf16};

/// The smallest normal f32: what a kernel may lose where the processor flushes denormals to zero.
const SMALLEST_NORMAL: f64 = 1.1754943508222875e-38;

/// How many units in the last place an f64 form may differ: its reference rounds as often as it does, so that twice the
/// plain error is often zero while another order of summation is off by some ulps.
const F64_ULPS: f64 = 64.0;

/// Is `got` as good as `plain`, both held against `want`?
///
/// Lengths must be equal. Where `want` is NaN or infinite, `got` must be the same; elsewhere `got` must be finite, and
/// the RMS and the maximum of `|got - want|` at most twice those of `|plain - want|`, or one unit in the last place
/// of `E` at the RMS and at the largest finite value of `want`. The message names the first or worst element.
pub fn check<E: Elem>(got: &[E], plain: &[E], want: &[f64]) -> Result<(), String> {
    if got.len() != want.len() || plain.len() != want.len() {
        return Err(format!("lengths differ: got {}, plain {}, want {}", got.len(), plain.len(), want.len()));
    }
    let (got, plain) = (widened(got), widened(plain));
    for (i, ((&g, &p), &w)) in got.iter().zip(&plain).zip(want).enumerate() {
        kind("got", i, g, w)?;
        kind("the plain implementation", i, p, w)?;
    }
    let (got, plain, scale) = (Size::of_error(&got, want), Size::of_error(&plain, want), Size::of(want));
    within("RMS", &got, got.rms, plain.rms, ulp::<E>(scale.rms))?;
    within("largest", &got, got.max, plain.max, ulp::<E>(scale.max))
}

/// Both slices hold the same bits, NaN included; the message names the first element that differs.
pub fn same_bits<E: Elem>(got: &[E], want: &[E]) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("lengths differ: {} and {}", got.len(), want.len()));
    }
    let bits = |x: E| x.widen().to_f64().to_bits();
    match (0..got.len()).find(|&i| bits(got[i]) != bits(want[i])) {
        None => Ok(()),
        Some(i) => Err(format!("element {i} of {}: {:?} and {:?} differ", got.len(), got[i], want[i])),
    }
}

fn widened<E: Elem>(x: &[E]) -> Vec<f64> {
    x.iter().map(|x| x.widen().to_f64()).collect()
}

/// NaN for NaN, the same infinity for an infinity, a finite value for a finite one.
fn kind(whose: &str, i: usize, x: f64, want: f64) -> Result<(), String> {
    let same = match want {
        w if w.is_nan() => x.is_nan(),
        w if w.is_infinite() => x == w,
        _ => x.is_finite(),
    };
    if same { Ok(()) } else { Err(format!("element {i} of {whose} is {x}, wanted {want}")) }
}

fn within(what: &str, got: &Size, error: f64, plain: f64, ulp: f64) -> Result<(), String> {
    let bound = (2.0 * plain).max(ulp);
    if !(error <= bound) {
        return Err(format!(
            "{what} error {error:.3e} exceeds {bound:.3e} (the plain implementation's is {plain:.3e}, one ulp {ulp:.3e}); \
             the worst element is {} of {}",
            got.worst, got.len
        ));
    }
    Ok(())
}

/// Root mean square and maximum of the finite elements.
struct Size {
    rms: f64,
    max: f64,
    worst: usize,
    len: usize,
}

impl Size {
    fn of_error(x: &[f64], want: &[f64]) -> Self {
        let errors: Vec<f64> = x.iter().zip(want).map(|(x, w)| if w.is_finite() { x - w } else { 0.0 }).collect();
        Self::of(&errors)
    }

    fn of(x: &[f64]) -> Self {
        let (mut sum, mut max, mut worst) = (0.0, 0.0, 0);
        for (i, x) in x.iter().enumerate().filter(|(_, x)| x.is_finite()) {
            sum += x * x;
            if x.abs() > max {
                (max, worst) = (x.abs(), i);
            }
        }
        Self { rms: (sum / x.len().max(1) as f64).sqrt(), max, worst, len: x.len() }
    }
}

/// The distance between neighbouring values of `E` at `x`; never below the smallest normal f32.
fn ulp<E: Elem>(x: f64) -> f64 {
    let digit = |e: &i32| E::narrow(E::Real::from_f64(1.0 + 2f64.powi(-e))) != E::narrow(E::Real::ONE);
    let digits = (1..=52).rev().find(digit).unwrap_or(0);
    let power = if x > 0.0 { x.log2().floor() as i32 } else { -1022 };
    let unit = 2f64.powi(power - digits).max(SMALLEST_NORMAL);
    if digits == 52 { unit * F64_ULPS } else { unit }
}

/// A reproducible stream of numbers (xorshift64*, Vigna 2016): the same on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Streams of different seeds are unrelated.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `n`, which is not zero.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Uniform in -1..1, with f32's precision, so that it is the same number in f32 and f64.
    pub fn signed(&mut self) -> f64 {
        (self.bits() >> 40) as f64 / (1u64 << 23) as f64 - 1.0
    }

    /// `len` values of [`Random::signed`], rounded to `E`.
    pub fn vec<E: Elem>(&mut self, len: usize) -> Vec<E> {
        (0..len).map(|_| E::narrow(E::Real::from_f64(self.signed()))).collect()
    }
}

/// The AMX forms on a machine that may lack AMX: `tests/amxtrap` emulates what traps.
///
/// # Safety
/// [`crate::Isa::Avx512Bf16`] is available, and AMX instructions either run or are emulated on this thread.
#[cfg(target_arch = "x86_64")]
pub unsafe fn amx() -> &'static Kernels<bf16> {
    Kernels::<bf16>::amx()
}

/// The loop that AMX's roof for those operands is measured by, likewise: how many operations it did.
///
/// # Safety
/// As [`amx`].
#[cfg(target_arch = "x86_64")]
pub unsafe fn amx_roof(operands: &str, rounds: usize) -> f64 {
    // SAFETY: the caller's.
    unsafe { crate::roof::tiles(operands, rounds) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    fn bf(x: &[f64]) -> Vec<bf16> {
        x.iter().map(|&x| bf16::from_f64(x)).collect()
    }

    #[test]
    fn one_ulp_passes_and_two_fail() {
        let want = [1.0, 1.0, 1.0];
        assert!(check(&[1.0f32, 1.0 + f32::EPSILON, 1.0], &[1.0; 3], &want).is_ok());
        assert!(check(&[1.0f32, 1.0 + 2.0 * f32::EPSILON, 1.0], &[1.0; 3], &want).is_err());
        assert!(check(&bf(&[1.0, 1.0078125, 1.0]), &bf(&want), &want).is_ok());
        assert!(check(&bf(&[1.0, 1.015625, 1.0]), &bf(&want), &want).is_err());
    }

    #[test]
    fn twice_the_plain_error_passes_and_more_fails() {
        let (plain, want) = ([1.25f32, 1.0], [1.0, 1.0]);
        assert!(check(&[1.5, 1.0], &plain, &want).is_ok());
        assert!(check(&[1.0, 0.5], &plain, &want).is_ok());
        assert!(check(&[1.51, 1.0], &plain, &want).is_err());
    }

    #[test]
    fn many_small_errors_fail_by_rms_where_no_single_one_does() {
        let want = vec![1.0; 100];
        let mut plain = vec![1.0f32; 100];
        plain[0] = 1.5;
        assert!(check(&vec![1.25f32; 100], &plain, &want).unwrap_err().starts_with("RMS"));
    }

    #[test]
    fn nan_fails_wherever_a_number_is_wanted() {
        for i in 0..3 {
            let mut got = [1.0f32; 3];
            got[i] = f32::NAN;
            assert!(check(&got, &[1.0; 3], &[1.0; 3]).is_err());
            assert!(check(&[1.0; 3], &got, &[1.0; 3]).is_err());
        }
    }

    #[test]
    fn nan_and_infinity_are_wanted_where_the_reference_has_them() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let want = [f64::NAN, f64::INFINITY, 1.0];
        assert!(check(&[nan, inf, 1.0], &[nan, inf, 1.0], &want).is_ok());
        for got in [[1.0, inf, 1.0], [nan, -inf, 1.0], [nan, nan, 1.0], [nan, inf, inf]] {
            assert!(check(&got, &[nan, inf, 1.0], &want).is_err(), "{got:?}");
        }
    }

    #[test]
    fn zero_is_wanted_exactly_but_for_flushed_denormals() {
        assert!(check(&[0.0f32, -0.0], &[0.0; 2], &[0.0; 2]).is_ok());
        assert!(check(&[0.0f32], &[1e-39], &[1e-39f32 as f64]).is_ok());
        assert!(check(&[1e-30f32], &[0.0], &[0.0]).is_err());
        assert!(check(&[1e-30f64], &[0.0], &[0.0]).is_err());
    }

    #[test]
    fn a_small_element_beside_a_large_one_is_held_to_the_rms_and_maximum_only() {
        assert!(check(&[1e6f32, 0.05], &[1e6, 0.0], &[1e6, 0.0]).is_ok());
        assert!(check(&[1e6f32, 0.07], &[1e6, 0.0], &[1e6, 0.0]).is_err());
    }

    #[test]
    fn other_lengths_fail_and_nothing_equals_nothing() {
        assert!(check(&[1.0f32], &[1.0; 2], &[1.0; 2]).is_err());
        assert!(check(&[1.0f32; 2], &[1.0], &[1.0; 2]).is_err());
        assert!(check::<f32>(&[], &[], &[]).is_ok());
    }

    #[test]
    fn same_bits_tells_signed_zeros_and_lengths_apart() {
        assert!(same_bits(&[1.0f32, f32::NAN], &[1.0, f32::NAN]).is_ok());
        assert!(same_bits(&[0.0f32], &[-0.0]).is_err());
        assert!(same_bits(&[1.0f32], &[1.0, 1.0]).is_err());
    }

    #[test]
    fn random_numbers_fill_their_range_and_repeat() {
        let x: Vec<f64> = Random::new(1).vec(10_000);
        assert_eq!(x, Random::new(1).vec::<f64>(10_000));
        assert_ne!(x, Random::new(2).vec::<f64>(10_000));
        assert!(x.iter().all(|x| (-1.0..1.0).contains(x)));
        assert!(x.iter().any(|x| *x < -0.99) && x.iter().any(|x| *x > 0.99));
        assert!((x.iter().sum::<f64>() / 10_000.0).abs() < 0.02);
    }
}
