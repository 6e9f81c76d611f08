//! `tandemfs.json`: what makes a prefix a target of a filesystem (T1).
//!
//! Owns: its content, and the words that tell a person how to restore by hand.
//! Does not own: when it may be written (`target`, `replication::contact`): once, never again.

use serde::{Deserialize, Serialize};

use super::{Error, FORMAT, Result, from_json, utc_text};
use crate::clock::Timestamp;
use crate::id::{FilesystemId, TargetId};

/// Bytes of the longest one that is read.
pub const BYTES_MAX: u64 = 64 << 10;

const PLACE: &str = super::key::SUPERBLOCK;
const KIND: &str = "tandemfs";
const LAYOUT: &str = "chunks";
const CODEC: &str = "none";
const README: &str = "Every file of this filesystem can be rebuilt from this place alone: tandemfs restore --from URI, \
    or mount-examples/restore.py. By hand: cat checkpoints/<newest with complete.json>/meta.sqlite.zst.* | zstd -d > \
    meta.sqlite; a file is its rows of `extent` in order of offset, bytes from chunks/; then apply slots.jsonl.zst and \
    the journal.";

/// The identity of a filesystem and of one of its targets. Names are those at creation; only the ids identify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// The same on all targets.
    pub filesystem: FilesystemId,
    /// This target's own, written once.
    pub target: TargetId,
    /// The filesystem's name.
    pub name: String,
    /// The target's name.
    pub target_name: String,
    /// When this target was initialised; whole seconds.
    pub created: Timestamp,
}

#[derive(Serialize, Deserialize)]
struct Document {
    format: u32,
    kind: String,
    filesystem: FilesystemId,
    target: TargetId,
    name: String,
    target_name: String,
    #[serde(with = "utc_text")]
    created: Timestamp,
    layout: String,
    codec: String,
    #[serde(default)]
    readme: String,
}

impl Superblock {
    /// The object's bytes, indented for people.
    pub fn encode(&self) -> Vec<u8> {
        let document = Document {
            format: FORMAT,
            kind: KIND.into(),
            filesystem: self.filesystem,
            target: self.target,
            name: self.name.clone(),
            target_name: self.target_name.clone(),
            created: self.created,
            layout: LAYOUT.into(),
            codec: CODEC.into(),
            readme: README.into(),
        };
        let mut bytes = serde_json::to_vec_pretty(&document).expect("strings and numbers always encode");
        bytes.push(b'\n');
        bytes
    }

    /// Reads the object. A layout or codec of a later version is an error: its chunks would be misread.
    pub fn decode(bytes: &[u8]) -> Result<Superblock> {
        let document: Document = from_json(PLACE, bytes, BYTES_MAX)?;
        if document.kind != KIND {
            return Err(Error::malformed(PLACE, format_args!("kind is {:?}, expected {KIND:?}", document.kind)));
        }
        for (key, known, found) in [("layout", LAYOUT, &document.layout), ("codec", CODEC, &document.codec)] {
            if found != known {
                return Err(Error::Unsupported { place: PLACE.into(), what: format!("{key} {found:?}") });
            }
        }
        Ok(Superblock {
            filesystem: document.filesystem,
            target: document.target,
            name: document.name,
            target_name: document.target_name,
            created: document.created,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock() -> Superblock {
        Superblock {
            filesystem: FilesystemId(uuid::Uuid::from_u128(1)),
            target: TargetId(uuid::Uuid::from_u128(2)),
            name: "photos".into(),
            target_name: "aws".into(),
            created: Timestamp::new(1_763_632_800, 0).unwrap(),
        }
    }

    #[test]
    fn it_reads_back() {
        assert_eq!(Superblock::decode(&superblock().encode()), Ok(superblock()));
    }

    #[test]
    fn a_later_version_is_unsupported_not_malformed() {
        let text = String::from_utf8(superblock().encode()).unwrap();
        for (from, to) in [("\"format\": 1", "\"format\": 2"), ("\"chunks\",", "\"files\","), ("\"none\"", "\"zstd\"")]
        {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text);
            assert!(matches!(Superblock::decode(changed.as_bytes()), Err(Error::Unsupported { .. })), "{to}");
        }
        assert!(matches!(Superblock::decode(b"{\"format\":2}"), Err(Error::Unsupported { .. })));
    }

    #[test]
    fn something_else_is_malformed() {
        let other = String::from_utf8(superblock().encode()).unwrap().replace("\"tandemfs\"", "\"other\"");
        for bad in [b"" as &[u8], b"{}", b"[]", b"{\"format\":1}", b"{\"format\":-1}", other.as_bytes()] {
            assert!(matches!(Superblock::decode(bad), Err(Error::Malformed { .. })));
        }
        assert!(matches!(Superblock::decode(&vec![b' '; 1 << 17]), Err(Error::TooLong { .. })));
    }
}
