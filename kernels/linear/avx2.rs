//! AVX2 with FMA: vectors of eight f32, tiles of 6 rows by 2 vectors in 15 of 16 registers. With AVX-VNNI whole numbers of long
//! runs are multiplied by it, and all else is the same.

use super::pack::{self as packing, Transpose};
use super::tile::{Pairs, Simd, Sums};
use super::{Forms, Out, PANEL, Sum, Term, Whole, gemv_avx2, tile, tn, whole, whole_dot};
use crate::quantize::packed::{self, Packed};
use crate::{Bits, Elem, Matrix, bf16};
use std::arch::x86_64::*;
use std::ops::Range;

pub(super) struct Avx2;
pub(super) struct AvxVnni;

pub(super) const F32: Forms<f32> = forms();
pub(super) const BF16: Forms<bf16> = Forms { gemv: Some(gemv_avx2::gemv::<Avx2>), whole: &[WHOLE], ..forms() };
pub(super) const BF16_VNNI: Forms<bf16> =
    Forms { gemm: gemm::<bf16, AvxVnni>, gemv: Some(gemv_avx2::gemv::<AvxVnni>), whole: &[WHOLE_VNNI, WHOLE], ..BF16 };
pub(super) const WHOLE: Whole<bf16> =
    Whole { run: whole::RUN, rounded_len: whole::ROUNDED_LEN, round: whole::round, turn };
const WHOLE_VNNI: Whole<bf16> =
    Whole { run: whole_dot::RUN, rounded_len: whole_dot::ROUNDED_LEN, round: whole_dot::round256, turn };

const fn forms<E: Elem<Real = f32>>() -> Forms<E>
where
    Avx2: Simd<E> + Transpose<E>,
{
    Forms {
        rows: <Avx2 as Simd<E>>::ROWS,
        pack: pack::<E>,
        gemm: gemm::<E, Avx2>,
        gemm_tn: gemm_tn::<E>,
        gemv: None,
        whole: &[],
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pack<E: Elem>(panel: &mut [E], w: &Matrix, sum: Sum, n0: usize, scale: f32)
where
    Avx2: Transpose<E>,
{
    // SAFETY: the caller's, here and in the forms below.
    unsafe { packing::pack::<E, Avx2>(panel, w, sum, n0, scale) }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn turn(panels: &mut [bf16], w: &Packed, n0: usize) {
    // SAFETY: see `pack`.
    unsafe { packing::turn::<Avx2>(panels, w, n0) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn gemm<E: Elem<Real = f32>, L: Simd<E>>(
    out: Out<E>,
    ldc: usize,
    rows: usize,
    n: usize,
    terms: &[Term<E>],
    bias: Option<&[f32]>,
) {
    // SAFETY: see `pack`.
    unsafe { tile::gemm::<Pairs<E, L>>(out, ldc, rows, n, terms, bias) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn gemm_tn<E: Elem<Real = f32>>(
    c: &mut [f32],
    m: usize,
    n: usize,
    a: &[E],
    lda: usize,
    b: &[E],
    ldb: usize,
    rows: usize,
) where
    Avx2: Simd<E>,
{
    // SAFETY: see `pack`.
    unsafe { tn::gemm_tn::<E, Avx2>(c, m, n, a, lda, b, ldb, rows) }
}

macro_rules! simd {
    ($level:ty, $elem:ty, $load:expr $(, $whole:item)?) => {
        impl Simd<$elem> for $level {
            type V = __m256;
            const LANES: usize = 8;
            const ROWS: usize = 6;
            #[inline]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn zero() -> __m256 {
                _mm256_setzero_ps()
            }
            #[inline]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn load(p: *const $elem) -> __m256 {
                // SAFETY: the caller's eight values.
                unsafe { $load(p) }
            }
            #[inline]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn load_real(p: *const f32) -> __m256 {
                // SAFETY: the caller's eight values.
                unsafe { _mm256_loadu_ps(p) }
            }
            #[inline]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn store(p: *mut f32, v: __m256) {
                // SAFETY: the caller's eight values.
                unsafe { _mm256_storeu_ps(p, v) }
            }
            #[inline]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn splat(x: f32) -> __m256 {
                _mm256_set1_ps(x)
            }
            #[inline]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn splat_pair(p: *const f32) -> __m256 {
                // SAFETY: the caller's two values.
                let pair = unsafe { p.cast::<f64>().read_unaligned() };
                _mm256_castpd_ps(_mm256_set1_pd(pair))
            }
            #[inline]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
                _mm256_fmadd_ps(a, b, c)
            }
            #[inline]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn store_pair_sums(p: *mut f32, [first, second]: [__m256; 2]) {
                let sums = _mm256_hadd_ps(first, second); // by halves of 128 bits
                let sums = _mm256_permute4x64_pd::<0b11_01_10_00>(_mm256_castps_pd(sums));
                // SAFETY: the caller's eight values.
                unsafe { _mm256_storeu_ps(p, _mm256_castpd_ps(sums)) }
            }
            $($whole)?
        }
    };
}
simd!(Avx2, f32, |p: *const f32| _mm256_loadu_ps(p));
macro_rules! simd_bf16 {
    ($($level:ty)+) => {$(
        simd!(
            $level,
            bf16,
            |p: *const bf16| widen(_mm_loadu_si128(p.cast())),
            #[inline]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn whole(c: Sums<__m256>, term: &Term<bf16>, w: &Packed, rows: Range<usize>, panels: Range<usize>) {
                // SAFETY: the caller's.
                unsafe { whole::add::<$level, _>(c, term, w, rows, panels) }
            }
        );
    )+};
}
simd_bf16!(Avx2 AvxVnni);

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn widen(x: __m128i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(x)))
}

