//! Where the content of an inode is, and how far behind a target is: the questions of `whereis`, `flush` and `status`.
//!
//! Owns: reading it off placement bits, `inode.last_seq` and the journal. Nothing here changes anything.
//! Does not own: bytes that no seal has committed yet (`write` knows of those).

use rusqlite::params;

use super::placement::ChunkTodo;
use super::{Meta, Result, inode, journal, target};
use crate::id::{ChunkId, InodeId, ManifestId, Seq, TargetBit};

/// What the targets hold of one inode's committed content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copies {
    /// Bytes of the file.
    pub size: u64,
    /// Bytes that have a place on this machine.
    pub local_bytes: u64,
    /// The newest record that names the inode.
    pub last_seq: Seq,
    /// Holds a slot whose bytes are not sealed yet.
    pub unsealed: bool,
    /// Of each target, by bit.
    pub targets: Vec<TargetCopy>,
}

/// What one target holds of an inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetCopy {
    pub bit: TargetBit,
    /// Bytes of the content in chunks that it has not confirmed.
    pub lacking_bytes: u64,
    /// It holds every record up to this place.
    pub shipped_seq: Seq,
}

/// Counting stops here, so that `status` stays quick however large the backlog is.
pub const UNSHIPPED_FILES_MAX: u64 = 100_000;

