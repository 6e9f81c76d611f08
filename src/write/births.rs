//! Files that were born open and have no content on record yet (O2).
//!
//! Owns: telling the shipper which `create` records wait for their first slot, so that no restored tree shows a half-copied
//! file as an empty one.
//! Does not own: what is shipped when (`replication::selection`).

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use crate::clock::Instant;
use crate::id::{InodeId, Seq};

/// A file may hold its birth back for this long while it is open without a slot (O2).
pub const BIRTH_WAIT_MAX: Duration = Duration::from_secs(60);

/// Births that wait for content.
#[derive(Debug, Default)]
pub struct Births {
    waiting: Mutex<HashMap<InodeId, Birth>>,
    /// Held for reading from before the `create` commits until the birth is noted here.
    creating: RwLock<()>,
}

#[derive(Debug, Clone, Copy)]
struct Birth {
    born: Instant,
    /// Its first slot; a reader whose journal window ends before it must still wait.
    slot: Option<Seq>,
}

impl Births {
    /// To be held over the transaction that creates a file and [`Births::born`].
    pub fn creating(&self) -> RwLockReadGuard<'_, ()> {
        self.creating.read()
    }

    /// Notes that `ino` was born open.
    pub fn born(&self, ino: InodeId, now: Instant) {
        self.waiting.lock().insert(ino, Birth { born: now, slot: None });
    }

    /// Notes that `ino` has its first slot.
    pub fn has_slot(&self, ino: InodeId, slot: Seq) {
        if let Some(birth) = self.waiting.lock().get_mut(&ino) {
            birth.slot.get_or_insert(slot);
        }
    }

    /// Notes that `ino` was closed without content, or lost its name: its create waits for nothing.
    pub fn settled(&self, ino: InodeId) {
        let mut waiting = self.waiting.lock();
        if waiting.get(&ino).is_some_and(|birth| birth.slot.is_none()) {
            waiting.remove(&ino);
        }
    }

    /// Somebody waits for history as it is: what has no content by now is empty, and its create waits for nothing.
    pub fn settled_all(&self) {
        self.waiting.lock().retain(|_, birth| birth.slot.is_some());
    }

    /// The inodes whose `create` must not ship alone, for a reader that has read the journal up to `window`: those open
    /// without a slot for less than [`BIRTH_WAIT_MAX`], and those whose slot the reader has not seen.
    pub fn waiting(&self, window: Seq, now: Instant) -> Vec<InodeId> {
        // A create that the reader saw is noted once this lock is had.
        drop(self.creating.write());
        let mut waiting = self.waiting.lock();
        waiting.retain(|_, birth| now.since(birth.born) < BIRTH_WAIT_MAX);
        waiting.iter().filter(|(_, birth)| birth.slot.is_none_or(|slot| slot > window)).map(|(&ino, _)| ino).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_does_not_wait_for_the_content_of_an_empty_open_file() {
        let births = Births::default();
        let now = Instant::START;
        births.born(InodeId(5), now);
        births.born(InodeId(6), now);
        births.has_slot(InodeId(6), Seq(12));
        births.settled_all();
        assert_eq!(births.waiting(Seq(10), now), [InodeId(6)], "content that has its place is waited for");
    }

    #[test]
    fn o2_a_birth_waits_for_its_slot_to_be_seen() {
        let births = Births::default();
        let now = Instant::START;
        births.born(InodeId(5), now);
        assert_eq!(births.waiting(Seq(10), now), [InodeId(5)]);
        births.has_slot(InodeId(5), Seq(12));
        assert_eq!(births.waiting(Seq(10), now), [InodeId(5)], "the reader has not read as far as the slot");
        assert_eq!(births.waiting(Seq(12), now), []);
    }

    #[test]
    fn o2_a_birth_waits_sixty_seconds_at_most_and_not_once_closed_empty() {
        let births = Births::default();
        let now = Instant::START;
        births.born(InodeId(5), now);
        births.born(InodeId(6), now);
        births.settled(InodeId(6));
        assert_eq!(births.waiting(Seq(10), now), [InodeId(5)]);
        assert_eq!(births.waiting(Seq(10), now + BIRTH_WAIT_MAX), []);
    }
}
