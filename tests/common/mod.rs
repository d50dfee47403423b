//! What integration tests share; among it, where data that are not part of this repository lie. A test that does not
//! find its data returns early through here and nowhere else, so that every skip is a line on stderr.
#![allow(dead_code, unreachable_pub)] // each test binary uses its own part

pub mod golden;
pub mod plain;
pub mod random;

use std::path::{Path, PathBuf};

/// `$DLLM_DATA/name` (default: `../shared/data/name` beside the repository), if it is there.
pub fn shared_data(name: &str) -> Option<PathBuf> {
    present("DLLM_DATA", "../shared/data", name)
}

/// The model folder `$DLLM_MODEL` (default: `models/smollm2`), if it is there.
pub fn model_dir() -> Option<PathBuf> {
    present("DLLM_MODEL", "models/smollm2", "")
}

/// What transformers computed with that model: `$DLLM_PARITY` (default: `models/smollm2_parity.safetensors`).
pub fn parity_file() -> Option<PathBuf> {
    present("DLLM_PARITY", "models/smollm2_parity.safetensors", "")
}

fn present(variable: &str, default: &str, name: &str) -> Option<PathBuf> {
    let root = match std::env::var_os(variable) {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join(default),
    };
    let path = if name.is_empty() { root } else { root.join(name) };
    if path.exists() {
        return Some(path);
    }
    skipped(&format!("{} is not there; set {variable}", path.display()));
    None
}

/// Says on stderr, past the test harness's capture, that the running test proves nothing on this machine.
pub fn skipped(why: &str) {
    use std::io::Write;
    let thread = std::thread::current();
    let line = format!("SKIPPED {}: {why}\n", thread.name().unwrap_or("?"));
    let _ = std::io::stderr().write_all(line.as_bytes());
}
