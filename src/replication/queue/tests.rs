//! Lanes and walks against a store that is a set of what is lacking.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::id::Hash;

const SMALL: u64 = 1 << 10;
const BULK: u64 = 4 << 20;
const FLIGHTS: usize = 3;

fn at(secs: u64) -> Instant {
    Instant::START + Duration::from_secs(secs)
}

fn todo(id: u64, length: u64) -> ChunkTodo {
    ChunkTodo { id: ChunkId(id), hash: Hash::of(&id.to_le_bytes()), length }
}

/// A store, a queue over it, and a target that takes everything.
struct World {
    queue: Queue,
    now: Instant,
    next_id: u64,
    lacking: BTreeSet<ChunkId>,
    page: Option<TodoPage>,
    flying: Vec<ChunkId>,
    confirming: Vec<ChunkId>,
    /// Starts of what is new since the background last had one while it waited.
    passed_over: u32,
    placed: u64,
}

impl World {
    fn new() -> World {
        let bounds = Bounds { window: 8, repairs: 4, confirming: 3, parked: 2, ..Bounds::default() };
        World {
            queue: Queue::new(bounds),
            now: at(0),
            next_id: 1,
            lacking: BTreeSet::new(),
            page: None,
            flying: vec![],
            confirming: vec![],
            passed_over: 0,
            placed: 0,
        }
    }

    fn length(id: ChunkId) -> u64 {
        if id.0.is_multiple_of(3) { BULK } else { SMALL }
    }

    fn commit(&mut self, count: u64) {
        for _ in 0..count {
            self.lacking.insert(ChunkId(self.next_id));
            self.next_id += 1;
        }
        self.queue.added();
    }

    /// Copies that were good are found bad, as a scrub finds them.
    fn lose(&mut self, ids: impl IntoIterator<Item = u64>) {
        let busy: BTreeSet<ChunkId> = self.flying.iter().chain(&self.confirming).copied().collect();
        self.lacking.extend(ids.into_iter().map(ChunkId).filter(|id| id.0 < self.next_id && !busy.contains(id)));
        self.queue.walk_anew();
    }

    fn load(&mut self) {
        assert!(self.page.is_none(), "one page at a time");
        let Some((after, limit)) = self.queue.load(self.now) else { return };
        let pending = self.lacking.len() as u64;
        let mut beyond = self.lacking.range(ChunkId(after.0 + 1)..).copied();
        let chunks: Vec<ChunkTodo> = beyond.by_ref().take(limit).map(|id| todo(id.0, World::length(id))).collect();
        let cursor = chunks.last().map_or(after, |chunk| chunk.id);
        let end = beyond.next().is_none();
        self.page = Some(TodoPage { chunks, cursor, end, pending, ..TodoPage::default() });
    }

    fn loaded(&mut self) {
        match self.page.take() {
            Some(page) => self.queue.loaded(self.now, &page),
            None => self.load(),
        }
    }

    fn waits(&self, background: bool) -> bool {
        self.queue.lanes.iter().any(|(lane, jobs)| lane.is_background() == background && !jobs.is_empty())
    }

    fn start(&mut self) {
        if self.flying.len() == FLIGHTS {
            return;
        }
        let Some(job) = self.queue.next(self.now).copied() else { return };
        assert!(self.lacking.contains(&job.chunk.id), "what is placed is not sent again");
        let (new_waits, background_waits, background_flies) =
            (self.waits(false), self.waits(true), self.queue.background > 0);
        let flight = self.queue.start(job.chunk.id, self.now);
        if flight.lane.is_background() {
            assert!(!new_waits || !background_flies, "two in the background while something new waits");
            assert!(!new_waits || self.queue.starts == 0);
            self.passed_over = 0;
        } else if background_waits && !background_flies {
            self.passed_over += 1;
            assert!(self.passed_over < BACKGROUND_TURN, "the background starves");
            let heads = self.queue.lanes.iter().filter(|(lane, _)| !lane.is_background());
            let oldest = heads.filter_map(|(_, jobs)| jobs.values().next()).map(|job| job.queued).min();
            let too_old = oldest.is_some_and(|queued| self.now.since(queued) > self.queue.bounds.age_max);
            let aged = self.now.since(job.queued) > self.queue.bounds.age_max;
            assert!(aged || !too_old || flight.lane == Lane::Awaited, "what waited too long goes first");
        }
        self.flying.push(job.chunk.id);
    }

    fn land(&mut self, index: usize, fails: bool) {
        if self.flying.is_empty() {
            return;
        }
        let chunk = self.flying.swap_remove(index % self.flying.len());
        if fails {
            self.queue.failed(chunk, false);
        } else {
            self.queue.confirmed(chunk);
            self.confirming.push(chunk);
        }
    }

    fn place(&mut self) {
        if let Some(chunk) = self.confirming.pop() {
            self.lacking.remove(&chunk);
            self.queue.placed(chunk);
            self.placed += 1;
        }
    }

    fn check_bounds(&self) {
        let repairs = self.queue.lane(Lane::Repair).len();
        assert!(repairs <= self.queue.bounds.repairs + FLIGHTS, "repairs are bounded");
        assert!(self.queue.waiting() - repairs <= self.queue.bounds.window + FLIGHTS, "the window is bounded");
    }

