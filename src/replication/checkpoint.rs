//! Checkpoints: when one is due, how it reaches a target, what may go from the target after (T3).
//!
//! Owns: the thresholds, upload of parts, the wait until everything that the snapshot names is there, `complete.json`, trimming
//! old checkpoints and segments.
//! Does not own: the snapshot (`meta::export`), its files and rows (`meta::checkpoint`), segments (`shipper`).
//!
//! ```text
//! due ─▶ one export for all targets that are due ─▶ per target, each at its own speed:
//!        parts ─▶ a segment of this mount? slots filled? chunks placed? units and births shipped? ─▶ slots ─▶ no other writer? ─▶ complete.json ─▶ trim
//! ```
//!
//! - A target need not be idle, and a slow one delays only its own checkpoint.
//! - Journal rows that fill the snapshot's slots are held until they are read, whoever has shipped them.
//! - A snapshot shows the head of a unit whose rest is in no segment yet, and a birth whose content is: `complete.json` waits
//!   until the target has those, so that the state it gives is a cut (O2, O6). A resyncer has no segments; it waits for slots,
//!   and a file whose bytes come with a later record is in its checkpoint what it was before, not a size without bytes.
//! - A checkpoint belongs to the history of the mount that wrote it, and history is told by segments (T7): a mount that has
//!   sent none to a target sends one without records before `complete.json`.
//! - Objects are written once under a key of their own export: a retry, or another lineage, never overwrites.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::news as watch;
use parking_lot::Mutex;
use tokio::task::{JoinHandle, JoinSet};

use super::contact::{self, Failure, Own, put_once};
use super::gate::{Gate, GateWatch};
use super::holds::Hold;
use super::shipper::{Shared, blocking, random};
use crate::clock::{self, Instant, Timestamp};
use crate::format::checkpoint::{Complete, Part, encode_slots};
use crate::format::key::{self, CheckpointFile, Key};
use crate::format::record::{Change, Record, VoidReason};
use crate::id::{ChunkId, ExportId, InodeId, SegmentNumber, Seq, TargetBit};
use crate::meta::checkpoint::{CheckpointRow, ExportFiles, SegmentsThen};
use crate::meta::export::Before;
use crate::meta::target::Mode;
use crate::target::{self, DynTarget, Kind};
use crate::testing::failpoint::{self, Point};

/// Checkpoints that stay on a target.
const KEPT: usize = 2;
/// Looks that pass by after one failed for a reason that does not lie in the target.
const AFTER_FAILURE: u32 = 60;
/// Looks between two searches for what is gone for good.
const SEARCH: u32 = 16;

/// When a checkpoint is due (T3).
#[derive(Debug, Clone, Copy)]
pub struct Thresholds {
    /// Segments since the last one: bytes, unless that one was larger itself.
    pub bytes: u64,
    /// Segments since the last one.
    pub objects: u64,
    /// Of activity since the last one.
    pub age: Duration,
    /// At unmount: bytes, unless a tenth of the last one is more.
    pub unmount_bytes: u64,
    /// At unmount.
    pub unmount_objects: u64,
    /// Between two looks at what is due, and at what a checkpoint under way waits for.
    pub look: Duration,
    /// What is kept for a target that is being resynced, at most.
    pub resync: super::resync::Limits,
}

impl Default for Thresholds {
    fn default() -> Thresholds {
        Thresholds {
            bytes: 64 << 20,
            objects: 10_000,
            age: Duration::from_secs(24 * 3600),
            unmount_bytes: 1 << 20,
            unmount_objects: 1_000,
            look: Duration::from_secs(1),
            resync: super::resync::Limits::default(),
        }
    }
}

/// Why one is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// The regular look.
    Running,
    /// The last one before the mount ends.
    Unmount,
    /// Somebody wants one now.
    Asked,
}

/// What a target has gathered since its last checkpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Since {
    pub segment_bytes: u64,
    pub segment_count: u64,
    /// Of the last one; 0 if there is none.
    pub last_bytes: u64,
    /// Time since the last one, or since the mount.
    pub age: Duration,
}

