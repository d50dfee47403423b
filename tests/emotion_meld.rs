//! Proves that MELD as released is read whole and in order: the counts of its three files, taken with another parser.

mod common;

use dialoguellm::files::dialogues::{Dialogue, MELD_LABELS, Source, Split};
use std::collections::HashSet;

fn meld(split: Split) -> Option<Vec<Dialogue>> {
    let dir = common::shared_data("meld")?;
    Some(Source::Meld(dir).dialogues(split, None, &dialoguellm::Cancel::default()).unwrap())
}

/// Turns, dialogues, longest dialogue, distinct speakers, one-speaker dialogues, and turns per label of `MELD_LABELS`.
fn counts(dialogues: &[Dialogue]) -> ([usize; 5], [usize; 7]) {
    let turns = || dialogues.iter().flat_map(|dialogue| &dialogue.turns);
    let label = |name| turns().filter(|turn| turn.emotion.as_deref() == Some(name)).count();
    let speakers = |turns: &mut dyn Iterator<Item = &str>| turns.collect::<HashSet<_>>().len();
    let all = speakers(&mut turns().map(|turn| turn.speaker.as_str()));
    let alone = dialogues.iter().filter(|d| speakers(&mut d.turns.iter().map(|turn| turn.speaker.as_str())) == 1);
    let longest = dialogues.iter().map(|dialogue| dialogue.turns.len()).max().unwrap();
    ([turns().count(), dialogues.len(), longest, all, alone.count()], MELD_LABELS.map(label))
}

#[test]
fn train_has_its_published_counts() {
    let Some(dialogues) = meld(Split::Train) else { return };
    assert_eq!(counts(&dialogues), ([9989, 1038, 24, 260, 96], [4710, 1743, 1205, 1109, 683, 271, 268]));
    assert!(dialogues.iter().all(|dialogue| dialogue.id != "train/60"));
}

#[test]
fn dev_has_its_published_counts() {
    let Some(dialogues) = meld(Split::Dev) else { return };
    assert_eq!(counts(&dialogues), ([1109, 114, 23, 47, 6], [470, 163, 150, 153, 111, 22, 40]));
}

#[test]
fn test_has_its_published_counts() {
    let Some(dialogues) = meld(Split::Test) else { return };
    assert_eq!(counts(&dialogues), ([2610, 280, 33, 100, 21], [1256, 402, 281, 345, 208, 68, 50]));
}

#[test]
fn double_spaces_and_typographic_characters_stay() {
    let Some(dialogues) = meld(Split::Train) else { return };
    let turns = || dialogues.iter().flat_map(|dialogue| &dialogue.turns);
    assert_eq!(turns().filter(|turn| turn.text.contains("  ")).count(), 637);
    assert_eq!(turns().map(|turn| turn.text.matches('\u{2019}').count()).sum::<usize>(), 3547);
    assert!(turns().any(|turn| turn.speaker == "Richard\u{2019}s Date"));
}
