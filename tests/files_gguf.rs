//! GGUF files become model folders with the config, tensors and token ids that the reference tools find in them, and
//! damaged ones become sentences.

use dialoguellm::files::gguf::{Report, import};
use dialoguellm::files::{Access, Config, Tensors, Tokenizer};
use dialoguellm::{Code, Result};
use dialoguellm_kernels::bf16;
use dialoguellm_kernels::matrix::Dtype;
use proptest::prelude::*;
use serde_json::Value;
use std::path::{Path, PathBuf};

const FILES: [&str; 6] = ["bpe_f32_tied", "bpe_f16", "llama_bf16", "llama_q8_0", "bpe_q4_0_tied", "llama_q4_1_tied"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf").join(name)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn imported(name: &str, dtype: Dtype) -> (tempfile::TempDir, Report) {
    let dir = tempfile::tempdir().unwrap();
    let report = import(
        &golden(&format!("{name}.gguf")),
        &dir.path().join("m"),
        dtype,
        &mut |_, _| true,
        &dialoguellm::Cancel::default(),
    )
    .unwrap();
    (dir, report)
}

fn values(tensors: &Tensors, name: &str) -> Vec<f32> {
    let view = tensors.get(name).unwrap();
    match view.shape {
        [n] => view.vector(*n).unwrap(),
        shape => view.values(shape[0], shape[1]).unwrap(),
    }
}

#[test]
fn unquantised_tensors_keep_type_and_bits_and_quantised_ones_are_exact_in_f32() {
    for name in FILES {
        let (dir, report) = imported(name, Dtype::F32);
        let want = Tensors::open_file(&golden(&format!("{name}.safetensors")), Access::Read).unwrap();
        let got = Tensors::open(&dir.path().join("m"), Access::Read).unwrap();
        assert!(want.names().eq(got.names()), "{name}");
        for tensor in want.names() {
            let (w, g) = (want.get(tensor).unwrap(), got.get(tensor).unwrap());
            assert!(w.dtype == g.dtype && w.shape == g.shape && w.bytes == g.bytes, "{name} {tensor}");
        }
        assert_eq!(report.tensors, want.names().count());
        assert_eq!(report.dequantised > 0, name.contains("_q"), "{name}");
    }
}

#[test]
fn quantised_tensors_become_bf16_with_one_rounding() {
    for name in ["llama_q8_0", "bpe_q4_0_tied", "llama_q4_1_tied"] {
        let (dir, _) = imported(name, Dtype::Bf16);
        let want = Tensors::open_file(&golden(&format!("{name}.safetensors")), Access::Read).unwrap();
        let got = Tensors::open(&dir.path().join("m"), Access::Read).unwrap();
        let tensor = "model.layers.0.self_attn.q_proj.weight";
        assert_eq!(got.get(tensor).unwrap().dtype, Dtype::Bf16);
        assert!(got.get("model.norm.weight").unwrap().dtype == Dtype::F32, "norms are not quantised");
        let rounded: Vec<f32> = values(&want, tensor).iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
        assert_eq!(values(&got, tensor), rounded, "{name}");
    }
}

#[test]
fn the_config_is_the_one_expected() {
    let expected = json(&golden("expected.json"));
    for name in FILES {
        let (dir, report) = imported(name, Dtype::Bf16);
        let mut fields = expected[name]["config"].as_object().unwrap().clone();
        fields.insert("model_type".to_owned(), "llama".into());
        let mut want = Config::from_json(fields, Path::new("expected.json")).unwrap();
        want.pad = report.config.pad; // expected.json does not say
        assert_eq!(report.config, want, "{name}");
        assert_eq!(Config::read(&dir.path().join("m")).unwrap(), want, "{name}");
    }
}

#[test]
fn token_ids_are_those_of_the_reference_tokenizers() {
    let expected = json(&golden("expected.json"));
    for name in FILES {
        let (dir, _) = imported(name, Dtype::Bf16);
        let tokenizer = Tokenizer::open(&dir.path().join("m")).unwrap();
        let ids = |v: &Value| v.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect::<Vec<_>>();
        let cases = json(&golden(expected[name]["tokenizer"].as_str().unwrap()));
        assert!(cases.as_array().unwrap().len() > 70);
        for case in cases.as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&case["ids"]), "{name} {text:?}");
            let whole = case.get("ids_with_bos").unwrap_or(&case["ids"]);
            assert_eq!(tokenizer.encode(text, true).unwrap(), ids(whole), "{name} {text:?}");
            // SentencePiece cannot tell its mark of a space from a space.
            let back = if name.starts_with("llama") { text.replace('\u{2581}', " ") } else { text.to_owned() };
            assert_eq!(tokenizer.decode(&ids(&case["ids"]), false).unwrap(), back, "{name} {text:?}");
        }
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)), "{name}");
    }
}

#[test]
fn the_llama_tokenizer_is_the_one_that_transformers_converter_builds() {
    let (dir, _) = imported("llama_bf16", Dtype::Bf16);
    let got = json(&dir.path().join("m/tokenizer.json"));
    let want = json(&golden("../llama_tokenizer/tokenizer.json"));
    for key in ["normalizer", "pre_tokenizer", "decoder", "model"] {
        assert_eq!(got[key], want[key], "{key}");
    }
}

