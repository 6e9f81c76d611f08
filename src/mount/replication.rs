//! Replication as the mount runs it: one driver for the chunks, one shipper per target for the journal, and checkpoints.
//!
//! Owns: starting and stopping them together, targets that come, go, pause and are asked anew, what they say to `status`.
//! Does not own: what they do (`crate::replication`), which targets there are (`mount::targets`).

use std::sync::Arc;

use crate::news as watch;
use parking_lot::{Mutex, RwLock};
use tokio::task::JoinHandle;

use crate::clock;
use crate::control::status::Health;
use crate::id::{Epoch, Seq, TargetBit};
use crate::meta::placement::ChunkTodo;
use crate::meta::{Meta, Result};
use crate::replication::ack::Holds;
use crate::replication::checkpoint::{CheckpointTarget, Checkpointer, Thresholds};
use crate::replication::contact::{Asked, Me};
use crate::replication::driver::{self, Driver, DriverTarget};
use crate::replication::gate::{Gate, GateWatch, gate};
use crate::replication::health::State;
use crate::replication::holds::JournalHolds;
use crate::replication::planner::View;
use crate::replication::selection::Order;
use crate::replication::shipper::{Pace, Progress, Shared, Shipper, Waiting};
use crate::replication::source::Finding;
use crate::write::Files;

/// The running replication of a mount; of a read-only one, nothing.
pub struct Replication {
    running: Option<Running>,
    peers: RwLock<Vec<Peer>>,
    checkpointer: Mutex<Option<Arc<Checkpointer>>>,
}

/// What all targets share.
struct Running {
    driver: Driver,
    /// Of the writer that this mount is; another one after [`Replication::begin_epoch`].
    shared: RwLock<Shared>,
    runtime: tokio::runtime::Handle,
    exports: std::path::PathBuf,
    thresholds: Thresholds,
}

/// One target as it takes part.
#[derive(Clone)]
struct Peer {
    asked: Asked,
    gate: GateWatch,
    /// `None` while it is paused.
    shipper: Option<Arc<Shipper>>,
}

/// A target to replicate to.
#[derive(Debug, Clone)]
pub struct Replica {
    pub asked: Asked,
    /// Transfers of chunks at the same time at most; `None`: found out by trying, within the driver's bound.
    pub concurrency: Option<u32>,
    /// Nothing is sent to it for now.
    pub paused: bool,
}

/// While it lives, shippers know that somebody waits.
struct Hurrying(Vec<JoinHandle<()>>);

impl Drop for Hurrying {
    fn drop(&mut self) {
        for waiter in &self.0 {
            waiter.abort();
        }
    }
}

impl Replication {
    /// Nothing is replicated.
    pub fn none() -> Replication {
        Replication { running: None, peers: RwLock::default(), checkpointer: Mutex::default() }
    }

    /// Starts it for these targets. Must be called within a tokio runtime.
    pub fn start(
        meta: &Arc<Meta>,
        files: &Arc<Files>,
        targets: Vec<Replica>,
        thresholds: Thresholds,
    ) -> Result<Replication> {
        let (births, busy) = (files.clone(), files.clone());
        let shared = Shared {
            meta: meta.clone(),
            me: Me::of(meta, clock::now())?,
            births: Arc::new(move |window| births.births().waiting(window, clock::instant()).into_iter().collect()),
            can_wait: Arc::new(move || busy.can_wait()),
            order: Order::Overtaking,
            pace: Pace::default(),
            holds: Arc::default(),
        };
        let driver = Driver::start(meta.clone(), files.chunk_files().clone(), Vec::new(), driver::Options::default())?;
        let exports = meta.path().with_file_name("export");
        let checkpointer = Checkpointer::start(shared.clone(), Vec::new(), exports.clone(), thresholds)?;
        let running = Running {
            driver,
            shared: RwLock::new(shared),
            runtime: tokio::runtime::Handle::current(),
            exports,
            thresholds,
        };
        let replication = Replication {
            running: Some(running),
            peers: RwLock::default(),
            checkpointer: Mutex::new(Some(Arc::new(checkpointer))),
        };
        targets.into_iter().for_each(|target| replication.add(target));
        Ok(replication)
    }

    /// Takes one more target in.
    pub fn add(&self, replica: Replica) {
        let Some(running) = &self.running else { return };
        let Replica { asked, concurrency, paused } = replica;
        let (keeper, gate) = gate(Gate::Unknown);
        drop(keeper);
        running.driver.add(DriverTarget {
            bit: asked.bit,
            name: asked.name.clone(),
            target: asked.target.clone(),
            gate: gate.clone(),
            requests_max: concurrency,
        });
        if let Some(checkpointer) = &*self.checkpointer.lock() {
            checkpointer.add(checkpointed(&asked, &gate));
        }
        let peer = Peer { asked, gate, shipper: None };
        let bit = peer.asked.bit;
        self.peers.write().push(peer);
        match paused {
            true => running.driver.pause(bit, true),
            false => self.ship(bit),
        }
    }

