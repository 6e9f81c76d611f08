//! Scrubs of the targets of a mount: on request, and by themselves where that was asked for.
//!
//! Owns: which targets, one pass at a time for each, how far it is for who waits.
//! Does not own: a pass (`crate::scrub`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::chunk::file::ChunkFiles;
use crate::clock;
use crate::control::protocol::{Phase, Progress, TargetProgress};
use crate::control::{Error, ErrorKind, ProgressSender, Scrub};
use crate::id::TargetBit;
use crate::meta::Meta;
use crate::read::{Fetcher, Source};
use crate::restore;
use crate::scrub::{self, Cost, Pass, Report};
use crate::target::pace::{Limit, Rate};

/// How often it is looked whether a scheduled pass is due.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Scrubs, and which run.
pub struct Scrubs {
    meta: Arc<Meta>,
    files: ChunkFiles,
    fetcher: Arc<Fetcher>,
    /// Copies cannot be made good again: nothing is uploaded.
    read_only: bool,
    running: Mutex<BTreeSet<TargetBit>>,
}

/// A target that is being scrubbed; ends with the pass, also when its client goes away.
struct Running<'a>(&'a Scrubs, TargetBit);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.lock().remove(&self.1);
    }
}

impl Scrubs {
    /// Scrubs of the targets that a mount reads from.
    pub fn new(meta: Arc<Meta>, files: ChunkFiles, fetcher: Arc<Fetcher>, read_only: bool) -> Arc<Scrubs> {
        Arc::new(Scrubs { meta, files, fetcher, read_only, running: Mutex::default() })
    }

    /// Scrubs the targets of a request, all at the same time.
    pub async fn run(&self, request: &Scrub, progress: Option<&ProgressSender>) -> Result<Vec<Report>, Error> {
        if request.repair && self.read_only {
            return Err(Error::new(ErrorKind::Usage, "this mount is read-only: nothing can be repaired")
                .hint("leave --repair away, or mount without --read-only"));
        }
        let rate = match request.bytes_per_second {
            None => Rate::Unlimited,
            Some(bytes) => Rate::per_second(bytes).ok_or_else(|| {
                Error::new(ErrorKind::Usage, "the lowest rate of a scrub is 16 KiB/s")
                    .hint("give a higher one, or read less: --level list, or sample")
            })?,
        };
        let limit = Limit::new(rate);
        let sources = self.sources(&request.targets)?;
        let shown: Vec<TargetProgress> = sources.iter().map(|source| waiting(&source.name)).collect();
        let shown = Mutex::new(shown);
        let passes = sources.into_iter().enumerate().map(|(index, source)| {
            let (shown, limit) = (&shown, limit.clone());
            async move {
                let _running = self.begin(&source)?;
                let bit = source.bit;
                let uri = self.meta.targets().map_err(failed)?.into_iter().find(|row| row.bit == bit);
                let name = source.name;
                let source = restore::Source {
                    target: source.target,
                    name: name.clone(),
                    uri: uri.map(|row| row.uri).unwrap_or_default(),
                };
                let pass = Pass {
                    meta: self.meta.clone(),
                    files: self.files.clone(),
                    bit,
                    source,
                    level: request.level,
                    repair: request.repair,
                    limit,
                };
                let report = pass.run(|_, left| {
                    let mut shown = shown.lock();
                    shown[index].pending_objects = left;
                    if let Some(progress) = progress {
                        progress.send(Progress { phase: Phase::Scrubbing, targets: shown.clone() });
                    }
                });
                let report = report.await.map_err(failed)?;
                shown.lock()[index].done = true;
                tell(&report);
                Ok(report)
            }
        });
        futures::future::join_all(passes).await.into_iter().collect()
    }

    /// What the passes of a request will cost.
    pub fn cost(&self, request: &Scrub) -> Result<Vec<Cost>, Error> {
        let tallies = self.meta.tallies().map_err(failed)?;
        let cost = |source: Source| {
            let tally = tallies.iter().find(|(bit, _)| *bit == source.bit).map(|(_, tally)| *tally);
            scrub::cost(&source.name, request.level, tally.unwrap_or_default())
        };
        Ok(self.sources(&request.targets)?.into_iter().map(cost).collect())
    }

    /// Runs passes that are due, for ever.
    pub async fn on_schedule(self: Arc<Self>, every: Duration, level: scrub::Level) {
        loop {
            for source in self.fetcher.sources() {
                let scrubbed = self.meta.scrubbed_at(source.bit).ok().flatten().unwrap_or(0);
                // One that seems to come yet is due: the clock was set back.
                let ago = clock::now().secs().saturating_sub(scrubbed);
                if (0..every.as_secs() as i64).contains(&ago) {
                    continue;
                }
                let request = Scrub { level, targets: vec![source.name.clone()], repair: true, bytes_per_second: None };
                if let Err(error) = self.run(&request, None).await {
                    tracing::warn!(target_name = source.name, %error, "a scheduled scrub did not run");
                }
            }
            clock::sleep(LOOK_EVERY).await;
        }
    }

