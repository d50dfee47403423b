//! Compiles the CUDA kernels ahead of time where that is asked for by `DLLM_CUDA_AOT=1`: every `<operation>/cuda.cu`
//! becomes a compressed fatbin for every architecture and PTX for those to come. Otherwise the library compiles its
//! embedded sources when it first needs them.

use std::env;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Ampere, Ada, Hopper, Blackwell.
const ARCHITECTURES: [&str; 6] = ["80", "86", "89", "90a", "100", "120"];
/// The compiler's release: what it makes needs a driver of that version at least.
const RELEASE: &str = "release 13.0";

fn main() {
    println!("cargo::rerun-if-env-changed=DLLM_CUDA_AOT");
    println!("cargo::rerun-if-changed=cuda/dev.cuh");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let mut table = "pub const FATBINS: &[(&str, &[u8])] = &[\n".to_owned();
    if env::var("DLLM_CUDA_AOT").is_ok_and(|wanted| wanted == "1") {
        println!("cargo::rerun-if-env-changed=DLLM_CUDA_TOOLKIT");
        let nvcc = nvcc();
        for operation in operations() {
            let image = out.join(format!("{operation}.fatbin"));
            compile(&nvcc, &operation, &image);
            writeln!(table, "    (\"{operation}/cuda.cu\", include_bytes!({image:?})),").expect("a string has room");
        }
    }
    table += "];\n";
    std::fs::write(out.join("fatbins.rs"), table).expect("OUT_DIR can be written");
}

/// The compiler in the named toolkit, or the one on the path.
fn nvcc() -> PathBuf {
    let named = env::var_os("DLLM_CUDA_TOOLKIT").map(|toolkit| Path::new(&toolkit).join("nvidia/cu13/bin/nvcc"));
    let nvcc = named.filter(|nvcc| nvcc.exists()).unwrap_or_else(|| "nvcc".into());
    let said = Command::new(&nvcc).arg("--version").output();
    let said = said.unwrap_or_else(|error| panic!("DLLM_CUDA_AOT=1, but {} cannot be run: {error}", nvcc.display()));
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains(RELEASE), "DLLM_CUDA_AOT=1 wants nvcc of {RELEASE}; {} says {said}", nvcc.display());
    nvcc
}

/// The folders that have a `cuda.cu`, sorted.
fn operations() -> Vec<String> {
    let folders = std::fs::read_dir(".").expect("the crate's folder can be read").flatten();
    let with_source = folders.filter(|folder| folder.path().join("cuda.cu").exists());
    let mut names: Vec<String> = with_source.filter_map(|folder| folder.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn compile(nvcc: &Path, operation: &str, image: &Path) {
    println!("cargo::rerun-if-changed={operation}/cuda.cu");
    let mut command = Command::new(nvcc);
    command.args(["-fatbin", "-std=c++17", "-Xfatbin", "-compress-all"]);
    for architecture in ARCHITECTURES {
        command.arg(format!("-gencode=arch=compute_{architecture},code=sm_{architecture}"));
    }
    command.arg("-gencode=arch=compute_80,code=compute_80").arg("-o").arg(image).arg(format!("{operation}/cuda.cu"));
    let status = command.status().unwrap_or_else(|error| panic!("{} cannot be run: {error}", nvcc.display()));
    assert!(status.success(), "{operation}/cuda.cu does not compile");
}
