//! A mount from its start to its end.
//!
//! Owns: the order in which parts are made, started and stopped.
//! Does not own: how a mount is ended (`ending`), answers (`served`).
//!
//! ```text
//! checks (nothing touched) ─▶ lock ─▶ metadata ─▶ survey of all targets (nothing written to any)
//!   ─▶ epoch ─▶ recovery ─▶ sealers, replication ─▶ FUSE ─▶ control socket, registry ─▶ ready
//! session ended ─▶ drain the rest ─▶ replication ─▶ sealers ─▶ background threads ─▶ sync ─▶ exit
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::acknowledge::{Acknowledging, Late};
use super::attention::Noticed;
use super::background::Readiness;
use super::bandwidth::Bandwidth;
use super::collector::Collector;
use super::drain::{self, Goal};
use super::ending::Ending;
use super::live::{Attribute, Live};
use super::nesting::{self, Place};
use super::parts::Parts;
use super::replication::{Replica, Replication};
use super::scrubs::Scrubs;
use super::served::Served;
use super::settings::{Options, Target};
use super::state_dir::{self, StateDir};
use super::table::Table;
use super::targets::{self, LiveTargets};
use super::tasks::Tasks;
use super::upkeep::{Full, Resyncs, Upkeep};
use super::verify::{self, Verified};
use super::{compacting, live_set, log, mountpoint, store, systemd, unmount};
use crate::chunk::evict::Evictor;
use crate::chunk::file::ChunkFiles;
use crate::chunk::lease;
use crate::chunk::open::OpenFiles;
use crate::chunk::space::{self, Space};
use crate::clock;
use crate::compaction::Compactor;
use crate::compaction::rewrite::Rewriter;
use crate::config::{self, Config};
use crate::control::registry::{Entry, Registered, Registry};
use crate::control::server::Server;
use crate::control::{Error, ErrorKind, Unmounted, Wait};
use crate::fuse;
use crate::id::Epoch;
use crate::meta::Meta;
use crate::meta::target::{Configured, TargetRow};
use crate::priority;
use crate::read::{Fetcher, Reader, Source};
use crate::recovery::{self, strays};
use crate::replication::checkpoint::Thresholds;
use crate::replication::contact::{self, Asked};
use crate::replication::resync;
use crate::testing::failpoint::{self, Point};
use crate::vfs::Vfs;
use crate::vfs::acknowledge::Policies;
use crate::write::pipeline::Pipeline;
use crate::write::slots::Rotation;
use crate::write::{self, Files};

/// How long targets are asked before a mount (T7).
const SURVEY: Duration = Duration::from_secs(5);
/// After SIGTERM, how long programs have to let go of the mount before it is taken away lazily (D7).
const LET_GO: Duration = Duration::from_secs(5);
/// How long the answer to `umount` has to reach its command before the process ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// Mounts, serves until the end, and returns. Whoever waits for readiness is told, also of a failure.
pub fn run(options: Options) -> Result<(), Error> {
    let readiness = Readiness::new(options.background);
    match armed().and_then(|()| Daemon::start(options)) {
        Ok((daemon, signals)) => {
            let ready = readiness.ready(&log::path(daemon.state_dir.path()));
            if let Err(error) = &ready {
                tracing::error!(%error, "unmounting again");
            } else {
                systemd::ready();
            }
            daemon.serve(signals, ready.is_err())
        }
        Err(error) => {
            tracing::error!(%error, "not mounted");
            readiness.failed(&error);
            Err(error)
        }
    }
}

/// A mounted filesystem and everything that works for it.
struct Daemon {
    // Dropped in this order: the registry's entry first, the lock of the state directory last.
    _registered: Registered,
    session: fuse::Session,
    server: Arc<Server>,
    live: Arc<Live>,
    ending: Arc<Ending>,
    targets: Arc<LiveTargets>,
    pipeline: Pipeline,
    tasks: Tasks,
    read_only: bool,
    mountpoint: PathBuf,
    /// The type that the kernel's table shows for the mount.
    kind: String,
    runtime: Runtime,
    uploads: Runtime,
    state_dir: StateDir,
}

