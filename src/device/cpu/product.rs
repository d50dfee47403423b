//! Sums of matrix products: packing, and how rows or columns are handed to threads.

use super::super::pool::Chunks;
use super::super::{Operand, Out, Product, Sum, Term};
use super::{Buffer, Cpu};
use dialoguellm_kernels::linear::Window;
use dialoguellm_kernels::quantize::packed::Packed;
use dialoguellm_kernels::{Elem, Kernels, Matrix, bf16, linear};
use std::ops::Range;
use std::sync::Arc;

/// Bytes of packed weights that exist at a time.
const PACKED_BYTES: usize = 16 << 20;
/// Bytes of all rows up to which every task goes over all of them, so that what it packed never leaves its core's cache.
const ROWS_BYTES: usize = 6 << 20;
/// Bytes that such a task packs at a time, or two panels, since W is turned by two.
const PANELS_BYTES: usize = 256 << 10;
/// The most rows of one task where rows are shared out.
const TASK_ROWS: usize = 256;
/// Rows that a task makes whole numbers.
const ROUNDED_ROWS: usize = 16;

impl<E: Elem> Cpu<E> {
    /// The rows of each task: two tasks a thread, all of nearly as many whole register tiles.
    fn row_tasks(&self, rows: usize) -> Vec<Range<usize>> {
        let (tile, tasks) = (self.kernels.gemm_rows(), 2 * self.pool.threads());
        let tiles = rows.div_ceil(tile);
        let tasks = tasks.max(tiles.div_ceil(TASK_ROWS.div_ceil(tile))).min(tiles);
        let bound = |task: usize| rows.min(task * tiles / tasks * tile);
        (0..tasks).map(|task| bound(task)..bound(task + 1)).collect()
    }

    /// `out = sum of factors + bias`.
    pub(super) fn product(&self, out: Out<Self>, factors: &[Factor<E>], bias: Option<&[E::Real]>) {
        let Some(first) = factors.first() else { return };
        let (rows, n) = (first.x.rows, first.n());
        let taken = self.take(factors, &mut Vec::new());
        self.multiply(&Ready { out: Destination::of(out), factors: taken, bias, rows, n });
    }

    /// Products that do not need each other: of a few rows, where all are bound by the reading of their matrices, in one job.
    pub(super) fn products(&self, products: Vec<Product<Self>>) {
        let factors: Vec<Vec<_>> = products.iter().map(|p| p.terms.iter().map(Factor::of).collect()).collect();
        let mut rounded = Vec::new();
        let ready = products.into_iter().zip(&factors).filter(|(_, factors)| !factors.is_empty());
        let ready = ready.map(|(product, factors)| {
            let (rows, n) = (factors[0].x.rows, factors[0].n());
            let factors = self.take(factors, &mut rounded);
            Ready { out: Destination::of(product.out), factors, bias: product.bias.map(Vec::as_slice), rows, n }
        });
        let ready: Vec<_> = ready.collect();
        if ready.iter().all(|product| self.is_few(product)) {
            return self.in_place(&ready);
        }
        ready.iter().for_each(|product| self.multiply(product));
    }

