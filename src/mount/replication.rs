//! Replication as the mount runs it: one driver for the chunks, one shipper per target for the journal.
//!
//! Owns: starting and stopping them together, what they say to `status`.
//! Does not own: what they do (`crate::replication`).

use std::sync::Arc;

use crate::control::status::Health;
use crate::id::{Seq, TargetBit};
use crate::meta::{Meta, Result};
use crate::replication::contact::Asked;
use crate::replication::driver::{self, Driver, DriverTarget};
use crate::replication::gate::{Gate, GateWatch, gate};
use crate::replication::health::State;
use crate::replication::planner::View;
use crate::write::Files;

/// The running replication of a mount; of a read-only one, nothing.
pub struct Replication {
    driver: Option<Driver>,
    gates: Vec<(TargetBit, GateWatch)>,
}

impl Replication {
    /// Nothing is replicated.
    pub fn none() -> Replication {
        Replication { driver: None, gates: Vec::new() }
    }

    /// Starts it for these targets. Must be called within a tokio runtime.
    pub fn start(meta: &Arc<Meta>, files: &Arc<Files>, targets: Vec<Asked>) -> Result<Replication> {
        let mut gates = Vec::new();
        let mut driven = Vec::new();
        for asked in targets {
            let (_keeper, watch) = gate(Gate::Unknown);
            gates.push((asked.bit, watch.clone()));
            driven.push(DriverTarget { bit: asked.bit, name: asked.name, target: asked.target, gate: watch });
        }
        let driver = Driver::start(meta.clone(), files.chunk_files().clone(), driven, driver::Options::default())?;
        Ok(Replication { driver: Some(driver), gates })
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
        (health, view.last_failure.map(|failure| failure.message))
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
        let failure = view.last_failure.filter(|_| view.health != State::Healthy)?;
        let hint = failure.hint().to_owned();
        Some((failure.message, hint))
    }

    /// While the guard lives, records up to `seq` are shipped as soon as they can be.
    pub fn hurry(&self, _seq: Seq) -> Box<dyn Send> {
        Box::new(())
    }

    /// Stops everything; what is under way is sent by the next mount.
    pub async fn stop(&self) {
        if let Some(driver) = &self.driver {
            driver.stop().await;
        }
    }

    fn view(&self, bit: TargetBit) -> Option<View> {
        let status = self.driver.as_ref()?.status().ok()?;
        status.into_iter().find(|status| status.bit == bit).map(|status| status.view)
    }
}
