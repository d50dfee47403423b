//! Packed whole numbers times rows that are rounded to whole numbers, by vpmaddwd: twice the products of an FMA, and nothing
//! is widened or packed first.
//!
//! rounding CHUNK values of a row share a power of two that makes the largest of them a number of 14 bits. Those of the seven
//!          binades from the largest down are exact, since a bf16 has 8 bits; the others are rounded to nearest. The numbers of
//!          W are exact
//! sums     of a chunk over one run of W's scales exact, at most 1,024 2^7 16,320 < 2^31; then in f32, a run after the other,
//!          and a chunk after the other
//!
//! A row with a NaN or an infinity gives NaN.

use super::avx2::{Avx2, scales_of_outputs};
use super::gemv_avx2::GROUPS;
use super::pack::Transpose;
use super::tile::Sums;
use super::{CHUNK, PANEL, Term};
use crate::quantize::packed::{self, Packed};
use crate::{Bits, bf16};
use std::arch::x86_64::*;
use std::ops::Range;

/// Columns of W that must share a scale, or a multiple of so many: any runs that there are.
pub(super) const RUN: usize = 2;
/// The most rows that registers hold: 12 sums, 2 of W, 1 of the row, 1 product.
const ROWS: usize = 6;
/// Bytes that are fetched ahead of few rows: a page or so of one stream.
const AHEAD: usize = 2048;

/// Values of bf16 that precede the numbers of a chunk: an f32, by which they are to be multiplied, and a gap.
const HEAD: usize = 16;

/// Values of bf16 that a row's chunk becomes, with zeros behind it up to a multiple of sixteen.
pub(super) const ROUNDED_LEN: usize = HEAD + CHUNK;

/// A chunk of some rows, each as [`round`] makes it.
#[derive(Clone, Copy)]
struct Rows(*const i16);

/// How a level multiplies whole numbers, eight outputs at a time.
pub(super) trait Eights {
    /// Rows `rows` of the term, which are rounded, times panels `panels` of `w`: `add(panel, row, group, [sums, scale])` for all sums in
    /// order, the panel, the row and the eight outputs counted from the first; to these, sums scale is to be added.
    ///
    /// # Safety
    /// The level must be there, lengths as [`crate::Kernels::gemm`] checks them, and runs of [`RUN`].
    unsafe fn products(
        term: &Term<bf16>,
        w: &Packed,
        rows: Range<usize>,
        panels: Range<usize>,
        add: impl FnMut(usize, usize, usize, [__m256; 2]),
    );
}

/// Adds rows `rows` of the term times panels `panels` of `w` to their sums, those over even k.
///
/// # Safety
/// AVX2, FMA and the level of `W` must be there, lengths as [`crate::Kernels::gemm`] checks them, and `c` sums of even and odd k in
/// neighbouring lanes of so many rows and panels.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn add<W: Eights, V>(
    c: Sums<V>,
    term: &Term<bf16>,
    w: &Packed,
    rows: Range<usize>,
    panels: Range<usize>,
) {
    // SAFETY: the caller's; the vectors of eight columns lie together.
    unsafe { W::products(term, w, rows, panels, |p, r, g, sums| add_to_even(c.eight(p, r, g).cast(), sums)) }
}

/// Of eight sums over even and over odd k, one after the other, those over even k += sum scale.
///
/// # Safety
/// AVX2 and FMA must be there, and the sixteen sums.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn add_to_even(c: *mut f32, [sums, scales]: [__m256; 2]) {
    let halves = |x| [_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x)];
    let even = |half| _mm256_castsi256_ps(_mm256_cvtepu32_epi64(_mm_castps_si128(half))); // zeros for the odd ones
    for (i, (sums, scales)) in halves(sums).into_iter().zip(halves(scales)).enumerate() {
        // SAFETY: the caller's.
        unsafe {
            let c = c.add(8 * i);
            _mm256_storeu_ps(c, _mm256_fmadd_ps(even(sums), even(scales), _mm256_loadu_ps(c)));
        }
    }
}

