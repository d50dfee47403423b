//! What all CUDA kernels share: how a launch is described, and where their sources are.
//!
//! An operation's `cuda.cu` is its device code, its `cuda.rs` beside it the geometry and arguments of every launch. A
//! [`Launch`] is a plain value: the device layer hands it to a driver, the tests to the interpreter (`tests/ptxsim`).
//! Nothing here calls CUDA.

/// An address in a device's memory; 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ptr(pub u64);

impl Ptr {
    /// The address `bytes` further on.
    pub fn offset(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// One kernel launch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Launch {
    /// The `extern "C"` entry.
    pub entry: &'static str,
    /// Blocks; a launch with a zero among them has nothing to do and is not made.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Dynamic shared memory, bytes.
    pub shared: u32,
    /// Arguments.
    pub args: Args,
}

/// A launch's parameter buffer: every argument at its natural alignment, as C lays out a struct.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Args(Vec<u8>);

impl Args {
    /// No arguments yet.
    pub fn new() -> Self {
        Self::default()
    }
    /// The buffer.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
    /// Then an address.
    pub fn ptr(self, value: Ptr) -> Self {
        self.push(value.0.to_le_bytes())
    }
    /// Then an `unsigned`.
    pub fn u32(self, value: u32) -> Self {
        self.push(value.to_le_bytes())
    }
    /// Then a `float`.
    pub fn f32(self, value: f32) -> Self {
        self.push(value.to_le_bytes())
    }
    /// Then a `double`.
    pub fn f64(self, value: f64) -> Self {
        self.push(value.to_le_bytes())
    }
    /// Then an `unsigned long long`.
    pub fn u64(self, value: u64) -> Self {
        self.push(value.to_le_bytes())
    }
    fn push<const N: usize>(mut self, bytes: [u8; N]) -> Self {
        self.0.resize(self.0.len().next_multiple_of(N), 0);
        self.0.extend(bytes);
        self
    }
}

/// Every kernel source by its name, and the header they include: compiled ahead of time by nvcc, or at run time by NVRTC.
pub const SOURCES: &[(&str, &str)] = &[
    ("adamw/cuda.cu", include_str!("../adamw/cuda.cu")),
    ("attention/cuda.cu", include_str!("../attention/cuda.cu")),
    ("cross_entropy/cuda.cu", include_str!("../cross_entropy/cuda.cu")),
    ("dropout/cuda.cu", include_str!("../dropout/cuda.cu")),
    ("embedding/cuda.cu", include_str!("../embedding/cuda.cu")),
    ("linear/cuda.cu", include_str!("../linear/cuda.cu")),
    ("quantize/cuda.cu", include_str!("../quantize/cuda.cu")),
    ("rmsnorm/cuda.cu", include_str!("../rmsnorm/cuda.cu")),
    ("rope/cuda.cu", include_str!("../rope/cuda.cu")),
    ("sample/cuda.cu", include_str!("../sample/cuda.cu")),
    ("swiglu/cuda.cu", include_str!("../swiglu/cuda.cu")),
    ("tensor/cuda.cu", include_str!("../tensor/cuda.cu")),
];
/// `dev.cuh`, the only header.
pub const HEADER: (&str, &str) = ("dev.cuh", include_str!("dev.cuh"));
/// Those of [`SOURCES`] that the build compiled ahead of time, as fatbins for CUDA 13.0 and newer: all, or none.
pub const FATBINS: &[(&str, &[u8])] = compiled::FATBINS;
mod compiled {
    include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));
}

/// Threads of the block that moves a row of `width` values: four packs of four values each (`run_length` in `dev.cuh`), as
/// far as `most` threads go.
pub(crate) fn row_threads(width: u32, most: u32) -> u32 {
    width.div_ceil(16).next_multiple_of(32).clamp(32, most)
}

#[cfg(test)]
mod driver;
#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_lie_where_c_puts_the_fields_of_a_struct() {
        let args = Args::new().u32(1).ptr(Ptr(2)).f32(1.0).u32(3).u64(4);
        let words: Vec<u32> = args.bytes().chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
        assert_eq!(words, [1, 0, 2, 0, 1.0f32.to_bits(), 3, 4, 0]);
    }
}
