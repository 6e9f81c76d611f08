//! The planner against a world in which everything that is under way ends in any order and any way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::id::Hash;
use crate::target::Kind;

const SMALL: u64 = 1 << 10;
const BULK: u64 = 4 << 20;

fn bit(index: u8) -> TargetBit {
    TargetBit::new(index).unwrap()
}

fn at(secs: u64) -> Instant {
    Instant::START + Duration::from_secs(secs)
}

fn todo(id: u64, length: u64) -> ChunkTodo {
    ChunkTodo { id: ChunkId(id), hash: Hash::of(&id.to_le_bytes()), length }
}

/// What starts a chunk that nobody waits for.
fn put(chunk: ChunkTodo) -> Effect {
    Effect::Put(chunk, if chunk.length <= Bounds::default().small_max { Lane::Small } else { Lane::Bulk })
}

fn failure(kind: Kind, class: Class) -> Failure {
    Failure { kind, class, retry_after: None, message: "put".into() }
}

fn page(chunks: &[ChunkTodo]) -> TodoPage {
    TodoPage {
        chunks: chunks.to_vec(),
        cursor: chunks.last().map_or(ChunkId(0), |chunk| chunk.id),
        end: true,
        pending: chunks.len() as u64,
        ..TodoPage::default()
    }
}

/// One target with an open gate and `chunks` in its window; returns what it started.
fn one_target(chunks: &[ChunkTodo]) -> (Planner, Vec<Effect>) {
    let mut planner = Planner::new(Config::default(), [(bit(0), None)], at(0));
    planner.handle(at(0), Event::Target(bit(0), TargetEvent::Gate(Gate::Open)), 0);
    let effects = tell(&mut planner, 0, TargetEvent::Loaded(page(chunks)));
    (planner, effects)
}

fn tell(planner: &mut Planner, secs: u64, event: TargetEvent) -> Vec<Effect> {
    let effects = planner.handle(at(secs), Event::Target(bit(0), event), u64::MAX);
    effects.into_iter().map(|(_, effect)| effect).collect()
}

fn tick(planner: &mut Planner, secs: u64) -> Vec<Effect> {
    planner.handle(at(secs), Event::Tick, 0).into_iter().map(|(_, effect)| effect).collect()
}

#[test]
fn nothing_is_sent_before_the_gate_is_open() {
    let mut planner = Planner::new(Config::default(), [(bit(0), None)], at(0));
    let load = Effect::Load { after: ChunkId(0), limit: 1024 };
    assert_eq!(tick(&mut planner, 0), [load]);
    assert_eq!(tell(&mut planner, 0, TargetEvent::Loaded(page(&[todo(1, BULK)]))), []);
    let blocked = Gate::Blocked { reason: "empty place".into(), hint: String::new() };
    assert_eq!(tell(&mut planner, 1, TargetEvent::Gate(blocked)), []);
    assert_eq!(tell(&mut planner, 2, TargetEvent::Gate(Gate::Open)), [put(todo(1, BULK))]);
}

#[test]
fn a_put_whose_reply_was_lost_is_checked_before_it_is_sent_again() {
    let chunk = todo(1, BULK);
    let (mut planner, effects) = one_target(&[chunk]);
    assert_eq!(effects, [put(chunk)]);
    let lost = failure(Kind::Unreachable, Class::Ambiguous);
    assert_eq!(tell(&mut planner, 1, TargetEvent::Failed(chunk.id, lost)), []);
    assert_eq!(tick(&mut planner, 10), [Effect::Check(chunk)]);
    let mut absent = planner.clone();
    assert_eq!(tell(&mut absent, 11, TargetEvent::Checked(chunk.id, None)), [put(chunk)]);
    let mut short = planner.clone();
    assert_eq!(tell(&mut short, 11, TargetEvent::Checked(chunk.id, Some(7))), [put(chunk)]);
    assert_eq!(tell(&mut planner, 11, TargetEvent::Checked(chunk.id, Some(BULK))), [Effect::Confirm(chunk)]);
}