impl Meta {
    /// Where the committed content of `ino` is.
    pub fn copies(&self, ino: InodeId) -> Result<Copies> {
        self.read(|conn| {
            let row = inode::Inode::get(conn, ino)?;
            let (manifest, last_seq): (Option<ManifestId>, Seq) = conn
                .prepare_cached("SELECT manifest, last_seq FROM inode WHERE ino = ?1")?
                .query_row([ino], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let unsealed = conn.prepare_cached("SELECT 1 FROM slot WHERE ino = ?1")?.exists([ino])?;
            let mut copies = Copies { size: row.size, local_bytes: 0, last_seq, unsealed, targets: Vec::new() };
            let Some(manifest) = manifest else {
                let nothing = |row: target::TargetRow| TargetCopy {
                    bit: row.bit,
                    lacking_bytes: 0,
                    shipped_seq: row.shipped_seq,
                };
                copies.targets = target::rows(conn)?.into_iter().map(nothing).collect();
                return Ok(copies);
            };
            // Bytes that several local files hold count once each time, hence never more than there are.
            copies.local_bytes = sum(
                conn,
                "SELECT coalesce(sum(min(e.chunk_offset + e.length, l.chunk_offset + l.length) \
                 - max(e.chunk_offset, l.chunk_offset)), 0) FROM extent e JOIN location l ON l.chunk = e.chunk \
                 AND l.chunk_offset < e.chunk_offset + e.length AND l.chunk_offset + l.length > e.chunk_offset \
                 WHERE e.manifest = ?1",
                params![manifest],
            )?
            .min(row.size);
            for target in target::rows(conn)? {
                copies.targets.push(TargetCopy {
                    bit: target.bit,
                    lacking_bytes: sum(
                        conn,
                        // Bytes that a repack moves, which it has not got yet, lie there where they lay before.
                        "SELECT coalesce(sum(e.length), 0) FROM extent e JOIN chunk c ON c.id = e.chunk \
                         WHERE e.manifest = ?1 AND c.placed & ?2 = 0 AND NOT EXISTS \
                         (SELECT 1 FROM repacked r WHERE r.to_chunk = c.id AND r.seq > ?3)",
                        params![manifest, target.bit.mask() as i64, target.shipped_seq],
                    )?,
                    shipped_seq: target.shipped_seq,
                });
            }
            Ok(copies)
        })
    }

    /// The newest record that names `ino`, or something below it if it is a directory: what a flush of it waits for.
    pub fn last_seq_below(&self, ino: InodeId) -> Result<Seq> {
        self.read(|conn| {
            // A directory's row has the records of its names, an inode's row those of its own; the walk ends at files.
            Ok(conn
                .prepare_cached(
                    "WITH RECURSIVE below(ino) AS (SELECT ?1 UNION SELECT d.ino FROM below b JOIN dirent d \
                     ON d.parent = b.ino) SELECT coalesce(max(i.last_seq), 0) FROM below b JOIN inode i ON i.ino = b.ino",
                )?
                .query_row([ino], |row| row.get(0))?)
        })
    }

    /// Up to `limit` chunks of the committed content of `ino` that some pinning target lacks, in the order of their ids; with
    /// the mask of targets that hold them.
    pub fn chunks_lacking(&self, ino: InodeId, limit: usize) -> Result<Vec<(ChunkTodo, u64)>> {
        self.read(|conn| {
            let mut statement = conn.prepare_cached(
                "SELECT DISTINCT c.id, c.hash, c.length, c.placed FROM inode i JOIN extent e ON e.manifest = i.manifest \
                 JOIN chunk c ON c.id = e.chunk WHERE i.ino = ?1 AND c.incomplete = 1 ORDER BY c.id LIMIT ?2",
            )?;
            let rows = statement.query_map(params![ino, limit as i64], |row| {
                let chunk =
                    ChunkTodo { id: row.get(0)?, hash: row.get(1)?, length: row.get::<_, i64>(2)?.max(0) as u64 };
                Ok((chunk, row.get::<_, i64>(3)? as u64))
            })?;
            rows.map(|row| Ok(row?)).collect()
        })
    }

    /// Up to `limit` chunks that files refer to and that have no bytes on this machine, after `after`, by id; with the mask
    /// of targets that hold them.
    pub fn chunks_elsewhere(&self, after: ChunkId, limit: usize) -> Result<Vec<(ChunkTodo, u64)>> {
        self.read(|conn| {
            let mut statement = conn.prepare_cached(
                "SELECT c.id, c.hash, c.length, c.placed FROM chunk c WHERE c.id > ?1 AND c.dead_seq IS NULL \
                 AND NOT EXISTS (SELECT 1 FROM location l WHERE l.chunk = c.id) ORDER BY c.id LIMIT ?2",
            )?;
            let rows = statement.query_map(params![after, limit as i64], |row| {
                let chunk =
                    ChunkTodo { id: row.get(0)?, hash: row.get(1)?, length: row.get::<_, i64>(2)?.max(0) as u64 };
                Ok((chunk, row.get::<_, i64>(3)? as u64))
            })?;
            rows.map(|row| Ok(row?)).collect()
        })
    }

    /// True while a slot up to `seq` waits for its bytes.
    pub fn has_open_slot(&self, seq: Seq) -> Result<bool> {
        self.read(|conn| Ok(conn.prepare_cached("SELECT 1 FROM slot WHERE seq <= ?1")?.exists([seq])?))
    }

    /// Files with content records or open slots after `shipped`; at most [`UNSHIPPED_FILES_MAX`] are counted.
    pub fn unshipped_files(&self, shipped: Seq) -> Result<u64> {
        self.read(|conn| {
            let files: i64 = conn
                .prepare_cached(
                    "SELECT count(DISTINCT ino) FROM \
                     (SELECT ino FROM journal WHERE seq > ?1 AND kind IN (?2, ?3) LIMIT ?4)",
                )?
                .query_row(
                    params![
                        shipped,
                        journal::Kind::Content as i64,
                        journal::Kind::Synced as i64,
                        UNSHIPPED_FILES_MAX as i64
                    ],
                    |row| row.get(0),
                )?;
            Ok(files.max(0) as u64)
        })
    }
}

fn sum(conn: &rusqlite::Connection, sql: &str, params: impl rusqlite::Params) -> Result<u64> {
    let bytes: i64 = conn.prepare_cached(sql)?.query_row(params, |row| row.get(0))?;
    Ok(bytes.max(0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ChunkHash;
    use crate::meta::target::Configured;
    use crate::meta::testing::{file, fill_slot, slot_request, store};

    #[test]
    fn a_file_with_an_open_slot_is_not_sealed_and_counts_as_unshipped() {
        let (_dir, meta) = store();
        let configured = Configured { name: "a".into(), uri: "memory://a".into(), id: None };
        meta.register_targets(&[configured]).unwrap();
        let ino = meta.write(|tx| Ok(file(tx, b"f"))).unwrap();
        assert_eq!(meta.unshipped_files(Seq::ZERO).unwrap(), 0);
        let seq = meta.write(|tx| tx.reserve_slot(&slot_request(ino, 1, 10))).unwrap().unwrap();
        let copies = meta.copies(ino).unwrap();
        assert!(copies.unsealed);
        assert_eq!((copies.size, copies.local_bytes, copies.last_seq), (10, 0, seq));
        assert_eq!(copies.targets.len(), 1);
        assert_eq!(meta.unshipped_files(seq.previous()).unwrap(), 1);
        assert_eq!(meta.unshipped_files(seq).unwrap(), 0);
        let synced = crate::meta::slot::SlotRequest { fsynced: true, ..slot_request(ino, 1, 10) };
        meta.write(|tx| tx.reserve_slot(&synced)).unwrap();
        meta.write(|tx| {
            fill_slot(tx, 1, ChunkHash::of(b"f"));
            Ok(())
        })
        .unwrap();
        assert_eq!(meta.unshipped_files(Seq::ZERO).unwrap(), 1, "what an fsync covered waits like any other");
    }

    #[test]
    fn a_directory_waits_for_what_is_below_it() {
        let (_dir, meta) = store();
        let ino = meta.write(|tx| Ok(file(tx, b"f"))).unwrap();
        assert_eq!(meta.last_seq_below(InodeId::ROOT).unwrap(), meta.last_seq_below(ino).unwrap());
        assert!(meta.copies(InodeId(99)).is_err());
    }
}
