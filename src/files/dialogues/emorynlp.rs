//! EmoryNLP (Zahiri and Choi 2018, arXiv 1708.04299) in the three forms people have, of which two are the whole set and
//! one a part of it: scores on the two cannot be compared.
//!
//! | form | files | scenes, utterances (train, dev, test) |
//! |---|---|---|
//! | official | `emotion-detection-{trn,dev,tst}.json` | 713, 99, 85; 9,934, 1,344, 1,328 |
//! | small | `{train,dev,test}_data.json` | the same, without ids |
//! | reduced | `emorynlp_{train,dev,test}_final.csv` | 659, 89, 79; 7,551, 954, 984: what DialogueLLM reports on |
//!
//! A dialogue is a scene; its id is the official one, `s01_e15_c01`, or `dev/0` in the small form. Several speakers of an
//! utterance are joined by a space, as the small form has them.

use super::table::{Grouped, Table};
use super::text::{Said, json_file, label, lists, only_one, own, quote, read};
use super::{Dialogue, Split, Turn};
use crate::{Cancel, Error, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// The labels of EmoryNLP, the most frequent of the whole train split first.
pub const EMORYNLP_LABELS: [&str; 7] = ["Neutral", "Joyful", "Scared", "Mad", "Peaceful", "Powerful", "Sad"];

/// The names that a split's file may have: official, small, reduced.
fn files(split: Split) -> [String; 3] {
    let official = match split {
        Split::Train => "trn",
        Split::Dev => "dev",
        Split::Test => "tst",
    };
    let name = split.name();
    [format!("emotion-detection-{official}.json"), format!("{name}_data.json"), format!("emorynlp_{name}_final.csv")]
}

/// Whether a folder holds a split in some form.
pub(super) fn has(dir: &Path, split: Split) -> bool {
    files(split).iter().any(|name| dir.join(name).exists())
}

/// The file of a split, and whether it is of the reduced set.
pub(super) fn file(dir: &Path, split: Split) -> Result<(PathBuf, bool)> {
    let path = only_one(dir, &files(split), "EmoryNLP")?;
    let reduced = path.extension().is_some_and(|extension| extension == "csv");
    Ok((path, reduced))
}

/// The scenes of a folder's split, in whichever form it has them.
pub(super) fn emorynlp(dir: &Path, split: Split, known: Option<&[String]>, cancel: &Cancel) -> Result<Vec<Dialogue>> {
    let (path, reduced) = file(dir, split)?;
    let bytes = read(&path, cancel)?;
    match reduced {
        true => self::reduced(&path, &bytes, known, cancel),
        false if path.ends_with(&files(split)[0]) => official(&path, &bytes, known, cancel),
        false => small(&path, &bytes, split, known, cancel),
    }
}

/// The official form: seasons of episodes of scenes of utterances.
pub fn official(path: &Path, bytes: &[u8], known: Option<&[String]>, cancel: &Cancel) -> Result<Vec<Dialogue>> {
    #[derive(Deserialize)]
    struct Season {
        episodes: Vec<Episode>,
    }
    #[derive(Deserialize)]
    struct Episode {
        scenes: Vec<Scene>,
    }
    #[derive(Deserialize)]
    struct Scene {
        scene_id: String,
        utterances: Vec<Utterance>,
    }
    #[derive(Deserialize)]
    struct Utterance {
        utterance_id: String,
        speakers: Vec<String>,
        transcript: String,
        emotion: String,
    }
    let what = "EmoryNLP's {\"episodes\": [{\"scenes\": [{\"scene_id\", \"utterances\": [{\"utterance_id\", \"speakers\", \
                \"transcript\", \"emotion\"}]}]}]}";
    let season: Season = json_file(path, bytes, what, cancel)?;
    let known = own(known, &EMORYNLP_LABELS);
    let turn = |utterance: Utterance| {
        let place = format!("utterance {}", quote(&utterance.utterance_id));
        let emotion = label(path, place, &utterance.emotion, Some(&known))?;
        let speaker = utterance.speakers.join(" ");
        Ok(Turn { speaker, text: utterance.transcript, emotion: Some(emotion), ..Turn::default() })
    };
    let scenes = season.episodes.into_iter().flat_map(|episode| episode.scenes);
    let scenes = scenes.filter(|scene| !scene.utterances.is_empty());
    let dialogue = |scene: Scene| {
        let turns = scene.utterances.into_iter().map(turn).collect::<Result<_>>()?;
        Ok(Dialogue { id: scene.scene_id, turns })
    };
    scenes.map(dialogue).collect()
}

/// The small form: scenes of utterances, without ids.
pub fn small(
    path: &Path,
    bytes: &[u8],
    split: Split,
    known: Option<&[String]>,
    cancel: &Cancel,
) -> Result<Vec<Dialogue>> {
    #[derive(Deserialize)]
    struct Utterance {
        text: String,
        speaker: String,
        label: String,
    }
    impl From<Utterance> for Said {
        fn from(utterance: Utterance) -> Self {
            Said(utterance.speaker, utterance.text, utterance.label)
        }
    }
    let what = "a list of scenes, each a list of {\"text\", \"speaker\", \"label\"}";
    lists::<Utterance>(path, bytes, (what, "scene", split.name()), &own(known, &EMORYNLP_LABELS), cancel)
}

/// The reduced form: CSV, one row an utterance, speakers as Python writes a list.
pub fn reduced(path: &Path, bytes: &[u8], known: Option<&[String]>, cancel: &Cancel) -> Result<Vec<Dialogue>> {
    let columns = ["Utterance", "Speaker", "Emotion", "Scene_ID", "Utterance_ID", "Season", "Episode"];
    let mut table = Table::open(path, bytes, "EmoryNLP", &columns, cancel)?;
    let mut grouped = Grouped::new(path, ["scene", "Utterance_ID"]);
    let known = own(known, &EMORYNLP_LABELS);
    while let Some(row) = table.read()? {
        let number = |column: usize| table.number(&row, column, columns[column]);
        let id = format!("s{:02}_e{:02}_c{:02}", number(5)?, number(6)?, number(3)?);
        let speakers = python_list(table.field(&row, 1)).ok_or_else(|| {
            Error::bad_file(path, format!("line {}: Speaker is no list of names as Python writes it", row.line))
        })?;
        let turn = Turn {
            speaker: speakers.join(" "),
            text: table.field(&row, 0).to_owned(),
            emotion: Some(label(path, format_args!("line {}", row.line), table.field(&row, 2), Some(&known))?),
            ..Turn::default()
        };
        let utterance = number(4)?;
        grouped.push(row.line, (id.clone(), id), utterance, turn)?;
    }
    Ok(grouped.dialogues)
}

/// The texts of `['Monica Geller', "Joey's Date"]`.
fn python_list(text: &str) -> Option<Vec<String>> {
    let mut chars = text.trim().strip_prefix('[')?.strip_suffix(']')?.chars().peekable();
    let mut all = Vec::new();
    loop {
        while chars.next_if(|c| c.is_whitespace() || (*c == ',' && !all.is_empty())).is_some() {}
        let Some(quote) = chars.next() else { return Some(all) };
        if !"'\"".contains(quote) {
            return None;
        }
        let mut text = String::new();
        loop {
            match chars.next()? {
                '\\' => text.push(chars.next()?),
                c if c == quote => break,
                c => text.push(c),
            }
        }
        all.push(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_python_list_has_names_in_either_quotes() {
        let list = |text| python_list(text).map(|all| all.join("|"));
        assert_eq!(list(r#"['Ann Lee', "Bo's Date", 'O\'Hara']"#).unwrap(), "Ann Lee|Bo's Date|O'Hara");
        assert_eq!(list("[]").unwrap(), "");
        for wrong in ["Ann", "['Ann'", "['Ann]", "[Ann]", "['Ann\\"] {
            assert!(python_list(wrong).is_none(), "{wrong}");
        }
    }
}
