//! IEMOCAP's release folder (Busso et al. 2008): transcriptions give text and order, EmoEvaluation the labels, joined by id.
//!
//! Sessions 1 to 4 are to learn from, session 5 is the test. The release names no dev split; the literature has two ways,
//! `dev=last20` and a list of its own, `dev=FILE`. A dialogue's id is its file's name, `Ses01F_impro01`, where F says who
//! wears the markers; who speaks is the letter behind the last underscore of an utterance's id.

use super::text::{Lines, read};
use super::{Dialogue, Split, Turn};
use crate::{Cancel, Code, Error, Result};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// Which labels count, and what is done with turns that have another one or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Iemocap {
    /// The release: the folder with Session1 to Session5.
    pub dir: PathBuf,
    /// The label set.
    pub labels: LabelSet,
    /// Whether turns without a label of the set stay, as context that nobody is asked about, or are left out.
    pub keep_unlabelled: bool,
    /// Which dialogues of sessions 1 to 4 are the dev split.
    pub dev: Option<Dev>,
    /// A file with ids of utterances that count as `hap` though the annotators did not agree (`xxx`): DialogueRNN's files
    /// have 53 such, which makes their 7,433 utterances of the release's 7,380.
    pub happy: Option<PathBuf>,
}

/// A set of labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelSet {
    /// happiness (excitement counts as it), sadness, neutral, anger: 5,531 utterances.
    Four,
    /// happiness, sadness, neutral, anger, excitement, frustration: 7,380 utterances.
    Six,
    /// The same with fear and surprise, as DialogueLLM's code has it.
    Eight,
}

/// How a dev split is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dev {
    /// The last 20 dialogues of sessions 1 to 4 by their names.
    Last20,
    /// Those that a file names, one a line.
    Listed(PathBuf),
}

const SIX: [&str; 6] = ["happiness", "sadness", "neutral", "anger", "excitement", "frustration"];
const EIGHT: [&str; 8] = ["happiness", "sadness", "neutral", "anger", "excitement", "frustration", "fear", "surprise"];

impl LabelSet {
    /// The labels' names, in DialogueRNN's order.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            LabelSet::Four => &SIX[..4],
            LabelSet::Six => &SIX,
            LabelSet::Eight => &EIGHT,
        }
    }

    /// The name of a three-letter code, if the set has it.
    fn name(self, code: &str) -> Option<&'static str> {
        let name = match code {
            "hap" => "happiness",
            "sad" => "sadness",
            "neu" => "neutral",
            "ang" => "anger",
            "exc" if self == LabelSet::Four => "happiness",
            "exc" => "excitement",
            "fru" => "frustration",
            "fea" => "fear",
            "sur" => "surprise",
            _ => return None,
        };
        self.names().contains(&name).then_some(name)
    }
}

/// The codes of the release.
const CODES: [&str; 11] = ["ang", "dis", "exc", "fea", "fru", "hap", "neu", "oth", "sad", "sur", "xxx"];

/// Sessions to learn from, and the one to test on.
const LEARNED: [usize; 4] = [1, 2, 3, 4];
const TESTED: usize = 5;

impl Iemocap {
    /// The release in `dir` with six labels, unlabelled turns kept, and no dev split; `options` change that:
    /// `labels=4|6|8`, `unlabelled=keep|drop`, `dev=last20|FILE`, `hap=FILE`.
    pub fn new(dir: PathBuf, options: &[(&str, &str)]) -> Result<Self> {
        let mut all = Self { dir, labels: LabelSet::Six, keep_unlabelled: true, dev: None, happy: None };
        for &(name, value) in options {
            match (name, value) {
                ("labels", "4") => all.labels = LabelSet::Four,
                ("labels", "6") => all.labels = LabelSet::Six,
                ("labels", "8") => all.labels = LabelSet::Eight,
                ("labels", "7433") => {
                    return Err(Error::invalid(
                        "labels=7433: these are the release's 7,380 utterances and 53 on whose label nobody agreed, \
                         counted as happiness by DialogueRNN's files; give their ids as hap=FILE to have them too, or \
                         take labels=6",
                    ));
                }
                ("unlabelled", "keep") => all.keep_unlabelled = true,
                ("unlabelled", "drop") => all.keep_unlabelled = false,
                ("dev", "last20") => all.dev = Some(Dev::Last20),
                ("dev", file) if !file.is_empty() => all.dev = Some(Dev::Listed(file.into())),
                ("hap", file) if !file.is_empty() => all.happy = Some(file.into()),
                _ => {
                    return Err(Error::invalid(format!(
                        "iemocap:DIR?{name}={value}: there are labels=4, 6 or 8, unlabelled=keep or drop, dev=last20 or \
                         a file of dialogues' names, hap=FILE"
                    )));
                }
            }
        }
        Ok(all)
    }

