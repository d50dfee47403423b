//! Launches of `cuda.cu`, over one block of the vocabulary's columns at a time: `cols` of them from `col0`.

use crate::cuda::{Args, Launch, Ptr, row_threads};

/// As in `cuda.cu`.
const ROW_THREADS: u32 = 512;
const RUN_THREADS: u32 = 128;

/// lse \[rows\] = log sum e^z of logits \[rows, cols\]; unless this is the `first` block, together with what lse holds of
/// the blocks before. All f32; NaN where a logit is.
pub fn log_sum_exp(lse: Ptr, logits: Ptr, rows: u32, cols: u32, first: bool) -> Launch {
    let args = Args::new().ptr(lse).ptr(logits).u32(cols).u32(first.into());
    let threads = row_threads(cols, ROW_THREADS);
    Launch { entry: "cross_entropy_log_sum_exp", grid: [rows, 1, 1], block: [threads, 1, 1], shared: 0, args }
}

/// out\[i\] = logits\[target_rows\[i\], target_tokens\[i\] - col0\] for those of `n` targets whose token is among the
/// columns; the others stay. logits \[_, cols\] and out \[n\] f32, rows and tokens u32.
pub fn chosen(out: Ptr, logits: Ptr, cols: u32, col0: u32, target_rows: Ptr, target_tokens: Ptr, n: u32) -> Launch {
    let args = Args::new().ptr(out).ptr(logits).u32(cols).u32(col0).ptr(target_rows).ptr(target_tokens).u32(n);
    let grid = [n.div_ceil(RUN_THREADS), 1, 1];
    Launch { entry: "cross_entropy_chosen", grid, block: [RUN_THREADS, 1, 1], shared: 0, args }
}

/// d_logits \[rows, cols\] bf16 = total\[row\] e^(logit - lse\[row\]), less at each of the row's targets its weight.
///
/// logits \[rows, cols\], lse and total \[rows\] f32, both of the whole row. Row i's targets are tokens and weights
/// `first_target[i]..first_target[i + 1]` (u32 \[rows + 1\]; u32 and f32 \[all targets\]); a token may come more than once,
/// and those outside the columns are passed over.
pub fn backward(
    d_logits: Ptr,
    logits: Ptr,
    lse: Ptr,
    total: Ptr,
    rows: u32,
    cols: u32,
    col0: u32,
    first_target: Ptr,
    tokens: Ptr,
    weights: Ptr,
) -> Launch {
    let args = Args::new().ptr(d_logits).ptr(logits).ptr(lse).ptr(total).u32(cols).u32(col0);
    let args = args.ptr(first_target).ptr(tokens).ptr(weights);
    let threads = row_threads(cols, RUN_THREADS);
    let grid = [rows, cols.div_ceil(16 * threads), 1];
    Launch { entry: "cross_entropy_backward", grid, block: [threads, 1, 1], shared: 0, args }
}

#[cfg(test)]
mod tests {
    use super::super::tests::plain_lse;
    use super::super::{reference, reference_backward};
    use super::*;
    use crate::bf16;
    use crate::cuda::testing::Gpu;
    use crate::proof::wide;
    use crate::testing::{Random, check};

    const SOURCE: (&str, &str) = ("cross_entropy::cuda", "cross_entropy/cuda.cu");

    fn logits(rows: usize, cols: usize) -> Vec<f32> {
        let mut random = Random::new((rows * cols) as u64);
        (0..rows * cols).map(|_| (10.0 * random.signed()) as f32).collect()
    }

    /// Columns `from..to` of rows of `cols`.
    fn block<T: Copy>(all: &[T], cols: usize, from: usize, to: usize) -> Vec<T> {
        all.chunks(cols).flat_map(|row| row[from..to].to_vec()).collect()
    }

    /// lse of rows whose columns come in blocks that end at `ends`.
    fn lse(gpu: &mut Gpu, logits: &[f32], cols: usize, ends: &[usize]) -> Result<Vec<f32>, String> {
        let rows = logits.len() / cols;
        let (out, mut from) = (gpu.room::<f32>(rows), 0);
        for &to in ends {
            let z = gpu.put(&block(logits, cols, from, to));
            gpu.run(&log_sum_exp(out, z, rows as u32, (to - from) as u32, from == 0))?;
            from = to;
        }
        Ok(gpu.get(out))
    }

    fn plain_merged(row: &[f32], ends: &[usize]) -> f32 {
        let mut sum = plain_lse(&row[..ends[0]]);
        for cut in ends.windows(2) {
            let more = plain_lse(&row[cut[0]..cut[1]]);
            let (low, high) = (sum.min(more), sum.max(more));
            sum = high + (1.0 + f64::from(low - high).exp() as f32).ln();
        }
        sum
    }

