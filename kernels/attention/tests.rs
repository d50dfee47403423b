//! What attention must do, over the blocks of small forests, at every level and type.

use super::*;
use crate::proof::{inner, is_the_slope, wide};
use crate::testing::{Random, check, same_bits};
use crate::{Isa, Real};
use half::bf16;

/// A forest whose spans lie in depth-first order, so that a span's descendants follow it.
pub(super) struct Forest {
    /// (parent, key rows).
    pub(super) spans: Vec<(Option<usize>, Range<u32>)>,
    /// The key rows that have a query, ascending.
    pub(super) rows: Vec<u32>,
}

impl Forest {
    /// Spans of (parent, length), after `cached` key rows that no span holds; every `every`th token has a query.
    pub(super) fn new(cached: u32, spans: &[(Option<usize>, u32)], every: usize) -> Self {
        let mut at = cached;
        let place = |&(parent, len): &(Option<usize>, u32)| {
            at += len;
            (parent, at - len..at)
        };
        let spans: Vec<_> = spans.iter().map(place).collect();
        Self { spans, rows: (cached..at).step_by(every).collect() }
    }

    pub(super) fn key_rows(&self) -> usize {
        self.spans.last().map_or(0, |(_, keys)| keys.end as usize)
    }

    /// The ranges of a span's ancestors, root first.
    fn ancestors(&self, span: usize) -> Vec<Range<u32>> {
        let parents = std::iter::successors(self.spans[span].0, |&span| self.spans[span].0);
        let mut ranges: Vec<_> = parents.map(|span| self.spans[span].1.clone()).collect();
        ranges.reverse();
        ranges
    }

    /// Indices of the queries in a range of key rows.
    pub(super) fn queries(&self, keys: &Range<u32>) -> Range<usize> {
        self.rows.partition_point(|row| *row < keys.start)..self.rows.partition_point(|row| *row < keys.end)
    }

    /// The key rows of all descendants.
    pub(super) fn below(&self, span: usize) -> Range<u32> {
        let is_below = |other: &usize| {
            std::iter::successors(self.spans[*other].0, |&span| self.spans[span].0).any(|above| above == span)
        };
        let end = (0..self.spans.len()).rfind(is_below).map_or(self.spans[span].1.end, |last| self.spans[last].1.end);
        self.spans[span].1.end..end
    }

    /// `work` on every block of at most `most` queries, with the indices of its queries.
    fn each_block(&self, most: usize, mut work: impl FnMut(Range<usize>, &Block)) {
        for (span, (_, keys)) in self.spans.iter().enumerate() {
            let (ancestors, queries) = (self.ancestors(span), self.queries(keys));
            for start in queries.clone().step_by(most) {
                let part = start..queries.end.min(start + most);
                work(part.clone(), &Block { ancestors: &ancestors, own: keys.start, rows: &self.rows[part] });
            }
        }
    }

    /// `work` on every block of at most `most` key rows.
    fn each_key_block(&self, most: u32, mut work: impl FnMut(&KeyBlock)) {
        let range = |queries: Range<usize>| queries.start as u32..queries.end as u32;
        for (span, (_, keys)) in self.spans.iter().enumerate() {
            let (causal, whole) = (range(self.queries(keys)), range(self.queries(&self.below(span))));
            for start in keys.clone().step_by(most as usize) {
                let keys = start..keys.end.min(start + most);
                work(&KeyBlock { keys, causal: causal.clone(), whole: whole.clone(), rows: &self.rows });
            }
        }
    }
}

/// One forest's operands.
pub(super) struct Case<E: Elem> {
    pub(super) forest: Forest,
    pub(super) heads: Heads,
    pub(super) q: Vec<E>,
    pub(super) k: Vec<E>,
    pub(super) v: Vec<E>,
    pub(super) d_o: Vec<E>,
}

/// What a case's passes give, in one type: queries' values for the queries, keys' for all key rows.
#[derive(Clone)]
pub(super) struct Results<E: Elem> {
    pub(super) o: Vec<E>,
    pub(super) lse: Vec<E::Real>,
    pub(super) dq: Vec<E::Real>,
    pub(super) dk: Vec<E::Real>,
    pub(super) dv: Vec<E>,
}

