//! Dialogues as people have them: MELD's CSV as released, JSON lines, plain `Name: text` logs, and prompt/completion pairs.
//!
//! Every reader takes a whole file's bytes, the file's name for messages, and a request to stop that it heeds between
//! lines, which are short enough for that. What a turn means to a model is not known
//! here. An error names file and line and what to do; the text of a dialogue is never part of it, nor is a parser's
//! own message where that could quote the text.

use crate::cancel::Watched;
use crate::{Cancel, Code, Error, Result};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

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
        let found = [Split::Train, Split::Dev, Split::Test].into_iter().find(|split| split.name() == name);
        found.ok_or_else(|| Error::invalid(format!("split is `{name}`, must be train, dev or test")))
    }
}

/// Where data come from: `meld:DIR`, `jsonl:FILE`, `log:FILE` or `pairs:FILE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder with `train_sent_emo.csv`, `dev_sent_emo.csv` and `test_sent_emo.csv`.
    Meld(PathBuf),
    /// One dialogue a line, or a folder with `train.jsonl`, `dev.jsonl` and `test.jsonl`.
    Jsonl(PathBuf),
    /// `Name: text` lines; an empty line ends a dialogue.
    Log(PathBuf),
    /// `{"prompt", "completion"}` a line.
    Pairs(PathBuf),
}

impl FromStr for Source {
    type Err = Error;
    fn from_str(spec: &str) -> Result<Self> {
        let (kind, path) = spec.split_once(':').unwrap_or(("", spec));
        match kind {
            "meld" => Ok(Source::Meld(path.into())),
            "jsonl" => Ok(Source::Jsonl(path.into())),
            "log" => Ok(Source::Log(path.into())),
            "pairs" => Ok(Source::Pairs(path.into())),
            _ => Err(Error::invalid(format!(
                "data are given as `{spec}`, must be meld:DIR, jsonl:FILE, log:FILE or pairs:FILE"
            ))),
        }
    }
}

impl Source {
    /// The dialogues of `split`; a file without splits gives all it has. A label that is not among `known` is an error
    /// (MELD's own seven where `known` is `None`; anything goes for the other formats).
    pub fn dialogues(&self, split: Split, known: Option<&[String]>, cancel: &Cancel) -> Result<Vec<Dialogue>> {
        match self {
            Source::Meld(dir) => {
                let path = dir.join(format!("{}_sent_emo.csv", split.name()));
                meld(&path, &read(&path, cancel)?, split, known, cancel)
            }
            Source::Jsonl(path) if path.is_dir() => {
                let path = path.join(format!("{}.jsonl", split.name()));
                jsonl(&path, &read(&path, cancel)?, known, cancel)
            }
            Source::Jsonl(path) => jsonl(path, &read(path, cancel)?, known, cancel),
            Source::Log(path) => log(path, &read(path, cancel)?, cancel),
            Source::Pairs(_) => {
                Err(Error::invalid("pairs:FILE holds prompts, not dialogues; they can only be trained on"))
            }
        }
    }

    /// The splits that these data are cut into; none for a single file.
    pub fn splits(&self) -> Vec<Split> {
        let all = [Split::Train, Split::Dev, Split::Test];
        match self {
            Source::Meld(_) => all.to_vec(),
            Source::Jsonl(path) if path.is_dir() => {
                all.into_iter().filter(|split| path.join(format!("{}.jsonl", split.name())).exists()).collect()
            }
            Source::Jsonl(_) | Source::Log(_) | Source::Pairs(_) => Vec::new(),
        }
    }

    /// The prompts and completions of a `pairs:FILE`.
    pub fn pairs(&self, cancel: &Cancel) -> Result<Vec<Pair>> {
        match self {
            Source::Pairs(path) => pairs(path, &read(path, cancel)?, cancel),
            _ => Err(Error::invalid("these data are dialogues; prompts and completions come from pairs:FILE")),
        }
    }
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
    json!({"dialogues": dialogues.len(), "turns": turns, "labels": labels.collect::<Map<String, Value>>()})
}

/// The labels of MELD, the most frequent of its train split first.
pub const MELD_LABELS: [&str; 7] = ["neutral", "joy", "surprise", "anger", "sadness", "disgust", "fear"];

