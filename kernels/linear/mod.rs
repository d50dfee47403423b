//! Linear: y = x W^T + b, its gradient dx = dy W, and LoRA's terms in the same sum       Hu et al. 2021, eq. 3
//!
//! shapes   `x [T, k]`, `y [T, n]`, rows of any stride; W as the file has it, any of three types, any alignment
//! types    x, W packed as E; sums and bias E::Real; y as E, or as E::Real stored or added. W of whole numbers as it is where
//!          the level multiplies such (AVX2 and above, for x of bf16), see `whole.rs`, `whole_dot.rs` and `whole_amx.rs`
//! rounding W once at packing (none from bf16 to bf16), y once at the end; sums in Real, in order of k, as two sums
//!          over even and odd k that are added at the end, or as pairs (vdpbf16ps, which flushes denormals, and AMX), or
//!          by fours (bfmmla, which flushes them too and rounds to odd), or by sixteen (CUDA)
//! alias    none; a row's bits depend on that row and on W alone
//! cost     2 T n k flops: bound by the multipliers once T is a few dozen, by the reading of W below that
//! source   the panel layout is that of Intel's VNNI and AMX instructions (SDM, TDPBF16PS); tile shapes as in
//!          Goto and van de Geijn 2008 and the BLIS papers
//! used by  every projection of the model, forward and backward, and the output head
//!
//! A frozen W is packed by panels of 32 outputs, W or W^T alike, so that no transpose is stored; whole numbers lie so already, and are
//! turned for W^T. With them rows are rounded to whole numbers first, once for all panels.
//! LoRA is a second term.
//! CUDA reads W or W^T where it lies.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod cuda;
#[cfg(target_arch = "x86_64")]
mod gemv;
#[cfg(target_arch = "x86_64")]
mod gemv_avx2;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon_bf16;
mod pack;
mod portable;
mod tile;
mod tn;
#[cfg(target_arch = "x86_64")]
mod tn_amx;
#[cfg(target_arch = "x86_64")]
mod tn_dot;
#[cfg(target_arch = "x86_64")]
mod whole;
#[cfg(target_arch = "x86_64")]
mod whole_amx;
#[cfg(target_arch = "x86_64")]
mod whole_dot;

#[cfg(test)]
mod tests;

use crate::matrix::Encoding;
use crate::quantize::packed::{self, Packed};
use crate::{Bits, Elem, Isa, Kernels, Matrix, Real, bf16};
use portable::Portable;
use std::marker::PhantomData;
use std::ops::Range;

/// Output columns of one packed panel.
pub const PANEL: usize = 32;
/// Values of a row that [`Kernels::round`] makes whole numbers together.
pub const CHUNK: usize = 1024;
/// Rows up to which a matrix is multiplied where it lies: with more, reading it again from a cache costs more than packing.
const GEMV_ROWS: usize = 8;

/// `y[T, n] += x[T, k] w[n, k]^T`, in f64: what every form is held to.
pub fn reference(y: &mut [f64], x: &[f64], w: &[f64], n: usize, k: usize) {
    for (y, x) in y.chunks_exact_mut(n).zip(x.chunks_exact(k)) {
        for (y, w) in y.iter_mut().zip(w.chunks_exact(k)) {
            *y += x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
        }
    }
}

/// `dx[T, k] += dy[T, n] w[n, k]` and `dw[n, k] += dy^T x`, in f64.
pub fn reference_backward(dx: &mut [f64], dw: &mut [f64], dy: &[f64], x: &[f64], w: &[f64], n: usize, k: usize) {
    for ((dx, dy), x) in dx.chunks_exact_mut(k).zip(dy.chunks_exact(n)).zip(x.chunks_exact(k)) {
        for ((dy, w), dw) in dy.iter().zip(w.chunks_exact(k)).zip(dw.chunks_exact_mut(k)) {
            for c in 0..k {
                dx[c] += dy * w[c];
                dw[c] += dy * x[c];
            }
        }
    }
}

/// Which index of a matrix `[rows, cols]` a product sums over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// y = x W^T: an output for each row of W, sums over its columns.
    OverCols,
    /// dx = dy W: an output for each column of W, sums over its rows.
    OverRows,
}

