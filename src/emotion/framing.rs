//! Text to ids: the first token, the end token, and what is cut. Every sequence is tokenised whole.
//!
//! Knows the tokenizer and the options of a template; no labels, no turns.

use super::labels::Terminator;
use super::template::{Bos, Eos, Template, Truncation};
use crate::files::{Config, Tokenizer};
use crate::model::Model;
use crate::{Code, Error, Result};
use std::ops::Range;

/// The options that decide which ids a text becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Framing {
    /// What is cut from a sequence that is too long.
    pub truncation: Truncation,
    /// Whether a first token is added.
    pub bos: Bos,
    /// Whether an end token is added in training.
    pub eos: Eos,
    /// The longest sequence; the model's context where it is not given.
    pub max_tokens: Option<usize>,
}

impl From<&Template> for Framing {
    fn from(template: &Template) -> Self {
        let Template { truncation, bos, eos, max_tokens, .. } = *template;
        Self { truncation, bos, eos, max_tokens }
    }
}

/// What a model begins and ends texts with, and how long they may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The first token.
    pub bos: Option<u32>,
    /// The end token.
    pub eos: Option<u32>,
    /// Positions of the model's context.
    pub context: usize,
}

impl Ends {
    /// As the tokenizer names them, else as config.json does.
    pub fn of(tokenizer: &Tokenizer, config: &Config) -> Self {
        let first = |ids: &[u32]| ids.first().copied();
        Self {
            bos: tokenizer.bos().or(first(&config.bos)),
            eos: tokenizer.eos().or(first(&config.eos)),
            context: config.max_position_embeddings,
        }
    }
}

/// How many ids two sequences have in common at their beginning.
pub fn shared(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The ids of a text that is to be continued.
///
/// # Errors
/// INVALID_ARGUMENT for a text without a token; those of the tokenizer.
pub fn prompt_ids(model: &Model, text: &str) -> Result<Vec<u32>> {
    let framer = Framer::new(Framing::default(), model.tokenizer(), Ends::of(model.tokenizer(), model.config()))?;
    some(framer.ids(model.tokenizer(), text)?)
}

/// As [`prompt_ids`], of messages of a role and a text each, in the model's own chat format.
///
/// # Errors
/// As [`prompt_ids`]; UNSUPPORTED for a model without such a format.
pub fn chat_ids(model: &Model, messages: &[(&str, &str)]) -> Result<Vec<u32>> {
    let tokenizer = model.tokenizer();
    // the template writes the first token itself
    some(tokenizer.encode(&tokenizer.chat(messages, true)?, false)?)
}

fn some(ids: Vec<u32>) -> Result<Vec<u32>> {
    if ids.is_empty() {
        let text = "the prompt has no token, and nothing predicts the first one; give a longer prompt";
        return Err(Error::invalid(text));
    }
    Ok(ids)
}

/// The ids of a prompt with each continuation, tokenised as one text, and where those of the continuation begin: after the
/// longest beginning that is the prompt's own too.
///
/// # Errors
/// INVALID_ARGUMENT where a continuation would begin with the first token of all; those of the tokenizer.
pub fn continuations<'a>(
    model: &Model,
    prompt: &str,
    texts: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<(Vec<u32>, usize)>> {
    let tokenizer = model.tokenizer();
    let framer = Framer::new(Framing::default(), tokenizer, Ends::of(tokenizer, model.config()))?;
    let before = framer.ids(tokenizer, prompt)?;
    let whole = |text| {
        let ids = framer.ids(tokenizer, &format!("{prompt}{text}"))?;
        let from = shared(&before, &ids);
        if from == 0 && !ids.is_empty() {
            let text = "the first token of a text cannot be scored, and this tokenizer puts none before it";
            return Err(Error::invalid(format!("{text}: give a longer prompt")));
        }
        Ok((ids, from))
    };
    texts.into_iter().map(whole).collect()
}

/// A sequence to learn and the positions of its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learned {
    /// All of it.
    pub ids: Vec<u32>,
    /// From the first id that the prompt alone does not have; never position 0. Empty where cutting left nothing.
    pub answer: Range<usize>,
}

