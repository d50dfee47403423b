//! Everything that decides a training run, as one TOML file with the tables `[lora]`, `[train]`, `[emotion]`, `[eval]`,
//! `[decode]`.
//!
//! Every field may be left out; an unknown one is an error that lists the known ones. A recipe holds choices only: the
//! model, the data and the machine's settings (threads, precision) are given beside it.

use super::framing::{Ends, Framing};
use super::labels::Labels;
use super::metrics::Report;
use super::prompts::{Answer, Prompter, Task};
use super::shots;
use super::template::{Bos, Demonstration, Eos, Grouping, Template, Truncation, Window};
use super::written::Decode;
use crate::files::dialogues::{Dialogue, SPEAKER_LABELS};
use crate::files::{LoraConfig, Targets, Tokenizer};
use crate::train::{Loss, Options};
use crate::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A recipe.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Recipe {
    /// The adapter.
    pub lora: Lora,
    /// The optimiser's run.
    pub train: Options,
    /// From dialogues to token sequences.
    pub emotion: Emotion,
    /// What happens between steps: dev scores and checkpoints.
    pub eval: Eval,
    /// How answers are written, where they are not scored.
    pub decode: Decode,
}

/// The `[lora]` table: which weights get a pair, how wide, how strong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lora {
    /// R. Default 16.
    pub rank: usize,
    /// The scale's numerator: alpha / rank. Default 32.
    pub alpha: f64,
    /// Dropout of a pair's input while training. Default 0.
    pub dropout: f64,
    /// Modules that get a pair: `all-linear`, a name, a list of names, or a regular expression that matches whole paths
    /// such as `model.layers.0.self_attn.q_proj`. Default `all-linear`.
    pub targets: Modules,
    /// Modules that do not, in the same forms. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude: Option<Modules>,
    /// Scale alpha / sqrt(rank) (arXiv 2312.03732). Default false.
    pub rslora: bool,
    /// Other ranks for some modules, as pairs `[["q_proj", 4], ..]`; the first match counts. Default none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rank_pattern: Vec<(String, usize)>,
    /// Other alphas for some modules, likewise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alpha_pattern: Vec<(String, f64)>,
    /// Only these layers, for targets given as names. Default all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
}

impl Default for Lora {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            targets: Modules::Text("all-linear".into()),
            exclude: None,
            rslora: false,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            layers: None,
        }
    }
}

/// Modules of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Modules {
    /// `all-linear`, one name, or a regular expression: whatever is not letters, digits and `_` alone.
    Text(String),
    /// Names.
    List(Vec<String>),
}

impl Modules {
    fn targets(&self) -> Targets {
        match self {
            Modules::List(names) => Targets::Names(names.clone()),
            Modules::Text(text) if text == "all-linear" => Targets::AllLinear,
            Modules::Text(text) if text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') => {
                Targets::Names(vec![text.clone()])
            }
            Modules::Text(text) => Targets::Regex(text.clone()),
        }
    }
}

/// The `[emotion]` table. What is left out is the template's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Emotion {
    /// A built-in template's name, or a table as [`Template::from_toml_table`] reads it. Default `dialogue`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<TemplateChoice>,
    /// The labels' names in the data, in the order of the probabilities. Default: those of the training data, the most
    /// frequent first; the command takes a set's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    /// The words that the model reads and writes for them, in the same order. Default: the names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub words: Option<Vec<String>>,
    /// Previous turns shown: a number, or `all`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// Later turns shown: a number, or `all`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ahead: Option<Window>,
    /// What counts as one of a batch: `turn` or `dialogue`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<Grouping>,
    /// What is cut from a sequence that is too long: `oldest-context` or `right`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncation: Option<Truncation>,
    /// Whether a first token is added: `tokenizer`, `always` or `never`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bos: Option<Bos>,
    /// Whether an end token is added in training: `always`, `if-fits` or `never`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eos: Option<Eos>,
    /// The longest sequence in tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// What the loss of a turn is multiplied by: `none`, `balanced` (turns / (labels * turns of the label), as
    /// scikit-learn), `root` (its square root), `effective` (in proportion to (1 - b) / (1 - b^turns of the label), b 0.999,
    /// 1 in the mean over labels: Cui et al. 2019, arXiv 1901.05555), or a table of label = weight, 1 where a label is left
    /// out. Default `none`.
    pub class_weights: ClassWeights,
    /// Of the choice loss: while it learns, so many times ln of the label's share of the training data is added to its score,
    /// so that rare labels come off better when none is added (Menon et al. 2020, arXiv 2007.07314). Default 0.
    pub logit_adjustment: f64,
    /// Buckets of rising difficulty, by how often the emotion shifts, that dialogues are learned in: the first epoch learns from
    /// the easiest, every later one from a bucket more (Yang et al. 2022, arXiv 2112.11718). Default 0: all from the start.
    pub curriculum: usize,
    /// Labelled turns shown before every conversation.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub demonstrations: Vec<Demonstration>,
    /// So many turns of every label more, drawn from the training data by the seed; they are not learned from. Default 0.
    pub shots: usize,
    /// So many more, chosen for every turn by its words (BM25) from training turns, of which there are as many of every label as
    /// of the rarest. They are learned from too, and then never shown with themselves. Default 0.
    pub retrieved: usize,
    /// Whether those for a turn that is learned are of its own label only, as InstructERC's are (arXiv 2309.11911,
    /// section 3.2), which gives the label away. Default false.
    pub retrieved_own: bool,
    /// Whether training shows `shots` and `retrieved` too, or only asking does, as in DialogueLLM's code. Default true.
    pub shots_in_training: bool,
    /// Questions that are learned beside the main one and never asked. Default none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskChoice>,
}