impl Sum {
    /// (outputs, summed) of `w`.
    pub fn shape(self, w: &Matrix) -> (usize, usize) {
        match self {
            Sum::OverCols => (w.rows(), w.cols()),
            Sum::OverRows => (w.cols(), w.rows()),
        }
    }
}

/// Values of one packed panel over `k` summed values: an odd `k` is padded by one zero.
pub const fn panel_len(k: usize) -> usize {
    PANEL * 2 * k.div_ceil(2)
}

/// One product a b of a sum of products.
#[derive(Clone, Copy, Debug)]
pub struct Term<'a, E> {
    /// `[rows, k]` with row stride `lda`; where `b` is of whole numbers `[k / CHUNK, rows]`, each as [`Kernels::round`] makes it.
    pub a: &'a [E],
    /// Values from one row of `a` to the next, or from one chunk to the next.
    pub lda: usize,
    /// Its columns from the first that is asked for on.
    pub b: Columns<'a, E>,
    /// Values summed over.
    pub k: usize,
}

/// The right factor of a product: n columns of k values.
#[derive(Clone, Copy, Debug)]
pub enum Columns<'a, E> {
    /// ceil(n / PANEL) panels, as [`Kernels::pack`] makes them. Aligned to 64 bytes they load fastest.
    Panels(&'a [E]),
    /// Whole numbers, as [`Kernels::whole`] or [`Kernels::turned`] gives them.
    Whole(Packed<'a>),
}

impl<'a, E> Columns<'a, E> {
    /// At levels that do not multiply whole numbers there are panels only; [`Kernels::gemm`] checks it.
    fn panels(self) -> &'a [E] {
        match self {
            Columns::Panels(panels) => panels,
            Columns::Whole(_) => &[],
        }
    }
}

/// One product of a sum, whose matrix is read where it lies: what [`Kernels::pack`] and [`Kernels::gemm`] make together.
#[derive(Clone, Copy, Debug)]
pub struct InPlace<'a, E> {
    /// As [`Term::a`]; where [`Kernels::whole`] takes the matrix, its numbers are whole.
    pub a: &'a [E],
    /// As [`Term::lda`].
    pub lda: usize,
    /// The matrix.
    pub w: Matrix<'a>,
    /// Which of its indices is summed over.
    pub sum: Sum,
    /// The first output that is asked for: a multiple of [`PANEL`].
    pub n0: usize,
    /// What W is multiplied by.
    pub scale: f32,
}

/// Where a product goes: `[rows, n]`, the first written column first.
#[derive(Debug)]
pub enum Out<'a, E: Elem> {
    /// c = result, rounded.
    Store(Window<'a, E>),
    /// c = result.
    Real(Window<'a, E::Real>),
    /// c += result.
    Add(Window<'a, E::Real>),
}

/// Values of which a product touches its own columns only, so that other columns of the same rows may be written at the
/// same time.
#[derive(Debug)]
pub struct Window<'a, T> {
    first: *mut T,
    len: usize,
    values: PhantomData<&'a mut [T]>,
}

impl<T> Window<'_, T> {
    /// # Safety
    /// `first` begins `len` values that live as long as the window, of which nobody else reads or writes those that a
    /// product with it touches: of every row of its stride, as many columns as it has.
    pub unsafe fn new(first: *mut T, len: usize) -> Self {
        Self { first, len, values: PhantomData }
    }

    /// The first of `cols` values of `rows` rows, at least one, that are `stride` apart, from `at` on.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn rows(&mut self, at: usize, stride: usize, rows: usize, cols: usize) -> *mut T {
        assert!(at + (rows - 1) * stride + cols <= self.len);
        // SAFETY: inside the values.
        unsafe { self.first.add(at) }
    }

    #[inline(always)]
    fn range(&mut self, at: usize, len: usize) -> &mut [T] {
        assert!(at <= self.len && len <= self.len - at);
        // SAFETY: inside the values, and only the product's own columns are asked for.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(at), len) }
    }
}

impl<'a, T> From<&'a mut [T]> for Window<'a, T> {
    fn from(values: &'a mut [T]) -> Self {
        Self { first: values.as_mut_ptr(), len: values.len(), values: PhantomData }
    }
}

