//! Golden bytes: a small target of format 1, kept in `tests/fixtures/format-1/target`.
//!
//! Owns: that today's encoders write those bytes (before compression) and today's decoders read them; that the script in
//! `mount-examples/` restores them.
//! Does not own: other ways to restore (`restore`).
//!
//! A change of these files is a change of the format. `TANDEMFS_BLESS=1 cargo test golden` writes what is missing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::checkpoint::{Complete, Part, decode_slots, encode_slots};
use super::key::CheckpointFile;
use super::record::{Change, Content, Dentry, Extent, Record, VoidReason};
use super::segment::{self, Builder, Chain, Place};
use super::superblock::Superblock;
use super::writer::{Parent, Writer};
use super::{json, key};
use crate::clock::Timestamp;
use crate::id::{
    ChunkHash, Epoch, ExportId, FilesystemId, Generation, Hash, InodeId, SegmentNumber, Seq, TargetId, WriterId,
};

const FILESYSTEM: FilesystemId = FilesystemId(uuid::Uuid::from_u128(0x6d0c_0000_0000_4000_8000_0000_0000_0001));
const TARGET: TargetId = TargetId(uuid::Uuid::from_u128(0xb1f2_0000_0000_4000_8000_0000_0000_0002));
const FIRST: (Epoch, WriterId) = (Epoch(1), WriterId(0x51ab_0c3d));
const LOST: (Epoch, WriterId) = (Epoch(2), WriterId(0x0000_dead));
const SECOND: (Epoch, WriterId) = (Epoch(3), WriterId(0x9c1f_04aa));

const CHECKPOINT: (Seq, ExportId) = (Seq(6), ExportId(0x0000_00c6));

const HELLO: &[u8] = b"hello, target\n";
const WORLD: &[u8] = b"WORLD and more that was gathered beside it";

/// The objects of the target by key; compressed ones as they are before compression.
struct Golden {
    objects: BTreeMap<String, Vec<u8>>,
    stored: BTreeMap<String, Vec<u8>>,
}

impl Golden {
    fn put(&mut self, key: String, bytes: &[u8]) {
        self.objects.insert(key.clone(), bytes.to_vec());
        self.stored.insert(key, bytes.to_vec());
    }

    /// Writes a segment and returns its hash.
    fn segment(
        &mut self,
        (epoch, writer): (Epoch, WriterId),
        n: u64,
        prev: Option<Hash>,
        records: &[Record],
        end: bool,
    ) -> Hash {
        let n = SegmentNumber(n);
        let place = Place { filesystem: FILESYSTEM, target: TARGET, epoch, writer, n };
        let mut builder = Builder::new(place, prev);
        for record in records {
            for line in json::lines(record) {
                builder.push(record.seq, &line);
            }
        }
        let low_water = records.last().map_or(Seq::ZERO, |record| record.seq);
        let encoded = builder.finish(if end { low_water } else { Seq::ZERO }, end);
        self.objects.insert(place.key(), zstd::stream::decode_all(&encoded.body[..]).unwrap());
        self.stored.insert(place.key(), encoded.body);
        encoded.hash
    }

    fn writer(&mut self, (epoch, writer): (Epoch, WriterId), parent: Option<Parent>) {
        let writer = Writer {
            filesystem: FILESYSTEM,
            target: TARGET,
            epoch,
            writer,
            host: "nas1".into(),
            started: at(0, 0),
            version: "0.1.0".into(),
            parent,
            history: vec![],
        };
        self.put(writer.key(), &writer.encode());
    }
}

fn at(secs: i64, nanos: u32) -> Timestamp {
    Timestamp::new(1_763_632_800 + secs, nanos).unwrap()
}

fn record(seq: u64, change: Change) -> Record {
    Record { seq: Seq(seq), change }
}

fn create(seq: u64, parent: u64, name: &[u8], ino: u64, mode: u32) -> Record {
    let (parent, ino) = (InodeId(parent), InodeId(ino));
    let time = at(seq as i64, 5);
    let name = name.to_vec();
    record(
        seq,
        match mode & libc::S_IFMT {
            libc::S_IFDIR => Change::Mkdir { parent, name, ino, mode, uid: 0, gid: 0, time, xattrs: vec![] },
            _ => Change::Create { parent, name, ino, mode, uid: 0, gid: 0, rdev: 0, time, xattrs: vec![] },
        },
    )
}

