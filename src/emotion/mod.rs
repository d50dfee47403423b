//! Emotion in conversation: labels, templates, dialogues to forests to probabilities, and how good they are.
//!
//! Read in this order: `labels`, `template`, `framing`, `prompts`, then `metrics` and `baseline`.

pub mod baseline;
pub mod framing;
pub mod labels;
pub mod metrics;
pub mod prompts;
mod spread;
pub mod template;

pub use labels::{Labels, Terminator};
pub use prompts::Prompter;
pub use template::Template;
