//! `eval`, `classify`, `chat`, `score`, `generate`, `data`, `import` and `info`: the forms that other programs rely on.

#![cfg(feature = "cli")]

#[path = "common/command.rs"]
mod command;

use command::{DIALOGUES, Place};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

const LABELS: [&str; 2] = ["--labels", "joy,fear"];

fn rows(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn eval_has_the_documented_keys_in_order() {
    let place = Place::new();
    let report = place.run(&["eval", "--data", &place.dialogues(), "--json"]).json();
    let want =
        ["n", "accuracy", "weighted_f1", "macro_f1", "per_label", "confusion", "nll", "ece", "seconds", "tokens"];
    assert_eq!(keys(&report), want);
    assert_eq!(report["n"], 5);
    assert_eq!(keys(&report["per_label"]), ["joy", "fear"]);
    assert_eq!(keys(&report["per_label"]["joy"]), ["precision", "recall", "f1", "support"]);
}

#[test]
fn a_comparison_with_itself_finds_no_difference_and_one_of_other_data_is_refused() {
    let place = Place::new();
    let (data, file) = (place.dialogues(), place.arg("p.jsonl"));
    place.run(&["eval", "--data", &data, "--predictions", &file]).ok();
    let first = &rows(&std::fs::read_to_string(&file).unwrap())[0];
    assert_eq!(keys(first), ["id", "turn", "label", "probs", "gold"]);
    let compared = place.run(&["eval", "--data", &data, "--compare", &file, "--json"]).json();
    assert_eq!(compared["compared"]["difference"], 0.0);
    let other = format!("jsonl:{}", place.write("other.jsonl", DIALOGUES.replace("\"a\"", "\"z\"")));
    let refused = place.run(&["eval", "--data", &other, "--compare", &file]).refusal(4);
    assert!(refused.contains("has no dialogue z, turn 0"), "{refused}");
}

#[test]
fn classify_gives_a_line_a_turn_with_probabilities_that_sum_to_one() {
    let place = Place::new();
    let out = place.run_with_input(&[&["classify"][..], &LABELS].concat(), DIALOGUES.as_bytes()).ok();
    let rows = rows(&out);
    let turns: Vec<(&str, u64)> =
        rows.iter().map(|r| (r["id"].as_str().unwrap(), r["turn"].as_u64().unwrap())).collect();
    assert_eq!(turns, [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2), ("c", 0)]);
    for row in &rows {
        assert_eq!((keys(row), keys(&row["probs"])), (vec!["id", "turn", "label", "probs"], vec!["joy", "fear"]));
        let sum: f64 = row["probs"].as_object().unwrap().values().map(|p| p.as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() <= 1e-6, "{row}");
    }
}

#[test]
fn classify_names_the_bad_line_and_labels_the_others() {
    let place = Place::new();
    let good = DIALOGUES.lines().next().unwrap();
    let input = format!(
        "{good}\n{{\"turns\":[{{\"text\":\"a secret\"]}}\n\n{{\"turns\":[{{\"txt\":\"a secret\"}}]}}\n{good}\n"
    );
    let ran = place.run_with_input(&[&["classify"][..], &LABELS].concat(), input.as_bytes());
    assert_eq!(ran.code, Some(4));
    assert_eq!(rows(&ran.out).len(), 4);
    assert!(
        ran.err.contains("line 2: column") && ran.err.contains("line 4: turn 1: unknown name `txt`"),
        "{}",
        ran.err
    );
    assert!(!ran.err.contains("secret"), "{}", ran.err);
}

