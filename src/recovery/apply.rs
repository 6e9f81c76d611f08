//! Carrying out the plan: rows first, then the sessions go on as frozen ones.
//!
//! Bytes may be younger than the slot (written after the last FLUSH, before the crash): all resumed slots and the records
//! since are one unit (O6).

use std::sync::Arc;

use super::evidence;
use super::plan::Plan;
use crate::id::SessionId;
use crate::meta::session::SessionRow;
use crate::meta::slot::SlotRequest;
use crate::meta::{Meta, Result, Tx};
use crate::write::Files;
use crate::write::live::Attributes;
use crate::write::session::{Frozen, remove_files};

/// Applies the plans of all sessions, oldest first.
pub fn apply(meta: &Meta, files: &Arc<Files>, plans: Vec<(SessionRow, Plan)>) -> Result<()> {
    if plans.is_empty() {
        return Ok(());
    }
    meta.write(|tx| {
        let mut resumed: Vec<SessionId> = Vec::new();
        for (row, plan) in &plans {
            match plan {
                Plan::Resume { size, .. } => {
                    renew(tx, row, *size)?;
                    resumed.push(row.id);
                }
                Plan::Lost => tx.void_lost(row.id)?,
                Plan::Discard => tx.delete_session(row.id)?,
            }
        }
        tx.join_slots(&resumed)
    })?;
    meta.sync()?;
    for (row, plan) in plans {
        let path = evidence::paths(&row).into_iter().find(|path| files.chunk_files().locate(path).exists());
        match (plan, path) {
            (Plan::Resume { ranges, size }, Some(path)) => {
                let inode = meta.inode(row.ino)?;
                let attributes = Attributes { size: inode.size, mtime: inode.mtime, ctime: inode.ctime };
                let frozen = Frozen {
                    id: row.id,
                    whole: row.whole,
                    base_limit: row.base_limit.min(size),
                    path,
                    ranges,
                    size,
                    accounted: 0,
                    kept: Default::default(),
                };
                files.resume(row.ino, inode.parent, attributes, frozen);
            }
            (_, Some(path)) => {
                if let Err(error) = remove_files(files.chunk_files(), &path) {
                    tracing::warn!(%path, %error, "the file of a session that does not count could not be removed");
                }
            }
            (_, None) => {}
        }
    }
    Ok(())
}

/// Gives the slot the size that the recovered bytes have; times stay those of the slot.
fn renew(tx: &mut Tx<'_>, row: &SessionRow, size: u64) -> Result<()> {
    let Some(slot) = tx.slot_of(row.id)? else { return Ok(()) };
    if slot.size == size {
        return Ok(());
    }
    tx.reserve_slot(&SlotRequest {
        ino: row.ino,
        session: row.id,
        base: row.base,
        whole: row.whole,
        base_limit: row.base_limit.min(size),
        synced_size: row.synced_size,
        size,
        mtime: slot.mtime,
        ctime: slot.ctime,
        fsynced: slot.fsynced,
    })?;
    Ok(())
}
