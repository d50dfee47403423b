//! AMX: tiles of 16 rows of 64 bytes, 32 rows by one panel at a time; tdpbf16ps flushes denormals.
//!
//! `asm!`, because the intrinsics are not stable (rust-lang/rust#126622). The tile configuration belongs to the thread:
//! released before return, so that no thread keeps 8 KiB of state to be saved at every switch. A is read from where it
//! lies, in steps of 32 values, the last rows in tiles of fewer rows. What a term has beyond whole steps (LoRA's rank, mostly)
//! is laid side by side with that of the other terms, padded by zeros, and summed then. Terms of whole
//! numbers follow.

use super::tile::add_bias;
use super::whole_amx::{self, Wholes};
use super::{Columns, Out, PANEL, Term, panel_len};
use crate::bf16;
use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

/// Rows of a block: two tiles.
pub(super) const ROWS: usize = 32;
/// Values of k in one tile row.
pub(super) const STEP: usize = 32;
/// Bytes of `a` that stay in the second-level cache (2 MiB on every AMX machine) while all panels pass by.
const BLOCK_BYTES: usize = 1 << 20;

/// A row's sums of a panel.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Row<T>(pub [T; PANEL]);

/// Sums of one panel.
#[repr(C)]
pub(super) struct Sums<T>(pub [Row<T>; ROWS]);

impl<T: Copy + Default> Sums<T> {
    pub fn zero() -> Self {
        Self([Row([T::default(); PANEL]); ROWS])
    }
}

/// Rows of a panel's first `cols` columns, to rows of `out` that are `ldc` apart, from `at` on.
#[inline]
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn put(sums: &mut [Row<f32>], out: &mut Out<bf16>, at: usize, ldc: usize, cols: usize, bias: Option<&[f32]>) {
    if bias.is_none() && cols == PANEL {
        return match out {
            Out::Store(c) => round(c.rows(at, ldc, sums.len(), PANEL), ldc, sums),
            Out::Real(c) => each(c.rows(at, ldc, sums.len(), PANEL), ldc, sums, |_, sum| sum),
            Out::Add(c) => each(c.rows(at, ldc, sums.len(), PANEL), ldc, sums, |c, sum| _mm512_add_ps(c, sum)),
        };
    }
    for (r, row) in sums.iter_mut().enumerate() {
        add_bias(&mut row.0, bias);
        out.put(at + r * ldc, &row.0[..cols]);
    }
}

/// Rounds rows of a panel, by an instruction that flushes denormals.
///
/// Little is done between the tiles of one block and of the next, so that the processor looks far enough ahead to
/// multiply on meanwhile.
#[inline]
#[target_feature(enable = "avx512bf16,avx512f")]
fn round(c: *mut bf16, ldc: usize, sums: &[Row<f32>]) {
    for (r, row) in sums.iter().enumerate() {
        // SAFETY: `c` begins as many rows of a panel's width, `ldc` apart, which are this product's own.
        unsafe {
            let [low, high] = [0, 16].map(|i| _mm512_load_ps(row.0[i..].as_ptr()));
            let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(c.add(r * ldc).cast(), both);
        }
    }
}

/// c = f(c, sum) for rows of a panel.
#[inline]
#[target_feature(enable = "avx512f")]
fn each(c: *mut f32, ldc: usize, sums: &[Row<f32>], f: impl Fn(__m512, __m512) -> __m512) {
    for (r, row) in sums.iter().enumerate() {
        for i in [0, 16] {
            // SAFETY: as above.
            unsafe {
                let c = c.add(r * ldc + i);
                _mm512_storeu_ps(c, f(_mm512_loadu_ps(c), _mm512_load_ps(row.0[i..].as_ptr())));
            }
        }
    }
}

/// A tile's row.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub [bf16; STEP]);

impl Line {
    pub const ZERO: Self = Self([bf16::ZERO; STEP]);
}

/// The shapes of the eight tiles (SDM, volume 1, 18.2, palette 1).
#[repr(C, align(64))]
pub(crate) struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

