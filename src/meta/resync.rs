//! Leaving the journal behind: what changes in the store when a follower becomes a resyncer (T4), when a target turns out
//! to have lost objects (T7), and how large a target's backlog is.
//!
//! Owns: the transaction that makes a resyncer, letting go of what was pinned for it, taking stock of a target anew.
//! Does not own: when this happens (`replication::resync`), how it ends (`meta::checkpoint`).
//!
//! ```text
//! follow ──begin_resync──▶ resync: no deferred records, no pending sums; rows of the journal may go
//!                            └─ settle_pins, page by page: chunks that nobody else waits for are unpinned
//! lost objects ──begin_relist──▶ resync, nothing counts ──forget_placed, found──▶ what a listing shows counts
//! ```
//!
//! Each page is a transaction of its own (D8). A crash in between leaves chunks pinned or unlisted that need not be: the
//! next mount goes over them again.

use rusqlite::{OptionalExtension, params};

use super::pin::Pinning;
use super::target::{self, Mode};
use super::{Meta, Result, Tx};
use crate::id::{ChunkHash, ChunkId, Seq, TargetBit};

/// Listed chunks that one transaction notes (D8).
pub(super) const LISTED_AT_ONCE: usize = 256;

/// What a resyncer still has to be given (T5): chunks of the present state, and of the state that a checkpoint on its way to it
/// shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lacking {
    /// Chunks that it needs and lacks.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of all chunks that it needs.
    pub total_bytes: u64,
}

impl Meta {
    /// Makes target `bit` a resyncer, if it is none; durable. True: it was a follower. Its deferred records go at once, and
    /// journal rows that only it waited for with the next trimming; [`Meta::settle_pins`] lets go of the bytes.
    pub fn begin_resync(&self, bit: TargetBit, why: &str, now: i64) -> Result<bool> {
        let changed = self.write(|tx| tx.begin_resync(bit, why, now))?;
        if changed {
            self.sync()?;
        }
        Ok(changed)
    }

    /// As [`Meta::begin_resync`], for a target that lost objects: nothing that it confirmed counts any more (T7).
    pub fn begin_relist(&self, bit: TargetBit, why: &str, now: i64) -> Result<()> {
        self.write(|tx| {
            tx.begin_resync(bit, why, now)?;
            tx.conn()
                .prepare_cached(
                    "UPDATE target SET relist = 1, shipped_seq = 0, whole_secs = NULL, contact_epoch = 0, reason = ?2 \
                     WHERE bit = ?1",
                )?
                .execute(params![bit, why])?;
            // Whether a checkpoint is still whole, nobody knows; GC waits for new ones.
            tx.conn().prepare_cached("DELETE FROM checkpoint WHERE bit = ?1")?.execute([bit])?;
            // They name chunks that may be gone, and are not sent again. Their numbers are not used again, and some may be
            // there or come later (a put without an answer, a listing that was late): these are nobody else's.
            tx.conn()
                .prepare_cached(
                    "INSERT OR IGNORE INTO discarded (bit, n, epoch, writer) \
                     SELECT bit, n, epoch, writer FROM segment WHERE bit = ?1",
                )?
                .execute([bit])?;
            tx.conn().prepare_cached("DELETE FROM segment WHERE bit = ?1")?.execute([bit])?;
            Ok(())
        })?;
        self.sync()
    }

    /// What is still there was listed: the target goes on as a resyncer.
    pub fn end_relist(&self, bit: TargetBit) -> Result<()> {
        self.write(|tx| {
            tx.conn().prepare_cached("UPDATE target SET relist = 0 WHERE bit = ?1")?.execute([bit])?;
            Ok(())
        })?;
        self.sync()
    }

    /// Unpins chunks that no pinning target lacks and needs, up to `limit` of those after `after`. Returns where to go on;
    /// `None` at the end.
    pub fn settle_pins(&self, after: ChunkId, limit: usize) -> Result<Option<ChunkId>> {
        self.write(|tx| tx.settle_pins(after, limit))
    }

    /// Takes a target's bit from up to `limit` chunks after `after`. Returns where to go on; `None` at the end.
    pub fn forget_placed(&self, bit: TargetBit, after: ChunkId, limit: usize) -> Result<Option<ChunkId>> {
        // Looked for outside of the transaction: most rows may have nothing to forget.
        let page: Vec<ChunkId> = self.read(|conn| {
            let mut statement = conn.prepare_cached(
                "SELECT id FROM chunk WHERE id > ?1 AND (placed | claimed) & ?2 <> 0 ORDER BY id LIMIT ?3",
            )?;
            let rows = statement.query_map(params![after, bit.mask() as i64, limit as i64], |row| row.get(0))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })?;
        let Some(last) = page.last().copied() else { return Ok(None) };
        self.write(|tx| tx.strip(bit, &page))?;
        Ok(Some(last))
    }

