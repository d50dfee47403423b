//! A few rows times matrices where they lie, by AVX2: bound by the reading of the matrices. Even and odd values of k have
//! sums of their own, as in [`super::tile::gemm`] and in its order, so that a row has the same bits; those of AVX-512
//! without bf16 are the same too.

use super::avx2::{Avx2, halves};
use super::gemv::ahead;
use super::pack::{self, BLOCK, PAIRS, Transpose};
use super::tile::add_bias;
use super::whole::{Eights, RUN};
use super::{Columns, GEMV_ROWS, InPlace, Out, PANEL, Sum, Term};
use crate::matrix::Encoding;
use crate::quantize::packed::Packed;
use crate::{Dtype, Elem, bf16};
use std::arch::x86_64::*;

/// Outputs of a vector, and vectors of a panel.
const LANES: usize = 8;
pub(super) const GROUPS: usize = PANEL / LANES;

/// Sums of M rows of one panel over even and over odd k.
type Sums<const M: usize> = [[[__m256; 2]; GROUPS]; M];

/// # Safety
/// AVX2 with FMA and the level of `W` must be there, and lengths as [`crate::Kernels::gemv`] checks them.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn gemv<W: Eights>(
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
                $($m => unsafe { panels::<$m, W>(out, ldc, n, terms, bias) },)*
                _ => unreachable!("1 to {GEMV_ROWS} rows, not {rows}"),
            }
        };
    }
    rows!(1 2 3 4 5 6 7 8)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn panels<const M: usize, W: Eights>(
    mut out: Out<bf16>,
    ldc: usize,
    n: usize,
    terms: &[InPlace<bf16>],
    bias: Option<&[f32]>,
) {
    for j in (0..n).step_by(PANEL) {
        let cols = PANEL.min(n - j);
        let mut sums: Sums<M> = [[[_mm256_setzero_ps(); 2]; GROUPS]; M];
        for term in terms {
            // SAFETY: the caller's; the panel begins below n.
            unsafe {
                let done = match term.w.encoding() {
                    _ if term.sum == Sum::OverRows || term.scale != 1.0 => 0,
                    Encoding::Packed(packed) if packed.runs_by(RUN) => whole::<M, W>(&mut sums, term, &packed, j),
                    Encoding::Plain(Dtype::Bf16) if cols == PANEL => numbers(&mut sums, term, j),
                    _ => 0,
                };
                blocks(&mut sums, term, j, done);
            }
        }
        let bias = bias.map(|bias| &bias[j..j + cols]);
        for (r, sums) in sums.iter().enumerate() {
            let mut row = [0.0; PANEL];
            for (to, [even, odd]) in row.as_chunks_mut::<LANES>().0.iter_mut().zip(sums) {
                // SAFETY: eight values.
                unsafe { _mm256_storeu_ps(to.as_mut_ptr(), _mm256_add_ps(*even, *odd)) };
            }
            add_bias(&mut row, bias);
            out.put(r * ldc + j, &row[..cols]);
        }
    }
}

/// Sums of M rows of eight outputs, in registers.
type Held<const M: usize> = [[__m256; 2]; M];

#[inline(always)]
fn taken<const M: usize>(sums: &Sums<M>, g: usize) -> Held<M> {
    std::array::from_fn(|r| sums[r][g])
}

#[inline(always)]
fn put_back<const M: usize>(sums: &mut Sums<M>, g: usize, held: Held<M>) {
    sums.iter_mut().zip(held).for_each(|(sums, held)| sums[g] = held);
}

/// Adds a pair of k of eight outputs to the sums of every row, whose value of `a` at `k` is the even one's.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add<const M: usize>(held: &mut Held<M>, a: &[[f32; BLOCK]; M], k: usize, pair: [__m256; 2]) {
    for ([even, odd], a) in held.iter_mut().zip(a) {
        *even = _mm256_fmadd_ps(_mm256_set1_ps(a[k]), pair[0], *even);
        *odd = _mm256_fmadd_ps(_mm256_set1_ps(a[k + 1]), pair[1], *odd);
    }
}

/// `len` values, at most a block, of every row of `a` from `k` on, widened; zeros behind them.
#[inline]
#[target_feature(enable = "avx2")]
fn widened<const M: usize>(term: &InPlace<bf16>, k: usize, len: usize) -> [[f32; BLOCK]; M] {
    let mut rows = [[0.0; BLOCK]; M];
    for (r, row) in rows.iter_mut().enumerate() {
        let a = &term.a[r * term.lda + k..][..len];
        row.iter_mut().zip(a).for_each(|(to, a)| *to = a.widen());
    }
    rows
}

