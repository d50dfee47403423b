//! LoRA tensors.

use super::boundary::{guard, out, path, quietly};
use super::error::{dllm_error, dllm_status};
use super::handle::{Handle, Kind, free, give, share};
use super::model::dllm_model;
use crate::files::folder;
use crate::model::Adapter;
use std::ffi::c_char;
use std::sync::Arc;

/// The LoRA tensors of one model. It never changes, and any number of calls may use it at once.
pub struct dllm_adapter(Handle<Arc<Adapter>>);

impl Kind for dllm_adapter {
    type Value = Arc<Adapter>;
    const NAME: &'static str = "adapter";
    fn new(handle: Handle<Arc<Adapter>>) -> Self {
        Self(handle)
    }
    fn handle(&self) -> &Handle<Arc<Adapter>> {
        &self.0
    }
}

/// ---- Adapter: LoRA tensors ----
///
/// Reads an adapter folder as PEFT writes them (adapter_config.json, adapter_model.safetensors), for `model`.
///
/// Ownership: the caller's.
/// Errors:    NOT_FOUND, IO; BAD_FILE where shapes are not the model's; UNSUPPORTED, by name, for what is no plain LoRA.
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_adapter_open(
    model: *const dllm_model,
    dir: *const c_char,
    adapter: *mut *mut dllm_adapter,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (adapter, opened, dir) = unsafe { (out(adapter, "adapter")?, share(model)?, path(dir, "dir")?) };
        *adapter = give(Arc::new(Adapter::read(dir, opened.model.config())?));
        Ok(())
    })
}

/// How many trained values it has; 0 for a handle that is not alive.
///
/// Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_adapter_n_parameters(adapter: *const dllm_adapter) -> usize {
    // SAFETY: as the header says.
    quietly(0, || unsafe { share(adapter) }.map_or(0, |adapter| adapter.params().len()))
}

/// Writes the adapter as a folder that PEFT reads; a folder that is there is replaced in one step.
///
/// Errors: IO; what was there then still stands.
/// Since:  0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_adapter_save(
    adapter: *const dllm_adapter,
    dir: *const c_char,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (adapter, dir) = unsafe { (share(adapter)?, path(dir, "dir")?) };
        folder::replace(dir, |dir| adapter.write(dir))
    })
}

/// Frees an adapter; NULL is fine. What was made from it keeps its own hold.
///
/// Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_adapter_free(adapter: *mut dllm_adapter) {
    // SAFETY: as the header says.
    unsafe { free(adapter) }
}
