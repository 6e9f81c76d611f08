//! Compaction as the mount runs it: a thread of its own that stands back.
//!
//! Owns: its pace.
//! Does not own: what is rewritten, and how (`crate::compaction`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::clock;
use crate::compaction::plan::Policy;
use crate::compaction::{Compactor, Outcome};
use crate::config::Compaction;
use crate::priority;

/// An area of a file in more pieces than this is rewritten (S10).
const PIECES_MAX: usize = 128;
/// After a rewrite it rests this many times as long as that took: a quarter of one core and of the disk.
const REST: u32 = 3;
/// After looking, a twentieth.
const LOOK_REST: u32 = 19;
/// While there is nothing to do it looks at most, and at least, this often.
const IDLE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// The policy of a configuration.
pub fn policy(config: &Compaction, chunk_size: u64) -> Policy {
    Policy {
        chunk_size,
        rate: config.rate,
        min_garbage: config.min_garbage,
        quiet: config.quiet,
        settle: config.quiet / 10,
        pieces_max: PIECES_MAX,
        lag_max: config.lag_max,
    }
}

/// Works until `stop`; not while `can_wait` says that this can wait.
pub fn run(mut compactor: Compactor, quiet: Duration, stop: &AtomicBool, can_wait: impl Fn() -> bool) {
    priority::stand_back();
    let idle = (quiet / 20).clamp(IDLE.0, IDLE.1);
    while !stop.load(Ordering::Acquire) {
        priority::wait_while(stop, &can_wait);
        let began = clock::instant();
        let outcome = compactor.round(began);
        let took = clock::instant().since(began);
        let rest = match outcome {
            Ok(Outcome::Wrote(bytes)) => {
                tracing::debug!(bytes, "what is left of nearly empty chunks was rewritten");
                (took * REST).max(Duration::from_millis(20))
            }
            Ok(Outcome::Walked) => took * LOOK_REST,
            Ok(Outcome::Idle | Outcome::Held(_)) => idle.max(took * LOOK_REST),
            Err(error) => {
                tracing::warn!(%error, "nothing could be rewritten, will be tried again");
                IDLE.1
            }
        };
        let until = clock::instant() + rest;
        while !stop.load(Ordering::Acquire) && clock::instant() < until {
            std::thread::park_timeout(until.since(clock::instant()));
        }
    }
}
