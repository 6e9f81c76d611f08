//! A mount from its start to its end.
//!
//! Owns: the order in which parts are made, started and stopped.
//! Does not own: what is checked first (`opened`), the local side (`storage`), what threads do (`errands`), who asks for the
//! end (`signals`) and how it comes (`ending`), answers (`served`).
//!
//! ```text
//! checks (nothing touched) ─▶ lock ─▶ metadata ─▶ survey of all targets (nothing written to any)
//!   ─▶ epoch ─▶ recovery ─▶ sealers, replication ─▶ FUSE ─▶ control socket, registry ─▶ ready
//! session ended ─▶ drain the rest ─▶ replication ─▶ sealers ─▶ background threads ─▶ sync ─▶ exit
//! ```

mod errands;
mod opened;
mod process;
mod signals;
mod storage;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::runtime::Runtime;

use self::opened::Opened;
use self::signals::{Signals, end_asked, reload_on_hangup, wait_unmounted};
use self::storage::Storage;
use super::acknowledge::{Acknowledging, Late};
use super::attention::Noticed;
use super::background::Readiness;
use super::collector::Collector;
use super::drain::{self, Goal};
use super::ending::Ending;
use super::live::{Attribute, Live};
use super::parts::Parts;
use super::replication::{Replica, Replication};
use super::scrubs::Scrubs;
use super::served::Served;
use super::settings::{Options, Target};
use super::state_dir::StateDir;
use super::targets::{self, LiveTargets};
use super::tasks::Tasks;
use super::upkeep::Resyncs;
use super::verify::{self, Verified};
use super::{compacting, log, systemd, unmount};
use crate::clock;
use crate::compaction::Compactor;
use crate::config::Config;
use crate::control::registry::{Entry, Registered, Registry};
use crate::control::server::Server;
use crate::control::{Error, ErrorKind, Unmounted, Wait};
use crate::fuse;
use crate::id::Epoch;
use crate::meta::Meta;
use crate::meta::target::TargetRow;
use crate::priority;
use crate::recovery;
use crate::replication::checkpoint::Thresholds;
use crate::replication::contact::{self, Asked};
use crate::replication::resync;
use crate::testing::failpoint::{self, Point};
use crate::vfs::acknowledge::Policies;
use crate::write::pipeline::Pipeline;

