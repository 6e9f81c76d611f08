//! Session rows: the write sessions that hold a slot and wait for their seal.
//!
//! Owns: the row. It appears with the session's first slot: before that nothing was acknowledged, and the chunk file's
//! own name says what it is (S7).
//! Does not own: the bytes (`write`), the slot (`meta::slot`).

use rusqlite::params;

use super::inode::{Inode, timestamp};
use super::slot::SlotRequest;
use super::{Meta, Result, Tx};
use crate::clock::Timestamp;
use crate::id::{Generation, InodeId, Seq, SessionId};

/// A session that was acknowledged and not committed yet: what recovery starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    pub id: SessionId,
    pub ino: InodeId,
    /// Generation of the content it was based on.
    pub base: Generation,
    pub whole: bool,
    pub base_limit: u64,
    pub slot: Option<Seq>,
    pub synced_size: Option<u64>,
    /// Size and times of the content before it, which a void `lost` puts back.
    pub before: (u64, Timestamp, Timestamp),
}

impl Tx<'_> {
    /// Writes the row of a session that takes its first slot, with the size and times that a void `lost` would put back.
    pub(super) fn store_session(&mut self, request: &SlotRequest, slot: Seq, inode: &Inode) -> Result<()> {
        self.conn()
            .prepare_cached("INSERT INTO session VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)")?
            .execute(params![
            request.session,
            request.ino,
            request.base,
            request.whole,
            request.base_limit as i64,
            slot,
            request.synced_size.map(|size| size as i64),
            inode.size as i64,
            inode.mtime.secs(),
            inode.mtime.nanos(),
            inode.ctime.secs(),
            inode.ctime.nanos()
        ])?;
        Ok(())
    }

    /// Brings the row of a session that held a slot already up to date.
    pub(super) fn update_session(&mut self, request: &SlotRequest, slot: Seq) -> Result<()> {
        self.conn()
            .prepare_cached(
                "UPDATE session SET slot = ?2, whole = ?3, base_limit = ?4, synced_size = ?5 WHERE id = ?1",
            )?
            .execute(params![
                request.session,
                slot,
                request.whole,
                request.base_limit as i64,
                request.synced_size.map(|size| size as i64)
            ])?;
        Ok(())
    }

    /// Removes a session that was committed or given up.
    pub fn delete_session(&mut self, session: SessionId) -> Result<()> {
        self.conn().prepare_cached("DELETE FROM session WHERE id = ?1")?.execute([session])?;
        Ok(())
    }
}

impl Meta {
    /// All sessions, oldest first.
    pub fn sessions(&self) -> Result<Vec<SessionRow>> {
        self.read(|conn| {
            let mut statement = conn.prepare_cached(
                "SELECT id, ino, generation, whole, base_limit, slot, synced_size, size, mtime, mtime_ns, ctime, \
                 ctime_ns FROM session ORDER BY id",
            )?;
            let rows = statement.query_map([], |row| {
                Ok(SessionRow {
                    id: row.get(0)?,
                    ino: row.get(1)?,
                    base: row.get(2)?,
                    whole: row.get(3)?,
                    base_limit: row.get::<_, i64>(4)? as u64,
                    slot: row.get(5)?,
                    synced_size: row.get::<_, Option<i64>>(6)?.map(|size| size as u64),
                    before: (row.get::<_, i64>(7)? as u64, timestamp(row, 8)?, timestamp(row, 10)?),
                })
            })?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }
}
