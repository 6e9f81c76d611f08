//! One checkpoint of one target, from its snapshot to `complete.json`.
//!
//! Owns: uploading its parts, the wait until everything that it names is there, giving it up. Does not own: when one is due, the
//! snapshot they share (`checkpoint`), what goes after it (`trim`).

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::trim::trim;
use super::{CheckpointTarget, Inner};
use crate::clock::{self, Timestamp};
use crate::format::checkpoint::{Complete, Part, encode_slots};
use crate::format::key::{self, CheckpointFile};
use crate::format::record::{Change, Record, VoidReason};
use crate::id::{ChunkId, InodeId, SegmentNumber, Seq};
use crate::meta::checkpoint::{ExportFiles, SegmentsThen};
use crate::meta::export::Before;
use crate::replication::contact::{self, Failure, Own, put_once};
use crate::replication::gate::Gate;
use crate::replication::holds::Hold;
use crate::replication::shipper::{blocking, random};
use crate::testing::failpoint::{self, Point};

/// Looks between two searches for what is gone for good.
const SEARCH: u32 = 16;

/// How far a job came.
enum Step {
    /// The checkpoint is complete.
    Done,
    /// It goes on later.
    Waits,
    /// It is given up: a later one shall take its place.
    Overtaken(&'static str),
}

/// One checkpoint of one target.
pub(super) struct Job {
    inner: Arc<Inner>,
    files: Arc<ExportFiles>,
    hold: Option<Hold>,
    /// Births that had no content at the moment of the snapshot (O2).
    births: HashSet<InodeId>,
    target: CheckpointTarget,
    resync: bool,
    replay_from: SegmentNumber,
    then: SegmentsThen,
    created: Timestamp,
    /// So often it was looked at.
    looks: u32,
    /// Parts that are on the target.
    uploaded: usize,
    /// No chunk up to here is missing on the target.
    cursor: ChunkId,
    filled: Option<Filled>,
}

/// The slots of the snapshot, once all are filled.
pub(super) struct Filled {
    records: Vec<Record>,
    /// The last record of the units that they are part of.
    units_end: Seq,
}

/// What is known of a target before the snapshot is taken.
pub(super) struct Begun {
    pub target: CheckpointTarget,
    pub resync: bool,
    /// Segments below hold nothing above the snapshot.
    pub replay_from: SegmentNumber,
    pub then: SegmentsThen,
}

impl Job {
    /// `hold` keeps the records that fill the snapshot's slots; `births` had no content when it was taken.
    pub fn new(
        inner: Arc<Inner>,
        begun: Begun,
        files: Arc<ExportFiles>,
        hold: Option<Hold>,
        births: HashSet<InodeId>,
        created: Timestamp,
    ) -> Job {
        let Begun { target, resync, replay_from, then } = begun;
        Job {
            inner,
            files,
            hold,
            births,
            target,
            resync,
            replay_from,
            then,
            created,
            looks: 0,
            uploaded: 0,
            cursor: ChunkId(0),
            filled: None,
        }
    }

    pub async fn run(mut self) {
        let name = self.target.name.clone();
        let bit = self.target.bit;
        let mut failures = 0;
        // While parts are uploaded.
        self.target.gate.nudge();
        let ended = loop {
            match self.go_on().await {
                Ok(Step::Done) => break Ok(true),
                Ok(Step::Overtaken(why)) => {
                    tracing::info!(target_name = name, why, "checkpoint given up for a later one");
                    break Ok(false);
                }
                // Waits for uploads, seals and segments.
                Ok(Step::Waits) => {
                    failures = 0;
                    clock::sleep(self.inner.thresholds.look).await;
                }
                Err(Failure::Target(error)) => {
                    failures += 1;
                    tracing::debug!(target_name = name, %error, failures, "a checkpoint does not go on");
                    let pace = &self.inner.shared.pace;
                    clock::sleep(pace.retry.delay(failures, random(), error.retry_after)).await;
                }
                Err(failure) => break Err(failure),
            }
        };
        match ended {
            Ok(true) => {
                self.inner.completed.lock().insert(bit.index(), clock::instant());
                tracing::info!(target_name = name, seq = self.files.exported.seq.0, "checkpoint complete");
                if let Err(error) = trim(&self.inner.shared.meta, bit, &self.target.target).await {
                    tracing::debug!(target_name = name, %error, "old checkpoints stay until the next one");
                }
            }
            other => {
                if let Err(failure) = other {
                    tracing::warn!(target_name = name, error = %failure, "checkpoint given up");
                    self.inner.given_up.lock().insert(bit.index(), clock::instant());
                }
                let exported = &self.files.exported;
                if let Err(error) = self.inner.shared.meta.forget_checkpoint(bit, exported.seq, exported.export) {
                    tracing::error!(target_name = name, %error, "a checkpoint that was given up stays noted");
                }
            }
        }
        let busy = self.inner.busy.clone();
        // The hold and the files go before anybody hears of the end.
        drop(self);
        busy.send_modify(|busy| {
            busy.remove(&bit.index());
        });
    }

