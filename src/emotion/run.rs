//! A training run for emotions: a recipe and dialogues become a trainer, dev scores choose the epoch, and what is left
//! is an adapter folder with its dialoguellm.json.
//!
//! The caller owns the loop: while not done, [`Run::score_dev`] if one is due, else [`Run::step`]; [`Run::save`] in
//! between and when it is stopped; [`Run::finish`] at the end. Every fact that a resumed run needs is in the checkpoint.

use super::calibration::Calibration;
use super::card::Card;
use super::classifier::{Bulk, Classifier, Scored};
use super::framing::Ends;
use super::labels::Labels;
use super::metrics::{Report, fit_temperature};
use super::prompts::{Lessons, Prompter, Taught, pair_groups};
use super::recipe::{Calibrate, Emotion, Metric, Recipe};
use super::shots;
use crate::files::dialogues::{Dialogue, Pair};
use crate::files::{LoraConfig, folder};
use crate::model::engine::{Pass, Target};
use crate::model::{Adapter, Builder, Model};
use crate::train::{Best, Group, StepReport, Trainer};
use crate::{Cancel, Code, Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// What is learned from, or scored on.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Turns with labels.
    Dialogues(Vec<Dialogue>),
    /// Prompts with completions.
    Pairs(Vec<Pair>),
}

/// Where a run begins.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    /// With a new adapter.
    New,
    /// With a trained one, whose template and labels hold where the recipe names none.
    From(&'a Path),
    /// Where the checkpoint stands.
    Resume(&'a Path),
}

/// What a run is made of.
pub struct Setup<'a> {
    /// The choices.
    pub recipe: Recipe,
    /// What is learned from.
    pub train: Data,
    /// What the epoch is chosen by; never a test split.
    pub dev: Option<Data>,
    /// Where it begins.
    pub start: Start<'a>,
    /// Threads that tokenise.
    pub threads: usize,
    /// The base model's name for PEFT's adapter_config.json.
    pub base: Option<String>,
}

/// A run. Used by one thread at a time.
pub struct Run {
    model: Arc<Model>,
    recipe: Recipe,
    trainer: Trainer,
    /// What is stored beside the adapter; nothing beside one that was trained on pairs.
    card: Option<Card>,
    dev: Option<Dev>,
    taught: Taught,
    record: Record,
    /// The best parameters' scores of the dev dialogues, where this process made them.
    best: Option<BestScores>,
    threads: usize,
}

enum Dev {
    Dialogues(Vec<Dialogue>),
    Pairs(Vec<Group>),
}

/// What of a run stands in no part of a checkpoint but here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Record {
    /// Steps made at the last dev score.
    dev_step: u64,
    /// Time in steps and dev scores.
    seconds: f64,
    /// Tokens computed in steps, and what they would have been without sharing.
    tokens: u64,
    linear_tokens: u64,
}

/// The record's name in a checkpoint.
const RECORD: &str = "run.json";
/// The recipe's name in a checkpoint and in an adapter folder.
pub const RECIPE: &str = "recipe.toml";
/// The metrics' name in an adapter folder.
pub const METRICS: &str = "metrics.jsonl";

/// A dev score.
#[derive(Clone, Debug, PartialEq)]
pub struct DevScore {
    /// The score that chooses.
    pub score: f64,
    /// Its name.
    pub metric: Metric,
    /// Whether it is the best so far.
    pub is_best: bool,
    /// All figures, for dialogues.
    pub report: Option<Report>,
}

/// What the best parameters answer on dev, before calibration.
#[derive(Clone, Debug)]
pub struct BestScores {
    /// The scores.
    pub scored: Scored,
    /// Time taken.
    pub seconds: f64,
}

/// What a run did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Steps of the optimiser.
    pub steps: u64,
    /// Steps skipped because loss or gradient was not finite.
    pub skipped: u64,
    /// Passes over the data, the last one maybe not whole.
    pub epochs: u64,
    /// Time in steps and dev scores, of all processes that worked on it.
    pub seconds: f64,
    /// Tokens computed in steps.
    pub tokens: u64,
    /// Tokens of the same prompts without sharing.
    pub linear_tokens: u64,
    /// The best dev score.
    pub best_score: Option<f64>,
    /// The epoch that it chose.
    pub best_epoch: Option<u64>,
    /// The temperature stored with the adapter.
    pub temperature: f64,
}

