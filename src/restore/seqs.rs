//! Sets of places in history. Pure.
//!
//! Owns: unions of runs, and what is missing in them. History is dense: each seq from 1 on is one record, so what is
//! missing below a low water was shipped elsewhere or is lost.
//! Does not own: what a missing place means (`apply`).

use std::collections::BTreeMap;

use crate::id::Seq;

/// A set of seqs, kept as disjoint runs that do not touch: first → last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SeqSet {
    runs: BTreeMap<u64, u64>,
}

impl SeqSet {
    /// All seqs from 1 to `last`.
    pub fn up_to(last: Seq) -> SeqSet {
        let mut set = SeqSet::default();
        if last != Seq::ZERO {
            set.runs.insert(1, last.0);
        }
        set
    }

    /// Adds one.
    pub fn insert(&mut self, seq: Seq) {
        let seq = seq.0;
        let (mut first, mut last) = (seq, seq);
        if let Some((&before, &end)) = self.runs.range(..=seq).next_back() {
            if end >= seq {
                return;
            }
            if end + 1 == seq {
                first = before;
            }
        }
        if let Some(end) = self.runs.remove(&(seq.saturating_add(1))) {
            last = end;
        }
        self.runs.insert(first, last);
    }

    /// True if `seq` is in it.
    pub fn contains(&self, seq: Seq) -> bool {
        self.runs.range(..=seq.0).next_back().is_some_and(|(_, last)| *last >= seq.0)
    }

    /// The highest, or zero.
    pub fn last(&self) -> Seq {
        self.runs.last_key_value().map_or(Seq::ZERO, |(_, last)| Seq(*last))
    }

    /// The lowest from 1 to `last` that is not in it.
    pub fn first_missing(&self, last: Seq) -> Option<Seq> {
        self.gaps().map(|(first, _)| Seq(first)).next().filter(|first| *first <= last)
    }

    /// How many below the highest are not in it.
    pub fn missing_count(&self) -> u64 {
        let present: u64 = self.runs.iter().map(|(first, last)| last - first + 1).sum();
        self.last().0 - present
    }

    /// Those below the highest that are not in it, ascending.
    pub fn missing(&self) -> impl Iterator<Item = Seq> {
        let last = self.last().0;
        self.gaps().take_while(move |(first, _)| *first <= last).flat_map(|(first, end)| (first..=end).map(Seq))
    }

    /// Runs of what is missing, the last one without end.
    fn gaps(&self) -> impl Iterator<Item = (u64, u64)> {
        let starts = std::iter::once(1).chain(self.runs.values().map(|last| last + 1));
        let ends = self.runs.keys().map(|first| first - 1).chain(std::iter::once(u64::MAX));
        starts.zip(ends).filter(|(first, end)| first <= end)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_a_plain_set_holds(one in prop::collection::vec(1u64..60, 0..40), up_to in 0u64..20) {
            let mut set = SeqSet::up_to(Seq(up_to));
            one.iter().for_each(|seq| set.insert(Seq(*seq)));
            let plain: BTreeSet<u64> = one.iter().copied().chain(1..=up_to).collect();
            let last = plain.last().copied().unwrap_or(0);
            prop_assert_eq!(set.last(), Seq(last));
            for seq in 1..70 {
                prop_assert_eq!(set.contains(Seq(seq)), plain.contains(&seq));
                let missing = (1..=seq).find(|seq| !plain.contains(seq)).map(Seq);
                prop_assert_eq!(set.first_missing(Seq(seq)), missing);
            }
            let missing: Vec<Seq> = (1..=last).filter(|seq| !plain.contains(seq)).map(Seq).collect();
            prop_assert_eq!(set.missing_count(), missing.len() as u64);
            prop_assert_eq!(set.missing().collect::<Vec<_>>(), missing);
            let runs: Vec<_> = set.runs.iter().collect();
            prop_assert!(runs.windows(2).all(|pair| pair[0].1 + 1 < *pair[1].0), "runs touch: {:?}", runs);
        }
    }
}
