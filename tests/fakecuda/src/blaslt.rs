//! cuBLASLt on this driver, so that what calls it is tested too: the functions that one product needs, by the names and in
//! the C form of `cublasLt.h`. A program finds them in the same library under the name `libcublasLt.so.13`.
//!
//! A product is work of its stream as a launch is, counted by `FAKECUDA_FAIL`, and kept by a graph. It fills its
//! workspace with NaN, refuses an algorithm of another shape, and addresses that are less aligned than was promised.

use crate::codes::{Answer, Code};
use crate::driver::Task;
use crate::exports::{Handle, put, with_context};
use std::ffi::{c_int, c_void};

/// `cublasStatus_t`.
const SUCCESS: u32 = 0;
const INVALID_VALUE: u32 = 7;
const EXECUTION_FAILED: u32 = 13;
const NOT_SUPPORTED: u32 = 15;
/// `cudaDataType_t`.
const BF16: u32 = 14;
const F32: u32 = 0;
/// `cublasComputeType_t`: sums in f32.
const COMPUTE_32F: u32 = 68;
/// `cublasLtMatmulDescAttributes_t`.
const TRANSPOSE_A: u32 = 3;
/// `cublasLtMatmulPreferenceAttributes_t`: bytes of workspace, and the alignments of A, B, C and D.
const MAX_WORKSPACE: u32 = 1;
const ALIGNMENTS: std::ops::RangeInclusive<u32> = 5..=8;

const HANDLE: usize = 0x300;
const VERSION: usize = 130_002;
/// Bytes that every algorithm works in.
const WORKSPACE: usize = 1000;

/// A matrix, column by column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    kind: u32,
    rows: u64,
    cols: u64,
    /// Values from column to column.
    step: i64,
}

/// What a product is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Description {
    transpose_a: bool,
}

/// What an algorithm may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Preference {
    workspace: u64,
    alignment: u32,
}

/// `cublasLtMatmulAlgo_t`: the shape that it is for, the alignment, and nothing else.
type Algorithm = [u64; 8];

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Debug)]
pub struct Found {
    algorithm: Algorithm,
    workspace: usize,
    state: u32,
    waves: f32,
    reserved: [c_int; 4],
}

/// One product that fits together: d `[n, m]` = op(a) b + beta d, column by column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Product {
    n: u64,
    m: u64,
    k: u64,
    transpose_a: bool,
    real: bool,
}

impl Product {
    /// Of descriptions without gaps between columns, b not transposed.
    fn of(what: Description, [a, b, c, d]: [Layout; 4]) -> Option<Self> {
        let product = Self { n: c.rows, m: c.cols, k: b.rows, transpose_a: what.transpose_a, real: c.kind == F32 };
        let a_shape = if what.transpose_a { [product.k, product.n] } else { [product.n, product.k] };
        let fits = a_shape == [a.rows, a.cols] && b.cols == product.m && c == d;
        let kinds = a.kind == BF16 && b.kind == BF16 && [BF16, F32].contains(&c.kind);
        (fits && kinds && [a, b, c].iter().all(|x| x.step == x.rows as i64)).then_some(product)
    }

    /// Whether every column begins at a multiple of `alignment` bytes.
    fn is_aligned(&self, alignment: u32) -> bool {
        let wide = if self.real { 4 } else { 2 };
        let columns = [2 * if self.transpose_a { self.k } else { self.n }, 2 * self.k, wide * self.n];
        columns.iter().all(|bytes| bytes.is_multiple_of(alignment.into()))
    }

    fn algorithm(&self, alignment: u32) -> Algorithm {
        let flags = u64::from(self.transpose_a) + 2 * u64::from(self.real);
        [self.n, self.m, self.k, flags, alignment.into(), 0, 0, 0]
    }

    /// d of the bytes of a, b and d.
    fn compute(&self, a: &[u8], b: &[u8], d: &[u8], beta: f32) -> Vec<u8> {
        let [n, m, k] = [self.n, self.m, self.k].map(|len| len as usize);
        let narrow =
            |bytes: &[u8], i: usize| f32::from_bits(u32::from(bytes[2 * i]) << 16 | u32::from(bytes[2 * i + 1]) << 24);
        let real = |bytes: &[u8], i: usize| f32::from_le_bytes(*bytes[4 * i..].first_chunk().expect("four bytes"));
        let a_at = |j: usize, l: usize| narrow(a, if self.transpose_a { j * k + l } else { l * n + j });
        let mut out = Vec::with_capacity(d.len());
        for i in 0..m * n {
            let product: f32 = (0..k).map(|l| a_at(i % n, l) * narrow(b, i / n * k + l)).sum();
            let before = if beta == 0.0 { 0.0 } else { beta * if self.real { real(d, i) } else { narrow(d, i) } };
            let sum = product + before;
            if self.real { out.extend(sum.to_le_bytes()) } else { out.extend(to_bf16(sum).to_le_bytes()) }
        }
        out
    }
}

