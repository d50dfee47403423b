//! `info`: what a model is, and what it needs on this machine.

use crate::args::{ModelArgs, Style};
use crate::out::{self, bytes, thousands};
use clap::Args;
use dialoguellm::Result;
use dialoguellm::device::Isa;
use dialoguellm::files::safetensors::Described;
use dialoguellm::files::{Access, Config, Tensors};
use dialoguellm::model::{Adapter, Model, weights as opened};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// What a model is and what it needs.
#[derive(Args)]
pub struct Info {
    #[command(flatten)]
    model: ModelArgs,
    /// An adapter folder, to count with it
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
}

/// Weights by type: tensors, values, bytes.
#[derive(Default)]
struct Stored {
    by_type: Vec<(String, usize, usize)>,
    bytes: usize,
    values: usize,
}

impl Stored {
    fn of(tensors: &Tensors) -> Self {
        let mut stored = Self::default();
        for Described { name, type_name, shape, bytes, .. } in tensors.described() {
            stored.bytes += bytes;
            stored.values += values(name, shape);
            match stored.by_type.iter_mut().find(|(known, ..)| *known == type_name) {
                Some((_, n, all)) => (*n, *all) = (*n + 1, *all + bytes),
                None => stored.by_type.push((type_name, 1, bytes)),
            }
        }
        stored
    }
}

impl Info {
    pub fn run(&self, style: Style) -> Result<()> {
        let model = self.model.open()?;
        let adapter = self.adapter.as_ref().map(|dir| Adapter::read(dir, model.config())).transpose()?;
        // the headers again, mapped: the engine keeps its tensors to itself
        let tensors = Tensors::open(&self.model.folder()?, Access::Mapped)?;
        let value = self.value(&model, &tensors, adapter.as_ref())?;
        if style.json {
            return out::json(&value);
        }
        out::text(&text(&value))?;
        if self.tensors { list(&tensors) } else { Ok(()) }
    }

    fn value(&self, model: &Model, tensors: &Tensors, adapter: Option<&Adapter>) -> Result<Value> {
        let (config, stored) = (model.config(), Stored::of(tensors));
        let limit = std::env::var("DLLM_ISA").ok().and_then(|name| Isa::named(&name));
        let available: Vec<&str> = Isa::available().iter().map(|isa| isa.name()).collect();
        let mut value = json!({
            "model": self.model.folder()?,
            "fingerprint": model.fingerprint(),
            "shape": shape(config),
            "context": context(model),
            "parameters": stored.values,
            "weights": weights(&stored),
            "mapped": matches!(self.model.access(), Access::Mapped),
            "device": model.device(),
            "precision": model.engine().precision(),
            "isa": {"used": Isa::best(limit).name(), "available": available},
            "threads": self.model.threads(),
            "memory": self.memory(model, tensors),
            "chat_template": model.tokenizer().chat_template().is_some(),
        });
        if let Some(adapter) = adapter {
            let n = adapter.params().len();
            // in training: parameters, two moments and a gradient in f32
            value["adapter"] =
                json!({"pairs": adapter.slots().len(), "parameters": n, "bytes": 4 * n, "training_bytes": 16 * n});
        }
        if self.tensors {
            value["tensors"] = shapes(tensors);
        }
        Ok(value)
    }

    /// The weights, in their file or as what they become, and keys and values of a conversation.
    fn memory(&self, model: &Model, tensors: &Tensors) -> Value {
        let config = model.config();
        let precision = self.model.precision.precision();
        let per_token = 2 * config.n_layers * config.n_kv_heads * config.head_dim * precision.operand_bytes();
        let tokens = model.context_length().min(config.max_position_embeddings);
        json!({
            "weights": opened::bytes(tensors, precision.bits(), false),
            "cache_per_token": per_token,
            "cache_full_context": per_token.saturating_mul(tokens),
        })
    }
}

/// Positions; `null` where there is no bound (dynamic RoPE).
fn context(model: &Model) -> Value {
    match model.context_length() {
        usize::MAX => Value::Null,
        tokens => tokens.into(),
    }
}