macro_rules! transpose {
    ($elem:ty, $pairs:literal, $block:ident, $interleave:ident $(, $widen:item)?) => {
        impl Transpose<$elem> for Avx2 {
            #[inline]
            #[target_feature(enable = "avx2")]
            unsafe fn interleave(to: &mut [$elem; packing::PAIRS], even: *const $elem, odd: *const $elem) {
                // SAFETY: the caller's.
                unsafe { $interleave(to.as_mut_ptr(), even, odd) }
            }
            #[inline]
            #[target_feature(enable = "avx2")]
            unsafe fn pairs(panel: &mut [$elem], rows: *const $elem, stride: usize) {
                let done = panel.len() / packing::PAIRS / $pairs * $pairs;
                // SAFETY: as many rows from j on have so many pairs from the block on; `to` has a row for each.
                unsafe {
                    for (block, to) in panel.chunks_exact_mut($pairs * packing::PAIRS).enumerate() {
                        for j in (0..super::PANEL).step_by($pairs) {
                            let from = rows.byte_add(j * stride).add(2 * $pairs * block);
                            $block(to.as_mut_ptr().add(2 * j), from, stride);
                        }
                    }
                    packing::rest(panel, rows, stride, done);
                }
            }
            $($widen)?
            #[inline(always)]
            fn fetch(line: *const u8) {
                // SAFETY: every x86-64 processor has it, and it faults at no address.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) }
            }
        }
    };
}
transpose!(bf16, 8, transpose8, interleave16);
transpose!(
    f32,
    4,
    transpose4,
    interleave8,
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn widen_pairs(to: &mut [[f32; packing::PAIRS]], bits: Bits, q: &[u8], scales: &[bf16; PANEL]) {
        let scales = scales_of_outputs(scales);
        for (to, q) in to.iter_mut().zip(q.chunks_exact(packed::pairs(bits))) {
            for (g, (to, scale)) in to.as_chunks_mut::<16>().0.iter_mut().zip(scales).enumerate() {
                // SAFETY: a pair of all outputs; sixteen values are written.
                unsafe { store_exact(to.as_mut_ptr(), bits, q.as_ptr(), g, scale) };
            }
        }
    }
);

/// The scales of the panel's outputs, eight a vector.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn scales_of_outputs(scales: &[bf16; PANEL]) -> [__m256; PANEL / 8] {
    // SAFETY: eight of the 32 scales.
    std::array::from_fn(|g| widen(unsafe { _mm_loadu_si128(scales.as_ptr().add(8 * g).cast()) }))
}

/// The even and the odd values of eight pairs of bf16, widened.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn halves(pairs: __m256i) -> [__m256; 2] {
    let odd = _mm256_and_si256(pairs, _mm256_set1_epi32(!0xffff));
    [_mm256_slli_epi32::<16>(pairs), odd].map(|half| _mm256_castsi256_ps(half))
}

/// The even and the odd value of a pair of eight outputs, the panel's `g`th eight: q scale, which is exact.
///
/// # Safety
/// The pair's 64 or 32 bytes of all outputs are there.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn scaled_pair(bits: Bits, q: *const u8, g: usize, scale: __m256) -> [__m256; 2] {
    // SAFETY: the caller's bytes.
    let whole = unsafe {
        match bits {
            Bits::Eight => {
                let pairs = _mm256_cvtepi8_epi16(_mm_loadu_si128(q.add(16 * g).cast()));
                [_mm256_srai_epi32::<16>(_mm256_slli_epi32::<16>(pairs)), _mm256_srai_epi32::<16>(pairs)]
            }
            Bits::Four => {
                let pairs = _mm256_cvtepu8_epi32(_mm_loadl_epi64(q.add(8 * g).cast()));
                [_mm256_and_si256(pairs, _mm256_set1_epi32(15)), _mm256_srli_epi32::<4>(pairs)]
                    .map(|q| _mm256_sub_epi32(q, _mm256_set1_epi32(8)))
            }
        }
    };
    whole.map(|q| _mm256_mul_ps(_mm256_cvtepi32_ps(q), scale))
}

