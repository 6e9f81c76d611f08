//! Assembling the bytes of a read.
//!
//! Owns: asking layers and rows, reading local files, turning what is not local into a future.
//! Does not own: fetching (`fetch`), handles (`vfs`).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use rustix::io::Errno;

use super::ahead::Ahead;
use super::fetch::{Fetcher, Wanted};
use crate::chunk::evict::Evictor;
use crate::chunk::open::OpenFiles;
use crate::id::{ChunkFileId, InodeId};
use crate::meta::location::Piece;
use crate::meta::{Error, Meta};
use crate::write::Files;
use crate::write::io::{From, Planned};

/// How often a read plans anew because a file it planned with was evicted meanwhile.
const ATTEMPTS: usize = 8;

/// Reads file content.
pub struct Reader {
    pub meta: Arc<Meta>,
    pub files: Arc<Files>,
    pub open_files: Arc<OpenFiles>,
    pub evictor: Arc<Evictor>,
    pub fetcher: Arc<Fetcher>,
    pub chunk_size: u64,
    ahead: Mutex<Ahead>,
}

/// What a read came to.
pub enum Outcome {
    /// The buffer holds the bytes.
    Ready,
    /// Some chunks come from a target: the future gives all bytes of the read. Its deadline is the fetcher's.
    Pending(BoxFuture<'static, Result<Vec<u8>, Errno>>),
}

impl Reader {
    /// A reader over these parts.
    pub fn new(
        meta: Arc<Meta>,
        files: Arc<Files>,
        open_files: Arc<OpenFiles>,
        evictor: Arc<Evictor>,
        fetcher: Arc<Fetcher>,
        chunk_size: u64,
    ) -> Reader {
        Reader { meta, files, open_files, evictor, fetcher, chunk_size, ahead: Mutex::default() }
    }

    /// Reads `range` of `ino` into `buffer`, cut at the end of the file.
    pub fn read(&self, ino: InodeId, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<Outcome, Error> {
        let mut absent = io::Error::from(io::ErrorKind::NotFound);
        let mut attempt = 0;
        while attempt < ATTEMPTS {
            buffer.clear();
            let mut missing = Vec::new();
            let lending = self.open_files.files().lending();
            let filled = lending.undisturbed(|| self.fill(ino, range.clone(), buffer, &mut missing));
            // P3: a file that this read found by its rows may be a session's by now, with other bytes. That is no failure
            // to be counted: each time, somebody else got on.
            let Some(filled) = filled else { continue };
            attempt += 1;
            match filled {
                Ok(()) if missing.is_empty() => return Ok(Outcome::Ready),
                Ok(()) => return Ok(self.pend(ino, range, std::mem::take(buffer), missing)),
                // Evicted or discarded between plan and open: the rows say something else by now.
                Err(Failed::Io(error)) if error.kind() == io::ErrorKind::NotFound => absent = error,
                Err(Failed::Absent(piece, error)) => {
                    absent = error;
                    // Gone from the disk by other hands, or the disk does not give it: what targets hold is fetched from
                    // them. What is left of the file stays where it is, for recovery to keep aside (S7).
                    let for_good = absent.kind() != io::ErrorKind::NotFound || attempt + 1 == ATTEMPTS;
                    if for_good && !lending.is_lent(piece) && self.meta.evict(piece)?.is_some() {
                        tracing::error!(error = %absent, "a local chunk file cannot be read; its chunks are fetched");
                    }
                }
                Err(Failed::Io(source)) => return Err(Error::Io { what: format!("read of inode {ino}"), source }),
                Err(Failed::Meta(error)) => return Err(error),
            }
        }
        Err(Error::Io { what: format!("read of inode {ino}"), source: absent })
    }

    fn fill(
        &self,
        ino: InodeId,
        range: Range<u64>,
        buffer: &mut Vec<u8>,
        missing: &mut Vec<Piece>,
    ) -> Result<(), Failed> {
        let Some(plan) = self.files.plan(ino, range.clone()) else {
            let (size, pieces) = self.meta.content(ino, range.clone())?;
            let end = range.end.min(size).max(range.start);
            buffer.resize((end - range.start) as usize, 0);
            return self.fill_pieces(pieces, range.start, buffer, missing);
        };
        let end = plan.last().map_or(range.start, |segment| segment.range.end);
        buffer.resize((end - range.start) as usize, 0);
        for Planned { range: part, from } in plan {
            let slice = &mut buffer[(part.start - range.start) as usize..(part.end - range.start) as usize];
            match from {
                From::Staged(file) => read_or_zeros(&file, part.start, slice)?,
                From::Frozen(path) => read_or_zeros(&*self.open_files.get(&path)?, part.start, slice)?,
                From::Hole => {}
                From::Manifest => {
                    let (_, pieces) = self.meta.content(ino, part)?;
                    self.fill_pieces(pieces, range.start, buffer, missing)?;
                }
            }
        }
        Ok(())
    }

    fn fill_pieces(
        &self,
        pieces: Vec<Piece>,
        start: u64,
        buffer: &mut [u8],
        missing: &mut Vec<Piece>,
    ) -> Result<(), Failed> {
        for piece in pieces {
            let Some(local) = &piece.local else {
                missing.push(piece);
                continue;
            };
            let slice = &mut buffer[(piece.range.start - start) as usize..(piece.range.end - start) as usize];
            let file = match self.open_files.get(&local.name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(Failed::Absent(local.file, error));
                }
                result => result?,
            };
            file.read_exact_at(slice, local.offset).map_err(|error| Failed::Absent(local.file, error))?;
            self.evictor.used(local.file);
        }
        Ok(())
    }

