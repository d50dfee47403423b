//! Launches of `cuda.cu`. A step is [`norm_partials`], [`decide`], [`step`] on one stream: clipping, and skipping a gradient
//! that is not finite, never wait for the host.

use super::Step;
use crate::cuda::{Args, Launch, Ptr};

/// As in `cuda.cu`.
const THREADS: u32 = 256;
const RUN: usize = 16 * THREADS as usize;
const MAX_PARTIALS: usize = 1024;

/// What [`decide`] leaves on the device, for [`step`] and for the host to read.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct State {
    /// The gradient's Euclidean norm; infinite where its square is no f32.
    pub norm: f64,
    /// What the gradient is multiplied by: min(1, clip / (norm + 1e-6)).
    pub scale: f32,
    /// Not 0 where the step was skipped.
    pub skip: u32,
}

/// How many partial sums a gradient of `len` values has: the same for every launch.
pub fn partials(len: usize) -> u32 {
    len.div_ceil(RUN).min(MAX_PARTIALS) as u32
}

/// out \[partials(len)\] f64: sums of squares of grad \[len\] f32.
pub fn norm_partials(out: Ptr, grad: Ptr, len: usize) -> Launch {
    let args = Args::new().ptr(out).ptr(grad).u64(len as u64);
    launch("adamw_norm_partials", partials(len), args)
}

/// The [`State`] of a gradient whose squares are the `n` sums of [`norm_partials`]; `clip` 0 leaves it alone. The step is
/// skipped where the norm is not finite, or `finite` (the loss was) is false.
pub fn decide(state: Ptr, partials: Ptr, n: u32, clip: f64, finite: bool) -> Launch {
    launch("adamw_decide", 1, Args::new().ptr(state).ptr(partials).u32(n).f64(clip).u32(finite.into()))
}

/// One AdamW step of params, m and v from grad, all \[len\] f32, unless the state says to skip it. The state's scale stands
/// in for `hyper.grad_scale`, which is not read.
pub fn step(params: Ptr, m: Ptr, v: Ptr, grad: Ptr, len: usize, hyper: &Step<f32>, state: Ptr) -> Launch {
    let Step { grad_scale: _, keep, blend, beta2, fresh, root_correction, eps, size } = *hyper;
    let args = Args::new().ptr(params).ptr(m).ptr(v).ptr(grad).u64(len as u64);
    let args = [keep, blend, beta2, fresh, root_correction, eps, size].into_iter().fold(args, Args::f32).ptr(state);
    launch("adamw_step", len.div_ceil(4 * THREADS as usize) as u32, args)
}

fn launch(entry: &'static str, blocks: u32, args: Args) -> Launch {
    Launch { entry, grid: [blocks, 1, 1], block: [THREADS, 1, 1], shared: 0, args }
}

#[cfg(test)]
mod tests {
    use super::super::Options;
    use super::*;
    use crate::cuda::testing::Gpu;
    use crate::testing::{Random, same_bits};
    use crate::{Elem, Isa};

    const SOURCE: (&str, &str) = ("adamw::cuda", "adamw/cuda.cu");
    const USUAL: Options = Options { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.01 };

    fn norm(gpu: &mut Gpu, grad: Ptr, len: usize, clip: f64, finite: bool) -> Result<Ptr, String> {
        let (sums, state) = (gpu.room::<f64>(partials(len) as usize), gpu.room::<State>(1));
        gpu.run(&norm_partials(sums, grad, len))?;
        gpu.run(&decide(state, sums, partials(len), clip, finite))?;
        Ok(state)
    }

    fn decided(gpu: &mut Gpu, grad: &[f32], clip: f64, finite: bool) -> State {
        let pgrad = gpu.put(grad);
        let state = norm(gpu, pgrad, grad.len(), clip, finite).unwrap();
        gpu.get::<State>(state)[0]
    }

