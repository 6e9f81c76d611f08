//! Which journal records go to one target next. Pure.
//!
//! A *group* is a set of records that a target gets together or not at all: a unit (O6), or a birth with the first slot of
//! what was born (O2). A *run* is a piece of what is shipped at whose end no group is torn: where `"end": true` may stand.
//!
//! Owns: readiness of groups, deferral, runs, the target's position and low water after them.
//! Does not own: which records conflict (`conflicts`), reading the journal (`meta::shipping`), bytes (`shipper`).
//!
//! - What is shipped is shipped in order of seq, so only what is left behind needs the rule of overtaking; and a prefix of
//!   it is as good as the whole, so a round may end at any run.
//! - What is shipped is the largest set that is ready, whole in its groups, and passes nothing that it must not pass.
//! - [`Order::Plain`] is a legal case of it: everything below the first record that has to wait.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::conflicts::{Deferred, Footprint};
use crate::id::{InodeId, Seq};

/// One record that the target has not got yet.
#[derive(Debug, Clone)]
pub struct Item {
    pub seq: Seq,
    /// It is no open slot, and every chunk that it names is placed on this target.
    pub ready: bool,
    pub footprint: Footprint,
    pub role: Role,
    /// About what it takes in a segment.
    pub bytes: u64,
}

/// What a record is to O2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Brings a regular file into being.
    Birth {
        ino: InodeId,
        /// A slot of it exists, but beyond the window.
        slot_beyond: bool,
    },
    /// A slot of this inode, open or not.
    Slot { ino: InodeId },
    /// Anything else.
    Other,
}

/// Whether records may overtake others (O7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Stop at the first record that has to wait.
    Plain,
    /// Pass it wherever the rule allows.
    Overtaking,
}

/// What the target lacks, as far as it is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Window<'a> {
    /// Every record up to `end` that the target has not got, ascending.
    pub items: &'a [Item],
    /// How far the window reaches.
    pub end: Seq,
    /// There are records beyond it.
    pub more: bool,
    /// The highest seq shipped so far.
    pub position: Seq,
    /// Runs of records (first, last) that ship together (O6).
    pub units: &'a [(Seq, Seq)],
    /// Inodes that were born open, hold no slot yet and are young enough to be waited for (O2).
    pub births_waiting: &'a HashSet<InodeId>,
    /// Stop when about so many bytes are selected.
    pub bytes_max: u64,
}

/// What goes next, and what is true once it went.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    /// Indices of the window's items, ascending.
    pub ship: Vec<usize>,
    /// The runs, in order; together all of `ship`.
    pub runs: Vec<Run>,
    /// The highest seq shipped.
    pub position: Seq,
    /// The records up to `position` that stayed behind, ascending.
    pub deferred: Vec<Seq>,
}

/// Records that are applied together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Which of [`Selection::ship`].
    pub records: Range<usize>,
    /// Every record up to here is shipped when the run is.
    pub low_water: Seq,
}

impl Selection {
    /// Selects what goes next.
    pub fn of(window: Window<'_>, order: Order) -> Selection {
        let mut groups = Groups::of(&window);
        let mut held = groups.hold(&window, order, false);
        if window.more && held.iter().all(|held| *held) {
            // Births whose slots are all further on than a window reaches would wait for one another for ever.
            held = groups.hold(&window, order, true);
        }
        let (ship, ends) = groups.runs(&held);
        cut(&window, ship, &ends)
    }

    /// True if nothing can go now.
    pub fn is_empty(&self) -> bool {
        self.ship.is_empty()
    }
}

/// Items by group: union-find over their indices, the representative being the lowest.
struct Groups {
    parent: Vec<usize>,
    /// Groups that reach out of the window.
    torn: Vec<bool>,
}

impl Groups {
    fn of(window: &Window<'_>) -> Groups {
        let items = window.items;
        let mut groups = Groups { parent: (0..items.len()).collect(), torn: vec![false; items.len()] };
        for (first, last) in merged(window.units) {
            let members = position_of(items, first)..position_of(items, Seq(last.0 + 1));
            for member in members.clone().skip(1) {
                groups.join(members.start, member);
            }
            if last > window.end && !members.is_empty() {
                groups.torn[members.start] = true;
            }
        }
        let mut births = HashMap::new();
        for (index, item) in items.iter().enumerate() {
            match item.role {
                Role::Birth { ino, .. } => {
                    births.insert(ino, index);
                }
                Role::Slot { ino } => {
                    if let Some(birth) = births.remove(&ino) {
                        groups.join(birth, index);
                    }
                }
                Role::Other => {}
            }
        }
        groups
    }

