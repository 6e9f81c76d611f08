//! Outlines of chunks: by which parts of them are checked when they are fetched without the rest.
//!
//! Owns: the table `outline` (local; a trigger takes a row away with its chunk).
//! Does not own: what an outline is (`chunk::outline`), when parts are fetched (`read::parts`).
//!
//! A row that is missing costs the fetch of a whole chunk, one that is wrong is not believed: so rows are kept beside what
//! they are about, in transactions of their own, and lost with nothing else.

use rusqlite::{OptionalExtension, params};

use super::{Meta, Result, Tx};
use crate::chunk::outline::Outline;
use crate::id::{ChunkHash, ChunkId};

/// Outlines that one transaction keeps (D8).
const KEPT_AT_ONCE: usize = 128;

impl Meta {
    /// The outline of a chunk, if one was kept that leads to its name.
    pub fn outline(&self, chunk: ChunkId, hash: ChunkHash, length: u64) -> Result<Option<Outline>> {
        let kept = self.read(|conn| {
            let mut statement = conn.prepare_cached("SELECT leads FROM outline WHERE chunk = ?1")?;
            Ok(statement.query_row([chunk], |row| row.get::<_, Vec<u8>>(0)).optional()?)
        })?;
        Ok(kept.and_then(|bytes| Outline::read(&bytes, hash, length)))
    }

    /// Keeps outlines of chunks that have a row.
    pub fn keep_outlines(&self, outlines: &[(ChunkHash, &Outline)]) -> Result<()> {
        for few in outlines.chunks(KEPT_AT_ONCE) {
            self.write(|tx| few.iter().try_for_each(|(hash, outline)| tx.keep_outline(*hash, outline)))?;
        }
        Ok(())
    }
}

impl Tx<'_> {
    fn keep_outline(&mut self, hash: ChunkHash, outline: &Outline) -> Result<()> {
        self.conn()
            .prepare_cached("INSERT OR REPLACE INTO outline (chunk, leads) SELECT id, ?2 FROM chunk WHERE hash = ?1")?
            .execute(params![hash, outline.as_bytes()])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::outline::LENGTH_MIN;
    use crate::meta::testing::store;

    fn count(meta: &Meta) -> u64 {
        meta.read(|conn| Ok(conn.query_row("SELECT count(*) FROM outline", [], |row| row.get::<_, i64>(0))? as u64))
            .unwrap()
    }

    #[test]
    fn an_outline_lives_as_long_as_its_chunk_and_is_believed_only_for_it() {
        let (_dir, meta) = store();
        let length = LENGTH_MIN + 3;
        let (hash, outline) = Outline::of(&vec![7; length as usize]);
        let outline = outline.unwrap();
        meta.keep_outlines(&[(hash, &outline)]).unwrap();
        assert_eq!(count(&meta), 0, "of no chunk that is known");
        let insert = "INSERT INTO chunk (id, hash, length, bytes_referenced, incomplete) VALUES (1, ?1, ?2, 1, 0)";
        meta.write(|tx| Ok(tx.conn().execute(insert, params![hash, length as i64]).map(drop)?)).unwrap();
        for _ in 0..2 {
            meta.keep_outlines(&[(hash, &outline)]).unwrap();
        }
        assert_eq!(meta.outline(ChunkId(1), hash, length).unwrap(), Some(outline));
        assert_eq!(meta.outline(ChunkId(2), hash, length).unwrap(), None);
        assert_eq!(meta.outline(ChunkId(1), ChunkHash::of(b"another"), length).unwrap(), None);
        meta.write(|tx| Ok(tx.conn().execute("UPDATE outline SET leads = zeroblob(length(leads))", []).map(drop)?))
            .unwrap();
        assert_eq!(meta.outline(ChunkId(1), hash, length).unwrap(), None, "a wrong one is none");
        meta.write(|tx| Ok(tx.conn().execute("DELETE FROM chunk", []).map(drop)?)).unwrap();
        assert_eq!(count(&meta), 0);
    }
}
