//! What the CUDA kernels make of a GPU, at the sizes of a 7B model: `kernels/device-check speed`.
//!
//! Prints the table of benches/results/README.md. The roof of what is bound by memory is a copy inside the GPU, measured in
//! the same run; bytes are those that have to be moved, each once. A sample is as many launches as take a
//! millisecond, by the driver's events; the median of 20 counts, after a warm-up. Values are random: zeros would be faster.
//! Arguments name parts: memory, gemm, attention. `DLLM_REHEARSE=1`: tiny sizes, to prove that all of it runs.

#[path = "../cuda/driver.rs"]
mod driver;

use dialoguellm_kernels::adamw::{self, Options, Step};
use dialoguellm_kernels::attention::{Heads, cuda as attention};
use dialoguellm_kernels::cross_entropy::cuda as cross_entropy;
use dialoguellm_kernels::cuda::{FATBINS, HEADER, Launch, Ptr, SOURCES};
use dialoguellm_kernels::dropout::cuda as dropout;
use dialoguellm_kernels::embedding::cuda as embedding;
use dialoguellm_kernels::linear::{Sum, cuda as linear};
use dialoguellm_kernels::quantize::cuda as quantize;
use dialoguellm_kernels::rmsnorm::cuda as rmsnorm;
use dialoguellm_kernels::rope::cuda as rope;
use dialoguellm_kernels::swiglu::cuda as swiglu;
use dialoguellm_kernels::tensor::cuda as tensor;
use dialoguellm_kernels::testing::Random;
use dialoguellm_kernels::{Bits, bf16};

type Result<T> = std::result::Result<T, String>;

/// LLaMA 7B's widths, and a packed batch.
struct Sizes {
    rows: u32,
    model: u32,
    inner: u32,
    vocabulary: u32,
    heads: u32,
    dim: u32,
    /// LoRA's parameters: rank 8 on every projection.
    lora: usize,
    copied: usize,
    lengths: &'static [u32],
    samples: usize,
}

const FULL: Sizes = Sizes {
    rows: 16_384,
    model: 4096,
    inner: 11_008,
    vocabulary: 32_000,
    heads: 32,
    dim: 128,
    lora: 19_988_480,
    copied: 1 << 30,
    lengths: &[256, 512, 1024, 2048, 4096],
    samples: 20,
};
const REHEARSAL: Sizes = Sizes {
    rows: 96,
    model: 256,
    inner: 96,
    vocabulary: 320,
    heads: 2,
    dim: 128,
    lora: 4096,
    copied: 1 << 16,
    lengths: &[32, 96],
    samples: 3,
};

/// One module of kernels with its buffers.
struct Bench {
    gpu: driver::Gpu,
    sizes: &'static Sizes,
    /// Random bf16 in [-1, 1): also such f32, seen in pairs.
    pattern: Ptr,
    /// Bytes a second of a copy, read and write counted.
    copy: f64,
}

const PATTERN: usize = 1 << 16;

/// The median of rates, and their ends.
struct Rate {
    median: f64,
    min: f64,
    max: f64,
    n: usize,
}

impl Bench {
    fn new(source: &str, sizes: &'static Sizes, copy: f64) -> Result<Self> {
        let text = SOURCES.iter().find(|(name, _)| *name == source).ok_or("no such source")?.1;
        let mut gpu = driver::Gpu::load(&driver::images(source, &[], FATBINS, &[text, HEADER.1]))?;
        let bytes: Vec<u8> = Random::new(1).vec::<bf16>(PATTERN / 2).iter().flat_map(|x| x.to_le_bytes()).collect();
        let pattern = Ptr(gpu.upload(&bytes));
        Ok(Self { gpu, sizes, pattern, copy })
    }

    fn put(&mut self, values: impl IntoIterator<Item = u32>) -> Ptr {
        let bytes: Vec<u8> = values.into_iter().flat_map(u32::to_le_bytes).collect();
        Ptr(self.gpu.upload(&bytes))
    }

