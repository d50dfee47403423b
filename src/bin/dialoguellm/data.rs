//! `data`: what a data set holds, whether all of it can be read, and the same as JSON lines.

use crate::args::Style;
use crate::out::{self, thousands};
use clap::{Args, Subcommand};
use dialoguellm::files::dialogues::{Part, Source, Split, label_counts, stats};
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
    /// Dialogues, turns and labels of every split, beside the published counts where there are such
    Stats(Spec),
    /// Read everything, compare it with the published counts, and tell traps
    ///
    /// A file that cannot be read is an error that names the line; what is only odd is listed.
    Check(Spec),
    /// Write dialogues as JSON lines to standard output
    Convert(Spec),
}

#[derive(Args)]
struct Spec {
    /// KIND:PATH, such as meld:DIR or jsonl:FILE; README.md lists the kinds
    #[arg(long = "data", value_name = "SPEC")]
    data: String,
    /// Only this split: train, dev or test
    #[arg(long)]
    split: Option<String>,
    /// The labels there may be, with commas between; another one is then an error
    #[arg(long, value_name = "A,B,..", value_delimiter = ',')]
    labels: Option<Vec<String>>,
}

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
        let split = self.split.as_ref().map(|name| name.parse()).transpose()?;
        self.source()?.parts(split, self.labels.as_deref(), &Cancel::default())
    }

    fn pairs(&self) -> Result<Option<usize>> {
        let source = self.source()?;
        source.is_pairs().then(|| Ok(source.pairs(&Cancel::default())?.len())).transpose()
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
            let all: Map<String, Value> =
                parts.iter().map(|part| (name(part).to_owned(), stats(&part.dialogues))).collect();
            return out::json(&json!({"splits": all}));
        }
        parts.iter().try_for_each(|part| out::text(&table(part)))
    }

    fn check(&self, style: Style) -> Result<()> {
        if let Some(pairs) = self.pairs()? {
            return if style.json {
                out::json(&json!({"ok": true, "pairs": pairs}))
            } else {
                out::line(format_args!("all of {} can be read: {} pairs", self.data, thousands(pairs as u64)))
            };
        }
        let parts = self.parts()?;
        let findings = self.source()?.findings(&parts, &Cancel::default())?;
        let dialogues: usize = parts.iter().map(|part| part.dialogues.len()).sum();
        let turns: usize = parts.iter().flat_map(|part| &part.dialogues).map(|dialogue| dialogue.turns.len()).sum();
        if style.json {
            let of = |(part, findings): (&Part, &Vec<String>)| {
                (name(part).to_owned(), json!({"as_published": as_published(part), "findings": findings}))
            };
            let splits: Map<String, Value> = parts.iter().zip(&findings).map(of).collect();
            return out::json(&json!({"ok": true, "dialogues": dialogues, "turns": turns, "splits": splits}));
        }
        let mut text = format!(
            "all of {} can be read: {} dialogues, {} turns\n",
            self.data,
            thousands(dialogues as u64),
            thousands(turns as u64)
        );
        for (part, findings) in parts.iter().zip(&findings) {
            match as_published(part) {
                Some(true) => text += &format!("{}: counts as published\n", name(part)),
                Some(false) => text += &format!("{}: other counts than the published ones\n", name(part)),
                None => {}
            }
            findings.iter().for_each(|finding| text += &format!("{}: {finding}\n", name(part)));
        }
        out::text(&text)
    }

    fn convert(&self) -> Result<()> {
        let parts = self.parts()?;
        if parts.len() > 1 {
            let splits = parts.iter().map(name).collect::<Vec<_>>().join(", ");
            return Err(Error::invalid(format!("{} has splits {splits}: choose one with --split", self.data)));
        }
        parts.iter().flat_map(|part| &part.dialogues).try_for_each(|dialogue| out::json(&json!(dialogue)))
    }
}

fn name(part: &Part) -> &'static str {
    part.split.map_or("all", Split::name)
}

/// Whether counts are the published ones, where there are such.
fn as_published(part: &Part) -> Option<bool> {
    part.published.map(|published| published.differences(&part.dialogues).is_empty())
}

fn table(part: &Part) -> String {
    let (name, dialogues) = (name(part), &part.dialogues);
    let turns: usize = dialogues.iter().map(|dialogue| dialogue.turns.len()).sum();
    let longest = dialogues.iter().map(|dialogue| dialogue.turns.len()).max().unwrap_or(0);
    let published = match as_published(part) {
        Some(true) => ", as published",
        Some(false) => ", not as published (data check says more)",
        None => "",
    };
    let mut text = format!(
        "{name}: {} dialogues, {} turns, {:.1} a dialogue, at most {longest}{published}\n",
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
