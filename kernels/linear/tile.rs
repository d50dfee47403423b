//! The tiled product, written once for every instruction level: a level brings vectors ([`Simd`]) or a dot product of
//! its own ([`Tile`]), this file brings the loops. It knows no instruction and no thread.
//!
//! One tile is ROWS rows by some vectors of columns, held in registers over a chunk of k. Where rows of `a` cannot be read
//! as they lie they are copied ("staged") to the stack a chunk at a time: widened once for a group of panels, padded to
//! pairs, and with a fixed stride that never maps all rows to one cache set as a stride of 4096 bytes would.

use super::{Columns, Out, PANEL, Term, panel_len};
use crate::quantize::packed::Packed;
use crate::{Elem, Real};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Vectors of `E::Real`.
///
/// Every method needs the instructions of its level; `load`, `load_real` and `store` move LANES values at any
/// alignment, `splat_pair` reads two.
pub(super) trait Simd<E: Elem> {
    /// LANES values of `E::Real`.
    type V: Copy;
    /// Values of one vector.
    const LANES: usize;
    /// Rows of the register tile, at most [`MAX_ROWS`].
    const ROWS: usize;
    unsafe fn zero() -> Self::V;
    unsafe fn load(p: *const E) -> Self::V;
    unsafe fn load_real(p: *const E::Real) -> Self::V;
    unsafe fn store(p: *mut E::Real, v: Self::V);
    unsafe fn splat(x: E::Real) -> Self::V;
    /// p0, p1, p0, p1, ..
    unsafe fn splat_pair(p: *const E::Real) -> Self::V;
    /// c + a b
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Stores v0 + v1, v2 + v3, .. of one vector after the other: LANES values.
    unsafe fn store_pair_sums(p: *mut E::Real, v: [Self::V; VECS]);
    /// As [`Tile::whole`].
    unsafe fn whole(_c: Sums<Self::V>, _term: &Term<E>, _w: &Packed, _rows: Range<usize>, _panels: Range<usize>) {
        unreachable!("gemm takes whole numbers at levels that multiply them")
    }
}

/// One level's way to multiply staged pairs of `a` with packed pairs of `b`.
pub(super) trait Tile {
    /// What is packed.
    type E: Elem;
    /// What rows of `a` are staged as.
    type A: Copy + Default;
    /// Whether that is E: rows may then be read where they lie.
    const AS_STORED: bool;
    /// COLS sums, or 2 COLS partial sums.
    type V: Copy;
    /// Columns of one vector.
    const COLS: usize;
    /// Rows of the register tile, at most [`MAX_ROWS`].
    const ROWS: usize;
    unsafe fn zero() -> Self::V;
    fn stage(x: Self::E) -> Self::A;
    /// One pair of staged values in every column.
    unsafe fn pair(p: *const Self::A) -> Self::V;
    /// COLS packed pairs.
    unsafe fn columns(p: *const Self::E) -> Self::V;
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Stores a section's finished sums.
    unsafe fn finish(p: *mut <Self::E as Elem>::Real, v: [Self::V; VECS]);
    /// Adds rows `rows` of the term times panels of whole numbers, where the level multiplies those as such.
    unsafe fn whole(_c: Sums<Self::V>, _term: &Term<Self::E>, _w: &Packed, _rows: Range<usize>, _panels: Range<usize>) {
        unreachable!("gemm takes whole numbers at levels that multiply them")
    }
}

/// The sums of some rows, panel after panel; in a panel sections of VECS vectors, and in a section row after row.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))] // only its levels multiply whole numbers as such
pub(super) struct Sums<V> {
    first: *mut V,
    rows: usize,
    /// Columns of one vector.
    cols: usize,
}

impl<V> Sums<V> {
    /// Of so many rows and columns of a vector, from `first` on.
    pub(super) fn new(first: *mut V, rows: usize, cols: usize) -> Self {
        Self { first, rows, cols }
    }

    /// Where the vectors of row `r` lie that hold eight columns of panel `p`, group `g` of them.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn eight(&self, p: usize, r: usize, g: usize) -> *mut V {
        let vec = 8 * g / self.cols;
        let vecs = self.rows * PANEL / self.cols;
        self.first.wrapping_add(p * vecs + (vec / VECS * self.rows + r) * VECS + vec % VECS)
    }
}

