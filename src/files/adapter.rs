//! LoRA adapters as PEFT writes and reads them: adapter_config.json and adapter_model.safetensors.
//!
//! Which modules get a pair, with which rank and scale, follows PEFT's rules (peft 0.21, `tuners_utils.py` and
//! `utils/other.py`: suffix names, full-match regular expressions, first matching pattern). What PEFT would do and this
//! library does not is refused by name. This file knows the names of a LLaMA's linear layers, not how they compute.

use super::safetensors::{NewTensor, Writer};
use super::{Access, Config, TensorView, Tensors, read_json};
use crate::{Code, Error, Result};
use dialoguellm_kernels::matrix::Dtype;
use fancy_regex::Regex;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// The settings' file in an adapter folder.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The weights' file in an adapter folder.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// Before every module's path in the weights' file.
const PREFIX: &str = "base_model.model.";
/// Far above any rank in use; a pair's size then stays within memory arithmetic.
const MAX_RANK: usize = 1 << 16;

/// One of the seven linear layers of a block, in the order of computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Attention's output.
    O,
    /// The gated half of the feed-forward part.
    Gate,
    /// Its other half.
    Up,
    /// Back to the residual stream.
    Down,
}

impl Site {
    /// All seven, in order.
    pub const ALL: [Site; 7] = [Site::Q, Site::K, Site::V, Site::O, Site::Gate, Site::Up, Site::Down];

    /// Its path below `model.layers.N`, the same in transformers and PEFT.
    pub fn peft_name(self) -> &'static str {
        match self {
            Site::Q => "self_attn.q_proj",
            Site::K => "self_attn.k_proj",
            Site::V => "self_attn.v_proj",
            Site::O => "self_attn.o_proj",
            Site::Gate => "mlp.gate_proj",
            Site::Up => "mlp.up_proj",
            Site::Down => "mlp.down_proj",
        }
    }

    /// Its path in the model: `model.layers.0.self_attn.q_proj`.
    pub fn path(self, layer: usize) -> String {
        format!("model.layers.{layer}.{}", self.peft_name())
    }

    /// `(out, in)`: rows and columns of its weight.
    pub fn shape(self, c: &Config) -> (usize, usize) {
        let (q, kv) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        match self {
            Site::Q => (q, c.hidden_size),
            Site::K | Site::V => (kv, c.hidden_size),
            Site::O => (c.hidden_size, q),
            Site::Gate | Site::Up => (c.intermediate_size, c.hidden_size),
            Site::Down => (c.hidden_size, c.intermediate_size),
        }
    }
}

/// Which modules get a pair, as the user or the file says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Modules whose path is, or ends in a dot and, one of these.
    Names(Vec<String>),
    /// Modules whose whole path matches.
    Regex(String),
    /// All seven linear layers of every block; not the output matrix.
    AllLinear,
}

/// LoRA settings, as in adapter_config.json.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// R, where no pattern says otherwise.
    pub rank: usize,
    /// The scale's numerator, where no pattern says otherwise.
    pub alpha: f64,
    /// Dropout of the pair's input while training.
    pub dropout: f64,
    /// Which modules.
    pub targets: Targets,
    /// Which of them not.
    pub exclude: Option<Targets>,
    /// Scale alpha/sqrt(R) instead of alpha/R (Kalajdzievski 2023).
    pub use_rslora: bool,
    /// Ranks by module pattern; the first match counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// Alphas by module pattern; the first match counts.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Only these layers, for targets given as names.
    pub layers_to_transform: Option<Vec<usize>>,
    /// What the list of layers is called in the model, where there are several lists.
    pub layers_pattern: Vec<String>,
    /// The base model's name or folder.
    pub base_model_name: Option<String>,
}

impl Default for LoraConfig {
    /// PEFT's own defaults for a LLaMA.
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 8.0,
            dropout: 0.0,
            targets: default_targets(),
            exclude: None,
            use_rslora: false,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            base_model_name: None,
        }
    }
}

fn default_targets() -> Targets {
    Targets::Names(vec!["q_proj".to_owned(), "v_proj".to_owned()])
}

