//! Launches of `cuda.cu`: one block a row.

use crate::cuda::{Args, Launch, Ptr};

/// As in `cuda.cu`.
const THREADS: u32 = 128;

/// y \[rows, heads * 2 half\] bf16 of x f32, every head of row i turned by the angles of table row `at[i]`.
///
/// cos, sin \[positions, half\] f32; at \[rows\] u32, each below the number of positions.
pub fn forward(y: Ptr, x: Ptr, cos: Ptr, sin: Ptr, at: Ptr, rows: u32, heads: u32, half: u32) -> Launch {
    launch("rope_forward", [y, x, cos, sin, at], rows, heads, half)
}

/// dx bf16 of dy f32: the inverse rotation; shapes as in [`forward`].
pub fn backward(dx: Ptr, dy: Ptr, cos: Ptr, sin: Ptr, at: Ptr, rows: u32, heads: u32, half: u32) -> Launch {
    launch("rope_backward", [dx, dy, cos, sin, at], rows, heads, half)
}

fn launch(entry: &'static str, tensors: [Ptr; 5], rows: u32, heads: u32, half: u32) -> Launch {
    let threads = (heads * half.div_ceil(4)).next_multiple_of(32).clamp(32, THREADS);
    let args = tensors.into_iter().fold(Args::new(), Args::ptr).u32(heads).u32(half);
    Launch { entry, grid: [rows, 1, 1], block: [threads, 1, 1], shared: 0, args }
}

#[cfg(test)]
mod tests {
    use super::super::{reference, reference_backward};
    use super::*;
    use crate::bf16;
    use crate::cuda::testing::Gpu;
    use crate::proof::wide;
    use crate::testing::{Random, check};

    const POSITIONS: usize = 5;

    /// cos and sin of random angles, a row a position.
    fn table(random: &mut Random, half: usize) -> [Vec<f32>; 2] {
        let angles: Vec<f64> = (0..POSITIONS * half).map(|_| 3.0 * random.signed()).collect();
        [f64::cos, f64::sin].map(|f| angles.iter().map(|a| f(*a) as f32).collect())
    }

    fn plain(x: &[f32], half: usize, cos: &[f32], sin: &[f32], sign: f32) -> Vec<bf16> {
        let head = |x: &[f32]| -> Vec<bf16> {
            let low = (0..half).map(|i| x[i] * cos[i] - x[i + half] * (sign * sin[i]));
            let high = (0..half).map(|i| x[i + half] * cos[i] + x[i] * (sign * sin[i]));
            low.chain(high).map(bf16::from_f32).collect()
        };
        x.chunks(2 * half).flat_map(head).collect()
    }

    #[test]
    fn rope_on_cuda_agrees_with_the_reference() {
        let Some(mut gpu) = Gpu::of("rope::cuda", "rope/cuda.cu") else { return };
        let mut random = Random::new(1);
        for (rows, heads, half) in [(0, 2, 2), (1, 1, 1), (2, 3, 3), (3, 9, 32), (2, 3, 64), (1, 2, 130)] {
            let width = heads * 2 * half;
            let (x, [cos, sin]) = (random.vec::<f32>(rows * width), table(&mut random, half));
            let at: Vec<u32> = (0..rows).map(|_| random.below(POSITIONS) as u32).collect();
            let [px, pcos, psin, pat] = [gpu.put(&x), gpu.put(&cos), gpu.put(&sin), gpu.put(&at)];
            let (y, dx) = (gpu.room::<bf16>(rows * width), gpu.room::<bf16>(rows * width));
            let [r, h, d] = [rows, heads, half].map(|n| n as u32);
            gpu.run(&forward(y, px, pcos, psin, pat, r, h, d)).unwrap();
            gpu.run(&backward(dx, px, pcos, psin, pat, r, h, d)).unwrap();
            let (y, dx) = (gpu.get::<bf16>(y), gpu.get::<bf16>(dx));
            for (i, &at) in at.iter().enumerate() {
                let (row, angles) = (i * width..(i + 1) * width, at as usize * half..(at as usize + 1) * half);
                let (x, cos, sin) = (&x[row.clone()], &cos[angles.clone()], &sin[angles]);
                let (mut want, mut want_back) = (vec![0.0; width], vec![0.0; width]);
                reference(&mut want, &wide(x), 2 * half, &wide(cos), &wide(sin));
                reference_backward(&mut want_back, &wide(x), 2 * half, &wide(cos), &wide(sin));
                let told = |e| panic!("row {i} of {rows}, {heads} heads of {}: {e}", 2 * half);
                check(&y[row.clone()], &plain(x, half, cos, sin, 1.0), &want).unwrap_or_else(told);
                check(&dx[row], &plain(x, half, cos, sin, -1.0), &want_back).unwrap_or_else(told);
            }
        }
    }

    /// One row of one head of four, [NaN, 0, 0, 0], through a source.
    fn with_nan(mut gpu: Gpu) -> Result<Vec<bf16>, String> {
        let [x, cos, sin] = [vec![f32::NAN, 0.0, 0.0, 0.0], vec![0.5; 2], vec![0.5; 2]].map(|values| gpu.put(&values));
        let (y, at) = (gpu.room::<bf16>(4), gpu.put(&[0u32]));
        gpu.run(&forward(y, x, cos, sin, at, 1, 1, 2))?;
        Ok(gpu.get(y))
    }

    #[test]
    fn nan_on_cuda_reaches_both_halves_of_its_pair_and_no_other() {
        let Some(gpu) = Gpu::of("rope::cuda", "rope/cuda.cu") else { return };
        let nan: Vec<bool> = with_nan(gpu).unwrap().iter().map(|y| y.is_nan()).collect();
        assert_eq!(nan, [true, false, true, false]);
    }

    #[test]
    fn seeded_faults_on_cuda_are_found() {
        let row = ("(size_t)blockIdx.x * heads", "(size_t)(blockIdx.x + 1) * heads", "buffer");
        let half = ("count = half - first;", "count = half + 4 - first;", "buffer");
        let unwritten = (
            "store(y + lows + half, turned_high, count);",
            "load(low, y + lows + half, count); store(y + lows, low, count);",
            "uninitialised read",
        );
        for (from, to, report) in [row, half, unwritten] {
            let Some(gpu) = Gpu::edited("rope::cuda, faults", "rope/cuda.cu", from, to) else { return };
            let found = with_nan(gpu).expect_err(from);
            assert!(found.contains(report), "{from}: {found}");
        }
    }
}
