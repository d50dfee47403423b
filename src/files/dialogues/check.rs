//! What is odd in a set: other counts than the published ones, and traps for whoever counts by a file's own numbers.

use super::{Dialogue, Published, Source, Split, dailydialog, emorynlp, meld, published, text};
use crate::{Cancel, Result};
use std::collections::HashSet;

/// What was read of a set.
pub struct Part {
    /// The split; none for a single file.
    pub split: Option<Split>,
    /// Its dialogues.
    pub dialogues: Vec<Dialogue>,
    /// What the split is known to hold, where that is known.
    pub published: Option<&'static Published>,
}

impl Source {
    /// Reads the split `only`, or all there is. Errors: as [`Source::dialogues`].
    pub fn parts(&self, only: Option<Split>, known: Option<&[String]>, cancel: &Cancel) -> Result<Vec<Part>> {
        let splits: Vec<Option<Split>> = match (only, self.splits()) {
            (Some(split), _) => vec![Some(split)],
            (None, splits) if splits.is_empty() => vec![None],
            (None, splits) => splits.into_iter().map(Some).collect(),
        };
        let part = |split: Option<Split>| {
            let dialogues = self.dialogues(split.unwrap_or(Split::Test), known, cancel)?;
            Ok(Part { split, dialogues, published: self.published(split) })
        };
        splits.into_iter().map(part).collect()
    }

    /// What is odd in each of `parts`, a sentence each: what differs from the published counts, and what else may mislead.
    /// Errors: those of reading a file again.
    pub fn findings(&self, parts: &[Part], cancel: &Cancel) -> Result<Vec<Vec<String>>> {
        let mut all = Vec::new();
        let mut places = Vec::new();
        for Part { split, dialogues, published } in parts {
            let mut findings = published.map_or(Vec::new(), |published| published.differences(dialogues));
            findings.extend(oddities(dialogues));
            if let (Source::Meld(dir), Some(split)) = (self.bare(), split) {
                let path = dir.join(meld::file(*split, false));
                let (odd, here) = meld::oddities(&path, &text::read(&path, cancel)?, cancel)?;
                findings.extend(odd);
                for (other, there) in &places {
                    let n = here.intersection(there).count();
                    if n > 0 {
                        findings.push(format!("utterances that are in the {other} split too: {n}"));
                    }
                }
                places.push((split.name(), here));
            }
            all.push(findings);
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
