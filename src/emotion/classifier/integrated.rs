//! Integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365, equation 1): from the prompt with every word replaced by
//! full stops to the prompt itself, along the straight line between their embeddings.
//!
//! ```text
//! share of token t = integral over a from 0 to 1 of  d f(base + a (x - base)) / d a_t,   f = ln p(label)
//! ```
//!
//! The shares of all words add up to what the words together did (the paper's axiom of completeness). The integral is a
//! Gauss-Legendre sum, of twice as many points until it is within 1 % of that or has [`MOST_POINTS`]; what is missing is told.

use super::why::{Influence, Integral, Why};
use super::{Asked, Batch, Bulk, Classifier, Scored, check_finite};
use crate::emotion::metrics::likeliest;
use crate::emotion::prompts::{Origin, Question};
use crate::files::dialogues::Turn;
use crate::model::engine::{Pass, Path, Target};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::f64::consts::PI;

/// Points of the first sum.
const FIRST_POINTS: usize = 16;
/// Points of the last.
const MOST_POINTS: usize = 256;
/// The part of the difference that may be missing before more points are taken.
const TOLERANCE: f64 = 0.01;

/// The way from full stops to a prompt.
struct Line {
    question: Question,
    /// The word that each token of the prompt is of.
    origins: Vec<Option<Origin>>,
    /// A full stop.
    base: u32,
}

/// A point of the way.
#[derive(Clone, Copy)]
struct Point {
    /// How far, from 0 to 1.
    share: f64,
    /// Of the integral.
    weight: f64,
}

impl Classifier {
    pub(super) fn integrated(&self, turns: &[Turn], label: Option<usize>, bulk: &Bulk) -> Result<Why> {
        let (tokenizer, last) = (self.model.tokenizer(), turns.len() - 1);
        let question = self.last_question(turns, last)?;
        let origins = self.prompter.origins(tokenizer, turns, last, &question)?;
        let stop = tokenizer.encode(" .", false)?.last().copied();
        let base = stop.ok_or_else(|| Error::unsupported("the tokenizer has no token for a full stop"))?;
        let line = Line { question, origins, base };

        let mut scored = Scored { scores: vec![vec![Vec::new()]; 2], ..Scored::default() };
        let mut batch = Batch::default();
        batch.push((0, 0), 0, line.question.clone());
        batch.push((1, 0), 0, line.start());
        self.ask(batch, bulk, &mut scored)?;
        let [own, start] = [0, 1].map(|i| self.card.probabilities(&scored.scores[i][0]));
        let probabilities = self.probabilities(&scored.scores[0][0]);
        let label = label.unwrap_or_else(|| likeliest(&probabilities));
        let (base, whole) = (start[label].ln(), own[label].ln() - start[label].ln());
        let mut points = FIRST_POINTS;
        let (shares, gap) = loop {
            let shares = self.along(&line, &legendre(points), label, bulk)?;
            let gap = whole - shares.iter().sum::<f64>();
            if gap.abs() <= TOLERANCE * whole.abs() || points == MOST_POINTS {
                break (shares, gap);
            }
            points *= 2;
        };
        let (turns, words) = line.influences(&shares);
        Ok(Why { probabilities, label, turns, words, integral: Some(Integral { base, gap, points }) })
    }

