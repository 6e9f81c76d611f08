//! Commit: sealed sessions become generations of their inodes, all that share a chunk in one transaction.
//!
//! Owns: chunk rows and their local ranges, the extents of the new manifests, filling the slots.
//! Does not own: syncing the chunk files, which must have happened before (S2), and what happens to the files after.
//!
//! - A session whose slot is gone (its inode lost its last name) is discarded; so nothing of it reaches a target, except
//!   as filler of a gathered chunk that others share.
//! - A chunk that exists already is the same object: it is named, not stored again, and revived if it was dead (T5). It
//!   counts as present on a target only with that target's bit (never assume).

use std::collections::{BTreeMap, HashMap};

use rusqlite::{OptionalExtension, params};

use super::extent::{self, ExtentRow, RefDeltas};
use super::{Error, Result, Tx};
use crate::format::record::{Change, Content, Extent};
use crate::id::{ChunkFileId, ChunkHash, ChunkId, InodeId, ManifestId, SessionId};

/// A hashed chunk and where its bytes lie in synced chunk files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedChunk {
    pub hash: ChunkHash,
    /// Bytes.
    pub length: u64,
    /// In order, without gaps, from 0 to `length`.
    pub pieces: Vec<SealedPiece>,
}

/// A range of a chunk in a chunk file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedPiece {
    pub chunk_offset: u64,
    /// Bytes.
    pub length: u64,
    /// Index into [`Batch::files`].
    pub file: usize,
    pub file_offset: u64,
    /// Of exactly these bytes (S5).
    pub crc32c: u32,
}

/// A run of a file's content in a sealed chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedExtent {
    pub offset: u64,
    pub length: u64,
    /// Index into [`Batch::chunks`].
    pub chunk: usize,
    pub chunk_offset: u64,
}

/// A sealed session, ready to be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedSession {
    pub session: SessionId,
    pub ino: InodeId,
    pub whole: bool,
    /// Bytes of the earlier content that may show through.
    pub base_limit: u64,
    /// Ascending and disjoint.
    pub extents: Vec<SealedExtent>,
    /// Ranges (offset, length) that became holes, apart from `extents`; empty for a whole session.
    pub zero: Vec<(u64, u64)>,
}

/// Sessions that are committed together, and the chunks they share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Chunk files by name, with their allocated bytes.
    pub files: Vec<(String, u64)>,
    pub chunks: Vec<SealedChunk>,
    pub sessions: Vec<SealedSession>,
}

/// What became of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Committed {
    /// Sessions that are the content of their inodes now.
    pub committed: Vec<SessionId>,
    /// Sessions whose inode has no name any more.
    pub discarded: Vec<SessionId>,
    /// For each file of the batch: its row, or `None` if no chunk lies in it and it may be removed.
    pub files: Vec<Option<ChunkFileId>>,
}

impl Committed {
    /// Adds what became of another group of the same batch.
    pub fn merge(&mut self, other: Committed) {
        self.committed.extend(other.committed);
        self.discarded.extend(other.discarded);
        for (file, more) in self.files.iter_mut().zip(other.files) {
            *file = file.or(more);
        }
    }
}

/// Sessions without a shared chunk that one transaction takes: it holds the writer for about 2 ms then (D8).
const GROUP_MIN: usize = 24;

impl Batch {
    /// Cuts the batch into what must be committed in one transaction each: sessions that share a chunk, so that nothing of
    /// a chunk can become useless, and its files go, while a session that lies in them still waits. Indices of sessions,
    /// each once; groups that need not be so small are put together.
    pub fn groups(&self) -> Vec<Vec<usize>> {
        let mut leader: Vec<usize> = (0..self.sessions.len()).collect();
        fn find(leader: &mut [usize], mut of: usize) -> usize {
            while leader[of] != of {
                leader[of] = leader[leader[of]];
                of = leader[of];
            }
            of
        }
        let mut first_of_chunk: HashMap<usize, usize> = HashMap::new();
        for (index, session) in self.sessions.iter().enumerate() {
            for extent in &session.extents {
                let first = *first_of_chunk.entry(extent.chunk).or_insert(index);
                let (a, b) = (find(&mut leader, first), find(&mut leader, index));
                leader[a.max(b)] = a.min(b);
            }
        }
        let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for index in 0..leader.len() {
            members.entry(find(&mut leader, index)).or_default().push(index);
        }
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for group in members.into_values() {
            match groups.last_mut() {
                Some(last) if last.len() + group.len() <= GROUP_MIN => last.extend(group),
                _ => groups.push(group),
            }
        }
        groups
    }
}