/// One of the tables `[[emotion.tasks]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskChoice {
    /// How it is asked; nothing of the main question's options counts here.
    pub template: TemplateChoice,
    /// What its answer is: `emotion`, in the main question's words, or `speaker`, `Speaker_0` who speaks first of all.
    /// Default `emotion`.
    #[serde(default)]
    pub answer: Answer,
    /// What the loss of its answers is multiplied by. Default 0.1, InstructERC's (arXiv 2309.11911).
    #[serde(default = "tenth")]
    pub weight: f32,
}

fn tenth() -> f32 {
    0.1
}

impl Default for Emotion {
    fn default() -> Self {
        Self {
            template: None,
            labels: None,
            words: None,
            window: None,
            ahead: None,
            group: None,
            truncation: None,
            bos: None,
            eos: None,
            max_tokens: None,
            class_weights: ClassWeights::default(),
            logit_adjustment: 0.0,
            curriculum: 0,
            demonstrations: Vec::new(),
            shots: 0,
            retrieved: 0,
            retrieved_own: false,
            shots_in_training: true,
            tasks: Vec::new(),
        }
    }
}

/// A template by name or in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TemplateChoice {
    /// A built-in one.
    Name(String),
    /// One's own.
    Table(toml::Table),
}

impl TemplateChoice {
    /// The template. Errors: as [`Template::built_in`] and [`Template::from_toml_table`].
    fn template(&self) -> Result<Template> {
        match self {
            TemplateChoice::Name(name) => Template::built_in(name),
            TemplateChoice::Table(table) => Template::from_toml_table(table.clone()),
        }
    }
}

/// Weights of labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ClassWeights {
    /// By a rule.
    Rule(WeightRule),
    /// One by one.
    ByName(BTreeMap<String, f32>),
}

/// How weights of labels follow from the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightRule {
    /// All 1.
    None,
    /// Every label weighs the same in all.
    Balanced,
    /// Half way there, by the logarithm.
    Root,
    /// By how many different turns so many are worth.
    Effective,
}

impl Default for ClassWeights {
    fn default() -> Self {
        Self::Rule(WeightRule::None)
    }
}

/// The `[eval]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Eval {
    /// What the dev split chooses by: `weighted_f1`, `macro_f1`, `accuracy` or `nll`. Default `weighted_f1`.
    pub metric: Metric,
    /// Steps between dev scores; there is always one at the end of an epoch. Default 0: only there.
    pub dev_steps: u64,
    /// What is fitted on the dev split and stored with the adapter: `temperature`, `vector` (a scale and a bias for every label),
    /// `isotonic` (a curve for every label) or `none`. Default `temperature`.
    pub calibrate: Calibrate,
    /// Steps between checkpoints. Default 100; 0 for none but those at the end of an epoch.
    pub checkpoint_steps: u64,
    /// Tokens scored at once. Default 4096.
    pub score_tokens: usize,
}

impl Default for Eval {
    fn default() -> Self {
        Self {
            metric: Metric::WeightedF1,
            dev_steps: 0,
            calibrate: Calibrate::Temperature,
            checkpoint_steps: 100,
            score_tokens: 4096,
        }
    }
}

/// How probabilities are calibrated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Calibrate {
    /// Not at all.
    None,
    /// By one temperature.
    Temperature,
    /// By a scale and a bias for every label.
    Vector,
    /// By a curve for every label.
    Isotonic,
}

