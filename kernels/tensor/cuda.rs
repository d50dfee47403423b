//! Launches of `cuda.cu`: sixteen values a thread.

use crate::cuda::{Args, Launch, Ptr, row_threads};

/// As in `cuda.cu`.
const THREADS: u32 = 256;
const VALUES: usize = 16;

/// y \[len\] bf16 of x \[len\] f32, rounded.
pub fn round(y: Ptr, x: Ptr, len: usize) -> Launch {
    narrow(y, x, len, 1.0)
}

/// y \[len\] bf16 = x \[len\] f32 times `scale`, rounded.
pub fn narrow(y: Ptr, x: Ptr, len: usize, scale: f32) -> Launch {
    flat("tensor_narrow", len, Args::new().ptr(y).ptr(x).u64(len as u64).f32(scale))
}

/// y += x; both \[len\] f32.
pub fn add(y: Ptr, x: Ptr, len: usize) -> Launch {
    flat("tensor_add", len, Args::new().ptr(y).ptr(x).u64(len as u64))
}

/// Row i of y \[rows, width\] = row `rows_ptr[i]` of x; f32, the numbers u32.
pub fn gather(y: Ptr, x: Ptr, rows_ptr: Ptr, rows: u32, width: u32) -> Launch {
    by_row("tensor_gather", rows, width, Args::new().ptr(y).ptr(x).ptr(rows_ptr).u32(width))
}

/// Row `rows_ptr[i]` of y += row i of x \[rows, width\]; f32, the numbers u32 and all different.
pub fn scatter_add(y: Ptr, x: Ptr, rows_ptr: Ptr, rows: u32, width: u32) -> Launch {
    by_row("tensor_scatter_add", rows, width, Args::new().ptr(y).ptr(x).ptr(rows_ptr).u32(width))
}

/// x = x `share[row]` + base (1 - `share[row]`); x and base \[rows, width\], share \[rows\], all f32.
pub fn blend(x: Ptr, base: Ptr, share: Ptr, rows: u32, width: u32) -> Launch {
    by_row("tensor_blend", rows, width, Args::new().ptr(x).ptr(base).ptr(share).u32(width))
}

fn flat(entry: &'static str, len: usize, args: Args) -> Launch {
    let blocks = len.div_ceil(THREADS as usize * VALUES) as u32;
    Launch { entry, grid: [blocks, 1, 1], block: [THREADS, 1, 1], shared: 0, args }
}

