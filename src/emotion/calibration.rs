//! Beyond one temperature: calibrations that have a part for every label, fitted on the dev split and stored in the card.
//!
//! They may change which label is the likeliest, where a temperature cannot.

use super::metrics::{check, softmax};
use crate::Result;
use serde::{Deserialize, Serialize};

/// A calibration of label scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Calibration {
    /// Every label's score is scaled and moved (Guo et al. 2017, arXiv 1706.04599, section 4.2: vector scaling).
    Vector {
        /// By what it is multiplied.
        scale: Vec<f64>,
        /// What is added then.
        bias: Vec<f64>,
    },
    /// Every label's probability goes through a curve of its own that never falls; then all are made to sum to 1 (Zadrozny and
    /// Elkan 2002). A probability below [`FLOOR`] becomes that.
    Isotonic {
        /// For every label, points (probability before, after) in rising order, with straight lines between them.
        curves: Vec<Vec<(f64, f64)>>,
    },
}

/// No label is impossible: what a curve says of a probability that no turn on dev had is not to be infinitely wrong.
pub const FLOOR: f64 = 1e-4;

/// Newton's steps at most.
const STEPS: usize = 100;
/// How strongly the fit holds on to scale 1 and bias 0, a turn: enough for a label that no turn has.
const RIDGE: f64 = 1e-6;

impl Calibration {
    /// The vector scaling under which the NLL of `gold` is least, `[turn][label]` scores; convex, by Newton's method.
    ///
    /// # Errors
    /// As [`Report::new`](super::metrics::Report::new).
    pub fn vector(scores: &[Vec<f32>], gold: &[usize]) -> Result<Self> {
        let labels = labels_of(scores, gold)?;
        let mut at: Vec<f64> = [vec![1.0; labels], vec![0.0; labels]].concat();
        let mut now = nll(scores, gold, &at);
        for _ in 0..STEPS {
            let (gradient, hessian) = slopes(scores, gold, &at);
            let step = solve(hessian, gradient);
            let moved = |by: f64| at.iter().zip(&step).map(|(at, step)| at - by * step).collect::<Vec<f64>>();
            // a whole step may go too far where the NLL is far from a parabola
            let tried = (0..30).map(|halvings| moved(0.5f64.powi(halvings))).map(|at| (nll(scores, gold, &at), at));
            let Some(better) = tried.into_iter().find(|(nll, _)| *nll < now) else { break };
            (now, at) = better;
        }
        let bias = at.split_off(labels);
        Ok(Self::Vector { scale: at, bias })
    }

    /// For every label the curve that never falls and is nearest to whether a turn has the label, by the probability it was
    /// given (pool adjacent violators, as scikit-learn's IsotonicRegression).
    ///
    /// # Errors
    /// As [`Calibration::vector`].
    pub fn isotonic(scores: &[Vec<f32>], gold: &[usize]) -> Result<Self> {
        let labels = labels_of(scores, gold)?;
        let probabilities: Vec<Vec<f64>> = scores.iter().map(|scores| softmax(scores, 1.0)).collect();
        let curve = |label: usize| {
            let turns = probabilities.iter().zip(gold);
            pooled(turns.map(|(p, &truth)| (p[label], f64::from(u8::from(truth == label)))).collect())
        };
        Ok(Self::Isotonic { curves: (0..labels).map(curve).collect() })
    }

    /// Scores whose softmax are the calibrated probabilities.
    pub fn apply(&self, scores: &[f32]) -> Vec<f64> {
        match self {
            Calibration::Vector { scale, bias } => scaled(scores, scale, bias),
            Calibration::Isotonic { curves } => {
                let after = |(p, curve): (f64, &Vec<(f64, f64)>)| interpolated(curve, p).max(FLOOR).ln();
                softmax(scores, 1.0).into_iter().zip(curves).map(after).collect()
            }
        }
    }

    /// What is wrong with it for so many labels, if anything is: a file may say anything.
    pub(super) fn fault(&self, labels: usize) -> Option<&'static str> {
        let finite = |values: &[f64]| values.iter().all(|value| value.is_finite());
        match self {
            Calibration::Vector { scale, bias } => {
                let fits = scale.len() == labels && bias.len() == labels && finite(scale) && finite(bias);
                (!fits).then_some("the vector calibration must have a finite scale and bias for every label")
            }
            Calibration::Isotonic { curves } => {
                let rises = |curve: &Vec<(f64, f64)>| {
                    let within = |x: f64| (0.0..=1.0).contains(&x);
                    !curve.is_empty()
                        && curve.iter().all(|&(x, y)| within(x) && within(y))
                        && curve.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1)
                };
                (curves.len() != labels || !curves.iter().all(rises))
                    .then_some("the isotonic calibration must have a curve for every label that rises from 0 to 1")
            }
        }
    }
}

