//! The end of a mount (D7), whichever way it comes.
//!
//! Owns: what is asked of the main loop by `umount`, a new mount and signals, and what came of it.
//! Does not own: draining (`drain`), taking the mount away (`unmount`), stopping parts (`daemon`).
//!
//! ```text
//! tandemfs umount ─▶ drain ─▶ unmount ─┐
//! SIGTERM, SIGINT ─▶ unmount (lazily after 5 s) ─┼─▶ session ends ─▶ drain the rest, bounded ─▶ outcome ─▶ exit
//! umount(8), fusermount3 ──────────────┘                              ▲
//! a new mount on the state directory ──────── hand over: stop at once ┘
//! ```

use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::control::{Error, Unmounted};

/// How long `tandemfs umount` goes on after the unmount.
pub const REST_AFTER_UMOUNT: Duration = Duration::from_secs(60);

/// What the answers and the main loop tell each other.
#[derive(Debug)]
pub struct Ending {
    /// How long to bring targets up to date after the mount is gone.
    rest: watch::Sender<Duration>,
    /// The mount is gone.
    unmounted: watch::Sender<bool>,
    /// What came of it.
    outcome: watch::Sender<Option<Result<Unmounted, Error>>>,
    /// Stop draining at once.
    hand_over: Notify,
}

impl Ending {
    /// Nothing has ended yet; after the unmount `rest` is spent on targets.
    pub fn new(rest: Duration) -> Ending {
        Ending {
            rest: watch::Sender::new(rest),
            unmounted: watch::Sender::new(false),
            outcome: watch::Sender::new(None),
            hand_over: Notify::new(),
        }
    }

    /// How long to bring targets up to date after the mount is gone.
    pub fn rest(&self) -> Duration {
        *self.rest.borrow()
    }

    /// Changes that.
    pub fn set_rest(&self, rest: Duration) {
        self.rest.send_replace(rest);
    }

    /// True once the mount is gone.
    pub fn is_unmounted(&self) -> bool {
        *self.unmounted.borrow()
    }

    /// Waits until the mount is gone.
    pub async fn unmounted(&self) {
        // Never an error: `self` holds the sender.
        let _ = self.unmounted.subscribe().wait_for(|gone| *gone).await;
    }

    /// The mount is gone.
    pub fn set_unmounted(&self) {
        self.unmounted.send_replace(true);
    }

    /// A new mount wants the state directory.
    pub fn ask_to_hand_over(&self) {
        self.hand_over.notify_one();
    }

    /// Waits until a new mount wants the state directory.
    pub async fn hand_over_asked(&self) {
        self.hand_over.notified().await;
    }

    /// Tells everybody what came of it.
    pub fn set_outcome(&self, outcome: Result<Unmounted, Error>) {
        self.outcome.send_replace(Some(outcome));
    }

    /// Waits for what came of it.
    pub async fn outcome(&self) -> Result<Unmounted, Error> {
        let mut outcome = self.outcome.subscribe();
        let seen = outcome.wait_for(Option::is_some).await;
        // Never an error: `self` holds the sender.
        seen.ok().and_then(|outcome| outcome.clone()).unwrap_or_else(|| Err(Error::failed("the daemon ended")))
    }
}
