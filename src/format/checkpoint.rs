//! Checkpoints: `complete.json`, which makes one, and `slots.jsonl.zst`, what filled the slots open in it (T3).
//!
//! Owns: their content and limits.
//! Does not own: the database inside (`meta::export`, `meta::import`), when one is complete (`replication::checkpoint`).

use std::io::{BufRead, BufReader, Read};

use serde::{Deserialize, Serialize};

use super::json::{self, LINE_BYTES_MAX, Line};
use super::key::{self, CheckpointFile};
use super::record::{Change, Record};
use super::{CHUNK_BYTES_MAX, Error, FORMAT, Hex, Result, check_number, from_json, utc_text};
use crate::clock::Timestamp;
use crate::id::{Epoch, ExportId, FilesystemId, Hash, SegmentNumber, Seq, TargetId, WriterId};

/// Bytes of the longest `complete.json` that is read: 10,000 parts of about 140.
pub const COMPLETE_BYTES_MAX: u64 = 2 << 20;
/// Bytes of the longest part, and of the slots.
pub const PART_BYTES_MAX: u64 = CHUNK_BYTES_MAX;
/// Decompression gives at most this many times the bytes that went in, or the database is not one of ours (D5).
pub const RATIO_MAX: u64 = 1000;

const ZSTD_LEVEL: i32 = 3;
const WINDOW_LOG_MAX: u32 = 24;

/// `complete.json`: written last, when every chunk that snapshot or slots name is on this target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complete {
    /// Of which filesystem.
    pub filesystem: FilesystemId,
    /// On which target.
    pub target: TargetId,
    /// Its writer's right to write.
    pub epoch: Epoch,
    /// Its writer.
    pub writer: WriterId,
    /// The snapshot holds every record up to this one.
    pub seq: Seq,
    /// The first segment of this target that may hold records above `seq`.
    pub replay_from: SegmentNumber,
    /// Bytes of the database, decompressed.
    pub sqlite_bytes: u64,
    /// The compressed database, in order.
    pub parts: Vec<Part>,
    /// The slots.
    pub slots: Part,
    /// Lines of the slots.
    pub slots_count: u64,
    /// Rows of `inode`.
    pub inodes: u64,
    /// Rows of `chunk` that are referenced.
    pub chunks: u64,
    /// Bytes of those.
    pub chunk_bytes: u64,
    /// When it was exported; whole seconds.
    pub created: Timestamp,
}

/// An object of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Its name in the checkpoint's folder.
    pub file: CheckpointFile,
    /// Its length.
    pub bytes: u64,
    /// BLAKE3 of its bytes.
    pub hash: Hash,
}

impl Part {
    /// Describes the object with these bytes.
    pub fn of(file: CheckpointFile, bytes: &[u8]) -> Part {
        Part { file, bytes: bytes.len() as u64, hash: Hash::of(bytes) }
    }

    /// Checks that `bytes` are the object that was described.
    pub fn verify(&self, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 != self.bytes {
            let why = format_args!("has {} bytes, expected {}", bytes.len(), self.bytes);
            return Err(Error::malformed(self.file.to_string(), why));
        }
        let found = Hash::of(bytes);
        if found == self.hash {
            return Ok(());
        }
        let place = self.file.to_string();
        Err(Error::WrongHash { place, expected: self.hash.to_string(), found: found.to_string() })
    }
}

#[derive(Serialize, Deserialize)]
struct Document {
    format: u32,
    filesystem: FilesystemId,
    target: TargetId,
    epoch: Epoch,
    writer: WriterId,
    seq: Seq,
    replay_from: SegmentNumber,
    sqlite_bytes: u64,
    parts: Vec<PartDocument>,
    slots: SlotsDocument,
    inodes: u64,
    chunks: u64,
    chunk_bytes: u64,
    #[serde(with = "utc_text")]
    created: Timestamp,
}

#[derive(Serialize, Deserialize)]
struct PartDocument {
    name: String,
    bytes: u64,
    blake3: Hex,
}

#[derive(Serialize, Deserialize)]
struct SlotsDocument {
    name: String,
    bytes: u64,
    blake3: Hex,
    count: u64,
}

