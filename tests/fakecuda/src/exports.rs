//! The functions by the names and in the C form of `cuda.h`; what each does is said there and in the driver's manual.

use crate::codes::{Answer, Code};
use crate::driver::{Driver, SHARED_MAX, Task};
use crate::failures::Class;
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A handle: a number that [`Driver`] knows, never an address.
pub(crate) type Handle = *mut c_void;

/// The only context.
const CONTEXT: usize = 0x100;
/// The only pool that is there from the start.
const POOL: usize = 0x200;
const VERSION: c_int = 13_000;

static DRIVER: Mutex<Option<Driver>> = Mutex::new(None);

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

fn lock() -> MutexGuard<'static, Option<Driver>> {
    DRIVER.lock().unwrap_or_else(PoisonError::into_inner)
}

fn number(answer: Answer) -> u32 {
    answer.map_or_else(|code| code.0, |()| 0)
}

/// Any call after `cuInit`.
fn after_init(call: impl FnOnce(&mut Driver) -> Answer) -> u32 {
    let call = || call(lock().as_mut().ok_or(Code::NOT_INITIALIZED)?);
    number(catch_unwind(AssertUnwindSafe(call)).unwrap_or(Err(Code::UNKNOWN)))
}

/// A call of a thread with a context, on a device that is not lost.
pub(crate) fn with_context(call: impl FnOnce(&mut Driver) -> Answer) -> u32 {
    after_init(|driver| {
        driver.lost()?;
        if CURRENT.get() == CONTEXT { call(driver) } else { Err(Code::INVALID_CONTEXT) }
    })
}

/// Writes through a pointer that the caller gave for an answer.
///
/// # Safety
/// `to` is null or points to room for a `T`.
pub(crate) unsafe fn put<T>(to: *mut T, value: T) -> Answer {
    if to.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: not null, so room for a T as the caller promises; no alignment is assumed.
    unsafe { to.write_unaligned(value) };
    Ok(())
}

/// # Safety
/// `text` is null or ends in a zero byte.
unsafe fn text<'a>(text: *const c_char) -> Answer<&'a str> {
    if text.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: not null, so it ends in a zero byte as the caller promises.
    unsafe { CStr::from_ptr(text) }.to_str().map_err(|_| Code::INVALID_VALUE)
}

fn handle(number: u64) -> Handle {
    number as Handle
}

/// Defines exported functions whose body answers an [`Answer`]; the body may dereference what C hands over.
macro_rules! export {
    ($enter:ident: $($name:ident($($argument:ident: $type:ty),*) |$driver:ident| $body:block)*) => {$(
        /// As in `cuda.h`.
        ///
        /// # Safety
        /// Pointers are null or what the driver's manual wants them to be.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> u32 {
            #[allow(unused_unsafe)]
            // SAFETY: pointers are as the caller of this function promises.
            $enter(|$driver| unsafe { $body })
        }
    )*};
}

/// Of no real driver: counts the calls of a class anew, lets the `at`-th from now answer `code`, none for 0, and returns
/// how many were counted, so that a process can let each of its calls fail. `u64::MAX`: no such class, or before `cuInit`.
///
/// # Safety
/// `class` is a C string: one of the names in `FAKECUDA_FAIL`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fakecuda_fail(class: *const c_char, at: u64, code: c_uint) -> u64 {
    // SAFETY: the caller's promise.
    let class = unsafe { CStr::from_ptr(class) }.to_str().ok().and_then(Class::named);
    let counted = class.and_then(|class| lock().as_mut().map(|driver| driver.fail(class, at, Code(code))));
    counted.unwrap_or(u64::MAX)
}

/// As in `cuda.h`.
#[unsafe(no_mangle)]
pub extern "C" fn cuInit(flags: c_uint) -> u32 {
    if flags != 0 {
        return Code::INVALID_VALUE.0;
    }
    lock().get_or_insert_with(Driver::from_env);
    0
}

