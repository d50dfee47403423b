//! `bench`: how fast this machine computes with a model, and what part that is of what it could.

mod start;

use crate::args::{ModelArgs, Style};
use crate::out;
use clap::Args;
use dialoguellm::conversation::{Conversation, Options, Sampling};
use dialoguellm::device::{Isa, roof};
use dialoguellm::emotion::template::Template;
use dialoguellm::emotion::{Bulk, Classifier, Labels};
use dialoguellm::files::adapter::LoraConfig;
use dialoguellm::files::{Access, Config, Dialogue, Site, Tensors, Turn};
use dialoguellm::model::{Adapter, Builder, Forest, Learning, Model, Pass, Target, weights};
use dialoguellm::{Cancel, Error, Result};
use memmap2::MmapMut;
use serde_json::{Value, json};
use start::Start;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

/// How fast this machine computes with a model, and what part that is of what it could.
///
/// Tokens are drawn at random; speed does not depend on them. Every figure is the median of the repeats.
#[derive(Args)]
pub struct Bench {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of a prompt
    #[arg(long, value_name = "N", default_value_t = 200)]
    tokens: usize,
    /// Prompts that are computed at once
    #[arg(long, value_name = "N", default_value_t = 32)]
    prompts: usize,
    /// Prompts of a training step
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch: usize,
    /// Tokens that are drawn one after the other
    #[arg(long, value_name = "N", default_value_t = 32)]
    draws: usize,
    /// Rank of the adapter that is trained, on all linear layers
    #[arg(long, value_name = "N", default_value_t = 8)]
    rank: usize,
    /// How often each is measured
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeats: usize,
}

/// What the cores could do together, operations and bytes a second; nothing on a GPU.
#[derive(Clone, Copy, Default)]
struct Roof {
    products: Option<f64>,
    reading: Option<f64>,
}

/// One line of the table.
struct Line {
    what: String,
    /// Of `unit` a second.
    rate: f64,
    unit: &'static str,
    /// Of a roof.
    part: Option<f64>,
    of: &'static str,
}

impl Bench {
    pub fn run(&self, style: Style) -> Result<()> {
        for (name, value) in
            [("tokens", self.tokens), ("prompts", self.prompts), ("batch", self.batch), ("draws", self.draws)]
        {
            if value < 2 {
                return Err(Error::invalid(format!("--{name} is {value}, must be 2 or more")));
            }
        }
        let model = self.model.open()?;
        let roof = self.roof(&model);
        let lines = [
            self.prefill(&model, roof, 1)?,
            self.prefill(&model, roof, self.prompts)?,
            self.decode(&model, roof)?,
            self.label(&model)?,
            self.train(&model, roof)?,
        ];
        let start = Start::measure(&self.model, &model, self.repeats)?;
        let (isa, threads) = (model.engine().isa().name(), self.model.threads());
        if style.json {
            let lines: Vec<Value> = lines.iter().map(Line::json).collect();
            let roof = json!({"products": roof.products, "reading": roof.reading});
            return out::json(&json!({
                "device": model.device(), "precision": model.engine().precision(), "isa": isa, "threads": threads,
                "roof": roof, "rates": lines, "start": start.json(),
            }));
        }
        let precision = model.engine().precision();
        let mut text = format!("{}\n{precision}, {isa}, {threads} threads", model.device());
        if let (Some(products), Some(reading)) = (roof.products, roof.reading) {
            text += &format!("; at most {:.0} GFLOP/s and {:.1} GB/s, measured now", products / 1e9, reading / 1e9);
        }
        lines.iter().for_each(|line| text += &format!("\n{}", line.text()));
        out::line(text + "\n" + &start.text())
    }

    fn roof(&self, model: &Model) -> Roof {
        if !model.device().starts_with("cpu") {
            return Roof::default();
        }
        let (isa, threads) = (model.engine().isa(), self.model.threads());
        let operands = model.engine().precision();
        let known = roof::multiply(isa, operands, 1).is_some();
        let products = known.then(|| together(threads, |_| products_rate(isa, operands)));
        let reading = memory().ok().map(|bytes| {
            // each thread reads bytes of its own: what another has read is in a cache that they share
            let share = READ / threads;
            together(threads, |thread| {
                let started = Instant::now();
                black_box(roof::read(black_box(&bytes[thread * share..][..share])));
                share as f64 / started.elapsed().as_secs_f64()
            })
        });
        Roof { products, reading }
    }

