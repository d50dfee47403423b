//! Packing: 32 outputs of W or W^T, interleaved by pairs of k as VNNI and AMX want them, from any type and alignment.
//!
//! Over columns, 32 rows are read a block of k at a time and their pairs transposed; over rows, two rows of W are
//! interleaved into all panels at once, so that memory is read in the order it lies in; whole numbers, which lie by pairs of
//! columns, are turned into rows first, 32 rows of 64 columns at a time. What is read soon is fetched ahead: a panel's rows are
//! too many streams for the processor to foresee.

use super::{PANEL, Sum, panel_len};
use crate::matrix::Encoding;
use crate::quantize::packed;
use crate::{Bits, Dtype, Elem, Matrix, Real, bf16};

/// Values of k that are transposed at a time: 32 rows of 64 stay in the first-level cache.
pub(super) const BLOCK: usize = 64;
/// Values of one row of pairs of a panel.
pub(super) const PAIRS: usize = 2 * PANEL;
/// Pairs of rows that are interleaved into one panel before the next panel has its turn: long runs for reads and writes.
const RUN: usize = 8;

/// How a level moves pairs.
pub(super) trait Transpose<E: Elem> {
    /// `panel[p][j] = row j [2 p..2 p + 2]` for every pair `p` of the panel, which has at most BLOCK / 2; rows are `stride`
    /// bytes apart, at any alignment.
    ///
    /// # Safety
    /// The instructions of its level must be there, and PANEL rows with as many pairs as the panel.
    unsafe fn pairs(panel: &mut [E], rows: *const E, stride: usize);
    /// to = even[0], odd[0], even[1], odd[1], ..
    ///
    /// # Safety
    /// The instructions of its level must be there, and PANEL values of both, at any alignment.
    #[inline(always)]
    unsafe fn interleave(to: &mut [E; PAIRS], even: *const E, odd: *const E) {
        for (j, to) in to.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            // SAFETY: the caller's.
            *to = unsafe { [even.add(j).read_unaligned(), odd.add(j).read_unaligned()] };
        }
    }
    /// Begins to load a cache line that is read soon; any address will do.
    fn fetch(_line: *const u8) {}
    /// to = narrow(q scale): pair after pair of whole numbers of a packed panel, and its outputs' scales.
    ///
    /// # Safety
    /// The instructions of its level must be there.
    #[inline(always)]
    unsafe fn widen_pairs(to: &mut [[E; PAIRS]], bits: Bits, q: &[u8], scales: &[bf16; PANEL]) {
        let value = |q: i8, scale: &bf16| E::narrow(E::Real::from_f32(q as f32 * scale.widen()));
        for (to, q) in to.iter_mut().zip(q.chunks_exact(packed::pairs(bits))) {
            for (j, (to, scale)) in to.as_chunks_mut::<2>().0.iter_mut().zip(scales).enumerate() {
                let pair = match bits {
                    Bits::Eight => [q[2 * j] as i8, q[2 * j + 1] as i8],
                    Bits::Four => [(q[j] & 15) as i8 - 8, (q[j] >> 4) as i8 - 8],
                };
                *to = pair.map(|q| value(q, scale));
            }
        }
    }
}

/// One pair at a time.
pub(super) struct Plain;

impl<E: Elem> Transpose<E> for Plain {
    #[inline(always)]
    unsafe fn pairs(panel: &mut [E], rows: *const E, stride: usize) {
        // SAFETY: the caller's.
        unsafe { rest(panel, rows, stride, 0) }
    }
}

/// Pairs from `first` on, one at a time.
///
/// # Safety
/// As [`Transpose::pairs`].
#[inline(always)]
pub(super) unsafe fn rest<E: Elem>(panel: &mut [E], rows: *const E, stride: usize, first: usize) {
    for (p, to) in panel.as_chunks_mut::<PAIRS>().0.iter_mut().enumerate().skip(first) {
        for (j, to) in to.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            // SAFETY: the caller's.
            *to = unsafe { rows.byte_add(j * stride).add(2 * p).cast::<[E; 2]>().read_unaligned() };
        }
    }
}

/// # Safety
/// The level of `T` must be there, and lengths as [`crate::Kernels::pack`] checks them.
#[inline(always)]
pub(super) unsafe fn pack<E: Elem, T: Transpose<E>>(panels: &mut [E], w: &Matrix, sum: Sum, n0: usize, scale: f32) {
    // SAFETY: the caller's.
    unsafe {
        match sum {
            Sum::OverCols => over_cols::<E, T>(panels, w, n0, scale),
            Sum::OverRows => over_rows::<E, T>(panels, w, n0, scale),
        }
    }
}

