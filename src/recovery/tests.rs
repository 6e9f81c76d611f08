//! Recovery on real files and rows: after a kill, after a power cut, twice, and by a mount that may not write.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::chunk::evict::Evictor;
use crate::chunk::file::ChunkFiles;
use crate::chunk::open::OpenFiles;
use crate::chunk::space::{Limits, Space};
use crate::clock::Timestamp;
use crate::id::InodeId;
use crate::meta::{self, Meta, testing};
use crate::read::{Fetcher, Outcome, Reader};
use crate::write;
use crate::write::pipeline_tests::Mount;
use crate::write::ranges::RANGES_MAX;

/// How long an `fsync` may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// An empty filesystem, and a mount of it that seals nothing: it dies with everything still staged.
fn doomed() -> (tempfile::TempDir, Mount) {
    let (dir, meta) = testing::store();
    drop(meta);
    let mount = Mount::after(dir.path(), false, "boot");
    (dir, mount)
}

/// A committed file of 100 bytes 7, open again.
fn committed(dir: &Path, name: &[u8]) -> InodeId {
    let mount = Mount::after(dir, true, "boot");
    let ino = mount.create(name);
    mount.files.write(ino, 0, &[7; 100]).unwrap();
    mount.close(ino);
    mount.settle();
    ino
}

#[test]
fn o1_a_recovered_slot_has_the_time_of_its_youngest_bytes() {
    let (dir, mount) = doomed();
    let ino = mount.create(b"a");
    mount.files.write(ino, 0, b"old").unwrap();
    mount.files.flush(ino).unwrap();
    let slot = mount.meta.inode(ino).unwrap();
    let untouched = mount.create(b"b");
    mount.files.write(untouched, 0, b"old").unwrap();
    mount.files.flush(untouched).unwrap();
    // A program set it to some day in the past after its last write, as `cp -p` does.
    let past = Timestamp::new(1000, 0).unwrap();
    let set = crate::clock::now();
    mount
        .meta
        .write(|tx| {
            let mut inode = meta::inode::Inode::get(tx.conn(), untouched)?;
            (inode.mtime, inode.ctime) = (past, set);
            inode.update(tx)
        })
        .unwrap();
    std::thread::sleep(Duration::from_millis(30));
    mount.files.write(ino, 0, b"new").unwrap();
    drop(mount);
    let mount = Mount::after(dir.path(), true, "boot");
    assert_eq!(mount.read(ino, 0, 10), b"new");
    let after = mount.meta.inode(ino).unwrap();
    assert!(after.mtime > slot.mtime, "same size, other bytes: only the time tells a backup that it changed");
    assert_eq!(mount.meta.inode(untouched).unwrap().mtime, past);
}

#[test]
fn s6_a_kill_after_a_power_cut_brings_nothing_back_that_the_cut_took() {
    let (dir, mount) = doomed();
    drop(mount);
    let ino = committed(dir.path(), b"a");
    let mount = Mount::after(dir.path(), false, "boot");
    mount.open(ino);
    mount.files.write(ino, 0, b"synced").unwrap();
    mount.files.fsync(ino, crate::clock::instant() + PATIENCE).unwrap();
    mount.files.write(ino, 50, b"lost with the power").unwrap();
    mount.files.flush(ino).unwrap();
    drop(mount);
    let expected = [&b"synced"[..], &[7; 94]].concat();
    for round in ["cut", "killed", "killed again"] {
        // Nothing seals, so that the next recovery meets the same sessions.
        let mount = Mount::after(dir.path(), false, "second boot");
        assert_eq!(mount.read(ino, 0, 200), expected, "{round}");
    }
    let mount = Mount::after(dir.path(), true, "second boot");
    mount.settle();
    assert_eq!(mount.read(ino, 0, 200), expected);
    assert_eq!(unsynced(dir.path()), 0, "the mark goes with its session");
}

fn unsynced(dir: &Path) -> usize {
    let files = std::fs::read_dir(dir.join("chunks"))
        .unwrap()
        .flat_map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap());
    files.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|end| end == "unsynced")).count()
}

#[test]
fn s1_an_fsync_after_a_close_puts_the_synced_size_on_record() {
    let (dir, mount) = doomed();
    let ino = mount.create(b"a");
    mount.files.write(ino, 0, &[1; 10]).unwrap();
    mount.files.fsync(ino, crate::clock::instant() + PATIENCE).unwrap();
    mount.files.write(ino, 10, &[2; 10]).unwrap();
    // Renews the slot, and says again that ten bytes are synced.
    mount.files.flush(ino).unwrap();
    mount.files.fsync(ino, crate::clock::instant() + PATIENCE).unwrap();
    drop(mount);
    let mount = Mount::after(dir.path(), false, "second boot");
    assert_eq!(mount.read(ino, 0, 100), [[1; 10], [2; 10]].concat());
}

