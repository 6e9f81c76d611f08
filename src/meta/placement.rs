//! Placement: which chunk is on which target (T5, T6), and where its bytes lie on this machine.
//!
//! Owns: the columns `chunk.placed` and `chunk.incomplete`, the walk over what a target still needs, the sums in `tally`.
//! Does not own: chunk rows as such (`meta::commit`), local files (`chunk`), which put runs when (`replication`).
//!
//! - **Need** (T5): target T needs a chunk that is referenced (`dead_seq` NULL) or died after base(T).
//! - **Incomplete** (T6): 1 from the commit until every pinning target ([`super::target::Mode::pins`]) has its bit.
//! - **Tally**: of each pinning target, `pending` = the chunks with `incomplete = 1` that lack its bit (those up to where
//!   `meta::pin` has come, of one that has just begun to pin); of every target, `placed` = the chunks that have it. Whoever
//!   changes one of these columns changes the tally in the same transaction, so that `status` never counts.

use rusqlite::{Connection, OptionalExtension, params};

use super::pin::Pinning;
use super::target::{self, Mode};
use super::{Error, Meta, Result, Tx};
use crate::id::{ChunkFileId, ChunkHash, ChunkId, TargetBit};

/// Rows looked at for one page: at 2 µs a row well below the 100 ms that a reader may take (D8).
const PAGE_ROWS_MAX: usize = 20_000;

/// A chunk that a target needs and does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkTodo {
    pub id: ChunkId,
    pub hash: ChunkHash,
    /// Bytes.
    pub length: u64,
}

/// A piece of the walk over what a target needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TodoPage {
    /// Ascending by id.
    pub chunks: Vec<ChunkTodo>,
    /// Chunks on the way that lack the target's bit but that it does not need any more: give them to [`Meta::release`].
    pub unneeded: Vec<ChunkId>,
    /// Where the walk goes on: strictly after this.
    pub cursor: ChunkId,
    /// Nothing lies after the cursor.
    pub end: bool,
    /// The target resyncs: what it lacks is not new (T4).
    pub backfill: bool,
    /// Chunks that the target's tally counts as pending, in the same snapshot: if the walk has ended and knows fewer, some
    /// were revived behind its cursor.
    pub pending: u64,
    /// The first that it needs and lacks, and that may not be sent yet, for it may still be deleted there (T9).
    pub leaving: Option<ChunkId>,
}

/// What a placement changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placed {
    /// Chunks that got the bit now.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Chunks that every pinning target has now: their local bytes may go.
    pub complete: Vec<ChunkId>,
}

/// A run of a chunk's bytes in a local file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocationPiece {
    /// Bytes from the start of the chunk.
    pub chunk_offset: u64,
    /// Bytes.
    pub length: u64,
    pub file: ChunkFileId,
    /// Of the file, relative to the state directory.
    pub name: String,
    /// Bytes from the start of the file.
    pub file_offset: u64,
    /// Of exactly these bytes (S5).
    pub crc32c: u32,
    /// The mount in which the file was sealed or fetched (S5).
    pub mount: u64,
}

/// A chunk and every place it can be had from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkSources {
    pub chunk: ChunkTodo,
    /// The mask of targets that confirmed it.
    pub placed: u64,
    /// Ascending by offset in the chunk; several files may hold the same bytes.
    pub pieces: Vec<LocationPiece>,
}

/// Where the bytes of a put come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutSource {
    From(ChunkSources),
    /// The chunk has no row any more.
    Gone,
    /// It may still be deleted at the target (T9).
    Leaving,
}

/// The sums of one target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub pending_chunks: u64,
    pub pending_bytes: u64,
    pub placed_chunks: u64,
    pub placed_bytes: u64,
}

/// Sums over all chunks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChunkSums {
    /// Bytes that some pinning target lacks, each chunk counted once.
    pub incomplete_bytes: u64,
}

