//! The emotions that are told apart: their names in the data, and the words the model reads and writes for them.
//!
//! Order matters: probabilities are given in it, and it is stored with the adapter. Knows no tokens and no template.

use crate::files::dialogues::{Dialogue, MELD_LABELS};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// What ends every answer where one answer's tokens begin another's, as `joy` and `joyful` may: without an end the
/// shorter would be favoured, since the longer passes through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Terminator {
    /// The model's end token.
    Eos,
    /// A line end, for a model without an end token.
    Newline,
}

/// An ordered set of two or more emotions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Labels {
    names: Vec<String>,
    words: Vec<String>,
    terminator: Option<Terminator>,
}

/// The form in files: `words` may be left out where they are the names.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    names: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    words: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    terminator: Option<Terminator>,
}

impl TryFrom<Stored> for Labels {
    type Error = Error;
    fn try_from(stored: Stored) -> Result<Self> {
        let words = stored.words.unwrap_or_else(|| stored.names.clone());
        Ok(Self::with_words(stored.names, words)?.ended_by(stored.terminator))
    }
}

impl From<Labels> for Stored {
    fn from(labels: Labels) -> Self {
        let words = (labels.words != labels.names).then_some(labels.words);
        Self { names: labels.names, words, terminator: labels.terminator }
    }
}

/// More labels than any emotion set has; every one costs a leaf a turn.
const MOST: usize = 256;

impl Labels {
    /// Labels whose words are their names. Errors: INVALID_ARGUMENT for fewer than two, empty or equal ones.
    pub fn new(names: Vec<String>) -> Result<Self> {
        Self::with_words(names.clone(), names)
    }

    /// Labels with a word for each name, where the model should read and write another one (`joy` as `happiness`).
    /// Errors: as [`Labels::new`].
    pub fn with_words(names: Vec<String>, words: Vec<String>) -> Result<Self> {
        if names.len() != words.len() || !(2..=MOST).contains(&names.len()) {
            let text = format!(
                "{} labels and {} words for them; both must be equal, from 2 to {MOST}",
                names.len(),
                words.len()
            );
            return Err(Error::invalid(text));
        }
        for list in [&names, &words] {
            if let Some(twice) = (1..list.len()).find(|&i| list[i].trim().is_empty() || list[..i].contains(&list[i])) {
                return Err(Error::invalid(format!("label {} is `{}`: empty, or there twice", twice + 1, list[twice])));
            }
        }
        match names[0].trim().is_empty() || words[0].trim().is_empty() {
            true => Err(Error::invalid("label 1 is empty")),
            false => Ok(Self { names, words, terminator: None }),
        }
    }

    /// MELD's seven, the most frequent first.
    pub fn meld() -> Self {
        let names: Vec<String> = MELD_LABELS.map(String::from).to_vec();
        Self { words: names.clone(), names, terminator: None }
    }

    /// MELD's seven in the order and words of DialogueLLM's instruction (arXiv 2310.11374, section 3.3).
    pub fn meld_as_in_the_paper() -> Self {
        let names = ["joy", "anger", "fear", "sadness", "disgust", "surprise", "neutral"].map(String::from).to_vec();
        let mut words = names.clone();
        words[0] = "happiness".into();
        Self { names, words, terminator: None }
    }

    /// The labels that occur in `dialogues`, the most frequent first. Errors: as [`Labels::new`].
    pub fn of(dialogues: &[Dialogue]) -> Result<Self> {
        let mut counts: HashMap<&String, usize> = HashMap::new();
        for emotion in dialogues.iter().flat_map(|dialogue| &dialogue.turns).filter_map(|turn| turn.emotion.as_ref()) {
            *counts.entry(emotion).or_default() += 1;
        }
        let mut names: Vec<(&String, usize)> = counts.into_iter().collect();
        names.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        Self::new(names.into_iter().map(|(name, _)| name.clone()).collect())
    }

    /// The same labels with every answer ended by `terminator`.
    #[must_use]
    pub fn ended_by(self, terminator: Option<Terminator>) -> Self {
        Self { terminator, ..self }
    }

    /// Names, as in the data.
    pub fn names(&self) -> &[String] {
        &self.names
    }
    /// Words, as in prompts.
    pub fn words(&self) -> &[String] {
        &self.words
    }
    /// What ends every answer, if anything has to.
    pub fn terminator(&self) -> Option<Terminator> {
        self.terminator
    }
    /// A weight for every label, by name, 1 where none is given. Errors: NOT_FOUND for an unknown name; INVALID_ARGUMENT for
    /// a weight that is not a finite number of 0 or more.
    pub fn weights(&self, by_name: &BTreeMap<String, f32>) -> Result<Vec<f32>> {
        let mut weights = vec![1.0; self.len()];
        for (name, &weight) in by_name {
            if !(weight.is_finite() && weight >= 0.0) {
                return Err(Error::invalid(format!("the weight of label `{name}` is {weight}, must be 0 or more")));
            }
            weights[self.index(name).map_err(|error| error.at("label weights"))?] = weight;
        }
        Ok(weights)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.names.len()
    }
    /// Never: there are at least two.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
    /// The number of the label `name`. Errors: NOT_FOUND, with the known ones.
    pub fn index(&self, name: &str) -> Result<usize> {
        self.names.iter().position(|known| known == name).ok_or_else(|| {
            // the name is not repeated: in a stranger's file it may be anything
            Error::not_found(format!("a label is not among the known ones: {}", self.names.join(", ")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::dialogues::Turn;

    fn labels(names: &[&str]) -> Result<Labels> {
        Labels::new(names.iter().map(|&name| name.into()).collect())
    }

    #[test]
    fn one_empty_or_equal_labels_are_refused() {
        for bad in [&["joy"][..], &[], &["joy", ""], &["", "joy"], &["joy", "joy"]] {
            assert!(labels(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn labels_of_dialogues_are_ordered_by_how_often_they_occur() {
        let turn = |emotion: &str| Turn { emotion: Some(emotion.into()), ..Turn::default() };
        let turns = ["b", "c", "a", "c"].map(turn).into_iter().chain([Turn::default()]).collect();
        let dialogue = Dialogue { id: "d".into(), turns };
        assert_eq!(Labels::of(&[dialogue]).unwrap().names(), ["c", "a", "b"]);
    }

    #[test]
    fn weights_are_by_name_and_one_by_default() {
        let weights = |name: &str, weight| Labels::meld().weights(&BTreeMap::from([(name.to_owned(), weight)]));
        assert_eq!(weights("joy", 2.5).unwrap(), [1.0, 2.5, 1.0, 1.0, 1.0, 1.0, 1.0]);
        assert!(weights("glee", 2.0).is_err() && weights("joy", f32::NAN).is_err() && weights("joy", -1.0).is_err());
    }

    #[test]
    fn a_file_keeps_order_words_and_terminator() {
        let labels = Labels::meld_as_in_the_paper().ended_by(Some(Terminator::Eos));
        let text = serde_json::to_string(&labels).unwrap();
        assert_eq!(serde_json::from_str::<Labels>(&text).unwrap(), labels);
        assert!(serde_json::from_str::<Labels>(r#"{"names":["a"]}"#).is_err());
    }
}
