//! GGUF's vocabulary to tokenizer.json and tokenizer_config.json.
//!
//! Two kinds: "gpt2", byte-level BPE with its merges and the name of a pre-tokenizer, and "llama", SentencePiece BPE with
//! scores, whose merges are derived as transformers' slow-to-fast converter derives them (`generate_merges` in
//! convert_slow_tokenizer.py, transformers 5.23). Control and user-defined tokens become added tokens, which are found in
//! a text before anything else. This file knows nothing of weights.

use super::bad;
use super::parse::Meta;
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Longer tokens would make deriving merges slow (each is cut at every place); real ones have at most a few hundred bytes.
const LONGEST_TOKEN: usize = 4096;
/// SentencePiece's mark of a space.
const SPACE: &str = "\u{2581}";
/// How Llama 3 cuts a text before BPE, from its tokenizer.json.
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A vocabulary, checked as far as it can be without building the tokenizer.
pub(super) struct Vocab<'a> {
    tokens: Vec<&'a str>,
    kinds: Vec<TokenKind>,
    model: Model<'a>,
    special: Special,
    add_bos: bool,
    add_eos: bool,
    add_space_prefix: bool,
    chat_template: Option<&'a str>,
}

enum Model<'a> {
    ByteLevel { pre: Pre, merges: Vec<(&'a str, &'a str)> },
    SentencePiece { scores: Vec<f64> },
}

#[derive(Clone, Copy, PartialEq)]
enum Pre {
    Gpt2,
    SmolLm,
    Llama3,
}

/// gguf.md's token types.
#[derive(Clone, Copy, PartialEq)]
enum TokenKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// Ids with a role.
struct Special {
    bos: Option<usize>,
    eos: Option<usize>,
    /// Ends a turn, where that is another token than `eos`.
    eot: Option<usize>,
    unk: Option<usize>,
    pad: Option<usize>,
}

impl<'a> Vocab<'a> {
    pub fn read(meta: &Meta<'a>) -> Result<Self> {
        let tokens = meta.texts("tokenizer.ggml.tokens")?.ok_or_else(|| bad("lacks key tokenizer.ggml.tokens"))?;
        check_tokens(&tokens)?;
        let model = match meta.text("tokenizer.ggml.model")? {
            Some("gpt2") => byte_level(meta)?,
            Some("llama") => sentence_piece(meta, tokens.len())?,
            other => {
                let name = other.unwrap_or("missing");
                return Err(Error::unsupported(format!(
                    "tokenizer.ggml.model is {name}, supported are gpt2 and llama"
                )));
            }
        };
        let pieces = matches!(model, Model::SentencePiece { .. });
        // llama.cpp's defaults where a file does not say.
        let bos_by_default = pieces || matches!(model, Model::ByteLevel { pre: Pre::Llama3, .. });
        Ok(Self {
            kinds: kinds(meta, tokens.len(), pieces)?,
            special: Special::read(meta, tokens.len())?,
            add_bos: meta.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(bos_by_default),
            add_eos: meta.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
            add_space_prefix: meta.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(pieces),
            chat_template: meta.text("tokenizer.chat_template")?,
            tokens,
            model,
        })
    }

    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    pub fn kind(&self) -> String {
        match &self.model {
            Model::SentencePiece { .. } => "llama".to_owned(),
            Model::ByteLevel { pre: Pre::Gpt2, .. } => "gpt2 (gpt-2)".to_owned(),
            Model::ByteLevel { pre: Pre::SmolLm, .. } => "gpt2 (smollm)".to_owned(),
            Model::ByteLevel { pre: Pre::Llama3, .. } => "gpt2 (llama-bpe)".to_owned(),
        }
    }

    /// config.json's token ids.
    pub fn special_ids(&self) -> Map<String, Value> {
        let Special { bos, eos, eot, pad, .. } = self.special;
        let mut ends: Vec<usize> = eos.into_iter().chain(eot).collect();
        ends.dedup();
        let fields = [("bos_token_id", json!(bos)), ("eos_token_id", json!(ends)), ("pad_token_id", json!(pad))];
        fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
    }

