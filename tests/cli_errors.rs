//! Bad input, one kind a test: one clear sentence with what, where and both values, the documented exit code, and
//! nothing lost.

#![cfg(feature = "cli")]

#[path = "common/command.rs"]
mod command;

use command::{DIALOGUES, Place, Ran, content, names};
use std::path::Path;
use std::process::Command;

/// Changes the bytes of the model's weights.
fn spoil(place: &Place, change: impl FnOnce(&mut Vec<u8>)) {
    let path = place.path("model/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    change(&mut bytes);
    std::fs::write(&path, bytes).unwrap();
}

/// Changes the text of the header, which keeps its length.
fn spoil_header(place: &Place, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    spoil(place, |bytes| {
        let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = String::from_utf8(bytes[8..end].to_vec()).unwrap();
        assert!(header.contains(from), "{header}");
        bytes[8..end].copy_from_slice(header.replacen(from, to, 1).as_bytes());
    });
}

fn assert_says(sentence: &str, parts: &[&str]) {
    for part in parts {
        assert!(sentence.contains(part), "`{part}` is not in: {sentence}");
    }
}

#[test]
fn a_truncated_weights_file_says_both_lengths() {
    let place = Place::new();
    spoil(&place, |bytes| bytes.truncate(100_000));
    assert_says(&place.run(&["info"]).refusal(4), &["model.safetensors", "157544", "100000", "truncated"]);
}

#[test]
fn a_weights_file_whose_header_lies_names_tensor_and_both_sizes() {
    let place = Place::new();
    spoil_header(&place, "[320,64]", "[320,65]");
    let refused = place.run(&["info"]).refusal(4);
    assert_says(&refused, &["model.embed_tokens.weight", "[320, 65]", "83200", "81920"]);
}

#[test]
fn overlapping_tensors_are_refused() {
    let place = Place::new();
    spoil_header(&place, "[81920,", "[81916,");
    assert_says(&place.run(&["info"]).refusal(4), &["model.safetensors", "81916", "81920"]);
}

#[test]
fn a_shape_that_config_does_not_ask_for_says_both() {
    let place = Place::new();
    place.change_config(|config| config["intermediate_size"] = 33.into());
    assert_says(&place.run(&["info"]).refusal(4), &["gate_proj", "[32, 64]", "[33, 64]"]);
}

#[test]
fn a_missing_tokenizer_is_not_found() {
    let place = Place::new();
    std::fs::remove_file(place.path("model/tokenizer.json")).unwrap();
    assert_says(&place.run(&["info"]).refusal(2), &["tokenizer.json"]);
}

#[test]
fn an_unknown_model_type_is_unsupported_by_name() {
    let place = Place::new();
    place.change_config(|config| config["model_type"] = "mamba".into());
    assert_says(&place.run(&["info"]).refusal(5), &["config.json", "model_type", "mamba"]);
}

/// A NaN in the middle of a weight of the network.
fn nan(place: &Place) {
    spoil(place, |bytes| {
        let at = bytes.len() - 2048;
        bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
}

#[test]
fn nan_weights_end_evaluation_and_leave_no_predictions() {
    let place = Place::new();
    nan(&place);
    let (data, file) = (place.dialogues(), place.arg("p.jsonl"));
    let refused = place.run(&["eval", "--data", &data, "--predictions", &file, "--quiet"]).refusal(11);
    assert_says(&refused, &["NaN", "weights"]);
    assert!(!place.path("p.jsonl").exists());
}

#[test]
fn nan_weights_end_training_whether_it_is_short_or_long() {
    let place = Place::new();
    nan(&place);
    let data = place.dialogues();
    for steps in ["3", "30"] {
        let out = place.arg(&format!("out{steps}"));
        let refused =
            place.run(&["train", "--data", &data, "--out", &out, "--max-steps", steps, "--quiet"]).refusal(11);
        assert_says(&refused, &["weights", "finite"]);
    }
}

const HEADER: &str =
    "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\r\n";

/// A folder as MELD's, with `rows` in every split.
fn meld(place: &Place, header: &str, rows: &[u8]) -> String {
    std::fs::create_dir_all(place.path("meld")).unwrap();
    for split in ["train", "dev", "test"] {
        std::fs::write(place.path(&format!("meld/{split}_sent_emo.csv")), [header.as_bytes(), rows].concat()).unwrap();
    }
    format!("meld:{}", place.arg("meld"))
}

fn refused_data(place: &Place, data: &str) -> String {
    let out = place.arg("out");
    let trained = place.run(&["train", "--data", data, "--out", &out, "--quiet"]).refusal(4);
    assert!(!place.path("out").exists() && !place.path("out.metrics.jsonl").exists());
    let checked = command::run(&["data", "check", "--data", data]).refusal(4);
    assert_eq!(trained, checked);
    trained
}

#[test]
fn a_csv_without_a_column_names_it() {
    let place = Place::new();
    let data = meld(&place, "Utterance,Speaker,Dialogue_ID,Utterance_ID\n", b"secret,Ann,0,0\n");
    let refused = refused_data(&place, &data);
    assert_says(&refused, &["train_sent_emo.csv", "line 1", "`Emotion`"]);
    assert!(!refused.contains("secret"));
}

#[test]
fn a_csv_with_an_unknown_label_names_line_and_known_labels() {
    let place = Place::new();
    let data = meld(&place, HEADER, b"1,secret,Ann,glee,positive,0,0,1,1,0,0\r\n");
    let refused = refused_data(&place, &data);
    assert_says(&refused, &["train_sent_emo.csv", "line 2", "`glee`", "neutral, joy"]);
    assert!(!refused.contains("secret"));
}

#[test]
fn a_csv_in_cp1252_names_line_byte_and_what_to_do() {
    let place = Place::new();
    let data = meld(&place, HEADER, b"1,I don\x92t,Ann,joy,positive,0,0,1,1,0,0\r\n");
    assert_says(&refused_data(&place, &data), &["line 2", "byte 8", "0x92", "Windows-1252", "iconv"]);
}

#[test]
fn an_adapter_of_another_base_says_both_fingerprints() {
    let (place, other) = (Place::new(), Place::new());
    let adapter = place.adapter("out");
    spoil(&other, |bytes| *bytes.last_mut().unwrap() ^= 1);
    let data = other.dialogues();
    let refused = other.run(&["eval", "--adapter", &adapter, "--data", &data]).refusal(4);
    let fingerprint = |place: &Place| place.run(&["info", "--json"]).json()["fingerprint"].as_str().unwrap().to_owned();
    assert_says(&refused, &[&fingerprint(&place), &fingerprint(&other)]);
    let (model, merged) = (other.arg("model"), other.arg("merged"));
    command::run(&["merge", "--model", &model, "--adapter", &adapter, "--out", &merged]).refusal(4);
    assert!(!other.path("merged").exists());
}

#[test]
fn a_plain_peft_adapter_of_another_shape_says_both_shapes() {
    let place = Place::new();
    let adapter = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bf16/adapter");
    let data = place.dialogues();
    let refused = place.run(&["eval", "--adapter", adapter.to_str().unwrap(), "--data", &data]).refusal(4);
    assert_says(&refused, &["adapter_model.safetensors", "shape [", "another base model"]);
}

/// The command with no file allowed to grow beyond 4 KiB, which writes as on a full disk.
fn run_on_a_full_disk(arguments: &[String]) -> Ran {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -f 8; exec \"$0\" \"$@\"", command::binary()]).args(arguments);
    Ran::of(command.output().unwrap())
}

fn owned(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|&argument| argument.to_owned()).collect()
}

