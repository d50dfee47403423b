//! AMX: tiles of 16 rows of 64 bytes, 32 rows by one panel at a time; tdpbf16ps flushes denormals.
//!
//! `asm!`, because the intrinsics are not stable (rust-lang/rust#126622). The tile configuration belongs to the thread:
//! released before return, so that no thread keeps 8 KiB of state to be saved at every switch. A is read from where it
//! lies, in steps of 32 values, the last rows in tiles of fewer rows. What a term has beyond whole steps (LoRA's rank, mostly)
//! is laid side by side with that of the other terms, padded by zeros, and summed last.

use super::tile::add_bias;
use super::{Out, PANEL, Term, panel_len};
use crate::bf16;
use std::arch::asm;
use std::arch::x86_64::*;

/// Rows of a block: two tiles.
pub(super) const ROWS: usize = 32;
/// Values of k in one tile row.
pub(super) const STEP: usize = 32;
/// Bytes of `a` that stay in the second-level cache (2 MiB on every AMX machine) while all panels pass by.
const BLOCK_BYTES: usize = 1 << 20;

/// Sums of one panel.
#[repr(C, align(64))]
struct Sums([[f32; PANEL]; ROWS]);

impl Sums {
    /// The first `m` rows of a panel's first `cols` columns, to rows of `out` that are `ldc` apart, from `at` on.
    #[inline]
    #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    fn put(&mut self, out: &mut Out<bf16>, at: usize, ldc: usize, m: usize, cols: usize, bias: Option<&[f32]>) {
        if bias.is_none() && cols == PANEL {
            return match out {
                Out::Store(c) => self.round(c.rows(at, ldc, m, PANEL), ldc, m),
                Out::Real(c) => self.each(c.rows(at, ldc, m, PANEL), ldc, m, |_, sum| sum),
                Out::Add(c) => self.each(c.rows(at, ldc, m, PANEL), ldc, m, |c, sum| _mm512_add_ps(c, sum)),
            };
        }
        for (r, row) in self.0[..m].iter_mut().enumerate() {
            add_bias(row, bias);
            out.put(at + r * ldc, &row[..cols]);
        }
    }

    /// Rounds `m` rows of a panel, by an instruction that flushes denormals.
    ///
    /// Little is done between the tiles of one block and of the next, so that the processor looks far enough ahead to
    /// multiply on meanwhile.
    #[inline]
    #[target_feature(enable = "avx512bf16,avx512f")]
    fn round(&self, c: *mut bf16, ldc: usize, m: usize) {
        for (r, row) in self.0[..m].iter().enumerate() {
            // SAFETY: `c` begins `m` rows of a panel's width, `ldc` apart, which are this product's own.
            unsafe {
                let [low, high] = [0, 16].map(|i| _mm512_load_ps(row[i..].as_ptr()));
                let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                _mm512_storeu_si512(c.add(r * ldc).cast(), both);
            }
        }
    }

    /// c = f(c, sum) for `m` rows of a panel.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn each(&self, c: *mut f32, ldc: usize, m: usize, f: impl Fn(__m512, __m512) -> __m512) {
        for (r, row) in self.0[..m].iter().enumerate() {
            for i in [0, 16] {
                // SAFETY: as above.
                unsafe {
                    let c = c.add(r * ldc + i);
                    _mm512_storeu_ps(c, f(_mm512_loadu_ps(c), _mm512_load_ps(row[i..].as_ptr())));
                }
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

/// A run of whole steps: of a term, or of all that is beyond.
#[repr(C)]
struct Run {
    /// The first row.
    a: *const bf16,
    /// Values from row to row.
    lda: usize,
    /// The first pair row of the panel.
    b: *const bf16,
    /// At least one.
    steps: usize,
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
    let mut sums = Sums([[0.0; PANEL]; ROWS]);
    let mut tails = Tails::of(terms);
    let mut runs = Vec::with_capacity(terms.len() + 1);
    let block = block_rows(terms);
    let mut configured = 0;
    for first in (0..rows).step_by(block) {
        let end = rows.min(first + block);
        tails.lay_rows(terms, first, end);
        for j in (0..n).step_by(PANEL) {
            tails.lay_panel(terms, j / PANEL);
            let bias = bias.map(|bias| &bias[j..n.min(j + PANEL)]);
            runs.clear();
            runs.extend(terms.iter().filter(|term| term.k >= STEP).map(|term| {
                let b = &term.b.panels()[j / PANEL * panel_len(term.k)..][..panel_len(term.k)];
                Run { a: term.a[first * term.lda..].as_ptr(), lda: term.lda, b: b.as_ptr(), steps: term.k / STEP }
            }));
            runs.extend(tails.run());
            for i in (first..end).step_by(ROWS) {
                let m = ROWS.min(end - i);
                if m != configured {
                    // SAFETY: AMX is there.
                    unsafe { Config::of(m).load() };
                    configured = m;
                }
                if runs.is_empty() {
                    sums.0 = [[0.0; PANEL]; ROWS];
                } else {
                    multiply(&mut sums, &runs, i - first, m);
                }
                sums.put(&mut out, i * ldc + j, ldc, m, PANEL.min(n - j), bias);
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
    fn lay_rows(&mut self, terms: &[Term<bf16>], first: usize, end: usize) {
        if self.steps == 0 {
            return;
        }
        self.a.resize((end - first) * self.steps, Line::ZERO);
        for (term, at, len) in tails(terms) {
            let (own, from) = (u32::MAX >> (STEP - len), term.k - len);
            for (i, row) in (first..end).zip(self.a.chunks_exact_mut(self.steps)) {
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
        let (a, b) = (self.a.as_ptr().cast(), self.b.as_ptr().cast());
        (self.steps > 0).then_some(Run { a, lda: self.steps * STEP, b, steps: self.steps })
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

/// sums = the sum over all runs, at least one, of the `m` rows from `i` on times a panel.
///
/// Only `gemm` calls it, between loading the configuration for `m` rows and releasing it, with runs whose values are there.
#[inline(always)]
fn multiply(sums: &mut Sums, runs: &[Run], i: usize, m: usize) {
    // SAFETY: see above; every tile touched is named as clobbered. A `Run` is four words.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "mov {stride}, [{run} + 8]",
            "add {stride}, {stride}", // bytes from row to row
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
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {width}*1 + 64]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{lower} + {stride}*1]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
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
            width = in(reg) 128usize, // bytes of a row of sums, and of a pair row of a panel
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
