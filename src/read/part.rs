//! Fetching a part of a chunk by itself, checked like a whole one.
//!
//! Owns: asking one source for the groups of an outline, checking them, going on with the whole chunk.
//! Does not own: outlines (`chunk::outline`, `meta::outline`), when a part is worth it (`parts`), findings, failover and repair
//! (`fetch`: whatever goes wrong with a part, the whole chunk is fetched, and judged, as ever).
//!
//! ```text
//! read at random ─▶ outline at hand? worth it? ──no──────────────────────────────┐
//!                        │ yes                                                   ▼
//!                        └─▶ best source: get_range ─▶ groups lead to the name? ─no, late, failed─▶ whole chunk
//!                                                            └─ yes ─▶ reader
//! ```

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use rustix::io::Errno;

use super::fetch::{DEADLINE, Fetcher, Wanted};
use crate::chunk::outline::{LENGTH_MIN, Outline};
use crate::clock;
use crate::target::Kind;

impl Fetcher {
    /// Returns the verified bytes of a range of a chunk, all of which is fetched.
    pub(super) fn within(
        self: &Arc<Self>,
        wanted: Wanted,
        range: Range<u64>,
    ) -> BoxFuture<'static, Result<Bytes, Errno>> {
        let flight = self.fetch(wanted);
        async move { cut(&flight.await?, &range) }.boxed()
    }

    /// Returns the verified bytes of a range of a chunk; only what is needed of it is fetched where that is cheaper.
    pub(super) fn part(
        self: &Arc<Self>,
        wanted: Wanted,
        range: Range<u64>,
    ) -> BoxFuture<'static, Result<Bytes, Errno>> {
        let Some((outline, groups)) = self.worth(&wanted, &range) else { return self.within(wanted, range) };
        let fetcher = self.clone();
        // A task of its own, as for a whole chunk: its timers need the runtime.
        let task = self.runtime.spawn(async move {
            let all = async {
                if let Some(bytes) = fetcher.ask_part(&wanted, &outline, &groups).await {
                    return cut(&bytes, &(range.start - groups.start..range.end - groups.start));
                }
                cut(&fetcher.fetch(wanted).await?, &range)
            };
            clock::timeout(DEADLINE, all).await.unwrap_or(Err(Errno::IO))
        });
        task.map(|joined| joined.unwrap_or(Err(Errno::IO))).boxed()
    }

    /// The outline and the groups to ask for, if a part is to be fetched by itself.
    fn worth(&self, wanted: &Wanted, range: &Range<u64>) -> Option<(Outline, Range<u64>)> {
        if wanted.length < LENGTH_MIN || range.is_empty() || self.flights.lock().contains_key(&wanted.chunk) {
            return None;
        }
        // Without its outline nothing less than the whole chunk can be checked.
        let outline = self.meta.outline(wanted.chunk, wanted.hash, wanted.length).ok()??;
        let groups = outline.covering(range);
        self.parts.lock().take(wanted.chunk, wanted.length, groups.end - groups.start).then_some((outline, groups))
    }

    /// Asks the best source for groups of a chunk. `None`: the whole chunk has to come.
    async fn ask_part(&self, wanted: &Wanted, outline: &Outline, groups: &Range<u64>) -> Option<Bytes> {
        let now = clock::instant();
        let (source, record) = self
            .order(wanted.placed)
            .into_iter()
            .find(|(source, record)| wanted.placed & source.bit.mask() != 0 && record.lock().gives_parts(now))?;
        // As long as nineteen of twenty whole chunks take: whoever is later is asked for no more, others are.
        let patience = record.lock().hedge_after();
        let key = crate::format::key::chunk(wanted.hash);
        let asked = async {
            let _permit = self.part_permits.acquire().await.ok()?;
            Some(source.target.get_range(&key, groups.start, groups.end - groups.start).await)
        };
        let why = match clock::timeout(patience, asked).await.ok()?? {
            Ok(bytes) if outline.confirms(groups, &bytes) => {
                self.counters.parts.fetch_add(1, Ordering::Relaxed);
                self.counters.part_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                return Some(bytes);
            }
            Ok(_) => "its bytes are not those of the chunk".to_owned(),
            Err(error) if error.kind == Kind::Invalid => error.to_string(),
            Err(error) => {
                // An absent copy is no failure of the source: the whole chunk is asked of it, too, and missed.
                if error.kind != Kind::NotFound {
                    record.lock().failed(clock::instant());
                }
                return None;
            }
        };
        self.counters.parts_wrong.fetch_add(1, Ordering::Relaxed);
        record.lock().gave_a_wrong_part(clock::instant());
        tracing::warn!(target_name = %source.name, chunk = %wanted.hash, why, "a part is wrong; the whole chunk is fetched");
        None
    }

    /// Keeps the outline of a chunk that came whole, for the time when it left the cache again.
    pub(super) fn keep_outline(&self, wanted: &Wanted, outline: Option<Outline>) {
        let Some(outline) = outline else { return };
        let kept = self.meta.outline(wanted.chunk, wanted.hash, wanted.length);
        if kept.is_ok_and(|kept| kept.is_none())
            && let Err(error) = self.meta.keep_outlines(&[(wanted.hash, &outline)])
        {
            tracing::debug!(chunk = %wanted.hash, %error, "an outline could not be kept");
        }
    }
}

