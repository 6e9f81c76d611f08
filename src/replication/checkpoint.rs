//! Checkpoints: when one is due, how it reaches a target, what may go from the target after (T3).
//!
//! Owns: the thresholds, which targets are due, one snapshot for all of them.
//! Does not own: how one reaches its target (`job`), what goes after it (`trim`), the snapshot (`meta::export`), its files and rows (`meta::checkpoint`), segments (`shipper`).
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

mod job;
mod trim;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::news as watch;
use parking_lot::Mutex;
use tokio::task::{JoinHandle, JoinSet};

use self::job::{Begun, Job};
use super::gate::{Gate, GateWatch};
use super::shipper::{Shared, blocking};
use crate::clock::{self, Instant};
use crate::id::{SegmentNumber, Seq, TargetBit};
use crate::meta::checkpoint::{ExportFiles, SegmentsThen};
use crate::meta::target::Mode;
use crate::target::DynTarget;

/// Checkpoints that stay on a target.
const KEPT: usize = 2;
/// Looks that pass by after one failed for a reason that does not lie in the target.
const AFTER_FAILURE: u32 = 60;

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
            jobs.push(Begun { target, resync, replay_from, then });
        }
        if jobs.iter().any(|begun| begun.resync) {
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
        for begun in jobs {
            let (bit, resync) = (begun.target.bit, begun.resync);
            meta.begin_checkpoint(bit, exported.seq, exported.export, begun.replay_from)?;
            let slots_from = exported.slots.first().map(|slot| slot.seq);
            let keep_from = if resync { Some(slots_from.unwrap_or(exported.seq.next())) } else { slots_from };
            let hold = keep_from.map(|from| self.shared.holds.hold(from));
            let job = Job::new(Arc::clone(self), begun, Arc::clone(&files), hold, births.clone(), created);
            self.busy.send_modify(|busy| {
                busy.insert(bit.index());
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

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
