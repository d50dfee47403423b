//! Dialogues as people have them: the sets of the field as released, JSON lines, plain `Name: text` logs, and prompts with
//! completions. A file here is a format.
//!
//! Every reader takes a whole file's bytes, the file's name for messages, and a request to stop that it heeds between
//! lines, which are short enough for that. What a turn means to a model is not known
//! here. An error names file and line and what to do; the text of a dialogue is never part of it, nor is a parser's
//! own message where that could quote the text.

mod check;
mod dailydialog;
mod emorynlp;
mod emotionlines;
mod iemocap;
mod instructions;
mod json;
mod log;
mod meld;
mod published;
mod table;
mod text;
mod visual;

pub use check::Part;
pub use dailydialog::DAILYDIALOG_LABELS;
pub use emorynlp::EMORYNLP_LABELS;
pub use emotionlines::EMOTIONLINES_LABELS;
pub use iemocap::{Dev, Iemocap, LabelSet};
pub use json::{jsonl, pairs};
pub use log::{log, log_line};
pub use meld::{MELD_LABELS, meld};
pub use published::Published;

use crate::{Cancel, Error, Result};
use serde::Serialize;
use serde_json::{Map, Value};
use std::path::PathBuf;
use std::str::FromStr;
use text::{read, splits_where};

/// What one speaker says before another does.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Turn {
    /// Who speaks.
    pub speaker: String,
    /// What is said.
    pub text: String,
    /// The emotion's name, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub emotion: Option<String>,
    /// What is seen while it is said, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub visual: Option<String>,
    /// How much this turn counts in training; 1 where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<f32>,
}

/// Turns in the order they were said.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Dialogue {
    /// A name that is unique in its file.
    pub id: String,
    /// The turns.
    pub turns: Vec<Turn>,
}

/// A prompt and what should follow it, both taken as they are.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// The text that is given.
    pub prompt: String,
    /// The text that is learned.
    pub completion: String,
    /// How much it counts in training.
    pub weight: f32,
}

/// Part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// To learn from.
    Train,
    /// To choose by.
    Dev,
    /// To report once.
    Test,
}

impl Split {
    /// All of them.
    pub const ALL: [Split; 3] = [Split::Train, Split::Dev, Split::Test];

    /// `train`, `dev` or `test`.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Dev => "dev",
            Split::Test => "test",
        }
    }
}

impl FromStr for Split {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        let found = Split::ALL.into_iter().find(|split| split.name() == name);
        found.ok_or_else(|| Error::invalid(format!("split is `{name}`, must be train, dev or test")))
    }
}

/// Where data come from, written `KIND:PATH`, or `KIND:PATH?NAME=VALUE&NAME=VALUE` where there is something to choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `meld:DIR`: a folder with `train_sent_emo.csv`, `dev_sent_emo.csv` and `test_sent_emo.csv`.
    Meld(PathBuf),
    /// `meld-dyadic:DIR`: the same with `train_sent_emo_dya.csv` and so on.
    MeldDyadic(PathBuf),
    /// `emorynlp:DIR`: a folder with one form of EmoryNLP: `emotion-detection-trn.json` and so on, `train_data.json` and so
    /// on (both the whole set), or `emorynlp_train_final.csv` and so on (the reduced one).
    EmoryNlp(PathBuf),
    /// `iemocap:DIR`: the release's folder; what there is to choose says [`Iemocap::new`].
    Iemocap(Iemocap),
    /// `dailydialog:DIR`: a folder with `train/dialogues_train.txt`, `train/dialogues_emotion_train.txt` and so on, or with
    /// `dialogues_text.txt` and `dialogues_emotion.txt`.
    DailyDialog(PathBuf),
    /// `emotionlines:PATH`: a JSON file, or a folder with `friends_train.json` or `emotionpush_train.json` and so on.
    EmotionLines(PathBuf),
    /// `jsonl:PATH`: one dialogue a line, or a folder with `train.jsonl`, `dev.jsonl` and `test.jsonl`.
    Jsonl(PathBuf),
    /// `log:FILE`: `Name: text` lines; an empty line ends a dialogue.
    Log(PathBuf),
    /// `pairs:FILE`: `{"prompt", "completion"}` a line.
    Pairs(PathBuf),
    /// `instructions:FILE`: a JSON list of `{"instruction", "input", "output"}`, read as prompts and completions.
    Instructions(PathBuf),
    /// Any kind of dialogues with `?label=speaker`: a turn's label is who says it, `Speaker_0` who speaks first of all.
    Speakers(Box<Source>),
    /// Any kind of dialogues with `?visual=PATH`: descriptions of what is seen, as JSON lines `{"dialogue", "turn", "visual"}`
    /// or a folder of texts `dia0_utt3.txt`.
    Described {
        /// The dialogues.
        of: Box<Source>,
        /// The descriptions.
        visual: PathBuf,
    },
}

/// How the kinds are written.
const KINDS: &str = "meld:DIR, meld-dyadic:DIR, emorynlp:DIR, iemocap:DIR, dailydialog:DIR, emotionlines:PATH, jsonl:PATH, \
                     log:FILE, pairs:FILE or instructions:FILE";