#[test]
fn a_confirmation_in_a_wrong_place_is_taken_back_and_checked() {
    let chunk = todo(1, BULK);
    let (mut planner, _) = one_target(&[chunk]);
    assert_eq!(tell(&mut planner, 1, TargetEvent::Sent(chunk.id)), [Effect::Confirm(chunk)]);
    let moved = failure(Kind::PlaceMissing, Class::Rejected);
    assert_eq!(tell(&mut planner, 2, TargetEvent::Unconfirmed(vec![chunk.id], moved)), []);
    assert_eq!(planner.view(bit(0)).unwrap().health, State::Blocked);
    assert_eq!(tick(&mut planner, 100), [Effect::Probe]);
    assert_eq!(tell(&mut planner, 101, TargetEvent::Probed(Ok(()))), [], "the identity comes first");
    assert_eq!(tell(&mut planner, 102, TargetEvent::Gate(Gate::Open)), [Effect::Check(chunk)]);
}

#[test]
fn requests_and_bytes_in_flight_are_bounded() {
    let huge: Vec<_> = (1..=10).map(|id| todo(id, 40 << 20)).collect();
    let (mut planner, effects) = one_target(&huge);
    assert_eq!(effects.len(), 1, "two of them are more than 64 MiB");
    assert_eq!(tell(&mut planner, 1, TargetEvent::Sent(ChunkId(1))).len(), 2, "its confirmation, and the next");
    let many: Vec<_> = (1..=100).map(|id| todo(id, SMALL)).collect();
    let (mut planner, effects) = one_target(&many);
    assert_eq!(effects.len(), 4, "half of the maximum at first");
    for id in 1..=60 {
        tell(&mut planner, 1, TargetEvent::Sent(ChunkId(id)));
        assert!(planner.view(bit(0)).unwrap().sending <= 8);
    }
    assert_eq!(planner.view(bit(0)).unwrap().sending, 8);
}

#[test]
fn d3_awaited_chunks_take_every_second_start_however_old_the_others_are() {
    let chunks: Vec<_> = (1..=20).map(|id| todo(id, BULK)).collect();
    let (mut planner, effects) = one_target(&chunks);
    assert_eq!(effects, [1, 2, 3, 4].map(|id| put(todo(id, BULK))));
    // One from the end of the window, two that the walk has not come to, one that is on its way, one that is settled.
    assert_eq!(tell(&mut planner, 60, TargetEvent::Sent(ChunkId(1))).len(), 2);
    tell(&mut planner, 60, TargetEvent::Placed(vec![ChunkId(1)]));
    let awaited = [20, 101, 102, 2, 1].map(|id| todo(id, if id == 102 { SMALL } else { BULK }));
    assert_eq!(tell(&mut planner, 60, TargetEvent::Awaited(awaited.to_vec())), [], "it is busy");
    let mut started = Vec::new();
    for id in [2, 3, 4, 5] {
        let effects = tell(&mut planner, 61, TargetEvent::Sent(ChunkId(id)));
        started.extend(effects.into_iter().filter_map(|effect| match effect {
            Effect::Put(chunk, _) => Some(chunk.id.0),
            _ => None,
        }));
    }
    assert_eq!(started, [20, 6, 101, 7, 102], "nor do the old ones starve");
    assert!(!started.contains(&1) && !started.contains(&2), "no second flight: {started:?}");
}

#[test]
fn small_chunks_go_first_until_a_bulk_one_has_waited_too_long() {
    let chunks: Vec<_> = (1..=20).map(|id| todo(id, if id % 2 == 1 { BULK } else { SMALL })).collect();
    let (mut planner, effects) = one_target(&chunks);
    assert_eq!(effects, [2, 4, 6, 8].map(|id| put(todo(id, SMALL))));
    let effects = tell(&mut planner, 11, TargetEvent::Sent(ChunkId(2)));
    assert_eq!(effects, [Effect::Confirm(todo(2, SMALL)), put(todo(1, BULK))]);
}

