//! How far probabilities can be trusted: reliability, what answering less often gains, and whether two classifiers differ.
//!
//! Works on confidences and on what was right; knows no labels and no model.

use crate::{Error, Result};
use serde::Serialize;

/// An answer: the probability of the label that was given, and whether it was right.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    /// The probability of the likeliest label.
    pub confidence: f64,
    /// Whether that label is the true one.
    pub right: bool,
}

/// Answers of about the same confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bin {
    /// How many.
    pub turns: usize,
    /// Their mean confidence.
    pub confidence: f64,
    /// The part of them that is right.
    pub accuracy: f64,
}

/// Bins of as many answers each, the least confident first, the first ones larger by one where it does not divide
/// (Nguyen and O'Connor 2015, arXiv 1508.05154). Fewer bins where there are fewer answers; none for none.
pub fn reliability(answers: &[Answer], bins: usize) -> Vec<Bin> {
    let mut sorted = answers.to_vec();
    sorted.sort_by(|a, b| a.confidence.total_cmp(&b.confidence));
    let bins = bins.min(sorted.len());
    let mut rest = &sorted[..];
    let mut all = Vec::with_capacity(bins);
    for left in (1..=bins).rev() {
        let (bin, others) = rest.split_at(rest.len().div_ceil(left));
        let n = bin.len() as f64;
        let right = bin.iter().filter(|answer| answer.right).count();
        let confidence = bin.iter().map(|answer| answer.confidence).sum::<f64>() / n;
        all.push(Bin { turns: bin.len(), confidence, accuracy: right as f64 / n });
        rest = others;
    }
    all
}

/// Expected calibration error of such bins: the mean distance of accuracy from confidence, weighted by turns.
pub fn ece_of(bins: &[Bin]) -> f64 {
    let turns: usize = bins.iter().map(|bin| bin.turns).sum();
    let gaps = bins.iter().map(|bin| bin.turns as f64 * (bin.accuracy - bin.confidence).abs());
    gaps.sum::<f64>() / turns.max(1) as f64
}

/// What is wrong where only the most confident answers are given (El-Yaniv and Wiener 2010): for every number of answers
/// the part of all turns that is answered, and the part of those that is wrong. Equally confident answers are given
/// together, so that their order does not matter.
pub fn risk_coverage(answers: &[Answer]) -> Vec<(f64, f64)> {
    let mut sorted = answers.to_vec();
    sorted.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    let (mut points, mut given, mut wrong) = (Vec::new(), 0, 0);
    for some in sorted.chunk_by(|a, b| a.confidence == b.confidence) {
        given += some.len();
        wrong += some.iter().filter(|answer| !answer.right).count();
        points.push((given as f64 / sorted.len() as f64, wrong as f64 / given as f64));
    }
    points
}

/// The smallest part of wrong answers at which at least `coverage` of the turns are answered.
pub fn risk_at(points: &[(f64, f64)], coverage: f64) -> Option<f64> {
    points.iter().find(|(covered, _)| *covered >= coverage).map(|(_, risk)| *risk)
}

/// McNemar's exact test (McNemar 1947; two-sided, binomial).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct McNemar {
    /// Turns that only the first has right.
    pub only_first: usize,
    /// Turns that only the second has right.
    pub only_second: usize,
    /// How likely so uneven a split is if both are equally good.
    pub p: f64,
}

/// Whether answers `b` are right more often than answers `a` by more than chance. Turns count as independent, which those
/// of a dialogue are not quite: the bootstrap of dialogues is the stricter judge.
///
/// # Errors
/// INVALID_ARGUMENT where lengths differ.
pub fn mcnemar(gold: &[usize], [a, b]: [&[usize]; 2]) -> Result<McNemar> {
    if [a.len(), b.len()] != [gold.len(); 2] {
        let text = format!("{} labels, {} and {} answers: all must be as many", gold.len(), a.len(), b.len());
        return Err(Error::invalid(text));
    }
    let only = |x: &[usize], y: &[usize]| gold.iter().zip(x).zip(y).filter(|((g, x), y)| g == x && g != y).count();
    let (only_first, only_second) = (only(a, b), only(b, a));
    let n = only_first + only_second;
    // ln of C(n, k) / 2^n, from one k to the next
    let mut term = -(n as f64) * std::f64::consts::LN_2;
    let mut sum = 0.0;
    for k in 0..=only_first.min(only_second) {
        sum += term.exp();
        term += ((n - k) as f64).ln() - ((k + 1) as f64).ln();
    }
    Ok(McNemar { only_first, only_second, p: (2.0 * sum).min(1.0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(of: &[(f64, bool)]) -> Vec<Answer> {
        of.iter().map(|&(confidence, right)| Answer { confidence, right }).collect()
    }

    fn near(got: f64, want: f64) -> bool {
        (got - want).abs() <= 1e-12
    }

    #[test]
    fn bins_hold_as_many_answers_each_in_the_order_of_confidence() {
        let all = answers(&[(0.9, true), (0.2, false), (0.5, true), (0.8, true), (0.6, false)]);
        let bins = reliability(&all, 2);
        assert_eq!(bins.iter().map(|bin| bin.turns).collect::<Vec<_>>(), [3, 2]);
        assert!(near(bins[0].confidence, 1.3 / 3.0) && near(bins[0].accuracy, 1.0 / 3.0), "{bins:?}");
        assert!(near(bins[1].confidence, 0.85) && near(bins[1].accuracy, 1.0), "{bins:?}");
        assert!(near(ece_of(&bins), (3.0 * 0.1 + 2.0 * 0.15) / 5.0));
        assert_eq!(reliability(&all, 99).len(), 5);
        assert!(reliability(&[], 15).is_empty() && ece_of(&[]) == 0.0);
    }

    #[test]
    fn answers_that_are_as_often_right_as_they_say_have_no_error_and_the_overconfident_have_all() {
        let sure = answers(&[(1.0, true); 30]);
        assert_eq!(ece_of(&reliability(&sure, 15)), 0.0);
        let wrong = answers(&[(1.0, false); 30]);
        assert_eq!(ece_of(&reliability(&wrong, 15)), 1.0);
    }

    #[test]
    fn the_most_confident_are_answered_first_and_equals_together() {
        let all = answers(&[(0.5, false), (0.9, true), (0.5, true), (0.7, false)]);
        assert_eq!(risk_coverage(&all), [(0.25, 0.0), (0.5, 0.5), (1.0, 0.5)]);
        assert_eq!((risk_at(&risk_coverage(&all), 0.3), risk_at(&[], 0.5)), (Some(0.5), None));
    }

    // by scipy.stats.binomtest(min, n, 0.5).pvalue
    #[test]
    fn mcnemars_test_is_the_binomial_one() {
        let of = |first: usize, second: usize| {
            let gold = vec![0; first + second + 3];
            let a: Vec<usize> = (0..gold.len()).map(|i| usize::from((first..first + second).contains(&i))).collect();
            let b: Vec<usize> = (0..gold.len()).map(|i| usize::from(i < first)).collect();
            let result = mcnemar(&gold, [&a, &b]).unwrap();
            assert_eq!((result.only_first, result.only_second), (first, second));
            result.p
        };
        assert!((of(5, 15) - 0.04138946533203125).abs() <= 1e-12, "{}", of(5, 15));
        assert!((of(0, 4) - 0.125).abs() <= 1e-12);
        assert!((of(700, 780) - 0.03998735767554793).abs() <= 1e-11, "{}", of(700, 780));
        assert_eq!((of(0, 0), of(3, 3)), (1.0, 1.0));
        assert!(mcnemar(&[0], [&[0], &[]]).is_err());
    }
}
