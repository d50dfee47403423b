//! A GPU behind its driver, for tests and benchmarks; never shipped. It has the interpreter's face (`ptxsim::Gpu`), and a
//! guard around every buffer: a kernel that writes beside one is told, as far as the guard reaches.
#![allow(dead_code)] // tests and benchmarks use a part each

use cudarc::driver::sys::{self, CUresult};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_int, c_void};
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::OnceLock;

/// Bytes before and behind every buffer, and what they hold.
const GUARD: usize = 256;
const CANARY: u8 = 0xa5;
/// What a buffer holds that nothing has written: NaN as f32 and bf16, an index past everything as u32.
const UNWRITTEN: u8 = 0xff;
/// Dynamic shared memory that every kernel may have.
const SHARED: u32 = 48 << 10;
/// Names in a launch's list: the arguments as one buffer, its size, the list's end (`CU_LAUNCH_PARAM_*` in cuda.h).
const BUFFER: usize = 1;
const SIZE: usize = 2;
const END: usize = 0;

/// Images of `source` that a driver may take, best first: what the build compiled ahead of time, and PTX from the folder
/// that `DLLM_PTX` names.
pub(crate) fn images(source: &str, defines: &[&str], fatbins: &[(&str, &[u8])], text: &[&str]) -> Vec<Vec<u8>> {
    let built = fatbins.iter().find(|(name, _)| *name == source).map(|(_, image)| image.to_vec());
    let kept = std::env::var_os("DLLM_PTX").and_then(|folder| {
        let mut ptx = std::fs::read(PathBuf::from(folder).join(ptx_name(source, defines, text))).ok()?;
        ptx.push(0);
        Some(ptx)
    });
    built.into_iter().chain(kept).collect()
}

/// The file of the PTX of a source, by everything that it was compiled from.
pub(crate) fn ptx_name(source: &str, defines: &[&str], text: &[&str]) -> String {
    let parts = text.iter().chain(defines).flat_map(|part| part.bytes().chain([0]));
    let hash =
        parts.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("{}-{hash:016x}.ptx", source.split('/').next().unwrap_or(source))
}

fn check(result: CUresult, doing: &str) -> Result<(), String> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = std::ptr::null();
    // SAFETY: on success `text` is a string that lives as long as the driver.
    let words = unsafe {
        match sys::cuGetErrorString(result, &mut text) {
            CUresult::CUDA_SUCCESS if !text.is_null() => CStr::from_ptr(text).to_string_lossy().into_owned(),
            _ => "unknown error".to_owned(),
        }
    };
    Err(format!("{doing}: {words} ({})", result as u32))
}

/// Makes the first GPU's context current in this thread.
fn enter() -> Result<(), String> {
    static CONTEXT: OnceLock<Result<usize, String>> = OnceLock::new();
    let open = || {
        // SAFETY: opening a library runs its initialisers; the driver's are made for that.
        if !unsafe { sys::is_culib_present() } {
            return Err("there is no NVIDIA driver (libcuda.so.1) on this machine".to_owned());
        }
        let (mut device, mut context) = (0, null_mut());
        // SAFETY: each writes one handle. The context is the process's, and is kept to its end.
        unsafe {
            check(sys::cuInit(0), "starting the driver")?;
            check(sys::cuDeviceGet(&mut device, 0), "finding the GPU")?;
            check(sys::cuDevicePrimaryCtxRetain(&mut context, device), "opening a context")?;
        }
        Ok(context as usize)
    };
    let context = CONTEXT.get_or_init(open).clone()? as sys::CUcontext;
    // SAFETY: the context is retained for ever.
    check(unsafe { sys::cuCtxSetCurrent(context) }, "entering the context")
}

/// One module and its buffers on the first GPU. It stays in the thread that made it.
pub(crate) struct Gpu {
    module: sys::CUmodule,
    /// Bytes of every buffer by its address.
    buffers: BTreeMap<u64, usize>,
    /// Was a damaged guard told already?
    told: bool,
}

