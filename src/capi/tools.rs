//! Model folders made of others.

use super::boundary::{guard, one_of, path};
use super::cancel::{cancel_of, dllm_cancel};
use super::error::{dllm_error, dllm_status};
use crate::Error;
use crate::device::Bits;
use crate::emotion::card;
use crate::files::gguf::import;
use crate::files::{Dtype, hub};
use crate::model::merge::merge;
use crate::model::quantize::quantize;
use std::ffi::{c_char, c_void};

/// Quantised tensors become bf16.
pub const DLLM_DTYPE_BF16: u32 = 0;
/// Quantised tensors become f16.
pub const DLLM_DTYPE_F16: u32 = 1;
/// Quantised tensors become f32.
pub const DLLM_DTYPE_F32: u32 = 2;

/// Hears how many of how many tensors are done, on the thread that called the library; anything but 0 stops the call.
pub type dllm_progress_fn = Option<unsafe extern "C" fn(user: *mut c_void, done: u64, all: u64) -> i32>;

/// Whether to go on, after the caller heard of it.
fn told(progress: dllm_progress_fn, user: *mut c_void) -> impl FnMut(usize, usize) -> bool {
    // SAFETY: the caller's function, on the caller's thread, with the caller's pointer.
    move |done, all| progress.is_none_or(|hear| unsafe { hear(user, done as u64, all as u64) } == 0)
}

/// ---- Model folders made of others ----
///
/// Makes the model folder `out` of a GGUF file: F32, F16 and BF16 tensors keep every bit, Q8_0, Q4_0 and Q4_1 become
/// `dtype` (DLLM_DTYPE_*). A model that is at `out` is replaced in one step. `progress` and `cancel` may be NULL.
///
/// Errors: NOT_FOUND, IO, BAD_FILE; UNSUPPORTED for what is no LLaMA of these types; CANCELLED. `out` is then as before.
/// Cost:   memory for one tensor at a time; `cancel` is read row by row.
/// Since:  0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_import_gguf(
    file: *const c_char,
    out: *const c_char,
    dtype: u32,
    progress: dllm_progress_fn,
    user: *mut c_void,
    cancel: *const dllm_cancel,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (file, out, cancel) = unsafe { (path(file, "file")?, path(out, "out")?, cancel_of(cancel)?) };
        let dtype = one_of(dtype, &[Dtype::Bf16, Dtype::F16, Dtype::F32], "dtype")?;
        import(file, out, dtype, &mut told(progress, user), &cancel).map(drop)
    })
}

/// Makes the model folder `out` of a model with an adapter merged into its weights; labels, template and calibration come
/// along. A model that is at `out` is replaced in one step. `progress` and `cancel` may be NULL.
///
/// Errors: as dllm_model_open() and dllm_adapter_open(); CANCELLED. `out` is then as before.
/// Cost:   memory for one tensor at a time; `cancel` is read row by row.
/// Since:  0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_merge(
    model: *const c_char,
    adapter: *const c_char,
    out: *const c_char,
    progress: dllm_progress_fn,
    user: *mut c_void,
    cancel: *const dllm_cancel,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (model, adapter, out, cancel) =
            unsafe { (path(model, "model")?, path(adapter, "adapter")?, path(out, "out")?, cancel_of(cancel)?) };
        let base = hub::resolve(model)?;
        let card = card::of_adapter(adapter, &base)?;
        merge(&base, adapter, out, |dir| card::write_merged(card, dir), &mut told(progress, user), &cancel).map(drop)
    })
}

/// Makes the model folder `out` of a model with its linear maps in whole numbers of `bits` (8 or 4): half or a quarter of
/// bf16 on the disk, which transformers and vLLM read too. Adapters of the model fit it; labels, template and calibration of a
/// merged one come along. A model that is at `out` is replaced in one step. `progress` and `cancel` may be NULL.
///
/// Errors: as dllm_model_open(); INVALID_ARGUMENT where it is quantised already; UNSUPPORTED where a width is no multiple of 32
///         and `bits` is 4; NUMERIC where a weight is not finite; CANCELLED. `out` is then as before.
/// Cost:   memory for one row and the scales of one matrix; `cancel` is read row by row.
/// Since:  0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_quantize(
    model: *const c_char,
    out: *const c_char,
    bits: u32,
    progress: dllm_progress_fn,
    user: *mut c_void,
    cancel: *const dllm_cancel,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (model, out, cancel) = unsafe { (path(model, "model")?, path(out, "out")?, cancel_of(cancel)?) };
        let bits = match bits {
            8 => Bits::Eight,
            4 => Bits::Four,
            _ => return Err(Error::invalid(format!("bits is {bits}, must be 8 or 4"))),
        };
        quantize(&hub::resolve(model)?, out, bits, &[card::FILE], &mut told(progress, user), &cancel).map(drop)
    })
}
