//! The GPU's side of the library where there is no GPU: the driver is `tests/fakecuda`, the device an interpreter of the
//! kernels' PTX. What is computed is as near to exact as the CPU's bf16, and every failure of the driver is a status.
//!
//! A process finds one driver for its life, so each test runs itself again in a process that finds the fake one. With
//! `DLLM_DEVICE=gpu` the machine's own driver is used instead, with `DLLM_ROOT` for the repository's folder and
//! `DLLM_COMMAND` for the command where neither is where it was built (`kernels/device-check`).

#![cfg(all(feature = "cli", feature = "cuda"))]

#[path = "common/command.rs"]
mod command;
mod common;

use command::{Ran, binary};
use common::random::{self, Shape};
use dialoguellm::conversation::{Conversation, Leaf, Options};
use dialoguellm::device::{Bits, Cpu, Gpu};
use dialoguellm::files::adapter::LoraConfig;
use dialoguellm::files::{Access, Config, Tensors};
use dialoguellm::model::engine::Entering;
use dialoguellm::model::{
    Adapter, Builder, Engine, Forest, Learning, Llama, Model, Noise, OpenOptions, Pass, Place, Precision, Target,
    Weights,
};
use dialoguellm::{Cancel, Code};
use dialoguellm_kernels::testing::Random;
use dialoguellm_kernels::{adamw, bf16};
use serde_json::Value;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};

/// Set in the processes that find the fake driver.
const CHILD: &str = "DLLM_CUDA_FAKE";

/// Are the tests to use the driver that this machine has?
fn on_this_machines_driver() -> bool {
    std::env::var("DLLM_DEVICE").is_ok_and(|device| device == "gpu")
}

fn model_folder() -> PathBuf {
    let root = std::env::var_os("DLLM_ROOT").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&root).join("examples/tiny/model")
}

fn command_path() -> OsString {
    std::env::var_os("DLLM_COMMAND").unwrap_or_else(|| binary().into())
}

/// Where kernels are kept between tests, so that they are compiled once.
fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_fake_cache")
}

/// Where `kernels/cuda/toolkit` puts the compiler.
fn toolkit() -> PathBuf {
    let named = std::env::var_os("DLLM_CUDA_TOOLKIT").filter(|named| !named.is_empty());
    named.map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/cuda-toolkit"), PathBuf::from)
}

/// A folder with the fake driver under the name of the real one, or an empty name for this machine's own driver; `None`
/// where nothing could compile the kernels.
fn driver() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOLDER.get_or_init(|| driver_as("cuda_fake_driver", &["libcuda.so", "libcuda.so.1"])).as_deref()
}

/// The same with a cuBLASLt.
fn driver_with_cublaslt() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let names = ["libcuda.so", "libcuda.so.1", "libcublasLt.so.13"];
    FOLDER.get_or_init(|| driver_as("cuda_fake_cublaslt", &names)).as_deref()
}

fn driver_as(folder: &str, names: &[&str]) -> Option<PathBuf> {
    if on_this_machines_driver() {
        return Some(PathBuf::new());
    }
    toolkit().join("nvidia/cu13/lib/libnvrtc.so.13").exists().then_some(())?;
    let beside = std::env::current_exe().unwrap().with_file_name("libfakecuda.so");
    assert!(beside.exists(), "{} was not built", beside.display());
    let folder = beside.with_file_name(folder);
    std::fs::create_dir_all(&folder).unwrap();
    for name in names {
        let _ = std::os::unix::fs::symlink(&beside, folder.join(name)); // there from an earlier run
    }
    Some(folder)
}

/// The command's or a test's environment with the driver in it.
fn with_driver<'a>(command: &'a mut Command, folder: &Path) -> &'a mut Command {
    if on_this_machines_driver() {
        return command.stdin(Stdio::null());
    }
    let search = std::env::var_os("LD_LIBRARY_PATH")
        .into_iter()
        .flat_map(|paths| std::env::split_paths(&paths).collect::<Vec<_>>());
    let search = std::env::join_paths([folder.to_owned()].into_iter().chain(search)).unwrap();
    let places =
        [("LD_LIBRARY_PATH", search), ("XDG_CACHE_HOME", cache().into()), ("DLLM_CUDA_TOOLKIT", toolkit().into())];
    command.envs(places).env(CHILD, "1").stdin(Stdio::null())
}

/// Says that the running test proves nothing here.
fn skipped() {
    common::skipped("no CUDA compiler");
}

/// Can no real driver be made to fail as the test wants?
fn only_the_fake_driver(test: &str) -> bool {
    if on_this_machines_driver() {
        eprintln!("SKIPPED {test}: only the fake driver");
    }
    on_this_machines_driver()
}

