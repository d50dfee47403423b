//! A file's bytes, mapped or read.
//!
//! Mapping costs nothing until a page is touched and is shared between processes; reading is immune to later changes.
//! A mapped file that another process truncates while it is open ends this process with SIGBUS: no library can prevent
//! that, so files that may change under us are opened with [`Access::Read`]. This file knows no format.
#![allow(unsafe_code)] // the only mapping in the library

use super::{open_plain, room_for};
use crate::{Error, Result};
use memmap2::{Mmap, MmapOptions, UncheckedAdvice};
use std::fs::File;
use std::io::Read;
use std::ops::{Deref, Range};
use std::path::Path;

/// How a file's bytes are brought in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Mapped privately, read only: pages arrive when touched. Truncating the file meanwhile is fatal (SIGBUS).
    #[default]
    Mapped,
    /// Read into memory once: later changes of the file are not seen.
    Read,
}

/// A file's bytes.
#[derive(Debug)]
pub struct Bytes(Source);

#[derive(Debug)]
enum Source {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl Bytes {
    /// The whole of `path`.
    ///
    /// # Errors
    /// NotFound; Io; BadFile where it is no plain file or changes its length while it is read; OutOfMemory.
    pub fn open(path: &Path, access: Access) -> Result<Self> {
        let file = open_plain(path)?;
        Ok(Self(match access {
            Access::Mapped => Source::Mapped(map(&file).map_err(|e| Error::io("map", path, &e))?),
            Access::Read => Source::Owned(read(file, path)?),
        }))
    }

    /// Gives the memory of mapped pages that lie within `range` back to the system, which brings them again when they
    /// are touched. Without effect on bytes that were read, and where the system does not know how.
    pub fn release(&self, range: Range<usize>) {
        let Source::Mapped(map) = &self.0 else { return };
        let (from, to) = (range.start.next_multiple_of(PAGE), range.end.min(map.len()) / PAGE * PAGE);
        if from < to {
            // SAFETY: nothing is written to this mapping, so what comes again is the file's content, as before.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, from, to - from) };
        }
    }
}

/// A multiple of every page size in use.
const PAGE: usize = 64 << 10;

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Source::Mapped(map) => map,
            Source::Owned(bytes) => bytes,
        }
    }
}

fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the mapping is private and read only; that the file keeps its length is the caller's documented duty.
    unsafe { MmapOptions::new().map_copy_read_only(file) }
}

fn read(file: File, path: &Path) -> Result<Vec<u8>> {
    let len = file.metadata().map_err(|e| Error::io("read", path, &e))?.len();
    let mut bytes = room_for(usize::try_from(len).unwrap_or(usize::MAX), &path.display().to_string())?;
    // `take`: a file that grows meanwhile must not grow the buffer.
    file.take(len).read_to_end(&mut bytes).map_err(|e| Error::io("read", path, &e))?;
    if bytes.len() as u64 != len {
        return Err(Error::bad_file(
            path,
            format_args!("had {len} bytes and gave {}: it changed meanwhile", bytes.len()),
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Code;

    #[test]
    fn both_ways_give_the_same_bytes_and_an_empty_file_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        for content in [&b""[..], b"some bytes"] {
            let path = dir.path().join("f");
            std::fs::write(&path, content).unwrap();
            for access in [Access::Mapped, Access::Read] {
                assert_eq!(&*Bytes::open(&path, access).unwrap(), content);
            }
        }
    }

    #[test]
    fn bytes_come_again_after_their_pages_were_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let content: Vec<u8> = (0..4 * PAGE + 5).map(|i| (i / 1000) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        for access in [Access::Mapped, Access::Read] {
            let bytes = Bytes::open(&path, access).unwrap();
            assert_eq!(&*bytes, content);
            for range in [0..0, 0..content.len(), 1..PAGE, 5..usize::MAX] {
                bytes.release(range);
            }
            assert_eq!(&*bytes, content);
        }
    }

    #[test]
    fn read_bytes_outlive_a_truncation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, vec![7; 100_000]).unwrap();
        let bytes = Bytes::open(&path, Access::Read).unwrap();
        File::create(&path).unwrap();
        assert!(bytes.len() == 100_000 && bytes.iter().all(|&b| b == 7));
    }

    #[test]
    fn a_folder_is_refused_and_a_missing_file_is_not_found() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Bytes::open(dir.path(), Access::Mapped).unwrap_err().code(), Code::BadFile);
        assert_eq!(Bytes::open(&dir.path().join("no"), Access::Mapped).unwrap_err().code(), Code::NotFound);
    }
}
