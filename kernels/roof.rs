//! What a core could do if nothing held it up: rates that others are a part of, measured on the machine at hand. Whoever
//! calls takes the time; for the roof of several threads, several call at once, each with bytes of its own.

use crate::Isa;

/// Multiplies and adds by the level's widest instruction for that operand type ("bf16", "f32", or "int8" and "int4" for whole
/// numbers, which some levels make bf16), `rounds` times 12 of them; AMX with operands from the second-level cache, the others
/// in registers alone. How many operations that were, two a multiplication with its addition; `None` where no such loop is
/// written.
///
/// # Panics
/// `isa` must be one of [`Isa::available`].
pub fn multiply(isa: Isa, operands: &str, rounds: usize) -> Option<f64> {
    assert!(Isa::available().contains(&isa), "this machine has no {}", isa.name());
    // SAFETY: just seen.
    unsafe { loops::multiply(isa, operands, rounds) }
}

/// Reads every byte, by plain loads; what it gives only keeps the loads from being left out.
pub fn read(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; 16];
    let (chunks, _) = bytes.as_chunks::<128>();
    for chunk in chunks {
        let (words, _) = chunk.as_chunks::<8>();
        sums.iter_mut().zip(words).for_each(|(sum, word)| *sum = sum.wrapping_add(u64::from_ne_bytes(*word)));
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}