impl<E: Elem> Case<E> {
    pub(super) fn new(forest: Forest, heads: Heads) -> Self {
        let mut random = Random::new((forest.key_rows() * 1000 + heads.dim) as u64);
        let (queries, keys) = (forest.rows.len() * heads.q_row(), forest.key_rows() * heads.kv_row());
        // Twice the unit range, so that scores spread over e^-4..e^4 and more and the softmax is not flat.
        let spread = E::Real::from_f64(2.0);
        let [q, d_o]: [Vec<E>; 2] = std::array::from_fn(|_| random.vec(queries));
        let q = q.iter().map(|q| E::narrow(q.widen() * spread)).collect();
        let [k, v]: [Vec<E>; 2] = std::array::from_fn(|_| random.vec(keys));
        Self { forest, heads, q, k, v, d_o }
    }

    pub(super) fn wide(&self) -> Case<f64> {
        let forest = Forest { spans: self.forest.spans.clone(), rows: self.forest.rows.clone() };
        Case { forest, heads: self.heads, q: wide(&self.q), k: wide(&self.k), v: wide(&self.v), d_o: wide(&self.d_o) }
    }

    fn zeros(&self) -> Results<E> {
        let heads = self.forest.rows.len() * self.heads.q;
        Results {
            o: vec![E::default(); self.q.len()],
            lse: vec![E::Real::ZERO; heads],
            dq: vec![E::Real::ZERO; self.q.len()],
            dk: vec![E::Real::ZERO; self.k.len()],
            dv: vec![E::default(); self.v.len()],
        }
    }

    /// The form of `isa`, blocks of at most `most` queries; backward from `given`'s o and lse.
    fn run(&self, isa: Isa, most: usize, given: Option<&Results<E>>) -> Results<E> {
        let (kernels, heads, mut r, mut scratch) = (E::kernels(isa), self.heads, self.zeros(), Vec::new());
        self.forest.each_block(most, |at, block| {
            let (x, l) = (at.start * heads.q_row()..at.end * heads.q_row(), at.start * heads.q..at.end * heads.q);
            let (o, lse) = (&mut r.o[x.clone()], &mut r.lse[l]);
            kernels.attention(o, lse, &self.q[x], &self.k, &self.v, heads, block, &mut scratch);
        });
        let (o, lse) = given.map_or((&r.o, &r.lse), |given| (&given.o, &given.lse));
        let mut delta = vec![E::Real::ZERO; lse.len()];
        kernels.attention_delta(&mut delta, &self.d_o, o, heads);
        self.forest.each_block(most, |at, block| {
            let (x, l) = (at.start * heads.q_row()..at.end * heads.q_row(), at.start * heads.q..at.end * heads.q);
            let (dq, d_o, q, lse, delta) =
                (&mut r.dq[x.clone()], &self.d_o[x.clone()], &self.q[x], &lse[l.clone()], &delta[l]);
            kernels.attention_backward_q(dq, d_o, q, &self.k, &self.v, lse, delta, heads, block, &mut scratch);
        });
        self.forest.each_key_block(most as u32 + 7, |block| {
            let x = block.keys.start as usize * heads.kv_row()..block.keys.end as usize * heads.kv_row();
            let (dk, dv) = (&mut r.dk[x.clone()], &mut r.dv[x]);
            let (q, k, v) = (&self.q, &self.k, &self.v);
            kernels.attention_backward_kv(dk, dv, &self.d_o, q, k, v, lse, &delta, heads, block, &mut scratch);
        });
        r
    }

    /// The key rows that query `i` sees: the forest's definition, without blocks.
    fn seen(&self, i: usize) -> Vec<usize> {
        let row = self.forest.rows[i];
        let span = self.forest.spans.iter().position(|(_, keys)| keys.contains(&row)).unwrap();
        let own = self.forest.spans[span].1.start..row + 1;
        self.forest.ancestors(span).into_iter().chain([own]).flatten().map(|j| j as usize).collect()
    }

