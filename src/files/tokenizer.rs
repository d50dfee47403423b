//! tokenizer.json and tokenizer_config.json: text to ids and back, and the model's chat template.
//!
//! The crate `tokenizers` does the work; its batch calls are never used, because they start a global thread pool. What a
//! file asks for and transformers does not do on its own (padding, truncation) is switched off. This file knows no model
//! beyond the size of its vocabulary, and no dialogue: error messages never hold the text.

use super::chat::{self, SpecialTokens};
use super::{Config, SETTINGS_LIMIT, if_there, read_bounded, read_json};
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use tokenizers::models::bpe::BPE;
use tokenizers::{DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl};

/// The vocabulary's file in a model folder.
pub const FILE: &str = "tokenizer.json";
/// Names of special tokens, and the chat template, in a model folder.
pub const CONFIG_FILE: &str = "tokenizer_config.json";
/// The chat template where it is a file of its own; it wins over the one in `tokenizer_config.json`.
pub const TEMPLATE_FILE: &str = "chat_template.jinja";
/// The largest tokenizer.json read: the largest real ones have 40 MB.
const LIMIT: u64 = 512 << 20;

/// A model's tokenizer. It never changes after it is opened and is shared freely between threads.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    vocab_size: usize,
    special: SpecialTokens,
    chat_template: Option<String>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokenizer({}, {} tokens)", self.path.display(), self.vocab_size)
    }
}

impl Tokenizer {
    /// The tokenizer of a model folder: tokenizer.json, and where they are there tokenizer_config.json and
    /// chat_template.jinja.
    ///
    /// # Errors
    /// NotFound; BadFile where a file does not parse; Unsupported where encoding would be random (BPE dropout).
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let json = if_there(read_bounded(&path, LIMIT))?.ok_or_else(|| no_tokenizer(dir))?;
        let mut tokenizer = Self::parse(&json, &path)?;
        let path = dir.join(CONFIG_FILE);
        let config: Map<String, Value> = if_there(read_json(&path))?.unwrap_or_default();
        tokenizer.special = special_tokens(&config);
        tokenizer.chat_template = match if_there(read_bounded(&dir.join(TEMPLATE_FILE), SETTINGS_LIMIT))? {
            Some(bytes) => Some(utf8(bytes, &dir.join(TEMPLATE_FILE))?),
            None => template(config.get("chat_template"), &path)?,
        };
        Ok(tokenizer)
    }

    /// A tokenizer from the content of a tokenizer.json, without special tokens' names or a chat template.
    ///
    /// # Errors
    /// As [`Tokenizer::open`].
    pub fn from_bytes(json: &[u8]) -> Result<Self> {
        Self::parse(json, Path::new(FILE))
    }

    fn parse(json: &[u8], path: &Path) -> Result<Self> {
        check_syntax(json).map_err(|e| Error::bad_file(path, e))?;
        let parsed = guarded(|| byte_pairs(json).map_or_else(|| tokenizers::Tokenizer::from_bytes(json), Ok));
        let mut inner = parsed.map_err(|e| Error::bad_file(path, format_args!("is not a tokenizer: {e}")))?;
        if let tokenizers::ModelWrapper::BPE(bpe) = inner.get_model()
            && bpe.dropout.is_some_and(|p| p != 0.0)
        {
            let text = format!("{}: BPE dropout makes encoding random; set it to null", path.display());
            return Err(Error::unsupported(text));
        }
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::bad_file(path, e))?;
        let vocab_size = vocab_size(&inner);
        let special = SpecialTokens::default();
        Ok(Self { inner, path: path.to_owned(), vocab_size, special, chat_template: None })
    }

    /// The ids of `text`; with `add_special`, also what the tokenizer puts around a text (such as a first token). Names
    /// of special tokens inside the text become those tokens, as in transformers.
    ///
    /// # Errors
    /// BadFile where the vocabulary lacks what the text needs.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = guarded(|| self.inner.encode_fast(text, add_special));
        let encoding = encoding.map_err(|_| self.bad(format!("cannot encode a text of {} bytes", text.len())))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of `text` as [`Tokenizer::encode`] gives them, each with the bytes of the text that it stands for; empty for
    /// what the tokenizer puts around.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_places(&self, text: &str, add_special: bool) -> Result<Vec<(u32, Range<usize>)>> {
        let encoding = guarded(|| self.inner.encode(text, add_special));
        let encoding = encoding.map_err(|_| self.bad(format!("cannot encode a text of {} bytes", text.len())))?;
        let places = encoding.get_offsets().iter().map(|&(start, end)| start..end);
        Ok(encoding.get_ids().iter().copied().zip(places).collect())
    }

    /// The text of `ids`, without special tokens where `skip_special`. Incomplete code points become U+FFFD, and ids
    /// past the vocabulary (a padded model has rows for them) give nothing, as in transformers.
    ///
    /// # Errors
    /// BadFile where the file's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let text = guarded(|| self.inner.decode(ids, skip_special));
        text.map_err(|_| self.bad(format!("cannot decode {} tokens", ids.len())))
    }

    /// Decodes ids as they come.
    pub fn decoder(&self, skip_special: bool) -> Decoder<'_> {
        Decoder { tokenizer: self, skip_special, ids: Vec::new(), given: 0 }
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of exactly this token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of this id, as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of the token that tokenizer_config.json calls the first of a text.
    pub fn bos(&self) -> Option<u32> {
        self.id(self.special.bos.as_deref()?)
    }

    /// The id of the token that tokenizer_config.json calls the last of a text.
    pub fn eos(&self) -> Option<u32> {
        self.id(self.special.eos.as_deref()?)
    }

    /// The model's chat template.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The prompt text of `messages` (role, content) in the model's own format; encode it without special tokens. With
    /// `add_generation_prompt` it ends where an answer begins.
    ///
    /// # Errors
    /// NotFound where the model has no template; BadFile where the template fails or refuses the messages.
    pub fn chat(&self, messages: &[(&str, &str)], add_generation_prompt: bool) -> Result<String> {
        let template = self.chat_template().ok_or_else(|| {
            let dir = self.path.parent().unwrap_or(Path::new("")).display();
            Error::not_found(format!("{dir} has no chat template ({TEMPLATE_FILE}, or chat_template in {CONFIG_FILE})"))
        })?;
        chat::render(template, messages, add_generation_prompt, &self.special).map_err(|e| e.at(self.path.display()))
    }

    /// Checks that the model has a row for every token.
    ///
    /// # Errors
    /// BadFile with both sizes.
    pub fn check(&self, config: &Config) -> Result<()> {
        let (have, rows) = (self.vocab_size, config.vocab_size);
        if have > rows {
            let text =
                format!("has ids up to {}, but config.json's vocab_size is {rows}: are both of one model?", have - 1);
            return Err(self.bad(text));
        }
        Ok(())
    }

    fn bad(&self, text: String) -> Error {
        Error::bad_file(&self.path, text)
    }
}

