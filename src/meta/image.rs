//! Whether one local file is a whole image of an inode's committed content, and giving such a file up (P1, P3).
//!
//! Owns: finding the file by its rows, which of its bytes are pinned, taking its rows away.
//! Does not own: the bytes where no extent is, which must be zeros in the file (`write::lend`), lending (`chunk::lend`).
//!
//! Nothing notes at a commit which file is an image: it is found, from rows that say the same as a read would. Only a file
//! that holds the same chunk twice is not found so, as a location row is kept once for each chunk in a file.

use std::ops::Range;
use std::path::Path;

use rusqlite::{Connection, OptionalExtension, params};

use super::inode::Inode;
use super::{Meta, Result, Tx};
use crate::chunk::file::SessionName;
use crate::id::{ChunkFileId, ChunkId, Generation, InodeId, ManifestId};

/// Extents looked at: more would hold a read transaction for longer than it may last (D8).
const EXTENTS_MAX: usize = 1 << 14;

/// A chunk pinned for a target: its bytes stay. Of `chunk` as `c`.
const PINNED: &str = "(c.incomplete = 1 OR (c.dead_seq IS NULL AND \
                      c.placed & ~(SELECT coalesce(sum(1 << bit), 0) FROM retired) = 0))";

/// A file in which all extents of an inode lie at their own offsets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    pub file: ChunkFileId,
    /// Relative to the state directory.
    pub name: String,
    /// The generation it holds.
    pub generation: Generation,
    /// Of the inode, in bytes.
    pub size: u64,
    /// Where the content has zeros. What the file has there is not said.
    pub gaps: Vec<Range<u64>>,
}

impl Meta {
    /// The image of `ino`, if there is one and its rows show it.
    pub fn image(&self, ino: InodeId) -> Result<Option<Image>> {
        self.read(|conn| {
            let inode = Inode::get(conn, ino)?;
            match inode.manifest {
                Some(manifest) => find(conn, &inode, manifest),
                None => Ok(None),
            }
        })
    }

    /// True if the row of a chunk file has this name.
    pub fn is_chunk_file(&self, file: ChunkFileId, name: &str) -> Result<bool> {
        self.read(|conn| {
            let mut statement = conn.prepare_cached("SELECT 1 FROM chunk_file WHERE id = ?1 AND name = ?2")?;
            Ok(statement.query_row(params![file, name], |_| Ok(())).optional()?.is_some())
        })
    }

    /// Ranges of a file that hold chunks which some target has not confirmed yet, up to the one that makes them more than
    /// `bytes_max` bytes.
    pub fn pinned(&self, file: ChunkFileId, bytes_max: u64) -> Result<Vec<Range<u64>>> {
        self.read(|conn| pinned(conn, file, bytes_max))
    }
}

fn find(conn: &Connection, inode: &Inode, manifest: ManifestId) -> Result<Option<Image>> {
    let mut extents = conn.prepare_cached(
        "SELECT offset, length, chunk, chunk_offset FROM extent WHERE manifest = ?1 ORDER BY offset LIMIT ?2",
    )?;
    let rows: Vec<(u64, u64, ChunkId, u64)> = extents
        .query_map(params![manifest, EXTENTS_MAX as i64 + 1], |row| {
            let number = |column| row.get::<_, i64>(column).map(|number| number as u64);
            Ok((number(0)?, number(1)?, row.get(2)?, number(3)?))
        })?
        .collect::<rusqlite::Result<_>>()?;
    let Some(&(first, _, chunk, chunk_offset)) = rows.first().filter(|_| rows.len() <= EXTENTS_MAX) else {
        return Ok(None);
    };
    let Some((file, name)) = candidate(conn, inode.ino, chunk, chunk_offset, first)? else { return Ok(None) };
    let mut locations = conn.prepare_cached(
        "SELECT chunk_offset, length, file_offset FROM location WHERE chunk = ?1 AND file = ?2 \
         AND chunk_offset < ?4 AND chunk_offset + length > ?3 ORDER BY chunk_offset",
    )?;
    let (mut gaps, mut end) = (Vec::new(), 0);
    for (offset, length, chunk, chunk_offset) in rows {
        if end < offset {
            gaps.push(end..offset);
        }
        end = offset + length;
        let (mut at, chunk_end) = (chunk_offset, chunk_offset + length);
        let mut parts = locations.query(params![chunk, file, at as i64, chunk_end as i64])?;
        while let Some(part) = parts.next()? {
            let number = |column| part.get::<_, i64>(column).map(|number| number as u64);
            let (part_offset, part_length, file_offset) = (number(0)?, number(1)?, number(2)?);
            // The same place in the file as in the inode, however far into the chunk.
            if part_offset > at || file_offset.wrapping_sub(part_offset) != offset.wrapping_sub(chunk_offset) {
                return Ok(None);
            }
            at = at.max(part_offset + part_length);
        }
        if at < chunk_end {
            return Ok(None);
        }
    }
    if end < inode.size {
        gaps.push(end..inode.size);
    }
    Ok((end <= inode.size).then_some(Image { file, name, generation: inode.generation, size: inode.size, gaps }))
}

