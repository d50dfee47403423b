//! The operations on a GPU: shapes are checked here, because a kernel would not see that they are wrong.

use super::super::{
    AttentionGradient, AttentionSaved, Device, HeadTarget, Operand, Out, PairAt, Plan, Sum, Term, room,
};
use super::weight::{Rows, Weight};
use super::{Array, Gpu, locked};
use crate::files::safetensors::Tensors;
use crate::{Cancel, Result};
use dialoguellm_kernels::attention::Heads;
use dialoguellm_kernels::cuda::Ptr;
use dialoguellm_kernels::sample::Draw;
use dialoguellm_kernels::{Bits, Isa, adamw, attention, bf16, dropout, linear, rmsnorm, rope, swiglu, tensor};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

/// An adapter's parameters on the GPU, and its matrices rounded with their scales as passes asked for them.
pub struct LoraValues {
    values: Array<f32>,
    rounded: Mutex<Rounded>,
}

#[derive(Default)]
struct Rounded {
    /// Failures of the GPU when they were made: the work of one that failed later may never have been asked for.
    failures: u64,
    /// By first value and bits of the scale.
    matrices: HashMap<(usize, u32), Arc<Array<bf16>>>,
}

/// AdamW's moments on the GPU, and what its kernels say of a gradient: sums of squares, then the decision.
pub struct Moments {
    m: Array<f32>,
    v: Array<f32>,
    squares: Array<f64>,
    decision: Array<adamw::cuda::State>,
}

/// Rotations by position, `[positions, half]`.
pub struct RopeTable {
    cos: Array<f32>,
    sin: Array<f32>,
}

/// A plan on the GPU: who sees whom.
pub struct Sight {
    queries: usize,
    keys: usize,
    cached: usize,
    rows: Array<u32>,
    end: Array<u32>,
    q_first: Array<u32>,
    q_list: Array<u32>,
    k_first: Array<u32>,
    k_list: Array<u32>,
}

impl Sight {
    fn shape(&self, heads: Heads) -> attention::cuda::Shape {
        attention::cuda::Shape {
            heads,
            queries: self.queries as u32,
            keys: self.keys as u32,
            cached: self.cached as u32,
            rows: self.rows.at(),
            end: self.end.at(),
            q_first: self.q_first.at(),
            q_list: self.q_list.at(),
            k_first: self.k_first.at(),
            k_list: self.k_list.at(),
        }
    }
}

/// The first query behind each key's subtree: a query sees a key of its row or before it if it comes before that end.
fn ends(plan: &Plan) -> Vec<u32> {
    let mut end = vec![plan.rows.len() as u32; plan.keys];
    for run in &plan.key_runs {
        end[run.keys.start as usize..run.keys.end as usize].fill(run.whole.end);
    }
    end
}

/// Panics unless a tensor has this shape.
fn is<T>(array: &Array<T>, rows: usize, cols: usize) {
    assert!(array.rows == rows && array.cols == cols, "[{}, {}] is not [{rows}, {cols}]", array.rows, array.cols);
}

/// Panics unless every index is below `len`.
fn below(indices: &[u32], len: usize) {
    assert!(indices.iter().all(|&index| (index as usize) < len), "an index is outside {len} rows");
}

/// A term's matrix in bf16, until the product has been asked for.
enum Held {
    Frozen(Rows),
    Lora(Arc<Array<bf16>>),
}

impl Held {
    fn at(&self) -> Ptr {
        match self {
            Held::Frozen(rows) => rows.at,
            Held::Lora(matrix) => matrix.at(),
        }
    }
}

