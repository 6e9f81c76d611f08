//! GC as the mount runs it: rounds in the background, and the command.
//!
//! Owns: when a round is made, which targets take part, checkpoints that only GC wants.
//! Does not own: what may go and how (`crate::gc`).

use std::sync::Arc;
use std::time::Duration;

use super::live::Live;
use super::parts::Parts;
use crate::clock;
use crate::control::{Error, Said};
use crate::gc::{self, Plan};
use crate::id::TargetBit;
use crate::meta;
use crate::replication::gate::Gate;
use crate::target::DynTarget;

/// So long a checkpoint that only GC wants may take.
const CHECKPOINT_MAX: Duration = Duration::from_secs(600);

/// The collector of a mount.
pub struct Collector {
    live: Arc<Live>,
    grace: Duration,
    /// So much may lie on a target beyond twice what lives before checkpoints are taken only to get rid of it.
    slack: u64,
    /// One round at a time, whoever asks.
    running: tokio::sync::Mutex<()>,
}

impl Collector {
    /// A collector that leaves everything for `grace` after its last use, and much more than `slack` bytes of it not for
    /// want of checkpoints.
    pub fn new(live: Arc<Live>, grace: Duration, slack: u64) -> Collector {
        Collector { live, grace, slack, running: tokio::sync::Mutex::default() }
    }

    /// Collects now and then until it is dropped.
    pub async fn run(self: Arc<Self>) {
        let every = (self.grace / 20).clamp(Duration::from_secs(1), Duration::from_secs(60));
        let complain = |error: Error| tracing::warn!(%error, "garbage could not be collected, will be tried again");
        // History is seen from the beginning of the mount on, and while a round waits for checkpoints: one of these may wait for
        // a chunk that is wanted again, and that for the end of its deletion.
        let ticks = async {
            loop {
                self.tick().await.unwrap_or_else(complain);
                clock::sleep(every).await;
            }
        };
        let rounds = async {
            loop {
                clock::sleep(every).await;
                self.round(false).await.map(drop).unwrap_or_else(complain);
            }
        };
        tokio::join!(ticks, rounds);
    }

    async fn tick(&self) -> Result<(), Error> {
        let (meta, grace) = (self.live.meta.clone(), self.grace);
        let ticked = crate::aside::blocking(move || gc::tick(&meta, meta.steady_secs(), grace));
        ticked.await.map_err(|panic| Error::failed(panic.to_string()))?.map_err(internal)
    }

    /// Says what would go.
    pub async fn dry_run(&self) -> Result<Said, Error> {
        let mut lines: Vec<String> = self.plans().await?.iter().map(|plan| plan.line(self.grace)).collect();
        if lines.is_empty() {
            lines.push("no target follows: nothing can go".into());
        }
        lines.extend(self.rewriting()?);
        Ok(Said { lines })
    }

    /// Collects what may go, with new checkpoints where only these hold something back.
    pub async fn now(&self) -> Result<Said, Error> {
        let gone = self.round(true).await?;
        let mut lines: Vec<String> = gone
            .iter()
            .map(|(name, outcome)| match outcome {
                Ok(objects) => format!("target {name:?}: {objects} objects removed"),
                Err(error) => format!("target {name:?}: not all could be removed, it is tried again: {error}"),
            })
            .collect();
        lines.extend(self.plans().await?.iter().filter(|plan| plan.later.chunks > 0).map(|plan| plan.line(self.grace)));
        Ok(Said { lines })
    }

    /// What compaction would do, in a line.
    fn rewriting(&self) -> Result<Option<String>, Error> {
        let garbage = self.live.garbage()?;
        if garbage.sparse_chunks == 0 && garbage.scattered_areas == 0 {
            return Ok(None);
        }
        let size = |bytes| bytesize::ByteSize(bytes).display().iec();
        let mut line = format!(
            "to be rewritten: {} chunks with {}, of which {} are in use: as much is written everywhere, with {} requests \
             each, and {} can go later",
            garbage.sparse_chunks,
            size(garbage.sparse_bytes),
            size(garbage.sparse_live_bytes),
            garbage.sparse_live_bytes.div_ceil(self.live.chunk_size),
            size(garbage.sparse_bytes),
        );
        if garbage.scattered_areas > 0 {
            line += &format!("; and {} parts of files in many pieces", garbage.scattered_areas);
        }
        if let Some(held) = garbage.held {
            line += &format!("; not now: {held}");
        }
        Ok(Some(line))
    }

    async fn plans(&self) -> Result<Vec<Plan>, Error> {
        let (meta, grace) = (self.live.meta.clone(), self.grace);
        let plans = crate::aside::blocking(move || {
            let rows = meta.targets()?;
            let due = rows.iter().filter(|row| gc::is_due(row));
            due.map(|row| Plan::of(&meta, row, meta.steady_secs(), grace)).collect::<meta::Result<Vec<_>>>()
        });
        plans.await.map_err(|panic| Error::failed(panic.to_string()))?.map_err(internal)
    }

    /// One round over all targets. `asked`: somebody waits for it, so checkpoints are taken for whatever they set free.
    async fn round(&self, asked: bool) -> Result<Vec<(String, Result<u64, gc::Error>)>, Error> {
        let _one = self.running.lock().await;
        self.tick().await?;
        let mut plans = self.plans().await?;
        let live_bytes = self.live.meta.live_sums().map_err(internal)?.live_bytes;
        let wants = |plan: &&Plan| match asked {
            true => plan.by_checkpoints.chunks > 0,
            false => plan.wants_checkpoints(live_bytes, self.slack),
        };
        let wanting: Vec<TargetBit> = plans.iter().filter(wants).map(|plan| plan.bit).collect();
        if !wanting.is_empty() {
            // The second one makes the first the older of the two that are kept.
            for _ in 0..2 {
                // A target that goes away meanwhile must not hold up the others.
                let taken = clock::timeout(CHECKPOINT_MAX, self.live.replication.checkpoint(&wanting)).await;
                if taken.is_err() {
                    break;
                }
            }
            plans = self.plans().await?;
        }
        let mut outcomes = Vec::new();
        for plan in plans {
            let Some(target) = self.open(plan.bit) else { continue };
            let outcome = gc::collect(&self.live.meta, &target, plan.bit, plan.horizon.seq(), gc::PAUSE).await;
            match &outcome {
                Ok(0) => {}
                Ok(gone) => tracing::info!(target_name = plan.name, gone, "chunks that nothing refers to were removed"),
                Err(gc::Error::Fenced) => self.live.replication.recheck(plan.bit),
                Err(error) => tracing::debug!(target_name = plan.name, %error, "garbage stays until the next round"),
            }
            outcomes.push((plan.name, outcome));
        }
        Ok(outcomes)
    }

    /// The store of a target that may be written to.
    fn open(&self, bit: TargetBit) -> Option<DynTarget> {
        let targets = self.live.replication.targets();
        let (asked, gate) = targets.into_iter().find(|(asked, _)| asked.bit == bit)?;
        (gate.state() == Gate::Open).then_some(asked.target)
    }
}

fn internal(error: meta::Error) -> Error {
    Error::failed(error.to_string())
}
