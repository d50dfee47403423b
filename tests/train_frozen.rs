//! What the layers below the lowest one that learns make of the prompts, computed once: the same training, and files that are
//! whole, found again and checked.

mod common;

use common::golden;
use dialoguellm::files::adapter::{LoraConfig, Targets};
use dialoguellm::files::safetensors::Writer;
use dialoguellm::model::engine::{Entering, Learner, Learning};
use dialoguellm::model::{Adapter, Builder, Model, Pass, Target};
use dialoguellm::train::{Group, Options, Prompt, Trainer};
use dialoguellm::{Cancel, Code, Result};
use dialoguellm_kernels::{Dtype, dropout};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const VOCABULARY: u64 = 61;

fn model(threads: usize, exact: bool) -> Arc<Model> {
    golden::gqa(threads, None, exact)
}

/// Pairs on the upper layer, or on both; B is not zero, so that they matter from the first step.
fn adapter(model: &Model, layers: Option<Vec<usize>>, dropout: f64) -> Adapter {
    let names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"].map(str::to_owned);
    let targets = Targets::Names(names.to_vec());
    let lora =
        LoraConfig { rank: 3, alpha: 6.0, dropout, targets, layers_to_transform: layers, ..LoraConfig::default() };
    let mut adapter = Adapter::new(lora, model.config(), 1).unwrap();
    let value = |i: usize| (dropout::key(4, 0, 0, 0, i as u64) % 200) as f32 / 1000.0 - 0.1;
    adapter.params_mut().iter_mut().enumerate().for_each(|(i, p)| *p = value(i));
    adapter
}

/// Dialogues that begin alike: a trunk that grows, and after each turn an answer.
fn dialogues() -> Vec<Group> {
    let prompt = |d: u64, turn: u64| {
        let seed = |i| if i < 3 { 0 } else { d };
        let mut ids: Vec<u32> =
            (0..6 + 5 * turn).map(|i| (dropout::key(seed(i), 0, 0, 0, i) % VOCABULARY) as u32).collect();
        ids.extend([57, 50 + (d + turn) as u32 % 3]);
        let n = ids.len();
        Prompt { ids, answer: n - 1..n, weight: 1.0, choice: None }
    };
    (0..9)
        .map(|d| Group { sample: d, stage: 0, prompts: (0..2 + d % 3).map(|turn| prompt(d, turn)).collect() })
        .collect()
}

fn options(frozen_once: bool) -> Options {
    Options { batch: 4, epochs: 9, micro_tokens: 70, learning_rate: 1e-2, frozen_once, ..Options::default() }
}

fn trainer(model: Arc<Model>, frozen_once: bool, dropout: f64) -> Trainer {
    let adapter = adapter(&model, Some(vec![1]), dropout);
    Trainer::new(model, adapter, dialogues(), options(frozen_once)).unwrap()
}

fn freeze(trainer: &mut Trainer, kept: &Path) -> Result<()> {
    trainer.freeze(Some(kept), &Cancel::default(), &mut |_| ())
}

