//! Selection by example, and against an oracle that removes one record at a time until nothing is wrong.

use proptest::prelude::*;

use super::*;
use crate::format::record::Dentry;
use crate::replication::conflicts::Key;

/// A record that writes some names and reads none: enough to make conflicts.
fn item(seq: u64, ready: bool, role: Role, keys: &[u64]) -> Item {
    let key = |number: &u64| Key::Dentry(Dentry { parent: InodeId(*number), name: b"n".to_vec() });
    let footprint = Footprint { writes: keys.iter().map(key).collect(), ..Footprint::default() };
    Item { seq: Seq(seq), ready, footprint, role, bytes: 10 }
}

fn other(seq: u64, ready: bool, keys: &[u64]) -> Item {
    item(seq, ready, Role::Other, keys)
}

fn birth(seq: u64, ino: u64) -> Item {
    item(seq, true, Role::Birth { ino: InodeId(ino), slot_beyond: false }, &[ino])
}

fn slot(seq: u64, ready: bool, ino: u64) -> Item {
    item(seq, ready, Role::Slot { ino: InodeId(ino) }, &[ino])
}

fn select(items: &[Item], units: &[(u64, u64)], waiting: &[u64], order: Order) -> Selection {
    let units: Vec<_> = units.iter().map(|(first, last)| (Seq(*first), Seq(*last))).collect();
    let births_waiting = waiting.iter().copied().map(InodeId).collect();
    let window = Window {
        items,
        end: items.last().map_or(Seq(9), |item| item.seq),
        more: false,
        position: Seq(0),
        units: &units,
        births_waiting: &births_waiting,
        bytes_max: u64::MAX,
    };
    Selection::of(window, order)
}

/// Runs as lists of seqs, for comparison.
fn runs(items: &[Item], selection: &Selection) -> Vec<Vec<u64>> {
    let seq = |&index: &usize| items[index].seq.0;
    selection.runs.iter().map(|run| selection.ship[run.records.clone()].iter().map(seq).collect()).collect()
}

fn low_waters(selection: &Selection) -> Vec<u64> {
    selection.runs.iter().map(|run| run.low_water.0).collect()
}

#[test]
fn plain_order_stops_at_the_first_record_that_waits() {
    let items = [other(1, true, &[1]), other(2, false, &[2]), other(3, true, &[3])];
    let selection = select(&items, &[], &[], Order::Plain);
    assert_eq!(runs(&items, &selection), [[1]]);
    assert_eq!((selection.position, selection.deferred.len()), (Seq(1), 0), "nothing is left behind a position");
    assert_eq!(low_waters(&selection), [1]);
}

#[test]
fn o7_a_record_overtakes_what_it_does_not_meet() {
    let items =
        [other(1, true, &[1]), other(2, false, &[2]), other(3, true, &[3]), other(4, true, &[2]), other(5, true, &[1])];
    let selection = select(&items, &[], &[], Order::Overtaking);
    assert_eq!(runs(&items, &selection), [[1], [3], [5]]);
    assert_eq!(selection.position, Seq(5));
    assert_eq!(selection.deferred, [Seq(2), Seq(4)]);
    assert_eq!(low_waters(&selection), [1, 1, 1], "low water stays below what was left behind");
}

#[test]
fn o6_a_unit_goes_whole_or_not_at_all() {
    let items = [other(1, true, &[1]), other(2, true, &[2]), other(3, false, &[3]), other(4, true, &[4])];
    let selection = select(&items, &[(2, 3)], &[], Order::Overtaking);
    assert_eq!(runs(&items, &selection), [[1], [4]], "2 is ready and stays with 3");
    let items = [other(1, true, &[1]), other(2, true, &[2]), other(3, true, &[3]), other(4, true, &[4])];
    let selection = select(&items, &[(2, 3)], &[], Order::Overtaking);
    assert_eq!(runs(&items, &selection), [vec![1], vec![2, 3], vec![4]]);
    assert_eq!(low_waters(&selection), [1, 3, 4]);
}

