//! Model folders, tokenizers and adapters as transformers and PEFT write them are read, and read as what they say.

use dialoguellm::files::{Access, Config, Scaling, Site, Tensors, Tokenizer, adapter};
use dialoguellm::{Code, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

const VARIANTS: [&str; 15] = [
    "mha",
    "gqa",
    "tied",
    "untied",
    "attention_bias",
    "mlp_bias",
    "head_dim",
    "rope_theta",
    "rope_linear",
    "rope_dynamic",
    "rope_llama3",
    "vocab_padding",
    "bf16",
    "f16",
    "sharded",
];

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn both_spellings_of_every_config_are_the_same_model() {
    let mut compared = 0;
    for name in VARIANTS {
        let config = Config::read(&golden(name)).unwrap();
        let new = golden(name).join("config_v5.json");
        if new.exists() {
            let new = Config::from_json(json(&new).as_object().unwrap().clone(), &new).unwrap();
            assert_eq!(config, new, "{name}");
            compared += 1;
        }
    }
    assert_eq!(compared, 13);
}

#[test]
fn the_fields_that_variants_change_are_read() {
    let of = |name: &str| Config::read(&golden(name)).unwrap();
    assert_eq!((of("mha").n_kv_heads, of("gqa").n_kv_heads), (4, 2));
    assert_eq!((of("tied").tie_word_embeddings, of("untied").tie_word_embeddings), (true, false));
    assert_eq!((of("attention_bias").attention_bias, of("attention_bias").mlp_bias), (true, false));
    assert_eq!((of("mlp_bias").attention_bias, of("mlp_bias").mlp_bias), (false, true));
    assert_eq!((of("head_dim").head_dim, of("gqa").head_dim), (12, 8));
    assert_eq!((of("rope_theta").rope.theta, of("gqa").rope.theta), (5e5, 1e4));
    assert_eq!(of("rope_linear").rope.scaling, Scaling::Linear { factor: 4.0 });
    assert_eq!(of("rope_dynamic").rope.scaling, Scaling::Dynamic { factor: 2.0, original: 32 });
    let llama3 = Scaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original: 32 };
    assert_eq!(of("rope_llama3").rope.scaling, llama3);
    assert_eq!(of("gqa").rms_norm_eps, 1e-3);
}

/// The name and shape of every tensor that a config promises.
fn promised(c: &Config) -> Vec<(String, Vec<usize>)> {
    let d = c.hidden_size;
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), vec![c.vocab_size, d]),
        ("model.norm.weight".to_owned(), vec![d]),
    ];
    all.extend((!c.tie_word_embeddings).then(|| ("lm_head.weight".to_owned(), vec![c.vocab_size, d])));
    for layer in 0..c.n_layers {
        all.extend(
            ["input_layernorm", "post_attention_layernorm"]
                .map(|n| (format!("model.layers.{layer}.{n}.weight"), vec![d])),
        );
        for site in Site::ALL {
            let (out, input) = site.shape(c);
            let bias = if site <= Site::O { c.attention_bias } else { c.mlp_bias };
            all.push((format!("{}.weight", site.path(layer)), vec![out, input]));
            all.extend(bias.then(|| (format!("{}.bias", site.path(layer)), vec![out])));
        }
    }
    all
}

#[test]
fn every_tensor_is_found_in_its_shape_both_ways_and_there_is_no_other() {
    for name in VARIANTS {
        let promised = promised(&Config::read(&golden(name)).unwrap());
        for access in [Access::Mapped, Access::Read] {
            let tensors = Tensors::open(&golden(name), access).unwrap();
            assert_eq!(tensors.names().count(), promised.len(), "{name}");
            for (tensor, shape) in &promised {
                let view = tensors.get(tensor).unwrap();
                assert_eq!(view.shape, shape, "{name} {tensor}");
                let values = if let [n] = shape[..] { view.vector(n) } else { view.values(shape[0], shape[1]) };
                assert!(values.unwrap().iter().any(|&x| x != 0.0), "{name} {tensor}");
            }
        }
    }
    assert_eq!(Tensors::open(&golden("sharded"), Access::Mapped).unwrap().files().count(), 2);
}

