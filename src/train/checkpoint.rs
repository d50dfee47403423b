//! A run on disk: the adapter as PEFT reads it, exact parameters and moments, and where the run stands.
//!
//! `adapter_config.json`, `adapter_model.safetensors` (PEFT), `state.safetensors` (f32: params, m, v, best where a dev score
//! was given, and mean where steps are averaged, which the adapter then is) and `state.json`. The folder is replaced in one step, so a kill leaves the old or the new one.
//! The generators are counters, so seed and step are the whole random state and data position.

use crate::files::config::Config;
use crate::files::safetensors::{Tensors, Writer};
use crate::files::{Access, folder};
use crate::model::Adapter;
use crate::model::engine::Moments;
use crate::{Error, Result};
use dialoguellm_kernels::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// The newest checkpoint format this library writes and reads.
pub const FORMAT: u64 = 1;

const STATE: &str = "state.json";
const TENSORS: &str = "state.safetensors";
/// Far above any state.json, far below memory.
const STATE_LIMIT: u64 = 1 << 20;

/// Everything of a run but its numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    pub format: u64,
    /// Steps made, skipped ones included: epoch and position follow from it.
    pub step: u64,
    /// Steps skipped for a loss or gradient that was not finite.
    pub skipped: u64,
    /// How many of them were the last ones.
    pub skipped_in_a_row: u64,
    /// Lines of metrics.jsonl at this step.
    pub metrics_lines: u64,
    /// The base model's fingerprint.
    pub base: String,
    /// The type of its products.
    pub precision: String,
    /// Digest of the training data.
    pub data: String,
    /// The run's settings.
    pub options: Value,
    /// The best dev score so far; its parameters are the tensor `best`.
    pub best: Option<BestState>,
    /// Whether steps are averaged already; their mean is the tensor `mean`.
    #[serde(default)]
    pub averaged: bool,
}

/// Where the best dev score was reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct BestState {
    /// As text, which keeps every bit.
    pub score: String,
    pub step: u64,
    pub epoch: u64,
}

/// The parts of a run that change.
#[derive(Debug)]
pub(crate) struct Numbers<'a> {
    pub adapter: &'a Adapter,
    pub params: &'a [f32],
    pub moments: &'a Moments<'a>,
    pub best: Option<&'a [f32]>,
    pub mean: Option<&'a [f32]>,
}

/// A run as read back.
pub(crate) struct Saved {
    pub state: State,
    pub adapter: Adapter,
    pub moments: Moments<'static>,
    pub best: Option<Vec<f32>>,
    /// Empty where nothing is averaged yet.
    pub mean: Vec<f32>,
}

/// Replaces the checkpoint at `target`; `more` may add files of the caller's to it.
///
/// # Errors
/// InvalidArgument where `target` holds something that is no checkpoint; Io. The old checkpoint then stands.
pub(crate) fn write(
    target: &Path,
    state: &State,
    numbers: &Numbers,
    more: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    check_target(target)?;
    folder::replace(target, |dir| {
        numbers.adapter.write(dir)?;
        write_tensors(&dir.join(TENSORS), numbers)?;
        let text = serde_json::to_string_pretty(state).map_err(|e| Error::internal(format!("{STATE}: {e}")))?;
        let path = dir.join(STATE);
        std::fs::write(&path, text + "\n").map_err(|e| Error::io("write", &path, &e))?;
        more(dir)
    })
}

/// Replacing a folder removes what was in it, so it must be one of ours.
fn check_target(target: &Path) -> Result<()> {
    let Ok(mut entries) = std::fs::read_dir(target) else { return Ok(()) };
    if entries.next().is_none() || target.join(STATE).exists() {
        return Ok(());
    }
    let text = "holds files and is no checkpoint (it has no state.json): name a new folder";
    Err(Error::invalid(format!("{} {text}", target.display())))
}

fn write_tensors(path: &Path, numbers: &Numbers) -> Result<()> {
    let params = [("params", numbers.params), ("m", &numbers.moments.m), ("v", &numbers.moments.v)];
    let more = [numbers.best.map(|best| ("best", best)), numbers.mean.map(|mean| ("mean", mean))];
    let tensors: Vec<(&str, &[f32])> = params.into_iter().chain(more.into_iter().flatten()).collect();
    let entries: Vec<_> = tensors.iter().map(|(name, x)| ((*name).to_owned(), Dtype::F32, vec![x.len()])).collect();
    let mut writer = Writer::create(path, &entries, &[])?;
    for chunk in tensors.iter().flat_map(|(_, x)| x.chunks(1 << 14)) {
        let bytes: Vec<u8> = chunk.iter().flat_map(|x| x.to_le_bytes()).collect();
        writer.write(&bytes)?;
    }
    writer.finish()
}

/// Reads a checkpoint of a run on a model of shape `config`.
///
/// # Errors
/// NotFound, Io; Unsupported for a newer format; BadFile for contents that contradict each other.
pub(crate) fn read(dir: &Path, config: &Config) -> Result<Saved> {
    let state = read_state(&dir.join(STATE))?;
    let mut adapter = Adapter::read(dir, config)?;
    let path = dir.join(TENSORS);
    // Read, not mapped: the next save replaces this folder.
    let tensors = Tensors::open_file(&path, Access::Read)?;
    let n = adapter.params().len();
    let get = |name: &str| finite(tensors.get(name)?.vector(n)?, name).map_err(|e| e.at(path.display()));
    // The adapter's own file may be rounded by whoever wrote it; this one is exact.
    adapter.params_mut().copy_from_slice(&get("params")?);
    let moments = Moments { m: get("m")?.into(), v: get("v")?.into() };
    let best = state.best.as_ref().map(|_| get("best")).transpose()?;
    let mean = if state.averaged { get("mean")? } else { Vec::new() };
    Ok(Saved { state, adapter, moments, best, mean })
}

fn read_state(path: &Path) -> Result<State> {
    let size = std::fs::metadata(path).map_err(|e| Error::io("open", path, &e))?.len();
    if size > STATE_LIMIT {
        return Err(Error::bad_file(path, format!("has {size} bytes, a checkpoint's has at most {STATE_LIMIT}")));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, &e))?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|e| Error::bad_file(path, e))?;
    let format = value.get("format").and_then(Value::as_u64);
    let format = format.ok_or_else(|| Error::bad_file(path, "has no format number: it is no checkpoint of a run"))?;
    if !(1..=FORMAT).contains(&format) {
        let text =
            format!("has checkpoint format {format}, this version reads formats up to {FORMAT}: use a newer one");
        return Err(Error::unsupported(format!("{}: {text}", path.display())));
    }
    serde_json::from_value(value).map_err(|e| Error::bad_file(path, e))
}

/// A parameter that is no number would spread to every other.
fn finite(values: Vec<f32>, name: &str) -> Result<Vec<f32>> {
    match values.iter().position(|x| !x.is_finite()) {
        None => Ok(values),
        Some(at) => {
            let text = format!("tensor {name}: value {at} is {}, must be a finite number", values[at]);
            Err(Error::new(crate::Code::BadFile, text))
        }
    }
}