#[test]
fn a_full_disk_leaves_the_model_that_an_import_would_replace() {
    let place = Place::new();
    let before = content(&place.path("model"));
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf/bpe_f16.gguf");
    let ran = run_on_a_full_disk(&owned(&["import", file.to_str().unwrap(), "--out", &place.arg("model")]));
    assert_says(&ran.refusal(3), &["cannot write", "tokenizer.json", "File too large"]);
    assert!(content(&place.path("model")) == before);
    assert_eq!(names(place.0.path()), ["model"]);
}

#[test]
fn a_full_disk_leaves_nothing_of_a_merge() {
    let place = Place::new();
    let (adapter, model, merged) = (place.adapter("adapter"), place.arg("model"), place.arg("merged"));
    let ran = run_on_a_full_disk(&owned(&["merge", "--model", &model, "--adapter", &adapter, "--out", &merged]));
    assert_says(&ran.refusal(3), &["cannot write", "model.safetensors"]);
    assert_eq!(names(place.0.path()), ["adapter", "dialogues.jsonl", "model"]);
}

#[test]
fn a_full_disk_leaves_nothing_of_a_quantised_model() {
    let place = Place::new();
    let (model, small) = (place.arg("model"), place.arg("small"));
    let ran = run_on_a_full_disk(&owned(&["quantize", "--model", &model, "--out", &small]));
    assert_says(&ran.refusal(3), &["cannot write", "model.safetensors"]);
    assert_eq!(names(place.0.path()), ["model"]);
}

#[test]
fn a_full_disk_is_found_out_before_the_first_step() {
    let place = Place::new();
    let (data, out) = (place.dialogues(), place.arg("out"));
    let ran = run_on_a_full_disk(&place.model_args(&["train", "--data", &data, "--out", &out, "--quiet"]));
    assert_says(&ran.refusal(3), &["cannot write", "adapter_model.safetensors"]);
    assert_eq!(names(place.0.path()), ["dialogues.jsonl", "model"]);
}

