//! How good a classifier is: accuracy, F1, calibration, and whether a difference between two could be chance.
//!
//! Works on label numbers and label scores alone; knows no model and no text. Definitions are scikit-learn's where it
//! has one, so that figures can be put beside published ones.

use crate::{Code, Error, Result};
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use std::ops::Range;

/// Precision, recall and F1 of one label; 0 where a denominator is 0.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LabelReport {
    /// The label's name.
    #[serde(skip)]
    pub name: String,
    /// Of the turns given this label, the part that has it.
    pub precision: f64,
    /// Of the turns that have this label, the part that was given it.
    pub recall: f64,
    /// Harmonic mean of the two.
    pub f1: f64,
    /// Turns that have this label.
    pub support: usize,
}

/// All figures of one evaluation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Turns with a known label.
    pub n: usize,
    /// Part of the turns whose likeliest label is right.
    pub accuracy: f64,
    /// Mean of the labels' F1, weighted by support.
    pub weighted_f1: f64,
    /// Plain mean of the F1 of the labels that occur, as truth or as answer.
    pub macro_f1: f64,
    /// Figures of every label.
    #[serde(serialize_with = "by_name")]
    pub per_label: Vec<LabelReport>,
    /// `confusion[truth][answer]`, in turns.
    pub confusion: Vec<Vec<usize>>,
    /// Mean of -ln p(truth).
    pub nll: f64,
    /// Expected calibration error over 15 bins.
    pub ece: f64,
}

fn by_name<S: Serializer>(labels: &[LabelReport], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(labels.len()))?;
    for label in labels {
        map.serialize_entry(&label.name, label)?;
    }
    map.end()
}

impl Report {
    /// Figures of label scores `[n][labels]` (log-probabilities up to a constant a turn) divided by `temperature`,
    /// against the true labels `gold`.
    ///
    /// # Errors
    /// INVALID_ARGUMENT where lengths or label numbers disagree or there is nothing to score, NUMERIC for a score that
    /// is not finite.
    pub fn new(names: &[String], scores: &[Vec<f32>], gold: &[usize], temperature: f64) -> Result<Self> {
        check(names.len(), scores, gold)?;
        let probabilities: Vec<Vec<f64>> = scores.iter().map(|scores| softmax(scores, temperature)).collect();
        let answers: Vec<usize> = scores.iter().map(|scores| likeliest(scores)).collect();
        let confusion = confusion(names.len(), gold, &answers);
        Ok(Self {
            n: gold.len(),
            accuracy: accuracy(&confusion),
            weighted_f1: weighted_f1(&confusion),
            macro_f1: macro_f1(&confusion),
            per_label: per_label(names, &confusion),
            nll: nll(scores, gold, temperature),
            ece: ece(&probabilities, gold),
            confusion,
        })
    }
}

/// Figures of answers that have no probabilities, some of which name no label and are wrong.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AnswerReport {
    /// Turns with a known label.
    pub n: usize,
    /// Answers that name no label.
    pub unmatched: usize,
    /// Part of the turns whose answer is right.
    pub accuracy: f64,
    /// As [`Report::weighted_f1`].
    pub weighted_f1: f64,
    /// As [`Report::macro_f1`].
    pub macro_f1: f64,
    /// Figures of every label.
    #[serde(serialize_with = "by_name")]
    pub per_label: Vec<LabelReport>,
    /// `confusion[truth][answer]`, in turns; the last column are answers that name no label.
    pub confusion: Vec<Vec<usize>>,
}

impl AnswerReport {
    /// Figures of `answers` against the true labels `gold`.
    ///
    /// # Errors
    /// INVALID_ARGUMENT where lengths or label numbers disagree or there is nothing to judge.
    pub fn new(names: &[String], answers: &[Option<usize>], gold: &[usize]) -> Result<Self> {
        let labels = names.len();
        let known = gold.iter().chain(answers.iter().flatten()).all(|&label| label < labels);
        if gold.is_empty() || answers.len() != gold.len() || !known {
            let text = format!("{} answers and {} labels must be as many, above 0", answers.len(), gold.len());
            return Err(Error::invalid(format!("{text}, and below {labels} each")));
        }
        let mut confusion = vec![vec![0; labels + 1]; labels];
        for (&truth, answer) in gold.iter().zip(answers) {
            confusion[truth][answer.unwrap_or(labels)] += 1;
        }
        Ok(Self {
            n: gold.len(),
            unmatched: answers.iter().filter(|answer| answer.is_none()).count(),
            accuracy: accuracy(&confusion),
            weighted_f1: weighted_f1(&confusion),
            macro_f1: macro_f1(&confusion),
            per_label: per_label(names, &confusion),
            confusion,
        })
    }
}