/// The largest file of dialogues that is read: all of it is held in memory.
const MAX_BYTES: u64 = 1 << 30;

/// The longest line of JSON or of a log, far above any dialogue: what is done before a request to stop is heard.
const MAX_LINE: usize = 8 << 20;

fn read(path: &Path, cancel: &Cancel) -> Result<Vec<u8>> {
    super::read_watched(path, MAX_BYTES, cancel)
}

fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// The lines of a text, each with its number; none behind an error.
struct Lines<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    /// Where the next line begins, and its number.
    at: usize,
    number: u64,
    cancel: &'a Cancel,
}

impl<'a> Lines<'a> {
    fn of(path: &'a Path, bytes: &'a [u8], cancel: &'a Cancel) -> Self {
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

fn not_utf8(path: &Path, bytes: &[u8], at: usize) -> Error {
    let before = &bytes[..at];
    let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
    let column = 1 + before.iter().rev().take_while(|&&byte| byte != b'\n').count();
    // MELD before November 2020 and files derived from it have 0x91..0x97: typographic quotes and dashes of Windows-1252
    let likely = if (0x80..0xa0).contains(&bytes[at]) { ", probably Windows-1252" } else { "" };
    let text = format!(
        "line {line}, byte {column} is 0x{:02x}, which is not UTF-8{likely}; convert the file first, for example with \
         iconv -f WINDOWS-1252 -t UTF-8",
        bytes[at]
    );
    Error::bad_file(path, text)
}

/// `name` if `known` holds it, or all names are welcome.
fn label(path: &Path, line: u64, name: &str, known: Option<&[String]>) -> Result<String> {
    match known {
        Some(known) if !known.iter().any(|label| label == name) => {
            let text = format!("line {line}: unknown label {}; known are {}", quote(name), known.join(", "));
            Err(Error::bad_file(path, text))
        }
        _ if name.is_empty() => Err(Error::bad_file(path, format!("line {line}: the label is empty"))),
        _ => Ok(name.to_owned()),
    }
}

/// A label as it stands, unless it looks like a sentence that slipped into the label's column.
fn quote(name: &str) -> String {
    if name.len() <= 24 && name.chars().all(|c| c.is_alphanumeric() || "-_+/".contains(c)) {
        return format!("`{name}`");
    }
    format!("(a text of {} characters)", name.chars().count())
}

/// MELD's CSV as released (Poria et al. 2019, arXiv 1810.02508): one row an utterance, columns found by their names, others ignored.
///
/// Rows of a dialogue adjoin; Utterance_ID rises with gaps, so the previous utterance is the previous row. Dialogue_ID
/// starts again in every split, so a dialogue's id is `train/0`.
pub fn meld(
    path: &Path,
    bytes: &[u8],
    split: Split,
    known: Option<&[String]>,
    cancel: &Cancel,
) -> Result<Vec<Dialogue>> {
    let own: Vec<String> = MELD_LABELS.map(String::from).to_vec();
    let known = known.unwrap_or(&own);
    let text = without_mark(bytes);
    let mut lines = LineNumbers { text, at: 0, line: 1 };
    let mut reader = csv::ReaderBuilder::new().from_reader(Watched { from: text, cancel });
    let header = reader.headers();
    cancel.check()?;
    let header = header.map_err(|error| csv_error(path, &error, &mut lines))?;
    let columns = Columns::find(path, header)?;
    let mut rows = Rows { path, dialogues: Vec::new(), seen: HashMap::new(), last: (String::new(), 0) };
    for record in reader.records() {
        cancel.check()?;
        let record = record.map_err(|error| csv_error(path, &error, &mut lines))?;
        let line = lines.of(record.position());
        rows.push(line, &record, &columns, split, known)?;
    }
    Ok(rows.dialogues)
}

/// Line numbers of rising byte positions. The parser's own count is one line short after a `\r\n`: it takes a record's
/// position before it has seen the `\n`.
struct LineNumbers<'a> {
    text: &'a [u8],
    at: usize,
    line: u64,
}

impl LineNumbers<'_> {
    fn of(&mut self, position: Option<&csv::Position>) -> u64 {
        let from = position.map_or(self.at, |position| (position.byte() as usize).clamp(self.at, self.text.len()));
        let blank = self.text[from..].iter().take_while(|byte| b"\r\n".contains(byte)).count();
        let newlines = self.text[self.at..from + blank].iter().filter(|&&byte| byte == b'\n').count();
        self.at = from + blank;
        self.line += newlines as u64;
        self.line
    }
}

