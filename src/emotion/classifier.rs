//! Dialogues to probabilities, in bulk: every turn of many dialogues in few passes over packed forests.
//!
//! A turn's prompt is one path of the forest and its labels are leaves: the score of a label is the sum of the
//! log-probabilities of its tokens. What prompts share is computed once. How turns are packed does not change what is
//! asked of the model, so a turn's scores are the same alone, in bulk and in `live`.

mod integrated;
mod why;

pub use why::{Influence, Integral, Method, Why};

use super::card::Card;
use super::framing::Ends;
use super::labels::Labels;
use super::prompts::{Prompter, Question};
use super::spread::spread;
use super::template::Template;
use crate::files::config;
use crate::files::dialogues::Dialogue;
use crate::model::engine::{Pass, Target};
use crate::model::{Adapter, Builder, Model};
use crate::{Cancel, Code, Error, Result};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A model that names emotions. Immutable; share it freely.
pub struct Classifier {
    model: Arc<Model>,
    adapter: Option<Arc<Adapter>>,
    prompter: Prompter,
    card: Card,
}

/// How much is done at once.
#[derive(Clone, Debug)]
pub struct Bulk {
    /// Threads that tokenise; those of the model are its own.
    pub threads: usize,
    /// Tokens of a forest, about: bounds memory. A forest ends with a dialogue unless that makes it twice as long.
    pub budget: usize,
    /// Stops the call.
    pub cancel: Cancel,
}

impl Default for Bulk {
    fn default() -> Self {
        Self { threads: 1, budget: 4096, cancel: Cancel::default() }
    }
}

/// The label scores of every turn.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scored {
    /// `[dialogue][turn][label]`: log-probability of the label's tokens, from where the labels' tokens part.
    pub scores: Vec<Vec<Vec<f32>>>,
    /// Tokens computed.
    pub tokens: usize,
    /// Tokens of all prompts with their answers, each on its own.
    pub linear_tokens: usize,
}

/// The scored turns that have a label.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Marked {
    /// `[turn][label]`
    pub scores: Vec<Vec<f32>>,
    /// The number of the true label.
    pub gold: Vec<usize>,
    /// The turns of each dialogue.
    pub dialogues: Vec<Range<usize>>,
}

/// Dialogues whose prompts are held at once.
const AT_ONCE: usize = 64;

impl Classifier {
    /// A classifier without calibration; with no adapter, the model as it is. Errors: as [`Prompter::new`].
    pub fn new(model: Arc<Model>, adapter: Option<Arc<Adapter>>, template: Template, labels: Labels) -> Result<Self> {
        let card = Card::new(labels, template, model.base());
        Self::with_card(model, adapter, card)
    }

    /// The classifier that a folder describes: an adapter's, or that of a model with the adapter merged into it.
    ///
    /// # Errors
    /// As [`Card::read`], [`Adapter::read`] and [`Prompter::new`]; BAD_FILE for an adapter of another base model.
    pub fn open(model: Arc<Model>, dir: &Path) -> Result<Self> {
        let card = Card::read(dir)?;
        card.check_base(model.base()).map_err(|error| error.at(dir.display()))?;
        // a model folder: an adapter's that lost its files must not pass for one
        let is_merged = dir.join(config::FILE).exists();
        let adapter = if is_merged { None } else { Some(Arc::new(Adapter::read(dir, model.config())?)) };
        Self::with_card(model, adapter, card).map_err(|error| error.at(dir.display()))
    }

    /// A classifier of parts. Errors: as [`Prompter::new`]; BAD_FILE for a card of another base model.
    pub fn with_card(model: Arc<Model>, adapter: Option<Arc<Adapter>>, mut card: Card) -> Result<Self> {
        card.check_base(model.base())?;
        let ends = Ends::of(model.tokenizer(), model.config());
        let prompter = Prompter::new(&card.template, card.labels.clone(), model.tokenizer(), ends)?;
        card.labels = prompter.labels().clone();
        Ok(Self { model, adapter, prompter, card })
    }

