//! The only reader of time.
//!
//! Owns: wall-clock timestamps, as files carry them, the monotonic time that deadlines and pacing use, and how long the
//! machine has been up; waiting.
//! Does not own: what is done at which time. Pure modules take a time as a parameter. Spans that outlive a mount: `meta::steady`.

use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

#[cfg(test)]
pub(crate) mod simulated;

/// A point in wall-clock time as `stat(2)` has it. In JSON `[seconds, nanoseconds]` (FORMATS.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "(i64, u32)", into = "(i64, u32)")]
pub struct Timestamp {
    secs: i64,
    nanos: u32,
}

/// Nanoseconds that are not below one second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a count of nanoseconds below 1,000,000,000")]
pub struct InvalidNanos(pub u32);

impl Timestamp {
    /// 1 January 1970, 00:00 UTC.
    pub const EPOCH: Timestamp = Timestamp { secs: 0, nanos: 0 };

    /// Returns the time `secs` (may be negative) and `nanos` (0 … 999,999,999) after 1970.
    pub fn new(secs: i64, nanos: u32) -> Result<Timestamp, InvalidNanos> {
        if nanos < 1_000_000_000 { Ok(Timestamp { secs, nanos }) } else { Err(InvalidNanos(nanos)) }
    }

    /// Whole seconds since 1970, rounded down.
    pub fn secs(self) -> i64 {
        self.secs
    }

    /// Time from `earlier` to this; zero if that is later.
    pub fn since(self, earlier: Timestamp) -> Duration {
        let (this, that) = (std::time::SystemTime::from(self), std::time::SystemTime::from(earlier));
        this.duration_since(that).unwrap_or_default()
    }

    /// Nanoseconds after [`Timestamp::secs`], 0 … 999,999,999.
    pub fn nanos(self) -> u32 {
        self.nanos
    }
}

impl TryFrom<(i64, u32)> for Timestamp {
    type Error = InvalidNanos;

    fn try_from((secs, nanos): (i64, u32)) -> Result<Timestamp, InvalidNanos> {
        Timestamp::new(secs, nanos)
    }
}

impl From<Timestamp> for (i64, u32) {
    fn from(time: Timestamp) -> (i64, u32) {
        (time.secs, time.nanos)
    }
}

impl From<std::time::SystemTime> for Timestamp {
    fn from(time: std::time::SystemTime) -> Timestamp {
        match time.duration_since(std::time::UNIX_EPOCH) {
            Ok(after) => Timestamp { secs: after.as_secs() as i64, nanos: after.subsec_nanos() },
            Err(before) => {
                let before = before.duration();
                let secs = -(before.as_secs() as i64);
                match before.subsec_nanos() {
                    0 => Timestamp { secs, nanos: 0 },
                    nanos => Timestamp { secs: secs - 1, nanos: 1_000_000_000 - nanos },
                }
            }
        }
    }
}

impl From<Timestamp> for std::time::SystemTime {
    fn from(time: Timestamp) -> std::time::SystemTime {
        let nanos = Duration::from_nanos(time.nanos.into());
        if time.secs >= 0 {
            std::time::UNIX_EPOCH + Duration::from_secs(time.secs as u64) + nanos
        } else {
            std::time::UNIX_EPOCH - Duration::from_secs(time.secs.unsigned_abs()) + nanos
        }
    }
}

/// Time since some fixed point of this process: never jumps, not comparable across processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(Duration);

impl Instant {
    /// The start; also what tests count from.
    pub const START: Instant = Instant(Duration::ZERO);

    /// Time that passed since `earlier`; zero if that is later.
    pub fn since(self, earlier: Instant) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, duration: Duration) -> Instant {
        Instant(self.0.saturating_add(duration))
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;

    fn sub(self, duration: Duration) -> Instant {
        Instant(self.0.saturating_sub(duration))
    }
}

/// Where the wall-clock time of a simulated world begins: after every time that the disk gives a file.
#[cfg(test)]
const SIMULATED_FROM: i64 = 4_102_444_800;

/// Returns the wall-clock time.
pub fn now() -> Timestamp {
    #[cfg(test)]
    if let Some(passed) = simulated::now() {
        return Timestamp { secs: SIMULATED_FROM + passed.as_secs() as i64, nanos: passed.subsec_nanos() };
    }
    let now = Timestamp::from(std::time::SystemTime::now());
    Timestamp { secs: now.secs.saturating_add(jumped()), ..now }
}

/// Names a file with the number of seconds by which the wall clock is wrong: a test lets it jump. Not in release builds.
pub const JUMP_VARIABLE: &str = "TANDEMFS_CLOCK_JUMP";

#[cfg(debug_assertions)]
fn jumped() -> i64 {
    static FILE: std::sync::OnceLock<Option<std::path::PathBuf>> = std::sync::OnceLock::new();
    let Some(file) = FILE.get_or_init(|| std::env::var_os(JUMP_VARIABLE).map(Into::into)) else { return 0 };
    std::fs::read_to_string(file).ok().and_then(|seconds| seconds.trim().parse().ok()).unwrap_or(0)
}

#[cfg(not(debug_assertions))]
fn jumped() -> i64 {
    0
}

/// Returns for how long the machine has been up, times of sleep included. No setting of the wall clock moves it; it begins
/// anew with each boot.
pub fn uptime() -> Duration {
    #[cfg(test)]
    if let Some(passed) = simulated::now() {
        return passed + Duration::from_secs(3600);
    }
    let up = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(up.tv_sec.max(0) as u64, u32::try_from(up.tv_nsec).unwrap_or(0))
}

/// Returns which boot of the machine this is, as the kernel names it.
pub fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Returns the minute of the day in local time, 0 … 1,439.
pub fn minute_of_day() -> u16 {
    let now = now().secs();
    // SAFETY: all zeros is a valid `tm`; `localtime_r(3)` reads the one argument and fills the other.
    let local = unsafe {
        let mut local: libc::tm = std::mem::zeroed();
        // On failure (a year that does not fit) it stays at midnight.
        libc::localtime_r(&now, &raw mut local);
        local
    };
    u16::try_from(local.tm_hour * 60 + local.tm_min).unwrap_or(0)
}

/// Returns the monotonic time.
pub fn instant() -> Instant {
    #[cfg(test)]
    if let Some(passed) = simulated::now() {
        return Instant(passed + Duration::from_secs(3600));
    }
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    // An hour in hand, so that "earlier than the start" can be written as a subtraction.
    Instant(START.get_or_init(std::time::Instant::now).elapsed() + Duration::from_secs(3600))
}

/// Waits so long. Must be called within a tokio runtime.
pub async fn sleep(duration: Duration) {
    #[cfg(test)]
    if simulated::is_on() {
        return simulated::sleep(duration).await;
    }
    tokio::time::sleep(duration).await;
}

/// Something took too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed;

/// Waits for `future`, but no longer than `duration`. Must be called within a tokio runtime.
pub async fn timeout<T>(duration: Duration, future: impl Future<Output = T>) -> Result<T, Elapsed> {
    #[cfg(test)]
    if simulated::is_on() {
        return tokio::select! {
            biased;
            value = future => Ok(value),
            () = simulated::sleep(duration) => Err(Elapsed),
        };
    }
    tokio::time::timeout(duration, future).await.map_err(|_| Elapsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_fraction() {
        let time = Timestamp::new(-2, 250_000_000).unwrap();
        assert_eq!(Timestamp::from(std::time::SystemTime::from(time)), time);
        assert_eq!(Timestamp::new(0, 1_000_000_000), Err(InvalidNanos(1_000_000_000)));
    }
}
