//! Standing: how a target of the filesystem that was no source of a restore compares with the restored state (T7, D6).
//!
//! The state directory was restored from some targets; later it meets another one, which it never spoke to. That one holds
//! either nothing that the state lacks, and is brought forward by a resync; or it holds changes that the state lacks, and
//! then nothing may be written there.
//!
//! Owns: reading what the target holds, by its own account; the verdict (pure).
//! Does not own: what follows (`replication::contact`), the row (`meta::restored`), the resync (`replication::checkpoint`).
//!
//! ```text
//! writers/ ─▶ its lineage ─▶ newest checkpoint, every segment after it ─▶ per writer: the highest change that counts
//!                                        compared with what the restored state holds of that writer
//! ```
//!
//! - Segments may hold changes out of order (O6), so all of them since the checkpoint are read, not the newest alone.
//! - What cannot be read or proved might be a change that the state lacks: such a target is not written to.
//! - A seq says what a change is only together with its writer: two machines that went on from one point number alike.

use futures::{StreamExt, stream};

use super::evidence;
use super::journal::{Stop, check_announced, hash_of};
use super::lineage::{self, Lineage};
use super::plan::{self, Judged, Run};
use super::{Error, Source};
use crate::format::key;
use crate::format::segment::{self, BODY_BYTES_MAX, Chain, Place, Trailer};
use crate::format::superblock::Superblock;
use crate::id::{Epoch, Hash, Seq, WriterId};
use crate::meta::restored::{KnownWriter, MetAgain};
use crate::target;

/// Segments fetched at the same time.
const FETCHES: usize = 16;

/// What a target holds, by its own account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// All of it was read.
    Read {
        /// What its row would be.
        met: MetAgain,
        /// The highest change of each writer that counts and was seen; a checkpoint counts as one of its signer.
        changes: Vec<KnownWriter>,
        /// Whose history it is, newest first. Each went on from the next one, so a change that counts is part of the history
        /// of every writer before its own.
        lineage: Vec<(Epoch, WriterId)>,
    },
    /// Something that decides cannot be read or proved, and why.
    Unproven(String),
}

/// What follows for a restored state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It holds nothing that the state lacks.
    Behind,
    /// It has changes up to here that the state lacks.
    Ahead(Seq),
    /// Whether it has any is not known.
    Unknown(String),
}

/// Compares a target with what the state was restored from. Pure.
pub fn judge(standing: &Standing, known: &[KnownWriter]) -> Verdict {
    match standing {
        Standing::Unproven(why) => Verdict::Unknown(why.clone()),
        Standing::Read { changes, lineage, .. } => {
            let held = |change: &&KnownWriter| {
                let own = (change.epoch, change.writer);
                let heirs = lineage.iter().take_while(|id| **id != own);
                let holds = |id: &(Epoch, WriterId)| {
                    known.iter().any(|known| (known.epoch, known.writer) == *id && change.seq <= known.seq)
                };
                // Of one that is not in the lineage nobody is an heir.
                holds(&own) || (lineage.contains(&own) && heirs.into_iter().any(holds))
            };
            match changes.iter().filter(|change| !held(change)).map(|change| change.seq).max() {
                Some(seq) => Verdict::Ahead(seq),
                None => Verdict::Behind,
            }
        }
    }
}

/// Reads what a target of the filesystem holds. Writes nothing. An error: it cannot be asked now.
pub async fn read(source: &Source, superblock: Superblock) -> target::Result<Standing> {
    match try_read(source, superblock).await {
        Ok(standing) => Ok(standing),
        Err(Error::Target { error, .. }) => Err(error),
        Err(error) => Ok(Standing::Unproven(error.to_string())),
    }
}

async fn try_read(source: &Source, superblock: Superblock) -> Result<Standing, Error> {
    let evidence = evidence::read(source, superblock).await?;
    lineage::newest(&evidence.writers)?;
    let lineage = Lineage::of(&evidence.writers);
    let judged = Judged { evidence, lineage, limit: Seq(u64::MAX) };
    let run = plan::run(&judged, Seq(u64::MAX));
    if let Some(missing) = run.missing {
        return Ok(Standing::Unproven(format!("segment {missing} is missing, and later ones are there")));
    }
    match walk(source, &judged, &run).await {
        Ok(walked) => Ok(standing(&judged, &run, walked)),
        Err(Stop::Unproven(why)) => Ok(Standing::Unproven(why)),
        Err(Stop::Discarded) => Ok(Standing::Unproven("its history contradicts itself".into())),
        Err(Stop::Fatal(error)) => Err(error),
    }
}

/// What the segments after the newest checkpoint say.
struct Walked {
    /// The newest that counts.
    last: Option<(Place, Hash)>,
    /// Those that count.
    trailers: Vec<Trailer>,
    /// Those after `last`, of a unit that never ended.
    unfinished: Vec<Place>,
}

async fn walk(source: &Source, judged: &Judged, run: &Run) -> Result<Walked, Stop> {
    let mut walked = Walked { last: None, trailers: Vec::new(), unfinished: Vec::new() };
    let mut chain = Chain::anywhere();
    if let Some(before) = run.before {
        // The newest segment stays when older ones are trimmed, so this one is there unless later ones are.
        let hash = match run.before_hash {
            Some(hash) => hash,
            None => hash_of(source, &before).await.map_err(|stop| of(&before, stop))?,
        };
        chain = Chain::after(before.n, hash);
        walked.last = Some((before, hash));
    }
    let mut unit: Vec<Trailer> = Vec::new();
    let mut fetched = stream::iter(run.segments.iter().copied())
        .map(|place| async move { (place, evidence::fetch(source, &place.key(), BODY_BYTES_MAX).await) })
        .buffered(FETCHES);
    while let Some((place, body)) = fetched.next().await {
        let read = || -> Result<Trailer, Stop> {
            let trailer = segment::decode(&body??, &place)?.trailer;
            chain.follow(&trailer)?;
            check_announced(judged, &trailer)?;
            Ok(trailer)
        };
        let trailer = read().map_err(|stop| of(&place, stop))?;
        let ends = trailer.end;
        unit.push(trailer);
        if ends {
            walked.last = unit.last().map(|trailer| (trailer.place, trailer.hash));
            walked.trailers.append(&mut unit);
        }
    }
    walked.unfinished = unit.iter().map(|trailer| trailer.place).collect();
    Ok(walked)
}