    /// What each token of the prompt adds to ln of the label's probability, by the sum over the points.
    fn along(&self, line: &Line, points: &[Point], label: usize, bulk: &Bulk) -> Result<Vec<f64>> {
        let mut shares = vec![0.0; line.origins.len()];
        let corners = "an isotonic calibration has corners, where there are no gradients: leave words out instead";
        let calibrated = self.card.slopes().ok_or_else(|| Error::unsupported(corners))?;
        let together = (bulk.budget / line.question.longest()).max(1);
        for points in points.chunks(together) {
            let mut batch = Batch::default();
            for i in 0..points.len() {
                batch.push((i, 0), i as u64, line.question.clone());
            }
            let (forest, rows) = batch.builder.build();
            let targets: Vec<Target> = batch.asked.iter().flat_map(|asked| asked.targets(&rows)).collect();
            let (mut base, mut share) = (forest.tokens().to_vec(), vec![1.0; forest.len()]);
            for (asked, point) in batch.asked.iter().zip(points) {
                for (row, _) in asked.rows(&rows).zip(&line.origins).filter(|(_, origin)| origin.is_some()) {
                    (base[row], share[row]) = (line.base, point.share as f32);
                }
            }
            let mut slope = |log_probs: &[f32]| {
                let mut log_probs = log_probs.iter();
                let mut slopes = Vec::with_capacity(targets.len());
                for (asked, point) in batch.asked.iter().zip(points) {
                    let scores = asked.scores(&mut log_probs);
                    check_finite(&scores)?;
                    let p = self.card.probabilities(&scores);
                    for (i, answer) in asked.question.answers.iter().enumerate() {
                        let of = f64::from(u8::from(i == label)) - p[i];
                        let slope = point.weight * of * calibrated[i];
                        slopes.extend(std::iter::repeat_n(slope as f32, answer.len()));
                    }
                }
                Ok(slopes)
            };
            let pass = Pass { forest: &forest, adapter: self.adapter.as_deref(), cancel: &bulk.cancel };
            let path = Path { base: &base, share: &share };
            let slopes = self.model.engine().slopes(&pass, &path, &targets, &mut slope)?;
            for asked in &batch.asked {
                shares.iter_mut().zip(asked.rows(&rows)).for_each(|(share, row)| *share += slopes.rows[row]);
            }
        }
        Ok(shares)
    }
}

impl Line {
    /// The question with a full stop for every token of a word.
    fn start(&self) -> Question {
        let mut question = self.question.clone();
        let words = question.prompt.iter_mut().zip(&self.origins).filter(|(_, origin)| origin.is_some());
        words.for_each(|(id, _)| *id = self.base);
        question
    }

    /// Of every turn, and of every word.
    fn influences(&self, shares: &[f64]) -> (Vec<Influence>, Vec<Influence>) {
        let (mut turns, mut words) = (BTreeMap::<usize, f64>::new(), BTreeMap::<(usize, usize), (Origin, f64)>::new());
        for (origin, share) in self.origins.iter().zip(shares) {
            let Some(origin) = origin else { continue };
            *turns.entry(origin.turn).or_default() += share;
            words.entry((origin.turn, origin.word.start)).or_insert_with(|| (origin.clone(), 0.0)).1 += share;
        }
        let influence = |turn, part, change: f64| Influence { turn, part, without: None, change: change as f32 };
        let turns = turns.into_iter().map(|(turn, change)| influence(turn, None, change)).collect();
        let word = |(Origin { turn, word }, change)| influence(turn, Some(word), change);
        (turns, words.into_values().map(word).collect())
    }
}

impl Asked {
    /// The forest's row of every token of the prompt.
    fn rows<'a>(&self, rows: &'a [Vec<u32>]) -> impl Iterator<Item = usize> + use<'a> {
        rows[self.sequences[0]].iter().take(self.question.prompt.len()).map(|&row| row as usize)
    }
}

/// The points and weights of the Gauss-Legendre sum over 0 to 1: the roots of the Legendre polynomial of degree `n`, by
/// Newton's method from their asymptotic places (Abramowitz and Stegun, 25.4.29 and 22.16.6).
fn legendre(n: usize) -> Vec<Point> {
    let point = |i: usize| {
        let mut x = (PI * (i as f64 + 0.75) / (n as f64 + 0.5)).cos();
        let mut slope = 1.0;
        for _ in 0..100 {
            let (mut p, mut before) = (x, 1.0);
            for k in 2..=n {
                let k = k as f64;
                (p, before) = (((2.0 * k - 1.0) * x * p - (k - 1.0) * before) / k, p);
            }
            slope = n as f64 * (x * p - before) / (x * x - 1.0);
            let step = p / slope;
            x -= step;
            if step.abs() < 1e-15 {
                break;
            }
        }
        Point { share: (1.0 + x) / 2.0, weight: 1.0 / ((1.0 - x * x) * slope * slope) }
    };
    (0..n).map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_n_points_is_exact_for_polynomials_of_degree_2_n_minus_1() {
        for n in [2, 5, 16, 64, 256] {
            for degree in [0, 1, 3, 2 * n - 1] {
                let sum: f64 = legendre(n).iter().map(|point| point.weight * point.share.powi(degree as i32)).sum();
                assert!((sum * (degree as f64 + 1.0) - 1.0).abs() < 1e-12, "{n} points, degree {degree}: {sum}");
            }
        }
    }
}
