//! GGUF's metadata to config.json and generation_config.json.
//!
//! The keys are gguf.md's for architecture "llama". The result goes through [`Config::from_json`], so that what is
//! checked in a Hugging Face folder is checked here too. Scaling of rotary positions is the delicate part: linear scaling
//! has keys, llama3's has none but a tensor of divisors, from which it is recognised.

use super::bad;
use super::parse::{Gguf, Meta, Value as Stored};
use super::vocab::Vocab;
use crate::files::config::{Config, Rope, Scaling, one_or_list};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::f64::consts::TAU;
use std::path::Path;

/// Divisors of the rotary frequencies, `[head_dim / 2]`.
pub(super) const ROPE_FREQS: &str = "rope_freqs.weight";
/// Positions before scaling of every llama3-scaled model released; no key of GGUF names it.
const LLAMA3_ORIGINAL: usize = 8192;

/// The model's config; vocab_size is the embedding's number of rows.
pub(super) fn config(gguf: &Gguf<'_>, vocab: &Vocab<'_>) -> Result<Config> {
    let meta = &gguf.meta;
    refuse_other_models(meta)?;
    let embedding = gguf.tensors.get("token_embd.weight").ok_or_else(|| bad("lacks tensor token_embd.weight"))?;
    let bias = |site: &str| gguf.tensors.contains_key(format!("blk.0.{site}.bias").as_str());
    let heads = meta.need_size("llama.attention.head_count")?;
    let eps_key = "llama.attention.layer_norm_rms_epsilon";
    let eps = meta.float(eps_key)?.ok_or_else(|| bad(format!("lacks key {eps_key}")))?;
    let mut map = json!({
        "model_type": "llama",
        "vocab_size": embedding.shape[0],
        "hidden_size": meta.need_size("llama.embedding_length")?,
        "intermediate_size": meta.need_size("llama.feed_forward_length")?,
        "num_hidden_layers": meta.need_size("llama.block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": meta.size("llama.attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": meta.size("llama.attention.key_length")?,
        "max_position_embeddings": meta.need_size("llama.context_length")?,
        "rms_norm_eps": eps,
        "rope_theta": meta.float("llama.rope.freq_base")?.unwrap_or(10_000.0),
        "rope_scaling": linear_scaling(meta)?,
        "tie_word_embeddings": !gguf.tensors.contains_key("output.weight"),
        "attention_bias": bias("attn_q"),
        "mlp_bias": bias("ffn_gate"),
    });
    let tokens = map.as_object_mut().ok_or_else(|| Error::internal("an object is none"))?;
    tokens.extend(vocab.special_ids());
    let mut config = Config::from_json(tokens.clone(), Path::new("metadata"))?;
    check_heads(meta, &config)?;
    if let Some(divisors) = divisors(gguf, &config)? {
        config.rope = llama3(&config, &divisors)?;
    }
    Ok(config)
}

/// generation_config.json.
pub(super) fn generation(config: &Config) -> Value {
    let ids = [
        ("bos_token_id", one_or_list(&config.bos)),
        ("eos_token_id", one_or_list(&config.eos)),
        ("pad_token_id", json!(config.pad)),
    ];
    ids.into_iter()
        .filter(|(_, ids)| !ids.is_null())
        .map(|(name, ids)| (name.to_owned(), ids))
        .collect::<Map<_, _>>()
        .into()
}

fn refuse_other_models(meta: &Meta<'_>) -> Result<()> {
    match meta.text("general.architecture")? {
        Some("llama") => {}
        other => {
            let name = other.unwrap_or("missing");
            return Err(Error::unsupported(format!("general.architecture is {name}, supported is llama")));
        }
    }
    for key in ["llama.expert_count", "llama.attention.sliding_window", "split.count"] {
        match meta.size(key)? {
            None | Some(0) => {}
            Some(1) if key == "split.count" => {}
            Some(n) => return Err(Error::unsupported(format!("{key} is {n}, which is not supported"))),
        }
    }
    // Models with another size in every layer are no LLaMA of Hugging Face's.
    for key in ["llama.feed_forward_length", "llama.attention.head_count", "llama.attention.head_count_kv"] {
        if let Some(Stored::Array(_)) = meta.get(key) {
            return Err(Error::unsupported(format!("{key} differs by layer, which is not supported")));
        }
    }
    Ok(())
}

fn check_heads(meta: &Meta<'_>, config: &Config) -> Result<()> {
    for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
        if let Some(n) = meta.size(key)?
            && n != config.head_dim
        {
            let text = format!("{key} is {n}, supported is the width of a head, {}", config.head_dim);
            return Err(Error::unsupported(text));
        }
    }
    Ok(())
}

fn linear_scaling(meta: &Meta<'_>) -> Result<Value> {
    let old = meta.float("llama.rope.scale_linear")?; // files before 2023-10
    let factor = meta.float("llama.rope.scaling.factor")?.or(old);
    match meta.text("llama.rope.scaling.type")?.or(old.map(|_| "linear")) {
        None | Some("none") => Ok(Value::Null),
        Some("linear") => match factor {
            None | Some(0.0 | 1.0) => Ok(Value::Null),
            Some(factor) => Ok(json!({"rope_type": "linear", "factor": factor})),
        },
        Some(other) => {
            Err(Error::unsupported(format!("llama.rope.scaling.type is {other}, supported are none and linear")))
        }
    }
}

/// The divisors of the rotary frequencies, where they divide at all.
fn divisors(gguf: &Gguf<'_>, config: &Config) -> Result<Option<Vec<f32>>> {
    let Some(tensor) = gguf.tensors.get(ROPE_FREQS) else { return Ok(None) };
    let half = config.head_dim / 2;
    if tensor.shape != [half] || tensor.kind.is_quantised() {
        return Err(bad(format!(
            "tensor {ROPE_FREQS} has shape {:?} and type {:?}, must be [{half}] and F32",
            tensor.shape, tensor.kind
        )));
    }
    let mut values = vec![0.0; half];
    tensor.kind.read_row(tensor.bytes, &mut values);
    Ok(values.iter().any(|&x| x != 1.0).then_some(values))
}

/// llama3 scaling where its divisors (transformers' `_compute_llama3_parameters`) are those of the file.
fn llama3(config: &Config, found: &[f32]) -> Result<Rope> {
    let theta = config.rope.theta;
    let factor = found.iter().copied().fold(1.0, f32::max);
    let (low, high) = (1.0, 4.0);
    let divisor = |i: usize| {
        let wavelength = TAU * theta.powf(2.0 * i as f64 / config.head_dim as f64);
        let turns = LLAMA3_ORIGINAL as f64 / wavelength;
        let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        1.0 / ((1.0 - kept) / f64::from(factor) + kept)
    };
    let same = found.iter().enumerate().all(|(i, &x)| (f64::from(x) / divisor(i) - 1.0).abs() <= 1e-4);
    if !same || config.rope.scaling != Scaling::None {
        let text =
            format!("tensor {ROPE_FREQS} scales rotary positions in another way than llama3 (1, 4, {LLAMA3_ORIGINAL})");
        return Err(Error::unsupported(text));
    }
    let factor = f64::from(factor);
    let scaling = Scaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original: LLAMA3_ORIGINAL };
    Ok(Rope { theta, scaling })
}