    fn step(&mut self, dice: u64) {
        match dice % 8 {
            0 => self.commit(1 + dice / 8 % 5),
            1 => self.lose([1 + dice / 8 % self.next_id, 1 + dice / 64 % self.next_id]),
            2 | 3 => self.loaded(),
            4 | 5 => self.start(),
            6 => self.land((dice / 8) as usize, (dice / 64).is_multiple_of(5)),
            _ => self.place(),
        }
        self.now = self.now + Duration::from_millis(dice % 3_000);
        self.check_bounds();
    }

    /// Everything goes on, whatever it is, and nothing is added.
    fn drain(&mut self) {
        for _ in 0..20_000 {
            if self.queue.is_drained() && self.lacking.is_empty() {
                return;
            }
            self.loaded();
            self.start();
            self.land(0, false);
            self.place();
            self.check_bounds();
            self.now = self.now + Duration::from_millis(100);
        }
        panic!("{} are left: {:?}", self.lacking.len(), self.queue);
    }
}

#[test]
fn repairs_of_a_long_history_do_not_keep_what_is_new_out_of_memory() {
    let mut world = World::new();
    world.commit(1_000);
    world.drain();
    world.lose(1..=1_000);
    let new = world.next_id;
    world.commit(1);
    for _ in 0..40 {
        world.loaded();
        world.start();
        world.land(0, false);
        world.place();
    }
    assert!(!world.lacking.contains(&ChunkId(new)), "it is sent while hundreds of repairs wait");
    assert!(world.lacking.len() > 900);
    world.drain();
}

#[test]
fn a_repair_ends_although_something_new_always_waits() {
    let mut world = World::new();
    world.commit(50);
    world.drain();
    world.lose(1..=50);
    let mut rounds = 0;
    while world.lacking.range(..=ChunkId(50)).next().is_some() {
        if world.queue.lane(Lane::Small).len() + world.queue.lane(Lane::Bulk).len() < 4 {
            world.commit(4);
        }
        world.loaded();
        world.start();
        world.land(0, false);
        world.place();
        rounds += 1;
        assert!(rounds < 50 * 2 * BACKGROUND_TURN, "{:?}", world.queue);
    }
}

#[test]
fn t4_what_a_resyncer_lacks_is_in_the_background_and_goes_alone_at_full_speed() {
    let mut queue = Queue::new(Bounds::default());
    queue.load(at(0)).unwrap();
    let chunks = [todo(1, BULK), todo(2, SMALL), todo(3, BULK)];
    let page =
        TodoPage { chunks: chunks.to_vec(), cursor: ChunkId(3), end: true, backfill: true, ..TodoPage::default() };
    queue.loaded(at(0), &page);
    for id in [1, 2, 3] {
        assert_eq!(queue.next(at(0)).map(|job| job.chunk.id), Some(ChunkId(id)), "oldest first, whatever the length");
        assert_eq!(queue.start(ChunkId(id), at(0)).lane, Lane::Backfill);
    }
}

#[test]
fn t6_what_is_known_and_counted_by_no_page_hides_nothing_that_was_passed() {
    for gone in [true, false] {
        let mut queue = Queue::new(Bounds::default());
        let page = |chunks| TodoPage { chunks, cursor: ChunkId(2), end: true, pending: 1, ..TodoPage::default() };
        queue.load(at(0)).unwrap();
        queue.loaded(at(0), &page(vec![todo(2, SMALL)]));
        // It dies while it waits; a copy of 1 is found bad.
        queue.added();
        queue.load(at(1)).unwrap();
        queue.loaded(at(1), &page(vec![]));
        assert_eq!(queue.load(at(1)), None, "one is lacking, and one is known");
        queue.start(ChunkId(2), at(1));
        if gone {
            queue.gone(ChunkId(2));
        } else {
            queue.confirmed(ChunkId(2)).unwrap();
            queue.placed(ChunkId(2));
        }
        assert_eq!(queue.load(at(2)).map(|(after, _)| after), Some(ChunkId(2)), "the sum is looked at again");
        queue.loaded(at(2), &page(vec![]));
        assert_eq!(queue.load(at(2)).map(|(after, _)| after), Some(ChunkId(0)));
        queue.loaded(at(2), &page(vec![todo(1, SMALL)]));
        assert_eq!(queue.next(at(2)).map(|job| job.chunk.id), Some(ChunkId(1)));
    }
}

#[test]
fn d3_an_awaited_chunk_that_was_passed_is_taken_while_the_walk_over_it_has_not_come_to_it() {
    let mut world = World::new();
    world.commit(20);
    world.drain();
    world.lose([20]);
    world.queue.load(world.now).unwrap();
    let page = TodoPage { end: false, cursor: ChunkId(5), pending: 1, ..TodoPage::default() };
    world.queue.loaded(world.now, &page);
    world.queue.awaited(world.now, &[todo(20, SMALL), todo(5, SMALL)]);
    let ids = |lane| world.queue.lane(lane).keys().copied().collect::<Vec<_>>();
    assert_eq!(ids(Lane::Awaited), [ChunkId(20)], "and not the one that is settled");
    world.drain();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Single flight, bounds, turns and ages hold after every step (see `start`), and everything arrives.
    #[test]
    fn neither_what_is_new_nor_the_background_starves_and_everything_arrives(steps in prop::collection::vec(any::<u64>(), 1..400)) {
        let mut world = World::new();
        for dice in steps {
            world.step(dice);
        }
        world.drain();
    }
}