fn by_row(entry: &'static str, rows: u32, width: u32, args: Args) -> Launch {
    Launch { entry, grid: [rows, 1, 1], block: [row_threads(width, THREADS), 1, 1], shared: 0, args }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16;
    use crate::cuda::testing::Gpu;
    use crate::testing::{Random, same_bits};

    #[test]
    fn flat_moves_on_cuda_have_the_bits_of_the_cpu() {
        let Some(mut gpu) = Gpu::of("tensor::cuda", "tensor/cuda.cu") else { return };
        let mut random = Random::new(1);
        for len in [0, 1, 5, 4095, 4096, 4101] {
            let (mut x, mut sum) = (random.vec::<f32>(len), random.vec::<f32>(len));
            x.iter_mut().skip(3).for_each(|x| *x *= 1e3);
            x.iter_mut().skip(4).step_by(1000).for_each(|x| *x = f32::NAN);
            let [px, psum] = [&x, &sum].map(|values| gpu.put(values));
            let [rounded, scaled] = [(); 2].map(|()| gpu.room::<bf16>(len));
            gpu.run(&round(rounded, px, len)).unwrap();
            gpu.run(&narrow(scaled, px, len, 0.3)).unwrap();
            gpu.run(&add(psum, px, len)).unwrap();
            for (got, scale) in [(rounded, 1.0), (scaled, 0.3)] {
                let (got, mut want) = (gpu.get::<bf16>(got), vec![bf16::ZERO; len]);
                super::super::narrow(&mut want, &x, scale);
                let same =
                    |(got, want): (&bf16, &bf16)| got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                assert!(got.len() == len && got.iter().zip(&want).all(same), "times {scale}, {len} values");
            }
            super::super::add(&mut sum, &x);
            same_bits(&gpu.get::<f32>(psum), &sum).unwrap_or_else(|e| panic!("add, {len} values: {e}"));
        }
    }

    #[test]
    fn moves_of_rows_on_cuda_have_the_bits_of_the_cpu() {
        let Some(mut gpu) = Gpu::of("tensor::cuda", "tensor/cuda.cu") else { return };
        let mut random = Random::new(2);
        for (rows, width) in [(&[][..], 4), (&[3], 1), (&[3, 0, 2], 7), (&[1, 3], 576), (&[2], 4101)] {
            let (x, mut sum) = (random.vec::<f32>(4 * width), random.vec::<f32>(4 * width));
            let (px, psum, prows) = (gpu.put(&x), gpu.put(&sum), gpu.put(rows));
            let y = gpu.room::<f32>(rows.len() * width);
            let (n, w) = (rows.len() as u32, width as u32);
            gpu.run(&gather(y, px, prows, n, w)).unwrap();
            gpu.run(&scatter_add(psum, px, prows, n, w)).unwrap();
            let mut want = vec![0.0; rows.len() * width];
            super::super::gather(&mut want, &x, rows, width);
            super::super::scatter_add(&mut sum, &x, rows, width);
            same_bits(&gpu.get::<f32>(y), &want).unwrap_or_else(|e| panic!("gather {rows:?} of {width}: {e}"));
            same_bits(&gpu.get::<f32>(psum), &sum).unwrap_or_else(|e| panic!("scatter {rows:?} of {width}: {e}"));
        }
    }

    #[test]
    fn a_blend_of_rows_on_cuda_has_the_bits_of_the_cpu() {
        let Some(mut gpu) = Gpu::of("tensor::cuda", "tensor/cuda.cu") else { return };
        let mut random = Random::new(3);
        for (share, width) in [(&[][..], 4), (&[0.3], 1), (&[0.0, 1.0, 0.7], 67), (&[0.1, 0.9], 576), (&[0.5], 4101)] {
            let (mut x, base) = (random.vec::<f32>(share.len() * width), random.vec::<f32>(share.len() * width));
            let (px, pbase, pshare) = (gpu.put(&x), gpu.put(&base), gpu.put::<f32>(share));
            gpu.run(&blend(px, pbase, pshare, share.len() as u32, width as u32)).unwrap();
            super::super::blend(&mut x, &base, share, width);
            same_bits(&gpu.get::<f32>(px), &x).unwrap_or_else(|e| panic!("{share:?} of {width}: {e}"));
        }
    }

    #[test]
    fn an_address_that_is_no_multiple_of_sixteen_is_moved_too() {
        let Some(mut gpu) = Gpu::of("tensor::cuda", "tensor/cuda.cu") else { return };
        let (x, y) = (gpu.put(&[1f32; 40]), gpu.put(&[0f32; 40]));
        gpu.run(&add(y.offset(4), x.offset(8), 37)).unwrap();
        let y = gpu.get::<f32>(y);
        assert!((0..40).all(|i| y[i] == if (1..38).contains(&i) { 1.0 } else { 0.0 }), "{y:?}");
    }

    #[test]
    fn seeded_faults_on_cuda_are_found() {
        let row = (
            "(size_t)rows[blockIdx.x] * width;\n    float* to",
            "(size_t)(rows[blockIdx.x] + 1) * width;\n    float* to",
            "buffer",
        );
        let overlap =
            ("float* to = y + (size_t)blockIdx.x * width", "float* to = y + (size_t)blockIdx.x * (width - 1)", "race");
        for (from, to, report) in [row, overlap] {
            let Some(mut gpu) = Gpu::edited("tensor::cuda, faults", "tensor/cuda.cu", from, to) else { return };
            let (y, rows) = (gpu.room::<f32>(40), gpu.put(&[0u32, 1]));
            let x = gpu.put(&[0f32; 40]);
            let found = gpu.run(&gather(y, x, rows, 2, 20)).expect_err(from);
            assert!(found.contains(report), "{from}: {found}");
        }
    }

    #[test]
    fn a_row_named_twice_is_found() {
        let Some(mut gpu) = Gpu::checked("tensor::cuda, a row named twice", "tensor/cuda.cu") else { return };
        let (y, x, rows) = (gpu.put(&[0f32; 8]), gpu.put(&[0f32; 8]), gpu.put(&[1u32, 1]));
        assert!(gpu.run(&scatter_add(y, x, rows, 2, 4)).unwrap_err().contains("race"));
    }
}
