//! Results on standard output, and files that are written whole or not at all.

use dialoguellm::{Error, Result};
use serde_json::Value;
use std::io::{ErrorKind, Write};
use std::path::Path;

/// Writes `text` as it is, at once.
pub fn text(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        // whoever read has what they wanted (`| head`)
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Error::io("write", Path::new("standard output"), &error)),
    }
}

/// Writes a line.
pub fn line(line: impl std::fmt::Display) -> Result<()> {
    text(&format!("{line}\n"))
}

/// Writes a value as one line.
pub fn json(value: &Value) -> Result<()> {
    line(value)
}

/// Makes `path` hold `content`: written beside it and moved there, so a full disk leaves what was there before.
pub fn file(path: &Path, content: &str) -> Result<()> {
    let name = path.file_name().ok_or_else(|| Error::invalid(format!("{} names no file", path.display())))?;
    let beside = path.with_file_name(format!(".{}.new", name.to_string_lossy()));
    let written = std::fs::write(&beside, content).and_then(|()| std::fs::rename(&beside, path));
    written.map_err(|error| {
        let _ = std::fs::remove_file(&beside); // what is left is only in the way
        Error::io("write", path, &error)
    })
}

/// 1234567 as `1,234,567`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let first = digits.len() % 3;
    let mut groups: Vec<&str> = Vec::new();
    if first > 0 {
        groups.push(&digits[..first]);
    }
    groups.extend(digits.as_bytes()[first..].chunks(3).map(|group| std::str::from_utf8(group).unwrap_or_default()));
    groups.join(",")
}

/// Bytes in the largest unit that leaves one or more.
pub fn bytes(n: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let unit = (0..units.len() - 1).find(|unit| n >> (10 * (unit + 1)) == 0).unwrap_or(units.len() - 1);
    match unit {
        0 => format!("{n} bytes"),
        unit => format!("{:.1} {}", n as f64 / (1u64 << (10 * unit)) as f64, units[unit]),
    }
}

/// Seconds as `42 s`, `3 min 05 s` or `2 h 07 min`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round().clamp(0.0, 1e9) as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..100 => format!("{whole} s"),
        100..6000 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 12, 123, 1234, 1234567].map(thousands), ["0", "12", "123", "1,234", "1,234,567"]);
    }

    #[test]
    fn sizes_and_times_read_well() {
        assert_eq!([0, 1023, 1536, 3 << 30].map(bytes), ["0 bytes", "1023 bytes", "1.5 KiB", "3.0 GiB"]);
        assert_eq!([1.26, 42.4, 185.0, 7620.0].map(duration), ["1.3 s", "42 s", "3 min 05 s", "2 h 07 min"]);
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("x")).unwrap();
        std::fs::write(dir.path().join("x/y"), "").unwrap();
        assert!(file(&dir.path().join("x"), "text").is_err()); // a folder with a file in it cannot be replaced
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
