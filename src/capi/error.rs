//! Statuses, errors and strings that are handed out.

use super::boundary::quietly;
use crate::{Code, Error};
use std::ffi::{CString, c_char};

/// What a function answers: 0, or the class of a failure. Numbers are never used again; new ones may come.
pub type dllm_status = i32;

/// Done.
pub const DLLM_STATUS_OK: i32 = 0;
/// An argument, option or recipe value is out of its range.
pub const DLLM_STATUS_INVALID_ARGUMENT: i32 = 1;
/// A file, folder, tensor, label or adapter that was named does not exist.
pub const DLLM_STATUS_NOT_FOUND: i32 = 2;
/// The system refused to read or write: permission, full disk, broken device.
pub const DLLM_STATUS_IO: i32 = 3;
/// A file's content contradicts itself, its format, or the file it belongs to.
pub const DLLM_STATUS_BAD_FILE: i32 = 4;
/// Well-formed, but not something this library does.
pub const DLLM_STATUS_UNSUPPORTED: i32 = 5;
/// An allocation sized by input was refused.
pub const DLLM_STATUS_OUT_OF_MEMORY: i32 = 6;
/// More tokens than the model's context holds.
pub const DLLM_STATUS_CONTEXT_FULL: i32 = 7;
/// The handle is in use by another call, or by the one whose callback this is; nothing has changed.
pub const DLLM_STATUS_BUSY: i32 = 8;
/// Stopped as asked, by a cancel handle or a callback.
pub const DLLM_STATUS_CANCELLED: i32 = 9;
/// The GPU is gone; a new runtime is needed.
pub const DLLM_STATUS_DEVICE_LOST: i32 = 10;
/// A loss, gradient or weight is NaN or infinite.
pub const DLLM_STATUS_NUMERIC: i32 = 11;
/// An earlier INTERNAL left this handle unusable: free it.
pub const DLLM_STATUS_POISONED: i32 = 12;
/// A broken promise of the library's own: please report its message.
pub const DLLM_STATUS_INTERNAL: i32 = 13;

/// What went wrong, in a sentence: what, where, both values, what to do. Dialogue text is never in it.
pub struct dllm_error {
    code: Code,
    message: CString,
}

impl dllm_error {
    pub(super) fn new(error: &Error) -> Self {
        // a path may hold a zero byte, which C's text cannot
        let message = CString::new(error.text().replace('\0', "\u{fffd}")).unwrap_or_default();
        Self { code: error.code(), message }
    }
}

/// Text that is handed out, UTF-8.
pub struct dllm_string(Vec<u8>);

impl dllm_string {
    /// `text` with a zero behind it; one inside stays, and is why there is a length.
    pub(super) fn boxed(text: String) -> *mut Self {
        let mut bytes = text.into_bytes();
        bytes.push(0);
        Box::into_raw(Box::new(Self(bytes)))
    }
}

/// ---- Statuses, errors, strings ----
///
/// The name of a status, such as "BUSY"; "UNKNOWN" for a number this version does not have.
///
/// Ownership: the library's; valid for the life of the process.
/// Since:     0.1
#[unsafe(no_mangle)]
pub extern "C" fn dllm_status_name(status: dllm_status) -> *const c_char {
    let name = match status {
        DLLM_STATUS_OK => c"OK",
        DLLM_STATUS_INVALID_ARGUMENT => c"INVALID_ARGUMENT",
        DLLM_STATUS_NOT_FOUND => c"NOT_FOUND",
        DLLM_STATUS_IO => c"IO",
        DLLM_STATUS_BAD_FILE => c"BAD_FILE",
        DLLM_STATUS_UNSUPPORTED => c"UNSUPPORTED",
        DLLM_STATUS_OUT_OF_MEMORY => c"OUT_OF_MEMORY",
        DLLM_STATUS_CONTEXT_FULL => c"CONTEXT_FULL",
        DLLM_STATUS_BUSY => c"BUSY",
        DLLM_STATUS_CANCELLED => c"CANCELLED",
        DLLM_STATUS_DEVICE_LOST => c"DEVICE_LOST",
        DLLM_STATUS_NUMERIC => c"NUMERIC",
        DLLM_STATUS_POISONED => c"POISONED",
        DLLM_STATUS_INTERNAL => c"INTERNAL",
        _ => c"UNKNOWN",
    };
    name.as_ptr()
}

/// An error's status; OK for NULL.
///
/// Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_error_status(error: *const dllm_error) -> dllm_status {
    // SAFETY: NULL or an error of this library's that was not freed.
    unsafe { error.as_ref() }.map_or(DLLM_STATUS_OK, |error| error.code as i32)
}

/// An error's sentence, ending in a zero; an empty one for NULL.
///
/// Ownership: the error's.
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_error_message(error: *const dllm_error) -> *const c_char {
    // SAFETY: NULL or an error of this library's that was not freed.
    unsafe { error.as_ref() }.map_or(c"".as_ptr(), |error| error.message.as_ptr())
}

/// Frees an error; NULL is fine.
///
/// Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_error_free(error: *mut dllm_error) {
    if !error.is_null() {
        // SAFETY: an error of this library's that was not freed; the caller gives it up.
        quietly((), || drop(unsafe { Box::from_raw(error) }));
    }
}

/// A string's bytes, with a zero behind them; an empty text for NULL.
///
/// Ownership: the string's.
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_string_data(string: *const dllm_string) -> *const c_char {
    // SAFETY: NULL or a string of this library's that was not freed.
    unsafe { string.as_ref() }.map_or(c"".as_ptr(), |string| string.0.as_ptr().cast())
}

/// A string's length in bytes, without the zero; 0 for NULL.
///
/// Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_string_len(string: *const dllm_string) -> usize {
    // SAFETY: NULL or a string of this library's that was not freed.
    unsafe { string.as_ref() }.map_or(0, |string| string.0.len() - 1)
}

/// Frees a string; NULL is fine.
///
/// Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_string_free(string: *mut dllm_string) {
    if !string.is_null() {
        // SAFETY: a string of this library's that was not freed; the caller gives it up.
        quietly((), || drop(unsafe { Box::from_raw(string) }));
    }
}
