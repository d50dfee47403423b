//! One optimiser step at a time.
//!
//! A step is: its groups, cut into forests of bounded size; the gradient of each added up; clipping; AdamW. Everything
//! random is a function of (seed, epoch) or (seed, step), so two runs, or one that was stopped, saved and resumed, make
//! the same bits. A step that fails or is cancelled leaves the trainer as before it.

use super::batch::{Batch, Layout};
use super::checkpoint::{self, BestState, FORMAT, Numbers, Saved, State};
use super::data::{self, Group};
use super::epochs::Epochs;
use super::frozen::{Frozen, Groups};
use super::loss::Shape;
use super::metrics::Metrics;
use super::options::{self, Options};
use super::schedule::Rate;
use crate::model::engine::{Entering, Learner, Learning, Moments, Noise, Pass};
use crate::model::{Adapter, Model};
use crate::{Cancel, Code, Error, Result};
use dialoguellm_kernels::{adamw, dropout};
use serde_json::{Map, Value, json};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// A run: an adapter that is being trained. Used by one thread at a time.
pub struct Trainer {
    model: Arc<Model>,
    /// Its values are the learner's where `current` says so, or it has none.
    adapter: Adapter,
    current: bool,
    learner: Box<dyn Learner>,
    /// The mean of the parameters after the steps that are averaged; empty before the first of them.
    mean: Vec<f32>,
    groups: Vec<Group>,
    /// Where steps begin, if not with the embedding; made before the first one.
    frozen: Option<Frozen>,
    options: Options,
    /// Digest of `groups`.
    data: String,
    rate: Rate,
    epochs: Epochs,
    /// Steps of the whole run.
    steps: u64,
    step: u64,
    skipped: u64,
    skipped_in_a_row: u64,
    /// The epoch whose order `order` is.
    ordered: Option<u64>,
    order: Vec<u32>,
    best: Option<(Best, Vec<f32>)>,
    metrics: Option<Metrics>,
    /// Lines that the checkpoint this run came from had in its metrics file.
    old_lines: u64,
}

/// Where the best dev score was reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Best {
    /// The score.
    pub score: f64,
    /// Steps made when it was given.
    pub step: u64,
    /// The epoch whose last step that was, counted from 1.
    pub epoch: u64,
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Steps made so far, this one included.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// The epoch it belongs to, counted from 1.
    pub epoch: u64,
    /// Whether it was the last of its epoch (or of the run): the time for a dev score.
    pub epoch_done: bool,
    /// The loss before the update.
    pub loss: f64,
    /// The gradient's norm before clipping.
    pub grad_norm: f64,
    /// The learning rate used.
    pub lr: f64,
    /// Tokens computed.
    pub tokens: usize,
    /// Tokens of the same prompts without sharing.
    pub linear_tokens: usize,
    /// Time taken.
    pub seconds: f64,
    /// Whether loss or gradient was not finite, so that nothing was updated.
    pub skipped: bool,
    /// Whether the run is over.
    pub done: bool,
}

/// Sums over the micro-batches of a step.
#[derive(Clone, Copy, Default)]
struct Sums {
    loss: f64,
    tokens: usize,
    linear_tokens: usize,
}

/// A step's work.
struct Batches {
    batches: Vec<(Batch, Option<Vec<f32>>)>,
    /// The weight of all its targets.
    total: f64,
    linear_tokens: usize,
}

impl Trainer {
    /// A new run that trains `adapter` on `groups`.
    ///
    /// # Errors
    /// InvalidArgument for options, prompts or questions out of their range; Numeric for an adapter with NaN; OutOfMemory
    /// and DeviceLost of a GPU.
    pub fn new(model: Arc<Model>, adapter: Adapter, groups: Vec<Group>, options: Options) -> Result<Self> {
        Self::with(model, adapter, None, groups, options)
    }

    fn with(
        model: Arc<Model>,
        adapter: Adapter,
        moments: Option<&Moments>,
        groups: Vec<Group>,
        options: Options,
    ) -> Result<Self> {
        options.check()?;
        let config = model.engine().config();
        data::check(&groups, config.vocab_size, model.context_length())?;
        options.loss.check(&groups)?;
        check_finite(adapter.params())?;
        if options.frozen_once && adapter.lowest_layer().is_none_or(|lowest| lowest == 0) {
            return Err(Error::invalid(
                "frozen_once is true, but layer 0 learns: no layer is frozen; name upper ones as `layers`, or leave it out",
            ));
        }
        let epochs = Epochs::new(&groups, options.batch);
        let steps = match options.max_steps {
            0 => epochs.steps(options.epochs),
            steps => steps,
        };
        Ok(Self {
            data: data::digest(&groups),
            rate: Rate::new(&options, steps)?,
            epochs,
            steps,
            learner: model.engine().learner(&adapter, moments)?,
            current: true,
            step: 0,
            skipped: 0,
            skipped_in_a_row: 0,
            ordered: None,
            order: Vec::new(),
            best: None,
            metrics: None,
            old_lines: 0,
            mean: Vec::new(),
            model,
            adapter,
            groups,
            frozen: None,
            options,
        })
    }

