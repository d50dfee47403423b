//! 05: several adapters on one model, whose weights are there once. Usage: 05_adapters MODEL ADAPTER..

use dialoguellm::emotion::metrics::likeliest;
use dialoguellm::emotion::{Bulk, Classifier};
use dialoguellm::files::{Dialogue, Turn};
use dialoguellm::model::{Model, OpenOptions};
use std::path::Path;
use std::sync::Arc;

fn main() -> dialoguellm::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, folder, adapters @ ..] = &arguments[..] else { panic!("usage: 05_adapters MODEL ADAPTER..") };
    let model = Arc::new(Model::open(Path::new(folder), &OpenOptions::default())?);
    let turn = Turn { speaker: "Ann".into(), text: "They're turning it down! We keep it!".into(), ..Turn::default() };
    let dialogue = Dialogue { id: "1".into(), turns: vec![turn] };
    for (i, adapter) in (1..).zip(adapters) {
        let classifier = Classifier::open(model.clone(), Path::new(adapter))?;
        let p = &classifier.classify(std::slice::from_ref(&dialogue), &Bulk::default())?[0][0];
        let label = likeliest(p);
        println!("adapter {i}: {} {:.4}", classifier.labels().names()[label], p[label]);
    }
    Ok(())
}
