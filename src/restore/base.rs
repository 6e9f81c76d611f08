//! The base: a checkpoint, fetched, unpacked and imported.
//!
//! Owns: fetching its parts within what `complete.json` says, unpacking the database, filling its open slots.
//! Does not own: which checkpoint (`plan`), what its rows must be (`meta::import`).
//!
//! Everything is bounded before it is believed: parts have a stated length and hash, the stream has a stated length, and
//! `complete.json` was refused already if that length is more than a hard ratio of the parts (D5).

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use futures::{StreamExt, stream};

use super::evidence::{self, CheckpointSeen};
use super::{Error, Source};
use crate::format::checkpoint::{self, PART_BYTES_MAX, Part};
use crate::format::{self, key};
use crate::id::FilesystemId;
use crate::meta::import::{Expected, Imported, import};
use crate::meta::{self, Meta};

/// Parts fetched at the same time; each may be 64 MiB.
const FETCHES: usize = 2;

/// A checkpoint that cannot be used, or a restore that cannot go on.
pub(crate) enum Failure {
    /// Something is wrong with this checkpoint: try an older one.
    Unusable(String),
    /// The source or this machine fails.
    Fatal(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Fatal(error)
    }
}

impl From<meta::Error> for Failure {
    fn from(error: meta::Error) -> Failure {
        match error {
            meta::Error::Checkpoint(_) => Failure::Unusable(error.to_string()),
            error => Failure::Fatal(error.into()),
        }
    }
}

impl From<format::Error> for Failure {
    fn from(error: format::Error) -> Failure {
        Failure::Unusable(error.to_string())
    }
}

/// Makes a store at `store` from a checkpoint; `scratch` is an empty directory.
pub(crate) async fn fetch(
    source: &Source,
    filesystem: FilesystemId,
    seen: &CheckpointSeen,
    scratch: &Path,
    store: &Path,
) -> Result<(Meta, Imported), Failure> {
    let complete = &seen.complete;
    let slots = part(source, seen, &complete.slots).await?;
    let mut parts = stream::iter(&complete.parts)
        .map(|wanted| async move { (wanted, part(source, seen, wanted).await) })
        .buffered(FETCHES);
    let mut files = VecDeque::new();
    while let Some((wanted, bytes)) = parts.next().await {
        let path = scratch.join(wanted.file.to_string());
        std::fs::write(&path, bytes?).map_err(|e| Error::io("write", &path, e))?;
        files.push_back(path);
    }
    drop(parts);
    let database = scratch.join("meta.sqlite");
    unpack(files, complete.sqlite_bytes, &database)?;

    let expected = Expected { filesystem, seq: complete.seq };
    let (meta, imported) = import(&database, &expected, store)?;
    // The count is of lines; the records are matched with the rows one by one.
    meta.fill_slots(&imported.slots, || {
        let unreadable = |error: format::Error| meta::Error::Checkpoint(error.to_string());
        let records = checkpoint::decode_slots(&slots, complete.slots_count).map_err(unreadable)?;
        Ok(records.map(move |record| record.map_err(unreadable)))
    })?;
    std::fs::remove_file(&database).map_err(|e| Error::io("remove", &database, e))?;
    Ok((meta, imported))
}

async fn part(source: &Source, seen: &CheckpointSeen, wanted: &Part) -> Result<bytes::Bytes, Failure> {
    let key = key::checkpoint_part(seen.seq, seen.export, wanted.file);
    let bytes = evidence::fetch(source, &key, wanted.bytes.min(PART_BYTES_MAX)).await??;
    wanted.verify(&bytes).map_err(|error| error.within(&key))?;
    Ok(bytes)
}

/// Unpacks the parts, which are one stream, and removes each when it is read.
fn unpack(files: VecDeque<PathBuf>, bytes: u64, database: &Path) -> Result<(), Failure> {
    let unusable = |why: String| Failure::Unusable(format!("meta.sqlite.zst: {why}"));
    let file = File::create_new(database).map_err(|e| Error::io("create", database, e))?;
    let mut file = io::BufWriter::with_capacity(1 << 20, file);
    let mut decoder =
        zstd::stream::read::Decoder::new(Parts { files, open: None }).map_err(|e| unusable(e.to_string()))?;
    let mut buffer = vec![0; 1 << 20];
    let mut left = bytes;
    // What comes after the stated length is not looked at.
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = decoder.read(&mut buffer[..most]).map_err(|e| unusable(e.to_string()))?;
        if read == 0 {
            return Err(unusable(format!("holds {left} bytes fewer than {bytes}")));
        }
        left -= read as u64;
        file.write_all(&buffer[..read]).map_err(|e| Error::io("write", database, e))?;
    }
    file.into_inner().map_err(|e| Error::io("write", database, e.into_error()))?;
    Ok(())
}

/// The parts, one after the other.
struct Parts {
    files: VecDeque<PathBuf>,
    open: Option<(File, PathBuf)>,
}

impl Read for Parts {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some((file, path)) = &mut self.open {
                let read = file.read(buffer)?;
                if read > 0 || buffer.is_empty() {
                    return Ok(read);
                }
                std::fs::remove_file(path)?;
                self.open = None;
            }
            let Some(path) = self.files.pop_front() else { return Ok(0) };
            self.open = Some((File::open(&path)?, path));
        }
    }
}
