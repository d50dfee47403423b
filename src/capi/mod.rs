//! The library for C and whatever speaks C: `include/dialoguellm.h` is made of this module's documentation.
//!
//! Every function is checks, one call into the safe library, and outputs; `boundary` has the checks, `handle` what a handle
//! is, `options` how structs grow. One file a handle, in the order a program uses them. No function prints, aborts or
//! installs anything in the process; a panic becomes INTERNAL and spoils the handles of that call.
#![allow(non_camel_case_types)] // the names are C's
#![allow(unsafe_code)] // what C hands over is checked here, and nowhere else
#![allow(clippy::missing_safety_doc)] // the conventions at the head of the header say it for all functions

mod adapter;
mod boundary;
mod cancel;
mod classifier;
mod conversation;
mod dataset;
mod error;
mod generate;
mod handle;
mod model;
mod options;
mod runtime;
mod tools;
mod trainer;
mod version;

pub use adapter::*;
pub use cancel::*;
pub use classifier::*;
pub use conversation::*;
pub use dataset::*;
pub use error::*;
pub use generate::*;
pub use model::*;
pub use runtime::*;
pub use tools::*;
pub use trainer::*;
pub use version::*;

#[cfg(panic = "abort")]
compile_error!("the C interface must unwind: a panic becomes DLLM_STATUS_INTERNAL");
#[cfg(not(target_pointer_width = "64"))]
compile_error!("the C interface has 64-bit lengths and is tested on 64-bit systems only");
