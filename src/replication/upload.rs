//! Puts: find the bytes of chunks, check them, send them.
//!
//! Owns: the order of sources (this machine, then other targets), findings, the deadline of a put, what was sent.
//! Does not own: when and whether to send (`planner`), recording that it arrived (`driver`).
//!
//! - Wrong bytes are never sent and so never confirmed (S5, promise 4): only a [`CheckedChunk`] becomes a body.
//! - A body is a mapping, not memory. What has to be copied (small ranges of a gathered chunk, chunks fetched from another
//!   target) is bounded for each target by itself, so that one that hangs takes no memory from the others (promises 5, 6).
//! - Small chunks come in groups: their rows are read and their files opened in one go, then each is sent by itself. One at
//!   a time, waking threads costs more than the work.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::gate::{Gate, GateWatch};
use super::health::Failure;
use super::source::{self, CheckedChunk, Finding};
use crate::chunk::file::ChunkFiles;
use crate::chunk::lend::Moment;
use crate::clock::{self, Instant};
use crate::format::key;
use crate::id::TargetBit;
use crate::meta::Meta;
use crate::meta::placement::{ChunkSources, ChunkTodo, PutSource};
use crate::target::{Class, DynTarget, Existing, Kind, pace};
use crate::testing::failpoint::{self, Point};

/// Findings kept for `status`; all are counted.
const FINDINGS_MAX: usize = 1024;
/// Unit of the bound on copied bytes.
const COPY_UNIT: u64 = 1 << 10;

/// How long a target may take to answer.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For anything, and for the first byte of a put.
    pub answer: Duration,
    /// A put or get gets a second more for as many bytes: slower is taken for hanging.
    pub bytes_per_second_min: u64,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { answer: Duration::from_secs(60), bytes_per_second_min: 32 << 10 }
    }
}

impl Patience {
    /// The deadline of a transfer.
    pub fn transfer(&self, bytes: u64) -> Duration {
        self.answer + Duration::from_secs(bytes / self.bytes_per_second_min.max(1))
    }
}

/// What came of a put.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The target confirmed it.
    Sent,
    /// No source has right bytes.
    Unsendable,
    /// The chunk has no row any more.
    Gone,
    /// The target failed.
    Failed(Failure),
}

/// Everything a put needs; shared by all puts of a mount.
pub struct Uploader {
    pub(super) meta: Arc<Meta>,
    pub(super) files: ChunkFiles,
    /// The number of this mount (S5).
    pub(super) mount: u64,
    pub(super) patience: Patience,
    /// In the order in which they came. Targets come and go.
    pub(super) peers: RwLock<Vec<Arc<Peer>>>,
    pub(super) findings: Findings,
}

/// A target and what is known of its traffic.
#[derive(Debug)]
pub struct Peer {
    pub(super) bit: TargetBit,
    pub(super) name: String,
    pub(super) target: DynTarget,
    pub(super) gate: GateWatch,
    pub(super) traffic: Traffic,
    /// Units of bytes that may be copied for puts to it.
    pub(super) copies: Arc<Semaphore>,
    pub(super) copies_max: u32,
}

impl Peer {
    /// A target whose puts may hold at most `copied_max` bytes of memory; a larger chunk goes alone.
    pub fn new(bit: TargetBit, name: String, target: DynTarget, gate: GateWatch, copied_max: u64) -> Peer {
        let copies_max = u32::try_from((copied_max / COPY_UNIT).max(1)).unwrap_or(u32::MAX >> 4);
        let copies = Arc::new(Semaphore::new(copies_max as usize));
        Peer { bit, name, target, gate, traffic: Traffic::default(), copies, copies_max }
    }

    fn units(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(COPY_UNIT)).unwrap_or(u32::MAX).min(self.copies_max)
    }

    async fn reserve(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        // Never closed; were it, a put without a permit would still be right.
        Arc::clone(&self.copies).acquire_many_owned(self.units(bytes)).await.ok()
    }

    fn try_reserve(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.copies).try_acquire_many_owned(self.units(bytes)).ok()
    }
}