    /// The median seconds of the repeats, after one that does not count.
    fn median(&self, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
        median(self.repeats, || timed(&mut run))
    }

    fn prompts(&self, model: &Model, n: usize) -> Vec<Vec<u32>> {
        let vocabulary = model.config().vocab_size as u32;
        let mut random = Random(1);
        (0..n).map(|_| (0..self.tokens).map(|_| random.below(vocabulary)).collect()).collect()
    }

    fn prefill(&self, model: &Model, roof: Roof, n: usize) -> Result<Line> {
        let (forest, rows) = forest(&self.prompts(model, n));
        let mut last: Vec<u32> = rows.iter().filter_map(|rows| rows.last().copied()).collect();
        last.sort_unstable();
        last.dedup(); // short prompts may be drawn twice
        let pass = Pass { forest: &forest, adapter: None, cancel: &Cancel::default() };
        let seconds = self.median(|| model.engine().logits(&pass, None, &last).map(drop))?;
        let rate = forest.len() as f64 / seconds;
        let part = roof.products.map(|products| 2.0 * maps(model.config()) * rate / products);
        let prompts = if n == 1 { "prompt" } else { "prompts" };
        let what = format!("prefill  {n} {prompts} of {} tokens", self.tokens);
        Ok(Line { what, rate, unit: "tokens", part, of: "products" })
    }

    fn decode(&self, model: &Arc<Model>, roof: Roof) -> Result<Line> {
        let mut conversation = Conversation::new(model.clone(), None, Options::default());
        conversation.append(&self.prompts(model, 1)[0])?;
        let sampling = Sampling { max_tokens: self.draws, ..Sampling::default() };
        let seconds = self.median(|| {
            conversation.truncate(self.tokens);
            conversation.generate(&sampling, &mut |_| true).map(drop)
        })?;
        let rate = self.draws as f64 / seconds;
        let tensors = Tensors::open(&self.model.folder()?, Access::Mapped)?;
        let bytes = weights::bytes(&tensors, self.model.precision.precision().bits(), false);
        let part = roof.reading.map(|reading| bytes as f64 * rate / reading);
        let what = format!("decode   {} tokens behind {}", self.draws, self.tokens);
        Ok(Line { what, rate, unit: "tokens", part, of: "reading" })
    }

    fn label(&self, model: &Arc<Model>) -> Result<Line> {
        let text = |turn: usize| Turn {
            speaker: ["Ann", "Bo"][turn % 2].to_owned(),
            text: format!("That is what I said {turn} times, and nobody listened to me."),
            ..Turn::default()
        };
        let turns = 10;
        let dialogue =
            |i: usize| Dialogue { id: i.to_string(), turns: (0..turns).map(|t| text(i * turns + t)).collect() };
        let dialogues: Vec<Dialogue> = (0..self.batch).map(dialogue).collect();
        let classifier = Classifier::new(model.clone(), None, Template::built_in("dialogue")?, Labels::meld())?;
        let seconds = self.median(|| classifier.classify(&dialogues, &Bulk::default()).map(drop))?;
        let rate = (self.batch * turns) as f64 / seconds;
        let what = format!("label    {} dialogues of {turns} turns", self.batch);
        Ok(Line { what, rate, unit: "turns", part: None, of: "" })
    }

