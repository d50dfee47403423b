//! The CPU: tensors in main memory, weights where they are mapped, work cut into tasks for a [`Pool`].
//!
//! Every task writes rows of its own and sums in an order of its own, so results do not depend on the threads.
#![allow(unsafe_code)] // tasks write disjoint chunks; every use says why they are

mod arena;
mod memory;
mod optimizer;
mod product;
mod weight;

pub use arena::Buffer;
pub use optimizer::Moments;
pub use weight::Stored;

use arena::{Arena, filled};
use product::Factor;

use super::pool::Chunks;
use super::{AttentionGradient, AttentionSaved, Device, HeadTarget, Out, PairAt, Plan, Pool, Product, Sum, Term, room};
use crate::files::safetensors::Tensors;
use crate::{Cancel, Result};
use dialoguellm_kernels::attention::Heads;
use dialoguellm_kernels::sample::{self, Draw};
use dialoguellm_kernels::{Bits, Elem, Isa, Kernels, Matrix, Real, adamw, dropout, tensor};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// A CPU that multiplies in `E`: `f32`, `bf16`, or `f64` for the reference.
pub struct Cpu<E: Elem> {
    pool: Arc<Pool>,
    kernels: &'static Kernels<E>,
    arena: Arc<Arena>,
    /// Attention's scratch between uses.
    scratch: Mutex<Vec<Vec<E::Real>>>,
}

/// Rows of row-wise operations that make one task.
const ROWS: usize = 16;
/// Tokens whose outer products make one partial sum of a LoRA gradient; fixed, so that the order of the sum is.
const GRADIENT_ROWS: usize = 128;
/// Columns of a LoRA gradient that make one task.
const GRADIENT_COLS: usize = 192;
/// Values of a flat vector that count as a row.
const PIECE: usize = 4096;
/// Vocabulary entries whose logits exist at a time.
const HEAD_COLS: usize = 4096;

/// Rotations by position.
pub struct RopeTable<R> {
    cos: Vec<R>,
    sin: Vec<R>,
    half: usize,
}

impl<E: Elem> Cpu<E> {
    /// A CPU with `threads` threads (0: one per core, 1: the caller's only) and instructions up to `limit`.
    pub fn new(threads: usize, limit: Option<Isa>) -> Result<Self> {
        Ok(Self::on(Pool::shared(threads)?, limit))
    }

    /// A CPU with threads that it shares and instructions up to `limit`.
    pub fn on(pool: Arc<Pool>, limit: Option<Isa>) -> Self {
        Self { pool, kernels: E::kernels(Isa::best(limit)), arena: Arc::default(), scratch: Mutex::default() }
    }

    fn with_scratch(&self, f: impl FnOnce(&mut Vec<E::Real>)) {
        let all = || self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scratch = all().pop().unwrap_or_default();
        f(&mut scratch);
        all().push(scratch);
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

    /// Logits of the vocabulary's entries `cols`: `[rows, cols]`.
    fn head_block(&self, h: &Buffer<E>, w: &Matrix, cols: &Range<usize>) -> Buffer<E::Real> {
        let mut logits = Buffer::new(&self.arena, h.rows, cols.len());
        let factor = Factor { x: h, w: w.slice_rows(cols.clone()), sum: Sum::OverCols, scale: 1.0 };
        self.product(Out::Real(&mut logits), &[factor], None);
        logits
    }

    /// `sum over rows of a[t, i] b[t, j]` for the columns `cols` of b, `[a.cols, cols]`, in partial sums of fixed runs of rows.
    fn outer(&self, a: &Buffer<E>, b: &Buffer<E>, cols: &Range<usize>) -> Buffer<E::Real> {
        let (m, n) = (a.cols, cols.len());
        let [mut sum, mut part] = [(); 2].map(|()| Buffer::new(&self.arena, m, n));
        sum.values_mut().fill(E::Real::ZERO);
        for rows in blocks(a.rows, GRADIENT_ROWS) {
            part.values_mut().fill(E::Real::ZERO);
            let (a_rows, b_rows) = (&a.values()[rows.start * m..], &b.values()[rows.start * b.cols + cols.start..]);
            self.kernels.gemm_tn(part.values_mut(), m, n, a_rows, m, b_rows, b.cols, rows.len());
            sum.values_mut().iter_mut().zip(part.values()).for_each(|(sum, &part)| *sum += part);
        }
        sum
    }
}

/// ln(e^a + e^b); negative infinity is the logarithm of nothing, and NaN stays NaN beside it.
fn log_add(a: f64, b: f64) -> f64 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    if high == f64::NEG_INFINITY { low + high } else { high + (low - high).exp().ln_1p() }
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
    type Params = Arc<Vec<f32>>;
    type Moments = Moments;
    type RopeTable = RopeTable<E::Real>;
    type Plan = Plan;