/// One pair to be: where, how wide, how strong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairSpec {
    /// Block number.
    pub layer: usize,
    /// Which of its linear layers.
    pub site: Site,
    /// R of this pair.
    pub rank: usize,
    /// Alpha of this pair.
    pub alpha: f64,
    /// `alpha / rank`, or `alpha / sqrt(rank)` with rsLoRA: y = W x + scale B (A x).
    pub scale: f64,
}

impl PairSpec {
    /// The tensors' names in an adapter's weights: A's and B's.
    pub fn tensor_names(&self) -> [String; 2] {
        let path = self.site.path(self.layer);
        ["lora_A", "lora_B"].map(|half| format!("{PREFIX}{path}.{half}.weight"))
    }

    /// Shapes of A `[rank, in]` and B `[out, rank]`.
    pub fn shapes(&self, config: &Config) -> [[usize; 2]; 2] {
        let (out, input) = self.site.shape(config);
        [[self.rank, input], [out, self.rank]]
    }
}

/// A trained pair.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Where it belongs.
    pub spec: PairSpec,
    /// A, `[rank, in]`, row-major.
    pub a: Vec<f32>,
    /// B, `[out, rank]`, row-major.
    pub b: Vec<f32>,
}

impl LoraConfig {
    /// Reads `dir/adapter_config.json`.
    ///
    /// # Errors
    /// NotFound; BadFile; Unsupported where it asks for something PEFT does and this library does not, by name.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG_FILE);
        Self::from_json(read_json(&path)?).map_err(|e| e.at(path.display()))
    }

    /// From a parsed adapter_config.json.
    ///
    /// # Errors
    /// As [`LoraConfig::read`], without the path.
    pub fn from_json(map: Map<String, Value>) -> Result<Self> {
        let f = Fields(map);
        f.refuse_what_is_not_done()?;
        let config = Self {
            rank: f.rank("r", f.get("r").unwrap_or(&json!(8)))?,
            alpha: f.number("lora_alpha", f.get("lora_alpha").unwrap_or(&json!(8)))?,
            dropout: f.number("lora_dropout", f.get("lora_dropout").unwrap_or(&json!(0)))?,
            targets: f.targets("target_modules")?.unwrap_or_else(default_targets),
            exclude: f.targets("exclude_modules")?,
            use_rslora: f.flag("use_rslora")?,
            rank_pattern: f.pattern("rank_pattern", |v| f.rank("rank_pattern", v))?,
            alpha_pattern: f.pattern("alpha_pattern", |v| f.number("alpha_pattern", v))?,
            layers_to_transform: f.layers("layers_to_transform")?,
            layers_pattern: f.names("layers_pattern")?.unwrap_or_default(),
            base_model_name: f.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned),
        };
        if !(0.0..1.0).contains(&config.dropout) {
            return Err(bad(format!("lora_dropout is {}, must be at least 0 and below 1", config.dropout)));
        }
        Ok(config)
    }

    /// adapter_config.json as PEFT since 0.9 reads it.
    pub fn to_json(&self) -> Value {
        json!({
            "alpha_pattern": self.alpha_pattern.iter().map(|(k, v)| (k.clone(), tidy(*v))).collect::<Map<_, _>>(),
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model_name,
            "bias": "none",
            "exclude_modules": self.exclude.as_ref().map(Targets::to_json),
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": (!self.layers_pattern.is_empty()).then_some(&self.layers_pattern),
            "layers_to_transform": self.layers_to_transform,
            "loftq_config": {},
            "lora_alpha": tidy(self.alpha),
            "lora_dropout": self.dropout,
            "megatron_config": null,
            "megatron_core": "megatron.core",
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.rank,
            "rank_pattern": self.rank_pattern.iter().map(|(k, v)| (k.clone(), (*v).into())).collect::<Map<_, Value>>(),
            "revision": null,
            "target_modules": self.targets.to_json(),
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": self.use_rslora,
        })
    }

    /// The pairs that PEFT would put into this model: by layer, then in [`Site`]'s order.
    ///
    /// # Errors
    /// InvalidArgument where nothing matches, a rank is 0 or a pattern does not parse; Unsupported where the embedding
    /// or the output matrix is a target.
    pub fn pairs(&self, config: &Config) -> Result<Vec<PairSpec>> {
        let plan = Plan::new(self)?;
        for other in ["lm_head", "model.embed_tokens", "model.norm"] {
            if plan.takes(other, None)? {
                let text = format!("target_modules match {other}; pairs are supported on the linear layers of blocks");
                return Err(Error::unsupported(text));
            }
        }
        let mut pairs = Vec::new();
        for layer in 0..config.n_layers {
            for site in Site::ALL {
                let path = site.path(layer);
                if plan.takes(&path, Some(layer))? {
                    pairs.push(plan.spec(layer, site, &path)?);
                }
            }
        }
        if pairs.is_empty() {
            return Err(Error::invalid(format!(
                "target_modules {} match no layer of this model",
                self.targets.to_json()
            )));
        }
        Ok(pairs)
    }
}

