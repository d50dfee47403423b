//! Beam search is transformers': every sequence with its score, on every ISA, and what is left of the timeline after it.

#[path = "common/command.rs"]
mod command;

use dialoguellm::conversation::{Beams, Conversation, Options, Sampling, Stop, Streamed};
use dialoguellm::device::Cpu;
use dialoguellm::emotion::{Bulk, Classifier, Decode, Labels, Template};
use dialoguellm::files::{Access, Config, Dialogue, Tensors, Tokenizer};
use dialoguellm::model::{Adapter, Llama, Model, OpenOptions};
use dialoguellm::{Cancel, Code};
use dialoguellm_kernels::Isa;
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;

const TOKENIZER: &str = r#"{"version":"1.0","model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}"#;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn conversation(variant: &str, adapter: bool, isa: Isa, options: Options) -> Conversation {
    let folder = golden(variant);
    let config = Config::read(&folder).unwrap();
    let tensors = Arc::new(Tensors::open(&folder, Access::Mapped).unwrap());
    let adapter = adapter.then(|| Arc::new(Adapter::read(&folder.join("adapter"), &config).unwrap()));
    let engine = Box::new(Llama::open(Cpu::<f32>::new(2, Some(isa)).unwrap(), config, &tensors).unwrap());
    let tokenizer = Tokenizer::from_bytes(TOKENIZER.as_bytes()).unwrap();
    Conversation::new(Arc::new(Model::from_parts(tokenizer, engine, variant.to_owned())), adapter, options)
}

fn tokens(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32).collect()
}

/// The settings of a golden search.
fn beams(case: &Value) -> Beams {
    let number = |name: &str| case[name].as_f64().map(|x| x as f32);
    Beams {
        width: case["num_beams"].as_u64().unwrap() as usize,
        length_penalty: number("length_penalty").unwrap_or(1.0),
        early_stopping: case["early_stopping"].as_bool().unwrap_or(false),
        repetition_penalty: number("repetition_penalty").unwrap_or(1.0),
        max_tokens: case["max_new_tokens"].as_u64().unwrap() as usize,
        eos: tokens(&case["ends"]),
    }
}

#[test]
fn every_beam_and_its_score_are_those_of_transformers() {
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(golden("beams/cases.json")).unwrap()).unwrap();
    assert_eq!(cases.len(), 64);
    for &isa in Isa::available() {
        for case in &cases {
            let adapter = case["adapter"].as_bool().unwrap();
            let mut talk = conversation(case["variant"].as_str().unwrap(), adapter, isa, Options::default());
            talk.append(&tokens(&case["prompt"])).unwrap();
            let found = talk.beams(&beams(case)).unwrap();
            let whole = |found: &dialoguellm::conversation::Hypothesis| match found.stop {
                Stop::Eos(end) => [&found.tokens[..], &[end]].concat(),
                _ => found.tokens.clone(),
            };
            let sequences: Vec<Vec<u32>> = found.iter().map(whole).collect();
            let golden: Vec<Vec<u32>> = case["sequences"].as_array().unwrap().iter().map(tokens).collect();
            assert_eq!(sequences, golden, "{isa:?} {case}");
            for (found, score) in found.iter().zip(case["scores"].as_array().unwrap_or(&Vec::new())) {
                let score = score.as_f64().unwrap();
                assert!((f64::from(found.score) - score).abs() <= 1e-4 * score.abs().max(1.0), "{isa:?} {case}");
            }
        }
    }
}

#[test]
fn as_many_beams_as_tokens_find_the_likeliest_of_all_pairs() {
    let mut talk = conversation("gqa", true, Isa::Portable, Options::default());
    talk.append(&[5, 17, 44, 9]).unwrap();
    let pairs: Vec<Vec<u32>> = (0..61 * 61).map(|i| vec![i / 61, i % 61]).collect();
    let scores = talk.log_probs_after(&pairs).unwrap();
    let mut all: Vec<(f64, &Vec<u32>)> = scores.iter().map(|score| score.total).zip(&pairs).collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    let options = Beams { width: 61, length_penalty: 0.0, max_tokens: 2, ..Beams::default() };
    let found = talk.beams(&options).unwrap();
    assert_eq!(found.len(), 61);
    for (found, (score, pair)) in found.iter().zip(all) {
        assert_eq!((&found.tokens, found.stop), (pair, Stop::Length));
        assert!((f64::from(found.score) - score).abs() < 1e-4, "{found:?} {score}");
    }
}

