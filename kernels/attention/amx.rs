//! Scores on AMX: products over the head by pairs, a tile of 16 x 16 sums at a time; denormals are flushed.
//!
//! The buffers are in tdpbf16ps's own layout already: a row of units is a row of pairs, units by lanes are pair rows. Only
//! whole units count: the tiles of a last step, and those of last rows, are configured as small as what is there.

use super::forms::{Forms, avx512bf16};
use super::forward::{self, turn};
use super::lanes::Pair;
use super::product::{Left, Out, Products, Right};
use super::scratch::PAD;
use super::{Block, Heads, KeyBlock, backward};
use crate::linear::amx::{Config, release};
use half::bf16;
use std::arch::asm;
use std::arch::x86_64::*;

/// Attention whose scores are AMX's; the second products are AVX-512's.
pub(super) const FORMS: Forms<bf16> = Forms { forward, delta, backward_q, backward_kv };

// SAFETY: only the forms above use them.
const PRODUCTS: Products<f32> = unsafe { Products::new(set, avx512bf16::add::<f32, __m512>) };

#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn forward(
    o: &mut [bf16],
    lse: &mut [f32],
    q: &[bf16],
    k: &[bf16],
    v: &[bf16],
    heads: Heads,
    block: &Block,
    scratch: &mut Vec<f32>,
) {
    forward::forward::<bf16, Pair>(o, lse, q, k, v, heads, block, scratch, &PRODUCTS);
}

#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn backward_q(
    dq: &mut [f32],
    d_o: &[bf16],
    q: &[bf16],
    k: &[bf16],
    v: &[bf16],
    lse: &[f32],
    delta: &[f32],
    heads: Heads,
    block: &Block,
    scratch: &mut Vec<f32>,
) {
    backward::backward_q::<bf16, Pair>(dq, d_o, q, k, v, lse, delta, heads, block, scratch, &PRODUCTS);
}

#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn backward_kv(
    dk: &mut [f32],
    dv: &mut [bf16],
    d_o: &[bf16],
    q: &[bf16],
    k: &[bf16],
    v: &[bf16],
    lse: &[f32],
    delta: &[f32],
    heads: Heads,
    block: &KeyBlock,
    scratch: &mut Vec<f32>,
) {
    backward::backward_kv::<bf16, Pair>(dk, dv, d_o, q, k, v, lse, delta, heads, block, scratch, &PRODUCTS);
}

/// Rows of a tile, lanes of a tile, and units of a step.
const SIDE: usize = 16;

/// Tiles 0, 2 and 3 are sums, left and left's last step of whole row tiles, 1, 4 and 5 those of the last rows; 6 and 7 are
/// right and right's last step.
fn config(rows: usize, units: usize) -> Config {
    let last = |n: usize| n % SIDE + if n.is_multiple_of(SIDE) { SIDE } else { 0 };
    let (rows, units) = (last(rows), last(units));
    let tiles = [(16, 16), (rows, 16), (16, 16), (16, units), (rows, 16), (rows, units), (16, 16), (units, 16)];
    Config::new(tiles.map(|(rows, words)| (rows, 4 * words)))
}