    fn find(&mut self, index: usize) -> usize {
        let mut root = index;
        while self.parent[root] != root {
            root = self.parent[root];
        }
        let mut at = index;
        while self.parent[at] != root {
            at = std::mem::replace(&mut self.parent[at], root);
        }
        root
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.find(a), self.find(b));
        let (low, high) = (a.min(b), a.max(b));
        self.parent[high] = low;
        self.torn[low] |= self.torn[high];
    }

    /// Which items stay behind.
    fn hold(&mut self, window: &Window<'_>, order: Order, births_alone: bool) -> Vec<bool> {
        let items = window.items;
        let roots: Vec<usize> = (0..items.len()).map(|index| self.find(index)).collect();
        let mut held: Vec<bool> = self.torn.clone();
        // A birth whose slot is in the window is not asked: it is in one group with it.
        let mut slotted = HashSet::new();
        for (index, item) in items.iter().enumerate().rev() {
            let waits = match item.role {
                Role::Slot { ino } => {
                    slotted.insert(ino);
                    false
                }
                Role::Birth { ino, slot_beyond } => {
                    !slotted.contains(&ino) && (window.births_waiting.contains(&ino) || (slot_beyond && !births_alone))
                }
                Role::Other => false,
            };
            held[roots[index]] |= !item.ready || waits;
        }
        // Each pass holds only what must stay behind, given what is known to stay behind; the last one finds nothing more.
        loop {
            let mut deferred = Deferred::new();
            let mut again = false;
            for (item, &root) in items.iter().zip(&roots) {
                let passes = match order {
                    Order::Plain => deferred.is_empty(),
                    Order::Overtaking => deferred.admits(&item.footprint),
                };
                if held[root] || !passes {
                    deferred.insert(&item.footprint);
                    again |= !std::mem::replace(&mut held[root], true);
                }
            }
            if !again {
                break;
            }
        }
        roots.iter().map(|&root| held[root]).collect()
    }

    /// What goes, and the ends (exclusive, in what goes) of its runs.
    fn runs(&mut self, held: &[bool]) -> (Vec<usize>, Vec<usize>) {
        let ship: Vec<usize> = (0..held.len()).filter(|index| !held[*index]).collect();
        let mut last_of_group = HashMap::new();
        for (position, &index) in ship.iter().enumerate() {
            last_of_group.insert(self.find(index), position);
        }
        let mut ends = Vec::new();
        let mut open_until = 0;
        for (position, &index) in ship.iter().enumerate() {
            open_until = open_until.max(last_of_group[&self.find(index)]);
            if open_until == position {
                ends.push(position + 1);
            }
        }
        (ship, ends)
    }
}

/// Ends the round when enough bytes are selected, and says what is true after each run.
fn cut(window: &Window<'_>, mut ship: Vec<usize>, ends: &[usize]) -> Selection {
    let items = window.items;
    let never = {
        let shipped: HashSet<usize> = ship.iter().copied().collect();
        (0..items.len()).find(|index| !shipped.contains(index))
    };
    let mut runs = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for &end in ends {
        if bytes >= window.bytes_max {
            break;
        }
        bytes += ship[start..end].iter().map(|&index| items[index].bytes).sum::<u64>();
        let next = ship.get(end).copied();
        let first_left = match (never, next) {
            (Some(never), Some(next)) => Some(never.min(next)),
            (never, next) => never.or(next),
        };
        let low_water = first_left.map_or(window.end, |index| items[index].seq.previous());
        runs.push(Run { records: start..end, low_water });
        start = end;
    }
    ship.truncate(start);
    let position = ship.last().map_or(window.position, |&index| window.position.max(items[index].seq));
    let shipped: HashSet<usize> = ship.iter().copied().collect();
    let deferred = items
        .iter()
        .enumerate()
        .filter(|(index, item)| item.seq <= position && !shipped.contains(index))
        .map(|(_, item)| item.seq)
        .collect();
    Selection { ship, runs, position, deferred }
}

/// The first item whose seq is not below `seq`.
fn position_of(items: &[Item], seq: Seq) -> usize {
    items.partition_point(|item| item.seq < seq)
}

/// Units that overlap are one.
fn merged(units: &[(Seq, Seq)]) -> Vec<(Seq, Seq)> {
    let mut units = units.to_vec();
    units.sort_unstable();
    let mut merged: Vec<(Seq, Seq)> = Vec::with_capacity(units.len());
    for (first, last) in units {
        match merged.last_mut() {
            Some(before) if first <= before.1 => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

#[cfg(test)]
#[path = "selection_tests.rs"]
mod tests;
