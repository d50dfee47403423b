//! Moves of the residual stream: round, narrow, gather, scatter-add, add, blend
//!
//! ```text
//! shapes   round, narrow, add: any run of values, all independent; gather, scatter_add: rows of D values, named by number;
//!          blend: rows of D values with a share each
//! types    x Real; y E for round and narrow, Real for the others
//! rounding round, narrow: once, at y, after one of the product x scale; add, scatter_add: once; gather: none;
//!          blend: both products, 1 - share, and their sum
//! alias    none
//! used by  the CUDA device; the CPU has blend, and its moves of one line each in the device itself
//! ```

pub mod cuda;

use crate::{Elem, Real};

/// y = narrow(x scale); a scale of 1 only rounds.
pub fn narrow<E: Elem>(y: &mut [E], x: &[E::Real], scale: E::Real) {
    y.iter_mut().zip(x).for_each(|(y, &x)| *y = E::narrow(x * scale));
}

/// y += x.
pub fn add<R: Real>(y: &mut [R], x: &[R]) {
    y.iter_mut().zip(x).for_each(|(y, &x)| *y += x);
}

/// Row i of y = row `rows[i]` of x.
pub fn gather<R: Real>(y: &mut [R], x: &[R], rows: &[u32], width: usize) {
    for (y, &row) in y.chunks_exact_mut(width).zip(rows) {
        y.copy_from_slice(&x[row as usize * width..][..width]);
    }
}

/// Row `rows[i]` of y += row i of x; no row is named twice.
pub fn scatter_add<R: Real>(y: &mut [R], x: &[R], rows: &[u32], width: usize) {
    for (x, &row) in x.chunks_exact(width).zip(rows) {
        add(&mut y[row as usize * width..][..width], x);
    }
}

/// Row i of x = x `share[i]` + base (1 - `share[i]`): a share of 1 leaves x, one of 0 makes it base.
pub fn blend<R: Real>(x: &mut [R], base: &[R], share: &[f32], width: usize) {
    let rows = x.chunks_exact_mut(width).zip(base.chunks_exact(width));
    for ((x, base), &share) in rows.zip(share) {
        let (own, other) = (R::from_f32(share), R::from_f32(1.0 - share));
        x.iter_mut().zip(base).for_each(|(x, &base)| *x = *x * own + base * other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn what_was_gathered_is_added_back_to_its_own_rows() {
        let (x, rows) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 0]);
        let (mut y, mut sum) = ([0.0; 4], x);
        gather(&mut y, &x, &rows, 2);
        assert_eq!(y, [5.0, 6.0, 1.0, 2.0]);
        scatter_add(&mut sum, &y, &rows, 2);
        assert_eq!(sum, [2.0, 4.0, 3.0, 4.0, 10.0, 12.0]);
    }

    #[test]
    fn narrowing_scales_in_the_wide_type_and_rounds_once() {
        let mut y = [bf16::ZERO; 2];
        narrow(&mut y, &[1.005f32, f32::NAN], 100.0);
        assert_eq!(y[0], bf16::from_f32(100.5)); // bf16 of 1.005 is 1.0078
        assert!(y[1].is_nan());
    }

    #[test]
    fn a_blend_goes_from_one_row_to_the_other() {
        let mut x = [1.0f32, 2.0, 1.0, 2.0, 1.0, 2.0];
        blend(&mut x, &[5.0, 6.0, 5.0, 6.0, 5.0, 6.0], &[1.0, 0.0, 0.5], 2);
        assert_eq!(x, [1.0, 2.0, 5.0, 6.0, 3.0, 4.0]);
    }
}
