//! A register of numbers, as the products use it: load, store, broadcast, fused multiply-add.
//! The array form is every machine's; the others are beside it by architecture.

use crate::Real;

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
    /// a * b + self, fused where the level can.
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
