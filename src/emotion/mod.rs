//! Emotion in conversation: labels, templates, dialogues to forests to probabilities, and how good they are.

pub mod baseline;
pub mod framing;
pub mod labels;
pub mod metrics;
pub mod template;

pub use labels::{Labels, Terminator};
pub use template::Template;
