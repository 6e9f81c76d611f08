//! How much local space the chunk files use, and whether a write may take more (D1, D2).
//!
//! Owns: the count of used bytes, the decision to let a write go, slow it down or make it wait.
//! Does not own: freeing space (`chunk::evict`), waiting (`vfs::io`), the file that keeps the reserve (`reserve`).
//!
//! ```text
//! used   0 ───────────── 80 % ────────────── 90 % ─────────────── 100 %
//!        go              evict in background  each write waits     wait for space, then ENOSPC
//!
//! free   ───────── 2 × margin ──────── margin ──────── half of it ──────── 0
//!        go         evict       writes wait      the reserve is given up: room for metadata, placing and deletes
//!                               (and until the reserve is whole again)
//! ```
//!
//! A disk may refuse bytes while it says that there is room: a quota. Then a share of the cache goes; and if metadata found no
//! room, writers wait until the reserve is whole again.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::sync::Notify;

use super::reserve::Reserve;
use crate::clock::{self, Instant};

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

/// Of the disk, this share at most is kept back for metadata.
const RESERVE_SHARE: u64 = 8;
/// With less room than this a mount begins with giving up the reserve.
const START_MIN: u64 = 16 << 20;
/// Of inodes of the state filesystem, this share is kept free by evicting.
const INODES_SHARE: u64 = 50;
/// Of the cache, this share is evicted when the disk refuses what it seems to have room for, and so many bytes at least.
const DENIED_SHARE: u64 = 16;
const DENIED_MIN: u64 = 16 << 20;
/// For so long a refusal counts.
const DENIED_FOR: Duration = Duration::from_secs(10);

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
    /// Free bytes of the state filesystem when last asked, less what was admitted since.
    free: AtomicU64,
    /// Few inodes of the state filesystem were free when last asked.
    inodes_short: AtomicBool,
    /// Bytes to be evicted since the disk refused some, whatever it says is free.
    to_free: AtomicI64,
    /// Metadata was refused by a quota, and has the reserve: it is made again before anybody writes.
    by_quota: AtomicBool,
    /// Until then what the disk refused last counts.
    denied_until: Mutex<Instant>,
    denied_for: Duration,
    wait: Duration,
    reserve: Reserve,
    /// Of a reserve that cannot be made (not every filesystem preallocates) is told once.
    complained: AtomicBool,
    /// Told when the background shall evict.
    pub pressure: Notify,
    /// Told when space was freed.
    pub freed: Notify,
}

impl Space {
    /// The space below `state_dir`, of which `used` bytes are in use.
    pub fn new(state_dir: &Path, limits: Limits, used: u64) -> Space {
        Space::with_reserve(state_dir, limits, used, 0)
    }

    /// The space below `state_dir`, on a disk that others share: `reserve` bytes of it are kept for metadata, less on a
    /// small disk. They are not allocated before [`Space::tend`]. Writes wait for space as long as `wait`.
    pub fn reserved(state_dir: &Path, used_max: u64, used: u64, reserve: u64, wait: Duration) -> Space {
        let disk = rustix::fs::statvfs(state_dir).map_or(u64::MAX, |disk| disk.f_blocks.saturating_mul(disk.f_frsize));
        let reserve = reserve.min(disk / RESERVE_SHARE);
        // What a moment's writes of others and the metadata of ours may take before anybody looks again.
        let free_min = (reserve / 4).clamp(1 << 20, 64 << 20);
        Space { wait, ..Space::with_reserve(state_dir, Limits { used_max, free_min }, used, reserve) }
    }

    fn with_reserve(state_dir: &Path, limits: Limits, used: u64, reserve: u64) -> Space {
        let space = Space {
            limits,
            state_dir: state_dir.to_owned(),
            used: AtomicI64::new(used as i64),
            free: AtomicU64::new(u64::MAX),
            inodes_short: AtomicBool::new(false),
            to_free: AtomicI64::new(0),
            by_quota: AtomicBool::new(false),
            denied_until: Mutex::new(Instant::START),
            denied_for: DENIED_FOR,
            wait: Duration::from_secs(10),
            reserve: Reserve::new(state_dir, reserve),
            complained: AtomicBool::new(false),
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
            // Filesystems that make inodes as they need them say 0 of 0.
            let short = statfs.f_files > 0 && statfs.f_favail < statfs.f_files / INODES_SHARE;
            if short && !self.inodes_short.swap(short, Ordering::Relaxed) {
                self.pressure.notify_one();
            }
            self.inodes_short.store(short, Ordering::Relaxed);
        }
    }

