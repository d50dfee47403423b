//! Same bits on the real network: any number of threads, and a run that was saved and resumed with a model opened anew.

mod common;

use common::golden;
use dialoguellm::Cancel;
use dialoguellm::files::adapter::{LoraConfig, Targets};
use dialoguellm::model::{Adapter, Model};
use dialoguellm::train::{Choice, Group, Loss, Options, Prompt, Trainer};
use dialoguellm_kernels::dropout;
use std::sync::Arc;

const VOCABULARY: u64 = 61;

fn model(threads: usize, exact: bool) -> Arc<Model> {
    golden::gqa(threads, None, exact)
}

fn token(seed: u64, i: u64) -> u32 {
    (dropout::key(seed, 0, 0, 0, i) % VOCABULARY) as u32
}

/// Dialogues: a trunk that grows, and after each turn a question with three candidates of two tokens.
fn dialogues() -> Vec<Group> {
    let candidate = |d: u64, turn: u64, c: u64| {
        let mut ids: Vec<u32> = (0..4 + 5 * turn).map(|i| token(d, i)).collect();
        ids.extend([57, 58, token(d + turn, c), 50 + c as u32]);
        let n = ids.len();
        let choice = Some(Choice { question: turn as u32, gold: c == (d + turn) % 3, bias: 0.0 });
        Prompt { ids, answer: n - 2..n, weight: 1.0, choice }
    };
    let prompts = |d| (0..2 + d % 3).flat_map(move |turn| (0..3).map(move |c| candidate(d, turn, c))).collect();
    (0..9).map(|d| Group { sample: d, stage: 0, prompts: prompts(d) }).collect()
}

fn options(loss: Loss) -> Options {
    Options { loss, batch: 4, epochs: 7, micro_tokens: 70, learning_rate: 1e-2, neftune: 5.0, ..Options::default() }
}

fn trainer(model: Arc<Model>, loss: Loss) -> Trainer {
    let lora = LoraConfig { rank: 3, alpha: 6.0, dropout: 0.1, targets: Targets::AllLinear, ..LoraConfig::default() };
    let adapter = Adapter::new(lora, model.engine().config(), 1).unwrap();
    Trainer::new(model, adapter, dialogues(), options(loss)).unwrap()
}

fn run(trainer: &mut Trainer, steps: usize) -> Vec<u32> {
    for _ in 0..steps {
        trainer.step(&Cancel::default()).unwrap();
    }
    trainer.adapter().unwrap().params().iter().map(|p| p.to_bits()).collect()
}

#[test]
fn any_number_of_threads_makes_the_same_bits() {
    for exact in [true, false] {
        for loss in [Loss::Answer, Loss::Choice] {
            let bits = |threads| run(&mut trainer(model(threads, exact), loss), 6);
            let one = bits(1);
            for threads in [2, 3, 7] {
                assert!(bits(threads) == one, "{threads} threads, {loss:?}, f32 {exact}");
            }
        }
    }
}

#[test]
fn ten_steps_a_checkpoint_and_ten_steps_are_twenty() {
    let dir = tempfile::tempdir().unwrap();
    for exact in [true, false] {
        for loss in [Loss::Answer, Loss::Sequence, Loss::Choice] {
            let unbroken = run(&mut trainer(model(2, exact), loss), 20);
            let mut first = trainer(model(2, exact), loss);
            run(&mut first, 10);
            first.save(&dir.path().join("run")).unwrap();
            drop(first);
            let resumed = Trainer::resume(&dir.path().join("run"), model(1, exact), dialogues(), options(loss));
            assert!(run(&mut resumed.unwrap(), 10) == unbroken, "{loss:?}, f32 {exact}");
        }
    }
}

#[test]
fn a_dialogue_costs_its_trunk_once() {
    let mut trainer = trainer(model(2, true), Loss::Choice);
    let report = trainer.step(&Cancel::default()).unwrap();
    assert!(report.tokens * 3 < report.linear_tokens, "{} of {}", report.tokens, report.linear_tokens);
}
