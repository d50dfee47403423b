//! What share of the machine's roof each kernel reaches, on one thread; the roofs are measured first, in the same run.
//!
//!     cargo bench --bench kernels                        every kernel at every level of instructions
//!     cargo bench --bench kernels -- 'avx2/bf16/gemm'    those whose name has it
//!
//! `thrpt` is percent of a roof: of the operations that the level's widest instruction for these operands does (`kernels/roof.rs`)
//! where a kernel multiplies matrices, of the bytes that plain loads read from memory where it passes over rows. A byte written
//! counts as one read, though it costs more; a cache of tens of MiB makes it more than 100. On other processors than
//! x86-64 and aarch64 nothing measures the roof, and `thrpt` is operations a second.

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use dialoguellm_kernels::attention::{Block, Heads, KeyBlock};
use dialoguellm_kernels::linear::{CHUNK, Columns, InPlace, Out, PANEL, Sum, Term, panel_len};
use dialoguellm_kernels::quantize::packed::{Packed, panel_sizes};
use dialoguellm_kernels::testing::Random;
use dialoguellm_kernels::{Bits, Dtype, Elem, Isa, Kernels, Matrix, Real, adamw, bf16, roof};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// (n, k) of the projections of SmolLM2-135M.
const SMALL: [(usize, usize); 4] = [(576, 576), (192, 576), (1536, 576), (576, 1536)];
/// Of a LLaMA of 1.1B and of one of 7B, at the machine's highest level only.
const LARGE: [(usize, usize); 6] =
    [(2048, 2048), (5632, 2048), (2048, 5632), (4096, 4096), (11_008, 4096), (4096, 11_008)];
/// SmolLM2-135M's output head, (V, D).
const HEAD: (usize, usize) = (49_152, 576);
/// SmolLM2-135M's heads, and LLaMA-2-7B's.
const HEADS: [Heads; 2] = [Heads { q: 9, kv: 3, dim: 64 }, Heads { q: 32, kv: 32, dim: 128 }];
/// Tokens of a prompt that attends to itself.
const PROMPT: usize = 250;
/// Rows that stream from memory: T of width D, 24 MiB of f32.
const STREAM: (usize, usize) = (10_922, 576);

fn main() {
    let read = reading();
    println!("reading from memory: {read:.1} GB/s");
    for isa in Isa::available() {
        all::<bf16>(*isa, read);
        all::<f32>(*isa, read);
        whole_numbers(*isa);
    }
    Criterion::default().configure_from_args().final_summary();
}

fn all<E: Elem>(isa: Isa, read: f64) {
    let name = |kernel: &str| format!("{}/{}/{kernel}", isa.name(), E::NAME);
    let operations = multiplying(isa, E::NAME);
    if let Some(operations) = operations {
        println!("{}: {operations:.1} GFLOP/s of {}", isa.name(), E::NAME);
    }
    let kernels = E::kernels(isa);
    group(operations, &name("gemm"), |group| gemm(group, kernels));
    group(operations, &name("lora_gradient"), |group| lora_gradient(group, kernels));
    group(operations, &name("attention"), |group| attention(group, kernels));
    group(Some(read), &name("gemv"), |group| gemv(group, kernels));
    group(Some(read), &name("rows"), |group| rows(group, kernels));
}

/// A time, shown as a share of a roof.
struct Share {
    /// Operations or bytes a nanosecond.
    roof: Option<f64>,
}

impl Measurement for Share {
    type Intermediate = Instant;
    type Value = Duration;
    fn start(&self) -> Instant {
        WallTime.start()
    }
    fn end(&self, start: Instant) -> Duration {
        WallTime.end(start)
    }
    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        WallTime.add(a, b)
    }
    fn zero(&self) -> Duration {
        WallTime.zero()
    }
    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }
    fn formatter(&self) -> &dyn ValueFormatter {
        self
    }
}

impl ValueFormatter for Share {
    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_values(typical, values)
    }
    fn scale_throughputs(&self, typical: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        let (Some(roof), Throughput::Elements(amount)) = (self.roof, throughput) else {
            return WallTime.formatter().scale_throughputs(typical, throughput, values);
        };
        values.iter_mut().for_each(|time| *time = 100.0 * *amount as f64 / *time / roof);
        "%"
    }
    fn scale_for_machines(&self, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_for_machines(values)
    }
}

type Group<'a> = BenchmarkGroup<'a, Share>;

fn group(roof: Option<f64>, name: &str, run: impl FnOnce(&mut Group)) {
    let short = Criterion::default().warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    let mut criterion = short.sample_size(20).with_measurement(Share { roof }).without_plots().configure_from_args();
    let mut group = criterion.benchmark_group(name);
    run(&mut group);
    group.finish();
}

