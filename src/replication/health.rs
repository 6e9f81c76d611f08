//! What we believe about a target: the circuit breaker. Pure.
//!
//! Owns: the states, which event leads where, until when nothing is sent.
//! Does not own: what is sent (`queue`), whether the place is the right one (`gate`).
//!
//! ```text
//!            failure                 failures in a row            probe due
//!  Healthy ───────────▶ Suspect ─────────────────────▶ Down ◀──────────────▶ Probing
//!     ▲   ◀──success──    ▲ │ ▲                                    failure     │  │
//!     │                   │ │ └───────────────answered (on trial)──────────────┘  │
//!     │                   │ └─rejected─▶ Blocked ◀──────────────rejected──────────┘
//!     └── (paused by the operator lies over all of these)
//! ```
//!
//! - Backoff is per target, not per object: after a failure nothing is sent to it until the delay has passed.
//! - Requests that were in flight together fail together: a failure of a request that began before the last counted
//!   failure does not count again.
//! - A throttling store is alive: it is waited for, but never taken for down.
//! - After a probe was answered the target is **on trial**: one request at a time, and the count of failures stands until
//!   one succeeds, so that a store that answers questions and refuses writes is asked ever less often.

use std::time::Duration;

use super::backoff::Backoff;
use crate::clock::Instant;
use crate::target::{Class, Error, Kind};

/// When a target counts as down, and how long it is left alone.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Between attempts while suspect.
    pub retry: Backoff,
    /// Between probes while down.
    pub probe: Backoff,
    /// Between probes while blocked: only an operator can help.
    pub blocked: Backoff,
    /// Unanswered rounds after which it is down.
    pub down_after: u32,
}

impl Default for Policy {
    fn default() -> Policy {
        let backoff =
            |base_ms, max_s| Backoff { base: Duration::from_millis(base_ms), max: Duration::from_secs(max_s) };
        Policy { retry: backoff(500, 30), probe: backoff(2_000, 30), blocked: backoff(15_000, 300), down_after: 4 }
    }
}

/// Why a call to a target failed, without the object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub kind: Kind,
    pub class: Class,
    /// The store's own wish.
    pub retry_after: Option<Duration>,
    /// With operation and object.
    pub message: String,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure { kind: error.kind, class: error.class, retry_after: error.retry_after, message: error.to_string() }
    }
}

impl Failure {
    /// The store is overloaded or out of reach: fewer requests may help.
    pub fn is_overload(&self) -> bool {
        matches!(self.kind, Kind::Throttled | Kind::Unreachable | Kind::Failed)
    }

    /// What an operator can do about it.
    pub fn hint(&self) -> &'static str {
        match self.kind {
            Kind::Denied => "check the credentials of this target and their permissions",
            Kind::PlaceMissing => "create the bucket or mount the disk; the target is tried again by itself",
            Kind::Full => "make room at the target or raise its quota; the target is tried again by itself",
            Kind::Config => "correct the configuration of this target and mount again",
            Kind::Throttled => "the store asks us to slow down; nothing needs to be done",
            _ => "the target is tried again by itself",
        }
    }
}

/// A belief about a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    Healthy,
    /// Failed lately, or on trial after a probe.
    Suspect,
    /// Did not answer several times in a row; only probes are sent.
    Down,
    /// A probe is out.
    Probing,
    /// Refuses us; probed slowly.
    Blocked,
    /// By the operator.
    Paused,
}

impl State {
    /// The word in `status`.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Healthy => "healthy",
            State::Suspect => "suspect",
            State::Down => "down",
            State::Probing => "probing",
            State::Blocked => "blocked",
            State::Paused => "paused",
        }
    }
}

/// How much may be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// As much as the limit allows.
    Full,
    /// One request at a time.
    Trial,
    /// Nothing.
    Nothing,
}

/// The belief about one target.
#[derive(Debug, Clone)]
pub struct Health {
    policy: Policy,
    state: State,
    since: Instant,
    paused: bool,
    /// Rounds without a success.
    failures: u32,
    /// Of these, the ones that say it may be down.
    unanswered: u32,
    /// When a failure last counted.
    counted_at: Option<Instant>,
    not_before: Instant,
    /// A probe was answered and nothing has succeeded since.
    trial: bool,
    last: Option<Failure>,
}