/// A chunk on its way to a put.
pub(super) enum Prepared {
    /// Its bytes are there; what is copied of them is paid for.
    Body(CheckedChunk, OwnedSemaphorePermit),
    /// Its bytes may be on this machine, but there is no room for copies now. With the moment before they were looked up
    /// (P3).
    Local(Arc<ChunkSources>, Moment),
    /// They are not.
    Elsewhere(Arc<ChunkSources>),
    /// It is not sent.
    Not(Outcome),
}

impl Uploader {
    /// The target with this bit, while it takes part.
    pub(super) fn peer(&self, bit: TargetBit) -> Option<Arc<Peer>> {
        self.peers.read().iter().find(|peer| peer.bit == bit).cloned()
    }

    /// All targets.
    pub(super) fn all_peers(&self) -> Vec<Arc<Peer>> {
        self.peers.read().clone()
    }

    /// Finds the bytes of chunks for the target `bit`, in the order of `chunks`.
    pub(super) async fn prepare(self: &Arc<Uploader>, bit: TargetBit, chunks: &[ChunkTodo]) -> Vec<Prepared> {
        let (this, of) = (Arc::clone(self), chunks.to_vec());
        let prepared = blocking(move || this.prepare_blocking(bit, &of)).await;
        prepared.unwrap_or_else(|| chunks.iter().map(|_| Prepared::Not(Outcome::Unsendable)).collect())
    }

    fn prepare_blocking(&self, bit: TargetBit, chunks: &[ChunkTodo]) -> Vec<Prepared> {
        let none = |_: &ChunkTodo| Prepared::Not(Outcome::Unsendable);
        let Some(peer) = self.peer(bit) else { return chunks.iter().map(none).collect() };
        let before = self.files.lending().moment();
        let sources = match self.meta.put_sources(bit, chunks) {
            Ok(sources) => sources,
            Err(error) => {
                tracing::error!(target_name = peer.name, %error, "the sources of chunks cannot be read");
                return chunks.iter().map(none).collect();
            }
        };
        let mut files = source::Files::new(&self.files);
        let mut prepare = |source| {
            let sources = match source {
                // It rests, and is tried again.
                PutSource::Leaving => return Prepared::Not(Outcome::Unsendable),
                PutSource::Gone => return Prepared::Not(Outcome::Gone),
                PutSource::From(sources) if sources.pieces.is_empty() => return Prepared::Elsewhere(Arc::new(sources)),
                PutSource::From(sources) => sources,
            };
            let Some(permit) = peer.try_reserve(source::copied_bytes(self.files.lending(), &sources)) else {
                return Prepared::Local(Arc::new(sources), before);
            };
            match self.open(&mut files, &sources, before) {
                Some(body) => Prepared::Body(body, permit),
                None => Prepared::Elsewhere(Arc::new(sources)),
            }
        };
        sources.into_iter().map(&mut prepare).collect()
    }

    /// Puts a chunk on the target `bit`. In the background it stands back where the bandwidth is limited.
    pub(super) async fn put(
        self: &Arc<Uploader>,
        bit: TargetBit,
        prepared: Prepared,
        chunk: ChunkTodo,
        background: bool,
    ) -> Outcome {
        let put = self.put_prepared(bit, prepared, chunk);
        if background { pace::in_background(put).await } else { put.await }
    }

    async fn put_prepared(self: &Arc<Uploader>, bit: TargetBit, prepared: Prepared, chunk: ChunkTodo) -> Outcome {
        let Some(peer) = self.peer(bit) else { return Outcome::Unsendable };
        let sources = match prepared {
            Prepared::Not(outcome) => return outcome,
            Prepared::Body(body, _permit) => return self.send(&peer, &chunk, body).await,
            Prepared::Local(sources, before) => {
                let _permit = peer.reserve(source::copied_bytes(self.files.lending(), &sources)).await;
                if let Some(body) = self.local(&sources, before).await {
                    return self.send(&peer, &chunk, body).await;
                }
                sources
            }
            Prepared::Elsewhere(sources) => sources,
        };
        let _permit = peer.reserve(chunk.length).await;
        match self.fetch(&peer, &sources).await {
            Some(body) => self.send(&peer, &chunk, body).await,
            None => Outcome::Unsendable,
        }
    }

