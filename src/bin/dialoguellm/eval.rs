//! `eval`: figures of a model on labelled dialogues, and whether it differs from another by more than chance.

use crate::args::{AskArgs, ModelArgs, Style};
use crate::measure::{Measured, ReportArgs};
use crate::openings;
use crate::out::{self, duration, thousands};
use crate::progress::Progress;
use clap::Args;
use dialoguellm::emotion::baseline;
use dialoguellm::emotion::classifier::Scored;
use dialoguellm::emotion::metrics::{AnswerReport, Bootstrap, Report, likeliest, paired_bootstrap};
use dialoguellm::emotion::run::RECIPE;
use dialoguellm::emotion::trust::{McNemar, mcnemar};
use dialoguellm::emotion::{Bulk, Classifier, Decode, Labels, Recipe, Written};
use dialoguellm::files::dialogues::{Dialogue, Source, Split};
use dialoguellm::{Cancel, Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Measure how well labels are named; turns without a label are context only.
#[derive(Args)]
pub struct Eval {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    ask: AskArgs,
    /// KIND:PATH, such as meld:DIR or jsonl:FILE (README.md lists the kinds)
    #[arg(long, value_name = "SPEC")]
    data: String,
    /// train, dev or test, where the data have them; test needs --final
    #[arg(long, default_value = "dev")]
    split: String,
    /// Open the test split, and add a line to FILE that says what was asked and what came of it
    #[arg(long = "final", value_name = "FILE")]
    log: Option<PathBuf>,
    /// Write every turn's prediction, one JSON line each: id, turn (from 0), gold, label, probs
    #[arg(long, value_name = "FILE")]
    predictions: Option<PathBuf>,
    /// Compare with another predictions file: paired bootstrap of the weighted F1, dialogues drawn whole, and McNemar's test
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    #[command(flatten)]
    report: ReportArgs,
    /// Beside it, let the model write its answers and look for labels in them, as [decode] of RECIPE says; by default the
    /// adapter's own recipe
    #[arg(long, value_name = "RECIPE", num_args = 0..=1)]
    written: Option<Option<PathBuf>>,
    /// Resamples of the bootstrap
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    resamples: usize,
    /// Beside it, a bag of words that learned from these dialogues (their train split)
    #[arg(long, value_name = "SPEC")]
    baseline: Option<String>,
    /// Tokens computed at once: bounds memory
    #[arg(long, value_name = "N", default_value_t = 4096)]
    batch_tokens: usize,
}

impl Eval {
    pub fn run(&self, style: Style) -> Result<()> {
        let source: Source = self.data.parse()?;
        let split: Split = self.split.parse()?;
        openings::check(&source, split, self.log.as_deref())?;
        let dialogues = source.dialogues(split, self.ask.known(&self.model)?.as_deref(), &Cancel::default())?;
        let labels = labels_of(&source, &dialogues);
        let classifier = self.ask.classifier(&self.model, self.model.open()?, labels)?;
        self.report.check(&classifier.card().template)?;
        let bulk = Bulk { threads: self.model.threads(), budget: self.batch_tokens, ..Bulk::default() };
        let measured = Measured::new(&classifier, dialogues, &bulk, style)?;
        let Measured { dialogues, scored, marked, .. } = &measured;
        let names = classifier.labels().names();
        let written =
            self.written.as_ref().map(|recipe| self.write(recipe.as_deref(), &classifier, dialogues, &bulk, style));
        let written = written.transpose()?;
        let rows = predictions(&classifier, dialogues, scored, written.as_deref());
        if let Some(path) = &self.predictions {
            out::file(path, &rows.iter().map(|row| format!("{row}\n")).collect::<String>())?;
        }
        let answer = |scores: &Vec<f32>| likeliest(&classifier.card().scores(scores));
        let answers: Vec<usize> = marked.scores.iter().map(answer).collect();
        let mine = Mine { names, rows: &rows, gold: &marked.gold, answers: &answers, units: &marked.dialogues };
        let compared = self.compare.as_deref().map(|path| self.compared(path, &mine)).transpose()?;
        let baseline =
            self.baseline.as_deref().map(|spec| bag_of_words(spec, dialogues, classifier.labels())).transpose()?;
        let written = written.map(|written| answer_report(&written, dialogues, names, &marked.gold)).transpose()?;
        let others = Others { compared, baseline, written };
        let figures = others.beside(measured.figures());
        if let Some(log) = &self.log {
            let opening = openings::note(log, self.asked(&classifier, dialogues)?, &figures)?;
            if opening > 1 && !style.quiet {
                eprintln!("the test split was opened by this recipe before: this is opening {opening}");
            }
        }
        let adapter = self.ask.adapter.as_ref().map_or(String::new(), |dir| format!(" with {}", dir.display()));
        let title = format!("{}{adapter} on {} ({})", self.model.model.display(), self.data, self.split);
        self.report.write(title, &classifier, &measured, self.ask.adapter.as_deref(), &figures, &bulk, style)?;
        match style.json {
            true => out::json(&figures),
            false => out::text(&table(&measured, &others)),
        }
    }

    /// What the model writes.
    fn write(
        &self,
        recipe: Option<&Path>,
        classifier: &Classifier,
        dialogues: &[Dialogue],
        bulk: &Bulk,
        style: Style,
    ) -> Result<Vec<Vec<Written>>> {
        let own = self.ask.adapter.as_ref().map(|dir| dir.join(RECIPE)).filter(|path| path.exists());
        let decode = match recipe.or(own.as_deref()) {
            None => Decode::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| Error::io("read", path, &error))?;
                Recipe::from_toml(&text).map_err(|error| error.at(path.display()))?.decode
            }
        };
        let turns: usize = dialogues.iter().map(|dialogue| dialogue.turns.len()).sum();
        let mut progress = Progress::new(style, "written", 0, turns as u64);
        let written = classifier.written(dialogues, &decode, bulk, &mut |done| progress.at(done as u64, ""));
        progress.end();
        written
    }

    /// What is asked of the test split: by which recipe, of which model, on which data.
    fn asked(&self, classifier: &Classifier, dialogues: &[Dialogue]) -> Result<Value> {
        let text = self.ask.adapter.as_ref().and_then(|dir| std::fs::read_to_string(dir.join(RECIPE)).ok());
        let recipe = text.and_then(|text| Recipe::from_toml(&text).ok());
        // a model as it is, or an adapter of another program, is asked by its template and labels
        let card = || serde_json::to_string(classifier.card()).map_err(|_| Error::internal("a card is not JSON"));
        let name = match &recipe {
            Some(recipe) => openings::recipe_name(recipe)?,
            None => openings::fingerprint(&card()?),
        };
        Ok(json!({
            "recipe": name, "seed": recipe.map(|recipe| recipe.train.seed),
            "model": openings::fingerprint(&classifier.card().base), "data": openings::data_name(dialogues)?,
        }))
    }

    /// The bootstrap against the predictions in `path`, which must be of the same turns.
    fn compared(&self, path: &Path, mine: &Mine) -> Result<(Bootstrap, McNemar)> {
        let theirs = mine.find(path)?;
        let answers = [&theirs[..], mine.answers];
        let bootstrap = paired_bootstrap(mine.names.len(), mine.gold, answers, mine.units, self.resamples, 0)?;
        Ok((bootstrap, mcnemar(mine.gold, answers)?))
    }
}

