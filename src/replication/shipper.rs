//! The shipper of one target: brings it the journal, in segments, once it holds what they name (T2).
//!
//! Owns: when a segment is built, the order store → put → confirm, contact before anything is written, the target's gate.
//! Does not own: which records go (`selection`), how they are packed (`segments`), chunks (`driver`), checkpoints.
//!
//! ```text
//! contact ──Ours──▶ send what is stored ──▶ announce ──▶ Open ──▶ ┌ select, pack, store (synced) ┐
//!    ▲                                                            │ put, confirm, trim           │ about every second,
//!    │◀── unreachable, lost, asked ───────────────────────────────└ ◀── journal, placements ─────┘ at once for a waiter
//!    └ Blocked: again after a while      Fenced: only when asked
//! ```
//!
//! - One task per target, so a dead target delays nobody. At most one round is on its way; the rest stays in the store.
//! - A crash between store and put sends the same bytes again, under the same key; a put whose reply was lost is recognised
//!   by reading the object back.
//! - The journal is the work of one: a checkpoint that wants a segment of this mount finds it here (T7).
//! - While shipping, `writers/` is listed every 10 s: who finds a higher writer stops (T7).

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::news as watch;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::ack::Holds;
use super::backoff::Backoff;
use super::contact::{self, Failure, Me, Own, Verdict};
use super::gate::{Gate, GateKeeper};
use super::holds::JournalHolds;
use super::segments;
use super::selection::Order;
use super::stock;
use crate::clock::{self, Instant, Timestamp};
use crate::format::key;
use crate::format::segment::{self, Builder, Encoded, Place};
use crate::id::{InodeId, SegmentNumber, Seq, TargetBit};
use crate::meta::shipping::{Cursor, ShippingBacklog, StoredSegment};
use crate::meta::target::Mode;
use crate::meta::window::WindowLimits;
use crate::meta::{self, Meta};
use crate::priority;
use crate::target::{self, Class, DynTarget, Existing, Kind};
use crate::testing::failpoint::{self, Point};

/// True while programs are busy and what nobody waits for shall keep out of their way (`priority`).
pub type CanWait = Arc<dyn Fn() -> bool + Send + Sync>;

/// Which births wait for their first slot, for a reader of the journal up to this seq (O2).
pub type BirthsWaiting = Arc<dyn Fn(Seq) -> HashSet<InodeId> + Send + Sync>;

/// How often things happen.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between two rounds, unless somebody waits.
    pub round: Duration,
    /// Between two looks at what waits when somebody waits.
    pub urgent: Duration,
    /// Between two listings of `writers/` while shipping.
    pub writers: Duration,
    /// After failures that may pass.
    pub retry: Backoff,
    /// While only an operator can help.
    pub blocked: Backoff,
    /// Both at most, where asking costs nothing.
    pub local: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            round: Duration::from_secs(1),
            urgent: Duration::from_millis(20),
            writers: Duration::from_secs(10),
            retry: Backoff { base: Duration::from_millis(500), max: Duration::from_secs(30) },
            blocked: Backoff { base: Duration::from_secs(15), max: Duration::from_secs(300) },
            local: Duration::from_secs(1),
        }
    }
}

/// What all shippers of a mount share.
#[derive(Clone)]
pub struct Shared {
    pub meta: Arc<Meta>,
    pub me: Me,
    pub births: BirthsWaiting,
    pub can_wait: CanWait,
    pub order: Order,
    pub pace: Pace,
    pub holds: Arc<JournalHolds>,
}

/// How far a target is, for waiters and `status`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Every record up to here is on the target.
    pub shipped_seq: Seq,
    /// Which records the target has, beyond that (D3).
    pub holds: Holds,
    /// What is not confirmed yet.
    pub backlog: ShippingBacklog,
    /// When the target was last known to lack no record.
    pub whole_at: Option<Timestamp>,
    /// Why it does not go on, while it does not.
    pub last_error: Option<String>,
}

