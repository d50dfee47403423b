//! The network as mathematics: LLaMA forward and backward on a token forest, LoRA beside the weight it adapts.
//!
//! Read `forest`, then `engine` (what the layers above ask), then `block` and `llama`. Only attention knows about the
//! forest; every other operation is per token. There is no autograd graph: the call order is the graph.

mod block;
pub mod engine;
pub mod forest;
mod linear;
pub mod llama;
pub mod lora;
mod pass;
mod rope;

pub use engine::{Cache, Cancel, Engine, Learning, Noise, Pass, Target};
pub use forest::{Builder, Forest, Span};
pub use llama::Llama;
pub use lora::Adapter;
