//! dialoguellm.json: what an adapter was trained to answer, beside its weights.
//!
//! Label order, template, calibration and the base model travel with the adapter, so that none of them can disagree
//! with it. Knows the file; no model.

use super::calibration::Calibration;
use super::classifier::Marked;
use super::labels::Labels;
use super::metrics::{Report, softmax};
use super::template::Template;
use crate::files::{Access, SETTINGS_LIMIT, Tensors, compressed, fingerprint, read_bounded};
use crate::{Code, Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::borrow::Cow;
use std::path::Path;

/// Its name in an adapter folder.
pub const FILE: &str = "dialoguellm.json";

/// The newest format this version reads. It writes the oldest that can hold a card: 2 is for a calibration beyond a
/// temperature, which a reader of 1 would miss.
pub const FORMAT: u32 = 2;

/// The content of dialoguellm.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// Version of this file's layout.
    pub format: u32,
    /// The labels in the order of the probabilities, with the terminator that was decided on.
    pub labels: Labels,
    /// How a turn becomes a prompt.
    pub template: Template,
    /// What label scores are divided by before they become probabilities; fitted on the dev split, 1 before that.
    pub temperature: f64,
    /// What is done to them before; none for a temperature alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// Fingerprint of the base model.
    pub base: String,
}

impl Card {
    /// A card before calibration.
    pub fn new(labels: Labels, template: Template, base: impl Into<String>) -> Self {
        Self { format: 1, labels, template, temperature: 1.0, calibration: None, base: base.into() }
    }

    /// The same card with another calibration.
    #[must_use]
    pub fn calibrated(mut self, temperature: f64, calibration: Option<Calibration>) -> Self {
        self.format = if calibration.is_some() { 2 } else { 1 };
        (self.temperature, self.calibration) = (temperature, calibration);
        self
    }

    /// The label scores of a turn under the calibration, which the temperature still divides.
    pub fn scores<'a>(&self, scores: &'a [f32]) -> Cow<'a, [f32]> {
        match &self.calibration {
            None => Cow::Borrowed(scores),
            Some(calibration) => calibration.apply(scores).into_iter().map(|score| score as f32).collect(),
        }
    }

    /// Label scores, as the model gives them, as probabilities that sum to 1.
    pub fn probabilities(&self, scores: &[f32]) -> Vec<f64> {
        softmax(&self.scores(scores), self.temperature)
    }

    /// Figures of the scores of marked turns under this calibration.
    ///
    /// # Errors
    /// As [`Report::new`].
    pub fn report(&self, marked: &Marked) -> Result<Report> {
        let scores: Vec<Vec<f32>> = marked.scores.iter().map(|scores| self.scores(scores).into_owned()).collect();
        Report::new(self.labels.names(), &scores, &marked.gold, self.temperature)
    }

    /// The derivatives of the calibrated scores by the scores; `None` for curves, which have corners.
    pub fn slopes(&self) -> Option<Vec<f64>> {
        match &self.calibration {
            None => Some(vec![1.0 / self.temperature; self.labels.len()]),
            Some(Calibration::Vector { scale, .. }) => {
                Some(scale.iter().map(|scale| scale / self.temperature).collect())
            }
            Some(Calibration::Isotonic { .. }) => None,
        }
    }

    /// Reads the card of an adapter folder.
    ///
    /// # Errors
    /// NOT_FOUND for an adapter without one (PEFT writes none); UNSUPPORTED for a newer format; BAD_FILE.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let bytes = read_bounded(&path, SETTINGS_LIMIT)?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|error| {
            Error::bad_file(&path, format!("line {}, column {}: not JSON", error.line(), error.column()))
        })?;
        check_format(&path, value.get("format"))?;
        // demonstrations are dialogue: serde's own words could quote them
        let card: Self = serde_json::from_value(value).map_err(|_| {
            Error::bad_file(
                &path,
                format!("labels, template, temperature or base is missing or not as format {FORMAT} has it"),
            )
        })?;
        card.check_calibration().map_err(|error| error.at(path.display()))?;
        Ok(card)
    }

    /// Writes the card into `dir`, which is an adapter folder being built. Errors: IO.
    pub fn write(&self, dir: &Path) -> Result<()> {
        self.check_calibration()?;
        let path = dir.join(FILE);
        let text = serde_json::to_string_pretty(self).map_err(|_| Error::internal("a card is not JSON"))?;
        std::fs::write(&path, text + "\n").map_err(|error| Error::io("write", &path, &error))
    }

    /// Refuses a model that is not the one the adapter was trained on. Errors: BAD_FILE with both fingerprints.
    pub fn check_base(&self, fingerprint: &str) -> Result<()> {
        if self.base == fingerprint {
            return Ok(());
        }
        let text = format!(
            "the adapter is for base model {}, the model is {fingerprint}; give the model it was trained on",
            self.base
        );
        Err(Error::new(Code::BadFile, text))
    }

    fn check_calibration(&self) -> Result<()> {
        if let Some(fault) = self.calibration.as_ref().and_then(|calibration| calibration.fault(self.labels.len())) {
            return Err(Error::new(Code::BadFile, fault));
        }
        if self.temperature.is_finite() && self.temperature > 0.0 {
            return Ok(());
        }
        Err(Error::new(Code::BadFile, format!("temperature is {}, must be a number above 0", self.temperature)))
    }
}