#[test]
fn o6_units_that_overlap_are_one() {
    let items: Vec<Item> = (1..=5).map(|seq| other(seq, true, &[seq])).collect();
    let selection = select(&items, &[(1, 3), (3, 4)], &[], Order::Overtaking);
    assert_eq!(runs(&items, &selection), [vec![1, 2, 3, 4], vec![5]]);
}

#[test]
fn o6_a_unit_that_reaches_beyond_the_window_waits() {
    let items = [other(1, true, &[1]), other(2, true, &[2]), other(3, true, &[3])];
    let selection = select(&items, &[(2, 7)], &[], Order::Overtaking);
    assert_eq!(runs(&items, &selection), [[1]]);
}

#[test]
fn o6_what_overtook_a_slot_before_its_unit_was_known_is_gone_and_the_rest_goes_together() {
    // 2 and 4 were shipped while 1 was open; its seal made the unit 1…5.
    let items = [other(1, true, &[1]), other(3, true, &[1]), other(5, true, &[1])];
    let selection = select(&items, &[(1, 5)], &[], Order::Overtaking);
    assert_eq!(runs(&items, &selection), [[1, 3, 5]]);
}

#[test]
fn o2_a_birth_ships_with_its_first_slot() {
    let items = [birth(1, 7), other(2, true, &[50]), slot(3, true, 7), slot(4, true, 7)];
    let selection = select(&items, &[], &[], Order::Overtaking);
    assert_eq!(runs(&items, &selection), [vec![1, 2, 3], vec![4]], "no restored tree shows the file empty");
    let items = [birth(1, 7), other(2, true, &[50]), slot(3, false, 7)];
    let selection = select(&items, &[], &[], Order::Overtaking);
    assert_eq!(runs(&items, &selection), [[2]], "the birth waits for the bytes");
}

#[test]
fn o2_a_birth_without_a_slot_goes_alone_only_when_nobody_waits_for_it() {
    let items = [birth(1, 7), other(2, true, &[8])];
    assert_eq!(runs(&items, &select(&items, &[], &[7], Order::Overtaking)), [[2]]);
    assert_eq!(runs(&items, &select(&items, &[], &[], Order::Overtaking)), [[1], [2]]);
}

#[test]
fn o2_a_birth_whose_slot_is_beyond_the_window_waits_unless_everything_would() {
    let mut items = [birth(1, 7), other(2, true, &[8])];
    items[0].role = Role::Birth { ino: InodeId(7), slot_beyond: true };
    assert_eq!(runs(&items, &select(&items, &[], &[], Order::Overtaking)), [[2]]);
    let window = Window {
        items: &items[..1],
        end: Seq(1),
        more: true,
        position: Seq(0),
        units: &[],
        births_waiting: &HashSet::new(),
        bytes_max: 1,
    };
    assert_eq!(Selection::of(window, Order::Overtaking).ship, [0]);
}

#[test]
fn a_held_group_takes_with_it_what_was_let_go_before() {
    // 3 waits, so its unit mate 1 waits, so 2, which conflicts with 1, waits.
    let items = [other(1, true, &[1]), other(2, true, &[1]), other(3, false, &[3]), other(4, true, &[4])];
    let birth_like = [
        item(1, true, Role::Birth { ino: InodeId(1), slot_beyond: false }, &[1]),
        other(2, true, &[1]),
        item(3, false, Role::Slot { ino: InodeId(1) }, &[3]),
        other(4, true, &[4]),
    ];
    assert_eq!(runs(&birth_like, &select(&birth_like, &[], &[], Order::Overtaking)), [[4]]);
    assert_eq!(runs(&items, &select(&items, &[], &[], Order::Overtaking)), [[1], [2], [4]]);
}