    pub fn tokenizer_config(&self, max_length: usize) -> Value {
        let token = |id: Option<usize>| id.map(|id| self.tokens[id]);
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": token(self.special.bos),
            "eos_token": token(self.special.eos),
            "unk_token": token(self.special.unk),
            "pad_token": token(self.special.pad),
            "clean_up_tokenization_spaces": false,
            "model_max_length": max_length,
        });
        if let Some(template) = self.chat_template {
            config["chat_template"] = template.into();
        }
        config
    }

    pub fn tokenizer_json(&self) -> Result<Value> {
        let [normalizer, pre_tokenizer, decoder, model] = match &self.model {
            Model::ByteLevel { pre, merges } => self.byte_level_parts(*pre, merges),
            Model::SentencePiece { scores } => self.sentence_piece_parts(scores),
        };
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added_tokens(),
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": self.post_processor()?,
            "decoder": decoder,
            "model": model,
        }))
    }

    fn byte_level_parts(&self, pre: Pre, merges: &[(&str, &str)]) -> [Value; 4] {
        let byte_level = |use_regex: bool| {
            let space = self.add_space_prefix;
            json!({"type": "ByteLevel", "add_prefix_space": space, "trim_offsets": true, "use_regex": use_regex})
        };
        let sequence = |first: Value, then: Value| json!({"type": "Sequence", "pretokenizers": [first, then]});
        let pre_tokenizer = match pre {
            Pre::Gpt2 => byte_level(true),
            Pre::SmolLm => sequence(json!({"type": "Digits", "individual_digits": true}), byte_level(true)),
            Pre::Llama3 => {
                let split = json!({"type": "Split", "pattern": {"Regex": LLAMA3_SPLIT}, "behavior": "Isolated", "invert": false});
                sequence(split, byte_level(false))
            }
        };
        let model = self.bpe(None, pre == Pre::Llama3, false, merges);
        [Value::Null, pre_tokenizer, byte_level(true), model]
    }

    fn sentence_piece_parts(&self, scores: &[f64]) -> [Value; 4] {
        let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        let mut normalizers = vec![replace(" ", SPACE)];
        let mut decoders = vec![replace(SPACE, " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
        if self.add_space_prefix {
            normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let unknown = self.kinds.iter().position(|k| *k == TokenKind::Unknown).or(self.special.unk);
        let bytes = self.kinds.contains(&TokenKind::Byte);
        let model = self.bpe(unknown.map(|id| self.tokens[id]), false, bytes, &self.merges_by_score(scores));
        let sequence = |key: &str, parts: Vec<Value>| json!({"type": "Sequence", key: parts});
        [sequence("normalizers", normalizers), Value::Null, sequence("decoders", decoders), model]
    }

    fn bpe(&self, unk: Option<&str>, ignore_merges: bool, byte_fallback: bool, merges: &[(&str, &str)]) -> Value {
        let vocab: Map<String, Value> =
            self.tokens.iter().enumerate().map(|(i, t)| ((*t).to_owned(), i.into())).collect();
        json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": unk,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": unk.is_some(),
            "byte_fallback": byte_fallback,
            "ignore_merges": ignore_merges,
            "vocab": vocab,
            "merges": merges,
        })
    }

    /// Every way to cut a normal token into two normal tokens, best score first; among equals longer halves first, and
    /// then the order of tokens: as `generate_merges` sorts.
    fn merges_by_score(&self, scores: &[f64]) -> Vec<(&'a str, &'a str)> {
        let normal = self.tokens.iter().zip(&self.kinds).enumerate().filter(|(_, (_, k))| **k == TokenKind::Normal);
        let ids: HashMap<&str, usize> = normal.map(|(id, (token, _))| (*token, id)).collect();
        let mut merges = Vec::new();
        for (id, token) in self.tokens.iter().enumerate().filter(|(id, _)| self.kinds[*id] == TokenKind::Normal) {
            let first = merges.len();
            for (cut, _) in token.char_indices().skip(1) {
                let (l, r) = token.split_at(cut);
                if let (Some(&left), Some(&right)) = (ids.get(l), ids.get(r)) {
                    merges.push((scores[id], left, right));
                }
            }
            merges[first..].sort_by_key(|&(_, left, right)| (left, right));
        }
        let lengths = |l: usize, r: usize| (self.tokens[l].chars().count(), self.tokens[r].chars().count());
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| lengths(b.1, b.2).cmp(&lengths(a.1, a.2))));
        merges.into_iter().map(|(_, l, r)| (self.tokens[l], self.tokens[r])).collect()
    }

    fn added_tokens(&self) -> Vec<Value> {
        let roles = [self.special.bos, self.special.eos, self.special.eot];
        let added = |id: usize, kind: TokenKind| match kind {
            TokenKind::Control | TokenKind::Unknown => Some(true),
            TokenKind::UserDefined => Some(false),
            _ if roles.contains(&Some(id)) => Some(true),
            TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => None,
        };
        let token = |(id, kind): (usize, &TokenKind)| {
            let special = added(id, *kind)?;
            Some(json!({"id": id, "content": self.tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special}))
        };
        self.kinds.iter().enumerate().filter_map(token).collect()
    }

    fn post_processor(&self) -> Result<Value> {
        let around = |on: bool, id: Option<usize>, key: &str| match (on, id) {
            (false, _) => Ok(None),
            (true, Some(id)) => Ok(Some((self.tokens[id], id))),
            (true, None) => Err(bad(format!("asks for a token around every text, but has no tokenizer.ggml.{key}"))),
        };
        let bos = around(self.add_bos, self.special.bos, "bos_token_id")?;
        let eos = around(self.add_eos, self.special.eos, "eos_token_id")?;
        if bos.is_none() && eos.is_none() {
            return Ok(Value::Null);
        }
        let text = |id: &str, n: usize| {
            let special = |t: Option<(&str, usize)>| t.map(|(t, _)| json!({"SpecialToken": {"id": t, "type_id": n}}));
            let sequence = json!({"Sequence": {"id": id, "type_id": n}});
            special(bos).into_iter().chain([sequence]).chain(special(eos)).collect::<Vec<_>>()
        };
        let define = |(t, id): (&str, usize)| (t.to_owned(), json!({"id": t, "ids": [id], "tokens": [t]}));
        let pair = [text("A", 0), text("B", 1)].concat();
        Ok(json!({
            "type": "TemplateProcessing",
            "single": text("A", 0),
            "pair": pair,
            "special_tokens": bos.into_iter().chain(eos).map(define).collect::<Map<_, _>>(),
        }))
    }
}

