//! Every reader of bytes that somebody else wrote, as one function from bytes: what must never panic, nor cost much.
//!
//! Owns: the entries, and what must hold of whatever they take for valid. Does not own: where the bytes come from: libFuzzer
//! (`tests/fuzz/targets`), the kept corpus and mutations on the stable toolchain (`tests/hostile`).
//!
//! An entry says whether the bytes were valid. What an object would be read as (its key, the hash of a checkpoint) is taken
//! from the bytes themselves, so that all of a reader can be reached.

use std::path::Path;

use tandemfs::config::{Config, TargetConfig};
use tandemfs::control::protocol::{Reply, Request};
use tandemfs::control::registry;
use tandemfs::control::status::Status;
use tandemfs::format::key::{self, Key};
use tandemfs::format::{checkpoint, json, segment, superblock, writer};
use tandemfs::id::{Epoch, ExportId, FilesystemId, SegmentNumber, Seq, TargetId, WriterId};
use tandemfs::meta::import;
use tandemfs::write::ranges;

/// An entry.
pub type Entry = fn(&[u8]) -> bool;

/// All of them, by the name of their folder in the corpus.
pub const ALL: &[(&str, Entry)] = &[
    ("config", config),
    ("uri", uri),
    ("key", key),
    ("superblock", superblock),
    ("writer", writer),
    ("segment", segment),
    ("segment_text", segment_text),
    ("slots", slots),
    ("slots_text", slots_text),
    ("complete", complete),
    ("checkpoint", checkpoint),
    ("control", control),
    ("registry", registry),
    ("ranges", ranges),
];

/// A configuration file.
pub fn config(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    // It may name secrets that this machine does not have.
    Config::from_toml(text, Path::new("/etc/tandemfs.toml")).is_ok()
}

/// A target as it is given on the command line.
pub fn uri(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let _ = TargetConfig::from_uri("x", text);
    TargetConfig::from_argument(text).is_ok()
}

/// The key of an object.
pub fn key(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    // What is taken for one of ours is exactly the key that we would write.
    let again = match key::parse(text) {
        Key::Superblock => key::SUPERBLOCK.to_owned(),
        Key::Writer { epoch, writer } => key::writer(epoch, writer),
        Key::Segment { epoch, writer, n } => key::segment(epoch, writer, n),
        Key::Chunk(hash) => key::chunk(hash),
        Key::Checkpoint { seq, export, file } => key::checkpoint_part(seq, export, file),
        Key::Temporary => return true,
        Key::Foreign => return false,
    };
    assert_eq!(again, text);
    true
}

/// `tandemfs.json`.
pub fn superblock(data: &[u8]) -> bool {
    let Ok(found) = superblock::Superblock::decode(data) else { return false };
    assert_eq!(superblock::Superblock::decode(&found.encode()), Ok(found));
    true
}

/// `writers/….json`.
pub fn writer(data: &[u8]) -> bool {
    let says = members(data);
    let (epoch, id) = (Epoch(number(&says, "epoch")), text(&says, "writer").parse().unwrap_or(WriterId(1)));
    let Ok(found) = writer::Writer::decode(data, epoch, id) else { return false };
    assert_eq!(writer::Writer::decode(&found.encode(), epoch, id), Ok(found));
    true
}

/// A segment as it lies on a target.
pub fn segment(data: &[u8]) -> bool {
    let place = place_of(&unpacked(data));
    let Ok(decoded) = segment::decode(data, &place) else { return false };
    for record in &decoded.records {
        // Whatever is taken can be written and read again.
        let lines = json::lines(record);
        assert!(lines.iter().all(|line| json::decode_line(line).is_ok()), "{record:?}");
    }
    true
}

/// The lines of a segment. They are packed, and sealed as they should be.
pub fn segment_text(data: &[u8]) -> bool {
    let end = data.windows(9).rposition(|window| window == b",\"hash\":\"");
    let mut sealed = data[..end.unwrap_or(data.len())].to_vec();
    if end.is_some() {
        let hash = blake3::hash(&sealed).to_hex();
        sealed.extend_from_slice(format!(",\"hash\":\"{hash}\"}}\n").as_bytes());
    }
    segment(&zstd::bulk::compress(&sealed, 1).expect("it fits into memory"))
}

