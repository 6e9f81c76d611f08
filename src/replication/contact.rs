//! First words with a target: is it the place we think it is, and is its history the one we know (T1, T7)?
//!
//! *Contact* is made at mount and after every outage, before anything is written: collect what the target says (I/O),
//! decide (pure), act (I/O, idempotent).
//!
//! Owns: the evidence, the verdict, announcing this mount as the target's writer, the survey at mount.
//! Does not own: reading `tandemfs.json` (`target::identity`), sending segments (`shipper`), the gate that the verdict drives
//! (`gate`).
//!
//! ```text
//! tandemfs.json  none, never seen ──▶ Fresh          none, seen before ──▶ Blocked (an unmounted disk)
//!                another filesystem or target ──▶ Conflict
//!                ours, but this restored state never spoke to it ──▶ MetAgain, if it has no changes that we lack
//! writers/       one at or above our epoch that is not us ──▶ Conflict (fenced)
//! journal/       newest = the one we confirmed, or stored ones after it, same bytes ──▶ Ours
//!                more than that ──▶ Conflict (we are older)      less ──▶ Behind (it lost data)
//! ```
//!
//! - At mount a conflict with one target refuses the mount, and nothing is written to any before all have answered or
//!   timed out: the mount of an old copy of a state directory must not touch what the newer one wrote. A read-only mount is
//!   refused only where the place is another one.
//! - A state directory that was restored from some targets meets the others later (D6). Their rows were made before anybody
//!   asked them, with an id drawn at random: the id that is found there is the row's from then on.
//! - A target that did not answer then is contacted later like any other; a conflict then fences that target alone.

mod place;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;

use crate::clock::{self, Timestamp};
use crate::format::key::{self, Key};
use crate::format::segment::{self, BODY_BYTES_MAX};
use crate::format::superblock::Superblock;
use crate::format::writer::{self, Ancestor, Parent, Writer};
use crate::id::{Epoch, FilesystemId, SegmentNumber, Seq, TargetBit, TargetId, WriterId};
use crate::meta::restored::{KnownWriter, MetAgain};
use crate::meta::shipping::{Cursor, SegmentId};
use crate::meta::{self, Meta};
use crate::restore::standing::{self, Standing};
use crate::restore::{self, Source};
use crate::target::identity::{self, Says};
use crate::target::{self, Class, DynTarget, Existing, Kind};
use place::Place;

/// Pages of a listing that are read before it is called endless: a target in order has one short page of news.
const PAGES_MAX: usize = 100;

/// This mount as a writer (T7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Me {
    pub filesystem: FilesystemId,
    /// Of the filesystem, for people.
    pub name: String,
    pub epoch: Epoch,
    pub writer: WriterId,
    /// For people.
    pub host: String,
    pub started: Timestamp,
}

impl Me {
    /// The mount that `meta` began last.
    pub fn of(meta: &Meta, started: Timestamp) -> meta::Result<Me> {
        let (epoch, writer, _) = meta.writer_identity()?;
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Ok(Me { filesystem: meta.filesystem()?, name: meta.filesystem_text("name")?, epoch, writer, host, started })
    }

    /// True if that segment is this mount's.
    pub fn wrote(&self, segment: Option<SegmentId>) -> bool {
        segment.is_some_and(|segment| (segment.epoch, segment.writer) == (self.epoch, self.writer))
    }
}

/// What this state directory knows of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    pub filesystem: FilesystemId,
    /// The writer that this state directory is, or was at its last mount.
    pub epoch: Epoch,
    pub writer: WriterId,
    pub cursor: Cursor,
    /// Built after the confirmed one, ascending.
    pub unconfirmed: Vec<SegmentId>,
    /// Of no effect, should they be there: seen when this state was restored (another history, or a unit that never ended), or
    /// given up when the target had lost others.
    pub discarded: Vec<(Epoch, WriterId, SegmentNumber)>,
    /// The journal head.
    pub head: Seq,
    /// Whose history this state was restored from; none if it never was.
    pub restored: Vec<KnownWriter>,
    /// The other targets: id, name, URI.
    pub others: Vec<(TargetId, String, String)>,
}