/// As in `cuda.h`.
///
/// # Safety
/// `version` is null or points to room for a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> u32 {
    // SAFETY: as the caller promises.
    number(unsafe { put(version, VERSION) })
}

/// Undocumented tables of functions, of which this driver has none. NVRTC looks for one and takes no for an answer, but
/// crashes where it cannot ask.
#[unsafe(no_mangle)]
pub extern "C" fn cuGetExportTable(_table: *mut *const c_void, _id: *const c_void) -> u32 {
    Code::INVALID_VALUE.0
}

/// As in `cuda.h`.
///
/// # Safety
/// `name` is null or points to room for an address.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(error: u32, name: *mut *const c_char) -> u32 {
    let known = Code::describe(error).ok_or(Code::INVALID_VALUE);
    // SAFETY: as the caller promises.
    number(known.and_then(|(constant, _)| unsafe { put(name, constant.as_ptr()) }))
}

/// As in `cuda.h`.
///
/// # Safety
/// `string` is null or points to room for an address.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(error: u32, string: *mut *const c_char) -> u32 {
    let known = Code::describe(error).ok_or(Code::INVALID_VALUE);
    // SAFETY: as the caller promises.
    number(known.and_then(|(_, sentence)| unsafe { put(string, sentence.as_ptr()) }))
}

fn device(ordinal: c_int) -> Answer {
    if ordinal == 0 { Ok(()) } else { Err(Code::INVALID_DEVICE) }
}

/// Values of `CUdevice_attribute`: an A100's where a program may ask, 0 for all that is not there.
fn attribute(number: c_int) -> c_int {
    match number {
        1..=3 => 1024,                     // threads of a block, in x, in y
        4 => 64,                           // in z
        5 => c_int::MAX,                   // blocks in x
        6 | 7 => 65_535,                   // in y, in z
        8 => 48 << 10,                     // shared memory of a block without asking
        9 => 64 << 10,                     // constant memory
        10 => 32,                          // lanes of a warp
        12 | 82 => 65_536,                 // registers of a block, of a multiprocessor
        13 => 1_410_000,                   // kHz
        14 => 512,                         // texture alignment
        16 => 108,                         // multiprocessors
        19 | 31 | 41 | 78..=80 | 115 => 1, // mapped host memory, concurrent kernels, unified addresses, priorities, caches, pools
        36 => 1_215_000,                   // memory's kHz
        37 => 5120,                        // its bits
        38 => 40 << 20,                    // L2
        39 => 2048,                        // threads of a multiprocessor
        40 => 2,                           // copy engines
        75 => 8,                           // compute capability
        81 => 164 << 10,                   // shared memory of a multiprocessor
        97 => SHARED_MAX as c_int,         // of a block that asks
        106 => 32,                         // blocks of a multiprocessor
        111 => 1 << 10,                    // shared memory that the system keeps
        _ => 0,
    }
}