/// To the nearest, ties to even; NaN stays NaN.
fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() { 0x7fc0 } else { ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16 }
}

/// A product with its addresses.
#[derive(Clone, Debug)]
pub struct Multiply {
    product: Product,
    beta: f32,
    a: u64,
    b: u64,
    d: u64,
    workspace: u64,
}

impl Multiply {
    /// Does it.
    pub fn effect(&self, memory: &mut ptxsim::Memory) -> Answer {
        let wild = |_| Code::ILLEGAL_ADDRESS;
        let Product { n, m, k, real, .. } = self.product;
        let len = |values: u64, bytes: u64| (values * bytes) as usize;
        let read = |at, len| memory.read(at, len).map_err(wild);
        let (a, b) = (read(self.a, len(n * k, 2))?, read(self.b, len(k * m, 2))?);
        let d = self.product.compute(a, b, read(self.d, len(n * m, if real { 4 } else { 2 }))?, self.beta);
        memory.write(self.workspace, &[0xff; WORKSPACE]).map_err(wild)?;
        memory.write(self.d, &d).map_err(wild)
    }
}

/// What C hands over as a pointer to one of ours.
///
/// # Safety
/// `at` is null or was made by the function that makes a `T`.
unsafe fn get<T: Copy>(at: *const T) -> Option<T> {
    // SAFETY: as the caller promises.
    unsafe { at.as_ref() }.copied()
}

/// # Safety
/// `to` is null or points to room for an address.
unsafe fn give<T>(to: *mut *mut T, value: T) -> u32 {
    // SAFETY: as the caller promises.
    if unsafe { put(to, Box::into_raw(Box::new(value))) }.is_ok() { SUCCESS } else { INVALID_VALUE }
}

/// # Safety
/// `at` is null or was made by [`give`] and is used no more.
unsafe fn take<T>(at: *mut T) -> u32 {
    if at.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: as the caller promises.
    drop(unsafe { Box::from_raw(at) });
    SUCCESS
}

/// The number that an attribute is set to, of its size.
///
/// # Safety
/// `buffer` is null or has `size` bytes.
unsafe fn number<const SIZE: usize>(buffer: *const c_void, size: usize) -> Option<u64> {
    if buffer.is_null() || size != SIZE {
        return None;
    }
    let mut wide = [0; 8];
    // SAFETY: as the caller promises.
    wide[..SIZE].copy_from_slice(&unsafe { buffer.cast::<[u8; SIZE]>().read_unaligned() });
    Some(u64::from_le_bytes(wide))
}

/// Defines exported functions; the body may dereference what C hands over.
macro_rules! export {
    ($($name:ident($($argument:ident: $type:ty),*) -> $answer:ty $body:block)*) => {$(
        /// As in `cublasLt.h`.
        ///
        /// # Safety
        /// Pointers are null or what the library's manual wants them to be.
        #[unsafe(no_mangle)]
        #[allow(unused_unsafe)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> $answer {
            // SAFETY: pointers are as the caller of this function promises.
            unsafe { $body }
        }
    )*};
}

