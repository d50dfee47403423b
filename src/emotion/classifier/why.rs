//! Why a turn got its label: what changes where an earlier turn, or a word, had not been said.
//!
//! Two methods. Leaving out estimates nothing: every answer is that of the prompt rendered without the part, so a turn costs
//! a prompt and a word costs one, less what they share with the whole (Li et al. 2016, arXiv 1612.08220, erase parts
//! likewise). Integrated gradients, in `integrated`, share the answer out among all words.

use super::{Batch, Bulk, Classifier, Scored};
use crate::emotion::metrics::likeliest;
use crate::emotion::prompts::{self, Question};
use crate::files::dialogues::Turn;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::ops::Range;

/// How influences are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// By leaving out every earlier turn, one after the other.
    LeaveOutTurns,
    /// The same, then every word.
    LeaveOutWords,
    /// By integrated gradients, for every word, the turn's own included.
    IntegratedGradients,
}

/// The answer about a turn, and what it owes to what.
#[derive(Clone, Debug, PartialEq)]
pub struct Why {
    /// The probabilities of all labels.
    pub probabilities: Vec<f32>,
    /// The label that is explained.
    pub label: usize,
    /// What each earlier turn did, in their order; by gradients also the turn itself, which is the last, and only turns that
    /// the prompt shows.
    pub turns: Vec<Influence>,
    /// What each word did, of the earlier turns and of the turn itself, in their order; none where they were not asked.
    pub words: Vec<Influence>,
    /// How well gradients added up; `None` where parts were left out.
    pub integral: Option<Integral>,
}

/// What a part did.
#[derive(Clone, Debug, PartialEq)]
pub struct Influence {
    /// The turn, from 0.
    pub turn: usize,
    /// The bytes of the turn's text that the part is; `None` for the whole turn.
    pub part: Option<Range<usize>>,
    /// The probability of the label without it, where it was left out.
    pub without: Option<f32>,
    /// What it adds to ln of the label's probability: above 0 where it speaks for the label.
    pub change: f32,
}

/// A path integral, in units of ln of the label's probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Integral {
    /// Where the path begins: every word is a full stop.
    pub base: f64,
    /// What lies between that and the prompt itself, less what was added up.
    pub gap: f64,
    /// Points of the sum.
    pub points: usize,
}

impl Why {
    /// `{"turn", "label", "prob", "turns": [..], "words": [..]}`, as the command writes it. A part is `{"turn", "text", "change"}`,
    /// with `"start"`, the first of its bytes, where it is a word, and `"without"` where it was left out; after gradients there is
    /// `"integral": {"base", "gap", "points"}`. Numbers that are not finite are null. `names` and `turns` are those that were asked.
    pub fn to_json(&self, names: &[String], turns: &[Turn]) -> Value {
        let part = |influence: &Influence| {
            let text = influence.said(turns);
            let mut value = json!({"turn": influence.turn, "text": text, "change": short(influence.change)});
            if let Some(part) = &influence.part {
                value["start"] = json!(part.start);
            }
            if let Some(without) = influence.without {
                value["without"] = json!(short(without));
            }
            value
        };
        let parts = |all: &[Influence]| all.iter().map(part).collect::<Vec<_>>();
        let (turn, prob) = (turns.len().saturating_sub(1), short(self.probabilities[self.label]));
        let (turns, words) = (parts(&self.turns), parts(&self.words));
        let mut value = json!({"turn": turn, "label": names[self.label], "prob": prob, "turns": turns, "words": words});
        if let Some(Integral { base, gap, points }) = self.integral {
            value["integral"] = json!({"base": base, "gap": gap, "points": points});
        }
        value
    }
}

/// With the digits that an f32 has, and no more.
fn short(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

impl Influence {
    /// The text of the part, of the turns that were asked; nothing in others that have no such part.
    pub fn said<'a>(&self, turns: &'a [Turn]) -> &'a str {
        let text = turns.get(self.turn).map_or("", |turn| &turn.text);
        self.part.clone().map_or(Some(text), |part| text.get(part)).unwrap_or_default()
    }
}

