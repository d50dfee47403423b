//! Packed whole numbers times rows that are rounded to whole numbers, by vpdpbusd: twice the products of vdpbf16ps, four times
//! those of vpmaddwd, and nothing is widened or packed first.
//!
//! rounding CHUNK values of a row share a step, a 32nd of their mean magnitude (a fortieth of the deviation, if they are normal), or a
//!          16th if they are a gradient.
//!          A value is step (low + 256 high), rounded to nearest: low has 8 bits, and high is 0 but for outliers, which
//!          are few and so cost little. The numbers of W are exact
//! sums     of low and of high, each over a chunk and one run of W's scales exact, at most 1,024 2^7 2^8 < 2^31; then in f32, a run
//!          after the other, low before high, and a chunk after the other
//!
//! The instruction wants W without signs: it gets w + 128, or w + 8 of 4 bits, and the sums begin with what that is too much.
//! A row with a NaN or an infinity gives NaN. Written once for vectors of 512 bits (AVX-512 VNNI) and of 256 (AVX-VNNI);
//! AMX has the same sums, see `whole_amx.rs`.

use super::avx2::{Avx2, AvxVnni, widen};
use super::avx512::{AHEAD, Avx512Vnni, Dot};
use super::pack::Transpose;
use super::tile::Sums;
use super::whole::Eights;
use super::{CHUNK, GEMV_ROWS, PANEL, Term};
use crate::quantize::packed::{self, Packed};
use crate::{Bits, bf16};
use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

/// Values that vpdpbusd sums at once.
pub(super) const QUAD: usize = 4;
/// Columns of W that must share a scale, or a multiple of so many: the sums of shorter runs cost as much as their products.
pub(super) const RUN: usize = 128;
/// Steps of a row's mean magnitude. MELD's labels move no more than W's own rounding moves them; with 16 they move twice as much.
const STEPS: f32 = 32.0;
/// Those of a gradient's row, whose values are spread further: with 32 every other quad would have outliers.
const GRADIENT_STEPS: f32 = 16.0;
/// The largest value in steps, below 127 256 + 127.
const MOST: f32 = 32_000.0;
/// Values of a row that are rounded at once.
const BLOCK: usize = 32;
/// Rows that are multiplied together fall into so many groups; the outliers of a group's rows are multiplied together, so that each
/// of them pays for the others' quads.
const GROUPS: usize = 3;

/// A bit for every quad of a chunk.
type Outliers = [u32; CHUNK / QUAD / 32];

/// What precedes the bytes of a row's chunk: low ones, then high ones, zeros behind both up to a multiple of BLOCK.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub step: f32,
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
pub(super) const STRIDE: usize = HEAD + 2 * CHUNK;

/// Values of bf16 that a row's chunk becomes.
pub(super) const ROUNDED_LEN: usize = STRIDE / 2;

/// A chunk of some rows, each as [`round`] makes it.
#[derive(Clone, Copy)]
pub(super) struct Rows(pub *const u8);

/// Quads of a chunk, rising.
pub(super) struct Quads {
    len: usize,
    /// Behind them anything: room for all of a vector.
    quads: [u32; CHUNK / QUAD + 16],
}

impl Quads {
    pub const NONE: Self = Self { len: 0, quads: [0; CHUNK / QUAD + 16] };

    /// Becomes those that have a high part in any of the first so many rows.
    ///
    /// # Safety
    /// The level of `B` and the rows must be there.
    #[inline(always)]
    pub unsafe fn find_high<B: Bytes>(&mut self, a: Rows, rows: usize) {
        let mut all: Outliers = [0; CHUNK / QUAD / 32];
        for r in 0..rows {
            // SAFETY: the caller's.
            let row = unsafe { a.head(r) }.outliers;
            all.iter_mut().zip(row).for_each(|(all, row)| *all |= row);
        }
        // SAFETY: the caller's.
        unsafe { B::list(self, &all) };
    }

    /// Those in `run`.
    #[inline(always)]
    pub fn of(&self, run: &Range<usize>) -> &[u32] {
        let all = &self.quads[..self.len];
        if run.start == 0 && all.last().is_none_or(|last| (*last as usize) < run.end) {
            return all; // as in every run of a whole row
        }
        let bound = |end: usize| all.partition_point(|quad| (*quad as usize) < end);
        &all[bound(run.start)..bound(run.end)]
    }
}

impl Rows {
    /// Those of a term from row `r` on, with the chunk that begins at value `k`.
    #[inline(always)]
    pub fn of(term: &Term<bf16>, r: usize, k: usize) -> Self {
        Self(term.a[k / CHUNK * term.lda + r * ROUNDED_LEN..].as_ptr().cast())
    }

