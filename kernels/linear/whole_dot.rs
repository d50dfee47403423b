//! Packed whole numbers times rows that are rounded to whole numbers, by vpdpbusd: twice the products of vdpbf16ps, and nothing is
//! widened or packed first.
//!
//! rounding CHUNK values of a row share a step, a 32nd of their mean magnitude (a fortieth of the deviation, if they are normal), or a
//!          16th if they are a gradient.
//!          A value is step (low + 256 high), rounded to nearest: low has 8 bits, and high is 0 but for outliers, which
//!          are few and so cost little. The numbers of W are exact
//! sums     of low and of high, each over a chunk and one run of W's scales exact, at most 1,024 2^7 2^8 < 2^31; then in f32, a run
//!          after the other, low before high, and a chunk after the other
//!
//! The instruction wants W without signs: it gets w + 128, or w + 8 of 4 bits, and the sums begin with what that is too much.
//! A row with a NaN or an infinity gives NaN.

use super::avx512::{AHEAD, Dot};
use super::pack::Transpose;
use super::tile::Sums;
use super::{CHUNK, GEMV_ROWS, PANEL, Term};
use crate::quantize::packed::{self, Packed};
use crate::{Bits, bf16};
use std::arch::x86_64::*;
use std::ops::Range;

/// Values that vpdpbusd sums at once.
const QUAD: usize = 4;
/// Columns of W that must share a scale, or a multiple of so many: the sums of shorter runs cost as much as their products.
pub(super) const RUN: usize = 128;
/// Steps of a row's mean magnitude. MELD's labels move no more than W's own rounding moves them; with 16 they move twice as much.
const STEPS: f32 = 32.0;
/// Those of a gradient's row, whose values are spread further: with 32 every other quad would have outliers.
const GRADIENT_STEPS: f32 = 16.0;
/// The largest value in steps, below 127 256 + 127.
const MOST: f32 = 32_000.0;
/// The most rows that registers hold: 24 sums, 2 of W and what makes them.
const ROWS: usize = 12;
/// Rows whose outliers are multiplied together: each of them pays for the others' quads.
const HIGH_ROWS: usize = 4;
/// Values of a row that are rounded at once.
const BLOCK: usize = 32;

/// A bit for every quad of a chunk.
type Outliers = [u8; CHUNK / BLOCK];

/// What precedes the bytes of a row's chunk: low ones, then high ones, zeros behind both up to a multiple of BLOCK.
#[repr(C)]
#[derive(Clone, Copy)]
struct Head {
    step: f32,
    /// Sums of low and of high before every RUN values, and behind the last.
    before: [[i32; CHUNK / RUN + 1]; 2],
    /// The quads that have a high part.
    outliers: Outliers,
    /// So that the bytes begin with a line.
    _rest: [u8; 20],
}

const HEAD: usize = size_of::<Head>();
const _: () = assert!(HEAD == 128);

/// A row's chunk: what precedes it, low, high. One follows the other, which spreads them over cache sets.
const STRIDE: usize = HEAD + 2 * CHUNK;

/// Values of bf16 that a row's chunk becomes.
pub(super) const ROUNDED_LEN: usize = STRIDE / 2;

/// A chunk of some rows, each as [`round`] makes it.
#[derive(Clone, Copy)]
struct Rows(*const u8);

/// Quads of a chunk, rising.
struct Quads {
    len: usize,
    /// Behind them anything: room for all of a vector.
    quads: [u32; CHUNK / QUAD + 16],
}

impl Quads {
    const NONE: Self = Self { len: 0, quads: [0; CHUNK / QUAD + 16] };

