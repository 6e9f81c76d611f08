//! Checkpoints as this machine knows them: the compressed export on disk, and the rows of those under way or complete (T3).
//!
//! Owns: the table `checkpoint`, compressing an export into parts, whether slots are filled and chunks placed, what a
//! complete checkpoint means for a target's row.
//! Does not own: the snapshot (`meta::export`), uploading and its order (`replication::checkpoint`).
//!
//! ```text
//! export ─▶ meta.sqlite ─zstd─▶ parts of ≤ 64 MiB in <state directory>/export/<seq>-<id>/ ─▶ any number of targets
//! ```
//! - One export serves all targets that want one at that moment; its files go when the last of them is done with it.
//! - Nothing is resumed after a restart: rows that are not complete are dropped at mount, and so are the files.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rusqlite::{OptionalExtension, params};

use super::export::{Exported, OpenSlot};
use super::target::Mode;
use super::{Error, Meta, Result, journal};
use crate::format::checkpoint::{PART_BYTES_MAX, Part};
use crate::format::key::CheckpointFile;
use crate::format::record::{Change, Record};
use crate::id::{ChunkId, ExportId, SegmentNumber, Seq, TargetBit};

/// Fast, and half the size of level 1 on names and hashes.
const ZSTD_LEVEL: i32 = 3;

/// A checkpoint of one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointRow {
    pub seq: Seq,
    pub export: ExportId,
    /// The first segment of the target that may hold records above `seq`.
    pub replay_from: SegmentNumber,
    pub complete: bool,
    /// Of its parts and slots; 0 until it is complete.
    pub bytes: u64,
}

/// How many segments a target had, and their bytes, when a checkpoint of it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SegmentsThen {
    pub bytes: u64,
    pub count: u64,
}

