//! RoPE: each head's halves turn together, (y_i, y_{i+d/2}) = (x_i c_i - x_{i+d/2} s_i, x_{i+d/2} c_i + x_i s_i)
//!                                                                      Su et al. 2021 (arXiv 2104.09864), eq. 34
//!
//! The pairing is Hugging Face's rotate_half (modeling_llama.py, apply_rotary_pos_emb), not the paper's neighbours.
//!
//! ```text
//! shapes   x, y [heads * d], one token; cos, sin [d / 2] of its position
//! types    forward x Real, y E; backward dy Real, dx E
//! rounding once, at the output
//! alias    none
//! used by  model: queries and keys, and their gradients
//! ```

pub mod cuda;

use crate::stamp::stamp;
use crate::{Elem, Kernels};

/// y of x, every head of one token.
pub fn reference(y: &mut [f64], x: &[f64], dim: usize, cos: &[f64], sin: &[f64]) {
    for (y, x) in y.chunks_exact_mut(dim).zip(x.chunks_exact(dim)) {
        for i in 0..dim / 2 {
            y[i] = x[i] * cos[i] - x[i + dim / 2] * sin[i];
            y[i + dim / 2] = x[i + dim / 2] * cos[i] + x[i] * sin[i];
        }
    }
}

/// dx of dy: a rotation's transpose turns back.
pub fn reference_backward(dx: &mut [f64], dy: &[f64], dim: usize, cos: &[f64], sin: &[f64]) {
    let back: Vec<f64> = sin.iter().map(|s| -s).collect();
    reference(dx, dy, dim, cos, &back);
}

stamp! {
    turn: fn(y: &mut [E], x: &[E::Real], dim: usize, cos: &[E::Real], sin: &[E::Real]) = turn_on;
    back: fn(dx: &mut [E], dy: &[E::Real], dim: usize, cos: &[E::Real], sin: &[E::Real]) = turn_back;
}

impl<E: Elem> Kernels<E> {
    /// Turns every head of one token by its position's angles.
    ///
    /// y, x \[heads * dim\]; cos, sin \[dim / 2\]; dim even. Panics where a length disagrees.
    pub fn rope(&self, y: &mut [E], x: &[E::Real], dim: usize, cos: &[E::Real], sin: &[E::Real]) {
        check(y.len(), x.len(), dim, cos.len(), sin.len());
        // SAFETY: this table's level is one that the machine has.
        unsafe { (self.rope.turn)(y, x, dim, cos, sin) }
    }

    /// The gradient of [`Kernels::rope`]'s x: the inverse rotation.
    ///
    /// dx, dy \[heads * dim\]; cos, sin \[dim / 2\]; dim even. Panics where a length disagrees.
    pub fn rope_backward(&self, dx: &mut [E], dy: &[E::Real], dim: usize, cos: &[E::Real], sin: &[E::Real]) {
        check(dx.len(), dy.len(), dim, cos.len(), sin.len());
        // SAFETY: this table's level is one that the machine has.
        unsafe { (self.rope.back)(dx, dy, dim, cos, sin) }
    }
}

fn check(y: usize, x: usize, dim: usize, cos: usize, sin: usize) {
    assert!(dim > 0 && dim.is_multiple_of(2), "rope: the head size {dim} is not even");
    assert!(y == x && x.is_multiple_of(dim), "rope: rows of {y} and {x} values are not whole heads of {dim}");
    assert!(cos == dim / 2 && sin == dim / 2, "rope: {cos} cosines and {sin} sines for a head of {dim}");
}

#[inline(always)]
fn turn_on<E: Elem>(y: &mut [E], x: &[E::Real], dim: usize, cos: &[E::Real], sin: &[E::Real]) {
    heads(y, x, dim, |low, high, i| (low * cos[i] - high * sin[i], high * cos[i] + low * sin[i]));
}

#[inline(always)]
fn turn_back<E: Elem>(dx: &mut [E], dy: &[E::Real], dim: usize, cos: &[E::Real], sin: &[E::Real]) {
    heads(dx, dy, dim, |low, high, i| (low * cos[i] + high * sin[i], high * cos[i] - low * sin[i]));
}