    #[test]
    fn log_sum_on_cuda_agrees_with_the_reference_in_any_number_of_blocks() {
        let Some(mut gpu) = Gpu::of(SOURCE.0, SOURCE.1) else { return };
        let cuts: [&[usize]; 7] = [&[1], &[5], &[511, 512], &[513], &[3, 700, 1000], &[8192], &[8200, 16500]];
        for (rows, ends) in [1, 3, 2, 1, 2, 1, 1].into_iter().zip(cuts) {
            let cols = ends[ends.len() - 1];
            let logits = logits(rows, cols);
            let got = lse(&mut gpu, &logits, cols, ends).unwrap();
            for (row, got) in logits.chunks(cols).zip(got) {
                check(&[got], &[plain_merged(row, ends)], &[reference(&wide(row))])
                    .unwrap_or_else(|e| panic!("{rows} rows in blocks to {ends:?}: {e}"));
            }
        }
    }

    #[test]
    fn infinite_logits_have_their_limits_on_cuda_and_nan_is_kept_wherever_it_stands() {
        let Some(mut gpu) = Gpu::of(SOURCE.0, SOURCE.1) else { return };
        let (inf, none, nan) = (f32::INFINITY, f32::NEG_INFINITY, f32::NAN);
        let cases: [(&[f32], f32); 7] = [
            (&[none; 40], none),
            (&[none, -1000.0], -1000.0),
            (&[0.0, inf], inf),
            (&[inf, none], inf),
            (&[inf, inf], inf),
            (&[3e38, 3e38], 3e38),
            (&[none, 2.0, none, none, none, none], 2.0),
        ];
        for (row, want) in cases {
            for ends in [&[row.len()][..], &[1, row.len()]] {
                assert_eq!(lse(&mut gpu, row, row.len(), ends).unwrap(), [want], "{row:?} in blocks to {ends:?}");
            }
        }
        for at in [0, 5, 39] {
            let mut row = [none; 40];
            row[at] = nan;
            for ends in [&[40][..], &[20, 40]] {
                assert!(lse(&mut gpu, &row, 40, ends).unwrap()[0].is_nan(), "NaN at {at}, blocks to {ends:?}");
            }
        }
    }

    #[test]
    fn a_rows_log_sum_on_cuda_has_the_same_bits_in_any_place_and_company() {
        let Some(mut gpu) = Gpu::of(SOURCE.0, SOURCE.1) else { return };
        let all = logits(3, 1001);
        let together = lse(&mut gpu, &all, 1001, &[700, 1001]).unwrap();
        for (row, together) in all.chunks(1001).zip(together) {
            assert_eq!(lse(&mut gpu, row, 1001, &[700, 1001]).unwrap(), [together]);
        }
    }

    /// Targets (row, token, weight): none, one, one at each end of a block, one token twice.
    const TARGETS: [(u32, u32, f32); 7] =
        [(1, 4, 0.5), (2, 0, 0.25), (2, 2999, 1.0), (2, 2048, 0.5), (3, 7, 0.5), (3, 2100, 0.25), (3, 7, 0.75)];

    #[test]
    fn chosen_logits_are_found_in_the_block_that_has_them() {
        let Some(mut gpu) = Gpu::of(SOURCE.0, SOURCE.1) else { return };
        let cols = 3000;
        let logits = logits(4, cols);
        let out = gpu.put(&[0f32; TARGETS.len()]);
        let [rows, tokens] = [TARGETS.map(|t| t.0), TARGETS.map(|t| t.1)].map(|values| gpu.put(&values));
        for (from, to) in [(0, 5), (5, 2048), (2048, 3000)] {
            let z = gpu.put(&block(&logits, cols, from, to));
            let n = TARGETS.len() as u32;
            gpu.run(&chosen(out, z, (to - from) as u32, from as u32, rows, tokens, n)).unwrap();
        }
        assert_eq!(gpu.get::<f32>(out), TARGETS.map(|(row, token, _)| logits[row as usize * cols + token as usize]));
        gpu.run(&chosen(out, out, 1, 0, rows, tokens, 0)).unwrap();
    }

