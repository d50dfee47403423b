//! Proves that what the repository says about itself is so: the version in the changelog, the index of the kernels, the
//! reasons of the dependencies, the tests and files that the documents name; and that no file names somebody's machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Folders that are not part of the repository: .gitignore's, git's own, and data of generators.
const OUTSIDE: [&str; 6] = ["target", "out", "models", ".venv", ".git", "__pycache__"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every file of the repository, as a path from its root.
fn files() -> Vec<PathBuf> {
    let (mut folders, mut files) = (vec![PathBuf::new()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).unwrap().map(|entry| entry.unwrap()) {
            let name = entry.file_name();
            let path = folder.join(&name);
            match entry.file_type().unwrap() {
                _ if OUTSIDE.iter().any(|outside| name == *outside) => {}
                kind if kind.is_dir() => folders.push(path),
                kind if kind.is_file() => files.push(path),
                _ => {}
            }
        }
    }
    files
}

fn documents() -> Vec<(PathBuf, String)> {
    let written = files().into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    written.map(|path| (path.clone(), fs::read_to_string(root().join(path)).unwrap())).collect()
}

/// Where the links of a document lead.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|piece| piece.split_once(')').map(|(link, _)| link))
}

/// What stands between backticks, line by line.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2))
}

#[test]
fn the_changelog_begins_with_this_version_and_tells_of_the_abi() {
    let changelog = read("CHANGELOG.md");
    let mut entries = changelog.split("\n## ").skip(1);
    let top = entries.next().expect("an entry");
    let version = top.split_whitespace().next();
    assert_eq!(version, Some(env!("CARGO_PKG_VERSION")));
    for entry in std::iter::once(top).chain(entries) {
        assert!(entry.contains("\n### ABI\n"), "an entry says nothing of the ABI");
    }
}

#[test]
fn every_operation_has_a_row_and_every_row_an_operation() {
    let readme = read("kernels/README.md");
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| "));
    let names = rows.map(|row| row.split(' ').next().unwrap().to_string()).filter(|name| name != "op");
    let folders = fs::read_dir(root().join("kernels")).unwrap().map(|entry| entry.unwrap());
    // `cuda` is what the CUDA forms of all operations share.
    let operations = folders.filter(|folder| folder.path().join("mod.rs").exists() && folder.file_name() != "cuda");
    let operations: BTreeSet<String> = operations.map(|folder| folder.file_name().into_string().unwrap()).collect();
    assert!(operations.len() >= 9, "only {operations:?}");
    assert_eq!(names.collect::<BTreeSet<_>>(), operations);
}

/// Dependencies of a manifest without a comment on their line.
fn without_a_reason(manifest: &str) -> Vec<&str> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in manifest.lines() {
        match line.strip_prefix('[') {
            Some(section) => inside = section.trim_end_matches(']').ends_with("dependencies"),
            None if inside && line.contains('=') && !line.starts_with('#') && !line.contains(" # ") => found.push(line),
            None => {}
        }
    }
    found
}

#[test]
fn every_dependency_has_its_reason() {
    for manifest in files().iter().filter(|path| path.ends_with("Cargo.toml")) {
        let text = read(manifest.to_str().unwrap());
        assert!(without_a_reason(&text).is_empty(), "{}: {:?}", manifest.display(), without_a_reason(&text));
    }
}

#[test]
fn a_dependency_without_a_reason_is_seen() {
    let text = "[package]\nname = \"x\"\n[dependencies]\na = \"1\" # why\nb = \"2\"\n[dev-dependencies]\nc = \"3\"\n[features]\nd = []";
    assert_eq!(without_a_reason(text), ["b = \"2\"", "c = \"3\""]);
}

/// A folder of one machine: somebody's home, or where somebody works.
fn machine_path(text: &str) -> Option<&str> {
    let folders = ["home", "root", "Users", "work"].map(|folder| format!("/{folder}/"));
    let begins = |at: usize| !text[..at].ends_with(|c: char| c.is_alphanumeric() || ".-_}*)/".contains(c));
    let hits = folders.iter().flat_map(|folder| text.match_indices(folder.as_str()));
    hits.map(|(at, _)| at).find(|&at| begins(at)).map(|at| text[at..].lines().next().unwrap_or(""))
}

#[test]
fn no_file_names_a_path_of_a_machine() {
    for path in files() {
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue }; // weights
        assert_eq!(machine_path(&text), None, "{}", path.display());
    }
}

#[test]
fn a_path_of_a_machine_is_seen_and_others_are_not() {
    assert!(machine_path(&format!("cd /{}/me/project", "home")).is_some());
    assert!(machine_path(&format!("\"/{}/x\"", "root")).is_some());
    let passes = format!("https://example.org/{0}/x a/{0}/b $HOME/{0}/ /usr/lib", "home");
    assert_eq!(machine_path(&passes), None);
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut found = 0;
    for (path, text) in documents() {
        for link in links(&text) {
            let file = link.split('#').next().unwrap();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            found += 1;
            let target = root().join(path.parent().unwrap()).join(file);
            assert!(target.exists(), "{} links to {link}, which is not there", path.display());
        }
    }
    assert!(found > 10, "only {found} links were found");
}

/// Documents name a test as `file::test`; the name may be that of a function a macro fills in.
#[test]
fn tests_that_documents_name_are_there() {
    let mut named = 0;
    for (path, text) in documents() {
        for name in quoted(&text) {
            let Some((file, test)) = name.split_once(".rs::") else { continue };
            named += 1;
            let source = read(&format!("{file}.rs"));
            assert!(source.contains(&format!("fn {test}(")), "{} names {name}, which is not there", path.display());
        }
    }
    assert!(named > 40, "only {named} tests are named");
}

#[test]
fn the_scripts_that_documents_call_can_be_run() {
    use std::os::unix::fs::PermissionsExt;
    for script in [".ci/run", "examples/quickstart/run", "kernels/device-check", "tests/neon.sh"] {
        let mode =
            fs::metadata(root().join(script)).unwrap_or_else(|error| panic!("{script}: {error}")).permissions().mode();
        assert!(mode & 0o111 != 0, "{script} is not executable");
    }
}

#[test]
fn the_gate_calls_the_readmes_commands() {
    let gate = read(".ci/run");
    let (_, after) = gate.split_once("TEST_COMMAND=(").expect("the gate names the test command");
    let (tests, _) = after.split_once(')').unwrap();
    let commands = read("README.md").replace("```sh\n", "\0");
    let commands: Vec<&str> = commands.split('\0').skip(1).filter_map(|block| block.lines().next()).collect();
    assert_eq!(commands, ["examples/quickstart/run", tests]);
    assert!(gate.contains("check first-command 900 examples/quickstart/run\n"), "the gate does not run the first");
}

#[test]
fn the_tiny_model_is_tiny() {
    let folder = fs::read_dir(root().join("examples/tiny/model")).unwrap();
    let bytes: u64 = folder.map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!((100_000..4 << 20).contains(&bytes), "{bytes} bytes");
}
