//! AMX: tiles of 16 rows of 64 bytes, 32 rows by one panel at a time; tdpbf16ps flushes denormals.
//!
//! `asm!`, because the intrinsics are not stable (rust-lang/rust#126622). The tile configuration belongs to the thread:
//! loaded on entry, released before return, so that no thread keeps 8 KiB of state to be saved at every switch.
//! A is read from where it lies, in steps of 32 values; last rows and a last odd step go through zero-padded copies.

use super::tile::add_bias;
use super::{Out, PANEL, Term, panel_len};
use crate::bf16;
use std::arch::asm;

/// Rows of a block: two tiles.
pub(super) const ROWS: usize = 32;
/// Values of k in one tile row.
const STEP: usize = 32;
/// Bytes of `a` that stay in the second-level cache (2 MiB on every AMX machine) while all panels pass by.
const BLOCK_BYTES: usize = 1 << 20;

/// Sums of one panel.
#[repr(C, align(64))]
struct Sums([[f32; PANEL]; ROWS]);

/// Zero-padded copies of one step.
#[repr(C, align(64))]
struct Edge {
    a: [[bf16; STEP]; ROWS],
    b: [[bf16; 2 * PANEL]; STEP / 2],
}

/// Every tile is 16 rows of 64 bytes (SDM, volume 1, 18.2, palette 1).
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

const CONFIG: Config = {
    let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
    let mut tile = 0;
    while tile < 8 {
        config.bytes[tile] = 64;
        config.rows[tile] = 16;
        tile += 1;
    }
    config
};

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
    let mut edge = Edge { a: [[bf16::ZERO; STEP]; ROWS], b: [[bf16::ZERO; 2 * PANEL]; STEP / 2] };
    let block = block_rows(terms);
    // SAFETY: AMX is there; the configuration is a valid one.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, readonly, preserves_flags)) };
    for first in (0..rows).step_by(block) {
        let end = rows.min(first + block);
        for j in (0..n).step_by(PANEL) {
            let bias = bias.map(|bias| &bias[j..n.min(j + PANEL)]);
            for i in (first..end).step_by(ROWS) {
                let m = ROWS.min(end - i);
                sum(&mut sums, &mut edge, i, m, j / PANEL, terms);
                for (r, row) in sums.0[..m].iter_mut().enumerate() {
                    add_bias(row, bias);
                    out.put((i + r) * ldc + j, &row[..PANEL.min(n - j)]);
                }
            }
        }
    }
    // SAFETY: AMX is there.
    unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
}

fn block_rows(terms: &[Term<bf16>]) -> usize {
    let row: usize = terms.iter().map(|t| 2 * t.k).sum();
    (BLOCK_BYTES / row.max(1) / ROWS).clamp(1, 1 << 10) * ROWS
}

/// All terms of `m` rows from `i` on, times one panel.
fn sum(sums: &mut Sums, edge: &mut Edge, i: usize, m: usize, panel: usize, terms: &[Term<bf16>]) {
    let mut fresh = true;
    for term in terms.iter().filter(|term| term.k > 0) {
        let b = &term.b[panel * panel_len(term.k)..][..panel_len(term.k)];
        let whole = if m == ROWS { term.k / STEP * STEP } else { 0 };
        if whole > 0 {
            let a = &term.a[i * term.lda..];
            multiply(sums, fresh, a.as_ptr(), term.lda, b.as_ptr(), whole / STEP);
            fresh = false;
        }
        for from in (whole..term.k).step_by(STEP) {
            edge.copy(term, i, m, from, b);
            multiply(sums, fresh, edge.a.as_ptr().cast(), STEP, edge.b.as_ptr().cast(), 1);
            fresh = false;
        }
    }
    if fresh {
        sums.0 = [[0.0; PANEL]; ROWS];
    }
}

impl Edge {
    /// The step of `term` at `from`; what it lacks in rows or in k is zero, so that a NaN cannot come from nowhere.
    fn copy(&mut self, term: &Term<bf16>, i: usize, m: usize, from: usize, b: &[bf16]) {
        let len = STEP.min(term.k - from);
        self.a = [[bf16::ZERO; STEP]; ROWS];
        for (r, row) in self.a[..m].iter_mut().enumerate() {
            row[..len].copy_from_slice(&term.a[(i + r) * term.lda + from..][..len]);
        }
        self.b = [[bf16::ZERO; 2 * PANEL]; STEP / 2];
        let pairs = len.div_ceil(2);
        let b = &b[from * PANEL..][..pairs * 2 * PANEL];
        self.b.as_flattened_mut()[..b.len()].copy_from_slice(b);
    }
}

/// sums (+)= a b over `steps` steps of 32: 32 rows of `a`, `lda` values apart, and 16 pair rows of a panel each step.
///
/// Only `gemm` calls it, between loading the configuration and releasing it, with that many values behind `a` and `b`.
#[inline(always)]
fn multiply(sums: &mut Sums, fresh: bool, a: *const bf16, lda: usize, b: *const bf16, steps: usize) {
    // SAFETY: see above; every tile touched is named as clobbered.
    unsafe {
        asm!(
            "test {fresh:e}, {fresh:e}",
            "jnz 2f",
            "tileloadd tmm0, [{c} + {width}*1]",
            "tileloadd tmm1, [{c} + {width}*1 + 64]",
            "tileloadd tmm2, [{c} + {width}*1 + 2048]",
            "tileloadd tmm3, [{c} + {width}*1 + 2112]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
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
            "tilestored [{c} + {width}*1], tmm0",
            "tilestored [{c} + {width}*1 + 64], tmm1",
            "tilestored [{c} + {width}*1 + 2048], tmm2",
            "tilestored [{c} + {width}*1 + 2112], tmm3",
            fresh = in(reg) fresh as u32,
            c = in(reg) sums,
            width = in(reg) 128usize, // bytes of a row of sums, and of a pair row of a panel
            stride = in(reg) 2 * lda,
            a = inout(reg) a => _,
            lower = inout(reg) a.wrapping_add(16 * lda) => _,
            b = inout(reg) b => _,
            steps = inout(reg) steps => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