export! { after_init:
    cuDeviceGetCount(count: *mut c_int) |_driver| { put(count, 1) }
    cuDeviceGet(out: *mut c_int, ordinal: c_int) |_driver| { device(ordinal)?; put(out, 0) }
    cuDeviceGetName(name: *mut c_char, len: c_int, ordinal: c_int) |_driver| {
        device(ordinal)?;
        let full = c"PTX interpreter".to_bytes_with_nul();
        let len = usize::try_from(len).map_err(|_| Code::INVALID_VALUE)?;
        if name.is_null() || len == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let room = std::slice::from_raw_parts_mut(name.cast::<u8>(), len);
        let kept = full.len().min(len);
        room[..kept].copy_from_slice(&full[..kept]);
        room[kept - 1] = 0;
        Ok(())
    }
    cuDeviceGetUuid_v2(uuid: *mut [u8; 16], ordinal: c_int) |_driver| { device(ordinal)?; put(uuid, *b"PTX interpreter\0") }
    cuDeviceGetUuid(uuid: *mut [u8; 16], ordinal: c_int) |_driver| { device(ordinal)?; put(uuid, *b"PTX interpreter\0") }
    cuDeviceTotalMem_v2(bytes: *mut usize, ordinal: c_int) |driver| { device(ordinal)?; put(bytes, driver.info().1) }
    cuDeviceGetAttribute(value: *mut c_int, number: c_int, ordinal: c_int) |_driver| {
        device(ordinal)?;
        put(value, attribute(number))
    }
    cuDevicePrimaryCtxRetain(context: *mut Handle, ordinal: c_int) |_driver| {
        device(ordinal)?;
        put(context, CONTEXT as Handle)
    }
    cuDevicePrimaryCtxRelease_v2(ordinal: c_int) |_driver| { device(ordinal) }
    cuDevicePrimaryCtxSetFlags_v2(ordinal: c_int, _flags: c_uint) |_driver| { device(ordinal) }
    cuDevicePrimaryCtxGetState(ordinal: c_int, flags: *mut c_uint, active: *mut c_int) |_driver| {
        device(ordinal)?;
        put(flags, 0)?;
        put(active, 1)
    }
    cuDeviceGetDefaultMemPool(pool: *mut Handle, ordinal: c_int) |_driver| { device(ordinal)?; put(pool, POOL as Handle) }
    cuDeviceGetMemPool(pool: *mut Handle, ordinal: c_int) |_driver| { device(ordinal)?; put(pool, POOL as Handle) }
    cuDeviceSetMemPool(ordinal: c_int, _pool: Handle) |_driver| { device(ordinal) }
    cuCtxSetCurrent(context: Handle) |_driver| {
        if ![0, CONTEXT].contains(&(context as usize)) {
            return Err(Code::INVALID_CONTEXT);
        }
        CURRENT.set(context as usize);
        Ok(())
    }
    cuCtxGetCurrent(context: *mut Handle) |_driver| { put(context, CURRENT.get() as Handle) }
    cuCtxPushCurrent_v2(context: Handle) |_driver| {
        if context as usize != CONTEXT {
            return Err(Code::INVALID_CONTEXT);
        }
        CURRENT.set(CONTEXT);
        Ok(())
    }
    cuCtxPopCurrent_v2(context: *mut Handle) |_driver| { put(context, CURRENT.replace(0) as Handle) }
}

