//! A request to stop.

use super::boundary::{guard, out};
use super::error::{dllm_error, dllm_status};
use super::handle::{Handle, Kind, free, give, share, share_if};
use crate::{Cancel, Result};

/// A request to stop that any thread may make, and a signal handler. Calls that were given it look at it between layers
/// of a model, matrices that are opened, rows that are written and lines of data, and end with CANCELLED.
pub struct dllm_cancel(Handle<Cancel>);

impl Kind for dllm_cancel {
    type Value = Cancel;
    const NAME: &'static str = "cancel";
    fn new(handle: Handle<Cancel>) -> Self {
        Self(handle)
    }
    fn handle(&self) -> &Handle<Cancel> {
        &self.0
    }
}

/// The caller's request, or one that nobody makes for NULL.
///
/// # Safety
/// NULL or a cancel handle that was not freed.
pub(super) unsafe fn cancel_of(cancel: *const dllm_cancel) -> Result<Cancel> {
    // SAFETY: the caller's promise.
    Ok(unsafe { share_if(cancel) }?.map_or_else(Cancel::default, |cancel| Cancel::clone(&cancel)))
}

/// ---- Cancel: a request to stop ----
///
/// A request that is not made yet.
///
/// Ownership: the caller's; free it with dllm_cancel_free(), also while a call still has it.
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_cancel_new(cancel: *mut *mut dllm_cancel, err: *mut *mut dllm_error) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let cancel = unsafe { out(cancel, "cancel") }?;
        *cancel = give(Cancel::default());
        Ok(())
    })
}

/// Asks every call that has it to stop; they end with CANCELLED until dllm_cancel_clear(). NULL is fine.
///
/// Threads: any, at any time, and from a signal handler.
/// Since:   0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_cancel_set(cancel: *const dllm_cancel) {
    // SAFETY: as the header says. Nothing here allocates, locks or unwinds for a handle that is alive.
    if let Ok(cancel) = unsafe { share(cancel) } {
        cancel.set();
    }
}

/// Takes the request back, so that calls run again. NULL is fine.
///
/// Threads: any, at any time.
/// Since:   0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_cancel_clear(cancel: *const dllm_cancel) {
    // SAFETY: as the header says.
    if let Ok(cancel) = unsafe { share(cancel) } {
        cancel.clear();
    }
}

/// 1 where a stop was asked for, else 0; 0 for NULL.
///
/// Threads: any, at any time.
/// Since:   0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_cancel_is_set(cancel: *const dllm_cancel) -> i32 {
    // SAFETY: as the header says.
    unsafe { share(cancel) }.is_ok_and(|cancel| cancel.is_set()).into()
}

/// Frees a cancel handle; NULL is fine.
///
/// Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_cancel_free(cancel: *mut dllm_cancel) {
    // SAFETY: as the header says.
    unsafe { free(cancel) }
}
