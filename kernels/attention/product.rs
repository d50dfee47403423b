//! The one small matrix product that every step of attention is: c[i, :] (+)= sum over t of a[i, t] b[t, :].
//!
//! A row sums over its own terms from..to, in order, one multiply-add each, on top of what c holds. So its bits do not
//! depend on the rows beside it, and terms that a row does not have are not touched. It knows no attention.

#![allow(clippy::needless_range_loop)] // a square of registers is read by row and lane

use super::lanes::Lanes;
use crate::Real;

/// Output rows that are summed together where there are enough: 6 x 4 sums hide the latency of a multiply-add.
const ROWS: usize = 6;

/// Element (i, t) lies at i * row + t * term.
#[derive(Clone, Copy)]
pub(super) struct Left<'a, R> {
    pub values: &'a [R],
    pub row: usize,
    pub term: usize,
}

/// Row t begins at t * row.
#[derive(Clone, Copy)]
pub(super) struct Right<'a, R> {
    pub values: &'a [R],
    pub row: usize,
}

/// `rows` rows of `width` numbers, whole lanes; row i begins at i * row.
pub(super) struct Out<'a, R> {
    pub values: &'a mut [R],
    pub row: usize,
    pub rows: usize,
    pub width: usize,
}

/// The terms (from, to) of an output row; without one, every row has all.
pub(super) type Span<'a> = Option<&'a dyn Fn(usize) -> (usize, usize)>;

/// c[i, :] = sum of a[i, t] b[t, :] over t in 0..terms.
#[inline(always)]
pub(super) fn set<R: Real, L: Lanes<R>>(c: Out<R>, a: Left<R>, b: Right<R>, terms: usize) {
    each_strip::<R, L, true>(c, a, b, terms, None);
}

/// c[i, :] += sum of a[i, t] b[t, :] over t in from..to, where (from, to) = `span(i)`, no further than `terms`.
#[inline(always)]
pub(super) fn add<R: Real, L: Lanes<R>>(c: Out<R>, a: Left<R>, b: Right<R>, terms: usize, span: Span) {
    each_strip::<R, L, false>(c, a, b, terms, span);
}

/// The two products compiled for one level and register: shared by all passes and number types, because their many
/// unrolled cells are most of this folder's code.
pub(super) struct Products<R: 'static> {
    set: unsafe fn(Out<R>, Left<R>, Right<R>, usize),
    add: unsafe fn(Out<R>, Left<R>, Right<R>, usize, Span),
}

impl<R: Real> Products<R> {
    /// # Safety
    /// To be used only where the machine has the level that both are compiled for.
    pub const unsafe fn new(
        set: unsafe fn(Out<R>, Left<R>, Right<R>, usize),
        add: unsafe fn(Out<R>, Left<R>, Right<R>, usize, Span),
    ) -> Self {
        Self { set, add }
    }

    /// [`set`].
    #[inline(always)]
    pub fn set(&self, c: Out<R>, a: Left<R>, b: Right<R>, terms: usize) {
        // SAFETY: the machine has the level, by `new`; slices are checked inside.
        unsafe { (self.set)(c, a, b, terms) }
    }

    /// [`add`].
    #[inline(always)]
    pub fn add(&self, c: Out<R>, a: Left<R>, b: Right<R>, terms: usize, span: Span) {
        // SAFETY: the machine has the level, by `new`; slices are checked inside.
        unsafe { (self.add)(c, a, b, terms, span) }
    }
}

/// What a strip works on, once checked.
struct Raw<R> {
    c: *mut R,
    a: *const R,
    b: *const R,
    c_row: usize,
    a_row: usize,
    a_term: usize,
    b_row: usize,
}

#[inline(always)]
fn each_strip<R: Real, L: Lanes<R>, const FRESH: bool>(c: Out<R>, a: Left<R>, b: Right<R>, terms: usize, span: Span) {
    if c.rows == 0 || c.width == 0 {
        return;
    }
    assert!(c.width.is_multiple_of(L::WIDTH) && c.values.len() >= (c.rows - 1) * c.row + c.width);
    assert!(terms == 0 || a.values.len() > (c.rows - 1) * a.row + (terms - 1) * a.term);
    assert!(terms == 0 || b.values.len() >= (terms - 1) * b.row + c.width);
    let (c_start, b_start) = (c.values.as_mut_ptr(), b.values.as_ptr());
    let mut at = 0;
    while at < c.width {
        // SAFETY: the asserts hold every row of the strip inside c, a and b for all terms below `terms`, and a span ends
        // there; `at` is below the width. The level is the caller's to have.
        unsafe {
            let (c_at, b_at) = (c_start.add(at), b_start.add(at));
            let raw = Raw {
                c: c_at,
                a: a.values.as_ptr(),
                b: b_at,
                c_row: c.row,
                a_row: a.row,
                a_term: a.term,
                b_row: b.row,
            };
            let lanes = ((c.width - at) / L::WIDTH).min(L::STRIP);
            match lanes {
                1 => strip::<R, L, 1, FRESH>(&raw, c.rows, terms, span),
                2 => strip::<R, L, 2, FRESH>(&raw, c.rows, terms, span),
                3 => strip::<R, L, 3, FRESH>(&raw, c.rows, terms, span),
                _ => strip::<R, L, 4, FRESH>(&raw, c.rows, terms, span),
            }
            at += lanes * L::WIDTH;
        }
    }
}

