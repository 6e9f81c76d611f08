//! Inodes without a name that a program or the kernel still holds.
//!
//! Owns: knowing when the last holder is gone, and removing their rows in batches, on a thread of its own (D8).
//! Does not own: their bytes (`write`), references of their content (`meta::orphan`).
//!
//! ```text
//! last name gone ──▶ waiting ──the kernel forgets it──▶ forgotten ──no open handle──▶ rows removed
//! ```
//!
//! While programs are busy they stay (`priority`). Only orphans are kept in memory; a crash leaves them to the next mount
//! ([`Meta::remove_all_orphans`]).

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::id::InodeId;
use crate::meta::Meta;
use crate::priority;
use crate::write::Files;

/// Rows removed in one transaction: it holds the writer below 2 ms (D8).
const BATCH: usize = 32;
/// How long the first of a batch waits for others: `rm -rf` makes thousands a second.
const GATHER: Duration = Duration::from_millis(50);
/// A forgotten inode that is still open is looked at again after this. Its RELEASE is on the way: the kernel sends it
/// before it forgets, another thread serves it.
const RECHECK: Duration = Duration::from_millis(200);

/// The orphans of this mount, and the thread that removes them.
pub struct Orphans {
    shared: Arc<Shared>,
    remover: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stopping: AtomicBool,
}

#[derive(Default)]
struct State {
    /// Without a name; the kernel may still know it.
    waiting: HashSet<InodeId>,
    /// The kernel has forgotten it.
    forgotten: HashSet<InodeId>,
}

impl Orphans {
    /// Starts the thread.
    pub(super) fn start(meta: Arc<Meta>, files: Arc<Files>) -> std::io::Result<Orphans> {
        let shared =
            Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), stopping: AtomicBool::new(false) });
        let remover = std::thread::Builder::new().name("orphans".into()).spawn({
            let shared = shared.clone();
            move || shared.run(&meta, |ino| files.is_open(ino), || files.can_wait())
        })?;
        Ok(Orphans { shared, remover: Some(remover) })
    }

    /// `ino` has lost its last name.
    pub(super) fn add(&self, ino: InodeId) {
        self.shared.state.lock().waiting.insert(ino);
    }

    /// The kernel has forgotten `ino`, which most often has a name still.
    pub(super) fn forgotten(&self, ino: InodeId) {
        let mut state = self.shared.state.lock();
        if state.waiting.remove(&ino) {
            state.forgotten.insert(ino);
            // In between the thread gathers; it wakes by itself.
            if state.forgotten.len() == 1 || state.forgotten.len() >= BATCH {
                self.shared.changed.notify_one();
            }
        }
    }
}

impl Drop for Orphans {
    fn drop(&mut self) {
        {
            let _state = self.shared.state.lock();
            self.shared.stopping.store(true, Ordering::Release);
        }
        self.shared.changed.notify_one();
        if let Some(remover) = self.remover.take() {
            // It catches nothing: a panic there was reported by its own thread.
            let _ = remover.join();
        }
    }
}

impl Shared {
    fn run(&self, meta: &Meta, is_open: impl Fn(InodeId) -> bool, can_wait: impl Fn() -> bool) {
        loop {
            let mut state = self.state.lock();
            while state.forgotten.is_empty() && !self.stopping() {
                self.changed.wait(&mut state);
            }
            if !self.stopping() && state.forgotten.len() < BATCH {
                self.changed.wait_for(&mut state, GATHER);
            }
            MutexGuard::unlocked(&mut state, || priority::wait_while(&self.stopping, &can_wait));
            if self.stopping() {
                return;
            }
            let candidates: Vec<InodeId> = state.forgotten.iter().copied().collect();
            drop(state);
            let (open, closed): (Vec<InodeId>, Vec<InodeId>) = candidates.into_iter().partition(|&ino| is_open(ino));
            for batch in closed.chunks(BATCH) {
                if let Err(error) = meta.write(|tx| tx.remove_orphans(batch)) {
                    // The rows stay; the next mount removes them.
                    tracing::warn!(%error, count = batch.len(), "inodes without a name could not be removed");
                }
            }
            let mut state = self.state.lock();
            closed.iter().for_each(|ino| {
                state.forgotten.remove(ino);
            });
            if !open.is_empty() && !self.stopping() {
                self.changed.wait_for(&mut state, RECHECK);
            }
        }
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}
