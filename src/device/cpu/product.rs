//! Sums of matrix products: packing, and how rows or columns are handed to threads.

use super::super::pool::Chunks;
use super::super::{Device, Operand, Out, Product, Sum, Term};
use super::{Buffer, Cpu};
use dialoguellm_kernels::linear::Window;
use dialoguellm_kernels::quantize::packed::Packed;
use dialoguellm_kernels::{Elem, Matrix, linear};
use std::ops::Range;

/// Bytes of packed weights that exist at a time.
const PACKED_BYTES: usize = 16 << 20;
/// Bytes of all rows up to which every task goes over all of them, so that what it packed never leaves its core's cache.
const ROWS_BYTES: usize = 3 << 19;
/// Register tiles of rows for each thread from which tasks share out rows nevertheless where W is not packed: every row is then
/// made whole numbers for fewer tasks.
const ROWS_TILES: usize = 8;
/// Bytes that such a task packs at a time.
const PANELS_BYTES: usize = 256 << 10;
/// The most rows of one task where rows are shared out.
const TASK_ROWS: usize = 256;

impl<E: Elem> Cpu<E> {
    /// The rows of each task: two tasks a thread, all of nearly as many whole register tiles.
    fn row_tasks(&self, rows: usize) -> Vec<Range<usize>> {
        let (tile, tasks) = (self.kernels.gemm_rows(), 2 * self.pool.threads());
        let tiles = rows.div_ceil(tile);
        let tasks = tasks.max(tiles.div_ceil(TASK_ROWS.div_ceil(tile))).min(tiles);
        let bound = |task: usize| rows.min(task * tiles / tasks * tile);
        (0..tasks).map(|task| bound(task)..bound(task + 1)).collect()
    }

    /// `out = sum of factors + bias`: tasks share out the columns, or the rows where those are many.
    pub(super) fn product(&self, out: Out<Self>, factors: &[Factor<E>], bias: Option<&[E::Real]>) {
        let Some(first) = factors.first() else { return };
        let (rows, n) = (first.x.rows, first.n());
        let out = Destination::of(out);
        if rows <= self.kernels.gemv_rows() {
            return self.in_place(&[Few { out, factors, bias, rows, n }]);
        }
        let row_bytes: usize = factors.iter().map(|f| f.x.cols * size_of::<E>()).sum();
        let panel_bytes: usize = factors.iter().map(|f| linear::panel_len(f.x.cols) * size_of::<E>()).sum();
        let whole = factors.iter().any(|f| self.kernels.whole(&f.w, f.sum, 0..n, f.scale).is_some());
        let enough = ROWS_TILES * self.pool.threads() * self.kernels.gemm_rows();
        if rows * row_bytes <= ROWS_BYTES && !(whole && rows >= enough) {
            return self.by_columns(&out, factors, bias, rows, n, PANELS_BYTES / panel_bytes);
        }
        let step = (PACKED_BYTES / panel_bytes).max(1) * linear::PANEL;
        for n0 in (0..n).step_by(step) {
            let cols = n0..n.min(n0 + step);
            self.by_rows(&out, factors, bias.map(|bias| &bias[cols.clone()]), rows, cols);
        }
    }

    /// Products that do not need each other: of a few rows, where all are bound by the reading of their matrices, in one job.
    pub(super) fn products(&self, products: Vec<Product<Self>>) {
        let few =
            |product: &Product<Self>| product.terms.first().is_some_and(|term| term.x.rows <= self.kernels.gemv_rows());
        if !products.iter().all(few) {
            return products.into_iter().for_each(|Product { out, terms, bias }| self.matmul(out, &terms, bias));
        }
        let factors: Vec<Vec<_>> = products.iter().map(|p| p.terms.iter().map(Factor::of).collect()).collect();
        let ready = products.into_iter().zip(&factors).map(|(product, factors)| {
            let (rows, n) = (factors[0].x.rows, factors[0].n());
            Few { out: Destination::of(product.out), factors, bias: product.bias.map(Vec::as_slice), rows, n }
        });
        self.in_place(&ready.collect::<Vec<_>>());
    }