/// What a dev score is; of two adapters the one with the larger score is the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Mean F1, weighted by support.
    WeightedF1,
    /// Plain mean F1.
    MacroF1,
    /// Part of the turns that is right.
    Accuracy,
    /// The negative of the mean of -ln p(truth), before calibration.
    Nll,
}

impl Metric {
    /// The score that `report` gives.
    pub fn score(self, report: &Report) -> f64 {
        match self {
            Metric::WeightedF1 => report.weighted_f1,
            Metric::MacroF1 => report.macro_f1,
            Metric::Accuracy => report.accuracy,
            Metric::Nll => -report.nll,
        }
    }

    /// Its name in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Metric::WeightedF1 => "weighted_f1",
            Metric::MacroF1 => "macro_f1",
            Metric::Accuracy => "accuracy",
            Metric::Nll => "nll",
        }
    }
}

/// Every table and its fields. Field names are unique, so a setting may leave its table out: `epochs=2` means
/// `train.epochs=2`.
pub const FIELDS: [(&str, &[&str]); 5] = [
    ("lora", &["rank", "alpha", "dropout", "targets", "exclude", "rslora", "rank_pattern", "alpha_pattern", "layers"]),
    (
        "train",
        &[
            "seed",
            "epochs",
            "max_steps",
            "batch",
            "micro_tokens",
            "shuffle",
            "loss",
            "label_smoothing",
            "focal",
            "learning_rate",
            "schedule",
            "min_rate",
            "warmup_steps",
            "warmup_ratio",
            "beta1",
            "beta2",
            "epsilon",
            "weight_decay",
            "clip",
            "average",
            "frozen_once",
            "neftune",
            "activation_mib",
            "skip_limit",
        ],
    ),
    (
        "emotion",
        &[
            "template",
            "labels",
            "words",
            "window",
            "ahead",
            "group",
            "truncation",
            "bos",
            "eos",
            "max_tokens",
            "class_weights",
            "logit_adjustment",
            "curriculum",
            "demonstrations",
            "shots",
            "retrieved",
            "retrieved_own",
            "shots_in_training",
            "tasks",
        ],
    ),
    ("eval", &["metric", "dev_steps", "calibrate", "checkpoint_steps", "score_tokens"]),
    ("decode", &["beams", "repetition_penalty", "new_tokens", "answers"]),
];

impl Recipe {
    /// A recipe from TOML text.
    ///
    /// # Errors
    /// INVALID_ARGUMENT with the line of what is no TOML, or the table and field that is unknown or out of its range.
    pub fn from_toml(text: &str) -> Result<Self> {
        Self::with(text, &[])
    }

    /// As [`Recipe::from_toml`], with `settings` such as `train.epochs=2` or `epochs=2` in place of the text's own. A
    /// value is TOML, or else a text: `template=dialogue`, `labels=["joy", "fear"]`.
    ///
    /// # Errors
    /// As [`Recipe::from_toml`].
    pub fn with(text: &str, settings: &[String]) -> Result<Self> {
        let mut table: toml::Table = text.parse().map_err(|error: toml::de::Error| not_toml(text, &error))?;
        for setting in settings {
            set(&mut table, setting)?;
        }
        let recipe = Self {
            lora: section(&mut table, "lora")?,
            train: section(&mut table, "train")?,
            emotion: section(&mut table, "emotion")?,
            eval: section(&mut table, "eval")?,
            decode: section(&mut table, "decode")?,
        };
        if let Some(other) = table.keys().next() {
            let tables = FIELDS.map(|(table, _)| table).join("], [");
            return Err(Error::invalid(format!("recipe: unknown table or field `{other}`; there are [{tables}]")));
        }
        recipe.check()?;
        Ok(recipe)
    }

