//! Weights and tokenizer.

use super::adapter::dllm_adapter;
use super::boundary::{NTS, array, fill, guard, one_of, out, path, quietly, room, text};
use super::cancel::{cancel_of, dllm_cancel};
use super::classifier::names;
use super::error::{dllm_error, dllm_status, dllm_string};
use super::handle::{Handle, Kind, Shared, free, give, share, share_if};
use super::options::{described, read, write, zeroed};
use super::runtime::{Runtime, dllm_runtime};
use crate::Result;
use crate::conversation::{Conversation, Leaf, Options};
use crate::emotion::framing;
use crate::files::{Access, Config, Tensors, hub};
use crate::model::{Adapter, Model, OpenOptions, Precision, weights};
use serde_json::json;
use std::ffi::c_char;
use std::sync::Arc;

/// Operands of matrix products in bf16, sums in f32.
pub const DLLM_PRECISION_BF16: u32 = 0;
/// Everything in f32; on the CPU only.
pub const DLLM_PRECISION_F32: u32 = 1;
/// As DLLM_PRECISION_BF16, of weights that are whole numbers of 8 bits with a scale for each output: half the memory. They
/// are made when the model is opened, unless its folder has them. Where x86-64 multiplies such
/// (AVX2 and above), inputs of products are rounded to whole numbers too: to 14 bits of a row's largest or, with VNNI, to steps
/// of a 32nd of a row's mean magnitude; so are gradients that are propagated through them, to 14 bits or to steps of a 16th.
pub const DLLM_PRECISION_INT8: u32 = 2;
/// The same with linear maps of 4 bits and a scale for every 32 inputs, whose inputs stay bf16 with AVX-512 BF16 and else have 14
/// bits; embedding and head have 8 bits.
pub const DLLM_PRECISION_INT4: u32 = 3;
/// In the order of their numbers.
const PRECISIONS: [Precision; 4] = [Precision::Bf16, Precision::F32, Precision::Int8, Precision::Int4];

/// Text of the caller's.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dllm_str {
    /// UTF-8; NULL is no text.
    pub data: *const c_char,
    /// Bytes; DLLM_NTS where the text ends in a zero.
    pub len: u64,
}
described!(dllm_str { data, len });

impl dllm_str {
    /// The text; none for NULL.
    ///
    /// # Safety
    /// As the header says.
    pub(super) unsafe fn get<'a>(&self, name: &str) -> Result<Option<&'a str>> {
        match self.data.is_null() {
            true if self.len == 0 || self.len == NTS as u64 => Ok(None),
            // SAFETY: the caller's promise.
            _ => unsafe { text(self.data, self.len as usize, name) }.map(Some),
        }
    }
}

/// How a model is opened; zero is every field's default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dllm_model_options {
    /// sizeof(dllm_model_options).
    pub struct_size: u32,
    /// DLLM_PRECISION_BF16, _F32, _INT8 or _INT4.
    pub precision: u32,
    /// 1 reads the weights into memory instead of mapping their file, for files that may change while they are open.
    pub no_map: u32,
    /// 0.
    pub reserved: u32,
}
described!(growing dllm_model_options { precision, no_map, reserved });

impl dllm_model_options {
    fn access(&self) -> Result<Access> {
        one_of(self.no_map, &[Access::Mapped, Access::Read], "dllm_model_options.no_map")
    }
    fn precision(&self) -> Result<Precision> {
        one_of(self.precision, &PRECISIONS, "dllm_model_options.precision")
    }
}

/// What a model needs, in bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dllm_memory_report {
    /// sizeof(dllm_memory_report), set by the caller.
    pub struct_size: u32,
    /// 0.
    pub reserved: u32,
    /// The weights: mapped from their file on the CPU (memory of their own where they are whole numbers), a copy in the
    /// GPU's memory on a GPU.
    pub weights: u64,
    /// Keys and values of one token of a conversation.
    pub cache_per_token: u64,
    /// The most tokens that a conversation can have; UINT64_MAX where nothing bounds them.
    pub context: u64,
}
described!(growing dllm_memory_report { reserved, weights, cache_per_token, context });

/// Weights and tokenizer of a LLaMA. It never changes after it is opened, and any number of calls may use it at once.
pub struct dllm_model(Handle<Opened>);

/// What is behind a [`dllm_model`].
#[derive(Clone)]
pub struct Opened {
    pub(super) model: Arc<Model>,
    pub(super) runtime: Arc<Runtime>,
}