impl<'a, E: Elem> Out<'a, E> {
    /// [`Out::Store`] to values that nobody else has.
    pub fn store(c: &'a mut [E]) -> Self {
        Self::Store(c.into())
    }
    /// [`Out::Real`] to values that nobody else has.
    pub fn real(c: &'a mut [E::Real]) -> Self {
        Self::Real(c.into())
    }
    /// [`Out::Add`] to values that nobody else has.
    pub fn add(c: &'a mut [E::Real]) -> Self {
        Self::Add(c.into())
    }
    fn len(&self) -> usize {
        match self {
            Out::Store(c) => c.len,
            Out::Real(c) | Out::Add(c) => c.len,
        }
    }

    /// Writes consecutive columns from `at` on; the one place where a result is rounded. A whole panel's width is known
    /// to the compiler, so that it becomes a few vector moves and not a call.
    #[inline(always)]
    fn put(&mut self, at: usize, sums: &[E::Real]) {
        match <&[E::Real; PANEL]>::try_from(sums) {
            Ok(panel) => self.put_all(at, panel),
            Err(_) => self.put_all(at, sums),
        }
    }

    #[inline(always)]
    fn put_all<'s>(&mut self, at: usize, sums: impl IntoIterator<Item = &'s E::Real, IntoIter: ExactSizeIterator>) {
        let sums = sums.into_iter();
        match self {
            Out::Store(c) => c.range(at, sums.len()).iter_mut().zip(sums).for_each(|(c, s)| *c = E::narrow(*s)),
            Out::Real(c) => c.range(at, sums.len()).iter_mut().zip(sums).for_each(|(c, s)| *c = *s),
            Out::Add(c) => c.range(at, sums.len()).iter_mut().zip(sums).for_each(|(c, s)| *c += *s),
        }
    }
}

type Pack<E> = unsafe fn(&mut [E], &Matrix, Sum, usize, f32);
type Gemm<E, R> = unsafe fn(Out<E>, usize, usize, usize, &[Term<E>], Option<&[R]>);
type GemmTn<E, R> = unsafe fn(&mut [R], usize, usize, &[E], usize, &[E], usize, usize);
type Gemv<E, R> = unsafe fn(Out<E>, usize, usize, usize, &[InPlace<E>], Option<&[R]>);

/// The forms of one level. All need that level's instructions and the lengths that the wrappers below check.
pub(crate) struct Forms<E: Elem> {
    rows: usize,
    pack: Pack<E>,
    gemm: Gemm<E, E::Real>,
    gemm_tn: GemmTn<E, E::Real>,
    /// Where reading a matrix in place is faster than packing it; for at most GEMV_ROWS rows.
    gemv: Option<Gemv<E, E::Real>>,
    /// How gemm and gemv multiply whole numbers as such; of a matrix by the first that takes it.
    whole: &'static [Whole<E>],
}

/// How a level multiplies whole numbers as such.
struct Whole<E> {
    /// Columns of W that must share a scale, or a multiple of so many.
    run: usize,
    /// Values that a row's chunk becomes.
    rounded_len: usize,
    /// Makes them, of a gradient where that is said.
    round: unsafe fn(&mut [E], &[E], bool),
    turn: unsafe fn(&mut [E], &Packed, usize),
}

impl<E: Elem> Forms<E> {
    const fn portable() -> Self {
        Self {
            rows: <tile::Pairs<E, Portable> as tile::Tile>::ROWS,
            pack: pack::pack::<E, pack::Plain>,
            gemm: tile::gemm::<tile::Pairs<E, Portable>>,
            gemm_tn: tn::gemm_tn::<E, Portable>,
            gemv: None,
            whole: &[],
        }
    }
}

impl Forms<f32> {
    pub(crate) const fn at(isa: Isa) -> Self {
        match isa {
            #[cfg(target_arch = "aarch64")]
            Isa::Neon | Isa::NeonBf16 => neon::F32,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::AvxVnni => avx2::F32,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 | Isa::Amx => avx512::F32,
            _ => Self::portable(),
        }
    }
}

