//! config.json of the LLaMA family: a [`Config`] whose sizes fit together, or a sentence saying which do not.
//!
//! Reads both spellings, transformers 4's (`rope_theta` and `rope_scaling` at the top level) and transformers 5's
//! (`rope_parameters`), with the defaults of transformers' `LlamaConfig`. What this library would compute differently
//! from transformers is refused by field and value; fields that do not change what is computed are ignored.

use super::{compressed, if_there, read_json};
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// What a model folder says about its model. Every size is at least 1 and products of any two fit in memory arithmetic.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// V: rows of the embedding; may exceed the tokenizer's vocabulary (padding).
    pub vocab_size: usize,
    /// D: width of the residual stream.
    pub hidden_size: usize,
    /// F: width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Layers.
    pub n_layers: usize,
    /// H: query heads, a multiple of `n_kv_heads`.
    pub n_heads: usize,
    /// K: key and value heads.
    pub n_kv_heads: usize,
    /// d: width of a head; even. `n_heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Rotary positions.
    pub rope: Rope,
    /// Positions the model was made for.
    pub max_position_embeddings: usize,
    /// Whether the output matrix is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether q, k, v and o have biases.
    pub attention_bias: bool,
    /// Whether gate, up and down have biases.
    pub mlp_bias: bool,
    /// Tokens that begin a text.
    pub bos: Vec<u32>,
    /// Tokens that end one; generation_config.json's where it names any.
    pub eos: Vec<u32>,
    /// The token that fills a batch elsewhere. Nothing here is padded: kept to be written again.
    pub pad: Option<u32>,
}

/// Rotary position embedding: angle of channel pair i at position p is p * theta^(-2i/d), then scaled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// The base.
    pub theta: f64,
    /// How positions beyond training are reached.
    pub scaling: Scaling,
}

/// transformers' `modeling_rope_utils` by name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// `default`
    None,
    /// `linear`: frequencies divided by `factor`.
    Linear {
        /// At least 0, in practice 1 or more.
        factor: f64,
    },
    /// `dynamic`: the base grows once a text is longer than `original`.
    Dynamic {
        /// Growth.
        factor: f64,
        /// `max_position_embeddings`, as in transformers.
        original: usize,
    },
    /// `llama3`: low frequencies divided by `factor`, high ones kept, a smooth step between.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are low.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are high; larger than `low_freq_factor`.
        high_freq_factor: f64,
        /// Positions before scaling.
        original: usize,
    },
}

/// The file's name in a model folder.
pub const FILE: &str = "config.json";
/// Largest sizes accepted, some way above any model: products of two and a file's length stay within 64 bits.
const MAX_VOCAB: usize = 1 << 24;
const MAX_WIDTH: usize = 1 << 22;
const MAX_LAYERS: usize = 1 << 12;
const MAX_HEADS: usize = 1 << 14;
const MAX_POSITIONS: usize = 1 << 30;

impl Config {
    /// Reads `dir/config.json`, and end tokens from `dir/generation_config.json` where that names any.
    ///
    /// # Errors
    /// NotFound; BadFile where fields are missing or contradict each other; Unsupported where the model needs something
    /// that this library does not compute.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let mut config = Self::from_json(read_json(&path)?, &path)?;
        let path = dir.join("generation_config.json");
        if let Some(map) = if_there(read_json::<Map<String, Value>>(&path))? {
            let eos = Fields { map, path }.tokens("eos_token_id", &[], config.vocab_size)?;
            config.eos = if eos.is_empty() { config.eos } else { eos };
        }
        Ok(config)
    }

    /// As [`Config::read`], from a parsed config.json; `path` is for messages.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn from_json(map: Map<String, Value>, path: &Path) -> Result<Self> {
        let fields = Fields { map, path: path.to_owned() };
        refuse_other_models(&fields)?;
        let config = sizes(&fields)?;
        config.check(&fields)?;
        Ok(config)
    }

    /// Heads per key and value head.
    pub fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// config.json in both spellings at once, so that any version of transformers reads it.
    pub fn to_json(&self, dtype: &str) -> Value {
        let mut rope_parameters = self.rope.to_json();
        let rope_scaling = match self.rope.scaling {
            Scaling::None => Value::Null,
            _ => rope_parameters.clone().into(),
        };
        rope_parameters.insert("rope_theta".to_owned(), self.rope.theta.into());
        serde_json::json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope.theta,
            "rope_scaling": rope_scaling,
            "rope_parameters": rope_parameters,
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
            "bos_token_id": one_or_list(&self.bos),
            "eos_token_id": one_or_list(&self.eos),
            "pad_token_id": self.pad,
            "torch_dtype": dtype,
            "dtype": dtype,
        })
    }

    fn check(&self, f: &Fields) -> Result<()> {
        let (h, k) = (self.n_heads, self.n_kv_heads);
        if !h.is_multiple_of(k) {
            return Err(f.bad(format!("num_attention_heads {h} is not a multiple of num_key_value_heads {k}")));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(f.bad(format!("head_dim {} is odd; rotary positions need pairs of channels", self.head_dim)));
        }
        let widest = h.saturating_mul(self.head_dim);
        if widest > MAX_WIDTH {
            return Err(f.bad(format!(
                "num_attention_heads {h} times head_dim {} is {widest}, more than {MAX_WIDTH}",
                self.head_dim
            )));
        }
        if matches!(self.rope.scaling, Scaling::Dynamic { .. }) && self.head_dim < 4 {
            return Err(
                f.bad(format!("head_dim {} is too small for dynamic rope scaling, which needs 4", self.head_dim))
            );
        }
        Ok(())
    }
}

