//! Export and import together: what goes in comes out, and nothing else is believed.

use proptest::prelude::*;

use super::*;
use crate::format::record::{Content, Extent};
use crate::id::{ExportId, Generation};
use crate::meta::history::{CHUNK_LENGTH, History, assert_consistent, chunk_hash, dump, empty_store, rich, time as at};
use crate::meta::slot::SlotRequest;
use crate::meta::testing::{file, slot_request};

const EXPORT: ExportId = ExportId(7);

struct Exporting {
    dir: tempfile::TempDir,
    meta: Meta,
}

impl Exporting {
    fn new(history: &History) -> Exporting {
        let dir = tempfile::tempdir().unwrap();
        let meta = empty_store(dir.path());
        meta.write(|tx| history.records.iter().try_for_each(|record| tx.replay(record))).unwrap();
        Exporting { dir, meta }
    }

    fn export(&self) -> crate::meta::export::Exported {
        self.meta.export(&self.dir.path().join("export.sqlite"), EXPORT).unwrap()
    }

    fn expected(&self) -> Expected {
        Expected { filesystem: self.meta.filesystem().unwrap(), seq: self.meta.head() }
    }

    /// Imports the exported file as it is now.
    fn import(&self) -> Result<(Meta, Imported)> {
        let store = self.dir.path().join("imported.sqlite");
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", store.display()));
        }
        import(&self.dir.path().join("export.sqlite"), &self.expected(), &store)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn t3_what_is_exported_comes_back(steps in prop::collection::vec(any::<[u8; 6]>(), 0..80)) {
        let history = History::build(&steps);
        let source = Exporting::new(&history);
        let exported = source.export();
        let (imported, found) = source.import().unwrap();
        history.check(&imported);
        prop_assert_eq!(dump(&imported), dump(&source.meta));
        prop_assert_eq!(found.seq, history.head());
        prop_assert_eq!(exported.seq, history.head());
        prop_assert_eq!(exported.inodes, imported.usage().inodes);
    }

    /// D5: whatever the bytes are, the answer is an error of the checkpoint or a store that is sound.
    #[test]
    fn d5_a_damaged_file_never_panics_and_never_loops(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12)) {
        let source = Exporting::new(&rich());
        source.export();
        let path = source.dir.path().join("export.sqlite");
        let mut bytes = std::fs::read(&path).unwrap();
        for (index, byte) in flips {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        std::fs::write(&path, bytes).unwrap();
        match source.import() {
            Ok((meta, _)) => meta.read(|conn| { assert_consistent(conn); Ok(()) }).unwrap(),
            Err(Error::Checkpoint(_)) => {}
            Err(other) => prop_assert!(false, "{}", other),
        }
    }
}