#[test]
fn a_full_disk_leaves_the_predictions_that_were_there() {
    let place = Place::new();
    let long = DIALOGUES.lines().next().unwrap().to_owned() + "\n";
    let data = format!("jsonl:{}", place.write("long.jsonl", long.repeat(60)));
    let file = place.write("p.jsonl", "old");
    let ran = run_on_a_full_disk(&place.model_args(&["eval", "--data", &data, "--predictions", &file, "--quiet"]));
    assert_says(&ran.refusal(3), &["p.jsonl"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "old");
    assert_eq!(names(place.0.path()), ["long.jsonl", "model", "p.jsonl"]);
}

/// Root may write anywhere, so the command runs as nobody, from where nobody may run it.
fn run_as_nobody(place: &Place, arguments: &[String]) -> Ran {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::process::CommandExt;
    let binary = place.path("dialoguellm");
    std::fs::copy(command::binary(), &binary).unwrap();
    std::fs::set_permissions(place.0.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(binary);
    if std::fs::metadata(place.0.path()).unwrap().uid() == 0 {
        command.uid(65534).gid(65534);
    }
    let locked = std::fs::Permissions::from_mode(0o555);
    std::fs::set_permissions(place.path("locked"), locked).unwrap();
    let ran = Ran::of(command.args(arguments).output().unwrap());
    std::fs::set_permissions(place.path("locked"), std::fs::Permissions::from_mode(0o755)).unwrap();
    ran
}

#[test]
fn a_folder_that_may_not_be_written_is_named_before_the_first_step() {
    let place = Place::new();
    std::fs::create_dir(place.path("locked")).unwrap();
    let (data, out) = (place.dialogues(), place.arg("locked/out"));
    let ran = run_as_nobody(&place, &place.model_args(&["train", "--data", &data, "--out", &out, "--quiet"]));
    assert_says(&ran.refusal(3), &["locked", "Permission denied"]);
    assert!(names(&place.path("locked")).is_empty());
}

#[test]
fn a_path_through_a_file_is_refused() {
    let place = Place::new();
    place.write("file", "keep");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf/bpe_f16.gguf");
    let ran = command::run(&["import", file.to_str().unwrap(), "--out", &place.arg("file/model")]);
    assert_says(&ran.refusal(3), &["file"]);
    assert_eq!(std::fs::read_to_string(place.path("file")).unwrap(), "keep");
}

#[test]
fn wrong_arguments_and_values_are_exit_code_1_with_name_value_and_range() {
    let place = Place::new();
    let (data, out) = (place.dialogues(), place.arg("out"));
    assert_eq!(command::run(&["trian"]).code, Some(1));
    assert_eq!(command::run(&["info"]).code, Some(1));
    assert_eq!(command::run(&["--version"]).code, Some(0));
    let train = |more: &[&str]| place.run(&[&["train", "--data", &data, "--out", &out][..], more].concat()).refusal(1);
    assert_says(&train(&["--batch", "0"]), &["batch is 0, must be 1 or more"]);
    assert_says(&train(&["--set", "epoch=1"]), &["no recipe has a field `epoch`"]);
    assert_says(&train(&["--schedule", "cubic"]), &["cubic", "cosine"]);
    assert_says(&place.run(&["eval", "--data", "movie:x"]).refusal(1), &["`movie:x`", "meld:DIR"]);
    assert_says(&place.run(&["generate", "--prompt", "a", "--top-p", "0"]).refusal(1), &["top_p is 0"]);
    assert!(!place.path("out").exists());
}

#[test]
fn a_gpu_is_refused_as_not_built_in() {
    let place = Place::new();
    assert_says(&place.run(&["info", "--device", "cuda"]).refusal(5), &["cuda", "--device cpu"]);
}

#[test]
fn more_tokens_than_the_context_holds_says_both_numbers() {
    let place = Place::new();
    let long = "a".repeat(3000);
    assert_says(&place.run(&["generate", "--prompt", &long]).refusal(7), &["2048"]);
}

#[test]
fn an_adapter_says_that_its_labels_are_its_own() {
    let place = Place::new();
    let (adapter, data) = (place.adapter("out"), place.dialogues());
    let refused = place.run(&["eval", "--adapter", &adapter, "--data", &data, "--labels", "a,b"]).refusal(1);
    assert_says(&refused, &["has its own labels", "--labels"]);
    assert_says(&place.run(&["classify"]).refusal(1), &["--labels A,B"]);
}

#[test]
fn data_with_a_label_that_the_adapter_does_not_know_name_line_and_known_labels() {
    let place = Place::new();
    let adapter = place.adapter("out");
    let data = format!("jsonl:{}", place.write("other.jsonl", DIALOGUES.replace("\"fear\"", "\"awe\"")));
    let refused = place.run(&["eval", "--adapter", &adapter, "--data", &data]).refusal(4);
    assert_says(&refused, &["line 1", "`awe`", "joy, fear"]);
}