    /// A buffer of `bytes` random ones.
    fn random(&mut self, bytes: usize) -> Result<Ptr> {
        let at = self.gpu.empty(bytes);
        let first = bytes.min(PATTERN);
        self.gpu.copy(at, self.pattern.0, first)?;
        self.gpu.spread(at, first)?;
        Ok(Ptr(at))
    }

    fn act(&mut self, rows: u32, width: u32) -> Result<Ptr> {
        self.random(2 * rows as usize * width as usize)
    }

    fn real(&mut self, rows: u32, width: u32) -> Result<Ptr> {
        self.random(4 * rows as usize * width as usize)
    }

    /// How often a second all of `launches` run.
    fn rate(&mut self, launches: &[Launch]) -> Result<Rate> {
        let run = |gpu: &mut driver::Gpu| {
            launches.iter().try_for_each(|launch| {
                gpu.start(launch.entry, launch.grid, launch.block, launch.shared, launch.args.bytes())
            })
        };
        sampled(&mut self.gpu, self.sizes.samples, run)
    }

    /// A kernel that is bound by memory and has to move `bytes`.
    fn memory(&mut self, what: &str, size: &str, bytes: usize, launches: &[Launch]) -> Result<()> {
        let rate = self.rate(launches)?;
        row(what, size, "GB/s", &rate, bytes as f64 / 1e9);
        row(what, size, "% of copy", &rate, bytes as f64 / self.copy * 100.0);
        Ok(())
    }

    /// A kernel that is bound by its multiplications.
    fn products(&mut self, what: &str, size: &str, operations: f64, launches: &[Launch]) -> Result<()> {
        let rate = self.rate(launches)?;
        row(what, size, "TFLOP/s", &rate, operations / 1e12);
        Ok(())
    }
}

/// How often a second `run` is done, by samples of a millisecond.
fn sampled(gpu: &mut driver::Gpu, samples: usize, run: impl Fn(&mut driver::Gpu) -> Result<()>) -> Result<Rate> {
    gpu.time(&run)?;
    let once = gpu.time(&run)?;
    let times = if samples < FULL.samples { 1 } else { (1e-3 / once).ceil().clamp(1.0, 200.0) as usize };
    let mut rates = Vec::new();
    for _ in 0..samples {
        rates.push(times as f64 / gpu.time(|gpu| (0..times).try_for_each(|_| run(gpu)))?);
    }
    rates.sort_by(f64::total_cmp);
    Ok(Rate { median: rates[samples / 2], min: rates[0], max: rates[samples - 1], n: samples })
}

fn row(what: &str, size: &str, unit: &str, rate: &Rate, scale: f64) {
    let [median, min, max] = [rate.median, rate.min, rate.max].map(|x| x * scale);
    println!("{what},\"{size}\",1,{unit},{median:.2},{min:.2},{max:.2},{}", rate.n);
}

/// Bytes a second of a copy inside the GPU.
fn copy_rate(sizes: &'static Sizes) -> Result<f64> {
    let mut bench = Bench::new("tensor/cuda.cu", sizes, 0.0)?;
    let (from, to) = (bench.random(sizes.copied)?, bench.random(sizes.copied)?);
    println!("# machine    {}", bench.gpu.name());
    println!(
        "# command    kernels/device-check speed{}",
        if sizes.samples < FULL.samples { ", rehearsed" } else { "" }
    );
    println!("what,size,threads,unit,median,min,max,n");
    let rate = sampled(&mut bench.gpu, sizes.samples, |gpu| gpu.copy(to.0, from.0, sizes.copied))?;
    let moved = 2.0 * sizes.copied as f64;
    row("copy", &format!("{} MiB", sizes.copied >> 20), "GB/s", &rate, moved / 1e9);
    Ok(rate.median * moved)
}

