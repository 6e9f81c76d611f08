//! When a follower becomes a resyncer (T4): what it would have to catch up with has grown beyond what is kept for one target, or
//! is lost.
//!
//! Owns: the limits, the decision (pure), the look at every target now and then, letting go of what was kept.
//! Does not own: the resync itself: the driver places chunks, and a checkpoint ends it (`checkpoint`).
//!
//! ```text
//!   every look, per follower: Backlog ──decide──▶ begin_resync ─▶ pins settled ─▶ journal trimmed
//! ```
//!
//! - Nothing is given up because a target is ill: only because what is kept for it has outgrown its bound, or because what it
//!   would have to be given is nowhere any more.
//! - Local bytes that no other target has stay, whoever follows (`meta::location`).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::clock;
use crate::id::{ChunkId, Seq, TargetBit};
use crate::meta::target::{Mode, TargetRow};
use crate::meta::{Meta, Result};
use crate::replication::holds::JournalHolds;

/// Chunks that one transaction unpins (D8).
const PAGE: usize = 256;
/// Records that cannot be too many bytes.
const FEW_ROWS: u64 = 64;
/// Every so many looks, lost chunks are looked for: the search may pass over all that died lately.
const SEARCH: u64 = 12;
/// Seqs whose bytes are summed up together.
const BLOCK: u64 = 1024;

/// What is kept for one target at most (T4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Journal rows that it has not got.
    pub rows_max: u64,
    /// Their bytes.
    pub row_bytes_max: u64,
    /// From so many superseded bytes on …
    pub superseded_min: u64,
    /// … and beyond so many hundredths of all that it lacks.
    pub superseded_percent: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { rows_max: 1_000_000, row_bytes_max: 256 << 20, superseded_min: 1 << 30, superseded_percent: 25 }
    }
}

/// What is kept for one target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Journal rows that it has not got.
    pub rows: u64,
    /// Their bytes.
    pub row_bytes: u64,
    /// Bytes of chunks that it lacks.
    pub pending_bytes: u64,
    /// Of these, bytes of chunks that nothing refers to any more.
    pub superseded_bytes: u64,
    /// Its records name a chunk that died meanwhile and is nowhere any more: a target lost what it had confirmed.
    pub lost: bool,
}

impl Limits {
    /// Why a follower with this backlog shall resync; `None`: it goes on following. Pure.
    pub fn decide(&self, backlog: &Backlog) -> Option<String> {
        let Backlog { rows, row_bytes, pending_bytes, superseded_bytes, lost } = *backlog;
        if lost {
            return Some(
                "its records name bytes that were overwritten or removed meanwhile, and that no target has".into(),
            );
        }
        if rows > self.rows_max {
            return Some(format!("it lacks {rows} records, more than {} are not kept for it", self.rows_max));
        }
        if row_bytes > self.row_bytes_max {
            return Some(format!(
                "it lacks {row_bytes} bytes of records, more than {} are not kept for it",
                self.row_bytes_max
            ));
        }
        let part = superseded_bytes.saturating_mul(100) > pending_bytes.saturating_mul(self.superseded_percent);
        (superseded_bytes > self.superseded_min && part).then(|| {
            format!("of {pending_bytes} bytes that it lacks {superseded_bytes} were overwritten or removed meanwhile")
        })
    }
}

/// Looks after the backlogs of a mount's targets.
pub struct Watch {
    meta: Arc<Meta>,
    holds: Arc<JournalHolds>,
    limits: Limits,
    /// Bytes of journal rows by block of seqs; a block is summed up once, when it is full. A body that is filled in later
    /// is missed: a few rows of a thousand.
    blocks: BTreeMap<u64, u64>,
    looks: u64,
}

impl Watch {
    /// Watches the targets of `meta`.
    pub fn new(meta: Arc<Meta>, holds: Arc<JournalHolds>, limits: Limits) -> Watch {
        Watch { meta, holds, limits, blocks: BTreeMap::new(), looks: 0 }
    }

