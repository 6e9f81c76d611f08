//! The keys of the objects on a target.
//!
//! Owns: building and parsing keys. Nobody else writes one down.
//! Does not own: the target's prefix, listing (`target`), what the objects say (the other modules of `format`).
//!
//! ```text
//! tandemfs.json
//! writers/<epoch, 10 digits>-<writer>.json
//! chunks/<first 2 hex>/<64 hex>
//! journal/<epoch, 10 digits>-<writer>/<n, 12 digits>.jsonl.zst
//! checkpoints/<seq, 16 digits>-<export>/meta.sqlite.zst.0000 … , slots.jsonl.zst , complete.json
//! tmp/…
//! ```
//! Fixed widths make the order of keys the order of numbers. One object has one key: what does not read back to itself
//! is foreign.

use std::fmt;

use crate::id::{ChunkHash, Epoch, ExportId, SegmentNumber, Seq, WriterId};

/// The object that makes a prefix a target.
pub const SUPERBLOCK: &str = "tandemfs.json";
/// All chunks.
pub const CHUNKS: &str = "chunks/";
/// All segments, of all writers.
pub const JOURNAL: &str = "journal/";
/// All checkpoints.
pub const CHECKPOINTS: &str = "checkpoints/";
/// All writers.
pub const WRITERS: &str = "writers/";
/// Unfinished writes and probes: nobody's data.
pub const TEMPORARY: &str = "tmp/";

/// The highest epoch that a key can name.
pub const EPOCH_MAX: Epoch = Epoch(9_999_999_999);
/// The highest number of a segment that a key can name.
pub const SEGMENT_MAX: SegmentNumber = SegmentNumber(999_999_999_999);

/// The name of a checkpoint's last object in its folder.
pub const COMPLETE_NAME: &str = "complete.json";
/// The name of a checkpoint's slots in its folder.
pub const SLOTS_NAME: &str = "slots.jsonl.zst";
const PART_STEM: &str = "meta.sqlite.zst.";
const SEGMENT_SUFFIX: &str = ".jsonl.zst";

/// The key of a chunk.
pub fn chunk(hash: ChunkHash) -> String {
    format!("{CHUNKS}{:02x}/{hash}", hash.0[0])
}

/// The prefix of the chunks whose hash starts with `first`: listings go by these 256.
pub fn chunk_prefix(first: u8) -> String {
    format!("{CHUNKS}{first:02x}/")
}

/// The key of a segment.
pub fn segment(epoch: Epoch, writer: WriterId, n: SegmentNumber) -> String {
    format!("{}{:012}{SEGMENT_SUFFIX}", segment_prefix(epoch, writer), n.0)
}

/// The prefix of one writer's segments.
pub fn segment_prefix(epoch: Epoch, writer: WriterId) -> String {
    format!("{JOURNAL}{:010}-{writer}/", epoch.0)
}

/// The key of a writer's announcement.
pub fn writer(epoch: Epoch, id: WriterId) -> String {
    format!("{WRITERS}{:010}-{id}.json", epoch.0)
}

/// The prefix of one checkpoint's objects.
pub fn checkpoint_prefix(seq: Seq, export: ExportId) -> String {
    format!("{CHECKPOINTS}{:016}-{export}/", seq.0)
}

/// The key of one part of a checkpoint, by its name as in `complete.json`.
pub fn checkpoint_part(seq: Seq, export: ExportId, file: CheckpointFile) -> String {
    format!("{}{file}", checkpoint_prefix(seq, export))
}

/// The key of a checkpoint's `complete.json`.
pub fn complete(seq: Seq, export: ExportId) -> String {
    checkpoint_part(seq, export, CheckpointFile::Complete)
}

/// The key of a file of our own under [`TEMPORARY`]: a probe, or a write that is not finished.
pub fn temporary(name: &str) -> String {
    format!("{TEMPORARY}{name}")
}

/// An object of a checkpoint. Its `Display` is its name in the checkpoint's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CheckpointFile {
    /// Part of the compressed database: `meta.sqlite.zst.0000` is 0.
    Part(u16),
    /// `slots.jsonl.zst`.
    Slots,
    /// `complete.json`.
    Complete,
}

impl CheckpointFile {
    /// More parts than four digits can name are no checkpoint: 640 GB of compressed metadata.
    pub const PARTS_MAX: u16 = 10_000;

    /// Reads a name as in `complete.json`.
    pub fn parse(name: &str) -> Option<CheckpointFile> {
        match name {
            COMPLETE_NAME => Some(CheckpointFile::Complete),
            SLOTS_NAME => Some(CheckpointFile::Slots),
            _ => {
                let index = digits(name.strip_prefix(PART_STEM)?, 4)?;
                Some(CheckpointFile::Part(u16::try_from(index).ok()?))
            }
        }
    }
}

impl fmt::Display for CheckpointFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CheckpointFile::Part(index) => write!(f, "{PART_STEM}{index:04}"),
            CheckpointFile::Slots => f.write_str(SLOTS_NAME),
            CheckpointFile::Complete => f.write_str(COMPLETE_NAME),
        }
    }
}

/// What a key names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// `tandemfs.json`.
    Superblock,
    /// The announcement of a writer.
    Writer {
        /// Its right to write.
        epoch: Epoch,
        /// Its random part.
        writer: WriterId,
    },
    /// A chunk, raw.
    Chunk(ChunkHash),
    /// A segment of the journal.
    Segment {
        /// Of its writer.
        epoch: Epoch,
        /// Its writer.
        writer: WriterId,
        /// Its number on this target.
        n: SegmentNumber,
    },
    /// An object of a checkpoint.
    Checkpoint {
        /// Up to where its history goes.
        seq: Seq,
        /// Which export.
        export: ExportId,
        /// Which object of it.
        file: CheckpointFile,
    },
    /// Below `tmp/`.
    Temporary,
    /// Not one of ours: ignored and counted, never removed.
    Foreign,
}

