//! Export: a snapshot of the shared tables as one plain SQLite file, the heart of a checkpoint (T3).
//!
//! Owns: what the file holds (FORMATS.md, "meta.sqlite"), and that it is one moment of the filesystem.
//! Does not own: compressing and sending it, the records that fill its open slots, `complete.json`
//! (`replication::checkpoint`).
//!
//! - One read transaction: writers go on meanwhile, and the WAL grows until it ends.
//! - Only what has a name: orphans live on this machine alone, and a chunk that only they refer to is dead in the file.
//! - Chunks that are dead stay in the file: after a restore they are how GC knows what to delete.
//! - From the snapshot on, no slot at or below its seq is renewed in place: what fills it reaches a target as extents
//!   only, clipped to the size in the file ([`Tx::exported`](super::Tx)).

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, params};

use super::inode::timestamp;
use super::migrate::APPLICATION_ID;
use super::store::connection;
use super::{Error, Meta, Result};
use crate::clock::Timestamp;
use crate::id::{ExportId, Generation, InodeId, Seq};

/// The schema of the file.
pub(super) const SCHEMA: &str = include_str!("checkpoint.sql");
/// Version of that schema.
pub(super) const USER_VERSION: i32 = 1;

/// A slot that was open at the moment of the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpenSlot {
    /// Its place in history.
    pub seq: Seq,
    pub ino: InodeId,
    pub generation: Generation,
}

/// A finished export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// The file; whoever exported it removes it.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Every record up to this one is in it.
    pub seq: Seq,
    pub export: ExportId,
    /// Rows of `inode`.
    pub inodes: u64,
    /// Chunks that it refers to; those of the records that fill the slots come on top.
    pub chunks: u64,
    /// Bytes of those chunks.
    pub chunk_bytes: u64,
    /// No chunk in it has a higher row id.
    pub chunk_high: u64,
    /// What `slots.jsonl.zst` has to fill, in order of seq.
    pub slots: Vec<OpenSlot>,
    /// By slot: what its file was before.
    pub before: BTreeMap<Seq, Before>,
}

/// Size and times of a file before a session took its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Before {
    pub size: u64,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
}

impl Meta {
    /// Writes a snapshot of the filesystem as it is now to `path`, where nothing may be. Takes as long as copying the
    /// tables takes: for a thread of its own.
    pub fn export(&self, path: &Path, export: ExportId) -> Result<Exported> {
        let io = |what: &str| {
            let what = format!("{what} {}", path.display());
            move |source| Error::Io { what, source }
        };
        // Made before SQLite sees it, so that nobody else can read it and nothing is overwritten.
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io("create"))?;
        let exported = self.export_into(path, export);
        let exported = exported.and_then(|exported| {
            let file = std::fs::File::open(path).map_err(io("open"))?;
            file.sync_data().map_err(io("sync"))?;
            let bytes = file.metadata().map_err(io("stat"))?.len();
            Ok(Exported { bytes, ..exported })
        });
        if exported.is_err() {
            // It may be half a file; the error that matters is the one at hand.
            let _ = std::fs::remove_file(path);
        }
        exported
    }

    fn export_into(&self, path: &Path, export: ExportId) -> Result<Exported> {
        let file = Connection::open(path)?;
        file.pragma_update(None, "journal_mode", "OFF")?;
        file.pragma_update(None, "application_id", APPLICATION_ID)?;
        file.pragma_update(None, "user_version", USER_VERSION)?;
        file.execute_batch(SCHEMA)?;
        file.close().map_err(|(_, e)| e)?;

        // A connection of its own: the readers cannot attach a file to write to. It never writes to the store itself.
        let conn = Connection::open_with_flags(
            self.path(),
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        connection::configure(&conn)?;
        let text = path.to_str().ok_or_else(|| Error::Io {
            what: format!("export to {}", path.display()),
            source: std::io::Error::other("the path is not UTF-8"),
        })?;
        conn.execute("ATTACH ?1 AS out", [text])?;
        // Nobody reads the file before it is whole, and a half one is thrown away.
        conn.execute_batch("PRAGMA out.journal_mode = OFF; PRAGMA out.synchronous = OFF")?;
        // While the writer stands still, the snapshot and the note of it are one moment.
        let seq = self.write(|tx| {
            conn.execute_batch("BEGIN")?;
            let seq: Seq = conn.query_row("SELECT seq FROM main.counter", [], |row| row.get(0))?;
            tx.set_exported();
            Ok(seq)
        })?;
        copy(&conn, seq)?;
        // A power cut must not take back what a checkpoint says has happened (S3).
        self.sync()?;
        let (inodes, chunks, chunk_bytes): (i64, i64, i64) = conn.query_row(
            "SELECT (SELECT count(*) FROM out.inode), count(*), coalesce(sum(length), 0) FROM out.chunk \
             WHERE dead_seq IS NULL",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )?;
        let chunk_high: i64 =
            conn.query_row("SELECT value FROM out.filesystem WHERE key = 'chunk_high'", [], |row| row.get(0))?;
        let slots = conn
            .prepare("SELECT seq, ino, generation FROM out.slot ORDER BY seq")?
            .query_map([], |row| Ok(OpenSlot { seq: row.get(0)?, ino: row.get(1)?, generation: row.get(2)? }))?
            .collect::<rusqlite::Result<_>>()?;
        let before = conn
            .prepare(
                "SELECT o.seq, s.size, s.mtime, s.mtime_ns, s.ctime, s.ctime_ns \
                 FROM out.slot o JOIN main.session s ON s.ino = o.ino AND s.slot = o.seq",
            )?
            .query_map([], |row| {
                let size = row.get::<_, i64>(1)?.max(0) as u64;
                Ok((row.get(0)?, Before { size, mtime: timestamp(row, 2)?, ctime: timestamp(row, 4)? }))
            })?
            .collect::<rusqlite::Result<_>>()?;
        conn.execute_batch("COMMIT; DETACH out")?;
        Ok(Exported {
            path: path.to_owned(),
            bytes: 0,
            seq,
            export,
            inodes: inodes as u64,
            chunks: chunks as u64,
            chunk_bytes: chunk_bytes as u64,
            chunk_high: chunk_high as u64,
            slots,
            before,
        })
    }
}

