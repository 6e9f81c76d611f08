//! What waits for one target, and what is on its way: a bounded window of the chunks it lacks. Pure.
//!
//! Owns: lanes, single flight, the walk over the store's rows, parked chunks.
//! Does not own: whether anything may be sent at all (`health`, `gate`), how much at a time (`limit`).
//!
//! ```text
//!  walk over chunk_todo ──▶ lanes: small │ bulk ──▶ sending ──▶ confirming ──▶ (placed)
//!                             ▲      ▲                │  │           │
//!                             │      └── failed ──────┘  │           │ the place was not what it was
//!                             │      ▲                   │           │
//!                             │      └───────────────────┼───────────┘
//!                             └──── parked ◀─ no source ─┘
//! ```
//!
//! - A chunk that an acknowledgement waits for changes to a lane of its own, or comes straight into it (D3).
//! - A chunk is in exactly one of these places, so it has one flight per target.
//! - The window is filled from the store in order of ids: nothing has to be rebuilt at a restart (T6). A page may have been
//!   read before a placement was recorded; what was settled while it was being read is left out of it.
//! - A job whose reply was lost is **doubtful**: the target is asked before bytes are sent again.
//! - A chunk that no source can give is **parked** and tried again later; it never stops the others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::clock::Instant;
use crate::id::ChunkId;
use crate::meta::placement::{ChunkTodo, TodoPage};

/// A lane of the queue, in order of precedence. FIFO in a lane; whatever has waited too long goes first, from any lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Chunks that an acknowledgement waits for (D3). Every second start is theirs, however old the others are: what has
    /// waited too long would else go before them as long as there is any of it.
    Awaited,
    /// Chunks that cost a request rather than bandwidth.
    Small,
    /// Everything else.
    Bulk,
}

/// Bounds of one queue.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Chunks that wait in memory.
    pub window: usize,
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
            confirming: 256,
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
}

/// A job in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flight {
    pub job: Job,
    pub started: Instant,
}

/// The walk over the rows of what the target lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Walk {
    /// There may be more after the cursor.
    More,
    /// A page is being read.
    Loading {
        /// Chunks that left the queue meanwhile: the page may still name them.
        settled: BTreeSet<ChunkId>,
        /// Chunks were committed meanwhile: the page's end is not the end.
        added: bool,
    },
    /// The store failed; try again then.
    Failed(Instant),
    /// Nothing after the cursor until chunks are added.
    End,
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
    walk: Walk,
    cursor: ChunkId,
    /// The last start was of an awaited chunk.
    awaited_last: bool,
    /// The walk missed something behind its cursor and begins anew then.
    rewind_at: Option<Instant>,
    /// When it did so last: at once the first time, for a copy that was found bad is lacking now; then not more often than
    /// [`Bounds::rest`].
    rewound_at: Option<Instant>,
}

