//! Live, alone and in bulk on the real network: a label's probability is the same whatever way the timeline came about.

mod common;

use common::golden;
use dialoguellm::Cancel;
use dialoguellm::conversation::{Conversation, Leaf, Options, Sampling};
use dialoguellm::files::Config;
use dialoguellm::model::{Adapter, Builder, Forest, Model, Pass, Target};
use dialoguellm_kernels::{Isa, dropout};
use std::sync::Arc;

/// The golden model `gqa` on every ISA, in f32 and bf16.
fn models() -> impl Iterator<Item = (String, Arc<Model>)> {
    let open = |isa: Isa, exact: bool| (format!("{isa:?} f32 {exact}"), golden::gqa(2, Some(isa), exact));
    Isa::available().iter().flat_map(move |&isa| [true, false].map(|exact| open(isa, exact)))
}

fn adapter() -> Arc<Adapter> {
    let folder = golden::folder("gqa");
    Arc::new(Adapter::read(&folder.join("adapter"), &Config::read(&folder).unwrap()).unwrap())
}

fn ids(seed: u64, len: u64) -> Vec<u32> {
    (0..len).map(|i| (dropout::key(seed, 0, 0, 0, i) % 61) as u32).collect()
}

/// Turns of a dialogue, and three labels of two tokens behind a question.
fn turns() -> Vec<Vec<u32>> {
    (1..7).map(|turn| ids(turn, 3 + turn % 4)).collect()
}

fn leaves() -> Vec<Vec<u32>> {
    (0..3).map(|c| [vec![50, 51, 52], ids(90 + c, 2)].concat()).collect()
}

fn live(conversation: &Conversation) -> Vec<Vec<f32>> {
    let leaves = leaves();
    let leaves: Vec<Leaf> = leaves.iter().map(|ids| Leaf { ids, from: 3 }).collect();
    conversation.scores_after(&leaves).unwrap().into_iter().map(|score| score.tokens).collect()
}

fn ask(model: &Model, forest: &Forest, targets: &[Target]) -> Vec<f32> {
    let adapter = adapter();
    let pass = Pass { forest, adapter: Some(&adapter), cancel: &Cancel::default() };
    model.engine().log_probs(&pass, None, targets).unwrap()
}

/// Every label after every turn: a forest of the whole dialogue in one pass.
fn bulk(model: &Model) -> Vec<Vec<Vec<f32>>> {
    let (turns, mut builder) = (turns(), Builder::new(0));
    for turn in 1..=turns.len() {
        for leaf in leaves() {
            builder.insert(0, &[&turns[..turn].concat(), &leaf[..4]].concat());
        }
    }
    let (forest, rows) = builder.build();
    let of_leaf = |rows: &Vec<u32>, leaf: &Vec<u32>| {
        let n = rows.len();
        [Target { row: rows[n - 2], token: leaf[3] }, Target { row: rows[n - 1], token: leaf[4] }]
    };
    let targets: Vec<Target> = rows.iter().zip(leaves().iter().cycle()).flat_map(|(r, l)| of_leaf(r, l)).collect();
    let all = ask(model, &forest, &targets);
    all.chunks(6).map(|turn| turn.chunks(2).map(<[f32]>::to_vec).collect()).collect()
}

/// One linear prompt at a time, nothing shared.
fn alone(model: &Model, text: &[u32]) -> Vec<Vec<f32>> {
    let one = |leaf: &Vec<u32>| {
        let (n, forest) = (text.len() as u32, Forest::chain(&[text, &leaf[..4]].concat(), 0));
        ask(model, &forest, &[Target { row: n + 2, token: leaf[3] }, Target { row: n + 3, token: leaf[4] }])
    };
    leaves().iter().map(one).collect()
}

fn assert_same(name: &str, what: &str, a: &[Vec<f32>], b: &[Vec<f32>]) {
    assert!(!a.is_empty() && a.concat().len() == b.concat().len(), "{name}: {what} have different lengths");
    let pairs = a.concat().into_iter().zip(b.concat());
    let worst =
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0f32, |w, d| if d.is_nan() { f32::INFINITY } else { w.max(d) });
    assert!(worst <= 0.0, "{name}: {what} differ by {worst:e}");
}

#[test]
fn live_alone_and_in_bulk_are_the_same() {
    for (name, model) in models() {
        let mut conversation = Conversation::new(model.clone(), Some(adapter()), Options::default());
        for (turn, bulk) in turns().iter().zip(bulk(&model)) {
            conversation.append(turn).unwrap();
            assert_same(&name, "live and bulk", &live(&conversation), &bulk);
            assert_same(&name, "live and alone", &live(&conversation), &alone(&model, conversation.tokens()));
        }
    }
}

#[test]
fn after_going_back_rebuilding_and_restoring_it_is_as_fresh() {
    for (name, model) in models() {
        let fresh = |text: &[u32]| {
            let mut conversation = Conversation::new(model.clone(), Some(adapter()), Options::default());
            conversation.append(text).unwrap();
            conversation
        };
        let text = turns().concat();
        let mut conversation = fresh(&text);
        conversation.append(&ids(40, 9)).unwrap();
        conversation.truncate(text.len());
        assert_same(&name, "rolled back and fresh", &live(&conversation), &live(&fresh(&text)));
        let shorter = [&text[..4], &text[12..]].concat();
        assert_eq!(conversation.rebuild(&shorter).unwrap(), text.len() - 12);
        assert_same(&name, "rebuilt and fresh", &live(&conversation), &live(&fresh(&shorter)));
        let snapshot = fresh(&text).snapshot();
        conversation.restore(&snapshot).unwrap();
        assert_same(&name, "restored and fresh", &live(&conversation), &live(&fresh(&text)));
    }
}

#[test]
fn generated_text_is_what_appending_it_would_predict() {
    for (name, model) in models() {
        let mut conversation = Conversation::new(model.clone(), Some(adapter()), Options::default());
        conversation.append(&ids(7, 6)).unwrap();
        let sampling = Sampling { max_tokens: 12, ..Sampling::default() };
        let text = conversation.generate(&sampling, &mut |_| true).unwrap().tokens;
        let mut again = Conversation::new(model, Some(adapter()), Options::default());
        again.append(&[ids(7, 6), text].concat()).unwrap();
        assert_same(&name, "generated and appended", &live(&conversation), &live(&again));
    }
}