    /// Samples, gives the reserve up when the disk is nearly full, and makes it again when there is room: for a timer.
    pub fn tend(&self) {
        self.sample();
        let free = self.free.load(Ordering::Relaxed);
        if !self.is_denied() {
            self.to_free.store(0, Ordering::Relaxed);
        }
        let denied = self.to_free.load(Ordering::Relaxed) > 0;
        if self.reserve.is_held() {
            if free < self.limits.free_min / 2 {
                self.give_up_reserve();
            }
        } else if !denied && free >= self.limits.free_min.saturating_mul(2).saturating_add(self.reserve.bytes()) {
            match self.reserve.make() {
                Ok(()) => {
                    self.by_quota.store(false, Ordering::Relaxed);
                    self.sample();
                }
                Err(error) => {
                    if !self.complained.swap(true, Ordering::Relaxed) {
                        tracing::warn!(%error, "no reserve for metadata can be allocated: as much is left free instead");
                    }
                }
            }
        }
    }

    /// A write found no room on the disk: look, and evict.
    pub fn wanted(&self) {
        self.sample();
        self.pressure.notify_one();
    }

    /// A transaction found the disk full: metadata gets the reserve, writers wait until it is whole again.
    pub fn found_full(&self, by_quota: bool) {
        self.by_quota.fetch_or(by_quota, Ordering::Relaxed);
        if self.give_up_reserve() && by_quota {
            // What a file held counts for some quotas (btrfs) until the change is on disk.
            let synced = std::fs::File::open(&self.state_dir).and_then(|dir| Ok(rustix::fs::syncfs(dir)?));
            if let Err(error) = synced {
                tracing::warn!(%error, "the state filesystem could not be synced");
            }
        }
        self.sample();
        self.denied();
    }

    /// The disk refused bytes: some of the cache goes, even if the disk says that there is room (a quota).
    pub fn denied(&self) {
        *self.denied_until.lock() = clock::instant() + self.denied_for;
        self.to_free.store((self.used() / DENIED_SHARE).max(DENIED_MIN) as i64, Ordering::Relaxed);
        self.pressure.notify_one();
    }

    fn is_denied(&self) -> bool {
        clock::instant() < *self.denied_until.lock()
    }

    /// True if so many bytes can fit at all, once everything that may go is gone.
    pub fn could_hold(&self, bytes: u64) -> bool {
        let disk = rustix::fs::statvfs(&self.state_dir);
        let disk = disk.map_or(u64::MAX, |disk| disk.f_blocks.saturating_mul(disk.f_frsize));
        bytes <= self.limits.used_max && bytes.saturating_add(self.free_min()) <= disk
    }

    /// True if there was one.
    fn give_up_reserve(&self) -> bool {
        match self.reserve.release() {
            Ok(true) => {
                tracing::warn!(bytes = self.reserve.bytes(), "the disk is full: the reserve goes to metadata");
                self.sample();
                true
            }
            Ok(false) => false,
            Err(error) => {
                tracing::error!(%error, "the disk is full, and the reserve for metadata cannot be given up");
                false
            }
        }
    }

    /// Free bytes that writes must leave.
    fn free_min(&self) -> u64 {
        // Room that was kept for metadata is not for content.
        let missing = if self.reserve.is_held() { 0 } else { self.reserve.bytes() };
        self.limits.free_min.saturating_add(missing)
    }

