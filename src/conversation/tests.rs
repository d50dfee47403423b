//! The timeline on an engine small enough to check: whatever the way to a timeline, it answers as a fresh one does.

use super::*;
use crate::fake::{self, Event, Script};

const TEXT: [u32; 9] = [1, 5, 2, 7, 7, 0, 12, 3, 4];

fn conversation(context: usize) -> (Conversation, Script) {
    let (model, script) = fake::model();
    let adapter = Some(Arc::new(fake::adapter(0.0)));
    (Conversation::new(model, adapter, Options { context, ..Options::default() }), script)
}

fn after(ids: &[u32]) -> Conversation {
    let (mut conversation, _) = conversation(0);
    conversation.append(ids).unwrap();
    conversation
}

/// Same tokens, and the same bits for whatever is asked.
fn assert_same(a: &Conversation, b: &Conversation) {
    let bits = |c: &Conversation| c.logits_after(&[]).unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(a.tokens(), b.tokens());
    assert_eq!(bits(a), bits(b));
}

#[test]
fn appending_in_pieces_is_appending_at_once_and_costs_its_tokens() {
    let (mut pieces, script) = conversation(0);
    for piece in [&TEXT[..4], &[], &TEXT[4..5], &TEXT[5..]] {
        pieces.append(piece).unwrap();
        assert_eq!(script.cost(), piece.len());
    }
    assert_same(&pieces, &after(&TEXT));
    assert_eq!((pieces.len(), pieces.room()), (9, 4096 - 9));
}

#[test]
fn a_long_text_is_computed_in_chunks_and_a_cancel_between_them_undoes_all() {
    let long: Vec<u32> = (0..2 * CHUNK as u32 + 5).map(|i| i % 13).collect();
    let (mut conversation, script) = conversation(0);
    conversation.append(&TEXT).unwrap();
    script.then(&[Event::Fine, Event::Cancelled]);
    assert_eq!(conversation.append(&long).unwrap_err().code(), Code::Cancelled);
    assert_same(&conversation, &after(&TEXT));
    conversation.append(&long).unwrap();
    assert_same(&conversation, &after(&[&TEXT[..], &long].concat()));
}

#[test]
fn a_leafs_log_probabilities_are_those_of_appending_it() {
    let leaves = [vec![3, 4, 5], vec![3, 4], vec![3, 9, 9], vec![12], vec![]];
    let (mut conversation, script) = conversation(0);
    conversation.append(&TEXT).unwrap();
    script.cost();
    let scores = conversation.log_probs_after(&leaves).unwrap();
    assert_eq!(script.cost(), 1 + 3); // the last token again; 3, 3 4 and 3 9
    for (leaf, score) in leaves.iter().zip(&scores) {
        let mut grown = after(&TEXT);
        for (&id, &got) in leaf.iter().zip(&score.tokens) {
            let logits = grown.logits_after(&[]).unwrap();
            let lse = logits.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
            let want = f64::from(logits[id as usize]) - lse;
            assert!((f64::from(got) - want).abs() <= 1e-5, "{got} against {want}");
            grown.append(&[id]).unwrap();
        }
        assert_eq!(score.tokens.len(), leaf.len());
        assert_eq!(score.total, score.tokens.iter().map(|&p| f64::from(p)).sum::<f64>());
    }
    assert_same(&conversation, &after(&TEXT));
}

#[test]
fn scoring_only_the_label_costs_only_the_question() {
    let (mut conversation, script) = conversation(0);
    conversation.append(&TEXT).unwrap();
    let labels = [[8, 9, 1], [8, 9, 2]];
    let whole = conversation.log_probs_after(&labels.map(|ids| ids.to_vec())).unwrap();
    script.cost();
    let leaves = labels.each_ref().map(|ids| Leaf { ids, from: 2 });
    let label = conversation.scores_after(&leaves).unwrap();
    assert_eq!(script.cost(), 2);
    for (whole, label) in whole.iter().zip(&label) {
        assert_eq!(whole.tokens[2..], label.tokens);
    }
}

#[test]
fn leaves_with_nothing_to_score_cost_nothing() {
    let (mut conversation, script) = conversation(0);
    conversation.append(&TEXT).unwrap();
    script.cost();
    let scores = conversation.scores_after(&[Leaf { ids: &[1, 2], from: 2 }, Leaf { ids: &[], from: 0 }]).unwrap();
    assert_eq!(scores, [Score { total: 0.0, tokens: vec![] }, Score { total: 0.0, tokens: vec![] }]);
    assert_eq!(script.cost(), 0);
}

