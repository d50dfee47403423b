//! The tensor cores' instructions: where each element of a fragment lies, and the product.
//!
//! In the PTX manual's words (*Matrix Fragments for mma.m16n8k16*): groupID = lane / 4, threadID_in_group = lane % 4. Every
//! register of a holds `pack` neighbours of k; rows of a and d alternate between groupID and groupID + 8.

use crate::kernel::{Factor, Register};
use crate::lanes::Lanes;

const M: usize = 16;
const N: usize = 8;
const K_MAX: usize = 16;

impl Factor {
    /// Elements in one register.
    fn pack(self) -> usize {
        if self == Self::Bf16 { 2 } else { 1 }
    }
    fn element(self, register: u64, index: usize) -> f32 {
        f32::from_bits(match self {
            Self::Bf16 => (register as u32) >> (16 * index) << 16,
            // The low bits do not take part.
            Self::Tf32 => register as u32 & !0x1fff,
        })
    }
}

/// d = a b + c: products and sums in f32, k rising, c added last.
pub fn product(
    registers: &mut [Lanes],
    factor: Factor,
    to: [Register; 4],
    a: &[Register],
    b: &[Register],
    c: [Register; 4],
) {
    let pack = factor.pack();
    let mut left = [[0.0f32; K_MAX]; M];
    let mut right = [[0.0f32; N]; K_MAX];
    // Each further pair of a's registers, and each further one of b's, is 4 * pack of k on.
    for (i, &register) in a.iter().enumerate() {
        for (lane, &value) in registers[register as usize].iter().enumerate() {
            for index in 0..pack {
                left[lane / 4 + 8 * (i % 2)][lane % 4 * pack + index + 4 * pack * (i / 2)] =
                    factor.element(value, index);
            }
        }
    }
    for (i, &register) in b.iter().enumerate() {
        for (lane, &value) in registers[register as usize].iter().enumerate() {
            for index in 0..pack {
                right[lane % 4 * pack + index + 4 * pack * i][lane / 4] = factor.element(value, index);
            }
        }
    }
    let depth = 4 * pack * b.len();
    let mut sums = [[0.0f32; N]; M];
    for (sums, left) in sums.iter_mut().zip(&left) {
        for (&x, right) in left[..depth].iter().zip(&right) {
            for (sum, &y) in sums.iter_mut().zip(right) {
                *sum += x * y;
            }
        }
    }
    let start = c.map(|c| registers[c as usize]);
    for (i, (to, start)) in to.into_iter().zip(start).enumerate() {
        registers[to as usize] = std::array::from_fn(|lane| {
            let sum = sums[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
            (f32::from_bits(start[lane] as u32) + sum).to_bits().into()
        });
    }
}

/// A lane's register of an 8 x 8 matrix of 16-bit elements: two neighbours of a row, or of a column if transposed.
pub fn fragment(rows: &[[u8; 16]; 8], lane: usize, transposed: bool) -> u64 {
    let element =
        |row: usize, column: usize| u64::from(rows[row][2 * column]) | u64::from(rows[row][2 * column + 1]) << 8;
    let (group, member) = (lane / 4, 2 * (lane % 4));
    let pair = |i: usize| if transposed { element(member + i, group) } else { element(group, member + i) };
    pair(0) | pair(1) << 16
}