    fn pend(&self, ino: InodeId, range: Range<u64>, mut buffer: Vec<u8>, missing: Vec<Piece>) -> Outcome {
        let read = range.start..range.start + buffer.len() as u64;
        let ahead = self.ahead.lock().note(ino, read, self.chunk_size);
        // Who begins at the beginning will want the rest.
        let random = ahead.is_empty() && range.start > 0;
        let flights: Vec<_> = missing
            .into_iter()
            .map(|piece| {
                let part = piece.chunk_offset..piece.chunk_offset + (piece.range.end - piece.range.start);
                let flight = match random {
                    true => self.fetcher.part(wanted(&piece), part),
                    false => self.fetcher.within(wanted(&piece), part),
                };
                (flight, piece.range)
            })
            .collect();
        self.fetch_ahead(ino, ahead);
        Outcome::Pending(Box::pin(async move {
            for (flight, place) in flights {
                let from = flight.await?;
                buffer[(place.start - range.start) as usize..][..from.len()].copy_from_slice(&from);
            }
            Ok(buffer)
        }))
    }

    /// Starts flights for what a sequential reader will want next; nobody waits for them.
    fn fetch_ahead(&self, ino: InodeId, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let Ok((_, pieces)) = self.meta.content(ino, range) else { return };
        for piece in pieces.iter().filter(|piece| piece.local.is_none()) {
            drop(self.fetcher.fetch(wanted(piece)));
        }
    }
}

fn wanted(piece: &Piece) -> Wanted {
    Wanted { chunk: piece.chunk, hash: piece.hash, length: piece.chunk_length, placed: piece.placed }
}

enum Failed {
    Io(io::Error),
    /// A chunk file that has a row, and does not have, or give, its bytes.
    Absent(ChunkFileId, io::Error),
    Meta(Error),
}

impl std::convert::From<io::Error> for Failed {
    fn from(error: io::Error) -> Failed {
        Failed::Io(error)
    }
}

impl std::convert::From<Error> for Failed {
    fn from(error: Error) -> Failed {
        Failed::Meta(error)
    }
}

/// Reads from a session's file; what lies beyond its end is zeros.
fn read_or_zeros(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    buffer[filled..].fill(0);
    Ok(())
}
