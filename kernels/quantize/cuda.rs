//! Launches of `cuda.cu`: one block a row.

use crate::Bits;
use crate::cuda::{Args, Launch, Ptr};

/// As in `cuda.cu`.
const THREADS: u32 = 256;
const EIGHT: u32 = 8;

/// A quantised matrix in the GPU's memory.
#[derive(Clone, Copy, Debug)]
pub struct Quantized {
    /// Whole numbers' size.
    pub bits: Bits,
    /// Rows of [`Bits::row_bytes`]; at a multiple of 4.
    pub q: Ptr,
    /// f32 `[rows, ceil(cols / run)]`.
    pub scales: Ptr,
    /// Columns.
    pub cols: u32,
    /// Columns that share a scale: a multiple of 8, or all.
    pub run: u32,
}

impl Quantized {
    /// The same without its first `rows` rows.
    pub fn from_row(self, rows: usize) -> Self {
        let runs = self.cols.div_ceil(self.run) as usize;
        Self {
            q: self.q.offset(rows * self.bits.row_bytes(self.cols as usize)),
            scales: self.scales.offset(rows * runs * size_of::<f32>()),
            ..self
        }
    }

    /// y \[rows, cols\] bf16 of its first `rows` rows, rounded once.
    pub fn widen(self, y: Ptr, rows: u32) -> Launch {
        let entry = match self.bits {
            Bits::Eight => "quantize_widen_8_bf16",
            Bits::Four => "quantize_widen_4_bf16",
        };
        self.launch(entry, y, Ptr(0), rows)
    }

    /// Row i of y \[rows, cols\] f32 = row `ids[i]`, exactly for scales of 16 bits; every id is a row.
    pub fn embed(self, y: Ptr, ids: Ptr, rows: u32) -> Launch {
        let entry = match self.bits {
            Bits::Eight => "quantize_widen_8_f32",
            Bits::Four => "quantize_widen_4_f32",
        };
        self.launch(entry, y, ids, rows)
    }

    fn launch(self, entry: &'static str, y: Ptr, ids: Ptr, rows: u32) -> Launch {
        let args = Args::new().ptr(y).ptr(self.q).ptr(self.scales).ptr(ids).u32(self.cols).u32(self.run);
        let threads = self.cols.div_ceil(EIGHT).next_multiple_of(32).clamp(32, THREADS);
        Launch { entry, grid: [rows, 1, 1], block: [threads, 1, 1], shared: 0, args }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::testing::Gpu;
    use crate::matrix::Scales;
    use crate::testing::{Random, same_bits};
    use crate::{Dtype, Elem, Isa, Matrix, bf16};

    const ROWS: usize = 3;

    /// Random whole numbers and scales, one of them NaN.
    struct Case {
        bits: Bits,
        cols: usize,
        run: usize,
        q: Vec<u8>,
        scales: Vec<f32>,
    }

    impl Case {
        fn of(bits: Bits, cols: usize, run: usize) -> Self {
            let mut random = Random::new(cols as u64);
            let q = (0..ROWS * bits.row_bytes(cols)).map(|_| random.below(256) as u8).collect();
            let mut scales: Vec<f32> = random.vec(ROWS * cols.div_ceil(run));
            scales.iter_mut().for_each(|scale| *scale = bf16::from_f32(*scale).to_f32());
            scales[1] = f32::NAN;
            Self { bits, cols, run, q, scales }
        }

        fn put(&self, gpu: &mut Gpu) -> Quantized {
            let (q, scales) = (gpu.put(&self.q), gpu.put(&self.scales));
            Quantized { bits: self.bits, q, scales, cols: self.cols as u32, run: self.run as u32 }
        }

        /// What the CPU makes of it: f32 rows, and bf16 rows as packing rounds them.
        fn wide(&self) -> (Vec<f32>, Vec<bf16>) {
            let bytes: Vec<u8> = self.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
            let scales = Scales::new(Dtype::F32, &bytes, ROWS, self.cols, self.run).unwrap();
            let matrix = Matrix::quantized(self.bits, &self.q, scales, ROWS, self.cols).unwrap();
            let mut wide = vec![0f32; ROWS * self.cols];
            for (id, row) in (0..).zip(wide.chunks_mut(self.cols)) {
                f32::kernels(Isa::Portable).embed(row, &matrix, id);
            }
            let rounded = wide.iter().map(|x| bf16::narrow(*x)).collect();
            (wide, rounded)
        }
    }

    fn same<E: Elem>(got: &[E], want: &[E]) -> Result<(), String> {
        let keep = |x: &E| if x.widen().to_f64().is_nan() { E::default() } else { *x };
        let nans = |x: &[E]| x.iter().map(|x| x.widen().to_f64().is_nan()).collect::<Vec<_>>();
        assert_eq!(nans(got), nans(want));
        same_bits(&got.iter().map(keep).collect::<Vec<_>>(), &want.iter().map(keep).collect::<Vec<_>>())
    }

    use crate::Real;

    #[test]
    fn quantised_rows_on_cuda_have_the_bits_of_the_cpu() {
        let Some(mut gpu) = Gpu::of("quantize::cuda", "quantize/cuda.cu") else { return };
        for bits in [Bits::Eight, Bits::Four] {
            for (cols, run) in [(1, 1), (7, 8), (8, 8), (9, 8), (64, 32), (72, 32), (77, 16), (576, 576), (4100, 32)] {
                let case = Case::of(bits, cols, run);
                let (wide, rounded) = case.wide();
                let (matrix, ids) = (case.put(&mut gpu), gpu.put(&[2u32, 0, 1, 2]));
                let [all, last] = [ROWS, 1].map(|rows| gpu.room::<bf16>(rows * cols));
                let some = gpu.room::<f32>(4 * cols);
                gpu.run(&matrix.widen(all, ROWS as u32)).unwrap();
                gpu.run(&matrix.from_row(2).widen(last, 1)).unwrap();
                gpu.run(&matrix.embed(some, ids, 4)).unwrap();
                let say = |e| panic!("{bits:?}, {cols} columns in runs of {run}: {e}");
                same(&gpu.get::<bf16>(all), &rounded).unwrap_or_else(say);
                same(&gpu.get::<bf16>(last), &rounded[2 * cols..]).unwrap_or_else(say);
                let want: Vec<f32> = [2, 0, 1, 2].iter().flat_map(|&i| wide[i * cols..][..cols].to_vec()).collect();
                same(&gpu.get::<f32>(some), &want).unwrap_or_else(say);
            }
        }
    }

    #[test]
    fn seeded_faults_on_cuda_are_found() {
        let faults = [
            ("at < cols; at += EIGHT", "at < cols + 1; at += EIGHT"),
            ("(size_t)blockIdx.x * cols", "(size_t)blockIdx.x * (cols - 1)"),
            ("scale[at / run]", "scale[at / run + 1]"),
            ("(cols + 7) / 8 * 4", "(cols + 7) / 8 * 5"),
        ];
        for (from, to) in faults {
            let Some(mut gpu) = Gpu::edited("quantize::cuda, faults", "quantize/cuda.cu", from, to) else { return };
            let case = Case::of(Bits::Four, 64, 64);
            let (matrix, y) = (case.put(&mut gpu), gpu.room::<bf16>(ROWS * 64));
            let run = gpu.run(&matrix.widen(y, ROWS as u32));
            assert!(run.is_err(), "{from} is not found");
        }
    }
}
