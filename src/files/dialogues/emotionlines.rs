//! EmotionLines (Chen et al. 2018, arXiv 1802.08379), also as EmotionX has it: a JSON list of dialogues, each a list of
//! `{"speaker", "utterance", "emotion", "annotation"}`.

use super::text::{Said, lists, only_one, own};
use super::{Dialogue, Split};
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
    impl From<Utterance> for Said {
        fn from(utterance: Utterance) -> Self {
            Said(utterance.speaker, utterance.utterance, utterance.emotion)
        }
    }
    let what = "a list of dialogues, each a list of {\"speaker\", \"utterance\", \"emotion\"}";
    lists::<Utterance>(path, bytes, (what, "dialogue", prefix), &own(known, &EMOTIONLINES_LABELS), cancel)
}