impl FromStr for Source {
    type Err = Error;
    fn from_str(spec: &str) -> Result<Self> {
        let (kind, rest) = spec.split_once(':').unwrap_or(("", spec));
        let (path, options) = match rest.rsplit_once('?') {
            Some((path, options)) if options.contains('=') => (path, options),
            _ => (rest, ""),
        };
        let options = options.split('&').filter(|option| !option.is_empty());
        let options: Vec<(&str, &str)> = options.map(|option| option.split_once('=').unwrap_or((option, ""))).collect();
        let (labelled, options): (Vec<_>, Vec<_>) = options.into_iter().partition(|(name, _)| *name == "label");
        let (visual, options): (Vec<_>, Vec<_>) = options.into_iter().partition(|(name, _)| *name == "visual");
        let path = PathBuf::from(path);
        let source = match kind {
            "iemocap" => Source::Iemocap(Iemocap::new(path, &options)?),
            _ if !options.is_empty() => {
                let text = format!("data are given as `{spec}`: `{}` is unknown for {kind}", options[0].0);
                return Err(Error::invalid(text));
            }
            "meld" => Source::Meld(path),
            "meld-dyadic" => Source::MeldDyadic(path),
            "emorynlp" => Source::EmoryNlp(path),
            "dailydialog" => Source::DailyDialog(path),
            "emotionlines" => Source::EmotionLines(path),
            "jsonl" => Source::Jsonl(path),
            "log" => Source::Log(path),
            "pairs" => Source::Pairs(path),
            "instructions" => Source::Instructions(path),
            _ => return Err(Error::invalid(format!("data are given as `{spec}`, must be {KINDS}"))),
        };
        let wrong =
            |what: &str| Err(Error::invalid(format!("data are given as `{spec}`: {what} is once, and of dialogues")));
        let source = match *visual {
            [] => source,
            [(_, visual)] if !source.is_pairs() && !visual.is_empty() => {
                Source::Described { of: Box::new(source), visual: visual.into() }
            }
            _ => return wrong("visual=PATH"),
        };
        match *labelled {
            [] => Ok(source),
            [(_, "speaker")] if !source.is_pairs() => Ok(Source::Speakers(Box::new(source))),
            _ => wrong("label=speaker"),
        }
    }
}

impl Source {
    /// The dialogues of `split`; a file without splits gives all it has. A label that is not among `known` is an error
    /// (the set's own where `known` is `None`; anything goes for JSON lines and logs).
    pub fn dialogues(&self, split: Split, known: Option<&[String]>, cancel: &Cancel) -> Result<Vec<Dialogue>> {
        match self {
            Source::Meld(dir) | Source::MeldDyadic(dir) => {
                let path = dir.join(meld::file(split, matches!(self, Source::MeldDyadic(_))));
                meld(&path, &read(&path, cancel)?, split, known, cancel)
            }
            Source::EmoryNlp(dir) => emorynlp::emorynlp(dir, split, known, cancel),
            Source::Iemocap(iemocap) => all_known(iemocap.dialogues(split, cancel)?, known, &iemocap.dir),
            Source::DailyDialog(dir) => all_known(dailydialog::dailydialog(dir, split, cancel)?, known, dir),
            Source::EmotionLines(path) => {
                let (file, prefix) = match path.is_dir() {
                    true => (emotionlines::file(path, split)?, split.name()),
                    false => (path.clone(), "all"),
                };
                emotionlines::emotionlines(&file, &read(&file, cancel)?, prefix, known, cancel)
            }
            Source::Jsonl(path) if path.is_dir() => {
                let path = path.join(format!("{}.jsonl", split.name()));
                jsonl(&path, &read(&path, cancel)?, known, cancel)
            }
            Source::Jsonl(path) => jsonl(path, &read(path, cancel)?, known, cancel),
            Source::Log(path) => log(path, &read(path, cancel)?, cancel),
            Source::Speakers(of) => {
                let mut dialogues = of.dialogues(split, None, cancel)?;
                dialogues.iter_mut().for_each(label_by_speaker);
                all_known(dialogues, known, std::path::Path::new("?label=speaker"))
            }
            Source::Described { of, visual } => {
                let mut dialogues = of.dialogues(split, known, cancel)?;
                let numbers = of.numbers(&dialogues, split, cancel)?;
                visual::describe(&mut dialogues, &numbers, split, visual, cancel)?;
                Ok(dialogues)
            }
            Source::Pairs(_) | Source::Instructions(_) => Err(Error::invalid(
                "pairs:FILE and instructions:FILE hold prompts, not dialogues; they can only be trained on",
            )),
        }
    }

    /// The number of every turn in its file: what descriptions call it by.
    fn numbers(&self, dialogues: &[Dialogue], split: Split, cancel: &Cancel) -> Result<Vec<Vec<u64>>> {
        match self {
            Source::Meld(dir) | Source::MeldDyadic(dir) => {
                let path = dir.join(meld::file(split, matches!(self, Source::MeldDyadic(_))));
                meld::numbers(&path, &read(&path, cancel)?, cancel)
            }
            _ => Ok(dialogues.iter().map(|dialogue| (0..dialogue.turns.len() as u64).collect()).collect()),
        }
    }

