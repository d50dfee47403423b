//! A register of numbers, as the products use it: load, store, broadcast, fused multiply-add.
//! The array form is every machine's; the others are beside it by architecture.

use crate::{Elem, Real};
use half::bf16;

/// How a score's product over the head is laid out: one lane of R holds a *unit* of one value of E or more.
pub(super) trait Unit<E: Elem> {
    /// Values in a unit.
    const VALUES: usize;
    /// Units of `from`, the last filled up with zeros.
    fn lay(to: &mut [E::Real], from: &[E]);
    /// Units of a head of `dim` values.
    fn count(dim: usize) -> usize {
        dim.div_ceil(Self::VALUES)
    }
}

/// One widened value.
pub(super) struct Single;

impl<E: Elem> Unit<E> for Single {
    const VALUES: usize = 1;
    #[inline(always)]
    fn lay(to: &mut [E::Real], from: &[E]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = from.widen());
    }
}

/// The bits of two values, the first below: not a number, but what a product of pairs takes.
pub(super) struct Pair;

impl Unit<bf16> for Pair {
    const VALUES: usize = 2;
    #[inline(always)]
    fn lay(to: &mut [f32], from: &[bf16]) {
        let unit = |low: bf16, high: bf16| f32::from_bits(low.to_bits() as u32 | (high.to_bits() as u32) << 16);
        let (pairs, last) = from.as_chunks::<2>();
        to.iter_mut().zip(pairs).for_each(|(to, [low, high])| *to = unit(*low, *high));
        if let [last] = last {
            to[pairs.len()] = unit(*last, bf16::ZERO);
        }
    }
}

/// WIDTH numbers of type R that live in one register.
///
/// # Safety
/// The forms of an instruction level may be called only where the machine has it, and the pointers must reach WIDTH
/// numbers (one for `splat`); no alignment is asked for.
pub(super) trait Lanes<R>: Copy {
    /// Numbers in a register; divides 16.
    const WIDTH: usize;
    /// Registers of one output row that a product keeps at once, at most 4: as many as the level has room for.
    const STRIP: usize;
    unsafe fn zero() -> Self;
    unsafe fn load(from: *const R) -> Self;
    unsafe fn store(self, to: *mut R);
    unsafe fn splat(from: *const R) -> Self;
    /// a * b + self, fused where the level can; of pairs, both products.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
}

impl<R: Real, const N: usize> Lanes<R> for [R; N] {
    const WIDTH: usize = N;
    const STRIP: usize = 2;
    #[inline(always)]
    unsafe fn zero() -> Self {
        [R::ZERO; N]
    }
    #[inline(always)]
    unsafe fn load(from: *const R) -> Self {
        // SAFETY: the caller's pointer reaches N numbers.
        unsafe { from.cast::<Self>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut R) {
        // SAFETY: the caller's pointer reaches N numbers.
        unsafe { to.cast::<Self>().write_unaligned(self) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const R) -> Self {
        // SAFETY: the caller's pointer reaches a number.
        [unsafe { *from }; N]
    }
    #[inline(always)]
    unsafe fn add_product(mut self, a: Self, b: Self) -> Self {
        for i in 0..N {
            self[i] += a[i] * b[i];
        }
        self
    }
}
