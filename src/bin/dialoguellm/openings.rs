//! The log of a test split's openings: what is chosen by looking at test figures is not measured by them any more, so
//! every look is noted, and a second one by the same recipe is shown as such.

use dialoguellm::emotion::Recipe;
use dialoguellm::files::dialogues::{Dialogue, Source, Split};
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

/// A short name of what a recipe asks for, whatever its seed. Fields at their defaults do not count: one that is new in the
/// library makes no older recipe another.
pub fn recipe_name(recipe: &Recipe) -> Result<String> {
    let table = |recipe: &Recipe| toml::Table::try_from(recipe);
    let not_toml = |error| Error::internal(format!("a recipe as TOML: {error}"));
    let (mut own, default) = (table(recipe).map_err(not_toml)?, table(&Recipe::default()).map_err(not_toml)?);
    for (section, fields) in &mut own {
        if let (Some(fields), Some(default)) =
            (fields.as_table_mut(), default.get(section).and_then(toml::Value::as_table))
        {
            fields.retain(|name, value| default.get(name) != Some(value) && name != "seed");
        }
    }
    Ok(fingerprint(&own.to_string()))
}

/// A short name of what is asked about.
pub fn data_name(dialogues: &[Dialogue]) -> Result<String> {
    let text = serde_json::to_string(dialogues).map_err(|_| Error::internal("dialogues are not JSON"))?;
    Ok(fingerprint(&text))
}

/// A short name of a text's content.
pub fn fingerprint(text: &str) -> String {
    Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_keeps_its_name_with_defaults_written_out_and_another_seed_and_no_other_field() {
        let name = |text: &str| recipe_name(&Recipe::from_toml(text).unwrap()).unwrap();
        let plain = name("[lora]\nrank = 4\n");
        let whole = Recipe::from_toml("[lora]\nrank = 4\n[train]\nseed = 3\n").unwrap().to_toml().unwrap();
        assert!(whole.lines().count() > 20, "{whole}");
        assert_eq!(name(&whole), plain);
        for other in ["[lora]\nrank = 5\n", "[lora]\nrank = 4\n[emotion]\nwindow = 1\n", ""] {
            assert_ne!(name(other), plain, "{other}");
        }
    }
}
