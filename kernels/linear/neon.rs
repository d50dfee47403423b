//! NEON: vectors of four f32, tiles of 12 rows by 2 vectors in 27 of 32 registers; bf16 widened by a shift. Every
//! aarch64 processor has these instructions.

use super::pack::{self, Plain};
use super::tile::{self, Pairs, Simd};
use super::{Forms, tn};
use crate::{Elem, bf16};
use std::arch::aarch64::*;

pub(super) struct Neon;

pub(super) const F32: Forms<f32> = forms();
pub(super) const BF16: Forms<bf16> = forms();

const fn forms<E: Elem<Real = f32>>() -> Forms<E>
where
    Neon: Simd<E>,
{
    Forms {
        rows: <Neon as Simd<E>>::ROWS,
        pack: pack::pack::<E, Plain>,
        gemm: tile::gemm::<Pairs<E, Neon>>,
        gemm_tn: tn::gemm_tn::<E, Neon>,
        gemv: None,
        whole: &[],
    }
}

macro_rules! simd {
    ($elem:ty, $load:expr) => {
        impl Simd<$elem> for Neon {
            type V = float32x4_t;
            const LANES: usize = 4;
            const ROWS: usize = 12;
            #[inline]
            #[target_feature(enable = "neon")]
            unsafe fn zero() -> float32x4_t {
                vdupq_n_f32(0.0)
            }
            #[inline]
            #[target_feature(enable = "neon")]
            unsafe fn load(p: *const $elem) -> float32x4_t {
                // SAFETY: the caller's four values.
                unsafe { $load(p) }
            }
            #[inline]
            #[target_feature(enable = "neon")]
            unsafe fn load_real(p: *const f32) -> float32x4_t {
                // SAFETY: the caller's four values.
                unsafe { vld1q_f32(p) }
            }
            #[inline]
            #[target_feature(enable = "neon")]
            unsafe fn store(p: *mut f32, v: float32x4_t) {
                // SAFETY: the caller's four values.
                unsafe { vst1q_f32(p, v) }
            }
            #[inline]
            #[target_feature(enable = "neon")]
            unsafe fn splat(x: f32) -> float32x4_t {
                vdupq_n_f32(x)
            }
            #[inline]
            #[target_feature(enable = "neon")]
            unsafe fn splat_pair(p: *const f32) -> float32x4_t {
                // SAFETY: the caller's two values.
                let pair = unsafe { p.cast::<f64>().read_unaligned() };
                vreinterpretq_f32_f64(vdupq_n_f64(pair))
            }
            #[inline]
            #[target_feature(enable = "neon")]
            unsafe fn mul_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
                vfmaq_f32(c, a, b)
            }
            #[inline]
            #[target_feature(enable = "neon")]
            unsafe fn store_pair_sums(p: *mut f32, [first, second]: [float32x4_t; 2]) {
                // SAFETY: the caller's four values.
                unsafe { vst1q_f32(p, vpaddq_f32(first, second)) }
            }
        }
    };
}
simd!(f32, |p: *const f32| vld1q_f32(p));
simd!(bf16, |p: *const bf16| vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.cast()))));
