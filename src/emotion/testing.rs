//! For this layer's tests: an engine whose answers are a hash of the whole path, so that a wrong token, position, row,
//! parent or cache changes every number after it; and no number depends on how paths are packed.

use super::framing::tests::tokenizer;
use super::template::Template;
use super::{Classifier, Labels};
use crate::files::Config;
use crate::files::dialogues::{Dialogue, Turn};
use crate::model::engine::{
    Cache, Continued, Engine, Learner, Learning, LossGradient, Moments, Pass, Path, Slopes, Target,
};
use crate::model::{Adapter, Forest, Model};
use crate::{Error, Result};
use dialoguellm_kernels::dropout::key;
use dialoguellm_kernels::sample::Draw;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a test watches and sets.
#[derive(Default)]
pub(super) struct Dials {
    /// Tokens computed.
    pub computed: AtomicUsize,
    /// Passes run.
    pub passes: AtomicUsize,
    /// The largest forest.
    pub largest: AtomicUsize,
    /// The pass from which on answers are NaN; 0 for never.
    pub nan_from: AtomicUsize,
}

struct Hashes {
    config: Config,
    dials: Arc<Dials>,
}

impl Hashes {
    /// The hash of the path to every row.
    fn states(&self, pass: &Pass, cache: Option<&Cache>) -> Result<Vec<u64>> {
        pass.cancel.check()?;
        let forest: &Forest = pass.forest;
        assert!(forest.depth() <= self.config.max_position_embeddings, "past the context");
        let cached = cache.map(|cache| &cache.store.downcast_ref::<Vec<u64>>().unwrap()[..cache.len()]);
        let mut states: Vec<u64> = Vec::new();
        for span in forest.spans() {
            let mut state = match (span.parent, forest.cached()) {
                (Some(parent), _) => states[forest.spans()[parent].rows.end - 1],
                (None, 0) => 0,
                (None, rows) => cached.unwrap()[rows - 1],
            };
            for (offset, row) in span.rows.clone().enumerate() {
                state = key(state, u64::from(forest.tokens()[row]), 0, 0, (span.start + offset) as u64);
                states.push(state);
            }
        }
        self.dials.computed.fetch_add(forest.len(), Ordering::Relaxed);
        self.dials.passes.fetch_add(1, Ordering::Relaxed);
        self.dials.largest.fetch_max(forest.len(), Ordering::Relaxed);
        Ok(states)
    }
}

impl Engine for Hashes {
    fn config(&self) -> &Config {
        &self.config
    }
    fn precision(&self) -> &'static str {
        "f32"
    }
    fn isa(&self) -> dialoguellm_kernels::Isa {
        dialoguellm_kernels::Isa::Portable
    }
    fn cache(&self) -> Cache {
        Cache { rows: 0, store: Box::new(Vec::<u64>::new()) }
    }
    fn log_probs(&self, pass: &Pass, cache: Option<&Cache>, targets: &[Target]) -> Result<Vec<f32>> {
        let states = self.states(pass, cache)?;
        let nan_from = self.dials.nan_from.load(Ordering::Relaxed);
        if nan_from > 0 && self.dials.passes.load(Ordering::Relaxed) >= nan_from {
            return Ok(vec![f32::NAN; targets.len()]);
        }
        let log_prob = |target: &Target| {
            let hash = key(states[target.row as usize], 1, 0, 0, u64::from(target.token));
            -4.0 * (hash >> 40) as f32 / (1 << 24) as f32
        };
        Ok(targets.iter().map(log_prob).collect())
    }
    fn logits(&self, _: &Pass, _: Option<&Cache>, _: &[u32]) -> Result<Vec<f32>> {
        Err(Error::internal("no test of this layer asks for logits"))
    }
    fn entering(&self, _: &Pass, _: usize) -> Result<Vec<f32>> {
        Err(Error::internal("no test of this layer asks what enters a layer"))
    }
    fn extend(&self, pass: &Pass, cache: &mut Cache) -> Result<()> {
        assert_eq!(pass.forest.cached(), cache.len());
        let states = self.states(pass, Some(cache))?;
        let store = cache.store.downcast_mut::<Vec<u64>>().unwrap();
        store.truncate(cache.rows);
        store.extend(states);
        cache.rows = store.len();
        Ok(())
    }
    fn draw(&self, _: &Pass, _: Continued, _: &Draw) -> Result<u32> {
        Err(Error::internal("no test of this layer draws"))
    }
    fn learner(&self, _: &Adapter, _: Option<&Moments>) -> Result<Box<dyn Learner>> {
        Err(Error::internal("no test of this layer learns"))
    }
    fn learn(
        &self,
        _: &mut dyn Learner,
        _: &Pass,
        _: &[Target],
        _: &Learning,
        _: &mut LossGradient,
    ) -> Result<Vec<f32>> {
        Err(Error::internal("no test of this layer learns"))
    }
    fn slopes(&self, _: &Pass, _: &Path, _: &[Target], _: &mut LossGradient) -> Result<Slopes> {
        Err(Error::internal("no test of this layer asks for slopes"))
    }
}

/// A model whose tokens are bytes and a few merges, with a first token.
pub(super) fn model(context: usize) -> (Arc<Model>, Arc<Dials>) {
    let dials = Arc::new(Dials::default());
    let tokenizer = tokenizer(&["\u{120} j", "o y", "\u{10a} E", ": \u{120}"], true);
    let vocab_size = tokenizer.vocab_size();
    let (bos, eos) = (vec![vocab_size as u32 - 2], vec![vocab_size as u32 - 1]);
    let config = Config { vocab_size, max_position_embeddings: context, bos, eos, ..crate::fake::config() };
    let engine = Box::new(Hashes { config, dials: dials.clone() });
    (Arc::new(Model::from_parts(tokenizer, engine, "base".to_owned())), dials)
}

/// Labels by their names.
pub(super) fn labels(names: &[&str]) -> Labels {
    Labels::new(names.iter().map(|&name| name.into()).collect()).unwrap()
}

/// The dialogue form with a shorter instruction, as a token here is nearly a letter.
pub(super) fn template(more: &str) -> Template {
    Template::from_toml(&format!("base = \"dialogue\"\ninstruction = \"Which?\"\n{more}")).unwrap()
}

/// A classifier on that engine.
pub(super) fn classifier(context: usize, template: Template, names: &[&str]) -> (Arc<Classifier>, Arc<Dials>) {
    let (model, dials) = model(context);
    (Arc::new(Classifier::new(model, None, template, labels(names)).unwrap()), dials)
}

/// Invented dialogues of 1 to 9 turns.
pub(super) fn dialogues(count: usize) -> Vec<Dialogue> {
    const SAYINGS: [&str; 5] = ["hi", "what?", "no: way", "joy, oh joy", "Emotion of you"];
    let pick = |seed: u64, n: usize| (key(7, seed, 0, 0, n as u64) >> 33) as usize;
    let turn = |d: u64, t: usize| Turn {
        speaker: ["Ann", "Bo", "J"][pick(d, 3 * t) % 3].into(),
        text: format!("{} {}", SAYINGS[pick(d, 3 * t + 1) % 5], pick(d, 3 * t + 2) % 100),
        ..Turn::default()
    };
    let dialogue =
        |d: u64| Dialogue { id: format!("d{d}"), turns: (0..1 + pick(d, 999) % 9).map(|t| turn(d, t)).collect() };
    (0..count as u64).map(dialogue).collect()
}
