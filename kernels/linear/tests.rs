//! Every form of every level present, held to the f64 reference; and what callers rely on: bounds, NaN, same bits.

use super::*;
use crate::matrix::Scales;
use crate::quantize::{packed, quantize};
use crate::testing::{Random, check, same_bits};
use crate::{Bits, Dtype, Real};
use half::f16;
use std::io::Write;

/// How a test's matrix is stored.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Plain(Dtype),
    Quantized(Bits),
    Packed(Bits),
}
use Kind::{Packed, Plain, Quantized};

const KINDS: [Kind; 7] = [
    Plain(Dtype::F32),
    Plain(Dtype::F16),
    Plain(Dtype::Bf16),
    Quantized(Bits::Eight),
    Quantized(Bits::Four),
    Packed(Bits::Eight),
    Packed(Bits::Four),
];

fn each_level<E: Elem>(test: impl Fn(&Kernels<E>)) {
    for isa in Isa::available() {
        test(E::kernels(*isa));
    }
}

/// Results of many shapes, judged together: of a few sums, twice the plain error is a matter of luck.
struct Pool<E> {
    got: Vec<(Isa, Vec<E>)>,
    plain: Vec<E>,
    want: Vec<f64>,
}

impl<E: Elem> Pool<E> {
    fn new() -> Self {
        Self { got: Isa::available().iter().map(|isa| (*isa, vec![])).collect(), plain: vec![], want: vec![] }
    }

    fn add<K: Elem>(&mut self, plain: Vec<E>, want: Vec<f64>, run: impl Fn(&Kernels<K>) -> Vec<E>) {
        for (isa, got) in &mut self.got {
            got.extend(run(K::kernels(*isa)));
            assert_eq!(got.len(), self.want.len() + want.len());
        }
        self.plain.extend(plain);
        self.want.extend(want);
    }

    fn check(&self) {
        for (isa, got) in &self.got {
            check(got, &self.plain, &self.want).unwrap_or_else(|e| panic!("{}: {e}", isa.name()));
        }
    }
}

macro_rules! each_type {
    ($($name:ident)*) => {$(
        mod $name {
            use super::*;
            #[test]
            fn f32() {
                super::$name::<f32>();
            }
            #[test]
            fn bf16() {
                super::$name::<bf16>();
            }
            #[test]
            fn f64() {
                super::$name::<f64>();
            }
        }
    )*};
}
each_type! {
    shapes_1_to_67 tile_and_chunk_edges two_terms_and_a_bias stores_reals_and_adds transposed_weights
    strides_and_canaries nan_stays_in_its_row rows_have_the_same_bits_however_they_are_split
    columns_have_the_same_bits_however_they_are_split nothing_to_sum_is_the_bias
    packing_is_one_rounding_of_every_type_and_alignment gradients_of_every_small_shape
    gradients_add_up_over_split_rows gradients_keep_within_their_bounds
}

/// A file's bytes at an odd address, and the same values in f64.
pub(super) struct File {
    kind: Kind,
    bytes: Vec<u8>,
    scales: Vec<u8>,
    panel_scales: Vec<bf16>,
    rows: usize,
    cols: usize,
}

impl File {
    pub(super) fn random(seed: u64, kind: Kind, rows: usize, cols: usize) -> Self {
        let mut random = Random::new(seed);
        let (mut bytes, mut scales, mut panel_scales) = (vec![0xff], vec![0xff], vec![]);
        match kind {
            Plain(dtype) => bytes.extend((0..rows * cols).flat_map(|_| stored(random.signed() as f32, dtype))),
            Quantized(bits) => {
                let runs = cols.div_ceil(bits.run(cols));
                bytes.extend((0..rows * bits.row_bytes(cols)).map(|_| random.below(256) as u8));
                let scale = |_| stored(random.signed() as f32 / (1 << (bits.count() - 1)) as f32, Dtype::Bf16);
                scales.extend((0..rows * runs).flat_map(scale));
            }
            Packed(bits) => {
                let sizes = packed::panel_sizes(bits, cols, bits.run(cols));
                for first in (0..rows).step_by(PANEL) {
                    let (mut q, mut s) = (vec![0; sizes.0], vec![bf16::ZERO; sizes.1]);
                    for at in 0..PANEL.min(rows - first) {
                        let row: Vec<f32> = random.vec(cols);
                        let (mut row_q, mut row_s) = (vec![0; bits.row_bytes(cols)], vec![bf16::ZERO; sizes.1 / PANEL]);
                        quantize(bits, &mut row_q, &mut row_s, &row);
                        packed::put(bits, (&mut q, &mut s), at, &row_q, &row_s);
                    }
                    bytes.extend(q);
                    panel_scales.extend(s);
                }
            }
        }
        Self { kind, bytes, scales, panel_scales, rows, cols }
    }

