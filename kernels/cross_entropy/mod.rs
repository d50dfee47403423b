//! Cross-entropy: -log p_t = lse - z_t, lse = log sum_v e^(z_v), p_v = e^(z_v - lse)
//!
//! ```text
//! shapes   logits [V] or a run of them, one row per call; targets (t, g_t) with g_t = d loss / d (-log p_t): several
//!          where a row of the forest has several children; total is their sum over the whole row
//! types    logits Real; lse Real; dlogits E
//! rounding once, at dlogits. The sum runs in 16 parts under the row's maximum, so that it cannot overflow
//! alias    none
//! used by  model: rows that carry a target; emotion: label probabilities
//! ```

pub mod cuda;

use crate::stamp::{PARTS, fold, stamp, sum};
use crate::{Elem, Kernels, Real};

/// log sum_v e^(z_v).
pub fn reference(logits: &[f64]) -> f64 {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + logits.iter().map(|z| (z - max).exp()).sum::<f64>().ln()
}

/// dz_v = sum_t g_t (p_v - [v = t]) = total p_v - sum of g_t with t = v.
pub fn reference_backward(dlogits: &mut [f64], logits: &[f64], lse: f64, total: f64, targets: &[(u32, f64)]) {
    for v in 0..logits.len() {
        let own: f64 = targets.iter().filter(|&&(t, _)| t as usize == v).map(|&(_, g)| g).sum();
        dlogits[v] = total * (logits[v] - lse).exp() - own;
    }
}

stamp! {
    log_sum: fn(logits: &[E::Real]) -> E::Real = log_sum_body;
    backward: fn(dlogits: &mut [E], logits: &[E::Real], lse: E::Real, total: E::Real, targets: &[(u32, E::Real)]) = body_backward;
}

impl<E: Elem> Kernels<E> {
    /// log sum e^z of one row; negative infinity for an empty row. NaN where a logit is.
    pub fn log_sum_exp(&self, logits: &[E::Real]) -> E::Real {
        // SAFETY: this table's level is one that the machine has.
        unsafe { (self.cross_entropy.log_sum)(logits) }
    }

    /// dlogits = total p - sum over targets (t, g) of g onehot t, p = e^(logits - lse); g = d loss / d (-log p_t).
    ///
    /// dlogits, logits \[V\] or a run of a row's logits; `lse` ([`Kernels::log_sum_exp`]) and `total`, the sum of g, are
    /// the whole row's, `targets` those in the run, counted from its start. A target may come more than once. Panics
    /// where the lengths differ or a target is outside the run.
    pub fn cross_entropy_backward(
        &self,
        dlogits: &mut [E],
        logits: &[E::Real],
        lse: E::Real,
        total: E::Real,
        targets: &[(u32, E::Real)],
    ) {
        assert!(dlogits.len() == logits.len(), "cross_entropy_backward: dlogits and logits are one row each");
        let inside = targets.iter().all(|&(t, _)| (t as usize) < logits.len());
        assert!(inside, "cross_entropy_backward: a target is outside a row of {} logits", logits.len());
        // SAFETY: this table's level is one that the machine has.
        unsafe { (self.cross_entropy.backward)(dlogits, logits, lse, total, targets) }
    }
}

#[inline(always)]
fn log_sum_body<E: Elem>(logits: &[E::Real]) -> E::Real {
    let max = maximum(logits);
    // An infinite maximum would make infinity minus infinity; unshifted, the sum is 0 or infinity as it should be.
    let shift = if max.is_finite() { max } else { E::Real::ZERO };
    shift + Real::ln(sum([logits], |[z]| Real::exp(z - shift)))
}

#[inline(always)]
fn maximum<R: Real>(x: &[R]) -> R {
    let mut parts = [R::NEG_INFINITY; PARTS];
    let (chunks, rest) = x.as_chunks::<PARTS>();
    for chunk in chunks {
        for (part, x) in parts.iter_mut().zip(chunk) {
            *part = Real::max(*part, *x);
        }
    }
    for (part, x) in parts.iter_mut().zip(rest) {
        *part = Real::max(*part, *x);
    }
    fold(parts, |a, b| Real::max(a, b))
}

