//! Whole numbers in the order in which a product reads them, so that one row times a matrix streams through memory.
//!
//! Panels of [`PANEL`] outputs; in each, pair after pair of k, and in a pair all outputs: `[rows / PANEL][k / 2][PANEL][2]`.
//! A pair is two bytes of 8 bits, or one of 4 bits with the even column in its lower half. Scales `[rows / PANEL][runs][PANEL]`.

use crate::linear::PANEL;
use crate::{Bits, Elem, Real, bf16};
use std::ops::Range;

/// A matrix `[rows, cols]` of whole numbers, packed; outputs that are not there have scales of zero.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    bits: Bits,
    q: &'a [u8],
    scales: &'a [bf16],
    rows: usize,
    cols: usize,
    /// Columns that share a scale: an even number, or all.
    run: usize,
}

/// Bytes of a pair.
const fn pair(bits: Bits) -> usize {
    bits.count() / 4
}

/// Bytes of a pair of all outputs of a panel.
pub(crate) const fn pairs(bits: Bits) -> usize {
    PANEL * pair(bits)
}

/// Bytes and scales of a panel over `cols` columns.
pub fn panel_sizes(bits: Bits, cols: usize, run: usize) -> (usize, usize) {
    (cols.div_ceil(2) * pairs(bits), cols.div_ceil(run) * PANEL)
}

/// Puts a row, as [`super::quantize`] makes it, into a panel's place `at`; lengths as [`panel_sizes`] says.
pub fn put(bits: Bits, panel: (&mut [u8], &mut [bf16]), at: usize, q: &[u8], scales: &[bf16]) {
    let size = pair(bits);
    for (to, q) in panel.0.chunks_exact_mut(pairs(bits)).zip(q.chunks(size)) {
        to[at * size..][..q.len()].copy_from_slice(q); // an odd row of 8 bits ends with half a pair
    }
    panel.1.chunks_exact_mut(PANEL).zip(scales).for_each(|(to, scale)| to[at] = *scale);
}

impl<'a> Packed<'a> {
    /// `None` unless lengths are those of [`panel_sizes`] for every panel, and runs are even or whole rows.
    pub fn new(bits: Bits, q: &'a [u8], scales: &'a [bf16], [rows, cols]: [usize; 2], run: usize) -> Option<Self> {
        if run == 0 || run < cols && !run.is_multiple_of(2) {
            return None;
        }
        let (panels, sizes) = (rows.div_ceil(PANEL), panel_sizes(bits, cols, run));
        let fits = q.len() == panels.checked_mul(sizes.0)? && scales.len() == panels.checked_mul(sizes.1)?;
        fits.then_some(Self { bits, q, scales, rows, cols, run })
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// Bits of a number.
    pub fn bits(&self) -> Bits {
        self.bits
    }

    /// A scale for every row, if each has but one; more behind them, for the pad of a panel.
    pub(crate) fn row_scales(&self) -> Option<&'a [bf16]> {
        (self.run >= self.cols).then_some(self.scales)
    }

    /// Bytes of a panel's numbers.
    pub(crate) fn panel_bytes(&self) -> usize {
        panel_sizes(self.bits, self.cols, self.run).0
    }

    /// The pairs of columns of panel `at`, each of all its rows.
    #[cfg(target_arch = "x86_64")] // whose levels turn them
    pub(crate) fn pairs(&self, at: usize) -> &'a [u8] {
        &self.q[at * self.panel_bytes()..][..self.panel_bytes()]
    }

    /// Do runs of one scale have a multiple of `columns` columns, all but the last one?
    pub(crate) fn runs_by(&self, columns: usize) -> bool {
        self.run >= self.cols || self.run.is_multiple_of(columns)
    }

    /// Columns `cols`, which begin with a pair, of panel `at` in pieces of one run: their pairs, how many bits they have, and
    /// the outputs' scales.
    pub(crate) fn panel(
        &self,
        at: usize,
        cols: Range<usize>,
    ) -> impl Iterator<Item = (Bits, &'a [u8], &'a [bf16; PANEL])> + use<'a> {
        let (q, scales) = panel_sizes(self.bits, self.cols, self.run);
        let (bits, run) = (self.bits, self.run);
        let (q, scales) = (&self.q[at * q..][..q], self.scales[at * scales..][..scales].as_chunks::<PANEL>().0);
        let mut at = cols.start;
        scales[at / run..].iter().map_while(move |scales| {
            let piece = at..cols.end.min((at / run + 1) * run);
            at = piece.end;
            let q = &q[piece.start / 2 * pairs(bits)..piece.end.div_ceil(2) * pairs(bits)];
            (!piece.is_empty()).then_some((bits, q, scales))
        })
    }

    /// Rows `rows`, which begin with a panel.
    pub(crate) fn slice_rows(&self, rows: Range<usize>) -> Self {
        assert!(
            rows.start.is_multiple_of(PANEL) && rows.end <= self.rows,
            "rows {rows:?} of {} packed ones",
            self.rows
        );
        let (q, scales) = panel_sizes(self.bits, self.cols, self.run);
        let panels = rows.start / PANEL..rows.end.div_ceil(PANEL);
        Self {
            q: &self.q[panels.start * q..panels.end * q],
            scales: &self.scales[panels.start * scales..panels.end * scales],
            rows: rows.len(),
            ..*self
        }
    }

    /// Columns `from..from + y.len()` of row `i`, times their scales, exactly.
    pub(crate) fn read_row<R: Real>(&self, i: usize, from: usize, y: &mut [R]) {
        assert!(i < self.rows && from + y.len() <= self.cols);
        let (at, size) = (i % PANEL, pair(self.bits));
        let (bytes, scales) = panel_sizes(self.bits, self.cols, self.run);
        let (q, scales) = (&self.q[i / PANEL * bytes..][..bytes], &self.scales[i / PANEL * scales..][..scales]);
        for (j, y) in (from..).zip(y) {
            let pair = &q[(j / 2 * PANEL + at) * size..][..size];
            let value = match self.bits {
                Bits::Eight => pair[j % 2] as i8,
                Bits::Four => (pair[0] >> (4 * (j % 2)) & 15) as i8 - 8,
            };
            *y = R::from_f32(value as f32 * scales[j / self.run * PANEL + at].widen());
        }
    }
}
