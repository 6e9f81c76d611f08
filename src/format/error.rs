//! What can be wrong with bytes from a target.
//!
//! Owns: the few kinds of problem a reader may act on differently, each with the place where it was found.
//! Does not own: what to do about it (another copy, another target, an operator).

use std::fmt::Display;

/// Bytes that are not what FORMATS.md says. `place` names the object, and the line or key in it where that is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes break a rule of the format.
    #[error("{place}: {why}")]
    Malformed {
        /// Where.
        place: String,
        /// Which rule.
        why: String,
    },
    /// The bytes are not those that their hash names: damaged, or written by somebody else.
    #[error("{place}: hash is {found}, expected {expected}")]
    WrongHash {
        /// Where.
        place: String,
        /// The hash that stands in the object, or in the object that names it.
        expected: String,
        /// The hash of the bytes that are there.
        found: String,
    },
    /// Written by a version of this program that knows more.
    #[error("{place}: {what} is not known to this version of tandemfs")]
    Unsupported {
        /// Where.
        place: String,
        /// What is not known.
        what: String,
    },
    /// Longer than any such object may be.
    #[error("{place}: longer than {limit} bytes")]
    TooLong {
        /// Where.
        place: String,
        /// The bound that was hit.
        limit: u64,
    },
    /// A sound object that belongs somewhere else: another filesystem, target, writer or place in the chain.
    #[error("{place}: {what} is {found}, expected {expected}")]
    Foreign {
        /// Where.
        place: String,
        /// Which identity differs.
        what: &'static str,
        /// The identity that belongs here.
        expected: String,
        /// The identity that was found.
        found: String,
    },
}

/// A result of this module.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A broken rule at `place`.
    pub(crate) fn malformed(place: impl Into<String>, why: impl Display) -> Error {
        Error::Malformed { place: place.into(), why: why.to_string() }
    }

    /// The same error, found inside `outer`: callers that know the key of the object put it in front.
    pub fn within(mut self, outer: impl Display) -> Error {
        let (Error::Malformed { place, .. }
        | Error::WrongHash { place, .. }
        | Error::Unsupported { place, .. }
        | Error::TooLong { place, .. }
        | Error::Foreign { place, .. }) = &mut self;
        *place = format!("{outer}: {place}");
        self
    }
}

/// Compares an identity with the one that belongs here.
pub(crate) fn expect_same<T: PartialEq + Display>(
    place: &str,
    what: &'static str,
    expected: &T,
    found: &T,
) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::Foreign { place: place.into(), what, expected: expected.to_string(), found: found.to_string() })
}