    /// Counts `bytes` more (or fewer) as used.
    pub fn add(&self, bytes: i64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        if bytes < 0 {
            self.to_free.fetch_add(bytes, Ordering::Relaxed);
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

    /// How long a write waits for space before it is `ENOSPC` (D2).
    pub fn wait(&self) -> Duration {
        self.wait
    }

    /// What a write gets that waited for space in vain.
    pub fn refusal(&self) -> Errno {
        if self.by_quota.load(Ordering::Relaxed) { Errno::DQUOT } else { Errno::NOSPC }
    }

    /// Decides on a write of `bytes` bytes.
    pub fn admit(&self, bytes: u64) -> Admission {
        let limits = Limits { free_min: self.free_min(), ..self.limits };
        let admission = match self.by_quota.load(Ordering::Relaxed) {
            true => Admission::Full,
            false => admit(limits, self.used(), self.free.load(Ordering::Relaxed), bytes),
        };
        if admission != Admission::Go {
            self.pressure.notify_one();
        }
        if admission != Admission::Full {
            // Until the next sample this is the best there is to know.
            let less = |free: u64| Some(free.saturating_sub(bytes));
            let _ = self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
        admission
    }

    /// True if a program may be let write unseen (D2): nothing slows it down before the disk is full.
    pub fn has_room_to_spare(&self) -> bool {
        let limits = Limits { free_min: self.free_min(), ..self.limits };
        self.to_free.load(Ordering::Relaxed) <= 0
            && has_room_to_spare(limits, self.used(), self.free.load(Ordering::Relaxed))
    }

    /// True while eviction should go on.
    pub fn wants_eviction(&self) -> bool {
        self.used() > self.limits.used_max / 10 * 8
            || self.free.load(Ordering::Relaxed) < self.free_min().saturating_mul(2)
            || self.inodes_short.load(Ordering::Relaxed)
            || self.to_free.load(Ordering::Relaxed) > 0
    }
}

/// Makes sure that a mount finds room for its first transactions on a disk that is full.
pub fn room_to_start(state_dir: &Path) -> std::io::Result<()> {
    let disk = rustix::fs::statvfs(state_dir)?;
    let short = disk.f_bavail.saturating_mul(disk.f_frsize) < START_MIN;
    // Of a quota only a try tells.
    if short || Reserve::find_room(state_dir, START_MIN)?.is_none() {
        Reserve::give_up(state_dir)?;
    }
    Ok(())
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

/// Left at least where passthrough is granted; of a limit, a tenth if that is more.
const SPARE_MIN: u64 = 1 << 30;

fn has_room_to_spare(limits: Limits, used: u64, free: u64) -> bool {
    let of_limit = if limits.used_max == u64::MAX { 0 } else { limits.used_max / 10 };
    let spare = SPARE_MIN.max(of_limit);
    used.saturating_add(spare) <= limits.used_max && free >= limits.free_min.saturating_add(spare)
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
    fn d2_what_was_kept_for_metadata_is_not_for_content() {
        let dir = tempfile::tempdir().unwrap();
        let space = Space::with_reserve(dir.path(), Limits { used_max: u64::MAX, free_min: 1 << 20 }, 0, 8 << 20);
        assert_eq!(space.free_min(), 9 << 20, "before it is allocated");
        space.tend();
        assert_eq!(space.free_min(), 1 << 20);
        space.found_full(true);
        assert_eq!(space.free_min(), 9 << 20);
        assert!(!dir.path().join("reserve").exists());
        space.tend();
        assert!(
            !dir.path().join("reserve").exists(),
            "the disk said a moment ago that there is none: metadata goes first"
        );
        assert_eq!((space.admit(1), space.refusal()), (Admission::Full, Errno::DQUOT), "writers do not take it");
        *space.denied_until.lock() = Instant::START;
        space.tend();
        assert!(dir.path().join("reserve").exists(), "made again, as there is room");
        let free = space.free.load(Ordering::Relaxed);
        assert_eq!(space.admit(free - (1 << 20)), Admission::Go);
        assert_eq!(space.admit(1), Admission::Full, "what was admitted counts before the next sample");
    }

    #[test]
    fn d2_what_the_disk_refuses_is_evicted_for_a_while_whatever_it_says_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let space = Space::new(dir.path(), Limits { used_max: u64::MAX, free_min: 0 }, 1 << 30);
        assert!(!space.wants_eviction());
        space.denied();
        assert!(space.wants_eviction() && !space.has_room_to_spare());
        space.add(-(63 << 20));
        assert!(space.wants_eviction(), "a sixteenth of the cache goes");
        space.add(-(1 << 20));
        assert!(!space.wants_eviction());
        space.denied();
        space.tend();
        assert!(space.wants_eviction());
        *space.denied_until.lock() = Instant::START;
        space.tend();
        assert!(!space.wants_eviction(), "nothing could be evicted, and it is long ago");
        assert!(space.could_hold(1 << 20) && !space.could_hold(1 << 60));
    }

    #[test]
    fn d2_metadata_keeps_its_reserve_on_a_full_disk() {
        assert_eq!(admit(LIMITS, 0, 60, 10), Admission::Go);
        assert_eq!(admit(LIMITS, 0, 59, 10), Admission::Full);
    }

    #[test]
    fn d2_passthrough_needs_space_to_spare() {
        const GIB: u64 = 1 << 30;
        let limits = Limits { used_max: 20 * GIB, free_min: GIB };
        assert!(has_room_to_spare(limits, 18 * GIB, 3 * GIB));
        assert!(!has_room_to_spare(limits, 18 * GIB + 1, 3 * GIB), "a tenth of the limit");
        assert!(!has_room_to_spare(limits, 0, 3 * GIB - 1), "the reserve of the disk is not to spare");
        let unlimited = Limits { used_max: u64::MAX, free_min: 0 };
        assert!(has_room_to_spare(unlimited, 5 * GIB, GIB) && !has_room_to_spare(unlimited, 0, GIB - 1));
    }
}