    /// The plain implementation: whole score rows, sequential sums in Real, the types' own exponential, P and dS rounded to E, one rounding at each
    /// output; backward from `given`'s o and lse.
    pub(super) fn plain(&self, given: &Results<E>) -> Results<E> {
        let (heads, zero, mut r) = (self.heads, E::Real::ZERO, self.zeros());
        let scale = E::Real::from_f64(heads.scale());
        let dot = |a: &[E], b: &[E]| {
            let mut sum = zero;
            a.iter().zip(b).for_each(|(a, b)| sum += a.widen() * b.widen());
            sum
        };
        let (mut dk, mut dv) = (vec![zero; self.k.len()], vec![zero; self.v.len()]);
        for at in 0..r.lse.len() {
            let (i, h, d) = (at / heads.q, at % heads.q, heads.dim);
            let x = at * d..(at + 1) * d;
            let key = |j: usize| (j * heads.kv + h / heads.group()) * d;
            let delta = dot(&self.d_o[x.clone()], &given.o[x.clone()]);
            let seen = self.seen(i);
            let s: Vec<_> = seen.iter().map(|&j| dot(&self.q[x.clone()], &self.k[key(j)..][..d]) * scale).collect();
            let max = s.iter().fold(E::Real::NEG_INFINITY, |a, &s| Real::max(a, s));
            let mut total = zero;
            s.iter().for_each(|&s| total += Real::exp(s - max));
            r.lse[at] = max + Real::ln(total);
            let (mut o, mut dq) = (vec![zero; d], vec![zero; d]);
            for (&j, &s) in seen.iter().zip(&s) {
                let rounded = E::narrow(Real::exp(s - max)).widen();
                let p = Real::exp(s - given.lse[at]);
                let dp = dot(&self.d_o[x.clone()], &self.v[key(j)..][..d]);
                let (ds, p) = (E::narrow(p * (dp - delta)).widen(), E::narrow(p).widen());
                for c in 0..d {
                    o[c] += rounded * self.v[key(j) + c].widen();
                    dq[c] += ds * self.k[key(j) + c].widen();
                    dk[key(j) + c] += ds * self.q[x.start + c].widen();
                    dv[key(j) + c] += p * self.d_o[x.start + c].widen();
                }
            }
            for c in 0..d {
                r.o[x.start + c] = E::narrow(o[c] / total);
                r.dq[x.start + c] = dq[c] * scale;
            }
        }
        r.dk = dk.iter().map(|x| *x * scale).collect();
        r.dv = dv.iter().map(|x| E::narrow(*x)).collect();
        r
    }
}

impl Case<f64> {
    /// The reference over all blocks; backward from `given`'s o and lse.
    pub(super) fn reference(&self, given: Option<&Results<f64>>) -> Results<f64> {
        let (heads, mut r) = (self.heads, self.zeros());
        self.forest.each_block(5, |at, block| {
            let (x, l) = (at.start * heads.q_row()..at.end * heads.q_row(), at.start * heads.q..at.end * heads.q);
            reference(&mut r.o[x.clone()], &mut r.lse[l], &self.q[x], &self.k, &self.v, heads, block);
        });
        let (o, lse) = given.map_or((&r.o, &r.lse), |given| (&given.o, &given.lse));
        let delta: Vec<f64> = o.chunks(heads.dim).zip(self.d_o.chunks(heads.dim)).map(|(o, d)| inner(o, d)).collect();
        self.forest.each_block(5, |at, block| {
            let (x, l) = (at.start * heads.q_row()..at.end * heads.q_row(), at.start * heads.q..at.end * heads.q);
            let (dq, d_o, q) = (&mut r.dq[x.clone()], &self.d_o[x.clone()], &self.q[x]);
            reference_backward_q(dq, d_o, q, &self.k, &self.v, &lse[l.clone()], &delta[l], heads, block);
        });
        self.forest.each_key_block(3, |block| {
            let x = block.keys.start as usize * heads.kv_row()..block.keys.end as usize * heads.kv_row();
            let (dk, dv) = (&mut r.dk[x.clone()], &mut r.dv[x]);
            reference_backward_kv(dk, dv, &self.d_o, &self.q, &self.k, &self.v, lse, &delta, heads, block);
        });
        r
    }
}

