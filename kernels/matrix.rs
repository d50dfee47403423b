//! A frozen matrix as it lies in a file: numbers of any of three types, or whole numbers of 8 or 4 bits with scales; any
//! alignment.

use crate::Real;
use crate::quantize::packed::Packed;
use half::f16;
use std::ops::Range;

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

    /// The values of `bytes`, widened exactly.
    #[inline(always)]
    fn read<R: Real>(self, y: &mut [R], bytes: &[u8]) {
        match self {
            Dtype::F32 => each(y, bytes, f32::from_le_bytes),
            Dtype::F16 => each(y, bytes, |b: [u8; 2]| widen_f16(f16::from_le_bytes(b))),
            Dtype::Bf16 => each(y, bytes, |b: [u8; 2]| f32::from_bits((u16::from_le_bytes(b) as u32) << 16)),
        }
    }
}

/// Whole numbers that stand for weights, each times the scale of its run of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// -127 to 127, a byte each, two's complement.
    Eight,
    /// -8 to 7, stored plus 8, the even column in a byte's lower half; a row fills whole words of eight.
    Four,
}

impl Bits {
    /// How many there are.
    pub const fn count(self) -> usize {
        match self {
            Bits::Eight => 8,
            Bits::Four => 4,
        }
    }
    /// Bytes of a row of `cols` values.
    pub const fn row_bytes(self, cols: usize) -> usize {
        match self {
            Bits::Eight => cols,
            Bits::Four => 4 * cols.div_ceil(8),
        }
    }
}

/// The scales of a matrix of whole numbers: one for every `run` columns of a row, the last run as long as what is left.
#[derive(Clone, Copy, Debug)]
pub struct Scales<'a> {
    dtype: Dtype,
    bytes: &'a [u8],
    /// Columns that share one.
    run: usize,
    /// How many a row has.
    runs: usize,
}

impl<'a> Scales<'a> {
    /// `[rows, ceil(cols / run)]`, of any alignment; `None` unless `bytes` holds exactly those, or where runs are neither
    /// whole rows nor of a multiple of 8 columns.
    pub fn new(dtype: Dtype, bytes: &'a [u8], rows: usize, cols: usize, run: usize) -> Option<Self> {
        if run == 0 || run < cols && !run.is_multiple_of(8) {
            return None;
        }
        let runs = cols.div_ceil(run);
        let len = rows.checked_mul(runs)?.checked_mul(dtype.size())?;
        (bytes.len() == len).then_some(Self { dtype, bytes, run, runs })
    }
    /// How they are encoded.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }
    /// Columns that share one.
    pub fn run(&self) -> usize {
        self.run
    }
    /// Those of row `i` from run `first` on.
    pub fn row(&self, i: usize, first: usize) -> impl Iterator<Item = f32> + use<'a> {
        let (dtype, size) = (self.dtype, self.dtype.size());
        let values = (i * self.runs + first) * size..(i + 1) * self.runs * size;
        self.bytes[values].chunks_exact(size).map(move |bytes| {
            let mut scale = [0.0];
            dtype.read(&mut scale, bytes);
            scale[0]
        })
    }
    /// Columns `cols` of row `i`, cut where another scale begins, with it.
    #[inline(always)]
    pub(crate) fn cut(&self, i: usize, cols: Range<usize>) -> impl Iterator<Item = (Range<usize>, f32)> + use<'a> {
        let (run, mut at) = (self.run, cols.start);
        self.row(i, at / run).map_while(move |scale| {
            let piece = at..cols.end.min((at / run + 1) * run);
            at = piece.end;
            (!piece.is_empty()).then_some((piece, scale))
        })
    }
    fn slice_rows(&self, rows: Range<usize>) -> Self {
        let len = self.runs * self.dtype.size();
        Self { bytes: &self.bytes[rows.start * len..rows.end * len], ..*self }
    }
}

/// How a matrix's values are stored.
#[derive(Clone, Copy, Debug)]
pub enum Encoding<'a> {
    /// As numbers.
    Plain(Dtype),
    /// As whole numbers times scales, row after row.
    Quantized(Bits, Scales<'a>),
    /// The same in the order of a product.
    Packed(Packed<'a>),
}

/// A row-major `[rows, cols]` matrix in a mapped file. `bytes` may be unaligned: files come from strangers.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    encoding: Encoding<'a>,
    bytes: &'a [u8],
    rows: usize,
    cols: usize,
}

impl<'a> Matrix<'a> {
    /// Numbers; `None` unless `bytes` holds exactly `rows * cols` of them.
    pub fn new(dtype: Dtype, bytes: &'a [u8], rows: usize, cols: usize) -> Option<Self> {
        let len = rows.checked_mul(cols)?.checked_mul(dtype.size())?;
        (bytes.len() == len).then_some(Self { encoding: Encoding::Plain(dtype), bytes, rows, cols })
    }