    /// d_logits of columns `from..to` of four rows.
    fn gradient(gpu: &mut Gpu, logits: &[f32], lse: &[f32], from: usize, to: usize) -> Result<Vec<bf16>, String> {
        let cols = logits.len() / 4;
        let total: Vec<f32> = (0..4).map(|row| TARGETS.iter().filter(|t| t.0 == row).map(|t| t.2).sum()).collect();
        let first: Vec<u32> = (0..5).map(|row| TARGETS.iter().filter(|t| t.0 < row).count() as u32).collect();
        let [z, plse, ptotal] = [&block(logits, cols, from, to), lse, &total].map(|values| gpu.put(values));
        let [first, tokens] = [&first[..], &TARGETS.map(|t| t.1)].map(|values| gpu.put(values));
        let (d, weights) = (gpu.room::<bf16>(4 * (to - from)), gpu.put(&TARGETS.map(|t| t.2)));
        gpu.run(&backward(d, z, plse, ptotal, 4, (to - from) as u32, from as u32, first, tokens, weights))?;
        Ok(gpu.get(d))
    }

    #[test]
    fn the_gradient_on_cuda_agrees_with_the_reference_in_any_number_of_blocks() {
        let Some(mut gpu) = Gpu::of(SOURCE.0, SOURCE.1) else { return };
        let cols = 3000;
        let logits = logits(4, cols);
        let lse: Vec<f32> = logits.chunks(cols).map(plain_lse).collect();
        for (from, to) in [(0, 3000), (0, 1), (2048, 3000), (4, 8)] {
            let got = gradient(&mut gpu, &logits, &lse, from, to).unwrap();
            for (i, got) in got.chunks(to - from).enumerate() {
                let row = &logits[i * cols..(i + 1) * cols];
                let targets: Vec<(u32, f64)> =
                    TARGETS.iter().filter(|t| t.0 as usize == i).map(|t| (t.1, f64::from(t.2))).collect();
                let total = targets.iter().map(|t| t.1).sum();
                let mut want = vec![0.0; cols];
                reference_backward(&mut want, &wide(row), f64::from(lse[i]), total, &targets);
                let plain = |v: usize| {
                    let own: f64 = targets.iter().filter(|t| t.0 as usize == v).map(|t| t.1).sum();
                    bf16::from_f32(total as f32 * f64::from(row[v] - lse[i]).exp() as f32 - own as f32)
                };
                let plain: Vec<bf16> = (from..to).map(plain).collect();
                check(got, &plain, &want[from..to]).unwrap_or_else(|e| panic!("row {i}, columns {from}..{to}: {e}"));
            }
        }
    }

    #[test]
    fn nan_fills_the_gradient_of_its_row_and_of_no_other() {
        let Some(mut gpu) = Gpu::of(SOURCE.0, SOURCE.1) else { return };
        let d = gradient(&mut gpu, &[0.0; 4 * 20], &[3.0, f32::NAN, 3.0, 3.0], 0, 20).unwrap();
        assert!((0..80).all(|i| d[i].is_nan() == (i / 20 == 1)));
    }

    #[test]
    fn seeded_faults_on_cuda_are_found() {
        let forward = [
            ("parts[threadIdx.x / WARP] = own;\n    __syncthreads();", "parts[threadIdx.x / WARP] = own;", "read"),
            (
                "if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = own;",
                "if (threadIdx.x == 0) parts[0] = own;",
                "uninitialised read",
            ),
            ("warp = 1; warp < blockDim.x / WARP;", "warp = 1; warp <= blockDim.x / WARP;", "uninitialised read"),
            ("    own = warp_merged(own);", "    if (threadIdx.x % WARP < 16) own = warp_merged(own);", "shfl"),
            ("if (!first)", "if (first)", "uninitialised read"),
        ];
        for (from, to, report) in forward {
            let Some(mut gpu) = Gpu::edited("cross_entropy::cuda, faults", SOURCE.1, from, to) else { return };
            let found = lse(&mut gpu, &[0.0; 2 * 600], 600, &[600]).expect_err(from);
            assert!(found.contains(report), "{from}: {found}");
        }
        let backward = [
            ("    __syncthreads(); // a target's", "    // a target's", "race"),
            ("if (col >= count || !is_first(tokens, begin, t))", "if (col >= count)", "race"),
            ("if (col >= count || !is_first(tokens, begin, t))", "if (!is_first(tokens, begin, t))", "buffer"),
        ];
        for (from, to, report) in backward {
            let Some(mut gpu) = Gpu::edited("cross_entropy::cuda, faults", SOURCE.1, from, to) else { return };
            let found = gradient(&mut gpu, &[0.0; 4 * 600], &[0.0; 4], 0, 600).expect_err(from);
            assert!(found.contains(report), "{from}: {found}");
        }
    }
}
