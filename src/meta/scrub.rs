//! What a scrub needs: the chunks that a target should hold in the order of its listing, and where a pass is.
//!
//! Owns: the walk by hash, the keys `scrub.…` of the table `filesystem` (local: an export leaves them out).
//! Does not own: what is found (`crate::scrub`), placement bits (`placement`, `location`).

use rusqlite::{OptionalExtension, params};

use super::placement::ChunkTodo;
use super::{Meta, Result, Tx, target};
use crate::clock::Timestamp;
use crate::id::{ChunkHash, ChunkId, TargetBit};

/// Rows looked at for one page: a reader takes at most 100 ms (D8).
const PAGE_ROWS_MAX: usize = 20_000;

/// Claims that one transaction clears (D8).
const CLAIMS_AT_ONCE: usize = 256;

/// Chunks that a target should hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlacedPage {
    /// Ascending by hash.
    pub chunks: Vec<ChunkTodo>,
    /// Where the walk goes on: strictly after this.
    pub cursor: Option<ChunkHash>,
    /// Nothing lies after the cursor.
    pub end: bool,
}

impl Meta {
    /// Up to `limit` chunks with the bit of a target, strictly after `after`, by hash. A page may be empty and not the
    /// end: it looks at a bounded number of rows.
    pub fn placed_page(&self, bit: TargetBit, after: Option<ChunkHash>, limit: usize) -> Result<PlacedPage> {
        self.read(|conn| {
            // The empty blob is below every hash.
            let from: &[u8] = after.as_ref().map_or(&[], |hash| &hash.0);
            let mut statement =
                conn.prepare_cached("SELECT id, hash, length, placed FROM chunk WHERE hash > ?1 ORDER BY hash")?;
            let mut rows = statement.query([from])?;
            let mut page = PlacedPage { cursor: after, ..PlacedPage::default() };
            for _ in 0..PAGE_ROWS_MAX {
                if page.chunks.len() == limit {
                    return Ok(page);
                }
                let Some(row) = rows.next()? else {
                    page.end = true;
                    return Ok(page);
                };
                let chunk =
                    ChunkTodo { id: row.get(0)?, hash: row.get(1)?, length: row.get::<_, i64>(2)?.max(0) as u64 };
                page.cursor = Some(chunk.hash);
                if row.get::<_, i64>(3)? as u64 & bit.mask() != 0 {
                    page.chunks.push(chunk);
                }
            }
            Ok(page)
        })
    }

    /// Whether a target is known to hold a chunk.
    pub fn is_placed(&self, bit: TargetBit, chunk: ChunkId) -> Result<bool> {
        self.read(|conn| {
            let mut statement = conn.prepare_cached("SELECT 1 FROM chunk WHERE id = ?1 AND placed & ?2 <> 0")?;
            Ok(statement.exists(params![chunk, bit.mask() as i64])?)
        })
    }

    /// True if a restore claimed copies on a target that nobody has seen since (D6).
    pub fn has_claims(&self, bit: TargetBit) -> Result<bool> {
        self.read(|conn| {
            let mut statement = conn.prepare_cached("SELECT 1 FROM chunk WHERE claimed <> 0 AND claimed & ?1 <> 0")?;
            Ok(statement.exists([bit.mask() as i64])?)
        })
    }

    /// Up to `limit` claimed copies on a target were seen: they count like any other. True while there may be more.
    pub fn prove_claims(&self, bit: TargetBit, limit: usize) -> Result<bool> {
        let page: Vec<ChunkId> = self.read(|conn| {
            let mut statement =
                conn.prepare_cached("SELECT id FROM chunk WHERE claimed <> 0 AND claimed & ?1 <> 0 LIMIT ?2")?;
            let rows = statement.query_map(params![bit.mask() as i64, limit as i64], |row| row.get(0))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })?;
        for few in page.chunks(CLAIMS_AT_ONCE) {
            self.write(|tx| {
                let mut update = tx.conn().prepare_cached("UPDATE chunk SET claimed = claimed & ~?2 WHERE id = ?1")?;
                few.iter().try_for_each(|id| update.execute(params![id, bit.mask() as i64]).map(drop))?;
                Ok(())
            })?;
        }
        Ok(page.len() == limit)
    }