#[cfg(target_arch = "x86_64")]
pub(crate) use loops::tiles;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! registers {
    ($name:ident, $features:literal, $lanes:literal, $zero:expr, $step:expr) => {
        /// SUMS sums, so that none waits for itself; how many products an instruction has.
        ///
        /// # Safety
        /// The features must be there.
        #[target_feature(enable = $features)]
        unsafe fn $name(rounds: usize) -> usize {
            let mut sums = [black_box($zero); SUMS];
            let (a, b) = (black_box($zero), black_box($zero));
            for _ in 0..rounds {
                sums.iter_mut().for_each(|sum| *sum = $step(*sum, a, b));
            }
            black_box(sums);
            $lanes
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod loops {
    use crate::Isa;
    use crate::linear::amx::{Config, release};
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    const SUMS: usize = 12;

    /// # Safety
    /// `isa` must be there.
    pub unsafe fn multiply(isa: Isa, operands: &str, rounds: usize) -> Option<f64> {
        // SAFETY: the caller's.
        let lanes = unsafe {
            match (isa, operands) {
                (Isa::Amx, "bf16" | "int8" | "int4") => return Some(tiles(operands, rounds)),
                (Isa::Avx512Bf16, "bf16" | "int4") => dot(rounds),
                (Isa::Avx512Vnni | Isa::Avx512Bf16, "int8") => bytes(rounds),
                (Isa::AvxVnni, "int8") => bytes256(rounds),
                (Isa::Avx2 | Isa::AvxVnni | Isa::Avx512 | Isa::Avx512Vnni, "int8" | "int4") => whole(rounds),
                (Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 | Isa::Amx, _) => fma512(rounds),
                (Isa::Avx2 | Isa::AvxVnni, _) => fma256(rounds),
                _ => sse(rounds),
            }
        };
        Some((rounds * SUMS * 2 * lanes) as f64)
    }

    registers!(fma256, "avx2,fma", 8, _mm256_setzero_ps(), |c, a, b| _mm256_fmadd_ps(a, b, c));
    registers!(fma512, "avx512f", 16, _mm512_setzero_ps(), |c, a, b| _mm512_fmadd_ps(a, b, c));
    // of the sum itself, lest the product be made once for all rounds
    registers!(whole, "avx2", 16, _mm256_setzero_si256(), |c, _, b| _mm256_add_epi32(c, _mm256_madd_epi16(c, b)));
    registers!(bytes256, "avxvnni", 32, _mm256_setzero_si256(), |c, a, b| _mm256_dpbusd_avx_epi32(c, a, b));
    registers!(bytes, "avx512f,avx512vnni", 64, _mm512_setzero_si512(), |c, a, b| _mm512_dpbusd_epi32(c, a, b));
    registers!(sse, "sse2", 4, _mm_setzero_ps(), |c, a, b| _mm_add_ps(c, _mm_mul_ps(a, b)));
    registers!(dot, "avx512f,avx512bf16", 32, _mm512_setzero_ps(), |c, a, b| {
        // SAFETY: vectors of the same size; every bit pattern is a vector of bf16.
        let bits = |x: __m512| unsafe { std::mem::transmute::<__m512, __m512bh>(x) };
        _mm512_dpbf16_ps(c, bits(a), bits(b))
    });

    #[derive(Clone, Copy)]
    #[repr(align(64))]
    struct Tile(#[allow(dead_code)] [u8; 1024]); // only ever read by the tiles' loads

    /// Pairs of tiles of either operand: 256 KiB, more than the first-level cache and far less than the second.
    const PAIRS: usize = 64;

    /// Two tiles of rows by two of columns and what has to be loaded for them, three times a round; how many operations that is.
    ///
    /// # Safety
    /// AMX must be there.
    pub unsafe fn tiles(operands: &str, rounds: usize) -> f64 {
        let tiles = vec![Tile([0; 1024]); 4 * PAIRS];
        let all = (3 * rounds).div_ceil(PAIRS);
        let (multiply, k): (unsafe fn(&[Tile]), usize) = match operands {
            "int8" => (pairs_of_bytes, 64),
            _ => (pairs, 32),
        };
        // SAFETY: the caller's.
        unsafe {
            Config::new([(16, 64); 8]).load();
            for _ in 0..all {
                multiply(&tiles);
            }
            release();
        }
        let product = 2 * 16 * 16 * k;
        (all * PAIRS * 4 * product) as f64
    }

    macro_rules! pairs {
        ($name:ident, $dot:literal) => {
            /// # Safety
            /// AMX must be there, configured for whole tiles.
            unsafe fn $name(operands: &[Tile]) {
                assert!(operands.len() == 4 * PAIRS);
                // SAFETY: AMX is the caller's; every load is of a tile of `operands`, and every tile touched is named.
                unsafe {
                    asm!(
                        "2:",
                        "tileloadd tmm6, [{b} + {row}*1]",
                        "tileloadd tmm4, [{a} + {row}*1]",
                        concat!($dot, " tmm0, tmm4, tmm6"),
                        "tileloadd tmm7, [{b} + {row}*1 + 1024]",
                        concat!($dot, " tmm1, tmm4, tmm7"),
                        "tileloadd tmm5, [{a} + {row}*1 + 1024]",
                        concat!($dot, " tmm2, tmm5, tmm6"),
                        concat!($dot, " tmm3, tmm5, tmm7"),
                        "add {a}, 2048",
                        "add {b}, 2048",
                        "dec {pairs}",
                        "jnz 2b",
                        a = inout(reg) operands.as_ptr() => _,
                        b = inout(reg) operands[2 * PAIRS..].as_ptr() => _,
                        pairs = inout(reg) PAIRS => _,
                        row = in(reg) 64usize,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack, readonly),
                    );
                }
            }
        };
    }
    pairs!(pairs, "tdpbf16ps");
    pairs!(pairs_of_bytes, "tdpbssd");
}

#[cfg(target_arch = "aarch64")]
mod loops {
    use crate::Isa;
    use crate::linear::neon_bf16;
    use std::arch::aarch64::*;
    use std::hint::black_box;

    /// Two rounds: four units want more sums than twelve.
    const SUMS: usize = 24;

    /// # Safety
    /// `isa` must be there.
    pub unsafe fn multiply(isa: Isa, operands: &str, rounds: usize) -> Option<f64> {
        let rounds = rounds.div_ceil(2);
        // SAFETY: the caller's.
        let products = unsafe {
            match (isa, operands) {
                (Isa::NeonBf16, "bf16" | "int8" | "int4") => matrix(rounds),
                _ => fma(rounds),
            }
        };
        Some((rounds * SUMS * 2 * products) as f64)
    }

    registers!(fma, "neon", 4, vdupq_n_f32(0.0), |c, a, b| vfmaq_f32(c, a, b));
    registers!(matrix, "neon,bf16", 16, vdupq_n_f32(0.0), |c, a, b| {
        neon_bf16::multiply(c, vreinterpretq_u16_f32(a), vreinterpretq_u16_f32(b))
    });
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod loops {
    /// # Safety
    /// None.
    pub unsafe fn multiply(_: crate::Isa, _: &str, _: usize) -> Option<f64> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twice_the_rounds_are_twice_the_operations_and_every_byte_is_read() {
        for isa in Isa::available() {
            for operands in ["bf16", "f32", "int8", "int4"] {
                let [once, twice] = [640, 1280].map(|rounds| multiply(*isa, operands, rounds));
                assert_eq!(once.map(|once| 2.0 * once), twice, "{} {operands}", isa.name());
            }
        }
        let mut bytes = vec![0; 4096];
        for at in [0, 7, 127, 128, 4095] {
            bytes[at] = 1;
            assert_ne!(read(&bytes), 0, "byte {at}");
            bytes[at] = 0;
        }
    }
}
