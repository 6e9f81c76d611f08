//! Evidence: what one source says it holds, read and not yet judged.
//!
//! Owns: reading `tandemfs.json`, `writers/`, the listing of the journal, the `complete.json` of checkpoints.
//! Does not own: which of it counts (`lineage`, `plan`), segments and databases themselves (`journal`, `base`).
//!
//! Objects that no reader knows are ignored and counted. An object that cannot be read is reported and left out; that a
//! source does not answer is an error, because an older state would be restored without need.

use std::collections::BTreeMap;

use futures::{StreamExt, stream};

use super::lineage::{Announced, WriterSeen};
use super::{Error, Source, Unproven};
use crate::format;
use crate::format::checkpoint::{COMPLETE_BYTES_MAX, Complete};
use crate::format::key::{self, CheckpointFile, Key};
use crate::format::superblock::{self, Superblock};
use crate::format::writer::{self, Writer};
use crate::id::{Epoch, ExportId, FilesystemId, SegmentNumber, Seq, WriterId};
use crate::target::{Kind, Listed};

/// Objects listed under one prefix before the listing is called endless: years of segments that nobody trimmed.
const OBJECTS_MAX: usize = 4_000_000;
/// Of those, announcements: there is one for each mount.
const WRITERS_MAX: usize = 100_000;
/// Complete checkpoints that are looked at, the newest: two are kept, and some may be of discarded history.
const CHECKPOINTS_MAX: usize = 64;
/// Objects that are reported one by one.
const NOTED_MAX: usize = 1000;
/// Small objects fetched at the same time.
const FETCHES: usize = 16;

/// What one source holds, as it says itself.
#[derive(Debug, Clone)]
pub(crate) struct Evidence {
    pub superblock: Superblock,
    pub writers: Vec<WriterSeen>,
    pub segments: BTreeMap<(SegmentNumber, Epoch, WriterId), u64>,
    /// Checkpoints with a `complete.json` that can be read, ascending.
    pub checkpoints: Vec<CheckpointSeen>,
    /// Objects that no reader knows.
    pub foreign: u64,
    pub unproven: Vec<Unproven>,
}

/// A complete checkpoint.
#[derive(Debug, Clone)]
pub(crate) struct CheckpointSeen {
    pub seq: Seq,
    pub export: ExportId,
    pub complete: Complete,
}

/// Reads who a source is.
pub(crate) async fn identify(source: &Source) -> Result<Superblock, Error> {
    match source.target.get(key::SUPERBLOCK, superblock::BYTES_MAX).await {
        Ok(bytes) => Superblock::decode(&bytes).map_err(|error| Error::Format { name: source.name.clone(), error }),
        Err(error) if error.kind == Kind::NotFound => Err(Error::NotATarget { name: source.name.clone() }),
        Err(error) => Err(source.failed(error)),
    }
}

