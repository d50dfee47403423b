//! Emotion in conversation: a LLaMA that fits in your process.
//!
//! Read the modules in this order; each uses only those above it.
//!
//! - `error`: what can go wrong, with the numbers
//! - `cancel`: a request to stop
//! - `files`: bytes on disk to checked values (safetensors, config, tokenizer, adapters, dialogues)
//! - `device`: where tensors live and who works on them
//! - `model`: the network on a token forest, forward and backward
//! - `conversation`: one token timeline, kept in the KV cache
//! - `train`: token sequences to an adapter
//! - `emotion`: dialogues to probabilities over labels
//! - `capi`: the same, for C
#![deny(unsafe_code)]

mod cancel;
#[cfg(feature = "capi")]
pub mod capi;
pub mod conversation;
pub mod device;
pub mod emotion;
pub mod error;
#[cfg(test)]
mod fake;
pub mod files;
pub mod model;
pub mod train;

pub use cancel::Cancel;
pub use error::{Code, Error, Result};

/// The README's program compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