/// Runs the test `name` again with the fake driver and `environment`; what it said.
fn again(name: &str, folder: &Path, environment: &[(&str, &str)]) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", name, "--nocapture", "--test-threads=1"]).envs(environment.iter().copied());
    let ran = Ran::of(with_driver(&mut child, folder).output().unwrap());
    assert_eq!(ran.code, Some(0), "{environment:?}: {}{}", ran.out, ran.err);
    ran.out
}

/// Whether this process only sends the test to one that finds the fake driver of `folder`, and shows what that says.
fn sent(name: &str, folder: Option<&Path>) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return false;
    }
    match folder {
        _ if only_the_fake_driver(name) => {}
        Some(folder) => print!("{}", again(name, folder, &[])),
        None => skipped(),
    }
    true
}

/// Whether this process has the driver; if not, one that has it runs the test, every launch under the checker of
/// races, bounds and values never written.
fn on_the_driver(name: &str) -> bool {
    on_drivers(name, &[driver()])
}

/// The same once more with a driver beside which there is a cuBLASLt.
fn on_both_drivers(name: &str) -> bool {
    on_drivers(name, &[driver(), driver_with_cublaslt()])
}

fn on_drivers(name: &str, folders: &[Option<&Path>]) -> bool {
    if std::env::var_os(CHILD).is_some() || on_this_machines_driver() {
        return true;
    }
    for folder in folders {
        match folder {
            Some(folder) => drop(again(name, folder, &[("FAKECUDA_CHECK", "1")])),
            None => skipped(),
        }
    }
    false
}

fn open(device: Place) -> Model {
    let options = OpenOptions { device, threads: 1, ..OpenOptions::default() };
    Model::open(&model_folder(), &options).unwrap()
}

/// All seven maps of every layer; B is not zero.
fn adapter() -> Adapter {
    let json = serde_json::json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"});
    let config = LoraConfig::from_json(json.as_object().unwrap().clone()).unwrap();
    let mut adapter = Adapter::new(config, &Config::read(&model_folder()).unwrap(), 1).unwrap();
    let mut random = Random::new(9);
    for slot in adapter.slots().to_vec() {
        let len = slot.at.outputs * slot.at.rank;
        adapter.params_mut()[slot.at.b..][..len].iter_mut().for_each(|b| *b = 0.1 * random.signed() as f32);
    }
    adapter
}

fn ids(seed: u64, len: usize) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..len).map(|_| random.below(1024) as u32).collect()
}

/// A trunk with branches of branches, and a prompt by itself.
fn branches() -> Vec<Vec<u32>> {
    let trunk = ids(1, 9);
    let branch = [trunk.clone(), ids(2, 5)].concat();
    let leaf = |stem: &Vec<u32>, seed, len| [stem.clone(), ids(seed, len)].concat();
    vec![leaf(&branch, 3, 3), leaf(&branch, 4, 4), leaf(&trunk, 5, 2), ids(6, 11)]
}

/// The prompts as one, their last tokens asked.
fn forest(prompts: &[Vec<u32>]) -> (Forest, Vec<Target>) {
    let mut builder = Builder::new(0);
    prompts.iter().for_each(|ids| {
        builder.insert(0, ids);
    });
    let (forest, rows) = builder.build();
    let target = |(row, &token): (&u32, &u32)| Target { row: *row, token };
    let asked = prompts.iter().zip(&rows).flat_map(|(ids, rows)| rows.iter().zip(&ids[1..]).skip(ids.len() / 2));
    let mut targets: Vec<Target> = asked.map(target).collect();
    targets.sort();
    targets.dedup();
    (forest, targets)
}

/// Everything a pass can answer.
struct Answer {
    logits: Vec<f32>,
    log_p: Vec<f32>,
    gradient: Vec<f32>,
    /// The adapter after an update by that gradient, and the moments.
    updated: Vec<f32>,
}

fn answer(
    engine: &dyn Engine,
    prompts: &[Vec<u32>],
    adapter: &Adapter,
    learning: &Learning,
) -> dialoguellm::Result<Answer> {
    let (forest, targets) = forest(prompts);
    let pass = Pass { forest: &forest, adapter: Some(adapter), cancel: &Cancel::default() };
    let logits = engine.logits(&pass, None, &[0, forest.len() as u32 / 2, forest.len() as u32 - 1])?;
    let mut loss = |log_p: &[f32]| Ok((0..log_p.len()).map(|i| -1.0 / (1 + i % 3) as f32).collect());
    let mut learner = engine.learner(adapter, None)?;
    learner.begin()?;
    let log_p = engine.learn(&mut *learner, &pass, &targets, learning, &mut loss)?;
    let gradient = learner.gradient()?;
    learner.norm(1.0, true)?;
    learner.update(&adamw::Options { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.1 }, 1)?;
    let mut updated = learner.values()?.to_vec();
    let moments = learner.moments()?;
    updated.extend(moments.m.iter().chain(&*moments.v));
    Ok(Answer { logits, log_p, gradient, updated })
}

