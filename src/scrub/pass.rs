//! One pass over the copies of one target.
//!
//! Owns: its order of work, its memory of how far it came, what counts as a finding.
//! Does not own: the walk (`compare`), rows (`meta::scrub`), uploading again (`replication`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use serde::{Deserialize, Serialize};

use super::compare::{Step, Walk};
use super::{Level, Problem, Report, SAMPLE};
use crate::chunk::file::ChunkFiles;
use crate::clock;
use crate::format::key;
use crate::format::superblock::BYTES_MAX;
use crate::id::{ChunkHash, ChunkId, TargetBit};
use crate::meta::placement::ChunkTodo;
use crate::meta::{self, Meta};
use crate::restore;
use crate::target::pace::Limit;
use crate::target::{self, Kind, Page};

/// Rows of a page; the place is remembered after each.
const PAGE: usize = 1000;
/// Reads at the same time: each holds a chunk in memory.
const READS: usize = 4;
/// Bad bytes kept for whoever wants to know how they became bad.
const KEPT: u64 = 16;
/// Repairs are waited for as long as some arrive.
const REPAIR_PATIENCE: Duration = Duration::from_secs(120);
/// The history is restored again if the target was written to meanwhile.
const HISTORY_ATTEMPTS: usize = 3;

/// What a pass will cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// The name of the target.
    pub target: String,
    /// Requests to the store.
    pub requests: u64,
    /// Bytes to read from it.
    pub bytes: u64,
}

/// What a pass at this level will cost at most, as far as is known beforehand: the history is not in it.
pub fn cost(name: &str, level: Level, tally: meta::placement::Tally) -> Cost {
    let (requests, bytes) = match level {
        Level::List => (0, 0),
        Level::Sample => (tally.placed_chunks.div_ceil(SAMPLE), tally.placed_bytes.div_ceil(SAMPLE)),
        Level::Deep => (tally.placed_chunks, tally.placed_bytes),
    };
    let pages = tally.placed_chunks.div_ceil(PAGE as u64).max(1);
    Cost { target: name.to_owned(), requests: requests + pages, bytes }
}

/// A pass that can be run.
pub struct Pass {
    pub meta: Arc<Meta>,
    pub files: ChunkFiles,
    pub bit: TargetBit,
    /// The target.
    pub source: restore::Source,
    pub level: Level,
    /// Bad copies are uploaded again.
    pub repair: bool,
    /// How fast bytes may be read.
    pub limit: Arc<Limit>,
}

/// What is remembered of a pass that is under way.
#[derive(Debug, Serialize, Deserialize)]
struct Place {
    report: Report,
    /// Judged up to here.
    after: Option<ChunkHash>,
    draw: u64,
    repairing: Vec<ChunkId>,
}

/// What reading one copy came to.
enum Read {
    Right,
    Wrong(Problem, Option<Bytes>),
    Unverifiable(String),
}

impl Pass {
    /// Runs it, from where an earlier pass of the same level was interrupted. `progress` is told of what came out so far,
    /// and of how many copies are still to be judged.
    pub async fn run(self, progress: impl Fn(&Report, u64)) -> meta::Result<Report> {
        self.run_with(progress, true).await
    }

    /// As [`Pass::run`], without the trial restore of a deep pass: a simulation restores as it likes.
    #[cfg(test)]
    pub(crate) async fn run_on_chunks(self) -> meta::Result<Report> {
        self.run_with(|_, _| {}, false).await
    }