fn labels_of(scores: &[Vec<f32>], gold: &[usize]) -> Result<usize> {
    let labels = scores.first().map_or(0, Vec::len);
    check(labels, scores, gold)?;
    Ok(labels)
}

fn scaled(scores: &[f32], scale: &[f64], bias: &[f64]) -> Vec<f64> {
    scores.iter().zip(scale).zip(bias).map(|((&score, scale), bias)| scale * f64::from(score) + bias).collect()
}

/// The probabilities at scales and biases, which follow each other.
fn probabilities(scores: &[f32], at: &[f64]) -> Vec<f64> {
    let (scale, bias) = at.split_at(scores.len());
    softmax(&scaled(scores, scale, bias), 1.0)
}

/// How far a parameter is from where it began: scales from 1, biases from 0.
fn away(at: &[f64]) -> impl Iterator<Item = f64> + '_ {
    let labels = at.len() / 2;
    at.iter().enumerate().map(move |(i, at)| at - if i < labels { 1.0 } else { 0.0 })
}

fn nll(scores: &[Vec<f32>], gold: &[usize], at: &[f64]) -> f64 {
    let of_turn = |(scores, &truth): (&Vec<f32>, &usize)| -probabilities(scores, at)[truth].max(f64::MIN_POSITIVE).ln();
    let held: f64 = away(at).map(|away| away * away).sum();
    scores.iter().zip(gold).map(of_turn).sum::<f64>() + 0.5 * RIDGE * gold.len() as f64 * held
}

/// Gradient and Hessian of [`nll`]: with f = (score, 1), d/d(c, k) = (p_c - [c = truth]) f_ck and
/// d2/d(c, k)d(e, l) = p_c ([c = e] - p_e) f_ck f_el.
fn slopes(scores: &[Vec<f32>], gold: &[usize], at: &[f64]) -> (Vec<f64>, Vec<Vec<f64>>) {
    let n = at.len();
    let labels = n / 2;
    let ridge = RIDGE * gold.len() as f64;
    let mut gradient: Vec<f64> = away(at).map(|away| ridge * away).collect();
    let mut hessian: Vec<Vec<f64>> =
        (0..n).map(|i| (0..n).map(|j| if i == j { ridge } else { 0.0 }).collect()).collect();
    for (scores, &truth) in scores.iter().zip(gold) {
        let p = probabilities(scores, at);
        let feature = |i: usize| if i < labels { f64::from(scores[i]) } else { 1.0 };
        for i in 0..n {
            let c = i % labels;
            gradient[i] += (p[c] - f64::from(u8::from(c == truth))) * feature(i);
            for (j, value) in hessian[i].iter_mut().enumerate() {
                let e = j % labels;
                *value += p[c] * (f64::from(u8::from(c == e)) - p[e]) * feature(i) * feature(j);
            }
        }
    }
    (gradient, hessian)
}

/// x of A x = b for a positive definite A, by elimination.
fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for i in 0..n {
        for j in i + 1..n {
            let factor = a[j][i] / a[i][i];
            let (above, below) = a.split_at_mut(j);
            below[0].iter_mut().zip(&above[i]).skip(i).for_each(|(below, above)| *below -= factor * above);
            b[j] -= factor * b[i];
        }
    }
    for i in (0..n).rev() {
        let rest: f64 = (i + 1..n).map(|j| a[i][j] * b[j]).sum();
        b[i] = (b[i] - rest) / a[i][i];
    }
    b
}

/// Points (x, y) to the ends of the pools of a curve that never falls.
fn pooled(mut points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    // (first x, last x, sum of y, turns); turns of equal x are one point
    let mut pools: Vec<(f64, f64, f64, f64)> = Vec::new();
    for same in points.chunk_by(|a, b| a.0 == b.0) {
        pools.push((same[0].0, same[0].0, same.iter().map(|point| point.1).sum(), same.len() as f64));
        while let [.., before, last] = pools[..]
            && before.2 / before.3 >= last.2 / last.3
        {
            pools.truncate(pools.len() - 2);
            pools.push((before.0, last.1, before.2 + last.2, before.3 + last.3));
        }
    }
    let ends = |&(first, last, sum, turns): &(f64, f64, f64, f64)| {
        let y = sum / turns;
        std::iter::once((first, y)).chain((last > first).then_some((last, y)))
    };
    pools.iter().flat_map(ends).collect()
}

