//! Emotion in conversation: labels, templates, dialogues to forests to probabilities, and how good they are.
//!
//! Read in this order: `labels`, `template`, `similar`, `framing` and `prompts` make token sequences; `card`, `classifier`, `live` and
//! `written` ask the model; `metrics` and `baseline` judge the answers, `calibration` and `trust`
//! their probabilities; `recipe`, `shots`, `curriculum` and `run` train.

pub mod baseline;
pub mod calibration;
pub mod card;
pub mod classifier;
mod curriculum;
pub mod framing;
pub mod labels;
pub mod live;
pub mod metrics;
pub mod prompts;
pub mod recipe;
pub mod run;
pub mod shots;
mod similar;
mod spread;
pub mod template;
#[cfg(test)]
mod testing;
pub mod trust;
pub mod written;

pub use card::Card;
pub use classifier::{Bulk, Classifier, Influence, Integral, Method, Why};
pub use labels::{Labels, Terminator};
pub use live::Live;
pub use prompts::Prompter;
pub use recipe::Recipe;
pub use run::Run;
pub use template::Template;
pub use written::{Decode, Written};
