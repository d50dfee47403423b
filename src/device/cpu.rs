//! The CPU: tensors in main memory, weights where they are mapped, work cut into tasks for a [`Pool`].
//!
//! Every task writes rows of its own and sums in an order of its own, so results do not depend on the threads.
#![allow(unsafe_code)] // tasks write disjoint chunks; every use says why they are

use super::pool::Chunks;
use super::{AttentionGradient, Device, HeadTarget, Operand, Out, PairAt, Plan, Pool, Sum, Tensor, Term};
use crate::Result;
use crate::files::safetensors::Tensors;
use dialoguellm_kernels::attention::Heads;
use dialoguellm_kernels::{Elem, Isa, Kernels, Matrix, Real, dropout, linear};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// A CPU that multiplies in `E`: `f32`, `bf16`, or `f64` for the reference.
pub struct Cpu<E: Elem> {
    pool: Pool,
    kernels: &'static Kernels<E>,
    arena: Arc<Arena>,
}

/// Rows of row-wise operations that make one task.
const ROWS: usize = 16;
/// Tokens whose outer products make one task and one partial sum of a LoRA gradient; fixed, so that the order of the sum is.
const GRADIENT_ROWS: usize = 128;
/// Vocabulary entries whose logits exist at a time.
const HEAD_COLS: usize = 4096;
/// Bytes of packed weights that exist at a time.
const PACKED_BYTES: usize = 16 << 20;

/// A cache line: packed panels load fastest from line to line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [u8; 64]); // only ever read as numbers

/// Buffers between uses: the same few sizes are needed by every layer.
struct Arena(Mutex<Vec<Vec<Line>>>);

impl Arena {
    /// A buffer of at least `lines` lines, contents unspecified.
    fn take(&self, lines: usize) -> Vec<Line> {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = (0..free.len()).filter(|&i| free[i].len() >= lines && free[i].len() <= 2 * lines + 64);
        match fits.min_by_key(|&i| free[i].len()) {
            Some(best) => free.swap_remove(best),
            None => vec![Line([0; 64]); lines],
        }
    }
    fn give(&self, buffer: Vec<Line>) {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(buffer);
        if free.len() > 64 {
            free.remove(0);
        }
    }
}

/// A matrix of numbers whose memory goes back to its arena.
pub struct Buffer<T: Elem> {
    lines: Vec<Line>,
    rows: usize,
    cols: usize,
    home: Arc<Arena>,
    values: PhantomData<T>,
}

impl<T: Elem> Buffer<T> {
    fn new(home: &Arc<Arena>, rows: usize, cols: usize) -> Self {
        let lines = home.take((rows * cols * size_of::<T>()).div_ceil(size_of::<Line>()));
        Self { lines, rows, cols, home: home.clone(), values: PhantomData }
    }
    /// All values, row-major.
    pub fn values(&self) -> &[T] {
        // SAFETY: `new` took enough lines, all initialised; any bytes are a number, and a line's alignment is enough.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.rows * self.cols) }
    }
    /// All values, row-major.
    pub fn values_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `values`, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.rows * self.cols) }
    }
    fn row(&self, i: usize) -> &[T] {
        &self.values()[i * self.cols..][..self.cols]
    }
}

impl<T: Elem> Drop for Buffer<T> {
    fn drop(&mut self) {
        self.home.give(std::mem::take(&mut self.lines));
    }
}

impl<T: Elem> Tensor for Buffer<T> {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn bytes(&self) -> usize {
        size_of_val(self.values())
    }
}

/// A weight in its file.
pub struct Stored {
    tensors: Arc<Tensors>,
    name: String,
    rows: usize,
    cols: usize,
}

impl Stored {
    fn matrix(&self) -> Matrix<'_> {
        // Checked when the weight was taken; the tensors do not change.
        self.tensors.get(&self.name).and_then(|view| view.matrix(self.rows, self.cols)).expect("checked at open")
    }
}

/// Rotations by position.
pub struct RopeTable<R> {
    cos: Vec<R>,
    sin: Vec<R>,
    half: usize,
}