/// Times `run` as `name`, which has so many operations, or bytes.
fn time(group: &mut Group, name: &str, shape: String, amount: usize, mut run: impl FnMut()) {
    group.throughput(Throughput::Elements(amount as u64));
    group.bench_function(BenchmarkId::new(name, shape), |b| b.iter(&mut run));
}

/// Seconds of the fastest of ten runs.
fn best(mut run: impl FnMut()) -> f64 {
    let times = (0..10).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}

/// Operations a nanosecond of one thread's multipliers, where a loop of that level measures them.
fn multiplying(isa: Isa, operands: &str) -> Option<f64> {
    let mut all = None;
    let seconds = best(|| all = roof::multiply(isa, operands, 100_000));
    Some(all? / seconds / 1e9)
}

/// Bytes a nanosecond, read from memory.
fn reading() -> f64 {
    let bytes = vec![1; 64 << 20];
    let seconds = best(|| _ = black_box(roof::read(&bytes)));
    bytes.len() as f64 / seconds / 1e9
}

/// Values that begin on a cache line, as the library's tensors do. Some random ones come again and again.
struct Lines<E>(Vec<E>, usize);

impl<E: Elem> Lines<E> {
    fn new(len: usize) -> Self {
        let some = Random::new(1).vec::<E>(4093);
        let values: Vec<E> = some.iter().copied().cycle().take(len + 64).collect();
        let first = values.as_ptr().align_offset(64);
        Self(values, first)
    }
    fn values(&mut self, len: usize) -> &mut [E] {
        &mut self.0[self.1..][..len]
    }
}

macro_rules! lines {
    ($($name:ident: $len:expr),*) => {$(
        let mut $name = Lines::new($len);
        let $name = $name.values($len);
    )*};
}

