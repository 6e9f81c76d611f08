//! Where chunks lie in local files: for reads, for fetched chunks, for eviction.
//!
//! Owns: the tables `location` and `chunk_file`, and which of a file's bytes may leave (promise 2: pinned until placed).
//! Does not own: the files themselves (`chunk`), when to evict.

use std::ops::Range;

use rusqlite::{Connection, OptionalExtension, params};

use super::extent;
use super::inode::Inode;
use super::{Meta, Result, Tx};
use crate::id::{ChunkFileId, ChunkHash, ChunkId, InodeId, ManifestId, Seq, TargetBit};

/// Rows of `location` that one transaction forgets (D8).
const ROWS: i64 = 256;

/// A run of a file's committed content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Bytes of the file, inside the range that was asked for.
    pub range: Range<u64>,
    pub chunk: ChunkId,
    pub hash: ChunkHash,
    /// Bytes of the whole chunk.
    pub chunk_length: u64,
    /// Where the run starts in the chunk.
    pub chunk_offset: u64,
    /// Targets that hold the chunk: confirmed here, or claimed by a restore.
    pub placed: u64,
    /// Where all of the run lies locally, if it does.
    pub local: Option<Local>,
}

/// A run of a chunk in a local file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    pub file: ChunkFileId,
    /// Relative to the state directory.
    pub name: String,
    pub offset: u64,
}

impl Meta {
    /// Size and committed content of a file in `range`: ascending pieces; what lies between them is zeros. One snapshot: a
    /// commit that gives the manifest up meanwhile does not show.
    pub fn content(&self, ino: InodeId, range: Range<u64>) -> Result<(u64, Vec<Piece>)> {
        self.read(|conn| {
            let inode = Inode::get(conn, ino)?;
            let range = range.start.min(inode.size)..range.end.min(inode.size);
            match inode.manifest {
                Some(manifest) => Ok((inode.size, pieces(conn, manifest, range)?)),
                None => Ok((inode.size, Vec::new())),
            }
        })
    }

    /// Where in `range` the next data (or, with `hole`, the next hole) of the committed content begins. `None`: nowhere.
    pub fn seek(&self, ino: InodeId, range: Range<u64>, hole: bool) -> Result<Option<u64>> {
        // A search for data ends with the first row, one for a hole walks rows that follow each other.
        const PAGE: u64 = 256 << 20;
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min(at.saturating_add(PAGE));
            let found = self.read(|conn| {
                let inode = Inode::get(conn, ino)?;
                let rows = match inode.manifest {
                    Some(manifest) => extent::rows(conn, manifest, at, end - at)?,
                    None => Vec::new(),
                };
                if !hole {
                    return Ok(rows.first().map(|row| row.offset.max(at)));
                }
                let mut covered = at;
                for row in &rows {
                    if row.offset > covered {
                        break;
                    }
                    covered = row.end();
                }
                Ok((covered < end).then_some(covered))
            })?;
            if found.is_some() {
                return Ok(found);
            }
            at = end;
        }
        Ok(None)
    }

    /// Bytes that all chunk files with a row take on disk.
    pub fn chunk_file_bytes(&self) -> Result<u64> {
        self.read(|conn| {
            let bytes: i64 = conn.query_row("SELECT coalesce(sum(bytes), 0) FROM chunk_file", [], |row| row.get(0))?;
            Ok(bytes as u64)
        })
    }

    /// Up to `limit` chunk files after `after`, oldest first.
    pub fn chunk_files(&self, after: ChunkFileId, limit: usize) -> Result<Vec<ChunkFileId>> {
        self.read(|conn| {
            let mut statement = conn.prepare_cached("SELECT id FROM chunk_file WHERE id > ?1 ORDER BY id LIMIT ?2")?;
            let rows = statement.query_map(params![after, limit as i64], |row| row.get(0))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// True if a chunk file with this name has a row.
    pub fn has_chunk_file(&self, name: &str) -> Result<bool> {
        self.read(|conn| {
            let found: Option<i64> = conn
                .prepare_cached("SELECT 1 FROM chunk_file WHERE name = ?1")?
                .query_row([name], |row| row.get(0))
                .optional()?;
            Ok(found.is_some())
        })
    }
}

fn pieces(conn: &Connection, manifest: ManifestId, range: Range<u64>) -> Result<Vec<Piece>> {
    let mut chunk_statement = conn.prepare_cached("SELECT hash, length, placed | claimed FROM chunk WHERE id = ?1")?;
    let mut local_statement = conn.prepare_cached(
                "SELECT l.chunk_offset, l.length, l.file, f.name, l.file_offset FROM location l JOIN chunk_file f ON f.id = l.file \
                 WHERE l.chunk = ?1 AND l.chunk_offset < ?3 AND l.chunk_offset + l.length > ?2 ORDER BY l.chunk_offset",
            )?;
    let mut pieces = Vec::new();
    for row in extent::rows(conn, manifest, range.start, range.end.saturating_sub(range.start))? {
        let run = row.offset.max(range.start)..(row.offset + row.length).min(range.end);
        let chunk_offset = row.chunk_offset + (run.start - row.offset);
        let (hash, chunk_length, placed) = chunk_statement.query_row([row.chunk], |row| {
            Ok((row.get(0)?, row.get::<_, i64>(1)? as u64, row.get::<_, i64>(2)? as u64))
        })?;
        let mut at = run.start;
        let piece = |range: Range<u64>, local| Piece {
            chunk_offset: chunk_offset + (range.start - run.start),
            range,
            chunk: row.chunk,
            hash,
            chunk_length,
            placed,
            local,
        };
        let end = chunk_offset + (run.end - run.start);
        let mut locals = local_statement.query(params![row.chunk, chunk_offset as i64, end as i64])?;
        while let Some(local) = locals.next()? {
            let (start, length): (i64, i64) = (local.get(0)?, local.get(1)?);
            // In bytes of the file: the part of the run that this local range holds beyond what is covered.
            let from = (start as u64).max(chunk_offset) - chunk_offset + run.start;
            let to = ((start + length) as u64).min(end) - chunk_offset + run.start;
            if to <= at {
                continue;
            }
            if from > at {
                pieces.push(piece(at..from, None));
            }
            let from = from.max(at);
            let in_chunk = chunk_offset + (from - run.start);
            let found = Local {
                file: local.get(2)?,
                name: local.get(3)?,
                offset: local.get::<_, i64>(4)? as u64 + (in_chunk - start as u64),
            };
            pieces.push(piece(from..to, Some(found)));
            at = to;
        }
        if at < run.end {
            pieces.push(piece(at..run.end, None));
        }
    }
    Ok(pieces)
}

/// A chunk file that no row names any more: to be unlinked once that is durable (D1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evicted {
    /// Relative to the state directory.
    pub name: String,
    pub bytes: u64,
}

/// What one step of an eviction came to.
enum Step {
    /// A chunk of the file is pinned: it stays.
    Pinned,
    /// Some rows went.
    More,
    /// The last one went, and the file's own.
    Gone(Option<Evicted>),
}

/// A page of the walk over dead chunks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadPage {
    /// Those that lie on this machine and that no target waits for.
    pub droppable: Vec<ChunkId>,
    /// Chunks looked at.
    pub looked: usize,
    /// Where the walk goes on; `None`: it has come to the end.
    pub next: Option<(Seq, ChunkId)>,
}

