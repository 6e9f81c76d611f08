//! GC: what no file refers to any more leaves every target, after a time of grace (T9, T5, S3).
//!
//! Owns: the horizon up to which a target's garbage may go (pure), the plan for people, rounds of DELETE requests and their
//! pace, asking for checkpoints where only these hold garbage back.
//! Does not own: rows and their transactions (`meta::gc`), trimming checkpoints and segments (`replication::checkpoint`).
//!
//! ```text
//! evidence: older kept checkpoint, head before the grace period ─▶ horizon ─▶ bits taken (durable) ─▶ no other writer?
//!           ─▶ DELETEs, a few at a time ─▶ answered: noted ─▶ a minute later: may be put again ─▶ rows go
//! ```
//!
//! - A chunk may leave T when it was dead by S of the older checkpoint that is kept on T, so that no state which can be
//!   restored from T names it; and when it has been dead for the grace period.
//! - Put and delete of one chunk are one flight: while there is a row in `deletion`, nothing puts it there.
//! - The grace period is counted in steady seconds (`meta::steady`): no clock that jumps makes it shorter or longer.
//! - Crash: a bit that is gone with its object still there is deleted again; a DELETE of nothing is a success.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};

use crate::clock;
use crate::format::key;
use crate::id::{ChunkHash, Seq, TargetBit};
use crate::meta::gc::Amount;
use crate::meta::target::{Mode, TargetRow};
use crate::meta::{self, Meta};
use crate::replication::contact::{self, Own};
use crate::target::{self, DynTarget};
use crate::testing::failpoint::{self, Point};

/// Chunks that lose their bit in one transaction, and are deleted before the next.
const BATCH: usize = 64;
/// DELETE requests at a time to one target.
const REQUESTS: usize = 4;
/// Between two batches: at most 256 requests a second, so that uploads hardly notice.
pub const PAUSE: Duration = Duration::from_millis(250);
/// So long after its DELETE a chunk is not put there again: a late one might still take effect.
const SETTLE: Duration = Duration::from_secs(60);
/// A filesystem that nobody changes for so long is idle.
const IDLE_SECS: i64 = 60;
/// A single DELETE that is not answered for this long is asked again in the next round.
const PATIENCE: Duration = Duration::from_secs(60);
/// Less garbage than this part of the slack is not worth two checkpoints.
const CHECKPOINT_PART: u64 = 2;

/// What of a target's garbage may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Horizon {
    /// S of the older kept checkpoint; `None`: there are not two yet, nothing goes.
    pub checkpoint: Option<Seq>,
    /// What was dead before the grace period began; `None`: nothing is known to have been.
    pub grace: Option<Seq>,
}

impl Horizon {
    /// What was dead by this place may go; `None`: nothing. Pure.
    pub fn seq(&self) -> Option<Seq> {
        Some(self.checkpoint?.min(self.grace?))
    }
}

/// What would be done on one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub bit: TargetBit,
    pub name: String,
    pub horizon: Horizon,
    /// Goes now.
    pub now: Amount,
    /// Is dead, and goes later.
    pub later: Amount,
    /// Of that, what only checkpoints hold back.
    pub by_checkpoints: Amount,
    /// What lies there: chunks, and segments since its last checkpoint.
    pub stored: u64,
}

impl Plan {
    /// Collects the evidence for one target. Blocks on the store.
    pub fn of(meta: &Meta, row: &TargetRow, now_secs: i64, grace: Duration) -> meta::Result<Plan> {
        let horizon =
            Horizon { checkpoint: meta.older_checkpoint(row.bit)?, grace: meta.head_at(before(now_secs, grace))? };
        let amount = |seq: Option<Seq>| seq.map_or(Ok(Amount::default()), |seq| meta.garbage(row.bit, seq));
        let (now, by_grace) = (amount(horizon.seq())?, amount(horizon.grace)?);
        let all = meta.garbage(row.bit, meta.head().next())?;
        let placed = meta.tallies()?.iter().find(|(bit, _)| *bit == row.bit).map_or(0, |(_, tally)| tally.placed_bytes);
        let segments = meta.cursor(row.bit)?.segment_bytes;
        let less = |a: Amount, b: Amount| Amount {
            chunks: a.chunks.saturating_sub(b.chunks),
            bytes: a.bytes.saturating_sub(b.bytes),
        };
        Ok(Plan {
            bit: row.bit,
            name: row.name.clone(),
            horizon,
            now,
            later: less(all, now),
            by_checkpoints: less(by_grace, now),
            stored: placed + segments,
        })
    }

