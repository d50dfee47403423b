//! c[m, n] += a^T b by pairs of rows through vdpbf16ps: two products a lane and instruction, denormals flushed.

use crate::bf16;
use std::arch::x86_64::*;

/// Columns of a tile: two vectors of sixteen sums.
const COLS: usize = 32;
/// Rows of a tile's sums: 16 sums, 2 of b and 1 of a in registers. Two tiles take LoRA's rank of 16.
const TALL: usize = 8;
/// Pairs of rows whose values of a are laid out at a time.
const PAIRS: usize = 64;

/// A tile's values of a: row 2p and 2p + 1 of column i in one word.
type Words = [[u32; TALL]; PAIRS];

/// # Safety
/// AVX512-BF16 must be there, and lengths as [`crate::Kernels::gemm_tn`] checks them.
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
    let mut words: Words = [[0; TALL]; PAIRS];
    for t in (0..rows).step_by(2 * PAIRS) {
        let rows = (2 * PAIRS).min(rows - t);
        for i in (0..m).step_by(TALL) {
            let tall = TALL.min(m - i);
            lay(&mut words, &a[t * lda + i..], lda, rows, tall);
            for j in (0..n).step_by(COLS) {
                let (b, c) = (&b[t * ldb + j..], &mut c[i * n + j..]);
                // SAFETY: the tile's tall x (n - j) values lie within c, its rows within b; the level is the caller's.
                unsafe { tile(tall, c.as_mut_ptr(), n, &words, b.as_ptr(), ldb, rows, COLS.min(n - j)) };
            }
        }
    }
}

/// The first `tall` columns of `rows` rows of a, in pairs; the row beside an odd last one is zero.
fn lay(words: &mut Words, a: &[bf16], lda: usize, rows: usize, tall: usize) {
    for (p, words) in words.iter_mut().enumerate().take(rows.div_ceil(2)) {
        let row = |t: usize| if t < rows { &a[t * lda..][..tall] } else { &[bf16::ZERO; TALL][..tall] };
        for (word, (low, high)) in words.iter_mut().zip(row(2 * p).iter().zip(row(2 * p + 1))) {
            *word = u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16;
        }
    }
}

/// A tile's height is part of its type.
#[inline]
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn tile(tall: usize, c: *mut f32, ldc: usize, a: &Words, b: *const bf16, ldb: usize, rows: usize, cols: usize) {
    macro_rules! rows {
        ($($m:literal)*) => {
            match tall {
                // SAFETY: the caller's.
                $($m => unsafe { inner::<$m>(c, ldc, a, b, ldb, rows, cols) },)*
                _ => unreachable!("a tile has 1 to {TALL} rows, not {tall}"),
            }
        };
    }
    rows!(1 2 3 4 5 6 7 8)
}

/// c[M, cols] += the sum over pairs of rows, in order; cols at most [`COLS`].
#[inline]
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn inner<const M: usize>(
    c: *mut f32,
    ldc: usize,
    a: &Words,
    b: *const bf16,
    ldb: usize,
    rows: usize,
    cols: usize,
) {
    let seen = u32::MAX >> (COLS - cols);
    let halves: [__mmask16; 2] = [seen as u16, (seen >> 16) as u16];
    // lane l of half h takes column 16 h + l of both rows
    let lanes = |half: u32| -> __m512i {
        let columns: [u32; 16] = std::array::from_fn(|l| {
            let column = 16 * half + l as u32;
            column | (column + 32) << 16
        });
        // SAFETY: vectors of the same size.
        unsafe { std::mem::transmute(columns) }
    };
    let lanes = [lanes(0), lanes(1)];
    // SAFETY: masked lanes are neither read nor written, wherever they point; the others lie within c and b, by the caller.
    unsafe {
        let mut sums: [[__m512; 2]; M] = std::array::from_fn(|i| {
            std::array::from_fn(|h| _mm512_maskz_loadu_ps(halves[h], c.wrapping_add(i * ldc + 16 * h)))
        });
        for (p, words) in a.iter().enumerate().take(rows.div_ceil(2)) {
            let row =
                |t: usize| _mm512_maskz_loadu_epi16(if t < rows { seen } else { 0 }, b.wrapping_add(t * ldb).cast());
            let (low, high) = (row(2 * p), row(2 * p + 1));
            let b: [__m512bh; 2] =
                std::array::from_fn(|h| std::mem::transmute(_mm512_permutex2var_epi16(low, lanes[h], high)));
            for (sums, word) in sums.iter_mut().zip(words) {
                let a: __m512bh = std::mem::transmute(_mm512_set1_epi32(*word as i32));
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = _mm512_dpbf16_ps(*sum, a, b);
                }
            }
        }
        for (i, sums) in sums.into_iter().enumerate() {
            for (h, sum) in sums.into_iter().enumerate() {
                _mm512_mask_storeu_ps(c.wrapping_add(i * ldc + 16 * h), halves[h], sum);
            }
        }
    }
}