impl<E: Elem> Cpu<E> {
    /// A CPU with `threads` threads (0: one per core, 1: the caller's only) and instructions up to `limit`.
    pub fn new(threads: usize, limit: Option<Isa>) -> Result<Self> {
        let pool = Pool::new(threads)
            .map_err(|e| crate::Error::new(crate::Code::Io, format!("cannot start {threads} threads: {e}")))?;
        Ok(Self { pool, kernels: E::kernels(Isa::best(limit)), arena: Arc::new(Arena(Mutex::default())) })
    }

    /// The instruction level in use.
    pub fn isa(&self) -> Isa {
        self.kernels.isa
    }

    /// Rows per task such that every thread has some tasks and a packed panel serves many rows.
    fn rows_per_task(&self, rows: usize) -> usize {
        rows.div_ceil(2 * self.pool.threads()).next_multiple_of(16).clamp(16, 256)
    }

    /// `y[i] = f(i)` for rows of `y`.
    fn each_row<T: Send>(&self, y: &mut [T], cols: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        let chunks = Chunks::new(y, ROWS * cols);
        self.pool.run(chunks.count(), |task| {
            // SAFETY: one task per chunk.
            let rows = unsafe { chunks.get(task) };
            for (i, row) in rows.chunks_mut(cols.max(1)).enumerate() {
                f(task * ROWS + i, row);
            }
        });
    }

    /// As `each_row`, for two outputs.
    fn each_row2<T: Send, U: Send>(
        &self,
        (y, y_cols): (&mut [T], usize),
        (z, z_cols): (&mut [U], usize),
        f: impl Fn(usize, &mut [T], &mut [U]) + Sync,
    ) {
        let rows = y.len() / y_cols.max(1);
        let (y, z) = (Chunks::new(y, y_cols), Chunks::new(z, z_cols));
        self.pool.run(rows.div_ceil(ROWS), |task| {
            for i in task * ROWS..rows.min((task + 1) * ROWS) {
                // SAFETY: row i belongs to one task.
                let (y, z) = unsafe { (y.get(i), z.get(i)) };
                f(i, y, z);
            }
        });
    }

    /// `out = sum of factors + bias`: wide when there are rows for every thread, else one panel a task.
    fn product(&self, out: Out<Self>, factors: &[Factor<E>], bias: Option<&[E::Real]>) {
        let Some(first) = factors.first() else { return };
        let (rows, n) = (first.x.rows, first.n());
        let mut out = Destination::of(out);
        if rows < 16 * self.pool.threads() {
            return self.narrow(&out, factors, bias, rows, n);
        }
        let panel_bytes: usize = factors.iter().map(|f| linear::panel_len(f.x.cols) * size_of::<E>()).sum();
        let step = (PACKED_BYTES / panel_bytes).max(1) * linear::PANEL;
        for n0 in (0..n).step_by(step) {
            let count = step.min(n - n0);
            self.wide(&mut out, factors, bias.map(|bias| &bias[n0..n0 + count]), rows, n0..n0 + count);
        }
    }

    /// Columns `cols` of the product: every matrix is packed once, then tasks take runs of rows.
    fn wide(
        &self,
        out: &mut Destination<E>,
        factors: &[Factor<E>],
        bias: Option<&[E::Real]>,
        rows: usize,
        cols: Range<usize>,
    ) {
        let packed: Vec<_> = factors.iter().map(|factor| self.pack(factor, cols.clone())).collect();
        let step = self.rows_per_task(rows);
        self.pool.run(rows.div_ceil(step), |task| {
            let at = task * step..rows.min((task + 1) * step);
            let terms = terms(factors, &packed, at.clone());
            // SAFETY: these rows belong to this task.
            let part = unsafe { out.part(at.clone(), cols.start) };
            self.kernels.gemm(part, out.cols, at.len(), cols.len(), &terms, bias);
        });
    }

    /// Few rows: a task packs one panel, multiplies all rows with it and writes its columns.
    fn narrow(&self, out: &Destination<E>, factors: &[Factor<E>], bias: Option<&[E::Real]>, rows: usize, n: usize) {
        self.pool.run(n.div_ceil(linear::PANEL), |panel| {
            let cols = panel * linear::PANEL..n.min((panel + 1) * linear::PANEL);
            let packed: Vec<_> = factors.iter().map(|factor| self.pack_panel(factor, cols.start)).collect();
            let terms = terms(factors, &packed, 0..rows);
            let mut sums = Buffer::new(&self.arena, rows, cols.len());
            let bias = bias.map(|bias| &bias[cols.clone()]);
            self.kernels.gemm(linear::Out::Real(sums.values_mut()), cols.len(), rows, cols.len(), &terms, bias);
            for row in 0..rows {
                // SAFETY: these columns belong to this task.
                unsafe { out.write(row, cols.start, sums.row(row)) };
            }
        });
    }

