//! Proves that a conversation read live has the probabilities of the same turns in bulk, whatever happened before, and
//! that it costs what it says.

use super::super::classifier::Bulk;
use super::super::template::Template;
use super::super::testing::{Dials, classifier, dialogues, template};
use super::*;
use std::sync::atomic::Ordering;

const NAMES: [&str; 3] = ["joy", "fear", "no emotion"];

/// The probabilities of the last of `turns`, in bulk.
fn bulk(classifier: &Classifier, turns: &[Turn]) -> Vec<f32> {
    let dialogue = Dialogue { id: "d".into(), turns: turns.to_vec() };
    classifier.classify(&[dialogue], &Bulk::default()).unwrap().remove(0).pop().unwrap()
}

fn long_dialogue(turns: usize) -> Vec<Turn> {
    dialogues(100).into_iter().flat_map(|dialogue| dialogue.turns).take(turns).collect()
}

fn live(classifier: &Arc<Classifier>) -> Live {
    Live::new(classifier.clone(), Options::default())
}

fn computed(dials: &Dials) -> usize {
    dials.computed.swap(0, Ordering::Relaxed)
}

#[test]
fn live_probabilities_are_those_in_bulk() {
    let paper = Template { max_tokens: None, ..Template::built_in("dialoguellm").unwrap() };
    for template in [template(""), template("window = 2"), template("window = 0"), paper] {
        for names in [&NAMES[..], &["joy", "joyful"]] {
            let (classifier, _) = classifier(4000, template.clone(), names);
            let turns = long_dialogue(12);
            let mut live = live(&classifier);
            for t in 0..turns.len() {
                let (probabilities, _) = live.add_turn(&turns[t].speaker, &turns[t].text).unwrap();
                assert_eq!(probabilities, bulk(&classifier, &turns[..=t]), "{} {t}", template.name);
            }
        }
    }
}

#[test]
fn what_is_seen_is_asked_once_and_only_where_it_is_shown() {
    let ask = |template: Template, visual: Option<&str>| {
        let (classifier, _) = classifier(4000, template, &NAMES);
        let (mut live, mut asked) = (live(&classifier), 0);
        let said = Turn { speaker: "A".into(), text: "b".into(), visual: visual.map(Into::into), ..Turn::default() };
        live.push_seen(said, |turn| {
            asked += 1;
            Ok(Some(format!("{} smiles", turn.speaker)))
        })
        .unwrap();
        assert_eq!(live.ask().unwrap(), bulk(&classifier, live.turns()));
        let restored = Live::restore(classifier, Options::default(), &live.save()).unwrap().0;
        assert_eq!(restored.turns(), live.turns());
        (asked, live.turns()[0].visual.clone())
    };
    let blind = Template { context: "{{ target.text }}\n".into(), ..template("") };
    assert_eq!(ask(template(""), None), (1, Some("A smiles".into())));
    assert_eq!(ask(template(""), Some("")), (1, Some("A smiles".into())));
    assert_eq!(ask(template(""), Some("A frowns")), (0, Some("A frowns".into())));
    assert_eq!(ask(blind, None), (0, None));
}

#[test]
fn where_nothing_can_be_told_of_what_is_seen_the_turns_are_as_before() {
    let (classifier, _) = classifier(4000, template(""), &NAMES);
    let mut live = live(&classifier);
    let failed = live.push_seen(Turn::default(), |_| Err(Error::invalid("a broken film"))).unwrap_err();
    assert_eq!((failed.to_string().as_str(), live.turns().len(), live.tokens()), ("a broken film", 0, 0));
}

#[test]
fn a_turn_costs_its_own_tokens_and_asking_costs_a_leaf() {
    let (classifier, dials) = classifier(4000, template("bos = \"never\""), &["x", "y"]);
    let mut live = live(&classifier);
    let said = |text: &str| Turn { speaker: "A".into(), text: text.into(), ..Turn::default() };
    live.push(said("first")).unwrap();
    computed(&dials);
    // the line end that closes a line is one token with the `E` of the question, so it waits for the next line
    let heard = live.push(said("second")).unwrap();
    assert_eq!(heard, Heard { computed: ["\n", "A", ": "].len() + "second".len(), dropped: 0 });
    assert_eq!(computed(&dials), heard.computed);
    live.ask().unwrap();
    // a line end with the `E`, and a colon with the space that both answers begin with
    assert_eq!(computed(&dials), 1 + "motion of A".len() + 1);
}

#[test]
fn going_back_costs_nothing_and_leaves_no_trace() {
    let (classifier, dials) = classifier(4000, template(""), &NAMES);
    let turns = long_dialogue(10);
    let mut live = live(&classifier);
    for turn in &turns[..6] {
        live.push(turn.clone()).unwrap();
    }
    computed(&dials);
    live.rollback(3).unwrap();
    assert_eq!(computed(&dials), 0);
    assert_eq!(live.ask().unwrap(), bulk(&classifier, &turns[..3]));
    live.push(turns[7].clone()).unwrap();
    let want = bulk(&classifier, &[&turns[..3], &turns[7..8]].concat());
    assert_eq!(live.ask().unwrap(), want);
}