    async fn run_with(self, progress: impl Fn(&Report, u64), history: bool) -> meta::Result<Report> {
        let mut place = self.remembered()?;
        let to_judge = self.tally()?.placed_chunks;
        let mut walk = Walk::default();
        let mut rows_after = place.after;
        let mut listed_after = place.after.map(key::chunk);
        let mut end = false;
        while !end {
            let mut page = Vec::with_capacity(PAGE);
            while page.len() < PAGE && !end {
                match walk.next() {
                    Step::NeedRows => {
                        let rows = self.meta.placed_page(self.bit, rows_after, PAGE)?;
                        rows_after = rows.cursor;
                        walk.rows(rows.chunks, rows.end);
                    }
                    Step::NeedListing => match self.list(listed_after.as_deref()).await {
                        // A listing that does not go forward would never end.
                        Ok(listing) if listing.next.is_some() && listing.next <= listed_after => {
                            return self.stopped(place, "its listing does not end".to_owned());
                        }
                        Ok(listing) => {
                            walk.listing(listing.objects, listing.next.is_none());
                            listed_after = listing.next;
                        }
                        Err(error) => return self.stopped(place, error.to_string()),
                    },
                    Step::End => end = true,
                    step => page.push(step),
                }
            }
            self.judge(&mut place, page).await?;
            let done = place.report.listed + place.report.bad + place.report.unverifiable;
            progress(&place.report, to_judge.saturating_sub(done));
            self.remember(&place)?;
        }
        if history && self.level == Level::Deep {
            self.history(&mut place.report).await;
        }
        if self.repair {
            self.await_repairs(&mut place).await?;
        }
        if place.report.unverifiable == 0 && (self.repair || place.report.bad == 0) {
            // All that was claimed was listed, or is wanted again (D6).
            while self.meta.prove_claims(self.bit, PAGE)? {}
        }
        self.meta.write(|tx| tx.scrubbed(self.bit, clock::now()))?;
        Ok(place.report)
    }

    /// A page of the listing, of the place that the path leads to now (T10).
    async fn list(&self, after: Option<&str>) -> target::Result<Page> {
        let target = &self.source.target;
        if let Err(error) = target.check_place().await {
            if error.kind != Kind::PlaceMissing {
                return Err(error);
            }
            // It may be there again: whoever reads this makes contact anew.
            target.get(key::SUPERBLOCK, BYTES_MAX).await?;
            target.check_place().await?;
        }
        target.list(key::CHUNKS, after).await
    }

    /// Gives up where the target gives up; the next pass goes on from the last page.
    fn stopped(&self, mut place: Place, why: String) -> meta::Result<Report> {
        self.remember(&place)?;
        place.report.unverifiable += 1;
        place.report.unverifiable_reason = Some(why);
        Ok(place.report)
    }

    async fn judge(&self, place: &mut Place, page: Vec<Step>) -> meta::Result<()> {
        // A bad copy of what nothing needs there any more is no finding; nor does it count should it be wanted again.
        let (mut bad, mut useless) = (Vec::new(), Vec::new());
        let mut reading = Vec::new();
        for step in page {
            let (chunk, listed) = match step {
                Step::Good(chunk) => (chunk, Ok(())),
                // A listing may be older than the object.
                Step::Missing(chunk) | Step::Length(chunk, _) => (chunk, self.confirm(&chunk).await?),
                Step::Unknown(object) => {
                    place.report.unneeded += 1;
                    place.report.unneeded_bytes += object.length;
                    continue;
                }
                Step::Foreign(_) => {
                    place.report.foreign += 1;
                    continue;
                }
                Step::NeedRows | Step::NeedListing | Step::End => continue,
            };
            place.after = Some(chunk.hash);
            match listed {
                Ok(()) => {
                    place.report.listed += 1;
                    if self.level.reads(&chunk.hash, place.draw) {
                        reading.push(chunk);
                    }
                }
                Err(Judged::Gone) => {}
                Err(Judged::Bad(_)) if !self.meta.needs(self.bit, chunk.id)? => useless.push(chunk.id),
                Err(Judged::Bad(problem)) => {
                    place.report.found(key::chunk(chunk.hash), problem);
                    bad.push(chunk.id);
                }
                Err(Judged::Unverifiable(why)) => {
                    place.report.unverifiable += 1;
                    place.report.unverifiable_reason = Some(why);
                }
            }
        }
        let reads = stream::iter(reading).map(|chunk| async move { (chunk, self.read(&chunk).await) });
        let mut reads = std::pin::pin!(reads.buffer_unordered(READS));
        while let Some((chunk, read)) = reads.next().await {
            match read {
                Read::Right => {
                    place.report.verified += 1;
                    place.report.verified_bytes += chunk.length;
                }
                Read::Unverifiable(why) => {
                    place.report.unverifiable += 1;
                    place.report.unverifiable_reason = Some(why);
                }
                // Collected meanwhile: nobody needs it here any more.
                Read::Wrong(..) if !self.meta.is_placed(self.bit, chunk.id)? => {}
                Read::Wrong(..) if !self.meta.needs(self.bit, chunk.id)? => useless.push(chunk.id),
                Read::Wrong(problem, bytes) => {
                    if let Some(bytes) = bytes.filter(|_| place.report.bad < KEPT) {
                        self.keep(&chunk, &bytes);
                    }
                    place.report.found(key::chunk(chunk.hash), problem);
                    bad.push(chunk.id);
                }
            }
        }
        useless.extend(&bad);
        if self.repair && !useless.is_empty() {
            self.meta.write(|tx| tx.misplaced_all(self.bit, &useless))?;
            place.repairing.extend(bad);
        }
        Ok(())
    }

