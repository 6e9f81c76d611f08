//! Carrying out one rewrite: verified bytes of the sources, a new chunk file, synced, and the references moved to it.
//!
//! Owns: reading the sources, the file of the new chunk, the order of the steps.
//! Does not own: what is rewritten (`plan`), the transactions (`meta::repack`), uploading the new chunk (`replication`).
//!
//! ```text
//! sources, checked against their names ─▶ file written ─▶ synced, its entry too ─▶ references moved, few at a time
//! ```
//!
//! - Bytes that get a new name are checked against their old one first, from whatever source they come: nothing wrong is
//!   ever made right by being renamed.
//! - A commit names only synced bytes (S2).
//! - No local file is changed; that of an emptied chunk leaves as any other does (D1).

use std::io::Write;
use std::sync::Arc;

use super::plan::{Rewrite, Source};
use crate::chunk::evict::Evictor;
use crate::chunk::file::fetched_path;
use crate::chunk::open::OpenFiles;
use crate::chunk::space::{Admission, Space};
use crate::id::ChunkHash;
use crate::meta::repack::NewChunk;
use crate::meta::{self, Meta};
use crate::read::fetch::{Fetcher, Wanted};
use crate::replication::source;
use crate::testing::failpoint::{self, Point};

/// Why chunks were not rewritten.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Our own store failed.
    #[error(transparent)]
    Meta(#[from] meta::Error),
    /// Neither this machine nor a target gives the bytes.
    #[error("no source gives chunk {0}")]
    NoSource(ChunkHash),
    /// The new file could not be made; nothing refers to it.
    #[error("make a chunk file: {0}")]
    Io(#[from] std::io::Error),
}

/// What a rewrite came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rewritten {
    /// Bytes of the new chunk; 0 if nothing refers to the sources any more.
    pub written: u64,
    /// Bytes that came from targets.
    pub fetched: u64,
    /// Bytes of references that moved.
    pub moved: u64,
}

/// Rewrites.
pub struct Rewriter {
    pub meta: Arc<Meta>,
    pub open_files: Arc<OpenFiles>,
    pub space: Arc<Space>,
    pub evictor: Arc<Evictor>,
    pub fetcher: Arc<Fetcher>,
}

impl Rewriter {
    /// True if so many bytes may be added to the local disk.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.space.admit(bytes) == Admission::Go
    }

    /// True if every pinning target has all the sources: what is on its way to one is not rewritten.
    pub fn is_complete(&self, rewrite: &Rewrite) -> meta::Result<bool> {
        for source in &rewrite.sources {
            if !self.meta.is_chunk_complete(source.chunk)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes the new chunk and moves the references. Blocks on the disk and on targets; not for a worker of a runtime.
    pub fn rewrite(&self, rewrite: &Rewrite) -> Result<Rewritten, Error> {
        let mut done = Rewritten::default();
        let length = usize::try_from(rewrite.length).map_err(std::io::Error::other)?;
        let mut bytes = vec![0; length];
        let mut hashes = Vec::new();
        for source in &rewrite.sources {
            let Some((hash, fetched)) = self.collect(source, &mut bytes)? else { return Ok(done) };
            hashes.push(hash);
            done.fetched += fetched;
        }
        let hash = ChunkHash::of(&bytes);
        let crc32c = crate::write::seal::crc32c(&bytes);
        let new = NewChunk { hash, length: rewrite.length, file: fetched_path(&hash), crc32c };
        // Until the file has a row, nobody else may give or take its name.
        let mut naming = Some(self.evictor.give_names());
        let known = self.meta.has_chunk_file(&new.file)?;
        let remove = || if known { Ok(()) } else { self.open_files.files().remove(&new.file) };
        if let Err(error) = self.store(&new, &bytes, known) {
            remove()?;
            return Err(error.into());
        }
        failpoint::pass(Point::RepackFile);
        for (source, from) in rewrite.sources.iter().zip(hashes) {
            let mut start = 0;
            for &end in &source.ends {
                let moved = self.meta.write(|tx| tx.repack(from, &source.moves[start..end], &new))?;
                start = end;
                done.moved += moved;
                if moved > 0 && naming.take().is_some() {
                    done.written = new.length;
                    if !known {
                        self.space.add(new.length as i64);
                    }
                    failpoint::pass(Point::Repack);
                }
            }
        }
        if naming.is_some() {
            remove()?;
        }
        Ok(done)
    }

    /// Copies what of a source goes into the new chunk; returns the source's name, and how much was fetched for it. `None`:
    /// the source is gone.
    fn collect(&self, source: &Source, into: &mut [u8]) -> Result<Option<(ChunkHash, u64)>, Error> {
        let lending = self.open_files.files().lending();
        let before = lending.moment();
        let Some(sources) = self.meta.chunk_sources(source.chunk)? else { return Ok(None) };
        let (_, _, mount) = self.meta.writer_identity()?;
        let (local, findings) = source::open(&mut source::Files::new(self.open_files.files()), mount, &sources);
        // P3: a file of it that was thawed meanwhile may change.
        let local = local.filter(|_| !lending.thawed_since(before));
        for finding in findings {
            tracing::error!(%finding, "a local copy is wrong; another is used for its new chunk");
        }
        let wanted = Wanted {
            chunk: sources.chunk.id,
            hash: sources.chunk.hash,
            length: sources.chunk.length,
            placed: sources.placed,
        };
        // Of a file of this mount only checksums were compared; what gets a new name is compared with its old one.
        let local = local.map(|checked| checked.into_body().parts().to_vec());
        let (parts, fetched) = match local.filter(|parts| source::name_of(parts) == wanted.hash) {
            Some(parts) => (parts, 0),
            None => {
                let fetched = self.fetcher.runtime().block_on(self.fetcher.fetch(wanted));
                (vec![fetched.map_err(|_| Error::NoSource(wanted.hash))?], wanted.length)
            }
        };
        let mut part_start = 0;
        let mut moves = source.moves.iter().peekable();
        let mut at = 0;
        for part in &parts {
            let part_end = part_start + part.len() as u64;
            while let Some(piece) = moves.peek() {
                let from = (piece.offset + at).max(part_start);
                let to = (piece.offset + piece.length).min(part_end);
                if from < to {
                    let target = (piece.chunk_offset + (from - piece.offset)) as usize;
                    let count = (to - from) as usize;
                    into[target..target + count].copy_from_slice(&part[(from - part_start) as usize..][..count]);
                    at += to - from;
                }
                if at < piece.length {
                    break;
                }
                at = 0;
                moves.next();
            }
            part_start = part_end;
        }
        // A reference that leaves its chunk is damage, and not a reason to write zeros.
        match moves.next() {
            None => Ok(Some((wanted.hash, fetched))),
            Some(_) => Err(Error::NoSource(wanted.hash)),
        }
    }

    /// Makes sure that the file of the new chunk is there, whole and synced.
    fn store(&self, new: &NewChunk, bytes: &[u8], known: bool) -> std::io::Result<()> {
        let files = self.open_files.files();
        if known {
            files.open(&new.file)?.sync_data()?;
        } else {
            // What stands there without a row was cut off in the middle.
            files.remove(&new.file)?;
            let mut file = files.create(&new.file)?;
            file.write_all(bytes)?;
            file.sync_data()?;
        }
        files.sync_entry(&new.file)
    }
}
