//! `score`: how likely each continuation is after a prompt.

use crate::args::{ModelArgs, Style};
use crate::out;
use clap::Args;
use dialoguellm::Result;
use dialoguellm::conversation::{Conversation, Leaf, Options};
use dialoguellm::emotion::framing::continuations;
use dialoguellm::model::Adapter;
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;

/// Log-probabilities of continuations.
///
/// Prompt and continuation are tokenised as one text; what is scored are the tokens after the longest beginning that
/// they share with the prompt's own tokens.
#[derive(Args)]
pub struct Score {
    #[command(flatten)]
    model: ModelArgs,
    /// An adapter folder
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// What comes before
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// What may follow; give it once for each
    #[arg(long = "continuation", value_name = "TEXT", required = true, allow_hyphen_values = true)]
    continuations: Vec<String>,
}

impl Score {
    pub fn run(&self, style: Style) -> Result<()> {
        let model = self.model.open()?;
        let adapter = self.adapter.as_ref().map(|dir| Adapter::read(dir, model.config())).transpose()?;
        let wholes = continuations(&model, &self.prompt, self.continuations.iter().map(String::as_str))?;
        let leaves: Vec<Leaf> = wholes.iter().map(|(ids, from)| Leaf { ids, from: *from }).collect();
        let conversation = Conversation::new(model, adapter.map(Arc::new), Options::default());
        let scores = conversation.scores_after(&leaves)?;
        let rows = self.continuations.iter().zip(&wholes).zip(&scores);
        if style.json {
            let row = |((text, (ids, from)), score): (
                (&String, &(Vec<u32>, usize)),
                &dialoguellm::conversation::Score,
            )| { json!({"text": text, "tokens": ids[*from..], "logprob": score.total}) };
            return out::json(&json!({"scores": rows.map(row).collect::<Vec<_>>()}));
        }
        for ((text, (ids, from)), score) in rows {
            out::line(format_args!("{:10.4}  {:3} tokens  {text:?}", score.total, ids.len() - from))?;
        }
        Ok(())
    }
}