    /// From row `r` on.
    #[inline(always)]
    pub fn from(self, r: usize) -> Self {
        Self(self.0.wrapping_add(r * STRIDE))
    }

    /// Where the first row's low or high parts begin.
    #[inline(always)]
    pub fn part(self, part: usize) -> *const u8 {
        self.0.wrapping_add(HEAD + part * CHUNK)
    }

    /// # Safety
    /// Row `r` must be there.
    #[inline(always)]
    pub unsafe fn head(self, r: usize) -> Head {
        // SAFETY: the caller's; every bit pattern is a head.
        unsafe { self.0.add(r * STRIDE).cast::<Head>().read_unaligned() }
    }
}

/// How a level multiplies bytes. All functions need its instructions.
pub(super) trait Bytes {
    /// A vector of sums of whole numbers, and one of f32.
    type Sum: Copy;
    type Real: Copy;
    /// Outputs of two vectors.
    const OUTPUTS: usize;
    /// The most rows that registers hold, two vectors each, and those of a group.
    const ROWS: usize;
    const GROUP: usize = Self::ROWS / GROUPS;
    /// The quads of these bits.
    unsafe fn list(to: &mut Quads, outliers: &Outliers);
    unsafe fn splat(x: i32) -> Self::Sum;
    /// Adds four products in each place, of numbers of w without sign and of `a` with sign.
    unsafe fn add(sum: Self::Sum, w: Self::Sum, a: i32) -> Self::Sum;
    /// What [`Self::quad`] needs of numbers of so many bits, kept from the compiler, which would load it anew for every quad.
    unsafe fn mask<const BITS: usize>() -> Self::Sum;
    /// A quad of OUTPUTS outputs, each number of so many bits with what makes it one without sign, in any order: their pairs of two
    /// columns from `even` on, and of the next two from `odd` on.
    unsafe fn quad<const BITS: usize>(even: *const u8, odd: *const u8, mask: Self::Sum) -> [Self::Sum; 2];
    /// Sums of [`Self::quad`] in order of outputs.
    unsafe fn real(sums: [Self::Sum; 2]) -> [Self::Real; 2];
    /// OUTPUTS scales, widened.
    unsafe fn scales(scales: *const bf16) -> [Self::Real; 2];
    unsafe fn scaled(scales: Self::Real, by: f32) -> Self::Real;
    /// Zeros in place of the scales of sums that are zero.
    unsafe fn scales_of_some(sums: Self::Real, scales: Self::Real) -> Self::Real;
}

/// Sums of f32, by panels, rows and vectors of outputs, each counted from the first.
pub(super) trait Totals<B: Bytes> {
    /// Adds sums scale.
    ///
    /// # Safety
    /// The level of `B` must be there, and so many sums.
    unsafe fn add(&mut self, panel: usize, row: usize, vector: usize, sums: B::Real, scale: B::Real);
}

/// Sums of so many rows, panel after panel.
struct Panels {
    first: *mut [__m512; 2],
    rows: usize,
}

impl Totals<Dot> for Panels {
    #[inline(always)]
    unsafe fn add(&mut self, panel: usize, row: usize, vector: usize, sums: __m512, scale: __m512) {
        // SAFETY: the caller's.
        unsafe {
            let to = &mut (*self.first.add(panel * self.rows + row))[vector];
            *to = _mm512_fmadd_ps(sums, scale, *to);
        }
    }
}

/// Whatever takes the sums of eight outputs and their scales.
struct ByEight<F>(F);

impl<F: FnMut(usize, usize, usize, [__m256; 2])> Totals<AvxVnni> for ByEight<F> {
    #[inline(always)]
    unsafe fn add(&mut self, panel: usize, row: usize, vector: usize, sums: __m256, scale: __m256) {
        self.0(panel, row, vector, [sums, scale]);
    }
}

impl<F: FnMut(usize, usize, usize, [__m256; 2])> Totals<Dot> for ByEight<F> {
    #[inline(always)]
    unsafe fn add(&mut self, panel: usize, row: usize, vector: usize, sums: __m512, scale: __m512) {
        // SAFETY: the caller's level.
        unsafe {
            self.0(panel, row, 2 * vector, [sums, scale].map(|x| _mm512_castps512_ps256(x)));
            self.0(panel, row, 2 * vector + 1, [sums, scale].map(|x| _mm512_extractf32x8_ps::<1>(x)));
        }
    }
}