    async fn local(self: &Arc<Uploader>, sources: &Arc<ChunkSources>, before: Moment) -> Option<CheckedChunk> {
        let (this, of) = (Arc::clone(self), Arc::clone(sources));
        blocking(move || this.open(&mut source::Files::new(&this.files), &of, before)).await?
    }

    /// `before`: the moment before the sources were looked up.
    fn open(&self, files: &mut source::Files<'_>, sources: &ChunkSources, before: Moment) -> Option<CheckedChunk> {
        let (chunk, findings) = source::open(files, self.mount, sources);
        if self.files.lending().thawed_since(before) {
            // P3: one of these files may be a session's by now. It is tried again, with the rows as they are then.
            return None;
        }
        findings.into_iter().for_each(|finding| self.findings.report(finding));
        chunk
    }

    /// Asks the other targets that have the chunk, one after the other. If none of them has it after all, then every target,
    /// the receiver too: a store may have given a wrong answer once.
    async fn fetch(self: &Arc<Uploader>, receiver: &Peer, sources: &ChunkSources) -> Option<CheckedChunk> {
        let has = |peer: &Arc<Peer>| peer.bit != receiver.bit && sources.placed & peer.bit.mask() != 0;
        let (holders, others): (Vec<_>, Vec<_>) = self.all_peers().into_iter().partition(has);
        let mut answered = true;
        for peer in holders {
            match self.ask(&peer, sources.chunk).await {
                Asked::Right(chunk) => return Some(chunk),
                Asked::Unanswered => answered = false,
                Asked::Bad(problem) => self.misplaced(&peer, sources.chunk, problem).await,
            }
        }
        for peer in others.into_iter().filter(|_| answered) {
            if let Asked::Right(chunk) = self.ask(&peer, sources.chunk).await {
                return Some(chunk);
            }
        }
        None
    }

    async fn ask(&self, peer: &Peer, chunk: ChunkTodo) -> Asked {
        let ChunkTodo { hash, length, .. } = chunk;
        if peer.gate.state() != Gate::Open {
            return Asked::Unanswered;
        }
        let key = key::chunk(hash);
        let get = clock::timeout(self.patience.transfer(length), peer.target.get(&key, length));
        match get.await {
            Ok(Ok(bytes)) => match blocking(move || CheckedChunk::fetched(hash, bytes)).await {
                Some(Some(chunk)) => Asked::Right(chunk),
                Some(None) => Asked::Bad("its bytes do not match its name".to_owned()),
                None => Asked::Unanswered,
            },
            Ok(Err(error)) if matches!(error.kind, Kind::NotFound | Kind::Invalid) => Asked::Bad(error.to_string()),
            // Out of reach is no finding.
            Ok(Err(_)) | Err(_) => Asked::Unanswered,
        }
    }

    /// A target that counted as a holder is none, and needs the chunk again, as when a reader finds it so. What only a snapshot
    /// still names is then known to be nowhere, and not waited for (T4).
    async fn misplaced(self: &Arc<Uploader>, peer: &Peer, chunk: ChunkTodo, problem: String) {
        self.findings.report(Finding { chunk: chunk.hash, place: peer.name.clone(), problem });
        let (this, bit) = (Arc::clone(self), peer.bit);
        let noted = blocking(move || this.meta.write(|tx| tx.misplaced(bit, chunk.id))).await;
        if let Some(Err(error)) = noted {
            tracing::warn!(target_name = peer.name, chunk = %chunk.hash, %error, "the finding could not be recorded");
        }
    }

