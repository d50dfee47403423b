//! A model by name: a folder, or `org/name` in the cache that Hugging Face's tools keep on this machine.
//!
//! Only what was downloaded before is found; nothing here reaches a network. The cache's layout is huggingface_hub's:
//! `models--ORG--NAME/refs/main` holds a commit, `snapshots/COMMIT` the files.

use super::{if_there, read_bounded};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Far above any commit's length.
const REF_LIMIT: u64 = 1 << 10;

/// The folder of model `name`.
///
/// # Errors
/// NotFound, saying where it was looked for.
pub fn resolve(name: &Path) -> Result<PathBuf> {
    resolve_in(name, cache_folder().as_deref())
}

/// As [`resolve`], in the cache at `cache`.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_in(name: &Path, cache: Option<&Path>) -> Result<PathBuf> {
    if name.is_dir() {
        return Ok(name.to_owned());
    }
    let shown = name.display();
    if name.exists() {
        return Err(Error::invalid(format!(
            "{shown} is a file, a model is a folder; a .gguf file becomes one by importing it"
        )));
    }
    let (Some(repository), Some(cache)) = (repository(name), cache) else {
        return Err(Error::not_found(format!("{shown} is no folder of this machine")));
    };
    let folder = cache.join(repository);
    let snapshot = snapshot(&folder)?.ok_or_else(|| {
        let text = format!("{shown} is neither a folder nor in the local Hugging Face cache ({})", folder.display());
        Error::not_found(text + "; download it there first, or name a folder")
    })?;
    Ok(snapshot)
}

/// The folder's name in the cache of `org/name` or `name`.
fn repository(name: &Path) -> Option<String> {
    let name = name.to_str()?;
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let parts: Vec<&str> = name.split('/').collect();
    (parts.len() <= 2 && parts.iter().all(|part| plain(part))).then(|| format!("models--{}", parts.join("--")))
}

/// What `refs/main` points to; without it, the only snapshot there is.
fn snapshot(folder: &Path) -> Result<Option<PathBuf>> {
    let snapshots = folder.join("snapshots");
    if let Some(commit) = if_there(read_bounded(&folder.join("refs/main"), REF_LIMIT))? {
        let commit = String::from_utf8_lossy(&commit);
        // the file is anyone's: a commit is hexadecimal and cannot lead out of the folder
        let path = snapshots.join(commit.trim());
        let is_commit = !commit.trim().is_empty() && commit.trim().chars().all(|c| c.is_ascii_hexdigit());
        return Ok((is_commit && path.is_dir()).then_some(path));
    }
    let Ok(entries) = std::fs::read_dir(&snapshots) else { return Ok(None) };
    let mut all: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    Ok(if all.len() == 1 { all.pop() } else { None })
}

/// As huggingface_hub finds it: `HF_HUB_CACHE`, else `HF_HOME`/hub, else the user's cache folder.
fn cache_folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || {
        let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
        Some(cache?.join("huggingface"))
    };
    variable("HF_HUB_CACHE").or_else(|| Some(variable("HF_HOME").or_else(home)?.join("hub")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Code;
    use std::fs;

    const COMMIT: &str = "0123abcd";

    /// A cache with `org/name` at [`COMMIT`], and `main` as `refs/main` if given.
    fn cache(main: Option<&str>) -> tempfile::TempDir {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("models--org--na.me");
        fs::create_dir_all(folder.join("snapshots").join(COMMIT)).unwrap();
        fs::create_dir_all(folder.join("refs")).unwrap();
        if let Some(main) = main {
            fs::write(folder.join("refs/main"), main).unwrap();
        }
        cache
    }

    fn resolved(cache: &tempfile::TempDir, name: &str) -> Result<PathBuf> {
        resolve_in(Path::new(name), Some(cache.path()))
    }

    #[test]
    fn a_folder_is_itself() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(resolve_in(dir.path(), None).unwrap(), dir.path());
    }

    #[test]
    fn a_name_is_the_snapshot_that_main_points_to() {
        let cache = cache(Some("0123abcd\n"));
        fs::create_dir(cache.path().join("models--org--na.me/snapshots/ffff")).unwrap();
        assert!(resolved(&cache, "org/na.me").unwrap().ends_with("models--org--na.me/snapshots/0123abcd"));
    }

    #[test]
    fn without_main_the_only_snapshot_counts_and_of_two_none() {
        let cache = cache(None);
        assert!(resolved(&cache, "org/na.me").unwrap().ends_with(COMMIT));
        fs::create_dir(cache.path().join("models--org--na.me/snapshots/ffff")).unwrap();
        assert_eq!(resolved(&cache, "org/na.me").unwrap_err().code(), Code::NotFound);
    }

    #[test]
    fn what_is_not_there_says_where_it_was_looked_for() {
        let error = resolved(&cache(None), "org/other").unwrap_err();
        assert_eq!(error.code(), Code::NotFound);
        assert!(error.text().contains("org/other") && error.text().contains("models--org--other"), "{error}");
    }

    #[test]
    fn neither_a_name_nor_a_reference_leads_out_of_the_cache() {
        for name in ["../secret", "a/b/c", "/nowhere/x", "a//b", "org/.."] {
            assert_eq!(resolved(&cache(Some(COMMIT)), name).unwrap_err().code(), Code::NotFound, "{name}");
        }
        assert!(resolved(&cache(Some("../../..")), "org/na.me").is_err());
    }

    #[test]
    fn a_file_is_refused_as_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        fs::write(&path, "x").unwrap();
        let error = resolve_in(&path, None).unwrap_err();
        assert!(error.code() == Code::InvalidArgument && error.text().contains("is a file"), "{error}");
    }
}