#[test]
fn logits_after_a_leaf_are_those_of_appending_it() {
    let conversation = after(&TEXT[..4]);
    assert_eq!(conversation.logits_after(&TEXT[4..]).unwrap(), after(&TEXT).logits_after(&[]).unwrap());
    assert_eq!(conversation.len(), 4);
}

#[test]
fn an_empty_conversation_predicts_nothing_until_a_leaf_begins() {
    let (conversation, _) = conversation(0);
    assert!(conversation.is_empty());
    assert!(conversation.logits_after(&[]).is_err());
    assert!(conversation.log_probs_after(&[vec![1]]).is_err());
    assert_eq!(conversation.logits_after(&TEXT).unwrap(), after(&TEXT).logits_after(&[]).unwrap());
    assert_eq!(conversation.scores_after(&[Leaf { ids: &TEXT, from: 1 }]).unwrap()[0].tokens.len(), 8);
}

#[test]
fn going_back_costs_nothing_and_leaves_no_trace() {
    let (mut conversation, script) = conversation(0);
    conversation.append(&TEXT).unwrap();
    conversation.append(&[11, 11, 11]).unwrap();
    script.cost();
    conversation.truncate(9);
    assert_eq!(script.cost(), 0);
    assert_same(&conversation, &after(&TEXT));
    conversation.truncate(2);
    conversation.append(&TEXT[2..]).unwrap();
    assert_same(&conversation, &after(&TEXT));
    conversation.truncate(100);
    assert_eq!(conversation.len(), 9);
}

#[test]
fn rebuilding_keeps_the_common_beginning_and_says_what_the_rest_cost() {
    let (mut conversation, script) = conversation(0);
    conversation.append(&TEXT).unwrap();
    script.cost();
    let shorter = [TEXT[0], TEXT[1], TEXT[5], TEXT[6], TEXT[7]]; // an instruction of two, then the newest turns
    assert_eq!(conversation.rebuild(&shorter).unwrap(), 3);
    assert_eq!(script.cost(), 3);
    assert_same(&conversation, &after(&shorter));
    assert_eq!(conversation.rebuild(&shorter[..4]).unwrap(), 0);
    assert_same(&conversation, &after(&shorter[..4]));
}

#[test]
fn what_does_not_fit_changes_nothing_and_says_the_numbers() {
    let (mut conversation, _) = conversation(10);
    conversation.append(&TEXT).unwrap();
    let full = conversation.append(&[1, 2]).unwrap_err();
    assert_eq!(full.code(), Code::ContextFull);
    assert!(full.text().contains("2 tokens do not fit: the conversation holds 9 of at most 10"), "{full}");
    assert_eq!(conversation.logits_after(&[1, 2]).unwrap_err().code(), Code::ContextFull);
    assert_eq!(conversation.log_probs_after(&[vec![1, 2]]).unwrap_err().code(), Code::ContextFull);
    assert_eq!(conversation.rebuild(&[0; 11]).unwrap_err().code(), Code::ContextFull);
    assert_same(&conversation, &after(&TEXT));
    conversation.append(&[1]).unwrap();
    assert_eq!(conversation.room(), 0);
}

#[test]
fn the_context_is_never_more_than_the_models() {
    assert_eq!(conversation(1 << 30).0.room(), 4096);
    assert_eq!(conversation(0).0.room(), 4096);
}

#[test]
fn a_token_outside_the_vocabulary_is_refused_everywhere() {
    let mut conversation = after(&TEXT);
    let says = "token 13 is not in the model's vocabulary of 13";
    assert_eq!(conversation.append(&[13]).unwrap_err().text(), says);
    assert_eq!(conversation.rebuild(&[13]).unwrap_err().text(), says);
    assert_eq!(conversation.logits_after(&[13]).unwrap_err().text(), says);
    assert_eq!(conversation.log_probs_after(&[vec![13]]).unwrap_err().text(), says);
    assert!(conversation.scores_after(&[Leaf { ids: &[1], from: 2 }]).is_err());
    assert_same(&conversation, &after(&TEXT));
}

#[test]
fn a_snapshot_restores_in_a_new_conversation_of_the_same_model_only() {
    let snapshot = serde_json::to_string(&after(&TEXT).snapshot()).unwrap();
    let snapshot: Snapshot = serde_json::from_str(&snapshot).unwrap();
    let (mut fresh, _) = conversation(0);
    assert_eq!(fresh.restore(&snapshot).unwrap(), 9);
    assert_same(&fresh, &after(&TEXT));
    let mut other = Conversation::new(fake::model_as("other", "f32").0, None, Options::default());
    let error = other.restore(&snapshot).unwrap_err();
    assert_eq!(error.text(), "the snapshot is of model base, this conversation of other");
}