fn content(seq: u64, ino: u64, whole: bool, size: u64, pieces: &[(u64, u64, &[u8], u64)]) -> Record {
    let chunks: Vec<(ChunkHash, u64)> =
        pieces.iter().map(|(_, _, chunk, _)| (ChunkHash::of(chunk), chunk.len() as u64)).collect();
    let extents = (0..)
        .zip(pieces)
        .map(|(index, &(offset, length, _, chunk_offset))| Extent { offset, length, chunk: index, chunk_offset })
        .collect();
    let (mtime, ctime) = (at(seq as i64, 9), at(seq as i64, 9));
    let (ino, generation) = (InodeId(ino), Generation(seq));
    let zero = vec![];
    record(
        seq,
        Change::Content(Content {
            ino,
            generation,
            whole,
            size,
            mtime,
            ctime,
            mode: None,
            chunks,
            extents,
            zero,
            part: None,
        }),
    )
}

fn dentry(parent: u64, name: &[u8]) -> Dentry {
    Dentry { parent: InodeId(parent), name: name.to_vec() }
}

/// An edit in the middle, and growth that leaves a hole.
fn edit() -> Record {
    content(5, 3, false, 20, &[(7, 5, WORLD, 0)])
}

/// The whole history. What is restored of it:
/// ```text
/// bin/\xfffoo      edited in the middle, grown to 20 bytes; also /link; user.k
/// sparse           1 MiB, bytes only at 512 KiB
/// final            what was renamed over it
/// sym -> ../a b    pipe
/// ```
/// A checkpoint at 6, in which slot 5 was open, and the segments from 2 on give the same as all segments alone.
fn golden() -> Golden {
    let mut golden = Golden { objects: BTreeMap::new(), stored: BTreeMap::new() };
    let superblock = Superblock {
        filesystem: FILESYSTEM,
        target: TARGET,
        name: "photos".into(),
        target_name: "aws".into(),
        created: at(0, 0),
    };
    golden.put(key::SUPERBLOCK.into(), &superblock.encode());
    for chunk in [HELLO, WORLD] {
        golden.put(key::chunk(ChunkHash::of(chunk)), chunk);
    }
    golden.writer(FIRST, None);
    let setattr = |seq, ino, mode, mtime| {
        record(
            seq,
            Change::Setattr {
                ino: InodeId(ino),
                mode: Some(mode),
                uid: Some(0),
                gid: Some(0),
                atime: None,
                mtime,
                ctime: at(seq as i64, 0),
            },
        )
    };
    let one = golden.segment(
        FIRST,
        1,
        None,
        &[
            setattr(1, 1, 0o040_750, None),
            create(2, 1, b"bin", 2, 0o040_755),
            create(3, 2, b"\xfffoo", 3, 0o100_640),
            content(4, 3, true, 14, &[(0, 14, HELLO, 0)]),
        ],
        true,
    );
    let two = golden.segment(
        FIRST,
        2,
        Some(one),
        &[
            edit(),
            create(6, 1, b"sparse", 4, 0o100_644),
            content(7, 4, true, 1 << 20, &[(512 << 10, 6, WORLD, 6)]),
            record(
                8,
                Change::Symlink {
                    parent: InodeId(1),
                    name: b"sym".to_vec(),
                    ino: InodeId(5),
                    uid: 0,
                    gid: 0,
                    target: b"../a b".to_vec(),
                    time: at(8, 0),
                },
            ),
            record(9, Change::Link { parent: InodeId(1), name: b"link".to_vec(), ino: InodeId(3), time: at(9, 0) }),
            create(10, 1, b"pipe", 6, 0o010_600),
            record(
                11,
                Change::Setxattr {
                    ino: InodeId(3),
                    name: b"user.k".to_vec(),
                    value: b"v\0\xff".to_vec(),
                    mode: None,
                    ctime: at(11, 0),
                },
            ),
        ],
        true,
    );
    // A writer whose state directory was given up: its history counts no more.
    golden.writer(LOST, Some(Parent { epoch: FIRST.0, writer: FIRST.1, n: SegmentNumber(2), hash: two, seq: Seq(11) }));
    golden.segment(LOST, 3, Some(two), &[create(12, 1, b"discarded", 7, 0o100_644)], true);
    golden
        .writer(SECOND, Some(Parent { epoch: FIRST.0, writer: FIRST.1, n: SegmentNumber(2), hash: two, seq: Seq(11) }));
    // A unit over two segments: save to a new name, rename over the old one.
    let three = golden.segment(
        SECOND,
        3,
        Some(two),
        &[
            create(12, 1, b"final", 7, 0o100_644),
            content(13, 7, true, 5, &[(0, 5, HELLO, 0)]),
            create(14, 1, b"final.tmp", 8, 0o100_600),
        ],
        false,
    );
    let four = golden.segment(
        SECOND,
        4,
        Some(three),
        &[
            content(15, 8, true, 5, &[(0, 5, WORLD, 0)]),
            record(
                16,
                Change::Rename {
                    from: dentry(1, b"final.tmp"),
                    to: dentry(1, b"final"),
                    ino: InodeId(8),
                    replaced: Some(InodeId(7)),
                    dir: false,
                    time: at(16, 0),
                },
            ),
            record(17, Change::Void { ino: InodeId(4), generation: Generation(17), why: VoidReason::Moved }),
            setattr(18, 8, 0o100_400, Timestamp::new(1_500_000_000, 123_456_789).ok()),
        ],
        true,
    );
    // The start of a unit that never ended is not applied.
    golden.segment(SECOND, 5, Some(four), &[create(19, 1, b"half", 9, 0o100_644)], false);
    golden
}

