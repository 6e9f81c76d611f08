//! Compaction: what is left of nearly empty chunks, and files in too many pieces, are rewritten into new chunks (S10, O5).
//!
//! Owns: when and what (`plan`, pure), making the new chunk and moving the references to it (`rewrite`), the walk that finds
//! files in many pieces, what is told about it.
//! Does not own: the rows and the record (`meta::repack`), removing what was emptied from targets (`gc`).
//!
//! ```text
//! chunks under 50 % live (an index) ─┐
//! areas in many pieces (a walk)  ────┴▶ quiet? worth it? budget? ─▶ sources, verified ─▶ new chunk file, synced
//!     ─▶ Repack, few references at a time ─▶ uploaded like any other ─▶ record shipped ─▶ the old chunks are garbage
//! ```
//!
//! - The old chunks leave a target by GC alone (T9): after the target has the new ones, the record, two checkpoints that do
//!   not name the old ones, and the time of grace.
//! - Crash: before the first transaction there is a file that no row knows; after it every record is true by itself, and
//!   what was not moved is found again.
//! - A new chunk is pinned until every target that follows has it; so nothing is rewritten while one lags.

pub mod plan;
pub mod rewrite;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use self::plan::{Area, Areas, Budget, Policy, Quiet, Rewrite};
use self::rewrite::Rewriter;
use crate::clock::Instant;
use crate::id::{ChunkId, ManifestId};
use crate::meta::repack::SparseChunk;
use crate::meta::{self, Meta};

/// Sparse chunks that one look takes into account: more are enough work already.
const LOOK: usize = 20_000;
/// References to one chunk at most: it is left alone if there are more, as nothing of D8 could be kept.
const REFERENCES_MAX: usize = 16_384;
/// Rows of one step of the walk (D8: a reader takes at most 100 ms).
const WALK_PAGE: usize = 4_096;
/// What could not be rewritten is left alone for so long.
const STUCK: Duration = Duration::from_secs(3600);
/// Chunks and areas that are remembered as stuck at most.
const STUCK_MAX: usize = 4_096;

/// What a round did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is worth it now.
    Idle,
    /// Something is, and this hinders it.
    Held(String),
    /// The walk goes on.
    Walked,
    /// A new chunk of this many bytes.
    Wrote(u64),
}

/// What there is to do, as seen last: for `status` and the dry run of GC.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Chunks under 50 % live.
    pub sparse_chunks: u64,
    /// Their bytes.
    pub sparse_bytes: u64,
    /// Of these, bytes that would be written anew.
    pub live_bytes: u64,
    /// Areas in too many pieces, as the last whole walk found them.
    pub areas: u64,
    /// Why nothing is done about it now.
    pub held: Option<String>,
    /// Chunks made since the mount.
    pub new_chunks: u64,
    /// Their bytes.
    pub new_bytes: u64,
}

/// Something that may be stuck.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Candidate {
    Chunk(ChunkId),
    Area(Area),
}

/// The one who rewrites.
pub struct Compactor {
    meta: Arc<Meta>,
    rewriter: Rewriter,
    policy: Policy,
    budget: Budget,
    /// Sparse chunks are being rewritten: it began, and goes on until little is left (no to and fro).
    active: bool,
    quiet_chunks: Quiet<ChunkId>,
    quiet_areas: Quiet<Area>,
    areas: Areas,
    walk_after: (ManifestId, i64),
    walk_at: Instant,
    stuck: HashMap<Candidate, Instant>,
    seen: Arc<Mutex<Seen>>,
}

impl Compactor {
    /// A compactor that has seen nothing yet.
    pub fn new(meta: Arc<Meta>, rewriter: Rewriter, policy: Policy) -> Compactor {
        Compactor {
            areas: Areas::new(policy.chunk_size, policy.pieces_max),
            meta,
            rewriter,
            policy,
            budget: Budget::new(policy.rate),
            active: false,
            quiet_chunks: Quiet::default(),
            quiet_areas: Quiet::default(),
            walk_after: (ManifestId(0), -1),
            walk_at: Instant::START,
            stuck: HashMap::new(),
            seen: Arc::default(),
        }
    }

    /// What it saw last.
    pub fn seen(&self) -> Arc<Mutex<Seen>> {
        self.seen.clone()
    }

    /// Looks, and rewrites at most one chunk's worth. Blocks on the disk, and on targets for what is not here.
    pub fn round(&mut self, now: Instant) -> meta::Result<Outcome> {
        while self.meta.forget_repacks()? {}
        let sums = self.meta.live_sums()?;
        self.budget.note(now, sums.new_bytes);
        self.stuck.retain(|_, until| *until > now);
        let held = self.held()?;
        self.seen.lock().held.clone_from(&held);
        let (rewrite, candidates) = match self.choose_sparse(now)? {
            Some(group) => match self.of_group(group, now)? {
                Some(found) => found,
                // All of the group was stuck: the next round chooses others.
                None => return Ok(Outcome::Walked),
            },
            None => match self.walk(now)? {
                Some(Walk::Found(rewrite, area)) => (rewrite, vec![Candidate::Area(area)]),
                Some(Walk::On) => return Ok(Outcome::Walked),
                None => return Ok(Outcome::Idle),
            },
        };
        if let Some(why) = held {
            return Ok(Outcome::Held(why));
        }
        if !self.budget.allows(rewrite.length) {
            let why = "the budget of rewriting is used up".to_owned();
            self.seen.lock().held = Some(why.clone());
            return Ok(Outcome::Held(why));
        }
        match self.rewriter.rewrite(&rewrite) {
            Ok(done) => {
                self.budget.spend(done.written, done.fetched);
                if done.moved == 0 {
                    candidates.into_iter().for_each(|candidate| self.note_stuck(candidate, now));
                }
                let mut seen = self.seen.lock();
                seen.new_chunks += u64::from(done.written > 0);
                seen.new_bytes += done.written;
                Ok(Outcome::Wrote(done.written))
            }
            Err(rewrite::Error::Meta(error)) => Err(error),
            Err(error) => {
                tracing::warn!(%error, "chunks could not be rewritten, will be tried again");
                candidates.into_iter().for_each(|candidate| self.note_stuck(candidate, now));
                Ok(Outcome::Held(error.to_string()))
            }
        }
    }

