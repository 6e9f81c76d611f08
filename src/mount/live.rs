//! The running parts of a mount, as the answers to `control` and the virtual xattr see them.

use std::sync::Arc;

use super::parts::{Dirty, Parts};
use crate::chunk::space::Space;
use crate::control::Error;
use crate::control::status::{Attention, Cache, Health};
use crate::id::{InodeId, Seq, TargetBit};
use crate::meta::Meta;
use crate::replication::gate::{Gate, GateWatch};
use crate::write::Files;

/// One target of a mount.
#[derive(Debug)]
pub struct LiveTarget {
    pub bit: TargetBit,
    pub name: String,
    pub gate: GateWatch,
}

/// The running parts.
pub struct Live {
    pub meta: Arc<Meta>,
    pub files: Arc<Files>,
    pub space: Arc<Space>,
    /// In the order of the configuration.
    pub targets: Vec<LiveTarget>,
}

impl Live {
    fn target(&self, bit: TargetBit) -> Option<&LiveTarget> {
        self.targets.iter().find(|target| target.bit == bit)
    }
}

impl Parts for Live {
    fn meta(&self) -> &Arc<Meta> {
        &self.meta
    }

    fn gate(&self, bit: TargetBit) -> Gate {
        self.target(bit).map(|target| target.gate.state()).unwrap_or_default()
    }

    fn health(&self, _bit: TargetBit) -> (Health, Option<String>) {
        (Health::Healthy, None)
    }

    fn complaint(&self, bit: TargetBit) -> Option<(String, String)> {
        let Some(target) = self.target(bit) else {
            let reason = "it is not in the configuration of this mount".to_owned();
            return Some((reason, "mount with all targets; what it lacks stays here meanwhile".into()));
        };
        match target.gate.state() {
            Gate::Blocked { reason, hint } | Gate::Fenced { reason, hint } => Some((reason, hint)),
            Gate::Open | Gate::Unknown => None,
        }
    }

    fn settle(&self) -> Result<Seq, Error> {
        self.files.rotate().map_err(|e| Error::failed(format!("give open files their place in history: {e}")))
    }

    fn dirty(&self, inode: Option<InodeId>) -> Dirty {
        let uncommitted = self.files.uncommitted_of(inode);
        Dirty { files: uncommitted.unplaced, bytes: uncommitted.bytes }
    }

    fn hurry(&self) -> Box<dyn Send + '_> {
        Box::new(self.files.hurry())
    }

    fn cache(&self) -> Result<Cache, Error> {
        let tallies = self.meta.tallies().map_err(|e| Error::failed(e.to_string()))?;
        let pinned = tallies.iter().map(|(_, tally)| tally.pending_bytes).max().unwrap_or(0);
        let limit = self.space.limits().used_max;
        Ok(Cache {
            used_bytes: self.space.used(),
            pinned_bytes: pinned + self.dirty(None).bytes,
            limit_bytes: (limit != u64::MAX).then_some(limit),
        })
    }

    fn attention(&self) -> Vec<Attention> {
        Vec::new()
    }
}