    /// The splits that these data are cut into; none for a single file.
    pub fn splits(&self) -> Vec<Split> {
        match self {
            Source::Meld(_) | Source::MeldDyadic(_) => Split::ALL.to_vec(),
            Source::EmoryNlp(dir) => splits_where(|split| emorynlp::has(dir, split)),
            Source::Iemocap(iemocap) => iemocap.splits(),
            Source::DailyDialog(dir) => splits_where(|split| dailydialog::has(dir, split)),
            Source::EmotionLines(path) => splits_where(|split| emotionlines::has(path, split)),
            Source::Jsonl(path) => {
                splits_where(|split| path.is_dir() && path.join(format!("{}.jsonl", split.name())).exists())
            }
            Source::Described { of, .. } | Source::Speakers(of) => of.splits(),
            Source::Log(_) | Source::Pairs(_) | Source::Instructions(_) => Vec::new(),
        }
    }

    /// The labels of a set that has its own, in the order in which they are asked by default.
    pub fn labels(&self) -> Option<&'static [&'static str]> {
        match self {
            Source::Meld(_) | Source::MeldDyadic(_) => Some(&MELD_LABELS),
            Source::EmoryNlp(_) => Some(&EMORYNLP_LABELS),
            Source::Iemocap(iemocap) => Some(iemocap.labels.names()),
            Source::DailyDialog(_) => Some(&DAILYDIALOG_LABELS),
            Source::Described { of, .. } => of.labels(),
            Source::Speakers(_) => Some(&SPEAKER_LABELS),
            // of EmotionLines papers take different parts
            _ => None,
        }
    }

    /// Whether these are prompts with completions, not dialogues.
    pub fn is_pairs(&self) -> bool {
        matches!(self, Source::Pairs(_) | Source::Instructions(_))
    }

    /// The prompts and completions of a `pairs:FILE` or an `instructions:FILE`.
    pub fn pairs(&self, cancel: &Cancel) -> Result<Vec<Pair>> {
        match self {
            Source::Pairs(path) => pairs(path, &read(path, cancel)?, cancel),
            Source::Instructions(path) => instructions::instructions(path, &read(path, cancel)?, cancel),
            _ => Err(Error::invalid(
                "these data are dialogues; prompts and completions come from pairs:FILE or instructions:FILE",
            )),
        }
    }
}

/// The labels of `?label=speaker`: as many as InstructERC has (arXiv 2309.11911).
pub const SPEAKER_LABELS: [&str; 9] = [
    "Speaker_0",
    "Speaker_1",
    "Speaker_2",
    "Speaker_3",
    "Speaker_4",
    "Speaker_5",
    "Speaker_6",
    "Speaker_7",
    "Speaker_8",
];

/// The number of every turn's speaker, from 0 by first appearance.
pub fn speaker_numbers(turns: &[Turn]) -> Vec<usize> {
    let mut known: Vec<&str> = Vec::new();
    turns
        .iter()
        .map(|turn| {
            known.iter().position(|speaker| *speaker == turn.speaker).unwrap_or_else(|| {
                known.push(&turn.speaker);
                known.len() - 1
            })
        })
        .collect()
}

/// A turn's label is its speaker; those past the last label have none.
pub(crate) fn label_by_speaker(dialogue: &mut Dialogue) {
    let numbers = speaker_numbers(&dialogue.turns);
    for (turn, number) in dialogue.turns.iter_mut().zip(numbers) {
        turn.emotion = SPEAKER_LABELS.get(number).map(|label| (*label).to_owned());
    }
}

/// `dialogues`, whose labels a reader has made of codes, if all are among `known`.
fn all_known(dialogues: Vec<Dialogue>, known: Option<&[String]>, path: &std::path::Path) -> Result<Vec<Dialogue>> {
    for dialogue in &dialogues {
        for emotion in dialogue.turns.iter().filter_map(|turn| turn.emotion.as_ref()) {
            text::label(path, format_args!("dialogue {}", dialogue.id), emotion, known)?;
        }
    }
    Ok(dialogues)
}

/// Every label and how many turns have it, the most frequent first, equals by name.
pub fn label_counts(dialogues: &[Dialogue]) -> Vec<(&str, usize)> {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for label in dialogues.iter().flat_map(|dialogue| &dialogue.turns).filter_map(|turn| turn.emotion.as_deref()) {
        match counts.iter_mut().find(|(name, _)| *name == label) {
            Some((_, n)) => *n += 1,
            None => counts.push((label, 1)),
        }
    }
    counts.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    counts
}

/// How many dialogues and turns there are, and turns of every label.
pub fn stats(dialogues: &[Dialogue]) -> Value {
    let turns: usize = dialogues.iter().map(|dialogue| dialogue.turns.len()).sum();
    let labels = label_counts(dialogues).into_iter().map(|(name, n)| (name.to_owned(), n.into()));
    serde_json::json!({"dialogues": dialogues.len(), "turns": turns, "labels": labels.collect::<Map<String, Value>>()})
}

#[cfg(test)]
mod tests;
