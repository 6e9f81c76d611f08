//! When an acknowledgement policy is met (D3). Pure.
//!
//! A record is **on** a target when the segment that holds it is confirmed there; a segment is built only of records whose
//! chunks are placed on that target, so nothing else need be asked: what is on a target is *safe on* it.
//!
//! Owns: which records a target has, how many targets a policy needs, whether it is met or never will be.
//! Does not own: bringing records there (`shipper`, `driver`), waiting (`mount::acknowledge`).
//!
//! ```text
//! seq   1 ─────────── low water ──────────────── position ─────────▶ head
//!       all of them on the target │ all but the deferred │ none
//! ```

use std::sync::Arc;

use crate::config::Policy;
use crate::id::Seq;

/// Which records one target has, as of a moment when no segment was on its way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holds {
    /// Every record up to here.
    pub low_water: Seq,
    /// And up to here all but the deferred.
    pub position: Seq,
    /// Ascending.
    pub deferred: Arc<[Seq]>,
}

impl Holds {
    /// Every record up to `low_water`, and nothing is known of later ones.
    pub fn up_to(low_water: Seq) -> Holds {
        Holds { low_water, position: low_water, deferred: Arc::default() }
    }

    /// True if the target has the record at `seq`.
    pub fn has(&self, seq: Seq) -> bool {
        seq <= self.low_water || (seq <= self.position && self.deferred.binary_search(&seq).is_err())
    }

    /// True if the target has every record up to `seq`.
    pub fn has_all(&self, seq: Seq) -> bool {
        seq <= self.low_water
    }
}

/// How one target stands to what is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It has it.
    Has,
    /// It may get it.
    May,
    /// It will not get it from this mount: another writer holds it, or this mount does not have it configured.
    Never,
}

/// What that makes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Enough targets have it.
    Met,
    /// Not yet.
    Waiting,
    /// There will never be enough: waiting for the deadline is of no use.
    Hopeless,
}

/// On how many of `targets` targets a policy wants it; 0 for those that look at no target.
pub fn needed(policy: Policy, targets: usize) -> usize {
    match policy {
        Policy::Cached | Policy::Local => 0,
        Policy::Targets(count) => count as usize,
        Policy::Quorum => targets / 2 + 1,
        Policy::All => targets,
    }
}

/// Whether a policy is met. There is one standing for each target that the filesystem has.
pub fn judge(policy: Policy, standings: &[Standing]) -> Verdict {
    let needed = needed(policy, standings.len());
    let count = |wanted: &[Standing]| standings.iter().filter(|standing| wanted.contains(standing)).count();
    if count(&[Standing::Has]) >= needed {
        Verdict::Met
    } else if count(&[Standing::Has, Standing::May]) >= needed {
        Verdict::Waiting
    } else {
        Verdict::Hopeless
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn d3_each_policy_wants_its_number_of_targets() {
        let wanted = |policy| [1, 2, 3, 4].map(|targets| needed(policy, targets));
        assert_eq!(wanted(Policy::Cached), [0; 4]);
        assert_eq!(wanted(Policy::Local), [0; 4]);
        assert_eq!(wanted(Policy::Targets(1)), [1; 4]);
        assert_eq!(wanted(Policy::Targets(3)), [3; 4]);
        assert_eq!(wanted(Policy::Quorum), [1, 2, 2, 3], "more than half");
        assert_eq!(wanted(Policy::All), [1, 2, 3, 4]);
    }

    #[test]
    fn d3_what_can_never_be_met_is_said_at_once() {
        use Standing::{Has, May, Never};
        assert_eq!(judge(Policy::All, &[Has, Has, Never]), Verdict::Hopeless);
        assert_eq!(judge(Policy::Quorum, &[Has, May, Never]), Verdict::Waiting);
        assert_eq!(judge(Policy::Quorum, &[Has, Has, Never]), Verdict::Met);
        assert_eq!(judge(Policy::Targets(1), &[Never, Never]), Verdict::Hopeless);
        assert_eq!(judge(Policy::Targets(3), &[Has, Has]), Verdict::Hopeless, "there are two only");
        assert_eq!(judge(Policy::Local, &[Never]), Verdict::Met);
    }

    fn standing() -> impl Strategy<Value = Standing> {
        prop_oneof![Just(Standing::Has), Just(Standing::May), Just(Standing::Never)]
    }

    proptest! {
        /// The oracle keeps the set of records that were shipped; a round ships any subset of what is left.
        #[test]
        fn what_a_target_has_is_what_was_shipped_to_it(
            rounds in proptest::collection::vec((1..8u64, any::<u64>()), 1..12),
        ) {
            let mut shipped: BTreeSet<u64> = BTreeSet::new();
            let mut position = 0;
            for (step, choice) in rounds {
                // Whatever is chosen of the records left behind and of the new ones; the newest of them is the position.
                let left: Vec<u64> = (1..=position + step).filter(|seq| !shipped.contains(seq)).collect();
                let taken = left.iter().enumerate().filter(|(bit, _)| choice >> (bit % 64) & 1 == 1).map(|(_, seq)| *seq);
                shipped.extend(taken);
                position = shipped.last().copied().unwrap_or(0).max(position);
                let deferred: Vec<Seq> = (1..=position).filter(|seq| !shipped.contains(seq)).map(Seq).collect();
                let low_water = deferred.first().map_or(position, |seq| seq.0 - 1);
                let holds = Holds { low_water: Seq(low_water), position: Seq(position), deferred: deferred.into() };
                for seq in 1..position + 10 {
                    prop_assert_eq!(holds.has(Seq(seq)), shipped.contains(&seq), "{}", seq);
                    let all = (1..=seq).all(|seq| shipped.contains(&seq));
                    prop_assert_eq!(holds.has_all(Seq(seq)), all, "all up to {}", seq);
                }
            }
        }

        /// The oracle tries every way in which the undecided targets may end.
        #[test]
        fn a_verdict_is_what_every_future_says(
            standings in proptest::collection::vec(standing(), 0..6),
            policy in prop_oneof![
                Just(Policy::Quorum), Just(Policy::All), (1..5u32).prop_map(Policy::Targets), Just(Policy::Local),
            ],
        ) {
            let may: Vec<usize> = (0..standings.len()).filter(|i| standings[*i] == Standing::May).collect();
            let met = |arrive: u32| {
                let has = |i: usize| match standings[i] {
                    Standing::Has => true,
                    Standing::Never => false,
                    Standing::May => arrive >> may.iter().position(|m| *m == i).unwrap() & 1 == 1,
                };
                let count = (0..standings.len()).filter(|i| has(*i)).count();
                match policy {
                    Policy::Cached | Policy::Local => true,
                    Policy::Targets(n) => count >= n as usize,
                    Policy::Quorum => 2 * count > standings.len(),
                    Policy::All => count == standings.len(),
                }
            };
            let futures: Vec<bool> = (0..1u32 << may.len()).map(met).collect();
            let expected = if futures[0] {
                Verdict::Met
            } else if futures.contains(&true) {
                Verdict::Waiting
            } else {
                Verdict::Hopeless
            };
            prop_assert_eq!(judge(policy, &standings), expected);
        }
    }
}
