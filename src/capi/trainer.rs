//! An adapter that is being trained.

use super::adapter::dllm_adapter;
use super::boundary::{guard, out, path, path_if, text};
use super::cancel::{cancel_of, dllm_cancel};
use super::dataset::dllm_dataset;
use super::error::{dllm_error, dllm_status, dllm_string};
use super::handle::{Handle, Kind, free, give, share, share_if, take};
use super::model::{Opened, dllm_model};
use super::options::{described, read, write, zeroed};
use crate::emotion::Recipe;
use crate::emotion::run::{DevScore, Run, Setup, Start};
use crate::train::StepReport;
use crate::{Cancel, Code, Error, Result};
use serde_json::json;
use std::ffi::{c_char, c_void};
use std::path::PathBuf;
use std::sync::Arc;

/// How a run begins; zero is every field's default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dllm_trainer_options {
    /// sizeof(dllm_trainer_options).
    pub struct_size: u32,
    /// 0.
    pub reserved: u32,
    /// Goes on with the run whose checkpoint this folder is; NULL begins a new one.
    pub resume: *const c_char,
    /// Begins with this adapter; NULL with a new one.
    pub init_adapter: *const c_char,
    /// Gets a line of JSON per step and per dev score; NULL for no such file.
    pub metrics: *const c_char,
    /// The base model's name for PEFT's adapter_config.json; NULL for none.
    pub base_name: *const c_char,
    /// Stops its calls; may be freed while the trainer lives. NULL for none.
    pub cancel: *const dllm_cancel,
}
described!(growing dllm_trainer_options { reserved, resume, init_adapter, metrics, base_name, cancel });

/// The report is of a step of the optimiser.
pub const DLLM_TRAIN_STEP: u32 = 0;
/// The report is of a dev score.
pub const DLLM_TRAIN_DEV: u32 = 1;

/// What was done.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dllm_train_report {
    /// sizeof(dllm_train_report), set by the caller.
    pub struct_size: u32,
    /// DLLM_TRAIN_STEP or DLLM_TRAIN_DEV.
    pub kind: u32,
    /// Steps made so far.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// The epoch, counted from 1.
    pub epoch: u64,
    /// Of a step: the loss before it.
    pub loss: f64,
    /// Of a step: the gradient's norm before clipping.
    pub grad_norm: f64,
    /// Of a step: the learning rate.
    pub learning_rate: f64,
    /// Of a step: tokens computed.
    pub tokens: u64,
    /// Of a step: tokens of the same prompts without sharing.
    pub linear_tokens: u64,
    /// Of a step: the time it took.
    pub seconds: f64,
    /// Of a dev score: the score, larger is better.
    pub dev_score: f64,
    /// Of a dev score: 1 where it is the best so far.
    pub is_best: u32,
    /// Of a step: 1 where loss or gradient was not finite, so that nothing changed.
    pub skipped: u32,
    /// 1 where nothing is left but dllm_trainer_finish().
    pub done: u32,
    /// 0.
    pub reserved: u32,
}
described!(growing dllm_train_report {
    kind, step, steps, epoch, loss, grad_norm, learning_rate, tokens, linear_tokens, seconds, dev_score, is_best, skipped,
    done, reserved
});

/// Hears of every step and dev score, on the thread that called the library; anything but 0 stops the call.
pub type dllm_train_fn = Option<unsafe extern "C" fn(user: *mut c_void, report: *const dllm_train_report) -> i32>;

/// An adapter that is being trained. One call at a time; others get BUSY and change nothing.
pub struct dllm_trainer(Handle<Training>);

/// What is behind a [`dllm_trainer`].
pub struct Training {
    /// None once it is finished.
    run: Option<Run>,
    cancel: Cancel,
    metrics: Option<PathBuf>,
}

impl Kind for dllm_trainer {
    type Value = Training;
    const NAME: &'static str = "trainer";
    fn new(handle: Handle<Training>) -> Self {
        Self(handle)
    }
    fn handle(&self) -> &Handle<Training> {
        &self.0
    }
}

