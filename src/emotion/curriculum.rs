//! Easy dialogues first: those in which the emotion seldom shifts.
//!
//!   difficulty = (shifts + speakers) / (turns + speakers)
//!
//! A shift is a turn whose label is not that of the labelled turn before it. Yang et al. 2022 (arXiv 2112.11718), whose measure
//! is how often emotion shifts, with speakers to even out short dialogues; buckets of rising difficulty, one more an epoch, as
//! PRC-Emo adds them.

use crate::files::dialogues::Dialogue;
use std::collections::BTreeSet;

/// For every dialogue the epoch, counted from 0, that it is learned from first: `buckets` of as many labelled dialogues each, the
/// easiest in the first; of equal ones the earlier is the easier. There are no more buckets than labelled dialogues.
pub(super) fn stages(dialogues: &[Dialogue], buckets: usize) -> Vec<u32> {
    let mut stages = vec![0; dialogues.len()];
    let mut order: Vec<(f64, usize)> =
        dialogues.iter().enumerate().filter_map(|(d, dialogue)| Some((difficulty(dialogue)?, d))).collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let buckets = buckets.min(order.len());
    for (place, &(_, d)) in order.iter().enumerate() {
        stages[d] = (place * buckets / order.len()) as u32;
    }
    stages
}

/// How difficult a dialogue is, from 0 to 1; none for one without labels.
fn difficulty(dialogue: &Dialogue) -> Option<f64> {
    let labels: Vec<&String> = dialogue.turns.iter().filter_map(|turn| turn.emotion.as_ref()).collect();
    let speakers = dialogue.turns.iter().map(|turn| &turn.speaker).collect::<BTreeSet<_>>().len();
    let shifts = labels.windows(2).filter(|pair| pair[0] != pair[1]).count();
    (!labels.is_empty()).then(|| (shifts + speakers) as f64 / (dialogue.turns.len() + speakers) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::dialogues::Turn;

    fn dialogue(turns: &[(&str, &str)]) -> Dialogue {
        let turn = |&(speaker, emotion): &(&str, &str)| Turn {
            speaker: speaker.to_owned(),
            emotion: (!emotion.is_empty()).then(|| emotion.to_owned()),
            ..Turn::default()
        };
        Dialogue { turns: turns.iter().map(turn).collect(), ..Dialogue::default() }
    }

    #[test]
    fn difficulty_is_its_equation() {
        // joy, joy, fear: one shift; A and B; four turns
        let some = dialogue(&[("A", "joy"), ("B", ""), ("A", "joy"), ("B", "fear")]);
        assert_eq!(difficulty(&some), Some((1.0 + 2.0) / (4.0 + 2.0)));
        assert_eq!(difficulty(&dialogue(&[("A", "")])), None);
    }

    #[test]
    fn the_steadiest_dialogues_come_first() {
        let steady = dialogue(&[("A", "joy"), ("A", "joy"), ("A", "joy"), ("A", "joy")]);
        let moody = dialogue(&[("A", "joy"), ("A", "fear"), ("A", "joy"), ("A", "fear")]);
        let silent = dialogue(&[("A", "")]);
        let all = [moody.clone(), silent, steady.clone(), moody, steady];
        assert_eq!(stages(&all, 2), [1, 0, 0, 1, 0]);
        assert_eq!(stages(&all, 1), [0; 5]);
        assert_eq!(stages(&all, 4), [2, 0, 0, 3, 1]);
        assert_eq!(stages(&all, usize::MAX), [2, 0, 0, 3, 1]);
    }
}
