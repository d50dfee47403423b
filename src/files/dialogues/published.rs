//! What the sets are known to hold, from their own descriptions or counted from the released files: another count says
//! that a file is of another version, cut, or damaged.

use super::Dialogue;
use super::iemocap::LabelSet;
use super::{Split, label_counts};

/// What a split holds.
#[derive(Debug)]
pub struct Published {
    /// Dialogues.
    pub dialogues: usize,
    /// Turns; for IEMOCAP those that have a label.
    pub turns: usize,
    /// Turns of every label; empty where that is not known.
    pub labels: &'static [(&'static str, usize)],
}

const fn of(dialogues: usize, turns: usize, labels: &'static [(&'static str, usize)]) -> Published {
    Published { dialogues, turns, labels }
}

/// One of a set's three splits.
fn split_of(all: &'static [Published; 3], split: Split) -> &'static Published {
    &all[split as usize]
}

/// MELD. Its train split has no Dialogue_ID 60: the 1,039 dialogues of its paper are one too many.
pub(super) fn meld(split: Split) -> &'static Published {
    static ALL: [Published; 3] = [
        of(
            1038,
            9989,
            &[
                ("neutral", 4710),
                ("joy", 1743),
                ("surprise", 1205),
                ("anger", 1109),
                ("sadness", 683),
                ("disgust", 271),
                ("fear", 268),
            ],
        ),
        of(
            114,
            1109,
            &[
                ("neutral", 470),
                ("joy", 163),
                ("surprise", 150),
                ("anger", 153),
                ("sadness", 111),
                ("disgust", 22),
                ("fear", 40),
            ],
        ),
        of(
            280,
            2610,
            &[
                ("neutral", 1256),
                ("joy", 402),
                ("surprise", 281),
                ("anger", 345),
                ("sadness", 208),
                ("disgust", 68),
                ("fear", 50),
            ],
        ),
    ];
    split_of(&ALL, split)
}

/// MELD's dyadic form.
pub(super) fn dyadic(split: Split) -> &'static Published {
    static ALL: [Published; 3] = [of(2160, 12_840, &[]), of(270, 1462, &[]), of(577, 3400, &[])];
    split_of(&ALL, split)
}

/// EmoryNLP, whole or reduced.
pub(super) fn emorynlp(split: Split, reduced: bool) -> &'static Published {
    static WHOLE: [Published; 3] = [
        of(
            713,
            9934,
            &[
                ("Neutral", 3034),
                ("Joyful", 2184),
                ("Scared", 1285),
                ("Mad", 1076),
                ("Peaceful", 900),
                ("Powerful", 784),
                ("Sad", 671),
            ],
        ),
        of(
            99,
            1344,
            &[
                ("Neutral", 393),
                ("Joyful", 289),
                ("Scared", 178),
                ("Mad", 143),
                ("Peaceful", 132),
                ("Powerful", 134),
                ("Sad", 75),
            ],
        ),
        of(
            85,
            1328,
            &[
                ("Neutral", 349),
                ("Joyful", 282),
                ("Scared", 182),
                ("Mad", 113),
                ("Peaceful", 159),
                ("Powerful", 145),
                ("Sad", 98),
            ],
        ),
    ];
    static REDUCED: [Published; 3] = [
        of(
            659,
            7551,
            &[
                ("Neutral", 2485),
                ("Joyful", 1677),
                ("Scared", 941),
                ("Mad", 785),
                ("Peaceful", 638),
                ("Powerful", 551),
                ("Sad", 474),
            ],
        ),
        of(
            89,
            954,
            &[
                ("Neutral", 322),
                ("Joyful", 205),
                ("Scared", 127),
                ("Mad", 97),
                ("Peaceful", 82),
                ("Powerful", 70),
                ("Sad", 51),
            ],
        ),
        of(
            79,
            984,
            &[
                ("Neutral", 288),
                ("Joyful", 217),
                ("Scared", 116),
                ("Mad", 86),
                ("Peaceful", 111),
                ("Powerful", 96),
                ("Sad", 70),
            ],
        ),
    ];
    split_of(if reduced { &REDUCED } else { &WHOLE }, split)
}

/// IEMOCAP's official labels: session 5, or sessions 1 to 4 as a whole.
pub(super) fn iemocap(split: Split, labels: LabelSet) -> Option<&'static Published> {
    static SIX: [Published; 2] = [
        of(
            120,
            5758,
            &[
                ("happiness", 452),
                ("sadness", 839),
                ("neutral", 1324),
                ("anger", 933),
                ("excitement", 742),
                ("frustration", 1468),
            ],
        ),
        of(
            31,
            1622,
            &[
                ("happiness", 143),
                ("sadness", 245),
                ("neutral", 384),
                ("anger", 170),
                ("excitement", 299),
                ("frustration", 381),
            ],
        ),
    ];
    static FOUR: [Published; 2] = [
        of(120, 4290, &[("happiness", 1194), ("sadness", 839), ("neutral", 1324), ("anger", 933)]),
        of(31, 1241, &[("happiness", 442), ("sadness", 245), ("neutral", 384), ("anger", 170)]),
    ];
    let part = usize::from(split == Split::Test);
    match labels {
        LabelSet::Six => Some(&SIX[part]),
        LabelSet::Four => Some(&FOUR[part]),
        LabelSet::Eight => None,
    }
}

/// DailyDialog.
pub(super) fn dailydialog(split: Option<Split>) -> &'static Published {
    static ALL: [Published; 3] = [of(11_118, 0, &[]), of(1000, 0, &[]), of(1000, 0, &[])];
    static WHOLE: Published = of(13_118, 102_979, &[]);
    split.map_or(&WHOLE, |split| split_of(&ALL, split))
}

impl Published {
    /// What `dialogues` have that differs, a sentence each.
    pub fn differences(&self, dialogues: &[Dialogue]) -> Vec<String> {
        let mut all = Vec::new();
        let mut compare = |what: &str, have: usize, published: usize| {
            if have != published {
                all.push(format!("{what}: {have}, published are {published}"));
            }
        };
        compare("dialogues", dialogues.len(), self.dialogues);
        let counts = label_counts(dialogues);
        if self.turns > 0 {
            compare("labelled turns", counts.iter().map(|(_, n)| n).sum(), self.turns);
        }
        let count = |name: &str| counts.iter().find(|(label, _)| *label == name).map_or(0, |(_, n)| *n);
        self.labels.iter().for_each(|(name, n)| compare(&format!("turns with {name}"), count(name), *n));
        all
    }
}