    pub(super) fn matrix(&self) -> Matrix<'_> {
        let (bytes, rows, cols) = (&self.bytes[1..], self.rows, self.cols);
        let matrix = match self.kind {
            Plain(dtype) => Matrix::new(dtype, bytes, rows, cols),
            Quantized(bits) => Scales::new(Dtype::Bf16, &self.scales[1..], rows, cols, bits.run(cols))
                .and_then(|scales| Matrix::quantized(bits, bytes, scales, rows, cols)),
            Packed(bits) => {
                packed::Packed::new(bits, bytes, &self.panel_scales, [rows, cols], bits.run(cols)).map(Matrix::packed)
            }
        };
        matrix.unwrap()
    }

    /// [n, k] as the product sees it, rounded to E as packing does.
    fn operand<E: Elem>(&self, sum: Sum) -> Vec<E> {
        let w = self.matrix();
        let (n, k) = sum.shape(&w);
        let at = |j: usize, c: usize| if sum == Sum::OverCols { w.at(j, c) } else { w.at(c, j) };
        (0..n * k).map(|i| E::narrow(at(i / k, i % k))).collect()
    }
}

/// A value's bytes.
fn stored(x: f32, dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => x.to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
        Dtype::Bf16 => bf16::from_f32(x).to_le_bytes().to_vec(),
    }
}

fn packed<E: Elem>(kernels: &Kernels<E>, w: &Matrix, sum: Sum) -> Vec<E> {
    let (n, k) = sum.shape(w);
    let mut panels = vec![E::narrow(E::Real::ONE); n.div_ceil(PANEL) * panel_len(k)];
    for (p, panel) in panels.chunks_exact_mut(panel_len(k)).enumerate() {
        kernels.pack(panel, w, sum, p * PANEL, 1.0);
    }
    panels
}

pub(super) fn wide<E: Elem>(x: &[E]) -> Vec<f64> {
    x.iter().map(|x| x.widen().to_f64()).collect()
}

/// A product of one or two terms with or without a bias, its reference and its plain implementation.
pub(super) struct Case<E: Elem> {
    pub(super) rows: usize,
    pub(super) n: usize,
    pub(super) ks: Vec<usize>,
    pub(super) a: Vec<Vec<E>>,
    pub(super) w: Vec<File>,
    pub(super) sum: Sum,
    pub(super) bias: Option<Vec<E::Real>>,
}

impl<E: Elem> Case<E> {
    fn new(rows: usize, n: usize, ks: &[usize]) -> Self {
        Self::of(rows, n, ks, Sum::OverCols, Plain(Dtype::Bf16), false)
    }

    pub(super) fn of(rows: usize, n: usize, ks: &[usize], sum: Sum, kind: Kind, bias: bool) -> Self {
        let seed = (rows * 10_000 + n * 100 + ks.len()) as u64;
        let mut random = Random::new(seed);
        let a = ks.iter().map(|k| random.vec(rows * k)).collect();
        let shape = |k| if sum == Sum::OverCols { (n, k) } else { (k, n) };
        let file = |k: &usize| File::random(seed + *k as u64, kind, shape(*k).0, shape(*k).1);
        let w = ks.iter().map(file).collect();
        Self { rows, n, ks: ks.to_vec(), a, w, sum, bias: bias.then(|| random.vec(n)) }
    }

