//! How many requests a target is given at a time: additive increase, multiplicative decrease. Pure.
//!
//! Owns: the number. Does not own: which requests these are (`queue`).

use crate::clock::Instant;

/// The adaptive bound on requests in flight to one target, between 1 and a hard maximum.
#[derive(Debug, Clone)]
pub struct Limit {
    current: u32,
    max: u32,
    /// Since the last change.
    successes: u32,
    cut_at: Instant,
}

impl Limit {
    /// Starts at half of `max`.
    pub fn new(max: u32) -> Limit {
        let max = max.max(1);
        Limit { current: max.div_ceil(2), max, successes: 0, cut_at: Instant::default() }
    }

    /// Requests that may be in flight.
    pub fn current(&self) -> u32 {
        self.current
    }

    /// A request succeeded: one more for each full round of successes.
    pub fn succeeded(&mut self) {
        self.successes += 1;
        if self.successes >= self.current {
            self.current = (self.current + 1).min(self.max);
            self.successes = 0;
        }
    }

    /// A request that began at `started` was throttled or failed: half as many. Requests that were in flight together fail
    /// together; they count once.
    pub fn overloaded(&mut self, now: Instant, started: Instant) {
        self.successes = 0;
        if started >= self.cut_at {
            self.current = (self.current / 2).max(1);
            self.cut_at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::START + Duration::from_millis(millis)
    }

    #[test]
    fn the_limit_grows_by_one_a_round_and_halves_once_a_burst() {
        let mut limit = Limit::new(8);
        for _ in 0..100 {
            limit.succeeded();
        }
        assert_eq!(limit.current(), 8);
        for _ in 0..8 {
            limit.overloaded(at(10), at(9));
        }
        assert_eq!(limit.current(), 4, "eight failures of one moment halve once");
        limit.overloaded(at(12), at(11));
        limit.overloaded(at(14), at(13));
        limit.overloaded(at(16), at(15));
        assert_eq!(limit.current(), 1, "never zero");
        limit.succeeded();
        assert_eq!(limit.current(), 2);
    }
    proptest! {
        /// Against the rule told slowly: one more when as many succeeded as may be in flight, half when one failed that began
        /// after the last halving, never beyond the bounds.
        #[test]
        fn additive_increase_and_multiplicative_decrease_within_hard_bounds(
            max in 0u32..20,
            events in prop::collection::vec((any::<bool>(), 0u64..50), 0..300),
        ) {
            let mut limit = Limit::new(max);
            let bound = max.max(1);
            let (mut expected, mut row, mut halved_at, mut now) = (bound.div_ceil(2), 0, 0, 1_000);
            for (succeeds, began_before) in events {
                now += 10;
                if succeeds {
                    limit.succeeded();
                    row += 1;
                    if row == expected.max(1) {
                        expected = bound.min(expected + 1);
                        row = 0;
                    }
                } else {
                    limit.overloaded(at(now), at(now - began_before));
                    row = 0;
                    if now - began_before >= halved_at {
                        expected = (expected / 2).max(1);
                        halved_at = now;
                    }
                }
                prop_assert_eq!(limit.current(), expected);
                prop_assert!((1..=bound).contains(&limit.current()));
            }
        }
    }
}
