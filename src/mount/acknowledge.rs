//! Waiting until enough targets have what `close` or `fsync` acknowledges (D3).
//!
//! Owns: hurrying everything on the way, the wait and its end, what was refused and is still on its way, for `status`.
//! Does not own: when a policy is met (`replication::ack`), which policy holds (`vfs::acknowledge`).
//!
//! On the way of a file that is waited for, nothing waits for company: its small pieces are gathered at once (S9), its
//! chunks go before others, its record is shipped at once (T2).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::news as watch;
use async_trait::async_trait;
use futures::future::select_all;
use parking_lot::Mutex;

use super::attention::{NAMED_MAX, attention, path_of};
use super::live::Live;
use super::replication::Replication;
use crate::clock::{self, Instant};
use crate::control::status::{Attention, AttentionKind};
use crate::id::{InodeId, Seq};
use crate::meta::Meta;
use crate::replication::ack::{self, Standing, Verdict};
use crate::replication::gate::Gate;
use crate::replication::shipper::Progress;
use crate::vfs::acknowledge::{Acknowledger, Refusal, Wanted};

/// What is waited for without end in sight may wait for other files that stay open: after this long they are cut, too.
const CUT_OTHERS_AFTER: Duration = Duration::from_secs(1);
/// And again, as they are written to.
const CUT_OTHERS_EVERY: Duration = Duration::from_secs(5);
/// Nothing tells of a gate that shuts: this often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Chunks that are put before others at a time.
const CHUNKS_MAX: usize = 1024;
/// Refusals that are kept in mind at most.
const LATE_MAX: usize = 10_000;

/// Acknowledges for a mount.
pub struct Acknowledging(pub Arc<Live>);

#[async_trait]
impl Acknowledger for Acknowledging {
    async fn acknowledged(&self, wanted: Wanted) -> Result<(), Refusal> {
        let result = self.0.wait(wanted).await;
        match result {
            Ok(()) => self.0.late.over(wanted.ino, wanted.seq),
            Err(_) => self.0.late.note(wanted),
        }
        result
    }
}

impl Live {
    async fn wait(&self, wanted: Wanted) -> Result<(), Refusal> {
        // What was acknowledged before is asked for again and again: by each close of a file that was not changed.
        if let Verdict::Met = verdict(&self.meta, &self.replication, &wanted) {
            return Ok(());
        }
        let _hurry = (self.files.hurry(), self.replication.hurry_shippers());
        let mut targets = self.replication.watch();
        let mut settled = self.files.settled_news();
        let mut sealing = self.files.newest_frozen(wanted.ino);
        let mut chunks_go_first = false;
        let mut cut_others_at = clock::instant() + CUT_OTHERS_AFTER;
        loop {
            targets.iter_mut().for_each(|target| target.mark_unchanged());
            settled.mark_unchanged();
            match verdict(&self.meta, &self.replication, &wanted) {
                Verdict::Met => return Ok(()),
                Verdict::Hopeless => return Err(Refusal::Hopeless),
                Verdict::Waiting => {}
            }
            let now = clock::instant();
            if now >= wanted.deadline {
                return Err(Refusal::Late);
            }
            if let Some(newest) = sealing
                && !self.files.is_frozen(wanted.ino, newest).unwrap_or(true)
            {
                sealing = None;
            }
            if sealing.is_none() && !chunks_go_first {
                chunks_go_first = true;
                self.send_first(wanted.ino);
            }
            if now >= cut_others_at {
                cut_others_at = now + CUT_OTHERS_EVERY;
                self.cut_others().await;
            }
            let any_target = async {
                if targets.is_empty() {
                    std::future::pending::<()>().await;
                }
                // One that was removed or paused says nothing more.
                let change = |target: &'_ mut watch::Receiver<Progress>| {
                    let mut target = target.clone();
                    Box::pin(async move {
                        if target.changed().await.is_err() {
                            std::future::pending::<()>().await;
                        }
                    })
                };
                let _ = select_all(targets.iter_mut().map(change)).await;
            };
            let left = wanted.deadline.since(now).min(cut_others_at.since(now)).min(LOOK_EVERY);
            tokio::select! {
                biased;
                () = any_target => {}
                _ = settled.changed(), if sealing.is_some() => {}
                // A millisecond more: a sleep that ends a moment early would only be repeated.
                () = clock::sleep(left + Duration::from_millis(1)) => {}
            }
        }
    }

    /// The content is committed: its chunks go before others, and the shippers look at its record, which tells nobody of
    /// itself where it needs no chunk.
    fn send_first(&self, ino: InodeId) {
        match self.meta.chunks_lacking(ino, CHUNKS_MAX) {
            Ok(chunks) => self.replication.send_first(&chunks),
            Err(error) => tracing::warn!(inode = ino.0, %error, "chunks that are waited for cannot be looked up"),
        }
        self.replication.ship_now();
    }

    /// Records that must not be overtaken may wait for files that stay open.
    async fn cut_others(&self) {
        let files = self.files.clone();
        let cut = crate::aside::blocking(move || {
            files.births().settled_all();
            files.rotate()
        });
        if let Ok(Err(error)) = cut.await {
            tracing::warn!(%error, "open files that somebody waits for could not take their place in history");
        }
        self.replication.ship_now();
    }
}