/// `slots.jsonl.zst`; the first byte is the count of its records.
pub fn slots(data: &[u8]) -> bool {
    let Some((count, body)) = data.split_first() else { return false };
    match checkpoint::decode_slots(body, u64::from(*count)) {
        Ok(slots) => slots.into_iter().all(|record| record.is_ok()),
        Err(_) => false,
    }
}

/// The lines of `slots.jsonl.zst`.
pub fn slots_text(data: &[u8]) -> bool {
    let count = data.iter().filter(|byte| **byte == b'\n').count().min(255) as u8;
    slots(&[vec![count], zstd::bulk::compress(data, 1).expect("it fits into memory")].concat())
}

/// `complete.json`.
pub fn complete(data: &[u8]) -> bool {
    let (seq, export) = (Seq(number(&members(data), "seq")), ExportId(1));
    let Ok(found) = checkpoint::Complete::decode(data, seq, export) else { return false };
    assert_eq!(checkpoint::Complete::decode(&found.encode(), seq, export), Ok(found));
    true
}

/// `meta.sqlite` of a checkpoint, unpacked.
pub fn checkpoint(data: &[u8]) -> bool {
    let shm = Path::new("/dev/shm");
    let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.expect("a temporary folder");
    let file = dir.path().join("meta.sqlite");
    std::fs::write(&file, data).expect("write to a temporary folder");
    // Of the filesystem of the kept one.
    let filesystem = FilesystemId(uuid::Uuid::from_u128(0x6d0c_0000_0000_4000_8000_0000_0000_0001));
    let expected = import::Expected { filesystem, seq: Seq(6) };
    import::import(&file, &expected, &dir.path().join("store")).is_ok()
}

/// A line of the control protocol, from either side.
pub fn control(data: &[u8]) -> bool {
    let _ = serde_json::from_slice::<Status>(data);
    let reply = serde_json::from_slice::<Reply>(data).is_ok();
    let Ok(request) = serde_json::from_slice::<Request>(data) else { return reply };
    let text = serde_json::to_vec(&request).expect("a request is JSON");
    assert_eq!(serde_json::from_slice::<Request>(&text).expect("it was written by us"), request);
    true
}

/// A file of the registry of mounts.
pub fn registry(data: &[u8]) -> bool {
    let Ok(entry) = serde_json::from_slice::<registry::Entry>(data) else { return false };
    let text = serde_json::to_vec(&entry).expect("an entry is JSON");
    assert_eq!(serde_json::from_slice::<registry::Entry>(&text).expect("it was written by us"), entry);
    true
}

/// The dirty ranges of a session.
pub fn ranges(data: &[u8]) -> bool {
    let all = ranges::decode(data, ranges::Trust::All);
    let synced = ranges::decode(data, ranges::Trust::Synced);
    for range in synced.ranges.iter() {
        assert!(all.ranges.contains(&range), "what a mark covers, is counted without it, too");
    }
    !all.ranges.is_empty()
}

fn members(data: &[u8]) -> serde_json::Value {
    serde_json::from_slice(data).unwrap_or_default()
}

fn number(says: &serde_json::Value, member: &str) -> u64 {
    says[member].as_u64().unwrap_or(1)
}

fn text<'a>(says: &'a serde_json::Value, member: &str) -> &'a str {
    says[member].as_str().unwrap_or_default()
}

/// What a segment unpacks to, if that is not much: to learn where it says it belongs.
fn unpacked(data: &[u8]) -> Vec<u8> {
    zstd::bulk::decompress(data, 8 << 20).unwrap_or_default()
}

/// Where a segment says it belongs.
fn place_of(text: &[u8]) -> segment::Place {
    let line = text.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()).unwrap_or_default();
    let says = members(line);
    let id = |member: &str| self::text(&says, member).parse().unwrap_or(uuid::Uuid::nil());
    segment::Place {
        filesystem: FilesystemId(id("filesystem")),
        target: TargetId(id("target")),
        epoch: Epoch(number(&says, "epoch")),
        writer: self::text(&says, "writer").parse().unwrap_or(WriterId(1)),
        n: SegmentNumber(number(&says, "n")),
    }
}
