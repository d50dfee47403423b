//! Libraries of a CUDA toolkit that `DLLM_CUDA_TOOLKIT` names.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where a toolkit keeps its libraries: unpacked Python packages, and an installation.
const LIBRARIES: [&str; 4] = ["nvidia/cu13/lib", "lib64", "lib", ""];

/// Opens these libraries of the toolkit by their paths, in this order, so that their names find them from now on. Where
/// there is no toolkit, or it has none of them, the search by name decides.
pub(super) fn open(names: &[&str]) {
    let Some(toolkit) = std::env::var_os("DLLM_CUDA_TOOLKIT").filter(|folder| !folder.is_empty()) else { return };
    for folder in LIBRARIES.map(|folder| Path::new(&toolkit).join(folder)) {
        names.iter().filter_map(|name| newest(&folder, name)).for_each(|path| open_path(&path));
    }
}

/// `name` or `name.13.0` in a folder.
fn newest(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let named = |path: &PathBuf| path.file_name().and_then(OsStr::to_str).is_some_and(|file| file.starts_with(name));
    entries.filter(named).max()
}

fn open_path(path: &Path) {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return };
    // SAFETY: opening a library runs its initialisers, and NVIDIA's are made for that; it stays open.
    unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
}
