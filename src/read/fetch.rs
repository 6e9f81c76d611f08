//! Fetching chunks from targets: best source first, failover, verified, one flight per chunk.
//!
//! Owns: asking the sources in their order, the bound on chunks in memory, storing what came for later reads.
//! Does not own: the order and the hedge (`sources`), parts of chunks (`part`), who asks, what becomes of the bytes
//! (`reader`).
//!
//! A wrong or missing copy is a finding: the target loses its placement bit, so that the chunk is uploaded there again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::{Mutex, RwLock};
use rustix::io::Errno;
use tokio::sync::Semaphore;

use super::parts::Parts;
use super::sources::{Budget, Record};
use crate::chunk::evict::Evictor;
use crate::chunk::file::fetched_path;
use crate::chunk::open::OpenFiles;
use crate::chunk::outline::Outline;
use crate::chunk::space::{Admission, Space};
use crate::clock;
use crate::id::{ChunkHash, ChunkId, TargetBit};
use crate::meta::Meta;
use crate::target::{DynTarget, Kind};

/// Chunks in memory on their way to readers at most.
const FLIGHTS_MAX: usize = 8;
/// Parts of chunks on their way at most: 32 MiB.
const PARTS_MAX: usize = 16;
/// One source has this long for a chunk before the next is asked.
const SOURCE_TIMEOUT: Duration = Duration::from_secs(30);
/// A read that no source answers ends in `EIO` after this long.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

/// A target as a source of chunks.
#[derive(Debug, Clone)]
pub struct Source {
    pub bit: TargetBit,
    pub name: String,
    pub target: DynTarget,
    /// Lower first among sources that do equally well.
    pub priority: u32,
}

/// A chunk that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub chunk: ChunkId,
    pub hash: ChunkHash,
    /// Bytes.
    pub length: u64,
    /// Mask of the targets that hold it, as far as is known.
    pub placed: u64,
}

/// Counts of what fetching met.
#[derive(Debug, Default)]
pub struct Counters {
    pub fetched_chunks: AtomicU64,
    pub fetched_bytes: AtomicU64,
    /// Copies whose bytes did not have the hash of their name.
    pub wrong: AtomicU64,
    /// Copies that were not there.
    pub absent: AtomicU64,
    /// Sources that failed otherwise.
    pub failed: AtomicU64,
    /// Second requests beside a slow source.
    pub hedged: AtomicU64,
    /// Parts of chunks that were fetched by themselves.
    pub parts: AtomicU64,
    /// Bytes of them.
    pub part_bytes: AtomicU64,
    /// Parts whose bytes did not lead to the name of their chunk, or that a source did not give as asked.
    pub parts_wrong: AtomicU64,
}

pub(super) type Flight = Shared<BoxFuture<'static, Result<Bytes, Errno>>>;

/// Fetches chunks.
pub struct Fetcher {
    pub(super) meta: Arc<Meta>,
    open_files: Arc<OpenFiles>,
    space: Arc<Space>,
    evictor: Arc<Evictor>,
    pub(super) runtime: tokio::runtime::Handle,
    sources: RwLock<Vec<Known>>,
    budget: Mutex<Budget>,
    pub(super) flights: Mutex<HashMap<ChunkId, Flight>>,
    permits: Arc<Semaphore>,
    pub(super) parts: Mutex<Parts>,
    pub(super) part_permits: Semaphore,
    pub(super) counters: Counters,
}

/// A source and how it did; tasks share the record.
pub(super) type Known = (Source, Arc<Mutex<Record>>);

impl Fetcher {
    /// A fetcher without sources.
    pub fn new(
        meta: Arc<Meta>,
        open_files: Arc<OpenFiles>,
        space: Arc<Space>,
        evictor: Arc<Evictor>,
        runtime: tokio::runtime::Handle,
    ) -> Arc<Fetcher> {
        Arc::new(Fetcher {
            meta,
            open_files,
            space,
            evictor,
            runtime,
            sources: RwLock::default(),
            budget: Mutex::default(),
            flights: Mutex::default(),
            permits: Arc::new(Semaphore::new(FLIGHTS_MAX)),
            parts: Mutex::default(),
            part_permits: Semaphore::new(PARTS_MAX),
            counters: Counters::default(),
        })
    }