/// Decodes a stream of ids into whole code points: text is held back while its last character may still be incomplete.
#[derive(Debug)]
pub struct Decoder<'t> {
    tokenizer: &'t Tokenizer,
    skip_special: bool,
    /// The last tokens given out, for context (a leading space depends on it), then those held back.
    ids: Vec<u32>,
    /// How many of `ids` have been given out.
    given: usize,
}

/// A code point has at most 4 bytes and a token at least 1: what 4 tokens did not complete never will be.
const LONGEST_CODE_POINT: usize = 4;

impl Decoder<'_> {
    /// The text that `id` completes, often empty.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.pending(self.ids.len())?;
        if !text.ends_with(char::REPLACEMENT_CHARACTER) {
            self.give(self.ids.len(), &text);
            return Ok(text);
        }
        if self.ids.len() - self.given < LONGEST_CODE_POINT {
            return Ok(String::new());
        }
        // Invalid for good, except that the last 3 tokens may begin something valid.
        let until = self.ids.len() + 1 - LONGEST_CODE_POINT;
        let text = self.pending(until)?;
        self.give(until, &text);
        Ok(text)
    }

    /// What was held back, incomplete code points as U+FFFD.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(self) -> Result<String> {
        self.pending(self.ids.len())
    }

    /// What the tokens before `until` add to those already given.
    fn pending(&self, until: usize) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[..self.given], self.skip_special)?;
        let all = self.tokenizer.decode(&self.ids[..until], self.skip_special)?;
        Ok(all.get(before.len()..).unwrap_or_default().to_owned())
    }

    /// Tokens without text (skipped ones) are no context, so what came before them stays.
    fn give(&mut self, until: usize, text: &str) {
        let old = if text.is_empty() { 0 } else { self.given };
        self.ids.drain(..old);
        self.given = until - old;
    }
}

fn no_tokenizer(dir: &Path) -> Error {
    let hint = match dir.join("tokenizer.model").exists() {
        true => "it has a tokenizer.model only: open it with transformers' AutoTokenizer and save it again",
        false => "name a folder with a whole model",
    };
    Error::not_found(format!("{} has no {FILE}: {hint}", dir.display()))
}