impl Run {
    /// Makes prompts of everything and a trainer of the prompts.
    ///
    /// # Errors
    /// As [`Recipe::template`], [`Prompter::groups`], [`pair_groups`] and [`Trainer::new`] or [`Trainer::resume`];
    /// INVALID_ARGUMENT for dev data of another kind.
    pub fn new(model: Arc<Model>, setup: Setup) -> Result<Self> {
        let Setup { recipe, train, dev, start, threads, base } = setup;
        let earlier = earlier_card(&model, start)?;
        let (card, mut taught) = match &train {
            Data::Dialogues(dialogues) => teach(&model, &recipe, dialogues, earlier.as_ref(), threads)?,
            Data::Pairs(pairs) => (None, teach_pairs(&model, &recipe, pairs, threads)?),
        };
        let dev = dev.map(|dev| make_dev(&model, &recipe, &card, dev, threads)).transpose()?;
        let groups = std::mem::take(&mut taught.groups);
        let trainer = match start {
            Start::Resume(dir) => Trainer::resume(dir, model.clone(), groups, recipe.train.clone())?,
            Start::From(dir) => {
                let adapter = Adapter::read(dir, model.config())?;
                Trainer::new(model.clone(), adapter, groups, recipe.train.clone())?
            }
            Start::New => {
                let lora = LoraConfig { base_model_name: base, ..recipe.lora_config() };
                let adapter = Adapter::new(lora, model.config(), recipe.train.seed)?;
                Trainer::new(model.clone(), adapter, groups, recipe.train.clone())?
            }
        };
        let record = match start {
            Start::Resume(dir) => read_record(dir)?,
            Start::New | Start::From(_) => Record::default(),
        };
        Ok(Self { model, recipe, trainer, card, dev, taught, record, best: None, threads })
    }

    /// The trainer.
    pub fn trainer(&self) -> &Trainer {
        &self.trainer
    }
    /// The adapter as it is now.
    ///
    /// # Errors
    /// As [`Trainer::adapter`].
    pub fn adapter(&mut self) -> Result<Adapter> {
        self.trainer.adapter().cloned()
    }
    /// What became of the data; the groups themselves are the trainer's.
    pub fn taught(&self) -> &Taught {
        &self.taught
    }
    /// What is stored beside the adapter.
    pub fn card(&self) -> Option<&Card> {
        self.card.as_ref()
    }
    /// Time spent so far, in steps and dev scores.
    pub fn seconds(&self) -> f64 {
        self.record.seconds
    }

    /// As [`Trainer::log_to`].
    ///
    /// # Errors
    /// IO.
    pub fn log_to(&mut self, path: &Path) -> Result<()> {
        self.trainer.log_to(path)
    }

    /// As [`Trainer::freeze`].
    ///
    /// # Errors
    /// As there.
    pub fn freeze(&mut self, kept: Option<&Path>, cancel: &Cancel, progress: &mut dyn FnMut(usize)) -> Result<()> {
        let started = Instant::now();
        self.trainer.freeze(kept, cancel, progress)?;
        self.record.seconds += started.elapsed().as_secs_f64();
        Ok(())
    }

    /// Whether nothing is left but [`Run::finish`].
    pub fn is_done(&self) -> bool {
        self.trainer.is_done() && !self.dev_is_due()
    }

    /// Whether the parameters as they are wait for a dev score.
    pub fn dev_is_due(&self) -> bool {
        self.dev.is_some()
            && self.record.dev_step != self.trainer.steps_made()
            && self.at_a_mark(self.recipe.eval.dev_steps)
    }

    /// Whether a checkpoint should be made now.
    pub fn checkpoint_is_due(&self) -> bool {
        !self.dev_is_due() && self.at_a_mark(self.recipe.eval.checkpoint_steps)
    }

    /// At the end of an epoch or of the run, or at a multiple of `every`.
    fn at_a_mark(&self, every: u64) -> bool {
        let step = self.trainer.steps_made();
        let between = every > 0 && step.is_multiple_of(every);
        step > 0 && (between || self.trainer.epoch_is_done() || self.trainer.is_done())
    }

