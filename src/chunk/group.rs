//! Group sync: all who wait for the same sync at the same moment share one (S1).
//!
//! Owns: who of them carries it out, and what it covers.
//! Does not own: what is synced.
//!
//! Changes are counted. A sync covers those that were counted before it began; whoever came while it ran waits for the
//! next one, which one of them carries out for all.

use std::io;

use parking_lot::{Condvar, Mutex, MutexGuard};

/// Changes of one thing, and how far they are synced.
#[derive(Debug, Default)]
pub struct GroupSync {
    state: Mutex<State>,
    synced: Condvar,
}

#[derive(Debug, Default)]
struct State {
    changes: u64,
    synced: u64,
    syncing: bool,
}

impl GroupSync {
    /// Something of which nobody knows whether it was ever synced.
    pub fn unknown() -> GroupSync {
        GroupSync { state: Mutex::new(State { changes: 1, ..State::default() }), synced: Condvar::new() }
    }

    /// Counts a change that was made.
    pub fn changed(&self) {
        self.state.lock().changes += 1;
    }

    /// Waits until all changes counted by now are synced, by `sync` or by that of another who waits. An error is that of the
    /// own call: who fails for himself says nothing about the others.
    pub fn wait(&self, sync: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let mut state = self.state.lock();
        let wanted = state.changes;
        while state.synced < wanted {
            if state.syncing {
                self.synced.wait(&mut state);
                continue;
            }
            state.syncing = true;
            let covered = state.changes;
            let result = MutexGuard::unlocked(&mut state, &sync);
            state.syncing = false;
            if result.is_ok() {
                state.synced = state.synced.max(covered);
            }
            self.synced.notify_all();
            result?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Barrier};
    use std::time::Duration;

    use super::*;

    #[test]
    fn s1_who_waits_at_the_same_moment_shares_a_sync_that_began_after_his_change() {
        const THREADS: u64 = 16;
        const ROUNDS: u64 = 20;
        let group = Arc::new(GroupSync::default());
        let (made, durable, syncs) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), AtomicU64::new(0));
        let syncs = Arc::new(syncs);
        let start = Arc::new(Barrier::new(THREADS as usize));
        let work = || {
            let (group, made, durable, syncs) = (group.clone(), made.clone(), durable.clone(), syncs.clone());
            let start = start.clone();
            move || {
                start.wait();
                for _ in 0..ROUNDS {
                    let mine = made.fetch_add(1, Ordering::SeqCst) + 1;
                    group.changed();
                    group
                        .wait(|| {
                            // A disk: what was made before it begins is durable when it ends.
                            let covers = made.load(Ordering::SeqCst);
                            std::thread::sleep(Duration::from_millis(1));
                            durable.fetch_max(covers, Ordering::SeqCst);
                            syncs.fetch_add(1, Ordering::SeqCst);
                            Ok(())
                        })
                        .unwrap();
                    assert!(durable.load(Ordering::SeqCst) >= mine, "a change that is not on disk was acknowledged");
                }
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|_| std::thread::spawn(work())).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let syncs = syncs.load(Ordering::SeqCst);
        assert!(syncs < THREADS * ROUNDS / 2, "{syncs} syncs for {} waiters", THREADS * ROUNDS);
        group.wait(|| panic!("nothing has changed since")).unwrap();
    }

    #[test]
    fn a_sync_that_failed_covers_nothing() {
        let group = GroupSync::unknown();
        assert!(group.wait(|| Err(io::Error::other("disk"))).is_err());
        let again = std::cell::Cell::new(0);
        let count = || {
            again.set(again.get() + 1);
            Ok(())
        };
        group.wait(count).unwrap();
        group.wait(count).unwrap();
        assert_eq!(again.get(), 1);
    }
}
