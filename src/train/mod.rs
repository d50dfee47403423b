//! Token sequences with weights to a LoRA adapter: loss, schedule, optimiser, the step, checkpoints.
//!
//! The caller owns the loop: [`Trainer::step`] is one optimiser step, and progress, dev scores, saving and stopping
//! happen between two of them. Nothing here knows of emotions, labels, templates or text: an answer is a range of
//! token positions. Each part matches PyTorch's and transformers' behaviour where they have one, and says so.
//!
//! Read in this order: `data`, `loss`, `batch`, `epochs`, `schedule`, `options`, `metrics`, `checkpoint`, `frozen`, `trainer`.

mod batch;
mod checkpoint;
pub mod data;
mod epochs;
mod frozen;
pub mod loss;
mod metrics;
pub mod options;
pub mod schedule;
mod trainer;

pub use checkpoint::FORMAT as CHECKPOINT_FORMAT;
pub use data::{Choice, Group, Prompt};
pub use loss::Loss;
pub use options::Options;
pub use schedule::{Rate, Schedule};
pub use trainer::{Best, StepReport, Trainer};