#[test]
fn a_round_ends_at_a_run_when_it_has_enough_bytes() {
    let items: Vec<Item> = (1..=6).map(|seq| other(seq, true, &[seq])).collect();
    let units = [(Seq(2), Seq(4))];
    let window = Window {
        items: &items,
        end: Seq(6),
        more: false,
        position: Seq(0),
        units: &units,
        births_waiting: &HashSet::new(),
        bytes_max: 15,
    };
    let selection = Selection::of(window, Order::Overtaking);
    assert_eq!(runs(&items, &selection), [vec![1], vec![2, 3, 4]], "a run is never cut for its size");
    assert_eq!((selection.position, selection.deferred), (Seq(4), vec![]));
}

#[test]
fn an_empty_window_ships_nothing() {
    let selection = select(&[], &[(1, 4)], &[3], Order::Overtaking);
    assert!(selection.is_empty() && selection.runs.is_empty());
}

/// Items with at most two names out of four, roles on three inodes.
fn any_items() -> impl Strategy<Value = Vec<Item>> {
    let one = (prop::bool::weighted(0.8), 0..9_u8, prop::collection::vec(0..4_u64, 0..3), 0..20_u8);
    prop::collection::vec(one, 0..14).prop_map(|records| {
        let mut born = HashSet::new();
        records
            .into_iter()
            .zip(1..)
            .map(|((ready, role, keys, fence), seq)| {
                let ino = InodeId(u64::from(role % 3) + 100);
                let role = match role {
                    0..3 if born.insert(ino) => Role::Birth { ino, slot_beyond: false },
                    3..6 if born.contains(&ino) => Role::Slot { ino },
                    _ => Role::Other,
                };
                let mut item = item(seq, ready, role, &keys);
                item.footprint.is_overtaken_by_nothing = fence == 0;
                item.footprint.overtakes_nothing = fence == 1;
                item
            })
            .collect()
    })
}

fn conflict(earlier: &Footprint, later: &Footprint) -> bool {
    earlier.is_overtaken_by_nothing
        || later.overtakes_nothing
        || later.writes.iter().any(|key| earlier.writes.contains(key))
}

/// Pairs that must go together.
fn pairs(items: &[Item], units: &[(u64, u64)]) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    for (a, first) in items.iter().enumerate() {
        let mut slots = items.iter().enumerate().skip(a).filter(
            |(_, item)| matches!((item.role, first.role), (Role::Slot { ino }, Role::Birth { ino: born, .. }) if ino == born),
        );
        pairs.extend(slots.next().map(|(b, _)| (a, b)));
        for (b, second) in items.iter().enumerate().skip(a + 1) {
            let inside = |unit: &&(u64, u64)| unit.0 <= first.seq.0 && second.seq.0 <= unit.1;
            pairs.extend(units.iter().find(inside).map(|_| (a, b)));
        }
    }
    pairs
}

fn oracle(items: &[Item], units: &[(u64, u64)], waiting: &[u64], order: Order) -> Vec<usize> {
    let pairs = pairs(items, units);
    let mut go: Vec<bool> = items
        .iter()
        .enumerate()
        .map(|(index, item)| {
            let slotted = items.iter().skip(index).any(
                |later| matches!((item.role, later.role), (Role::Birth { ino: born, .. }, Role::Slot { ino }) if ino == born),
            );
            let waits = matches!(item.role, Role::Birth { ino, .. } if waiting.contains(&ino.0)) && !slotted;
            item.ready && !waits
        })
        .collect();
    loop {
        let torn = pairs.iter().find(|(a, b)| go[*a] != go[*b]).map(|(a, b)| if go[*a] { *a } else { *b });
        let passing = (0..items.len()).find(|&later| {
            go[later]
                && (0..later).any(|earlier| {
                    !go[earlier]
                        && (order == Order::Plain || conflict(&items[earlier].footprint, &items[later].footprint))
                })
        });
        match torn.or(passing) {
            Some(index) => go[index] = false,
            None => return (0..items.len()).filter(|index| go[*index]).collect(),
        }
    }
}

/// A record that meets nothing by name.
fn nameless(seq: u64, role: Role) -> Item {
    item(seq, true, role, &[])
}