    /// Computes what `frozen_once` asks for; the first step does where nobody did. In the folder `kept` any other run on the same
    /// prompts finds it too; without one its file goes with the trainer.
    /// `progress` is told how many groups are done, of [`Trainer::groups_taken`].
    ///
    /// # Errors
    /// Cancelled; Io; BadFile for a file of another shape in `kept`; DeviceLost and others of a GPU.
    pub fn freeze(&mut self, kept: Option<&Path>, cancel: &Cancel, progress: &mut dyn FnMut(usize)) -> Result<()> {
        let layer = self.adapter.lowest_layer().filter(|_| self.options.frozen_once && self.frozen.is_none());
        if let Some(layer) = layer {
            let (model, loss) = (&self.model, self.options.loss);
            let groups = Groups { all: &self.groups, taken: &self.taken() };
            self.frozen = Some(Frozen::open(model, loss, groups, layer, kept, cancel, progress)?);
        }
        Ok(())
    }

    /// The run that was saved at `dir`, which continues to the same bits as if it had never stopped.
    ///
    /// # Errors
    /// As [`Trainer::new`]; NotFound, Io, BadFile, Unsupported from the files; InvalidArgument where the base model,
    /// its precision, the data or the options are not the ones of the checkpoint.
    pub fn resume(dir: &Path, model: Arc<Model>, groups: Vec<Group>, options: Options) -> Result<Self> {
        let Saved { state, adapter, moments, best, mean } = checkpoint::read(dir, model.engine().config())?;
        let mut run = Self::with(model, adapter, Some(&moments), groups, options)?;
        run.check_same(&state).map_err(|e| e.at(dir.display()))?;
        run.best = match (state.best, best) {
            (Some(state), Some(params)) => Some((read_best(&state).map_err(|e| e.at(dir.display()))?, params)),
            _ => None,
        };
        (run.step, run.skipped, run.skipped_in_a_row) = (state.step, state.skipped, state.skipped_in_a_row);
        run.old_lines = state.metrics_lines;
        (run.mean, run.current) = (mean, false);
        Ok(run)
    }

    fn check_same(&self, state: &State) -> Result<()> {
        let ours = self.state()?;
        let all = [
            ("base model", &state.base, &ours.base),
            ("precision", &state.precision, &ours.precision),
            ("training data", &state.data, &ours.data),
        ];
        if let Some((what, then, now)) = all.iter().find(|(_, then, now)| then != now) {
            return Err(Error::invalid(format!(
                "the run was begun with {what} {then}, this is {now}: resume with the same"
            )));
        }
        self.options.check_same(&state.options)?;
        if state.step > self.steps || state.skipped_in_a_row > state.skipped || state.skipped > state.step {
            let State { step, skipped, skipped_in_a_row, .. } = state;
            let text = format!("step {step} of {}, {skipped} skipped, {skipped_in_a_row} of them last", self.steps);
            return Err(Error::new(Code::BadFile, format!("state.json contradicts itself: {text}")));
        }
        Ok(())
    }

    /// Appends a JSON line per step and per dev score to `path` from now on. A new run empties the file; a resumed one
    /// first drops the lines written after its checkpoint.
    ///
    /// # Errors
    /// Io.
    pub fn log_to(&mut self, path: &Path) -> Result<()> {
        self.metrics = Some(Metrics::open(path, self.old_lines, self.step)?);
        Ok(())
    }

    /// One optimiser step.
    ///
    /// # Errors
    /// Cancelled; Numeric after more than `skip_limit` steps in a row that were not finite; Io where the metrics file
    /// cannot be written; InvalidArgument after the last step. The trainer is then as before the call.
    pub fn step(&mut self, cancel: &Cancel) -> Result<StepReport> {
        let started = Instant::now();
        if self.is_done() {
            return Err(Error::invalid(format!("the run is over: all {} steps are made", self.steps)));
        }
        self.freeze(None, cancel, &mut |_| ())?;
        self.sort_epoch();
        let sums = self.accumulate(cancel)?;
        let finite = sums.loss.is_finite();
        let grad_norm = self.learner.norm(self.options.clip, finite)?;
        let skipped = !(finite && grad_norm.is_finite());
        if skipped {
            self.check_skips(sums.loss, grad_norm)?;
        }
        let report = self.report(sums, grad_norm, skipped, started);
        self.log(step_line(&report))?;
        if !skipped {
            self.update(report.lr)?;
        }
        self.step += 1;
        self.skipped += u64::from(skipped);
        self.skipped_in_a_row = if skipped { self.skipped_in_a_row + 1 } else { 0 };
        self.average()?;
        Ok(report)
    }

