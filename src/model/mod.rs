//! The network as mathematics: LLaMA forward and backward on a token forest, LoRA beside the weight it adapts.
//!
//! Read `forest`, then `engine` (what the layers above ask), then `block` and `llama`. Only attention knows about the
//! forest; every other operation is per token. There is no autograd graph: the call order is the graph.

mod block;
pub mod engine;
pub mod forest;
pub(crate) mod learner;
mod linear;
pub mod llama;
pub mod lora;
pub mod merge;
mod pass;
pub mod quantize;
mod rope;
pub mod weights;

pub use engine::{Cache, Engine, Learning, Noise, Pass, Target};
pub use forest::{Builder, Forest, Span};
pub use llama::Llama;
pub use lora::Adapter;
pub use weights::Weights;

#[cfg(feature = "cuda")]
use crate::Code;
use crate::device::{Bits, Cpu, Pool};
use crate::files::{Access, Config, Tensors, Tokenizer, compressed, fingerprint};
use crate::{Cancel, Error, Result};
use dialoguellm_kernels::{Isa, bf16};
use std::path::Path;
use std::sync::Arc;

/// The type of GEMM operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Everything in f32: parity with transformers and PEFT is proven in it.
    F32,
    /// Operands rounded to bf16, sums in f32.
    Bf16,
    /// The same, of weights that are whole numbers of 8 bits with a scale for each output: half the memory of bf16. Where
    /// x86-64 multiplies such (AVX2 and above), inputs of products are rounded to whole numbers too: to 14 bits of a row's
    /// largest or, with VNNI, to steps of a 32nd of a row's mean magnitude; so are gradients that are propagated through them, to
    /// 14 bits or to steps of a 16th.
    Int8,
    /// The same with linear maps of 4 bits and a scale for every 32 inputs, whose inputs stay bf16 with AVX-512 BF16 and else have
    /// 14 bits, embedding and head of 8 bits.
    Int4,
}

impl Precision {
    /// What weights become that are stored as numbers; weights that are whole numbers in their folder stay as they are.
    pub fn bits(self) -> Option<Bits> {
        match self {
            Precision::F32 | Precision::Bf16 => None,
            Precision::Int8 => Some(Bits::Eight),
            Precision::Int4 => Some(Bits::Four),
        }
    }
    /// Bytes of a value of an operand.
    pub fn operand_bytes(self) -> usize {
        if self == Precision::F32 { 4 } else { 2 }
    }
}

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the GPU where there is one that can do what is asked, else on the CPU; [`Model::device`] tells.
    Auto,
    /// On the CPU.
    Cpu,
    /// On the machine's first NVIDIA GPU, in bf16.
    Cuda,
}

/// How to open a model. The default: a GPU if there is one, bf16, one thread a core, every instruction there is, weights
/// mapped.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Where to compute.
    pub device: Place,
    /// The type of GEMM operands.
    pub precision: Precision,
    /// Threads, the caller's included; 0 for one per core.
    pub threads: usize,
    /// Instructions to stay at or below; `None` reads `DLLM_ISA`.
    pub isa: Option<Isa>,
    /// Map the weights, or read them into memory (immune to a file that shrinks while it is open).
    pub access: Access,
    /// Threads that several models share; `threads` is not read then.
    pub pool: Option<Arc<Pool>>,
    /// Stops opening, between its parts.
    pub cancel: Cancel,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            device: Place::Auto,
            precision: Precision::Bf16,
            threads: 0,
            isa: None,
            access: Access::Mapped,
            pool: None,
            cancel: Cancel::default(),
        }
    }
}

/// An open model: weights, tokenizer and shape. Immutable; share it freely.
pub struct Model {
    tokenizer: Tokenizer,
    engine: Box<dyn Engine>,
    device: String,
    fingerprint: String,
    origin: Option<String>,
}

impl Model {
    /// Opens a Hugging Face folder. Errors: NOT_FOUND, IO, BAD_FILE, UNSUPPORTED, each naming the file and the values;
    /// UNSUPPORTED with the reason where a GPU is asked for and cannot be had; OUT_OF_MEMORY where it is too small; CANCELLED.
    pub fn open(dir: &Path, options: &OpenOptions) -> Result<Self> {
        let config = Config::read(dir)?;
        let tokenizer = Tokenizer::open(dir)?;
        tokenizer.check(&config)?;
        options.cancel.check()?;
        let tensors = Arc::new(Tensors::open(dir, options.access)?);
        options.cancel.check()?;
        let fingerprint = fingerprint::fingerprint(dir, &tensors)?;
        options.cancel.check()?;
        let (engine, device) = engine(options, config, &tensors)?;
        Ok(Self { tokenizer, engine, device, fingerprint, origin: compressed::origin(dir)? })
    }

