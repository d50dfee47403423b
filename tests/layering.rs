//! Proves that imports point down only: each part of the library uses what stands below it, siblings do not know each
//! other, the kernels know nothing of the library, and the command is a user of the library like any other.
//!
//! It reads source text, so it sees `crate::x` and `super::x` wherever they stand, in tests and in expressions too.

use std::fs;
use std::path::{Path, PathBuf};

/// Lowest first; the parts of one line do not know each other.
const ORDER: [&[&str]; 9] = [
    &["error"],
    &["cancel"],
    &["files"],
    &["device"],
    &["model"],
    &["fake"], // an engine for tests of what stands above the model
    &["conversation", "train"],
    &["emotion"],
    &["capi"],
];

/// Where `unsafe` may be written: the mapping, the exchange of two folders, the threads, and the C boundary.
const UNSAFE: [&str; 4] = ["src/files/mmap.rs", "src/files/folder.rs", "src/device/", "src/capi/"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below `dir`, as (path from the repository's root, text without comments), in order of path.
fn sources(dir: &str) -> Vec<(String, String)> {
    let mut folders = vec![root().join(dir)];
    let mut files: Vec<PathBuf> = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            match entry.extension() {
                _ if entry.is_dir() => folders.push(entry),
                Some(extension) if extension == "rs" => files.push(entry),
                _ => {}
            }
        }
    }
    files.sort();
    let name = |path: &Path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_string();
    files.iter().map(|path| (name(path), without_comments(&fs::read_to_string(path).unwrap()))).collect()
}

/// The text with everything behind `//` gone; its lines keep their numbers.
fn without_comments(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or("").to_string() + "\n").collect()
}

/// The layer of a part, or of what the crate's root names.
fn rank(part: &str) -> Option<usize> {
    let part = match part {
        "Code" | "Error" | "Result" => "error",
        "Cancel" => "cancel",
        _ => part,
    };
    ORDER.iter().position(|layer| layer.contains(&part))
}

/// `src/files/gguf/mod.rs` is the module [files, gguf].
fn module(path: &str) -> Vec<&str> {
    let path = path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    path.split('/').collect()
}

fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// The first names of `a::b` or of each item of `{a::b, c::{d, e}}`.
fn first_names(path: &str) -> Vec<&str> {
    let Some(group) = path.strip_prefix('{') else { return vec![identifier(path)] };
    let (mut depth, mut start, mut names) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                names.push(identifier(group[start..at].trim_start()));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// Modules written inside a file, `mod tests { .. }`, that a place is in: rustfmt puts their ends at a line's beginning.
fn nested(before: &str) -> usize {
    let opens = |line: &str| line.ends_with('{') && ["mod ", "pub mod "].iter().any(|word| line.starts_with(word));
    before.lines().fold(0, |depth, line| if opens(line) { 1 } else { depth * usize::from(line != "}") })
}

/// Every path from the crate's root in a file, as (line, name behind `crate::` or behind enough `super::`).
fn uses<'a>(path: &str, text: &'a str) -> Vec<(usize, &'a str)> {
    let depth = module(path).len();
    let line = |at: usize| 1 + text[..at].matches('\n').count();
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let alone = !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        found.extend(first_names(&text[at + 7..]).into_iter().filter(|_| alone).map(|name| (line(at), name)));
    }
    for (at, _) in text.match_indices("super::").filter(|(at, _)| !text[..*at].ends_with("super::")) {
        let behind = text[at..].trim_start_matches("super::");
        let steps = (text.len() - at - behind.len()) / 7;
        if steps >= depth + nested(&text[..at]) {
            found.extend(first_names(behind).into_iter().map(|name| (line(at), name)));
        }
    }
    found
}

/// What a file may not use, as sentences.
fn upward(path: &str, text: &str) -> Vec<String> {
    let own = module(path)[0];
    let Some(own_rank) = rank(own) else { return vec![format!("{path}: `{own}` has no place in the order")] };
    let wrong = |name: &str| name != own && rank(name).is_none_or(|rank| rank >= own_rank);
    let uses = uses(path, text).into_iter().filter(|(_, name)| wrong(name));
    uses.map(|(line, name)| format!("{path}:{line}: `{own}` uses `{name}`")).collect()
}

fn library() -> Vec<(String, String)> {
    let mut files = sources("src");
    files.retain(|(path, _)| path != "src/lib.rs" && !path.starts_with("src/bin/"));
    files
}

