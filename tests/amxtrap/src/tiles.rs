//! Eight tiles and what the instructions do to them. Each operation returns false where the processor would refuse.

/// 16 rows of 64 bytes.
type Tile = [[u8; 64]; 16];

#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    bytes: usize,
}

/// One thread's tile registers; no shapes before they are configured.
pub struct Tiles {
    shapes: Option<[Shape; 8]>,
    tiles: [Tile; 8],
}

impl Tiles {
    /// As a thread begins.
    pub const NEW: Self = Self { shapes: None, tiles: [[[0; 64]; 16]; 8] };

    pub fn configured(&self) -> bool {
        self.shapes.is_some()
    }

    /// LDTILECFG: palette 1, bytes per row at 16, rows at 48; all tiles become zero.
    pub fn configure(&mut self, config: [u8; 64]) -> bool {
        let shape = |t: usize| Shape {
            rows: config[48 + t] as usize,
            bytes: u16::from_le_bytes([config[16 + 2 * t], config[17 + 2 * t]]) as usize,
        };
        let shapes: [Shape; 8] = std::array::from_fn(shape);
        let reserved = config[2..16].iter().chain(&config[32..48]).chain(&config[56..]).all(|byte| *byte == 0);
        let fit = shapes.iter().all(|s| s.rows <= 16 && s.bytes <= 64 && (s.rows == 0) == (s.bytes == 0));
        if config[0] != 1 || config[1] != 0 || !reserved || !fit {
            return false;
        }
        *self = Self { shapes: Some(shapes), ..Self::NEW };
        true
    }

    /// TILERELEASE.
    pub fn release(&mut self) -> bool {
        *self = Self::NEW;
        true
    }

    /// TILEZERO.
    pub fn zero(&mut self, tile: usize) -> bool {
        self.tiles[tile] = [[0; 64]; 16];
        self.shape(tile).is_some()
    }

    /// TILELOADD; what lies beyond the configured shape becomes zero.
    ///
    /// # Safety
    /// The configured rows must be readable, `stride` bytes apart.
    pub unsafe fn load(&mut self, tile: usize, from: *const u8, stride: i64) -> bool {
        let Some(shape) = self.shape(tile) else { return false };
        self.tiles[tile] = [[0; 64]; 16];
        for (r, row) in self.tiles[tile][..shape.rows].iter_mut().enumerate() {
            // SAFETY: the caller's.
            unsafe { from.offset(r as isize * stride as isize).copy_to(row.as_mut_ptr(), shape.bytes) };
        }
        true
    }

    /// TILESTORED.
    ///
    /// # Safety
    /// The configured rows must be writable, `stride` bytes apart.
    pub unsafe fn store(&self, to: *mut u8, stride: i64, tile: usize) -> bool {
        let Some(shape) = self.shape(tile) else { return false };
        for (r, row) in self.tiles[tile][..shape.rows].iter().enumerate() {
            // SAFETY: the caller's.
            unsafe { row.as_ptr().copy_to(to.offset(r as isize * stride as isize), shape.bytes) };
        }
        true
    }

    /// TDPBF16PS: even and odd products are summed apart over the pairs, then together, then onto `sum`.
    pub fn dot(&mut self, sum: usize, a: usize, b: usize) -> bool {
        self.each(sum, a, b, |old, row, column, n| {
            let mut parts = [0.0; 2];
            for (k, b) in column.iter().enumerate() {
                for (odd, part) in parts.iter_mut().enumerate() {
                    *part = flush(*part + bf16(row, 2 * k + odd) * bf16(b, 2 * n + odd));
                }
            }
            flush(flush(f32::from_le_bytes(old)) + flush(parts[0] + parts[1])).to_le_bytes()
        })
    }

    /// TDPBSSD: products of four bytes with signs are summed onto `sum`, which wraps.
    pub fn dot_bytes(&mut self, sum: usize, a: usize, b: usize) -> bool {
        self.each(sum, a, b, |old, row, column, n| {
            let mut sum = i32::from_le_bytes(old);
            for (k, b) in column.iter().enumerate() {
                for i in 0..4 {
                    let product = i32::from(row[4 * k + i] as i8) * i32::from(b[4 * n + i] as i8);
                    sum = sum.wrapping_add(product);
                }
            }
            sum.to_le_bytes()
        })
    }

    /// Every element of `sum` becomes `dot(old, row of a, rows of b, column)`.
    fn each(
        &mut self,
        sum: usize,
        a: usize,
        b: usize,
        dot: impl Fn([u8; 4], &[u8; 64], &[[u8; 64]], usize) -> [u8; 4],
    ) -> bool {
        let (Some(s), Some(sa), Some(sb)) = (self.shape(sum), self.shape(a), self.shape(b)) else { return false };
        let distinct = sum != a && sum != b && a != b;
        if !distinct || sa.rows != s.rows || sb.bytes != s.bytes || sa.bytes != 4 * sb.rows {
            return false;
        }
        for m in 0..s.rows {
            for n in 0..s.bytes / 4 {
                let old = self.tiles[sum][m].as_chunks().0[n];
                let new = dot(old, &self.tiles[a][m], &self.tiles[b][..sb.rows], n);
                self.tiles[sum][m].as_chunks_mut().0[n] = new;
            }
        }
        true
    }