    /// A task multiplies a few rows with some panels where they lie; there are about two tasks for every thread.
    fn in_place(&self, products: &[Few<E>]) {
        let panels: usize = products.iter().map(|product| product.n.div_ceil(linear::PANEL)).sum();
        let step = panels.div_ceil(2 * self.pool.threads()).max(1) * linear::PANEL;
        let mut tasks = Vec::new();
        for product in products {
            tasks.extend((0..product.n).step_by(step).map(|from| (product, from..product.n.min(from + step))));
        }
        self.pool.run(tasks.len(), |task| {
            let (Few { out, factors, bias, rows, .. }, cols) = &tasks[task];
            let terms: Vec<_> = factors.iter().map(|factor| factor.in_place(cols.start)).collect();
            let bias = bias.map(|bias| &bias[cols.clone()]);
            // SAFETY: these columns belong to this task.
            let part = unsafe { out.part(0..*rows, cols.start) };
            self.kernels.gemv(part, out.cols, *rows, cols.len(), &terms, bias);
        });
    }

    /// Columns `cols` of the product: every matrix is packed once where it must be, then tasks take runs of rows.
    fn by_rows(
        &self,
        out: &Destination<E>,
        factors: &[Factor<E>],
        bias: Option<&[E::Real]>,
        rows: usize,
        cols: Range<usize>,
    ) {
        let ready = self.ready(factors, cols.clone());
        let tasks = self.row_tasks(rows);
        self.pool.run(tasks.len(), |task| {
            let at = tasks[task].clone();
            let terms = terms(factors, &ready, at.clone());
            // SAFETY: these rows belong to this task.
            let part = unsafe { out.part(at.clone(), cols.start) };
            self.kernels.gemm(part, out.cols, at.len(), cols.len(), &terms, bias);
        });
    }

    /// A task multiplies all rows with some panels, at most `most`, which it packs where it must, four times for every thread.
    fn by_columns<'a>(
        &self,
        out: &Destination<E>,
        factors: &[Factor<'a, E>],
        bias: Option<&[E::Real]>,
        rows: usize,
        n: usize,
        most: usize,
    ) {
        let panels = n.div_ceil(linear::PANEL);
        let step = panels.div_ceil(4 * self.pool.threads()).clamp(1, most.max(1)) * linear::PANEL;
        self.pool.run(n.div_ceil(step), |task| {
            let cols = task * step..n.min((task + 1) * step);
            let pack = |factor: &Factor<'a, E>| {
                let mut ready = self.columns(factor, cols.clone());
                if let Columns::Panels(panels) = &mut ready {
                    self.kernels.pack(panels.values_mut(), &factor.w, factor.sum, cols.start, factor.scale);
                }
                ready
            };
            let ready: Vec<_> = factors.iter().map(pack).collect();
            let bias = bias.map(|bias| &bias[cols.clone()]);
            // SAFETY: these columns belong to this task.
            let part = unsafe { out.part(0..rows, cols.start) };
            self.kernels.gemm(part, out.cols, rows, cols.len(), &terms(factors, &ready, 0..rows), bias);
        });
    }

    /// Every factor's columns `cols`; those that must be are packed, a few panels a task, all in one job.
    fn ready<'a>(&self, factors: &[Factor<'a, E>], cols: Range<usize>) -> Vec<Columns<'a, E>> {
        let panels = cols.len().div_ceil(linear::PANEL);
        let step = panels.div_ceil(2 * self.pool.threads()).clamp(1, 8);
        let mut ready: Vec<_> = factors.iter().map(|factor| self.columns(factor, cols.clone())).collect();
        let chunks = ready.iter_mut().zip(factors).filter_map(|(ready, factor)| match ready {
            Columns::Panels(to) => {
                Some((factor, Chunks::new(to.values_mut(), step * linear::panel_len(factor.x.cols))))
            }
            Columns::Whole(_) => None,
        });
        let chunks: Vec<_> = chunks.collect();
        let each = panels.div_ceil(step);
        self.pool.run(chunks.len() * each, |task| {
            let ((factor, chunks), chunk) = (&chunks[task / each], task % each);
            // SAFETY: one task per chunk.
            let out = unsafe { chunks.get(chunk) };
            self.kernels.pack(out, &factor.w, factor.sum, cols.start + chunk * step * linear::PANEL, factor.scale);
        });
        ready
    }

    /// A factor's columns `cols` where they lie, or room for their panels.
    fn columns<'a>(&self, factor: &Factor<'a, E>, cols: Range<usize>) -> Columns<'a, E> {
        let panels = cols.len().div_ceil(linear::PANEL);
        match self.kernels.whole(&factor.w, factor.sum, cols, factor.scale) {
            Some(whole) => Columns::Whole(whole),
            None => Columns::Panels(Buffer::new(&self.arena, panels, linear::panel_len(factor.x.cols))),
        }
    }
}