    /// Looks at every follower once; those whose backlog is too large become resyncers. Returns their bits. Blocks on the
    /// store.
    pub fn look(&mut self) -> Result<Vec<TargetBit>> {
        let mut changed = Vec::new();
        // What could not be finished when a target began to follow.
        self.meta.pin_all()?;
        self.looks += 1;
        for row in self.meta.targets()? {
            if row.mode == Mode::Resync {
                continue;
            }
            let backlog = self.backlog(&row)?;
            if let Some(why) = self.limits.decide(&backlog)
                && begin(&self.meta, row.bit, &row.name, &why)?
            {
                changed.push(row.bit);
            }
        }
        // Nobody else trims while no shipper is in contact.
        while self.meta.trim_journal(self.holds.lowest())? {}
        let kept = self.meta.targets()?.iter().map(|row| row.shipped_seq).min().unwrap_or_default();
        self.blocks = self.blocks.split_off(&(kept.0 / BLOCK));
        Ok(changed)
    }

    fn backlog(&mut self, row: &TargetRow) -> Result<Backlog> {
        let waiting = self.meta.waiting_records(row.bit)?;
        let tallies = self.meta.tallies()?;
        let pending_bytes = tallies.iter().find(|(bit, _)| *bit == row.bit).map_or(0, |(_, tally)| tally.pending_bytes);
        // What cannot decide is not summed up: a record has a few MiB at most, when a file is changed in 65,536 places.
        let row_bytes = if waiting > FEW_ROWS { self.journal_bytes(row.shipped_seq.next())? } else { 0 };
        let superseded_bytes =
            if pending_bytes > self.limits.superseded_min { self.meta.superseded_bytes(row.bit)? } else { 0 };
        let lost = pending_bytes > 0 && self.looks.is_multiple_of(SEARCH) && self.meta.lacks_what_is_gone(row.bit)?;
        Ok(Backlog { rows: waiting, row_bytes, pending_bytes, superseded_bytes, lost })
    }

    /// Bytes of the journal from `first` on.
    fn journal_bytes(&mut self, first: Seq) -> Result<u64> {
        let head = self.meta.head();
        let mut bytes = 0;
        let mut at = first;
        while at <= head {
            let block = at.0 / BLOCK;
            let (start, end) = (Seq(block * BLOCK), Seq((block + 1) * BLOCK - 1));
            bytes += match self.blocks.get(&block) {
                Some(known) if at == start => *known,
                _ => {
                    let summed = self.meta.journal_bytes(at, end)?;
                    if at == start && end < head {
                        self.blocks.insert(block, summed);
                    }
                    summed
                }
            };
            at = end.next();
        }
        Ok(bytes)
    }
}

/// Makes a target a resyncer and lets go of what was kept for it alone. False: it was one. Blocks on the store.
pub fn begin(meta: &Meta, bit: TargetBit, name: &str, why: &str) -> Result<bool> {
    if !meta.begin_resync(bit, why, clock::now().secs())? {
        return Ok(false);
    }
    tracing::warn!(target_name = name, why, "the target is brought to a later state instead of following the journal");
    settle(meta)?;
    Ok(true)
}

/// Unpins what no target is waited for with any more. Blocks on the store.
pub fn settle(meta: &Meta) -> Result<()> {
    let mut after = ChunkId(0);
    while let Some(last) = meta.settle_pins(after, PAGE)? {
        after = last;
    }
    Ok(())
}

/// Takes the bits of removed targets from all chunks. Blocks on the store.
pub fn sweep_retired(meta: &Meta) -> Result<()> {
    for bit in meta.retired()? {
        let mut after = ChunkId(0);
        while let Some(last) = meta.forget_placed(bit, after, PAGE)? {
            after = last;
        }
        meta.release_bit(bit)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t4_a_follower_resyncs_when_what_is_kept_for_it_is_too_much_and_not_before() {
        let limits = Limits::default();
        let gib = 1 << 30;
        let backlog = |rows, row_bytes, pending_bytes, superseded_bytes| Backlog {
            rows,
            row_bytes,
            pending_bytes,
            superseded_bytes,
            lost: false,
        };
        for (resyncs, case) in [
            (true, Backlog { lost: true, ..backlog(1, 1, 1, 0) }),
            (false, backlog(0, 0, 0, 0)),
            (false, backlog(1_000_000, 256 << 20, 100 * gib, 0)),
            (true, backlog(1_000_001, 0, 0, 0)),
            (true, backlog(1, (256 << 20) + 1, 0, 0)),
            (false, backlog(1, 1, 4 * gib, gib)),
            (false, backlog(1, 1, 100 * gib, 25 * gib)),
            (true, backlog(1, 1, 100 * gib, 26 * gib)),
            (false, backlog(1, 1, gib / 2, gib / 2)),
        ] {
            assert_eq!(limits.decide(&case).is_some(), resyncs, "{case:?}");
        }
    }
}