pub(super) const fn heads(q: usize, kv: usize, dim: usize) -> Heads {
    Heads { q, kv, dim }
}

/// A dialogue's shape: an instruction, a trunk of turns, a leaf after each; spans of one token; forks.
pub(super) const DIALOGUE: &[(Option<usize>, u32)] = &[
    (None, 25),
    (Some(0), 12),
    (Some(1), 7),
    (Some(1), 1),
    (Some(3), 17),
    (Some(4), 3),
    (Some(3), 1),
    (Some(6), 1),
    (None, 5),
    (Some(8), 60),
    (Some(9), 2),
];

/// Every head size and group of the contract, tile edges of keys (47, 48, 49, 96, 97) and of rows, cached keys, a subset.
fn shapes() -> Vec<(Forest, Heads)> {
    // Beside the line a root of one token and one of two: their gradients are differences near zero, where the plain
    // implementation's rounding errors cancel by its order of summation; alone they would hold a form to that luck.
    let line = |len| Forest::new(0, &[(None, 1), (None, 2), (None, len)], 1);
    let mut shapes = vec![
        (Forest::new(0, DIALOGUE, 1), heads(9, 3, 64)),
        (Forest::new(0, DIALOGUE, 1), heads(2, 2, 16)),
        (Forest::new(0, DIALOGUE, 4), heads(4, 1, 48)),
        (Forest::new(50, DIALOGUE, 3), heads(3, 1, 64)),
        (Forest::new(0, &[], 1), heads(3, 1, 16)),
    ];
    shapes.extend([3, 47, 48, 49, 96, 97].map(|len| (line(len), heads(3, 1, 16))));
    shapes.extend([2, 16, 34, 48, 64, 96, 128].map(|dim| (line(37), heads(2, 1, dim))));
    shapes
}

fn passes_the_rule<E: Elem>(forest: Forest, heads: Heads) {
    let case = Case::<E>::new(forest, heads);
    for &isa in Isa::available() {
        let forward = case.run(isa, 32, None);
        // Backward starts from the same o and lse in all three.
        let plain = case.plain(&forward);
        let given =
            Results { o: wide(&forward.o), lse: wide(&forward.lse), dq: Vec::new(), dk: Vec::new(), dv: Vec::new() };
        let want = case.wide().reference(Some(&given));
        let place = |what: &str, e| panic!("{what} {} {isa:?} {heads:?} {} keys: {e}", E::NAME, case.forest.key_rows());
        check(&forward.o, &plain.o, &want.o).unwrap_or_else(|e| place("o", e));
        check(&forward.lse, &plain.lse, &want.lse).unwrap_or_else(|e| place("lse", e));
        check(&forward.dq, &plain.dq, &want.dq).unwrap_or_else(|e| place("dq", e));
        check(&forward.dk, &plain.dk, &want.dk).unwrap_or_else(|e| place("dk", e));
        check(&forward.dv, &plain.dv, &want.dv).unwrap_or_else(|e| place("dv", e));
    }
}

#[test]
fn every_form_agrees_with_the_reference_in_f32() {
    shapes().into_iter().for_each(|(forest, heads)| passes_the_rule::<f32>(forest, heads));
}

#[test]
fn every_form_agrees_with_the_reference_in_bf16() {
    shapes().into_iter().for_each(|(forest, heads)| passes_the_rule::<bf16>(forest, heads));
}

#[test]
fn every_form_agrees_with_the_reference_in_f64() {
    shapes().into_iter().for_each(|(forest, heads)| passes_the_rule::<f64>(forest, heads));
}

#[test]
fn the_reference_sees_what_the_forest_says() {
    let case = Case::<f64>::new(Forest::new(4, DIALOGUE, 2), heads(4, 2, 6));
    let want = case.reference(None);
    let plain = case.plain(&want);
    for (got, want) in [(&plain.o, &want.o), (&plain.dq, &want.dq), (&plain.dk, &want.dk), (&plain.dv, &want.dv)] {
        assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() <= 1e-12));
    }
}

