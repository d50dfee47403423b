//! y = W x on the matrix where it lies: one dot product a row, bound by the reading of W. One generic body, compiled
//! for each level; which partial sum takes which k is the same everywhere.

use crate::matrix::{self, Encoding};
use crate::{Dtype, Elem, Matrix, Real};
use half::{bf16, f16};

/// Partial sums: four vectors of AVX-512, so that additions do not wait for each other.
const SUMS: usize = 64;

/// # Safety
/// Compiled into a level's function, it needs that level; lengths as [`crate::Kernels::dots`] checks them.
#[inline(always)]
pub(super) unsafe fn dots<E: Elem>(y: &mut [E::Real], w: &Matrix, n0: usize, x: &[E]) {
    for (j, y) in y.iter_mut().enumerate() {
        let row = w.row(n0 + j);
        *y = match w.encoding() {
            Encoding::Plain(Dtype::F32) => dot(row, x, f32::from_le_bytes),
            Encoding::Plain(Dtype::F16) => dot(row, x, |b| matrix::widen_f16(f16::from_le_bytes(b))),
            Encoding::Plain(Dtype::Bf16) => dot(row, x, |b| bf16::from_le_bytes(b).widen()),
            Encoding::Quantized(..) | Encoding::Packed(_) => dot_quantized(w, n0 + j, x),
        };
    }
}

#[inline(always)]
fn dot<E: Elem, const N: usize>(row: &[u8], x: &[E], value: impl Fn([u8; N]) -> f32) -> E::Real {
    let mut sums = [E::Real::ZERO; SUMS];
    let (w, (x, tail)) = (row.as_chunks::<N>().0, x.as_chunks::<SUMS>());
    let (w, w_tail) = w.as_chunks::<SUMS>();
    for (w, x) in w.iter().zip(x) {
        for i in 0..SUMS {
            sums[i] += E::Real::from_f32(value(w[i])) * x[i].widen();
        }
    }
    for (sum, (w, x)) in sums.iter_mut().zip(w_tail.iter().zip(tail)) {
        *sum += E::Real::from_f32(value(*w)) * x.widen();
    }
    total(sums)
}

/// The same sums over whole numbers, widened with their scales a block at a time.
#[inline(always)]
fn dot_quantized<E: Elem>(w: &Matrix, i: usize, x: &[E]) -> E::Real {
    let mut sums = [E::Real::ZERO; SUMS];
    let mut wide = [E::Real::ZERO; SUMS];
    for (block, x) in x.chunks(SUMS).enumerate() {
        w.read_row(i, block * SUMS, &mut wide[..x.len()]);
        for (sum, (w, x)) in sums.iter_mut().zip(wide.iter().zip(x)) {
            *sum += *w * x.widen();
        }
    }
    total(sums)
}

/// By halves: the additions of one step are independent.
#[inline(always)]
fn total<R: Real>(mut sums: [R; SUMS]) -> R {
    let mut half = SUMS / 2;
    while half > 0 {
        for i in 0..half {
            let other = sums[i + half];
            sums[i] += other;
        }
        half /= 2;
    }
    sums[0]
}
