//! The C interface as C and C++ programs meet it: `tests/c/library.c` says one fact a function, and is compiled with every
//! warning an error, as both languages, and under the sanitizers of addresses, leaks and undefined behaviour.

#![cfg(feature = "capi")]

mod common;

#[path = "common/native.rs"]
mod native;

use native::{built, compile, has, root, text};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs a program of the tests' with a folder to write in; it must end well and say nothing beside its facts.
fn ran(program: &Path, more: &[&str], wrapper: &[&str]) -> Output {
    let work = tempfile::tempdir().unwrap();
    let mut words = wrapper.iter().map(AsRef::as_ref).chain([program.as_os_str()]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).arg(root().join("examples/tiny/model")).arg(work.path()).args(more);
    native::run(command.current_dir(work.path()))
}

fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn source(name: &str) -> PathBuf {
    root().join("tests/c").join(name)
}

#[test]
fn every_fact_holds_in_c_and_memory_stays_flat() {
    if has("cc") {
        let at = program("library_c11");
        compile("cc", &["-std=c11"], &source("library.c"), &at);
        print!("{}", text(&ran(&at, &["flat"], &[]).stdout));
    }
}

const SANITIZED: [&str; 2] = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];

#[test]
fn every_fact_holds_in_cpp_under_the_sanitizers() {
    if has("c++") {
        let at = program("library_cpp17");
        compile("c++", &["-std=c++17", "-x", "c++", SANITIZED[0], SANITIZED[1]], &source("library.c"), &at);
        ran(&at, &[], &[]);
    }
}

/// Slow, and the same code: once, in release. Valgrind computes each FMA by a function, so vectors get a few facts of their own.
/// What a forked child leaves is no leak of the parent's.
#[cfg(not(debug_assertions))]
fn holds_under_valgrind(facts: &str, isa: &str) {
    if has("cc") && has("valgrind") {
        let at = program(&format!("library_valgrind_{facts}"));
        compile("cc", &["-std=c11"], &source("library.c"), &at);
        let flags = ["-q", "--leak-check=full", "--show-leak-kinds=definite", "--errors-for-leak-kinds=definite"];
        ran(&at, &[facts], &[&["env", isa, "valgrind", "--error-exitcode=9"], &flags[..]].concat());
    }
}

#[cfg(not(debug_assertions))]
#[test]
fn every_fact_holds_under_valgrind() {
    holds_under_valgrind("slow", "DLLM_ISA=portable");
}

#[cfg(not(debug_assertions))]
#[test]
fn products_by_vectors_hold_under_valgrind() {
    holds_under_valgrind("products", "DLLM_ISA=avx2");
}

#[test]
fn every_fact_of_the_cpp_header_holds_under_the_sanitizers() {
    for compiler in ["g++", "clang++"] {
        if has(compiler) {
            let at = program(&format!("wrapper_{compiler}"));
            compile(compiler, &["-std=c++17", SANITIZED[0], SANITIZED[1]], &source("wrapper.cpp"), &at);
            ran(&at, &[], &[]);
        }
    }
}

#[test]
fn c_lays_every_struct_out_as_the_layout_file_says() {
    if !has("cc") {
        return;
    }
    let layout = std::fs::read_to_string(root().join("include/dialoguellm.layout")).unwrap();
    let claim = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let is = match (words[0].split_once('.'), &words[1..]) {
            (None, [size]) => format!("sizeof({}) == {size}", words[0]),
            (Some((name, field)), [at, size]) => {
                format!("offsetof({name}, {field}) == {at} && sizeof((({name} *)0)->{field}) == {size}")
            }
            _ => panic!("{line}"),
        };
        format!("_Static_assert({is}, \"{line}\");\n")
    };
    let claims: String = layout.lines().map(claim).collect();
    assert!(claims.lines().count() > 60);
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("layout.c");
    std::fs::write(&source, format!("#include <dialoguellm.h>\n{claims}int main(void) {{ return 0; }}\n")).unwrap();
    compile("cc", &["-std=c11"], &source, &work.path().join("layout"));
}

#[test]
fn two_copies_in_one_process_know_nothing_of_each_other() {
    if !has("cc") {
        return;
    }
    let (at, copy) = (program("two_copies"), program("libdialoguellm_copy.so"));
    compile("cc", &["-std=c11"], &source("two_copies.c"), &at);
    std::fs::copy(built(), &copy).unwrap();
    ran(&at, &[copy.to_str().unwrap()], &[]);
}

#[test]
fn calls_at_random_with_arguments_at_random_never_crash() {
    if has("cc") {
        let at = program("random_calls");
        compile("cc", &["-std=c11", SANITIZED[0], SANITIZED[1]], &source("random_calls.c"), &at);
        let seconds = if cfg!(debug_assertions) { "15" } else { "60" };
        print!("{}", text(&ran(&at, &[seconds], &[]).stdout));
    }
}

/// The lines of a program in the header's first comment.
fn first_program() -> String {
    let header = std::fs::read_to_string(root().join("include/dialoguellm.h")).unwrap();
    let lines = header.lines().skip_while(|line| !line.starts_with(" *     ")).take_while(|line| *line != " *");
    lines.map(|line| line.trim_start_matches(" *").to_owned() + "\n").collect()
}