#[test]
fn going_back_to_the_start_begins_anew() {
    let (classifier, _) = classifier(4000, template(""), &NAMES);
    let turns = long_dialogue(4);
    let mut live = live(&classifier);
    live.push(turns[0].clone()).unwrap();
    live.rollback(1).unwrap();
    assert_eq!(live.ask().unwrap_err().code(), Code::InvalidArgument);
    live.push(turns[1].clone()).unwrap();
    assert_eq!(live.ask().unwrap(), bulk(&classifier, &turns[1..2]));
    assert!(live.rollback(2).unwrap_err().text().contains("1 are held"));
}

#[test]
fn a_full_context_drops_the_oldest_turns_and_says_what_it_cost() {
    let (classifier, dials) = classifier(200, template(""), &NAMES);
    let mut live = live(&classifier);
    let mut drops = 0;
    for turn in long_dialogue(60) {
        let held = live.turns().len();
        computed(&dials);
        let heard = live.push(turn).unwrap();
        assert_eq!(computed(&dials), heard.computed);
        assert_eq!(live.turns().len(), held + 1 - heard.dropped);
        drops += usize::from(heard.dropped > 0);
        assert_eq!(live.ask().unwrap(), bulk(&classifier, live.turns()));
    }
    assert_eq!(live.turns().len() + live.dropped(), 60);
    // room is made for several turns at once
    assert!((5..40).contains(&drops), "{drops}");
}

#[test]
fn a_conversation_that_never_ends_stays_within_its_own_limit() {
    let (classifier, _) = classifier(4000, template("window = 30"), &NAMES);
    let options = Options { context: 150, ..Options::default() };
    let mut live = Live::new(classifier.clone(), options);
    for turn in long_dialogue(40) {
        live.push(turn).unwrap();
        assert!(live.tokens() <= 150);
        assert_eq!(live.ask().unwrap(), bulk(&classifier, live.turns()));
    }
    assert!(live.dropped() > 0);
}

#[test]
fn a_turn_that_does_not_fit_alone_is_refused_and_changes_nothing() {
    let (classifier, _) = classifier(200, template(""), &NAMES);
    let turns = long_dialogue(2);
    let mut live = live(&classifier);
    live.push(turns[0].clone()).unwrap();
    let error = live.push(Turn { text: "secret ".repeat(100), ..Turn::default() }).unwrap_err();
    assert_eq!(error.code(), Code::ContextFull);
    assert!(!error.text().contains("secret"));
    assert_eq!(live.turns(), &turns[..1]);
    assert_eq!(live.ask().unwrap(), bulk(&classifier, &turns[..1]));
}

#[test]
fn a_cancelled_turn_changes_nothing() {
    let (classifier, _) = classifier(4000, template(""), &NAMES);
    let turns = long_dialogue(3);
    let options = Options::default();
    let cancel = options.cancel.clone();
    let mut live = Live::new(classifier.clone(), options);
    live.push(turns[0].clone()).unwrap();
    cancel.set();
    assert_eq!(live.push(turns[1].clone()).unwrap_err().code(), Code::Cancelled);
    cancel.clear();
    assert_eq!(live.ask().unwrap(), bulk(&classifier, &turns[..1]));
    live.push(turns[2].clone()).unwrap();
    assert_eq!(live.ask().unwrap(), bulk(&classifier, &[&turns[..1], &turns[2..]].concat()));
}

#[test]
fn a_restored_conversation_goes_on_as_if_it_had_never_stopped() {
    let (classifier, _) = classifier(200, template(""), &NAMES);
    let turns = long_dialogue(40);
    let mut live = live(&classifier);
    for turn in &turns[..30] {
        live.push(turn.clone()).unwrap();
    }
    let (mut restored, heard) = Live::restore(classifier.clone(), Options::default(), &live.save()).unwrap();
    assert_eq!((heard.computed, heard.dropped), (live.tokens(), 0));
    assert_eq!((restored.turns(), restored.dropped()), (live.turns(), live.dropped()));
    for turn in &turns[30..] {
        restored.push(turn.clone()).unwrap();
        live.push(turn.clone()).unwrap();
        assert_eq!(restored.ask().unwrap(), live.ask().unwrap());
    }
}

#[test]
fn an_empty_conversation_can_be_saved() {
    let (classifier, _) = classifier(4000, template(""), &NAMES);
    let saved = live(&classifier).save();
    assert!(Live::restore(classifier, Options::default(), &saved).unwrap().0.turns().is_empty());
}

#[test]
fn what_was_not_saved_here_is_refused() {
    let (classifier, _) = classifier(4000, template(""), &NAMES);
    let restore = |text: &str| Live::restore(classifier.clone(), Options::default(), text).map(|_| ()).unwrap_err();
    assert_eq!(restore("secret").code(), Code::BadFile);
    assert_eq!(restore("{\"format\":2}").code(), Code::Unsupported);
    let other = restore("{\"format\":1,\"base\":\"other\",\"dropped\":0,\"dialogue\":{\"turns\":[]}}");
    assert!(other.text().contains("base model other, this is base"), "{other}");
}

#[test]
fn a_nan_is_an_error() {
    let (classifier, dials) = classifier(4000, template(""), &NAMES);
    let mut live = live(&classifier);
    dials.nan_from.store(1, Ordering::Relaxed);
    assert_eq!(live.add_turn("A", "b").unwrap_err().code(), Code::Numeric);
    assert_eq!(live.turns().len(), 1);
}