/// The shared tables at 6, as FORMATS.md has them.
const SNAPSHOT: &str = include_str!("../../tests/fixtures/format-1/meta.sql");

/// Adds the checkpoint: only where it is not there yet, since another SQLite or zstd would give other bytes.
fn write_checkpoint(root: &Path) {
    let (seq, export) = CHECKPOINT;
    let folder = root.join(key::checkpoint_prefix(seq, export));
    std::fs::create_dir_all(&folder).unwrap();
    let database = folder.join("meta.sqlite");
    let connection = rusqlite::Connection::open(&database).unwrap();
    connection.execute_batch(SNAPSHOT).unwrap();
    connection.execute_batch("VACUUM").unwrap();
    connection.close().unwrap();
    let sqlite = std::fs::read(&database).unwrap();
    std::fs::remove_file(&database).unwrap();
    let packed = zstd::bulk::compress(&sqlite, 3).unwrap();
    let (first, second) = packed.split_at(packed.len() / 2);
    let (slots, slots_count) = encode_slots([&edit()]);
    let (one, two) = (CheckpointFile::Part(0), CheckpointFile::Part(1));
    let complete = Complete {
        filesystem: FILESYSTEM,
        target: TARGET,
        epoch: FIRST.0,
        writer: FIRST.1,
        seq,
        replay_from: SegmentNumber(2),
        sqlite_bytes: sqlite.len() as u64,
        parts: vec![Part::of(one, first), Part::of(two, second)],
        slots: Part::of(CheckpointFile::Slots, &slots),
        slots_count,
        inodes: 4,
        chunks: 1,
        chunk_bytes: HELLO.len() as u64,
        created: at(6, 0),
    };
    for (file, bytes) in
        [(one, first), (two, second), (CheckpointFile::Slots, &slots), (CheckpointFile::Complete, &complete.encode())]
    {
        std::fs::write(folder.join(file.to_string()), bytes).unwrap();
    }
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1/target")
}

/// The fixture's bytes, before compression.
fn plain(key: &str, stored: &[u8]) -> Vec<u8> {
    if key.ends_with(".zst") { zstd::stream::decode_all(stored).unwrap() } else { stored.to_vec() }
}

#[test]
fn todays_encoders_write_the_golden_bytes() {
    let golden = golden();
    for (key, expected) in &golden.objects {
        let path = fixture().join(key);
        if std::env::var_os("TANDEMFS_BLESS").is_some() && !path.exists() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &golden.stored[key]).unwrap();
        }
        let stored = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(String::from_utf8_lossy(&plain(key, &stored)), String::from_utf8_lossy(expected), "{key}");
    }
}

#[test]
fn todays_decoders_read_the_golden_bytes() {
    let read = |key: &str| std::fs::read(fixture().join(key)).unwrap();
    let superblock = Superblock::decode(&read(key::SUPERBLOCK)).unwrap();
    assert_eq!((superblock.filesystem, superblock.target), (FILESYSTEM, TARGET));
    let parent = Writer::decode(&read(&key::writer(SECOND.0, SECOND.1)), SECOND.0, SECOND.1).unwrap().parent.unwrap();
    let mut chain = Chain::anywhere();
    let mut seqs = Vec::new();
    for ((epoch, writer), n) in [(FIRST, 1), (FIRST, 2), (SECOND, 3), (SECOND, 4), (SECOND, 5)] {
        let place = Place { filesystem: FILESYSTEM, target: TARGET, epoch, writer, n: SegmentNumber(n) };
        let decoded = segment::decode(&read(&place.key()), &place).unwrap();
        chain.follow(&decoded.trailer).unwrap();
        if n == 2 {
            assert_eq!(chain.last(), Some((parent.n, parent.hash)));
        }
        seqs.extend(decoded.records.iter().map(|record| record.seq.0));
    }
    assert_eq!(seqs, (1..=19).collect::<Vec<_>>());
}

#[test]
fn the_golden_checkpoint_reads() {
    let (seq, export) = CHECKPOINT;
    let read = |file| std::fs::read(fixture().join(key::checkpoint_part(seq, export, file)));
    if read(CheckpointFile::Complete).is_err() && std::env::var_os("TANDEMFS_BLESS").is_some() {
        write_checkpoint(&fixture());
    }
    let complete = Complete::decode(&read(CheckpointFile::Complete).unwrap(), seq, export).unwrap();
    let mut packed = Vec::new();
    for part in &complete.parts {
        let bytes = read(part.file).unwrap();
        part.verify(&bytes).unwrap();
        packed.extend(bytes);
    }
    let sqlite = zstd::stream::decode_all(&packed[..]).unwrap();
    assert_eq!(sqlite.len() as u64, complete.sqlite_bytes);
    let slots = read(CheckpointFile::Slots).unwrap();
    complete.slots.verify(&slots).unwrap();
    let slots: Vec<_> = decode_slots(&slots, complete.slots_count).unwrap().collect();
    assert_eq!(slots, [Ok(edit())]);
}

