//! How much local space the chunk files use, and whether a write may take more (D1, D2).
//!
//! Owns: the count of used bytes, the decision to let a write go, slow it down or make it wait.
//! Does not own: freeing space (`chunk::evict`), waiting (`vfs::io`).
//!
//! ```text
//! used   0 ───────────── 80 % ────────────── 90 % ─────────────── 100 %
//!        go              evict in background  each write waits     wait for space, then ENOSPC
//! ```

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// The longest delay of a write before the limit is reached.
const DELAY_MAX: Duration = Duration::from_millis(200);

/// Limits of local space, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Chunk files together.
    pub used_max: u64,
    /// Left free on the state filesystem for metadata, whatever `used_max` says.
    pub free_min: u64,
}

/// What a write has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Write now.
    Go,
    /// Write after this delay: the cache fills with bytes that no target has yet.
    Delay(Duration),
    /// Wait until space is freed; `ENOSPC` when that takes too long.
    Full,
}

/// Local space of one state directory.
#[derive(Debug)]
pub struct Space {
    limits: Limits,
    state_dir: PathBuf,
    used: AtomicI64,
    /// Free bytes of the state filesystem when last asked.
    free: AtomicU64,
    /// Told when the background shall evict.
    pub pressure: Notify,
    /// Told when space was freed.
    pub freed: Notify,
}

impl Space {
    /// The space below `state_dir`, of which `used` bytes are in use.
    pub fn new(state_dir: &Path, limits: Limits, used: u64) -> Space {
        let space = Space {
            limits,
            state_dir: state_dir.to_owned(),
            used: AtomicI64::new(used as i64),
            free: AtomicU64::new(u64::MAX),
            pressure: Notify::new(),
            freed: Notify::new(),
        };
        space.sample();
        space
    }

    /// Asks the state filesystem how much is free. Cheap, yet not for every write: a timer does it.
    pub fn sample(&self) {
        if let Ok(statfs) = rustix::fs::statvfs(&self.state_dir) {
            self.free.store(statfs.f_bavail.saturating_mul(statfs.f_frsize), Ordering::Relaxed);
        }
    }

    /// Counts `bytes` more (or fewer) as used.
    pub fn add(&self, bytes: i64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        if bytes < 0 {
            self.freed.notify_waiters();
        } else if self.wants_eviction() {
            self.pressure.notify_one();
        }
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed).max(0) as u64
    }

    /// The limits.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Decides on a write of `bytes` bytes.
    pub fn admit(&self, bytes: u64) -> Admission {
        let admission = admit(self.limits, self.used(), self.free.load(Ordering::Relaxed), bytes);
        if admission != Admission::Go {
            self.pressure.notify_one();
        }
        admission
    }

    /// True while eviction should go on.
    pub fn wants_eviction(&self) -> bool {
        self.used() > self.limits.used_max / 10 * 8
            || self.free.load(Ordering::Relaxed) < self.limits.free_min.saturating_mul(2)
    }
}

fn admit(limits: Limits, used: u64, free: u64, bytes: u64) -> Admission {
    let after = used.saturating_add(bytes);
    if after > limits.used_max || free < limits.free_min.saturating_add(bytes) {
        return Admission::Full;
    }
    let threshold = limits.used_max / 10 * 9;
    if after <= threshold {
        return Admission::Go;
    }
    // From nothing at 90 % to the longest delay at 100 %.
    let share = (after - threshold) as f64 / (limits.used_max - threshold).max(1) as f64;
    Admission::Delay(DELAY_MAX.mul_f64(share))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { used_max: 1000, free_min: 50 };

    #[test]
    fn d2_writes_slow_down_before_the_limit_and_stop_at_it() {
        assert_eq!(admit(LIMITS, 0, 5000, 900), Admission::Go);
        assert_eq!(admit(LIMITS, 900, 5000, 50), Admission::Delay(DELAY_MAX / 2));
        assert_eq!(admit(LIMITS, 900, 5000, 100), Admission::Delay(DELAY_MAX));
        assert_eq!(admit(LIMITS, 900, 5000, 101), Admission::Full);
    }

    #[test]
    fn d2_metadata_keeps_its_reserve_on_a_full_disk() {
        assert_eq!(admit(LIMITS, 0, 60, 10), Admission::Go);
        assert_eq!(admit(LIMITS, 0, 59, 10), Admission::Full);
    }
}