/// The card of an adapter, if it has one, which must be of the base model at `base`.
///
/// # Errors
/// As [`Card::read`] and [`Card::check_base`].
pub fn of_adapter(adapter: &Path, base: &Path) -> Result<Option<Card>> {
    let card = match Card::read(adapter) {
        Ok(card) => card,
        Err(error) if error.code() == Code::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let print = fingerprint(base, &Tensors::open(base, Access::Mapped)?)?;
    let print = compressed::origin(base)?.unwrap_or(print);
    card.check_base(&print).map_err(|error| error.at(adapter.display()))?;
    Ok(Some(card))
}

/// Writes into a merged model's folder the card of the adapter that is in it: the same, with the new weights as the base.
///
/// # Errors
/// IO.
pub fn write_merged(card: Option<Card>, dir: &Path) -> Result<()> {
    let Some(mut card) = card else { return Ok(()) };
    card.base = fingerprint(dir, &Tensors::open(dir, Access::Mapped)?)?;
    card.write(dir)
}

fn check_format(path: &Path, format: Option<&Value>) -> Result<()> {
    match format.and_then(Value::as_u64) {
        Some(format) if format > u64::from(FORMAT) => Err(Error::unsupported(format!(
            "{}: format {format} is newer than {FORMAT}, the newest this version reads; update this library",
            path.display()
        ))),
        Some(1..) => Ok(()),
        _ => Err(Error::bad_file(path, "`format` is missing or not a number from 1 on")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card() -> Card {
        let mut card = Card::new(Labels::meld(), Template::built_in("dialogue").unwrap(), "abc");
        card.temperature = 1.25;
        card
    }

    fn read(change: impl FnOnce(&mut Value)) -> Result<Card> {
        let dir = tempfile::tempdir().unwrap();
        let mut value = serde_json::to_value(card()).unwrap();
        change(&mut value);
        std::fs::write(dir.path().join(FILE), value.to_string()).unwrap();
        Card::read(dir.path())
    }

    #[test]
    fn a_written_card_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        card().write(dir.path()).unwrap();
        assert_eq!(Card::read(dir.path()).unwrap(), card());
    }

    #[test]
    fn a_calibration_beyond_a_temperature_is_written_as_a_newer_format_and_must_fit_the_labels() {
        let dir = tempfile::tempdir().unwrap();
        let vector = Calibration::Vector { scale: vec![1.5; 7], bias: vec![0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -0.1] };
        let own = card().calibrated(1.0, Some(vector));
        own.write(dir.path()).unwrap();
        assert_eq!((own.format, card().format), (2, 1));
        let back = Card::read(dir.path()).unwrap();
        assert_eq!(back, own);
        let p = back.probabilities(&[-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0]);
        // 1.5 * -1 and 1.5 * -2 + 1
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12 && (p[0] / p[1] - 0.5f64.exp()).abs() < 1e-6, "{p:?}");
        let few = card().calibrated(1.0, Some(Calibration::Vector { scale: vec![1.0; 6], bias: vec![0.0; 6] }));
        assert!(few.write(dir.path()).unwrap_err().text().contains("for every label"));
    }

    #[test]
    fn a_newer_format_is_refused_even_if_all_else_is_unknown() {
        let error = read(|value| *value = serde_json::json!({"format": 3, "future": true})).unwrap_err();
        assert_eq!(error.code(), Code::Unsupported);
        assert!(error.text().contains("format 3 is newer than 2"), "{error}");
    }

    #[test]
    fn a_contradictory_card_is_refused() {
        let code = |change: fn(&mut Value)| read(change).unwrap_err().code();
        assert_eq!(code(|value| value["temperature"] = 0.0.into()), Code::BadFile);
        assert_eq!(code(|value| value["labels"]["names"] = serde_json::json!(["joy", "joy"])), Code::BadFile);
        assert_eq!(code(|value| value["format"] = Value::Null), Code::BadFile);
        assert_eq!(code(|value| value["template"]["windows"] = 3.into()), Code::BadFile);
    }

    #[test]
    fn another_base_is_refused_with_both_fingerprints() {
        assert!(card().check_base("abc").is_ok());
        let error = card().check_base("def").unwrap_err();
        assert!(error.text().contains("abc") && error.text().contains("def"), "{error}");
    }

    #[test]
    fn an_adapter_without_a_card_is_not_found() {
        assert_eq!(Card::read(Path::new("/nowhere")).unwrap_err().code(), Code::NotFound);
    }
}
