//! Frozen matrices in the GPU's memory: numbers in bf16, or whole numbers with scales, which are widened where a product
//! needs them.

use super::memory::PART;
use super::{Array, Gpu, bytes_of};
use crate::files::room_for;
use crate::{Cancel, Error, Result};
use dialoguellm_kernels::cuda::Ptr;
use dialoguellm_kernels::matrix::{Dtype, Encoding};
use dialoguellm_kernels::quantize::{cuda::Quantized, quantize};
use dialoguellm_kernels::{Bits, Matrix, bf16, embedding};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

/// A frozen matrix.
#[derive(Clone)]
pub struct Weight {
    pub(super) rows: usize,
    pub(super) cols: usize,
    values: Values,
}

#[derive(Clone)]
enum Values {
    Numbers(Arc<Array<bf16>>),
    /// Columns in `run`s that share a scale `[rows, ceil(cols / run)]`.
    Whole {
        bits: Bits,
        run: usize,
        q: Arc<Array<u8>>,
        scales: Arc<Array<f32>>,
    },
}

/// Rows of a weight in bf16, as long as this lives.
pub(super) struct Rows {
    pub(super) at: Ptr,
    /// What was widened: its memory is given out again behind the work that was asked for before it is dropped.
    _widened: Option<Array<bf16>>,
}

impl Weight {
    /// Rows `rows`, widened if they must be.
    pub(super) fn rows(&self, gpu: &Gpu, rows: Range<usize>) -> Rows {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        match &self.values {
            Values::Numbers(numbers) => Rows { at: numbers.row(rows.start), _widened: None },
            Values::Whole { .. } => {
                let widened = gpu.array::<bf16>(rows.len(), self.cols);
                let from = self.quantized().from_row(rows.start);
                gpu.run(&from.widen(widened.at(), rows.len() as u32));
                Rows { at: widened.at(), _widened: Some(widened) }
            }
        }
    }

    /// Row i of y = row `ids[i]`, in f32. Every id is a row.
    pub(super) fn embed(&self, gpu: &Gpu, y: &Array<f32>, ids: &Array<u32>) {
        let (rows, cols) = (y.rows as u32, y.cols as u32);
        gpu.run(&match &self.values {
            Values::Numbers(table) => embedding::cuda::forward(y.at(), table.at(), ids.at(), rows, cols),
            Values::Whole { .. } => self.quantized().embed(y.at(), ids.at(), rows),
        });
    }

    fn quantized(&self) -> Quantized {
        match &self.values {
            Values::Numbers(_) => unreachable!("asked of whole numbers only"),
            Values::Whole { bits, run, q, scales } => {
                Quantized { bits: *bits, q: q.at(), scales: scales.at(), cols: self.cols as u32, run: *run as u32 }
            }
        }
    }
}

/// A stored matrix's rows from `from` on in bf16, rounded once.
fn encode(matrix: &Matrix, from: usize, room: &mut [u8]) {
    let cols = matrix.cols();
    let verbatim = matches!(matrix.encoding(), Encoding::Plain(Dtype::Bf16));
    let mut wide = vec![0.0f32; if verbatim { 0 } else { cols }];
    for (i, room) in room.chunks_exact_mut(2 * cols).enumerate() {
        if verbatim {
            room.copy_from_slice(matrix.row(from + i));
            continue;
        }
        matrix.read_row(from + i, 0, &mut wide);
        for (room, &value) in room.as_chunks_mut::<2>().0.iter_mut().zip(&wide) {
            *room = bf16::from_f32(value).to_le_bytes();
        }
    }
}

/// Row `i` as whole numbers, which are stored or made.
fn whole(matrix: &Matrix, i: usize, bits: Bits, q: &mut [u8], scales: &mut [f32]) {
    match matrix.encoding() {
        Encoding::Quantized(_, stored) => {
            q.copy_from_slice(matrix.row(i));
            scales.iter_mut().zip(stored.row(i, 0)).for_each(|(to, from)| *to = from);
        }
        Encoding::Plain(_) | Encoding::Packed(_) => {
            let (mut row, mut narrow) = (vec![0.0; matrix.cols()], vec![bf16::ZERO; scales.len()]);
            matrix.read_row(i, 0, &mut row);
            quantize(bits, q, &mut narrow, &row);
            scales.iter_mut().zip(narrow).for_each(|(to, from)| *to = from.to_f32());
        }
    }
}

