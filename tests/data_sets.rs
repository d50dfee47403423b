//! The sets of the field hold what is published of them, in every form, and their traps are told.
//!
//! MELD and EmoryNLP may not be redistributed: without `DLLM_DATA` these tests skip and say so.

use dialoguellm::Cancel;
use dialoguellm::files::dialogues::{Dialogue, Part, Source, Split, label_counts};
use std::path::PathBuf;

/// A part of the data that were fetched, or a skip.
fn data(part: &str, test: &str) -> Option<PathBuf> {
    let root = std::env::var_os("DLLM_DATA").map_or_else(|| PathBuf::from("../shared/data"), PathBuf::from);
    let dir = root.join(part);
    if !dir.exists() {
        eprintln!("SKIPPED {test}: {} is not there; set DLLM_DATA", dir.display());
        return None;
    }
    Some(dir)
}

/// All there is of a set, and what is odd in it.
fn check(spec: &str, dir: &std::path::Path) -> (Vec<Part>, Vec<Vec<String>>) {
    let source: Source = format!("{spec}:{}", dir.display()).parse().unwrap();
    let parts = source.parts(None, None, &Cancel::default()).unwrap();
    let findings = source.findings(&parts, &Cancel::default()).unwrap();
    (parts, findings)
}

fn counts(dialogues: &[Dialogue]) -> (usize, usize) {
    (dialogues.len(), dialogues.iter().map(|dialogue| dialogue.turns.len()).sum())
}

/// Speaker, text and label of every turn.
fn turns(dialogues: &[Dialogue]) -> Vec<(&str, &str, Option<&str>)> {
    let turns = dialogues.iter().flat_map(|dialogue| &dialogue.turns);
    turns.map(|turn| (turn.speaker.as_str(), turn.text.as_str(), turn.emotion.as_deref())).collect()
}

#[test]
fn meld_holds_what_is_published_and_all_its_traps_are_told() {
    let Some(dir) = data("meld", "meld_holds_what_is_published_and_all_its_traps_are_told") else { return };
    let (all, findings) = check("meld", &dir);
    let held: Vec<_> = all.iter().map(|part| counts(&part.dialogues)).collect();
    assert_eq!(held, [(1038, 9989), (114, 1109), (280, 2610)]);
    for part in &all {
        assert_eq!(part.published.unwrap().differences(&part.dialogues), [""; 0]);
    }
    let told = |i: usize| findings[i].join("\n");
    for trap in [
        "dialogues with one speaker: 96,",
        "Dialogue_ID skips 60",
        "dialogues in which Utterance_ID has gaps: 72;",
        "Utterance_ID does not begin at 0: 10",
        "values of `Sr No.` in several rows: 57;",
        "utterances in two dialogues: 10, of them with different labels: 5",
    ] {
        assert!(told(0).contains(trap), "{trap}\n{}", told(0));
    }
    assert!(told(1).contains("has gaps: 2;") && told(1).contains("dialogues with one speaker: 6,"), "{}", told(1));
    for trap in
        ["one speaker: 21,", "has gaps: 2;", "end before they begin (EndTime): 1", "that are in the train split too: 1"]
    {
        assert!(told(2).contains(trap), "{trap}\n{}", told(2));
    }
}

#[test]
fn emorynlp_is_the_same_in_its_official_and_its_small_form_and_less_in_the_reduced_one() {
    let name = "emorynlp_is_the_same_in_its_official_and_its_small_form_and_less_in_the_reduced_one";
    let Some(dir) = data("emorynlp", name) else { return };
    let part = |folder: &str| check("emorynlp", &dir.join(folder)).0.pop().unwrap();
    let (official, small, reduced) = (part(""), part("small_form"), part("reduced"));
    for (part, held) in [(&official, (99, 1344)), (&small, (99, 1344)), (&reduced, (89, 954))] {
        assert_eq!((part.split, counts(&part.dialogues)), (Some(Split::Dev), held));
        assert_eq!(part.published.unwrap().differences(&part.dialogues), [""; 0]);
    }
    assert_eq!(turns(&official.dialogues), turns(&small.dialogues));
    // every reduced scene is the official one of that id, or a part of it in the same order
    for scene in &reduced.dialogues {
        let whole = official.dialogues.iter().find(|other| other.id == scene.id).unwrap();
        let mut rest = turns(std::slice::from_ref(whole)).into_iter();
        for turn in turns(std::slice::from_ref(scene)) {
            assert!(rest.any(|other| other == turn), "scene {}", scene.id);
        }
    }
}

#[test]
fn the_release_folder_of_iemocap_gives_order_by_transcript_and_labels_by_id() {
    let name = "the_release_folder_of_iemocap_gives_order_by_transcript_and_labels_by_id";
    let Some(dir) = data("iemocap_fixture/IEMOCAP_full_release", name) else { return };
    let read = |options: &str, split| {
        let source: Source = format!("iemocap:{}{options}", dir.display()).parse().unwrap();
        source.dialogues(split, None, &Cancel::default())
    };
    let train = read("", Split::Train).unwrap();
    let said: Vec<_> = turns(&train).into_iter().map(|(speaker, _, label)| (speaker, label)).collect();
    let want = [
        ("F", Some("neutral")),
        ("M", Some("frustration")),
        ("F", None),
        ("M", None),
        ("M", Some("anger")),
        ("F", Some("excitement")),
    ];
    assert_eq!(said, want);
    assert_eq!(train[0].turns[4].text, "Fine: I will call somebody [about it], then.");
    let labelled = |dialogues: &[Dialogue]| -> usize { label_counts(dialogues).iter().map(|(_, n)| n).sum() };
    let test = read("", Split::Test).unwrap();
    assert_eq!((labelled(&train), labelled(&test)), (4, 2));
    assert_eq!(counts(&test), (1, 4));
    for (options, want) in [("?labels=4", (3, 2)), ("?labels=8", (4, 3)), ("?labels=6&unlabelled=drop", (4, 2))] {
        let both = [Split::Train, Split::Test].map(|split| read(options, split).unwrap());
        assert_eq!((labelled(&both[0]), labelled(&both[1])), want, "{options}");
    }
    assert_eq!(counts(&read("?unlabelled=drop", Split::Test).unwrap()), (1, 2));
    let merged = read("?labels=4", Split::Train).unwrap();
    assert_eq!(label_counts(&merged), [("anger", 1), ("happiness", 1), ("neutral", 1)]);
    assert!(read("", Split::Dev).unwrap_err().text().contains("dev=last20"));
    assert_eq!(counts(&read("?dev=last20", Split::Dev).unwrap()), (1, 6));
    assert!(read("?dev=last20", Split::Train).unwrap().is_empty());
}
