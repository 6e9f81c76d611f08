//! What a mount does for its targets now and then: bounding what is kept for one that is away, counting what a resync lacks,
//! ending pauses, letting go of what removed targets left.
//!
//! Owns: when this happens, the figures of resyncs for `status`.
//! Does not own: the decisions (`replication::resync`), the changes (`meta`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::live::Live;
use super::targets::LiveTargets;
use crate::chunk::space::Admission;
use crate::clock::{self, Instant};
use crate::config::OnFull;
use crate::id::{ChunkId, TargetBit};
use crate::meta::Result;
use crate::meta::resync::Lacking;
use crate::meta::target::Mode;
use crate::replication::gate::Gate;
use crate::replication::resync::{self, Limits, Watch};

/// Between two rounds.
const ROUND: Duration = Duration::from_secs(1);
/// Between two looks at backlogs.
const LOOK: Duration = Duration::from_secs(5);
/// Rows that are counted in one read (D8).
const PAGE: usize = 20_000;
/// A resync that has nothing to send and does not end looks at all rows again after this long.
const STUCK: Duration = Duration::from_secs(3);
/// So long the cache is full before a target is given less.
const FULL_FOR: Duration = Duration::from_secs(3);

/// How far the resyncs of a mount are.
#[derive(Debug, Default)]
pub struct Resyncs(Mutex<BTreeMap<u8, Lacking>>);

impl Resyncs {
    /// What a target that is being resynced lacks, as counted last.
    pub fn of(&self, bit: TargetBit) -> Option<Lacking> {
        self.0.lock().get(&bit.index()).copied()
    }
}

/// What to do when the cache is full of what some target lacks.
#[derive(Debug, Clone, Copy)]
pub struct Full {
    pub on_full: OnFull,
    /// Followers that must be left.
    pub min_copies: u32,
}

/// Looks after the targets of a mount; for a thread of its own.
pub struct Upkeep {
    pub live: Arc<Live>,
    pub targets: Arc<LiveTargets>,
    pub limits: Limits,
    pub full: Full,
}

impl Upkeep {
    /// Works until `stop`.
    pub fn run(self, stop: &AtomicBool) {
        let meta = self.live.meta.clone();
        // What a crash left half done.
        if let Err(error) = resync::settle(&meta).and_then(|()| resync::sweep_retired(&meta)) {
            tracing::warn!(%error, "what removed or resynced targets left could not be let go; tried at the next mount");
        }
        let mut watch = Watch::new(meta, self.live.replication.journal_holds(), self.limits);
        let (mut look_at, mut count_at, mut full_since) = (Instant::START, Instant::START, None);
        let mut idle_since = BTreeMap::new();
        while !stop.load(Ordering::Acquire) {
            let now = clock::instant();
            self.targets.resume_due();
            if now >= look_at {
                match watch.look() {
                    Ok(changed) => changed.into_iter().for_each(|bit| self.live.replication.walk_anew(bit)),
                    Err(error) => tracing::warn!(%error, "backlogs could not be looked at, will be tried again"),
                }
                // A twentieth of a core at most.
                let took = clock::instant().since(now);
                look_at = clock::instant() + LOOK.max(took * 19);
            }
            if now >= count_at {
                if let Err(error) = count(&self.live, &mut idle_since) {
                    tracing::warn!(%error, "what resyncs lack could not be counted, will be tried again");
                }
                count_at = clock::instant() + (clock::instant().since(now) * 19).max(ROUND);
            }
            self.make_room(&mut full_since);
            std::thread::park_timeout(ROUND);
        }
    }

    /// With `on_full = "degrade"`: when writers have waited for room for a while, the target that lacks most is given up as
    /// a follower, so that what others have need not stay for it.
    fn make_room(&self, full_since: &mut Option<Instant>) {
        let now = clock::instant();
        if self.full.on_full != OnFull::Degrade || self.live.space.admit(1) == Admission::Go {
            *full_since = None;
            return;
        }
        if now.since(*full_since.get_or_insert(now)) < FULL_FOR {
            return;
        }
        *full_since = None;
        let meta = &self.live.meta;
        let slowest = || -> Result<Option<(TargetBit, String)>> {
            let (rows, tallies) = (meta.targets()?, meta.tallies()?);
            let pending =
                |bit: TargetBit| tallies.iter().find(|(of, _)| *of == bit).map_or(0, |(_, tally)| tally.pending_bytes);
            let followers: Vec<_> = rows.iter().filter(|row| row.mode.pins()).collect();
            if followers.len() <= self.full.min_copies as usize {
                return Ok(None);
            }
            let slowest = followers.into_iter().max_by_key(|row| pending(row.bit)).filter(|row| pending(row.bit) > 0);
            Ok(slowest.map(|row| (row.bit, row.name.clone())))
        };
        let why = "the local disk is full of what it lacks (on_full = \"degrade\")";
        let done = slowest().and_then(|found| match found {
            Some((bit, name)) => Ok(resync::begin(meta, bit, &name, why)?.then_some(bit)),
            None => Ok(None),
        });
        match done {
            Ok(Some(bit)) => {
                self.live.replication.walk_anew(bit);
                self.live.space.pressure.notify_one();
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "no room could be made, will be tried again"),
        }
    }
}

/// Counts what each resyncer lacks, and has those look at all rows again that have nothing to do and lack something.
pub(crate) fn count(live: &Live, idle_since: &mut BTreeMap<TargetBit, Instant>) -> Result<()> {
    let meta = &live.meta;
    let rows = meta.targets()?;
    let resyncing = |bit: u8| rows.iter().any(|row| row.bit.index() == bit && row.mode == Mode::Resync);
    live.resyncs.0.lock().retain(|bit, _| resyncing(*bit));
    idle_since.retain(|bit, _| resyncing(bit.index()));
    for row in rows.iter().filter(|row| row.mode == Mode::Resync) {
        let (mut lacking, mut after) = (Lacking::default(), ChunkId(0));
        while let Some(last) = meta.count_lacking(row.bit, after, PAGE, &mut lacking)? {
            after = last;
        }
        live.resyncs.0.lock().insert(row.bit.index(), lacking);
        // What the walk has passed may be wanted again, dead or not: it was dead then, or the target lost it since. Nothing
        // tells a resyncer's queue of that.
        let replication = &live.replication;
        let stuck = lacking.chunks > 0 && replication.gate(row.bit) == Gate::Open && !replication.is_busy(row.bit);
        let now = clock::instant();
        let since = *idle_since.entry(row.bit).or_insert(now);
        if !stuck {
            idle_since.insert(row.bit, now);
        } else if now.since(since) >= STUCK {
            idle_since.insert(row.bit, now);
            replication.walk_anew(row.bit);
        }
    }
    Ok(())
}
