//! Launches of `cuda.cu`: one block a row.

use crate::cuda::{Args, Launch, Ptr};

const THREADS: u32 = 128;

/// y \[rows, width\] bf16 and r \[rows\] f32 of x \[rows, width\] f32 and w \[width\] f32.
pub fn forward(y: Ptr, r: Ptr, x: Ptr, w: Ptr, rows: u32, width: u32, eps: f32) -> Launch {
    let args = Args::new().ptr(y).ptr(r).ptr(x).ptr(w).u32(width).f32(eps);
    Launch { entry: "rmsnorm_forward", grid: [rows, 1, 1], block: [THREADS, 1, 1], shared: 0, args }
}

/// dx += the gradient of x; all f32, shapes as in [`forward`].
pub fn backward(dx: Ptr, dy: Ptr, x: Ptr, w: Ptr, r: Ptr, rows: u32, width: u32) -> Launch {
    let args = Args::new().ptr(dx).ptr(dy).ptr(x).ptr(w).ptr(r).u32(width);
    Launch { entry: "rmsnorm_backward", grid: [rows, 1, 1], block: [THREADS, 1, 1], shared: 0, args }
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
        for (rows, width) in [(1, 1), (2, 7), (3, 128), (1, 129), (2, 576), (1, 4096)] {
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
}
