//! Labels, template, adapter and calibration.

use super::adapter::dllm_adapter;
use super::boundary::{array, fill, guard, out, path, quietly, room, text};
use super::cancel::{cancel_of, dllm_cancel};
use super::dataset::dllm_dataset;
use super::error::{dllm_error, dllm_status, dllm_string};
use super::handle::{Handle, Kind, free, give, share};
use super::model::{Opened, adapter_of, dllm_model, dllm_str};
use super::options::{described, read};
use super::runtime::Runtime;
use crate::emotion::classifier::Marked;
use crate::emotion::metrics::fit_temperature;
use crate::emotion::template::{All, Window};
use crate::emotion::{Bulk, Classifier, Labels, Method, Template};
use crate::files::dialogues::{Dialogue, Turn};
use crate::{Cancel, Error, Result};
use std::ffi::{CString, c_char};
use std::sync::Arc;

/// What a classifier asks, where no adapter's own file says it; zero is every field's default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dllm_classifier_options {
    /// sizeof(dllm_classifier_options).
    pub struct_size: u32,
    /// How many labels.
    pub n_labels: u32,
    /// Their names, in the order of the probabilities; NULL for MELD's seven.
    pub labels: *const dllm_str,
    /// The words that the model reads and writes for them; NULL for the names.
    pub words: *const dllm_str,
    /// "dialogue", "dialoguellm", or a template as TOML text; NULL for "dialogue".
    pub template_text: *const c_char,
    /// Previous turns shown: 1 for none, 2 for one, and so on; 0 as the template says, UINT64_MAX for all.
    pub window: u64,
}
described!(growing dllm_classifier_options { n_labels, labels, words, template_text, window });

/// One turn of a dialogue. Frozen: it will not grow.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dllm_turn {
    /// Who says it.
    pub speaker: dllm_str,
    /// What is said.
    pub text: dllm_str,
    /// What is seen, where a template shows it; may be no text.
    pub visual: dllm_str,
    /// The label, where it is known; may be no text.
    pub emotion: dllm_str,
}
described!(dllm_turn { speaker, text, visual, emotion });

impl dllm_turn {
    /// # Safety
    /// As the header says.
    pub(super) unsafe fn get(&self) -> Result<Turn> {
        // SAFETY: the caller's promise.
        unsafe {
            let owned = |text: Option<&str>| text.map(str::to_owned);
            Ok(Turn {
                speaker: owned(self.speaker.get("a turn's speaker")?).unwrap_or_default(),
                text: owned(self.text.get("a turn's text")?).unwrap_or_default(),
                visual: owned(self.visual.get("a turn's visual")?),
                emotion: owned(self.emotion.get("a turn's emotion")?),
                ..Turn::default()
            })
        }
    }
}

/// What names emotions: labels, template, adapter and calibration. It never changes, and any number of calls may use it at
/// once.
pub struct dllm_classifier(Handle<Asker>);

/// What is behind a [`dllm_classifier`].
pub struct Asker {
    pub(super) classifier: Arc<Classifier>,
    pub(super) runtime: Arc<Runtime>,
    /// The labels' names as C reads them.
    names: Vec<CString>,
}

impl Asker {
    fn new(classifier: Classifier, runtime: &Arc<Runtime>) -> Result<Self> {
        let name = |name: &String| {
            CString::new(name.as_str()).map_err(|_| Error::invalid("a label's name has a zero byte in it"))
        };
        let names = classifier.labels().names().iter().map(name).collect::<Result<_>>()?;
        Ok(Self { classifier: Arc::new(classifier), runtime: runtime.clone(), names })
    }

    fn bulk(&self, cancel: Cancel) -> Bulk {
        Bulk { threads: self.runtime.pool.threads(), cancel, ..Bulk::default() }
    }

    /// The scores of the turns that have a label.
    fn marked(&self, dialogues: &[Dialogue], cancel: Cancel) -> Result<Marked> {
        let scored = self.classifier.scores(dialogues, &self.bulk(cancel), &mut |_| ())?;
        scored.marked(dialogues, self.classifier.labels())
    }

