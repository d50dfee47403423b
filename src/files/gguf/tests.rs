//! What the golden files do not show: biases, llama3 scaling, Llama 3's vocabulary, and files that lie. A small GGUF
//! writer of its own makes the files, so that any field can be wrong.

use super::{Report, import};
use crate::files::{Access, Scaling, Tensors, Tokenizer};
use crate::{Code, Result};
use dialoguellm_kernels::matrix::Dtype;
use std::collections::BTreeMap;
use std::path::Path;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// A file to be: metadata as bytes after the key, tensors as (shape outermost first, values).
#[derive(Clone)]
struct File {
    meta: BTreeMap<String, Vec<u8>>,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    /// Added to the offset of the second tensor.
    shift: i64,
    counts: Option<(u64, u64)>,
}

fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat()
}

fn tagged(kind: u32, value: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes(), value].concat()
}

fn array(kind: u32, values: &[Vec<u8>]) -> Vec<u8> {
    tagged(9, &[&kind.to_le_bytes()[..], &(values.len() as u64).to_le_bytes(), &values.concat()].concat())
}

impl File {
    fn size(mut self, key: &str, n: u32) -> Self {
        self.meta.insert(key.to_owned(), tagged(4, &n.to_le_bytes()));
        self
    }
    fn float(mut self, key: &str, x: f32) -> Self {
        self.meta.insert(key.to_owned(), tagged(6, &x.to_le_bytes()));
        self
    }
    fn flag(mut self, key: &str, b: bool) -> Self {
        self.meta.insert(key.to_owned(), tagged(7, &[u8::from(b)]));
        self
    }
    fn text(mut self, key: &str, s: &str) -> Self {
        self.meta.insert(key.to_owned(), tagged(8, &text(s)));
        self
    }
    fn texts(mut self, key: &str, all: &[String]) -> Self {
        self.meta.insert(key.to_owned(), array(8, &all.iter().map(|s| text(s)).collect::<Vec<_>>()));
        self
    }
    fn raw(mut self, key: &str, bytes: Vec<u8>) -> Self {
        self.meta.insert(key.to_owned(), bytes);
        self
    }
    fn tensor(mut self, name: &str, shape: &[usize], values: Vec<f32>) -> Self {
        self.tensors.insert(name.to_owned(), (shape.to_vec(), values));
        self
    }
    fn without(mut self, name: &str) -> Self {
        assert!(self.meta.remove(name).is_some() || self.tensors.remove(name).is_some());
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let (n_tensors, n_pairs) = self.counts.unwrap_or((self.tensors.len() as u64, self.meta.len() as u64));
        let mut out = [&b"GGUF"[..], &3u32.to_le_bytes(), &n_tensors.to_le_bytes(), &n_pairs.to_le_bytes()].concat();
        self.meta.iter().for_each(|(key, value)| out.extend([text(key), value.clone()].concat()));
        let mut data = Vec::new();
        for (i, (name, (shape, values))) in self.tensors.iter().enumerate() {
            let shift = if i == 1 { self.shift } else { 0 };
            out.extend(text(name));
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|n| out.extend((*n as u64).to_le_bytes()));
            out.extend(0u32.to_le_bytes());
            out.extend((data.len() as i64 + shift).to_le_bytes());
            values.iter().for_each(|x| data.extend(x.to_le_bytes()));
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        [out, data].concat()
    }

    fn import(&self, out: &Path) -> Result<Report> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f.gguf");
        std::fs::write(&file, self.bytes()).unwrap();
        import(&file, out, Dtype::Bf16, &mut |_, _| true, &crate::Cancel::default())
    }

    fn imported(&self) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        self.import(&dir.path().join("m")).unwrap();
        dir
    }

    fn report(&self) -> Report {
        let dir = tempfile::tempdir().unwrap();
        self.import(&dir.path().join("m")).unwrap()
    }

    #[track_caller]
    fn refused(&self, code: Code, words: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        let error = self.import(&dir.path().join("m")).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(words.iter().all(|w| error.text().contains(w)), "{error}");
    }
}

/// All bytes, three merges, a control token: 260 tokens.
fn byte_tokens() -> Vec<String> {
    let mut bytes: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
    bytes.sort();
    bytes.into_iter().chain(["12", "123", "ab", "<s>"].map(str::to_owned)).collect()
}

fn counted(n: usize) -> Vec<f32> {
    (0..n).map(|i| i as f32).collect()
}

