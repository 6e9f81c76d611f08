//! Lineage: which of the writers of a target made the history that counts (T3, T7). Pure.
//!
//! A *lineage* is the chain of writers from the newest back to the first, each of which went on from a point in what the
//! one before it wrote. What a writer wrote after the point from which the next one went on is *discarded history*: nobody
//! ever saw it again.
//!
//! Owns: choosing the newest writer, the chain, what of segments and checkpoints belongs to it.
//! Does not own: reading `writers/` (`evidence`), whether the segments are sound (`apply`).
//!
//! ```text
//! epoch 1   n = 1 … 812 │ 813 814        (discarded: epoch 2 went on from 812)
//! epoch 2           813 … 900 │
//! epoch 4                 901 …          (epoch 3 never announced itself here)
//! ```

use std::collections::BTreeMap;

use crate::clock::Timestamp;
use crate::format::writer::{Ancestor, Parent};
use crate::id::{Epoch, Hash, SegmentNumber, Seq, WriterId};

/// A writer that left a trace on a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WriterSeen {
    pub epoch: Epoch,
    pub writer: WriterId,
    /// What its announcement says; `None` if that is missing or unreadable and only segments tell of it.
    pub announced: Option<Announced>,
}

/// What an announcement says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Announced {
    pub host: String,
    pub started: Timestamp,
    pub parent: Option<Parent>,
    pub history: Vec<Ancestor>,
}

/// Two mounts took the same highest epoch: neither history is the later one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("two writers hold epoch {epoch}, the highest: {one} and {two}")]
pub struct TwoWriters {
    /// The epoch.
    pub epoch: Epoch,
    /// One of them, with what is known of it.
    pub one: String,
    /// The other.
    pub two: String,
}

/// One writer's part of a lineage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub epoch: Epoch,
    pub writer: WriterId,
    /// What it went on from; `None` = from nothing, or unknown.
    pub parent: Option<Parent>,
    /// False if its announcement is missing, so that what it went on from is unknown.
    pub announced: bool,
    /// Where the next writer went on; `None` for the newest.
    pub cut: Option<Parent>,
}

impl Link {
    /// The first segment that is its own.
    fn first(&self) -> SegmentNumber {
        self.parent.map_or(SegmentNumber(1), |parent| parent.n.next())
    }
}

/// The writers whose history counts, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Lineage {
    pub links: Vec<Link>,
    /// What the newest writer says of those before it, some of which may never have reached this target.
    pub history: Vec<Ancestor>,
}

/// The newest writer of all that were seen, on whatever target; `None` if nobody ever wrote.
pub(crate) fn newest<'a>(
    seen: impl IntoIterator<Item = &'a WriterSeen>,
) -> Result<Option<(Epoch, WriterId)>, TwoWriters> {
    let mut newest: Option<&WriterSeen> = None;
    let mut rival: Option<&WriterSeen> = None;
    for writer in seen {
        match newest {
            Some(known) if known.epoch > writer.epoch => {}
            Some(known) if known.epoch == writer.epoch && known.writer != writer.writer => rival = Some(writer),
            // The same one on another target; one that announced itself says more.
            Some(known) if known.epoch == writer.epoch && known.announced.is_some() => {}
            _ => newest = Some(writer),
        }
    }
    match (newest, rival) {
        // Two of a lower epoch do not matter: a later writer went on from one of them.
        (Some(one), Some(two)) if one.epoch == two.epoch => {
            Err(TwoWriters { epoch: one.epoch, one: describe(one), two: describe(two) })
        }
        _ => Ok(newest.map(|writer| (writer.epoch, writer.writer))),
    }
}

fn describe(writer: &WriterSeen) -> String {
    match &writer.announced {
        Some(announced) => {
            format!("{} on {} since {}", writer.writer, announced.host, crate::format::utc(announced.started))
        }
        None => writer.writer.to_string(),
    }
}

impl Lineage {
    /// Walks back from the newest writer of one target.
    pub fn of(seen: &[WriterSeen]) -> Lineage {
        let by_id: BTreeMap<(Epoch, WriterId), &WriterSeen> =
            seen.iter().map(|writer| ((writer.epoch, writer.writer), writer)).collect();
        let mut links: Vec<Link> = Vec::new();
        let mut next = by_id.last_key_value().map(|(id, _)| *id);
        let newest = by_id.last_key_value().and_then(|(_, seen)| seen.announced.as_ref());
        let history = newest.map(|announced| announced.history.clone()).unwrap_or_default();
        let mut cut: Option<Parent> = None;
        while let Some((epoch, writer)) = next {
            let announced = by_id.get(&(epoch, writer)).and_then(|seen| seen.announced.as_ref());
            let parent = announced.and_then(|announced| announced.parent);
            links.push(Link { epoch, writer, parent, announced: announced.is_some(), cut });
            // Epochs go strictly down and segments too, so that no announcement can lead in a circle; one that claims
            // otherwise went on from nothing that can be.
            let possible = |parent: &Parent| parent.epoch < epoch && cut.is_none_or(|cut| parent.n <= cut.n);
            let before = parent.filter(possible);
            cut = before;
            next = before.map(|parent| (parent.epoch, parent.writer));
        }
        Lineage { links, history }
    }

