//! CSV with a header, one row an utterance.

use super::text::{not_utf8, quote, without_mark};
use super::{Dialogue, Turn};
use crate::cancel::Watched;
use crate::{Cancel, Error, Result};
use std::collections::HashMap;
use std::path::Path;

/// The rows of a file, of which columns are taken by their names; others are passed over.
pub(super) struct Table<'a> {
    path: &'a Path,
    lines: LineNumbers<'a>,
    records: csv::StringRecordsIntoIter<Watched<'a, &'a [u8]>>,
    /// Where the columns are, in the order in which they were asked for.
    columns: Vec<usize>,
    cancel: &'a Cancel,
}

/// A row, and the line it begins at.
pub(super) struct Row {
    pub line: u64,
    record: csv::StringRecord,
}

impl<'a> Table<'a> {
    /// `what` has all of `columns`; the error names the first that the file lacks.
    pub(super) fn open(
        path: &'a Path,
        bytes: &'a [u8],
        what: &str,
        columns: &[&str],
        cancel: &'a Cancel,
    ) -> Result<Self> {
        let text = without_mark(bytes);
        let mut lines = LineNumbers { text, at: 0, line: 1 };
        let mut reader = csv::ReaderBuilder::new().from_reader(Watched { from: text, cancel });
        let header = reader.headers();
        cancel.check()?;
        let header = header.map_err(|error| csv_error(path, &error, &mut lines))?;
        let column = |name: &&str| {
            header.iter().position(|column| column == *name).ok_or_else(|| {
                let text = format!("line 1: no column `{name}`; {what} has {}", columns.join(", "));
                Error::bad_file(path, text)
            })
        };
        let columns = columns.iter().map(column).collect::<Result<_>>()?;
        Ok(Self { path, lines, records: reader.into_records(), columns, cancel })
    }

    /// A row's field, by the column's place among those asked for.
    pub(super) fn field<'r>(&self, row: &'r Row, column: usize) -> &'r str {
        row.record.get(self.columns[column]).unwrap_or_default()
    }

    /// The same as a whole number.
    pub(super) fn number(&self, row: &Row, column: usize, name: &str) -> Result<u64> {
        let text = self.field(row, column);
        text.parse().map_err(|_| {
            let text = format!("line {}: {name} is {}, must be a whole number", row.line, quote(text));
            Error::bad_file(self.path, text)
        })
    }

    /// The next row.
    pub(super) fn read(&mut self) -> Result<Option<Row>> {
        self.cancel.check()?;
        let Some(record) = self.records.next() else { return Ok(None) };
        self.cancel.check()?;
        let record = record.map_err(|error| csv_error(self.path, &error, &mut self.lines))?;
        Ok(Some(Row { line: self.lines.of(record.position()), record }))
    }
}

/// Those of `columns` that a file does not have.
pub(super) fn missing<'c>(path: &Path, bytes: &[u8], columns: &[&'c str], cancel: &Cancel) -> Result<Vec<&'c str>> {
    let mut reader = csv::ReaderBuilder::new().from_reader(Watched { from: without_mark(bytes), cancel });
    let header = reader.headers();
    cancel.check()?;
    let mut lines = LineNumbers { text: without_mark(bytes), at: 0, line: 1 };
    let header = header.map_err(|error| csv_error(path, &error, &mut lines))?;
    Ok(columns.iter().copied().filter(|name| !header.iter().any(|column| column == *name)).collect())
}

/// Dialogues of rows: those of one adjoin, and their numbers rise.
pub(super) struct Grouped<'a> {
    path: &'a Path,
    /// What names a dialogue and what counts its utterances, as the columns are called.
    names: [&'static str; 2],
    pub dialogues: Vec<Dialogue>,
    /// The line at which a dialogue began
    seen: HashMap<String, u64>,
    /// Dialogue and number of the row before
    last: (String, u64),
}

impl<'a> Grouped<'a> {
    pub(super) fn new(path: &'a Path, names: [&'static str; 2]) -> Self {
        Self { path, names, dialogues: Vec::new(), seen: HashMap::new(), last: (String::new(), 0) }
    }

    /// A turn of the dialogue `key`, which is called `id` outside.
    pub(super) fn push(&mut self, line: u64, (key, id): (String, String), number: u64, turn: Turn) -> Result<()> {
        let [dialogue, utterance] = self.names;
        if self.dialogues.is_empty() || key != self.last.0 {
            if let Some(first) = self.seen.insert(key.clone(), line) {
                let text =
                    format!("line {line}: {dialogue} {key} began at line {first}; rows of a dialogue must adjoin");
                return Err(Error::bad_file(self.path, text));
            }
            self.dialogues.push(Dialogue { id, turns: Vec::new() });
        } else if number <= self.last.1 {
            let text = format!("line {line}: {utterance} {number} comes after {}; rows must be in order", self.last.1);
            return Err(Error::bad_file(self.path, text));
        }
        self.dialogues.last_mut().expect("begun above").turns.push(turn);
        self.last = (key, number);
        Ok(())
    }
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
