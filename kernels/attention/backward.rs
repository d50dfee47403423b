//! The two backward passes: dq of a block of queries over its keys, dk and dv of a block of keys over its queries.
//! Both recompute P from lse; neither needs the other, so that no sum is shared between threads.

use super::forward::{Sequence, TILE, head_of, key_head, lay, store, transpose, turn};
use super::lanes::{Single, Unit};
use super::product::{Left, Out, Products, Right, Span};
use super::scratch::{PAD, buffers, padded};
use super::{Block, Heads, KeyBlock};
use crate::{Elem, Real};
use std::ops::Range;

/// Rows (query, head of the group) that a block of keys takes at once.
const ROWS: usize = 48;

/// P and dS of one pair, rounded to E.
#[inline(always)]
fn pair<E: Elem>(s: E::Real, dp: E::Real, lse: E::Real, delta: E::Real, scale: E::Real) -> (E::Real, E::Real) {
    let p = Real::exp(s * scale - lse);
    (E::narrow(p).widen(), E::narrow(p * (dp - delta)).widen())
}

/// One key under many rows: scores become dS.
#[inline(always)]
fn pairs_of_key<E: Elem>(s: &mut [E::Real], dp: &[E::Real], lse: &[E::Real], delta: &[E::Real], scale: E::Real) {
    for (((s, dp), lse), delta) in s.iter_mut().zip(dp).zip(lse).zip(delta) {
        *s = pair::<E>(*s, *dp, *lse, *delta, scale).1;
    }
}

/// One row over many keys: scores become P, and d_o v becomes dS.
#[inline(always)]
fn pairs_of_query<E: Elem>(s: &mut [E::Real], dp: &mut [E::Real], lse: E::Real, delta: E::Real, scale: E::Real) {
    for (s, dp) in s.iter_mut().zip(dp) {
        (*s, *dp) = pair::<E>(*s, *dp, lse, delta, scale);
    }
}

/// dq of a block, every head.
#[inline(always)]
pub(super) fn backward_q<E: Elem, U: Unit<E>>(
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
    products: &Products<E::Real>,
) {
    let rows = block.rows.len() * heads.group();
    if rows == 0 {
        return;
    }
    let (lanes, dim, units) = (padded(rows), padded(heads.dim), U::count(heads.dim));
    let (wide, tall) = (units * lanes, TILE * padded(units));
    let lens = [wide, wide, TILE * lanes, TILE * lanes, TILE * dim, tall, tall, rows * dim, lanes, lanes];
    let [queries, d_outs, scores, d_probs, keys, key_units, values, sums, row_lse, row_delta] = buffers(scratch, lens);
    let scale = E::Real::from_f64(heads.scale());
    let mut order = [0; TILE];
    for head in 0..heads.kv {
        transpose::<E, U>(queries, lanes, q, heads, head);
        transpose::<E, U>(d_outs, lanes, d_o, heads, head);
        for row in 0..rows {
            let at = head_of(row, head, heads);
            (row_lse[row], row_delta[row]) = (lse[at], delta[at]);
        }
        sums.fill(E::Real::ZERO);
        let mut sequence = Sequence::of(block);
        while let Some(tile) = sequence.fill(&mut order) {
            for (i, j) in order[..tile.len].iter().enumerate() {
                lay_both::<E, U>(keys, key_units, i, key_head(k, *j as usize, heads, head));
                lay::<E, U>(values, i, key_head(v, *j as usize, heads, head));
            }
            let out = |values| Out { values, row: lanes, rows: tile.len, width: lanes };
            let left = |values| Left { values, row: padded(units), term: 1 };
            products.set(
                out(scores),
                left(units_of::<E, U>(keys, key_units)),
                Right { values: queries, row: lanes },
                units,
            );
            products.set(out(d_probs), left(values), Right { values: d_outs, row: lanes }, units);
            for (s, dp) in scores.chunks_exact_mut(lanes).zip(d_probs.chunks_exact(lanes)).take(tile.len) {
                pairs_of_key::<E>(s, dp, row_lse, row_delta, scale);
            }
            let out = Out { values: sums, row: dim, rows, width: dim };
            let factor = Left { values: scores, row: 1, term: lanes };
            let seen = |row| (0, tile.seen(block, row / heads.group()));
            let span: Span = if tile.is_whole() { None } else { Some(&seen) };
            products.add(out, factor, Right { values: keys, row: dim }, tile.len, span);
        }
        for (row, sums) in sums.chunks_exact(dim).enumerate().take(rows) {
            store(&mut dq[head_of(row, head, heads) * heads.dim..][..heads.dim], sums, scale);
        }
    }
}

