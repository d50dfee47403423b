//! 02: a live chat, a turn a line as `Name: text`. Usage: 02_live MODEL

use dialoguellm::conversation::Options;
use dialoguellm::emotion::metrics::likeliest;
use dialoguellm::emotion::{Classifier, Labels, Live, Template};
use dialoguellm::model::{Model, OpenOptions};
use std::path::Path;
use std::sync::Arc;

fn main() -> dialoguellm::Result<()> {
    let folder = std::env::args().nth(1).expect("usage: 02_live MODEL");
    let model = Arc::new(Model::open(Path::new(&folder), &OpenOptions::default())?);
    let classifier = Arc::new(Classifier::new(model, None, Template::built_in("dialogue")?, Labels::meld())?);
    let mut talk = Live::new(classifier.clone(), Options::default()); // Options::cancel stops a call from any thread
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let Some((speaker, text)) = line.split_once(": ") else { continue };
        let (p, _) = talk.add_turn(speaker, text)?; // costs this turn's tokens alone
        let label = likeliest(&p);
        println!("{} {:.4}", classifier.labels().names()[label], p[label]);
    }
    println!("{} turns", talk.turns().len());
    Ok(())
}