impl Thresholds {
    /// Decides whether a checkpoint is due. Pure.
    pub fn due(&self, since: &Since, occasion: Occasion) -> bool {
        match occasion {
            Occasion::Running => {
                since.segment_bytes >= self.bytes.max(since.last_bytes)
                    || since.segment_count >= self.objects
                    || (since.segment_count > 0 && since.age >= self.age)
            }
            Occasion::Unmount => {
                since.segment_bytes > self.unmount_bytes.max(since.last_bytes / 10)
                    || since.segment_count > self.unmount_objects
            }
            Occasion::Asked => true,
        }
    }
}

/// A target that gets checkpoints.
#[derive(Debug, Clone)]
pub struct CheckpointTarget {
    pub bit: TargetBit,
    pub name: String,
    pub target: DynTarget,
    pub gate: GateWatch,
}

/// Takes the checkpoints of a mount. Dropping it gives up those under way.
pub struct Checkpointer {
    inner: Arc<Inner>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

struct Inner {
    shared: Shared,
    /// Targets come and go.
    targets: Mutex<Vec<CheckpointTarget>>,
    /// Where exports lie while they are uploaded.
    dir: PathBuf,
    thresholds: Thresholds,
    /// Targets with one under way.
    busy: watch::Sender<HashSet<u8>>,
    /// When the last one of each target was complete; before that, when the mount began.
    completed: Mutex<BTreeMap<u8, Instant>>,
    /// When one of a target was last given up: not tried again at once.
    given_up: Mutex<BTreeMap<u8, Instant>>,
    began: Instant,
    tasks: Mutex<JoinSet<()>>,
    /// One export at a time.
    exporting: tokio::sync::Mutex<()>,
}

impl Checkpointer {
    /// Starts looking for what is due. `dir`, below the state directory, is its own: what lies there goes.
    pub fn start(
        shared: Shared,
        targets: Vec<CheckpointTarget>,
        dir: PathBuf,
        thresholds: Thresholds,
    ) -> crate::meta::Result<Checkpointer> {
        shared.meta.abandon_checkpoints()?;
        ExportFiles::remove_leftovers(&dir)?;
        let inner = Arc::new(Inner {
            shared,
            targets: Mutex::new(targets),
            dir,
            thresholds,
            busy: watch::Sender::new(HashSet::new()),
            completed: Mutex::default(),
            given_up: Mutex::default(),
            began: clock::instant(),
            tasks: Mutex::new(JoinSet::new()),
            exporting: tokio::sync::Mutex::new(()),
        });
        let (stop, mut stopped) = watch::channel(false);
        let looking = Arc::clone(&inner);
        let task = tokio::spawn(async move {
            let mut pause = looking.thresholds.look;
            loop {
                tokio::select! {
                    biased;
                    _ = stopped.wait_for(|stop| *stop) => return,
                    () = clock::sleep(pause) => {}
                }
                // A disk without room for an export will not have it a second later.
                let taken = looking.take_due(Occasion::Running).await;
                pause = looking.thresholds.look * if taken { 1 } else { AFTER_FAILURE };
            }
        });
        Ok(Checkpointer { inner, stop, task })
    }

    /// Takes the checkpoints that are due at unmount, after the journal was drained, and waits for all under way. Targets
    /// that are not in contact are left out; the caller bounds the time.
    pub async fn finish(&self) {
        self.inner.take_due(Occasion::Unmount).await;
        self.idle().await;
    }

    /// Takes a checkpoint of every target that is in contact, due or not, and waits until they are complete or given up.
    /// Returns the names of those that got one.
    pub async fn now(&self) -> Vec<String> {
        self.idle().await;
        let before = clock::instant();
        self.inner.take_due(Occasion::Asked).await;
        self.idle().await;
        let completed = self.inner.completed.lock();
        let since = |target: &&CheckpointTarget| completed.get(&target.bit.index()).is_some_and(|at| *at >= before);
        self.inner.targets.lock().iter().filter(since).map(|target| target.name.clone()).collect()
    }

