//! Every setting of a training run: the `[train]` table of a recipe.
//!
//! Defaults are transformers' `TrainingArguments` where it has the setting, unless said otherwise. What belongs to the
//! adapter (rank, alpha, dropout, which weights) is in its own configuration, what belongs to text in the template.

use super::loss::Loss;
use super::schedule::Schedule;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// The settings of a run. In a recipe every field may be left out; an unknown one is an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Seed of the order of the data, of dropout and of noise. Default 42.
    pub seed: u64,
    /// Passes over the data. Default 3.
    pub epochs: u64,
    /// Steps at which the run ends, whatever `epochs` says; schedules end there too. Default 0: at the end of the epochs.
    pub max_steps: u64,
    /// Groups (a linear prompt, a question or a dialogue) in one optimiser step. Default 8.
    pub batch: usize,
    /// Tokens that are computed at once; a step with more is accumulated over several passes, with the same result but
    /// for rounding. A group with more runs alone. Default 2048.
    pub micro_tokens: usize,
    /// Whether every epoch has its own random order; else groups come in the order given. Default true.
    pub shuffle: bool,
    /// `answer`, `sequence` or `choice`. Default `answer`.
    pub loss: Loss,
    /// Of the choice loss, the part of the truth that is shared out among all answers, against labels that are wrong now and
    /// then. Default 0.
    pub label_smoothing: f64,
    /// Of the choice loss, the focal loss's gamma: how much less a turn counts that is answered well already; not together
    /// with smoothing. Default 0.
    pub focal: f64,
    /// The peak learning rate. Default 2e-4, usual for LoRA.
    pub learning_rate: f64,
    /// `linear`, `cosine`, `cosine_with_min_lr`, `constant` or `constant_with_warmup`. Default `linear`.
    pub schedule: Schedule,
    /// The fraction of the peak that `cosine_with_min_lr` ends at; for that schedule only. Default none.
    pub min_rate: Option<f64>,
    /// Steps of warm-up, the first of them at rate 0. Default 0.
    pub warmup_steps: u64,
    /// Warm-up as a fraction of all steps, rounded up to a step. Default 0.
    pub warmup_ratio: f64,
    /// AdamW's decay of the first moment. Default 0.9.
    pub beta1: f64,
    /// AdamW's decay of the second moment. Default 0.999.
    pub beta2: f64,
    /// AdamW's addition to the denominator. Default 1e-8.
    pub epsilon: f64,
    /// Decoupled weight decay, of A and B alike. Default 0.
    pub weight_decay: f64,
    /// The gradient's norm above which it is scaled down to it; 0 for no clipping. Default 1.
    pub clip: f64,
    /// The part of the run's steps, its last, after which the parameters are averaged: their mean is what is scored on dev and
    /// kept (Izmailov et al. 2018, arXiv 1803.05407, without their cycles). Default 0: the parameters as they are.
    pub average: f64,
    /// Whether what the layers below the lowest one that learns make of the prompts is computed once, before the first step, and
    /// read from a file of 4 hidden_size bytes a token at every step: for adapters of upper layers only (`layers`), which are
    /// then trained several times as fast. Results are the same but for rounding. Not with NEFTune. Default false.
    pub frozen_once: bool,
    /// NEFTune's alpha (arXiv 2310.05914): noise on the embeddings while training; 0 for none. Default 0.
    pub neftune: f64,
    /// MiB of activations that may be kept for the backward pass; layers beyond it are computed twice. It changes speed
    /// and memory, not results. Default 1024.
    pub activation_mib: u64,
    /// Steps in a row whose loss or gradient may be NaN or infinite; each is skipped and counted, one more ends the
    /// run. Default 10.
    pub skip_limit: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 42,
            epochs: 3,
            max_steps: 0,
            batch: 8,
            micro_tokens: 2048,
            shuffle: true,
            loss: Loss::Answer,
            label_smoothing: 0.0,
            focal: 0.0,
            learning_rate: 2e-4,
            schedule: Schedule::Linear,
            min_rate: None,
            warmup_steps: 0,
            warmup_ratio: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip: 1.0,
            average: 0.0,
            frozen_once: false,
            neftune: 0.0,
            activation_mib: 1024,
            skip_limit: 10,
        }
    }
}

impl Options {
    /// Checks every range. What depends on the number of steps is checked by [`Rate::new`](super::Rate::new).
    ///
    /// # Errors
    /// InvalidArgument naming the field, its value and its range.
    pub fn check(&self) -> Result<()> {
        let counts =
            [("epochs", self.epochs), ("batch", self.batch as u64), ("micro_tokens", self.micro_tokens as u64)];
        for (name, value) in counts {
            require(value >= 1, name, value, "1 or more")?;
        }
        for (name, value) in [("learning_rate", self.learning_rate), ("epsilon", self.epsilon)] {
            require(value > 0.0 && value.is_finite(), name, value, "above 0")?;
        }
        let amounts = [
            ("weight_decay", self.weight_decay),
            ("clip", self.clip),
            ("neftune", self.neftune),
            ("focal", self.focal),
        ];
        for (name, value) in amounts {
            require(value >= 0.0 && value.is_finite(), name, value, "0 or more")?;
        }
        let shares = [
            ("beta1", self.beta1),
            ("beta2", self.beta2),
            ("warmup_ratio", self.warmup_ratio),
            ("label_smoothing", self.label_smoothing),
            ("average", self.average),
        ];
        for (name, value) in shares {
            require((0.0..1.0).contains(&value), name, value, "from 0 to below 1")?;
        }
        let shaped = [("label_smoothing", self.label_smoothing), ("focal", self.focal)];
        for (name, value) in shaped.into_iter().filter(|_| self.loss != Loss::Choice) {
            require(value == 0.0, name, value, "0 unless loss is `choice`")?;
        }
        let focal = if self.label_smoothing == 0.0 { 0.0 } else { self.focal };
        require(focal == 0.0, "focal", focal, "0 where label_smoothing is above 0")?;
        let noise = if self.frozen_once { self.neftune } else { 0.0 };
        require(noise == 0.0, "neftune", noise, "0 where frozen_once is true: the noise is the embedding's")?;
        require(self.activation_mib <= u64::MAX >> 20, "activation_mib", self.activation_mib, "a number of bytes")
    }

