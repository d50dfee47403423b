//! The driver's functions called as C does.

mod common;

use common::{in_a_process, ptx};
use fakecuda::*;
use std::ffi::{CStr, CString, c_void};
use std::ptr::{null, null_mut};

type Handle = *mut c_void;

const INVALID_VALUE: u32 = 1;
const OUT_OF_MEMORY: u32 = 2;
const NOT_INITIALIZED: u32 = 3;
const INVALID_CONTEXT: u32 = 201;
const NO_BINARY_FOR_GPU: u32 = 209;
const INVALID_PTX: u32 = 218;
const INVALID_HANDLE: u32 = 400;
const NOT_FOUND: u32 = 500;
const ILLEGAL_ADDRESS: u32 = 700;
const LAUNCH_FAILED: u32 = 719;
const CAPTURE_UNSUPPORTED: u32 = 900;
const CAPTURE_INVALIDATED: u32 = 901;
const GRAPH_EXEC_UPDATE_FAILURE: u32 = 910;

/// Asserts success of a call; its answer through a last argument that is filled in.
macro_rules! ok {
    ($function:ident($($argument:expr),*)) => {
        // SAFETY: every pointer handed over is null or to a value of the type that is wanted.
        assert_eq!(unsafe { $function($($argument),*) }, 0, stringify!($function))
    };
}
macro_rules! fails {
    ($code:expr, $function:ident($($argument:expr),*)) => {
        // SAFETY: as above.
        assert_eq!(unsafe { $function($($argument),*) }, $code, stringify!($function))
    };
}

fn start() {
    assert_eq!(cuInit(0), 0);
    let mut context = null_mut();
    ok!(cuDevicePrimaryCtxRetain(&mut context, 0));
    ok!(cuCtxSetCurrent(context));
}

fn alloc(len: usize) -> u64 {
    let mut at = 0;
    ok!(cuMemAlloc_v2(&mut at, len));
    at
}

fn upload(values: &[f32]) -> u64 {
    let at = alloc(size_of_val(values));
    ok!(cuMemcpyHtoD_v2(at, values.as_ptr().cast(), size_of_val(values)));
    at
}

fn download(at: u64, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    ok!(cuMemcpyDtoH_v2(values.as_mut_ptr().cast(), at, len * 4));
    values
}

fn module(ptx: &str) -> Handle {
    let (mut module, text) = (null_mut(), CString::new(ptx).unwrap());
    ok!(cuModuleLoadData(&mut module, text.as_ptr().cast()));
    module
}

fn function(module: Handle, name: &CStr) -> Handle {
    let mut function = null_mut();
    ok!(cuModuleGetFunction(&mut function, module, name.as_ptr()));
    function
}

fn stream() -> Handle {
    let mut stream = null_mut();
    ok!(cuStreamCreate(&mut stream, 1));
    stream
}

/// Launches one block of 32 threads with these parameters.
fn launch(function: Handle, stream: Handle, params: &mut [*mut c_void]) -> u32 {
    // SAFETY: the parameters are those of the kernel.
    unsafe { cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, stream, params.as_mut_ptr(), null_mut()) }
}

/// y = x * by + 1 of 32 numbers.
fn scale(function: Handle, stream: Handle, mut y: u64, mut x: u64, mut by: f32) -> u32 {
    let mut len = 32u32;
    let params = [(&raw mut y).cast(), (&raw mut x).cast(), (&raw mut by).cast(), (&raw mut len).cast::<c_void>()];
    launch(function, stream, &mut { params })
}

