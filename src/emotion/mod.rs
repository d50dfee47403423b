//! Emotion in conversation: labels, templates, dialogues to forests to probabilities, and how good they are.

pub mod baseline;
pub mod metrics;