fn shape(config: &Config) -> Value {
    json!({
        "layers": config.n_layers, "hidden": config.hidden_size, "feed_forward": config.intermediate_size,
        "heads": config.n_heads, "kv_heads": config.n_kv_heads, "head_dim": config.head_dim,
        "vocabulary": config.vocab_size, "tied": config.tie_word_embeddings,
    })
}

fn weights(stored: &Stored) -> Value {
    let part =
        |(dtype, tensors, bytes): &(String, usize, usize)| (dtype.clone(), json!({"tensors": tensors, "bytes": bytes}));
    stored.by_type.iter().map(part).collect::<Map<_, _>>().into()
}

/// Weights that a tensor holds: packed ones are eight a word, and scales and sizes are none.
fn values(name: &str, shape: &[usize]) -> usize {
    let all = shape.iter().product::<usize>();
    match name.rsplit_once('_').map(|(_, part)| part) {
        Some("scale" | "shape") => 0,
        Some("packed") => 8 * all,
        _ => all,
    }
}

fn shapes(tensors: &Tensors) -> Value {
    let one = |tensor: Described| (tensor.name.to_owned(), json!({"dtype": tensor.type_name, "shape": tensor.shape}));
    tensors.described().map(one).collect::<Map<_, _>>().into()
}

fn list(tensors: &Tensors) -> Result<()> {
    tensors.described().try_for_each(|Described { name, type_name, shape, .. }| {
        out::line(format_args!("{type_name:5} {shape:?} {name}"))
    })
}

fn text(value: &Value) -> String {
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let shape = &value["shape"];
    let words = |value: &Value| {
        let all = value.as_array().into_iter().flatten().filter_map(Value::as_str);
        all.collect::<Vec<_>>().join(", ")
    };
    let weights = value["weights"].as_object().into_iter().flatten();
    let weights: Vec<String> = weights
        .map(|(dtype, part)| format!("{} {dtype} ({})", part["tensors"], bytes(number(&part["bytes"]))))
        .collect();
    let memory = &value["memory"];
    let context = value["context"].as_u64().map_or("no bound".to_owned(), |n| format!("{} tokens", thousands(n)));
    let mut text = format!(
        "model        {}\n\
         shape        layers {} of {}/{}, {} heads of {}, {} for keys and values, vocabulary {}{}\n\
         parameters   {}\n\
         tensors      {}, {}\n\
         context      {context}\n\
         device       {}\n\
         precision    {}\n\
         instructions {} (this machine has {})\n\
         threads      {}\n\
         memory       weights {}, and {} per token of a conversation ({} for a full context)\n\
         fingerprint  {}\n",
        value["model"].as_str().unwrap_or_default(),
        shape["layers"],
        shape["hidden"],
        shape["feed_forward"],
        shape["heads"],
        shape["head_dim"],
        shape["kv_heads"],
        thousands(number(&shape["vocabulary"])),
        if shape["tied"] == json!(true) { ", embeddings tied" } else { "" },
        thousands(number(&value["parameters"])),
        weights.join(", "),
        if value["mapped"] == json!(true) { "mapped" } else { "read into memory" },
        value["device"].as_str().unwrap_or_default(),
        value["precision"].as_str().unwrap_or_default(),
        value["isa"]["used"].as_str().unwrap_or_default(),
        words(&value["isa"]["available"]),
        value["threads"],
        bytes(number(&memory["weights"])),
        bytes(number(&memory["cache_per_token"])),
        bytes(number(&memory["cache_full_context"])),
        value["fingerprint"].as_str().unwrap_or_default(),
    );
    if let Some(adapter) = value.get("adapter") {
        text += &format!(
            "adapter      {} pairs, {} parameters; {} in training\n",
            adapter["pairs"],
            thousands(number(&adapter["parameters"])),
            bytes(number(&adapter["training_bytes"]))
        );
    }
    text
}
