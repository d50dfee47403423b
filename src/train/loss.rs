//! From log-probabilities to a loss and its derivative.
//!
//! Answer, Sequence   L = - sum_t w_t log p_t / W        t: target tokens, W: sum of w_t over the whole optimiser step
//! Choice             L = - sum_q w_q log P_q(gold) / Q  P_q: softmax over the candidates' scores, Q: questions;
//!                                                       a score is the sum of log p_t and the candidate's bias
//!   with smoothing e      - sum_c (e / n + (1 - e) [c = gold]) log P_q(c)   (Szegedy et al. 2016, arXiv 1512.00567, section 7)
//!   or focal g            - (1 - P_q(gold))^g log P_q(gold)                 (Lin et al. 2017, arXiv 1708.02002, eq. 4)
//!
//! With all weights 1 the first is transformers' loss: a mean over the target tokens of the whole accumulated batch
//! (`num_items_in_batch`), not a mean of micro-batch means. Sums run in f64 in the order of the targets.

use super::data::{Group, Prompt};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// What a prompt teaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// Cross-entropy of the answer's tokens.
    #[default]
    Answer,
    /// Cross-entropy of every token but the first, whatever the answer's range says.
    Sequence,
    /// Cross-entropy of the right candidate among all candidates of its question.
    Choice,
}

impl Loss {
    /// The positions of a prompt whose log-probabilities are asked for. Empty: the prompt need not be computed.
    pub(crate) fn positions(self, prompt: &Prompt) -> Range<usize> {
        match self {
            Loss::Answer | Loss::Sequence if prompt.weight == 0.0 => 1..1,
            Loss::Answer | Loss::Choice => prompt.answer.clone(),
            Loss::Sequence => 1..prompt.ids.len().max(1),
        }
    }

    /// What the loss of a step over `groups` is divided by; 0 where they carry no loss.
    pub(crate) fn total<'a>(self, groups: impl IntoIterator<Item = &'a Group>) -> f64 {
        let of_group = |group: &Group| match self {
            Loss::Choice => questions(group).len() as f64,
            _ => group.prompts.iter().map(|p| f64::from(p.weight) * self.positions(p).len() as f64).sum(),
        };
        groups.into_iter().map(of_group).sum()
    }

    /// Whether `groups` (already checked on their own) suit this loss.
    ///
    /// # Errors
    /// InvalidArgument: no position carries loss; a prompt without a question; a question without exactly one gold
    /// candidate, with fewer than two candidates, or with an empty one.
    pub(crate) fn check(self, groups: &[Group]) -> Result<()> {
        if self == Loss::Choice {
            for (g, group) in groups.iter().enumerate() {
                check_questions(group).map_err(|e| e.at(format!("group {g} (sample {})", group.sample)))?;
            }
        }
        if self.total(groups) > 0.0 {
            return Ok(());
        }
        Err(Error::invalid("no position of any prompt carries loss: all answers are empty or weigh 0"))
    }
}

/// The prompts of each question, by question number.
pub(crate) fn questions(group: &Group) -> BTreeMap<u32, Vec<usize>> {
    let mut questions = BTreeMap::<u32, Vec<usize>>::new();
    for (p, prompt) in group.prompts.iter().enumerate() {
        if let Some(choice) = prompt.choice {
            questions.entry(choice.question).or_default().push(p);
        }
    }
    questions
}

fn check_questions(group: &Group) -> Result<()> {
    if let Some(p) = group.prompts.iter().position(|prompt| prompt.choice.is_none()) {
        return Err(Error::invalid(format!("prompt {p} belongs to no question, which the choice loss needs")));
    }
    for (question, candidates) in questions(group) {
        let n = candidates.len();
        let gold = candidates.iter().filter(|&&p| group.prompts[p].choice.is_some_and(|c| c.gold)).count();
        if n < 2 || gold != 1 {
            return Err(Error::invalid(format!(
                "question {question} has {n} candidates, {gold} of them right; it needs two or more, exactly one right"
            )));
        }
        if let Some(p) = candidates.iter().find(|&&p| group.prompts[p].answer.is_empty()) {
            return Err(Error::invalid(format!("question {question}: candidate prompt {p} has an empty answer")));
        }
    }
    Ok(())
}

/// What the choice loss does beyond a cross-entropy: one of the two at most.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Shape {
    /// e: the part of the truth that is shared out among all candidates.
    pub smoothing: f64,
    /// g: how much less a question counts that is answered well already.
    pub focal: f64,
}

/// One question of a micro-batch, in terms of its target list.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Question {
    /// For every candidate, the targets whose log-probabilities add up to its own.
    pub candidates: Vec<Vec<usize>>,
    /// What is added to every candidate's score.
    pub bias: Vec<f64>,
    /// The right candidate.
    pub gold: usize,
    /// w_q: the gold prompt's weight.
    pub weight: f64,
}

/// The loss of a micro-batch as a function of its targets' log-probabilities.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Objective {
    /// w_t of every target; equal (row, token) targets are one target with their weights added.
    Tokens(Vec<f64>),
    /// Questions over the targets.
    Choices(Vec<Question>, Shape),
}

