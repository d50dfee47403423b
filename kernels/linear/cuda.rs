//! Launches of `cuda.cu`: a block a tile of the output.

use super::Sum;
use crate::cuda::{Args, Launch, Ptr};

/// Terms of one product.
pub const MAX_TERMS: usize = 8;

/// One product of a sum of products.
#[derive(Clone, Copy, Debug)]
pub struct Term {
    /// `[m, k]` bf16.
    pub x: Ptr,
    /// bf16, `[n, k]` or, summed over rows, `[k, n]`.
    pub w: Ptr,
    /// Values summed over.
    pub k: u32,
    /// Which index of w is summed over.
    pub sum: Sum,
}

/// Where a product goes: `[m, n]`, the address a multiple of 4.
#[derive(Clone, Copy, Debug)]
pub enum Out {
    /// bf16, rounded once.
    Act(Ptr),
    /// f32.
    Real(Ptr),
    /// f32, added to.
    Add(Ptr),
}

/// A block's tile of the output, as in `cuda.cu`.
struct Tile {
    gemm: &'static str,
    gradient: &'static str,
    rows: u32,
    cols: u32,
    /// Values of k in shared memory at a time.
    depth: u32,
    threads: u32,
}

const LARGE: Tile = Tile { gemm: "linear_gemm_large", gradient: "", rows: 128, cols: 128, depth: 32, threads: 256 };
const SMALL: Tile =
    Tile { gemm: "linear_gemm_small", gradient: "linear_gradient_small", rows: 64, cols: 64, depth: 32, threads: 128 };
const FEW: Tile =
    Tile { gemm: "linear_gemm_few", gradient: "linear_gradient_few", rows: 16, cols: 32, depth: 128, threads: 64 };

/// Large tiles that are worth it: about one for each multiprocessor of the GPUs this is meant for.
const FULL: u64 = 128;
/// Tiles loaded ahead.
const STAGES: u32 = 4;
/// Rows of a gradient's part, and most parts: enough blocks to fill a GPU, and partial sums that stay small.
const PART: u32 = 1024;
const MAX_PARTS: u32 = 16;
const SUM_THREADS: u32 = 256;

impl Tile {
    /// The tile for `m` rows and `n` columns: no bit of the output depends on it.
    fn of(m: u32, n: u32) -> &'static Self {
        match u64::from(m.div_ceil(LARGE.rows)) * u64::from(n.div_ceil(LARGE.cols)) {
            _ if m <= FEW.rows => &FEW,
            tiles if tiles >= FULL && n > SMALL.cols => &LARGE,
            _ => &SMALL,
        }
    }

    /// Bytes of shared memory: bf16, x and w, all stages.
    fn shared(&self) -> u32 {
        STAGES * (self.rows + self.cols) * self.depth * 2
    }

    fn gemm(&self, out: Out, m: u32, n: u32, terms: &[Term], bias: Option<Ptr>) -> Launch {
        let (c, kind) = match out {
            Out::Act(c) => (c, 0),
            Out::Real(c) => (c, 1),
            Out::Add(c) => (c, 2),
        };
        let operands: Vec<_> = terms.iter().filter(|term| term.k > 0).map(|term| term.operands(n)).collect();
        let args = push(Args::new().ptr(c).ptr(bias.unwrap_or_default()), &operands).u32(m).u32(n).u32(kind);
        let grid = [m.div_ceil(self.rows) * n.div_ceil(self.cols), 1, 1];
        Launch { entry: self.gemm, grid, block: [self.threads, 1, 1], shared: self.shared(), args }
    }
}

/// A term as the kernel takes it.
struct Operands {
    x: Ptr,
    w: Ptr,
    k: u32,
    over_rows: bool,
    wide_x: bool,
    wide_w: bool,
}

impl Term {
    fn operands(&self, n: u32) -> Operands {
        let over_rows = self.sum == Sum::OverRows;
        let (wide_x, wide_w) = (is_wide(self.x, self.k), is_wide(self.w, if over_rows { n } else { self.k }));
        Operands { x: self.x, w: self.w, k: self.k, over_rows, wide_x, wide_w }
    }
}

