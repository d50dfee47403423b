//! Programs of other languages against the library that cargo built for the tests.

#![allow(dead_code, unreachable_pub)] // each test binary uses its own part

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The shared library of this build.
pub fn built() -> PathBuf {
    let beside = std::env::current_exe().unwrap().with_file_name("libdialoguellm.so");
    assert!(beside.exists(), "{} was not built", beside.display());
    beside
}

/// A folder with the library under the names that a linker and a loader look for.
pub fn library() -> PathBuf {
    let folder = built().with_file_name("capi_library");
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["libdialoguellm.so", "libdialoguellm.so.0.1"] {
        let _ = std::os::unix::fs::symlink(built(), folder.join(name)); // there from an earlier run
    }
    folder
}

/// Whether a program is on this machine; says so where it is not.
pub fn has(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        crate::common::skipped(&format!("no {program}"));
    }
    there
}

/// Compiles a source with every warning an error.
pub fn compile(compiler: &str, flags: &[&str], source: &Path, program: &Path) {
    let mut command = Command::new(compiler);
    command.args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g", "-D_GNU_SOURCE"]).args(flags);
    for folder in ["include", "tests/c", "examples/c"] {
        command.arg("-I").arg(root().join(folder));
    }
    command.arg(source).args(["-x", "none", "-o"]).arg(program).arg("-L").arg(library());
    let ran = command.args(["-ldialoguellm", "-lpthread", "-ldl"]).output().unwrap();
    assert!(ran.status.success(), "{command:?}: {}", text(&ran.stderr));
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a program that must end well and say nothing on standard error.
pub fn run(command: &mut Command) -> Output {
    let output = command.env("LD_LIBRARY_PATH", library()).output().unwrap();
    // what it complained of first: a log's excerpt may end before the facts that held
    assert!(output.status.success(), "{}\n{command:?}: {}", text(&output.stderr), text(&output.stdout));
    assert!(output.stderr.is_empty(), "{command:?} wrote on standard error: {}", text(&output.stderr));
    output
}

/// Runs a tool that must end well.
pub fn succeeds(command: &mut Command) {
    let ran = command.output().unwrap();
    assert!(ran.status.success(), "{command:?}: {}{}", text(&ran.stdout), text(&ran.stderr));
}

/// An installed copy in `work`, which was moved after it was installed.
pub fn installed(work: &Path, command: &str) -> PathBuf {
    let (stage, moved) = (work.join("stage"), work.join("moved to"));
    let mut make = Command::new("make");
    make.current_dir(root()).args(["install", "PREFIX=/opt/dllm"]).arg(format!("DESTDIR={}", stage.display()));
    make.arg(format!("LIBRARY={}", built().display())).arg(format!("COMMAND={command}"));
    make.arg(format!("STATIC={}", built().with_extension("a").display()));
    succeeds(&mut make);
    std::fs::rename(stage.join("opt/dllm"), &moved).unwrap();
    // a place with a blank in it is none for make and for pkg-config's readers, a link to it is
    let link = work.join("prefix");
    std::os::unix::fs::symlink(&moved, &link).unwrap();
    link
}
