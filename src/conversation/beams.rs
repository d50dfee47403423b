//! Beam search: the likeliest continuations as wholes, where drawing token by token would miss them.
//!
//! A beam is a leaf of the timeline. What all beams begin with is computed once and kept while the search lasts; the rest,
//! mostly a token or two a beam, is one pass a step. The order of events is that of transformers' `_beam_search`
//! (generation/utils.py, 5.23), so its answers are the same.

use super::{Conversation, Stop};
use crate::model::Builder;
use crate::{Code, Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// How beams are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Beams {
    /// Beams that live at once, and continuations that are found. Default 4.
    pub width: usize,
    /// A continuation's score is its log-probability divided by its length to this power: above 0 the longer are preferred.
    /// Default 1.
    pub length_penalty: f32,
    /// Ends as soon as there are as many continuations as beams, even where a better one could still come. Default false.
    pub early_stopping: bool,
    /// Divides the positive and multiplies the negative log-probabilities of tokens that are in the timeline or the beam
    /// (beams know log-probabilities where drawing knows logits, as in transformers). Default 1.
    pub repetition_penalty: f32,
    /// Tokens at most. Default 256.
    pub max_tokens: usize,
    /// Tokens that end a continuation. Default none.
    pub eos: Vec<u32>,
}

impl Default for Beams {
    fn default() -> Self {
        Self {
            width: 4,
            length_penalty: 1.0,
            early_stopping: false,
            repetition_penalty: 1.0,
            max_tokens: 256,
            eos: Vec::new(),
        }
    }
}

impl Beams {
    /// Checks every range.
    ///
    /// # Errors
    /// InvalidArgument naming the field, its value and its range.
    pub fn check(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::invalid(text));
        if !(1..=MOST).contains(&self.width) {
            return wrong(format!("beams are {}, must be 1 to {MOST}", self.width));
        }
        if !self.length_penalty.is_finite() {
            return wrong(format!("length_penalty is {}, must be finite", self.length_penalty));
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return wrong(format!("repetition_penalty is {}, must be above 0", self.repetition_penalty));
        }
        Ok(())
    }

    fn score(&self, log_prob: f32, length: usize) -> f32 {
        log_prob / (length as f32).powf(self.length_penalty)
    }
}

/// The most beams: each holds the logits of a whole vocabulary.
const MOST: usize = 1024;

/// A continuation that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Hypothesis {
    /// Its tokens, without the end token.
    pub tokens: Vec<u32>,
    /// Its log-probability, end token and penalties included, by its length as [`Beams::length_penalty`] says.
    pub score: f32,
    /// Why it ended: an end token, the length, or the timeline's end.
    pub stop: Stop,
}

/// A continuation that may go on.
#[derive(Clone)]
struct Beam {
    tokens: Vec<u32>,
    log_prob: f32,
}

impl Conversation {
    /// The likeliest continuations, the best first, at most as many as beams; the timeline stays as it is.
    ///
    /// # Errors
    /// InvalidArgument for values out of range or an empty timeline; ContextFull where the timeline has no room for a token;
    /// Numeric for logits that are NaN or infinite; Cancelled.
    pub fn beams(&mut self, beams: &Beams) -> Result<Vec<Hypothesis>> {
        beams.check()?;
        if self.is_empty() {
            return Err(Error::invalid("nothing predicts the first token: append at least one token first"));
        }
        if beams.max_tokens > 0 && self.room() == 0 {
            let text = format!("the conversation holds {} tokens and has no room for one more", self.len());
            return Err(Error::new(Code::ContextFull, text));
        }
        let said = self.len();
        let found = self.search(beams, said);
        self.truncate(said);
        found
    }