    /// Sends nothing more to a target and forgets it.
    pub async fn remove(&self, bit: TargetBit) {
        let Some(running) = &self.running else { return };
        let shipper = self.take_shipper(bit);
        self.peers.write().retain(|peer| peer.asked.bit != bit);
        running.driver.remove(bit);
        if let Some(checkpointer) = &*self.checkpointer.lock() {
            checkpointer.remove(bit);
        }
        end(shipper).await;
    }

    /// Sends nothing to a target until [`Replication::resume`].
    pub async fn pause(&self, bit: TargetBit) {
        let Some(running) = &self.running else { return };
        running.driver.pause(bit, true);
        end(self.take_shipper(bit)).await;
        // What is under way elsewhere stops at the gate; it opens when the identity was read again.
        if let Some(peer) = self.peer(bit) {
            peer.gate.recheck();
        }
    }

    /// A paused target goes on.
    pub fn resume(&self, bit: TargetBit) {
        let Some(running) = &self.running else { return };
        running.driver.pause(bit, false);
        self.ship(bit);
    }

    /// Asks a target at once who it is, whatever was to be waited for.
    pub fn recheck(&self, bit: TargetBit) {
        if let (Some(peer), Some(running)) = (self.peer(bit), &self.running) {
            running.driver.retry(bit);
            peer.gate.recheck();
        }
    }

    /// As [`Replication::recheck`], of a target that something hinders.
    pub fn recheck_if_ill(&self, bit: TargetBit) {
        if self.complaint(bit).is_some() && self.peer(bit).is_some_and(|peer| peer.shipper.is_some()) {
            self.recheck(bit);
        }
    }

    /// Looks again at everything that a target may lack: its rows were changed in bulk.
    pub fn walk_anew(&self, bit: TargetBit) {
        if let Some(running) = &self.running {
            running.driver.walk_anew(bit);
        }
    }

    /// True if chunks wait for a target or are on their way to it.
    pub fn is_busy(&self, bit: TargetBit) -> bool {
        self.view(bit).is_some_and(|view| !view.drained)
    }

    /// What is sent to a target, in bytes per second, lately.
    pub fn bytes_per_second(&self, bit: TargetBit) -> f64 {
        let status = self.running.as_ref().and_then(|running| running.driver.status().ok()).unwrap_or_default();
        status.into_iter().find(|status| status.bit == bit).map_or(0.0, |status| status.bytes_per_second)
    }

    /// Journal rows that checkpoints on their way keep.
    pub fn journal_holds(&self) -> Arc<JournalHolds> {
        self.running.as_ref().map(|running| running.shared.read().holds.clone()).unwrap_or_default()
    }

    /// The targets that take part, with their stores and gates.
    pub fn targets(&self) -> Vec<(Asked, GateWatch)> {
        self.peers.read().iter().map(|peer| (peer.asked.clone(), peer.gate.clone())).collect()
    }

    /// Takes a checkpoint of these targets, if they are in contact; returns when it is complete or given up.
    pub async fn checkpoint(&self, bits: &[TargetBit]) {
        let checkpointer = self.checkpointer.lock().clone();
        if let Some(checkpointer) = checkpointer {
            checkpointer.take(bits).await;
        }
    }

    /// Goes on as a new writer above the epoch `seen` (T7): everything about history is stopped, `between` is done, and
    /// every target is contacted anew.
    pub async fn begin_epoch(&self, seen: Epoch, between: impl FnOnce(&Arc<Meta>) -> Result<()> + Send) -> Result<()> {
        let Some(running) = &self.running else { return Ok(()) };
        let checkpointer = self.checkpointer.lock().take();
        if let Some(checkpointer) = checkpointer {
            match Arc::try_unwrap(checkpointer) {
                Ok(checkpointer) => checkpointer.stop().await,
                // Dropped by whoever uses it now.
                Err(_used) => {}
            }
        }
        let bits: Vec<TargetBit> = self.peers.read().iter().map(|peer| peer.asked.bit).collect();
        let mut shipped = Vec::new();
        for bit in bits {
            if let Some(shipper) = self.take_shipper(bit) {
                end(Some(shipper)).await;
                shipped.push(bit);
            }
        }
        let meta = running.shared.read().meta.clone();
        meta.begin_epoch(seen)?;
        between(&meta)?;
        let me = Me::of(&meta, clock::now())?;
        let shared = {
            let mut shared = running.shared.write();
            shared.me = me;
            shared.clone()
        };
        let peers = self.peers.read().clone();
        let targets = peers.iter().map(|peer| checkpointed(&peer.asked, &peer.gate)).collect();
        let checkpointer = Checkpointer::start(shared, targets, running.exports.clone(), running.thresholds)?;
        *self.checkpointer.lock() = Some(Arc::new(checkpointer));
        for peer in &peers {
            // A fenced gate does not open by being asked: its keeper is gone, and the next one decides.
            peer.gate.keeper().set(Gate::Unknown);
        }
        shipped.into_iter().for_each(|bit| self.ship(bit));
        Ok(())
    }

