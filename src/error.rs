//! What can go wrong, as a sentence with the numbers in it.

use std::fmt;
use std::path::Path;

/// The classes of failure that a caller may act on. The command's exit codes and the C ABI's statuses are these numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Code {
    /// An argument, option or recipe value is out of its range.
    InvalidArgument = 1,
    /// A file, folder, tensor, label or adapter that was named does not exist.
    NotFound = 2,
    /// The system refused to read or write: permission, full disk, broken device.
    Io = 3,
    /// A file's content contradicts itself, its format, or the file it belongs to.
    BadFile = 4,
    /// Well-formed, but not something this library does.
    Unsupported = 5,
    /// An allocation sized by input was refused.
    OutOfMemory = 6,
    /// More tokens than the model's context holds.
    ContextFull = 7,
    /// The handle is in use by another call.
    Busy = 8,
    /// The caller asked to stop.
    Cancelled = 9,
    /// The GPU is gone; a new runtime is needed.
    DeviceLost = 10,
    /// A loss, gradient or weight is NaN or infinite.
    Numeric = 11,
    /// An earlier panic left this handle unusable.
    Poisoned = 12,
    /// A broken promise of the library's own: please report it.
    Internal = 13,
}

/// A failure: its class, and one or more sentences saying what, where, both values, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    code: Code,
    text: String,
}

/// A result with this library's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of class `code` that says `text`.
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
    /// An argument out of its range.
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, text)
    }
    /// Something named that is not there.
    pub fn not_found(text: impl Into<String>) -> Self {
        Self::new(Code::NotFound, text)
    }
    /// A file whose content is wrong; `text` follows the path.
    pub fn bad_file(path: &Path, text: impl fmt::Display) -> Self {
        Self::new(Code::BadFile, format!("{}: {text}", path.display()))
    }
    /// Something this library does not do.
    pub fn unsupported(text: impl Into<String>) -> Self {
        Self::new(Code::Unsupported, text)
    }
    /// The system's refusal to `doing` (such as "read") at `path`.
    pub fn io(doing: &str, path: &Path, error: &std::io::Error) -> Self {
        let code = match error.kind() {
            std::io::ErrorKind::NotFound => Code::NotFound,
            std::io::ErrorKind::OutOfMemory => Code::OutOfMemory,
            _ => Code::Io,
        };
        Self::new(code, format!("cannot {doing} {}: {error}", path.display()))
    }
    /// A broken promise of the library's own.
    pub fn internal(text: impl Into<String>) -> Self {
        Self::new(Code::Internal, text)
    }
    /// The same error, with where it happened in front.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.text = format!("{place}: {}", self.text);
        self
    }
    /// Its class.
    pub fn code(&self) -> Code {
        self.code
    }
    /// Its sentence.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_goes_in_front_and_the_class_stays() {
        let error = Error::invalid("rank is 0, must be 1 or more").at("recipe.toml");
        assert_eq!(error.to_string(), "recipe.toml: rank is 0, must be 1 or more");
        assert_eq!(error.code(), Code::InvalidArgument);
    }

    #[test]
    fn a_missing_file_is_not_found_a_forbidden_one_is_io_and_no_memory_is_that() {
        let code = |kind| Error::io("read", Path::new("x"), &std::io::Error::from(kind)).code();
        assert_eq!(code(std::io::ErrorKind::NotFound), Code::NotFound);
        assert_eq!(code(std::io::ErrorKind::PermissionDenied), Code::Io);
        assert_eq!(code(std::io::ErrorKind::OutOfMemory), Code::OutOfMemory);
    }
}