/// Runs `mount-examples/restore.py`; `None` if this machine lacks what it needs.
fn restore_by_script(target: &Path, output: &Path) -> Option<std::process::Output> {
    if let Some(missing) =
        ["python3", "zstd"].into_iter().find(|tool| std::process::Command::new(tool).arg("--version").output().is_err())
    {
        eprintln!("SKIPPED: {missing} is not installed, mount-examples/restore.py was not run");
        return None;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-examples/restore.py");
    Some(std::process::Command::new("python3").arg(script).arg(target).arg(output).output().unwrap())
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

#[test]
fn the_script_restores_the_golden_target_from_checkpoint_and_from_segments_alone() {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    let place = tempfile::tempdir().unwrap();
    let segments_only = place.path().join("segments-only");
    copy(&fixture(), &segments_only);
    std::fs::remove_dir_all(segments_only.join(key::CHECKPOINTS)).unwrap();
    for (name, target) in [("from-checkpoint", fixture()), ("from-segments", segments_only)] {
        let output = place.path().join(name);
        let Some(run) = restore_by_script(&target, &output) else { return };
        let said = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(0), "{said}");
        assert_eq!(said.contains("checkpoint checkpoints/"), name == "from-checkpoint", "{said}");

        let mut names: Vec<_> =
            std::fs::read_dir(&output).unwrap().map(|entry| entry.unwrap().file_name().into_encoded_bytes()).collect();
        names.sort();
        assert_eq!(names, [&b"bin"[..], b"final", b"link", b"pipe", b"sparse", b"sym"]);
        let stat = |name: &[u8]| std::fs::symlink_metadata(output.join(std::ffi::OsStr::from_bytes(name))).unwrap();
        assert_eq!(std::fs::read(output.join("link")).unwrap(), b"hello, WORLDt\n\0\0\0\0\0\0");
        assert_eq!((stat(b"link").ino(), stat(b"link").nlink()), (stat(b"bin/\xfffoo").ino(), 2));
        assert_eq!((stat(b"link").mtime(), stat(b"link").mtime_nsec()), (at(5, 0).secs(), 9));
        let sparse = std::fs::read(output.join("sparse")).unwrap();
        assert_eq!((sparse.len(), &sparse[512 << 10..][..6]), (1 << 20, &WORLD[6..12]));
        assert!(stat(b"sparse").blocks() * 512 < 1 << 20, "holes stay holes");
        assert_eq!(std::fs::read(output.join("final")).unwrap(), b"WORLD");
        assert_eq!((stat(b"final").mode(), stat(b"final").mtime()), (0o100_400, 1_500_000_000));
        assert_eq!(std::fs::read_link(output.join("sym")).unwrap(), Path::new("../a b"));
        assert!(stat(b"pipe").file_type().is_fifo());
        assert_eq!((stat(b"").mode(), stat(b"").mtime()), (0o040_750, at(16, 0).secs()));
    }
}

#[test]
fn the_script_names_what_is_lost_and_leaves_it_out() {
    let place = tempfile::tempdir().unwrap();
    let target = place.path().join("target");
    copy(&fixture(), &target);
    std::fs::remove_file(target.join(key::chunk(ChunkHash::of(WORLD)))).unwrap();
    let output = place.path().join("output");
    let Some(run) = restore_by_script(&target, &output) else { return };
    let said = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(4), "{said}");
    assert!(said.contains("PROBLEM: final: left out"), "{said}");
    assert!(!output.join("final").exists() && !output.join("link").exists());
    assert!(output.join("pipe").exists());
}

#[test]
fn the_script_stops_where_the_chain_breaks() {
    let place = tempfile::tempdir().unwrap();
    let target = place.path().join("target");
    copy(&fixture(), &target);
    std::fs::remove_dir_all(target.join(key::CHECKPOINTS)).unwrap();
    let segment = |n| target.join(key::segment(FIRST.0, FIRST.1, SegmentNumber(n)));
    std::fs::copy(segment(1), segment(2)).unwrap();
    let output = place.path().join("output");
    let Some(run) = restore_by_script(&target, &output) else { return };
    let said = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(4), "{said}");
    assert!(said.contains("the history ends before segment 2 of 5"), "{said}");
    assert!(output.join("bin").exists() && !output.join("sparse").exists());
}
