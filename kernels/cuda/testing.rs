//! A GPU for the tests of CUDA kernels, holding typed buffers: the interpreter, or with `DLLM_DEVICE=gpu` a real one.

use super::{FATBINS, HEADER, Launch, Ptr, SOURCES, driver};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

/// The oldest GPUs that the kernels are for.
const BASELINE: &str = "compute_80";

fn path_of(source: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(source)
}

/// The PTX of a source, compiled once for all tests of the process.
fn compiled_once(source: &str, defines: &[&str]) -> Result<String, String> {
    static DONE: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());
    // A test that panicked here left nothing half done.
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    let key = [&[source], defines].concat().join("\n");
    if let Some(ptx) = done.get(&key) {
        return Ok(ptx.clone());
    }
    let ptx = ptxsim::compile(&path_of(source), BASELINE, defines)?;
    done.insert(key, ptx.clone());
    Ok(ptx)
}

/// A folder of its own that vanishes.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("dialoguellm-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        Self(std::env::temp_dir().join(name))
    }

    fn write(&self, name: &str, text: &str) -> std::io::Result<PathBuf> {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(&self.0))?;
        std::fs::write(&path, text)?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is left to the system's own cleaning.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Do tests run on a GPU behind the driver?
fn on_driver() -> bool {
    std::env::var("DLLM_DEVICE").is_ok_and(|device| device == "gpu")
}

/// Can a GPU not tell what the test asks?
fn only_the_interpreter(test: &str) -> bool {
    if on_driver() {
        eprintln!("SKIPPED {test}: only the interpreter");
    }
    on_driver()
}

/// What a source's kernels are compiled from.
fn text_of(source: &str) -> [&'static str; 2] {
    let text = SOURCES.iter().find(|(name, _)| *name == source);
    [text.unwrap_or_else(|| panic!("no source is called {source}")).1, HEADER.1]
}

/// A GPU with one source's kernels.
pub(crate) enum Gpu {
    /// Checks every access; exact where a GPU approximates.
    Interpreter(Box<ptxsim::Gpu>),
    /// Sees a stray write where it hits a buffer's guard.
    Driver(driver::Gpu),
}

impl Gpu {
    /// Compiles `kernels/<source>` for the baseline; `None`, and a line that says so, where there is no compiler.
    pub(crate) fn of(test: &str, source: &str) -> Option<Self> {
        Self::with(test, source, &[])
    }

    /// The same with macros defined.
    pub(crate) fn with(test: &str, source: &str, defines: &[&str]) -> Option<Self> {
        if on_driver() {
            let gpu = driver::Gpu::load(&driver::images(source, defines, FATBINS, &text_of(source)));
            return Some(Self::Driver(gpu.unwrap_or_else(|e| panic!("{source}: {e}"))));
        }
        Self::compiled_by(test, source, || compiled_once(source, defines))
    }

    /// [`Gpu::of`] for a test that waits for the checker's report.
    pub(crate) fn checked(test: &str, source: &str) -> Option<Self> {
        if only_the_interpreter(test) { None } else { Self::of(test, source) }
    }

    /// The same with one place of the source or the header changed, which must be there once: a seeded fault.
    pub(crate) fn edited(test: &str, source: &str, from: &str, to: &str) -> Option<Self> {
        Self::edited_with(test, source, from, to, &[])
    }

    /// The same with macros defined.
    pub(crate) fn edited_with(test: &str, source: &str, from: &str, to: &str, defines: &[&str]) -> Option<Self> {
        if only_the_interpreter(test) {
            return None;
        }
        let [text, header] = text_of(source);
        let found = text.matches(from).count() + header.matches(from).count();
        assert_eq!(found, 1, "{source} and the header hold `{from}` other than once");
        Self::compiled_by(test, source, || {
            // The copy lies as the source does, so that it finds the header by the same name.
            let copy = Scratch::new();
            copy.write("cuda/dev.cuh", &header.replace(from, to)).map_err(|e| e.to_string())?;
            let path = copy.write(source, &text.replace(from, to)).map_err(|e| e.to_string())?;
            ptxsim::compile(&path, BASELINE, defines)
        })
    }