#[test]
fn classify_answers_a_line_before_the_next_one_comes() {
    let place = Place::new();
    let arguments = place.model_args(&[&["classify"][..], &LABELS].concat());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut child = command::command(&arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()).lines());
    for line in DIALOGUES.lines() {
        writeln!(stdin, "{line}").unwrap();
        let turns = serde_json::from_str::<Value>(line).unwrap()["turns"].as_array().unwrap().len();
        (0..turns).for_each(|_| drop(answers.next().unwrap().unwrap()));
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_log_is_labelled_as_the_same_json_is() {
    let place = Place::new();
    let log = "Ann: It works.\nBob: Not here.\n\nBob: Who is there?\nAnn: Me.\nBob: Good.\n\nCy: Cake!\n";
    let labels = |out: String| rows(&out).iter().map(|row| row["probs"].clone()).collect::<Vec<_>>();
    let from_log = place.run_with_input(&[&["classify", "--format", "log"][..], &LABELS].concat(), log.as_bytes());
    let from_json = place.run_with_input(&[&["classify"][..], &LABELS].concat(), DIALOGUES.as_bytes());
    assert_eq!(labels(from_log.ok()), labels(from_json.ok()));
}

/// The probabilities of every turn that a chat gave.
fn chat(place: &Place, more: &[&str], input: &str) -> command::Ran {
    place.run_with_input(&[&["chat", "--json"][..], &LABELS, more].concat(), input.as_bytes())
}

fn probabilities(out: &str) -> Vec<f64> {
    rows(out).iter().map(|row| row["probs"]["joy"].as_f64().unwrap()).collect()
}

fn near(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-6)
}

#[test]
fn a_turn_is_the_same_in_chat_and_in_bulk() {
    let place = Place::new();
    let live = chat(&place, &[], "Bob: Who is there?\nAnn: Me.\nBob: Good.\n").ok();
    let bulk = place.run_with_input(&[&["classify"][..], &LABELS].concat(), DIALOGUES.as_bytes()).ok();
    assert!(near(&probabilities(&live), &probabilities(&bulk)[2..5]), "{live}{bulk}");
}

#[test]
fn undo_save_and_load_leave_the_turns_that_they_should() {
    let place = Place::new();
    let file = place.arg("saved.json");
    let want = probabilities(&chat(&place, &[], "Ann: It works.\nBob: Not here.\n").ok());
    let undone =
        chat(&place, &[], &format!("Ann: It works.\nCy: Oops.\n/undo\nBob: Not here.\n/undo 1\n/save {file}\n"));
    assert!(undone.err.contains("turns left: 1"), "{}", undone.err);
    let undone = probabilities(&undone.ok());
    assert!(near(&[undone[0], undone[2]], &want), "{undone:?} {want:?}");
    let loaded = chat(&place, &[], &format!("/load {file}\nBob: Not here.\n/quit\nCy: Oops.\n")).ok();
    assert!(near(&probabilities(&loaded), &want[1..]), "{loaded}");
}

#[test]
fn a_full_context_drops_old_turns_and_says_what_it_cost() {
    let place = Place::new();
    let turns: String = (0..12).map(|i| format!("Ann: This is turn number {i} of twelve.\n")).collect();
    let ran = chat(&place, &["--context", "400"], &turns);
    assert!(ran.err.contains("oldest turns dropped: ") && ran.err.contains("tokens computed again: "), "{}", ran.err);
    assert_eq!(rows(&ran.ok()).last().unwrap()["turn"], 11);
}

#[test]
fn a_chat_that_is_not_typed_is_plain_text_and_shows_its_turns() {
    let place = Place::new();
    let out = place.run_with_input(&[&["chat"][..], &LABELS].concat(), b"Ann: It works.\n").ok();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!((lines.len(), lines[0]), (2, "Ann: It works."));
    assert!(lines[1].contains("joy ") && lines[1].contains("fear ") && !out.contains('\u{1b}'), "{out}");
}

#[test]
fn a_score_is_the_sum_over_the_tokens_that_the_prompt_does_not_share() {
    let place = Place::new();
    let score = |prompt: &str, continuation: &str| {
        let said = place.run(&["score", "--prompt", prompt, "--continuation", continuation, "--json"]).json();
        assert_eq!(said["scores"][0]["text"], continuation);
        let row = &said["scores"][0];
        (row["tokens"].as_array().unwrap().len(), row["logprob"].as_f64().unwrap())
    };
    let (both, a, b) = (score("\u{1}", "\u{2}\u{3}"), score("\u{1}", "\u{2}"), score("\u{1}\u{2}", "\u{3}"));
    assert_eq!((both.0, a.0, b.0), (2, 1, 1));
    assert!((both.1 - a.1 - b.1).abs() <= 1e-4, "{both:?} {a:?} {b:?}");
    assert_eq!(score("\u{1}", ""), (0, 0.0));
}

