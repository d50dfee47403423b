//! Small random models, as files for the engine and as values for the plain implementation.

use super::plain::{Mat, Pair, Plain};
use dialoguellm::files::Config;
use dialoguellm::files::adapter::LoraConfig;
use dialoguellm::model::Adapter;
use dialoguellm_kernels::testing::Random;
use safetensors::tensor::TensorView;
use std::collections::BTreeMap;
use std::path::Path;

/// What differs between the models.
#[derive(Clone, Copy)]
pub struct Shape {
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub layers: usize,
    pub tied: bool,
    pub bias: bool,
}

const VOCABULARY: usize = 61;
const FEED_FORWARD: usize = 72;

/// Writes a model into `dir` and returns it in every form; the adapter's B is not zero. Weights keep the size of what
/// goes through them, so that errors are those of the arithmetic and not of an unstable network.
pub fn model(dir: &Path, shape: Shape, targets: &str) -> (Plain, Config, Adapter) {
    let weights = weights(shape);
    write(dir, &weights);
    let config = serde_json::json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "vocab_size": VOCABULARY,
        "hidden_size": shape.hidden, "intermediate_size": FEED_FORWARD, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 128,
        "tie_word_embeddings": shape.tied, "attention_bias": shape.bias, "mlp_bias": shape.bias,
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let config = Config::read(dir).unwrap();
    let adapter = adapter(&config, targets);
    let pairs = adapter.slots().iter().map(|slot| {
        let (a, b) = (&adapter.params()[slot.at.a..], &adapter.params()[slot.at.b..]);
        let mat = |rows: usize, cols: usize, values: &[f32]| {
            Mat::new(rows, cols, values[..rows * cols].iter().map(|&x| x as f64).collect())
        };
        let (a, b) = (mat(slot.at.rank, slot.at.inputs, a), mat(slot.at.outputs, slot.at.rank, b));
        (slot.spec.site.path(slot.spec.layer), Pair { a, b, scale: slot.spec.scale })
    });
    let plain = Plain {
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        layers: shape.layers,
        eps: 1e-5,
        theta: 10000.0,
        tied: shape.tied,
        weights,
        pairs: pairs.collect(),
    };
    (plain, config, adapter)
}

fn weights(shape: Shape) -> BTreeMap<String, Mat> {
    let mut random = Random::new(shape.heads as u64);
    let mut weights = BTreeMap::new();
    // uniform in +-1 has variance 1/3
    let mut add = |name: String, rows: usize, cols: usize, centre: f64, size: f64| {
        let values = (0..rows * cols).map(|_| (centre + size * random.signed()) as f32 as f64).collect();
        weights.insert(name, Mat::new(rows, cols, values));
    };
    let hidden = shape.hidden;
    let (q, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    for layer in 0..shape.layers {
        let maps = [
            ("self_attn.q_proj", q, hidden),
            ("self_attn.k_proj", kv, hidden),
            ("self_attn.v_proj", kv, hidden),
            ("self_attn.o_proj", hidden, q),
            ("mlp.gate_proj", FEED_FORWARD, hidden),
            ("mlp.up_proj", FEED_FORWARD, hidden),
            ("mlp.down_proj", hidden, FEED_FORWARD),
        ];
        for (name, rows, cols) in maps {
            add(format!("model.layers.{layer}.{name}.weight"), rows, cols, 0.0, (3.0 / cols as f64).sqrt());
            if shape.bias {
                add(format!("model.layers.{layer}.{name}.bias"), 1, rows, 0.0, 0.3);
            }
        }
        add(format!("model.layers.{layer}.input_layernorm.weight"), 1, hidden, 1.0, 0.2);
        add(format!("model.layers.{layer}.post_attention_layernorm.weight"), 1, hidden, 1.0, 0.2);
    }
    add("model.norm.weight".to_owned(), 1, hidden, 1.0, 0.2);
    let head = if shape.tied { None } else { Some("lm_head.weight") };
    for name in ["model.embed_tokens.weight"].into_iter().chain(head) {
        add(name.to_owned(), VOCABULARY, hidden, 0.0, 0.5);
    }
    weights
}

fn write(dir: &Path, weights: &BTreeMap<String, Mat>) {
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = weights
        .iter()
        .map(|(name, mat)| {
            let shape = if mat.rows == 1 { vec![mat.cols] } else { vec![mat.rows, mat.cols] };
            (name.clone(), shape, mat.values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect())
        })
        .collect();
    let views = bytes
        .iter()
        .map(|(name, shape, bytes)| (name, TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
}

fn adapter(config: &Config, targets: &str) -> Adapter {
    let targets = match targets {
        "all-linear" => serde_json::json!(targets),
        names => serde_json::json!(names.split(' ').collect::<Vec<_>>()),
    };
    let json = serde_json::json!({"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": targets});
    let mut adapter =
        Adapter::new(LoraConfig::from_json(json.as_object().unwrap().clone()).unwrap(), config, 1).unwrap();
    let mut random = Random::new(9);
    for slot in adapter.slots().to_vec() {
        let len = slot.at.outputs * slot.at.rank;
        adapter.params_mut()[slot.at.b..][..len].iter_mut().for_each(|b| *b = 0.3 * random.signed() as f32);
    }
    adapter
}
