//! Taking stock of a target that lost objects: what is left is listed, and the target is resynced (T7 "behind", T4).
//!
//! Owns: the steps, each idempotent and durable before the next, so that a crash in between only repeats some.
//! Does not own: the verdict that objects are missing (`contact`), the resync that follows (`checkpoint`, `driver`).
//!
//! ```text
//! lost: nothing that it confirmed counts ─▶ take: bits forgotten ─▶ chunks listed ─▶ (announced) ─▶ sign: a segment of
//!                                                      this mount, so that the chain goes on behind the gap
//! ```

use std::sync::Arc;

use super::contact::Failure;
use super::shipper::{Shared, blocking, empty_segment};
use crate::clock;
use crate::format::key::{self, Key};
use crate::id::{ChunkId, Seq, TargetBit};
use crate::target::DynTarget;

/// Chunks whose bit is taken in one transaction (D8).
const PAGE: usize = 256;

/// Notes that a target lost objects. `announced`: this mount's announcement is still there.
pub(super) async fn lost(
    shared: &Shared,
    bit: TargetBit,
    name: &str,
    reason: &str,
    announced: bool,
) -> Result<(), Failure> {
    tracing::warn!(target_name = name, reason, "what the target still has is listed, then it is resynced");
    let (meta, epoch, why) = (Arc::clone(&shared.meta), shared.me.epoch, reason.to_owned());
    blocking(move || {
        meta.begin_relist(bit, &why, clock::now().secs())?;
        if announced {
            meta.set_contact_epoch(bit, epoch)?;
        }
        Ok(())
    })
    .await?;
    Ok(())
}

/// Lists what a target that lost objects still has, if that was not done since. True: then [`sign`] ends it.
pub(super) async fn take(shared: &Shared, bit: TargetBit, name: &str, target: &DynTarget) -> Result<bool, Failure> {
    let meta = &shared.meta;
    if !meta.targets()?.iter().any(|row| row.bit == bit && row.relist) {
        return Ok(false);
    }
    let forgetting = Arc::clone(meta);
    blocking(move || {
        let mut after = ChunkId(0);
        while let Some(last) = forgetting.forget_placed(bit, after, PAGE)? {
            after = last;
        }
        Ok(())
    })
    .await?;
    let (mut found, mut after) = (0, None::<String>);
    loop {
        let page = target.list(key::CHUNKS, after.as_deref()).await?;
        let listed: Vec<_> = page
            .objects
            .iter()
            .filter_map(|object| match key::parse(&object.key) {
                Key::Chunk(hash) => Some((hash, object.length)),
                _ => None,
            })
            .collect();
        let noting = Arc::clone(meta);
        found += blocking(move || noting.found(bit, &listed)).await?;
        match page.next {
            // A listing that goes round in circles would never end; what was not seen is sent again.
            Some(next) if after.as_ref().is_none_or(|after| next > *after) => after = Some(next),
            _ => break,
        }
    }
    tracing::info!(target_name = name, chunks = found, "listed what the target still has");
    Ok(true)
}

/// Stores a segment without records behind the gap; from here on what was listed counts.
pub(super) async fn sign(shared: &Shared, bit: TargetBit) -> Result<(), Failure> {
    let shared = shared.clone();
    blocking(move || {
        let cursor = shared.meta.cursor(bit)?;
        shared.meta.store_empty_segment(bit, &empty_segment(&shared, &cursor, Seq::ZERO))?;
        shared.meta.end_relist(bit)
    })
    .await?;
    Ok(())
}