export! { with_context:
    cuCtxGetDevice(ordinal: *mut c_int) |_driver| { put(ordinal, 0) }
    cuCtxSetFlags(_flags: c_uint) |_driver| { Ok(()) }
    cuCtxSetLimit(_limit: c_uint, _value: usize) |_driver| { Ok(()) }
    cuCtxSetCacheConfig(_config: c_uint) |_driver| { Ok(()) }
    cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) |_driver| { put(least, 0)?; put(greatest, 0) }
    cuCtxSynchronize() |driver| { driver.synchronize() }

    cuMemGetInfo_v2(free: *mut usize, total: *mut usize) |driver| {
        put(free, driver.info().0)?;
        put(total, driver.info().1)
    }
    cuMemAlloc_v2(at: *mut u64, len: usize) |driver| { driver.unless_captured()?; put(at, driver.alloc(len)?) }
    cuMemAllocAsync(at: *mut u64, len: usize, _stream: Handle) |driver| {
        driver.unless_captured()?;
        put(at, driver.alloc(len)?)
    }
    cuMemAllocFromPoolAsync(at: *mut u64, len: usize, _pool: Handle, _stream: Handle) |driver| {
        driver.unless_captured()?;
        put(at, driver.alloc(len)?)
    }
    cuMemFree_v2(at: u64) |driver| { driver.unless_captured()?; driver.free(at) }
    cuMemFreeAsync(at: u64, _stream: Handle) |driver| { driver.unless_captured()?; driver.free(at) }
    cuMemGetAddressRange_v2(base: *mut u64, size: *mut usize, at: u64) |driver| {
        let (start, len) = driver.range(at)?;
        if !base.is_null() {
            put(base, start)?;
        }
        if size.is_null() { Ok(()) } else { put(size, len) }
    }
    cuMemHostAlloc(at: *mut *mut c_void, len: usize, _flags: c_uint) |_driver| { put(at, pin(len)?) }
    cuMemAllocHost_v2(at: *mut *mut c_void, len: usize) |_driver| { put(at, pin(len)?) }
    cuMemFreeHost(at: *mut c_void) |_driver| { unpin(at) }
    cuMemHostRegister_v2(_at: *mut c_void, _len: usize, _flags: c_uint) |_driver| { Ok(()) }
    cuMemHostUnregister(_at: *mut c_void) |_driver| { Ok(()) }
    cuMemPoolSetAttribute(_pool: Handle, _attribute: c_uint, _value: *mut c_void) |_driver| { Ok(()) }
    cuMemPoolGetAttribute(_pool: Handle, attribute: c_uint, value: *mut c_void) |driver| {
        match attribute {
            1..=3 => put(value.cast::<c_int>(), 1),              // what may be reused
            5..=8 => put(value.cast::<u64>(), driver.used() as u64), // reserved and used, now and at most
            _ => put(value.cast::<u64>(), 0),
        }
    }
    cuMemPoolTrimTo(_pool: Handle, _keep: usize) |_driver| { Ok(()) }
    cuMemPoolCreate(pool: *mut Handle, _properties: *const c_void) |driver| { put(pool, handle(driver.new_pool())) }
    cuMemPoolDestroy(pool: Handle) |driver| { driver.destroy_pool(pool as u64) }

    cuMemcpyHtoD_v2(to: u64, from: *const c_void, len: usize) |driver| {
        driver.submit_and_wait(Task::Upload { to, from: from as usize, len })
    }
    cuMemcpyDtoH_v2(to: *mut c_void, from: u64, len: usize) |driver| {
        driver.submit_and_wait(Task::Download { to: to as usize, from, len })
    }
    cuMemcpyDtoD_v2(to: u64, from: u64, len: usize) |driver| { driver.submit_and_wait(Task::Copy { to, from, len }) }
    cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, len: usize, stream: Handle) |driver| {
        driver.submit(stream as u64, Task::Upload { to, from: from as usize, len })
    }
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, len: usize, stream: Handle) |driver| {
        driver.submit(stream as u64, Task::Download { to: to as usize, from, len })
    }
    cuMemcpyDtoDAsync_v2(to: u64, from: u64, len: usize, stream: Handle) |driver| {
        driver.submit(stream as u64, Task::Copy { to, from, len })
    }
    cuMemsetD8_v2(to: u64, value: u8, count: usize) |driver| {
        driver.submit_and_wait(Task::Fill { to, pattern: vec![value], count })
    }
    cuMemsetD8Async(to: u64, value: u8, count: usize, stream: Handle) |driver| {
        driver.submit(stream as u64, Task::Fill { to, pattern: vec![value], count })
    }
    cuMemsetD16_v2(to: u64, value: u16, count: usize) |driver| {
        driver.submit_and_wait(Task::Fill { to, pattern: value.to_le_bytes().to_vec(), count })
    }
    cuMemsetD16Async(to: u64, value: u16, count: usize, stream: Handle) |driver| {
        driver.submit(stream as u64, Task::Fill { to, pattern: value.to_le_bytes().to_vec(), count })
    }
    cuMemsetD32_v2(to: u64, value: u32, count: usize) |driver| {
        driver.submit_and_wait(Task::Fill { to, pattern: value.to_le_bytes().to_vec(), count })
    }
    cuMemsetD32Async(to: u64, value: u32, count: usize, stream: Handle) |driver| {
        driver.submit(stream as u64, Task::Fill { to, pattern: value.to_le_bytes().to_vec(), count })
    }

    cuModuleLoadData(module: *mut Handle, image: *const c_void) |driver| { load(driver, module, image, None) }
    cuModuleLoadDataEx(
        module: *mut Handle, image: *const c_void, count: c_uint, options: *const c_uint, values: *const *mut c_void
    ) |driver| {
        let option = |wanted: c_uint| (0..count as usize).find(|&i| *options.add(i) == wanted).map(|i| *values.add(i));
        let log = option(ERROR_LOG).zip(option(ERROR_LOG_BYTES)).map(|(log, len)| (log.cast::<u8>(), len as usize));
        load(driver, module, image, log)
    }
    cuModuleUnload(module: Handle) |driver| { driver.unload(module as u64) }
    cuModuleGetFunction(function: *mut Handle, module: Handle, name: *const c_char) |driver| {
        put(function, handle(driver.function(module as u64, text(name)?)?))
    }
    cuModuleGetGlobal_v2(at: *mut u64, size: *mut usize, module: Handle, name: *const c_char) |driver| {
        let (start, len) = driver.global(module as u64, text(name)?)?;
        put(at, start)?;
        if size.is_null() { Ok(()) } else { put(size, len) }
    }
    cuFuncSetAttribute(function: Handle, attribute: c_uint, value: c_int) |driver| {
        if attribute == MAX_DYNAMIC_SHARED { driver.allow_shared(function as u64, value) } else { Ok(()) }
    }
    cuFuncGetAttribute(value: *mut c_int, attribute: c_uint, function: Handle) |driver| {
        let shared = driver.get(function as u64)?.shared_max();
        put(value, match attribute {
            0 => 1024,
            MAX_DYNAMIC_SHARED => shared as c_int,
            _ => 0,
        })
    }
    cuFuncSetCacheConfig(_function: Handle, _config: c_uint) |_driver| { Ok(()) }
    cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks: *mut c_int, _function: Handle, threads: c_int, _shared: usize) |_driver| {
        put(blocks, (2048 / threads.max(32)).clamp(1, 32))
    }

    cuLaunchKernel(
        function: Handle, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint,
        block_z: c_uint, shared: c_uint, stream: Handle, params: *mut *mut c_void, extra: *mut *mut c_void
    ) |driver| {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        launch(driver, function, grid, block, shared, stream, params, extra)
    }
    cuLaunchKernelEx(config: *const LaunchConfig, function: Handle, params: *mut *mut c_void, extra: *mut *mut c_void) |driver| {
        let config = config.as_ref().ok_or(Code::INVALID_VALUE)?;
        launch(driver, function, config.grid, config.block, config.shared, config.stream, params, extra)
    }
    cuLaunchHostFunc(stream: Handle, function: extern "C" fn(*mut c_void), data: *mut c_void) |driver| {
        driver.submit(stream as u64, Task::Host { function, data: data as usize })
    }

    cuStreamCreate(stream: *mut Handle, _flags: c_uint) |driver| { put(stream, handle(driver.new_stream())) }
    cuStreamCreateWithPriority(stream: *mut Handle, _flags: c_uint, _priority: c_int) |driver| {
        put(stream, handle(driver.new_stream()))
    }
    cuStreamDestroy_v2(stream: Handle) |driver| { driver.destroy_stream(stream as u64) }
    cuStreamSynchronize(stream: Handle) |driver| { driver.await_stream(stream as u64) }
    cuStreamQuery(stream: Handle) |driver| { driver.capture_status(stream as u64).map(|_| ()) }
    cuStreamWaitEvent(stream: Handle, event: Handle, _flags: c_uint) |driver| {
        driver.wait_event(stream as u64, event as u64)
    }
    cuEventCreate(event: *mut Handle, _flags: c_uint) |driver| { put(event, handle(driver.new_event())) }
    cuEventDestroy_v2(event: Handle) |driver| { driver.destroy_event(event as u64) }
    cuEventRecord(event: Handle, stream: Handle) |driver| { driver.record(event as u64, stream as u64) }
    cuEventQuery(event: Handle) |driver| { driver.elapsed(event as u64, event as u64).map(|_| ()) }
    cuEventSynchronize(event: Handle) |driver| { driver.await_event(event as u64) }
    cuEventElapsedTime(milliseconds: *mut f32, start: Handle, end: Handle) |driver| {
        put(milliseconds, driver.elapsed(start as u64, end as u64)?)
    }
    cuEventElapsedTime_v2(milliseconds: *mut f32, start: Handle, end: Handle) |driver| {
        put(milliseconds, driver.elapsed(start as u64, end as u64)?)
    }

    cuStreamBeginCapture_v2(stream: Handle, mode: c_uint) |driver| { driver.begin_capture(stream as u64, mode) }
    cuStreamEndCapture(stream: Handle, graph: *mut Handle) |driver| {
        put(graph, handle(driver.end_capture(stream as u64)?))
    }
    cuStreamIsCapturing(stream: Handle, status: *mut c_uint) |driver| { put(status, driver.capture_status(stream as u64)?) }
    cuGraphInstantiateWithFlags(executable: *mut Handle, graph: Handle, _flags: u64) |driver| {
        put(executable, handle(driver.instantiate(graph as u64)?))
    }
    cuGraphGetNodes(graph: Handle, _nodes: *mut Handle, count: *mut usize) |driver| {
        put(count, driver.graph_len(graph as u64)?)
    }
    cuGraphExecUpdate_v2(executable: Handle, graph: Handle, info: *mut c_uint) |driver| {
        let answer = driver.update(executable as u64, graph as u64);
        // The info begins with what came of it: 0 or, without a reason, 1.
        if !info.is_null() {
            put(info, u32::from(answer.is_err()))?;
        }
        answer
    }
    cuGraphUpload(_executable: Handle, _stream: Handle) |_driver| { Ok(()) }
    cuGraphLaunch(executable: Handle, stream: Handle) |driver| { driver.replay(executable as u64, stream as u64) }
    cuGraphDestroy(graph: Handle) |driver| { driver.destroy_graph(graph as u64) }
    cuGraphExecDestroy(executable: Handle) |driver| { driver.destroy_executable(executable as u64) }
    cuProfilerStart() |_driver| { Ok(()) }
    cuProfilerStop() |_driver| { Ok(()) }
}

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
const MAX_DYNAMIC_SHARED: c_uint = 8;
/// `CU_JIT_ERROR_LOG_BUFFER` and its size.
const ERROR_LOG: c_uint = 5;
const ERROR_LOG_BYTES: c_uint = 6;

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Debug)]
pub struct LaunchConfig {
    /// Blocks.
    pub grid: [c_uint; 3],
    /// Threads.
    pub block: [c_uint; 3],
    /// Dynamic shared memory, bytes.
    pub shared: c_uint,
    /// The stream.
    pub stream: Handle,
    /// Attributes: none is known here, all are passed over.
    pub attributes: *mut c_void,
    /// How many.
    pub attribute_count: c_uint,
}