    fn shape(&self, tile: usize) -> Option<Shape> {
        self.shapes.map(|shapes| shapes[tile]).filter(|shape| shape.rows > 0)
    }
}

fn bf16(row: &[u8; 64], i: usize) -> f32 {
    flush(f32::from_bits((u16::from_le_bytes(row.as_chunks().0[i]) as u32) << 16))
}

/// Denormals are zero, going in and coming out.
fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A configuration of `rows` rows and `bytes` bytes for every tile.
    fn config(rows: u8, bytes: u8) -> [u8; 64] {
        std::array::from_fn(|i| match i {
            0 => 1,
            16..32 if i % 2 == 0 => bytes,
            48..56 => rows,
            _ => 0,
        })
    }

    fn one(x: f32) -> [u8; 4] {
        (x.to_bits() >> 16).to_le_bytes()
    }

    /// Row 0 of `a` times one column of `b`, one pair.
    fn dot(a: [f32; 2], b: [f32; 2], sum: f32) -> f32 {
        let mut tiles = Tiles::NEW;
        assert!(tiles.configure(config(1, 4)));
        for (tile, pair) in [(1, a), (2, b)] {
            tiles.tiles[tile][0][..2].copy_from_slice(&one(pair[0])[..2]);
            tiles.tiles[tile][0][2..4].copy_from_slice(&one(pair[1])[..2]);
        }
        tiles.tiles[0][0][..4].copy_from_slice(&sum.to_le_bytes());
        assert!(tiles.dot(0, 1, 2));
        f32::from_le_bytes(tiles.tiles[0][0].as_chunks().0[0])
    }

    #[test]
    fn a_pair_of_products_is_added_to_the_sum() {
        assert_eq!(dot([2.0, 3.0], [5.0, 7.0], 100.0), 131.0);
        assert!(dot([f32::NAN, 3.0], [5.0, 7.0], 100.0).is_nan());
    }

    #[test]
    fn four_products_of_bytes_are_added_to_the_sum() {
        let (a, b) = ([-128, 127, 3, -1], [-128, -127, 5, -7]);
        let mut tiles = Tiles::NEW;
        assert!(tiles.configure(config(1, 4)));
        for (tile, quad) in [(1, a), (2, b)] {
            tiles.tiles[tile][0][..4].copy_from_slice(&quad.map(|x: i8| x as u8));
        }
        for (sum, want) in [(1000, 1000 + 16_384 - 16_129 + 15 + 7), (i32::MAX, i32::MIN + 276)] {
            tiles.tiles[0][0][..4].copy_from_slice(&i32::to_le_bytes(sum));
            assert!(tiles.dot_bytes(0, 1, 2));
            assert_eq!(i32::from_le_bytes(tiles.tiles[0][0].as_chunks().0[0]), want);
        }
    }

    #[test]
    fn denormals_count_as_zero() {
        let tiny = f32::from_bits(0x0040_0000);
        assert_eq!(dot([tiny, 0.0], [1.0, 0.0], 0.0), 0.0);
        assert_eq!(dot([0.0, 0.0], [0.0, 0.0], tiny), 0.0);
        assert_eq!(dot([1e-30, 0.0], [1e-10, 0.0], 0.0), 0.0);
    }

    #[test]
    fn loads_and_stores_follow_stride_and_shape() {
        let from: Vec<u8> = (0..40).collect();
        let (mut to, mut tiles) = ([255u8; 20], Tiles::NEW);
        assert!(tiles.configure(config(3, 4)));
        // SAFETY: three rows of four bytes, 10 and 8 apart, lie within both.
        unsafe { assert!(tiles.load(5, from.as_ptr(), 10) && tiles.store(to.as_mut_ptr(), 8, 5)) };
        assert_eq!(to[..6], [0, 1, 2, 3, 255, 255]);
        assert_eq!(to[8..], [10, 11, 12, 13, 255, 255, 255, 255, 20, 21, 22, 23]);
    }

    #[test]
    fn what_the_processor_refuses_is_refused() {
        let mut tiles = Tiles::NEW;
        assert!(!tiles.zero(0) && !tiles.dot(0, 1, 2) && !tiles.dot_bytes(0, 1, 2));
        assert!(!tiles.configure([0; 64]) && !tiles.configure(config(17, 64)) && !tiles.configure(config(16, 65)));
        assert!(tiles.configure(config(2, 4)));
        assert!(!tiles.dot(0, 1, 2), "a has one pair a row, b two rows of pairs");
        assert!(tiles.configure(config(1, 4)) && tiles.dot(0, 1, 2) && !tiles.dot(0, 0, 2));
        assert!(tiles.release() && !tiles.configured());
    }
}
