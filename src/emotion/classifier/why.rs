//! Why a turn got its label: what changes where an earlier turn, or a word, had not been said.
//!
//! Nothing is estimated: every answer is that of the prompt rendered without the part, so a turn costs a prompt and a word
//! costs one, less what they share with the whole (Li et al. 2016, arXiv 1612.08220, erase parts likewise).

use super::{Batch, Bulk, Classifier, Scored};
use crate::emotion::metrics::likeliest;
use crate::files::dialogues::Turn;
use crate::{Error, Result};
use std::ops::Range;

/// The answer about a turn, and what it owes to what.
#[derive(Clone, Debug, PartialEq)]
pub struct Why {
    /// The probabilities of all labels.
    pub probabilities: Vec<f32>,
    /// The label that is explained.
    pub label: usize,
    /// What each earlier turn did, in their order.
    pub turns: Vec<Influence>,
    /// What each word did, of the earlier turns and of the turn itself, in their order; none where they were not asked.
    pub words: Vec<Influence>,
}

/// What leaving out a part changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Influence {
    /// The turn, from 0.
    pub turn: usize,
    /// The bytes of the turn's text that were left out; `None` for the whole turn.
    pub part: Option<Range<usize>>,
    /// The probability of the label without it.
    pub without: f32,
    /// ln of the probability with it minus that without: above 0 where it speaks for the label.
    pub change: f32,
}

impl Classifier {
    /// Why the last of `turns` gets `label`, the likeliest one where none is given.
    ///
    /// # Errors
    /// INVALID_ARGUMENT without turns or for a label that there is not; those of [`Classifier::scores`].
    pub fn why(&self, turns: &[Turn], label: Option<usize>, words: bool, bulk: &Bulk) -> Result<Why> {
        let Some(last) = turns.len().checked_sub(1) else { return Err(Error::invalid("there is no turn to explain")) };
        if let Some(label) = label.filter(|&label| label >= self.labels().len()) {
            return Err(Error::invalid(format!("label {label} of {}", self.labels().len())));
        }
        let parts = parts(turns, words);
        let mut scored = Scored { scores: vec![vec![Vec::new()]; 1 + parts.len()], ..Scored::default() };
        let mut batch = Batch::default();
        let whole = std::iter::once(turns.to_vec());
        for (i, turns) in whole.chain(parts.iter().map(|part| without(turns, part))).enumerate() {
            bulk.cancel.check()?;
            let script = self.prompter.script(&turns);
            let question = self.prompter.question(self.model.tokenizer(), &script, turns.len() - 1);
            batch.push((i, 0), question.map_err(|error| error.at(format!("turn {}", last + 1)))?);
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
            Influence { turn, part, without: answer[label], change }
        };
        let all = parts.into_iter().zip(answers).map(influence);
        let (words, turns) = all.partition(|influence| influence.part.is_some());
        Ok(Why { probabilities, label, turns, words })
    }
}

/// What is left out, one after the other: every turn but the last, then words.
fn parts(turns: &[Turn], words: bool) -> Vec<(usize, Option<Range<usize>>)> {
    let mut all: Vec<(usize, Option<Range<usize>>)> = (0..turns.len() - 1).map(|turn| (turn, None)).collect();
    if words {
        for (i, turn) in turns.iter().enumerate() {
            all.extend(words_of(&turn.text).into_iter().map(|range| (i, Some(range))));
        }
    }
    all
}

/// The bytes of every word, without the space around it; none of a text of one word, which would have nothing left.
fn words_of(text: &str) -> Vec<Range<usize>> {
    let start = |word: &str| word.as_ptr() as usize - text.as_ptr() as usize;
    let words: Vec<Range<usize>> = text.split_whitespace().map(|word| start(word)..start(word) + word.len()).collect();
    if words.len() > 1 { words } else { Vec::new() }
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
