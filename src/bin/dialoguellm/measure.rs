//! Labels of dialogues measured against what is true, and the report of it.

use crate::args::Style;
use crate::out::{self, duration, thousands};
use crate::progress::Progress;
use crate::report::Content;
use crate::why::MethodName;
use clap::Args;
use dialoguellm::emotion::calibration::Calibration;
use dialoguellm::emotion::classifier::{Marked, Scored};
use dialoguellm::emotion::metrics::{Report, softmax};
use dialoguellm::emotion::run::METRICS;
use dialoguellm::emotion::{Bulk, Card, Classifier, Template};
use dialoguellm::files::Dialogue;
use dialoguellm::{Error, Result};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Dialogues and the answers about them.
pub struct Measured {
    pub dialogues: Vec<Dialogue>,
    pub scored: Scored,
    pub marked: Marked,
    pub report: Report,
    pub seconds: f64,
}

impl Measured {
    /// Asks about every turn. Errors: as [`Classifier::scores`] and [`Report::new`].
    pub fn new(classifier: &Classifier, dialogues: Vec<Dialogue>, bulk: &Bulk, style: Style) -> Result<Self> {
        let turns: usize = dialogues.iter().map(|dialogue| dialogue.turns.len()).sum();
        let mut progress = Progress::new(style, "turns", 0, turns as u64);
        let started = Instant::now();
        let scored = classifier.scores(&dialogues, bulk, &mut |done| progress.at(done as u64, ""));
        progress.end();
        Self::of(classifier, dialogues, scored?, started.elapsed().as_secs_f64())
    }

    /// Answers that are there already. Errors: as [`Report::new`].
    pub fn of(classifier: &Classifier, dialogues: Vec<Dialogue>, scored: Scored, seconds: f64) -> Result<Self> {
        let marked = scored.marked(&dialogues, classifier.labels())?;
        let report = classifier.card().report(&marked)?;
        Ok(Self { dialogues, scored, marked, report, seconds })
    }

    /// The figures, for programs.
    pub fn figures(&self) -> Value {
        let mut value = json!(self.report);
        value["seconds"] = json!(self.seconds);
        value["tokens"] = json!(self.scored.tokens);
        value
    }
}

/// Whether there is a report, and what is in it.
#[derive(Args)]
pub struct ReportArgs {
    /// Write report.html, to look at, and report.json into this folder: figures, plots, mistakes, every dialogue
    #[arg(long = "report", value_name = "DIR", id = "report")]
    dir: Option<PathBuf>,
    /// Show in report.html what was said; without it, it holds nobody's words
    #[arg(long = "report-texts", requires = "report")]
    texts: bool,
    /// Show in it why its most confident mistakes were made: which earlier turns, and with texts which words
    #[arg(long = "report-why", value_enum, requires = "report")]
    why: Option<MethodName>,
    /// Explain every answer, not the mistakes alone: about as many questions again for each turn as it has turns before it
    #[arg(long = "report-why-all", requires = "why")]
    why_all: bool,
}

impl ReportArgs {
    /// Whether a report is asked for.
    pub fn is_asked(&self) -> bool {
        self.dir.is_some()
    }

    /// Refuses before anything is computed what [`ReportArgs::write`] would refuse in the end.
    pub fn check(&self, template: &Template) -> Result<()> {
        if self.why.is_some() && template.looks_ahead() {
            let text = "--report-why asks about a conversation that goes on, and the template shows later turns (`ahead`); leave it out";
            return Err(Error::unsupported(text));
        }
        Ok(())
    }

    /// Makes the folder hold the report, in two files that are whole or not there; nothing where none is asked for.
    pub fn write(
        &self,
        title: String,
        classifier: &Classifier,
        measured: &Measured,
        adapter: Option<&Path>,
        figures: &Value,
        bulk: &Bulk,
        style: Style,
    ) -> Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let Measured { dialogues, scored, marked, report, seconds } = measured;
        let all = |probabilities: &dyn Fn(&[f32]) -> Vec<f32>| -> Vec<Vec<Vec<f32>>> {
            scored.scores.iter().map(|turns| turns.iter().map(|scores| probabilities(scores)).collect()).collect()
        };
        let probabilities = all(&|scores| classifier.probabilities(scores));
        let card = classifier.card();
        let uncalibrated = match (card.temperature, &card.calibration) {
            (1.0, None) => None,
            _ => {
                let report = Report::new(classifier.labels().names(), &marked.scores, &marked.gold, 1.0)?;
                Some((report, all(&|scores| softmax(scores, 1.0).into_iter().map(|p| p as f32).collect())))
            }
        };
        let mut content = Content {
            title,
            about: format!(
                "{} dialogues; {} tokens computed of {} without sharing, in {}; {}",
                thousands(dialogues.len() as u64),
                thousands(scored.tokens as u64),
                thousands(scored.linear_tokens as u64),
                duration(*seconds),
                calibration(card)
            ),
            report,
            names: classifier.labels().names(),
            dialogues,
            probabilities: &probabilities,
            uncalibrated,
            metrics: &metrics(adapter),
            texts: self.texts,
            why: HashMap::new(),
        };
        if let Some(method) = self.why {
            let mut progress: Option<Progress> = None;
            let mut show = |done: usize, all: usize| {
                progress.get_or_insert_with(|| Progress::new(style, "explained", 0, all as u64)).at(done as u64, "")
            };
            let found = content.explain(classifier, method.method(), self.why_all, bulk, &mut show);
            progress.iter().for_each(Progress::end);
            found?;
        }
        std::fs::create_dir_all(dir).map_err(|error| Error::io("make", dir, &error))?;
        out::file(&dir.join("report.json"), &format!("{}\n", content.json(figures.clone())))?;
        out::file(&dir.join("report.html"), &content.html()?)
    }
}

/// How probabilities are calibrated, in words.
fn calibration(card: &Card) -> String {
    match &card.calibration {
        None => format!("temperature {:.3}", card.temperature),
        Some(Calibration::Vector { .. }) => "calibrated by a scale and a bias for every label".into(),
        Some(Calibration::Isotonic { .. }) => "calibrated by a curve for every label".into(),
    }
}

/// The lines that training left in the adapter; none where it left none.
fn metrics(adapter: Option<&Path>) -> Vec<Value> {
    let text = adapter.and_then(|dir| std::fs::read_to_string(dir.join(METRICS)).ok());
    text.unwrap_or_default().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}