impl Rope {
    fn to_json(self) -> Map<String, Value> {
        let fields = match self.scaling {
            Scaling::None => serde_json::json!({"rope_type": "default"}),
            Scaling::Linear { factor } => serde_json::json!({"rope_type": "linear", "factor": factor}),
            Scaling::Dynamic { factor, .. } => serde_json::json!({"rope_type": "dynamic", "factor": factor}),
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => serde_json::json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor, "original_max_position_embeddings": original,
            }),
        };
        fields.as_object().cloned().unwrap_or_default()
    }
}

/// Token ids as transformers writes them.
pub(super) fn one_or_list(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [one] => (*one).into(),
        many => many.into(),
    }
}

fn sizes(f: &Fields) -> Result<Config> {
    let vocab_size = f.size("vocab_size", Some(32_000), MAX_VOCAB)?;
    let hidden_size = f.size("hidden_size", Some(4096), MAX_WIDTH)?;
    let n_heads = f.size("num_attention_heads", Some(32), MAX_HEADS)?;
    let max_position_embeddings = f.size("max_position_embeddings", Some(2048), MAX_POSITIONS)?;
    Ok(Config {
        vocab_size,
        hidden_size,
        intermediate_size: f.size("intermediate_size", Some(11_008), MAX_WIDTH)?,
        n_layers: f.size("num_hidden_layers", Some(32), MAX_LAYERS)?,
        n_heads,
        n_kv_heads: f.size("num_key_value_heads", Some(n_heads), MAX_HEADS)?,
        head_dim: head_dim(f, hidden_size, n_heads)?,
        rms_norm_eps: f.number("rms_norm_eps", Some(1e-6), |x| x >= 0.0)?,
        rope: rope(f, max_position_embeddings)?,
        max_position_embeddings,
        tie_word_embeddings: f.flag("tie_word_embeddings")?,
        attention_bias: f.flag("attention_bias")?,
        mlp_bias: f.flag("mlp_bias")?,
        bos: f.tokens("bos_token_id", &[1], vocab_size)?,
        eos: f.tokens("eos_token_id", &[2], vocab_size)?,
        // Old files say -1 or the first id past the vocabulary for "none".
        pad: f.get("pad_token_id").and_then(Value::as_u64).filter(|&p| p < vocab_size as u64).map(|p| p as u32),
    })
}

fn head_dim(f: &Fields, hidden: usize, heads: usize) -> Result<usize> {
    if f.get("head_dim").is_none() && !hidden.is_multiple_of(heads) {
        let text =
            format!("hidden_size {hidden} is not a multiple of num_attention_heads {heads}, and there is no head_dim");
        return Err(f.bad(text));
    }
    f.size("head_dim", Some(hidden / heads), MAX_WIDTH)
}

fn refuse_other_models(f: &Fields) -> Result<()> {
    let architectures = f.get("architectures").and_then(Value::as_array).into_iter().flatten();
    for a in architectures.clone() {
        if !matches!(a.as_str(), Some("LlamaForCausalLM" | "LLaMAForCausalLM" | "LlamaModel")) {
            return Err(f.unsupported("architectures", a, "LlamaForCausalLM"));
        }
    }
    match f.get("model_type") {
        Some(Value::String(s)) if s == "llama" => {}
        Some(other) => return Err(f.unsupported("model_type", other, "llama")),
        None if architectures.count() == 0 => return Err(f.bad("has neither model_type nor architectures".to_owned())),
        None => {}
    }
    f.only("hidden_act", "silu", |v| matches!(v.as_str(), Some("silu" | "swish")))?;
    if let Some(quantization) = f.get(compressed::FIELD) {
        let told = |text| Error::unsupported(format!("{}: {}: {text}", f.path.display(), compressed::FIELD));
        compressed::check(quantization).map_err(told)?;
    }
    f.only("sliding_window", "full attention", |_| f.get("use_sliding_window") == Some(&Value::Bool(false)))?;
    f.only("layer_types", "full attention", |v| {
        v.as_array().is_some_and(|all| all.iter().all(|kind| kind == "full_attention"))
    })?;
    f.only("partial_rotary_factor", "1", |v| v.as_f64() == Some(1.0))
}

