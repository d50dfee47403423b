//! `generate`: a text continued token by token, given out at whole code points.

use crate::args::{ModelArgs, Style};
use crate::out;
use clap::Args;
use dialoguellm::conversation::{Beams, Conversation, Hypothesis, Options, Sampling, Stop, Streamed};
use dialoguellm::emotion::framing::{chat_ids, prompt_ids};
use dialoguellm::model::{Adapter, Model};
use dialoguellm::{Error, Result};
use serde_json::{Value, json};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Continue a text.
#[derive(Args)]
pub struct Generate {
    #[command(flatten)]
    model: ModelArgs,
    /// An adapter folder
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// What comes before; `-` reads standard input
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: String,
    /// Write the prompt as a message in the model's own chat format, and let it answer
    #[arg(long)]
    chat: bool,
    /// A system message before it
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Tokens at most
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// 0 takes the likeliest token every time
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Draw from the K likeliest tokens only; 0 for all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Draw from the likeliest tokens that together reach P
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Above 1, tokens that were there before become less likely
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Keep this many beams and give the likeliest text as a whole, instead of drawing token by token
    #[arg(long, value_name = "N", conflicts_with_all = ["temperature", "top_k", "top_p", "seed"])]
    beams: Option<usize>,
    /// Of beams, the power of its length that a text's log-probability is divided by: above 0 longer ones are preferred
    #[arg(long, value_name = "X", default_value_t = 1.0, requires = "beams", allow_negative_numbers = true)]
    length_penalty: f32,
    /// The same seed draws the same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// End before this text; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
}

impl Generate {
    pub fn run(&self, style: Style) -> Result<()> {
        let model = self.model.open()?;
        let adapter = self.adapter.as_ref().map(|dir| Adapter::read(dir, model.config())).transpose()?;
        let prompt = self.ids(&model)?;
        let conversation = Conversation::new(model.clone(), adapter.map(Arc::new), Options::default());
        match self.beams {
            Some(width) => self.search(&model, &prompt, conversation, width, style),
            None => self.draw(&model, &prompt, conversation, style),
        }
    }

    fn draw(&self, model: &Model, prompt: &[u32], mut conversation: Conversation, style: Style) -> Result<()> {
        let sampling = self.sampling(model);
        sampling.check()?;
        conversation.append(prompt)?;
        let started = Instant::now();
        let mut text = Given {
            streamed: Streamed::new(model.tokenizer(), prompt, &self.stop)?,
            text: String::new(),
            failed: None,
        };
        let show = |piece: &str| if style.json { Ok(()) } else { out::text(piece) };
        let generated = conversation.generate(&sampling, &mut |token| text.push(token, show))?;
        let (text, at_stop) = text.end(show)?;
        if !style.json {
            return out::text("\n");
        }
        let stop = reason(generated.stop, at_stop);
        let seconds = started.elapsed().as_secs_f64();
        let prompt = prompt.len();
        out::json(
            &json!({"text": text, "tokens": generated.tokens, "stop": stop, "prompt_tokens": prompt, "seconds": seconds}),
        )
    }

    /// The likeliest text; as JSON all that were found.
    fn search(
        &self,
        model: &Model,
        prompt: &[u32],
        mut conversation: Conversation,
        width: usize,
        style: Style,
    ) -> Result<()> {
        let beams = Beams {
            width,
            length_penalty: self.length_penalty,
            repetition_penalty: self.repetition_penalty,
            max_tokens: self.max_tokens,
            eos: model.end_tokens(),
            ..Beams::default()
        };
        beams.check()?;
        conversation.append(prompt)?;
        let started = Instant::now();
        let found = conversation.beams(&beams)?;
        let seconds = started.elapsed().as_secs_f64();
        let told = |found: &Hypothesis| {
            let (text, at_stop) = Streamed::new(model.tokenizer(), prompt, &self.stop)?.whole(&found.tokens)?;
            let (tokens, score, stop) = (&found.tokens, found.score, reason(found.stop, at_stop));
            Ok(json!({"text": text, "tokens": tokens, "score": score, "stop": stop}))
        };
        let all = found.iter().map(told).collect::<Result<Vec<Value>>>()?;
        match style.json {
            true => out::json(&json!({"beams": all, "prompt_tokens": prompt.len(), "seconds": seconds})),
            false => out::line(all.first().and_then(|best| best["text"].as_str()).unwrap_or_default()),
        }
    }

    fn ids(&self, model: &Model) -> Result<Vec<u32>> {
        let prompt = match self.prompt.as_str() {
            "-" => read_stdin()?,
            text => text.to_owned(),
        };
        if !self.chat {
            return prompt_ids(model, &prompt);
        }
        let system = self.system.as_deref().map(|text| ("system", text));
        let messages: Vec<(&str, &str)> = system.into_iter().chain([("user", prompt.as_str())]).collect();
        chat_ids(model, &messages)
    }

    fn sampling(&self, model: &Model) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            max_tokens: self.max_tokens,
            eos: model.end_tokens(),
        }
    }
}

/// Why a text ended.
fn reason(stop: Stop, at_stop: bool) -> &'static str {
    match stop {
        _ if at_stop => "stop",
        Stop::Eos(_) => "eos",
        Stop::Length => "length",
        Stop::Context => "context",
        Stop::Caller => "stop",
    }
}

fn read_stdin() -> Result<String> {
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .take(64 << 20)
        .read_to_string(&mut text)
        .map_err(|error| Error::io("read", Path::new("standard input"), &error))?;
    Ok(text)
}

/// What was given out so far.
struct Given<'t> {
    streamed: Streamed<'t>,
    text: String,
    failed: Option<Error>,
}

impl Given<'_> {
    /// Whether to go on.
    fn push(&mut self, token: u32, show: impl Fn(&str) -> Result<()>) -> bool {
        let shown = self.streamed.push(token).and_then(|piece| {
            self.text += &piece;
            show(&piece)
        });
        self.failed = shown.err();
        self.failed.is_none() && !self.streamed.is_stopped()
    }

    /// All of the text, and whether a stop string ended it.
    fn end(self, show: impl Fn(&str) -> Result<()>) -> Result<(String, bool)> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let (last, at_stop) = self.streamed.finish()?;
        show(&last)?;
        Ok((self.text + &last, at_stop))
    }
}
