//! SwiGLU: h_i = g_i s(g_i) u_i, s(g) = 1 / (1 + e^-g)                    Shazeer 2020 (arXiv 2002.05202), eq. 5
//!
//! ```text
//! shapes   gate, up, h [F]: any run of values, all independent
//! types    operands E, arithmetic Real
//! rounding once, at each output. Hugging Face's bf16 LlamaMLP also rounds g s(g) before the product; here it is kept
//! alias    none
//! used by  model: the feed-forward part of a block
//! ```

pub mod cuda;

use crate::stamp::stamp;
use crate::{Elem, Kernels, Real};

/// h of gate and up.
pub fn reference(h: &mut [f64], gate: &[f64], up: &[f64]) {
    for i in 0..h.len() {
        h[i] = gate[i] / (1.0 + (-gate[i]).exp()) * up[i];
    }
}

/// dup = dh g s, dgate = dh u s (1 + g (1 - s)).
pub fn reference_backward(dgate: &mut [f64], dup: &mut [f64], dh: &[f64], gate: &[f64], up: &[f64]) {
    for i in 0..dh.len() {
        let s = 1.0 / (1.0 + (-gate[i]).exp());
        dup[i] = dh[i] * gate[i] * s;
        dgate[i] = dh[i] * up[i] * s * (1.0 + gate[i] * (1.0 - s));
    }
}

stamp! {
    forward: fn(h: &mut [E], gate: &[E], up: &[E]) = body;
    backward: fn(h: &mut [E], dgate: &mut [E], dup: &mut [E], dh: &[E], gate: &[E], up: &[E]) = body_backward;
}

impl<E: Elem> Kernels<E> {
    /// h = gate * sigmoid(gate) * up, element by element.
    ///
    /// Panics unless the lengths are equal.
    pub fn swiglu(&self, h: &mut [E], gate: &[E], up: &[E]) {
        assert!(gate.len() == h.len() && up.len() == h.len(), "swiglu: h, gate and up have one length");
        // SAFETY: this table's level is one that the machine has.
        unsafe { (self.swiglu.forward)(h, gate, up) }
    }

    /// The gradients of gate and up, and once more h, all overwritten: who needs the gradients needs h, and it costs
    /// less here than alone. h has the forward's bits.
    ///
    /// Panics unless the lengths are equal.
    pub fn swiglu_backward(&self, h: &mut [E], dgate: &mut [E], dup: &mut [E], dh: &[E], gate: &[E], up: &[E]) {
        let lengths = [h.len(), dgate.len(), dup.len(), gate.len(), up.len()];
        assert!(lengths == [dh.len(); 5], "swiglu_backward: h, dgate, dup, dh, gate and up have one length");
        // SAFETY: this table's level is one that the machine has.
        unsafe { (self.swiglu.backward)(h, dgate, dup, dh, gate, up) }
    }
}

#[inline(always)]
fn sigmoid<R: Real>(x: R) -> R {
    R::ONE / (R::ONE + Real::exp(-x))
}

#[inline(always)]
fn body<E: Elem>(h: &mut [E], gate: &[E], up: &[E]) {
    for ((h, g), u) in h.iter_mut().zip(gate).zip(up) {
        let g = g.widen();
        *h = E::narrow(g * sigmoid(g) * u.widen());
    }
}

