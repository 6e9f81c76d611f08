//! Plan: from which checkpoint to begin, and which segments to fetch after it. Pure.
//!
//! Owns: the order in which checkpoints are tried, the run of segments of one source.
//! Does not own: whether they turn out to be sound (`base`, `journal`); then the next of the list is tried, or replay ends.

use super::evidence::{CheckpointSeen, Evidence};
use super::lineage::Lineage;
use crate::format::segment::Place;
use crate::id::{Epoch, Hash, SegmentNumber, Seq, WriterId};

/// What is known of one source.
pub(crate) struct Judged {
    pub evidence: Evidence,
    pub lineage: Lineage,
    /// Records above this are discarded history: another source knows that a writer went on from there (D6).
    pub limit: Seq,
}

impl Judged {
    /// True if the newest writer of all reached this source.
    pub fn leads(&self, newest: (Epoch, WriterId)) -> bool {
        self.lineage.links.first().is_some_and(|link| (link.epoch, link.writer) == newest)
    }

    /// The complete checkpoints of this source that belong to its lineage, newest first.
    pub fn checkpoints(&self) -> impl Iterator<Item = &CheckpointSeen> {
        self.evidence.checkpoints.iter().rev().filter(|seen| {
            let complete = &seen.complete;
            complete.seq <= self.limit
                && complete.target == self.evidence.superblock.target
                && self.lineage.has_checkpoint(complete.epoch, complete.writer, complete.seq)
        })
    }
}

/// A checkpoint to try.
pub(crate) struct Candidate<'a> {
    /// Index of the source.
    pub source: usize,
    pub checkpoint: &'a CheckpointSeen,
}

/// All checkpoints that may be the base, best first: the newest, and of equal ones that of the first source.
pub(crate) fn candidates(sources: &[Judged]) -> Vec<Candidate<'_>> {
    let mut all: Vec<Candidate<'_>> = sources
        .iter()
        .enumerate()
        .flat_map(|(source, judged)| judged.checkpoints().map(move |checkpoint| Candidate { source, checkpoint }))
        .collect();
    // Stable, so that sources keep their order.
    all.sort_by_key(|candidate| std::cmp::Reverse(candidate.checkpoint.seq));
    all
}

/// The segments of one source that are fetched, in order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// What the source itself holds before the first of them, as its checkpoint says.
    pub base: Seq,
    /// The segment before the first: only its hash is of interest, to prove the chain and to go on from.
    pub before: Option<Place>,
    /// True if it is there.
    pub before_listed: bool,
    /// Its hash, where a writer's announcement says it.
    pub before_hash: Option<Hash>,
    pub segments: Vec<Place>,
    /// The first segment that is missing although later ones are there.
    pub missing: Option<SegmentNumber>,
}

/// Plans the segments of one source after a base at `base_seq`. Its newest checkpoint at or below that says where to begin.
pub(crate) fn run(judged: &Judged, base_seq: Seq) -> Run {
    let Judged { evidence, lineage, .. } = judged;
    let own = judged.checkpoints().find(|seen| seen.seq <= base_seq);
    let (base, first) = own.map_or((Seq::ZERO, SegmentNumber(1)), |seen| (seen.seq, seen.complete.replay_from));
    let place = |n: SegmentNumber| {
        let link = lineage.owner(n)?;
        Some(Place {
            filesystem: evidence.superblock.filesystem,
            target: evidence.superblock.target,
            epoch: link.epoch,
            writer: link.writer,
            n,
        })
    };
    let listed = |place: &Place| evidence.segments.contains_key(&(place.n, place.epoch, place.writer));
    let mut segments = vec![];
    let mut n = first;
    while let Some(next) = place(n).filter(listed) {
        segments.push(next);
        n = n.next();
    }
    let later = evidence
        .segments
        .keys()
        .any(|(later, epoch, writer)| *later > n && lineage.has_segment(*epoch, *writer, *later));
    let before_hash = lineage.known_hash(SegmentNumber(first.0 - 1));
    let before = place(SegmentNumber(first.0 - 1));
    Run {
        base,
        before_listed: before.as_ref().is_some_and(listed),
        before,
        before_hash,
        segments,
        missing: later.then_some(n),
    }
}
