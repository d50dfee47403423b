//! Reads the golden folders, without the library's own readers; one of them is opened by the library too.

use super::plain::{Mat, Pair, Plain};
use dialoguellm::device::Cpu;
use dialoguellm::files::{Access, Config, Tensors, Tokenizer};
use dialoguellm::model::{Engine, Llama, Model};
use dialoguellm_kernels::{Isa, bf16};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// `tests/golden/<name>`.
pub fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

const TOKENIZER: &str = r#"{"version":"1.0","model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}"#;

/// The golden model `gqa`, of two layers and 61 tokens, opened anew, in f32 or bf16. Its tokenizer knows one word.
pub fn gqa(threads: usize, isa: Option<Isa>, exact: bool) -> Arc<Model> {
    let dir = folder("gqa");
    let config = Config::read(&dir).unwrap();
    let tensors = Arc::new(Tensors::open(&dir, Access::Mapped).unwrap());
    let engine: Box<dyn Engine> = match exact {
        true => Box::new(Llama::open(Cpu::<f32>::new(threads, isa).unwrap(), config, &tensors).unwrap()),
        false => Box::new(Llama::open(Cpu::<bf16>::new(threads, isa).unwrap(), config, &tensors).unwrap()),
    };
    Arc::new(Model::from_parts(Tokenizer::from_bytes(TOKENIZER.as_bytes()).unwrap(), engine, "gqa".to_owned()))
}

/// All f32 and i64 tensors of a safetensors file as f64, with their shapes.
pub fn tensors(path: PathBuf) -> BTreeMap<String, (Vec<usize>, Vec<f64>)> {
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let read = |(name, view): (String, safetensors::tensor::TensorView)| {
        let values = match view.dtype() {
            safetensors::Dtype::F32 => {
                view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b) as f64).collect()
            }
            safetensors::Dtype::I64 => {
                view.data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect()
            }
            other => panic!("{name} has type {other:?}"),
        };
        (name, (view.shape().to_vec(), values))
    };
    file.tensors().into_iter().map(read).collect()
}

fn json(path: PathBuf) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A golden model with its adapter as the plain implementation; f32 files without rope scaling only.
pub fn plain(name: &str) -> Plain {
    let config = json(folder(name).join("config.json"));
    let number = |key: &str| config[key].as_u64().map(|n| n as usize);
    let heads = number("num_attention_heads").unwrap();
    let theta = config["rope_theta"].as_f64().or(config["rope_parameters"]["rope_theta"].as_f64()).unwrap_or(1e4);
    let matrix = |(name, (shape, values)): (String, (Vec<usize>, Vec<f64>))| {
        let cols = *shape.last().unwrap();
        (name, Mat::new(values.len() / cols, cols, values))
    };
    Plain {
        heads,
        kv_heads: number("num_key_value_heads").unwrap_or(heads),
        head_dim: number("head_dim").unwrap_or(number("hidden_size").unwrap() / heads),
        layers: number("num_hidden_layers").unwrap(),
        eps: config["rms_norm_eps"].as_f64().unwrap_or(1e-6),
        theta,
        tied: config["tie_word_embeddings"].as_bool().unwrap_or(false),
        weights: tensors(folder(name).join("model.safetensors")).into_iter().map(matrix).collect(),
        pairs: pairs(name),
    }
}

/// The adapter's pairs by module; every pair's scale as PEFT computes it from a plain config (no patterns).
fn pairs(name: &str) -> BTreeMap<String, Pair> {
    let config = json(folder(name).join("adapter/adapter_config.json"));
    let (alpha, rslora) = (config["lora_alpha"].as_f64().unwrap(), config["use_rslora"].as_bool().unwrap());
    assert!(
        config["rank_pattern"].as_object().unwrap().is_empty()
            && config["alpha_pattern"].as_object().unwrap().is_empty()
    );
    let all = tensors(folder(name).join("adapter/adapter_model.safetensors"));
    let mut pairs = BTreeMap::new();
    for (key, (shape, values)) in &all {
        let Some(module) = key.strip_prefix("base_model.model.").and_then(|k| k.strip_suffix(".lora_A.weight")) else {
            continue;
        };
        let (b_shape, b) = &all[&key.replace("lora_A", "lora_B")];
        let rank = shape[0] as f64;
        let scale = alpha / if rslora { rank.sqrt() } else { rank };
        let (a, b) = (Mat::new(shape[0], shape[1], values.clone()), Mat::new(b_shape[0], b_shape[1], b.clone()));
        pairs.insert(module.to_owned(), Pair { a, b, scale });
    }
    pairs
}

/// The values of `golden.safetensors`.
pub struct Golden(BTreeMap<String, (Vec<usize>, Vec<f64>)>);

impl Golden {
    pub fn read(name: &str) -> Self {
        Self(tensors(folder(name).join("golden.safetensors")))
    }
    pub fn values(&self, name: &str) -> &[f64] {
        &self.0[name].1
    }
    pub fn shape(&self, name: &str) -> &[usize] {
        &self.0[name].0
    }
    /// Every sequence's tokens.
    pub fn sequences(&self) -> Vec<Vec<u32>> {
        let width = self.shape("input_ids")[1];
        self.values("input_ids").chunks(width).map(|ids| ids.iter().map(|&id| id as u32).collect()).collect()
    }
    /// Every sequence's targets (row, token), shifted as transformers shifts labels, and their common weight 1 / count.
    pub fn targets(&self) -> (Vec<Vec<(usize, u32)>>, f64) {
        let width = self.shape("labels")[1];
        let shifted = |labels: &[f64]| -> Vec<(usize, u32)> {
            let later = labels.iter().enumerate().skip(1).filter(|(_, label)| **label >= 0.0);
            later.map(|(i, &label)| (i - 1, label as u32)).collect()
        };
        let targets: Vec<_> = self.values("labels").chunks(width).map(shifted).collect();
        let count: usize = targets.iter().map(Vec::len).sum();
        (targets, 1.0 / count as f64)
    }
    /// d loss / d of a module's A or B.
    pub fn gradient(&self, module: &str, which: &str) -> &[f64] {
        self.values(&format!("grad.base_model.model.{module}.lora_{which}.weight"))
    }
}

/// Largest difference over the largest of `want`. NaN is infinite.
pub fn distance(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let size = want.iter().fold(0.0f64, |a, b| a.max(b.abs()));
    let worst = got.iter().zip(want).map(|(g, w)| (g - w).abs());
    worst.fold(0.0f64, |a, b| if b.is_nan() { f64::INFINITY } else { a.max(b) }) / size
}
