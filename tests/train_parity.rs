//! Twenty steps are PEFT's: rates, losses, norms and the final adapter of five golden runs, on every ISA present.
//!
//! The runs were made by transformers' Trainer and a loop equal to it (tests/golden/README.md). The allowed distance is
//! 1e-3 of the distance that PEFT itself moved each tensor; rounding alone takes up to 2e-5 of it.

use dialoguellm::Cancel;
use dialoguellm::device::Cpu;
use dialoguellm::files::{Access, Config, Tensors, Tokenizer};
use dialoguellm::model::{Adapter, Llama, Model};
use dialoguellm::train::{Group, Options, Prompt, StepReport, Trainer};
use dialoguellm_kernels::Isa;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

const CASES: [&str; 5] = ["linear", "cosine_min", "constant", "accumulate", "clip"];
const TOKENIZER: &str = r#"{"version":"1.0","model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}"#;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn model(isa: Isa) -> Arc<Model> {
    let config = Config::read(&folder("gqa")).unwrap();
    let tensors = Arc::new(Tensors::open(&folder("gqa"), Access::Mapped).unwrap());
    let engine = Llama::open(Cpu::<f32>::new(2, Some(isa)).unwrap(), config, &tensors).unwrap();
    let tokenizer = Tokenizer::from_bytes(TOKENIZER.as_bytes()).unwrap();
    Arc::new(Model::from_parts(tokenizer, Box::new(engine), "gqa".to_owned()))
}

fn numbers(case: &str, file: &str) -> BTreeMap<String, Vec<f64>> {
    let bytes = std::fs::read(folder(case).join(file)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let read = |(name, view): (String, safetensors::tensor::TensorView)| {
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F64 => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
            Dtype::I64 => data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect(),
            other => panic!("{name} has type {other:?}"),
        };
        (name, values)
    };
    tensors.tensors().into_iter().map(read).collect()
}

/// A group per micro-batch, in file order.
fn groups(case: &str) -> Vec<Group> {
    let mut groups = BTreeMap::<String, Group>::new();
    let all = numbers(case, "batches.safetensors");
    for (name, ids) in all.iter().filter(|(name, _)| name.ends_with(".input_ids")) {
        let labels = &all[&name.replace("input_ids", "labels")];
        let first = labels.iter().position(|&label| label >= 0.0).unwrap().max(1);
        let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
        let micro = name.split('.').next().unwrap();
        let group = groups.entry(micro.to_owned());
        let group = group.or_insert(Group { sample: micro.parse().unwrap(), stage: 0, prompts: vec![] });
        group.prompts.push(Prompt { answer: first..ids.len(), ids, weight: 1.0, choice: None });
    }
    groups.into_values().collect()
}

/// The recipe's names for what case.json says in transformers'.
fn options(case: &str) -> Options {
    let text = std::fs::read(folder(case).join("case.json")).unwrap();
    let case: Value = serde_json::from_slice(&text).unwrap();
    let warmup = case["warmup"].as_f64().unwrap();
    let (steps, ratio) = if warmup >= 1.0 { (warmup as u64, 0.0) } else { (0, warmup) };
    let options = json!({
        "shuffle": false, "epochs": case["epochs"], "batch": case["accumulation"],
        "learning_rate": case["learning_rate"], "schedule": case["lr_scheduler_type"],
        "min_rate": case["lr_scheduler_kwargs"]["min_lr_rate"], "warmup_steps": steps, "warmup_ratio": ratio,
        "beta1": case["betas"][0], "beta2": case["betas"][1], "epsilon": case["eps"],
        "weight_decay": case["weight_decay"], "clip": case["max_grad_norm"],
    });
    serde_json::from_value(options).unwrap()
}

/// The whole run; the final adapter and what every step reported.
fn train(case: &str, isa: Isa, options: Options) -> (Adapter, Vec<StepReport>) {
    let model = model(isa);
    let adapter = Adapter::read(&folder(case).join("initial"), model.engine().config()).unwrap();
    let mut trainer = Trainer::new(model, adapter, groups(case), options).unwrap();
    let mut reports = Vec::new();
    while !trainer.is_done() {
        reports.push(trainer.step(&Cancel::default()).unwrap());
    }
    (trainer.finish().unwrap().0, reports)
}

/// Largest over the tensors of |got - final| / |final - initial|.
fn distance(case: &str, got: &Adapter) -> f64 {
    let config = Config::read(&folder("gqa")).unwrap();
    let read = |name: &str| Adapter::read(&folder(case).join(name), &config).unwrap();
    let (start, end) = (read("initial"), read("final"));
    let norm = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
    let mut worst = 0.0f64;
    for slot in got.slots() {
        let (a, b) = (slot.at.rank * slot.at.inputs, slot.at.rank * slot.at.outputs);
        for tensor in [slot.at.a..slot.at.a + a, slot.at.b..slot.at.b + b] {
            let moved = norm(&end.params()[tensor.clone()], &start.params()[tensor.clone()]);
            let off = norm(&got.params()[tensor.clone()], &end.params()[tensor]) / moved;
            worst = if off.is_nan() { f64::INFINITY } else { worst.max(off) };
        }
    }
    worst
}

#[test]
fn the_final_adapter_is_pefts() {
    for case in CASES.map(|case| format!("train_{case}")) {
        for &isa in Isa::available() {
            let off = distance(&case, &train(&case, isa, options(&case)).0);
            assert!(off <= 1e-3, "{case} {isa:?}: {off:.1e} of the distance moved");
            println!("{case} {isa:?}: {off:.1e}");
        }
    }
}

#[test]
fn every_rate_loss_and_norm_is_trainers() {
    for case in CASES.map(|case| format!("train_{case}")) {
        let golden = numbers(&case, "golden.safetensors");
        let (_, reports) = train(&case, Isa::best(None), options(&case));
        assert_eq!(reports.len(), 20);
        for (i, report) in reports.iter().enumerate() {
            for (name, got, tolerance) in
                [("lr", report.lr, 1e-14), ("loss", report.loss, 1e-5), ("grad_norm", report.grad_norm, 1e-3)]
            {
                let want = golden[name][i];
                assert!((got - want).abs() <= tolerance * want.abs(), "{case} step {i} {name}: {got}, {want}");
            }
        }
    }
}

#[test]
fn small_micro_batches_make_the_same_adapter() {
    let case = "train_accumulate";
    let off = distance(case, &train(case, Isa::best(None), Options { micro_tokens: 1, ..options(case) }).0);
    assert!(off <= 1e-3, "{off:.1e}");
}

/// The measure would see a mistake: each setting changed alone leaves the allowed distance.
#[test]
fn any_other_setting_ends_elsewhere() {
    type Change = (&'static str, fn(&mut Options));
    let changes: [Change; 8] = [
        ("clip", |o| o.clip = 0.0),
        ("clip", |o| o.weight_decay = 0.0),
        ("linear", |o| o.beta1 = 0.91),
        ("linear", |o| o.beta2 = 0.96),
        ("linear", |o| o.warmup_steps = 4),
        ("cosine_min", |o| o.min_rate = Some(0.0)),
        ("accumulate", |o| o.batch = 2),
        ("constant", |o| o.learning_rate *= 1.01),
    ];
    for (case, change) in changes {
        let case = format!("train_{case}");
        let mut options = Options { max_steps: 20, ..options(&case) };
        change(&mut options);
        let off = distance(&case, &train(&case, Isa::best(None), options.clone()).0);
        assert!(off > 1e-3, "{case}: {off:.1e} with {options:?}");
    }
}