#[test]
fn a_dead_target_is_only_probed_and_keeps_its_work() {
    let chunk = todo(1, BULK);
    let (mut planner, _) = one_target(&[chunk]);
    let mut now = 100;
    let unreachable = || failure(Kind::Unreachable, Class::Temporary);
    while tell(&mut planner, now, TargetEvent::Failed(chunk.id, unreachable())).is_empty()
        && planner.view(bit(0)).unwrap().health != State::Down
    {
        assert_eq!(tick(&mut planner, now + 50), [put(chunk)]);
        now += 100;
    }
    assert_eq!(now, 400, "four rounds without an answer");
    assert_eq!(tick(&mut planner, now + 100), [Effect::Probe]);
    assert_eq!(tick(&mut planner, now + 200), []);
    now += 200;
    assert!(!planner.view(bit(0)).unwrap().drained);
    tell(&mut planner, now + 1, TargetEvent::Probed(Ok(())));
    assert_eq!(tell(&mut planner, now + 2, TargetEvent::Gate(Gate::Open)), [put(chunk)]);
    tell(&mut planner, now + 3, TargetEvent::Sent(chunk.id));
    tell(&mut planner, now + 4, TargetEvent::Placed(vec![chunk.id]));
    let view = planner.view(bit(0)).unwrap();
    assert_eq!((view.health, view.drained), (State::Healthy, true));
}

#[test]
fn a_delay_that_ended_before_anybody_looked_still_wakes() {
    let chunk = todo(1, BULK);
    let (mut planner, _) = one_target(&[chunk]);
    let failed = Event::Target(bit(0), TargetEvent::Failed(chunk.id, failure(Kind::Failed, Class::Temporary)));
    assert_eq!(planner.handle(at(1), failed, 1 << 50), [], "a jitter of next to nothing");
    assert!(planner.deadline().is_some_and(|deadline| deadline > at(1) && deadline < at(2)));
}

#[test]
fn a_chunk_without_a_source_stops_nobody_and_is_tried_again() {
    let (damaged, good) = (todo(1, BULK), todo(2, BULK));
    let (mut planner, _) = one_target(&[damaged, good]);
    assert_eq!(tell(&mut planner, 1, TargetEvent::Unsendable(damaged.id)), []);
    tell(&mut planner, 1, TargetEvent::Sent(good.id));
    tell(&mut planner, 1, TargetEvent::Placed(vec![good.id]));
    assert_eq!(planner.view(bit(0)).unwrap().unsendable, 1);
    assert!(!planner.view(bit(0)).unwrap().drained);
    assert_eq!(planner.deadline(), Some(at(31)));
    assert_eq!(tick(&mut planner, 31), [put(damaged)]);
}

#[test]
fn a_chunk_without_a_source_is_tried_again_when_another_target_comes_into_contact() {
    let chunk = todo(1, BULK);
    let mut planner = Planner::new(Config::default(), [(bit(0), None), (bit(1), None)], at(0));
    let source = |planner: &mut Planner, secs, gate| {
        let effects = planner.handle(at(secs), Event::Target(bit(1), TargetEvent::Gate(gate)), 0);
        effects.into_iter().filter(|(bit, _)| bit.index() == 0).map(|(_, effect)| effect).collect::<Vec<_>>()
    };
    tell(&mut planner, 0, TargetEvent::Gate(Gate::Open));
    assert_eq!(tell(&mut planner, 0, TargetEvent::Loaded(page(&[chunk]))), [put(chunk)]);
    assert_eq!(tell(&mut planner, 1, TargetEvent::Unsendable(chunk.id)), [], "it rests");
    assert_eq!(source(&mut planner, 2, Gate::Open), [put(chunk)]);
    assert_eq!(source(&mut planner, 3, Gate::Unknown), []);
    assert_eq!(source(&mut planner, 4, Gate::Open), []);
    assert_eq!(tell(&mut planner, 5, TargetEvent::Unsendable(chunk.id)), [put(chunk)], "it may not have been asked");
    assert_eq!(tell(&mut planner, 6, TargetEvent::Unsendable(chunk.id)), [], "it was, and has nothing");
}