    /// Rows `rows` of the product, through `gemm`.
    fn run(&self, kernels: &Kernels<E>, out: Out<E>, rows: std::ops::Range<usize>) {
        let panels: Vec<_> = self.w.iter().map(|w| packed(kernels, &w.matrix(), self.sum)).collect();
        let term = |((a, b), k): ((&'_ Vec<E>, &'_ Vec<E>), &usize)| (a[rows.start * k..].to_vec(), b.clone(), *k);
        let terms: Vec<_> = self.a.iter().zip(&panels).zip(&self.ks).map(term).collect();
        let terms: Vec<_> = terms.iter().map(|(a, b, k)| Term { a, lda: *k, b: Columns::Panels(b), k: *k }).collect();
        kernels.gemm(out, self.n, rows.len(), self.n, &terms, self.bias.as_deref());
    }

    pub(super) fn want(&self) -> Vec<f64> {
        let bias = self.bias.as_deref().map(wide).unwrap_or(vec![0.0; self.n]);
        let mut y = bias.repeat(self.rows);
        for ((a, w), k) in self.a.iter().zip(&self.w).zip(&self.ks) {
            reference(&mut y, &wide(a), &wide(&w.operand::<E>(self.sum)), self.n, *k);
        }
        y
    }

    /// The same sums in Real, one after the other.
    pub(super) fn plain(&self) -> Vec<E::Real> {
        let mut y = vec![E::Real::ZERO; self.rows * self.n];
        for ((a, w), k) in self.a.iter().zip(&self.w).zip(&self.ks) {
            let w = w.operand::<E>(self.sum);
            for (i, y) in y.iter_mut().enumerate() {
                for c in 0..*k {
                    *y += a[i / self.n * k + c].widen() * w[i % self.n * k + c].widen();
                }
            }
        }
        if let Some(bias) = &self.bias {
            y.iter_mut().enumerate().for_each(|(i, y)| *y += bias[i % self.n]);
        }
        y
    }

    fn stored(&self, kernels: &Kernels<E>) -> Vec<E> {
        let mut y = vec![E::default(); self.rows * self.n];
        self.run(kernels, Out::store(&mut y), 0..self.rows);
        y
    }

    fn add_to(&self, pool: &mut Pool<E>) {
        let plain = self.plain().into_iter().map(E::narrow).collect();
        pool.add(plain, self.want(), |kernels| self.stored(kernels));
    }
}

fn shapes_1_to_67<E: Elem>() {
    let mut pool = Pool::new();
    for s in 1..=67 {
        Case::<E>::new(s, 37, &[19]).add_to(&mut pool);
        Case::<E>::new(13, s, &[20]).add_to(&mut pool);
        Case::<E>::new(14, 33, &[s]).add_to(&mut pool);
    }
    Case::<E>::new(67, 67, &[67]).add_to(&mut pool);
    pool.check();
}

fn tile_and_chunk_edges<E: Elem>() {
    let mut pool = Pool::new();
    for k in [127, 128, 129, 255, 256, 257, 511, 512, 513, 1024, 1537] {
        Case::<E>::new(3, 5, &[k]).add_to(&mut pool);
    }
    // Rows this long fill the cache block after 12 to 36 of them.
    for rows in [11, 12, 13, 36, 37, 49] {
        Case::<E>::new(rows, 5, &[3000]).add_to(&mut pool);
    }
    pool.check();
}

fn two_terms_and_a_bias<E: Elem>() {
    let mut pool = Pool::new();
    for (k, r) in [(64, 8), (33, 1), (1, 33), (600, 16)] {
        for kind in KINDS {
            Case::<E>::of(13, 65, &[k, r], Sum::OverCols, kind, true).add_to(&mut pool);
        }
    }
    pool.check();
}

