//! `why`: what made a label is found where it was planted, and both methods keep what they promise.

#[path = "common/command.rs"]
mod command;

use command::{Ran, run, run_with_input};
use dialoguellm_kernels::testing::Random;
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

/// What is said, and what it makes of the last turn, wherever it is said; where none is said the last turn is neutral.
const CAUSES: [(&str, &str); 2] = [("cake", "joy"), ("ghost", "fear")];
const FILLERS: [&str; 8] = ["yes", "well", "so", "hm", "no", "and", "then", "see"];

/// A dialogue of four to seven turns, the last of which has a label, and the turn with its cause.
fn dialogue(random: &mut Random, id: usize) -> (Value, Option<usize>) {
    let mut below = |n: usize| random.below(n);
    let n = 4 + below(4);
    let filler = |below: &mut dyn FnMut(usize) -> usize| {
        (0..1 + below(3)).map(|_| FILLERS[below(8)]).collect::<Vec<_>>().join(" ")
    };
    let turn = |_| {
        let speaker = ["A", "B"][below(2)];
        json!({"speaker": speaker, "text": filler(&mut below)})
    };
    let mut turns: Vec<Value> = (0..n).map(turn).collect();
    let cause = CAUSES.get(below(3)).map(|cause| (cause, below(n - 1)));
    if let Some(((word, _), at)) = cause {
        turns[at]["text"] = json!(format!("{} {word}", turns[at]["text"].as_str().unwrap()));
    }
    turns[n - 1]["emotion"] = json!(cause.map_or("neutral", |((_, label), _)| label));
    (json!({"id": id.to_string(), "turns": turns}), cause.map(|(_, at)| at))
}

/// The tiny model and an adapter that has learned what the causes make.
struct Taught(TempDir);

impl Taught {
    fn new() -> Self {
        let taught = Self(tempfile::tempdir().unwrap());
        let mut random = Random::new(1);
        let lines = (0..600).map(|id| format!("{}\n", dialogue(&mut random, id).0)).collect::<String>();
        std::fs::write(taught.0.path().join("train.jsonl"), lines).unwrap();
        let data = format!("jsonl:{}/train.jsonl", taught.0.path().display());
        let settings = [
            "labels=[\"neutral\", \"joy\", \"fear\"]",
            "template={base=\"dialogue\", instruction=\"Which?\", question=\"(\"}",
            "batch=4",
            "learning_rate=3e-3",
            "epochs=2",
            "calibrate=none",
        ];
        let mut all = vec!["train", "--data", &data, "--quiet"];
        settings.iter().for_each(|setting| all.extend(["--set", setting]));
        let out = taught.adapter();
        all.extend(["--out", &out]);
        run(&taught.on_model(&all)).ok();
        taught
    }

    fn adapter(&self) -> String {
        self.0.path().join("adapter").to_str().unwrap().to_owned()
    }

    fn on_model<'a>(&self, arguments: &[&'a str]) -> Vec<&'a str> {
        const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/tiny/model");
        [arguments, &["--model", MODEL, "--threads", "2", "--precision", "f32"]].concat()
    }

    fn ask(&self, arguments: &[&str], input: &str) -> Ran {
        let adapter = self.adapter();
        run_with_input(&self.on_model(&[arguments, &["--adapter", &adapter]].concat()), input.as_bytes())
    }

    /// What `why` says of every dialogue.
    fn why(&self, method: &str, dialogues: &[Value]) -> Vec<Value> {
        let input = dialogues.iter().map(|dialogue| format!("{dialogue}\n")).collect::<String>();
        let out = self.ask(&["why", "--json", "--method", method], &input).ok();
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The probability of `label` for the last turn.
    fn last(&self, turns: &[Value], label: &str) -> f64 {
        let out = self.ask(&["classify"], &format!("{}\n", json!({"id": "d", "turns": turns}))).ok();
        let last: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
        last["probs"][label].as_f64().unwrap()
    }
}

/// Held-out dialogues that have a cause, and the turn that it is in.
fn held_out() -> (Vec<Value>, Vec<usize>) {
    let mut random = Random::new(2);
    let all = (0..300).map(|id| dialogue(&mut random, id));
    all.filter_map(|(dialogue, cause)| Some((dialogue, cause?))).take(100).unzip()
}