/// Multiplies a whole panel of bf16 where it lies, a block of k at a time; how much of the sum is done. What is read some time
/// later is fetched meanwhile, as by AVX-512.
///
/// # Safety
/// As [`gemv`]; the panel has all its rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn numbers<const M: usize>(sums: &mut Sums<M>, term: &InPlace<bf16>, j: usize) -> usize {
    let (end, stride) = (term.w.cols() / LANES * LANES, term.w.row_bytes());
    let first = term.w.row(term.n0 + j).as_ptr();
    for from in (0..end).step_by(BLOCK) {
        let len = BLOCK.min(end - from);
        let a: [[f32; BLOCK]; M] = widened(term, from, len);
        for g in 0..GROUPS {
            let mut held = taken(sums, g);
            for k in (0..len).step_by(LANES) {
                // two lines a step, as many as a block has, and not more at once: the processor has few misses under way
                for line in [0, 64] {
                    <Avx2 as Transpose<bf16>>::fetch(ahead(first, stride, g * LANES + k / LANES, 2 * from + line));
                }
                // SAFETY: eight rows with 16 bytes from here on.
                let pairs = unsafe { transposed(first.add(g * LANES * stride + 2 * (from + k)), stride) };
                for (p, pair) in pairs.into_iter().enumerate() {
                    add(&mut held, &a, k + 2 * p, halves(pair));
                }
            }
            put_back(sums, g, held);
        }
    }
    end
}

/// Of eight rows, `stride` bytes apart, 16 bytes each: four pairs, transposed. A row and the fourth after it are loaded into
/// one register, so that only dwords inside halves are left to transpose.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn transposed(rows: *const u8, stride: usize) -> [__m256i; 4] {
    // SAFETY: the caller's rows.
    let half = |i: usize| unsafe { _mm_loadu_si128(rows.add(i * stride).cast()) };
    let r: [__m256i; 4] = std::array::from_fn(|i| _mm256_set_m128i(half(4 + i), half(i)));
    let (a, b) = (_mm256_unpacklo_epi32(r[0], r[1]), _mm256_unpackhi_epi32(r[0], r[1]));
    let (c, d) = (_mm256_unpacklo_epi32(r[2], r[3]), _mm256_unpackhi_epi32(r[2], r[3]));
    [_mm256_unpacklo_epi64(a, c), _mm256_unpackhi_epi64(a, c), _mm256_unpacklo_epi64(b, d), _mm256_unpackhi_epi64(b, d)]
}

/// Multiplies a panel of whole numbers where it lies; how much of the sum is done.
///
/// # Safety
/// As [`gemv`], and runs of [`RUN`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn whole<const M: usize, W: Eights>(
    sums: &mut Sums<M>,
    term: &InPlace<bf16>,
    packed: &Packed,
    j: usize,
) -> usize {
    let (k, panel) = (term.w.cols(), (term.n0 + j) / PANEL);
    let term = Term { a: term.a, lda: term.lda, b: Columns::Whole(*packed), k };
    // SAFETY: the caller's.
    unsafe {
        W::products(&term, packed, 0..M, panel..panel + 1, |_, r, g, [sum, scale]| {
            let even = &mut sums[r][g][0];
            *even = _mm256_fmadd_ps(sum, scale, *even);
        });
    }
    k
}

/// The rest of the sum from `from` on, packed by blocks: other types, W^T, scaled terms, panels with outputs that are not there.
///
/// # Safety
/// As [`gemv`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn blocks<const M: usize>(sums: &mut Sums<M>, term: &InPlace<bf16>, j: usize, from: usize) {
    let InPlace { w, sum, n0, scale, .. } = term;
    let k = sum.shape(w).1;
    for from in (from..k).step_by(BLOCK) {
        let len = BLOCK.min(k - from);
        let a: [[f32; BLOCK]; M] = widened(term, from, len); // a zero behind an odd k
        let mut block = [[bf16::ZERO; PAIRS]; BLOCK / 2];
        let pairs = &mut block[..len.div_ceil(2)];
        // SAFETY: the caller's.
        unsafe { pack::block::<bf16, Avx2>(pairs, w, *sum, from, n0 + j, *scale) };
        for g in 0..GROUPS {
            let mut held = taken(sums, g);
            for (p, pair) in pairs.iter().enumerate() {
                // SAFETY: eight of the 32 pairs.
                let pair = unsafe { _mm256_loadu_si256(pair.as_ptr().add(2 * LANES * g).cast()) };
                add(&mut held, &a, 2 * p, halves(pair));
            }
            put_back(sums, g, held);
        }
    }
}
