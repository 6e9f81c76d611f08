//! What waits for one target, and what is on its way: a bounded window of the chunks it lacks. Pure.
//!
//! Owns: lanes and their precedence, single flight, parked chunks.
//! Does not own: whether anything may be sent at all (`health`, `gate`), how much at a time (`limit`), where the next page
//! is read (`walk`).
//!
//! ```text
//!  walk over what is new ──▶ small │ bulk │ backfill ──▶ sending ──▶ confirming ──▶ (placed)
//!  walk over what was passed ──▶ repair ──▶               │  │           │
//!                             ▲      ▲                    │  │           │
//!                             │      └── failed ──────────┘  │           │ the place was not what it was
//!                             │      ▲                       │           │
//!                             │      └───────────────────────┼───────────┘
//!                             └──── parked ◀──── no source ──┘
//! ```
//!
//! - A chunk that an acknowledgement waits for changes to a lane of its own, or comes straight into it (D3).
//! - A chunk is in exactly one of these places, so it has one flight per target.
//! - The window is filled from the store in order of ids: nothing has to be rebuilt at a restart (T6). A page may have been
//!   read before a placement was recorded; what was settled while it was being read is left out of it.
//! - **In the background** are backfill (of a target that resyncs) and repair. While anything else waits, at most one of
//!   their chunks is in flight, and every [`BACKGROUND_TURN`]th start is theirs if none is: neither starves the other.
//!   Repairs have a window of their own, for a long one would keep what is new out of memory.
//! - A job whose reply was lost is **doubtful**: the target is asked before bytes are sent again.
//! - A chunk that no source can give is **parked** and tried again later; it never stops the others.

use std::collections::BTreeMap;
use std::time::Duration;

use super::walk::{Room, Walks, Which};
use crate::clock::Instant;
use crate::id::ChunkId;
use crate::meta::placement::{ChunkTodo, TodoPage};

/// A lane of the queue, in order of precedence. FIFO in a lane; whatever has waited too long goes first, from any lane that is
/// not in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Chunks that an acknowledgement waits for (D3). Every second start is theirs, however old the others are: what has
    /// waited too long would else go before them as long as there is any of it.
    Awaited,
    /// Chunks that cost a request rather than bandwidth.
    Small,
    /// Everything else.
    Bulk,
    /// What a target lacks that resyncs (T4).
    Backfill,
    /// What the target had, or what was passed by: copies that were found bad, chunks that are wanted again.
    Repair,
}

/// Of so many starts one is of the background while others wait.
pub const BACKGROUND_TURN: u32 = 8;

impl Lane {
    const ALL: [Lane; 5] = [Lane::Awaited, Lane::Small, Lane::Bulk, Lane::Backfill, Lane::Repair];

    /// Nobody waits for it but the target itself.
    pub fn is_background(self) -> bool {
        matches!(self, Lane::Backfill | Lane::Repair)
    }
}

/// Bounds of one queue.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Chunks that wait in memory, without repairs.
    pub window: usize,
    /// Repairs that wait in memory.
    pub repairs: usize,
    /// Chunks that are confirmed and not yet recorded.
    pub confirming: usize,
    /// Chunks that no source could give.
    pub parked: usize,
    /// Bytes up to which a chunk is small.
    pub small_max: u64,
    /// A chunk that has waited longer goes before all lanes.
    pub age_max: Duration,
    /// How long a parked chunk rests, and how often the walk may begin anew.
    pub rest: Duration,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            window: 1024,
            repairs: 256,
            confirming: 1024,
            parked: 256,
            small_max: 256 << 10,
            age_max: Duration::from_secs(10),
            rest: Duration::from_secs(30),
        }
    }
}

/// One chunk on its way to one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    pub chunk: ChunkTodo,
    /// When it came into the window.
    pub queued: Instant,
    /// An earlier put may have been applied.
    pub doubtful: bool,
    /// Where it belongs when nobody waits for it.
    pub lane: Lane,
}

