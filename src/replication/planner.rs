//! The planner: what is sent to which target when. Event in, effects out; one owner; no clock, no I/O, no randomness.
//!
//! Owns: for each target its queue ([`super::queue`]), its health ([`super::health`]) and how much it is given at a time
//! ([`super::limit`]).
//! Does not own: performing effects and feeding back what came of them (`driver`).
//!
//! ```text
//!  Added ─▶ Load ─▶ Loaded ─▶ Put ──▶ Sent ───────────────▶ Confirm ─▶ Placed
//!                              ▲  └─▶ Failed (retry later)
//!                              │        └─ ambiguous ─▶ Check ─▶ Checked ─▶ Confirm, or Put
//! ```
//!
//! - Targets share nothing: an event of one changes effects of that one only (promise 5).
//! - Nothing is sent through a gate that is not open, nor to a target that is down, blocked or paused.
//! - A put whose reply was lost is followed by a check, never by a blind put.
//! - No job is dropped for the number of its attempts.
//! - Everything is bounded: [`Config`] (promise 6).

use std::collections::BTreeMap;

use super::gate::Gate;
use super::health::{Admission, Failure, Health, Policy, State};
use super::limit::Limit;
use super::queue::{Bounds, Lane, Queue};
use crate::clock::Instant;
use crate::id::{ChunkId, TargetBit};
use crate::meta::placement::{ChunkTodo, TodoPage};
use crate::target::Class;

/// Bounds and times of every target.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Requests in flight to one target at most, unless its configuration says otherwise.
    pub requests_max: u32,
    /// Bytes in flight to one target at most; one larger chunk goes alone.
    pub bytes_max: u64,
    pub queue: Bounds,
    pub health: Policy,
}

impl Default for Config {
    fn default() -> Config {
        Config { requests_max: 8, bytes_max: 64 << 20, queue: Bounds::default(), health: Policy::default() }
    }
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A deadline passed.
    Tick,
    /// Chunks were committed.
    Added,
    /// About one target.
    Target(TargetBit, TargetEvent),
}

/// What happened to one target.
#[derive(Debug, Clone)]
pub enum TargetEvent {
    /// The gate is this now.
    Gate(Gate),
    /// The page that was asked for.
    Loaded(TodoPage),
    /// The store could not give the page.
    LoadFailed,
    /// An acknowledgement waits for these chunks, which the target lacked a moment ago (D3).
    Awaited(Vec<ChunkTodo>),
    /// A put succeeded.
    Sent(ChunkId),
    /// A put or check failed.
    Failed(ChunkId, Failure),
    /// The length of the object at the target, or that there is none.
    Checked(ChunkId, Option<u64>),
    /// Neither this machine nor another target could give the bytes.
    Unsendable(ChunkId),
    /// The chunk has no row any more.
    Gone(ChunkId),
    /// Confirmations were recorded.
    Placed(Vec<ChunkId>),
    /// Confirmations do not count: the place is not what it was, or could not be asked.
    Unconfirmed(Vec<ChunkId>, Failure),
    /// What came of a probe.
    Probed(Result<(), Failure>),
    /// The operator pauses the target, or lets it go on.
    Pause(bool),
    /// Something changed that may help: it is tried again at once.
    Retry,
}

/// What to do, for one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Read what it lacks, strictly after this chunk, at most so many.
    Load { after: ChunkId, limit: usize },
    /// Send a chunk, which comes from this lane.
    Put(ChunkTodo, Lane),
    /// Ask whether it has a chunk.
    Check(ChunkTodo),
    /// Record, together with others of the moment, that it has a chunk.
    Confirm(ChunkTodo),
    /// Ask whether it answers; if so its identity has to be checked before anything is written (T1).
    Probe,
}

/// What `status` wants to know of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    pub health: State,
    pub since: Instant,
    pub gate: Gate,
    pub last_failure: Option<Failure>,
    /// Requests in flight.
    pub sending: usize,
    /// Their bytes.
    pub sending_bytes: u64,
    /// Requests that may be in flight.
    pub limit: u32,
    /// Chunks that no source could give.
    pub unsendable: usize,
    /// Nothing waits and nothing is on its way.
    pub drained: bool,
}

