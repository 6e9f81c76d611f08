//! Inode rows: attributes as the newest committed transaction knows them.
//!
//! Owns: reading and updating the row.
//! Does not own: what a write session in memory knows better (`write::Files` overlays size and times of dirty inodes).

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::cache::Known;
use super::{Error, Result, Tx};
use crate::clock::Timestamp;
use crate::id::{Generation, InodeId, ManifestId, Seq};

/// One inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    pub ino: InodeId,
    /// `st_mode` with type bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// As in `fuse_attr`; 0 if no device.
    pub rdev: u32,
    /// Names; a directory 2 + its subdirectories; 0 = orphan.
    pub nlink: u32,
    /// Bytes; symlink: length of target; directory 0.
    pub size: u64,
    pub generation: Generation,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    /// Directories: the seq that set mtime and ctime last; else 0.
    pub times_seq: Seq,
    pub manifest: Option<ManifestId>,
    /// The newest record that names this inode.
    pub last_seq: Seq,
    /// The directory of the name it got last: a hint.
    pub parent: InodeId,
    /// Sum of the lengths of the manifest's extents: what of `size` is no hole, as committed.
    pub allocated: u64,
}

impl Inode {
    /// The type bits of the mode (`S_IFREG`, `S_IFDIR` …).
    pub fn file_type(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    /// True for a directory.
    pub fn is_dir(&self) -> bool {
        self.file_type() == libc::S_IFDIR
    }

    /// True for a regular file.
    pub fn is_file(&self) -> bool {
        self.file_type() == libc::S_IFREG
    }

    /// Takes over by how much a change of extents changed what is allocated ([`RefDeltas::net`](super::extent::RefDeltas::net)).
    pub(crate) fn allocate(&mut self, net: i64) -> Result<()> {
        self.allocated = self.allocated.checked_add_signed(net).ok_or_else(|| {
            Error::Damaged(format!("inode {} has {} bytes allocated, and {net} come", self.ino, self.allocated))
        })?;
        Ok(())
    }

    /// The columns that [`Inode::from_row`] reads, as many as [`Inode::COLUMN_COUNT`].
    pub(super) const COLUMNS: &'static str = "ino, mode, uid, gid, rdev, nlink, size, generation, atime, atime_ns, mtime, mtime_ns, \
                                   ctime, ctime_ns, times_seq, manifest, last_seq, parent, allocated";

    pub(super) const COLUMN_COUNT: usize = 19;

    pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<Inode> {
        Ok(Inode {
            ino: row.get(0)?,
            mode: row.get(1)?,
            uid: row.get(2)?,
            gid: row.get(3)?,
            rdev: row.get(4)?,
            nlink: row.get(5)?,
            size: row.get::<_, i64>(6)? as u64,
            generation: row.get(7)?,
            atime: timestamp(row, 8)?,
            mtime: timestamp(row, 10)?,
            ctime: timestamp(row, 12)?,
            times_seq: row.get(14)?,
            manifest: row.get(15)?,
            last_seq: row.get(16)?,
            parent: row.get(17)?,
            allocated: row.get::<_, i64>(18)? as u64,
        })
    }

    /// Reads the row of `ino` on any connection, or `None`.
    pub(crate) fn find(conn: &Connection, ino: InodeId) -> Result<Option<Inode>> {
        use std::sync::LazyLock;
        static SQL: LazyLock<String> = LazyLock::new(|| format!("SELECT {} FROM inode WHERE ino = ?1", Inode::COLUMNS));
        Ok(conn.prepare_cached(&SQL)?.query_row([ino], Inode::from_row).optional()?)
    }

    /// Reads the row of `ino`; that there is none is `ENOENT`.
    pub(crate) fn get(conn: &Connection, ino: InodeId) -> Result<Inode> {
        Inode::find(conn, ino)?.ok_or(Error::Refused(rustix::io::Errno::NOENT))
    }

    /// Writes a new row.
    pub(crate) fn insert(&self, tx: &Tx<'_>) -> Result<()> {
        use std::sync::LazyLock;
        static SQL: LazyLock<String> = LazyLock::new(|| {
            format!(
                "INSERT INTO inode ({}) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18,?19)",
                Inode::COLUMNS
            )
        });
        self.store(tx, &SQL)?;
        tx.changes().inserted(self);
        tx.note_usage(1, self.size as i64);
        Ok(())
    }

    /// Removes the row.
    pub(crate) fn delete(&self, tx: &Tx<'_>) -> Result<()> {
        let size: i64 = tx
            .conn()
            .prepare_cached("DELETE FROM inode WHERE ino = ?1 RETURNING size")?
            .query_row([self.ino], |row| row.get(0))?;
        tx.changes().removed(self.ino);
        tx.note_usage(-1, -size);
        Ok(())
    }

    /// Writes all columns of the row back.
    pub(crate) fn update(&self, tx: &Tx<'_>) -> Result<()> {
        if self.is_file() {
            let had = tx.inode(self.ino)?.size;
            tx.note_usage(0, self.size as i64 - had as i64);
        }
        tx.changes().updated(self);
        self.store(
            tx,
            "UPDATE inode SET mode=?2, uid=?3, gid=?4, rdev=?5, nlink=?6, size=?7, generation=?8, atime=?9, atime_ns=?10, \
             mtime=?11, mtime_ns=?12, ctime=?13, ctime_ns=?14, times_seq=?15, manifest=?16, last_seq=?17, parent=?18, allocated=?19 \
             WHERE ino=?1",
        )
    }

    fn store(&self, tx: &Tx<'_>, sql: &str) -> Result<()> {
        let changed = tx.conn().prepare_cached(sql)?.execute(params![
            self.ino,
            self.mode,
            self.uid,
            self.gid,
            self.rdev,
            self.nlink,
            self.size as i64,
            self.generation,
            self.atime.secs(),
            self.atime.nanos(),
            self.mtime.secs(),
            self.mtime.nanos(),
            self.ctime.secs(),
            self.ctime.nanos(),
            self.times_seq,
            self.manifest,
            self.last_seq,
            self.parent,
            self.allocated as i64,
        ])?;
        if changed == 1 { Ok(()) } else { Err(Error::Damaged(format!("inode {} has {changed} rows", self.ino))) }
    }
}

/// Reads a time from two neighbouring columns.
pub(crate) fn timestamp(row: &Row<'_>, column: usize) -> rusqlite::Result<Timestamp> {
    Timestamp::new(row.get(column)?, row.get(column + 1)?)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(column + 1, rusqlite::types::Type::Integer, e.into()))
}

impl super::Meta {
    /// The row of `ino`; that there is none is `ENOENT`.
    pub fn inode(&self, ino: InodeId) -> Result<Inode> {
        if let Some(known) = self.cache.find(ino) {
            return Ok(known.inode);
        }
        let moment = self.cache.moment();
        let inode = self.read(|conn| Inode::get(conn, ino))?;
        self.cache.bring(moment, [Known { inode, xattrs: None }]);
        Ok(inode)
    }
}