    /// Whose segment `n` belongs to the lineage.
    pub fn owner(&self, n: SegmentNumber) -> Option<&Link> {
        self.links.iter().find(|link| link.first() <= n && link.cut.is_none_or(|cut| n <= cut.n))
    }

    /// True if segment `n` of that writer belongs to the lineage.
    pub fn has_segment(&self, epoch: Epoch, writer: WriterId, n: SegmentNumber) -> bool {
        self.owner(n).is_some_and(|link| (link.epoch, link.writer) == (epoch, writer))
    }

    /// True if a checkpoint of that writer at `seq` belongs to the lineage.
    pub fn has_checkpoint(&self, epoch: Epoch, writer: WriterId, seq: Seq) -> bool {
        self.link(epoch, writer).is_some_and(|link| link.cut.is_none_or(|cut| seq <= cut.seq))
    }

    /// The hash that segment `n` has for sure, because a writer says that it went on from it.
    pub fn known_hash(&self, n: SegmentNumber) -> Option<Hash> {
        self.links.iter().filter_map(|link| link.parent).find(|parent| parent.n == n).map(|parent| parent.hash)
    }

    /// How much of what another target holds, whose newest writer is (`epoch`, `writer`), belongs to this lineage:
    /// `None` if that writer is not in it, else the seq above which its records are discarded history.
    pub fn limit_of(&self, epoch: Epoch, writer: WriterId) -> Option<Seq> {
        self.known().filter(|(id, _)| *id == (epoch, writer)).map(|(_, seq)| seq).max()
    }

    /// The writers whose history this is, and up to where; the newest without end. One may come twice: where the next one on
    /// this target went on from it, and what the newest knows of it; both are true.
    pub fn known(&self) -> impl Iterator<Item = ((Epoch, WriterId), Seq)> {
        let cut = |link: &Link| ((link.epoch, link.writer), link.cut.map_or(Seq(u64::MAX), |cut| cut.seq));
        let newest = self.links.first().map(|link| link.epoch).unwrap_or_default();
        // Epochs go up: whoever claims otherwise does not know what it speaks of.
        let told = self.history.iter().filter(move |ancestor| ancestor.epoch < newest);
        self.links.iter().map(cut).chain(told.map(|ancestor| ((ancestor.epoch, ancestor.writer), ancestor.seq)))
    }

