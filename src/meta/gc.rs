//! Garbage: chunks that nothing refers to any more, on their way from targets, and rows that nothing needs (T5, T9).
//!
//! Owns: the table `deletion`, when history was seen (`seq_time`), dropping rows of chunks that are nowhere any more.
//! Does not own: the DELETE requests and their pace (`crate::gc`).
//!
//! ```text
//! dead, placed ──begin_deletions (durable)──▶ its bit is gone, a row in `deletion` ──DELETE──▶ done ──a minute──▶ no row
//!                                               no put of the chunk there while there is a row
//! ```

use rusqlite::{OptionalExtension, params};

use super::target::{self, Mode};
use super::{Meta, Result};
use crate::id::{ChunkHash, ChunkId, Seq, TargetBit};

/// Chunks, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    pub chunks: u64,
    pub bytes: u64,
}

impl Meta {
    /// Notes the journal head of this moment, in steady seconds (`steady`), and where these stand. Notes from before
    /// `keep_from` go, but for the newest of them.
    pub fn note_time(&self, now: i64, keep_from: i64) -> Result<()> {
        let head = self.head();
        self.write(|tx| {
            tx.note_steady(&self.steady)?;
            tx.conn().prepare_cached("INSERT OR IGNORE INTO seq_time VALUES (?1, ?2)")?.execute(params![head, now])?;
            tx.conn()
                .prepare_cached(
                    "DELETE FROM seq_time WHERE seq < (SELECT max(seq) FROM seq_time WHERE secs <= ?1) AND secs <= ?1",
                )?
                .execute([keep_from])?;
            Ok(())
        })
    }

    /// The highest journal place that was seen at or before a moment: what was dead by then (`dead_seq` at or below it) has
    /// been dead since.
    pub fn head_at(&self, secs: i64) -> Result<Option<Seq>> {
        self.read(|conn| {
            // Of places that were seen later than a higher one, which a clock that was set back brings, none counts.
            let seen: Option<Seq> = conn
                .prepare_cached(
                    "SELECT max(seq) FROM seq_time WHERE secs <= ?1 \
                     AND seq < coalesce((SELECT min(seq) FROM seq_time WHERE secs > ?1), 9223372036854775807)",
                )?
                .query_row([secs], |row| row.get(0))
                .optional()?
                .flatten();
            Ok(seen)
        })
    }

    /// S of the older of the two checkpoints that are kept on a target; `None` while there are not two.
    pub fn older_checkpoint(&self, bit: TargetBit) -> Result<Option<Seq>> {
        let mut complete: Vec<Seq> =
            self.checkpoints(bit)?.into_iter().filter(|row| row.complete).map(|row| row.seq).collect();
        complete.sort_unstable_by(|a, b| b.cmp(a));
        Ok(complete.get(1).copied())
    }

    /// What is on target `bit` and was dead by `horizon`. What a restore claimed unseen is left out (D6).
    pub fn garbage(&self, bit: TargetBit, horizon: Seq) -> Result<Amount> {
        self.read(|conn| {
            Ok(conn
                .prepare_cached(
                    "SELECT count(*), coalesce(sum(length), 0) FROM chunk WHERE dead_seq IS NOT NULL AND dead_seq <= ?2 \
                     AND incomplete = 0 AND placed & ?1 <> 0 AND claimed & ?1 = 0",
                )?
                .query_row(params![bit.mask() as i64, horizon], |row| {
                    Ok(Amount { chunks: row.get::<_, i64>(0)? as u64, bytes: row.get::<_, i64>(1)? as u64 })
                })?)
        })
    }

