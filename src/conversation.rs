//! One token timeline: what was said is computed once and stays in the KV cache.
//!
//! Appending costs the tokens appended, asking costs a leaf, going back costs nothing. Whatever the way to a timeline
//! (in one piece, turn by turn, after a rollback, rebuilt), what is asked of it has the same answer. It knows tokens
//! only; text, turns and labels are the business of the layers above.

mod beams;
mod streamed;

pub use beams::{Beams, Hypothesis};
pub use streamed::Streamed;

use crate::model::engine::{Cache, Continued, Engine, Pass, Target};
use crate::model::{Adapter, Builder, Forest, Model};
use crate::{Cancel, Code, Error, Result};
use dialoguellm_kernels::dropout;
use dialoguellm_kernels::sample::{self, Draw};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Tokens computed at once when a long text is appended: bounds the activations, and how long a cancel may wait.
const CHUNK: usize = 1024;

/// How a conversation is held.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Tokens it may hold; 0, or more than the model's context, means the model's context.
    pub context: usize,
    /// Stops the call that runs, from any thread; cleared by whoever set it.
    pub cancel: Cancel,
}

/// A timeline of tokens with their keys and values. Used by one thread at a time.
pub struct Conversation {
    model: Arc<Model>,
    adapter: Option<Arc<Adapter>>,
    limit: usize,
    cancel: Cancel,
    /// As many as the cache has rows.
    tokens: Vec<u32>,
    cache: Cache,
}

/// A possible continuation.
#[derive(Clone, Copy, Debug)]
pub struct Leaf<'a> {
    /// Its tokens.
    pub ids: &'a [u32],
    /// The first of them that is scored; those before it are only context (a question before its label).
    pub from: usize,
}

/// How likely a leaf is.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Sum of the log-probabilities, natural logarithm.
    pub total: f64,
    /// log p of each scored token.
    pub tokens: Vec<f32>,
}

/// A timeline as it is saved: restoring computes its tokens again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Fingerprint of the model whose tokens these are.
    pub base: String,
    /// The timeline.
    pub tokens: Vec<u32>,
}

/// How tokens are drawn, in transformers' order: repetition penalty, temperature, top-k, top-p.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token (the first of equals). Default 0.
    pub temperature: f32,
    /// Only tokens at least as likely as the k-th; 0 for all. Default 0.
    pub top_k: usize,
    /// Only the most likely tokens that together reach this probability. Default 1: all.
    pub top_p: f32,
    /// Divides the positive and multiplies the negative logits of tokens that are in the timeline (Keskar et al. 2019,
    /// arXiv 1909.05858, as transformers does it). Default 1.
    pub repetition_penalty: f32,
    /// The draw at a position depends on this and on the position only. Default 0.
    pub seed: u64,
    /// Tokens at most. Default 256.
    pub max_tokens: usize,
    /// Tokens that end the text. Default none.
    pub eos: Vec<u32>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            seed: 0,
            max_tokens: 256,
            eos: Vec::new(),
        }
    }
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// This end token was drawn.
    Eos(u32),
    /// `max_tokens` were drawn.
    Length,
    /// The timeline is full.
    Context,
    /// The callback said so.
    Caller,
}

/// What was generated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// The tokens, without the end token.
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub stop: Stop,
}

impl Conversation {
    /// An empty timeline.
    pub fn new(model: Arc<Model>, adapter: Option<Arc<Adapter>>, options: Options) -> Self {
        let most = model.context_length();
        let limit = if options.context == 0 { most } else { options.context.min(most) };
        let cache = model.engine().cache();
        Self { model, adapter, limit, cancel: options.cancel, tokens: Vec::new(), cache }
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }
    /// Whether nothing was said.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
    /// Tokens that still fit.
    pub fn room(&self) -> usize {
        self.limit - self.tokens.len()
    }
    /// The timeline.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Appends tokens, which costs computing them.
    ///
    /// # Errors
    /// ContextFull where they do not fit; InvalidArgument for a token that is not in the vocabulary; Cancelled. The
    /// timeline is then as before.
    pub fn append(&mut self, ids: &[u32]) -> Result<()> {
        self.check(ids)?;
        let before = self.len();
        for chunk in ids.chunks(CHUNK) {
            if let Err(e) = self.extend(chunk) {
                self.truncate(before);
                return Err(e);
            }
        }
        Ok(())
    }

    fn extend(&mut self, ids: &[u32]) -> Result<()> {
        let forest = Forest::chain(ids, self.len());
        let pass = Pass { forest: &forest, adapter: self.adapter.as_deref(), cancel: &self.cancel };
        self.model.engine().extend(&pass, &mut self.cache)?;
        self.tokens.extend_from_slice(ids);
        Ok(())
    }

    fn check(&self, ids: &[u32]) -> Result<()> {
        check_vocabulary(ids, self.engine())?;
        if ids.len() <= self.room() {
            return Ok(());
        }
        Err(Error::new(
            Code::ContextFull,
            format!(
                "{} tokens do not fit: the conversation holds {} of at most {}; drop its oldest turns",
                ids.len(),
                self.len(),
                self.limit
            ),
        ))
    }