impl Config {
    /// Tiles of so many rows and bytes a row, neither zero.
    pub const fn new(tiles: [(usize, usize); 8]) -> Self {
        let mut config = Self { palette: 1, start_row: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
        let mut tile = 0;
        while tile < tiles.len() {
            (config.rows[tile], config.bytes[tile]) = (tiles[tile].0 as u8, tiles[tile].1 as u16);
            tile += 1;
        }
        config
    }

    /// For a block of `m` rows: tiles 0, 1 and 4 are its first 16 rows, 2, 3 and 5 the others, or one that is not used.
    pub const fn of(m: usize) -> Self {
        let (upper, lower) = if m > 16 { (16, m - 16) } else { (m, 1) };
        let [upper, lower, whole] = [(upper, 64), (lower, 64), (16, 64)];
        Self::new([upper, upper, lower, lower, upper, lower, whole, whole])
    }

    /// # Safety
    /// AMX must be there.
    pub unsafe fn load(&self) {
        // SAFETY: the caller's; the configuration is a valid one.
        unsafe { asm!("ldtilecfg [{}]", in(reg) self, options(nostack, readonly, preserves_flags)) };
    }
}

/// The configuration that is loaded: that for a block of so many rows, if any.
pub(super) struct Loaded(usize);

impl Loaded {
    /// # Safety
    /// AMX must be there.
    pub unsafe fn be_for(&mut self, m: usize) {
        if m != self.0 {
            // SAFETY: the caller's.
            unsafe { Config::of(m).load() };
            self.0 = m;
        }
    }
}

/// A run of whole steps: of a term, or of all that is beyond.
#[repr(C)]
pub(super) struct Run {
    /// The first row.
    pub a: *const u8,
    /// Bytes from row to row.
    pub stride: usize,
    /// The first line of the panel: pairs of bf16, or quads of bytes.
    pub b: *const Line,
    /// At least one.
    pub steps: usize,
}

impl Run {
    /// The whole steps of a term of at least one, from row `i` on.
    fn of(term: &Term<bf16>, i: usize, panel: usize) -> Self {
        let b = &term.b.panels()[panel * panel_len(term.k)..][..panel_len(term.k)];
        let a = term.a[i * term.lda..].as_ptr().cast();
        Self { a, stride: term.lda * size_of::<bf16>(), b: b.as_ptr().cast(), steps: term.k / STEP }
    }
}

/// # Safety
/// AMX and AVX-512 must be there, and lengths as [`crate::Kernels::gemm`] checks them.
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn gemm(
    mut out: Out<bf16>,
    ldc: usize,
    rows: usize,
    n: usize,
    terms: &[Term<bf16>],
    bias: Option<&[f32]>,
) {
    let mut sums = Sums::zero();
    let mut whole = Wholes::of(terms);
    let terms: Vec<_> = terms.iter().filter(|term| matches!(term.b, Columns::Panels(_))).copied().collect();
    let mut tails = Tails::of(&terms);
    let mut runs = Vec::with_capacity(terms.len() + 1);
    let block = block_rows(&terms).min(if whole.is_some() { whole_amx::BLOCK_ROWS } else { usize::MAX });
    let mut loaded = Loaded(0);
    for first in (0..rows).step_by(block) {
        let block = first..rows.min(first + block);
        tails.lay_rows(&terms, block.clone());
        for panel in 0..n.div_ceil(PANEL) {
            if let Some(whole) = &mut whole {
                // SAFETY: AMX is there, and so many panels are.
                unsafe { whole.multiply(&mut loaded, block.clone(), panel..n.div_ceil(PANEL)) };
            }
            tails.lay_panel(&terms, panel);
            runs.clear();
            runs.extend(terms.iter().filter(|term| term.k >= STEP).map(|term| Run::of(term, first, panel)));
            runs.extend(tails.run());
            let j = panel * PANEL;
            let bias = bias.map(|bias| &bias[j..n.min(j + PANEL)]);
            for i in block.clone().step_by(ROWS) {
                let m = ROWS.min(block.end - i);
                if !runs.is_empty() {
                    // SAFETY: AMX is there.
                    unsafe { loaded.be_for(m) };
                    multiply(&mut sums, &runs, i - first, m);
                }
                let sums = match whole.as_mut().map(|whole| whole.sums(panel, i..i + m)) {
                    Some(whole) if runs.is_empty() => whole,
                    Some(whole) => {
                        each(whole.as_mut_ptr().cast(), PANEL, &sums.0[..m], |whole, sum| _mm512_add_ps(whole, sum));
                        whole
                    }
                    None if runs.is_empty() => {
                        sums = Sums::zero(); // a bias was added
                        &mut sums.0[..m]
                    }
                    None => &mut sums.0[..m],
                };
                put(sums, &mut out, i * ldc + j, ldc, PANEL.min(n - j), bias);
            }
        }
    }
    // SAFETY: AMX is there.
    unsafe { release() };
}

/// Tiles go back to what they were before a configuration was loaded.
///
/// # Safety
/// AMX must be there.
pub(crate) unsafe fn release() {
    // SAFETY: the caller's.
    unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
}

fn block_rows(terms: &[Term<bf16>]) -> usize {
    let row: usize = terms.iter().map(|t| 2 * t.k).sum();
    (BLOCK_BYTES / row.max(1) / ROWS).clamp(1, 32) * ROWS
}

/// What terms have beyond whole steps, side by side from even places on; what is not filled is zero, so that a NaN cannot come
/// from nowhere.
struct Tails {
    /// Steps they fill together.
    steps: usize,
    /// `[rows of a block, steps]`.
    a: Vec<Line>,
    /// `[16 steps, 2]`: pair rows of a panel.
    b: Vec<Line>,
}

impl Tails {
    fn of(terms: &[Term<bf16>]) -> Self {
        let steps = tails(terms).map(|(_, at, len)| at + len).max().unwrap_or(0).div_ceil(STEP);
        Self { steps, a: Vec::new(), b: vec![Line::ZERO; 2 * STEP / 2 * steps] }
    }

