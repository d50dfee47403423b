//! Registers of AVX2 and AVX-512.

use super::lanes::Lanes;
use std::arch::x86_64::*;

impl Lanes<f32> for __m256 {
    const WIDTH: usize = 8;
    const STRIP: usize = 2; // 6 x 2 sums, 2 loads and a broadcast: 15 of 16 registers
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the level is the caller's to have.
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as above, and the pointer reaches 8 numbers.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as above, and the pointer reaches 8 numbers.
        unsafe { _mm256_storeu_ps(to, self) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: as above, and the pointer reaches a number.
        unsafe { _mm256_set1_ps(*from) }
    }
    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: the level is the caller's to have.
        unsafe { _mm256_fmadd_ps(a, b, self) }
    }
}

impl Lanes<f32> for __m512 {
    const WIDTH: usize = 16;
    const STRIP: usize = 4; // 6 x 4 sums, 4 loads and a broadcast: 29 of 32 registers
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the level is the caller's to have.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as above, and the pointer reaches 16 numbers.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as above, and the pointer reaches 16 numbers.
        unsafe { _mm512_storeu_ps(to, self) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: as above, and the pointer reaches a number.
        unsafe { _mm512_set1_ps(*from) }
    }
    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: the level is the caller's to have.
        unsafe { _mm512_fmadd_ps(a, b, self) }
    }
}

/// Sixteen sums of products of pairs (vdpbf16ps, which flushes denormals): loads and broadcasts move pairs' bits.
#[derive(Clone, Copy)]
pub(super) struct Dot(__m512);

impl Lanes<f32> for Dot {
    const WIDTH: usize = 16;
    const STRIP: usize = 4;
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the level is the caller's to have.
        Self(unsafe { _mm512_setzero_ps() })
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as above, and the pointer reaches 16 numbers.
        Self(unsafe { _mm512_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as above, and the pointer reaches 16 numbers.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: as above, and the pointer reaches a number.
        Self(unsafe { _mm512_castsi512_ps(_mm512_set1_epi32(from.cast::<i32>().read_unaligned())) })
    }
    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: vectors of one size, every bit pattern a vector of bf16; the level is the caller's to have.
        unsafe {
            let (a, b) = (std::mem::transmute::<__m512, __m512bh>(a.0), std::mem::transmute::<__m512, __m512bh>(b.0));
            Self(_mm512_dpbf16_ps(self.0, a, b))
        }
    }
}