    /// Becomes those that have a high part in any of the first so many rows.
    ///
    /// # Safety
    /// AVX-512, POPCNT and the rows must be there.
    #[inline]
    #[target_feature(enable = "avx512f,popcnt")]
    unsafe fn find_high(&mut self, a: Rows, rows: usize) {
        let mut all: Outliers = [0; CHUNK / BLOCK];
        for r in 0..rows {
            // SAFETY: the caller's.
            let row = unsafe { a.head(r) }.outliers;
            all.iter_mut().zip(row).for_each(|(all, row)| *all |= row);
        }
        self.len = 0;
        let mut quads = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        for bits in all.as_chunks().0 {
            let bits = u16::from_le_bytes(*bits);
            let some = _mm512_maskz_compress_epi32(bits, quads);
            // SAFETY: at most as many as there are quads precede, and there is room for sixteen more.
            unsafe { _mm512_storeu_si512(self.quads.as_mut_ptr().add(self.len).cast(), some) };
            self.len += bits.count_ones() as usize;
            quads = _mm512_add_epi32(quads, _mm512_set1_epi32(16));
        }
    }

    /// Those in `run`.
    #[inline]
    fn of(&self, run: &Range<usize>) -> &[u32] {
        let all = &self.quads[..self.len];
        if run.start == 0 && all.last().is_none_or(|last| (*last as usize) < run.end) {
            return all; // as in every run of a whole row
        }
        let bound = |end: usize| all.partition_point(|quad| (*quad as usize) < end);
        &all[bound(run.start)..bound(run.end)]
    }
}

impl Rows {
    /// From row `r` on.
    #[inline(always)]
    fn from(self, r: usize) -> Self {
        Self(self.0.wrapping_add(r * STRIDE))
    }

    /// # Safety
    /// Row `r` must be there.
    #[inline(always)]
    unsafe fn head(self, r: usize) -> Head {
        // SAFETY: the caller's; every bit pattern is a head.
        unsafe { self.0.add(r * STRIDE).cast::<Head>().read_unaligned() }
    }
}

/// Adds rows `rows` of the term, which are rounded, times panels `panels` of `w` to the sums from `c` on, a panel's rows after the
/// other's.
///
/// # Safety
/// AVX-512 with VNNI and BF16, and POPCNT, must be there, lengths as [`crate::Kernels::gemm`] checks them, runs of [`RUN`], and
/// the sums.
#[inline]
#[target_feature(enable = "avx512vnni,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,popcnt")]
pub(super) unsafe fn products(
    term: &Term<bf16>,
    w: &Packed,
    rows: Range<usize>,
    panels: Range<usize>,
    c: *mut [__m512; 2],
) {
    let mut with_high = [Quads::NONE; ROWS / HIGH_ROWS];
    for first in rows.clone().step_by(ROWS) {
        let some = first..rows.end.min(first + ROWS);
        for from in (0..term.k).step_by(CHUNK) {
            let k = from..term.k.min(from + CHUNK);
            let a = Rows(term.a[from / CHUNK * term.lda + first * ROUNDED_LEN..].as_ptr().cast());
            for (group, high) in (0..some.len()).step_by(HIGH_ROWS).zip(&mut with_high) {
                // SAFETY: the caller's rows.
                unsafe { high.find_high(a.from(group), HIGH_ROWS.min(some.len() - group)) };
            }
            for (p, panel) in panels.clone().enumerate() {
                let c = c.wrapping_add(p * rows.len() + first - rows.start);
                macro_rules! rows {
                    ($($m:literal)*) => {
                        match some.len() {
                            // SAFETY: the caller's; so many rows, each over k.
                            $($m => unsafe { chunk::<$m>(a, &with_high, w, panel, k.clone(), c) },)*
                            m => unreachable!("1 to {ROWS} rows, not {m}"),
                        }
                    };
                }
                rows!(1 2 3 4 5 6 7 8 9 10 11 12)
            }
        }
    }
}

/// As [`products`], to the sums of a tile.
///
/// # Safety
/// As [`products`], and `c` sums of so many rows and panels.
#[target_feature(enable = "avx512vnni,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) unsafe fn add(c: Sums<__m512>, term: &Term<bf16>, w: &Packed, rows: Range<usize>, panels: Range<usize>) {
    // SAFETY: the caller's; a panel's two vectors are one section.
    unsafe { products(term, w, rows, panels, c.eight(0, 0, 0).cast()) }
}

