//! The head on a GPU: logits of a run of the vocabulary at a time, so that they are never stored whole.

use super::super::{Device, HeadTarget, Sum};
use super::weight::Weight;
use super::{Array, Gpu};
use dialoguellm_kernels::cuda::Ptr;
use dialoguellm_kernels::sample::{self, Draw};
use dialoguellm_kernels::{bf16, cross_entropy, linear};
use std::ops::Range;

/// Vocabulary entries whose logits exist at a time; fixed, so that the order of a row's sum is.
const HEAD_COLS: usize = 8192;
/// Rows whose whole logits exist at a time.
const LOGIT_ROWS: usize = 256;

fn blocks(len: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(size).map(move |at| at..len.min(at + size))
}

/// A row's targets as the kernel takes them: where each row's begin, their tokens, and d loss / d (-log p).
struct ByRow {
    first: Vec<u32>,
    tokens: Vec<u32>,
    weights: Vec<f32>,
    /// The sum of each row's weights.
    totals: Vec<f32>,
}

impl ByRow {
    fn of(targets: &[HeadTarget], rows: usize) -> Self {
        let mut sorted: Vec<&HeadTarget> = targets.iter().collect();
        sorted.sort_by_key(|target| target.row);
        let begin = |row: usize| sorted.partition_point(|target| (target.row as usize) < row);
        let total = |row: usize| -sorted[begin(row)..begin(row + 1)].iter().map(|target| target.gradient).sum::<f64>();
        Self {
            first: (0..=rows).map(|row| begin(row) as u32).collect(),
            tokens: sorted.iter().map(|target| target.token).collect(),
            weights: sorted.iter().map(|target| -target.gradient as f32).collect(),
            totals: (0..rows).map(|row| total(row) as f32).collect(),
        }
    }
}

impl Gpu {
    /// Logits of rows `rows` and the vocabulary's entries `cols`.
    fn logits_of(&self, h: &Array<bf16>, w: &Weight, rows: Range<usize>, cols: &Range<usize>) -> Array<f32> {
        assert!(h.cols == w.cols && rows.end <= h.rows && cols.end <= w.rows);
        let logits = self.real(rows.len(), cols.len());
        let w = w.rows(self, cols.clone());
        let term = linear::cuda::Term { x: h.row(rows.start), w: w.at, k: h.cols as u32, sum: Sum::OverCols };
        self.product(linear::cuda::Out::Real(logits.at()), logits.rows, logits.cols, &[term], None);
        logits
    }

    /// [`Device::head`].
    pub(super) fn head_forward(&self, h: &Array<bf16>, w: &Weight, targets: &[HeadTarget]) -> (Vec<f64>, Vec<f64>) {
        let (rows, n) = (h.rows as u32, targets.len() as u32);
        assert!(targets.iter().all(|t| t.row < rows && (t.token as usize) < w.rows));
        let (lse, chosen) = (self.real(h.rows, 1), self.real(targets.len(), 1));
        let target_rows = self.upload(&targets.iter().map(|t| t.row).collect::<Vec<_>>(), 1);
        let tokens = self.upload(&targets.iter().map(|t| t.token).collect::<Vec<_>>(), 1);
        for cols in blocks(w.rows, HEAD_COLS) {
            let logits = self.logits_of(h, w, 0..h.rows, &cols);
            let (at, len, first) = (logits.at(), cols.len() as u32, cols.start as u32);
            self.run(&cross_entropy::cuda::log_sum_exp(lse.at(), at, rows, len, first == 0));
            self.run(&cross_entropy::cuda::chosen(chosen.at(), at, len, first, target_rows.at(), tokens.at(), n));
        }
        let wide = |x: &Array<f32>| self.download(x, x.len()).into_iter().map(f64::from).collect::<Vec<_>>();
        let (lse, chosen) = (wide(&lse), wide(&chosen));
        let log_p = chosen.iter().zip(targets).map(|(logit, target)| logit - lse[target.row as usize]).collect();
        (log_p, lse)
    }

    /// [`Device::head_backward`].
    pub(super) fn head_gradient(&self, h: &Array<bf16>, w: &Weight, lse: &[f64], targets: &[HeadTarget]) -> Array<f32> {
        assert!(lse.len() == h.rows);
        let by_row = ByRow::of(targets, h.rows);
        let lse = self.upload(&lse.iter().map(|&lse| lse as f32).collect::<Vec<_>>(), 1);
        let (totals, first) = (self.upload(&by_row.totals, 1), self.upload(&by_row.first, 1));
        let (tokens, weights) = (self.upload(&by_row.tokens, 1), self.upload(&by_row.weights, 1));
        let dh = self.zeros(h.rows, h.cols);
        let rows = h.rows as u32;
        for cols in blocks(w.rows, HEAD_COLS) {
            let logits = self.logits_of(h, w, 0..h.rows, &cols);
            let d_logits = self.act(h.rows, cols.len());
            let (len, col0) = (cols.len() as u32, cols.start as u32);
            let [lse, totals, first]: [Ptr; 3] = [lse.at(), totals.at(), first.at()];
            self.run(&cross_entropy::cuda::backward(
                d_logits.at(),
                logits.at(),
                lse,
                totals,
                rows,
                len,
                col0,
                first,
                tokens.at(),
                weights.at(),
            ));
            let w = w.rows(self, cols);
            let term = linear::cuda::Term { x: d_logits.at(), w: w.at, k: len, sum: Sum::OverRows };
            self.product(linear::cuda::Out::Add(dh.at()), h.rows, h.cols, &[term], None);
        }
        dh
    }

    /// [`Device::draw`].
    pub(super) fn head_draw(&self, h: &Array<bf16>, w: &Weight, draw: &Draw) -> Option<u32> {
        assert!(h.rows == 1 && draw.seen.iter().all(|&token| (token as usize) < w.rows));
        let logits = self.logits_of(h, w, 0..1, &(0..w.rows));
        let (token, seen) = (self.array::<u32>(1, 1), self.upload(draw.seen, 1));
        self.run(&sample::cuda::penalise(logits.at(), seen.at(), draw.seen.len() as u32, draw.penalty));
        self.run(&sample::cuda::pick(token.at(), logits.at(), w.rows as u32, &draw.options, draw.uniform));
        let token = self.download(&token, 1)[0];
        (token != sample::cuda::NO_TOKEN).then_some(token)
    }

    /// [`Device::logits`].
    pub(super) fn head_logits(&self, h: &Array<bf16>, w: &Weight) -> Vec<f32> {
        let mut all = Vec::with_capacity(h.rows * w.rows);
        for rows in blocks(h.rows, LOGIT_ROWS) {
            let logits = self.logits_of(h, w, rows, &(0..w.rows));
            all.extend(self.download(&logits, logits.len()));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_come_by_row_with_the_weights_of_a_loss() {
        let target = |row, token, gradient| HeadTarget { row, token, gradient };
        let by_row = ByRow::of(&[target(2, 7, -0.5), target(0, 3, -1.0), target(2, 7, -0.25)], 4);
        assert_eq!(by_row.first, [0, 1, 1, 3, 3]);
        assert_eq!(by_row.tokens, [3, 7, 7]);
        assert_eq!(by_row.weights, [1.0, 0.5, 0.25]);
        assert_eq!(by_row.totals, [1.0, 0.0, 0.75, 0.0]);
    }
}
