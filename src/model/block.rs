//! One decoder layer: x += attention(norm(x)); x += mlp(norm(x)). Forward and backward are neighbours.
//!
//!   h = norm(x)        q, k, v = rope(Wq h), rope(Wk h), Wv h        m = x + Wo attention(q, k, v)
//!   g = norm(m)        y = m + Wd (silu(Wg g) * Wu g)
//!
//! The last layer computes queries, Wo and the MLP only for the rows whose logits someone reads ([`Chosen`]).
//! Norm outputs and the MLP's product are computed again in backward: cheaper than keeping them.

use super::linear::{self, Linear, Pull, SavedLora, pull_back, pull_back_rounded};
use super::pass::{Context, Rows};
use super::weights::Weights;
use crate::Result;
use crate::device::{AttentionSaved, Device, Out, Tensor};
use crate::files::adapter::Site;
use crate::files::config::Config;
use dialoguellm_kernels::attention::Heads;

/// A layer's frozen weights.
pub struct Block<D: Device> {
    attention_norm: D::Vector,
    mlp_norm: D::Vector,
    q: Linear<D>,
    k: Linear<D>,
    v: Linear<D>,
    o: Linear<D>,
    gate: Linear<D>,
    up: Linear<D>,
    down: Linear<D>,
    heads: Heads,
    eps: f64,
}

/// What all layers of a pass share.
pub struct Sequence<D: Device> {
    /// Every row's sample and position.
    pub rows: Rows,
    /// Rotations.
    pub rope: D::RopeTable,
    /// Every row's rotation.
    pub at: Vec<u32>,
    /// Attention of all rows.
    pub plan: D::Plan,
    /// The rows the last layer answers for.
    pub chosen: Chosen<D>,
    /// Rows of the cache to continue.
    pub cached: usize,
}

/// Keys and values of a layer's earlier rows, and what becomes of the new ones.
pub enum Past<'a, D: Device> {
    /// There are none.
    Nothing,
    /// They are read beside the new ones.
    Read(&'a KeyValue<D>),
    /// The new ones are written behind them.
    Extended(&'a mut KeyValue<D>),
}

/// Rows that the last layer computes queries and MLP for.
pub struct Chosen<D: Device> {
    /// Forest rows, rising.
    pub indices: Vec<u32>,
    /// Their samples and positions.
    pub rows: Rows,
    /// Their rotations.
    pub at: Vec<u32>,
    /// Their attention.
    pub plan: D::Plan,
}

/// Keys and values of one layer, `[rows, K d]`, keys rotated; in a cache, with room behind its rows.
pub struct KeyValue<D: Device> {
    /// Keys.
    pub k: D::Act,
    /// Values.
    pub v: D::Act,
}

/// What backward needs.
#[must_use = "backward consumes this"]
pub struct Saved<D: Device> {
    x: D::Real,
    /// x of the chosen rows, in the last layer.
    x_chosen: Option<D::Real>,
    kv: KeyValue<D>,
    q: D::Act,
    o: D::Act,
    lse: D::Real,
    m: D::Real,
    gate: D::Act,
    up: D::Act,
    lora: SavedSites<D>,
}

impl<D: Device> Saved<D> {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let reals = [Some(&self.x), self.x_chosen.as_ref(), Some(&self.lse), Some(&self.m)];
        let acts = [&self.kv.k, &self.kv.v, &self.q, &self.o, &self.gate, &self.up];
        reals.into_iter().flatten().map(Tensor::bytes).sum::<usize>()
            + acts.into_iter().map(Tensor::bytes).sum::<usize>()
    }
}

struct SavedSites<D: Device> {
    q: SavedLora<D>,
    k: SavedLora<D>,
    v: SavedLora<D>,
    o: SavedLora<D>,
    gate: SavedLora<D>,
    up: SavedLora<D>,
    down: SavedLora<D>,
}

/// How far down a layer's gradient is needed: the rungs from the output to the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// Only the down projection's pair.
    Down,
    /// And those of gate and up.
    GateUp,
    /// And that of the attention's output.
    Output,
    /// And those of queries, keys and values.
    Qkv,
    /// And d loss / d x, for the layers below.
    Input,
}

