//! Dropout: y_i = x_i * k_i / (1 - p), k_i = 0 with probability p and else 1   Srivastava et al. 2014, inverted
//!
//! The mask is a function of (key, channel): no state, so that it does not depend on packing, threads, device or resume.
//! The hash is two rounds of a 32-bit mixer on (channel, key); integer arithmetic, so every form has the same mask.
//!
//! ```text
//! shapes   x, y [n], one row (one token's values) per key
//! types    dropout x, y E; dropout_add Real
//! rounding 1 / (1 - p) to Real once, then one rounding at y. A dropped NaN or infinity is NaN, as in PyTorch (x * 0)
//! alias    none
//! used by  model: in front of LoRA's A, while training
//! ```

pub mod cuda;

use crate::stamp::stamp;
use crate::{Elem, Kernels, Real};

/// The key of one row: which mask it has.
pub fn key(seed: u64, step: u64, module: u64, sample: u64, position: u64) -> u64 {
    [step, module, sample, position].into_iter().fold(mix64(seed), |key, part| mix64(key ^ mix64(part)))
}

/// Is `channel` of the row of `key` kept, where a share `p` is dropped?
#[inline(always)]
pub fn keeps(key: u64, channel: u32, p: f32) -> bool {
    hash(key, channel) >> 1 >= threshold(p)
}

/// A uniform number in [-1, 1) for `channel` of the row of `key`: NEFTune's noise and LoRA's first values.
#[inline(always)]
pub fn uniform(key: u64, channel: u32) -> f32 {
    // the hash's upper 24 bits: every value is an f32, evenly spaced by 2^-23
    (hash(key, channel) >> 8) as f32 / (1u32 << 23) as f32 - 1.0
}

/// y of x: the mask, one channel at a time.
pub fn reference(y: &mut [f64], x: &[f64], key: u64, p: f32) {
    for i in 0..x.len() {
        y[i] = if keeps(key, i as u32, p) { x[i] / (1.0 - f64::from(p)) } else { 0.0 };
    }
}

stamp! {
    apply: fn(y: &mut [E], x: &[E], key: u64, p: f32) = body;
    add: fn(dx: &mut [E::Real], dy: &[E::Real], key: u64, p: f32) = body_add;
}

impl<E: Elem> Kernels<E> {
    /// y = x / (1 - p) where the mask of `key` keeps the channel, else 0.
    ///
    /// x, y \[n\]. Panics unless the lengths are equal. `p` of 1 or more drops all, of 0 or less none.
    pub fn dropout(&self, y: &mut [E], x: &[E], key: u64, p: f32) {
        assert!(y.len() == x.len(), "dropout: y and x have one length");
        // SAFETY: this table's level is one that the machine has.
        unsafe { (self.dropout.apply)(y, x, key, p) }
    }

    /// dx += dy / (1 - p) where the mask of `key` keeps the channel: the gradient of [`Kernels::dropout`].
    ///
    /// dx, dy \[n\]. Panics unless the lengths are equal.
    pub fn dropout_add(&self, dx: &mut [E::Real], dy: &[E::Real], key: u64, p: f32) {
        assert!(dx.len() == dy.len(), "dropout_add: dx and dy have one length");
        // SAFETY: this table's level is one that the machine has.
        unsafe { (self.dropout.add)(dx, dy, key, p) }
    }
}

#[inline(always)]
fn body<E: Elem>(y: &mut [E], x: &[E], key: u64, p: f32) {
    for (i, (y, x)) in (0u32..).zip(y.iter_mut().zip(x)) {
        *y = E::narrow(x.widen() * noise::<E::Real>(key, i, p));
    }
}

#[inline(always)]
fn body_add<E: Elem>(dx: &mut [E::Real], dy: &[E::Real], key: u64, p: f32) {
    for (i, (dx, dy)) in (0u32..).zip(dx.iter_mut().zip(dy)) {
        *dx += *dy * noise::<E::Real>(key, i, p);
    }
}

/// What channel i is multiplied by.
#[inline(always)]
fn noise<R: Real>(key: u64, channel: u32, p: f32) -> R {
    let scale = R::from_f64(1.0 / (1.0 - f64::from(p)));
    if keeps(key, channel, p) { scale } else { R::ZERO }
}

/// p as a share of 2^31; compared with 31 bits, so that p = 1 has a number too.
#[inline(always)]
fn threshold(p: f32) -> u32 {
    (f64::from(p.clamp(0.0, 1.0)) * (1u64 << 31) as f64) as u32
}

#[inline(always)]
fn hash(key: u64, channel: u32) -> u32 {
    mix32(mix32(channel ^ key as u32) ^ (key >> 32) as u32)
}

/// A bijection of 32 bits in which every input bit flips each output bit with probability near 1/2; the constants are
/// "lowbias32" of Wellons' search (hash-prospector, 2018).
#[inline(always)]
fn mix32(x: u32) -> u32 {
    let x = (x ^ x >> 16).wrapping_mul(0x7feb_352d);
    let x = (x ^ x >> 15).wrapping_mul(0x846c_a68b);
    x ^ x >> 16
}

