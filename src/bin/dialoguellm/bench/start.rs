//! How long a program that is started for one question takes to answer it, and where that time goes.

use super::{median, timed};
use crate::args::ModelArgs;
use dialoguellm::files::Tokenizer;
use dialoguellm::model::Model;
use dialoguellm::{Error, Result};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Tokens of the prompt.
const TOKENS: usize = 100;

/// What is written when a prompt of this machine's own making is scored by a program of its own, in seconds.
pub struct Start {
    tokens: usize,
    total: f64,
    /// What follows what; together `total`.
    parts: [(&'static str, f64); 4],
}

impl Start {
    /// Medians of `repeats` programs, after one that brings the files into memory.
    pub fn measure(args: &ModelArgs, model: &Model, repeats: usize) -> Result<Self> {
        let prompt = prompt(model)?;
        let mut question: Vec<OsString> = vec!["score".into(), "--json".into(), "--continuation= yes".into()];
        question.push(format!("--prompt={prompt}").into());
        question.extend(args.arguments());
        let total = median(repeats, || first_line(&question))?;
        let program = median(repeats, || first_line(&["--version".into()]))?;
        let folder = args.folder()?;
        let tokenizer = median(repeats, || timed(|| Tokenizer::open(&folder).map(drop)))?;
        let opened = median(repeats, || timed(|| args.open().map(drop)))?;
        let tokens = model.tokenizer().encode(&prompt, true)?.len();
        let parts = [
            ("program", program),
            ("tokenizer", tokenizer),
            ("weights", opened - tokenizer),
            ("pass", total - program - opened),
        ];
        Ok(Self { tokens, total, parts })
    }

    pub fn text(&self) -> String {
        let mut text = format!("start    a prompt of {} tokens, from nothing{:16.0} ms", self.tokens, 1e3 * self.total);
        for (name, seconds) in self.parts {
            let bar = "#".repeat((40.0 * (seconds / self.total).clamp(0.0, 1.0)).round() as usize);
            text += format!("\n         {name:10} {:5.0} ms  {bar}", 1e3 * seconds).trim_end();
        }
        text
    }

    pub fn json(&self) -> Value {
        let parts: serde_json::Map<_, _> = self.parts.iter().map(|(name, s)| ((*name).to_owned(), json!(s))).collect();
        json!({"tokens": self.tokens, "seconds": self.total, "parts": parts})
    }
}

/// A text of about [`TOKENS`] tokens.
fn prompt(model: &Model) -> Result<String> {
    let text = "Ann: That is what I said, and nobody listened to me. Bo: I did, and I am sorry. ".repeat(TOKENS);
    let ids = model.tokenizer().encode(&text, false)?;
    model.tokenizer().decode(&ids[..ids.len().min(TOKENS)], true)
}

/// Seconds until this program, started with `arguments`, has written a line.
fn first_line(arguments: &[OsString]) -> Result<f64> {
    let refused = |error: std::io::Error| Error::internal(format!("cannot start this program again: {error}"));
    let program = std::env::current_exe().map_err(refused)?;
    let started = Instant::now();
    let mut child = Command::new(program).args(arguments).stdout(Stdio::piped()).spawn().map_err(refused)?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).map_err(refused)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let status = child.wait().map_err(refused)?;
    match status.success() && !line.is_empty() {
        true => Ok(seconds),
        false => Err(Error::internal(format!("this program, started again, ended with {status}"))),
    }
}