/// The root of the mean square of the difference; NaN is infinite.
fn rms(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |(g, w): (&f32, &f32)| f64::from(g - w).powi(2);
    let mean = got.iter().zip(want).map(square).sum::<f64>() / got.len() as f64;
    if mean.is_nan() { f64::INFINITY } else { mean.sqrt() }
}

/// `got` may be twice as far from `exact` as `plain` is.
fn as_near(what: &str, got: &[f32], plain: &[f32], exact: &[f32]) {
    let (error, plain) = (rms(got, exact), rms(plain, exact));
    assert!(error <= 2.0 * plain, "{what}: the error is {error:e}, the CPU's {plain:e}");
}

/// Everything that a pass answers, with and without randomness, with activations kept and computed again.
fn as_near_as_the_cpu([gpu, cpu, exact]: [&dyn Engine; 3], adapter: &Adapter) {
    let vocabulary = gpu.config().vocab_size as u32;
    let prompts: Vec<Vec<u32>> = branches().iter().map(|ids| ids.iter().map(|id| id % vocabulary).collect()).collect();
    let noise = Noise { seed: 3, step: 2, dropout: 0.2, neftune: 5.0 };
    for (noise, activation_bytes) in [(None, usize::MAX), (Some(noise), 0)] {
        let learning = Learning { noise, activation_bytes, entering: None };
        let [got, plain, exact] = [gpu, cpu, exact].map(|engine| answer(engine, &prompts, adapter, &learning).unwrap());
        as_near("logits", &got.logits, &plain.logits, &exact.logits);
        as_near("log p", &got.log_p, &plain.log_p, &exact.log_p);
        for slot in adapter.slots() {
            let at = slot.at;
            for (which, from, len) in [("A", at.a, at.rank * at.inputs), ("B", at.b, at.outputs * at.rank)] {
                let [got, plain, exact] = [&got, &plain, &exact].map(|answer| &answer.gradient[from..from + len]);
                let name = format!("gradient of {} {which}", slot.spec.site.path(slot.spec.layer));
                as_near(&name, got, plain, exact);
            }
        }
    }
}

#[test]
fn logits_and_gradients_are_as_near_to_exact_as_the_cpus() {
    if !on_both_drivers("logits_and_gradients_are_as_near_to_exact_as_the_cpus") {
        return;
    }
    let (gpu, cpu) = (open(Place::Cuda), open(Place::Cpu));
    let tensors = Arc::new(Tensors::open(&model_folder(), Access::Mapped).unwrap());
    let exact = Llama::open(Cpu::<f64>::new(1, None).unwrap(), gpu.config().clone(), &tensors).unwrap();
    as_near_as_the_cpu([gpu.engine(), cpu.engine(), &exact], &adapter());
    if !on_this_machines_driver() {
        let there = gpu.device().contains("cuBLASLt 13.0.2");
        assert_eq!(fail("product", 0, 0) > 0, there, "products of {}", gpu.device());
    }
}

#[test]
fn weights_of_eight_and_four_bits_are_as_near_too() {
    if !on_the_driver("weights_of_eight_and_four_bits_are_as_near_too") {
        return;
    }
    let tensors = Arc::new(Tensors::open(&model_folder(), Access::Mapped).unwrap());
    for precision in [Precision::Int8, Precision::Int4] {
        let open = |device| OpenOptions { device, precision, threads: 1, ..OpenOptions::default() };
        let [gpu, cpu] = [Place::Cuda, Place::Cpu].map(|place| Model::open(&model_folder(), &open(place)).unwrap());
        let from = Weights { tensors: &tensors, bits: precision.bits(), cancel: &Cancel::default() };
        let exact = Llama::open_from(Cpu::<f64>::new(1, None).unwrap(), gpu.config().clone(), &from).unwrap();
        as_near_as_the_cpu([gpu.engine(), cpu.engine(), &exact], &adapter());
    }
}