impl Forms<bf16> {
    pub(crate) const fn at(isa: Isa) -> Self {
        match isa {
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::BF16,
            #[cfg(target_arch = "aarch64")]
            Isa::NeonBf16 => neon_bf16::BF16,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::BF16,
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => avx2::BF16_VNNI,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::BF16,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => avx512::BF16_VNNI,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => avx512::BF16_DOT,
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => {
                Self { rows: amx::ROWS, gemm: amx::gemm, gemm_tn: tn_amx::gemm_tn, gemv: None, ..avx512::BF16_DOT }
            }
            _ => Self::portable(),
        }
    }
}

impl Forms<f64> {
    pub(crate) const fn at(_isa: Isa) -> Self {
        Self::portable()
    }
}

impl<E: Elem> Kernels<E> {
    /// Packs the outputs of `w` from `n0` on over the whole sum: every panel is `[k/2][PANEL][2]`, absent outputs and
    /// the pad of an odd `k` zero. Some panels at a time read memory in longer runs than one. Each value is
    /// `narrow(w * scale)`, rounded once when the product is exact in Real (a power of two, a bf16 weight) and twice
    /// otherwise; scale 1 from bf16 to bf16 copies bits.
    ///
    /// `panels` holds one panel of [`panel_len`] values or more; each begins below the number of outputs.
    pub fn pack(&self, panels: &mut [E], w: &Matrix, sum: Sum, n0: usize, scale: f32) {
        let (n, k) = sum.shape(w);
        let count = panels.len() / panel_len(k).max(1);
        assert_eq!(panels.len(), count * panel_len(k), "panels over {k} values");
        assert!(count == 0 || n0 + (count - 1) * PANEL < n, "{count} panels at output {n0} of {n}");
        // SAFETY: a table exists only for levels this machine has; lengths are checked above.
        unsafe { (self.linear.pack)(panels, w, sum, n0, scale) }
    }