/// `rope_scaling` wins over `rope_parameters`, and a base inside over one at the top level, as in transformers.
fn rope(f: &Fields, max_positions: usize) -> Result<Rope> {
    let inside = ["rope_scaling", "rope_parameters"].into_iter().find(|k| f.get(k).is_some_and(|v| !is_empty(v)));
    let Some(key) = inside else {
        return Ok(Rope { theta: f.number("rope_theta", Some(10_000.0), positive)?, scaling: Scaling::None });
    };
    let map = f.get(key).and_then(Value::as_object).cloned();
    let map = map.ok_or_else(|| f.bad(format!("{key} is {}, must be an object", brief(f.get(key)))))?;
    let outer = f.number("rope_theta", Some(10_000.0), positive)?;
    let name = "original_max_position_embeddings"; // some files have it at the top level, and there it wins
    let before = f.get(name).map(|_| f.size(name, None, MAX_POSITIONS)).transpose()?;
    let r = Fields { map, path: f.path.join(key) };
    r.only("partial_rotary_factor", "1", |v| v.as_f64() == Some(1.0))?;
    let theta = r.number("rope_theta", Some(outer), positive)?;
    Ok(Rope { theta, scaling: scaling(&r, before, max_positions)? })
}

fn scaling(r: &Fields, before: Option<usize>, max_positions: usize) -> Result<Scaling> {
    let kind = r.get("rope_type").or_else(|| r.get("type"));
    let factor = |name| r.number(name, None, positive);
    match kind.map(Value::as_str) {
        None | Some(Some("default")) => Ok(Scaling::None),
        Some(Some("linear")) => Ok(Scaling::Linear { factor: factor("factor")? }),
        Some(Some("dynamic")) => Ok(Scaling::Dynamic { factor: factor("factor")?, original: max_positions }),
        Some(Some("llama3")) => llama3(r, before, max_positions),
        _ => Err(r.unsupported("rope_type", kind.unwrap_or(&Value::Null), "default, linear, dynamic or llama3")),
    }
}

fn llama3(r: &Fields, before: Option<usize>, max_positions: usize) -> Result<Scaling> {
    let [factor, low, high] =
        ["factor", "low_freq_factor", "high_freq_factor"].map(|name| r.number(name, None, positive));
    let (factor, low_freq_factor, high_freq_factor) = (factor?, low?, high?);
    if low_freq_factor >= high_freq_factor {
        // both are finite here
        return Err(
            r.bad(format!("low_freq_factor {low_freq_factor} is not below high_freq_factor {high_freq_factor}"))
        );
    }
    let original = match before {
        Some(n) => n,
        None => r.size("original_max_position_embeddings", Some(max_positions), MAX_POSITIONS)?,
    };
    Ok(Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original })
}

fn positive(x: f64) -> bool {
    x > 0.0
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(Map::is_empty)
}

/// A value for a message: never more than a line of a stranger's file.
fn brief(value: Option<&Value>) -> String {
    let text = value.map_or("missing".to_owned(), Value::to_string);
    match text.char_indices().nth(80) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text,
    }
}

/// A JSON object with typed, bounded access; null counts as absent, as in transformers.
struct Fields {
    map: Map<String, Value>,
    path: PathBuf,
}

impl Fields {
    fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    fn bad(&self, text: String) -> Error {
        Error::bad_file(&self.path, text)
    }

    fn unsupported(&self, name: &str, value: &Value, wanted: &str) -> Error {
        Error::unsupported(format!("{}: {name} is {}, supported is {wanted}", self.path.display(), brief(Some(value))))
    }

    fn only(&self, name: &str, wanted: &str, accept: impl Fn(&Value) -> bool) -> Result<()> {
        match self.get(name) {
            Some(value) if !accept(value) => Err(self.unsupported(name, value, wanted)),
            _ => Ok(()),
        }
    }

