//! The driver: performs the planner's effects and feeds back what came of them.
//!
//! Owns: the planner, one task per thing under way, batches of confirmations, statistics for `status`.
//! Does not own: decisions (`planner`), one put (`upload`), the check of a target's identity (`contact`, behind the gate).
//!
//! ```text
//!  commits, gates, deadlines, ends of tasks ──▶ planner ──▶ effects ──▶ tasks
//!  confirmations of a moment ──▶ is it still the place? (T1, T10) ──▶ one transaction sets the bits ──▶ planner
//! ```
//!
//! - The loop itself never waits for disk, store or target: everything that may wait is a task.
//! - Tasks are bounded by the planner's bounds: per target one page, one probe, its requests, its batches.
//! - Everything that ended by the time the loop looks is taken together, and the small puts that follow from it go as one
//!   task: so a queue of small chunks costs a few wakings for many of them.
//! - A task that panics counts as a failure of its target, in doubt: a job is never lost with its task.
//! - Crash: nothing is kept here. A put without its bit is sent again; the object is named by its content.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::news as watch;
use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc;
use tokio::task::{self, JoinSet};

use super::gate::{Gate, GateWatch};
use super::health::Failure;
use super::planner::{Config, Effect, Event, Planner, TargetEvent, View};
use super::source::Finding;
use super::upload::{Findings, Outcome, Patience, Peer, Prepared, Uploader, blocking, unanswered};
use crate::chance;
use crate::chunk::file::ChunkFiles;
use crate::clock::{self, Instant};
use crate::format::key;
use crate::id::{ChunkId, TargetBit};
use crate::meta::placement::{ChunkTodo, Tally};
use crate::meta::{Error, Meta, Result};
use crate::target::{Class, DynTarget, Kind};
use crate::testing::failpoint::{self, Point};

/// More than any `tandemfs.json` has.
const SUPERBLOCK_BYTES_MAX: u64 = 64 << 10;

/// Events taken together: the loop looks at its other duties in between.
const EVENTS_MAX: usize = 1024;

/// Bounds and times of the driver.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub planner: Config,
    /// Confirmations that are recorded together.
    pub batch: usize,
    /// How long a confirmation waits for others.
    pub gather: Duration,
    pub patience: Patience,
    /// Bytes that puts to one target may hold in memory (mappings do not count).
    pub copied_max: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            planner: Config::default(),
            // At 6 µs each below the 2 ms that a transaction of the background may take (D8).
            batch: 256,
            gather: Duration::from_millis(50),
            patience: Patience::default(),
            copied_max: 16 << 20,
        }
    }
}

/// A target to drive.
#[derive(Debug)]
pub struct DriverTarget {
    pub bit: TargetBit,
    pub name: String,
    pub target: DynTarget,
    pub gate: GateWatch,
    /// Requests in flight at most; `None`: [`Config::requests_max`].
    pub requests_max: Option<u32>,
}

/// What is known of one target.
#[derive(Debug, Clone)]
pub struct TargetStatus {
    pub bit: TargetBit,
    pub name: String,
    /// Health, gate, last failure, what is in flight.
    pub view: View,
    /// What it has and what it lacks.
    pub tally: Tally,
    /// Sent in this mount.
    pub sent_chunks: u64,
    pub sent_bytes: u64,
    /// Lately.
    pub bytes_per_second: f64,
}

/// The running driver of a mount. Dropping it stops it without waiting.
pub struct Driver {
    uploader: Arc<Uploader>,
    views: Arc<Mutex<BTreeMap<TargetBit, View>>>,
    placed: watch::Receiver<u64>,
    events: mpsc::UnboundedSender<Done>,
    changes: mpsc::UnboundedSender<Change>,
    stop: watch::Sender<bool>,
    ended: tokio::sync::Mutex<Option<task::JoinHandle<()>>>,
}

