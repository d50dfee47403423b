//! EmotionLines (Chen et al. 2018, arXiv 1802.08379), also as EmotionX has it: a JSON list of dialogues, each a list of
//! `{"speaker", "utterance", "emotion", "annotation"}`.

use super::text::{json_file, label, only_one, own};
use super::{Dialogue, Split, Turn};
use crate::{Cancel, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// The labels of EmotionLines: MELD's, and `non-neutral` where the annotators agreed on no more.
pub const EMOTIONLINES_LABELS: [&str; 8] =
    ["neutral", "joy", "surprise", "anger", "sadness", "disgust", "fear", "non-neutral"];

/// The names that a split's file may have.
fn files(split: Split) -> [String; 2] {
    ["friends", "emotionpush"].map(|set| format!("{set}_{}.json", split.name()))
}

/// Whether a folder holds a split.
pub(super) fn has(dir: &Path, split: Split) -> bool {
    files(split).iter().any(|name| dir.join(name).exists())
}

/// The file of a folder's split.
pub(super) fn file(dir: &Path, split: Split) -> Result<PathBuf> {
    only_one(dir, &files(split), "EmotionLines")
}

/// The dialogues of a file; ids begin with `prefix`.
pub fn emotionlines(
    path: &Path,
    bytes: &[u8],
    prefix: &str,
    known: Option<&[String]>,
    cancel: &Cancel,
) -> Result<Vec<Dialogue>> {
    #[derive(Deserialize)]
    struct Utterance {
        speaker: String,
        utterance: String,
        emotion: String,
    }
    let what = "a list of dialogues, each a list of {\"speaker\", \"utterance\", \"emotion\"}";
    let all: Vec<Vec<Utterance>> = json_file(path, bytes, what, cancel)?;
    let known = own(known, &EMOTIONLINES_LABELS);
    let mut dialogues = Vec::new();
    for (dialogue, utterances) in all.into_iter().enumerate().filter(|(_, utterances)| !utterances.is_empty()) {
        let turn = |(i, utterance): (usize, Utterance)| {
            let place = format!("dialogue {}, utterance {}", dialogue + 1, i + 1);
            let emotion = Some(label(path, place, &utterance.emotion, Some(&known))?);
            Ok(Turn { speaker: utterance.speaker, text: utterance.utterance, emotion, ..Turn::default() })
        };
        let turns = utterances.into_iter().enumerate().map(turn).collect::<Result<_>>()?;
        dialogues.push(Dialogue { id: format!("{prefix}/{dialogue}"), turns });
    }
    Ok(dialogues)
}