    /// Asks for one object itself.
    async fn confirm(&self, chunk: &ChunkTodo) -> meta::Result<Result<(), Judged>> {
        let found = self.source.target.stat(&key::chunk(chunk.hash)).await;
        let problem = match found {
            Ok(Some(length)) if length == chunk.length => return Ok(Ok(())),
            Ok(Some(_)) => Problem::Length,
            Ok(None) => Problem::Missing,
            Err(error) => return Ok(Err(Judged::Unverifiable(error.to_string()))),
        };
        // Its bit is taken away before an object is deleted (T9).
        let placed = self.meta.is_placed(self.bit, chunk.id)?;
        Ok(Err(if placed { Judged::Bad(problem) } else { Judged::Gone }))
    }

    async fn read(&self, chunk: &ChunkTodo) -> Read {
        self.limit.turn(chunk.length).await;
        match self.source.target.get(&key::chunk(chunk.hash), chunk.length).await {
            Ok(bytes) => {
                let hash = chunk.hash;
                // Hashing takes longer than a task may hold its thread.
                let judged = crate::aside::blocking(move || (ChunkHash::of(&bytes) == hash, bytes)).await;
                match judged {
                    Ok((true, _)) => Read::Right,
                    Ok((false, bytes)) => Read::Wrong(Problem::Bytes, Some(bytes)),
                    Err(_) => Read::Unverifiable("the thread that hashed it ended early".to_owned()),
                }
            }
            Err(target::Error { kind: Kind::NotFound, .. }) => Read::Wrong(Problem::Missing, None),
            Err(target::Error { kind: Kind::Invalid, .. }) => Read::Wrong(Problem::Length, None),
            Err(error) => Read::Unverifiable(error.to_string()),
        }
    }

    /// Keeps bad bytes in quarantine (S7): repair replaces them on the target.
    fn keep(&self, chunk: &ChunkTodo, bytes: &Bytes) {
        let name = format!("copy-{}-{}", self.source.name, chunk.hash);
        if let Err(error) = self.files.quarantine(&name, bytes) {
            tracing::warn!(chunk = %chunk.hash, %error, "the bytes of a bad copy could not be kept");
        }
    }

    /// Restores the history from this target alone, into a place that is thrown away.
    async fn history(&self, report: &mut Report) {
        for _ in 0..HISTORY_ATTEMPTS {
            let (source, place) = (self.source.clone(), self.throwaway());
            let runtime = tokio::runtime::Handle::current();
            let restored = crate::aside::blocking(move || {
                let _ = std::fs::remove_dir_all(&place);
                let restored = runtime.block_on(restore::restore(vec![source], &place, restore::Options::default()));
                let _ = std::fs::remove_dir_all(&place);
                restored
            })
            .await;
            match restored {
                Ok(Ok(restored)) => match restored.unproven.first() {
                    None => return report.history = None,
                    Some(unproven) => report.history = Some(unproven.to_string()),
                },
                Ok(Err(error @ (restore::Error::Target { .. } | restore::Error::Io { .. }))) => {
                    report.unverifiable += 1;
                    report.unverifiable_reason = Some(error.to_string());
                    return;
                }
                Ok(Err(error)) => report.history = Some(error.to_string()),
                Err(_) => report.history = Some("the trial restore ended early".to_owned()),
            }
        }
    }