fn rows_of_the_model(sizes: &'static Sizes, copy: f64) -> Result<()> {
    let Sizes { rows, model, inner, heads, dim, .. } = *sizes;
    let (size, values) = (format!("{rows} x {model}"), rows as usize * model as usize);

    let mut b = Bench::new("rmsnorm/cuda.cu", sizes, copy)?;
    let (x, w, dx, dy) = (b.real(rows, model)?, b.real(1, model)?, b.real(rows, model)?, b.real(rows, model)?);
    let (y, r) = (b.act(rows, model)?, b.real(rows, 1)?);
    b.memory("rmsnorm forward", &size, 6 * values, &[rmsnorm::forward(y, r, x, w, rows, model, 1e-5)])?;
    b.memory("rmsnorm backward", &size, 16 * values, &[rmsnorm::backward(dx, dy, x, w, r, rows, model)])?;

    let mut b = Bench::new("rope/cuda.cu", sizes, copy)?;
    let (x, y, half) = (b.real(rows, model)?, b.act(rows, model)?, dim / 2);
    let (cos, sin) = (b.real(4096, half)?, b.real(4096, half)?);
    let at = b.put((0..rows).map(|row| row % 4096));
    b.memory("rope forward", &size, 6 * values, &[rope::forward(y, x, cos, sin, at, rows, heads, half)])?;

    let mut b = Bench::new("swiglu/cuda.cu", sizes, copy)?;
    let size_inner = format!("{rows} x {inner}");
    let len = rows as usize * inner as usize;
    let mut act = || b.act(rows, inner);
    let (h, gate, up, dh, dgate, dup) = (act()?, act()?, act()?, act()?, act()?, act()?);
    b.memory("swiglu forward", &size_inner, 6 * len, &[swiglu::forward(h, gate, up, len)])?;
    b.memory("swiglu backward", &size_inner, 12 * len, &[swiglu::backward(h, dgate, dup, dh, gate, up, len)])?;

    let mut b = Bench::new("embedding/cuda.cu", sizes, copy)?;
    let (y, table) = (b.real(rows, model)?, b.act(sizes.vocabulary, model)?);
    let ids = b.put((0..rows).map(|row| row.wrapping_mul(2_654_435_761) % sizes.vocabulary));
    b.memory("embedding", &size, 6 * values, &[embedding::forward(y, table, ids, rows, model)])?;

    let mut b = Bench::new("quantize/cuda.cu", sizes, copy)?;
    let (q, scales, y) = (b.act(rows, model)?, b.real(rows, model.div_ceil(32))?, b.act(rows, model)?);
    for (bits, run, bytes) in [(Bits::Eight, model, 3.0), (Bits::Four, 32, 2.625)] {
        let weights = quantize::Quantized { bits, q, scales, cols: model, run };
        let name = format!("quantize widen, {} bits", bits.count());
        b.memory(&name, &size, (bytes * values as f64) as usize, &[weights.widen(y, rows)])?;
    }

    let mut b = Bench::new("tensor/cuda.cu", sizes, copy)?;
    let (x, y, z) = (b.real(rows, model)?, b.real(rows, model)?, b.act(rows, model)?);
    let places = b.put((0..rows).rev());
    b.memory("tensor round", &size, 6 * values, &[tensor::round(z, x, values)])?;
    b.memory("tensor add", &size, 12 * values, &[tensor::add(y, x, values)])?;
    b.memory("tensor gather", &size, 8 * values, &[tensor::gather(y, x, places, rows, model)])?;
    b.memory("tensor scatter_add", &size, 12 * values, &[tensor::scatter_add(y, x, places, rows, model)])?;
    let share = b.real(rows, 1)?;
    b.memory("tensor blend", &size, 12 * values, &[tensor::blend(y, x, share, rows, model)])?;

    let mut b = Bench::new("dropout/cuda.cu", sizes, copy)?;
    let (x, y, dx, dy) = (b.act(rows, model)?, b.act(rows, model)?, b.real(rows, model)?, b.real(rows, model)?);
    let (keys, scale) = (b.real(rows, 2)?, b.real(rows, 1)?);
    b.memory("dropout apply", &size, 4 * values, &[dropout::apply(y, x, keys, rows, model, 0.1)])?;
    b.memory("dropout add", &size, 12 * values, &[dropout::add(dx, dy, keys, rows, model, 0.1)])?;
    b.memory("dropout noise", &size, 8 * values, &[dropout::noise(dx, keys, scale, rows, model)])
}