    /// Takes the parameters after this step into the mean, if it is one of those that are averaged.
    fn average(&mut self) -> Result<()> {
        let averaged = (self.options.average * self.steps as f64).ceil() as u64;
        let n = self.step.saturating_sub(self.steps - averaged);
        if averaged == 0 || n == 0 {
            return Ok(());
        }
        let values = self.learner.values()?;
        match n {
            1 => self.mean = values.to_vec(),
            _ => self.mean.iter_mut().zip(values.iter()).for_each(|(mean, value)| *mean += (value - *mean) / n as f32),
        }
        self.current = false;
        Ok(())
    }

    fn update(&mut self, lr: f64) -> Result<()> {
        let Options { beta1, beta2, epsilon: eps, weight_decay: decay, .. } = self.options;
        let t = self.step - self.skipped + 1;
        // the old values would be kept for this adapter alone
        self.adapter.set_params(Arc::default());
        self.current = false;
        self.learner.update(&adamw::Options { lr, beta1, beta2, eps, decay }, t)
    }

    fn report(&self, sums: Sums, grad_norm: f64, skipped: bool, started: Instant) -> StepReport {
        let step = self.step + 1;
        let done = step >= self.steps;
        StepReport {
            step,
            steps: self.steps,
            epoch: self.epochs.of(self.step).0 + 1,
            epoch_done: done || self.epochs.of(step).1 == 0,
            loss: sums.loss,
            grad_norm,
            lr: self.rate.at(self.step),
            tokens: sums.tokens,
            linear_tokens: sums.linear_tokens,
            seconds: started.elapsed().as_secs_f64(),
            skipped,
            done,
        }
    }

    fn check_skips(&self, loss: f64, norm: f64) -> Result<()> {
        if self.skipped_in_a_row < self.options.skip_limit {
            return Ok(());
        }
        let (step, row) = (self.step + 1, self.skipped_in_a_row);
        Err(Error::new(
            Code::Numeric,
            format!(
                "step {step}: the loss is {loss}, the gradient's norm {norm}, and the {row} steps before it were not \
                 finite either; skip_limit is {}. Lower the learning rate, or check the model's weights",
                self.options.skip_limit
            ),
        ))
    }

    /// The gradient of this step, in the learner.
    fn accumulate(&mut self, cancel: &Cancel) -> Result<Sums> {
        let Batches { batches, total, linear_tokens } = self.batches()?;
        let (noise, activation_bytes) = (self.noise(), self.options.activation_bytes());
        let layer = self.frozen.as_ref().map_or(0, Frozen::layer);
        let mut sums = Sums { linear_tokens, ..Sums::default() };
        let engine = self.model.engine();
        self.learner.begin()?;
        for (Batch { forest, targets, objective, .. }, rows) in &batches {
            let entering = rows.as_ref().map(|rows| Entering { layer, rows });
            let learning = Learning { noise, activation_bytes, entering };
            let pass = Pass { forest, adapter: Some(&self.adapter), cancel };
            let mut loss = |log_probs: &[f32]| {
                let (loss, slope) = objective.value(log_probs, total);
                sums.loss += loss;
                Ok(slope)
            };
            engine.learn(&mut *self.learner, &pass, targets, &learning, &mut loss)?;
            sums.tokens += forest.len();
        }
        Ok(sums)
    }