/// The value of a curve at `x`; beyond its ends that of the end.
fn interpolated(curve: &[(f64, f64)], x: f64) -> f64 {
    let after = curve.partition_point(|&(at, _)| at < x);
    match (after.checked_sub(1).map(|before| curve[before]), curve.get(after)) {
        (Some((_, y)), None) => y,
        (None, after) => after.map_or(x, |&(_, y)| y),
        (Some((x0, y0)), Some(&(x1, y1))) => y0 + (y1 - y0) * (x - x0) / (x1 - x0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores that lean to label 0 and are too sure.
    fn turns() -> (Vec<Vec<f32>>, Vec<usize>) {
        let gold: Vec<usize> = (0..90).map(|i| (5 * i + i / 7) % 3).collect();
        let score = |i: usize, k: usize, truth: usize| {
            (3.0 * ((5 * i * i + k) as f64).sin()) as f32 + if k == truth { 1.0 } else { 0.0 } - k as f32
        };
        let scores = gold.iter().enumerate().map(|(i, &truth)| (0..3).map(|k| score(i, k, truth)).collect()).collect();
        (scores, gold)
    }

    fn mean_nll(calibration: &Calibration) -> f64 {
        let (scores, gold) = turns();
        let of_turn = |(scores, &truth): (&Vec<f32>, &usize)| {
            let z = calibration.apply(scores);
            z.iter().map(|z| z.exp()).sum::<f64>().ln() - z[truth]
        };
        scores.iter().zip(&gold).map(of_turn).sum::<f64>() / gold.len() as f64
    }

    #[test]
    fn curves_are_scikit_learns_isotonic_regression() {
        // IsotonicRegression(out_of_bounds="clip").fit(x, y).predict(q), scikit-learn 1.9.1
        let x = [0.1, 0.4, 0.2, 0.4, 0.7, 0.6, 0.9, 0.8];
        let y = [0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0];
        let curve = pooled(x.into_iter().zip(y).collect());
        for (q, want) in [(0.0, 0.0), (0.15, 0.3), (0.3, 0.6), (0.5, 0.6), (0.75, 0.8), (0.85, 1.0), (1.0, 1.0)] {
            let got = interpolated(&curve, q);
            assert!((got - want).abs() < 1e-12, "{q}: {got}, {want}; {curve:?}");
        }
    }

    #[test]
    fn the_vector_scaling_is_scipys_minimum_of_the_nll() {
        let (scores, gold) = turns();
        let vector = Calibration::vector(&scores, &gold).unwrap();
        let plain = mean_nll(&Calibration::Vector { scale: vec![1.0; 3], bias: vec![0.0; 3] });
        // scipy's minimize(BFGS, gtol 1e-9) on the same NLL; biases matter up to a constant
        let best = mean_nll(&vector);
        assert!(
            (best - 1.0335919136352583).abs() < 1e-7 && (plain - 1.6744290869452771).abs() < 1e-6,
            "{best} {plain}"
        );
        let Calibration::Vector { scale, bias } = vector else { panic!("{vector:?}") };
        for (got, want) in scale.iter().zip([0.21839537, 0.29351747, 0.05426152]) {
            assert!((got - want).abs() < 1e-4, "{scale:?}");
        }
        for (got, want) in bias.iter().zip([0.0, -0.07783993, -0.17685349]) {
            assert!((got - bias[0] - want).abs() < 1e-4, "{bias:?}");
        }
    }

    #[test]
    fn a_curve_makes_what_was_said_as_often_true() {
        let (scores, gold) = turns();
        let isotonic = Calibration::isotonic(&scores, &gold).unwrap();
        assert!(isotonic.fault(3).is_none() && isotonic.fault(4).is_some());
        let z = isotonic.apply(&[2.0, 1.0, -40.0]);
        assert!(z.iter().all(|z| z.is_finite()) && z[2] >= FLOOR.ln(), "{z:?}");
        assert!(mean_nll(&isotonic) < mean_nll(&Calibration::Vector { scale: vec![1.0; 3], bias: vec![0.0; 3] }));
    }

    #[test]
    fn what_cannot_be_fitted_or_read_is_refused() {
        for (scores, gold) in [(vec![], vec![]), (vec![vec![0.0, 1.0]], vec![2]), (vec![vec![f32::NAN, 1.0]], vec![0])]
        {
            assert!(Calibration::vector(&scores, &gold).is_err() && Calibration::isotonic(&scores, &gold).is_err());
        }
        let falling = Calibration::Isotonic { curves: vec![vec![(0.1, 0.5), (0.2, 0.4)]] };
        let empty = Calibration::Isotonic { curves: vec![vec![]] };
        let nan = Calibration::Vector { scale: vec![f64::NAN], bias: vec![0.0] };
        assert!([falling, empty, nan].iter().all(|wrong| wrong.fault(1).is_some()));
    }
}