/// What [`Report::new`] refuses.
pub(super) fn check(labels: usize, scores: &[Vec<f32>], gold: &[usize]) -> Result<()> {
    if gold.is_empty() || scores.len() != gold.len() {
        let text = format!(
            "{} turns were scored and {} have a label; both must be equal and above 0",
            scores.len(),
            gold.len()
        );
        return Err(Error::invalid(text));
    }
    if let Some(turn) = (0..gold.len()).find(|&turn| scores[turn].len() != labels || gold[turn] >= labels) {
        let text = format!(
            "turn {turn} has {} scores and label {}; there are {labels} labels",
            scores[turn].len(),
            gold[turn]
        );
        return Err(Error::invalid(text));
    }
    if let Some(turn) = scores.iter().position(|scores| !scores.iter().all(|score| score.is_finite())) {
        return Err(Error::new(Code::Numeric, format!("a label score of turn {turn} is NaN or infinite")));
    }
    Ok(())
}

/// The number of the largest score; the first of equals.
pub fn likeliest(scores: &[f32]) -> usize {
    (0..scores.len()).fold(0, |best, label| if scores[label] > scores[best] { label } else { best })
}

/// exp(score / temperature), made to sum to 1.
pub fn softmax<S: Copy + Into<f64>>(scores: &[S], temperature: f64) -> Vec<f64> {
    let total = log_sum(scores, temperature);
    scores.iter().map(|&score| (score.into() / temperature - total).exp()).collect()
}

/// ln of the sum of exp(score / temperature).
fn log_sum<S: Copy + Into<f64>>(scores: &[S], temperature: f64) -> f64 {
    let scaled = || scores.iter().map(|&score| score.into() / temperature);
    let largest = scaled().fold(f64::NEG_INFINITY, f64::max);
    largest + scaled().map(|score| (score - largest).exp()).sum::<f64>().ln()
}

/// `[truth][answer]`: how many turns.
pub fn confusion(labels: usize, gold: &[usize], answers: &[usize]) -> Vec<Vec<usize>> {
    let mut counts = vec![vec![0; labels]; labels];
    for (&truth, &answer) in gold.iter().zip(answers) {
        counts[truth][answer] += 1;
    }
    counts
}

fn support(confusion: &[Vec<usize>], label: usize) -> usize {
    confusion[label].iter().sum()
}

