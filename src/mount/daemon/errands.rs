//! What threads of a mount do again and again, or once in the background.
//!
//! Owns: which thread does what, and how often. Does not own: the threads (`tasks`), the work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::Runtime;

use super::limits_of;
use crate::chunk::evict::Evictor;
use crate::clock;
use crate::compaction::Compactor;
use crate::config::Config;
use crate::fuse;
use crate::mount::bandwidth::Bandwidth;
use crate::mount::compacting;
use crate::mount::live::Live;
use crate::mount::targets::LiveTargets;
use crate::mount::tasks::Tasks;
use crate::mount::upkeep::{Full, Upkeep};
use crate::priority;
use crate::recovery::strays;
use crate::write::Files;
use crate::write::slots::Rotation;

/// Starts what every mount needs. Bandwidth windows, rotation and copies of open files, room, the metadata log.
pub(super) fn start(
    runtime: &Runtime,
    config: &Config,
    live: &Arc<Live>,
    evictor: &Arc<Evictor>,
    bandwidth: Arc<Bandwidth>,
    read_only: bool,
) -> std::io::Result<Tasks> {
    let mut tasks = Tasks::default();
    // A window opens within a second of its minute.
    tasks.every("bandwidth", Duration::from_secs(1), move || bandwidth.apply(clock::minute_of_day()))?;
    let rotation = Rotation { synced_after: config.rotate_synced, after: config.rotate };
    let ticked = live.files.clone();
    tasks.every("rotate", Duration::from_millis(500), move || {
        if let Err(error) = ticked.tick(&rotation) {
            tracing::warn!(%error, "open files could not take their place in history, will be tried again");
        }
    })?;
    let exported = live.files.clone();
    tasks.every("export", Duration::from_millis(500), move || {
        if let Err(error) = exported.export_due(&rotation) {
            tracing::warn!(%error, "an open file could not be copied for the targets, will be tried again");
        }
    })?;
    let sampled = live.files.clone();
    tasks.every("space", Duration::from_millis(200), move || sampled.sample_backing())?;
    let checkpointed = live.clone();
    tasks.every("wal", Duration::from_secs(1), move || {
        if checkpointed.files.can_wait() {
            return;
        }
        if let Err(error) = checkpointed.meta.checkpoint_wal() {
            tracing::warn!(%error, "the metadata log could not be moved into the database, will be tried again");
        }
    })?;
    let tended = live.space.clone();
    tasks.every("space", Duration::from_millis(200), move || tended.tend())?;
    let evictor = evictor.clone();
    let busy = live.files.clone();
    let evict = move |stop: &AtomicBool| evictor.run(stop, Duration::from_secs(1), || busy.can_wait());
    let thread = tasks.spawn("evict", evict)?;
    let noticing = live.clone();
    tasks.spawn("strays", move |stop| {
        priority::stand_back();
        let files = noticing.files.chunk_files();
        let pause = || priority::wait_while(stop, || noticing.files.can_wait());
        let first = noticing.files.first_session();
        let is_read = |session| noticing.files.is_layer(session);
        match if read_only { Ok(0) } else { strays::quarantine(&noticing.meta, files, first, is_read, pause) } {
            Ok(0) => {}
            Ok(moved) => tracing::warn!(moved, "local files that nobody knows were moved to quarantine"),
            Err(error) => tracing::warn!(%error, "local files that nobody knows could not be looked for"),
        }
        match strays::quarantined(files) {
            Ok(quarantined) => noticing.noticed.set_quarantine(quarantined),
            Err(error) => tracing::warn!(%error, "the quarantine cannot be looked into"),
        }
    })?;
    let space = live.space.clone();
    runtime.spawn(async move {
        loop {
            space.pressure.notified().await;
            thread.unpark();
            // Under pressure every write notifies; the evictor needs no more than this.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    Ok(tasks)
}

/// Starts what only a mount that may write does: upkeep of targets, compaction.
pub(super) fn start_writing(
    tasks: &mut Tasks,
    config: &Config,
    live: &Arc<Live>,
    targets: &Arc<LiveTargets>,
    compactor: Compactor,
) -> std::io::Result<()> {
    let upkeep = Upkeep {
        live: live.clone(),
        targets: targets.clone(),
        limits: limits_of(config),
        full: Full { on_full: config.cache.on_full, min_copies: config.cache.min_copies },
    };
    tasks.spawn("upkeep", move |stop| upkeep.run(stop))?;
    if config.compaction.enabled {
        let (quiet, busy) = (config.compaction.quiet, live.files.clone());
        let work = move |stop: &AtomicBool| compacting::run(compactor, quiet, stop, || busy.can_wait());
        tasks.spawn("compaction", work)?;
    }
    Ok(())
}

/// Tells the kernel what it must ask for again, on a thread of its own: it may wait for requests.
pub(super) fn start_telling(tasks: &mut Tasks, files: &Arc<Files>, notifier: fuse::Notifier) -> std::io::Result<()> {
    let stale = files.stale().clone();
    tasks.spawn("notify", move |stop| {
        while !stop.load(Ordering::Acquire) {
            let Ok(stale) = stale.recv_timeout(Duration::from_millis(200)) else { continue };
            if let Err(error) = notifier.invalidate(&stale) {
                // The kernel does not know the inode or the name any more, or the mount is gone: nothing is stale then.
                tracing::debug!(%error, ?stale, "was not invalidated");
            }
        }
    })?;
    Ok(())
}
