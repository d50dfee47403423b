//! A GPU for tests: interprets the PTX that the CUDA compiler emits, a warp at a time, and checks what it does.
//!
//! [`compile`] makes PTX of a source, [`Gpu`] holds one module and buffers and runs its kernels. What a launch does wrong is
//! its error, with kernel, block, thread, the line of the PTX and of the source:
//!
//! - races: two accesses of shared or global memory, one of them a write, in no order (`shadow.rs` says what orders them);
//! - reads of memory that nothing has written, or that a `cp.async` writes that was not waited for;
//! - addresses outside a buffer, of a freed one, of no buffer at all; misaligned ones;
//! - `shfl`, `vote`, `mma`, `ldmatrix` and their like by other lanes than they name;
//! - barriers that a part of a warp reaches, or that never complete.
//!
//! It runs what an NVIDIA GPU of compute capability 8.0 runs, but for textures, dynamic parallelism, half precision (fp16)
//! and calls of pointers; an instruction that it does not know is an error of loading. Not modelled: time, caches, the order of
//! memory between blocks that fences make, and the errors of approximate instructions, which are computed exactly.

mod arithmetic;
mod build;
mod compile;
mod decode;
mod kernel;
mod lanes;
mod matrix;
mod memory;
mod opcode;
mod parse;
mod run;
mod shadow;
mod warp;

pub use build::Module;
pub use compile::{compile, toolkit};
pub use kernel::Kernel;
pub use memory::Memory;
pub use run::{Launch, launch};

/// How a [`Gpu`] runs.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whether accesses are checked for races and for memory that was never written; bounds and lanes always are.
    pub check: bool,
    /// Shuffles the order of blocks and warps; 0 is their own.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { check: true, seed: 0 }
    }
}

/// One module on one device.
pub struct Gpu {
    module: Module,
    memory: Memory,
    seed: u64,
}

impl Gpu {
    /// Reads a module, to be run with checks. The error names the line.
    pub fn load(ptx: &str) -> Result<Self, String> {
        Self::with_options(ptx, Options::default())
    }

    /// The same, run as the options say.
    pub fn with_options(ptx: &str, options: Options) -> Result<Self, String> {
        let mut memory = Memory::new(options.check);
        Ok(Self { module: Module::load(ptx, &mut memory)?, memory, seed: options.seed })
    }

    /// A buffer of these bytes; its address.
    pub fn upload(&mut self, bytes: &[u8]) -> u64 {
        let at = self.memory.alloc(bytes.len());
        self.memory.write(at, bytes).expect("it has that size");
        at
    }

    /// A buffer of `len` bytes that count as never written.
    pub fn empty(&mut self, len: usize) -> u64 {
        self.memory.alloc(len)
    }

    /// Overwrites bytes of a buffer, from any address in it.
    ///
    /// # Panics
    /// Outside of every buffer.
    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        self.memory.write(at, bytes).unwrap_or_else(|error| panic!("{error}"));
    }

    /// All bytes of the buffer that starts at `at`.
    ///
    /// # Panics
    /// Where none does.
    pub fn download(&self, at: u64) -> Vec<u8> {
        self.memory.whole(at).unwrap_or_else(|error| panic!("{error}")).to_vec()
    }

    /// Gives a buffer back.
    ///
    /// # Panics
    /// Where none starts.
    pub fn free(&mut self, at: u64) {
        assert!(self.memory.free(at), "{at:#x} is no buffer's address");
    }

    /// Runs a kernel; `params` is the parameter buffer in C's layout. The error is the checker's report.
    pub fn run(
        &mut self,
        entry: &str,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        params: &[u8],
    ) -> Result<(), String> {
        self.count(entry, grid, block, shared, params).map(|_| ())
    }

    /// The same; the number of warp instructions.
    pub fn count(
        &mut self,
        entry: &str,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        params: &[u8],
    ) -> Result<u64, String> {
        let kernel = self.module.kernel(entry).ok_or_else(|| format!("no kernel {entry}"))?;
        launch(kernel, &mut self.memory, &Launch { grid, block, shared, params }, self.seed)
    }
}
