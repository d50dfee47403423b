//! One dialogue as it happens.

use super::boundary::{fill, guard, out, quietly, room, text};
use super::cancel::{cancel_of, dllm_cancel};
use super::classifier::{dllm_classifier, dllm_turn};
use super::error::{dllm_error, dllm_status, dllm_string};
use super::handle::{Handle, Kind, free, give, share, take};
use super::model::dllm_str;
use super::options::{described, read, write, zeroed};
use crate::conversation::Options;
use crate::emotion::Live;
use crate::emotion::live::Heard;
use crate::{Code, Error, Result};
use std::ffi::{c_char, c_void};

/// How a conversation is held; zero is every field's default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dllm_conversation_options {
    /// sizeof(dllm_conversation_options).
    pub struct_size: u32,
    /// 0.
    pub reserved: u32,
    /// Tokens it may hold; 0 for the model's context.
    pub context: u64,
    /// Stops its calls; may be freed while the conversation lives. NULL for none.
    pub cancel: *const dllm_cancel,
}
described!(growing dllm_conversation_options { reserved, context, cancel });

/// What listening to a turn took.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dllm_turn_report {
    /// sizeof(dllm_turn_report), set by the caller.
    pub struct_size: u32,
    /// Oldest turns that were dropped because the context was full.
    pub dropped: u32,
    /// Tokens computed: the turn's, or all that remain where turns were dropped.
    pub computed: u64,
}
described!(growing dllm_turn_report { dropped, computed });

/// One dialogue as it happens, with what was said in the KV cache. One call at a time; others get BUSY and change nothing.
pub struct dllm_conversation(Handle<Live>);

impl Kind for dllm_conversation {
    type Value = Live;
    const NAME: &'static str = "conversation";
    fn new(handle: Handle<Live>) -> Self {
        Self(handle)
    }
    fn handle(&self) -> &Handle<Live> {
        &self.0
    }
}

/// # Safety
/// As the header says.
unsafe fn options_of(options: *const dllm_conversation_options) -> Result<Options> {
    // SAFETY: the caller's promise.
    unsafe {
        let options = read(options)?;
        Ok(Options { context: options.context as usize, cancel: cancel_of(options.cancel)? })
    }
}

fn report_of(heard: Heard) -> dllm_turn_report {
    dllm_turn_report { dropped: heard.dropped as u32, computed: heard.computed as u64, ..zeroed() }
}

/// ---- Conversation: one dialogue as it happens ----
///
/// A conversation in which nothing was said; `options` may be NULL.
///
/// Ownership: the caller's; it keeps the classifier alive.
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_conversation_new(
    classifier: *const dllm_classifier,
    options: *const dllm_conversation_options,
    conversation: *mut *mut dllm_conversation,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (conversation, asker, options) =
            unsafe { (out(conversation, "conversation")?, share(classifier)?, options_of(options)?) };
        *conversation = give(Live::new(asker.classifier.clone(), options));
        Ok(())
    })
}

/// The conversation that dllm_conversation_save() wrote; its tokens are computed again. `report` may be NULL.
///
/// Ownership: the caller's.
/// Errors:    BAD_FILE for other text, or a conversation of another base model; UNSUPPORTED for a newer format.
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_conversation_restore(
    classifier: *const dllm_classifier,
    options: *const dllm_conversation_options,
    saved: *const c_char,
    saved_len: usize,
    conversation: *mut *mut dllm_conversation,
    report: *mut dllm_turn_report,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (conversation, asker, options, saved) = unsafe {
            (
                out(conversation, "conversation")?,
                share(classifier)?,
                options_of(options)?,
                text(saved, saved_len, "saved")?,
            )
        };
        let (live, heard) = Live::restore(asker.classifier.clone(), options, saved)?;
        // SAFETY: as the header says.
        unsafe { write(report, report_of(heard)) }?;
        *conversation = give(live);
        Ok(())
    })
}

/// Listens to a turn, which costs its own tokens; a full context drops the oldest turns. `report` may be NULL.
///
/// Errors: CONTEXT_FULL for a turn that does not fit alone; CANCELLED. The conversation is then as before.
/// Cost:   the cancel handle is read once a layer.
/// Since:  0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_conversation_add_turn(
    conversation: *mut dllm_conversation,
    turn: *const dllm_turn,
    report: *mut dllm_turn_report,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (mut live, turn) = unsafe { (take(conversation)?, super::boundary::array(turn, 1, "turn")?[0].get()?) };
        let heard = live.push(turn)?;
        // SAFETY: as the header says.
        unsafe { write(report, report_of(heard)) }
    })
}

