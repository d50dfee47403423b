//! DailyDialog (Li et al. 2017, arXiv 1710.03957): a dialogue a line, its emotions as numbers on the same line of another file.
//!
//! Two people speak in turns; they are called A and B.

use super::text::{Lines, read};
use super::{Dialogue, Split, Turn};
use crate::{Cancel, Error, Result};
use std::path::{Path, PathBuf};

/// The labels of DailyDialog by their numbers; papers leave the first out of their micro F1.
pub const DAILYDIALOG_LABELS: [&str; 7] =
    ["no emotion", "anger", "disgust", "fear", "happiness", "sadness", "surprise"];

/// What ends an utterance.
const END: &str = "__eou__";

/// Texts and emotions of a split, or of the whole set where it is not cut.
pub(super) fn files(dir: &Path, split: Split) -> [PathBuf; 2] {
    let name = if split == Split::Dev { "validation" } else { split.name() };
    let part = dir.join(name);
    if has(dir, split) {
        return [part.join(format!("dialogues_{name}.txt")), part.join(format!("dialogues_emotion_{name}.txt"))];
    }
    [dir.join("dialogues_text.txt"), dir.join("dialogues_emotion.txt")]
}

/// Whether the set is cut, and has a split.
pub(super) fn has(dir: &Path, split: Split) -> bool {
    dir.join(if split == Split::Dev { "validation" } else { split.name() }).is_dir()
}

/// The dialogues of a split.
pub(super) fn dailydialog(dir: &Path, split: Split, cancel: &Cancel) -> Result<Vec<Dialogue>> {
    let [texts, emotions] = files(dir, split);
    let prefix = if has(dir, split) { split.name() } else { "all" };
    parse((&texts, &read(&texts, cancel)?), (&emotions, &read(&emotions, cancel)?), prefix, cancel)
}

/// The dialogues of a file of texts and one of emotions; ids begin with `prefix`.
pub fn parse(texts: (&Path, &[u8]), emotions: (&Path, &[u8]), prefix: &str, cancel: &Cancel) -> Result<Vec<Dialogue>> {
    let mut lines = Lines::of(texts.0, texts.1, cancel);
    let mut labels = Lines::of(emotions.0, emotions.1, cancel);
    let mut dialogues = Vec::new();
    loop {
        let (number, text, numbers) = match (lines.next().transpose()?, labels.next().transpose()?) {
            (None, None) => return Ok(dialogues),
            (Some((number, text)), Some((_, numbers))) => (number, text, numbers),
            (Some((number, _)), None) => return Err(too_short(emotions.0, number, texts.0)),
            (None, Some((number, _))) => return Err(too_short(texts.0, number, emotions.0)),
        };
        let said: Vec<&str> = text.split(END).map(str::trim).filter(|text| !text.is_empty()).collect();
        let felt: Vec<&str> = numbers.split_whitespace().collect();
        if said.len() != felt.len() {
            let text = format!("line {number} has {} numbers for {} utterances", felt.len(), said.len());
            return Err(Error::bad_file(emotions.0, text));
        }
        if said.is_empty() {
            continue;
        }
        let turn = |(i, (text, number_of)): (usize, (&&str, &&str))| {
            let label = number_of.parse().ok().and_then(|n: usize| DAILYDIALOG_LABELS.get(n)).ok_or_else(|| {
                let text = format!("line {number}: {} is no number from 0 to 6", super::text::quote(number_of));
                Error::bad_file(emotions.0, text)
            })?;
            let speaker = ["A", "B"][i % 2].to_owned();
            Ok(Turn { speaker, text: (*text).to_owned(), emotion: Some((*label).to_owned()), ..Turn::default() })
        };
        let turns = said.iter().zip(&felt).enumerate().map(turn).collect::<Result<_>>()?;
        dialogues.push(Dialogue { id: format!("{prefix}/{}", number - 1), turns });
    }
}

fn too_short(path: &Path, number: u64, other: &Path) -> Error {
    Error::bad_file(path, format!("ends before line {number}, which {} has", other.display()))
}
