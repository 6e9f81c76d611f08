//! What counts of a session after a crash (S6). Pure.
//!
//! Owns: the decision on each session by itself, and among the sessions of one inode.
//! Does not own: finding out (`evidence`), carrying it out (`apply`).
//!
//! After a kill every session counts wholly, so those of an inode stay layers as they were. After a power cut it is unknown
//! whether one that was frozen and not committed is there with all its bytes. An edit on top of it must not count: its file
//! would be a mixture. Nobody was told that it is safe, because an `fsync` waits for the commit of what lies below.

use std::collections::HashMap;

use super::evidence::Evidence;
use crate::id::InodeId;
use crate::write::ranges::{self, RangeSet, Trust};

/// What becomes of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// It is sealed with these bytes.
    Resume {
        /// Dirty ranges of an edit; empty for a whole session.
        ranges: RangeSet,
        /// Bytes of the file.
        size: u64,
    },
    /// Nothing of it counts: its slot becomes void, its file keeps the generation before.
    Lost,
    /// Nothing of it counts, as a later session that replaces everything does.
    Superseded,
    /// Its inode has no name.
    Discard,
}

/// Decides on all sessions; `evidence` is oldest first.
pub fn plan(evidence: &[Evidence], rebooted: bool) -> Vec<Plan> {
    let mut plans: Vec<Plan> = evidence.iter().map(|evidence| alone(evidence, rebooted || evidence.unsynced)).collect();
    // Of each inode, newest first.
    let mut sessions: HashMap<InodeId, Vec<usize>> = HashMap::new();
    for (index, evidence) in evidence.iter().enumerate().rev() {
        sessions.entry(evidence.row.ino).or_default().push(index);
    }
    for of_inode in sessions.values().filter(|of_inode| of_inode.len() > 1) {
        if !rebooted && !of_inode.iter().any(|&index| evidence[index].unsynced) {
            continue;
        }
        let resumes = |plan: &Plan| matches!(plan, Plan::Resume { .. });
        let newest_whole = of_inode.iter().position(|&index| evidence[index].row.whole && resumes(&plans[index]));
        let base = newest_whole.unwrap_or(of_inode.len() - 1);
        for (position, &index) in of_inode.iter().enumerate() {
            if position < base && plans[index] != Plan::Discard {
                plans[index] = Plan::Lost;
            } else if position > base && plans[index] != Plan::Discard {
                plans[index] = Plan::Superseded;
            }
        }
    }
    plans
}

