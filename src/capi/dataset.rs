//! Dialogues, or prompts with completions.

use super::boundary::{array, guard, out, quietly, text};
use super::cancel::{cancel_of, dllm_cancel};
use super::classifier::names;
use super::error::{dllm_error, dllm_status, dllm_string};
use super::handle::{Handle, Kind, free, give, share};
use super::model::dllm_str;
use crate::emotion::metrics::paired_bootstrap;
use crate::emotion::run::Data;
use crate::emotion::{Labels, baseline};
use crate::files::dialogues::{self, Dialogue, Source, Split, jsonl};
use crate::{Code, Error, Result};
use std::ffi::c_char;
use std::ops::Range;
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
/// Reads data: `spec` is "KIND:PATH", `split` "train", "dev" or "test" where the data have them. The kinds:
///
/// - "meld:DIR": MELD as released; also "meld-dyadic:DIR"
/// - "emorynlp:DIR": EmoryNLP in its official, its small or its reduced form
/// - "iemocap:DIR": IEMOCAP's release; ?labels=4|6|8, unlabelled=keep|drop, dev=last20|FILE, hap=FILE, joined by &
/// - "dailydialog:DIR": DailyDialog
/// - "emotionlines:PATH": EmotionLines or EmotionX
/// - "jsonl:PATH": a dialogue a line, in this library's own form, or a folder with train.jsonl and so on
/// - "log:FILE": "Name: text" a line
/// - "pairs:FILE": {"prompt", "completion"} a line
/// - "instructions:FILE": a list of {"instruction", "input", "output"}
///
/// Behind dialogues of any kind "?visual=PATH" adds descriptions of what is seen, as JSON lines {"dialogue", "turn", "visual"}
/// or a folder of texts dia0_utt3.txt, and "?label=speaker" takes who speaks, Speaker_0 to Speaker_8, as the label. A label that is not among `labels` is an error; NULL takes a set's own, and any for
/// jsonl and log. `cancel` may be NULL.
///
/// Ownership: the caller's.
/// Errors:    NOT_FOUND, IO; BAD_FILE with the line, never with its text; CANCELLED.
/// Cost:      memory for the file and for what it holds; `cancel` is read between lines.
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_dataset_open(
    spec: *const c_char,
    split: *const c_char,
    labels: *const dllm_str,
    n_labels: usize,
    cancel: *const dllm_cancel,
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
        let (known, cancel) = unsafe { (known(labels, n_labels)?, cancel_of(cancel)?) };
        let (source, split): (Source, Split) = (spec.parse()?, split.parse()?);
        let data = match source.is_pairs() {
            true => Data::Pairs(source.pairs(&cancel)?),
            false => Data::Dialogues(source.dialogues(split, known.as_deref(), &cancel)?),
        };
        *dataset = give(Set(data));
        Ok(())
    })
}

/// Dialogues from JSON lines in memory, as the files of "jsonl:FILE" have them; `labels` and `cancel` as for
/// dllm_dataset_open().
///
/// Ownership: the caller's.
/// Errors:    BAD_FILE with the line, never with its text; CANCELLED.
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_dataset_parse(
    json_lines: *const c_char,
    json_lines_len: usize,
    labels: *const dllm_str,
    n_labels: usize,
    cancel: *const dllm_cancel,
    dataset: *mut *mut dllm_dataset,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (dataset, text, known, cancel) = unsafe {
            let text = text(json_lines, json_lines_len, "json_lines")?;
            (out(dataset, "dataset")?, text, known(labels, n_labels)?, cancel_of(cancel)?)
        };
        let dialogues = jsonl(Path::new("json_lines"), text.as_bytes(), known.as_deref(), &cancel)?;
        *dataset = give(Set(Data::Dialogues(dialogues)));
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

/// What dialogues hold, as JSON: `dialogues`, `turns`, and under `labels` the turns of each, the most frequent first.
///
/// Ownership: the caller's; free it with dllm_string_free().
/// Errors:    INVALID_ARGUMENT for prompts.
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_dataset_stats(
    dataset: *const dllm_dataset,
    stats: *mut *mut dllm_string,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (room, data) = unsafe { (out(stats, "stats")?, share(dataset)?) };
        *room = dllm_string::boxed(dialogues::stats(data.dialogues()?).to_string());
        Ok(())
    })
}

