//! The C header is what the library is: generated, not written; every struct lies as C and the layout file say; every
//! function of the header leaves the library, and nothing else does.
//!
//! `DLLM_BLESS=1 cargo test --test capi_header` writes the files anew, for their difference to be read.

#![cfg(feature = "capi")]

use dialoguellm::capi;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The order of the header: that in which a program uses the handles.
const FILES: [&str; 12] = [
    "version",
    "error",
    "cancel",
    "runtime",
    "model",
    "generate",
    "adapter",
    "classifier",
    "conversation",
    "dataset",
    "trainer",
    "tools",
];

fn generated() -> String {
    let config = cbindgen::Config::from_file(root().join("include/cbindgen.toml")).unwrap();
    let builder = cbindgen::Builder::new().with_config(config);
    let files = FILES.iter().map(|name| root().join(format!("src/capi/{name}.rs")));
    let bindings = files.fold(builder, cbindgen::Builder::with_src).generate().unwrap();
    let mut text = Vec::new();
    bindings.write(&mut text);
    one_line(&String::from_utf8(text).unwrap())
}

/// A comment of one line takes one line.
fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let (mut shorter, mut at) = (String::new(), 0);
    while at < lines.len() {
        let indent = lines[at].strip_suffix("/*").filter(|indent| indent.trim().is_empty());
        match (indent, lines.get(at + 2).map(|end| end.trim())) {
            (Some(indent), Some("*/")) => {
                writeln!(shorter, "{indent}/* {} */", lines[at + 1].trim()).unwrap();
                at += 3;
            }
            _ => {
                writeln!(shorter, "{}", lines[at]).unwrap();
                at += 1;
            }
        }
    }
    shorter
}

/// Compares a file with what it should be, or writes it where that was asked for.
fn is(name: &str, want: &str) {
    let path = root().join("include").join(name);
    if std::env::var_os("DLLM_BLESS").is_some() {
        std::fs::write(&path, want).unwrap();
    }
    let got = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        got == want,
        "include/{name} is not what src/capi makes of it: run with DLLM_BLESS=1 and read the difference"
    );
}

#[test]
fn the_header_is_generated_from_the_library() {
    is("dialoguellm.h", &generated());
}

#[test]
fn the_layout_file_is_what_the_library_says() {
    // SAFETY: the library's text, which ends in a zero.
    let layout = unsafe { std::ffi::CStr::from_ptr(capi::dllm_layout()) };
    is("dialoguellm.layout", layout.to_str().unwrap());
}

/// Names of the functions that the header declares, in order.
fn declared(header: &str) -> Vec<String> {
    let code: String = header.lines().filter(|line| !line.starts_with("//") && !line.starts_with(" *")).collect();
    let names = code.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '('));
    let mut names: Vec<String> =
        names.filter_map(|word| word.split_once('(')).map(|(name, _)| name.to_owned()).collect();
    names.retain(|name| name.starts_with("dllm_"));
    names.sort();
    names.dedup();
    names
}

/// The library that cargo built for these tests.
fn library() -> PathBuf {
    let beside = std::env::current_exe().unwrap().with_file_name("libdialoguellm.so");
    assert!(beside.exists(), "{} was not built", beside.display());
    beside
}

#[test]
fn the_library_exports_the_headers_functions_and_nothing_else() {
    let names = declared(&generated());
    is("dialoguellm.abi", &names.iter().map(|name| format!("{name}\n")).collect::<String>());
    let ran = Command::new("nm").args(["-D", "--defined-only", "--format=posix"]).arg(library()).output();
    let Ok(ran) = ran else {
        return eprintln!("SKIPPED the_library_exports_the_headers_functions_and_nothing_else: no nm");
    };
    let text = String::from_utf8(ran.stdout).unwrap();
    let mut exported: Vec<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
    exported.sort_unstable();
    assert_eq!(exported, names);
}

#[test]
fn the_library_has_a_soname_and_needs_no_cuda() {
    let ran = Command::new("readelf").arg("-d").arg(library()).output();
    let Ok(ran) = ran else { return eprintln!("SKIPPED the_library_has_a_soname_and_needs_no_cuda: no readelf") };
    let text = String::from_utf8(ran.stdout).unwrap();
    assert!(text.contains("[libdialoguellm.so.0.1]"), "{text}");
    assert!(text.contains("NODELETE") && !text.contains("cuda"), "{text}");
}

#[test]
fn version_numbers_are_those_of_the_package() {
    let header = generated();
    let version = env!("CARGO_PKG_VERSION").split('.').map(|part| part.parse().unwrap()).collect::<Vec<u32>>();
    let number = version.iter().fold(0, |number, part| 100 * number + part);
    for (name, value) in [("MAJOR", version[0]), ("MINOR", version[1]), ("PATCH", version[2]), ("NUMBER", number)] {
        assert!(header.contains(&format!("#define DLLM_VERSION_{name} {value}\n")), "{name} is {value}");
    }
    assert_eq!(capi::dllm_version_number(), number);
}

/// Where a language wraps the functions, and those it has no use for: what it says by its own means, or by single steps.
const BINDINGS: [(&str, &[&str]); 4] = [
    (
        "include/dialoguellm.hpp",
        &["abi_version", "error_status", "layout", "status_name", "trainer_run", "version", "version_number"],
    ),
    ("bindings/go", &["cancel_is_set", "error_status", "layout", "trainer_run", "version_number"]),
    (
        "bindings/swift/Sources/Dialoguellm",
        &["abi_version", "cancel_is_set", "error_status", "layout", "status_name", "trainer_run", "version_number"],
    ),
    ("bindings/python/dialoguellm", &["trainer_run", "version_number"]),
];

#[test]
fn every_language_calls_every_function() {
    let symbols = std::fs::read_to_string(root().join("include/dialoguellm.abi")).unwrap();
    for (place, without) in BINDINGS {
        let place = root().join(place);
        let files = if place.is_dir() { files(&place) } else { vec![place.clone()] };
        let text: String = files.iter().filter_map(|file| std::fs::read_to_string(file).ok()).collect();
        let names = |name: &str| {
            let whole = |word: &str| {
                let ends =
                    |at: usize| text[at + word.len()..].chars().next().is_none_or(|c| !c.is_alphanumeric() && c != '_');
                text.match_indices(word).any(|(at, _)| ends(at))
            };
            // Python forms the names, and frees every handle by its kind
            let formed =
                place.ends_with("python/dialoguellm") && (whole(&format!("\"{name}\"")) || name.ends_with("_free"));
            whole(&format!("dllm_{name}")) || formed
        };
        let missing = symbols.lines().map(|symbol| symbol.trim_start_matches("dllm_")).filter(|name| !names(name));
        assert_eq!(missing.collect::<Vec<_>>(), without, "{}", place.display());
    }
}

/// Every file of a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect()
}