    /// What hinders any rewriting now.
    fn held(&self) -> meta::Result<Option<String>> {
        if self.meta.latched().is_some() {
            return Ok(Some("a sync of the state disk failed".into()));
        }
        if !self.rewriter.has_room(self.policy.chunk_size) {
            return Ok(Some("the local disk is full of what targets lack".into()));
        }
        let tallies = self.meta.tallies()?;
        for row in self.meta.targets()?.iter().filter(|row| row.mode.pins()) {
            let pending = tallies.iter().find(|(bit, _)| *bit == row.bit).map_or(0, |(_, tally)| tally.pending_bytes);
            if pending > self.policy.lag_max {
                return Ok(Some(format!("target {:?} lags", row.name)));
            }
        }
        Ok(None)
    }

    /// Sparse chunks that are worth a new one together.
    fn choose_sparse(&mut self, now: Instant) -> meta::Result<Option<Vec<SparseChunk>>> {
        let mut sparse = self.meta.sparse_chunks(ChunkId(0), LOOK)?;
        {
            let mut seen = self.seen.lock();
            seen.sparse_chunks = sparse.len() as u64;
            seen.sparse_bytes = sparse.iter().map(|chunk| chunk.length).sum();
            seen.live_bytes = sparse.iter().map(|chunk| chunk.live).sum();
        }
        self.quiet_chunks.keep(sparse.iter().map(|chunk| chunk.id));
        sparse.retain(|chunk| {
            let quiet = self.quiet_chunks.note(chunk.id, chunk.live, now);
            quiet >= self.policy.settle && !self.stuck.contains_key(&Candidate::Chunk(chunk.id))
        });
        self.active = self.policy.goes_on(self.active, &sparse);
        Ok(if self.active { self.policy.group(sparse) } else { None })
    }

    fn of_group(&mut self, group: Vec<SparseChunk>, now: Instant) -> meta::Result<Option<Chosen>> {
        let mut sources = Vec::new();
        for chunk in group {
            let references = self.meta.references(chunk.id, REFERENCES_MAX + 1)?;
            if references.len() > REFERENCES_MAX {
                self.note_stuck(Candidate::Chunk(chunk.id), now);
                continue;
            }
            sources.push((chunk, references));
        }
        let candidates = sources.iter().map(|(chunk, _)| Candidate::Chunk(chunk.id)).collect();
        Ok(Rewrite::of_chunks(&sources).map(|rewrite| (rewrite, candidates)))
    }

    /// One step of the walk over all extents; `None`: it is not time for one.
    fn walk(&mut self, now: Instant) -> meta::Result<Option<Walk>> {
        if now < self.walk_at {
            return Ok(None);
        }
        let page = self.meta.extent_page(self.walk_after, WALK_PAGE)?;
        let end = page.len() < WALK_PAGE;
        let mut dense = self.areas.add(&page);
        if let Some(last) = page.last() {
            self.walk_after = (last.manifest, last.offset as i64);
        }
        if end {
            dense.extend(self.areas.end());
            self.walk_after = (ManifestId(0), -1);
            // Often enough to see that something is quiet.
            self.walk_at = now + self.policy.quiet / 4;
            self.seen.lock().areas = self.areas.take_count();
        }
        for (area, print) in dense {
            if self.quiet_areas.note(area, print, now) < self.policy.quiet
                || self.stuck.contains_key(&Candidate::Area(area))
            {
                continue;
            }
            let size = self.policy.chunk_size;
            let rows = self.meta.area(area.manifest, area.index * size, size)?;
            match Rewrite::of_area(&rows, area.index * size..(area.index + 1) * size) {
                Some(rewrite) if self.rewriter.is_complete(&rewrite)? => {
                    // One area a step; the others of this page are found by the next walk.
                    self.quiet_areas.forget(&area);
                    self.walk_at = now;
                    return Ok(Some(Walk::Found(rewrite, area)));
                }
                _ => self.note_stuck(Candidate::Area(area), now),
            }
        }
        Ok(if end { None } else { Some(Walk::On) })
    }

    fn note_stuck(&mut self, candidate: Candidate, now: Instant) {
        if self.stuck.len() < STUCK_MAX {
            self.stuck.insert(candidate, now + STUCK);
        }
    }
}

/// What is rewritten, and what it was for.
type Chosen = (Rewrite, Vec<Candidate>);

enum Walk {
    On,
    Found(Rewrite, Area),
}

#[cfg(test)]
mod tests;
