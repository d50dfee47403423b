//! Launches of `cuda.cu`: eight values a thread.

use crate::cuda::{Args, Launch, Ptr};

/// As in `cuda.cu`.
const THREADS: u32 = 256;
const VALUES: usize = 8;

/// h = gate * sigmoid(gate) * up; all \[len\] bf16.
pub fn forward(h: Ptr, gate: Ptr, up: Ptr, len: usize) -> Launch {
    launch("swiglu_forward", &[h, gate, up], len)
}

/// dgate and dup of dh, and h with the forward's bits; all \[len\] bf16, these three overwritten.
pub fn backward(h: Ptr, dgate: Ptr, dup: Ptr, dh: Ptr, gate: Ptr, up: Ptr, len: usize) -> Launch {
    launch("swiglu_backward", &[h, dgate, dup, dh, gate, up], len)
}

fn launch(entry: &'static str, tensors: &[Ptr], len: usize) -> Launch {
    let args = tensors.iter().fold(Args::new(), |args, &tensor| args.ptr(tensor)).u64(len as u64);
    let blocks = len.div_ceil(THREADS as usize * VALUES) as u32;
    Launch { entry, grid: [blocks, 1, 1], block: [THREADS, 1, 1], shared: 0, args }
}

#[cfg(test)]
mod tests {
    use super::super::{reference, reference_backward};
    use super::*;
    use crate::bf16;
    use crate::cuda::testing::Gpu;
    use crate::proof::wide;
    use crate::testing::{Random, check, same_bits};

    /// Gates from -12 to 12: both saturated ends and the middle.
    fn operands(len: usize) -> [Vec<bf16>; 3] {
        let mut random = Random::new(len as u64);
        std::array::from_fn(|_| (0..len).map(|_| bf16::from_f64(12.0 * random.signed())).collect())
    }

    fn plain(gate: bf16, up: bf16, dh: bf16) -> [bf16; 3] {
        let [g, u, d] = [gate, up, dh].map(f32::from);
        let s = 1.0 / (1.0 + (-f64::from(g)).exp() as f32);
        [g * s * u, d * u * s * (1.0 + g * (1.0 - s)), d * g * s].map(bf16::from_f32)
    }

    #[test]
    fn swiglu_on_cuda_agrees_with_the_reference() {
        let Some(mut gpu) = Gpu::of("swiglu::cuda", "swiglu/cuda.cu") else { return };
        for len in [0, 1, 7, 8, 9, 2047, 2048, 2053] {
            let [gate, up, dh] = operands(len);
            let [pgate, pup, pdh] = [&gate, &up, &dh].map(|values| gpu.put(values));
            let [h, again, dgate, dup] = [(); 4].map(|()| gpu.room::<bf16>(len));
            gpu.run(&forward(h, pgate, pup, len)).unwrap();
            gpu.run(&backward(again, dgate, dup, pdh, pgate, pup, len)).unwrap();
            same_bits(&gpu.get::<bf16>(again), &gpu.get::<bf16>(h)).unwrap_or_else(|e| panic!("h, {len} values: {e}"));
            let mut want = [(); 3].map(|()| vec![0.0; len]);
            let [want_h, want_gate, want_up] = &mut want;
            reference(want_h, &wide(&gate), &wide(&up));
            reference_backward(want_gate, want_up, &wide(&dh), &wide(&gate), &wide(&up));
            for (i, (got, want)) in [h, dgate, dup].into_iter().zip(&want).enumerate() {
                let plain: Vec<bf16> = (0..len).map(|j| plain(gate[j], up[j], dh[j])[i]).collect();
                check(&gpu.get::<bf16>(got), &plain, want).unwrap_or_else(|e| panic!("output {i}, {len} values: {e}"));
            }
        }
    }

    #[test]
    fn large_gates_saturate_on_cuda_and_nan_stays() {
        let Some(mut gpu) = Gpu::of("swiglu::cuda", "swiglu/cuda.cu") else { return };
        let of = |values: [f32; 4]| values.map(bf16::from_f32);
        let (gate, up) = (gpu.put(&of([-200.0, 200.0, f32::NAN, 1.0])), gpu.put(&of([3.0, 3.0, 3.0, f32::NAN])));
        let h = gpu.room::<bf16>(4);
        gpu.run(&forward(h, gate, up, 4)).unwrap();
        let h = gpu.get::<bf16>(h);
        assert_eq!(h[..2], [bf16::ZERO, bf16::from_f32(600.0)]);
        assert!(h[2].is_nan() && h[3].is_nan());
    }

    #[test]
    fn seeded_faults_on_cuda_are_found() {
        let past = ("(u32)(len - at)", "(u32)(len - at + 1)", "buffer");
        let overlap = ("return N * ((u64)", "return (N - 1) * ((u64)", "race");
        let twice = ("store(dup + at, u, count);", "store(dup, u, count);", "race");
        for (from, to, report) in [past, overlap, twice] {
            let Some(mut gpu) = Gpu::edited("swiglu::cuda, faults", "swiglu/cuda.cu", from, to) else { return };
            let [h, dgate, dup] = [(); 3].map(|()| gpu.room::<bf16>(63));
            let [dh, gate, up] = [(); 3].map(|()| gpu.put(&[bf16::ONE; 63]));
            let found = gpu.run(&backward(h, dgate, dup, dh, gate, up, 63)).expect_err(from);
            assert!(found.contains(report), "{from}: {found}");
        }
    }
}