    fn classify(&self, dialogues: &[Dialogue], cancel: Cancel, to: &mut [f32]) -> Result<()> {
        let turns = self.classifier.classify(dialogues, &self.bulk(cancel))?;
        let all: Vec<f32> = turns.into_iter().flatten().flatten().collect();
        fill(to, &all, "probabilities")
    }
}

impl Kind for dllm_classifier {
    type Value = Asker;
    const NAME: &'static str = "classifier";
    fn new(handle: Handle<Asker>) -> Self {
        Self(handle)
    }
    fn handle(&self) -> &Handle<Asker> {
        &self.0
    }
}

/// ---- Classifier: labels, template, adapter, calibration ----
///
/// The classifier that a folder describes (dialoguellm.json): one that was trained, or a merged model's own folder.
///
/// Ownership: the caller's; it keeps the model alive.
/// Errors:    NOT_FOUND for a folder without dialoguellm.json (see dllm_classifier_new()); BAD_FILE for an adapter of
///            another base model, with both fingerprints.
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_classifier_open(
    model: *const dllm_model,
    dir: *const c_char,
    classifier: *mut *mut dllm_classifier,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (classifier, opened, dir) = unsafe { (out(classifier, "classifier")?, share(model)?, path(dir, "dir")?) };
        let Opened { model, runtime } = Opened::clone(&opened);
        *classifier = give(Asker::new(Classifier::open(model, dir)?, &runtime)?);
        Ok(())
    })
}

/// A classifier of labels and a template of one's own; `adapter` and `options` may be NULL.
///
/// Ownership: the caller's; it keeps model and adapter alive.
/// Errors:    INVALID_ARGUMENT for labels or a template that cannot be.
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_classifier_new(
    model: *const dllm_model,
    adapter: *const dllm_adapter,
    options: *const dllm_classifier_options,
    classifier: *mut *mut dllm_classifier,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (classifier, opened, adapter, options) =
            unsafe { (out(classifier, "classifier")?, share(model)?, adapter_of(adapter)?, read(options)?) };
        // SAFETY: as the header says.
        let (labels, template) = unsafe { (labels_of(&options)?, template_of(&options)?) };
        let Opened { model, runtime } = Opened::clone(&opened);
        *classifier = give(Asker::new(Classifier::new(model, adapter, template, labels)?, &runtime)?);
        Ok(())
    })
}

/// # Safety
/// As the header says.
unsafe fn labels_of(options: &dllm_classifier_options) -> Result<Labels> {
    if options.labels.is_null() {
        return Ok(Labels::meld());
    }
    // SAFETY: the caller's promise.
    unsafe {
        let names = names(options.labels, options.n_labels as usize, "labels")?;
        let words = match options.words.is_null() {
            true => names.clone(),
            false => self::names(options.words, options.n_labels as usize, "words")?,
        };
        Labels::with_words(names, words)
    }
}

/// # Safety
/// As the header says.
pub(super) unsafe fn names(at: *const dllm_str, n: usize, what: &str) -> Result<Vec<String>> {
    // SAFETY: the caller's promise.
    unsafe { array(at, n, what)?.iter().map(|name| Ok(name.get(what)?.unwrap_or_default().to_owned())).collect() }
}

/// # Safety
/// As the header says.
unsafe fn template_of(options: &dllm_classifier_options) -> Result<Template> {
    let named = match options.template_text.is_null() {
        true => "dialogue",
        // SAFETY: the caller's promise.
        false => unsafe { text(options.template_text, super::boundary::NTS, "template_text") }?,
    };
    let mut template = if named.contains('\n') || named.contains('=') {
        Template::from_toml(named).map_err(|error| error.at("template_text"))?
    } else {
        Template::built_in(named)?
    };
    match options.window {
        0 => {}
        u64::MAX => template.window = Window::All(All::All),
        shown => template.window = Window::Last((shown - 1) as usize),
    }
    Ok(template)
}

/// How many labels there are; 0 for a handle that is not alive.
///
/// Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_classifier_n_labels(classifier: *const dllm_classifier) -> usize {
    // SAFETY: as the header says.
    quietly(0, || unsafe { share(classifier) }.map_or(0, |asker| asker.names.len()))
}

