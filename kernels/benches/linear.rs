//! How much of one core's multipliers the linear kernels use: `cargo bench -p dialoguellm-kernels --bench linear`.
//!
//! The roof is measured in the same run. Packing is timed with the product, once per call, as the
//! model does it. The best of several runs counts: others use this machine too. An argument names the levels to run.

use dialoguellm_kernels::linear::{Columns, InPlace, Out, PANEL, Sum, Term, panel_len};
use dialoguellm_kernels::quantize::packed::{Packed, panel_sizes};
use dialoguellm_kernels::testing::Random;
use dialoguellm_kernels::{Bits, Dtype, Elem, Isa, Kernels, Matrix, bf16, roof};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// (n, k) of SmolLM2-135M's projections.
const SHAPES: [(usize, usize); 4] = [(576, 576), (1536, 576), (576, 1536), (192, 576)];

fn main() {
    let named: Vec<Isa> = std::env::args().filter_map(|arg| Isa::named(&arg)).collect();
    for isa in Isa::available().iter().filter(|isa| named.is_empty() || named.contains(isa)) {
        products::<bf16>(*isa);
        products::<f32>(*isa);
        whole_numbers(*isa);
        gradients::<bf16>(*isa);
        few_rows(*isa);
    }
}

/// Operations a second of one thread's multipliers, or NaN where nothing measures them.
fn roof(isa: Isa, operands: &str) -> f64 {
    let mut all = None;
    let seconds = best(|| all = roof::multiply(isa, operands, 200_000));
    all.map_or(f64::NAN, |all| all / seconds / 1e9)
}

/// Seconds of the fastest run: at least 5, until 0.2 s have passed.
fn best(mut run: impl FnMut()) -> f64 {
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    for i in 0.. {
        if i >= 5 && start.elapsed() > Duration::from_millis(200) {
            break;
        }
        let once = Instant::now();
        run();
        best = best.min(once.elapsed().as_secs_f64());
    }
    best
}

fn products<E: Elem>(isa: Isa) {
    let roof = roof(isa, E::NAME);
    println!("{} {}: roof {roof:.0} GFLOP/s; % of it, packing included (without)", isa.name(), E::NAME);
    let kernels = E::kernels(isa);
    for (n, k) in SHAPES {
        print!("  n {n:4} k {k:4}:");
        for rows in [1, 8, 64, 256, 512, 1024, 2048] {
            let (packed, ready) = product(kernels, rows, n, k);
            let percent = |seconds| 2.0 * (rows * n * k) as f64 / seconds / 1e9 / roof * 100.0;
            print!("  T {rows} {:.0} ({:.0})", percent(packed), percent(ready));
        }
        println!();
    }
}

/// Whole numbers that are multiplied as such, where they lie.
fn whole_numbers(isa: Isa) {
    let kernels = bf16::kernels(isa);
    for bits in [Bits::Eight, Bits::Four] {
        let Some(_) = whole_product(kernels, bits, 1, SHAPES[0].0, SHAPES[0].1) else { continue };
        let roof = roof(isa, "int8");
        println!("{} int{}: roof {roof:.0} GFLOP/s of 8 bits; % of it", isa.name(), bits.count());
        for (n, k) in SHAPES {
            print!("  n {n:4} k {k:4}:");
            for rows in [1, 8, 64, 256, 512, 1024, 2048] {
                let seconds = whole_product(kernels, bits, rows, n, k).expect("as above");
                print!("  T {rows} {:.0}", 2.0 * (rows * n * k) as f64 / seconds / 1e9 / roof * 100.0);
            }
            println!();
        }
    }
}

/// Seconds; `None` where whole numbers are packed as others are.
fn whole_product(kernels: &Kernels<bf16>, bits: Bits, rows: usize, n: usize, k: usize) -> Option<f64> {
    let run = bits.run(k);
    let (bytes, scales) = panel_sizes(bits, k, run);
    let (q, scales) = (vec![0x5a; bytes * n.div_ceil(PANEL)], vec![bf16::ONE; scales * n.div_ceil(PANEL)]);
    let w = Matrix::packed(Packed::new(bits, &q, &scales, [n, k], run).expect("sizes as above"));
    let b = Columns::Whole(kernels.whole(&w, Sum::OverCols, 0..n, 1.0)?);
    let a: Vec<bf16> = Random::new(1).vec(rows * k);
    let mut y = vec![bf16::ZERO; rows * n];
    Some(best(|| kernels.gemm(Out::store(&mut y), n, rows, n, &[Term { a: &a, lda: k, b, k }], None)))
}