    /// The panels of columns `cols`, one after the other.
    fn pack(&self, factor: &Factor<E>, cols: Range<usize>) -> Buffer<E> {
        let (panels, len) = (cols.len().div_ceil(linear::PANEL), linear::panel_len(factor.x.cols));
        let mut packed = Buffer::new(&self.arena, panels, len);
        let chunks = Chunks::new(packed.values_mut(), len);
        self.pool.run(panels, |panel| {
            // SAFETY: one task per panel.
            let out = unsafe { chunks.get(panel) };
            self.kernels.pack(out, &factor.w, factor.sum, cols.start + panel * linear::PANEL, factor.scale);
        });
        packed
    }

    fn pack_panel(&self, factor: &Factor<E>, n0: usize) -> Buffer<E> {
        let mut packed = Buffer::new(&self.arena, 1, linear::panel_len(factor.x.cols));
        self.kernels.pack(packed.values_mut(), &factor.w, factor.sum, n0, factor.scale);
        packed
    }

    /// Logits of the vocabulary's entries `cols`: `[rows, cols]`.
    fn head_block(&self, h: &Buffer<E>, w: &Matrix, cols: &Range<usize>) -> Buffer<E::Real> {
        let mut logits = Buffer::new(&self.arena, h.rows, cols.len());
        let factor = Factor { x: h, w: w.slice_rows(cols.clone()), sum: Sum::OverCols, scale: 1.0 };
        self.product(Out::Real(&mut logits), &[factor], None);
        logits
    }

    /// `c[m, n] += sum over rows of a[t, m] b[t, n]` in partial sums of fixed runs of rows; `[runs, m n]`.
    fn outer(&self, a: &Buffer<E>, b: &Buffer<E>) -> Buffer<E::Real> {
        let (m, n) = (a.cols, b.cols);
        let mut parts = Buffer::new(&self.arena, a.rows.div_ceil(GRADIENT_ROWS), m * n);
        let chunks = Chunks::new(parts.values_mut(), m * n);
        self.pool.run(chunks.count(), |task| {
            // SAFETY: one task per chunk.
            let part = unsafe { chunks.get(task) };
            part.fill(E::Real::ZERO);
            let at = task * GRADIENT_ROWS;
            let rows = GRADIENT_ROWS.min(a.rows - at);
            self.kernels.gemm_tn(part, m, n, &a.values()[at * m..], m, &b.values()[at * n..], n, rows);
        });
        parts
    }
}

/// One product of a sum, with its matrix as stored.
struct Factor<'a, E: Elem> {
    x: &'a Buffer<E>,
    w: Matrix<'a>,
    sum: Sum,
    scale: f32,
}

impl<'a, E: Elem> Factor<'a, E> {
    fn of(term: &Term<'a, Cpu<E>>) -> Self {
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

/// Rows `rows` of every factor, with its packed matrix.
fn terms<'a, E: Elem>(
    factors: &[Factor<'a, E>],
    packed: &'a [Buffer<E>],
    rows: Range<usize>,
) -> Vec<linear::Term<'a, E>> {
    let term = |(factor, packed): (&Factor<'a, E>, &'a Buffer<E>)| {
        let k = factor.x.cols;
        linear::Term { a: &factor.x.values()[rows.start * k..rows.end * k], lda: k, b: packed.values(), k }
    };
    factors.iter().zip(packed).map(term).collect()
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
    /// No two live borrows of the same row.
    unsafe fn part(&self, rows: Range<usize>, col: usize) -> linear::Out<'_, E> {
        let (at, len) = (rows.start * self.cols + col, rows.len() * self.cols - col);
        // SAFETY: the caller's promise; the range ends at the end of the last row.
        unsafe {
            match &self.to {
                To::Act(y) => linear::Out::Store(y.range(at, len)),
                To::Real(y) => linear::Out::Real(y.range(at, len)),
                To::Add(y) => linear::Out::Add(y.range(at, len)),
            }
        }
    }

