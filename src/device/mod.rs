//! Where tensors live and who works on them.
//!
//! [`Device`] is the whole vocabulary the network is written in: tensors of two kinds, frozen weights, and one method
//! per operation. It knows nothing of layers, adapters' files or forests; a [`Plan`] tells attention who sees whom.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod plan;
#[allow(unsafe_code)] // work is handed to threads as raw slices; every use says why it is sound
mod pool;

pub use cpu::Cpu;
#[cfg(feature = "cuda")]
pub use cuda::Gpu;
pub use dialoguellm_kernels::linear::Sum;
pub use dialoguellm_kernels::{Bits, Isa, roof};
pub use plan::{KeyRun, Plan, QueryRun};
pub use pool::Pool;

use crate::files::safetensors::Tensors;
use crate::{Cancel, Result};
use dialoguellm_kernels::adamw;
use dialoguellm_kernels::attention::Heads;
use dialoguellm_kernels::sample::Draw;
use std::borrow::Cow;
use std::sync::Arc;

/// Rows for a tensor that is to hold `needed` and has too few: half as many again at least, so that one that is extended row
/// by row is seldom copied.
fn room(has: usize, needed: usize) -> usize {
    needed.max(has + has / 2).next_multiple_of(64)
}

/// A row-major matrix on a device.
pub trait Tensor: Send + Sync {
    /// Rows.
    fn rows(&self) -> usize;
    /// Columns, contiguous.
    fn cols(&self) -> usize;
    /// Bytes it occupies.
    fn bytes(&self) -> usize;
}

/// The right-hand matrix of a product.
pub enum Operand<'a, D: Device> {
    /// A frozen weight, as stored.
    Frozen(&'a D::Weight),
    /// `rows x cols` of an adapter's flat parameters from `at`, times `scale`.
    Lora {
        /// All parameters.
        params: &'a D::Params,
        /// First value.
        at: usize,
        /// Rows.
        rows: usize,
        /// Columns.
        cols: usize,
        /// Applied before the rounding to the operand type.
        scale: f32,
    },
}

/// One product `x w` of a sum of products.
pub struct Term<'a, D: Device> {
    /// `[T, k]`.
    pub x: &'a D::Act,
    /// The matrix.
    pub w: Operand<'a, D>,
    /// `OverCols`: x w^T, `OverRows`: x w.
    pub sum: Sum,
}

/// Where a product goes.
pub enum Out<'a, D: Device> {
    /// Rounded once to the operand type.
    Act(&'a mut D::Act),
    /// Kept in the type of sums.
    Real(&'a mut D::Real),
    /// Added to what is there: a residual.
    Add(&'a mut D::Real),
}

/// One of several products that do not need each other: `out = sum of terms + bias`.
pub struct Product<'a, D: Device> {
    /// Where it goes.
    pub out: Out<'a, D>,
    /// What is summed.
    pub terms: Vec<Term<'a, D>>,
    /// What is added to every row.
    pub bias: Option<&'a D::Vector>,
}

/// What attention's backward needs of its forward.
pub struct AttentionSaved<'a, D: Device> {
    /// `[queries, H d]`, rotated.
    pub q: &'a D::Act,
    /// `[keys, K d]`, rotated.
    pub k: &'a D::Act,
    /// `[keys, K d]`.
    pub v: &'a D::Act,
    /// `[queries, H d]`.
    pub o: &'a D::Act,
    /// `[queries, H]`.
    pub lse: &'a D::Real,
}

/// Gradients of attention's inputs; those of q and k still have to be rotated back.
pub struct AttentionGradient<D: Device> {
    /// `[queries, H d]`.
    pub dq: D::Real,
    /// `[keys, K d]`.
    pub dk: D::Real,
    /// `[keys, K d]`.
    pub dv: D::Act,
}

/// Adapter gradients of one LoRA pair: where A's and B's lie in the flat vector, and their shape.
#[derive(Clone, Copy, Debug)]
pub struct PairAt {
    /// First value of A `[rank, inputs]`.
    pub a: usize,
    /// First value of B `[outputs, rank]`.
    pub b: usize,
    /// Rank.
    pub rank: usize,
    /// Input width.
    pub inputs: usize,
    /// Output width.
    pub outputs: usize,
}

impl PairAt {
    /// Values of both.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // a pair is never empty
    pub fn len(&self) -> usize {
        self.rank * (self.inputs + self.outputs)
    }
}

/// A target's row among the rows handed to the head, its token, and in backward d loss / d log p.
#[derive(Clone, Copy, Debug)]
pub struct HeadTarget {
    /// Row of the head's input.
    pub row: u32,
    /// Token.
    pub token: u32,
    /// d loss / d log p; unused in forward.
    pub gradient: f64,
}