    async fn send(&self, peer: &Peer, chunk: &ChunkTodo, body: CheckedChunk) -> Outcome {
        let key = key::chunk(chunk.hash);
        let put = peer.target.put(&key, body.into_body(), Existing::Replace);
        match pace::within(self.patience.transfer(chunk.length), put).await {
            Ok(Ok(())) => {
                failpoint::pass(Point::Upload);
                peer.traffic.sent(chunk.length, clock::instant());
                Outcome::Sent
            }
            Ok(Err(error)) => Outcome::Failed(error.into()),
            Err(pace::Elapsed) => Outcome::Failed(unanswered("put", &key)),
        }
    }
}

/// What a target answers that is asked for a chunk.
enum Asked {
    Right(CheckedChunk),
    /// It has none, or wrong bytes.
    Bad(String),
    Unanswered,
}

/// The failure of a call that had no answer in time.
pub(super) fn unanswered(operation: &str, key: &str) -> Failure {
    Failure {
        kind: Kind::Unreachable,
        class: Class::Ambiguous,
        retry_after: None,
        message: format!("{operation} {key:?}: no answer in time"),
    }
}

/// Runs `work` where it may block; `None` if it panicked, which was logged by then.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    crate::aside::blocking(work).await.ok()
}

/// What was sent to one target in this mount.
#[derive(Debug, Default)]
pub struct Traffic {
    chunks: AtomicU64,
    bytes: AtomicU64,
    rate: Mutex<Rate>,
}

impl Traffic {
    fn sent(&self, bytes: u64, now: Instant) {
        self.chunks.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.rate.lock().add(bytes, now);
    }

    /// Chunks and bytes.
    pub fn total(&self) -> (u64, u64) {
        (self.chunks.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// Bytes per second, lately.
    pub fn rate(&self, now: Instant) -> f64 {
        self.rate.lock().at(now)
    }
}

/// Bytes per second, forgotten exponentially.
#[derive(Debug, Clone, Copy, Default)]
struct Rate {
    /// What is not forgotten of the bytes sent.
    bytes: f64,
    at: Instant,
}

impl Rate {
    const WINDOW: Duration = Duration::from_secs(5);

    fn at(&self, now: Instant) -> f64 {
        let forgotten = (-now.since(self.at).as_secs_f64() / Self::WINDOW.as_secs_f64()).exp();
        self.bytes * forgotten / Self::WINDOW.as_secs_f64()
    }

    fn add(&mut self, bytes: u64, now: Instant) {
        self.bytes = self.at(now) * Self::WINDOW.as_secs_f64() + bytes as f64;
        self.at = now;
    }
}

/// What was found wrong with copies, each thing once.
#[derive(Debug, Default)]
pub struct Findings {
    known: Mutex<BTreeSet<Finding>>,
    /// With those that were not kept.
    count: AtomicU64,
}

impl Findings {
    /// Notes and logs a finding that is new.
    pub fn report(&self, finding: Finding) {
        let mut known = self.known.lock();
        if known.contains(&finding) {
            return;
        }
        tracing::error!(chunk = %finding.chunk, place = finding.place, "a copy is not good: {}", finding.problem);
        self.count.fetch_add(1, Ordering::Relaxed);
        if known.len() < FINDINGS_MAX {
            known.insert(finding);
        }
    }

    /// The findings, and how many there were.
    pub fn all(&self) -> (Vec<Finding>, u64) {
        (self.known.lock().iter().cloned().collect(), self.count.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_follows_what_is_sent_and_forgets() {
        let at = |secs: u64| Instant::START + Duration::from_secs(secs);
        let mut rate = Rate::default();
        for second in 100..160 {
            rate.add(1_000, at(second));
        }
        let steady = rate.at(at(160));
        assert!((800.0..1_200.0).contains(&steady), "{steady}");
        assert!(rate.at(at(260)) < 1.0);
    }

    #[test]
    fn a_large_body_gets_more_time() {
        let patience = Patience::default();
        assert_eq!(patience.transfer(0), Duration::from_secs(60));
        assert_eq!(patience.transfer(64 << 20), Duration::from_secs(60 + 2048));
    }
}