impl Meta {
    /// All checkpoints of a target, in order of seq.
    pub fn checkpoints(&self, bit: TargetBit) -> Result<Vec<CheckpointRow>> {
        self.read(|conn| {
            let mut statement = conn.prepare_cached(
                "SELECT seq, export, replay_from, complete, bytes FROM checkpoint WHERE bit = ?1 ORDER BY seq, export",
            )?;
            let rows = statement.query_map([bit], |row| {
                Ok(CheckpointRow {
                    seq: row.get(0)?,
                    export: row.get(1)?,
                    replay_from: row.get(2)?,
                    complete: row.get(3)?,
                    bytes: row.get::<_, i64>(4)? as u64,
                })
            })?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Notes that a checkpoint of target `bit` is under way. From here on the target needs the state at `seq` (T5).
    pub fn begin_checkpoint(
        &self,
        bit: TargetBit,
        seq: Seq,
        export: ExportId,
        replay_from: SegmentNumber,
    ) -> Result<()> {
        self.write(|tx| {
            tx.conn()
                .prepare_cached("INSERT OR REPLACE INTO checkpoint VALUES (?1, ?2, ?3, ?4, 0, 0)")?
                .execute(params![bit, seq, export, replay_from])?;
            tx.conn()
                .prepare_cached("UPDATE target SET base_seq = ?2 WHERE bit = ?1 AND mode = 'resync'")?
                .execute(params![bit, seq])?;
            Ok(())
        })
    }

    /// Notes that the target's `complete.json` is there: it has everything up to `seq`, however it lagged. A resyncer
    /// follows from here on (T4). False: the checkpoint was given up meanwhile, and means nothing to the target's row.
    pub fn complete_checkpoint(
        &self,
        bit: TargetBit,
        seq: Seq,
        export: ExportId,
        bytes: u64,
        then: SegmentsThen,
    ) -> Result<bool> {
        let counts = self.write(|tx| {
            let noted = tx
                .conn()
                .prepare_cached("UPDATE checkpoint SET complete = 1, bytes = ?4 WHERE bit = ?1 AND seq = ?2 AND export = ?3")?
                .execute(params![bit, seq, export, bytes as i64])?;
            if noted == 0 {
                return Ok(false);
            }
            tx.conn()
                .prepare_cached("DELETE FROM deferred WHERE bit = ?1 AND seq <= ?2")?
                .execute(params![bit, seq])?;
            // Segments that came after it began count for the next one.
            tx.conn()
                .prepare_cached(
                    "UPDATE target SET position = max(position, ?2), shipped_seq = max(shipped_seq, ?2), \
                     segment_bytes = max(segment_bytes - ?3, 0), segment_count = max(segment_count - ?4, 0) WHERE bit = ?1",
                )?
                .execute(params![bit, seq, then.bytes as i64, then.count as i64])?;
            let resync: bool = tx
                .conn()
                .prepare_cached("SELECT mode = 'resync' FROM target WHERE bit = ?1")?
                .query_row([bit], |row| row.get(0))?;
            if resync {
                tx.set_target_mode(bit, Mode::Follow, None)?;
            }
            Ok(true)
        })?;
        self.sync()?;
        if let Err(error) = self.pin_all() {
            // It follows all the same; the mount looks again whether all is pinned.
            tracing::warn!(%error, "what a target lacks that follows again could not all be pinned yet");
        }
        Ok(counts)
    }

    /// True while a checkpoint is under way that was begun for a target in this mode: once the mode changed, or somebody
    /// gave it up, it must not be completed.
    pub fn is_under_way(&self, bit: TargetBit, seq: Seq, export: ExportId, resync: bool) -> Result<bool> {
        self.read(|conn| {
            Ok(conn
                .prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM checkpoint c JOIN target t ON t.bit = c.bit WHERE c.bit = ?1 \
                     AND c.seq = ?2 AND c.export = ?3 AND c.complete = 0 AND (t.mode = 'resync') = ?4)",
                )?
                .query_row(params![bit, seq, export, resync], |row| row.get(0))?)
        })
    }

    /// Forgets checkpoints of a target: given up, or removed from it.
    pub fn forget_checkpoint(&self, bit: TargetBit, seq: Seq, export: ExportId) -> Result<()> {
        self.write(|tx| {
            tx.conn()
                .prepare_cached("DELETE FROM checkpoint WHERE bit = ?1 AND seq = ?2 AND export = ?3")?
                .execute(params![bit, seq, export])?;
            Ok(())
        })
    }

    /// Forgets all checkpoints that are not complete, of all targets: at mount, as nothing is resumed.
    pub fn abandon_checkpoints(&self) -> Result<()> {
        self.write(|tx| {
            tx.conn().execute("DELETE FROM checkpoint WHERE complete = 0", [])?;
            Ok(())
        })
    }

    /// The records that filled these slots, in order of seq; `None` while one of them is open. Their rows must be held
    /// (`replication::holds`).
    pub fn slot_records(&self, slots: &[OpenSlot]) -> Result<Option<Vec<Record>>> {
        self.read(|conn| {
            let mut records = Vec::with_capacity(slots.len());
            for slot in slots {
                let body: Option<Vec<u8>> = conn
                    .prepare_cached("SELECT body FROM journal WHERE seq = ?1")?
                    .query_row([slot.seq], |row| row.get(0))
                    .optional()?
                    .ok_or_else(|| {
                        Error::Damaged(format!("record {} filled a slot of a checkpoint and is gone", slot.seq))
                    })?;
                match body {
                    Some(body) => records.push(journal::decode(slot.seq, &body)?),
                    None => return Ok(None),
                }
            }
            Ok(Some(records))
        })
    }

    /// The last record of the units that these slots are part of (O6); the last slot if they are none.
    pub fn units_end(&self, slots: &[OpenSlot]) -> Result<Seq> {
        self.read(|conn| {
            let mut end = Seq::ZERO;
            for slot in slots {
                let last: Option<Seq> = conn
                    .prepare_cached("SELECT max(last) FROM unit WHERE first <= ?1 AND last >= ?1")?
                    .query_row([slot.seq], |row| row.get(0))?;
                end = end.max(slot.seq).max(last.unwrap_or_default());
            }
            Ok(end)
        })
    }

    /// True if target `bit` has every chunk that these records name.
    pub fn has_chunks_of(&self, bit: TargetBit, records: &[Record]) -> Result<bool> {
        let contents = records.iter().filter_map(|record| match &record.change {
            Change::Content(content) => Some(content),
            _ => None,
        });
        self.read(|conn| {
            let mut statement = conn.prepare_cached("SELECT placed & ?2 FROM chunk WHERE hash = ?1")?;
            for (hash, _) in contents.flat_map(|content| &content.chunks) {
                let placed: Option<i64> =
                    statement.query_row(params![hash, bit.mask() as i64], |row| row.get(0)).optional()?;
                if placed.unwrap_or(0) == 0 {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// True if a snapshot whose highest chunk was `high`, or one of these records, names a chunk that nobody has any more: it
    /// died since, and a resyncer keeps no bytes of the dead. Then the snapshot never becomes whole on target `bit`.
    pub fn names_what_is_gone(&self, bit: TargetBit, high: ChunkId, records: &[Record]) -> Result<bool> {
        const GONE: &str = "c.dead_seq > t.base_seq AND c.placed = 0 AND c.claimed = 0 \
             AND NOT EXISTS (SELECT 1 FROM location l WHERE l.chunk = c.id)";
        let contents = records.iter().filter_map(|record| match &record.change {
            Change::Content(content) => Some(content),
            _ => None,
        });
        self.read(|conn| {
            let sql = format!("SELECT 1 FROM target t, chunk c WHERE t.bit = ?1 AND c.id <= ?2 AND {GONE}");
            if conn.prepare_cached(&sql)?.exists(params![bit, high])? {
                return Ok(true);
            }
            let sql = format!("SELECT 1 FROM target t, chunk c WHERE t.bit = ?1 AND c.hash = ?2 AND {GONE}");
            let mut statement = conn.prepare_cached(&sql)?;
            for (hash, _) in contents.flat_map(|content| &content.chunks) {
                if statement.exists(params![bit, hash])? {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }

    /// Moves `cursor` up to the first chunk, of those up to `high`, that target `bit` needs and lacks. True: there is none,
    /// so it has every chunk of a snapshot whose highest was `high`.
    pub fn has_chunks_up_to(&self, bit: TargetBit, cursor: &mut ChunkId, high: ChunkId) -> Result<bool> {
        loop {
            let page = self.chunks_to_place(bit, *cursor, 1)?;
            let first = page.chunks.first().map(|chunk| chunk.id).into_iter().chain(page.leaving).min();
            if let Some(first) = first {
                *cursor = ChunkId(first.0 - 1);
                return Ok(first > high);
            }
            *cursor = page.cursor;
            if page.end || page.cursor >= high {
                return Ok(true);
            }
        }
    }
}

/// A compressed export on disk. Dropping it removes the files.
#[derive(Debug)]
pub struct ExportFiles {
    dir: PathBuf,
    /// What was exported; its own file is gone.
    pub exported: Exported,
    /// In order.
    pub parts: Vec<Part>,
}

impl ExportFiles {
    /// Exports the filesystem as it is now into a folder of its own below `dir`, compressed. Takes long: for a thread of
    /// its own.
    pub fn make(meta: &Meta, dir: &Path) -> Result<ExportFiles> {
        let export = ExportId::random();
        let dir = dir.join(export.to_string());
        std::fs::create_dir_all(&dir).map_err(io("create", &dir))?;
        let made = ExportFiles::make_in(meta, &dir, export);
        if made.is_err() {
            // Half an export is of no use; the error that matters is the one at hand.
            let _ = std::fs::remove_dir_all(&dir);
        }
        made
    }

    fn make_in(meta: &Meta, dir: &Path, export: ExportId) -> Result<ExportFiles> {
        let path = dir.join("meta.sqlite");
        let exported = meta.export(&path, export)?;
        let mut source = File::open(&path).map_err(io("open", &path))?;
        let parts = Parts { dir: dir.to_owned(), limit: PART_BYTES_MAX, open: None, done: Vec::new() };
        let compress = || -> std::io::Result<Parts> {
            let mut encoder = zstd::stream::write::Encoder::new(parts, ZSTD_LEVEL)?;
            std::io::copy(&mut source, &mut encoder)?;
            let mut parts = encoder.finish()?;
            parts.close();
            Ok(parts)
        };
        let parts = compress().map_err(io("compress", &path))?.done;
        std::fs::remove_file(&path).map_err(io("remove", &path))?;
        Ok(ExportFiles { dir: dir.to_owned(), exported, parts })
    }

    /// The bytes of one part.
    pub fn read(&self, part: &Part) -> Result<Bytes> {
        let path = self.dir.join(part.file.to_string());
        let bytes = std::fs::read(&path).map_err(io("read", &path))?;
        // What lies on the disk for hours may not be what was written; a checkpoint must not carry it on.
        part.verify(&bytes).map_err(|error| Error::Damaged(format!("export {}: {error}", path.display())))?;
        Ok(bytes.into())
    }

    /// Removes what earlier mounts left below `dir`.
    pub fn remove_leftovers(dir: &Path) -> Result<()> {
        match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("remove", dir)(error)),
            _ => Ok(()),
        }
    }
}

impl Drop for ExportFiles {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "the files of a checkpoint stay until the next mount");
        }
    }
}

fn io<'a>(what: &'a str, path: &'a Path) -> impl Fn(std::io::Error) -> Error + 'a {
    move |source| Error::Io { what: format!("{what} {}", path.display()), source }
}

/// Writes one stream into files of at most `limit` bytes.
struct Parts {
    dir: PathBuf,
    limit: u64,
    open: Option<OpenPart>,
    done: Vec<Part>,
}

struct OpenPart {
    name: CheckpointFile,
    file: File,
    bytes: u64,
    hasher: blake3::Hasher,
}

impl Parts {
    fn close(&mut self) {
        if let Some(part) = self.open.take() {
            self.done.push(Part { file: part.name, bytes: part.bytes, hash: part.hasher.finalize().into() });
        }
    }
}

impl Write for Parts {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        if self.open.as_ref().is_some_and(|part| part.bytes == self.limit) {
            self.close();
        }
        let part = match &mut self.open {
            Some(part) => part,
            none => {
                let index = u16::try_from(self.done.len()).ok().filter(|index| *index < CheckpointFile::PARTS_MAX);
                let index = index.ok_or_else(|| std::io::Error::other("more parts than a checkpoint may have"))?;
                let name = CheckpointFile::Part(index);
                let file = File::create_new(self.dir.join(name.to_string()))?;
                none.insert(OpenPart { name, file, bytes: 0, hasher: blake3::Hasher::new() })
            }
        };
        let room = usize::try_from(self.limit - part.bytes).unwrap_or(usize::MAX);
        let written = part.file.write(&buffer[..buffer.len().min(room)])?;
        part.hasher.update(&buffer[..written]);
        part.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.open.as_mut().map_or(Ok(()), |part| part.file.flush())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{ChunkHash, SessionId};
    use crate::meta::target::Configured;
    use crate::meta::testing::{file, fill_slot, slot_request, store};

    fn bit() -> TargetBit {
        TargetBit::new(0).unwrap()
    }

    fn target(meta: &Meta) {
        meta.register_targets(&[Configured { name: "a".into(), uri: "fs:///a".into(), id: None }]).unwrap();
    }

    #[test]
    fn t3_parts_are_one_stream_and_go_with_the_last_user() {
        let (dir, meta) = store();
        meta.write(|tx| {
            for n in 0..2000_u32 {
                file(tx, format!("file with some name {n} {}", blake3::hash(&n.to_le_bytes())).as_bytes());
            }
            Ok(())
        })
        .unwrap();
        let exports = dir.path().join("export");
        let files = ExportFiles::make(&meta, &exports).unwrap();
        assert_eq!(files.exported.seq, Seq(2000));
        let whole: Vec<u8> = files.parts.iter().flat_map(|part| files.read(part).unwrap()).collect();
        let sqlite = zstd::decode_all(&whole[..]).unwrap();
        assert_eq!(sqlite.len() as u64, files.exported.bytes);
        assert!(sqlite.starts_with(b"SQLite format 3\0"));
        drop(files);
        assert_eq!(std::fs::read_dir(&exports).unwrap().count(), 0);
        ExportFiles::remove_leftovers(&exports).unwrap();
        ExportFiles::remove_leftovers(&exports).unwrap();
    }

    #[test]
    fn t3_a_stream_is_cut_at_the_limit_whatever_the_writes() {
        let dir = tempfile::tempdir().unwrap();
        let mut parts = Parts { dir: dir.path().to_owned(), limit: 10, open: None, done: Vec::new() };
        let bytes: Vec<u8> = (0..35).collect();
        for piece in bytes.chunks(7) {
            parts.write_all(piece).unwrap();
        }
        parts.close();
        assert_eq!(parts.done.iter().map(|part| part.bytes).collect::<Vec<_>>(), [10, 10, 10, 5]);
        let read: Vec<u8> = (parts.done.iter())
            .flat_map(|part| {
                let bytes = std::fs::read(dir.path().join(part.file.to_string())).unwrap();
                part.verify(&bytes).unwrap();
                bytes
            })
            .collect();
        assert_eq!(read, bytes);
    }

    #[test]
    fn t3_a_damaged_part_is_not_sent() {
        let (dir, meta) = store();
        let files = ExportFiles::make(&meta, dir.path()).unwrap();
        let path = files.dir.join(files.parts[0].file.to_string());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[9] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(files.read(&files.parts[0]), Err(Error::Damaged(_))));
    }

    #[test]
    fn t3_slots_are_read_when_all_are_filled_and_their_chunks_asked_for() {
        let (dir, meta) = store();
        target(&meta);
        meta.write(|tx| {
            let (a, b) = (file(tx, b"a"), file(tx, b"b"));
            tx.reserve_slot(&slot_request(a, 1, 9))?;
            tx.reserve_slot(&slot_request(b, 2, 9))?;
            tx.extend_unit(Seq(4), Seq(9))
        })
        .unwrap();
        let slots = ExportFiles::make(&meta, dir.path()).unwrap().exported.slots.clone();
        assert_eq!(slots.iter().map(|slot| slot.seq.0).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(meta.units_end(&slots).unwrap(), Seq(9));
        let hash = ChunkHash::of(b"x");
        meta.write(|tx| {
            fill_slot(tx, 1, hash);
            Ok(())
        })
        .unwrap();
        assert_eq!(meta.slot_records(&slots).unwrap(), None);
        meta.write(|tx| tx.void_lost(SessionId(2))).unwrap();
        let records = meta.slot_records(&slots).unwrap().unwrap();
        assert!(matches!(records[0].change, Change::Content(_)) && matches!(records[1].change, Change::Void { .. }));
        assert!(!meta.has_chunks_of(bit(), &records).unwrap());
        let mut cursor = ChunkId(0);
        assert!(!meta.has_chunks_up_to(bit(), &mut cursor, ChunkId(1)).unwrap());
        assert!(meta.has_chunks_up_to(bit(), &mut cursor, ChunkId(0)).unwrap(), "younger than the snapshot");
        meta.place(bit(), &[ChunkId(1)]).unwrap();
        assert!(meta.has_chunks_of(bit(), &records).unwrap());
        assert!(meta.has_chunks_up_to(bit(), &mut cursor, ChunkId(1)).unwrap());
    }

    #[test]
    fn t3_a_complete_checkpoint_lifts_position_and_low_water_and_drops_what_was_deferred() {
        let (_dir, meta) = store();
        target(&meta);
        meta.write(|tx| {
            tx.conn().execute(
                "UPDATE target SET position = 5, shipped_seq = 1, segment_bytes = 90, segment_count = 7",
                [],
            )?;
            tx.conn().execute("INSERT INTO deferred VALUES (0, 2), (0, 4), (0, 5)", [])?;
            Ok(())
        })
        .unwrap();
        let export = ExportId(8);
        meta.begin_checkpoint(bit(), Seq(4), export, SegmentNumber(3)).unwrap();
        meta.complete_checkpoint(bit(), Seq(4), export, 77, SegmentsThen { bytes: 60, count: 5 }).unwrap();
        let cursor = meta.cursor(bit()).unwrap();
        assert_eq!((cursor.position, cursor.shipped_seq), (Seq(5), Seq(4)));
        assert_eq!((cursor.segment_bytes, cursor.segment_count), (30, 2));
        let deferred: i64 =
            meta.read(|conn| Ok(conn.query_row("SELECT sum(seq) FROM deferred", [], |row| row.get(0))?)).unwrap();
        assert_eq!(deferred, 5);
        let row = CheckpointRow { seq: Seq(4), export, replay_from: SegmentNumber(3), complete: true, bytes: 77 };
        assert_eq!(meta.checkpoints(bit()).unwrap(), [row]);
        meta.begin_checkpoint(bit(), Seq(9), ExportId(9), SegmentNumber(4)).unwrap();
        meta.abandon_checkpoints().unwrap();
        assert_eq!(meta.checkpoints(bit()).unwrap().len(), 1);
    }

    #[test]
    fn t4_a_resyncer_follows_from_its_checkpoint_on() {
        let (_dir, meta) = store();
        target(&meta);
        meta.set_target_mode(bit(), Mode::Resync, None).unwrap();
        meta.begin_checkpoint(bit(), Seq(40), ExportId(8), SegmentNumber(1)).unwrap();
        assert_eq!(meta.targets().unwrap()[0].base_seq, Seq(40));
        meta.complete_checkpoint(bit(), Seq(40), ExportId(8), 7, SegmentsThen::default()).unwrap();
        let row = meta.targets().unwrap().remove(0);
        assert_eq!((row.mode, row.shipped_seq), (Mode::Follow, Seq(40)));
        assert_eq!(meta.cursor(bit()).unwrap().position, Seq(40));
    }
}
