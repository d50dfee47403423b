//! Plain text: `Name: text` a line.

use super::text::Lines;
use super::{Dialogue, Turn};
use crate::{Cancel, Error, Result};
use std::path::Path;

/// `Name: text` lines; an empty line ends a dialogue. Dialogues are named `d0`, `d1`, ...
pub fn log(path: &Path, bytes: &[u8], cancel: &Cancel) -> Result<Vec<Dialogue>> {
    let mut dialogues: Vec<Dialogue> = Vec::new();
    let mut open = false;
    for line in Lines::of(path, bytes, cancel) {
        let (number, line) = line?;
        if line.trim().is_empty() {
            open = false;
            continue;
        }
        let turn = log_line(line).ok_or_else(|| {
            Error::bad_file(path, format!("line {number}: not of the form `Name: text`; an empty line ends a dialogue"))
        })?;
        if !open {
            dialogues.push(Dialogue { id: format!("d{}", dialogues.len()), turns: Vec::new() });
            open = true;
        }
        dialogues.last_mut().expect("pushed above").turns.push(turn);
    }
    Ok(dialogues)
}

/// The turn that a line `Name: text` says, if it is one.
pub fn log_line(line: &str) -> Option<Turn> {
    let (speaker, text) = line.split_once(':')?;
    let (speaker, text) = (speaker.trim(), text.trim());
    if speaker.is_empty() || text.is_empty() {
        return None;
    }
    Some(Turn { speaker: speaker.to_owned(), text: text.to_owned(), ..Turn::default() })
}