impl Own {
    /// Reads it.
    pub fn of(meta: &Meta, bit: TargetBit) -> meta::Result<Own> {
        let (epoch, writer, _) = meta.writer_identity()?;
        let others = meta.targets()?.into_iter().filter(|row| row.bit != bit);
        Ok(Own {
            filesystem: meta.filesystem()?,
            epoch,
            writer,
            cursor: meta.cursor(bit)?,
            unconfirmed: meta.unconfirmed(bit)?,
            discarded: meta.discarded_segments(bit)?,
            head: meta.head(),
            restored: meta.restored_lineage()?,
            others: others.map(|row| (row.id, row.name, row.uri)).collect(),
        })
    }

    /// True if this restored state may meet `found` here for the first time (D6).
    fn may_meet(&self, found: TargetId) -> bool {
        !self.cursor.initialised && !self.restored.is_empty() && self.others.iter().all(|(id, ..)| *id != found)
    }

    fn is_foreign(&self, writer: &(Epoch, WriterId)) -> bool {
        *writer != (self.epoch, self.writer) && writer.0 >= self.epoch
    }
}

/// A segment that lies on the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub place: segment::Place,
    /// The hash and highest seq that it says, where it was read: the stored ones, and the newest.
    pub read: Option<(crate::id::Hash, Seq)>,
}

/// What a target says.
#[derive(Debug, Clone)]
pub struct Evidence {
    /// Of itself. The rest is looked at only if it is a target of ours.
    pub says: Says,
    /// Its place could be made, but does not exist: a directory. Looked at only for a restored state.
    pub vacant: bool,
    /// All writers that ever announced themselves.
    pub writers: Vec<(Epoch, WriterId)>,
    /// What the highest foreign writer at or above our epoch says of itself, if it can be read.
    pub foreign: Option<Writer>,
    /// The newest confirmed segment and everything after it; without one, all segments.
    pub segments: Vec<Seen>,
    /// What it holds, if this restored state never spoke to it. Then `segments` is empty.
    pub standing: Option<Standing>,
}

/// What follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// An empty place that was never a target: it may be initialised.
    Fresh,
    /// The target that we know, with the history that we know.
    Ours,
    /// A target of ours that this restored state meets for the first time; it has no changes that we lack (D6).
    MetAgain(MetAgain),
    /// The target that we know, without some of what it confirmed: what is left is listed, the rest resynced.
    Behind {
        /// What is missing.
        reason: String,
    },
    /// Not now: an operator must look, but no other history is in danger.
    Blocked {
        /// What is wrong.
        reason: String,
        /// What to do.
        hint: String,
    },
    /// Another filesystem, target, writer or history: nothing may be written.
    Conflict {
        whom: Refused,
        /// What is wrong, with both sides.
        reason: String,
        /// What resolves it.
        hint: String,
    },
}

/// Whom a conflict keeps out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Whoever mounts: it is another place than the one that is meant, or a restore from it would have had more.
    Everybody,
    /// Who would write: its history goes on after the one that is known here, or is another's.
    Writers,
}

