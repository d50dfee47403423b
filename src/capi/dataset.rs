//! Dialogues, or prompts with completions.

use super::boundary::{array, guard, out, quietly, text};
use super::classifier::names;
use super::error::{dllm_error, dllm_status};
use super::handle::{Handle, Kind, free, give, share};
use super::model::dllm_str;
use crate::emotion::run::Data;
use crate::files::dialogues::{Dialogue, Source, Split, jsonl};
use crate::{Error, Result};
use std::ffi::c_char;
use std::path::Path;

/// Dialogues, or prompts with completions. It never changes, and any number of calls may use it at once.
pub struct dllm_dataset(Handle<Set>);

/// What is behind a [`dllm_dataset`].
pub struct Set(pub(super) Data);

impl Kind for dllm_dataset {
    type Value = Set;
    const NAME: &'static str = "dataset";
    fn new(handle: Handle<Set>) -> Self {
        Self(handle)
    }
    fn handle(&self) -> &Handle<Set> {
        &self.0
    }
}

impl Set {
    pub(super) fn dialogues(&self) -> Result<&[Dialogue]> {
        match &self.0 {
            Data::Dialogues(dialogues) => Ok(dialogues),
            Data::Pairs(_) => {
                Err(Error::invalid("the dataset holds prompts, not dialogues; they can only be trained on"))
            }
        }
    }
}

/// ---- Dataset: dialogues ----
///
/// Reads data: `spec` is "meld:DIR", "jsonl:FILE", "log:FILE" or "pairs:FILE", `split` "train", "dev" or "test" where the
/// data have them. A label that is not among `labels` is an error; NULL takes MELD's for MELD and any for other data.
///
/// Ownership: the caller's.
/// Errors:    NOT_FOUND, IO; BAD_FILE with the line, never with its text.
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_dataset_open(
    spec: *const c_char,
    split: *const c_char,
    labels: *const dllm_str,
    n_labels: usize,
    dataset: *mut *mut dllm_dataset,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (dataset, spec, split) = unsafe {
            let nts = super::boundary::NTS;
            (out(dataset, "dataset")?, text(spec, nts, "spec")?, text(split, nts, "split")?)
        };
        // SAFETY: as the header says.
        let known = unsafe { known(labels, n_labels) }?;
        let (source, split): (Source, Split) = (spec.parse()?, split.parse()?);
        let data = match source {
            Source::Pairs(_) => Data::Pairs(source.pairs()?),
            _ => Data::Dialogues(source.dialogues(split, known.as_deref())?),
        };
        *dataset = give(Set(data));
        Ok(())
    })
}

/// Dialogues from JSON lines in memory, as the files of "jsonl:FILE" have them; `labels` as for dllm_dataset_open().
///
/// Ownership: the caller's.
/// Errors:    BAD_FILE with the line, never with its text.
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_dataset_parse(
    json_lines: *const c_char,
    json_lines_len: usize,
    labels: *const dllm_str,
    n_labels: usize,
    dataset: *mut *mut dllm_dataset,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (dataset, text, known) = unsafe {
            (out(dataset, "dataset")?, text(json_lines, json_lines_len, "json_lines")?, known(labels, n_labels)?)
        };
        *dataset = give(Set(Data::Dialogues(jsonl(Path::new("json_lines"), text.as_bytes(), known.as_deref())?)));
        Ok(())
    })
}

/// # Safety
/// As the header says.
unsafe fn known(labels: *const dllm_str, n: usize) -> Result<Option<Vec<String>>> {
    if labels.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    unsafe {
        array(labels, n, "labels")?;
        names(labels, n, "labels").map(Some)
    }
}

/// Dialogues in it, or prompts; 0 for a handle that is not alive.
///
/// Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_dataset_n_dialogues(dataset: *const dllm_dataset) -> usize {
    let count = |set: &Set| match &set.0 {
        Data::Dialogues(dialogues) => dialogues.len(),
        Data::Pairs(pairs) => pairs.len(),
    };
    // SAFETY: as the header says.
    quietly(0, || unsafe { share(dataset) }.map_or(0, |set| count(&set)))
}

/// Turns of a dialogue, or of all for DLLM_ALL; 0 past the last, for prompts, and for a handle that is not alive.
///
/// Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_dataset_n_turns(dataset: *const dllm_dataset, dialogue: usize) -> usize {
    let count = |dialogues: &[Dialogue]| match dialogue {
        usize::MAX => dialogues.iter().map(|dialogue| dialogue.turns.len()).sum(),
        at => dialogues.get(at).map_or(0, |dialogue| dialogue.turns.len()),
    };
    // SAFETY: as the header says.
    quietly(0, || unsafe { share(dataset) }.map_or(0, |set| set.dialogues().map_or(0, count)))
}

/// Frees a dataset; NULL is fine. Trainers keep what they need of it.
///
/// Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_dataset_free(dataset: *mut dllm_dataset) {
    // SAFETY: as the header says.
    unsafe { free(dataset) }
}
