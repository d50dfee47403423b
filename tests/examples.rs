//! The same five programs in every language say the same: `examples/transcript.txt`, with the same digits.
//!
//! They run with `DLLM_ISA=portable`, so that the digits are those of every machine. `DLLM_BLESS=1` writes the transcript
//! from what the Rust programs say.

#![cfg(feature = "capi")]

mod common;
#[path = "common/native.rs"]
mod native;

use dialoguellm::device::Isa;
use dialoguellm::emotion::{Bulk, Classifier, Labels, Template};
use dialoguellm::files::{Dialogue, Turn};
use dialoguellm::model::{Model, OpenOptions, Place};
use native::{compile, has, root, run, text};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};

const PROGRAMS: [&str; 5] = ["01_label", "02_live", "03_train", "04_batch", "05_adapters"];
const CHAT: &str = "Ann: We won! What a lovely day!\nno turn\nBo: You won? I had no idea.\nAnn: You forgot. Again.\n";

/// What all five programs say, one after the other; `command` gives the command that begins each.
fn said(command: impl Fn(&str) -> Command) -> String {
    let work = tempfile::tempdir().unwrap();
    let (model, out) = (root().join("examples/tiny/model"), work.path().join("adapter"));
    let quickstart = root().join("examples/quickstart");
    let mut all = String::new();
    for name in PROGRAMS {
        let more: Vec<PathBuf> = match name {
            "03_train" => vec![quickstart.join("train.jsonl"), out.clone()],
            "04_batch" => vec![out.clone(), quickstart.join("heldout.jsonl")],
            "05_adapters" => vec![out.clone(), out.clone()],
            _ => Vec::new(),
        };
        let chat = work.path().join("chat.txt");
        std::fs::File::create(&chat).unwrap().write_all(CHAT.as_bytes()).unwrap();
        let mut command = command(name);
        command.arg(&model).args(more).env("DLLM_ISA", "portable");
        let ran = run(command.stdin(Stdio::from(std::fs::File::open(&chat).unwrap())));
        all += &format!("== {name}\n{}", text(&ran.stdout));
    }
    all
}

fn transcript() -> PathBuf {
    root().join("examples/transcript.txt")
}

fn is_the_transcript(language: &str, said: &str) {
    let want = std::fs::read_to_string(transcript()).unwrap_or_default();
    assert!(said == want, "{language} says\n{said}\nand the transcript\n{want}");
}

#[test]
fn rust_says_what_the_transcript_says() {
    let beside = std::env::current_exe().unwrap();
    let examples = beside.parent().unwrap().parent().unwrap().join("examples");
    let said = said(|name| Command::new(examples.join(name)));
    if std::env::var_os("DLLM_BLESS").is_some() {
        std::fs::write(transcript(), &said).unwrap();
    }
    is_the_transcript("Rust", &said);
}

fn bits_file() -> PathBuf {
    root().join("examples/bits.txt")
}

/// The bits of a turn's probabilities, as every language must get them; `examples/bits.txt` has those of the portable
/// instructions for all machines.
#[test]
fn rust_gets_the_probability_bits_of_all_languages() {
    let open = OpenOptions { device: Place::Cpu, isa: Some(Isa::Portable), ..OpenOptions::default() };
    let model = Arc::new(Model::open(&root().join("examples/tiny/model"), &open).unwrap());
    let classifier = Classifier::new(model, None, Template::built_in("dialogue").unwrap(), Labels::meld()).unwrap();
    let turns = [("Ann", "We won!"), ("Bo", "Leave me alone.")];
    let turns = turns.map(|(speaker, text)| Turn { speaker: speaker.into(), text: text.into(), ..Turn::default() });
    let dialogue = Dialogue { id: "1".into(), turns: turns.to_vec() };
    let probabilities = &classifier.classify(&[dialogue], &Bulk::default()).unwrap()[0][1];
    let bits: Vec<String> = probabilities.iter().map(|p| format!("{:08x}", p.to_bits())).collect();
    let bits = bits.join(" ") + "\n";
    if std::env::var_os("DLLM_BLESS").is_some() {
        std::fs::write(bits_file(), &bits).unwrap();
    }
    assert_eq!(std::fs::read_to_string(bits_file()).unwrap_or_default(), bits);
}