impl Meta {
    /// Up to `limit` chunks that target `bit` needs and lacks, strictly after `after`, by id. A page may be empty and not
    /// the end: it looks at a bounded number of rows.
    pub fn chunks_to_place(&self, bit: TargetBit, after: ChunkId, limit: usize) -> Result<TodoPage> {
        self.read(|conn| {
            let rows = target::rows(conn)?;
            let target = rows
                .iter()
                .find(|row| row.bit == bit)
                .ok_or_else(|| Error::Damaged(format!("target {} has no row", bit.index())))?;
            let base = target::base(conn, target)?;
            let mut leaving = Leaving::to(conn, bit)?;
            // A follower walks the index of incomplete chunks, a resyncer all of them; so does who has just begun to follow,
            // as some of those that it lacks are not in the index yet.
            let all = target.mode == Mode::Resync || target.unpinned_after.is_some();
            let mut statement = conn.prepare_cached(if all {
                "SELECT id, hash, length, dead_seq, placed FROM chunk WHERE id > ?1 ORDER BY id"
            } else {
                "SELECT id, hash, length, dead_seq, placed FROM chunk WHERE incomplete = 1 AND id > ?1 ORDER BY id"
            })?;
            let mut rows = statement.query([after])?;
            let pending: Option<i64> = conn
                .prepare_cached("SELECT pending_chunks FROM tally WHERE bit = ?1")?
                .query_row([bit], |row| row.get(0))
                .optional()?;
            let mut page = TodoPage {
                cursor: after,
                pending: pending.unwrap_or(0).max(0) as u64,
                backfill: target.mode == Mode::Resync,
                ..TodoPage::default()
            };
            let mut seen = 0;
            loop {
                if seen == PAGE_ROWS_MAX || page.chunks.len() + page.unneeded.len() >= limit {
                    return Ok(page);
                }
                let Some(row) = rows.next()? else {
                    page.end = true;
                    return Ok(page);
                };
                seen += 1;
                let chunk = ChunkTodo { id: row.get(0)?, hash: row.get(1)?, length: bytes(row.get(2)?)? };
                page.cursor = chunk.id;
                let dead: Option<crate::id::Seq> = row.get(3)?;
                if row.get::<_, i64>(4)? as u64 & bit.mask() != 0 {
                    continue;
                }
                match dead {
                    Some(dead) if dead <= base => page.unneeded.push(chunk.id),
                    // T9: not while it may still be deleted there.
                    _ if leaving.has(chunk.hash)? => page.leaving = page.leaving.or(Some(chunk.id)),
                    _ => page.chunks.push(chunk),
                }
            }
        })
    }

    /// Records that target `bit` confirmed these chunks ([`Tx::place`]).
    pub fn place(&self, bit: TargetBit, chunks: &[ChunkId]) -> Result<Placed> {
        self.write(|tx| tx.place(bit, chunks))
    }

    /// Stops waiting for chunks that no pinning target needs any more ([`Tx::release`]). Returns how many.
    pub fn release(&self, chunks: &[ChunkId]) -> Result<u64> {
        self.write(|tx| tx.release(chunks))
    }

    /// Where the bytes of a chunk lie on this machine, ascending by offset in the chunk.
    pub fn locations(&self, chunk: ChunkId) -> Result<Vec<LocationPiece>> {
        self.read(|conn| locations(conn, chunk))
    }

    /// A chunk and every place it can be had from; `None` if there is no such chunk any more.
    pub fn chunk_sources(&self, chunk: ChunkId) -> Result<Option<ChunkSources>> {
        self.read(|conn| sources(conn, chunk))
    }

    /// What a put of each of these chunks to target `bit` needs to know, in one snapshot.
    pub fn put_sources(&self, bit: TargetBit, chunks: &[ChunkTodo]) -> Result<Vec<PutSource>> {
        self.read(|conn| {
            let mut leaving = Leaving::to(conn, bit)?;
            let mut source = |chunk: &ChunkTodo| {
                if leaving.has(chunk.hash)? {
                    return Ok(PutSource::Leaving);
                }
                let found = sources(conn, chunk.id)?.filter(|found| found.chunk.hash == chunk.hash);
                Ok(found.map_or(PutSource::Gone, PutSource::From))
            };
            chunks.iter().map(&mut source).collect()
        })
    }

