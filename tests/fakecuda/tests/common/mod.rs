//! A process for each test: the driver reads its environment once, and a lost device stays lost.
#![allow(dead_code)] // Every test file has its own copy and uses a part.

use std::path::{Path, PathBuf};
use std::process::Command;

const CHILD: &str = "FAKECUDA_TEST_CHILD";

/// Runs the test of this name in a process with this environment; what it printed. `None` in that process itself.
pub fn in_a_process(test: &str, environment: &[(&str, &str)]) -> Option<String> {
    if std::env::var_os(CHILD).is_some() {
        return None;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    for variable in ["FAKECUDA_MEMORY", "FAKECUDA_FAIL", "FAKECUDA_CHECK"] {
        command.env_remove(variable);
    }
    let output = command.envs(environment.iter().copied()).output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "no test {test}:\n{text}");
    text.lines().filter(|line| line.starts_with("SKIPPED")).for_each(|line| eprintln!("{line}"));
    Some(text)
}

/// PTX of `kernels/scale.cu`; `None`, and a line that says so, where there is no compiler.
pub fn ptx(test: &str) -> Option<String> {
    if ptxsim::toolkit().is_none() {
        eprintln!("SKIPPED {test}: no CUDA compiler");
        return None;
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/scale.cu");
    Some(ptxsim::compile(&source, "compute_80", &[]).unwrap())
}

/// The library, as cargo built it beside this program.
pub fn library() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let folders = program.ancestors().skip(1).take(2);
    let found = folders.map(|folder| folder.join("libfakecuda.so")).find(|path| path.exists());
    found.expect("cargo builds the cdylib with the tests")
}