/// Collects what target `name` says. Reads only. An error: it cannot be asked now.
pub async fn gather(name: &str, target: &DynTarget, own: &Own) -> target::Result<Evidence> {
    let says = identity::inspect(target.as_ref()).await;
    if let Says::Failed(error) = &says
        && error.kind != Kind::PlaceMissing
        && error.class != Class::Rejected
    {
        return Err(error.clone());
    }
    let vacant = matches!(says, Says::Empty)
        && !own.restored.is_empty()
        && target.check_place().await.is_err_and(|error| error.kind == Kind::PlaceMissing);
    let mut evidence =
        Evidence { says, vacant, writers: Vec::new(), foreign: None, segments: Vec::new(), standing: None };
    let met = match place::judge(name, own, &evidence.says, vacant) {
        Place::Ours => None,
        Place::ToMeet(superblock) => Some(superblock),
        // What else lies there is nothing to us.
        Place::Ends(_) => return Ok(evidence),
    };
    evidence.writers = writers(target, None).await?;
    let newest_foreign = evidence.writers.iter().filter(|writer| own.is_foreign(writer)).max().copied();
    if let Some((epoch, id)) = newest_foreign {
        let bytes = target.get(&key::writer(epoch, id), writer::BYTES_MAX).await?;
        evidence.foreign = Writer::decode(&bytes, epoch, id).ok();
    }
    if let Some(superblock) = met {
        evidence.standing = Some(standing::read(&source(name, target), superblock).await?);
        return Ok(evidence);
    }
    // Keys sort by epoch, writer and number: one listing from just before the confirmed segment on is all the news.
    let before = own.cursor.confirmed.map(|confirmed| {
        let previous = SegmentNumber(confirmed.n.0 - 1);
        key::segment(confirmed.epoch, confirmed.writer, previous)
    });
    let id = own.cursor.id;
    evidence.segments = list(target, key::JOURNAL, before.as_deref(), |key| match key::parse(key) {
        Key::Segment { epoch, writer, n } => Some(Seen {
            place: segment::Place { filesystem: own.filesystem, target: id, epoch, writer, n },
            read: None,
        }),
        _ => None,
    })
    .await?;
    evidence.segments.retain(|Seen { place, .. }| !own.discarded.contains(&(place.epoch, place.writer, place.n)));
    let last = evidence.segments.len().saturating_sub(1);
    let stored: HashMap<_, _> = own.unconfirmed.iter().map(|id| ((id.epoch, id.writer, id.n), id)).collect();
    for (index, seen) in evidence.segments.iter_mut().enumerate() {
        let at = (seen.place.epoch, seen.place.writer, seen.place.n);
        if index == last || stored.contains_key(&at) {
            // One that cannot be read has no hash, so it is not the one that we know. That ends in a conflict, which only an
            // operator resolves: before, it is read once more.
            for _ in 0..2 {
                let body = target.get(&seen.place.key(), BODY_BYTES_MAX).await?;
                let decoded = segment::decode(&body, &seen.place);
                seen.read = decoded.ok().map(|decoded| (decoded.trailer.hash, decoded.trailer.seq_max));
                if seen.read.is_some() {
                    break;
                }
            }
        }
    }
    Ok(evidence)
}

/// Judges what target `name` says by what we know. Pure.
pub fn decide(name: &str, own: &Own, evidence: &Evidence) -> Verdict {
    let known = match place::judge(name, own, &evidence.says, evidence.vacant) {
        Place::Ours => true,
        Place::ToMeet(_) => false,
        Place::Ends(verdict) => return verdict,
    };
    if let Some(standing) = &evidence.standing
        && let Some(conflict) = lacking(name, own, standing)
    {
        return conflict;
    }
    if let Some((epoch, writer)) = evidence.writers.iter().filter(|writer| own.is_foreign(writer)).max() {
        let who = match &evidence.foreign {
            Some(foreign) => {
                format!("{} since {}", foreign.host, crate::format::utc(foreign.started))
            }
            None => format!("writer {writer}"),
        };
        return Verdict::Conflict {
            whom: Refused::Writers,
            reason: format!(
                "target {name:?} is written by {who} (epoch {epoch}); this state directory wrote last in epoch {}",
                own.epoch
            ),
            hint: if known { resolve(name) } else { restore_too(name) },
        };
    }
    match &evidence.standing {
        Some(Standing::Read { met, .. }) => Verdict::MetAgain(met.clone()),
        _ => history(name, own, &evidence.segments),
    }
}

/// The reason why a target that this restored state never spoke to must not be written to, if there is one.
fn lacking(name: &str, own: &Own, standing: &Standing) -> Option<Verdict> {
    let reason = match standing::judge(standing, &own.restored) {
        standing::Verdict::Behind => return None,
        standing::Verdict::Ahead(seq) => {
            format!("target {name:?} has changes up to {seq} that the restored state lacks")
        }
        standing::Verdict::Unknown(why) => {
            format!("target {name:?} may have changes that the restored state lacks: {why}")
        }
    };
    Some(Verdict::Conflict { whom: Refused::Everybody, reason, hint: restore_too(name) })
}

fn restore_too(name: &str) -> String {
    format!("restore anew, from {name:?} too: one tandemfs restore with a --from for each target; or mount without it")
}

