//! Proves over all of MELD, with a GPT-2-style and a LLaMA-style tokenizer and both built-in templates, that the ids from
//! a forest's root to a leaf are the tokenizer's own of the whole prompt; and prints what the forest saves.
//!
//! The prompts are written here a second time, with format! instead of a template engine.

mod common;

use dialoguellm::emotion::framing::Ends;
use dialoguellm::emotion::prompts::{Lessons, Taught};
use dialoguellm::emotion::{Labels, Prompter, Template};
use dialoguellm::files::dialogues::{Dialogue, Source, Split, Turn};
use dialoguellm::files::{Config, Tokenizer};
use dialoguellm::model::Builder;
use dialoguellm::train::Group;
use std::path::Path;

const SPLITS: [Split; 3] = [Split::Train, Split::Dev, Split::Test];

fn meld(split: Split) -> Option<Vec<Dialogue>> {
    let dir = common::shared_data("meld")?;
    Some(Source::Meld(dir).dialogues(split, None, &dialoguellm::Cancel::default()).unwrap())
}

/// The GPT-2-style tokenizer: SmolLM2's.
fn gpt2_style() -> Option<(Tokenizer, Ends)> {
    let dir = common::model_dir()?;
    let tokenizer = Tokenizer::open(&dir).unwrap();
    let ends = Ends::of(&tokenizer, &Config::read(&dir).unwrap());
    Some((tokenizer, ends))
}

/// A small LLaMA-2-style one: SentencePiece BPE with a space put before the text, byte fallback and a first token.
fn llama_style() -> (Tokenizer, Ends) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama_tokenizer");
    let tokenizer = Tokenizer::open(&dir).unwrap();
    let (bos, eos) = (tokenizer.bos(), tokenizer.eos());
    assert!(bos.is_some() && eos.is_some());
    (tokenizer, Ends { bos, eos, context: 4096 })
}

/// The ids that a prompt of `dialogue` about turn `t` must have, its answer and end included, cut at some length.
type Expected = fn(&Tokenizer, Ends, Option<usize>, &Dialogue, usize) -> Vec<u32>;

fn dialogue_form(tokenizer: &Tokenizer, _: Ends, _: Option<usize>, dialogue: &Dialogue, t: usize) -> Vec<u32> {
    let one_space = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = |turn: &Turn| format!("{}: {}\n", turn.speaker, one_space(&turn.text));
    let lines: String = dialogue.turns[..=t].iter().map(line).collect();
    let turn = &dialogue.turns[t];
    let text = format!(
        "Classify the emotion of the last utterance as neutral, joy, surprise, anger, sadness, disgust or fear.\n{lines}\
         Emotion of {}: {}",
        turn.speaker,
        turn.emotion.as_ref().unwrap()
    );
    tokenizer.encode(&text, true).unwrap()
}

fn paper_form(tokenizer: &Tokenizer, ends: Ends, longest: Option<usize>, dialogue: &Dialogue, t: usize) -> Vec<u32> {
    let longest = longest.unwrap();
    let pad = "            ";
    let context = match t {
        0 => String::new(),
        _ => format!("{pad}### Context:\n{pad}{}\n\n", dialogue.turns[t - 1].text),
    };
    let word = dialogue.turns[t].emotion.as_deref().map(|name| if name == "joy" { "happiness" } else { name }).unwrap();
    let text = format!(
        "Please perform Classification task. Given the sentence, assign the correct label. Return label only without any \
         other text.\n{pad}### Instruction:\n{pad}Given the Video Description and Context, detect the emotion of the input, \
         and assign an accuracy label from ['happiness', 'anger', 'fear', 'sadness', 'disgust', 'surprise', 'neutral'].\n\n\
         {context}{pad}### Input:\n{pad}{}\n\n{pad}### Response:\n{pad}{word}",
        dialogue.turns[t].text
    );
    let mut ids = tokenizer.encode(&text, true).unwrap();
    ids.truncate(longest);
    if ids.len() < longest {
        ids.extend(ends.eos);
    }
    ids
}