/// All dialogues as JSON lines, as dllm_dataset_parse() reads them: whatever was read becomes one format.
///
/// Ownership: the caller's; free it with dllm_string_free().
/// Errors:    INVALID_ARGUMENT for prompts.
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_dataset_json_lines(
    dataset: *const dllm_dataset,
    json_lines: *mut *mut dllm_string,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (room, data) = unsafe { (out(json_lines, "json_lines")?, share(dataset)?) };
        let mut text = String::new();
        for dialogue in data.dialogues()? {
            let line = serde_json::to_string(dialogue).map_err(|_| Error::internal("a dialogue is not JSON"))?;
            let room = text.try_reserve(line.len() + 1);
            room.map_err(|_| Error::new(Code::OutOfMemory, format!("there is no room for {} bytes", text.len())))?;
            text += &line;
            text.push('\n');
        }
        *room = dllm_string::boxed(text);
        Ok(())
    })
}

/// Figures, as dllm_classifier_evaluate() gives them, of a bag of words that learned from `learned`, on `judged`: the bar that
/// a model has to clear. The labels are those of `learned`.
///
/// Ownership: the caller's; free it with dllm_string_free().
/// Errors:    INVALID_ARGUMENT for fewer than two labels and for prompts; NOT_FOUND for a label that was not learned.
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_dataset_baseline(
    learned: *const dllm_dataset,
    judged: *const dllm_dataset,
    report: *mut *mut dllm_string,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (report, learned, judged) = unsafe { (out(report, "report")?, share(learned)?, share(judged)?) };
        let learned = learned.dialogues()?;
        let labels = dialogues::label_counts(learned).into_iter().map(|(name, _)| name.to_owned()).collect();
        let figures = baseline::report(learned, judged.dialogues()?, &Labels::new(labels)?)?;
        let text = serde_json::to_string(&figures).map_err(|_| Error::internal("a report is not JSON"))?;
        *report = dllm_string::boxed(text);
        Ok(())
    })
}

/// Whether answers `b` are better than answers `a` by more than chance: paired bootstrap of the weighted F1, as JSON:
/// `difference` (b minus a, 0 to 1), its 95 % interval `low` and `high`, and `not_better`, the part of the resamples in which
/// b is not better.
///
/// `gold`, `a` and `b` have a label's number for each of `n_turns` turns, below `n_labels`. `dialogue_turns` says how many
/// turns each of `n_dialogues` dialogues has, which are drawn whole; NULL draws single turns.
///
/// Ownership: the caller's; free it with dllm_string_free().
/// Errors:    INVALID_ARGUMENT for a number that is no label, turns that do not add up, no turns, no or over 1,000,000
///            resamples, over 1,000 labels.
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_paired_bootstrap(
    n_labels: usize,
    gold: *const u32,
    a: *const u32,
    b: *const u32,
    n_turns: usize,
    dialogue_turns: *const usize,
    n_dialogues: usize,
    resamples: usize,
    seed: u64,
    result: *mut *mut dllm_string,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (result, [gold, a, b]) = unsafe {
            let all = [array(gold, n_turns, "gold")?, array(a, n_turns, "a")?, array(b, n_turns, "b")?];
            (out(result, "result")?, all.map(|numbers| numbers.iter().map(|&n| n as usize).collect::<Vec<_>>()))
        };
        for (name, value, most) in [("n_labels", n_labels, MOST_LABELS), ("resamples", resamples, MOST_RESAMPLES)] {
            if !(1..=most).contains(&value) {
                return Err(Error::invalid(format!("{name} is {value}, must be 1 to {most}")));
            }
        }
        let units = if dialogue_turns.is_null() {
            (0..n_turns).map(|turn| turn..turn + 1).collect()
        } else {
            // SAFETY: as the header says.
            units(unsafe { array(dialogue_turns, n_dialogues, "dialogue_turns") }?, n_turns)?
        };
        let said = paired_bootstrap(n_labels, &gold, [&a, &b], &units, resamples, seed)?;
        let text = serde_json::to_string(&said).map_err(|_| Error::internal("a bootstrap is not JSON"))?;
        *result = dllm_string::boxed(text);
        Ok(())
    })
}

/// Far above any label set, and any use; tables are as large as the square of the one, and answers as many as the other.
const MOST_LABELS: usize = 1000;
const MOST_RESAMPLES: usize = 1_000_000;

/// The turns of each dialogue, of their numbers.
fn units(turns: &[usize], all: usize) -> Result<Vec<Range<usize>>> {
    let mut at = 0usize;
    let units = turns.iter().map(|&n| {
        let first = at;
        at = at.saturating_add(n);
        first..at
    });
    let units = units.collect();
    if at == all {
        return Ok(units);
    }
    Err(Error::invalid(format!("dialogue_turns adds up to {at}, there are {all} turns")))
}

/// Frees a dataset; NULL is fine. Trainers keep what they need of it.
///
/// Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_dataset_free(dataset: *mut dllm_dataset) {
    // SAFETY: as the header says.
    unsafe { free(dataset) }
}