/// What an evaluation is put beside.
struct Others {
    compared: Option<(Bootstrap, McNemar)>,
    baseline: Option<Report>,
    written: Option<AnswerReport>,
}

impl Others {
    /// The figures with theirs beside them.
    fn beside(&self, mut figures: Value) -> Value {
        if let Some((Bootstrap { difference, low, high, not_better }, mcnemar)) = &self.compared {
            figures["compared"] = json!({"difference": difference, "low": low, "high": high, "not_better": not_better, "mcnemar": mcnemar});
        }
        if let Some(baseline) = &self.baseline {
            figures["baseline"] = json!(baseline);
        }
        if let Some(written) = &self.written {
            figures["written"] = json!(written);
        }
        figures
    }
}

/// The figures of a bag of words on the same turns.
fn bag_of_words(spec: &str, dialogues: &[Dialogue], labels: &Labels) -> Result<Report> {
    let source: Source = spec.parse()?;
    let learned = source.dialogues(Split::Train, Some(labels.names()), &Cancel::default())?;
    baseline::report(&learned, dialogues, labels).map_err(|error| error.at(spec))
}

/// The figures of written answers about turns that have a label.
fn answer_report(
    written: &[Vec<Written>],
    dialogues: &[Dialogue],
    names: &[String],
    gold: &[usize],
) -> Result<AnswerReport> {
    let turns = dialogues.iter().flat_map(|dialogue| &dialogue.turns).zip(written.iter().flatten());
    let answers: Vec<Option<usize>> =
        turns.filter(|(turn, _)| turn.emotion.is_some()).map(|(_, written)| written.label).collect();
    AnswerReport::new(names, &answers, gold)
}

