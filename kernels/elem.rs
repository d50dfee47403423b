//! The number types of the project: what an operand is stored as, and what sums run in.

use crate::{Isa, Kernels};
use half::bf16;
use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

/// A GEMM operand's type: `f32`, `bf16`, or `f64` for the reference engine.
///
/// Everything that is accumulated (residual stream, norms, sums, gradients) is [`Elem::Real`].
pub trait Elem: Copy + Default + PartialEq + Debug + Send + Sync + 'static {
    /// What sums run in: `f32` for `f32` and `bf16`, `f64` for `f64`.
    type Real: Real;
    /// The name that options and reports use.
    const NAME: &'static str;
    /// Exact.
    fn widen(self) -> Self::Real;
    /// One rounding, to nearest even; NaN stays NaN.
    fn narrow(x: Self::Real) -> Self;
    /// The best kernels for this type at or below `isa`.
    fn kernels(isa: Isa) -> &'static Kernels<Self>;
}

/// A type that sums run in.
pub trait Real:
    Elem<Real = Self>
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
{
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// Negative infinity: the maximum of nothing, the logarithm of zero.
    const NEG_INFINITY: Self;
    /// Rounds to nearest even.
    fn from_f64(x: f64) -> Self;
    /// Exact.
    fn to_f64(self) -> f64;
    /// Exact for `f64`, one rounding for `f32` (none when the value came from an `f32`).
    fn from_f32(x: f32) -> Self;
    /// One rounding for `f64`, none for `f32`.
    fn to_f32(self) -> f32;
    /// e^x, within 2 units in the last place, branch-free so that loops over it vectorise.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root, correctly rounded.
    fn sqrt(self) -> Self;
    /// The larger; `other` when `self` is NaN.
    fn max(self, other: Self) -> Self;
    /// Neither NaN nor infinite.
    fn is_finite(self) -> bool;
}

macro_rules! real {
    ($t:ty, $name:literal, $exp:expr) => {
        impl Elem for $t {
            type Real = $t;
            const NAME: &'static str = $name;
            #[inline(always)]
            fn widen(self) -> $t {
                self
            }
            #[inline(always)]
            fn narrow(x: $t) -> $t {
                x
            }
            fn kernels(isa: Isa) -> &'static Kernels<$t> {
                Kernels::<$t>::table(isa)
            }
        }
        impl Real for $t {
            const ZERO: $t = 0.0;
            const ONE: $t = 1.0;
            const NEG_INFINITY: $t = <$t>::NEG_INFINITY;
            #[inline(always)]
            fn from_f64(x: f64) -> $t {
                x as $t
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self as f64
            }
            #[inline(always)]
            fn from_f32(x: f32) -> $t {
                x as $t
            }
            #[inline(always)]
            fn to_f32(self) -> f32 {
                self as f32
            }
            #[inline(always)]
            fn exp(self) -> $t {
                $exp(self)
            }
            #[inline(always)]
            fn ln(self) -> $t {
                <$t>::ln(self)
            }
            #[inline(always)]
            fn sqrt(self) -> $t {
                <$t>::sqrt(self)
            }
            #[inline(always)]
            fn max(self, other: $t) -> $t {
                if self > other { self } else { other }
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                <$t>::is_finite(self)
            }
        }
    };
}
real!(f32, "f32", exp_f32);
real!(f64, "f64", f64::exp);

impl Elem for bf16 {
    type Real = f32;
    const NAME: &'static str = "bf16";
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }
    #[inline(always)]
    fn narrow(x: f32) -> bf16 {
        let bits = x.to_bits();
        // Adding 0x7fff plus the lowest kept bit rounds to nearest even; a NaN would carry into infinity, so it is kept apart.
        let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
        let nan = (bits >> 16) as u16 | 0x40;
        bf16::from_bits(if x.is_nan() { nan } else { rounded })
    }
    fn kernels(isa: Isa) -> &'static Kernels<bf16> {
        Kernels::<bf16>::table(isa)
    }
}

/// Cody-Waite reduction to |r| <= ln 2 / 2 and a degree-6 polynomial (Moshier, Cephes expf), then scaled by 2^n.
/// 0 below -87.33 (where the result would be subnormal), infinity above 88.72, NaN for NaN.
#[inline(always)]
fn exp_f32(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    let clamped = if x < -87.33 { -87.33 } else { x };
    let clamped = if clamped > 88.72 { 88.72 } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_2e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    // 2^n in two factors, so that n = 128 does not overflow the exponent before the product is known.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let pow2 = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    let y = y * pow2(half) * pow2(n.wrapping_sub(half));
    let y = if x < -87.33 { 0.0 } else { y };
    if x > 88.72 { f32::INFINITY } else { y }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulps_over_its_whole_range() {
        for i in 0..200_000 {
            let x = -87.3 + 176.0 * i as f32 / 200_000.0;
            let want = (x as f64).exp();
            let ulp = f32::from_bits((want as f32).to_bits() + 1) as f64 - want as f32 as f64;
            assert!((exp_f32(x) as f64 - want).abs() <= 2.0 * ulp, "exp({x}) = {} not {want}", exp_f32(x));
        }
    }

    #[test]
    fn exp_of_the_extremes() {
        assert_eq!(exp_f32(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_f32(-100.0), 0.0);
        assert_eq!(exp_f32(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp_f32(0.0), 1.0);
        assert!(exp_f32(f32::NAN).is_nan());
    }

    #[test]
    fn narrowing_to_bf16_rounds_as_half_does_for_every_kind_of_value() {
        for bits in (0..=u32::MAX).step_by(4099).chain([
            0x7f80_0000,
            0x7f80_0001,
            0xff80_0000,
            0x7f7f_ffff,
            0x3f80_8000,
            0x3f81_8000,
        ]) {
            let x = f32::from_bits(bits);
            let (got, want) = (bf16::narrow(x), bf16::from_f32(x));
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{x}: {got} not {want}");
        }
    }
}