#[test]
fn c_and_cpp_get_the_probability_bits_of_all_languages() {
    for (compiler, flags) in [("cc", &["-std=c11"][..]), ("c++", &["-x", "c++", "-std=c++17"])] {
        if !has(compiler) {
            return;
        }
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bits_{}", flags.len()));
        compile(compiler, flags, &root().join("tests/c/bits.c"), &program);
        let ran = run(Command::new(program).arg(root().join("examples/tiny/model")).env("DLLM_ISA", "portable"));
        assert_eq!(text(&ran.stdout), std::fs::read_to_string(bits_file()).unwrap(), "{compiler}");
    }
}

/// Compiles every program of a folder and runs it.
fn compiled(compiler: &str, flags: &[&str], extension: &str) {
    if !has(compiler) {
        return;
    }
    let folder = if extension == "c" { "examples/c" } else { "examples/cpp" };
    let program = |name: &str| Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("example_{extension}_{name}"));
    for name in PROGRAMS {
        compile(compiler, flags, &root().join(folder).join(format!("{name}.{extension}")), &program(name));
    }
    is_the_transcript(extension, &said(|name| Command::new(program(name))));
}

#[test]
fn c_says_what_the_transcript_says() {
    compiled("cc", &["-std=c11"], "c");
}

#[test]
fn cpp_says_what_the_transcript_says() {
    compiled("c++", &["-std=c++17"], "cpp");
}

/// Python with the package and the library of this tree.
fn python(arguments: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command.args(arguments).env("DLLM_LIBRARY", native::built()).env("PYTHONDONTWRITEBYTECODE", "1");
    command.env("PYTHONPATH", root().join("bindings/python")).env("DLLM_TINY", root().join("examples/tiny/model"));
    command
}

#[test]
fn python_says_what_the_transcript_says() {
    if !has("python3") {
        return;
    }
    let file = |name: &str| root().join(format!("examples/python/{name}.py"));
    is_the_transcript("Python", &said(|name| python(&[file(name).to_str().unwrap()])));
}

#[test]
fn every_fact_of_the_python_package_holds() {
    if !has("python3") {
        return;
    }
    let tests = root().join("bindings/python/tests");
    let mut facts = python(&["-W", "error", "-m", "unittest", "discover", "-s"]);
    let ran = facts.arg(&tests).env("DLLM_ISA", "portable").env("DLLM_BITS", bits_file()).output().unwrap();
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    assert!(text(&ran.stderr).contains("OK") && !text(&ran.stderr).contains("Ran 0"), "{}", text(&ran.stderr));
}

/// The README's block of code in a language.
fn readmes(language: &str) -> String {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let block = readme.split_once(&format!("```{language}\n")).unwrap().1;
    block.split_once("\n```").unwrap().0.to_owned() + "\n"
}

#[test]
fn the_readmes_programs_run() {
    if !has("cc") || !has("python3") {
        return;
    }
    // they name what lies under examples/, and write beside it
    let work = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(root().join("examples"), work.path().join("examples")).unwrap();
    let (source, program) = (work.path().join("readme.c"), work.path().join("readme"));
    std::fs::write(&source, readmes("c")).unwrap();
    compile("cc", &["-std=c11"], &source, &program);
    let said = text(&run(Command::new(program).current_dir(work.path())).stdout);
    assert!(said.lines().count() == 7 && said.contains("surprise"), "{said}");
    let said = text(&run(python(&["-c", &readmes("python")]).current_dir(work.path())).stdout);
    assert!(said.contains("step 13 of 13") && said.contains("'joy'"), "{said}");
}