    fn size(&self, name: &str, default: Option<usize>, most: usize) -> Result<usize> {
        let value = match self.get(name) {
            Some(value) => value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=most).contains(n)),
            None => default,
        };
        value.ok_or_else(|| {
            self.bad(format!("{name} is {}, must be a whole number from 1 to {most}", brief(self.get(name))))
        })
    }

    fn number(&self, name: &str, default: Option<f64>, accept: impl Fn(f64) -> bool) -> Result<f64> {
        let value = match self.get(name) {
            Some(value) => value.as_f64().filter(|&x| x.is_finite() && accept(x)),
            None => default,
        };
        value.ok_or_else(|| self.bad(format!("{name} is {}, must be a positive number", brief(self.get(name)))))
    }

    fn flag(&self, name: &str) -> Result<bool> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(b)) => Ok(*b),
            other => Err(self.bad(format!("{name} is {}, must be true or false", brief(other)))),
        }
    }

    /// A token or a list of tokens; defaults beyond a small vocabulary are dropped, named ones refused. null is none.
    fn tokens(&self, name: &str, default: &[u32], vocab: usize) -> Result<Vec<u32>> {
        let ids: Vec<&Value> = match self.map.get(name) {
            None => return Ok(default.iter().copied().filter(|&id| (id as usize) < vocab).collect()),
            Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(all)) => all.iter().collect(),
            Some(one) => vec![one],
        };
        let id = |v: &Value| v.as_u64().filter(|&id| id < vocab as u64).map(|id| id as u32);
        let wrong =
            |v: &Value| self.bad(format!("{name} is {}, must be a token below vocab_size {vocab}", brief(Some(v))));
        ids.into_iter().map(|v| id(v).ok_or_else(|| wrong(v))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Code;
    use proptest::prelude::*;

    fn small() -> Value {
        serde_json::json!({
            "model_type": "llama", "vocab_size": 71, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-3,
        })
    }

    fn parse(changes: Value) -> Result<Config> {
        let mut map = small().as_object().unwrap().clone();
        map.extend(changes.as_object().unwrap().clone());
        Config::from_json(map, Path::new("config.json"))
    }

    #[track_caller]
    fn refused(changes: Value, code: Code, words: &[&str]) {
        let error = parse(changes).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(words.iter().all(|w| error.text().contains(w)), "{error}");
    }

    #[test]
    fn absent_fields_have_the_defaults_of_transformers() {
        let only = serde_json::json!({"model_type": "llama"}).as_object().unwrap().clone();
        let c = Config::from_json(only, Path::new("config.json")).unwrap();
        let sizes = [c.vocab_size, c.hidden_size, c.intermediate_size, c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim];
        assert_eq!(sizes, [32_000, 4096, 11_008, 32, 32, 32, 128]);
        assert_eq!((c.rms_norm_eps, c.max_position_embeddings), (1e-6, 2048));
        assert_eq!(c.rope, Rope { theta: 10_000.0, scaling: Scaling::None });
        assert!(!c.tie_word_embeddings && !c.attention_bias && !c.mlp_bias);
        assert_eq!((c.bos, c.eos, c.pad), (vec![1], vec![2], None));
    }

    #[test]
    fn both_spellings_of_rope_scaling_are_the_same() {
        let llama3 = serde_json::json!({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32});
        for (fields, key) in [
            (serde_json::json!({"factor": 4.0}), "linear"),
            (serde_json::json!({"factor": 2}), "dynamic"),
            (llama3, "llama3"),
            (serde_json::json!({}), "default"),
        ] {
            let with = |name: &str, theta: bool| {
                let mut map = fields.clone();
                map[name] = key.into();
                if theta {
                    map["rope_theta"] = 5e5.into();
                }
                map
            };
            let new = parse(serde_json::json!({"rope_parameters": with("rope_type", true)})).unwrap();
            for name in ["type", "rope_type"] {
                let old = parse(serde_json::json!({"rope_theta": 5e5, "rope_scaling": with(name, false)})).unwrap();
                assert_eq!(old.rope, new.rope);
            }
            assert_eq!(new.rope.theta, 5e5);
            assert_eq!(key == "default", new.rope.scaling == Scaling::None);
        }
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        for changes in [
            serde_json::json!({}),
            serde_json::json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "eos_token_id": [3, 4], "pad_token_id": 5}),
            serde_json::json!({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32}, "tie_word_embeddings": true}),
            serde_json::json!({"attention_bias": true, "mlp_bias": true, "head_dim": 12, "bos_token_id": null}),
        ] {
            let config = parse(changes).unwrap();
            let written = config.to_json("bfloat16").as_object().unwrap().clone();
            assert_eq!(Config::from_json(written, Path::new("config.json")).unwrap(), config);
        }
    }

    #[test]
    fn contradictions_name_both_values() {
        refused(
            serde_json::json!({"num_key_value_heads": 3}),
            Code::BadFile,
            &["num_attention_heads 4", "num_key_value_heads 3"],
        );
        refused(
            serde_json::json!({"num_attention_heads": 6}),
            Code::BadFile,
            &["hidden_size 32", "num_attention_heads 6"],
        );
        refused(serde_json::json!({"head_dim": 7}), Code::BadFile, &["head_dim 7"]);
        refused(serde_json::json!({"vocab_size": 0}), Code::BadFile, &["vocab_size is 0", "1 to"]);
        refused(
            serde_json::json!({"num_hidden_layers": 1u64 << 40}),
            Code::BadFile,
            &["num_hidden_layers is 1099511627776"],
        );
        refused(serde_json::json!({"hidden_size": "wide"}), Code::BadFile, &["hidden_size is \"wide\""]);
        refused(serde_json::json!({"eos_token_id": [2, 71]}), Code::BadFile, &["eos_token_id is 71", "vocab_size 71"]);
        refused(serde_json::json!({"rms_norm_eps": -1.0}), Code::BadFile, &["rms_norm_eps is -1"]);
    }

    #[test]
    fn what_is_not_computed_is_refused_by_field_and_value() {
        let no = Code::Unsupported;
        refused(serde_json::json!({"model_type": "gpt2"}), no, &["model_type", "gpt2", "llama"]);
        refused(serde_json::json!({"architectures": ["BertModel"]}), no, &["architectures", "BertModel"]);
        refused(serde_json::json!({"hidden_act": "gelu"}), no, &["hidden_act", "gelu", "silu"]);
        refused(
            serde_json::json!({"quantization_config": {"quant_method": "gptq"}}),
            no,
            &["quantization_config", "gptq"],
        );
        refused(serde_json::json!({"sliding_window": 4096}), no, &["sliding_window", "4096"]);
        refused(
            serde_json::json!({"rope_scaling": {"type": "yarn", "factor": 2.0}}),
            no,
            &["rope_scaling", "yarn", "llama3"],
        );
        refused(
            serde_json::json!({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
            no,
            &["partial_rotary_factor", "0.5"],
        );
    }

    #[test]
    fn scaling_without_its_factors_is_a_bad_file() {
        refused(
            serde_json::json!({"rope_scaling": {"type": "linear"}}),
            Code::BadFile,
            &["rope_scaling", "factor is missing"],
        );
        let equal = serde_json::json!({"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}});
        refused(equal, Code::BadFile, &["low_freq_factor 4", "high_freq_factor 4"]);
        refused(serde_json::json!({"rope_scaling": "linear"}), Code::BadFile, &["rope_scaling", "object"]);
    }

    #[test]
    fn end_tokens_come_from_generation_config_where_it_names_any() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), small().to_string()).unwrap();
        assert_eq!(Config::read(dir.path()).unwrap().eos, [2]);
        for (text, eos) in
            [(r#"{"eos_token_id": [3, 5]}"#, vec![3, 5]), ("{}", vec![2]), (r#"{"eos_token_id": 7}"#, vec![7])]
        {
            std::fs::write(dir.path().join("generation_config.json"), text).unwrap();
            assert_eq!(Config::read(dir.path()).unwrap().eos, eos);
        }
    }

    proptest! {
        #[test]
        fn a_damaged_file_never_panics(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let mut text = parse(serde_json::json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}})).unwrap().to_json("float32").to_string().into_bytes();
            let at = at.index(text.len());
            text[at] = byte;
            for damaged in [&text[..], &text[..cut.index(text.len())]] {
                if let Ok(map) = serde_json::from_slice(damaged) {
                    let _ = Config::from_json(map, Path::new("config.json"));
                }
            }
        }

        #[test]
        fn any_sizes_that_pass_multiply_within_bounds(sizes in prop::collection::vec(any::<u64>().prop_map(|n| n >> (n % 64)), 6)) {
            let names = ["vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"];
            let changes: Map<String, Value> = names.iter().zip(&sizes).map(|(n, s)| ((*n).to_owned(), (*s).into())).collect();
            if let Ok(c) = parse(changes.into()) {
                prop_assert!(c.vocab_size * c.hidden_size * 4 < 1 << 50 && c.n_heads * c.head_dim <= MAX_WIDTH && c.group() * c.n_kv_heads == c.n_heads);
            }
        }
    }
}