fn transposed_weights<E: Elem>() {
    let mut pool = Pool::new();
    for (n, k) in [(1, 1), (31, 33), (32, 32), (33, 31), (65, 127), (64, 129)] {
        for kind in KINDS {
            Case::<E>::of(9, n, &[k], Sum::OverRows, kind, true).add_to(&mut pool);
        }
    }
    pool.check();
}

fn stores_reals_and_adds<E: Elem>() {
    let case = Case::<E>::of(14, 35, &[50, 4], Sum::OverCols, Plain(Dtype::Bf16), true);
    let (want, plain) = (case.want(), case.plain());
    let twice: Vec<f64> = want.iter().map(|y| 2.0 * y).collect();
    let plain_twice: Vec<_> = plain.iter().map(|y| *y + *y).collect();
    each_level::<E>(|kernels| {
        let mut y = vec![E::Real::from_f64(f64::NAN); want.len()];
        case.run(kernels, Out::real(&mut y), 0..14);
        check(&y, &plain, &want).unwrap();
        let stored: Vec<E> = y.iter().map(|y| E::narrow(*y)).collect();
        same_bits(&case.stored(kernels), &stored).unwrap();
        case.run(kernels, Out::add(&mut y), 0..14);
        check(&y, &plain_twice, &twice).unwrap();
    });
}

/// Rows with gaps on both sides: no value of a gap is read (they are NaN) or written, nor any after the last row.
fn strides_and_canaries<E: Elem>() {
    let (rows, n, k, lda, ldc) = (14, 37, 21, 29, 41);
    let case = Case::<E>::new(rows, n, &[k]);
    let mut a = vec![E::narrow(E::Real::from_f64(f64::NAN)); (rows - 1) * lda + k];
    for i in 0..rows {
        a[i * lda..][..k].copy_from_slice(&case.a[0][i * k..][..k]);
    }
    let canary = E::narrow(E::Real::from_f64(-77.0));
    each_level::<E>(|kernels| {
        let b = packed(kernels, &case.w[0].matrix(), Sum::OverCols);
        let mut c = vec![canary; 1 + rows * ldc + 8];
        let end = 1 + (rows - 1) * ldc + n;
        kernels.gemm(Out::store(&mut c[1..end]), ldc, rows, n, &[Term { a: &a, lda, b: Columns::Panels(&b), k }], None);
        let dense = case.stored(kernels);
        for i in 0..rows {
            let row = &c[1 + i * ldc..][..ldc];
            same_bits(&row[..n], &dense[i * n..][..n]).unwrap();
            assert!(row[n..].iter().all(|x| *x == canary), "{}: a gap was written", kernels.isa.name());
        }
        assert!(c[0] == canary && c[end..].iter().all(|x| *x == canary));
    });
}

fn nan_stays_in_its_row<E: Elem>() {
    for (row, at) in [(0, 0), (5, 20), (12, 19), (13, 7)] {
        let mut case = Case::<E>::new(14, 35, &[21]);
        case.a[0][row * 21 + at] = E::narrow(E::Real::from_f64(f64::NAN));
        each_level::<E>(|kernels| {
            for (i, y) in case.stored(kernels).iter().enumerate() {
                assert_eq!(y.widen().is_finite(), i / 35 != row, "{} element {i}", kernels.isa.name());
            }
        });
    }
}

fn rows_have_the_same_bits_however_they_are_split<E: Elem>() {
    let (rows, n) = (31, 45);
    let case = Case::<E>::of(rows, n, &[531, 9], Sum::OverCols, Plain(Dtype::F32), true);
    each_level::<E>(|kernels| {
        let whole = case.stored(kernels);
        for first in 0..rows {
            for last in [first + 1, (first + 12).min(rows), rows] {
                let mut part = vec![E::default(); (last - first) * n];
                case.run(kernels, Out::store(&mut part), first..last);
                same_bits(&part, &whole[first * n..last * n]).unwrap();
            }
        }
    });
}