/// Where the columns that matter are.
struct Columns {
    text: usize,
    speaker: usize,
    emotion: usize,
    dialogue: usize,
    utterance: usize,
}

impl Columns {
    fn find(path: &Path, header: &csv::StringRecord) -> Result<Self> {
        let column = |name: &str| {
            header.iter().position(|column| column == name).ok_or_else(|| {
                let text = format!(
                    "line 1: no column `{name}`; MELD has Utterance, Speaker, Emotion, Dialogue_ID, Utterance_ID"
                );
                Error::bad_file(path, text)
            })
        };
        Ok(Self {
            text: column("Utterance")?,
            speaker: column("Speaker")?,
            emotion: column("Emotion")?,
            dialogue: column("Dialogue_ID")?,
            utterance: column("Utterance_ID")?,
        })
    }
}

/// The dialogues so far, and what the next row must agree with.
struct Rows<'a> {
    path: &'a Path,
    dialogues: Vec<Dialogue>,
    /// Dialogue_ID -> line of its first row
    seen: HashMap<String, u64>,
    /// Dialogue_ID and Utterance_ID of the row before
    last: (String, u64),
}

impl Rows<'_> {
    fn push(
        &mut self,
        line: u64,
        record: &csv::StringRecord,
        columns: &Columns,
        split: Split,
        known: &[String],
    ) -> Result<()> {
        let dialogue = self.number(line, "Dialogue_ID", &record[columns.dialogue])?.to_string();
        let utterance = self.number(line, "Utterance_ID", &record[columns.utterance])?;
        if self.dialogues.is_empty() || dialogue != self.last.0 {
            self.begin(line, &dialogue, split)?;
        } else if utterance <= self.last.1 {
            let text =
                format!("line {line}: Utterance_ID {utterance} comes after {}; rows must be in order", self.last.1);
            return Err(Error::bad_file(self.path, text));
        }
        let turn = Turn {
            speaker: record[columns.speaker].to_owned(),
            text: record[columns.text].to_owned(),
            emotion: Some(label(self.path, line, &record[columns.emotion], Some(known))?),
            ..Turn::default()
        };
        self.dialogues.last_mut().expect("begun above").turns.push(turn);
        self.last = (dialogue, utterance);
        Ok(())
    }

    fn begin(&mut self, line: u64, dialogue: &str, split: Split) -> Result<()> {
        if let Some(first) = self.seen.insert(dialogue.to_owned(), line) {
            let text =
                format!("line {line}: Dialogue_ID {dialogue} began at line {first}; rows of a dialogue must adjoin");
            return Err(Error::bad_file(self.path, text));
        }
        self.dialogues.push(Dialogue { id: format!("{}/{dialogue}", split.name()), turns: Vec::new() });
        Ok(())
    }

    fn number(&self, line: u64, column: &str, text: &str) -> Result<u64> {
        text.parse().map_err(|_| {
            let text = format!("line {line}: {column} is {}, must be a whole number", quote(text));
            Error::bad_file(self.path, text)
        })
    }
}

/// The parser's refusal without its own words, which may quote a field.
fn csv_error(path: &Path, error: &csv::Error, lines: &mut LineNumbers) -> Error {
    let line = lines.of(error.position());
    let not_csv = || Error::bad_file(path, format!("line {line} is not CSV"));
    match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            let text =
                format!("line {line} has {len} fields, the header has {expected_len}; check its quotes and commas");
            Error::bad_file(path, text)
        }
        csv::ErrorKind::Utf8 { pos: Some(pos), .. } => {
            // the parser counts inside the field
            let from = (pos.byte() as usize).min(lines.text.len());
            match std::str::from_utf8(&lines.text[from..]) {
                Err(error) => not_utf8(path, lines.text, from + error.valid_up_to()),
                Ok(_) => not_csv(),
            }
        }
        _ => not_csv(),
    }
}

