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

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(schedule: Schedule, warmup_steps: u64, steps: u64) -> Rate {
        let min_rate = (schedule == Schedule::CosineWithMinLr).then_some(0.1);
        let options = Options { schedule, warmup_steps, min_rate, learning_rate: 3e-4, ..Options::default() };
        Rate::new(&options, steps).unwrap()
    }

    fn check(rate: Rate, want: &[f64]) {
        for (step, want) in want.iter().enumerate() {
            let got = rate.at(step as u64);
            assert!((got - want).abs() <= 4e-16 * want, "step {step}: {got:e}, transformers has {want:e}");
        }
    }

    /// Literals here and below: transformers 5.23 `get_scheduler` with torch 2.13, the rate each step is taken with.
    #[test]
    fn linear_is_transformers() {
        check(
            rate(Schedule::Linear, 3, 10),
            &[
                0.0,
                9.999999999999999e-05,
                0.00019999999999999998,
                0.0003,
                0.0002571428571428571,
                0.00021428571428571427,
                0.0001714285714285714,
                0.00012857142857142855,
                8.57142857142857e-05,
                4.285714285714285e-05,
            ],
        );
        check(rate(Schedule::Linear, 0, 10), &[0.0003, 0.00027, 0.00023999999999999998]);
        check(rate(Schedule::Linear, 6, 4), &[0.0, 4.9999999999999996e-05, 9.999999999999999e-05, 0.00015]);
    }

    #[test]
    fn cosine_is_transformers() {
        check(
            rate(Schedule::Cosine, 2, 12),
            &[
                0.0,
                0.00015,
                0.0003,
                0.00029265847744427303,
                0.0002713525491562421,
                0.00023816778784387094,
                0.0001963525491562421,
                0.00015,
                0.0001036474508437579,
                6.183221215612904e-05,
                2.8647450843757897e-05,
                7.34152255572697e-06,
            ],
        );
    }

    #[test]
    fn cosine_with_min_lr_is_transformers() {
        check(
            rate(Schedule::CosineWithMinLr, 3, 12),
            &[
                0.0,
                9.999999999999999e-05,
                0.00019999999999999998,
                0.0003,
                0.00029185850380609757,
                0.000268415999821062,
                0.00023249999999999999,
                0.0001884425039850356,
                0.0001415574960149644,
                9.750000000000003e-05,
                6.158400017893799e-05,
                3.814149619390237e-05,
            ],
        );
    }

    #[test]
    fn the_constants_are_transformers() {
        let want = [0.0, 9.999999999999999e-05, 0.00019999999999999998, 0.0003, 0.0003, 0.0003];
        check(rate(Schedule::ConstantWithWarmup, 3, 6), &want);
        check(rate(Schedule::Constant, 0, 4), &[3e-4; 4]);
    }

    #[test]
    fn a_warm_up_ratio_is_rounded_up() {
        let steps = |n, warmup_ratio| Rate::new(&Options { warmup_ratio, ..Options::default() }, n).unwrap().warmup();
        let cases =
            [(20, 0.06, 2), (20, 0.12, 3), (100, 0.03, 3), (7, 0.5, 4), (10, 0.3, 3), (1000, 0.001, 1), (3, 0.01, 1)];
        for (n, ratio, want) in cases {
            assert_eq!(steps(n, ratio), want, "{n} steps, ratio {ratio}");
        }
    }

    #[test]
    fn what_a_schedule_does_not_have_is_refused() {
        let says = |options| Rate::new(&options, 10).unwrap_err().to_string();
        let base = Options::default();
        assert!(says(Options { warmup_steps: 3, warmup_ratio: 0.1, ..base.clone() }).contains("give one of them"));
        let constant = Options { schedule: Schedule::Constant, warmup_steps: 3, ..base.clone() };
        assert!(says(constant).contains("constant has no warm-up"));
        assert!(says(Options { min_rate: Some(0.1), ..base.clone() }).contains("only schedule cosine_with_min_lr"));
        let floor = |min_rate| Options { schedule: Schedule::CosineWithMinLr, min_rate, ..base.clone() };
        assert!(says(floor(None)).contains("needs min_rate"));
        assert!(says(floor(Some(f64::NAN))).contains("min_rate is NaN"));
    }
}