fn columns_have_the_same_bits_however_they_are_split<E: Elem>() {
    let (rows, n, k) = (13, 100, 77);
    let case = Case::<E>::new(rows, n, &[k]);
    each_level::<E>(|kernels| {
        let whole = case.stored(kernels);
        let b = packed(kernels, &case.w[0].matrix(), Sum::OverCols);
        for (from, to) in [(0, 1), (0, 31), (32, 100), (64, 97), (96, 100)] {
            let mut y = whole.clone();
            y.iter_mut().for_each(|y| *y = E::default());
            let b = &b[from / PANEL * panel_len(k)..];
            let term = Term { a: &case.a[0], lda: k, b: Columns::Panels(b), k };
            kernels.gemm(Out::store(&mut y[from..]), n, rows, to - from, &[term], None);
            for i in 0..rows {
                same_bits(&y[i * n + from..i * n + to], &whole[i * n + from..i * n + to]).unwrap();
            }
        }
    });
}

fn nothing_to_sum_is_the_bias<E: Elem>() {
    let bias: Vec<E::Real> = Random::new(3).vec(35);
    each_level::<E>(|kernels| {
        for terms in [&[][..], &[Term { a: &[], lda: 0, b: Columns::Panels(&[]), k: 0 }]] {
            let mut y = vec![E::Real::from_f64(f64::NAN); 2 * 35];
            kernels.gemm(Out::real(&mut y), 35, 2, 35, terms, Some(&bias));
            same_bits(&y, &bias.repeat(2)).unwrap();
        }
        kernels.gemm(Out::store(&mut []), 0, 0, 0, &[], None);
    });
}

fn packing_is_one_rounding_of_every_type_and_alignment<E: Elem>() {
    for kind in KINDS {
        for (n, k) in [(1, 1), (33, 16), (32, 129), (70, 31), (40, 64), (5, 130), (37, 255)] {
            for (sum, scale) in [(Sum::OverCols, 1.0), (Sum::OverRows, 1.0), (Sum::OverCols, 0.5), (Sum::OverRows, 4.0)]
            {
                packs_every_value::<E>(kind, n, k, sum, scale);
            }
        }
    }
}

fn packs_every_value<E: Elem>(kind: Kind, n: usize, k: usize, sum: Sum, scale: f32) {
    let shape = if sum == Sum::OverCols { (n, k) } else { (k, n) };
    let file = File::random(9, kind, shape.0, shape.1);
    let w = file.matrix();
    let at = |j: usize, c: usize| if sum == Sum::OverCols { w.at::<E::Real>(j, c) } else { w.at(c, j) };
    each_level::<E>(|kernels| {
        for n0 in [0, n / 2, n - 1] {
            for count in 1..=(n - n0).div_ceil(PANEL) {
                let mut panels = vec![E::narrow(E::Real::ONE); count * panel_len(k)];
                kernels.pack(&mut panels, &w, sum, n0, scale);
                for (i, got) in panels.iter().enumerate() {
                    let (panel, i) = (i / panel_len(k), i % panel_len(k));
                    let (c, j) = (i / (2 * PANEL) * 2 + i % 2, n0 + panel * PANEL + i / 2 % PANEL);
                    let want = if c < k && j < n { at(j, c) * E::Real::from_f32(scale) } else { E::Real::ZERO };
                    assert_eq!(*got, E::narrow(want), "{} {kind:?} {sum:?} ({j}, {c})", kernels.isa.name());
                }
            }
        }
    });
}

/// c, a, b and the reference of one gradient.
pub(super) fn gradient<E: Elem>(m: usize, n: usize, rows: usize) -> (Vec<E::Real>, Vec<E>, Vec<E>, Vec<f64>) {
    let mut random = Random::new((m * n + rows) as u64);
    let (c, a, b): (Vec<E::Real>, Vec<E>, Vec<E>) = (random.vec(m * n), random.vec(rows * m), random.vec(rows * n));
    let (mut dx, mut dw) = (vec![0.0; rows * n], wide(&c));
    // dw[m, n] += dy^T x with dy = a and x = b.
    reference_backward(&mut dx, &mut dw, &wide(&a), &wide(&b), &vec![0.0; m * n], m, n);
    (c, a, b, dw)
}

