//! For tests of the layers above the model: an engine whose mathematics fits on a page, and which can be told to fail.
//!
//! h_t = sum over the path of emb(token) (1 + position / 64) / 2^age,  logits = U (h + scale B (A drop(h))): context,
//! positions, cache, adapter and dropout all matter, and the gradient with respect to A and B is exact. All sums f64.

use crate::device::Cpu;
use crate::files::adapter::{LoraConfig, Targets};
use crate::files::{Config, Rope, Scaling, Tokenizer};
use crate::model::engine::{
    Cache, Continued, Engine, Learner, Learning, LossGradient, Moments, Noise, Pass, Path, Slopes, Target,
};
use crate::model::learner::Learned;
use crate::model::{Adapter, Model};
use crate::{Code, Error, Result};
use dialoguellm_kernels::sample::{self, Draw};
use dialoguellm_kernels::{Isa, dropout};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

pub(crate) const V: usize = 13;
pub(crate) const D: usize = 6;

/// What the next calls of `learn`, `extend` or `draw` do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Event {
    Fine,
    /// Cancelled after half of the work was done.
    Cancelled,
    /// In `draw`, a logit.
    NanLoss,
    NanGradient,
}

/// One call as it came.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Call {
    pub tokens: usize,
    pub noise: Option<Noise>,
}

/// What tests and the engine share.
#[derive(Clone, Default)]
pub(crate) struct Script {
    pub events: Arc<Mutex<VecDeque<Event>>>,
    pub calls: Arc<Mutex<Vec<Call>>>,
}

impl Script {
    pub fn then(&self, events: &[Event]) {
        self.events.lock().unwrap().extend(events);
    }
    /// Tokens computed since the last call of this.
    pub fn cost(&self) -> usize {
        self.calls.lock().unwrap().drain(..).map(|call| call.tokens).sum()
    }
    fn next(&self, pass: &Pass, noise: Option<Noise>) -> Result<Event> {
        pass.cancel.check()?;
        self.calls.lock().unwrap().push(Call { tokens: pass.forest.len(), noise });
        Ok(self.events.lock().unwrap().pop_front().unwrap_or(Event::Fine))
    }
}

/// A tokenizer of one word; nothing here asks it anything.
const TOKENIZER: &str = r#"{"version":"1.0","model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}"#;

struct Fake {
    config: Config,
    precision: &'static str,
    script: Script,
    /// Keeps what is trained.
    device: Arc<Cpu<f32>>,
}

pub(crate) fn config() -> Config {
    Config {
        vocab_size: V,
        hidden_size: D,
        intermediate_size: 8,
        n_layers: 1,
        n_heads: 1,
        n_kv_heads: 1,
        head_dim: D,
        rms_norm_eps: 1e-6,
        rope: Rope { theta: 1e4, scaling: Scaling::None },
        max_position_embeddings: 4096,
        tie_word_embeddings: false,
        attention_bias: false,
        mlp_bias: false,
        bos: vec![],
        eos: vec![],
        pad: None,
    }
}

pub(crate) fn model() -> (Arc<Model>, Script) {
    model_as("base", "f32")
}

pub(crate) fn model_as(fingerprint: &str, precision: &'static str) -> (Arc<Model>, Script) {
    let script = Script::default();
    let engine =
        Fake { config: config(), precision, script: script.clone(), device: Arc::new(Cpu::new(2, None).unwrap()) };
    let tokenizer = Tokenizer::from_bytes(TOKENIZER.as_bytes()).unwrap();
    (Arc::new(Model::from_parts(tokenizer, Box::new(engine), fingerprint.to_owned())), script)
}

/// Rank 2 on one weight, B not zero.
pub(crate) fn adapter(dropout: f64) -> Adapter {
    let targets = Targets::Names(vec!["q_proj".to_owned()]);
    let lora = LoraConfig { rank: 2, alpha: 4.0, dropout, targets, ..LoraConfig::default() };
    let mut adapter = Adapter::new(lora, &config(), 5).unwrap();
    adapter.params_mut().iter_mut().enumerate().for_each(|(i, p)| *p = constant(3, i) as f32);
    adapter
}

/// A fixed number in -1 .. 1.
fn constant(table: u64, index: usize) -> f64 {
    dropout::key(9, table, 0, 0, index as u64) as i64 as f64 / (1u64 << 63) as f64
}

type Rows = Vec<[f64; D]>;

/// One row on its way: what backward needs.
struct Row {
    /// What A sees.
    x: [f64; D],
    ax: Vec<f64>,
    logits: Vec<f64>,
}

