//! A GPU for tests: compiles a kernel source to PTX and interprets it, with checks.
#![allow(missing_docs)]

#[allow(warnings, clippy::all)]
mod interpreter;

use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of the CUDA compiler (`bin/nvcc` in it), where `kernels/cuda/toolkit` put it.
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

/// One module on one device.
pub struct Gpu {
    kernels: Vec<interpreter::Kernel>,
    buffers: Vec<interpreter::Buf>,
}

impl Gpu {
    pub fn load(ptx: &str) -> Result<Self, String> {
        Ok(Self { kernels: interpreter::parse(ptx)?, buffers: Vec::new() })
    }
    /// A buffer of these bytes; its address.
    pub fn upload(&mut self, bytes: &[u8]) -> u64 {
        self.push(interpreter::Buf::new(bytes, true))
    }
    /// A buffer of `len` bytes that count as never written.
    pub fn empty(&mut self, len: usize) -> u64 {
        self.push(interpreter::Buf::new(&vec![0xff; len], false))
    }
    fn push(&mut self, buffer: interpreter::Buf) -> u64 {
        self.buffers.push(buffer);
        self.buffers.last().unwrap().data.as_ptr() as u64
    }
    pub fn download(&self, at: u64) -> Vec<u8> {
        self.buffers.iter().find(|b| b.data.as_ptr() as u64 == at).expect("a buffer's address").data.clone()
    }
    /// Runs a kernel with checks; `params` is the parameter buffer in C layout. The error is the checker's report.
    pub fn run(&mut self, entry: &str, grid: [u32; 3], block: [u32; 3], shared: u32, params: &[u8]) -> Result<(), String> {
        assert!(block[1] == 1 && block[2] == 1);
        let kernel = self.kernels.iter().find(|k| k.name == entry).ok_or(format!("no kernel {entry}"))?;
        let check = interpreter::Opt { check: true };
        let result = interpreter::launch(kernel, grid, block[0], shared as usize, params, &mut self.buffers, &check);
        self.buffers.iter_mut().for_each(interpreter::Buf::settle);
        result.map(|_| ())
    }
}
