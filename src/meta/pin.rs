//! Beginning to pin for a target: chunks that it lacks and needs are marked as incomplete, a few rows at a time (T6, D8).
//!
//! Owns: the keys `pinning.BIT` of the table `filesystem` (local: an export leaves them out), the steps, and which targets'
//! sums count which chunk meanwhile.
//! Does not own: when a target begins to pin (`meta::target`, `meta::checkpoint`), the sums as such (`meta::placement`).
//!
//! ```text
//! resync ──▶ follow, pinning.BIT = 0 ──step──▶ pinning.BIT = 1024 ──step──▶ … ──the last row──▶ no key
//!            chunks up to the key: marked, and counted as pending       after it: neither, until a step comes by
//! ```
//!
//! - The mode changes in one small transaction, the steps follow at once: with a million chunks one transaction would keep
//!   every program waiting for seconds.
//! - A chunk beyond the key is not counted for the target, whatever happens to it: it is when the step comes by. New rows
//!   are beyond the key, as ids ascend; where the last rows went meanwhile, the key goes back with them.
//! - Until the end the target's walk looks at all chunks and not at the index of incomplete ones, so that it, and the
//!   checkpoints that go by it, miss none; and no dead chunk leaves this machine or any target.
//! - A process that dies in between leaves the key: the next mount goes on from there.

use rusqlite::params;

use super::target::{self, TargetRow};
use super::{Meta, Result, Tx};
use crate::id::{ChunkId, Seq, TargetBit};

/// How much one step does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Chunks that it looks at. At about half a microsecond each they hold the writer well below 2 ms (D8).
    rows: usize,
    /// Chunks that it marks; each changes an index, too.
    changes: usize,
}

const BOUNDS: Bounds = Bounds { rows: 1024, changes: 256 };

/// Which targets pin, and whose sums count what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pinning {
    /// All that pin.
    pub mask: u64,
    /// Of these, those that have just begun: up to where chunks were looked at.
    beginning: Vec<(TargetBit, ChunkId)>,
}

impl Pinning {
    /// What these rows say.
    pub(crate) fn of(rows: &[TargetRow]) -> Pinning {
        let pinning = || rows.iter().filter(|row| row.mode.pins());
        Pinning {
            mask: pinning().fold(0, |mask, row| mask | row.bit.mask()),
            beginning: pinning().filter_map(|row| Some((row.bit, row.unpinned_after?))).collect(),
        }
    }

    /// The targets whose sums count this chunk.
    pub(crate) fn counting(&self, chunk: ChunkId) -> u64 {
        self.beginning.iter().filter(|(_, after)| chunk > *after).fold(self.mask, |mask, (bit, _)| mask & !bit.mask())
    }

    /// The targets whose sums count the newest `chunks` rows, which this transaction made.
    pub(crate) fn counting_new(&self, tx: &Tx<'_>, chunks: u64) -> Result<u64> {
        if self.beginning.is_empty() || chunks == 0 {
            return Ok(self.mask);
        }
        let highest: ChunkId =
            tx.conn().prepare_cached("SELECT max(id) FROM chunk")?.query_row([], |row| row.get(0))?;
        let before = ChunkId(highest.0.saturating_sub(chunks));
        for (bit, after) in &self.beginning {
            if *after > before {
                // Rows that were looked at are gone, and their ids come again.
                tx.note_pinning(*bit, before)?;
            }
        }
        Ok(self.counting(ChunkId(u64::MAX)))
    }
}

impl Meta {
    /// Pins for each target that has begun to be pinned for, until nothing is left to look at. Blocks on the store, which it
    /// holds for a moment at a time.
    pub fn pin_all(&self) -> Result<()> {
        for row in self.targets()?.iter().filter(|row| row.unpinned_after.is_some()) {
            while self.write(|tx| tx.pin_some(row.bit, BOUNDS))? {}
        }
        Ok(())
    }
}