#[test]
fn an_adapter_changes_the_answer() {
    let mut plain = Conversation::new(fake::model().0, None, Options::default());
    plain.append(&TEXT).unwrap();
    assert_ne!(plain.logits_after(&[]).unwrap(), after(&TEXT).logits_after(&[]).unwrap());
}

mod generation {
    use super::*;

    fn generate(conversation: &mut Conversation, sampling: &Sampling) -> Generated {
        conversation.generate(sampling, &mut |_| true).unwrap()
    }

    fn greedy(max_tokens: usize) -> Sampling {
        Sampling { max_tokens, ..Sampling::default() }
    }

    #[test]
    fn greedy_takes_the_most_likely_token_every_time() {
        let mut conversation = after(&TEXT);
        let got = generate(&mut conversation, &greedy(5));
        let mut grown = after(&TEXT);
        for &id in &got.tokens {
            let logits = grown.logits_after(&[]).unwrap();
            assert!(logits.iter().all(|&x| x <= logits[id as usize]));
            grown.append(&[id]).unwrap();
        }
        assert_eq!((got.tokens.len(), got.stop), (5, Stop::Length));
        assert_same(&conversation, &grown);
    }

    #[test]
    fn an_end_token_ends_it_and_joins_the_timeline_but_not_the_text() {
        let tokens = generate(&mut after(&TEXT), &greedy(4)).tokens;
        let eos = *tokens.last().unwrap();
        let first = tokens.iter().position(|&t| t == eos).unwrap();
        let (mut conversation, mut seen) = (after(&TEXT), Vec::new());
        let sampling = Sampling { eos: vec![99, eos], ..greedy(50) };
        let got = conversation
            .generate(&sampling, &mut |t| {
                seen.push(t);
                true
            })
            .unwrap();
        assert_eq!(got, Generated { tokens: tokens[..first].to_vec(), stop: Stop::Eos(eos) });
        assert_eq!(seen, got.tokens);
        assert_eq!(conversation.tokens()[TEXT.len()..], tokens[..=first]);
    }

    #[test]
    fn the_caller_and_a_full_context_end_it() {
        let mut left = 2;
        let mut count = |_| {
            left -= 1;
            left > 0
        };
        let got = after(&TEXT).generate(&greedy(50), &mut count).unwrap();
        assert_eq!((got.tokens.len(), got.stop), (2, Stop::Caller));
        let (mut small, _) = conversation(12);
        small.append(&TEXT).unwrap();
        let got = generate(&mut small, &greedy(50));
        assert_eq!((got.tokens.len(), got.stop, small.room()), (3, Stop::Context, 0));
    }

    #[test]
    fn a_cancel_takes_back_what_was_generated() {
        let (mut conversation, script) = conversation(0);
        conversation.append(&TEXT).unwrap();
        script.then(&[Event::Fine, Event::Fine, Event::Fine, Event::Cancelled]); // as the third token is drawn
        assert_eq!(conversation.generate(&greedy(5), &mut |_| true).unwrap_err().code(), Code::Cancelled);
        assert_same(&conversation, &after(&TEXT));
    }

    #[test]
    fn a_seed_is_a_text_and_another_seed_another() {
        let text = |seed| generate(&mut after(&TEXT), &Sampling { temperature: 2.0, seed, ..greedy(20) }).tokens;
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }

    #[test]
    fn logits_that_are_no_numbers_are_an_error_and_the_timeline_stays() {
        let (mut conversation, script) = conversation(0);
        conversation.append(&TEXT).unwrap();
        script.then(&[Event::Fine, Event::Fine, Event::NanLoss]);
        let error = conversation.generate(&greedy(5), &mut |_| true).unwrap_err();
        assert_eq!(error.code(), Code::Numeric, "{error}");
        assert_same(&conversation, &after(&TEXT));
    }

    #[test]
    fn every_sampling_range_is_held() {
        let says = |sampling: Sampling| after(&TEXT).generate(&sampling, &mut |_| true).unwrap_err().to_string();
        let base = Sampling::default;
        assert_eq!(says(Sampling { temperature: -1.0, ..base() }), "temperature is -1, must be 0 or more");
        assert_eq!(says(Sampling { top_p: 0.0, ..base() }), "top_p is 0, must be above 0 and at most 1");
        assert_eq!(
            says(Sampling { repetition_penalty: f32::NAN, ..base() }),
            "repetition_penalty is NaN, must be above 0"
        );
    }
}