    /// The splits there are.
    pub(super) fn splits(&self) -> Vec<Split> {
        Split::ALL.into_iter().filter(|split| *split != Split::Dev || self.dev.is_some()).collect()
    }

    /// The dialogues of a split, by session and name. Errors: NOT_FOUND where the folder has no session of it;
    /// INVALID_ARGUMENT for a dev split that was not chosen; BAD_FILE with file and line.
    pub(super) fn dialogues(&self, split: Split, cancel: &Cancel) -> Result<Vec<Dialogue>> {
        let files = self.files(if split == Split::Test { &[TESTED] } else { &LEARNED }, cancel)?;
        let dev = match split {
            Split::Test => BTreeSet::new(),
            _ => self.dev_names(&files, cancel)?,
        };
        if split == Split::Dev && self.dev.is_none() {
            let text = "IEMOCAP has no dev split of its own: choose iemocap:DIR?dev=last20, or ?dev=FILE with the names of \
                        its dialogues";
            return Err(Error::invalid(text));
        }
        let happy = self.happy.as_ref().map_or(Ok(BTreeSet::new()), |path| names(path, cancel))?;
        let wanted =
            files.iter().filter(|file| split == Split::Test || dev.contains(&file.name) == (split == Split::Dev));
        wanted
            .map(|file| self.dialogue(file, &happy, cancel))
            .filter(|all| !all.as_ref().is_ok_and(|d| d.turns.is_empty()))
            .collect()
    }

    /// The transcriptions of sessions, by session and name.
    fn files(&self, sessions: &[usize], cancel: &Cancel) -> Result<Vec<File>> {
        let mut files = Vec::new();
        for session in sessions {
            cancel.check()?;
            let dialog = self.dir.join(format!("Session{session}")).join("dialog");
            let dir = dialog.join("transcriptions");
            if !dir.exists() {
                continue;
            }
            let entries = std::fs::read_dir(&dir).map_err(|error| Error::io("read", &dir, &error))?;
            let mut here = Vec::new();
            for entry in entries {
                let path = entry.map_err(|error| Error::io("read", &dir, &error))?.path();
                let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".txt"));
                // `._NAME.txt` is what macOS leaves beside a file on foreign disks
                if let Some(name) = name.filter(|name| !name.starts_with("._")) {
                    let labels = dialog.join("EmoEvaluation").join(format!("{name}.txt"));
                    here.push(File { name: name.to_owned(), text: path.clone(), labels });
                }
            }
            here.sort_by(|a, b| a.name.cmp(&b.name));
            files.extend(here);
        }
        if files.is_empty() {
            let wanted: Vec<String> = sessions.iter().map(|n| format!("Session{n}/dialog/transcriptions")).collect();
            let text = format!("{} has no {}: not IEMOCAP's release", self.dir.display(), wanted.join(" or "));
            return Err(Error::not_found(text));
        }
        Ok(files)
    }

    /// The names of the dev split's dialogues, all of them among `files`.
    fn dev_names(&self, files: &[File], cancel: &Cancel) -> Result<BTreeSet<String>> {
        match &self.dev {
            None => Ok(BTreeSet::new()),
            Some(Dev::Last20) => Ok(files.iter().rev().take(20).map(|file| file.name.clone()).collect()),
            Some(Dev::Listed(path)) => {
                let names = names(path, cancel)?;
                match names.iter().find(|name| !files.iter().any(|file| file.name == **name)) {
                    Some(name) => {
                        let text = format!("names {}, which sessions 1 to 4 do not have", super::text::quote(name));
                        Err(Error::bad_file(path, text))
                    }
                    None => Ok(names),
                }
            }
        }
    }

    fn dialogue(&self, file: &File, happy: &BTreeSet<String>, cancel: &Cancel) -> Result<Dialogue> {
        let labels = evaluations(&file.labels, &read(&file.labels, cancel)?, cancel)?;
        let mut turns = transcript(&file.text, &read(&file.text, cancel)?, &file.name, cancel)?;
        for (id, turn) in &mut turns {
            let code = labels.get(id.as_str()).map(String::as_str);
            let code = if happy.contains(id) { Some("hap") } else { code };
            turn.emotion = code.and_then(|code| self.labels.name(code)).map(str::to_owned);
        }
        let turns = turns.into_iter().map(|(_, turn)| turn);
        let turns = turns.filter(|turn| self.keep_unlabelled || turn.emotion.is_some()).collect();
        Ok(Dialogue { id: file.name.clone(), turns })
    }
}