#[derive(Debug, Clone)]
struct TargetState {
    gate: Gate,
    queue: Queue,
    health: Health,
    limit: Limit,
}

/// All targets of a mount.
#[derive(Debug, Clone)]
pub struct Planner {
    config: Config,
    targets: BTreeMap<TargetBit, TargetState>,
    /// The time of the last event.
    now: Instant,
}

impl Planner {
    /// A planner whose targets' gates are unknown and whose windows are empty. The first event starts it. Beside each
    /// target: requests in flight to it at most, if that is configured.
    pub fn new(config: Config, targets: impl IntoIterator<Item = (TargetBit, Option<u32>)>, now: Instant) -> Planner {
        let targets = targets
            .into_iter()
            .map(|(bit, requests_max)| (bit, TargetState::new(&config, requests_max, now)))
            .collect();
        Planner { config, targets, now }
    }

    /// One more target, as in [`Planner::new`]; the next event starts it.
    pub fn add(&mut self, bit: TargetBit, requests_max: Option<u32>, now: Instant) {
        self.targets.insert(bit, TargetState::new(&self.config, requests_max, now));
    }

    /// Forgets a target; what is in flight to it means nothing any more.
    pub fn remove(&mut self, bit: TargetBit) {
        self.targets.remove(&bit);
    }

    /// The store's rows changed so that a target may lack what its walk has passed: it begins anew.
    pub fn walk_anew(&mut self, bit: TargetBit) {
        if let Some(target) = self.targets.get_mut(&bit) {
            target.queue.walk_anew();
        }
    }

    /// Takes an event; returns what to do now. `random` is fresh for each call.
    pub fn handle(&mut self, now: Instant, event: Event, random: u64) -> Vec<(TargetBit, Effect)> {
        self.handle_all(now, [event], random)
    }

    /// The same for all events of a moment, which cost little more than one then.
    pub fn handle_all(
        &mut self,
        now: Instant,
        events: impl IntoIterator<Item = Event>,
        random: u64,
    ) -> Vec<(TargetBit, Effect)> {
        let mut effects = Vec::new();
        self.now = now;
        for event in events {
            match event {
                Event::Tick => {}
                Event::Added => self.targets.values_mut().for_each(|target| target.queue.added()),
                Event::Target(bit, event) => {
                    // One that was removed may still be told of.
                    if let Some(target) = self.targets.get_mut(&bit) {
                        let was_open = target.gate == Gate::Open;
                        let effect = target.apply(now, event, random);
                        effects.extend(effect.map(|effect| (bit, effect)));
                        if !was_open && target.gate == Gate::Open {
                            self.targets.values_mut().for_each(|target| target.queue.source_came(now));
                        }
                    }
                }
            }
        }
        for (&bit, target) in &mut self.targets {
            target.pump(&self.config, now, &mut |effect| effects.push((bit, effect)));
        }
        effects
    }

    /// When time alone will change something. What was not yet due at the last event is named even if it is due by now:
    /// nobody else would wake it.
    pub fn deadline(&self) -> Option<Instant> {
        let of = |target: &TargetState| {
            target.health.deadline(self.now).into_iter().chain(target.queue.deadline(self.now)).min()
        };
        self.targets.values().filter_map(of).min()
    }

    /// True if nothing is in flight to a target.
    pub fn is_idle(&self, bit: TargetBit) -> bool {
        self.targets.get(&bit).is_none_or(|target| target.queue.sending() == 0)
    }

    /// A target as it is.
    pub fn view(&self, bit: TargetBit) -> Option<View> {
        self.targets.get(&bit).map(|target| View {
            health: target.health.state(),
            since: target.health.since(),
            gate: target.gate.clone(),
            last_failure: target.health.last_failure().cloned(),
            sending: target.queue.sending(),
            sending_bytes: target.queue.sending_bytes(),
            limit: target.limit.current(),
            unsendable: target.queue.parked(),
            drained: target.queue.is_drained(),
        })
    }
}

impl TargetState {
    fn new(config: &Config, requests_max: Option<u32>, now: Instant) -> TargetState {
        TargetState {
            gate: Gate::Unknown,
            queue: Queue::new(config.queue),
            health: Health::new(config.health, now),
            limit: Limit::new(requests_max.unwrap_or(config.requests_max)),
        }
    }

