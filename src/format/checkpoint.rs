//! Checkpoints: `complete.json`, which makes one, and `slots.jsonl.zst`, what filled the slots open in it (T3).
//!
//! Owns: their content and limits.
//! Does not own: the database inside (`meta::export`, `meta::import`), when one is complete (`replication::checkpoint`).

use std::io::{BufRead, BufReader, Read};

use serde::{Deserialize, Serialize};

use super::json::{self, LINE_BYTES_MAX, Line};
use super::key::{self, CheckpointFile};
use super::record::{Change, Record};
use super::{CHUNK_BYTES_MAX, Error, FORMAT, Hex, Result, check_in_keys, check_number, from_json, utc_text};
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
        check_in_keys(&place, "epoch", document.epoch.0, key::EPOCH_MAX.0)?;
        check_in_keys(&place, "replay_from", document.replay_from.0, key::SEGMENT_MAX.0)?;
        for (key, number) in [
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::arbitrary;
    use super::*;

    const EXPORT: ExportId = ExportId(7);

    fn complete() -> Complete {
        Complete {
            filesystem: FilesystemId(uuid::Uuid::from_u128(1)),
            target: TargetId(uuid::Uuid::from_u128(2)),
            epoch: Epoch(7),
            writer: WriterId(0x9c1f_04aa),
            seq: Seq(40960),
            replay_from: SegmentNumber(815),
            sqlite_bytes: 100,
            parts: vec![Part::of(CheckpointFile::Part(0), b"zero"), Part::of(CheckpointFile::Part(1), b"one")],
            slots: Part::of(CheckpointFile::Slots, b"slots"),
            slots_count: 3,
            inodes: 61234,
            chunks: 5120,
            chunk_bytes: 19_327_352_832,
            created: Timestamp::new(1_763_632_800, 0).unwrap(),
        }
    }

    #[test]
    fn todays_encoder_writes_the_golden_complete() {
        let golden = include_bytes!("../../tests/fixtures/format-1/complete.json");
        assert_eq!(String::from_utf8_lossy(&complete().encode()), String::from_utf8_lossy(golden));
        assert_eq!(Complete::decode(golden, Seq(40960), EXPORT), Ok(complete()));
    }

    #[test]
    fn parts_out_of_order_or_out_of_bounds_are_refused() {
        let text = String::from_utf8(complete().encode()).unwrap();
        for (from, to) in [
            (".zst.0000", ".zst.0001"),
            (".zst.0001", ".zst.1"),
            (".zst.0001", "/../../x"),
            ("slots.jsonl.zst", "tandemfs.json"),
            ("\"bytes\":4", "\"bytes\":67108865"),
            ("\"sqlite_bytes\":100", "\"sqlite_bytes\":100000000"),
            ("\"replay_from\":815", "\"replay_from\":0"),
            ("\"inodes\":61234", "\"inodes\":9007199254740992"),
        ] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text, "{from}");
            let result = Complete::decode(changed.as_bytes(), Seq(40960), EXPORT);
            assert!(matches!(result, Err(Error::Malformed { .. })), "{to}");
        }
        assert!(matches!(Complete::decode(text.as_bytes(), Seq(1), EXPORT), Err(Error::Foreign { .. })));
        let none = Complete { parts: vec![], ..complete() };
        assert!(Complete::decode(&none.encode(), Seq(40960), EXPORT).is_err());
    }

    #[test]
    fn a_part_is_known_by_its_length_and_hash() {
        let part = Part::of(CheckpointFile::Part(0), b"zero");
        assert_eq!(part.verify(b"zero"), Ok(()));
        assert!(matches!(part.verify(b"zer0"), Err(Error::WrongHash { .. })));
        assert!(matches!(part.verify(b"zero0"), Err(Error::Malformed { .. })));
    }

    fn slots() -> impl Strategy<Value = Vec<Record>> {
        proptest::collection::vec(arbitrary::content(), 0..6).prop_map(|contents| {
            let record = |(seq, content)| Record { seq: Seq(seq), change: Change::Content(content) };
            (1..).step_by(3).zip(contents).map(record).collect()
        })
    }

    proptest! {
        #[test]
        fn slots_read_back_as_they_were(records in slots()) {
            let (body, count) = encode_slots(&records);
            let read: Result<Vec<Record>> = decode_slots(&body, count).unwrap().collect();
            prop_assert_eq!(read, Ok(records));
            prop_assert!(decode_slots(&body, count + 1).unwrap().any(|record| record.is_err()));
            if count > 0 {
                prop_assert!(decode_slots(&body, count - 1).unwrap().any(|record| record.is_err()));
            }
        }

        #[test]
        fn truncated_slots_are_refused(records in slots(), at in any::<prop::sample::Index>()) {
            let (body, count) = encode_slots(&records);
            let body = &body[..at.index(body.len())];
            prop_assert!(decode_slots(body, count).map_or(true, |mut slots| count == 0 || slots.any(|record| record.is_err())));
        }
    }

    #[test]
    fn slots_out_of_order_or_of_other_kinds_are_refused() {
        let void = |seq| format!("{{\"t\":\"void\",\"seq\":{seq},\"ino\":2,\"gen\":1,\"why\":\"moved\"}}\n");
        let read = |text: String| {
            let body = zstd::bulk::compress(text.as_bytes(), 1).unwrap();
            decode_slots(&body, text.lines().count() as u64).unwrap().collect::<Result<Vec<_>>>()
        };
        assert!(read(void(1) + &void(1) + &void(2)).is_ok());
        assert!(read(void(2) + &void(1)).is_err());
        assert!(read(void(1).trim_end().into()).is_err());
        let link = "{\"t\":\"link\",\"seq\":8,\"parent\":1,\"name\":\"b\",\"ino\":12,\"time\":[1,2]}\n";
        assert!(read(link.into()).is_err());
    }
}
