//! metrics.jsonl: one JSON line per optimiser step and per dev score, appended as they happen.
//!
//! The file is outside the checkpoint, which remembers how many lines it had: after a resume the lines of steps that
//! are computed again are gone, so each step stands there once. A line is written before its step counts, so a full
//! disk stops the run with nothing lost.

use crate::{Error, Result};
use serde_json::{Map, Value};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// An open metrics file.
#[derive(Debug)]
pub(crate) struct Metrics {
    path: PathBuf,
    file: File,
    /// Bytes of whole lines; what lies behind them is the rest of a failed write.
    len: u64,
    lines: u64,
}

impl Metrics {
    /// Opens `path`, keeping of an earlier run at most the first `lines` lines, and none from the first one on that is
    /// no whole line of JSON with a step up to `step`.
    pub fn open(path: &Path, lines: u64, step: u64) -> Result<Self> {
        let failed = |doing| move |e: std::io::Error| Error::io(doing, path, &e);
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).clone();
        let mut file = options.open(path).map_err(failed("open"))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(failed("read"))?;
        let (len, lines) = kept(&text, lines, step);
        file.set_len(len).map_err(failed("truncate"))?;
        Ok(Self { path: path.to_owned(), file, len, lines })
    }

    /// Appends one line. On an error the file's lines are as before.
    pub fn append(&mut self, line: Map<String, Value>) -> Result<()> {
        let text = Value::Object(line).to_string() + "\n";
        let written = self.file.seek(SeekFrom::Start(self.len)).and_then(|_| self.file.write_all(text.as_bytes()));
        if let Err(e) = written {
            // The next append begins at `len` anyhow; this only keeps a reader from seeing half a line.
            let _ = self.file.set_len(self.len);
            return Err(Error::io("write", &self.path, &e));
        }
        self.len += text.len() as u64;
        self.lines += 1;
        Ok(())
    }

    /// Lines so far, on the disk.
    pub fn synced_lines(&self) -> Result<u64> {
        self.file.sync_data().map_err(|e| Error::io("sync", &self.path, &e))?;
        Ok(self.lines)
    }
}

#[cfg(test)]
impl Metrics {
    /// One that fails, as on a full disk: the file is open for reading only.
    pub fn broken() -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        Self { path: "full".into(), file: File::open(file.path()).unwrap(), len: 0, lines: 0 }
    }
}

/// Bytes and lines of the beginning of `text` that stands.
fn kept(text: &[u8], lines: u64, step: u64) -> (u64, u64) {
    let stands = |line: &&[u8]| {
        let value = serde_json::from_slice::<Value>(line).ok();
        line.ends_with(b"\n") && value.and_then(|v| v.get("step")?.as_u64()).is_some_and(|s| s <= step)
    };
    let limit = usize::try_from(lines).unwrap_or(usize::MAX);
    let whole = text.split_inclusive(|&b| b == b'\n').take(limit).take_while(stands);
    whole.fold((0, 0), |(len, lines), line| (len + line.len() as u64, lines + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64) -> Map<String, Value> {
        Map::from_iter([("step".to_owned(), step.into())])
    }

    fn content(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_new_run_begins_an_empty_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        std::fs::write(&path, "{\"step\":1}\n").unwrap();
        Metrics::open(&path, 0, 0).unwrap().append(line(7)).unwrap();
        assert_eq!(content(&path), "{\"step\":7}\n");
    }

    #[test]
    fn a_resumed_run_keeps_the_checkpoints_lines_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut first = Metrics::open(&path, 0, 0).unwrap();
        (1..=5).for_each(|step| first.append(line(step)).unwrap());
        let mut second = Metrics::open(&path, 3, 3).unwrap();
        second.append(line(4)).unwrap();
        assert_eq!(content(&path), "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"step\":4}\n");
        assert_eq!(second.synced_lines().unwrap(), 4);
    }

    #[test]
    fn a_line_cut_by_a_crash_is_dropped_with_all_behind_it() {
        assert_eq!(kept(b"{\"step\":1}\n{\"st", 9, 9), (11, 1));
        assert_eq!(kept(b"{\"step\":1}\n{\"step\":2}", 9, 9), (11, 1));
        assert_eq!(kept(b"\xff\n{\"step\":1}\n", 9, 9), (0, 0));
        assert_eq!(kept(b"{\"step\":1}\n{\"step\":5}\n{\"step\":2}\n", 9, 4), (11, 1));
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = Metrics::open(Path::new("no/such/metrics.jsonl"), 0, 0).unwrap_err().to_string();
        assert!(error.contains("no/such/metrics.jsonl"), "{error}");
    }

    #[test]
    fn a_file_that_cannot_be_written_is_an_error() {
        let mut metrics = Metrics::broken();
        assert_eq!(metrics.append(line(1)).unwrap_err().code(), crate::Code::Io);
        assert_eq!(metrics.lines, 0);
    }
}