    /// Writes or adds `values` at (`row`, `col`).
    ///
    /// # Safety
    /// No other task writes these values.
    unsafe fn write(&self, row: usize, col: usize, values: &[E::Real]) {
        let (at, len) = (row * self.cols + col, values.len());
        // SAFETY: the caller's promise.
        unsafe {
            match &self.to {
                To::Act(y) => y.range(at, len).iter_mut().zip(values).for_each(|(y, &x)| *y = E::narrow(x)),
                To::Real(y) => y.range(at, len).copy_from_slice(values),
                To::Add(y) => y.range(at, len).iter_mut().zip(values).for_each(|(y, &x)| *y += x),
            }
        }
    }
}

/// ln(e^a + e^b); negative infinity is the logarithm of nothing.
fn log_add(a: f64, b: f64) -> f64 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    if high == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() }
}

/// The targets of every row, by row.
fn by_row(targets: &[HeadTarget], rows: usize) -> Vec<Vec<HeadTarget>> {
    let mut table = vec![Vec::new(); rows];
    for target in targets {
        table[target.row as usize].push(*target);
    }
    table
}

fn blocks(len: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(size).map(move |at| at..len.min(at + size))
}

impl<E: Elem> Device for Cpu<E> {
    type Real = Buffer<E::Real>;
    type Act = Buffer<E>;
    type Weight = Stored;
    type Vector = Vec<E::Real>;
    type Params = [f32];
    type Gradient = Vec<E::Real>;
    type RopeTable = RopeTable<E::Real>;