impl Classifier {
    /// Why the last of `turns` gets `label`, the likeliest one where none is given.
    ///
    /// # Errors
    /// INVALID_ARGUMENT without turns or for a label that there is not; UNSUPPORTED for a template that shows later turns, and for
    /// gradients of one that makes other words of a text; those of [`Classifier::scores`].
    pub fn why(&self, turns: &[Turn], label: Option<usize>, method: Method, bulk: &Bulk) -> Result<Why> {
        if turns.is_empty() {
            return Err(Error::invalid("there is no turn to explain"));
        }
        if let Some(label) = label.filter(|&label| label >= self.labels().len()) {
            return Err(Error::invalid(format!("label {label} of {}", self.labels().len())));
        }
        if self.prompter.looks_ahead() {
            let text = "the template shows later turns (`ahead`), of which there are none here: it cannot be explained";
            return Err(Error::unsupported(text));
        }
        match method {
            Method::LeaveOutTurns => self.leave_out(turns, label, false, bulk),
            Method::LeaveOutWords => self.leave_out(turns, label, true, bulk),
            Method::IntegratedGradients => self.integrated(turns, label, bulk),
        }
    }

    /// The question about the last turn.
    pub(super) fn last_question(&self, turns: &[Turn], last: usize) -> Result<Question> {
        let question = self.prompter.question(self.model.tokenizer(), &self.prompter.script(turns), turns.len() - 1);
        question.map_err(|error| error.at(format!("turn {}", last + 1)))
    }

    fn leave_out(&self, turns: &[Turn], label: Option<usize>, words: bool, bulk: &Bulk) -> Result<Why> {
        let (last, parts) = (turns.len() - 1, parts(turns, words));
        let mut scored = Scored { scores: vec![vec![Vec::new()]; 1 + parts.len()], ..Scored::default() };
        let mut batch = Batch::default();
        let whole = std::iter::once(turns.to_vec());
        for (i, turns) in whole.chain(parts.iter().map(|part| without(turns, part))).enumerate() {
            bulk.cancel.check()?;
            batch.push((i, 0), 0, self.last_question(&turns, last)?);
            if batch.builder.len() >= bulk.budget {
                self.ask(std::mem::take(&mut batch), bulk, &mut scored)?;
            }
        }
        self.ask(batch, bulk, &mut scored)?;
        let mut answers = scored.scores.into_iter().map(|scores| self.probabilities(&scores[0]));
        let probabilities = answers.next().unwrap_or_default();
        let label = label.unwrap_or_else(|| likeliest(&probabilities));
        let influence = |((turn, part), answer): ((usize, Option<Range<usize>>), Vec<f32>)| {
            let change = probabilities[label].ln() - answer[label].ln();
            Influence { turn, part, without: Some(answer[label]), change }
        };
        let all = parts.into_iter().zip(answers).map(influence);
        let (words, turns) = all.partition(|influence| influence.part.is_some());
        Ok(Why { probabilities, label, turns, words, integral: None })
    }
}

/// What is left out, one after the other: every turn but the last, then words.
fn parts(turns: &[Turn], words: bool) -> Vec<(usize, Option<Range<usize>>)> {
    let mut all: Vec<(usize, Option<Range<usize>>)> = (0..turns.len() - 1).map(|turn| (turn, None)).collect();
    if words {
        for (i, turn) in turns.iter().enumerate() {
            let words = prompts::words(&turn.text);
            if words.len() > 1 {
                all.extend(words.into_iter().map(|range| (i, Some(range)))); // a single word would leave nothing behind
            }
        }
    }
    all
}

/// The turns without a part.
fn without(turns: &[Turn], (turn, part): &(usize, Option<Range<usize>>)) -> Vec<Turn> {
    let mut rest = turns.to_vec();
    match part {
        None => {
            rest.remove(*turn);
        }
        Some(range) => {
            let text = &turns[*turn].text;
            let (before, after) = (text[..range.start].trim_end(), text[range.end..].trim_start());
            rest[*turn].text = [before, after].join(if before.is_empty() || after.is_empty() { "" } else { " " });
        }
    }
    rest
}