impl Health {
    /// A target that nothing is known against.
    pub fn new(policy: Policy, now: Instant) -> Health {
        Health {
            policy,
            state: State::Healthy,
            since: now,
            paused: false,
            failures: 0,
            unanswered: 0,
            counted_at: None,
            not_before: now,
            trial: false,
            last: None,
        }
    }

    /// The belief, for `status`.
    pub fn state(&self) -> State {
        if self.paused { State::Paused } else { self.state }
    }

    /// Since when.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// The newest failure; kept when it is over.
    pub fn last_failure(&self) -> Option<&Failure> {
        self.last.as_ref()
    }

    /// How much may be sent at `now`.
    pub fn admission(&self, now: Instant) -> Admission {
        match self.state {
            _ if self.paused => Admission::Nothing,
            State::Healthy => Admission::Full,
            State::Suspect if now < self.not_before => Admission::Nothing,
            State::Suspect if self.trial => Admission::Trial,
            State::Suspect => Admission::Full,
            State::Down | State::Probing | State::Blocked | State::Paused => Admission::Nothing,
        }
    }

    /// True when a probe should be sent now.
    pub fn probe_due(&self, now: Instant) -> bool {
        !self.paused && matches!(self.state, State::Down | State::Blocked) && now >= self.not_before
    }