impl Daemon {
    fn start(options: Options) -> Result<(Daemon, Signals), Error> {
        let Options { read_only, config, source, .. } = options;
        let bandwidth = Arc::new(Bandwidth::new(&config, clock::minute_of_day()));
        let targets = Target::all(&config, &bandwidth)?;
        let mountpoint = mountpoint::check(&options.mountpoint, options.fuse.nonempty)?;
        let state_path = match &options.state_dir {
            Some(path) => std::path::absolute(path).map_err(|e| Error::new(ErrorKind::Usage, e.to_string()))?,
            None => state_dir::default_path(&mountpoint)?,
        };
        check_nesting(&mountpoint, &state_path, &targets)?;
        state_dir::check_filesystem(&state_path, options.force)?;
        raise_open_files();
        bound_allocator();

        let state_dir = StateDir::lock(&state_path)?;
        space::room_to_start(&state_path)
            .map_err(|e| Error::failed(format!("look for room in {}: {e}", state_path.display())))?;
        log::start(&state_path, !options.background)
            .map_err(|e| Error::failed(format!("write a log in {}: {e}", state_path.display())))?;
        mountpoint::clear(&mountpoint)?;
        let name = config.name.clone().unwrap_or_else(|| default_name(&mountpoint));
        let (meta, newborn) = store::open_or_create(&state_dir, &name, config.chunk_size)?;
        let meta = Arc::new(meta);
        let changes = meta.target_changes().map_err(|e| Error::failed(e.to_string()))?;
        let live_set = live_set::effective(&config.targets, &changes)?;
        for name in live_set.forget.iter().filter(|_| !read_only) {
            meta.forget_change(name).map_err(|e| Error::failed(e.to_string()))?;
        }
        for note in &live_set.notes {
            tracing::warn!(note, "the configuration and the targets differ");
        }
        let targets = if changes.is_empty() {
            targets
        } else {
            let targets: Vec<Target> =
                live_set.targets.iter().map(|target| Target::new(target, &bandwidth)).collect::<Result<_, _>>()?;
            check_nesting(&mountpoint, &state_path, &targets)?;
            targets
        };
        let rows = register(&meta, &targets)?;

        let threads = |name| {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(4).max_blocking_threads(32).thread_name(name).enable_all();
            builder
        };
        let no_threads = |e: std::io::Error| Error::failed(format!("start threads: {e}"));
        let runtime = threads("io").build().map_err(no_threads)?;
        // What programs wait for and what brings targets up to date share no threads: the latter stand back.
        let uploads = threads("upload").on_thread_start(priority::stand_back).build().map_err(no_threads)?;
        let asked: Vec<Asked> = rows
            .iter()
            .zip(&targets)
            .map(|(row, target)| Asked { bit: row.bit, name: row.name.clone(), target: target.store.clone() })
            .collect();
        let seen = survey(&runtime, &meta, &asked, read_only)?;
        let boot_id = boot_id()?;
        let rebooted = begin(&meta, seen, &boot_id, read_only)?;
        if let Some(newborn) = newborn {
            newborn.keep();
        }

        let internal = |e: crate::meta::Error| Error::failed(e.to_string());
        let chunk_files = ChunkFiles::new(&state_path)
            .map_err(|e| Error::failed(format!("make folders in {}: {e}", state_path.display())))?;
        let open_files = Arc::new(OpenFiles::new(chunk_files));
        let used = meta.chunk_file_bytes().map_err(internal)?;
        let config::Cache { limit, reserve, wait, .. } = config.cache;
        let space = Arc::new(Space::reserved(&state_path, limit.unwrap_or(u64::MAX), used, reserve, wait));
        space.tend();
        let full = space.clone();
        meta.when_full(Box::new(move |error| full.found_full(error.is_quota())));
        let evictor = Arc::new(Evictor::new(meta.clone(), open_files.clone(), space.clone()));
        let chunk_size = meta.chunk_size().map_err(internal)?;
        let (files, queue) = Files::new(write::Options {
            meta: meta.clone(),
            open_files: open_files.clone(),
            space: space.clone(),
            evictor: evictor.clone(),
        })
        .map_err(internal)?;
        // A mount that may not write seals nothing: what an interrupted one left stays as it is.
        let sealers =
            if read_only { 0 } else { std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8)) };
        let threads_failed = |e: std::io::Error| Error::failed(format!("start threads: {e}"));
        let pipeline = Pipeline::start(&files, queue, sealers, chunk_size).map_err(threads_failed)?;

        let fetcher =
            Fetcher::new(meta.clone(), open_files.clone(), space.clone(), evictor.clone(), runtime.handle().clone());
        fetcher.set_sources(
            rows.iter()
                .zip(&targets)
                .map(|(row, target)| Source {
                    bit: row.bit,
                    name: row.name.clone(),
                    target: target.store.clone(),
                    priority: target.config.read_priority,
                })
                .collect(),
        );
        let reader =
            Reader::new(meta.clone(), files.clone(), open_files.clone(), evictor.clone(), fetcher.clone(), chunk_size);
        let vfs = Arc::new(Vfs::new(reader, space.clone()).map_err(threads_failed)?);

        let recover = if read_only { recovery::show } else { recovery::recover };
        let report = recover(&meta, &files, rebooted).map_err(internal)?;
        if rebooted && !read_only {
            meta.note_boot(&boot_id).map_err(internal)?;
        }
        failpoint::pass(Point::Recovered);
        if report != recovery::Report::default() {
            tracing::info!(?report, read_only, "an earlier mount was interrupted; what it acknowledged goes on");
        }
        let replication = if read_only {
            Replication::none()
        } else {
            let _runtime = uploads.enter();
            let paused = |bit| rows.iter().any(|row| row.bit == bit && row.paused_until.is_some());
            let replica = |(asked, target): (Asked, &Target)| Replica {
                concurrency: target.config.concurrency,
                paused: paused(asked.bit),
                asked,
            };
            let replicas = asked.into_iter().zip(&targets).map(replica).collect();
            let thresholds = Thresholds { resync: limits_of(&config), ..Thresholds::default() };
            Replication::start(&meta, &files, replicas, thresholds).map_err(internal)?
        };
        let scrubs = Scrubs::new(meta.clone(), files.chunk_files().clone(), fetcher.clone(), read_only);
        if let Some(every) = config.scrub.every.filter(|_| !read_only) {
            runtime.spawn(scrubs.clone().on_schedule(every, config.scrub.level));
        }
        if !read_only {
            runtime.spawn(scrubs.clone().prove_claims());
        }
        let panics = Arc::new(AtomicU64::new(0));
        let noticed = Noticed::new(report.lost, fetcher.clone(), panics.clone(), live_set.notes);
        let rewriter = Rewriter {
            meta: meta.clone(),
            open_files: open_files.clone(),
            space: space.clone(),
            evictor: evictor.clone(),
            fetcher: fetcher.clone(),
        };
        let compactor = Compactor::new(meta.clone(), rewriter, compacting::policy(&config.compaction, chunk_size));
        let live = Arc::new(Live {
            meta: meta.clone(),
            files: files.clone(),
            space: space.clone(),
            replication,
            noticed,
            late: Late::default(),
            resyncs: Resyncs::default(),
            verified: Verified::default(),
            compaction: compactor.seen(),
            chunk_size,
        });
        let list = rows.iter().zip(targets).map(|(row, target)| targets::Entry { bit: row.bit, target }).collect();
        let live_targets = Arc::new(LiveTargets::new(
            targets::Parts {
                live: live.clone(),
                fetcher,
                bandwidth: bandwidth.clone(),
                source,
                config: config.clone(),
                mountpoint: mountpoint.clone(),
                state_dir: state_path.clone(),
                read_only,
            },
            list,
        ));
        vfs.answer_targets(Box::new(Attribute(live.clone())));
        let policies = Policies::load(config.acknowledge, &meta).map_err(internal)?;
        vfs.acknowledge_by(policies, Box::new(Acknowledging(live.clone())));
        let mut tasks =
            start_tasks(&runtime, &config, &live, &evictor, bandwidth, read_only).map_err(threads_failed)?;
        if !read_only {
            let upkeep = Upkeep {
                live: live.clone(),
                targets: live_targets.clone(),
                limits: limits_of(&config),
                full: Full { on_full: config.cache.on_full, min_copies: config.cache.min_copies },
            };
            tasks.spawn("upkeep", move |stop| upkeep.run(stop)).map_err(threads_failed)?;
            if config.compaction.enabled {
                let quiet = config.compaction.quiet;
                let busy = files.clone();
                let work = move |stop: &AtomicBool| compacting::run(compactor, quiet, stop, || busy.can_wait());
                tasks.spawn("compaction", work).map_err(threads_failed)?;
            }
        }

        let collector = Arc::new(Collector::new(live.clone(), config.gc.grace, 2 * config.compaction.min_garbage));
        let ending = Arc::new(Ending::new(if read_only { Duration::ZERO } else { config.shutdown_timeout }));
        let server = {
            let _runtime = runtime.enter();
            Server::bind(&state_path)
                .map_err(|e| Error::failed(format!("make the control socket in {}: {e}", state_path.display())))?
        };
        let mut mount = options.fuse.mount.clone();
        let name = meta.filesystem_text("name").map_err(internal)?;
        if mount.source.is_empty() {
            mount.source = name.clone();
        }
        let kind = mount.kind();
        mount.read_only |= read_only;
        files.probe_sharing();
        let session_options = fuse::session::Options {
            mount,
            runtime: runtime.handle().clone(),
            panics,
            passthrough: config.passthrough && options.fuse.passthrough && can_be_backed(&files),
        };
        // Before there is a mount that somebody may want to end: a signal without a handler would leave it behind, dead.
        let signals = {
            let _entered = runtime.enter();
            Signals::new().map_err(|e| Error::failed(format!("handle signals: {e}")))?
        };
        let session = fuse::Session::start(vfs, &mountpoint, &session_options).map_err(mount_failed(&mountpoint))?;
        start_telling(&mut tasks, &live.files, session.notifier()).map_err(threads_failed)?;
        let registered = Registry::of_user()
            .register(&Entry {
                mountpoint: mountpoint.as_path().into(),
                state_dir: state_path.as_path().into(),
                pid: std::process::id(),
                name: name.clone(),
                kind: kind.clone(),
            })
            .map_err(|e| {
                let _ = unmount::unmount(&mountpoint, &kind, true);
                Error::failed(format!("note the mount for \"tandemfs status\": {e}"))
            })?;
        let server = Arc::new(server);
        let served = Served {
            parts: live.clone(),
            mountpoint: mountpoint.clone(),
            kind: kind.clone(),
            state_dir: state_path,
            read_only,
            ending: ending.clone(),
            scrubs,
            targets: live_targets.clone(),
            collector: collector.clone(),
        };
        if !read_only {
            runtime.spawn(collector.run());
            runtime.spawn(verify::run(live.clone()));
        }
        {
            let server = server.clone();
            runtime.spawn(async move { server.serve(Arc::new(served)).await });
        }
        tracing::info!(mountpoint = %mountpoint.display(), name, kind, rebooted, "mounted");
        let daemon = Daemon {
            _registered: registered,
            session,
            server,
            live,
            ending,
            targets: live_targets,
            pipeline,
            tasks,
            read_only,
            mountpoint,
            kind,
            runtime,
            uploads,
            state_dir,
        };
        Ok((daemon, signals))
    }

    /// Serves until the mount is gone and targets had their time. `unwanted`: nobody waits for it, end at once.
    fn serve(self, signals: Signals, unwanted: bool) -> Result<(), Error> {
        let Daemon { session, live, ending, mountpoint, kind, runtime, read_only, server, targets, .. } = &self;
        let Signals { hangup, asking: mut signals } = signals;
        runtime.spawn(reload_on_hangup(targets.clone(), hangup));
        let outcome = runtime.block_on(async {
            let asked = wait_unmounted(session, (mountpoint, kind), &mut signals, unwanted).await;
            ending.set_unmounted();
            systemd::stopping();
            tracing::info!("unmounted");
            failpoint::pass(Point::Unmount);
            let outcome = if *read_only {
                Ok(Unmounted { seq: live.meta.head().0 })
            } else {
                let whole = async {
                    let outcome = finish(live, ending).await;
                    if outcome.is_ok() {
                        // The targets are whole without; the next restore is faster with them.
                        _ = tokio::time::timeout(ending.rest(), live.replication.last_checkpoints()).await;
                    }
                    outcome
                };
                tokio::select! {
                    outcome = whole => outcome,
                    () = ending.hand_over_asked() => Err(Error::failed("a new mount took over")),
                    () = end_asked(&mut signals, asked) => Err(Error::failed("ended by a signal")),
                    () = systemd::extend(live, ending) => unreachable!("it goes on for ever"),
                }
            };
            match &outcome {
                Ok(_) => tracing::info!("every target is whole"),
                Err(error) => tracing::warn!(%error, "ended before every target was whole; the next mount goes on"),
            }
            ending.set_outcome(outcome.clone());
            server.quiesce(FAREWELL).await;
            Ok::<_, Error>(outcome)
        })?;
        self.stop();
        outcome.map(drop)
    }

    fn stop(self) {
        self.runtime.block_on(self.live.replication.stop());
        self.pipeline.stop();
        self.tasks.stop();
        let synced = if self.read_only { Ok(()) } else { self.live.meta.sync() };
        if let Err(error) = synced.and_then(|()| self.live.files.remove_doomed()) {
            tracing::error!(%error, "the last sync of the metadata failed");
        }
        self.runtime.shutdown_timeout(Duration::from_secs(1));
        self.uploads.shutdown_timeout(Duration::from_secs(1));
        drop(self.state_dir);
    }
}

