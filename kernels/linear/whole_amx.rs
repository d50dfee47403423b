//! Packed whole numbers times rows that `whole_dot.rs` rounds, by tdpbssd: the same whole sums in the same order, and so the same bits,
//! by eight times as many products at once. A few rows are left to `whole_dot.rs`.
//!
//! A chunk of a panel is laid out by quads once for a block of rows. Of high parts those quads are multiplied in which any of 32 rows
//! has one: they are laid side by side, W's and the rows', which takes them few steps.

use super::amx::{Line, Loaded, ROWS, Row, Run, Sums, multiply_bytes};
use super::avx512::Dot;
use super::whole_dot::{self, Bytes, HIGH, LOW, QUAD, Quads, Rows, STRIDE, runs};
use super::{CHUNK, Columns, GEMV_ROWS, PANEL, Term, tile};
use crate::quantize::packed::Packed;
use crate::{Bits, bf16};
use std::arch::x86_64::*;
use std::ops::Range;

/// Quads of a step.
const STEP: usize = 16;
/// Rows that pass by a chunk of a panel once it is laid out: their bytes, its own and SUMS_BYTES fit the second-level cache.
pub(super) const BLOCK_ROWS: usize = 256;
/// Bytes of sums of a block of rows and some panels, which share the laying out of high parts.
const SUMS_BYTES: usize = 512 << 10;

/// The terms of whole numbers, at least one, and their sums for a block of rows and some panels.
pub(super) struct Wholes<'t, 'a> {
    terms: Vec<(&'t Term<'a, bf16>, Packed<'a>)>,
    rows: Range<usize>,
    panels: Range<usize>,
    /// `[panels, rows]`
    sums: Vec<Row<f32>>,
    /// A chunk of a panel: two lines a quad, sixteen outputs each.
    w: Vec<Line>,
    /// One for every ROWS rows.
    high: Vec<High>,
    high_w: Vec<Line>,
    low: Sums<i32>,
    of_high: Sums<i32>,
}

impl<'t, 'a> Wholes<'t, 'a> {
    /// Those among these, if there are any.
    pub fn of(terms: &'t [Term<'a, bf16>]) -> Option<Self> {
        let whole = terms.iter().filter_map(|term| match term.b {
            Columns::Whole(w) => Some((term, w)),
            Columns::Panels(_) => None,
        });
        let terms: Vec<_> = whole.collect();
        (!terms.is_empty()).then(|| Self {
            terms,
            rows: 0..0,
            panels: 0..0,
            sums: vec![],
            w: vec![],
            high: vec![],
            high_w: vec![],
            low: Sums::zero(),
            of_high: Sums::zero(),
        })
    }

    /// Makes the sums of these rows and of the first of `panels`, with those of some that follow, unless it has them.
    ///
    /// # Safety
    /// AMX and AVX-512 with VNNI must be there, and lengths as [`crate::Kernels::gemm`] checks them.
    #[target_feature(enable = "avx512vnni,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,popcnt")]
    pub unsafe fn multiply(&mut self, loaded: &mut Loaded, rows: Range<usize>, panels: Range<usize>) {
        if self.rows == rows && self.panels.contains(&panels.start) {
            return;
        }
        let group = (SUMS_BYTES / size_of::<Row<f32>>() / rows.len()).max(1);
        self.panels = panels.start..panels.end.min(panels.start + group);
        self.rows = rows;
        self.sums.clear();
        self.sums.resize(self.panels.len() * self.rows.len(), Row([0.0; PANEL]));
        for term in 0..self.terms.len() {
            // SAFETY: the caller's.
            unsafe { self.add_term(loaded, self.terms[term]) };
        }
    }

    /// # Safety
    /// As [`Self::multiply`].
    #[target_feature(enable = "avx512vnni,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,popcnt")]
    unsafe fn add_term(&mut self, loaded: &mut Loaded, (term, w): (&Term<bf16>, Packed)) {
        let (rows, panels) = (self.rows.clone(), self.panels.clone());
        if rows.len() <= GEMV_ROWS {
            let sums = tile::Sums::new(self.sums.as_mut_ptr().cast(), rows.len(), 16);
            // SAFETY: the caller's.
            return unsafe { whole_dot::add(sums, term, &w, rows, panels) };
        }
        for from in (0..term.k).step_by(CHUNK) {
            let k = from..term.k.min(from + CHUNK);
            let a = Rows::of(term, rows.start, from);
            // SAFETY: the caller's rows and panels.
            unsafe {
                self.lay_high(a, &w, k.clone());
                for (p, panel) in panels.clone().enumerate() {
                    self.lay(&w, panel, k.clone());
                    for block in (0..rows.len()).step_by(ROWS) {
                        loaded.be_for(ROWS.min(rows.len() - block));
                        self.add(p, block, a.from(block), &w, k.clone());
                    }
                }
            }
        }
    }