/// One tile of sums over `steps` whole steps and the last, with the named tiles for sums, left and left's last step.
macro_rules! tile {
    ($sums:literal, $left:literal, $last:literal, $c:expr, $c_row:expr, $a:expr, $a_row:expr, $b:expr, $b_row:expr, $steps:expr) => {
        asm!(
            concat!("tilezero ", $sums),
            "test {steps}, {steps}",
            "jz 3f",
            "2:",
            concat!("tileloadd ", $left, ", [{a} + {a_row}*1]"),
            "tileloadd tmm6, [{b} + {b_row}*1]",
            concat!("tdpbf16ps ", $sums, ", ", $left, ", tmm6"),
            "add {a}, 64",
            "add {b}, {b_step}",
            "dec {steps}",
            "jnz 2b",
            "3:",
            concat!("tileloadd ", $last, ", [{a} + {a_row}*1]"),
            "tileloadd tmm7, [{b} + {b_row}*1]",
            concat!("tdpbf16ps ", $sums, ", ", $last, ", tmm7"),
            concat!("tilestored [{c} + {c_row}*1], ", $sums),
            c = in(reg) $c,
            c_row = in(reg) $c_row,
            a = inout(reg) $a => _,
            a_row = in(reg) $a_row,
            b = inout(reg) $b => _,
            b_row = in(reg) $b_row,
            b_step = in(reg) SIDE * $b_row,
            steps = inout(reg) $steps => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// As [`super::product::set`], of units that are pairs.
///
/// # Safety
/// AMX must be there.
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn set(c: Out<f32>, a: Left<f32>, b: Right<f32>, terms: usize) {
    if c.rows == 0 || c.width == 0 || terms == 0 {
        return (0..c.rows).for_each(|i| c.values[i * c.row..][..c.width].fill(0.0));
    }
    assert!(c.width.is_multiple_of(SIDE) && c.values.len() >= (c.rows - 1) * c.row + c.width && a.term == 1);
    assert!(a.values.len() >= (c.rows - 1) * a.row + terms && b.values.len() >= (terms - 1) * b.row + c.width);
    let (whole, steps) = (c.rows / SIDE * SIDE, terms.div_ceil(SIDE) - 1);
    // SAFETY: AMX is there; a tile's rows and units, no more than there are, lie within a, b and c by the asserts.
    unsafe {
        config(c.rows, terms).load();
        for i in (0..c.rows).step_by(SIDE) {
            let a_row = a.values.as_ptr().add(i * a.row);
            for j in (0..c.width).step_by(SIDE) {
                let (c_tile, b_lanes) = (c.values.as_mut_ptr().add(i * c.row + j), b.values.as_ptr().add(j));
                let [c_row, a_stride, b_row] = [c.row, a.row, b.row].map(|row| row * size_of::<f32>());
                if i < whole {
                    tile!("tmm0", "tmm2", "tmm3", c_tile, c_row, a_row, a_stride, b_lanes, b_row, steps);
                } else {
                    tile!("tmm1", "tmm4", "tmm5", c_tile, c_row, a_row, a_stride, b_lanes, b_row, steps);
                }
            }
        }
        release();
    }
}

/// As [`super::forward::delta`], in the order of a tile's sums: over a step's first values and second values of pairs
/// apart, their sum onto what came before; so that for a row that sees one key, o = v, the difference to d_o v is zero.
///
/// # Safety
/// AVX-512 must be there.
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn delta(delta: &mut [f32], d_o: &[bf16], o: &[bf16], heads: Heads) {
    let (first, second) = (
        |x: __m512i| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x)),
        |x: __m512i| _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(0xffff_0000u32 as i32))),
    );
    let rows = d_o.chunks(PAD * heads.dim).zip(o.chunks(PAD * heads.dim));
    for (delta, (d_o, o)) in delta.chunks_mut(PAD).zip(rows) {
        let [mut a, mut b] = [[0.0f32; PAD * SIDE]; 2];
        let mut sums = _mm512_setzero_ps();
        for c in (0..heads.dim).step_by(2 * SIDE) {
            let len = (2 * SIDE).min(heads.dim - c);
            turn::<bf16, Pair>(&mut a, PAD, delta.len(), |i| &d_o[i * heads.dim + c..][..len]);
            turn::<bf16, Pair>(&mut b, PAD, delta.len(), |i| &o[i * heads.dim + c..][..len]);
            let [mut firsts, mut seconds] = [_mm512_setzero_ps(); 2];
            for unit in 0..len.div_ceil(2) {
                // SAFETY: both have 16 lanes for each of a step's units.
                let [a, b] = unsafe { [&a, &b].map(|x| _mm512_loadu_si512(x[unit * PAD..].as_ptr().cast())) };
                firsts = _mm512_fmadd_ps(first(a), first(b), firsts);
                seconds = _mm512_fmadd_ps(second(a), second(b), seconds);
            }
            sums = _mm512_add_ps(sums, _mm512_add_ps(firsts, seconds));
        }
        let mut lanes = [0.0; PAD];
        // SAFETY: sixteen numbers.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), sums) };
        delta.copy_from_slice(&lanes[..delta.len()]);
    }
}