impl Objective {
    /// The loss over `total`, and its derivative with respect to every log-probability.
    pub(crate) fn value(&self, log_probs: &[f32], total: f64) -> (f64, Vec<f32>) {
        let log_p: Vec<f64> = log_probs.iter().map(|&p| f64::from(p)).collect();
        let mut slope = vec![0.0; log_p.len()];
        let sum = match self {
            Objective::Tokens(weights) => tokens(weights, &log_p, &mut slope),
            Objective::Choices(questions, shape) => {
                questions.iter().map(|q| choice(q, *shape, &log_p, &mut slope)).sum()
            }
        };
        (sum / total, slope.iter().map(|s| (s / total) as f32).collect())
    }
}

fn tokens(weights: &[f64], log_p: &[f64], slope: &mut [f64]) -> f64 {
    slope.iter_mut().zip(weights).for_each(|(slope, w)| *slope = -w);
    weights.iter().zip(log_p).map(|(w, p)| -w * p).sum()
}

/// With p = softmax(s) and q the smoothed truth, L = -w sum_c q_c log p_c and dL/ds_c = w (p_c - q_c). Focal: with P = p_gold,
/// L = -w (1 - P)^g log P and dL/ds_c = w (g P (1 - P)^(g - 1) log P - (1 - P)^g) ([c = gold] - p_c). Every token of a
/// candidate takes its slope.
fn choice(question: &Question, shape: Shape, log_p: &[f64], slope: &mut [f64]) -> f64 {
    let score = |(targets, bias): (&Vec<usize>, &f64)| targets.iter().map(|&t| log_p[t]).sum::<f64>() + bias;
    let scores: Vec<f64> = question.candidates.iter().zip(&question.bias).map(score).collect();
    let lse = log_sum_exp(&scores);
    let Shape { smoothing, focal } = shape;
    let share = smoothing / scores.len() as f64;
    let truth = |c: usize| share + if c == question.gold { 1.0 - smoothing } else { 0.0 };
    let gold = scores[question.gold] - lse;
    let missing = (-gold.exp_m1()).max(0.0); // 1 - P without cancellation
    // how much the focal loss turns the slope of a cross-entropy down; without it exactly 1
    let turned = match focal {
        0.0 => 1.0,
        _ if missing == 0.0 => 0.0,
        _ => missing.powf(focal) - focal * gold.exp() * missing.powf(focal - 1.0) * gold,
    };
    for (c, targets) in question.candidates.iter().enumerate() {
        let d = question.weight * turned * ((scores[c] - lse).exp() - truth(c));
        targets.iter().for_each(|&t| slope[t] += d);
    }
    let entropy: f64 = scores.iter().enumerate().map(|(c, score)| truth(c) * (lse - score)).sum();
    question.weight * if focal == 0.0 { entropy } else { missing.powf(focal) * -gold }
}

