//! Replication as the mount runs it: one driver for the chunks, one shipper per target for the journal, and checkpoints.
//!
//! Owns: starting and stopping them together, what they say to `status`.
//! Does not own: what they do (`crate::replication`).

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::clock;
use crate::control::status::Health;
use crate::id::{Seq, TargetBit};
use crate::meta::placement::ChunkTodo;
use crate::meta::{Meta, Result};
use crate::replication::ack::Holds;
use crate::replication::checkpoint::{CheckpointTarget, Checkpointer, Thresholds};
use crate::replication::contact::{Asked, Me};
use crate::replication::driver::{self, Driver, DriverTarget};
use crate::replication::gate::{Gate, GateWatch, gate};
use crate::replication::health::State;
use crate::replication::planner::View;
use crate::replication::selection::Order;
use crate::replication::shipper::{Pace, Progress, Shared, Shipper, Waiting};
use crate::replication::source::Finding;
use crate::write::Files;

/// The running replication of a mount; of a read-only one, nothing.
pub struct Replication {
    driver: Option<Driver>,
    gates: Vec<(TargetBit, GateWatch)>,
    shippers: RwLock<Vec<Arc<Shipper>>>,
    checkpointer: Mutex<Option<Arc<Checkpointer>>>,
}

/// A target to replicate to.
#[derive(Debug, Clone)]
pub struct Replica {
    pub asked: Asked,
    /// Transfers of chunks at the same time at most; `None`: found out by trying, within the driver's bound.
    pub concurrency: Option<u32>,
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
        Replication { driver: None, gates: Vec::new(), shippers: RwLock::default(), checkpointer: Mutex::default() }
    }

    /// Starts it for these targets. Must be called within a tokio runtime.
    pub fn start(meta: &Arc<Meta>, files: &Arc<Files>, targets: Vec<Replica>) -> Result<Replication> {
        let births = files.clone();
        let shared = Shared {
            meta: meta.clone(),
            me: Me::of(meta, clock::now())?,
            births: Arc::new(move |window| births.births().waiting(window, clock::instant()).into_iter().collect()),
            order: Order::Overtaking,
            pace: Pace::default(),
            holds: Arc::default(),
        };
        let (mut gates, mut driven, mut shippers) = (Vec::new(), Vec::new(), Vec::new());
        let mut checkpointed = Vec::new();
        for Replica { asked, concurrency } in targets {
            let (keeper, watch) = gate(Gate::Unknown);
            gates.push((asked.bit, watch.clone()));
            checkpointed.push(CheckpointTarget {
                bit: asked.bit,
                name: asked.name.clone(),
                target: asked.target.clone(),
                gate: watch.clone(),
            });
            let target = asked.target.clone();
            shippers.push(Arc::new(Shipper::start(shared.clone(), asked.bit, &asked.name, target, keeper)));
            driven.push(DriverTarget {
                bit: asked.bit,
                name: asked.name,
                target: asked.target,
                gate: watch,
                requests_max: concurrency,
            });
        }
        let driver = Driver::start(meta.clone(), files.chunk_files().clone(), driven, driver::Options::default())?;
        let exports = meta.path().with_file_name("export");
        let checkpointer = Checkpointer::start(shared, checkpointed, exports, Thresholds::default())?;
        Ok(Replication {
            driver: Some(driver),
            gates,
            shippers: RwLock::new(shippers),
            checkpointer: Mutex::new(Some(Arc::new(checkpointer))),
        })
    }

    /// Whether a target may be written to.
    pub fn gate(&self, bit: TargetBit) -> Gate {
        self.gates.iter().find(|(known, _)| *known == bit).map(|(_, gate)| gate.state()).unwrap_or_default()
    }

    /// Our belief about a target, and its newest error.
    pub fn health(&self, bit: TargetBit) -> (Health, Option<String>) {
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
        if !self.gates.iter().any(|(known, _)| *known == bit) {
            let reason = "it is not in the configuration of this mount".to_owned();
            return Some((reason, "mount with all targets; what it lacks stays here meanwhile".into()));
        }
        match self.gate(bit) {
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
        self.driver.as_ref().map(Driver::findings).unwrap_or_default()
    }

    /// While the guard lives, records up to `seq` are shipped as soon as they can be. Must be called within a runtime.
    pub fn hurry(&self, seq: Seq) -> Box<dyn Send> {
        let wait = |shipper: &Arc<Shipper>| {
            let shipper = shipper.clone();
            tokio::spawn(async move { _ = shipper.shipped(seq).await })
        };
        Box::new(Hurrying(self.shippers.read().iter().map(wait).collect()))
    }

    /// While the guards live, no record waits for company on any target (T2).
    pub fn hurry_shippers(&self) -> Vec<Waiting> {
        self.shippers.read().iter().map(|shipper| shipper.hurry()).collect()
    }

    /// Lets every shipper look at once for what can go.
    pub fn ship_now(&self) {
        self.shippers.read().iter().for_each(|shipper| shipper.ship_now());
    }

    /// Which records a target has; `None` if this mount does not ship to it.
    pub fn holds(&self, bit: TargetBit) -> Option<Holds> {
        Some(self.shippers.read().iter().find(|shipper| shipper.bit() == bit)?.progress().holds)
    }

    /// Tells of each change of what targets have.
    pub fn watch(&self) -> Vec<watch::Receiver<Progress>> {
        self.shippers.read().iter().map(|shipper| shipper.watch()).collect()
    }

    /// Sends chunks before others, to each target that lacks them; beside each the mask of targets that have it.
    pub fn send_first(&self, chunks: &[(ChunkTodo, u64)]) {
        if let Some(driver) = &self.driver {
            driver.await_chunks(chunks);
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
        let shippers = std::mem::take(&mut *self.shippers.write());
        // One that a waiter still holds ends with that waiter.
        let owned = shippers.into_iter().filter_map(Arc::into_inner);
        futures::future::join_all(owned.map(Shipper::stop)).await;
        if let Some(driver) = &self.driver {
            driver.stop().await;
        }
    }

    fn shipping_error(&self, bit: TargetBit) -> Option<String> {
        self.shippers.read().iter().find(|shipper| shipper.bit() == bit)?.progress().last_error
    }

    fn view(&self, bit: TargetBit) -> Option<View> {
        let status = self.driver.as_ref()?.status().ok()?;
        status.into_iter().find(|status| status.bit == bit).map(|status| status.view)
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
        };
        let replicas = rows.iter().zip([Some(1), Some(40), None]).map(replica).collect();
        let replication = Replication::start(&meta, &files, replicas).unwrap();
        // It starts with half of the bound.
        let limits: Vec<u32> = rows.iter().map(|row| replication.view(row.bit).unwrap().limit).collect();
        let unsaid = crate::replication::planner::Config::default().requests_max;
        assert_eq!(limits, [1, 20, unsaid / 2]);
        replication.stop().await;
    }
}
