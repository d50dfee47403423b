//! Bytes on disk to checked values, and back. Nothing here knows of models as maths, of devices or of training.
//!
//! Every file may come from a stranger: counts are bounded before memory is asked for, offsets are checked before
//! they are used, and what does not fit is one sentence naming the file, the place and both values.
//! A model folder is read by `config`, `safetensors` (through `mmap`) and `tokenizer`; an adapter folder by `adapter`;
//! `gguf` makes a model folder; `folder` replaces either in one step; `fingerprint` tells base models apart.

pub mod adapter;
mod chat;
pub(crate) mod compressed;
pub mod config;
pub mod dialogues;
pub mod fingerprint;
pub mod folder;
pub mod gguf;
pub mod hub;
pub mod mmap;
pub mod safetensors;
pub mod tokenizer;

pub use self::adapter::{LoraConfig, Pair, PairSpec, Site, Targets};
pub use self::config::{Config, Rope, Scaling};
pub use self::dialogues::{Dialogue, Turn};
pub use self::fingerprint::fingerprint;
pub use self::mmap::{Access, Bytes};
pub use self::safetensors::{TensorView, Tensors, Writer};
pub use self::tokenizer::{Decoder, Tokenizer};
pub use dialoguellm_kernels::matrix::Dtype;

use crate::cancel::Watched;
use crate::{Cancel, Code, Error, Result};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The largest JSON settings file that is read: far above any real one, far below memory.
pub(crate) const SETTINGS_LIMIT: u64 = 64 << 20;

/// A file's whole content, refused where it is longer than `limit` bytes.
///
/// # Errors
/// NotFound, Io, or BadFile where it is too long or no plain file.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    read_watched(path, limit, &Cancel::default())
}

/// The same for a large file.
///
/// # Errors
/// Those of [`read_bounded`]; Cancelled.
pub(crate) fn read_watched(path: &Path, limit: u64, cancel: &Cancel) -> Result<Vec<u8>> {
    let from = open_plain(path)?.take(limit.saturating_add(1));
    let mut bytes = Vec::new();
    let read = Watched { from, cancel }.read_to_end(&mut bytes);
    cancel.check()?;
    read.map_err(|e| Error::io("read", path, &e))?;
    if bytes.len() as u64 > limit {
        return Err(Error::bad_file(path, format_args!("is longer than the {limit} bytes such a file may have")));
    }
    Ok(bytes)
}

/// Opens a plain file: a folder, pipe or device has no length to check, and opening a pipe would wait for a writer.
pub(crate) fn open_plain(path: &Path) -> Result<File> {
    let kind = std::fs::metadata(path).map_err(|e| Error::io("open", path, &e))?;
    if !kind.is_file() {
        return Err(Error::bad_file(path, "is not a plain file"));
    }
    File::open(path).map_err(|e| Error::io("open", path, &e))
}

/// A settings file as JSON.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = read_bounded(path, SETTINGS_LIMIT)?;
    serde_json::from_slice(&bytes).map_err(|e| Error::bad_file(path, format_args!("is not the JSON expected: {e}")))
}

/// `Ok(None)` where the file does not exist.
pub(crate) fn if_there<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.code() == Code::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// An empty vector with room for `len` values, or OutOfMemory naming `what`.
pub(crate) fn room_for<T>(len: usize, what: &str) -> Result<Vec<T>> {
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|_| no_room(len.saturating_mul(size_of::<T>()), what))?;
    Ok(values)
}

/// OutOfMemory, since the system refused `what` as many bytes.
pub(crate) fn no_room(bytes: usize, what: &str) -> Error {
    Error::new(Code::OutOfMemory, format!("{what} needs {bytes} bytes, which the system refused"))
}