/// Leaves f32 weights only what bf16 holds: a GPU rounds embeddings too, which the CPU takes as they are.
fn cut_to_bf16(file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    let (len, rest) = bytes.split_first_chunk_mut::<8>().unwrap();
    let values = &mut rest[u64::from_le_bytes(*len) as usize..];
    values.chunks_exact_mut(4).for_each(|value| value[..2].fill(0));
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn biases_f32_weights_and_odd_widths_are_as_near_too() {
    if !on_the_driver("biases_f32_weights_and_odd_widths_are_as_near_too") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let shape = Shape { hidden: 40, heads: 3, kv_heads: 1, head_dim: 16, layers: 2, tied: false, bias: true };
    let (_, config, adapter) = random::model(folder.path(), shape, "q_proj k_proj down_proj");
    cut_to_bf16(&folder.path().join("model.safetensors"));
    let tensors = Arc::new(Tensors::open(folder.path(), Access::Mapped).unwrap());
    let gpu = Llama::open(Gpu::open().unwrap(), config.clone(), &tensors).unwrap();
    let cpu = Llama::open(Cpu::<bf16>::new(1, None).unwrap(), config.clone(), &tensors).unwrap();
    let exact = Llama::open(Cpu::<f64>::new(1, None).unwrap(), config, &tensors).unwrap();
    as_near_as_the_cpu([&gpu, &cpu, &exact], &adapter);
}

#[test]
fn the_same_pass_gives_the_same_bits_again() {
    if !on_both_drivers("the_same_pass_gives_the_same_bits_again") {
        return;
    }
    let (gpu, adapter) = (open(Place::Cuda), adapter());
    let learning = |activation_bytes| Learning { noise: None, activation_bytes, entering: None };
    let again = |bytes| answer(gpu.engine(), &branches(), &adapter, &learning(bytes)).unwrap();
    let [first, second] = [again(usize::MAX), again(0)];
    assert!(first.logits == second.logits && first.log_p == second.log_p && first.gradient == second.gradient);
}

#[test]
fn a_pass_from_rows_that_were_read_back_has_the_bits_of_the_whole_one() {
    if !on_both_drivers("a_pass_from_rows_that_were_read_back_has_the_bits_of_the_whole_one") {
        return;
    }
    let (gpu, adapter) = (open(Place::Cuda), adapter());
    let (forest, _) = forest(&branches());
    let cancel = Cancel::default();
    let rows = gpu.engine().entering(&Pass { forest: &forest, adapter: None, cancel: &cancel }, 0).unwrap();
    let from = |entering| {
        let learning = Learning { noise: None, activation_bytes: usize::MAX, entering };
        answer(gpu.engine(), &branches(), &adapter, &learning).unwrap()
    };
    let [whole, read] = [None, Some(Entering { layer: 0, rows: &rows })].map(from);
    assert!(whole.log_p == read.log_p && whole.gradient == read.gradient);
}

#[test]
fn threads_take_turns_and_get_what_one_gets() {
    if !on_the_driver("threads_take_turns_and_get_what_one_gets") {
        return;
    }
    let (gpu, adapter) = (open(Place::Cuda), adapter());
    let learning = Learning { noise: None, activation_bytes: usize::MAX, entering: None };
    let ask = &|seed| checksum(&answer(gpu.engine(), &[ids(seed, 4)], &adapter, &learning).unwrap());
    let alone = [50, 51].map(ask);
    let together = std::thread::scope(|scope| {
        let threads = [50, 51].map(|seed| scope.spawn(move || [ask(seed), ask(seed)]));
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!(together, alone.map(|sum| [sum, sum]));
}

#[test]
fn models_side_by_side_open_and_compute_while_another_captures() {
    if !on_the_driver("models_side_by_side_open_and_compute_while_another_captures") {
        return;
    }
    let small = &Small::new();
    let alone = &small.pass(&small.open().unwrap()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(move || {
                for _ in 0..3 {
                    let gpu = small.open().unwrap();
                    (0..3).for_each(|_| assert_eq!(small.pass(&gpu).as_ref(), Ok(alone)));
                }
            });
        }
    });
}

/// The log p of two leaves after every turn of a conversation, with one turn taken back and said otherwise.
fn live(model: Model) -> Vec<f32> {
    let mut conversation = Conversation::new(Arc::new(model), Some(Arc::new(adapter())), Options::default());
    let leaves = [ids(20, 3), ids(21, 3)];
    let leaves: Vec<Leaf> = leaves.iter().map(|ids| Leaf { ids, from: 1 }).collect();
    let mut all = Vec::new();
    for turn in 0..4 {
        conversation.append(&ids(30 + turn, 5 + turn as usize)).unwrap();
        if turn == 2 {
            conversation.truncate(11);
            conversation.append(&ids(40, 4)).unwrap();
        }
        all.extend(conversation.scores_after(&leaves).unwrap().into_iter().flat_map(|score| score.tokens));
    }
    all
}

#[test]
fn a_conversation_continues_its_cache_and_goes_back() {
    if !on_the_driver("a_conversation_continues_its_cache_and_goes_back") {
        return;
    }
    let (got, want) = (live(open(Place::Cuda)), live(open(Place::Cpu)));
    assert_eq!(got.len(), 16);
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() <= 0.05, "{got} and {want}");
    }
}

/// The command with the tiny model on a device; `None` where there is no fake driver.
fn run(arguments: &[&str], device: &str) -> Option<Ran> {
    let mut command = Command::new(command_path());
    let model = model_folder();
    command.args(arguments).args(["--model", model.to_str().unwrap(), "--device", device, "--threads", "1"]);
    Some(Ran::of(with_driver(&mut command, driver()?).output().unwrap()))
}

const DIALOGUES: &str = r#"{"id":"a","turns":[{"speaker":"A","text":"Good.","emotion":"joy"},{"speaker":"B","text":"Oh no","emotion":"fear"}]}
{"id":"b","turns":[{"speaker":"B","text":"Who?","emotion":"fear"}]}
"#;

