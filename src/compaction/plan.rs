//! What is rewritten, and when (S10). Pure.
//!
//! Owns: which chunks and areas are worth it, how they are laid out in a new chunk, the budget, and what counts as quiet.
//! Does not own: finding them (`super`), carrying it out (`rewrite`).
//!
//! - **Worth it**: of a chunk under 50 % live each byte that is written frees at least one. It begins when so much is to be
//!   freed that requests are well spent, and goes on until little is left: around the threshold nothing goes to and fro.
//! - **Quiet**: what still changes is left alone. A chunk that is being emptied is soon empty without any help.
//! - **Budget**: bytes written (and fetched for it) are at most those that programs wrote in the last 24 h, or the
//!   configured rate, whichever is more.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::time::Duration;

use crate::clock::Instant;
use crate::format::record::Extent;
use crate::id::{ChunkId, ManifestId};
use crate::meta::repack::{Reference, SparseChunk};

/// References that one transaction moves: at about 30 µs each it holds the writer for less than 2 ms (D8).
const BATCH: usize = 48;
/// It goes on until this part of what it began for is left.
const STOP_PART: u64 = 4;
/// What programs wrote counts for the budget for this long.
const DAY: Duration = Duration::from_secs(24 * 3600);
/// So much of the rate may be saved up.
const SAVED: u64 = 64;

/// The settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Bytes of a chunk at most, and of an area.
    pub chunk_size: u64,
    /// Bytes a second that may always be written.
    pub rate: u64,
    /// Chunks are rewritten when they would free this many bytes together.
    pub min_garbage: u64,
    /// An area is left alone until it has not changed for this long.
    pub quiet: Duration,
    /// The same of a chunk.
    pub settle: Duration,
    /// An area in more pieces than this is rewritten.
    pub pieces_max: usize,
    /// Nothing is rewritten while a target that follows lacks more bytes than this.
    pub lag_max: u64,
}

impl Policy {
    /// Whether sparse chunks are rewritten now, given whether they were.
    pub fn goes_on(&self, active: bool, sparse: &[SparseChunk]) -> bool {
        let garbage: u64 = sparse.iter().map(|chunk| chunk.length - chunk.live).sum();
        let enough = if active { self.min_garbage / STOP_PART } else { self.min_garbage };
        !sparse.is_empty() && garbage >= enough.max(1)
    }

    /// The chunks that go into one new chunk: those with the smallest part alive first, as they cost least for what they
    /// free.
    pub fn group(&self, mut sparse: Vec<SparseChunk>) -> Option<Vec<SparseChunk>> {
        let part = |chunk: &SparseChunk| (u128::from(chunk.live) << 32) / u128::from(chunk.length.max(1));
        sparse.sort_by_key(|chunk| (part(chunk), chunk.id));
        let mut bytes = 0;
        let fits = |chunk: &SparseChunk| {
            bytes += chunk.live;
            bytes <= self.chunk_size || bytes == chunk.live
        };
        let mut group: Vec<SparseChunk> = sparse.into_iter().take_while(fits).collect();
        // Neighbours stay neighbours.
        group.sort_by_key(|chunk| chunk.id);
        (!group.is_empty()).then_some(group)
    }
}

/// A new chunk, and whose bytes it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrite {
    /// Bytes of the new chunk.
    pub length: u64,
    /// Each chunk once.
    pub sources: Vec<Source>,
}

/// What of one chunk goes where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub chunk: ChunkId,
    /// Ascending and disjoint: offset and length in this chunk, and the offset in the new one, which is chunk 0.
    pub moves: Vec<Extent>,
    /// Where each transaction ends: indices into `moves`.
    pub ends: Vec<usize>,
}

