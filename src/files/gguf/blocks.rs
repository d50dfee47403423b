//! One row of a GGUF tensor to f32.
//!
//! Quantised types come in blocks of 32 values with their own scale, laid out as in ggml-quants: Q8_0 is an f16 scale d
//! and 32 signed bytes, x = q d; Q4_0 is d and 16 bytes, x = (q - 8) d; Q4_1 is d, an f16 minimum m and 16 bytes,
//! x = q d + m. A byte's low half is value i, its high half value i + 16. Products of an f16 and an 8-bit number are
//! exact in f32, so only Q4_1's sum rounds. This file knows no names or shapes.

use crate::{Error, Result};
use half::{bf16, f16};

/// How a tensor's values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types)] // ggml's names, as people and messages write them
pub(super) enum Kind {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
}

/// Values in a quantised block.
const BLOCK: usize = 32;
/// ggml's type numbers and names, for refusals.
const OTHERS: [(u32, &str); 19] = [
    (6, "Q5_0"),
    (7, "Q5_1"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (28, "F64"),
    (29, "IQ1_M"),
];

impl Kind {
    pub fn from_id(id: u32) -> Result<Self> {
        Ok(match id {
            0 => Kind::F32,
            1 => Kind::F16,
            2 => Kind::Q4_0,
            3 => Kind::Q4_1,
            8 => Kind::Q8_0,
            30 => Kind::BF16,
            _ => {
                let name = OTHERS.iter().find(|(n, _)| *n == id).map_or("unknown", |(_, name)| name);
                let text = format!("has type {name} ({id}), supported are F32, F16, BF16, Q8_0, Q4_0 and Q4_1");
                return Err(Error::unsupported(text));
            }
        })
    }

    /// Values and bytes of a block.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Kind::F32 => (1, 4),
            Kind::F16 | Kind::BF16 => (1, 2),
            Kind::Q8_0 => (BLOCK, 2 + BLOCK),
            Kind::Q4_0 => (BLOCK, 2 + BLOCK / 2),
            Kind::Q4_1 => (BLOCK, 4 + BLOCK / 2),
        }
    }

    pub fn is_quantised(self) -> bool {
        self.block().0 > 1
    }

    /// Bytes of `cols` values, a multiple of the block.
    pub fn row_bytes(self, cols: usize) -> usize {
        let (values, bytes) = self.block();
        cols / values * bytes
    }

    /// Reads `y.len()` values, a multiple of the block, from as many bytes as [`Kind::row_bytes`] says.
    pub fn read_row(self, bytes: &[u8], y: &mut [f32]) {
        match self {
            Kind::F32 => each(bytes, y, |b: &[u8; 4], [y]| *y = f32::from_le_bytes(*b)),
            Kind::F16 => each(bytes, y, |b: &[u8; 2], [y]| *y = f16::from_le_bytes(*b).to_f32()),
            Kind::BF16 => each(bytes, y, |b: &[u8; 2], [y]| *y = bf16::from_le_bytes(*b).to_f32()),
            Kind::Q8_0 => each(bytes, y, q8_0),
            Kind::Q4_0 => each(bytes, y, q4_0),
            Kind::Q4_1 => each(bytes, y, q4_1),
        }
    }
}

/// Pairs blocks of N bytes with blocks of M values.
fn each<const N: usize, const M: usize>(bytes: &[u8], y: &mut [f32], block: impl Fn(&[u8; N], &mut [f32; M])) {
    for (b, y) in bytes.as_chunks().0.iter().zip(y.as_chunks_mut().0) {
        block(b, y);
    }
}

fn q8_0(b: &[u8; 34], y: &mut [f32; BLOCK]) {
    let d = scale(b[0], b[1]);
    for (y, &q) in y.iter_mut().zip(&b[2..]) {
        *y = f32::from(q as i8) * d;
    }
}

fn q4_0(b: &[u8; 18], y: &mut [f32; BLOCK]) {
    let d = scale(b[0], b[1]);
    for (i, &q) in b[2..].iter().enumerate() {
        y[i] = f32::from((q & 15) as i8 - 8) * d;
        y[i + 16] = f32::from((q >> 4) as i8 - 8) * d;
    }
}

fn q4_1(b: &[u8; 20], y: &mut [f32; BLOCK]) {
    let (d, m) = (scale(b[0], b[1]), scale(b[2], b[3]));
    for (i, &q) in b[4..].iter().enumerate() {
        y[i] = f32::from(q & 15) * d + m;
        y[i + 16] = f32::from(q >> 4) * d + m;
    }
}

fn scale(low: u8, high: u8) -> f32 {
    f16::from_le_bytes([low, high]).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: [u8; 2] = [0x00, 0x38]; // 0.5 as f16

    fn row(kind: Kind, bytes: &[u8]) -> [f32; BLOCK] {
        let mut y = [f32::NAN; BLOCK];
        kind.read_row(bytes, &mut y);
        y
    }

    #[test]
    fn q8_0_is_signed_byte_times_scale() {
        let bytes: Vec<u8> = HALF.into_iter().chain((0..32).map(|i| (i * 8 - 128) as i8 as u8)).collect();
        assert_eq!(row(Kind::Q8_0, &bytes), std::array::from_fn(|i| (i as f32 * 8.0 - 128.0) / 2.0));
    }

    #[test]
    fn q4_low_halves_come_first_then_high_ones() {
        let halves: Vec<u8> = (0..16).map(|i| i | (15 - i) << 4).collect();
        let q = |i: usize| if i < 16 { i as f32 } else { 31.0 - i as f32 };
        let q4_0: Vec<u8> = HALF.into_iter().chain(halves.clone()).collect();
        assert_eq!(row(Kind::Q4_0, &q4_0), std::array::from_fn(|i| (q(i) - 8.0) / 2.0));
        let three = [0x00, 0x42]; // 3.0 as f16
        let q4_1: Vec<u8> = HALF.into_iter().chain(three).chain(halves).collect();
        assert_eq!(row(Kind::Q4_1, &q4_1), std::array::from_fn(|i| q(i) / 2.0 + 3.0));
    }

    #[test]
    fn a_type_that_is_not_read_is_refused_by_name() {
        assert!(Kind::from_id(12).unwrap_err().text().contains("Q4_K (12)"));
        assert!(Kind::from_id(99).unwrap_err().text().contains("unknown (99)"));
    }
}