fn gradients_of_every_small_shape<E: Elem>() {
    let mut pool = Pool::new();
    let shapes = (1..=67).flat_map(|s| [(s, 37, 5), (9, s, 6), (3, 33, s)]).chain([(128, 100, 70), (16, 576, 300)]);
    for (m, n, rows) in shapes {
        let (c, a, b, want) = gradient::<E>(m, n, rows);
        let mut plain = c.clone();
        for (i, c) in plain.iter_mut().enumerate() {
            (0..rows).for_each(|t| *c += a[t * m + i / n].widen() * b[t * n + i % n].widen());
        }
        pool.add(plain, want, |kernels: &Kernels<E>| {
            let mut got = c.clone();
            kernels.gemm_tn(&mut got, m, n, &a, m, &b, n, rows);
            got
        });
    }
    pool.check();
}

fn gradients_add_up_over_split_rows<E: Elem>() {
    let (m, n, rows) = (17, 83, 170);
    let (c, a, b, _) = gradient::<E>(m, n, rows);
    each_level::<E>(|kernels| {
        let mut whole = c.clone();
        kernels.gemm_tn(&mut whole, m, n, &a, m, &b, n, rows);
        for cut in [32, 96, 128, 160] {
            let mut parts = c.clone();
            kernels.gemm_tn(&mut parts, m, n, &a, m, &b, n, cut);
            kernels.gemm_tn(&mut parts, m, n, &a[cut * m..], m, &b[cut * n..], n, rows - cut);
            same_bits(&parts, &whole).unwrap();
        }
        // Columns 5..38 alone, out of wider rows.
        let mut some: Vec<_> = (0..m).flat_map(|i| c[i * n + 5..i * n + 38].to_vec()).collect();
        kernels.gemm_tn(&mut some, m, 33, &a, m, &b[5..], n, rows);
        for i in 0..m {
            same_bits(&some[i * 33..][..33], &whole[i * n + 5..i * n + 38]).unwrap();
        }
    });
}

/// Gaps between rows are NaN, and c lies between canaries.
fn gradients_keep_within_their_bounds<E: Elem>() {
    let (m, n, rows) = (5, 39, 11);
    let (c, a, b, _) = gradient::<E>(m, n, rows);
    let spread = |x: &[E], width: usize| -> Vec<E> {
        let gap = [E::narrow(E::Real::from_f64(f64::NAN)); 3];
        x.chunks(width).flat_map(|row| [row, &gap].concat()).take(rows * (width + 3) - 3).collect()
    };
    let canary = E::Real::from_f64(-77.0);
    each_level::<E>(|kernels| {
        let mut dense = c.clone();
        kernels.gemm_tn(&mut dense, m, n, &a, m, &b, n, rows);
        let mut framed = [&[canary; 8][..], &c, &[canary; 8]].concat();
        kernels.gemm_tn(&mut framed[8..8 + m * n], m, n, &spread(&a, m), m + 3, &spread(&b, n), n + 3, rows);
        same_bits(&framed[8..8 + m * n], &dense).unwrap();
        assert!(framed[..8].iter().chain(&framed[8 + m * n..]).all(|x| *x == canary));
    });
}

/// Of every kind of matrix, either sum, two terms of which one is scaled, a bias; rows and outputs with gaps, which nothing
/// touches; all outputs, or those from a panel on.
#[test]
fn few_rows_have_the_bits_of_packed_panels() {
    let levels = [Isa::Avx2, Isa::AvxVnni, Isa::Avx512, Isa::Avx512Vnni, Isa::Avx512Bf16];
    if !levels.iter().any(|isa| Isa::available().contains(isa)) {
        let _ = std::io::stderr().write_all(b"SKIPPED few_rows_have_the_bits_of_packed_panels: needs AVX2\n");
    }
    for isa in levels.into_iter().filter(|isa| Isa::available().contains(isa)) {
        assert_eq!(bf16::kernels(isa).gemv_rows(), GEMV_ROWS, "{isa:?}");
        few_rows_at(bf16::kernels(isa));
    }
}