    fn compiled_by(test: &str, source: &str, ptx: impl FnOnce() -> Result<String, String>) -> Option<Self> {
        if ptxsim::toolkit().is_none() {
            eprintln!("SKIPPED {test}: no CUDA compiler");
            return None;
        }
        // Blocks and warps in an order of its own for every test, whose name its thread has.
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        let seed = name.bytes().fold(1u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
        let options = ptxsim::Options { seed, ..Default::default() };
        let gpu = ptx().and_then(|ptx| ptxsim::Gpu::with_options(&ptx, options));
        Some(Self::Interpreter(Box::new(gpu.unwrap_or_else(|e| panic!("{source}: {e}")))))
    }

    /// A buffer of these values.
    pub(crate) fn put<T: Copy>(&mut self, values: &[T]) -> Ptr {
        // SAFETY: T is a number of the tests below: no padding, every byte initialised.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) };
        Ptr(match self {
            Self::Interpreter(gpu) => gpu.upload(bytes),
            Self::Driver(gpu) => gpu.upload(bytes),
        })
    }

    /// A buffer of `len` values that count as never written.
    pub(crate) fn room<T>(&mut self, len: usize) -> Ptr {
        let bytes = len * size_of::<T>();
        Ptr(match self {
            Self::Interpreter(gpu) => gpu.empty(bytes),
            Self::Driver(gpu) => gpu.empty(bytes),
        })
    }

    /// A whole buffer's values.
    pub(crate) fn get<T: Copy>(&self, at: Ptr) -> Vec<T> {
        let bytes = match self {
            Self::Interpreter(gpu) => gpu.download(at.0),
            Self::Driver(gpu) => gpu.download(at.0),
        };
        // SAFETY: T is a number, for which any bytes are a value; the read does not rely on alignment.
        bytes.chunks_exact(size_of::<T>()).map(|value| unsafe { value.as_ptr().cast::<T>().read_unaligned() }).collect()
    }

    /// Runs a launch under the checker; its report is the error.
    pub(crate) fn run(&mut self, launch: &Launch) -> Result<(), String> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let (Launch { entry, grid, block, shared, .. }, params) = (launch, launch.args.bytes());
        match self {
            Self::Interpreter(gpu) => gpu.run(entry, *grid, *block, *shared, params),
            Self::Driver(gpu) => gpu.run(entry, *grid, *block, *shared, params),
        }
    }
}

/// By the interpreter as out of bounds, on a GPU by the guards.
#[test]
fn a_write_behind_a_buffer_or_before_it_is_told() {
    use crate::tensor::cuda::add;
    let test = "a_write_behind_a_buffer_or_before_it_is_told";
    let words = |on_gpu, interpreted| if on_driver() { on_gpu } else { interpreted };
    for (from, to, told) in [(0, 17, "guard behind"), (4, 5, "guard before"), (0, 16, "")] {
        let Some(mut gpu) = Gpu::of(test, "tensor/cuda.cu") else { return };
        let (x, y) = (gpu.put(&[1f32; 32]), gpu.put(&[0f32; 16]));
        let ran = gpu.run(&add(Ptr(y.0 - from), x, to));
        if told.is_empty() {
            ran.unwrap();
            assert_eq!(gpu.get::<f32>(y), [1.0; 16]);
        } else {
            let found = ran.expect_err(told);
            assert!(found.contains(words(told, "tensor_add")), "{found}");
        }
    }
}

/// Every source as tests compile it. With `DLLM_PTX` set, its PTX is kept in that folder, where a GPU's tests find it.
#[test]
fn ptx_is_found_by_what_it_was_compiled_from() {
    let test = "ptx_is_found_by_what_it_was_compiled_from";
    if only_the_interpreter(test) {
        return;
    }
    if ptxsim::toolkit().is_none() {
        eprintln!("SKIPPED {test}: no CUDA compiler");
        return;
    }
    let folder = std::env::var_os("DLLM_PTX").map(PathBuf::from);
    let variants = SOURCES.iter().map(|(source, _)| (*source, &[][..]));
    let mut names = std::collections::BTreeSet::new();
    for (source, defines) in variants.chain([("attention/cuda.cu", crate::attention::cuda::SMALL)]) {
        let name = driver::ptx_name(source, defines, &text_of(source));
        if let Some(folder) = &folder {
            std::fs::create_dir_all(folder).unwrap();
            std::fs::write(folder.join(&name), compiled_once(source, defines).unwrap()).unwrap();
            assert_eq!(driver::images(source, defines, &[], &text_of(source)).len(), 1, "{name}");
        }
        assert!(names.insert(name), "two variants of {source} have one name");
        assert!(driver::images(source, defines, &[], &["another text"]).is_empty());
    }
}
