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
//! used by  the CUDA device; on the CPU `conversation` draws for itself
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

/// Tokens that may be drawn and their weights, the likeliest first.
pub fn candidates(logits: &[f64], options: &Options) -> Vec<(u32, f64)> {
    let mut all: Vec<(u32, f64)> = (0..).zip(logits.iter().copied()).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1)); // stable: equals by number
    if let Some(&(_, least)) = options.top_k.checked_sub(1).and_then(|k| all.get(k as usize)) {
        all.retain(|&(_, z)| z >= least);
    }
    let max = all[0].1;
    all.iter_mut().for_each(|(_, z)| *z = ((*z - max) / f64::from(options.temperature)).exp());
    if options.top_p < 1.0 {
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
    fn a_penalty_above_one_makes_both_signs_less_likely() {
        let mut logits = [2.0, -2.0, 2.0];
        penalise(&mut logits, &[0, 1], 2.0);
        assert_eq!(logits, [1.0, -4.0, 2.0]);
    }
}
