//! Golden bytes: a small target of format 1, kept in `tests/fixtures/format-1/target`.
//!
//! Owns: that today's encoders write those bytes (before compression) and today's decoders read them; that the script in
//! `mount-examples/` restores them.
//! Does not own: other ways to restore (`restore`).
//!
//! A change of these files is a change of the format. `TANDEMFS_BLESS=1 cargo test golden` writes what is missing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::record::{Change, Content, Dentry, Extent, Record, VoidReason};
use super::segment::{self, Builder, Chain, Place};
use super::superblock::Superblock;
use super::writer::{Parent, Writer};
use super::{json, key};
use crate::clock::Timestamp;
use crate::id::{ChunkHash, Epoch, FilesystemId, Generation, Hash, InodeId, SegmentNumber, Seq, TargetId, WriterId};

const FILESYSTEM: FilesystemId = FilesystemId(uuid::Uuid::from_u128(0x6d0c_0000_0000_4000_8000_0000_0000_0001));
const TARGET: TargetId = TargetId(uuid::Uuid::from_u128(0xb1f2_0000_0000_4000_8000_0000_0000_0002));
const FIRST: (Epoch, WriterId) = (Epoch(1), WriterId(0x51ab_0c3d));
const LOST: (Epoch, WriterId) = (Epoch(2), WriterId(0x0000_dead));
const SECOND: (Epoch, WriterId) = (Epoch(3), WriterId(0x9c1f_04aa));

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

/// The whole history. What is restored of it:
/// ```text
/// bin/\xfffoo      "hello, WORLD!\n"… in place edit, 20 bytes, hard link of /link, user.k = v
/// sparse           1 MiB, bytes only at 512 KiB
/// final            what was renamed over it
/// sym -> ../a b    fifo
/// ```
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
            // An edit in the middle, and growth that leaves a hole.
            content(5, 3, false, 20, &[(7, 5, WORLD, 0)]),
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
