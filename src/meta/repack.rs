//! Repack: references to ranges of one chunk become references to another chunk that holds the same bytes (O5, S10).
//!
//! Owns: moving the references, here and in replay; the record of it; following it in content that takes an earlier place.
//! Does not own: which chunks are worth it (`compaction::plan`), making the new one (`compaction::rewrite`).
//!
//! ```text
//! file     |aaaa|  |bb|       |aaaa|  |bb|         File offsets do not occur: whoever refers to the range
//!             \     /     ─▶     \     /           now refers to the copy. Who has written since refers to
//! chunk c  ··aaaa··bb··       c' aaaabb            neither, and is left alone.
//! ```
//!
//! - What is moved is looked up in the transaction that moves it: nothing that came since the bytes were read can be
//!   overwritten, and no reference is missed that replay of the record will find.
//! - Size, times, generation and place of no inode change.
//! - **A slot that is older than a repack** may be filled with content that names the emptied chunk: equal bytes, equal
//!   name. Replay applies that content first and then the repack, so here the repack is applied to it at once
//!   (`follow_repacks`). The table `repacked` keeps what that needs while such a slot is open.
//! - One transaction moves few references (D8): a rewrite is many records, each true by itself.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, params};

use super::extent::{self, RefDeltas};
use super::{Error, Meta, Result, Tx, journal, target};
use crate::format::record::{Change, Content, Extent};
use crate::id::{ChunkHash, ChunkId, ManifestId, Seq};

/// References that are looked up together.
const PAGE: i64 = 1024;
/// Rows of `repacked` that one transaction forgets (D8).
const FORGET: i64 = 256;

/// A chunk whose bytes exist elsewhere, and now also in a file of their own, synced (S2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewChunk {
    pub hash: ChunkHash,
    /// Bytes.
    pub length: u64,
    /// Relative to the state directory.
    pub file: String,
    /// Of all of it (S5).
    pub crc32c: u32,
}

/// A run of bytes of a chunk that something refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reference {
    pub manifest: ManifestId,
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    pub chunk: ChunkId,
    /// Bytes from the start of the chunk.
    pub chunk_offset: u64,
}

/// A chunk of which little is referred to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SparseChunk {
    pub id: ChunkId,
    pub hash: ChunkHash,
    /// Bytes.
    pub length: u64,
    /// Bytes that are referred to, at most `length`.
    pub live: u64,
}

/// Sums over all chunks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LiveSums {
    /// Lengths of chunks that something refers to.
    pub alive_bytes: u64,
    /// Of these, bytes that something refers to.
    pub live_bytes: u64,
    /// Lengths of all chunks that ever came.
    pub new_bytes: u64,
}

impl Meta {
    /// How much of what chunks hold is alive.
    pub fn live_sums(&self) -> Result<LiveSums> {
        self.read(|conn| {
            Ok(conn.prepare_cached("SELECT alive_bytes, live_bytes, new_bytes FROM chunk_sum")?.query_row(
                [],
                |row| {
                    let bytes = |column| row.get::<_, i64>(column).map(|bytes| bytes.max(0) as u64);
                    Ok(LiveSums { alive_bytes: bytes(0)?, live_bytes: bytes(1)?, new_bytes: bytes(2)? })
                },
            )?)
        })
    }

