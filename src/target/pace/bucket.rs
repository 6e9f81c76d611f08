//! A token bucket by the generic cell rate algorithm (ITU-T I.371): one point in time says all. Pure.
//!
//! Owns: when so many bytes may go. Does not own: waiting until then (`super`), which rate holds now (`schedule`).

use std::time::Duration;

use super::schedule::Rate;
use crate::clock::Instant;

/// Bytes that were not sent lately may be sent at once, as many as go in this time.
const BURST: Duration = Duration::from_millis(250);

/// The bytes of a link that were spent, as the time until which they last.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    rate: Rate,
    /// Everything reserved so far is sent by then, at the rate of its time.
    spent_until: Instant,
}

/// When reserved bytes may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// After this long, perhaps zero. They are paid for.
    After(Duration),
    /// Not before the rate changes. Nothing was paid.
    Closed,
}

impl Bucket {
    pub(super) fn new(rate: Rate) -> Bucket {
        Bucket { rate, spent_until: Instant::START }
    }

    /// Changes the rate. What waits has no turn any more and must reserve again; what went is paid for, but for its last
    /// bytes.
    pub(super) fn set_rate(&mut self, rate: Rate, now: Instant) {
        self.rate = rate;
        self.spent_until = self.spent_until.min(now);
    }

    pub(super) fn rate(&self) -> Rate {
        self.rate
    }

    /// How long what is reserved by now waits; zero when a frame could go at once.
    pub(super) fn busy(&self, now: Instant) -> Duration {
        match self.rate {
            Rate::Unlimited | Rate::Closed => Duration::ZERO,
            Rate::PerSecond(_) => self.spent_until.since(now),
        }
    }

    /// How long the link needs for `bytes`.
    pub(super) fn takes(&self, bytes: u64) -> Duration {
        match self.rate {
            Rate::Unlimited | Rate::Closed => Duration::ZERO,
            Rate::PerSecond(rate) => {
                // Nanoseconds in 128 bits: exact for any object at any rate.
                let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.get());
                Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
            }
        }
    }

    /// Reserves `bytes` and tells when they may go.
    pub(super) fn reserve(&mut self, bytes: u64, now: Instant) -> Turn {
        match self.rate {
            Rate::Unlimited => return Turn::After(Duration::ZERO),
            Rate::Closed => return Turn::Closed,
            Rate::PerSecond(_) => {}
        }
        let start = self.spent_until.max(now - BURST);
        self.spent_until = start + self.takes(bytes);
        Turn::After(start.since(now))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(bytes_per_second: u64) -> Rate {
        Rate::per_second(bytes_per_second).unwrap()
    }

    #[test]
    fn a_closed_bucket_takes_nothing_and_an_open_one_everything() {
        let now = Instant::START + Duration::from_secs(10);
        let mut bucket = Bucket::new(Rate::Closed);
        assert_eq!(bucket.reserve(1, now), Turn::Closed);
        bucket.set_rate(Rate::Unlimited, now);
        assert_eq!(bucket.reserve(u64::MAX, now), Turn::After(Duration::ZERO));
        bucket.set_rate(rate(1 << 20), now);
        assert_eq!(bucket.reserve(1 << 20, now), Turn::After(Duration::ZERO), "unlimited bytes are not paid for later");
        assert_eq!(bucket.reserve(1, now), Turn::After(Duration::from_millis(750)));
        bucket.set_rate(rate(2 << 20), now);
        assert_eq!(bucket.reserve(1 << 20, now), Turn::After(Duration::ZERO), "who waited reserves anew");
        assert_eq!(bucket.reserve(1, now), Turn::After(Duration::from_millis(500)));
    }

    proptest! {
        /// In any span of time at most the rate times the span goes, and a burst, and one reservation.
        #[test]
        fn no_span_has_more_than_its_share(
            steps in prop::collection::vec((0u64..2_000, 1u64..200_000), 1..60),
        ) {
            const RATE: u64 = 100_000;
            let mut bucket = Bucket::new(rate(RATE));
            let mut now = Instant::START + Duration::from_secs(100);
            let mut sent: Vec<(Instant, u64)> = Vec::new();
            for (pause_ms, bytes) in steps {
                now = now + Duration::from_millis(pause_ms);
                let Turn::After(wait) = bucket.reserve(bytes, now) else { panic!("closed") };
                sent.push((now + wait, bytes));
            }
            for (first, (begin, _)) in sent.iter().enumerate() {
                let mut total = 0;
                for (end, bytes) in &sent[first..] {
                    // All but the last of the span are paid within it.
                    let span = end.since(*begin) + BURST;
                    prop_assert!(total as f64 <= span.as_secs_f64() * RATE as f64 + 1.0, "{total} in {span:?}");
                    total += bytes;
                }
            }
        }

        /// Who always has something to send sends at the rate.
        #[test]
        fn a_busy_link_is_used(bytes in 1u64..100_000, count in 10u64..200) {
            const RATE: u64 = 50_000;
            let mut bucket = Bucket::new(rate(RATE));
            let start = Instant::START + Duration::from_secs(100);
            let mut now = start;
            for _ in 0..count {
                let Turn::After(wait) = bucket.reserve(bytes, now) else { panic!("closed") };
                now = now + wait;
            }
            let ideal = (bytes * (count - 1)) as f64 / RATE as f64;
            let took = now.since(start).as_secs_f64();
            prop_assert!(took <= ideal + 1e-6 && took >= ideal - BURST.as_secs_f64() - 1e-6, "{took} against {ideal}");
        }
    }
}