impl Tx<'_> {
    /// Which targets pin, as this transaction sees it.
    pub(crate) fn pinning(&self) -> Result<Pinning> {
        Ok(Pinning::of(&target::rows(self.conn())?))
    }

    /// True while some chunks that a target needs may not be marked yet: no dead one leaves.
    pub(super) fn is_pinning(&self) -> Result<bool> {
        let sql = "SELECT 1 FROM filesystem WHERE key >= 'pinning.' AND key < 'pinning/'";
        Ok(self.conn().prepare_cached(sql)?.exists([])?)
    }

    /// From here on local bytes are pinned for target `bit`; none is yet.
    pub(super) fn begin_pinning(&self, bit: TargetBit) -> Result<()> {
        self.conn()
            .prepare_cached("UPDATE tally SET pending_chunks = 0, pending_bytes = 0 WHERE bit = ?1")?
            .execute([bit])?;
        self.note_pinning(bit, ChunkId(0))
    }

    /// All that it lacks is pinned, or nothing is pinned for it any more.
    pub(super) fn end_pinning(&self, bit: TargetBit) -> Result<()> {
        self.conn().prepare_cached("DELETE FROM filesystem WHERE key = 'pinning.' || ?1")?.execute([bit])?;
        Ok(())
    }

    fn note_pinning(&self, bit: TargetBit, after: ChunkId) -> Result<()> {
        self.conn()
            .prepare_cached("INSERT OR REPLACE INTO filesystem (key, value) VALUES ('pinning.' || ?1, ?2)")?
            .execute(params![bit, after])?;
        Ok(())
    }

    /// One step: looks at a bounded number of chunks, and marks those that target `bit` lacks and needs (T5) as incomplete.
    /// False: there are no more.
    pub(super) fn pin_some(&mut self, bit: TargetBit, bounds: Bounds) -> Result<bool> {
        let rows = target::rows(self.conn())?;
        let Some(row) = rows.iter().find(|row| row.bit == bit) else { return Ok(false) };
        let Some(after) = row.unpinned_after else { return Ok(false) };
        let base = target::base(self.conn(), row)?;
        // Others count what becomes incomplete by this: one may lack a dead chunk that it needs no more.
        let others = Pinning::of(&rows);
        let page: Vec<Seen> = self
            .conn()
            .prepare_cached(
                "SELECT id, length, placed, incomplete, dead_seq FROM chunk WHERE id > ?1 ORDER BY id LIMIT ?2",
            )?
            .query_map(params![after, bounds.rows as i64], |row| {
                Ok(Seen {
                    id: row.get(0)?,
                    length: row.get::<_, i64>(1)?.max(0) as u64,
                    placed: row.get::<_, i64>(2)? as u64,
                    incomplete: row.get(3)?,
                    dead: row.get(4)?,
                })
            })?
            .collect::<rusqlite::Result<_>>()?;
        let mut last = None;
        let (mut chunks, mut bytes, mut marked) = (0, 0, 0);
        for seen in &page {
            if marked == bounds.changes {
                break;
            }
            last = Some(seen.id);
            let lacks = seen.placed & bit.mask() == 0;
            let needs = seen.dead.is_none_or(|dead| dead > base);
            if !lacks || !(seen.incomplete || needs) {
                continue;
            }
            if !seen.incomplete {
                marked += 1;
                self.set_incomplete(seen.id, true)?;
                self.shift_pending(others.counting(seen.id) & !seen.placed, 1, seen.length)?;
            }
            chunks += 1;
            bytes += seen.length as i64;
        }
        self.shift_sums(bit.mask(), chunks, bytes)?;
        if chunks > 0 {
            self.chunks_added();
        }
        let end = page.len() < bounds.rows && last == page.last().map(|seen| seen.id);
        match last {
            Some(last) if !end => self.note_pinning(bit, last)?,
            _ => self.end_pinning(bit)?,
        }
        Ok(!end)
    }
}

/// A chunk as a step sees it.
struct Seen {
    id: ChunkId,
    length: u64,
    placed: u64,
    incomplete: bool,
    dead: Option<Seq>,
}

#[cfg(test)]
#[path = "pin_tests.rs"]
mod tests;