impl Tx<'_> {
    /// Makes the sealed sessions of a batch the content of their inodes.
    pub fn commit_content(&mut self, batch: &Batch) -> Result<Committed> {
        let all: Vec<usize> = (0..batch.sessions.len()).collect();
        self.commit_group(batch, &all)
    }

    /// The same for one of its groups ([`Batch::groups`]).
    pub fn commit_group(&mut self, batch: &Batch, group: &[usize]) -> Result<Committed> {
        let mut outcome = Committed { files: vec![None; batch.files.len()], ..Committed::default() };
        let mut deltas = RefDeltas::default();
        let mut chunks = Chunks { batch, rows: HashMap::new(), inserted: Inserted::default() };
        for session in group.iter().map(|index| &batch.sessions[*index]) {
            if self.commit_session(session, &mut chunks, &mut outcome.files, &mut deltas)? {
                outcome.committed.push(session.session);
            } else {
                self.delete_session(session.session)?;
                outcome.discarded.push(session.session);
            }
        }
        chunks.inserted.apply(self)?;
        deltas.apply(self)?;
        Ok(outcome)
    }

    fn commit_session(
        &mut self,
        session: &SealedSession,
        chunks: &mut Chunks<'_>,
        files: &mut [Option<ChunkFileId>],
        deltas: &mut RefDeltas,
    ) -> Result<bool> {
        let Some(slot) = self.slot_of(session.session)? else { return Ok(false) };
        let Some(mut inode) = self.find_inode(session.ino)? else { return Ok(false) };
        let mut content = Content {
            ino: session.ino,
            generation: slot.generation,
            whole: session.whole,
            size: slot.size,
            mtime: slot.mtime,
            ctime: slot.ctime,
            mode: None,
            chunks: Vec::new(),
            extents: Vec::with_capacity(session.extents.len()),
            zero: session.zero.clone(),
            part: None,
        };
        let manifest = match inode.manifest {
            Some(manifest) if !session.whole => manifest,
            old => {
                if let Some(old) = old {
                    self.give_up_manifest(old)?;
                }
                self.next_manifest()
            }
        };
        inode.manifest = Some(manifest);
        let named_before = deltas.net();
        if session.whole {
            inode.allocated = 0;
        } else {
            extent::cut(self, manifest, session.base_limit.min(slot.size), deltas)?;
            for &(offset, length) in &session.zero {
                extent::replace(self, manifest, offset, length, None, deltas)?;
            }
        }
        let mut named: HashMap<usize, u32> = HashMap::new();
        for piece in &session.extents {
            let id = chunks.store(self, piece.chunk, files)?;
            if session.whole {
                let row = ExtentRow {
                    offset: piece.offset,
                    length: piece.length,
                    chunk: id,
                    chunk_offset: piece.chunk_offset,
                };
                extent::insert(self, manifest, &row, deltas)?;
            } else {
                extent::replace(self, manifest, piece.offset, piece.length, Some((id, piece.chunk_offset)), deltas)?;
            }
            let chunk = *named.entry(piece.chunk).or_insert_with(|| {
                let sealed = &chunks.batch.chunks[piece.chunk];
                content.chunks.push((sealed.hash, sealed.length));
                content.chunks.len() as u32 - 1
            });
            push_merged(
                &mut content.extents,
                Extent { offset: piece.offset, length: piece.length, chunk, chunk_offset: piece.chunk_offset },
            );
        }
        // What was emptied since the slot was taken is emptied for these bytes, too (O5).
        self.follow_repacks(manifest, slot.seq, &content, deltas)?;
        inode.allocate(deltas.net() - named_before)?;
        self.end_slot(&slot, &Change::Content(content))?;
        self.delete_session(session.session)?;
        inode.update(self)?;
        Ok(true)
    }

    /// Gives up the extents of a manifest; [`Tx::release_given_up`] drops their references in batches (D8).
    pub(crate) fn give_up_manifest(&mut self, manifest: ManifestId) -> Result<()> {
        self.conn().prepare_cached("INSERT OR IGNORE INTO orphan (manifest) VALUES (?1)")?.execute([manifest])?;
        Ok(())
    }

    /// Releases at most `rows_max` references of given-up manifests; true while there is more (D8).
    pub fn release_given_up(&mut self, rows_max: u32) -> Result<bool> {
        let manifest: Option<ManifestId> = self
            .conn()
            .prepare_cached("SELECT manifest FROM orphan ORDER BY manifest LIMIT 1")?
            .query_row([], |row| row.get(0))
            .optional()?;
        let Some(manifest) = manifest else { return Ok(false) };
        let mut deltas = RefDeltas::default();
        if extent::release_batch(self, manifest, rows_max, &mut deltas)? {
            self.conn().prepare_cached("DELETE FROM orphan WHERE manifest = ?1")?.execute([manifest])?;
        }
        deltas.apply(self)?;
        Ok(true)
    }

    /// The row of a chunk file, made if it has none.
    pub(crate) fn chunk_file(&mut self, name: &str, bytes: u64) -> Result<ChunkFileId> {
        Ok(self
            .conn()
            .prepare_cached(
                "INSERT INTO chunk_file (name, bytes, mount) VALUES (?1, ?2, (SELECT mounts FROM counter)) \
                 ON CONFLICT (name) DO UPDATE SET bytes = ?2 RETURNING id",
            )?
            .query_row(params![name, bytes as i64], |row| row.get(0))?)
    }
}