/// Does every row of `width` bf16 begin at a multiple of 16 bytes?
fn is_wide(at: Ptr, width: u32) -> bool {
    at.0.is_multiple_of(16) && width.is_multiple_of(8)
}

/// `struct Terms` of cuda.cu.
fn push(args: Args, terms: &[Operands]) -> Args {
    assert!(terms.len() <= MAX_TERMS, "a product of {} terms; {MAX_TERMS} are possible", terms.len());
    let of = |i: usize| terms.get(i);
    let mask = |bit: fn(&Operands) -> bool| (0..).zip(terms).map(|(t, term)| u32::from(bit(term)) << t).sum();
    let args = (0..MAX_TERMS).fold(args, |args, i| args.ptr(of(i).map_or(Ptr(0), |term| term.x)));
    let args = (0..MAX_TERMS).fold(args, |args, i| args.ptr(of(i).map_or(Ptr(0), |term| term.w)));
    let args = (0..MAX_TERMS).fold(args, |args, i| args.u32(of(i).map_or(0, |term| term.k)));
    args.u32(terms.len() as u32)
        .u32(mask(|term| term.over_rows))
        .u32(mask(|term| term.wide_x))
        .u32(mask(|term| term.wide_w))
}

/// `out [m, n] = bias [n] +` the sum over `terms` of x w: f32 sums, one rounding. bias f32.
///
/// `out` may be no operand. A row's bits do not depend on m or on its index. Panics past [`MAX_TERMS`] terms.
pub fn gemm(out: Out, m: u32, n: u32, terms: &[Term], bias: Option<Ptr>) -> Launch {
    Tile::of(m, n).gemm(out, m, n, terms, bias)
}

/// Rows of a gradient's part: of the number of rows alone.
fn part(rows: u32) -> u32 {
    PART.max(rows.div_ceil(MAX_PARTS).next_multiple_of(FEW.depth))
}

/// Bytes of scratch that [`lora_gradient`] needs.
pub fn lora_gradient_scratch(m: u32, n: u32, rows: u32) -> usize {
    let parts = rows.div_ceil(part(rows)) as usize;
    if parts > 1 { parts * m as usize * n as usize * size_of::<f32>() } else { 0 }
}

