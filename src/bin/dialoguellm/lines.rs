//! Dialogues that come as lines.

use clap::{Args, ValueEnum};
use dialoguellm::files::dialogues::{Dialogue, log_line};
use dialoguellm::{Code, Error, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Stdin};
use std::path::PathBuf;

/// Where they come from.
#[derive(Args)]
pub struct Lines {
    /// A file instead of standard input
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// jsonl: {"id", "turns": [{"speaker", "text"}, ..]} a line; log: `Name: text` a line, an empty line between dialogues
    #[arg(long, value_enum, default_value = "jsonl")]
    format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Jsonl,
    Log,
}

impl Lines {
    /// Begins to read.
    pub fn open(&self) -> Result<Reader> {
        Ok(Reader::new(Input::open(self.input.as_deref())?, self.format))
    }
}

/// The longest line that is read: far above any dialogue, far below memory.
const LINE_LIMIT: u64 = 64 << 20;
/// Dialogues asked together where more are there already.
const TOGETHER: usize = 32;

/// A dialogue and the line it began at.
pub struct Item {
    pub dialogue: Dialogue,
    pub line: u64,
}

enum Input {
    Stdin(BufReader<Stdin>),
    File(BufReader<File>),
}

impl Input {
    fn open(path: Option<&std::path::Path>) -> Result<Self> {
        match path {
            None => Ok(Self::Stdin(BufReader::new(std::io::stdin()))),
            Some(path) => {
                let file = File::open(path).map_err(|error| Error::io("open", path, &error))?;
                Ok(Self::File(BufReader::new(file)))
            }
        }
    }

    /// Whether a whole line can be had without waiting.
    fn has_line(&self) -> bool {
        let buffer = match self {
            Self::Stdin(reader) => reader.buffer(),
            Self::File(reader) => reader.buffer(),
        };
        buffer.contains(&b'\n')
    }

    fn line(&mut self) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match self {
            Self::Stdin(reader) => reader.take(LINE_LIMIT).read_until(b'\n', &mut bytes)?,
            Self::File(reader) => reader.take(LINE_LIMIT).read_until(b'\n', &mut bytes)?,
        };
        Ok(bytes)
    }
}

/// Lines to dialogues.
pub struct Reader {
    input: Input,
    format: Format,
    line: u64,
    dialogues: usize,
    /// A log's dialogue that is not over.
    open: Option<Item>,
    ended: bool,
}

impl Reader {
    fn new(input: Input, format: Format) -> Self {
        Self { input, format, line: 0, dialogues: 0, open: None, ended: false }
    }

    /// The next dialogues, as many as are there already but at least one; `None` at the end.
    pub fn batch(&mut self) -> Result<Option<Vec<Result<Item>>>> {
        let mut batch = Vec::new();
        while !self.ended && batch.len() < TOGETHER && (batch.is_empty() || self.input.has_line()) {
            batch.extend(self.next()?);
        }
        Ok((!batch.is_empty()).then_some(batch))
    }

    /// What the next line completes. Errors: IO, which ends the reading.
    fn next(&mut self) -> Result<Option<Result<Item>>> {
        let bytes = self.input.line().map_err(|error| Error::io("read", std::path::Path::new("the input"), &error))?;
        self.line += 1;
        if bytes.is_empty() {
            self.ended = true;
            return Ok(self.open.take().map(Ok));
        }
        if bytes.len() as u64 == LINE_LIMIT && bytes.last() != Some(&b'\n') {
            return Err(self.bad(format!("is longer than {LINE_LIMIT} bytes")));
        }
        let text = match std::str::from_utf8(&bytes) {
            Ok(text) => text.trim(),
            Err(error) => {
                let at = error.valid_up_to();
                return Ok(Some(Err(self.bad(format!("byte {} is 0x{:02x}, which is not UTF-8", at + 1, bytes[at])))));
            }
        };
        Ok(match self.format {
            Format::Jsonl if text.is_empty() => None,
            Format::Jsonl => Some(self.json(text)),
            Format::Log => self.log(text),
        })
    }

    fn json(&mut self, text: &str) -> Result<Item> {
        let name = self.name();
        let value = serde_json::from_str(text)
            .map_err(|error| self.bad(format!("column {}: not JSON; one whole dialogue a line", error.column())))?;
        let dialogue = Dialogue::from_json(&value, &name).map_err(|error| self.bad(error.text().to_owned()))?;
        Ok(Item { dialogue, line: self.line })
    }

    fn log(&mut self, text: &str) -> Option<Result<Item>> {
        if text.is_empty() {
            return self.open.take().map(Ok);
        }
        let Some(turn) = log_line(text) else {
            return Some(Err(self.bad("is not of the form `Name: text`".into())));
        };
        match &mut self.open {
            Some(item) => item.dialogue.turns.push(turn),
            None => {
                self.open = Some(Item { dialogue: Dialogue { id: self.name(), turns: vec![turn] }, line: self.line })
            }
        }
        None
    }

    /// The name of a dialogue that has none.
    fn name(&mut self) -> String {
        self.dialogues += 1;
        format!("d{}", self.dialogues - 1)
    }

    fn bad(&self, text: String) -> Error {
        Error::new(Code::BadFile, format!("line {}: {text}", self.line))
    }
}