/// The chunks of a batch, each stored when the first surviving session names it.
struct Chunks<'a> {
    batch: &'a Batch,
    rows: HashMap<usize, ChunkId>,
    inserted: Inserted,
}

/// Chunk rows that a transaction made and that no sum counts yet: a large file has hundreds.
#[derive(Debug, Default)]
#[must_use = "they are counted only by `apply`"]
struct Inserted {
    chunks: u64,
    bytes: u64,
}

impl Inserted {
    fn apply(&self, tx: &mut Tx<'_>) -> Result<()> {
        if self.chunks == 0 { Ok(()) } else { tx.chunks_inserted(self.chunks, self.bytes) }
    }
}

impl Chunks<'_> {
    fn store(&mut self, tx: &mut Tx<'_>, index: usize, files: &mut [Option<ChunkFileId>]) -> Result<ChunkId> {
        if let Some(&id) = self.rows.get(&index) {
            return Ok(id);
        }
        let chunk = &self.batch.chunks[index];
        let id = tx.store_chunk(chunk.hash, chunk.length, &mut self.inserted)?;
        for piece in &chunk.pieces {
            let (name, bytes) = &self.batch.files[piece.file];
            let file = match files[piece.file] {
                Some(file) => file,
                None => *files[piece.file].insert(tx.chunk_file(name, *bytes)?),
            };
            tx.conn()
                .prepare_cached(
                    "INSERT OR REPLACE INTO location (chunk, file, chunk_offset, length, file_offset, crc32c) \
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )?
                .execute(params![
                    id,
                    file,
                    piece.chunk_offset as i64,
                    piece.length as i64,
                    piece.file_offset as i64,
                    piece.crc32c
                ])?;
        }
        self.rows.insert(index, id);
        Ok(id)
    }
}

