//! Restore: the local state rebuilt from targets alone, after the machine that had it is lost (D5, D6).
//!
//! Owns: reading what targets hold, choosing the history that counts, a new state directory that goes on from it.
//! Does not own: the bytes of files (they are read from the targets when somebody reads the file), the mount.
//!
//! ```text
//! evidence  superblocks, writers, listings of segments, complete.json      (I/O)
//! lineage   whose history counts, where it was cut                         (pure)
//! plan      which checkpoint, which segments                               (pure)
//! base      parts ─▶ database ─▶ import ─▶ slots        the next older one if it is not sound
//! journal   segments ─▶ chain ─▶ whole units ─▶ replay  to the last whole point that can be proved
//! finish    rows of the targets, bits of the chunks they list, counters
//! ```
//!
//! - Nothing is written to any target (D6). A source that holds everything goes on from its newest segment at the next
//!   mount; one that lacks something is resynced.
//! - What cannot be proved ends the replay there and is named in the report ([`Unproven`]); the restore succeeds with the
//!   state before it, which is one that a power cut could have left (O6). A source that does not answer is an error.
//! - The state directory appears whole or not at all: it is built beside its place and renamed.
//! - Restoring all bytes at once (`--full`) needs nothing from here: it reads every chunk of the new state directory that
//!   is not local through the reader, like any other reader.

mod base;
mod evidence;
mod journal;
mod lineage;
mod plan;
mod seqs;
pub mod standing;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use futures::future::try_join_all;
use serde::Serialize;

use crate::format::key::{self, Key};
use crate::format::segment::Place;
use crate::format::{self, superblock::Superblock};
use crate::id::{Epoch, ExportId, FilesystemId, Hash, SegmentNumber, Seq, TargetBit, TargetId, WriterId};
use crate::meta::restored::{Claimed, KnownWriter, SourceRow};
use crate::meta::{self, Created, Meta};
use crate::target::{self, DynTarget};
use crate::testing::failpoint::{self, Point};
use evidence::CheckpointSeen;
use journal::{End, State};
use lineage::Lineage;
pub use lineage::TwoWriters;
use plan::{Judged, Run};
use seqs::SeqSet;

/// Bytes of a full chunk where no checkpoint says what they were.
const CHUNK_SIZE: u64 = 4 << 20;

/// A target to restore from.
#[derive(Debug, Clone)]
pub struct Source {
    pub target: DynTarget,
    /// Its name, as it will be configured.
    pub name: String,
    /// Its URI without secrets.
    pub uri: String,
}

impl Source {
    fn failed(&self, error: target::Error) -> Error {
        Error::Target { name: self.name.clone(), error }
    }
}

/// Tells of progress; from the thread that restores.
pub type Progress = Box<dyn Fn(&Step) + Send + Sync>;

/// How a restore is done.
#[derive(Default)]
pub struct Options {
    /// Is told of each step.
    pub progress: Option<Progress>,
}

/// A step of a restore, for people who wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A checkpoint is being fetched.
    Checkpoint { source: String, seq: Seq, bytes: u64 },
    /// Segments of a source are being replayed.
    Segments { source: String, count: u64 },
    /// The chunks of a source are being listed.
    Chunks { source: String },
}

/// What was restored, and what was not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    pub filesystem: FilesystemId,
    pub name: String,
    /// The newest record.
    pub seq: Seq,
    /// The checkpoint that it stands on: its source and its seq; `None` = from the beginning of history.
    pub checkpoint: Option<(String, Seq)>,
    /// Records replayed after it.
    pub records: u64,
    pub inodes: u64,
    /// Sum of the sizes of all files.
    pub bytes: u64,
    pub sources: Vec<SourceReport>,
    /// Chunks that files refer to and no source lists: those files cannot be read whole.
    pub lost_chunks: u64,
    /// Their bytes.
    pub lost_bytes: u64,
    /// The first of them.
    pub lost_examples: Vec<String>,
    /// What was left out, and why. Empty: everything that the sources hold was restored.
    pub unproven: Vec<Unproven>,
}

