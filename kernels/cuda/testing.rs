//! A GPU for the tests of CUDA kernels: the interpreter, holding typed buffers.

use super::{Launch, Ptr};
use std::path::Path;

/// The interpreter with one source's kernels.
pub(crate) struct Gpu(ptxsim::Gpu);

impl Gpu {
    /// Compiles `kernels/<source>` for the baseline; `None`, and a line that says so, where there is no compiler.
    pub(crate) fn of(test: &str, source: &str) -> Option<Self> {
        Self::compiled(test, &Path::new(env!("CARGO_MANIFEST_DIR")).join(source))
    }

    /// The same with `from`, which must be there once in the source or the header, replaced by `to`: a seeded fault.
    pub(crate) fn edited(test: &str, source: &str, from: &str, to: &str) -> Option<Self> {
        let text = |name: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
        let text = text(source).replace("#include \"../cuda/dev.cuh\"", &text("cuda/dev.cuh"));
        assert_eq!(text.matches(from).count(), 1, "{source}: how often `{from}` is there");
        let hash = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), from);
        let path = std::env::temp_dir().join(format!("dllm-fault-{hash:016x}.cu"));
        std::fs::write(&path, text.replace(from, to)).unwrap();
        let gpu = Self::compiled(test, &path);
        std::fs::remove_file(path).unwrap();
        gpu
    }

    fn compiled(test: &str, source: &Path) -> Option<Self> {
        if ptxsim::toolkit().is_none() {
            eprintln!("SKIPPED {test}: no CUDA compiler");
            return None;
        }
        let ptx = ptxsim::compile(source, "compute_80", &[]).unwrap_or_else(|e| panic!("{}: {e}", source.display()));
        Some(Self(ptxsim::Gpu::load(&ptx).unwrap_or_else(|e| panic!("{}: {e}", source.display()))))
    }

    /// A buffer of these values.
    pub(crate) fn put<T: Copy>(&mut self, values: &[T]) -> Ptr {
        // SAFETY: T is a number of the tests below: no padding, every byte initialised.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) };
        Ptr(self.0.upload(bytes))
    }

    /// A buffer of `len` values that count as never written.
    pub(crate) fn room<T>(&mut self, len: usize) -> Ptr {
        Ptr(self.0.empty(len * size_of::<T>()))
    }

    /// A whole buffer's values.
    pub(crate) fn get<T: Copy>(&self, at: Ptr) -> Vec<T> {
        let bytes = self.0.download(at.0);
        // SAFETY: T is a number, for which any bytes are a value; the read does not rely on alignment.
        bytes.chunks_exact(size_of::<T>()).map(|value| unsafe { value.as_ptr().cast::<T>().read_unaligned() }).collect()
    }

    /// Runs a launch under the checker; its report is the error.
    pub(crate) fn run(&mut self, launch: &Launch) -> Result<(), String> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        self.0.run(launch.entry, launch.grid, launch.block, launch.shared, launch.args.bytes())
    }
}