    /// Outputs `outputs` of `w`, the first a multiple of [`PANEL`], as [`Self::gemm`] multiplies them where they lie: whole numbers
    /// in the order of a product, at levels that multiply them as such. Anything else is packed.
    pub fn whole<'a>(&self, w: &Matrix<'a>, sum: Sum, outputs: Range<usize>, scale: f32) -> Option<Packed<'a>> {
        match w.encoding() {
            Encoding::Packed(q) if sum == Sum::OverCols && scale == 1.0 && self.form(&q).is_some() => {
                Some(q.slice_rows(outputs))
            }
            _ => None,
        }
    }

    /// How this level multiplies those whole numbers as such.
    fn form(&self, w: &Packed) -> Option<&'static Whole<E>> {
        self.linear.whole.iter().find(|whole| w.runs_by(whole.run))
    }

    /// The whole numbers of `w` that [`Self::turn`] transposes for a product with W^T, and the scale of each of its rows, which
    /// [`Self::round`] takes: numbers of 8 bits with one scale a row, at levels that multiply them as such.
    pub fn whole_rows<'a>(&self, w: &Matrix<'a>, sum: Sum, scale: f32) -> Option<(Packed<'a>, &'a [bf16])> {
        match w.encoding() {
            Encoding::Packed(q) if sum == Sum::OverRows && scale == 1.0 && self.form(&q).is_some() => {
                Some((q, q.row_scales().filter(|_| q.bits() == Bits::Eight)?))
            }
            _ => None,
        }
    }

    /// Values of a panel of `w` that is turned.
    pub fn turned_len(&self, w: &Packed) -> usize {
        packed::panel_sizes(Bits::Eight, w.shape()[0], w.shape()[0]).0 / size_of::<E>()
    }

    /// Transposes whole numbers of 8 bits: panels of W^T as the rows of a [`Packed`] matrix, from its row `n0` on, a multiple of
    /// [`PANEL`]. Two panels take little longer than one.
    pub fn turn(&self, panels: &mut [E], w: &Packed, n0: usize) {
        let whole = self.form(w).filter(|_| w.bits() == Bits::Eight);
        let whole = whole.unwrap_or_else(|| panic!("turning {:?} at {}", w.bits(), self.isa.name()));
        let (len, count) = (self.turned_len(w), panels.len() / self.turned_len(w).max(1));
        assert!(
            panels.len() == count * len && n0.is_multiple_of(PANEL),
            "{} values of panels of {len} at {n0}",
            panels.len()
        );
        assert!(
            count == 0 || n0 + (count - 1) * PANEL < w.shape()[1],
            "{count} panels at output {n0} of {}",
            w.shape()[1]
        );
        // SAFETY: as in `pack`.
        unsafe { (whole.turn)(panels, w, n0) }
    }

    /// What [`Self::turn`] made of `outputs` columns of `w`, for [`Self::gemm`]. `ones` has a one for each, and for the pad of a
    /// panel.
    pub fn turned<'a>(&self, panels: &'a [E], ones: &'a [bf16], w: &Packed, outputs: usize) -> Packed<'a> {
        // SAFETY: plain numbers, which have no gaps, as bytes.
        let bytes = unsafe { std::slice::from_raw_parts(panels.as_ptr().cast::<u8>(), size_of_val(panels)) };
        let k = w.shape()[0];
        let packed = Packed::new(Bits::Eight, bytes, ones, [outputs, k], k.max(1));
        packed.unwrap_or_else(|| panic!("{} bytes and {} scales for {outputs} outputs", bytes.len(), ones.len()))
    }

    /// Values that [`Self::round`] makes of a row's chunk for `w`; 0 where this level does not multiply it as it is.
    pub fn rounded_len(&self, w: &Packed) -> usize {
        self.form(w).map_or(0, |whole| whole.rounded_len)
    }

    /// Whether rows that are rounded for one of these matrices are so for the other, too.
    pub fn rounds_alike(&self, v: &Packed, w: &Packed) -> bool {
        let run = |w| self.form(w).map(|whole| whole.run);
        run(v) == run(w)
    }

    /// Makes at most [`CHUNK`] values of a row the whole numbers that this level multiplies with those of `w`, as
    /// [`Self::rounded_len`] values of no meaning of their own. Those of a gradient are multiplied by `scales` first, each by its own,
    /// and rounded.
    pub fn round(&self, to: &mut [E], chunk: &[E], w: &Packed, scales: Option<&[bf16]>) {
        let whole = self.form(w);
        let whole = whole.unwrap_or_else(|| panic!("rows of whole numbers at {}", self.isa.name()));
        assert!(to.len() == whole.rounded_len && chunk.len() <= CHUNK, "{} values as {}", chunk.len(), to.len());
        // SAFETY: as in `pack`.
        let mut round = |chunk: &[E]| unsafe { (whole.round)(to, chunk, scales.is_some()) };
        let Some(scales) = scales else { return round(chunk) };
        assert!(scales.len() >= chunk.len(), "{} scales of {} values", scales.len(), chunk.len());
        let mut scaled = [E::default(); CHUNK];
        for ((to, x), scale) in scaled.iter_mut().zip(chunk).zip(scales) {
            *to = E::narrow(x.widen() * E::Real::from_f32(scale.widen()));
        }
        round(&scaled[..chunk.len()]);
    }

    /// Do `rows` rows of k values lie in `a`, as they are or as whole numbers for a matrix of such?
    fn check_input(&self, a: &[E], lda: usize, rows: usize, k: usize, whole: Option<&Packed>) {
        let (rows, width) = whole.map_or((rows, k), |w| (k.div_ceil(CHUNK), rows * self.rounded_len(w)));
        assert!(
            rows == 0 || strided(a.len(), rows, lda, width),
            "input of {}: {rows} rows of {width}, stride {lda}",
            a.len()
        );
    }

    /// Rows that [`Self::gemm`] computes together: calls of multiples of it waste nothing.
    pub fn gemm_rows(&self) -> usize {
        self.linear.rows
    }

    /// `c[i, j] = bias[j] +` the sum over `terms` of `sum_k a[i, k] b[k, j]`, for i < rows, j < n; one rounding.
    ///
    /// `out` has row stride `ldc` and begins at the first written column. Nothing past a row's `k` values is read.
    /// A row's bits do not depend on `rows`, on its index or on `n`.
    pub fn gemm(&self, out: Out<E>, ldc: usize, rows: usize, n: usize, terms: &[Term<E>], bias: Option<&[E::Real]>) {
        if rows == 0 || n == 0 {
            return;
        }
        check_output(&out, ldc, rows, n, bias);
        for Term { a, lda, b, k } in terms.iter().copied() {
            match b {
                Columns::Panels(b) => {
                    self.check_input(a, lda, rows, k, None);
                    assert!(b.len() >= n.div_ceil(PANEL) * panel_len(k), "{} packed values for {n} of {k}", b.len());
                }
                Columns::Whole(w) => {
                    self.check_input(a, lda, rows, k, Some(&w));
                    assert!(self.form(&w).is_some(), "such whole numbers at {}", self.isa.name());
                    assert!(w.shape()[0] >= n && w.shape()[1] == k, "whole numbers of {:?} for {n} of {k}", w.shape());
                }
            }
        }
        // SAFETY: as in `pack`.
        unsafe { (self.linear.gemm)(out, ldc, rows, n, terms, bias) }
    }

    /// `c[i, j] +=` the sum over t < rows of `a[t, i] b[t, j]`, for i < m, j < n: a weight's gradient. For small m (LoRA's rank).
    ///
    /// The sums start from `c` and run in order of t, by pairs where vdpbf16ps does it and by 32 where AMX does: two calls,
    /// the first over a multiple of 32 rows, give the bits of one.
    pub fn gemm_tn(
        &self,
        c: &mut [E::Real],
        m: usize,
        n: usize,
        a: &[E],
        lda: usize,
        b: &[E],
        ldb: usize,
        rows: usize,
    ) {
        if rows == 0 || m == 0 || n == 0 {
            return;
        }
        assert_eq!(c.len(), m * n, "a gradient of {m} x {n}");
        assert!(strided(a.len(), rows, lda, m), "a of {}: {rows} rows of {m}, stride {lda}", a.len());
        assert!(strided(b.len(), rows, ldb, n), "b of {}: {rows} rows of {n}, stride {ldb}", b.len());
        // SAFETY: as in `pack`.
        unsafe { (self.linear.gemm_tn)(c, m, n, a, lda, b, ldb, rows) }
    }

    /// The most rows that [`Self::gemv`] takes; 0 where this level has none.
    pub fn gemv_rows(&self) -> usize {
        if self.linear.gemv.is_some() { GEMV_ROWS } else { 0 }
    }

    /// What [`Self::pack`] or [`Self::whole`] and [`Self::gemm`] make together, bit for bit, for at most [`Self::gemv_rows`] rows,
    /// with matrices read where they lie.
    pub fn gemv(&self, out: Out<E>, ldc: usize, rows: usize, n: usize, terms: &[InPlace<E>], bias: Option<&[E::Real]>) {
        if rows == 0 || n == 0 {
            return;
        }
        check_output(&out, ldc, rows, n, bias);
        for InPlace { a, lda, w, sum, n0, scale } in terms {
            let (outputs, k) = sum.shape(w);
            self.check_input(a, *lda, rows, k, self.whole(w, *sum, 0..0, *scale).as_ref());
            let inside = n0.is_multiple_of(PANEL) && *n0 <= outputs && n <= outputs - n0;
            assert!(inside, "outputs {n0} + {n} of {outputs}");
        }
        let gemv = self.linear.gemv.filter(|_| rows <= GEMV_ROWS);
        let gemv = gemv.unwrap_or_else(|| panic!("{rows} rows, of at most {}", self.gemv_rows()));
        // SAFETY: as in `pack`.
        unsafe { gemv(out, ldc, rows, n, terms, bias) }
    }
}

fn check_output<E: Elem>(out: &Out<E>, ldc: usize, rows: usize, n: usize, bias: Option<&[E::Real]>) {
    assert!(strided(out.len(), rows, ldc, n), "output of {}: {rows} rows of {n}, stride {ldc}", out.len());
    assert!(bias.is_none_or(|bias| bias.len() == n), "bias of other than {n} values");
}

/// Do `rows` (at least one) rows of `width` lie in `len` values without overlap?
fn strided(len: usize, rows: usize, stride: usize, width: usize) -> bool {
    let end = (rows - 1).checked_mul(stride).and_then(|last| last.checked_add(width));
    (stride >= width || rows == 1) && end.is_some_and(|end| end <= len)
}
