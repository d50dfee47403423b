//! Embedding: y = row `id` of the table
//!
//! ```text
//! shapes   table [V, D], y [D]; one token per call
//! types    table f32, f16 or bf16 as stored in the file; y Real
//! rounding none: every stored type widens exactly
//! gradient none, by design: the table is frozen, as PEFT leaves it
//! used by  model: the first thing a token meets
//! ```

pub mod cuda;

use crate::stamp::stamp;
use crate::{Elem, Kernels, Matrix};

/// y of the table's row `id`.
pub fn reference(y: &mut [f64], table: &Matrix, id: u32) {
    for (j, y) in y.iter_mut().enumerate() {
        *y = table.at(id as usize, j);
    }
}

stamp! {
    row: fn(y: &mut [E::Real], table: &Matrix, id: u32) = body;
}

impl<E: Elem> Kernels<E> {
    /// y = row `id` of the table, widened.
    ///
    /// table \[V, D\], y \[D\]. Panics unless y is one row long and `id` is below V.
    pub fn embed(&self, y: &mut [E::Real], table: &Matrix, id: u32) {
        assert!(y.len() == table.cols(), "embed: y holds {} values, a row {}", y.len(), table.cols());
        assert!((id as usize) < table.rows(), "embed: token {id} is outside a table of {} rows", table.rows());
        // SAFETY: this table's level is one that the machine has.
        unsafe { (self.embedding.row)(y, table, id) }
    }
}

#[inline(always)]
fn body<E: Elem>(y: &mut [E::Real], table: &Matrix, id: u32) {
    table.read_row(id as usize, 0, y);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proof::wide;
    use crate::testing::{Random, same_bits};
    use crate::{Dtype, Isa};
    use half::{bf16, f16};

    /// Three rows of D values, as `dtype` stores them.
    fn bytes(dtype: Dtype, dim: usize) -> Vec<u8> {
        let values = Random::new(dim as u64).vec::<f32>(3 * dim);
        values
            .iter()
            .flat_map(|&x| match dtype {
                Dtype::F32 => x.to_le_bytes().to_vec(),
                Dtype::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
                Dtype::Bf16 => bf16::from_f32(x).to_le_bytes().to_vec(),
            })
            .collect()
    }

    fn is_exact<E: Elem>(dtype: Dtype, dim: usize) {
        let bytes = bytes(dtype, dim);
        let table = Matrix::new(dtype, &bytes, 3, dim).unwrap();
        for &isa in Isa::available() {
            for id in 0..3 {
                let (mut want, mut y) = (vec![0.0; dim], vec![E::Real::default(); dim]);
                reference(&mut want, &table, id);
                E::kernels(isa).embed(&mut y, &table, id);
                same_bits(&wide(&y), &want).unwrap_or_else(|e| panic!("{} {isa:?} {dtype:?} {dim}: {e}", E::NAME));
            }
        }
    }

    #[test]
    fn every_form_copies_every_stored_type_exactly() {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            for dim in [0, 1, 16, 67, 576] {
                is_exact::<f32>(dtype, dim);
                is_exact::<bf16>(dtype, dim);
                is_exact::<f64>(dtype, dim);
            }
        }
    }

    #[test]
    #[should_panic(expected = "token 3 is outside a table of 3 rows")]
    fn a_token_past_the_table_is_refused() {
        let bytes = bytes(Dtype::F32, 2);
        f32::kernels(Isa::Portable).embed(&mut [0.0; 2], &Matrix::new(Dtype::F32, &bytes, 3, 2).unwrap(), 3);
    }
}