    fn engine(&self) -> &dyn Engine {
        self.model.engine()
    }

    /// Goes back to the first `len` tokens; nothing is computed. No effect where there are no more than that.
    pub fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.cache.truncate(len);
    }

    /// How likely each leaf is after the timeline, all of its tokens scored, in one pass; the timeline stays as it is.
    ///
    /// # Errors
    /// As [`Conversation::scores_after`].
    pub fn log_probs_after(&self, leaves: &[Vec<u32>]) -> Result<Vec<Score>> {
        let leaves: Vec<Leaf> = leaves.iter().map(|ids| Leaf { ids, from: 0 }).collect();
        self.scores_after(&leaves)
    }

    /// How likely each leaf's tokens from `from` on are, in one pass. Leaves share their beginnings; a leaf's last token
    /// is not computed, only asked for.
    ///
    /// # Errors
    /// InvalidArgument for a token out of the vocabulary, `from` out of the leaf, or the first token of an empty
    /// timeline, which nothing predicts; ContextFull; Cancelled.
    pub fn scores_after(&self, leaves: &[Leaf]) -> Result<Vec<Score>> {
        leaves.iter().try_for_each(|leaf| self.check_leaf(leaf))?;
        // A leaf's first token is predicted by the timeline's last one, whose row is then computed once more.
        let back = usize::from(leaves.iter().any(|leaf| leaf.from == 0 && !leaf.ids.is_empty()));
        let mut builder = Builder::new(self.len() - back);
        for leaf in leaves {
            let context = &leaf.ids[..leaf.ids.len().saturating_sub(1)];
            builder.insert(0, &[&self.tokens[self.len() - back..], context].concat());
        }
        let (forest, rows) = builder.build();
        let of_leaf = |(leaf, rows): (&Leaf, &Vec<u32>)| -> Vec<Target> {
            let target = |i: usize| Target { row: rows[i + back - 1], token: leaf.ids[i] };
            (leaf.from..leaf.ids.len()).map(target).collect()
        };
        let targets: Vec<Target> = leaves.iter().zip(&rows).flat_map(of_leaf).collect();
        let mut log_probs = self.ask(&forest, &targets)?.into_iter();
        Ok(leaves.iter().map(|leaf| score(log_probs.by_ref().take(leaf.ids.len() - leaf.from).collect())).collect())
    }

    fn ask(&self, forest: &Forest, targets: &[Target]) -> Result<Vec<f32>> {
        if targets.is_empty() {
            return Ok(Vec::new());
        }
        self.engine().log_probs(&self.pass(forest), Some(&self.cache), targets)
    }

    fn pass<'a>(&'a self, forest: &'a Forest) -> Pass<'a> {
        Pass { forest, adapter: self.adapter.as_deref(), cancel: &self.cancel }
    }

    fn check_leaf(&self, leaf: &Leaf) -> Result<()> {
        self.check(leaf.ids)?;
        let (from, n) = (leaf.from, leaf.ids.len());
        if from > n {
            return Err(Error::invalid(format!("a leaf of {n} tokens cannot be scored from token {from}")));
        }
        if from == 0 && n > 0 && self.is_empty() {
            let text = "nothing predicts the first token of an empty conversation: append at least one token first";
            return Err(Error::invalid(text));
        }
        Ok(())
    }

    /// Logits `[V]` of what comes after the timeline and `leaf`.
    ///
    /// # Errors
    /// As [`Conversation::scores_after`].
    pub fn logits_after(&self, leaf: &[u32]) -> Result<Vec<f32>> {
        self.check(leaf)?;
        if self.is_empty() && leaf.is_empty() {
            return Err(Error::invalid("nothing predicts the first token: append at least one token first"));
        }
        let back = usize::from(leaf.is_empty());
        let ids = [&self.tokens[self.len() - back..], leaf].concat();
        let forest = Forest::chain(&ids, self.len() - back);
        self.engine().logits(&self.pass(&forest), Some(&self.cache), &[ids.len() as u32 - 1])
    }

    /// Makes the timeline `ids`, keeping what it begins with in common; returns how many tokens were computed. This is
    /// how the oldest turns are dropped: what follows them moves to other positions and is computed again.
    ///
    /// # Errors
    /// As [`Conversation::append`]. After Cancelled the timeline is the common beginning; else it is as before.
    pub fn rebuild(&mut self, ids: &[u32]) -> Result<usize> {
        check_vocabulary(ids, self.engine())?;
        if ids.len() > self.limit {
            let text = format!("{} tokens do not fit: the conversation holds at most {}", ids.len(), self.limit);
            return Err(Error::new(Code::ContextFull, text));
        }
        let common = self.tokens.iter().zip(ids).take_while(|(a, b)| a == b).count();
        self.truncate(common);
        self.append(&ids[common..])?;
        Ok(ids.len() - common)
    }

    /// The timeline, to be saved. To go back within this conversation, [`Conversation::len`] now and
    /// [`Conversation::truncate`] later cost nothing.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { base: self.model.fingerprint().to_owned(), tokens: self.tokens.clone() }
    }

    /// Makes the timeline what it was when `snapshot` was taken; returns how many tokens were computed.
    ///
    /// # Errors
    /// InvalidArgument where the snapshot is of another model; as [`Conversation::rebuild`].
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<usize> {
        let (theirs, ours) = (&snapshot.base, self.model.fingerprint());
        if theirs != ours {
            return Err(Error::invalid(format!("the snapshot is of model {theirs}, this conversation of {ours}")));
        }
        self.rebuild(&snapshot.tokens)
    }

    /// Continues the timeline token by token; what is drawn becomes part of it, an end token included. `on_token` sees
    /// every token but that one and ends it by returning false.
    ///
    /// # Errors
    /// InvalidArgument for sampling values out of range; Numeric for logits that are NaN; Cancelled. The timeline is
    /// then as before.
    pub fn generate(&mut self, sampling: &Sampling, on_token: &mut dyn FnMut(u32) -> bool) -> Result<Generated> {
        sampling.check()?;
        let before = self.len();
        let result = self.draw_all(sampling, on_token);
        if result.is_err() {
            self.truncate(before);
        }
        result
    }

    fn draw_all(&mut self, sampling: &Sampling, on_token: &mut dyn FnMut(u32) -> bool) -> Result<Generated> {
        let mut tokens = Vec::new();
        // drawn, and part of the timeline only with the pass that draws the next one
        let mut last = None;
        let stop = loop {
            if tokens.len() == sampling.max_tokens {
                break Stop::Length;
            }
            if self.room() == usize::from(last.is_some()) {
                break Stop::Context;
            }
            let token = self.draw(last.take(), sampling)?;
            last = Some(token);
            if sampling.eos.contains(&token) {
                break Stop::Eos(token);
            }
            tokens.push(token);
            if !on_token(token) {
                break Stop::Caller;
            }
        };
        last.map_or(Ok(()), |token| self.extend(&[token]))?;
        Ok(Generated { tokens, stop })
    }

    /// Draws what comes after the timeline and `new`, which becomes part of it.
    fn draw(&mut self, new: Option<u32>, sampling: &Sampling) -> Result<u32> {
        let Some(&token) = new.as_ref().or(self.tokens.last()) else {
            return Err(Error::invalid("nothing predicts the first token: append at least one token first"));
        };
        // only the first draw asks again for a row that is in the cache
        let at = self.len() - usize::from(new.is_none());
        self.tokens.extend(new);
        let seen: BTreeSet<u32> = self.tokens.iter().copied().collect();
        let draw = Draw {
            options: sample::Options {
                temperature: sampling.temperature,
                top_k: sampling.top_k.min(self.engine().config().vocab_size) as u32,
                top_p: sampling.top_p,
            },
            penalty: sampling.repetition_penalty,
            seen: &seen.into_iter().collect::<Vec<_>>(),
            uniform: sampling.uniform(self.len()),
        };
        let forest = Forest::chain(&[token], at);
        let pass = Pass { forest: &forest, adapter: self.adapter.as_deref(), cancel: &self.cancel };
        let cache = match new {
            None => Continued::Read(&self.cache),
            Some(_) => Continued::Extended(&mut self.cache),
        };
        self.model.engine().draw(&pass, cache, &draw)
    }
}