/// `pair(x_i, x_{i+d/2}, i)` of every head.
#[inline(always)]
fn heads<E: Elem>(
    y: &mut [E],
    x: &[E::Real],
    dim: usize,
    pair: impl Fn(E::Real, E::Real, usize) -> (E::Real, E::Real),
) {
    for (y, x) in y.chunks_exact_mut(dim).zip(x.chunks_exact(dim)) {
        let ((y_low, y_high), (x_low, x_high)) = (y.split_at_mut(dim / 2), x.split_at(dim / 2));
        for (i, (((y_low, y_high), x_low), x_high)) in y_low.iter_mut().zip(y_high).zip(x_low).zip(x_high).enumerate() {
            let (low, high) = pair(*x_low, *x_high, i);
            (*y_low, *y_high) = (E::narrow(low), E::narrow(high));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proof::{inner, wide};
    use crate::testing::{Random, check};
    use crate::{Isa, Real};
    use half::bf16;

    const SHAPES: [(usize, usize); 7] = [(1, 2), (3, 6), (2, 16), (9, 64), (1, 34), (4, 80), (2, 256)];

    struct Case<R> {
        x: Vec<R>,
        cos: Vec<R>,
        sin: Vec<R>,
    }

    fn case<R: Real>(heads: usize, dim: usize) -> Case<R> {
        let mut random = Random::new((heads * dim) as u64);
        let angle: Vec<f64> = (0..dim / 2).map(|_| 3.0 * random.signed()).collect();
        let of = |f: fn(f64) -> f64| angle.iter().map(|a| R::from_f64(f(*a))).collect();
        Case { x: random.vec(heads * dim), cos: of(f64::cos), sin: of(f64::sin) }
    }

    /// Both directions; a sine of the other sign is the inverse.
    fn is_exact_enough<E: Elem>(heads: usize, dim: usize) {
        let c = case::<E::Real>(heads, dim);
        for &isa in Isa::available() {
            for forward in [true, false] {
                let sign = if forward { E::Real::ONE } else { -E::Real::ONE };
                let (mut want, mut plain, mut got) = (vec![0.0; c.x.len()], vec![], vec![E::default(); c.x.len()]);
                for x in c.x.chunks(dim) {
                    let half = dim / 2;
                    plain.extend((0..half).map(|i| E::narrow(x[i] * c.cos[i] - x[i + half] * (sign * c.sin[i]))));
                    plain.extend((0..half).map(|i| E::narrow(x[i + half] * c.cos[i] + x[i] * (sign * c.sin[i]))));
                }
                let (x, cos, sin) = (wide(&c.x), wide(&c.cos), wide(&c.sin));
                if forward {
                    reference(&mut want, &x, dim, &cos, &sin);
                    E::kernels(isa).rope(&mut got, &c.x, dim, &c.cos, &c.sin);
                } else {
                    reference_backward(&mut want, &x, dim, &cos, &sin);
                    E::kernels(isa).rope_backward(&mut got, &c.x, dim, &c.cos, &c.sin);
                }
                check(&got, &plain, &want)
                    .unwrap_or_else(|e| panic!("{} {isa:?} {heads} heads of {dim}, forward {forward}: {e}", E::NAME));
            }
        }
    }

    #[test]
    fn every_form_agrees_with_the_reference() {
        for (heads, dim) in SHAPES {
            is_exact_enough::<f32>(heads, dim);
            is_exact_enough::<bf16>(heads, dim);
            is_exact_enough::<f64>(heads, dim);
        }
    }

    #[test]
    fn the_backward_is_the_transpose_of_the_forward() {
        for (heads, dim) in SHAPES {
            let c = case::<f64>(heads, dim);
            let dy: Vec<f64> = Random::new(9).vec(heads * dim);
            let (mut y, mut dx) = (vec![0.0; dy.len()], vec![0.0; dy.len()]);
            reference(&mut y, &c.x, dim, &c.cos, &c.sin);
            reference_backward(&mut dx, &dy, dim, &c.cos, &c.sin);
            assert!((inner(&y, &dy) - inner(&c.x, &dx)).abs() <= 1e-12 * dy.len() as f64);
        }
    }

    #[test]
    fn a_head_turns_by_halves_and_not_by_neighbours() {
        let mut y = [0.0; 4];
        f64::kernels(Isa::Portable).rope(&mut y, &[1.0, 2.0, 3.0, 4.0], 4, &[0.0, 1.0], &[1.0, 0.0]);
        assert_eq!(y, [-3.0, 2.0, 1.0, 4.0]);
    }

    #[test]
    fn no_heads_is_no_work_and_nan_reaches_both_halves() {
        for &isa in Isa::available() {
            f32::kernels(isa).rope(&mut [], &[], 4, &[1.0; 2], &[0.0; 2]);
            let mut y = [0.0; 4];
            f32::kernels(isa).rope(&mut y, &[f32::NAN, 0.0, 0.0, 0.0], 4, &[0.5; 2], &[0.5; 2]);
            assert_eq!(y.map(f32::is_nan), [true, false, true, false]);
        }
    }
}
