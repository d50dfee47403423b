//! c[m, n] += a^T b: tiles of c in registers while all rows pass by. LoRA's rank is small, so a tile of all of it
//! reads b once or twice.

use super::tile::{MAX_ROWS, Simd};
use crate::Elem;

/// Columns of a tile: two vectors.
const VECS: usize = 2;
/// The most values of a tile's row: two vectors of 16.
const MAX_COLS: usize = 32;

/// # Safety
/// The level of `S` must be there, and lengths as [`crate::Kernels::gemm_tn`] checks them.
#[inline(always)]
pub(super) unsafe fn gemm_tn<E: Elem, S: Simd<E>>(
    c: &mut [E::Real],
    m: usize,
    n: usize,
    a: &[E],
    lda: usize,
    b: &[E],
    ldb: usize,
    rows: usize,
) {
    let width = S::LANES * VECS;
    let step = m.div_ceil(m.div_ceil(S::ROWS)); // two tiles of 8 rows are faster than 12 and 4
    for i in (0..m).step_by(step) {
        let tall = step.min(m - i);
        let (a, c) = (&a[i..], &mut c[i * n..]);
        for j in (0..n).step_by(width) {
            let (b, c, wide) = (&b[j..], &mut c[j..], width.min(n - j));
            // SAFETY: the tile's tall x wide values lie within a, b and c.
            unsafe {
                if wide == width {
                    tile::<E, S>(tall, c.as_mut_ptr(), n, a.as_ptr(), lda, b.as_ptr(), ldb, rows);
                } else {
                    edge::<E, S>(tall, wide, c, n, a, lda, b, ldb, rows);
                }
            }
        }
    }
}

/// The last columns, in a full tile of zero-padded copies: the same instructions, so the same bits wherever n is cut.
#[inline(always)]
unsafe fn edge<E: Elem, S: Simd<E>>(
    tall: usize,
    wide: usize,
    c: &mut [E::Real],
    n: usize,
    a: &[E],
    lda: usize,
    b: &[E],
    ldb: usize,
    rows: usize,
) {
    let mut sums = [E::Real::default(); MAX_ROWS * MAX_COLS];
    let mut row = [E::default(); MAX_COLS];
    for i in 0..tall {
        sums[i * MAX_COLS..][..wide].copy_from_slice(&c[i * n..][..wide]);
    }
    for t in 0..rows {
        row[..wide].copy_from_slice(&b[t * ldb..][..wide]);
        // SAFETY: a padded row and padded sums hold a full tile.
        unsafe { tile::<E, S>(tall, sums.as_mut_ptr(), MAX_COLS, a[t * lda..].as_ptr(), lda, row.as_ptr(), 0, 1) };
    }
    for i in 0..tall {
        c[i * n..][..wide].copy_from_slice(&sums[i * MAX_COLS..][..wide]);
    }
}

/// A tile's number of rows is part of its type.
#[inline(always)]
unsafe fn tile<E: Elem, S: Simd<E>>(
    tall: usize,
    c: *mut E::Real,
    ldc: usize,
    a: *const E,
    lda: usize,
    b: *const E,
    ldb: usize,
    rows: usize,
) {
    macro_rules! rows {
        ($($m:literal)*) => {
            match tall {
                // SAFETY: the caller's.
                $($m if $m <= S::ROWS => unsafe { inner::<E, S, $m>(c, ldc, a, lda, b, ldb, rows) },)*
                _ => unreachable!("a tile has 1 to {} rows, not {tall}", S::ROWS),
            }
        };
    }
    rows!(1 2 3 4 5 6 7 8 9 10 11 12)
}

/// c[M, 2 LANES] += the sum over t of a[t, i] b[t, j].
#[inline(always)]
unsafe fn inner<E: Elem, S: Simd<E>, const M: usize>(
    c: *mut E::Real,
    ldc: usize,
    a: *const E,
    lda: usize,
    b: *const E,
    ldb: usize,
    rows: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut sums: [[S::V; VECS]; M] =
            std::array::from_fn(|i| std::array::from_fn(|v| S::load_real(c.add(i * ldc + v * S::LANES))));
        for t in 0..rows {
            let b: [S::V; VECS] = std::array::from_fn(|v| S::load(b.add(t * ldb + v * S::LANES)));
            for (i, sums) in sums.iter_mut().enumerate() {
                let a = S::splat((*a.add(t * lda + i)).widen());
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = S::mul_add(a, b, *sum);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                S::store(c.add(i * ldc + v * S::LANES), *sum);
            }
        }
    }
}
