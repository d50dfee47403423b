//! MELD as released (Poria et al. 2019, arXiv 1810.02508), multi-party and dyadic: CSV, one row an utterance.
//!
//! Rows of a dialogue adjoin; Utterance_ID rises with gaps, so the previous utterance is the previous row. Dialogue_ID
//! starts again in every split, so a dialogue's id is `train/0`.

use super::table::{Grouped, Row, Table, missing};
use super::text::{label, own};
use super::{Dialogue, Split, Turn};
use crate::{Cancel, Result};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// The labels of MELD, the most frequent of its train split first.
pub const MELD_LABELS: [&str; 7] = ["neutral", "joy", "surprise", "anger", "sadness", "disgust", "fear"];

const COLUMNS: [&str; 5] = ["Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID"];

/// The name of a split's file, of the multi-party or the dyadic set.
pub(super) fn file(split: Split, dyadic: bool) -> String {
    format!("{}_sent_emo{}.csv", split.name(), if dyadic { "_dya" } else { "" })
}

/// The dialogues of a file of either set; columns are found by their names, others ignored.
pub fn meld(
    path: &Path,
    bytes: &[u8],
    split: Split,
    known: Option<&[String]>,
    cancel: &Cancel,
) -> Result<Vec<Dialogue>> {
    let known = own(known, &MELD_LABELS);
    let mut table = Table::open(path, bytes, "MELD", &COLUMNS, cancel)?;
    let mut grouped = Grouped::new(path, ["Dialogue_ID", "Utterance_ID"]);
    while let Some(row) = table.read()? {
        let dialogue = table.number(&row, 3, "Dialogue_ID")?.to_string();
        let utterance = table.number(&row, 4, "Utterance_ID")?;
        let turn = Turn {
            speaker: table.field(&row, 1).to_owned(),
            text: table.field(&row, 0).to_owned(),
            emotion: Some(label(path, format_args!("line {}", row.line), table.field(&row, 2), Some(&known))?),
            ..Turn::default()
        };
        let id = format!("{}/{dialogue}", split.name());
        grouped.push(row.line, (dialogue, id), utterance, turn)?;
    }
    Ok(grouped.dialogues)
}

/// The Utterance_ID of every row, by dialogue, of a file that [`meld`] has read.
pub(super) fn numbers(path: &Path, bytes: &[u8], cancel: &Cancel) -> Result<Vec<Vec<u64>>> {
    let columns = ["Dialogue_ID", "Utterance_ID"];
    let mut table = Table::open(path, bytes, "MELD", &columns, cancel)?;
    let (mut all, mut last) = (Vec::<Vec<u64>>::new(), None);
    while let Some(row) = table.read()? {
        let [dialogue, utterance] = [0, 1].map(|column| table.number(&row, column, columns[column]));
        let (dialogue, utterance) = (dialogue?, utterance?);
        if last.replace(dialogue) != Some(dialogue) {
            all.push(Vec::new());
        }
        all.last_mut().expect("pushed above").push(utterance);
    }
    Ok(all)
}

/// Where in the series a row is from: season, episode, start of the clip, and its text.
type Place = [String; 4];

/// What in a file could mislead somebody who counts by its numbers, and where in the series its rows are from.
pub(super) fn oddities(path: &Path, bytes: &[u8], cancel: &Cancel) -> Result<(Vec<String>, BTreeSet<Place>)> {
    let columns =
        ["Sr No.", "Utterance", "Emotion", "Dialogue_ID", "Utterance_ID", "Season", "Episode", "StartTime", "EndTime"];
    let missing = missing(path, bytes, &columns, cancel)?;
    if !missing.is_empty() {
        let text = format!(
            "columns of the release that are missing, so that traps are not looked for: {}",
            missing.join(", ")
        );
        return Ok((vec![text], BTreeSet::new()));
    }
    let mut table = Table::open(path, bytes, "MELD", &columns, cancel)?;
    let mut rows: Vec<Row> = Vec::new();
    while let Some(row) = table.read()? {
        rows.push(row);
    }
    let mut dialogues: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let mut numbers: HashMap<&str, usize> = HashMap::new();
    let mut places: BTreeMap<Place, BTreeMap<u64, &str>> = BTreeMap::new();
    let mut backward = 0;
    for row in &rows {
        let dialogue = table.number(row, 3, "Dialogue_ID")?;
        dialogues.entry(dialogue).or_default().push(table.number(row, 4, "Utterance_ID")?);
        *numbers.entry(table.field(row, 0)).or_default() += 1;
        let place = [5, 6, 7, 1].map(|column| table.field(row, column).to_owned());
        places.entry(place).or_default().insert(dialogue, table.field(row, 2));
        let times = [7, 8].map(|column| clock(table.field(row, column)));
        backward += usize::from(times[0].zip(times[1]).is_some_and(|(start, end)| end <= start));
    }
    let ids: Vec<u64> = dialogues.keys().copied().collect();
    let skipped: Vec<String> =
        ids.windows(2).flat_map(|pair| pair[0] + 1..pair[1]).take(9).map(|id| id.to_string()).collect();
    let gaps = dialogues.values().filter(|all| (0..).zip(*all).any(|(want, &have)| want != have)).count();
    let late = dialogues.values().filter(|all| all[0] != 0).count();
    let repeated = numbers.values().filter(|&&n| n > 1).count();
    let twice = places.values().filter(|dialogues| dialogues.len() > 1);
    let otherwise = twice.clone().filter(|dialogues| dialogues.values().collect::<BTreeSet<_>>().len() > 1).count();
    let twice = twice.count();
    let said = [
        (skipped.len(), format!("Dialogue_ID skips {}", skipped.join(", "))),
        (gaps, format!("dialogues in which Utterance_ID has gaps: {gaps}; the utterance before is the row before")),
        (late, format!("dialogues in which Utterance_ID does not begin at 0: {late}")),
        (repeated, format!("values of `Sr No.` in several rows: {repeated}; it is no key")),
        (twice, format!("utterances in two dialogues: {twice}, of them with different labels: {otherwise}")),
        (backward, format!("rows that end before they begin (EndTime): {backward}")),
    ];
    let said = said.into_iter().filter(|(n, _)| *n > 0).map(|(_, text)| text).collect();
    Ok((said, places.into_keys().collect()))
}

/// Milliseconds of `0:36:59,425`.
fn clock(text: &str) -> Option<u64> {
    let (seconds, milliseconds) = text.split_once(',')?;
    let seconds =
        seconds.split(':').try_fold(0_u64, |sum, part| sum.checked_mul(60)?.checked_add(part.trim().parse().ok()?))?;
    seconds.checked_mul(1000)?.checked_add(milliseconds.trim().parse().ok()?)
}