/// Thirty-two values from `x` on, zeros in place of those behind the row.
///
/// # Safety
/// The first `len` of them are there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn load(x: *const bf16, len: usize) -> __m512i {
    // SAFETY: the caller's; masked to those that are there.
    unsafe {
        if len >= BLOCK { _mm512_loadu_si512(x.cast()) } else { _mm512_maskz_loadu_epi16((1 << len) - 1, x.cast()) }
    }
}

/// A chunk of a row in steps, of a gradient in larger ones, as [`ROUNDED_LEN`] values.
///
/// # Safety
/// AVX-512 with VNNI and BF16 must be there.
#[target_feature(enable = "avx512vnni,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2")]
pub(super) unsafe fn round(to: &mut [bf16], row: &[bf16], gradient: bool) {
    assert!(row.len() <= CHUNK && to.len() == ROUNDED_LEN);
    // SAFETY: so many values of the row are there.
    let values = |at: usize| unsafe { load(row.as_ptr().add(at), row.len() - at) };
    // by 2^-11, so that no sum of finite values overflows
    let (small, mut sum) = (_mm512_set1_epi16(0x3a00), _mm512_setzero_ps());
    let mut most = _mm512_setzero_si512();
    // SAFETY: vectors of the same size; every bit pattern is a vector of bf16.
    let bits = |x: __m512i| unsafe { std::mem::transmute::<__m512i, __m512bh>(x) };
    for at in (0..row.len()).step_by(BLOCK) {
        let magnitude = _mm512_and_si512(values(at), _mm512_set1_epi16(0x7fff));
        most = _mm512_max_epu16(most, magnitude);
        sum = _mm512_dpbf16_ps(sum, bits(magnitude), bits(small));
    }
    // as numbers of 32 bits those without the lower half lie in order, too
    let most = _mm512_max_epu32(most, _mm512_slli_epi32::<16>(most));
    let most = f32::from_bits(_mm512_reduce_max_epu32(most) & 0xffff_0000);
    let mean = _mm512_reduce_add_ps(sum) * (2048.0 / row.len() as f32);
    // from 2^-100 up, so that its inverse is a normal number
    let steps = if gradient { GRADIENT_STEPS } else { STEPS };
    let step = (mean / steps).max(most / MOST).max(2f32.powi(-100));
    let by = _mm512_set1_ps(1.0 / step);
    let (mut before, mut outliers) = ([[0; CHUNK / RUN + 1]; 2], [0; CHUNK / BLOCK]);
    let parts = to[HEAD / 2..].split_at_mut(CHUNK / 2);
    let parts = [parts.0.as_mut_ptr().cast::<u8>(), parts.1.as_mut_ptr().cast()];
    for from in (0..row.len()).step_by(RUN) {
        let mut sums = [_mm512_setzero_si512(); 2];
        for at in (from..row.len().min(from + RUN)).step_by(BLOCK) {
            let (zero, x) = (_mm512_setzero_si512(), values(at));
            let [first, second] =
                [_mm512_unpacklo_epi16(zero, x), _mm512_unpackhi_epi16(zero, x)] // bf16 widened
                    .map(|half| _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_castsi512_ps(half), by)));
            let low = _mm512_packs_epi32(first, second);
            let high = _mm512_srai_epi16::<8>(_mm512_add_epi16(low, _mm512_set1_epi16(128)));
            for ((to, part), sum) in parts.into_iter().zip([low, high]).zip(&mut sums) {
                let part = _mm512_cvtepi16_epi8(part);
                // SAFETY: so many bytes.
                unsafe { _mm256_storeu_si256(to.add(at).cast(), part) };
                *sum = _mm512_dpbusd_epi32(*sum, _mm512_set1_epi8(1), _mm512_zextsi256_si512(part));
            }
            outliers[at / BLOCK] = _mm512_test_epi64_mask(high, high); // four of 16 bits
        }
        for (before, sum) in before.iter_mut().zip(sums) {
            before[from / RUN + 1] = before[from / RUN] + _mm512_reduce_add_epi32(sum);
        }
    }
    let head = Head { step: if most.is_finite() { step } else { f32::NAN }, before, outliers, _rest: [0; 20] };
    // SAFETY: room for it precedes the bytes; any alignment will do.
    unsafe { to.as_mut_ptr().cast::<Head>().write_unaligned(head) };
}

