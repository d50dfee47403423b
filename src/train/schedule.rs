//! The learning rate of every step, as transformers' schedules of the same names give it.
//!
//! Steps count from 0, so the first warm-up step has rate 0. Source of behaviour: transformers `optimization.py`
//! (the lambdas of each schedule) and `TrainingArguments.get_warmup_steps` (a ratio is rounded up).

use super::options::Options;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// How the rate moves after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Straight down to 0 after the last step.
    #[default]
    Linear,
    /// Half a cosine down to 0.
    Cosine,
    /// Half a cosine down to `min_rate` of the peak.
    CosineWithMinLr,
    /// The peak, without warm-up.
    Constant,
    /// The peak after warm-up.
    ConstantWithWarmup,
}

/// The rates of one run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    schedule: Schedule,
    peak: f64,
    floor: f64,
    warmup: u64,
    steps: u64,
}

impl Rate {
    /// The rates of a run of `steps` steps under `options`.
    ///
    /// # Errors
    /// InvalidArgument where warm-up or `min_rate` is given to a schedule that has none, or both kinds of warm-up.
    pub fn new(options: &Options, steps: u64) -> Result<Self> {
        let Options { schedule, warmup_steps, warmup_ratio, .. } = *options;
        if warmup_steps > 0 && warmup_ratio > 0.0 {
            return Err(Error::invalid(format!(
                "warmup_steps is {warmup_steps} and warmup_ratio is {warmup_ratio}: give one of them"
            )));
        }
        // Rounded up, as transformers does: a ratio above 0 gives at least one step.
        let warmup = warmup_steps.max((steps as f64 * warmup_ratio).ceil() as u64);
        if schedule == Schedule::Constant && warmup > 0 {
            let text = "schedule constant has no warm-up: name constant_with_warmup, or leave warm-up at 0";
            return Err(Error::invalid(text));
        }
        Ok(Self { schedule, peak: options.learning_rate, floor: floor(options)?, warmup, steps })
    }

    /// Steps of warm-up.
    pub fn warmup(&self) -> u64 {
        self.warmup
    }

    /// The rate of step `step`, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        self.peak * self.factor(step)
    }

    fn factor(&self, step: u64) -> f64 {
        if step < self.warmup && self.schedule != Schedule::Constant {
            return step as f64 / self.warmup as f64;
        }
        let after = self.steps.saturating_sub(self.warmup).max(1) as f64;
        let done = step.saturating_sub(self.warmup) as f64 / after;
        match self.schedule {
            Schedule::Linear => self.steps.saturating_sub(step) as f64 / after,
            // In transformers' order of operations, so that the last bit agrees too.
            Schedule::Cosine => f64::max(0.0, 0.5 * (1.0 + (PI * 0.5 * 2.0 * done).cos())),
            Schedule::CosineWithMinLr => {
                let cosine = 0.5 * (1.0 + (PI * 0.5 * 2.0 * done).cos());
                f64::max(0.0, cosine * (1.0 - self.floor) + self.floor)
            }
            Schedule::Constant | Schedule::ConstantWithWarmup => 1.0,
        }
    }
}

fn floor(options: &Options) -> Result<f64> {
    match (options.schedule, options.min_rate) {
        (Schedule::CosineWithMinLr, Some(floor)) if (0.0..=1.0).contains(&floor) => Ok(floor),
        (Schedule::CosineWithMinLr, Some(floor)) => {
            Err(Error::invalid(format!("min_rate is {floor}, must be a fraction of the peak from 0 to 1")))
        }
        (Schedule::CosineWithMinLr, None) => {
            Err(Error::invalid("schedule cosine_with_min_lr needs min_rate, the fraction of the peak it ends at"))
        }
        (_, Some(floor)) => {
            Err(Error::invalid(format!("min_rate is {floor}, but only schedule cosine_with_min_lr has one")))
        }
        (_, None) => Ok(0.0),
    }
}
