//! The bytes on a target, version 1: pure encoders and decoders.
//!
//! Owns: what FORMATS.md says, to the byte: records, segments, `tandemfs.json`, `writers/`, `complete.json`, keys.
//! Does not own: when something is written (`replication`), what a record does to the tables (`meta`), transport (`target`).
//!
//! Nothing here reads a clock, a file or the network. Bytes from a target are hostile until decoded: every decoder
//! bounds what it allocates and returns a typed error, never panics.

pub mod record;

use crate::clock::Timestamp;

/// Writes a time as RFC 3339 in UTC with whole seconds, as `created` and `started` have it.
pub fn utc(time: Timestamp) -> String {
    jiff::Timestamp::from_second(time.secs()).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}
