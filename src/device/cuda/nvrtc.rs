//! NVRTC, the compiler in a library: kernel sources to what the driver loads.

use super::toolkit;
use cudarc::nvrtc::{result, sys};
use dialoguellm_kernels::cuda::HEADER;
use std::ffi::{CString, c_char};
use std::panic::catch_unwind;

/// The compiler that was found.
pub(super) struct Compiler {
    version: u32,
}

impl Compiler {
    /// The library in the toolkit that `DLLM_CUDA_TOOLKIT` names, or the system's.
    pub fn find() -> Result<Self, String> {
        // the built-in functions first: the compiler asks for them by name, and would not look beside itself
        toolkit::open(&["libnvrtc-builtins.so", "libnvrtc.so"]);
        // SAFETY: opening a library runs its initialisers; the compiler's are made for that.
        if !unsafe { sys::is_culib_present() } {
            return Err("there is no compiler (libnvrtc.so) on this machine".to_owned());
        }
        let version = catch_unwind(|| {
            let (mut major, mut minor) = (0, 0);
            // SAFETY: writes two numbers.
            unsafe { sys::nvrtcVersion(&mut major, &mut minor) }.result().map(|()| (1000 * major + 10 * minor) as u32)
        });
        match version {
            Ok(Ok(version)) => Ok(Self { version }),
            _ => Err("the compiler (libnvrtc.so) on this machine does not tell its version".to_owned()),
        }
    }

    /// 13000 for 13.0.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// What the driver may load of a source, best first: code for the GPU's own capability, and PTX that the driver
    /// compiles on. The error is the compiler's log.
    pub fn compile(&self, name: &str, source: &str, capability: u32) -> Result<Vec<Vec<u8>>, String> {
        let own = architecture(capability);
        match compile(name, source, &own) {
            // a compiler older than the GPU: PTX for the oldest one serves every newer
            Err(_) if !self.knows(capability) => compile(name, source, "sm_80").map(|images| images[1..].to_vec()),
            result => result,
        }
    }

    fn knows(&self, capability: u32) -> bool {
        let mut count = 0;
        // SAFETY: writes one number.
        let counted = unsafe { sys::nvrtcGetNumSupportedArchs(&mut count) }.result();
        let mut known = vec![0; count as usize];
        // SAFETY: writes as many numbers as it counted.
        let listed = unsafe { sys::nvrtcGetSupportedArchs(known.as_mut_ptr()) }.result();
        counted.and(listed).is_ok() && known.contains(&(capability as i32))
    }
}

/// `sm_90a` of 90: Hopper's own instructions are in its architecture-specific form.
fn architecture(capability: u32) -> String {
    format!("sm_{capability}{}", if capability == 90 { "a" } else { "" })
}

/// The cubin and the PTX of one program.
fn compile(name: &str, source: &str, architecture: &str) -> Result<Vec<Vec<u8>>, String> {
    let text = |text: &str| CString::new(text).map_err(|_| format!("{name} holds a zero byte"));
    let (source, name, header) = (text(source)?, text(name)?, text(HEADER.1)?);
    let included = text(&format!("../cuda/{}", HEADER.0))?;
    let mut program = std::ptr::null_mut();
    let (headers, names) = ([header.as_ptr()], [included.as_ptr()]);
    // SAFETY: the strings and the two lists of one live until the program is destroyed, which keeps their addresses.
    let created = unsafe {
        sys::nvrtcCreateProgram(&mut program, source.as_ptr(), name.as_ptr(), 1, headers.as_ptr(), names.as_ptr())
    };
    created.result().map_err(|error| error.to_string())?;
    let options = [format!("--gpu-architecture={architecture}"), "--std=c++17".into(), "-default-device".into()];
    // SAFETY: the program was created and is destroyed below.
    let images = unsafe { result::compile_program(program, &options) }
        .map_err(|error| format!("{error}: {}", log(program)))
        .and_then(|()| images(program).map_err(|error| error.to_string()));
    // SAFETY: nobody uses the program any more.
    let _ = unsafe { result::destroy_program(program) };
    images
}

fn images(program: sys::nvrtcProgram) -> Result<Vec<Vec<u8>>, result::NvrtcError> {
    let mut len = 0;
    // SAFETY: the program is compiled; the buffer has the length that it tells.
    let cubin = unsafe {
        sys::nvrtcGetCUBINSize(program, &mut len).result()?;
        let mut cubin = vec![0u8; len];
        sys::nvrtcGetCUBIN(program, cubin.as_mut_ptr().cast()).result()?;
        cubin
    };
    // SAFETY: as above; the text ends in a zero.
    let ptx = bytes(unsafe { result::get_ptx(program)? });
    Ok(vec![cubin, ptx])
}

fn log(program: sys::nvrtcProgram) -> String {
    // SAFETY: the program was created.
    let text = unsafe { result::get_program_log(program) }.map(bytes).unwrap_or_default();
    String::from_utf8_lossy(&text).trim_end_matches(['\0', '\n']).to_owned()
}

fn bytes(text: Vec<c_char>) -> Vec<u8> {
    text.into_iter().map(|c| c as u8).collect()
}