#[test]
fn continuations_are_scored_in_their_order_and_each_as_if_alone() {
    let place = Place::new();
    let score = |all: &[&str]| {
        let flags: Vec<&str> = all.iter().flat_map(|text| ["--continuation", text]).collect();
        place.run(&[&["score", "--prompt", "It is", "--json"][..], &flags].concat()).json()["scores"].clone()
    };
    let all = score(&[" good", " bad", " good"]);
    assert_eq!(all[0], all[2]);
    let alone = score(&[" bad"])[0]["logprob"].as_f64().unwrap();
    assert!((all[1]["logprob"].as_f64().unwrap() - alone).abs() <= 1e-4);
}

#[test]
fn generated_text_is_the_same_streamed_and_as_json_and_ends_at_a_stop_string() {
    let place = Place::new();
    let generate =
        |more: &[&str]| place.run(&[&["generate", "--prompt", "Hello", "--max-tokens", "24"][..], more].concat());
    let drawn = ["--temperature", "1.5", "--seed", "3", "--top-k", "50"];
    let said = generate(&[&drawn[..], &["--json"]].concat()).json();
    assert_eq!(keys(&said), ["text", "tokens", "stop", "prompt_tokens", "seconds"]);
    let text = said["text"].as_str().unwrap();
    assert_eq!(generate(&drawn).ok(), format!("{text}\n"));
    let middle: String = text.chars().skip(3).take(2).collect();
    let stopped = generate(&[&drawn[..], &["--stop", &middle, "--json"]].concat()).json();
    assert_eq!(stopped["stop"], "stop");
    assert_eq!(stopped["text"], text[..text.find(&middle).unwrap()]);
    assert_ne!(generate(&["--temperature", "1.5", "--seed", "4", "--json"]).json()["tokens"], said["tokens"]);
}

#[test]
fn beams_give_the_likeliest_text_first_and_draw_nothing() {
    let place = Place::new();
    let generate =
        |more: &[&str]| place.run(&[&["generate", "--prompt", "Hello", "--max-tokens", "6"][..], more].concat());
    let said = generate(&["--beams", "3", "--json"]).json();
    assert_eq!(keys(&said), ["beams", "prompt_tokens", "seconds"]);
    let beams = said["beams"].as_array().unwrap();
    assert_eq!((beams.len(), keys(&beams[0])), (3, vec!["text", "tokens", "score", "stop"]));
    let scores: Vec<f64> = beams.iter().map(|beam| beam["score"].as_f64().unwrap()).collect();
    assert!(scores.is_sorted_by(|a, b| a >= b) && scores[2] < scores[0], "{scores:?}");
    assert_eq!(generate(&["--beams", "3"]).ok(), format!("{}\n", beams[0]["text"].as_str().unwrap()));
    let drawn = generate(&["--json"]).json();
    assert_eq!(generate(&["--beams", "1", "--json"]).json()["beams"][0]["tokens"], drawn["tokens"]);
    let both = generate(&["--beams", "3", "--temperature", "1"]);
    assert!(both.code == Some(1) && both.err.contains("--temperature"), "{both:?}");
    assert!(generate(&["--beams", "0"]).refusal(1).contains("beams are 0"));
}