/// The set's own order where it has one, else the most frequent label first.
fn labels_of(source: &Source, dialogues: &[Dialogue]) -> Option<Labels> {
    match source.labels() {
        Some(names) => Labels::new(names.iter().map(|name| (*name).to_owned()).collect()).ok(),
        None => Labels::of(dialogues).ok(),
    }
}

/// This evaluation, as far as a comparison needs it.
struct Mine<'a> {
    names: &'a [String],
    rows: &'a [Value],
    gold: &'a [usize],
    answers: &'a [usize],
    units: &'a [Range<usize>],
}

/// One line of a predictions file.
#[derive(Deserialize)]
struct Row {
    id: String,
    turn: u64,
    gold: String,
    label: String,
}

impl Mine<'_> {
    /// The other file's answers in this evaluation's order.
    fn find(&self, path: &Path) -> Result<Vec<usize>> {
        let theirs = read_rows(path)?;
        let bad = |text: String| Error::bad_file(path, text + ": are both predictions of the same data?");
        if theirs.len() != self.rows.len() {
            return Err(bad(format!("has {} turns, this evaluation {}", theirs.len(), self.rows.len())));
        }
        let answer = |(row, &gold): (&Value, &usize)| {
            let (id, turn) = (row["id"].as_str().unwrap_or_default(), row["turn"].as_u64().unwrap_or_default());
            let place = || format!("dialogue {id}, turn {turn}");
            let other = theirs.get(&(id.to_owned(), turn)).ok_or_else(|| bad(format!("has no {}", place())))?;
            let index = |name: &str| self.names.iter().position(|known| known == name);
            if index(&other.gold) != Some(gold) {
                return Err(bad(format!("{} has another true label there", place())));
            }
            index(&other.label).ok_or_else(|| bad(format!("{} has a label unknown here", place())))
        };
        self.rows.iter().zip(self.gold).map(answer).collect()
    }
}

fn read_rows(path: &Path) -> Result<HashMap<(String, u64), Row>> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::io("read", path, &error))?;
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    let row = |(line, number): (&str, u64)| {
        let row: Row = serde_json::from_str(line)
            .map_err(|_| Error::bad_file(path, format!("line {number} is no prediction (id, turn, gold, label)")))?;
        Ok(((row.id.clone(), row.turn), row))
    };
    lines.map(row).collect()
}

fn predictions(
    classifier: &Classifier,
    dialogues: &[Dialogue],
    scored: &Scored,
    written: Option<&[Vec<Written>]>,
) -> Vec<Value> {
    let names = classifier.labels().names();
    let of_dialogue = |(d, (dialogue, scores)): (usize, (&Dialogue, &Vec<Vec<f32>>))| {
        let labelled = dialogue.turns.iter().zip(scores).enumerate();
        let row = |(turn, (said, scores)): (usize, (&dialoguellm::files::Turn, &Vec<f32>))| {
            let mut row = prediction(classifier, &dialogue.id, turn, &classifier.probabilities(scores));
            row["gold"] = json!(said.emotion.as_ref()?);
            if let Some(written) = written {
                let Written { text, label } = &written[d][turn];
                row["written"] = json!({"text": text, "label": label.map(|label| &names[label])});
            }
            Some(row)
        };
        labelled.filter_map(row).collect::<Vec<_>>()
    };
    dialogues.iter().zip(&scored.scores).enumerate().flat_map(of_dialogue).collect()
}

