//! Demonstrations that are drawn from the training data: so many turns of every label, to be shown or to be chosen from.

use super::labels::Labels;
use super::template::Demonstration;
use crate::files::Dialogue;
use dialoguellm_kernels::dropout;

/// Dialogue and turn of `per_label` turns of every label, drawn by `seed`: one of each label in the labels' order, then the
/// next of each. Of a label that has fewer, all are taken; turns without text show nothing and are not.
pub fn drawn(dialogues: &[Dialogue], labels: &Labels, per_label: usize, seed: u64) -> Vec<(usize, usize)> {
    rounds(&by_label(dialogues, labels, seed), per_label)
}

/// As [`drawn`], as many of every label as the rarest has that occurs at all, without those at `places`.
pub fn balanced(dialogues: &[Dialogue], labels: &Labels, seed: u64, places: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let mut all = by_label(dialogues, labels, seed);
    all.iter_mut().for_each(|turns| turns.retain(|place| !places.contains(place)));
    let rarest = all.iter().map(Vec::len).filter(|&turns| turns > 0).min();
    rounds(&all, rarest.unwrap_or(0))
}

/// For every label the turns that have it, in an order that the seed draws.
fn by_label(dialogues: &[Dialogue], labels: &Labels, seed: u64) -> Vec<Vec<(usize, usize)>> {
    let of_label = |name: &String| {
        let turns = dialogues.iter().enumerate().flat_map(|(d, dialogue)| {
            let shown = dialogue
                .turns
                .iter()
                .enumerate()
                .filter(|(_, turn)| turn.emotion.as_ref() == Some(name) && !turn.text.trim().is_empty());
            shown.map(move |(t, _)| (d, t))
        });
        let mut turns: Vec<(usize, usize)> = turns.collect();
        turns.sort_by_key(|&(d, t)| dropout::key(seed, 0, 0, d as u64, t as u64));
        turns
    };
    labels.names().iter().map(of_label).collect()
}

/// The first of each label, then the second of each, `per_label` times.
fn rounds(all: &[Vec<(usize, usize)>], per_label: usize) -> Vec<(usize, usize)> {
    (0..per_label).flat_map(|round| all.iter().filter_map(move |turns| turns.get(round).copied())).collect()
}

/// The turns at `places` as they are shown.
pub fn demonstrations(dialogues: &[Dialogue], places: &[(usize, usize)]) -> Vec<Demonstration> {
    let shown = |&(d, t): &(usize, usize)| {
        let turn = &dialogues[d].turns[t];
        let label = turn.emotion.clone().unwrap_or_default();
        Demonstration { speaker: turn.speaker.clone(), text: turn.text.clone(), label }
    };
    places.iter().map(shown).collect()
}

/// The dialogues with the turns at `places` as context only: what a prompt shows with its label is no lesson.
pub fn without(dialogues: &[Dialogue], places: &[(usize, usize)]) -> Vec<Dialogue> {
    let mut rest = dialogues.to_vec();
    for &(d, t) in places {
        rest[d].turns[t].emotion = None;
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::dialogues::Turn;

    fn dialogues() -> Vec<Dialogue> {
        let turn = |i: usize| Turn {
            speaker: format!("s{i}"),
            text: if i == 4 { " ".into() } else { format!("t{i}") },
            emotion: [Some("joy"), Some("fear"), None, Some("joy")][i % 4].map(str::to_owned),
            ..Turn::default()
        };
        (0..5).map(|d| Dialogue { id: format!("d{d}"), turns: (6 * d..6 * d + 6).map(turn).collect() }).collect()
    }

    /// Turns of a label that have a text.
    fn marks_of(dialogues: &[Dialogue], name: &str) -> usize {
        let turns = dialogues.iter().flat_map(|dialogue| &dialogue.turns);
        turns.filter(|turn| turn.emotion.as_deref() == Some(name) && !turn.text.trim().is_empty()).count()
    }

    #[test]
    fn every_label_is_shown_as_often_and_a_shown_turn_teaches_nothing() {
        let (dialogues, labels) = (dialogues(), Labels::new(["joy", "fear"].map(String::from).to_vec()).unwrap());
        let places = drawn(&dialogues, &labels, 3, 7);
        let shown = demonstrations(&dialogues, &places);
        let names: Vec<&str> = shown.iter().map(|shown| shown.label.as_str()).collect();
        assert_eq!(names, ["joy", "fear", "joy", "fear", "joy", "fear"]);
        assert_eq!(places, drawn(&dialogues, &labels, 3, 7));
        assert_ne!(places, drawn(&dialogues, &labels, 3, 8));
        assert_eq!(places[..4], drawn(&dialogues, &labels, 2, 7), "more shots add to fewer");
        let rest = without(&dialogues, &places);
        let marked = |dialogues: &[Dialogue]| {
            dialogues.iter().flat_map(|dialogue| &dialogue.turns).filter(|turn| turn.emotion.is_some()).count()
        };
        assert_eq!(marked(&rest), marked(&dialogues) - 6);
        let all = drawn(&dialogues, &labels, 100, 7);
        assert_eq!(all.len(), marked(&dialogues) - 1, "all but the one without text");
        assert!(demonstrations(&dialogues, &all).iter().all(|shown| !shown.text.trim().is_empty()));
        let two = &places[..2];
        let bank = balanced(&dialogues, &labels, 7, two);
        let of = |name: &str| marks_of(&dialogues, name);
        assert_eq!(bank.len(), 2 * (of("joy").min(of("fear")) - 1), "as many of each as the rarest label has left");
        assert!(bank.iter().all(|place| !two.contains(place)) && bank[..4] == places[2..6]);
        assert!(drawn(&[], &labels, 3, 7).is_empty() && drawn(&dialogues, &labels, 0, 7).is_empty());
    }
}
