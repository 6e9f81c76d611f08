//! Waiting until targets hold history up to a place.
//!
//! Owns: the loop, its deadline, its progress, and the error that says what waits for whom.
//! Does not own: bringing it there (`replication`), what must be sealed first (`write`).
//!
//! A target that holds every record up to a place holds every chunk these name (the shipper sends nothing else), so the
//! low water of its confirmed segments is all there is to ask.

use std::collections::BTreeMap;
use std::time::Duration;

use super::parts::Parts;
use crate::clock::{self, Instant};
use crate::control::protocol::Phase;
use crate::control::{Error, ErrorKind, Progress, ProgressSender, TargetProgress, Wait};
use crate::id::{Seq, TargetBit};
use crate::meta::target::TargetRow;
use crate::replication::gate::Gate;

/// How often the low waters are looked at: one row per target.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often progress is reported.
const REPORT_EVERY: Duration = Duration::from_millis(200);

/// What is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Goal {
    /// History up to here.
    pub seq: Seq,
    /// On how many targets.
    pub wait: Wait,
    /// When to give up.
    pub deadline: Option<Instant>,
}

/// Waits until the goal is reached. Gives up at the deadline ([`ErrorKind::Timeout`]), or at once when a target that is
/// needed can never get there because another writer holds it.
pub async fn drain(parts: &dyn Parts, goal: Goal, progress: Option<&ProgressSender>) -> Result<(), Error> {
    let _hurry = parts.hurry(goal.seq);
    let mut report_at = Instant::START;
    loop {
        let rows = parts.meta().targets().map_err(|e| Error::failed(e.to_string()))?;
        let lacking: Vec<&TargetRow> = rows.iter().filter(|row| row.shipped_seq < goal.seq).collect();
        if rows.len() - lacking.len() >= needed(goal.wait, rows.len())? {
            return Ok(());
        }
        check_latch(parts)?;
        let now = clock::instant();
        let fenced: Vec<_> = lacking.iter().filter_map(|row| fence(parts, row)).collect();
        let possible = rows.len() - fenced.len();
        if let (true, Some((name, reason, hint))) =
            (possible < needed(goal.wait, rows.len())?, fenced.into_iter().next())
        {
            return Err(
                Error::failed(format!("target {name:?} takes no more changes of this mount: {reason}")).hint(hint)
            );
        }
        if goal.deadline.is_some_and(|deadline| now >= deadline) {
            return Err(not_in_time(parts, goal, &rows)?);
        }
        if let Some(progress) = progress
            && now >= report_at
        {
            progress.send(Progress { phase: Phase::Draining, targets: measure(parts, goal.seq, &rows)? });
            report_at = now + REPORT_EVERY;
        }
        clock::sleep(LOOK_EVERY).await;
    }
}

/// The end of all waiting: after a failed sync nothing more is brought anywhere.
fn check_latch(parts: &dyn Parts) -> Result<(), Error> {
    match parts.meta().latched() {
        None => Ok(()),
        Some(why) => Err(Error::failed(format!("nothing more is acknowledged after a failed sync: {why}"))
            .hint("look at the disk of the state directory, then umount (by force) and mount again")),
    }
}

/// Waits until everything up to the goal survives a power cut: every slot is filled, which happens after its bytes are
/// synced (S2), and the log of the metadata is synced.
pub async fn until_durable(parts: &dyn Parts, goal: Goal) -> Result<(), Error> {
    let _hurry = parts.hurry(goal.seq);
    let failed = |e: crate::meta::Error| Error::failed(e.to_string());
    while parts.meta().has_open_slot(goal.seq).map_err(failed)? {
        check_latch(parts)?;
        if goal.deadline.is_some_and(|deadline| clock::instant() >= deadline) {
            return Err(Error::new(ErrorKind::Timeout, "not in time: files are still being hashed")
                .hint("everything written survives the end of the daemon; it is hashed and synced in the background"));
        }
        clock::sleep(LOOK_EVERY).await;
    }
    let meta = parts.meta().clone();
    match crate::aside::blocking(move || meta.sync()).await {
        Ok(result) => result.map_err(failed),
        Err(panic) => Err(Error::failed(panic.to_string())),
    }
}

