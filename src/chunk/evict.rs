//! What leaves the local cache, and when: whole chunk files, the one used longest ago first (D1).
//!
//! Owns: the order of use, freeing space under pressure, dropping what nobody needs any more.
//! Does not own: the rule what may leave (`meta::location`), how much is used (`space`).
//!
//! Order: placements durable → location rows deleted and durable → unlink. A reader that planned with the old rows finds
//! no file and plans again; one that has the file open reads on.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lru::LruCache;
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::open::OpenFiles;
use super::space::Space;
use crate::id::{ChunkFileId, ChunkId, Seq};
use crate::meta::location::Evicted;
use crate::meta::{Meta, Result};
use crate::priority;
use crate::testing::failpoint::{self, Point};

/// Files whose order of use is kept; older ones count as oldest, in order of age.
const ORDER_MAX: usize = 1 << 16;
/// Files that one round of eviction looks at before it lets others have the metadata writer.
const ROUND: usize = 64;
/// References that one background transaction touches (D8: ≤ 2 ms).
const BATCH: u32 = 256;
/// Dead chunks that are looked at in one go (D8: a reader takes at most 100 ms).
const DEAD_PAGE: usize = 2_000;
/// Dead chunks that one round looks at. They keep their rows as long as a target has them, a day at least: of more than these
/// each round looks at a part, which is a matter of seconds for a million.
const DEAD_ROUND: usize = 20_000;

/// The one who evicts.
pub struct Evictor {
    meta: Arc<Meta>,
    open_files: Arc<OpenFiles>,
    space: Arc<Space>,
    order: Mutex<LruCache<ChunkFileId, ()>>,
    /// Held for writing from the end of a file's row to the end of the file, for reading while a fetched chunk is kept: it
    /// has the name that an evicted copy of it had.
    naming: RwLock<()>,
    /// Where the walk over dead chunks goes on.
    dead_after: Mutex<Option<(Seq, ChunkId)>>,
}

impl Evictor {
    /// Starts with the order of age: nothing is known of use before this mount.
    pub fn new(meta: Arc<Meta>, open_files: Arc<OpenFiles>, space: Arc<Space>) -> Evictor {
        let capacity = NonZeroUsize::new(ORDER_MAX).expect("the capacity is not zero");
        let order = Mutex::new(LruCache::new(capacity));
        Evictor { meta, open_files, space, order, naming: RwLock::new(()), dead_after: Mutex::default() }
    }

    /// Notes that a file came or was used.
    pub fn used(&self, file: ChunkFileId) {
        self.order.lock().put(file, ());
    }

    /// While it is held no file leaves, so that none can leave under a name that is being given anew.
    pub fn keep_names(&self) -> RwLockReadGuard<'_, ()> {
        self.naming.read()
    }

    /// The same, unless files are leaving right now: for those who can do without.
    pub fn try_keep_names(&self) -> Option<RwLockReadGuard<'_, ()>> {
        self.naming.try_read()
    }

    /// While it is held no file leaves, and nobody else gives names to chunks.
    pub fn give_names(&self) -> RwLockWriteGuard<'_, ()> {
        self.naming.write()
    }

    /// Works until `stop`: evicts under pressure, drops dead content, every `interval` at least; not while `can_wait` says
    /// that this can wait.
    pub fn run(&self, stop: &AtomicBool, interval: Duration, can_wait: impl Fn() -> bool) {
        while !stop.load(Ordering::Acquire) {
            self.space.sample();
            if let Err(error) = self.round(stop, &can_wait) {
                tracing::warn!(%error, "eviction failed, will be tried again");
            }
            std::thread::park_timeout(interval);
        }
    }

    /// One round: everything that is due now.
    pub fn round(&self, stop: &AtomicBool, can_wait: impl Fn() -> bool) -> Result<()> {
        if self.meta.latched().is_some() {
            return Ok(());
        }
        priority::wait_while(stop, &can_wait);
        while self.meta.write(|tx| tx.release_given_up(BATCH))? {
            priority::wait_while(stop, &can_wait);
            if stop.load(Ordering::Acquire) {
                return Ok(());
            }
        }
        self.drop_dead(stop, &can_wait)?;
        while self.space.wants_eviction() && !stop.load(Ordering::Acquire) {
            if self.evict_some()? == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Drops dead content that no target waits for.
    fn drop_dead(&self, stop: &AtomicBool, can_wait: &impl Fn() -> bool) -> Result<()> {
        let mut looked = 0;
        while looked < DEAD_ROUND && !stop.load(Ordering::Acquire) {
            priority::wait_while(stop, can_wait);
            let after = *self.dead_after.lock();
            // Looked for outside of the transactions: most of what is dead lies here no more.
            let page = self.meta.dead_chunks(after, DEAD_PAGE)?;
            let mut left = page.droppable.as_slice();
            while !left.is_empty() {
                priority::wait_while(stop, can_wait);
                let _naming = self.naming.write();
                let (dropped, done) = self.meta.write(|tx| tx.drop_dead_locations(left))?;
                self.unlink(dropped)?;
                left = &left[done..];
            }
            looked += page.looked;
            *self.dead_after.lock() = page.next;
            if page.next.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// Evicts what it can of the oldest files; returns how many went.
    fn evict_some(&self) -> Result<usize> {
        let _naming = self.naming.write();
        let mut evicted = Vec::new();
        let mut looked = 0;
        // Files that nobody used in this mount first, then by last use. A pinned one stays where it is in the order.
        let mut after = ChunkFileId(0);
        'unused: loop {
            let page = self.meta.chunk_files(after, ROUND * 4)?;
            let Some(&last) = page.last() else { break };
            after = last;
            for file in page {
                if self.order.lock().contains(&file) || self.is_lent(file) {
                    continue;
                }
                evicted.extend(self.meta.evict(file)?);
                looked += 1;
                if looked >= ROUND || !evicted.is_empty() && looked >= ROUND / 4 {
                    break 'unused;
                }
            }
        }
        if evicted.is_empty() {
            let oldest: Vec<ChunkFileId> = self.order.lock().iter().rev().map(|(&file, ())| file).collect();
            for file in oldest {
                if self.is_lent(file) {
                    continue;
                }
                if let Some(gone) = self.meta.evict(file)? {
                    self.order.lock().pop(&file);
                    evicted.push(gone);
                    if evicted.len() >= ROUND / 4 {
                        break;
                    }
                }
            }
        }
        let count = evicted.len();
        self.unlink(evicted)?;
        Ok(count)
    }

    /// The kernel reads it by itself: it would give no space back, and could not be thawed (P3).
    fn is_lent(&self, file: ChunkFileId) -> bool {
        self.open_files.files().lending().is_lent(file)
    }

    fn unlink(&self, evicted: Vec<Evicted>) -> Result<()> {
        if evicted.is_empty() {
            return Ok(());
        }
        failpoint::pass(Point::LocationDelete);
        self.meta.sync()?;
        failpoint::pass(Point::Unlink);
        for Evicted { name, bytes } in evicted {
            self.open_files.forget(&name);
            if self.open_files.files().lending().lost_its_row(&name, bytes) {
                continue;
            }
            if let Err(error) = self.open_files.files().remove(&name) {
                tracing::warn!(%name, %error, "an evicted chunk file could not be removed");
                continue;
            }
            self.space.add(-(bytes as i64));
        }
        Ok(())
    }
}
