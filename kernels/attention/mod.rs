//! Attention over the token forest: o_i = sum_j p_ij v_j, p_ij = e^(q_i k_j / sqrt(d) - lse_i), over the keys j that i sees
//!                                              Vaswani et al. 2017 (arXiv 1706.03762), eq. 1; tiles as Dao 2023 (2307.08691)
//!
//! A query sees whole ranges of keys (its span's ancestors) and the earlier keys of its own span. Nothing here knows spans:
//! a caller cuts them into blocks of query rows, or of key rows, and gives each block its ranges.
//!
//! ```text
//! shapes   q, o [n, H d]; lse, delta [n, H]; k, v [key rows, K d]; query head h reads key head h / (H / K)
//! types    operands E; sums, lse, delta, dq, dk Real; o, dv E
//! rounding scores and sums in Real. In bf16, P and dS are rounded to bf16 before the second product, as matrix units would;
//!          P unnormalised (e^(s - running maximum)), its sum before rounding. One rounding at each output
//!          On avx512bf16 and neonbf16 products over the head take pairs (vdpbf16ps and bfdot, which flush denormals), on amx 32
//!          values; delta
//!          too, so that a row that sees one key still has dS = 0 exactly
//! order    keys as one sequence (ancestors, then own) in tiles of 48 from its start; each output element is one chain of
//!          multiply-adds in that order (fused but in the portable form). So a row's bits depend on its keys alone: not on
//!          n, on the rows beside it, nor on how the ranges are cut. A key's bits depend on its queries alone, in order
//!          On CUDA tiles are 64 key rows as they lie and 64 queries, sums by 16: bits depend on those places too
//! alias    none. Keys that a query does not see never reach it, not even as 0 * NaN
//! cost     forward 4 d operations per head and visible pair, backward 6 d (dq) + 8 d (dk, dv); scratch is O(tile), never
//!          T x T. The work is small products (product.rs) of f32 tiles widened once per key head, or of pairs of bf16
//! used by  model: every block
//! ```

#[cfg(target_arch = "x86_64")]
mod amx;
mod backward;
pub mod cuda;
mod forms;
mod forward;
mod lanes;
#[cfg(target_arch = "aarch64")]
mod neon;
mod product;
mod reference;
mod scratch;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use forms::Forms;
pub use reference::{reference, reference_backward_kv, reference_backward_q};

use crate::{Elem, Kernels};
use std::ops::Range;

/// How the heads lie in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// H, query heads; a multiple of `kv`.
    pub q: usize,
    /// K, key and value heads.
    pub kv: usize,
    /// d, values of one head. Scores are scaled by 1 / sqrt(d).
    pub dim: usize,
}

impl Heads {
    /// Query heads that share a key head.
    pub fn group(&self) -> usize {
        self.q / self.kv
    }
    fn q_row(&self) -> usize {
        self.q * self.dim
    }
    fn kv_row(&self) -> usize {
        self.kv * self.dim
    }
    /// 1 / sqrt(d).
    fn scale(&self) -> f64 {
        1.0 / (self.dim as f64).sqrt()
    }
}

/// Query rows of one span, and the keys that they see.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// Key rows that every query of the block sees, in order.
    pub ancestors: &'a [Range<u32>],
    /// The span's first key row.
    pub own: u32,
    /// Per query: its own key row, ascending. Query i also sees key rows `own..=rows[i]`.
    pub rows: &'a [u32],
}

/// Key rows of one span, and the queries that see them.
#[derive(Clone, Debug)]
pub struct KeyBlock<'a> {
    /// The key rows. Best a tile of 32 to 64.
    pub keys: Range<u32>,
    /// Queries of the same span, as indices of rows of q: query i sees key j if j <= rows\[i\]. Their rows ascend.
    pub causal: Range<u32>,
    /// Queries of descendant spans, as indices of rows of q: each sees every key of the block.
    pub whole: Range<u32>,
    /// Per query of the call: its own key row.
    pub rows: &'a [u32],
}

impl<E: Elem> Kernels<E> {
    /// o and lse of one block of queries, every head.
    ///
    /// o, q \[n, H d\] and lse \[n, H\] hold the block's queries only; k, v \[key rows, K d\] all keys. `scratch` is grown to
    /// what the call needs and keeps nothing between calls. Panics where a length or a range disagrees.
    pub fn attention(
        &self,
        o: &mut [E],
        lse: &mut [E::Real],
        q: &[E],
        k: &[E],
        v: &[E],
        heads: Heads,
        block: &Block,
        scratch: &mut Vec<E::Real>,
    ) {
        check_queries(heads, block.rows.len(), q.len(), lse.len());
        check_keys(heads, k.len(), v.len(), last_key(block));
        check_block(block);
        assert!(o.len() == q.len(), "attention: o and q have one length");
        // SAFETY: this table's level is one that the machine has; the ranges lie inside k and v.
        unsafe { (self.attention.forward)(o, lse, q, k, v, heads, block, scratch) }
    }