    /// Up to `limit` chunks under 50 % live that every pinning target has, after `after`, by id. Costs as many rows as there
    /// are such chunks, however many others there are.
    pub fn sparse_chunks(&self, after: ChunkId, limit: usize) -> Result<Vec<SparseChunk>> {
        self.read(|conn| {
            let mut statement = conn.prepare_cached(
                "SELECT id, hash, length, bytes_referenced FROM chunk INDEXED BY chunk_sparse \
                 WHERE dead_seq IS NULL AND length - 2 * bytes_referenced > 0 AND id > ?1 AND incomplete = 0 \
                 ORDER BY id LIMIT ?2",
            )?;
            let rows = statement.query_map(params![after, limit as i64], |row| {
                let (length, live): (i64, i64) = (row.get(2)?, row.get(3)?);
                let (length, live) = (length.max(0) as u64, live.max(0) as u64);
                Ok(SparseChunk { id: row.get(0)?, hash: row.get(1)?, length, live: live.min(length) })
            })?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// The first `limit` references to a chunk, by place in it.
    pub fn references(&self, chunk: ChunkId, limit: usize) -> Result<Vec<Reference>> {
        self.read(|conn| {
            let mut statement = conn.prepare_cached(
                "SELECT manifest, offset, length, chunk, chunk_offset FROM extent WHERE chunk = ?1 \
                 ORDER BY chunk_offset, manifest, offset LIMIT ?2",
            )?;
            let rows = statement.query_map(params![chunk, limit as i64], reference)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Up to `limit` rows of all manifests after (manifest, offset), in that order: for the walk that looks for files with
    /// too many of them.
    pub fn extent_page(&self, after: (ManifestId, i64), limit: usize) -> Result<Vec<Reference>> {
        self.read(|conn| {
            let mut statement = conn.prepare_cached(
                "SELECT manifest, offset, length, chunk, chunk_offset FROM extent \
                 WHERE (manifest, offset) > (?1, ?2) ORDER BY manifest, offset LIMIT ?3",
            )?;
            let rows = statement.query_map(params![after.0, after.1, limit as i64], reference)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// True if every pinning target has a chunk.
    pub fn is_chunk_complete(&self, chunk: ChunkId) -> Result<bool> {
        self.read(|conn| {
            Ok(conn.prepare_cached("SELECT 1 FROM chunk WHERE id = ?1 AND incomplete = 0")?.exists([chunk])?)
        })
    }

    /// The rows of a manifest that touch `offset … offset + length`, in order; none if it was given up.
    pub fn area(&self, manifest: ManifestId, offset: u64, length: u64) -> Result<Vec<Reference>> {
        self.read(|conn| {
            if conn.prepare_cached("SELECT 1 FROM orphan WHERE manifest = ?1")?.exists([manifest])? {
                return Ok(Vec::new());
            }
            let rows = extent::rows(conn, manifest, offset, length)?.into_iter();
            let reference = |row: extent::ExtentRow| Reference {
                manifest,
                offset: row.offset,
                length: row.length,
                chunk: row.chunk,
                chunk_offset: row.chunk_offset,
            };
            Ok(rows.map(reference).collect())
        })
    }

    /// Forgets repacks that every target that follows has, and that no open slot is older than. True while there may be more.
    pub fn forget_repacks(&self) -> Result<bool> {
        let any = self.read(|conn| Ok(conn.prepare_cached("SELECT 1 FROM repacked")?.exists([])?))?;
        if !any {
            return Ok(false);
        }
        self.write(|tx| {
            let slot: Option<Seq> =
                tx.conn().prepare_cached("SELECT min(seq) FROM slot")?.query_row([], |row| row.get(0))?;
            let following = target::rows(tx.conn())?.into_iter().filter(|row| row.mode.pins());
            let shipped = following.map(|row| row.shipped_seq).min().unwrap_or(tx.head());
            let upto = slot.map_or(shipped, |slot| slot.previous().min(shipped));
            let gone = tx
                .conn()
                .prepare_cached(
                    "DELETE FROM repacked WHERE seq IN (SELECT seq FROM repacked WHERE seq <= ?1 ORDER BY seq LIMIT ?2)",
                )?
                .execute(params![upto, FORGET])?;
            Ok(gone as i64 == FORGET)
        })
    }

    /// True if every record after `shipped` is a repack: whoever lacks them lacks no change.
    pub fn only_repacks_after(&self, shipped: Seq) -> Result<bool> {
        self.read(|conn| {
            let (records, repacks): (i64, i64) = conn
                .prepare_cached(
                    "SELECT (SELECT seq FROM counter) - ?1, (SELECT count(*) FROM repacked WHERE seq > ?1)",
                )?
                .query_row([shipped], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(records == repacks)
        })
    }

    /// Takes a place in history that changes nothing. What died by a commit that filled an older place is known to be dead
    /// only at the next place (T5): on a filesystem that nobody changes any more this is it. False: there is no need.
    pub fn step_history(&self) -> Result<bool> {
        self.write(|tx| {
            let head = tx.head();
            let waits = tx.conn().prepare_cached("SELECT 1 FROM chunk WHERE dead_seq > ?1")?.exists([head])?;
            if waits {
                let nothing = ChunkHash::of(b"");
                tx.append(&Change::Repack { from: nothing, chunks: Vec::new(), moves: Vec::new() })?;
            }
            Ok(waits)
        })
    }
}

impl Tx<'_> {
    /// Makes whoever refers to the ranges `moves` of chunk `hash` refer to the new chunk instead; `moves` name it as chunk 0.
    /// Returns how many bytes of references moved; with 0 nothing was changed, and no record written.
    pub fn repack(&mut self, hash: ChunkHash, moves: &[Extent], into: &NewChunk) -> Result<u64> {
        // By its name: a row's number may have been given anew since its bytes were read.
        let known: Option<(ChunkId, i64)> = self
            .conn()
            .prepare_cached("SELECT id, length FROM chunk WHERE hash = ?1")?
            .query_row([hash], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((from, from_length)) = known.filter(|_| hash != into.hash) else { return Ok(0) };
        check(moves, from_length as u64, into.length)?;
        let mut made = None;
        let mut deltas = RefDeltas::default();
        let moved = self.move_references(from, moves, &mut deltas, |tx, _| match made {
            Some(id) => Ok(id),
            None => {
                let id = tx.store_one_chunk(into.hash, into.length)?;
                tx.fetched(id, &into.file, into.length, into.crc32c)?;
                Ok(*made.insert(id))
            }
        })?;
        let Some(to) = made else { return Ok(0) };
        let change = Change::Repack { from: hash, chunks: vec![(into.hash, into.length)], moves: moves.to_vec() };
        let seq = self.append(&change)?;
        self.conn().prepare_cached("INSERT INTO repacked VALUES (?1, ?2, ?3, ?4)")?.execute(params![
            seq,
            hash,
            to,
            journal::encode(&change)
        ])?;
        // After the record: the chunk is dead from the place behind it, so a target that gets the record needs it no more.
        deltas.apply(self)?;
        Ok(moved)
    }

    /// Applies the repacks that are younger than `slot` to content that has just taken that place, as replay will: to what
    /// this record brings, and to nothing else of the file, however it came where it lies.
    pub(super) fn follow_repacks(
        &mut self,
        manifest: ManifestId,
        slot: Seq,
        content: &Content,
        deltas: &mut RefDeltas,
    ) -> Result<()> {
        let mut due = BTreeMap::new();
        for (hash, _) in &content.chunks {
            self.repacks_of(*hash, slot, &mut due)?;
        }
        if due.is_empty() {
            return Ok(());
        }
        let piece = |extent: &Extent| {
            let (chunk, length) = content.chunks.get(extent.chunk as usize).copied()?;
            Some(Piece {
                offset: extent.offset,
                length: extent.length,
                chunk,
                chunk_length: length,
                at: extent.chunk_offset,
                moved: false,
            })
        };
        let mut pieces: Vec<Piece> = content.extents.iter().filter_map(piece).collect();
        // In order of history: what one brought to a chunk, a later one may take on.
        while let Some((seq, change)) = due.pop_first() {
            let Change::Repack { from, chunks, moves } = change else {
                return Err(Error::Damaged(format!("record {seq} is kept as a repack and is none")));
            };
            let Some(into) = chunks.first().copied() else { continue };
            // Without its bytes nobody keeps history for anybody: whoever comes gets a later state, as it is here.
            if self.has_bytes(into.0)? && follow(&mut pieces, from, into, &moves) {
                self.repacks_of(into.0, seq, &mut due)?;
            }
        }
        for piece in pieces.iter().filter(|piece| piece.moved) {
            let chunk = self.store_one_chunk(piece.chunk, piece.chunk_length)?;
            extent::replace(self, manifest, piece.offset, piece.length, Some((chunk, piece.at)), deltas)?;
        }
        Ok(())
    }

    fn repacks_of(&self, from: ChunkHash, after: Seq, due: &mut BTreeMap<Seq, Change>) -> Result<()> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT seq, body FROM repacked WHERE from_hash = ?1 AND seq > ?2 ORDER BY seq")?;
        let mut rows = statement.query(params![from, after])?;
        while let Some(row) = rows.next()? {
            let (seq, body): (Seq, Vec<u8>) = (row.get(0)?, row.get(1)?);
            due.insert(seq, journal::decode(seq, &body)?.change);
        }
        Ok(())
    }

    /// True if the bytes of a chunk are somewhere.
    fn has_bytes(&self, hash: ChunkHash) -> Result<bool> {
        Ok(self
            .conn()
            .prepare_cached(
                "SELECT 1 FROM chunk c WHERE hash = ?1 AND (dead_seq IS NULL OR placed | claimed <> 0 \
                 OR EXISTS (SELECT 1 FROM location WHERE chunk = c.id))",
            )?
            .exists([hash])?)
    }

    /// Moves the references to ranges of `from`. `moves` ascend and do not overlap; `id` gives the row of the chunk with an
    /// index of theirs. Returns how many bytes moved.
    pub(super) fn move_references(
        &mut self,
        from: ChunkId,
        moves: &[Extent],
        deltas: &mut RefDeltas,
        mut id: impl FnMut(&mut Self, u32) -> Result<ChunkId>,
    ) -> Result<u64> {
        let (Some(first), Some(last)) = (moves.first(), moves.last()) else { return Ok(0) };
        let (start, end) = (first.offset as i64, (last.offset + last.length) as i64);
        let mut after: (i64, ManifestId, i64) = (-1, ManifestId(0), -1);
        let mut moved = 0;
        loop {
            let page: Vec<Reference> = self
                .conn()
                .prepare_cached(
                    "SELECT manifest, offset, length, chunk, chunk_offset FROM extent INDEXED BY extent_chunk \
                     WHERE chunk = ?1 AND chunk_offset < ?2 AND chunk_offset + length > ?3 \
                     AND (chunk_offset, manifest, offset) > (?4, ?5, ?6) \
                     ORDER BY chunk_offset, manifest, offset LIMIT ?7",
                )?
                .query_map(params![from, end, start, after.0, after.1, after.2, PAGE], reference)?
                .collect::<rusqlite::Result<_>>()?;
            let Some(last) = page.last() else { return Ok(moved) };
            after = (last.chunk_offset as i64, last.manifest, last.offset as i64);
            for row in page {
                let row_end = row.chunk_offset + row.length;
                let first = moves.partition_point(|piece| piece.offset + piece.length <= row.chunk_offset);
                for piece in moves[first..].iter().take_while(|piece| piece.offset < row_end) {
                    let start = piece.offset.max(row.chunk_offset);
                    let end = (piece.offset + piece.length).min(row_end);
                    let new = (id(self, piece.chunk)?, piece.chunk_offset + (start - piece.offset));
                    let place = row.offset + (start - row.chunk_offset);
                    extent::replace(self, row.manifest, place, end - start, Some(new), deltas)?;
                    moved += end - start;
                }
            }
        }
    }
}

/// A run of content on its way to where it lies now.
#[derive(Debug, Clone, Copy)]
struct Piece {
    /// In the file.
    offset: u64,
    length: u64,
    chunk: ChunkHash,
    /// Bytes of the whole chunk.
    chunk_length: u64,
    /// In the chunk.
    at: u64,
    moved: bool,
}

/// Moves what lies in ranges of `from`, cut at the borders of moves. True: something did.
fn follow(pieces: &mut Vec<Piece>, from: ChunkHash, into: (ChunkHash, u64), moves: &[Extent]) -> bool {
    let mut any = false;
    let mut after = Vec::with_capacity(pieces.len());
    for piece in pieces.drain(..) {
        let end = piece.at + piece.length;
        let part = |from: u64, to: u64| Piece {
            offset: piece.offset + (from - piece.at),
            length: to - from,
            at: from,
            ..piece
        };
        if piece.chunk != from {
            after.push(piece);
            continue;
        }
        let mut at = piece.at;
        let first = moves.partition_point(|one| one.offset + one.length <= piece.at);
        for one in moves[first..].iter().take_while(|one| one.offset < end) {
            let (start, stop) = (one.offset.max(piece.at), (one.offset + one.length).min(end));
            if at < start {
                after.push(part(at, start));
            }
            let (chunk, chunk_length) = into;
            let lies = one.chunk_offset + (start - one.offset);
            after.push(Piece { chunk, chunk_length, at: lies, moved: true, ..part(start, stop) });
            (at, any) = (stop, true);
        }
        if at < end {
            after.push(part(at, end));
        }
    }
    *pieces = after;
    any
}

/// The moves of a record of ours are as a reader of it demands.
fn check(moves: &[Extent], from_length: u64, into_length: u64) -> Result<()> {
    let mut end = 0;
    for piece in moves {
        let fits = piece.length > 0
            && piece.offset >= end
            && piece.offset + piece.length <= from_length
            && piece.chunk == 0
            && piece.chunk_offset + piece.length <= into_length;
        if !fits {
            return Err(Error::Damaged(format!("a move at {} of a chunk is out of order or too long", piece.offset)));
        }
        end = piece.offset + piece.length;
    }
    Ok(())
}

fn reference(row: &rusqlite::Row<'_>) -> rusqlite::Result<Reference> {
    let number = |column| {
        let value: i64 = row.get(column)?;
        u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
    };
    Ok(Reference {
        manifest: row.get(0)?,
        offset: number(1)?,
        length: number(2)?,
        chunk: row.get(3)?,
        chunk_offset: number(4)?,
    })
}

#[cfg(test)]
#[path = "repack_tests.rs"]
mod tests;
