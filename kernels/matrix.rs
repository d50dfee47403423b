//! A frozen matrix as it lies in a file: any of three types, any alignment.

use crate::Real;
use half::{bf16, f16};

/// How a stored value is encoded, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
}

impl Dtype {
    /// Bytes of one value.
    pub const fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }
}

/// A row-major `[rows, cols]` matrix in a mapped file. `bytes` may be unaligned: files come from strangers.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    dtype: Dtype,
    bytes: &'a [u8],
    rows: usize,
    cols: usize,
}

impl<'a> Matrix<'a> {
    /// `None` unless `bytes` holds exactly `rows * cols` values.
    pub fn new(dtype: Dtype, bytes: &'a [u8], rows: usize, cols: usize) -> Option<Self> {
        let len = rows.checked_mul(cols)?.checked_mul(dtype.size())?;
        (bytes.len() == len).then_some(Self { dtype, bytes, rows, cols })
    }

    /// A view of f32 values (LoRA's A and B).
    pub fn of_f32(values: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(values.len(), rows * cols);
        // SAFETY: f32 has no padding and any byte may be read as u8; the length is in bytes.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) };
        Self { dtype: Dtype::F32, bytes, rows, cols }
    }

    /// How its values are encoded.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }
    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Columns: the contiguous index.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// The stored bytes of row `i`.
    pub fn row(&self, i: usize) -> &'a [u8] {
        let len = self.cols * self.dtype.size();
        &self.bytes[i * len..][..len]
    }

    /// Rows `rows` as a matrix of their own.
    pub fn slice_rows(&self, rows: std::ops::Range<usize>) -> Matrix<'a> {
        let len = self.cols * self.dtype.size();
        Self { bytes: &self.bytes[rows.start * len..rows.end * len], rows: rows.len(), ..*self }
    }

    /// Value `(i, j)`, widened exactly. For references and edges; fast paths read whole rows.
    pub fn at<R: Real>(&self, i: usize, j: usize) -> R {
        let row = self.row(i);
        match self.dtype {
            Dtype::F32 => R::from_f32(f32::from_le_bytes([row[4 * j], row[4 * j + 1], row[4 * j + 2], row[4 * j + 3]])),
            Dtype::F16 => R::from_f32(f16::from_le_bytes([row[2 * j], row[2 * j + 1]]).to_f32()),
            Dtype::Bf16 => R::from_f32(bf16::from_le_bytes([row[2 * j], row[2 * j + 1]]).to_f32()),
        }
    }

    /// Widens columns `from..from + y.len()` of row `i` into `y`; exact (f64 and f32), in a loop that vectorises.
    pub fn read_row<R: Real>(&self, i: usize, from: usize, y: &mut [R]) {
        let size = self.dtype.size();
        let bytes = &self.row(i)[from * size..(from + y.len()) * size];
        match self.dtype {
            Dtype::F32 => each(y, bytes, |b: [u8; 4]| f32::from_le_bytes(b)),
            Dtype::F16 => each(y, bytes, |b: [u8; 2]| widen_f16(f16::from_le_bytes(b))),
            Dtype::Bf16 => each(y, bytes, |b: [u8; 2]| f32::from_bits((u16::from_le_bytes(b) as u32) << 16)),
        }
    }
}

#[inline(always)]
fn each<R: Real, const N: usize>(y: &mut [R], bytes: &[u8], value: impl Fn([u8; N]) -> f32) {
    for (y, b) in y.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *y = R::from_f32(value(*b));
    }
}

/// Exact, and without the call that `f16::to_f32` makes for each value, so that loops over it vectorise: the bits are
/// read as a small f32 and scaled by 2^112, the difference of the exponents' biases; infinity and NaN are put right.
#[inline(always)]
pub(crate) fn widen_f16(x: f16) -> f32 {
    let bits = x.to_bits() as u32;
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((112 + 127) << 23);
    let special = if magnitude >= 65536.0 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | special | (bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_f16_equals_halfs_for_every_value() {
        for bits in 0..=u16::MAX {
            let x = f16::from_bits(bits);
            let (got, want) = (widen_f16(x), x.to_f32());
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{bits:#x}: {got} not {want}");
        }
    }
}