#[test]
fn the_reference_gradients_are_the_slopes_of_its_forward() {
    let small = [(None, 3), (Some(0), 2), (Some(1), 1), (Some(0), 2)];
    let case = Case::<f64>::new(Forest::new(0, &small, 1), heads(4, 2, 3));
    let loss = |case: &Case<f64>| inner(&case.reference(None).o, &case.d_o);
    let at = |which: usize, x: &[f64]| {
        let mut moved = case.wide();
        *[&mut moved.q, &mut moved.k, &mut moved.v][which] = x.to_vec();
        loss(&moved)
    };
    let got = case.reference(None);
    is_the_slope("dq", &got.dq, &case.q, |x| at(0, x)).unwrap();
    is_the_slope("dk", &got.dk, &case.k, |x| at(1, x)).unwrap();
    is_the_slope("dv", &got.dv, &case.v, |x| at(2, x)).unwrap();
}

/// <J(dx), d_o> = <dx, J^T(d_o)>: the derivative along a random direction, by differences, against the gradients.
#[test]
fn the_backward_forms_are_the_adjoint_of_the_forward_forms() {
    for &isa in Isa::available() {
        let case = Case::<f64>::new(Forest::new(0, DIALOGUE, 1), heads(6, 2, 16));
        let got = case.run(isa, 32, None);
        let mut random = Random::new(8);
        let [x, y, z]: [Vec<f64>; 3] = [case.q.len(), case.k.len(), case.v.len()].map(|len| random.vec(len));
        let along = crate::proof::slope(|h| {
            let mut moved = case.wide();
            let steps = [(&mut moved.q, &x), (&mut moved.k, &y), (&mut moved.v, &z)];
            steps.into_iter().for_each(|(to, by)| to.iter_mut().zip(by).for_each(|(to, by)| *to += h * by));
            inner(&moved.run(isa, 32, None).o, &case.d_o)
        });
        let adjoint = inner(&got.dq, &x) + inner(&got.dk, &y) + inner(&got.dv, &z);
        assert!((along - adjoint).abs() <= 1e-7 * along.abs().max(1.0), "{isa:?}: {along} and {adjoint}");
    }
}

fn bits_are_free_of_cuts<E: Elem>() {
    for &isa in Isa::available() {
        let case = Case::<E>::new(Forest::new(0, DIALOGUE, 1), heads(6, 2, 48));
        let want = case.run(isa, 32, None);
        for most in [1, 2, 5, 31, 200] {
            let got = case.run(isa, most, None);
            same_bits(&got.o, &want.o).unwrap_or_else(|e| panic!("o {isa:?} blocks of {most}: {e}"));
            same_bits(&got.lse, &want.lse).unwrap_or_else(|e| panic!("lse {isa:?} blocks of {most}: {e}"));
            same_bits(&got.dq, &want.dq).unwrap_or_else(|e| panic!("dq {isa:?} blocks of {most}: {e}"));
            same_bits(&got.dk, &want.dk).unwrap_or_else(|e| panic!("dk {isa:?} blocks of {most}: {e}"));
            same_bits(&got.dv, &want.dv).unwrap_or_else(|e| panic!("dv {isa:?} blocks of {most}: {e}"));
        }
    }
}

#[test]
fn the_bits_do_not_depend_on_how_blocks_are_cut() {
    bits_are_free_of_cuts::<f32>();
    bits_are_free_of_cuts::<bf16>();
}

#[test]
fn a_leaf_has_the_bits_of_the_same_keys_in_one_line() {
    for &isa in Isa::available() {
        let leaf = Case::<f32>::new(Forest::new(0, &[(None, 30), (Some(0), 1), (Some(1), 40)], 1), heads(3, 1, 64));
        let mut line = leaf.wide_forest(Forest::new(0, &[(None, 71)], 1));
        line.q.copy_from_slice(&leaf.q);
        let (a, b) = (leaf.run(isa, 32, None), line.run(isa, 32, None));
        same_bits(&a.o, &b.o).unwrap_or_else(|e| panic!("{isa:?}: {e}"));
        same_bits(&a.dq, &b.dq).unwrap_or_else(|e| panic!("{isa:?}: {e}"));
    }
}

