//! Carrying out the plan: rows first, then the sessions go on as frozen ones.
//!
//! Bytes may be younger than the slot (written after the last FLUSH, before the crash): all resumed slots and the records
//! since are one unit (O6).

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::evidence::{self, Evidence};
use super::plan::Plan;
use crate::chunk::file::unsynced_path;
use crate::clock::Timestamp;
use crate::id::{InodeId, SessionId};
use crate::meta::inode::Inode;
use crate::meta::slot::SlotRequest;
use crate::meta::{Error, Meta, Result, Tx};
use crate::write::Files;
use crate::write::live::Attributes;
use crate::write::ranges::RangeSet;
use crate::write::session::{Frozen, remove_files};

/// By how much a staged file may be younger than the ctime of its slot and hold nothing younger: the slot's time is read
/// before or after the system call that stamps the file.
const STAMP_SLACK: Duration = Duration::from_millis(10);

/// Applies the plans of all sessions, oldest first. After a power cut (`rebooted`) those that go on are marked, so that a
/// recovery that follows a mere kill still counts no more of them.
pub fn apply(meta: &Meta, files: &Arc<Files>, found: Vec<Evidence>, plans: Vec<Plan>, rebooted: bool) -> Result<()> {
    if plans.is_empty() {
        return Ok(());
    }
    meta.write(|tx| {
        for (evidence, plan) in found.iter().zip(&plans) {
            match plan {
                Plan::Resume { .. } => {}
                Plan::Lost | Plan::Superseded => tx.void_lost(evidence.row.id)?,
                Plan::Discard => tx.delete_session(evidence.row.id)?,
            }
        }
        // By now the inodes have size and times of the newest session that goes on.
        let mut resumed: Vec<SessionId> = Vec::new();
        let mut newest: HashSet<InodeId> = HashSet::new();
        for (evidence, plan) in found.iter().zip(&plans).rev() {
            let Plan::Resume { size, .. } = plan else { continue };
            // One that another follows was frozen after its slot had covered it.
            if newest.insert(evidence.row.ino) {
                renew(tx, evidence, *size)?;
            }
            resumed.push(evidence.row.id);
        }
        tx.join_slots(&resumed)
    })?;
    if rebooted {
        mark_unsynced(files, &found, &plans)
            .map_err(|source| Error::Io { what: "mark the sessions of before a power cut".into(), source })?;
    }
    meta.sync()?;
    for (evidence, plan) in found.into_iter().zip(plans) {
        match plan {
            Plan::Resume { ranges, size } => resume(meta, files, &evidence, ranges, size)?,
            Plan::Discard => {
                for path in evidence::paths(&evidence.row) {
                    if let Err(error) = remove_files(files.chunk_files(), &path) {
                        tracing::warn!(%path, %error, "the file of an inode without a name could not be removed");
                    }
                }
            }
            // No row knows the file any more: it goes to quarantine with the others (S7).
            Plan::Lost | Plan::Superseded => {}
        }
    }
    Ok(())
}

fn mark_unsynced(files: &Files, found: &[Evidence], plans: &[Plan]) -> io::Result<()> {
    let files = files.chunk_files();
    let mut marked = false;
    for (evidence, plan) in found.iter().zip(plans) {
        if let (Plan::Resume { .. }, false, Some(path)) = (plan, evidence.unsynced, &evidence.path) {
            files.create(&unsynced_path(path))?;
            marked = true;
        }
    }
    if marked { Ok(rustix::fs::syncfs(File::open(files.state_dir())?)?) } else { Ok(()) }
}

/// Makes the layers that [`apply`] would make, in memory only. Nobody seals them.
pub fn show(meta: &Meta, files: &Arc<Files>, found: Vec<Evidence>, plans: Vec<Plan>) -> Result<()> {
    let mut lost: Vec<InodeId> = Vec::new();
    for (evidence, plan) in found.into_iter().zip(plans) {
        let row = &evidence.row;
        match plan {
            Plan::Resume { ranges, size } => resume(meta, files, &evidence, ranges, size)?,
            Plan::Lost if !lost.contains(&row.ino) => {
                // The inode's row has size and times of the slot; a layer without bytes shows those of the content before.
                lost.push(row.ino);
                let (size, mtime, ctime) = row.before;
                let frozen = frozen(&evidence, RangeSet::default(), size, size, false);
                files.resume(row.ino, meta.inode(row.ino)?.parent, Attributes { size, mtime, ctime }, frozen);
            }
            Plan::Lost | Plan::Superseded | Plan::Discard => {}
        }
    }
    Ok(())
}

fn resume(meta: &Meta, files: &Arc<Files>, evidence: &Evidence, ranges: RangeSet, size: u64) -> Result<()> {
    let row = &evidence.row;
    let inode = meta.inode(row.ino)?;
    let attributes = Attributes { size: inode.size, mtime: inode.mtime, ctime: inode.ctime };
    let base_limit = row.base_limit.min(size);
    let frozen = frozen(evidence, ranges, size, base_limit, row.whole);
    files.resume(row.ino, inode.parent, attributes, frozen);
    Ok(())
}

fn frozen(evidence: &Evidence, ranges: RangeSet, size: u64, base_limit: u64, whole: bool) -> Frozen {
    let path = evidence.path.clone().unwrap_or_default();
    Frozen { id: evidence.row.id, whole, base_limit, path, ranges, size, accounted: 0, kept: Default::default() }
}

/// Gives the slot size and times of the recovered bytes, where those are younger than it.
fn renew(tx: &mut Tx<'_>, evidence: &Evidence, size: u64) -> Result<()> {
    let row = &evidence.row;
    let Some(slot) = tx.slot_of(row.id)? else { return Ok(()) };
    let inode = Inode::get(tx.conn(), row.ino)?;
    let touched = evidence.file.map_or(Timestamp::EPOCH, |file| file.mtime);
    // Against ctime: a program may have set mtime to whatever it liked after its last write.
    let younger = touched.since(inode.ctime) > STAMP_SLACK;
    if slot.size == size && !younger {
        return Ok(());
    }
    // The inode's times: they are those of the slot, or were set after it.
    let (mtime, ctime) = if younger { (touched, touched) } else { (inode.mtime, inode.ctime) };
    tx.reserve_slot(&SlotRequest {
        ino: row.ino,
        session: row.id,
        base: row.base,
        whole: row.whole,
        base_limit: row.base_limit.min(size),
        synced_size: row.synced_size,
        size,
        mtime,
        ctime,
        fsynced: slot.fsynced,
    })?;
    Ok(())
}