/// How many of `targets` targets a wait needs.
fn needed(wait: Wait, targets: usize) -> Result<usize, Error> {
    match wait {
        Wait::Local => Ok(0),
        Wait::All => Ok(targets),
        Wait::Quorum => Ok(targets / 2 + 1),
        Wait::Count(count) if count as usize <= targets => Ok(count as usize),
        Wait::Count(count) => {
            Err(Error::new(ErrorKind::Usage, format!("cannot wait for {count} targets: this filesystem has {targets}"))
                .hint("wait for at most as many as there are, or for all"))
        }
    }
}

fn fence(parts: &dyn Parts, row: &TargetRow) -> Option<(String, String, String)> {
    match parts.gate(row.bit) {
        Gate::Fenced { reason, hint } => Some((row.name.clone(), reason, hint)),
        _ => None,
    }
}

/// How far each target is from holding everything up to `seq`.
pub fn measure(parts: &dyn Parts, seq: Seq, rows: &[TargetRow]) -> Result<Vec<TargetProgress>, Error> {
    let tallies: BTreeMap<TargetBit, _> =
        parts.meta().tallies().map_err(|e| Error::failed(e.to_string()))?.into_iter().collect();
    Ok(rows
        .iter()
        .map(|row| {
            let done = row.shipped_seq >= seq;
            let tally = tallies.get(&row.bit).copied().unwrap_or_default();
            TargetProgress {
                name: row.name.clone(),
                // What came after the goal is not waited for.
                pending_bytes: if done { 0 } else { tally.pending_bytes },
                pending_objects: if done { 0 } else { tally.pending_chunks },
                pending_records: seq.0.saturating_sub(row.shipped_seq.0),
                done,
                reason: if done { None } else { parts.complaint(row.bit).map(|(reason, _)| reason) },
            }
        })
        .collect())
}

/// What waits for whom, and that nothing is lost.
fn not_in_time(parts: &dyn Parts, goal: Goal, rows: &[TargetRow]) -> Result<Error, Error> {
    let lacking = measure(parts, goal.seq, rows)?;
    let lacking: Vec<String> =
        lacking.iter().filter(|target| !target.done).map(|target| format!("target {target}")).collect();
    Ok(Error::new(ErrorKind::Timeout, format!("not in time: {}", lacking.join("; ")))
        .hint("everything is safe in the state directory and stays queued; \"tandemfs status\" says what is wrong"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::parts::testing::Fake;

    fn goal(seq: u64, wait: Wait) -> Goal {
        Goal { seq: Seq(seq), wait, deadline: Some(clock::instant()) }
    }

    #[tokio::test]
    async fn each_wait_needs_its_number_of_targets() {
        let parts = Fake::new(&[("a", 5), ("b", 3), ("c", 1)]);
        for (seq, wait, reached) in [
            (9, Wait::Local, true),
            (5, Wait::Count(1), true),
            (6, Wait::Count(1), false),
            (3, Wait::Quorum, true),
            (4, Wait::Quorum, false),
            (1, Wait::All, true),
            (2, Wait::All, false),
        ] {
            assert_eq!(drain(&parts, goal(seq, wait), None).await.is_ok(), reached, "{seq} {wait}");
        }
        let error = drain(&parts, goal(1, Wait::Count(4)), None).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Usage);
    }

    #[tokio::test]
    async fn who_is_late_is_named_with_what_it_lacks() {
        let parts = Fake::new(&[("a", 5), ("b", 3)]);
        let error = drain(&parts, goal(5, Wait::All), None).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Timeout);
        assert_eq!(error.message, "not in time: target b lacks 2 records");
    }

    #[tokio::test]
    async fn a_fenced_target_is_not_waited_for() {
        let mut parts = Fake::new(&[("a", 5), ("b", 3)]);
        parts.fence("b");
        let patient = Goal { deadline: None, ..goal(5, Wait::All) };
        let error = drain(&parts, patient, None).await.unwrap_err();
        assert!(error.message.contains("\"b\""), "{error}");
        drain(&parts, Goal { wait: Wait::Count(1), ..patient }, None).await.unwrap();
    }
}
