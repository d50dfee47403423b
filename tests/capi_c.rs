//! The C interface as C and C++ programs meet it: `tests/c/library.c` says one fact a function, and is compiled with every
//! warning an error, as both languages, and under the sanitizers of addresses, leaks and undefined behaviour.

#![cfg(feature = "capi")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A folder with the library under the names that a linker and a loader look for.
fn library() -> PathBuf {
    let beside = std::env::current_exe().unwrap().with_file_name("libdialoguellm.so");
    assert!(beside.exists(), "{} was not built", beside.display());
    let folder = beside.with_file_name("capi_library");
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["libdialoguellm.so", "libdialoguellm.so.0.1"] {
        let _ = std::os::unix::fs::symlink(&beside, folder.join(name)); // there from an earlier run
    }
    folder
}

/// Compiles C sources into a program; `None`, and a line that says so, where there is no compiler.
fn compiled(test: &str, compiler: &str, flags: &[&str], source: &Path, program: &Path) -> Option<()> {
    if Command::new(compiler).arg("--version").output().is_err() {
        common::skipped(&format!("{test}: no {compiler}"));
        return None;
    }
    let strict = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g", "-D_GNU_SOURCE"];
    let mut command = Command::new(compiler);
    command.args(strict).args(flags).arg("-I").arg(root().join("include")).arg("-I").arg(root().join("tests/c"));
    command.arg(source).args(["-x", "none", "-o"]).arg(program).arg("-L").arg(library());
    let ran = command.args(["-ldialoguellm", "-lpthread", "-ldl"]).output().unwrap();
    assert!(ran.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ran.stderr));
    Some(())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a program of the tests' with a folder to write in; it must end well and say nothing beside its facts.
fn ran(program: &Path, more: &[&str], wrapper: &[&str]) -> Output {
    let work = tempfile::tempdir().unwrap();
    let mut words = wrapper.iter().map(AsRef::as_ref).chain([program.as_os_str()]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).arg(root().join("examples/tiny/model")).arg(work.path()).args(more);
    command.env("LD_LIBRARY_PATH", library()).current_dir(work.path());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.stderr.is_empty(), "{command:?} wrote on standard error: {}", text(&output.stderr));
    output
}

fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

#[test]
fn every_fact_holds_in_c_and_memory_stays_flat() {
    let (test, at) = ("every_fact_holds_in_c_and_memory_stays_flat", program("library_c11"));
    if compiled(test, "cc", &["-std=c11"], &root().join("tests/c/library.c"), &at).is_some() {
        print!("{}", text(&ran(&at, &["flat"], &[]).stdout));
    }
}

#[test]
fn every_fact_holds_in_cpp_under_the_sanitizers() {
    let (test, at) = ("every_fact_holds_in_cpp_under_the_sanitizers", program("library_cpp17"));
    let flags = ["-std=c++17", "-x", "c++", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    if compiled(test, "c++", &flags, &root().join("tests/c/library.c"), &at).is_some() {
        ran(&at, &[], &[]);
    }
}

#[test]
fn two_copies_in_one_process_know_nothing_of_each_other() {
    let (test, at) = ("two_copies_in_one_process_know_nothing_of_each_other", program("two_copies"));
    if compiled(test, "cc", &["-std=c11"], &root().join("tests/c/two_copies.c"), &at).is_none() {
        return;
    }
    let copy = program("libdialoguellm_copy.so");
    std::fs::copy(library().join("libdialoguellm.so"), &copy).unwrap();
    ran(&at, &[copy.to_str().unwrap()], &[]);
}

/// The lines of a program in the header's first comment.
fn first_program() -> String {
    let header = std::fs::read_to_string(root().join("include/dialoguellm.h")).unwrap();
    let lines = header
        .lines()
        .skip_while(|line| !line.starts_with(" *     "))
        .take_while(|line| !line.trim_end().ends_with(" *"));
    lines.map(|line| line.trim_start_matches(" *").to_owned() + "\n").collect()
}

#[test]
fn the_headers_first_program_compiles_and_names_seven_emotions() {
    let test = "the_headers_first_program_compiles_and_names_seven_emotions";
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("first.c");
    let text_of = first_program();
    assert!((8..=14).contains(&text_of.lines().count()), "{text_of}");
    std::fs::write(
        &source,
        format!("#include <dialoguellm.h>\n#include <stdio.h>\nint main(void) {{\n{text_of}return 0;\n}}\n"),
    )
    .unwrap();
    let at = program("first_program");
    if compiled(test, "cc", &["-std=c11"], &source, &at).is_none() {
        return;
    }
    // a model folder with a card of its own is a classifier, as a merged one is
    let made = program("library_for_first");
    if compiled(test, "cc", &["-std=c11"], &root().join("tests/c/library.c"), &made).is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = |program: &Path, arguments: &[&Path]| {
        let mut command = Command::new(program);
        command.args(arguments).env("LD_LIBRARY_PATH", library()).current_dir(folder.path()).output().unwrap()
    };
    let made = run(&made, &[&root().join("examples/tiny/model"), folder.path()]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    std::os::unix::fs::symlink(root().join("examples/tiny/model"), folder.path().join("model")).unwrap();
    std::fs::rename(folder.path().join("whole"), folder.path().join("adapter")).unwrap();
    let ran = run(&at, &[]);
    assert!(ran.status.success() && ran.stderr.is_empty(), "{}", text(&ran.stderr));
    let said = text(&ran.stdout);
    let names: Vec<&str> = said.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names, ["neutral", "joy", "surprise", "anger", "sadness", "disgust", "fear"]);
}
