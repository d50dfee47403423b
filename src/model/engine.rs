//! What the layers above ask of a model, whatever its number type and device.

use super::{Adapter, Forest};
use crate::files::config::Config;
use crate::{Cancel, Result};
use dialoguellm_kernels::sample::Draw;
use dialoguellm_kernels::{Isa, adamw};
use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

/// A question to a row: how likely is `token` next?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// Row of the forest.
    pub row: u32,
    /// The token whose probability after that row is asked for.
    pub token: u32,
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
pub struct Learning<'a> {
    /// Dropout and NEFTune; `None` computes what inference computes.
    pub noise: Option<Noise>,
    /// Bytes of activations that may be kept for backward; layers beyond it are computed again.
    pub activation_bytes: usize,
    /// Where the pass begins; `None` for the embedding.
    pub entering: Option<Entering<'a>>,
}

/// Rows as they enter a layer, for a pass that begins there.
#[derive(Clone, Copy, Debug)]
pub struct Entering<'a> {
    /// The layer, counted from 0; no pair is below it.
    pub layer: usize,
    /// `[T, hidden_size]`, as [`Engine::entering`] gave them.
    pub rows: &'a [f32],
}

/// Embeddings on the line from another text to the forest's own.
#[derive(Clone, Copy, Debug)]
pub struct Path<'a> {
    /// The other text: a token for every row.
    pub base: &'a [u32],
    /// How much of a row's embedding is its own, from 0 to 1; the rest is its base's.
    pub share: &'a [f32],
}

/// What [`Engine::slopes`] finds.
#[derive(Clone, Debug, PartialEq)]
pub struct Slopes {
    /// log p of every target.
    pub log_probs: Vec<f32>,
    /// For every row, the derivative of the function by the row's share.
    pub rows: Vec<f64>,
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

/// What becomes of the cache that a pass continues.
pub enum Continued<'a> {
    /// It stays as it is.
    Read(&'a Cache),
    /// The pass's keys and values are appended, as by [`Engine::extend`].
    Extended(&'a mut Cache),
}

/// AdamW's first and second moments, one value a parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments<'a> {
    /// First.
    pub m: Cow<'a, [f32]>,
    /// Second.
    pub v: Cow<'a, [f32]>,
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
    /// An empty cache.
    fn cache(&self) -> Cache;
    /// log p(token | path to row), natural logarithm, for every target, in their order.
    /// The forest's roots continue the first `forest.cached()` rows of `cache`.
    fn log_probs(&self, pass: &Pass, cache: Option<&Cache>, targets: &[Target]) -> Result<Vec<f32>>;
    /// Logits `[rows, V]` of chosen rows, which rise.
    fn logits(&self, pass: &Pass, cache: Option<&Cache>, rows: &[u32]) -> Result<Vec<f32>>;
    /// What enters layer `layer`, counted from 0: every row's residual `[T, hidden_size]`, made by the embedding and the layers
    /// below. Errors: INVALID_ARGUMENT for a layer that the model does not have.
    fn entering(&self, pass: &Pass, layer: usize) -> Result<Vec<f32>>;
    /// Appends the keys and values of a forest of one span to `cache`, whose length is the forest's `cached()`. On an error
    /// or a cancel the cache is as it was.
    fn extend(&self, pass: &Pass, cache: &mut Cache) -> Result<()>;
    /// Draws the token after the last row of a forest of one span. Errors: NUMERIC for logits that are NaN or infinite; a
    /// cache is then as it was.
    fn draw(&self, pass: &Pass, cache: Continued, draw: &Draw) -> Result<u32>;

    /// A learner that begins with the adapter's values and the moments, or zero ones.
    fn learner(&self, adapter: &Adapter, moments: Option<&Moments>) -> Result<Box<dyn Learner>>;
    /// Adds d loss / d adapter to the gradient of a learner of this engine and returns every target's log p. The adapter of
    /// the pass says what is trained; its values are the learner's. On an error the gradient is unspecified until the next
    /// step begins. Errors: INVALID_ARGUMENT for entering rows of another number, or above the adapter's lowest layer, or with
    /// NEFTune, whose noise is the embedding's; as `log_probs`.
    fn learn(
        &self,
        learner: &mut dyn Learner,
        pass: &Pass,
        targets: &[Target],
        learning: &Learning,
        loss: &mut LossGradient,
    ) -> Result<Vec<f32>>;
    /// How a function of the targets' log p changes as rows become themselves: `slope` gives its derivative by every log p.
    /// Nothing is trained or dropped. Errors: INVALID_ARGUMENT for a path of another length than the forest; as `log_probs`.
    fn slopes(&self, pass: &Pass, path: &Path, targets: &[Target], slope: &mut LossGradient) -> Result<Slopes>;
}

/// An adapter that is being trained, where its engine computes: parameters, AdamW's moments, and a step's gradient.
/// Errors: those of a GPU; where one says nothing else, nothing is changed.
pub trait Learner: Send + Sync {
    /// Begins a step: the gradient is zero.
    fn begin(&mut self) -> Result<()>;
    /// The gradient's Euclidean norm; infinite where its square is no f32. The update after it scales the norm down to `clip`
    /// (0: never), and changes nothing where the norm is not finite, or the loss was not, as `finite` says.
    fn norm(&mut self, clip: f64, finite: bool) -> Result<f64>;
    /// Update number `t`, counted from 1, by the gradient whose norm was taken.
    fn update(&mut self, options: &adamw::Options, t: u64) -> Result<()>;
    /// The gradient so far.
    fn gradient(&self) -> Result<Vec<f32>>;
    /// The parameters as they are now.
    fn values(&self) -> Result<Arc<Vec<f32>>>;
    /// The moments as they are now.
    fn moments(&self) -> Result<Moments<'_>>;
    /// For the engine that made it.
    fn as_any(&mut self) -> &mut dyn Any;
}
