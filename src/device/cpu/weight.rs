//! Frozen matrices: in their file where they are mapped, or whole numbers in memory, packed as products read them.

use super::super::pool::{Chunks, Pool};
use super::memory::{LINE, Lines};
use crate::files::safetensors::Tensors;
use crate::files::{no_room, room_for};
use crate::{Cancel, Result};
use dialoguellm_kernels::linear::PANEL;
use dialoguellm_kernels::matrix::Encoding;
use dialoguellm_kernels::quantize::packed::{Packed, panel_sizes, put};
use dialoguellm_kernels::quantize::quantize;
use dialoguellm_kernels::{Bits, Dtype, Matrix, bf16};
use std::sync::Arc;

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
    Packed { bits: Bits, run: usize, q: Arc<Lines>, scales: Arc<Vec<bf16>> },
}

impl Stored {
    /// The matrix `name`. Whole numbers that are stored with scales in bf16 are packed, and so are those of `bits` that are made
    /// of numbers where `bits` are given.
    pub(super) fn open(
        pool: &Pool,
        tensors: &Arc<Tensors>,
        name: &str,
        [rows, cols]: [usize; 2],
        bits: Option<Bits>,
        cancel: &Cancel,
    ) -> Result<Self> {
        let matrix = tensors.matrix(name, rows, cols)?;
        let values = match (matrix.encoding(), bits) {
            (Encoding::Plain(_), Some(bits)) => packed(pool, &matrix, bits, bits.run(cols), name, cancel)?,
            (Encoding::Quantized(bits, scales), _) if scales.dtype() == Dtype::Bf16 => {
                packed(pool, &matrix, bits, scales.run(), name, cancel)?
            }
            _ => Values::File { tensors: tensors.clone(), name: name.to_owned() },
        };
        if let Values::Packed { .. } = values {
            tensors.release_matrix(name); // there is a copy now
        }
        Ok(Self { values, rows, cols })
    }

    pub(super) fn matrix(&self) -> Matrix<'_> {
        let shape @ [rows, cols] = [self.rows, self.cols];
        match &self.values {
            // Checked when the weight was taken; the tensors do not change.
            Values::File { tensors, name } => tensors.matrix(name, rows, cols).expect("checked at open"),
            Values::Packed { bits, run, q, scales } => {
                let q = &q.bytes()[..rows.div_ceil(PANEL) * panel_sizes(*bits, cols, *run).0];
                Matrix::packed(Packed::new(*bits, q, scales, shape, *run).expect("made for this shape"))
            }
        }
    }
}

/// The matrix as whole numbers in the order of a product; a task makes a panel.
fn packed(pool: &Pool, matrix: &Matrix, bits: Bits, run: usize, name: &str, cancel: &Cancel) -> Result<Values> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let (panels, sizes) = (rows.div_ceil(PANEL), panel_sizes(bits, cols, run));
    let bytes = panels * sizes.0;
    let mut q = Lines::new(bytes.div_ceil(LINE)).ok_or_else(|| no_room(bytes, name))?;
    let mut scales = room_for(panels * sizes.1, name)?;
    scales.resize(panels * sizes.1, bf16::ZERO);
    let (q_panels, scale_panels) =
        (Chunks::new(&mut q.bytes_mut()[..bytes], sizes.0), Chunks::new(&mut scales, sizes.1));
    pool.run(panels, |task| {
        if cancel.is_set() {
            return;
        }
        // SAFETY: a panel belongs to one task.
        let (q, scales) = unsafe { (q_panels.get(task), scale_panels.get(task)) };
        let (mut row, mut row_q, mut row_scales) =
            (vec![0.0; cols], vec![0; bits.row_bytes(cols)], vec![bf16::ZERO; cols.div_ceil(run)]);
        for (at, i) in (task * PANEL..rows.min((task + 1) * PANEL)).enumerate() {
            match matrix.encoding() {
                Encoding::Quantized(_, stored) => {
                    row_q.copy_from_slice(matrix.row(i));
                    row_scales.iter_mut().zip(stored.row(i, 0)).for_each(|(to, from)| *to = bf16::from_f32(from));
                }
                _ => {
                    matrix.read_row(i, 0, &mut row);
                    quantize(bits, &mut row_q, &mut row_scales, &row);
                }
            }
            put(bits, (&mut *q, &mut *scales), at, &row_q, &row_scales);
        }
    });
    cancel.check()?;
    Ok(Values::Packed { bits, run, q: Arc::new(q), scales: Arc::new(scales) })
}
