//! The bytes on a target, version 1: pure encoders and decoders.
//!
//! Owns: what FORMATS.md says, to the byte: records, segments, `tandemfs.json`, `writers/`, `complete.json`, keys.
//! Does not own: when something is written (`replication`), what a record does to the tables (`meta`), transport (`target`).
//!
//! Nothing here reads a clock, a file or the network. Bytes from a target are hostile until decoded: every decoder
//! bounds what it allocates and returns a typed error, never panics.
//!
//! ```text
//! key        names of objects              superblock   tandemfs.json
//! bytes      byte strings and names        writer       writers/….json
//! record     what a change says            segment      journal/…: lines and their trailer
//! check      the rules it obeys            checkpoint   complete.json, slots.jsonl.zst
//! line json  a change as a line
//! ```

pub mod bytes;
mod check;
pub mod checkpoint;
mod error;
pub mod json;
pub mod key;
mod line;
pub mod record;
pub mod segment;
pub mod superblock;
pub mod writer;

#[cfg(test)]
pub(crate) mod arbitrary;
#[cfg(test)]
mod golden;

pub use error::{Error, Result};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::clock::Timestamp;
use crate::id::Hash;
use error::expect_same;

/// The version of everything on a target. A reader stops at a higher one.
pub const FORMAT: u32 = 1;

/// Bytes of the largest chunk, whatever `chunk_size` is configured.
pub const CHUNK_BYTES_MAX: u64 = 64 << 20;

/// Writes a time as RFC 3339 in UTC with whole seconds, as `created` and `started` have it.
pub fn utc(time: Timestamp) -> String {
    jiff::Timestamp::from_second(time.secs()).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

/// Reads what [`utc`] wrote; fractions of a second are dropped.
pub(crate) fn parse_utc(text: &str) -> Option<Timestamp> {
    let time: jiff::Timestamp = text.parse().ok()?;
    // Towards zero would round a time before 1970 up; `Timestamp` counts seconds downwards.
    let secs = if time.subsec_nanosecond() < 0 { time.as_second() - 1 } else { time.as_second() };
    Timestamp::new(secs, 0).ok()
}

/// A time as RFC 3339 text in JSON.
mod utc_text {
    use super::*;

    pub fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&utc(*time))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Timestamp, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        parse_utc(&text).ok_or_else(|| serde::de::Error::custom(format_args!("{text:?} is not a time as in RFC 3339")))
    }
}

/// A hash as 64 hex digits in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hex(Hash);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Hex, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map(Hex).map_err(serde::de::Error::custom)
    }
}

/// A hash as 64 hex digits, or the empty string for none, in JSON.
mod hex_or_empty {
    use super::*;

    pub fn serialize<S: Serializer>(hash: &Option<Hash>, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match hash {
            Some(hash) => serializer.collect_str(hash),
            None => serializer.serialize_str(""),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<Hash>, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(serde::de::Error::custom)
    }
}

/// Reads one JSON document of a known object, of at most `limit` bytes. The version is looked at first, so that a
/// newer document is "newer" and not "malformed".
fn from_json<'de, T: Deserialize<'de>>(place: &str, bytes: &'de [u8], limit: u64) -> Result<T> {
    if bytes.len() as u64 > limit {
        return Err(Error::TooLong { place: place.into(), limit });
    }
    #[derive(Deserialize)]
    struct Version {
        format: u64,
    }
    let version: Version = serde_json::from_slice(bytes).map_err(|e| Error::malformed(place, e))?;
    check_format(place, version.format)?;
    serde_json::from_slice(bytes).map_err(|e| Error::malformed(place, e))
}

/// Stops at a version that is not ours.
fn check_format(place: &str, format: u64) -> Result<()> {
    if format == FORMAT as u64 {
        return Ok(());
    }
    Err(Error::Unsupported { place: place.into(), what: format!("format {format}") })
}

/// Stops at a number that a JSON reader elsewhere could not keep exactly.
fn check_number(place: &str, key: &str, number: u64) -> Result<()> {
    if number <= crate::id::NUMBER_MAX {
        return Ok(());
    }
    Err(Error::malformed(place, format_args!("{key} {number} is not below 2^53")))
}

/// Refuses numbers that no key can name: whoever builds on them could not be found again.
fn check_in_keys(place: &str, key: &str, number: u64, max: u64) -> Result<()> {
    if number <= max {
        return Ok(());
    }
    Err(Error::malformed(place, format_args!("{key} {number} is more than keys can name")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_documents_are_whole_seconds_in_utc() {
        let time = Timestamp::new(1_763_632_800, 7).unwrap();
        assert_eq!(utc(time), "2025-11-20T10:00:00Z");
        assert_eq!(parse_utc("2025-11-20T10:00:00Z"), Timestamp::new(1_763_632_800, 0).ok());
        assert_eq!(parse_utc("2025-11-20T11:00:00.5+01:00"), Timestamp::new(1_763_632_800, 0).ok());
        assert_eq!(parse_utc("1969-12-31T23:59:59.5Z"), Timestamp::new(-1, 0).ok());
        assert_eq!(parse_utc("yesterday"), None);
    }
}