/// Whether stored bits are packed as they are: the only two-byte E is bf16.
#[inline(always)]
fn verbatim<E: Elem>(w: &Matrix, scale: f32) -> bool {
    scale == 1.0
        && matches!(w.encoding(), Encoding::Plain(Dtype::Bf16))
        && size_of::<E>() == 2
        && cfg!(target_endian = "little")
}

#[inline(always)]
unsafe fn over_cols<E: Elem, T: Transpose<E>>(panels: &mut [E], w: &Matrix, n0: usize, scale: f32) {
    for (n0, panel) in (n0..).step_by(PANEL).zip(panels.chunks_exact_mut(panel_len(w.cols()))) {
        for (from, pairs) in (0..).step_by(BLOCK).zip(panel.as_chunks_mut::<PAIRS>().0.chunks_mut(BLOCK / 2)) {
            // SAFETY: the caller's.
            unsafe { cols::<E, T>(pairs, w, from, n0, scale) };
        }
    }
}

/// Packs the pairs of one panel from `from` on, at most a block, into `to`.
///
/// # Safety
/// The level of `T` must be there; `from` is even, below the sum's length, and `n0` below the outputs'.
#[cfg(target_arch = "x86_64")] // for few rows, whose products only it has in place
#[inline(always)]
pub(super) unsafe fn block<E: Elem, T: Transpose<E>>(
    to: &mut [[E; PAIRS]],
    w: &Matrix,
    sum: Sum,
    from: usize,
    n0: usize,
    scale: f32,
) {
    // SAFETY: the caller's.
    unsafe {
        match sum {
            Sum::OverCols => cols::<E, T>(to, w, from, n0, scale),
            Sum::OverRows => run::<E, T>(to, w, from, n0, scale),
        }
    }
}

/// Columns of W from `from` on, at most a block, of the rows from `n0` on, as pairs of one panel.
#[inline(always)]
unsafe fn cols<E: Elem, T: Transpose<E>>(to: &mut [[E; PAIRS]], w: &Matrix, from: usize, n0: usize, scale: f32) {
    let len = (2 * to.len()).min(w.cols() - from);
    if let (Encoding::Packed(packed), 1.0, true) = (w.encoding(), scale, n0.is_multiple_of(PANEL)) {
        let mut to = to;
        for (bits, q, scales) in packed.panel(n0 / PANEL, from..from + len) {
            let (now, later) = to.split_at_mut(q.len() / packed::pairs(bits));
            // SAFETY: the caller's.
            unsafe { T::widen_pairs(now, bits, q, scales) };
            to = later;
        }
        return;
    }
    let outputs = PANEL.min(w.rows() - n0);
    let stride = w.row_bytes();
    let block_bytes = len * stride / w.cols() * PANEL;
    fetch_part::<E, T>(w.row(n0).as_ptr().wrapping_add(PANEL * stride + from * stride / w.cols() * PANEL), block_bytes);
    if verbatim::<E>(w, scale) && outputs == PANEL && len.is_multiple_of(2) {
        // SAFETY: whole rows of so many values, in the file; the rest is the caller's.
        return unsafe {
            T::pairs(to.as_flattened_mut(), w.row(n0).as_ptr().add(from * size_of::<E>()).cast(), stride)
        };
    }
    let mut rows = [[E::default(); BLOCK]; PANEL]; // zeros are the pad of an odd k, and absent outputs
    for (j, row) in rows[..outputs].iter_mut().enumerate() {
        read(&mut row[..len], w, n0 + j, from, scale);
    }
    // SAFETY: as above, staged.
    unsafe { T::pairs(to.as_flattened_mut(), rows.as_ptr().cast(), size_of_val(&rows[0])) }
}

/// Begins to load as much of the next panel's rows, which lie one after the other in memory, as a block of this one's takes.
#[inline(always)]
fn fetch_part<E: Elem, T: Transpose<E>>(next: *const u8, bytes: usize) {
    (0..bytes).step_by(64).for_each(|line| T::fetch(next.wrapping_add(line)));
}