/// Seconds with and without packing.
fn product<E: Elem>(kernels: &Kernels<E>, rows: usize, n: usize, k: usize) -> (f64, f64) {
    let mut random = Random::new(1);
    let bytes: Vec<u8> = random.vec::<bf16>(n * k).iter().flat_map(|x| x.to_le_bytes()).collect();
    let w = Matrix::new(Dtype::Bf16, &bytes, n, k).expect("n * k values");
    // the library's tensors begin on a cache line
    let mut lines = |len: usize| -> &mut [E] {
        let values = random.vec::<E>(len + 32).leak();
        let aligned = values.as_ptr().align_offset(64);
        &mut values[aligned..][..len]
    };
    let (a, c, panels) = (lines(rows * k), lines(rows * n), lines(n.div_ceil(PANEL) * panel_len(k)));
    let mut run = |pack: bool| {
        for (p, panel) in panels.chunks_exact_mut(panel_len(k)).enumerate().filter(|_| pack) {
            kernels.pack(panel, &w, Sum::OverCols, p * PANEL, 1.0);
        }
        kernels.gemm(Out::store(c), n, rows, n, &[Term { a, lda: k, b: Columns::Panels(panels), k }], None);
    };
    (best(|| run(true)), best(|| run(false)))
}

fn gradients<E: Elem>(isa: Isa) {
    let (m, n, rows, roof) = (16, 576, 1024, roof(isa, "f32"));
    let (a, b): (Vec<E>, Vec<E>) = (Random::new(1).vec(rows * m), Random::new(2).vec(rows * n));
    let mut c = Random::new(3).vec(m * n);
    let seconds = best(|| E::kernels(isa).gemm_tn(&mut c, m, n, &a, m, &b, n, rows));
    let percent = 2.0 * (m * n * rows) as f64 / seconds / 1e9 / roof * 100.0;
    println!("  gradient {m} x {n} over {rows} rows: {percent:.0} % of f32's roof");
}

/// The output head of SmolLM2-135M for a few rows, bound by memory: the matrix where it lies, and packed panel by panel.
fn few_rows(isa: Isa) {
    let (n, k, kernels) = (49152, 576, bf16::kernels(isa));
    if kernels.gemv_rows() == 0 {
        return;
    }
    let bytes: Vec<u8> = (0..n * k).flat_map(|i| bf16::narrow((i % 251) as f32).to_le_bytes()).collect();
    let w = Matrix::new(Dtype::Bf16, &bytes, n, k).expect("n * k values");
    let read = best(|| _ = black_box(roof::read(&bytes)));
    print!("  n {n} k {k}, {:.1} GB/s; % of it in place (packed):", bytes.len() as f64 / read / 1e9);
    for rows in [1, 2, 4, 8] {
        let a: Vec<bf16> = Random::new(1).vec(rows * k);
        let mut y = vec![bf16::ZERO; rows * n];
        let terms = [InPlace { a: &a, lda: k, w, sum: Sum::OverCols, n0: 0, scale: 1.0 }];
        let in_place = best(|| kernels.gemv(Out::store(&mut y), n, rows, n, &terms, None));
        let mut panel = vec![bf16::ZERO; panel_len(k)];
        let packed = best(|| {
            for n0 in (0..n).step_by(PANEL) {
                kernels.pack(&mut panel, &w, Sum::OverCols, n0, 1.0);
                let term = Term { a: &a, lda: k, b: Columns::Panels(&panel), k };
                kernels.gemm(Out::store(&mut y[n0..]), n, rows, PANEL, &[term], None);
            }
        });
        print!("  T {rows} {:.0} ({:.0})", 100.0 * read / in_place, 100.0 * read / packed);
    }
    println!();
}