/// How long targets are asked before a mount (T7).
const SURVEY: Duration = Duration::from_secs(5);
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
        process::raise_open_files();
        process::bound_allocator();
        let mut opened = Opened::new(&options)?;
        let Options { read_only, config, source, .. } = options;
        let threads_failed = |e: std::io::Error| Error::failed(format!("start threads: {e}"));
        let internal = |e: crate::meta::Error| Error::failed(e.to_string());
        let threads = |name| {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(4).max_blocking_threads(32).thread_name(name).enable_all();
            builder
        };
        let runtime = threads("io").build().map_err(threads_failed)?;
        // What programs wait for and what brings targets up to date share no threads: the latter stand back.
        let uploads = threads("upload").on_thread_start(priority::stand_back).build().map_err(threads_failed)?;

        let asked: Vec<Asked> = opened
            .rows
            .iter()
            .zip(&opened.targets)
            .map(|(row, target)| Asked { bit: row.bit, name: row.name.clone(), target: target.store.clone() })
            .collect();
        let seen = survey(&runtime, &opened.meta, &asked, read_only)?;
        let boot_id = boot_id()?;
        let rebooted = begin(&opened.meta, seen, &boot_id, read_only)?;
        if let Some(newborn) = opened.newborn.take() {
            newborn.keep();
        }

        let storage = Storage::open(&opened, &config, &runtime, read_only)?;
        let recover = if read_only { recovery::show } else { recovery::recover };
        let report = recover(&opened.meta, &storage.files, rebooted).map_err(internal)?;
        if rebooted && !read_only {
            opened.meta.note_boot(&boot_id).map_err(internal)?;
        }
        failpoint::pass(Point::Recovered);
        if report != recovery::Report::default() {
            tracing::info!(?report, read_only, "an earlier mount was interrupted; what it acknowledged goes on");
        }
        let replication = if read_only {
            Replication::none()
        } else {
            let _runtime = uploads.enter();
            replicate(&opened, &storage, &config, asked).map_err(internal)?
        };
        let Storage { files, space, fetcher, vfs, chunk_size, .. } = &storage;
        let (meta, fetcher, chunk_size) = (opened.meta.clone(), fetcher.clone(), *chunk_size);
        let scrubs = Scrubs::new(meta.clone(), files.chunk_files().clone(), fetcher.clone(), read_only);
        if !read_only {
            if let Some(every) = config.scrub.every {
                runtime.spawn(scrubs.clone().on_schedule(every, config.scrub.level));
            }
            runtime.spawn(scrubs.clone().prove_claims());
        }
        let panics = Arc::new(AtomicU64::new(0));
        let requests = Arc::<fuse::Requests>::default();
        let policy = compacting::policy(&config.compaction, chunk_size);
        let compactor = Compactor::new(meta.clone(), storage.rewriter(&meta), policy);
        let live = Arc::new(Live {
            meta: meta.clone(),
            files: files.clone(),
            space: space.clone(),
            replication,
            noticed: Noticed::new(report.lost, fetcher.clone(), panics.clone(), std::mem::take(&mut opened.notes)),
            late: Late::default(),
            resyncs: Resyncs::default(),
            verified: Verified::default(),
            compaction: compactor.seen(),
            requests: requests.clone(),
            chunk_size,
        });
        let targets = std::mem::take(&mut opened.targets);
        let entry = |(row, target): (&TargetRow, Target)| targets::Entry { bit: row.bit, target };
        let list = opened.rows.iter().zip(targets).map(entry).collect();
        let (mountpoint, state_path, bandwidth) = (&opened.mountpoint, &opened.state_path, &opened.bandwidth);
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
        let mut tasks = errands::start(&runtime, &config, &live, &storage.evictor, bandwidth.clone(), read_only)
            .map_err(threads_failed)?;
        if !read_only {
            errands::start_writing(&mut tasks, &config, &live, &live_targets, compactor).map_err(threads_failed)?;
        }

        let collector = Arc::new(Collector::new(live.clone(), config.gc.grace, 2 * config.compaction.min_garbage));
        let ending = Arc::new(Ending::new(if read_only { Duration::ZERO } else { config.shutdown_timeout }));
        let server = {
            let _runtime = runtime.enter();
            Server::bind(state_path)
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
            requests,
            passthrough: config.passthrough && options.fuse.passthrough && storage::can_be_backed(files),
        };
        // Before there is a mount that somebody may want to end: a signal without a handler would leave it behind, dead.
        let signals = {
            let _entered = runtime.enter();
            Signals::new().map_err(|e| Error::failed(format!("handle signals: {e}")))?
        };
        let session =
            fuse::Session::start(vfs.clone(), mountpoint, &session_options).map_err(mount_failed(mountpoint))?;
        errands::start_telling(&mut tasks, &live.files, session.notifier()).map_err(threads_failed)?;
        let registered = registered(&opened, &name, &kind, read_only)?;
        let server = Arc::new(server);
        let served = Served {
            parts: live.clone(),
            mountpoint: mountpoint.clone(),
            kind: kind.clone(),
            state_dir: state_path.clone(),
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
            pipeline: storage.pipeline,
            tasks,
            read_only,
            mountpoint: mountpoint.clone(),
            kind,
            runtime,
            uploads,
            state_dir: opened.state_dir,
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

/// What is kept for a target that is away.
fn limits_of(config: &Config) -> resync::Limits {
    resync::Limits {
        rows_max: config.backlog.records,
        row_bytes_max: config.backlog.record_bytes,
        superseded_min: config.backlog.superseded,
        ..resync::Limits::default()
    }
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

/// Other commands find the mount by this. Without it, it is taken away again.
fn registered(opened: &Opened, name: &str, kind: &str, read_only: bool) -> Result<Registered, Error> {
    let entry = Entry {
        mountpoint: opened.mountpoint.as_path().into(),
        state_dir: opened.state_path.as_path().into(),
        pid: std::process::id(),
        name: name.into(),
        kind: kind.into(),
        read_only,
    };
    Registry::of_user().register(&entry).map_err(|e| {
        let _ = unmount::unmount(&opened.mountpoint, kind, true);
        Error::failed(format!("note the mount for \"tandemfs status\": {e}"))
    })
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

/// Starts what brings targets up to date.
fn replicate(
    opened: &Opened,
    storage: &Storage,
    config: &Config,
    asked: Vec<Asked>,
) -> crate::meta::Result<Replication> {
    let replica = |((asked, target), row): ((Asked, &Target), &TargetRow)| Replica {
        concurrency: target.config.concurrency,
        paused: row.paused_until.is_some(),
        asked,
    };
    let replicas = asked.into_iter().zip(&opened.targets).zip(&opened.rows).map(replica).collect();
    let thresholds = Thresholds { resync: limits_of(config), ..Thresholds::default() };
    Replication::start(&opened.meta, &storage.files, replicas, thresholds)
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
