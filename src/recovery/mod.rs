//! Recovery, at every mount: what an earlier mount acknowledged and did not commit goes on.
//!
//! Owns: evidence about sessions that have a row, the decision what counts of each, handing them to the sealers; files that
//! no row knows ([`strays`]); files that programs still write into ([`adopt`]); that inodes without a name go.
//! Does not own: sealing (`write`), rows (`meta`).
//!
//! ```text
//! adopt (files) ──▶ evidence (I/O) ──▶ plan (pure) ──▶ apply (rows, then live files)
//! ```
//!
//! Running it twice changes nothing: a session keeps its row and its files until it is committed.

pub mod adopt;
pub mod apply;
pub mod evidence;
pub mod plan;
pub mod strays;

use std::sync::Arc;

use crate::id::InodeId;
use crate::meta::{Error, Meta, Result};
use crate::write::Files;

/// What recovery found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Sessions that go on to be sealed.
    pub resumed: usize,
    /// Of these, sessions whose file a program that outlived its daemon could still write into (S4).
    pub adopted: usize,
    /// Files that lost a session whose bytes a power cut took before any sync: they keep the generation before.
    pub lost: Vec<InodeId>,
    /// Sessions of inodes that have no name any more.
    pub discarded: usize,
    /// Inodes without a name that programs still held then: removed now, when nobody can.
    pub orphans: usize,
}

/// Recovers all sessions. `rebooted`: the machine was started anew since the last mount, so that only synced bytes count
/// (S6).
pub fn recover(meta: &Meta, files: &Arc<Files>, rebooted: bool) -> Result<Report> {
    let adopted = adopt_all(meta, files)?;
    let found = evidence::gather(meta, files)?;
    let plans = plan::plan(&found, rebooted);
    let mut report = Report { adopted, ..report(&found, &plans) };
    apply::apply(meta, files, found, plans, rebooted)?;
    report.orphans = meta.remove_all_orphans()?;
    Ok(report)
}

fn adopt_all(meta: &Meta, files: &Files) -> Result<usize> {
    let chunk_files = files.chunk_files();
    if let Err(error) = adopt::release(chunk_files) {
        tracing::warn!(%error, "files in quarantine may stay immutable");
    }
    let mut adopted = 0;
    // Only files that hold all of a content are ever given to the kernel (P1).
    for row in meta.sessions()?.into_iter().filter(|row| row.whole) {
        for path in evidence::paths(&row) {
            match adopt::adopt(chunk_files, &path) {
                Ok(copied) => adopted += usize::from(copied),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(Error::Io { what: format!("adopt {path}"), source }),
            }
        }
    }
    if adopted > 0 {
        tracing::warn!(adopted, "programs outlived the last mount and still write: what they wrote until now counts");
    }
    Ok(adopted)
}

/// Shows what recovery would make of the sessions, and changes nothing on disk: for a mount that may not.
pub fn show(meta: &Meta, files: &Arc<Files>, rebooted: bool) -> Result<Report> {
    let found = evidence::gather(meta, files)?;
    let plans = plan::plan(&found, rebooted);
    let report = report(&found, &plans);
    apply::show(meta, files, found, plans)?;
    Ok(report)
}

fn report(found: &[evidence::Evidence], plans: &[plan::Plan]) -> Report {
    let mut report = Report::default();
    for (evidence, plan) in found.iter().zip(plans) {
        match plan {
            plan::Plan::Resume { .. } => report.resumed += 1,
            plan::Plan::Lost => report.lost.push(evidence.row.ino),
            plan::Plan::Superseded => {}
            plan::Plan::Discard => report.discarded += 1,
        }
    }
    report.lost.sort_unstable();
    report.lost.dedup();
    report
}

#[cfg(test)]
mod tests;