    /// A model of parts: an engine of the caller's own behind a tokenizer, told apart from others by `fingerprint`.
    pub fn from_parts(tokenizer: Tokenizer, engine: Box<dyn Engine>, fingerprint: String) -> Self {
        Self { tokenizer, engine, device: "the caller's own".to_owned(), fingerprint, origin: None }
    }
    /// Where it computes, and why not on a GPU where one might have been meant: a line for people.
    pub fn device(&self) -> &str {
        &self.device
    }
    /// Which model this is, as checkpoints record it: see [`mod@crate::files::fingerprint`].
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
    /// Which base model adapters are for: this one, or the one that `dialoguellm quantize` made it of.
    pub fn base(&self) -> &str {
        self.origin.as_ref().unwrap_or(&self.fingerprint)
    }
    /// Text to tokens and back.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }
    /// The network.
    pub fn engine(&self) -> &dyn Engine {
        self.engine.as_ref()
    }
    /// Tokens that end a text: config.json's and the tokenizer's.
    pub fn end_tokens(&self) -> Vec<u32> {
        let mut all = self.config().eos.clone();
        all.extend(self.tokenizer.eos().filter(|id| !all.contains(id)));
        all
    }
    /// Tokens it has positions for.
    pub fn context_length(&self) -> usize {
        llama::context_length(self.config())
    }
    /// Its shape.
    pub fn config(&self) -> &Config {
        self.engine.config()
    }
}

/// An engine, and what to tell of its device.
type Opened = (Box<dyn Engine>, String);

/// The engine on the device that the options choose, and what to tell of it.
fn engine(options: &OpenOptions, config: Config, tensors: &Arc<Tensors>) -> Result<Opened> {
    let no_gpu = match options.device {
        Place::Cpu => String::new(),
        Place::Auto | Place::Cuda => match on_gpu(options, &config, tensors) {
            Ok(opened) => return opened,
            Err(reason) if options.device == Place::Auto => format!(" ({})", reason.text()),
            Err(reason) => {
                let text = format!("device cuda: {}; or use --device cpu", reason.text());
                return Err(Error::new(reason.code(), text));
            }
        },
    };
    let isa = match options.isa {
        Some(isa) => Some(isa),
        None => isa_of_environment()?,
    };
    let pool = match &options.pool {
        Some(pool) => pool.clone(),
        None => Pool::shared(options.threads)?,
    };
    let from = Weights { tensors, bits: options.precision.bits(), cancel: &options.cancel };
    let engine: Box<dyn Engine> = match options.precision {
        Precision::F32 => Box::new(Llama::open_from(Cpu::<f32>::on(pool, isa), config, &from)?),
        _ => Box::new(Llama::open_from(Cpu::<bf16>::on(pool, isa), config, &from)?),
    };
    Ok((engine, format!("cpu{no_gpu}")))
}

/// The same on the GPU; the outer error says why there is none for this model and precision.
#[cfg(feature = "cuda")]
fn on_gpu(options: &OpenOptions, config: &Config, tensors: &Arc<Tensors>) -> Result<Result<Opened>> {
    let precision = options.precision;
    if precision == Precision::F32 {
        return Err(Error::unsupported("a GPU computes in bf16 only; use --precision bf16"));
    }
    let gpu = crate::device::Gpu::takes_heads_of(config.head_dim).and_then(|()| crate::device::Gpu::open());
    let gpu = gpu.map_err(Error::unsupported)?;
    let (needed, [free, total]) = (weights::bytes(tensors, precision.bits(), true), gpu.free_and_total()?);
    if needed > free {
        let text = format!(
            "the model's weights need {needed} bytes, and {free} of the GPU's {total} bytes are free; end what uses \
             the GPU, take fewer bits (--precision int8 or int4) or a smaller model"
        );
        return Err(Error::new(Code::OutOfMemory, text));
    }
    let about = format!("cuda ({})", gpu.about());
    let from = Weights { tensors, bits: precision.bits(), cancel: &options.cancel };
    Ok(Llama::open_from(gpu, config.clone(), &from).map(|llama| -> Opened { (Box::new(llama), about) }))
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(_: &OpenOptions, _: &Config, _: &Arc<Tensors>) -> Result<Result<Opened>> {
    Err(Error::unsupported("this version is built without CUDA"))
}

/// The level that `DLLM_ISA` names, if it is set.
fn isa_of_environment() -> Result<Option<Isa>> {
    let Ok(name) = std::env::var("DLLM_ISA") else { return Ok(None) };
    Isa::named(&name).map(Some).ok_or_else(|| {
        let known: Vec<_> = Isa::ALL.iter().map(|isa| isa.name()).collect();
        Error::invalid(format!("DLLM_ISA is \"{name}\", must be one of {}", known.join(", ")))
    })
}
