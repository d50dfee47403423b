//! Launches of `cuda.cu`: one block for a row.

use super::Options;
use crate::cuda::{Args, Launch, Ptr};

/// As in `cuda.cu`.
const THREADS: u32 = 1024;

/// What [`pick`] leaves where a logit is NaN or infinity, or all are negative infinity.
pub const NO_TOKEN: u32 = u32::MAX;

/// token \[1\] u32 drawn from logits \[vocabulary\] f32 by `uniform`, in [0, 1).
pub fn pick(token: Ptr, logits: Ptr, vocabulary: u32, options: &Options, uniform: f64) -> Launch {
    let Options { temperature, top_k, top_p } = *options;
    let args = Args::new().ptr(token).ptr(logits).u32(vocabulary);
    let args = args.f32(temperature).u32(top_k).f32(top_p).f64(uniform);
    Launch { entry: "sample_pick", grid: [1; 3], block: [THREADS, 1, 1], shared: 0, args }
}

/// The repetition penalty: logits of the `n` tokens of seen \[n\] u32, each named once, in place.
pub fn penalise(logits: Ptr, seen: Ptr, n: u32, penalty: f32) -> Launch {
    let args = Args::new().ptr(logits).ptr(seen).u32(n).f32(penalty);
    Launch { entry: "sample_penalise", grid: [n.div_ceil(THREADS), 1, 1], block: [THREADS, 1, 1], shared: 0, args }
}

#[cfg(test)]
mod tests {
    use super::super::{candidates, reference};
    use super::*;
    use crate::cuda::testing::Gpu;
    use crate::proof::wide;
    use crate::testing::{Random, same_bits};

    const SOURCE: (&str, &str) = ("sample::cuda", "sample/cuda.cu");

    fn picked(gpu: &mut Gpu, logits: &[f32], options: &Options, uniform: f64) -> Result<u32, String> {
        let (token, row) = (gpu.room::<u32>(1), gpu.put(logits));
        gpu.run(&pick(token, row, logits.len() as u32, options, uniform))?;
        Ok(gpu.get::<u32>(token)[0])
    }

    /// Logits in steps, so that many are equal.
    fn row(count: usize) -> Vec<f32> {
        let mut random = Random::new(count as u64);
        (0..count).map(|_| (random.below(64) as f32 - 40.0) / 8.0).collect()
    }

    #[test]
    fn a_number_amid_a_tokens_weight_draws_that_token_on_cuda() {
        let Some(mut gpu) = Gpu::of(SOURCE.0, SOURCE.1) else { return };
        for (count, temperature, top_k, top_p) in
            [(1, 1.0, 0, 1.0), (7, 0.7, 0, 1.0), (300, 1.5, 20, 1.0), (300, 1.0, 0, 0.8), (4099, 1.0, 50, 0.9)]
        {
            let (logits, options) = (row(count), Options { temperature, top_k, top_p });
            let all = candidates(&wide(&logits), &options);
            let sum: f64 = all.iter().map(|(_, weight)| weight).sum();
            for at in [0, all.len() / 2, all.len() - 1] {
                let before: f64 = all[..at].iter().map(|(_, weight)| weight).sum();
                let uniform = (before + all[at].1 / 2.0) / sum;
                let got = picked(&mut gpu, &logits, &options, uniform).unwrap();
                assert_eq!(got, all[at].0, "candidate {at} of {} of {count}, {options:?}", all.len());
            }
        }
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest_on_cuda() {
        let Some(mut gpu) = Gpu::of(SOURCE.0, SOURCE.1) else { return };
        let greedy = Options { temperature: 0.0, top_k: 0, top_p: 1.0 };
        for count in [1, 5, 300, 4099] {
            let logits = row(count);
            let want = reference(&wide(&logits), &greedy, 0.0);
            assert_eq!(picked(&mut gpu, &logits, &greedy, 0.5).unwrap(), want, "{count} logits");
        }
        assert_eq!(picked(&mut gpu, &[-0.0, 0.0], &greedy, 0.5).unwrap(), 0);
    }

    #[test]
    fn the_ends_of_the_range_and_impossible_tokens_are_safe_on_cuda() {
        let Some(mut gpu) = Gpu::of(SOURCE.0, SOURCE.1) else { return };
        let (all, none) = (Options { temperature: 1.0, top_k: 0, top_p: 1.0 }, f32::NEG_INFINITY);
        let logits = [none, -3.0, none, 2.0, none];
        assert_eq!(picked(&mut gpu, &logits, &all, 0.0).unwrap(), 3);
        assert_eq!(picked(&mut gpu, &logits, &all, 1.0 - f64::EPSILON / 2.0).unwrap(), 1);
        for bad in [[1.0, f32::NAN], [1.0, -f32::NAN], [f32::INFINITY, 1.0], [none, none]] {
            assert_eq!(picked(&mut gpu, &bad, &all, 0.5).unwrap(), NO_TOKEN, "{bad:?}");
        }
    }

    #[test]
    fn the_penalty_on_cuda_has_the_bits_of_the_cpu() {
        let Some(mut gpu) = Gpu::of(SOURCE.0, SOURCE.1) else { return };
        let (mut logits, seen) = (row(50), [3, 49, 0, 17]);
        let (plogits, pseen) = (gpu.put(&logits), gpu.put(&seen));
        gpu.run(&penalise(plogits, pseen, 4, 1.3)).unwrap();
        gpu.run(&penalise(plogits, pseen, 0, 1.3)).unwrap();
        super::super::penalise(&mut logits, &seen, 1.3);
        same_bits(&gpu.get::<f32>(plogits), &logits).unwrap();
    }

    #[test]
    fn seeded_faults_on_cuda_are_found() {
        let faults = [
            ("    __syncthreads(); // the last pass's", "    // the last pass's", "race"),
            (
                "if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x",
                "if (threadIdx.x == 0) parts[0] = x",
                "uninitialised",
            ),
            (
                "x += __shfl_xor_sync(FULL, x, lane);",
                "if (threadIdx.x % 32 < 16) x += __shfl_xor_sync(FULL, x, lane);",
                "shfl",
            ),
            ("if (at + i < row.count) f(", "if (at + i <= row.count) x[i] = row.logits[at + i], f(", "buffer"),
            ("if (threadIdx.x == 0) *token", "if (threadIdx.x % 512 == 0) *token", "race"),
        ];
        for (from, to, report) in faults {
            let Some(mut gpu) = Gpu::edited("sample::cuda, faults", SOURCE.1, from, to) else { return };
            let options = Options { temperature: 1.0, top_k: 0, top_p: 1.0 };
            let found = picked(&mut gpu, &row(2047), &options, 0.5).expect_err(from);
            assert!(found.contains(report), "{from}: {found}");
        }
    }
}
