//! 01: label a conversation. Usage: 01_label MODEL

use dialoguellm::emotion::metrics::likeliest;
use dialoguellm::emotion::{Bulk, Classifier, Labels, Template};
use dialoguellm::files::{Dialogue, Turn};
use dialoguellm::model::{Model, OpenOptions};
use std::path::Path;
use std::sync::Arc;

fn main() -> dialoguellm::Result<()> {
    let folder = std::env::args().nth(1).expect("usage: 01_label MODEL");
    let model = Arc::new(Model::open(Path::new(&folder), &OpenOptions::default())?);
    let classifier = Classifier::new(model, None, Template::built_in("dialogue")?, Labels::meld())?;
    let said =
        [("Ann", "We won! What a lovely day!"), ("Bo", "You won? I had no idea."), ("Ann", "You forgot. Again.")];
    let turns = said.map(|(speaker, text)| Turn { speaker: speaker.into(), text: text.into(), ..Turn::default() });
    let dialogue = Dialogue { id: "1".into(), turns: turns.to_vec() };
    for ((speaker, _), p) in said.iter().zip(&classifier.classify(&[dialogue], &Bulk::default())?[0]) {
        let label = likeliest(p);
        println!("{speaker}: {} {:.4}", classifier.labels().names()[label], p[label]);
    }
    Ok(())
}