#[test]
fn d5_rows_that_cannot_be_are_refused() {
    let source = Exporting::new(&rich());
    let path = source.dir.path().join("export.sqlite");
    source.export();
    let good = std::fs::read(&path).unwrap();
    assert!(source.import().is_ok());
    for sql in [
        // Nothing beside our tables, and these exactly as they are.
        "CREATE TABLE extra (a)",
        "CREATE VIEW extra AS SELECT 1",
        "CREATE INDEX extra ON inode (uid)",
        "CREATE TRIGGER extra AFTER INSERT ON inode BEGIN SELECT 1; END",
        "DROP TABLE xattr",
        "DROP TABLE xattr; CREATE VIEW xattr AS SELECT 1 AS ino, x'61' AS name, x'61' AS value",
        "ALTER TABLE inode ADD COLUMN extra INTEGER",
        "ALTER TABLE inode RENAME COLUMN uid TO other",
        "DROP TABLE slot; CREATE TABLE slot (seq INTEGER PRIMARY KEY, ino INTEGER NOT NULL, generation INTEGER NOT NULL)",
        "PRAGMA user_version = 2",
        "PRAGMA application_id = 1",
        "PRAGMA journal_mode = WAL",
        // The head.
        "DELETE FROM filesystem WHERE key = 'seq'",
        "UPDATE filesystem SET value = value - 1 WHERE key = 'seq'",
        "UPDATE filesystem SET value = 'x' WHERE key = 'seq'",
        "UPDATE filesystem SET value = -1 WHERE key = 'epoch'",
        "UPDATE filesystem SET value = 'x' WHERE key = 'filesystem'",
        "UPDATE filesystem SET value = 3 WHERE key = 'chunk_size'",
        "UPDATE filesystem SET value = 2 WHERE key = 'next_inode'",
        "UPDATE filesystem SET value = 1 WHERE key = 'chunk_high'",
        "INSERT INTO filesystem VALUES ('other', 1)",
        // Inodes and names.
        "DELETE FROM inode WHERE ino = 1",
        "UPDATE inode SET mode = 33188 WHERE ino = 1",
        "UPDATE inode SET mode = 0 WHERE ino > 1",
        "UPDATE inode SET mode = mode | 1048576",
        "UPDATE inode SET size = -1",
        "UPDATE inode SET size = 5 WHERE ino = 1",
        "UPDATE inode SET generation = 1000000",
        "UPDATE inode SET times_seq = 1000000 WHERE ino = 1",
        "UPDATE inode SET mtime_ns = 1000000000",
        "UPDATE inode SET uid = -1",
        "UPDATE inode SET uid = 4294967296",
        "INSERT INTO inode SELECT 9999, mode, uid, gid, rdev, nlink, size, generation, atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns, times_seq FROM inode WHERE ino = 1",
        "UPDATE filesystem SET value = 10000 WHERE key = 'next_inode'; INSERT INTO inode SELECT 9999, mode, uid, gid, rdev, nlink, size, generation, atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns, times_seq FROM inode WHERE ino = 1",
        "INSERT INTO dirent VALUES (1, x'6162', 9999)",
        "INSERT INTO dirent VALUES (1, x'612f', (SELECT max(ino) FROM inode))",
        "INSERT INTO dirent VALUES (1, x'2e2e', (SELECT max(ino) FROM inode))",
        "INSERT INTO dirent VALUES (1, x'', (SELECT max(ino) FROM inode))",
        "INSERT INTO dirent VALUES (1, x'6100', (SELECT max(ino) FROM inode))",
        "INSERT INTO dirent VALUES (1, x'6162', 1)",
        "INSERT INTO dirent VALUES (1, x'6162', (SELECT max(ino) FROM inode WHERE mode & 61440 = 16384))",
        "INSERT INTO dirent VALUES ((SELECT max(ino) FROM inode WHERE mode & 61440 = 32768), x'6162', (SELECT max(ino) FROM inode WHERE mode & 61440 = 32768))",
        "DELETE FROM dirent",
        // A directory that is its own parent.
        "UPDATE dirent SET parent = ino, name = x'6162' WHERE ino = (SELECT max(ino) FROM inode WHERE mode & 61440 = 16384)",
        "DELETE FROM symlink",
        "UPDATE symlink SET target = CAST(target || x'61' AS BLOB)",
        "UPDATE inode SET size = 0 WHERE mode & 61440 = 40960; UPDATE symlink SET target = x''",
        "INSERT INTO xattr VALUES (9999, x'61', x'61')",
        "INSERT INTO xattr VALUES (1, x'', x'61')",
        "INSERT INTO xattr VALUES (1, x'61', zeroblob(65537))",
        // Chunks and extents.
        "UPDATE chunk SET hash = x'61' WHERE id = 1",
        "UPDATE chunk SET length = 0",
        "UPDATE chunk SET length = 1 << 40",
        "UPDATE chunk SET length = 1",
        "UPDATE chunk SET dead_seq = 100000",
        "DELETE FROM chunk",
        "UPDATE extent SET length = 0",
        "UPDATE extent SET length = 1 << 50",
        "UPDATE extent SET chunk_offset = -1",
        "UPDATE extent SET chunk_offset = 9007199254740991",
        "UPDATE extent SET chunk = 9999",
        "UPDATE inode SET size = 0 WHERE mode & 61440 = 32768",
        "INSERT INTO extent SELECT ino, offset + 1, length, chunk, chunk_offset FROM extent WHERE length > 1",
        "INSERT INTO extent SELECT 1, 0, 1, min(id), 0 FROM chunk",
        // Slots.
        "INSERT INTO slot VALUES (1, 9999, 1)",
        "INSERT INTO slot VALUES (1, 1, 0)",
        "INSERT INTO slot VALUES (1000000, (SELECT max(ino) FROM inode WHERE mode & 61440 = 32768), 0)",
        "INSERT INTO slot VALUES (1, (SELECT max(ino) FROM inode WHERE mode & 61440 = 32768), 100000)",
    ] {
        std::fs::write(&path, &good).unwrap();
        let conn = Connection::open(&path).unwrap();
        conn.execute_batch(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        drop(conn);
        match source.import() {
            Err(Error::Checkpoint(_)) => {}
            Err(other) => panic!("{sql}: {other}"),
            Ok(_) => panic!("{sql}: is believed"),
        }
    }
}

#[test]
fn counts_are_made_anew_and_never_taken_over() {
    let history = rich();
    let source = Exporting::new(&history);
    source.export();
    let conn = Connection::open(source.dir.path().join("export.sqlite")).unwrap();
    conn.execute_batch("UPDATE inode SET nlink = 77; UPDATE chunk SET dead_seq = 1").unwrap();
    drop(conn);
    let (imported, _) = source.import().unwrap();
    history.check(&imported);
    assert_eq!(dump(&imported), dump(&source.meta));
}

#[test]
fn only_what_has_a_name_is_exported_and_chunks_of_orphans_alone_are_dead() {
    let source = Exporting::new(&rich());
    let files: i64 =
        source.meta.read(|conn| Ok(conn.query_row("SELECT count(*) FROM inode", [], |r| r.get(0))?)).unwrap();
    let orphan = source
        .meta
        .write(|tx| {
            let ino: InodeId =
                tx.conn().query_row("SELECT max(ino) FROM inode WHERE manifest IS NOT NULL", [], |r| r.get(0))?;
            tx.conn().execute("DELETE FROM dirent WHERE ino = ?1", [ino])?;
            tx.conn().execute("UPDATE inode SET nlink = 0 WHERE ino = ?1", [ino])?;
            Ok(ino)
        })
        .unwrap();
    let exported = source.export();
    assert_eq!(exported.inodes as i64, files - 1);
    let (imported, _) = source.import().unwrap();
    assert!(imported.inode(orphan).is_err());
    imported
        .read(|conn| {
            assert_consistent(conn);
            let referenced: i64 =
                conn.query_row("SELECT count(*) FROM chunk WHERE dead_seq IS NULL", [], |r| r.get(0))?;
            assert_eq!(exported.chunks as i64, referenced, "complete.json counts what is referenced");
            Ok(())
        })
        .unwrap();
}

fn content(slot: &OpenSlot, whole: bool, size: u64, extents: &[(u64, u64)]) -> Record {
    let extents =
        extents.iter().map(|&(offset, length)| Extent { offset, length, chunk: 0, chunk_offset: 0 }).collect();
    let OpenSlot { seq, ino, generation } = *slot;
    let (mtime, ctime) = (at(seq), at(seq));
    let chunks = vec![(chunk_hash(1), CHUNK_LENGTH)];
    let (mode, zero, part) = (None, vec![], None);
    let change =
        Change::Content(Content { ino, generation, whole, size, mtime, ctime, mode, chunks, extents, zero, part });
    Record { seq, change }
}

fn void(slot: &OpenSlot, why: VoidReason) -> Record {
    Record { seq: slot.seq, change: Change::Void { ino: slot.ino, generation: slot.generation, why } }
}

/// A file with two open slots, of a frozen session and of the one after it; exported.
fn two_slots(first: u64, second: u64) -> (Exporting, Vec<OpenSlot>) {
    let source = Exporting::new(&History::new());
    source
        .meta
        .write(|tx| {
            let ino = file(tx, b"f");
            tx.reserve_slot(&slot_request(ino, 1, first))?;
            tx.reserve_slot(&SlotRequest { whole: false, ..slot_request(ino, 2, second) })
        })
        .unwrap();
    let slots = source.export().slots;
    assert_eq!(slots.len(), 2);
    (source, slots)
}

fn filled(source: &Exporting, records: &[Record]) -> Result<Vec<(u64, u64, u64)>> {
    let (meta, imported) = source.import()?;
    meta.fill_slots(&imported.slots, || Ok(records.iter().cloned().map(Ok)))?;
    meta.read(|conn| {
        assert_consistent(conn);
        let inode = Inode::get(conn, imported.slots[0].ino)?;
        let mut found = vec![(u64::MAX, inode.size, 0)];
        if let Some(manifest) = inode.manifest {
            found
                .extend(extent::rows(conn, manifest, 0, 1 << 30)?.iter().map(|r| (r.offset, r.length, r.chunk_offset)));
        }
        Ok(found)
    })
}

#[test]
fn t3_slots_are_filled_in_order_and_keep_the_size_of_the_snapshot() {
    let (source, slots) = two_slots(10, 40);
    let records = [content(&slots[0], true, 10, &[(0, 10)]), content(&slots[1], false, 40, &[(20, 20)])];
    assert_eq!(filled(&source, &records).unwrap(), [(u64::MAX, 40, 0), (0, 10, 0), (20, 20, 0)]);
}

#[test]
fn t3_a_lost_slot_sets_the_size_only_if_no_later_slot_stands() {
    let (source, slots) = two_slots(10, 40);
    let lost = VoidReason::Lost { size: 30, mtime: at(Seq(1)), ctime: at(Seq(1)) };
    let records = [void(&slots[0], lost), content(&slots[1], false, 40, &[(20, 20)])];
    assert_eq!(filled(&source, &records).unwrap(), [(u64::MAX, 40, 0), (20, 20, 0)]);
    // The later one is lost: what the earlier one brought is not clipped to the size that never came to be.
    let (source, slots) = two_slots(30, 5);
    let records = [content(&slots[0], true, 30, &[(0, 30)]), void(&slots[1], lost)];
    assert_eq!(filled(&source, &records).unwrap(), [(u64::MAX, 30, 0), (0, 30, 0)]);
}

#[test]
fn every_open_slot_is_filled_once_by_its_own_record() {
    let (source, slots) = two_slots(10, 40);
    let good = [content(&slots[0], true, 10, &[]), content(&slots[1], false, 40, &[])];
    assert!(filled(&source, &good).is_ok());
    let other = OpenSlot { generation: Generation(9), ..slots[1] };
    for bad in [
        &good[..1],
        &good[1..],
        &[good[1].clone(), good[0].clone()],
        &[good[0].clone(), content(&other, false, 40, &[])],
        &[good[0].clone(), Record { seq: slots[1].seq, ..History::new().records[0].clone() }],
    ] {
        assert!(matches!(filled(&source, bad), Err(Error::Checkpoint(_))), "{bad:?}");
    }
}

#[test]
fn t3_a_slot_in_a_snapshot_moves_when_the_file_changes_again() {
    let (source, slots) = two_slots(10, 40);
    let ino = slots[1].ino;
    let moved =
        source.meta.write(|tx| tx.reserve_slot(&SlotRequest { whole: false, ..slot_request(ino, 2, 90) })).unwrap();
    assert!(moved.unwrap() > slots[1].seq, "renewed in place, the file would stay cut at 40 bytes on that target");
    // Without a newer snapshot it is renewed in place as ever.
    let renewed =
        source.meta.write(|tx| tx.reserve_slot(&SlotRequest { whole: false, ..slot_request(ino, 2, 95) })).unwrap();
    assert_eq!(renewed, moved);
}

#[test]
fn an_export_never_overwrites_and_leaves_nothing_when_it_fails() {
    let source = Exporting::new(&History::new());
    let path = source.dir.path().join("export.sqlite");
    std::fs::write(&path, b"mine").unwrap();
    assert!(source.meta.export(&path, EXPORT).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    let nowhere = source.dir.path().join("nowhere/export.sqlite");
    assert!(source.meta.export(&nowhere, EXPORT).is_err());
}