/// The crate panics on some contradictory files; here that is one more way for a file to be wrong.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    // Unwind safe: a panic leaves at most the crate's cache of words behind, and that is only ever added to.
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
    caught.unwrap_or_else(|_| Err("its parts contradict each other".into()))
}

/// A tokenizer of byte pairs, as every LLaMA's is, read as what it is: where the crate finds out for itself what the
/// model is, it makes a tree of values of the whole file first, which takes twice the time.
fn byte_pairs(json: &[u8]) -> Option<tokenizers::Tokenizer> {
    type Bpe = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;
    serde_json::from_slice::<Bpe>(json).ok().map(Into::into)
}

/// One more than the largest id. As many ids from 0 on as there are tokens leave no room for a larger one.
fn vocab_size(inner: &tokenizers::Tokenizer) -> usize {
    let tokens = inner.get_vocab_size(true);
    if (0..tokens as u32).all(|id| inner.id_to_token(id).is_some()) {
        return tokens;
    }
    inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
}

/// What the crate takes for granted: the JSON is valid, and the post-processor defines the tokens that it puts in.
fn check_syntax(json: &[u8]) -> std::result::Result<(), String> {
    #[derive(serde::Deserialize)]
    struct Outline {
        post_processor: Option<Value>,
    }
    let outline: Outline = serde_json::from_slice(json).map_err(|e| format!("is not the JSON expected: {e}"))?;
    undefined_token(&outline.post_processor.unwrap_or_default())
        .map_or(Ok(()), |name| Err(format!("post_processor uses {name}, which its special_tokens lack")))
}

fn undefined_token(processor: &Value) -> Option<&Value> {
    if let Some(all) = processor.get("processors").and_then(Value::as_array) {
        return all.iter().find_map(undefined_token);
    }
    let pieces = ["single", "pair"].into_iter().filter_map(|k| processor.get(k)?.as_array()).flatten();
    let mut names = pieces.filter_map(|p| p.get("SpecialToken")?.get("id"));
    let defined = |name: &Value| processor.get("special_tokens").and_then(|all| all.get(name.as_str()?)).is_some();
    names.find(|name| !defined(name))
}

fn special_tokens(config: &Map<String, Value>) -> SpecialTokens {
    let token = |name: &str| {
        let value = config.get(name)?;
        value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
    };
    SpecialTokens { bos: token("bos_token"), eos: token("eos_token"), unk: token("unk_token"), pad: token("pad_token") }
}

/// A template, or a list of named ones of which `default` is taken.
fn template(value: Option<&Value>, path: &Path) -> Result<Option<String>> {
    let named_default = |all: &Vec<Value>| {
        let found = all.iter().find(|t| t.get("name").and_then(Value::as_str) == Some("default"));
        found.and_then(|t| t.get("template")?.as_str()).map(str::to_owned)
    };
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(all)) => Ok(named_default(all)),
        Some(_) => Err(Error::bad_file(path, "chat_template is neither a text nor a list of named texts")),
    }
}

