//! Text continued token by token.

use super::adapter::dllm_adapter;
use super::boundary::{NTS, guard, one_of, out, text};
use super::cancel::{cancel_of, dllm_cancel};
use super::classifier::names;
use super::error::{dllm_error, dllm_status, dllm_string};
use super::handle::share;
use super::model::{adapter_of, dllm_model, dllm_str};
use super::options::{described, read};
use crate::conversation::{Beams, Conversation, Options, Sampling, Streamed};
use crate::emotion::framing::{chat_ids, prompt_ids};
use crate::model::Model;
use crate::{Error, Result};
use std::ffi::{c_char, c_void};

/// How a text is continued; zero is every field's default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dllm_generate_options {
    /// sizeof(dllm_generate_options).
    pub struct_size: u32,
    /// Tokens at most; 0 for 256.
    pub max_tokens: u32,
    /// Divides the logits; 0 takes the likeliest token every time.
    pub temperature: f32,
    /// Draw from the likeliest tokens that together reach this probability; 0 for all.
    pub top_p: f32,
    /// Draw from this many of the likeliest tokens; 0 for all.
    pub top_k: u32,
    /// Above 1, tokens that were there before become less likely; 0 for 1.
    pub repetition_penalty: f32,
    /// The same seed draws the same text.
    pub seed: u64,
    /// End before the first of these texts.
    pub stops: *const dllm_str,
    /// How many.
    pub n_stops: u64,
    /// 1 writes the prompt as a message in the model's own chat format, and lets it answer.
    pub chat: u32,
    /// Above 1, keep this many beams and give the likeliest text as a whole, at once, instead of drawing token by token;
    /// temperature, top_k and seed must then be 0, top_p 0 or 1.
    pub beams: u32,
    /// In that format, a message of the system's before it; NULL for none.
    pub system: *const c_char,
}
described!(growing dllm_generate_options {
    max_tokens, temperature, top_p, top_k, repetition_penalty, seed, stops, n_stops, chat, beams, system
});

/// Hears text as it comes, whole code points, `len` bytes, valid during the call; anything but 0 ends the text there.
pub type dllm_text_fn = Option<unsafe extern "C" fn(user: *mut c_void, text: *const c_char, len: usize) -> i32>;

/// ---- Generate: text continued ----
///
/// Continues a prompt. `on_text` hears the text piece by piece, on this thread, and ends it by anything but 0; it may be
/// NULL. `generated` is the whole text, and may be NULL where `on_text` is not. `adapter`, `options` and `cancel` may be
/// NULL.
///
/// Ownership: `generated` is the caller's; free it with dllm_string_free().
/// Errors:    INVALID_ARGUMENT for options out of their range; CONTEXT_FULL; CANCELLED; NUMERIC.
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_model_generate(
    model: *const dllm_model,
    adapter: *const dllm_adapter,
    prompt: *const c_char,
    prompt_len: usize,
    options: *const dllm_generate_options,
    cancel: *const dllm_cancel,
    on_text: dllm_text_fn,
    user: *mut c_void,
    generated: *mut *mut dllm_string,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (opened, adapter, prompt, options, cancel) = unsafe {
            if !generated.is_null() || on_text.is_none() {
                out(generated, "generated")?;
            }
            (
                share(model)?,
                adapter_of(adapter)?,
                text(prompt, prompt_len, "prompt")?,
                read(options)?,
                cancel_of(cancel)?,
            )
        };
        let model = &opened.model;
        // SAFETY: as the header says.
        let stops = unsafe { names(options.stops, options.n_stops as usize, "stops") }?;
        let chat = one_of(options.chat, &[false, true], "dllm_generate_options.chat")?;
        // SAFETY: as the header says.
        let ids = unsafe { ids(model, prompt, chat, options.system) }?;
        let conversation = Conversation::new(model.clone(), adapter, Options { context: 0, cancel });
        let hear = |piece: &str| {
            // SAFETY: the caller's function, on the caller's thread, with the caller's pointer.
            on_text
                .is_none_or(|hear| piece.is_empty() || unsafe { hear(user, piece.as_ptr().cast(), piece.len()) } == 0)
        };
        let whole = match options.beams {
            0 | 1 => draw(model, conversation, &ids, &sampling(model, &options), &stops, hear)?,
            _ => {
                let best = search(model, conversation, &ids, &options, &stops)?;
                hear(&best);
                best
            }
        };
        if !generated.is_null() {
            // SAFETY: the caller's room, as `out` found it.
            unsafe { generated.write(dllm_string::boxed(whole)) };
        }
        Ok(())
    })
}