fn matvec(w: impl Fn(usize, usize) -> f64, rows: usize, x: &[f64]) -> Vec<f64> {
    (0..rows).map(|i| x.iter().enumerate().map(|(j, x)| w(i, j) * x).sum()).collect()
}

fn output(token: usize, d: usize) -> f64 {
    2.0 * constant(2, token * D + d)
}

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = max + logits.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
    logits.iter().map(|x| x - lse).collect()
}

impl Fake {
    /// Appends to a cache, or begins to.
    fn grow(&self, pass: &Pass, cache: &mut Cache, event: Event) -> Result<()> {
        assert_eq!(pass.forest.cached(), cache.len());
        let new = self.states(pass, Some(cache));
        let store = cache.store.downcast_mut::<Rows>().unwrap();
        store.truncate(cache.rows);
        store.extend(new);
        if event == Event::Cancelled {
            return Err(Error::new(Code::Cancelled, "stopped, as asked"));
        }
        cache.rows = store.len();
        Ok(())
    }

    /// h of every row.
    fn states(&self, pass: &Pass, cache: Option<&Cache>) -> Rows {
        let forest = pass.forest;
        let mut all: Rows = Vec::new();
        for span in forest.spans() {
            let mut h = match (span.parent, forest.cached()) {
                (Some(parent), _) => all[forest.spans()[parent].rows.end - 1],
                (None, 0) => [0.0; D],
                (None, cached) => {
                    let cache = cache.expect("a forest that continues a cache comes with one");
                    assert!(cached <= cache.len());
                    cache.store.downcast_ref::<Rows>().unwrap()[cached - 1]
                }
            };
            for (offset, row) in span.rows.clone().enumerate() {
                let (token, position) = (forest.tokens()[row] as usize, span.start + offset);
                let place = 1.0 + position as f64 / 64.0;
                h = std::array::from_fn(|d| h[d] / 2.0 + constant(1, token * D + d) * place);
                all.push(h);
            }
        }
        all
    }

    /// A row with the pass's adapter.
    fn row(&self, pass: &Pass, state: &[f64; D], row: u32) -> Row {
        match pass.adapter {
            None => Row { x: *state, ax: vec![], logits: matvec(output, V, state) },
            Some(adapter) => self.adapted(pass, (adapter, adapter.params()), state, row, None),
        }
    }

    fn adapted(
        &self,
        pass: &Pass,
        (adapter, p): (&Adapter, &[f32]),
        state: &[f64; D],
        row: u32,
        noise: Option<Noise>,
    ) -> Row {
        let at = adapter.slots()[0].at;
        let x = masked(pass, *state, row, noise);
        let ax = matvec(|r, d| f64::from(p[at.a + r * D + d]), at.rank, &x);
        let bax = matvec(|d, r| f64::from(p[at.b + d * at.rank + r]), D, &ax);
        let h: Vec<f64> = (0..D).map(|d| state[d] + adapter.slots()[0].spec.scale * bax[d]).collect();
        Row { x, ax, logits: matvec(output, V, &h) }
    }
}

fn masked(pass: &Pass, mut x: [f64; D], row: u32, noise: Option<Noise>) -> [f64; D] {
    let Some(noise) = noise else { return x };
    let span = pass.forest.spans().iter().find(|span| span.rows.contains(&(row as usize))).unwrap();
    let position = (span.start + row as usize - span.rows.start) as u64;
    let key = dropout::key(noise.seed, noise.step, 0, span.sample, position);
    for (d, x) in x.iter_mut().enumerate() {
        let keeps = dropout::keeps(key, d as u32, noise.dropout);
        *x = if keeps { *x / (1.0 - f64::from(noise.dropout)) } else { 0.0 };
    }
    x
}