    /// Lays out columns `k` of a panel, zeros behind them up to a whole step.
    ///
    /// # Safety
    /// AVX-512 must be there, and the panel.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
    unsafe fn lay(&mut self, w: &Packed, panel: usize, k: Range<usize>) {
        self.w.resize(2 * CHUNK / QUAD, Line::ZERO);
        let mut end = 0;
        for (run, _) in runs(w, panel, k) {
            let to = &mut self.w[2 * run.quads.start..2 * run.quads.end];
            end = 2 * run.quads.end;
            // SAFETY: the caller's.
            unsafe {
                match run.bits {
                    Bits::Eight => lay_run::<8>(to, &run),
                    Bits::Four => lay_run::<4>(to, &run),
                }
            }
        }
        self.w[end..end.next_multiple_of(2 * STEP)].fill(Line::ZERO);
    }

    /// Lays out the high parts of all rows.
    ///
    /// # Safety
    /// As [`Self::multiply`], with a chunk of rows from the first on, which is of columns `k`.
    #[target_feature(enable = "avx512vnni,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,popcnt")]
    unsafe fn lay_high(&mut self, a: Rows, w: &Packed, k: Range<usize>) {
        let runs: Vec<_> = runs(w, self.panels.start, k).map(|(run, _)| run.quads).collect(); // those of every panel
        self.high.resize_with(self.rows.len().div_ceil(ROWS), || High::NONE);
        for (high, block) in self.high.iter_mut().zip((0..self.rows.len()).step_by(ROWS)) {
            // SAFETY: the caller's.
            unsafe { high.lay(a.from(block), ROWS.min(self.rows.len() - block), &runs) };
        }
    }

    /// Adds the rows from `block` on, a block for tiles whose configuration is loaded, times columns `k` of panel `p` of the sums, which
    /// are laid out.
    ///
    /// # Safety
    /// As [`Self::multiply`].
    #[target_feature(enable = "avx512vnni,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,popcnt")]
    unsafe fn add(&mut self, p: usize, block: usize, a: Rows, w: &Packed, k: Range<usize>) {
        let rows = block..self.rows.len().min(block + ROWS);
        let (m, sums) = (rows.len(), &mut self.sums[p * self.rows.len()..][rows]);
        let (high, mut step) = (&self.high[block / ROWS], 0);
        for (run, scales) in runs(w, self.panels.start + p, k) {
            // SAFETY: the panel's scales.
            let scales = unsafe { Dot::scales(scales.as_ptr()) };
            let (first, steps) = (run.quads.start, run.quads.len().div_ceil(STEP));
            let b = self.w[2 * first..][..2 * STEP * steps].as_ptr();
            let low = Run { a: a.part(LOW).wrapping_add(QUAD * first), stride: STRIDE, b, steps };
            multiply_bytes(&mut self.low, &[low], 0, m);
            let quads = high.quads.of(&run.quads);
            if quads.is_empty() {
                // SAFETY: the caller's rows.
                unsafe { add(sums, &self.low, None, a, scales) };
                continue;
            }
            let steps = quads.len().div_ceil(STEP);
            self.high_w.resize(2 * STEP * steps, Line::ZERO); // what is behind the quads is multiplied by zeros
            for (to, quad) in self.high_w.as_chunks_mut::<2>().0.iter_mut().zip(quads) {
                to.copy_from_slice(&self.w[2 * *quad as usize..][..2]);
            }
            let (a_high, stride) = (high.a[step..].as_ptr().cast(), high.steps * size_of::<Line>());
            multiply_bytes(&mut self.of_high, &[Run { a: a_high, stride, b: self.high_w.as_ptr(), steps }], 0, m);
            // SAFETY: the caller's rows.
            unsafe { add(sums, &self.low, Some(&self.of_high), a, scales) };
            step += steps;
        }
    }

