//! `generate`: a text continued token by token, given out at whole code points.

use crate::args::{ModelArgs, Style};
use crate::out;
use clap::Args;
use dialoguellm::conversation::{Conversation, Options, Sampling, Stop};
use dialoguellm::emotion::framing::{Ends, Framer, Framing};
use dialoguellm::files::Tokenizer;
use dialoguellm::model::{Adapter, Model};
use dialoguellm::{Error, Result};
use serde_json::json;
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
    /// The same seed draws the same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// End before this text; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
}

impl Generate {
    pub fn run(&self, style: Style) -> Result<()> {
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::invalid("--stop is empty, must be one character or more"));
        }
        let model = self.model.open()?;
        let adapter = self.adapter.as_ref().map(|dir| Adapter::read(dir, model.config())).transpose()?;
        let prompt = self.ids(&model)?;
        let sampling = self.sampling(&model);
        sampling.check()?;
        let mut conversation = Conversation::new(model.clone(), adapter.map(Arc::new), Options::default());
        conversation.append(&prompt)?;
        let started = Instant::now();
        let mut text = Streamed::new(model.tokenizer(), &prompt, &self.stop, !style.json)?;
        let generated = conversation.generate(&sampling, &mut |token| text.push(token))?;
        let (text, at_stop) = text.end()?;
        if !style.json {
            return out::text("\n");
        }
        let stop = match generated.stop {
            _ if at_stop => "stop",
            Stop::Eos(_) => "eos",
            Stop::Length => "length",
            Stop::Context => "context",
            Stop::Caller => "stop",
        };
        let seconds = started.elapsed().as_secs_f64();
        let prompt = prompt.len();
        out::json(
            &json!({"text": text, "tokens": generated.tokens, "stop": stop, "prompt_tokens": prompt, "seconds": seconds}),
        )
    }

    fn ids(&self, model: &Model) -> Result<Vec<u32>> {
        let tokenizer = model.tokenizer();
        let prompt = match self.prompt.as_str() {
            "-" => read_stdin()?,
            text => text.to_owned(),
        };
        let ids = if self.chat {
            let system = self.system.as_deref().map(|text| ("system", text));
            let messages: Vec<(&str, &str)> = system.into_iter().chain([("user", prompt.as_str())]).collect();
            // the template writes the first token itself
            tokenizer.encode(&tokenizer.chat(&messages, true)?, false)?
        } else {
            Framer::new(Framing::default(), tokenizer, Ends::of(tokenizer, model.config()))?.ids(tokenizer, &prompt)?
        };
        if ids.is_empty() {
            return Err(Error::invalid(
                "the prompt has no token, and nothing predicts the first one; give a longer prompt",
            ));
        }
        Ok(ids)
    }

    fn sampling(&self, model: &Model) -> Sampling {
        let mut eos = model.config().eos.clone();
        eos.extend(model.tokenizer().eos().filter(|id| !eos.contains(id)));
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            max_tokens: self.max_tokens,
            eos,
        }
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

/// Tokens to text as they come, up to a stop string.
struct Streamed<'t> {
    decoder: dialoguellm::files::Decoder<'t>,
    stopper: Stopper<'t>,
    shown: bool,
    text: String,
    failed: Option<Error>,
}

impl<'t> Streamed<'t> {
    /// `prompt` is context for the first token: some tokenizers drop a text's first space.
    fn new(tokenizer: &'t Tokenizer, prompt: &[u32], stops: &'t [String], shown: bool) -> Result<Self> {
        let mut decoder = tokenizer.decoder(true);
        for &id in &prompt[prompt.len().saturating_sub(4)..] {
            decoder.push(id)?;
        }
        let stopper = Stopper { stops, held: String::new(), done: false };
        Ok(Self { decoder, stopper, shown, text: String::new(), failed: None })
    }

    /// Whether to go on.
    fn push(&mut self, token: u32) -> bool {
        let piece = self.decoder.push(token).map(|piece| self.stopper.push(&piece));
        if let Err(error) = piece.and_then(|piece| self.give(&piece)) {
            self.failed = Some(error);
        }
        self.failed.is_none() && !self.stopper.done
    }

    fn give(&mut self, piece: &str) -> Result<()> {
        self.text += piece;
        if self.shown { out::text(piece) } else { Ok(()) }
    }

    /// All of the text, and whether a stop string ended it.
    fn end(self) -> Result<(String, bool)> {
        let Self { decoder, mut stopper, shown, mut text, failed } = self;
        if let Some(error) = failed {
            return Err(error);
        }
        if !stopper.done {
            let last = stopper.push(&decoder.finish()?) + &stopper.rest();
            text += &last;
            if shown {
                out::text(&last)?;
            }
        }
        Ok((text, stopper.done))
    }
}

/// Holds back what may be the beginning of a stop string.
struct Stopper<'t> {
    stops: &'t [String],
    held: String,
    done: bool,
}

impl Stopper<'_> {
    /// The text that may be given out after `piece`.
    fn push(&mut self, piece: &str) -> String {
        self.held += piece;
        let first = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        let cut = match first {
            Some(at) => {
                self.done = true;
                at
            }
            None => self.held.len() - self.stops.iter().map(|stop| begun(&self.held, stop)).max().unwrap_or(0),
        };
        let rest = self.held.split_off(cut);
        std::mem::replace(&mut self.held, rest)
    }

    /// What was held back for nothing.
    fn rest(&mut self) -> String {
        if self.done { String::new() } else { std::mem::take(&mut self.held) }
    }
}

/// Bytes at the end of `text` that `stop` begins with.
fn begun(text: &str, stop: &str) -> usize {
    let longest = stop.len().saturating_sub(1).min(text.len());
    let fits = |n: &usize| {
        text.is_char_boundary(text.len() - n) && stop.as_bytes().starts_with(&text.as_bytes()[text.len() - n..])
    };
    (1..=longest).rev().find(fits).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streamed(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.into()).collect();
        let mut stopper = Stopper { stops: &stops, held: String::new(), done: false };
        let mut given: Vec<String> = Vec::new();
        for piece in pieces {
            given.push(stopper.push(piece));
            if stopper.done {
                break;
            }
        }
        given.push(stopper.rest());
        (given, stopper.done)
    }

    #[test]
    fn a_stop_string_over_several_pieces_is_not_given_out() {
        assert_eq!(
            streamed(&["END"], &["a E", "N", "D b"]),
            (vec!["a ".into(), "".into(), "".into(), "".into()], true)
        );
    }

    #[test]
    fn what_only_begins_like_a_stop_string_is_given_out_later() {
        assert_eq!(streamed(&["END"], &["a EN", "x"]), (vec!["a ".into(), "ENx".into(), "".into()], false));
        assert_eq!(streamed(&["END"], &["a EN"]), (vec!["a ".into(), "EN".into()], false));
    }

    #[test]
    fn of_several_stop_strings_the_first_in_the_text_counts() {
        assert_eq!(streamed(&["two", "one"], &["zero one two"]), (vec!["zero ".into(), "".into()], true));
    }

    #[test]
    fn characters_of_several_bytes_are_not_cut() {
        assert_eq!(streamed(&["\u{e9}x"], &["a\u{e9}", "y"]), (vec!["a".into(), "\u{e9}y".into(), "".into()], false));
    }
}
