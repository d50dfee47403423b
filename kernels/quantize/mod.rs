//! Quantisation: w = s q + error, q whole numbers of 8 or 4 bits, s a scale for a run of a row
//!
//! ```text
//! shapes   w, q [cols], one row per call; s [ceil(cols / run)]
//! types    w f32, s bf16, q as [`Bits`] has it
//! rounding q to nearest even of w / s; s once. Widened again, s q is exact in f32
//! error    8 bits: at most s / 2, with s = max |w| / 127. 4 bits: s is the best of STEPS, by the sum of squared errors
//! gradient none: only frozen weights are quantised (Dettmers et al. 2023, arXiv 2305.14314, section 3)
//! source   8 bits with a scale per output: Dettmers et al. 2022 (arXiv 2208.07339), section 2, without its outliers; the layout
//!          is that of the PyPI package compressed-tensors, `int-quantized` and `pack-quantized`. 4 bits by search: Frantar
//!          and Alistarh 2022 (arXiv 2208.11580), section 4, for one scale
//! used by  models whose weights are quantised when they are opened or by `dialoguellm quantize`
//! ```

pub mod cuda;
pub mod packed;

use crate::{Bits, bf16};

/// Columns that share a scale of 4-bit numbers.
pub const RUN: usize = 32;

impl Bits {
    /// Columns that share a scale where this library quantises: 8 bits a whole row, because a matrix unit's sums over a row
    /// then need one multiplication.
    pub fn run(self, cols: usize) -> usize {
        match self {
            Bits::Eight => cols.max(1),
            Bits::Four => RUN,
        }
    }
}

/// What the value furthest from zero becomes in 4 bits, before it is rounded and kept within -8 to 7: the side with eight
/// steps, cut off a little, exactly or not at all, or the other side.
const STEPS: [f32; 8] = [-8.0, -7.5, -7.0, -8.5, -9.0, 7.0, 7.5, 8.0];

/// Writes `w` as whole numbers with scales.
///
/// q \[[`Bits::row_bytes`]\], scales \[ceil(cols / [`Bits::run`])\]. A run with a NaN or an infinity gets a scale of NaN, so that
/// nobody takes it for numbers; one of zeros gets zero. Panics where lengths are others.
pub fn quantize(bits: Bits, q: &mut [u8], scales: &mut [bf16], w: &[f32]) {
    let run = bits.run(w.len());
    assert_eq!(q.len(), bits.row_bytes(w.len()), "bytes of a row of {} values", w.len());
    assert_eq!(scales.len(), w.len().div_ceil(run), "scales of a row of {} values", w.len());
    match bits {
        Bits::Eight => scales.iter_mut().for_each(|scale| *scale = eight(q, w)),
        Bits::Four => {
            q.fill(0x88); // zeros, also behind the last column
            for ((w, q), scale) in w.chunks(run).zip(q.chunks_mut(run / 2)).zip(scales) {
                *scale = four(q, w);
            }
        }
    }
}

fn eight(q: &mut [u8], w: &[f32]) -> bf16 {
    let largest = furthest(w).abs();
    let scale = bf16::from_f32(largest / 127.0);
    let by = divisor(scale);
    q.iter_mut().zip(w).for_each(|(q, w)| *q = (nearest(w / by) as i32).clamp(-127, 127) as i8 as u8);
    scale
}

fn four(q: &mut [u8], w: &[f32]) -> bf16 {
    let furthest = furthest(w);
    let tried = STEPS.map(|step| {
        let scale = bf16::from_f32(furthest / step);
        (scale, error(w, scale))
    });
    let (scale, _) = tried.into_iter().reduce(|best, next| if next.1 < best.1 { next } else { best }).expect("steps");
    let by = divisor(scale);
    for (q, w) in q.iter_mut().zip(w.chunks(2)) {
        let half = |i: usize| (w.get(i).map_or(0.0, |w| within(w / by)) as i8 + 8) as u8;
        *q = half(0) | half(1) << 4;
    }
    scale
}

/// The value furthest from zero, or NaN where one is not finite.
fn furthest(w: &[f32]) -> f32 {
    let all_finite = w.iter().fold(true, |all, w| all & w.is_finite());
    let furthest = w.iter().fold(0.0f32, |most, &w| if w.abs() > most.abs() { w } else { most });
    if all_finite { furthest } else { f32::NAN }
}

/// What values are divided by: a scale of zero makes zeros of all.
fn divisor(scale: bf16) -> f32 {
    if scale == bf16::ZERO { f32::INFINITY } else { scale.to_f32() }
}

/// The sum of squared errors.
fn error(w: &[f32], scale: bf16) -> f32 {
    let (scale, by) = (scale.to_f32(), divisor(scale));
    w.iter().map(|w| w - scale * within(w / by)).map(|error| error * error).sum()
}

