//! Instruction files as Alpaca and DialogueLLM have them: a JSON list of `{"instruction", "input", "output"}`, optionally
//! with `"Context"`, rendered as DialogueLLM's training script renders them (repository commit 9bde222,
//! py/myllama-train-mgpu-Emo.py), its leading spaces included.

use super::Pair;
use super::text::json_file;
use crate::{Cancel, Result};
use serde::Deserialize;
use std::path::Path;

/// One of a file; other fields are passed over.
#[derive(Deserialize)]
struct Instruction {
    instruction: String,
    #[serde(default)]
    input: String,
    output: String,
    #[serde(rename = "Context", alias = "context")]
    context: Option<String>,
}

impl Instruction {
    fn prompt(&self) -> String {
        let Self { instruction, input, context, .. } = self;
        if input.is_empty() {
            return format!(
                "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n        \
                 ### Instruction:\n        {instruction}\n\n        ### Response:\n        "
            );
        }
        let context = context
            .as_ref()
            .map_or(String::new(), |context| format!("            ### Context:\n            {context}\n\n"));
        format!(
            "Please perform Classification task. Given the sentence, assign the correct label. Return label only without any \
             other text.\n            ### Instruction:\n            {instruction}\n\n{context}            ### Input:\n            \
             {input}\n\n            ### Response:\n            "
        )
    }
}

/// The prompts and completions of a file.
pub fn instructions(path: &Path, bytes: &[u8], cancel: &Cancel) -> Result<Vec<Pair>> {
    let what = "a list of {\"instruction\", \"input\", \"output\"}";
    let all: Vec<Instruction> = json_file(path, bytes, what, cancel)?;
    Ok(all.into_iter().map(|one| Pair { prompt: one.prompt(), completion: one.output, weight: 1.0 }).collect())
}
