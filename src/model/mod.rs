//! The network as mathematics: LLaMA forward and backward on a token forest, LoRA beside the weight it adapts.

pub mod forest;

pub use forest::{Builder, Forest, Span};