impl Queue {
    /// An empty queue that will walk from the start.
    pub fn new(bounds: Bounds) -> Queue {
        Queue {
            bounds,
            lanes: [Lane::Awaited, Lane::Small, Lane::Bulk].map(|lane| (lane, BTreeMap::new())).into(),
            sending: BTreeMap::new(),
            sending_bytes: 0,
            confirming: BTreeMap::new(),
            parked: BTreeMap::new(),
            parked_until: Instant::default(),
            walk: Walk::More,
            cursor: ChunkId(0),
            awaited_last: false,
            rewind_at: None,
            rewound_at: None,
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

    /// True if nothing waits, nothing is on its way, and the walk has found nothing more.
    pub fn is_drained(&self) -> bool {
        self.walk == Walk::End && self.known() == 0 && self.rewind_at.is_none()
    }

    /// Chunks were committed.
    pub fn added(&mut self) {
        match &mut self.walk {
            Walk::Loading { added, .. } => *added = true,
            Walk::End => self.walk = Walk::More,
            Walk::More | Walk::Failed(_) => {}
        }
    }

    /// Looks at all rows again, from the first: what was passed may be lacking now.
    pub fn walk_anew(&mut self) {
        // Not in the middle of a page: the rewind comes after it.
        self.rewind_at = Some(Instant::default());
    }

    /// Where and how much to read from the store now, if the window has room; a page is then being read.
    pub fn load(&mut self, now: Instant) -> Option<(ChunkId, usize)> {
        if self.rewind_at.is_some_and(|at| now >= at) && !matches!(self.walk, Walk::Loading { .. }) {
            self.rewind_at = None;
            self.rewound_at = Some(now);
            self.cursor = ChunkId(0);
            self.walk = Walk::More;
        }
        let ready = match self.walk {
            Walk::More => true,
            Walk::Failed(at) => now >= at,
            Walk::Loading { .. } | Walk::End => false,
        };
        let room = self.bounds.window.saturating_sub(self.waiting());
        // Half a window at least: many small reads cost more than one.
        if !ready || room < self.bounds.window.div_ceil(2) {
            return None;
        }
        self.walk = Walk::Loading { settled: BTreeSet::new(), added: false };
        Some((self.cursor, room))
    }

    /// The page that [`Queue::load`] asked for.
    pub fn loaded(&mut self, now: Instant, page: &TodoPage) {
        let Walk::Loading { settled, added } = std::mem::replace(&mut self.walk, Walk::More) else {
            panic!("a page arrived that nobody asked for");
        };
        self.cursor = page.cursor;
        for chunk in &page.chunks {
            if !settled.contains(&chunk.id) && !self.knows(chunk.id) {
                self.enqueue(Job { chunk: *chunk, queued: now, doubtful: false });
            }
        }
        let missed = page.pending.saturating_sub(page.unneeded.len() as u64) > self.known() as u64;
        if !page.end || added || (missed && !settled.is_empty()) {
            // With settled chunks the sum says nothing: look once more.
            return;
        }
        self.walk = Walk::End;
        if missed {
            let rested = self.rewound_at.map_or(now, |at| (at + self.bounds.rest).max(now));
            self.rewind_at.get_or_insert(rested);
        }
    }

    /// Somebody waits for these chunks, which the target lacked a moment ago. They need not be in the window: of those that
    /// the walk has not come to, as many are taken as the lane has room for. One behind the walk that is in no lane is
    /// settled by now.
    pub fn awaited(&mut self, now: Instant, chunks: &[ChunkTodo]) {
        for chunk in chunks {
            let job = match self.lanes.values_mut().find_map(|jobs| jobs.remove(&chunk.id)) {
                Some(job) => job,
                None if chunk.id <= self.cursor || self.knows(chunk.id) => continue,
                None if self.lane(Lane::Awaited).len() >= self.bounds.window => continue,
                None => Job { chunk: *chunk, queued: now, doubtful: false },
            };
            self.lanes.entry(Lane::Awaited).or_default().insert(job.chunk.id, job);
        }
    }

    fn lane(&self, lane: Lane) -> &BTreeMap<ChunkId, Job> {
        self.lanes.get(&lane).expect("every lane is made with the queue")
    }

    /// The page could not be read.
    pub fn load_failed(&mut self, now: Instant) {
        assert!(matches!(self.walk, Walk::Loading { .. }), "a page failed that nobody asked for");
        self.walk = Walk::Failed(now + Duration::from_secs(1));
    }

    /// The job that would go next.
    pub fn next(&self, now: Instant) -> Option<&Job> {
        if self.confirming.len() >= self.bounds.confirming {
            return None;
        }
        if !self.awaited_last
            && let Some(job) = self.lane(Lane::Awaited).values().next()
        {
            return Some(job);
        }
        let heads = || self.lanes.values().filter_map(|lane| lane.values().next());
        let oldest = heads().min_by_key(|job| (job.queued, job.chunk.id))?;
        if now.since(oldest.queued) > self.bounds.age_max { Some(oldest) } else { heads().next() }
    }

    /// Takes a waiting job into flight.
    pub fn start(&mut self, chunk: ChunkId, now: Instant) -> Job {
        let (lane, job) = self
            .lanes
            .iter_mut()
            .find_map(|(lane, jobs)| Some((*lane, jobs.remove(&chunk)?)))
            .expect("only a job that waits is started");
        self.awaited_last = lane == Lane::Awaited;
        self.sending_bytes += job.chunk.length;
        let earlier = self.sending.insert(chunk, Flight { job, started: now });
        assert!(earlier.is_none() && !self.confirming.contains_key(&chunk), "one flight per chunk and target");
        job
    }

    /// The job of a chunk in flight; `None` if it is not in flight.
    pub fn flight(&self, chunk: ChunkId) -> Option<&Flight> {
        self.sending.get(&chunk)
    }

    /// The put of a chunk in flight begins anew, without doubt.
    pub fn resend(&mut self, chunk: ChunkId) -> Option<ChunkTodo> {
        let flight = self.sending.get_mut(&chunk)?;
        flight.job.doubtful = false;
        Some(flight.job.chunk)
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
        if self.parked.is_empty() {
            self.parked_until = now + self.bounds.rest;
        }
        if self.parked.len() < self.bounds.parked {
            self.parked.insert(chunk, flight.job);
        } else {
            // Forgotten here; its row still says that it is lacking, and the next walk finds it.
            self.settle(chunk);
            self.rewind_at.get_or_insert(now + self.bounds.rest);
        }
    }

    /// A chunk in flight has no row any more.
    pub fn gone(&mut self, chunk: ChunkId) {
        self.land(chunk);
        self.settle(chunk);
    }

    /// A confirmed chunk was recorded.
    pub fn placed(&mut self, chunk: ChunkId) {
        self.confirming.remove(&chunk);
        self.settle(chunk);
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
        let failed = if let Walk::Failed(at) = self.walk { Some(at) } else { None };
        [parked, failed, self.rewind_at].into_iter().flatten().filter(|at| *at > now).min()
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

    fn enqueue(&mut self, job: Job) {
        let lane = if job.chunk.length <= self.bounds.small_max { Lane::Small } else { Lane::Bulk };
        self.lanes.entry(lane).or_default().insert(job.chunk.id, job);
    }

    fn land(&mut self, chunk: ChunkId) -> Option<Flight> {
        let flight = self.sending.remove(&chunk)?;
        self.sending_bytes -= flight.job.chunk.length;
        Some(flight)
    }

    fn settle(&mut self, chunk: ChunkId) {
        if let Walk::Loading { settled, .. } = &mut self.walk {
            settled.insert(chunk);
        }
    }
}