impl Gpu {
    /// A matrix of an adapter, rounded; once a pass, or as long as the adapter stays as it is.
    fn rounded(&self, params: &LoraValues, at: usize, rows: usize, cols: usize, scale: f32) -> Arc<Array<bf16>> {
        assert!(at + rows * cols <= params.values.len());
        let mut rounded = locked(&params.rounded);
        let failures = self.failures.load(Ordering::Relaxed);
        if rounded.failures != failures {
            *rounded = Rounded { failures, matrices: HashMap::new() };
        }
        if let Some(found) = rounded.matrices.get(&(at, scale.to_bits())) {
            return found.clone();
        }
        let array = Arc::new(self.array::<bf16>(rows, cols));
        let from = params.values.at().offset(at * size_of::<f32>());
        self.run(&tensor::cuda::narrow(array.at(), from, array.len(), scale));
        if !self.has_failed() {
            rounded.matrices.insert((at, scale.to_bits()), array.clone());
        }
        array
    }

    /// The matrix of a term, `[rows, cols]`.
    fn operand(&self, operand: &Operand<Self>) -> (Held, usize, usize) {
        match *operand {
            Operand::Frozen(weight) => (Held::Frozen(weight.rows(self, 0..weight.rows)), weight.rows, weight.cols),
            Operand::Lora { params, at, rows, cols, scale } => {
                (Held::Lora(self.rounded(params, at, rows, cols, scale)), rows, cols)
            }
        }
    }

    /// One LoRA matrix's gradient, `c += a^T b` over all rows.
    fn outer(&self, c: Ptr, a: &Array<bf16>, b: &Array<bf16>, transposed: bool) {
        assert_eq!(a.rows, b.rows);
        let (m, n, rows) = (a.cols as u32, b.cols as u32, a.rows as u32);
        let scratch = self.array::<f32>(1, linear::cuda::lora_gradient_scratch(m, n, rows).div_ceil(4));
        for launch in linear::cuda::lora_gradient(c, a.at(), b.at(), m, n, rows, transposed, scratch.at()) {
            self.run(&launch);
        }
    }
}

impl Device for Gpu {
    type Real = Array<f32>;
    type Act = Array<bf16>;
    type Weight = Weight;
    type Vector = Array<f32>;
    type Params = Arc<LoraValues>;
    type Moments = Moments;
    type RopeTable = RopeTable;
    type Plan = Sight;