    /// Starts the shipper of a target that has none.
    fn ship(&self, bit: TargetBit) {
        let Some(running) = &self.running else { return };
        let mut peers = self.peers.write();
        let Some(peer) = peers.iter_mut().find(|peer| peer.asked.bit == bit && peer.shipper.is_none()) else { return };
        let _runtime = running.runtime.enter();
        let shared = running.shared.read().clone();
        let Asked { bit, name, target } = peer.asked.clone();
        peer.shipper = Some(Arc::new(Shipper::start(shared, bit, &name, target, peer.gate.keeper())));
    }

    fn take_shipper(&self, bit: TargetBit) -> Option<Arc<Shipper>> {
        self.peers.write().iter_mut().find(|peer| peer.asked.bit == bit)?.shipper.take()
    }

    fn peer(&self, bit: TargetBit) -> Option<Peer> {
        self.peers.read().iter().find(|peer| peer.asked.bit == bit).cloned()
    }

    /// Whether a target may be written to.
    pub fn gate(&self, bit: TargetBit) -> Gate {
        self.peer(bit).map(|peer| peer.gate.state()).unwrap_or_default()
    }

    /// Our belief about a target, and its newest error.
    pub fn health(&self, bit: TargetBit) -> (Health, Option<String>) {
        if self.running.is_some() && self.peer(bit).is_some_and(|peer| peer.shipper.is_none()) {
            return (Health::Paused, None);
        }
        let Some(view) = self.view(bit) else { return (Health::Healthy, None) };
        let health = match view.health {
            State::Healthy => Health::Healthy,
            State::Suspect => Health::Suspect,
            // The reason is said besides.
            State::Down | State::Blocked => Health::Down,
            State::Probing => Health::Probing,
            State::Paused => Health::Paused,
        };
        let shipping_error = self.shipping_error(bit);
        // Out of contact nothing is put, so the driver learns nothing: the belief is that of the contact.
        let out_of_contact = match self.gate(bit) {
            Gate::Unknown => shipping_error.is_some(),
            Gate::Blocked { .. } => true,
            Gate::Open | Gate::Fenced { .. } => false,
        };
        let health = match health {
            Health::Healthy | Health::Suspect if out_of_contact => Health::Down,
            health => health,
        };
        (health, view.last_failure.map(|failure| failure.message).or(shipping_error))
    }

    /// What hinders a target now, and what to do about it.
    pub fn complaint(&self, bit: TargetBit) -> Option<(String, String)> {
        let Some(peer) = self.peer(bit) else {
            let reason = "it is not in the configuration of this mount".to_owned();
            let hint =
                "mount with all targets, or give it up: tandemfs target remove; what it lacks stays here meanwhile";
            return Some((reason, hint.into()));
        };
        if peer.shipper.is_none() && self.running.is_some() {
            let hint = format!("it goes on with: tandemfs target resume MOUNTPOINT {}", peer.asked.name);
            return Some(("paused by the operator".into(), hint));
        }
        match peer.gate.state() {
            Gate::Blocked { reason, hint } | Gate::Fenced { reason, hint } => return Some((reason, hint)),
            Gate::Open | Gate::Unknown => {}
        }
        let view = self.view(bit)?;
        match view.last_failure.filter(|_| view.health != State::Healthy) {
            Some(failure) => {
                let hint = failure.hint().to_owned();
                Some((failure.message, hint))
            }
            None => self.shipping_error(bit).map(|error| (error, "it is tried again by itself".into())),
        }
    }

    /// What was found wrong with copies that were to be sent, and how many findings there were.
    pub fn findings(&self) -> (Vec<Finding>, u64) {
        self.running.as_ref().map(|running| running.driver.findings()).unwrap_or_default()
    }

    /// While the guard lives, records up to `seq` are shipped as soon as they can be. Must be called within a runtime.
    pub fn hurry(&self, seq: Seq) -> Box<dyn Send> {
        let wait = |shipper: &Arc<Shipper>| {
            let shipper = shipper.clone();
            tokio::spawn(async move { _ = shipper.shipped(seq).await })
        };
        Box::new(Hurrying(self.shippers().iter().map(wait).collect()))
    }

    /// While the guards live, no record waits for company on any target (T2).
    pub fn hurry_shippers(&self) -> Vec<Waiting> {
        self.shippers().iter().map(|shipper| shipper.hurry()).collect()
    }

