//! `writers/….json`: who holds the right to write to a target, and what it started from (T7).
//!
//! Owns: its content.
//! Does not own: lineage, fencing (`replication::contact`, `restore`).

use serde::{Deserialize, Serialize};

use super::{FORMAT, Hex, Result, check_in_keys, check_number, expect_same, from_json, key, utc_text};
use crate::clock::Timestamp;
use crate::id::{Epoch, FilesystemId, Hash, SegmentNumber, Seq, TargetId, WriterId};

/// Bytes of the longest one that is read.
pub const BYTES_MAX: u64 = 64 << 10;
/// Earlier writers that are named at most; of more, the newest.
pub const HISTORY_MAX: usize = 256;

/// A mount's announcement on one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    /// The filesystem it writes.
    pub filesystem: FilesystemId,
    /// The target it stands on.
    pub target: TargetId,
    /// Its right to write: higher than any that it saw.
    pub epoch: Epoch,
    /// Its random part, so that two mounts of one epoch are told apart.
    pub writer: WriterId,
    /// The machine, for people.
    pub host: String,
    /// When it was mounted; whole seconds.
    pub started: Timestamp,
    /// Of the program.
    pub version: String,
    /// The last segment of this target that it builds on. What others wrote after that is discarded history.
    pub parent: Option<Parent>,
    /// The writers whose history it goes on from, on whatever target they wrote. `parent` tells only of this target, which
    /// some of them may never have reached.
    pub history: Vec<Ancestor>,
}

/// A writer whose history another one goes on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ancestor {
    /// Its epoch.
    pub epoch: Epoch,
    /// The writer.
    pub writer: WriterId,
    /// Its records up to here are part of the history; those above are not.
    pub seq: Seq,
}

/// A point in a target's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    /// Of the writer of that segment.
    pub epoch: Epoch,
    /// The writer of that segment.
    pub writer: WriterId,
    /// Its number.
    pub n: SegmentNumber,
    /// Its hash.
    pub hash: Hash,
    /// The highest seq that was known by then.
    pub seq: Seq,
}

#[derive(Serialize, Deserialize)]
struct Document {
    format: u32,
    filesystem: FilesystemId,
    target: TargetId,
    epoch: Epoch,
    writer: WriterId,
    host: String,
    #[serde(with = "utc_text")]
    started: Timestamp,
    version: String,
    parent: Option<ParentDocument>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    history: Vec<AncestorDocument>,
}

#[derive(Serialize, Deserialize)]
struct AncestorDocument {
    epoch: Epoch,
    writer: WriterId,
    seq: Seq,
}

#[derive(Serialize, Deserialize)]
struct ParentDocument {
    epoch: Epoch,
    writer: WriterId,
    n: SegmentNumber,
    hash: Hex,
    seq: Seq,
}

impl Writer {
    /// The key it is stored under.
    pub fn key(&self) -> String {
        key::writer(self.epoch, self.writer)
    }

    /// The object's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let document = Document {
            format: FORMAT,
            filesystem: self.filesystem,
            target: self.target,
            epoch: self.epoch,
            writer: self.writer,
            host: self.host.clone(),
            started: self.started,
            version: self.version.clone(),
            parent: self.parent.map(|parent| ParentDocument {
                epoch: parent.epoch,
                writer: parent.writer,
                n: parent.n,
                hash: Hex(parent.hash),
                seq: parent.seq,
            }),
            history: self.history[self.history.len().saturating_sub(HISTORY_MAX)..]
                .iter()
                .map(|&Ancestor { epoch, writer, seq }| AncestorDocument { epoch, writer, seq })
                .collect(),
        };
        let mut bytes = serde_json::to_vec(&document).expect("strings and numbers always encode");
        bytes.push(b'\n');
        bytes
    }

    /// Reads the object stored under `key::writer(epoch, writer)`; one that says it is another's is refused.
    pub fn decode(bytes: &[u8], epoch: Epoch, writer: WriterId) -> Result<Writer> {
        let place = key::writer(epoch, writer);
        let document: Document = from_json(&place, bytes, BYTES_MAX)?;
        expect_same(&place, "epoch", &epoch, &document.epoch)?;
        expect_same(&place, "writer", &writer, &document.writer)?;
        if let Some(parent) = &document.parent {
            check_in_keys(&place, "parent.epoch", parent.epoch.0, key::EPOCH_MAX.0)?;
            check_in_keys(&place, "parent.n", parent.n.0, key::SEGMENT_MAX.0)?;
            check_number(&place, "parent.seq", parent.seq.0)?;
        }
        for ancestor in &document.history {
            check_in_keys(&place, "history.epoch", ancestor.epoch.0, key::EPOCH_MAX.0)?;
            check_number(&place, "history.seq", ancestor.seq.0)?;
        }
        Ok(Writer {
            filesystem: document.filesystem,
            target: document.target,
            epoch,
            writer,
            host: printable(&document.host),
            started: document.started,
            version: printable(&document.version),
            parent: document.parent.map(|parent| Parent {
                epoch: parent.epoch,
                writer: parent.writer,
                n: parent.n,
                hash: parent.hash.0,
                seq: parent.seq,
            }),
            history: document
                .history
                .into_iter()
                .map(|AncestorDocument { epoch, writer, seq }| Ancestor { epoch, writer, seq })
                .collect(),
        })
    }
}

