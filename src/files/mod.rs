//! Bytes on disk to checked values, and back. Nothing here knows of models as maths, of devices or of training.
pub mod dialogues;
