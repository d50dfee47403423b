//! Proves the bookkeeping of bulk classification against the plainest way to do it, on an engine whose answers hash the
//! whole path.

use super::super::testing::{classifier, dialogues, labels, model, template};
use super::*;
use crate::files::dialogues::Turn;
use crate::model::Forest;
use std::sync::atomic::Ordering;

const NAMES: [&str; 3] = ["joy", "fear", "no emotion"];

/// Label scores of one turn, every label with a pass and a forest of one span of its own.
fn alone(classifier: &Classifier, dialogue: &Dialogue, t: usize) -> Vec<f32> {
    let (prompter, engine) = (classifier.prompter(), classifier.model().engine());
    let question = prompter.question(classifier.model().tokenizer(), &prompter.script(&dialogue.turns), t).unwrap();
    let score = |label: usize| {
        let ids = question.whole(label);
        let forest = Forest::chain(&ids, 0);
        let pass = Pass { forest: &forest, adapter: None, cancel: &Cancel::default() };
        let target = |i: usize| Target { row: i as u32 - 1, token: ids[i] };
        let targets: Vec<Target> = (question.prompt.len()..ids.len()).map(target).collect();
        engine.log_probs(&pass, None, &targets).unwrap().into_iter().map(f64::from).sum::<f64>() as f32
    };
    (0..classifier.labels().len()).map(score).collect()
}

fn bulk(budget: usize) -> Bulk {
    Bulk { budget, ..Bulk::default() }
}

fn scores(classifier: &Classifier, dialogues: &[Dialogue], budget: usize) -> Scored {
    classifier.scores(dialogues, &bulk(budget), &mut |_| ()).unwrap()
}

#[test]
fn scores_in_bulk_are_those_of_every_turn_alone() {
    let dialogues = dialogues(40);
    let paper = || Template { max_tokens: None, ..Template::built_in("dialoguellm").unwrap() };
    for template in [template(""), template("window = 2"), template("window = 0\nbos = \"never\""), paper()] {
        for names in [&NAMES[..], &["joy", "joyful"]] {
            let (classifier, _) = classifier(4000, template.clone(), names);
            let alone: Vec<Vec<Vec<f32>>> = dialogues
                .iter()
                .map(|dialogue| (0..dialogue.turns.len()).map(|t| alone(&classifier, dialogue, t)).collect())
                .collect();
            for budget in [1, 500, usize::MAX] {
                assert!(scores(&classifier, &dialogues, budget).scores == alone, "{} {budget}", template.name);
            }
        }
    }
}

#[test]
fn what_a_turn_or_a_word_did_is_the_difference_to_the_prompt_without_it() {
    let turn = |speaker: &str, text: &str| Turn { speaker: speaker.into(), text: text.into(), ..Turn::default() };
    let turns = [turn("Ann", "What  a day"), turn("Bo", "No!"), turn("Ann", "We won it")];
    let answer = |classifier: &Classifier, turns: &[Turn]| {
        let dialogue = Dialogue { id: "d".into(), turns: turns.to_vec() };
        classifier.probabilities(&alone(classifier, &dialogue, turns.len() - 1))
    };
    for template in [template(""), template("window = 1")] {
        let (classifier, _) = classifier(4000, template, &NAMES);
        for budget in [1, usize::MAX] {
            let why = classifier.why(&turns, None, Method::LeaveOutWords, &bulk(budget)).unwrap();
            let whole = answer(&classifier, &turns);
            assert_eq!(why.probabilities, whole);
            assert!(whole.iter().all(|&p| p <= whole[why.label]));
            let expect = |turn: usize, part: Option<Range<usize>>, rest: &[Turn]| {
                let without = answer(&classifier, rest)[why.label];
                Influence { turn, part, without: Some(without), change: whole[why.label].ln() - without.ln() }
            };
            assert_eq!(
                why.turns,
                [expect(0, None, &turns[1..]), expect(1, None, &[turns[0].clone(), turns[2].clone()])]
            );
            let with = |i: usize, text: &str| {
                let mut rest = turns.clone();
                rest[i].text = text.into();
                rest
            };
            let words = [
                expect(0, Some(0..4), &with(0, "a day")),
                expect(0, Some(6..7), &with(0, "What day")),
                expect(0, Some(8..11), &with(0, "What  a")),
                expect(2, Some(0..2), &with(2, "won it")),
                expect(2, Some(3..6), &with(2, "We it")),
                expect(2, Some(7..9), &with(2, "We won")),
            ];
            assert_eq!(why.words, words, "a word that is alone cannot be left out");
            let other = classifier.why(&turns, Some(2), Method::LeaveOutTurns, &bulk(budget)).unwrap();
            assert!(other.label == 2 && other.words.is_empty() && other.turns.len() == 2);
        }
        assert_eq!(
            classifier.why(&[], None, Method::LeaveOutTurns, &bulk(1)).unwrap_err().code(),
            Code::InvalidArgument
        );
        assert_eq!(
            classifier.why(&turns, Some(3), Method::LeaveOutTurns, &bulk(1)).unwrap_err().code(),
            Code::InvalidArgument
        );
    }
}

#[test]
fn threads_do_not_change_the_scores() {
    let dialogues = dialogues(100);
    let (classifier, _) = classifier(4000, template(""), &NAMES);
    let with = |threads| classifier.scores(&dialogues, &Bulk { threads, ..bulk(1000) }, &mut |_| ()).unwrap();
    assert_eq!(with(1), with(3));
}