fn head_and_optimizer(sizes: &'static Sizes, copy: f64) -> Result<()> {
    let (rows, cols) = (sizes.rows / 8, sizes.vocabulary);
    let (size, values) = (format!("{rows} x {cols}"), rows as usize * cols as usize);
    let mut b = Bench::new("cross_entropy/cuda.cu", sizes, copy)?;
    let (logits, lse, total, d) = (b.real(rows, cols)?, b.real(rows, 1)?, b.real(rows, 1)?, b.act(rows, cols)?);
    let (first, tokens, weights) = (b.put(0..=rows), b.put((0..rows).map(|row| row % cols)), b.real(rows, 1)?);
    let sum = cross_entropy::log_sum_exp(lse, logits, rows, cols, true);
    b.memory("cross_entropy log_sum_exp", &size, 4 * values, &[sum])?;
    let back = cross_entropy::backward(d, logits, lse, total, rows, cols, 0, first, tokens, weights);
    b.memory("cross_entropy backward", &size, 6 * values, &[back])?;

    let (len, mut b) = (sizes.lora, Bench::new("adamw/cuda.cu", sizes, copy)?);
    let mut real = || b.real(1, len as u32);
    let (params, m, v, grad) = (real()?, real()?, real()?, real()?);
    let (n, size) = (adamw::cuda::partials(len), format!("{len} parameters"));
    let (sums, state) = (Ptr(b.gpu.empty(8 * n as usize)), Ptr(b.gpu.empty(size_of::<adamw::cuda::State>())));
    let hyper = Step::<f32>::new(&Options { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.0 }, 1, 1.0);
    let step = [
        adamw::cuda::norm_partials(sums, grad, len),
        adamw::cuda::decide(state, sums, n, 1.0, true),
        adamw::cuda::step(params, m, v, grad, len, &hyper, state),
    ];
    b.memory("adamw", &size, 32 * len, &step)
}

/// Products at the model's shapes: rows by outputs by inputs, alone and with LoRA's term in the same sum.
fn gemm(sizes: &'static Sizes) -> Result<()> {
    let Sizes { rows, model, inner, .. } = *sizes;
    let mut b = Bench::new("linear/cuda.cu", sizes, 0.0)?;
    let widest = model.max(inner);
    let (x, w, y) = (b.act(rows, widest)?, b.act(widest, model)?, b.act(rows, widest)?);
    let (u, lora, c) = (b.act(rows, 16)?, b.act(16, widest)?, b.real(16, widest)?);
    let scratch = linear::lora_gradient_scratch(16, widest, rows);
    let scratch = Ptr(b.gpu.empty(scratch));
    for m in [rows / 64, rows / 8, rows] {
        for (n, k) in [(model, model), (inner, model), (model, inner)] {
            for sum in [Sum::OverCols, Sum::OverRows] {
                let frozen = linear::Term { x, w, k, sum };
                let name = if sum == Sum::OverCols { "gemm" } else { "gemm transposed" };
                for rank in [0, 8, 16] {
                    let terms = [frozen, linear::Term { x: u, w: lora, k: rank, sum }];
                    let launch = linear::gemm(linear::Out::Act(y), m, n, &terms, None);
                    let size = format!("T {m}; n {n}; k {k} + {rank}");
                    b.products(name, &size, 2.0 * f64::from(m) * f64::from(n) * f64::from(k + rank), &[launch])?;
                }
            }
        }
    }
    for rank in [8, 16] {
        let operations = 2.0 * f64::from(rows) * f64::from(model) * f64::from(rank);
        let down = linear::Term { x, w: lora, k: model, sum: Sum::OverCols };
        let launch = linear::gemm(linear::Out::Act(u), rows, rank, &[down], None);
        let bytes = 2 * rows as usize * (model + rank) as usize;
        let size = format!("T {rows}; n {rank}; k {model}");
        let rate = b.rate(&[launch])?;
        row("lora down", &size, "TFLOP/s", &rate, operations / 1e12);
        row("lora down", &size, "GB/s", &rate, bytes as f64 / 1e9);
        let gradient = linear::lora_gradient(c, u, x, rank, model, rows, false, scratch);
        let rate = b.rate(&gradient)?;
        let size = format!("T {rows}; m {rank}; n {model}");
        row("lora gradient", &size, "TFLOP/s", &rate, operations / 1e12);
        row("lora gradient", &size, "GB/s", &rate, bytes as f64 / 1e9);
    }
    Ok(())
}