fn born(ino: u64) -> Role {
    Role::Birth { ino: InodeId(ino), slot_beyond: false }
}

fn slot_of(ino: u64) -> Role {
    Role::Slot { ino: InodeId(ino) }
}

/// What goes while the births wait, and once they do not; each as the oracle says.
fn before_and_after(items: &[Item], units: &[(u64, u64)], waiting: &[u64]) -> [Vec<usize>; 2] {
    [waiting, &[]].map(|waiting| {
        let selection = select(items, units, waiting, Order::Overtaking);
        assert_eq!(selection.ship, oracle(items, units, waiting, Order::Overtaking));
        selection.ship
    })
}

#[test]
fn regression_o2_a_slot_of_another_file_in_the_unit_does_not_end_the_wait_of_a_birth() {
    // The unit 1…4 holds a slot, but not of file 100: shipped now, 100 would be restored as an empty file.
    let roles = [born(102), born(100), Role::Other, slot_of(102), Role::Other];
    let mut items: Vec<Item> = (1..).zip(roles).map(|(seq, role)| nameless(seq, role)).collect();
    items.iter_mut().for_each(|item| item.footprint.is_overtaken_by_nothing = true);
    assert_eq!(before_and_after(&items, &[(1, 4)], &[100]), [vec![], vec![0, 1, 2, 3, 4]]);
}

#[test]
fn regression_o2_a_birth_that_waits_holds_its_unit_with_the_births_that_have_slots() {
    // The unit 2…5 holds the slot of 100; 102 still waits for its own.
    let roles = [Role::Other, born(100), Role::Other, born(102), slot_of(100)];
    let mut items: Vec<Item> = (1..).zip(roles).map(|(seq, role)| nameless(seq, role)).collect();
    items[0].ready = false;
    items[0].footprint.overtakes_nothing = true;
    items[2].footprint.is_overtaken_by_nothing = true;
    assert_eq!(before_and_after(&items, &[(2, 5)], &[102]), [vec![], vec![1, 2, 3, 4]]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(2000), ..ProptestConfig::default() })]

    #[test]
    fn what_is_selected_is_the_largest_set_that_the_rules_allow(
        items in any_items(),
        units in prop::collection::vec((1..14_u64, 1..4_u64), 0..3),
        waiting in prop::collection::vec(100..103_u64, 0..3),
        plain in any::<bool>(),
    ) {
        let end = items.last().map_or(0, |item| item.seq.0);
        let units: Vec<_> = units.into_iter().map(|(first, len)| (first, (first + len).min(end))).collect();
        let order = if plain { Order::Plain } else { Order::Overtaking };
        let selection = select(&items, &units, &waiting, order);
        prop_assert_eq!(&selection.ship, &oracle(&items, &units, &waiting, order));

        // Runs cover it, and tear nothing.
        let mut at = 0;
        for run in &selection.runs {
            prop_assert_eq!(run.records.start, at);
            prop_assert!(run.records.end > at);
            at = run.records.end;
            let shipped = |index: &usize| selection.ship[..at].contains(index);
            for (a, b) in pairs(&items, &units) {
                prop_assert_eq!(shipped(&a), shipped(&b) , "run ending at {} tears {} from {}", at, a, b);
            }
            let left = (0..items.len()).find(|index| !shipped(index));
            prop_assert_eq!(run.low_water.0, left.map_or(end, |index| items[index].seq.0 - 1));
        }
        prop_assert_eq!(at, selection.ship.len());

        // Position and deferred say exactly what is left up to there.
        let position = selection.ship.last().map_or(0, |&index| items[index].seq.0);
        prop_assert_eq!(selection.position.0, position);
        let left: Vec<Seq> = items.iter().enumerate()
            .filter(|(index, item)| item.seq.0 <= position && !selection.ship.contains(index))
            .map(|(_, item)| item.seq).collect();
        prop_assert_eq!(&selection.deferred, &left);
    }
}