/// What people may be shown of a text that anybody may have written: no escapes for their terminal, and no more than a line.
fn printable(text: &str) -> String {
    let shown = |char: char| if char.is_control() { char::REPLACEMENT_CHARACTER } else { char };
    text.chars().take(255).map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Error;
    use super::*;

    fn writer() -> Writer {
        Writer {
            filesystem: FilesystemId(uuid::Uuid::from_u128(1)),
            target: TargetId(uuid::Uuid::from_u128(2)),
            epoch: Epoch(7),
            writer: WriterId(0x9c1f_04aa),
            host: "nas1".into(),
            started: Timestamp::new(1_763_632_800, 0).unwrap(),
            version: "0.1.0".into(),
            parent: Some(Parent {
                epoch: Epoch(6),
                writer: WriterId(0x51ab_0c3d),
                n: SegmentNumber(812),
                hash: Hash::of(b"812"),
                seq: Seq(40211),
            }),
            history: vec![Ancestor { epoch: Epoch(6), writer: WriterId(0x51ab_0c3d), seq: Seq(40300) }],
        }
    }

    #[test]
    fn it_reads_back_with_and_without_parent_and_history() {
        for writer in [writer(), Writer { parent: None, history: vec![], ..writer() }] {
            assert_eq!(Writer::decode(&writer.encode(), writer.epoch, writer.writer), Ok(writer));
        }
    }

    #[test]
    fn of_many_ancestors_the_newest_are_named_and_it_stays_short() {
        let ancestor =
            |n: u64| Ancestor { epoch: Epoch((1 << 33) + n), writer: WriterId(u32::MAX), seq: Seq((1 << 53) - 1) };
        let long = Writer { history: (0..1000).map(ancestor).collect(), ..writer() };
        let bytes = long.encode();
        assert!((bytes.len() as u64) < BYTES_MAX / 2, "{}", bytes.len());
        let read = Writer::decode(&bytes, long.epoch, long.writer).unwrap();
        assert_eq!(read.history, long.history[1000 - HISTORY_MAX..]);
    }

    #[test]
    fn what_people_are_shown_cannot_command_their_terminal() {
        let hostile = Writer { host: "nas\u{1b}[2J\n".repeat(1000), version: "\0".into(), ..writer() };
        let read = Writer::decode(&hostile.encode(), hostile.epoch, hostile.writer).unwrap();
        assert!(read.host.chars().count() == 255 && !read.host.chars().any(char::is_control), "{:?}", read.host);
        assert_eq!(read.version, "\u{fffd}");
    }

    #[test]
    fn numbers_that_no_key_can_name_are_refused() {
        let parent = writer().parent.unwrap();
        for parent in [
            Parent { epoch: Epoch(key::EPOCH_MAX.0 + 1), ..parent },
            Parent { n: SegmentNumber(key::SEGMENT_MAX.0 + 1), ..parent },
            Parent { seq: Seq(1 << 53), ..parent },
        ] {
            let bytes = Writer { parent: Some(parent), ..writer() }.encode();
            assert!(matches!(Writer::decode(&bytes, writer().epoch, writer().writer), Err(Error::Malformed { .. })));
        }
    }

    #[test]
    fn one_that_stands_under_anothers_key_is_refused() {
        let bytes = writer().encode();
        assert!(matches!(Writer::decode(&bytes, Epoch(8), writer().writer), Err(Error::Foreign { what: "epoch", .. })));
        assert!(matches!(Writer::decode(&bytes, Epoch(7), WriterId(1)), Err(Error::Foreign { what: "writer", .. })));
    }
}
