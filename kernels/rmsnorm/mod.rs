//! RMSNorm: y_i = w_i * (x_i * r), r = 1 / sqrt(mean(x^2) + eps)          Zhang & Sennrich 2019 (arXiv 1910.07467), eq. 4
//!
//! ```text
//! shapes   x, y, w [D]: one row per call; rows are independent
//! types    x, w Real; y E; the sum of squares in 16 parts of Real
//! rounding once, at y. Hugging Face's LlamaRMSNorm rounds x * r to the model's type before the product with w; the
//!          residual stream here is never narrower than f32, so that there is nothing to round to
//! alias    none
//! used by  model: twice a block, once before the logits
//! ```

pub mod cuda;

use crate::stamp::{stamp, sum};
use crate::{Elem, Kernels, Real};

/// y of x and w; returns r.
pub fn reference(y: &mut [f64], x: &[f64], w: &[f64], eps: f64) -> f64 {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let r = 1.0 / (mean + eps).sqrt();
    for i in 0..x.len() {
        y[i] = w[i] * (x[i] * r);
    }
    r
}

/// dx_i += r * (w_i dy_i - x_i r^2 / D * sum_j w_j dy_j x_j). The weight is frozen: it has no gradient.
pub fn reference_backward(dx: &mut [f64], dy: &[f64], x: &[f64], w: &[f64], r: f64) {
    let along = (0..x.len()).map(|j| w[j] * dy[j] * x[j]).sum::<f64>();
    for i in 0..x.len() {
        dx[i] += r * (w[i] * dy[i] - x[i] * r * r / x.len() as f64 * along);
    }
}

stamp! {
    forward: fn(y: &mut [E], x: &[E::Real], w: &[E::Real], eps: E::Real) -> E::Real = row;
    backward: fn(dx: &mut [E::Real], dy: &[E::Real], x: &[E::Real], w: &[E::Real], r: E::Real) = row_backward;
}

impl<E: Elem> Kernels<E> {
    /// y = narrow(w * (x * r)) of one row; returns r = 1 / sqrt(mean(x^2) + eps), which the backward takes.
    ///
    /// y, x, w \[D\]. Panics unless their lengths are equal.
    pub fn rmsnorm(&self, y: &mut [E], x: &[E::Real], w: &[E::Real], eps: E::Real) -> E::Real {
        assert!(y.len() == x.len() && w.len() == x.len(), "rmsnorm: y, x and w are one row each");
        // SAFETY: this table's level is one that the machine has.
        unsafe { (self.rmsnorm.forward)(y, x, w, eps) }
    }

    /// dx += the gradient of one row's x; `r` is what the forward returned.
    ///
    /// dx, dy, x, w \[D\]. Panics unless their lengths are equal.
    pub fn rmsnorm_backward(&self, dx: &mut [E::Real], dy: &[E::Real], x: &[E::Real], w: &[E::Real], r: E::Real) {
        let n = x.len();
        assert!(dx.len() == n && dy.len() == n && w.len() == n, "rmsnorm_backward: dx, dy, x and w are one row each");
        // SAFETY: this table's level is one that the machine has.
        unsafe { (self.rmsnorm.backward)(dx, dy, x, w, r) }
    }
}

#[inline(always)]
fn row<E: Elem>(y: &mut [E], x: &[E::Real], w: &[E::Real], eps: E::Real) -> E::Real {
    let mean = sum([x], |[x]| x * x) / E::Real::from_f64(x.len() as f64);
    let r = E::Real::ONE / Real::sqrt(mean + eps);
    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
        *y = E::narrow(*w * (*x * r));
    }
    r
}