    /// The forests of this step that are worth a pass, and what enters the lowest layer that learns where that is kept.
    fn batches(&self) -> Result<Batches> {
        let numbers = self.groups_of_step();
        let groups: Vec<&Group> = numbers.iter().map(|&g| &self.groups[g as usize]).collect();
        let shape = Shape { smoothing: self.options.label_smoothing, focal: self.options.focal };
        let layout = Layout { loss: self.options.loss, shape, shared: self.noise().is_none() };
        let cuts = layout.cut(&groups, self.options.micro_tokens);
        let batches = cuts.into_iter().map(|cut| (layout.batch(&groups[cut.clone()]), cut));
        let rows = |(batch, cut): (Batch, Range<usize>)| {
            let of = |frozen: &Frozen| frozen.of(&batch, &groups[cut.clone()], &numbers[cut]);
            let rows = self.frozen.as_ref().map(of).transpose()?;
            Ok((batch, rows))
        };
        Ok(Batches {
            batches: batches.filter(|(batch, _)| !batch.targets.is_empty()).map(rows).collect::<Result<_>>()?,
            // A batch may be all prompts without an answer: its loss is then 0, not 0 / 0.
            total: Some(self.options.loss.total(groups.iter().copied())).filter(|&t| t > 0.0).unwrap_or(1.0),
            linear_tokens: groups.iter().flat_map(|group| &group.prompts).map(|prompt| prompt.ids.len()).sum(),
        })
    }

    fn noise(&self) -> Option<Noise> {
        let (dropout, neftune) = (self.adapter.config().dropout as f32, self.options.neftune as f32);
        let noise = Noise { seed: self.options.seed, step: self.step, dropout, neftune };
        (dropout > 0.0 || neftune > 0.0).then_some(noise)
    }

    fn groups_of_step(&self) -> &[u32] {
        let first = self.epochs.of(self.step).1 as usize * self.options.batch;
        &self.order[first..self.order.len().min(first + self.options.batch)]
    }

    /// Makes `order` this epoch's.
    fn sort_epoch(&mut self) {
        let (epoch, _) = self.epochs.of(self.step);
        if self.ordered != Some(epoch) {
            self.order = self.order_of(epoch);
            self.ordered = Some(epoch);
        }
    }

    /// The groups of an epoch as its steps take them.
    fn order_of(&self, epoch: u64) -> Vec<u32> {
        let is_ready = |&g: &u32| u64::from(self.groups[g as usize].stage) <= epoch;
        let mut order: Vec<u32> = (0..self.groups.len() as u32).filter(is_ready).collect();
        if self.options.shuffle {
            let seed = self.options.seed;
            order.sort_by_cached_key(|&g| (dropout::key(seed, epoch, 0, u64::from(g), 0), g));
        }
        order
    }

    /// Whether any step of the run takes each group: under `max_steps` some may wait for a step that is not made.
    fn taken(&self) -> Vec<bool> {
        let mut taken = vec![false; self.groups.len()];
        let (last, steps) = self.epochs.of(self.steps);
        for epoch in 0..=last {
            let order = self.order_of(epoch);
            let of_epoch = if epoch < last { order.len() } else { steps as usize * self.options.batch };
            order.iter().take(of_epoch).for_each(|&g| taken[g as usize] = true);
            if taken.iter().all(|&taken| taken) {
                break;
            }
        }
        taken
    }

    /// Groups that any step of the run takes.
    pub fn groups_taken(&self) -> usize {
        self.taken().iter().filter(|&&taken| taken).count()
    }

    /// Notes a score on dev data for the parameters as they are, larger is better, and whether it is the best so far;
    /// the best parameters are kept. Of equal scores the first stays. `details` go into the metrics line as they are.
    ///
    /// # Errors
    /// Numeric for NaN; Io.
    pub fn note_dev(&mut self, score: f64, details: Map<String, Value>) -> Result<bool> {
        if score.is_nan() {
            return Err(Error::new(Code::Numeric, format!("the dev score after step {} is NaN", self.step)));
        }
        let is_best = self.best.as_ref().is_none_or(|(best, _)| score > best.score);
        let best = Best { score, step: self.step, epoch: self.epoch() };
        let mut line = json_line(json!({"step": best.step, "epoch": best.epoch, "dev_score": score, "best": is_best}));
        line.extend(details);
        self.log(line)?;
        if is_best {
            self.best = Some((best, self.adapter()?.params().to_vec()));
        }
        Ok(is_best)
    }

    fn log(&mut self, line: Map<String, Value>) -> Result<()> {
        self.metrics.as_mut().map_or(Ok(()), |metrics| metrics.append(line))
    }

    /// Replaces the checkpoint at `dir` in one step.
    ///
    /// # Errors
    /// Io, or InvalidArgument where `dir` holds something else; what was there still stands.
    pub fn save(&mut self, dir: &Path) -> Result<()> {
        self.save_with(dir, |_| Ok(()))
    }

    /// As [`Trainer::save`]; `more` adds the caller's own files to the folder being built.
    ///
    /// # Errors
    /// As [`Trainer::save`], and those of `more`.
    pub fn save_with(&mut self, dir: &Path, more: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        self.adapter()?;
        let moments = self.learner.moments()?;
        let best = self.best.as_ref().map(|(_, params)| params.as_slice());
        let mean = (!self.mean.is_empty()).then_some(self.mean.as_slice());
        let values = self.learner.values()?;
        let numbers = Numbers { adapter: &self.adapter, params: &values, moments: &moments, best, mean };
        checkpoint::write(dir, &self.state()?, &numbers, more)
    }

