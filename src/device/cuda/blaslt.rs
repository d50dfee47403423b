//! cuBLASLt, NVIDIA's own products, where the machine has it. `DLLM_CUBLASLT=0` leaves it out.
//!
//! It multiplies column by column, so that what lies row by row counts as transposed: `c [m, n] = x w^T` is its
//! `c^T [n, m] = w x^T`. An algorithm is chosen once for a shape; the same shape has the same bits again, another number of
//! rows may have others.

use super::driver::Context;
use super::{locked, toolkit};
use crate::{Code, Error, Result};
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use dialoguellm_kernels::cuda::Ptr;
use std::collections::HashMap;
use std::ffi::c_void;
use std::panic::catch_unwind;
use std::sync::Mutex;

/// One product: `c [m, n] = x [m, k] w`, every operand at a multiple of [`ALIGNED`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub m: u32,
    pub n: u32,
    pub k: u32,
    /// w is `[k, n]`, not `[n, k]`.
    pub over_rows: bool,
    /// c is f32, not bf16.
    pub real: bool,
    /// The product is added to c: in f32, with one rounding.
    pub add: bool,
}

/// How a shape is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Algorithm {
    algorithm: sys::cublasLtMatmulAlgo_t,
    /// Bytes of memory that it works in.
    pub workspace: usize,
}

/// Where a product's operands are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Operands {
    pub c: Ptr,
    pub x: Ptr,
    pub w: Ptr,
    /// As many bytes as the algorithm wants.
    pub workspace: Ptr,
}

/// The library, opened for one GPU.
pub(super) struct Library {
    handle: sys::cublasLtHandle_t,
    version: usize,
    /// What was chosen for a shape; none where the library does not take it.
    chosen: Mutex<HashMap<Shape, Option<Algorithm>>>,
}

// SAFETY: the handle may be used from any thread, also from several at a time (cuBLAS, "Thread Safety").
unsafe impl Send for Library {}
// SAFETY: as above, and the rest is under a lock.
unsafe impl Sync for Library {}

/// What every operand's address is a multiple of, and every row's bytes.
pub(super) const ALIGNED: u32 = 16;
/// The most that an algorithm may work in: what NVIDIA advises for Hopper.
const WORKSPACE: usize = 32 << 20;
/// Shapes that are remembered: steps of training differ in their rows.
const SHAPES: usize = 4096;
/// `cublasOperation_t`.
const NORMAL: i32 = 0;
const TRANSPOSED: i32 = 1;

type Answer<T> = std::result::Result<T, CublasError>;

impl Library {
    /// Opens it in the current context. The error says why it is not used.
    pub fn open() -> std::result::Result<Self, String> {
        if std::env::var_os("DLLM_CUBLASLT").is_some_and(|value| value == "0") {
            return Err("DLLM_CUBLASLT is 0".to_owned());
        }
        toolkit::open(&["libcublasLt.so"]);
        // SAFETY: opening a library runs its initialisers, and NVIDIA's are made for that.
        if !unsafe { sys::is_culib_present() } {
            return Err("there is no libcublasLt.so on this machine".to_owned());
        }
        // a library without one of the functions makes the binding panic
        let opened = catch_unwind(|| {
            // SAFETY: takes nothing.
            let version = unsafe { sys::cublasLtGetVersion() };
            let handle = result::create_handle()?;
            let library = Self { handle, version, chosen: Mutex::default() };
            let shape = Shape { m: 128, n: 128, k: 128, over_rows: false, real: false, add: false };
            library.choose(&shape).map(|_| library)
        });
        match opened {
            Ok(Ok(library)) => Ok(library),
            Ok(Err(error)) => Err(format!("cuBLASLt cannot be opened: {error}")),
            Err(_) => Err("cuBLASLt lacks functions that are needed".to_owned()),
        }
    }

    /// 13.0.2 of 130002.
    pub fn version(&self) -> String {
        format!("{}.{}.{}", self.version / 10_000, self.version / 100 % 100, self.version % 100)
    }

    /// How this shape is multiplied; `None` where the library has no way.
    pub fn algorithm(&self, shape: &Shape) -> Option<Algorithm> {
        let mut chosen = locked(&self.chosen);
        if let Some(known) = chosen.get(shape) {
            return *known;
        }
        if chosen.len() == SHAPES {
            chosen.clear();
        }
        *chosen.entry(*shape).or_insert(self.choose(shape).ok())
    }