    /// The same classifier with another temperature and nothing else as its calibration: see
    /// [`fit_temperature`](super::metrics::fit_temperature).
    #[must_use]
    pub fn calibrated(mut self, temperature: f64) -> Self {
        self.card = self.card.calibrated(temperature, None);
        self
    }

    /// What is stored beside the adapter.
    pub fn card(&self) -> &Card {
        &self.card
    }
    /// The labels, in the order of the probabilities.
    pub fn labels(&self) -> &Labels {
        &self.card.labels
    }
    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }
    /// The adapter.
    pub fn adapter(&self) -> Option<&Arc<Adapter>> {
        self.adapter.as_ref()
    }
    /// What makes its prompts.
    pub fn prompter(&self) -> &Prompter {
        &self.prompter
    }

    /// Label scores as calibrated probabilities, which sum to 1.
    pub fn probabilities(&self, scores: &[f32]) -> Vec<f32> {
        self.card.probabilities(scores).into_iter().map(|p| p as f32).collect()
    }

    /// The probabilities `[dialogue][turn][label]` of every turn.
    ///
    /// # Errors
    /// As [`Classifier::scores`].
    pub fn classify(&self, dialogues: &[Dialogue], bulk: &Bulk) -> Result<Vec<Vec<Vec<f32>>>> {
        let scored = self.scores(dialogues, bulk, &mut |_| ())?;
        let turns = |turns: Vec<Vec<f32>>| turns.iter().map(|scores| self.probabilities(scores)).collect();
        Ok(scored.scores.into_iter().map(turns).collect())
    }

    /// The label scores of every turn, asked with what was said before it. `progress` is told how many turns are done.
    ///
    /// # Errors
    /// CONTEXT_FULL and UNSUPPORTED as [`Prompter::question`], naming dialogue and turn; CANCELLED; NUMERIC where the
    /// model answers with NaN; what the engine refuses.
    pub fn scores(&self, dialogues: &[Dialogue], bulk: &Bulk, progress: &mut dyn FnMut(usize)) -> Result<Scored> {
        let mut scored = Scored {
            scores: dialogues.iter().map(|dialogue| vec![Vec::new(); dialogue.turns.len()]).collect(),
            ..Scored::default()
        };
        let (mut batch, mut done) = (Batch::default(), 0);
        let mut flush = |batch: &mut Batch, scored: &mut Scored| {
            done += batch.asked.len();
            self.ask(std::mem::take(batch), bulk, scored)?;
            progress(done);
            Ok::<_, Error>(())
        };
        for (first, some) in (0..).step_by(AT_ONCE).zip(dialogues.chunks(AT_ONCE)) {
            bulk.cancel.check()?;
            let questions = spread(bulk.threads, some, |dialogue| self.questions(dialogue, &bulk.cancel))?;
            for (d, questions) in (first..).zip(questions) {
                for (t, question) in questions.into_iter().enumerate() {
                    scored.linear_tokens += question.longest();
                    batch.push((d, t), 0, question);
                    if batch.builder.len() >= bulk.budget.saturating_mul(2) {
                        flush(&mut batch, &mut scored)?;
                    }
                }
                if batch.builder.len() >= bulk.budget {
                    flush(&mut batch, &mut scored)?;
                }
            }
        }
        flush(&mut batch, &mut scored)?;
        Ok(scored)
    }

    /// The question about every turn of a dialogue.
    pub(super) fn questions(&self, dialogue: &Dialogue, cancel: &Cancel) -> Result<Vec<Question>> {
        let script = self.prompter.script(&dialogue.turns);
        let question = |target| {
            cancel.check()?;
            let question = self.prompter.question(self.model.tokenizer(), &script, target);
            question.map_err(|error| error.at(format!("dialogue {}, turn {}", dialogue.id, target + 1)))
        };
        (0..dialogue.turns.len()).map(question).collect()
    }

    fn ask(&self, batch: Batch, bulk: &Bulk, scored: &mut Scored) -> Result<()> {
        if batch.asked.is_empty() {
            return Ok(());
        }
        let (forest, rows) = batch.builder.build();
        let targets: Vec<Target> = batch.asked.iter().flat_map(|asked| asked.targets(&rows)).collect();
        let pass = Pass { forest: &forest, adapter: self.adapter.as_deref(), cancel: &bulk.cancel };
        let log_probs = self.model.engine().log_probs(&pass, None, &targets)?;
        let mut log_probs = log_probs.iter();
        for asked in &batch.asked {
            let scores = asked.scores(&mut log_probs);
            let (d, t) = asked.place;
            check_finite(&scores).map_err(|error| error.at(format!("dialogue {}, turn {}", d + 1, t + 1)))?;
            scored.scores[d][t] = scores;
        }
        scored.tokens += forest.len();
        Ok(())
    }
}