    /// The budget for activations in bytes.
    pub(crate) fn activation_bytes(&self) -> usize {
        usize::try_from(self.activation_mib << 20).unwrap_or(usize::MAX)
    }

    /// Refuses to continue a run with settings that would change its results.
    ///
    /// # Errors
    /// InvalidArgument naming every field that differs, with both values.
    pub(crate) fn check_same(&self, saved: &serde_json::Value) -> Result<()> {
        let (ours, defaults) = (as_stored(self)?, as_stored(&Self::default())?);
        let differs = |(name, value): (&String, &serde_json::Value)| {
            // A checkpoint older than a setting was made with what is now its default.
            let then = saved.get(name).unwrap_or(&defaults[name]);
            let matters = name != "activation_mib" && name != "skip_limit";
            (matters && then != value).then(|| format!("{name} was {then} and is {value}"))
        };
        let all: Vec<String> = ours.as_object().into_iter().flatten().filter_map(differs).collect();
        if all.is_empty() {
            return Ok(());
        }
        let text = format!("the run was begun with other settings: {}; resume with the old ones", all.join(", "));
        Err(Error::invalid(text))
    }
}

/// As a reader of the saved text sees it: both sides of a comparison go through the same rounding of decimals.
pub(crate) fn as_stored(options: &Options) -> Result<serde_json::Value> {
    let text = serde_json::to_string(options).map_err(|e| Error::internal(format!("options as JSON: {e}")))?;
    serde_json::from_str(&text).map_err(|e| Error::internal(format!("options as JSON: {e}")))
}

fn require(holds: bool, name: &str, value: impl std::fmt::Display, range: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::invalid(format!("{name} is {value}, must be {range}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_is_the_defaults() {
        assert_eq!(toml::from_str::<Options>("").unwrap(), Options::default());
    }

    #[test]
    fn a_recipe_reads_every_name_it_should() {
        let text = "loss = 'choice'\nschedule = 'cosine_with_min_lr'\nmin_rate = 0.1\nlearning_rate = 3e-4\nbatch = 16";
        let options: Options = toml::from_str(text).unwrap();
        let want = Options {
            loss: Loss::Choice,
            schedule: Schedule::CosineWithMinLr,
            min_rate: Some(0.1),
            learning_rate: 3e-4,
            batch: 16,
            ..Options::default()
        };
        assert_eq!(options, want);
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        let error = toml::from_str::<Options>("learning_rat = 1e-3").unwrap_err().to_string();
        assert!(error.contains("learning_rat"), "{error}");
    }

    #[test]
    fn every_range_is_held_with_name_and_value() {
        let says = |change: &dyn Fn(&mut Options)| {
            let mut options = Options::default();
            change(&mut options);
            options.check().map_err(|e| e.to_string())
        };
        assert_eq!(says(&|_| {}), Ok(()));
        type Bad<'a> = (&'a dyn Fn(&mut Options), &'a str);
        let bad: [Bad; 10] = [
            (&|o| o.epochs = 0, "epochs is 0, must be 1 or more"),
            (&|o| o.batch = 0, "batch is 0, must be 1 or more"),
            (&|o| o.micro_tokens = 0, "micro_tokens is 0, must be 1 or more"),
            (&|o| o.learning_rate = f64::NAN, "learning_rate is NaN, must be above 0"),
            (&|o| o.epsilon = 0.0, "epsilon is 0, must be above 0"),
            (&|o| o.weight_decay = -0.1, "weight_decay is -0.1, must be 0 or more"),
            (&|o| o.clip = f64::INFINITY, "clip is inf, must be 0 or more"),
            (&|o| o.neftune = -1.0, "neftune is -1, must be 0 or more"),
            (&|o| o.beta2 = 1.0, "beta2 is 1, must be from 0 to below 1"),
            (&|o| o.warmup_ratio = 1.5, "warmup_ratio is 1.5, must be from 0 to below 1"),
        ];
        for (change, want) in bad {
            assert_eq!(says(change), Err(want.to_owned()));
        }
    }

    #[test]
    fn a_change_of_settings_names_both_values_and_a_change_of_memory_does_not_matter() {
        let saved = as_stored(&Options { learning_rate: 0.1 + 0.2, ..Options::default() }).unwrap();
        let same = Options { learning_rate: 0.1 + 0.2, activation_mib: 7, ..Options::default() };
        assert_eq!(same.check_same(&saved), Ok(()));
        let error = Options { epochs: 9, batch: 4, ..same }.check_same(&saved).unwrap_err().to_string();
        assert!(error.contains("epochs was 3 and is 9, batch was 8 and is 4"), "{error}");
    }

    #[test]
    fn a_setting_that_an_old_checkpoint_does_not_know_had_its_default() {
        let mut saved = as_stored(&Options::default()).unwrap();
        saved.as_object_mut().unwrap().remove("neftune");
        assert_eq!(Options::default().check_same(&saved), Ok(()));
        let error = Options { neftune: 5.0, ..Options::default() }.check_same(&saved).unwrap_err().to_string();
        assert!(error.contains("neftune was 0.0 and is 5.0"), "{error}");
    }
}