    /// Notes chunks that a listing of a target showed, with their lengths: those of ours with the right length count as
    /// placed. Returns how many had not been.
    pub fn found(&self, bit: TargetBit, listed: &[(ChunkHash, u64)]) -> Result<u64> {
        let mut found = 0;
        for few in listed.chunks(LISTED_AT_ONCE) {
            found += self.write(|tx| {
                let mut update = tx.conn().prepare_cached(
                    "UPDATE chunk SET placed = placed | ?3 WHERE hash = ?1 AND length = ?2 AND placed & ?3 = 0",
                )?;
                let (mut chunks, mut bytes) = (0, 0);
                for (hash, length) in few {
                    let new = update.execute(params![hash, *length as i64, bit.mask() as i64])? as i64;
                    chunks += new;
                    bytes += new * *length as i64;
                }
                tx.shift_placed(bit, chunks, bytes)?;
                Ok(chunks as u64)
            })?;
        }
        Ok(found)
    }

    /// Bytes of the journal's rows from `first` to `last`, both included.
    pub fn journal_bytes(&self, first: Seq, last: Seq) -> Result<u64> {
        self.read(|conn| {
            let bytes: i64 = conn
                .prepare_cached("SELECT coalesce(sum(length(body)), 0) FROM journal WHERE seq BETWEEN ?1 AND ?2")?
                .query_row([first, last], |row| row.get(0))?;
            Ok(bytes as u64)
        })
    }

    /// Bytes that target `bit` lacks of chunks that nothing refers to any more, and that are still kept for it.
    pub fn superseded_bytes(&self, bit: TargetBit) -> Result<u64> {
        self.read(|conn| {
            let bytes: i64 = conn
                .prepare_cached(
                    "SELECT coalesce(sum(length), 0) FROM chunk \
                     WHERE dead_seq IS NOT NULL AND incomplete = 1 AND placed & ?1 = 0",
                )?
                .query_row([bit.mask() as i64], |row| row.get(0))?;
            Ok(bytes as u64)
        })
    }

    /// True if a follower lacks a chunk that died since the state that it has, and that is nowhere any more: who confirmed it
    /// lost it. What names the chunk can never be sent to it.
    pub fn lacks_what_is_gone(&self, bit: TargetBit) -> Result<bool> {
        self.read(|conn| {
            let rows = target::rows(conn)?;
            let Some(row) = rows.iter().find(|row| row.bit == bit && row.mode == Mode::Follow) else {
                return Ok(false);
            };
            let sql = "SELECT 1 FROM chunk c WHERE dead_seq > ?1 AND incomplete = 1 AND placed = 0 AND claimed = 0 \
                       AND NOT EXISTS (SELECT 1 FROM location l WHERE l.chunk = c.id)";
            Ok(conn.prepare_cached(sql)?.exists([target::base(conn, row)?])?)
        })
    }

    /// One page of what target `bit` needs, and what of it it lacks: up to `limit` chunks after `after` are added to `lacking`.
    /// Returns where to go on; `None` at the end.
    pub fn count_lacking(
        &self,
        bit: TargetBit,
        after: ChunkId,
        limit: usize,
        lacking: &mut Lacking,
    ) -> Result<Option<ChunkId>> {
        self.read(|conn| {
            let rows = target::rows(conn)?;
            let Some(row) = rows.iter().find(|row| row.bit == bit) else { return Ok(None) };
            let base = target::base(conn, row)?;
            let mut statement = conn.prepare_cached(
                "SELECT id, length, placed & ?2 FROM chunk \
                 WHERE id > ?1 AND coalesce(dead_seq, 9223372036854775807) > ?4 ORDER BY id LIMIT ?3",
            )?;
            let mut rows = statement.query(params![after, bit.mask() as i64, limit as i64, base])?;
            let mut last = None;
            while let Some(row) = rows.next()? {
                last = Some(row.get(0)?);
                let length = row.get::<_, i64>(1)?.max(0) as u64;
                lacking.total_bytes += length;
                if row.get::<_, i64>(2)? == 0 {
                    lacking.chunks += 1;
                    lacking.bytes += length;
                }
            }
            Ok(last)
        })
    }
}

