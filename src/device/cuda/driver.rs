//! The driver's functions that are used here, each as one function with an error that is a sentence.
//!
//! One [`Context`] is one GPU's primary context with one stream, on which everything happens in order: memory given back
//! may be given out again at once, for whoever had it is earlier in the stream. This file knows no tensors and no kernels.

use crate::{Code, Error, Result};
use cudarc::driver::sys::{self, CUresult};
use dialoguellm_kernels::cuda::{Launch, Ptr};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;

/// A GPU's primary context and the stream.
pub(super) struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
}

// SAFETY: the handles are the driver's own, which any thread may use while the context is current in it; `bind` sees to
// that, and the driver locks what it must.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// Names in a launch's list: the arguments as one buffer, its size, the list's end (`CU_LAUNCH_PARAM_*` in cuda.h).
const BUFFER: usize = 1;
const SIZE: usize = 2;
const END: usize = 0;

/// What a GPU is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct About {
    /// As its maker calls it.
    pub name: String,
    /// Compute capability: 90 for 9.0.
    pub capability: u32,
}

/// One kernel of a loaded module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Function(sys::CUfunction);
// SAFETY: a handle of the driver's, used only with the context current.
unsafe impl Send for Function {}

/// A loaded image.
pub(super) struct Module(sys::CUmodule);
// SAFETY: a handle of the driver's, used only with the context current.
unsafe impl Send for Module {}
// SAFETY: the driver allows functions to be looked up from several threads.
unsafe impl Sync for Module {}

/// Work that runs again at once.
pub(super) struct Graph(sys::CUgraphExec);
// SAFETY: a handle of the driver's, used only with the context current.
unsafe impl Send for Graph {}

/// A moment in the stream.
pub(super) struct Event(sys::CUevent);
// SAFETY: a handle of the driver's, used only with the context current.
unsafe impl Send for Event {}

/// The driver's CUDA version: 13000 for 13.0. The first call of the driver, with [`device_count`].
pub(super) fn version() -> Result<u32> {
    let mut version = 0;
    // SAFETY: writes one number.
    check(unsafe { sys::cuDriverGetVersion(&mut version) }, "asking for the driver's version")?;
    Ok(version as u32)
}

/// GPUs there are.
pub(super) fn device_count() -> Result<u32> {
    let mut count = 0;
    // SAFETY: takes no pointer.
    check(unsafe { sys::cuInit(0) }, "starting the driver")?;
    // SAFETY: writes one number.
    check(unsafe { sys::cuDeviceGetCount(&mut count) }, "counting GPUs")?;
    Ok(count as u32)
}

fn check(result: CUresult, doing: &str) -> Result<()> {
    if result == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(error(result, doing)) }
}

/// A failure's class and sentence.
fn error(result: CUresult, doing: &str) -> Error {
    let text = format!("CUDA: {doing}: {} ({})", words(result), result as u32);
    match class(result) {
        Code::DeviceLost => Error::new(
            Code::DeviceLost,
            format!("{text}; the GPU is lost to this process, which must be started again"),
        ),
        code => Error::new(code, text),
    }
}

/// Some failures leave the context unusable: everything after them fails too.
fn class(result: CUresult) -> Code {
    match result as u32 {
        2 => Code::OutOfMemory,
        // deinitialised; unavailable; no context; memory errors; context destroyed; failures inside a kernel; unknown
        4 | 46 | 201 | 214 | 220 | 700 | 702 | 709 | 710 | 714..=719 | 999 => Code::DeviceLost,
        _ => Code::Internal,
    }
}

/// The driver's own words.
fn words(result: CUresult) -> String {
    let mut text = std::ptr::null();
    // SAFETY: on success `text` is a string that lives as long as the driver.
    unsafe {
        match sys::cuGetErrorString(result, &mut text) {
            CUresult::CUDA_SUCCESS if !text.is_null() => CStr::from_ptr(text).to_string_lossy().into_owned(),
            _ => "unknown error".to_owned(),
        }
    }
}