/// A job in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flight {
    pub job: Job,
    /// The lane that it came from.
    pub lane: Lane,
    pub started: Instant,
}

/// The queue of one target.
#[derive(Debug, Clone)]
pub struct Queue {
    bounds: Bounds,
    lanes: BTreeMap<Lane, BTreeMap<ChunkId, Job>>,
    sending: BTreeMap<ChunkId, Flight>,
    sending_bytes: u64,
    confirming: BTreeMap<ChunkId, Flight>,
    parked: BTreeMap<ChunkId, Job>,
    parked_until: Instant,
    /// When a target that may be a source came into contact last.
    source_came: Instant,
    walks: Walks,
    /// Something was added while chunks were known. One of these may have died, so that no page counts it, and be taken for
    /// one that was passed: only when nothing is known any more the sum is exact.
    unsure: bool,
    /// The last start was of an awaited chunk.
    awaited_last: bool,
    /// Starts since the last one of the background.
    starts: u32,
    /// Flights of the background.
    background: usize,
}

impl Queue {
    /// An empty queue that will walk from the start.
    pub fn new(bounds: Bounds) -> Queue {
        Queue {
            bounds,
            lanes: Lane::ALL.map(|lane| (lane, BTreeMap::new())).into(),
            sending: BTreeMap::new(),
            sending_bytes: 0,
            confirming: BTreeMap::new(),
            parked: BTreeMap::new(),
            parked_until: Instant::default(),
            source_came: Instant::default(),
            walks: Walks::new(bounds.rest),
            unsure: false,
            awaited_last: false,
            starts: 0,
            background: 0,
        }
    }

    /// Jobs that wait in the window.
    pub fn waiting(&self) -> usize {
        self.lanes.values().map(BTreeMap::len).sum()
    }

    /// Jobs in flight.
    pub fn sending(&self) -> usize {
        self.sending.len()
    }

    /// Their bytes.
    pub fn sending_bytes(&self) -> u64 {
        self.sending_bytes
    }

    /// Chunks that no source could give.
    pub fn parked(&self) -> usize {
        self.parked.len()
    }

    /// True if nothing waits, nothing is on its way, and the walks have found nothing more.
    pub fn is_drained(&self) -> bool {
        self.walks.are_over() && self.known() == 0
    }

    /// Chunks were committed.
    pub fn added(&mut self) {
        self.unsure |= self.known() > 0;
        self.walks.added();
    }

    /// Looks at all rows again, from the first: what was passed may be lacking now.
    pub fn walk_anew(&mut self) {
        self.walks.again();
    }

    /// Where and how much to read from the store now, if the window has room; a page is then being read.
    pub fn load(&mut self, now: Instant) -> Option<(ChunkId, usize)> {
        let repairs = self.lane(Lane::Repair).len();
        let room = Room {
            new: room(self.bounds.window, self.waiting() - repairs),
            passed: room(self.bounds.repairs, repairs),
        };
        self.walks.load(now, room)
    }

    /// The page that [`Queue::load`] asked for.
    pub fn loaded(&mut self, now: Instant, page: &TodoPage) {
        let read = self.walks.read(page);
        for chunk in &page.chunks {
            if read.covers(chunk.id) && !self.knows(chunk.id) {
                let lane = match read.walk {
                    Which::Passed => Lane::Repair,
                    Which::New if page.backfill => Lane::Backfill,
                    Which::New => self.lane_of(chunk),
                };
                self.enqueue(Job { chunk: *chunk, queued: now, doubtful: false, lane });
            }
        }
        let known = page.pending.saturating_sub(page.unneeded.len() as u64) <= self.known() as u64;
        self.walks.ended(now, page, &read, known);
    }

