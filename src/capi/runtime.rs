//! Threads, device and log lines that models share.

use super::boundary::{guard, one_of, out};
use super::error::{dllm_error, dllm_status};
use super::handle::{Handle, Kind, free, give};
use super::options::{described, read};
use crate::device::Pool;
use crate::model::Place;
use crate::{Error, Result};
use std::ffi::{CString, c_char, c_void};
use std::sync::Arc;

/// On the GPU where there is one that can do what is asked, else on the CPU.
pub const DLLM_DEVICE_AUTO: u32 = 0;
/// On the CPU.
pub const DLLM_DEVICE_CPU: u32 = 1;
/// On the first NVIDIA GPU; UNSUPPORTED, with the reason, where there is none.
pub const DLLM_DEVICE_CUDA: u32 = 2;

/// Hears a line of the log, which ends in a zero and has no line end; valid during the call, on the thread that called
/// the library.
pub type dllm_log_fn = Option<unsafe extern "C" fn(user: *mut c_void, line: *const c_char)>;

/// How a runtime computes; zero is every field's default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dllm_runtime_options {
    /// sizeof(dllm_runtime_options).
    pub struct_size: u32,
    /// Threads, the caller's included; 0 for one per core, 1 for the caller's only.
    pub threads: u32,
    /// DLLM_DEVICE_AUTO, _CPU or _CUDA.
    pub device: u32,
    /// 0.
    pub reserved: u32,
    /// Hears the log; NULL for nobody.
    pub log: dllm_log_fn,
    /// Handed to `log`.
    pub log_user: *mut c_void,
}
described!(growing dllm_runtime_options { threads, device, reserved, log, log_user });

/// The threads that compute, the device, and who hears the log. Shared by the models opened on it, which keep it alive; any
/// number of calls work on it at once, and its threads serve them in turn.
pub struct dllm_runtime(Handle<Runtime>);

impl Kind for dllm_runtime {
    type Value = Runtime;
    const NAME: &'static str = "runtime";
    fn new(handle: Handle<Runtime>) -> Self {
        Self(handle)
    }
    fn handle(&self) -> &Handle<Runtime> {
        &self.0
    }
}

/// What is behind a [`dllm_runtime`].
#[derive(Clone)]
pub struct Runtime {
    pub(super) pool: Arc<Pool>,
    pub(super) device: Place,
    log: dllm_log_fn,
    log_user: *mut c_void,
}

// SAFETY: the user's pointer is handed to the user's function and not looked at; the header says on which threads.
unsafe impl Send for Runtime {}
// SAFETY: as above.
unsafe impl Sync for Runtime {}

impl Runtime {
    pub(super) fn of(options: &dllm_runtime_options) -> Result<Self> {
        let device = one_of(options.device, &[Place::Auto, Place::Cpu, Place::Cuda], "dllm_runtime_options.device")?;
        let threads = options.threads;
        if threads > 4096 {
            return Err(Error::invalid(format!("dllm_runtime_options.threads is {threads}, must be at most 4096")));
        }
        Ok(Self { pool: Pool::shared(threads as usize)?, device, log: options.log, log_user: options.log_user })
    }

    /// Tells the log a line.
    pub(super) fn say(&self, line: &str) {
        if let (Some(log), Ok(line)) = (self.log, CString::new(line)) {
            // SAFETY: the caller's function, on the caller's thread, with the caller's pointer.
            unsafe { log(self.log_user, line.as_ptr()) };
        }
    }
}

/// ---- Runtime: threads and device ----
///
/// A runtime; `options` may be NULL.
///
/// Ownership: the caller's; models keep what they need of it.
/// Errors:    IO where the system gives no threads.
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_runtime_new(
    options: *const dllm_runtime_options,
    runtime: *mut *mut dllm_runtime,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (runtime, options) = unsafe { (out(runtime, "runtime")?, read(options)?) };
        *runtime = give(Runtime::of(&options)?);
        Ok(())
    })
}

/// Frees a runtime; NULL is fine. Its threads end with the last model on it.
///
/// Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_runtime_free(runtime: *mut dllm_runtime) {
    // SAFETY: as the header says.
    unsafe { free(runtime) }
}
