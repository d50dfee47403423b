//! What the tests of operations with a gradient share: slopes by differences, and widening to f64.
//! It knows no operation and no tolerance of a form; those are in `testing`.

#![allow(clippy::neg_cmp_op_on_partial_ord)] // !(error <= bound) is how NaN fails

use crate::{Elem, Real};

/// df/dh at h = 0 by the 4-point central difference: wrong by O(h^4), here about 1e-12 of f's fifth derivative.
pub fn slope(f: impl Fn(f64) -> f64) -> f64 {
    let h = 1e-3;
    (8.0 * (f(h) - f(-h)) - (f(2.0 * h) - f(-2.0 * h))) / (12.0 * h)
}

/// `gradient` is the slope of `loss` at `x` along every coordinate, to 1e-8 of the largest.
pub fn is_the_slope(what: &str, gradient: &[f64], x: &[f64], loss: impl Fn(&[f64]) -> f64) -> Result<(), String> {
    let scale = gradient.iter().fold(1.0, |a: f64, g| a.max(g.abs()));
    for (i, &g) in gradient.iter().enumerate() {
        let want = slope(|h| {
            let mut moved = x.to_vec();
            moved[i] += h;
            loss(&moved)
        });
        if !((g - want).abs() <= 1e-8 * scale) {
            return Err(format!("{what}[{i}] is {g}, the slope is {want}"));
        }
    }
    Ok(())
}

/// Every value in f64, exactly.
pub fn wide<E: Elem>(x: &[E]) -> Vec<f64> {
    x.iter().map(|x| x.widen().to_f64()).collect()
}

/// The inner product.
pub fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn the_slope_of_a_cubic_is_exact_and_a_wrong_gradient_is_seen() {
    assert!((slope(|h| (1.0 + h).powi(3)) - 3.0).abs() <= 1e-11);
    let loss = |x: &[f64]| x[0] * x[0] + 3.0 * x[1];
    assert!(is_the_slope("g", &[2.0, 3.0], &[1.0, 1.0], loss).is_ok());
    assert!(is_the_slope("g", &[2.0, 3.001], &[1.0, 1.0], loss).is_err());
    assert!(is_the_slope("g", &[f64::NAN, 3.0], &[1.0, 1.0], loss).is_err());
}
