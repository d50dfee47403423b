//! GGUF, llama.cpp's file format, to a model folder in Hugging Face's.
//!
//! [`import`] reads a LLaMA (architecture "llama", versions 2 and 3, little-endian), undoes llama.cpp's order of rows in q
//! and k, dequantises what is quantised, and writes config.json, model.safetensors and the tokenizer. The file is mapped
//! and the weights pass through row by row, so memory is bounded by the vocabulary, not by the model.
//! Read in this order: `parse` (bytes to metadata and tensors), `blocks` (one row's values), `settings` (metadata to
//! config.json), `vocab` (metadata to tokenizer.json), `weights` (names, order of rows, model.safetensors).

mod blocks;
mod parse;
mod settings;
#[cfg(test)]
mod tests;
mod vocab;
mod weights;

use super::{Access, Bytes, Config, Tensors, Tokenizer, folder};
use crate::{Cancel, Code, Error, Result};
use dialoguellm_kernels::matrix::Dtype;
use serde_json::Value;
use std::path::Path;

/// What an import did.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The model's shape.
    pub config: Config,
    /// Tensors written.
    pub tensors: usize,
    /// Of those, how many were dequantised.
    pub dequantised: usize,
    /// The kind of vocabulary: "gpt2 (smollm)" or "llama".
    pub vocabulary: String,
    /// Tokens in it.
    pub tokens: usize,
    /// Length of model.safetensors.
    pub bytes: u64,
}

/// Makes `out` a model folder from the GGUF `file`.
///
/// F32, F16 and BF16 tensors keep their type and every bit; Q8_0, Q4_0 and Q4_1 are computed in f32 and rounded once to
/// `dtype`. `progress` is told tensors done and in all, and stops the import with `false`; `cancel` is
/// read row by row. `out` is replaced in one step: after an error or a kill it is as it was.
///
/// # Errors
/// NotFound; BadFile where the file contradicts itself or its format; Unsupported where it holds something else than
/// such a model, by name; Numeric for NaN or infinite weights; Cancelled; Io.
pub fn import(
    file: &Path,
    out: &Path,
    dtype: Dtype,
    progress: &mut dyn FnMut(usize, usize) -> bool,
    cancel: &Cancel,
) -> Result<Report> {
    let bytes = Bytes::open(file, Access::Mapped)?;
    let read = || {
        let gguf = parse::Gguf::parse(&bytes)?;
        let vocab = vocab::Vocab::read(&gguf.meta)?;
        let config = settings::config(&gguf, &vocab)?;
        let plan = weights::Plan::new(&gguf, &config, dtype)?;
        Ok((vocab, config, plan))
    };
    let (vocab, config, plan) = read().map_err(|e: Error| e.at(file.display()))?;
    let mut written = 0;
    folder::replace(out, |dir| {
        write_settings(dir, &config, &vocab, plan.dtype_name())?;
        plan.write(&dir.join(super::safetensors::SINGLE), progress, cancel).map_err(|e| e.at(file.display()))?;
        written = check(dir, &config).map_err(|e| e.at(file.display()))?;
        Ok(())
    })?;
    Ok(Report {
        config,
        tensors: plan.len(),
        dequantised: plan.dequantised(),
        vocabulary: vocab.kind(),
        tokens: vocab.len(),
        bytes: written,
    })
}

fn write_settings(dir: &Path, config: &Config, vocab: &vocab::Vocab<'_>, dtype: &str) -> Result<()> {
    write_json(&dir.join(super::config::FILE), &config.to_json(dtype))?;
    write_json(&dir.join("generation_config.json"), &settings::generation(config))?;
    write_json(&dir.join(super::tokenizer::FILE), &vocab.tokenizer_json()?)?;
    write_json(&dir.join(super::tokenizer::CONFIG_FILE), &vocab.tokenizer_config(config.max_position_embeddings))
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    std::fs::write(path, format!("{value:#}\n")).map_err(|e| Error::io("write", path, &e))
}

/// Opens what was written as any model folder is opened; returns the length of its weights.
fn check(dir: &Path, config: &Config) -> Result<u64> {
    Tokenizer::open(dir)?.check(config)?;
    if Config::read(dir)? != *config {
        return Err(Error::internal("the config.json written reads back as another"));
    }
    Ok(Tensors::open(dir, Access::Mapped)?.files().map(|(_, len)| len).sum())
}

fn bad(text: impl Into<String>) -> Error {
    Error::new(Code::BadFile, text)
}