#[inline(always)]
fn body_backward<E: Elem>(
    dlogits: &mut [E],
    logits: &[E::Real],
    lse: E::Real,
    total: E::Real,
    targets: &[(u32, E::Real)],
) {
    for (d, z) in dlogits.iter_mut().zip(logits) {
        *d = E::narrow(total * Real::exp(*z - lse));
    }
    for &(t, _) in targets {
        // Again from the logit, so that a target's value is rounded once; a repeated target writes the same value again.
        let mut own = E::Real::ZERO;
        targets.iter().filter(|&&(u, _)| u == t).for_each(|&(_, g)| own += g);
        dlogits[t as usize] = E::narrow(total * Real::exp(logits[t as usize] - lse) - own);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::proof::{is_the_slope, wide};
    use crate::testing::{Random, check};
    use half::bf16;

    const LENGTHS: [usize; 7] = [1, 2, 16, 17, 67, 1000, 49152];

    fn row<R: Real>(n: usize) -> Vec<R> {
        let mut random = Random::new(n as u64);
        (0..n).map(|_| R::from_f64(10.0 * random.signed())).collect()
    }

    pub(super) fn plain_lse<R: Real>(logits: &[R]) -> R {
        let max = logits.iter().fold(R::NEG_INFINITY, |a, &z| Real::max(a, z));
        let mut sum = R::ZERO;
        logits.iter().for_each(|&z| sum += R::from_f64((z - max).to_f64().exp()));
        max + Real::ln(sum)
    }

    fn log_sum_is_exact_enough<E: Elem>(n: usize) {
        let logits = row::<E::Real>(n);
        for &isa in Isa::available() {
            let got = E::kernels(isa).log_sum_exp(&logits);
            check(&[got], &[plain_lse(&logits)], &[reference(&wide(&logits))])
                .unwrap_or_else(|e| panic!("{} {isa:?} V = {n}: {e}", E::NAME));
        }
    }

    fn backward_is_exact_enough<E: Elem>(n: usize) {
        let logits = row::<E::Real>(n);
        let lse = plain_lse(&logits);
        let g = |g: f64| E::Real::from_f64(g);
        let targets = [(0, g(0.5)), (n as u32 / 2, g(0.25)), (n as u32 - 1, g(1.0))];
        let wide_targets = targets.map(|(t, g)| (t, g.to_f64()));
        let mut want = vec![0.0; n];
        reference_backward(&mut want, &wide(&logits), lse.to_f64(), 1.75, &wide_targets);
        let plain: Vec<E> = (0..n)
            .map(|v| {
                let p = E::Real::from_f64((logits[v] - lse).to_f64().exp());
                let mut d = E::Real::ZERO;
                for (t, g) in targets {
                    d += g * (p - if t as usize == v { E::Real::ONE } else { E::Real::ZERO });
                }
                E::narrow(d)
            })
            .collect();
        for &isa in Isa::available() {
            let mut d = vec![E::default(); n];
            E::kernels(isa).cross_entropy_backward(&mut d, &logits, lse, g(1.75), &targets);
            check(&d, &plain, &want).unwrap_or_else(|e| panic!("{} {isa:?} V = {n}: {e}", E::NAME));
        }
    }

    #[test]
    fn every_form_of_the_log_sum_agrees_with_the_reference() {
        for n in LENGTHS {
            log_sum_is_exact_enough::<f32>(n);
            log_sum_is_exact_enough::<f64>(n);
        }
    }

    #[test]
    fn every_backward_form_agrees_with_the_reference() {
        for n in LENGTHS {
            backward_is_exact_enough::<f32>(n);
            backward_is_exact_enough::<bf16>(n);
            backward_is_exact_enough::<f64>(n);
        }
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_loss_with_a_target_given_twice() {
        let logits: Vec<f64> = Random::new(4).vec(6);
        let targets = [(2, 0.5), (4, 0.75), (2, 0.25)];
        let loss = |z: &[f64]| targets.iter().map(|&(t, g)| g * (reference(z) - z[t as usize])).sum::<f64>();
        let mut d = vec![0.0; 6];
        reference_backward(&mut d, &logits, reference(&logits), 1.5, &targets);
        is_the_slope("dlogits", &d, &logits, loss).unwrap();
        for &isa in Isa::available() {
            let mut got = vec![0.0; 6];
            f64::kernels(isa).cross_entropy_backward(&mut got, &logits, reference(&logits), 1.5, &targets);
            is_the_slope("the form's dlogits", &got, &logits, loss).unwrap();
        }
    }

    #[test]
    fn a_row_cut_in_runs_has_the_same_gradient() {
        let logits: Vec<f32> = Random::new(5).vec(40);
        let kernels = f32::kernels(Isa::best(None));
        let lse = kernels.log_sum_exp(&logits);
        let (mut whole, mut cut) = ([0.0; 40], [0.0; 40]);
        kernels.cross_entropy_backward(&mut whole, &logits, lse, 1.5, &[(3, 0.5), (30, 1.0)]);
        kernels.cross_entropy_backward(&mut cut[..16], &logits[..16], lse, 1.5, &[(3, 0.5)]);
        kernels.cross_entropy_backward(&mut cut[16..], &logits[16..], lse, 1.5, &[(14, 1.0)]);
        assert_eq!(whole, cut);
    }

    #[test]
    fn infinite_logits_have_their_limits_and_nan_is_kept_wherever_it_stands() {
        let (inf, none) = (f32::INFINITY, f32::NEG_INFINITY);
        for &isa in Isa::available() {
            let lse = |z: &[f32]| f32::kernels(isa).log_sum_exp(z);
            assert_eq!(lse(&[]), none);
            assert_eq!(lse(&[none; 20]), none);
            assert_eq!(lse(&[0.0, none, none]), 0.0);
            assert_eq!(lse(&[0.0, inf]), inf);
            assert_eq!(lse(&[3e38, 3e38]), 3e38);
            for at in 0..40 {
                let mut z = [none; 40];
                z[at] = f32::NAN;
                assert!(lse(&z).is_nan(), "{isa:?} NaN at {at}");
            }
        }
    }
}