    fn turn<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        arena::or_refused(work)
    }

    fn precision(&self) -> &'static str {
        E::NAME
    }

    fn isa(&self) -> Isa {
        self.kernels.isa
    }

    fn weight(
        &self,
        tensors: &Arc<Tensors>,
        name: &str,
        shape: [usize; 2],
        bits: Option<Bits>,
        cancel: &Cancel,
    ) -> Result<Stored> {
        Stored::open(&self.pool, tensors, name, shape, bits, cancel)
    }

    fn vector(&self, tensors: &Arc<Tensors>, name: &str, len: usize) -> Result<Self::Vector> {
        Ok(tensors.get(name)?.vector(len)?.into_iter().map(E::Real::from_f32).collect())
    }

    fn params(&self, host: &Arc<Vec<f32>>) -> Arc<Vec<f32>> {
        host.clone()
    }

    fn own_params(&self, host: &Arc<Vec<f32>>) -> Arc<Vec<f32>> {
        host.clone() // an update makes its own copy where someone else reads this one
    }

    fn plan(&self, plan: Plan) -> Plan {
        plan
    }

    fn read(&self, x: &Buffer<E::Real>) -> Result<Vec<f32>> {
        Ok(x.values().iter().map(|x| x.to_f32()).collect())
    }

    fn write(&self, values: &[f32], cols: usize) -> Buffer<E::Real> {
        let mut x = self.real(values.len() / cols, cols);
        x.values_mut().iter_mut().zip(values).for_each(|(x, &value)| *x = E::Real::from_f32(value));
        x
    }

    fn values(&self, params: &Arc<Vec<f32>>) -> Result<Arc<Vec<f32>>> {
        Ok(params.clone())
    }

    fn moments(&self, len: usize, from: Option<(&[f32], &[f32])>) -> Result<Moments> {
        let (mut m, mut v) = (filled(len, 0.0), filled(len, 0.0));
        if let Some(from) = from {
            m.copy_from_slice(from.0);
            v.copy_from_slice(from.1);
        }
        Ok(Moments::new(m, v))
    }

    fn read_moments<'a>(&self, moments: &'a Moments) -> Result<[Cow<'a, [f32]>; 2]> {
        Ok([Cow::Borrowed(&moments.m), Cow::Borrowed(&moments.v)])
    }

    fn gradient_norm(&self, moments: &mut Moments, gradient: &Buffer<E::Real>, clip: f64, finite: bool) -> Result<f64> {
        Ok(moments.measure(&self.pool, gradient.values(), clip, finite))
    }

    fn adamw(
        &self,
        params: &mut Arc<Vec<f32>>,
        moments: &mut Moments,
        gradient: &Buffer<E::Real>,
        options: &adamw::Options,
        t: u64,
    ) -> Result<()> {
        let on = (&*self.pool, self.kernels.isa);
        moments.update(on, Arc::make_mut(params).as_mut_slice(), gradient.values(), options, t);
        Ok(())
    }

    fn act(&self, rows: usize, cols: usize) -> Buffer<E> {
        Buffer::new(&self.arena, rows, cols)
    }

    fn real(&self, rows: usize, cols: usize) -> Buffer<E::Real> {
        Buffer::new(&self.arena, rows, cols)
    }

    fn zeros(&self, rows: usize, cols: usize) -> Buffer<E::Real> {
        let mut y = self.real(rows, cols);
        self.each_row(y.values_mut(), PIECE, |_, y| y.fill(E::Real::ZERO));
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

    fn append(&self, y: &mut Buffer<E>, at: usize, new: &Buffer<E>) {
        if y.rows < at + new.rows {
            let mut larger = self.act(room(y.rows, at + new.rows), new.cols);
            larger.values_mut()[..at * new.cols].copy_from_slice(&y.values()[..at * new.cols]);
            *y = larger;
        }
        y.values_mut()[at * new.cols..][..new.values().len()].copy_from_slice(new.values());
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

    fn blend(&self, x: &mut Buffer<E::Real>, base: &Buffer<E::Real>, share: &[f32]) {
        let cols = x.cols;
        self.each_row(x.values_mut(), cols, |i, x| tensor::blend(x, base.row(i), &share[i..=i], cols));
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

    fn matmuls(&self, products: Vec<Product<Self>>) {
        self.products(products);
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
        let [k, v] = [k, v].map(|x| &x.values()[..plan.keys * x.cols]);
        let (o_rows, lse_rows) = (Chunks::new(o.values_mut(), 1), Chunks::new(lse.values_mut(), 1));
        self.pool.run(plan.query_runs.len(), |task| {
            let run = &plan.query_runs[task];
            let (at, n) = (run.queries.start, run.queries.len());
            // SAFETY: a query belongs to one run.
            let (o, lse) =
                unsafe { (o_rows.range(at * q.cols, n * q.cols), lse_rows.range(at * heads.q, n * heads.q)) };
            let q = &q.values()[at * q.cols..][..n * q.cols];
            self.with_scratch(|scratch| {
                self.kernels.attention(o, lse, q, k, v, heads, &plan.block(run), scratch);
            });
        });
        (o, lse)
    }

    fn attention_backward(
        &self,
        d_o: &Buffer<E>,
        AttentionSaved { q, k, v, o, lse }: AttentionSaved<Self>,
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
            self.with_scratch(|scratch| {
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
                    scratch,
                );
            });
        });
        let (mut dk, mut dv) = (self.real(k.rows, k.cols), self.act(v.rows, v.cols));
        let (dk_rows, dv_rows) = (Chunks::new(dk.values_mut(), 1), Chunks::new(dv.values_mut(), 1));
        self.pool.run(plan.key_runs.len(), |task| {
            let run = &plan.key_runs[task];
            let (at, len) = (run.keys.start as usize * k.cols, run.keys.len() * k.cols);
            // SAFETY: a key belongs to one run.
            let (dk, dv) = unsafe { (dk_rows.range(at, len), dv_rows.range(at, len)) };
            self.with_scratch(|scratch| {
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
                    scratch,
                );
            });
        });
        AttentionGradient { dq, dk, dv }
    }

    fn swiglu(&self, gate: &Buffer<E>, up: &Buffer<E>) -> Buffer<E> {
        let mut h = self.act(gate.rows, gate.cols);
        self.each_row(h.values_mut(), gate.cols, |i, h| self.kernels.swiglu(h, gate.row(i), up.row(i)));
        h
    }

    fn swiglu_backward(&self, dh: &Buffer<E>, gate: &Buffer<E>, up: &Buffer<E>) -> [Buffer<E>; 3] {
        let (rows, cols) = (gate.rows, gate.cols);
        let mut all = [(); 3].map(|()| self.act(rows, cols));
        let chunks = all.each_mut().map(|y| Chunks::new(y.values_mut(), cols));
        self.pool.run(rows.div_ceil(ROWS), |task| {
            for i in task * ROWS..rows.min((task + 1) * ROWS) {
                // SAFETY: row i belongs to one task.
                let [h, dgate, dup] = unsafe { chunks.each_ref().map(|chunks| chunks.get(i)) };
                self.kernels.swiglu_backward(h, dgate, dup, dh.row(i), gate.row(i), up.row(i));
            }
        });
        all
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
        gradient: &mut Buffer<E::Real>,
        at: PairAt,
        (x, us): (&Buffer<E>, &Buffer<E>),
        (dy, du): (&Buffer<E>, &Buffer<E>),
    ) {
        let (inputs, outputs) = (blocks(at.inputs, GRADIENT_COLS), blocks(at.outputs, GRADIENT_COLS));
        let (inputs, outputs): (Vec<_>, Vec<_>) = (inputs.collect(), outputs.collect());
        let all = Chunks::new(gradient.values_mut(), 1);
        self.pool.run(inputs.len() + outputs.len(), |task| {
            if let Some(cols) = inputs.get(task) {
                let d_a = self.outer(du, x, cols);
                for r in 0..at.rank {
                    // SAFETY: these columns of A belong to this task.
                    let out = unsafe { all.range(at.a + r * at.inputs + cols.start, cols.len()) };
                    out.iter_mut().zip(d_a.row(r)).for_each(|(out, &sum)| *out += sum);
                }
            } else {
                let cols = &outputs[task - inputs.len()];
                let d_b = self.outer(us, dy, cols); // transposed: [rank, outputs]
                // SAFETY: these rows of B belong to this task.
                let out = unsafe { all.range(at.b + cols.start * at.rank, cols.len() * at.rank) };
                for (n, out) in out.chunks_exact_mut(at.rank).enumerate() {
                    out.iter_mut().enumerate().for_each(|(r, out)| *out += d_b.values()[r * cols.len() + n]);
                }
            }
        });
    }

    fn head(&self, h: &Buffer<E>, w: &Stored, targets: &[HeadTarget]) -> (Vec<f64>, Vec<f64>) {
        let w = w.matrix();
        let mut lse = filled(h.rows, f64::NEG_INFINITY);
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

    fn draw(&self, h: &Buffer<E>, w: &Stored, draw: &Draw) -> Option<u32> {
        sample::draw(&mut self.logits(h, w), draw)
    }

    fn logits(&self, h: &Buffer<E>, w: &Stored) -> Vec<f32> {
        let w = w.matrix();
        let mut all = filled(h.rows * w.rows(), 0.0);
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

#[cfg(test)]
mod tests {
    use super::log_add;

    #[test]
    fn a_nan_is_never_forgotten_by_a_sum_of_exponentials() {
        let (nothing, nan) = (f64::NEG_INFINITY, f64::NAN);
        assert_eq!(log_add(nothing, nothing), nothing);
        assert_eq!([log_add(nothing, 2.0), log_add(2.0, nothing)], [2.0; 2]);
        assert!((log_add(1.0, 1.0) - (1.0 + 2f64.ln())).abs() < 1e-15);
        for (a, b) in [(nothing, nan), (nan, nothing), (nan, 1.0), (1.0, nan), (nan, nan)] {
            assert!(log_add(a, b).is_nan(), "{a} and {b}");
        }
    }
}