/// # Safety
/// `image` is null, or starts with the magic number of a binary image, or ends in a zero byte; `log` has its length.
unsafe fn load(
    driver: &mut Driver,
    module: *mut Handle,
    image: *const c_void,
    log: Option<(*mut u8, usize)>,
) -> Answer {
    const FATBIN: u32 = 0xba55_ed50;
    const FATBIN_WRAPPER: u32 = 0x4662_43b1;
    const ELF: u32 = u32::from_le_bytes(*b"\x7fELF");
    if image.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: an image has at least four bytes, or ends in a zero byte before, which no magic number holds.
    let ptx = unsafe { CStr::from_ptr(image.cast()) }.to_bytes();
    if let Some(magic) = ptx.first_chunk()
        && [FATBIN, FATBIN_WRAPPER, ELF].contains(&u32::from_le_bytes(*magic))
    {
        return Err(Code::NO_BINARY_FOR_GPU);
    }
    let (loaded, error) = driver.load(ptx)?;
    let Some(error) = error else {
        // SAFETY: as the caller promises.
        return unsafe { put(module, handle(loaded)) };
    };
    eprintln!("fakecuda: {error}");
    if let Some((log, len)) = log.filter(|(log, len)| !log.is_null() && *len > 0) {
        let kept = error.len().min(len - 1);
        // SAFETY: the log has room for len bytes, as the caller promises.
        unsafe {
            log.copy_from_nonoverlapping(error.as_ptr(), kept);
            log.add(kept).write(0);
        }
    }
    Err(Code::INVALID_PTX)
}