#[test]
fn imports_only_point_down() {
    let files = library();
    assert!(files.len() > 40, "only {} files were read", files.len());
    let wrong: Vec<String> = files.iter().flat_map(|(path, text)| upward(path, text)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_checker_sees_an_upward_edge_in_every_spelling() {
    let sees = |path, text| upward(path, &without_comments(text)).len();
    assert_eq!(sees("src/files/config.rs", "use crate::model::Forest;"), 1);
    assert_eq!(sees("src/files/config.rs", "use crate::{Error, files::x::{a, b}, model::{c, d}, train};"), 2);
    assert_eq!(sees("src/files/config.rs", "use crate::{\n    Error,\n    model::Forest,\n};"), 1);
    assert_eq!(sees("src/device/cpu.rs", "fn f() -> crate::model::Forest { crate::emotion::f() }"), 2);
    assert_eq!(sees("src/files/config.rs", "use super::super::model::Forest;"), 1);
    assert_eq!(sees("src/files/mod.rs", "use super::model::Forest;"), 1);
    assert_eq!(sees("src/files/config.rs", "mod tests {\n    use super::super::super::model::Forest;\n}"), 1);
    assert_eq!(sees("src/files/config.rs", "mod tests {\n}\nfn f() { super::super::model::f() }"), 1);
    assert_eq!(sees("src/conversation.rs", "use crate::train::Trainer;"), 1);
    assert_eq!(sees("src/train/batch.rs", "use crate::conversation::Options;"), 1);
    assert_eq!(sees("src/elsewhere.rs", ""), 1);
    assert_eq!(sees("src/emotion/live.rs", "use crate::elsewhere::x;"), 1);
}

#[test]
fn the_checker_lets_downward_edges_pass() {
    let sees = |path, text| upward(path, &without_comments(text)).len();
    assert_eq!(sees("src/emotion/live.rs", "use crate::{Code, Error, Result, train, conversation::Options};"), 0);
    assert_eq!(sees("src/train/batch.rs", "mod tests {\n    use super::super::data::Choice;\n}"), 0);
    assert_eq!(sees("src/train/batch.rs", "// crate::emotion is above\nuse crate::train::data;"), 0);
    assert_eq!(sees("src/files/gguf/mod.rs", "use super::config::Config; my_crate::emotion::f()"), 0);
}

#[test]
fn the_root_names_nothing_but_the_lowest_layers() {
    let text = without_comments(&fs::read_to_string(root().join("src/lib.rs")).unwrap());
    let names: Vec<&str> = text.lines().filter(|line| line.starts_with("pub use ")).collect();
    assert_eq!(names, ["pub use cancel::Cancel;", "pub use error::{Code, Error, Result};"]);
}

#[test]
fn the_kernels_know_nothing_of_the_library() {
    for (path, text) in sources("kernels") {
        assert!(!text.contains("dialoguellm::"), "{path} names the library");
    }
    let manifest = fs::read_to_string(root().join("kernels/Cargo.toml")).unwrap();
    assert!(!manifest.lines().any(|line| line.starts_with("dialoguellm ")), "the kernels depend on the library");
}

#[test]
fn the_command_uses_the_library_alone() {
    for (path, text) in sources("src/bin") {
        assert!(!text.contains("dialoguellm_kernels"), "{path} reaches past the library");
        assert!(!text.contains("#[path"), "{path} takes the library's files instead of the library");
    }
}

#[test]
fn unsafe_is_allowed_in_few_files_only() {
    let allowing = library().into_iter().filter(|(_, text)| text.contains("allow(unsafe_code)"));
    let outside = |path: &String| !UNSAFE.iter().any(|place| path.starts_with(place));
    let wrong: Vec<String> = allowing.map(|(path, _)| path).filter(outside).collect();
    assert!(wrong.is_empty(), "{wrong:?} allow unsafe code");
}

#[test]
fn the_library_prints_nothing_and_ends_no_process() {
    for (path, text) in library() {
        for word in ["println!", "eprintln!", "print!(", "eprint!(", "dbg!(", "process::exit", "process::abort"] {
            // the helper process of a test that is killed on purpose prints to its parent
            let in_a_test = path.ends_with("tests.rs") || path == "src/fake.rs";
            assert!(in_a_test || !text.contains(word), "{path} says {word}");
        }
    }
}