/// What makes numbers of so many bits numbers without sign.
const fn offset(bits: Bits) -> i32 {
    match bits {
        Bits::Eight => 128,
        Bits::Four => 8,
    }
}

/// Adds the first M rows over columns `k` of a panel.
///
/// # Safety
/// As [`products`], with rows rounded over `k`.
#[inline]
#[target_feature(enable = "avx512vnni,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn chunk<const M: usize>(
    a: Rows,
    with_high: &[Quads; ROWS / HIGH_ROWS],
    w: &Packed,
    panel: usize,
    k: Range<usize>,
    c: *mut [__m512; 2],
) {
    let mut first = 0;
    for (bits, q, scales) in w.panel(panel, k) {
        let quads = first..first + (q.len() / packed::pairs(bits)).div_ceil(2);
        first = quads.end;
        // SAFETY: sixteen of the 32 scales.
        let scales = [0, 16].map(|at| unsafe { _mm256_loadu_si256(scales.as_ptr().add(at).cast()) });
        let scales = scales.map(|half| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half))));
        let run = Run { bits, q, quads };
        // SAFETY: the caller's; quads of the run, and of the rows.
        unsafe {
            for (r, low) in run.sums::<M>(a, LOW, run.quads.clone()).into_iter().enumerate() {
                let (c, step) = (&mut *c.add(r), _mm512_set1_ps(a.head(r).step));
                for ((c, low), scales) in c.iter_mut().zip(low).zip(scales) {
                    *c = _mm512_fmadd_ps(_mm512_cvtepi32_ps(low), _mm512_mul_ps(scales, step), *c);
                }
            }
            for (first, with_high) in (0..M).step_by(HIGH_ROWS).zip(with_high) {
                let high = with_high.of(&run.quads);
                if high.is_empty() {
                    continue;
                }
                let (a, c) = (a.from(first), c.add(first));
                match M - first {
                    1 => run.add_high::<1>(a, high, scales, c),
                    2 => run.add_high::<2>(a, high, scales, c),
                    3 => run.add_high::<3>(a, high, scales, c),
                    _ => run.add_high::<HIGH_ROWS>(a, high, scales, c),
                }
            }
        }
    }
}

/// Parts of a row's values.
const LOW: usize = 0;
const HIGH: usize = 1;

/// Columns of a panel that share their scales.
struct Run<'a> {
    bits: Bits,
    q: &'a [u8],
    /// Which of the chunk's they are.
    quads: Range<usize>,
}

