//! The forward pass of one block: per key head, tiles of keys under the queries of every head that shares it.
//!
//! Rows are (query, head of the group), row = query * group + head. Scores lie transposed, [key, row]: lanes are rows, so
//! that maximum, exponential and sum need no step across lanes.

use super::lanes::{Lanes, Single, Unit};
use super::product::{Left, Out, Products, Right, Span};
use super::scratch::{PAD, buffers, padded};
use super::{Block, Heads};
use crate::{Elem, Real};
use std::ops::Range;

/// Keys in a tile: scores of 96 rows stay in the first cache.
pub(super) const TILE: usize = 48;

/// o and lse of a block, every head.
#[inline(always)]
pub(super) fn forward<E: Elem, U: Unit<E>>(
    o: &mut [E],
    lse: &mut [E::Real],
    q: &[E],
    k: &[E],
    v: &[E],
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
    let lens = [units * lanes, TILE * lanes, TILE * padded(units), TILE * dim, rows * dim, lanes, lanes, lanes];
    let [queries, scores, keys, values, outputs, max, total, decay] = buffers(scratch, lens);
    let scale = E::Real::from_f64(heads.scale());
    let mut order = [0; TILE];
    for head in 0..heads.kv {
        transpose::<E, U>(queries, lanes, q, heads, head);
        outputs.fill(E::Real::ZERO);
        total.fill(E::Real::ZERO);
        max.fill(E::Real::NEG_INFINITY);
        let mut sequence = Sequence::of(block);
        while let Some(tile) = sequence.fill(&mut order) {
            for (i, j) in order[..tile.len].iter().enumerate() {
                lay::<E, U>(keys, i, key_head(k, *j as usize, heads, head));
                lay::<E, Single>(values, i, key_head(v, *j as usize, heads, head));
            }
            let out = Out { values: scores, row: lanes, rows: tile.len, width: lanes };
            let factor = Left { values: keys, row: padded(units), term: 1 };
            products.set(out, factor, Right { values: queries, row: lanes }, units);
            let blind = |first: &mut usize, j| blind_rows(first, j, &tile, block, heads.group());
            soften::<E>(&mut scores[..tile.len * lanes], max, total, decay, scale, blind);
            for (output, decay) in outputs.chunks_exact_mut(dim).zip(&*decay) {
                output.iter_mut().for_each(|x| *x *= *decay);
            }
            let out = Out { values: outputs, row: dim, rows, width: dim };
            let factor = Left { values: scores, row: 1, term: lanes };
            let seen = |row| (0, tile.seen(block, row / heads.group()));
            let span: Span = if tile.is_whole() { None } else { Some(&seen) };
            products.add(out, factor, Right { values, row: dim }, tile.len, span);
        }
        for (row, output) in outputs.chunks_exact(dim).enumerate().take(rows) {
            let at = head_of(row, head, heads);
            lse[at] = max[row] * scale + Real::ln(total[row]);
            store(&mut o[at * heads.dim..][..heads.dim], output, E::Real::ONE / total[row]);
        }
    }
}

/// o = narrow(x * by).
#[inline(always)]
pub(super) fn store<E: Elem>(o: &mut [E], x: &[E::Real], by: E::Real) {
    for (o, x) in o.iter_mut().zip(x) {
        *o = E::narrow(*x * by);
    }
}

/// Index of row (query, head of the group) among all heads of all queries.
#[inline(always)]
pub(super) fn head_of(row: usize, head: usize, heads: Heads) -> usize {
    row / heads.group() * heads.q + head * heads.group() + row % heads.group()
}

/// Head `head` of row `j` of k or v.
#[inline(always)]
pub(super) fn key_head<E>(x: &[E], j: usize, heads: Heads, head: usize) -> &[E] {
    &x[j * heads.kv_row() + head * heads.dim..][..heads.dim]
}

/// `to`[c, row] = unit c of x[row], of the query heads that share key head `head`.
#[inline(always)]
pub(super) fn transpose<E: Elem, U: Unit<E>>(to: &mut [E::Real], lanes: usize, x: &[E], heads: Heads, head: usize) {
    let rows = x.len() / heads.q_row() * heads.group();
    for first in (0..rows).step_by(PAD) {
        let row = |i: usize| &x[head_of(first + i, head, heads) * heads.dim..][..heads.dim];
        turn::<E, U>(&mut to[first..], lanes, PAD.min(rows - first), row);
    }
}

