//! Restored stores: what a store needs beside the filesystem itself to go on with the targets it came from (D6, T7).
//!
//! Owns: rows of the targets that were read, bits of the chunks that they list, the places in history that nobody has.
//! Does not own: what they hold (`restore`), the filesystem's tables (`import`, `replay`).
//!
//! A restored store has no journal. A place that is missing in a target's history, because a record was overtaken (O6) and
//! the machine that had it is lost, is filled with a void: history stays dense, which is how the next restore proves that
//! nothing is missing.

use rusqlite::params;

use super::journal::{Kind, encode};
use super::target::Mode;
use super::{Meta, Result, Tx};
use crate::format::record::{Change, VoidReason};
use crate::id::{
    ChunkHash, Epoch, ExportId, Generation, Hash, InodeId, SegmentNumber, Seq, TargetBit, TargetId, WriterId,
};

/// A target that was restored from.
#[derive(Debug, Clone)]
pub struct SourceRow {
    pub id: TargetId,
    pub name: String,
    /// Without secrets.
    pub uri: String,
    /// It holds everything that was restored: it goes on from here. Otherwise it is resynced.
    pub whole: bool,
    /// S of the checkpoint that its state stands on.
    pub base: Seq,
    /// Every record up to this one is on it.
    pub low_water: Seq,
    /// The highest record on it.
    pub highest: Seq,
    /// Its newest segment that counts: what the next writer goes on from.
    pub last: Option<(Epoch, WriterId, SegmentNumber, Hash)>,
    /// The newest epoch that announced itself there.
    pub contact_epoch: Epoch,
    /// Segments since its newest complete checkpoint, and their bytes.
    pub segments: u64,
    pub segment_bytes: u64,
    /// Its complete checkpoints: seq, export, `replay_from`, bytes.
    pub checkpoints: Vec<(Seq, ExportId, SegmentNumber, u64)>,
    /// Segments after the newest one that counts which do not: of another history, or of a unit that was never finished.
    /// They are known, and no reason to refuse the target (T7).
    pub discarded: Vec<(Epoch, WriterId, SegmentNumber)>,
}

/// What a listing of chunks found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Claimed {
    /// Chunks of ours, with the right length.
    pub chunks: u64,
    /// Chunks of ours, with another length.
    pub wrong_length: u64,
    /// Chunks that nothing refers to.
    pub unknown: u64,
}

/// Which chunks of the filesystem no listing found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Missing {
    /// How many.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The first of them.
    pub examples: Vec<ChunkHash>,
}

/// Chunks named in a report.
const EXAMPLES: i64 = 10;