impl<D: Device> Block<D> {
    /// Takes layer `layer`'s weights.
    pub fn open(device: &D, from: &Weights, config: &Config, layer: usize) -> Result<Self> {
        let norm = |name: &str| {
            device.vector(from.tensors, &format!("model.layers.{layer}.{name}.weight"), config.hidden_size)
        };
        let linear = |site| Linear::open(device, from, config, layer, site);
        Ok(Self {
            attention_norm: norm("input_layernorm")?,
            mlp_norm: norm("post_attention_layernorm")?,
            q: linear(Site::Q)?,
            k: linear(Site::K)?,
            v: linear(Site::V)?,
            o: linear(Site::O)?,
            gate: linear(Site::Gate)?,
            up: linear(Site::Up)?,
            down: linear(Site::Down)?,
            heads: Heads { q: config.n_heads, kv: config.n_kv_heads, dim: config.head_dim },
            eps: config.rms_norm_eps,
        })
    }

    /// The layer's output for all rows, or for the chosen ones where `last`.
    pub fn forward(
        &self,
        ctx: &Context<D>,
        x: D::Real,
        seq: &Sequence<D>,
        past: Past<D>,
        last: bool,
    ) -> (D::Real, Saved<D>) {
        let device = ctx.device;
        let (h, _) = device.rmsnorm(&x, &self.attention_norm, self.eps);
        let (rows, at, plan) = seq.queries(last);
        let x_chosen = last.then(|| device.gather(&x, &seq.chosen.indices));
        let h_chosen = x_chosen.as_ref().map(|x| device.rmsnorm(x, &self.attention_norm, self.eps).0);

        let asking = h_chosen.as_ref().unwrap_or(&h);
        let (mut q, mut k) = (device.real(asking.rows(), self.q.outputs()), device.real(h.rows(), self.k.outputs()));
        let mut v = device.act(h.rows(), self.v.outputs());
        let (to_q, to_k, to_v) = (Out::Real(&mut q), Out::Real(&mut k), Out::Act(&mut v));
        let [lora_q, lora_k, lora_v] = if last {
            let [lora_k, lora_v] = linear::forward(ctx, &h, &seq.rows, [(&self.k, to_k), (&self.v, to_v)]);
            [self.q.forward(ctx, asking, rows, to_q), lora_k, lora_v]
        } else {
            linear::forward(ctx, &h, &seq.rows, [(&self.q, to_q), (&self.k, to_k), (&self.v, to_v)])
        };
        // summed, rotated, then rounded once
        let (q, k) = (device.rope(&q, &seq.rope, at), device.rope(&k, &seq.rope, &seq.at));
        let (o, lse) = match past {
            Past::Nothing => device.attention(&q, &k, &v, self.heads, plan),
            Past::Read(past) => {
                let (k, v) = (device.concat(&past.k, seq.cached, &k), device.concat(&past.v, seq.cached, &v));
                device.attention(&q, &k, &v, self.heads, plan)
            }
            Past::Extended(past) => {
                device.append(&mut past.k, seq.cached, &k);
                device.append(&mut past.v, seq.cached, &v);
                device.attention(&q, &past.k, &past.v, self.heads, plan)
            }
        };

        let mut m = device.copy(x_chosen.as_ref().unwrap_or(&x));
        let lora_o = self.o.forward(ctx, &o, rows, Out::Add(&mut m));
        let (g, _) = device.rmsnorm(&m, &self.mlp_norm, self.eps);
        let (mut gate, mut up) = (device.act(g.rows(), self.gate.outputs()), device.act(g.rows(), self.up.outputs()));
        let to = [(&self.gate, Out::Act(&mut gate)), (&self.up, Out::Act(&mut up))];
        let [lora_gate, lora_up] = linear::forward(ctx, &g, rows, to);
        let mut y = device.copy(&m);
        let lora_down = self.down.forward(ctx, &device.swiglu(&gate, &up), rows, Out::Add(&mut y));

        let lora =
            SavedSites { q: lora_q, k: lora_k, v: lora_v, o: lora_o, gate: lora_gate, up: lora_up, down: lora_down };
        (y, Saved { x, x_chosen, kv: KeyValue { k, v }, q, o, lse, m, gate, up, lora })
    }