    fn throwaway(&self) -> PathBuf {
        self.files.state_dir().join("scrub").join(self.bit.index().to_string())
    }

    async fn await_repairs(&self, place: &mut Place) -> meta::Result<()> {
        let mut progressed = clock::instant();
        loop {
            let before = place.repairing.len();
            let mut lacking = Vec::new();
            for &chunk in &place.repairing {
                // What nothing needs any more by now is not waited for.
                if !self.meta.is_placed(self.bit, chunk)? && self.meta.needs(self.bit, chunk)? {
                    lacking.push(chunk);
                }
            }
            place.report.repaired += (before - lacking.len()) as u64;
            place.repairing = lacking;
            let now = clock::instant();
            if before != place.repairing.len() {
                progressed = now;
            }
            if place.repairing.is_empty() || now.since(progressed) >= REPAIR_PATIENCE {
                return Ok(());
            }
            clock::sleep(Duration::from_millis(100)).await;
        }
    }

    fn tally(&self) -> meta::Result<meta::placement::Tally> {
        let tallies = self.meta.tallies()?;
        Ok(tallies.into_iter().find(|(bit, _)| *bit == self.bit).map(|(_, tally)| tally).unwrap_or_default())
    }

    fn remembered(&self) -> meta::Result<Place> {
        let text = self.meta.scrub_place(self.bit)?;
        let place = text.and_then(|text| serde_json::from_str::<Place>(&text).ok());
        Ok(match place.filter(|place| place.report.level == self.level && place.after.is_some()) {
            Some(mut place) => {
                place.report.resumed = true;
                place
            }
            None => Place {
                report: Report::new(&self.source.name, self.level),
                after: None,
                draw: crate::chance::u64(),
                repairing: Vec::new(),
            },
        })
    }

    fn remember(&self, place: &Place) -> meta::Result<()> {
        let text = serde_json::to_string(place).map_err(|error| meta::Error::Damaged(error.to_string()))?;
        self.meta.write(|tx| tx.remember_scrub(self.bit, &text))
    }
}

/// A copy that is not simply there.
enum Judged {
    Bad(Problem),
    /// It is not supposed to be there any more.
    Gone,
    Unverifiable(String),
}

#[cfg(test)]
mod tests {
    use rusqlite::params;

    use super::*;
    use crate::id::{Epoch, Seq};
    use crate::meta::target::Configured;
    use crate::meta::testing::store;
    use crate::target::memory::MemoryTarget;
    use crate::target::pace::Rate;

    /// Two chunks that the target confirmed and lost: one that a file refers to, one that nothing does since long.
    #[tokio::test]
    async fn a_lost_copy_of_garbage_is_no_finding_and_does_not_count_any_more() {
        let (dir, meta) = store();
        meta.register_targets(&[Configured { name: "a".into(), uri: "memory://a".into(), id: None }]).unwrap();
        meta.begin_mount(Epoch(0), "boot").unwrap();
        let bit = TargetBit::new(0).unwrap();
        meta.write(|tx| {
            for (id, dead) in [(1, None), (2, Some(Seq(3)))] {
                tx.conn().execute(
                    "INSERT INTO chunk (id, hash, length, bytes_referenced, dead_seq, placed, incomplete) \
                     VALUES (?1, ?2, 10, ?3, ?4, 1, 0)",
                    params![ChunkId(id), ChunkHash::of(&[id as u8]), if dead.is_some() { 0 } else { 10 }, dead],
                )?;
            }
            tx.conn().execute("UPDATE target SET shipped_seq = 5, position = 5, initialised = 1", [])?;
            tx.recount_tally(bit)
        })
        .unwrap();
        let meta = Arc::new(meta);
        let target = Arc::new(MemoryTarget::new());
        let pass = |repair| Pass {
            meta: meta.clone(),
            files: ChunkFiles::new(dir.path()).unwrap(),
            bit,
            source: restore::Source { target: target.clone(), name: "a".into(), uri: String::new() },
            level: Level::List,
            repair,
            limit: Limit::new(Rate::Unlimited),
        };
        assert_eq!(pass(false).run(|_, _| {}).await.unwrap().bad, 1);
        let _time = clock::simulated::begin();
        let mut running = std::pin::pin!(pass(true).run(|_, _| {}));
        let report = loop {
            // Nobody repairs here: that is waited for as long as it may take.
            let polled = futures::poll!(running.as_mut());
            match polled {
                std::task::Poll::Ready(report) => break report.unwrap(),
                std::task::Poll::Pending => clock::simulated::pass(Duration::from_secs(1)),
            }
        };
        assert_eq!((report.bad, report.repaired), (1, 0));
        for id in [1, 2] {
            assert!(!meta.is_placed(bit, ChunkId(id)).unwrap(), "should a file refer to it, it is put again");
        }
    }