/// Names the segment that something is wrong with.
fn of(place: &Place, stop: Stop) -> Stop {
    match stop {
        Stop::Unproven(why) => Stop::Unproven(format!("segment {}: {why}", place.n)),
        other => other,
    }
}

fn standing(judged: &Judged, run: &Run, walked: Walked) -> Standing {
    let mut changes: Vec<KnownWriter> = Vec::new();
    let mut add = |epoch: Epoch, writer: WriterId, seq: Seq| match changes
        .iter_mut()
        .find(|known| (known.epoch, known.writer) == (epoch, writer))
    {
        Some(known) => known.seq = known.seq.max(seq),
        None => changes.push(KnownWriter { epoch, writer, seq }),
    };
    if let Some(newest) = judged.checkpoints().next() {
        add(newest.complete.epoch, newest.complete.writer, newest.seq);
    }
    let (mut highest, mut low_water) = (run.base, run.base);
    // One without lines only says that a writer was there.
    for trailer in &walked.trailers {
        low_water = low_water.max(trailer.low_water);
        highest = highest.max(trailer.seq_max);
        if trailer.count > 0 {
            add(trailer.place.epoch, trailer.place.writer, trailer.seq_max);
        }
    }
    if let Some((place, _)) = walked.last
        && place.n.0 > key::SEGMENT_MAX.0 / 2
    {
        return Standing::Unproven(format!("segment {} leaves no room to go on", place.n));
    }
    let row = |(place, hash): (Place, Hash)| (place.epoch, place.writer, place.n, hash);
    let met = MetAgain {
        id: judged.evidence.superblock.target,
        last: walked.last.map(row),
        low_water,
        highest,
        checkpoints: super::checkpoint_rows(judged, Seq(u64::MAX)),
        discarded: super::discarded(judged, walked.last.map(|(place, _)| place), &walked.unfinished),
    };
    let lineage = judged.lineage.links.iter().map(|link| (link.epoch, link.writer)).collect();
    Standing::Read { met, changes, lineage }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::TargetId;

    fn writer(epoch: u64, writer: u32, seq: u64) -> KnownWriter {
        KnownWriter { epoch: Epoch(epoch), writer: WriterId(writer), seq: Seq(seq) }
    }

    fn holds(changes: &[KnownWriter]) -> Standing {
        let met = MetAgain {
            id: TargetId::random(),
            last: None,
            low_water: Seq::ZERO,
            highest: changes.iter().map(|change| change.seq).max().unwrap_or_default(),
            checkpoints: vec![],
            discarded: vec![],
        };
        Standing::Read { met, changes: changes.to_vec(), lineage: vec![] }
    }

    #[test]
    fn t7_what_a_known_writer_went_on_from_is_held_too() {
        // The state knows nothing of epoch 1, but epoch 2 went on from it here, and the state holds that up to 60.
        let read = |changes: &[KnownWriter]| match holds(changes) {
            Standing::Read { met, changes, .. } => {
                let lineage = vec![(Epoch(2), WriterId(20)), (Epoch(1), WriterId(10))];
                Standing::Read { met, changes, lineage }
            }
            unproven => unproven,
        };
        let known = [writer(2, 20, 60)];
        assert_eq!(judge(&read(&[writer(1, 10, 50), writer(2, 20, 60)]), &known), Verdict::Behind);
        assert_eq!(judge(&read(&[writer(1, 10, 61)]), &known), Verdict::Ahead(Seq(61)));
        assert_eq!(judge(&read(&[writer(3, 30, 50)]), &known), Verdict::Ahead(Seq(50)), "not of this lineage");
        // An heir knows what it went on from, not the other way round.
        assert_eq!(judge(&read(&[writer(2, 20, 5)]), &[writer(1, 10, 50)]), Verdict::Ahead(Seq(5)));
    }

    #[test]
    fn t7_a_target_is_behind_only_if_the_state_holds_every_change_of_every_writer_on_it() {
        let known = [writer(1, 10, 50), writer(3, 30, 90)];
        for (changes, expected) in [
            (&[][..], Verdict::Behind),
            (&[writer(1, 10, 50)], Verdict::Behind),
            (&[writer(1, 10, 50), writer(3, 30, 90)], Verdict::Behind),
            (&[writer(3, 30, 91)], Verdict::Ahead(Seq(91))),
            // After the point where the next writer went on: discarded history, though the seq is below the head.
            (&[writer(1, 10, 51)], Verdict::Ahead(Seq(51))),
            // Numbered like ours, and not ours.
            (&[writer(1, 10, 50), writer(2, 20, 60)], Verdict::Ahead(Seq(60))),
            (&[writer(1, 11, 1)], Verdict::Ahead(Seq(1))),
        ] {
            assert_eq!(judge(&holds(changes), &known), expected, "{changes:?}");
        }
        assert_eq!(judge(&Standing::Unproven("why".into()), &known), Verdict::Unknown("why".into()));
    }
}