impl Gpu {
    /// Sends a stored matrix; as whole numbers where it is stored so, or where `bits` are given.
    pub(super) fn send(&self, matrix: &Matrix, bits: Option<Bits>, name: &str, cancel: &Cancel) -> Result<Weight> {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let values = match (matrix.encoding(), bits) {
            (Encoding::Plain(_), None) => Values::Numbers(Arc::new(self.send_numbers(matrix, name, cancel)?)),
            (Encoding::Plain(_), Some(bits)) => self.send_whole(matrix, bits, bits.run(cols), name, cancel)?,
            (Encoding::Quantized(bits, scales), _) => self.send_whole(matrix, bits, scales.run(), name, cancel)?,
            (Encoding::Packed(_), _) => return Err(Error::internal(format!("{name} is packed for a CPU"))),
        };
        self.queue.flush()?;
        Ok(Weight { rows, cols, values })
    }

    fn send_numbers(&self, matrix: &Matrix, name: &str, cancel: &Cancel) -> Result<Array<bf16>> {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let array = self.kept::<bf16>(rows, cols, name)?;
        let step = step(rows, 2 * cols, name)?;
        for from in (0..rows).step_by(step) {
            cancel.check()?;
            let len = 2 * cols * step.min(rows - from);
            self.staging.put(&self.queue, &array.block, 2 * cols * from, len, |room| encode(matrix, from, room))?;
        }
        Ok(array)
    }

    fn send_whole(&self, matrix: &Matrix, bits: Bits, run: usize, name: &str, cancel: &Cancel) -> Result<Values> {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let (width, runs) = (bits.row_bytes(cols), cols.div_ceil(run));
        let (q, scales) = (self.kept::<u8>(rows, width, name)?, self.kept::<f32>(rows, runs, name)?);
        let step = step(rows, width.max(4 * runs), name)?;
        let mut part: Vec<f32> = room_for(step * runs, name)?;
        for from in (0..rows).step_by(step) {
            cancel.check()?;
            let count = step.min(rows - from);
            part.resize(count * runs, 0.0);
            self.staging.put(&self.queue, &q.block, width * from, width * count, |room| {
                let each = room.chunks_exact_mut(width).zip(part.chunks_exact_mut(runs));
                each.enumerate().for_each(|(i, (q, scales))| whole(matrix, from + i, bits, q, scales));
            })?;
            let part = bytes_of(&part);
            self.staging
                .put(&self.queue, &scales.block, 4 * runs * from, part.len(), |room| room.copy_from_slice(part))?;
        }
        Ok(Values::Whole { bits, run, q: Arc::new(q), scales: Arc::new(scales) })
    }

    /// Memory that stays.
    fn kept<T>(&self, rows: usize, cols: usize, name: &str) -> Result<Array<T>> {
        let bytes = rows * cols * size_of::<T>();
        let block = self.memory(|memory| memory.exactly(bytes)).map_err(|error| error.at(name))?;
        Ok(Array { block, rows, cols, values: PhantomData })
    }
}

/// Rows of `bytes` that are staged at a time.
fn step(rows: usize, bytes: usize, name: &str) -> Result<usize> {
    match (PART / bytes.max(1)).min(rows) {
        0 => Err(Error::unsupported(format!("{name}: rows of {bytes} bytes are too long for a GPU"))),
        step => Ok(step),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_are_rounded_as_everywhere_and_bf16_is_copied() {
        let values = [1.0f32, 1.003_906_3, -2.5, f32::MAX, 0.1, -0.0];
        let stored: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let matrix = Matrix::new(Dtype::F32, &stored, 3, 2).unwrap();
        let mut room = [0; 8];
        encode(&matrix, 1, &mut room);
        let want: Vec<u8> = values[2..].iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
        assert_eq!(room.as_slice(), want);
        let again = Matrix::new(Dtype::Bf16, &room, 2, 2).unwrap();
        let mut copied = [0; 8];
        encode(&again, 0, &mut copied);
        assert_eq!(copied, room);
    }
}
