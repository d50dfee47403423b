//! A LLaMA written to be obviously right: one prompt at a time, whole T x T attention, a small tape for gradients.
//!
//! It shares no code with the engine. In `F64` it is what exactness is measured against; in `F32` and `Bf16` it is the
//! plain implementation of the tolerance rule: the engine's input roundings, sequential f32 sums, one rounding an output.

use half::bf16;
use std::collections::BTreeMap;

/// The types a plain run computes in.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Mode {
    F64,
    F32,
    Bf16,
}

impl Mode {
    /// Rounds to the type of sums.
    fn real(self, x: f64) -> f64 {
        if self == Mode::F64 { x } else { x as f32 as f64 }
    }
    /// Rounds to the type of operands.
    fn act(self, x: f64) -> f64 {
        if self == Mode::Bf16 { bf16::from_f32(x as f32).to_f64() } else { self.real(x) }
    }
    /// A sum, one term after the other.
    fn sum(self, terms: impl Iterator<Item = f64>) -> f64 {
        terms.fold(0.0, |sum, term| self.real(sum + self.real(term)))
    }
}

/// A row-major matrix.
#[derive(Clone, Debug)]
pub struct Mat {
    pub rows: usize,
    pub cols: usize,
    pub values: Vec<f64>,
}

impl Mat {
    pub fn new(rows: usize, cols: usize, values: Vec<f64>) -> Self {
        assert_eq!(values.len(), rows * cols);
        Self { rows, cols, values }
    }
    fn zeros(rows: usize, cols: usize) -> Self {
        Self::new(rows, cols, vec![0.0; rows * cols])
    }
    fn from(rows: usize, cols: usize, f: impl Fn(usize, usize) -> f64) -> Self {
        Self::new(rows, cols, (0..rows * cols).map(|i| f(i / cols, i % cols)).collect())
    }
    pub fn at(&self, i: usize, j: usize) -> f64 {
        self.values[i * self.cols + j]
    }
    fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Self::new(self.rows, self.cols, self.values.iter().map(|&x| f(x)).collect())
    }
    fn transposed(&self) -> Self {
        Self::from(self.cols, self.rows, |i, j| self.at(j, i))
    }
    /// self b^T.
    fn times_transposed(&self, b: &Mat, mode: Mode) -> Self {
        assert_eq!(self.cols, b.cols);
        Self::from(self.rows, b.rows, |i, j| mode.sum((0..self.cols).map(|k| self.at(i, k) * b.at(j, k))))
    }
    fn times(&self, b: &Mat, mode: Mode) -> Self {
        self.times_transposed(&b.transposed(), mode)
    }
    fn plus(&self, b: &Mat, mode: Mode) -> Self {
        Self::from(self.rows, self.cols, |i, j| mode.real(self.at(i, j) + b.at(i, j)))
    }
}

/// A LoRA pair by PEFT's module name: A `[r, in]`, B `[out, r]`, scale.
#[derive(Clone)]
pub struct Pair {
    pub a: Mat,
    pub b: Mat,
    pub scale: f64,
}

/// Shapes and weights, by their names in the file.
#[derive(Clone)]
pub struct Plain {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub layers: usize,
    pub eps: f64,
    pub theta: f64,
    pub tied: bool,
    pub weights: BTreeMap<String, Mat>,
    pub pairs: BTreeMap<String, Pair>,
}

type Back = Box<dyn Fn(&Mat) -> Vec<(usize, Mat)>>;

/// Values in the order they were made, and how each hands its gradient down.
struct Tape {
    mode: Mode,
    values: Vec<Mat>,
    backs: Vec<Back>,
}

impl Tape {
    fn push(&mut self, value: Mat, back: Back) -> usize {
        self.values.push(value);
        self.backs.push(back);
        self.values.len() - 1
    }
    /// A pair's A or B: where its gradient is read.
    fn leaf(&mut self, value: &Mat) -> usize {
        self.push(value.clone(), Box::new(|_| Vec::new()))
    }
    fn add(&mut self, x: usize, y: usize) -> usize {
        let value = self.values[x].plus(&self.values[y], self.mode);
        self.push(value, Box::new(move |d| vec![(x, d.clone()), (y, d.clone())]))
    }