/// A dialogue's files.
struct File {
    name: String,
    text: PathBuf,
    labels: PathBuf,
}

/// The names that a file lists, one a line.
fn names(path: &Path, cancel: &Cancel) -> Result<BTreeSet<String>> {
    let bytes = read(path, cancel)?;
    let lines = Lines::of(path, &bytes, cancel).map(|line| line.map(|(_, text)| text.trim().to_owned()));
    lines.filter(|line| !line.as_ref().is_ok_and(String::is_empty)).collect()
}

/// `Ses01F_impro01_F000 [006.2901-008.2357]: text` a line, in the order of the dialogue. Lines without an id and times
/// (`M: Yeah.`) are passed over; an id of the dialogue without them is an error.
pub fn transcript(path: &Path, bytes: &[u8], dialogue: &str, cancel: &Cancel) -> Result<Vec<(String, Turn)>> {
    let mut turns = Vec::new();
    for line in Lines::of(path, bytes, cancel) {
        let (number, line) = line?;
        match utterance(line) {
            Some((id, text)) => {
                let speaker = id.rsplit_once('_').map_or("", |(_, last)| last).chars().take(1).collect();
                turns.push((id.to_owned(), Turn { speaker, text: text.to_owned(), ..Turn::default() }));
            }
            None if line.starts_with(dialogue) => {
                let text = format!("line {number}: not of the form `ID [start-end]: text`");
                return Err(Error::bad_file(path, text));
            }
            None => {}
        }
    }
    Ok(turns)
}

/// Id and text of a line of a transcription.
fn utterance(line: &str) -> Option<(&str, &str)> {
    let (id, rest) = line.split_once(char::is_whitespace)?;
    let (times, text) = rest.trim_start().strip_prefix('[')?.split_once("]:")?;
    let (start, end) = times.split_once('-')?;
    let is_time = |text: &str| text.parse::<f64>().is_ok_and(|seconds| seconds.is_finite() && seconds >= 0.0);
    (is_time(start) && is_time(end)).then_some((id, text.trim()))
}

/// The label of every utterance that has a line `[start - end]<tab>ID<tab>code<tab>[V, A, D]`.
pub fn evaluations(path: &Path, bytes: &[u8], cancel: &Cancel) -> Result<HashMap<String, String>> {
    let mut labels = HashMap::new();
    for line in Lines::of(path, bytes, cancel) {
        let (number, line) = line?;
        if !line.starts_with('[') {
            continue;
        }
        let wrong = |text: String| Error::new(Code::BadFile, format!("{}: line {number}: {text}", path.display()));
        let mut fields = line.split('\t').skip(1);
        let (Some(id), Some(code)) = (fields.next(), fields.next()) else {
            return Err(wrong("not of the form `[start - end]<tab>ID<tab>label<tab>[V, A, D]`".to_owned()));
        };
        if !CODES.contains(&code) {
            let text = format!("unknown label {}; known are {}", super::text::quote(code), CODES.join(", "));
            return Err(wrong(text));
        }
        if labels.insert(id.to_owned(), code.to_owned()).is_some_and(|before| before != code) {
            return Err(wrong(format!("{} has two labels", super::text::quote(id))));
        }
    }
    Ok(labels)
}