    /// When something becomes possible that is not now.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let waits = !self.paused && matches!(self.state, State::Suspect | State::Down | State::Blocked);
        (waits && self.not_before > now).then_some(self.not_before)
    }

    /// A request succeeded.
    pub fn succeeded(&mut self, now: Instant) {
        // A put that was in flight when others failed says little; a probe decides whether the target is back.
        if matches!(self.state, State::Healthy | State::Suspect) {
            self.enter(State::Healthy, now);
            self.failures = 0;
            self.unanswered = 0;
            self.trial = false;
        }
    }

    /// A request that began at `started` failed.
    pub fn failed(&mut self, now: Instant, started: Instant, failure: Failure, random: u64) {
        let rejected = failure.class == Class::Rejected;
        let counts = self.counted_at.is_none_or(|at| started >= at);
        let escalates = rejected && self.state != State::Blocked;
        if matches!(self.state, State::Healthy | State::Suspect) && (counts || escalates) {
            self.count(now, &failure, random);
        }
        self.last = Some(failure);
    }

    /// A probe was sent.
    pub fn probe_sent(&mut self, now: Instant) {
        assert!(matches!(self.state, State::Down | State::Blocked), "a probe is sent to a target that is out of use");
        self.enter(State::Probing, now);
    }

    /// The probe was answered: the target is on trial. With nothing to send there is nothing to try.
    pub fn probe_answered(&mut self, now: Instant) {
        if self.state == State::Probing {
            self.trial = true;
            self.not_before = now;
            self.enter(State::Suspect, now);
        }
    }

    /// Its identity was read: it answers. What is out of use need not wait for its own probe.
    pub fn reached(&mut self, now: Instant) {
        if matches!(self.state, State::Down | State::Blocked) {
            self.trial = true;
            self.not_before = now;
            self.enter(State::Suspect, now);
        }
    }

    /// The probe failed.
    pub fn probe_failed(&mut self, now: Instant, failure: Failure, random: u64) {
        if self.state == State::Probing {
            self.count(now, &failure, random);
            if self.state == State::Probing || self.state == State::Suspect {
                self.enter(State::Down, now);
            }
        }
        self.last = Some(failure);
    }

    /// Nothing is left to send: a target on trial has answered, and that is all one can know of it.
    pub fn idle(&mut self, now: Instant) {
        if self.state == State::Suspect && self.trial {
            self.succeeded(now);
        }
    }

    /// The operator pauses it, or lets it go on.
    pub fn set_paused(&mut self, paused: bool, now: Instant) {
        if self.paused != paused {
            self.paused = paused;
            self.since = now;
        }
    }

    fn count(&mut self, now: Instant, failure: &Failure, random: u64) {
        self.failures = self.failures.saturating_add(1);
        self.counted_at = Some(now);
        let (state, backoff) = match failure.class {
            Class::Rejected => (State::Blocked, self.policy.blocked),
            Class::Temporary | Class::Ambiguous => {
                if failure.kind != Kind::Throttled {
                    self.unanswered = self.unanswered.saturating_add(1);
                }
                if self.unanswered >= self.policy.down_after {
                    (State::Down, self.policy.probe)
                } else {
                    (State::Suspect, self.policy.retry)
                }
            }
        };
        self.not_before = now + backoff.delay(self.failures, random, failure.retry_after);
        self.enter(state, now);
    }

    fn enter(&mut self, state: State, now: Instant) {
        if self.state != state {
            self.state = state;
            self.since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Instant {
        Instant::START + Duration::from_secs(secs)
    }

    fn failure(kind: Kind, class: Class) -> Failure {
        Failure { kind, class, retry_after: None, message: "put".into() }
    }

    fn unreachable() -> Failure {
        failure(Kind::Unreachable, Class::Temporary)
    }

    fn health() -> Health {
        Health::new(Policy::default(), at(0))
    }

    #[test]
    fn a_target_is_down_after_rounds_of_failures_not_after_one_burst() {
        let mut health = health();
        for _ in 0..8 {
            health.failed(at(1), at(0), unreachable(), u64::MAX);
        }
        assert_eq!(health.state(), State::Suspect);
        for round in 1..4 {
            health.failed(at(round * 100), at(round * 100 - 1), unreachable(), u64::MAX);
        }
        assert_eq!(health.state(), State::Down);
        assert_eq!(health.admission(at(1_000)), Admission::Nothing);
        assert!(health.probe_due(at(1_000)));
    }

    #[test]
    fn nothing_is_sent_before_the_delay_has_passed() {
        let mut health = health();
        let asked = Failure { retry_after: Some(Duration::from_secs(7)), ..failure(Kind::Throttled, Class::Temporary) };
        health.failed(at(1), at(0), asked, 0);
        assert_eq!(health.admission(at(7)), Admission::Nothing);
        assert_eq!(health.deadline(at(7)), Some(at(8)));
        assert_eq!(health.admission(at(8)), Admission::Full);
    }

    #[test]
    fn a_throttling_target_is_never_taken_for_down() {
        let mut health = health();
        for round in 1..100 {
            health.failed(at(round * 100), at(round * 100 - 1), failure(Kind::Throttled, Class::Temporary), u64::MAX);
        }
        assert_eq!(health.state(), State::Suspect);
    }

    #[test]
    fn a_rejecting_target_is_blocked_at_once_and_tried_with_one_request() {
        let mut health = health();
        health.failed(at(1), at(0), failure(Kind::Denied, Class::Rejected), u64::MAX);
        assert_eq!(health.state(), State::Blocked);
        assert!(!health.probe_due(at(10)));
        assert!(health.probe_due(at(17)));
        health.probe_sent(at(17));
        health.probe_answered(at(18));
        assert_eq!((health.state(), health.admission(at(18))), (State::Suspect, Admission::Trial));
        health.failed(at(20), at(19), failure(Kind::Denied, Class::Rejected), u64::MAX);
        assert_eq!(health.state(), State::Blocked);
        assert!(!health.probe_due(at(45)), "the second delay is twice as long");
        assert!(health.probe_due(at(51)));
    }

    #[test]
    fn a_success_after_a_probe_makes_it_healthy_and_a_failure_down_again() {
        let down = || {
            let mut health = health();
            for round in 1..5 {
                health.failed(at(round * 100), at(round * 100 - 1), unreachable(), 0);
            }
            health.probe_sent(at(500));
            health.probe_answered(at(501));
            health
        };
        let mut good = down();
        good.succeeded(at(502));
        assert_eq!((good.state(), good.admission(at(502))), (State::Healthy, Admission::Full));
        let mut bad = down();
        bad.failed(at(502), at(501), unreachable(), 0);
        assert_eq!(bad.state(), State::Down);
        let mut idle = down();
        idle.idle(at(502));
        assert_eq!(idle.state(), State::Healthy);
    }

    #[test]
    fn a_failed_probe_leads_back_to_down() {
        let mut health = health();
        health.failed(at(1), at(0), failure(Kind::Denied, Class::Rejected), 0);
        health.probe_sent(at(2));
        health.probe_failed(at(3), unreachable(), 0);
        assert_eq!(health.state(), State::Down);
    }

    #[test]
    fn a_paused_target_gets_nothing_and_goes_on_where_it_was() {
        let mut health = health();
        health.set_paused(true, at(1));
        assert_eq!((health.state(), health.admission(at(1))), (State::Paused, Admission::Nothing));
        health.set_paused(false, at(2));
        assert_eq!((health.state(), health.admission(at(2))), (State::Healthy, Admission::Full));
    }
}