    /// The sums of these rows of a panel that [`Self::multiply`] has made.
    pub fn sums(&mut self, panel: usize, rows: Range<usize>) -> &mut [Row<f32>] {
        let first = (panel - self.panels.start) * self.rows.len() + rows.start - self.rows.start;
        &mut self.sums[first..][..rows.len()]
    }
}

/// Lays out the numbers of a run, with their signs, two lines a quad.
///
/// # Safety
/// AVX-512 must be there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
unsafe fn lay_run<const BITS: usize>(to: &mut [Line], run: &whole_dot::Run) {
    let pair = PANEL * BITS / 4;
    for (to, q) in to.as_chunks_mut::<2>().0.iter_mut().zip(run.q.chunks(2 * pair)) {
        // where the run ends with half a quad the row has zeros, for anything
        let odd = q.get(pair..).filter(|odd| !odd.is_empty()).unwrap_or(q);
        // SAFETY: a pair of all outputs each; a line is a vector.
        unsafe {
            let quad = if BITS == 8 {
                Dot::quad::<BITS>(q.as_ptr(), odd.as_ptr(), _mm512_setzero_si512())
            } else {
                let quad = Dot::quad::<BITS>(q.as_ptr(), odd.as_ptr(), _mm512_set1_epi8(15));
                quad.map(|half| _mm512_sub_epi8(half, _mm512_set1_epi8(8)))
            };
            to.iter_mut().zip(quad).for_each(|(to, half)| _mm512_store_si512((&raw mut *to).cast(), half));
        }
    }
}

/// Adds sums of low parts and of high parts, if there are any, times what they count: not to rows that have no high ones, which other
/// rows must not touch, whatever the scales are.
///
/// # Safety
/// AVX-512 must be there, and as many rows of `a`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn add(to: &mut [Row<f32>], low: &Sums<i32>, high: Option<&Sums<i32>>, a: Rows, scales: [__m512; 2]) {
    for (r, to) in to.iter_mut().enumerate() {
        // SAFETY: the caller's; two vectors of a row's sums each.
        unsafe {
            let step = a.head(r).step;
            for (i, scales) in scales.into_iter().enumerate() {
                let at = to.0[16 * i..].as_mut_ptr();
                let whole =
                    |sums: &Sums<i32>| _mm512_cvtepi32_ps(_mm512_load_si512(sums.0[r].0[16 * i..].as_ptr().cast()));
                let mut sum = _mm512_fmadd_ps(whole(low), Dot::scaled(scales, step), _mm512_load_ps(at));
                if let Some(high) = high.map(whole) {
                    let scales = Dot::scales_of_some(high, Dot::scaled(scales, 256.0 * step));
                    sum = _mm512_fmadd_ps(high, scales, sum);
                }
                _mm512_store_ps(at, sum);
            }
        }
    }
}

/// High parts of a block of rows.
struct High {
    /// Those of a chunk that any of the rows has.
    quads: Quads,
    /// `[rows, steps]`: of every row those quads, and zeros where a run's end before its last step does.
    a: Vec<Line>,
    steps: usize,
}

impl High {
    const NONE: Self = Self { quads: Quads::NONE, a: vec![], steps: 0 };

    /// Lays out those of the first `m` rows of `a`, whose runs have these quads.
    ///
    /// # Safety
    /// AVX-512 must be there, and the rows.
    #[target_feature(enable = "avx512f,popcnt")]
    unsafe fn lay(&mut self, a: Rows, m: usize, runs: &[Range<usize>]) {
        // SAFETY: the caller's.
        unsafe { self.quads.find_high::<Dot>(a, m) };
        self.steps = runs.iter().map(|run| self.quads.of(run).len().div_ceil(STEP)).sum();
        self.a.resize(m * self.steps, Line::ZERO);
        let mut first = 0;
        for run in runs {
            for quads in self.quads.of(run).chunks(STEP) {
                for (r, line) in self.a.iter_mut().skip(first).step_by(self.steps).enumerate() {
                    *line = Line::ZERO;
                    let from = a.from(r).part(HIGH);
                    for (to, quad) in line.0.as_chunks_mut::<2>().0.iter_mut().zip(quads) {
                        // SAFETY: the caller's; a quad of a chunk, four bytes.
                        *to = unsafe { from.add(QUAD * *quad as usize).cast::<[bf16; 2]>().read_unaligned() };
                    }
                }
                first += 1;
            }
        }
    }
}