    /// The whole recipe as TOML, defaults included.
    ///
    /// # Errors
    /// INTERNAL.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|error| Error::internal(format!("a recipe as TOML: {error}")))
    }

    fn check(&self) -> Result<()> {
        self.train.check().map_err(|error| error.at("recipe [train]"))?;
        let Lora { rank, alpha, dropout, .. } = self.lora;
        let wrong = |what: String| Err(Error::invalid(format!("recipe [lora]: {what}")));
        if rank == 0 {
            return wrong("rank is 0, must be 1 or more".into());
        }
        if !(alpha > 0.0 && alpha.is_finite()) {
            return wrong(format!("alpha is {alpha}, must be above 0"));
        }
        if !(0.0..1.0).contains(&dropout) {
            return wrong(format!("dropout is {dropout}, must be from 0 to below 1"));
        }
        if self.eval.score_tokens == 0 {
            return Err(Error::invalid("recipe [eval]: score_tokens is 0, must be 1 or more"));
        }
        self.decode.search(Vec::new()).check().map_err(|error| error.at("recipe [decode]"))?;
        let (buckets, epochs) = (self.emotion.curriculum, self.train.epochs);
        if buckets as u64 > epochs && self.train.max_steps == 0 {
            return Err(Error::invalid(format!(
                "recipe [emotion]: curriculum is {buckets}, must be at most the {epochs} epochs: nothing would be learned from the \
                 most difficult dialogues"
            )));
        }
        let adjustment = self.emotion.logit_adjustment;
        if !adjustment.is_finite() || (adjustment != 0.0 && self.train.loss != Loss::Choice) {
            let text = format!("logit_adjustment is {adjustment}, must be 0 unless [train] loss is `choice`");
            return Err(Error::invalid(format!("recipe [emotion]: {text}")));
        }
        if let Some(task) = self.emotion.tasks.iter().find(|task| !(task.weight > 0.0 && task.weight.is_finite())) {
            let text = format!("the weight of a task is {}, must be above 0", task.weight);
            return Err(Error::invalid(format!("recipe [emotion]: {text}")));
        }
        if self.emotion.words.is_some() && self.emotion.labels.is_none() {
            return Err(Error::invalid("recipe [emotion]: words need labels, in the same order"));
        }
        Ok(())
    }

    /// The adapter's settings for PEFT's adapter_config.json.
    pub fn lora_config(&self) -> LoraConfig {
        let Lora { rank, alpha, dropout, rslora, .. } = self.lora;
        LoraConfig {
            rank,
            alpha,
            dropout,
            targets: self.lora.targets.targets(),
            exclude: self.lora.exclude.as_ref().map(Modules::targets),
            use_rslora: rslora,
            rank_pattern: self.lora.rank_pattern.clone(),
            alpha_pattern: self.lora.alpha_pattern.clone(),
            layers_to_transform: self.lora.layers.clone(),
            ..LoraConfig::default()
        }
    }

    /// The template with this recipe's options, and without the demonstrations that are drawn ([`Recipe::shown`]). Without one
    /// of its own it is `earlier`'s (of an adapter that training starts from), else `dialogue`.
    ///
    /// # Errors
    /// As [`Template::from_toml_table`].
    pub fn template(&self, earlier: Option<&Template>) -> Result<Template> {
        let mut template = match (&self.emotion.template, earlier) {
            (Some(choice), _) => choice.template()?,
            (None, Some(earlier)) => earlier.clone(),
            (None, None) => Template::built_in("dialogue")?,
        };
        let Emotion {
            window, ahead, group, truncation, bos, eos, max_tokens, demonstrations, shots, retrieved, ..
        } = &self.emotion;
        template.window = window.unwrap_or(template.window);
        template.ahead = ahead.unwrap_or(template.ahead);
        template.group = group.unwrap_or(template.group);
        template.truncation = truncation.unwrap_or(template.truncation);
        template.bos = bos.unwrap_or(template.bos);
        template.eos = eos.unwrap_or(template.eos);
        template.max_tokens = max_tokens.or(template.max_tokens);
        // of an earlier adapter's some may have been drawn
        if !demonstrations.is_empty() || *shots > 0 {
            template.demonstrations.clone_from(demonstrations);
        }
        if *retrieved > 0 {
            (template.retrieved, template.retrieval) = (0, Vec::new());
        }
        Ok(template)
    }

    /// What training and asking show: `template` with the turns that are drawn from the training data or retrieved from them, and
    /// the places of those that are drawn.
    pub fn shown(
        &self,
        template: &Template,
        dialogues: &[Dialogue],
        labels: &Labels,
    ) -> (Template, Vec<(usize, usize)>) {
        let Emotion { shots, retrieved, .. } = self.emotion;
        let places = shots::drawn(dialogues, labels, shots, self.train.seed);
        let mut shown = template.clone();
        shown.demonstrations.extend(shots::demonstrations(dialogues, &places));
        if retrieved > 0 {
            let from = shots::balanced(dialogues, labels, self.train.seed, &places);
            (shown.retrieved, shown.retrieval) = (retrieved, shots::demonstrations(dialogues, &from));
        }
        (shown, places)
    }

    /// The questions that are learned beside the main one, which has `labels`.
    ///
    /// # Errors
    /// As [`Template::from_toml_table`] and [`Prompter::new`].
    pub fn tasks(&self, labels: &Labels, tokenizer: &Tokenizer, ends: Ends) -> Result<Vec<Task>> {
        let ready = |TaskChoice { template, answer, weight }: &TaskChoice| {
            let labels = match answer {
                Answer::Emotion => labels.clone().ended_by(None),
                Answer::Speaker => Labels::new(SPEAKER_LABELS.map(String::from).to_vec())?,
            };
            let prompter = Prompter::new(&template.template()?, labels, tokenizer, ends)?;
            Ok(Task { prompter, answer: *answer, weight: *weight })
        };
        self.emotion
            .tasks
            .iter()
            .map(ready)
            .collect::<Result<_>>()
            .map_err(|error: Error| error.at("recipe [emotion] tasks"))
    }

    /// The labels that this recipe names, if it does.
    ///
    /// # Errors
    /// As [`Labels::with_words`].
    pub fn own_labels(&self) -> Result<Option<Labels>> {
        let Emotion { labels, words, .. } = &self.emotion;
        let Some(names) = labels else { return Ok(None) };
        let words = words.as_ref().unwrap_or(names);
        Labels::with_words(names.clone(), words.clone()).map(Some).map_err(|error| error.at("recipe [emotion]"))
    }

    /// How prompts and completions become sequences: this recipe's options and no template's, so no end token unless it
    /// asks for one.
    pub fn framing(&self) -> Framing {
        let Emotion { truncation, bos, eos, max_tokens, .. } = self.emotion;
        Framing {
            truncation: truncation.unwrap_or_default(),
            bos: bos.unwrap_or_default(),
            eos: eos.unwrap_or_default(),
            max_tokens,
        }
    }

    /// The weight of every label; empty where all are 1.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a weight that is no number of 0 or more; NOT_FOUND for a weight of an unknown label.
    pub fn class_weights(&self, labels: &Labels, dialogues: &[Dialogue]) -> Result<Vec<f32>> {
        match &self.emotion.class_weights {
            ClassWeights::Rule(WeightRule::None) => Ok(Vec::new()),
            ClassWeights::Rule(WeightRule::Balanced) => Ok(balanced(&counts(labels, dialogues))),
            ClassWeights::Rule(WeightRule::Root) => {
                Ok(balanced(&counts(labels, dialogues)).into_iter().map(f32::sqrt).collect())
            }
            ClassWeights::Rule(WeightRule::Effective) => Ok(effective(&counts(labels, dialogues))),
            ClassWeights::ByName(by_name) => listed(labels, by_name),
        }
    }

    /// What the choice loss adds to every label's score while it learns; empty for nothing. A label that does not occur
    /// counts as if one turn had it.
    pub fn biases(&self, labels: &Labels, dialogues: &[Dialogue]) -> Vec<f32> {
        let times = self.emotion.logit_adjustment;
        if times == 0.0 {
            return Vec::new();
        }
        let counts = counts(labels, dialogues);
        let total = counts.iter().sum::<usize>() as f64;
        counts.into_iter().map(|n| (times * (n.max(1) as f64 / total.max(1.0)).ln()) as f32).collect()
    }
}

