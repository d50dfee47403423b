//! Which library this is.

use super::boundary::quietly;
use super::options::layout_text;
use std::ffi::{CString, c_char};
use std::sync::OnceLock;

/// The version of the binary interface: structs, functions and numbers of one version go together.
pub const DLLM_ABI_VERSION: u32 = 1;

/// ---- Version ----
///
/// The library's version as text, such as "0.1.0".
///
/// Ownership: the library's; valid for the life of the process.
/// Since:     0.1
#[unsafe(no_mangle)]
pub extern "C" fn dllm_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// The library's version as a number: 10000 major + 100 minor + patch; equals DLLM_VERSION_NUMBER where header and library
/// are of one version.
///
/// Since: 0.1
#[unsafe(no_mangle)]
pub extern "C" fn dllm_version_number() -> u32 {
    let part = |text: &str| text.parse::<u32>().unwrap_or(0);
    let parts = [env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"), env!("CARGO_PKG_VERSION_PATCH")];
    quietly(0, || parts.into_iter().fold(0, |number, text| 100 * number + part(text)))
}

/// The version of the binary interface; a program that loads the library by itself compares it with DLLM_ABI_VERSION.
///
/// Since: 0.1
#[unsafe(no_mangle)]
pub extern "C" fn dllm_abi_version() -> u32 {
    DLLM_ABI_VERSION
}

/// Where the fields of every struct lie, as include/dialoguellm.layout says it: a line "struct size", then a line
/// "struct.field offset size" for each. A binding compares it with its own structs when it is loaded.
///
/// Ownership: the library's; valid for the life of the process.
/// Since:     0.1
#[unsafe(no_mangle)]
pub extern "C" fn dllm_layout() -> *const c_char {
    static TEXT: OnceLock<CString> = OnceLock::new();
    quietly(c"".as_ptr(), || TEXT.get_or_init(|| CString::new(layout_text()).unwrap_or_default()).as_ptr())
}
