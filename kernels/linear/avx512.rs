//! AVX-512: vectors of sixteen f32, tiles of 12 rows by 2 vectors in 27 of 32 registers; bf16 widened, or by pairs
//! through vdpbf16ps, which multiplies twice as much and flushes denormals. With VNNI whole numbers of long runs are multiplied as bytes.

use super::avx2::{self, Avx2};
use super::pack::{self as packing, Transpose};
use super::tile::{Pairs, Simd, Sums, Tile};
use super::{Forms, Out, PANEL, Sum, Term, Whole, gemv, gemv_avx2, tile, tn, tn_dot, whole, whole_dot};
use crate::quantize::packed::{self, Packed};
use crate::{Bits, Elem, Matrix, bf16};
use std::arch::x86_64::*;
use std::ops::Range;

pub(super) struct Avx512;
pub(super) struct Avx512Vnni;
pub(super) struct Dot;

pub(super) const F32: Forms<f32> = forms();
pub(super) const BF16: Forms<bf16> = Forms { gemv: Some(gemv_avx2::gemv::<Avx2>), whole: &[avx2::WHOLE], ..forms() };
pub(super) const BF16_VNNI: Forms<bf16> = Forms {
    gemm: gemm::<bf16, Avx512Vnni>,
    gemv: Some(gemv_avx2::gemv::<Avx512Vnni>),
    whole: &[Whole { round: whole_dot::round512, turn: avx2::turn, ..WHOLE_DOT }, avx2::WHOLE],
    ..BF16
};
pub(super) const BF16_DOT: Forms<bf16> = Forms {
    rows: Dot::ROWS,
    pack: pack_dot,
    gemm: gemm_dot,
    gemm_tn: tn_dot::gemm_tn,
    gemv: Some(gemv::gemv),
    whole: &[WHOLE_DOT],
};
const WHOLE_DOT: Whole<bf16> =
    Whole { run: whole_dot::RUN, rounded_len: whole_dot::ROUNDED_LEN, round: whole_dot::round, turn: turn_dot };

const fn forms<E: Elem<Real = f32>>() -> Forms<E>
where
    Avx2: Transpose<E>,
    Avx512: Simd<E>,
{
    Forms {
        rows: <Avx512 as Simd<E>>::ROWS,
        pack: pack::<E>,
        gemm: gemm::<E, Avx512>,
        gemm_tn: gemm_tn::<E>,
        gemv: None,
        whole: &[],
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn pack<E: Elem>(panel: &mut [E], w: &Matrix, sum: Sum, n0: usize, scale: f32)
where
    Avx2: Transpose<E>,
{
    // SAFETY: the caller's, here and in the forms below.
    unsafe { packing::pack::<E, Avx2>(panel, w, sum, n0, scale) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
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

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
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
    Avx512: Simd<E>,
{
    // SAFETY: see `pack`.
    unsafe { tn::gemm_tn::<E, Avx512>(c, m, n, a, lda, b, ldb, rows) }
}

macro_rules! simd {
    ($level:ty, $elem:ty, $load:expr $(, $whole:item)?) => {
        impl Simd<$elem> for $level {
            type V = __m512;
            const LANES: usize = 16;
            const ROWS: usize = 12;
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            unsafe fn zero() -> __m512 {
                _mm512_setzero_ps()
            }
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            unsafe fn load(p: *const $elem) -> __m512 {
                // SAFETY: the caller's sixteen values.
                unsafe { $load(p) }
            }
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            unsafe fn load_real(p: *const f32) -> __m512 {
                // SAFETY: the caller's sixteen values.
                unsafe { _mm512_loadu_ps(p) }
            }
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            unsafe fn store(p: *mut f32, v: __m512) {
                // SAFETY: the caller's sixteen values.
                unsafe { _mm512_storeu_ps(p, v) }
            }
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            unsafe fn splat(x: f32) -> __m512 {
                _mm512_set1_ps(x)
            }
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            unsafe fn splat_pair(p: *const f32) -> __m512 {
                // SAFETY: the caller's two values.
                let pair = unsafe { p.cast::<f64>().read_unaligned() };
                _mm512_castpd_ps(_mm512_set1_pd(pair))
            }
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
                _mm512_fmadd_ps(a, b, c)
            }
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            unsafe fn store_pair_sums(p: *mut f32, [first, second]: [__m512; 2]) {
                let even = _mm512_shuffle_ps::<0b10_00_10_00>(first, second); // by quarters of 128 bits
                let odd = _mm512_shuffle_ps::<0b11_01_11_01>(first, second);
                let sums = _mm512_castps_pd(_mm512_add_ps(even, odd));
                let order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
                // SAFETY: the caller's sixteen values.
                unsafe { _mm512_storeu_ps(p, _mm512_castpd_ps(_mm512_permutexvar_pd(order, sums))) }
            }
            $($whole)?
        }
    };
}
simd!(Avx512, f32, |p: *const f32| _mm512_loadu_ps(p));
macro_rules! simd_bf16 {
    ($($level:ty, $eights:ty;)+) => {$(
        simd!(
            $level,
            bf16,
            |p: *const bf16| widen(_mm256_loadu_si256(p.cast())),
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            unsafe fn whole(c: Sums<__m512>, term: &Term<bf16>, w: &Packed, rows: Range<usize>, panels: Range<usize>) {
                // SAFETY: the caller's.
                unsafe { whole::add::<$eights, _>(c, term, w, rows, panels) }
            }
        );
    )+};
}
simd_bf16!(Avx512, Avx2; Avx512Vnni, Avx512Vnni;);

#[inline]
#[target_feature(enable = "avx512f")]
fn widen(x: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x)))
}