fn utf8(bytes: Vec<u8>, path: &Path) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| Error::bad_file(path, e.utf8_error()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Code;
    use proptest::prelude::*;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    /// All 256 bytes as tokens, `<s>` (256) before every text, `</s>` (257).
    fn byte_level() -> Value {
        let mut bytes: Vec<char> = ByteLevel::alphabet().into_iter().collect();
        bytes.sort();
        let mut vocab: Map<String, Value> = bytes.iter().enumerate().map(|(i, c)| (c.to_string(), i.into())).collect();
        let special = ["<s>", "</s>"].map(|name| {
            let id = vocab.len();
            vocab.insert(name.to_owned(), id.into());
            serde_json::json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
        });
        serde_json::json!({
            "version": "1.0", "added_tokens": special, "normalizer": null,
            "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"},
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}}},
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": []},
        })
    }

    fn tokenizer() -> Tokenizer {
        Tokenizer::from_bytes(byte_level().to_string().as_bytes()).unwrap()
    }

    #[test]
    fn byte_pairs_read_as_such_are_the_tokenizer_that_the_crate_finds_and_others_are_left_to_it() {
        let json = byte_level().to_string();
        let found = tokenizers::Tokenizer::from_bytes(&json).unwrap();
        let read = byte_pairs(json.as_bytes()).unwrap();
        assert_eq!(read.to_string(true).unwrap(), found.to_string(true).unwrap());
        let mut words = byte_level();
        words["model"] = serde_json::json!({"type": "WordLevel", "vocab": {"a": 0, "b": 5}, "unk_token": "a"});
        words["added_tokens"] = serde_json::json!([]);
        words["post_processor"] = Value::Null;
        assert!(byte_pairs(words.to_string().as_bytes()).is_none());
        let tokenizer = Tokenizer::from_bytes(words.to_string().as_bytes()).unwrap();
        assert_eq!(tokenizer.vocab_size(), 6, "ids may leave out numbers");
    }

    #[test]
    fn text_comes_back_whole_whatever_the_file_says_of_truncation_and_padding() {
        let t = tokenizer();
        let ids = t.encode("Héllo, 你好 😀</s>", true).unwrap();
        assert_eq!((ids[0], ids[ids.len() - 1], ids.len()), (256, 257, 21));
        assert_eq!(t.decode(&ids, true).unwrap(), "Héllo, 你好 😀");
        assert_eq!(t.decode(&ids, false).unwrap(), "<s>Héllo, 你好 😀</s>");
        assert_eq!(t.encode("a", false).unwrap().len(), 1);
    }

    #[test]
    fn a_vocabulary_larger_than_the_models_is_refused_with_both_sizes() {
        let config = |vocab: usize| {
            let json = serde_json::json!({"model_type": "llama", "vocab_size": vocab}).as_object().unwrap().clone();
            Config::from_json(json, Path::new("config.json")).unwrap()
        };
        tokenizer().check(&config(258)).unwrap();
        let error = tokenizer().check(&config(257)).unwrap_err();
        assert!(error.code() == Code::BadFile && error.text().contains("257"), "{error}");
    }

    #[test]
    fn a_folders_names_and_template_are_read_and_the_template_file_wins() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write(FILE, &byte_level().to_string());
        assert_eq!(Tokenizer::open(dir.path()).unwrap().chat(&[], true).unwrap_err().code(), Code::NotFound);
        write(
            CONFIG_FILE,
            r#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": [{"name": "tools", "template": "no"}, {"name": "default", "template": "one"}]}"#,
        );
        let t = Tokenizer::open(dir.path()).unwrap();
        assert_eq!((t.bos(), t.eos(), t.chat(&[], true).unwrap().as_str()), (Some(256), Some(257), "one"));
        write(TEMPLATE_FILE, "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}");
        let t = Tokenizer::open(dir.path()).unwrap();
        assert_eq!(t.chat(&[("user", "hi")], false).unwrap(), "<s>hi</s>");
    }

    #[test]
    fn dropout_is_refused_by_name() {
        let mut json = byte_level();
        json["model"]["dropout"] = 0.1.into();
        let error = Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap_err();
        assert!(error.code() == Code::Unsupported && error.text().contains("dropout"), "{error}");
    }

    fn streamed(t: &Tokenizer, ids: &[u32]) -> Vec<String> {
        let mut decoder = t.decoder(true);
        let mut pieces: Vec<String> = ids.iter().map(|&id| decoder.push(id).unwrap()).collect();
        pieces.push(decoder.finish().unwrap());
        pieces
    }

    #[test]
    fn a_stream_holds_incomplete_code_points_back() {
        let t = tokenizer();
        let ids = t.encode("a😀b", false).unwrap();
        assert_eq!(streamed(&t, &ids), ["a", "", "", "", "😀", "b", ""]);
        assert_eq!(streamed(&t, &ids[..3]), ["a", "", "", "\u{FFFD}"]);
    }

    #[test]
    fn a_stream_of_invalid_bytes_loses_no_valid_one() {
        let t = tokenizer();
        let byte = |b: u8| t.encode("é", false).unwrap()[if b == 0xC3 { 0 } else { 1 }];
        let mut ids = vec![byte(0xA9); 9];
        ids.extend(t.encode("é!", false).unwrap());
        let text = streamed(&t, &ids).concat();
        assert!(text.ends_with("é!") && text.starts_with("\u{FFFD}\u{FFFD}"), "{text}");
    }

    proptest! {
        #[test]
        fn a_streams_pieces_are_the_whole_text(text in any::<String>()) {
            let t = tokenizer();
            let ids = t.encode(&text, true).unwrap();
            let whole = t.decode(&ids, true).unwrap();
            prop_assert_eq!(streamed(&t, &ids).concat(), whole);
        }

        #[test]
        fn a_damaged_file_never_panics(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let mut json = byte_level().to_string().into_bytes();
            let at = at.index(json.len());
            json[at] = byte;
            for damaged in [&json[..], &json[..cut.index(json.len())]] {
                if let Ok(t) = Tokenizer::from_bytes(damaged) {
                    let _ = t.encode("some text", true);
                }
            }
        }
    }
}