    /// Does what can be done now.
    async fn go_on(&mut self) -> Result<Step, Failure> {
        if let Some(why) = self.overtaken()? {
            return Ok(Step::Overtaken(why));
        }
        match self.target.gate.state() {
            Gate::Open => {}
            Gate::Fenced { reason, .. } => return Err(Failure::Fenced(reason)),
            Gate::Unknown | Gate::Blocked { .. } => return Ok(Step::Waits),
        }
        self.upload_parts().await?;
        if !self.is_signed()? || !self.is_whole()? {
            return Ok(Step::Waits);
        }
        Ok(match self.complete().await? {
            true => Step::Done,
            false => Step::Overtaken("the target changed its mode"),
        })
    }

    /// Why it shall not go on: it was begun for a target that follows and now does not, or the other way round; or so much
    /// happened since its snapshot that keeping the journal for it would break the bound on the journal (T4). What was
    /// placed stays placed, so the next one has less to wait for. And what nobody has any more is not waited for: nothing
    /// keeps the bytes of what dies while only resyncers lack it.
    fn overtaken(&mut self) -> Result<Option<&'static str>, Failure> {
        let (meta, exported, limits) = (&self.inner.shared.meta, &self.files.exported, &self.inner.thresholds.resync);
        if !meta.is_under_way(self.target.bit, exported.seq, exported.export, self.resync)? {
            return Ok(Some("the target changed its mode"));
        }
        if !self.resync {
            return Ok(None);
        }
        let head = meta.head();
        let rows = head.0.saturating_sub(exported.seq.0);
        // Fewer rows than that are not worth the sum.
        let long = rows > limits.rows_max
            || (rows > limits.rows_max / 16 && meta.journal_bytes(exported.seq.next(), head)? > limits.row_bytes_max);
        if long {
            return Ok(Some("history since its snapshot grew beyond what is kept for it"));
        }
        self.looks += 1;
        let records = self.filled.as_ref().map_or(&[][..], |filled| &filled.records);
        let gone = self.looks.is_multiple_of(SEARCH)
            && meta.names_what_is_gone(self.target.bit, ChunkId(exported.chunk_high), records)?;
        Ok(gone.then_some("what its snapshot names was overwritten meanwhile, and is nowhere any more"))
    }

    fn key(&self, file: CheckpointFile) -> String {
        key::checkpoint_part(self.files.exported.seq, self.files.exported.export, file)
    }

    async fn upload_parts(&mut self) -> Result<(), Failure> {
        while let Some(part) = self.files.parts.get(self.uploaded).copied() {
            let files = Arc::clone(&self.files);
            let body = blocking(move || files.read(&part)).await?;
            put_once(&self.target.target, &self.key(part.file), body).await?;
            failpoint::pass(Point::CheckpointPart);
            self.uploaded += 1;
        }
        Ok(())
    }

    /// True if a segment of this mount is on the target. The shipper sends one without records where there was no other.
    fn is_signed(&self) -> Result<bool, Failure> {
        let shared = &self.inner.shared;
        let signed = shared.me.wrote(shared.meta.cursor(self.target.bit)?.confirmed);
        if !signed {
            self.target.gate.nudge();
        }
        Ok(signed)
    }

