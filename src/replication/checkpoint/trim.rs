//! What goes from a target once a checkpoint is complete: older ones, leftovers, and the segments that none is replayed from.
//!
//! Owns: the plan (pure), the deletes. Does not own: chunks (`gc`), when (`checkpoint`).

use std::collections::BTreeMap;

use super::KEPT;
use crate::format::key::{self, CheckpointFile, Key};
use crate::id::{ExportId, SegmentNumber, Seq, TargetBit};
use crate::meta::Meta;
use crate::meta::checkpoint::CheckpointRow;
use crate::replication::contact::Failure;
use crate::target::{self, DynTarget, Kind};

/// Removes what no restore will want any more: our checkpoints but the newest two and what is older than those, leftovers of
/// those given up, and the segments before the older one's.
pub(super) async fn trim(meta: &Meta, bit: TargetBit, target: &DynTarget) -> Result<(), Failure> {
    let rows = meta.checkpoints(bit)?;
    let plan = plan_trim(&list(target, key::CHECKPOINTS).await?, &rows);
    for key in &plan.remove {
        target.delete(key).await?;
    }
    let Some(replay_from) = plan.replay_from() else { return Ok(()) };
    for row in rows.iter().filter(|row| row.complete && !plan.stay.contains(row) && !plan.newest.contains(row)) {
        meta.forget_checkpoint(bit, row.seq, row.export)?;
    }
    let newest = meta.cursor(bit)?.confirmed.map(|confirmed| confirmed.n);
    for object in list(target, key::JOURNAL).await? {
        if let Key::Segment { n, .. } = key::parse(&object)
            // The one before what is replayed proves the chain, and is what the next mount goes on from if nothing
            // follows; the newest is how contact knows the target again (T7).
            && n.next() < replay_from && newest.is_some_and(|newest| n < newest)
        {
            target.delete(&object).await?;
        }
    }
    Ok(())
}

/// What goes of a target's checkpoints.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TrimPlan {
    /// The newest of ours that are listed, newest first.
    pub stay: Vec<CheckpointRow>,
    /// The newest of ours, listed or not: what was written last may be missing in a listing for a while.
    pub newest: Vec<CheckpointRow>,
    /// Keys, in the order in which they go: first what makes a checkpoint complete.
    pub remove: Vec<String>,
}

impl TrimPlan {
    /// The first segment that one of those that stay is replayed from; `None` while there are not two. Not always the older
    /// one's: two may have the same seq.
    pub fn replay_from(&self) -> Option<SegmentNumber> {
        self.stay.get(KEPT - 1)?;
        self.stay.iter().map(|row| row.replay_from).min()
    }
}

/// Plans it from a listing and our rows. Pure. Complete checkpoints that have no row, of another lineage or from before a
/// restore, do not count as ours, and go only when they are older than what stays.
pub(super) fn plan_trim(objects: &[String], rows: &[CheckpointRow]) -> TrimPlan {
    let mut found: BTreeMap<(Seq, ExportId), Vec<(CheckpointFile, &String)>> = BTreeMap::new();
    for object in objects {
        if let Key::Checkpoint { seq, export, file } = key::parse(object) {
            found.entry((seq, export)).or_default().push((file, object));
        }
    }
    let is_complete =
        |files: &[(CheckpointFile, &String)]| files.iter().any(|(file, _)| *file == CheckpointFile::Complete);
    let newest_of = |wanted: &dyn Fn(&CheckpointRow) -> bool| {
        let mut newest: Vec<CheckpointRow> = rows.iter().filter(|row| row.complete && wanted(row)).copied().collect();
        newest.sort_by_key(|row| std::cmp::Reverse((row.seq, row.replay_from)));
        newest.truncate(KEPT);
        newest
    };
    let stay = newest_of(&|row| found.get(&(row.seq, row.export)).is_some_and(|files| is_complete(files)));
    let newest = newest_of(&|_| true);
    let older = stay.get(KEPT - 1).map(|row| row.seq);
    let mut remove = Vec::new();
    for ((seq, export), mut files) in found {
        let row = rows.iter().find(|row| (row.seq, row.export) == (seq, export));
        let goes = match row {
            Some(row) if !row.complete || stay.contains(row) || newest.contains(row) => false,
            Some(_) if is_complete(&files) => true,
            None if is_complete(&files) => older.is_some_and(|older| seq < older),
            _ => true,
        };
        if goes {
            files.sort_by_key(|(file, _)| *file != CheckpointFile::Complete);
            remove.extend(files.into_iter().map(|(_, object)| object.clone()));
        }
    }
    TrimPlan { stay, newest, remove }
}

/// All keys under a prefix.
async fn list(target: &DynTarget, prefix: &str) -> target::Result<Vec<String>> {
    let mut keys: Vec<String> = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = target.list(prefix, after.as_deref()).await?;
        keys.extend(page.objects.into_iter().map(|object| object.key));
        match page.next {
            Some(next) if Some(&next) > after.as_ref() => after = Some(next),
            Some(next) => {
                let message = format!("the listing goes round in circles at {next:?}");
                return Err(target::Error {
                    kind: Kind::Invalid,
                    class: target::Class::Temporary,
                    operation: "list",
                    key: prefix.to_owned(),
                    message,
                    retry_after: None,
                });
            }
            None => return Ok(keys),
        }
    }
}