/// Failpoints come from the environment; one that is misspelt would test nothing.
fn armed() -> Result<(), Error> {
    failpoint::arm().map_err(|problem| Error::new(ErrorKind::Usage, problem))
}

/// SIGHUP reads the configuration again; what came of it is in the log.
async fn reload_on_hangup(targets: Arc<LiveTargets>, mut hangup: Signal) {
    while hangup.recv().await.is_some() {
        if let Err(error) = targets.reload().await {
            tracing::error!(%error, hint = error.hint, "not reloaded");
        }
    }
}

/// What is kept for a target that is away.
fn limits_of(config: &Config) -> resync::Limits {
    resync::Limits {
        rows_max: config.backlog.records,
        row_bytes_max: config.backlog.record_bytes,
        superseded_min: config.backlog.superseded,
        ..resync::Limits::default()
    }
}

/// D4: nothing may contain anything else.
fn check_nesting(mountpoint: &Path, state_dir: &Path, targets: &[Target]) -> Result<(), Error> {
    let failed = |e: std::io::Error| Error::failed(format!("look at the places of this mount: {e}"));
    let table = Table::read().map_err(failed)?;
    let mut places = vec![
        Place::look("the mountpoint", mountpoint, &table).map_err(failed)?,
        Place::look("the state directory", state_dir, &table).map_err(failed)?,
    ];
    for target in targets {
        if let Some(directory) = target.directory() {
            let what = format!("target {:?}", target.config.name);
            places.push(Place::look(what, directory, &table).map_err(failed)?);
        }
    }
    nesting::check(&places)
}