    /// Lets every shipper look at once for what can go.
    pub fn ship_now(&self) {
        self.shippers().iter().for_each(|shipper| shipper.ship_now());
    }

    /// Which records a target has; `None` if this mount does not ship to it.
    pub fn holds(&self, bit: TargetBit) -> Option<Holds> {
        Some(self.shippers().iter().find(|shipper| shipper.bit() == bit)?.progress().holds)
    }

    /// Tells of each change of what targets have.
    pub fn watch(&self) -> Vec<watch::Receiver<Progress>> {
        self.shippers().iter().map(|shipper| shipper.watch()).collect()
    }

    /// Sends chunks before others, to each target that lacks them; beside each the mask of targets that have it.
    pub fn send_first(&self, chunks: &[(ChunkTodo, u64)]) {
        if let Some(running) = &self.running {
            running.driver.await_chunks(chunks);
        }
    }

    /// Takes the checkpoints that are due at the end of a mount (T3); the caller bounds the time.
    pub async fn last_checkpoints(&self) {
        let checkpointer = self.checkpointer.lock().clone();
        if let Some(checkpointer) = checkpointer {
            checkpointer.finish().await;
        }
    }

    /// Stops everything; what is under way is sent by the next mount.
    pub async fn stop(&self) {
        // One that is waited for still ends with that waiter.
        let checkpointer = self.checkpointer.lock().take().and_then(Arc::into_inner);
        if let Some(checkpointer) = checkpointer {
            checkpointer.stop().await;
        }
        let peers = std::mem::take(&mut *self.peers.write());
        futures::future::join_all(peers.into_iter().map(|peer| end(peer.shipper))).await;
        if let Some(running) = &self.running {
            running.driver.stop().await;
        }
    }

    fn shippers(&self) -> Vec<Arc<Shipper>> {
        self.peers.read().iter().filter_map(|peer| peer.shipper.clone()).collect()
    }

    fn shipping_error(&self, bit: TargetBit) -> Option<String> {
        self.peer(bit)?.shipper?.progress().last_error
    }

    fn view(&self, bit: TargetBit) -> Option<View> {
        let status = self.running.as_ref()?.driver.status().ok()?;
        status.into_iter().find(|status| status.bit == bit).map(|status| status.view)
    }
}

fn checkpointed(asked: &Asked, gate: &GateWatch) -> CheckpointTarget {
    CheckpointTarget { bit: asked.bit, name: asked.name.clone(), target: asked.target.clone(), gate: gate.clone() }
}

/// Ends a shipper: it does nothing any more when this returns. One that a waiter still holds ends with that waiter.
async fn end(shipper: Option<Arc<Shipper>>) {
    if let Some(shipper) = shipper {
        shipper.end().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::chunk::evict::Evictor;
    use crate::chunk::file::ChunkFiles;
    use crate::chunk::open::OpenFiles;
    use crate::chunk::space::{Limits, Space};
    use crate::meta::target::Configured;
    use crate::meta::testing::store;
    use crate::target::memory::MemoryTarget;
    use crate::write;

    #[tokio::test]
    async fn the_configured_concurrency_of_a_target_bounds_its_driver() {
        let (dir, meta) = store();
        let meta = Arc::new(meta);
        let open_files = Arc::new(OpenFiles::new(ChunkFiles::new(dir.path()).unwrap()));
        let space = Arc::new(Space::new(dir.path(), Limits { used_max: 1 << 40, free_min: 0 }, 0));
        let evictor = Arc::new(Evictor::new(meta.clone(), open_files.clone(), space.clone()));
        let (files, _queue) = Files::new(write::Options { meta: meta.clone(), open_files, space, evictor }).unwrap();
        let names = ["one", "many", "unsaid"];
        let configured = names.map(|name| Configured { name: name.into(), uri: format!("memory://{name}"), id: None });
        let rows = meta.register_targets(&configured).unwrap().configured;
        let replica = |(row, concurrency): (&crate::meta::target::TargetRow, Option<u32>)| Replica {
            asked: Asked { bit: row.bit, name: row.name.clone(), target: Arc::new(MemoryTarget::new()) },
            concurrency,
            paused: false,
        };
        let replicas = rows.iter().zip([Some(1), Some(40), None]).map(replica).collect();
        let replication = Replication::start(&meta, &files, replicas, Thresholds::default()).unwrap();
        let known = || rows.iter().all(|row| replication.view(row.bit).is_some());
        while !known() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        // It starts with half of the bound.
        let limits: Vec<u32> = rows.iter().map(|row| replication.view(row.bit).unwrap().limit).collect();
        let unsaid = crate::replication::planner::Config::default().requests_max;
        assert_eq!(limits, [1, 20, unsaid / 2]);
        replication.stop().await;
    }
}