#[inline(always)]
fn body_backward<E: Elem>(h: &mut [E], dgate: &mut [E], dup: &mut [E], dh: &[E], gate: &[E], up: &[E]) {
    for (((((h, dgate), dup), dh), g), u) in h.iter_mut().zip(dgate).zip(dup).zip(dh).zip(gate).zip(up) {
        let (dh, g, u) = (dh.widen(), g.widen(), u.widen());
        let s = sigmoid(g);
        *h = E::narrow(g * s * u);
        *dup = E::narrow(dh * (g * s));
        *dgate = E::narrow(dh * u * (s * (E::Real::ONE + g * (E::Real::ONE - s))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::proof::{inner, is_the_slope, wide};
    use crate::testing::{Random, check, same_bits};
    use half::bf16;

    const LENGTHS: [usize; 7] = [0, 1, 15, 16, 17, 67, 1536];

    /// Gates from -12 to 12: both saturated ends and the middle.
    fn operands<E: Elem, const N: usize>(n: usize) -> [Vec<E>; N] {
        let mut random = Random::new(n as u64);
        std::array::from_fn(|_| (0..n).map(|_| E::narrow(E::Real::from_f64(12.0 * random.signed()))).collect())
    }

    /// The sigmoid by the platform's own exponential.
    fn plain_sigmoid<R: Real>(x: R) -> R {
        R::ONE / (R::ONE + R::from_f64((-x.to_f64()).exp()))
    }

    fn forward_is_exact_enough<E: Elem>(n: usize) {
        let [gate, up] = operands::<E, 2>(n);
        let mut want = vec![0.0; n];
        reference(&mut want, &wide(&gate), &wide(&up));
        let value = |g: E, u: E| E::narrow(g.widen() * plain_sigmoid(g.widen()) * u.widen());
        let plain: Vec<E> = gate.iter().zip(&up).map(|(g, u)| value(*g, *u)).collect();
        for &isa in Isa::available() {
            let mut h = vec![E::default(); n];
            E::kernels(isa).swiglu(&mut h, &gate, &up);
            check(&h, &plain, &want).unwrap_or_else(|e| panic!("{} {isa:?} F = {n}: {e}", E::NAME));
        }
    }

    fn backward_is_exact_enough<E: Elem>(n: usize) {
        let [dh, gate, up] = operands::<E, 3>(n);
        let (mut want_gate, mut want_up) = (vec![0.0; n], vec![0.0; n]);
        reference_backward(&mut want_gate, &mut want_up, &wide(&dh), &wide(&gate), &wide(&up));
        let (mut plain_gate, mut plain_up) = (vec![], vec![]);
        for i in 0..n {
            let (dh, g, u) = (dh[i].widen(), gate[i].widen(), up[i].widen());
            let s = plain_sigmoid(g);
            plain_up.push(E::narrow(dh * g * s));
            plain_gate.push(E::narrow(dh * u * s * (E::Real::ONE + g * (E::Real::ONE - s))));
        }
        for &isa in Isa::available() {
            let [mut h, mut dgate, mut dup, mut forward] = [(); 4].map(|()| vec![E::default(); n]);
            E::kernels(isa).swiglu_backward(&mut h, &mut dgate, &mut dup, &dh, &gate, &up);
            E::kernels(isa).swiglu(&mut forward, &gate, &up);
            same_bits(&h, &forward).unwrap_or_else(|e| panic!("{} {isa:?} h {n}: {e}", E::NAME));
            check(&dgate, &plain_gate, &want_gate).unwrap_or_else(|e| panic!("{} {isa:?} dgate {n}: {e}", E::NAME));
            check(&dup, &plain_up, &want_up).unwrap_or_else(|e| panic!("{} {isa:?} dup {n}: {e}", E::NAME));
        }
    }

    #[test]
    fn every_form_agrees_with_the_reference() {
        for n in LENGTHS {
            forward_is_exact_enough::<f32>(n);
            forward_is_exact_enough::<bf16>(n);
            forward_is_exact_enough::<f64>(n);
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
    fn the_gradients_are_the_slopes_of_the_forward() {
        let n = 7;
        let mut random = Random::new(5);
        let [gate, up, dh]: [Vec<f64>; 3] = std::array::from_fn(|_| random.vec(n));
        let loss = |gate: &[f64], up: &[f64]| {
            let mut h = vec![0.0; n];
            reference(&mut h, gate, up);
            inner(&h, &dh)
        };
        let (mut dgate, mut dup) = (vec![0.0; n], vec![0.0; n]);
        reference_backward(&mut dgate, &mut dup, &dh, &gate, &up);
        is_the_slope("dgate", &dgate, &gate, |gate| loss(gate, &up)).unwrap();
        is_the_slope("dup", &dup, &up, |up| loss(&gate, up)).unwrap();
    }

    #[test]
    fn large_gates_saturate_and_nan_stays() {
        for &isa in Isa::available() {
            let mut h = [1.0f32; 4];
            f32::kernels(isa).swiglu(&mut h, &[-200.0, 200.0, f32::NAN, 1.0], &[3.0, 3.0, 3.0, f32::NAN]);
            assert_eq!(h[..2], [0.0, 600.0]);
            assert!(h[2].is_nan() && h[3].is_nan());
        }
    }
}