fn default_name(mountpoint: &Path) -> String {
    mountpoint.file_name().map_or_else(|| "tandemfs".into(), |name| name.to_string_lossy().into_owned())
}

/// Thousands of chunk files may be open at a time; the soft limit of most sessions is 1,024.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum.map(|maximum| maximum.min(1 << 20));
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}

/// Keeps freed memory from staying behind in every thread's arena. Dozens of threads take turns with buffers of a chunk's
/// size: with an arena each, 165 MiB of anonymous memory stayed after 3,000 small files, against 70 MiB with two; and large
/// buffers go back to the system when they are freed only while the threshold does not move.
fn bound_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) is called before any thread of ours is started.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
    }
}

fn register(meta: &Meta, targets: &[Target]) -> Result<Vec<TargetRow>, Error> {
    let configured: Vec<Configured> = targets
        .iter()
        .map(|target| Configured { name: target.config.name.clone(), uri: target.config.uri.clone(), id: None })
        .collect();
    let registered = meta.register_targets(&configured).map_err(|e| Error::failed(e.to_string()))?;
    for row in &registered.absent {
        tracing::warn!(target = row.name, "is not in the configuration; what it lacks stays here");
    }
    Ok(registered.configured)
}

/// Asks all targets who they are; a conflict refuses the mount (T7). Returns the highest epoch seen.
fn survey(runtime: &Runtime, meta: &Meta, asked: &[Asked], read_only: bool) -> Result<Epoch, Error> {
    let survey = runtime
        .block_on(contact::survey(meta, asked, SURVEY))
        .map_err(|e| Error::failed(format!("ask the targets who they are: {e}")))?;
    let refusals = if read_only { survey.refusals_to_read() } else { survey.refusals() };
    if refusals.is_empty() {
        return Ok(survey.seen);
    }
    let reasons: Vec<&str> = refusals.iter().map(|(reason, _)| *reason).collect();
    let hints: Vec<&str> = refusals.iter().map(|(_, hint)| *hint).collect();
    Err(Error::failed(reasons.join("; ")).hint(hints.join("\n")))
}