#[test]
fn progress_counts_to_the_end_and_can_stop_which_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("m");
    let (mut seen, cancel) = (Vec::new(), dialoguellm::Cancel::default());
    let mut run = |stop: usize| {
        seen.clear();
        import(
            &golden("bpe_f16.gguf"),
            &out,
            Dtype::Bf16,
            &mut |done, all| {
                seen.push((done, all));
                done < stop
            },
            &cancel,
        )
    };
    assert_eq!(run(3).unwrap_err().code(), Code::Cancelled);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    cancel.set();
    assert_eq!(run(usize::MAX).unwrap_err().code(), Code::Cancelled);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    cancel.clear();
    run(usize::MAX).unwrap();
    assert_eq!(seen, (0..=12).map(|n| (n, 12)).collect::<Vec<_>>());
}

fn import_bytes(bytes: &[u8]) -> Result<Report> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f.gguf");
    std::fs::write(&file, bytes).unwrap();
    let result = import(&file, &dir.path().join("m"), Dtype::Bf16, &mut |_, _| true, &dialoguellm::Cancel::default());
    assert_eq!(result.is_ok(), dir.path().join("m").exists(), "an error leaves no folder");
    result
}

/// The file with the first `from` after `key` replaced by `to` of the same length.
fn changed(file: &str, key: &str, from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = std::fs::read(golden(file)).unwrap();
    let find = |bytes: &[u8], what: &[u8], start: usize| {
        start + bytes[start..].windows(what.len()).position(|w| w == what).unwrap()
    };
    let at = find(&bytes, from, find(&bytes, key.as_bytes(), 0) + key.len());
    bytes[at..at + to.len()].copy_from_slice(to);
    bytes
}

#[test]
fn what_is_not_a_supported_llama_is_refused_by_name() {
    let u32 = |n: u32| n.to_le_bytes();
    for (bytes, code, words) in [
        (b"PK".to_vec(), Code::BadFile, &["GGUF"][..]),
        (b"PK\x03\x04and so on".to_vec(), Code::BadFile, &["no GGUF file"]),
        (changed("bpe_f16.gguf", "GGUF", &u32(3), &u32(1)), Code::Unsupported, &["version 1"]),
        (changed("bpe_f16.gguf", "GGUF", &u32(3), &3u32.to_be_bytes()), Code::Unsupported, &["big-endian"]),
        (
            changed("bpe_f16.gguf", "general.architecture", b"llama", b"gemma"),
            Code::Unsupported,
            &["architecture", "gemma"],
        ),
        (
            changed("bpe_f16.gguf", "tokenizer.ggml.pre", b"gpt-2", b"qwen2"),
            Code::Unsupported,
            &["tokenizer.ggml.pre", "qwen2"],
        ),
        (
            changed("llama_bf16.gguf", "tokenizer.ggml.model", b"llama", b"other"),
            Code::Unsupported,
            &["tokenizer.ggml.model", "other"],
        ),
        (
            changed("llama_bf16.gguf", "llama.rope.scaling.type", b"linear", b"yarn\0\0"),
            Code::Unsupported,
            &["rope.scaling.type"],
        ),
        (changed("bpe_f16.gguf", "llama.attention.head_count", &u32(4), &u32(6)), Code::BadFile, &["6"]),
        (
            changed("bpe_f16.gguf", "llama.rope.dimension_count", &u32(16), &u32(8)),
            Code::Unsupported,
            &["dimension_count", "8", "16"],
        ),
        (
            changed("bpe_f16.gguf", "tokenizer.ggml.bos_token_id", &u32(1), &u32(999)),
            Code::BadFile,
            &["bos_token_id", "999", "320"],
        ),
        (
            changed("bpe_f16.gguf", "blk.0.attn_q.weight", &u32(1), &u32(12)),
            Code::Unsupported,
            &["blk.0.attn_q.weight", "Q4_K"],
        ),
        (changed("bpe_f16.gguf", "blk.0.", b"attn_q.weight", b"attn_x.weight"), Code::Unsupported, &["attn_x.weight"]),
        (
            changed("bpe_f16.gguf", "blk.0.ffn_up.weight", &[64, 0], &[32, 0]),
            Code::BadFile,
            &["blk.0.ffn_up.weight", "[32, 32]", "[32, 64]"],
        ),
    ] {
        let error = import_bytes(&bytes).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(words.iter().all(|w| error.text().contains(w)), "{error}");
    }
}

#[test]
fn a_file_cut_anywhere_is_a_sentence() {
    let bytes = std::fs::read(golden("llama_q8_0.gguf")).unwrap();
    for len in (0..bytes.len()).step_by(499).chain([bytes.len() - 1]) {
        let error = import_bytes(&bytes[..len]).unwrap_err();
        assert!(error.code() == Code::BadFile && error.text().contains("f.gguf"), "{len}: {error}");
    }
}

#[test]
fn an_infinite_scale_is_numeric_and_named() {
    let mut bytes = std::fs::read(golden("llama_q8_0.gguf")).unwrap();
    let from = bytes.len() - 2048; // the end of the last matrix, and the last norm
    bytes[from..].as_chunks_mut().0.iter_mut().for_each(|pair| *pair = [0x00, 0x7C]); // infinity in f16
    let error = import_bytes(&bytes).unwrap_err();
    assert!(
        error.code() == Code::Numeric && error.text().contains("model.layers.0.self_attn.v_proj.weight"),
        "{error}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]
    #[test]
    fn a_damaged_file_never_panics(which in 0..FILES.len(), flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5)) {
        let mut bytes = std::fs::read(golden(&format!("{}.gguf", FILES[which]))).unwrap();
        // Most of a file is weights: damage what is parsed.
        let parsed = 12_000.min(bytes.len());
        for (at, byte) in flips {
            bytes[at.index(parsed)] = byte;
        }
        if let Err(error) = import_bytes(&bytes) {
            prop_assert!(matches!(error.code(), Code::BadFile | Code::Unsupported | Code::Numeric), "{}", error);
        }
    }
}