/// Describes what is seen in `clip` while `turn` is said: sets `description`, whose bytes are the caller's and stay until
/// the call that asked returns, or leaves it where there is nothing to tell. Anything but 0 ends that call as CANCELLED.
pub type dllm_describe_fn = Option<
    unsafe extern "C" fn(
        user: *mut c_void,
        turn: *const dllm_turn,
        clip: *const c_char,
        description: *mut dllm_str,
    ) -> i32,
>;

/// Listens to a turn of which there is a picture or a film: where the template shows what is seen and `turn.visual` does not
/// say it, `describe` is asked, on this thread; its answer stays with the turn, also in what is saved. `clip` is handed to it
/// as it is, a path or whatever it understands. `report` may be NULL.
///
/// Errors: INVALID_ARGUMENT for a description that is not UTF-8; CANCELLED by `describe`; as dllm_conversation_add_turn().
/// Since:  0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_conversation_add_clip(
    conversation: *mut dllm_conversation,
    turn: *const dllm_turn,
    clip: *const c_char,
    describe: dllm_describe_fn,
    user: *mut c_void,
    report: *mut dllm_turn_report,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        let describe =
            describe.ok_or_else(|| Error::invalid("describe is NULL; dllm_conversation_add_turn() needs none"))?;
        // SAFETY: as the header says.
        let (mut live, said) = unsafe { (take(conversation)?, super::boundary::array(turn, 1, "turn")?[0].get()?) };
        let heard = live.push_seen(said, |_| {
            let mut description = dllm_str { data: std::ptr::null(), len: 0 };
            // SAFETY: the caller's function, on the caller's thread, with the caller's pointers; what it sets stays until
            // this call returns.
            unsafe {
                match describe(user, turn, clip, &mut description) {
                    0 => Ok(description.get("the description")?.map(str::to_owned)),
                    _ => Err(Error::new(Code::Cancelled, "stopped, as the callback that describes asked")),
                }
            }
        })?;
        // SAFETY: as the header says.
        unsafe { write(report, report_of(heard)) }
    })
}

/// Probabilities of the last turn's labels, `probabilities[n_labels]`, which costs the question alone.
///
/// Errors: INVALID_ARGUMENT where nothing was said, or for too little room; CANCELLED; NUMERIC.
/// Since:  0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_conversation_ask(
    conversation: *mut dllm_conversation,
    probabilities: *mut f32,
    capacity: usize,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (mut live, room) = unsafe { (take(conversation)?, room(probabilities, capacity, 0.0, "probabilities")?) };
        fill(room, &live.ask()?, "probabilities")
    })
}

/// Takes back the last `n_turns`; nothing is computed.
///
/// Errors: INVALID_ARGUMENT for more than are held.
/// Since:  0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_conversation_rollback(
    conversation: *mut dllm_conversation,
    n_turns: usize,
    err: *mut *mut dllm_error,
) -> dllm_status {
    // SAFETY: as the header says.
    guard(err, || unsafe { take(conversation) }?.rollback(n_turns))
}

/// Turns that are held; 0 for a handle that is busy or not alive.
///
/// Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_conversation_n_turns(conversation: *const dllm_conversation) -> usize {
    // SAFETY: as the header says.
    quietly(0, || unsafe { take(conversation) }.map_or(0, |live| live.turns().len()))
}

/// Tokens in the cache; 0 for a handle that is busy or not alive.
///
/// Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_conversation_n_tokens(conversation: *const dllm_conversation) -> usize {
    // SAFETY: as the header says.
    quietly(0, || unsafe { take(conversation) }.map_or(0, |live| live.tokens()))
}

/// The conversation as JSON text, its dialogue included, for dllm_conversation_restore().
///
/// Ownership: the caller's; free it with dllm_string_free().
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_conversation_save(
    conversation: *mut dllm_conversation,
    saved: *mut *mut dllm_string,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (saved, live) = unsafe { (out(saved, "saved")?, take(conversation)?) };
        *saved = dllm_string::boxed(live.save());
        Ok(())
    })
}

/// Frees a conversation; NULL is fine.
///
/// Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_conversation_free(conversation: *mut dllm_conversation) {
    // SAFETY: as the header says.
    unsafe { free(conversation) }
}