#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn pack_dot(panel: &mut [bf16], w: &Matrix, sum: Sum, n0: usize, scale: f32) {
    // SAFETY: see `pack`.
    unsafe { packing::pack::<bf16, Dot>(panel, w, sum, n0, scale) }
}

#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn turn_dot(panels: &mut [bf16], w: &Packed, n0: usize) {
    // SAFETY: see `pack`.
    unsafe { packing::turn::<Dot>(panels, w, n0) }
}

/// Bytes from what is widened to what is fetched.
pub(super) const AHEAD: usize = 4096;

/// Halves of bytes, the lower one first, as bytes from -8 to 7.
#[inline]
#[target_feature(enable = "avx2")]
fn signed(halves: __m128i) -> __m256i {
    let wide = _mm256_cvtepu8_epi16(halves);
    let both = _mm256_or_si256(wide, _mm256_slli_epi16::<4>(wide)); // the low half below the high one
    _mm256_sub_epi8(_mm256_and_si256(both, _mm256_set1_epi8(15)), _mm256_set1_epi8(8))
}

/// As [`Avx2`], with whole numbers through vcvtne2ps2bf16, which rounds as [`Elem::narrow`] does but for denormals.
impl Transpose<bf16> for Dot {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn interleave(to: &mut [bf16; packing::PAIRS], even: *const bf16, odd: *const bf16) {
        // SAFETY: see `pack`.
        unsafe { <Avx2 as Transpose<bf16>>::interleave(to, even, odd) }
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn pairs(panel: &mut [bf16], rows: *const bf16, stride: usize) {
        // SAFETY: see `pack`.
        unsafe { <Avx2 as Transpose<bf16>>::pairs(panel, rows, stride) }
    }
    #[inline(always)]
    fn fetch(line: *const u8) {
        <Avx2 as Transpose<bf16>>::fetch(line)
    }
    #[inline]
    #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2")]
    unsafe fn widen_pairs(to: &mut [[bf16; packing::PAIRS]], bits: Bits, q: &[u8], scales: &[bf16; PANEL]) {
        let scales = scales_of_pairs(scales);
        for (to, q) in to.iter_mut().zip(q.chunks_exact(packed::pairs(bits))) {
            <Self as Transpose<bf16>>::fetch(q.as_ptr().wrapping_add(AHEAD));
            for (half, to) in to.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
                // SAFETY: a pair's 64 or 32 bytes of all outputs are read, and its 64 values written.
                unsafe { _mm512_storeu_ps(to.as_mut_ptr().cast(), widen_half(bits, q.as_ptr(), half, &scales)) };
            }
        }
    }
}