impl Tx<'_> {
    /// Makes the row of a target that was restored from, and returns its bit.
    pub fn add_source(&mut self, source: &SourceRow) -> Result<TargetBit> {
        let bit = self.add_target(&source.name, &source.uri, source.id)?;
        let mode = if source.whole { Mode::Follow } else { Mode::Resync };
        let (epoch, writer, n, hash) = match source.last {
            Some((epoch, writer, n, hash)) => (epoch, writer, n, hash.to_string()),
            None => (Epoch(0), WriterId(0), SegmentNumber(0), String::new()),
        };
        self.conn()
            .prepare_cached(
                "UPDATE target SET initialised = 1, mode = ?2, base_seq = ?3, position = ?4, shipped_seq = ?5, n = ?6, \
                 hash = ?7, epoch = ?8, writer = ?9, confirmed_n = ?6, confirmed_hash = ?7, confirmed_epoch = ?8, \
                 confirmed_writer = ?9, confirmed_seq = ?4, contact_epoch = ?10, segment_bytes = ?11, segment_count = ?12 \
                 WHERE bit = ?1",
            )?
            .execute(params![
                bit,
                mode.as_str(),
                source.base,
                source.highest,
                source.low_water,
                n,
                hash,
                epoch,
                writer,
                source.contact_epoch,
                source.segment_bytes as i64,
                source.segments as i64
            ])?;
        for (seq, export, replay_from, bytes) in &source.checkpoints {
            self.conn()
                .prepare_cached("INSERT OR REPLACE INTO checkpoint VALUES (?1, ?2, ?3, ?4, 1, ?5)")?
                .execute(params![bit, seq, export, replay_from, *bytes as i64])?;
        }
        for (epoch, writer, n) in &source.discarded {
            self.conn()
                .prepare_cached("INSERT OR REPLACE INTO discarded VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![bit, n, epoch, writer])?;
        }
        Ok(bit)
    }

    /// Fills places in history that nobody has, and has them shipped to those targets that follow.
    pub fn fill_holes(&mut self, holes: impl Iterator<Item = Seq>, following: &[TargetBit]) -> Result<()> {
        // About the root, which always exists; it brings nothing and ends nothing.
        let change = Change::Void { ino: InodeId::ROOT, generation: Generation(0), why: VoidReason::Moved };
        let body = encode(&change);
        for seq in holes {
            self.conn()
                .prepare_cached("INSERT INTO journal (seq, kind, ino, body) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![seq, Kind::of(&change) as i64, InodeId::ROOT, body])?;
            for bit in following {
                self.conn().prepare_cached("INSERT INTO deferred VALUES (?1, ?2)")?.execute(params![bit, seq])?;
            }
        }
        Ok(())
    }

    /// Takes over a page of a target's listing: chunks that are there get its bit, as a claim that nobody has proved (D6).
    pub fn claim(&mut self, bit: TargetBit, listed: &[(ChunkHash, u64)]) -> Result<Claimed> {
        let mut claimed = Claimed::default();
        let mut update = self.conn().prepare_cached(
            "UPDATE chunk SET placed = placed | ?3, claimed = claimed | ?3 WHERE hash = ?1 AND length = ?2",
        )?;
        let mut known = self.conn().prepare_cached("SELECT 1 FROM chunk WHERE hash = ?1")?;
        for (hash, length) in listed {
            if update.execute(params![hash, *length as i64, bit.mask() as i64])? == 1 {
                claimed.chunks += 1;
            } else if known.exists([hash])? {
                claimed.wrong_length += 1;
            } else {
                claimed.unknown += 1;
            }
        }
        Ok(claimed)
    }

    /// The last step: what still has to be placed, the sums of it, and the newest writer of all that were seen.
    pub fn finish_restore(&mut self, bits: &[TargetBit], epoch: Epoch, writer: WriterId) -> Result<()> {
        let pinning = self.pinning_mask()? as i64;
        self.conn().execute("UPDATE chunk SET incomplete = (placed & ?1 <> ?1 AND dead_seq IS NULL)", [pinning])?;
        for bit in bits {
            self.recount_tally(*bit)?;
        }
        self.conn().execute("UPDATE counter SET epoch = ?1, writer = ?2", params![epoch, writer])?;
        Ok(())
    }
}

impl Meta {
    /// Segments on target `bit` that were seen at restore and do not count.
    pub fn discarded_segments(&self, bit: TargetBit) -> Result<Vec<(Epoch, WriterId, SegmentNumber)>> {
        self.read(|conn| {
            let mut rows = conn.prepare_cached("SELECT epoch, writer, n FROM discarded WHERE bit = ?1")?;
            let rows = rows.query_map([bit], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// The chunks that the filesystem refers to and target `bit` did not list; with `None`, that no target did.
    pub fn unlisted(&self, bit: Option<TargetBit>) -> Result<Missing> {
        let mask = bit.map_or(-1, |bit| bit.mask() as i64);
        self.read(|conn| {
            let (chunks, bytes): (i64, i64) = conn.query_row(
                "SELECT count(*), coalesce(sum(length), 0) FROM chunk WHERE dead_seq IS NULL AND placed & ?1 = 0",
                [mask],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?;
            let mut examples =
                conn.prepare("SELECT hash FROM chunk WHERE dead_seq IS NULL AND placed & ?1 = 0 ORDER BY id LIMIT ?2")?;
            let examples = examples.query_map([mask, EXAMPLES], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
            Ok(Missing { chunks: chunks as u64, bytes: bytes as u64, examples })
        })
    }
}