/// D 8, 2 heads of 8, 1 KV head, F 4, one layer, tied.
fn model() -> File {
    let (d, heads, f, v) = (8, 16, 4, 260);
    let empty = File { meta: BTreeMap::new(), tensors: BTreeMap::new(), shift: 0, counts: None };
    let mut types = vec![1i32.to_le_bytes().to_vec(); v];
    types[259] = 3i32.to_le_bytes().to_vec();
    let file = empty
        .text("general.architecture", "llama")
        .size("llama.block_count", 1)
        .size("llama.context_length", 64)
        .size("llama.embedding_length", d as u32)
        .size("llama.feed_forward_length", f as u32)
        .size("llama.attention.head_count", 2)
        .size("llama.attention.head_count_kv", 1)
        .size("llama.attention.key_length", 8)
        .float("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "llama-bpe")
        .texts("tokenizer.ggml.tokens", &byte_tokens())
        .raw("tokenizer.ggml.token_type", array(5, &types))
        .texts("tokenizer.ggml.merges", &["1 2", "12 3"].map(str::to_owned))
        .size("tokenizer.ggml.bos_token_id", 259)
        .size("tokenizer.ggml.eos_token_id", 259);
    let shapes = [
        ("attn_q", heads, d),
        ("attn_k", 8, d),
        ("attn_v", 8, d),
        ("attn_output", d, heads),
        ("ffn_gate", f, d),
        ("ffn_up", f, d),
        ("ffn_down", d, f),
    ];
    let layers = shapes.into_iter().fold(file, |file, (name, rows, cols)| {
        file.tensor(&format!("blk.0.{name}.weight"), &[rows, cols], counted(rows * cols))
    });
    let norms = ["blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"];
    let file = norms.into_iter().fold(layers, |file, name| file.tensor(name, &[d], counted(d)));
    file.tensor("token_embd.weight", &[v, d], counted(v * d))
}

#[test]
fn rows_and_biases_of_q_and_k_go_back_to_their_order() {
    let biases = [("attn_q", 16), ("attn_k", 8), ("attn_v", 8), ("attn_output", 8)];
    let file =
        biases.into_iter().fold(model(), |f, (name, n)| f.tensor(&format!("blk.0.{name}.bias"), &[n], counted(n)));
    let dir = file.imported();
    let tensors = Tensors::open(&dir.path().join("m"), Access::Read).unwrap();
    let vector =
        |name: &str, n: usize| tensors.get(&format!("model.layers.0.self_attn.{name}")).unwrap().vector(n).unwrap();
    // Even rows of a head, then odd ones.
    assert_eq!(vector("k_proj.bias", 8), [0.0, 2.0, 4.0, 6.0, 1.0, 3.0, 5.0, 7.0]);
    assert_eq!(vector("q_proj.bias", 16)[8..], [8.0, 10.0, 12.0, 14.0, 9.0, 11.0, 13.0, 15.0]);
    assert_eq!((vector("v_proj.bias", 8), vector("o_proj.bias", 8)), (counted(8), counted(8)));
    let k = tensors.get("model.layers.0.self_attn.k_proj.weight").unwrap().values(8, 8).unwrap();
    assert_eq!((k[8], k[32]), (16.0, 8.0), "rows 1 and 4 were rows 2 and 1");
    assert!(file.report().config.attention_bias);
}

#[test]
fn some_biases_without_the_others_are_refused() {
    model().tensor("blk.0.attn_v.bias", &[8], counted(8)).refused(Code::Unsupported, &["blk.0.attn_v.bias"]);
    model().tensor("blk.0.attn_q.bias", &[16], counted(16)).refused(Code::BadFile, &["lacks tensor blk.0.attn_k.bias"]);
}

/// Divisors as transformers computes them, by cases.
fn llama3_divisors(theta: f64, d: usize, factor: f64) -> Vec<f32> {
    let (low, high) = (8192.0 / 1.0, 8192.0 / 4.0);
    let divisor = |i: usize| {
        let wavelength = std::f64::consts::TAU * theta.powf(2.0 * i as f64 / d as f64);
        if wavelength < high {
            return 1.0;
        }
        if wavelength > low {
            return factor;
        }
        let smooth = (8192.0 / wavelength - 1.0) / 3.0;
        1.0 / ((1.0 - smooth) / factor + smooth)
    };
    (0..d / 2).map(|i| divisor(i) as f32).collect()
}

#[test]
fn llama3_scaling_is_recognised_by_its_divisors() {
    let file = model().float("llama.rope.freq_base", 5e5);
    let divisors = llama3_divisors(5e5, 8, 32.0);
    assert!(
        divisors.contains(&1.0) && divisors.contains(&32.0) && divisors.iter().any(|&x| x > 1.0 && x < 32.0),
        "{divisors:?}"
    );
    let scaled = file.clone().tensor("rope_freqs.weight", &[4], divisors.clone());
    let want = Scaling::Llama3 { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original: 8192 };
    assert_eq!(scaled.report().config.rope.scaling, want);
    assert_eq!(
        file.clone().tensor("rope_freqs.weight", &[4], vec![1.0; 4]).report().config.rope.scaling,
        Scaling::None
    );
    for i in 0..4 {
        let mut other = divisors.clone();
        other[i] *= 1.01;
        file.clone()
            .tensor("rope_freqs.weight", &[4], other)
            .refused(Code::Unsupported, &["rope_freqs.weight", "llama3"]);
    }
}

#[test]
fn linear_scaling_is_read_from_new_and_old_keys() {
    let new = model().text("llama.rope.scaling.type", "linear").float("llama.rope.scaling.factor", 4.0);
    for file in [new, model().float("llama.rope.scale_linear", 4.0)] {
        assert_eq!(file.report().config.rope.scaling, Scaling::Linear { factor: 4.0 });
    }
    assert_eq!(model().report().config.rope.scaling, Scaling::None);
}

#[test]
fn numbers_stored_as_f32_mean_their_shortest_decimal() {
    assert_eq!(model().report().config.rms_norm_eps, 1e-5);
}

#[test]
fn llama_3_cuts_digits_in_threes_takes_whole_words_and_begins_with_bos() {
    let dir = model().imported();
    let t = Tokenizer::open(&dir.path().join("m")).unwrap();
    let id = |token: &str| t.id(token).unwrap();
    assert_eq!(t.encode("1231234", true).unwrap(), [259, id("123"), id("123"), id("4")]);
    // "ab" is no merge: only ignore_merges finds it, and only as a whole word.
    assert_eq!(t.encode("ab", false).unwrap(), [id("ab")]);
    assert_eq!(t.encode("abb", false).unwrap(), [id("a"), id("b"), id("b")]);
    assert_eq!(t.encode("a<s>", false).unwrap(), [id("a"), 259]);
}

#[test]
fn what_a_file_says_of_tokens_around_a_text_is_done() {
    let around = |bos: bool, eos: bool| {
        let dir =
            model().flag("tokenizer.ggml.add_bos_token", bos).flag("tokenizer.ggml.add_eos_token", eos).imported();
        Tokenizer::open(&dir.path().join("m")).unwrap().encode("4", true).unwrap().len()
    };
    assert_eq!([around(false, false), around(true, false), around(false, true), around(true, true)], [1, 2, 2, 3]);
    model().without("tokenizer.ggml.bos_token_id").refused(Code::BadFile, &["bos_token_id"]);
}

#[test]
fn the_end_of_a_turn_is_an_end_token_too() {
    assert_eq!(model().report().config.eos, [259]);
    assert_eq!(model().size("tokenizer.ggml.eot_token_id", 4).report().config.eos, [259, 4]);
}

#[test]
fn other_models_are_refused_by_key_and_value() {
    model().size("llama.expert_count", 8).refused(Code::Unsupported, &["llama.expert_count is 8"]);
    model().size("split.count", 3).refused(Code::Unsupported, &["split.count is 3"]);
    model().size("llama.attention.value_length", 4).refused(Code::Unsupported, &["value_length is 4", "8"]);
    let by_layer = array(4, &[4u32.to_le_bytes().to_vec()]);
    model()
        .raw("llama.feed_forward_length", by_layer)
        .refused(Code::Unsupported, &["feed_forward_length differs by layer"]);
    model().without("tokenizer.ggml.pre").refused(Code::Unsupported, &["tokenizer.ggml.pre is missing"]);
    model().size("llama.block_count", 2).refused(Code::BadFile, &["lacks tensor blk.1.attn_norm.weight"]);
    model().without("llama.context_length").refused(Code::BadFile, &["lacks key llama.context_length"]);
}

#[test]
fn lies_about_places_and_counts_are_told() {
    let with = |change: fn(&mut File)| {
        let mut file = model();
        change(&mut file);
        file
    };
    with(|f| f.shift = -32).refused(Code::BadFile, &["overlap"]);
    with(|f| f.shift = 4).refused(Code::BadFile, &["alignment 32"]);
    with(|f| f.shift = 1 << 40).refused(Code::BadFile, &["truncated"]);
    with(|f| f.shift = i64::MAX - 1024).refused(Code::BadFile, &["tensor"]);
    with(|f| f.counts = Some((12, u64::MAX))).refused(Code::BadFile, &[]);
    with(|f| f.counts = Some((u64::MAX, 16))).refused(Code::BadFile, &[]);
    let endless = tagged(9, &[&0u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat());
    model().raw("a.first", endless).refused(Code::BadFile, &["a.first", "ends too early"]);
    let nested = array(9, &[array(9, &[array(9, &[])[4..].to_vec()])[4..].to_vec()]);
    model().raw("a.first", nested).refused(Code::BadFile, &["arrays in arrays"]);
    model().raw("a.first", tagged(13, &[])).refused(Code::BadFile, &["a.first", "type 13"]);
    model().tensor("blk.0.attn_norm.weight", &[2, 4], counted(8)).refused(Code::BadFile, &["[2, 4]", "[8]"]);
}

#[test]
fn vocabularies_that_contradict_themselves_are_refused() {
    let tokens = |change: fn(&mut Vec<String>)| {
        let mut all = byte_tokens();
        change(&mut all);
        model().texts("tokenizer.ggml.tokens", &all)
    };
    tokens(|t| t[3] = t[7].clone()).refused(Code::BadFile, &["tokens 3 and 7"]);
    tokens(|t| t[3] = "x".repeat(5000)).refused(Code::BadFile, &["token 3 has 5000 bytes"]);
    tokens(|t| t.truncate(200)).refused(Code::BadFile, &["260", "200"]);
    model().texts("tokenizer.ggml.merges", &["12".to_owned()]).refused(Code::BadFile, &["merge 0"]);
    model().texts("tokenizer.ggml.merges", &["ab c".to_owned()]).refused(Code::BadFile, &["tokenizer.json"]);
}