impl Kind for dllm_model {
    type Value = Opened;
    const NAME: &'static str = "model";
    fn new(handle: Handle<Opened>) -> Self {
        Self(handle)
    }
    fn handle(&self) -> &Handle<Opened> {
        &self.0
    }
}

/// ---- Model: weights and tokenizer ----
///
/// Opens a model folder as Hugging Face has them (config.json, tokenizer.json, safetensors), or `org/name` from the local
/// Hugging Face cache. `runtime` may be NULL: the model then has one of its own, with one thread per core and a GPU if
/// there is one. `options` and `cancel` may be NULL.
///
/// Ownership: the caller's; what is made from it keeps it alive.
/// Errors:    NOT_FOUND, IO, BAD_FILE, UNSUPPORTED, each naming the file and both values; OUT_OF_MEMORY; CANCELLED.
/// Cost:      the weights are mapped, not read, but for their fingerprint, or made with `precision`; `cancel` is
///            read between files and matrices.
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_model_open(
    runtime: *const dllm_runtime,
    dir: *const c_char,
    options: *const dllm_model_options,
    cancel: *const dllm_cancel,
    model: *mut *mut dllm_model,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (model, dir, options, cancel) =
            unsafe { (out(model, "model")?, path(dir, "dir")?, read(options)?, cancel_of(cancel)?) };
        // SAFETY: as the header says.
        let runtime = match unsafe { share_if(runtime) }? {
            Some(runtime) => Runtime::clone(&runtime),
            None => Runtime::of(&zeroed())?,
        };
        let how = OpenOptions {
            device: runtime.device,
            precision: options.precision()?,
            access: options.access()?,
            pool: Some(runtime.pool.clone()),
            cancel,
            ..OpenOptions::default()
        };
        let opened = Model::open(&hub::resolve(dir)?, &how)?;
        runtime.say(&format!("model {}: {}, {}", dir.display(), opened.device(), opened.engine().precision()));
        *model = give(Opened { model: Arc::new(opened), runtime: Arc::new(runtime) });
        Ok(())
    })
}

/// What the model is, as JSON: shape, context, precision, device, instructions, threads, fingerprint.
///
/// Ownership: the caller's; free it with dllm_string_free().
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_model_info(
    model: *const dllm_model,
    info: *mut *mut dllm_string,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (info, opened) = unsafe { (out(info, "info")?, share(model)?) };
        let (model, config) = (&opened.model, opened.model.config());
        let context = model.context_length();
        let value = json!({
            "fingerprint": model.fingerprint(),
            "shape": {
                "layers": config.n_layers, "hidden": config.hidden_size, "feed_forward": config.intermediate_size,
                "heads": config.n_heads, "kv_heads": config.n_kv_heads, "head_dim": config.head_dim,
                "vocabulary": config.vocab_size, "tied": config.tie_word_embeddings,
            },
            "context": (context != usize::MAX).then_some(context),
            "precision": model.engine().precision(),
            "device": model.device(),
            "isa": model.engine().isa().name(),
            "threads": opened.runtime.pool.threads(),
            "chat_template": model.tokenizer().chat_template().is_some(),
        });
        *info = dllm_string::boxed(value.to_string());
        Ok(())
    })
}

/// What a model folder will need, without opening it; `options` may be NULL.
///
/// Errors: as dllm_model_open().
/// Since:  0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_model_estimate(
    dir: *const c_char,
    options: *const dllm_model_options,
    report: *mut dllm_memory_report,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (dir, options) = unsafe { (hub::resolve(path(dir, "dir")?)?, read(options)?) };
        let config = Config::read(&dir)?;
        let tensors = Tensors::open(&dir, Access::Mapped)?;
        let precision = options.precision()?;
        let (weights, value) = (weights::bytes(&tensors, precision.bits(), false) as u64, precision.operand_bytes());
        let cache_per_token = (2 * config.n_layers * config.n_kv_heads * config.head_dim * value) as u64;
        let context = match crate::model::llama::context_length(&config) {
            usize::MAX => u64::MAX,
            context => context as u64,
        };
        // SAFETY: as the header says.
        unsafe { write(report, dllm_memory_report { weights, cache_per_token, context, ..zeroed() }) }
    })
}

/// How many tokens there are; 0 for a handle that is not alive.
///
/// Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_model_vocab_size(model: *const dllm_model) -> usize {
    // SAFETY: as the header says.
    quietly(0, || unsafe { share(model) }.map_or(0, |opened| opened.model.config().vocab_size))
}

