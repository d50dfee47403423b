//! Where C's arguments become values, and results become statuses.

use super::error::{DLLM_STATUS_OK, dllm_error, dllm_status};
use crate::{Code, Error, Result};
use std::any::Any;
use std::cell::Cell;
use std::ffi::{CStr, OsStr, c_char};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;

thread_local! {
    /// Whether this thread is inside a call from C.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Runs a call's body; a failure goes to `err` where the caller wants it, a panic is one.
pub(super) fn guard(err: *mut *mut dllm_error, body: impl FnOnce() -> Result<()>) -> dllm_status {
    if !err.is_null() {
        // SAFETY: the caller's room for a pointer.
        unsafe { err.write(std::ptr::null_mut()) };
    }
    let result = caught(body).unwrap_or_else(|panic| Err(panicked(&*panic)));
    match result {
        Ok(()) => DLLM_STATUS_OK,
        Err(error) => {
            if !err.is_null() {
                // SAFETY: as above.
                unsafe { err.write(Box::into_raw(Box::new(dllm_error::new(&error)))) };
            }
            error.code() as i32
        }
    }
}

/// Runs what cannot fail; `otherwise` after a panic.
pub(super) fn quietly<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    caught(body).unwrap_or(otherwise)
}

fn caught<T>(body: impl FnOnce() -> T) -> std::thread::Result<T> {
    silence();
    let outer = INSIDE.replace(true);
    let result = catch_unwind(AssertUnwindSafe(body));
    INSIDE.set(outer);
    result
}

/// A panic's message is the error's: nothing is printed, here or in this library's threads. Others print as before.
fn silence() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let ours = std::thread::current().name().is_some_and(|name| name.starts_with("dialoguellm-"));
            if !INSIDE.get() && !ours {
                others(info);
            }
        }));
    });
}

fn panicked(panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    Error::internal(format!("a panic: {}; please report it", text.unwrap_or("without a message")))
}

fn null(name: &str) -> Error {
    Error::invalid(format!("{name} is NULL"))
}

/// The caller's room for an output, which holds `T`'s zero until the call is done.
///
/// # Safety
/// NULL or room for a T.
pub(super) unsafe fn out<'a, T: Output>(to: *mut T, name: &str) -> Result<&'a mut T> {
    if to.is_null() {
        return Err(null(name));
    }
    // SAFETY: not null, so room for a T; it is written before it is read.
    unsafe {
        to.write(T::NOTHING);
        Ok(&mut *to)
    }
}

/// What can be handed out through a pointer.
pub(super) trait Output {
    /// What is there when the call fails.
    const NOTHING: Self;
}
impl<T> Output for *mut T {
    const NOTHING: Self = std::ptr::null_mut();
}
impl Output for usize {
    const NOTHING: Self = 0;
}

/// The caller's array of `len` values.
///
/// # Safety
/// NULL or that many values.
pub(super) unsafe fn array<'a, T>(at: *const T, len: usize, name: &str) -> Result<&'a [T]> {
    check_array(at, len, name)?;
    // SAFETY: not null, aligned, and no longer than memory can be; the caller promises the values.
    Ok(if len == 0 { &[] } else { unsafe { std::slice::from_raw_parts(at, len) } })
}

/// The caller's room for `len` values, which become `zero`.
///
/// # Safety
/// NULL or room for that many values, which nobody else uses during the call.
pub(super) unsafe fn room<'a, T: Copy>(at: *mut T, len: usize, zero: T, name: &str) -> Result<&'a mut [T]> {
    check_array(at, len, name)?;
    if len == 0 {
        return Ok(&mut []);
    }
    // SAFETY: as `array`; every value is written before the slice is made.
    unsafe {
        (0..len).for_each(|i| at.add(i).write(zero));
        Ok(std::slice::from_raw_parts_mut(at, len))
    }
}

fn check_array<T>(at: *const T, len: usize, name: &str) -> Result<()> {
    if len > isize::MAX as usize / size_of::<T>().max(1) {
        return Err(Error::invalid(format!("{name} has {len} values, which is more than memory can hold")));
    }
    if len > 0 && at.is_null() {
        return Err(null(name));
    }
    if !at.is_aligned() {
        return Err(Error::invalid(format!("{name} is at an address that is not aligned to {}", align_of::<T>())));
    }
    Ok(())
}

/// A length that stands for: up to the zero byte.
pub(super) const NTS: usize = usize::MAX;

/// The caller's text; NULL is empty where `len` is 0.
///
/// # Safety
/// NULL or `len` bytes, or for [`NTS`] bytes up to a zero.
pub(super) unsafe fn text<'a>(at: *const c_char, len: usize, name: &str) -> Result<&'a str> {
    let bytes = match len {
        NTS if at.is_null() => return Err(null(name)),
        // SAFETY: not null, so bytes up to a zero.
        NTS => unsafe { CStr::from_ptr(at) }.to_bytes(),
        // SAFETY: the caller's promise.
        _ => unsafe { array(at.cast::<u8>(), len, name) }?,
    };
    std::str::from_utf8(bytes)
        .map_err(|error| Error::invalid(format!("{name} is not UTF-8: byte {} is wrong", error.valid_up_to())))
}

/// The caller's path: bytes up to a zero, handed to the system as they are.
///
/// # Safety
/// NULL or bytes up to a zero.
pub(super) unsafe fn path<'a>(at: *const c_char, name: &str) -> Result<&'a Path> {
    // SAFETY: the caller's promise.
    let path = unsafe { path_if(at) }.ok_or_else(|| null(name))?;
    if path.as_os_str().is_empty() {
        return Err(Error::invalid(format!("{name} is an empty path")));
    }
    Ok(path)
}

/// As [`path`], or none for NULL.
///
/// # Safety
/// As [`path`].
pub(super) unsafe fn path_if<'a>(at: *const c_char) -> Option<&'a Path> {
    if at.is_null() {
        return None;
    }
    // SAFETY: not null, so bytes up to a zero.
    Some(Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(at) }.to_bytes())))
}

/// Copies `values` to the caller's room.
pub(super) fn fill<T: Copy>(room: &mut [T], values: &[T], name: &str) -> Result<()> {
    if room.len() < values.len() {
        let (has, needs) = (room.len(), values.len());
        return Err(Error::invalid(format!("{name} has room for {has} values, {needs} are needed")));
    }
    room[..values.len()].copy_from_slice(values);
    Ok(())
}

/// A flag, an index or a kind that C gave as a number.
pub(super) fn one_of<T: Copy>(value: u32, known: &[T], name: &str) -> Result<T> {
    known
        .get(value as usize)
        .copied()
        .ok_or_else(|| Error::new(Code::InvalidArgument, format!("{name} is {value}, must be below {}", known.len())))
}