/// `to`[c, i] = unit c of row(i), at most PAD rows, `lanes` apart: by squares that fit in registers, where the strides are
/// known.
#[inline(always)]
pub(super) fn turn<'a, E: Elem, U: Unit<E>>(
    to: &mut [E::Real],
    lanes: usize,
    rows: usize,
    row: impl Fn(usize) -> &'a [E],
) {
    let side = PAD * U::VALUES;
    let dim = if rows > 0 { row(0).len() } else { 0 };
    for c in (0..dim).step_by(side) {
        let len = side.min(dim - c);
        let mut square = [[E::Real::ZERO; PAD]; PAD];
        for (i, square) in square.iter_mut().enumerate().take(rows) {
            let from = &row(i)[c..c + len];
            // the common length is known to the compiler
            if len == side { U::lay(square, &from[..side]) } else { U::lay(square, from) }
        }
        for w in 0..U::count(len) {
            let to = &mut to[(c / U::VALUES + w) * lanes..][..PAD];
            for i in 0..PAD {
                to[i] = square[i][w];
            }
        }
    }
}

/// The keys that a block's last query sees, in order; every tile is filled across the ranges.
pub(super) struct Sequence<'a> {
    ancestors: &'a [Range<u32>],
    run: Range<u32>,
    own: Option<Range<u32>>,
    /// Keys that came before.
    start: usize,
    /// Keys before the span's own.
    shared: usize,
}

/// Keys `start..start + len` of a sequence.
pub(super) struct Tile {
    pub start: usize,
    pub len: usize,
    shared: usize,
}

impl<'a> Sequence<'a> {
    #[inline(always)]
    pub fn of(block: &Block<'a>) -> Self {
        let own = block.rows.last().map(|last| block.own..*last + 1);
        let shared = block.ancestors.iter().map(ExactSizeIterator::len).sum();
        Self { ancestors: block.ancestors, run: 0..0, own, start: 0, shared }
    }

    /// The next run of at most `most` neighbouring keys.
    #[inline(always)]
    fn next(&mut self, most: usize) -> Option<Range<u32>> {
        while self.run.is_empty() {
            self.run = match self.ancestors.split_first() {
                Some((first, rest)) => {
                    self.ancestors = rest;
                    first.clone()
                }
                None => self.own.take()?,
            };
        }
        let end = self.run.end.min(self.run.start.saturating_add(most as u32));
        let run = self.run.start..end;
        self.run.start = end;
        Some(run)
    }

    /// Writes the next TILE keys to `order`, or as many as are left; None after the last.
    ///
    /// A list and no closure: what a closure does is compiled without the level's instructions wherever it is not inlined.
    #[inline(always)]
    pub fn fill(&mut self, order: &mut [u32; TILE]) -> Option<Tile> {
        let mut len = 0;
        while len < TILE {
            let Some(run) = self.next(TILE - len) else { break };
            for (to, key) in order[len..].iter_mut().zip(run.clone()) {
                *to = key;
            }
            len += run.len();
        }
        let tile = Tile { start: self.start, len, shared: self.shared };
        self.start += len;
        (len > 0).then_some(tile)
    }
}

/// Units of `from` as row `i` of `to`, the padding zeroed: it is multiplied and must stay finite.
#[inline(always)]
pub(super) fn lay<E: Elem, U: Unit<E>>(to: &mut [E::Real], i: usize, from: &[E]) {
    let (units, row) = (U::count(from.len()), padded(U::count(from.len())));
    let to = &mut to[i * row..][..row];
    to[units..].fill(E::Real::ZERO);
    U::lay(to, from);
}

impl Tile {
    /// Only keys that every query of the block sees.
    #[inline(always)]
    pub fn is_whole(&self) -> bool {
        self.start + self.len <= self.shared
    }