fn taught(template: &Template, labels: Labels, tokenizer: &Tokenizer, ends: Ends, dialogues: &[Dialogue]) -> Taught {
    let prompter = Prompter::new(template, labels, tokenizer, ends).unwrap();
    prompter.groups(tokenizer, dialogues, &Lessons { threads: 2, ..Lessons::default() }, &[]).unwrap()
}

/// Every prompt's path through the forest of its group spells what `expected` says; returns the forests' tokens.
fn check_paths(taught: &Taught, expected: impl Fn(usize) -> Vec<u32>) -> usize {
    let (mut number, mut tokens) = (0, 0);
    for group in &taught.groups {
        let mut builder = Builder::new(0);
        for prompt in &group.prompts {
            builder.insert(0, &prompt.ids);
        }
        let (forest, rows) = builder.build();
        tokens += forest.len();
        for rows in rows {
            let spelled: Vec<u32> = rows.iter().map(|&row| forest.tokens()[row as usize]).collect();
            assert!(spelled == expected(number), "prompt {number} of {}", taught.turns);
            number += 1;
        }
    }
    assert_eq!(number, taught.turns);
    tokens
}

/// Tokens of one forest of everything: what all prompts begin with is computed once.
fn one_forest(taught: &Taught) -> usize {
    let mut builder = Builder::new(0);
    for prompt in taught.groups.iter().flat_map(|group| &group.prompts) {
        builder.insert(0, &prompt.ids);
    }
    builder.len()
}

fn check(name: &str, (tokenizer, ends): (Tokenizer, Ends), template: &Template, labels: Labels, expected: Expected) {
    for split in SPLITS {
        let Some(dialogues) = meld(split) else { return };
        let turns: Vec<(&Dialogue, usize)> =
            dialogues.iter().flat_map(|dialogue| (0..dialogue.turns.len()).map(move |t| (dialogue, t))).collect();
        let taught = taught(template, labels.clone(), &tokenizer, ends, &dialogues);
        assert_eq!((taught.turns, taught.lost, taught.shortened), (turns.len(), 0, 0));
        let forests = check_paths(&taught, |i| expected(&tokenizer, ends, template.max_tokens, turns[i].0, turns[i].1));
        let (linear, one) = (taught.linear_tokens, one_forest(&taught));
        let (split, form) = (split.name(), &template.name);
        println!("{name} {form} {split}: {linear} linear, {forests} in a forest a group, {one} in one");
    }
}

fn built_in(name: &str) -> Template {
    Template::built_in(name).unwrap()
}

#[test]
fn dialogue_form_gpt2_style() {
    let Some(model) = gpt2_style() else { return };
    check("gpt2-style", model, &built_in("dialogue"), Labels::meld(), dialogue_form);
}

#[test]
fn dialogue_form_llama_style() {
    check("llama-style", llama_style(), &built_in("dialogue"), Labels::meld(), dialogue_form);
}

#[test]
fn papers_form_gpt2_style() {
    let Some(model) = gpt2_style() else { return };
    check("gpt2-style", model, &built_in("dialoguellm"), Labels::meld_as_in_the_paper(), paper_form);
}

#[test]
fn papers_form_llama_style() {
    // a vocabulary of 320 tokens spells almost letter by letter: 256 tokens would end before the context
    let template = Template { max_tokens: Some(2048), ..built_in("dialoguellm") };
    check("llama-style", llama_style(), &template, Labels::meld_as_in_the_paper(), paper_form);
}

/// The counts of the design, with runs of white space as one space.
#[test]
fn the_dialogue_form_costs_what_the_design_says() {
    let (Some((tokenizer, ends)), Some(dialogues)) = (gpt2_style(), meld(Split::Train)) else { return };
    let taught = taught(&built_in("dialogue"), Labels::meld(), &tokenizer, ends, &dialogues);
    let forest = |group: &Group| {
        let mut builder = Builder::new(0);
        group.prompts.iter().for_each(|prompt| _ = builder.insert(0, &prompt.ids));
        builder.len()
    };
    let forests: usize = taught.groups.iter().map(forest).sum();
    println!("train: {} linear, {forests} in a forest a group, {} in one", taught.linear_tokens, one_forest(&taught));
    assert_eq!((taught.linear_tokens, forests), (1_454_363, 252_649));
}