    /// The sums of every target.
    pub fn tallies(&self) -> Result<Vec<(TargetBit, Tally)>> {
        self.read(|conn| {
            let mut statement = conn.prepare_cached(
                "SELECT bit, pending_chunks, pending_bytes, placed_chunks, placed_bytes FROM tally ORDER BY bit",
            )?;
            let rows = statement.query_map([], |row| {
                let count = |column| row.get::<_, i64>(column).map(|n| n.max(0) as u64);
                let tally = Tally {
                    pending_chunks: count(1)?,
                    pending_bytes: count(2)?,
                    placed_chunks: count(3)?,
                    placed_bytes: count(4)?,
                };
                Ok((row.get(0)?, tally))
            })?;
            rows.map(|row| Ok(row?)).collect()
        })
    }
}

impl Meta {
    /// The sums over all chunks.
    pub fn chunk_sums(&self) -> Result<ChunkSums> {
        self.read(|conn| {
            let mut statement = conn.prepare_cached("SELECT incomplete_bytes FROM chunk_sum")?;
            let incomplete: i64 = statement.query_row([], |row| row.get(0))?;
            Ok(ChunkSums { incomplete_bytes: incomplete.max(0) as u64 })
        })
    }
}

impl Tx<'_> {
    /// Counts chunks that this transaction inserted with `incomplete = 1` and no bit, and tells the uploaders of them.
    pub fn chunks_inserted(&mut self, chunks: u64, bytes: u64) -> Result<()> {
        let counting = self.pinning()?.counting_new(self, chunks)?;
        self.shift_sums(counting, chunks as i64, bytes as i64)?;
        self.chunks_added();
        Ok(())
    }

    /// Tells that a dead chunk is referenced again (dedup set its `dead_seq` to NULL): whoever lacks it needs it again.
    pub fn chunk_revived(&mut self, chunk: ChunkId) -> Result<()> {
        let pinning = self.pinning()?;
        let row = self.chunk_bits(chunk)?;
        if row.incomplete || (row.placed & pinning.mask == pinning.mask && row.placed != 0) {
            return Ok(());
        }
        self.set_incomplete(chunk, true)?;
        self.shift_pending(pinning.counting(chunk) & !row.placed, 1, row.length)?;
        self.chunks_added();
        Ok(())
    }

    /// Sets the bit of a target on chunks that it confirmed, in the order of the slice. A chunk that has the bit already,
    /// or no row any more, changes nothing.
    pub fn place(&mut self, bit: TargetBit, chunks: &[ChunkId]) -> Result<Placed> {
        let pinning = self.pinning()?;
        let mut placed = Placed::default();
        let (mut settled_chunks, mut settled_bytes) = (0, 0);
        for &chunk in chunks {
            let Some(row) = self.find_chunk_bits(chunk)? else { continue };
            if row.placed & bit.mask() != 0 {
                continue;
            }
            let mask = row.placed | bit.mask();
            let complete = row.incomplete && mask & pinning.mask == pinning.mask;
            self.conn()
                .prepare_cached("UPDATE chunk SET placed = ?2, incomplete = ?3 WHERE id = ?1")?
                .execute(params![chunk, mask as i64, row.incomplete && !complete])?;
            placed.chunks += 1;
            placed.bytes += row.length;
            if row.incomplete && pinning.counting(chunk) & bit.mask() != 0 {
                settled_chunks += 1;
                settled_bytes += row.length;
            }
            if complete {
                placed.complete.push(chunk);
            }
        }
        if placed.chunks > 0 {
            self.chunks_placed();
            self.conn()
                .prepare_cached(
                    "UPDATE tally SET pending_chunks = pending_chunks - ?2, pending_bytes = pending_bytes - ?3, \
                     placed_chunks = placed_chunks + ?4, placed_bytes = placed_bytes + ?5 WHERE bit = ?1",
                )?
                .execute(params![
                    bit,
                    settled_chunks,
                    settled_bytes as i64,
                    placed.chunks as i64,
                    placed.bytes as i64
                ])?;
        }
        Ok(placed)
    }

    /// Clears `incomplete` of those chunks that are dead and that every pinning target either has or does not need (T5).
    pub fn release(&mut self, chunks: &[ChunkId]) -> Result<u64> {
        let targets: Vec<_> = target::rows(self.conn())?.into_iter().filter(|row| row.mode.pins()).collect();
        let pinning = Pinning::of(&targets);
        let bases =
            targets.iter().map(|row| Ok((row.bit, target::base(self.conn(), row)?))).collect::<Result<Vec<_>>>()?;
        let mut released = 0;
        for &chunk in chunks {
            let Some(row) = self.find_chunk_bits(chunk)? else { continue };
            let Some(dead) = row.dead_seq else { continue };
            let needed = bases.iter().any(|(bit, base)| row.placed & bit.mask() == 0 && dead > *base);
            if row.incomplete && !needed {
                self.set_incomplete(chunk, false)?;
                self.shift_pending(pinning.counting(chunk) & !row.placed, -1, row.length)?;
                released += 1;
            }
        }
        Ok(released)
    }

    /// Counts the tally of one target anew. It looks at every chunk: for a store that nobody uses yet (D8), and for tests.
    pub fn recount_tally(&mut self, bit: TargetBit) -> Result<()> {
        self.conn()
            .prepare_cached(
                "INSERT OR REPLACE INTO tally (bit, pending_chunks, pending_bytes, placed_chunks, placed_bytes) \
                 SELECT ?1, coalesce(sum(incomplete = 1 AND placed & ?2 = 0), 0), \
                 coalesce(sum(iif(incomplete = 1 AND placed & ?2 = 0, length, 0)), 0), \
                 coalesce(sum(placed & ?2 <> 0), 0), coalesce(sum(iif(placed & ?2 <> 0, length, 0)), 0) FROM chunk",
            )?
            .execute(params![bit, bit.mask() as i64])?;
        Ok(())
    }

    /// Takes a target's bit from a chunk that it turned out not to have, right: whoever pins waits for it. False: it had no
    /// bit.
    pub(super) fn misplace(&mut self, bit: TargetBit, chunk: ChunkId) -> Result<bool> {
        let Some(row) = self.find_chunk_bits(chunk)? else { return Ok(false) };
        let changed = self
            .conn()
            .prepare_cached(
                "UPDATE chunk SET placed = placed & ~?2, claimed = claimed & ~?2, incomplete = 1 \
                 WHERE id = ?1 AND (placed | claimed) & ?2 <> 0",
            )?
            .execute(params![chunk, bit.mask() as i64])?;
        if changed == 0 {
            return Ok(false);
        }
        let pinning = self.pinning()?;
        let placed = row.placed & !bit.mask();
        // Of one that was complete all wait who lack it; else only this target begins to.
        let waiting = if row.incomplete { bit.mask() & row.placed } else { !placed };
        self.shift_pending(pinning.counting(chunk) & waiting, 1, row.length)?;
        if row.placed & bit.mask() != 0 {
            self.shift_placed(bit, -1, -(row.length as i64))?;
        }
        Ok(true)
    }

    fn chunk_bits(&self, chunk: ChunkId) -> Result<ChunkBits> {
        self.find_chunk_bits(chunk)?.ok_or_else(|| Error::Damaged(format!("chunk {chunk} has no row")))
    }

    pub(super) fn find_chunk_bits(&self, chunk: ChunkId) -> Result<Option<ChunkBits>> {
        let row = self
            .conn()
            .prepare_cached("SELECT length, placed, incomplete, dead_seq FROM chunk WHERE id = ?1")?
            .query_row([chunk], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)? as u64, row.get(2)?, row.get(3)?))
            })
            .optional()?;
        let Some((length, placed, incomplete, dead_seq)) = row else { return Ok(None) };
        Ok(Some(ChunkBits { length: bytes(length)?, placed, incomplete, dead_seq }))
    }

    pub(super) fn set_incomplete(&self, chunk: ChunkId, incomplete: bool) -> Result<()> {
        self.conn()
            .prepare_cached("UPDATE chunk SET incomplete = ?2 WHERE id = ?1")?
            .execute(params![chunk, incomplete])?;
        Ok(())
    }

    /// No pinning target waits for a chunk any more; those in `lacking` counted it as pending.
    pub(super) fn unpin(&self, chunk: ChunkId, lacking: u64, length: u64) -> Result<()> {
        self.set_incomplete(chunk, false)?;
        if lacking == 0 { Ok(()) } else { self.shift_pending(lacking, -1, length) }
    }

    /// Adds `chunks` chunks of `length` bytes to what every target in `mask` lacks.
    pub(super) fn shift_pending(&self, mask: u64, chunks: i64, length: u64) -> Result<()> {
        self.shift_sums(mask, chunks, chunks * length as i64)
    }

    /// Adds chunks, and bytes, to what every target in `mask` lacks.
    pub(super) fn shift_sums(&self, mask: u64, chunks: i64, bytes: i64) -> Result<()> {
        self.conn()
            .prepare_cached(
                "UPDATE tally SET pending_chunks = pending_chunks + ?2, pending_bytes = pending_bytes + ?3 \
                 WHERE (?1 >> bit) & 1 = 1",
            )?
            .execute(params![mask as i64, chunks, bytes])?;
        Ok(())
    }

    /// Adds chunks, and bytes, to what target `bit` has.
    pub(super) fn shift_placed(&self, bit: TargetBit, chunks: i64, bytes: i64) -> Result<()> {
        self.conn()
            .prepare_cached(
                "UPDATE tally SET placed_chunks = placed_chunks + ?2, placed_bytes = placed_bytes + ?3 WHERE bit = ?1",
            )?
            .execute(params![bit, chunks, bytes])?;
        Ok(())
    }
}