/// The tokens of a text. `capacity` 0 asks for their number alone, in `written`.
///
/// `special` 1 adds what the tokenizer puts around a text, such as a first token. `text_len` may be DLLM_NTS.
///
/// Errors: INVALID_ARGUMENT where there are more tokens than `capacity`; `written` then says how many.
/// Since:  0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_model_tokenize(
    model: *const dllm_model,
    text: *const c_char,
    text_len: usize,
    special: u32,
    ids: *mut u32,
    capacity: usize,
    written: *mut usize,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (written, opened, text) =
            unsafe { (out(written, "written")?, share(model)?, self::text(text, text_len, "text")?) };
        let special = one_of(special, &[false, true], "special")?;
        // SAFETY: as the header says.
        let room = unsafe { room(ids, capacity, 0, "ids") }?;
        let found = opened.model.tokenizer().encode(text, special)?;
        *written = found.len();
        if capacity == 0 { Ok(()) } else { fill(room, &found, "ids") }
    })
}

/// The text of tokens; `skip_special` 1 leaves out those that are no text.
///
/// Ownership: the caller's; free it with dllm_string_free().
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_model_detokenize(
    model: *const dllm_model,
    ids: *const u32,
    n_ids: usize,
    skip_special: u32,
    text: *mut *mut dllm_string,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (text, opened, ids) = unsafe { (out(text, "text")?, share(model)?, array(ids, n_ids, "ids")?) };
        let skip = one_of(skip_special, &[false, true], "skip_special")?;
        *text = dllm_string::boxed(opened.model.tokenizer().decode(ids, skip)?);
        Ok(())
    })
}

/// The logits of what comes after tokens, `logits[vocab_size]` f32; `adapter` and `cancel` may be NULL.
///
/// Errors: INVALID_ARGUMENT for a token that is not in the vocabulary or too little room; CONTEXT_FULL; CANCELLED.
/// Since:  0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_model_logits(
    model: *const dllm_model,
    adapter: *const dllm_adapter,
    ids: *const u32,
    n_ids: usize,
    cancel: *const dllm_cancel,
    logits: *mut f32,
    capacity: usize,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (opened, adapter, ids, cancel, logits) = unsafe {
            let room = room(logits, capacity, 0.0, "logits")?;
            (share(model)?, adapter_of(adapter)?, array(ids, n_ids, "ids")?, cancel_of(cancel)?, room)
        };
        let conversation = Conversation::new(opened.model.clone(), adapter, Options { context: 0, cancel });
        fill(logits, &conversation.logits_after(ids)?, "logits")
    })
}

/// Natural logarithms of the probabilities of `n` continuations after a prompt, `log_probs[n]`.
///
/// Prompt and continuation are tokenised as one text; what is scored are the tokens after those they share with the
/// prompt's own. `adapter` and `cancel` may be NULL.
///
/// Errors: INVALID_ARGUMENT where nothing predicts the first token; CONTEXT_FULL; CANCELLED.
/// Since:  0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_model_score(
    model: *const dllm_model,
    adapter: *const dllm_adapter,
    prompt: *const c_char,
    prompt_len: usize,
    continuations: *const dllm_str,
    n: usize,
    cancel: *const dllm_cancel,
    log_probs: *mut f64,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (opened, adapter, prompt, cancel, room) = unsafe {
            let room = room(log_probs, n, 0.0, "log_probs")?;
            let prompt = text(prompt, prompt_len, "prompt")?;
            (share(model)?, adapter_of(adapter)?, prompt, cancel_of(cancel)?, room)
        };
        // SAFETY: as the header says.
        let texts = unsafe { names(continuations, n, "continuations") }?;
        let wholes = framing::continuations(&opened.model, prompt, texts.iter().map(String::as_str))?;
        let leaves: Vec<Leaf> = wholes.iter().map(|(ids, from)| Leaf { ids, from: *from }).collect();
        let conversation = Conversation::new(opened.model.clone(), adapter, Options { context: 0, cancel });
        let scores: Vec<f64> = conversation.scores_after(&leaves)?.iter().map(|score| score.total).collect();
        fill(room, &scores, "log_probs")
    })
}

/// The adapter of a call, or none.
///
/// # Safety
/// NULL or an adapter handle that was not freed.
pub(super) unsafe fn adapter_of(adapter: *const dllm_adapter) -> Result<Option<Arc<Adapter>>> {
    // SAFETY: the caller's promise.
    Ok(unsafe { share_if(adapter) }?.map(|adapter: Shared<Arc<Adapter>>| Arc::clone(&adapter)))
}

/// Frees a model; NULL is fine. What was made from it keeps its own hold.
///
/// Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_model_free(model: *mut dllm_model) {
    // SAFETY: as the header says.
    unsafe { free(model) }
}