fn within(x: f32) -> f32 {
    let x = nearest(x);
    let x = if x < -8.0 { -8.0 } else { x };
    if x > 7.0 { 7.0 } else { x }
}

/// To nearest even below 2^22, in two additions, so that loops over it vectorise.
fn nearest(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
    (x + ROUND) - ROUND
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::Scales;
    use crate::testing::Random;
    use crate::{Dtype, Matrix};

    /// A matrix as whole numbers, and what it is widened to.
    fn quantized(bits: Bits, w: &[f32], cols: usize) -> (Vec<u8>, Vec<u8>, Vec<f32>) {
        let rows = w.len() / cols;
        let (bytes, runs) = (bits.row_bytes(cols), cols.div_ceil(bits.run(cols)));
        let (mut q, mut scales) = (vec![0; rows * bytes], vec![bf16::ZERO; rows * runs]);
        for i in 0..rows {
            let (q, scales) = (&mut q[i * bytes..][..bytes], &mut scales[i * runs..][..runs]);
            quantize(bits, q, scales, &w[i * cols..][..cols]);
        }
        let scales: Vec<u8> = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
        let of = Scales::new(Dtype::Bf16, &scales, rows, cols, bits.run(cols)).unwrap();
        let matrix = Matrix::quantized(bits, &q, of, rows, cols).unwrap();
        let mut wide = vec![0.0; w.len()];
        wide.chunks_mut(cols).enumerate().for_each(|(i, wide)| matrix.read_row(i, 0, wide));
        (q, scales, wide)
    }

    fn rms(x: impl Iterator<Item = f32>) -> f64 {
        let squares: Vec<f64> = x.map(|x| f64::from(x).powi(2)).collect();
        (squares.iter().sum::<f64>() / squares.len() as f64).sqrt()
    }

    #[test]
    fn eight_bits_are_off_by_half_a_step_at_most_at_every_length() {
        for cols in 1..=70 {
            let w = Random::new(cols as u64).vec::<f32>(3 * cols);
            let (_, _, wide) = quantized(Bits::Eight, &w, cols);
            for (w, wide) in w.chunks(cols).zip(wide.chunks(cols)) {
                let step = bf16::from_f32(w.iter().fold(0.0f32, |most, w| most.max(w.abs())) / 127.0).to_f32();
                for (w, wide) in w.iter().zip(wide) {
                    assert!((w - wide).abs() <= 0.5001 * step, "{w} became {wide}, in steps of {step}");
                }
            }
        }
    }

    /// A normal value's error with 16 levels within a run of 32: 2.6 sigma is the run's mean furthest value, 8 steps of
    /// 0.33 sigma, and a uniform error of a step has an RMS of 0.29 steps.
    #[test]
    fn four_bits_lose_a_tenth_of_what_normal_weights_are_spread_by() {
        let mut random = Random::new(1);
        let normal: Vec<f32> =
            (0..64 * 96).map(|_| (0..12).map(|_| random.signed() as f32).sum::<f32>() / 2.0).collect();
        let (_, _, wide) = quantized(Bits::Four, &normal, 96);
        let lost = rms(normal.iter().zip(&wide).map(|(w, wide)| w - wide)) / rms(normal.iter().copied());
        assert!(lost < 0.092, "{lost}");
        // Searched, so not above any one step's.
        for step in STEPS {
            let one: f64 = normal.chunks(RUN).map(|w| f64::from(error(w, bf16::from_f32(furthest(w) / step)))).sum();
            let best = rms(normal.iter().zip(&wide).map(|(w, wide)| w - wide)).powi(2) * normal.len() as f64;
            assert!(best <= one * 1.0001, "step {step}: {one}, the best of all {best}");
        }
    }

    #[test]
    fn what_is_a_multiple_of_a_scale_stays_as_it_is() {
        let w: Vec<f32> = (-127..=127).map(|q| q as f32 * 0.375).collect();
        assert_eq!(quantized(Bits::Eight, &w, w.len()).2, w);
        let w: Vec<f32> = (0..64).map(|i| (i % 16 - 8) as f32 * 0.25).collect();
        assert_eq!(quantized(Bits::Four, &w, 64).2, w);
        let turned: Vec<f32> = w.iter().map(|w| -w).collect();
        assert_eq!(quantized(Bits::Four, &turned, 64).2, turned, "a scale may be negative");
    }

    #[test]
    fn zeros_stay_zero_and_what_is_not_finite_is_not_finite() {
        for bits in [Bits::Eight, Bits::Four] {
            assert_eq!(quantized(bits, &[0.0, -0.0, 0.0], 3).2, [0.0; 3]);
            assert_eq!(quantized(bits, &[1e-44, 0.0, 0.0], 3).2, [0.0; 3], "too small for a scale");
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut w = vec![1.0; 2 * 40];
                w[35] = bad;
                let (_, _, wide) = quantized(bits, &w, 40);
                assert!(wide[35].is_nan() && wide[40..].iter().all(|x| (x - 1.0).abs() < 0.02), "{bad}: {wide:?}");
            }
        }
    }

    #[test]
    fn four_bits_lie_as_compressed_tensors_has_them() {
        let w: Vec<f32> = [-8, -7, 0, 1, 7, 6, 3, -1, 2].map(|q| q as f32).to_vec();
        let (q, scales, _) = quantized(Bits::Four, &w, 9);
        assert_eq!(q, [0x10, 0x98, 0xef, 0x7b, 0x8a, 0x88, 0x88, 0x88]);
        assert_eq!(scales, bf16::ONE.to_le_bytes());
    }

    #[test]
    fn any_part_of_a_row_is_read_alike() {
        for (bits, cols) in [(Bits::Eight, 50), (Bits::Four, 50), (Bits::Four, 97)] {
            let w = Random::new(3).vec::<f32>(2 * cols);
            let (q, scales, wide) = quantized(bits, &w, cols);
            let of = Scales::new(Dtype::Bf16, &scales, 2, cols, bits.run(cols)).unwrap();
            let matrix = Matrix::quantized(bits, &q, of, 2, cols).unwrap();
            for (from, to) in (0..=cols).flat_map(|from| (from..=cols).map(move |to| (from, to))) {
                let mut part = vec![0.0f32; to - from];
                matrix.read_row(1, from, &mut part);
                assert_eq!(part, wide[cols + from..cols + to], "{bits:?}, columns {from}..{to}");
                let mut alone = vec![0.0f32; to - from];
                matrix.slice_rows(1..2).read_row(0, from, &mut alone);
                assert_eq!(alone, part);
            }
        }
    }

    #[test]
    fn packed_rows_are_what_they_were() {
        for (bits, cols) in [(Bits::Eight, 50), (Bits::Eight, 51), (Bits::Four, 50), (Bits::Four, 97)] {
            let (rows, run) = (70, bits.run(cols));
            let w = Random::new(4).vec::<f32>(rows * cols);
            let (row_q, row_scales, wide) = quantized(bits, &w, cols);
            let (bytes, runs, sizes) = (bits.row_bytes(cols), cols.div_ceil(run), packed::panel_sizes(bits, cols, run));
            let (mut q, mut scales) = (vec![0; 3 * sizes.0], vec![bf16::ZERO; 3 * sizes.1]);
            for i in 0..rows {
                let to = (&mut q[i / 32 * sizes.0..][..sizes.0], &mut scales[i / 32 * sizes.1..][..sizes.1]);
                let stored = row_scales[2 * i * runs..][..2 * runs].as_chunks().0;
                let stored: Vec<bf16> = stored.iter().map(|b| bf16::from_le_bytes(*b)).collect();
                packed::put(bits, to, i % 32, &row_q[i * bytes..][..bytes], &stored);
            }
            let matrix = Matrix::packed(packed::Packed::new(bits, &q, &scales, [rows, cols], run).unwrap());
            for (matrix, first) in [(matrix, 0), (matrix.slice_rows(32..70), 32)] {
                for (i, from) in (first..rows).flat_map(|i| [0, 1, 33].map(|from| (i, from))) {
                    let mut got = vec![0.0f32; cols - from];
                    matrix.read_row(i - first, from, &mut got);
                    assert_eq!(got, wide[i * cols + from..(i + 1) * cols], "{bits:?}, row {i} from {from} of {cols}");
                }
            }
            assert!(packed::Packed::new(bits, &q[1..], &scales, [rows, cols], run).is_none());
            assert!(packed::Packed::new(bits, &q, &scales[1..], [rows, cols], run).is_none());
            assert!(packed::Packed::new(bits, &q, &scales, [rows, cols], 7).is_none());
        }
    }

    #[test]
    fn lengths_that_do_not_fit_are_no_matrix() {
        let scales = |bytes, run| Scales::new(Dtype::Bf16, bytes, 2, 20, run);
        assert!(scales(&[0; 4], 20).is_some() && scales(&[0; 12], 8).is_some());
        assert!(scales(&[0; 3], 20).is_none() && scales(&[0; 16], 6).is_none() && scales(&[], 0).is_none());
        let of = |bits, bytes| Matrix::quantized(bits, bytes, scales(&[0; 4], 20).unwrap(), 2, 20).is_some();
        assert!(of(Bits::Eight, &[0; 40]) && of(Bits::Four, &[0; 24]));
        assert!(!of(Bits::Eight, &[0; 41]) && !of(Bits::Four, &[0; 20]));
        let other = Matrix::quantized(Bits::Eight, &[0; 60], scales(&[0; 4], 20).unwrap(), 3, 20);
        assert!(other.is_none(), "scales of another shape");
    }
}