impl<E: Elem> Case<E> {
    /// The same operands under another forest of as many tokens.
    fn wide_forest(&self, forest: Forest) -> Self {
        Self {
            forest,
            heads: self.heads,
            q: self.q.clone(),
            k: self.k.clone(),
            v: self.v.clone(),
            d_o: self.d_o.clone(),
        }
    }
}

/// A NaN in key row 20 of the value or key, and one in query 20: every output that sees it is NaN, and no other.
#[test]
fn nan_reaches_exactly_the_rows_that_see_it() {
    let (heads, bad) = (heads(2, 1, 16), 20);
    for &isa in Isa::available() {
        for which in 0..2 {
            let mut case = Case::<f32>::new(Forest::new(0, &[(None, 30), (Some(0), 20), (Some(0), 60)], 1), heads);
            let clean = case.run(isa, 32, None);
            [&mut case.k, &mut case.v][which][bad * heads.kv_row()..][..16].fill(f32::NAN);
            let got = case.run(isa, 32, Some(&clean));
            for i in 0..110 {
                let row = &got.o[i * 32..][..32];
                assert!(row.iter().all(|o| o.is_nan() == (i >= bad)), "{isa:?} o of query {i}, operand {which}");
                let row = &got.dq[i * 32..][..32];
                assert!(row.iter().all(|dq| dq.is_nan() == (i >= bad)), "{isa:?} dq of query {i}, operand {which}");
            }
        }
        let mut case = Case::<f32>::new(Forest::new(0, &[(None, 30), (Some(0), 20), (Some(0), 60)], 1), heads);
        let clean = case.run(isa, 32, None);
        case.d_o[bad * 32..][..32].fill(f32::NAN);
        let got = case.run(isa, 32, Some(&clean));
        for j in 0..110 {
            let nan = |x: &[f32]| x[j * 16..][..16].iter().all(|x| x.is_nan() == (j <= bad));
            assert!(nan(&got.dk) && nan(&got.dv), "{isa:?} key {j}");
        }
    }
}

/// The softmax over one key is 1 whatever its score: no gradient passes through it.
#[test]
fn one_key_has_weight_one() {
    for &isa in Isa::available() {
        let case = Case::<f32>::new(Forest::new(0, &[(None, 1)], 1), heads(3, 1, 16));
        let got = case.run(isa, 32, None);
        assert!(got.o.chunks(16).all(|o| o == case.v), "{isa:?}");
        assert!(got.dq.iter().chain(&got.dk).all(|x| *x == 0.0), "{isa:?}: {:?} {:?}", got.dq, got.dk);
        let sum = |c: usize| case.d_o.iter().skip(c).step_by(16).sum::<f32>();
        assert!((0..16).all(|c| (got.dv[c] - sum(c)).abs() <= 1e-6), "{isa:?}: {:?}", got.dv);
    }
}

#[test]
fn scores_of_minus_infinity_weigh_nothing_and_large_scores_do_not_overflow() {
    for &isa in Isa::available() {
        let (mut o, mut lse, mut scratch) = ([0.0f32; 1], [0.0f32; 1], Vec::new());
        let ancestors = std::slice::from_ref(&(0..50));
        let block = Block { ancestors, own: 50, rows: &[51] };
        let mut k = [f32::NEG_INFINITY; 52];
        (k[50], k[51]) = (1e30, 1e30);
        let v: Vec<f32> = (0..52).map(|j| j as f32).collect();
        f32::kernels(isa).attention(&mut o, &mut lse, &[1.0], &k, &v, heads(1, 1, 1), &block, &mut scratch);
        assert_eq!((o, lse), ([50.5], [1e30]), "{isa:?}");
    }
}

#[test]
#[should_panic(expected = "key row 9 is past the end of 8 values")]
fn a_range_past_the_keys_is_refused() {
    let (mut o, mut lse, kv) = ([0.0f32; 1], [0.0f32; 1], [0.0f32; 8]);
    let block = Block { ancestors: &[], own: 8, rows: &[8] };
    f32::kernels(Isa::Portable).attention(&mut o, &mut lse, &[1.0], &kv, &kv, heads(1, 1, 1), &block, &mut Vec::new());
}