    /// y = w x / rms(x), an operand.
    fn norm(&mut self, x: usize, w: &Mat, eps: f64) -> usize {
        let (mode, w, v) = (self.mode, w.clone(), self.values[x].clone());
        let n = v.cols;
        let r: Vec<f64> = (0..v.rows)
            .map(|i| mode.real(1.0 / (mode.sum((0..n).map(|j| v.at(i, j) * v.at(i, j))) / n as f64 + eps).sqrt()))
            .collect();
        let y = Mat::from(v.rows, n, |i, j| mode.act(mode.real(v.at(i, j) * r[i]) * w.values[j]));
        let back = move |d: &Mat| {
            let dot = |i: usize| mode.sum((0..n).map(|j| w.values[j] * d.at(i, j) * v.at(i, j)));
            let dots: Vec<f64> = (0..v.rows).map(dot).collect();
            let dx = |i: usize, j: usize| {
                mode.real(r[i] * (w.values[j] * d.at(i, j) - v.at(i, j) * r[i] * r[i] / n as f64 * dots[i]))
            };
            vec![(x, Mat::from(v.rows, n, dx))]
        };
        self.push(y, Box::new(back))
    }

    /// y = x W^T + b + (s x A^T) B^T, an operand or a sum. Returns y; the pair's leaves are (a, b).
    fn linear(
        &mut self,
        x: usize,
        w: &Mat,
        bias: Option<&Mat>,
        pair: Option<(usize, usize, f64)>,
        operand: bool,
    ) -> usize {
        let mode = self.mode;
        let (w, v) = (w.map(|w| mode.act(w)), self.values[x].clone());
        let bias = bias.cloned();
        let lora = pair.map(|(a, b, s)| {
            let scaled = self.values[a].map(|a| mode.act(a * s));
            let us = v.times_transposed(&scaled, mode).map(|u| mode.act(u));
            (a, b, s, us)
        });
        let b_of = |tape: &Tape, b: usize| tape.values[b].clone();
        let sum = |i: usize, j: usize| {
            let frozen = (0..v.cols).map(|k| v.at(i, k) * w.at(j, k));
            let pair = lora.iter().flat_map(|(_, b, _, us)| {
                let b = &self.values[*b];
                (0..us.cols).map(move |k| us.at(i, k) * mode.act(b.at(j, k)))
            });
            let y = mode.real(mode.sum(frozen.chain(pair)) + bias.as_ref().map_or(0.0, |bias| bias.values[j]));
            if operand { mode.act(y) } else { y }
        };
        let y = Mat::from(v.rows, w.rows, sum);
        let lora = lora.map(|(a, b, s, us)| (a, b, s, us, self.values[a].clone(), b_of(self, b)));
        let back = move |d: &Mat| {
            let d = d.map(|d| mode.act(d));
            let mut dx = d.times(&w, mode);
            let mut out = Vec::new();
            if let Some((a, b, s, us, a_value, b_value)) = &lora {
                let du = d.times(&b_value.map(|b| mode.act(b * s)), mode).map(|u| mode.act(u));
                out.push((*a, du.transposed().times(&v, mode)));
                out.push((*b, d.transposed().times(us, mode)));
                dx = dx.plus(&du.times(&a_value.map(|a| mode.act(a)), mode), mode);
            }
            out.push((x, dx));
            out
        };
        self.push(y, Box::new(back))
    }

    /// Rotates pairs (j, j + d/2) of every head by position x theta^(-2j/d), an operand.
    fn rope(&mut self, x: usize, dim: usize, theta: f64) -> usize {
        let (mode, v) = (self.mode, &self.values[x]);
        let turn = move |m: &Mat, sign: f64| {
            Mat::from(m.rows, m.cols, |i, c| {
                let (j, half) = (c % dim, dim / 2);
                let angle = i as f64 * theta.powf(-2.0 * (j % half) as f64 / dim as f64);
                let (sin, cos) = (mode.real(sign * angle.sin()), mode.real(angle.cos()));
                let other = if j < half { -m.at(i, c + half) } else { m.at(i, c - half) };
                mode.act(mode.real(m.at(i, c) * cos) + mode.real(other * sin))
            })
        };
        let y = turn(v, 1.0);
        self.push(y, Box::new(move |d| vec![(x, turn(d, -1.0))]))
    }