/// Causal attention of prompts of one length, packed.
fn attention(sizes: &'static Sizes) -> Result<()> {
    let Sizes { rows, heads, dim, .. } = *sizes;
    let mut b = Bench::new("attention/cuda.cu", sizes, 0.0)?;
    let width = heads * dim;
    let (q, k, v, o) = (b.act(rows, width)?, b.act(rows, width)?, b.act(rows, width)?, b.act(rows, width)?);
    let (d_o, dv, dq, dk) = (b.act(rows, width)?, b.act(rows, width)?, b.real(rows, width)?, b.real(rows, width)?);
    let (lse, delta) = (b.real(rows, heads)?, b.real(rows, heads)?);
    for len in sizes.lengths.iter().copied() {
        let own: Vec<u32> = (0..rows).collect();
        let end: Vec<u32> = own.iter().map(|row| ((row / len + 1) * len).min(rows)).collect();
        let tiles = attention::tiles(&own, &end);
        let shape = attention::Shape {
            heads: Heads { q: heads as usize, kv: heads as usize, dim: dim as usize },
            queries: rows,
            keys: rows,
            cached: 0,
            rows: b.put(own),
            end: b.put(end),
            q_first: b.put(tiles.q_first),
            q_list: b.put(tiles.q_list),
            k_first: b.put(tiles.k_first),
            k_list: b.put(tiles.k_list),
        };
        // Two products of every visible pair forward, five backward.
        let pairs = f64::from(rows) * f64::from(len + 1) / 2.0 * f64::from(heads) * f64::from(dim);
        let size = format!("{} x {len}; {heads} heads of {dim}", rows / len);
        let forward = attention::forward(o, lse, q, k, v, &shape);
        b.products("attention forward", &size, 4.0 * pairs, &[forward])?;
        let backward = [
            attention::delta(delta, d_o, o, &shape),
            attention::backward_q(dq, d_o, q, k, v, lse, delta, &shape),
            attention::backward_kv(dk, dv, d_o, q, k, v, lse, delta, &shape),
        ];
        b.products("attention backward", &size, 10.0 * pairs, &backward)?;
        for (part, launch) in ["delta", "dq", "dk and dv"].into_iter().zip(backward) {
            let rate = b.rate(&[launch])?;
            println!(
                "attention {part},\"{size}\",1,ms,{:.4},{:.4},{:.4},{}",
                1e3 / rate.median,
                1e3 / rate.max,
                1e3 / rate.min,
                rate.n
            );
        }
    }
    Ok(())
}

fn all(sizes: &'static Sizes, parts: &[String]) -> Result<()> {
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|name| name == part);
    let copy = copy_rate(sizes)?;
    if wanted("memory") {
        rows_of_the_model(sizes, copy)?;
        head_and_optimizer(sizes, copy)?;
    }
    if wanted("gemm") {
        gemm(sizes)?;
    }
    if wanted("attention") {
        attention(sizes)?;
    }
    Ok(())
}

fn main() {
    let parts: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let rehearsed = std::env::var("DLLM_REHEARSE").is_ok_and(|wanted| wanted == "1");
    if let Err(error) = all(if rehearsed { &REHEARSAL } else { &FULL }, &parts) {
        eprintln!("cuda: {error}");
        std::process::exit(1);
    }
}
