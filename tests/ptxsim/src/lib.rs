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

/// How a launch is run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub check: bool,
    pub seed: u64,
}

/// A device's memory.
#[derive(Default)]
pub struct Memory {
    buffers: Vec<interpreter::Buf>,
}

impl Memory {
    pub fn new() -> Self {
        Self::default()
    }
    /// A buffer of `len` bytes that count as never written; its address.
    pub fn alloc(&mut self, len: usize) -> u64 {
        self.buffers.push(interpreter::Buf::new(&vec![0xff; len], false));
        self.buffers.last().unwrap().data.as_ptr() as u64
    }
    pub fn free(&mut self, at: u64) -> bool {
        let before = self.buffers.len();
        self.buffers.retain(|b| b.data.as_ptr() as u64 != at);
        self.buffers.len() < before
    }
    fn find(&self, at: u64, len: usize) -> Result<(usize, usize), String> {
        let inside = |b: &interpreter::Buf| {
            let base = b.data.as_ptr() as u64;
            at >= base && at + len as u64 <= base + b.data.len() as u64
        };
        let index = self.buffers.iter().position(inside).ok_or(format!("{at:#x} + {len} is in no buffer"))?;
        Ok((index, (at - self.buffers[index].data.as_ptr() as u64) as usize))
    }
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), String> {
        let (index, offset) = self.find(at, bytes.len())?;
        self.buffers[index].write(offset, bytes);
        Ok(())
    }
    pub fn read(&self, at: u64, len: usize) -> Result<&[u8], String> {
        let (index, offset) = self.find(at, len)?;
        Ok(&self.buffers[index].data[offset..][..len])
    }
}

/// The kernels of one PTX text.
pub struct Module {
    kernels: Vec<interpreter::Kernel>,
}

impl Module {
    pub fn load(ptx: &str, _memory: &mut Memory) -> Result<Self, String> {
        Ok(Self { kernels: interpreter::parse(ptx)? })
    }
    pub fn kernel(&self, name: &str) -> Option<Kernel<'_>> {
        self.kernels.iter().find(|kernel| kernel.name == name).map(Kernel)
    }
    pub fn global(&self, _name: &str) -> Option<(u64, usize)> {
        None
    }
}

/// One entry.
#[derive(Clone, Copy)]
pub struct Kernel<'a>(&'a interpreter::Kernel);

impl Kernel<'_> {
    /// (offset, size) of every parameter in the buffer.
    pub fn params(&self) -> Vec<(usize, usize)> {
        let mut at = 0usize;
        self.0.param_sizes().map(|size| { at = at.next_multiple_of(size) + size; (at - size, size) }).collect()
    }
}

/// Geometry and arguments of a launch.
pub struct Launch<'a> {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub params: &'a [u8],
}

/// Runs a kernel; the number of warp instructions, or the checker's report.
pub fn launch(kernel: Kernel<'_>, memory: &mut Memory, launch: &Launch<'_>, options: Options) -> Result<u64, String> {
    assert!(launch.block[1] == 1 && launch.block[2] == 1);
    let words: Vec<u64> = kernel.params().iter().map(|&(at, size)| {
        let mut word = [0; 8];
        word[..size].copy_from_slice(&launch.params[at..at + size]);
        u64::from_le_bytes(word)
    }).collect();
    let check = interpreter::Opt { check: options.check };
    let result = interpreter::launch(kernel.0, launch.grid, launch.block[0], launch.shared as usize, &words, &mut memory.buffers, &check);
    memory.buffers.iter_mut().for_each(interpreter::Buf::settle);
    result
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
        let (mut at, mut words) = (0usize, Vec::new());
        for size in kernel.param_sizes() {
            at = at.next_multiple_of(size);
            let mut word = [0; 8];
            word[..size].copy_from_slice(&params[at..at + size]);
            words.push(u64::from_le_bytes(word));
            at += size;
        }
        let check = interpreter::Opt { check: true };
        let result = interpreter::launch(kernel, grid, block[0], shared as usize, &words, &mut self.buffers, &check);
        self.buffers.iter_mut().for_each(interpreter::Buf::settle);
        result.map(|_| ())
    }
}