fn check_tokens(tokens: &[&str]) -> Result<()> {
    let mut seen = HashMap::new();
    for (id, token) in tokens.iter().enumerate() {
        if token.len() > LONGEST_TOKEN {
            return Err(bad(format!("token {id} has {} bytes, at most {LONGEST_TOKEN} are read", token.len())));
        }
        if let Some(first) = seen.insert(*token, id) {
            return Err(bad(format!("tokens {first} and {id} are the same text")));
        }
    }
    Ok(())
}

fn byte_level<'a>(meta: &Meta<'a>) -> Result<Model<'a>> {
    let pre = match meta.text("tokenizer.ggml.pre")? {
        Some("gpt-2") => Pre::Gpt2,
        Some("smollm") => Pre::SmolLm,
        Some("llama-bpe" | "llama3" | "llama-v3") => Pre::Llama3,
        other => {
            let name = other.unwrap_or("missing");
            let text = format!("tokenizer.ggml.pre is {name}, supported are gpt-2, smollm and llama-bpe");
            return Err(Error::unsupported(text));
        }
    };
    let merges = meta.texts("tokenizer.ggml.merges")?.ok_or_else(|| bad("lacks key tokenizer.ggml.merges"))?;
    // A merge is two tokens with one space between; byte-level tokens hold no space.
    let halves = |(i, m): (usize, &&'a str)| m.split_once(' ').ok_or_else(|| bad(format!("merge {i} has no space")));
    Ok(Model::ByteLevel { pre, merges: merges.iter().enumerate().map(halves).collect::<Result<_>>()? })
}

fn sentence_piece<'a>(meta: &Meta<'a>, tokens: usize) -> Result<Model<'a>> {
    for key in ["tokenizer.ggml.remove_extra_whitespaces", "tokenizer.ggml.precompiled_charsmap"] {
        if meta.get(key).is_some() && meta.flag(key).ok().flatten() != Some(false) {
            return Err(Error::unsupported(format!(
                "{key} is set, supported are vocabularies that leave the text as it is"
            )));
        }
    }
    let scores = meta.floats("tokenizer.ggml.scores")?.ok_or_else(|| bad("lacks key tokenizer.ggml.scores"))?;
    if scores.len() != tokens {
        return Err(bad(format!("has {} scores for {tokens} tokens", scores.len())));
    }
    if let Some(id) = scores.iter().position(|x| !x.is_finite()) {
        return Err(bad(format!("the score of token {id} is {}", scores[id])));
    }
    // -0 and 0 are one score; the order of merges must not tell them apart.
    Ok(Model::SentencePiece { scores: scores.into_iter().map(|x| x + 0.0).collect() })
}

fn kinds(meta: &Meta<'_>, tokens: usize, needed: bool) -> Result<Vec<TokenKind>> {
    let Some(numbers) = meta.integers("tokenizer.ggml.token_type")? else {
        let lacks = bad("lacks key tokenizer.ggml.token_type");
        return if needed { Err(lacks) } else { Ok(vec![TokenKind::Normal; tokens]) };
    };
    if numbers.len() != tokens {
        return Err(bad(format!("has {} token types for {tokens} tokens", numbers.len())));
    }
    let kind = |(id, n): (usize, &i64)| match n {
        1 => Ok(TokenKind::Normal),
        2 => Ok(TokenKind::Unknown),
        3 => Ok(TokenKind::Control),
        4 => Ok(TokenKind::UserDefined),
        5 => Ok(TokenKind::Unused),
        6 => Ok(TokenKind::Byte),
        n => Err(bad(format!("token {id} has type {n}, GGUF defines 1 to 6"))),
    };
    numbers.iter().enumerate().map(kind).collect()
}

impl Special {
    fn read(meta: &Meta<'_>, tokens: usize) -> Result<Self> {
        let id = |name: &str| {
            let key = format!("tokenizer.ggml.{name}_token_id");
            match meta.size(&key)? {
                Some(id) if id >= tokens => Err(bad(format!("{key} is {id}, but there are {tokens} tokens"))),
                id => Ok(id),
            }
        };
        Ok(Self { bos: id("bos")?, eos: id("eos")?, eot: id("eot")?, unk: id("unknown")?, pad: id("padding")? })
    }
}