impl Driver {
    /// Starts driving. Must be called within a tokio runtime.
    pub fn start(meta: Arc<Meta>, files: ChunkFiles, targets: Vec<DriverTarget>, options: Options) -> Result<Driver> {
        let (_, _, mount) = meta.writer_identity()?;
        let chunks = meta.watch_chunks();
        let now = clock::instant();
        let bounds = targets.iter().map(|target| (target.bit, target.requests_max));
        let planner = Planner::new(options.planner, bounds, now);
        let (events, inbox) = mpsc::unbounded_channel();
        let (changes, changed) = mpsc::unbounded_channel();
        let (mut forwarders, mut gates) = (JoinSet::new(), BTreeMap::new());
        for target in &targets {
            let forwarder = forwarders.spawn(forward_gate(target.bit, target.gate.clone(), events.clone()));
            gates.insert(target.bit, forwarder);
        }
        let peer =
            |target: DriverTarget| Peer::new(target.bit, target.name, target.target, target.gate, options.copied_max);
        let uploader = Arc::new(Uploader {
            meta,
            files,
            mount,
            patience: options.patience,
            peers: RwLock::new(targets.into_iter().map(peer).map(Arc::new).collect()),
            findings: Findings::default(),
        });
        let (stop, stopped) = watch::channel(false);
        let (placed_sender, placed) = watch::channel(0);
        let views = Arc::new(Mutex::new(BTreeMap::new()));
        let run = Run {
            options,
            planner,
            uploader: Arc::clone(&uploader),
            views: Arc::clone(&views),
            placed: placed_sender,
            tasks: JoinSet::new(),
            under_way: HashMap::new(),
            batches: BTreeMap::new(),
            events: events.clone(),
            forwarders,
            gates,
        };
        run.publish();
        let ended = tokio::spawn(run.run(inbox, changed, chunks, stopped));
        Ok(Driver { uploader, views, placed, events, changes, stop, ended: tokio::sync::Mutex::new(Some(ended)) })
    }

    /// What is known of every target, in the order of the configuration.
    pub fn status(&self) -> Result<Vec<TargetStatus>> {
        let tallies: BTreeMap<_, _> = self.uploader.meta.tallies()?.into_iter().collect();
        let views = self.views.lock().clone();
        let now = clock::instant();
        let of = |peer: &Peer| {
            let (sent_chunks, sent_bytes) = peer.traffic.total();
            Some(TargetStatus {
                bit: peer.bit,
                name: peer.name.clone(),
                view: views.get(&peer.bit)?.clone(),
                tally: tallies.get(&peer.bit).copied().unwrap_or_default(),
                sent_chunks,
                sent_bytes,
                bytes_per_second: peer.traffic.rate(now),
            })
        };
        Ok(self.uploader.all_peers().iter().filter_map(|peer| of(peer)).collect())
    }

    /// What was found wrong with copies in this mount, and how many findings there were.
    pub fn findings(&self) -> (Vec<Finding>, u64) {
        self.uploader.findings.all()
    }

    /// Tells of each transaction that set placement bits.
    pub fn placed_changed(&self) -> watch::Receiver<u64> {
        self.placed.clone()
    }

    /// Sends chunks that an acknowledgement waits for before others, to each target that lacks them; beside each chunk the
    /// mask of targets that have it.
    pub fn await_chunks(&self, chunks: &[(ChunkTodo, u64)]) {
        for peer in self.uploader.all_peers() {
            let lacks = |(chunk, placed): &(ChunkTodo, u64)| (placed & peer.bit.mask() == 0).then_some(*chunk);
            let lacking: Vec<ChunkTodo> = chunks.iter().filter_map(lacks).collect();
            if !lacking.is_empty() {
                // An error means that the driver has stopped: nobody waits for long then.
                let _ = self.events.send((peer.bit, vec![TargetEvent::Awaited(lacking)]));
            }
        }
    }

    /// Takes one more target in.
    pub fn add(&self, target: DriverTarget) {
        let _ = self.changes.send(Change::Add(target));
    }

    /// Sends nothing more to a target, and forgets it.
    pub fn remove(&self, bit: TargetBit) {
        let _ = self.changes.send(Change::Remove(bit));
    }

    /// Looks again at everything that a target may lack: its rows were changed in bulk.
    pub fn walk_anew(&self, bit: TargetBit) {
        let _ = self.changes.send(Change::WalkAnew(bit));
    }

    /// Tries a target again at once that was out of use.
    pub fn retry(&self, bit: TargetBit) {
        let _ = self.events.send((bit, vec![TargetEvent::Retry]));
    }

    /// Pauses a target, or lets it go on.
    pub fn pause(&self, bit: TargetBit, paused: bool) {
        // An error means that the driver has stopped: nothing is sent any more anyway.
        let _ = self.changes.send(Change::Pause(bit, paused));
    }