fn boot_id() -> Result<String, Error> {
    clock::boot_id().map_err(|e| Error::failed(format!("read the boot id: {e}")))
}

/// Takes the epoch of this mount, if it may write. Returns true if the machine started anew since the last one.
fn begin(meta: &Meta, seen: Epoch, boot_id: &str, read_only: bool) -> Result<bool, Error> {
    if read_only {
        return meta.is_rebooted(boot_id).map_err(|e| Error::failed(e.to_string()));
    }
    let mounted = meta.begin_mount(seen, boot_id).map_err(|e| Error::failed(e.to_string()))?;
    Ok(mounted.rebooted)
}

fn start_tasks(
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

/// True if files in the state directory may be backing files: whether somebody still writes to one must show (S4).
fn can_be_backed(files: &Files) -> bool {
    match lease::works_in(files.chunk_files().state_dir()) {
        Ok(works) => {
            if !works {
                files.passthrough().is_off("the filesystem of the state directory has no leases".into());
            }
            works
        }
        Err(error) => {
            files.passthrough().is_off(format!("leases could not be tried: {error}"));
            false
        }
    }
}

/// Tells the kernel which attributes it must ask for again, on a thread of its own: it may wait for requests.
fn start_telling(tasks: &mut Tasks, files: &Arc<Files>, notifier: fuse::Notifier) -> std::io::Result<()> {
    let stale = files.stale_attributes().clone();
    tasks.spawn("notify", move |stop| {
        while !stop.load(Ordering::Acquire) {
            let Ok(ino) = stale.recv_timeout(Duration::from_millis(200)) else { continue };
            if let Err(error) = notifier.invalidate_attributes(ino) {
                // The kernel does not know the inode any more, or the mount is gone: nothing is stale then.
                tracing::debug!(%error, inode = ino.0, "attributes were not invalidated");
            }
        }
    })?;
    Ok(())
}

fn mount_failed(mountpoint: &Path) -> impl Fn(std::io::Error) -> Error {
    move |error| {
        let failed = Error::failed(format!("mount {}: {error}", mountpoint.display()));
        match error.kind() {
            std::io::ErrorKind::NotFound => failed.hint("is there a /dev/fuse? load the module: modprobe fuse"),
            std::io::ErrorKind::PermissionDenied => {
                failed.hint("mount as root, or install fusermount3: apt install fuse3, dnf install fuse3")
            }
            _ => failed,
        }
    }
}

/// The signals that the daemon handles, from when this is made; in a runtime.
struct Signals {
    hangup: Signal,
    asking: Asking,
}

/// SIGTERM and SIGINT ask it to end.
struct Asking {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Signals { hangup: signal(SignalKind::hangup())?, asking: Asking { terminate, interrupt } })
    }
}