#[test]
fn forests_stay_within_twice_the_budget_and_a_question() {
    let (classifier, dials) = classifier(4000, template(""), &NAMES);
    let scored = scores(&classifier, &dialogues(60), 300);
    let largest = dials.largest.load(Ordering::Relaxed);
    assert!(largest < 2 * 300 + 400, "{largest}");
    assert_eq!(scored.tokens, dials.computed.load(Ordering::Relaxed));
    assert!(scored.tokens < scored.linear_tokens);
}

#[test]
fn a_dialogue_costs_its_trunk_and_a_leaf_a_turn() {
    let turn = |text: &str| Turn { speaker: "A".into(), text: text.into(), ..Turn::default() };
    let dialogue = Dialogue { id: "d".into(), turns: vec![turn("xx"), turn("yyy")] };
    let (classifier, _) = classifier(4000, template("bos = \"never\""), &["joy", "sad"]);
    let scored = scores(&classifier, &[dialogue], usize::MAX);
    // tokens: ` j`, `oy`, `: ` and `\nE` are one each, every other letter is one; an answer's last one is not computed
    let question = 1 + "motion of A".len();
    let leaves = [":", " j"].len() + [": ", "s", "a"].len();
    let trunk = "Which?".len() + ["\n", "A", ": ", "x", "x"].len() + ["\n", "A", ": ", "y", "y", "y"].len();
    assert_eq!(scored.tokens, trunk + 2 * (question + leaves));
}

#[test]
fn labels_of_one_token_cost_no_row() {
    let (classifier, dials) = classifier(4000, template("answer = \"{{ label }}\""), &["x", "y"]);
    let turn = Turn { speaker: "A".into(), text: "b".into(), ..Turn::default() };
    let dialogue = Dialogue { id: "d".into(), turns: vec![turn] };
    let question = classifier.questions(&dialogue, &Cancel::default()).unwrap().remove(0);
    scores(&classifier, &[dialogue], 1);
    assert_eq!(dials.computed.load(Ordering::Relaxed), question.prompt.len());
}

#[test]
fn probabilities_are_calibrated_and_sum_to_one() {
    let (model, _) = model(4000);
    let classifier = Classifier::new(model, None, template(""), labels(&NAMES)).unwrap().calibrated(2.0);
    let got = classifier.probabilities(&[2.0, 0.0, 2.0]);
    let (e, total) = (1f64.exp(), 2.0 * 1f64.exp() + 1.0);
    for (got, want) in got.iter().zip([e / total, 1.0 / total, e / total]) {
        assert!((f64::from(*got) - want).abs() <= 1e-7);
    }
}

#[test]
fn progress_counts_turns_up_to_all() {
    let dialogues = dialogues(30);
    let (classifier, _) = classifier(4000, template(""), &NAMES);
    let mut told = vec![0];
    classifier.scores(&dialogues, &bulk(200), &mut |done| told.push(done)).unwrap();
    assert!(told.is_sorted() && told.len() > 3);
    assert_eq!(told.last(), Some(&dialogues.iter().map(|dialogue| dialogue.turns.len()).sum()));
}

#[test]
fn nothing_to_score_is_nothing_scored() {
    let (classifier, dials) = classifier(4000, template(""), &NAMES);
    assert_eq!(scores(&classifier, &[], 100), Scored::default());
    assert_eq!(dials.passes.load(Ordering::Relaxed), 0);
}

#[test]
fn a_nan_is_an_error_that_names_dialogue_and_turn() {
    let (classifier, dials) = classifier(4000, template(""), &NAMES);
    dials.nan_from.store(1, Ordering::Relaxed);
    let error = classifier.classify(&dialogues(3), &Bulk::default()).unwrap_err();
    assert_eq!(error.code(), Code::Numeric);
    assert!(error.text().starts_with("dialogue 1, turn 1: "), "{error}");
}

#[test]
fn a_cancelled_call_says_so() {
    let (classifier, _) = classifier(4000, template(""), &NAMES);
    let bulk = Bulk::default();
    bulk.cancel.set();
    assert_eq!(classifier.classify(&dialogues(3), &bulk).unwrap_err().code(), Code::Cancelled);
}

#[test]
fn marked_turns_are_those_with_a_label() {
    let mut dialogues = dialogues(2);
    dialogues[0].turns.truncate(1);
    dialogues[1].turns.truncate(2);
    dialogues[1].turns[1].emotion = Some("fear".into());
    let scored = Scored { scores: vec![vec![vec![0.0]], vec![vec![1.0], vec![2.0]]], ..Scored::default() };
    let marked = scored.marked(&dialogues, &labels(&NAMES)).unwrap();
    assert_eq!(marked, Marked { scores: vec![vec![2.0]], gold: vec![1], dialogues: vec![0..0, 0..1] });
}

#[test]
fn a_card_of_another_base_is_refused() {
    let (model, _) = model(4000);
    let card = Card::new(labels(&NAMES), template(""), "other");
    assert_eq!(Classifier::with_card(model, None, card).err().unwrap().code(), Code::BadFile);
}

#[test]
fn the_terminator_that_was_decided_on_is_on_the_card() {
    let (classifier, _) = classifier(4000, template(""), &["joy", "joyful"]);
    assert_eq!(classifier.card().labels.terminator(), Some(crate::emotion::Terminator::Eos));
}