fn changes(parts: &Value) -> impl Iterator<Item = (usize, f64)> {
    parts.as_array().unwrap().iter().map(|part| (part["turn"].as_u64().unwrap() as usize, number(&part["change"])))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

#[test]
fn a_planted_cause_is_found_and_what_is_said_of_it_is_true() {
    let taught = Taught::new();
    let (dialogues, causes) = held_out();
    for (method, many) in [("turns", 100), ("gradients", 40)] {
        let found = taught.why(method, &dialogues[..many]);
        let first = |why: &Value| changes(&why["turns"]).max_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
        let right = found.iter().zip(&causes).filter(|(why, cause)| first(why) == **cause).count();
        println!("{method}: {right} of {many} planted turns come first");
        assert!(found.len() == many && 100 * right >= 95 * many, "{method}: {right} of {many}");
        if method == "gradients" {
            adds_up(&found);
        }
    }

    // leaving out is the score without the turn, asked by another command
    let [found, words] = ["turns", "words"].map(|method| taught.why(method, &dialogues[..3]));
    for ((why, words), dialogue) in found.iter().zip(&words).zip(&dialogues) {
        let (turns, label) = (dialogue["turns"].as_array().unwrap(), why["label"].as_str().unwrap());
        assert_eq!(why["turns"], words["turns"]);
        assert_eq!(number(&why["prob"]), taught.last(turns, label));
        for (i, part) in why["turns"].as_array().unwrap().iter().enumerate() {
            let without = taught.last(&[&turns[..i], &turns[i + 1..]].concat(), label);
            assert_eq!(number(&part["without"]), without);
            assert!((number(&part["change"]) - (number(&why["prob"]) / without).ln()).abs() < 1e-6);
        }
        let texts = turns.iter().map(|turn| turn["text"].as_str().unwrap().split(' ').count());
        let many: usize = texts.filter(|&words| words > 1).sum();
        assert_eq!(words["words"].as_array().unwrap().len(), many);
    }
}

/// By words and by turns, to what all words did together.
fn adds_up(found: &[Value]) {
    for why in found {
        let whole = number(&why["prob"]).ln() - number(&why["integral"]["base"]);
        let gap = number(&why["integral"]["gap"]);
        for parts in ["turns", "words"] {
            let sum: f64 = changes(&why[parts]).map(|(_, change)| change).sum();
            assert!((whole - gap - sum).abs() < 1e-4 * (1.0 + whole.abs()), "{parts}: {whole} {gap} {sum}");
        }
        assert!(gap.abs() <= 0.01 * whole.abs(), "{why}");
    }
}

#[test]
fn a_turn_in_the_middle_or_another_label_can_be_asked_and_what_is_not_there_is_refused() {
    let taught = Taught::new();
    let (dialogues, _) = held_out();
    let input = dialogues[0].to_string();
    let ask = |arguments: &[&str]| taught.ask(&[&["why"], arguments].concat(), &input);
    let why = ask(&["--json", "--turn", "1", "--label", "fear"]).json();
    assert_eq!((&why["turn"], &why["label"], why["turns"].as_array().unwrap().len()), (&json!(1), &json!("fear"), 1));
    let text = ask(&["--method", "gradients"]).ok();
    assert!(text.contains("without any word") && text.contains(", turn "), "{text}");
    assert!(ask(&["--turn", "99"]).refusal(1).contains("--turn 99 of dialogue"));
    assert!(ask(&["--label", "envy"]).refusal(2).contains("not among the known ones"));
    let template = "base=\"dialogue\"\nquestion = \"{{ target.text | upper }} is\"\n";
    let file = taught.0.path().join("upper.toml");
    std::fs::write(&file, template).unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/tiny/model");
    let arguments = ["why", "--model", model.to_str().unwrap(), "--labels", "joy,fear", "--method", "gradients"];
    let arguments = [&arguments[..], &["--template", file.to_str().unwrap()]].concat();
    let refused = run_with_input(&arguments, input.as_bytes()).refusal(5);
    assert!(refused.contains("cannot be traced"), "{refused}");
}
