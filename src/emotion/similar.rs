//! Which texts of many are most like another one, by the words they have in common: Okapi BM25 (Robertson et al. 1994),
//! with the weight ln(1 + (n - df + 0.5) / (df + 0.5)) of a word that df of n texts have.
//!
//! Words are runs of letters and digits, whatever their case. No model is asked, so looking up costs microseconds.

use std::collections::HashMap;

/// How soon a word that is said again counts no more, and how much long texts are held back.
const SATURATION: f64 = 1.2;
const LENGTH: f64 = 0.75;

/// Texts made ready to be looked up.
#[derive(Clone, Debug)]
pub struct Similar {
    /// For every word, the texts that have it and what it adds to their score.
    words: HashMap<String, Vec<(usize, f64)>>,
    texts: usize,
}

impl Similar {
    /// Of texts that are named by their number from here on.
    pub fn new<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let texts: Vec<Vec<String>> = texts.into_iter().map(|text| words(text).collect()).collect();
        let mean = texts.iter().map(Vec::len).sum::<usize>() as f64 / texts.len() as f64;
        let mut counts: HashMap<String, Vec<(usize, f64)>> = HashMap::new();
        for (number, word) in
            texts.iter().enumerate().flat_map(|(number, words)| words.iter().map(move |w| (number, w)))
        {
            let of_word = counts.entry(word.clone()).or_default();
            match of_word.last_mut() {
                Some((last, count)) if *last == number => *count += 1.0,
                _ => of_word.push((number, 1.0)),
            }
        }
        for of_word in counts.values_mut() {
            let having = of_word.len() as f64;
            let rarity = (1.0 + (texts.len() as f64 - having + 0.5) / (having + 0.5)).ln();
            for (number, count) in of_word {
                let length = 1.0 - LENGTH + LENGTH * texts[*number].len() as f64 / mean;
                *count *= rarity * (SATURATION + 1.0) / (*count + SATURATION * length);
            }
        }
        Self { words: counts, texts: texts.len() }
    }

    /// The `most` texts most like `text` of those that may be taken, the most like first; of equals the earlier one.
    pub fn to(&self, text: &str, most: usize, may: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut scores = vec![0.0; self.texts];
        for (number, score) in words(text).filter_map(|word| self.words.get(&word)).flatten() {
            scores[*number] += score;
        }
        let mut taken: Vec<usize> = (0..self.texts).filter(|&number| may(number)).collect();
        taken.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        taken.truncate(most);
        taken
    }
}

fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [&str; 4] = ["No way!", "no, no, not the dog", "The dog is fine.", ""];

    #[test]
    fn scores_are_those_of_the_formula() {
        let similar = Similar::new(TEXTS);
        // lengths 2, 5, 4, 0; `no` is in two of four texts: ln 2
        let score = |count: f64, len: f64| 2f64.ln() * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * len / 2.75));
        let of_no = &similar.words["no"];
        assert_eq!(of_no.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0, 1]);
        for (found, want) in of_no.iter().map(|(_, score)| score).zip([score(1.0, 2.0), score(2.0, 5.0)]) {
            assert!((found - want).abs() < 1e-12, "{found} {want}");
        }
    }

    #[test]
    fn what_shares_rare_words_comes_first_and_what_may_not_be_taken_is_not() {
        let similar = Similar::new(TEXTS);
        assert_eq!(similar.to("Is the DOG in?", 2, |_| true), [2, 1]);
        assert_eq!(similar.to("Is the DOG in?", 2, |number| number != 2), [1, 0]);
        assert_eq!(similar.to("nothing in common", 9, |_| true), [0, 1, 2, 3], "equals in order");
        assert!(similar.to("dog", 0, |_| true).is_empty() && Similar::new([]).to("dog", 3, |_| true).is_empty());
    }
}