    /// From d loss / d y to d loss / d x, adding the layer's LoRA gradients; stops at `depth` and then returns `None`.
    pub fn backward(
        &self,
        ctx: &Context<D>,
        dy: D::Real,
        saved: Saved<D>,
        seq: &Sequence<D>,
        last: bool,
        depth: Depth,
        gradient: &mut D::Real,
    ) -> Option<D::Real> {
        let device = ctx.device;
        let Saved { x, x_chosen, kv, q, o, lse, m, gate, up, lora } = saved;
        let (rows, at, plan) = seq.queries(last);
        let mut dm = dy; // the residual: d m starts as d y

        let dy = device.round(&dm);
        let down = self.down.pull(ctx, &dy);
        if depth == Depth::Down {
            down.learn(ctx, &device.swiglu(&gate, &up), lora.down, rows, gradient);
            return None;
        }
        let dh = pull_back_rounded(ctx, &down, rows, gate.cols());
        let [h, dgate, dup] = device.swiglu_backward(&dh, &gate, &up);
        down.learn(ctx, &h, lora.down, rows, gradient);
        let (g, rstd) = device.rmsnorm(&m, &self.mlp_norm, self.eps);
        let pulls = [
            self.gate.backward(ctx, &dgate, &g, lora.gate, rows, gradient),
            self.up.backward(ctx, &dup, &g, lora.up, rows, gradient),
        ];
        if depth == Depth::GateUp {
            return None;
        }
        let dg = pull_back(ctx, &pulls, rows, m.cols());
        device.rmsnorm_backward(&mut dm, &dg, &m, &self.mlp_norm, &rstd);

        let dm_act = device.round(&dm);
        let pull = self.o.backward(ctx, &dm_act, &o, lora.o, rows, gradient);
        if depth == Depth::Output {
            return None;
        }
        let d_o = pull_back_rounded(ctx, &pull, rows, o.cols());
        let grads = device.attention_backward(
            &d_o,
            AttentionSaved { q: &q, k: &kv.k, v: &kv.v, o: &o, lse: &lse },
            self.heads,
            plan,
        );
        let dq = device.rope_backward(&grads.dq, &seq.rope, at);
        let dk = device.rope_backward(&grads.dk, &seq.rope, &seq.at);

        let (h, rstd) = device.rmsnorm(&x, &self.attention_norm, self.eps);
        let k = self.k.backward(ctx, &dk, &h, lora.k, &seq.rows, gradient);
        let v = self.v.backward(ctx, &grads.dv, &h, lora.v, &seq.rows, gradient);
        let Some(x_chosen) = x_chosen else {
            let q = self.q.backward(ctx, &dq, &h, lora.q, &seq.rows, gradient);
            return self.to_input(ctx, depth, &[q, k, v], &seq.rows, dm, (&x, &rstd));
        };
        let (h, rstd_chosen) = device.rmsnorm(&x_chosen, &self.attention_norm, self.eps);
        let q = self.q.backward(ctx, &dq, &h, lora.q, rows, gradient);
        let chosen = self.to_input(ctx, depth, &[q], rows, dm, (&x_chosen, &rstd_chosen))?;
        let mut dx = self.to_input(ctx, depth, &[k, v], &seq.rows, device.zeros(x.rows(), x.cols()), (&x, &rstd))?;
        device.scatter_add(&mut dx, &chosen, &seq.chosen.indices);
        Some(dx)
    }

    /// dx += d norm(x) of the pulls, if anyone below asks.
    fn to_input(
        &self,
        ctx: &Context<D>,
        depth: Depth,
        pulls: &[Pull<D>],
        rows: &Rows,
        mut dx: D::Real,
        (x, rstd): (&D::Real, &D::Real),
    ) -> Option<D::Real> {
        if depth < Depth::Input {
            return None;
        }
        let dh = pull_back(ctx, pulls, rows, x.cols());
        ctx.device.rmsnorm_backward(&mut dx, &dh, x, &self.attention_norm, rstd);
        Some(dx)
    }
}

impl<D: Device> Saved<D> {
    /// The layer's input, from which all else can be computed again.
    pub fn into_input(self) -> D::Real {
        self.x
    }
}

impl<D: Device> Sequence<D> {
    /// The rows that ask: all, or in the last layer the chosen ones.
    fn queries(&self, last: bool) -> (&Rows, &[u32], &D::Plan) {
        if last { (&self.chosen.rows, &self.chosen.at, &self.chosen.plan) } else { (&self.rows, &self.at, &self.plan) }
    }
}