export! {
    cublasLtGetVersion() -> usize { VERSION }
    cublasLtCreate(handle: *mut Handle) -> u32 {
        if with_context(|_| put(handle, HANDLE as Handle)) == 0 { SUCCESS } else { EXECUTION_FAILED }
    }
    cublasLtDestroy(handle: Handle) -> u32 { if handle as usize == HANDLE { SUCCESS } else { INVALID_VALUE } }
    cublasLtMatmulDescCreate(to: *mut *mut Description, compute: u32, scale: u32) -> u32 {
        if compute != COMPUTE_32F || scale != F32 {
            return NOT_SUPPORTED;
        }
        give(to, Description::default())
    }
    cublasLtMatmulDescDestroy(at: *mut Description) -> u32 { take(at) }
    cublasLtMatmulDescSetAttribute(at: *mut Description, attribute: u32, buffer: *const c_void, size: usize) -> u32 {
        match (at.as_mut(), attribute, number::<4>(buffer, size)) {
            (Some(at), TRANSPOSE_A, Some(operation @ (0 | 1))) => at.transpose_a = operation == 1,
            _ => return INVALID_VALUE,
        }
        SUCCESS
    }
    cublasLtMatrixLayoutCreate(to: *mut *mut Layout, kind: u32, rows: u64, cols: u64, step: i64) -> u32 {
        if step < rows as i64 {
            return INVALID_VALUE;
        }
        give(to, Layout { kind, rows, cols, step })
    }
    cublasLtMatrixLayoutDestroy(at: *mut Layout) -> u32 { take(at) }
    cublasLtMatmulPreferenceCreate(to: *mut *mut Preference) -> u32 {
        give(to, Preference { workspace: 0, alignment: 256 })
    }
    cublasLtMatmulPreferenceDestroy(at: *mut Preference) -> u32 { take(at) }
    cublasLtMatmulPreferenceSetAttribute(at: *mut Preference, attribute: u32, buffer: *const c_void, size: usize) -> u32 {
        let Some(at) = at.as_mut() else { return INVALID_VALUE };
        match (number::<8>(buffer, size), number::<4>(buffer, size)) {
            (Some(bytes), _) if attribute == MAX_WORKSPACE => at.workspace = bytes,
            (_, Some(bytes)) if ALIGNMENTS.contains(&attribute) => at.alignment = at.alignment.min(bytes as u32),
            _ => return INVALID_VALUE,
        }
        SUCCESS
    }
    cublasLtMatmulAlgoGetHeuristic(
        handle: Handle, what: *const Description, a: *const Layout, b: *const Layout, c: *const Layout, d: *const Layout,
        preference: *const Preference, wanted: c_int, found: *mut Found, count: *mut c_int
    ) -> u32 {
        let described = (|| {
            let layouts = [get(a)?, get(b)?, get(c)?, get(d)?];
            Some((Product::of(get(what)?, layouts)?, get(preference)?))
        })();
        let Some((product, preference)) = described.filter(|_| handle as usize == HANDLE && wanted >= 1) else {
            return INVALID_VALUE;
        };
        if !product.is_aligned(preference.alignment) || preference.workspace < WORKSPACE as u64 {
            return NOT_SUPPORTED;
        }
        let algorithm = product.algorithm(preference.alignment);
        let best = Found { algorithm, workspace: WORKSPACE, state: SUCCESS, waves: 1.0, reserved: [0; 4] };
        if put(found, best).and_then(|()| put(count, 1)).is_ok() { SUCCESS } else { INVALID_VALUE }
    }
    cublasLtMatmul(
        handle: Handle, what: *const Description, alpha: *const f32, a: u64, a_layout: *const Layout, b: u64,
        b_layout: *const Layout, beta: *const f32, c: u64, c_layout: *const Layout, d: u64, d_layout: *const Layout,
        algorithm: *const Algorithm, workspace: u64, bytes: usize, stream: Handle
    ) -> u32 {
        let described = (|| {
            let layouts = [get(a_layout)?, get(b_layout)?, get(c_layout)?, get(d_layout)?];
            Some((Product::of(get(what)?, layouts)?, get(algorithm)?, get(beta)?, get(alpha)?))
        })();
        let Some((product, algorithm, beta, 1.0)) = described.filter(|_| handle as usize == HANDLE && c == d) else {
            return INVALID_VALUE;
        };
        let alignment = algorithm[4] as u32;
        let aligned = alignment > 0 && [a, b, d].iter().all(|at| at.is_multiple_of(alignment.into()));
        if algorithm != product.algorithm(alignment) || !aligned || bytes < WORKSPACE {
            return INVALID_VALUE;
        }
        let work = Task::Multiply(Multiply { product, beta, a, b, d, workspace });
        if with_context(|driver| driver.submit(stream as u64, work)) == 0 { SUCCESS } else { EXECUTION_FAILED }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Row by row: c = x w^T of x [2, 3], w [2, 3], and of w as [3, 2].
    #[test]
    fn a_product_is_the_rows_product_and_adds_once() {
        let narrow = |values: &[f32]| values.iter().flat_map(|&x| to_bf16(x).to_le_bytes()).collect::<Vec<_>>();
        let x = narrow(&[1.0, 2.0, 3.0, -1.0, 0.5, 0.0]);
        let of = |transpose_a, real| Product { n: 2, m: 2, k: 3, transpose_a, real };
        let (w, turned) = (narrow(&[1.0, 0.0, 2.0, 0.0, 4.0, -1.0]), narrow(&[1.0, 0.0, 0.0, 4.0, 2.0, -1.0]));
        let before: Vec<u8> = [10.0f32; 4].iter().flat_map(|x| x.to_le_bytes()).collect();
        let reals = |bytes: Vec<u8>| {
            bytes.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect::<Vec<_>>()
        };
        assert_eq!(reals(of(true, true).compute(&w, &x, &before, 0.0)), [7.0, 5.0, -1.0, 2.0]);
        assert_eq!(reals(of(false, true).compute(&turned, &x, &before, 1.0)), [17.0, 15.0, 9.0, 12.0]);
        assert_eq!(of(true, false).compute(&w, &x, &narrow(&[1.0; 4]), 1.0), narrow(&[8.0, 6.0, 0.0, 3.0]));
    }

    #[test]
    fn a_bf16_is_the_nearest_and_ties_go_to_the_even_one() {
        assert_eq!([1.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -0.0].map(to_bf16), [0x3f80, 0x3f80, 0x3f82, 0x8000]);
        assert!(f32::from_bits(u32::from(to_bf16(f32::NAN)) << 16).is_nan());
    }
}