/// What one source gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceReport {
    pub name: String,
    pub target: TargetId,
    /// It holds everything that was restored, and goes on from here.
    pub whole: bool,
    /// The newest record that it holds.
    pub seq: Seq,
    /// Segments replayed.
    pub segments: u64,
    /// Chunks of the filesystem that it lists.
    pub chunks: u64,
    /// Chunks that files refer to and it does not list, or lists with a wrong length.
    pub missing_chunks: u64,
    /// Chunks that it lists and nothing refers to.
    pub unneeded_chunks: u64,
    /// Objects that no reader knows.
    pub foreign_objects: u64,
}

/// Something that was left out of the restored state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unproven {
    /// A checkpoint was passed over for an older one.
    Checkpoint { source: String, seq: Seq, why: String },
    /// The journal of a source counts only up to before this segment.
    Journal { source: String, segment: SegmentNumber, why: String },
    /// An object cannot be read and was left out.
    Object { source: String, why: String },
    /// The newest writer of a source is not in the history of the others: nothing of it counts.
    OtherHistory { source: String, epoch: Epoch, writer: WriterId },
}

impl std::fmt::Display for Unproven {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unproven::Checkpoint { source, seq, why } => {
                write!(f, "target {source:?}: checkpoint {seq} was passed over: {why}")
            }
            Unproven::Journal { source, segment, why } => write!(f, "target {source:?}: segment {segment}: {why}"),
            Unproven::Object { source, why } => write!(f, "target {source:?}: {why}"),
            Unproven::OtherHistory { source, epoch, writer } => {
                write!(
                    f,
                    "target {source:?} was last written in epoch {epoch} by {writer}, which the others do not know"
                )
            }
        }
    }
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No source was named.
    #[error("no target to restore from")]
    NoSource,
    /// A source does not answer, or fails.
    #[error("target {name:?}: {error}")]
    Target {
        /// Its name.
        name: String,
        /// What happened.
        error: target::Error,
    },
    /// The place holds no filesystem.
    #[error("target {name:?} holds no filesystem: there is no tandemfs.json")]
    NotATarget {
        /// Its name.
        name: String,
    },
    /// An object that decides about everything cannot be read.
    #[error("target {name:?}: {error}")]
    Format {
        /// Its name.
        name: String,
        /// What is wrong with it.
        error: format::Error,
    },
    /// A listing has no end.
    #[error("target {name:?}: the listing of {prefix:?} does not end")]
    Endless {
        /// Its name.
        name: String,
        /// What was listed.
        prefix: String,
    },
    /// Sources of different filesystems.
    #[error("targets {one:?} and {two:?} hold different filesystems")]
    DifferentFilesystems {
        /// One of them.
        one: String,
        /// The other.
        two: String,
    },
    /// One target, named twice.
    #[error("targets {one:?} and {two:?} are the same place")]
    SameTarget {
        /// One of them.
        one: String,
        /// The other.
        two: String,
    },
    /// Which history is the later one is not known.
    #[error(transparent)]
    TwoWriters(#[from] TwoWriters),
    /// There is history, and none of it can be used.
    #[error("nothing of the history can be restored: {0}")]
    Nothing(String),
    /// Something lies where the state shall go.
    #[error("state directory {} is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// It could be restored, and no change could ever be added.
    #[error("the history leaves no room to go on: {0} is more than half of what there can be")]
    NoRoom(String),
    /// The local disk.
    #[error("{what}: {source}")]
    Io {
        /// The operation and the file.
        what: String,
        /// The operating system's word.
        source: io::Error,
    },
    /// The new store.
    #[error(transparent)]
    Meta(#[from] meta::Error),
}

impl Error {
    fn io(what: &str, path: &Path, source: io::Error) -> Error {
        Error::Io { what: format!("{what} {}", path.display()), source }
    }

    /// The same error, where it was not known of which source it is.
    fn of(self, source: &Source) -> Error {
        match self {
            Error::Format { name, error } if name.is_empty() => Error::Format { name: source.name.clone(), error },
            other => other,
        }
    }

    /// What to do next, if something can be done.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Target { name, .. } => Some(format!("make {name:?} reachable, or restore without it")),
            Error::TwoWriters(_) => {
                Some("restore from one target alone: name the one whose history shall count".into())
            }
            Error::NotATarget { .. } => {
                Some("check the URI: a target has a tandemfs.json right below its prefix".into())
            }
            Error::DifferentFilesystems { .. } => Some("restore them one by one, each into its own directory".into()),
            Error::SameTarget { .. } => Some("name each target once".into()),
            Error::NotEmpty(_) => Some("name a directory that does not exist yet: --state-dir DIR".into()),
            Error::NoRoom(_) => Some("somebody has tampered with this target: restore from another".into()),
            Error::Nothing(_) => Some("add another target of the same filesystem: --from URI".into()),
            Error::Format { error: format::Error::Unsupported { .. }, .. } => {
                Some("use the version of tandemfs that wrote it, or a later one".into())
            }
            _ => None,
        }
    }
}