    fn precision(&self) -> &'static str {
        E::NAME
    }

    fn weight(&self, tensors: &Arc<Tensors>, name: &str, rows: usize, cols: usize) -> Result<Stored> {
        tensors.get(name)?.matrix(rows, cols)?;
        Ok(Stored { tensors: tensors.clone(), name: name.to_owned(), rows, cols })
    }

    fn vector(&self, tensors: &Arc<Tensors>, name: &str, len: usize) -> Result<Self::Vector> {
        Ok(tensors.get(name)?.vector(len)?.into_iter().map(E::Real::from_f32).collect())
    }

    fn params<'a>(&'a self, host: &'a [f32]) -> &'a [f32] {
        host
    }

    fn gradient(&self, len: usize) -> Vec<E::Real> {
        vec![E::Real::ZERO; len]
    }

    fn add_gradient(&self, from: Vec<E::Real>, to: &mut [f32]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to += from.to_f32());
    }

    fn act(&self, rows: usize, cols: usize) -> Buffer<E> {
        Buffer::new(&self.arena, rows, cols)
    }

    fn real(&self, rows: usize, cols: usize) -> Buffer<E::Real> {
        Buffer::new(&self.arena, rows, cols)
    }

    fn zeros(&self, rows: usize, cols: usize) -> Buffer<E::Real> {
        let mut y = self.real(rows, cols);
        y.values_mut().fill(E::Real::ZERO);
        y
    }

    fn copy(&self, x: &Buffer<E::Real>) -> Buffer<E::Real> {
        let mut y = self.real(x.rows, x.cols);
        self.each_row(y.values_mut(), x.cols, |i, y| y.copy_from_slice(x.row(i)));
        y
    }

    fn round(&self, x: &Buffer<E::Real>) -> Buffer<E> {
        let mut y = self.act(x.rows, x.cols);
        self.each_row(y.values_mut(), x.cols, |i, y| y.iter_mut().zip(x.row(i)).for_each(|(y, &x)| *y = E::narrow(x)));
        y
    }

    fn gather(&self, x: &Buffer<E::Real>, rows: &[u32]) -> Buffer<E::Real> {
        let mut y = self.real(rows.len(), x.cols);
        self.each_row(y.values_mut(), x.cols, |i, y| y.copy_from_slice(x.row(rows[i] as usize)));
        y
    }

    fn scatter_add(&self, y: &mut Buffer<E::Real>, x: &Buffer<E::Real>, rows: &[u32]) {
        let cols = y.cols;
        for (i, &row) in rows.iter().enumerate() {
            let y = &mut y.values_mut()[row as usize * cols..][..cols];
            y.iter_mut().zip(x.row(i)).for_each(|(y, &x)| *y += x);
        }
    }

    fn concat(&self, past: &Buffer<E>, rows: usize, new: &Buffer<E>) -> Buffer<E> {
        let mut y = self.act(rows + new.rows, new.cols);
        let (head, tail) = y.values_mut().split_at_mut(rows * new.cols);
        head.copy_from_slice(&past.values()[..rows * new.cols]);
        tail.copy_from_slice(new.values());
        y
    }

    fn embed(&self, table: &Stored, ids: &[u32]) -> Buffer<E::Real> {
        let table = table.matrix();
        let mut y = self.real(ids.len(), table.cols());
        self.each_row(y.values_mut(), table.cols(), |i, y| self.kernels.embed(y, &table, ids[i]));
        y
    }

    fn add_noise(&self, x: &mut Buffer<E::Real>, keys: &[u64], scale: &[f32]) {
        let cols = x.cols;
        self.each_row(x.values_mut(), cols, |i, x| {
            for (channel, x) in (0..).zip(x) {
                *x += E::Real::from_f32(scale[i] * dropout::uniform(keys[i], channel));
            }
        });
    }

    fn rmsnorm(&self, x: &Buffer<E::Real>, w: &Self::Vector, eps: f64) -> (Buffer<E>, Buffer<E::Real>) {
        let (mut y, mut rstd) = (self.act(x.rows, x.cols), self.real(x.rows, 1));
        let eps = E::Real::from_f64(eps);
        self.each_row2((y.values_mut(), x.cols), (rstd.values_mut(), 1), |i, y, rstd| {
            rstd[0] = self.kernels.rmsnorm(y, x.row(i), w, eps);
        });
        (y, rstd)
    }

    fn rmsnorm_backward(
        &self,
        dx: &mut Buffer<E::Real>,
        dy: &Buffer<E::Real>,
        x: &Buffer<E::Real>,
        w: &Self::Vector,
        rstd: &Buffer<E::Real>,
    ) {
        let cols = dx.cols;
        self.each_row(dx.values_mut(), cols, |i, dx| {
            self.kernels.rmsnorm_backward(dx, dy.row(i), x.row(i), w, rstd.values()[i]);
        });
    }

    fn matmul(&self, out: Out<Self>, terms: &[Term<Self>], bias: Option<&Self::Vector>) {
        let factors: Vec<_> = terms.iter().map(Factor::of).collect();
        self.product(out, &factors, bias.map(Vec::as_slice));
    }

    fn rope_table(&self, cos: &[f64], sin: &[f64], half: usize) -> Self::RopeTable {
        let real = |x: &[f64]| x.iter().map(|&x| E::Real::from_f64(x)).collect();
        RopeTable { cos: real(cos), sin: real(sin), half }
    }

    fn rope(&self, x: &Buffer<E::Real>, table: &Self::RopeTable, at: &[u32]) -> Buffer<E> {
        let mut y = self.act(x.rows, x.cols);
        self.each_row(y.values_mut(), x.cols, |i, y| {
            let (cos, sin) = table.row(at[i]);
            self.kernels.rope(y, x.row(i), 2 * table.half, cos, sin);
        });
        y
    }

    fn rope_backward(&self, dy: &Buffer<E::Real>, table: &Self::RopeTable, at: &[u32]) -> Buffer<E> {
        let mut dx = self.act(dy.rows, dy.cols);
        self.each_row(dx.values_mut(), dy.cols, |i, dx| {
            let (cos, sin) = table.row(at[i]);
            self.kernels.rope_backward(dx, dy.row(i), 2 * table.half, cos, sin);
        });
        dx
    }

    fn attention(
        &self,
        q: &Buffer<E>,
        k: &Buffer<E>,
        v: &Buffer<E>,
        heads: Heads,
        plan: &Plan,
    ) -> (Buffer<E>, Buffer<E::Real>) {
        let (mut o, mut lse) = (self.act(q.rows, q.cols), self.real(q.rows, heads.q));
        let (o_rows, lse_rows) = (Chunks::new(o.values_mut(), 1), Chunks::new(lse.values_mut(), 1));
        self.pool.run(plan.query_runs.len(), |task| {
            let run = &plan.query_runs[task];
            let (at, n) = (run.queries.start, run.queries.len());
            // SAFETY: a query belongs to one run.
            let (o, lse) =
                unsafe { (o_rows.range(at * q.cols, n * q.cols), lse_rows.range(at * heads.q, n * heads.q)) };
            let q = &q.values()[at * q.cols..][..n * q.cols];
            self.kernels.attention(o, lse, q, k.values(), v.values(), heads, &plan.block(run), &mut Vec::new());
        });
        (o, lse)
    }

    fn attention_backward(
        &self,
        d_o: &Buffer<E>,
        (q, k, v, o, lse): (&Buffer<E>, &Buffer<E>, &Buffer<E>, &Buffer<E>, &Buffer<E::Real>),
        heads: Heads,
        plan: &Plan,
    ) -> AttentionGradient<Self> {
        let mut delta = self.real(q.rows, heads.q);
        self.each_row(delta.values_mut(), heads.q, |i, delta| {
            self.kernels.attention_delta(delta, d_o.row(i), o.row(i), heads)
        });
        let mut dq = self.real(q.rows, q.cols);
        let dq_rows = Chunks::new(dq.values_mut(), 1);
        self.pool.run(plan.query_runs.len(), |task| {
            let run = &plan.query_runs[task];
            let (at, n) = (run.queries.start, run.queries.len());
            // SAFETY: a query belongs to one run.
            let dq = unsafe { dq_rows.range(at * q.cols, n * q.cols) };
            let queries = at * q.cols..(at + n) * q.cols;
            let stats = at * heads.q..(at + n) * heads.q;
            self.kernels.attention_backward_q(
                dq,
                &d_o.values()[queries.clone()],
                &q.values()[queries],
                k.values(),
                v.values(),
                &lse.values()[stats.clone()],
                &delta.values()[stats],
                heads,
                &plan.block(run),
                &mut Vec::new(),
            );
        });
        let (mut dk, mut dv) = (self.real(k.rows, k.cols), self.act(v.rows, v.cols));
        let (dk_rows, dv_rows) = (Chunks::new(dk.values_mut(), 1), Chunks::new(dv.values_mut(), 1));
        self.pool.run(plan.key_runs.len(), |task| {
            let run = &plan.key_runs[task];
            let (at, len) = (run.keys.start as usize * k.cols, run.keys.len() * k.cols);
            // SAFETY: a key belongs to one run.
            let (dk, dv) = unsafe { (dk_rows.range(at, len), dv_rows.range(at, len)) };
            self.kernels.attention_backward_kv(
                dk,
                dv,
                d_o.values(),
                q.values(),
                k.values(),
                v.values(),
                lse.values(),
                delta.values(),
                heads,
                &plan.key_block(run),
                &mut Vec::new(),
            );
        });
        AttentionGradient { dq, dk, dv }
    }

    fn swiglu(&self, gate: &Buffer<E>, up: &Buffer<E>) -> Buffer<E> {
        let mut h = self.act(gate.rows, gate.cols);
        self.each_row(h.values_mut(), gate.cols, |i, h| self.kernels.swiglu(h, gate.row(i), up.row(i)));
        h
    }

    fn swiglu_backward(&self, dh: &Buffer<E>, gate: &Buffer<E>, up: &Buffer<E>) -> (Buffer<E>, Buffer<E>) {
        let cols = gate.cols;
        let (mut dgate, mut dup) = (self.act(gate.rows, cols), self.act(gate.rows, cols));
        self.each_row2((dgate.values_mut(), cols), (dup.values_mut(), cols), |i, dgate, dup| {
            self.kernels.swiglu_backward(dgate, dup, dh.row(i), gate.row(i), up.row(i));
        });
        (dgate, dup)
    }

    fn dropout(&self, x: &Buffer<E>, keys: &[u64], p: f32) -> Buffer<E> {
        let mut y = self.act(x.rows, x.cols);
        self.each_row(y.values_mut(), x.cols, |i, y| self.kernels.dropout(y, x.row(i), keys[i], p));
        y
    }

    fn dropout_add(&self, dx: &mut Buffer<E::Real>, dy: &Buffer<E::Real>, keys: &[u64], p: f32) {
        let cols = dx.cols;
        self.each_row(dx.values_mut(), cols, |i, dx| self.kernels.dropout_add(dx, dy.row(i), keys[i], p));
    }

    fn lora_gradient(
        &self,
        gradient: &mut Vec<E::Real>,
        at: PairAt,
        (x, us): (&Buffer<E>, &Buffer<E>),
        (dy, du): (&Buffer<E>, &Buffer<E>),
    ) {
        let (d_a, d_b) = (self.outer(du, x), self.outer(us, dy)); // B's comes transposed: [rank, outputs]
        self.each_row(&mut gradient[at.a..][..at.rank * at.inputs], at.inputs, |r, out| {
            for part in 0..d_a.rows {
                let part = &d_a.row(part)[r * at.inputs..][..at.inputs];
                out.iter_mut().zip(part).for_each(|(out, &part)| *out += part);
            }
        });
        self.each_row(&mut gradient[at.b..][..at.outputs * at.rank], at.rank, |n, out| {
            for part in 0..d_b.rows {
                let part = d_b.row(part);
                out.iter_mut().enumerate().for_each(|(r, out)| *out += part[r * at.outputs + n]);
            }
        });
    }

    fn head(&self, h: &Buffer<E>, w: &Stored, targets: &[HeadTarget]) -> (Vec<f64>, Vec<f64>) {
        let w = w.matrix();
        let mut lse = vec![f64::NEG_INFINITY; h.rows];
        let mut chosen = vec![0.0; targets.len()];
        for cols in blocks(w.rows(), HEAD_COLS) {
            let logits = self.head_block(h, &w, &cols);
            self.each_row(&mut lse, 1, |i, lse| {
                lse[0] = log_add(lse[0], self.kernels.log_sum_exp(logits.row(i)).to_f64());
            });
            for (chosen, target) in chosen.iter_mut().zip(targets) {
                if cols.contains(&(target.token as usize)) {
                    *chosen = logits.row(target.row as usize)[target.token as usize - cols.start].to_f64();
                }
            }
        }
        let log_p = chosen.iter().zip(targets).map(|(logit, target)| logit - lse[target.row as usize]).collect();
        (log_p, lse)
    }

    fn head_backward(&self, h: &Buffer<E>, w: &Stored, lse: &[f64], targets: &[HeadTarget]) -> Buffer<E::Real> {
        let w = w.matrix();
        let targets = by_row(targets, h.rows);
        let mut dh = self.zeros(h.rows, h.cols);
        for cols in blocks(w.rows(), HEAD_COLS) {
            let logits = self.head_block(h, &w, &cols);
            let mut d_logits = self.act(h.rows, cols.len());
            self.each_row(d_logits.values_mut(), cols.len(), |i, out| {
                // d loss / d logit = sum over targets of g (p - onehot) with g = -d loss / d log p
                let total = E::Real::from_f64(targets[i].iter().map(|t| -t.gradient).sum());
                let here = targets[i].iter().filter(|t| cols.contains(&(t.token as usize)));
                let here: Vec<_> =
                    here.map(|t| (t.token - cols.start as u32, E::Real::from_f64(-t.gradient))).collect();
                let lse = E::Real::from_f64(lse[i]);
                self.kernels.cross_entropy_backward(out, logits.row(i), lse, total, &here);
            });
            let factor = Factor { x: &d_logits, w: w.slice_rows(cols), sum: Sum::OverRows, scale: 1.0 };
            self.product(Out::Add(&mut dh), &[factor], None);
        }
        dh
    }

    fn logits(&self, h: &Buffer<E>, w: &Stored) -> Vec<f32> {
        let w = w.matrix();
        let mut all = vec![0.0; h.rows * w.rows()];
        for cols in blocks(w.rows(), HEAD_COLS) {
            let logits = self.head_block(h, &w, &cols);
            for (i, all) in all.chunks_mut(w.rows()).enumerate() {
                all[cols.clone()].iter_mut().zip(logits.row(i)).for_each(|(to, from)| *to = from.to_f32());
            }
        }
        all
    }
}

impl<R> RopeTable<R> {
    fn row(&self, at: u32) -> (&[R], &[R]) {
        let range = at as usize * self.half..(at as usize + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}