#[test]
fn d8_a_session_with_too_many_ranges_rotates() {
    let (dir, mount) = doomed();
    drop(mount);
    let ino = committed(dir.path(), b"a");
    let mount = Mount::after(dir.path(), false, "boot");
    mount.open(ino);
    for index in 0..RANGES_MAX as u64 + 10 {
        mount.files.write(ino, index * 2, &[9]).unwrap();
    }
    mount.files.flush(ino).unwrap();
    assert_eq!(mount.meta.sessions().unwrap().len(), 2, "the full one is frozen, with a slot; the rest is in another");
    let bytes = mount.read(ino, 0, 100);
    assert_eq!((bytes[0], bytes[1], bytes[98], bytes[99]), (9, 7, 9, 7));
}

#[test]
fn a_session_whose_first_change_failed_leaves_nothing() {
    let (dir, mount) = doomed();
    drop(mount);
    let ino = committed(dir.path(), b"a");
    // Nothing seals, so that what is left stays to be seen.
    let mount = Mount::after(dir.path(), false, "boot");
    mount.open(ino);
    if mount.files.write(ino, write::io::SIZE_MAX - 10, &[1; 5]).is_ok() {
        eprintln!("SKIPPED: this filesystem has files of any size");
        return;
    }
    mount.close(ino);
    assert_eq!(mount.files.uncommitted(None), (0, 0));
    assert_eq!((mount.meta.inode(ino).unwrap().size, mount.read(ino, 0, 200)), (100, vec![7; 100]));
    drop(mount);
    assert_eq!(Mount::after(dir.path(), true, "boot").report, Report::default());
}

#[test]
fn s3_bytes_of_a_file_that_lost_its_name_stay_until_that_is_durable() {
    let (dir, mount) = doomed();
    let ino = mount.create(b"a");
    mount.files.write(ino, 0, b"synced").unwrap();
    mount.files.fsync(ino, crate::clock::instant() + PATIENCE).unwrap();
    let chunk_files = || {
        let shards = std::fs::read_dir(dir.path().join("chunks")).unwrap();
        shards.map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap().count()).sum::<usize>()
    };
    assert_eq!(chunk_files(), 1);
    mount.files.unnamed(ino);
    mount.release(ino);
    assert_eq!(chunk_files(), 1, "a power cut now brings the name back");
    mount.files.remove_doomed().unwrap();
    assert_eq!(chunk_files(), 0);
}

/// A mount that may not write: content as recovery would make it, and nothing on disk changes.
#[test]
fn a_read_only_mount_shows_what_recovery_would_make_and_changes_nothing() {
    let (dir, mount) = doomed();
    drop(mount);
    let (synced, lost) = (committed(dir.path(), b"synced"), committed(dir.path(), b"lost"));
    let mount = Mount::after(dir.path(), false, "boot");
    for ino in [synced, lost] {
        mount.open(ino);
        mount.files.write(ino, 90, &[9; 20]).unwrap();
    }
    mount.files.fsync(synced, crate::clock::instant() + PATIENCE).unwrap();
    mount.files.flush(lost).unwrap();
    drop(mount);
    let rows = |meta: &Meta| (meta.sessions().unwrap(), meta.head(), meta.inode(lost).unwrap());
    for (rebooted, expected) in [(false, 110), (true, 100)] {
        let meta = Arc::new(Meta::open(&dir.path().join("meta.sqlite"), &meta::Options::default()).unwrap());
        let before = rows(&meta);
        let open_files = Arc::new(OpenFiles::new(ChunkFiles::new(dir.path()).unwrap()));
        let space = Arc::new(Space::new(dir.path(), Limits { used_max: 1 << 40, free_min: 0 }, 0));
        let evictor = Arc::new(Evictor::new(meta.clone(), open_files.clone(), space.clone()));
        let options = write::Options {
            meta: meta.clone(),
            open_files: open_files.clone(),
            space: space.clone(),
            evictor: evictor.clone(),
        };
        let (files, queue) = Files::new(options).unwrap();
        let report = show(&meta, &files, rebooted).unwrap();
        assert_eq!(report.lost, if rebooted { vec![lost] } else { vec![] });
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let handle = runtime.handle().clone();
        let fetcher = Fetcher::new(meta.clone(), open_files.clone(), space, evictor.clone(), handle);
        let reader = Reader::new(meta.clone(), files.clone(), open_files, evictor, fetcher, 64 << 10);
        for (ino, size) in [(synced, 110), (lost, expected)] {
            let mut inode = meta.inode(ino).unwrap();
            files.overlay(&mut inode);
            assert_eq!(inode.size, size);
            let mut bytes = Vec::new();
            assert!(matches!(reader.read(ino, 0..500, &mut bytes).unwrap(), Outcome::Ready));
            let whole = [&[7; 90][..], &[9; 20]].concat();
            assert_eq!(bytes, if size == 110 { whole } else { vec![7; 100] });
        }
        drop(queue);
        assert_eq!(rows(&meta), before);
    }
    assert_eq!(unsynced(dir.path()), 0);
}
