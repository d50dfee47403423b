//! The library as a program finds it: loaded by cudarc under the name that it looks for.

mod common;

use common::{in_a_process, library, ptx};
use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg, sys};
use cudarc::nvrtc::Ptx;

const NAME: &str = "cudarc_runs_on_it_unchanged";

#[test]
fn cudarc_runs_on_it_unchanged() {
    let folder = std::env::temp_dir().join(format!("fakecuda-{}", std::process::id()));
    if std::env::var_os("LD_LIBRARY_PATH").is_none_or(|path| !path.to_string_lossy().contains("fakecuda-")) {
        std::fs::create_dir_all(&folder).unwrap();
        std::os::unix::fs::symlink(library(), folder.join("libcuda.so.1")).unwrap();
        let path = folder.to_str().unwrap();
        in_a_process(NAME, &[("LD_LIBRARY_PATH", path), ("FAKECUDA_CHECK", "1"), ("FAKECUDA_FAIL", "alloc:4")]);
        std::fs::remove_dir_all(folder).unwrap();
        return;
    }
    let Some(ptx) = ptx(NAME) else { return };
    let context = CudaContext::new(0).unwrap();
    assert_eq!(context.name().unwrap(), "PTX interpreter");
    assert_eq!(context.compute_capability().unwrap(), (8, 0));
    // SAFETY: one stream does all the work.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    let module = context.load_module(Ptx::from_src(ptx)).unwrap();
    let scale = module.load_function("scale").unwrap();
    let x = stream.clone_htod(&[1.0f32, 2.0, 3.0]).unwrap();
    let mut y = stream.alloc_zeros::<f32>(3).unwrap();
    let launch = |y: &mut _, by: f32| {
        let mut arguments = stream.launch_builder(&scale);
        arguments.arg(y).arg(&x).arg(&by).arg(&3u32);
        // SAFETY: the arguments are the kernel's.
        unsafe { arguments.launch(LaunchConfig::for_num_elems(3)) }.map(|_| ())
    };
    launch(&mut y, 2.0).unwrap();
    assert_eq!(stream.clone_dtoh(&y).unwrap(), [3.0, 5.0, 7.0]);

    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL).unwrap();
    launch(&mut y, 10.0).unwrap();
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().unwrap();
    assert_eq!(stream.clone_dtoh(&y).unwrap(), [3.0, 5.0, 7.0]);
    graph.launch().unwrap();
    assert_eq!(stream.clone_dtoh(&y).unwrap(), [11.0, 21.0, 31.0]);

    let third = stream.alloc_zeros::<f32>(1).unwrap();
    let error = stream.alloc_zeros::<f32>(1).unwrap_err();
    assert_eq!(error.error_name().unwrap().to_str().unwrap(), "CUDA_ERROR_OUT_OF_MEMORY");
    drop(third);
    assert!(context.mem_get_info().unwrap().0 > 0);
}