    /// softmax(q k^T / sqrt(d)) v with a causal mask, head by head, an operand.
    fn attention(&mut self, q: usize, k: usize, v: usize, heads: usize, kv_heads: usize, dim: usize) -> usize {
        let mode = self.mode;
        let (qm, km, vm) = (self.values[q].clone(), self.values[k].clone(), self.values[v].clone());
        let (t, group, scale) = (qm.rows, heads / kv_heads, 1.0 / (dim as f64).sqrt());
        let dot = move |a: &Mat, i: usize, ha: usize, b: &Mat, j: usize, hb: usize| {
            mode.sum((0..dim).map(|c| a.at(i, ha * dim + c) * b.at(j, hb * dim + c)))
        };
        // P of every head, [t, t]
        let mut p = Vec::new();
        for h in 0..heads {
            let score = Mat::from(t, t, |i, j| {
                if j <= i { mode.real(dot(&qm, i, h, &km, j, h / group) * scale) } else { f64::NEG_INFINITY }
            });
            let max: Vec<f64> =
                (0..t).map(|i| (0..=i).map(|j| score.at(i, j)).fold(f64::NEG_INFINITY, f64::max)).collect();
            let e = Mat::from(t, t, |i, j| mode.real((score.at(i, j) - max[i]).exp()));
            let total: Vec<f64> = (0..t).map(|i| mode.sum((0..=i).map(|j| e.at(i, j)))).collect();
            p.push(Mat::from(t, t, |i, j| mode.real(e.at(i, j) / total[i])));
        }
        let out = |i: usize, c: usize| {
            let h = c / dim;
            mode.act(mode.sum((0..=i).map(|j| mode.act(p[h].at(i, j)) * vm.at(j, h / group * dim + c % dim))))
        };
        let o = Mat::from(t, heads * dim, out);
        let o_saved = o.clone();
        let back = move |d: &Mat| {
            let d = d.map(|d| mode.act(d));
            let (mut dq, mut dk, mut dv) = (Mat::zeros(t, qm.cols), Mat::zeros(t, km.cols), Mat::zeros(t, vm.cols));
            for (h, p) in p.iter().enumerate() {
                let kv = h / group;
                for i in 0..t {
                    let delta = dot(&d, i, h, &o_saved, i, h);
                    for j in 0..=i {
                        let (pij, dp) = (p.at(i, j), dot(&d, i, h, &vm, j, kv));
                        let ds = mode.act(mode.real(pij * mode.real(dp - delta)));
                        for c in 0..dim {
                            let (qi, kj) = (i * qm.cols + h * dim + c, j * km.cols + kv * dim + c);
                            dq.values[qi] = mode.real(dq.values[qi] + mode.real(ds * km.values[kj] * scale));
                            dk.values[kj] = mode.real(dk.values[kj] + mode.real(ds * qm.values[qi] * scale));
                            dv.values[kj] = mode.real(dv.values[kj] + mode.real(mode.act(pij) * d.values[qi]));
                        }
                    }
                }
            }
            vec![(q, dq), (k, dk), (v, dv)]
        };
        self.push(o, Box::new(back))
    }

    /// silu(gate) up, an operand.
    fn swiglu(&mut self, gate: usize, up: usize) -> usize {
        let (mode, g, u) = (self.mode, self.values[gate].clone(), self.values[up].clone());
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let h = Mat::from(g.rows, g.cols, |i, j| mode.act(g.at(i, j) * sigmoid(g.at(i, j)) * u.at(i, j)));
        let back = move |d: &Mat| {
            let d = d.map(|d| mode.act(d));
            let slope = |x: f64| sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x)));
            let dg = Mat::from(g.rows, g.cols, |i, j| mode.act(d.at(i, j) * u.at(i, j) * slope(g.at(i, j))));
            let du = Mat::from(g.rows, g.cols, |i, j| mode.act(d.at(i, j) * g.at(i, j) * sigmoid(g.at(i, j))));
            vec![(gate, dg), (up, du)]
        };
        self.push(h, Box::new(back))
    }

    /// Gradients of every value, from that of the last one.
    fn backward(&self, seed: Mat) -> Vec<Option<Mat>> {
        let mut grads: Vec<Option<Mat>> = vec![None; self.values.len()];
        *grads.last_mut().unwrap() = Some(seed);
        for i in (0..self.values.len()).rev() {
            let Some(d) = grads[i].clone() else { continue };
            for (to, more) in (self.backs[i])(&d) {
                grads[to] = Some(match &grads[to] {
                    Some(sum) => sum.plus(&more, self.mode),
                    None => more,
                });
            }
        }
        grads
    }
}