#[inline(always)]
unsafe fn over_rows<E: Elem, T: Transpose<E>>(panels: &mut [E], w: &Matrix, n0: usize, scale: f32) {
    let (len, pairs) = (panel_len(w.rows()), w.rows().div_ceil(2));
    if is_whole(w, n0, scale) {
        let mut square = Square::new();
        for k in (0..w.rows()).step_by(PANEL) {
            for (n0, two) in (n0..).step_by(2 * PANEL).zip(panels.chunks_mut(2 * len)) {
                let mut two = two
                    .chunks_exact_mut(len)
                    .map(|panel| &mut panel.as_chunks_mut::<PAIRS>().0[k / 2..pairs.min((k + PANEL) / 2)]);
                // SAFETY: the caller's.
                unsafe { whole::<E, T>(&mut square, [two.next(), two.next()], w, k, n0) };
            }
        }
        return;
    }
    for first in (0..pairs).step_by(RUN) {
        for (n0, panel) in (n0..).step_by(PANEL).zip(panels.chunks_exact_mut(len)) {
            let panel = &mut panel.as_chunks_mut::<PAIRS>().0[first..pairs.min(first + RUN)];
            // SAFETY: the caller's.
            unsafe { run::<E, T>(panel, w, 2 * first, n0, scale) };
        }
    }
}

/// Whether W, transposed, is packed as whole numbers are.
fn is_whole(w: &Matrix, n0: usize, scale: f32) -> bool {
    matches!(w.encoding(), Encoding::Packed(_)) && scale == 1.0 && n0.is_multiple_of(2)
}

/// 32 rows of W by 64 columns, as [`whole`] turns them.
struct Square<E> {
    pairs: [[E; PAIRS]; BLOCK / 2],
    rows: [[E; BLOCK]; PANEL],
}

impl<E: Elem> Square<E> {
    #[inline(always)]
    fn new() -> Self {
        Self { pairs: [[E::default(); PAIRS]; BLOCK / 2], rows: [[E::default(); BLOCK]; PANEL] }
    }
}

/// Whole numbers of the 32 rows of W from `k` on, a multiple of 32, into one panel or two from `n0` on: widened as they lie, by
/// pairs of columns, turned into rows, and these interleaved.
#[inline(always)]
unsafe fn whole<E: Elem, T: Transpose<E>>(
    Square { pairs, rows }: &mut Square<E>,
    panels: [Option<&mut [[E; PAIRS]]>; 2],
    w: &Matrix,
    k: usize,
    n0: usize,
) {
    let len = (panels.iter().flatten().count() * PANEL).min(w.cols() - n0);
    // SAFETY: the caller's; 32 pairs of 32 rows become 32 rows of 32 pairs.
    unsafe {
        cols::<E, T>(&mut pairs[..len.div_ceil(2)], w, n0, k, 1.0);
        T::pairs(rows.as_flattened_mut(), pairs.as_ptr().cast(), size_of_val(&pairs[0]));
    }
    rows[PANEL.min(w.rows() - k)..].fill([E::default(); BLOCK]);
    if !len.is_multiple_of(PANEL) {
        rows.iter_mut().for_each(|row| row[len..].fill(E::default()));
    }
    for (first, panel) in (0..).step_by(PANEL).zip(panels.into_iter().flatten()) {
        for (to, [even, odd]) in panel.iter_mut().zip(rows.as_chunks::<2>().0) {
            // SAFETY: a panel of both rows.
            unsafe { T::interleave(to, even[first..].as_ptr(), odd[first..].as_ptr()) };
        }
    }
}