#[test]
fn it_says_what_it_is() {
    if in_a_process("it_says_what_it_is", &[]).is_some() {
        return;
    }
    let (mut number, mut text, mut name) = (0, null(), [0; 32]);
    fails!(NOT_INITIALIZED, cuDeviceGetCount(&mut number));
    assert_eq!((cuInit(1), cuInit(0)), (INVALID_VALUE, 0));
    ok!(cuDriverGetVersion(&mut number));
    assert_eq!(number, 13_000);
    ok!(cuDeviceGetCount(&mut number));
    assert_eq!(number, 1);
    ok!(cuDeviceGetName(name.as_mut_ptr(), 32, 0));
    // SAFETY: the driver ends the name in a zero byte, and the texts below live as long as the program.
    assert_eq!(unsafe { CStr::from_ptr(name.as_ptr()) }, c"PTX interpreter");
    let capability = [75, 76].map(|attribute| {
        ok!(cuDeviceGetAttribute(&mut number, attribute, 0));
        number
    });
    assert_eq!(capability, [8, 0]);
    ok!(cuGetErrorName(2, &mut text));
    // SAFETY: as above.
    assert_eq!(unsafe { CStr::from_ptr(text) }, c"CUDA_ERROR_OUT_OF_MEMORY");
    ok!(cuGetErrorString(719, &mut text));
    // SAFETY: as above.
    assert_eq!(unsafe { CStr::from_ptr(text) }, c"unspecified launch failure");
    fails!(INVALID_VALUE, cuGetErrorName(12345, &mut text));
    let mut at = 0;
    fails!(INVALID_CONTEXT, cuMemAlloc_v2(&mut at, 4));
}

#[test]
fn memory_is_counted_and_wrong_addresses_are_errors() {
    if in_a_process("memory_is_counted_and_wrong_addresses_are_errors", &[("FAKECUDA_MEMORY", "4096")]).is_some() {
        return;
    }
    start();
    let (mut free, mut total, mut at) = (0, 0, 0);
    let (a, b) = (alloc(1000), alloc(512));
    ok!(cuMemGetInfo_v2(&mut free, &mut total));
    assert_eq!((free, total), (4096 - 1024 - 512, 4096));
    fails!(OUT_OF_MEMORY, cuMemAlloc_v2(&mut at, 2561));
    fails!(OUT_OF_MEMORY, cuMemAlloc_v2(&mut at, usize::MAX));
    fails!(INVALID_VALUE, cuMemAlloc_v2(&mut at, 0));
    ok!(cuMemAllocAsync(&mut at, 2560, null_mut()));
    ok!(cuMemFreeAsync(at, null_mut()));
    fails!(INVALID_VALUE, cuMemFree_v2(at));
    fails!(INVALID_VALUE, cuMemFree_v2(a + 4));
    fails!(INVALID_VALUE, cuMemcpyHtoD_v2(a + 998, [0u8; 4].as_ptr().cast(), 4));
    fails!(INVALID_VALUE, cuMemsetD8_v2(0x1234, 0, 4));
    ok!(cuMemsetD32_v2(b, 0x3f80_0000, 128));
    ok!(cuMemcpyDtoD_v2(a, b + 8, 12));
    assert_eq!(download(a, 3), [1.0; 3]);
    let (mut base, mut size) = (0, 0);
    ok!(cuMemGetAddressRange_v2(&mut base, &mut size, a + 700));
    assert_eq!((base, size), (a, 1024));
    ok!(cuMemFree_v2(a));
    fails!(INVALID_VALUE, cuMemcpyDtoD_v2(b, a, 4));
    let mut pinned = null_mut();
    ok!(cuMemHostAlloc(&mut pinned, 64, 0));
    ok!(cuMemcpyDtoH_v2(pinned, b, 64));
    ok!(cuMemFreeHost(pinned));
    fails!(INVALID_VALUE, cuMemFreeHost(pinned));
    fails!(INVALID_HANDLE, cuStreamSynchronize(0x77 as Handle));
    fails!(INVALID_HANDLE, cuModuleUnload(null_mut()));
}

