//! `train` and `merge` as a user runs them: what is written where, interruption and resumption to the same bits, and
//! adapters that go on to be used.

#![cfg(feature = "cli")]

#[path = "common/command.rs"]
mod command;

use command::{DIALOGUES, Place, content, names};
use dialoguellm::files::{Access, Tensors};
use serde_json::Value;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

fn lines(place: &Place, name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(place.path(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn training_leaves_an_adapter_with_its_labels_recipe_metrics_and_calibration() {
    let place = Place::new();
    place.adapter("out");
    let want = ["adapter_config.json", "adapter_model.safetensors", "dialoguellm.json", "metrics.jsonl", "recipe.toml"];
    assert_eq!(names(&place.path("out")), want);
    assert!(!place.path("out.metrics.jsonl").exists());
    let metrics = lines(&place, "out/metrics.jsonl");
    assert_eq!(metrics.iter().filter(|line| line.get("loss").is_some()).count(), 4); // 3 dialogues by 2, twice
    assert_eq!(metrics.iter().filter(|line| line.get("dev_score").is_some()).count(), 2);
    let card: Value = serde_json::from_slice(&std::fs::read(place.path("out/dialoguellm.json")).unwrap()).unwrap();
    assert_eq!(card["labels"]["names"], serde_json::json!(["joy", "fear"]));
    assert_ne!(card["temperature"], 1.0);
}

#[test]
fn shots_are_drawn_from_the_training_data_not_learned_from_and_shown_when_asked() {
    let place = Place::new();
    let data = place.dialogues();
    let tokens = |name: &str, more: &[&str]| {
        let fixed = ["train", "--data", &data, "--out", &place.arg(name), "--max-steps", "2", "--json"];
        let ran = place.run(&[&fixed[..], more].concat());
        assert!(ran.err.contains("3 prompts, "), "two of five are shown: {}", ran.err);
        ran.json()["linear_tokens"].as_u64().unwrap()
    };
    let shown = tokens("shown", &["--shots", "1"]);
    assert!(shown > tokens("hidden", &["--shots", "1", "--shots-in-training", "false"]), "prompts are longer");
    let card = |name: &str| -> Value { serde_json::from_slice(&std::fs::read(place.path(name)).unwrap()).unwrap() };
    let demonstrations = card("hidden/dialoguellm.json")["template"]["demonstrations"].clone();
    let labels: Vec<&str> =
        demonstrations.as_array().unwrap().iter().map(|shown| shown["label"].as_str().unwrap()).collect();
    assert_eq!(labels, ["joy", "fear"]);
    assert_eq!(card("shown/dialoguellm.json")["template"]["demonstrations"], demonstrations, "the same seed");
    let count = |more: &[&str]| {
        let fixed = ["eval", "--data", &data, "--labels", "joy,fear", "--json"];
        let all = if more.is_empty() { fixed.to_vec() } else { [&["eval", "--data", &data, "--json"], more].concat() };
        place.run(&all).json()["tokens"].as_u64().unwrap()
    };
    assert!(count(&["--adapter", &place.arg("hidden")]) > count(&[]), "asking shows them");
}

#[test]
fn what_is_retrieved_goes_with_the_adapter_as_much_of_every_label() {
    let place = Place::new();
    let data = place.dialogues();
    let fixed = ["train", "--data", &data, "--out", &place.arg("out"), "--max-steps", "2", "--retrieved", "1"];
    assert!(place.run(&fixed).err.contains("5 prompts, "), "all are learned from");
    let card: Value = serde_json::from_slice(&std::fs::read(place.path("out/dialoguellm.json")).unwrap()).unwrap();
    assert_eq!(card["template"]["retrieved"], 1);
    let retrieval = card["template"]["retrieval"].as_array().unwrap();
    let labels: Vec<&str> = retrieval.iter().map(|shown| shown["label"].as_str().unwrap()).collect();
    assert_eq!(labels, ["joy", "fear", "joy", "fear"]);
    let tokens = |more: &[&str]| {
        place.run(&[&["eval", "--data", &data, "--json"], more].concat()).json()["tokens"].as_u64().unwrap()
    };
    assert!(tokens(&["--adapter", &place.arg("out")]) > tokens(&["--labels", "joy,fear"]), "asking shows them");
}

#[test]
fn the_summary_is_one_json_value_and_progress_is_elsewhere() {
    let place = Place::new();
    let (data, out) = (place.dialogues(), place.arg("out"));
    let ran = place.run(&["train", "--data", &data, "--out", &out, "--max-steps", "2", "--json"]);
    assert!(ran.err.contains("5 prompts, "), "{}", ran.err);
    let summary = ran.json();
    assert_eq!((&summary["steps"], &summary["best_score"]), (&2.into(), &Value::Null));
    for name in ["seconds", "tokens", "linear_tokens", "peak_rss_bytes"] {
        assert!(summary[name].as_f64().is_some_and(|n| n > 0.0), "{name}: {summary}");
    }
}

#[test]
fn quiet_is_quiet() {
    let place = Place::new();
    let (data, out) = (place.dialogues(), place.arg("out"));
    let ran = place.run(&["train", "--data", &data, "--dev", &data, "--out", &out, "--max-steps", "2", "--quiet"]);
    assert_eq!(ran.err, "");
}

#[test]
fn every_field_of_a_recipe_is_a_flag_that_stands_above_the_file() {
    let place = Place::new();
    let (data, out) = (place.dialogues(), place.arg("out"));
    let recipe = place.write("r.toml", "[train]\nmax_steps = 7\n[lora]\nrank = 2\n");
    let flags = ["--recipe", &recipe, "--max-steps", "1", "--set", "lora.alpha=3", "--targets", "q_proj,v_proj"];
    place.run(&[&["train", "--data", &data, "--out", &out, "--quiet"][..], &flags].concat()).ok();
    let config: Value = serde_json::from_slice(&std::fs::read(place.path("out/adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["r"], &config["lora_alpha"]), (&2.into(), &3.into()));
    assert_eq!(config["target_modules"], serde_json::json!(["q_proj", "v_proj"]));
    assert_eq!(lines(&place, "out/metrics.jsonl").len(), 1);
}

/// A run that is long enough to be stopped in its middle.
fn long_run(place: &Place, out: &str, more: &[&str]) -> Vec<String> {
    let (data, dev, out) = (place.dialogues(), opposite(place), place.arg(out));
    let fixed = ["train", "--data", &data, "--dev", &dev, "--out", &out, "--epochs", "20", "--batch", "2"];
    // an early epoch stays the best one, so a later process has to find its calibration again
    let settings = ["--labels", "joy,fear", "--metric", "nll", "--checkpoint-steps", "3", "--learning-rate", "1e-2"];
    place.model_args(&[&fixed[..], &settings, &["--dropout", "0.1"], more].concat())
}

fn start(arguments: &[String]) -> Child {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    command::command(&arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until the run has made some steps.
fn wait_for_steps(child: &mut Child, place: &Place, metrics: &str, steps: usize) {
    let began = Instant::now();
    let made = || std::fs::read_to_string(place.path(metrics)).map_or(0, |text| text.lines().count());
    while made() < steps {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before {steps} lines were in {metrics}");
        assert!(began.elapsed() < Duration::from_secs(120), "no {steps} lines in {metrics}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn signal(child: &Child, name: &str) {
    let status = std::process::Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

/// Adapter and card of the unbroken run.
fn unbroken(place: &Place) -> Vec<(String, Vec<u8>)> {
    let status = start(&long_run(place, "whole", &[])).wait().unwrap();
    assert!(status.success());
    results(place, "whole")
}

/// What must not depend on interruptions; times in the metrics do.
fn results(place: &Place, out: &str) -> Vec<(String, Vec<u8>)> {
    content(&place.path(out)).into_iter().filter(|(name, _)| name != "metrics.jsonl").collect()
}

#[test]
fn ctrl_c_saves_a_checkpoint_that_resumes_to_the_same_bits() {
    let place = Place::new();
    let mut child = start(&long_run(&place, "out", &[]));
    wait_for_steps(&mut child, &place, "out.metrics.jsonl", 8);
    signal(&child, "-INT");
    let ran = command::Ran::of(child.wait_with_output().unwrap());
    assert!(ran.refusal(9).contains("--resume goes on"));
    assert!(place.path("out/state.json").exists());
    assert!(start(&long_run(&place, "out", &["--resume"])).wait().unwrap().success());
    assert!(results(&place, "out") == unbroken(&place), "other bits after a resumption");
    assert_eq!(lines(&place, "out/metrics.jsonl").len(), lines(&place, "whole/metrics.jsonl").len());
}

#[test]
fn a_killed_run_has_a_usable_adapter_and_resumes_to_the_same_bits() {
    let place = Place::new();
    let mut child = start(&long_run(&place, "out", &[]));
    wait_for_steps(&mut child, &place, "out.metrics.jsonl", 11);
    child.kill().unwrap();
    child.wait().unwrap();
    let (data, out) = (place.dialogues(), place.arg("out"));
    place.run(&["eval", "--adapter", &out, "--data", &data, "--quiet"]).ok();
    assert!(start(&long_run(&place, "out", &["--resume"])).wait().unwrap().success());
    assert!(results(&place, "out") == unbroken(&place), "other bits after a kill");
}

#[test]
fn a_folder_with_something_in_it_is_refused_before_anything_is_done() {
    let place = Place::new();
    let data = place.dialogues();
    std::fs::create_dir(place.path("mine")).unwrap();
    place.write("mine/notes.txt", "keep");
    let refused = place.run(&["train", "--data", &data, "--out", &place.arg("mine")]).refusal(1);
    assert!(refused.contains("is not empty and would be replaced"), "{refused}");
    assert_eq!(names(&place.path("mine")), ["notes.txt"]);
    let out = place.adapter("out");
    let before = content(&place.path("out"));
    place.run(&["train", "--data", &data, "--out", &out]).refusal(1);
    assert!(content(&place.path("out")) == before);
    let refused = place.run(&["train", "--data", &data, "--out", &out, "--resume"]).refusal(2);
    assert!(refused.contains("no checkpoint to resume"), "{refused}");
}

#[test]
fn a_resumed_run_must_have_the_same_data_and_settings() {
    let place = Place::new();
    let mut child = start(&long_run(&place, "out", &[]));
    wait_for_steps(&mut child, &place, "out.metrics.jsonl", 2);
    signal(&child, "-TERM");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(9));
    let run = |more: &[&str]| {
        let arguments = long_run(&place, "out", more);
        command::run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let refused = run(&["--resume", "--seed", "7"]).refusal(1);
    assert!(refused.contains("seed was 42 and is 7"), "{refused}");
    let refused = run(&["--resume", "--window", "0"]).refusal(1);
    assert!(refused.contains("training data"), "{refused}");
    let refused = run(&[]).refusal(1);
    assert!(refused.contains("add --resume"), "{refused}");
}

#[test]
fn training_from_an_adapter_keeps_its_labels_and_moves_its_weights() {
    let place = Place::new();
    let first = place.adapter("first");
    let data = format!("jsonl:{}", place.write("one.jsonl", r#"{"turns":[{"text":"Hm.","emotion":"fear"}]}"#));
    let out = place.arg("second");
    place.run(&["train", "--data", &data, "--out", &out, "--init-adapter", &first, "--max-steps", "3", "--quiet"]).ok();
    let card: Value = serde_json::from_slice(&std::fs::read(place.path("second/dialoguellm.json")).unwrap()).unwrap();
    assert_eq!(card["labels"]["names"], serde_json::json!(["joy", "fear"]));
    let weights = |name: &str| std::fs::read(place.path(name)).unwrap();
    assert_ne!(weights("first/adapter_model.safetensors"), weights("second/adapter_model.safetensors"));
}

#[test]
fn pairs_are_learned_and_their_dev_score_is_a_likelihood() {
    let place = Place::new();
    let pairs = "{\"prompt\":\"one\",\"completion\":\" two\"}\n{\"prompt\":\"three\",\"completion\":\" four\"}\n";
    let (data, out) = (format!("pairs:{}", place.write("pairs.jsonl", pairs)), place.arg("out"));
    let fixed = ["train", "--data", &data, "--dev", &data, "--out", &out, "--batch", "2", "--quiet"];
    // a rate so small that the dev score after the only step is the loss before it
    place.run(&[&fixed[..], &["--epochs", "1", "--learning-rate", "1e-12"]].concat()).ok();
    assert!(!place.path("out/dialoguellm.json").exists());
    let metrics = lines(&place, "out/metrics.jsonl");
    let (loss, score) = (metrics[0]["loss"].as_f64().unwrap(), metrics[1]["dev_score"].as_f64().unwrap());
    assert!(loss > 1.0 && (loss + score).abs() <= 1e-4, "{loss} {score}");
}

/// The dialogues with their two labels exchanged: what is learned from one makes the other worse.
fn opposite(place: &Place) -> String {
    let text = DIALOGUES.replace("joy", "(other)").replace("fear", "joy").replace("(other)", "fear");
    format!("jsonl:{}", place.write("opposite.jsonl", text))
}

#[test]
fn the_epoch_is_chosen_on_dev_and_its_calibration_is_stored() {
    let place = Place::new();
    let (data, dev, out) = (place.dialogues(), opposite(&place), place.arg("out"));
    let settings = ["--labels", "joy,fear", "--metric", "nll", "--epochs", "20", "--learning-rate", "1e-2", "--json"];
    let summary =
        place.run(&[&["train", "--data", &data, "--dev", &dev, "--out", &out][..], &settings].concat()).json();
    let metrics = lines(&place, "out/metrics.jsonl");
    let nll: Vec<f64> = metrics.iter().filter_map(|line| line.get("nll")?.as_f64()).collect();
    let best = (0..nll.len()).min_by(|&a, &b| nll[a].total_cmp(&nll[b])).unwrap();
    assert_eq!((nll.len(), &summary["best_epoch"]), (20, &(best + 1).into()));
    assert!(nll[best] + 0.1 < nll[19], "the last epoch is no worse: {nll:?}");
    let report = place.run(&["eval", "--adapter", &out, "--data", &dev, "--json"]).json();
    let calibrated = report["nll"].as_f64().unwrap();
    assert!(calibrated < nll[best], "{calibrated} {}", nll[best]);
    // a part for every label fits what it was fitted to better than one temperature does
    for kind in ["vector", "isotonic"] {
        let (out, report) = (place.arg(kind), place.arg("report"));
        let fixed = ["train", "--data", &data, "--dev", &dev, "--out", &out, "--calibrate", kind];
        place.run(&[&fixed[..], &settings].concat()).ok();
        let ran = ["eval", "--adapter", &out, "--data", &dev, "--report", &report, "--json"];
        let figures = place.run(&ran).json();
        assert!(figures["nll"].as_f64().unwrap() < calibrated, "{kind}: {figures}");
        let written: Value = serde_json::from_slice(&std::fs::read(place.path("report/report.json")).unwrap()).unwrap();
        let before = written["uncalibrated"]["nll"].as_f64().unwrap();
        assert!((before - nll[best]).abs() < 1e-5, "{kind}: {before} {}", nll[best]);
    }
}

fn labels_and_probabilities(place: &Place, arguments: &[&str]) -> Vec<(String, f64)> {
    let data = place.dialogues();
    let predictions = place.arg("predictions.jsonl");
    place.run(&[arguments, &["--data", &data, "--predictions", &predictions, "--quiet"]].concat()).ok();
    let row = |row: Value| (row["label"].as_str().unwrap().to_owned(), row["probs"]["joy"].as_f64().unwrap());
    lines(place, "predictions.jsonl").into_iter().map(row).collect()
}

#[test]
fn a_merged_model_answers_as_base_and_adapter_do() {
    let place = Place::new();
    let (data, adapter) = (place.dialogues(), place.arg("strong"));
    let settings = ["--epochs", "30", "--batch", "1", "--learning-rate", "1e-2", "--quiet"];
    place.run(&[&["train", "--data", &data, "--dev", &data, "--out", &adapter][..], &settings].concat()).ok();
    let (model, merged) = (place.arg("model"), place.arg("merged"));
    let said = command::run(&["merge", "--model", &model, "--adapter", &adapter, "--out", &merged, "--json"]).json();
    assert_eq!((&said["tensors"], &said["changed"]), (&11.into(), &7.into()));
    let apart = labels_and_probabilities(&place, &["eval", "--adapter", &adapter]);
    std::fs::rename(place.path("model"), place.path("base")).unwrap();
    std::fs::rename(place.path("merged"), place.path("model")).unwrap();
    let together = labels_and_probabilities(&place, &["eval"]);
    for ((label, p), (merged_label, q)) in apart.iter().zip(&together) {
        assert!(label == merged_label && (p - q).abs() <= 1e-4, "{label} {p} against {merged_label} {q}");
    }
    assert!(apart.iter().any(|(_, p)| (p - apart[0].1).abs() > 0.1), "{apart:?}");
}

#[test]
fn merging_keeps_types_shapes_and_tokenizer() {
    let place = Place::with("bpe_f16");
    let (adapter, model, merged) = (place.adapter("adapter"), place.arg("model"), place.arg("merged"));
    command::run(&["merge", "--model", &model, "--adapter", &adapter, "--out", &merged]).ok();
    let tensors = ["model", "merged"].map(|name| Tensors::open(&place.path(name), Access::Read).unwrap());
    let about = |tensors: &Tensors| -> Vec<(String, String)> {
        let one = |name| (tensors.get(name).unwrap().dtype, tensors.get(name).unwrap().shape.to_vec());
        tensors.names().map(|name| (name.to_owned(), format!("{:?}", one(name)))).collect()
    };
    assert_eq!(about(&tensors[0]), about(&tensors[1]));
    let bytes = |i: usize, name| tensors[i].get(name).unwrap().bytes;
    assert_eq!(bytes(0, "model.norm.weight"), bytes(1, "model.norm.weight"));
    assert_ne!(bytes(0, "model.layers.0.mlp.up_proj.weight"), bytes(1, "model.layers.0.mlp.up_proj.weight"));
    let file = |name: &str| std::fs::read(place.path(name)).unwrap();
    assert_eq!(file("model/tokenizer.json"), file("merged/tokenizer.json"));
}

#[test]
fn merging_never_replaces_its_sources() {
    let place = Place::new();
    let (adapter, model) = (place.adapter("adapter"), place.arg("model"));
    let before = content(&place.path("model"));
    for out in [&model, &adapter] {
        let refused = command::run(&["merge", "--model", &model, "--adapter", &adapter, "--out", out]).refusal(1);
        assert!(refused.contains("would be replaced"), "{refused}");
    }
    assert!(content(&place.path("model")) == before);
}

#[test]
#[allow(unsafe_code, clippy::zombie_processes)] // wait4 is what waits
fn the_peak_memory_told_is_the_systems() {
    let place = Place::new();
    let (data, out) = (place.dialogues(), place.arg("out"));
    let arguments = place.model_args(&["train", "--data", &data, "--out", &out, "--max-steps", "2", "--json"]);
    let summary = std::fs::File::create(place.path("summary.json")).unwrap();
    let mut command = command::command(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let child = command.stdout(summary).stderr(Stdio::null()).spawn().unwrap();
    // SAFETY: zeros are a valid rusage; the child is this test's own and nobody else waits for it.
    let (ended, peak) = unsafe {
        let (mut status, mut usage) = (0, std::mem::zeroed::<libc::rusage>());
        assert_eq!(libc::wait4(child.id() as i32, &mut status, 0, &mut usage), child.id() as i32);
        (status, usage.ru_maxrss as f64 * 1024.0)
    };
    assert_eq!(ended, 0);
    let summary: Value = serde_json::from_slice(&std::fs::read(place.path("summary.json")).unwrap()).unwrap();
    let told = summary["peak_rss_bytes"].as_f64().unwrap();
    assert!((told - peak).abs() <= 0.05 * peak, "told {told} bytes, the system says {peak}");
}
