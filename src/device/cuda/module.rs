//! Kernels, ready to run: compiled ahead of time where the build did that and the driver takes it, else by NVRTC when the
//! first model is opened, and then kept on disk.

use super::driver::{About, Context, Function, Module};
use super::{cache, nvrtc, probe};
use crate::{Error, Result};
use dialoguellm_kernels::cuda::{FATBINS, HEADER, Launch, SOURCES};
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex, PoisonError};

/// All kernels of one GPU.
pub(super) struct Modules {
    context: Arc<Context>,
    /// By the beginning of their kernels' names: the operation and an underscore.
    modules: Vec<(String, Module)>,
    /// Kernels that ran already, and the dynamic shared memory they may have.
    known: Mutex<HashMap<&'static str, (Function, u32)>>,
}

/// Dynamic shared memory that every kernel may have.
const SHARED: u32 = 48 << 10;

impl Modules {
    /// Loads all kernels. The error says which versions there are, and what is missing.
    pub fn open(context: &Arc<Context>, about: &About, driver: u32) -> Result<Self, String> {
        let modules = match ahead_of_time(context) {
            Some(modules) => modules,
            None => at_run_time(context, about, driver)?,
        };
        let beginning = |(name, _): &(&str, &str)| format!("{}_", name.split('/').next().unwrap_or(name));
        let modules = SOURCES.iter().map(beginning).zip(modules).collect();
        Ok(Self { context: context.clone(), modules, known: Mutex::default() })
    }

    /// The kernel that a launch names, allowed the shared memory that the launch wants.
    pub fn function(&self, launch: &Launch) -> Result<Function> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (function, allowed) = match known.get(launch.entry) {
            Some(&found) => found,
            None => (self.find(launch.entry)?, SHARED),
        };
        if launch.shared > allowed {
            self.context.allow_shared(function, launch.shared)?;
        }
        known.insert(launch.entry, (function, allowed.max(launch.shared)));
        Ok(function)
    }

    fn find(&self, entry: &str) -> Result<Function> {
        let of = self.modules.iter().find(|(operation, _)| entry.starts_with(operation));
        let (_, module) = of.ok_or_else(|| Error::internal(format!("no CUDA source has the kernel {entry}")))?;
        let name = CString::new(entry).map_err(|_| Error::internal(format!("a kernel cannot be called {entry:?}")))?;
        self.context.function(module, &name)
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        let _ = self.context.bind();
        let _ = self.context.synchronize();
        for (_, module) in self.modules.drain(..) {
            // SAFETY: the stream is empty, and whoever launches holds these modules.
            unsafe { self.context.unload(module) };
        }
    }
}

/// Every source's kernels as the build compiled them, if it did and the driver takes them.
fn ahead_of_time(context: &Context) -> Option<Vec<Module>> {
    let image = |name: &str| FATBINS.iter().find(|(of, _)| *of == name).map(|(_, image)| image.to_vec());
    SOURCES.iter().map(|(name, _)| context.load(&image(name)?).ok()).collect()
}

/// Every source's kernels from the disk, or compiled and put there.
fn at_run_time(context: &Context, about: &About, driver: u32) -> Result<Vec<Module>, String> {
    let compiler = nvrtc::Compiler::find().map_err(|reason| without_compiler(driver, &reason))?;
    let target = format!("{} {}", about.capability, compiler.version());
    let key = |source: &'static str| [source, HEADER.1, &target];
    let kept = |(_, source): &(_, &'static str)| cache::find(&key(source)).and_then(|image| context.load(&image).ok());
    let mut modules: Vec<Option<Module>> = SOURCES.iter().map(kept).collect();
    let missing: Vec<usize> = (0..modules.len()).filter(|&i| modules[i].is_none()).collect();
    for (&i, images) in missing.iter().zip(compile(&compiler, about.capability, &missing)) {
        let module = first_taken(context, &images?, &key(SOURCES[i].1));
        modules[i] = Some(module.ok_or_else(|| not_taken(driver, &compiler))?);
    }
    Ok(modules.into_iter().flatten().collect())
}

/// Images of one source, best first, or why there are none.
type Images = Result<Vec<Vec<u8>>, String>;

/// The sources of these numbers, each in a thread of its own: together they take as long as the longest.
fn compile(compiler: &nvrtc::Compiler, capability: u32, sources: &[usize]) -> Vec<Images> {
    let version = probe::shown(compiler.version());
    let one = &|(name, source): &(&str, &str)| {
        let images = compiler.compile(name, source, capability);
        images.map_err(|log| format!("NVRTC {version} does not compile {name} for the GPU: {log}"))
    };
    let broken = |_| Err(format!("NVRTC {version} lacks functions that are needed"));
    std::thread::scope(|scope| {
        let threads: Vec<_> = sources.iter().map(|&i| scope.spawn(move || one(&SOURCES[i]))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(broken)).collect()
    })
}

/// Loads the first image that the driver takes, and keeps it on disk.
fn first_taken(context: &Context, images: &[Vec<u8>], key: &[&str]) -> Option<Module> {
    let take = |image: &Vec<u8>| context.load(image).ok().inspect(|_| cache::keep(key, image));
    images.iter().find_map(take)
}

fn not_taken(driver: u32, compiler: &nvrtc::Compiler) -> String {
    format!(
        "the driver (CUDA {}) does not take what NVRTC {} compiles; a driver of at least the compiler's version is needed, \
         or a toolkit of the driver's, named by DLLM_CUDA_TOOLKIT",
        probe::shown(driver),
        probe::shown(compiler.version())
    )
}

fn without_compiler(driver: u32, reason: &str) -> String {
    let built = match FATBINS.is_empty() {
        true => "this build holds no compiled kernels",
        false => "the kernels of this build need a driver for CUDA 13.0",
    };
    format!(
        "{built}, the driver is for CUDA {}, and {reason}; install the CUDA toolkit, or name its folder in \
         DLLM_CUDA_TOOLKIT",
        probe::shown(driver)
    )
}