#[test]
fn kernels_are_launched_in_both_ways() {
    if in_a_process("kernels_are_launched_in_both_ways", &[]).is_some() {
        return;
    }
    let Some(ptx) = ptx("kernels_are_launched_in_both_ways") else { return };
    start();
    let (module, stream, mut other) = (module(&ptx), stream(), null_mut());
    fails!(NOT_FOUND, cuModuleGetFunction(&mut other, module, c"nothing".as_ptr()));
    let kernel = function(module, c"scale");
    let x: Vec<f32> = (0..32).map(|i| i as f32).collect();
    let (px, py) = (upload(&x), alloc(128));
    assert_eq!(scale(kernel, stream, py, px, 2.0), 0);
    assert_eq!(download(py, 32), x.iter().map(|x| 2.0 * x + 1.0).collect::<Vec<_>>());

    // The module's variable, and the parameters in one buffer.
    let (mut at, mut size) = (0, 0);
    ok!(cuModuleGetGlobal_v2(&mut at, &mut size, module, c"offsets".as_ptr()));
    ok!(cuMemcpyHtoD_v2(at, (&raw const x[5]).cast(), 4));
    let mut buffer: Vec<u8> = [py.to_le_bytes(), px.to_le_bytes()].concat();
    buffer.extend([3.0f32.to_le_bytes(), 32u32.to_le_bytes()].concat());
    let mut len = buffer.len();
    let mut extra = [1 as Handle, buffer.as_mut_ptr().cast(), 2 as Handle, (&raw mut len).cast(), null_mut()];
    ok!(cuLaunchKernel(kernel, 1, 1, 1, 32, 1, 1, 0, stream, null_mut(), extra.as_mut_ptr()));
    ok!(cuStreamSynchronize(stream));
    assert_eq!((size, download(py, 2)), (8, vec![5.0, 8.0]));

    // More shared memory than a kernel gets without asking, and more than there is.
    let much = function(module, c"much_shared");
    let mut param = py;
    let params = [(&raw mut param).cast::<c_void>()];
    let with_shared = |shared: u32| {
        // SAFETY: the parameter is the kernel's.
        unsafe { cuLaunchKernel(much, 1, 1, 1, 32, 1, 1, shared, null_mut(), params.clone().as_mut_ptr(), null_mut()) }
    };
    assert_eq!(with_shared(100_000), INVALID_VALUE);
    fails!(INVALID_VALUE, cuFuncSetAttribute(much, 8, 200_000));
    ok!(cuFuncSetAttribute(much, 8, 100_000));
    assert_eq!(with_shared(100_000), 0);
    assert_eq!(download(py, 32), [3.0; 32]);
    ok!(cuModuleUnload(module));
    fails!(INVALID_HANDLE, cuModuleUnload(module));
}

#[test]
fn images_for_other_devices_and_broken_text_are_refused() {
    if in_a_process("images_for_other_devices_and_broken_text_are_refused", &[]).is_some() {
        return;
    }
    start();
    let mut module = null_mut();
    for image in [[0x50, 0xed, 0x55, 0xba, 1, 0, 16, 0], *b"\x7fELF\x02\x01\x01\0"] {
        fails!(NO_BINARY_FOR_GPU, cuModuleLoadData(&mut module, image.as_ptr().cast()));
    }
    let text = c".version 9.0\n.visible .entry k()\n{\nnonsense;\n}\n";
    let mut log = [0u8; 256];
    let values = [log.as_mut_ptr().cast::<c_void>(), 256 as Handle];
    let answer = |values: *const Handle| {
        // SAFETY: two options with their values.
        unsafe { cuModuleLoadDataEx(&mut module, text.as_ptr().cast(), 2, [5, 6].as_ptr(), values) }
    };
    assert_eq!({ answer }(values.as_ptr()), INVALID_PTX);
    assert!(String::from_utf8_lossy(&log).contains("k: line 4: no support for the instruction in `nonsense`"));
}

