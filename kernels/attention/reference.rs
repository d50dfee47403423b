//! Attention and its gradient in f64, a whole row of scores at a time: written to be read and to be right.
//! It knows no tiles and no number type but f64.

use super::{Block, Heads, KeyBlock};

/// The key rows that query `i` of a block sees.
fn seen(block: &Block, i: usize) -> Vec<usize> {
    let own = block.own..block.rows[i] + 1;
    block.ancestors.iter().cloned().chain([own]).flatten().map(|j| j as usize).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Head `h` of row `i` of a `[rows, heads d]` matrix.
fn head(x: &[f64], i: usize, h: usize, heads: usize, dim: usize) -> &[f64] {
    &x[(i * heads + h) * dim..][..dim]
}

/// o \[n, H d\] and lse \[n, H\] of a block's queries.
pub fn reference(o: &mut [f64], lse: &mut [f64], q: &[f64], k: &[f64], v: &[f64], heads: Heads, block: &Block) {
    for i in 0..block.rows.len() {
        for h in 0..heads.q {
            let (keys, kv) = (seen(block, i), h / heads.group());
            let q = head(q, i, h, heads.q, heads.dim);
            let s: Vec<f64> =
                keys.iter().map(|&j| dot(q, head(k, j, kv, heads.kv, heads.dim)) * heads.scale()).collect();
            let max = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum = s.iter().map(|s| (s - max).exp()).sum::<f64>();
            lse[i * heads.q + h] = max + sum.ln();
            let o = &mut o[(i * heads.q + h) * heads.dim..][..heads.dim];
            o.fill(0.0);
            for (&j, s) in keys.iter().zip(&s) {
                let v = head(v, j, kv, heads.kv, heads.dim);
                o.iter_mut().zip(v).for_each(|(o, v)| *o += (s - max).exp() / sum * v);
            }
        }
    }
}

/// p_ij and ds_ij = p_ij (d_o_i v_j - delta_i) of one pair and query head.
fn pair(q: &[f64], k: &[f64], d_o: &[f64], v: &[f64], lse: f64, delta: f64, scale: f64) -> (f64, f64) {
    let p = (dot(q, k) * scale - lse).exp();
    (p, p * (dot(d_o, v) - delta))
}

/// dq_i = sum_j ds_ij k_j / sqrt(d), of a block's queries.
pub fn reference_backward_q(
    dq: &mut [f64],
    d_o: &[f64],
    q: &[f64],
    k: &[f64],
    v: &[f64],
    lse: &[f64],
    delta: &[f64],
    heads: Heads,
    block: &Block,
) {
    dq.fill(0.0);
    for i in 0..block.rows.len() {
        for h in 0..heads.q {
            let at = i * heads.q + h;
            let (q, d_o) = (head(q, i, h, heads.q, heads.dim), head(d_o, i, h, heads.q, heads.dim));
            for j in seen(block, i) {
                let kv = h / heads.group();
                let (k, v) = (head(k, j, kv, heads.kv, heads.dim), head(v, j, kv, heads.kv, heads.dim));
                let (_, ds) = pair(q, k, d_o, v, lse[at], delta[at], heads.scale());
                let dq = &mut dq[at * heads.dim..][..heads.dim];
                dq.iter_mut().zip(k).for_each(|(dq, k)| *dq += ds * k * heads.scale());
            }
        }
    }
}

/// dk_j = sum_i ds_ij q_i / sqrt(d) and dv_j = sum_i p_ij d_o_i, of a block's keys, over queries and query heads.
pub fn reference_backward_kv(
    dk: &mut [f64],
    dv: &mut [f64],
    d_o: &[f64],
    q: &[f64],
    k: &[f64],
    v: &[f64],
    lse: &[f64],
    delta: &[f64],
    heads: Heads,
    block: &KeyBlock,
) {
    dk.fill(0.0);
    dv.fill(0.0);
    for (at, j) in block.keys.clone().enumerate() {
        let causal = block.causal.clone().filter(|&i| j <= block.rows[i as usize]);
        for i in causal.chain(block.whole.clone()).map(|i| i as usize) {
            for h in 0..heads.q {
                let (j, kv, row) = (j as usize, h / heads.group(), i * heads.q + h);
                let (q, d_o) = (head(q, i, h, heads.q, heads.dim), head(d_o, i, h, heads.q, heads.dim));
                let (k, v) = (head(k, j, kv, heads.kv, heads.dim), head(v, j, kv, heads.kv, heads.dim));
                let (p, ds) = pair(q, k, d_o, v, lse[row], delta[row], heads.scale());
                let out = (at * heads.kv + kv) * heads.dim;
                for c in 0..heads.dim {
                    dk[out + c] += ds * q[c] * heads.scale();
                    dv[out + c] += p * d_o[c];
                }
            }
        }
    }
}
