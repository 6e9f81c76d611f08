//! Replay against `mount-examples/restore.py`: two readers that share no code must make the same tree of any history.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use rusqlite::Connection;

use super::Meta;
use super::history::{CHUNK_NUMBERS, History, chunk_bytes, chunk_hash, empty_store, overtaken};
use crate::clock::Timestamp;
use crate::format::checkpoint::{Complete, Part, encode_slots};
use crate::format::key::CheckpointFile;
use crate::format::record::Record;
use crate::format::segment::{Builder, Place};
use crate::format::superblock::Superblock;
use crate::format::writer::Writer;
use crate::format::{json, key};
use crate::id::{Epoch, ExportId, FilesystemId, Hash, InodeId, SegmentNumber, Seq, TargetId, WriterId};

/// Paths and what can be said about each: equal trees have equal ones.
type Tree = BTreeMap<Vec<u8>, String>;

const FILESYSTEM: FilesystemId = FilesystemId(uuid::Uuid::from_u128(1));
const TARGET: TargetId = TargetId(uuid::Uuid::from_u128(2));
const WRITER: (Epoch, WriterId) = (Epoch(1), WriterId(1));

fn put(root: &Path, key: &str, bytes: &[u8]) {
    let path = root.join(key);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// A store in which the records were applied.
fn replayed(place: &Path, records: &[Record]) -> Meta {
    std::fs::create_dir(place).unwrap();
    let meta = empty_store(place);
    meta.write(|tx| records.iter().try_for_each(|record| tx.replay(record))).unwrap();
    meta
}

/// A target that holds the records, in segments of `per_segment`; a unit ends with every second of them.
fn write_target(root: &Path, records: &[Record], per_segment: usize) {
    let put = |key: &str, bytes: &[u8]| put(root, key, bytes);
    let (filesystem, target, (epoch, writer)) = (FILESYSTEM, TARGET, WRITER);
    let (name, target_name, created) = ("made up".to_owned(), "only".to_owned(), Timestamp::EPOCH);
    put(key::SUPERBLOCK, &Superblock { filesystem, target, name, target_name, created }.encode());
    let (host, version) = ("here".to_owned(), "0".to_owned());
    let announcement =
        Writer { filesystem, target, epoch, writer, host, started: created, version, parent: None, history: vec![] };
    put(&announcement.key(), &announcement.encode());
    for number in 0..CHUNK_NUMBERS {
        put(&key::chunk(chunk_hash(number)), &chunk_bytes(number));
    }
    let segments = records.chunks(per_segment).count() as u64;
    let mut prev = None;
    for (n, records) in (1..).zip(records.chunks(per_segment)) {
        let place = Place { filesystem, target, epoch, writer, n: SegmentNumber(n) };
        let mut builder = Builder::new(place, prev);
        for record in records {
            json::lines(record).iter().for_each(|line| builder.push(record.seq, line));
        }
        let encoded = builder.finish(Seq::ZERO, n % 2 == 0 || n == segments);
        put(&place.key(), &encoded.body);
        prev = Some(encoded.hash);
    }
}

/// Adds a checkpoint of `meta`, in two parts. Its slots are filled already, so all segments are replayed.
fn write_checkpoint(root: &Path, meta: &Meta) {
    let export = ExportId(9);
    let exported = meta.export(&root.join("meta.sqlite"), export).unwrap();
    let sqlite = std::fs::read(&exported.path).unwrap();
    std::fs::remove_file(&exported.path).unwrap();
    let packed = zstd::bulk::compress(&sqlite, 3).unwrap();
    let (first, second) = packed.split_at(packed.len() / 3);
    let (slots, slots_count) = encode_slots([]);
    let (one, two) = (CheckpointFile::Part(0), CheckpointFile::Part(1));
    let complete = Complete {
        filesystem: FILESYSTEM,
        target: TARGET,
        epoch: WRITER.0,
        writer: WRITER.1,
        seq: exported.seq,
        replay_from: SegmentNumber(1),
        sqlite_bytes: exported.bytes,
        parts: vec![Part::of(one, first), Part::of(two, second)],
        slots: Part::of(CheckpointFile::Slots, &slots),
        slots_count,
        inodes: exported.inodes,
        chunks: exported.chunks,
        chunk_bytes: exported.chunk_bytes,
        created: Timestamp::EPOCH,
    };
    let complete = complete.encode();
    for (file, bytes) in
        [(one, first), (two, second), (CheckpointFile::Slots, &slots), (CheckpointFile::Complete, &complete)]
    {
        put(root, &key::checkpoint_part(exported.seq, export, file), bytes);
    }
}

fn describe(mode: u32, owner: (u32, u32), mtime: (i64, i64), nlink: u64, content: &[u8]) -> String {
    // The mode of a symbolic link means nothing and cannot be set; links of directories are counted differently.
    let kind = mode & libc::S_IFMT;
    let mode = if kind == libc::S_IFLNK { kind } else { mode };
    let nlink = if kind == libc::S_IFDIR { 0 } else { nlink };
    format!("{mode:o} {owner:?} {mtime:?} {nlink} {} {}", content.len(), Hash::of(content))
}

/// The tree in the tables.
fn tree_of_tables(meta: &Meta) -> Tree {
    let mut tree = Tree::new();
    meta.read(|conn| {
        add_inode(conn, &mut tree, InodeId::ROOT, b"");
        Ok(())
    })
    .unwrap();
    tree
}

fn add_inode(conn: &Connection, tree: &mut Tree, ino: InodeId, path: &[u8]) {
    let query = "SELECT mode, uid, gid, mtime, mtime_ns, nlink, size, manifest FROM inode WHERE ino = ?1";
    let (mode, owner, mtime, nlink, size, manifest): (u32, _, _, i64, i64, Option<i64>) = conn
        .query_row(query, [ino], |row| {
            let owner = (row.get(1)?, row.get(2)?);
            Ok((row.get(0)?, owner, (row.get(3)?, row.get(4)?), row.get(5)?, row.get(6)?, row.get(7)?))
        })
        .unwrap();
    let mut content = match mode & libc::S_IFMT {
        libc::S_IFLNK => conn.query_row("SELECT target FROM symlink WHERE ino = ?1", [ino], |row| row.get(0)).unwrap(),
        _ => vec![0; size as usize],
    };
    let mut extents = conn
        .prepare(
            "SELECT offset, extent.length, hash, chunk_offset FROM extent JOIN chunk ON chunk.id = chunk WHERE manifest = ?1",
        )
        .unwrap();
    let extents = extents
        .query_map([manifest], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
        .unwrap()
        .map(Result::unwrap);
    for (offset, length, hash, chunk_offset) in extents {
        let (offset, length, hash, chunk_offset): (i64, i64, Hash, i64) = (offset, length, hash, chunk_offset);
        let number = (0..CHUNK_NUMBERS).find(|number| chunk_hash(*number) == hash).unwrap();
        let bytes = &chunk_bytes(number)[chunk_offset as usize..][..length as usize];
        content[offset as usize..][..length as usize].copy_from_slice(bytes);
    }
    tree.insert(path.to_vec(), describe(mode, owner, mtime, nlink as u64, &content));
    let mut entries = conn.prepare("SELECT name, ino FROM dirent WHERE parent = ?1").unwrap();
    let entries = entries.query_map([ino], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    for (name, child) in entries.map(Result::unwrap) {
        let name: Vec<u8> = name;
        add_inode(conn, tree, child, &[path, b"/", &name].concat());
    }
}

/// The tree on disk.
fn tree_of_directory(root: &Path, path: &[u8], tree: &mut Tree) {
    let here = root.join(OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(path)));
    let stat = std::fs::symlink_metadata(&here).unwrap();
    let content = match stat.mode() & libc::S_IFMT {
        libc::S_IFLNK => std::fs::read_link(&here).unwrap().into_os_string().into_encoded_bytes(),
        libc::S_IFREG => std::fs::read(&here).unwrap(),
        _ => vec![],
    };
    let (owner, mtime) = ((stat.uid(), stat.gid()), (stat.mtime(), stat.mtime_nsec()));
    tree.insert(path.to_vec(), describe(stat.mode(), owner, mtime, stat.nlink(), &content));
    if stat.is_dir() {
        for entry in std::fs::read_dir(&here).unwrap().map(Result::unwrap) {
            tree_of_directory(root, &[path, b"/", entry.file_name().as_bytes()].concat(), tree);
        }
    }
}

fn can_run() -> bool {
    let missing = ["python3", "zstd"].into_iter().find(|tool| Command::new(tool).arg("--version").output().is_err());
    if let Some(missing) = missing {
        eprintln!("SKIPPED: {missing} is not installed");
    }
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("SKIPPED: only root can restore owners");
    }
    missing.is_none() && is_root
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn the_script_and_replay_make_the_same_tree(
        steps in prop::collection::vec(any::<[u8; 6]>(), 20..400),
        late in prop::collection::vec(any::<u8>(), 400),
        per_segment in 10usize..60,
        checkpoint in prop::option::of(any::<prop::sample::Index>()),
    ) {
        if !can_run() {
            return Ok(());
        }
        let place = tempfile::tempdir().unwrap();
        let in_order = History::build(&steps).records;
        let records = overtaken(&in_order, &late);
        let meta = replayed(&place.path().join("state"), &records);

        let (target, output) = (place.path().join("target"), place.path().join("output"));
        write_target(&target, &records, per_segment);
        if let Some(index) = checkpoint {
            let earlier = replayed(&place.path().join("earlier"), &in_order[..1 + index.index(in_order.len())]);
            write_checkpoint(&target, &earlier);
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-examples/restore.py");
        let run = Command::new("python3").arg(script).arg(&target).arg(&output).output().unwrap();
        let said = String::from_utf8_lossy(&run.stderr);
        // Made-up attributes have names that no filesystem takes.
        let problems: Vec<_> = said.lines().filter(|line| line.starts_with("PROBLEM") && !line.contains("attribute u")).collect();
        prop_assert!(problems.is_empty() && matches!(run.status.code(), Some(0 | 4)), "{}", said);

        prop_assert_eq!(said.contains("checkpoint checkpoints/"), checkpoint.is_some(), "{}", said);
        let mut restored = Tree::new();
        tree_of_directory(&output, b"", &mut restored);
        prop_assert_eq!(restored, tree_of_tables(&meta));
    }
}