/// NUMERIC for a score that is not finite.
pub(super) fn check_finite(scores: &[f32]) -> Result<()> {
    if scores.iter().all(|score| score.is_finite()) {
        return Ok(());
    }
    Err(Error::new(Code::Numeric, "the model's answer is NaN or infinite; check the weights of model and adapter"))
}

impl Scored {
    /// The turns of `dialogues` (the ones that were scored) that have a label. Errors: NOT_FOUND for an unknown label.
    pub fn marked(&self, dialogues: &[Dialogue], labels: &Labels) -> Result<Marked> {
        let mut marked = Marked::default();
        for (dialogue, scores) in dialogues.iter().zip(&self.scores) {
            let first = marked.gold.len();
            for (turn, scores) in dialogue.turns.iter().zip(scores) {
                let Some(emotion) = &turn.emotion else { continue };
                marked.gold.push(labels.index(emotion).map_err(|error| error.at(format!("dialogue {}", dialogue.id)))?);
                marked.scores.push(scores.clone());
            }
            marked.dialogues.push(first..marked.gold.len());
        }
        Ok(marked)
    }
}

/// Questions that are asked in one pass.
#[derive(Default)]
struct Batch {
    builder: Builder,
    asked: Vec<Asked>,
}

struct Asked {
    /// Dialogue and turn.
    place: (usize, usize),
    question: Question,
    /// The sequence in the forest of every answer.
    sequences: Vec<usize>,
}

impl Batch {
    /// An answer's last token is only asked for, so an answer of one token has the prompt alone as its sequence. Questions of
    /// one `sample` share what they begin with.
    fn push(&mut self, place: (usize, usize), sample: u64, question: Question) {
        let prompt = self.builder.insert(sample, &question.prompt);
        let mut sequence = |answer: &Vec<u32>| match &answer[..answer.len() - 1] {
            [] => prompt,
            some => self.builder.insert(sample, &[&question.prompt[..], some].concat()),
        };
        let sequences = question.answers.iter().map(&mut sequence).collect();
        self.asked.push(Asked { place, question, sequences });
    }
}

impl Asked {
    /// The score of every label, of its tokens' log-probabilities.
    fn scores(&self, log_probs: &mut std::slice::Iter<f32>) -> Vec<f32> {
        let sum = |answer: &Vec<u32>| log_probs.by_ref().take(answer.len()).copied().map(f64::from).sum::<f64>() as f32;
        self.question.answers.iter().map(sum).collect()
    }

    /// Every token of every answer, each asked of the row before it.
    fn targets(&self, rows: &[Vec<u32>]) -> Vec<Target> {
        let before = self.question.prompt.len() - 1;
        let of_answer = |(answer, &sequence): (&Vec<u32>, &usize)| {
            let target = |(i, &token)| Target { row: rows[sequence][before + i], token };
            answer.iter().enumerate().map(target).collect::<Vec<_>>()
        };
        self.question.answers.iter().zip(&self.sequences).flat_map(of_answer).collect()
    }
}

#[cfg(test)]
mod tests;
