//! Sampling: one token from a row of logits z                              Fan et al. 2018 (arXiv 1805.04833): top-k;
//!                                                    Holtzman et al. 2020 (arXiv 1904.09751): top-p
//!
//! In transformers' order: repetition penalty (Keskar et al. 2019, arXiv 1909.05858), temperature, top-k, top-p. What is
//! left has weights e^((z - max) / temperature); likeliest first, equals by number, the token under which a given
//! uniform number of their sum falls is drawn.
//!
//! ```text
//! shapes   logits [V]; one token
//! types    logits Real; weights f64 here, multiples of 2^-40 on CUDA, so that a draw at a weight's very edge may differ
//! rounding none: the result is a token
//! used by  conversation
//! ```

pub mod cuda;

/// How a token is drawn; the repetition penalty is [`penalise`]'s.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Divides the logits; 0 takes the likeliest token, the first of equals.
    pub temperature: f32,
    /// Only tokens at least as likely as the k-th; 0 for all.
    pub top_k: u32,
    /// Only the likeliest tokens that together reach this share.
    pub top_p: f32,
}

/// Logits of tokens seen before, each named once: positive ones divided by `penalty`, negative ones multiplied.
pub fn penalise(logits: &mut [f32], seen: &[u32], penalty: f32) {
    for &token in seen {
        let x = &mut logits[token as usize];
        *x = if *x < 0.0 { *x * penalty } else { *x / penalty };
    }
}

/// One draw from a row of logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw<'a> {
    /// What may be drawn.
    pub options: Options,
    /// The repetition penalty; 1 changes nothing.
    pub penalty: f32,
    /// Tokens that are penalised, each named once.
    pub seen: &'a [u32],
    /// In [0, 1).
    pub uniform: f64,
}

/// The token drawn; the logits are penalised in place. `None` where one is NaN or positive infinity, or none is finite.
pub fn draw(logits: &mut [f32], draw: &Draw) -> Option<u32> {
    if logits.iter().any(|&x| x.is_nan() || x == f32::INFINITY) || !logits.iter().any(|x| x.is_finite()) {
        return None;
    }
    penalise(logits, draw.seen, draw.penalty);
    let wide: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
    Some(reference(&wide, &draw.options, draw.uniform))
}

/// Tokens that may be drawn and their weights, the likeliest first.
pub fn candidates(logits: &[f64], options: &Options) -> Vec<(u32, f64)> {
    let mut all: Vec<(u32, f64)> = (0..).zip(logits.iter().copied()).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1)); // stable: equals by number
    if let Some(&(_, least)) = options.top_k.checked_sub(1).and_then(|k| all.get(k as usize)) {
        all.retain(|&(_, z)| z >= least); // ties with the k-th stay, as in transformers
    }
    let max = all[0].1;
    all.iter_mut().for_each(|(_, z)| *z = ((*z - max) / f64::from(options.temperature)).exp());
    if options.top_p < 1.0 {
        // each before which top_p is not yet reached: so always one
        let enough = f64::from(options.top_p) * all.iter().map(|(_, weight)| weight).sum::<f64>();
        let mut before = 0.0;
        all.retain(|(_, weight)| {
            let kept = before < enough;
            before += weight;
            kept
        });
    }
    all
}