/// The same for 64 bits: splitmix64's step (Steele, Lea and Flood 2014).
fn mix64(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_numbers_fill_their_range_evenly() {
        let n = 100_000;
        let all: Vec<f64> = (0..n).map(|channel| uniform(key(1, 2, 3, 4, 5), channel) as f64).collect();
        assert!(all.iter().all(|x| (-1.0..1.0).contains(x)));
        let mean = all.iter().sum::<f64>() / n as f64;
        let square = all.iter().map(|x| x * x).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.01 && (square - 1.0 / 3.0).abs() < 0.01, "mean {mean}, mean square {square}");
    }
    use crate::Isa;
    use crate::proof::wide;
    use crate::testing::{Random, check, same_bits};
    use half::bf16;

    fn is_exact_enough<E: Elem>(n: usize, p: f32) {
        let x: Vec<E> = Random::new(n as u64).vec(n);
        let key = key(1, 2, 3, 4, n as u64);
        let scale = E::Real::from_f64(1.0 / (1.0 - f64::from(p)));
        let value = |(i, x): (u32, &E)| if keeps(key, i, p) { E::narrow(x.widen() * scale) } else { E::default() };
        let plain: Vec<E> = (0..).zip(&x).map(value).collect();
        let mut want = vec![0.0; n];
        reference(&mut want, &wide(&x), key, p);
        for &isa in Isa::available() {
            let mut y = vec![E::default(); n];
            E::kernels(isa).dropout(&mut y, &x, key, p);
            check(&y, &plain, &want).unwrap_or_else(|e| panic!("{} {isa:?} {n} at {p}: {e}", E::NAME));
        }
    }

    #[test]
    fn every_form_agrees_with_the_reference() {
        for n in [0, 1, 16, 17, 67, 576] {
            for p in [0.0, 0.05, 0.5, 0.9] {
                is_exact_enough::<f32>(n, p);
                is_exact_enough::<bf16>(n, p);
                is_exact_enough::<f64>(n, p);
            }
        }
    }

    #[test]
    fn the_gradient_has_the_mask_of_the_forward_and_is_added() {
        for &isa in Isa::available() {
            let (x, key) = (Random::new(1).vec::<f32>(67), key(0, 1, 2, 3, 4));
            let (mut y, mut dx) = (vec![0.0; 67], vec![1.0; 67]);
            f32::kernels(isa).dropout(&mut y, &x, key, 0.3);
            f32::kernels(isa).dropout_add(&mut dx, &x, key, 0.3);
            let want: Vec<f32> = y.iter().map(|y| 1.0 + y).collect();
            same_bits(&dx, &want).unwrap();
        }
    }

    #[test]
    fn the_share_dropped_is_p_for_every_channel_and_for_every_key() {
        let (keys, channels, p) = (2000u64, 200u32, 0.1);
        // Five standard deviations of a binomial share.
        let near = |dropped: usize, of: f64| {
            (dropped as f64 / of - f64::from(p)).abs() <= 5.0 * (f64::from(p) * (1.0 - f64::from(p)) / of).sqrt()
        };
        let dropped = |key: u64, channel: u32| !keeps(key, channel, p);
        let rows: Vec<u64> = (0..keys).map(|position| key(7, 0, 0, 0, position)).collect();
        for channel in 0..channels {
            assert!(near(rows.iter().filter(|key| dropped(**key, channel)).count(), keys as f64), "channel {channel}");
        }
        for row in &rows {
            assert!(near((0..channels).filter(|channel| dropped(*row, *channel)).count(), channels as f64));
        }
    }

    #[test]
    fn neighbouring_keys_and_channels_are_independent() {
        let n = 100_000u64;
        let both = |a: &dyn Fn(u64) -> bool, b: &dyn Fn(u64) -> bool| (0..n).filter(|&i| a(i) && b(i)).count() as f64;
        let at = |i: u64, channel: u32| keeps(key(1, i, 0, 0, 0), channel, 0.5);
        let bound = 5.0 * (n as f64 * 0.25 * 0.75).sqrt();
        assert!((both(&|i| at(i, 3), &|i| at(i, 4)) - n as f64 / 4.0).abs() <= bound);
        assert!((both(&|i| at(i, 3), &|i| at(i + 1, 3)) - n as f64 / 4.0).abs() <= bound);
    }

    #[test]
    fn every_part_of_a_key_changes_the_mask() {
        let row = |key: u64| (0..64).map(|channel| keeps(key, channel, 0.5)).collect::<Vec<_>>();
        let base = row(key(0, 0, 0, 0, 0));
        for other in
            [key(1, 0, 0, 0, 0), key(0, 1, 0, 0, 0), key(0, 0, 1, 0, 0), key(0, 0, 0, 1, 0), key(0, 0, 0, 0, 1)]
        {
            assert_ne!(row(other), base);
        }
    }

    #[test]
    fn p_of_one_drops_all_and_p_of_zero_none() {
        assert!((0..1000).all(|channel| !keeps(5, channel, 1.0) && keeps(5, channel, 0.0)));
    }
}
