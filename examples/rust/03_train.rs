//! 03: train with progress, stop half-way, save, resume. Usage: 03_train MODEL TRAIN.jsonl OUT

use dialoguellm::Cancel;
use dialoguellm::emotion::Recipe;
use dialoguellm::emotion::run::{Data, Run, Setup, Start};
use dialoguellm::files::dialogues::{Source, Split};
use dialoguellm::model::{Model, OpenOptions};
use std::path::Path;
use std::sync::Arc;

const RECIPE: &str = "[lora]\nrank = 4\n[train]\nepochs = 1\nbatch = 25\nlearning_rate = 2e-3\n";

fn main() -> dialoguellm::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, folder, train, out] = &arguments[..] else { panic!("usage: 03_train MODEL TRAIN.jsonl OUT") };
    let (out, cancel) = (Path::new(out), Cancel::default());
    let model = Arc::new(Model::open(Path::new(folder), &OpenOptions::default())?);
    let dialogues = Source::Jsonl(train.into()).dialogues(Split::Train, None, &cancel)?;
    let begin = |start| {
        let (recipe, train) = (Recipe::from_toml(RECIPE)?, Data::Dialogues(dialogues.clone()));
        Run::new(model.clone(), Setup { recipe, train, dev: None, start, threads: 1, base: None })
    };
    let step = |run: &mut Run| {
        let report = run.step(&cancel)?;
        println!("step {} of {}: loss {:.4}", report.step, report.steps, report.loss);
        Ok::<_, dialoguellm::Error>(report)
    };

    let mut run = begin(Start::New)?;
    loop {
        let report = step(&mut run)?;
        if report.step >= report.steps / 2 {
            break;
        }
    }
    run.save(out)?; // a kill leaves the old checkpoint or the new one

    let mut run = begin(Start::Resume(out))?;
    while !run.is_done() {
        step(&mut run)?;
    }
    run.finish(out, None, &cancel).map(drop)
}
