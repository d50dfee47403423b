//! The AMX form of the linear kernel, unchanged, where its instructions trap and are EMULATED: its arithmetic and its
//! bounds, not its speed. On a processor with AMX the same tests run on the hardware.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use dialoguellm_kernels::linear::{self, CHUNK, Columns, Out, PANEL, Sum, Term, panel_len};
use dialoguellm_kernels::quantize::packed::{Packed, panel_sizes};
use dialoguellm_kernels::testing::{Random, amx, check, same_bits};
use dialoguellm_kernels::{Bits, Dtype, Elem, Isa, Kernels, Matrix};
use half::bf16;
use std::io::Write;

/// The kernels under test, or nothing (said aloud) where AVX-512 BF16, which the form also uses, is missing.
fn kernels() -> Option<&'static Kernels<bf16>> {
    if !Isa::available().contains(&Isa::Avx512Bf16) {
        // past the test harness's capture, so that the gate sees it
        let _ = std::io::stderr().write_all(b"SKIPPED emulated_amx: needs AVX-512 BF16 as well\n");
        return None;
    }
    amxtrap::install();
    // SAFETY: the level below is there, and what traps is emulated.
    Some(unsafe { amx() })
}

fn wide(x: &[bf16]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}

/// Operands of a product with any number of terms.
struct Case {
    rows: usize,
    n: usize,
    ks: Vec<usize>,
    a: Vec<Vec<bf16>>,
    w: Vec<Vec<bf16>>,
    panels: Vec<Vec<bf16>>,
    bias: Vec<f32>,
}

impl Case {
    fn new(kernels: &Kernels<bf16>, rows: usize, n: usize, ks: &[usize]) -> Self {
        let mut random = Random::new((rows * 1000 + n) as u64);
        let a = ks.iter().map(|k| random.vec(rows * k)).collect();
        let w: Vec<Vec<bf16>> = ks.iter().map(|k| random.vec(n * k)).collect();
        let panels = w.iter().zip(ks).map(|(w, k)| packed(kernels, w, n, *k)).collect();
        Self { rows, n, ks: ks.to_vec(), a, w, panels, bias: random.vec(n) }
    }

    fn run(&self, kernels: &Kernels<bf16>, rows: std::ops::Range<usize>) -> Vec<bf16> {
        let mut y = vec![bf16::NAN; rows.len() * self.n];
        let terms = self.a.iter().zip(&self.panels).zip(&self.ks);
        let terms: Vec<_> =
            terms.map(|((a, b), k)| Term { a: &a[rows.start * k..], lda: *k, b: Columns::Panels(b), k: *k }).collect();
        kernels.gemm(Out::store(&mut y), self.n, rows.len(), self.n, &terms, Some(&self.bias));
        y
    }

    fn want(&self) -> Vec<f64> {
        let bias: Vec<f64> = self.bias.iter().map(|b| *b as f64).collect();
        let mut y = bias.repeat(self.rows);
        for ((a, w), k) in self.a.iter().zip(&self.w).zip(&self.ks) {
            linear::reference(&mut y, &wide(a), &wide(w), self.n, *k);
        }
        y
    }

    /// Sequential f32 sums of the same operands.
    fn plain(&self) -> Vec<bf16> {
        let sum = |i: usize| {
            let mut sum = 0.0f32;
            for ((a, w), k) in self.a.iter().zip(&self.w).zip(&self.ks) {
                let (a, w) = (&a[i / self.n * k..][..*k], &w[i % self.n * k..][..*k]);
                sum = a.iter().zip(w).fold(sum, |sum, (a, w)| sum + a.widen() * w.widen());
            }
            bf16::narrow(sum + self.bias[i % self.n])
        };
        (0..self.rows * self.n).map(sum).collect()
    }
}

fn packed(kernels: &Kernels<bf16>, w: &[bf16], n: usize, k: usize) -> Vec<bf16> {
    let bytes: Vec<u8> = w.iter().flat_map(|w| w.to_le_bytes()).collect();
    let w = Matrix::new(Dtype::Bf16, &bytes, n, k).unwrap();
    let mut panels = vec![bf16::NAN; n.div_ceil(PANEL) * panel_len(k)];
    for (p, panel) in panels.chunks_exact_mut(panel_len(k)).enumerate() {
        kernels.pack(panel, &w, Sum::OverCols, p * PANEL, 1.0);
    }
    panels
}