/// A [`LoraConfig`] with its patterns compiled.
struct Plan<'c> {
    config: &'c LoraConfig,
    targets: Matcher<'c>,
    exclude: Option<Matcher<'c>>,
    layer_lists: Vec<Regex>,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
}

enum Matcher<'c> {
    Names(&'c [String]),
    Regex(Regex),
    AllLinear,
}

impl<'c> Plan<'c> {
    fn new(config: &'c LoraConfig) -> Result<Self> {
        // PEFT: a key of a pattern is itself an expression that the end of the path must match.
        let ending = |key: &str| compiled(&format!(r"^(?:.*\.)?(?:{key})$"), key);
        if config.layers_to_transform.is_some() && !matches!(config.targets, Targets::Names(_)) {
            return Err(Error::invalid("layers_to_transform goes with target_modules as a list of names only"));
        }
        let list = |name: &String| compiled(&format!(r"^(?:|.*?\.)(?:{name})\.(\d+)\."), name);
        Ok(Self {
            config,
            targets: Matcher::new(&config.targets)?,
            exclude: config.exclude.as_ref().map(Matcher::new).transpose()?,
            layer_lists: config.layers_pattern.iter().map(list).collect::<Result<_>>()?,
            ranks: config.rank_pattern.iter().map(|(k, r)| Ok((ending(k)?, *r))).collect::<Result<_>>()?,
            alphas: config.alpha_pattern.iter().map(|(k, a)| Ok((ending(k)?, *a))).collect::<Result<_>>()?,
        })
    }

    fn takes(&self, path: &str, layer: Option<usize>) -> Result<bool> {
        if let Some(exclude) = &self.exclude
            && exclude.matches(path)?
        {
            return Ok(false);
        }
        Ok(self.targets.matches(path)? && (self.targets.is_exactly(path) || self.takes_layer(path, layer)?))
    }

    fn takes_layer(&self, path: &str, layer: Option<usize>) -> Result<bool> {
        match self.config.layers_to_transform.as_deref() {
            None | Some([]) => Ok(true),
            Some(layers) => {
                let listed = self.layer_lists.is_empty() || any_match(&self.layer_lists, path)?;
                Ok(listed && layer.is_some_and(|n| layers.contains(&n)))
            }
        }
    }

    fn spec(&self, layer: usize, site: Site, path: &str) -> Result<PairSpec> {
        let rank = first_match(&self.ranks, path)?.unwrap_or(self.config.rank);
        let alpha = first_match(&self.alphas, path)?.unwrap_or(self.config.alpha);
        if !(1..=MAX_RANK).contains(&rank) {
            return Err(Error::invalid(format!("the rank of {path} is {rank}, must be from 1 to {MAX_RANK}")));
        }
        let divisor = if self.config.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        Ok(PairSpec { layer, site, rank, alpha, scale: alpha / divisor })
    }
}

impl<'c> Matcher<'c> {
    fn new(targets: &'c Targets) -> Result<Self> {
        Ok(match targets {
            Targets::Names(names) => Matcher::Names(names),
            Targets::Regex(pattern) => Matcher::Regex(compiled(&format!("^(?:{pattern})$"), pattern)?),
            Targets::AllLinear => Matcher::AllLinear,
        })
    }