/// The text drawn token by token behind `prompt`, in a conversation that is empty; `hear` hears it as it comes, and ends it
/// by false.
fn draw(
    model: &Model,
    mut conversation: Conversation,
    prompt: &[u32],
    sampling: &Sampling,
    stops: &[String],
    hear: impl Fn(&str) -> bool,
) -> Result<String> {
    sampling.check()?;
    let mut streamed = Streamed::new(model.tokenizer(), prompt, stops)?;
    conversation.append(prompt)?;
    let (mut whole, mut failed, mut ended) = (String::new(), None, false);
    let mut heard = |piece: &str| {
        whole += piece;
        hear(piece)
    };
    conversation.generate(sampling, &mut |token| match streamed.push(token) {
        Ok(piece) => {
            ended = !heard(&piece);
            !ended && !streamed.is_stopped()
        }
        Err(error) => {
            failed = Some(error);
            false
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    if !ended {
        heard(&streamed.finish()?.0);
    }
    Ok(whole)
}

/// The likeliest text behind `prompt` that beams find, in a conversation that is empty.
fn search(
    model: &Model,
    mut conversation: Conversation,
    prompt: &[u32],
    options: &dllm_generate_options,
    stops: &[String],
) -> Result<String> {
    let draws = options.temperature != 0.0 || ![0.0, 1.0].contains(&options.top_p);
    if draws || options.top_k != 0 || options.seed != 0 {
        let text = "beams draw nothing: with them, temperature, top_k and seed must be 0, top_p 0 or 1";
        return Err(Error::invalid(format!("dllm_generate_options: {text}")));
    }
    let sampling = sampling(model, options);
    let beams = Beams {
        width: options.beams as usize,
        repetition_penalty: sampling.repetition_penalty,
        max_tokens: sampling.max_tokens,
        eos: sampling.eos,
        ..Beams::default()
    };
    beams.check()?;
    let streamed = Streamed::new(model.tokenizer(), prompt, stops)?;
    conversation.append(prompt)?;
    let best = conversation.beams(&beams)?.into_iter().next().map(|best| best.tokens).unwrap_or_default();
    Ok(streamed.whole(&best)?.0)
}

/// The prompt's tokens.
///
/// # Safety
/// `system` is NULL or bytes up to a zero.
unsafe fn ids(model: &Model, prompt: &str, chat: bool, system: *const c_char) -> Result<Vec<u32>> {
    let name = "dllm_generate_options.system";
    // SAFETY: the caller's promise.
    let system = if system.is_null() { None } else { Some(unsafe { text(system, NTS, name) }?) };
    match (chat, system) {
        (false, Some(_)) => {
            Err(Error::invalid(format!("{name} is given and chat is 0: only a chat has such a message")))
        }
        (false, None) => prompt_ids(model, prompt),
        (true, system) => {
            let system = system.map(|text| ("system", text));
            chat_ids(model, &system.into_iter().chain([("user", prompt)]).collect::<Vec<_>>())
        }
    }
}

fn sampling(model: &Model, options: &dllm_generate_options) -> Sampling {
    let or = |value: f32, default: f32| if value == 0.0 { default } else { value };
    Sampling {
        temperature: options.temperature,
        top_k: options.top_k as usize,
        top_p: or(options.top_p, 1.0),
        repetition_penalty: or(options.repetition_penalty, 1.0),
        seed: options.seed,
        max_tokens: if options.max_tokens == 0 { 256 } else { options.max_tokens as usize },
        eos: model.end_tokens(),
    }
}