    /// Sets the targets to fetch from.
    pub fn set_sources(&self, sources: Vec<Source>) {
        *self.sources.write() = sources.into_iter().map(|source| (source, Arc::default())).collect();
    }

    /// The targets to fetch from.
    pub fn sources(&self) -> Vec<Source> {
        self.sources.read().iter().map(|(source, _)| source.clone()).collect()
    }

    /// What fetching met so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The runtime that futures of reads run on.
    pub fn runtime(&self) -> &tokio::runtime::Handle {
        &self.runtime
    }

    /// Returns the verified bytes of a chunk. All who want the same chunk share one flight.
    pub fn fetch(self: &Arc<Self>, wanted: Wanted) -> Flight {
        self.parts.lock().comes_whole(wanted.chunk);
        let mut flights = self.flights.lock();
        flights
            .entry(wanted.chunk)
            .or_insert_with(|| {
                let fetcher = self.clone();
                // A task of its own: the flight goes on when a reader gives up, and what came is kept.
                let task = self.runtime.spawn(async move { fetcher.fly(wanted).await });
                task.map(|joined| joined.unwrap_or(Err(Errno::IO))).boxed().shared()
            })
            .clone()
    }

    /// Waits until nothing flies any more and everything that came is kept.
    pub async fn landed(&self) {
        while !self.flights.lock().is_empty() {
            clock::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn fly(self: Arc<Self>, wanted: Wanted) -> Result<Bytes, Errno> {
        let answer = match clock::timeout(DEADLINE, self.ask_sources(&wanted)).await {
            Ok(result) => result,
            Err(_) => {
                tracing::warn!(chunk = %wanted.hash, "no target gave the chunk in time");
                Err(Errno::IO)
            }
        };
        match answer {
            Ok((bytes, outline)) => {
                let (fetcher, stored) = (self.clone(), bytes.clone());
                // Readers have their bytes; the flight stays until the file is there, so that nobody fetches twice.
                crate::aside::detached(&self.runtime, move || {
                    fetcher.store(&wanted, &stored);
                    fetcher.keep_outline(&wanted, outline);
                    fetcher.flights.lock().remove(&wanted.chunk);
                });
                Ok(bytes)
            }
            Err(errno) => {
                self.flights.lock().remove(&wanted.chunk);
                Err(errno)
            }
        }
    }

    /// Asks one source after the other; a second one beside a slow one. The first right answer wins.
    async fn ask_sources(&self, wanted: &Wanted) -> Result<(Bytes, Option<Outline>), Errno> {
        let Ok(_permit) = self.permits.acquire().await else { return Err(Errno::IO) };
        let mut order = self.order(wanted.placed).into_iter().peekable();
        let mut asked = FuturesUnordered::new();
        let mut hedge_after = None;
        loop {
            if asked.is_empty() {
                let Some(known) = order.next() else {
                    tracing::error!(chunk = %wanted.hash, "no source can give the chunk");
                    return Err(Errno::IO);
                };
                self.budget.lock().asked();
                hedge_after = Some(known.1.lock().hedge_after());
                asked.push(self.ask(known, wanted));
            }
            // Only one that is known to have it is worth a second request.
            let second = order.peek().is_some_and(|(source, _)| wanted.placed & source.bit.mask() != 0);
            let hedge = hedge_after.filter(|_| second && asked.len() == 1);
            tokio::select! {
                biased;
                Some(answer) = asked.next() => if let Some(right) = answer {
                    return Ok(right);
                },
                () = clock::sleep(hedge.unwrap_or_default()), if hedge.is_some() => {
                    hedge_after = None;
                    if self.budget.lock().hedge() && let Some(known) = order.next() {
                        self.counters.hedged.fetch_add(1, Ordering::Relaxed);
                        asked.push(self.ask(known, wanted));
                    }
                }
            }
        }
    }

    /// Asks one source. What it did wrong is noted.
    async fn ask(&self, (source, record): Known, wanted: &Wanted) -> Option<(Bytes, Option<Outline>)> {
        let started = clock::instant();
        let key = crate::format::key::chunk(wanted.hash);
        let answer = clock::timeout(SOURCE_TIMEOUT, source.target.get(&key, wanted.length)).await;
        let problem = match answer {
            Ok(Ok(bytes)) => {
                let took = clock::instant().since(started);
                let (hash, outline) = Outline::of(&bytes);
                if bytes.len() as u64 == wanted.length && hash == wanted.hash {
                    record.lock().succeeded(took);
                    self.counters.fetched_chunks.fetch_add(1, Ordering::Relaxed);
                    self.counters.fetched_bytes.fetch_add(wanted.length, Ordering::Relaxed);
                    return Some((bytes, outline));
                }
                Problem::Wrong
            }
            Ok(Err(error)) if error.kind == Kind::NotFound => Problem::Absent,
            Ok(Err(error)) if error.kind == Kind::Invalid => Problem::Wrong,
            Ok(Err(error)) => Problem::Failed(error.to_string()),
            Err(_) => Problem::Failed(format!("no answer within {} s", SOURCE_TIMEOUT.as_secs())),
        };
        self.note(&source, &record, wanted, &problem);
        None
    }

    /// Sources in the order to ask.
    pub(super) fn order(&self, placed: u64) -> Vec<Known> {
        let mut sources = self.sources.read().clone();
        let now = clock::instant();
        sources.sort_by_cached_key(|(source, record)| {
            record.lock().rank(placed & source.bit.mask() != 0, source.priority, now)
        });
        sources
    }

    fn note(&self, source: &Source, record: &Mutex<Record>, wanted: &Wanted, problem: &Problem) {
        let held = wanted.placed & source.bit.mask() != 0;
        match problem {
            Problem::Wrong => {
                self.counters.wrong.fetch_add(1, Ordering::Relaxed);
                tracing::error!(target_name = %source.name, chunk = %wanted.hash, "copy has wrong bytes");
            }
            Problem::Absent if held => {
                self.counters.absent.fetch_add(1, Ordering::Relaxed);
                tracing::error!(target_name = %source.name, chunk = %wanted.hash, "copy is missing");
            }
            Problem::Absent => return,
            Problem::Failed(why) => {
                self.counters.failed.fetch_add(1, Ordering::Relaxed);
                record.lock().failed(clock::instant());
                tracing::warn!(target_name = %source.name, chunk = %wanted.hash, %why, "source failed, asking the next");
                return;
            }
        }
        if let Err(error) = self.meta.write(|tx| tx.misplaced(source.bit, wanted.chunk)) {
            tracing::warn!(target_name = %source.name, chunk = %wanted.hash, %error, "the finding could not be recorded");
        }
    }

    /// Keeps a fetched chunk for later reads, if there is room.
    fn store(&self, wanted: &Wanted, bytes: &Bytes) {
        if self.space.admit(wanted.length) != Admission::Go {
            return;
        }
        let name = fetched_path(&wanted.hash);
        let _names = self.evictor.keep_names();
        // A reader that planned before an earlier flight came to its end began this one. What has a row is being read.
        if self.meta.has_chunk_file(&name).unwrap_or(true) {
            return;
        }
        let stored = (|| -> std::io::Result<()> {
            use std::io::Write;
            // What stands there without a row was cut off in the middle.
            self.open_files.files().remove(&name)?;
            let mut file = self.open_files.files().create(&name)?;
            file.write_all(bytes)?;
            file.sync_data()
        })();
        if let Err(error) = stored {
            tracing::debug!(chunk = %wanted.hash, %error, "a fetched chunk could not be kept");
            return;
        }
        let crc32c = crate::write::seal::crc32c(bytes);
        match self.meta.write(|tx| tx.fetched(wanted.chunk, &name, wanted.length, crc32c)) {
            Ok(file) => {
                self.space.add(wanted.length as i64);
                self.evictor.used(file);
            }
            Err(error) => tracing::debug!(chunk = %wanted.hash, %error, "a fetched chunk could not be kept"),
        }
    }
}

enum Problem {
    /// Bytes that do not have the hash of their name.
    Wrong,
    /// No object.
    Absent,
    /// Anything else: try again some other time.
    Failed(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::file::ChunkFiles;
    use crate::chunk::space::Limits;
    use crate::meta::testing::store;
    use crate::target::Existing;
    use crate::target::memory::MemoryTarget;
    use crate::testing::faulty::{Call, Fault, FaultyTarget};

    /// A world of one chunk on two targets.
    fn fetcher(first: Fault) -> (tempfile::TempDir, Arc<Fetcher>, Wanted, Bytes) {
        let (dir, meta) = store();
        let meta = Arc::new(meta);
        let open_files = Arc::new(OpenFiles::new(ChunkFiles::new(dir.path()).unwrap()));
        let space = Arc::new(Space::new(dir.path(), Limits { used_max: u64::MAX, free_min: 0 }, 0));
        let evictor = Arc::new(Evictor::new(meta.clone(), open_files.clone(), space.clone()));
        let fetcher = Fetcher::new(meta, open_files, space, evictor, tokio::runtime::Handle::current());
        let bytes = Bytes::from_static(b"bytes of a chunk");
        let hash = ChunkHash::of(&bytes);
        let wanted = Wanted { chunk: ChunkId(1), hash, length: bytes.len() as u64, placed: 0b11 };
        let source = |bit: u8, fault: Fault| {
            let on_get = move |call: Call<'_>| if call.operation == "get" { fault } else { Fault::None };
            let target = Arc::new(FaultyTarget::new(Arc::new(MemoryTarget::new()), on_get));
            Source { bit: TargetBit::new(bit).unwrap(), name: bit.to_string(), target, priority: bit.into() }
        };
        fetcher.set_sources(vec![source(0, first), source(1, Fault::None)]);
        (dir, fetcher, wanted, bytes)
    }

    async fn hold(fetcher: &Fetcher, wanted: &Wanted, bytes: &Bytes) {
        let sources = fetcher.sources.read().clone();
        for (source, _) in sources {
            let key = crate::format::key::chunk(wanted.hash);
            source.target.put(&key, bytes.clone().into(), Existing::Replace).await.unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_source_that_hangs_is_hedged_and_one_that_answers_is_not() {
        let (_dir, slow, wanted, bytes) = fetcher(Fault::Hang);
        hold(&slow, &wanted, &bytes).await;
        assert_eq!(slow.fetch(wanted).await.unwrap(), bytes);
        assert_eq!(slow.counters().hedged.load(Ordering::Relaxed), 1);
        let (_dir, quick, wanted, bytes) = fetcher(Fault::None);
        hold(&quick, &wanted, &bytes).await;
        assert_eq!(quick.fetch(wanted).await.unwrap(), bytes);
        assert_eq!(quick.counters().hedged.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn all_who_want_a_chunk_at_once_share_one_flight() {
        let (_dir, fetcher, wanted, bytes) = fetcher(Fault::None);
        hold(&fetcher, &wanted, &bytes).await;
        // One thread: none of them flies before all are wanted.
        let flights: Vec<Flight> = (0..50).map(|_| fetcher.fetch(wanted)).collect();
        for read in futures::future::join_all(flights).await {
            assert_eq!(read.unwrap(), bytes);
        }
        assert_eq!(fetcher.counters().fetched_chunks.load(Ordering::Relaxed), 1);
    }

    /// However many sources there are and however they hang, and although each may take its time.
    #[tokio::test]
    async fn a_read_that_no_source_answers_is_an_error_in_time_and_the_next_one_finds_them_back() {
        use std::sync::atomic::AtomicBool;
        let (_dir, fetcher, wanted, bytes) = fetcher(Fault::None);
        let away = Arc::new(AtomicBool::new(false));
        let source = |bit: u8| {
            let away = away.clone();
            let on_get = move |call: Call<'_>| {
                if call.operation == "get" && away.load(Ordering::Relaxed) { Fault::Hang } else { Fault::None }
            };
            let target = Arc::new(FaultyTarget::new(Arc::new(MemoryTarget::new()), on_get));
            Source { bit: TargetBit::new(bit).unwrap(), name: bit.to_string(), target, priority: bit.into() }
        };
        fetcher.set_sources((0..5).map(source).collect());
        hold(&fetcher, &wanted, &bytes).await;
        away.store(true, Ordering::Relaxed);
        let time = clock::simulated::begin();
        let before = clock::instant();
        let mut flight = std::pin::pin!(fetcher.fetch(Wanted { placed: 0b11111, ..wanted }));
        let read = loop {
            match futures::poll!(flight.as_mut()) {
                std::task::Poll::Ready(read) => break read,
                std::task::Poll::Pending => {
                    tokio::task::yield_now().await;
                    clock::simulated::pass(Duration::from_millis(250));
                }
            }
        };
        let took = clock::instant().since(before);
        drop(time);
        assert_eq!(read, Err(Errno::IO));
        assert!(took <= DEADLINE + Duration::from_secs(1), "{took:?}");
        assert!(took >= SOURCE_TIMEOUT, "each was given its time: {took:?}");
        away.store(false, Ordering::Relaxed);
        assert_eq!(fetcher.fetch(wanted).await.unwrap(), bytes);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_absent_copy_is_answered_by_the_next_source_at_once() {
        let (_dir, fetcher, wanted, bytes) = fetcher(Fault::None);
        hold(&fetcher, &wanted, &bytes).await;
        let first = fetcher.sources.read()[0].0.target.clone();
        first.delete(&crate::format::key::chunk(wanted.hash)).await.unwrap();
        assert_eq!(fetcher.fetch(wanted).await.unwrap(), bytes);
        assert_eq!(fetcher.counters().absent.load(Ordering::Relaxed), 1);
        let second = fetcher.sources.read()[1].0.target.clone();
        second.delete(&crate::format::key::chunk(wanted.hash)).await.unwrap();
        fetcher.landed().await;
        let gone = Wanted { chunk: ChunkId(2), ..wanted };
        assert_eq!(fetcher.fetch(gone).await, Err(Errno::IO), "no source is an error, never a hole");
    }

    /// Failed as a short read of a restored mount: the file was made anew under readers.
    #[tokio::test(flavor = "multi_thread")]
    async fn regression_a_chunk_that_is_here_is_not_written_again_under_its_readers() {
        let (dir, meta) = store();
        let meta = Arc::new(meta);
        let open_files = Arc::new(OpenFiles::new(ChunkFiles::new(dir.path()).unwrap()));
        let space = Arc::new(Space::new(dir.path(), Limits { used_max: u64::MAX, free_min: 0 }, 0));
        let evictor = Arc::new(Evictor::new(meta.clone(), open_files.clone(), space.clone()));
        let fetcher = Fetcher::new(meta.clone(), open_files.clone(), space, evictor, tokio::runtime::Handle::current());
        let bytes = Bytes::from_static(b"bytes of a chunk");
        let wanted = Wanted { chunk: ChunkId(1), hash: ChunkHash::of(&bytes), length: bytes.len() as u64, placed: 1 };
        fetcher.store(&wanted, &bytes);
        let path = open_files.files().locate(&fetched_path(&wanted.hash));
        let first = std::os::unix::fs::MetadataExt::ino(&path.metadata().unwrap());
        fetcher.store(&wanted, &bytes);
        assert_eq!(std::os::unix::fs::MetadataExt::ino(&path.metadata().unwrap()), first);
    }
}
