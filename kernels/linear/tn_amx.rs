//! c[m, n] += a^T b on AMX: 16 columns of a by one panel's width of b, 128 rows at a time; denormals are flushed.
//!
//! a is laid out transposed and b by pairs of rows, as tdpbf16ps takes them, in copies that stay in the first cache; rows
//! and columns that are not there are zero.

use super::PANEL;
use super::amx::{Config, Line, STEP, release};
use crate::bf16;
use std::arch::asm;
use std::arch::x86_64::*;

/// Columns of a in a tile.
const TALL: usize = 16;
/// Steps that are laid out at a time.
const STEPS: usize = 4;
/// Rows of a and b that these are.
const ROWS: usize = STEPS * STEP;

/// `[TALL, STEPS]`: 16 columns of a, transposed.
type Left = [[Line; STEPS]; TALL];
/// Pair rows of b: a pair of every column of a panel.
type Right = [[Line; 2]; ROWS / 2];
/// Sums of a tile.
#[repr(C, align(64))]
struct Sums([[f32; PANEL]; TALL]);

/// # Safety
/// AMX and AVX-512 must be there, and lengths as [`crate::Kernels::gemm_tn`] checks them.
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn gemm_tn(
    c: &mut [f32],
    m: usize,
    n: usize,
    a: &[bf16],
    lda: usize,
    b: &[bf16],
    ldb: usize,
    rows: usize,
) {
    let mut left = [[Line::ZERO; STEPS]; TALL];
    let mut right = [[Line::ZERO; 2]; ROWS / 2];
    let mut sums = Sums([[0.0; PANEL]; TALL]);
    // SAFETY: AMX is there.
    unsafe { Config::of(TALL).load() };
    for t in (0..rows).step_by(ROWS) {
        let rows = ROWS.min(rows - t);
        let steps = rows.div_ceil(STEP);
        for i in (0..m).step_by(TALL) {
            let tall = TALL.min(m - i);
            transpose(&mut left, &a[t * lda + i..], lda, rows, tall);
            for j in (0..n).step_by(PANEL) {
                let cols = PANEL.min(n - j);
                pair(&mut right, &b[t * ldb + j..], ldb, rows, cols, steps);
                let c = &mut c[i * n + j..];
                for (r, sums) in sums.0.iter_mut().enumerate().take(tall) {
                    move_row(sums, &c[r * n..], cols);
                }
                add(&mut sums, &left, &right, steps);
                for (r, sums) in sums.0.iter().enumerate().take(tall) {
                    move_row(&mut c[r * n..], sums, cols);
                }
            }
        }
    }
    // SAFETY: AMX is there.
    unsafe { release() };
}

/// Copies `cols` values; a whole panel's width, as almost always, by two vectors.
#[inline(always)]
fn move_row(to: &mut [f32], from: &[f32], cols: usize) {
    match (cols, to.first_chunk_mut::<PANEL>(), from.first_chunk::<PANEL>()) {
        (PANEL, Some(to), Some(from)) => *to = *from,
        _ => to[..cols].copy_from_slice(&from[..cols]),
    }
}

/// The first `tall` columns of `rows` rows; what is not there is zero.
fn transpose(left: &mut Left, a: &[bf16], lda: usize, rows: usize, tall: usize) {
    *left = [[Line::ZERO; STEPS]; TALL];
    for t in 0..rows {
        for (left, &value) in left.iter_mut().zip(&a[t * lda..][..tall]) {
            left[t / STEP].0[t % STEP] = value;
        }
    }
}

/// The first `cols` columns of `rows` rows in pairs, over whole steps; what is not there is zero.
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn pair(right: &mut Right, b: &[bf16], ldb: usize, rows: usize, cols: usize, steps: usize) {
    let seen = u32::MAX >> (PANEL - cols);
    // lane l of half h takes column 16 h + l of both rows
    let lanes = [0u32, 1].map(|half| -> __m512i {
        let columns: [u32; 16] = std::array::from_fn(|l| {
            let column = 16 * half + l as u32;
            column | (column + 32) << 16
        });
        // SAFETY: vectors of the same size.
        unsafe { std::mem::transmute(columns) }
    });
    for (p, right) in right[..steps * STEP / 2].iter_mut().enumerate() {
        let row = |t: usize| {
            let mask = if t < rows { seen } else { 0 };
            // SAFETY: masked values are not read, wherever they are; the others lie within b, whose rows the caller checked.
            unsafe { _mm512_maskz_loadu_epi16(mask, b.as_ptr().wrapping_add(t * ldb).cast()) }
        };
        let (low, high) = (row(2 * p), row(2 * p + 1));
        for (line, lanes) in right.iter_mut().zip(lanes) {
            // SAFETY: a line is a vector's 64 bytes, aligned.
            unsafe { _mm512_store_si512((line as *mut Line).cast(), _mm512_permutex2var_epi16(low, lanes, high)) };
        }
    }
}

/// sums += left right, over `steps` steps, at least one.
///
/// Only `gemm_tn` calls it, between loading the configuration and releasing it.
#[inline(always)]
fn add(sums: &mut Sums, left: &Left, right: &Right, steps: usize) {
    // SAFETY: see above; both have that many steps, and every tile touched is named as clobbered.
    unsafe {
        asm!(
            "tileloadd tmm0, [{c} + {width}*1]",
            "tileloadd tmm1, [{c} + {width}*1 + 64]",
            "2:",
            "tileloadd tmm4, [{a} + {stride}*1]",
            "tileloadd tmm6, [{b} + {width}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {width}*1 + 64]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {a}, 64",
            "add {b}, 2048",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{c} + {width}*1], tmm0",
            "tilestored [{c} + {width}*1 + 64], tmm1",
            c = in(reg) sums,
            width = in(reg) 128usize, // bytes of a row of sums, and of a pair row
            stride = in(reg) size_of::<[Line; STEPS]>(),
            a = inout(reg) left.as_ptr() => _,
            b = inout(reg) right.as_ptr() => _,
            steps = inout(reg) steps => _,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