    /// Begins to remove up to `limit` chunks from target `bit` that were dead by `horizon`: durable before it returns (T9).
    pub fn begin_deletions(&self, bit: TargetBit, horizon: Seq, limit: usize) -> Result<Vec<ChunkHash>> {
        // Looked for outside of the transaction (D8): most of what is dead may have left this target already.
        let page: Vec<ChunkId> = self.read(|conn| {
            let mut statement = conn.prepare_cached(
                "SELECT id FROM chunk WHERE dead_seq IS NOT NULL AND dead_seq <= ?2 \
                 AND incomplete = 0 AND placed & ?1 <> 0 AND claimed & ?1 = 0 LIMIT ?3",
            )?;
            let rows = statement.query_map(params![bit.mask() as i64, horizon, limit as i64], |row| row.get(0))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })?;
        if page.is_empty() {
            return Ok(Vec::new());
        }
        let begun = self.write(|tx| {
            let mut begun: Vec<ChunkHash> = Vec::with_capacity(page.len());
            let mut bytes = 0;
            if tx.is_pinning()? {
                // Whoever has just begun to follow may need one of them, and it is not marked yet.
                return Ok(begun);
            }
            for id in &page {
                // Once more: it may be referred to again by now.
                let gone: Option<(ChunkHash, i64)> = tx
                    .conn()
                    .prepare_cached(
                        "UPDATE chunk SET placed = placed & ~?2 WHERE id = ?1 AND dead_seq IS NOT NULL AND dead_seq <= ?3 \
                         AND incomplete = 0 AND placed & ?2 <> 0 AND claimed & ?2 = 0 RETURNING hash, length",
                    )?
                    .query_row(params![id, bit.mask() as i64, horizon], |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()?;
                let Some((hash, length)) = gone else { continue };
                tx.conn()
                    .prepare_cached("INSERT OR REPLACE INTO deletion (bit, chunk_hash, done_secs) VALUES (?1, ?2, NULL)")?
                    .execute(params![bit, hash])?;
                bytes += length;
                begun.push(hash);
            }
            tx.conn()
                .prepare_cached(
                    "UPDATE tally SET placed_chunks = placed_chunks - ?2, placed_bytes = placed_bytes - ?3 WHERE bit = ?1",
                )?
                .execute(params![bit, begun.len() as i64, bytes])?;
            Ok(begun)
        })?;
        if !begun.is_empty() {
            self.sync()?;
        }
        Ok(begun)
    }

    /// Deletions of a target that were begun and not answered.
    pub fn open_deletions(&self, bit: TargetBit, limit: usize) -> Result<Vec<ChunkHash>> {
        self.read(|conn| {
            let mut statement =
                conn.prepare_cached("SELECT chunk_hash FROM deletion WHERE bit = ?1 AND done_secs IS NULL LIMIT ?2")?;
            let rows = statement.query_map(params![bit, limit as i64], |row| row.get(0))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// True while a chunk is leaving a target, or has left it so lately that a late DELETE might still take effect.
    pub fn is_leaving(&self, bit: TargetBit, chunk: ChunkHash) -> Result<bool> {
        self.read(|conn| {
            Ok(conn
                .prepare_cached("SELECT 1 FROM deletion WHERE bit = ?1 AND chunk_hash = ?2")?
                .exists(params![bit, chunk])?)
        })
    }

    /// Notes that these deletions were answered.
    pub fn deletions_done(&self, bit: TargetBit, chunks: &[ChunkHash], now: i64) -> Result<()> {
        self.write(|tx| {
            let mut update =
                tx.conn().prepare_cached("UPDATE deletion SET done_secs = ?3 WHERE bit = ?1 AND chunk_hash = ?2")?;
            for chunk in chunks {
                update.execute(params![bit, chunk, now])?;
            }
            Ok(())
        })
    }

    /// Forgets deletions that were answered at or before a moment: the chunks may be put there again.
    pub fn expire_deletions(&self, before: i64) -> Result<u64> {
        self.write(|tx| {
            let gone = tx.conn().prepare_cached("DELETE FROM deletion WHERE done_secs <= ?1")?.execute([before])?;
            if gone > 0 {
                // One of them may be wanted again.
                tx.chunks_added();
            }
            Ok(gone as u64)
        })
    }

    /// Drops up to `limit` rows of chunks that are dead, on no target and not on this machine, and that no record on its way
    /// to any target names. Returns how many.
    ///
    /// The newest row stays until there is a newer one: so no chunk ever gets the number of another, which queues of uploads
    /// and fetches may still have in hand (S5).
    pub fn drop_chunk_rows(&self, limit: usize) -> Result<u64> {
        const USELESS: &str = "dead_seq IS NOT NULL AND dead_seq <= ?1 AND incomplete = 0 AND placed = 0 AND claimed = 0 \
             AND bytes_referenced = 0 AND NOT EXISTS (SELECT 1 FROM location WHERE chunk = c.id) \
             AND NOT EXISTS (SELECT 1 FROM deletion WHERE chunk_hash = c.hash) AND id < (SELECT max(id) FROM chunk)";
        // Records that name a chunk are older than its death.
        let bound = |conn: &rusqlite::Connection, head: Seq| -> Result<Seq> {
            let bases = target::rows(conn)?.into_iter().map(|row| match row.mode {
                Mode::Resync => Ok(row.base_seq),
                _ => target::base(conn, &row),
            });
            bases.into_iter().try_fold(head, |bound, base| Ok(bound.min(base?)))
        };
        let head = self.head();
        // Looked for outside of the transaction (D8): what is dead may stay for long.
        let page: Vec<ChunkId> = self.read(|conn| {
            let mut statement = conn.prepare_cached(&format!("SELECT id FROM chunk c WHERE {USELESS} LIMIT ?2"))?;
            let rows = statement.query_map(params![bound(conn, head)?, limit as i64], |row| row.get(0))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })?;
        if page.is_empty() {
            return Ok(0);
        }
        self.write(|tx| {
            let bound = bound(tx.conn(), tx.head())?;
            let mut delete =
                tx.conn().prepare_cached(&format!("DELETE FROM chunk AS c WHERE {USELESS} AND id = ?2"))?;
            page.iter().try_fold(0, |dropped, id| Ok(dropped + delete.execute(params![bound, id])? as u64))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{ExportId, SegmentNumber};
    use crate::meta::target::Configured;
    use crate::meta::testing::store;

    fn bit(index: u8) -> TargetBit {
        TargetBit::new(index).unwrap()
    }

    fn world() -> (tempfile::TempDir, Meta) {
        let (dir, meta) = store();
        let of = |name: &str| Configured { name: name.into(), uri: format!("memory://{name}"), id: None };
        meta.register_targets(&[of("a"), of("b")]).unwrap();
        meta.write(|tx| {
            for name in 0..20_u8 {
                crate::meta::testing::file(tx, &[b'a' + name]);
            }
            tx.conn().execute("UPDATE target SET shipped_seq = 20, position = 20", [])?;
            Ok(())
        })
        .unwrap();
        (dir, meta)
    }

    fn chunk(meta: &Meta, id: u64, placed: u64, dead: Option<u64>) -> ChunkHash {
        let hash = ChunkHash::of(&id.to_le_bytes());
        meta.write(|tx| {
            tx.conn().execute(
                "INSERT INTO chunk (id, hash, length, bytes_referenced, dead_seq, placed, incomplete) \
                 VALUES (?1, ?2, 10, ?3, ?4, ?5, 0)",
                params![ChunkId(id), hash, if dead.is_some() { 0 } else { 10 }, dead.map(Seq), placed as i64],
            )?;
            tx.recount_tally(bit(0))?;
            tx.recount_tally(bit(1))
        })
        .unwrap();
        hash
    }

    #[test]
    fn t9_a_chunk_leaves_only_what_was_dead_by_the_horizon_and_its_bit_goes_first() {
        let (_dir, meta) = world();
        let old = chunk(&meta, 1, 0b11, Some(5));
        chunk(&meta, 2, 0b11, Some(6));
        chunk(&meta, 3, 0b11, None);
        assert_eq!(meta.garbage(bit(0), Seq(5)).unwrap(), Amount { chunks: 1, bytes: 10 });
        assert_eq!(meta.begin_deletions(bit(0), Seq(5), 9).unwrap(), [old]);
        assert_eq!(meta.begin_deletions(bit(0), Seq(5), 9).unwrap(), []);
        assert_eq!(meta.chunk_sources(ChunkId(1)).unwrap().unwrap().placed, 0b10);
        assert_eq!(meta.tallies().unwrap()[0].1.placed_chunks, 2);
        assert_eq!(meta.open_deletions(bit(0), 9).unwrap(), [old]);
        assert!(meta.is_leaving(bit(0), old).unwrap() && !meta.is_leaving(bit(1), old).unwrap());
    }

    #[test]
    fn t9_what_is_wanted_again_is_not_put_before_its_deletion_is_over() {
        let (_dir, meta) = world();
        let hash = chunk(&meta, 1, 0b11, Some(5));
        meta.begin_deletions(bit(0), Seq(5), 9).unwrap();
        meta.write(|tx| {
            tx.chunk_revived(ChunkId(1))?;
            Ok(tx.conn().execute("UPDATE chunk SET dead_seq = NULL, bytes_referenced = 10", [])?)
        })
        .unwrap();
        let lacking = || meta.chunks_to_place(bit(0), ChunkId(0), 9).unwrap().chunks.len();
        assert_eq!(lacking(), 0);
        let is_whole = || meta.has_chunks_up_to(bit(0), &mut ChunkId(0), ChunkId(1)).unwrap();
        assert!(!is_whole(), "T3: what is not put yet is not there");
        meta.deletions_done(bit(0), &[hash], 100).unwrap();
        assert_eq!((meta.expire_deletions(99).unwrap(), lacking()), (0, 0));
        assert_eq!((meta.expire_deletions(100).unwrap(), lacking()), (1, 1));
        meta.place(bit(0), &[ChunkId(1)]).unwrap();
        assert!(is_whole());
    }

    #[test]
    fn rows_go_when_a_chunk_is_nowhere_and_nothing_on_its_way_names_it() {
        let (_dir, meta) = world();
        chunk(&meta, 1, 0, Some(5));
        chunk(&meta, 2, 0b1, Some(5));
        chunk(&meta, 3, 0, Some(21));
        chunk(&meta, 4, 0, None);
        chunk(&meta, 5, 0, Some(12));
        chunk(&meta, 6, 0, None);
        meta.write(|tx| Ok(tx.conn().execute("UPDATE target SET shipped_seq = 11 WHERE bit = 1", [])?)).unwrap();
        assert_eq!(meta.drop_chunk_rows(9).unwrap(), 1);
        assert_eq!(meta.chunk_sources(ChunkId(1)).unwrap(), None);
        meta.begin_checkpoint(bit(0), Seq(4), ExportId(1), SegmentNumber(1)).unwrap();
        meta.write(|tx| Ok(tx.conn().execute("UPDATE target SET shipped_seq = 20 WHERE bit = 1", [])?)).unwrap();
        assert_eq!(meta.drop_chunk_rows(9).unwrap(), 0, "a checkpoint on its way may name it");
        meta.abandon_checkpoints().unwrap();
        assert_eq!(meta.drop_chunk_rows(9).unwrap(), 1);
    }

    #[test]
    fn s5_no_chunk_gets_the_number_of_another() {
        let (_dir, meta) = world();
        for id in 1..=3 {
            chunk(&meta, id, 0, Some(5));
        }
        let next = || {
            let insert =
                "INSERT INTO chunk (hash, length, bytes_referenced, incomplete) VALUES (randomblob(32), 1, 1, 0)";
            meta.write(|tx| Ok(tx.conn().prepare(insert)?.insert([])?)).unwrap()
        };
        meta.write(|tx| Ok(tx.conn().execute("UPDATE target SET shipped_seq = 20", [])?)).unwrap();
        assert_eq!(meta.drop_chunk_rows(9).unwrap(), 2);
        assert_eq!(next(), 4, "the number of a row that is gone may be in somebody's hands");
        assert_eq!(meta.drop_chunk_rows(9).unwrap(), 1);
    }

    #[test]
    fn t9_the_grace_period_is_counted_from_when_a_place_was_seen() {
        let (_dir, meta) = world();
        meta.note_time(1_000, 0).unwrap();
        meta.write(|tx| {
            crate::meta::testing::file(tx, b"more");
            Ok(())
        })
        .unwrap();
        meta.note_time(2_000, 0).unwrap();
        assert_eq!(meta.head_at(999).unwrap(), None);
        assert_eq!(meta.head_at(1_000).unwrap(), Some(Seq(20)));
        assert_eq!(meta.head_at(5_000).unwrap(), Some(Seq(21)));
        meta.write(|tx| {
            crate::meta::testing::file(tx, b"set back");
            Ok(())
        })
        .unwrap();
        meta.note_time(500, 0).unwrap();
        assert_eq!(meta.head_at(700).unwrap(), None, "a clock that was set back makes nothing older");
        meta.note_time(9_000, 2_500).unwrap();
        assert_eq!(meta.head_at(3_000).unwrap(), Some(Seq(22)), "the newest of the old notes stays");
    }

    #[test]
    fn t9_without_two_checkpoints_there_is_no_horizon() {
        let (_dir, meta) = world();
        for seq in [4, 9, 7] {
            meta.begin_checkpoint(bit(0), Seq(seq), ExportId(seq as u32), SegmentNumber(1)).unwrap();
            meta.complete_checkpoint(bit(0), Seq(seq), ExportId(seq as u32), 1, Default::default()).unwrap();
        }
        assert_eq!(meta.older_checkpoint(bit(0)).unwrap(), Some(Seq(7)));
        assert_eq!(meta.older_checkpoint(bit(1)).unwrap(), None);
    }
}