#[test]
fn emulated_amx_products_are_right_at_every_tile_edge() {
    let Some(kernels) = kernels() else { return };
    let before = amxtrap::emulated();
    let (mut got, mut plain, mut want) = (vec![], vec![], vec![]);
    let mut add = |rows, n, ks: &[usize]| {
        let case = Case::new(kernels, rows, n, ks);
        got.extend(case.run(kernels, 0..rows));
        plain.extend(case.plain());
        want.extend(case.want());
        assert_eq!(got.len(), want.len());
    };
    for s in [1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 67] {
        add(s, 37, &[35]);
        add(33, s, &[40]);
        add(35, 34, &[s]);
        add(34, 33, &[s, 8]);
    }
    add(32, 32, &[576]);
    add(3, 5, &[1537, 16]);
    check(&got, &plain, &want).unwrap();
    assert!(amxtrap::emulated() > before || Isa::available().contains(&Isa::Amx), "nothing ran AMX instructions");
    assert!(amxtrap::released(), "a thread kept its tiles");
}

#[test]
fn emulated_amx_rows_have_the_same_bits_however_they_are_split() {
    let Some(kernels) = kernels() else { return };
    let case = Case::new(kernels, 70, 40, &[75, 8]);
    let whole = case.run(kernels, 0..70);
    for rows in [0..1, 0..32, 1..33, 5..70, 31..64, 32..48, 69..70] {
        same_bits(&case.run(kernels, rows.clone()), &whole[rows.start * 40..rows.end * 40]).unwrap();
    }
}

#[test]
fn emulated_amx_reads_and_writes_only_its_rows() {
    let Some(kernels) = kernels() else { return };
    let (rows, n, k, lda, ldc) = (35, 37, 33, 41, 45);
    let case = Case::new(kernels, rows, n, &[k]);
    let mut a = vec![bf16::NAN; (rows - 1) * lda + k];
    for i in 0..rows {
        a[i * lda..][..k].copy_from_slice(&case.a[0][i * k..][..k]);
    }
    let mut c = vec![-77.0f32; rows * ldc];
    let term = Term { a: &a, lda, b: Columns::Panels(&case.panels[0]), k };
    kernels.gemm(Out::add(&mut c[..(rows - 1) * ldc + n]), ldc, rows, n, &[term], Some(&case.bias));
    let (mut got, mut plain) = (vec![], vec![]);
    for (i, row) in c.chunks(ldc).enumerate() {
        assert!(row[n..].iter().all(|x| *x == -77.0), "the gap behind row {i} was written");
        got.extend_from_slice(&row[..n]);
        let sum = |j: usize| (0..k).fold(0.0, |s, c| s + case.a[0][i * k + c].widen() * case.w[0][j * k + c].widen());
        plain.extend((0..n).map(|j| sum(j) + case.bias[j] - 77.0));
    }
    let want: Vec<f64> = case.want().iter().map(|y| y - 77.0).collect();
    check(&got, &plain, &want).unwrap();
}

#[test]
fn emulated_amx_whole_panels_are_stored_and_added_as_parts_are() {
    let Some(kernels) = kernels() else { return };
    let (rows, n) = (35, 96);
    let mut case = Case::new(kernels, rows, n, &[64, 8]);
    case.bias = vec![0.0; n];
    let terms: Vec<_> = (0..2)
        .map(|t| Term { a: &case.a[t], lda: case.ks[t], b: Columns::Panels(&case.panels[t]), k: case.ks[t] })
        .collect();
    let (mut rounded, mut real, mut added) = (vec![bf16::NAN; rows * n], vec![f32::NAN; rows * n], vec![3.0; rows * n]);
    kernels.gemm(Out::store(&mut rounded), n, rows, n, &terms, None);
    kernels.gemm(Out::real(&mut real), n, rows, n, &terms, None);
    kernels.gemm(Out::add(&mut added), n, rows, n, &terms, None);
    same_bits(&rounded, &case.run(kernels, 0..rows)).unwrap();
    same_bits(&rounded, &real.iter().map(|&x| bf16::narrow(x)).collect::<Vec<_>>()).unwrap();
    same_bits(&added, &real.iter().map(|x| 3.0 + x).collect::<Vec<_>>()).unwrap();
}

#[test]
fn emulated_amx_of_nothing_is_the_bias() {
    let Some(kernels) = kernels() else { return };
    let bias: Vec<f32> = Random::new(1).vec(70);
    let mut y = vec![f32::NAN; 35 * 70];
    kernels.gemm(Out::real(&mut y), 70, 35, 70, &[], Some(&bias));
    same_bits(&y, &bias.repeat(35)).unwrap();
}