/// Reads what a source holds, apart from chunks.
pub(crate) async fn read(source: &Source, superblock: Superblock) -> Result<Evidence, Error> {
    let mut evidence = Evidence {
        superblock,
        writers: vec![],
        segments: BTreeMap::new(),
        checkpoints: vec![],
        foreign: 0,
        unproven: vec![],
    };
    let mut writers: BTreeMap<(Epoch, WriterId), Option<Announced>> = BTreeMap::new();
    let mut announcements = vec![];
    list(source, key::WRITERS, WRITERS_MAX, |object| match key::parse(&object.key) {
        Key::Writer { epoch, writer } => announcements.push((epoch, writer)),
        _ => evidence.foreign += 1,
    })
    .await?;
    list(source, key::JOURNAL, OBJECTS_MAX, |object| match key::parse(&object.key) {
        Key::Segment { epoch, writer, n } => {
            writers.entry((epoch, writer)).or_default();
            evidence.segments.insert((n, epoch, writer), object.length);
        }
        _ => evidence.foreign += 1,
    })
    .await?;
    let mut completes = vec![];
    list(source, key::CHECKPOINTS, OBJECTS_MAX, |object| match key::parse(&object.key) {
        Key::Checkpoint { seq, export, file: CheckpointFile::Complete } => completes.push((seq, export)),
        // Parts are found by what `complete.json` says of them; without one they are nobody's yet.
        Key::Checkpoint { .. } => {}
        _ => evidence.foreign += 1,
    })
    .await?;
    // Keys ascend by seq.
    completes.drain(..completes.len().saturating_sub(CHECKPOINTS_MAX));
    announcements.sort_unstable();
    let newest = announcements.last().copied();

    let filesystem = evidence.superblock.filesystem;
    let mut fetched = stream::iter(announcements)
        .map(|(epoch, writer)| async move {
            let key = key::writer(epoch, writer);
            (epoch, writer, fetch(source, &key, writer::BYTES_MAX).await)
        })
        .buffered(FETCHES);
    while let Some((epoch, writer, bytes)) = fetched.next().await {
        // Even one that cannot be read holds its epoch.
        let announced = writers.entry((epoch, writer)).or_default();
        let decoded = bytes?.and_then(|bytes| {
            Writer::decode(&bytes, epoch, writer).and_then(|found| {
                of_filesystem(&key::writer(epoch, writer), filesystem, found.filesystem)?;
                Ok(found)
            })
        });
        match decoded {
            Ok(found) => {
                // Of thousands of writers only the newest is asked whose history this is.
                let Writer { host, started, parent, mut history, .. } = found;
                if newest != Some((epoch, writer)) {
                    history = vec![];
                }
                *announced = Some(Announced { host, started, parent, history });
            }
            Err(error) => evidence.note(source, error)?,
        }
    }
    drop(fetched);
    evidence.writers =
        writers.into_iter().map(|((epoch, writer), announced)| WriterSeen { epoch, writer, announced }).collect();

    let mut fetched = stream::iter(completes)
        .map(|(seq, export)| async move {
            (seq, export, fetch(source, &key::complete(seq, export), COMPLETE_BYTES_MAX).await)
        })
        .buffered(FETCHES);
    while let Some((seq, export, bytes)) = fetched.next().await {
        let decoded = bytes?.and_then(|bytes| {
            let complete = Complete::decode(&bytes, seq, export)?;
            of_filesystem(&key::complete(seq, export), filesystem, complete.filesystem)?;
            Ok(complete)
        });
        match decoded {
            Ok(complete) => evidence.checkpoints.push(CheckpointSeen { seq, export, complete }),
            Err(error) => evidence.note(source, error)?,
        }
    }
    drop(fetched);
    evidence.checkpoints.sort_by_key(|checkpoint| (checkpoint.seq, checkpoint.export));
    Ok(evidence)
}

impl Evidence {
    /// True if somebody wrote here.
    pub fn has_history(&self) -> bool {
        !self.segments.is_empty() || !self.checkpoints.is_empty()
    }

    /// Reports an object that is left out. One of a later format stops the reader: what it means is not known.
    fn note(&mut self, source: &Source, error: format::Error) -> Result<(), Error> {
        if let format::Error::Unsupported { .. } = error {
            return Err(Error::Format { name: source.name.clone(), error });
        }
        if self.unproven.len() < NOTED_MAX {
            // Parsers quote what they refuse.
            let why = error.to_string().chars().take(300).collect();
            self.unproven.push(Unproven::Object { source: source.name.clone(), why });
        }
        Ok(())
    }
}

fn of_filesystem(place: &str, expected: FilesystemId, found: FilesystemId) -> format::Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(format::Error::Foreign {
        place: place.into(),
        what: "filesystem",
        expected: expected.to_string(),
        found: found.to_string(),
    })
}

/// Lists all objects under a prefix, at most `max`. What is kept of each is up to `each`: keys may be of any length.
pub(crate) async fn list(
    source: &Source,
    prefix: &str,
    max: usize,
    mut each: impl FnMut(&Listed),
) -> Result<(), Error> {
    let mut seen = 0;
    let mut after: Option<String> = None;
    loop {
        let page = source.target.list(prefix, after.as_deref()).await.map_err(|error| source.failed(error))?;
        page.objects.iter().for_each(&mut each);
        seen += page.objects.len();
        // A listing that does not go forward would never end.
        match page.next {
            Some(next) if after.as_ref().is_none_or(|after| next > *after) && seen < max => after = Some(next),
            Some(_) => return Err(Error::Endless { name: source.name.clone(), prefix: prefix.into() }),
            None => return Ok(()),
        }
    }
}

/// Fetches an object. The outer error is that the source fails; the inner one that the object is missing or too long.
pub(crate) async fn fetch(source: &Source, key: &str, length_max: u64) -> Result<format::Result<bytes::Bytes>, Error> {
    match source.target.get(key, length_max).await {
        Ok(bytes) => Ok(Ok(bytes)),
        Err(error) if matches!(error.kind, Kind::NotFound | Kind::Invalid) => {
            Ok(Err(format::Error::malformed(key, error.message)))
        }
        Err(error) => Err(source.failed(error)),
    }
}
