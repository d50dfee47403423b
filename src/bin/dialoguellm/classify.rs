//! `classify`: dialogues in as lines, one line out per turn, as they come.

use crate::args::{AskArgs, ModelArgs, Style};
use crate::eval::prediction;
use crate::lines::{Item, Lines};
use crate::out;
use clap::Args;
use dialoguellm::emotion::{Bulk, Classifier};
use dialoguellm::files::dialogues::Dialogue;
use dialoguellm::{Error, Result};

/// Name the emotion of every turn.
///
/// Reads dialogues as lines and writes one JSON line per turn: {"id", "turn", "label", "probs"}, turns counted from 0. A
/// line that is no dialogue is reported with its number on standard error and left out; the exit code is then that of
/// the first such error.
#[derive(Args)]
pub struct Classify {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    ask: AskArgs,
    #[command(flatten)]
    lines: Lines,
}

impl Classify {
    pub fn run(&self, _: Style) -> Result<()> {
        let mut reader = self.lines.open()?;
        let classifier = self.ask.classifier(&self.model, self.model.open()?, None)?;
        let bulk = Bulk { threads: self.model.threads(), ..Bulk::default() };
        let mut first_error = None;
        while let Some(batch) = reader.batch()? {
            for result in label_all(&classifier, &bulk, batch)? {
                if let Err(error) = result {
                    eprintln!("dialoguellm: {error}");
                    first_error.get_or_insert(error);
                }
            }
        }
        match first_error {
            None => Ok(()),
            Some(error) => Err(Error::new(error.code(), "not all lines could be labelled; see above")),
        }
    }
}

/// Labels what can be and writes it in order; every error that concerns one dialogue only is in the answer.
fn label_all(classifier: &Classifier, bulk: &Bulk, batch: Vec<Result<Item>>) -> Result<Vec<Result<()>>> {
    let dialogues: Vec<Dialogue> = batch.iter().flatten().map(|item| item.dialogue.clone()).collect();
    let mut together = classifier.classify(&dialogues, bulk).ok().map(Vec::into_iter);
    let mut results = Vec::new();
    for item in batch {
        let labelled = item.and_then(|item| {
            let probabilities = match together.as_mut().and_then(Iterator::next) {
                Some(turns) => turns,
                // together they failed: find out which by asking each alone
                None => one(classifier, bulk, &item)?,
            };
            write(classifier, &item.dialogue.id, &probabilities)
        });
        results.push(labelled);
    }
    Ok(results)
}

fn one(classifier: &Classifier, bulk: &Bulk, item: &Item) -> Result<Vec<Vec<f32>>> {
    let labelled = classifier.classify(std::slice::from_ref(&item.dialogue), bulk);
    let mut labelled = labelled.map_err(|error| error.at(format!("line {}", item.line)))?;
    labelled.pop().ok_or_else(|| Error::internal("a dialogue was labelled without an answer"))
}

fn write(classifier: &Classifier, id: &str, turns: &[Vec<f32>]) -> Result<()> {
    let lines = turns.iter().enumerate().map(|(turn, p)| format!("{}\n", prediction(classifier, id, turn, p)));
    out::text(&lines.collect::<String>())
}
