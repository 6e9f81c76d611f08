//! Priority: what works behind the back of programs stands back when processors are few, and waits when it can.
//!
//! Owns: how far threads stand back, knowing whether programs are busy, for how long what can wait waits.
//! Does not own: which threads and which work (`write::pipeline`, `vfs::orphans`, `chunk::evict`, `replication`, `mount`).
//!
//! Programs work in bursts: a copy, a checkout, a removal. Sealing, sending and removing rows cost as much processor time
//! as the burst itself, and hold the writer of the metadata while programs want it. So that work waits until programs are
//! at rest for a moment, and no longer than `BURST_MAX` from when they began: from then on both go side by side, as long
//! as the burst lasts. Nothing waits for this that somebody waits for (`hurry`), or while local space is short.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Instant;

/// How much less a thread that stands back counts (nice(2)): about a tenth of one that a program waits for.
const NICENESS: i32 = 10;

/// Programs that asked for nothing for so long are at rest. Between two requests of a busy program there are some 50 µs.
const REST: Duration = Duration::from_millis(20);
/// So long after the beginning of a burst what can wait goes on beside it.
const BURST_MAX: Duration = Duration::from_secs(2);
/// How often what waits looks again.
pub const LOOK: Duration = Duration::from_millis(5);

/// Makes the calling thread stand back behind those that programs wait for.
///
/// On two processors a `cp -r` of small files otherwise shares them with the sealing and sending of the files before: a
/// half of all work is that. On Linux niceness belongs to the thread. Not for threads that hold what others wait for.
pub fn stand_back() {
    // It fails only for a value that is already higher: nothing to do then.
    let _ = rustix::process::nice(NICENESS);
}

/// When programs asked for something.
#[derive(Debug, Default)]
pub struct Programs {
    /// When last, and when the burst began that this belongs to: nanoseconds since [`Instant::START`], 0 = never.
    last: AtomicU64,
    began: AtomicU64,
}

impl Programs {
    /// A program asks for something.
    pub fn ask(&self, now: Instant) {
        let now = nanoseconds(now);
        let last = self.last.swap(now, Ordering::Relaxed);
        if last == 0 || now.saturating_sub(last) >= REST.as_nanos() as u64 {
            self.began.store(now, Ordering::Relaxed);
        }
    }

    /// True in a burst that is young: what can wait shall wait.
    pub fn are_busy(&self, now: Instant) -> bool {
        let now = nanoseconds(now);
        let since = |then: &AtomicU64| now.saturating_sub(then.load(Ordering::Relaxed));
        self.last.load(Ordering::Relaxed) > 0
            && since(&self.last) < REST.as_nanos() as u64
            && since(&self.began) < BURST_MAX.as_nanos() as u64
    }
}

fn nanoseconds(time: Instant) -> u64 {
    u64::try_from(time.since(Instant::START).as_nanos()).unwrap_or(u64::MAX).max(1)
}

/// Blocks a thread of the background while `busy` says so, or until `stop`.
pub fn wait_while(stop: &AtomicBool, busy: impl Fn() -> bool) {
    while busy() && !stop.load(Ordering::Acquire) {
        std::thread::park_timeout(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_calling_thread_stands_back() {
        let niceness = || rustix::process::getpriority_process(None).unwrap();
        let before = niceness();
        let behind = std::thread::spawn(move || {
            stand_back();
            niceness()
        });
        assert_eq!(behind.join().unwrap(), (before + NICENESS).min(19));
        assert_eq!(niceness(), before);
    }

    #[test]
    fn what_can_wait_waits_for_a_moment_of_rest() {
        let programs = Programs::default();
        let at = |millis: u64| Instant::START + Duration::from_millis(1000 + millis);
        assert!(!programs.are_busy(at(0)), "nobody asked for anything");
        programs.ask(at(0));
        assert!(programs.are_busy(at(0)) && programs.are_busy(at(19)));
        assert!(!programs.are_busy(at(20)), "at rest");
        programs.ask(at(15));
        assert!(programs.are_busy(at(30)));
    }

    #[test]
    fn what_can_wait_goes_on_beside_a_burst_that_does_not_end() {
        let programs = Programs::default();
        let at = |millis: u64| Instant::START + Duration::from_millis(1000 + millis);
        for millis in (0..10_000).step_by(10) {
            programs.ask(at(millis));
            assert_eq!(programs.are_busy(at(millis)), millis < 2000, "after {millis} ms");
        }
        assert!(!programs.are_busy(at(10_010)));
        programs.ask(at(10_010));
        assert!(programs.are_busy(at(10_010)), "the next burst is another one");
    }
}