    /// Starts nothing more, records what was confirmed, gives up what is in flight, and returns when that is done.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        if let Some(ended) = self.ended.lock().await.take() {
            let _ = ended.await;
        }
    }
}

/// Tells the planner of the gate, now and whenever it changes.
async fn forward_gate(bit: TargetBit, mut gate: GateWatch, events: mpsc::UnboundedSender<Done>) {
    let mut state = gate.state();
    while events.send((bit, vec![TargetEvent::Gate(state)])).is_ok() {
        state = gate.changed().await;
    }
}

/// Confirmations that wait to be recorded together.
#[derive(Debug)]
struct Batch {
    chunks: Vec<ChunkId>,
    due: Instant,
}

/// A change of the set of targets.
#[derive(Debug)]
enum Change {
    Add(DriverTarget),
    Remove(TargetBit),
    WalkAnew(TargetBit),
    Pause(TargetBit, bool),
}

/// What a task brings back.
type Done = (TargetBit, Vec<TargetEvent>);

/// A task under way.
struct Task {
    bit: TargetBit,
    handle: task::AbortHandle,
    work: Work,
}

/// What to tell the planner of a task that is lost to a panic.
enum Work {
    One(TargetEvent),
    /// Of a group of puts, those that did not end yet.
    Puts(Arc<Mutex<Vec<ChunkTodo>>>),
}

impl Work {
    fn lost(self) -> Vec<TargetEvent> {
        match self {
            Work::One(event) => vec![event],
            Work::Puts(left) => {
                let failed = |chunk: &ChunkTodo| TargetEvent::Failed(chunk.id, broken("put", &key::chunk(chunk.hash)));
                left.lock().iter().map(failed).collect()
            }
        }
    }
}

/// The state of the loop.
struct Run {
    options: Options,
    planner: Planner,
    uploader: Arc<Uploader>,
    views: Arc<Mutex<BTreeMap<TargetBit, View>>>,
    placed: watch::Sender<u64>,
    tasks: JoinSet<Done>,
    under_way: HashMap<task::Id, Task>,
    batches: BTreeMap<TargetBit, Batch>,
    /// For the forwarders of targets that come later.
    events: mpsc::UnboundedSender<Done>,
    /// Forwarders; they end with the loop.
    forwarders: JoinSet<()>,
    gates: BTreeMap<TargetBit, task::AbortHandle>,
}

impl Run {
    async fn run(
        mut self,
        mut inbox: mpsc::UnboundedReceiver<Done>,
        mut changes: mpsc::UnboundedReceiver<Change>,
        mut chunks: watch::Receiver<u64>,
        mut stop: watch::Receiver<bool>,
    ) {
        self.handle([Event::Tick]);
        let mut events = Vec::new();
        loop {
            let sleep = self.sleep();
            tokio::select! {
                biased;
                // An error means that the handle was dropped.
                _ = stop.wait_for(|stop| *stop) => break,
                Some(done) = inbox.recv() => self.take(done, &mut events),
                Some(change) = changes.recv() => self.change(change),
                Some(done) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.task_ended(done, &mut events),
                Ok(()) = chunks.changed() => events.push(Event::Added),
                () = sleep => events.push(Event::Tick),
            }
            while events.len() < EVENTS_MAX {
                if let Ok(done) = inbox.try_recv() {
                    self.take(done, &mut events);
                } else if let Some(done) = self.tasks.try_join_next_with_id() {
                    self.task_ended(done, &mut events);
                } else {
                    break;
                }
            }
            self.handle(events.drain(..));
        }
        self.shut_down().await;
    }