    /// True if everything that snapshot and slots name is on the target, and what is half in it is in segments.
    fn is_whole(&mut self) -> Result<bool, Failure> {
        let meta = &self.inner.shared.meta;
        let exported = &self.files.exported;
        let bit = self.target.bit;
        if self.filled.is_none() {
            let Some(mut records) = meta.slot_records(&exported.slots)? else { return Ok(false) };
            if self.resync {
                take_back(&mut records, &exported.before);
            }
            self.filled = Some(Filled { units_end: meta.units_end(&exported.slots)?, records });
            // The rows may go now, but a resyncer will take those above the snapshot from the journal.
            match &self.hold {
                Some(hold) if self.resync => hold.narrow(exported.seq.next()),
                _ => self.hold = None,
            }
        }
        let filled = self.filled.as_ref().expect("the slots were filled just now, or before");
        if !meta.has_chunks_up_to(bit, &mut self.cursor, ChunkId(exported.chunk_high))?
            || !meta.has_chunks_of(bit, &filled.records)?
        {
            return Ok(false);
        }
        if self.resync {
            return Ok(true);
        }
        let shipped = meta.cursor(bit)?.shipped_seq;
        if filled.units_end > exported.seq && shipped < filled.units_end {
            return Ok(false);
        }
        if self.births.is_empty() {
            return Ok(true);
        }
        let waiting = (self.inner.shared.births)(shipped);
        Ok(self.births.is_disjoint(&waiting))
    }

    async fn complete(&self) -> Result<bool, Failure> {
        let filled = self.filled.as_ref().expect("a checkpoint that is whole has its slots filled");
        let (meta, me) = (&self.inner.shared.meta, &self.inner.shared.me);
        let exported = &self.files.exported;
        let (slots, slots_count) = encode_slots(&filled.records);
        let slots_part = Part::of(CheckpointFile::Slots, &slots);
        put_once(&self.target.target, &self.key(CheckpointFile::Slots), slots.into()).await?;

        // T7: the last moment to notice that somebody else writes here.
        let own = Own::of(meta, self.target.bit)?;
        if let Some((epoch, writer)) = contact::fenced_by(&self.target.target, &own).await? {
            return Err(Failure::Fenced(format!("writer {writer} took epoch {epoch}, ours is {}", own.epoch)));
        }
        let complete = Complete {
            filesystem: me.filesystem,
            target: own.cursor.id,
            epoch: me.epoch,
            writer: me.writer,
            seq: exported.seq,
            replay_from: self.replay_from,
            sqlite_bytes: exported.bytes,
            parts: self.files.parts.clone(),
            slots: slots_part,
            slots_count,
            inodes: exported.inodes,
            chunks: exported.chunks,
            chunk_bytes: exported.chunk_bytes,
            created: self.created,
        };
        let bytes = self.files.parts.iter().map(|part| part.bytes).sum::<u64>() + slots_part.bytes;
        put_once(&self.target.target, &self.key(CheckpointFile::Complete), complete.encode().into()).await?;
        failpoint::pass(Point::Complete);
        self.target.target.check_place().await?;
        Ok(meta.complete_checkpoint(self.target.bit, exported.seq, exported.export, bytes, self.then)?)
    }
}

/// Slots of a snapshot that brought no bytes: the snapshot has the size that they were to bring, and what brings the bytes,
/// if anything does, lies beyond it. So they say which size the file had before, as those do that a power cut voids.
pub(super) fn take_back(records: &mut [Record], before: &BTreeMap<Seq, Before>) {
    // Of each file, since its last slot that brought bytes.
    let mut stays: BTreeMap<InodeId, Before> = BTreeMap::new();
    for record in records {
        match &mut record.change {
            Change::Content(content) => {
                stays.remove(&content.ino);
            }
            Change::Void { ino, why, .. } => {
                let known = match *why {
                    VoidReason::Lost { size, mtime, ctime } => Some(Before { size, mtime, ctime }),
                    VoidReason::Moved | VoidReason::Unlinked => before.get(&record.seq).copied(),
                };
                let Some(known) = stays.get(ino).copied().or(known) else { continue };
                stays.insert(*ino, known);
                *why = VoidReason::Lost { size: known.size, mtime: known.mtime, ctime: known.ctime };
            }
            _ => {}
        }
    }
}