#[test]
fn emulated_amx_gradients_are_sums_over_rows_of_outer_products() {
    let Some(kernels) = kernels() else { return };
    let (mut got, mut plain, mut want) = (vec![], vec![], vec![]);
    for (m, n, rows) in [(1, 1, 1), (16, 32, 32), (16, 96, 128), (5, 33, 31), (17, 31, 130), (8, 40, 300)] {
        let (lda, ldb) = (m + 3, n + 5);
        let mut random = Random::new((m * n * rows) as u64);
        let (a, b): (Vec<bf16>, Vec<bf16>) = (random.vec((rows - 1) * lda + m), random.vec((rows - 1) * ldb + n));
        let mut c: Vec<f32> = random.vec(m * n);
        let sum = |i: usize| (0..rows).map(move |t| (t * lda + i / n, t * ldb + i % n));
        want.extend((0..m * n).map(|i| c[i] as f64 + sum(i).map(|(s, t)| a[s].to_f64() * b[t].to_f64()).sum::<f64>()));
        plain.extend((0..m * n).map(|i| sum(i).fold(c[i], |x, (s, t)| x + a[s].widen() * b[t].widen())));
        kernels.gemm_tn(&mut c, m, n, &a, lda, &b, ldb, rows);
        got.extend(c);
    }
    check(&got, &plain, &want).unwrap();
    assert!(amxtrap::released(), "a thread kept its tiles");
}

#[test]
fn emulated_amx_nan_stays_in_its_row() {
    let Some(kernels) = kernels() else { return };
    let mut case = Case::new(kernels, 35, 33, &[65]);
    case.a[0][34 * 65 + 64] = bf16::NAN;
    case.a[0][3 * 65 + 7] = bf16::NAN;
    for (i, y) in case.run(kernels, 0..35).iter().enumerate() {
        assert_eq!(y.is_nan(), [3, 34].contains(&(i / 33)), "element {i}");
    }
}

/// Infinity times the zero of a pad would be NaN: the second term is shorter than what the first leaves behind.
#[test]
fn emulated_amx_infinity_does_not_meet_a_pad() {
    let Some(kernels) = kernels() else { return };
    let infinite = |y: &[bf16], at: fn(usize) -> bool| {
        for (i, y) in y.iter().enumerate() {
            assert!(if at(i) { y.is_infinite() } else { y.is_finite() }, "element {i} is {y}");
        }
    };
    let mut case = Case::new(kernels, 32, 33, &[20, 8]);
    case.a[0][3 * 20 + 15] = bf16::INFINITY;
    infinite(&case.run(kernels, 0..32), |i| i / 33 == 3);
    let mut case = Case::new(kernels, 32, 33, &[20, 8]);
    case.w[0][7 * 20 + 15] = bf16::INFINITY;
    case.panels[0] = packed(kernels, &case.w[0], 33, 20);
    infinite(&case.run(kernels, 0..32), |i| i % 33 == 7);
}

#[test]
fn emulated_amx_threads_have_tiles_of_their_own() {
    let Some(kernels) = kernels() else { return };
    let case = Case::new(kernels, 40, 40, &[64]);
    let whole = case.run(kernels, 0..40);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| same_bits(&case.run(kernels, 0..40), &whole).unwrap());
        }
    });
}

/// A product with whole numbers, some rows of which have outliers, and beside it one with bf16.
struct WholeCase {
    bits: Bits,
    /// Columns that share a scale.
    run: usize,
    n: usize,
    k: usize,
    q: Vec<u8>,
    scales: Vec<bf16>,
    a: Vec<bf16>,
    beside: Case,
}

impl WholeCase {
    fn new(kernels: &Kernels<bf16>, bits: Bits, rows: usize, [n, k]: [usize; 2], run: usize) -> Self {
        let (mut random, sizes) = (Random::new((rows + n * k) as u64), panel_sizes(bits, k, run));
        let panels = n.div_ceil(PANEL);
        let mut a: Vec<bf16> = random.vec(rows * k);
        for i in (5..rows * k).step_by(97).filter(|i| i / k % 3 != 1) {
            a[i] = bf16::from_f32(a[i].to_f32() * (i % 1000) as f32);
        }
        let q = (0..panels * sizes.0).map(|_| random.below(256) as u8).collect();
        let scales = random.vec(panels * sizes.1);
        Self { bits, run, n, k, q, scales, a, beside: Case::new(kernels, rows, n, &[40]) }
    }