/// The tile of a level that multiplies single values: even and odd k in neighbouring lanes, added at the end, so that
/// the pair layout serves f32 and widened bf16 as it is.
pub(super) struct Pairs<E, S>(PhantomData<(E, S)>);

impl<E: Elem, S: Simd<E>> Tile for Pairs<E, S> {
    type E = E;
    type A = E::Real;
    const AS_STORED: bool = false;
    type V = S::V;
    const COLS: usize = S::LANES / 2;
    const ROWS: usize = S::ROWS;
    #[inline(always)]
    unsafe fn zero() -> S::V {
        // SAFETY: the caller's, here and below.
        unsafe { S::zero() }
    }
    #[inline(always)]
    fn stage(x: E) -> E::Real {
        x.widen()
    }
    #[inline(always)]
    unsafe fn pair(p: *const E::Real) -> S::V {
        // SAFETY: see `zero`.
        unsafe { S::splat_pair(p) }
    }
    #[inline(always)]
    unsafe fn columns(p: *const E) -> S::V {
        // SAFETY: see `zero`.
        unsafe { S::load(p) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: S::V, b: S::V, c: S::V) -> S::V {
        // SAFETY: see `zero`.
        unsafe { S::mul_add(a, b, c) }
    }
    #[inline(always)]
    unsafe fn finish(p: *mut E::Real, v: [S::V; VECS]) {
        // SAFETY: see `zero`.
        unsafe { S::store_pair_sums(p, v) }
    }
    #[inline(always)]
    unsafe fn whole(c: Sums<S::V>, term: &Term<E>, w: &Packed, rows: Range<usize>, panels: Range<usize>) {
        // SAFETY: see `zero`.
        unsafe { S::whole(c, term, w, rows, panels) }
    }
}

/// The most rows any level holds in registers.
pub(super) const MAX_ROWS: usize = 12;
/// Vectors of columns of the register tile: 24 sums, 2 of b and 1 of a use 27 of 32 registers; 12, 2, 1 use 15 of 16.
pub(super) const VECS: usize = 2;
/// Vectors of sums of the panels that share staged rows: four of NEON's, 12 rows of 16 vectors each, 32 of AVX-512's
/// with products of bf16.
const MAX_VECS: usize = 768;
/// Bytes of one row's chunk, and of the gap that spreads rows over cache sets.
const CHUNK_BYTES: usize = 1024;
const GAP_BYTES: usize = 64;
/// Values of one row's chunk where nothing is copied.
const CHUNK_IN_PLACE: usize = 1024;
/// Bytes of packed panels that stay in the second-level cache while all rows pass by.
const GROUP_BYTES: usize = 512 << 10;

/// Staged rows of `a`, and the sums of one panel between chunks of k.
#[repr(C, align(64))]
struct Scratch<V> {
    a: [MaybeUninit<u8>; MAX_ROWS * (CHUNK_BYTES + GAP_BYTES)],
    c: [MaybeUninit<V>; MAX_VECS],
}

const fn chunk<A>() -> usize {
    CHUNK_BYTES / size_of::<A>()
}
const fn stride<A>() -> usize {
    (CHUNK_BYTES + GAP_BYTES) / size_of::<A>()
}

/// The driver: groups of panels that fit the cache, and for each tiles of rows.
///
/// # Safety
/// The level of `T` must be there, and lengths as [`crate::Kernels::gemm`] checks them.
#[inline(always)]
pub(super) unsafe fn gemm<T: Tile>(
    mut out: Out<T::E>,
    ldc: usize,
    rows: usize,
    n: usize,
    terms: &[Term<T::E>],
    bias: Option<&[<T::E as Elem>::Real]>,
) {
    let mut scratch = Scratch {
        a: [MaybeUninit::uninit(); MAX_ROWS * (CHUNK_BYTES + GAP_BYTES)],
        c: [MaybeUninit::uninit(); MAX_VECS],
    };
    for panels in groups::<T>(n, terms) {
        for i in (0..rows).step_by(T::ROWS) {
            let m = T::ROWS.min(rows - i);
            // SAFETY: the caller's; the tiles lie within rows and n.
            unsafe {
                sum::<T>(&mut scratch, i, m, panels.clone(), n, terms);
                for (p, panel) in panels.clone().enumerate() {
                    let (j, cols) = (panel * PANEL, PANEL.min(n - panel * PANEL));
                    let bias = bias.map(|bias| &bias[j..j + cols]);
                    let c = scratch.c.as_ptr().cast::<T::V>().add(p * m * (PANEL / T::COLS));
                    emit::<T>(c, &mut out, i * ldc + j, ldc, m, cols, bias);
                }
            }
        }
    }
}

/// Panels that share staged rows: as many as the cache holds, and the scratch has sums for.
fn groups<T: Tile>(n: usize, terms: &[Term<T::E>]) -> impl Iterator<Item = Range<usize>> + use<T> {
    let bytes: usize = terms
        .iter()
        .map(|term| match &term.b {
            Columns::Panels(_) => panel_len(term.k) * size_of::<T::E>(),
            Columns::Whole(w) => w.panel_bytes(),
        })
        .sum();
    let most = MAX_VECS / (T::ROWS * PANEL / T::COLS);
    let (panels, group) = (n.div_ceil(PANEL), (GROUP_BYTES / bytes.max(1)).clamp(1, most));
    (0..panels).step_by(group).map(move |at| at..panels.min(at + group))
}

/// All terms of `m` rows from `i` on, times each panel, into the scratch's sums, panel after panel.
#[inline(always)]
unsafe fn sum<T: Tile>(
    scratch: &mut Scratch<T::V>,
    i: usize,
    m: usize,
    panels: Range<usize>,
    n: usize,
    terms: &[Term<T::E>],
) {
    let (c, vecs) = (scratch.c.as_mut_ptr().cast::<T::V>(), m * (PANEL / T::COLS));
    for v in 0..panels.len() * vecs {
        // SAFETY: a group's ROWS * PANEL / COLS vectors a panel fit MAX_VECS for every level.
        unsafe { c.add(v).write(T::zero()) };
    }
    for term in terms {
        if let Columns::Whole(w) = &term.b {
            let c = Sums::new(c, m, T::COLS);
            // SAFETY: the caller's; the sums are written.
            unsafe { T::whole(c, term, w, i..i + m, panels.clone()) };
            continue;
        }
        let b = &term.b.panels()[panels.start * panel_len(term.k)..panels.end * panel_len(term.k)];
        let in_place = as_stored::<T>(term);
        let chunk = if in_place { CHUNK_IN_PLACE } else { chunk::<T::A>() };
        for from in (0..term.k).step_by(chunk) {
            let len = chunk.min(term.k - from);
            // SAFETY: m rows of a chunk fit the scratch; the chunk's pairs of b begin at an even `from`.
            unsafe {
                let a = if in_place {
                    Rows { first: term.a[i * term.lda + from..].as_ptr().cast(), stride: term.lda }
                } else {
                    let first = scratch.a.as_mut_ptr().cast::<T::A>();
                    stage::<T>(first, term, i, m, from, len);
                    Rows { first: first.cast_const(), stride: stride::<T::A>() }
                };
                for panel in 0..panels.len() {
                    let b = b.as_ptr().add(panel * panel_len(term.k) + from * PANEL);
                    let cols = PANEL.min(n - (panels.start + panel) * PANEL);
                    sections::<T>(c.add(panel * vecs), a, b, m, cols, len.div_ceil(2));
                }
            }
        }
    }
}

/// Rows of a chunk, as a tile reads them.
#[derive(Clone, Copy)]
struct Rows<A> {
    first: *const A,
    stride: usize,
}

/// Whole pairs, and not so far apart that rows displace each other from the first cache.
fn as_stored<T: Tile>(term: &Term<T::E>) -> bool {
    T::AS_STORED && term.k.is_multiple_of(2) && !(term.lda * size_of::<T::E>()).is_multiple_of(1024)
}

/// Copies `len` values of each of `m` rows, and a zero behind an odd `len`.
#[inline(always)]
unsafe fn stage<T: Tile>(to: *mut T::A, term: &Term<T::E>, i: usize, m: usize, from: usize, len: usize) {
    for r in 0..m {
        let row = &term.a[(i + r) * term.lda + from..][..len];
        // SAFETY: a row's stride exceeds a chunk, so the pad fits as well.
        unsafe {
            let to = to.add(r * stride::<T::A>());
            for (j, x) in row.iter().enumerate() {
                to.add(j).write(T::stage(*x));
            }
            to.add(len).write(T::A::default());
        }
    }
}

/// The rows times each register tile's columns of the panel in turn, as far as there are any.
#[inline(always)]
unsafe fn sections<T: Tile>(c: *mut T::V, a: Rows<T::A>, b: *const T::E, m: usize, cols: usize, pairs: usize) {
    let width = VECS * T::COLS;
    for section in 0..cols.div_ceil(width) {
        // SAFETY: the sums of a section lie together, row by row; its columns are part of each packed pair row.
        unsafe {
            let c = c.add(section * VECS * m);
            let b = b.add(section * width * 2);
            if cols - section * width > T::COLS {
                tile::<T, VECS>(m, c, a, b, pairs);
            } else {
                tile::<T, 1>(m, c, a, b, pairs); // LoRA's rank is often half a panel
            }
        }
    }
}

/// [`inner`] for 1 to ROWS rows: a register tile's size is part of its type.
#[inline(always)]
unsafe fn tile<T: Tile, const V: usize>(m: usize, c: *mut T::V, a: Rows<T::A>, b: *const T::E, pairs: usize) {
    macro_rules! rows {
        ($($m:literal)*) => {
            match m {
                // SAFETY: the caller's; c has m rows of sums.
                $($m if $m <= T::ROWS => unsafe { inner::<T, $m, V>(c, a, b, pairs) },)*
                _ => unreachable!("a tile has 1 to {} rows, not {m}", T::ROWS),
            }
        };
    }
    rows!(1 2 3 4 5 6 7 8 9 10 11 12)
}

/// M rows by V vectors over `pairs` pairs of k, in order.
///
/// # Safety
/// `c` has M rows of VECS sums, `a` M rows, `b` `pairs` pair rows of a panel, and the level of `T` is there.
#[inline(always)]
unsafe fn inner<T: Tile, const M: usize, const V: usize>(c: *mut T::V, a: Rows<T::A>, b: *const T::E, pairs: usize) {
    // SAFETY: the caller's.
    unsafe {
        let mut sums: [[T::V; V]; M] = std::array::from_fn(|r| std::array::from_fn(|v| *c.add(r * VECS + v)));
        for p in 0..pairs {
            let b = b.add(p * PANEL * 2);
            let b: [T::V; V] = std::array::from_fn(|v| T::columns(b.add(v * T::COLS * 2)));
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = T::pair(a.first.add(r * a.stride + p * 2));
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = T::mul_add(a, b, *sum);
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            sums.into_iter().enumerate().for_each(|(v, sum)| *c.add(r * VECS + v) = sum);
        }
    }
}

/// Finishes the sums, adds the bias and writes the rows.
#[inline(always)]
unsafe fn emit<T: Tile>(
    c: *const T::V,
    out: &mut Out<T::E>,
    at: usize,
    ldc: usize,
    m: usize,
    cols: usize,
    bias: Option<&[<T::E as Elem>::Real]>,
) {
    let mut row = [<T::E as Elem>::Real::ZERO; PANEL];
    for r in 0..m {
        for (section, row) in row.chunks_exact_mut(VECS * T::COLS).enumerate() {
            // SAFETY: `sum` wrote these; so many columns.
            unsafe { T::finish(row.as_mut_ptr(), c.add((section * m + r) * VECS).cast::<[T::V; VECS]>().read()) };
        }
        add_bias(&mut row, bias);
        out.put(at + r * ldc, &row[..cols]);
    }
}

#[inline(always)]
pub(super) fn add_bias<R: Real>(row: &mut [R; PANEL], bias: Option<&[R]>) {
    if let Some(bias) = bias {
        row.iter_mut().zip(bias).for_each(|(row, bias)| *row += *bias);
    }
}