/// Panels of W^T of whole numbers of 8 bits, from its row `n0` on: 32 rows of W by 64 columns at a time. Pairs of two rows and two
/// columns, 32 bits, are transposed as pairs of bf16 are, and in each the two numbers off the diagonal.
///
/// # Safety
/// The level of `T` must be there, and lengths as [`crate::Kernels::turn`] checks them.
#[cfg(target_arch = "x86_64")] // only its levels multiply whole numbers as such
#[inline(always)]
pub(super) unsafe fn turn<T: Transpose<bf16>>(panels: &mut [bf16], w: &packed::Packed, n0: usize) {
    const PAIR: usize = packed::pairs(Bits::Eight);
    let len = w.shape()[0].div_ceil(2) * PANEL;
    let pairs = w.shape()[0].div_ceil(2); // of W's rows
    for at in 0..w.shape()[0].div_ceil(PANEL) {
        let rows = w.pairs(at).as_chunks::<PAIR>().0;
        let here = at * (PANEL / 2)..pairs.min((at + 1) * (PANEL / 2));
        for (first, two) in (n0 / 2..).step_by(PANEL).zip(panels.chunks_mut(2 * len)) {
            let columns = &rows[first..rows.len().min(first + PANEL)]; // by pairs, of two panels
            let mut padded = [[0; PAIR]; PANEL];
            let columns = <&[_; PANEL]>::try_from(columns).unwrap_or_else(|_| {
                padded[..columns.len()].copy_from_slice(columns);
                &padded
            });
            let mut turned = [[bf16::ZERO; PAIRS]; PANEL / 2];
            // SAFETY: the caller's; 32 rows of 16 pairs.
            unsafe { T::pairs(turned.as_flattened_mut(), columns.as_ptr().cast(), PAIR) };
            for (half, panel) in two.chunks_exact_mut(len).enumerate() {
                let to = &mut panel.as_chunks_mut::<PANEL>().0[here.clone()];
                for (to, pairs) in to.iter_mut().zip(&turned) {
                    let pairs = pairs[half * PANEL..][..PANEL].as_chunks::<2>().0;
                    for (to, [a, b]) in to.as_chunks_mut::<2>().0.iter_mut().zip(pairs) {
                        let (a, b) = (a.to_bits(), b.to_bits()); // a row's two columns, and the next one's
                        *to = [a & 0xff | b << 8, a >> 8 | b & 0xff00].map(bf16::from_bits);
                    }
                }
            }
        }
    }
}

/// Interleaves the rows of W from `k` on, two by two, into one panel.
#[inline(always)]
unsafe fn run<E: Elem, T: Transpose<E>>(panel: &mut [[E; PAIRS]], w: &Matrix, k: usize, n0: usize, scale: f32) {
    if is_whole(w, n0, scale) && k.is_multiple_of(PANEL) {
        let mut square = Square::new();
        for (k, panel) in (k..).step_by(PANEL).zip(panel.chunks_mut(PANEL / 2)) {
            // SAFETY: the caller's.
            unsafe { whole::<E, T>(&mut square, [Some(panel), None], w, k, n0) };
        }
        return;
    }
    let outputs = PANEL.min(w.cols() - n0);
    let stride = w.cols() * size_of::<E>();
    if verbatim::<E>(w, scale) && outputs == PANEL && k + 2 * panel.len() <= w.rows() {
        let first = w.row(k)[n0 * size_of::<E>()..].as_ptr();
        for (p, to) in panel.iter_mut().enumerate() {
            // SAFETY: two rows of W are there for every pair, a panel wide from n0 on.
            unsafe {
                let (even, odd) = (first.add(2 * p * stride), first.add((2 * p + 1) * stride));
                T::fetch(even.wrapping_add(2 * RUN * stride));
                T::fetch(odd.wrapping_add(2 * RUN * stride));
                T::interleave(to, even.cast(), odd.cast());
            }
        }
        return;
    }
    let mut pair = [[E::default(); PANEL]; 2];
    for (k, to) in (k..).step_by(2).zip(panel) {
        for (k, row) in (k..).zip(&mut pair) {
            row.fill(E::default());
            if k < w.rows() {
                read(&mut row[..outputs], w, k, n0, scale);
            }
        }
        // SAFETY: both are a panel wide.
        unsafe { T::interleave(to, pair[0].as_ptr(), pair[1].as_ptr()) };
    }
}

/// y = narrow(w * scale), from column `from` of row `i` on.
#[inline(always)]
fn read<E: Elem>(y: &mut [E], w: &Matrix, i: usize, from: usize, scale: f32) {
    if verbatim::<E>(w, scale) {
        return copy_bits(y, &w.row(i)[2 * from..][..2 * y.len()]);
    }
    let mut wide = [E::Real::ZERO; BLOCK];
    let wide = &mut wide[..y.len()];
    w.read_row(i, from, wide);
    let scale = E::Real::from_f32(scale);
    y.iter_mut().zip(wide).for_each(|(y, wide)| *y = E::narrow(*wide * scale));
}

/// The only two-byte E is bf16: a file's bits are its bits.
#[inline(always)]
fn copy_bits<E: Elem>(y: &mut [E], bytes: &[u8]) {
    assert!(size_of_val(y) == bytes.len() && size_of::<E>() == 2);
    // SAFETY: as many bytes on both sides; every bit pattern is a bf16.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), y.as_mut_ptr().cast(), bytes.len()) }
}