    /// One line for people.
    pub fn line(&self, grace: Duration) -> String {
        let amount = |amount: Amount| {
            format!("{} in {} objects", bytesize::ByteSize(amount.bytes).display().iec(), amount.chunks)
        };
        let mut line = format!("target {:?}: {} can go now", self.name, amount(self.now));
        if self.now.chunks > 0 {
            line += &format!(", with {} requests to delete", self.now.chunks);
        }
        if self.later.chunks > 0 {
            line += &format!("; {} later", amount(self.later));
            if self.by_checkpoints.chunks > 0 {
                line += &format!(", of which {} when two newer checkpoints are there", amount(self.by_checkpoints));
            }
            if self.later != self.by_checkpoints {
                line += &format!(", the youngest in {}", humantime::format_duration(grace));
            }
        }
        line
    }

    /// True if checkpoints are worth their while for what they would set free: more lies there than twice what lives and
    /// `slack`, and enough of it is their fault.
    pub fn wants_checkpoints(&self, live_bytes: u64, slack: u64) -> bool {
        let held = self.by_checkpoints.bytes;
        held > slack / CHECKPOINT_PART && self.stored > live_bytes.saturating_mul(2).saturating_add(slack)
    }
}

/// True if a target's garbage may be removed at all now: it follows, so that what it needs is known.
pub fn is_due(row: &TargetRow) -> bool {
    row.mode == Mode::Follow && row.initialised && !row.relist && row.paused_until.is_none()
}

/// The newest second that is over for as long as `time`. Seconds are whole: what was noted in one may have happened at its end,
/// and now may be the beginning of another.
fn before(now_secs: i64, time: Duration) -> i64 {
    let secs = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    now_secs.saturating_sub(secs).saturating_sub(i64::from(!time.is_zero()))
}

/// Notes the present place of history, and lets go of what is over. What died by the newest change waits for the next one:
/// if there is none for long, history takes a step by itself. Blocks on the store.
pub fn tick(meta: &Meta, now_secs: i64, grace: Duration) -> meta::Result<()> {
    if meta.head_at(now_secs.saturating_sub(IDLE_SECS))? == Some(meta.head()) {
        meta.step_history()?;
    }
    meta.note_time(now_secs, before(now_secs, grace))?;
    meta.expire_deletions(before(now_secs, SETTLE))?;
    while meta.drop_chunk_rows(BATCH)? == BATCH as u64 {}
    Ok(())
}

/// Why a round ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The target failed; what was begun is gone on with in the next round.
    #[error(transparent)]
    Target(#[from] target::Error),
    /// Our own store failed.
    #[error(transparent)]
    Meta(#[from] meta::Error),
    /// Somebody else writes there (T7).
    #[error("another mount writes there")]
    Fenced,
}

/// Removes everything from one target that may go, with a pause after each batch; returns how many objects went. What was
/// begun before goes first.
pub async fn collect(
    meta: &Arc<Meta>,
    target: &DynTarget,
    bit: TargetBit,
    horizon: Option<Seq>,
    pause: Duration,
) -> Result<u64, Error> {
    let mut gone = 0;
    loop {
        let mut batch = meta.open_deletions(bit, BATCH)?;
        if batch.is_empty()
            && let Some(horizon) = horizon
        {
            let beginning = Arc::clone(meta);
            batch = blocking(move || beginning.begin_deletions(bit, horizon, BATCH)).await?;
        }
        if batch.is_empty() {
            return Ok(gone);
        }
        let own = Own::of(meta, bit)?;
        if contact::fenced_by(target, &own).await?.is_some() {
            return Err(Error::Fenced);
        }
        target.check_place().await?;
        failpoint::pass(Point::GcBegun);
        let answers: Vec<(ChunkHash, target::Result<()>)> = stream::iter(batch)
            .map(|chunk| async move {
                let key = key::chunk(chunk);
                let answer = match clock::timeout(PATIENCE, target.delete(&key)).await {
                    Ok(answer) => answer,
                    Err(_) => Err(target::Error {
                        kind: target::Kind::Unreachable,
                        class: target::Class::Ambiguous,
                        operation: "delete",
                        key,
                        message: "no answer in time".into(),
                        retry_after: None,
                    }),
                };
                (chunk, answer)
            })
            .buffer_unordered(REQUESTS)
            .collect()
            .await;
        let done: Vec<ChunkHash> =
            answers.iter().filter(|(_, answer)| answer.is_ok()).map(|(chunk, _)| *chunk).collect();
        gone += done.len() as u64;
        failpoint::pass(Point::GcDeleted);
        let (noting, now) = (Arc::clone(meta), meta.steady_secs());
        blocking(move || noting.deletions_done(bit, &done, now)).await?;
        if let Some(error) = answers.into_iter().find_map(|(_, answer)| answer.err()) {
            return Err(error.into());
        }
        clock::sleep(pause).await;
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> meta::Result<T> + Send + 'static) -> meta::Result<T> {
    match crate::aside::blocking(work).await {
        Ok(result) => result,
        Err(ended) => Err(meta::Error::Damaged(ended.to_string())),
    }
}

#[cfg(test)]
mod tests;
