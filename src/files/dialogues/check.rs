//! What is odd in a set: other counts than the published ones, and traps for whoever counts by a file's own numbers.

use super::{Dialogue, Published, Source, Split, dailydialog, emorynlp, meld, published, text};
use crate::{Cancel, Result};
use std::collections::HashSet;

/// What was read, and what is to be said of it: a sentence each.
pub struct Checked {
    /// The split; none for a single file.
    pub split: Option<Split>,
    /// Its dialogues.
    pub dialogues: Vec<Dialogue>,
    /// What the split is known to hold, where that is known.
    pub published: Option<&'static Published>,
    /// What differs from that, and what else may mislead.
    pub findings: Vec<String>,
}

impl Source {
    /// Reads `splits`, or all there is, and says what is odd. An error is what cannot be read at all.
    pub fn check(&self, only: Option<Split>, known: Option<&[String]>, cancel: &Cancel) -> Result<Vec<Checked>> {
        let splits: Vec<Option<Split>> = match (only, self.splits()) {
            (Some(split), _) => vec![Some(split)],
            (None, splits) if splits.is_empty() => vec![None],
            (None, splits) => splits.into_iter().map(Some).collect(),
        };
        let mut all = Vec::new();
        let mut places = Vec::new();
        for split in splits {
            let of = split.unwrap_or(Split::Test);
            let dialogues = self.dialogues(of, known, cancel)?;
            let published = self.published(split);
            let mut findings = published.map_or(Vec::new(), |published| published.differences(&dialogues));
            findings.extend(oddities(&dialogues));
            if let Source::Meld(dir) = self.bare() {
                let path = dir.join(meld::file(of, false));
                let (odd, here) = meld::oddities(&path, &text::read(&path, cancel)?, cancel)?;
                findings.extend(odd);
                places.push((of, here));
            }
            all.push(Checked { split, dialogues, published, findings });
        }
        for (i, (_, here)) in places.iter().enumerate() {
            for (other, there) in &places[..i] {
                let n = here.intersection(there).count();
                if n > 0 {
                    all[i].findings.push(format!("utterances that are in the {} split too: {n}", other.name()));
                }
            }
        }
        Ok(all)
    }

    /// The dialogues themselves, without what is put beside them.
    fn bare(&self) -> &Source {
        match self {
            Source::Described { of, .. } => of.bare(),
            source => source,
        }
    }

    /// What a split is known to hold.
    pub fn published(&self, split: Option<Split>) -> Option<&'static Published> {
        match (self.bare(), split) {
            (Source::Meld(_), Some(split)) => Some(published::meld(split)),
            (Source::MeldDyadic(_), Some(split)) => Some(published::dyadic(split)),
            (Source::EmoryNlp(dir), Some(split)) => {
                let (_, reduced) = emorynlp::file(dir, split).ok()?;
                Some(published::emorynlp(split, reduced))
            }
            (Source::Iemocap(iemocap), Some(split)) if iemocap.happy.is_none() => {
                let whole = split == Split::Test || (split == Split::Train && iemocap.dev.is_none());
                published::iemocap(split, iemocap.labels).filter(|_| whole)
            }
            (Source::DailyDialog(dir), split) => {
                Some(published::dailydialog(split.filter(|split| dailydialog::has(dir, *split))))
            }
            _ => None,
        }
    }
}

/// What may mislead in any set.
fn oddities(dialogues: &[Dialogue]) -> Vec<String> {
    let mut ids = HashSet::new();
    let repeated = dialogues.iter().filter(|dialogue| !ids.insert(dialogue.id.as_str())).count();
    let turns = || dialogues.iter().flat_map(|dialogue| &dialogue.turns);
    let empty = turns().filter(|turn| turn.text.trim().is_empty()).count();
    let nameless = turns().filter(|turn| turn.speaker.trim().is_empty()).count();
    let alone = |dialogue: &&Dialogue| dialogue.turns.iter().all(|turn| turn.speaker == dialogue.turns[0].speaker);
    let (one_turn, alone) =
        (dialogues.iter().filter(|dialogue| dialogue.turns.len() == 1).count(), dialogues.iter().filter(alone).count());
    let said = [
        (repeated, format!("dialogues with the id of one before them: {repeated}")),
        (empty, format!("turns without text: {empty}")),
        (nameless, format!("turns without a speaker: {nameless}")),
        (alone, format!("dialogues with one speaker: {alone}, of them with one turn: {one_turn}")),
    ];
    said.into_iter().filter(|(n, _)| *n > 0).map(|(_, text)| text).collect()
}
