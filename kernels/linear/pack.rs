//! Packing: 32 outputs of W or W^T, interleaved by pairs of k as VNNI and AMX want them, from any type and alignment.
//!
//! Over columns, 32 rows are read a block of k at a time and their pairs transposed; over rows, two rows of W are
//! interleaved. Both read whole cache lines.

use super::{PANEL, Sum};
use crate::{Dtype, Elem, Matrix, Real};

/// Values of k that are transposed at a time: 32 rows of 64 stay in the first-level cache.
pub(super) const BLOCK: usize = 64;
/// Values of one row of pairs of a panel.
pub(super) const PAIRS: usize = 2 * PANEL;

/// `[PANEL][BLOCK]`, rows of W.
pub(super) type Rows<E> = [[E; BLOCK]; PANEL];

/// How a level moves pairs.
pub(super) trait Transpose<E> {
    /// `panel[p][j] = rows[j][2 p..2 p + 2]` for every pair `p` of the panel, which has at most BLOCK / 2.
    ///
    /// # Safety
    /// The instructions of its level must be there.
    unsafe fn pairs(panel: &mut [E], rows: &Rows<E>);
}

/// One pair at a time.
pub(super) struct Plain;

impl<E: Elem> Transpose<E> for Plain {
    #[inline(always)]
    unsafe fn pairs(panel: &mut [E], rows: &Rows<E>) {
        rest(panel, rows, 0);
    }
}

/// Pairs from `first` on, one at a time.
#[inline(always)]
pub(super) fn rest<E: Elem>(panel: &mut [E], rows: &Rows<E>, first: usize) {
    for (p, to) in panel.as_chunks_mut::<PAIRS>().0.iter_mut().enumerate().skip(first) {
        for (to, row) in to.as_chunks_mut::<2>().0.iter_mut().zip(rows) {
            *to = [row[2 * p], row[2 * p + 1]];
        }
    }
}

/// # Safety
/// The level of `T` must be there, and lengths as [`crate::Kernels::pack`] checks them.
#[inline(always)]
pub(super) unsafe fn pack<E: Elem, T: Transpose<E>>(panel: &mut [E], w: &Matrix, sum: Sum, n0: usize, scale: f32) {
    match sum {
        // SAFETY: the caller's.
        Sum::OverCols => unsafe { over_cols::<E, T>(panel, w, n0, scale) },
        Sum::OverRows => over_rows(panel, w, n0, scale),
    }
}

#[inline(always)]
unsafe fn over_cols<E: Elem, T: Transpose<E>>(panel: &mut [E], w: &Matrix, n0: usize, scale: f32) {
    let mut rows: Rows<E> = [[E::default(); BLOCK]; PANEL];
    let outputs = PANEL.min(w.rows() - n0);
    for (block, panel) in panel.chunks_mut(BLOCK * PANEL).enumerate() {
        let from = block * BLOCK;
        let len = BLOCK.min(w.cols() - from);
        for (j, row) in rows[..outputs].iter_mut().enumerate() {
            read(&mut row[..len], w, n0 + j, from, scale);
            // The pad of an odd k: the block before left a value there.
            row[len..].fill(E::default());
        }
        // SAFETY: the caller's.
        unsafe { T::pairs(panel, &rows) };
    }
}

#[inline(always)]
fn over_rows<E: Elem>(panel: &mut [E], w: &Matrix, n0: usize, scale: f32) {
    let outputs = PANEL.min(w.cols() - n0);
    let mut pair = [[E::default(); PANEL]; 2];
    for (p, to) in panel.as_chunks_mut::<PAIRS>().0.iter_mut().enumerate() {
        for (k, row) in (2 * p..).zip(&mut pair) {
            match k < w.rows() {
                true => read(&mut row[..outputs], w, k, n0, scale),
                false => row.fill(E::default()),
            }
        }
        let [even, odd] = &pair;
        for j in 0..PANEL {
            to[2 * j] = even[j];
            to[2 * j + 1] = odd[j];
        }
    }
}

/// y = narrow(w * scale), from column `from` of row `i` on.
#[inline(always)]
fn read<E: Elem>(y: &mut [E], w: &Matrix, i: usize, from: usize, scale: f32) {
    if scale == 1.0 && w.dtype() == Dtype::Bf16 && size_of::<E>() == 2 && cfg!(target_endian = "little") {
        return copy_bf16(y, &w.row(i)[2 * from..][..2 * y.len()]);
    }
    let mut wide = [E::Real::ZERO; BLOCK];
    let wide = &mut wide[..y.len()];
    w.read_row(i, from, wide);
    let scale = E::Real::from_f32(scale);
    y.iter_mut().zip(wide).for_each(|(y, wide)| *y = E::narrow(*wide * scale));
}

/// The only two-byte E is bf16: a file's bits are its bits.
#[inline(always)]
fn copy_bf16<E: Elem>(y: &mut [E], bytes: &[u8]) {
    assert!(size_of_val(y) == bytes.len() && size_of::<E>() == 2);
    // SAFETY: as many bytes on both sides; every bit pattern is a bf16.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), y.as_mut_ptr().cast(), bytes.len()) }
}
