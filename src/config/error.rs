//! What is wrong with a configuration, where, and what to do about it.

use std::fmt;
use std::path::PathBuf;

/// Result of reading a configuration.
pub type Result<T> = std::result::Result<T, Error>;

/// A configuration that cannot be used. Nothing was touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What is wrong, naming the object. Never holds a secret.
    pub message: String,
    /// The next step.
    pub hint: Option<String>,
    /// Where, if it is in a file.
    pub place: Option<Place>,
}

/// A place in a file; line and column count from 1, the column in characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file as it was named.
    pub file: PathBuf,
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

impl Error {
    pub(super) fn new(message: impl Into<String>) -> Error {
        Error { message: message.into(), hint: None, place: None }
    }

    pub(super) fn hint(self, hint: impl Into<String>) -> Error {
        Error { hint: Some(hint.into()), ..self }
    }

    /// Adds a hint if there is one.
    pub(super) fn maybe_hint(self, hint: Option<String>) -> Error {
        Error { hint: hint.or(self.hint.clone()), ..self }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

impl std::error::Error for Error {}
