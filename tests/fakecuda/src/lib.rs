//! A `libcuda.so` whose device is the PTX interpreter: what calls the driver runs unchanged where there is no GPU.
//!
//! A program finds it as `libcuda.so.1` in a folder of `LD_LIBRARY_PATH`. One device, compute capability 8.0, that
//! answers as driver 13.0. The environment, read once:
//!
//! | variable | meaning |
//! |---|---|
//! | `FAKECUDA_MEMORY` | the device's bytes; an allocation past them is out of memory (default 4 GiB) |
//! | `FAKECUDA_CHECK` | `1`: launches run under the checker; its report goes to stderr, the launch fails |
//! | `FAKECUDA_FAIL` | `alloc:7`, `launch:12`, `product:1`, `copy:3`, `sync:2`, `graph:4`: that call fails; `class:n:code` names the code |
//!
//! After a failed launch or an illegal address the device is lost: every later call answers the same code. Handles and
//! addresses of the device that are not its own are error codes, never a crash.
//!
//! The same library under the name `libcublasLt.so.13` is a cuBLASLt on this driver, as far as one product goes.
//!
//! Not here: images for real devices (`CUDA_ERROR_NO_BINARY_FOR_GPU`, as a driver answers that finds none of its own),
//! managed memory, textures, peers, cooperative launches, clusters.

mod blaslt;
mod codes;
mod driver;
mod exports;
mod failures;

pub use blaslt::*;
pub use exports::*;