/// Rebuilds a state directory at `state_dir`, which must be empty or absent, from one or several targets of one filesystem.
pub async fn restore(sources: Vec<Source>, state_dir: &Path, options: Options) -> Result<Report, Error> {
    let superblocks = identify(&sources).await?;
    let building = Building::beside(state_dir)?;
    let found = sources.iter().zip(superblocks).map(|(source, superblock)| evidence::read(source, superblock));
    let (judged, mut unproven) = judge(&sources, try_join_all(found).await?)?;
    let tell = |step: Step| {
        if let Some(progress) = &options.progress {
            progress(&step);
        }
    };

    let (meta, checkpoint) = base(&sources, &judged, &building, &mut unproven, &tell).await?;
    let base_seq = meta.head();
    let mut state = State { meta: &meta, applied: SeqSet::up_to(base_seq), records: 0, unproven };
    let mut ends = Vec::new();
    for (source, judged) in sources.iter().zip(&judged) {
        let run = plan::run(judged, base_seq);
        tell(Step::Segments { source: source.name.clone(), count: run.segments.len() as u64 });
        let end = journal::replay(source, judged, &run, &building.scratch, &mut state).await?;
        ends.push((run, end));
    }
    let State { applied, records, unproven, .. } = state;
    if applied.last() == Seq::ZERO && judged.iter().any(|judged| judged.evidence.has_history()) {
        let why: Vec<String> = unproven.iter().map(Unproven::to_string).collect();
        return Err(Error::Nothing(why.join("; ")));
    }

    let rows: Vec<SourceRow> = sources
        .iter()
        .zip(&judged)
        .zip(&ends)
        .map(|((source, judged), (run, end))| source_row(source, judged, run, end, &applied))
        .collect();
    let bits: Vec<TargetBit> = meta.write(|tx| {
        let bits = rows.iter().map(|row| tx.add_source(row)).collect::<meta::Result<Vec<_>>>()?;
        let following: Vec<TargetBit> =
            bits.iter().zip(&rows).filter(|(_, row)| row.whole).map(|(bit, _)| *bit).collect();
        tx.fill_holes(applied.missing(), &following)?;
        Ok(bits)
    })?;
    let mut reports = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        tell(Step::Chunks { source: source.name.clone() });
        let (claimed, foreign) = claim(source, &meta, bits[index]).await?;
        let row = &rows[index];
        reports.push(SourceReport {
            name: source.name.clone(),
            target: row.id,
            whole: row.whole,
            seq: ends[index].1.held.last(),
            segments: ends[index].1.segments,
            chunks: claimed.chunks,
            missing_chunks: 0,
            unneeded_chunks: claimed.unknown,
            foreign_objects: judged[index].evidence.foreign + foreign,
        });
    }
    let newest = judged.iter().filter_map(|judged| judged.lineage.links.first()).map(|link| (link.epoch, link.writer));
    let (epoch, writer) = newest.max().unwrap_or((Epoch(0), WriterId(0)));
    let known = known_writers(&judged, (epoch, writer), applied.last());
    meta.write(|tx| tx.finish_restore(&bits, &known, epoch, writer))?;
    if let Some(what) = meta.exhausted()? {
        return Err(Error::NoRoom(what));
    }
    for (report, bit) in reports.iter_mut().zip(&bits) {
        report.missing_chunks = meta.unlisted(Some(*bit))?.chunks;
    }
    let lost = meta.unlisted(None)?;
    let usage = meta.usage();
    let report = Report {
        filesystem: meta.filesystem()?,
        name: meta.filesystem_text("name")?,
        seq: meta.head(),
        checkpoint,
        records,
        inodes: usage.inodes,
        bytes: usage.bytes,
        sources: reports,
        lost_chunks: lost.chunks,
        lost_bytes: lost.bytes,
        lost_examples: lost.examples.iter().map(Hash::to_string).collect(),
        unproven,
    };
    meta.sync()?;
    drop(meta);
    failpoint::pass(Point::Restore);
    building.finish(state_dir)?;
    Ok(report)
}