impl Tx<'_> {
    /// Hash and length of a chunk.
    pub(super) fn chunk_name(&self, chunk: ChunkId) -> Result<(ChunkHash, u64)> {
        Ok(self
            .conn()
            .prepare_cached("SELECT hash, length FROM chunk WHERE id = ?1")?
            .query_row([chunk], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64)))?)
    }

    /// As [`Tx::store_chunk`], and counted at once.
    pub(super) fn store_one_chunk(&mut self, hash: ChunkHash, length: u64) -> Result<ChunkId> {
        let mut inserted = Inserted::default();
        let id = self.store_chunk(hash, length, &mut inserted)?;
        inserted.apply(self)?;
        Ok(id)
    }

    /// The row of a chunk, made if it is new. The caller adds references in the same transaction, which revive a dead one.
    fn store_chunk(&mut self, hash: ChunkHash, length: u64, inserted: &mut Inserted) -> Result<ChunkId> {
        let known: Option<(ChunkId, i64, bool)> = self
            .conn()
            .prepare_cached("SELECT id, length, dead_seq IS NOT NULL FROM chunk WHERE hash = ?1")?
            .query_row([hash], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        match known {
            Some((id, known, dead)) if known as u64 == length => {
                if dead {
                    self.chunk_revived(id)?;
                }
                Ok(id)
            }
            Some((_, known, _)) => {
                Err(Error::Damaged(format!("chunk {hash} has {known} bytes in its row and {length} by its content")))
            }
            None => {
                let id = self
                    .conn()
                    .prepare_cached(
                        "INSERT INTO chunk (hash, length, dead_seq, bytes_referenced, incomplete) \
                         VALUES (?1, ?2, NULL, 0, 1) RETURNING id",
                    )?
                    .query_row(params![hash, length as i64], |row| row.get(0))?;
                inserted.chunks += 1;
                inserted.bytes += length;
                Ok(id)
            }
        }
    }
}

/// Appends an extent, merged with the one before if it goes on in the same chunk (O4).
pub(super) fn push_merged(extents: &mut Vec<Extent>, next: Extent) {
    if let Some(last) = extents.last_mut()
        && last.chunk == next.chunk
        && last.offset + last.length == next.offset
        && last.chunk_offset + last.length == next.chunk_offset
    {
        last.length += next.length;
    } else {
        extents.push(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batch(chunks_of: &[Vec<usize>]) -> Batch {
        let session = |(index, chunks): (usize, &Vec<usize>)| SealedSession {
            session: SessionId(index as u64),
            ino: InodeId(index as u64 + 2),
            whole: true,
            base_limit: 0,
            extents: chunks
                .iter()
                .map(|&chunk| SealedExtent { offset: 0, length: 1, chunk, chunk_offset: 0 })
                .collect(),
            zero: Vec::new(),
        };
        Batch { sessions: chunks_of.iter().enumerate().map(session).collect(), ..Batch::default() }
    }

    #[test]
    fn d8_sessions_without_a_shared_chunk_are_committed_a_few_at_a_time() {
        let groups = batch(&(0..100).map(|index| vec![index]).collect::<Vec<_>>()).groups();
        assert_eq!(groups.len(), 100usize.div_ceil(GROUP_MIN));
    }

    proptest! {
        #[test]
        fn sessions_that_share_a_chunk_are_in_one_group(
            chunks_of in proptest::collection::vec(proptest::collection::vec(0..40usize, 0..3), 0..60),
        ) {
            let groups = batch(&chunks_of).groups();
            let mut seen: Vec<usize> = groups.concat();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..chunks_of.len()).collect::<Vec<_>>(), "each once");
            let group_of = |index: usize| groups.iter().position(|group| group.contains(&index));
            for a in 0..chunks_of.len() {
                for b in 0..a {
                    if chunks_of[a].iter().any(|chunk| chunks_of[b].contains(chunk)) {
                        prop_assert_eq!(group_of(a), group_of(b));
                    }
                }
            }
        }
    }
}
