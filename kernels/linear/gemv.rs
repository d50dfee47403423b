//! A few rows times matrices where they lie, by vdpbf16ps: bound by the reading of the matrices. Pairs are transposed or
//! widened in registers and multiplied at once, in the order of [`super::tile::gemm`], so that a row has the same bits.

use super::avx512::{AHEAD, Dot, scales_of_pairs, widen_half};
use super::pack::{self, BLOCK, PAIRS, Transpose};
use super::tile::{Tile, add_bias};
use super::whole_dot::{self, RUN};
use super::{Columns, GEMV_ROWS, InPlace, Out, PANEL, Sum, Term};
use crate::matrix::Encoding;
use crate::quantize::packed::{self, Packed};
use crate::{Dtype, bf16};
use std::arch::x86_64::*;

/// Bytes of every row that are fetched ahead.
const ROW_AHEAD: usize = 512;

/// Sums of M rows of one panel.
type Sums<const M: usize> = [[__m512; 2]; M];

/// # Safety
/// AVX-512 with bf16 must be there, and lengths as [`crate::Kernels::gemv`] checks them.
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn gemv(
    out: Out<bf16>,
    ldc: usize,
    rows: usize,
    n: usize,
    terms: &[InPlace<bf16>],
    bias: Option<&[f32]>,
) {
    macro_rules! rows {
        ($($m:literal)*) => {
            match rows {
                // SAFETY: the caller's.
                $($m => unsafe { panels::<$m>(out, ldc, n, terms, bias) },)*
                _ => unreachable!("1 to {GEMV_ROWS} rows, not {rows}"),
            }
        };
    }
    rows!(1 2 3 4 5 6 7 8)
}

#[inline]
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn panels<const M: usize>(
    mut out: Out<bf16>,
    ldc: usize,
    n: usize,
    terms: &[InPlace<bf16>],
    bias: Option<&[f32]>,
) {
    for j in (0..n).step_by(PANEL) {
        let cols = PANEL.min(n - j);
        let mut sums = [[_mm512_setzero_ps(); 2]; M];
        for term in terms {
            // SAFETY: the caller's; the panel begins below n.
            unsafe {
                let done = match term.w.encoding() {
                    _ if term.sum == Sum::OverRows || term.scale != 1.0 => 0,
                    Encoding::Packed(packed) if packed.runs_by(RUN) => whole(&mut sums, term, &packed, j),
                    Encoding::Packed(packed) => widened(&mut sums, term, &packed, j),
                    Encoding::Plain(Dtype::Bf16) if cols == PANEL => numbers(&mut sums, term, j),
                    _ => 0,
                };
                blocks(&mut sums, term, j, done);
            }
        }
        let bias = bias.map(|bias| &bias[j..j + cols]);
        for (r, sums) in sums.iter().enumerate() {
            let mut row = [0.0; PANEL];
            // SAFETY: a row's 32 values.
            unsafe { Dot::finish(row.as_mut_ptr(), *sums) };
            add_bias(&mut row, bias);
            out.put(r * ldc + j, &row[..cols]);
        }
    }
}

/// Adds a pair of k of sixteen outputs to the sums of one half of the panel.
///
/// # Safety
/// Every row of `a` has two values from `k` on.
#[inline]
#[target_feature(enable = "avx512bf16,avx512f")]
unsafe fn add<const M: usize>(sums: &mut Sums<M>, half: usize, a: *const bf16, lda: usize, k: usize, pairs: __m512) {
    for (r, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's two values.
        sums[half] = unsafe { Dot::mul_add(Dot::pair(a.add(r * lda + k)), pairs, sums[half]) };
    }
}

/// Multiplies a whole panel of bf16 where it lies, four pairs at a time; how much of the sum is done. What is read some time
/// later is fetched meanwhile: a panel's rows are too many streams for the processor to foresee.
///
/// # Safety
/// As [`gemv`]; the panel has all its rows.
#[inline]
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2")]
unsafe fn numbers<const M: usize>(sums: &mut Sums<M>, term: &InPlace<bf16>, j: usize) -> usize {
    let (quads, stride) = (term.w.cols() / 8, term.w.row_bytes());
    let first = term.w.row(term.n0 + j).as_ptr();
    for q in 0..quads {
        // a line of every row lasts four steps: each fetches those of a quarter of the rows
        for row in 8 * (q % 4)..8 * (q % 4 + 1) {
            <Dot as Transpose<bf16>>::fetch(ahead(first, stride, row, q / 4 * 64));
        }
        for half in 0..2 {
            // SAFETY: sixteen rows with 16 bytes from here on, and so many values in every row of a.
            unsafe {
                for (p, pairs) in transposed(first.add(half * 16 * stride + 16 * q), stride).into_iter().enumerate() {
                    add(sums, half, term.a.as_ptr(), term.lda, 8 * q + 2 * p, pairs);
                }
            }
        }
    }
    8 * quads
}