#[test]
fn bf16_and_f16_values_widen_exactly() {
    for (name, size) in [("bf16", 2), ("f16", 2), ("gqa", 4)] {
        let tensors = Tensors::open(&golden(name), Access::Mapped).unwrap();
        let view = tensors.get("model.norm.weight").unwrap();
        assert_eq!(view.dtype.size(), size);
        // The script draws norm weights from 0.5 to 1.5.
        assert!(view.vector(32).unwrap().iter().all(|x| (0.5..=1.5).contains(x)), "{name}");
    }
}

#[test]
fn every_adapter_of_peft_is_read_with_its_ranks_and_scales() {
    for name in VARIANTS {
        let (lora, pairs) =
            adapter::read(&golden(name).join("adapter"), &Config::read(&golden(name)).unwrap()).unwrap();
        let tensors =
            Tensors::open_file(&golden(name).join("adapter").join(adapter::WEIGHTS_FILE), Access::Read).unwrap();
        assert_eq!(2 * pairs.len(), tensors.names().count(), "{name}");
        for p in &pairs {
            let divisor = if lora.use_rslora { (p.spec.rank as f64).sqrt() } else { p.spec.rank as f64 };
            assert_eq!(p.spec.scale, p.spec.alpha / divisor, "{name}");
        }
    }
}

#[test]
fn the_word_all_linear_means_the_modules_that_peft_spells_out() {
    let config = Config::read(&golden("tied")).unwrap();
    let (spelled, _) = adapter::read(&golden("tied/adapter"), &config).unwrap();
    let word = json(&golden("tied/adapter/adapter_config_shorthand.json")).as_object().unwrap().clone();
    let word = adapter::LoraConfig::from_json(word).unwrap();
    assert_eq!(word.pairs(&config).unwrap(), spelled.pairs(&config).unwrap());
    assert_eq!(word.targets, adapter::Targets::AllLinear);
}

#[test]
fn patterns_give_the_ranks_and_alphas_of_the_variant_made_for_them() {
    let config = Config::read(&golden("head_dim")).unwrap();
    let (_, pairs) = adapter::read(&golden("head_dim/adapter"), &config).unwrap();
    let of = |layer, site| {
        pairs.iter().find(|p| (p.spec.layer, p.spec.site) == (layer, site)).map(|p| (p.spec.rank, p.spec.alpha))
    };
    assert_eq!(of(0, Site::Q), Some((6, 3.0)));
    assert_eq!(of(0, Site::Gate), Some((5, 8.0)));
    assert_eq!(of(1, Site::Gate), Some((4, 8.0)));
    assert_eq!(of(1, Site::Down), Some((2, 8.0)));
    assert_eq!(of(1, Site::V), Some((4, 16.0)));
}

#[test]
fn an_adapter_written_again_holds_the_same_tensors() {
    for name in VARIANTS {
        let config = Config::read(&golden(name)).unwrap();
        let (lora, pairs) = adapter::read(&golden(name).join("adapter"), &config).unwrap();
        let dir = tempfile::tempdir().unwrap();
        adapter::write(dir.path(), &lora, &pairs, &config).unwrap();
        let [old, new] = [golden(name).join("adapter"), dir.path().to_owned()]
            .map(|dir| Tensors::open_file(&dir.join(adapter::WEIGHTS_FILE), Access::Read).unwrap());
        assert!(old.names().eq(new.names()), "{name}");
        for tensor in old.names() {
            let (a, b) = (old.get(tensor).unwrap(), new.get(tensor).unwrap());
            assert!(a.shape == b.shape && a.bytes == b.bytes, "{name} {tensor}");
        }
    }
}

