//! The arithmetic of dialoguellm: slices in, slices out.
//!
//! One folder per operation holds its equation, its f64 reference, its portable form and its faster forms.
//! Nothing here knows of models, files or threads; a caller splits the work and hands each thread its rows.
//!
//! Shape letters, everywhere: T tokens, D model width, H query heads, K key/value heads, d head size,
//! F feed-forward width, V vocabulary, R LoRA rank. Shapes are storage order, last index contiguous.

pub mod adamw;
pub mod attention;
pub mod cross_entropy;
pub mod cuda;
pub mod dropout;
pub mod elem;
pub mod embedding;
pub mod isa;
pub mod linear;
pub mod matrix;
#[cfg(test)]
mod proof;
pub mod quantize;
pub mod rmsnorm;
pub mod roof;
pub mod rope;
pub mod sample;
mod stamp;
pub mod swiglu;
mod table;
pub mod tensor;
#[doc(hidden)]
pub mod testing;

pub use elem::{Elem, Real};
pub use half::{bf16, f16};
pub use isa::Isa;
pub use matrix::{Bits, Dtype, Matrix};
pub use table::Kernels;