#[test]
fn the_headers_first_program_compiles_and_names_seven_emotions() {
    if !has("cc") {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let (first, trainer) = (work.path().join("first.c"), root().join("examples/c/03_train.c"));
    let lines = first_program();
    assert!((8..=14).contains(&lines.lines().count()), "{lines}");
    let whole = format!("#include <dialoguellm.h>\n#include <stdio.h>\nint main(void) {{\n{lines}return 0;\n}}\n");
    std::fs::write(&first, whole).unwrap();
    let [at, train] = ["first_program", "first_program_train"].map(program);
    compile("cc", &["-std=c11"], &first, &at);
    compile("cc", &["-std=c11"], &trainer, &train);
    // the folders that the program names
    std::os::unix::fs::symlink(root().join("examples/tiny/model"), work.path().join("model")).unwrap();
    let data = root().join("examples/quickstart/train.jsonl");
    native::run(Command::new(train).current_dir(work.path()).arg("model").arg(data).arg("adapter"));
    let said = text(&native::run(Command::new(at).current_dir(work.path())).stdout);
    let mut names: Vec<&str> = said.lines().filter_map(|line| line.split(' ').next()).collect();
    names.sort_unstable();
    assert_eq!(names, ["anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"]);
}

#[test]
fn an_installed_copy_is_found_by_pkg_config_and_cmake_wherever_it_is_moved() {
    if !["make", "cc", "c++", "pkg-config", "cmake"].iter().all(|tool| has(tool)) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let prefix = native::installed(work.path(), env!("CARGO_BIN_EXE_dialoguellm"));
    let model = root().join("examples/tiny/model");
    let says = |program: &Path| {
        let mut command = Command::new(program);
        command.arg(&model).env("LD_LIBRARY_PATH", prefix.join("lib"));
        let ran = command.output().unwrap();
        assert!(ran.status.success() && ran.stderr.is_empty(), "{}", text(&ran.stderr));
        text(&ran.stdout)
    };
    let mut script = Command::new("sh");
    let compile = "cc -std=c11 \"$1\" -o by_pkg_config $(pkg-config --cflags --libs 'dialoguellm >= 0.1')";
    script.args(["-c", compile, "sh"]).arg(root().join("examples/c/01_label.c")).current_dir(work.path());
    let ran = script.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig")).output().unwrap();
    assert!(ran.status.success(), "{}", text(&ran.stderr));

    let project = work.path().join("project");
    std::fs::create_dir(&project).unwrap();
    std::fs::copy(root().join("examples/cpp/01_label.cpp"), project.join("main.cpp")).unwrap();
    let lists = "cmake_minimum_required(VERSION 3.16)\nproject(user CXX)\nset(CMAKE_CXX_STANDARD 17)\n\
        find_package(dialoguellm 0.1 REQUIRED)\nadd_executable(by_cmake main.cpp)\n\
        target_link_libraries(by_cmake dialoguellm::dialoguellm)\n";
    std::fs::write(project.join("CMakeLists.txt"), lists).unwrap();
    for arguments in [vec!["-B", "build", "-S", "."], vec!["--build", "build"]] {
        let mut cmake = Command::new("cmake");
        let ran = cmake.args(arguments).current_dir(&project).env("CMAKE_PREFIX_PATH", &prefix).output().unwrap();
        assert!(ran.status.success(), "{}{}", text(&ran.stdout), text(&ran.stderr));
    }
    let by_pkg_config = says(&work.path().join("by_pkg_config"));
    assert!(by_pkg_config.starts_with("Ann: ") && by_pkg_config == says(&project.join("build/by_cmake")));
    let wrong = std::fs::write(project.join("CMakeLists.txt"), lists.replace("dialoguellm 0.1", "dialoguellm 0.2"));
    let mut cmake = Command::new("cmake");
    wrong.unwrap();
    cmake.args(["-B", "other", "-S", "."]).current_dir(&project).env("CMAKE_PREFIX_PATH", &prefix);
    assert!(!cmake.output().unwrap().status.success(), "a package of version 0.1 was taken for 0.2");
}

#[test]
fn a_program_with_the_static_library_in_it_needs_no_other_copy() {
    if !["make", "cc", "pkg-config"].iter().all(|tool| has(tool)) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let prefix = native::installed(work.path(), env!("CARGO_BIN_EXE_dialoguellm"));
    let mut script = Command::new("sh");
    let compile = "cc -std=c11 \"$1\" -o alone $(pkg-config --cflags dialoguellm) \
        $(pkg-config --static --libs dialoguellm | sed 's/-ldialoguellm/-l:libdialoguellm.a/')";
    script.args(["-c", compile, "sh"]).arg(root().join("examples/c/01_label.c")).current_dir(work.path());
    native::succeeds(script.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig")));
    let mut alone = Command::new(work.path().join("alone"));
    let ran = alone.arg(root().join("examples/tiny/model")).env_remove("LD_LIBRARY_PATH").output().unwrap();
    assert!(ran.status.success() && text(&ran.stdout).starts_with("Ann: "), "{}", text(&ran.stderr));
}

#[test]
fn what_is_uninstalled_is_gone() {
    if !has("make") {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let prefix = native::installed(work.path(), env!("CARGO_BIN_EXE_dialoguellm"));
    let mut make = Command::new("make");
    native::succeeds(make.current_dir(root()).arg("uninstall").arg(format!("PREFIX={}", prefix.display())));
    let mut left = vec![prefix];
    while let Some(folder) = left.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            assert!(entry.is_dir(), "{} is still there", entry.display());
            left.push(entry);
        }
    }
}
