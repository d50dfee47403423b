//! Launches of `cuda.cu`: one block a row.

use super::threshold;
use crate::cuda::{Args, Launch, Ptr, row_threads};

/// As in `cuda.cu`.
const THREADS: u32 = 256;

/// y = x / (1 - p) where the mask of the row's key keeps the channel, else 0; x, y \[rows, width\] bf16, keys \[rows\] u64.
pub fn apply(y: Ptr, x: Ptr, keys: Ptr, rows: u32, width: u32, p: f32) -> Launch {
    launch("dropout_apply", rows, width, masked([y, x, keys], width, p))
}

/// dx += dy / (1 - p) where the mask keeps the channel: the gradient of [`apply`]; dx, dy \[rows, width\] f32.
pub fn add(dx: Ptr, dy: Ptr, keys: Ptr, rows: u32, width: u32, p: f32) -> Launch {
    launch("dropout_add", rows, width, masked([dx, dy, keys], width, p))
}

/// x += the row's scale times a uniform number in [-1, 1) per channel; x \[rows, width\] and scale \[rows\] f32.
pub fn noise(x: Ptr, keys: Ptr, scale: Ptr, rows: u32, width: u32) -> Launch {
    launch("dropout_noise", rows, width, Args::new().ptr(x).ptr(keys).ptr(scale).u32(width))
}

fn masked(tensors: [Ptr; 3], width: u32, p: f32) -> Args {
    let scale = (1.0 / (1.0 - f64::from(p))) as f32;
    tensors.into_iter().fold(Args::new(), Args::ptr).u32(width).u32(threshold(p)).f32(scale)
}

fn launch(entry: &'static str, rows: u32, width: u32, args: Args) -> Launch {
    Launch { entry, grid: [rows, 1, 1], block: [row_threads(width, THREADS), 1, 1], shared: 0, args }
}

#[cfg(test)]
mod tests {
    use super::super::{key, uniform};
    use super::*;
    use crate::cuda::testing::Gpu;
    use crate::testing::{Random, same_bits};
    use crate::{Elem, Isa, bf16};

    const SHAPES: [(usize, usize); 6] = [(0, 4), (1, 1), (2, 7), (3, 67), (2, 576), (1, 4104)];

    fn keys(rows: usize) -> Vec<u64> {
        (0..rows as u64).map(|row| key(1, 2, 3, 4, row)).collect()
    }

    #[test]
    fn masks_and_scaled_values_on_cuda_have_the_bits_of_the_cpu() {
        let Some(mut gpu) = Gpu::of("dropout::cuda", "dropout/cuda.cu") else { return };
        for ((rows, width), p) in SHAPES.into_iter().zip([0.0, 0.5, 1.0, 0.1, 0.05, 0.9]) {
            let mut random = Random::new(width as u64);
            let (x, dy, mut dx) =
                (random.vec::<bf16>(rows * width), random.vec::<f32>(rows * width), random.vec(rows * width));
            let keys = keys(rows);
            let (px, pdy, pdx, pkeys) = (gpu.put(&x), gpu.put(&dy), gpu.put::<f32>(&dx), gpu.put(&keys));
            let y = gpu.room::<bf16>(rows * width);
            gpu.run(&apply(y, px, pkeys, rows as u32, width as u32, p)).unwrap();
            gpu.run(&add(pdx, pdy, pkeys, rows as u32, width as u32, p)).unwrap();
            let mut want = vec![bf16::ZERO; rows * width];
            for (i, &key) in keys.iter().enumerate() {
                let row = i * width..(i + 1) * width;
                let cpu = bf16::kernels(Isa::best(None));
                cpu.dropout(&mut want[row.clone()], &x[row.clone()], key, p);
                cpu.dropout_add(&mut dx[row.clone()], &dy[row], key, p);
            }
            same_bits(&gpu.get::<bf16>(y), &want).unwrap_or_else(|e| panic!("apply, {rows} x {width} at {p}: {e}"));
            same_bits(&gpu.get::<f32>(pdx), &dx).unwrap_or_else(|e| panic!("add, {rows} x {width} at {p}: {e}"));
        }
    }

    #[test]
    fn uniform_numbers_on_cuda_have_the_bits_of_the_cpu() {
        let Some(mut gpu) = Gpu::of("dropout::cuda", "dropout/cuda.cu") else { return };
        for (rows, width) in SHAPES {
            let mut random = Random::new(width as u64);
            let (mut x, keys, scale) = (random.vec::<f32>(rows * width), keys(rows), random.vec::<f32>(rows));
            let (px, pkeys, pscale) = (gpu.put(&x), gpu.put(&keys), gpu.put(&scale));
            gpu.run(&noise(px, pkeys, pscale, rows as u32, width as u32)).unwrap();
            for (i, x) in x.chunks_mut(width).enumerate() {
                (0..).zip(x).for_each(|(channel, x)| *x += scale[i] * uniform(keys[i], channel));
            }
            same_bits(&gpu.get::<f32>(px), &x).unwrap_or_else(|e| panic!("{rows} x {width}: {e}"));
        }
    }

    #[test]
    fn a_dropped_nan_is_nan_on_cuda_as_on_the_cpu() {
        let Some(mut gpu) = Gpu::of("dropout::cuda", "dropout/cuda.cu") else { return };
        let (x, keys, y) = (gpu.put(&[bf16::NAN, bf16::ONE]), gpu.put(&[5u64]), gpu.room::<bf16>(2));
        gpu.run(&apply(y, x, keys, 1, 2, 1.0)).unwrap();
        let y = gpu.get::<bf16>(y);
        assert!(y[0].is_nan() && y[1] == bf16::ZERO);
    }

    #[test]
    fn seeded_faults_on_cuda_are_found() {
        let keys = (
            "float* row = x + (size_t)blockIdx.x * width;\n    u64 key = keys[blockIdx.x]",
            "float* row = x + (size_t)blockIdx.x * width;\n    u64 key = keys[blockIdx.x + 1]",
            "buffer",
        );
        let row = (
            "float* row = x + (size_t)blockIdx.x * width",
            "float* row = x + (size_t)(blockIdx.x + 1) * width",
            "buffer",
        );
        let overlap = (
            "float* row = x + (size_t)blockIdx.x * width",
            "float* row = x + (size_t)blockIdx.x * (width - 4)",
            "race",
        );
        for (from, to, report) in [keys, row, overlap] {
            let Some(mut gpu) = Gpu::edited("dropout::cuda, faults", "dropout/cuda.cu", from, to) else { return };
            let (x, keys, scale) = (gpu.put(&[0f32; 40]), gpu.put(&[1u64, 2]), gpu.put(&[1f32; 2]));
            let found = gpu.run(&noise(x, keys, scale, 2, 20)).expect_err(from);
            assert!(found.contains(report), "{from}: {found}");
        }
    }
}