/// The file of the inode itself that has this byte of a chunk at `offset`. One of another inode may become that one's
/// session's file again (P3).
fn candidate(
    conn: &Connection,
    ino: InodeId,
    chunk: ChunkId,
    chunk_offset: u64,
    offset: u64,
) -> Result<Option<(ChunkFileId, String)>> {
    let mut statement = conn.prepare_cached(
        "SELECT f.id, f.name FROM location l JOIN chunk_file f ON f.id = l.file \
         WHERE l.chunk = ?1 AND l.chunk_offset <= ?2 AND l.chunk_offset + l.length > ?2 \
         AND l.file_offset - l.chunk_offset = ?3 - ?2 ORDER BY f.id DESC",
    )?;
    let mut rows = statement.query(params![chunk, chunk_offset as i64, offset as i64])?;
    while let Some(row) = rows.next()? {
        let name: String = row.get(1)?;
        let session = Path::new(&name).file_name().and_then(SessionName::parse);
        if session.is_some_and(|session| session.ino == ino) {
            return Ok(Some((row.get(0)?, name)));
        }
    }
    Ok(None)
}

fn pinned(conn: &Connection, file: ChunkFileId, bytes_max: u64) -> Result<Vec<Range<u64>>> {
    let mut statement = conn.prepare_cached(&format!(
        "SELECT l.file_offset, l.length FROM location l JOIN chunk c ON c.id = l.chunk WHERE l.file = ?1 AND {PINNED}"
    ))?;
    let mut rows = statement.query([file])?;
    let (mut ranges, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let (offset, length) = (row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64);
        ranges.push(offset..offset + length);
        bytes += length;
        if bytes > bytes_max {
            break;
        }
    }
    Ok(ranges)
}

/// What was given up with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GivenUp {
    /// The copy has rows now.
    pub copied: bool,
    /// What the file took on disk, as far as a row counted it.
    pub bytes: u64,
}

impl Tx<'_> {
    /// Gives all rows of the file `name` to its copy. False: it has none any more.
    pub fn replace_file(&mut self, file: ChunkFileId, name: &str, copy: &str) -> Result<bool> {
        let replaced = self
            .conn()
            .prepare_cached("UPDATE chunk_file SET name = ?3 WHERE id = ?1 AND name = ?2")?
            .execute(params![file, name, copy])?;
        Ok(replaced > 0)
    }

    /// Takes the rows of a file, whose bytes will change; `copied` lies at the same offsets in the new file `copy` with
    /// `bytes` on disk, if anything does. `None`: something else is pinned by now, nothing was changed.
    pub fn give_up_file(
        &mut self,
        (file, name): (ChunkFileId, &str),
        copied: &[Range<u64>],
        copy: &str,
        bytes: u64,
    ) -> Result<Option<GivenUp>> {
        // The number of a row that went may be another file's by now.
        let mut known = self.conn().prepare_cached("SELECT 1 FROM chunk_file WHERE id = ?1 AND name = ?2")?;
        if known.query_row(params![file, name], |_| Ok(())).optional()?.is_none() {
            return Ok(Some(GivenUp { copied: false, bytes: 0 }));
        }
        drop(known);
        let pinned = pinned(self.conn(), file, u64::MAX)?;
        let is_copied =
            |range: &Range<u64>| copied.iter().any(|copy| copy.start <= range.start && range.end <= copy.end);
        if !pinned.iter().all(is_copied) {
            return Ok(None);
        }
        if !pinned.is_empty() {
            let copy = self.chunk_file(copy, bytes)?;
            self.conn()
                .prepare_cached(&format!(
                    "UPDATE location SET file = ?2 WHERE file = ?1 AND chunk IN \
                     (SELECT c.id FROM location l JOIN chunk c ON c.id = l.chunk WHERE l.file = ?1 AND {PINNED})"
                ))?
                .execute(params![file, copy])?;
        }
        self.conn().prepare_cached("DELETE FROM location WHERE file = ?1")?.execute([file])?;
        let gone = self.forget_file(file)?;
        Ok(Some(GivenUp { copied: !pinned.is_empty(), bytes: gone.map_or(0, |gone| gone.bytes) }))
    }
}