/// What was verified has the length that its row says; a row that says something else is an error, no panic.
fn cut(bytes: &Bytes, range: &Range<u64>) -> Result<Bytes, Errno> {
    let inside = range.start <= range.end && range.end <= bytes.len() as u64;
    inside.then(|| bytes.slice(range.start as usize..range.end as usize)).ok_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use parking_lot::Mutex;
    use rusqlite::params;

    use super::super::fetch::Source;
    use super::*;
    use crate::chunk::evict::Evictor;
    use crate::chunk::file::ChunkFiles;
    use crate::chunk::open::OpenFiles;
    use crate::chunk::outline::GROUP;
    use crate::chunk::space::{Limits, Space};
    use crate::id::{ChunkHash, ChunkId, TargetBit};
    use crate::meta::testing::store;
    use crate::target::memory::MemoryTarget;
    use crate::target::{Class, Existing, Target};
    use crate::testing::faulty::{Call, Fault, FaultyTarget};

    const LENGTH: u64 = 4 << 20;

    type Hook = fn(Call<'_>) -> Fault;

    /// Chunks on two targets; the first, which is asked first, misbehaves as a hook says. Nothing is kept locally: there is
    /// no room.
    struct World {
        fetcher: Arc<Fetcher>,
        fault: Arc<Mutex<Hook>>,
        targets: Vec<Arc<MemoryTarget>>,
        _dir: tempfile::TempDir,
    }

    fn healthy(_: Call<'_>) -> Fault {
        Fault::None
    }

    impl World {
        fn new() -> World {
            let (dir, meta) = store();
            let meta = Arc::new(meta);
            let open_files = Arc::new(OpenFiles::new(ChunkFiles::new(dir.path()).unwrap()));
            let space = Arc::new(Space::new(dir.path(), Limits { used_max: 0, free_min: 0 }, 0));
            let evictor = Arc::new(Evictor::new(meta.clone(), open_files.clone(), space.clone()));
            let fetcher = Fetcher::new(meta, open_files, space, evictor, tokio::runtime::Handle::current());
            let fault = Arc::new(Mutex::new(healthy as Hook));
            let targets = vec![Arc::new(MemoryTarget::new()), Arc::new(MemoryTarget::new())];
            let hook = fault.clone();
            let first = FaultyTarget::new(targets[0].clone(), move |call| {
                let fault = *hook.lock();
                fault(call)
            });
            let source = |bit: u8, target| Source {
                bit: TargetBit::new(bit).unwrap(),
                name: bit.to_string(),
                target,
                priority: bit.into(),
            };
            fetcher.set_sources(vec![source(0, Arc::new(first)), source(1, targets[1].clone())]);
            World { fetcher, fault, targets, _dir: dir }
        }

        /// A chunk on both targets, with its row; with its outline if that is said.
        async fn chunk(&self, id: i64, outlined: bool) -> (Wanted, Bytes) {
            let mut bytes = vec![0; LENGTH as usize];
            blake3::Hasher::new().update(&id.to_le_bytes()).finalize_xof().fill(&mut bytes);
            let (hash, outline) = Outline::of(&bytes);
            let bytes = Bytes::from(bytes);
            let insert = "INSERT INTO chunk (id, hash, length, bytes_referenced, incomplete) VALUES (?1, ?2, ?3, 1, 0)";
            let meta = &self.fetcher.meta;
            meta.write(|tx| Ok(tx.conn().execute(insert, params![id, hash, LENGTH as i64]).map(drop)?)).unwrap();
            if outlined {
                meta.keep_outlines(&[(hash, &outline.unwrap())]).unwrap();
            }
            for target in &self.targets {
                target.put(&crate::format::key::chunk(hash), bytes.clone().into(), Existing::Replace).await.unwrap();
            }
            (Wanted { chunk: ChunkId(id as u64), hash, length: LENGTH, placed: 0b11 }, bytes)
        }

        async fn read(&self, (wanted, bytes): &(Wanted, Bytes), range: Range<u64>) {
            let read = self.fetcher.part(*wanted, range.clone()).await.unwrap();
            assert!(read == bytes[range.start as usize..range.end as usize], "other bytes were served");
        }

        /// Parts, wrong parts, whole chunks, hedges.
        fn counts(&self) -> [u64; 4] {
            let counters = self.fetcher.counters();
            let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            [read(&counters.parts), read(&counters.parts_wrong), read(&counters.fetched_chunks), read(&counters.hedged)]
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn parts_come_by_themselves_up_to_a_quarter_of_a_chunk_and_then_all_of_it() {
        let world = World::new();
        let chunk = world.chunk(1, true).await;
        world.read(&chunk, GROUP + 7..GROUP + 4103).await;
        assert_eq!(world.counts(), [1, 0, 0, 0]);
        assert_eq!(world.fetcher.counters().part_bytes.load(Ordering::Relaxed), GROUP);
        // One that touches two groups, and the end.
        world.read(&chunk, 3 * GROUP - 1..3 * GROUP + 1).await;
        world.read(&chunk, LENGTH - 1..LENGTH).await;
        assert_eq!(world.counts(), [3, 0, 0, 0]);
        world.read(&chunk, 0..4096).await;
        assert_eq!(world.counts(), [3, 0, 1, 0], "whoever wants so much will want it all");
        let large = world.chunk(2, true).await;
        world.read(&large, 0..LENGTH / 2).await;
        assert_eq!(world.counts(), [3, 0, 2, 0], "half of a chunk is no part");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn without_an_outline_all_of_a_chunk_comes_and_brings_it() {
        let world = World::new();
        let chunk = world.chunk(1, false).await;
        world.read(&chunk, 4096..8192).await;
        assert_eq!(world.counts(), [0, 0, 1, 0]);
        world.fetcher.landed().await;
        world.read(&chunk, 4096..8192).await;
        assert_eq!(world.counts(), [1, 0, 1, 0]);
    }

    /// Promise 4 for parts: the source spoils what it sends of a range, its whole copy is good.
    #[tokio::test(flavor = "multi_thread")]
    async fn wrong_bytes_of_a_range_are_never_served() {
        let world = World::new();
        let chunk = world.chunk(1, true).await;
        *world.fault.lock() = |call| if call.length > 0 { Fault::WrongBytes } else { Fault::None };
        world.read(&chunk, GROUP..GROUP + 4096).await;
        assert_eq!(world.counts(), [0, 1, 1, 0]);
        assert_eq!(world.fetcher.counters().wrong.load(Ordering::Relaxed), 0, "its copy is good");
        // It is not asked for parts any more; the other one is.
        let other = world.chunk(2, true).await;
        world.read(&other, GROUP..GROUP + 4096).await;
        assert_eq!(world.counts(), [1, 1, 1, 0]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_part_of_a_bad_copy_comes_from_the_other_target_and_the_copy_is_a_finding() {
        let world = World::new();
        let chunk = world.chunk(1, true).await;
        let placed = "UPDATE chunk SET placed = 3";
        world.fetcher.meta.write(|tx| Ok(tx.conn().execute(placed, []).map(drop)?)).unwrap();
        let mut bad = chunk.1.to_vec();
        bad[GROUP as usize + 9] ^= 1;
        let key = crate::format::key::chunk(ChunkHash::of(&chunk.1));
        world.targets[0].put(&key, bad.into(), Existing::Replace).await.unwrap();
        world.read(&chunk, GROUP..GROUP + 4096).await;
        assert_eq!(world.counts(), [0, 1, 1, 0]);
        assert_eq!(world.fetcher.counters().wrong.load(Ordering::Relaxed), 1);
        assert!(
            !world.fetcher.meta.is_placed(TargetBit::new(0).unwrap(), ChunkId(1)).unwrap(),
            "it is sent there again"
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_source_that_does_not_give_parts_gives_whole_chunks() {
        fn no_ranges(call: Call<'_>) -> Fault {
            if call.length > 0 { Fault::Refuse(Kind::Invalid, Class::Rejected) } else { Fault::None }
        }
        fn hangs(call: Call<'_>) -> Fault {
            if call.length > 0 { Fault::Hang } else { Fault::None }
        }
        fn fails(call: Call<'_>) -> Fault {
            if call.operation == "get" { Fault::Refuse(Kind::Failed, Class::Temporary) } else { Fault::None }
        }
        for (fault, wrong) in [(no_ranges as Hook, 1), (hangs, 0), (fails, 0)] {
            let world = World::new();
            let chunk = world.chunk(1, true).await;
            *world.fault.lock() = fault;
            world.read(&chunk, GROUP..GROUP + 4096).await;
            assert_eq!(world.counts()[..3], [0, wrong, 1]);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_part_that_no_source_gives_is_an_error() {
        let world = World::new();
        let (wanted, _) = world.chunk(1, true).await;
        for target in &world.targets {
            target.delete(&crate::format::key::chunk(wanted.hash)).await.unwrap();
        }
        assert_eq!(world.fetcher.part(wanted, 0..10).await, Err(Errno::IO));
    }
}