impl Run<'_> {
    /// Adds the high parts of the first M rows, which are in these quads.
    ///
    /// # Safety
    /// As [`Self::sums`], and the sums.
    #[inline]
    #[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512vl,avx2")]
    unsafe fn add_high<const M: usize>(&self, a: Rows, quads: &[u32], scales: [__m512; 2], c: *mut [__m512; 2]) {
        let quads = quads.iter().map(|quad| *quad as usize);
        // SAFETY: the caller's.
        unsafe {
            for (r, high) in self.sums::<M>(a, HIGH, quads).into_iter().enumerate() {
                let (c, step) = (&mut *c.add(r), _mm512_set1_ps(a.head(r).step));
                for ((c, high), scales) in c.iter_mut().zip(high).zip(scales) {
                    let sum = _mm512_mul_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(256.0));
                    // rows without outliers stay as they are, whatever the step is: others in the tile must not touch them
                    let some = _mm512_test_epi32_mask(high, high);
                    *c = _mm512_mask3_fmadd_ps(sum, _mm512_mul_ps(scales, step), *c, some);
                }
            }
        }
    }

    /// Sums of a part of the first M rows over `quads`, less what W's numbers are too much, times all of a row.
    ///
    /// # Safety
    /// AVX-512 with VNNI must be there, the quads in the run, and the rows over them.
    #[inline]
    #[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512vl,avx2")]
    unsafe fn sums<const M: usize>(
        &self,
        a: Rows,
        part: usize,
        quads: impl Iterator<Item = usize>,
    ) -> [[__m512i; 2]; M] {
        let run = self.quads.start * QUAD / RUN..(self.quads.end * QUAD).div_ceil(RUN);
        let starts = std::array::from_fn(|r| {
            // SAFETY: the caller's.
            let before = unsafe { a.head(r) }.before[part];
            offset(self.bits) * (before[run.start] - before[run.end])
        });
        let (a, first) = (Rows(a.0.wrapping_add(HEAD + part * CHUNK)), self.quads.start);
        // SAFETY: the caller's.
        unsafe {
            match self.bits {
                Bits::Eight => sums::<M, 8>(a, self.q, first, quads, starts),
                Bits::Four => sums::<M, 4>(a, self.q, first, quads, starts),
            }
        }
    }
}

/// Sums from `starts` on over `quads` of the first M rows, a part of which `a` begins with, of numbers of so many bits that begin
/// with quad `first`.
///
/// # Safety
/// As [`Run::sums`].
#[inline]
#[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512vl,avx2")]
unsafe fn sums<const M: usize, const BITS: usize>(
    a: Rows,
    q: &[u8],
    first: usize,
    quads: impl Iterator<Item = usize>,
    starts: [i32; M],
) -> [[__m512i; 2]; M] {
    let pair = PANEL * BITS / 4;
    let mut sums = starts.map(|start| [_mm512_set1_epi32(start); 2]);
    for quad in quads {
        let at = 2 * pair * (quad - first);
        if M <= GEMV_ROWS {
            <Dot as Transpose<bf16>>::fetch(q.as_ptr().wrapping_add(at + AHEAD));
            if BITS == 8 {
                <Dot as Transpose<bf16>>::fetch(q.as_ptr().wrapping_add(at + 64 + AHEAD));
            }
        }
        // SAFETY: the quad's first pair is there, and its second if the run goes on; of every row four values.
        unsafe {
            let w = quad_of_all::<BITS>(q.as_ptr().add(at), at + pair < q.len());
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = a.0.add(r * STRIDE + QUAD * quad).cast::<i32>().read_unaligned();
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = _mm512_dpbusd_epi32(*sum, w, _mm512_set1_epi32(a));
                }
            }
        }
    }
    sums
}