#[test]
fn a_graph_replays_what_a_stream_recorded() {
    if in_a_process("a_graph_replays_what_a_stream_recorded", &[]).is_some() {
        return;
    }
    let Some(ptx) = ptx("a_graph_replays_what_a_stream_recorded") else { return };
    start();
    let (kernel, one, two) = (function(module(&ptx), c"scale"), stream(), stream());
    let (x, y) = (upload(&[1.0; 32]), upload(&[0.0; 32]));
    let (mut event, mut graph, mut executable, mut status) = (null_mut(), null_mut(), null_mut(), 0);
    ok!(cuEventCreate(&mut event, 0));
    ok!(cuStreamBeginCapture_v2(one, 0));
    assert_eq!(scale(kernel, one, y, x, 2.0), 0);
    // A second stream joins by an event, and is part of the graph.
    ok!(cuEventRecord(event, one));
    ok!(cuStreamWaitEvent(two, event, 0));
    ok!(cuStreamIsCapturing(two, &mut status));
    assert_eq!(scale(kernel, two, x, y, 1.0), 0);
    ok!(cuEventRecord(event, two));
    ok!(cuStreamWaitEvent(one, event, 0));
    ok!(cuStreamEndCapture(one, &mut graph));
    assert_eq!((status, download(y, 1)), (1, vec![0.0]));
    ok!(cuGraphInstantiateWithFlags(&mut executable, graph, 0));
    ok!(cuGraphLaunch(executable, one));
    assert_eq!((download(y, 1), download(x, 1)), (vec![3.0], vec![4.0]));
    ok!(cuGraphLaunch(executable, one));
    assert_eq!((download(y, 1), download(x, 1)), (vec![9.0], vec![10.0]));

    // Other arguments for the same work; other work is refused.
    let (mut next, mut short) = (null_mut(), null_mut());
    ok!(cuStreamBeginCapture_v2(one, 0));
    assert_eq!((scale(kernel, one, y, x, 0.0), scale(kernel, one, x, y, 0.0)), (0, 0));
    ok!(cuStreamEndCapture(one, &mut next));
    ok!(cuGraphExecUpdate_v2(executable, next, null_mut()));
    ok!(cuGraphLaunch(executable, one));
    assert_eq!((download(y, 1), download(x, 1)), (vec![1.0], vec![1.0]));
    ok!(cuStreamBeginCapture_v2(one, 0));
    assert_eq!(scale(kernel, one, y, x, 0.0), 0);
    ok!(cuStreamEndCapture(one, &mut short));
    fails!(GRAPH_EXEC_UPDATE_FAILURE, cuGraphExecUpdate_v2(executable, short, null_mut()));

    // A wait spoils a capture.
    ok!(cuStreamBeginCapture_v2(one, 0));
    fails!(CAPTURE_UNSUPPORTED, cuCtxSynchronize());
    fails!(CAPTURE_INVALIDATED, cuStreamEndCapture(one, &mut short));
    ok!(cuCtxSynchronize());
    ok!(cuGraphExecDestroy(executable));
    ok!(cuGraphDestroy(graph));
    fails!(INVALID_HANDLE, cuGraphLaunch(executable, one));
}

#[test]
fn a_capture_forbids_others_what_its_mode_says() {
    if in_a_process("a_capture_forbids_others_what_its_mode_says", &[]).is_some() {
        return;
    }
    start();
    let (one, two) = (stream(), stream());
    let (mut graph, mut at) = (null_mut(), 0);
    // modes: 0 everywhere, 1 on the thread that captures, 2 nothing
    for (mode, here, elsewhere) in [(0, 900, 900), (1, 900, 0), (2, 0, 0)] {
        for (asked, there) in [(here, false), (elsewhere, true)] {
            ok!(cuStreamBeginCapture_v2(one, mode));
            let mut alloc = || {
                start();
                // SAFETY: the address goes to a local.
                assert_eq!(unsafe { cuMemAlloc_v2(&mut at, 8) }, asked, "mode {mode}, elsewhere: {there}");
            };
            if there {
                std::thread::scope(|scope| scope.spawn(alloc).join().unwrap())
            } else {
                alloc()
            }
            let ended = if asked == 0 { 0 } else { CAPTURE_INVALIDATED };
            fails!(ended, cuStreamEndCapture(one, &mut graph));
        }
    }
    // Two streams are captured side by side, and a wait for one leaves the other's capture whole.
    ok!(cuStreamBeginCapture_v2(one, 2));
    ok!(cuStreamSynchronize(two));
    ok!(cuStreamBeginCapture_v2(two, 2));
    fails!(CAPTURE_UNSUPPORTED, cuStreamBeginCapture_v2(two, 2));
    fails!(CAPTURE_UNSUPPORTED, cuStreamSynchronize(two));
    ok!(cuStreamEndCapture(one, &mut graph));
    fails!(CAPTURE_INVALIDATED, cuStreamEndCapture(two, &mut graph));
    fails!(INVALID_VALUE, cuStreamBeginCapture_v2(two, 3));
}