fn bytes_of(values: &[bf16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A projection by a weight of the file, which is packed first, and by one that is packed already.
fn gemm<E: Elem>(group: &mut Group, kernels: &Kernels<E>) {
    let large = if kernels.isa == Isa::best(None) && E::NAME == "bf16" { &LARGE[..] } else { &[] };
    let small = SMALL.iter().flat_map(|shape| [(*shape, 256), (*shape, 1024)]);
    for ((n, k), rows) in small.chain(large.iter().map(|shape| (*shape, 256))) {
        lines!(a: rows * k, c: rows * n, panels: n.div_ceil(PANEL) * panel_len(k));
        lines!(w: n * k);
        let bytes = bytes_of(w);
        let w = Matrix::new(Dtype::Bf16, &bytes, n, k).expect("n k values");
        let (operations, shape) = (2 * rows * n * k, format!("T {rows}, n {n}, k {k}"));
        let mut run = |pack: bool| {
            for (p, panel) in panels.chunks_exact_mut(panel_len(k)).enumerate().filter(|_| pack) {
                kernels.pack(panel, &w, Sum::OverCols, p * PANEL, 1.0);
            }
            let term = Term { a, lda: k, b: Columns::Panels(panels), k };
            kernels.gemm(Out::store(c), n, rows, n, &[term], None);
        };
        time(group, "pack and multiply", shape.clone(), operations, || run(true));
        time(group, "multiply", shape, operations, || run(false));
    }
}

/// Rows of `k` as whole numbers.
fn round(kernels: &Kernels<bf16>, to: &mut [bf16], rows: &[bf16], k: usize, w: &Packed, scales: Option<&[bf16]>) {
    for (from, to) in (0..k).step_by(CHUNK).zip(to.chunks_mut(rows.len() / k * kernels.rounded_len(w))) {
        let chunk = from..k.min(from + CHUNK);
        for (to, row) in to.chunks_mut(kernels.rounded_len(w)).zip(rows.chunks(k)) {
            kernels.round(to, &row[chunk.clone()], w, scales.map(|scales| &scales[chunk.clone()]));
        }
    }
}

/// Projections by whole numbers: where they lie, and backward transposed, if the level multiplies such, else as bf16.
fn whole_numbers(isa: Isa) {
    let kernels = bf16::kernels(isa);
    for (bits, (n, k)) in [Bits::Eight, Bits::Four]
        .into_iter()
        .flat_map(|bits| SMALL.into_iter().chain(LARGE).map(move |shape| (bits, shape)))
    {
        let (name, run, panels) = (format!("{}/int{}/gemm", isa.name(), bits.count()), bits.run(k), n.div_ceil(PANEL));
        let (bytes, scales) = panel_sizes(bits, k, run);
        let (q, scales) = (vec![0x5a; bytes * panels], vec![bf16::ONE; scales * panels]);
        let packed = Packed::new(bits, &q, &scales, [n, k], run).expect("sizes as above");
        let w = Matrix::packed(packed);
        let rows = 256;
        lines!(x: rows * k, y: rows * n, panels: k.div_ceil(PANEL) * panel_len(n));
        let lda = rows * kernels.rounded_len(&packed);
        lines!(rounded: k.max(n).div_ceil(CHUNK) * lda);
        let (operations, shape) = (2 * rows * n * k, format!("T {rows}, n {n}, k {k}"));
        if let Some(whole) = kernels.whole(&w, Sum::OverCols, 0..n, 1.0) {
            group(multiplying(isa, &format!("int{}", bits.count())), &name, |group| {
                let rounded = &mut rounded[..k.div_ceil(CHUNK) * lda];
                time(group, "round and multiply", shape.clone(), operations, || {
                    round(kernels, rounded, x, k, &whole, None);
                    let term = Term { a: rounded, lda, b: Columns::Whole(whole), k };
                    kernels.gemm(Out::store(y), n, rows, n, &[term], None);
                });
            });
        }
        if let Some((whole, scales)) = kernels.whole_rows(&w, Sum::OverRows, 1.0) {
            group(multiplying(isa, &format!("int{}", bits.count())), &name, |group| {
                let len = kernels.turned_len(&whole);
                let (rounded, panels) =
                    (&mut rounded[..n.div_ceil(CHUNK) * lda], &mut panels[..k.div_ceil(PANEL) * len]);
                let ones = vec![bf16::ONE; k.next_multiple_of(PANEL)];
                time(group, "round, turn and multiply, transposed", shape, operations, || {
                    round(kernels, rounded, y, n, &whole, Some(scales));
                    for (p, panel) in panels.chunks_mut(8 * len).enumerate() {
                        kernels.turn(panel, &whole, 8 * p * PANEL);
                    }
                    let b = Columns::Whole(kernels.turned(panels, &ones, &whole, k));
                    kernels.gemm(Out::store(x), k, rows, k, &[Term { a: rounded, lda, b, k: n }], None);
                });
            });
            continue;
        }
        group(multiplying(isa, "bf16"), &name, |group| {
            time(group, "pack and multiply, transposed", shape, operations, || {
                for (p, panel) in panels.chunks_mut(8 * panel_len(n)).enumerate() {
                    kernels.pack(panel, &w, Sum::OverRows, 8 * p * PANEL, 1.0);
                }
                let term = Term { a: y, lda: n, b: Columns::Panels(panels), k: n };
                kernels.gemm(Out::store(x), k, rows, k, &[term], None);
            });
        });
    }
}

/// dA or dB of a LoRA pair of rank 16.
fn lora_gradient<E: Elem>(group: &mut Group, kernels: &Kernels<E>) {
    let (r, n, rows) = (16, 576, 1024);
    lines!(a: rows * r, b: rows * n);
    lines!(c: r * n);
    time(group, "add", format!("T {rows}, R {r}, n {n}"), 2 * rows * r * n, || {
        kernels.gemm_tn(c, r, n, a, r, b, n, rows);
    });
}

/// The output head for a few rows, which memory bounds.
fn gemv<E: Elem>(group: &mut Group, kernels: &Kernels<E>) {
    let (n, k) = HEAD;
    lines!(w: n * k);
    let bytes = bytes_of(w);
    let w = Matrix::new(Dtype::Bf16, &bytes, n, k).expect("n k values");
    for rows in [1, 4, 8].into_iter().filter(|rows| *rows <= kernels.gemv_rows()) {
        lines!(a: rows * k, c: rows * n);
        let terms = [InPlace { a, lda: k, w, sum: Sum::OverCols, n0: 0, scale: 1.0 }];
        time(group, "in place", format!("T {rows}, V {n}, D {k}"), bytes.len(), || {
            kernels.gemv(Out::store(c), n, rows, n, &terms, None);
        });
    }
}

/// A prompt that attends to itself; operations of the pairs that see each other.
fn attention<E: Elem>(group: &mut Group, kernels: &Kernels<E>) {
    for heads in HEADS {
        let (q_row, kv_row) = (heads.q * heads.dim, heads.kv * heads.dim);
        let all: Vec<u32> = (0..PROMPT as u32).collect();
        lines!(q: PROMPT * q_row, k: PROMPT * kv_row, v: PROMPT * kv_row, d_o: PROMPT * q_row);
        lines!(o: PROMPT * q_row, dq: PROMPT * q_row, dv: PROMPT * kv_row);
        lines!(lse: PROMPT * heads.q, delta: PROMPT * heads.q, dk: PROMPT * kv_row);
        let mut scratch = Vec::new();
        let operations = 2 * PROMPT * (PROMPT + 1) / 2 * heads.q * heads.dim;
        let shape = format!("T {PROMPT}, H {}, K {}, d {}", heads.q, heads.kv, heads.dim);
        time(group, "forward", shape.clone(), 2 * operations, || {
            for (i, rows) in all.chunks(32).enumerate() {
                let (x, l) = (32 * i * q_row, 32 * i * heads.q);
                let (o, lse) = (&mut o[x..][..rows.len() * q_row], &mut lse[l..][..rows.len() * heads.q]);
                let block = Block { ancestors: &[], own: 0, rows };
                kernels.attention(o, lse, &q[x..][..rows.len() * q_row], k, v, heads, &block, &mut scratch);
            }
        });
        kernels.attention_delta(delta, d_o, o, heads);
        time(group, "backward q", shape.clone(), 3 * operations, || {
            for (i, rows) in all.chunks(32).enumerate() {
                let x = 32 * i * q_row..(32 * i + rows.len()) * q_row;
                let l = 32 * i * heads.q..(32 * i + rows.len()) * heads.q;
                let (dq, d_o, q) = (&mut dq[x.clone()], &d_o[x.clone()], &q[x]);
                let block = Block { ancestors: &[], own: 0, rows };
                let (lse, delta) = (&lse[l.clone()], &delta[l]);
                kernels.attention_backward_q(dq, d_o, q, k, v, lse, delta, heads, &block, &mut scratch);
            }
        });
        time(group, "backward k v", shape, 4 * operations, || {
            for first in (0..PROMPT).step_by(48) {
                let end = PROMPT.min(first + 48);
                let x = first * kv_row..end * kv_row;
                let (dk, dv) = (&mut dk[x.clone()], &mut dv[x]);
                let (keys, causal) = (first as u32..end as u32, first as u32..PROMPT as u32);
                let block = KeyBlock { keys, causal, whole: 0..0, rows: &all };
                kernels.attention_backward_kv(dk, dv, d_o, q, k, v, lse, delta, heads, &block, &mut scratch);
            }
        });
    }
}

/// What passes over rows.
fn rows<E: Elem>(group: &mut Group, kernels: &Kernels<E>) {
    let (t, d) = STREAM;
    let (elem, real, shape) = (size_of::<E>(), size_of::<E::Real>(), format!("T {t}, D {d}"));
    lines!(a: t * d, b: t * d, c: t * d, e: t * d, f: t * d, g: t * d);
    lines!(x: t * d, dx: t * d, w: d, moment: t * d, square: t * d);
    let (one, eps) = (E::Real::ONE, E::Real::from_f64(1e-5));
    let (cos, sin) = w[..64].split_at(32);
    let mut each =
        |name: &str, bytes: usize, run: &mut dyn FnMut()| time(group, name, shape.clone(), bytes * t * d, run);
    each("rmsnorm", elem + real, &mut || {
        a.chunks_exact_mut(d).zip(x.chunks_exact(d)).for_each(|(y, x)| _ = black_box(kernels.rmsnorm(y, x, w, eps)));
    });
    each("rmsnorm backward", 4 * real, &mut || {
        let rows = dx.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(moment.chunks_exact(d));
        rows.for_each(|((dx, x), dy)| kernels.rmsnorm_backward(dx, dy, x, w, one));
    });
    each("rope", elem + real, &mut || {
        a.chunks_exact_mut(d).zip(x.chunks_exact(d)).for_each(|(y, x)| kernels.rope(y, x, 64, cos, sin));
    });
    each("swiglu", 3 * elem, &mut || kernels.swiglu(a, b, c));
    each("swiglu backward", 6 * elem, &mut || kernels.swiglu_backward(a, e, f, g, b, c));
    each("dropout", 2 * elem, &mut || {
        a.chunks_exact_mut(d)
            .zip(b.chunks_exact(d))
            .zip(0..)
            .for_each(|((y, x), key)| kernels.dropout(y, x, key, 0.05));
    });
    each("log_sum_exp", real, &mut || _ = black_box(kernels.log_sum_exp(x)));
    each("cross_entropy backward", elem + real, &mut || kernels.cross_entropy_backward(a, x, one, one, &[(0, one)]));
    let options = adamw::Options { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.0 };
    square.iter_mut().for_each(|v| *v = *v * *v);
    each("adamw", 7 * real, &mut || kernels.adamw(dx, x, moment, square, &adamw::Step::new(&options, 1000, 1.0)));
}
