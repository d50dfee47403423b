//! What all readers share: a file's bytes, its lines, and what is said of them. No text of a dialogue is ever repeated.

use super::{Dialogue, Split, Turn};
use crate::cancel::Watched;
use crate::{Cancel, Error, Result};
use serde::de::DeserializeOwned;
use std::fmt::Display;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// The largest file of dialogues that is read: all of it is held in memory.
const MAX_BYTES: u64 = 1 << 30;

/// The longest line of JSON or of a log, far above any dialogue: what is done before a request to stop is heard.
pub(super) const MAX_LINE: usize = 8 << 20;

pub(super) fn read(path: &Path, cancel: &Cancel) -> Result<Vec<u8>> {
    crate::files::read_watched(path, MAX_BYTES, cancel)
}

pub(super) fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// The lines of a text, each with its number; none behind an error.
pub(super) struct Lines<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    /// Where the next line begins, and its number.
    at: usize,
    number: u64,
    cancel: &'a Cancel,
}

impl<'a> Lines<'a> {
    pub(super) fn of(path: &'a Path, bytes: &'a [u8], cancel: &'a Cancel) -> Self {
        Self { path, bytes: without_mark(bytes), at: 0, number: 1, cancel }
    }

    fn read(&mut self) -> Result<(u64, &'a str)> {
        self.cancel.check()?;
        let (rest, number) = (&self.bytes[self.at..], self.number);
        let within = &rest[..rest.len().min(MAX_LINE + 1)];
        let len = within.iter().position(|&byte| byte == b'\n').unwrap_or(within.len());
        if len > MAX_LINE {
            let text = format!("line {number} is longer than the {MAX_LINE} bytes a line may have");
            return Err(Error::bad_file(self.path, text));
        }
        let line = &rest[..len];
        let line = std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line))
            .map_err(|error| not_utf8(self.path, self.bytes, self.at + error.valid_up_to()))?;
        (self.at, self.number) = (self.at + len + 1, number + 1);
        Ok((number, line))
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = Result<(u64, &'a str)>;
    fn next(&mut self) -> Option<Self::Item> {
        (self.at < self.bytes.len()).then(|| self.read().inspect_err(|_| self.at = self.bytes.len()))
    }
}

pub(super) fn not_utf8(path: &Path, bytes: &[u8], at: usize) -> Error {
    let before = &bytes[..at];
    let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
    let column = 1 + before.iter().rev().take_while(|&&byte| byte != b'\n').count();
    // MELD before November 2020 and files derived from it have 0x91..0x97: typographic quotes and dashes of Windows-1252
    let likely = if (0x80..0xa0).contains(&bytes[at]) { ", probably Windows-1252" } else { "" };
    let lines = bytes.split(|&byte| byte == b'\n').filter(|line| std::str::from_utf8(line).is_err()).count();
    let in_all = if lines > 1 { format!(" ({lines} lines are not)") } else { String::new() };
    let text = format!(
        "line {line}, byte {column} is 0x{:02x}, which is not UTF-8{in_all}{likely}; convert the file first, for \
         example with iconv -f WINDOWS-1252 -t UTF-8",
        bytes[at]
    );
    Error::bad_file(path, text)
}

/// `name` if `known` holds it, or all names are welcome.
pub(super) fn label(path: &Path, place: impl Display, name: &str, known: Option<&[String]>) -> Result<String> {
    match known {
        Some(known) if !known.iter().any(|label| label == name) => {
            let text = format!("{place}: unknown label {}; known are {}", quote(name), known.join(", "));
            Err(Error::bad_file(path, text))
        }
        _ if name.is_empty() => Err(Error::bad_file(path, format!("{place}: the label is empty"))),
        _ => Ok(name.to_owned()),
    }
}

/// `known`, or a set's own labels where none are given.
pub(super) fn own(known: Option<&[String]>, labels: &[&str]) -> Vec<String> {
    known.map_or_else(|| labels.iter().map(|label| (*label).to_owned()).collect(), <[String]>::to_vec)
}

/// A label as it stands, unless it looks like a sentence that slipped into the label's column.
pub(super) fn quote(name: &str) -> String {
    if name.len() <= 24 && name.chars().all(|c| c.is_alphanumeric() || "-_+/".contains(c)) {
        return format!("`{name}`");
    }
    format!("(a text of {} characters)", name.chars().count())
}

/// A file that is one value of JSON, in the form that `what` describes.
pub(super) fn json_file<T: DeserializeOwned>(path: &Path, bytes: &[u8], what: &str, cancel: &Cancel) -> Result<T> {
    let read = serde_json::from_reader(BufReader::new(Watched { from: without_mark(bytes), cancel }));
    cancel.check()?;
    read.map_err(|error: serde_json::Error| {
        // the parser's own words may quote the text
        let wrong = if error.is_data() { format!("not {what}") } else { "not JSON".to_owned() };
        Error::bad_file(path, format!("line {}, column {}: {wrong}", error.line(), error.column()))
    })
}

/// Speaker, text and label of an utterance.
pub(super) struct Said(pub String, pub String, pub String);

/// A file that is a list of dialogues, each a list of utterances `T` as `what` describes; `unit` is what the set calls a
/// dialogue. Ids are `PREFIX/0` and so on, by the place in the file; a dialogue without utterances is passed over.
pub(super) fn lists<T: DeserializeOwned + Into<Said>>(
    path: &Path,
    bytes: &[u8],
    (what, unit, prefix): (&str, &str, &str),
    known: &[String],
    cancel: &Cancel,
) -> Result<Vec<Dialogue>> {
    let all: Vec<Vec<T>> = json_file(path, bytes, what, cancel)?;
    let mut dialogues = Vec::new();
    for (dialogue, utterances) in all.into_iter().enumerate().filter(|(_, utterances)| !utterances.is_empty()) {
        let turn = |(i, utterance): (usize, T)| {
            let Said(speaker, text, emotion) = utterance.into();
            let place = format_args!("{unit} {}, utterance {}", dialogue + 1, i + 1);
            let emotion = Some(label(path, place, &emotion, Some(known))?);
            Ok(Turn { speaker, text, emotion, ..Turn::default() })
        };
        let turns = utterances.into_iter().enumerate().map(turn).collect::<Result<_>>()?;
        dialogues.push(Dialogue { id: format!("{prefix}/{dialogue}"), turns });
    }
    Ok(dialogues)
}

/// The one file of `names` that is in `dir`.
pub(super) fn only_one(dir: &Path, names: &[String], what: &str) -> Result<PathBuf> {
    let there: Vec<&String> = names.iter().filter(|name| dir.join(name).exists()).collect();
    match *there {
        [name] => Ok(dir.join(name)),
        [] => Err(Error::not_found(format!("{} has no {}: not {what}", dir.display(), names.join(" or ")))),
        _ => {
            let there: Vec<&str> = there.iter().map(|name| name.as_str()).collect();
            let text =
                format!("has {}: several forms of {what}; keep them in folders of their own", there.join(" and "));
            Err(Error::bad_file(dir, text))
        }
    }
}

/// The splits for which `there` finds a file.
pub(super) fn splits_where(there: impl Fn(Split) -> bool) -> Vec<Split> {
    Split::ALL.into_iter().filter(|split| there(*split)).collect()
}