#[test]
fn events_tell_the_time_between_them() {
    if in_a_process("events_tell_the_time_between_them", &[]).is_some() {
        return;
    }
    start();
    let (mut first, mut second, mut milliseconds) = (null_mut(), null_mut(), 0.0);
    ok!(cuEventCreate(&mut first, 0));
    ok!(cuEventCreate(&mut second, 0));
    ok!(cuEventRecord(first, null_mut()));
    fails!(INVALID_HANDLE, cuEventElapsedTime(&mut milliseconds, first, second));
    std::thread::sleep(std::time::Duration::from_millis(5));
    ok!(cuEventRecord(second, null_mut()));
    ok!(cuEventSynchronize(second));
    ok!(cuEventElapsedTime_v2(&mut milliseconds, first, second));
    assert!(milliseconds >= 5.0);
    ok!(cuEventDestroy_v2(first));
    fails!(INVALID_HANDLE, cuEventRecord(first, null_mut()));
}

#[test]
fn planned_calls_fail_and_a_lost_device_stays_lost() {
    let name = "planned_calls_fail_and_a_lost_device_stays_lost";
    if in_a_process(name, &[("FAKECUDA_FAIL", "alloc:2,sync:2:1,copy:3")]).is_some() {
        return;
    }
    start();
    let mut at = alloc(16);
    fails!(OUT_OF_MEMORY, cuMemAlloc_v2(&mut at, 16));
    let at = alloc(16);
    ok!(cuCtxSynchronize());
    fails!(INVALID_VALUE, cuCtxSynchronize());
    ok!(cuCtxSynchronize());
    ok!(cuMemcpyHtoD_v2(at, [0u8; 16].as_ptr().cast(), 16));
    ok!(cuMemcpyDtoD_v2(at, at + 8, 8));
    fails!(ILLEGAL_ADDRESS, cuMemcpyDtoD_v2(at, at + 8, 8));
    fails!(ILLEGAL_ADDRESS, cuCtxSynchronize());
    fails!(ILLEGAL_ADDRESS, cuMemFree_v2(at));
}

#[test]
fn a_launch_outside_its_buffer_loses_the_device() {
    let name = "a_launch_outside_its_buffer_loses_the_device";
    if let Some(text) = in_a_process(name, &[]) {
        assert!(
            text.contains("SKIPPED") || text.contains("past_the_end, block 0, thread 0: 4 bytes at offset"),
            "{text}"
        );
        return;
    }
    let Some(ptx) = ptx(name) else { return };
    start();
    let kernel = function(module(&ptx), c"past_the_end");
    let (mut y, mut len) = (alloc(128), 32u32);
    assert_eq!(launch(kernel, null_mut(), &mut [(&raw mut y).cast(), (&raw mut len).cast()]), LAUNCH_FAILED);
    fails!(LAUNCH_FAILED, cuMemAlloc_v2(&mut y, 4));
}

/// A kernel whose threads race, with `FAKECUDA_CHECK` at `check`: the launch's answer, in the process of the test.
fn race(name: &str, check: &str, expect: u32) {
    if let Some(text) = in_a_process(name, &[("FAKECUDA_CHECK", check)]) {
        let told = text.contains("race: writes what block 0 thread");
        assert!(text.contains("SKIPPED") || told == (expect != 0), "{text}");
        return;
    }
    let Some(ptx) = ptx(name) else { return };
    start();
    let kernel = function(module(&ptx), c"race");
    let mut y = alloc(4);
    assert_eq!(launch(kernel, null_mut(), &mut [(&raw mut y).cast()]), expect);
}

#[test]
fn a_race_is_told_where_launches_are_checked() {
    race("a_race_is_told_where_launches_are_checked", "1", LAUNCH_FAILED);
}

#[test]
fn a_race_is_not_looked_for_otherwise() {
    race("a_race_is_not_looked_for_otherwise", "0", 0);
}