fn log_sum_exp(x: &[f64]) -> f64 {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + x.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::super::data::Choice;
    use super::*;

    fn prompt(n: usize, answer: Range<usize>, weight: f32) -> Prompt {
        Prompt { ids: vec![1; n], answer, weight, choice: None }
    }

    fn candidate(question: u32, gold: bool) -> Prompt {
        Prompt { choice: Some(Choice { question, gold, bias: 0.0 }), ..prompt(4, 2..4, 1.0) }
    }

    fn group(prompts: Vec<Prompt>) -> Group {
        Group { sample: 0, stage: 0, prompts }
    }

    /// Central differences of `value` against its own derivative; f32 log-probabilities allow steps of 2^-10 exactly.
    fn check_slope(objective: &Objective, log_probs: &[f32]) {
        let h = 2f32.powi(-10);
        let (_, slope) = objective.value(log_probs, 3.0);
        for t in 0..log_probs.len() {
            let at = |d: f32| {
                let mut moved = log_probs.to_vec();
                moved[t] += d;
                objective.value(&moved, 3.0).0
            };
            let want = (at(h) - at(-h)) / f64::from(2.0 * h);
            let diff = (f64::from(slope[t]) - want).abs();
            assert!(diff <= 1e-5, "target {t}: slope {} but differences give {want}", slope[t]);
        }
    }

    #[test]
    fn the_token_loss_is_the_weighted_mean() {
        let (loss, slope) = Objective::Tokens(vec![1.0, 2.0]).value(&[-0.5, -0.25], 4.0);
        assert_eq!(loss, 0.25);
        assert_eq!(slope, [-0.25, -0.5]);
    }

    #[test]
    fn the_choice_loss_is_a_cross_entropy_over_summed_scores() {
        let question = Question { candidates: vec![vec![0, 1], vec![0, 2]], bias: vec![0.0; 2], gold: 1, weight: 1.0 };
        let (loss, _) = Objective::Choices(vec![question], Shape::default()).value(&[-3.0, -1.0, -2.0], 1.0);
        let want = (1.0 + 1f64.exp()).ln(); // scores -4 and -5
        assert!((loss - want).abs() <= 1e-12, "{loss} against {want}");
    }

    #[test]
    fn slopes_equal_finite_differences() {
        check_slope(&Objective::Tokens(vec![1.0, 0.5, 3.0]), &[-0.5, -1.0, -2.0]);
        for shape in SHAPES {
            let bias = vec![0.5, -1.0, 0.25];
            let first = Question { candidates: vec![vec![0, 1], vec![0, 2], vec![3]], bias, gold: 1, weight: 0.5 };
            let second = Question { candidates: vec![vec![4], vec![2, 4]], bias: vec![0.0; 2], gold: 0, weight: 2.0 };
            check_slope(&Objective::Choices(vec![first, second], shape), &[-0.5, -1.0, -2.0, -1.5, -0.25]);
        }
    }

    const SHAPES: [Shape; 4] = [
        Shape { smoothing: 0.0, focal: 0.0 },
        Shape { smoothing: 0.1, focal: 0.0 },
        Shape { smoothing: 0.0, focal: 2.0 },
        Shape { smoothing: 0.0, focal: 0.5 },
    ];

    #[test]
    fn smoothing_focal_and_bias_are_their_papers() {
        let value = |shape, bias: [f64; 2], log_p: [f32; 2]| {
            let question = Question { candidates: vec![vec![0], vec![1]], bias: bias.to_vec(), gold: 0, weight: 1.0 };
            Objective::Choices(vec![question], shape).value(&log_p, 1.0)
        };
        let p = 0.8f64;
        let log_p = [p.ln() as f32, (1.0 - p).ln() as f32];
        let near = |got: f64, want: f64| assert!((got - want).abs() <= 1e-6, "{got} against {want}");
        near(value(SHAPES[1], [0.0; 2], log_p).0, -(0.95 * p.ln() + 0.05 * (1.0 - p).ln()));
        near(value(SHAPES[2], [0.0; 2], log_p).0, -0.04 * p.ln());
        // ln of priors 0.9 and 0.1: what is rare must be answered by a wider margin
        let prior = [0.9f64.ln(), 0.1f64.ln()];
        near(value(SHAPES[0], prior, log_p).0, -(0.8 * 0.9f64 / (0.8 * 0.9 + 0.2 * 0.1)).ln());
        // an answer that is certain has no focal loss and no slope, and nothing is NaN
        let (loss, slope) = value(SHAPES[3], [0.0; 2], [0.0, -200.0]);
        assert_eq!((loss, slope), (0.0, vec![0.0; 2]));
    }

    #[test]
    fn a_token_shared_by_all_candidates_gets_no_slope() {
        let question = Question { candidates: vec![vec![0, 1], vec![0, 2]], bias: vec![0.0; 2], gold: 0, weight: 1.0 };
        let (_, slope) = Objective::Choices(vec![question], SHAPES[1]).value(&[-1.0, -2.0, -3.0], 1.0);
        assert!(slope[0].abs() <= 1e-7, "{}", slope[0]);
    }

    #[test]
    fn nan_is_never_hidden() {
        assert!(Objective::Tokens(vec![1.0]).value(&[f32::NAN], 1.0).0.is_nan());
        for shape in SHAPES {
            let question = Question { candidates: vec![vec![0], vec![1]], bias: vec![0.0; 2], gold: 0, weight: 1.0 };
            let (loss, slope) = Objective::Choices(vec![question], shape).value(&[-1.0, f32::NAN], 1.0);
            assert!(loss.is_nan() && slope.iter().all(|slope| slope.is_nan()), "{shape:?}");
        }
    }

    #[test]
    fn the_total_counts_weighted_targets_or_questions() {
        let groups = [group(vec![prompt(5, 3..5, 1.0), prompt(4, 1..4, 0.5), prompt(9, 1..9, 0.0)])];
        assert_eq!(Loss::Answer.total(&groups), 3.5);
        assert_eq!(Loss::Sequence.total(&groups), 4.0 + 1.5);
        let questions = [group(vec![candidate(0, true), candidate(0, false), candidate(8, true), candidate(8, false)])];
        assert_eq!(Loss::Choice.total(&questions), 2.0);
    }

    #[test]
    fn a_question_needs_two_candidates_and_one_right() {
        let says = |prompts| Loss::Choice.check(&[group(prompts)]).unwrap_err().to_string();
        assert!(says(vec![candidate(3, true)]).contains("question 3 has 1 candidates, 1 of them right"));
        assert!(says(vec![candidate(3, false), candidate(3, false)]).contains("0 of them right"));
        assert!(says(vec![candidate(3, true), candidate(3, true)]).contains("2 of them right"));
        assert!(says(vec![prompt(3, 1..2, 1.0)]).contains("prompt 0 belongs to no question"));
        assert_eq!(Loss::Choice.check(&[group(vec![candidate(3, true), candidate(3, false)])]), Ok(()));
    }

    #[test]
    fn data_without_any_loss_is_refused() {
        assert!(Loss::Answer.check(&[group(vec![prompt(3, 2..2, 1.0), prompt(3, 1..3, 0.0)])]).is_err());
        assert_eq!(Loss::Sequence.check(&[group(vec![prompt(3, 2..2, 1.0)])]), Ok(()));
    }
}