/// A target as `restore` sees it.
fn source(name: &str, target: &DynTarget) -> Source {
    Source { target: target.clone(), name: name.to_owned(), uri: String::new() }
}

/// Compares the segments that are there with those that we know.
fn history(name: &str, own: &Own, segments: &[Seen]) -> Verdict {
    let mut rest = segments;
    if let Some(confirmed) = own.cursor.confirmed {
        match segments.split_first() {
            Some((first, after)) if is(first, &confirmed) => rest = after,
            // Only ours: what else is there is judged as if nothing were missing.
            _ if segments.iter().all(|seen| own.unconfirmed.iter().any(|stored| is(seen, stored))) => {
                return Verdict::Behind {
                    reason: format!(
                        "target {name:?} lost data: segment {} that it confirmed is not there",
                        confirmed.n
                    ),
                };
            }
            _ => {}
        }
    }
    let known = rest
        .iter()
        .zip(&own.unconfirmed)
        .all(|(seen, stored)| is(seen, stored) && seen.read.is_some_and(|(hash, _)| hash == stored.hash));
    if known && rest.len() <= own.unconfirmed.len() {
        return Verdict::Ours;
    }
    let newest = rest.last().expect("there is a segment that we do not know");
    let theirs = newest.read.map(|(_, seq)| seq);
    let ours = own.cursor.built.map_or(Seq::ZERO, |built| built.seq);
    let newer = theirs.filter(|theirs| *theirs > ours).map(|theirs| theirs.0 - ours.0);
    let reason = match newer {
        _ if !own.cursor.initialised => format!(
            "target {name:?} has a history up to change {} that this state directory did not write",
            theirs.unwrap_or_default()
        ),
        Some(newer) => {
            format!("this state directory is older than target {name:?}, which has {newer} newer changes")
        }
        None => format!(
            "target {name:?} has segment {} of epoch {} ({}), which this state directory did not write",
            newest.place.n, newest.place.epoch, newest.place.writer
        ),
    };
    Verdict::Conflict { whom: Refused::Writers, reason, hint: resolve(name) }
}

fn is(seen: &Seen, id: &SegmentId) -> bool {
    (seen.place.epoch, seen.place.writer, seen.place.n) == (id.epoch, id.writer, id.n)
}

fn resolve(name: &str) -> String {
    format!(
        "take over its state: tandemfs restore --from the URI of {name} into a new state directory, then mount that"
    )
}

/// Lists the writers, all or those from `epoch` on.
pub async fn writers(target: &DynTarget, from: Option<Epoch>) -> target::Result<Vec<(Epoch, WriterId)>> {
    let before = from.map(|epoch| key::writer(Epoch(epoch.0.saturating_sub(1)), WriterId(u32::MAX)));
    list(target, key::WRITERS, before.as_deref(), |key| match key::parse(key) {
        Key::Writer { epoch, writer } => Some((epoch, writer)),
        _ => None,
    })
    .await
}

/// Who fences us: a writer at or above our epoch that is not us.
pub async fn fenced_by(target: &DynTarget, own: &Own) -> target::Result<Option<(Epoch, WriterId)>> {
    Ok(writers(target, Some(own.epoch)).await?.into_iter().filter(|writer| own.is_foreign(writer)).max())
}

async fn list<T>(
    target: &DynTarget,
    prefix: &str,
    after: Option<&str>,
    parse: impl Fn(&str) -> Option<T>,
) -> target::Result<Vec<T>> {
    let mut found = Vec::new();
    let mut after = after.map(str::to_owned);
    for _ in 0..PAGES_MAX {
        let page = target.list(prefix, after.as_deref()).await?;
        // Stores that cannot begin a listing in the middle may return more than was asked for.
        let wanted = |key: &str| after.as_deref().is_none_or(|after| key > after);
        found.extend(page.objects.iter().filter(|object| wanted(&object.key)).filter_map(|object| parse(&object.key)));
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(found),
        }
    }
    Ok(found)
}