fn score(tokens: Vec<f32>) -> Score {
    Score { total: tokens.iter().map(|&p| f64::from(p)).sum(), tokens }
}

fn check_vocabulary(ids: &[u32], engine: &dyn Engine) -> Result<()> {
    let size = engine.config().vocab_size;
    match ids.iter().find(|&&id| id as usize >= size) {
        None => Ok(()),
        Some(id) => Err(Error::invalid(format!("token {id} is not in the model's vocabulary of {size}"))),
    }
}

impl Sampling {
    /// Checks every range.
    ///
    /// # Errors
    /// InvalidArgument naming the field, its value and its range.
    pub fn check(&self) -> Result<()> {
        let Self { temperature, top_p, repetition_penalty, .. } = *self;
        let wrong =
            |name: &str, value: f32, range: &str| Err(Error::invalid(format!("{name} is {value}, must be {range}")));
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return wrong("temperature", temperature, "0 or more");
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return wrong("top_p", top_p, "above 0 and at most 1");
        }
        if !(repetition_penalty > 0.0 && repetition_penalty.is_finite()) {
            return wrong("repetition_penalty", repetition_penalty, "above 0");
        }
        Ok(())
    }

    /// The number in [0, 1) that draws at a position.
    fn uniform(&self, position: usize) -> f64 {
        let bits = dropout::key(self.seed, 0, 0, 0, position as u64);
        (bits >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests;