/// `c [m, n] += a^T b`, or c `[n, m]` where `transposed`: c f32, a `[rows, m]`, b `[rows, n]` bf16; m is LoRA's rank.
///
/// The sums of parts of the rows go to `scratch` ([`lora_gradient_scratch`] bytes), then to c in order. How rows are cut
/// depends on their number alone. No two of the operands may overlap.
pub fn lora_gradient(c: Ptr, a: Ptr, b: Ptr, m: u32, n: u32, rows: u32, transposed: bool, scratch: Ptr) -> Vec<Launch> {
    if rows == 0 {
        return Vec::new();
    }
    let tile = if m <= FEW.rows { &FEW } else { &SMALL };
    let (part, parts) = (part(rows), rows.div_ceil(part(rows)));
    let sums = if parts > 1 { scratch } else { Ptr(0) };
    let operands = Operands { x: a, w: b, k: rows, over_rows: true, wide_x: is_wide(a, m), wide_w: is_wide(b, n) };
    let args = push(Args::new().ptr(c).ptr(sums), &[operands]).u32(m).u32(n).u32(part).u32(transposed.into());
    let grid = [n.div_ceil(tile.cols), parts, m.div_ceil(tile.rows)];
    let product = Launch { entry: tile.gradient, grid, block: [tile.threads, 1, 1], shared: tile.shared(), args };
    if parts == 1 {
        return vec![product];
    }
    let args = Args::new().ptr(c).ptr(sums).u32(m * n).u32(parts);
    let grid = [(m * n).div_ceil(SUM_THREADS), 1, 1];
    vec![product, Launch { entry: "linear_gradient_sum", grid, block: [SUM_THREADS, 1, 1], shared: 0, args }]
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Case, Kind, gradient};
    use super::*;
    use crate::cuda::testing::Gpu;
    use crate::testing::{check, same_bits};
    use crate::{Dtype, bf16};

    const SOURCE: &str = "linear/cuda.cu";
    const TILES: [&Tile; 3] = [&LARGE, &SMALL, &FEW];

    /// The operands in the GPU's memory.
    fn terms(gpu: &mut Gpu, case: &Case<bf16>) -> (Vec<Term>, Option<Ptr>) {
        let terms = case.a.iter().zip(&case.w).zip(&case.ks).map(|((x, w), k)| {
            let (w, cols) = (w.matrix(), w.matrix().cols());
            let w: Vec<bf16> = (0..w.rows() * cols).map(|i| bf16::from_f32(w.at(i / cols, i % cols))).collect();
            Term { x: gpu.put(x), w: gpu.put(&w), k: *k as u32, sum: case.sum }
        });
        let terms = terms.collect();
        (terms, case.bias.as_ref().map(|bias| gpu.put(bias)))
    }

    fn stored(gpu: &mut Gpu, tile: &Tile, case: &Case<bf16>) -> Result<Vec<bf16>, String> {
        let ((terms, bias), y) = (terms(gpu, case), gpu.room::<bf16>(case.rows * case.n));
        gpu.run(&tile.gemm(Out::Act(y), case.rows as u32, case.n as u32, &terms, bias))?;
        Ok(gpu.get(y))
    }

    /// Results of many shapes, judged together: of a few sums, twice the plain error is a matter of luck.
    #[derive(Default)]
    struct Pool<E> {
        got: Vec<E>,
        plain: Vec<E>,
        want: Vec<f64>,
    }

    fn of(rows: usize, n: usize, ks: &[usize], sum: Sum, bias: bool) -> Case<bf16> {
        Case::of(rows, n, ks, sum, Kind::Plain(Dtype::Bf16), bias)
    }

    #[test]
    fn products_on_cuda_agree_with_the_reference() {
        let Some(mut gpu) = Gpu::of("linear::cuda", SOURCE) else { return };
        for tile in TILES {
            let mut pool = Pool::default();
            for sum in [Sum::OverCols, Sum::OverRows] {
                let mut cases = vec![of(1, 1, &[1], sum, true), of(17, 40, &[72, 8, 16], sum, true)];
                let edges = [tile.rows as usize - 1, tile.rows as usize, tile.rows as usize + 1];
                cases.extend(edges.map(|m| of(m, 24, &[16], sum, false)));
                cases.extend([-1, 0, 1, 8].map(|e| of(9, (tile.cols as i32 + e) as usize, &[16], sum, true)));
                cases.extend([-1, 0, 1, 8].map(|e| of(2, 9, &[(tile.depth as i32 + e) as usize, 5], sum, false)));
                cases.extend([3, 4, 5].map(|stages| of(3, 16, &[tile.depth as usize * stages, 16], sum, false)));
                cases.push(of(5, 8, &[8; MAX_TERMS], sum, false));
                if std::ptr::eq(tile, &FEW) {
                    // More rows of tiles than one group has.
                    cases.push(of(16 * 17 + 1, 40, &[16], sum, false));
                }
                for case in cases {
                    pool.got.extend(stored(&mut gpu, tile, &case).unwrap());
                    pool.plain.extend(case.plain().into_iter().map(bf16::from_f32));
                    pool.want.extend(case.want());
                }
            }
            check(&pool.got, &pool.plain, &pool.want).unwrap_or_else(|e| panic!("{}: {e}", tile.gemm));
        }
    }

    #[test]
    fn products_are_kept_or_added_in_f32_and_nothing_is_written_around_them() {
        let Some(mut gpu) = Gpu::of("linear::cuda", SOURCE) else { return };
        let case = of(3, 35, &[50, 4], Sum::OverCols, true);
        let (plain, want) = (case.plain(), case.want());
        let ((terms, bias), m, n) = (terms(&mut gpu, &case), case.rows as u32, case.n as u32);
        for tile in TILES {
            let y = gpu.put(&vec![-77.0f32; want.len() + 8]);
            let inside = y.offset(16);
            gpu.run(&tile.gemm(Out::Real(inside), m, n, &terms, bias)).unwrap();
            let once: Vec<f32> = gpu.get(y);
            check(&once[4..4 + want.len()], &plain, &want).unwrap();
            gpu.run(&tile.gemm(Out::Add(inside), m, n, &terms, bias)).unwrap();
            let twice: Vec<f32> = gpu.get(y);
            let doubled: Vec<f32> = once[4..4 + want.len()].iter().map(|y| y + y).collect();
            same_bits(&twice[4..4 + want.len()], &doubled).unwrap();
            assert!(twice[..4].iter().chain(&twice[4 + want.len()..]).all(|y| *y == -77.0), "{}", tile.gemm);
        }
    }

    #[test]
    fn a_row_has_the_same_bits_in_every_tile_and_at_every_index() {
        let Some(mut gpu) = Gpu::of("linear::cuda", SOURCE) else { return };
        let case = of(19, 40, &[136, 16], Sum::OverRows, true);
        let ((terms, bias), n) = (terms(&mut gpu, &case), case.n);
        let want = stored(&mut gpu, &SMALL, &case).unwrap();
        for tile in TILES {
            same_bits(&stored(&mut gpu, tile, &case).unwrap(), &want).unwrap();
            let rows = |first: usize| terms.iter().map(move |t| Term { x: t.x.offset(first * t.k as usize * 2), ..*t });
            for first in [1, 18] {
                let (m, y) = ((19 - first) as u32, gpu.room::<bf16>((19 - first) * n));
                gpu.run(&tile.gemm(Out::Act(y), m, n as u32, &rows(first).collect::<Vec<_>>(), bias)).unwrap();
                same_bits(&gpu.get::<bf16>(y), &want[first * n..]).unwrap();
            }
        }
    }

    #[test]
    fn nan_stays_in_its_row_and_nothing_to_sum_is_the_bias() {
        let Some(mut gpu) = Gpu::of("linear::cuda", SOURCE) else { return };
        for tile in TILES {
            let mut case = of(14, 24, &[24, 8], Sum::OverCols, false);
            case.a[1][5 * 8 + 3] = bf16::NAN;
            let y = stored(&mut gpu, tile, &case).unwrap();
            assert!((0..14 * 24).all(|i| y[i].is_nan() == (i / 24 == 5)), "{}", tile.gemm);
            let bias = [1.5f32, -2.0, 0.25];
            let (b, y) = (gpu.put(&bias), gpu.room::<f32>(6));
            gpu.run(&tile.gemm(Out::Real(y), 2, 3, &[], Some(b))).unwrap();
            same_bits(&gpu.get::<f32>(y), &bias.repeat(2)).unwrap();
            gpu.run(&tile.gemm(Out::Real(y), 0, 3, &[], Some(b))).unwrap();
        }
    }

    #[test]
    fn the_tile_follows_the_shape() {
        let of = |m, n| gemm(Out::Act(Ptr(256)), m, n, &[], None).entry;
        assert_eq!([of(1, 4096), of(16, 50_000)], [FEW.gemm; 2]);
        assert_eq!([of(17, 576), of(2048, 576), of(100_000, 64)], [SMALL.gemm; 3]);
        assert_eq!([of(4096, 576), of(2048, 4096)], [LARGE.gemm; 2]);
    }

    #[test]
    fn lora_gradients_on_cuda_agree_with_the_reference() {
        let Some(mut gpu) = Gpu::of("linear::cuda", SOURCE) else { return };
        let mut pool = Pool::<f32>::default();
        for (m, n, rows) in [
            (1, 1, 1),
            (8, 40, 130),
            (16, 33, 127),
            (17, 64, 33),
            (5, 7, 3),
            (70, 24, 20),
            (8, 16, 1024),
            (16, 8, 1100),
        ] {
            let (c, a, b, want) = gradient::<bf16>(m, n, rows);
            let mut plain = c.clone();
            for (i, c) in plain.iter_mut().enumerate() {
                (0..rows).for_each(|t| *c += a[t * m + i / n].to_f32() * b[t * n + i % n].to_f32());
            }
            let got = lora(&mut gpu, &c, &a, &b, (m, n, rows), false);
            // The other way round: transposed, and c in the other order.
            let turned: Vec<f32> = (0..m * n).map(|i| c[i % m * n + i / m]).collect();
            let other = lora(&mut gpu, &turned, &a, &b, (m, n, rows), true);
            same_bits(&(0..m * n).map(|i| other[i % n * m + i / n]).collect::<Vec<_>>(), &got).unwrap();
            pool.got.extend(got);
            pool.plain.extend(plain);
            pool.want.extend(want);
        }
        check(&pool.got, &pool.plain, &pool.want).unwrap();
    }

    fn lora(gpu: &mut Gpu, c: &[f32], a: &[bf16], b: &[bf16], shape: (usize, usize, usize), turn: bool) -> Vec<f32> {
        let (m, n, rows) = (shape.0 as u32, shape.1 as u32, shape.2 as u32);
        let (c, a, b) = (gpu.put(c), gpu.put(a), gpu.put(b));
        let scratch = gpu.room::<u8>(lora_gradient_scratch(m, n, rows));
        for launch in lora_gradient(c, a, b, m, n, rows, turn, scratch) {
            gpu.run(&launch).unwrap();
        }
        gpu.get(c)
    }

    #[test]
    fn parts_of_a_gradient_cover_all_rows_and_are_few() {
        for rows in [1, 1023, 1024, 1025, 16_384, 16_385, 100_000, u32::MAX / 2] {
            let parts = rows.div_ceil(part(rows));
            assert!(parts <= MAX_PARTS && part(rows).is_multiple_of(FEW.depth), "{rows}");
        }
        assert_eq!(lora_gradient_scratch(16, 576, 1024), 0);
        assert_eq!(lora_gradient_scratch(16, 576, 4096), 4 * 16 * 576 * 4);
        assert!(lora_gradient(Ptr(0), Ptr(0), Ptr(0), 16, 576, 0, false, Ptr(0)).is_empty());
    }

    /// Every fault is reported, or changes the result.
    #[test]
    fn faults_are_found() {
        let faults = [
            ("the wait", "copy_wait<STAGES - 2>();", "copy_wait<STAGES - 1>();"),
            ("the barrier", "        __syncthreads();\n        // Into", "        // Into"),
            ("a row too many", "row < source.rows &&", "row <= source.rows &&"),
            ("a stage not whole", "i < ROWS * CHUNKS / THREADS;", "i < ROWS * CHUNKS / THREADS - 1;"),
            ("a column too many", "if (r < m && c < n)", "if (r < m && c <= n)"),
        ];
        let sound = |gpu: &mut Gpu| {
            TILES.iter().try_for_each(|tile| {
                let case = of(tile.rows as usize - 1, 40, &[tile.depth as usize * 6, 16], Sum::OverRows, false);
                let plain: Vec<bf16> = case.plain().into_iter().map(bf16::from_f32).collect();
                check(&stored(gpu, tile, &case)?, &plain, &case.want())
            })
        };
        let Some(mut gpu) = Gpu::of("linear::cuda", SOURCE) else { return };
        sound(&mut gpu).unwrap();
        for (what, from, to) in faults {
            let Some(mut gpu) = Gpu::edited("linear::cuda", SOURCE, from, to) else { return };
            assert!(sound(&mut gpu).is_err(), "{what} was not found");
        }
    }
}