    #[test]
    fn steps_on_cuda_have_the_bits_of_the_cpu() {
        let Some(mut gpu) = Gpu::of(SOURCE.0, SOURCE.1) else { return };
        let slow = Options { beta1: 0.3, beta2: 0.5, decay: 0.0, ..USUAL };
        for (len, options) in [(0, USUAL), (1, slow), (3, USUAL), (4, USUAL), (1025, slow), (4097, USUAL)] {
            let mut random = Random::new(len as u64);
            let mut p: Vec<f32> = random.vec(len);
            let (mut m, mut v) = (vec![0f32; len], vec![0f32; len]);
            let [pp, pm, pv] = [&p, &m, &v].map(|values| gpu.put(values));
            for t in 1..4 {
                let grad: Vec<f32> = random.vec(len);
                let pgrad = gpu.put(&grad);
                let state = norm(&mut gpu, pgrad, len, 0.5, true).unwrap();
                let scale = gpu.get::<State>(state)[0].scale;
                let hyper = Step::new(&options, t, f64::from(scale));
                gpu.run(&step(pp, pm, pv, pgrad, len, &hyper, state)).unwrap();
                f32::kernels(Isa::best(None)).adamw(&mut p, &grad, &mut m, &mut v, &hyper);
            }
            for (got, want) in [(pp, &p), (pm, &m), (pv, &v)] {
                same_bits(&gpu.get::<f32>(got), want).unwrap_or_else(|e| panic!("{len} values: {e}"));
            }
        }
    }

    #[test]
    fn the_norm_is_of_all_values_and_the_clip_is_pytorchs() {
        let Some(mut gpu) = Gpu::of(SOURCE.0, SOURCE.1) else { return };
        let scale = |clip: f64| (clip / (13.0 + 1e-6)) as f32;
        for (clip, scale) in [(0.0, 1.0), (20.0, 1.0), (1.0, scale(1.0)), (13.0, scale(13.0))] {
            let state = decided(&mut gpu, &[3.0, -4.0, 12.0], clip, true);
            assert_eq!(state, State { norm: 13.0, scale, skip: 0 });
        }
        for len in [0, 4096, 4097, 300_001] {
            let grad: Vec<f32> = Random::new(len as u64).vec(len);
            let want = grad.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt();
            let got = decided(&mut gpu, &grad, 0.0, true).norm;
            assert!((got - want).abs() <= 1e-12 * want, "{len} values: {got} not {want}");
        }
    }

    #[test]
    fn what_is_not_finite_is_skipped_and_nothing_is_written() {
        let Some(mut gpu) = Gpu::of(SOURCE.0, SOURCE.1) else { return };
        for (grad, finite, norm) in [
            ([1.0, f32::NAN], true, f64::NAN),
            ([1.0, f32::NEG_INFINITY], true, f64::INFINITY),
            ([2e19, 0.0], true, f64::INFINITY), // 4e38 is no f32
            ([3.0, 4.0], false, 5.0),
        ] {
            let state = decided(&mut gpu, &grad, 1.0, finite);
            assert!(
                state.skip == 1 && (state.norm == norm || state.norm.is_nan() && norm.is_nan()),
                "{grad:?}: {state:?}"
            );
            let [p, m, v] = [(); 3].map(|()| gpu.put(&[1f32; 2]));
            let (grad, state) = (gpu.put(&grad), gpu.put(&[state]));
            gpu.run(&step(p, m, v, grad, 2, &Step::new(&USUAL, 1, 1.0), state)).unwrap();
            assert!([p, m, v].iter().all(|&values| gpu.get::<f32>(values) == [1.0; 2]));
        }
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
            ("(u32)(len - at) : run_length()", "(u32)(len - at + 1) : run_length()", "buffer"),
            ("i < n; i += THREADS", "i <= n; i += THREADS", "buffer"),
            ("if (threadIdx.x == 0) partials", "if (threadIdx.x < 2) partials", "race"),
        ];
        for (from, to, report) in faults {
            let Some(mut gpu) = Gpu::edited("adamw::cuda, faults", SOURCE.1, from, to) else { return };
            let grad = gpu.put(&[1f32; 4095]);
            let found = norm(&mut gpu, grad, 4095, 1.0, true).expect_err(from);
            assert!(found.contains(report), "{from}: {found}");
        }
    }
}
