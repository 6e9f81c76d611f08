//! What counts of a session after a crash (S6). Pure.

use super::evidence::Evidence;
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
    /// Its inode has no name.
    Discard,
}

/// Decides on one session.
pub fn plan(evidence: &Evidence, rebooted: bool) -> Plan {
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
        };
        let row = SessionRow {
            id: SessionId(1),
            ino: InodeId(2),
            base: Generation(0),
            whole,
            base_limit: 0,
            slot: Some(Seq(2)),
            synced_size: None,
        };
        Evidence { row, inode: Some(inode), file: Some(StagedFile { length: 100, mtime: time }), ranges: None }
    }

    #[test]
    fn s6_after_kill_everything_written_counts() {
        assert_eq!(plan(&evidence(true), false), Plan::Resume { ranges: RangeSet::default(), size: 100 });
    }

    #[test]
    fn s6_after_a_power_cut_a_whole_session_counts_up_to_its_synced_size() {
        let mut whole = evidence(true);
        assert_eq!(plan(&whole, true), Plan::Lost);
        whole.row.synced_size = Some(60);
        assert_eq!(plan(&whole, true), Plan::Resume { ranges: RangeSet::default(), size: 60 });
    }

    #[test]
    fn s6_after_a_power_cut_an_edit_counts_up_to_its_last_mark() {
        let mut edit = evidence(false);
        let mut log = Vec::new();
        ranges::encode_range(0..10, &mut log);
        edit.ranges = Some(log.clone());
        assert_eq!(plan(&edit, true), Plan::Lost, "replaying a range whose data is not there would write zeros");
        ranges::encode_mark(1, &mut log);
        ranges::encode_range(50..150, &mut log);
        edit.ranges = Some(log);
        let Plan::Resume { ranges, size: 100 } = plan(&edit, true) else { panic!("resumed") };
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [0..10]);
        let Plan::Resume { ranges, .. } = plan(&edit, false) else { panic!("resumed") };
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [0..10, 50..100], "cut at the end of the file");
    }

    #[test]
    fn a_session_without_a_name_or_a_file_brings_nothing() {
        let mut gone = evidence(true);
        gone.inode = None;
        assert_eq!(plan(&gone, false), Plan::Discard);
        let mut gone = evidence(true);
        gone.file = None;
        assert_eq!(plan(&gone, false), Plan::Lost);
    }
}