#[test]
fn one_beam_takes_what_the_likeliest_tokens_make_and_leaves_the_timeline_as_it_was() {
    let mut talk = conversation("untied", false, Isa::Portable, Options::default());
    talk.append(&[8, 30, 2]).unwrap();
    let before = talk.logits_after(&[]).unwrap();
    let found = talk.beams(&Beams { width: 1, max_tokens: 9, ..Beams::default() }).unwrap();
    assert_eq!((talk.tokens(), talk.logits_after(&[]).unwrap()), (&[8, 30, 2][..], before));
    let drawn = talk.generate(&Sampling { max_tokens: 9, ..Sampling::default() }, &mut |_| true).unwrap();
    assert_eq!(found[0].tokens, drawn.tokens);
}

#[test]
fn beams_end_where_the_timeline_ends_and_refuse_what_cannot_be_searched() {
    let mut talk = conversation("gqa", false, Isa::Portable, Options { context: 6, cancel: Cancel::default() });
    assert_eq!(talk.beams(&Beams::default()).unwrap_err().code(), Code::InvalidArgument, "an empty timeline");
    talk.append(&[5, 6, 7]).unwrap();
    let found = talk.beams(&Beams::default()).unwrap();
    assert!(found.iter().all(|found| found.tokens.len() == 3 && found.stop == Stop::Context), "{found:?}");
    let refused = |beams: Beams, text: &str| {
        let error = conversation_of_three().beams(&beams).unwrap_err();
        assert!(error.code() == Code::InvalidArgument && error.text().contains(text), "{error:?}");
    };
    refused(Beams { width: 0, ..Beams::default() }, "beams are 0, must be 1 to 1024");
    refused(Beams { width: 1025, ..Beams::default() }, "beams are 1025");
    refused(Beams { length_penalty: f32::NAN, ..Beams::default() }, "length_penalty is NaN");
    refused(Beams { repetition_penalty: 0.0, ..Beams::default() }, "repetition_penalty is 0");
    talk.append(&[8, 9, 10]).unwrap();
    assert_eq!(talk.beams(&Beams::default()).unwrap_err().code(), Code::ContextFull);
    let cancel = Cancel::default();
    let mut talk = conversation("gqa", false, Isa::Portable, Options { context: 0, cancel: cancel.clone() });
    talk.append(&[5, 6, 7]).unwrap();
    cancel.set();
    assert_eq!((talk.beams(&Beams::default()).unwrap_err().code(), talk.len()), (Code::Cancelled, 3));
}

#[test]
fn written_answers_are_the_best_beams_of_their_prompts_each_on_its_own() {
    let place = command::Place::new();
    let model = Arc::new(Model::open(&place.path("model"), &OpenOptions::default()).unwrap());
    let labels = Labels::new(["joy", "fear"].map(String::from).to_vec()).unwrap();
    let classifier = Classifier::new(model.clone(), None, Template::built_in("dialogue").unwrap(), labels).unwrap();
    let turns = |line: &str| Dialogue::from_json(&serde_json::from_str(line).unwrap(), "d").unwrap();
    let dialogues: Vec<Dialogue> = command::DIALOGUES.lines().map(turns).collect();
    let decode = Decode { beams: 3, repetition_penalty: 1.2, new_tokens: 5, ..Decode::default() };
    let written = classifier.written(&dialogues, &decode, &Bulk::default(), &mut |_| ()).unwrap();
    for (dialogue, written) in dialogues.iter().zip(written) {
        let script = classifier.prompter().script(&dialogue.turns);
        assert_eq!(written.len(), dialogue.turns.len());
        for (turn, written) in written.iter().enumerate() {
            let prompt = classifier.prompter().question(model.tokenizer(), &script, turn).unwrap().prompt;
            let mut alone = Conversation::new(model.clone(), None, Options::default());
            alone.append(&prompt).unwrap();
            let best = alone.beams(&decode.search(model.end_tokens())).unwrap().remove(0);
            let text = Streamed::new(model.tokenizer(), &prompt, &[]).unwrap().whole(&best.tokens).unwrap().0;
            assert_eq!((written.text.as_str(), written.text.is_empty()), (text.as_str(), false));
        }
    }
}

fn conversation_of_three() -> Conversation {
    let mut talk = conversation("gqa", false, Isa::Portable, Options::default());
    talk.append(&[5, 6, 7]).unwrap();
    talk
}
