//! Compiled kernels on disk, by what they were compiled from. Nothing here can fail: what cannot be read is compiled
//! again, what cannot be written is compiled next time.

use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Bytes of the checksum before an image.
const SUM: usize = 32;

/// The image kept under `key`, if it is whole.
pub(super) fn find(key: &[&str]) -> Option<Vec<u8>> {
    find_in(&folder()?, key)
}

/// Keeps an image.
pub(super) fn keep(key: &[&str], image: &[u8]) {
    if let Some(folder) = folder() {
        let _ = keep_in(&folder, key, image);
    }
}

fn find_in(folder: &Path, key: &[&str]) -> Option<Vec<u8>> {
    let bytes = std::fs::read(folder.join(name(key))).ok()?;
    let (sum, image) = bytes.split_at_checked(SUM)?;
    (Sha256::digest(image).as_slice() == sum).then(|| image.to_vec())
}

/// In one step: another process finds the whole file or none.
fn keep_in(folder: &Path, key: &[&str], image: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let whole = folder.join(name(key));
    let part = whole.with_extension(format!("{}.part", std::process::id()));
    let written = std::fs::write(&part, [Sha256::digest(image).as_slice(), image].concat());
    written.and_then(|()| std::fs::rename(&part, &whole)).inspect_err(|_| drop(std::fs::remove_file(&part)))
}

fn folder() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(cache.join("dialoguellm"))
}

/// The hash of the key's parts, each with its length in front.
fn name(key: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in key {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let hex: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("kernels-{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_found_under_its_key_alone_and_only_if_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        keep_in(folder.path(), &["a", "bc"], b"image").unwrap();
        assert_eq!(find_in(folder.path(), &["a", "bc"]).unwrap(), b"image");
        assert_eq!(find_in(folder.path(), &["ab", "c"]), None);
        let path = folder.path().join(name(&["a", "bc"]));
        let whole = std::fs::read(&path).unwrap();
        for len in 0..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            assert_eq!(find_in(folder.path(), &["a", "bc"]), None, "{len} bytes");
        }
        let names: Vec<_> = std::fs::read_dir(&folder).unwrap().collect();
        assert_eq!(names.len(), 1, "parts are left: {names:?}");
    }
}