    /// Takes a checkpoint of every target of `bits` that is in contact, due or not; returns when none of theirs is under way.
    pub async fn take(&self, bits: &[TargetBit]) {
        self.idle_of(bits).await;
        self.inner.take_due_of(Occasion::Asked, Some(bits)).await;
        self.idle_of(bits).await;
    }

    async fn idle_of(&self, bits: &[TargetBit]) {
        let idle = |busy: &HashSet<u8>| bits.iter().all(|bit| !busy.contains(&bit.index()));
        // Never an error: `inner` keeps the channel open.
        let _ = self.inner.busy.subscribe().wait_for(idle).await;
    }

    /// Takes one more target in.
    pub fn add(&self, target: CheckpointTarget) {
        self.inner.targets.lock().push(target);
    }

    /// Forgets a target. One that is under way is given up when it finds its row gone.
    pub fn remove(&self, bit: TargetBit) {
        self.inner.targets.lock().retain(|target| target.bit != bit);
    }

    /// Waits until no checkpoint is under way.
    pub async fn idle(&self) {
        // Never an error: `inner` keeps the channel open.
        let _ = self.inner.busy.subscribe().wait_for(HashSet::is_empty).await;
    }

    /// Ends it; what is under way is given up.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if let Err(error) = (&mut self.task).await {
            tracing::error!(%error, "the checkpointer ended with a panic");
        }
        let mut tasks = std::mem::take(&mut *self.inner.tasks.lock());
        tasks.shutdown().await;
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        // They hold `inner`, and so themselves.
        self.inner.tasks.lock().abort_all();
    }
}

impl Inner {
    /// Begins the checkpoints that are due; returns when they are under way. False: that failed.
    async fn take_due(self: &Arc<Self>, occasion: Occasion) -> bool {
        self.take_due_of(occasion, None).await
    }

