//! Frozen matrices: in their file where they are mapped, or whole numbers in memory that were made of them.

use super::super::pool::{Chunks, Pool};
use crate::Result;
use crate::files::room_for;
use crate::files::safetensors::Tensors;
use dialoguellm_kernels::matrix::Scales;
use dialoguellm_kernels::quantize::quantize;
use dialoguellm_kernels::{Bits, Matrix, bf16};
use std::sync::Arc;

/// Rows that one task quantises.
const ROWS: usize = 64;

/// A frozen matrix.
#[derive(Clone)]
pub struct Stored {
    values: Values,
    rows: usize,
    cols: usize,
}

#[derive(Clone)]
enum Values {
    File { tensors: Arc<Tensors>, name: String },
    Made { bits: Bits, q: Arc<Vec<u8>>, scales: Arc<Vec<bf16>> },
}

impl Stored {
    /// The matrix `name`, as whole numbers of `bits` where they are given and it is stored as other numbers.
    pub(super) fn open(
        pool: &Pool,
        tensors: &Arc<Tensors>,
        name: &str,
        [rows, cols]: [usize; 2],
        bits: Option<Bits>,
    ) -> Result<Self> {
        let matrix = tensors.matrix(name, rows, cols)?;
        let values = match bits {
            Some(bits) if matrix.is_plain() => made(pool, &matrix, bits, name)?,
            _ => Values::File { tensors: tensors.clone(), name: name.to_owned() },
        };
        Ok(Self { values, rows, cols })
    }

    pub(super) fn matrix(&self) -> Matrix<'_> {
        let (rows, cols) = (self.rows, self.cols);
        match &self.values {
            // Checked when the weight was taken; the tensors do not change.
            Values::File { tensors, name } => tensors.matrix(name, rows, cols).expect("checked at open"),
            Values::Made { bits, q, scales } => Scales::of_bf16(scales, rows, cols, bits.run(cols))
                .and_then(|scales| Matrix::quantized(*bits, q, scales, rows, cols))
                .expect("made for this shape"),
        }
    }
}

fn made(pool: &Pool, matrix: &Matrix, bits: Bits, name: &str) -> Result<Values> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let (bytes, runs) = (bits.row_bytes(cols), cols.div_ceil(bits.run(cols)));
    let (mut q, mut scales) = (room_for(rows * bytes, name)?, room_for(rows * runs, name)?);
    q.resize(rows * bytes, 0);
    scales.resize(rows * runs, bf16::ZERO);
    let (q_rows, scale_rows) = (Chunks::new(&mut q, bytes), Chunks::new(&mut scales, runs));
    pool.run(rows.div_ceil(ROWS), |task| {
        let mut row = vec![0.0; cols];
        for i in task * ROWS..rows.min((task + 1) * ROWS) {
            matrix.read_row(i, 0, &mut row);
            // SAFETY: row i belongs to one task.
            let (q, scales) = unsafe { (q_rows.get(i), scale_rows.get(i)) };
            quantize(bits, q, scales, &row);
        }
    });
    Ok(Values::Made { bits, q: Arc::new(q), scales: Arc::new(scales) })
}