impl Eights for Avx2 {
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn products(
        term: &Term<bf16>,
        w: &Packed,
        rows: Range<usize>,
        panels: Range<usize>,
        mut add: impl FnMut(usize, usize, usize, [__m256; 2]),
    ) {
        for first in rows.clone().step_by(ROWS) {
            let some = first..rows.end.min(first + ROWS);
            for from in (0..term.k).step_by(CHUNK) {
                let k = from..term.k.min(from + CHUNK);
                let a = term.a[from / CHUNK * term.lda + first * ROUNDED_LEN..].as_ptr();
                // SAFETY: the caller's rows, each of which begins with an f32.
                let scale = |r: usize| unsafe { _mm256_set1_ps(a.add(r * ROUNDED_LEN).cast::<f32>().read_unaligned()) };
                let a = Rows(a.wrapping_add(HEAD).cast());
                for (p, panel) in panels.clone().enumerate() {
                    macro_rules! rows {
                        ($($m:literal $v:literal)*) => {
                            match some.len() {
                                $($m => {
                                    for g in (0..GROUPS).step_by($v) {
                                        // SAFETY: the caller's; so many rows, each over k.
                                        let sums: [[__m256; $v]; $m] = unsafe { chunk(a, w, panel, k.clone(), g) };
                                        for (r, sums) in sums.into_iter().enumerate() {
                                            for (v, sums) in sums.into_iter().enumerate() {
                                                add(p, first - rows.start + r, g + v, [sums, scale(r)]);
                                            }
                                        }
                                    }
                                })*
                                m => unreachable!("1 to {ROWS} rows, not {m}"),
                            }
                        };
                    }
                    rows!(1 4  2 4  3 4  4 2  5 2  6 2)
                }
            }
        }
    }
}

/// A chunk of a row as whole numbers, as [`ROUNDED_LEN`] values.
///
/// # Safety
/// AVX2 must be there.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn round(to: &mut [bf16], row: &[bf16], _gradient: bool) {
    assert!(row.len() <= CHUNK && to.len() == ROUNDED_LEN);
    let (whole, rest) = row.as_chunks::<16>();
    let mut last = [bf16::ZERO; 16];
    last[..rest.len()].copy_from_slice(rest);
    // SAFETY: sixteen values of two bytes.
    let load = |x: &[bf16; 16]| unsafe { _mm256_loadu_si256(x.as_ptr().cast()) };
    let magnitude = |x| _mm256_and_si256(load(x), _mm256_set1_epi16(0x7fff));
    let largest = whole.iter().fold(magnitude(&last), |most, x| _mm256_max_epu16(most, magnitude(x)));
    let mut lanes = [0u16; 16];
    // SAFETY: as above.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), largest) };
    let largest = lanes.into_iter().max().unwrap_or(0);
    // biased by 127; from 2^-100 up, so that both powers of two are normal numbers
    let exponent = u32::from(largest >> 7).max(27);
    let by = _mm256_set1_ps(f32::from_bits((2 * 127 + 13 - exponent) << 23));
    let (head, numbers) = to.split_at_mut(HEAD);
    for (to, x) in numbers.as_chunks_mut::<16>().0.iter_mut().zip(whole.iter().chain([&last])) {
        let (zero, x) = (_mm256_setzero_si256(), load(x));
        let whole = [_mm256_unpacklo_epi16(zero, x), _mm256_unpackhi_epi16(zero, x)] // bf16 widened
            .map(|half| _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_castsi256_ps(half), by)));
        // SAFETY: as above.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm256_packs_epi32(whole[0], whole[1])) };
    }
    let scale = if exponent == 255 { f32::NAN } else { f32::from_bits((exponent - 13) << 23) };
    // SAFETY: room for it; any alignment will do.
    unsafe { head.as_mut_ptr().cast::<f32>().write_unaligned(scale) };
}

/// The sums of the first M rows over columns `k` of the outputs of V groups from `g` on, without the rows' scales.
///
/// # Safety
/// AVX2 and FMA must be there, the panel and the groups, and the rows over `k`.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn chunk<const M: usize, const V: usize>(
    a: Rows,
    w: &Packed,
    panel: usize,
    k: Range<usize>,
    g: usize,
) -> [[__m256; V]; M] {
    let mut sums = [[_mm256_setzero_ps(); V]; M];
    let mut at = 0;
    for (bits, q, scales) in w.panel(panel, k) {
        let scales = scales_of_outputs(scales);
        // SAFETY: the caller's; a chunk's columns are there from its first on.
        let whole: [[__m256i; V]; M] = unsafe {
            match bits {
                Bits::Eight => run::<M, V, 8>(a, at, q, g),
                Bits::Four => run::<M, V, 4>(a, at, q, g),
            }
        };
        for (sums, whole) in sums.iter_mut().zip(whole) {
            for (v, (sum, whole)) in sums.iter_mut().zip(whole).enumerate() {
                *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), scales[g + v], *sum);
            }
        }
        at += 2 * (q.len() / packed::pairs(bits));
    }
    sums
}

