//! Vectors of four values in plain Rust, which any compiler turns into whatever the baseline has. Products are rounded
//! before they are added: without the instruction a fused product would be a call.

use super::tile::Simd;
use crate::{Elem, Real};
use std::array::from_fn;

pub(super) struct Portable;

impl<E: Elem> Simd<E> for Portable {
    type V = [E::Real; 4];
    const LANES: usize = 4;
    const ROWS: usize = 6;
    #[inline(always)]
    unsafe fn zero() -> Self::V {
        [E::Real::ZERO; 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const E) -> Self::V {
        // SAFETY: the caller's four values; an array has its element's alignment.
        unsafe { p.cast::<[E; 4]>().read() }.map(E::widen)
    }
    #[inline(always)]
    unsafe fn load_real(p: *const E::Real) -> Self::V {
        // SAFETY: as in `load`.
        unsafe { p.cast::<Self::V>().read() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut E::Real, v: Self::V) {
        // SAFETY: as in `load`.
        unsafe { p.cast::<Self::V>().write(v) }
    }
    #[inline(always)]
    unsafe fn splat(x: E::Real) -> Self::V {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn splat_pair(p: *const E::Real) -> Self::V {
        // SAFETY: the caller's two values.
        let [x, y] = unsafe { p.cast::<[E::Real; 2]>().read() };
        [x, y, x, y]
    }
    #[inline(always)]
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        from_fn(|i| c[i] + a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn store_pair_sums(p: *mut E::Real, v: [Self::V; 2]) {
        // SAFETY: the caller's four values.
        unsafe { p.cast::<[[E::Real; 2]; 2]>().write(v.map(|v| [v[0] + v[1], v[2] + v[3]])) }
    }
}