/// Reads a key, relative to the target's prefix.
pub fn parse(key: &str) -> Key {
    known(key).unwrap_or(Key::Foreign)
}

fn known(key: &str) -> Option<Key> {
    if key == SUPERBLOCK {
        return Some(Key::Superblock);
    }
    if let Some(rest) = key.strip_prefix(CHUNKS) {
        let (first, name) = rest.split_once('/')?;
        let hash: ChunkHash = name.parse().ok()?;
        return (name.get(..2) == Some(first)).then_some(Key::Chunk(hash));
    }
    if let Some(rest) = key.strip_prefix(JOURNAL) {
        let (folder, name) = rest.split_once('/')?;
        let (epoch, writer) = identity(folder)?;
        let n = SegmentNumber(digits(name.strip_suffix(SEGMENT_SUFFIX)?, 12)?);
        return Some(Key::Segment { epoch, writer, n });
    }
    if let Some(rest) = key.strip_prefix(WRITERS) {
        let (epoch, writer) = identity(rest.strip_suffix(".json")?)?;
        return Some(Key::Writer { epoch, writer });
    }
    if let Some(rest) = key.strip_prefix(CHECKPOINTS) {
        let (folder, name) = rest.split_once('/')?;
        let (seq, export) = folder.split_once('-')?;
        return Some(Key::Checkpoint {
            seq: Seq(digits(seq, 16)?),
            export: export.parse().ok()?,
            file: CheckpointFile::parse(name)?,
        });
    }
    key.starts_with(TEMPORARY).then_some(Key::Temporary)
}

fn identity(text: &str) -> Option<(Epoch, WriterId)> {
    let (epoch, writer) = text.split_once('-')?;
    Some((Epoch(digits(epoch, 10)?), writer.parse().ok()?))
}

/// Exactly `width` decimal digits.
fn digits(text: &str, width: usize) -> Option<u64> {
    (text.len() == width && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Epoch = Epoch(7);
    const WRITER: WriterId = WriterId(0x9c1f_04aa);
    const EXPORT: ExportId = ExportId(0x0000_00ab);

    #[test]
    fn keys_are_those_of_the_format() {
        let hash = ChunkHash::of(b"");
        assert_eq!(chunk(hash), format!("chunks/af/{hash}"));
        assert!(chunk(hash).starts_with(&chunk_prefix(0xaf)));
        assert_eq!(segment(EPOCH, WRITER, SegmentNumber(813)), "journal/0000000007-9c1f04aa/000000000813.jsonl.zst");
        assert_eq!(writer(EPOCH, WRITER), "writers/0000000007-9c1f04aa.json");
        assert_eq!(complete(Seq(40960), EXPORT), "checkpoints/0000000000040960-000000ab/complete.json");
        assert_eq!(
            checkpoint_part(Seq(40960), EXPORT, CheckpointFile::Part(12)),
            "checkpoints/0000000000040960-000000ab/meta.sqlite.zst.0012"
        );
    }

    #[test]
    fn every_key_parses_to_what_it_was_built_from() {
        let hash = ChunkHash::of(b"x");
        assert_eq!(parse(SUPERBLOCK), Key::Superblock);
        assert_eq!(parse(&chunk(hash)), Key::Chunk(hash));
        let n = SegmentNumber(999_999_999_999);
        assert_eq!(parse(&segment(EPOCH, WRITER, n)), Key::Segment { epoch: EPOCH, writer: WRITER, n });
        assert_eq!(parse(&writer(EPOCH, WRITER)), Key::Writer { epoch: EPOCH, writer: WRITER });
        for file in
            [CheckpointFile::Part(0), CheckpointFile::Part(9999), CheckpointFile::Slots, CheckpointFile::Complete]
        {
            let key = checkpoint_part(Seq(3), EXPORT, file);
            assert_eq!(parse(&key), Key::Checkpoint { seq: Seq(3), export: EXPORT, file });
        }
        assert_eq!(parse(&temporary("probe-1")), Key::Temporary);
    }

    #[test]
    fn what_is_not_exactly_a_key_of_ours_is_foreign() {
        let hash = ChunkHash::of(b"");
        for foreign in [
            "",
            "tandemfs.json.bak",
            "chunks/",
            &format!("chunks/ae/{hash}"),
            &format!("chunks/{hash}"),
            &format!("chunks/af/{hash}.zst"),
            &chunk(hash).to_uppercase(),
            "journal/7-9c1f04aa/000000000813.jsonl.zst",
            "journal/0000000007-9c1f04aa/813.jsonl.zst",
            "journal/0000000007-9c1f04aa/00000000081é.jsonl.zst",
            "journal/0000000007-9c1f04aa/+00000000813.jsonl.zst",
            "journal/0000000007-9C1F04AA/000000000813.jsonl.zst",
            "journal/0000000007-9c1f04aa/000000000813.jsonl.zst/x",
            "writers/0000000007-9c1f04aa",
            "checkpoints/0000000000040960-000000ab/meta.sqlite.zst.00000",
            "checkpoints/0000000000040960-000000ab/other",
            "checkpoints/complete.json",
            "../tandemfs.json",
            "tmp",
        ] {
            assert_eq!(parse(foreign), Key::Foreign, "{foreign}");
        }
    }
}
