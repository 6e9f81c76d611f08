//! The journal of one source: segments fetched, proved and replayed, unit by unit.
//!
//! Owns: the chain of hashes, runs up to `"end": true` as a whole or not at all, merging with what other sources gave,
//! and ending at the last whole point before whatever cannot be proved.
//! Does not own: which segments (`plan`), what a record does (`meta::replay`).
//!
//! - **Merging** (D6): the same history is cut into segments differently on each target. What counts is the seq: a record
//!   that is in the state already is passed over. Each source holds a downward closed cut, so the records that it adds to
//!   another's are applied in its own order, after the other's.
//! - **Low water** proves that nothing is missing: each record up to it is in this or an earlier segment, or in a complete
//!   checkpoint. If it is in none that was used, replay ends before that segment: a target that was brought forward by a
//!   checkpoint has no records in between.

use std::path::{Path, PathBuf};

use futures::{StreamExt, stream};

use super::evidence;
use super::plan::{Judged, Run};
use super::seqs::SeqSet;
use super::{Error, Source, Unproven};
use crate::format;
use crate::format::record::{Change, Record};
use crate::format::segment::{self, BODY_BYTES_MAX, Chain, Place, Trailer};
use crate::id::{Hash, SegmentNumber, Seq};
use crate::meta::{self, Meta};

/// Segments fetched at the same time.
const FETCHES: usize = 8;
/// O7: so many records may be behind others on a target.
const DEFERRED_MAX: u64 = 10_000;

/// Where the history of one source ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// The newest segment that counts, and its hash; `None` before the first.
    pub last: Option<(Place, Hash)>,
    /// All that the source holds up to there.
    pub held: SeqSet,
    /// Its low water.
    pub low_water: Seq,
    /// Segments replayed, and their bytes as stored.
    pub segments: u64,
    pub bytes: u64,
    /// Segments after `last` that belong to a unit whose end never came: nothing of them counts.
    pub unfinished: Vec<Place>,
}

/// The state as it grows.
pub(crate) struct State<'a> {
    pub meta: &'a Meta,
    /// Everything applied so far.
    pub applied: SeqSet,
    /// Records applied.
    pub records: u64,
    pub unproven: Vec<Unproven>,
}

/// Why replay ended before the end.
pub(crate) enum Stop {
    /// What cannot be proved.
    Unproven(String),
    /// Another source shows that the rest is discarded history.
    Discarded,
    Fatal(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Fatal(error)
    }
}

impl From<format::Error> for Stop {
    fn from(error: format::Error) -> Stop {
        match error {
            format::Error::Unsupported { .. } => Stop::Fatal(Error::Format { name: String::new(), error }),
            error => Stop::Unproven(error.to_string()),
        }
    }
}

/// Replays the segments of one source into `state`. `scratch` is an empty directory.
pub(crate) async fn replay(
    source: &Source,
    judged: &Judged,
    run: &Run,
    scratch: &Path,
    state: &mut State<'_>,
) -> Result<End, Error> {
    let mut end = End {
        last: None,
        held: SeqSet::up_to(run.base),
        low_water: run.base,
        segments: 0,
        bytes: 0,
        unfinished: vec![],
    };
    let mut chain = Chain::anywhere();
    let stop = |at: SegmentNumber, why: String| Unproven::Journal { source: source.name.clone(), segment: at, why };
    if let Some(before) = run.before {
        let found = if run.before_listed {
            hash_of(source, &before).await
        } else {
            Err(Stop::Unproven("it is missing".into()))
        };
        let hash = match found {
            Ok(hash) if run.before_hash.is_none_or(|known| known == hash) => Some(hash),
            Ok(_) => {
                state.unproven.push(stop(before.n, "a writer went on from another segment of that number".into()));
                run.before_hash
            }
            Err(Stop::Fatal(error)) => return Err(error.of(source)),
            // It is not replayed, so what follows it may still be sound.
            Err(Stop::Discarded) => run.before_hash,
            Err(Stop::Unproven(why)) => {
                state.unproven.push(stop(before.n, why));
                run.before_hash
            }
        };
        chain = hash.map_or(Chain::anywhere(), |hash| Chain::after(before.n, hash));
        // The next segment must name some hash: one that nobody has says that it is not known.
        end.last = Some((before, hash.unwrap_or(Hash([0; 32]))));
    }
    let mut unit: Vec<(Place, PathBuf, Trailer)> = vec![];
    let mut fetched = stream::iter(&run.segments)
        .map(|place| async move { (place, evidence::fetch(source, &place.key(), BODY_BYTES_MAX).await) })
        .buffered(FETCHES);
    while let Some((place, body)) = fetched.next().await {
        let step = || -> Result<bool, Stop> {
            let body = body?.map_err(Stop::from)?;
            let trailer = segment::decode(&body, place)?.trailer;
            chain.follow(&trailer)?;
            check_announced(judged, &trailer)?;
            let path = scratch.join(place.n.to_string());
            std::fs::write(&path, &body).map_err(|e| Error::io("write", &path, e))?;
            let ends = trailer.end;
            unit.push((*place, path, trailer));
            if !ends {
                return Ok(false);
            }
            apply(&unit, judged.limit, state, &mut end)?;
            Ok(true)
        };
        match step() {
            Ok(true) => clear(&mut unit)?,
            Ok(false) => {}
            Err(Stop::Fatal(error)) => return Err(error.of(source)),
            Err(Stop::Unproven(why)) => {
                state.unproven.push(stop(place.n, why));
                clear(&mut unit)?;
                return Ok(end);
            }
            Err(Stop::Discarded) => {
                clear(&mut unit)?;
                return Ok(end);
            }
        }
    }
    drop(fetched);
    if let Some(missing) = run.missing {
        state.unproven.push(stop(missing, "it is missing, and later ones are there".into()));
    } else if let Some((first, ..)) = unit.first() {
        state.unproven.push(stop(first.n, "the unit that begins here was never finished".into()));
        end.unfinished = unit.iter().map(|(place, ..)| *place).collect();
    }
    clear(&mut unit)?;
    Ok(end)
}