    /// One optimiser step.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn step(&mut self, cancel: &Cancel) -> Result<StepReport> {
        let report = self.trainer.step(cancel)?;
        self.record.seconds += report.seconds;
        self.record.tokens += report.tokens as u64;
        self.record.linear_tokens += report.linear_tokens as u64;
        Ok(report)
    }

    /// Scores the dev data with the parameters as they are; `progress` is told how many turns are done.
    ///
    /// # Errors
    /// As [`Classifier::scores`]; INVALID_ARGUMENT where there are no dev data.
    pub fn score_dev(&mut self, cancel: &Cancel, progress: &mut dyn FnMut(usize)) -> Result<DevScore> {
        let started = Instant::now();
        let adapter = Arc::new(self.adapter()?);
        let metric = self.recipe.eval.metric;
        let (score, report, scored) = match &self.dev {
            None => return Err(Error::invalid("there are no dev data to score")),
            Some(Dev::Pairs(groups)) => (-self.pairs_nll(adapter, groups, cancel)?, None, None),
            Some(Dev::Dialogues(dialogues)) => {
                let (report, scored) = self.report(adapter, dialogues, cancel, progress)?;
                (metric.score(&report), Some(report), Some(scored))
            }
        };
        let seconds = started.elapsed().as_secs_f64();
        let is_best = self.trainer.note_dev(score, details(metric, report.as_ref(), seconds))?;
        if is_best {
            self.best = scored.map(|scored| BestScores { scored, seconds });
        }
        self.record.dev_step = self.trainer.steps_made();
        self.record.seconds += seconds;
        let metric = if report.is_some() { metric } else { Metric::Nll };
        Ok(DevScore { score, metric, is_best, report })
    }

    fn report(
        &self,
        adapter: Arc<Adapter>,
        dialogues: &[Dialogue],
        cancel: &Cancel,
        progress: &mut dyn FnMut(usize),
    ) -> Result<(Report, Scored)> {
        let card = self.card.clone().ok_or_else(|| Error::internal("dialogues were scored without a card"))?;
        let classifier = Classifier::with_card(self.model.clone(), Some(adapter), card)?;
        let bulk = Bulk { threads: self.threads, budget: self.recipe.eval.score_tokens, cancel: cancel.clone() };
        let labels = classifier.labels();
        let scored = classifier.scores(dialogues, &bulk, progress)?;
        let marked = scored.marked(dialogues, labels)?;
        Ok((Report::new(labels.names(), &marked.scores, &marked.gold, 1.0)?, scored))
    }

    /// What the best parameters answer on dev, where this process asked them.
    pub fn best_scores(&self) -> Option<&BestScores> {
        self.best.as_ref()
    }

    /// Mean of -ln p over the completions' tokens, weighted as in training.
    fn pairs_nll(&self, adapter: Arc<Adapter>, groups: &[Group], cancel: &Cancel) -> Result<f64> {
        let (mut sum, mut total) = (0.0, 0.0);
        let mut rest = groups;
        while !rest.is_empty() {
            let (batch, n) = first_batch(rest, self.recipe.eval.score_tokens);
            rest = &rest[n..];
            let (forest, rows) = batch.build();
            let asked: Vec<(Target, f64)> = targets(&groups[groups.len() - rest.len() - n..][..n], &rows).collect();
            let targets: Vec<Target> = asked.iter().map(|(target, _)| *target).collect();
            let pass = Pass { forest: &forest, adapter: Some(&adapter), cancel };
            let log_probs = self.model.engine().log_probs(&pass, None, &targets)?;
            for ((_, weight), log_prob) in asked.iter().zip(log_probs) {
                sum -= weight * f64::from(log_prob);
                total += weight;
            }
        }
        if total == 0.0 {
            return Err(Error::invalid("no token of the dev pairs' completions has a weight above 0"));
        }
        Ok(sum / total)
    }

    /// Replaces the checkpoint at `dir`, which is at the same time an adapter folder that can be used.
    ///
    /// # Errors
    /// As [`Trainer::save`].
    pub fn save(&mut self, dir: &Path) -> Result<()> {
        let Self { trainer, card, record, recipe, .. } = self;
        trainer.save_with(dir, |dir| {
            let text = serde_json::to_string(record).map_err(|error| Error::internal(format!("{RECORD}: {error}")))?;
            write(&dir.join(RECORD), &(text + "\n"))?;
            write(&dir.join(RECIPE), &recipe.to_toml()?)?;
            card.as_ref().map_or(Ok(()), |card| card.write(dir))
        })
    }

    /// Ends the run: `dir` becomes the adapter folder with the best parameters, their calibration, the recipe and, where
    /// `metrics` is given, a copy of it.
    ///
    /// # Errors
    /// IO; NUMERIC where every step was skipped, so that nothing was learned; as [`Run::score_dev`]. A checkpoint that
    /// is at `dir` is then still there.
    pub fn finish(mut self, dir: &Path, metrics: Option<&Path>, cancel: &Cancel) -> Result<Summary> {
        let (steps, skipped) = (self.trainer.steps_made(), self.trainer.skipped());
        if steps > 0 && skipped == steps {
            let text = format!("all {steps} steps had a loss or gradient that is not finite: nothing was learned");
            return Err(Error::new(Code::Numeric, text + "; check the model's weights and the learning rate"));
        }
        let best = self.trainer.best();
        self.calibrate(cancel)?;
        let summary = self.summary(best);
        let Self { trainer, card, recipe, .. } = self;
        let (adapter, _) = trainer.finish()?;
        folder::replace(dir, |dir| {
            adapter.write(dir)?;
            write(&dir.join(RECIPE), &recipe.to_toml()?)?;
            if let Some(from) = metrics {
                let to = dir.join(METRICS);
                std::fs::copy(from, &to).map_err(|error| Error::io("write", &to, &error))?;
            }
            card.map_or(Ok(()), |card| card.write(dir))
        })?;
        Ok(summary)
    }

    /// Fits the calibration on the dev scores of the best parameters.
    fn calibrate(&mut self, cancel: &Cancel) -> Result<()> {
        let kind = self.recipe.eval.calibrate;
        let Some(Dev::Dialogues(dialogues)) = self.dev.as_ref().filter(|_| kind != Calibrate::None) else {
            return Ok(());
        };
        let scored = match self.best.take() {
            Some(best) => best.scored,
            // an earlier process made the best score: its scores are made again
            None => {
                let best = Arc::new(self.trainer.best_adapter()?);
                self.report(best, dialogues, cancel, &mut |_| ())?.1
            }
        };
        let card = self.card.as_ref().ok_or_else(|| Error::internal("dialogues were scored without a card"))?;
        let marked = scored.marked(dialogues, &card.labels)?;
        let (temperature, calibration) = match kind {
            Calibrate::None => (1.0, None),
            Calibrate::Temperature => (fit_temperature(&marked.scores, &marked.gold)?, None),
            Calibrate::Vector => (1.0, Some(Calibration::vector(&marked.scores, &marked.gold)?)),
            Calibrate::Isotonic => (1.0, Some(Calibration::isotonic(&marked.scores, &marked.gold)?)),
        };
        self.card = self.card.take().map(|card| card.calibrated(temperature, calibration));
        Ok(())
    }

    fn summary(&self, best: Option<Best>) -> Summary {
        Summary {
            steps: self.trainer.steps_made(),
            skipped: self.trainer.skipped(),
            epochs: self.trainer.epoch(),
            seconds: self.record.seconds,
            tokens: self.record.tokens,
            linear_tokens: self.record.linear_tokens,
            best_score: best.map(|best| best.score),
            best_epoch: best.map(|best| best.epoch),
            temperature: self.card.as_ref().map_or(1.0, |card| card.temperature),
        }
    }
}