fn few_rows_at(kernels: &Kernels<bf16>) {
    for (kind, sum) in KINDS.into_iter().flat_map(|kind| [(kind, Sum::OverCols), (kind, Sum::OverRows)]) {
        for (n, k) in [(1, 1), (31, 2), (32, 64), (33, 63), (64, 65), (70, 129), (96, 192), (100, 1)] {
            for rows in 1..=kernels.gemv_rows() {
                few_rows(kernels, &Case::of(rows, n, &[k, 5], sum, kind, true));
            }
        }
    }
}

fn few_rows(kernels: &Kernels<bf16>, case: &Case<bf16>) {
    let (rows, n, gap) = (case.rows, case.n, 3);
    let scales = [1.0, 0.75];
    let spread = |(a, k): (&Vec<bf16>, &usize)| {
        let mut all = vec![bf16::NAN; (rows - 1) * (k + gap) + k];
        a.chunks(*k).enumerate().for_each(|(i, row)| all[i * (k + gap)..][..*k].copy_from_slice(row));
        all
    };
    let a: Vec<_> = case.a.iter().zip(&case.ks).map(spread).collect();
    let bias = case.bias.as_deref().unwrap();
    let canary = bf16::from_f32(-77.0);
    for n0 in (0..n).step_by(PANEL) {
        let (cols, ldc) = (n - n0, n - n0 + gap);
        let (mut want, mut got) = (vec![canary; rows * ldc], vec![canary; rows * ldc]);
        let panels = case.w.iter().zip(&case.ks).zip(scales).map(|((w, k), scale)| {
            let mut panels = vec![bf16::ZERO; cols.div_ceil(PANEL) * panel_len(*k)];
            kernels.pack(&mut panels, &w.matrix(), case.sum, n0, scale);
            panels
        });
        let panels: Vec<_> = panels.collect();
        let columns = case.w.iter().zip(&panels).zip(scales).map(|((w, panels), scale)| {
            let whole = kernels.whole(&w.matrix(), case.sum, n0..n, scale);
            whole.map_or(Columns::Panels(panels), Columns::Whole)
        });
        let columns: Vec<_> = columns.collect();
        let rows_of: Vec<_> = a
            .iter()
            .zip(&case.ks)
            .zip(&columns)
            .map(|((a, &k), b)| match b {
                Columns::Panels(_) => (a.clone(), k + gap),
                Columns::Whole(w) => rounded(kernels, a, k + gap, k, w, None),
            })
            .collect();
        let each = || rows_of.iter().zip(&case.ks);
        let packed: Vec<_> = each().zip(columns).map(|(((a, lda), &k), b)| Term { a, lda: *lda, b, k }).collect();
        let terms: Vec<_> = each()
            .zip(&case.w)
            .zip(scales)
            .map(|((((a, lda), _), w), scale)| InPlace { a, lda: *lda, w: w.matrix(), sum: case.sum, n0, scale })
            .collect();
        kernels.gemm(Out::store(&mut want), ldc, rows, cols, &packed, Some(&bias[n0..]));
        kernels.gemv(Out::store(&mut got), ldc, rows, cols, &terms, Some(&bias[n0..]));
        same_bits(&got, &want).unwrap_or_else(|e| panic!("{n} x {:?}, {:?}: {e}", case.ks, case.w[0].kind));
    }
}

#[test]
fn the_reference_is_the_equation() {
    let (x, w) = ([1.0, 2.0, 3.0, 4.0], [1.0, 10.0, 100.0, 1000.0, 0.5, 0.25]);
    let mut y = vec![1.0; 6];
    reference(&mut y, &x, &w, 3, 2);
    assert_eq!(y, [22.0, 2101.0, 2.0, 44.0, 4301.0, 3.5]);
}