/// Reads who the sources are: targets of one filesystem, each named once.
async fn identify(sources: &[Source]) -> Result<Vec<Superblock>, Error> {
    let superblocks = try_join_all(sources.iter().map(evidence::identify)).await?;
    let first = superblocks.first().ok_or(Error::NoSource)?;
    for (index, superblock) in superblocks.iter().enumerate() {
        let (one, two) = (sources[0].name.clone(), sources[index].name.clone());
        if superblock.filesystem != first.filesystem {
            return Err(Error::DifferentFilesystems { one, two });
        }
        if let Some(same) = superblocks[..index].iter().position(|other| other.target == superblock.target) {
            return Err(Error::SameTarget { one: sources[same].name.clone(), two });
        }
    }
    Ok(superblocks)
}

/// Decides whose history counts, for each source, and how far.
fn judge(sources: &[Source], found: Vec<evidence::Evidence>) -> Result<(Vec<Judged>, Vec<Unproven>), Error> {
    let newest = lineage::newest(found.iter().flat_map(|evidence| &evidence.writers))?;
    let mut unproven: Vec<Unproven> = found.iter().flat_map(|evidence| evidence.unproven.clone()).collect();
    let lineages: Vec<Lineage> = found.iter().map(|evidence| Lineage::of(&evidence.writers)).collect();
    let leads = |lineage: &Lineage| lineage.links.first().map(|link| (link.epoch, link.writer)) == newest;
    let mut judged = vec![];
    for (index, evidence) in found.into_iter().enumerate() {
        let lineage = lineages[index].clone();
        // Of a target that the newest writer never reached counts what that writer went on from.
        let limit = match lineage.links.first() {
            _ if leads(&lineage) => Some(Seq(u64::MAX)),
            Some(own) => {
                let known = lineages.iter().filter(|other| leads(other));
                known.filter_map(|other| other.limit_of(own.epoch, own.writer)).max()
            }
            None => Some(Seq::ZERO),
        };
        if limit.is_none() {
            let own = &lineage.links[0];
            let (epoch, writer) = (own.epoch, own.writer);
            unproven.push(Unproven::OtherHistory { source: sources[index].name.clone(), epoch, writer });
        }
        for link in lineage.links.iter().filter(|link| !link.announced) {
            let why = format!("writer {} of epoch {} did not announce itself", link.writer, link.epoch);
            unproven.push(Unproven::Object { source: sources[index].name.clone(), why });
        }
        judged.push(Judged { evidence, lineage, limit: limit.unwrap_or_default() });
    }
    Ok((judged, unproven))
}