    /// Every factor as this level multiplies it. Rows that are made whole numbers for a matrix as it lies are kept in `rounded` for
    /// the next product with them.
    fn take<'a>(&self, factors: &'a [Factor<'a, E>], rounded: &mut Vec<Rounded<'a, E>>) -> Vec<Taken<'a, E>> {
        let each = factors.iter().map(|factor| {
            let Factor { x, w, sum, scale } = factor;
            if let Some((turned, scales)) = self.kernels.whole_rows(w, *sum, *scale) {
                return Taken {
                    factor,
                    turned: Some(turned),
                    rounded: Some(Arc::new(self.round(x, &turned, Some(scales)))),
                };
            }
            let rounded = self.kernels.whole(w, *sum, 0..factor.n(), *scale).map(|w| {
                let mut before = rounded.iter();
                let before =
                    before.find(|before| std::ptr::eq(before.of, *x) && self.kernels.rounds_alike(&before.w, &w));
                before.map(|before| before.rows.clone()).unwrap_or_else(|| {
                    let made = Arc::new(self.round(x, &w, None));
                    rounded.push(Rounded { of: x, w, rows: made.clone() });
                    made
                })
            });
            Taken { factor, turned: None, rounded }
        });
        each.collect()
    }

    /// Rows as whole numbers for `w`, times a scale for every column: `[chunks, rows]`.
    fn round(&self, x: &Buffer<E>, w: &Packed, scales: Option<&[bf16]>) -> Buffer<E> {
        let (len, chunks) = (self.kernels.rounded_len(w), x.cols.div_ceil(linear::CHUNK));
        let mut rounded = Buffer::new(&self.arena, chunks, x.rows * len);
        let tasks = Chunks::new(rounded.values_mut(), ROUNDED_ROWS * len);
        self.pool.run(tasks.count(), |task| {
            // SAFETY: one task per chunk.
            let to = unsafe { tasks.get(task) };
            for (at, to) in (task * ROUNDED_ROWS..).zip(to.chunks_mut(len)) {
                let (from, row) = (at / x.rows * linear::CHUNK, at % x.rows * x.cols);
                let chunk = from..x.cols.min(from + linear::CHUNK);
                let scales = scales.map(|scales| &scales[chunk.clone()]);
                self.kernels.round(to, &x.values()[row..][chunk], w, scales);
            }
        });
        rounded
    }

    /// Whether a product is bound by the reading of its matrices, which are multiplied where they lie.
    fn is_few(&self, product: &Ready<E>) -> bool {
        product.rows <= self.kernels.gemv_rows() && product.factors.iter().all(|factor| factor.turned.is_none())
    }

    /// Tasks share out the columns, or the rows where those are many.
    fn multiply(&self, product: &Ready<E>) {
        if self.is_few(product) {
            return self.in_place(std::slice::from_ref(product));
        }
        let Ready { factors, n, .. } = product;
        let rows_bytes: usize = factors.iter().map(|f| size_of_val(f.rows().values())).sum();
        let packed = factors.iter().filter(|f| f.rounded.is_none() || f.turned.is_some());
        let panel_bytes = packed.map(|f| f.panel_len() * size_of::<E>()).sum::<usize>().max(1);
        if rows_bytes <= ROWS_BYTES {
            return self.by_columns(product, (PANELS_BYTES / panel_bytes).max(2));
        }
        let step = (PACKED_BYTES / panel_bytes).max(1) * linear::PANEL;
        (0..*n).step_by(step).for_each(|n0| self.by_rows(product, n0..(*n).min(n0 + step)));
    }

    /// A task multiplies a few rows with some panels where they lie; there are about two tasks for every thread.
    fn in_place(&self, products: &[Ready<E>]) {
        let panels: usize = products.iter().map(|product| product.n.div_ceil(linear::PANEL)).sum();
        let step = panels.div_ceil(2 * self.pool.threads()).max(1) * linear::PANEL;
        let mut tasks = Vec::new();
        for product in products {
            tasks.extend((0..product.n).step_by(step).map(|from| (product, from..product.n.min(from + step))));
        }
        self.pool.run(tasks.len(), |task| {
            let (Ready { out, factors, bias, rows, .. }, cols) = &tasks[task];
            let terms: Vec<_> = factors.iter().map(|factor| factor.in_place(cols.start)).collect();
            let bias = bias.map(|bias| &bias[cols.clone()]);
            // SAFETY: these columns belong to this task.
            let part = unsafe { out.part(0..*rows, cols.start) };
            self.kernels.gemv(part, out.cols, *rows, cols.len(), &terms, bias);
        });
    }

    /// Columns `cols` of the product: every matrix is packed once where it must be, then tasks take runs of rows.
    fn by_rows(&self, product: &Ready<E>, cols: Range<usize>) {
        let Ready { out, factors, bias, rows, .. } = product;
        let ready = self.ready(factors, cols.clone());
        let bias = bias.map(|bias| &bias[cols.clone()]);
        let tasks = self.row_tasks(*rows);
        self.pool.run(tasks.len(), |task| {
            let at = tasks[task].clone();
            let terms = terms(self.kernels, factors, &ready, at.clone());
            // SAFETY: these rows belong to this task.
            let part = unsafe { out.part(at.clone(), cols.start) };
            self.kernels.gemm(part, out.cols, at.len(), cols.len(), &terms, bias);
        });
    }

    /// A task multiplies all rows with some panels, at most `most`, which it packs where it must, four times for every thread.
    fn by_columns(&self, product: &Ready<E>, most: usize) {
        let Ready { out, factors, bias, rows, n } = product;
        let panels = n.div_ceil(linear::PANEL);
        let step = panels.div_ceil(4 * self.pool.threads()).clamp(1, most) * linear::PANEL;
        self.pool.run(n.div_ceil(step), |task| {
            let cols = task * step..(*n).min((task + 1) * step);
            let made = |factor| {
                let mut columns = self.columns(factor, cols.clone());
                if let Some((panels, _)) = columns.unpacked() {
                    self.make(panels, factor, cols.start);
                }
                columns
            };
            let ready: Vec<_> = factors.iter().map(made).collect();
            let bias = bias.map(|bias| &bias[cols.clone()]);
            // SAFETY: these columns belong to this task.
            let part = unsafe { out.part(0..*rows, cols.start) };
            self.kernels.gemm(part, out.cols, *rows, cols.len(), &terms(self.kernels, factors, &ready, 0..*rows), bias);
        });
    }

    /// Every factor's columns `cols`; those that must be are packed, a few panels a task, all in one job.
    fn ready<'a>(&self, factors: &[Taken<'a, E>], cols: Range<usize>) -> Vec<Columns<'a, E>> {
        let panels = cols.len().div_ceil(linear::PANEL);
        let step = panels.div_ceil(2 * self.pool.threads()).clamp(1, 8);
        let mut ready: Vec<_> = factors.iter().map(|factor| self.columns(factor, cols.clone())).collect();
        let chunks = ready.iter_mut().zip(factors).filter_map(|(columns, factor)| {
            let (panels, len) = columns.unpacked()?;
            Some((factor, Chunks::new(panels, step * len)))
        });
        let chunks: Vec<_> = chunks.collect();
        let each = panels.div_ceil(step);
        self.pool.run(chunks.len() * each, |task| {
            let ((factor, chunks), chunk) = (&chunks[task / each], task % each);
            // SAFETY: one task per chunk.
            let panels = unsafe { chunks.get(chunk) };
            self.make(panels, factor, cols.start + chunk * step * linear::PANEL);
        });
        ready
    }

    /// A factor's columns `cols` where they lie, or room for their panels.
    fn columns<'a>(&self, factor: &Taken<'a, E>, cols: Range<usize>) -> Columns<'a, E> {
        let (Factor { w, sum, scale, .. }, panels) = (factor.factor, cols.len().div_ceil(linear::PANEL));
        match (factor.turned, self.kernels.whole(w, *sum, cols.clone(), *scale)) {
            (None, Some(whole)) => Columns::Whole(whole),
            (None, None) => Columns::Panels(Buffer::new(&self.arena, panels, factor.panel_len())),
            (Some(of), _) => Columns::Turned {
                panels: Buffer::new(&self.arena, panels, factor.panel_len()),
                ones: vec![bf16::ONE; panels * linear::PANEL],
                of,
                outputs: cols.len(),
            },
        }
    }

    /// Packs panels of a factor from output `n0` on.
    fn make(&self, panels: &mut [E], factor: &Taken<E>, n0: usize) {
        let Factor { w, sum, scale, .. } = factor.factor;
        match &factor.turned {
            Some(of) => self.kernels.turn(panels, of, n0),
            None => self.kernels.pack(panels, w, *sum, n0, *scale),
        }
    }
}