    fn turn<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let _turn = self.begin()?;
        work()
    }

    fn status(&self) -> Result<()> {
        self.told()
    }

    fn precision(&self) -> &'static str {
        "bf16"
    }

    fn isa(&self) -> Isa {
        Isa::best(None)
    }

    fn weight(
        &self,
        tensors: &Arc<Tensors>,
        name: &str,
        [rows, cols]: [usize; 2],
        bits: Option<Bits>,
        cancel: &Cancel,
    ) -> Result<Weight> {
        let weight = self.send(&tensors.matrix(name, rows, cols)?, bits, name, cancel)?;
        tensors.release_matrix(name); // the GPU has a copy now
        Ok(weight)
    }

    fn vector(&self, tensors: &Arc<Tensors>, name: &str, len: usize) -> Result<Array<f32>> {
        let values = tensors.get(name)?.vector(len)?;
        let vector = self.upload(&values, len);
        self.told()?;
        Ok(vector)
    }

    fn params(&self, host: &Arc<Vec<f32>>) -> Arc<LoraValues> {
        let mut last = locked(&self.params);
        if let Some((of, params)) = last.as_ref()
            && of.upgrade().is_some_and(|of| Arc::ptr_eq(&of, host))
        {
            return params.clone();
        }
        *last = None; // its memory is free before the new one's is taken
        let params = self.own_params(host);
        if !self.has_failed() {
            *last = Some((Arc::downgrade(host), params.clone()));
        }
        params
    }

    fn own_params(&self, host: &Arc<Vec<f32>>) -> Arc<LoraValues> {
        Arc::new(LoraValues { values: self.upload(host, host.len()), rounded: Mutex::default() })
    }

    fn plan(&self, plan: Plan) -> Sight {
        below(&plan.rows, plan.keys);
        let end = ends(&plan);
        let tiles = attention::cuda::tiles(&plan.rows, &end);
        let upload = |values: &[u32]| self.upload(values, 1);
        Sight {
            queries: plan.rows.len(),
            keys: plan.keys,
            cached: plan.key_runs.first().map_or(plan.keys, |run| run.keys.start as usize),
            rows: upload(&plan.rows),
            end: upload(&end),
            q_first: upload(&tiles.q_first),
            q_list: upload(&tiles.q_list),
            k_first: upload(&tiles.k_first),
            k_list: upload(&tiles.k_list),
        }
    }

    fn read(&self, x: &Array<f32>) -> Result<Vec<f32>> {
        let values = self.download(x, x.len());
        self.told().map(|()| values)
    }

    fn write(&self, values: &[f32], cols: usize) -> Array<f32> {
        self.upload(values, cols)
    }

    fn values(&self, params: &Arc<LoraValues>) -> Result<Arc<Vec<f32>>> {
        self.read(&params.values).map(Arc::new)
    }

    fn moments(&self, len: usize, from: Option<(&[f32], &[f32])>) -> Result<Moments> {
        let [m, v] = match from {
            None => [(); 2].map(|()| self.zeros(1, len)),
            Some((m, v)) => [m, v].map(|values| self.upload(values, len)),
        };
        let squares = self.array(1, adamw::cuda::partials(len) as usize);
        let moments = Moments { m, v, squares, decision: self.array(1, 1) };
        self.told().map(|()| moments)
    }

    fn read_moments<'a>(&self, moments: &'a Moments) -> Result<[Cow<'a, [f32]>; 2]> {
        Ok([self.read(&moments.m)?.into(), self.read(&moments.v)?.into()])
    }

    fn gradient_norm(&self, moments: &mut Moments, gradient: &Array<f32>, clip: f64, finite: bool) -> Result<f64> {
        is(gradient, 1, moments.m.len());
        let (squares, decision) = (moments.squares.at(), moments.decision.at());
        self.run(&adamw::cuda::norm_partials(squares, gradient.at(), gradient.len()));
        self.run(&adamw::cuda::decide(decision, squares, moments.squares.len() as u32, clip, finite));
        let decision = self.download(&moments.decision, 1);
        self.told().map(|()| decision[0].norm)
    }

    fn adamw(
        &self,
        params: &mut Arc<LoraValues>,
        moments: &mut Moments,
        gradient: &Array<f32>,
        options: &adamw::Options,
        t: u64,
    ) -> Result<()> {
        let len = moments.m.len();
        is(gradient, 1, len);
        assert_eq!(params.values.len(), len);
        locked(&params.rounded).matrices.clear();
        let step = adamw::Step::new(options, t, 1.0);
        let (p, m, v) = (params.values.at(), moments.m.at(), moments.v.at());
        self.run(&adamw::cuda::step(p, m, v, gradient.at(), len, &step, moments.decision.at()));
        self.told()
    }

    fn act(&self, rows: usize, cols: usize) -> Array<bf16> {
        self.array(rows, cols)
    }

    fn real(&self, rows: usize, cols: usize) -> Array<f32> {
        self.array(rows, cols)
    }

    fn zeros(&self, rows: usize, cols: usize) -> Array<f32> {
        let mut y = self.real(rows, cols);
        self.zero(&mut y);
        y
    }

    fn copy(&self, x: &Array<f32>) -> Array<f32> {
        let mut y = self.real(x.rows, x.cols);
        self.copy_to(&mut y, 0, x, x.size());
        y
    }

    fn round(&self, x: &Array<f32>) -> Array<bf16> {
        let y = self.act(x.rows, x.cols);
        self.run(&tensor::cuda::round(y.at(), x.at(), x.len()));
        y
    }

    fn gather(&self, x: &Array<f32>, rows: &[u32]) -> Array<f32> {
        below(rows, x.rows);
        let (y, at) = (self.real(rows.len(), x.cols), self.upload(rows, 1));
        self.run(&tensor::cuda::gather(y.at(), x.at(), at.at(), y.rows as u32, y.cols as u32));
        y
    }

    fn scatter_add(&self, y: &mut Array<f32>, x: &Array<f32>, rows: &[u32]) {
        below(rows, y.rows);
        is(x, rows.len(), y.cols);
        let at = self.upload(rows, 1);
        self.run(&tensor::cuda::scatter_add(y.at(), x.at(), at.at(), x.rows as u32, x.cols as u32));
    }

    fn concat(&self, past: &Array<bf16>, rows: usize, new: &Array<bf16>) -> Array<bf16> {
        assert!(rows <= past.rows && past.cols == new.cols);
        let mut y = self.act(rows + new.rows, new.cols);
        let head = rows * new.cols * size_of::<bf16>();
        self.copy_to(&mut y, 0, past, head);
        self.copy_to(&mut y, head, new, new.size());
        y
    }

    fn append(&self, y: &mut Array<bf16>, at: usize, new: &Array<bf16>) {
        assert!(at <= y.rows && y.cols == new.cols);
        let bytes = |rows: usize| rows * new.cols * size_of::<bf16>();
        if y.rows < at + new.rows {
            let mut larger = self.act(room(y.rows, at + new.rows), new.cols);
            self.copy_to(&mut larger, 0, y, bytes(at));
            // at once: if the copy only waited, a failure of this pass would lose what it copies
            if self.attempt(|| self.queue.flush()).is_none() {
                return;
            }
            *y = larger;
        }
        self.copy_to(y, bytes(at), new, new.size());
    }

    fn embed(&self, table: &Weight, ids: &[u32]) -> Array<f32> {
        below(ids, table.rows);
        let (y, at) = (self.real(ids.len(), table.cols), self.upload(ids, 1));
        table.embed(self, &y, &at);
        y
    }

    fn add_noise(&self, x: &mut Array<f32>, keys: &[u64], scale: &[f32]) {
        assert!(keys.len() == x.rows && scale.len() == x.rows);
        let (keys, scale) = (self.upload(keys, 1), self.upload(scale, 1));
        self.run(&dropout::cuda::noise(x.at(), keys.at(), scale.at(), x.rows as u32, x.cols as u32));
    }

    fn blend(&self, x: &mut Array<f32>, base: &Array<f32>, share: &[f32]) {
        is(base, x.rows, x.cols);
        assert!(share.len() == x.rows);
        let share = self.upload(share, 1);
        self.run(&tensor::cuda::blend(x.at(), base.at(), share.at(), x.rows as u32, x.cols as u32));
    }

    fn rmsnorm(&self, x: &Array<f32>, w: &Array<f32>, eps: f64) -> (Array<bf16>, Array<f32>) {
        is(w, 1, x.cols);
        let (y, r) = (self.act(x.rows, x.cols), self.real(x.rows, 1));
        let (rows, width) = (x.rows as u32, x.cols as u32);
        self.run(&rmsnorm::cuda::forward(y.at(), r.at(), x.at(), w.at(), rows, width, eps as f32));
        (y, r)
    }

    fn rmsnorm_backward(
        &self,
        dx: &mut Array<f32>,
        dy: &Array<f32>,
        x: &Array<f32>,
        w: &Array<f32>,
        rstd: &Array<f32>,
    ) {
        let (rows, cols) = (dx.rows, dx.cols);
        is(w, 1, cols);
        is(rstd, rows, 1);
        [dy, x].into_iter().for_each(|x| is(x, rows, cols));
        let (rows, width) = (rows as u32, cols as u32);
        self.run(&rmsnorm::cuda::backward(dx.at(), dy.at(), x.at(), w.at(), rstd.at(), rows, width));
    }

    fn matmul(&self, out: Out<Self>, terms: &[Term<Self>], bias: Option<&Array<f32>>) {
        let (out, m, n) = match out {
            Out::Act(y) => (linear::cuda::Out::Act(y.at()), y.rows, y.cols),
            Out::Real(y) => (linear::cuda::Out::Real(y.at()), y.rows, y.cols),
            Out::Add(y) => (linear::cuda::Out::Add(y.at()), y.rows, y.cols),
        };
        let operands: Vec<_> = terms.iter().map(|term| self.operand(&term.w)).collect();
        let term = |(term, (w, rows, cols)): (&Term<Self>, &(Held, usize, usize))| {
            let (width, k) = if term.sum == Sum::OverCols { (*rows, *cols) } else { (*cols, *rows) };
            assert!(width == n, "{width} columns of a term, {n} of the output");
            is(term.x, m, k);
            linear::cuda::Term { x: term.x.at(), w: w.at(), k: k as u32, sum: term.sum }
        };
        let terms: Vec<_> = terms.iter().zip(&operands).map(term).collect();
        bias.inspect(|bias| is(bias, 1, n));
        self.product(out, m, n, &terms, bias.map(Array::at));
    }

    fn rope_table(&self, cos: &[f64], sin: &[f64], half: usize) -> RopeTable {
        let upload = |x: &[f64]| self.upload(&x.iter().map(|&x| x as f32).collect::<Vec<_>>(), half);
        RopeTable { cos: upload(cos), sin: upload(sin) }
    }

    fn rope(&self, x: &Array<f32>, table: &RopeTable, at: &[u32]) -> Array<bf16> {
        let (y, at) = (self.act(x.rows, x.cols), self.places(x, table, at));
        let (rows, heads, half) = (x.rows as u32, (x.cols / (2 * table.cos.cols)) as u32, table.cos.cols as u32);
        self.run(&rope::cuda::forward(y.at(), x.at(), table.cos.at(), table.sin.at(), at.at(), rows, heads, half));
        y
    }

    fn rope_backward(&self, dy: &Array<f32>, table: &RopeTable, at: &[u32]) -> Array<bf16> {
        let (dx, at) = (self.act(dy.rows, dy.cols), self.places(dy, table, at));
        let (rows, heads, half) = (dy.rows as u32, (dy.cols / (2 * table.cos.cols)) as u32, table.cos.cols as u32);
        self.run(&rope::cuda::backward(dx.at(), dy.at(), table.cos.at(), table.sin.at(), at.at(), rows, heads, half));
        dx
    }

    fn attention(
        &self,
        q: &Array<bf16>,
        k: &Array<bf16>,
        v: &Array<bf16>,
        heads: Heads,
        plan: &Sight,
    ) -> (Array<bf16>, Array<f32>) {
        if !self.has_failed() {
            plan.check(heads, q, k, v); // what could not be appended to has too few rows
        }
        let (o, lse) = (self.act(q.rows, q.cols), self.real(q.rows, heads.q));
        self.run(&attention::cuda::forward(o.at(), lse.at(), q.at(), k.at(), v.at(), &plan.shape(heads)));
        (o, lse)
    }

    fn attention_backward(
        &self,
        d_o: &Array<bf16>,
        AttentionSaved { q, k, v, o, lse }: AttentionSaved<Self>,
        heads: Heads,
        plan: &Sight,
    ) -> AttentionGradient<Self> {
        plan.check(heads, q, k, v);
        [d_o, o].into_iter().for_each(|o| is(o, q.rows, q.cols));
        is(lse, q.rows, heads.q);
        let shape = plan.shape(heads);
        let delta = self.real(q.rows, heads.q);
        let (dq, dk, dv) = (self.real(q.rows, q.cols), self.real(k.rows, k.cols), self.act(v.rows, v.cols));
        let (q, k, v, lse, d_o) = (q.at(), k.at(), v.at(), lse.at(), d_o.at());
        self.run(&attention::cuda::delta(delta.at(), d_o, o.at(), &shape));
        self.run(&attention::cuda::backward_q(dq.at(), d_o, q, k, v, lse, delta.at(), &shape));
        self.run(&attention::cuda::backward_kv(dk.at(), dv.at(), d_o, q, k, v, lse, delta.at(), &shape));
        AttentionGradient { dq, dk, dv }
    }

    fn swiglu(&self, gate: &Array<bf16>, up: &Array<bf16>) -> Array<bf16> {
        is(up, gate.rows, gate.cols);
        let h = self.act(gate.rows, gate.cols);
        self.run(&swiglu::cuda::forward(h.at(), gate.at(), up.at(), h.len()));
        h
    }

    fn swiglu_backward(&self, dh: &Array<bf16>, gate: &Array<bf16>, up: &Array<bf16>) -> [Array<bf16>; 3] {
        let (rows, cols) = (gate.rows, gate.cols);
        [dh, up].into_iter().for_each(|x| is(x, rows, cols));
        let all = [(); 3].map(|()| self.act(rows, cols));
        let [h, dgate, dup] = all.each_ref().map(Array::at);
        self.run(&swiglu::cuda::backward(h, dgate, dup, dh.at(), gate.at(), up.at(), gate.len()));
        all
    }

    fn dropout(&self, x: &Array<bf16>, keys: &[u64], p: f32) -> Array<bf16> {
        assert_eq!(keys.len(), x.rows);
        let (y, keys) = (self.act(x.rows, x.cols), self.upload(keys, 1));
        self.run(&dropout::cuda::apply(y.at(), x.at(), keys.at(), x.rows as u32, x.cols as u32, p));
        y
    }

    fn dropout_add(&self, dx: &mut Array<f32>, dy: &Array<f32>, keys: &[u64], p: f32) {
        is(dy, keys.len(), dx.cols);
        is(dx, keys.len(), dx.cols);
        let keys = self.upload(keys, 1);
        self.run(&dropout::cuda::add(dx.at(), dy.at(), keys.at(), dy.rows as u32, dy.cols as u32, p));
    }

    fn lora_gradient(
        &self,
        gradient: &mut Array<f32>,
        at: PairAt,
        (x, us): (&Array<bf16>, &Array<bf16>),
        (dy, du): (&Array<bf16>, &Array<bf16>),
    ) {
        assert!(at.a + at.rank * at.inputs <= gradient.len() && at.b + at.outputs * at.rank <= gradient.len());
        assert!(x.cols == at.inputs && dy.cols == at.outputs && us.cols == at.rank && du.cols == at.rank);
        let place = |value: usize| gradient.at().offset(value * size_of::<f32>());
        self.outer(place(at.a), du, x, false);
        self.outer(place(at.b), us, dy, true);
    }

    fn head(&self, h: &Array<bf16>, w: &Weight, targets: &[HeadTarget]) -> (Vec<f64>, Vec<f64>) {
        self.head_forward(h, w, targets)
    }

    fn head_backward(&self, h: &Array<bf16>, w: &Weight, lse: &[f64], targets: &[HeadTarget]) -> Array<f32> {
        self.head_gradient(h, w, lse, targets)
    }

    fn draw(&self, h: &Array<bf16>, w: &Weight, draw: &Draw) -> Option<u32> {
        self.head_draw(h, w, draw)
    }

    fn logits(&self, h: &Array<bf16>, w: &Weight) -> Vec<f32> {
        self.head_logits(h, w)
    }
}

impl Gpu {
    /// The rows' places in a table of rotations.
    fn places(&self, x: &Array<f32>, table: &RopeTable, at: &[u32]) -> Array<u32> {
        assert!(at.len() == x.rows && x.cols.is_multiple_of(2 * table.cos.cols));
        below(at, table.cos.rows);
        self.upload(at, 1)
    }
}

impl Sight {
    fn check(&self, heads: Heads, q: &Array<bf16>, k: &Array<bf16>, v: &Array<bf16>) {
        is(q, self.queries, heads.q * heads.dim);
        let wide = heads.kv * heads.dim;
        assert!([k, v].into_iter().all(|x| x.cols == wide && x.rows >= self.keys), "{} keys of {wide}", self.keys);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::KeyRun;

    #[test]
    fn a_key_ends_with_its_spans_subtree_and_a_cached_one_never() {
        let run = |keys, whole| KeyRun { keys, causal: 0..0, whole };
        let plan = Plan {
            keys: 6,
            rows: vec![2, 3, 4, 5],
            key_runs: vec![run(2..4, 2..3), run(4..5, 3..3), run(5..6, 4..4)],
            ..Plan::default()
        };
        assert_eq!(ends(&plan), [4, 4, 3, 3, 3, 4]);
    }
}