/// Sums of whole numbers over pairs that share their scales, the first of which is at `at` of the rows.
///
/// # Safety
/// As [`chunk`], of as many columns from `at` on.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn run<const M: usize, const V: usize, const BITS: usize>(
    a: Rows,
    at: usize,
    q: &[u8],
    g: usize,
) -> [[__m256i; V]; M] {
    let pairs = PANEL * BITS / 4;
    let mut sums = [[_mm256_setzero_si256(); V]; M];
    for (p, q) in q.chunks_exact(pairs).enumerate() {
        if V == GROUPS {
            <Avx2 as Transpose<bf16>>::fetch(q.as_ptr().wrapping_add(AHEAD));
        }
        // SAFETY: a pair of every output, and of every row.
        unsafe {
            let w: [__m256i; V] = std::array::from_fn(|v| pairs_of_eight::<BITS>(q.as_ptr(), g + v));
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = a.0.add(r * ROUNDED_LEN + at + 2 * p).cast::<i32>().read_unaligned();
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(_mm256_set1_epi32(a), w));
                }
            }
        }
    }
    sums
}

/// The pair of group `g`'s eight outputs, as 16 bits each.
///
/// # Safety
/// The pair's bytes of all outputs are there.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn pairs_of_eight<const BITS: usize>(q: *const u8, g: usize) -> __m256i {
    // SAFETY: the caller's bytes.
    unsafe {
        if BITS == 8 {
            return _mm256_cvtepi8_epi16(_mm_loadu_si128(q.add(16 * g).cast()));
        }
        let both = _mm256_cvtepu8_epi32(_mm_loadl_epi64(q.add(8 * g).cast()));
        let halves = _mm256_and_si256(_mm256_or_si256(both, _mm256_slli_epi32::<12>(both)), _mm256_set1_epi16(15));
        _mm256_sub_epi16(halves, _mm256_set1_epi16(8))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Case, Kind, rounded, wide};
    use super::super::{Columns, Out, Sum, reference};
    use super::*;
    use crate::testing::{check, same_bits};
    use crate::{Elem, Isa, Kernels, Matrix};

    const BITS: [Bits; 2] = [Bits::Eight, Bits::Four];

    fn each_level(test: impl Fn(&Kernels<bf16>)) {
        each_whole_level(|kernels| {
            if kernels.linear.whole.first().is_some_and(|whole| whole.run == RUN) {
                test(kernels);
            }
        });
    }

    /// The same, and those that multiply whole numbers as `whole_dot.rs` does.
    fn each_whole_level(test: impl Fn(&Kernels<bf16>)) {
        let levels = Isa::available().iter().map(|isa| bf16::kernels(*isa));
        levels.filter(|kernels| !kernels.linear.whole.is_empty()).for_each(test);
    }

    /// Outputs `n` of rows `rows`, as f32.
    fn run(kernels: &Kernels<bf16>, case: &Case<bf16>, rows: Range<usize>, n: Range<usize>) -> Vec<f32> {
        let matrices: Vec<_> = case.w.iter().map(|w| w.matrix()).collect();
        let whole = matrices.iter().map(|w| kernels.whole(w, Sum::OverCols, n.clone(), 1.0).expect("whole numbers"));
        let whole: Vec<_> = whole.collect();
        let a = case.a.iter().zip(&case.ks).zip(&whole);
        let a = a.map(|((a, &k), w)| rounded(kernels, &a[rows.start * k..rows.end * k], k, k, w, None));
        let a: Vec<_> = a.collect();
        let terms = whole.iter().zip(&a).zip(&case.ks);
        let terms = terms.map(|((w, (a, lda)), &k)| Term { a, lda: *lda, b: Columns::Whole(*w), k });
        let bias = case.bias.as_ref().map(|bias| &bias[n.clone()]);
        let mut y = vec![f32::NAN; rows.len() * n.len()];
        kernels.gemm(Out::real(&mut y), n.len(), rows.len(), n.len(), &terms.collect::<Vec<_>>(), bias);
        y
    }

    fn case(rows: usize, n: usize, ks: &[usize], bits: Bits) -> Case<bf16> {
        Case::of(rows, n, ks, Sum::OverCols, Kind::Packed(bits), true)
    }

    /// Against f64 with W as it is, of every count of rows of a tile, odd and even sums, chunk edges, two terms and a bias.
    #[test]
    fn products_keep_the_plain_rule() {
        each_level(|kernels| {
            for bits in BITS {
                let (mut got, mut plain, mut want) = (vec![], vec![], vec![]);
                let sums = [1, 2, 31, 32, 33, 576, 1023, 1024, 1025, 2049];
                let shapes = sums.map(|k| (7, 33, k)).into_iter().chain((1..=14).map(|rows| (rows, 65, 70)));
                for (rows, n, k) in shapes {
                    let case = case(rows, n, &[k, 9], bits);
                    let bias = case.bias.as_ref().unwrap();
                    let (mut y, mut sums) = (wide(bias).repeat(rows), bias.repeat(rows));
                    for ((a, w), &k) in case.a.iter().zip(&case.w).zip(&case.ks) {
                        let w: Vec<f64> = (0..n * k).map(|i| w.matrix().at(i / k, i % k)).collect();
                        reference(&mut y, &wide(a), &w, n, k);
                        for (i, sum) in sums.iter_mut().enumerate() {
                            let (a, w) = (&a[i / n * k..][..k], &w[i % n * k..][..k]);
                            // each weight rounded, as other levels have it
                            a.iter().zip(w).for_each(|(a, w)| *sum += a.widen() * bf16::from_f64(*w).widen());
                        }
                    }
                    got.extend(run(kernels, &case, 0..rows, 0..n));
                    plain.extend(sums);
                    want.extend(y);
                }
                check(&got, &plain, &want).unwrap_or_else(|e| panic!("{} {bits:?}: {e}", kernels.isa.name()));
            }
        });
    }

    /// One row of 1,024 columns, all -128 or 127 with a scale, by values of a row.
    fn filled(kernels: &Kernels<bf16>, q: u8, scale: f32, a: &[bf16]) -> f32 {
        let k = a.len();
        let (q, scales) = (vec![q; k.div_ceil(2) * 2 * PANEL], [bf16::from_f32(scale); PANEL]);
        let w = Matrix::packed(Packed::new(Bits::Eight, &q, &scales, [1, k], k).unwrap());
        let b = kernels.whole(&w, Sum::OverCols, 0..1, 1.0).unwrap();
        let mut y = [f32::NAN];
        let (a, lda) = rounded(kernels, a, k, k, &b, None);
        kernels.gemm(Out::real(&mut y), 1, 1, 1, &[Term { a: &a, lda, b: Columns::Whole(b), k }], None);
        y[0]
    }

    #[test]
    fn the_largest_sums_do_not_overflow() {
        each_level(|kernels| {
            for exponent in [-126, -100, -99, -1, 0, 60, 100] {
                let x = 255.0 * 2f32.powi(exponent - 7);
                for (q, number) in [(0x80, -128.0), (0x7f, 127.0)] {
                    let y = filled(kernels, q, 0.5, &vec![bf16::from_f32(x); CHUNK]);
                    assert_eq!(f64::from(y), number * f64::from(x) * CHUNK as f64 / 2.0, "{x:e}");
                }
            }
        });
    }

    #[test]
    fn seven_binades_are_exact_and_the_next_is_rounded_to_nearest() {
        each_level(|kernels| {
            for shift in [-90, -3, 0, 40] {
                let unit = 2f32.powi(shift);
                let last = |binade: i32| [255.0 * unit, 255.0 * unit * 2f32.powi(-binade)].map(bf16::from_f32);
                for binade in 0..7 {
                    let want = last(binade).map(|x| f64::from(x.to_f32())).iter().sum::<f64>();
                    assert_eq!(f64::from(filled(kernels, 1, 1.0, &last(binade))), want, "{binade}");
                }
                // 255 2^-7 is 1.9921875: in steps of 1 / 64 halfway between 1.984375 and 2, of which 2 is even
                assert_eq!(filled(kernels, 1, 1.0, &last(7)), 257.0 * unit);
            }
        });
    }

    #[test]
    fn zeros_give_zero_and_what_is_not_finite_gives_nan() {
        each_level(|kernels| {
            assert_eq!(filled(kernels, 3, 1.0, &[bf16::ZERO; 40]).to_bits(), 0);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for at in [0, 17, 39] {
                    let mut a = [bf16::ONE; 40];
                    a[at] = bf16::from_f32(bad);
                    assert!(filled(kernels, 3, 1.0, &a).is_nan());
                }
            }
            assert!(filled(kernels, 3, f32::NAN, &[bf16::ONE; 40]).is_nan());
        });
    }

    #[test]
    fn bits_do_not_depend_on_how_rows_and_outputs_are_split() {
        let (rows, n) = (31, 100);
        each_level(|kernels| {
            for bits in BITS {
                let case = case(rows, n, &[1100, 9], bits);
                let whole = run(kernels, &case, 0..rows, 0..n);
                for (first, end) in [(0, 1), (0, 6), (1, 8), (5, 31), (30, 31)] {
                    same_bits(&run(kernels, &case, first..end, 0..n), &whole[first * n..end * n]).unwrap();
                }
                for (from, to) in [(0, 1), (0, 31), (32, 100), (64, 97), (96, 100)] {
                    let part = run(kernels, &case, 0..rows, from..to);
                    for (part, whole) in part.chunks(to - from).zip(whole.chunks(n)) {
                        same_bits(part, &whole[from..to]).unwrap();
                    }
                }
            }
        });
    }

    /// Neither the rows' gaps, which are NaN, are read, nor those of the output written.
    #[test]
    fn products_keep_within_their_bounds() {
        let (rows, n, k, gap) = (8, 37, 21, 5);
        each_whole_level(|kernels| {
            let case = Case::<bf16>::of(rows, n, &[k], Sum::OverCols, Kind::Packed(Bits::Eight), false);
            let mut a = vec![bf16::NAN; (rows - 1) * (k + gap) + k];
            case.a[0].chunks(k).enumerate().for_each(|(i, row)| a[i * (k + gap)..][..k].copy_from_slice(row));
            let matrix = case.w[0].matrix();
            let b = kernels.whole(&matrix, Sum::OverCols, 0..n, 1.0).unwrap();
            let mut y = vec![-77.0; rows * (n + gap)];
            let (mut a, lda) = rounded(kernels, &a, k + gap, k, &b, None);
            a.extend([bf16::NAN; 64]);
            let term = Term { a: &a, lda, b: Columns::Whole(b), k };
            kernels.gemm(Out::real(&mut y), n + gap, rows, n, &[term], None);
            for (y, want) in y.chunks(n + gap).zip(run(kernels, &case, 0..rows, 0..n).chunks(n)) {
                same_bits(&y[..n], want).unwrap();
                assert!(want.iter().all(|y| y.is_finite()) && y[n..].iter().all(|y| *y == -77.0));
            }
        });
    }

    /// W^T as the level multiplies it: panels of outputs from `n0` on.
    fn turned(kernels: &Kernels<bf16>, w: &Packed, n0: usize) -> (Vec<bf16>, Vec<bf16>) {
        let panels = (w.shape()[1] - n0).div_ceil(PANEL);
        let mut turned = vec![bf16::NAN; panels * kernels.turned_len(w)];
        kernels.turn(&mut turned, w, n0);
        (turned, vec![bf16::ONE; panels * PANEL])
    }

    #[test]
    fn w_is_turned_number_for_number() {
        each_whole_level(|kernels| {
            for ([n, k], n0) in
                [([1, 1], 0), ([33, 40], 32), ([64, 64], 0), ([70, 131], 64), ([5, 200], 96), ([100, 97], 0)]
            {
                let file = super::super::tests::File::random(1, Kind::Packed(Bits::Eight), n, k);
                let matrix = file.matrix();
                let (w, scales) = kernels.whole_rows(&matrix, Sum::OverRows, 1.0).unwrap();
                let (panels, ones) = turned(kernels, &w, n0);
                let transposed = Matrix::packed(kernels.turned(&panels, &ones, &w, k - n0));
                for (i, scale) in scales[..n].iter().enumerate() {
                    for j in n0..k {
                        let number = transposed.at::<f64>(j - n0, i);
                        assert_eq!(number * f64::from(scale.to_f32()), matrix.at::<f64>(i, j), "{n} x {k}: {i}, {j}");
                    }
                }
            }
        });
    }

    /// dx = dy W: off by what dy's rounding to bf16 with W's scales, and to whole numbers, makes of it as it goes.
    #[test]
    fn a_gradient_times_w_is_off_by_its_rounding() {
        each_whole_level(|kernels| {
            let most = if kernels.linear.whole[0].run == RUN { 0.003 } else { 0.02 };
            for (rows, n, k) in [(1, 70, 131), (14, 1025, 64), (7, 2049, 33), (13, 576, 192)] {
                let file = super::super::tests::File::random(2, Kind::Packed(Bits::Eight), n, k);
                let (matrix, dy) = (file.matrix(), crate::testing::Random::new(3).vec::<bf16>(rows * n));
                let (w, scales) = kernels.whole_rows(&matrix, Sum::OverRows, 1.0).unwrap();
                let (panels, ones) = turned(kernels, &w, 0);
                let (a, lda) = rounded(kernels, &dy, n, n, &w, Some(scales));
                let b = Columns::Whole(kernels.turned(&panels, &ones, &w, k));
                let mut dx = vec![f32::NAN; rows * k];
                kernels.gemm(Out::real(&mut dx), k, rows, k, &[Term { a: &a, lda, b, k: n }], None);
                let (mut off, mut squares) = (0.0, 0.0);
                for (dx, dy) in dx.chunks(k).zip(dy.chunks(n)) {
                    for (j, dx) in dx.iter().enumerate() {
                        let each = dy.iter().enumerate().map(|(i, dy)| matrix.at::<f64>(i, j) * f64::from(dy.to_f32()));
                        off += (f64::from(*dx) - each.clone().sum::<f64>()).powi(2);
                        squares += each.map(|x| x * x).sum::<f64>();
                    }
                }
                let off = (off / squares).sqrt();
                assert!(off < most, "{}: {off} of {most}", kernels.isa.name());
            }
        });
    }

    #[test]
    fn a_gradient_or_a_scale_that_is_none_makes_none() {
        each_whole_level(|kernels| {
            for (dy, scale) in [(bf16::NAN, bf16::ONE), (bf16::ONE, bf16::NAN), (bf16::INFINITY, bf16::ONE)] {
                let (q, scales) = ([1; 2 * PANEL], [scale; PANEL]);
                let w = Packed::new(Bits::Eight, &q, &scales, [1, 1], 1).unwrap();
                let (panels, ones) = turned(kernels, &w, 0);
                let (a, lda) = rounded(kernels, &[dy], 1, 1, &w, Some(&scales));
                let b = Columns::Whole(kernels.turned(&panels, &ones, &w, 1));
                let mut dx = [0.0];
                kernels.gemm(Out::real(&mut dx), 1, 1, 1, &[Term { a: &a, lda, b, k: 1 }], None);
                assert!(dx[0].is_nan(), "{dy} {scale}: {}", dx[0]);
            }
        });
    }

    #[test]
    fn only_numbers_of_8_bits_with_a_scale_a_row_are_turned() {
        let [eight, four] = BITS.map(|bits| super::super::tests::File::random(1, Kind::Packed(bits), 33, 40));
        each_whole_level(|kernels| {
            let turns = |matrix: &Matrix, sum, scale| kernels.whole_rows(matrix, sum, scale).is_some();
            assert!(turns(&eight.matrix(), Sum::OverRows, 1.0));
            assert!(!turns(&eight.matrix(), Sum::OverCols, 1.0) && !turns(&eight.matrix(), Sum::OverRows, 0.5));
            assert!(!turns(&four.matrix(), Sum::OverRows, 1.0));
            let (q, scales) = ([0; 128 * PANEL * 2], [bf16::ONE; 2 * PANEL]);
            let short = Matrix::packed(Packed::new(Bits::Eight, &q, &scales, [32, 256], 128).unwrap());
            assert!(!turns(&short, Sum::OverRows, 1.0));
        });
    }

    #[test]
    fn w_transposed_or_scaled_is_packed() {
        let file = super::super::tests::File::random(1, Kind::Packed(Bits::Eight), 33, 40);
        each_whole_level(|kernels| {
            assert!(kernels.whole(&file.matrix(), Sum::OverRows, 0..40, 1.0).is_none());
            assert!(kernels.whole(&file.matrix(), Sum::OverCols, 0..33, 0.5).is_none());
            assert_eq!(kernels.whole(&file.matrix(), Sum::OverCols, 32..33, 1.0).unwrap().shape(), [1, 40]);
        });
    }
}