    fn train(&self, model: &Model, roof: Roof) -> Result<Line> {
        let json =
            json!({"peft_type": "LORA", "r": self.rank, "lora_alpha": self.rank, "target_modules": "all-linear"});
        let Value::Object(map) = json else { return Err(Error::internal("an object is none")) };
        let adapter = Adapter::new(LoraConfig::from_json(map)?, model.config(), 0)?;
        let prompts = self.prompts(model, self.batch);
        let (forest, rows) = forest(&prompts);
        let asked = prompts.iter().zip(&rows).filter_map(|(ids, rows)| {
            let last = rows.len().checked_sub(1)?;
            Some(Target { row: rows[last - 1], token: ids[last] })
        });
        let mut targets: Vec<Target> = asked.collect();
        targets.sort();
        let pass = Pass { forest: &forest, adapter: Some(&adapter), cancel: &Cancel::default() };
        let mut learner = model.engine().learner(&adapter, None)?;
        let learning = Learning { noise: None, activation_bytes: usize::MAX, entering: None };
        let seconds = self.median(|| {
            learner.begin()?;
            let mut loss = |log_p: &[f32]| Ok(vec![-1.0 / log_p.len() as f32; log_p.len()]);
            model.engine().learn(&mut *learner, &pass, &targets, &learning, &mut loss)?;
            learner.norm(1.0, true).map(drop)
        })?;
        let rate = forest.len() as f64 / seconds;
        // forward, and the gradient of the inputs
        let part = roof.products.map(|products| 4.0 * maps(model.config()) * rate / products);
        let what = format!("train    {} prompts of {} tokens, rank {}", self.batch, self.tokens, self.rank);
        Ok(Line { what, rate, unit: "tokens", part, of: "products" })
    }
}

impl Line {
    fn text(&self) -> String {
        let part = self.part.map_or(String::new(), |part| format!("{:5.1} % of the {}", 100.0 * part, self.of));
        let unit = format!("{}/s", self.unit);
        format!("{:44} {:10.1} {unit:8}  {part}", self.what, self.rate).trim_end().to_owned()
    }

    fn json(&self) -> Value {
        let words: Vec<&str> = self.what.split_whitespace().collect();
        json!({"what": words.join(" "), "rate": self.rate, "unit": self.unit, "part": self.part})
    }
}

/// Seconds that `work` takes.
fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed().as_secs_f64())
}

/// The median of what `measure` answers, after a first answer that does not count.
fn median(repeats: usize, mut measure: impl FnMut() -> Result<f64>) -> Result<f64> {
    measure()?;
    let mut all = (0..repeats.max(1)).map(|_| measure()).collect::<Result<Vec<f64>>>()?;
    all.sort_by(f64::total_cmp);
    Ok(all[all.len() / 2])
}

/// Bytes that are read: far more than any cache.
const READ: usize = 512 << 20;

/// As many, on pages as the library asks for where it can: from larger ones more is read in a second.
fn memory() -> std::io::Result<MmapMut> {
    let mut bytes = MmapMut::map_anon(READ)?;
    #[cfg(target_os = "linux")]
    let _ = bytes.advise(memmap2::Advice::HugePage);
    bytes.fill(1);
    Ok(bytes)
}

/// The prompts as one, and the rows of each.
fn forest(prompts: &[Vec<u32>]) -> (Forest, Vec<Vec<u32>>) {
    let mut builder = Builder::new(0);
    prompts.iter().for_each(|ids| {
        builder.insert(0, ids);
    });
    builder.build()
}

/// Values of the linear maps of all layers: two operations each for a token.
fn maps(config: &Config) -> f64 {
    let layer: usize = Site::ALL.map(|site| site.shape(config)).iter().map(|(rows, cols)| rows * cols).sum();
    (config.n_layers * layer) as f64
}

fn products_rate(isa: Isa, operands: &str) -> f64 {
    let started = Instant::now();
    let (mut all, mut rounds) = (0.0, 1000);
    while started.elapsed().as_secs_f64() < 0.2 {
        all += roof::multiply(isa, operands, rounds).unwrap_or(f64::NAN);
        rounds = (2 * rounds).min(100_000);
    }
    all / started.elapsed().as_secs_f64()
}

/// The sum of what so many threads reach at once; the best of three tries, since others use the machine too.
fn together(threads: usize, rate: impl Fn(usize) -> f64 + Sync) -> f64 {
    let rate = &rate;
    let once = || {
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..threads).map(|thread| scope.spawn(move || rate(thread))).collect();
            all.into_iter().map(|thread| thread.join().unwrap_or(f64::NAN)).sum::<f64>()
        })
    };
    (0..3).map(|_| once()).fold(0.0, f64::max)
}

/// xorshift64 (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32 % n
    }
}