/// The card of the adapter that training starts from or goes on with.
fn earlier_card(model: &Model, start: Start) -> Result<Option<Card>> {
    let (Start::From(dir) | Start::Resume(dir)) = start else { return Ok(None) };
    let card = match Card::read(dir) {
        Ok(card) => card,
        Err(error) if error.code() == Code::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    card.check_base(model.base()).map_err(|error| error.at(dir.display()))?;
    Ok(Some(card))
}

fn teach(
    model: &Model,
    recipe: &Recipe,
    dialogues: &[Dialogue],
    earlier: Option<&Card>,
    threads: usize,
) -> Result<(Option<Card>, Taught)> {
    let template = recipe.template(earlier.map(|card| &card.template))?;
    let labels = match (recipe.own_labels()?, earlier) {
        (Some(own), _) => own,
        (None, Some(card)) => card.labels.clone(),
        (None, None) => Labels::of(dialogues).map_err(|error| error.at("the training data"))?,
    };
    let (asked, places) = recipe.shown(&template, dialogues, &labels);
    let learned = if recipe.emotion.shots_in_training { &asked } else { &template };
    let (tokenizer, ends) = (model.tokenizer(), Ends::of(model.tokenizer(), model.config()));
    let prompter = Prompter::new(learned, labels, tokenizer, ends)?;
    let tasks = recipe.tasks(prompter.labels(), tokenizer, ends)?;
    let class_weights = recipe.class_weights(prompter.labels(), dialogues)?;
    let biases = recipe.biases(prompter.labels(), dialogues);
    let Emotion { curriculum, retrieved_own: retrieve_own, .. } = recipe.emotion;
    let lessons = Lessons { loss: recipe.train.loss, class_weights, biases, curriculum, retrieve_own, threads };
    let taught = match places.is_empty() {
        true => prompter.groups(tokenizer, dialogues, &lessons, &tasks)?,
        false => prompter.groups(tokenizer, &shots::without(dialogues, &places), &lessons, &tasks)?,
    };
    Ok((Some(Card::new(prompter.labels().clone(), asked, model.base())), taught))
}

fn teach_pairs(model: &Model, recipe: &Recipe, pairs: &[Pair], threads: usize) -> Result<Taught> {
    let ends = Ends::of(model.tokenizer(), model.config());
    pair_groups(recipe.framing(), model.tokenizer(), ends, pairs, threads)
}

fn make_dev(model: &Model, recipe: &Recipe, card: &Option<Card>, dev: Data, threads: usize) -> Result<Dev> {
    match (dev, card) {
        (Data::Dialogues(dialogues), Some(_)) => Ok(Dev::Dialogues(dialogues)),
        (Data::Pairs(pairs), None) => Ok(Dev::Pairs(teach_pairs(model, recipe, &pairs, threads)?.groups)),
        (Data::Dialogues(_), None) => Err(Error::invalid("the training data are pairs, the dev data are dialogues")),
        (Data::Pairs(_), Some(_)) => Err(Error::invalid("the training data are dialogues, the dev data are pairs")),
    }
}

/// A forest of as many of the first groups as `budget` tokens hold, at least one, and how many those are.
fn first_batch(groups: &[Group], budget: usize) -> (Builder, usize) {
    let (mut builder, mut n) = (Builder::new(0), 0);
    while n < groups.len() && (n == 0 || builder.len() < budget) {
        for prompt in &groups[n].prompts {
            builder.insert(0, &prompt.ids[..prompt.answer.end.saturating_sub(1)]);
        }
        n += 1;
    }
    (builder, n)
}

/// Every token of every answer with its weight, each asked of the row before it.
fn targets<'a>(groups: &'a [Group], rows: &'a [Vec<u32>]) -> impl Iterator<Item = (Target, f64)> + 'a {
    let prompts = groups.iter().flat_map(|group| &group.prompts).zip(rows);
    prompts.flat_map(|(prompt, rows)| {
        let target = |i: usize| (Target { row: rows[i - 1], token: prompt.ids[i] }, f64::from(prompt.weight));
        prompt.answer.clone().map(target)
    })
}

fn details(metric: Metric, report: Option<&Report>, seconds: f64) -> Map<String, Value> {
    let value = match report {
        Some(Report { n, accuracy, weighted_f1, macro_f1, nll, ece, .. }) => json!({
            "metric": metric.name(), "n": n, "accuracy": accuracy, "weighted_f1": weighted_f1, "macro_f1": macro_f1,
            "nll": nll, "ece": ece, "seconds": seconds,
        }),
        None => json!({"metric": "nll", "seconds": seconds}),
    };
    value.as_object().cloned().unwrap_or_default()
}

fn read_record(dir: &Path) -> Result<Record> {
    let path = dir.join(RECORD);
    let text = std::fs::read(&path).map_err(|error| Error::io("read", &path, &error))?;
    serde_json::from_slice(&text).map_err(|error| Error::bad_file(&path, error))
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|error| Error::io("write", path, &error))
}