/// Makes an empty place the target that the row describes (T1).
pub async fn initialise(
    meta: &Arc<Meta>,
    target: &DynTarget,
    name: &str,
    me: &Me,
    bit: TargetBit,
) -> Result<(), Failure> {
    let superblock = Superblock {
        filesystem: me.filesystem,
        target: meta.cursor(bit)?.id,
        name: me.name.clone(),
        target_name: name.to_owned(),
        created: me.started,
    };
    identity::initialise(target.as_ref(), &superblock).await?;
    meta.set_initialised(bit)?;
    Ok(())
}

/// Takes over a target that this restored state meets for the first time: what it has counts, the rest is resynced (D6).
/// Nothing is written to it. Cut off in the middle, it is done again.
pub async fn take_over(
    meta: &Arc<Meta>,
    target: &DynTarget,
    name: &str,
    bit: TargetBit,
    met: &MetAgain,
) -> Result<(), Failure> {
    // What an earlier attempt claimed may have been another place.
    meta.unclaim(bit)?;
    let claimed = match restore::claim(&source(name, target), meta, bit).await {
        Ok((claimed, _)) => claimed,
        Err(restore::Error::Target { error, .. }) => return Err(error.into()),
        Err(restore::Error::Meta(error)) => return Err(error.into()),
        Err(error) => return Err(meta::Error::Damaged(error.to_string()).into()),
    };
    meta.meet_again(bit, met)?;
    tracing::info!(
        target_name = name,
        chunks = claimed.chunks,
        seq = met.highest.0,
        "a target of this filesystem that was no source of the restore is brought forward"
    );
    Ok(())
}

/// Announces this mount on the target, and looks whether somebody else did the same meanwhile (T7, T8). Segments of the
/// last mount were sent before: the announcement names the newest one as what it builds on.
pub async fn announce(meta: &Arc<Meta>, target: &DynTarget, me: &Me, bit: TargetBit) -> Result<(), Failure> {
    let own = Own::of(meta, bit)?;
    let parent = own.cursor.built.map(|built| Parent {
        epoch: built.epoch,
        writer: built.writer,
        n: built.n,
        hash: built.hash,
        // A complete checkpoint may know more than the segments, and must not look like discarded history to a restore.
        seq: built.seq.max(own.cursor.shipped_seq),
    });
    let history = meta.history()?;
    let announcement = Writer {
        filesystem: me.filesystem,
        target: own.cursor.id,
        epoch: me.epoch,
        writer: me.writer,
        host: me.host.clone(),
        started: me.started,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        parent,
        history: history
            .into_iter()
            .map(|KnownWriter { epoch, writer, seq }| Ancestor { epoch, writer, seq })
            .collect(),
    };
    put_once(target, &announcement.key(), announcement.encode().into()).await?;
    if let Some((epoch, writer)) = fenced_by(target, &own).await? {
        return Err(Failure::Fenced(format!("writer {writer} took epoch {epoch} at the same time")));
    }
    meta.set_contact_epoch(bit, me.epoch)?;
    Ok(())
}