/// The hash that a segment says it has, and has.
pub(crate) async fn hash_of(source: &Source, place: &Place) -> Result<Hash, Stop> {
    let body = evidence::fetch(source, &place.key(), BODY_BYTES_MAX).await.map_err(Stop::Fatal)??;
    Ok(segment::decode(&body, place)?.trailer.hash)
}

/// Compares a segment with what writers say of it: the one they went on from, and the first of their own.
pub(crate) fn check_announced(judged: &Judged, trailer: &Trailer) -> Result<(), Stop> {
    let n = trailer.place.n;
    let before = judged.lineage.known_hash(SegmentNumber(n.0 - 1));
    let wrong = before.is_some_and(|known| trailer.prev != Some(known))
        || judged.lineage.known_hash(n).is_some_and(|known| trailer.hash != known);
    if wrong { Err(Stop::Unproven("a writer went on from another history".into())) } else { Ok(()) }
}

fn clear(unit: &mut Vec<(Place, PathBuf, Trailer)>) -> Result<(), Error> {
    for (_, path, _) in unit.drain(..) {
        std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
    }
    Ok(())
}

/// Applies a unit in one transaction, if it is whole.
fn apply(unit: &[(Place, PathBuf, Trailer)], limit: Seq, state: &mut State<'_>, end: &mut End) -> Result<(), Stop> {
    // First all that can be seen without the tables, so that the transaction holds only what counts.
    let mut applied = state.applied.clone();
    let mut held = end.held.clone();
    let mut parts = Parts::default();
    for (place, path, trailer) in unit {
        for record in read(place, path)? {
            if record.seq > limit {
                return Err(Stop::Discarded);
            }
            parts.check(&record).map_err(Stop::Unproven)?;
            applied.insert(record.seq);
            held.insert(record.seq);
        }
        if let Some(missing) = applied.first_missing(trailer.low_water) {
            let why = format!("record {missing} came with a checkpoint that cannot be used");
            return Err(Stop::Unproven(why));
        }
    }
    parts.finish().map_err(Stop::Unproven)?;
    if applied.missing_count() > DEFERRED_MAX {
        return Err(Stop::Unproven(format!("{} records are missing before it", applied.missing_count())));
    }

    let mut count = 0;
    let result = state.meta.write(|tx| {
        count = 0;
        let mut fresh: Option<Seq> = None;
        let mut seen = SeqSet::default();
        for (place, path, _) in unit {
            let records = read(place, path).map_err(|_| meta::Error::Damaged(format!("{} changed", path.display())))?;
            for record in records {
                // Parts of a change that began here belong to it; anything else is passed over when it is in already.
                let goes_on = fresh == Some(record.seq) && part_of(&record).is_some_and(|(k, _)| k > 1);
                if !goes_on && (state.applied.contains(record.seq) || seen.contains(record.seq)) {
                    continue;
                }
                tx.replay(&record)?;
                seen.insert(record.seq);
                fresh = Some(record.seq);
                count += u64::from(!goes_on);
            }
        }
        Ok(())
    });
    match result {
        Ok(()) => {}
        Err(error @ meta::Error::Contradiction { .. }) => return Err(Stop::Unproven(error.to_string())),
        Err(error) => return Err(Stop::Fatal(error.into())),
    }
    state.meta.checkpoint_wal().map_err(|e| Stop::Fatal(e.into()))?;
    state.applied = applied;
    state.records += count;
    end.held = held;
    end.segments += unit.len() as u64;
    for (place, path, trailer) in unit {
        end.bytes += std::fs::metadata(path).map_err(|e| Stop::Fatal(Error::io("stat", path, e)))?.len();
        end.low_water = end.low_water.max(trailer.low_water);
        end.last = Some((*place, trailer.hash));
    }
    Ok(())
}

fn read(place: &Place, path: &Path) -> Result<Vec<Record>, Stop> {
    let body = std::fs::read(path).map_err(|e| Stop::Fatal(Error::io("read", path, e)))?;
    Ok(segment::decode(&body, place)?.records)
}

fn part_of(record: &Record) -> Option<(u32, u32)> {
    match &record.change {
        Change::Content(content) => content.part,
        _ => None,
    }
}

/// Sees that the parts of a change follow one another and are all there.
#[derive(Default)]
struct Parts {
    open: Option<(Seq, u32, u32)>,
}

impl Parts {
    fn check(&mut self, record: &Record) -> Result<(), String> {
        let wrong = || format!("record {} is not the part that comes next", record.seq);
        self.open = match (self.open, part_of(record)) {
            (None, None) => None,
            (None, Some((1, of))) => (of > 1).then_some((record.seq, 1, of)),
            (Some((seq, k, of)), Some((next, total))) if seq == record.seq && next == k + 1 && total == of => {
                (next < of).then_some((seq, next, of))
            }
            _ => return Err(wrong()),
        };
        Ok(())
    }

    fn finish(&self) -> Result<(), String> {
        match self.open {
            None => Ok(()),
            Some((seq, k, of)) => Err(format!("of record {seq} there are {k} of {of} parts")),
        }
    }
}