fn answered(confusion: &[Vec<usize>], label: usize) -> usize {
    confusion.iter().map(|row| row[label]).sum()
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// 2 tp / (support + answered): precision and recall's harmonic mean without their divisions.
fn f1(confusion: &[Vec<usize>], label: usize) -> f64 {
    ratio(2 * confusion[label][label], support(confusion, label) + answered(confusion, label))
}

fn accuracy(confusion: &[Vec<usize>]) -> f64 {
    let labels = 0..confusion.len();
    let right: usize = labels.clone().map(|label| confusion[label][label]).sum();
    ratio(right, labels.map(|label| support(confusion, label)).sum())
}

fn per_label(names: &[String], confusion: &[Vec<usize>]) -> Vec<LabelReport> {
    names.iter().enumerate().map(|(label, name)| label_report(name, confusion, label)).collect()
}

fn label_report(name: &str, confusion: &[Vec<usize>], label: usize) -> LabelReport {
    let (hits, support) = (confusion[label][label], support(confusion, label));
    let (precision, recall) = (ratio(hits, answered(confusion, label)), ratio(hits, support));
    LabelReport { name: name.to_owned(), precision, recall, f1: f1(confusion, label), support }
}

/// Mean of the labels' F1, weighted by support.
pub fn weighted_f1(confusion: &[Vec<usize>]) -> f64 {
    let labels = 0..confusion.len();
    let total: usize = labels.clone().map(|label| support(confusion, label)).sum();
    labels.map(|label| f1(confusion, label) * ratio(support(confusion, label), total)).sum()
}

/// Plain mean of the F1 of labels that occur as truth or as answer.
pub fn macro_f1(confusion: &[Vec<usize>]) -> f64 {
    let occurs = |&label: &usize| support(confusion, label) + answered(confusion, label) > 0;
    let scores: Vec<f64> = (0..confusion.len()).filter(occurs).map(|label| f1(confusion, label)).collect();
    scores.iter().sum::<f64>() / scores.len().max(1) as f64
}

/// Mean over turns of -ln p(truth); never infinite for finite scores.
pub fn nll(scores: &[Vec<f32>], gold: &[usize], temperature: f64) -> f64 {
    let loss =
        |(scores, &truth): (&Vec<f32>, &usize)| log_sum(scores, temperature) - f64::from(scores[truth]) / temperature;
    scores.iter().zip(gold).map(loss).sum::<f64>() / gold.len() as f64
}

/// Expected calibration error (Guo et al. 2017, arXiv 1706.04599, eq. 3): over 15 bins of equal width of the likeliest
/// label's probability, the mean distance of accuracy from confidence, weighted by the bin's turns.
pub fn ece(probabilities: &[Vec<f64>], gold: &[usize]) -> f64 {
    const BINS: usize = 15;
    let mut gaps = [0.0; BINS]; // of a bin: sum of (right - confidence)
    for (probabilities, &truth) in probabilities.iter().zip(gold) {
        let best =
            (0..probabilities.len()).fold(0, |best, k| if probabilities[k] > probabilities[best] { k } else { best });
        let confidence = probabilities[best];
        // a bin holds (low, high]
        let bin = ((confidence * BINS as f64).ceil() as usize).clamp(1, BINS) - 1;
        gaps[bin] += f64::from(u8::from(best == truth)) - confidence;
    }
    gaps.iter().map(|gap| gap.abs()).sum::<f64>() / gold.len() as f64
}

/// The temperatures among which [`fit_temperature`] looks: a fit on few turns that are all right would want 0.
pub const TEMPERATURES: Range<f64> = 0.05..20.0;

/// The temperature that makes the NLL of `gold` least (Guo et al. 2017, section 4.2), found on the dev split.
///
/// The NLL is convex in 1 / temperature, with slope mean(expected score - score of the truth): halving an interval
/// around the slope's zero finds it.
///
/// # Errors
/// As [`Report::new`].
pub fn fit_temperature(scores: &[Vec<f32>], gold: &[usize]) -> Result<f64> {
    check(scores.first().map_or(0, Vec::len), scores, gold)?;
    let (mut low, mut high) = (1.0 / TEMPERATURES.end, 1.0 / TEMPERATURES.start);
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if slope(scores, gold, middle) < 0.0 {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(1.0 / (0.5 * (low + high)))
}

/// d NLL / d (1 / temperature), times the number of turns.
fn slope(scores: &[Vec<f32>], gold: &[usize], inverse: f64) -> f64 {
    let of_turn = |(scores, &truth): (&Vec<f32>, &usize)| {
        let expected = softmax(scores, 1.0 / inverse).into_iter().zip(scores).map(|(p, &score)| p * f64::from(score));
        expected.sum::<f64>() - f64::from(scores[truth])
    };
    scores.iter().zip(gold).map(of_turn).sum()
}

/// What resampling says about a difference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bootstrap {
    /// Weighted F1 of the second minus that of the first, on the turns as they are.
    pub difference: f64,
    /// Its 2.5 % quantile over the resamples.
    pub low: f64,
    /// Its 97.5 % quantile.
    pub high: f64,
    /// Part of the resamples in which the second is not better.
    pub not_better: f64,
}

/// Paired bootstrap of the weighted F1 of answers `b` against answers `a` (Berg-Kirkpatrick et al. 2012).
///
/// `units` are the runs of turns that are drawn together: dialogues, as turns of one dialogue are not independent, or
/// single turns, as most papers do.
pub fn paired_bootstrap(
    labels: usize,
    gold: &[usize],
    [a, b]: [&[usize]; 2],
    units: &[Range<usize>],
    resamples: usize,
    seed: u64,
) -> Result<Bootstrap> {
    let lengths = [gold.len(), a.len(), b.len()];
    let inside = units.iter().all(|unit| unit.start <= unit.end && unit.end <= gold.len());
    if gold.is_empty() || units.is_empty() || resamples == 0 || lengths != [gold.len(); 3] || !inside {
        let text = format!("bootstrap: {lengths:?} labels and answers, {} units, {resamples} resamples", units.len());
        return Err(Error::invalid(text + "; lengths must agree, units lie inside, and nothing be 0"));
    }
    if let Some(label) = [gold, a, b].concat().into_iter().find(|&label| label >= labels) {
        return Err(Error::invalid(format!("bootstrap: label {label}, there are {labels}")));
    }
    let difference = |units: &mut dyn Iterator<Item = &Range<usize>>| {
        let mut counts = [vec![vec![0; labels]; labels], vec![vec![0; labels]; labels]];
        for turn in units.flat_map(Clone::clone) {
            counts[0][gold[turn]][a[turn]] += 1;
            counts[1][gold[turn]][b[turn]] += 1;
        }
        weighted_f1(&counts[1]) - weighted_f1(&counts[0])
    };
    let draws = units.len() as u64;
    let resample = |r: u64| difference(&mut (0..draws).map(|i| &units[below(hash(seed, r * draws + i), units.len())]));
    let mut differences: Vec<f64> = (0..resamples as u64).map(resample).collect();
    differences.sort_by(f64::total_cmp);
    let quantile = |q: f64| differences[((resamples - 1) as f64 * q).round() as usize];
    let not_better = differences.partition_point(|&difference| difference <= 0.0) as f64 / resamples as f64;
    let (low, high) = (quantile(0.025), quantile(0.975));
    Ok(Bootstrap { difference: difference(&mut units.iter()), low, high, not_better })
}

/// A random number of `counter`: the output function of SplitMix64 (Steele, Lea, Flood 2014).
fn hash(seed: u64, counter: u64) -> u64 {
    let mut z = seed.wrapping_add(counter.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `random` scaled to `0..n`.
fn below(random: u64, n: usize) -> usize {
    ((u128::from(random) * n as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: usize = 60;
    const LABELS: usize = 5;

    fn gold() -> Vec<usize> {
        (0..N).map(|i| if i % 7 != 0 { (i * i + 3 * i) % LABELS } else { 4 }).collect()
    }

    fn answers() -> Vec<usize> {
        gold().iter().enumerate().map(|(i, &truth)| if i % 3 == 0 { truth } else { (i * 7 + 1) % LABELS }).collect()
    }

    fn scores() -> Vec<Vec<f32>> {
        let score = |i: usize, k: usize, truth: usize| {
            (3.0 * ((5 * i + k) as f64).sin()) as f32 + if k == truth { 1.5 } else { 0.0 }
        };
        gold().iter().enumerate().map(|(i, &truth)| (0..LABELS).map(|k| score(i, k, truth)).collect()).collect()
    }

    fn names() -> Vec<String> {
        (0..LABELS).map(|label| format!("l{label}")).collect()
    }

    fn near(got: f64, want: f64) -> bool {
        (got - want).abs() <= 1e-9 * want.abs().max(1.0)
    }

    // The figures are those of scikit-learn 1.9.1 on the arrays above: f1_score, precision_recall_fscore_support
    // (zero_division = 0), confusion_matrix, log_loss; the temperature is scipy's minimize_scalar(bounded) on log_loss
    // over 1/T; the calibration error is numpy's, bin by bin.

    #[test]
    fn answers_without_a_label_are_wrong_and_count_for_the_truth_alone() {
        let some: Vec<Option<usize>> = answers().into_iter().map(Some).collect();
        let all = AnswerReport::new(&names(), &some, &gold()).unwrap();
        assert!(near(all.weighted_f1, 0.5597886656710186) && near(all.macro_f1, 0.33639735992677167));
        assert_eq!(all.unmatched, 0);
        let report = AnswerReport::new(&names()[..2], &[Some(0), None, Some(1), None], &[0, 0, 1, 1]).unwrap();
        assert_eq!((report.n, report.unmatched, report.accuracy), (4, 2, 0.5));
        assert_eq!(report.confusion, [[1, 0, 1], [0, 1, 1]]);
        assert!(near(report.weighted_f1, 2.0 / 3.0) && near(report.macro_f1, 2.0 / 3.0), "precision 1, recall 1/2");
        for (answers, gold) in [(vec![Some(2)], vec![0]), (vec![None], vec![2]), (vec![None], vec![]), (vec![], vec![])]
        {
            assert!(AnswerReport::new(&names()[..2], &answers, &gold).is_err(), "{answers:?} {gold:?}");
        }
    }

    #[test]
    fn f1_and_confusion_are_scikit_learns() {
        let counts = confusion(LABELS, &gold(), &answers());
        assert_eq!(counts, [[13, 7, 0, 0, 0], [0; 5], [0; 5], [0, 0, 7, 8, 6], [1, 1, 1, 8, 8]]);
        assert!(near(weighted_f1(&counts), 0.5597886656710186));
        assert!(near(macro_f1(&counts), 0.33639735992677167));
    }

    #[test]
    fn a_labels_figures_are_scikit_learns() {
        let counts = confusion(LABELS, &gold(), &answers());
        let report = label_report("x", &counts, 3);
        assert!(near(report.precision, 0.5) && near(report.recall, 0.38095238095238093));
        assert!(near(report.f1, 0.43243243243243246) && report.support == 21);
        assert_eq!(label_report("x", &counts, 1).precision, 0.0);
    }

    #[test]
    fn a_label_that_never_occurs_does_not_lower_macro_f1() {
        assert_eq!(macro_f1(&confusion(3, &[0, 1], &[0, 1])), 1.0);
    }

    #[test]
    fn nll_and_calibration_error_are_as_computed_elsewhere() {
        let report = Report::new(&names(), &scores(), &gold(), 1.0).unwrap();
        assert!((report.nll - 2.418867853256038).abs() <= 1e-6, "{}", report.nll);
        assert!((report.ece - 0.38856476999625905).abs() <= 1e-6, "{}", report.ece);
        assert!(near(report.accuracy, 0.3));
    }

    #[test]
    fn the_fitted_temperature_is_the_minimum_of_the_nll() {
        let temperature = fit_temperature(&scores(), &gold()).unwrap();
        assert!((temperature - 5.628941903481741).abs() <= 1e-5, "{temperature}");
        assert!((nll(&scores(), &gold(), temperature) - 1.5436056261792463).abs() <= 1e-7);
    }

    #[test]
    fn a_fit_on_turns_that_are_all_right_stops_at_the_bound() {
        let temperature = fit_temperature(&[vec![1.0, 0.0], vec![0.0, 1.0]], &[0, 1]).unwrap();
        assert!(near(temperature, TEMPERATURES.start));
    }

    #[test]
    fn temperature_does_not_change_the_answers() {
        let accuracy = |temperature| Report::new(&names(), &scores(), &gold(), temperature).unwrap().accuracy;
        assert_eq!(accuracy(1.0), accuracy(7.0));
    }

    #[test]
    fn a_perfect_classifier_has_no_calibration_error() {
        assert_eq!(ece(&[vec![1.0, 0.0], vec![0.0, 1.0]], &[0, 1]), 0.0);
    }

    #[test]
    fn bad_scores_are_refused() {
        let code =
            |scores: &[Vec<f32>], gold: &[usize]| Report::new(&names()[..2], scores, gold, 1.0).unwrap_err().code();
        assert_eq!(code(&[vec![0.0, f32::NAN]], &[0]), Code::Numeric);
        assert_eq!(code(&[vec![0.0]], &[0]), Code::InvalidArgument);
        assert_eq!(code(&[vec![0.0, 1.0]], &[2]), Code::InvalidArgument);
        assert_eq!(code(&[], &[]), Code::InvalidArgument);
    }

    #[test]
    fn the_report_is_json_with_labels_by_name_in_order() {
        let report = Report::new(&["b".into(), "a".into()], &[vec![1.0, 0.0]], &[0], 1.0).unwrap();
        let text = serde_json::to_string(&report).unwrap();
        assert!(
            text.contains(r#""per_label":{"b":{"precision":1.0,"recall":1.0,"f1":1.0,"support":1},"a":{"#),
            "{text}"
        );
    }

    #[test]
    fn equal_answers_differ_by_nothing_in_every_resample() {
        let units: Vec<Range<usize>> = (0..N).map(|i| i..i + 1).collect();
        let result = paired_bootstrap(LABELS, &gold(), [&answers(), &answers()], &units, 100, 1).unwrap();
        assert_eq!(result, Bootstrap { difference: 0.0, low: 0.0, high: 0.0, not_better: 1.0 });
    }

    #[test]
    fn a_better_classifier_is_better_in_every_resample_of_dialogues() {
        let units: Vec<Range<usize>> = (0..N / 5).map(|i| 5 * i..5 * i + 5).collect();
        let result = paired_bootstrap(LABELS, &gold(), [&answers(), &gold()], &units, 500, 1).unwrap();
        assert!(near(result.difference, 1.0 - 0.5597886656710186) && result.not_better == 0.0);
        assert!(0.0 < result.low && result.low < result.difference && result.difference < result.high);
    }
}