impl Context {
    /// The GPU `ordinal` with a new stream.
    pub fn open(ordinal: u32) -> Result<(Self, About)> {
        let (mut device, mut context, mut stream) = (0, null_mut(), null_mut());
        // SAFETY: each writes one handle; a failure leaves nothing behind that must be given back but the context.
        unsafe {
            check(sys::cuDeviceGet(&mut device, ordinal as c_int), "finding the GPU")?;
            check(sys::cuDevicePrimaryCtxRetain(&mut context, device), "opening a context")?;
        }
        let mut opened = Self { device, context, stream };
        opened.bind()?;
        let non_blocking = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes one handle; the context is current.
        check(unsafe { sys::cuStreamCreate(&mut stream, non_blocking) }, "opening a stream")?;
        opened.stream = stream;
        let about = About { name: opened.name()?, capability: opened.capability()? };
        Ok((opened, about))
    }

    fn name(&self) -> Result<String> {
        let mut name = [0 as c_char; 128];
        // SAFETY: writes at most 128 characters, the last of them zero.
        unsafe {
            check(
                sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, self.device),
                "asking for the GPU's name",
            )?;
            Ok(CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned())
        }
    }

    fn capability(&self) -> Result<u32> {
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        };
        let [major, minor] = [MAJOR, MINOR].map(|attribute| {
            let mut value = 0;
            // SAFETY: writes one number.
            let result = unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, self.device) };
            check(result, "asking for the compute capability").map(|()| value as u32)
        });
        Ok(10 * major? + minor?)
    }

    /// The stream, for a library that puts work there.
    pub fn stream(&self) -> sys::CUstream {
        self.stream
    }

    /// Makes the context current in this thread.
    pub fn bind(&self) -> Result<()> {
        // SAFETY: the context is retained until `self` is dropped.
        check(unsafe { sys::cuCtxSetCurrent(self.context) }, "entering the context")
    }

    /// Waits until everything asked for so far is done.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is open.
        check(unsafe { sys::cuStreamSynchronize(self.stream) }, "waiting for the GPU")
    }

    /// New memory, contents unspecified.
    pub fn allocate(&self, bytes: usize) -> Result<Ptr> {
        let mut at = 0;
        // SAFETY: writes one address.
        match unsafe { sys::cuMemAlloc_v2(&mut at, bytes) } {
            CUresult::CUDA_SUCCESS => Ok(Ptr(at)),
            result if class(result) == Code::OutOfMemory => Err(self.full(bytes)),
            result => Err(error(result, &format!("allocating {bytes} bytes"))),
        }
    }

    /// Free bytes and all.
    pub fn memory(&self) -> Result<[usize; 2]> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers.
        check(unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) }, "asking for free memory")?;
        Ok([free, total])
    }

    fn full(&self, wanted: usize) -> Error {
        let rest = match self.memory() {
            Ok([free, total]) => format!("{free} of the GPU's {total} bytes are free"),
            Err(_) => "the GPU is full".to_owned(),
        };
        let text = format!("a tensor of {wanted} bytes was wanted and {rest}; use smaller batches or --device cpu");
        Error::new(Code::OutOfMemory, text)
    }

    /// Gives memory back.
    ///
    /// # Safety
    /// `at` is of [`Context::allocate`], and no work that uses it can still be asked for.
    pub unsafe fn free(&self, at: Ptr) {
        // SAFETY: the caller's promise. A failure means a lost context, where nothing is left to be freed.
        let _ = unsafe { sys::cuMemFree_v2(at.0) };
    }

    /// Host memory that the GPU reads by itself.
    pub fn pinned(&self, bytes: usize) -> Result<*mut u8> {
        let mut at: *mut c_void = null_mut();
        // SAFETY: writes one address.
        check(unsafe { sys::cuMemAllocHost_v2(&mut at, bytes) }, "allocating pinned memory")?;
        Ok(at.cast())
    }

    /// # Safety
    /// `at` is of [`Context::pinned`] and no copy from it is under way.
    pub unsafe fn free_pinned(&self, at: *mut u8) {
        // SAFETY: the caller's promise.
        let _ = unsafe { sys::cuMemFreeHost(at.cast()) };
    }

    /// Copies `bytes` from pinned memory, later.
    ///
    /// # Safety
    /// Both ranges are allocated, and `from` stays as it is until an event after this is reached.
    pub unsafe fn upload(&self, to: Ptr, from: *const u8, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        check(unsafe { sys::cuMemcpyHtoDAsync_v2(to.0, from.cast(), bytes, self.stream) }, "copying to the GPU")
    }

    /// Fills `to` with the bytes at `from`, once everything before is done.
    ///
    /// # Safety
    /// As many bytes are allocated at `from`.
    pub unsafe fn download(&self, to: &mut [u8], from: Ptr) -> Result<()> {
        // SAFETY: the caller's promise; `to` is borrowed until the copy has ended.
        let result = unsafe { sys::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from.0, to.len(), self.stream) };
        let copied = check(result, "copying from the GPU");
        self.synchronize().and(copied)
    }

    /// Copies inside the GPU.
    ///
    /// # Safety
    /// Both ranges are allocated and apart.
    pub unsafe fn copy(&self, to: Ptr, from: Ptr, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        check(unsafe { sys::cuMemcpyDtoDAsync_v2(to.0, from.0, bytes, self.stream) }, "copying inside the GPU")
    }

    /// Fills with zeros.
    ///
    /// # Safety
    /// The range is allocated.
    pub unsafe fn zero(&self, at: Ptr, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        check(unsafe { sys::cuMemsetD8Async(at.0, 0, bytes, self.stream) }, "filling with zeros")
    }

    /// Runs a kernel, later.
    ///
    /// # Safety
    /// The launch is one that the kernel's `cuda.rs` made, of addresses that are allocated as it says.
    pub unsafe fn launch(&self, function: Function, launch: &Launch) -> Result<()> {
        let bytes = launch.args.bytes();
        let mut len = bytes.len();
        let name = std::ptr::without_provenance_mut::<c_void>; // the list's names are small numbers
        let mut extra = [name(BUFFER), bytes.as_ptr().cast_mut().cast(), name(SIZE), (&raw mut len).cast(), name(END)];
        let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
        // SAFETY: the driver reads `bytes` and `len` during the call; the rest is the caller's promise.
        let result = unsafe {
            sys::cuLaunchKernel(
                function.0,
                gx,
                gy,
                gz,
                bx,
                by,
                bz,
                launch.shared,
                self.stream,
                null_mut(),
                extra.as_mut_ptr(),
            )
        };
        if result == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(error(result, &format!("running {}", launch.entry))) }
    }

    /// What `work` asks the stream for, none of it done: to be run by [`Context::replay`].
    pub fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let (mut graph, mut executable) = (null_mut(), null_mut());
        let relaxed = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is open and not captured: only this function does that, and ends it.
        check(unsafe { sys::cuStreamBeginCapture_v2(self.stream, relaxed) }, "beginning a graph")?;
        let asked = work();
        // SAFETY: the stream is captured; writes one handle, or null.
        let ended = check(unsafe { sys::cuStreamEndCapture(self.stream, &mut graph) }, "ending a graph");
        let made = asked.and(ended).and_then(|()| {
            // SAFETY: the graph was just made; writes one handle.
            check(unsafe { sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0) }, "making a graph")
        });
        if !graph.is_null() {
            // SAFETY: nobody else has the graph, and what was made of it is a copy. A failure means a lost context.
            let _ = unsafe { sys::cuGraphDestroy(graph) };
        }
        made.map(|()| Graph(executable))
    }

    /// Asks for a graph's work.
    pub fn replay(&self, graph: &Graph) -> Result<()> {
        // SAFETY: graph and stream are open; what the work asks is what `Queue::push` was promised for the same work.
        check(unsafe { sys::cuGraphLaunch(graph.0, self.stream) }, "running a graph")
    }

    /// Gives a graph back.
    pub fn forget(&self, graph: Graph) {
        // SAFETY: nobody else has the graph; the driver waits for a run that is under way. A failure means a lost context.
        let _ = unsafe { sys::cuGraphExecDestroy(graph.0) };
    }

    /// Loads a cubin, a fatbin or PTX text that ends in a zero.
    pub fn load(&self, image: &[u8]) -> Result<Module> {
        let mut module = null_mut();
        // SAFETY: all three kinds tell their length: in a header, or by the zero at the end.
        check(unsafe { sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) }, "loading kernels")?;
        Ok(Module(module))
    }

    /// Unloads an image.
    ///
    /// # Safety
    /// None of its kernels is running or will be asked for.
    pub unsafe fn unload(&self, module: Module) {
        // SAFETY: the caller's promise. A failure means a lost context.
        let _ = unsafe { sys::cuModuleUnload(module.0) };
    }

    /// A kernel of a module.
    pub fn function(&self, module: &Module, name: &CStr) -> Result<Function> {
        let mut function = null_mut();
        // SAFETY: modules stay loaded as long as the context is retained.
        let result = unsafe { sys::cuModuleGetFunction(&mut function, module.0, name.as_ptr()) };
        check(result, &format!("finding {}", name.to_string_lossy()))?;
        Ok(Function(function))
    }

    /// Lets a kernel have `bytes` of dynamic shared memory, where that is more than every kernel may have.
    pub fn allow_shared(&self, function: Function, bytes: u32) -> Result<()> {
        let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is of a module that is loaded.
        check(unsafe { sys::cuFuncSetAttribute(function.0, most, bytes as c_int) }, "asking for shared memory")
    }

    /// An event that counts as reached until it is recorded.
    pub fn event(&self) -> Result<Event> {
        let mut event = null_mut();
        let plain = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: writes one handle.
        check(unsafe { sys::cuEventCreate(&mut event, plain) }, "making an event")?;
        Ok(Event(event))
    }

    /// Gives an event back.
    pub fn destroy(&self, event: Event) {
        // SAFETY: the event is open and nobody else has it. A failure means a lost context.
        let _ = unsafe { sys::cuEventDestroy_v2(event.0) };
    }

    /// Puts the event behind everything asked for so far.
    pub fn record(&self, event: &Event) -> Result<()> {
        // SAFETY: event and stream are open.
        check(unsafe { sys::cuEventRecord(event.0, self.stream) }, "recording an event")
    }

    /// Waits until the event is reached.
    pub fn wait(&self, event: &Event) -> Result<()> {
        // SAFETY: the event is open.
        check(unsafe { sys::cuEventSynchronize(event.0) }, "waiting for a copy")
    }
}

impl Drop for Context {
    /// Whoever holds memory holds the context, so by now all of it went back. Failures would change nothing any more.
    fn drop(&mut self) {
        let _ = self.bind();
        // SAFETY: nobody else has the handles; a stream that was never opened is null.
        unsafe {
            if !self.stream.is_null() {
                let _ = sys::cuStreamDestroy_v2(self.stream);
            }
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_have_the_class_that_a_caller_may_act_on() {
        assert_eq!(class(CUresult::CUDA_ERROR_OUT_OF_MEMORY), Code::OutOfMemory);
        assert_eq!(class(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS), Code::DeviceLost);
        assert_eq!(class(CUresult::CUDA_ERROR_ECC_UNCORRECTABLE), Code::DeviceLost);
        assert_eq!(class(CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES), Code::Internal);
    }
}