    #[tokio::test]
    async fn a_pass_that_was_cut_off_goes_on_with_the_next_page_and_counts_all() {
        use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

        use crate::target::{Class, Existing, Target};
        use crate::testing::faulty::{Call, Fault, FaultyTarget};

        const CHUNKS: usize = PAGE + 200;
        let (dir, meta) = store();
        meta.register_targets(&[Configured { name: "a".into(), uri: "memory://a".into(), id: None }]).unwrap();
        meta.begin_mount(Epoch(0), "boot").unwrap();
        let bit = TargetBit::new(0).unwrap();
        let memory = Arc::new(MemoryTarget::new());
        let chunks: Vec<Vec<u8>> = (0..CHUNKS).map(|n| n.to_le_bytes().to_vec()).collect();
        for bytes in &chunks {
            memory.put(&key::chunk(ChunkHash::of(bytes)), bytes.clone().into(), Existing::Refuse).await.unwrap();
        }
        meta.write(|tx| {
            let insert =
                "INSERT INTO chunk (hash, length, bytes_referenced, placed, incomplete) VALUES (?1, 8, 8, 1, 0)";
            for bytes in &chunks {
                tx.conn().prepare_cached(insert)?.execute([ChunkHash::of(bytes)])?;
            }
            tx.recount_tally(bit)
        })
        .unwrap();
        let meta = Arc::new(meta);
        let (away, reads) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
        let (listings, counted) = (away.clone(), reads.clone());
        let target = Arc::new(FaultyTarget::new(memory, move |call: Call<'_>| {
            match call.operation {
                "get" => drop(counted.fetch_add(1, Ordering::Relaxed)),
                // It goes away when one page was read.
                "list" if listings.load(Ordering::Relaxed) && counted.load(Ordering::Relaxed) > 0 => {
                    return Fault::Refuse(Kind::Unreachable, Class::Temporary);
                }
                _ => {}
            }
            Fault::None
        }));
        let pass = || Pass {
            meta: meta.clone(),
            files: ChunkFiles::new(dir.path()).unwrap(),
            bit,
            source: restore::Source { target: target.clone(), name: "a".into(), uri: String::new() },
            level: Level::Deep,
            repair: false,
            limit: Limit::new(Rate::Unlimited),
        };
        let cut_off = pass().run_on_chunks().await.unwrap();
        assert_eq!((cut_off.verified, cut_off.unverifiable, cut_off.resumed), (PAGE as u64, 1, false));
        away.store(false, Ordering::Relaxed);
        let report = pass().run_on_chunks().await.unwrap();
        assert_eq!((report.verified, report.unverifiable, report.bad), (CHUNKS as u64, 0, 0));
        assert!(report.resumed);
        assert_eq!(reads.load(Ordering::Relaxed), CHUNKS as u64, "nothing was read twice");
        assert!(!pass().run_on_chunks().await.unwrap().resumed, "one that came to its end begins anew");
    }
}
