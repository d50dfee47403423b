//! Emotion in conversation: a LLaMA that fits in your process.
//!
//! Read the modules in this order; each uses only those above it.
//!
//! - `error`: what can go wrong, with the numbers
//! - `files`: bytes on disk to checked values (safetensors, config, tokenizer, adapters, dialogues)
//! - `device`: where tensors live and who works on them
//! - `model`: the network on a token forest, forward and backward
//! - `emotion`: dialogues to probabilities over labels
#![deny(unsafe_code)]

pub mod emotion;
pub mod device;
pub mod error;
pub mod files;
pub mod model;

pub use error::{Code, Error, Result};