fn dialogues(folder: &Path) -> String {
    let file = folder.join("dialogues.jsonl");
    std::fs::write(&file, DIALOGUES).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn ten_steps_of_training_follow_the_cpus() {
    let folder = tempfile::tempdir().unwrap();
    let data = format!("jsonl:{}", dialogues(folder.path()));
    let mut losses = Vec::new();
    for device in ["cpu", "cuda"] {
        let out = folder.path().join(device);
        let arguments = ["train", "--data", &data, "--out", out.to_str().unwrap(), "--max-steps", "10", "--quiet"];
        let more = ["--batch", "1", "--epochs", "10", "--learning-rate", "0.002", "--dropout", "0.1", "--window", "1"];
        let Some(ran) = run(&[&arguments[..], &more].concat(), device) else {
            return skipped();
        };
        ran.ok();
        let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let lines = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        losses.push(lines.filter_map(|line| line["loss"].as_f64()).collect::<Vec<_>>());
    }
    let [cpu, cuda] = &losses[..] else { unreachable!("two devices") };
    assert_eq!((cpu.len(), cuda.len()), (10, 10));
    assert!(cpu[9] < cpu[0] - 0.5, "nothing is learned: {cpu:?}");
    for (cpu, cuda) in cpu.iter().zip(cuda) {
        assert!((cpu - cuda).abs() <= 0.02 * cpu, "{losses:?}");
    }
}

#[test]
fn the_command_classifies_on_the_gpu_and_says_where_it_computes() {
    let folder = tempfile::tempdir().unwrap();
    let file = dialogues(folder.path());
    let classify = ["classify", "--input", &file, "--labels", "joy,fear"];
    let Some(info) = run(&["info", "--json"], "auto") else {
        return skipped();
    };
    let device = info.json()["device"].clone();
    assert!(device.as_str().is_some_and(|device| device.starts_with("cuda (")), "{device}");
    let rows = |device| {
        let out = run(&classify, device).unwrap().ok();
        out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    let (gpu, cpu) = (rows("cuda"), rows("cpu"));
    assert_eq!(gpu.len(), 3);
    for (gpu, cpu) in gpu.iter().zip(&cpu) {
        assert_eq!((&gpu["id"], &gpu["turn"], &gpu["label"]), (&cpu["id"], &cpu["turn"], &cpu["label"]));
        let off = gpu["probs"]["joy"].as_f64().unwrap() - cpu["probs"]["joy"].as_f64().unwrap();
        assert!(off.abs() <= 0.02, "{gpu} and {cpu}");
    }
}

#[test]
fn info_tells_whether_cublaslt_multiplies_and_if_not_why() {
    if only_the_fake_driver("info_tells_whether_cublaslt_multiplies_and_if_not_why") {
        return;
    }
    let (Some(without), Some(with)) = (driver(), driver_with_cublaslt()) else { return skipped() };
    let told = |folder, wanted: &str| {
        let mut command = Command::new(command_path());
        command.args(["info", "--json", "--device", "cuda", "--model", model_folder().to_str().unwrap()]);
        let ran = with_driver(&mut command, folder).env("DLLM_CUBLASLT", wanted).output().unwrap();
        Ran::of(ran).json()["device"].as_str().unwrap().to_owned()
    };
    let [without, with, left_out] = [(without, ""), (with, ""), (with, "0")].map(|(folder, on)| told(folder, on));
    assert!(without.contains("own products: ") && !without.contains("cuBLASLt 1"), "{without}");
    assert!(with.contains("cuBLASLt 13.0.2"), "{with}");
    assert!(left_out.contains("own products: DLLM_CUBLASLT is 0"), "{left_out}");
}

#[test]
fn f32_is_refused_on_a_gpu_and_computed_on_the_cpu() {
    let Some(refused) = run(&["info", "--precision", "f32"], "cuda") else {
        return skipped();
    };
    let refused = refused.refusal(5);
    assert!(refused.contains("--precision bf16") && refused.contains("--device cpu"), "{refused}");
    let info = run(&["info", "--json", "--precision", "f32"], "auto").unwrap().json();
    assert!(info["device"].as_str().is_some_and(|device| device.starts_with("cpu (")), "{info}");
}

#[test]
fn a_gpu_that_is_too_small_is_told_with_both_sizes_before_anything_is_loaded() {
    let Some(driver) = driver() else { return skipped() };
    let small = |device: &str| {
        let mut command = Command::new(command_path());
        command.args(["info", "--json", "--model", model_folder().to_str().unwrap(), "--device", device]);
        Ran::of(with_driver(&mut command, driver).env("FAKECUDA_MEMORY", "1000").output().unwrap())
    };
    let sizes = |text: &str| {
        text.contains("weights need 1741312 bytes") && text.contains("1000 of the GPU's 1000 bytes are free")
    };
    let refused = small("cuda").refusal(6);
    assert!(sizes(&refused) && refused.contains("--device cpu"), "{refused}");
    let info = small("auto").json();
    assert!(info["device"].as_str().is_some_and(|device| device.starts_with("cpu (") && sizes(device)), "{info}");
}

#[test]
fn without_a_driver_auto_is_the_cpu_and_cuda_says_why() {
    let run = |device| {
        let mut command = Command::new(command_path());
        command.args(["info", "--json", "--model", model_folder().to_str().unwrap(), "--device", device]);
        Ran::of(command.stdin(Stdio::null()).output().unwrap())
    };
    let info = run("auto").json();
    let device = info["device"].as_str().unwrap();
    if device.starts_with("cuda") {
        common::skipped("this machine has a GPU");
        return;
    }
    assert!(device.starts_with("cpu (there is no NVIDIA driver"), "{device}");
    let refused = run("cuda").refusal(5);
    assert!(refused.contains("no NVIDIA driver") && refused.contains("--device cpu"), "{refused}");
}

/// One process's tries: opens the model and asks it, again and again after failures, and says what came of it.
fn tries() {
    let adapter = adapter();
    let learning = Learning { noise: None, activation_bytes: usize::MAX, entering: None };
    let mut model = None;
    for attempt in 0..3 {
        let options = OpenOptions { device: Place::Cuda, threads: 1, ..OpenOptions::default() };
        let result = match model.take() {
            Some(opened) => Ok(opened),
            None => Model::open(&model_folder(), &options),
        };
        let result = result.and_then(|opened| {
            let answer = answer(opened.engine(), &[ids(7, 4)], &adapter, &learning);
            model = Some(opened);
            answer
        });
        match result {
            Ok(answer) => println!("TRY {attempt} fine {:?}", checksum(&answer)),
            Err(error) => println!("TRY {attempt} {:?} {error}", error.code()),
        }
    }
}

fn checksum(answer: &Answer) -> u64 {
    let all = [&answer.logits, &answer.log_p, &answer.gradient, &answer.updated].into_iter().flatten();
    all.fold(0, |sum: u64, x| sum.rotate_left(7) ^ u64::from(x.to_bits()))
}

/// What the tries said: the status and what followed it.
fn tried(failure: &str) -> Vec<(String, String)> {
    said_by("a_gpu_that_is_lost_stays_lost_and_says_so", failure)
}

fn said_by(test: &str, failure: &str) -> Vec<(String, String)> {
    let said = again(test, driver().unwrap(), &[("FAKECUDA_FAIL", failure)]);
    let lines = said.lines().filter_map(|line| line.split_once("TRY ")).map(|(_, line)| line);
    let parts = lines.map(|line| line.split_once(' ').unwrap().1);
    parts.map(|line| line.split_once(' ').unwrap()).map(|(code, rest)| (code.to_owned(), rest.to_owned())).collect()
}

#[test]
fn a_gpu_that_is_lost_stays_lost_and_says_so() {
    if std::env::var_os(CHILD).is_some() {
        return tries();
    }
    if only_the_fake_driver("a_gpu_that_is_lost_stays_lost_and_says_so") {
        return;
    }
    if driver().is_none() {
        return skipped();
    }
    let lost = format!("{:?}", Code::DeviceLost);
    for failure in ["launch:30", "copy:60", "sync:2"] {
        let tried = tried(failure);
        assert!(tried.iter().all(|(code, _)| *code == lost), "{failure}: {tried:?}");
    }
}

/// A small model's opening and its first pass, and the same pass again.
struct Small {
    _folder: tempfile::TempDir,
    config: Config,
    tensors: Arc<Tensors>,
    adapter: Adapter,
    prompts: Vec<Vec<u32>>,
}

impl Small {
    fn new() -> Self {
        Self::of(40, vec![vec![3, 1, 4, 1], vec![3, 1, 5, 9, 2]])
    }

    /// Wide and long enough for cuBLASLt: the second half's rows are asked, and all that the last layer computes.
    fn wide() -> Self {
        Self::of(64, vec![(0..40).collect()])
    }

    fn of(hidden: usize, prompts: Vec<Vec<u32>>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shape = Shape { hidden, heads: 2, kv_heads: 1, head_dim: 16, layers: 1, tied: true, bias: false };
        let (_, config, adapter) = random::model(folder.path(), shape, "q_proj v_proj down_proj");
        let tensors = Arc::new(Tensors::open(folder.path(), Access::Mapped).unwrap());
        Self { _folder: folder, config, tensors, adapter, prompts }
    }

    fn open(&self) -> Result<Llama<Gpu>, String> {
        self.open_as(None)
    }

    fn open_as(&self, bits: Option<Bits>) -> Result<Llama<Gpu>, String> {
        let from = Weights { tensors: &self.tensors, bits, cancel: &Cancel::default() };
        Llama::open_from(Gpu::open()?, self.config.clone(), &from).map_err(told)
    }

    /// A forest's gradient and a question to a cache.
    fn pass(&self, gpu: &Llama<Gpu>) -> Result<u64, String> {
        let learning = Learning { noise: None, activation_bytes: usize::MAX, entering: None };
        let answer = answer(gpu, &self.prompts, &self.adapter, &learning);
        let (mut cache, cancel) = (gpu.cache(), Cancel::default());
        let kept = Forest::chain(&[2, 7, 1], 0);
        let pass = |forest| Pass { forest, adapter: Some(&self.adapter), cancel: &cancel };
        let sum = checksum(&answer.map_err(told)?);
        gpu.extend(&pass(&kept), &mut cache).map_err(told)?;
        let asked = gpu.logits(&pass(&Forest::chain(&[8, 2], 3)), Some(&cache), &[1]).map_err(told)?;
        Ok(asked.iter().fold(sum, |sum, x| sum.rotate_left(7) ^ u64::from(x.to_bits())))
    }
}

/// A status with its sentence.
fn told(error: dialoguellm::Error) -> String {
    format!("{:?}: {error}", error.code())
}

/// The fake driver's function of that name.
fn fail(class: &str, at: u64, code: u32) -> u64 {
    let class = std::ffi::CString::new(class).unwrap();
    // SAFETY: the library is open in this process, has the function, and stays open; the name ends in a zero.
    unsafe {
        let library = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD);
        assert!(!library.is_null(), "the fake driver is not open");
        let function = libc::dlsym(library, c"fakecuda_fail".as_ptr());
        assert!(!function.is_null(), "the driver is not the fake one");
        let function: unsafe extern "C" fn(*const std::ffi::c_char, u64, u32) -> u64 = std::mem::transmute(function);
        function(class.as_ptr(), at, code)
    }
}

/// Lets each call of `class` fail that `run` makes; how many failures made it answer an error, of how many. `fine` is asked
/// what it answers without a failure, after each.
fn each_call<S>(
    class: &str,
    code: u32,
    start: impl Fn() -> S,
    run: impl Fn(&mut S) -> Result<u64, String>,
    fine: impl Fn(&mut S) -> Result<u64, String>,
) -> (u64, u64) {
    let mut state = start();
    fail(class, 0, 0);
    let want = run(&mut state).unwrap();
    let calls = fail(class, 0, 0);
    let mut told = 0;
    for at in 1..=calls {
        let mut state = start();
        fail(class, at, code);
        let got = run(&mut state);
        assert!(fail(class, 0, 0) >= at, "{class} {at} of {calls} was not reached");
        match got {
            Ok(got) => assert_eq!(got, want, "{class} {at} of {calls}"),
            Err(error) => {
                told += 1;
                let opening = error.starts_with("the GPU cannot be opened: ");
                let status = if class == "alloc" { "OutOfMemory" } else { "Internal" };
                assert!(opening || error.starts_with(status), "{class} {at} of {calls}: {error}");
                let sizes = error.contains("bytes are free");
                assert!(sizes || error.contains(&format!("({code})")), "{class} {at} of {calls}: {error}");
            }
        }
        assert_eq!(fine(&mut state), Ok(want), "after {class} {at} of {calls}");
    }
    println!("{class}: {told} of {calls} calls");
    (told, calls)
}

#[test]
fn a_failure_of_each_call_is_a_status_and_leaves_the_library_usable() {
    const NAME: &str = "a_failure_of_each_call_is_a_status_and_leaves_the_library_usable";
    if sent(NAME, driver()) {
        return;
    }
    let small = Small::new();
    drop(small.open().unwrap()); // so that the driver is there
    // opening and the first pass
    let opened = |gpu: &mut Option<Llama<Gpu>>| {
        let opened = gpu.take().map_or_else(|| small.open(), Ok)?;
        small.pass(gpu.insert(opened))
    };
    let (told, calls) = each_call("alloc", 2, || None, opened, opened);
    assert!(told > calls / 2, "{told} of {calls}");
    let open = |_: &mut ()| small.open().map(|_| 0);
    let (told, calls) = each_call("copy", 1, || (), open, open);
    assert!(told == calls, "{told} of {calls}");
    // the same with weights that are made on the way, and widened in a pass
    let open = |_: &mut ()| small.open_as(Some(Bits::Eight)).map(|_| 0);
    for (class, code) in [("alloc", 2), ("copy", 1)] {
        let (told, calls) = each_call(class, code, || (), open, open);
        assert!(calls > 10 && told == calls, "{class}: {told} of {calls}");
    }
    let whole = small.open_as(Some(Bits::Eight)).unwrap();
    (0..3).for_each(|_| assert!(small.pass(&whole).is_ok()));
    let pass = |_: &mut ()| small.pass(&whole);
    let (told, calls) = each_call("launch", 1, || (), pass, pass);
    assert!(calls > 5 && told == calls, "{told} of {calls}");
    // a pass that is asked for piece by piece, since a graph could not be made, and one that is replayed
    let plain = small.open().unwrap();
    assert!(small.pass(&plain).is_ok());
    fail("graph", 1, 1);
    assert!(small.pass(&plain).is_ok() && fail("graph", 0, 0) == 1);
    let replayed = small.open().unwrap();
    (0..3).for_each(|_| assert!(small.pass(&replayed).is_ok()));
    for (class, gpu) in [("launch", &plain), ("copy", &plain), ("graph", &replayed), ("launch", &replayed)] {
        let pass = |_: &mut ()| small.pass(gpu);
        let (told, calls) = each_call(class, 1, || (), pass, pass);
        assert!(calls > 5 && told == calls, "{class}: {told} of {calls}");
    }
}

#[test]
fn a_failure_of_each_product_of_cublaslt_is_one_too_and_a_replayed_one_has_the_same_bits() {
    const NAME: &str = "a_failure_of_each_product_of_cublaslt_is_one_too_and_a_replayed_one_has_the_same_bits";
    if sent(NAME, driver_with_cublaslt()) {
        return;
    }
    let small = Small::wide();
    let plain = small.open().unwrap();
    let first = small.pass(&plain);
    fail("graph", 1, 1);
    assert!(first.is_ok() && small.pass(&plain) == first && fail("graph", 0, 0) == 1);
    let replayed = small.open().unwrap();
    let again = [(); 3].map(|()| small.pass(&replayed));
    assert!(again.iter().all(|pass| *pass == first) && fail("graph", 0, 0) > 3);
    for gpu in [&plain, &replayed] {
        let pass = |_: &mut ()| small.pass(gpu);
        let (told, calls) = each_call("product", 13, || (), pass, pass);
        assert!(calls >= 5 && told == calls, "{told} of {calls}");
    }
}

/// One process's passes over one model, of a seed, a length and an adapter: the same again and again, then others between.
fn passes() {
    let (model, one, mut other) = (open(Place::Cuda), adapter(), adapter());
    other.params_mut().iter_mut().for_each(|x| *x *= -0.5);
    let learning = Learning { noise: None, activation_bytes: usize::MAX, entering: None };
    let again = [(7, 4, &one); 5];
    let changed = [(8, 4, &one), (7, 4, &other), (7, 4, &other), (7, 6, &one), (8, 4, &other), (7, 4, &one)];
    for (i, (seed, len, adapter)) in again.into_iter().chain(changed).enumerate() {
        match answer(model.engine(), &[ids(seed, len)], adapter, &learning) {
            Ok(answer) => println!("TRY {i} fine {:?}", checksum(&answer)),
            Err(error) => println!("TRY {i} {:?} {error}", error.code()),
        }
    }
}

#[test]
fn a_pass_that_comes_again_is_replayed_with_the_bits_of_plain_launches() {
    const NAME: &str = "a_pass_that_comes_again_is_replayed_with_the_bits_of_plain_launches";
    if std::env::var_os(CHILD).is_some() {
        return passes();
    }
    if only_the_fake_driver(NAME) {
        return;
    }
    if driver().is_none() {
        return skipped();
    }
    // the first call for a graph fails: all is launched plainly
    let plain = said_by(NAME, "graph:1");
    assert!(plain.len() == 11 && plain.iter().all(|(code, _)| code == "fine"), "{plain:?}");
    assert!(plain[..5].iter().all(|pass| pass == &plain[0]) && plain[5] != plain[0] && plain[6] != plain[0]);
    assert_eq!(said_by(NAME, ""), plain);
    for call in ["ends", "makes"].iter().zip(2..) {
        assert_eq!(said_by(NAME, &format!("graph:{}", call.1)), plain, "the call that {} a graph fails", call.0);
    }
    // the call that runs the first graph, and one that runs it or another again: so there are such calls
    for at in [4, 12] {
        let failed = said_by(NAME, &format!("graph:{at}"));
        let other: Vec<_> = failed.iter().zip(&plain).filter(|(failed, plain)| failed != plain).collect();
        assert!(other.len() == 1 && other[0].0.0 == format!("{:?}", Code::Internal), "graph call {at}: {failed:?}");
    }
}

#[test]
fn what_ran_once_runs_again_without_an_allocation() {
    if only_the_fake_driver("what_ran_once_runs_again_without_an_allocation") {
        return;
    }
    if driver().is_none() {
        return skipped();
    }
    // the number of the last allocation that is made at all
    let made = |at: u32| tried(&format!("alloc:{at}")).iter().any(|(code, _)| code != "fine");
    let (mut low, mut high) = (1, 1024);
    assert!(made(low) && !made(high));
    while high - low > 1 {
        let middle = (low + high) / 2;
        if made(middle) { low = middle } else { high = middle }
    }
    let tried = tried(&format!("alloc:{low}"));
    assert!(tried[0].0 != "fine", "allocation {low}, the last one, is of a later pass: {tried:?}");
}