impl Training {
    fn run(&mut self) -> Result<&mut Run> {
        self.run.as_mut().ok_or_else(|| Error::invalid("the run is finished: make a new trainer"))
    }

    /// A step, or the dev score that is due.
    fn advance(&mut self) -> Result<dllm_train_report> {
        let cancel = self.cancel.clone();
        let run = self.run()?;
        if run.is_done() {
            return Err(Error::invalid("all steps are made: finish the run"));
        }
        let mut report =
            if run.dev_is_due() { of_dev(&run.score_dev(&cancel, &mut |_| ())?) } else { of_step(&run.step(&cancel)?) };
        let trainer = run.trainer();
        (report.step, report.steps, report.epoch) = (trainer.steps_made(), trainer.steps(), trainer.epoch());
        report.done = run.is_done().into();
        Ok(report)
    }
}

fn of_step(report: &StepReport) -> dllm_train_report {
    dllm_train_report {
        kind: DLLM_TRAIN_STEP,
        loss: report.loss,
        grad_norm: report.grad_norm,
        learning_rate: report.lr,
        tokens: report.tokens as u64,
        linear_tokens: report.linear_tokens as u64,
        seconds: report.seconds,
        skipped: report.skipped.into(),
        ..zeroed()
    }
}

fn of_dev(score: &DevScore) -> dllm_train_report {
    dllm_train_report { kind: DLLM_TRAIN_DEV, dev_score: score.score, is_best: score.is_best.into(), ..zeroed() }
}

/// ---- Trainer: an adapter that is being trained ----
///
/// A run on `train`; `dev`, which may be NULL, chooses the epoch and is what calibration is fitted on. `recipe` is TOML text
/// with the tables lora, train, emotion and eval, each field as the command has it; an empty text is all defaults.
/// `options` may be NULL.
///
/// Ownership: the caller's; it keeps the model alive, and what it needs of the data.
/// Errors:    INVALID_ARGUMENT naming the recipe's field, its value and its range; as dllm_adapter_open() for an adapter to
///            begin with; BAD_FILE or INVALID_ARGUMENT for a checkpoint of another model, data or recipe.
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_trainer_new(
    model: *const dllm_model,
    train: *const dllm_dataset,
    dev: *const dllm_dataset,
    recipe: *const c_char,
    recipe_len: usize,
    options: *const dllm_trainer_options,
    trainer: *mut *mut dllm_trainer,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (trainer, opened, train, dev, recipe, options) = unsafe {
            let recipe = text(recipe, recipe_len, "recipe")?;
            (out(trainer, "trainer")?, share(model)?, share(train)?, share_if(dev)?, recipe, read(options)?)
        };
        // SAFETY: as the header says.
        let (resume, from, metrics, base, cancel) = unsafe {
            let [resume, from, metrics] = [options.resume, options.init_adapter, options.metrics].map(|at| path_if(at));
            let base = path_if(options.base_name).map(|name| name.to_string_lossy().into_owned());
            (resume, from, metrics.map(PathBuf::from), base, cancel_of(options.cancel)?)
        };
        let start = match (resume, from) {
            (Some(_), Some(_)) => {
                return Err(Error::invalid("resume and init_adapter are both given: a run begins in one way"));
            }
            (Some(dir), None) => Start::Resume(dir),
            (None, Some(dir)) => Start::From(dir),
            (None, None) => Start::New,
        };
        let Opened { model, runtime } = Opened::clone(&opened);
        let recipe = Recipe::from_toml(recipe)?;
        let (train, dev) = (train.0.clone(), dev.map(|dev| dev.0.clone()));
        let mut run = Run::new(model, Setup { recipe, train, dev, start, threads: runtime.pool.threads(), base })?;
        metrics.as_deref().map_or(Ok(()), |metrics| run.log_to(metrics))?;
        *trainer = give(Training { run: Some(run), cancel, metrics });
        Ok(())
    })
}