/// Framing made ready for a model.
#[derive(Clone, Debug)]
pub struct Framer {
    framing: Framing,
    ends: Ends,
    /// Tokens that the tokenizer itself puts after a text; taken off again, since the end token is this file's to add.
    tail: usize,
}

impl Framer {
    /// Checks that the model has the tokens that are asked for.
    ///
    /// # Errors
    /// NOT_FOUND for a model without the first or end token; INVALID_ARGUMENT for `max_tokens` below 2; UNSUPPORTED for
    /// a tokenizer that does more than put tokens around a text.
    pub fn new(framing: Framing, tokenizer: &Tokenizer, ends: Ends) -> Result<Self> {
        if framing.bos == Bos::Always && ends.bos.is_none() {
            return Err(Error::not_found(
                "bos = always, but neither the tokenizer nor config.json names a first token",
            ));
        }
        if framing.eos != Eos::Never && ends.eos.is_none() {
            return Err(Error::not_found(
                "the template ends answers with the end token, but the model names none; set eos = never",
            ));
        }
        if let Some(tokens @ 0..2) = framing.max_tokens {
            return Err(Error::invalid(format!("max_tokens is {tokens}, must be 2 or more")));
        }
        Ok(Self { framing, ends, tail: tail(tokenizer)? })
    }

    /// The model's end token.
    pub fn eos(&self) -> Option<u32> {
        self.ends.eos
    }

    /// Whether old turns are dropped so that a training sequence fits; otherwise its end is cut.
    pub fn drops_context(&self) -> bool {
        self.framing.truncation == Truncation::OldestContext
    }

    /// The longest training sequence.
    pub fn longest(&self) -> usize {
        self.framing.max_tokens.map_or(self.ends.context, |tokens| tokens.min(self.ends.context))
    }

    /// The longest prompt with answer that is only asked, without the room that training needs for an end token: a turn
    /// is asked with the same context that it is learned with.
    pub fn longest_asked(&self, terminator: Option<Terminator>) -> usize {
        match self.framing.truncation {
            Truncation::Right => self.ends.context,
            Truncation::OldestContext => {
                let room = self.framing.eos == Eos::Always && terminator != Some(Terminator::Eos);
                self.longest() - usize::from(room)
            }
        }
    }

    /// The ids of a whole text, its first token included.
    pub fn ids(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
        Ok(self.begun(tokenizer.encode(text, self.framing.bos != Bos::Never)?, |&id| id, |id| id))
    }