/// The columns of a factor as the kernel takes them.
enum Columns<'a, E: Elem> {
    Panels(Buffer<E>),
    Whole(Packed<'a>),
}

/// A product of a few rows and n columns.
struct Few<'a, E: Elem> {
    out: Destination<'a, E>,
    factors: &'a [Factor<'a, E>],
    bias: Option<&'a [E::Real]>,
    rows: usize,
    n: usize,
}

/// One product of a sum, with its matrix as stored.
pub(super) struct Factor<'a, E: Elem> {
    pub(super) x: &'a Buffer<E>,
    pub(super) w: Matrix<'a>,
    pub(super) sum: Sum,
    pub(super) scale: f32,
}

impl<'a, E: Elem> Factor<'a, E> {
    pub(super) fn of(term: &Term<'a, Cpu<E>>) -> Self {
        let (w, scale) = match term.w {
            Operand::Frozen(w) => (w.matrix(), 1.0),
            Operand::Lora { params, at, rows, cols, scale } => {
                (Matrix::of_f32(&params[at..at + rows * cols], rows, cols), scale)
            }
        };
        Factor { x: term.x, w, sum: term.sum, scale }
    }

    /// Outputs from `n0` on, for the kernel that takes matrices as they are.
    fn in_place(&self, n0: usize) -> linear::InPlace<'_, E> {
        let Factor { x, w, sum, scale } = self;
        linear::InPlace { a: x.values(), lda: x.cols, w: *w, sum: *sum, n0, scale: *scale }
    }

    /// Columns of the product.
    fn n(&self) -> usize {
        match self.sum {
            Sum::OverCols => self.w.rows(),
            Sum::OverRows => self.w.cols(),
        }
    }
}

/// Rows `rows` of every factor, with its columns.
fn terms<'a, E: Elem>(
    factors: &[Factor<'a, E>],
    ready: &'a [Columns<'a, E>],
    rows: Range<usize>,
) -> Vec<linear::Term<'a, E>> {
    let term = |(factor, ready): (&Factor<'a, E>, &'a Columns<'a, E>)| {
        let k = factor.x.cols;
        let b = match ready {
            Columns::Panels(panels) => linear::Columns::Panels(panels.values()),
            Columns::Whole(whole) => linear::Columns::Whole(*whole),
        };
        linear::Term { a: &factor.x.values()[rows.start * k..rows.end * k], lda: k, b, k }
    };
    factors.iter().zip(ready).map(term).collect()
}

/// An output that tasks write parts of.
struct Destination<'a, E: Elem> {
    to: To<'a, E>,
    cols: usize,
}

enum To<'a, E: Elem> {
    Act(Chunks<'a, E>),
    Real(Chunks<'a, E::Real>),
    Add(Chunks<'a, E::Real>),
}

impl<'a, E: Elem> Destination<'a, E> {
    fn of(out: Out<'a, Cpu<E>>) -> Self {
        match out {
            Out::Act(y) => Self { cols: y.cols, to: To::Act(Chunks::new(y.values_mut(), 1)) },
            Out::Real(y) => Self { cols: y.cols, to: To::Real(Chunks::new(y.values_mut(), 1)) },
            Out::Add(y) => Self { cols: y.cols, to: To::Add(Chunks::new(y.values_mut(), 1)) },
        }
    }

    /// Rows `rows` from column `col` on, as the kernel takes them.
    ///
    /// # Safety
    /// No other task has the columns of these rows that a product with it touches.
    unsafe fn part(&self, rows: Range<usize>, col: usize) -> linear::Out<'_, E> {
        let (at, len) = (rows.start * self.cols + col, (rows.len() * self.cols).saturating_sub(col));
        // SAFETY: the caller's promise; the range ends at the end of the last row.
        unsafe {
            match &self.to {
                To::Act(y) => linear::Out::Store(Window::new(y.first(at, len), len)),
                To::Real(y) => linear::Out::Real(Window::new(y.first(at, len), len)),
                To::Add(y) => linear::Out::Add(Window::new(y.first(at, len), len)),
            }
        }
    }
}