#[test]
fn answers_that_are_written_stand_beside_those_that_are_scored() {
    let place = Place::new();
    let (data, file) = (place.dialogues(), place.arg("p.jsonl"));
    let own = "[decode]\nbeams = 2\nnew_tokens = 4\nanswers = [[\"%\", \"joy\"], [\"\\u0000\", \"fear\"]]\n";
    let recipe = place.write("r.toml", own);
    let ask = |more: &[&str]| place.run(&[&["eval", "--data", &data, "--predictions", &file][..], more].concat());
    let report = ask(&["--written", &recipe, "--json"]).json();
    assert_eq!((&report["n"], &report["written"]["n"]), (&json!(5), &json!(5)));
    let rows = rows(&std::fs::read_to_string(&file).unwrap());
    let mut right = 0;
    for row in &rows {
        let text = row["written"]["text"].as_str().unwrap().to_lowercase();
        let first = text.trim().split(['.', '\n']).next().unwrap();
        let label = if first.contains('%') { json!("joy") } else { Value::Null };
        assert_eq!(row["written"]["label"], label, "{row}");
        right += usize::from(label == row["gold"]);
    }
    let unmatched = rows.iter().filter(|row| row["written"]["label"].is_null()).count();
    assert_eq!(report["written"]["unmatched"], unmatched);
    assert_eq!(report["written"]["accuracy"], right as f64 / 5.0);
    assert!(ask(&["--written"]).ok().contains("written answers: accuracy"));
    let wrong = place.write("w.toml", own.replace("joy", "bliss"));
    assert!(ask(&["--written", &wrong]).refusal(2).contains("answers, entry 1"));
}

#[test]
fn info_says_shape_types_and_what_runs() {
    let place = Place::new();
    let info = place.run(&["info", "--tensors", "--json"]).json();
    assert_eq!(info["shape"]["layers"], 1);
    assert_eq!((&info["precision"], &info["threads"], &info["context"]), (&"f32".into(), &2.into(), &2048.into()));
    assert_eq!(info["weights"]["f32"]["tensors"], 11);
    assert_eq!(info["tensors"]["model.norm.weight"], json!({"dtype": "f32", "shape": [64]}));
    // 2 (keys, values) * 1 layer * 2 heads * 16 * 4 bytes
    assert_eq!(info["memory"]["cache_per_token"], 256);
    assert!(place.run(&["info"]).ok().contains("layers 1 of 64/32"));
}

#[test]
fn bench_gives_a_rate_to_each_kind_of_work_and_no_part_of_a_roof_above_it() {
    let place = Place::new();
    let model = place.path("model");
    let few = ["--tokens", "24", "--prompts", "4", "--batch", "2", "--draws", "4", "--repeats", "1", "--device", "cpu"];
    let bench =
        |more: &[&str]| command::run(&[&["bench", "--model", model.to_str().unwrap()], &few[..], more].concat());
    let said = bench(&["--json"]).json();
    let rates = said["rates"].as_array().unwrap();
    let works: Vec<&str> = rates.iter().map(|rate| rate["what"].as_str().unwrap().split(' ').next().unwrap()).collect();
    assert_eq!(works, ["prefill", "prefill", "decode", "label", "train"]);
    for rate in rates {
        assert!(rate["rate"].as_f64().unwrap() > 0.0, "{rate}");
        // other work at the time of either measurement moves it
        assert!(rate["part"].is_null() || (0.0..2.0).contains(&rate["part"].as_f64().unwrap()), "{rate}");
    }
    let parts: f64 = said["start"]["parts"].as_object().unwrap().values().map(|part| part.as_f64().unwrap()).sum();
    let start = said["start"]["seconds"].as_f64().unwrap();
    assert!(start > 0.0 && (parts - start).abs() < 1e-9, "{start} {parts}");
    let text = bench(&[]).ok();
    assert!(text.lines().count() == 12 && text.contains("GFLOP/s") && text.contains("turns/s"), "{text}");
    let refused = command::run(&["bench", "--model", model.to_str().unwrap(), "--tokens", "1"]).refusal(1);
    assert!(refused.contains("--tokens is 1, must be 2 or more"), "{refused}");
}