impl Tx<'_> {
    /// As [`Meta::begin_resync`], without the sync.
    pub(crate) fn begin_resync(&mut self, bit: TargetBit, why: &str, now: i64) -> Result<bool> {
        let Some(row) = target::rows(self.conn())?.into_iter().find(|row| row.bit == bit) else { return Ok(false) };
        if row.mode == Mode::Resync {
            return Ok(false);
        }
        let whole = match super::shipping::oldest(self.conn(), row.shipped_seq)? {
            _ if !row.initialised || row.shipped_seq == Seq::ZERO => None,
            Some(oldest) => Some(oldest.secs()),
            None => Some(now),
        };
        self.conn()
            .prepare_cached(
                "UPDATE target SET mode = 'resync', reason = ?2, base_seq = ?3, whole_secs = ?4 WHERE bit = ?1",
            )?
            .execute(params![bit, why, self.head(), whole])?;
        self.conn().prepare_cached("DELETE FROM deferred WHERE bit = ?1")?.execute([bit])?;
        // One that is under way was begun for a follower: it must not end with the target following from there, as rows
        // after it are no longer kept.
        self.conn().prepare_cached("DELETE FROM checkpoint WHERE bit = ?1 AND complete = 0")?.execute([bit])?;
        self.conn()
            .prepare_cached("UPDATE tally SET pending_chunks = 0, pending_bytes = 0 WHERE bit = ?1")?
            .execute([bit])?;
        self.end_pinning(bit)?;
        Ok(true)
    }

    /// Takes a target's bit from these chunks, whether it was confirmed or claimed.
    pub(super) fn strip(&mut self, bit: TargetBit, chunks: &[ChunkId]) -> Result<()> {
        let (mut count, mut bytes) = (0, 0);
        for chunk in chunks {
            let Some(row) = self.find_chunk_bits(*chunk)? else { continue };
            if row.placed & bit.mask() != 0 {
                count += 1;
                bytes += row.length as i64;
            }
            self.conn()
                .prepare_cached("UPDATE chunk SET placed = placed & ~?2, claimed = claimed & ~?2 WHERE id = ?1")?
                .execute(params![chunk, bit.mask() as i64])?;
        }
        self.shift_placed(bit, -count, -bytes)
    }

    /// As [`Meta::settle_pins`].
    pub(crate) fn settle_pins(&mut self, after: ChunkId, limit: usize) -> Result<Option<ChunkId>> {
        let pinning: Vec<_> = target::rows(self.conn())?.into_iter().filter(|row| row.mode.pins()).collect();
        let counts = Pinning::of(&pinning);
        let bases = pinning
            .iter()
            .map(|row| Ok((row.bit, target::base(self.conn(), row)?)))
            .collect::<Result<Vec<(TargetBit, Seq)>>>()?;
        let retired = self.retired_mask()?;
        let page: Vec<(ChunkId, u64, u64, Option<Seq>)> = self
            .conn()
            .prepare_cached(
                "SELECT id, length, placed, dead_seq FROM chunk WHERE incomplete = 1 AND id > ?1 ORDER BY id LIMIT ?2",
            )?
            .query_map(params![after, limit as i64], |row| {
                Ok((row.get(0)?, row.get::<_, i64>(1)? as u64, row.get::<_, i64>(2)? as u64, row.get(3)?))
            })?
            .collect::<rusqlite::Result<_>>()?;
        for (chunk, length, placed, dead) in &page {
            let lacks = |bit: &TargetBit| placed & bit.mask() == 0;
            let needed = bases.iter().any(|(bit, base)| lacks(bit) && dead.is_none_or(|dead| dead > *base));
            // Of what nobody has a copy but this machine, nothing is let go, whoever follows.
            let only_here = dead.is_none() && placed & !retired == 0;
            if needed || only_here {
                continue;
            }
            self.unpin(*chunk, counts.counting(*chunk) & !placed, *length)?;
        }
        Ok(page.last().map(|(chunk, ..)| *chunk))
    }

    /// The bits of removed targets that chunks may still have.
    pub(crate) fn retired_mask(&self) -> Result<u64> {
        let mask: Option<i64> = self
            .conn()
            .prepare_cached("SELECT sum(1 << bit) FROM retired")?
            .query_row([], |row| row.get(0))
            .optional()?
            .flatten();
        Ok(mask.unwrap_or(0) as u64)
    }
}

#[cfg(test)]
#[path = "resync_tests.rs"]
mod tests;