/// Eight pairs as f32.
///
/// # Safety
/// As [`scaled_pair`], and there is room for sixteen values.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store_exact(to: *mut f32, bits: Bits, q: *const u8, g: usize, scale: __m256) {
    // SAFETY: the caller's.
    unsafe {
        let [even, odd] = scaled_pair(bits, q, g, scale);
        let (lo, hi) = (_mm256_unpacklo_ps(even, odd), _mm256_unpackhi_ps(even, odd)); // by halves of 128 bits
        _mm256_storeu_ps(to, _mm256_permute2f128_ps::<0x20>(lo, hi));
        _mm256_storeu_ps(to.add(8), _mm256_permute2f128_ps::<0x31>(lo, hi));
    }
}

/// A panel's width of both rows, sixteen values at a time.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn interleave16(to: *mut bf16, even: *const bf16, odd: *const bf16) {
    for j in (0..super::PANEL).step_by(16) {
        // SAFETY: the caller's.
        unsafe {
            let (a, b) = (_mm256_loadu_si256(even.add(j).cast()), _mm256_loadu_si256(odd.add(j).cast()));
            let (lo, hi) = (_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)); // by halves of 128 bits
            let to: *mut __m256i = to.add(2 * j).cast();
            _mm256_storeu_si256(to, _mm256_permute2x128_si256::<0x20>(lo, hi));
            _mm256_storeu_si256(to.add(1), _mm256_permute2x128_si256::<0x31>(lo, hi));
        }
    }
}

/// A panel's width of both rows, eight values at a time.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn interleave8(to: *mut f32, even: *const f32, odd: *const f32) {
    for j in (0..super::PANEL).step_by(8) {
        // SAFETY: the caller's.
        unsafe {
            let (a, b) = (_mm256_loadu_ps(even.add(j)), _mm256_loadu_ps(odd.add(j)));
            let (lo, hi) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)); // by halves of 128 bits
            let to = to.add(2 * j);
            _mm256_storeu_ps(to, _mm256_permute2f128_ps::<0x20>(lo, hi));
            _mm256_storeu_ps(to.add(8), _mm256_permute2f128_ps::<0x31>(lo, hi));
        }
    }
}

/// Four rows of four pairs, rows `stride` bytes apart, to four rows of a panel.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn transpose4(to: *mut f32, from: *const f32, stride: usize) {
    // SAFETY: the caller's.
    let r: [__m256d; 4] = std::array::from_fn(|i| unsafe { _mm256_loadu_pd(from.byte_add(i * stride).cast()) });
    let even = [_mm256_unpacklo_pd(r[0], r[1]), _mm256_unpacklo_pd(r[2], r[3])];
    let odd = [_mm256_unpackhi_pd(r[0], r[1]), _mm256_unpackhi_pd(r[2], r[3])];
    for (p, [upper, lower]) in [even, odd].into_iter().enumerate() {
        // SAFETY: the caller's.
        unsafe {
            let row = |p: usize| to.add(p * packing::PAIRS).cast();
            _mm256_storeu_pd(row(p), _mm256_permute2f128_pd::<0x20>(upper, lower));
            _mm256_storeu_pd(row(p + 2), _mm256_permute2f128_pd::<0x31>(upper, lower));
        }
    }
}

/// Eight rows of eight pairs, rows `stride` bytes apart, to eight rows of a panel.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn transpose8(to: *mut bf16, from: *const bf16, stride: usize) {
    // SAFETY: the caller's.
    let r: [__m256i; 8] = std::array::from_fn(|i| unsafe { _mm256_loadu_si256(from.byte_add(i * stride).cast()) });
    // Pairs of rows, then quadruples: `quads[q]` has pair q of rows 0..4 below and pair q + 4 above.
    let lo = |i: usize| _mm256_unpacklo_epi32(r[i], r[i + 1]);
    let hi = |i: usize| _mm256_unpackhi_epi32(r[i], r[i + 1]);
    let quads = |i: usize| {
        let (a, b, c, d) = (lo(i), lo(i + 2), hi(i), hi(i + 2));
        [
            _mm256_unpacklo_epi64(a, b),
            _mm256_unpackhi_epi64(a, b),
            _mm256_unpacklo_epi64(c, d),
            _mm256_unpackhi_epi64(c, d),
        ]
    };
    let (upper, lower) = (quads(0), quads(4));
    for p in 0..4 {
        // SAFETY: the caller's.
        unsafe {
            let row = |p: usize| to.add(p * packing::PAIRS).cast();
            _mm256_storeu_si256(row(p), _mm256_permute2x128_si256::<0x20>(upper[p], lower[p]));
            _mm256_storeu_si256(row(p + 4), _mm256_permute2x128_si256::<0x31>(upper[p], lower[p]));
        }
    }
}