#[test]
fn the_level_of_instructions_is_the_environments() {
    let place = Place::new();
    let arguments = place.model_args(&["info", "--json"]);
    let output = command::command(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
        .env("DLLM_ISA", "portable")
        .output();
    assert_eq!(command::Ran::of(output.unwrap()).json()["isa"]["used"], "portable");
}

#[test]
fn unmapped_weights_give_the_same_answers() {
    let place = Place::new();
    let score = |more: &[&str]| {
        place.run(&[&["score", "--prompt", "A", "--continuation", "b", "--json"][..], more].concat()).json()
    };
    assert_eq!(score(&[]), score(&["--no-mmap"]));
}

#[test]
fn a_model_is_found_by_name_in_the_local_cache() {
    let place = Place::new();
    let repository = place.path("cache/hub/models--org--tiny");
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    std::fs::create_dir_all(repository.join("snapshots")).unwrap();
    std::fs::write(repository.join("refs/main"), "abc123").unwrap();
    std::fs::rename(place.path("model"), repository.join("snapshots/abc123")).unwrap();
    let run = |name: &str| {
        let mut command = command::command(&["info", "--model", name]);
        command::Ran::of(command.env("HF_HOME", place.path("cache")).env_remove("HF_HUB_CACHE").output().unwrap())
    };
    assert!(run("org/tiny").ok().contains("snapshots/abc123"));
    assert!(run("org/other").refusal(2).contains("models--org--other"));
}

#[test]
fn the_test_split_opens_only_with_a_note_and_a_second_time_is_shown_as_such() {
    let place = Place::new();
    std::fs::create_dir(place.path("data")).unwrap();
    for split in ["train", "dev", "test"] {
        place.write(&format!("data/{split}.jsonl"), DIALOGUES);
    }
    let (data, log) = (format!("jsonl:{}", place.arg("data")), place.arg("final.jsonl"));
    let eval = |more: &[&str]| place.run(&[&["eval", "--data", &data, "--labels", "joy,fear"], more].concat());
    assert!(eval(&["--split", "test"]).refusal(1).contains("--final FILE"));
    assert!(eval(&["--final", &log]).refusal(1).contains("--split test"));
    assert!(!place.path("final.jsonl").exists());
    eval(&[]).ok();
    let first = eval(&["--split", "test", "--final", &log, "--json"]);
    assert!(!first.err.contains("before"), "{}", first.err);
    let figures = first.json();
    assert!(
        eval(&["--split", "test", "--final", &log]).err.contains("opened by this recipe before: this is opening 2")
    );
    eval(&["--split", "test", "--final", &log, "--window", "0"]).ok();
    std::fs::rename(place.path("data"), place.path("moved")).unwrap();
    let moved = format!("jsonl:{}", place.arg("moved"));
    place.run(&["eval", "--data", &moved, "--labels", "joy,fear", "--split", "test", "--final", &log]).ok();
    let text = std::fs::read_to_string(place.path("final.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let openings: Vec<u64> = lines.iter().map(|line| line["opening"].as_u64().unwrap()).collect();
    assert_eq!(openings, [1, 2, 1, 3], "another template is another recipe, another folder not another data set");
    assert_eq!(lines[0]["weighted_f1"], figures["weighted_f1"]);
    // a file is not cut into splits, so nothing is opened
    place.run(&["eval", "--data", &place.dialogues(), "--labels", "joy,fear", "--split", "test"]).ok();
}

#[test]
fn data_are_counted_checked_and_converted() {
    let place = Place::new();
    let data = place.dialogues();
    let stats = command::run(&["data", "stats", "--data", &data, "--json"]).json();
    assert_eq!(stats["splits"]["all"], json!({"dialogues": 3, "turns": 6, "labels": {"joy": 3, "fear": 2}}));
    let checked = command::run(&["data", "check", "--data", &data, "--json"]).json();
    let findings =
        json!({"all": {"as_published": null, "findings": ["dialogues with one speaker: 1, of them with one turn: 1"]}});
    assert_eq!(checked, json!({"ok": true, "dialogues": 3, "turns": 6, "splits": findings}));
    assert_eq!(command::run(&["data", "convert", "--data", &data]).ok(), DIALOGUES);
    let refused = command::run(&["data", "check", "--data", &data, "--labels", "joy"]).refusal(4);
    assert!(refused.contains("line 1: unknown label `fear`; known are joy"), "{refused}");
}

#[test]
fn whoever_stops_reading_ends_the_command_in_peace() {
    let place = Place::new();
    let arguments = place.model_args(&[&["classify"][..], &LABELS].concat());
    let mut child = command::command(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let _ = child.stdin.take().unwrap().write_all(DIALOGUES.as_bytes());
    let ran = command::Ran::of(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
}