/// The token that `uniform`, in [0, 1), draws; the first of the largest at temperature 0.
pub fn reference(logits: &[f64], options: &Options, uniform: f64) -> u32 {
    if options.temperature == 0.0 {
        let larger = |best: usize, (i, z): (usize, &f64)| if *z > logits[best] { i } else { best };
        return logits.iter().enumerate().fold(0, larger) as u32;
    }
    let candidates = candidates(logits, options);
    let mut left = uniform * candidates.iter().map(|(_, weight)| weight).sum::<f64>();
    for &(token, weight) in &candidates {
        if left < weight {
            return token;
        }
        left -= weight;
    }
    candidates[candidates.len() - 1].0 // rounding only
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Options = Options { temperature: 1.0, top_k: 0, top_p: 1.0 };

    /// Logits of probabilities 0.5, 0.25, 0.125, 0.125, not in their order.
    fn logits() -> [f64; 4] {
        [0.125f64, 0.5, 0.125, 0.25].map(f64::ln)
    }

    #[test]
    fn draws_fall_by_weight_likeliest_first_and_equals_by_number() {
        let tokens = [0.0, 0.49, 0.51, 0.74, 0.76, 0.87, 0.88, 0.999].map(|u| reference(&logits(), &ALL, u));
        assert_eq!(tokens, [1, 1, 3, 3, 0, 0, 2, 2]);
    }

    #[test]
    fn top_k_keeps_ties_with_the_last_and_top_p_the_token_that_reaches_it() {
        let kept = |options| candidates(&logits(), &options).iter().map(|c| c.0).collect::<Vec<_>>();
        assert_eq!(kept(Options { top_k: 1, ..ALL }), [1]);
        assert_eq!(kept(Options { top_k: 3, ..ALL }), [1, 3, 0, 2]);
        assert_eq!(kept(Options { top_k: 9, ..ALL }), [1, 3, 0, 2]);
        assert_eq!(kept(Options { top_p: 0.6, ..ALL }), [1, 3]);
        assert_eq!(kept(Options { top_p: 1e-6, ..ALL }), [1]);
    }

    #[test]
    fn temperature_zero_takes_the_first_of_the_largest_and_a_low_one_nearly_always() {
        assert_eq!(reference(&[1.0, 2.0, 2.0], &Options { temperature: 0.0, ..ALL }, 0.9), 1);
        assert_eq!(reference(&logits(), &Options { temperature: 0.01, ..ALL }, 0.999_999), 1);
    }

    #[test]
    fn logits_that_are_no_numbers_draw_nothing() {
        let none = f32::NEG_INFINITY;
        for temperature in [0.0, 1.0] {
            let options = Options { temperature, ..ALL };
            let drawn =
                |mut logits: Vec<f32>| draw(&mut logits, &Draw { options, penalty: 1.0, seen: &[], uniform: 0.5 });
            for bad in [vec![0.0, f32::NAN], vec![f32::INFINITY, 1.0], vec![none, none]] {
                assert_eq!(drawn(bad.clone()), None, "{bad:?}");
            }
            assert_eq!(drawn(vec![none, -5.0, none]), Some(1));
        }
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let mut counts = [0; 3];
        for i in 0..6000 {
            let uniform = (f64::from(i) + 0.5) / 6000.0;
            let drawn = Draw { options: ALL, penalty: 1.0, seen: &[], uniform };
            counts[draw(&mut [0.0, 2f32.ln(), f32::NEG_INFINITY], &drawn).unwrap() as usize] += 1;
        }
        assert_eq!(counts, [2000, 4000, 0]);
    }

    /// Literals: transformers 5.23, softmax after RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper,
    /// TopKLogitsWarper and TopPLogitsWarper in f64, in this order; the tokens seen are 1, 2 and 6.
    #[test]
    fn probabilities_are_transformers() {
        let logits = [1.5, -0.5, 2.0, 0.25, 2.0, -3.0, 0.75, 1.0];
        let cases: [(f32, f32, u32, f32, [f64; 8]); 4] = [
            (
                1.3,
                0.7,
                0,
                1.0,
                [
                    0.197165315377,
                    0.00913957577,
                    0.208301718037,
                    0.033060137632,
                    0.402754927038,
                    0.000318373872,
                    0.052739316577,
                    0.096520635697,
                ],
            ),
            (1.0, 1.0, 3, 1.0, [0.232696537619, 0.0, 0.383651731191, 0.0, 0.383651731191, 0.0, 0.0, 0.0]),
            (1.0, 0.8, 0, 0.6, [0.0, 0.0, 0.5, 0.0, 0.5, 0.0, 0.0, 0.0]),
            (1.2, 1.5, 5, 0.7, [0.284646333835, 0.0, 0.318097705909, 0.0, 0.397255960256, 0.0, 0.0, 0.0]),
        ];
        for (penalty, temperature, top_k, top_p, want) in cases {
            let mut penalised = logits;
            penalise(&mut penalised, &[1, 2, 6], penalty);
            let wide = penalised.map(f64::from);
            let candidates = candidates(&wide, &Options { temperature, top_k, top_p });
            let total: f64 = candidates.iter().map(|(_, w)| w).sum();
            let mut got = [0.0; 8];
            candidates.iter().for_each(|&(id, w)| got[id as usize] = w / total);
            for (got, want) in got.iter().zip(want) {
                assert!((got - want).abs() <= 1e-7, "{got} against {want}"); // logits after the penalty are f32
            }
        }
    }

    #[test]
    fn a_penalty_above_one_makes_both_signs_less_likely() {
        let mut logits = [2.0, -2.0, 2.0];
        penalise(&mut logits, &[0, 1], 2.0);
        assert_eq!(logits, [1.0, -4.0, 2.0]);
    }
}