impl Rewrite {
    /// Lays out all that is referred to of these chunks, one after the other. `None`: nothing is.
    pub fn of_chunks(sources: &[(SparseChunk, Vec<Reference>)]) -> Option<Rewrite> {
        let mut rewrite = Rewrite { length: 0, sources: Vec::new() };
        for (chunk, references) in sources {
            let mut source = Source { chunk: chunk.id, moves: Vec::new(), ends: Vec::new() };
            let mut counts = Vec::new();
            let mut sorted: Vec<&Reference> = references.iter().filter(|one| one.chunk == chunk.id).collect();
            sorted.sort_by_key(|one| (one.chunk_offset, one.length));
            for one in sorted {
                let end = one.chunk_offset + one.length;
                match source.moves.last_mut() {
                    // Overlapping ranges are one; those that only touch stay apart, so that batches stay small.
                    Some(last) if one.chunk_offset < last.offset + last.length => {
                        let more = end.saturating_sub(last.offset + last.length);
                        last.length += more;
                        rewrite.length += more;
                        *counts.last_mut().expect("a move has its count") += 1;
                    }
                    _ => {
                        source.moves.push(Extent {
                            offset: one.chunk_offset,
                            length: one.length,
                            chunk: 0,
                            chunk_offset: rewrite.length,
                        });
                        rewrite.length += one.length;
                        counts.push(1);
                    }
                }
            }
            source.ends = ends(&counts);
            if !source.moves.is_empty() {
                rewrite.sources.push(source);
            }
        }
        (rewrite.length > 0).then_some(rewrite)
    }

    /// Lays out the pieces of an area of a file one after the other. `None`: there are none.
    pub fn of_area(rows: &[Reference], area: Range<u64>) -> Option<Rewrite> {
        let mut length = 0;
        let mut taken: BTreeMap<ChunkId, Vec<Extent>> = BTreeMap::new();
        for row in rows {
            let file = row.offset.max(area.start)..(row.offset + row.length).min(area.end);
            if file.is_empty() {
                continue;
            }
            let start = row.chunk_offset + (file.start - row.offset);
            let moves = taken.entry(row.chunk).or_default();
            // A range that was laid out already is not laid out again.
            for part in gaps(moves, start..start + (file.end - file.start)) {
                let piece =
                    Extent { offset: part.start, length: part.end - part.start, chunk: 0, chunk_offset: length };
                length += piece.length;
                let at = moves.partition_point(|known| known.offset < piece.offset);
                moves.insert(at, piece);
            }
        }
        let sources = taken.into_iter().map(|(chunk, moves)| {
            let ends = ends(&vec![1; moves.len()]);
            Source { chunk, moves, ends }
        });
        (length > 0).then(|| Rewrite { length, sources: sources.collect() })
    }
}

/// The parts of `range` that no move covers. Moves ascend and are disjoint.
fn gaps(moves: &[Extent], range: Range<u64>) -> Vec<Range<u64>> {
    let mut gaps = Vec::new();
    let mut at = range.start;
    let first = moves.partition_point(|piece| piece.offset + piece.length <= range.start);
    for piece in moves[first..].iter().take_while(|piece| piece.offset < range.end) {
        if at < piece.offset {
            gaps.push(at..piece.offset);
        }
        at = piece.offset + piece.length;
    }
    if at < range.end {
        gaps.push(at..range.end);
    }
    gaps
}

/// Where transactions end, so that each moves about `BATCH` references.
fn ends(counts: &[usize]) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut sum = 0;
    for (index, count) in counts.iter().enumerate() {
        sum += count;
        if sum >= BATCH || index + 1 == counts.len() {
            ends.push(index + 1);
            sum = 0;
        }
    }
    ends
}

/// How much may be written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    rate: u64,
    tokens: f64,
    /// Bytes that programs wrote in the last 24 h; older ones fade.
    foreground: f64,
    /// Bytes of all chunks that ever came, as noted last, and of them those that came from here.
    noted: Option<(Instant, u64)>,
    own: u64,
}

impl Budget {
    /// Nothing is spent, and a little is saved up.
    pub fn new(rate: u64) -> Budget {
        Budget { rate, tokens: rate.saturating_mul(SAVED) as f64, foreground: 0.0, noted: None, own: 0 }
    }