/// The columns of a factor as the kernel takes them.
enum Columns<'a, E: Elem> {
    Panels(Buffer<E>),
    Whole(Packed<'a>),
    /// Whole numbers, transposed.
    Turned {
        panels: Buffer<E>,
        ones: Vec<bf16>,
        of: Packed<'a>,
        outputs: usize,
    },
}

impl<E: Elem> Columns<'_, E> {
    /// Panels to be packed, and the length of one.
    fn unpacked(&mut self) -> Option<(&mut [E], usize)> {
        match self {
            Columns::Panels(panels) | Columns::Turned { panels, .. } => {
                let len = panels.cols;
                Some((panels.values_mut(), len))
            }
            Columns::Whole(_) => None,
        }
    }
}

/// A product of `rows` rows and n columns.
struct Ready<'a, E: Elem> {
    out: Destination<'a, E>,
    factors: Vec<Taken<'a, E>>,
    bias: Option<&'a [E::Real]>,
    rows: usize,
    n: usize,
}

/// Rows that are made whole numbers for a matrix.
struct Rounded<'a, E: Elem> {
    of: &'a Buffer<E>,
    w: Packed<'a>,
    rows: Arc<Buffer<E>>,
}

/// A factor as a level multiplies it.
struct Taken<'a, E: Elem> {
    factor: &'a Factor<'a, E>,
    /// The whole numbers of a matrix that is transposed.
    turned: Option<Packed<'a>>,
    /// Rows as whole numbers, where W's are multiplied as such.
    rounded: Option<Arc<Buffer<E>>>,
}

impl<E: Elem> Taken<'_, E> {
    /// Rows as they are, or chunks of all rows as whole numbers.
    fn rows(&self) -> &Buffer<E> {
        self.rounded.as_deref().unwrap_or(self.factor.x)
    }

    /// Values of a panel, whether it is packed or read where it lies.
    fn panel_len(&self) -> usize {
        let len = linear::panel_len(self.factor.x.cols);
        if self.rounded.is_some() { len / 2 } else { len } // bytes, or values of E
    }

    /// Outputs from `n0` on, for the kernel that takes matrices as they are.
    fn in_place(&self, n0: usize) -> linear::InPlace<'_, E> {
        let Factor { w, sum, scale, .. } = self.factor;
        linear::InPlace { a: self.rows().values(), lda: self.rows().cols, w: *w, sum: *sum, n0, scale: *scale }
    }
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
    kernels: &Kernels<E>,
    factors: &'a [Taken<E>],
    ready: &'a [Columns<'a, E>],
    rows: Range<usize>,
) -> Vec<linear::Term<'a, E>> {
    let term = |(factor, columns): (&'a Taken<E>, &'a Columns<'a, E>)| {
        let a = factor.rows();
        let (b, width) = match columns {
            Columns::Panels(panels) => (linear::Columns::Panels(panels.values()), a.cols),
            Columns::Whole(whole) => (linear::Columns::Whole(*whole), kernels.rounded_len(whole)),
            Columns::Turned { panels, ones, of, outputs } => {
                let turned = kernels.turned(panels.values(), ones, of, *outputs);
                (linear::Columns::Whole(turned), kernels.rounded_len(of))
            }
        };
        linear::Term { a: &a.values()[rows.start * width..], lda: a.cols, b, k: factor.factor.x.cols }
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
