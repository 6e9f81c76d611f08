//! Adopting a target that another mount wrote to: this mount's state counts there, what the other wrote is discarded (T7).
//!
//! Owns: the order of steps: a higher epoch than the other's, its segments noted as discarded, what lies there listed anew.
//! Does not own: the listing (`replication::stock`), the resync that follows.

use std::sync::Arc;

use super::live::Live;
use crate::clock;
use crate::control::{Error, ErrorKind};
use crate::format::key::{self, Key};
use crate::format::superblock::{BYTES_MAX, Superblock};
use crate::id::{Epoch, SegmentNumber, WriterId};
use crate::meta::target::TargetRow;
use crate::meta::{self, Meta};
use crate::replication::contact::{self, Asked};
use crate::replication::gate::Gate;
use crate::target::Target;

/// Makes this mount's state the one that counts on a target that is fenced.
pub async fn adopt(live: &Arc<Live>, row: &TargetRow) -> Result<Vec<String>, Error> {
    let name = &row.name;
    let Some((Asked { target, .. }, gate)) =
        live.replication.targets().into_iter().find(|(asked, _)| asked.bit == row.bit)
    else {
        return Err(Error::failed(format!("target {name:?} takes no part in this mount")));
    };
    if !matches!(gate.state(), Gate::Fenced { .. }) {
        return Err(Error::new(ErrorKind::Usage, format!("target {name:?} is not in the hands of another mount"))
            .hint("there is nothing to discard; tandemfs status says how it is"));
    }
    let failed = |error: crate::target::Error| Error::failed(format!("target {name:?}: {error}"));
    let bytes = target.get(key::SUPERBLOCK, BYTES_MAX).await.map_err(failed)?;
    let found = Superblock::decode(&bytes).map_err(|error| Error::failed(format!("target {name:?}: {error}")))?;
    let ours = live.meta.filesystem().map_err(internal)?;
    if found.filesystem != ours {
        return Err(Error::failed(format!(
            "target {name:?} holds another filesystem: {:?} ({})",
            found.name, found.filesystem
        ))
        .hint("what lies there is not ours to discard: use another place, tandemfs target replace"));
    }
    if live.meta.targets().map_err(internal)?.iter().any(|other| other.id == found.target && other.bit != row.bit) {
        return Err(Error::failed(format!("target {name:?} is the place of another target of this mount"))
            .hint("give each target a place of its own"));
    }
    let writers = contact::writers(&target, None).await.map_err(failed)?;
    let seen = writers.iter().map(|(epoch, _)| *epoch).max().unwrap_or_default();
    let theirs = segments(target.as_ref()).await.map_err(failed)?;
    let (bit, id) = (row.bit, found.target);
    let change = move |meta: &Arc<Meta>| {
        let known = meta.cursor(bit)?.confirmed.map(|confirmed| (confirmed.epoch, confirmed.writer, confirmed.n));
        let discarded: Vec<_> = theirs.into_iter().filter(|segment| Some(*segment) != known).collect();
        meta.adopt(bit, id, &discarded)?;
        meta.begin_relist(bit, "adopted from another mount", clock::now().secs())
    };
    live.replication.begin_epoch(seen, change).await.map_err(internal)?;
    Ok(vec![format!(
        "target {name:?} is ours: what it holds is listed and brought to this mount's state; changes that the other mount made \
         there are discarded"
    )])
}

async fn segments(target: &dyn Target) -> crate::target::Result<Vec<(Epoch, WriterId, SegmentNumber)>> {
    let (mut found, mut after) = (Vec::new(), None::<String>);
    loop {
        let page = target.list(key::JOURNAL, after.as_deref()).await?;
        found.extend(page.objects.iter().filter_map(|object| match key::parse(&object.key) {
            Key::Segment { epoch, writer, n } => Some((epoch, writer, n)),
            _ => None,
        }));
        match page.next {
            Some(next) if after.as_ref().is_none_or(|after| next > *after) => after = Some(next),
            _ => return Ok(found),
        }
    }
}

fn internal(error: meta::Error) -> Error {
    Error::failed(error.to_string())
}
