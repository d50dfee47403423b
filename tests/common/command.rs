//! Running the command in tests: its binary, a small model folder, what it said.
#![allow(dead_code, unreachable_pub)] // each test binary uses its own part

use dialoguellm::files::safetensors::Writer;
use dialoguellm::files::{Access, Tensors, gguf};
use dialoguellm_kernels::Dtype;
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// What the command did.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Its standard output, where it went well.
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        self.out
    }

    /// Its standard output as one JSON value.
    pub fn json(self) -> Value {
        serde_json::from_str(&self.ok()).unwrap()
    }

    /// Its one sentence, where it ended with `code` and nothing on standard output.
    pub fn refusal(self, code: i32) -> String {
        assert_eq!((self.code, self.out.as_str()), (Some(code), ""), "{}", self.err);
        let lines: Vec<&str> = self.err.lines().filter(|line| line.starts_with("dialoguellm: ")).collect();
        assert_eq!(lines.len(), 1, "{}", self.err);
        lines[0].to_owned()
    }
}

pub fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_dialoguellm")
}

/// The command with nothing on standard input.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).env_remove("DLLM_ISA").stdin(Stdio::null());
    command
}

pub fn run(arguments: &[&str]) -> Ran {
    Ran::of(command(arguments).output().unwrap())
}

pub fn run_with_input(arguments: &[&str], input: &[u8]) -> Ran {
    let pipe = Stdio::piped;
    let mut child = command(arguments).stdin(pipe()).stdout(pipe()).stderr(pipe()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    Ran::of(output)
}

/// A folder that vanishes, with a random model of one layer and all bytes as tokens in `model`.
pub struct Place(pub TempDir);

impl Place {
    pub fn new() -> Self {
        Self::with("bpe_f32_tied")
    }

    /// With another golden GGUF file's model. Its context is made long enough for real prompts.
    pub fn with(gguf: &str) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/gguf/{gguf}.gguf"));
        gguf::import(&file, &place.path("model"), Dtype::Bf16, &mut |_, _| true, &dialoguellm::Cancel::default())
            .unwrap();
        place.change_config(|config| config["max_position_embeddings"] = 2048.into());
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// As an argument.
    pub fn arg(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub fn change_config(&self, change: impl FnOnce(&mut Value)) {
        let path = self.path("model/config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        std::fs::write(&path, config.to_string()).unwrap();
    }

    /// Gives the model a second layer, equal to its first.
    pub fn deepen(&self) {
        let path = self.path("model/model.safetensors");
        let tensors = Tensors::open_file(&path, Access::Read).unwrap();
        let mut all = Vec::new();
        for name in tensors.names() {
            let view = tensors.get(name).unwrap();
            let copy = name.contains("layers.0.").then(|| name.replace("layers.0.", "layers.1."));
            all.extend([Some(name.to_owned()), copy].into_iter().flatten().map(|name| (name, view)));
        }
        let entries: Vec<_> = all.iter().map(|(name, view)| (name.clone(), view.dtype, view.shape.to_vec())).collect();
        let mut writer = Writer::create(&path, &entries, &[]).unwrap();
        all.iter().for_each(|(_, view)| writer.write(view.bytes).unwrap());
        writer.finish().unwrap();
        self.change_config(|config| config["num_hidden_layers"] = 2.into());
    }

    /// Writes a file and gives its argument.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), content).unwrap();
        self.arg(name)
    }

    /// `arguments` with the model, two threads and f32.
    pub fn model_args(&self, arguments: &[&str]) -> Vec<String> {
        let model = ["--model", &self.arg("model"), "--threads", "2", "--precision", "f32"].map(String::from);
        arguments.iter().map(|&argument| argument.to_owned()).chain(model).collect()
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        let all = self.model_args(arguments);
        run(&all.iter().map(String::as_str).collect::<Vec<_>>())
    }

    pub fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Ran {
        let all = self.model_args(arguments);
        run_with_input(&all.iter().map(String::as_str).collect::<Vec<_>>(), input)
    }

    /// A training file of three dialogues with two labels, as `jsonl:FILE`.
    pub fn dialogues(&self) -> String {
        format!("jsonl:{}", self.write("dialogues.jsonl", DIALOGUES))
    }

    /// Trains an adapter `name` in four steps.
    pub fn adapter(&self, name: &str) -> String {
        let (data, out) = (self.dialogues(), self.arg(name));
        self.run(&[
            "train", "--data", &data, "--dev", &data, "--out", &out, "--epochs", "2", "--batch", "2", "--quiet",
        ])
        .ok();
        out
    }
}

/// Text of the tests' own.
pub const DIALOGUES: &str = r#"{"id":"a","turns":[{"speaker":"Ann","text":"It works.","emotion":"joy"},{"speaker":"Bob","text":"Not here.","emotion":"fear"}]}
{"id":"b","turns":[{"speaker":"Bob","text":"Who is there?","emotion":"fear"},{"speaker":"Ann","text":"Me."},{"speaker":"Bob","text":"Good.","emotion":"joy"}]}
{"id":"c","turns":[{"speaker":"Cy","text":"Cake!","emotion":"joy"}]}
"#;

/// The names in a folder, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// All files of a folder and what they hold.
pub fn content(dir: &Path) -> Vec<(String, Vec<u8>)> {
    names(dir).into_iter().map(|name| (name.clone(), std::fs::read(dir.join(name)).unwrap())).collect()
}