#[test]
fn a_wheel_carries_the_library_and_needs_nothing_else() {
    let python = |work: &Path| {
        let mut command = Command::new("python3");
        command
            .current_dir(work)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("DLLM_TINY", root().join("examples/tiny/model"));
        command
    };
    let work = tempfile::tempdir().unwrap();
    if !has("python3") || !python(work.path()).args(["-m", "pip", "--version"]).output().unwrap().status.success() {
        return common::skipped("no pip");
    }
    // a copy: the build leaves files beside its sources
    native::succeeds(Command::new("cp").arg("-r").arg(root().join("bindings/python")).arg(work.path().join("sources")));
    let mut pip = python(work.path());
    pip.args([
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "-w",
        "wheels",
        "./sources",
    ]);
    native::succeeds(pip.env("DLLM_LIBRARY", native::built()));
    let wheel = std::fs::read_dir(work.path().join("wheels")).unwrap().next().unwrap().unwrap().path();
    assert!(wheel.to_string_lossy().ends_with("-py3-none-manylinux_2_34_x86_64.whl"), "{}", wheel.display());
    let mut pip = python(work.path());
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target", "installed"]);
    native::succeeds(pip.arg(&wheel));
    let mut tests = python(work.path());
    tests.env("PYTHONPATH", work.path().join("installed")).args(["-m", "unittest", "discover", "-s", "sources/tests"]);
    native::succeeds(&mut tests);
}

/// The Go toolchain that `bindings/go/toolchain` installed, or the machine's own.
fn go() -> Option<Command> {
    let ours = root().join("target/go/go/bin/go");
    let go = if ours.exists() { ours } else { "go".into() };
    if Command::new(&go).arg("version").output().is_err() {
        common::skipped("no Go");
        return None;
    }
    // Go keeps what it built together with the place it linked from, so both stay the same from run to run
    static KEPT: OnceLock<PathBuf> = OnceLock::new();
    let kept = KEPT.get_or_init(|| {
        let profile = if cfg!(debug_assertions) { "go_debug" } else { "go_release" };
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(profile);
        let installed = kept.join("installed");
        let _ = std::fs::remove_dir_all(&installed); // there from an earlier run
        std::fs::create_dir_all(&installed).unwrap();
        native::installed(&installed, env!("CARGO_BIN_EXE_dialoguellm"));
        kept
    });
    let prefix = kept.join("installed/prefix");
    let mut command = Command::new(go);
    command.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig")).env("LD_LIBRARY_PATH", prefix.join("lib"));
    command.envs([
        ("GOTOOLCHAIN", "local"),
        ("GOPROXY", "off"),
        ("GOFLAGS", "-mod=mod -buildvcs=false"),
        ("CGO_ENABLED", "1"),
    ]);
    command.env("GOCACHE", kept.join("cache")).env("GOPATH", kept.join("path"));
    command.env("DLLM_TINY", root().join("examples/tiny/model"));
    Some(command)
}

#[test]
fn go_says_what_the_transcript_says() {
    let work = tempfile::tempdir().unwrap();
    let Some(mut build) = go() else { return };
    let programs = work.path().join("programs");
    build.current_dir(root().join("examples/go")).arg("build").arg("-o").arg(&programs).arg("./...");
    std::fs::create_dir(&programs).unwrap();
    native::succeeds(&mut build);
    is_the_transcript("Go", &said(|name| Command::new(programs.join(name))));
}

#[test]
fn every_fact_of_the_go_package_holds_under_the_race_detector() {
    for arguments in [&["vet", "./..."][..], &["test", "-race", "-count=1", "./..."]] {
        let Some(mut go) = go() else { return };
        go.env("DLLM_ISA", "portable").env("DLLM_BITS", bits_file());
        native::succeeds(go.current_dir(root().join("bindings/go")).args(arguments));
    }
}