    /// As [`Inner::take_due`], of some targets only.
    async fn take_due_of(self: &Arc<Self>, occasion: Occasion, bits: Option<&[TargetBit]>) -> bool {
        let _one = self.exporting.lock().await;
        let due = self.due(occasion).map(|mut due| {
            due.retain(|target| bits.is_none_or(|bits| bits.contains(&target.bit)));
            due
        });
        let begun = match due {
            Ok(due) if due.is_empty() => Ok(()),
            Ok(due) => self.begin(due).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &begun {
            tracing::error!(%error, "a checkpoint could not be taken; it is tried again");
        }
        begun.is_ok()
    }

    fn due(&self, occasion: Occasion) -> crate::meta::Result<Vec<CheckpointTarget>> {
        let rows = self.shared.meta.targets()?;
        let mut due = Vec::new();
        let targets = self.targets.lock().clone();
        for target in &targets {
            let busy = self.busy.borrow().contains(&target.bit.index());
            let Some(row) = rows.iter().find(|row| row.bit == target.bit) else { continue };
            if busy || row.relist || target.gate.state() != Gate::Open {
                continue;
            }
            let given_up = self.given_up.lock().get(&target.bit.index()).copied();
            let recently = |at: Instant| clock::instant().since(at) < self.thresholds.look * AFTER_FAILURE;
            if occasion == Occasion::Running && given_up.is_some_and(recently) {
                continue;
            }
            let cursor = self.shared.meta.cursor(target.bit)?;
            let last = self.shared.meta.checkpoints(target.bit)?.into_iter().rfind(|row| row.complete);
            let since_when = self.completed.lock().get(&target.bit.index()).copied().unwrap_or(self.began);
            let since = Since {
                segment_bytes: cursor.segment_bytes,
                segment_count: cursor.segment_count,
                last_bytes: last.map_or(0, |last| last.bytes),
                age: clock::instant().since(since_when),
            };
            // T4: a resyncer has nothing else to wait for.
            if row.mode == Mode::Resync || self.thresholds.due(&since, occasion) {
                due.push(target.clone());
            }
        }
        Ok(due)
    }

    /// Exports once and starts a task per target.
    async fn begin(self: &Arc<Self>, targets: Vec<CheckpointTarget>) -> crate::meta::Result<()> {
        let meta = &self.shared.meta;
        let mut hold = Some(self.shared.holds.hold(Seq(1)));
        let rows = meta.targets()?;
        // Read before the snapshot: segments up to here hold nothing above it.
        let mut jobs = Vec::new();
        for target in targets {
            let cursor = meta.cursor(target.bit)?;
            let resync = rows.iter().any(|row| row.bit == target.bit && row.mode == Mode::Resync);
            let replay_from = cursor.built.map_or(SegmentNumber(0), |built| built.n).next();
            let then = SegmentsThen { bytes: cursor.segment_bytes, count: cursor.segment_count };
            jobs.push((target, resync, replay_from, then));
        }
        if jobs.iter().any(|(_, resync, ..)| *resync) {
            // What died by the newest change is dead in the snapshot, too: a resyncer shall not wait for it.
            let stepping = Arc::clone(meta);
            blocking(move || stepping.step_history()).await?;
        }
        let (store, dir) = (Arc::clone(meta), self.dir.clone());
        let files = Arc::new(blocking(move || ExportFiles::make(&store, &dir)).await?);
        let created = clock::now();
        let exported = &files.exported;
        let births = (self.shared.births)(exported.seq);
        tracing::info!(seq = exported.seq.0, bytes = exported.bytes, targets = jobs.len(), "checkpoint exported");
        for (target, resync, replay_from, then) in jobs {
            meta.begin_checkpoint(target.bit, exported.seq, exported.export, replay_from)?;
            let slots_from = exported.slots.first().map(|slot| slot.seq);
            let keep_from = if resync { Some(slots_from.unwrap_or(exported.seq.next())) } else { slots_from };
            let job = Job {
                inner: Arc::clone(self),
                files: Arc::clone(&files),
                hold: keep_from.map(|from| self.shared.holds.hold(from)),
                births: births.clone(),
                target,
                resync,
                replay_from,
                then,
                created,
                looks: 0,
                uploaded: 0,
                cursor: ChunkId(0),
                filled: None,
            };
            self.busy.send_modify(|busy| {
                busy.insert(job.target.bit.index());
            });
            let mut tasks = self.tasks.lock();
            while tasks.try_join_next().is_some() {}
            tasks.spawn(job.run());
        }
        // Each job has its own now.
        hold.take();
        Ok(())
    }
}

/// Slots of a snapshot that brought no bytes: the snapshot has the size that they were to bring, and what brings the bytes,
/// if anything does, lies beyond it. So they say which size the file had before, as those do that a power cut voids.
fn take_back(records: &mut [Record], before: &BTreeMap<Seq, Before>) {
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
struct Job {
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
struct Filled {
    records: Vec<Record>,
    /// The last record of the units that they are part of.
    units_end: Seq,
}

impl Job {
    async fn run(mut self) {
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
                if let Err(error) = self.trim().await {
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

    /// Removes what no restore will want any more: our checkpoints but the newest two and what is older than those,
    /// leftovers of those given up, and the segments before the older one's.
    async fn trim(&self) -> Result<(), Failure> {
        let meta = &self.inner.shared.meta;
        let (bit, target) = (self.target.bit, &self.target.target);
        let rows = meta.checkpoints(bit)?;
        let plan = plan_trim(&list(target, key::CHECKPOINTS).await?, &rows);
        for key in &plan.remove {
            target.delete(key).await?;
        }
        let Some(replay_from) = plan.replay_from() else { return Ok(()) };
        for row in rows.iter().filter(|row| row.complete && !plan.stay.contains(row) && !plan.newest.contains(row)) {
            meta.forget_checkpoint(bit, row.seq, row.export)?;
        }
        let newest = meta.cursor(bit)?.confirmed.map(|confirmed| confirmed.n);
        for object in list(target, key::JOURNAL).await? {
            if let Key::Segment { n, .. } = key::parse(&object)
                // The one before what is replayed proves the chain, and is what the next mount goes on from if nothing
                // follows; the newest is how contact knows the target again (T7).
                && n.next() < replay_from && newest.is_some_and(|newest| n < newest)
            {
                target.delete(&object).await?;
            }
        }
        Ok(())
    }
}

/// What goes of a target's checkpoints.
#[derive(Debug, PartialEq, Eq)]
struct TrimPlan {
    /// The newest of ours that are listed, newest first.
    stay: Vec<CheckpointRow>,
    /// The newest of ours, listed or not: what was written last may be missing in a listing for a while.
    newest: Vec<CheckpointRow>,
    /// Keys, in the order in which they go: first what makes a checkpoint complete.
    remove: Vec<String>,
}

impl TrimPlan {
    /// The first segment that one of those that stay is replayed from; `None` while there are not two. Not always the older
    /// one's: two may have the same seq.
    fn replay_from(&self) -> Option<SegmentNumber> {
        self.stay.get(KEPT - 1)?;
        self.stay.iter().map(|row| row.replay_from).min()
    }
}

/// Plans it from a listing and our rows. Pure. Complete checkpoints that have no row, of another lineage or from before a
/// restore, do not count as ours, and go only when they are older than what stays.
fn plan_trim(objects: &[String], rows: &[CheckpointRow]) -> TrimPlan {
    let mut found: BTreeMap<(Seq, ExportId), Vec<(CheckpointFile, &String)>> = BTreeMap::new();
    for object in objects {
        if let Key::Checkpoint { seq, export, file } = key::parse(object) {
            found.entry((seq, export)).or_default().push((file, object));
        }
    }
    let is_complete =
        |files: &[(CheckpointFile, &String)]| files.iter().any(|(file, _)| *file == CheckpointFile::Complete);
    let newest_of = |wanted: &dyn Fn(&CheckpointRow) -> bool| {
        let mut newest: Vec<CheckpointRow> = rows.iter().filter(|row| row.complete && wanted(row)).copied().collect();
        newest.sort_by_key(|row| std::cmp::Reverse((row.seq, row.replay_from)));
        newest.truncate(KEPT);
        newest
    };
    let stay = newest_of(&|row| found.get(&(row.seq, row.export)).is_some_and(|files| is_complete(files)));
    let newest = newest_of(&|_| true);
    let older = stay.get(KEPT - 1).map(|row| row.seq);
    let mut remove = Vec::new();
    for ((seq, export), mut files) in found {
        let row = rows.iter().find(|row| (row.seq, row.export) == (seq, export));
        let goes = match row {
            Some(row) if !row.complete || stay.contains(row) || newest.contains(row) => false,
            Some(_) if is_complete(&files) => true,
            None if is_complete(&files) => older.is_some_and(|older| seq < older),
            _ => true,
        };
        if goes {
            files.sort_by_key(|(file, _)| *file != CheckpointFile::Complete);
            remove.extend(files.into_iter().map(|(_, object)| object.clone()));
        }
    }
    TrimPlan { stay, newest, remove }
}

/// All keys under a prefix.
async fn list(target: &DynTarget, prefix: &str) -> target::Result<Vec<String>> {
    let mut keys: Vec<String> = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = target.list(prefix, after.as_deref()).await?;
        keys.extend(page.objects.into_iter().map(|object| object.key));
        match page.next {
            Some(next) if Some(&next) > after.as_ref() => after = Some(next),
            Some(next) => {
                let message = format!("the listing goes round in circles at {next:?}");
                return Err(target::Error {
                    kind: Kind::Invalid,
                    class: target::Class::Temporary,
                    operation: "list",
                    key: prefix.to_owned(),
                    message,
                    retry_after: None,
                });
            }
            None => return Ok(keys),
        }
    }
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
