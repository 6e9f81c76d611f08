//! Where the next page of what a target lacks is read. Pure.
//!
//! Owns: the cursors of two walks over the store's rows, which of them reads next, what happened while a page was being read.
//! Does not own: what becomes of the rows (`queue`), reading them (`driver`).
//!
//! ```text
//!   id 0 ──────────────▶ ............ ◀ new ──────────▶ .......
//!        passed again     up to here    goes on behind what was there when it came
//! ```
//!
//! - The walk over what is **new** goes forward only. What it has passed may be lacking again: a copy was found bad, a dead
//!   chunk is named again, one had no source. Then a second walk goes over what was **passed**, up to where the first was when
//!   it began, beside it: what is new never waits for it.
//! - One page is read at a time; the walks take turns.
//! - A page says how many chunks the target lacks in all. If the first walk is at its end, the second is over and fewer are
//!   known, something was passed that is lacking now.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::clock::Instant;
use crate::id::ChunkId;
use crate::meta::placement::TodoPage;

/// One of the walks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Over what is new.
    New,
    /// Over what was passed.
    Passed,
}

/// How much each walk may read now; `None`: nothing.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    pub new: Option<usize>,
    pub passed: Option<usize>,
}

/// A page that arrived.
#[derive(Debug)]
pub struct Read {
    /// Whose it is.
    pub walk: Which,
    /// Beyond it is the other walk's.
    until: ChunkId,
    settled: BTreeSet<ChunkId>,
}

impl Read {
    /// True if the page says of this chunk that it is lacking.
    pub fn covers(&self, chunk: ChunkId) -> bool {
        chunk <= self.until && !self.settled.contains(&chunk)
    }
}

/// A page that is being read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Loading {
    walk: Which,
    /// Chunks that left the queue meanwhile: the page may still name them.
    settled: BTreeSet<ChunkId>,
}

/// The walk over what was passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Again {
    cursor: ChunkId,
    until: ChunkId,
}

/// Both walks.
#[derive(Debug, Clone)]
pub struct Walks {
    rest: Duration,
    loading: Option<Loading>,
    /// The store failed; try again then.
    failed_until: Option<Instant>,
    cursor: ChunkId,
    /// There may be more after the cursor.
    more: bool,
    again: Option<Again>,
    /// The page before was of the walk over what was passed.
    again_last: bool,
    /// Something was passed by that is lacking now; the walk over it begins then.
    again_at: Option<Instant>,
    /// When it began last: at once the first time, for a copy that was found bad is lacking now; then not more often than
    /// this rest allows.
    began_at: Option<Instant>,
}

impl Walks {
    /// Walks from the first row; `rest`: how often what was passed is looked at again.
    pub fn new(rest: Duration) -> Walks {
        Walks {
            rest,
            loading: None,
            failed_until: None,
            cursor: ChunkId(0),
            more: true,
            again: None,
            again_last: false,
            again_at: None,
            began_at: None,
        }
    }

    /// True if nothing is being read and nothing is left to read.
    pub fn are_over(&self) -> bool {
        !self.more && self.loading.is_none() && self.again.is_none() && self.again_at.is_none()
    }

    /// Chunks were committed.
    pub fn added(&mut self) {
        // While a page is being read, too: its end is not the end then.
        self.more = true;
    }

    /// Looks at everything that was passed, as soon as may be.
    pub fn again(&mut self) {
        // One that has begun may be beyond what is meant: it begins anew.
        self.again = None;
        self.again_at = Some(Instant::default());
    }

    /// Looks at everything that was passed, not before `at`.
    pub fn again_at(&mut self, at: Instant) {
        self.again_at.get_or_insert(at);
    }

    /// What shall be looked at again is looked at by `now`.
    pub fn not_later(&mut self, now: Instant) {
        self.again_at = self.again_at.map(|at| at.min(now));
    }

    /// A chunk left the queue.
    pub fn settled(&mut self, chunk: ChunkId) {
        if let Some(loading) = &mut self.loading {
            loading.settled.insert(chunk);
        }
    }

    /// True if no walk will come to this chunk any more.
    pub fn have_passed(&self, chunk: ChunkId) -> bool {
        chunk <= self.cursor && self.again.is_none_or(|again| chunk <= again.cursor || chunk > again.until)
    }

    /// Where and how much is read next; the page is then being read.
    pub fn load(&mut self, now: Instant, room: Room) -> Option<(ChunkId, usize)> {
        if self.loading.is_some() || self.failed_until.is_some_and(|until| now < until) {
            return None;
        }
        if self.again.is_none() && self.again_at.is_some_and(|at| now >= at) {
            self.again_at = None;
            self.began_at = Some(now);
            // Where nothing was passed, what is lacking now lies ahead.
            self.again = (self.cursor > ChunkId(0)).then_some(Again { cursor: ChunkId(0), until: self.cursor });
            self.more |= self.again.is_none();
        }
        let new = room.new.filter(|_| self.more).map(|room| (Which::New, self.cursor, room));
        let passed = room.passed.and_then(|room| self.again.map(|again| (Which::Passed, again.cursor, room)));
        let (walk, after, room) = if self.again_last { new.or(passed) } else { passed.or(new) }?;
        self.again_last = walk == Which::Passed;
        self.failed_until = None;
        self.more &= walk == Which::Passed;
        self.loading = Some(Loading { walk, settled: BTreeSet::new() });
        Some((after, room))
    }

    /// The page could not be read.
    pub fn failed(&mut self, now: Instant) {
        let loading = self.loading.take().expect("a page failed that nobody asked for");
        self.more |= loading.walk == Which::New;
        self.failed_until = Some(now + Duration::from_secs(1));
    }

    /// The page arrived.
    pub fn read(&mut self, page: &TodoPage) -> Read {
        let Loading { walk, settled } = self.loading.take().expect("a page arrived that nobody asked for");
        let until = match (walk, &mut self.again) {
            (Which::New, _) => {
                self.cursor = page.cursor;
                ChunkId(u64::MAX)
            }
            (Which::Passed, Some(again)) => {
                again.cursor = page.cursor;
                again.until
            }
            // It was told to begin anew meanwhile.
            (Which::Passed, None) => ChunkId(0),
        };
        Read { walk, until, settled }
    }

    /// What follows from a page whose chunks are taken in; `known`: all chunks that it counts are.
    pub fn ended(&mut self, now: Instant, page: &TodoPage, read: &Read, known: bool) {
        match read.walk {
            Which::Passed => {
                if self.again.is_some_and(|again| page.end || again.cursor >= again.until) {
                    self.again = None;
                    // One look at the end tells whether all are known now.
                    self.more = true;
                }
            }
            // With settled chunks the sum says nothing: look once more.
            Which::New if !page.end || self.more || (!known && !read.settled.is_empty()) => self.more = true,
            Which::New if !known && self.again.is_none() => {
                let rested = self.began_at.map_or(now, |at| (at + self.rest).max(now));
                self.again_at.get_or_insert(rested);
            }
            Which::New => {}
        }
    }

    /// When time alone will change something.
    pub fn deadlines(&self) -> impl Iterator<Item = Instant> {
        [self.failed_until, self.again_at].into_iter().flatten()
    }
}