fn listed(labels: &Labels, by_name: &BTreeMap<String, f32>) -> Result<Vec<f32>> {
    let mut weights = vec![1.0; labels.len()];
    for (name, &weight) in by_name {
        let label = labels.index(name).map_err(|error| error.at("recipe [emotion]: class_weights"))?;
        if !(weight >= 0.0 && weight.is_finite()) {
            return Err(Error::invalid(format!(
                "recipe [emotion]: the weight of `{name}` is {weight}, must be 0 or more"
            )));
        }
        weights[label] = weight;
    }
    Ok(weights)
}

/// The turns that have each label.
fn counts(labels: &Labels, dialogues: &[Dialogue]) -> Vec<usize> {
    let mut counts = vec![0; labels.len()];
    let turns = dialogues.iter().flat_map(|dialogue| &dialogue.turns);
    for label in turns.filter_map(|turn| labels.index(turn.emotion.as_ref()?).ok()) {
        counts[label] += 1;
    }
    counts
}

/// turns / (labels that occur * turns of the label); 1 for a label that does not occur.
fn balanced(counts: &[usize]) -> Vec<f32> {
    let (total, kinds) = (counts.iter().sum::<usize>() as f32, counts.iter().filter(|&&n| n > 0).count() as f32);
    counts.iter().map(|&n| if n == 0 { 1.0 } else { total / (kinds * n as f32) }).collect()
}