    fn choose(&self, shape: &Shape) -> Answer<Algorithm> {
        let (layouts, preference) = (Layouts::of(shape)?, Preference::new()?);
        // SAFETY: everything that is handed over lives until the call has ended.
        let found = unsafe {
            result::get_matmul_algo_heuristic(
                self.handle,
                layouts.product,
                layouts.w,
                layouts.x,
                layouts.c,
                layouts.c,
                preference.0,
            )
        }?;
        Ok(Algorithm { algorithm: found.algo, workspace: found.workspaceSize })
    }

    /// Multiplies, later.
    ///
    /// # Safety
    /// The operands are of the shape, the algorithm is the shape's, and what is read is written by then.
    pub unsafe fn multiply(&self, to: &Context, shape: &Shape, with: &Algorithm, at: &Operands) -> Result<()> {
        let address = |at: Ptr| at.0 as *const c_void;
        let (alpha, beta) = (1.0f32, f32::from(u8::from(shape.add)));
        let multiplied = Layouts::of(shape).and_then(|layouts| {
            // SAFETY: the library reads the descriptions during the call; the operands are the caller's promise.
            unsafe {
                result::matmul(
                    self.handle,
                    layouts.product,
                    (&raw const alpha).cast(),
                    (&raw const beta).cast(),
                    address(at.w),
                    layouts.w,
                    address(at.x),
                    layouts.x,
                    address(at.c),
                    layouts.c,
                    address(at.c).cast_mut(),
                    layouts.c,
                    &with.algorithm,
                    address(at.workspace).cast_mut(),
                    with.workspace,
                    to.stream().cast(),
                )
            }
        });
        multiplied.map_err(|error| {
            let Shape { m, n, k, .. } = shape;
            let text = format!("cuBLASLt {}: multiplying [{m}, {k}] to [{m}, {n}]: {error}", self.version());
            Error::new(class(&error), format!("{text} ({})", error.0 as u32))
        })
    }
}

fn class(error: &CublasError) -> Code {
    match error.0 {
        sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => Code::OutOfMemory,
        _ => Code::Internal,
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: nobody uses the handle any more; the library waits for what was asked for.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// A product and its operands as the library wants them described. What was not made yet is null.
struct Layouts {
    product: sys::cublasLtMatmulDesc_t,
    w: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    c: sys::cublasLtMatrixLayout_t,
}

impl Layouts {
    fn of(shape: &Shape) -> Answer<Self> {
        let (m, n, k) = (u64::from(shape.m), u64::from(shape.n), u64::from(shape.k));
        let (narrow, wide) = (sys::cudaDataType::CUDA_R_16BF, sys::cudaDataType::CUDA_R_32F);
        let null = std::ptr::null_mut;
        let product = result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, wide)?;
        let mut layouts = Self { product, w: null(), x: null(), c: null() };
        let turned = if shape.over_rows { NORMAL } else { TRANSPOSED };
        let turn = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        // SAFETY: the description was made; the library copies the number.
        unsafe { result::set_matmul_desc_attribute(product, turn, (&raw const turned).cast(), size_of::<i32>()) }?;
        // rows of the matrix are its columns: [columns, rows, from column to column]
        let matrix = |kind, [rows, cols]: [u64; 2]| result::create_matrix_layout(kind, rows, cols, rows as i64);
        layouts.w = matrix(narrow, if shape.over_rows { [n, k] } else { [k, n] })?;
        layouts.x = matrix(narrow, [k, m])?;
        layouts.c = matrix(if shape.real { wide } else { narrow }, [n, m])?;
        Ok(layouts)
    }
}

impl Drop for Layouts {
    fn drop(&mut self) {
        for layout in [self.w, self.x, self.c].into_iter().filter(|layout| !layout.is_null()) {
            // SAFETY: it was made by `of` and nobody else has it.
            let _ = unsafe { result::destroy_matrix_layout(layout) };
        }
        // SAFETY: as above.
        let _ = unsafe { result::destroy_matmul_desc(self.product) };
    }
}

/// What an algorithm may ask for.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Answer<Self> {
        use sys::cublasLtMatmulPreferenceAttributes_t as About;
        let made = Self(result::create_matmul_pref()?);
        // SAFETY: it was made; the library copies the number.
        let set = |about, number: *const c_void, len| unsafe {
            result::set_matmul_pref_attribute(made.0, about, number, len)
        };
        let (workspace, aligned) = (WORKSPACE, ALIGNED);
        set(About::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const workspace).cast(), size_of::<usize>())?;
        // it would take 256 bytes for granted
        for about in [
            About::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            About::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            About::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            About::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            set(about, (&raw const aligned).cast(), size_of::<u32>())?;
        }
        Ok(made)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: it was made by `new` and nobody else has it.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