/// Adds rows `rows` of the term, which are rounded, times panels `panels` of `w`, a run after the other.
///
/// # Safety
/// The level of `B` must be there, lengths as [`crate::Kernels::gemm`] checks them, runs of [`RUN`], and so many sums.
#[inline(always)]
unsafe fn products<B: Bytes>(
    mut to: impl Totals<B>,
    term: &Term<bf16>,
    w: &Packed,
    rows: Range<usize>,
    panels: Range<usize>,
) {
    let mut with_high = [Quads::NONE; GROUPS];
    for first in rows.clone().step_by(B::ROWS) {
        let some = first..rows.end.min(first + B::ROWS);
        for from in (0..term.k).step_by(CHUNK) {
            let k = from..term.k.min(from + CHUNK);
            let a = Rows::of(term, first, from);
            for (group, high) in (0..some.len()).step_by(B::GROUP).zip(&mut with_high) {
                // SAFETY: the caller's rows.
                unsafe { high.find_high::<B>(a.from(group), B::GROUP.min(some.len() - group)) };
            }
            for panel in panels.clone() {
                let at = [panel - panels.start, first - rows.start];
                macro_rules! rows {
                    ($($m:literal)*) => {
                        match some.len() {
                            // SAFETY: the caller's; so many rows, each over k.
                            $($m if $m <= B::ROWS => unsafe { chunk::<B, $m>(&mut to, at, a, &with_high, w, panel, k.clone()) },)*
                            m => unreachable!("1 to {} rows, not {m}", B::ROWS),
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
/// AVX-512 with VNNI and BF16 and POPCNT must be there, else as [`products`].
#[target_feature(enable = "avx512vnni,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,popcnt")]
pub(super) unsafe fn add(c: Sums<__m512>, term: &Term<bf16>, w: &Packed, rows: Range<usize>, panels: Range<usize>) {
    let to = Panels { first: c.eight(0, 0, 0).cast(), rows: rows.len() }; // a panel's two vectors are one section
    // SAFETY: the caller's.
    unsafe { products(to, term, w, rows, panels) }
}

/// As [`products`], to sums of M rows of one panel.
///
/// # Safety
/// As [`add`].
#[target_feature(enable = "avx512vnni,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,popcnt")]
pub(super) unsafe fn add_few<const M: usize>(c: &mut [[__m512; 2]; M], term: &Term<bf16>, w: &Packed, panel: usize) {
    // SAFETY: the caller's.
    unsafe { products(Panels { first: c.as_mut_ptr(), rows: M }, term, w, 0..M, panel..panel + 1) }
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

macro_rules! round {
    ($(#[$doc:meta])* $name:ident, $features:literal, $add_small:ident) => {
        $(#[$doc])*
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(to: &mut [bf16], row: &[bf16], gradient: bool) {
            assert!(row.len() <= CHUNK && to.len() == ROUNDED_LEN);
            // SAFETY: so many values of the row are there.
            let values = |at: usize| unsafe { load(row.as_ptr().add(at), row.len() - at) };
            let (mut most, mut sum) = (_mm512_setzero_si512(), _mm512_setzero_ps());
            for at in (0..row.len()).step_by(BLOCK) {
                let magnitude = _mm512_and_si512(values(at), _mm512_set1_epi16(0x7fff));
                most = _mm512_max_epu16(most, magnitude);
                sum = $add_small(sum, magnitude);
            }
            // as numbers of 32 bits those without the lower half lie in order, too
            let most = _mm512_max_epu32(most, _mm512_slli_epi32::<16>(most));
            let most = f32::from_bits(_mm512_reduce_max_epu32(most) & 0xffff_0000);
            let step = step(_mm512_reduce_add_ps(sum), row.len(), most, gradient);
            let by = _mm512_set1_ps(1.0 / step);
            let (mut before, mut outliers) = ([[0; CHUNK / RUN + 1]; 2], [0; CHUNK / BLOCK]);
            let parts = parts(to);
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
            Head::write(to, if most.is_finite() { step } else { f32::NAN }, before, outliers);
        }
    };
}
round!(
    /// A chunk of a row in steps, of a gradient in larger ones, as [`ROUNDED_LEN`] values.
    ///
    /// # Safety
    /// AVX-512 with VNNI and BF16 must be there.
    round,
    "avx512vnni,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2",
    add_small_pairs
);
round!(
    /// As [`round`], whose sums it has in another order.
    ///
    /// # Safety
    /// AVX-512 with VNNI must be there.
    round512,
    "avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2",
    add_small
);

/// Adds magnitudes times [`SMALL`].
#[inline]
#[target_feature(enable = "avx512bf16,avx512f")]
fn add_small_pairs(sum: __m512, magnitudes: __m512i) -> __m512 {
    // SAFETY: vectors of the same size; every bit pattern is a vector of bf16.
    let bits = |x: __m512i| unsafe { std::mem::transmute::<__m512i, __m512bh>(x) };
    let small = _mm512_set1_epi16(bf16::from_f32_const(SMALL).to_bits().cast_signed());
    _mm512_dpbf16_ps(sum, bits(magnitudes), bits(small))
}

/// The same, one after the other.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn add_small(sum: __m512, magnitudes: __m512i) -> __m512 {
    let (zero, small) = (_mm512_setzero_si512(), _mm512_set1_ps(SMALL));
    let [low, high] = [_mm512_unpacklo_epi16(zero, magnitudes), _mm512_unpackhi_epi16(zero, magnitudes)]; // bf16 widened
    let sum = _mm512_fmadd_ps(_mm512_castsi512_ps(low), small, sum);
    _mm512_fmadd_ps(_mm512_castsi512_ps(high), small, sum)
}

/// As [`round`], by vectors of 256 bits.
///
/// # Safety
/// AVX2 with FMA and AVX-VNNI must be there.
#[target_feature(enable = "avxvnni,avx2,fma")]
pub(super) unsafe fn round256(to: &mut [bf16], row: &[bf16], gradient: bool) {
    assert!(row.len() <= CHUNK && to.len() == ROUNDED_LEN);
    let (whole, rest) = row.as_chunks::<BLOCK>();
    let mut last = [bf16::ZERO; BLOCK];
    last[..rest.len()].copy_from_slice(rest);
    let blocks = || whole.iter().chain((!rest.is_empty()).then_some(&last));
    // SAFETY: sixteen values a vector.
    let halves = |block: &[bf16; BLOCK]| [0, 16].map(|at| unsafe { _mm256_loadu_si256(block.as_ptr().add(at).cast()) });
    let zero = _mm256_setzero_si256();
    let widened = |x| [_mm256_unpacklo_epi16(zero, x), _mm256_unpackhi_epi16(zero, x)].map(|x| _mm256_castsi256_ps(x));
    let (mut most, mut sum) = (zero, _mm256_setzero_ps());
    for x in blocks().flat_map(halves) {
        let magnitude = _mm256_and_si256(x, _mm256_set1_epi16(0x7fff));
        most = _mm256_max_epu16(most, magnitude);
        sum = widened(magnitude).into_iter().fold(sum, |sum, x| _mm256_fmadd_ps(x, _mm256_set1_ps(SMALL), sum));
    }
    // SAFETY: vectors of the same size; every bit pattern is one of these numbers.
    let (most, sum) =
        unsafe { (std::mem::transmute::<__m256i, [u16; 16]>(most), std::mem::transmute::<__m256, [f32; 8]>(sum)) };
    let most = f32::from_bits(u32::from(most.into_iter().fold(0, u16::max)) << 16);
    let step = step(sum.iter().sum::<f32>(), row.len(), most, gradient);
    let by = _mm256_set1_ps(1.0 / step);
    let (mut before, mut outliers) = ([[0; CHUNK / RUN + 1]; 2], [0; CHUNK / BLOCK]);
    let parts = parts(to);
    for (at, block) in blocks().enumerate() {
        let low = halves(block).map(|x| {
            let [first, second] = widened(x).map(|x| _mm256_cvtps_epi32(_mm256_mul_ps(x, by)));
            _mm256_packs_epi32(first, second)
        });
        let high = low.map(|low| _mm256_srai_epi16::<8>(_mm256_add_epi16(low, _mm256_set1_epi16(128))));
        let run = at * BLOCK / RUN;
        for ((to, part), before) in parts.into_iter().zip([low, high]).zip(&mut before) {
            let bytes = part.map(|part| _mm256_and_si256(part, _mm256_set1_epi16(255)));
            let bytes = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi16(bytes[0], bytes[1]));
            // SAFETY: so many bytes.
            unsafe { _mm256_storeu_si256(to.add(at * BLOCK).cast(), bytes) };
            let sums = _mm256_dpbusd_avx_epi32(zero, _mm256_set1_epi8(1), bytes);
            // SAFETY: as above.
            let sums = unsafe { std::mem::transmute::<__m256i, [i32; 8]>(sums) };
            if (at * BLOCK).is_multiple_of(RUN) {
                before[run + 1] = before[run];
            }
            before[run + 1] += sums.iter().sum::<i32>();
        }
        let none = high.map(|high| {
            let none = _mm256_cmpeq_epi64(high, zero); // four of 16 bits
            _mm256_movemask_pd(_mm256_castsi256_pd(none))
        });
        outliers[at] = !(none[0] | none[1] << 4) as u8;
    }
    Head::write(to, if most.is_finite() { step } else { f32::NAN }, before, outliers);
}

/// What a chunk's magnitudes are multiplied by before they are summed, so that no sum of finite values overflows.
const SMALL: f32 = 1.0 / 2048.0;

/// Of the sum of so many magnitudes times [`SMALL`] and the largest one.
#[inline(always)]
fn step(sum: f32, len: usize, most: f32, gradient: bool) -> f32 {
    let mean = sum * (1.0 / SMALL / len as f32);
    let steps = if gradient { GRADIENT_STEPS } else { STEPS };
    // from 2^-100 up, so that its inverse is a normal number
    (mean / steps).max(most / MOST).max(2f32.powi(-100))
}

/// Where the low and the high bytes of a row's chunk begin.
#[inline(always)]
fn parts(to: &mut [bf16]) -> [*mut u8; 2] {
    let (low, high) = to[HEAD / 2..].split_at_mut(CHUNK / 2);
    [low.as_mut_ptr().cast(), high.as_mut_ptr().cast()]
}

impl Head {
    /// Writes what precedes the bytes; the outliers as bytes of eight quads.
    #[inline(always)]
    fn write(to: &mut [bf16], step: f32, before: [[i32; CHUNK / RUN + 1]; 2], outliers: [u8; CHUNK / BLOCK]) {
        let outliers = std::array::from_fn(|i| u32::from_le_bytes(std::array::from_fn(|b| outliers[4 * i + b])));
        let head = Head { step, before, outliers, _rest: [0; 20] };
        let room = &mut to[..HEAD / 2];
        // SAFETY: as many bytes; any alignment will do.
        unsafe { room.as_mut_ptr().cast::<Head>().write_unaligned(head) };
    }
}

/// Short runs are left to AVX2: their sums in f32 would cost as much as the products that are saved.
macro_rules! eights {
    ($level:ty, $bytes:ty, $features:literal) => {
        impl Eights for $level {
            #[target_feature(enable = $features)]
            unsafe fn products(
                term: &Term<bf16>,
                w: &Packed,
                rows: Range<usize>,
                panels: Range<usize>,
                add: impl FnMut(usize, usize, usize, [__m256; 2]),
            ) {
                // SAFETY: the caller's.
                unsafe {
                    if w.runs_by(RUN) {
                        products::<$bytes>(ByEight(add), term, w, rows, panels)
                    } else {
                        Avx2::products(term, w, rows, panels, add)
                    }
                }
            }
        }
    };
}
eights!(AvxVnni, AvxVnni, "avxvnni,avx2,fma");
eights!(Avx512Vnni, Dot, "avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,popcnt");

/// What makes numbers of so many bits numbers without sign.
const fn offset(bits: Bits) -> i32 {
    match bits {
        Bits::Eight => 128,
        Bits::Four => 8,
    }
}

/// Adds the first M rows over columns `k` of panel `panel` to the sums of the `p`th panel and the rows from `row` on.
///
/// # Safety
/// As [`products`], with rows rounded over `k`.
#[inline(always)]
unsafe fn chunk<B: Bytes, const M: usize>(
    to: &mut impl Totals<B>,
    [p, row]: [usize; 2],
    a: Rows,
    with_high: &[Quads; GROUPS],
    w: &Packed,
    panel: usize,
    k: Range<usize>,
) {
    for (run, scales) in runs(w, panel, k) {
        // SAFETY: the caller's; quads of the run, and of the rows.
        unsafe {
            if M <= B::ROWS / 2 && B::OUTPUTS < PANEL {
                // all outputs at once: memory is read as it lies, and sums wait less for themselves
                run.add::<B, M, 2>(to, [p, row], a, with_high, scales, 0);
            } else {
                for part in 0..PANEL / B::OUTPUTS {
                    run.add::<B, M, 1>(to, [p, row], a, with_high, scales, part);
                }
            }
        }
    }
}

/// Parts of a row's values.
pub(super) const LOW: usize = 0;
pub(super) const HIGH: usize = 1;

/// Columns of a panel that share their scales.
pub(super) struct Run<'a> {
    pub bits: Bits,
    /// Their pairs of all outputs.
    pub q: &'a [u8],
    /// Which of the chunk's they are.
    pub quads: Range<usize>,
}

/// Columns `k` of panel `panel`, at most a chunk of them, and the outputs' scales.
#[inline(always)]
pub(super) fn runs<'a>(
    w: &Packed<'a>,
    panel: usize,
    k: Range<usize>,
) -> impl Iterator<Item = (Run<'a>, &'a [bf16; PANEL])> + use<'a> {
    let mut first = 0;
    w.panel(panel, k).map(move |(bits, q, scales)| {
        let quads = first..first + (q.len() / packed::pairs(bits)).div_ceil(2);
        first = quads.end;
        (Run { bits, q, quads }, scales)
    })
}

/// Sums of M rows and of P times OUTPUTS outputs.
type Tile<B, const M: usize, const P: usize> = [[[<B as Bytes>::Sum; 2]; P]; M];

impl Run<'_> {
    /// Adds the first M rows for P times OUTPUTS outputs of the panel, from the `from`th OUTPUTS on.
    ///
    /// # Safety
    /// As [`products`], with rows rounded over the run.
    #[inline(always)]
    unsafe fn add<B: Bytes, const M: usize, const P: usize>(
        &self,
        to: &mut impl Totals<B>,
        [panel, row]: [usize; 2],
        a: Rows,
        with_high: &[Quads; GROUPS],
        scales: &[bf16; PANEL],
        from: usize,
    ) {
        // SAFETY: the caller's.
        unsafe {
            let scales = std::array::from_fn(|p| B::scales(scales.as_ptr().add((from + p) * B::OUTPUTS)));
            let low = self.sums::<B, M, P>(a, LOW, from, self.quads.clone(), M < B::ROWS && M <= GEMV_ROWS);
            for (r, sums) in low.into_iter().enumerate() {
                for (p, (sums, scales)) in sums.into_iter().zip::<[_; P]>(scales).enumerate() {
                    for (v, (sums, scales)) in B::real(sums).into_iter().zip(scales).enumerate() {
                        to.add(panel, row + r, 2 * (from + p) + v, sums, B::scaled(scales, a.head(r).step));
                    }
                }
            }
            for (first, with_high) in (0..M).step_by(B::GROUP).zip(with_high) {
                let high = with_high.of(&self.quads);
                if high.is_empty() {
                    continue;
                }
                let (a, at) = (a.from(first), [panel, row + first]);
                match B::GROUP.min(M - first) {
                    1 => self.add_high::<B, 1, P>(to, at, a, high, scales, from),
                    2 => self.add_high::<B, 2, P>(to, at, a, high, scales, from),
                    3 if B::GROUP > 2 => self.add_high::<B, 3, P>(to, at, a, high, scales, from),
                    4 if B::GROUP > 2 => self.add_high::<B, 4, P>(to, at, a, high, scales, from),
                    m => unreachable!("1 to {} rows, not {m}", B::GROUP),
                }
            }
        }
    }

    /// Adds the high parts of the first M rows, which are in these quads: not to rows that have none, which other rows must not touch,
    /// whatever the scales are.
    ///
    /// # Safety
    /// As [`Self::add`].
    #[inline(always)]
    unsafe fn add_high<B: Bytes, const M: usize, const P: usize>(
        &self,
        to: &mut impl Totals<B>,
        [panel, row]: [usize; 2],
        a: Rows,
        quads: &[u32],
        scales: [[B::Real; 2]; P],
        from: usize,
    ) {
        let quads = quads.iter().map(|quad| *quad as usize);
        // SAFETY: the caller's.
        unsafe {
            for (r, sums) in self.sums::<B, M, P>(a, HIGH, from, quads, false).into_iter().enumerate() {
                for (p, (sums, scales)) in sums.into_iter().zip(scales).enumerate() {
                    for (v, (sums, scales)) in B::real(sums).into_iter().zip(scales).enumerate() {
                        let scales = B::scales_of_some(sums, B::scaled(scales, 256.0 * a.head(r).step));
                        to.add(panel, row + r, 2 * (from + p) + v, sums, scales);
                    }
                }
            }
        }
    }

    /// Sums of a part of the first M rows over `quads`, less what W's numbers are too much, times all of a row.
    ///
    /// # Safety
    /// As [`Self::add`], and the quads in the run.
    #[inline(always)]
    unsafe fn sums<B: Bytes, const M: usize, const P: usize>(
        &self,
        a: Rows,
        part: usize,
        from: usize,
        quads: impl Iterator<Item = usize>,
        fetch: bool,
    ) -> Tile<B, M, P> {
        let run = self.quads.start * QUAD / RUN..(self.quads.end * QUAD).div_ceil(RUN);
        let starts = std::array::from_fn(|r| {
            // SAFETY: the caller's.
            let before = unsafe { a.head(r) }.before[part];
            offset(self.bits) * (before[run.start] - before[run.end])
        });
        let a = Rows(a.part(part));
        // SAFETY: the caller's.
        unsafe {
            match self.bits {
                Bits::Eight => self.sums_of::<B, M, P, 8>(a, from, quads, starts, fetch),
                Bits::Four => self.sums_of::<B, M, P, 4>(a, from, quads, starts, fetch),
            }
        }
    }

    /// As [`Self::sums`], from `starts` on, of bytes that `a` begins with and of numbers of so many bits.
    ///
    /// # Safety
    /// As [`Self::sums`].
    #[inline(always)]
    unsafe fn sums_of<B: Bytes, const M: usize, const P: usize, const BITS: usize>(
        &self,
        a: Rows,
        from: usize,
        quads: impl Iterator<Item = usize>,
        starts: [i32; M],
        fetch: bool,
    ) -> Tile<B, M, P> {
        let pair = PANEL * BITS / 4;
        let part = B::OUTPUTS * BITS / 4; // bytes of a pair
        // SAFETY: the caller's; pairs of the run, and of every row four values.
        unsafe {
            let mask = B::mask::<BITS>();
            let mut sums = starts.map(|start| [[B::splat(start); 2]; P]);
            for quad in quads {
                let at = 2 * pair * (quad - self.quads.start);
                if fetch {
                    for line in (0..2 * pair).step_by(64) {
                        <Avx2 as Transpose<bf16>>::fetch(self.q.as_ptr().wrapping_add(at + line + AHEAD));
                    }
                }
                // where the run ends with half a quad the row has zeros, for anything
                let [even, odd] = [at, if at + pair < self.q.len() { at + pair } else { at }];
                let w: [_; P] = std::array::from_fn(|p| {
                    let first = self.q.as_ptr().add((from + p) * part);
                    B::quad::<BITS>(first.add(even), first.add(odd), mask)
                });
                for (r, sums) in sums.iter_mut().enumerate() {
                    let a = a.0.add(r * STRIDE + QUAD * quad).cast::<i32>().read_unaligned();
                    for (sum, w) in sums.as_flattened_mut().iter_mut().zip(w.as_flattened()) {
                        *sum = B::add(*sum, *w, a);
                    }
                }
            }
            sums
        }
    }
}

impl Bytes for Dot {
    type Sum = __m512i;
    type Real = __m512;
    const OUTPUTS: usize = 32;
    const ROWS: usize = 12; // 24 sums, 2 of W and what makes them
    #[inline]
    #[target_feature(enable = "avx512f,popcnt")]
    unsafe fn list(to: &mut Quads, outliers: &Outliers) {
        let mut quads = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let mut len = 0;
        for bits in outliers {
            for bits in [*bits as u16, (bits >> 16) as u16] {
                let some = _mm512_maskz_compress_epi32(bits, quads);
                // SAFETY: at most as many as there are quads precede, and there is room for sixteen more.
                unsafe { _mm512_storeu_si512(to.quads.as_mut_ptr().add(len).cast(), some) };
                len += bits.count_ones() as usize;
                quads = _mm512_add_epi32(quads, _mm512_set1_epi32(16));
            }
        }
        to.len = len;
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn splat(x: i32) -> __m512i {
        _mm512_set1_epi32(x)
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn add(sum: __m512i, w: __m512i, a: i32) -> __m512i {
        _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(a))
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn mask<const BITS: usize>() -> __m512i {
        let mut mask = _mm512_set1_epi8(if BITS == 8 { -128 } else { 15 });
        // SAFETY: a comment.
        unsafe { asm!("/* {} */", inout(zmm_reg) mask, options(pure, nomem, nostack, preserves_flags)) };
        mask
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    unsafe fn quad<const BITS: usize>(even: *const u8, odd: *const u8, mask: __m512i) -> [__m512i; 2] {
        // SAFETY: the caller's bytes.
        let pair = |q: *const u8| unsafe {
            if BITS == 8 {
                _mm512_xor_si512(_mm512_loadu_si512(q.cast()), mask)
            } else {
                let halves = _mm512_cvtepu8_epi16(_mm256_loadu_si256(q.cast()));
                let both = _mm512_or_si512(halves, _mm512_slli_epi16::<4>(halves)); // the low half below the high one
                _mm512_and_si512(both, mask)
            }
        };
        let (even, odd) = (pair(even), pair(odd));
        [0, 16].map(|first| {
            // in every output's place its even pair, and behind it its odd one, which begin with number 32
            let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let outputs = _mm512_add_epi32(lanes, _mm512_set1_epi32(first));
            let order =
                _mm512_or_si512(outputs, _mm512_slli_epi32::<16>(_mm512_add_epi32(outputs, _mm512_set1_epi32(32))));
            _mm512_permutex2var_epi16(even, order, odd)
        })
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn real(sums: [__m512i; 2]) -> [__m512; 2] {
        sums.map(|sums| _mm512_cvtepi32_ps(sums))
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn scales(scales: *const bf16) -> [__m512; 2] {
        // SAFETY: the caller's, sixteen a vector.
        let halves = [0, 16].map(|at| unsafe { _mm256_loadu_si256(scales.add(at).cast()) });
        halves.map(|half| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half))))
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn scaled(scales: __m512, by: f32) -> __m512 {
        _mm512_mul_ps(scales, _mm512_set1_ps(by))
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn scales_of_some(sums: __m512, scales: __m512) -> __m512 {
        let some = _mm512_cmp_ps_mask::<_CMP_NEQ_OQ>(sums, _mm512_setzero_ps());
        _mm512_maskz_mov_ps(some, scales)
    }
}

impl Bytes for AvxVnni {
    type Sum = __m256i;
    type Real = __m256;
    const OUTPUTS: usize = 16;
    const ROWS: usize = 6; // 12 sums, 2 of W, 1 of the row
    #[inline(always)]
    unsafe fn list(to: &mut Quads, outliers: &Outliers) {
        to.len = 0;
        for (first, mut bits) in (0..).step_by(32).zip(*outliers) {
            while bits != 0 {
                to.quads[to.len] = first + bits.trailing_zeros();
                to.len += 1;
                bits &= bits - 1;
            }
        }
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn splat(x: i32) -> __m256i {
        _mm256_set1_epi32(x)
    }
    #[inline]
    #[target_feature(enable = "avxvnni,avx2")]
    unsafe fn add(sum: __m256i, w: __m256i, a: i32) -> __m256i {
        _mm256_dpbusd_avx_epi32(sum, w, _mm256_set1_epi32(a))
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn mask<const BITS: usize>() -> __m256i {
        let mut mask = _mm256_set1_epi8(if BITS == 8 { -128 } else { 15 });
        // SAFETY: a comment.
        unsafe { asm!("/* {} */", inout(ymm_reg) mask, options(pure, nomem, nostack, preserves_flags)) };
        mask
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn quad<const BITS: usize>(even: *const u8, odd: *const u8, mask: __m256i) -> [__m256i; 2] {
        // SAFETY: the caller's bytes.
        let pair = |q: *const u8| unsafe {
            if BITS == 8 {
                _mm256_xor_si256(_mm256_loadu_si256(q.cast()), mask)
            } else {
                let halves = _mm256_cvtepu8_epi16(_mm_loadu_si128(q.cast()));
                let both = _mm256_or_si256(halves, _mm256_slli_epi16::<4>(halves)); // the low half below the high one
                _mm256_and_si256(both, mask)
            }
        };
        let (even, odd) = (pair(even), pair(odd));
        [_mm256_unpacklo_epi16(even, odd), _mm256_unpackhi_epi16(even, odd)] // by halves of 128 bits
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn real([low, high]: [__m256i; 2]) -> [__m256; 2] {
        let ordered = [_mm256_permute2x128_si256::<0x20>(low, high), _mm256_permute2x128_si256::<0x31>(low, high)];
        ordered.map(|sums| _mm256_cvtepi32_ps(sums))
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scales(scales: *const bf16) -> [__m256; 2] {
        // SAFETY: the caller's, eight a vector.
        [0, 8].map(|at| unsafe { widen(_mm_loadu_si128(scales.add(at).cast())) })
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scaled(scales: __m256, by: f32) -> __m256 {
        _mm256_mul_ps(scales, _mm256_set1_ps(by))
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scales_of_some(sums: __m256, scales: __m256) -> __m256 {
        _mm256_and_ps(_mm256_cmp_ps::<_CMP_NEQ_OQ>(sums, _mm256_setzero_ps()), scales)
    }
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
        levels.filter(|kernels| kernels.linear.whole.first().is_some_and(|whole| whole.run == RUN)).for_each(test);
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
            let b = kernels.whole(&w, Sum::OverCols, 0..n, 1.0).expect("long runs");
            let (rows, (a, lda)) = (a.len() / k, rounded(kernels, a, k, k, &b, None));
            let b = Columns::Whole(b);
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
    fn short_runs_have_the_bits_of_avx2_or_are_packed() {
        let avx2 = bf16::kernels(Isa::Avx2);
        each_level(|kernels| {
            let a: Vec<bf16> = Random::new(7).vec(13 * 600);
            for (run, long) in
                [(2, false), (32, false), (64, false), (128, true), (130, false), (256, true), (600, true)]
            {
                let w = W::random(6, Bits::Four, [32, 600], run);
                let packed = kernels.whole(&w.matrix(), Sum::OverCols, 0..32, 1.0).is_none();
                assert_eq!(packed, !long && kernels.isa >= Isa::Avx512Bf16, "{run}");
                if !packed {
                    let same = same_bits(&w.times(kernels, &a), &w.times(avx2, &a));
                    assert_eq!(same.is_ok(), !long, "{run}: {same:?}");
                }
            }
        });
    }
}