impl Gpu {
    /// Loads the first of the images that the driver takes; the error is the last one's.
    pub(crate) fn load(images: &[Vec<u8>]) -> Result<Self, String> {
        enter()?;
        let mut module = null_mut();
        let mut loaded = Err("nothing compiled is there: run kernels/device-check build".to_owned());
        for image in images {
            // SAFETY: an image tells its length: in a header, or by the zero at the end of PTX.
            loaded = check(unsafe { sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) }, "loading kernels");
            if loaded.is_ok() {
                break;
            }
        }
        loaded.map(|()| Self { module, buffers: BTreeMap::new(), told: false })
    }

    /// A buffer of these bytes; its address.
    pub(crate) fn upload(&mut self, bytes: &[u8]) -> u64 {
        let at = self.empty(bytes.len());
        self.write(at, bytes);
        at
    }

    /// Overwrites the first bytes of a buffer.
    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) {
        assert!(bytes.len() <= self.buffers[&at], "{} bytes do not fit", bytes.len());
        if bytes.is_empty() {
            return;
        }
        // SAFETY: the buffer has room for them.
        check(unsafe { sys::cuMemcpyHtoD_v2(at, bytes.as_ptr().cast(), bytes.len()) }, "copying to the GPU").unwrap();
    }

    /// A buffer of `len` bytes that nothing has written, with its guards.
    pub(crate) fn empty(&mut self, len: usize) -> u64 {
        let mut base = 0;
        // SAFETY: writes one address; then fills what was allocated.
        unsafe {
            check(sys::cuMemAlloc_v2(&mut base, len + 2 * GUARD), &format!("allocating {len} bytes")).unwrap();
            check(sys::cuMemsetD8_v2(base, CANARY, len + 2 * GUARD), "filling").unwrap();
            if len > 0 {
                check(sys::cuMemsetD8_v2(base + GUARD as u64, UNWRITTEN, len), "filling").unwrap();
            }
        }
        let at = base + GUARD as u64;
        self.buffers.insert(at, len);
        at
    }

    /// All bytes of the buffer at `at`.
    pub(crate) fn download(&self, at: u64) -> Vec<u8> {
        self.intact(at).unwrap();
        read(at, self.buffers[&at])
    }

    /// Runs a kernel to its end; `params` is the parameter buffer in C's layout.
    pub(crate) fn run(
        &mut self,
        entry: &str,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        params: &[u8],
    ) -> Result<(), String> {
        self.start(entry, grid, block, shared, params)?;
        // SAFETY: takes nothing.
        check(unsafe { sys::cuCtxSynchronize() }, entry)?;
        let words = params.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
        for word in words {
            let buffer = self.buffers.range(..=word.saturating_add(GUARD as u64)).next_back();
            if let Some((at, _)) = buffer.filter(|(at, len)| word <= *at + **len as u64) {
                let intact = self.intact(*at);
                self.told |= intact.is_err();
                intact.map_err(|error| format!("{entry}: {error}"))?;
            }
        }
        Ok(())
    }

    /// Asks for a kernel and does not wait for it.
    pub(crate) fn start(
        &mut self,
        entry: &str,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        params: &[u8],
    ) -> Result<(), String> {
        let function = self.function(entry, shared)?;
        launch(function, grid, block, shared, params).map_err(|error| format!("{entry}: {error}"))
    }

    /// Asks for a copy inside the GPU, from and to the first bytes of buffers.
    pub(crate) fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<(), String> {
        assert!(bytes <= self.buffers[&from] && bytes <= self.buffers[&to], "{bytes} bytes are too many");
        // SAFETY: both buffers are as long.
        check(unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, null_mut()) }, "copying inside the GPU")
    }

    /// Repeats the first `len` bytes of a buffer through the rest of it.
    pub(crate) fn spread(&mut self, at: u64, len: usize) -> Result<(), String> {
        let (all, mut done) = (self.buffers[&at], len);
        while done < all {
            let more = done.min(all - done);
            // SAFETY: both ranges are in the buffer, one behind the other.
            let copied = unsafe { sys::cuMemcpyDtoDAsync_v2(at + done as u64, at, more, null_mut()) };
            check(copied, "copying inside the GPU")?;
            done += more;
        }
        Ok(())
    }

    /// The GPU's seconds for what `work` asks for.
    pub(crate) fn time(&mut self, work: impl FnOnce(&mut Self) -> Result<(), String>) -> Result<f64, String> {
        let (mut events, mut milliseconds) = ([null_mut(); 2], 0.0);
        // SAFETY: each call writes one handle or number; events are given back once the last has passed.
        unsafe {
            for event in &mut events {
                check(sys::cuEventCreate(event, 0), "making an event")?;
            }
            check(sys::cuEventRecord(events[0], null_mut()), "recording an event")?;
            work(self)?;
            check(sys::cuEventRecord(events[1], null_mut()), "recording an event")?;
            check(sys::cuEventSynchronize(events[1]), "waiting")?;
            check(sys::cuEventElapsedTime_v2(&mut milliseconds, events[0], events[1]), "measuring")?;
            for event in events {
                let _ = sys::cuEventDestroy_v2(event);
            }
        }
        Ok(f64::from(milliseconds) / 1e3)
    }

    /// The GPU's name.
    pub(crate) fn name(&self) -> String {
        let mut name = [0 as std::ffi::c_char; 128];
        // SAFETY: writes at most 128 characters, the last of them zero.
        unsafe {
            let told = sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, 0);
            if check(told, "").is_ok() {
                CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned()
            } else {
                "?".into()
            }
        }
    }

    /// A kernel that may have `shared` bytes of dynamic shared memory.
    fn function(&self, entry: &str, shared: u32) -> Result<sys::CUfunction, String> {
        let name = CString::new(entry).map_err(|error| error.to_string())?;
        let (mut function, most) =
            (null_mut(), sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
        // SAFETY: writes one handle; modules are loaded as long as `self` is there.
        unsafe {
            let found = sys::cuModuleGetFunction(&mut function, self.module, name.as_ptr());
            check(found, &format!("finding {entry}"))?;
            if shared > SHARED {
                check(sys::cuFuncSetAttribute(function, most, shared as c_int), "asking for shared memory")?;
            }
        }
        Ok(function)
    }

    /// Do both guards of a buffer hold what they held?
    fn intact(&self, at: u64) -> Result<(), String> {
        let len = self.buffers[&at];
        for (which, from) in [("before", at - GUARD as u64), ("behind", at + len as u64)] {
            let guard = read(from, GUARD);
            if let Some(byte) = guard.iter().position(|byte| *byte != CANARY) {
                return Err(format!("byte {byte} of the guard {which} a buffer of {len} bytes was written"));
            }
        }
        Ok(())
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        let damaged: Vec<_> = self.buffers.keys().filter_map(|at| self.intact(*at).err()).collect();
        // SAFETY: nothing runs any more. Failures mean a lost context, where nothing is left to be freed.
        unsafe {
            for at in self.buffers.keys() {
                let _ = sys::cuMemFree_v2(at - GUARD as u64);
            }
            let _ = sys::cuModuleUnload(self.module);
        }
        assert!(damaged.is_empty() || self.told || std::thread::panicking(), "{damaged:?}");
    }
}

fn read(at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    if len == 0 {
        return bytes;
    }
    // SAFETY: whoever calls has as much memory there.
    let copied = unsafe { sys::cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), at, len) };
    // What a failed launch left cannot be read: the test that made it has its message already.
    if let (Err(error), false) = (check(copied, "copying from the GPU"), std::thread::panicking()) {
        panic!("{error}");
    }
    bytes
}

fn launch(
    function: sys::CUfunction,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    params: &[u8],
) -> Result<(), String> {
    let mut len = params.len();
    let name = std::ptr::without_provenance_mut::<c_void>; // the list's names are small numbers
    let mut extra = [name(BUFFER), params.as_ptr().cast_mut().cast(), name(SIZE), (&raw mut len).cast(), name(END)];
    let ([gx, gy, gz], [bx, by, bz]) = (grid, block);
    // SAFETY: the driver reads the parameters during the call; the addresses in them are the caller's buffers.
    let launched = unsafe {
        sys::cuLaunchKernel(function, gx, gy, gz, bx, by, bz, shared, null_mut(), null_mut(), extra.as_mut_ptr())
    };
    check(launched, "launching")
}