    /// delta\[i, h\] = sum over the head of d_o * o, which both backward passes take.
    ///
    /// delta \[n, H\]; d_o, o \[n, H d\]. Panics where a length disagrees.
    pub fn attention_delta(&self, delta: &mut [E::Real], d_o: &[E], o: &[E], heads: Heads) {
        assert!(heads.dim > 0 && o.len() == d_o.len(), "attention_delta: d_o and o have one length");
        assert!(delta.len() * heads.dim == o.len(), "attention_delta: delta has a value per head");
        // SAFETY: this table's level is one that the machine has.
        unsafe { (self.attention.delta)(delta, d_o, o, heads) }
    }

    /// dq of one block of queries, overwritten.
    ///
    /// dq, d_o, q \[n, H d\] and lse, delta \[n, H\] hold the block's queries only; k, v \[key rows, K d\] all keys. Panics
    /// where a length or a range disagrees.
    pub fn attention_backward_q(
        &self,
        dq: &mut [E::Real],
        d_o: &[E],
        q: &[E],
        k: &[E],
        v: &[E],
        lse: &[E::Real],
        delta: &[E::Real],
        heads: Heads,
        block: &Block,
        scratch: &mut Vec<E::Real>,
    ) {
        check_queries(heads, block.rows.len(), q.len(), lse.len());
        check_keys(heads, k.len(), v.len(), last_key(block));
        check_block(block);
        assert!(dq.len() == q.len() && d_o.len() == q.len(), "attention_backward_q: dq, d_o and q have one length");
        assert!(delta.len() == lse.len(), "attention_backward_q: delta and lse have one length");
        // SAFETY: this table's level is one that the machine has; the ranges lie inside k and v.
        unsafe { (self.attention.backward_q)(dq, d_o, q, k, v, lse, delta, heads, block, scratch) }
    }

    /// dk and dv of one block of keys, overwritten: the sum over every query that sees them, causal ones first.
    ///
    /// dk, dv \[keys, K d\] hold the block's keys only; d_o, q \[n, H d\], lse, delta \[n, H\] all queries; k, v all keys.
    /// Panics where a length or a range disagrees.
    pub fn attention_backward_kv(
        &self,
        dk: &mut [E::Real],
        dv: &mut [E],
        d_o: &[E],
        q: &[E],
        k: &[E],
        v: &[E],
        lse: &[E::Real],
        delta: &[E::Real],
        heads: Heads,
        block: &KeyBlock,
        scratch: &mut Vec<E::Real>,
    ) {
        check_queries(heads, block.rows.len(), q.len(), lse.len());
        check_keys(heads, k.len(), v.len(), block.keys.end as usize);
        check_key_block(block);
        assert!(d_o.len() == q.len() && delta.len() == lse.len(), "attention_backward_kv: d_o as q, delta as lse");
        let keys = block.keys.len() * heads.kv_row();
        assert!(dk.len() == keys && dv.len() == keys, "attention_backward_kv: dk and dv hold the block's keys");
        // SAFETY: this table's level is one that the machine has; the ranges lie inside k, v and the queries.
        unsafe { (self.attention.backward_kv)(dk, dv, d_o, q, k, v, lse, delta, heads, block, scratch) }
    }
}

fn check_queries(heads: Heads, n: usize, q: usize, lse: usize) {
    assert!(heads.dim > 0 && heads.kv > 0 && heads.q.is_multiple_of(heads.kv), "attention: {heads:?} do not group");
    assert!(q == n * heads.q_row() && lse == n * heads.q, "attention: q of {q} and lse of {lse} for {n} queries");
}

fn check_keys(heads: Heads, k: usize, v: usize, end: usize) {
    assert!(k == v, "attention: k and v have one length");
    assert!(end * heads.kv_row() <= k, "attention: key row {end} is past the end of {k} values");
}

/// One past the last key row that a block reads.
fn last_key(block: &Block) -> usize {
    let own = block.rows.last().map_or(0, |row| *row as usize + 1);
    block.ancestors.iter().fold(own, |end, range| end.max(range.end as usize))
}

fn check_block(block: &Block) {
    assert!(block.rows.is_sorted(), "attention: the block's rows do not ascend");
    assert!(block.rows.first().is_none_or(|row| *row >= block.own), "attention: a row lies before its span");
}

fn check_key_block(block: &KeyBlock) {
    let n = block.rows.len();
    let inside = |range: &Range<u32>| range.is_empty() || range.end as usize <= n;
    assert!(inside(&block.causal) && inside(&block.whole), "attention: a range of queries is past the end of {n}");
    let causal = if block.causal.is_empty() { 0..0 } else { block.causal.start as usize..block.causal.end as usize };
    assert!(block.rows[causal].is_sorted(), "attention: the causal rows do not ascend");
}