/// Copies every shared table, in the order of its key, so that the file is filled from front to back.
fn copy(conn: &Connection, seq: Seq) -> Result<()> {
    conn.execute_batch(
        "CREATE TEMP TABLE of_orphans (chunk INTEGER PRIMARY KEY, bytes INTEGER NOT NULL);
         INSERT INTO temp.of_orphans
             SELECT chunk, sum(length) FROM main.extent
             WHERE manifest IN (SELECT manifest FROM main.orphan
                                UNION SELECT manifest FROM main.inode WHERE nlink = 0 AND manifest IS NOT NULL)
             GROUP BY chunk;
         INSERT INTO out.inode
             SELECT ino, mode, uid, gid, rdev, nlink, size, generation, atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns,
                    times_seq
             FROM main.inode WHERE nlink > 0 ORDER BY ino;
         INSERT INTO out.dirent SELECT parent, name, ino FROM main.dirent ORDER BY parent, name;
         INSERT INTO out.symlink
             SELECT s.ino, s.target FROM main.symlink s CROSS JOIN main.inode i ON i.ino = s.ino
             WHERE i.nlink > 0 ORDER BY s.ino;
         INSERT INTO out.xattr
             SELECT x.ino, x.name, x.value FROM main.xattr x CROSS JOIN main.inode i ON i.ino = x.ino
             WHERE i.nlink > 0 ORDER BY x.ino, x.name;
         INSERT INTO out.extent
             SELECT i.ino, e.offset, e.length, e.chunk, e.chunk_offset
             FROM main.inode i CROSS JOIN main.extent e ON e.manifest = i.manifest
             WHERE i.nlink > 0 ORDER BY i.ino, e.offset;
         INSERT INTO out.slot
             SELECT s.seq, s.ino, s.generation FROM main.slot s CROSS JOIN main.inode i ON i.ino = s.ino
             WHERE i.nlink > 0 ORDER BY s.seq;",
    )?;
    conn.execute(
        "INSERT INTO out.chunk
             SELECT c.id, c.hash, c.length,
                    CASE WHEN c.dead_seq IS NULL AND c.bytes_referenced = coalesce(o.bytes, 0) THEN ?1 ELSE c.dead_seq END
             FROM main.chunk c LEFT JOIN temp.of_orphans o ON o.chunk = c.id ORDER BY c.id",
        [seq.next()],
    )?;
    conn.execute_batch("DROP TABLE temp.of_orphans")?;
    conn.execute(
        "INSERT INTO out.filesystem
             SELECT key, value FROM main.filesystem WHERE key IN ('filesystem', 'name', 'chunk_size', 'created')
             UNION ALL SELECT 'seq', ?1
             UNION ALL SELECT 'epoch', epoch FROM main.counter
             UNION ALL SELECT 'writer', writer FROM main.counter
             UNION ALL SELECT 'next_inode', next_inode FROM main.counter
             UNION ALL SELECT 'chunk_high', (SELECT coalesce(max(id), 0) FROM main.chunk)",
        params![seq],
    )?;
    Ok(())
}