    fn matches(&self, path: &str) -> Result<bool> {
        match self {
            Matcher::Names(names) => Ok(names
                .iter()
                .any(|n| path.strip_suffix(n.as_str()).is_some_and(|p| p.is_empty() || p.ends_with('.')))),
            Matcher::Regex(regex) => is_match(regex, path),
            Matcher::AllLinear => Ok(Site::ALL.iter().any(|s| path.ends_with(s.peft_name()))),
        }
    }

    /// PEFT does not look at the layer of a module that is named in full, nor of one that an expression matches.
    fn is_exactly(&self, path: &str) -> bool {
        match self {
            Matcher::Names(names) => names.iter().any(|n| n == path),
            Matcher::Regex(_) | Matcher::AllLinear => true,
        }
    }
}

fn compiled(regex: &str, shown: &str) -> Result<Regex> {
    Regex::new(regex).map_err(|e| Error::invalid(format!("the module pattern {shown:?} is no regular expression: {e}")))
}

fn is_match(regex: &Regex, path: &str) -> Result<bool> {
    regex
        .is_match(path)
        .map_err(|e| Error::invalid(format!("the module pattern {:?} fails on {path}: {e}", regex.as_str())))
}

fn any_match(all: &[Regex], path: &str) -> Result<bool> {
    for regex in all {
        if is_match(regex, path)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn first_match<T: Copy>(all: &[(Regex, T)], path: &str) -> Result<Option<T>> {
    for (regex, value) in all {
        if is_match(regex, path)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

impl Targets {
    fn to_json(&self) -> Value {
        match self {
            Targets::Names(names) => names.clone().into(),
            Targets::Regex(pattern) => pattern.clone().into(),
            Targets::AllLinear => "all-linear".into(),
        }
    }
}

/// PEFT's alpha is a whole number where it can be.
fn tidy(x: f64) -> Value {
    let whole = x.fract() == 0.0 && x.abs() < 1e15;
    if whole { (x as i64).into() } else { x.into() }
}

/// Reads an adapter folder and checks it against the model it is for.
///
/// # Errors
/// NotFound; BadFile where tensors are missing, of another shape, or of no pair; Unsupported as
/// [`LoraConfig::from_json`]; Numeric where a weight is NaN or infinite.
pub fn read(dir: &Path, config: &Config) -> Result<(LoraConfig, Vec<Pair>)> {
    let lora = LoraConfig::read(dir)?;
    let specs = lora.pairs(config).map_err(|e| e.at(dir.join(CONFIG_FILE).display()))?;
    let path = dir.join(WEIGHTS_FILE);
    let tensors = Tensors::open_file(&path, Access::Read)?;
    let pairs = specs.into_iter().map(|spec| pair(&tensors, spec, config)).collect::<Result<Vec<_>>>();
    let pairs = pairs.map_err(|e| e.at(path.display()))?;
    refuse_others(&tensors, &pairs).map_err(|e| e.at(path.display()))?;
    Ok((lora, pairs))
}

fn pair(tensors: &Tensors, spec: PairSpec, config: &Config) -> Result<Pair> {
    let [a_name, b_name] = spec.tensor_names();
    let [a_shape, b_shape] = spec.shapes(config);
    Ok(Pair { spec, a: half(tensors, &a_name, a_shape)?, b: half(tensors, &b_name, b_shape)? })
}

fn half(tensors: &Tensors, name: &str, shape: [usize; 2]) -> Result<Vec<f32>> {
    let found = tensors.find(name)?;
    let tensor = found.ok_or_else(|| bad(format!("lacks tensor {name}, which {CONFIG_FILE} asks for")))?;
    if tensor.shape != shape {
        return Err(other_shape(&tensor, shape));
    }
    let values = tensor.values(shape[0], shape[1])?;
    match values.iter().position(|x| !x.is_finite()) {
        None => Ok(values),
        Some(i) => Err(Error::new(Code::Numeric, format!("tensor {name} has {} as value {i}", values[i]))),
    }
}

fn other_shape(tensor: &TensorView<'_>, wanted: [usize; 2]) -> Error {
    let rank_only = tensor.shape.len() == 2 && tensor.shape.iter().zip(wanted).filter(|(a, b)| **a != *b).count() == 1;
    let rank_at = usize::from(tensor.name.contains("lora_B"));
    let reason = if rank_only && tensor.shape[rank_at] != wanted[rank_at] {
        format!("the rank in {CONFIG_FILE} is not the file's")
    } else {
        "the adapter is for another base model".to_owned()
    };
    bad(format!(
        "tensor {} has shape {:?}, this model and {CONFIG_FILE} need {wanted:?}: {reason}",
        tensor.name, tensor.shape
    ))
}

fn refuse_others(tensors: &Tensors, pairs: &[Pair]) -> Result<()> {
    let known: BTreeSet<String> = pairs.iter().flat_map(|p| p.spec.tensor_names()).collect();
    let others: Vec<&str> = tensors.names().filter(|n| !known.contains(*n)).collect();
    match others.as_slice() {
        [] => Ok(()),
        [first, rest @ ..] => {
            let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
            Err(Error::unsupported(format!(
                "holds tensor {first}{more}, which no LoRA pair of {CONFIG_FILE} has for this model"
            )))
        }
    }
}

/// Writes adapter_config.json and adapter_model.safetensors (f32) into `dir`, which exists; through
/// [`super::folder::replace`] a kill leaves the old adapter or the new one.
///
/// # Errors
/// Io.
pub fn write(dir: &Path, lora: &LoraConfig, pairs: &[Pair], config: &Config) -> Result<()> {
    let path = dir.join(CONFIG_FILE);
    let text = format!("{:#}\n", lora.to_json());
    std::fs::write(&path, text).map_err(|e| Error::io("write", &path, &e))?;
    let entry = |(name, shape): (String, [usize; 2])| (name, Dtype::F32, shape.to_vec());
    let entries: Vec<NewTensor> =
        pairs.iter().flat_map(|p| p.spec.tensor_names().into_iter().zip(p.spec.shapes(config)).map(entry)).collect();
    let mut writer = Writer::create(&dir.join(WEIGHTS_FILE), &entries, &[("format", "pt")])?;
    for values in pairs.iter().flat_map(|p| [&p.a, &p.b]) {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        writer.write(&bytes)?;
    }
    writer.finish()
}

fn bad(text: impl Into<String>) -> Error {
    Error::new(Code::BadFile, text)
}

/// Keys that [`LoraConfig`] holds.
const HONOURED: [&str; 12] = [
    "base_model_name_or_path",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layers_pattern",
    "peft_type",
];
/// Keys that change nothing about a trained adapter's arithmetic.
const WITHOUT_EFFECT: [&str; 7] = [
    "auto_mapping",
    "peft_version",
    "revision",
    "inference_mode",
    "megatron_core",
    "qalora_group_size",
    "runtime_config",
];

struct Fields(Map<String, Value>);

impl Fields {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|v| !v.is_null())
    }

    /// Every other key must have a value that means "not used".
    fn refuse_what_is_not_done(&self) -> Result<()> {
        match self.get("peft_type") {
            Some(Value::String(s)) if s == "LORA" => {}
            other => {
                return Err(Error::unsupported(format!(
                    "peft_type is {}, supported is \"LORA\"",
                    other.unwrap_or(&Value::Null)
                )));
            }
        }
        for (key, value) in &self.0 {
            let fine = match key.as_str() {
                k if HONOURED.contains(&k) || WITHOUT_EFFECT.contains(&k) => true,
                "task_type" => value == "CAUSAL_LM" || is_off(value),
                "bias" => value == "none" || is_off(value),
                // Others (PiSSA, OLoRA, LoftQ, CorDA) change the base weights when they start.
                "init_lora_weights" => {
                    value.is_boolean() || ["gaussian", "eva", "orthogonal"].iter().any(|s| value == s)
                }
                _ => is_off(value),
            };
            if !fine {
                return Err(Error::unsupported(format!("{key} is {}, which is not supported", shortened(value))));
            }
        }
        Ok(())
    }

    fn rank(&self, name: &str, value: &Value) -> Result<usize> {
        let rank = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=MAX_RANK).contains(n));
        rank.ok_or_else(|| bad(format!("{name} is {}, must be from 1 to {MAX_RANK}", shortened(value))))
    }

    fn number(&self, name: &str, value: &Value) -> Result<f64> {
        let number = value.as_f64().filter(|x| x.is_finite());
        number.ok_or_else(|| bad(format!("{name} is {}, must be a number", shortened(value))))
    }

    fn flag(&self, name: &str) -> Result<bool> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(bad(format!("{name} is {}, must be true or false", shortened(other)))),
        }
    }

    fn names(&self, name: &str) -> Result<Option<Vec<String>>> {
        let texts = |all: &Vec<Value>| all.iter().map(|v| v.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(one)) => Ok(Some(vec![one.clone()])),
            Some(Value::Array(all)) if texts(all).is_some() => Ok(texts(all)),
            Some(other) => Err(bad(format!("{name} is {}, must be a text or a list of texts", shortened(other)))),
        }
    }

    fn targets(&self, name: &str) -> Result<Option<Targets>> {
        Ok(match self.get(name) {
            Some(Value::String(s)) if s.is_empty() => None,
            Some(Value::String(s)) if s.eq_ignore_ascii_case("all-linear") => Some(Targets::AllLinear),
            Some(Value::String(s)) => Some(Targets::Regex(s.clone())),
            _ => self.names(name)?.filter(|all| !all.is_empty()).map(Targets::Names),
        })
    }

    fn pattern<T>(&self, name: &str, value: impl Fn(&Value) -> Result<T>) -> Result<Vec<(String, T)>> {
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::Object(map)) => map.iter().map(|(k, v)| Ok((k.clone(), value(v)?))).collect(),
            Some(other) => Err(bad(format!("{name} is {}, must be an object", shortened(other)))),
        }
    }

    fn layers(&self, name: &str) -> Result<Option<Vec<usize>>> {
        let layer = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
        match self.get(name) {
            None => Ok(None),
            Some(Value::Array(all)) if all.iter().all(|v| layer(v).is_some()) => {
                Ok(Some(all.iter().filter_map(layer).collect()))
            }
            Some(one) if layer(one).is_some() => Ok(layer(one).map(|n| vec![n])),
            Some(other) => Err(bad(format!("{name} is {}, must be a layer or a list of layers", shortened(other)))),
        }
    }
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(all) => all.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// A value for a message: never more than a line of a stranger's file.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn model() -> Config {
        let json = json!({"model_type": "llama", "vocab_size": 71, "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 12, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6});
        Config::from_json(json.as_object().unwrap().clone(), Path::new("config.json")).unwrap()
    }

    fn lora(changes: Value) -> Result<LoraConfig> {
        let mut map = json!({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]})
            .as_object()
            .unwrap()
            .clone();
        map.extend(changes.as_object().unwrap().clone());
        LoraConfig::from_json(map)
    }

    fn paths(changes: Value) -> Vec<String> {
        lora(changes).unwrap().pairs(&model()).unwrap().iter().map(|p| p.site.path(p.layer)).collect()
    }

    #[test]
    fn names_match_whole_parts_at_the_end_of_a_path() {
        assert_eq!(paths(json!({})).len(), 12);
        assert_eq!(paths(json!({"target_modules": ["v_proj", "self_attn.q_proj", "proj"]})).len(), 24);
        assert_eq!(paths(json!({"target_modules": ["1.mlp.up_proj"]})), ["model.layers.1.mlp.up_proj"]);
        assert_eq!(paths(json!({"target_modules": ["model.layers.11.mlp.up_proj"]})), ["model.layers.11.mlp.up_proj"]);
    }

    #[test]
    fn pairs_come_by_layer_then_in_the_order_of_sites() {
        let all = lora(json!({"target_modules": "All-Linear"})).unwrap().pairs(&model()).unwrap();
        assert_eq!(all.len(), 84);
        assert!(all.is_sorted_by_key(|p| (p.layer, p.site)));
    }

    #[test]
    fn an_expression_must_match_the_whole_path() {
        let one = paths(json!({"target_modules": r".*\.1\d\.self_attn\.(q|k)_proj"}));
        assert_eq!(
            one,
            [
                "model.layers.10.self_attn.q_proj",
                "model.layers.10.self_attn.k_proj",
                "model.layers.11.self_attn.q_proj",
                "model.layers.11.self_attn.k_proj"
            ]
        );
        assert!(
            lora(json!({"target_modules": "q_proj"})).unwrap().pairs(&model()).is_err(),
            "a text is an expression, not a suffix"
        );
    }

    #[test]
    fn layers_choose_among_names_but_not_among_full_paths() {
        let chosen = paths(
            json!({"layers_to_transform": [1, 3], "target_modules": ["q_proj", "model.layers.5.self_attn.v_proj"]}),
        );
        assert_eq!(
            chosen,
            ["model.layers.1.self_attn.q_proj", "model.layers.3.self_attn.q_proj", "model.layers.5.self_attn.v_proj"]
        );
        assert_eq!(paths(json!({"layers_to_transform": 2})).len(), 1);
        assert_eq!(paths(json!({"layers_to_transform": 2, "layers_pattern": "layers"})).len(), 1);
        assert!(lora(json!({"layers_to_transform": 2, "layers_pattern": "blocks"})).unwrap().pairs(&model()).is_err());
    }

    #[test]
    fn excluded_modules_get_no_pair() {
        assert_eq!(paths(json!({"exclude_modules": r".*layers\.\d\..*"})).len(), 2);
        assert_eq!(paths(json!({"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["q_proj"]})).len(), 12);
    }

    #[test]
    fn the_first_matching_pattern_sets_rank_and_alpha() {
        let config = lora(json!({
            "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"layers.1.self_attn.q_proj": 2, "q_proj": 4, "proj": 9},
            "alpha_pattern": {r"layers\.\d+\.self_attn\.v_proj": 3},
        }));
        let pairs = config.unwrap().pairs(&model()).unwrap();
        let of = |layer: usize, site: Site| {
            let p = pairs.iter().find(|p| p.layer == layer && p.site == site).unwrap();
            (p.rank, p.alpha, p.scale)
        };
        assert_eq!(of(1, Site::Q), (2, 16.0, 8.0));
        assert_eq!(of(11, Site::Q), (4, 16.0, 4.0));
        assert_eq!(of(1, Site::V), (8, 3.0, 0.375));
    }

    #[test]
    fn rslora_divides_by_the_root_of_the_rank() {
        let pairs = lora(json!({"use_rslora": true, "r": 4})).unwrap().pairs(&model()).unwrap();
        assert_eq!(pairs[0].scale, 8.0);
    }

    #[test]
    fn what_peft_does_and_this_does_not_is_refused_by_name() {
        for (changes, word) in [
            (json!({"use_dora": true}), "use_dora"),
            (json!({"modules_to_save": ["lm_head"]}), "modules_to_save"),
            (json!({"bias": "all"}), "bias"),
            (json!({"lora_bias": true}), "lora_bias"),
            (json!({"fan_in_fan_out": true}), "fan_in_fan_out"),
            (json!({"peft_type": "IA3"}), "IA3"),
            (json!({"init_lora_weights": "pissa"}), "pissa"),
            (json!({"task_type": "SEQ_CLS"}), "SEQ_CLS"),
            (json!({"something_new": {"a": 1}}), "something_new"),
            (json!({"trainable_token_indices": [1]}), "trainable_token_indices"),
            (json!({"layer_replication": [[0, 4]]}), "layer_replication"),
        ] {
            let error = lora(changes).unwrap_err();
            assert!(error.code() == Code::Unsupported && error.text().contains(word), "{error}");
        }
        lora(json!({"something_new": null, "other": false, "third": {}, "bias": "none", "qalora_group_size": 16}))
            .unwrap();
    }

    #[test]
    fn the_embedding_and_the_output_matrix_are_refused_as_targets() {
        for targets in [json!(["q_proj", "lm_head"]), json!(["embed_tokens"]), json!(".*")] {
            let error = lora(json!({"target_modules": targets})).unwrap().pairs(&model()).unwrap_err();
            assert_eq!(error.code(), Code::Unsupported, "{error}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_its_value() {
        for (changes, word) in [
            (json!({"r": 0}), "r is 0"),
            (json!({"r": "eight"}), "eight"),
            (json!({"lora_dropout": 1.0}), "lora_dropout is 1"),
            (json!({"rank_pattern": {"q_proj": -1}}), "-1"),
            (json!({"target_modules": [1]}), "[1]"),
        ] {
            let error = lora(changes).unwrap_err();
            assert!(error.code() == Code::BadFile && error.text().contains(word), "{error}");
        }
        for changes in [
            json!({"target_modules": "(q_proj"}),
            json!({"rank_pattern": {"(": 1}}),
            json!({"target_modules": ["query"]}),
        ] {
            assert_eq!(lora(changes).unwrap().pairs(&model()).unwrap_err().code(), Code::InvalidArgument);
        }
    }

    fn adapter(changes: Value) -> (LoraConfig, Vec<Pair>) {
        let config = lora(changes).unwrap();
        let pair = |spec: PairSpec| {
            let [a, b] = spec.shapes(&model()).map(|[rows, cols]| (0..rows * cols).map(|i| i as f32 - 3.5).collect());
            Pair { spec, a, b }
        };
        let pairs = config.pairs(&model()).unwrap().into_iter().map(pair).collect();
        (config, pairs)
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        for changes in [
            json!({}),
            json!({"target_modules": "all-linear", "use_rslora": true, "base_model_name_or_path": "org/name", "lora_alpha": 0.5}),
            json!({"target_modules": r".*\.0\.mlp\..*", "rank_pattern": {"up_proj": 3}, "alpha_pattern": {"down_proj": 1.5}, "lora_dropout": 0.05}),
            json!({"layers_to_transform": [2], "layers_pattern": ["layers"], "exclude_modules": ["k_proj"]}),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let (config, pairs) = adapter(changes);
            write(dir.path(), &config, &pairs, &model()).unwrap();
            assert_eq!(read(dir.path(), &model()).unwrap(), (config, pairs));
        }
    }

    #[test]
    fn an_adapter_for_another_base_is_refused_with_both_shapes() {
        let dir = tempfile::tempdir().unwrap();
        let (config, pairs) = adapter(json!({}));
        write(dir.path(), &config, &pairs, &model()).unwrap();
        let other = Config { hidden_size: 48, ..model() };
        let error = read(dir.path(), &other).unwrap_err();
        assert!(["[8, 32]", "[8, 48]", "another base"].iter().all(|w| error.text().contains(w)), "{error}");
        let fewer = Config { n_layers: 2, ..model() };
        assert!(
            read(dir.path(), &fewer)
                .unwrap_err()
                .text()
                .contains("layers.10.self_attn.q_proj.lora_A.weight and 19 more")
        );
        let more = Config { n_layers: 13, ..model() };
        assert!(
            read(dir.path(), &more)
                .unwrap_err()
                .text()
                .contains("lacks tensor base_model.model.model.layers.12.self_attn.q_proj.lora_A.weight")
        );
    }

    #[test]
    fn another_rank_than_the_settings_say_is_told_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let (config, pairs) = adapter(json!({}));
        write(dir.path(), &LoraConfig { rank: 4, ..config }, &pairs, &model()).unwrap();
        let error = read(dir.path(), &model()).unwrap_err();
        assert!(["[8, 32]", "[4, 32]", "rank"].iter().all(|w| error.text().contains(w)), "{error}");
    }

    #[test]
    fn a_weight_that_is_no_number_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (config, mut pairs) = adapter(json!({}));
        pairs[3].b[5] = f32::NAN;
        write(dir.path(), &config, &pairs, &model()).unwrap();
        let error = read(dir.path(), &model()).unwrap_err();
        assert!(
            error.code() == Code::Numeric
                && error.text().contains("layers.3.self_attn.q_proj.lora_B.weight has NaN as value 5"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn damaged_settings_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut text = adapter(json!({"rank_pattern": {"up_proj": 3}, "layers_to_transform": [2]})).0.to_json().to_string().into_bytes();
            let at = at.index(text.len());
            text[at] = byte;
            if let Ok(map) = serde_json::from_slice(&text) {
                let _ = LoraConfig::from_json(map).and_then(|c| c.pairs(&model()));
            }
        }
    }
}
