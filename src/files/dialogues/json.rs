//! JSON lines: this library's own form of dialogues, and pairs of prompt and completion.

use super::text::{Lines, label, quote};
use super::{Dialogue, Pair, Turn};
use crate::{Cancel, Code, Error, Result};
use serde_json::Value;
use std::path::Path;

/// One dialogue a line: `{"id", "turns": [{"speaker", "text", "emotion", "visual", "weight"}]}`. Everything but `turns`
/// and `text` may be left out; a name outside this list is refused, so that a misspelt `emotion` is not lost in silence.
pub fn jsonl(path: &Path, bytes: &[u8], known: Option<&[String]>, cancel: &Cancel) -> Result<Vec<Dialogue>> {
    let mut dialogues = Vec::new();
    for line in json_lines(path, bytes, cancel) {
        let (line, value) = line?;
        let place = |error: Error| Error::bad_file(path, format!("line {line}: {}", error.text()));
        let dialogue = Dialogue::from_json(&value, &format!("d{}", dialogues.len())).map_err(place)?;
        for emotion in dialogue.turns.iter().filter_map(|turn| turn.emotion.as_ref()) {
            label(path, format_args!("line {line}"), emotion, known)?;
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
pub(super) fn json_lines<'a>(
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
pub(super) struct Fields<'a>(&'a serde_json::Map<String, Value>);

impl<'a> Fields<'a> {
    pub(super) fn new(value: &'a Value, known: &[&str]) -> Result<Self> {
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
    pub(super) fn text(&self, name: &str) -> Result<Option<String>> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(Error::new(Code::BadFile, format!("`{name}` is not a text"))),
        }
    }

    pub(super) fn required(&self, name: &str) -> Result<String> {
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