/// One dialogue a line: `{"id", "turns": [{"speaker", "text", "emotion", "visual", "weight"}]}`. Everything but `turns`
/// and `text` may be left out; a name outside this list is refused, so that a misspelt `emotion` is not lost in silence.
pub fn jsonl(path: &Path, bytes: &[u8], known: Option<&[String]>, cancel: &Cancel) -> Result<Vec<Dialogue>> {
    let mut dialogues = Vec::new();
    for line in json_lines(path, bytes, cancel) {
        let (line, value) = line?;
        let place = |error: Error| Error::bad_file(path, format!("line {line}: {}", error.text()));
        let dialogue = Dialogue::from_json(&value, &format!("d{}", dialogues.len())).map_err(place)?;
        for emotion in dialogue.turns.iter().filter_map(|turn| turn.emotion.as_ref()) {
            label(path, line, emotion, known)?;
        }
        dialogues.push(dialogue);
    }
    Ok(dialogues)
}

/// One pair a line: `{"prompt", "completion"}` and optionally `"weight"`.
pub fn pairs(path: &Path, bytes: &[u8], cancel: &Cancel) -> Result<Vec<Pair>> {
    let pair = |(line, value): (u64, Value)| {
        let pair = Fields::new(&value, &["prompt", "completion", "weight"]).and_then(|fields| {
            let weight = fields.weight()?.unwrap_or(1.0);
            Ok(Pair { prompt: fields.required("prompt")?, completion: fields.required("completion")?, weight })
        });
        pair.map_err(|error| Error::bad_file(path, format!("line {line}: {}", error.text())))
    };
    json_lines(path, bytes, cancel).map(|line| line.and_then(pair)).collect()
}

/// The JSON value of every line that is not blank, with the line's number.
fn json_lines<'a>(
    path: &'a Path,
    bytes: &'a [u8],
    cancel: &'a Cancel,
) -> impl Iterator<Item = Result<(u64, Value)>> + 'a {
    let value = move |(line, text): (u64, &str)| {
        let value = serde_json::from_str(text).map_err(|error| {
            Error::bad_file(path, format!("line {line}, column {}: not JSON; one whole value a line", error.column()))
        })?;
        Ok((line, value))
    };
    let lines = Lines::of(path, bytes, cancel);
    let lines = lines.filter(|line| !line.as_ref().is_ok_and(|(_, text)| text.trim().is_empty()));
    lines.map(move |line| line.and_then(value))
}

impl Dialogue {
    /// A dialogue from its JSON form; `id` is its name if it has none of its own.
    pub fn from_json(value: &Value, id: &str) -> Result<Self> {
        let fields = Fields::new(value, &["id", "turns"])?;
        let Some(Value::Array(turns)) = value.get("turns") else {
            return Err(Error::new(Code::BadFile, "`turns` is missing or not a list"));
        };
        let turns = turns
            .iter()
            .zip(1..)
            .map(|(turn, number)| Turn::from_json(turn).map_err(|error| error.at(format!("turn {number}"))));
        let turns: Vec<Turn> = turns.collect::<Result<_>>()?;
        if turns.is_empty() {
            return Err(Error::new(Code::BadFile, "`turns` is empty, must hold one turn or more"));
        }
        Ok(Self { id: fields.text("id")?.unwrap_or_else(|| id.to_owned()), turns })
    }
}

impl Turn {
    /// A turn from its JSON form.
    pub fn from_json(value: &Value) -> Result<Self> {
        let fields = Fields::new(value, &["speaker", "text", "emotion", "visual", "weight"])?;
        Ok(Self {
            speaker: fields.text("speaker")?.unwrap_or_default(),
            text: fields.required("text")?,
            emotion: fields.text("emotion")?,
            visual: fields.text("visual")?,
            weight: fields.weight()?,
        })
    }
}

/// A JSON object whose names are all known.
struct Fields<'a>(&'a serde_json::Map<String, Value>);