/// One step of the optimiser, or the dev score that is due; `report` may be NULL.
///
/// Errors: CANCELLED; NUMERIC after too many steps in a row that were not finite; IO for the metrics file; INVALID_ARGUMENT
///         after the last step. The trainer is then as before the call.
/// Cost:   the cancel handle is read once a layer, forward and backward.
/// Since:  0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_trainer_step(
    trainer: *mut dllm_trainer,
    report: *mut dllm_train_report,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let done = unsafe { take(trainer) }?.advance()?;
        // SAFETY: as the header says.
        unsafe { write(report, done) }
    })
}

/// Makes every step and dev score that is left. `on_event`, which may be NULL, hears of each; a checkpoint goes to `dir`,
/// which may be NULL, as often as the recipe says, and when the run is stopped.
///
/// Errors: as dllm_trainer_step() and dllm_trainer_save(); CANCELLED where `on_event` stops it.
/// Since:  0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_trainer_run(
    trainer: *mut dllm_trainer,
    dir: *const c_char,
    on_event: dllm_train_fn,
    user: *mut c_void,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (mut training, dir) = unsafe { (take(trainer)?, path_if(dir)) };
        let hear = |mut report: dllm_train_report| {
            report.struct_size = size_of::<dllm_train_report>() as u32;
            // SAFETY: the caller's function, on the caller's thread, with the caller's pointer.
            match on_event.map_or(0, |hear| unsafe { hear(user, &report) }) {
                0 => Ok(()),
                _ => Err(Error::new(Code::Cancelled, "stopped, as the callback asked")),
            }
        };
        let save = |run: &mut Run| dir.map_or(Ok(()), |dir| run.save(dir));
        while !training.run()?.is_done() {
            let result = training.advance().and_then(hear);
            let run = training.run()?;
            match result {
                Ok(()) if run.checkpoint_is_due() => save(run)?,
                Ok(()) => {}
                Err(error) if error.code() == Code::Cancelled => return save(run).and(Err(error)),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    })
}

/// Writes a checkpoint, which is at the same time an adapter folder that can be used. What is at `dir` is replaced in one
/// step, so a kill leaves the old or the new one.
///
/// Errors: IO, or INVALID_ARGUMENT where `dir` holds something else; what was there still stands.
/// Since:  0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_trainer_save(
    trainer: *mut dllm_trainer,
    dir: *const c_char,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (mut training, dir) = unsafe { (take(trainer)?, path(dir, "dir")?) };
        training.run()?.save(dir)
    })
}

/// The adapter as it is now; the trainer may go on.
///
/// Ownership: the caller's.
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_trainer_adapter(
    trainer: *mut dllm_trainer,
    adapter: *mut *mut dllm_adapter,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (adapter, mut training) = unsafe { (out(adapter, "adapter")?, take(trainer)?) };
        *adapter = give(Arc::new(training.run()?.adapter()?));
        Ok(())
    })
}

/// Ends the run: `dir` becomes the folder for dllm_classifier_open(), with the best parameters, their calibration, the
/// recipe and the metrics. `summary`, which may be NULL, is what the run did, as JSON.
///
/// Ownership: `summary` is the caller's; free it with dllm_string_free(). The trainer can only be freed from then on, after an
///            error too, which leaves a checkpoint that is at `dir`.
/// Errors:    IO; NUMERIC where every step was skipped; CANCELLED.
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_trainer_finish(
    trainer: *mut dllm_trainer,
    dir: *const c_char,
    summary: *mut *mut dllm_string,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (mut training, dir) = unsafe {
            if !summary.is_null() {
                out(summary, "summary")?;
            }
            (take(trainer)?, path(dir, "dir")?)
        };
        training.run()?;
        let Training { run, cancel, metrics } = &mut *training;
        let run = run.take().ok_or_else(|| Error::internal("a run was there and is not"))?;
        let done = run.finish(dir, metrics.as_deref(), cancel)?;
        if !summary.is_null() {
            // SAFETY: the caller's room, as `out` found it.
            unsafe { summary.write(dllm_string::boxed(json!(done).to_string())) };
        }
        Ok(())
    })
}

/// Frees a trainer; NULL is fine. What was not saved is lost.
///
/// Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_trainer_free(trainer: *mut dllm_trainer) {
    // SAFETY: as the header says.
    unsafe { free(trainer) }
}