/// The inverse of the effective number (1 - b^n) / (1 - b), 1 in the mean over labels that occur; 1 for others.
fn effective(counts: &[usize]) -> Vec<f32> {
    const B: f64 = 0.999;
    let inverse = |n: usize| (1.0 - B) / (1.0 - B.powf(n as f64));
    let occurring: Vec<f64> = counts.iter().filter(|&&n| n > 0).map(|&n| inverse(n)).collect();
    let mean = occurring.iter().sum::<f64>() / occurring.len().max(1) as f64;
    counts.iter().map(|&n| if n == 0 { 1.0 } else { (inverse(n) / mean) as f32 }).collect()
}

fn section<T: DeserializeOwned + Default>(table: &mut toml::Table, name: &str) -> Result<T> {
    let Some(value) = table.remove(name) else { return Ok(T::default()) };
    value.try_into().map_err(|error: toml::de::Error| {
        let message = error.message().trim().replace('\n', ", ");
        Error::invalid(format!("recipe [{name}]: {message}"))
    })
}

fn not_toml(text: &str, error: &toml::de::Error) -> Error {
    let at = error.span().map_or(text.len(), |span| span.start.min(text.len()));
    let line = 1 + text.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count();
    Error::invalid(format!("recipe, line {line}: {}", error.message().trim().replace('\n', ", ")))
}

/// Puts `table.field=value` into `table`.
fn set(table: &mut toml::Table, setting: &str) -> Result<()> {
    let Some((path, value)) = setting.split_once('=') else {
        return Err(Error::invalid(format!("the setting `{setting}` has no `=`; write field=value")));
    };
    let path = path.trim();
    let (section, field) = match path.split_once('.') {
        Some(pair) => pair,
        None => (table_of(path)?, path),
    };
    let section = table.entry(section).or_insert_with(|| toml::Table::new().into());
    let Some(section) = section.as_table_mut() else {
        return Err(Error::invalid(format!("the setting `{setting}` is in a field, not in a table")));
    };
    section.insert(field.to_owned(), value_of(field, value.trim()));
    Ok(())
}

fn table_of(field: &str) -> Result<&'static str> {
    let found = FIELDS.iter().find(|(_, fields)| fields.contains(&field));
    found.map(|(table, _)| *table).ok_or_else(|| {
        let all: Vec<&str> = FIELDS.iter().flat_map(|(_, fields)| fields.iter().copied()).collect();
        Error::invalid(format!("no recipe has a field `{field}`; there are {}", all.join(", ")))
    })
}