    /// Somebody waits for these chunks, which the target lacked a moment ago. They need not be in the window: of those that
    /// no walk has come to, as many are taken as the lane has room for. One behind the walks that is in no lane is settled
    /// by now.
    pub fn awaited(&mut self, now: Instant, chunks: &[ChunkTodo]) {
        for chunk in chunks {
            let job = match self.lanes.values_mut().find_map(|jobs| jobs.remove(&chunk.id)) {
                Some(job) => job,
                None if self.walks.have_passed(chunk.id) || self.knows(chunk.id) => continue,
                None if self.lane(Lane::Awaited).len() >= self.bounds.window => continue,
                None => Job { chunk: *chunk, queued: now, doubtful: false, lane: self.lane_of(chunk) },
            };
            self.lanes.entry(Lane::Awaited).or_default().insert(job.chunk.id, job);
        }
    }

    fn lane(&self, lane: Lane) -> &BTreeMap<ChunkId, Job> {
        self.lanes.get(&lane).expect("every lane is made with the queue")
    }

    /// The page could not be read.
    pub fn load_failed(&mut self, now: Instant) {
        self.walks.failed(now);
    }

    /// The job that would go next.
    pub fn next(&self, now: Instant) -> Option<&Job> {
        if self.confirming.len() >= self.bounds.confirming {
            return None;
        }
        let of = |background: bool| {
            self.lanes
                .iter()
                .filter(move |(lane, _)| lane.is_background() == background)
                .filter_map(|(_, jobs)| jobs.values().next())
        };
        let Some(first) = of(false).next() else { return self.first_of(now, of(true)) };
        if self.background == 0
            && self.starts + 1 >= BACKGROUND_TURN
            && let Some(job) = self.first_of(now, of(true))
        {
            return Some(job);
        }
        if !self.awaited_last && !self.lane(Lane::Awaited).is_empty() {
            return Some(first);
        }
        self.first_of(now, of(false))
    }