fn run(trainer: &mut Trainer, steps: usize) -> Vec<f32> {
    for _ in 0..steps {
        trainer.step(&Cancel::default()).unwrap();
    }
    trainer.adapter().unwrap().params().to_vec()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_pass_that_begins_at_a_layer_has_the_bits_of_one_that_begins_with_the_embedding() {
    for exact in [true, false] {
        let model = model(2, exact);
        let (engine, adapter) = (model.engine(), adapter(&model, Some(vec![1]), 0.0));
        let mut builder = Builder::new(0);
        for prompt in dialogues().iter().flat_map(|group| &group.prompts) {
            builder.insert(0, &prompt.ids);
        }
        let (forest, rows) = builder.build();
        let targets: Vec<Target> = rows.iter().map(|rows| Target { row: *rows.last().unwrap(), token: 5 }).collect();
        let pass = Pass { forest: &forest, adapter: Some(&adapter), cancel: &Cancel::default() };
        let below = engine.entering(&Pass { adapter: None, ..pass }, 1).unwrap();
        let learn = |entering: Option<Entering>| {
            let mut learner: Box<dyn Learner> = engine.learner(&adapter, None).unwrap();
            learner.begin().unwrap();
            let learning = Learning { noise: None, activation_bytes: usize::MAX, entering };
            let mut loss = |log_p: &[f32]| Ok(vec![-1.0 / log_p.len() as f32; log_p.len()]);
            let log_p = engine.learn(&mut *learner, &pass, &targets, &learning, &mut loss)?;
            Ok::<_, dialoguellm::Error>((log_p, learner.gradient()?))
        };
        let from = |layer, rows| learn(Some(Entering { layer, rows }));
        let whole = learn(None).unwrap();
        assert!(whole.1.iter().any(|&g| g != 0.0));
        assert_eq!(from(1, &below).unwrap(), whole);
        let says = |result: Result<_>| result.map(|_: (Vec<f32>, Vec<f32>)| ()).unwrap_err().to_string();
        assert!(says(from(2, &below)).contains("rows enter layer 2, the lowest layer that learns is 1"));
        assert!(says(from(1, &below[1..])).contains(&format!("the forest needs {}", below.len())));
        assert!(engine.entering(&pass, 3).unwrap_err().to_string().contains("the model has 2 layers"));
    }
}

#[test]
fn training_is_the_same_but_for_rounding() {
    for dropout in [0.0, 0.1] {
        let [every, once] = [false, true].map(|once| run(&mut trainer(model(2, true), once, dropout), 12));
        let difference = every.iter().zip(&once).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(difference <= 2e-4, "dropout {dropout}: parameters differ by {difference}");
    }
}

#[test]
fn prompts_that_no_step_takes_are_not_computed() {
    let short = |frozen_once| {
        let model = model(2, true);
        let upper = adapter(&model, Some(vec![1]), 0.0);
        Trainer::new(model, upper, dialogues(), Options { max_steps: 2, ..options(frozen_once) }).unwrap()
    };
    let mut told = Vec::new();
    let mut once = short(true);
    assert_eq!(once.groups_taken(), 8, "two steps of four");
    once.freeze(None, &Cancel::default(), &mut |done| told.push(done)).unwrap();
    assert_eq!(told.last(), Some(&8));
    let [every, once] = [&mut short(false), &mut once].map(|trainer| run(trainer, 2));
    let difference = every.iter().zip(&once).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(difference <= 2e-4, "parameters differ by {difference}");
    assert_eq!(trainer(model(2, true), true, 0.0).groups_taken(), 9, "a later step takes what is left");
}

#[test]
fn any_number_of_threads_a_resumed_run_and_rows_that_are_found_give_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("kept");
    let bits = run(&mut trainer(model(1, false), true, 0.1), 12);
    let mut first = trainer(model(3, false), true, 0.1);
    freeze(&mut first, &kept).unwrap();
    run(&mut first, 6);
    first.save(&dir.path().join("run")).unwrap();
    let [file] = &files(&kept)[..] else { panic!("{:?}", files(&kept)) };
    let made = std::fs::metadata(file).unwrap().modified().unwrap();
    let mut resumed = Trainer::resume(&dir.path().join("run"), model(2, false), dialogues(), options(true)).unwrap();
    freeze(&mut resumed, &kept).unwrap();
    assert_eq!(run(&mut resumed, 6), bits);
    assert_eq!(std::fs::metadata(file).unwrap().modified().unwrap(), made, "the file was made again");
    let error = Trainer::resume(&dir.path().join("run"), model(2, false), dialogues(), options(false)).err().unwrap();
    assert!(error.to_string().contains("frozen_once was true and is false"), "{error}");
}

#[test]
fn rows_belong_to_a_model_its_prompts_and_a_layer() {
    let dir = tempfile::tempdir().unwrap();
    freeze(&mut trainer(model(2, true), true, 0.0), dir.path()).unwrap();
    freeze(&mut trainer(model(2, false), true, 0.0), dir.path()).unwrap();
    let mut fewer = dialogues();
    fewer.pop();
    let model = model(2, true);
    let upper = adapter(&model, Some(vec![1]), 0.0);
    freeze(&mut Trainer::new(model, upper, fewer, options(true)).unwrap(), dir.path()).unwrap();
    assert_eq!(files(dir.path()).len(), 3);
}

#[test]
fn a_foreign_file_is_refused_and_a_stopped_one_is_not_left() {
    let dir = tempfile::tempdir().unwrap();
    let cancel = Cancel::default();
    cancel.set();
    let stopped = trainer(model(2, true), true, 0.0).freeze(Some(dir.path()), &cancel, &mut |_| ());
    assert_eq!(stopped.unwrap_err().code(), Code::Cancelled);
    assert!(files(dir.path()).is_empty());
    freeze(&mut trainer(model(2, true), true, 0.0), dir.path()).unwrap();
    let file = files(dir.path()).pop().unwrap();
    std::fs::copy(golden::folder("gqa").join("model.safetensors"), &file).unwrap();
    assert!(freeze(&mut trainer(model(2, true), true, 0.0), dir.path()).is_err());
    let one = [("rows".to_owned(), Dtype::F32, vec![1, 1])];
    let mut writer = Writer::create(&file, &one, &[]).unwrap();
    writer.write(&[0; 4]).unwrap();
    writer.finish().unwrap();
    let error = freeze(&mut trainer(model(2, true), true, 0.0), dir.path()).unwrap_err();
    assert_eq!(error.code(), Code::BadFile);
    assert!(error.to_string().contains("rows are F32 [1, 1], these prompts need F32"), "{error}");
}

#[test]
fn what_leaves_nothing_frozen_is_refused() {
    let model = model(2, true);
    let all = adapter(&model, None, 0.0);
    let error = Trainer::new(model.clone(), all, dialogues(), options(true)).err().unwrap().to_string();
    assert!(error.contains("layer 0 learns"), "{error}");
    let noisy = Options { neftune: 5.0, ..options(true) };
    let error = Trainer::new(model.clone(), adapter(&model, Some(vec![1]), 0.0), dialogues(), noisy).err().unwrap();
    assert!(error.to_string().contains("neftune is 5, must be 0 where frozen_once is true"), "{error}");
}
