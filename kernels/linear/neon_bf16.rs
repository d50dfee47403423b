//! NEON with products of bf16: bfmmla multiplies two rows by two columns over four values of k, 16 products where fmla has 4, and
//! flushes denormals. Its sums are rounded to odd and not to nearest.
//!
//! `asm!`, because the standard library has no stable intrinsic for it. A block of rows is laid two by two, four values of one
//! beside four of the other, with zeros where k or the rows end; packed pairs of k become fours on their way into registers.

use super::pack::{self, Plain};
use super::tile::add_bias;
use super::{Forms, Out, PANEL, Term, neon, panel_len, tn};
use crate::bf16;
use std::arch::aarch64::*;
use std::arch::asm;
use std::ops::Range;

/// Rows of a register tile.
const ROWS: usize = 12;
/// Columns of a register tile: 24 sums of two rows by two columns, 4 of W and 1 of rows use 29 of 32 registers.
const COLS: usize = 8;
/// Bytes of rows that are laid at a time: for them each panel is read once.
const BLOCK_BYTES: usize = 1 << 20;

/// Four values of a row, and of the next.
type Fours = [[bf16; 4]; 2];

pub(super) const BF16: Forms<bf16> = Forms {
    rows: ROWS,
    pack: pack::pack::<bf16, Plain>,
    gemm,
    gemm_tn: tn::gemm_tn::<bf16, neon::Neon>,
    gemv: None,
    whole: &[],
};

/// # Safety
/// NEON's bf16 must be there, and lengths as [`crate::Kernels::gemm`] checks them.
#[target_feature(enable = "neon,bf16")]
unsafe fn gemm(mut out: Out<bf16>, ldc: usize, rows: usize, n: usize, terms: &[Term<bf16>], bias: Option<&[f32]>) {
    let fours: usize = terms.iter().map(|term| term.k.div_ceil(4)).sum();
    let block = (BLOCK_BYTES / (fours.max(1) * size_of::<Fours>() / 2) / ROWS).clamp(1, 1 << 10) * ROWS;
    let mut laid = Vec::new();
    for first in (0..rows).step_by(block) {
        let end = rows.min(first + block);
        laid.clear();
        for i in (first..end).step_by(ROWS) {
            terms.iter().for_each(|term| lay(&mut laid, term, i..end.min(i + ROWS)));
        }
        for j in (0..n).step_by(PANEL) {
            let cols = PANEL.min(n - j);
            for i in (first..end).step_by(ROWS) {
                let (m, mut sums) = (ROWS.min(end - i), [[0.0; PANEL]; ROWS]);
                let a = &laid[(i - first) / 2 * fours..][..m.div_ceil(2) * fours];
                tile(&mut sums, a, m.div_ceil(2), terms, j / PANEL, cols);
                for (r, row) in sums[..m].iter_mut().enumerate() {
                    add_bias(row, bias.map(|bias| &bias[j..j + cols]));
                    out.put((i + r) * ldc + j, &row[..cols]);
                }
            }
        }
    }
}

/// Appends a term's values of a tile's rows: `[k/4][rows/2]`.
fn lay(laid: &mut Vec<Fours>, term: &Term<bf16>, rows: Range<usize>) {
    for k in (0..term.k).step_by(4) {
        for first in rows.clone().step_by(2) {
            let mut fours = Fours::default();
            for (i, four) in (first..rows.end).zip(&mut fours) {
                let values = &term.a[i * term.lda..][k..term.k.min(k + 4)];
                four[..values.len()].copy_from_slice(values);
            }
            laid.push(fours);
        }
    }
}

/// sums = so many laid pairs of rows times a panel's first `cols` columns, or a few more.
#[target_feature(enable = "neon,bf16")]
fn tile(sums: &mut [[f32; PANEL]; ROWS], a: &[Fours], pairs: usize, terms: &[Term<bf16>], panel: usize, cols: usize) {
    macro_rules! pairs {
        ($($m:literal)*) => {
            match pairs {
                $($m => section::<$m>,)*
                m => unreachable!("1 to {} pairs of rows, not {m}", ROWS / 2),
            }
        };
    }
    let section = pairs!(1 2 3 4 5 6);
    (0..cols).step_by(COLS).for_each(|j| section(sums, a, terms, panel, j));
}

/// The columns from `j` on of M pairs of rows.
#[target_feature(enable = "neon,bf16")]
fn section<const M: usize>(
    out: &mut [[f32; PANEL]; ROWS],
    mut a: &[Fours],
    terms: &[Term<bf16>],
    panel: usize,
    j: usize,
) {
    let mut sums = [[vdupq_n_f32(0.0); COLS / 2]; M];
    for term in terms {
        let w = &term.b.panels()[panel * panel_len(term.k)..][..panel_len(term.k)];
        let (now, later) = a.split_at(term.k.div_ceil(4) * M);
        a = later;
        for (a, w) in now.as_chunks::<M>().0.iter().zip(w.chunks(4 * PANEL)) {
            // the pair row behind an odd number of them is of zeros, as what is laid there
            let odd = w.get(2 * (PANEL + j)..2 * (PANEL + j + COLS)).unwrap_or(&[bf16::ZERO; 2 * COLS]);
            let w = fours(&w[2 * j..2 * (j + COLS)], odd);
            for (sums, a) in sums.iter_mut().zip(a) {
                // SAFETY: eight values.
                let a = unsafe { vld1q_u16(a.as_ptr().cast()) };
                sums.iter_mut().zip(w).for_each(|(sum, w)| *sum = multiply(*sum, a, w));
            }
        }
    }
    for (rows, sums) in out.as_chunks_mut::<2>().0.iter_mut().zip(sums) {
        for (four, [left, right]) in sums.as_chunks::<2>().0.iter().enumerate() {
            let first = vcombine_f32(vget_low_f32(*left), vget_low_f32(*right));
            let second = vcombine_f32(vget_high_f32(*left), vget_high_f32(*right));
            for (row, sums) in rows.iter_mut().zip([first, second]) {
                // SAFETY: four values.
                unsafe { vst1q_f32(row[j + 4 * four..][..4].as_mut_ptr(), sums) };
            }
        }
    }
}

/// Two outputs a vector, each with four values of k, of two pair rows of a section.
#[inline]
#[target_feature(enable = "neon")]
fn fours(even: &[bf16], odd: &[bf16]) -> [uint16x8_t; COLS / 2] {
    // SAFETY: eight values of either.
    let pairs = |row: &[bf16], at| unsafe { vreinterpretq_u32_u16(vld1q_u16(row[at..][..8].as_ptr().cast())) };
    let [low, high] = [0, 8].map(|at| (pairs(even, at), pairs(odd, at)));
    [vzip1q_u32(low.0, low.1), vzip2q_u32(low.0, low.1), vzip1q_u32(high.0, high.1), vzip2q_u32(high.0, high.1)]
        .map(|four| vreinterpretq_u16_u32(four))
}

/// c + a b of two rows and two columns: `[row][column]`.
#[inline]
#[target_feature(enable = "neon,bf16")]
pub(crate) fn multiply(c: float32x4_t, a: uint16x8_t, b: uint16x8_t) -> float32x4_t {
    let sum;
    // SAFETY: it computes on registers alone.
    unsafe {
        asm!(
            "bfmmla {c:v}.4s, {a:v}.8h, {b:v}.8h",
            c = inout(vreg) c => sum, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