    /// Whole numbers times `scales`, which are made for this shape; `None` unless `bytes` holds exactly `rows` rows of
    /// [`Bits::row_bytes`].
    pub fn quantized(bits: Bits, bytes: &'a [u8], scales: Scales<'a>, rows: usize, cols: usize) -> Option<Self> {
        let fits = bytes.len() == rows.checked_mul(bits.row_bytes(cols))?
            && scales.runs == cols.div_ceil(scales.run)
            && scales.bytes.len() == rows.checked_mul(scales.runs * scales.dtype.size())?;
        fits.then_some(Self { encoding: Encoding::Quantized(bits, scales), bytes, rows, cols })
    }

    /// Whole numbers in the order of a product.
    pub fn packed(packed: Packed<'a>) -> Self {
        let [rows, cols] = packed.shape();
        Self { encoding: Encoding::Packed(packed), bytes: &[], rows, cols }
    }

    /// A view of f32 values (LoRA's A and B).
    pub fn of_f32(values: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(values.len(), rows * cols);
        // SAFETY: f32 has no padding and any byte may be read as u8; the length is in bytes.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) };
        Self { encoding: Encoding::Plain(Dtype::F32), bytes, rows, cols }
    }

    /// How its values are stored.
    pub fn encoding(&self) -> Encoding<'a> {
        self.encoding
    }
    /// Is it stored as numbers?
    pub fn is_plain(&self) -> bool {
        matches!(self.encoding, Encoding::Plain(_))
    }
    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Columns: the contiguous index.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// Bytes of a row; none where rows do not lie together.
    pub fn row_bytes(&self) -> usize {
        match self.encoding {
            Encoding::Plain(dtype) => self.cols * dtype.size(),
            Encoding::Quantized(bits, _) => bits.row_bytes(self.cols),
            Encoding::Packed(_) => 0,
        }
    }
    /// The stored bytes of row `i`, without scales; none where rows do not lie together.
    pub fn row(&self, i: usize) -> &'a [u8] {
        &self.bytes[i * self.row_bytes()..][..self.row_bytes()]
    }

    /// Rows `rows` as a matrix of their own; packed ones begin with a panel.
    pub fn slice_rows(&self, rows: Range<usize>) -> Matrix<'a> {
        let len = self.row_bytes();
        let encoding = match self.encoding {
            Encoding::Plain(dtype) => Encoding::Plain(dtype),
            Encoding::Quantized(bits, scales) => Encoding::Quantized(bits, scales.slice_rows(rows.clone())),
            Encoding::Packed(packed) => Encoding::Packed(packed.slice_rows(rows.clone())),
        };
        Self { encoding, bytes: &self.bytes[rows.start * len..rows.end * len], rows: rows.len(), cols: self.cols }
    }

    /// Value `(i, j)`, widened exactly. For references and edges; fast paths read whole rows.
    pub fn at<R: Real>(&self, i: usize, j: usize) -> R {
        let mut value = [R::ZERO];
        self.read_row(i, j, &mut value);
        value[0]
    }

    /// Widens columns `from..from + y.len()` of row `i` into `y`: numbers exactly, whole numbers times their scale in f32
    /// (exact where the scale has 16 bits), in loops that vectorise.
    #[inline(always)]
    pub fn read_row<R: Real>(&self, i: usize, from: usize, y: &mut [R]) {
        let row = self.row(i);
        match self.encoding {
            Encoding::Plain(dtype) => dtype.read(y, &row[from * dtype.size()..(from + y.len()) * dtype.size()]),
            Encoding::Quantized(bits, scales) => {
                assert!(from + y.len() <= self.cols);
                for (cols, scale) in scales.cut(i, from..from + y.len()) {
                    let y = &mut y[cols.start - from..cols.end - from];
                    match bits {
                        Bits::Eight => each(y, &row[cols], |[b]: [u8; 1]| b as i8 as f32 * scale),
                        Bits::Four => {
                            nibbles(y, &row[cols.start / 2..cols.end.div_ceil(2)], cols.start % 2 == 1, scale)
                        }
                    }
                }
            }
            Encoding::Packed(packed) => packed.read_row(i, from, y),
        }
    }
}

/// A run of halves of bytes, which begins with an upper one where `odd`.
#[inline(always)]
fn nibbles<R: Real>(y: &mut [R], bytes: &[u8], odd: bool, scale: f32) {
    let value = |half: u8| R::from_f32((half as i8 - 8) as f32 * scale);
    let (first, rest) = y.split_at_mut(odd.into());
    first.iter_mut().for_each(|y| *y = value(bytes[0] >> 4));
    let (pairs, last) = rest.as_chunks_mut::<2>();
    let bytes = &bytes[odd.into()..];
    for (y, byte) in pairs.iter_mut().zip(bytes) {
        *y = [value(byte & 15), value(byte >> 4)];
    }
    last.iter_mut().for_each(|y| *y = value(bytes[pairs.len()] & 15));
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
