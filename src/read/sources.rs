//! Which target is asked for a chunk first, and when a second one is asked beside it. Pure.
//!
//! Owns: what is remembered of how a source did, the order of sources, the hedge.
//! Does not own: asking (`fetch`).
//!
//! A second request for the slow twentieth costs a twentieth more requests and cuts the tail (Dean and Barroso, *The Tail
//! at Scale*, 2013). The budget keeps it there when every answer is slow: a store that is overloaded is not asked twice as
//! much.

use std::time::Duration;

use crate::clock::Instant;

/// Latencies remembered of a source.
const SAMPLES: usize = 64;
/// With fewer samples nothing can be said.
const SAMPLES_MIN: usize = 8;
/// The hedge comes after this long while nothing is known.
const HEDGE_UNKNOWN: Duration = Duration::from_secs(1);
/// Sooner, a second request would only compete with the first.
const HEDGE_MIN: Duration = Duration::from_millis(20);
/// Later, the source is as good as gone.
const HEDGE_MAX: Duration = Duration::from_secs(5);
/// A source that failed is asked after the others for this long; twice as long with each further failure in a row.
const SUSPECT: Duration = Duration::from_secs(5);
const SUSPECT_MAX: Duration = Duration::from_secs(300);

/// How a source did lately.
#[derive(Debug, Clone)]
pub(super) struct Record {
    /// Microseconds to a whole chunk; a ring.
    latencies: Vec<u32>,
    next: usize,
    failures: u32,
    suspect_until: Instant,
    whole_until: Instant,
}

impl Default for Record {
    fn default() -> Record {
        Record {
            latencies: Vec::new(),
            next: 0,
            failures: 0,
            suspect_until: Instant::START,
            whole_until: Instant::START,
        }
    }
}

impl Record {
    pub(super) fn succeeded(&mut self, took: Duration) {
        self.failures = 0;
        self.suspect_until = Instant::START;
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        if self.latencies.len() < SAMPLES {
            self.latencies.push(took);
        } else {
            self.latencies[self.next] = took;
            self.next = (self.next + 1) % SAMPLES;
        }
    }

    pub(super) fn failed(&mut self, now: Instant) {
        let pause = SUSPECT.saturating_mul(1 << self.failures.min(16)).min(SUSPECT_MAX);
        self.failures = self.failures.saturating_add(1);
        self.suspect_until = now + pause;
    }

    /// It gave a part that was not what was asked for: it, or this copy, is asked for whole chunks only for a while.
    pub(super) fn gave_a_wrong_part(&mut self, now: Instant) {
        self.whole_until = now + SUSPECT_MAX;
    }

    /// Whether it may be asked for a part.
    pub(super) fn gives_parts(&self, now: Instant) -> bool {
        now >= self.whole_until && now >= self.suspect_until
    }

    /// How long to wait for this source before another is asked as well.
    pub(super) fn hedge_after(&self) -> Duration {
        if self.latencies.len() < SAMPLES_MIN {
            return HEDGE_UNKNOWN;
        }
        self.percentile(95).clamp(HEDGE_MIN, HEDGE_MAX)
    }

    /// What it is compared by: the lower is asked first.
    pub(super) fn rank(&self, holds: bool, priority: u32, now: Instant) -> (bool, bool, u64, u32) {
        // Differences below the scatter say nothing: compared in steps of two.
        let typical = if self.latencies.is_empty() { 0 } else { self.percentile(50).as_millis() as u64 };
        (!holds, now < self.suspect_until, u64::from(64 - (typical / 8).leading_zeros()), priority)
    }

    fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
        Duration::from_micros(sorted.get(at).copied().unwrap_or(0).into())
    }
}

/// How many second requests may be made: a tenth of the first ones, and a few in hand.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    tenths: u32,
}

impl Budget {
    const MAX: u32 = 40;

    pub(super) fn asked(&mut self) {
        self.tenths = (self.tenths + 1).min(Self::MAX);
    }

    /// Takes a second request out of the budget, if there is one.
    pub(super) fn hedge(&mut self) -> bool {
        let allowed = self.tenths >= 10;
        if allowed {
            self.tenths -= 10;
        }
        allowed
    }
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { tenths: Self::MAX }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Instant {
        Instant::START + Duration::from_secs(1000 + secs)
    }

    #[test]
    fn the_hedge_follows_the_slowest_twentieth() {
        let mut record = Record::default();
        assert_eq!(record.hedge_after(), HEDGE_UNKNOWN);
        for n in 0..100u64 {
            record.succeeded(Duration::from_millis(if n % 10 == 0 { 400 } else { 100 }));
        }
        assert_eq!(record.hedge_after(), Duration::from_millis(400));
        for _ in 0..SAMPLES {
            record.succeeded(Duration::from_millis(1));
        }
        assert_eq!(record.hedge_after(), HEDGE_MIN, "old latencies are forgotten");
    }

    #[test]
    fn order_is_who_holds_it_then_who_works_then_who_is_fast_then_priority() {
        let (mut fast, mut slow, mut ill) = (Record::default(), Record::default(), Record::default());
        fast.succeeded(Duration::from_millis(10));
        slow.succeeded(Duration::from_millis(300));
        ill.failed(at(0));
        let rank = |record: &Record, holds, priority| record.rank(holds, priority, at(1));
        assert!(rank(&slow, true, 9) < rank(&fast, false, 0), "who is known to hold it comes first");
        assert!(rank(&slow, true, 9) < rank(&ill, true, 0));
        assert!(rank(&fast, true, 9) < rank(&slow, true, 0));
        let mut same = Record::default();
        same.succeeded(Duration::from_millis(11));
        assert!(rank(&same, true, 0) < rank(&fast, true, 1), "a millisecond is no difference");
        assert!(ill.rank(true, 0, at(6)) < rank(&fast, true, 1), "it is tried again after a while");
    }

    #[test]
    fn failures_in_a_row_wait_longer_up_to_a_bound() {
        let mut record = Record::default();
        for _ in 0..40 {
            record.failed(at(0));
        }
        assert!(record.rank(true, 0, at(299)).1);
        assert!(!record.rank(true, 0, at(300)).1);
        record.succeeded(Duration::ZERO);
        record.failed(at(400));
        assert!(!record.rank(true, 0, at(405)).1, "a success forgets");
    }

    #[test]
    fn second_requests_are_a_tenth_of_the_first() {
        let mut budget = Budget::default();
        let mut hedges = 0;
        for _ in 0..1000 {
            budget.asked();
            hedges += u32::from(budget.hedge());
        }
        assert!((100..=104).contains(&hedges), "{hedges}");
    }
}