    fn state(&self) -> Result<State> {
        let best = |(best, _): &(Best, Vec<f32>)| BestState {
            score: best.score.to_string(),
            step: best.step,
            epoch: best.epoch,
        };
        Ok(State {
            format: FORMAT,
            step: self.step,
            skipped: self.skipped,
            skipped_in_a_row: self.skipped_in_a_row,
            metrics_lines: self.metrics.as_ref().map_or(Ok(self.old_lines), Metrics::synced_lines)?,
            base: self.model.fingerprint().to_owned(),
            precision: self.model.engine().precision().to_owned(),
            data: self.data.clone(),
            options: options::as_stored(&self.options)?,
            best: self.best.as_ref().map(best),
            averaged: !self.mean.is_empty(),
        })
    }

    /// The adapter as it is now: the parameters, or their mean once steps are averaged.
    ///
    /// # Errors
    /// DeviceLost and others of a GPU that keeps it; never on a CPU.
    pub fn adapter(&mut self) -> Result<&Adapter> {
        if !self.current {
            let mean = || Arc::new(self.mean.clone());
            self.adapter.set_params(if self.mean.is_empty() { self.learner.values()? } else { mean() });
            self.current = true;
        }
        Ok(&self.adapter)
    }
    /// The adapter that [`Trainer::finish`] would give now.
    ///
    /// # Errors
    /// As [`Trainer::adapter`].
    pub fn best_adapter(&mut self) -> Result<Adapter> {
        match &self.best {
            None => self.adapter().cloned(),
            Some((_, params)) => {
                let mut adapter = self.adapter.clone();
                adapter.set_params(Arc::new(params.clone()));
                Ok(adapter)
            }
        }
    }
    /// Numbers that are trained.
    pub fn parameters(&self) -> usize {
        self.adapter.slots().iter().map(|slot| slot.at.len()).sum()
    }
    /// Groups that are trained on.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }
    /// Steps made.
    pub fn steps_made(&self) -> u64 {
        self.step
    }
    /// The epoch of the last step, counted from 1; 0 before the first.
    pub fn epoch(&self) -> u64 {
        self.step.checked_sub(1).map_or(0, |last| self.epochs.of(last).0 + 1)
    }
    /// Whether the last step was the last of its epoch.
    pub fn epoch_is_done(&self) -> bool {
        self.step > 0 && self.epochs.of(self.step).1 == 0
    }
    /// Steps of the whole run.
    pub fn steps(&self) -> u64 {
        self.steps
    }
    /// Whether the last step is made.
    pub fn is_done(&self) -> bool {
        self.step >= self.steps
    }
    /// Steps skipped because loss or gradient was not finite.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }
    /// Where the best dev score so far was reached.
    pub fn best(&self) -> Option<Best> {
        self.best.as_ref().map(|(best, _)| *best)
    }

    /// Ends the run: the adapter with the best dev score, or the last one where no score was given.
    ///
    /// # Errors
    /// As [`Trainer::adapter`].
    pub fn finish(mut self) -> Result<(Adapter, Option<Best>)> {
        Ok((self.best_adapter()?, self.best()))
    }
}

fn step_line(report: &StepReport) -> Map<String, Value> {
    let StepReport { step, epoch, loss, grad_norm, lr, tokens, linear_tokens, seconds, skipped, .. } = report;
    // NaN and infinity become null: JSON has no such numbers.
    json_line(json!({
        "step": step, "epoch": epoch, "loss": loss, "grad_norm": grad_norm, "lr": lr, "tokens": tokens,
        "linear_tokens": linear_tokens, "seconds": seconds, "skipped": skipped,
    }))
}

fn json_line(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(line) => line,
        _ => Map::new(),
    }
}

fn read_best(state: &BestState) -> Result<Best> {
    let score = state.score.parse::<f64>().ok().filter(|score| !score.is_nan());
    let score = score.ok_or_else(|| Error::new(Code::BadFile, "state.json: the best score is no number"))?;
    Ok(Best { score, step: state.step, epoch: state.epoch })
}

fn check_finite(params: &[f32]) -> Result<()> {
    match params.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(at) => {
            let text = format!("the adapter to train has {} at parameter {at}, must be finite", params[at]);
            Err(Error::new(Code::Numeric, text))
        }
    }
}

#[cfg(test)]
mod tests;