/// Tensors and the operations on them. Every operation's equation and rounding is in `kernels/<operation>/mod.rs`.
pub trait Device: Send + Sync + Sized + 'static {
    /// Sums: the residual stream and gradients.
    type Real: Tensor;
    /// GEMM operands.
    type Act: Tensor;
    /// A frozen matrix; a copy is another name for it.
    type Weight: Clone + Send + Sync;
    /// A frozen vector: norm weight, bias.
    type Vector: Send + Sync;
    /// An adapter's parameters, seen by the device.
    type Params: Clone + Send + Sync;
    /// AdamW's moments of an adapter's parameters.
    type Moments: Send + Sync;
    /// cos and sin of every angle, one row a position.
    type RopeTable: Send + Sync;
    /// A [`Plan`], seen by the device.
    type Plan: Send + Sync;

    /// Does `work` in the caller's turn: a pass from its first tensor to its last result. A device that does one pass at a
    /// time lets the next one wait. Failures of an earlier pass are forgotten. After an error no tensor that the work wrote to
    /// is whole.
    /// Errors: those of `work`; OUT_OF_MEMORY where a host has no memory for a tensor; DEVICE_LOST, for good.
    fn turn<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T>;
    /// The first failure since the turn began, if there was one. Operations themselves never fail: after a failure they
    /// do nothing and give tensors of nothing, until it is taken here. Errors: OUT_OF_MEMORY, DEVICE_LOST, INTERNAL.
    fn status(&self) -> Result<()> {
        Ok(())
    }
    /// The operand type's name.
    fn precision(&self) -> &'static str;
    /// The host's instruction level in use.
    fn isa(&self) -> Isa;
    /// Takes a stored matrix `[rows, cols]`; a host device keeps numbers where they are mapped. Where `bits` are given and it is
    /// stored as numbers, whole numbers with scales are made of it. `cancel` is read while values are made or sent.
    fn weight(
        &self,
        tensors: &Arc<Tensors>,
        name: &str,
        shape: [usize; 2],
        bits: Option<Bits>,
        cancel: &Cancel,
    ) -> Result<Self::Weight>;
    /// Takes a stored vector.
    fn vector(&self, tensors: &Arc<Tensors>, name: &str, len: usize) -> Result<Self::Vector>;
    /// Makes an adapter's parameters visible.
    fn params(&self, host: &Arc<Vec<f32>>) -> Self::Params;
    /// The same for [`Device::adamw`] to change, whatever others see.
    fn own_params(&self, host: &Arc<Vec<f32>>) -> Self::Params;
    /// Makes a plan visible.
    fn plan(&self, plan: Plan) -> Self::Plan;
    /// A tensor on the host. Errors: those of [`Device::status`].
    fn read(&self, x: &Self::Real) -> Result<Vec<f32>>;
    /// A tensor of the host's values, rows of `cols` each.
    fn write(&self, values: &[f32], cols: usize) -> Self::Real;
    /// Parameters as they are now. Errors: those of [`Device::status`].
    fn values(&self, params: &Self::Params) -> Result<Arc<Vec<f32>>>;

    /// First and second moments of `len` parameters, zero where none are given. Errors: those of [`Device::status`].
    fn moments(&self, len: usize, from: Option<(&[f32], &[f32])>) -> Result<Self::Moments>;
    /// First and second moments as they are now. Errors: those of [`Device::status`].
    fn read_moments<'a>(&self, moments: &'a Self::Moments) -> Result<[Cow<'a, [f32]>; 2]>;
    /// The norm of a gradient `[1, parameters]`; infinite where its square is no f32. The [`Device::adamw`] after it clips
    /// the norm to `clip` (0: not), and changes nothing where the norm is not finite, or the loss was not, as `finite` says.
    /// Errors: those of [`Device::status`].
    fn gradient_norm(&self, moments: &mut Self::Moments, gradient: &Self::Real, clip: f64, finite: bool)
    -> Result<f64>;
    /// Update number `t`, counted from 1, of parameters and moments by the gradient that was measured last.
    /// Errors: those of [`Device::status`]; nothing is then changed.
    fn adamw(
        &self,
        params: &mut Self::Params,
        moments: &mut Self::Moments,
        gradient: &Self::Real,
        options: &adamw::Options,
        t: u64,
    ) -> Result<()>;

    /// A tensor of unspecified values.
    fn act(&self, rows: usize, cols: usize) -> Self::Act;
    /// A tensor of unspecified values.
    fn real(&self, rows: usize, cols: usize) -> Self::Real;
    /// A tensor of zeros.
    fn zeros(&self, rows: usize, cols: usize) -> Self::Real;
    /// A copy.
    fn copy(&self, x: &Self::Real) -> Self::Real;
    /// Rounds to the operand type.
    fn round(&self, x: &Self::Real) -> Self::Act;
    /// Chosen rows of `x`.
    fn gather(&self, x: &Self::Real, rows: &[u32]) -> Self::Real;
    /// Adds row i of `x` to row `rows[i]` of `y`.
    fn scatter_add(&self, y: &mut Self::Real, x: &Self::Real, rows: &[u32]);
    /// The first `rows` rows of `past`, then `new`.
    fn concat(&self, past: &Self::Act, rows: usize, new: &Self::Act) -> Self::Act;
    /// Writes `new` to rows `at..` of `y`, which gets more rows where it has too few; those before `at` stay as they are,
    /// also where the pass fails.
    fn append(&self, y: &mut Self::Act, at: usize, new: &Self::Act);

    /// `[ids.len(), D]`.
    fn embed(&self, table: &Self::Weight, ids: &[u32]) -> Self::Real;
    /// Adds `alpha / sqrt(T D)` times a uniform number in [-1, 1) to every value; `scale` is that factor a row.
    fn add_noise(&self, x: &mut Self::Real, keys: &[u64], scale: &[f32]);
    /// Row i of `x` becomes `share[i]` of itself and 1 - `share[i]` of row i of `base`.
    fn blend(&self, x: &mut Self::Real, base: &Self::Real, share: &[f32]);
    /// The norm and every row's 1 / rms `[T, 1]`.
    fn rmsnorm(&self, x: &Self::Real, w: &Self::Vector, eps: f64) -> (Self::Act, Self::Real);
    /// `dx += d norm`.
    fn rmsnorm_backward(
        &self,
        dx: &mut Self::Real,
        dy: &Self::Real,
        x: &Self::Real,
        w: &Self::Vector,
        rstd: &Self::Real,
    );
    /// `out = sum of terms + bias`.
    fn matmul(&self, out: Out<Self>, terms: &[Term<Self>], bias: Option<&Self::Vector>);
    /// Several of these, in any order or at once.
    fn matmuls(&self, products: Vec<Product<Self>>) {
        products.into_iter().for_each(|Product { out, terms, bias }| self.matmul(out, &terms, bias));
    }
    /// cos and sin `[positions, d / 2]`, row-major.
    fn rope_table(&self, cos: &[f64], sin: &[f64], half: usize) -> Self::RopeTable;
    /// Rotates every head of every row by the table's row `at[i]`.
    fn rope(&self, x: &Self::Real, table: &Self::RopeTable, at: &[u32]) -> Self::Act;
    /// The inverse rotation.
    fn rope_backward(&self, dy: &Self::Real, table: &Self::RopeTable, at: &[u32]) -> Self::Act;
    /// The output `[queries, H d]` and the log-sum-exp of the scores `[queries, H]`. Rows of `k` and `v` behind the plan's keys
    /// are not read.
    fn attention(
        &self,
        q: &Self::Act,
        k: &Self::Act,
        v: &Self::Act,
        heads: Heads,
        plan: &Self::Plan,
    ) -> (Self::Act, Self::Real);
    /// Gradients of q, k, v.
    fn attention_backward(
        &self,
        d_o: &Self::Act,
        saved: AttentionSaved<Self>,
        heads: Heads,
        plan: &Self::Plan,
    ) -> AttentionGradient<Self>;
    /// `silu(gate) * up`.
    fn swiglu(&self, gate: &Self::Act, up: &Self::Act) -> Self::Act;
    /// What [`Device::swiglu`] gives, and the gradients of gate and up.
    fn swiglu_backward(&self, dh: &Self::Act, gate: &Self::Act, up: &Self::Act) -> [Self::Act; 3];
    /// LoRA's dropout: row i is masked by `keys[i]`, kept values are divided by 1 - p.
    fn dropout(&self, x: &Self::Act, keys: &[u64], p: f32) -> Self::Act;
    /// `dx += mask(dy)` with forward's mask.
    fn dropout_add(&self, dx: &mut Self::Real, dy: &Self::Real, keys: &[u64], p: f32);
    /// `dA += du^T x` and `dB += dy^T us`, of (x, us) and (dy, du), in an adapter's flat gradient `[1, parameters]`.
    fn lora_gradient(
        &self,
        gradient: &mut Self::Real,
        at: PairAt,
        x_us: (&Self::Act, &Self::Act),
        dy_du: (&Self::Act, &Self::Act),
    );

    /// log p of every target and every row's log-sum-exp; the logits are never stored whole.
    fn head(&self, h: &Self::Act, w: &Self::Weight, targets: &[HeadTarget]) -> (Vec<f64>, Vec<f64>);
    /// d loss / d h, given the log-sum-exps of forward.
    fn head_backward(&self, h: &Self::Act, w: &Self::Weight, lse: &[f64], targets: &[HeadTarget]) -> Self::Real;
    /// The token that is drawn from the logits of the one row `h`; `None` where they are NaN or infinite.
    fn draw(&self, h: &Self::Act, w: &Self::Weight, draw: &Draw) -> Option<u32>;
    /// Logits `[rows, V]`.
    fn logits(&self, h: &Self::Act, w: &Self::Weight) -> Vec<f32>;
}