    /// Until when nothing happens by itself.
    fn sleep(&self) -> impl Future<Output = ()> + use<> {
        let now = clock::instant();
        let due = self.batches.values().map(|batch| batch.due).chain(self.planner.deadline()).min();
        async move {
            match due {
                // A millisecond more: a sleep that ends a moment early would only be repeated.
                Some(due) => clock::sleep(due.since(now) + Duration::from_millis(1)).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Takes what a task brought.
    fn take(&self, (bit, brought): Done, events: &mut Vec<Event>) {
        for event in brought {
            let answered = matches!(event, TargetEvent::Probed(Ok(())));
            let gone = match &event {
                TargetEvent::Failed(_, failure) | TargetEvent::Unconfirmed(_, failure) => {
                    failure.kind == Kind::PlaceMissing
                }
                _ => false,
            };
            events.push(Event::Target(bit, event));
            let gate = (answered || gone).then(|| self.peer(bit).map(|peer| peer.gate.clone())).flatten();
            if let Some(gate) = gate {
                // Contact again after an outage: the identity comes before the next put (T1).
                gate.recheck();
                if answered {
                    // The keeper may have been faster than this event; the planner must not wait for a change that is over.
                    events.push(Event::Target(bit, TargetEvent::Gate(gate.state())));
                }
            }
        }
    }

    fn handle(&mut self, events: impl IntoIterator<Item = Event>) {
        let random = chance::u64();
        let effects = self.planner.handle_all(clock::instant(), events, random);
        self.perform(effects);
        self.flush();
        self.publish();
    }

    fn publish(&self) {
        let mut views = self.views.lock();
        let peers = self.uploader.all_peers();
        views.retain(|bit, _| peers.iter().any(|peer| peer.bit == *bit));
        for peer in peers {
            if let Some(view) = self.planner.view(peer.bit) {
                views.insert(peer.bit, view);
            }
        }
    }

    fn peer(&self, bit: TargetBit) -> Option<Arc<Peer>> {
        self.uploader.peer(bit)
    }

    /// Targets come and go.
    fn change(&mut self, change: Change) {
        match change {
            Change::Add(target) => {
                let DriverTarget { bit, name, target, gate, requests_max } = target;
                self.forget(bit);
                self.planner.add(bit, requests_max, clock::instant());
                let watched = forward_gate(bit, gate.clone(), self.events.clone());
                let peer = Peer::new(bit, name, target, gate, self.options.copied_max);
                self.uploader.peers.write().push(Arc::new(peer));
                self.gates.insert(bit, self.forwarders.spawn(watched));
            }
            Change::Remove(bit) => self.forget(bit),
            Change::WalkAnew(bit) => self.planner.walk_anew(bit),
            Change::Pause(bit, paused) => self.handle([Event::Target(bit, TargetEvent::Pause(paused))]),
        }
        self.handle([Event::Tick]);
    }

    /// Gives up everything about a target. A task that ends all the same is not listened to.
    fn forget(&mut self, bit: TargetBit) {
        self.planner.remove(bit);
        self.uploader.peers.write().retain(|peer| peer.bit != bit);
        if let Some(forwarder) = self.gates.remove(&bit) {
            forwarder.abort();
        }
        self.batches.remove(&bit);
        self.under_way.retain(|_, task| {
            let stays = task.bit != bit;
            if !stays {
                task.handle.abort();
            }
            stays
        });
    }

    fn perform(&mut self, effects: Vec<(TargetBit, Effect)>) {
        let mut groups: BTreeMap<(TargetBit, bool), Vec<ChunkTodo>> = BTreeMap::new();
        for (bit, effect) in effects {
            match effect {
                Effect::Put(chunk, lane) if chunk.length <= self.options.planner.queue.small_max => {
                    groups.entry((bit, lane.is_background())).or_default().push(chunk);
                }
                Effect::Put(chunk, lane) => self.put(bit, lane.is_background(), vec![chunk]),
                effect => self.perform_one(bit, effect),
            }
        }
        for ((bit, background), chunks) in groups {
            self.put(bit, background, chunks);
        }
    }

    /// Puts chunks, whose bytes are found together.
    fn put(&mut self, bit: TargetBit, background: bool, chunks: Vec<ChunkTodo>) {
        let left = Arc::new(Mutex::new(chunks.clone()));
        let work = put(Arc::clone(&self.uploader), bit, background, chunks, Arc::clone(&left), self.events.clone());
        self.spawn(bit, Work::Puts(left), work);
    }

    fn perform_one(&mut self, bit: TargetBit, effect: Effect) {
        let Some(peer) = self.peer(bit) else { return };
        let (uploader, target, patience) = (Arc::clone(&self.uploader), peer.target.clone(), self.options.patience);
        match effect {
            Effect::Load { after, limit } => {
                let work = async move { vec![load(&uploader, bit, after, limit).await] };
                self.spawn(bit, Work::One(TargetEvent::LoadFailed), work);
            }
            Effect::Put(..) => unreachable!("puts are performed together"),
            Effect::Check(chunk) => {
                let key = key::chunk(chunk.hash);
                let lost = TargetEvent::Failed(chunk.id, broken("stat", &key));
                self.spawn(bit, Work::One(lost), async move {
                    vec![match clock::timeout(patience.answer, target.stat(&key)).await {
                        Ok(Ok(found)) => TargetEvent::Checked(chunk.id, found),
                        Ok(Err(error)) => TargetEvent::Failed(chunk.id, error.into()),
                        Err(_) => TargetEvent::Failed(chunk.id, unanswered("stat", &key)),
                    }]
                });
            }
            Effect::Confirm(chunk) => {
                let due = clock::instant() + self.options.gather;
                self.batches.entry(bit).or_insert_with(|| Batch { chunks: vec![], due }).chunks.push(chunk.id);
            }
            Effect::Probe => {
                let lost = TargetEvent::Probed(Err(broken("get", key::SUPERBLOCK)));
                self.spawn(bit, Work::One(lost), async move {
                    // A directory that was lost answers nothing but this: it is how contact is made (T10).
                    let get = target.get(key::SUPERBLOCK, SUPERBLOCK_BYTES_MAX);
                    vec![TargetEvent::Probed(match clock::timeout(patience.answer, get).await {
                        Ok(Ok(_)) => Ok(()),
                        // That there is none, or a strange one, is an answer. What it means is for `contact` to judge.
                        Ok(Err(error)) if matches!(error.kind, Kind::NotFound | Kind::Invalid) => Ok(()),
                        Ok(Err(error)) => Err(error.into()),
                        Err(_) => Err(unanswered("get", key::SUPERBLOCK)),
                    })]
                });
            }
        }
    }

    /// Starts a task whose end is events; of `work` the planner is told if it panics.
    fn spawn(&mut self, bit: TargetBit, work: Work, future: impl Future<Output = Vec<TargetEvent>> + Send + 'static) {
        let handle = self.tasks.spawn(async move { (bit, future.await) });
        self.under_way.insert(handle.id(), Task { bit, handle, work });
    }

    fn task_ended(&mut self, done: std::result::Result<(task::Id, Done), task::JoinError>, events: &mut Vec<Event>) {
        let done = match done {
            Ok((id, done)) => {
                if self.under_way.remove(&id).is_none() {
                    // Of a target that was removed meanwhile.
                    return;
                }
                done
            }
            Err(error) => {
                let Some(Task { bit, work, .. }) = self.under_way.remove(&error.id()) else { return };
                tracing::error!(target = bit.index(), %error, "a task of the uploader ended before its work");
                (bit, work.lost())
            }
        };
        self.take(done, events);
    }

    /// Records batches that are full or due, or that nothing more would join.
    fn flush(&mut self) {
        let now = clock::instant();
        let ready = |(bit, batch): (&TargetBit, &Batch)| {
            (self.planner.is_idle(*bit) || batch.chunks.len() >= self.options.batch || now >= batch.due).then_some(*bit)
        };
        let bits: Vec<TargetBit> = self.batches.iter().filter_map(ready).collect();
        for bit in bits {
            if let Some(batch) = self.batches.remove(&bit) {
                self.record(bit, batch);
            }
        }
    }

    fn record(&mut self, bit: TargetBit, batch: Batch) {
        let chunks = batch.chunks.clone();
        let (uploader, placed) = (Arc::clone(&self.uploader), self.placed.clone());
        let lost = TargetEvent::Unconfirmed(batch.chunks, broken("check place", ""));
        self.spawn(bit, Work::One(lost), async move { vec![record(uploader, bit, chunks, placed).await] });
    }

    /// What is confirmed is recorded; what is in flight is given up: it is named by its content and sent again.
    async fn shut_down(mut self) {
        for task in self.under_way.values() {
            if !matches!(task.work, Work::One(TargetEvent::Unconfirmed(..))) {
                task.handle.abort();
            }
        }
        for (bit, batch) in std::mem::take(&mut self.batches) {
            self.record(bit, batch);
        }
        let records = async { while self.tasks.join_next().await.is_some() {} };
        // A target that hangs must not hold up the end: what it does not confirm now is sent again.
        let _ = clock::timeout(Duration::from_secs(2), records).await;
    }
}

/// Puts a group of chunks, each at its own pace; returns what came of the last of them. `left` are those that did not end.
async fn put(
    uploader: Arc<Uploader>,
    bit: TargetBit,
    background: bool,
    chunks: Vec<ChunkTodo>,
    left: Arc<Mutex<Vec<ChunkTodo>>>,
    events: mpsc::UnboundedSender<Done>,
) -> Vec<TargetEvent> {
    let prepared = uploader.prepare(bit, &chunks).await;
    let send = |(chunk, prepared): (ChunkTodo, Prepared)| {
        let uploader = &uploader;
        async move {
            let event = match uploader.put(bit, prepared, chunk, background).await {
                Outcome::Sent => TargetEvent::Sent(chunk.id),
                Outcome::Unsendable => TargetEvent::Unsendable(chunk.id),
                Outcome::Gone => TargetEvent::Gone(chunk.id),
                Outcome::Failed(failure) => TargetEvent::Failed(chunk.id, failure),
            };
            (chunk.id, event)
        }
    };
    let mut sending: FuturesUnordered<_> = chunks.into_iter().zip(prepared).map(send).collect();
    let mut ended = Vec::new();
    while let Some(first) = sending.next().await {
        ended.push(first);
        while let Some(Some(more)) = sending.next().now_or_never() {
            ended.push(more);
        }
        left.lock().retain(|chunk| !ended.iter().any(|(id, _)| *id == chunk.id));
        let brought: Vec<TargetEvent> = ended.drain(..).map(|(_, event)| event).collect();
        if sending.is_empty() {
            return brought;
        }
        // An error means that the loop has ended.
        let _ = events.send((bit, brought));
    }
    Vec::new()
}

async fn load(uploader: &Arc<Uploader>, bit: TargetBit, after: ChunkId, limit: usize) -> TargetEvent {
    let meta = Arc::clone(&uploader.meta);
    let read = move || {
        let page = meta.chunks_to_place(bit, after, limit)?;
        if !page.unneeded.is_empty() {
            meta.release(&page.unneeded)?;
        }
        Ok::<_, Error>(page)
    };
    match blocking(read).await {
        Some(Ok(page)) => TargetEvent::Loaded(page),
        Some(Err(error)) => {
            tracing::error!(target = bit.index(), %error, "what a target lacks cannot be read");
            TargetEvent::LoadFailed
        }
        None => TargetEvent::LoadFailed,
    }
}

/// Records that a target has these chunks, if it is still the place that it was (T1, T10).
async fn record(
    uploader: Arc<Uploader>,
    bit: TargetBit,
    chunks: Vec<ChunkId>,
    placed: watch::Sender<u64>,
) -> TargetEvent {
    let Some(peer) = uploader.peer(bit) else {
        return TargetEvent::Unconfirmed(chunks, broken("check place", ""));
    };
    match clock::timeout(uploader.patience.answer, peer.target.check_place()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return TargetEvent::Unconfirmed(chunks, error.into()),
        Err(_) => return TargetEvent::Unconfirmed(chunks, unanswered("check place", "")),
    }
    if matches!(peer.gate.state(), Gate::Blocked { .. } | Gate::Fenced { .. }) {
        return TargetEvent::Unconfirmed(chunks, broken("check place", ""));
    }
    loop {
        let (meta, ids) = (Arc::clone(&uploader.meta), chunks.clone());
        match blocking(move || meta.place(bit, &ids)).await {
            Some(Ok(_)) => {
                failpoint::pass(Point::Placement);
                placed.send_modify(|count| *count += 1);
                return TargetEvent::Placed(chunks);
            }
            // Nothing more is acknowledged until remount. The chunks stay confirming, and so bound what is sent on.
            Some(Err(Error::Latched)) => std::future::pending().await,
            Some(Err(error)) => {
                tracing::error!(target = peer.name, %error, "placements cannot be recorded; tried again");
                clock::sleep(Duration::from_secs(1)).await;
            }
            None => return TargetEvent::Unconfirmed(chunks, broken("place", "")),
        }
    }
}

/// The failure of a call that ended in a panic of ours: nobody knows what it did.
fn broken(operation: &str, key: &str) -> Failure {
    Failure {
        kind: Kind::Failed,
        class: Class::Ambiguous,
        retry_after: None,
        message: format!("{operation} {key:?}: given up"),
    }
}

#[cfg(test)]
mod tests;
