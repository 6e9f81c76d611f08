//! Journal rows that must stay although every follower has them: a checkpoint on its way needs them (T3).
//!
//! Owns: who holds from which seq on. In memory: an export that a restart interrupts is given up.
//! Does not own: dropping rows (`meta::shipping`).

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::id::Seq;

/// All holds of a mount.
#[derive(Debug, Default)]
pub struct JournalHolds {
    held: Mutex<(u64, BTreeMap<u64, Seq>)>,
}

/// Keeps journal rows from a seq on until it is dropped.
#[derive(Debug)]
pub struct Hold {
    holds: Arc<JournalHolds>,
    id: u64,
}

impl JournalHolds {
    /// Keeps all rows from `from` on.
    pub fn hold(self: &Arc<Self>, from: Seq) -> Hold {
        let mut held = self.held.lock();
        let id = held.0;
        held.0 += 1;
        held.1.insert(id, from);
        Hold { holds: Arc::clone(self), id }
    }

    /// The first row that anybody keeps.
    pub fn lowest(&self) -> Option<Seq> {
        self.held.lock().1.values().min().copied()
    }
}

impl Hold {
    /// Gives up the rows before `from`.
    pub fn narrow(&self, from: Seq) {
        self.holds.held.lock().1.insert(self.id, from);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.holds.held.lock().1.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t3_the_lowest_of_all_holds_counts_while_they_live() {
        let holds = Arc::new(JournalHolds::default());
        assert_eq!(holds.lowest(), None);
        let first = holds.hold(Seq(4));
        let second = holds.hold(Seq(9));
        assert_eq!(holds.lowest(), Some(Seq(4)));
        first.narrow(Seq(12));
        assert_eq!(holds.lowest(), Some(Seq(9)));
        drop(second);
        assert_eq!(holds.lowest(), Some(Seq(12)));
        drop(first);
        assert_eq!(holds.lowest(), None);
    }
}