/// dk and dv of a block of keys, every head.
#[inline(always)]
pub(super) fn backward_kv<E: Elem, U: Unit<E>>(
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
    products: &Products<E::Real>,
) {
    let n = block.keys.len();
    if n == 0 {
        return;
    }
    let (lanes, dim, units) = (padded(n), padded(heads.dim), U::count(heads.dim));
    let most = queries_at_once(heads) * heads.group();
    let (wide, tall, short) = (units * lanes, most * dim, most * padded(units));
    let lens = [wide, wide, most * lanes, most * lanes, tall, short, tall, short, n * dim, n * dim];
    let [keys, values, probs, d_scores, queries, query_units, d_outs, d_out_units, key_sums, value_sums] =
        buffers(scratch, lens);
    let scale = E::Real::from_f64(heads.scale());
    for head in 0..heads.kv {
        turn_keys::<E, U>(keys, lanes, k, heads, head, &block.keys);
        turn_keys::<E, U>(values, lanes, v, heads, head, &block.keys);
        key_sums.fill(E::Real::ZERO);
        value_sums.fill(E::Real::ZERO);
        for (part, causal) in parts(block, heads) {
            let rows = part.len() * heads.group();
            for row in 0..rows {
                let at = head_of(row + part.start * heads.group(), head, heads) * heads.dim;
                lay_both::<E, U>(queries, query_units, row, &q[at..][..heads.dim]);
                lay_both::<E, U>(d_outs, d_out_units, row, &d_o[at..][..heads.dim]);
            }
            let out = |values| Out { values, row: lanes, rows, width: lanes };
            let left = |values| Left { values, row: padded(units), term: 1 };
            let (q_left, d_left) = (units_of::<E, U>(queries, query_units), units_of::<E, U>(d_outs, d_out_units));
            products.set(out(probs), left(q_left), Right { values: keys, row: lanes }, units);
            products.set(out(d_scores), left(d_left), Right { values, row: lanes }, units);
            let pairs = probs.chunks_exact_mut(lanes).zip(d_scores.chunks_exact_mut(lanes));
            for (row, (s, dp)) in pairs.enumerate().take(rows) {
                let at = head_of(row + part.start * heads.group(), head, heads);
                pairs_of_query::<E>(s, dp, lse[at], delta[at], scale);
            }
            let seen_by = &block.rows[part];
            let sighted = |at: usize| {
                let key = block.keys.start + at as u32;
                (seen_by.partition_point(|row| *row < key) * heads.group(), rows)
            };
            let all = !causal || seen_by[0] + 1 >= block.keys.end;
            let span: Span = if all { None } else { Some(&sighted) };
            let left = |values| Left { values, row: 1, term: lanes };
            let out = |values| Out { values, row: dim, rows: n, width: dim };
            products.add(out(key_sums), left(d_scores), Right { values: queries, row: dim }, rows, span);
            products.add(out(value_sums), left(probs), Right { values: d_outs, row: dim }, rows, span);
        }
        for at in 0..n {
            let to = (at * heads.kv + head) * heads.dim;
            store(&mut dk[to..][..heads.dim], &key_sums[at * dim..], scale);
            store(&mut dv[to..][..heads.dim], &value_sums[at * dim..], E::Real::ONE);
        }
    }
}

/// Row `i` for a product over rows, widened, and for one over the head, in units; one buffer serves both where they agree.
#[inline(always)]
fn lay_both<E: Elem, U: Unit<E>>(wide: &mut [E::Real], units: &mut [E::Real], i: usize, from: &[E]) {
    lay::<E, Single>(wide, i, from);
    if U::VALUES > 1 {
        lay::<E, U>(units, i, from);
    }
}

/// The buffer of [`lay_both`] that holds units.
#[inline(always)]
fn units_of<'a, E: Elem, U: Unit<E>>(wide: &'a [E::Real], units: &'a [E::Real]) -> &'a [E::Real] {
    if U::VALUES > 1 { units } else { wide }
}

/// `to`[c, j] = unit c of x[key j], of one key head.
#[inline(always)]
fn turn_keys<E: Elem, U: Unit<E>>(
    to: &mut [E::Real],
    lanes: usize,
    x: &[E],
    heads: Heads,
    head: usize,
    keys: &Range<u32>,
) {
    for first in (0..keys.len()).step_by(PAD) {
        let row = |i: usize| key_head(x, keys.start as usize + first + i, heads, head);
        turn::<E, U>(&mut to[first..], lanes, PAD.min(keys.len() - first), row);
    }
}

fn queries_at_once(heads: Heads) -> usize {
    (ROWS / heads.group()).max(1)
}

/// The queries of a block of keys in runs, and whether a run is causal; causal queries before the first key are left out.
#[inline(always)]
fn parts(block: &KeyBlock, heads: Heads) -> impl Iterator<Item = (Range<usize>, bool)> {
    let step = queries_at_once(heads);
    let range = |range: &Range<u32>| range.start as usize..range.end.max(range.start) as usize;
    let (causal, whole) = (range(&block.causal), range(&block.whole));
    let blind = match block.rows.get(causal.clone()) {
        Some(rows) => rows.partition_point(|row| *row < block.keys.start),
        None => 0, // an empty range may start anywhere
    };
    let cut = move |range: Range<usize>, causal| {
        range.clone().step_by(step).map(move |at| (at..range.end.min(at + step), causal))
    };
    cut(causal.start + blind..causal.end, true).chain(cut(whole, false))
}