/// Eight outputs' scales a vector, each for both values of a pair.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
pub(super) fn scales_of_pairs(scales: &[bf16; PANEL]) -> [__m512; 4] {
    let twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    std::array::from_fn(|at| {
        // SAFETY: eight of the 32 scales.
        let bits = unsafe { _mm_loadu_si128(scales.as_ptr().add(8 * at).cast()) };
        let wide = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits));
        _mm512_castsi512_ps(_mm512_permutexvar_epi32(twice, _mm512_castsi256_si512(wide)))
    })
}

/// A pair of sixteen outputs, the lower or the upper half of a panel: narrow(q scale), as bits of bf16.
///
/// # Safety
/// The pair's 64 or 32 bytes of all outputs are there.
#[inline]
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2")]
pub(super) unsafe fn widen_half(bits: Bits, q: *const u8, half: usize, scales: &[__m512; 4]) -> __m512 {
    // SAFETY: the caller's bytes; vectors of one size.
    unsafe {
        let bytes = match bits {
            Bits::Eight => _mm256_loadu_si256(q.add(32 * half).cast()),
            Bits::Four => signed(_mm_loadu_si128(q.add(16 * half).cast())),
        };
        let real = |q, by| _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)), by);
        let low = real(_mm256_castsi256_si128(bytes), scales[2 * half]);
        let high = real(_mm256_extracti128_si256::<1>(bytes), scales[2 * half + 1]);
        std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(high, low))
    }
}

#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn gemm_dot(out: Out<bf16>, ldc: usize, rows: usize, n: usize, terms: &[Term<bf16>], bias: Option<&[f32]>) {
    // SAFETY: see `pack`.
    unsafe { tile::gemm::<Dot>(out, ldc, rows, n, terms, bias) }
}

/// Sixteen columns of sums; `pair` and `columns` hold their bf16 bits in the same type.
impl Tile for Dot {
    type E = bf16;
    type A = bf16;
    type V = __m512;
    const AS_STORED: bool = true;
    const COLS: usize = 16;
    const ROWS: usize = 12;
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn zero() -> __m512 {
        _mm512_setzero_ps()
    }
    #[inline(always)]
    fn stage(x: bf16) -> bf16 {
        x
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn pair(p: *const bf16) -> __m512 {
        // SAFETY: the caller's two values.
        let pair = unsafe { p.cast::<f32>().read_unaligned() };
        _mm512_set1_ps(pair)
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn columns(p: *const bf16) -> __m512 {
        // SAFETY: the caller's sixteen pairs.
        unsafe { _mm512_loadu_ps(p.cast()) }
    }
    #[inline]
    #[target_feature(enable = "avx512bf16,avx512f")]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: vectors of the same size; every bit pattern is a vector of bf16.
        let (a, b) =
            unsafe { (std::mem::transmute::<__m512, __m512bh>(a), std::mem::transmute::<__m512, __m512bh>(b)) };
        _mm512_dpbf16_ps(c, a, b)
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn finish(p: *mut f32, v: [__m512; 2]) {
        // SAFETY: the caller's 32 values.
        unsafe { p.cast::<[__m512; 2]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn whole(c: Sums<__m512>, term: &Term<bf16>, w: &Packed, rows: Range<usize>, panels: Range<usize>) {
        // SAFETY: the caller's; a table with this form exists only where VNNI is there.
        unsafe { whole_dot::add(c, term, w, rows, panels) }
    }
}