    /// Rows `rows` of the product with whole numbers, with that of bf16, or of their sum.
    fn run(&self, kernels: &Kernels<bf16>, rows: std::ops::Range<usize>, whole: bool, beside: bool) -> Vec<f32> {
        let k = self.k;
        let w = Packed::new(self.bits, &self.q, &self.scales, [self.n, k], self.run).unwrap();
        let b = kernels.whole(&Matrix::packed(w), Sum::OverCols, 0..self.n, 1.0).expect("long runs");
        let (a, len) = (&self.a[rows.start * k..rows.end * k], kernels.rounded_len(&b));
        let mut rounded = vec![bf16::NAN; k.div_ceil(CHUNK) * rows.len() * len];
        for (at, to) in rounded.chunks_exact_mut(len).enumerate() {
            let row = &a[at % rows.len() * k..][..k];
            kernels.round(to, row.chunks(CHUNK).nth(at / rows.len()).unwrap(), &b, None);
        }
        let mut terms = vec![];
        if whole {
            terms.push(Term { a: &rounded, lda: rows.len() * len, b: Columns::Whole(b), k });
        }
        if beside {
            let b = Columns::Panels(&self.beside.panels[0]);
            terms.push(Term { a: &self.beside.a[0][rows.start * 40..], lda: 40, b, k: 40 });
        }
        let mut y = vec![f32::NAN; rows.len() * self.n];
        kernels.gemm(Out::real(&mut y), self.n, rows.len(), self.n, &terms, None);
        y
    }
}

#[test]
fn emulated_amx_multiplies_whole_numbers_to_the_bits_of_avx512() {
    let Some(kernels) = kernels() else { return };
    let vectors = bf16::kernels(Isa::Avx512Bf16);
    let before = amxtrap::emulated();
    let sums = [1, 2, 3, 31, 63, 64, 65, 127, 128, 193, 1023, 1024, 1025, 1100];
    let long = sums.map(|k| (11, 33, k, k));
    let short = [(19, 65, 390, 128), (33, 70, 1300, 256), (40, 32, 1536, 384)];
    let many = [1, 8, 9, 16, 17, 31, 32, 48, 63, 260, 300].map(|rows| (rows, 35, 150, 150));
    let wide = [(260, 560, 20, 20)]; // more panels than share a block of rows
    for (rows, n, k, run) in long.into_iter().chain(short).chain(many).chain(wide) {
        for bits in [Bits::Eight, Bits::Four] {
            let mut case = WholeCase::new(kernels, bits, rows, [n, k], run);
            case.a[rows * k / 2] = bf16::NAN;
            case.scales[0] = bf16::MAX; // products overflow
            let [got, want] = [kernels, vectors].map(|kernels| case.run(kernels, 0..rows, true, false));
            same_bits(&got, &want).unwrap_or_else(|e| panic!("{bits:?} {rows} {n} {k} {run}: {e}"));
        }
    }
    assert!(amxtrap::emulated() > before || Isa::available().contains(&Isa::Amx), "nothing ran AMX instructions");
    assert!(amxtrap::released(), "a thread kept its tiles");
}

#[test]
fn emulated_amx_adds_whole_numbers_to_what_is_beside_them_for_any_rows() {
    let Some(kernels) = kernels() else { return };
    let case = WholeCase::new(kernels, Bits::Eight, 300, [70, 200], 128);
    let [whole, beside, both] =
        [(true, false), (false, true), (true, true)].map(|(whole, beside)| case.run(kernels, 0..300, whole, beside));
    let want: Vec<f32> = whole.iter().zip(&beside).map(|(whole, beside)| beside + whole).collect();
    same_bits(&both, &want).unwrap();
    for rows in [0..1, 3..11, 4..13, 31..64, 250..262, 299..300] {
        let part = case.run(kernels, rows.clone(), true, true);
        same_bits(&part, &both[rows.start * 70..rows.end * 70]).unwrap();
    }
}

#[test]
fn the_roofs_loop_runs_and_counts_its_products() {
    if kernels().is_some() {
        for (operands, k) in [("bf16", 32), ("int8", 64)] {
            // SAFETY: `kernels` saw the level below, and what traps is emulated.
            let all = unsafe { dialoguellm_kernels::testing::amx_roof(operands, 64) };
            assert_eq!(all, 3.0 * 64.0 * 4.0 * (2 * 16 * 16 * k) as f64);
        }
    }
}