/// Why an exchange with a target ended.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The target failed, or cannot be reached.
    #[error(transparent)]
    Target(#[from] target::Error),
    /// Our own store failed.
    #[error(transparent)]
    Meta(#[from] meta::Error),
    /// Somebody else writes there.
    #[error("{0}")]
    Fenced(String),
}

/// Stores an object that is written once. That it is there with the same bytes is success: an earlier try got through.
pub async fn put_once(target: &DynTarget, key: &str, body: Bytes) -> Result<(), Failure> {
    let error = match target.put(key, body.clone().into(), Existing::Refuse).await {
        Ok(()) => return Ok(()),
        Err(error) if error.kind == Kind::Exists || error.class == Class::Ambiguous => error,
        Err(error) => return Err(error.into()),
    };
    match target.get(key, body.len() as u64).await {
        Ok(found) if found == body => Ok(()),
        Ok(_) => Err(Failure::Fenced(format!("{key} is there and is not ours"))),
        // Longer than ours.
        Err(found) if found.kind == Kind::Invalid => Err(Failure::Fenced(format!("{key} is there and is not ours"))),
        // Not applied then, or nobody knows: the next try will tell.
        Err(found) if found.kind == Kind::NotFound => Err(error.into()),
        Err(found) => Err(found.into()),
    }
}

/// One target of a survey.
#[derive(Debug, Clone)]
pub struct Asked {
    pub bit: TargetBit,
    pub name: String,
    pub target: DynTarget,
}

/// What one target answered.
#[derive(Debug)]
pub struct Answer {
    pub bit: TargetBit,
    pub name: String,
    /// An error: it did not answer in time, or not at all. It will be contacted later.
    pub verdict: Result<Verdict, String>,
}

/// What all targets answered before a mount. Nothing was written to any.
#[derive(Debug)]
pub struct Survey {
    pub answers: Vec<Answer>,
    /// The highest epoch that any of them has seen: for [`Meta::begin_mount`].
    pub seen: Epoch,
}

impl Survey {
    /// The reasons (with hints) to refuse the mount.
    pub fn refusals(&self) -> Vec<(&str, &str)> {
        self.conflicts().map(|(_, reason, hint)| (reason, hint)).collect()
    }

    /// The reasons (with hints) to refuse a mount that writes nothing anywhere. A target may have gone on since the state
    /// was restored from it, and goes on meanwhile: whoever tries a restore needs not stop what he tries to restore (D6).
    pub fn refusals_to_read(&self) -> Vec<(&str, &str)> {
        let refused = self.conflicts().filter(|(whom, ..)| *whom == Refused::Everybody);
        refused.map(|(_, reason, hint)| (reason, hint)).collect()
    }

    fn conflicts(&self) -> impl Iterator<Item = (Refused, &str, &str)> {
        self.answers.iter().filter_map(|answer| match &answer.verdict {
            Ok(Verdict::Conflict { whom, reason, hint }) => Some((*whom, reason.as_str(), hint.as_str())),
            _ => None,
        })
    }
}

/// Asks all targets at once, `patience` long at most. Reads only; to be called before [`Meta::begin_mount`].
pub async fn survey(meta: &Meta, targets: &[Asked], patience: Duration) -> meta::Result<Survey> {
    let mut owns = Vec::with_capacity(targets.len());
    for asked in targets {
        owns.push(Own::of(meta, asked.bit)?);
    }
    let ask = |asked: &Asked, own: Own| {
        let asked = asked.clone();
        async move {
            match clock::timeout(patience, gather(&asked.name, &asked.target, &own)).await {
                Ok(Ok(evidence)) => {
                    let seen = evidence.writers.iter().map(|(epoch, _)| *epoch).max().unwrap_or_default();
                    (seen, Ok(decide(&asked.name, &own, &evidence)))
                }
                Ok(Err(error)) => (Epoch(0), Err(error.to_string())),
                Err(_) => (Epoch(0), Err(format!("no answer within {patience:?}"))),
            }
        }
    };
    let answers = join_all(targets.iter().zip(owns).map(|(asked, own)| ask(asked, own))).await;
    let seen = answers.iter().map(|(seen, _)| *seen).max().unwrap_or_default();
    let mut answers: Vec<Answer> = targets
        .iter()
        .zip(answers)
        .map(|(asked, (_, verdict))| Answer { bit: asked.bit, name: asked.name.clone(), verdict })
        .collect();
    refuse_same_place(&mut answers);
    Ok(Survey { answers, seen })
}

/// Two URIs that lead to the same target, which this restored state never spoke to (T1). Of others the rows tell.
fn refuse_same_place(answers: &mut [Answer]) {
    let mut met: Vec<(TargetId, String)> = Vec::new();
    for answer in answers {
        let Ok(Verdict::MetAgain(MetAgain { id, .. })) = &answer.verdict else { continue };
        match met.iter().find(|(known, _)| known == id) {
            Some((_, other)) => {
                answer.verdict = Ok(Verdict::Conflict {
                    whom: Refused::Everybody,
                    reason: format!("targets {other:?} and {:?} are the same place", answer.name),
                    hint: "give each target a place of its own".into(),
                });
            }
            None => met.push((*id, answer.name.clone())),
        }
    }
}

#[cfg(test)]
#[path = "contact_tests.rs"]
mod tests;