    /// Takes what happened; returns what must follow at once, in the same flight.
    fn apply(&mut self, now: Instant, event: TargetEvent, random: u64) -> Option<Effect> {
        match event {
            TargetEvent::Gate(gate) => {
                if gate == Gate::Open && self.gate != Gate::Open {
                    self.health.reached(now);
                }
                self.gate = gate;
            }
            TargetEvent::Loaded(page) => self.queue.loaded(now, &page),
            TargetEvent::LoadFailed => self.queue.load_failed(now),
            TargetEvent::Awaited(chunks) => self.queue.awaited(now, &chunks),
            TargetEvent::Sent(chunk) => {
                self.answered(now);
                return self.queue.confirmed(chunk).map(Effect::Confirm);
            }
            TargetEvent::Failed(chunk, failure) => {
                if let Some(started) = self.queue.failed(chunk, failure.class == Class::Ambiguous) {
                    self.failed(now, started, failure, random);
                }
            }
            TargetEvent::Checked(chunk, found) => {
                let flight = self.queue.flight(chunk)?;
                return if found == Some(flight.job.chunk.length) {
                    self.answered(now);
                    self.queue.confirmed(chunk).map(Effect::Confirm)
                } else if self.gate == Gate::Open {
                    // It is not there, or not whole: now it is known that sending again does no harm. This answer is no
                    // success: a store that answers questions and swallows writes must not look healthy.
                    self.queue.resend(chunk).map(|flight| Effect::Put(flight.job.chunk, flight.lane))
                } else {
                    self.queue.failed(chunk, false);
                    None
                };
            }
            TargetEvent::Unsendable(chunk) => self.queue.unsendable(chunk, now),
            TargetEvent::Gone(chunk) => self.queue.gone(chunk),
            TargetEvent::Placed(chunks) => chunks.into_iter().for_each(|chunk| self.queue.placed(chunk)),
            TargetEvent::Unconfirmed(chunks, failure) => {
                let started = chunks.into_iter().filter_map(|chunk| self.queue.unconfirmed(chunk)).max();
                if let Some(started) = started {
                    self.failed(now, started, failure, random);
                }
            }
            TargetEvent::Probed(Ok(())) => {
                self.health.probe_answered(now);
                // Who answers may be another (T1): the gate opens again when the identity was read.
                if self.gate == Gate::Open {
                    self.gate = Gate::Unknown;
                }
            }
            TargetEvent::Probed(Err(failure)) => self.health.probe_failed(now, failure, random),
            TargetEvent::Pause(paused) => self.health.set_paused(paused, now),
            TargetEvent::Retry => self.health.reached(now),
        }
        None
    }

    fn answered(&mut self, now: Instant) {
        self.health.succeeded(now);
        self.limit.succeeded();
    }

    fn failed(&mut self, now: Instant, started: Instant, failure: Failure, random: u64) {
        if failure.is_overload() {
            self.limit.overloaded(now, started);
        }
        self.health.failed(now, started, failure, random);
    }

    /// Starts whatever may start.
    fn pump(&mut self, config: &Config, now: Instant, effect: &mut impl FnMut(Effect)) {
        self.queue.unpark(now);
        if let Some((after, limit)) = self.queue.load(now) {
            effect(Effect::Load { after, limit });
        }
        if self.queue.is_drained() {
            self.health.idle(now);
        }
        if self.health.probe_due(now) {
            self.health.probe_sent(now);
            effect(Effect::Probe);
        }
        if self.gate != Gate::Open {
            return;
        }
        let requests_max = match self.health.admission(now) {
            Admission::Full => self.limit.current() as usize,
            Admission::Trial => 1,
            Admission::Nothing => 0,
        };
        while self.queue.sending() < requests_max {
            let Some(job) = self.queue.next(now) else { return };
            let chunk = job.chunk;
            let fits = self.queue.sending_bytes() + chunk.length <= config.bytes_max;
            // The first in line is not overtaken by smaller ones that would fit: it would wait for ever.
            if !fits && self.queue.sending() > 0 {
                return;
            }
            let flight = self.queue.start(chunk.id, now);
            effect(if flight.job.doubtful { Effect::Check(chunk) } else { Effect::Put(chunk, flight.lane) });
        }
    }
}

#[cfg(test)]
mod tests;
