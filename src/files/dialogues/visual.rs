//! Descriptions of what is seen, from beside the dialogues: they belong to a turn by its dialogue and its number.
//!
//! JSON lines, `{"dialogue": "train/0", "turn": 3, "visual": ".."}`, or a folder of texts that are named as MELD's clips are,
//! `dia0_utt3.txt`. Of a folder, the part of a split may be a folder or a file of JSON lines with the split's name in it.
//! A turn's number is MELD's Utterance_ID, which has gaps; in other sets turns are counted from 0.

use super::json::{Fields, json_lines};
use super::text::read;
use super::{Dialogue, Split};
use crate::{Cancel, Error, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The longest description that is read from a file of its own.
const LONGEST: u64 = 1 << 20;

/// Descriptions by dialogue and turn.
type Descriptions = HashMap<(String, u64), String>;

/// Gives `dialogues` of `split` what `path` says of their turns, whose numbers are `numbers`.
///
/// # Errors
/// NOT_FOUND; BAD_FILE with the line, or where a description is of a turn that its dialogue does not have, or none is of
/// any turn.
pub(super) fn describe(
    dialogues: &mut [Dialogue],
    numbers: &[Vec<u64>],
    split: Split,
    path: &Path,
    cancel: &Cancel,
) -> Result<()> {
    let (path, mut descriptions) = load(path, split, cancel)?;
    let all = descriptions.len();
    for (dialogue, numbers) in dialogues.iter_mut().zip(numbers) {
        let bare = dialogue.id.strip_prefix(split.name()).and_then(|id| id.strip_prefix('/')).map(str::to_owned);
        for (turn, &number) in dialogue.turns.iter_mut().zip(numbers) {
            let found = descriptions.remove(&(dialogue.id.clone(), number));
            let found = found.or_else(|| descriptions.remove(&(bare.clone()?, number)));
            turn.visual = found.or(turn.visual.take());
        }
        if let Some((_, number)) = descriptions.keys().find(|(id, _)| *id == dialogue.id || Some(id) == bare.as_ref()) {
            let text = format!("describes turn {number} of dialogue {}, which has no such turn", dialogue.id);
            return Err(Error::bad_file(&path, text));
        }
    }
    if descriptions.len() == all && !dialogues.is_empty() {
        let text =
            format!("has {all} descriptions, none of them of a turn of these dialogues ({}, ..)", dialogues[0].id);
        return Err(Error::bad_file(&path, text));
    }
    Ok(())
}

/// What holds a split's descriptions, and they.
fn load(path: &Path, split: Split, cancel: &Cancel) -> Result<(PathBuf, Descriptions)> {
    if !path.is_dir() {
        return Ok((path.to_owned(), lines(path, &read(path, cancel)?, cancel)?));
    }
    let file = path.join(format!("{}.jsonl", split.name()));
    if file.exists() {
        let descriptions = lines(&file, &read(&file, cancel)?, cancel)?;
        return Ok((file, descriptions));
    }
    let part = path.join(split.name());
    let dir = if part.is_dir() { part } else { path.to_owned() };
    let descriptions = clips(&dir, cancel)?;
    Ok((dir, descriptions))
}

/// The descriptions of JSON lines.
pub(super) fn lines(path: &Path, bytes: &[u8], cancel: &Cancel) -> Result<Descriptions> {
    let mut all = Descriptions::new();
    for line in json_lines(path, bytes, cancel) {
        let (line, value) = line?;
        let place = |error: Error| Error::bad_file(path, format!("line {line}: {}", error.text()));
        let fields = Fields::new(&value, &["dialogue", "turn", "visual"]).map_err(place)?;
        let dialogue = match value.get("dialogue").and_then(serde_json::Value::as_u64) {
            Some(number) => number.to_string(),
            None => fields.required("dialogue").map_err(place)?,
        };
        let Some(turn) = value.get("turn").and_then(serde_json::Value::as_u64) else {
            return Err(Error::bad_file(path, format!("line {line}: `turn` is missing or no whole number")));
        };
        let visual = fields.required("visual").map_err(place)?;
        if all.insert((dialogue, turn), visual).is_some() {
            return Err(Error::bad_file(path, format!("line {line}: its turn was described before")));
        }
    }
    Ok(all)
}

/// The descriptions of a folder of texts.
fn clips(dir: &Path, cancel: &Cancel) -> Result<Descriptions> {
    let mut all = Descriptions::new();
    let entries = std::fs::read_dir(dir).map_err(|error| Error::io("read", dir, &error))?;
    for entry in entries {
        cancel.check()?;
        let path = entry.map_err(|error| Error::io("read", dir, &error))?.path();
        let Some(key) = path.file_name().and_then(|name| clip(name.to_str()?)) else { continue };
        let bytes = crate::files::read_watched(&path, LONGEST, cancel)?;
        let text = String::from_utf8(bytes).map_err(|_| Error::bad_file(&path, "is not UTF-8"))?;
        all.insert(key, text.trim().to_owned());
    }
    Ok(all)
}

/// Dialogue and turn of `dia0_utt3.txt`.
fn clip(name: &str) -> Option<(String, u64)> {
    let (dialogue, turn) = name.strip_suffix(".txt")?.strip_prefix("dia")?.split_once("_utt")?;
    let dialogue: u64 = dialogue.parse().ok()?;
    Some((dialogue.to_string(), turn.parse().ok()?))
}