    /// Lists targets of which a restore claimed copies that nobody has seen since (D6): from then on these count like any
    /// other, for GC too. For ever: a target may be met again later.
    pub async fn prove_claims(self: Arc<Self>) {
        loop {
            clock::sleep(LOOK_EVERY).await;
            for source in self.fetcher.sources() {
                let meta = self.meta.clone();
                let claims = crate::aside::blocking(move || meta.has_claims(source.bit)).await;
                if !matches!(claims, Ok(Ok(true))) {
                    continue;
                }
                let targets = vec![source.name.clone()];
                let request = Scrub { level: scrub::Level::List, targets, repair: true, bytes_per_second: None };
                if let Err(error) = self.run(&request, None).await {
                    tracing::warn!(target_name = source.name, %error, "what a restore claimed could not be listed");
                }
            }
        }
    }

    fn sources(&self, names: &[String]) -> Result<Vec<Source>, Error> {
        let mut sources = self.fetcher.sources();
        if let Some(unknown) = names.iter().find(|name| !sources.iter().any(|source| source.name == **name)) {
            let known: Vec<_> = sources.iter().map(|source| source.name.as_str()).collect();
            return Err(Error::new(ErrorKind::NotFound, format!("there is no target {unknown:?}"))
                .hint(format!("targets are: {}", known.join(", "))));
        }
        sources.retain(|source| names.is_empty() || names.contains(&source.name));
        Ok(sources)
    }

    fn begin(&self, source: &Source) -> Result<Running<'_>, Error> {
        if self.running.lock().insert(source.bit) {
            return Ok(Running(self, source.bit));
        }
        Err(Error::new(ErrorKind::Busy, format!("target {:?} is being scrubbed already", source.name))
            .hint("wait for it; what it repairs is seen in: tandemfs status"))
    }
}

fn waiting(name: &str) -> TargetProgress {
    TargetProgress {
        name: name.to_owned(),
        pending_bytes: 0,
        pending_objects: 0,
        pending_records: 0,
        done: false,
        reason: None,
    }
}

fn tell(report: &Report) {
    let (target_name, bad, repaired, unverifiable) = (&report.target, report.bad, report.repaired, report.unverifiable);
    if report.is_clean() && unverifiable == 0 {
        tracing::info!(target_name, listed = report.listed, verified = report.verified, repaired, "scrubbed");
    } else if report.is_clean() {
        let reason = report.unverifiable_reason.as_deref().unwrap_or_default();
        tracing::warn!(target_name, unverifiable, reason, "scrub could not check every copy");
    } else {
        let history = report.history.as_deref().unwrap_or("nothing wrong");
        tracing::error!(target_name, bad, repaired, unverifiable, history, "scrub found bad copies");
    }
}

fn failed(error: crate::meta::Error) -> Error {
    Error::failed(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use rusqlite::params;

    use super::*;
    use crate::chunk::evict::Evictor;
    use crate::chunk::open::OpenFiles;
    use crate::chunk::space::{Limits, Space};
    use crate::id::{ChunkHash, ChunkId, Epoch};
    use crate::meta::target::Configured;
    use crate::meta::testing::store;
    use crate::target::memory::MemoryTarget;

    #[tokio::test]
    async fn a_scheduled_scrub_runs_when_it_is_due_and_has_what_it_finds_repaired() {
        const EVERY: Duration = Duration::from_secs(2 * 3600);
        let (dir, meta) = store();
        meta.register_targets(&[Configured { name: "a".into(), uri: "memory://a".into(), id: None }]).unwrap();
        meta.begin_mount(Epoch(0), "boot").unwrap();
        let (bit, hash) = (TargetBit::new(0).unwrap(), ChunkHash::of(b"lost"));
        let insert =
            "INSERT INTO chunk (id, hash, length, bytes_referenced, placed, incomplete) VALUES (1, ?1, 4, 4, ?2, 0)";
        meta.write(|tx| {
            tx.conn().execute(insert, params![hash, 1])?;
            tx.recount_tally(bit)
        })
        .unwrap();
        let meta = Arc::new(meta);
        let open_files = Arc::new(OpenFiles::new(ChunkFiles::new(dir.path()).unwrap()));
        let space = Arc::new(Space::new(dir.path(), Limits { used_max: u64::MAX, free_min: 0 }, 0));
        let evictor = Arc::new(Evictor::new(meta.clone(), open_files.clone(), space.clone()));
        let runtime = tokio::runtime::Handle::current();
        let fetcher = Fetcher::new(meta.clone(), open_files.clone(), space, evictor, runtime);
        let target = Arc::new(MemoryTarget::new());
        fetcher.set_sources(vec![Source { bit, name: "a".into(), target, priority: 0 }]);
        let _time = clock::simulated::begin();
        let scrubs = Scrubs::new(meta.clone(), open_files.files().clone(), fetcher, false);
        let mut running = std::pin::pin!(scrubs.on_schedule(EVERY, scrub::Level::List));
        let mut pass = async |secs: u64, until: &dyn Fn() -> bool| {
            while !until() {
                assert_eq!(futures::poll!(running.as_mut()), Poll::Pending);
                clock::simulated::pass(Duration::from_secs(secs));
                // What it does on other threads takes real time.
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let scrubbed_at = || meta.scrubbed_at(bit).unwrap();
        assert_eq!(scrubbed_at(), None);
        // One that never was is due.
        pass(1, &|| scrubbed_at().is_some()).await;
        let first = scrubbed_at().unwrap();
        assert!(!meta.is_placed(bit, ChunkId(1)).unwrap(), "what is missing is sent again");
        pass(10, &|| scrubbed_at() != Some(first)).await;
        let second = scrubbed_at().unwrap();
        assert!(second >= first + EVERY.as_secs() as i64, "{first} {second}");
    }
}