    /// Notes that time passed. `new_bytes`: of all chunks that ever came, those of rewrites too.
    pub fn note(&mut self, now: Instant, new_bytes: u64) {
        let Some((then, before)) = self.noted.replace((now, new_bytes)) else { return };
        let passed = now.since(then).as_secs_f64();
        let written = new_bytes.saturating_sub(before).saturating_sub(std::mem::take(&mut self.own)) as f64;
        self.foreground = self.foreground * (-passed / DAY.as_secs_f64()).exp() + written;
        let cap = (self.rate.saturating_mul(SAVED) as f64).max(self.foreground);
        self.tokens = (self.tokens + (self.rate as f64 * passed).max(written)).min(cap);
    }

    /// True if so many bytes may be written. More than can ever be saved up may be when all is.
    pub fn allows(&self, bytes: u64) -> bool {
        self.tokens >= (bytes as f64).min(self.rate.saturating_mul(SAVED) as f64)
    }

    /// So many bytes were written into a new chunk, and fetched for it.
    pub fn spend(&mut self, written: u64, fetched: u64) {
        self.own += written;
        self.tokens -= written.max(fetched) as f64;
    }
}

/// What did not change for how long.
#[derive(Debug, Clone)]
pub struct Quiet<K> {
    seen: HashMap<K, (u64, Instant)>,
}

impl<K> Default for Quiet<K> {
    fn default() -> Quiet<K> {
        Quiet { seen: HashMap::new() }
    }
}

/// So much is remembered at most; the rest waits for its turn.
const QUIET_MAX: usize = 1 << 15;

impl<K: Copy + Eq + Hash> Quiet<K> {
    /// Notes what something looks like; returns for how long it has looked like that.
    pub fn note(&mut self, key: K, print: u64, now: Instant) -> Duration {
        if self.seen.len() >= QUIET_MAX && !self.seen.contains_key(&key) {
            return Duration::ZERO;
        }
        let entry = self.seen.entry(key).or_insert((print, now));
        if entry.0 != print {
            *entry = (print, now);
        }
        now.since(entry.1)
    }

    /// Forgets all but these.
    pub fn keep(&mut self, keys: impl Iterator<Item = K>) {
        if !self.seen.is_empty() {
            let keys: HashSet<K> = keys.collect();
            self.seen.retain(|key, _| keys.contains(key));
        }
    }

    /// Forgets one.
    pub fn forget(&mut self, key: &K) {
        self.seen.remove(key);
    }
}

/// A part of a file as long as a chunk, on the chunk grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Area {
    pub manifest: ManifestId,
    /// From the start of the file, in areas.
    pub index: u64,
}

/// Counts the pieces of areas, given all extents in order.
#[derive(Debug, Clone)]
pub struct Areas {
    size: u64,
    pieces_max: usize,
    open: Option<(Area, usize, DefaultHasher)>,
    found: u64,
}

impl Areas {
    /// Areas of `size` bytes; one with more than `pieces_max` pieces is found.
    pub fn new(size: u64, pieces_max: usize) -> Areas {
        Areas { size, pieces_max, open: None, found: 0 }
    }

    /// Takes the next extents; returns areas with too many pieces, with a print of what they look like.
    pub fn add(&mut self, rows: &[Reference]) -> Vec<(Area, u64)> {
        let mut dense = Vec::new();
        for row in rows {
            let area = Area { manifest: row.manifest, index: row.offset / self.size };
            if self.open.as_ref().is_none_or(|(open, ..)| *open != area) {
                dense.extend(self.end());
                self.open = Some((area, 0, DefaultHasher::new()));
            }
            if let Some((_, count, print)) = &mut self.open {
                *count += 1;
                (row.offset, row.length, row.chunk, row.chunk_offset).hash(print);
            }
        }
        dense
    }

    /// There are no more rows in the open area.
    pub fn end(&mut self) -> Option<(Area, u64)> {
        let (area, count, print) = self.open.take()?;
        let dense = count > self.pieces_max;
        self.found += u64::from(dense);
        dense.then(|| (area, print.finish()))
    }

    /// How many were found since this was asked last.
    pub fn take_count(&mut self) -> u64 {
        std::mem::take(&mut self.found)
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
