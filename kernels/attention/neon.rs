//! Registers of NEON, and of its products of bf16 pairs.

use super::lanes::Lanes;
use std::arch::aarch64::*;
use std::arch::asm;

impl Lanes<f32> for float32x4_t {
    const WIDTH: usize = 4;
    const STRIP: usize = 4; // 6 x 4 sums, 4 loads and a broadcast: 29 of 32 registers
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: every aarch64 processor has the level.
        unsafe { vdupq_n_f32(0.0) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as above, and the pointer reaches 4 numbers.
        unsafe { vld1q_f32(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as above, and the pointer reaches 4 numbers.
        unsafe { vst1q_f32(to, self) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: as above, and the pointer reaches a number.
        unsafe { vld1q_dup_f32(from) }
    }
    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: every aarch64 processor has the level.
        unsafe { vfmaq_f32(self, a, b) }
    }
}

/// Four sums of products of pairs (bfdot, which flushes denormals): loads and broadcasts move pairs' bits.
#[derive(Clone, Copy)]
pub(super) struct Dot(float32x4_t);

impl Lanes<f32> for Dot {
    const WIDTH: usize = 4;
    const STRIP: usize = 4;
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's, here and below.
        Self(unsafe { Lanes::zero() })
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see `zero`.
        Self(unsafe { Lanes::load(from) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see `zero`.
        unsafe { self.0.store(to) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: see `zero`.
        Self(unsafe { Lanes::splat(from) })
    }
    #[inline(always)]
    unsafe fn add_product(mut self, a: Self, b: Self) -> Self {
        // SAFETY: it computes on registers alone; the level is the caller's to have. Not an intrinsic, as in `linear/neon_bf16.rs`.
        unsafe {
            asm!(
                "bfdot {c:v}.4s, {a:v}.8h, {b:v}.8h",
                c = inout(vreg) self.0, a = in(vreg) a.0, b = in(vreg) b.0,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        self
    }
}
