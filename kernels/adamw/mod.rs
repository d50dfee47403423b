//! AdamW, one step of one parameter                                        Loshchilov & Hutter 2019 (arXiv 1711.05101), alg. 2
//!
//! The order of operations is PyTorch's (torch/optim/adam.py, _single_tensor_adam, decoupled decay), so that runs agree:
//!   p *= 1 - lr decay;  m = lerp(m, g, 1 - beta1);  v = v beta2 + (1 - beta2) g g
//!   denom = sqrt(v) / sqrt(1 - beta2^t) + eps;  p += -lr / (1 - beta1^t) * m / denom
//!
//! ```text
//! shapes   p, g, m, v: any run of values, all independent
//! types    Real; the scalars are computed in f64 and rounded once, as Python hands them to PyTorch
//! rounding after every operation, as written
//! alias    p, m, v in place
//! used by  train
//! ```

pub mod cuda;

use crate::stamp::stamp;
use crate::{Elem, Kernels, Real};

/// What a run keeps constant, but for the rate that a schedule changes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// The learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay.
    pub decay: f64,
}

/// The scalars of one step, each rounded once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step<R> {
    /// g is multiplied by this first: the clip factor over the number of target tokens.
    pub grad_scale: R,
    keep: R,
    blend: R,
    beta2: R,
    fresh: R,
    root_correction: R,
    eps: R,
    size: R,
}

impl<R: Real> Step<R> {
    /// Step number `t`, which starts at 1.
    pub fn new(options: &Options, t: u64, grad_scale: f64) -> Self {
        let correction = |beta: f64| 1.0 - beta.powf(t as f64);
        Self {
            grad_scale: R::from_f64(grad_scale),
            keep: R::from_f64(1.0 - options.lr * options.decay),
            blend: R::from_f64(1.0 - options.beta1),
            beta2: R::from_f64(options.beta2),
            fresh: R::from_f64(1.0 - options.beta2),
            root_correction: R::from_f64(correction(options.beta2).sqrt()),
            eps: R::from_f64(options.eps),
            size: R::from_f64(-options.lr / correction(options.beta1)),
        }
    }
}

/// The step in f64, by the paper's equations.
pub fn reference(p: &mut [f64], g: &[f64], m: &mut [f64], v: &mut [f64], o: &Options, t: u64, grad_scale: f64) {
    for i in 0..p.len() {
        let g = g[i] * grad_scale;
        m[i] = o.beta1 * m[i] + (1.0 - o.beta1) * g;
        v[i] = o.beta2 * v[i] + (1.0 - o.beta2) * g * g;
        let m_hat = m[i] / (1.0 - o.beta1.powf(t as f64));
        let v_hat = v[i] / (1.0 - o.beta2.powf(t as f64));
        p[i] -= o.lr * (m_hat / (v_hat.sqrt() + o.eps) + o.decay * p[i]);
    }
}

stamp! {
    step: fn(p: &mut [E::Real], g: &[E::Real], m: &mut [E::Real], v: &mut [E::Real], s: &Step<E::Real>) = body;
}

impl<E: Elem> Kernels<E> {
    /// One step: p, m and v are updated in place from g.
    ///
    /// Panics unless the lengths are equal.
    pub fn adamw(&self, p: &mut [E::Real], g: &[E::Real], m: &mut [E::Real], v: &mut [E::Real], s: &Step<E::Real>) {
        assert!([g.len(), m.len(), v.len()] == [p.len(); 3], "adamw: p, g, m and v have one length");
        // SAFETY: this table's level is one that the machine has.
        unsafe { (self.adamw.step)(p, g, m, v, s) }
    }
}

#[inline(always)]
fn body<E: Elem>(p: &mut [E::Real], g: &[E::Real], m: &mut [E::Real], v: &mut [E::Real], s: &Step<E::Real>) {
    for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
        let g = *g * s.grad_scale;
        *m = lerp(*m, g, s.blend);
        *v = *v * s.beta2 + s.fresh * g * g;
        let denom = Real::sqrt(*v) / s.root_correction + s.eps;
        *p = *p * s.keep + s.size * *m / denom;
    }
}