impl<'a> Fields<'a> {
    fn new(value: &'a Value, known: &[&str]) -> Result<Self> {
        let Value::Object(object) = value else {
            return Err(Error::new(Code::BadFile, format!("not an object with {}", known.join(", "))));
        };
        match object.keys().find(|name| !known.contains(&name.as_str())) {
            Some(name) => {
                let text = format!("unknown name {}; known are {}", quote(name), known.join(", "));
                Err(Error::new(Code::BadFile, text))
            }
            None => Ok(Self(object)),
        }
    }

    /// The text under `name`; `None` where it is missing or null.
    fn text(&self, name: &str) -> Result<Option<String>> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(Error::new(Code::BadFile, format!("`{name}` is not a text"))),
        }
    }

    fn required(&self, name: &str) -> Result<String> {
        self.text(name)?.ok_or_else(|| Error::new(Code::BadFile, format!("`{name}` is missing")))
    }

    fn weight(&self) -> Result<Option<f32>> {
        let Some(value) = self.0.get("weight").filter(|value| !value.is_null()) else { return Ok(None) };
        match value.as_f64().map(|weight| weight as f32) {
            Some(weight) if weight.is_finite() && weight >= 0.0 => Ok(Some(weight)),
            _ => Err(Error::new(Code::BadFile, "`weight` is not a finite number of 0 or more")),
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str =
        "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\r\n";

    fn read_meld(rows: &str) -> Result<Vec<Dialogue>> {
        meld(Path::new("m.csv"), format!("{HEADER}{rows}").as_bytes(), Split::Dev, None, &Cancel::default())
    }

    fn row(text: &str, emotion: &str, dialogue: &str, utterance: &str) -> String {
        format!("1,{text},Ann,{emotion},neutral,{dialogue},{utterance},1,1,\"00:16:16,059\",\"0:16:17,000\"\r\n")
    }

    fn sentence<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn meld_rows_become_turns_with_gaps_in_their_numbers_and_quotes_undone() {
        let rows = row("\"Well, \"\"no\"\"  then\u{2019}\"", "joy", "7", "0")
            + &row("Hm", "fear", "7", "3")
            + &row("So", "anger", "9", "2");
        let dialogues = read_meld(&rows).unwrap();
        let ids: Vec<&str> = dialogues.iter().map(|dialogue| dialogue.id.as_str()).collect();
        assert_eq!(ids, ["dev/7", "dev/9"]);
        assert_eq!(dialogues[0].turns[0].text, "Well, \"no\"  then\u{2019}");
        assert_eq!(dialogues[0].turns[1].emotion.as_deref(), Some("fear"));
    }

    #[test]
    fn a_byte_order_mark_is_not_part_of_the_first_column() {
        let bytes = ["\u{feff}", HEADER, &row("Hm", "joy", "0", "0")].concat();
        assert_eq!(meld(Path::new("m.csv"), bytes.as_bytes(), Split::Dev, None, &Cancel::default()).unwrap().len(), 1);
    }

    #[test]
    fn a_missing_column_is_named() {
        let error = sentence(meld(
            Path::new("m.csv"),
            b"Utterance,Speaker,Dialogue_ID,Utterance_ID\n",
            Split::Dev,
            None,
            &Cancel::default(),
        ));
        assert!(error.contains("m.csv") && error.contains("`Emotion`"), "{error}");
    }

    #[test]
    fn an_unknown_label_names_its_line_and_the_known_ones() {
        let error = sentence(read_meld(&(row("Hm", "joy", "0", "0") + &row("Hm", "joyful", "0", "1"))));
        assert!(error.contains("line 3") && error.contains("`joyful`") && error.contains("neutral, joy"), "{error}");
    }

    #[test]
    fn a_sentence_in_the_label_column_is_not_repeated() {
        let error = sentence(read_meld(&row("Hm", "my secret words", "0", "0")));
        assert!(!error.contains("secret") && error.contains("15 characters"), "{error}");
    }

    #[test]
    fn a_windows_1252_byte_names_line_byte_and_remedy() {
        let bytes = [HEADER.as_bytes(), b"1,It\x92s,Ann,joy,positive,0,0,1,1,a,b\r\n"].concat();
        let error = sentence(meld(Path::new("m.csv"), &bytes, Split::Dev, None, &Cancel::default()));
        assert!(error.contains("line 2, byte 5 is 0x92") && error.contains("WINDOWS-1252"), "{error}");
    }

    #[test]
    fn rows_out_of_order_are_refused() {
        let error = sentence(read_meld(&(row("Hm", "joy", "0", "4") + &row("Hm", "joy", "0", "4"))));
        assert!(error.contains("line 3: Utterance_ID 4 comes after 4"), "{error}");
        let error = sentence(read_meld(
            &(row("Hm", "joy", "0", "0") + &row("Hm", "joy", "1", "0") + &row("Hm", "joy", "0", "1")),
        ));
        assert!(error.contains("line 4: Dialogue_ID 0 began at line 2"), "{error}");
    }

    #[test]
    fn a_row_with_too_few_fields_is_refused_with_both_counts() {
        let error = sentence(read_meld("1,Hm,Ann,joy\r\n"));
        assert!(error.contains("line 2 has 4 fields, the header has 11"), "{error}");
    }

    #[test]
    fn json_lines_give_all_they_hold() {
        let text = "\n{\"id\":\"x\",\"turns\":[{\"speaker\":\"A\",\"text\":\"b\",\"emotion\":\"joy\",\"visual\":\"c\",\"weight\":2}]}\n{\"turns\":[{\"text\":\"\",\"emotion\":null}]}";
        let dialogues = jsonl(Path::new("x"), text.as_bytes(), None, &Cancel::default()).unwrap();
        let turn = Turn {
            speaker: "A".into(),
            text: "b".into(),
            emotion: Some("joy".into()),
            visual: Some("c".into()),
            weight: Some(2.0),
        };
        assert_eq!(dialogues[0], Dialogue { id: "x".into(), turns: vec![turn] });
        assert_eq!(dialogues[1], Dialogue { id: "d1".into(), turns: vec![Turn::default()] });
    }

    #[test]
    fn a_written_dialogue_reads_back() {
        let turn = Turn {
            speaker: "A".into(),
            text: "\"b\"\n".into(),
            visual: Some("c".into()),
            weight: Some(0.5),
            emotion: None,
        };
        let dialogue = Dialogue { id: "x".into(), turns: vec![turn] };
        let text = serde_json::to_string(&dialogue).unwrap();
        assert_eq!(jsonl(Path::new("x"), text.as_bytes(), None, &Cancel::default()).unwrap(), [dialogue]);
    }

    #[test]
    fn json_errors_say_where_and_never_quote() {
        let cases = [
            ("{\"turns\":[{\"text\":\"secret\",\"emotions\":\"joy\"}]}", "line 1: turn 1: unknown name `emotions`"),
            ("{\"turns\":[{\"text\":[\"secret\"]}]}", "`text` is not a text"),
            ("{\"turns\":[{\"speaker\":\"secret\"}]}", "`text` is missing"),
            ("{\"turns\":[]}", "`turns` is empty"),
            ("{\"id\":\"secret\"}", "`turns` is missing"),
            ("\"secret\"", "not an object"),
            ("{\"turns\":[{\"text\":\"secret", "line 1, column 25: not JSON"),
            ("{\"turns\":[{\"text\":\"secret\",\"weight\":-1}]}", "`weight`"),
            ("{\"turns\":[{\"text\":\"secret\",\"emotion\":\"glee\"}]}", "unknown label `glee`; known are joy"),
        ];
        for (text, want) in cases {
            let error =
                sentence(jsonl(Path::new("f.jsonl"), text.as_bytes(), Some(&["joy".into()]), &Cancel::default()));
            assert!(error.contains(want) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn pairs_are_taken_as_they_are() {
        let text =
            "{\"prompt\":\" a\\n\",\"completion\":\" b\"}\n{\"prompt\":\"\",\"completion\":\"c\",\"weight\":0}\n";
        let pairs = pairs(Path::new("p"), text.as_bytes(), &Cancel::default()).unwrap();
        assert_eq!(pairs[0], Pair { prompt: " a\n".into(), completion: " b".into(), weight: 1.0 });
        assert_eq!(pairs[1].weight, 0.0);
    }

    #[test]
    fn a_log_is_names_and_texts_with_empty_lines_between_dialogues() {
        let dialogues = log(Path::new("l"), b"Ann: one: two\nBob:three\n\n\nAnn: four\n", &Cancel::default()).unwrap();
        assert_eq!(dialogues.iter().map(|dialogue| dialogue.turns.len()).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(dialogues[0].turns[0].text, "one: two");
        let error = sentence(log(Path::new("l"), b"Ann: one\nsecret words\n", &Cancel::default()));
        assert!(error.contains("l: line 2") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn every_reader_stops_as_asked() {
        let (path, cancel) = (Path::new("x"), Cancel::default());
        cancel.set();
        let csv = format!("{HEADER}{}", row("Hm", "joy", "0", "0"));
        let codes = [
            meld(path, csv.as_bytes(), Split::Dev, None, &cancel).unwrap_err().code(),
            jsonl(path, b"{\"turns\":[{\"text\":\"b\"}]}", None, &cancel).unwrap_err().code(),
            pairs(path, b"{\"prompt\":\"a\",\"completion\":\"b\"}", &cancel).unwrap_err().code(),
            log(path, b"Ann: one", &cancel).unwrap_err().code(),
            read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"), &cancel).unwrap_err().code(),
        ];
        assert_eq!(codes, [Code::Cancelled; 5]);
    }

    #[test]
    fn lines_are_those_of_a_text_and_none_is_longer_than_may_be() {
        let of = |text: &str| {
            let cancel = Cancel::default();
            Lines::of(Path::new("x"), text.as_bytes(), &cancel)
                .map(|line| line.map(|(_, text)| text.to_owned()))
                .collect()
        };
        let texts: Result<Vec<String>> = of("\u{feff}a\r\n\n b\rc \n\r\nd");
        assert_eq!(texts.unwrap(), "a\r\n\n b\rc \n\r\nd".lines().collect::<Vec<_>>());
        let longest = "x".repeat(MAX_LINE);
        let texts: Result<Vec<String>> = of(&format!("{longest}\n"));
        assert_eq!(texts.unwrap().len(), 1);
        let texts: Result<Vec<String>> = of(&format!("a\n{longest}x"));
        assert!(sentence(texts).contains("x: line 2 is longer than the 8388608 bytes"));
    }

    #[test]
    fn a_folder_has_the_splits_whose_files_are_there_and_a_file_has_none() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("dev.jsonl"), "").unwrap();
        assert_eq!(Source::Jsonl(dir.path().into()).splits(), [Split::Dev]);
        assert!(Source::Jsonl(dir.path().join("dev.jsonl")).splits().is_empty());
        assert_eq!(Source::Meld(dir.path().into()).splits().len(), 3);
    }

    #[test]
    fn a_source_is_a_kind_and_a_path() {
        assert_eq!("meld:a:b".parse::<Source>().unwrap(), Source::Meld("a:b".into()));
        assert!(sentence("movie:x".parse::<Source>()).contains("`movie:x`"));
        assert_eq!(
            Source::Meld("/nowhere".into()).dialogues(Split::Dev, None, &Cancel::default()).unwrap_err().code(),
            Code::NotFound
        );
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(bytes: Vec<u8>, at in 0usize..400, byte: u8) {
            let mut csv = format!("{HEADER}{}{}", row("Hm", "joy", "0", "0"), row("\"a,b\"", "fear", "0", "1")).into_bytes();
            let end = at.min(csv.len() - 1);
            csv[end] = byte;
            let mut json = b"{\"id\":\"x\",\"turns\":[{\"text\":\"b\",\"weight\":2}]}".to_vec();
            let end = at.min(json.len() - 1);
            json[end] = byte;
            for bytes in [&bytes, &csv, &json] {
                let path = Path::new("x");
                let _ = (meld(path, bytes, Split::Test, None, &Cancel::default()), jsonl(path, bytes, None, &Cancel::default()), pairs(path, bytes, &Cancel::default()), log(path, bytes, &Cancel::default()));
            }
        }
    }
}
