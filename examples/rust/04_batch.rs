//! 04: label every turn of a file of dialogues. Usage: 04_batch MODEL ADAPTER DIALOGUES.jsonl

use dialoguellm::Cancel;
use dialoguellm::emotion::metrics::likeliest;
use dialoguellm::emotion::{Bulk, Classifier};
use dialoguellm::files::dialogues::{Source, Split};
use dialoguellm::model::{Model, OpenOptions};
use std::path::Path;
use std::sync::Arc;

fn main() -> dialoguellm::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, folder, adapter, file] = &arguments[..] else { panic!("usage: 04_batch MODEL ADAPTER DIALOGUES.jsonl") };
    let model = Arc::new(Model::open(Path::new(folder), &OpenOptions::default())?);
    let classifier = Classifier::open(model, Path::new(adapter))?;
    let dialogues = Source::Jsonl(file.into()).dialogues(Split::Test, None, &Cancel::default())?;
    for (i, turns) in classifier.classify(&dialogues, &Bulk::default())?.iter().enumerate() {
        let labels: Vec<&str> = turns.iter().map(|p| classifier.labels().names()[likeliest(p)].as_str()).collect();
        println!("{i}: {}", labels.join(" "));
    }
    Ok(())
}