/// Where row `row` of the panel that begins at `first` is read some time after its byte `at`: later in the row, or in the next
/// panel's. Not further, so that little of a task's first panel comes unfetched.
#[inline(always)]
pub(super) fn ahead(first: *const u8, stride: usize, row: usize, at: usize) -> *const u8 {
    let later = at + ROW_AHEAD;
    let panel = if later < stride { 0 } else { (PANEL - 1) * stride };
    first.wrapping_add(panel + row * stride + later)
}

/// Of sixteen rows, `stride` bytes apart, 16 bytes each: four pairs, transposed. Each quarter of a register is loaded where it
/// is wanted, so that only dwords inside quarters are left to transpose.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
unsafe fn transposed(rows: *const u8, stride: usize) -> [__m512; 4] {
    // SAFETY: the caller's rows.
    let quarter = |i: usize| unsafe { _mm_loadu_si128(rows.add(i * stride).cast()) };
    let r: [__m512i; 4] = std::array::from_fn(|i| {
        let first = _mm512_castsi128_si512(quarter(i));
        let second = _mm512_mask_broadcast_i32x4(first, 0x00f0, quarter(4 + i));
        let third = _mm512_mask_broadcast_i32x4(second, 0x0f00, quarter(8 + i));
        _mm512_mask_broadcast_i32x4(third, 0xf000, quarter(12 + i))
    });
    let (a, b) = (_mm512_unpacklo_epi32(r[0], r[1]), _mm512_unpackhi_epi32(r[0], r[1]));
    let (c, d) = (_mm512_unpacklo_epi32(r[2], r[3]), _mm512_unpackhi_epi32(r[2], r[3]));
    [_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c), _mm512_unpacklo_epi64(b, d), _mm512_unpackhi_epi64(b, d)]
        .map(|pairs| _mm512_castsi512_ps(pairs))
}

/// Multiplies a panel of whole numbers of short runs where it lies, widened, all whole pairs of k; how much of the sum is done.
///
/// # Safety
/// As [`gemv`].
#[inline]
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2")]
unsafe fn widened<const M: usize>(sums: &mut Sums<M>, term: &InPlace<bf16>, packed: &Packed, j: usize) -> usize {
    let (end, mut k) = (term.w.cols() / 2 * 2, 0);
    for (bits, q, scales) in packed.panel((term.n0 + j) / PANEL, 0..end) {
        let scales = scales_of_pairs(scales);
        for q in q.chunks_exact(packed::pairs(bits)) {
            <Dot as Transpose<bf16>>::fetch(q.as_ptr().wrapping_add(AHEAD));
            for half in 0..2 {
                // SAFETY: a pair of all outputs, and of every row of a.
                unsafe { add(sums, half, term.a.as_ptr(), term.lda, k, widen_half(bits, q.as_ptr(), half, &scales)) };
            }
            k += 2;
        }
    }
    end
}

/// Multiplies a panel of whole numbers of long runs where it lies; how much of the sum is done.
///
/// # Safety
/// As [`gemv`], and runs of [`RUN`].
#[inline]
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn whole<const M: usize>(sums: &mut Sums<M>, term: &InPlace<bf16>, w: &Packed, j: usize) -> usize {
    let (k, panel) = (term.w.cols(), (term.n0 + j) / PANEL);
    let term = Term { a: term.a, lda: term.lda, b: Columns::Whole(*w), k };
    // SAFETY: the caller's; a table with this form exists only where VNNI is there.
    unsafe { whole_dot::add_few(sums, &term, w, panel) };
    k
}

/// The rest of the sum from `from` on, packed by blocks: other types, W^T, scaled terms, panels with outputs that are not there.
///
/// # Safety
/// As [`gemv`].
#[inline]
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn blocks<const M: usize>(sums: &mut Sums<M>, term: &InPlace<bf16>, j: usize, from: usize) {
    let InPlace { a, lda, w, sum, n0, scale } = term;
    let k = sum.shape(w).1;
    for from in (from..k).step_by(BLOCK) {
        let len = BLOCK.min(k - from);
        let mut rows = [[bf16::ZERO; BLOCK]; M]; // a zero behind an odd k
        for (r, row) in rows.iter_mut().enumerate() {
            row[..len].copy_from_slice(&a[r * lda + from..][..len]);
        }
        let mut block = [[bf16::ZERO; PAIRS]; BLOCK / 2];
        let pairs = &mut block[..len.div_ceil(2)];
        // SAFETY: the caller's; each row has a block, and each pair 32 values a half.
        unsafe {
            pack::block::<bf16, Dot>(pairs, w, *sum, from, n0 + j, *scale);
            for (p, pair) in pairs.iter().enumerate() {
                for half in 0..2 {
                    let pair = Dot::columns(pair.as_ptr().add(PANEL * half));
                    add(sums, half, rows.as_flattened().as_ptr(), BLOCK, 2 * p, pair);
                }
            }
        }
    }
}