/// The name of a label, in the order of the probabilities; NULL past the last.
///
/// Ownership: the classifier's.
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_classifier_label(classifier: *const dllm_classifier, label: usize) -> *const c_char {
    quietly(std::ptr::null(), || {
        // SAFETY: as the header says; the text lives as long as the handle's value.
        let asker = unsafe { share(classifier) };
        asker.ok().and_then(|asker| asker.names.get(label).map(|name| name.as_ptr())).unwrap_or(std::ptr::null())
    })
}

/// What label scores are divided by before they become probabilities; 1 where nothing was calibrated, NaN for a handle that
/// is not alive.
///
/// Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_classifier_temperature(classifier: *const dllm_classifier) -> f64 {
    // SAFETY: as the header says.
    quietly(f64::NAN, || unsafe { share(classifier) }.map_or(f64::NAN, |asker| asker.classifier.card().temperature))
}

/// Probabilities of every turn of one dialogue, `probabilities[n_turns][n_labels]`; a turn's sum to 1. A turn sees those
/// before it, as many as the template shows. `cancel` may be NULL.
///
/// Errors: INVALID_ARGUMENT for too little room; CONTEXT_FULL; CANCELLED; NUMERIC.
/// Since:  0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_classifier_predict(
    classifier: *const dllm_classifier,
    turns: *const dllm_turn,
    n_turns: usize,
    cancel: *const dllm_cancel,
    probabilities: *mut f32,
    capacity: usize,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (asker, turns, cancel, room) = unsafe {
            let room = room(probabilities, capacity, 0.0, "probabilities")?;
            (share(classifier)?, array(turns, n_turns, "turns")?, cancel_of(cancel)?, room)
        };
        // SAFETY: as the header says.
        let turns: Vec<Turn> = turns.iter().map(|turn| unsafe { turn.get() }).collect::<Result<_>>()?;
        asker.classify(&[Dialogue { id: "1".into(), turns }], cancel, room)
    })
}

/// Probabilities of every turn of every dialogue of a dataset, `probabilities[n_turns][n_labels]`: see
/// dllm_dataset_n_turns(). Many dialogues cost less together than one by one, with the same bits.
///
/// Errors: as dllm_classifier_predict().
/// Since:  0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_classifier_predict_all(
    classifier: *const dllm_classifier,
    dataset: *const dllm_dataset,
    cancel: *const dllm_cancel,
    probabilities: *mut f32,
    capacity: usize,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (asker, data, cancel, room) = unsafe {
            let room = room(probabilities, capacity, 0.0, "probabilities")?;
            (share(classifier)?, share(dataset)?, cancel_of(cancel)?, room)
        };
        asker.classify(data.dialogues()?, cancel, room)
    })
}

/// dllm_classifier_why() by leaving out every earlier turn.
pub const DLLM_WHY_TURNS: u32 = 0;
/// dllm_classifier_why() by leaving out every earlier turn, then every word.
pub const DLLM_WHY_WORDS: u32 = 1;
/// dllm_classifier_why() by integrated gradients (arXiv 1703.01365), which share the whole out among all words.
pub const DLLM_WHY_GRADIENTS: u32 = 2;