/// Makes the store from the newest checkpoint that is sound, or an empty one. Returns whose checkpoint it was.
async fn base(
    sources: &[Source],
    judged: &[Judged],
    building: &Building,
    unproven: &mut Vec<Unproven>,
    tell: &impl Fn(Step),
) -> Result<(Meta, Option<(String, Seq)>), Error> {
    let superblock = &judged[0].evidence.superblock;
    let store = building.path.join("meta.sqlite");
    for candidate in plan::candidates(judged) {
        let (source, seen) = (&sources[candidate.source], candidate.checkpoint);
        let bytes = seen.complete.parts.iter().map(|part| part.bytes).sum();
        tell(Step::Checkpoint { source: source.name.clone(), seq: seen.seq, bytes });
        match base::fetch(source, superblock.filesystem, seen, &building.scratch, &store).await {
            Ok((meta, imported)) => return Ok((meta, Some((source.name.clone(), imported.seq)))),
            Err(base::Failure::Fatal(error)) => return Err(error),
            Err(base::Failure::Unusable(why)) => {
                unproven.push(Unproven::Checkpoint { source: source.name.clone(), seq: seen.seq, why });
                building.clear()?;
            }
        }
    }
    let created = Created {
        filesystem: superblock.filesystem,
        name: superblock.name.clone(),
        chunk_size: CHUNK_SIZE,
        time: superblock.created,
    };
    let meta = Meta::create(&store, &created)?;
    meta.write(|tx| tx.restore_root())?;
    Ok((meta, None))
}

/// What the next mount has to know of a source.
fn source_row(source: &Source, judged: &Judged, run: &Run, end: &End, applied: &SeqSet) -> SourceRow {
    let mut with_holes = end.held.clone();
    applied.missing().for_each(|seq| with_holes.insert(seq));
    let whole = with_holes == SeqSet::up_to(applied.last());
    SourceRow {
        id: judged.evidence.superblock.target,
        name: source.name.clone(),
        uri: source.uri.clone(),
        whole,
        base: run.base,
        low_water: end.held.first_missing(Seq(u64::MAX)).map_or(Seq::ZERO, Seq::previous),
        highest: end.held.last(),
        last: end.last.map(|(place, hash)| (place.epoch, place.writer, place.n, hash)),
        contact_epoch: judged.lineage.links.first().map_or(Epoch(0), |link| link.epoch),
        segments: end.segments,
        segment_bytes: end.bytes,
        checkpoints: checkpoint_rows(judged, applied.last()),
        discarded: discarded(judged, end.last.map(|(place, _)| place), &end.unfinished),
    }
}

/// Whose history was restored, and how far: what a target that is met later is compared with (T7). The sources that the
/// newest writer reached know it, and it says whose history it went on from; of several that say so, the one that knows most.
fn known_writers(judged: &[Judged], newest: (Epoch, WriterId), head: Seq) -> Vec<KnownWriter> {
    let mut known: BTreeMap<(Epoch, WriterId), Seq> = BTreeMap::new();
    let leading = judged.iter().filter(|judged| judged.leads(newest));
    for (id, upto) in leading.flat_map(|judged| judged.lineage.known()) {
        let seq = known.entry(id).or_default();
        *seq = upto.min(head).max(*seq);
    }
    known.into_iter().map(|((epoch, writer), seq)| KnownWriter { epoch, writer, seq }).collect()
}

/// The segments behind the newest one that counts, in order of keys, that are known to be of no effect. Not among them:
/// those that would count if they could be proved. They are changes that the restored state lacks, and a later mount says so.
fn discarded(judged: &Judged, last: Option<Place>, unfinished: &[Place]) -> Vec<(Epoch, WriterId, SegmentNumber)> {
    let last = last.map(|place| (place.epoch, place.writer, place.n));
    let other = |(n, epoch, writer): &(SegmentNumber, Epoch, WriterId)| {
        (!judged.lineage.has_segment(*epoch, *writer, *n)).then_some((*epoch, *writer, *n))
    };
    judged
        .evidence
        .segments
        .keys()
        .filter_map(other)
        .chain(unfinished.iter().map(|place| (place.epoch, place.writer, place.n)))
        .filter(|id| last.is_none_or(|last| *id > last))
        .collect()
}