    /// How many of the tile's keys query `i` of the block sees.
    #[inline(always)]
    pub fn seen(&self, block: &Block, i: usize) -> usize {
        if self.is_whole() {
            return self.len;
        }
        let sees = self.shared + (block.rows[i] - block.own) as usize + 1;
        sees.saturating_sub(self.start).min(self.len)
    }
}

/// The rows that do not see key `j` of the tile: rows ascend, so that they are a first few. Keys come in order and `i`, the
/// first query that sees one, only grows.
#[inline(always)]
fn blind_rows(i: &mut usize, j: usize, tile: &Tile, block: &Block, group: usize) -> usize {
    while *i < block.rows.len() && tile.seen(block, *i) <= j {
        *i += 1;
    }
    *i * group
}

/// One step of the online softmax, per row: max and total take in the tile, `decay` is what older sums are multiplied by,
/// and the scores become e^((score - max) scale), rounded to E. Scores that a row does not see are left as they are.
#[inline(always)]
fn soften<E: Elem>(
    scores: &mut [E::Real],
    max: &mut [E::Real],
    total: &mut [E::Real],
    decay: &mut [E::Real],
    scale: E::Real,
    blind: impl Fn(&mut usize, usize) -> usize,
) {
    let lanes = max.len();
    decay.copy_from_slice(max);
    let mut first = 0;
    for (j, scores) in scores.chunks_exact(lanes).enumerate() {
        let from = blind(&mut first, j);
        for (max, s) in max[from..].iter_mut().zip(&scores[from..]) {
            *max = Real::max(*s, *max);
        }
    }
    for ((decay, max), total) in decay.iter_mut().zip(&*max).zip(total.iter_mut()) {
        *decay = Real::exp((*decay - shift(*max)) * scale);
        *total *= *decay;
    }
    let mut first = 0;
    for (j, scores) in scores.chunks_exact_mut(lanes).enumerate() {
        let from = blind(&mut first, j);
        let rows = scores[from..].iter_mut().zip(&max[from..]).zip(&mut total[from..]);
        for ((s, max), total) in rows {
            let p = Real::exp((*s - shift(*max)) * scale);
            *total += p;
            *s = E::narrow(p).widen();
        }
    }
}

/// A row without a finite score yet is not shifted: infinity minus infinity would be NaN.
#[inline(always)]
fn shift<R: Real>(max: R) -> R {
    if max > R::NEG_INFINITY { max } else { R::ZERO }
}

/// delta[i, h] = sum over the head of d_o * o: the chain of multiply-adds in which d_o * v is summed, so that for a row that
/// sees one key, o = v, the difference of the two is zero.
#[inline(always)]
pub(super) fn delta<E: Elem, U: Unit<E>, S: Lanes<E::Real>>(delta: &mut [E::Real], d_o: &[E], o: &[E], heads: Heads) {
    let side = PAD * U::VALUES;
    let units = d_o.chunks(PAD * heads.dim).zip(o.chunks(PAD * heads.dim));
    for (delta, (d_o, o)) in delta.chunks_mut(PAD).zip(units) {
        let [mut a, mut b] = [[E::Real::ZERO; PAD * PAD]; 2];
        let mut sums = [E::Real::ZERO; PAD];
        for c in (0..heads.dim).step_by(side) {
            let len = side.min(heads.dim - c);
            turn::<E, U>(&mut a, PAD, delta.len(), |i| &d_o[i * heads.dim + c..][..len]);
            turn::<E, U>(&mut b, PAD, delta.len(), |i| &o[i * heads.dim + c..][..len]);
            for (a, b) in a.chunks_exact(PAD).zip(b.chunks_exact(PAD)).take(U::count(len)) {
                for i in (0..PAD).step_by(S::WIDTH) {
                    // SAFETY: i + WIDTH is at most PAD, which every row has; the level is the caller's to have.
                    unsafe {
                        let (a, b) = (S::load(a[i..].as_ptr()), S::load(b[i..].as_ptr()));
                        S::load(sums[i..].as_ptr()).add_product(a, b).store(sums[i..].as_mut_ptr());
                    }
                }
            }
        }
        delta.copy_from_slice(&sums[..delta.len()]);
    }
}