    /// The same ids, each with the bytes of the text that it stands for.
    pub fn places(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<(u32, Range<usize>)>> {
        let places = tokenizer.encode_places(text, self.framing.bos != Bos::Never)?;
        Ok(self.begun(places, |(id, _)| *id, |id| (id, 0..0)))
    }

    /// What the tokenizer gave without what it puts behind a text, and with a first token where there always is one.
    fn begun<T>(&self, mut all: Vec<T>, id: impl Fn(&T) -> u32, first: impl Fn(u32) -> T) -> Vec<T> {
        if self.framing.bos == Bos::Never {
            return all;
        }
        all.truncate(all.len() - self.tail.min(all.len()));
        if let (Bos::Always, Some(bos)) = (self.framing.bos, self.ends.bos)
            && all.first().map(id) != Some(bos)
        {
            all.insert(0, first(bos));
        }
        all
    }

    /// The ids of a prompt with an answer and what ends it, uncut.
    pub fn candidate(&self, tokenizer: &Tokenizer, text: &str, terminator: Option<Terminator>) -> Result<Vec<u32>> {
        match terminator {
            None => self.ids(tokenizer, text),
            Some(Terminator::Newline) => self.ids(tokenizer, &format!("{text}\n")),
            Some(Terminator::Eos) => {
                let mut ids = self.ids(tokenizer, text)?;
                ids.extend(self.ends.eos.filter(|eos| ids.last() != Some(eos)));
                Ok(ids)
            }
        }
    }

    /// The sequence that teaches `answer` after `prompt`: both tokenised as one text, cut on the right if that is the
    /// option, ended if that is the option.
    pub fn learn(
        &self,
        tokenizer: &Tokenizer,
        prompt: &str,
        answer: &str,
        terminator: Option<Terminator>,
    ) -> Result<Learned> {
        let asked = self.ids(tokenizer, prompt)?;
        let mut ids = self.candidate(tokenizer, &format!("{prompt}{answer}"), terminator)?;
        // nothing predicts position 0
        let start = shared(&asked, &ids).max(1);
        self.end(&mut ids);
        let answer = start.min(ids.len())..ids.len();
        Ok(Learned { ids, answer })
    }

    /// Cuts on the right and appends the end token, as the options say. The paper's code: cut, then append if shorter
    /// than the limit and not there yet.
    fn end(&self, ids: &mut Vec<u32>) {
        let longest = self.longest();
        let room = usize::from(self.framing.eos == Eos::Always);
        if self.framing.truncation == Truncation::Right && ids.len() + room > longest {
            ids.truncate(longest - room);
        }
        let wanted = match self.framing.eos {
            Eos::Always => true,
            Eos::IfFits => ids.len() < longest,
            Eos::Never => false,
        };
        ids.extend(self.ends.eos.filter(|eos| wanted && ids.last() != Some(eos)));
    }

    /// A sequence longer than the model holds, as a sentence.
    pub fn too_long(&self, tokens: usize, longest: usize) -> Error {
        let context = self.ends.context;
        let text = format!(
            "needs {tokens} tokens without any context, {longest} are allowed (the model's context holds {context}); \
             shorten the turn or raise max_tokens"
        );
        Error::new(Code::ContextFull, text)
    }
}

/// How many tokens the tokenizer puts after a text by itself.
fn tail(tokenizer: &Tokenizer) -> Result<usize> {
    let (bare, whole) = (tokenizer.encode("a", false)?, tokenizer.encode("a", true)?);
    let added = whole.len().saturating_sub(bare.len());
    let head = (0..=added).find(|&head| whole[head..].starts_with(&bare));
    let refusal = || Error::unsupported("the tokenizer changes a text's own tokens when it adds its special ones");
    head.map(|head| added - head).ok_or_else(refusal)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A byte-level BPE whose tokens are the 256 bytes and a few merged words, with `<s>` (and `</s>`) around a text.
    pub(crate) fn tokenizer(merges: &[&str], template: bool) -> Tokenizer {
        let byte = |byte: u8| match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte).to_string(),
            // GPT-2's table: bytes without a printable character are numbered from U+0100 on
            _ => {
                let unprintable = |b: &u8| !matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
                let number = (0..byte).filter(unprintable).count() as u32;
                char::from_u32(0x100 + number).unwrap().to_string()
            }
        };
        let mut vocabulary: serde_json::Map<String, serde_json::Value> =
            (0..=255u8).map(|b| (byte(b), u32::from(b).into())).collect();
        for merge in merges {
            let next = vocabulary.len();
            vocabulary.insert(merge.replace(' ', ""), next.into());
        }
        let (first, last) = (vocabulary.len(), vocabulary.len() + 1);
        let added = |id: usize, content: &str| {
            serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        };
        let special = |id: usize, content: &str| serde_json::json!({"id": content, "ids": [id], "tokens": [content]});
        let post = serde_json::json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": special(first, "<s>"), "</s>": special(last, "</s>")}});
        let json = serde_json::json!({"version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [added(first, "<s>"), added(last, "</s>")], "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "post_processor": if template { post } else { serde_json::Value::Null },
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary,
                "merges": merges}});
        Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap()
    }

    const BOS: u32 = 256;
    const EOS: u32 = 257;

    pub(crate) fn ends(context: usize) -> Ends {
        Ends { bos: Some(BOS), eos: Some(EOS), context }
    }

    fn framer(framing: Framing) -> (Tokenizer, Framer) {
        let tokenizer = tokenizer(&[], true);
        let framer = Framer::new(framing, &tokenizer, ends(100)).unwrap();
        (tokenizer, framer)
    }

    fn bytes(text: &str) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }

    fn learn(framing: Framing, prompt: &str, answer: &str) -> Learned {
        let (tokenizer, framer) = framer(framing);
        framer.learn(&tokenizer, prompt, answer, None).unwrap()
    }

    #[test]
    fn the_first_token_comes_from_the_tokenizer_always_or_never() {
        let ids = |bos, template| {
            let tokenizer = tokenizer(&[], template);
            let framer = Framer::new(Framing { bos, ..Framing::default() }, &tokenizer, ends(9)).unwrap();
            framer.ids(&tokenizer, "hi").unwrap()
        };
        let (bare, with) = (bytes("hi"), [vec![BOS], bytes("hi")].concat());
        assert_eq!([ids(Bos::Tokenizer, true), ids(Bos::Tokenizer, false)], [with.clone(), bare.clone()]);
        assert_eq!([ids(Bos::Always, true), ids(Bos::Always, false)], [with.clone(), with]);
        assert_eq!([ids(Bos::Never, true), ids(Bos::Never, false)], [bare.clone(), bare]);
    }

    #[test]
    fn an_answer_begins_where_the_prompts_own_ids_end() {
        let learned = learn(Framing::default(), "ab", "cd");
        assert_eq!(learned, Learned { ids: [vec![BOS], bytes("abcd")].concat(), answer: 3..5 });
    }

    #[test]
    fn an_answer_that_merges_with_the_prompts_last_character_begins_before_it() {
        let tokenizer = tokenizer(&["b c"], false);
        let framer = Framer::new(Framing::default(), &tokenizer, ends(9)).unwrap();
        let learned = framer.learn(&tokenizer, "ab", "cd", None).unwrap();
        assert_eq!(learned, Learned { ids: vec![97, 256, 100], answer: 1..3 });
    }

    #[test]
    fn position_zero_is_never_part_of_an_answer() {
        let learned = learn(Framing { bos: Bos::Never, ..Framing::default() }, "", "cd");
        assert_eq!(learned, Learned { ids: bytes("cd"), answer: 1..2 });
    }

    #[test]
    fn right_cutting_takes_the_answer_first_and_the_end_token_only_if_there_is_room() {
        let right = |max_tokens, eos| {
            let framing = Framing { truncation: Truncation::Right, max_tokens: Some(max_tokens), eos, bos: Bos::Never };
            learn(framing, "abc", "de")
        };
        let end = |text: &str| [bytes(text), vec![EOS]].concat();
        assert_eq!(right(6, Eos::IfFits), Learned { ids: end("abcde"), answer: 3..6 });
        assert_eq!(right(5, Eos::IfFits), Learned { ids: bytes("abcde"), answer: 3..5 });
        assert_eq!(right(2, Eos::IfFits), Learned { ids: bytes("ab"), answer: 2..2 });
        assert_eq!(right(5, Eos::Always), Learned { ids: end("abcd"), answer: 3..5 });
        assert_eq!(right(9, Eos::Never), Learned { ids: bytes("abcde"), answer: 3..5 });
    }

    #[test]
    fn a_terminator_ends_every_candidate() {
        let (tokenizer, framer) = framer(Framing { bos: Bos::Never, ..Framing::default() });
        let candidate = |terminator| framer.candidate(&tokenizer, "a", terminator).unwrap();
        assert_eq!(candidate(Some(Terminator::Eos)), [97, EOS]);
        assert_eq!(candidate(Some(Terminator::Newline)), [97, 10]);
    }

    #[test]
    fn a_model_without_the_tokens_asked_for_is_refused() {
        let tokenizer = tokenizer(&[], false);
        let none = Ends { bos: None, eos: None, context: 9 };
        let code = |framing| Framer::new(framing, &tokenizer, none).unwrap_err().code();
        assert_eq!(code(Framing { bos: Bos::Always, ..Framing::default() }), Code::NotFound);
        assert_eq!(code(Framing { eos: Eos::IfFits, ..Framing::default() }), Code::NotFound);
        assert_eq!(code(Framing { max_tokens: Some(1), ..Framing::default() }), Code::InvalidArgument);
    }
}
