//! Restored stores: what a store needs beside the filesystem itself to go on with the targets it came from (D6, T7).
//!
//! Owns: rows of the targets that were read, bits of the chunks that they list, the places in history that nobody has, the
//! writers whose history was restored, and the row of a target that is met again later.
//! Does not own: what they hold (`restore`), the filesystem's tables (`import`, `replay`).
//!
//! A restored store has no journal. A place that is missing in a target's history, because a record was overtaken (O6) and
//! the machine that had it is lost, is filled with a void: history stays dense, which is how the next restore proves that
//! nothing is missing.

use rusqlite::{OptionalExtension, params};

use super::journal::{Kind, encode};
use super::resync::LISTED_AT_ONCE;
use super::target::Mode;
use super::{Error, Meta, Result, Tx};
use crate::format::key;
use crate::format::record::{Change, VoidReason};
use crate::id::{
    ChunkHash, ChunkId, Epoch, ExportId, Generation, Hash, InodeId, NUMBER_MAX, SegmentNumber, Seq, TargetBit,
    TargetId, WriterId,
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

/// How much of a writer's history a restored state holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownWriter {
    pub epoch: Epoch,
    pub writer: WriterId,
    /// Its records up to here are in the state; those above are not.
    pub seq: Seq,
}

/// A target of the filesystem that was met again after a restore that it was not a source of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetAgain {
    /// As its `tandemfs.json` says.
    pub id: TargetId,
    /// Its newest segment that counts: what the next writer goes on from.
    pub last: Option<(Epoch, WriterId, SegmentNumber, Hash)>,
    /// Every record up to this one is on it.
    pub low_water: Seq,
    /// The highest record on it.
    pub highest: Seq,
    /// Its complete checkpoints: seq, export, `replay_from`, bytes.
    pub checkpoints: Vec<(Seq, ExportId, SegmentNumber, u64)>,
    /// As in [`SourceRow`].
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
        self.add_found(bit, &source.checkpoints, &source.discarded)?;
        Ok(bit)
    }

    /// Notes what lies on a target from before.
    fn add_found(
        &mut self,
        bit: TargetBit,
        checkpoints: &[(Seq, ExportId, SegmentNumber, u64)],
        discarded: &[(Epoch, WriterId, SegmentNumber)],
    ) -> Result<()> {
        for (seq, export, replay_from, bytes) in checkpoints {
            self.conn()
                .prepare_cached("INSERT OR REPLACE INTO checkpoint VALUES (?1, ?2, ?3, ?4, 1, ?5)")?
                .execute(params![bit, seq, export, replay_from, *bytes as i64])?;
        }
        for (epoch, writer, n) in discarded {
            self.conn()
                .prepare_cached("INSERT OR REPLACE INTO discarded VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![bit, n, epoch, writer])?;
        }
        Ok(())
    }

    /// Makes the row of a target that nobody spoke to since the restore the row of the target that is there, to be
    /// resynced (D6). Its chunks were claimed before.
    pub fn meet_again(&mut self, bit: TargetBit, met: &MetAgain) -> Result<()> {
        let (epoch, writer, n, hash) = match met.last {
            Some((epoch, writer, n, hash)) => (epoch, writer, n, hash.to_string()),
            None => (Epoch(0), WriterId(0), SegmentNumber(0), String::new()),
        };
        let changed = self
            .conn()
            .prepare_cached(
                "UPDATE target SET uuid = ?2, initialised = 1, base_seq = ?3, position = ?4, shipped_seq = ?5, n = ?6, \
                 hash = ?7, epoch = ?8, writer = ?9, confirmed_n = ?6, confirmed_hash = ?7, confirmed_epoch = ?8, \
                 confirmed_writer = ?9, confirmed_seq = ?4 WHERE bit = ?1 AND initialised = 0",
            )?
            .execute(params![bit, met.id, self.head(), met.highest, met.low_water, n, hash, epoch, writer])?;
        if changed == 0 {
            return Err(Error::Damaged(format!("target {} was met before", bit.index())));
        }
        self.conn().prepare_cached("DELETE FROM deferred WHERE bit = ?1")?.execute([bit])?;
        self.add_found(bit, &met.checkpoints, &met.discarded)?;
        self.set_target_mode(bit, Mode::Resync, None)
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

    /// Takes over a part of a target's listing: chunks that are there get its bit, as a claim that nobody has proved (D6).
    fn claim(&mut self, bit: TargetBit, listed: &[(ChunkHash, u64)], claimed: &mut Claimed) -> Result<()> {
        let mask = bit.mask() as i64;
        let mut known = self.conn().prepare_cached("SELECT id, length, placed & ?2 FROM chunk WHERE hash = ?1")?;
        let mut update = self
            .conn()
            .prepare_cached("UPDATE chunk SET placed = placed | ?2, claimed = claimed | ?2 WHERE id = ?1")?;
        let (mut chunks, mut bytes) = (0, 0);
        for (hash, listed_length) in listed {
            let row: Option<(ChunkId, i64, i64)> =
                known.query_row(params![hash, mask], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional()?;
            match row {
                Some((id, length, placed)) if length as u64 == *listed_length => {
                    update.execute(params![id, mask])?;
                    claimed.chunks += 1;
                    if placed == 0 {
                        chunks += 1;
                        bytes += length;
                    }
                }
                Some(_) => claimed.wrong_length += 1,
                None => claimed.unknown += 1,
            }
        }
        self.shift_placed(bit, chunks, bytes)
    }

    /// The last step: what still has to be placed, the sums of it, whose history this is, and the newest writer of all that
    /// were seen.
    pub fn finish_restore(
        &mut self,
        bits: &[TargetBit],
        lineage: &[KnownWriter],
        epoch: Epoch,
        writer: WriterId,
    ) -> Result<()> {
        for KnownWriter { epoch, writer, seq } in lineage {
            self.conn()
                .prepare_cached("INSERT OR REPLACE INTO lineage VALUES (?1, ?2, ?3)")?
                .execute(params![epoch, writer, seq])?;
        }
        let pinning = self.pinning_mask()? as i64;
        self.conn().execute("UPDATE chunk SET incomplete = (placed & ?1 <> ?1 AND dead_seq IS NULL)", [pinning])?;
        for bit in bits {
            self.end_pinning(*bit)?;
            self.recount_tally(*bit)?;
        }
        self.conn().execute("UPDATE counter SET epoch = ?1, writer = ?2", params![epoch, writer])?;
        Ok(())
    }
}

impl Meta {
    /// Which number of this state leaves no room to go on, if one does: those that come next would be more than keys and
    /// JSON can carry, and what is built on them could not be read. No honest history comes half as far.
    pub fn exhausted(&self) -> Result<Option<String>> {
        self.read(|conn| {
            let numbers: [(&str, &str, u64); 6] = [
                ("seq", "SELECT seq FROM counter", NUMBER_MAX),
                ("inode", "SELECT next_inode FROM counter", NUMBER_MAX),
                ("generation", "SELECT coalesce(max(generation), 0) FROM inode", NUMBER_MAX),
                ("chunk row", "SELECT coalesce(max(id), 0) FROM chunk", NUMBER_MAX),
                ("epoch", "SELECT epoch FROM counter", key::EPOCH_MAX.0),
                ("segment", "SELECT coalesce(max(n), 0) FROM target", key::SEGMENT_MAX.0),
            ];
            for (what, sql, max) in numbers {
                let number: i64 = conn.query_row(sql, [], |row| row.get(0))?;
                if number as u64 > max / 2 {
                    return Ok(Some(format!("{what} {number}")));
                }
            }
            Ok(None)
        })
    }

    /// The writers whose history this state was restored from; none if it never was.
    pub fn restored_lineage(&self) -> Result<Vec<KnownWriter>> {
        self.read(|conn| {
            let mut rows = conn.prepare_cached("SELECT epoch, writer, seq FROM lineage ORDER BY epoch, writer")?;
            let rows = rows
                .query_map([], |row| Ok(KnownWriter { epoch: row.get(0)?, writer: row.get(1)?, seq: row.get(2)? }))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Takes over a page of a target's listing, a few objects at a time (D6, D8).
    pub fn claim(&self, bit: TargetBit, listed: &[(ChunkHash, u64)]) -> Result<Claimed> {
        let mut claimed = Claimed::default();
        for few in listed.chunks(LISTED_AT_ONCE) {
            self.write(|tx| tx.claim(bit, few, &mut claimed))?;
        }
        Ok(claimed)
    }

    /// Takes back what [`Meta::claim`] took over for a target, page by page: the place turned out to be an empty one. Cut
    /// off in the middle, it is done again.
    pub fn unclaim(&self, bit: TargetBit) -> Result<()> {
        let mut after = ChunkId(0);
        loop {
            let page: Vec<ChunkId> = self.read(|conn| {
                let mut statement = conn.prepare_cached(
                    "SELECT id FROM chunk WHERE claimed <> 0 AND claimed & ?1 <> 0 AND id > ?2 ORDER BY id LIMIT ?3",
                )?;
                let rows =
                    statement.query_map(params![bit.mask() as i64, after, LISTED_AT_ONCE as i64], |row| row.get(0))?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })?;
            let Some(last) = page.last() else { return Ok(()) };
            after = *last;
            self.write(|tx| tx.strip(bit, &page))?;
        }
    }

    /// As [`Tx::meet_again`], durable before it returns.
    pub fn meet_again(&self, bit: TargetBit, met: &MetAgain) -> Result<()> {
        self.write(|tx| tx.meet_again(bit, met))?;
        self.sync()
    }

    /// Segments that may lie on target `bit` and do not count: seen at restore, or given up when it lost others (T7).
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