impl Engine for Fake {
    fn config(&self) -> &Config {
        &self.config
    }
    fn precision(&self) -> &'static str {
        self.precision
    }
    fn isa(&self) -> Isa {
        Isa::best(None)
    }
    fn cache(&self) -> Cache {
        Cache { rows: 0, store: Box::new(Rows::new()) }
    }
    fn log_probs(&self, pass: &Pass, cache: Option<&Cache>, targets: &[Target]) -> Result<Vec<f32>> {
        self.script.next(pass, None)?;
        let states = self.states(pass, cache);
        let of = |t: &Target| self.row(pass, &states[t.row as usize], t.row).logits;
        Ok(targets.iter().map(|t| log_softmax(&of(t))[t.token as usize] as f32).collect())
    }
    fn logits(&self, pass: &Pass, cache: Option<&Cache>, rows: &[u32]) -> Result<Vec<f32>> {
        self.script.next(pass, None)?;
        let states = self.states(pass, cache);
        let of = |&row: &u32| self.row(pass, &states[row as usize], row).logits;
        Ok(rows.iter().flat_map(of).map(|x| x as f32).collect())
    }
    fn entering(&self, _: &Pass, _: usize) -> Result<Vec<f32>> {
        Err(Error::internal("no test of this layer asks what enters a layer"))
    }
    fn extend(&self, pass: &Pass, cache: &mut Cache) -> Result<()> {
        let event = self.script.next(pass, None)?;
        self.grow(pass, cache, event)
    }
    fn draw(&self, pass: &Pass, cache: Continued, draw: &Draw) -> Result<u32> {
        let event = self.script.next(pass, None)?;
        let last = pass.forest.len() - 1;
        let drawn = |cache: &Cache| {
            let logits = self.row(pass, &self.states(pass, Some(cache))[last], last as u32).logits;
            let mut logits: Vec<f32> = logits.into_iter().map(|x| x as f32).collect();
            if event == Event::NanLoss {
                logits[0] = f32::NAN;
            }
            sample::draw(&mut logits, draw).ok_or_else(|| Error::new(Code::Numeric, "the logits are NaN"))
        };
        match cache {
            Continued::Read(cache) => drawn(cache),
            Continued::Extended(cache) => {
                let token = drawn(cache)?;
                self.grow(pass, cache, event).map(|()| token)
            }
        }
    }
    fn learner(&self, adapter: &Adapter, moments: Option<&Moments>) -> Result<Box<dyn Learner>> {
        Ok(Box::new(Learned::new(&self.device, adapter, moments)?))
    }
    fn learn(
        &self,
        learner: &mut dyn Learner,
        pass: &Pass,
        targets: &[Target],
        learning: &Learning,
        loss: &mut LossGradient,
    ) -> Result<Vec<f32>> {
        let event = self.script.next(pass, learning.noise)?;
        let (params, gradient) = Learned::step(learner, &self.device)?;
        let (adapter, gradient) = ((pass.adapter.unwrap(), params.as_slice()), gradient.values_mut());
        let states = self.states(pass, None);
        let row = |t: &Target| self.adapted(pass, adapter, &states[t.row as usize], t.row, learning.noise);
        let rows: Vec<Row> = targets.iter().map(row).collect();
        let mut log_probs: Vec<f32> =
            targets.iter().zip(&rows).map(|(t, row)| log_softmax(&row.logits)[t.token as usize] as f32).collect();
        if event == Event::NanLoss {
            log_probs[0] = f32::NAN;
        }
        let slopes = loss(&log_probs)?;
        for ((t, row), slope) in targets.iter().zip(&rows).zip(slopes) {
            backward(adapter, t.token as usize, row, f64::from(slope), gradient);
        }
        match event {
            Event::NanGradient => gradient[0] = f32::NAN,
            Event::Cancelled => return Err(Error::new(Code::Cancelled, "stopped, as asked")),
            _ => {}
        }
        Ok(log_probs)
    }
    fn slopes(&self, _: &Pass, _: &Path, _: &[Target], _: &mut LossGradient) -> Result<Slopes> {
        Err(Error::internal("no test of this layer asks for slopes"))
    }
}

/// d log p(token) / d logits = onehot - p;  dh = U^T dlogits;  dB = s dh (A x)^T;  dA = s B^T dh x^T
fn backward((adapter, params): (&Adapter, &[f32]), token: usize, row: &Row, slope: f64, gradient: &mut [f32]) {
    let at = adapter.slots()[0].at;
    let scale = adapter.slots()[0].spec.scale * slope;
    let p: Vec<f64> = log_softmax(&row.logits).iter().map(|x| x.exp()).collect();
    let dlogits: Vec<f64> = (0..V).map(|v| f64::from(u8::from(v == token)) - p[v]).collect();
    let dh = matvec(|d, v| output(v, d), D, &dlogits);
    let bt_dh = matvec(|r, d| f64::from(params[at.b + d * at.rank + r]), at.rank, &dh);
    for r in 0..at.rank {
        for d in 0..D {
            gradient[at.a + r * D + d] += (scale * bt_dh[r] * row.x[d]) as f32;
            gradient[at.b + d * at.rank + r] += (scale * dh[d] * row.ax[r]) as f32;
        }
    }
}