#[test]
fn adapters_that_are_not_plain_lora_are_refused_by_name() {
    let config = Config::read(&golden("attention_bias")).unwrap();
    for (name, word) in [
        ("dora", "use_dora"),
        ("modules_to_save", "modules_to_save"),
        ("bias", "bias"),
        ("lora_bias", "lora_bias"),
        ("embedding", "embed_tokens"),
        ("ia3", "IA3"),
    ] {
        let error = adapter::read(&golden("refused").join(name), &config).unwrap_err();
        assert!(error.code() == Code::Unsupported && error.text().contains(word), "{name}: {error}");
    }
}

#[test]
fn an_adapter_of_another_variant_is_refused_with_both_shapes() {
    let config = Config::read(&golden("head_dim")).unwrap();
    let error = adapter::read(&golden("gqa/adapter"), &config).unwrap_err();
    assert!(error.text().contains("[32, 3]") && error.text().contains("[48, 3]"), "{error}");
}

#[test]
fn a_padded_vocabulary_passes_and_a_short_one_does_not() {
    let tokenizer = Tokenizer::open(&golden("vocab_padding")).unwrap();
    assert_eq!(tokenizer.vocab_size(), 77);
    tokenizer.check(&Config::read(&golden("vocab_padding")).unwrap()).unwrap();
    let error = tokenizer.check(&Config::read(&golden("gqa")).unwrap()).unwrap_err();
    assert!(error.text().contains("61"), "{error}");
}

#[test]
fn a_llama_tokenizer_gives_sentencepieces_ids() {
    let tokenizer = Tokenizer::open(&golden("llama_tokenizer")).unwrap();
    let ids = |v: &Value| v.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect::<Vec<_>>();
    for case in json(&golden("llama_tokenizer/expected.json")).as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&case["ids"]), "{text:?}");
        assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&case["ids_with_bos"]), "{text:?}");
        // SentencePiece cannot tell its mark of a space from a space.
        let back = text.replace('\u{2581}', " ");
        assert_eq!(tokenizer.decode(&ids(&case["ids_with_bos"]), true).unwrap(), back, "{text:?}");
    }
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
}

/// The folder's files with one of them cut short or gone.
fn damaged(name: &str, file: &str, keep: Option<u64>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden(name)).unwrap().flatten().filter(|e| e.path().is_file()) {
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let file = dir.path().join(file);
    match keep {
        Some(len) => std::fs::File::options().write(true).open(file).unwrap().set_len(len).unwrap(),
        None => std::fs::remove_file(file).unwrap(),
    }
    dir
}

#[test]
fn damaged_folders_are_told_by_file() {
    let weights = |dir: &Path| -> Result<()> { Tensors::open(dir, Access::Mapped).map(drop) };
    let config = |dir: &Path| -> Result<()> { Config::read(dir).map(drop) };
    let tokens = |dir: &Path| -> Result<()> { Tokenizer::open(dir).map(drop) };
    type Open<'a> = &'a dyn Fn(&Path) -> Result<()>;
    let cases: [(&str, &str, Option<u64>, Open<'_>, Code); 7] = [
        ("gqa", "model.safetensors", Some(5000), &weights, Code::BadFile),
        ("gqa", "model.safetensors", None, &weights, Code::NotFound),
        ("sharded", "model-00002-of-00002.safetensors", Some(5000), &weights, Code::BadFile),
        ("sharded", "model-00002-of-00002.safetensors", None, &weights, Code::NotFound),
        ("gqa", "config.json", Some(100), &config, Code::BadFile),
        ("vocab_padding", "tokenizer.json", None, &tokens, Code::NotFound),
        ("vocab_padding", "tokenizer.json", Some(100), &tokens, Code::BadFile),
    ];
    for (name, file, keep, open, code) in cases {
        let dir = damaged(name, file, keep);
        let error = open(dir.path()).unwrap_err();
        assert!(error.code() == code && error.text().contains(file), "{file}: {error}");
    }
}