#[test]
fn t7_what_is_lacking_after_a_first_look_that_found_nothing_is_found() {
    let (mut planner, _) = one_target(&[]);
    assert_eq!(tick(&mut planner, 1), []);
    planner.walk_anew(bit(0));
    assert!(matches!(tick(&mut planner, 2)[..], [Effect::Load { after: ChunkId(0), .. }]));
    let chunk = todo(1, BULK);
    assert_eq!(tell(&mut planner, 3, TargetEvent::Loaded(page(&[chunk]))), [put(chunk)]);
}

#[test]
fn a_page_read_before_a_placement_does_not_bring_the_chunk_back() {
    let chunk = todo(1, BULK);
    let (mut planner, _) = one_target(&[chunk]);
    assert_eq!(planner.handle(at(1), Event::Added, 0), [(bit(0), Effect::Load { after: ChunkId(1), limit: 1024 })]);
    tell(&mut planner, 1, TargetEvent::Sent(chunk.id));
    tell(&mut planner, 1, TargetEvent::Placed(vec![chunk.id]));
    // The sum in the page counts the chunk that was settled meanwhile, so it is read once more.
    let effects = tell(&mut planner, 2, TargetEvent::Loaded(page(&[chunk])));
    assert_eq!(effects, [Effect::Load { after: ChunkId(1), limit: 1024 }]);
    assert_eq!(tell(&mut planner, 2, TargetEvent::Loaded(page(&[]))), []);
    assert!(planner.view(bit(0)).unwrap().drained);
}

#[test]
fn a_chunk_revived_behind_the_cursor_is_found_by_the_sum() {
    let (mut planner, _) = one_target(&[]);
    planner.handle(at(1), Event::Added, 0);
    let revived = TodoPage { pending: 1, cursor: ChunkId(9), ..page(&[]) };
    let anew = [Effect::Load { after: ChunkId(0), limit: 256 }];
    assert_eq!(tell(&mut planner, 1, TargetEvent::Loaded(revived.clone())), anew, "at once the first time");
    assert!(!planner.view(bit(0)).unwrap().drained);
    // What one walk did not find, the next will not find at once either. That it did not, a look at the end tells.
    let end = [Effect::Load { after: ChunkId(9), limit: 1024 }];
    assert_eq!(tell(&mut planner, 2, TargetEvent::Loaded(revived.clone())), end);
    assert_eq!(tell(&mut planner, 2, TargetEvent::Loaded(revived)), []);
    assert!(!planner.view(bit(0)).unwrap().drained);
    assert_eq!(planner.deadline(), Some(at(31)));
    assert_eq!(tick(&mut planner, 31), anew);
}

#[test]
fn a_paused_target_starts_nothing_and_goes_on_when_told() {
    let chunks: Vec<_> = (1..=5).map(|id| todo(id, BULK)).collect();
    let (mut planner, _) = one_target(&chunks);
    tell(&mut planner, 1, TargetEvent::Pause(true));
    assert_eq!(tell(&mut planner, 1, TargetEvent::Sent(ChunkId(1))), [Effect::Confirm(chunks[0])]);
    assert_eq!(tell(&mut planner, 2, TargetEvent::Pause(false)).len(), 1);
}

/// A world of stores, targets and a fault budget, driven by a small generator of its own.
struct World {
    planner: Planner,
    config: Config,
    now: Instant,
    random: u64,
    /// Lengths; the id is the index + 1.
    chunks: Vec<u64>,
    targets: BTreeMap<TargetBit, WorldTarget>,
    under_way: Vec<(TargetBit, UnderWay)>,
    faults_left: u32,
}

#[derive(Default)]
struct WorldTarget {
    open: bool,
    /// Fails every request.
    dead: bool,
    stored: BTreeSet<ChunkId>,
    recorded: BTreeSet<ChunkId>,
    doubtful: BTreeSet<ChunkId>,
}

enum UnderWay {
    Load(TodoPage),
    Put(ChunkTodo),
    Check(ChunkTodo),
    Confirm(ChunkTodo),
    Probe,
    /// The keeper of the gate reads the identity.
    Contact,
}