/// A finished forward pass over one prompt.
pub struct Run {
    tape: Tape,
    leaves: BTreeMap<String, (usize, usize)>,
    /// `[T, V]`.
    pub logits: Mat,
}

impl Plain {
    /// The network over one prompt.
    pub fn run(&self, ids: &[u32], mode: Mode) -> Run {
        let mut tape = Tape { mode, values: Vec::new(), backs: Vec::new() };
        let mut leaves = BTreeMap::new();
        let table = &self.weights["model.embed_tokens.weight"];
        let mut x = tape.leaf(&Mat::from(ids.len(), table.cols, |i, j| table.at(ids[i] as usize, j)));
        for layer in 0..self.layers {
            let prefix = format!("model.layers.{layer}");
            let w = |name: &str| &self.weights[&format!("{prefix}.{name}.weight")];
            let mut linear = |tape: &mut Tape, x: usize, name: &str, operand: bool| {
                let module = format!("{prefix}.{name}");
                let pair = self.pairs.get(&module).map(|pair| {
                    let at = *leaves.entry(module.clone()).or_insert_with(|| (tape.leaf(&pair.a), tape.leaf(&pair.b)));
                    (at.0, at.1, pair.scale)
                });
                tape.linear(x, w(name), self.weights.get(&format!("{module}.bias")), pair, operand)
            };
            let h = tape.norm(x, w("input_layernorm"), self.eps);
            let (q, k) =
                (linear(&mut tape, h, "self_attn.q_proj", false), linear(&mut tape, h, "self_attn.k_proj", false));
            let v = linear(&mut tape, h, "self_attn.v_proj", true);
            let (q, k) = (tape.rope(q, self.head_dim, self.theta), tape.rope(k, self.head_dim, self.theta));
            let o = tape.attention(q, k, v, self.heads, self.kv_heads, self.head_dim);
            let o = linear(&mut tape, o, "self_attn.o_proj", false);
            let m = tape.add(x, o);
            let g = tape.norm(m, w("post_attention_layernorm"), self.eps);
            let (gate, up) = (linear(&mut tape, g, "mlp.gate_proj", true), linear(&mut tape, g, "mlp.up_proj", true));
            let h = tape.swiglu(gate, up);
            let y = linear(&mut tape, h, "mlp.down_proj", false);
            x = tape.add(m, y);
        }
        let h = tape.norm(x, &self.weights["model.norm.weight"], self.eps);
        let head = if self.tied { "model.embed_tokens.weight" } else { "lm_head.weight" };
        let logits = tape.linear(h, &self.weights[head], None, None, false);
        let logits = tape.values[logits].clone();
        Run { tape, leaves, logits }
    }
}

impl Run {
    fn log_sum_exp(&self, row: usize) -> f64 {
        let max = (0..self.logits.cols).map(|j| self.logits.at(row, j)).fold(f64::NEG_INFINITY, f64::max);
        max + (0..self.logits.cols).map(|j| (self.logits.at(row, j) - max).exp()).sum::<f64>().ln()
    }
    /// log p(token | the prompt up to and including `row`).
    pub fn log_p(&self, row: usize, token: u32) -> f64 {
        self.logits.at(row, token as usize) - self.log_sum_exp(row)
    }
    /// Gradients of every pair's A and B, by module, of the sum of `weight log p(token | row)` over `targets`.
    pub fn gradients(&self, targets: &[(usize, u32, f64)]) -> BTreeMap<String, (Mat, Mat)> {
        let mode = self.tape.mode;
        let mut d = Mat::zeros(self.logits.rows, self.logits.cols);
        for &(row, token, weight) in targets {
            let lse = self.log_sum_exp(row);
            for j in 0..d.cols {
                let p = (self.logits.at(row, j) - lse).exp();
                let one = if j == token as usize { 1.0 } else { 0.0 };
                d.values[row * self.logits.cols + j] += weight * (one - p);
            }
        }
        let grads = self.tape.backward(d.map(|d| mode.act(d)));
        let grad = |leaf: usize| {
            grads[leaf].clone().unwrap_or_else(|| {
                let value = &self.tape.values[leaf];
                Mat::zeros(value.rows, value.cols)
            })
        };
        self.leaves.iter().map(|(name, &(a, b))| (name.clone(), (grad(a), grad(b)))).collect()
    }
}
