//! What a listing says about the copies that should be there. Pure.
//!
//! Owns: walking both in the order of hashes. Does not own: fetching either, what is done about a difference (`pass`).

use std::collections::VecDeque;

use crate::format::key::{self, Key};
use crate::meta::placement::ChunkTodo;
use crate::target::Listed;

/// One step of the walk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// It is there, with the right length.
    Good(ChunkTodo),
    /// It is not listed.
    Missing(ChunkTodo),
    /// It is listed with this length.
    Length(ChunkTodo, u64),
    /// An object of ours without a row that says that it is here.
    Unknown(Listed),
    /// An object that is none of ours.
    Foreign(Listed),
    /// Give me more rows, or say that there are none: they end before the listing does.
    NeedRows,
    /// Give me more of the listing, or say that it ended.
    NeedListing,
    /// Both are through.
    End,
}

/// The walk: both sides ascend by hash, which is the order of keys too.
#[derive(Debug, Default)]
pub(super) struct Walk {
    rows: VecDeque<ChunkTodo>,
    rows_ended: bool,
    listing: VecDeque<Listed>,
    listing_ended: bool,
}

impl Walk {
    pub(super) fn rows(&mut self, rows: impl IntoIterator<Item = ChunkTodo>, ended: bool) {
        self.rows.extend(rows);
        self.rows_ended = ended;
    }

    pub(super) fn listing(&mut self, objects: impl IntoIterator<Item = Listed>, ended: bool) {
        self.listing.extend(objects);
        self.listing_ended = ended;
    }

    pub(super) fn next(&mut self) -> Step {
        if self.rows.is_empty() && !self.rows_ended {
            return Step::NeedRows;
        }
        if self.listing.is_empty() && !self.listing_ended {
            return Step::NeedListing;
        }
        let Some(listed) = self.listing.front() else {
            return self.rows.pop_front().map_or(Step::End, Step::Missing);
        };
        let Key::Chunk(hash) = key::parse(&listed.key) else {
            return self.listing.pop_front().map_or(Step::End, Step::Foreign);
        };
        match self.rows.front() {
            Some(row) if row.hash < hash => self.rows.pop_front().map_or(Step::End, Step::Missing),
            Some(row) if row.hash == hash => {
                let (row, length) = (*row, listed.length);
                self.rows.pop_front();
                self.listing.pop_front();
                if length == row.length { Step::Good(row) } else { Step::Length(row, length) }
            }
            _ => self.listing.pop_front().map_or(Step::End, Step::Unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::id::{ChunkHash, ChunkId};

    fn row(n: u8, length: u64) -> ChunkTodo {
        ChunkTodo { id: ChunkId(n.into()), hash: ChunkHash::of(&[n]), length }
    }

    proptest! {
        /// However both sides are cut into pages, each row and each object is judged once, as maps judge them.
        #[test]
        fn every_row_and_object_is_judged_once(
            rows in prop::collection::btree_map(0u8..40, 1u64..3, 0..30),
            objects in prop::collection::btree_map(0u8..40, 1u64..3, 0..30),
            foreign in prop::collection::btree_set("chunks/[0-9a-g]{2}/[0-9a-f]{3}", 0..4),
            (rows_page, listing_page) in (1usize..8, 1usize..8),
        ) {
            let mut sorted: Vec<ChunkTodo> = rows.iter().map(|(n, length)| row(*n, *length)).collect();
            sorted.sort_by_key(|row| row.hash);
            let mut listed: Vec<Listed> = objects
                .iter()
                .map(|(n, length)| Listed { key: key::chunk(ChunkHash::of(&[*n])), length: *length })
                .chain(foreign.iter().map(|key| Listed { key: key.clone(), length: 1 }))
                .collect();
            listed.sort_by(|a, b| a.key.cmp(&b.key));
            let (mut row_pages, mut listing_pages) = (sorted.chunks(rows_page), listed.chunks(listing_page));
            let mut walk = Walk::default();
            let (mut good, mut missing, mut wrong) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
            let (mut unknown, mut strange) = (0, 0);
            loop {
                match walk.next() {
                    Step::NeedRows => match row_pages.next() {
                        Some(page) => walk.rows(page.iter().copied(), false),
                        None => walk.rows([], true),
                    },
                    Step::NeedListing => match listing_pages.next() {
                        Some(page) => walk.listing(page.iter().cloned(), false),
                        None => walk.listing([], true),
                    },
                    Step::Good(row) => prop_assert!(good.insert(row.id.0)),
                    Step::Missing(row) => prop_assert!(missing.insert(row.id.0)),
                    Step::Length(row, _) => prop_assert!(wrong.insert(row.id.0)),
                    Step::Unknown(_) => unknown += 1,
                    Step::Foreign(_) => strange += 1,
                    Step::End => break,
                }
            }
            let judged = |test: &dyn Fn(Option<&u64>, u64) -> bool| -> BTreeSet<u64> {
                let objects: &BTreeMap<u8, u64> = &objects;
                rows.iter().filter(|(n, length)| test(objects.get(n), **length)).map(|(n, _)| u64::from(*n)).collect()
            };
            prop_assert_eq!(good, judged(&|found, length| found == Some(&length)));
            prop_assert_eq!(missing, judged(&|found, _| found.is_none()));
            prop_assert_eq!(wrong, judged(&|found, length| found.is_some_and(|found| *found != length)));
            prop_assert_eq!(unknown, objects.keys().filter(|n| !rows.contains_key(n)).count());
            prop_assert_eq!(strange, foreign.len());
        }
    }
}