#[inline(always)]
unsafe fn strip<R: Real, L: Lanes<R>, const N: usize, const FRESH: bool>(
    raw: &Raw<R>,
    rows: usize,
    terms: usize,
    span: Span,
) {
    let mut i = 0;
    // SAFETY: the caller's, for rows below `rows`.
    unsafe {
        while i + ROWS <= rows {
            together::<R, L, ROWS, N, FRESH>(raw, i, terms, span);
            i += ROWS;
        }
        while i + 2 <= rows {
            together::<R, L, 2, N, FRESH>(raw, i, terms, span);
            i += 2;
        }
        if i < rows {
            together::<R, L, 1, N, FRESH>(raw, i, terms, span);
        }
    }
}

/// M rows: what only some of them have before the terms of all and after, row by row.
#[inline(always)]
unsafe fn together<R: Real, L: Lanes<R>, const M: usize, const N: usize, const FRESH: bool>(
    raw: &Raw<R>,
    i: usize,
    terms: usize,
    span: Span,
) {
    // SAFETY: the caller's; every span is cut to `terms`.
    unsafe {
        let Some(span) = span else { return cell::<R, L, M, N, FRESH>(raw, i, 0, terms) };
        let mut spans = [(0, 0); M];
        for (m, own) in spans.iter_mut().enumerate() {
            let (from, to) = span(i + m);
            *own = (from, to.min(terms));
        }
        let from = spans.iter().fold(0, |a, (from, _)| a.max(*from));
        // Rows with no term in common are summed alone, each over all of its own.
        let to = spans.iter().fold(terms, |a, (_, to)| a.min(*to)).max(from);
        for (m, own) in spans.iter().enumerate() {
            alone::<R, L, N>(raw, i + m, own.0, own.1.min(from));
        }
        cell::<R, L, M, N, false>(raw, i, from, to);
        for (m, own) in spans.iter().enumerate() {
            alone::<R, L, N>(raw, i + m, own.0.max(to), own.1);
        }
    }
}

#[inline(always)]
unsafe fn alone<R: Real, L: Lanes<R>, const N: usize>(raw: &Raw<R>, i: usize, from: usize, to: usize) {
    if from < to {
        // SAFETY: the caller's.
        unsafe { cell::<R, L, 1, N, false>(raw, i, from, to) }
    }
}

/// M x N registers of sums over terms from..to.
#[inline(always)]
unsafe fn cell<R: Real, L: Lanes<R>, const M: usize, const N: usize, const FRESH: bool>(
    raw: &Raw<R>,
    i: usize,
    from: usize,
    to: usize,
) {
    // SAFETY: rows i..i + M and terms from..to are inside; the caller's.
    unsafe {
        let mut sums = [[L::zero(); N]; M];
        let (c, a) = (raw.c.add(i * raw.c_row), raw.a.add(i * raw.a_row));
        for m in 0..M {
            for n in 0..N {
                if !FRESH {
                    sums[m][n] = L::load(c.add(m * raw.c_row + n * L::WIDTH));
                }
            }
        }
        for t in from..to {
            let mut b = [L::zero(); N];
            for n in 0..N {
                b[n] = L::load(raw.b.add(t * raw.b_row + n * L::WIDTH));
            }
            for m in 0..M {
                let a = L::splat(a.add(m * raw.a_row + t * raw.a_term));
                for n in 0..N {
                    sums[m][n] = sums[m][n].add_product(a, b[n]);
                }
            }
        }
        for m in 0..M {
            for n in 0..N {
                sums[m][n].store(c.add(m * raw.c_row + n * L::WIDTH));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, same_bits};

    #[test]
    fn a_row_sums_its_own_terms_in_order_whatever_rows_are_beside_it() {
        let mut random = Random::new(1);
        let (terms, width) = (9, 16 * 7);
        for rows in 0..20 {
            let [a, b, c]: [Vec<f64>; 3] = [terms * rows, terms * width, rows * width].map(|len| random.vec(len));
            let spans: Vec<_> = (0..rows).map(|_| (random.below(terms), random.below(terms + 1))).collect();
            let mut want = c.clone();
            for (i, &(from, to)) in spans.iter().enumerate() {
                for t in from..to {
                    (0..width).for_each(|l| want[i * width + l] += a[t * rows + i] * b[t * width + l]);
                }
            }
            let mut got = c;
            let out = Out { values: &mut got, row: width, rows, width };
            let (a, b) = (Left { values: &a, row: 1, term: rows }, Right { values: &b, row: width });
            add::<f64, [f64; 4]>(out, a, b, terms, Some(&|i| spans[i]));
            same_bits(&got, &want).unwrap_or_else(|e| panic!("{rows} rows: {e}"));
        }
    }
}
