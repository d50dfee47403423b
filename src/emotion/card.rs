//! dialoguellm.json: what an adapter was trained to answer, beside its weights.
//!
//! Label order, template, calibration and the base model travel with the adapter, so that none of them can disagree
//! with it. Knows the file; no model.

use super::labels::Labels;
use super::template::Template;
use crate::files::{Access, SETTINGS_LIMIT, Tensors, compressed, fingerprint, read_bounded};
use crate::{Code, Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// Its name in an adapter folder.
pub const FILE: &str = "dialoguellm.json";

/// The newest format this version reads, and the one it writes.
pub const FORMAT: u32 = 1;

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
    /// Fingerprint of the base model.
    pub base: String,
}

impl Card {
    /// A card before calibration.
    pub fn new(labels: Labels, template: Template, base: impl Into<String>) -> Self {
        Self { format: FORMAT, labels, template, temperature: 1.0, base: base.into() }
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
        card.check_temperature().map_err(|error| error.at(path.display()))?;
        Ok(card)
    }

    /// Writes the card into `dir`, which is an adapter folder being built. Errors: IO.
    pub fn write(&self, dir: &Path) -> Result<()> {
        self.check_temperature()?;
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

    fn check_temperature(&self) -> Result<()> {
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
    fn a_newer_format_is_refused_even_if_all_else_is_unknown() {
        let error = read(|value| *value = serde_json::json!({"format": 2, "future": true})).unwrap_err();
        assert_eq!(error.code(), Code::Unsupported);
        assert!(error.text().contains("format 2 is newer than 1"), "{error}");
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