    /// Whether a target needs a chunk (T5), holds it or not.
    pub fn needs(&self, bit: TargetBit, chunk: ChunkId) -> Result<bool> {
        self.read(|conn| {
            let rows = target::rows(conn)?;
            let Some(target) = rows.iter().find(|row| row.bit == bit) else { return Ok(false) };
            let base = target::base(conn, target)?;
            let mut statement =
                conn.prepare_cached("SELECT 1 FROM chunk WHERE id = ?1 AND (dead_seq IS NULL OR dead_seq > ?2)")?;
            Ok(statement.exists(params![chunk, base])?)
        })
    }

    /// What was remembered of the pass over a target that is under way.
    pub fn scrub_place(&self, bit: TargetBit) -> Result<Option<String>> {
        self.local_text(&place_key(bit))
    }

    /// When the newest pass over a target came to its end, in seconds since 1970.
    pub fn scrubbed_at(&self, bit: TargetBit) -> Result<Option<i64>> {
        Ok(self.local_text(&done_key(bit))?.and_then(|text| text.parse().ok()))
    }

    fn local_text(&self, key: &str) -> Result<Option<String>> {
        self.read(|conn| {
            let mut statement = conn.prepare_cached("SELECT value FROM filesystem WHERE key = ?1")?;
            Ok(statement.query_row([key], |row| row.get(0)).optional()?)
        })
    }
}

impl Tx<'_> {
    /// Remembers how far the pass over a target is.
    pub fn remember_scrub(&mut self, bit: TargetBit, place: &str) -> Result<()> {
        self.set_local_text(&place_key(bit), place)
    }

    /// Remembers that the pass over a target came to its end.
    pub fn scrubbed(&mut self, bit: TargetBit, now: Timestamp) -> Result<()> {
        self.conn().prepare_cached("DELETE FROM filesystem WHERE key = ?1")?.execute([place_key(bit)])?;
        self.set_local_text(&done_key(bit), &now.secs().to_string())
    }

    /// Copies on a target are missing or bad: it needs them again.
    pub fn misplaced_all(&mut self, bit: TargetBit, chunks: &[ChunkId]) -> Result<()> {
        let mut changed = false;
        for chunk in chunks {
            changed |= self.misplace(bit, *chunk)?;
        }
        if changed {
            self.chunks_added();
        }
        Ok(())
    }

    fn set_local_text(&mut self, key: &str, value: &str) -> Result<()> {
        self.conn()
            .prepare_cached("INSERT OR REPLACE INTO filesystem (key, value) VALUES (?1, ?2)")?
            .execute([key, value])?;
        Ok(())
    }
}

fn place_key(bit: TargetBit) -> String {
    format!("scrub.{}", bit.index())
}

fn done_key(bit: TargetBit) -> String {
    format!("scrubbed.{}", bit.index())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::target::Configured;
    use crate::meta::testing::store;

    #[test]
    fn d6_what_was_claimed_counts_like_any_other_copy_once_it_was_seen() {
        let (_dir, meta) = store();
        let of = |name: &str| Configured { name: name.into(), uri: format!("memory://{name}"), id: None };
        meta.register_targets(&[of("a"), of("b")]).unwrap();
        let (a, b) = (TargetBit::new(0).unwrap(), TargetBit::new(1).unwrap());
        meta.write(|tx| {
            for id in 1..=5_i64 {
                tx.conn().execute(
                    "INSERT INTO chunk (id, hash, length, bytes_referenced, dead_seq, placed, claimed, incomplete) \
                     VALUES (?1, ?2, 10, 0, 0, 3, 3, 0)",
                    params![id, ChunkHash::of(&id.to_le_bytes())],
                )?;
            }
            tx.recount_tally(a)?;
            tx.recount_tally(b)
        })
        .unwrap();
        assert!(meta.has_claims(a).unwrap());
        assert_eq!(meta.garbage(a, crate::id::Seq(0)).unwrap().chunks, 0, "a claim permits no GC");
        assert!(meta.prove_claims(a, 3).unwrap());
        assert!(!meta.prove_claims(a, 3).unwrap());
        assert_eq!((meta.has_claims(a).unwrap(), meta.has_claims(b).unwrap()), (false, true));
        assert_eq!(meta.garbage(a, crate::id::Seq(0)).unwrap().chunks, 5);
        assert_eq!(meta.garbage(b, crate::id::Seq(0)).unwrap().chunks, 0);
    }
}