/// # Safety
/// `params` or `extra` are null or as the manual of `cuLaunchKernel` wants them.
unsafe fn launch(
    driver: &mut Driver,
    function: Handle,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: Handle,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Answer {
    let function = driver.get(function as u64)?;
    let layout = function.params();
    let mut buffer = vec![0; layout.last().map_or(0, |(offset, size)| offset + size)];
    if !params.is_null() {
        for (i, &(offset, size)) in layout.iter().enumerate() {
            // SAFETY: one address for each parameter, of a value of its size.
            unsafe { (*params.add(i)).cast::<u8>().copy_to_nonoverlapping(buffer[offset..].as_mut_ptr(), size) };
        }
    } else if !extra.is_null() {
        // SAFETY: as the caller promises.
        let given = unsafe { extra_buffer(extra)? };
        let wanted = given.get(..buffer.len()).ok_or(Code::INVALID_VALUE)?;
        buffer.copy_from_slice(wanted);
    } else if !layout.is_empty() {
        return Err(Code::INVALID_VALUE);
    }
    driver.submit(stream as u64, Task::Launch { function, grid, block, shared, params: buffer })
}

/// The parameter buffer of a list of key and value that ends in `CU_LAUNCH_PARAM_END`.
///
/// # Safety
/// `extra` is such a list.
unsafe fn extra_buffer<'a>(extra: *mut *mut c_void) -> Answer<&'a [u8]> {
    const END: usize = 0;
    const BUFFER_POINTER: usize = 1;
    const BUFFER_SIZE: usize = 2;
    let (mut at, mut pointer, mut size) = (extra, std::ptr::null(), 0);
    loop {
        // SAFETY: the list has not ended yet; the size's value is the address of a size.
        unsafe {
            match *at as usize {
                END => break,
                BUFFER_POINTER => pointer = *at.add(1) as *const u8,
                BUFFER_SIZE => size = *(*at.add(1) as *const usize),
                _ => return Err(Code::INVALID_VALUE),
            }
            at = at.add(2);
        }
    }
    if pointer.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: the buffer has that size.
    Ok(unsafe { std::slice::from_raw_parts(pointer, size) })
}

/// Pinned memory's addresses and sizes.
static PINNED: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());

fn layout(len: usize) -> Answer<std::alloc::Layout> {
    std::alloc::Layout::from_size_align(len.max(1), 4096).map_err(|_| Code::OUT_OF_MEMORY)
}

fn pin(len: usize) -> Answer<*mut c_void> {
    // SAFETY: the layout's size is not 0.
    let at = unsafe { std::alloc::alloc(layout(len)?) };
    if at.is_null() {
        return Err(Code::OUT_OF_MEMORY);
    }
    PINNED.lock().unwrap_or_else(PoisonError::into_inner).push((at as usize, len));
    Ok(at.cast())
}

fn unpin(at: *mut c_void) -> Answer {
    let mut pinned = PINNED.lock().unwrap_or_else(PoisonError::into_inner);
    let index = pinned.iter().position(|&(start, _)| start == at as usize).ok_or(Code::INVALID_VALUE)?;
    let (_, len) = pinned.swap_remove(index);
    // SAFETY: pin allocated it with this layout, and it is freed once.
    unsafe { std::alloc::dealloc(at.cast(), layout(len)?) };
    Ok(())
}
