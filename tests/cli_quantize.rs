//! Weights of 8 and 4 bits as a user meets them: made at opening or by `quantize`, answering nearly as the model does, for the
//! model's adapters, and trained upon.

#![cfg(feature = "cli")]

#[path = "common/command.rs"]
mod command;

use command::{Place, content, names};
use serde_json::Value;

/// The probability of joy of every turn.
fn joy(place: &Place, model: &str, precision: &str, adapter: &str) -> Vec<f64> {
    let (data, predictions) = (place.dialogues(), place.arg("predictions.jsonl"));
    let arguments = ["eval", "--model", model, "--precision", precision, "--adapter", adapter, "--threads", "2"];
    command::run(&[&arguments[..], &["--data", &data, "--predictions", &predictions, "--quiet"]].concat()).ok();
    let text = std::fs::read_to_string(predictions).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.map(|row| row["probs"]["joy"].as_f64().unwrap()).collect()
}

fn furthest(a: &[f64], b: &[f64]) -> f64 {
    assert!(a.len() == b.len() && a.len() == 5);
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// An adapter that tells the dialogues' labels apart.
fn strong(place: &Place) -> String {
    let (data, adapter) = (place.dialogues(), place.arg("strong"));
    let settings = ["--epochs", "30", "--batch", "1", "--learning-rate", "1e-2", "--quiet"];
    place.run(&[&["train", "--data", &data, "--dev", &data, "--out", &adapter][..], &settings].concat()).ok();
    adapter
}

#[test]
fn a_quantised_model_is_smaller_answers_nearly_the_same_and_takes_the_models_adapters() {
    let place = Place::new();
    let (model, adapter) = (place.arg("model"), strong(&place));
    let want = joy(&place, &model, "bf16", &adapter);
    assert!(want.iter().any(|p| (p - want[0]).abs() > 0.5), "{want:?}");
    let mut sizes = vec![std::fs::metadata(place.path("model/model.safetensors")).unwrap().len()];
    for (bits, name, bound) in [("8", "int8", 0.02), ("4", "int4", 0.3)] {
        let small = place.arg(name);
        let said = command::run(&["quantize", "--model", &model, "--bits", bits, "--out", &small, "--json"]).json();
        assert_eq!((&said["tensors"], &said["quantized"]), (&11.into(), &7.into()));
        let stored = joy(&place, &small, "bf16", &adapter);
        assert!(furthest(&stored, &want) <= bound, "{bits} bits: {stored:?} and {want:?}");
        // The embedding is made at opening as well: then the folder is the model opened in that precision, bit for bit.
        assert_eq!(joy(&place, &small, name, &adapter), joy(&place, &model, name, &adapter), "{bits} bits");
        sizes.push(std::fs::metadata(place.path(name).join("model.safetensors")).unwrap().len());
    }
    assert!(sizes.is_sorted_by(|larger, smaller| larger > smaller), "{sizes:?}");
}

#[test]
fn an_adapter_is_trained_on_whole_numbers_and_fits_the_model() {
    let place = Place::new();
    let (data, model, small, out) = (place.dialogues(), place.arg("model"), place.arg("small"), place.arg("out"));
    command::run(&["quantize", "--model", &model, "--out", &small]).ok();
    // by this seed, as by most, all turns are learned: what is learned by half is not the same on other weights
    let settings =
        ["--epochs", "30", "--batch", "1", "--learning-rate", "1e-2", "--seed", "1", "--threads", "2", "--quiet"];
    let train = ["train", "--model", &small, "--data", &data, "--dev", &data, "--out", &out];
    command::run(&[&train[..], &settings].concat()).ok();
    let (there, here) = (joy(&place, &small, "bf16", &out), joy(&place, &model, "bf16", &out));
    assert!(there.iter().any(|p| (p - there[0]).abs() > 0.5), "it learned: {there:?}");
    assert!(furthest(&there, &here) <= 0.05, "{there:?} and {here:?}");
    command::run(&["merge", "--model", &model, "--adapter", &out, "--out", &place.arg("merged")]).ok();
    let refused =
        command::run(&["merge", "--model", &small, "--adapter", &out, "--out", &place.arg("none")]).refusal(5);
    assert!(refused.contains("_proj.weight is quantised; merge into the model it was made of"), "{refused}");
}

#[test]
fn what_cannot_be_quantised_is_a_sentence_and_nothing_is_lost() {
    let place = Place::new();
    let (model, small) = (place.arg("model"), place.arg("small"));
    let before = content(&place.path("model"));
    let refused = command::run(&["quantize", "--model", &model, "--out", &model]).refusal(1);
    assert!(refused.contains("would be replaced"), "{refused}");
    assert!(content(&place.path("model")) == before);
    command::run(&["quantize", "--model", &model, "--out", &small]).ok();
    let refused = command::run(&["quantize", "--model", &small, "--bits", "4", "--out", &place.arg("none")]).refusal(1);
    assert!(refused.contains("is quantised already: take the model it was made of"), "{refused}");
    // a NaN in the middle of a linear map
    let mut bytes = std::fs::read(place.path("model/model.safetensors")).unwrap();
    let at = bytes.len() - 2048;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(place.path("model/model.safetensors"), bytes).unwrap();
    let refused = command::run(&["quantize", "--model", &model, "--out", &place.arg("none")]).refusal(11);
    assert!(refused.contains("has a weight that is NaN or infinite"), "{refused}");
    place
        .change_config(|config| config["quantization_config"] = serde_json::json!({"quant_method": "gptq", "bits": 4}));
    let refused = command::run(&["info", "--model", &model]).refusal(5);
    assert!(refused.contains("quant_method is \"gptq\", supported is \"compressed-tensors\""), "{refused}");
    assert_eq!(names(place.0.path()), ["model", "small"]);
}

#[test]
fn info_tells_what_is_stored_and_what_it_becomes() {
    let place = Place::new();
    let (model, small) = (place.arg("model"), place.arg("small"));
    command::run(&["quantize", "--model", &model, "--bits", "4", "--out", &small]).ok();
    let [whole, less] = [&model, &small].map(|dir| command::run(&["info", "--model", dir, "--json"]).json());
    assert_eq!(whole["parameters"], less["parameters"]);
    assert_eq!(less["weights"]["i32"]["tensors"], 7);
    let at = |precision| command::run(&["info", "--model", &model, "--precision", precision, "--json"]).json();
    let weights = |info: &Value| info["memory"]["weights"].as_u64().unwrap();
    let [int8, int4] = [at("int8"), at("int4")];
    assert!(weights(&int4) < weights(&int8) && weights(&int8) < weights(&whole));
    assert_eq!([&int8["precision"], &int4["precision"], &less["precision"]], ["int8", "int4", "bf16"]);
}