/// `{"id", "turn", "label", "probs"}` of a turn.
pub fn prediction(classifier: &Classifier, id: &str, turn: usize, probabilities: &[f32]) -> Value {
    let names = classifier.labels().names();
    let probs: serde_json::Map<String, Value> =
        names.iter().cloned().zip(probabilities.iter().map(|&p| short(p))).collect();
    json!({"id": id, "turn": turn, "label": names[likeliest(probabilities)], "probs": probs})
}

/// A probability with the digits that an f32 has, and no more.
pub fn short(p: f32) -> Value {
    json!(p.to_string().parse::<f64>().unwrap_or(f64::from(p)))
}

fn percent(x: f64) -> String {
    format!("{:.2} %", 100.0 * x)
}

/// The figures of all turns in one line.
fn summary(report: &Report) -> String {
    format!(
        "accuracy {}  weighted F1 {}  macro F1 {}  NLL {:.3}  ECE {}\n",
        percent(report.accuracy),
        percent(report.weighted_f1),
        percent(report.macro_f1),
        report.nll,
        percent(report.ece)
    )
}

fn table(measured: &Measured, others: &Others) -> String {
    let Measured { report, scored, seconds, .. } = measured;
    let mut text = format!("{} turns  {}\n", thousands(report.n as u64), summary(report));
    let width = report.per_label.iter().map(|label| label.name.chars().count()).max().unwrap_or(0).max(5);
    text += &format!("{:width$}  precision   recall       F1    turns\n", "label");
    for label in &report.per_label {
        let (precision, recall, f1) = (percent(label.precision), percent(label.recall), percent(label.f1));
        text += &format!("{:width$}  {precision:>9}{recall:>9}{f1:>9}{:>9}\n", label.name, label.support);
    }
    text += &confusion(report, width);
    text += &format!(
        "\n{} tokens computed of {} without sharing, in {} ({:.1} turns/s)\n",
        thousands(scored.tokens as u64),
        thousands(scored.linear_tokens as u64),
        duration(*seconds),
        report.n as f64 / seconds.max(1e-9)
    );
    if let Some(baseline) = &others.baseline {
        text += &format!("a bag of words: {}", summary(baseline));
    }
    if let Some(AnswerReport { n, unmatched, accuracy, weighted_f1, macro_f1, .. }) = &others.written {
        text += &format!(
            "written answers: accuracy {}  weighted F1 {}  macro F1 {}  without a label {unmatched} of {}\n",
            percent(*accuracy),
            percent(*weighted_f1),
            percent(*macro_f1),
            thousands(*n as u64)
        );
    }
    if let Some((Bootstrap { difference, low, high, not_better }, mcnemar)) = &others.compared {
        text += &format!(
            "weighted F1 against the other file: {:+.2} points (95 %: {:+.2} to {:+.2}); not better in {} of resamples\n",
            100.0 * difference,
            100.0 * low,
            100.0 * high,
            percent(*not_better)
        );
        text += &format!(
            "only this one right in {} turns, only the other in {}: p = {:.4} (McNemar, exact)\n",
            mcnemar.only_second, mcnemar.only_first, mcnemar.p
        );
    }
    text
}

/// Rows are the truth, columns the answer.
fn confusion(report: &Report, width: usize) -> String {
    let cell = |text: &str| format!("{:>9}", text.chars().take(8).collect::<String>());
    let mut text = format!("\n{:width$}", "truth");
    text += &report.per_label.iter().map(|label| cell(&label.name)).collect::<String>();
    for (label, counts) in report.per_label.iter().zip(&report.confusion) {
        text += &format!("\n{:width$}", label.name);
        text += &counts.iter().map(|n| cell(&n.to_string())).collect::<String>();
    }
    text + "\n"
}