/// The running shipper of one target. Dropping it ends the task at its next wait.
#[derive(Debug)]
pub struct Shipper {
    bit: TargetBit,
    name: String,
    progress: watch::Receiver<Progress>,
    control: Arc<Control>,
    task: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

/// What others ask of a shipper.
#[derive(Debug)]
struct Control {
    now: Notify,
    /// How many wait for something to be shipped.
    waiting: AtomicUsize,
    stop: watch::Sender<bool>,
    asked_now: AtomicBool,
}

/// Somebody waits for a shipper, as long as this lives.
#[derive(Debug)]
pub struct Waiting(Arc<Control>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Shipper {
    /// Starts the shipper of a target. Its first act is contact; until then `keeper` keeps the gate shut.
    pub fn start(shared: Shared, bit: TargetBit, name: &str, target: DynTarget, keeper: GateKeeper) -> Shipper {
        let control = Arc::new(Control {
            now: Notify::new(),
            waiting: AtomicUsize::new(0),
            stop: watch::Sender::new(false),
            asked_now: AtomicBool::new(false),
        });
        let (publish, progress) = watch::channel(Progress::default());
        let mut worker = Worker {
            shared,
            bit,
            name: name.to_owned(),
            target,
            keeper,
            control: Arc::clone(&control),
            publish,
            failures: 0,
            writers_listed: None,
            trimmed: None,
            round_done: None,
        };
        // What is known from earlier mounts counts at once: a waiter must not wait for a dead target to answer.
        worker.report(None);
        worker.note_holds();
        let task = tokio::spawn(async move { worker.run().await });
        let task = tokio::sync::Mutex::new(Some(task));
        Shipper { bit, name: name.to_owned(), progress, control, task }
    }

    /// The target's bit.
    pub fn bit(&self) -> TargetBit {
        self.bit
    }

    /// The target's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Tells of each change of the progress.
    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Ships what can go, now.
    pub fn ship_now(&self) {
        self.control.asked_now.store(true, Ordering::Release);
        self.control.now.notify_one();
    }

    /// While the guard lives, somebody waits: no record waits for company.
    pub fn hurry(&self) -> Waiting {
        self.control.waiting.fetch_add(1, Ordering::AcqRel);
        self.ship_now();
        Waiting(Arc::clone(&self.control))
    }

    /// Waits until every record up to `seq` is on the target, and hurries it. False: the shipper was stopped first.
    pub async fn shipped(&self, seq: Seq) -> bool {
        let _waiting = self.hurry();
        self.progress.clone().wait_for(|progress| progress.shipped_seq >= seq).await.is_ok()
    }

    /// Ends the task; what was stored is sent by the next mount.
    pub async fn stop(self) {
        self.end().await;
    }

    /// As [`Shipper::stop`], while others still look at it.
    pub async fn end(&self) {
        self.control.stop.send_replace(true);
        if let Some(task) = self.task.lock().await.take()
            && let Err(error) = task.await
        {
            tracing::error!(%error, "a shipper ended with a panic");
        }
    }
}

/// Why a pass ended without having anything more to do.
enum Pause {
    /// All is shipped, or what is left waits for chunks and slots.
    Idle { pending: bool },
    /// It failed in a way that may pass.
    Retry(Duration),
    /// Only an operator helps; look again after a while.
    Blocked(Duration),
    /// Somebody else writes there: only when asked.
    Fenced,
}

struct Worker {
    shared: Shared,
    bit: TargetBit,
    name: String,
    target: DynTarget,
    keeper: GateKeeper,
    control: Arc<Control>,
    publish: watch::Sender<Progress>,
    /// In a row.
    failures: u32,
    writers_listed: Option<Instant>,
    /// Low water when journal rows were last dropped.
    trimmed: Option<Seq>,
    /// When the last round ended, and how long it took to look.
    round_done: Option<(Instant, Duration)>,
}

impl Worker {
    async fn run(&mut self) {
        let mut stop = self.control.stop.subscribe();
        let mut head = self.shared.meta.watch_head();
        let mut placements = self.shared.meta.watch_placements();
        let mut chunks = self.shared.meta.watch_chunks();
        loop {
            if *stop.borrow() {
                return;
            }
            // What changes from here on is news for the next pass.
            head.mark_unchanged();
            placements.mark_unchanged();
            chunks.mark_unchanged();
            let pause = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                pause = self.pass() => pause,
            };
            let control = Arc::clone(&self.control);
            match pause {
                Pause::Idle { pending } => {
                    let poll = if pending { self.shared.pace.round } else { Duration::MAX };
                    tokio::select! {
                        biased;
                        _ = stop.wait_for(|stop| *stop) => return,
                        () = self.keeper.asked() => {}
                        () = control.now.notified() => {}
                        _ = head.changed() => {}
                        _ = placements.changed(), if pending => {}
                        _ = chunks.changed(), if pending => {}
                        () = clock::sleep(poll) => {}
                    }
                    tokio::select! {
                        biased;
                        _ = stop.wait_for(|stop| *stop) => return,
                        () = self.keeper.asked() => {}
                        () = self.until_next_round() => {}
                    }
                }
                Pause::Retry(delay) => tokio::select! {
                    biased;
                    _ = stop.wait_for(|stop| *stop) => return,
                    () = self.keeper.asked() => {}
                    () = clock::sleep(delay) => {}
                },
                Pause::Blocked(delay) => tokio::select! {
                    biased;
                    _ = stop.wait_for(|stop| *stop) => return,
                    () = self.keeper.asked() => {}
                    () = clock::sleep(delay) => {}
                },
                Pause::Fenced => tokio::select! {
                    biased;
                    _ = stop.wait_for(|stop| *stop) => return,
                    () = self.keeper.asked() => {}
                },
            }
        }
    }

    /// Keeps rounds apart and out of the way of programs, unless somebody waits for what is not shipped yet.
    async fn until_next_round(&self) {
        let Some((done, took)) = self.round_done else { return };
        let control = &self.control;
        loop {
            let urgent = control.waiting.load(Ordering::Acquire) > 0;
            // Looking at a long window may cost more than a little (100 ms for one that is full): it shall not take more
            // than a twentieth of a core, a quarter while somebody waits.
            let (pace, rest) = if urgent { (self.shared.pace.urgent, 3) } else { (self.shared.pace.round, 19) };
            let due = done + pace.max(took * rest);
            let left = due.since(clock::instant());
            if control.asked_now.swap(false, Ordering::AcqRel) {
                return;
            }
            if left.is_zero() {
                break;
            }
            tokio::select! {
                biased;
                () = clock::sleep(left) => break,
                () = control.now.notified() => {}
            }
        }
        while control.waiting.load(Ordering::Acquire) == 0 && (self.shared.can_wait)() {
            tokio::select! {
                biased;
                () = clock::sleep(priority::LOOK) => {}
                () = control.now.notified() => return,
            }
        }
    }

    /// Does all there is to do, and says what to wait for.
    async fn pass(&mut self) -> Pause {
        match self.try_pass().await {
            Ok(pause) => {
                if matches!(pause, Pause::Idle { .. }) {
                    self.failures = 0;
                }
                pause
            }
            Err(failure) => self.failed(failure),
        }
    }

    async fn try_pass(&mut self) -> Result<Pause, Failure> {
        if self.keeper.state() != Gate::Open {
            match self.contact().await? {
                Gate::Open => {
                    tracing::info!(target_name = self.name, "target is in contact");
                    self.mode(None)?;
                    self.keeper.set(Gate::Open);
                }
                gate => return Ok(self.shut(gate)?),
            }
        }
        loop {
            self.send_stored().await?;
            self.note_holds();
            let round = self.build().await?;
            self.report(None);
            if !round.built {
                self.trim().await?;
                return Ok(Pause::Idle { pending: round.pending });
            }
        }
    }

    /// The way to an open gate, or the reason why not.
    async fn contact(&mut self) -> Result<Gate, Failure> {
        let own = Own::of(&self.shared.meta, self.bit)?;
        let evidence = contact::gather(&self.name, &self.target, &own).await?;
        match contact::decide(&self.name, &own, &evidence) {
            Verdict::Fresh => {
                if !own.restored.is_empty() {
                    // Of another place that was about to be taken over under this name.
                    let (meta, bit) = (Arc::clone(&self.shared.meta), self.bit);
                    blocking(move || meta.unclaim(bit)).await?;
                }
                contact::initialise(&self.shared.meta, &self.target, &self.name, &self.shared.me, self.bit).await?;
            }
            Verdict::MetAgain(met) => {
                contact::take_over(&self.shared.meta, &self.target, &self.name, self.bit, &met).await?;
            }
            Verdict::Behind { reason } => {
                let announced = evidence.writers.contains(&(self.shared.me.epoch, self.shared.me.writer));
                stock::lost(&self.shared, self.bit, &self.name, &reason, announced).await?;
            }
            Verdict::Ours if !own.cursor.initialised => self.shared.meta.set_initialised(self.bit)?,
            Verdict::Ours => {}
            Verdict::Blocked { reason, hint } => return Ok(Gate::Blocked { reason, hint }),
            Verdict::Conflict { reason, hint, .. } => return Ok(Gate::Fenced { reason, hint }),
        }
        let listed = stock::take(&self.shared, self.bit, &self.name, &self.target).await?;
        self.writers_listed = Some(clock::instant());
        if self.shared.meta.cursor(self.bit)?.contact_epoch < self.shared.me.epoch {
            // What the last mount had built goes first, under its old keys (T7).
            self.send_stored().await?;
            contact::announce(&self.shared.meta, &self.target, &self.shared.me, self.bit).await?;
        }
        if listed {
            stock::sign(&self.shared, self.bit).await?;
        }
        Ok(Gate::Open)
    }

    /// Shuts the gate, and says so in the row and in the log.
    fn shut(&mut self, gate: Gate) -> meta::Result<Pause> {
        let (mode, reason) = match &gate {
            Gate::Blocked { reason, .. } => (Mode::Blocked, reason),
            Gate::Fenced { reason, .. } => (Mode::Fenced, reason),
            Gate::Open | Gate::Unknown => return Ok(Pause::Idle { pending: true }),
        };
        if self.keeper.state() != gate {
            tracing::warn!(target_name = self.name, reason, "target is not written to");
        }
        self.mode(Some((mode, reason)))?;
        self.report(Some(reason.clone()));
        self.keeper.set(gate);
        if mode == Mode::Fenced {
            return Ok(Pause::Fenced);
        }
        self.failures = self.failures.saturating_add(1);
        Ok(Pause::Blocked(self.soon(self.shared.pace.blocked.delay(self.failures, random(), None))))
    }

    /// Writes the mode into the target's row where it is another one. A resync goes on being one.
    fn mode(&self, ill: Option<(Mode, &str)>) -> meta::Result<()> {
        let rows = self.shared.meta.targets()?;
        let Some(row) = rows.iter().find(|row| row.bit == self.bit) else { return Ok(()) };
        let (mode, reason) = match ill {
            Some((mode, reason)) => (mode, Some(reason)),
            None => (Mode::Follow, None),
        };
        if row.mode == Mode::Resync || (row.mode == mode && row.reason.as_deref() == reason) {
            return Ok(());
        }
        self.shared.meta.set_target_mode(self.bit, mode, reason)
    }

    fn failed(&mut self, failure: Failure) -> Pause {
        let message = failure.to_string();
        match failure {
            Failure::Fenced(reason) => {
                let hint =
                    "one of the two mounts shall go on: end the other, and restore it from the targets if it is \
                            this one (tandemfs restore)"
                        .to_owned();
                let reason = format!("target {:?}: {reason}", self.name);
                match self.shut(Gate::Fenced { reason, hint }) {
                    Ok(pause) => return pause,
                    Err(error) => tracing::error!(target_name = self.name, %error, "a fenced target was not noted"),
                }
                Pause::Fenced
            }
            Failure::Target(error) => {
                self.failures = self.failures.saturating_add(1);
                tracing::debug!(target_name = self.name, %error, failures = self.failures, "shipping failed");
                self.report(Some(message));
                // A place that was lost or did not answer is looked at anew before the next write (T1).
                if matches!(error.kind, Kind::Unreachable | Kind::PlaceMissing | Kind::Denied | Kind::Config)
                    && self.keeper.state() == Gate::Open
                {
                    self.keeper.set(Gate::Unknown);
                }
                let pace = &self.shared.pace;
                let backoff = if error.class == Class::Rejected { pace.blocked } else { pace.retry };
                Pause::Retry(self.soon(backoff.delay(self.failures, random(), error.retry_after)))
            }
            Failure::Meta(error) => {
                self.failures = self.failures.saturating_add(1);
                tracing::error!(target_name = self.name, %error, "shipping failed in our own store");
                self.report(Some(message));
                Pause::Retry(self.shared.pace.blocked.delay(self.failures, random(), None))
            }
        }
    }

    /// A disk that is plugged in again shall not be waited for: looking for it costs nothing.
    fn soon(&self, delay: Duration) -> Duration {
        if self.target.is_local() { delay.min(self.shared.pace.local) } else { delay }
    }

    /// Sends what is stored and not confirmed, oldest first.
    async fn send_stored(&mut self) -> Result<(), Failure> {
        while let Some(stored) = self.shared.meta.next_unconfirmed(self.bit)? {
            self.check_writers().await?;
            self.send(&stored).await?;
            failpoint::pass(Point::SegmentSent);
            // The place may have been unmounted under the put (T1, T10): only what is surely there is confirmed.
            self.target.check_place().await?;
            self.shared.meta.confirm_segment(self.bit, stored.id.n)?;
            self.report(None);
        }
        Ok(())
    }

    async fn send(&self, stored: &StoredSegment) -> Result<(), Failure> {
        let id = &stored.id;
        let key = key::segment(id.epoch, id.writer, id.n);
        let error = match self.target.put(&key, stored.body.clone().into(), Existing::Refuse).await {
            Ok(()) => return Ok(()),
            Err(error) if error.kind == Kind::Exists || error.class == Class::Ambiguous => error,
            Err(error) => return Err(error.into()),
        };
        let foreign = || Failure::Fenced(format!("{key} is there and is not ours"));
        match self.target.get(&key, segment::BODY_BYTES_MAX).await {
            Ok(found) if found == stored.body => Ok(()),
            Ok(found) => {
                // Compressed by another version it is still the same segment: the hash says so.
                let cursor = self.shared.meta.cursor(self.bit)?;
                let (filesystem, target) = (self.shared.me.filesystem, cursor.id);
                let place = Place { filesystem, target, epoch: id.epoch, writer: id.writer, n: id.n };
                match segment::decode(&found, &place) {
                    Ok(decoded) if decoded.trailer.hash == id.hash => Ok(()),
                    Ok(_) => Err(foreign()),
                    // Nobody's history: read wrong, perhaps. A store that spoiled it shows the same again and again.
                    Err(why) => Err(Failure::Target(target::Error {
                        kind: Kind::Invalid,
                        class: Class::Temporary,
                        operation: "get",
                        key,
                        message: why.to_string(),
                        retry_after: None,
                    })),
                }
            }
            Err(found) if found.kind == Kind::Invalid => Err(foreign()),
            Err(found) if found.kind == Kind::NotFound => Err(error.into()),
            Err(found) => Err(found.into()),
        }
    }

    /// Looks for a higher writer when the last look is old (T7).
    async fn check_writers(&mut self) -> Result<(), Failure> {
        let now = clock::instant();
        if self.writers_listed.is_some_and(|listed| now.since(listed) < self.shared.pace.writers) {
            return Ok(());
        }
        let own = Own::of(&self.shared.meta, self.bit)?;
        if let Some((epoch, writer)) = contact::fenced_by(&self.target, &own).await? {
            return Err(Failure::Fenced(format!("writer {writer} took epoch {epoch}, ours is {}", own.epoch)));
        }
        self.writers_listed = Some(now);
        Ok(())
    }

    /// Selects, packs and stores the next round.
    async fn build(&mut self) -> Result<Round, Failure> {
        let (shared, bit) = (self.shared.clone(), self.bit);
        let started = clock::instant();
        self.control.asked_now.store(false, Ordering::Release);
        let round = blocking(move || build(&shared, bit)).await?;
        let done = clock::instant();
        self.round_done = Some((done, done.since(started)));
        Ok(round)
    }

    /// Drops journal rows that nobody needs any more. The first time in a mount there may be some from the last one.
    async fn trim(&mut self) -> Result<(), Failure> {
        let shipped = self.publish.borrow().shipped_seq;
        if self.trimmed == Some(shipped) {
            return Ok(());
        }
        self.trimmed = Some(shipped);
        let shared = self.shared.clone();
        blocking(move || {
            while shared.meta.trim_journal(shared.holds.lowest())? {}
            Ok(())
        })
        .await?;
        Ok(())
    }

    /// Publishes which records the target has, at a moment when nothing is on its way.
    fn note_holds(&self) {
        if let Ok(Some(holds)) = self.shared.meta.holds(self.bit) {
            self.publish.send_if_modified(|progress| {
                let news = progress.holds != holds;
                progress.holds = holds;
                news
            });
        }
    }

    /// Publishes how far the target is. An error of the store leaves what was known.
    fn report(&self, error: Option<String>) {
        let meta = &self.shared.meta;
        let known = meta.cursor(self.bit).and_then(|cursor| Ok((cursor, meta.shipping_backlog(self.bit)?)));
        let Ok((cursor, backlog)) = known else { return };
        self.publish.send_modify(|progress| {
            progress.shipped_seq = cursor.shipped_seq;
            progress.backlog = backlog;
            progress.last_error = error;
            if progress.last_error.is_none() && backlog == ShippingBacklog::default() {
                progress.whole_at = Some(clock::now());
            }
        });
    }
}

/// What became of a round.
struct Round {
    /// Segments were stored.
    built: bool,
    /// Records wait.
    pending: bool,
}

fn build(shared: &Shared, bit: TargetBit) -> meta::Result<Round> {
    let meta = &shared.meta;
    let row = meta.targets()?.into_iter().find(|row| row.bit == bit);
    if row.is_none_or(|row| row.mode == Mode::Resync) {
        // T4: it gets no records before its checkpoint is complete.
        return Ok(Round { built: sign_journal(shared, bit, Seq::ZERO)?, pending: true });
    }
    let window = meta.journal_window(bit, meta.head(), WindowLimits::default())?;
    let shipped = meta.cursor(bit)?.shipped_seq;
    if window.rows.is_empty() {
        return Ok(Round { built: sign_journal(shared, bit, shipped)?, pending: false });
    }
    let births = (shared.births)(window.end);
    let selection = segments::select(&window, &births, shared.order);
    if selection.is_empty() {
        return Ok(Round { built: sign_journal(shared, bit, shipped)?, pending: true });
    }
    let cursor = meta.cursor(bit)?;
    let encoded =
        segments::pack(&window, &selection, next_place(shared, &cursor), cursor.built.map(|built| built.hash));
    meta.store_segments(bit, &encoded, selection.position, &selection.deferred)?;
    failpoint::pass(Point::SegmentStored);
    Ok(Round { built: true, pending: true })
}

/// Where this mount's next segment of a target goes.
pub(super) fn next_place(shared: &Shared, cursor: &Cursor) -> Place {
    let Me { filesystem, epoch, writer, .. } = &shared.me;
    let n = cursor.built.map_or(SegmentNumber(0), |built| built.n).next();
    Place { filesystem: *filesystem, target: cursor.id, epoch: *epoch, writer: *writer, n }
}

/// Stores a segment without records, if a checkpoint is under way and this mount has written none here: a checkpoint
/// belongs to the history of its writer, and later ones name that writer as what they go on from only by its segments
/// (T7). True: it did.
fn sign_journal(shared: &Shared, bit: TargetBit, low_water: Seq) -> meta::Result<bool> {
    let meta = &shared.meta;
    let cursor = meta.cursor(bit)?;
    if shared.me.wrote(cursor.built) || !meta.checkpoints(bit)?.iter().any(|row| !row.complete) {
        return Ok(false);
    }
    meta.store_empty_segment(bit, &empty_segment(shared, &cursor, low_water))?;
    Ok(true)
}

/// The next segment, without records.
pub(super) fn empty_segment(shared: &Shared, cursor: &Cursor, low_water: Seq) -> Encoded {
    Builder::new(next_place(shared, cursor), cursor.built.map(|built| built.hash)).finish(low_water, true)
}

/// Runs work on the store where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> meta::Result<T> + Send + 'static,
) -> meta::Result<T> {
    match crate::aside::blocking(work).await {
        Ok(result) => result,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(meta::Error::Damaged("the process is ending".into())),
        },
    }
}

pub(super) fn random() -> u64 {
    crate::chance::u64()
}

#[cfg(test)]
#[path = "shipper_tests.rs"]
mod tests;