/// The columns of a chunk that placement decides by.
pub(super) struct ChunkBits {
    pub(super) length: u64,
    pub(super) placed: u64,
    pub(super) incomplete: bool,
    pub(super) dead_seq: Option<crate::id::Seq>,
}

/// Chunks that are being deleted at a target (T9). Mostly there are none, which is asked once.
struct Leaving<'a> {
    bit: TargetBit,
    one: Option<rusqlite::CachedStatement<'a>>,
}

impl<'a> Leaving<'a> {
    fn to(conn: &'a Connection, bit: TargetBit) -> Result<Leaving<'a>> {
        let any = conn.prepare_cached("SELECT 1 FROM deletion WHERE bit = ?1 LIMIT 1")?.exists([bit])?;
        let one = any.then(|| conn.prepare_cached("SELECT 1 FROM deletion WHERE bit = ?1 AND chunk_hash = ?2"));
        Ok(Leaving { bit, one: one.transpose()? })
    }

    fn has(&mut self, chunk: ChunkHash) -> Result<bool> {
        self.one.as_mut().map_or(Ok(false), |one| Ok(one.exists(params![self.bit, chunk])?))
    }
}

fn sources(conn: &Connection, chunk: ChunkId) -> Result<Option<ChunkSources>> {
    let row = conn
        .prepare_cached("SELECT hash, length, placed FROM chunk WHERE id = ?1")?
        .query_row([chunk], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?)))
        .optional()?;
    let Some((hash, length, placed)) = row else { return Ok(None) };
    Ok(Some(ChunkSources {
        chunk: ChunkTodo { id: chunk, hash, length: bytes(length)? },
        placed: placed as u64,
        pieces: locations(conn, chunk)?,
    }))
}

fn locations(conn: &Connection, chunk: ChunkId) -> Result<Vec<LocationPiece>> {
    let mut statement = conn.prepare_cached(
        "SELECT l.chunk_offset, l.length, l.file, f.name, l.file_offset, l.crc32c, f.mount FROM location l \
         JOIN chunk_file f ON f.id = l.file WHERE l.chunk = ?1 ORDER BY l.chunk_offset, l.file",
    )?;
    let mut rows = statement.query([chunk])?;
    let mut pieces = Vec::new();
    while let Some(row) = rows.next()? {
        pieces.push(LocationPiece {
            chunk_offset: bytes(row.get(0)?)?,
            length: bytes(row.get(1)?)?,
            file: row.get(2)?,
            name: row.get(3)?,
            file_offset: bytes(row.get(4)?)?,
            crc32c: row.get(5)?,
            mount: bytes(row.get(6)?)?,
        });
    }
    Ok(pieces)
}

fn bytes(column: i64) -> Result<u64> {
    u64::try_from(column).map_err(|_| Error::Damaged(format!("a length or offset of {column} bytes")))
}

#[cfg(test)]
mod tests;