fn verdict(meta: &Meta, replication: &Replication, wanted: &Wanted) -> Verdict {
    let Ok(rows) = meta.targets() else { return Verdict::Waiting };
    let standings: Vec<Standing> = rows
        .iter()
        .map(|row| {
            let holds = replication.holds(row.bit);
            let has =
                |holds: &ack::Holds| if wanted.all_before { holds.has_all(wanted.seq) } else { holds.has(wanted.seq) };
            match holds {
                _ if row.shipped_seq >= wanted.seq => Standing::Has,
                Some(holds) if has(&holds) => Standing::Has,
                None => Standing::Never,
                Some(_) if matches!(replication.gate(row.bit), Gate::Fenced { .. }) => Standing::Never,
                Some(_) => Standing::May,
            }
        })
        .collect();
    ack::judge(wanted.policy, &standings)
}

/// What was refused: a call failed, and its data is still on its way.
#[derive(Default)]
pub struct Late {
    refused: Mutex<BTreeMap<InodeId, (Wanted, Instant)>>,
}

impl Late {
    fn note(&self, wanted: Wanted) {
        let mut refused = self.refused.lock();
        if let Some((known, _)) = refused.get_mut(&wanted.ino) {
            *known = wanted;
        } else if refused.len() < LATE_MAX {
            refused.insert(wanted.ino, (wanted, clock::instant()));
        }
    }

    fn over(&self, ino: InodeId, seq: Seq) {
        let mut refused = self.refused.lock();
        if refused.get(&ino).is_some_and(|(wanted, _)| wanted.seq <= seq) {
            refused.remove(&ino);
        }
    }

    /// What enough targets still lack, for `status`; what they have by now is forgotten.
    pub fn attention(&self, live: &Live) -> Vec<Attention> {
        let mut refused = self.refused.lock();
        refused.retain(|_, (wanted, _)| verdict(&live.meta, &live.replication, wanted) != Verdict::Met);
        let now = clock::instant();
        refused
            .iter()
            .take(NAMED_MAX)
            .map(|(&ino, (wanted, since))| Attention {
                path: path_of(&live.meta, ino),
                inode: Some(ino.0),
                since_seconds: Some(now.since(*since).as_secs()),
                ..attention(
                    AttentionKind::Late,
                    format!(
                        "a close or fsync failed: too few targets had it in time for the policy \"{}\"; it is safe in the \
                         state directory and stays queued; see which target is ill",
                        wanted.policy
                    ),
                )
            })
            .collect()
    }
}
