//! How long to wait after a failure: exponential with full jitter. Pure: the random number is passed in.
//!
//! Owns: the arithmetic. Does not own: what counts as a failure of whom (`health`).

use std::time::Duration;

/// A store's wish is honoured up to this: a header that asks for a year must not silence a target for a year.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(15 * 60);

/// The delays of one kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The longest delay after the first failure.
    pub base: Duration,
    /// The longest delay at all.
    pub max: Duration,
}

impl Backoff {
    /// The delay after `failures` failures in a row (at least one): uniform between zero and the ceiling, which doubles
    /// with each failure. Full jitter, so that many clients that failed together do not come back together. What the
    /// store itself asked for is waited out first.
    pub fn delay(&self, failures: u32, random: u64, retry_after: Option<Duration>) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let ceiling = self.base.saturating_mul(1 << doublings).min(self.max);
        // 53 bits: every value is exact in a double, and the fraction stays below one.
        let fraction = (random >> 11) as f64 / (1u64 << 53) as f64;
        retry_after.unwrap_or_default().min(RETRY_AFTER_MAX) + ceiling.mul_f64(fraction)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BACKOFF: Backoff = Backoff { base: Duration::from_millis(500), max: Duration::from_secs(60) };

    #[test]
    fn the_ceiling_doubles_up_to_the_maximum() {
        let ceilings = [1, 2, 3, 8, 100].map(|failures| BACKOFF.delay(failures, u64::MAX, None).as_secs_f64().round());
        assert_eq!(ceilings, [1.0, 1.0, 2.0, 60.0, 60.0]);
        assert_eq!(BACKOFF.delay(100, 0, None), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn a_store_that_names_a_time_is_not_asked_before_it(failures in 1..50u32, random: u64, secs in 0..2000u64) {
            let delay = BACKOFF.delay(failures, random, Some(Duration::from_secs(secs)));
            prop_assert!(delay >= Duration::from_secs(secs).min(RETRY_AFTER_MAX));
            prop_assert!(delay <= RETRY_AFTER_MAX + BACKOFF.max);
        }
    }
}