/// A quad of all outputs without sign, the lower sixteen first.
///
/// # Safety
/// A pair's bytes of all outputs are there, and a second one's where `both`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
unsafe fn quad_of_all<const BITS: usize>(q: *const u8, both: bool) -> [__m512i; 2] {
    // SAFETY: the caller's bytes.
    let pair = |there: bool, at: usize| unsafe {
        if !there {
            _mm512_setzero_si512()
        } else if BITS == 8 {
            _mm512_xor_si512(_mm512_loadu_si512(q.add(64 * at).cast()), _mm512_set1_epi8(-128))
        } else {
            let halves = _mm512_cvtepu8_epi16(_mm256_loadu_si256(q.add(32 * at).cast()));
            let both = _mm512_or_si512(halves, _mm512_slli_epi16::<4>(halves)); // the low half below the high one
            _mm512_and_si512(both, _mm512_set1_epi8(15))
        }
    };
    let (even, odd) = (pair(true, 0), pair(both, 1));
    [0, 16].map(|first| {
        // in every output's place its even pair, and behind it its odd one, which begin with number 32
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let outputs = _mm512_add_epi32(lanes, _mm512_set1_epi32(first));
        let order = _mm512_or_si512(outputs, _mm512_slli_epi32::<16>(_mm512_add_epi32(outputs, _mm512_set1_epi32(32))));
        _mm512_permutex2var_epi16(even, order, odd)
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{rounded, wide};
    use super::super::{Columns, Out, Sum};
    use super::*;
    use crate::testing::{Random, same_bits};
    use crate::{Elem, Isa, Kernels, Matrix};

    const BITS: [Bits; 2] = [Bits::Eight, Bits::Four];

    fn each_level(test: impl Fn(&Kernels<bf16>)) {
        let levels = Isa::available().iter().map(|isa| bf16::kernels(*isa));
        levels.filter(|kernels| kernels.linear.whole.as_ref().is_some_and(|whole| whole.run == RUN)).for_each(test);
    }

    /// A matrix of random numbers and scales, and what it is in f64.
    struct W {
        bits: Bits,
        q: Vec<u8>,
        scales: Vec<bf16>,
        shape: [usize; 2],
        run: usize,
    }

    impl W {
        fn random(seed: u64, bits: Bits, [n, k]: [usize; 2], run: usize) -> Self {
            let (mut random, sizes) = (Random::new(seed), packed::panel_sizes(bits, k, run));
            let panels = n.div_ceil(PANEL);
            let q = (0..panels * sizes.0).map(|_| random.below(256) as u8).collect();
            Self { bits, q, scales: random.vec(panels * sizes.1), shape: [n, k], run }
        }
        fn matrix(&self) -> Matrix<'_> {
            Matrix::packed(Packed::new(self.bits, &self.q, &self.scales, self.shape, self.run).unwrap())
        }
        fn times(&self, kernels: &Kernels<bf16>, a: &[bf16]) -> Vec<f32> {
            let ([n, k], w) = (self.shape, self.matrix());
            let b = Columns::Whole(kernels.whole(&w, Sum::OverCols, 0..n, 1.0).expect("long runs"));
            let (rows, (a, lda)) = (a.len() / k, rounded(kernels, a, k, k, None));
            let mut y = vec![f32::NAN; rows * n];
            kernels.gemm(Out::real(&mut y), n, rows, n, &[Term { a: &a, lda, b, k }], None);
            y
        }
    }

    /// Every value is off by half a step at most, and by a step over the root of twelve as it goes: both seen in the outputs, of
    /// every count of rows of a tile, odd sums, chunk edges, runs, and rows with outliers.
    #[test]
    fn a_row_is_rounded_to_nearest_in_steps_of_a_32nd_of_its_mean() {
        each_level(|kernels| {
            for bits in BITS {
                let (mut off, mut outputs) = (0.0, 0.0);
                let sums = [1, 2, 3, 5, 31, 127, 128, 129, 576, 1023, 1024, 1025, 1027, 2049];
                let shapes = sums.map(|k| (7, 33, k, k)).into_iter().chain((1..=14).map(|rows| (rows, 65, 390, 128)));
                for (rows, n, k, run) in shapes {
                    let (w, mut a) = (W::random(k as u64, bits, [n, k], run), Random::new(2).vec::<bf16>(rows * k));
                    for outlier in (rows..rows * k).step_by(37) {
                        a[outlier] = bf16::from_f32(a[outlier].to_f32() * (outlier % 1000) as f32);
                    }
                    let (y, matrix) = (w.times(kernels, &a), w.matrix());
                    for (y, a) in y.chunks(n).zip(a.chunks(k)) {
                        let a = wide(a);
                        for (j, y) in y.iter().enumerate() {
                            let (mut want, mut most, mut square, mut sum) = (0.0, 0.0, 0.0, 0.0);
                            for (at, chunk) in a.chunks(CHUNK).enumerate() {
                                let mean = chunk.iter().map(|x| x.abs()).sum::<f64>() / chunk.len() as f64;
                                for (i, x) in chunk.iter().enumerate() {
                                    let (w, step) = (matrix.at::<f64>(j, at * CHUNK + i), mean / f64::from(STEPS));
                                    want += w * x;
                                    most += (w * step).abs() / 2.0;
                                    square += (w * step).powi(2) / 12.0;
                                    sum += (w * x).abs();
                                }
                            }
                            let error = (f64::from(*y) - want).abs();
                            assert!(error <= 1.0001 * most + 1e-6 * sum, "{bits:?} {rows} {n} {k}: {error} of {most}");
                            if square > 0.0 {
                                off += error * error / square;
                                outputs += 1.0;
                            }
                        }
                    }
                }
                assert!((0.8..1.1).contains(&(off / outputs)), "{bits:?}: {}", off / outputs);
            }
        });
    }

    /// Rows of whole numbers up to 31,744 with a mean of 32 have steps of one.
    #[test]
    fn outliers_are_as_exact_as_the_rest() {
        each_level(|kernels| {
            let w = W::random(3, Bits::Eight, [40, 1024], 1024);
            for (outlier, sign) in [(1056.0, 1.0), (7936.0, -1.0), (15872.0, 1.0), (31744.0, -1.0)] {
                let mut a = vec![bf16::from_f32(32.0 * sign); 1024];
                a[1023] = bf16::from_f32(outlier);
                // so much is missing elsewhere
                a[..(outlier as usize - 32) / 32].fill(bf16::ZERO);
                for (j, y) in w.times(kernels, &a).into_iter().enumerate() {
                    let row = (0..1024).map(|i| w.matrix().at::<f64>(j, i) * f64::from(a[i].to_f32()));
                    let (want, sum) = row.fold((0.0, 0.0), |(want, sum), x| (want + x, sum + x.abs()));
                    assert!((f64::from(y) - want).abs() <= 1e-7 * sum, "{outlier}: {y} {want}");
                }
            }
        });
    }

    #[test]
    fn a_row_has_the_same_bits_whatever_is_beside_it() {
        each_level(|kernels| {
            for bits in BITS {
                let (k, largest) = (1100, bf16::MAX.to_f32());
                let mut w = W::random(4, bits, [70, k], k);
                w.scales[..8].fill(bf16::MAX); // products overflow
                let mut a: Vec<bf16> = Random::new(5).vec(31 * k);
                for (i, scale) in
                    [(0, 0.0), (3, 1e-38), (4, largest / 4.0), (17, 1e30), (18, f32::NAN), (20, f32::INFINITY)]
                {
                    a[i * k..][..k].iter_mut().for_each(|x| *x = bf16::from_f32(x.to_f32().clamp(-1.0, 1.0) * scale));
                }
                for i in [1, 5, 6, 19, 30] {
                    a[i * k + 7 * i] = bf16::from_f32(900.0);
                }
                let whole = w.times(kernels, &a);
                for (first, end) in [(0, 1), (3, 4), (4, 5), (0, 6), (1, 8), (5, 31), (17, 18), (18, 19), (30, 31)] {
                    same_bits(&w.times(kernels, &a[first * k..end * k]), &whole[first * 70..end * 70]).unwrap();
                }
                assert!(whole[..70].iter().all(|y| y.to_bits() == 0 || y.is_nan()));
                assert!(whole[18 * 70..19 * 70].iter().chain(&whole[20 * 70..21 * 70]).all(|y| y.is_nan()));
            }
        });
    }

    #[test]
    fn short_runs_are_packed() {
        each_level(|kernels| {
            for (run, whole) in
                [(2, false), (32, false), (64, false), (128, true), (130, false), (256, true), (600, true)]
            {
                let w = W::random(6, Bits::Four, [32, 600], run);
                assert_eq!(kernels.whole(&w.matrix(), Sum::OverCols, 0..32, 1.0).is_some(), whole, "{run}");
            }
        });
    }
}