    /// Of the first ones of lanes, in order of precedence: whatever has waited too long, else the first.
    fn first_of<'a>(&self, now: Instant, heads: impl Iterator<Item = &'a Job> + Clone) -> Option<&'a Job> {
        let oldest = heads.clone().min_by_key(|job| (job.queued, job.chunk.id))?;
        if now.since(oldest.queued) > self.bounds.age_max { Some(oldest) } else { heads.into_iter().next() }
    }

    /// Takes a waiting job into flight.
    pub fn start(&mut self, chunk: ChunkId, now: Instant) -> Flight {
        let (lane, job) = self
            .lanes
            .iter_mut()
            .find_map(|(lane, jobs)| Some((*lane, jobs.remove(&chunk)?)))
            .expect("only a job that waits is started");
        if lane.is_background() {
            self.starts = 0;
        } else {
            self.starts = self.starts.saturating_add(1);
            self.awaited_last = lane == Lane::Awaited;
        }
        let flight = Flight { job, lane, started: now };
        self.background += usize::from(lane.is_background());
        self.sending_bytes += job.chunk.length;
        let earlier = self.sending.insert(chunk, flight);
        assert!(earlier.is_none() && !self.confirming.contains_key(&chunk), "one flight per chunk and target");
        flight
    }

    /// The job of a chunk in flight; `None` if it is not in flight.
    pub fn flight(&self, chunk: ChunkId) -> Option<&Flight> {
        self.sending.get(&chunk)
    }

    /// The put of a chunk in flight begins anew, without doubt.
    pub fn resend(&mut self, chunk: ChunkId) -> Option<Flight> {
        let flight = self.sending.get_mut(&chunk)?;
        flight.job.doubtful = false;
        Some(*flight)
    }

    /// The target has a chunk that was in flight; it remains to be recorded.
    pub fn confirmed(&mut self, chunk: ChunkId) -> Option<ChunkTodo> {
        let flight = self.land(chunk)?;
        self.confirming.insert(chunk, flight);
        Some(flight.job.chunk)
    }

    /// A flight failed: back into its lane. Returns when it had begun.
    pub fn failed(&mut self, chunk: ChunkId, ambiguous: bool) -> Option<Instant> {
        let flight = self.land(chunk)?;
        self.enqueue(Job { doubtful: flight.job.doubtful || ambiguous, ..flight.job });
        Some(flight.started)
    }

    /// No source could give the bytes of a chunk in flight.
    pub fn unsendable(&mut self, chunk: ChunkId, now: Instant) {
        let Some(flight) = self.land(chunk) else { return };
        if self.source_came > flight.started {
            // It may not have been asked.
            self.enqueue(flight.job);
            return;
        }
        if self.parked.is_empty() {
            self.parked_until = now + self.bounds.rest;
        }
        if self.parked.len() < self.bounds.parked {
            self.parked.insert(chunk, flight.job);
        } else {
            // Forgotten here; its row still says that it is lacking, and the next walk finds it.
            self.settle(chunk);
            self.walks.again_at(now + self.bounds.rest);
        }
    }

    /// A target came into contact: it may give what no source could.
    pub fn source_came(&mut self, now: Instant) {
        self.source_came = now;
        self.parked_until = self.parked_until.min(now);
        self.walks.not_later(now);
    }

    /// A chunk in flight has no row any more.
    pub fn gone(&mut self, chunk: ChunkId) {
        self.land(chunk);
        self.settle(chunk);
        // It was known, and no page counted it: another one may have been taken for it.
        self.walks.added();
    }

    /// A confirmed chunk was recorded.
    pub fn placed(&mut self, chunk: ChunkId) {
        self.confirming.remove(&chunk);
        self.settle(chunk);
        if self.unsure && self.known() == 0 {
            self.unsure = false;
            self.walks.added();
        }
    }

    /// A confirmation does not count: the place was not what it was. Back into its lane, in doubt. Returns when its flight
    /// had begun.
    pub fn unconfirmed(&mut self, chunk: ChunkId) -> Option<Instant> {
        let flight = self.confirming.remove(&chunk)?;
        self.enqueue(Job { doubtful: true, ..flight.job });
        Some(flight.started)
    }

    /// Puts parked chunks that have rested back into their lanes.
    pub fn unpark(&mut self, now: Instant) {
        if now >= self.parked_until {
            for job in std::mem::take(&mut self.parked).into_values() {
                self.enqueue(job);
            }
        }
    }

    /// When time alone will change something.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let parked = (!self.parked.is_empty()).then_some(self.parked_until);
        parked.into_iter().chain(self.walks.deadlines()).filter(|at| *at > now).min()
    }

    fn known(&self) -> usize {
        self.waiting() + self.sending.len() + self.confirming.len() + self.parked.len()
    }

    fn knows(&self, chunk: ChunkId) -> bool {
        self.sending.contains_key(&chunk)
            || self.confirming.contains_key(&chunk)
            || self.parked.contains_key(&chunk)
            || self.lanes.values().any(|lane| lane.contains_key(&chunk))
    }

    fn lane_of(&self, chunk: &ChunkTodo) -> Lane {
        if chunk.length <= self.bounds.small_max { Lane::Small } else { Lane::Bulk }
    }

    fn enqueue(&mut self, job: Job) {
        self.lanes.entry(job.lane).or_default().insert(job.chunk.id, job);
    }

    fn land(&mut self, chunk: ChunkId) -> Option<Flight> {
        let flight = self.sending.remove(&chunk)?;
        self.sending_bytes -= flight.job.chunk.length;
        self.background -= usize::from(flight.lane.is_background());
        Some(flight)
    }

    fn settle(&mut self, chunk: ChunkId) {
        self.walks.settled(chunk);
    }
}

/// Room for a page, if it is worth reading one: half of it at least, for many small reads cost more than one.
fn room(bound: usize, taken: usize) -> Option<usize> {
    let room = bound.saturating_sub(taken);
    (room >= bound.div_ceil(2)).then_some(room)
}

#[cfg(test)]
mod tests;
