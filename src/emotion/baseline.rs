//! A bag of words: what can be had without a language model, and the bar that one has to clear.
//!
//! Multinomial naive Bayes on the words of the turn alone, with one added to every count (McCallum and Nigam 1998).
//! Knows dialogues and label names; no context, no speakers, no model.

use super::Labels;
use super::classifier::Scored;
use super::metrics::Report;
use crate::files::dialogues::Dialogue;
use crate::{Error, Result};
use std::collections::HashMap;

/// The figures on labelled turns of a bag of words that learned from others. Errors: as [`BagOfWords::fit`]; NOT_FOUND for a
/// label that is not among `labels`.
pub fn report(learned: &[Dialogue], judged: &[Dialogue], labels: &Labels) -> Result<Report> {
    let bag = BagOfWords::fit(learned, labels.names())?;
    let scores = |dialogue: &Dialogue| dialogue.turns.iter().map(|turn| bag.scores(&turn.text)).collect();
    let scored = Scored { scores: judged.iter().map(scores).collect(), ..Scored::default() };
    let marked = scored.marked(judged, labels)?;
    Report::new(labels.names(), &marked.scores, &marked.gold, 1.0)
}

/// A fitted bag of words.
pub struct BagOfWords {
    /// ln p(label)
    priors: Vec<f64>,
    /// word -> ln p(word | label) of every label
    words: HashMap<String, Vec<f64>>,
}

impl BagOfWords {
    /// Counts the words of every labelled turn; `labels` gives the order of the scores.
    ///
    /// # Errors
    /// INVALID_ARGUMENT where a label never occurs: nothing could be said about it.
    pub fn fit(dialogues: &[Dialogue], labels: &[String]) -> Result<Self> {
        let mut turns = vec![0usize; labels.len()];
        let mut counts: HashMap<String, Vec<usize>> = HashMap::new();
        for turn in dialogues.iter().flat_map(|dialogue| &dialogue.turns) {
            let Some(label) = labels.iter().position(|label| turn.emotion.as_ref() == Some(label)) else { continue };
            turns[label] += 1;
            for word in words(&turn.text) {
                counts.entry(word).or_insert_with(|| vec![0; labels.len()])[label] += 1;
            }
        }
        if let Some(label) = turns.iter().position(|&turns| turns == 0) {
            return Err(Error::invalid(format!(
                "no turn has the label `{}`; the baseline needs one of each",
                labels[label]
            )));
        }
        Ok(Self::of_counts(&turns, counts))
    }

    fn of_counts(turns: &[usize], counts: HashMap<String, Vec<usize>>) -> Self {
        let total: usize = turns.iter().sum();
        // words of a label, with one more for every known word
        let sizes: Vec<usize> =
            (0..turns.len()).map(|label| counts.values().map(|count| count[label] + 1).sum()).collect();
        let log = |count: &Vec<usize>| {
            count.iter().zip(&sizes).map(|(&count, &size)| ((count + 1) as f64 / size as f64).ln()).collect()
        };
        Self {
            priors: turns.iter().map(|&turns| (turns as f64 / total as f64).ln()).collect(),
            words: counts.iter().map(|(word, count)| (word.clone(), log(count))).collect(),
        }
    }

    /// ln p(label) + sum over the text's words of ln p(word | label), for every label. Unknown words say nothing.
    pub fn scores(&self, text: &str) -> Vec<f32> {
        let mut scores = self.priors.clone();
        for logs in words(text).filter_map(|word| self.words.get(&word)) {
            for (score, log) in scores.iter_mut().zip(logs) {
                *score += log;
            }
        }
        scores.into_iter().map(|score| score as f32).collect()
    }
}

/// Runs of letters, digits and apostrophes in lower case; a typographic apostrophe counts as a plain one.
fn words(text: &str) -> impl Iterator<Item = String> {
    let text = text.to_lowercase().replace('\u{2019}', "'");
    let words: Vec<String> = text
        .split(|c: char| !c.is_alphanumeric() && c != '\'')
        .filter(|word| !word.is_empty())
        .map(String::from)
        .collect();
    words.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emotion::metrics::softmax;
    use crate::files::dialogues::Turn;

    fn fit(turns: &[(&str, &str)], labels: &[&str]) -> Result<BagOfWords> {
        let turn = |&(text, emotion): &(&str, &str)| Turn {
            text: text.into(),
            emotion: Some(emotion.into()),
            ..Turn::default()
        };
        let dialogue = Dialogue { id: "d".into(), turns: turns.iter().map(turn).collect() };
        BagOfWords::fit(&[dialogue], &labels.iter().map(|&label| label.into()).collect::<Vec<_>>())
    }

    const TURNS: [(&str, &str); 5] = [
        ("so happy happy today", "joy"),
        ("what a lovely day", "joy"),
        ("I am so angry", "anger"),
        ("don\u{2019}t shout at me today", "anger"),
        ("the bus is late", "neutral"),
    ];

    #[test]
    fn probabilities_are_scikit_learns() {
        // MultinomialNB on CountVectorizer(token_pattern=r"[\w']+") of scikit-learn 1.9.1, predict_log_proba
        let want = [-0.6410007671475473, -1.1974271871871007, -1.7645438977229393];
        let bag = fit(&TURNS, &["joy", "anger", "neutral"]).unwrap();
        let got = softmax(&bag.scores("Happy bus, so don't! zebra"), 1.0);
        for (got, want) in got.iter().zip(want) {
            assert!((got.ln() - want).abs() <= 1e-6, "{} against {want}", got.ln());
        }
    }

    #[test]
    fn a_label_without_turns_is_named() {
        assert!(fit(&TURNS, &["joy", "fear"]).is_err_and(|error| error.text().contains("`fear`")));
    }
}
