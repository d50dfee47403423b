//! Launches of `cuda.cu`: one block a row.

use crate::cuda::{Args, Launch, Ptr, row_threads};

/// As in `cuda.cu`.
const THREADS: u32 = 512;

/// y \[rows, width\] bf16 and r \[rows\] f32 of x \[rows, width\] f32 and w \[width\] f32.
pub fn forward(y: Ptr, r: Ptr, x: Ptr, w: Ptr, rows: u32, width: u32, eps: f32) -> Launch {
    let args = Args::new().ptr(y).ptr(r).ptr(x).ptr(w).u32(width).f32(eps);
    Launch { entry: "rmsnorm_forward", grid: [rows, 1, 1], block: [row_threads(width, THREADS), 1, 1], shared: 0, args }
}

/// dx += the gradient of x; all f32, shapes as in [`forward`].
pub fn backward(dx: Ptr, dy: Ptr, x: Ptr, w: Ptr, r: Ptr, rows: u32, width: u32) -> Launch {
    let args = Args::new().ptr(dx).ptr(dy).ptr(x).ptr(w).ptr(r).u32(width);
    Launch {
        entry: "rmsnorm_backward",
        grid: [rows, 1, 1],
        block: [row_threads(width, THREADS), 1, 1],
        shared: 0,
        args,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::plain;
    use super::super::{reference, reference_backward};
    use super::*;
    use crate::bf16;
    use crate::cuda::testing::Gpu;
    use crate::proof::wide;
    use crate::testing::{Random, check};

    #[test]
    fn rmsnorm_on_cuda_agrees_with_the_reference() {
        let Some(mut gpu) = Gpu::of("rmsnorm::cuda", "rmsnorm/cuda.cu") else { return };
        let mut random = Random::new(1);
        for (rows, width) in [(0, 5), (1, 1), (2, 7), (3, 64), (2, 516), (2, 576), (1, 8192), (1, 8196), (1, 9001)] {
            let (x, w): (Vec<f32>, Vec<f32>) = (random.vec(rows * width), random.vec(width));
            let (y, r) = (gpu.room::<bf16>(rows * width), gpu.room::<f32>(rows));
            let (px, pw) = (gpu.put(&x), gpu.put(&w));
            gpu.run(&forward(y, r, px, pw, rows as u32, width as u32, 1e-5)).unwrap();
            let (y, r_got) = (gpu.get::<bf16>(y), gpu.get::<f32>(r));
            let (dx, dy): (Vec<f32>, Vec<f32>) = (random.vec(rows * width), random.vec(rows * width));
            let (pdx, pdy) = (gpu.put(&dx), gpu.put(&dy));
            gpu.run(&backward(pdx, pdy, px, pw, r, rows as u32, width as u32)).unwrap();
            let dx_got = gpu.get::<f32>(pdx);
            for (i, x) in x.chunks(width).enumerate() {
                let row = i * width..(i + 1) * width;
                let (mut want, (plain_y, plain_r)) = (vec![0.0; width], plain::<bf16>(x, &w, 1e-5));
                let want_r = reference(&mut want, &wide(x), &wide(&w), f64::from(1e-5f32));
                check(&y[row.clone()], &plain_y, &want).unwrap_or_else(|e| panic!("y, {rows} x {width}: {e}"));
                check(&[r_got[i]], &[plain_r], &[want_r]).unwrap_or_else(|e| panic!("r, {rows} x {width}: {e}"));
                let (dx, dy) = (&dx[row.clone()], &dy[row.clone()]);
                let mut want = wide(dx);
                reference_backward(&mut want, &wide(dy), &wide(x), &wide(&w), f64::from(r_got[i]));
                let plain = super::super::tests::plain_backward(dx, dy, x, &w, r_got[i]);
                check(&dx_got[row], &plain, &want).unwrap_or_else(|e| panic!("dx, {rows} x {width}: {e}"));
            }
        }
    }

    #[test]
    fn nan_fills_its_row_on_cuda_and_no_other() {
        let Some(mut gpu) = Gpu::of("rmsnorm::cuda", "rmsnorm/cuda.cu") else { return };
        let (rows, width) = (3, 70);
        let mut x = vec![1f32; rows * width];
        x[width + 69] = f32::NAN;
        let (y, r, w) = (gpu.room::<bf16>(rows * width), gpu.room::<f32>(rows), gpu.put(&vec![1f32; width]));
        let (x, dx, dy) = (gpu.put(&x), gpu.put(&vec![0f32; rows * width]), gpu.put(&vec![1f32; rows * width]));
        gpu.run(&forward(y, r, x, w, rows as u32, width as u32, 1e-5)).unwrap();
        gpu.run(&backward(dx, dy, x, w, r, rows as u32, width as u32)).unwrap();
        for i in 0..rows * width {
            let in_row = i / width == 1;
            assert_eq!((gpu.get::<bf16>(y)[i].is_nan(), gpu.get::<f32>(dx)[i].is_nan()), (in_row, in_row), "{i}");
        }
    }

    #[test]
    fn a_rows_bits_on_cuda_are_the_same_in_any_place_and_company() {
        let Some(mut gpu) = Gpu::of("rmsnorm::cuda", "rmsnorm/cuda.cu") else { return };
        let mut random = Random::new(4);
        let (a, b, w): (Vec<f32>, Vec<f32>, Vec<f32>) = (random.vec(601), random.vec(601), random.vec(601));
        let mut run = |rows: &[&[f32]]| {
            let (y, r) = (gpu.room::<bf16>(rows.len() * 601), gpu.room::<f32>(rows.len()));
            let (x, w) = (gpu.put(&rows.concat()), gpu.put(&w));
            gpu.run(&forward(y, r, x, w, rows.len() as u32, 601, 1e-5)).unwrap();
            (gpu.get::<bf16>(y), gpu.get::<f32>(r))
        };
        let ((alone, r), (among, rs)) = (run(&[&a]), run(&[&b, &b, &a]));
        assert_eq!((&alone[..], r[0]), (&among[1202..], rs[2]));
    }

    /// Two rows of 600 values through an edited source; what the checker says.
    fn with_fault(from: &str, to: &str) -> Option<String> {
        let mut gpu = Gpu::edited("rmsnorm::cuda, faults", "rmsnorm/cuda.cu", from, to)?;
        let [x, w, y, r] = [gpu.put(&[1f32; 1200]), gpu.put(&[1f32; 600]), gpu.room::<bf16>(1200), gpu.room::<f32>(2)];
        Some(gpu.run(&forward(y, r, x, w, 2, 600, 1e-5)).expect_err(from))
    }

    #[test]
    fn seeded_faults_on_cuda_are_found() {
        let faults = [
            ("= x;\n    __syncthreads();", "= x;", "race"), // block_sum without its barrier
            ("if (threadIdx.x % WARP == 0) parts", "if (threadIdx.x == 0) parts", "uninitialised read"),
            (
                "x += __shfl_xor_sync(FULL, x, lane);",
                "if (threadIdx.x % 32 < 16) x += __shfl_xor_sync(FULL, x, lane);",
                "shfl",
            ),
            (
                "(size_t)blockIdx.x * width;\n    float held[PACKS][4], squares",
                "(size_t)(blockIdx.x + 1) * width;\n    float held[PACKS][4], squares",
                "buffer",
            ),
        ];
        for (from, to, report) in faults {
            let Some(found) = with_fault(from, to) else { return };
            assert!(found.contains(report), "{from}: {found}");
        }
    }
}
