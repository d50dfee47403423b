//! What the layers above ask of a model, whatever its number type and device.

use super::{Adapter, Forest};
use crate::Result;
use crate::files::config::Config;
use dialoguellm_kernels::Isa;
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A question to a row: how likely is `token` next?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// Row of the forest.
    pub row: u32,
    /// The token whose probability after that row is asked for.
    pub token: u32,
}

/// A request to stop, readable and settable from any thread and from a signal handler.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks whatever watches this to stop at its next layer.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
    /// Lets the next call run again.
    pub fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
    /// Whether a stop was asked for.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
    /// CANCELLED once a stop was asked for.
    pub fn check(&self) -> Result<()> {
        if self.is_set() {
            return Err(crate::Error::new(crate::Code::Cancelled, "stopped, as asked"));
        }
        Ok(())
    }
}

/// The randomness of one training step: masks depend on these and on (module, sample, position, channel) only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noise {
    /// The run's seed.
    pub seed: u64,
    /// The optimiser step.
    pub step: u64,
    /// Probability that an input channel of a LoRA pair is dropped; 0 for none.
    pub dropout: f32,
    /// NEFTune's alpha (Jain et al. 2023, arXiv 2310.05914): uniform noise of +-alpha / sqrt(T D) on the embeddings; 0 for none.
    pub neftune: f32,
}

/// One pass over a forest.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// The tokens.
    pub forest: &'a Forest,
    /// LoRA pairs beside the frozen weights, if any.
    pub adapter: Option<&'a Adapter>,
    /// Read once a layer.
    pub cancel: &'a Cancel,
}

/// What a gradient pass needs beyond the pass itself.
#[derive(Clone, Copy, Debug)]
pub struct Learning {
    /// Dropout and NEFTune; `None` computes what inference computes.
    pub noise: Option<Noise>,
    /// Bytes of activations that may be kept for backward; layers beyond it are computed again.
    pub activation_bytes: usize,
}

/// Keys and values of a run of tokens, one row a token, for every layer. Made and read by one engine only.
pub struct Cache {
    pub(crate) rows: usize,
    pub(crate) store: Box<dyn Any + Send + Sync>,
}

impl Cache {
    /// Tokens held.
    pub fn len(&self) -> usize {
        self.rows
    }
    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }
    /// Forgets all rows after the first `rows`; nothing is computed.
    pub fn truncate(&mut self, rows: usize) {
        self.rows = self.rows.min(rows);
    }
}

/// d loss / d log p of every target, given the log p of every target.
pub type LossGradient<'a> = dyn FnMut(&[f32]) -> Result<Vec<f32>> + 'a;

/// A LLaMA that is open: immutable, shared by any number of threads.
pub trait Engine: Send + Sync {
    /// The network's shape.
    fn config(&self) -> &Config;
    /// `f32` or `bf16`: the type of GEMM operands.
    fn precision(&self) -> &'static str;
    /// The instruction level in use.
    fn isa(&self) -> Isa;
    /// Calls `task(i)` for every `i < tasks`, on all threads that work for this engine.
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(task);
    }
    /// An empty cache.
    fn cache(&self) -> Cache;
    /// log p(token | path to row), natural logarithm, for every target, in their order.
    /// The forest's roots continue the first `forest.cached()` rows of `cache`.
    fn log_probs(&self, pass: &Pass, cache: Option<&Cache>, targets: &[Target]) -> Result<Vec<f32>>;
    /// Logits `[rows, V]` of chosen rows, which rise.
    fn logits(&self, pass: &Pass, cache: Option<&Cache>, rows: &[u32]) -> Result<Vec<f32>>;
    /// Appends the keys and values of a forest of one span to `cache`, whose length is the forest's `cached()`, and
    /// returns the logits `[rows, V]` of chosen rows, which rise. On an error or a cancel the cache is as it was.
    fn extend(&self, pass: &Pass, cache: &mut Cache, rows: &[u32]) -> Result<Vec<f32>>;
    /// Adds d loss / d adapter to `gradient` (`[adapter.params().len()]`) and returns every target's log p.
    fn gradient(
        &self,
        pass: &Pass,
        targets: &[Target],
        learning: &Learning,
        loss: &mut LossGradient,
        gradient: &mut [f32],
    ) -> Result<Vec<f32>>;
}