/// PyTorch's two formulas: each is exact at its own end.
#[inline(always)]
fn lerp<R: Real>(from: R, to: R, weight: R) -> R {
    if weight < R::from_f64(0.5) { from + weight * (to - from) } else { to - (to - from) * (R::ONE - weight) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::proof::wide;
    use crate::testing::{Random, same_bits};

    const USUAL: Options = Options { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.01 };

    fn is_exact_enough<E: Elem>(n: usize, options: &Options) {
        let mut random = Random::new(n as u64);
        let start: Vec<E::Real> = random.vec(n);
        let grads: Vec<Vec<E::Real>> = (0..5).map(|_| random.vec(n)).collect();
        let zeros = || (vec![0.0; n], vec![0.0; n]);
        let (mut want, (mut m, mut v)) = (wide(&start), zeros());
        for (t, g) in (1..).zip(&grads) {
            reference(&mut want, &wide(g), &mut m, &mut v, options, t, 0.25);
        }
        let run = |isa: Option<Isa>| {
            let (mut p, mut m, mut v) = (start.clone(), vec![E::Real::ZERO; n], vec![E::Real::ZERO; n]);
            for (t, g) in (1..).zip(&grads) {
                let step = Step::new(options, t, 0.25);
                match isa {
                    Some(isa) => E::kernels(isa).adamw(&mut p, g, &mut m, &mut v, &step),
                    None => body::<E>(&mut p, g, &mut m, &mut v, &step),
                }
            }
            p
        };
        let plain = run(None);
        let error = wide(&plain).iter().zip(&want).map(|(p, w)| (p - w).abs()).fold(0.0, f64::max);
        // Parameters are below 1 and five steps round each a few times.
        let bound = if E::NAME == "f64" { 1e-14 } else { 1e-6 };
        assert!(error <= bound, "PyTorch's order is {error:e} from the equations");
        for &isa in Isa::available() {
            let got = run(Some(isa));
            same_bits(&got, &plain).unwrap_or_else(|e| panic!("{} {isa:?} {n} values: {e}", E::NAME));
        }
    }

    #[test]
    fn every_form_has_the_bits_of_the_plain_order_and_follows_the_equations() {
        for n in [0, 1, 15, 16, 17, 67, 1000] {
            is_exact_enough::<f32>(n, &USUAL);
            is_exact_enough::<f64>(n, &USUAL);
            is_exact_enough::<f64>(n, &Options { beta1: 0.3, beta2: 0.5, decay: 0.0, ..USUAL });
        }
    }

    #[test]
    fn the_first_step_without_decay_moves_by_the_rate_against_the_gradient() {
        let (mut p, mut m, mut v) = ([1.0, 1.0], [0.0; 2], [0.0; 2]);
        let step = Step::new(&Options { decay: 0.0, eps: 0.0, ..USUAL }, 1, 1.0);
        f64::kernels(Isa::Portable).adamw(&mut p, &[3.0, -0.01], &mut m, &mut v, &step);
        assert!((p[0] - 0.999).abs() <= 1e-12 && (p[1] - 1.001).abs() <= 1e-12, "{p:?}");
    }

    #[test]
    fn decay_alone_shrinks_by_rate_times_decay() {
        let (mut p, mut m, mut v) = ([2.0], [0.0], [0.0]);
        f64::kernels(Isa::Portable).adamw(&mut p, &[0.0], &mut m, &mut v, &Step::new(&USUAL, 1, 1.0));
        assert_eq!(p, [2.0 * (1.0 - 1e-5)]);
    }

    #[test]
    fn nan_reaches_its_own_parameter_and_no_other() {
        for &isa in Isa::available() {
            let (mut p, mut m, mut v) = ([1.0f32; 20], [0.0; 20], [0.0; 20]);
            let mut g = [1.0; 20];
            g[17] = f32::NAN;
            f32::kernels(isa).adamw(&mut p, &g, &mut m, &mut v, &Step::new(&USUAL, 1, 1.0));
            assert!((0..20).all(|i| p[i].is_nan() == (i == 17)), "{isa:?}: {p:?}");
        }
    }
}