    fn link(&self, epoch: Epoch, writer: WriterId) -> Option<&Link> {
        self.links.iter().find(|link| (link.epoch, link.writer) == (epoch, writer))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seen(epoch: u64, writer: u32, parent: Option<(u64, u32, u64, u64)>) -> WriterSeen {
        let parent = parent.map(|(epoch, writer, n, seq)| Parent {
            epoch: Epoch(epoch),
            writer: WriterId(writer),
            n: SegmentNumber(n),
            hash: Hash::of(&n.to_le_bytes()),
            seq: Seq(seq),
        });
        let announced = Announced { host: format!("host{writer}"), started: Timestamp::EPOCH, parent, history: vec![] };
        let announced = Some(announced);
        WriterSeen { epoch: Epoch(epoch), writer: WriterId(writer), announced }
    }

    fn owner(lineage: &Lineage, n: u64) -> Option<u64> {
        lineage.owner(SegmentNumber(n)).map(|link| link.epoch.0)
    }

    #[test]
    fn t3_the_chain_goes_back_from_the_highest_epoch_and_leaves_out_what_was_discarded() {
        let lineage = Lineage::of(&[
            seen(1, 10, None),
            seen(2, 20, Some((1, 10, 5, 50))),
            // Another one that went on from epoch 1: whatever it wrote is discarded.
            seen(3, 30, Some((1, 10, 4, 40))),
            seen(4, 40, Some((2, 20, 7, 70))),
        ]);
        let epochs: Vec<u64> = lineage.links.iter().map(|link| link.epoch.0).collect();
        assert_eq!(epochs, [4, 2, 1]);
        assert_eq!((1..=9).map(|n| owner(&lineage, n).unwrap()).collect::<Vec<_>>(), [1, 1, 1, 1, 1, 2, 2, 4, 4]);
        assert!(!lineage.has_segment(Epoch(1), WriterId(10), SegmentNumber(6)), "discarded");
        assert!(!lineage.has_segment(Epoch(3), WriterId(30), SegmentNumber(5)));
        assert!(lineage.has_checkpoint(Epoch(2), WriterId(20), Seq(70)));
        assert!(!lineage.has_checkpoint(Epoch(2), WriterId(20), Seq(71)), "made of discarded history");
        assert!(!lineage.has_checkpoint(Epoch(3), WriterId(30), Seq(1)));
        assert_eq!(lineage.known_hash(SegmentNumber(7)), Some(Hash::of(&7u64.to_le_bytes())));
    }

    #[test]
    fn t3_two_writers_of_the_highest_epoch_are_both_named() {
        let one = [seen(2, 20, None), seen(1, 10, None)];
        let two = [seen(2, 21, None)];
        let refused = newest(one.iter().chain(&two)).unwrap_err().to_string();
        assert!(refused.contains("host20") && refused.contains("host21"), "{refused}");
        // Below the highest it does not matter; the same one on several targets is one.
        let three = [seen(3, 30, None), seen(3, 30, None), seen(2, 20, None), seen(2, 21, None)];
        assert_eq!(newest(&three), Ok(Some((Epoch(3), WriterId(30)))));
        assert_eq!(newest(three.iter().rev()), Ok(Some((Epoch(3), WriterId(30)))), "in whatever order they are met");
        assert_eq!(newest([]), Ok(None));
    }

    #[test]
    fn a_writer_without_announcement_owns_what_the_next_one_went_on_from() {
        let silent = WriterSeen { announced: None, ..seen(1, 10, None) };
        let lineage = Lineage::of(&[silent, seen(2, 20, Some((1, 10, 3, 30)))]);
        assert_eq!((1..=4).map(|n| owner(&lineage, n).unwrap()).collect::<Vec<_>>(), [1, 1, 1, 2]);
        assert!(!lineage.links[1].announced);
    }

    #[test]
    fn d6_of_another_target_counts_what_came_before_the_point_where_its_writer_was_left() {
        let lineage = Lineage::of(&[seen(1, 10, None), seen(2, 20, Some((1, 10, 5, 50)))]);
        assert_eq!(lineage.limit_of(Epoch(2), WriterId(20)), Some(Seq(u64::MAX)));
        assert_eq!(lineage.limit_of(Epoch(1), WriterId(10)), Some(Seq(50)));
        assert_eq!(lineage.limit_of(Epoch(1), WriterId(11)), None);
    }

    #[test]
    fn t7_a_writer_that_never_reached_this_target_is_known_by_what_the_newest_says() {
        // Epoch 1 left when this target lagged, and epoch 2 wrote elsewhere only.
        let mut newest = seen(3, 30, Some((1, 10, 5, 50)));
        let ancestor = |epoch, writer, seq| Ancestor { epoch: Epoch(epoch), writer: WriterId(writer), seq: Seq(seq) };
        newest.announced.as_mut().unwrap().history =
            vec![ancestor(1, 10, 100), ancestor(2, 20, 150), ancestor(3, 31, 9)];
        let lineage = Lineage::of(&[seen(1, 10, None), newest]);
        assert_eq!(lineage.limit_of(Epoch(1), WriterId(10)), Some(Seq(100)));
        assert_eq!(lineage.limit_of(Epoch(2), WriterId(20)), Some(Seq(150)));
        assert_eq!(lineage.limit_of(Epoch(2), WriterId(21)), None);
        assert_eq!(lineage.limit_of(Epoch(3), WriterId(31)), None, "not below the one that says it");
        assert_eq!(lineage.limit_of(Epoch(3), WriterId(30)), Some(Seq(u64::MAX)));
    }

    proptest! {
        /// Hostile announcements: the walk ends, and every segment has at most one owner.
        #[test]
        fn the_walk_back_always_ends(writers in prop::collection::vec((0u64..5, 0u32..3, prop::option::of((0u64..6, 0u32..3, 0u64..6, 0u64..6))), 0..12)) {
            let seen: Vec<_> = writers.into_iter().map(|(epoch, writer, parent)| seen(epoch, writer, parent)).collect();
            let lineage = Lineage::of(&seen);
            prop_assert!(lineage.links.windows(2).all(|pair| pair[0].epoch > pair[1].epoch));
            for n in 0..8 {
                let owners = lineage.links.iter().filter(|link| {
                    lineage.has_segment(link.epoch, link.writer, SegmentNumber(n))
                }).count();
                prop_assert!(owners <= 1);
            }
        }
    }
}