impl Meta {
    /// Forgets a chunk file if all its chunks are placed on every target that they are pinned for, and on one at least;
    /// `None` if one is pinned. The bit of a target that was removed is no copy.
    /// A bit that a restore claimed counts like any other: restore claims only what it saw listed with the right length.
    ///
    /// The rows of a large file go a few at a time (D8); if a chunk is pinned in between, or the process dies, the rest
    /// stays, and the file with it.
    pub fn evict(&self, file: ChunkFileId) -> Result<Option<Evicted>> {
        if self.read(|conn| is_pinned(conn, file, i64::MAX))? {
            return Ok(None);
        }
        loop {
            match self.write(|tx| tx.evict_some(file))? {
                Step::Pinned => return Ok(None),
                Step::More => {}
                Step::Gone(evicted) => return Ok(evicted),
            }
        }
    }

    /// Looks at up to `limit` dead chunks after `after`, in the order in which they died.
    pub fn dead_chunks(&self, after: Option<(Seq, ChunkId)>, limit: usize) -> Result<DeadPage> {
        self.read(|conn| {
            let (seq, id) = after.unwrap_or((Seq::ZERO, ChunkId(0)));
            let mut page = DeadPage::default();
            // Any number of chunks die at one place in history.
            for sql in [
                "SELECT dead_seq, id, incomplete, EXISTS (SELECT 1 FROM location WHERE chunk = c.id) FROM chunk c \
                 WHERE dead_seq IS NOT NULL AND dead_seq = ?1 AND id > ?2 ORDER BY id LIMIT ?3",
                "SELECT dead_seq, id, incomplete, EXISTS (SELECT 1 FROM location WHERE chunk = c.id) FROM chunk c \
                 WHERE dead_seq IS NOT NULL AND dead_seq > ?1 AND ?2 >= 0 ORDER BY dead_seq, id LIMIT ?3",
            ] {
                let mut statement = conn.prepare_cached(sql)?;
                let mut rows = statement.query(params![seq, id, (limit - page.looked) as i64])?;
                while let Some(row) = rows.next()? {
                    page.looked += 1;
                    page.next = Some((row.get(0)?, row.get(1)?));
                    if !row.get::<_, bool>(2)? && row.get::<_, bool>(3)? {
                        page.droppable.push(row.get(1)?);
                    }
                }
            }
            if page.looked < limit {
                page.next = None;
            }
            Ok(page)
        })
    }
}