/// <dy, J dx> of the linear map in x and in W, against differences of the forward reference, exact for a linear map.
#[test]
fn the_backward_reference_is_the_derivative() {
    let (t, n, k) = (2, 3, 4);
    let mut random = Random::new(5);
    let (x, w, dy) = (random.vec::<f64>(t * k), random.vec::<f64>(n * k), random.vec::<f64>(t * n));
    let (mut dx, mut dw) = (vec![0.0; t * k], vec![0.0; n * k]);
    reference_backward(&mut dx, &mut dw, &dy, &x, &w, n, k);
    let loss = |x: &[f64], w: &[f64]| {
        let mut y = vec![0.0; t * n];
        reference(&mut y, x, w, n, k);
        y.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>()
    };
    let step = |v: &[f64], i: usize| v.iter().enumerate().map(|(j, v)| v + (i == j) as u8 as f64).collect::<Vec<_>>();
    for (i, dx) in dx.iter().enumerate() {
        assert!((loss(&step(&x, i), &w) - loss(&x, &w) - dx).abs() < 1e-14);
    }
    for (i, dw) in dw.iter().enumerate() {
        assert!((loss(&x, &step(&w, i)) - loss(&x, &w) - dw).abs() < 1e-14);
    }
}

#[test]
#[should_panic(expected = "input of 7: 2 rows of 4, stride 4")]
fn a_short_input_is_refused() {
    let b = [0.0f32; panel_len(4)];
    let term = Term { a: &[0.0; 7], lda: 4, b: Columns::Panels(&b), k: 4 };
    f32::kernels(Isa::Portable).gemm(Out::store(&mut [0.0; 2]), 1, 2, 1, &[term], None);
}

/// Rows of `k`, `lda` apart, as `[k / CHUNK, rows]` chunks of whole numbers, and the stride of a chunk.
pub(super) fn rounded<E: Elem>(
    kernels: &Kernels<E>,
    a: &[E],
    lda: usize,
    k: usize,
    w: &packed::Packed,
    scales: Option<&[bf16]>,
) -> (Vec<E>, usize) {
    let rows = a.chunks(lda).map(|row| &row[..k]);
    let each = (0..k).step_by(CHUNK).flat_map(|from| {
        let chunk = from..k.min(from + CHUNK);
        rows.clone().map(move |row| (&row[chunk.clone()], scales.map(|scales| &scales[chunk.clone()])))
    });
    let whole = each.flat_map(|(chunk, scales)| {
        let mut to = vec![E::default(); kernels.rounded_len(w)];
        kernels.round(&mut to, chunk, w, scales);
        to
    });
    (whole.collect(), rows.len() * kernels.rounded_len(w))
}

#[test]
#[should_panic(expected = "such whole numbers at portable")]
fn whole_numbers_of_another_level_are_refused() {
    let w = packed::Packed::new(Bits::Eight, &[0; 2 * PANEL], &[bf16::ONE; PANEL], [1, 2], 2).unwrap();
    let term = Term { a: &[bf16::ONE; 2], lda: 2, b: Columns::Whole(w), k: 2 };
    bf16::kernels(Isa::Portable).gemm(Out::store(&mut [bf16::ZERO]), 1, 1, 1, &[term], None);
}

#[test]
#[should_panic(expected = "outputs 32 + 1 of 32")]
fn outputs_that_are_not_there_are_refused() {
    let file = File::random(1, Plain(Dtype::F32), 32, 1);
    let term = InPlace { a: &[1.0f32], lda: 1, w: file.matrix(), sum: Sum::OverCols, n0: 32, scale: 1.0 };
    f32::kernels(Isa::Portable).gemv(Out::store(&mut [0.0]), 1, 1, 1, &[term], None);
}

#[test]
#[should_panic(expected = "output of 3: 2 rows of 2, stride 2")]
fn a_short_output_is_refused() {
    f32::kernels(Isa::Portable).gemm(Out::store(&mut [0.0; 3]), 2, 2, 2, &[], None);
}