#[inline(always)]
fn row_backward<E: Elem>(dx: &mut [E::Real], dy: &[E::Real], x: &[E::Real], w: &[E::Real], r: E::Real) {
    let along = sum([w, dy, x], |[w, dy, x]| w * dy * x);
    let along = r * r * along / E::Real::from_f64(x.len() as f64);
    for (((dx, dy), x), w) in dx.iter_mut().zip(dy).zip(x).zip(w) {
        *dx += r * (*w * *dy - *x * along);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::proof::{inner, is_the_slope, wide};
    use crate::testing::{Random, check};
    use half::bf16;

    const LENGTHS: [usize; 9] = [1, 2, 15, 16, 17, 31, 67, 576, 4096];

    /// Sequential sums, one rounding at the output.
    pub(super) fn plain<E: Elem>(x: &[E::Real], w: &[E::Real], eps: E::Real) -> (Vec<E>, E::Real) {
        let mut squares = E::Real::ZERO;
        x.iter().for_each(|x| squares += *x * *x);
        let r = E::Real::ONE / Real::sqrt(squares / E::Real::from_f64(x.len() as f64) + eps);
        (x.iter().zip(w).map(|(x, w)| E::narrow(*w * (*x * r))).collect(), r)
    }

    pub(super) fn plain_backward<R: Real>(dx: &[R], dy: &[R], x: &[R], w: &[R], r: R) -> Vec<R> {
        let mut along = R::ZERO;
        (0..x.len()).for_each(|j| along += w[j] * dy[j] * x[j]);
        let share = r * r / R::from_f64(x.len() as f64) * along;
        (0..x.len()).map(|i| dx[i] + r * (w[i] * dy[i] - x[i] * share)).collect()
    }

    fn forward_is_exact_enough<E: Elem>() {
        let mut random = Random::new(1);
        for n in LENGTHS {
            let (x, w): (Vec<E::Real>, Vec<E::Real>) = (random.vec(n), random.vec(n));
            let eps = E::Real::from_f64(1e-5);
            let (plain_y, plain_r) = plain::<E>(&x, &w, eps);
            let mut want = vec![0.0; n];
            let want_r = reference(&mut want, &wide(&x), &wide(&w), eps.to_f64());
            for &isa in Isa::available() {
                let mut y = vec![E::default(); n];
                let r = E::kernels(isa).rmsnorm(&mut y, &x, &w, eps);
                check(&y, &plain_y, &want).unwrap_or_else(|e| panic!("{} {isa:?} D = {n}: {e}", E::NAME));
                check(&[r], &[plain_r], &[want_r]).unwrap_or_else(|e| panic!("{} {isa:?} r, D = {n}: {e}", E::NAME));
            }
        }
    }

    fn backward_is_exact_enough<E: Elem>() {
        let mut random = Random::new(2);
        for n in LENGTHS {
            let [x, w, dy, dx]: [Vec<E::Real>; 4] = std::array::from_fn(|_| random.vec(n));
            let r = plain::<E>(&x, &w, E::Real::from_f64(1e-5)).1;
            let mut want = wide(&dx);
            reference_backward(&mut want, &wide(&dy), &wide(&x), &wide(&w), r.to_f64());
            let plain = plain_backward::<E::Real>(&dx, &dy, &x, &w, r);
            for &isa in Isa::available() {
                let mut got = dx.clone();
                E::kernels(isa).rmsnorm_backward(&mut got, &dy, &x, &w, r);
                check(&got, &plain, &want).unwrap_or_else(|e| panic!("{} {isa:?} D = {n}: {e}", E::NAME));
            }
        }
    }

    #[test]
    fn every_form_agrees_with_the_reference() {
        forward_is_exact_enough::<f32>();
        forward_is_exact_enough::<bf16>();
        forward_is_exact_enough::<f64>();
    }

    #[test]
    fn every_backward_form_agrees_with_the_reference() {
        backward_is_exact_enough::<f32>();
        backward_is_exact_enough::<f64>();
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_forward() {
        let (n, eps) = (5, 1e-5);
        let mut random = Random::new(3);
        let [x, w, dy]: [Vec<f64>; 3] = std::array::from_fn(|_| random.vec(n));
        let loss = |x: &[f64]| {
            let mut y = vec![0.0; n];
            reference(&mut y, x, &w, eps);
            inner(&y, &dy)
        };
        let r = reference(&mut vec![0.0; n], &x, &w, eps);
        let mut dx = vec![0.0; n];
        reference_backward(&mut dx, &dy, &x, &w, r);
        is_the_slope("dx", &dx, &x, loss).unwrap();
    }

    #[test]
    fn an_empty_row_stays_empty_and_nan_spreads() {
        for &isa in Isa::available() {
            let kernels = f32::kernels(isa);
            kernels.rmsnorm(&mut [], &[], &[], 1e-5);
            kernels.rmsnorm_backward(&mut [], &[], &[], &[], 1.0);
            let mut y = [0.0; 20];
            let mut x = [1.0; 20];
            x[17] = f32::NAN;
            assert!(kernels.rmsnorm(&mut y, &x, &[1.0; 20], 1e-5).is_nan());
            assert!(y.iter().all(|y| y.is_nan()), "{isa:?}");
        }
    }
}
