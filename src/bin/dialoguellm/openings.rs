//! The log of a test split's openings: what is chosen by looking at test figures is not measured by them any more, so
//! every look is noted, and a second one by the same recipe is shown as such.

use dialoguellm::files::dialogues::{Source, Split};
use dialoguellm::{Error, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::Path;

/// Refuses the test split of data that are cut into splits, unless the opening will be noted.
pub fn check(source: &Source, split: Split, log: Option<&Path>) -> Result<()> {
    let is_test = split == Split::Test && source.splits().contains(&Split::Test);
    match (is_test, log) {
        (true, None) => Err(Error::invalid(
            "the test split is opened with --final FILE, which notes it there; choose by --split dev, and open it once",
        )),
        (false, Some(_)) => Err(Error::invalid("--final is for the test split of data that have one: --split test")),
        _ => Ok(()),
    }
}

/// Adds a line to the log: `asked` (recipe, model, data), which opening by the same that is, and `figures`. Answers which.
///
/// # Errors
/// IO; BAD_FILE with the line that is no opening.
pub fn note(log: &Path, asked: Value, figures: &Value) -> Result<usize> {
    let before = match std::fs::read_to_string(log) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(Error::io("read", log, &error)),
    };
    let mut same = 0;
    for (line, number) in before.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty()) {
        let entry: Value = serde_json::from_str(line).map_err(|_| {
            Error::bad_file(log, format!("line {number} is not JSON; the log has a line for each opening"))
        })?;
        same += usize::from(entry["asked"] == asked);
    }
    let opening = same + 1;
    let mut entry = json!({"opening": opening, "asked": asked});
    for name in ["n", "accuracy", "weighted_f1", "macro_f1", "nll", "ece"] {
        entry[name] = figures[name].clone();
    }
    let written = OpenOptions::new().create(true).append(true).open(log).and_then(|mut file| {
        file.write_all(format!("{entry}\n").as_bytes())?;
        file.sync_data()
    });
    written.map_err(|error| Error::io("write", log, &error))?;
    Ok(opening)
}

/// A short name of a text's content.
pub fn fingerprint(text: &str) -> String {
    Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