impl World {
    fn new(seed: u64, faults: u32) -> World {
        let config = Config {
            requests_max: 3,
            bytes_max: 100,
            queue: Bounds { window: 8, repairs: 4, small_max: 10, parked: 2, confirming: 4, ..Bounds::default() },
            ..Config::default()
        };
        let bits = [bit(0), bit(1)];
        World {
            planner: Planner::new(config, bits.map(|bit| (bit, None)), at(0)),
            config,
            now: at(0),
            random: seed | 1,
            chunks: vec![],
            targets: bits.map(|bit| (bit, WorldTarget::default())).into(),
            under_way: bits.map(|bit| (bit, UnderWay::Contact)).into_iter().collect(),
            faults_left: faults,
        }
    }

    fn dice(&mut self, sides: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 20) % sides
    }

    fn fault(&mut self, bit: TargetBit) -> bool {
        if self.targets[&bit].dead {
            return true;
        }
        let fault = self.faults_left > 0 && self.dice(3) == 0;
        self.faults_left -= u32::from(fault);
        fault
    }

    fn event(&mut self, event: Event) {
        let random = self.dice(u64::MAX);
        for (bit, effect) in self.planner.handle(self.now, event, random) {
            self.effect(bit, effect);
        }
    }

    fn effect(&mut self, bit: TargetBit, effect: Effect) {
        let target = &self.targets[&bit];
        let of_target: Vec<_> = self.under_way.iter().filter(|(b, _)| *b == bit).map(|(_, what)| what).collect();
        let flights: Vec<ChunkTodo> = of_target
            .iter()
            .filter_map(|what| if let UnderWay::Put(c) | UnderWay::Check(c) = what { Some(*c) } else { None })
            .collect();
        let under_way = match effect {
            Effect::Load { after, limit } => {
                assert!(limit <= self.config.queue.window, "the window is bounded");
                assert!(!of_target.iter().any(|what| matches!(what, UnderWay::Load(_))), "one page at a time");
                let lacking: Vec<_> = (1..).zip(&self.chunks).map(|(id, length)| todo(id, *length)).collect();
                let mut lacking: Vec<_> =
                    lacking.into_iter().filter(|chunk| !target.recorded.contains(&chunk.id)).collect();
                let pending = lacking.len() as u64;
                lacking.retain(|chunk| chunk.id > after);
                let end = lacking.len() <= limit;
                lacking.truncate(limit);
                let cursor = lacking.last().map_or(after, |chunk| chunk.id);
                UnderWay::Load(TodoPage { chunks: lacking, cursor, end, pending, ..TodoPage::default() })
            }
            Effect::Put(chunk, _) | Effect::Check(chunk) => {
                assert!(target.open, "nothing passes a gate that is not open");
                assert!(!flights.iter().any(|flight| flight.id == chunk.id), "one flight per chunk and target");
                assert!(flights.len() < self.config.requests_max as usize, "requests are bounded");
                let bytes = flights.iter().map(|flight| flight.length).sum::<u64>() + chunk.length;
                assert!(bytes <= self.config.bytes_max || flights.is_empty(), "bytes are bounded");
                assert!(!target.recorded.contains(&chunk.id), "what is placed is not sent again");
                if matches!(effect, Effect::Put(..)) {
                    assert!(!target.doubtful.contains(&chunk.id), "a lost reply is followed by a check");
                    UnderWay::Put(chunk)
                } else {
                    UnderWay::Check(chunk)
                }
            }
            Effect::Confirm(chunk) => {
                assert!(target.stored.contains(&chunk.id), "only what is there is confirmed");
                UnderWay::Confirm(chunk)
            }
            Effect::Probe => UnderWay::Probe,
        };
        self.under_way.push((bit, under_way));
    }

    /// Ends one thing that is under way, somehow.
    fn end_one(&mut self) {
        let index = self.dice(self.under_way.len() as u64) as usize;
        let (bit, what) = self.under_way.swap_remove(index);
        let fault = self.fault(bit);
        let class = [Class::Temporary, Class::Ambiguous, Class::Rejected][self.dice(3) as usize];
        let kind = [Kind::Unreachable, Kind::Throttled, Kind::Failed, Kind::Denied][self.dice(4) as usize];
        let failure = failure(kind, class);
        let target = self.targets.get_mut(&bit).unwrap();
        let event = match what {
            UnderWay::Contact if fault => {
                self.under_way.push((bit, UnderWay::Contact));
                return;
            }
            UnderWay::Contact => {
                target.open = true;
                TargetEvent::Gate(Gate::Open)
            }
            UnderWay::Load(_) if fault => TargetEvent::LoadFailed,
            UnderWay::Load(page) => TargetEvent::Loaded(page),
            UnderWay::Put(chunk) if fault => {
                if class == Class::Ambiguous {
                    target.doubtful.insert(chunk.id);
                    if self.random & 64 == 0 {
                        target.stored.insert(chunk.id);
                    }
                }
                match self.random & 7 {
                    0 => {
                        target.doubtful.remove(&chunk.id);
                        TargetEvent::Unsendable(chunk.id)
                    }
                    _ => TargetEvent::Failed(chunk.id, failure),
                }
            }
            UnderWay::Put(chunk) => {
                target.stored.insert(chunk.id);
                TargetEvent::Sent(chunk.id)
            }
            UnderWay::Check(chunk) if fault => TargetEvent::Failed(chunk.id, failure),
            UnderWay::Check(chunk) => {
                target.doubtful.remove(&chunk.id);
                TargetEvent::Checked(chunk.id, target.stored.contains(&chunk.id).then_some(chunk.length))
            }
            UnderWay::Confirm(chunk) if fault => {
                target.doubtful.insert(chunk.id);
                if self.random & 64 == 0 {
                    target.stored.remove(&chunk.id);
                }
                TargetEvent::Unconfirmed(vec![chunk.id], failure)
            }
            UnderWay::Confirm(chunk) => {
                target.recorded.insert(chunk.id);
                TargetEvent::Placed(vec![chunk.id])
            }
            UnderWay::Probe if fault => TargetEvent::Probed(Err(failure)),
            UnderWay::Probe => {
                target.open = false;
                self.under_way.push((bit, UnderWay::Contact));
                TargetEvent::Probed(Ok(()))
            }
        };
        self.event(Event::Target(bit, event));
    }

    fn commit(&mut self) {
        let length = 1 + self.dice(60);
        self.chunks.push(length);
        self.event(Event::Added);
    }

    fn drained(&self, bit: TargetBit) -> bool {
        self.targets[&bit].recorded.len() == self.chunks.len() && self.planner.view(bit).unwrap().drained
    }

    /// Lets the world run until `bits` have everything; panics if it stands still or takes too long.
    fn run_until_drained(&mut self, bits: &[TargetBit]) {
        for _ in 0..20_000 {
            if bits.iter().all(|bit| self.drained(*bit)) {
                return;
            }
            if self.under_way.is_empty() || self.dice(4) == 0 {
                match self.planner.deadline() {
                    Some(deadline) => self.now = deadline,
                    None => assert!(!self.under_way.is_empty(), "nothing is under way and nothing is waited for"),
                }
                self.event(Event::Tick);
            } else {
                self.now = self.now + Duration::from_millis(10);
                self.end_one();
            }
        }
        panic!("not drained: {:?}", bits.iter().map(|bit| self.planner.view(*bit)).collect::<Vec<_>>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_chunk_arrives_once_faults_end_whatever_they_were(seed: u64, chunks in 1..40usize, faults in 0..60u32) {
        let mut world = World::new(seed, faults);
        for _ in 0..chunks {
            world.commit();
            for _ in 0..world.dice(4) {
                if !world.under_way.is_empty() {
                    world.end_one();
                }
            }
        }
        world.run_until_drained(&[bit(0), bit(1)]);
    }

    #[test]
    fn a_dead_target_does_not_slow_the_other(seed: u64, chunks in 1..40usize) {
        let mut world = World::new(seed, 0);
        world.targets.get_mut(&bit(1)).unwrap().dead = true;
        for _ in 0..chunks {
            world.commit();
        }
        world.run_until_drained(&[bit(0)]);
        prop_assert!(world.targets[&bit(1)].recorded.is_empty());
        world.targets.get_mut(&bit(1)).unwrap().dead = false;
        world.run_until_drained(&[bit(1)]);
    }
}