/// TOML, or else a text; a text with commas is a list where the field takes one.
fn value_of(field: &str, text: &str) -> toml::Value {
    let parsed = format!("value = {text}").parse::<toml::Table>().ok().and_then(|mut table| table.remove("value"));
    let is_list = ["labels", "words", "targets", "exclude"].contains(&field) && text.contains(',');
    parsed.unwrap_or_else(|| match is_list {
        true => text.split(',').map(str::trim).collect::<Vec<_>>().into(),
        false => text.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emotion::framing::tests::{ends, tokenizer};
    use crate::emotion::template::All;
    use crate::files::dialogues::Turn;

    fn with(settings: &[&str]) -> Result<Recipe> {
        Recipe::with("", &settings.iter().map(|&setting| setting.into()).collect::<Vec<_>>())
    }

    fn refusal(text: &str) -> String {
        Recipe::from_toml(text).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_recipe_is_the_defaults_and_reads_back() {
        let recipe = Recipe::from_toml("").unwrap();
        assert_eq!(recipe, Recipe::default());
        assert_eq!(Recipe::from_toml(&recipe.to_toml().unwrap()).unwrap(), recipe);
    }

    #[test]
    fn a_full_recipe_reads_back_from_its_own_text() {
        let text = r#"
            [lora]
            targets = ["q_proj"]
            rank_pattern = [["layers.0", 2]]
            layers = [0]
            [train]
            loss = "choice"
            [emotion]
            template = { base = "dialogue", question = "?" }
            labels = ["joy", "fear"]
            words = ["happiness", "fear"]
            window = "all"
            class_weights = { fear = 2.0 }
            demonstrations = [{ text = "boo", label = "fear" }]
            [eval]
            metric = "nll"
        "#;
        let recipe = Recipe::from_toml(text).unwrap();
        assert_eq!(Recipe::from_toml(&recipe.to_toml().unwrap()).unwrap(), recipe);
        assert_eq!(recipe.train.loss, Loss::Choice);
        let template = recipe.template(None).unwrap();
        assert_eq!((template.question.as_str(), template.window), ("?", Window::All(All::All)));
        assert_eq!(template.demonstrations.len(), 1);
        assert_eq!(recipe.own_labels().unwrap().unwrap().words(), ["happiness", "fear"]);
    }

    #[test]
    fn the_list_of_fields_is_complete() {
        for (table, fields) in FIELDS {
            // serde lists all names of a table where one is unknown
            let error = refusal(&format!("[{table}]\nnonsense = 1"));
            let listed: Vec<&str> = error.split('`').skip(3).step_by(2).collect();
            assert_eq!(listed, fields, "{error}");
        }
    }

    #[test]
    fn a_fields_name_is_in_one_table_only() {
        let all: Vec<&str> = FIELDS.iter().flat_map(|(_, fields)| fields.iter().copied()).collect();
        assert!(all.iter().all(|field| all.iter().filter(|other| other == &field).count() == 1));
    }

    #[test]
    fn a_setting_stands_above_the_text_with_or_without_its_table() {
        let recipe = Recipe::with(
            "[train]\nepochs = 9\nbatch = 3",
            &["epochs=2".into(), "lora.rank = 4".into(), "template=dialoguellm".into()],
        );
        let recipe = recipe.unwrap();
        assert_eq!((recipe.train.epochs, recipe.train.batch, recipe.lora.rank), (2, 3, 4));
        assert_eq!(recipe.emotion.template, Some(TemplateChoice::Name("dialoguellm".into())));
    }

    #[test]
    fn values_are_toml_or_else_texts() {
        let recipe =
            with(&["labels=[\"a\", \"b\"]", "words=c, d", "window=2", "eos=if-fits", "shuffle=false"]).unwrap();
        assert_eq!(recipe.emotion.labels.as_deref().unwrap(), ["a", "b"]);
        assert_eq!(recipe.emotion.words.as_deref().unwrap(), ["c", "d"]);
        assert_eq!((recipe.emotion.window, recipe.emotion.eos), (Some(Window::Last(2)), Some(Eos::IfFits)));
        assert!(!recipe.train.shuffle);
    }

    #[test]
    fn every_refusal_names_table_field_and_value() {
        assert!(refusal("[train]\nepochs = ").contains("line 2"));
        assert!(refusal("[lora]\nrank = -1").starts_with("recipe [lora]: "), "{}", refusal("[lora]\nrank = -1"));
        assert_eq!(refusal("[lora]\ndropout = 1.0"), "recipe [lora]: dropout is 1, must be from 0 to below 1");
        assert_eq!(refusal("[lora]\nalpha = nan"), "recipe [lora]: alpha is NaN, must be above 0");
        assert_eq!(refusal("[train]\nbatch = 0"), "recipe [train]: batch is 0, must be 1 or more");
        assert!(refusal("[trian]\nbatch = 1").contains("`trian`; there are [lora], [train], [emotion], [eval]"));
        assert!(with(&["epoch=1"]).unwrap_err().text().contains("no recipe has a field `epoch`; there are rank"));
        assert!(with(&["epochs"]).is_err() && with(&["x.epochs=1"]).is_err());
        let late = with(&["epochs=2", "curriculum=3"]).unwrap_err();
        assert!(late.text().contains("curriculum is 3, must be at most the 2 epochs"), "{late}");
        assert!(with(&["epochs=2", "curriculum=2"]).is_ok());
    }

    #[test]
    fn targets_are_names_expressions_or_all() {
        let targets = |value: &str| with(&[&format!("targets={value}")]).unwrap().lora_config().targets;
        assert_eq!(targets("all-linear"), Targets::AllLinear);
        assert_eq!(targets("q_proj"), Targets::Names(vec!["q_proj".into()]));
        assert_eq!(targets("[\"q_proj\", \"v_proj\"]"), Targets::Names(vec!["q_proj".into(), "v_proj".into()]));
        assert_eq!(targets(".*q_proj"), Targets::Regex(".*q_proj".into()));
    }

    #[test]
    fn an_earlier_template_is_kept_unless_the_recipe_names_one() {
        let earlier = Template { name: "own".into(), ..Template::built_in("dialogue").unwrap() };
        let name = |settings: &[&str]| with(settings).unwrap().template(Some(&earlier)).unwrap().name;
        assert_eq!([name(&["window=1"]), name(&["template=dialoguellm"])], ["own", "dialoguellm"]);
    }

    #[test]
    fn weights_are_scikit_learns_balanced_ones_or_as_listed() {
        let labels = Labels::new(["a", "b", "c"].map(String::from).to_vec()).unwrap();
        let turn = |emotion: &str| Turn { emotion: Some(emotion.into()), ..Turn::default() };
        let dialogue = Dialogue { id: "d".into(), turns: ["a", "a", "a", "b"].map(turn).to_vec() };
        let weights =
            |settings: &[&str]| with(settings).unwrap().class_weights(&labels, std::slice::from_ref(&dialogue));
        // compute_class_weight("balanced", classes=["a", "b"], y=["a", "a", "a", "b"]) of scikit-learn
        assert_eq!(weights(&["class_weights=balanced"]).unwrap(), [2.0 / 3.0, 2.0, 1.0]);
        assert_eq!(weights(&["class_weights=root"]).unwrap(), [(2f32 / 3.0).sqrt(), 2f32.sqrt(), 1.0]);
        // 1 / n_eff of 3 and of 1: 1 / 2.997001 and 1, over their mean
        let effective = weights(&["class_weights=effective"]).unwrap();
        let want = [0.333_666_9 / 0.666_833_4, 1.0 / 0.666_833_4, 1.0];
        assert!(effective.iter().zip(want).all(|(got, want): (&f32, f32)| (got - want).abs() < 1e-5), "{effective:?}");
        let biases = |settings: &[&str]| with(settings).map(|r| r.biases(&labels, std::slice::from_ref(&dialogue)));
        let adjusted = biases(&["loss=choice", "logit_adjustment=2.0"]).unwrap();
        assert!((adjusted[0] - 2.0 * 0.75f32.ln()).abs() < 1e-6 && (adjusted[1] - 2.0 * 0.25f32.ln()).abs() < 1e-6);
        assert!(biases(&[]).unwrap().is_empty() && biases(&["logit_adjustment=1.0"]).is_err());
        assert!(with(&["focal=1.0"]).is_err() && with(&["loss=choice", "focal=1.0", "label_smoothing=0.1"]).is_err());
        assert_eq!(weights(&["class_weights={b = 3.0}"]).unwrap(), [1.0, 3.0, 1.0]);
        assert!(weights(&[]).unwrap().is_empty());
        assert!(weights(&["class_weights={z = 3.0}"]).is_err() && weights(&["class_weights={a = -1.0}"]).is_err());
    }

    #[test]
    fn tasks_are_read_written_and_refused_where_they_teach_nothing() {
        let recipe = with(&[
            "tasks=[{template='instructerc-impact'}, {template={base='dialogue'}, answer='speaker', weight=1}]",
        ]);
        let recipe = recipe.unwrap();
        assert_eq!(Recipe::from_toml(&recipe.to_toml().unwrap()).unwrap(), recipe);
        let tasks = recipe.tasks(&Labels::meld(), &tokenizer(&[], true), ends(4096)).unwrap();
        let first = (tasks[0].answer, tasks[0].weight, tasks[0].prompter.labels().len());
        assert_eq!(first, (Answer::Emotion, 0.1, 7));
        assert_eq!((tasks[1].answer, tasks[1].prompter.labels().names()[8].as_str()), (Answer::Speaker, "Speaker_8"));
        for weight in ["0", "-1", "nan", "inf"] {
            let refused = with(&[&format!("tasks=[{{template='dialogue', weight={weight}}}]")]).unwrap_err();
            assert!(refused.to_string().contains("must be above 0"), "{refused}");
        }
    }

    #[test]
    fn pairs_get_no_end_token_unless_the_recipe_says_so() {
        assert_eq!(with(&["template=dialoguellm"]).unwrap().framing(), Framing::default());
        assert_eq!(with(&["eos=always"]).unwrap().framing().eos, Eos::Always);
    }

    #[test]
    fn every_recipe_under_examples_can_be_used() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/recipes");
        let mut seen = 0;
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let mut table: toml::Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
            // `dialoguellm study` takes its own table off
            let is_study = path.file_name().unwrap().to_str().unwrap().starts_with("study-");
            assert_eq!(table.remove("study").is_some(), is_study, "{}", path.display());
            let recipe = Recipe::from_toml(&table.to_string()).unwrap();
            recipe.template(None).unwrap();
            let labels = recipe.own_labels().unwrap().unwrap();
            let tasks = recipe.tasks(&labels, &tokenizer(&[], true), ends(4096)).unwrap();
            assert_eq!(tasks.len(), recipe.emotion.tasks.len());
            crate::train::Rate::new(&recipe.train, 1000).unwrap();
            seen += 1;
        }
        assert!(seen >= 15, "{seen}");
    }
}
