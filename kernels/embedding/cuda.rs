//! Launches of `cuda.cu`: one block a token.

use crate::cuda::{Args, Launch, Ptr, row_threads};

/// As in `cuda.cu`.
const THREADS: u32 = 256;

/// Row i of y \[rows, width\] f32 = row `ids[i]` of the table \[V, width\] bf16, widened; every id is below V.
pub fn forward(y: Ptr, table: Ptr, ids: Ptr, rows: u32, width: u32) -> Launch {
    let args = Args::new().ptr(y).ptr(table).ptr(ids).u32(width);
    Launch {
        entry: "embedding_forward",
        grid: [rows, 1, 1],
        block: [row_threads(width, THREADS), 1, 1],
        shared: 0,
        args,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::testing::Gpu;
    use crate::testing::{Random, same_bits};
    use crate::{Dtype, Elem, Isa, Matrix, bf16};

    fn table(width: usize) -> Vec<bf16> {
        let mut table = Random::new(width as u64).vec::<bf16>(3 * width);
        table[width] = bf16::NAN;
        table
    }

    fn run(gpu: &mut Gpu, table: &[bf16], ids: &[u32], width: usize) -> Result<Vec<f32>, String> {
        let (pids, ptable) = (gpu.put(ids), gpu.put(table));
        let y = gpu.room::<f32>(ids.len() * width);
        gpu.run(&forward(y, ptable, pids, ids.len() as u32, width as u32))?;
        Ok(gpu.get(y))
    }

    #[test]
    fn embedding_on_cuda_has_the_bits_of_the_cpu() {
        let Some(mut gpu) = Gpu::of("embedding::cuda", "embedding/cuda.cu") else { return };
        for (ids, width) in [(&[][..], 4), (&[2], 1), (&[1, 0], 5), (&[2, 0, 2], 576), (&[1], 4100)] {
            let table = table(width);
            let got = run(&mut gpu, &table, ids, width).unwrap();
            let bytes: Vec<u8> = table.iter().flat_map(|x| x.to_le_bytes()).collect();
            let matrix = Matrix::new(Dtype::Bf16, &bytes, 3, width).unwrap();
            let mut want = vec![0f32; ids.len() * width];
            for (want, &id) in want.chunks_mut(width).zip(ids) {
                bf16::kernels(Isa::best(None)).embed(want, &matrix, id);
            }
            same_bits(&got, &want).unwrap_or_else(|e| panic!("{ids:?} of width {width}: {e}"));
        }
    }

    #[test]
    fn seeded_faults_on_cuda_are_found() {
        let row = ("ids[blockIdx.x] * width", "(ids[blockIdx.x] + 1) * width", "buffer");
        let overlap = ("(size_t)blockIdx.x * width", "(size_t)blockIdx.x * (width - 1)", "race");
        for (from, to, report) in [row, overlap] {
            let Some(mut gpu) = Gpu::edited("embedding::cuda, faults", "embedding/cuda.cu", from, to) else { return };
            let found = run(&mut gpu, &table(20), &[2, 1], 20).expect_err(from);
            assert!(found.contains(report), "{from}: {found}");
        }
    }
}