    fn search(&mut self, beams: &Beams, said: usize) -> Result<Vec<Hypothesis>> {
        let most = beams.max_tokens.min(self.limit - said);
        let seen: BTreeSet<u32> = self.tokens.iter().copied().collect();
        let mut running = vec![Beam { tokens: Vec::new(), log_prob: 0.0 }];
        let mut found: Vec<Hypothesis> = Vec::new();
        for length in 1..=most {
            self.share(&running, said)?;
            let next = self.next(&running, said, beams, &seen)?;
            let mut going = Vec::new();
            for (place, beam) in next.into_iter().enumerate() {
                let end = beam.tokens.last().copied().filter(|last| beams.eos.contains(last));
                let stop = match end {
                    Some(token) => Some(Stop::Eos(token)),
                    None if length < most => None,
                    None if most < beams.max_tokens => Some(Stop::Context),
                    None => Some(Stop::Length),
                };
                match stop {
                    None => going.push(beam),
                    // the candidates behind the first so many are only there to go on
                    Some(stop) if place < beams.width => {
                        let tokens = beam.tokens[..length - usize::from(end.is_some())].to_vec();
                        found.push(Hypothesis { tokens, score: beams.score(beam.log_prob, length), stop });
                    }
                    Some(_) => {}
                }
            }
            found.sort_by(|a, b| b.score.total_cmp(&a.score)); // stable: of equals the older first
            found.truncate(beams.width);
            going.truncate(beams.width);
            let could_be_better = match (going.first(), found.last()) {
                (None, _) => false,
                (Some(best), Some(worst)) if found.len() == beams.width => {
                    !beams.early_stopping && beams.score(best.log_prob, length) > worst.score
                }
                _ => true,
            };
            if !could_be_better {
                break;
            }
            running = going;
        }
        Ok(found)
    }

    /// Makes what all beams begin with a part of the timeline.
    fn share(&mut self, running: &[Beam], said: usize) -> Result<()> {
        let (first, rest) = (&running[0].tokens, &running[1..]);
        let alike = |i: &usize| rest.iter().all(|beam| beam.tokens[*i] == first[*i]);
        let common = (0..first.len()).take_while(alike).count();
        let new = &first[self.len() - said..common];
        if new.is_empty() { Ok(()) } else { self.extend(new) }
    }

    /// The likeliest beams that are a token longer, the best first: enough of them that, were every best one to end, as many
    /// could go on.
    fn next(&self, running: &[Beam], said: usize, beams: &Beams, seen: &BTreeSet<u32>) -> Result<Vec<Beam>> {
        // the timeline's last row is computed once more: for a beam that is all in the timeline it is the one that predicts
        let (shared, back) = (self.len() - said, self.len() - 1);
        let mut builder = Builder::new(back);
        for beam in running {
            builder.insert(0, &[&self.tokens[back..], &beam.tokens[shared..]].concat());
        }
        let (forest, rows) = builder.build();
        let last = |beam: usize| *rows[beam].last().expect("a beam has a row");
        let mut order: Vec<usize> = (0..running.len()).collect();
        order.sort_by_key(|&beam| last(beam));
        let asked: Vec<u32> = order.iter().map(|&beam| last(beam)).collect();
        let logits = self.engine().logits(&self.pass(&forest), Some(&self.cache), &asked)?;
        let vocabulary = self.engine().config().vocab_size;
        let mut candidates = Vec::with_capacity(logits.len());
        for (logits, &beam) in logits.chunks_exact(vocabulary).zip(&order) {
            let mut log_probs = log_softmax(logits)?;
            penalise(&mut log_probs, seen.iter().chain(&running[beam].tokens), beams.repetition_penalty);
            let scored = log_probs.iter().zip(0u32..);
            candidates.extend(scored.map(|(p, token)| (running[beam].log_prob + p, beam, token)));
        }
        let keep = (beams.width * (1 + beams.eos.len()).max(2)).min(candidates.len());
        let best =
            |a: &(f32, usize, u32), b: &(f32, usize, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2));
        candidates.select_nth_unstable_by(keep - 1, best);
        candidates.truncate(keep);
        candidates.sort_by(best);
        let longer = |(log_prob, beam, token): (f32, usize, u32)| {
            let mut tokens = running[beam].tokens.clone();
            tokens.push(token);
            Beam { tokens, log_prob }
        };
        Ok(candidates.into_iter().map(longer).collect())
    }
}

/// ln of the probabilities.
fn log_softmax(logits: &[f32]) -> Result<Vec<f32>> {
    if !logits.iter().all(|logit| logit.is_finite()) {
        return Err(Error::new(Code::Numeric, "a logit is NaN or infinite; check the model's weights"));
    }
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    let total = sum.ln() as f32;
    Ok(logits.iter().map(|logit| logit - largest - total).collect())
}

/// Makes tokens less likely (above 1), each once.
fn penalise<'a>(log_probs: &mut [f32], tokens: impl Iterator<Item = &'a u32>, penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    for token in tokens.collect::<BTreeSet<_>>() {
        let p = &mut log_probs[*token as usize];
        *p = if *p < 0.0 { *p * penalty } else { *p / penalty };
    }
}