/// The complete checkpoints of a source up to `head`, as rows.
fn checkpoint_rows(judged: &Judged, head: Seq) -> Vec<(Seq, ExportId, SegmentNumber, u64)> {
    let row = |seen: &CheckpointSeen| {
        let bytes = seen.complete.parts.iter().map(|part| part.bytes).sum();
        (seen.seq, seen.export, seen.complete.replay_from, bytes)
    };
    judged.checkpoints().filter(|seen| seen.seq <= head).map(row).collect()
}

/// Lists the chunks of a source and sets its bits. Returns also how many foreign objects were among them.
pub(crate) async fn claim(source: &Source, meta: &Meta, bit: TargetBit) -> Result<(Claimed, u64), Error> {
    let (mut total, mut foreign) = (Claimed::default(), 0);
    let mut after: Option<String> = None;
    loop {
        let page = source.target.list(key::CHUNKS, after.as_deref()).await.map_err(|error| source.failed(error))?;
        let mut listed = vec![];
        for object in &page.objects {
            match key::parse(&object.key) {
                Key::Chunk(hash) => listed.push((hash, object.length)),
                _ => foreign += 1,
            }
        }
        let claimed = meta.claim(bit, &listed)?;
        total.chunks += claimed.chunks;
        total.wrong_length += claimed.wrong_length;
        total.unknown += claimed.unknown;
        meta.checkpoint_wal()?;
        match page.next {
            Some(next) if after.as_ref().is_none_or(|after| next > *after) => after = Some(next),
            Some(_) => return Err(Error::Endless { name: source.name.clone(), prefix: key::CHUNKS.into() }),
            None => return Ok((total, foreign)),
        }
    }
}

/// The state directory while it is built, beside the place where it will be. Goes away unless it is finished.
struct Building {
    path: PathBuf,
    /// For what is fetched and used up.
    scratch: PathBuf,
    finished: bool,
}

impl Building {
    fn beside(state_dir: &Path) -> Result<Building, Error> {
        match std::fs::read_dir(state_dir) {
            Ok(mut files) => {
                if files.next().is_some() {
                    return Err(Error::NotEmpty(state_dir.to_owned()));
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("read", state_dir, e)),
        }
        let name = state_dir.file_name().ok_or_else(|| Error::NotEmpty(state_dir.to_owned()))?;
        let parent = parent(state_dir);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .map_err(|e| Error::io("create", parent, e))?;
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".restoring-{}", WriterId::random()));
        let path = parent.join(temporary);
        let create =
            |path: &Path| std::fs::DirBuilder::new().mode(0o700).create(path).map_err(|e| Error::io("create", path, e));
        create(&path)?;
        let building = Building { scratch: path.join("scratch"), path, finished: false };
        create(&building.scratch)?;
        Ok(building)
    }

    /// Removes everything that a failed attempt left.
    fn clear(&self) -> Result<(), Error> {
        let failed = |e| Error::io("empty", &self.path, e);
        for file in
            std::fs::read_dir(&self.path).map_err(failed)?.chain(std::fs::read_dir(&self.scratch).map_err(failed)?)
        {
            let path = file.map_err(failed)?.path();
            if path != self.scratch {
                std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
            }
        }
        Ok(())
    }

    /// Puts the directory in its place, durably.
    fn finish(mut self, state_dir: &Path) -> Result<(), Error> {
        std::fs::remove_dir_all(&self.scratch).map_err(|e| Error::io("remove", &self.scratch, e))?;
        // Nobody has the store open any more, so its files may be opened here.
        for file in std::fs::read_dir(&self.path).map_err(|e| Error::io("read", &self.path, e))? {
            sync(&file.map_err(|e| Error::io("read", &self.path, e))?.path())?;
        }
        sync(&self.path)?;
        // An empty directory is replaced; one that is not empty any more is left alone.
        std::fs::rename(&self.path, state_dir).map_err(|e| Error::io("rename to", state_dir, e))?;
        self.finished = true;
        sync(parent(state_dir))
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "half a restore was left behind");
        }
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sync(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|e| Error::io("sync", path, e))
}

#[cfg(test)]
mod tests;