/// True if one of the chunks in the first `rows` rows of a file must stay on this machine.
fn is_pinned(conn: &Connection, file: ChunkFileId, rows: i64) -> Result<bool> {
    Ok(conn
        .prepare_cached(
            "SELECT 1 FROM (SELECT chunk FROM location WHERE file = ?1 ORDER BY chunk, chunk_offset LIMIT ?2) l JOIN chunk c ON c.id = l.chunk \
             WHERE c.incomplete = 1 OR (c.dead_seq IS NULL AND \
             c.placed & ~(SELECT coalesce(sum(1 << bit), 0) FROM retired) = 0) LIMIT 1",
        )?
        .exists(params![file, rows])?)
}

impl Tx<'_> {
    fn evict_some(&mut self, file: ChunkFileId) -> Result<Step> {
        if is_pinned(self.conn(), file, ROWS)? {
            return Ok(Step::Pinned);
        }
        let gone = self
            .conn()
            .prepare_cached(
                "DELETE FROM location WHERE file = ?1 AND (chunk, chunk_offset) IN \
                 (SELECT chunk, chunk_offset FROM location WHERE file = ?1 ORDER BY chunk, chunk_offset LIMIT ?2)",
            )?
            .execute(params![file, ROWS])?;
        if gone as i64 == ROWS {
            return Ok(Step::More);
        }
        Ok(Step::Gone(self.forget_file(file)?))
    }

    /// Forgets the local ranges of dead chunks that no target waits for, up to some hundred of them, and the files in which
    /// nothing is left. Returns those, and with how many of `chunks` it is done.
    pub fn drop_dead_locations(&mut self, chunks: &[ChunkId]) -> Result<(Vec<Evicted>, usize)> {
        let mut evicted = Vec::new();
        if self.is_pinning()? {
            // Whoever has just begun to follow may need one of them, and it is not marked yet.
            return Ok((evicted, chunks.len()));
        }
        let mut left = ROWS;
        for (done, chunk) in chunks.iter().enumerate() {
            let rows: Vec<(ChunkFileId, i64)> = self
                .conn()
                .prepare_cached(
                    "SELECT l.file, l.chunk_offset FROM chunk c JOIN location l ON l.chunk = c.id \
                     WHERE c.id = ?1 AND c.dead_seq IS NOT NULL AND c.incomplete = 0 LIMIT ?2",
                )?
                .query_map(params![chunk, left], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<rusqlite::Result<_>>()?;
            left -= rows.len() as i64;
            for (file, chunk_offset) in rows {
                self.conn()
                    .prepare_cached("DELETE FROM location WHERE chunk = ?1 AND file = ?2 AND chunk_offset = ?3")?
                    .execute(params![chunk, file, chunk_offset])?;
                let used =
                    self.conn().prepare_cached("SELECT 1 FROM location WHERE file = ?1 LIMIT 1")?.exists([file])?;
                if !used {
                    evicted.extend(self.forget_file(file)?);
                }
            }
            if left == 0 {
                // Of this one some may be left.
                return Ok((evicted, done));
            }
        }
        Ok((evicted, chunks.len()))
    }

    /// Notes that the whole chunk lies in the file `name`, fetched from a target and verified.
    pub fn fetched(&mut self, chunk: ChunkId, name: &str, length: u64, crc32c: u32) -> Result<ChunkFileId> {
        let file = self.chunk_file(name, length)?;
        self.conn()
            .prepare_cached(
                "INSERT OR REPLACE INTO location (chunk, file, chunk_offset, length, file_offset, crc32c) \
                 VALUES (?1, ?2, 0, ?3, 0, ?4)",
            )?
            .execute(params![chunk, file, length as i64, crc32c])?;
        Ok(file)
    }

    /// A target was found without a chunk, or with wrong bytes of it: it needs it again.
    pub fn misplaced(&mut self, bit: TargetBit, chunk: ChunkId) -> Result<()> {
        self.misplaced_all(bit, &[chunk])
    }

    pub(super) fn forget_file(&mut self, file: ChunkFileId) -> Result<Option<Evicted>> {
        let evicted = self
            .conn()
            .prepare_cached("DELETE FROM chunk_file WHERE id = ?1 RETURNING name, bytes")?
            .query_row([file], |row| Ok(Evicted { name: row.get(0)?, bytes: row.get::<_, i64>(1)? as u64 }))
            .optional()?;
        Ok(evicted)
    }
}