impl Asking {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Waits until the mount is gone. After a signal takes it away itself: lazily when programs do not let go in time. Returns
/// true if it was a signal that asked for it.
async fn wait_unmounted(
    session: &fuse::Session,
    (mountpoint, kind): (&Path, &str),
    signals: &mut Asking,
    unwanted: bool,
) -> bool {
    let look = Duration::from_millis(20);
    let mut asked = unwanted.then(clock::instant);
    let mut lazily_at = None;
    while !session.has_ended() {
        if let Some(since) = asked {
            let lazy = unwanted || clock::instant().since(since) >= LET_GO;
            match unmount::unmount(mountpoint, kind, lazy) {
                Ok(()) if lazy => lazily_at = lazily_at.or(Some(clock::instant())),
                Ok(()) | Err(unmount::Error::Busy { .. }) => {}
                Err(unmount::Error::Io(error)) => tracing::warn!(%error, "cannot unmount, will be tried again"),
            }
            // Out of the tree, but still in use: what programs write from here on is not waited for.
            if lazily_at.is_some_and(|at| clock::instant().since(at) > Duration::from_secs(1)) {
                return true;
            }
        }
        tokio::select! {
            () = signals.next() => match asked {
                None => {
                    tracing::info!("asked to end by a signal");
                    asked = Some(clock::instant());
                }
                Some(_) => {
                    tracing::warn!("asked to end by a second signal: ending at once");
                    std::process::exit(1);
                }
            },
            () = tokio::time::sleep(look) => {}
        }
    }
    asked.is_some()
}

/// Waits for the signal that ends draining: the second one, also when the mount went without any (D7: systemd signals the
/// daemons of a mount unit right after umount(8)).
async fn end_asked(signals: &mut Asking, asked: bool) {
    if !asked {
        signals.next().await;
        tracing::info!("asked to end by a signal; the next one ends at once");
    }
    signals.next().await;
}

/// Brings targets up to date after the mount is gone, as long as the ending allows.
async fn finish(live: &Live, ending: &Ending) -> Result<Unmounted, Error> {
    let seq = live.settle()?;
    let goal = Goal { seq, wait: Wait::All, deadline: Some(clock::instant() + ending.rest()) };
    match drain::drain(live, goal, None).await {
        Ok(()) => Ok(Unmounted { seq: seq.0 }),
        Err(error) => Err(Error {
            message: format!("unmounted; {}", error.message),
            hint: Some("what targets lack is safe in the state directory; mount again to go on".into()),
            ..error
        }),
    }
}
