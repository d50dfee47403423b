//! The CUDA compiler, where there is one.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of the CUDA compiler (`bin/nvcc` in it), where `kernels/cuda/toolkit` put it, or under `DLLM_CUDA_TOOLKIT`.
pub fn toolkit() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let dir = std::env::var_os("DLLM_CUDA_TOOLKIT").map_or(root.join("target/cuda-toolkit"), PathBuf::from);
    let dir = dir.join("nvidia/cu13");
    dir.join("bin/nvcc").exists().then_some(dir)
}

/// PTX of `source` for `arch` (`compute_80`), with `defines` (`FAULT=1`); errors are the compiler's.
pub fn compile(source: &Path, arch: &str, defines: &[&str]) -> Result<String, String> {
    let toolkit = toolkit().ok_or("no CUDA compiler: run kernels/cuda/toolkit")?;
    let mut nvcc = Command::new(toolkit.join("bin/nvcc"));
    nvcc.args(["-ptx", "-std=c++17", "-lineinfo", "-arch", arch, "-o", "/dev/stdout"]).arg(source);
    nvcc.args(defines.iter().map(|define| format!("-D{define}")));
    let output = nvcc.output().map_err(|e| format!("nvcc: {e}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    String::from_utf8(output.stdout).map_err(|e| e.to_string())
}
