//! The gate of one target: whether anything may be written to it, decided by the check of its identity (T1, T7).
//!
//! Owns: the verdict's type and its two ends: one keeper that decides, any number of watchers that obey.
//! Does not own: the check (`replication::contact`), health and pacing (`replication::health`).
//!
//! ```text
//! Unknown ──contact──▶ Open | Blocked | Fenced          the keeper (contact)
//!    ▲─────lost──────────┘                              a watcher that lost the target, or found it again (driver)
//! ```
//!
//! A target that has not been contacted gets no put: it might be an empty mount point, or another filesystem's place.

use std::sync::Arc;

use crate::news as watch;
use tokio::sync::Notify;

/// Whether a target may be written to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Gate {
    /// Its identity is not checked yet, or has to be checked again.
    #[default]
    Unknown,
    /// It is the place we think it is, and ours to write.
    Open,
    /// It cannot be used until an operator acts: another filesystem's place, an unmounted disk, refused credentials.
    Blocked {
        /// What is wrong, in words.
        reason: String,
        /// What to do about it.
        hint: String,
    },
    /// Another writer holds it (T7): nothing is shipped there any more.
    Fenced {
        /// Who, since when.
        reason: String,
        /// The command that resolves it.
        hint: String,
    },
}

/// The keeper's end: says what the gate is. Dropping it leaves the gate as it was.
#[derive(Debug)]
pub struct GateKeeper {
    state: watch::Sender<Gate>,
    asked: Arc<Notify>,
}

/// A watcher's end.
#[derive(Debug, Clone)]
pub struct GateWatch {
    state: watch::Receiver<Gate>,
    sender: watch::Sender<Gate>,
    asked: Arc<Notify>,
}

/// Makes the gate of one target, in the given state.
pub fn gate(state: Gate) -> (GateKeeper, GateWatch) {
    let sender = watch::Sender::new(state);
    let asked = Arc::new(Notify::new());
    let watcher = GateWatch { state: sender.subscribe(), sender: sender.clone(), asked: Arc::clone(&asked) };
    (GateKeeper { state: sender, asked }, watcher)
}

impl GateKeeper {
    /// Sets the gate.
    pub fn set(&self, gate: Gate) {
        self.state.send_if_modified(|state| {
            let changed = *state != gate;
            *state = gate;
            changed
        });
    }

    /// The gate as it is.
    pub fn state(&self) -> Gate {
        self.state.borrow().clone()
    }

    /// Waits until a watcher asks for a new check ([`GateWatch::recheck`]) or for work ([`GateWatch::nudge`]); requests that
    /// came meanwhile count as one.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }

    /// One more watcher.
    pub fn watch(&self) -> GateWatch {
        GateWatch { state: self.state.subscribe(), sender: self.state.clone(), asked: Arc::clone(&self.asked) }
    }
}

impl GateWatch {
    /// The gate as it is.
    pub fn state(&self) -> Gate {
        self.state.borrow().clone()
    }

    /// Waits until the gate changes and returns it.
    pub async fn changed(&mut self) -> Gate {
        // Never an error: `self.sender` keeps the channel open.
        let _ = self.state.changed().await;
        self.state.borrow_and_update().clone()
    }

    /// A keeper for this gate, after the one before has gone.
    pub fn keeper(&self) -> GateKeeper {
        GateKeeper { state: self.sender.clone(), asked: Arc::clone(&self.asked) }
    }

    /// Wakes the keeper, which looks for work of its own; the gate stays as it is.
    pub fn nudge(&self) {
        self.asked.notify_one();
    }

    /// Says that contact was lost: an open gate becomes unknown at once, and the keeper is asked to check again (T1: the
    /// identity is read at every reconnect).
    pub fn recheck(&self) {
        self.sender.send_if_modified(|state| {
            let was_open = *state == Gate::Open;
            if was_open {
                *state = Gate::Unknown;
            }
            was_open
        });
        self.asked.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lost_target_is_checked_again_before_the_next_put() {
        let (keeper, mut watch) = gate(Gate::Unknown);
        keeper.set(Gate::Open);
        assert_eq!(watch.changed().await, Gate::Open);
        watch.recheck();
        assert_eq!(keeper.state(), Gate::Unknown);
        keeper.asked().await;
        assert_eq!(watch.changed().await, Gate::Unknown);
    }

    #[tokio::test]
    async fn a_new_check_does_not_open_a_fenced_gate() {
        let fenced = Gate::Fenced { reason: "written by nas2".into(), hint: String::new() };
        let (keeper, watch) = gate(fenced.clone());
        watch.recheck();
        assert_eq!(keeper.state(), fenced);
    }
}