/// Decides on one session.
fn alone(evidence: &Evidence, rebooted: bool) -> Plan {
    if evidence.inode.is_none() {
        return Plan::Discard;
    }
    let Some(file) = evidence.file else { return Plan::Lost };
    if evidence.row.whole {
        return match (rebooted, evidence.row.synced_size) {
            (false, _) => Plan::Resume { ranges: RangeSet::default(), size: file.length },
            (true, Some(synced)) => Plan::Resume { ranges: RangeSet::default(), size: synced.min(file.length) },
            (true, None) => Plan::Lost,
        };
    }
    let Some(record) = &evidence.ranges else { return Plan::Lost };
    let trust = if rebooted { Trust::Synced } else { Trust::All };
    let recovered = ranges::decode(record, trust);
    if rebooted && !recovered.synced {
        return Plan::Lost;
    }
    let mut ranges = recovered.ranges;
    ranges.cut(file.length);
    Plan::Resume { ranges, size: file.length }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::id::{Generation, InodeId, Seq, SessionId};
    use crate::meta::inode::Inode;
    use crate::meta::session::SessionRow;
    use crate::recovery::evidence::StagedFile;

    fn evidence(whole: bool) -> Evidence {
        let time = Timestamp::EPOCH;
        let inode = Inode {
            ino: InodeId(2),
            mode: libc::S_IFREG,
            uid: 0,
            gid: 0,
            rdev: 0,
            nlink: 1,
            size: 0,
            generation: Generation(1),
            atime: time,
            mtime: time,
            ctime: time,
            times_seq: Seq::ZERO,
            manifest: None,
            last_seq: Seq(1),
            parent: InodeId::ROOT,
            allocated: 0,
        };
        let row = SessionRow {
            id: SessionId(1),
            ino: InodeId(2),
            base: Generation(0),
            whole,
            base_limit: 0,
            slot: Some(Seq(2)),
            synced_size: None,
            before: (0, time, time),
        };
        let file = Some(StagedFile { length: 100, mtime: time });
        Evidence { row, inode: Some(inode), path: None, file, ranges: None, unsynced: false }
    }

    #[test]
    fn s6_after_kill_everything_written_counts() {
        assert_eq!(alone(&evidence(true), false), Plan::Resume { ranges: RangeSet::default(), size: 100 });
    }

    #[test]
    fn s6_after_a_power_cut_a_whole_session_counts_up_to_its_synced_size() {
        let mut whole = evidence(true);
        assert_eq!(alone(&whole, true), Plan::Lost);
        whole.row.synced_size = Some(60);
        assert_eq!(alone(&whole, true), Plan::Resume { ranges: RangeSet::default(), size: 60 });
    }

    #[test]
    fn s6_after_a_power_cut_an_edit_counts_up_to_its_last_mark() {
        let mut edit = evidence(false);
        let mut log = Vec::new();
        ranges::encode_range(0..10, &mut log);
        edit.ranges = Some(log.clone());
        assert_eq!(alone(&edit, true), Plan::Lost, "replaying a range whose data is not there would write zeros");
        ranges::encode_mark(1, &mut log);
        ranges::encode_range(50..150, &mut log);
        edit.ranges = Some(log);
        let Plan::Resume { ranges, size: 100 } = alone(&edit, true) else { panic!("resumed") };
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [0..10]);
        let Plan::Resume { ranges, .. } = alone(&edit, false) else { panic!("resumed") };
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [0..10, 50..100], "cut at the end of the file");
    }

    #[test]
    fn a_session_without_a_name_or_a_file_brings_nothing() {
        let mut gone = evidence(true);
        gone.inode = None;
        assert_eq!(alone(&gone, false), Plan::Discard);
        let mut gone = evidence(true);
        gone.file = None;
        assert_eq!(alone(&gone, false), Plan::Lost);
    }

    /// Two sessions of one inode: what the first left uncommitted, and one that began after.
    fn two(first: (bool, Option<u64>), second: (bool, Option<u64>)) -> [Evidence; 2] {
        [first, second].map(|(whole, synced)| {
            let mut found = evidence(whole);
            found.row.synced_size = synced;
            if !whole {
                let mut log = Vec::new();
                ranges::encode_range(0..10, &mut log);
                if synced.is_some() {
                    ranges::encode_mark(1, &mut log);
                }
                found.ranges = Some(log);
            }
            found
        })
    }

    fn kinds(plans: &[Plan]) -> Vec<&'static str> {
        let kind = |plan: &Plan| match plan {
            Plan::Resume { .. } => "resume",
            Plan::Lost => "lost",
            Plan::Superseded => "superseded",
            Plan::Discard => "discard",
        };
        plans.iter().map(kind).collect()
    }

    #[test]
    fn s6_after_a_power_cut_an_edit_of_what_is_not_surely_there_does_not_count() {
        let (lost, synced) = ((true, None), (true, Some(100)));
        for (first, second, expected) in [
            (lost, (false, Some(0)), ["lost", "lost"]),
            (synced, (false, Some(0)), ["resume", "lost"]),
            (synced, (false, None), ["resume", "lost"]),
            (synced, (true, None), ["resume", "lost"]),
            (synced, synced, ["superseded", "resume"]),
            (lost, synced, ["superseded", "resume"]),
            ((false, Some(0)), (false, Some(0)), ["resume", "lost"]),
        ] {
            assert_eq!(kinds(&plan(&two(first, second), true)), expected, "{first:?} {second:?}");
            assert_eq!(kinds(&plan(&two(first, second), false)), ["resume", "resume"], "after a kill all count");
        }
    }

    #[test]
    fn s6_a_session_whose_sync_failed_counts_as_after_a_power_cut() {
        let mut failed = evidence(true);
        failed.unsynced = true;
        let mut other = evidence(true);
        other.row.ino = InodeId(3);
        assert_eq!(kinds(&plan(&[failed, other], false)), ["lost", "resume"]);
    }
}
