//! Answers that the model writes, and the labels found in them: how DialogueLLM and most others decode.
//!
//! [`Classifier::scores`] asks how likely each label is, which leaves nothing to be found and gives probabilities; this is
//! for comparing with those who let the model write.

use super::classifier::{Bulk, Classifier};
use super::labels::Labels;
use super::prompts::Question;
use crate::conversation::{Beams, Conversation, Options, Streamed};
use crate::files::Dialogue;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// The `[decode]` table: how answers are written, and what is looked for in them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Decode {
    /// Beams; 1 takes the likeliest token every time. Default 4.
    pub beams: usize,
    /// As [`Beams::repetition_penalty`]. Default 1.
    pub repetition_penalty: f32,
    /// Tokens of an answer at most. Default 256.
    pub new_tokens: usize,
    /// Words and the labels that they mean: of an answer in small letters, up to its first full stop or line's end, the
    /// first of these that is anywhere in it counts. Default: the labels' words, in the labels' order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<(String, String)>,
}

impl Default for Decode {
    fn default() -> Self {
        Self { beams: 4, repetition_penalty: 1.0, new_tokens: 256, answers: Vec::new() }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// What the model wrote.
    pub text: String,
    /// The label in it.
    pub label: Option<usize>,
}

impl Decode {
    /// The search that writes an answer, ended by the tokens `eos`.
    pub fn search(&self, eos: Vec<u32>) -> Beams {
        let Self { beams, repetition_penalty, new_tokens, .. } = *self;
        Beams { width: beams, repetition_penalty, max_tokens: new_tokens, eos, ..Beams::default() }
    }

    /// The words in small letters, and the numbers of their labels. Errors: NOT_FOUND for a label that there is not;
    /// INVALID_ARGUMENT for an empty word, which would be found everywhere.
    fn words(&self, labels: &Labels) -> Result<Vec<(String, usize)>> {
        if self.answers.is_empty() {
            return Ok(labels.words().iter().map(|word| word.to_lowercase()).zip(0..).collect());
        }
        let word = |(i, (word, label)): (usize, &(String, String))| {
            let place = || format!("[decode] answers, entry {}", i + 1);
            if word.is_empty() {
                return Err(Error::invalid("a word is empty and would be found in every answer").at(place()));
            }
            Ok((word.to_lowercase(), labels.index(label).map_err(|error| error.at(place()))?))
        };
        self.answers.iter().enumerate().map(word).collect()
    }
}

/// The label that an answer names.
fn label_in(text: &str, words: &[(String, usize)]) -> Option<usize> {
    let text = text.trim().to_lowercase();
    let first = text.split(['.', '\n']).next().unwrap_or_default();
    words.iter().find(|(word, _)| first.contains(word.as_str())).map(|(_, label)| *label)
}

impl Classifier {
    /// What the model answers about every turn, `[dialogue][turn]`. `progress` is told how many turns are done.
    ///
    /// # Errors
    /// NOT_FOUND and INVALID_ARGUMENT for a `decode` that does not fit the labels; as [`Classifier::scores`] and
    /// [`Conversation::beams`].
    pub fn written(
        &self,
        dialogues: &[Dialogue],
        decode: &Decode,
        bulk: &Bulk,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<Vec<Written>>> {
        let words = decode.words(self.labels())?;
        let beams = decode.search(self.model().end_tokens());
        let mut done = 0;
        let mut of_dialogue = |dialogue: &Dialogue| {
            // what the prompts of a dialogue begin with is computed once
            let options = Options { context: 0, cancel: bulk.cancel.clone() };
            let mut conversation = Conversation::new(self.model().clone(), self.adapter().cloned(), options);
            let written = |question: Question| {
                conversation.rebuild(&question.prompt)?;
                let best = conversation.beams(&beams)?.into_iter().next().map(|best| best.tokens).unwrap_or_default();
                let (text, _) = Streamed::new(self.model().tokenizer(), &question.prompt, &[])?.whole(&best)?;
                done += 1;
                progress(done);
                Ok(Written { label: label_in(&text, &words), text })
            };
            self.questions(dialogue, &bulk.cancel)?.into_iter().map(written).collect()
        };
        dialogues.iter().map(&mut of_dialogue).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_of_the_list_that_is_in_the_answers_first_sentence_counts() {
        let pairs = [("happy", "joy"), ("sad", "sadness"), ("Rage", "anger"), ("anger", "anger")];
        let answers = pairs.map(|(word, label)| (word.to_owned(), label.to_owned())).to_vec();
        let words = Decode { answers, ..Decode::default() }.words(&Labels::meld()).unwrap();
        let found = |text: &str| label_in(text, &words).map(|label| Labels::meld().names()[label].clone());
        assert_eq!(found("  Sadness.").as_deref(), Some("sadness"));
        assert_eq!(found("unhappy and sad").as_deref(), Some("joy"), "as a part of a word, in the list's order");
        assert_eq!(found("OUTRAGE").as_deref(), Some("anger"));
        for nothing in ["", "neutral", "Well. sad", "hm\nsad", "joy"] {
            assert_eq!(found(nothing), None, "{nothing}");
        }
        let labels = Labels::meld_as_in_the_paper();
        let own = Decode::default().words(&labels).unwrap();
        assert_eq!(label_in("Happiness!", &own), Some(labels.index("joy").unwrap()));
        let wrong = |word: &str, label: &str| {
            let decode = Decode { answers: vec![(word.into(), label.into())], ..Decode::default() };
            decode.words(&labels).unwrap_err().text().to_owned()
        };
        assert!(wrong("", "joy").contains("empty") && wrong("x", "bliss").contains("entry 1"));
    }
}