/// What made the last turn's label, as JSON: {"turn", "label", "prob", "turns": [part, ..], "words": [part, ..]}. A part is
/// {"turn", "text", "change"}: what it adds to ln of the label's probability, above 0 where it speaks for the label; a word also
/// has "start", the first of its bytes in the turn's text, and what was left out has "without", the probability without it. After
/// gradients there is "integral": {"base", "gap", "points"}: ln of the probability where every word is a full stop, and what the
/// parts do not account for. Turns count from 0. `label` is a label's number, or DLLM_ALL for the likeliest; `method` is a
/// DLLM_WHY_; `cancel` may be NULL. It costs a prompt for every part that is left out, by gradients 16 to 256 prompts forward and
/// backward.
///
/// Ownership: the caller's; free it with dllm_string_free().
/// Errors:    INVALID_ARGUMENT without turns, or for a label or method that there is not; UNSUPPORTED for gradients of a
///            template that makes other words of a text; as dllm_classifier_predict().
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_classifier_why(
    classifier: *const dllm_classifier,
    turns: *const dllm_turn,
    n_turns: usize,
    label: usize,
    method: u32,
    cancel: *const dllm_cancel,
    why: *mut *mut dllm_string,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (why, asker, turns, cancel) =
            unsafe { (out(why, "why")?, share(classifier)?, array(turns, n_turns, "turns")?, cancel_of(cancel)?) };
        let method = match method {
            DLLM_WHY_TURNS => Method::LeaveOutTurns,
            DLLM_WHY_WORDS => Method::LeaveOutWords,
            DLLM_WHY_GRADIENTS => Method::IntegratedGradients,
            other => return Err(Error::invalid(format!("method is {other}, must be one of DLLM_WHY_, 0 to 2"))),
        };
        // SAFETY: as the header says.
        let turns: Vec<Turn> = turns.iter().map(|turn| unsafe { turn.get() }).collect::<Result<_>>()?;
        let label = (label != usize::MAX).then_some(label);
        let found = asker.classifier.why(&turns, label, method, &asker.bulk(cancel))?;
        *why = dllm_string::boxed(found.to_json(asker.classifier.labels().names(), &turns).to_string());
        Ok(())
    })
}

/// Figures on the labelled turns of a dataset, as JSON: accuracy, weighted and macro F1, per label, confusion, NLL, ECE.
///
/// Ownership: the caller's; free it with dllm_string_free().
/// Errors:    NOT_FOUND for a label that the classifier does not have; as dllm_classifier_predict().
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_classifier_evaluate(
    classifier: *const dllm_classifier,
    dataset: *const dllm_dataset,
    cancel: *const dllm_cancel,
    report: *mut *mut dllm_string,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (report, asker, data, cancel) =
            unsafe { (out(report, "report")?, share(classifier)?, share(dataset)?, cancel_of(cancel)?) };
        let (classifier, marked) = (&asker.classifier, asker.marked(data.dialogues()?, cancel)?);
        let figures = classifier.card().report(&marked)?;
        let text = serde_json::to_string(&figures).map_err(|_| Error::internal("a report is not JSON"))?;
        *report = dllm_string::boxed(text);
        Ok(())
    })
}

/// The same classifier with a temperature fitted on the labelled turns of a dataset: never the one it is judged by.
///
/// Ownership: the caller's, beside the one it is made of.
/// Errors:    as dllm_classifier_evaluate().
/// Since:     0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_classifier_calibrate(
    classifier: *const dllm_classifier,
    dataset: *const dllm_dataset,
    cancel: *const dllm_cancel,
    calibrated: *mut *mut dllm_classifier,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (calibrated, asker, data, cancel) =
            unsafe { (out(calibrated, "calibrated")?, share(classifier)?, share(dataset)?, cancel_of(cancel)?) };
        let (old, marked) = (&asker.classifier, asker.marked(data.dialogues()?, cancel)?);
        let temperature = fit_temperature(&marked.scores, &marked.gold)?;
        let new = Classifier::with_card(old.model().clone(), old.adapter().cloned(), old.card().clone())?;
        *calibrated = give(Asker::new(new.calibrated(temperature), &asker.runtime)?);
        Ok(())
    })
}

/// Writes the classifier as an adapter folder: PEFT's files and dialoguellm.json with labels, template and calibration. A
/// folder that is there is replaced in one step.
///
/// Errors: IO; INVALID_ARGUMENT for a classifier without an adapter.
/// Since:  0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_classifier_save(
    classifier: *const dllm_classifier,
    dir: *const c_char,
    err: *mut *mut dllm_error,
) -> dllm_status {
    guard(err, || {
        // SAFETY: as the header says.
        let (asker, dir) = unsafe { (share(classifier)?, path(dir, "dir")?) };
        let adapter =
            asker.classifier.adapter().ok_or_else(|| Error::invalid("the classifier has no adapter to save"))?;
        crate::files::folder::replace(dir, |dir| {
            adapter.write(dir)?;
            asker.classifier.card().write(dir)
        })
    })
}

/// Frees a classifier; NULL is fine. Conversations keep their own hold.
///
/// Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dllm_classifier_free(classifier: *mut dllm_classifier) {
    // SAFETY: as the header says.
    unsafe { free(classifier) }
}