    #[target_feature(enable = "avx512bw,avx512f")]
    fn lay_rows(&mut self, terms: &[Term<bf16>], rows: Range<usize>) {
        if self.steps == 0 {
            return;
        }
        self.a.resize(rows.len() * self.steps, Line::ZERO);
        for (term, at, len) in tails(terms) {
            let (own, from) = (u32::MAX >> (STEP - len), term.k - len);
            for (i, row) in rows.clone().zip(self.a.chunks_exact_mut(self.steps)) {
                let (from, to) = (&term.a[i * term.lda + from..][..len], &mut values_mut(row)[at..at + len]);
                // SAFETY: the mask has `len` values, at most 32, and so have both slices.
                unsafe {
                    let tail = _mm512_maskz_loadu_epi16(own, from.as_ptr().cast());
                    _mm512_mask_storeu_epi16(to.as_mut_ptr().cast(), own, tail);
                }
            }
        }
    }

    fn lay_panel(&mut self, terms: &[Term<bf16>], panel: usize) {
        for (term, at, len) in tails(terms) {
            let b = &term.b.panels()[panel * panel_len(term.k)..][..panel_len(term.k)][(term.k - len) * PANEL..];
            values_mut(&mut self.b)[at * PANEL..][..b.len()].copy_from_slice(b);
        }
    }

    /// The run of the block's first row.
    fn run(&self) -> Option<Run> {
        let Self { steps, a, b } = self;
        let (a, b) = (a.as_ptr().cast(), b.as_ptr());
        (*steps > 0).then_some(Run { a, stride: steps * size_of::<Line>(), b, steps: *steps })
    }
}

/// Terms that do not end with a whole step; where each one's values lie among all of theirs, and how many it has.
fn tails<'t, 'a>(terms: &'t [Term<'a, bf16>]) -> impl Iterator<Item = (&'t Term<'a, bf16>, usize, usize)> {
    let mut next = 0;
    terms.iter().filter(|term| !term.k.is_multiple_of(STEP)).map(move |term| {
        let (at, len) = (next, term.k % STEP);
        next += len.next_multiple_of(2);
        (term, at, len)
    })
}

fn values_mut(lines: &mut [Line]) -> &mut [bf16] {
    // SAFETY: a line is that many values without padding.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * STEP) }
}

macro_rules! multiply {
    ($(#[$doc:meta])* $name:ident, $dot:literal, $sum:ty) => {
        $(#[$doc])*
        #[inline(always)]
        pub(super) fn $name(sums: &mut Sums<$sum>, runs: &[Run], i: usize, m: usize) {
            // SAFETY: see above; every tile touched is named as clobbered. A `Run` is four words.
            unsafe {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "2:",
                    "mov {stride}, [{run} + 8]",
                    "mov {a}, {i}",
                    "imul {a}, {stride}",
                    "add {a}, [{run}]",
                    "mov {lower}, {second}", // 16 rows on, or the first again where there are no more
                    "imul {lower}, {stride}",
                    "add {lower}, {a}",
                    "mov {b}, [{run} + 16]",
                    "mov {steps}, [{run} + 24]",
                    "3:",
                    "tileloadd tmm6, [{b} + {width}*1]",
                    "tileloadd tmm4, [{a} + {stride}*1]",
                    concat!($dot, " tmm0, tmm4, tmm6"),
                    "tileloadd tmm7, [{b} + {width}*1 + 64]",
                    concat!($dot, " tmm1, tmm4, tmm7"),
                    "tileloadd tmm5, [{lower} + {stride}*1]",
                    concat!($dot, " tmm2, tmm5, tmm6"),
                    concat!($dot, " tmm3, tmm5, tmm7"),
                    "add {a}, 64",
                    "add {lower}, 64",
                    "add {b}, 2048",
                    "dec {steps}",
                    "jnz 3b",
                    "add {run}, 32",
                    "cmp {run}, {end}",
                    "jne 2b",
                    "tilestored [{c} + {width}*1], tmm0",
                    "tilestored [{c} + {width}*1 + 64], tmm1",
                    "tilestored [{c} + {width}*1 + 2048], tmm2",
                    "tilestored [{c} + {width}*1 + 2112], tmm3",
                    run = inout(reg) runs.as_ptr() => _,
                    end = in(reg) runs.as_ptr_range().end,
                    c = in(reg) sums,
                    width = in(reg) 128usize, // bytes of a row of sums, and of the lines of a pair or quad of a panel
                    i = in(reg) i,
                    second = in(reg) if m > 16 { 16usize } else { 0 },
                    a = out(reg) _,
                    lower = out(reg) _,
                    stride = out(reg) _,
                    b = out(reg) _,
                    steps = out(reg) _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}
multiply!(
    /// sums = the sum over all runs, at least one, of the `m` rows from `i` on times a panel, pairs of bf16.
    ///
    /// Its callers have loaded the configuration for `m` rows and release it later, and give runs whose values are there.
    multiply,
    "tdpbf16ps",
    f32
);
multiply!(
    /// As [`multiply`], quads of bytes with signs.
    multiply_bytes,
    "tdpbssd",
    i32
);
