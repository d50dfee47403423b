//! `data`: what a data set holds, whether all of it can be read, and the same as JSON lines.

use crate::args::Style;
use crate::out::{self, thousands};
use clap::{Args, Subcommand};
use dialoguellm::files::dialogues::{Dialogue, Source, Split, label_counts, stats};
use dialoguellm::{Cancel, Error, Result};
use serde_json::{Map, Value, json};

/// Count, check or convert dialogues.
#[derive(Args)]
pub struct Data {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Dialogues, turns and labels of every split
    Stats(Spec),
    /// Read everything and say what is wrong with the first line that cannot be read
    Check(Spec),
    /// Write dialogues as JSON lines to standard output
    Convert(Spec),
}

#[derive(Args)]
struct Spec {
    /// meld:DIR, jsonl:FILE, log:FILE or pairs:FILE
    #[arg(long = "data", value_name = "SPEC")]
    data: String,
    /// Only this split: train, dev or test
    #[arg(long)]
    split: Option<String>,
    /// The labels there may be, with commas between; another one is then an error
    #[arg(long, value_name = "A,B,..", value_delimiter = ',')]
    labels: Option<Vec<String>>,
}

/// A split, if there are any, and what it holds.
type Part = (Option<Split>, Vec<Dialogue>);

impl Data {
    pub fn run(&self, style: Style) -> Result<()> {
        match &self.command {
            Command::Stats(spec) => spec.stats(style),
            Command::Check(spec) => spec.check(style),
            Command::Convert(spec) => spec.convert(),
        }
    }
}

impl Spec {
    fn source(&self) -> Result<Source> {
        self.data.parse()
    }

    /// Every split that is asked for.
    fn parts(&self) -> Result<Vec<Part>> {
        let source = self.source()?;
        let read = |split: Option<Split>| {
            let dialogues =
                source.dialogues(split.unwrap_or(Split::Test), self.labels.as_deref(), &Cancel::default())?;
            Ok((split, dialogues))
        };
        match (&self.split, source.splits().as_slice()) {
            (Some(split), _) => Ok(vec![read(Some(split.parse()?))?]),
            (None, []) => Ok(vec![read(None)?]),
            (None, splits) => splits.iter().map(|&split| read(Some(split))).collect(),
        }
    }

    fn pairs(&self) -> Result<Option<usize>> {
        match self.source()? {
            source @ Source::Pairs(_) => Ok(Some(source.pairs(&Cancel::default())?.len())),
            _ => Ok(None),
        }
    }

    fn stats(&self, style: Style) -> Result<()> {
        if let Some(pairs) = self.pairs()? {
            return if style.json {
                out::json(&json!({"pairs": pairs}))
            } else {
                out::line(format_args!("{pairs} pairs"))
            };
        }
        let parts = self.parts()?;
        if style.json {
            let all: Map<String, Value> = parts.iter().map(|part| (name(part).to_owned(), stats(&part.1))).collect();
            return out::json(&json!({"splits": all}));
        }
        parts.iter().try_for_each(|part| out::text(&table(name(part), &part.1)))
    }

    fn check(&self, style: Style) -> Result<()> {
        let what = match self.pairs()? {
            Some(pairs) => json!({"ok": true, "pairs": pairs}),
            None => {
                let parts = self.parts()?;
                let turns: usize = parts.iter().flat_map(|part| &part.1).map(|dialogue| dialogue.turns.len()).sum();
                let dialogues: usize = parts.iter().map(|part| part.1.len()).sum();
                json!({"ok": true, "dialogues": dialogues, "turns": turns})
            }
        };
        if style.json {
            return out::json(&what);
        }
        let counts: Vec<String> = ["dialogues", "turns", "pairs"]
            .iter()
            .filter_map(|name| Some(format!("{} {name}", thousands(what[name].as_u64()?))))
            .collect();
        out::line(format_args!("all of {} can be read: {}", self.data, counts.join(", ")))
    }

    fn convert(&self) -> Result<()> {
        let parts = self.parts()?;
        if parts.len() > 1 {
            let splits = parts.iter().map(name).collect::<Vec<_>>().join(", ");
            return Err(Error::invalid(format!("{} has splits {splits}: choose one with --split", self.data)));
        }
        parts.iter().flat_map(|part| &part.1).try_for_each(|dialogue| out::json(&json!(dialogue)))
    }
}

fn name(part: &Part) -> &'static str {
    part.0.map_or("all", Split::name)
}

fn table(name: &str, dialogues: &[Dialogue]) -> String {
    let turns: usize = dialogues.iter().map(|dialogue| dialogue.turns.len()).sum();
    let longest = dialogues.iter().map(|dialogue| dialogue.turns.len()).max().unwrap_or(0);
    let mut text = format!(
        "{name}: {} dialogues, {} turns, {:.1} a dialogue, at most {longest}\n",
        thousands(dialogues.len() as u64),
        thousands(turns as u64),
        turns as f64 / dialogues.len().max(1) as f64
    );
    let counts = label_counts(dialogues);
    let width = counts.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
    for (label, n) in &counts {
        text += &format!("  {label:width$} {:>8}  {:5.1} %\n", thousands(*n as u64), 100.0 * *n as f64 / turns as f64);
    }
    let unlabelled = turns - counts.iter().map(|(_, n)| n).sum::<usize>();
    if unlabelled > 0 {
        text += &format!("  {} turns without a label\n", thousands(unlabelled as u64));
    }
    text
}