impl Complete {
    /// The object's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let document = Document {
            format: FORMAT,
            filesystem: self.filesystem,
            target: self.target,
            epoch: self.epoch,
            writer: self.writer,
            seq: self.seq,
            replay_from: self.replay_from,
            sqlite_bytes: self.sqlite_bytes,
            parts: (self.parts.iter())
                .map(|part| PartDocument { name: part.file.to_string(), bytes: part.bytes, blake3: Hex(part.hash) })
                .collect(),
            slots: SlotsDocument {
                name: self.slots.file.to_string(),
                bytes: self.slots.bytes,
                blake3: Hex(self.slots.hash),
                count: self.slots_count,
            },
            inodes: self.inodes,
            chunks: self.chunks,
            chunk_bytes: self.chunk_bytes,
            created: self.created,
        };
        let mut bytes = serde_json::to_vec(&document).expect("strings and numbers always encode");
        bytes.push(b'\n');
        bytes
    }

    /// Reads the object stored under `key::complete(seq, export)`.
    pub fn decode(bytes: &[u8], seq: Seq, export: ExportId) -> Result<Complete> {
        let place = key::complete(seq, export);
        let document: Document = from_json(&place, bytes, COMPLETE_BYTES_MAX)?;
        super::expect_same(&place, "seq", &seq, &document.seq)?;
        for (key, number) in [
            ("epoch", document.epoch.0),
            ("replay_from", document.replay_from.0),
            ("sqlite_bytes", document.sqlite_bytes),
            ("slots.count", document.slots.count),
            ("inodes", document.inodes),
            ("chunks", document.chunks),
            ("chunk_bytes", document.chunk_bytes),
        ] {
            check_number(&place, key, number)?;
        }
        if document.replay_from.0 == 0 {
            return Err(Error::malformed(place, "replay_from is 0"));
        }
        let parts: Option<Vec<Part>> = (0..CheckpointFile::PARTS_MAX)
            .zip(&document.parts)
            .map(|(index, part)| {
                let file = CheckpointFile::Part(index);
                let hash = part.blake3.0;
                (part.name == file.to_string() && part.bytes <= PART_BYTES_MAX).then_some(Part {
                    file,
                    bytes: part.bytes,
                    hash,
                })
            })
            .collect();
        let parts = parts.filter(|parts| !parts.is_empty() && parts.len() == document.parts.len());
        let parts = parts.ok_or_else(|| {
            Error::malformed(place.as_str(), "parts are not meta.sqlite.zst.0000 … in order, of at most 64 MiB each")
        })?;
        let stored: u64 = parts.iter().map(|part| part.bytes).sum();
        if document.sqlite_bytes > stored.saturating_mul(RATIO_MAX) {
            let why = format_args!("{stored} bytes cannot hold a database of {}", document.sqlite_bytes);
            return Err(Error::malformed(place, why));
        }
        if document.slots.name != CheckpointFile::Slots.to_string() || document.slots.bytes > PART_BYTES_MAX {
            return Err(Error::malformed(place, "slots are not slots.jsonl.zst of at most 64 MiB"));
        }
        Ok(Complete {
            filesystem: document.filesystem,
            target: document.target,
            epoch: document.epoch,
            writer: document.writer,
            seq,
            replay_from: document.replay_from,
            sqlite_bytes: document.sqlite_bytes,
            parts,
            slots: Part { file: CheckpointFile::Slots, bytes: document.slots.bytes, hash: document.slots.blake3.0 },
            slots_count: document.slots.count,
            inodes: document.inodes,
            chunks: document.chunks,
            chunk_bytes: document.chunk_bytes,
            created: document.created,
        })
    }
}

/// Encodes the slots: records `content` and `void` in ascending order of seq. Returns the object's bytes and its count
/// of lines (a long content has several).
pub fn encode_slots<'a>(records: impl IntoIterator<Item = &'a Record>) -> (Vec<u8>, u64) {
    let mut plain = Vec::new();
    let mut count = 0;
    let mut last = Seq::ZERO;
    for record in records {
        assert!(last < record.seq, "slots are in order of seq, each once: {last}, {}", record.seq);
        assert!(fills(&record.change), "record {} does not fill a slot", record.seq);
        last = record.seq;
        for line in json::lines(record) {
            plain.extend_from_slice(&line);
            count += 1;
        }
    }
    (zstd::bulk::compress(&plain, ZSTD_LEVEL).expect("zstd compresses any bytes into memory"), count)
}

/// Reads the slots one by one, in order of seq; `count` as in `complete.json`. In memory is one line at a time.
pub fn decode_slots(body: &[u8], count: u64) -> Result<Slots<'_>> {
    let malformed = |e| Error::malformed(key::SLOTS_NAME, e);
    let mut decoder = zstd::stream::read::Decoder::with_buffer(body).map_err(malformed)?;
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(malformed)?;
    Ok(Slots { lines: BufReader::new(decoder), left: count, number: 0, last: Seq::ZERO, ended: false })
}

/// The records of `slots.jsonl.zst`. Ends after the first error.
pub struct Slots<'a> {
    lines: BufReader<zstd::stream::read::Decoder<'static, &'a [u8]>>,
    left: u64,
    number: u64,
    last: Seq,
    ended: bool,
}

impl Iterator for Slots<'_> {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        if self.ended {
            return None;
        }
        let item = self.read().map_err(|e| e.within(format_args!("{}: line {}", key::SLOTS_NAME, self.number)));
        self.ended = !matches!(item, Ok(Some(_)));
        item.transpose()
    }
}

impl Slots<'_> {
    fn read(&mut self) -> Result<Option<Record>> {
        self.number += 1;
        let mut line = Vec::new();
        let mut bounded = (&mut self.lines).take(LINE_BYTES_MAX as u64 + 1);
        bounded.read_until(b'\n', &mut line).map_err(|e| Error::malformed("zstd", e))?;
        if line.is_empty() && self.left == 0 {
            return Ok(None);
        }
        let Some(left) = self.left.checked_sub(1).filter(|_| !line.is_empty()) else {
            return Err(Error::malformed("end", "more or fewer lines than complete.json says"));
        };
        self.left = left;
        let Line::Record(record) = json::decode_line(&line)? else {
            return Err(Error::malformed("line", "a trailer among slots"));
        };
        if !line.ends_with(b"\n") {
            return Err(Error::malformed("line", "is not complete"));
        }
        // Parts of one content have the same seq.
        if record.seq < self.last || !fills(&record.change) {
            return Err(Error::malformed("line", format_args!("record {} does not belong here", record.seq)));
        }
        self.last = record.seq;
        Ok(Some(record))
    }
}

fn fills(change: &Change) -> bool {
    matches!(change, Change::Content(_) | Change::Void { .. })
}
