//! What must hold of a target at any moment.
//!
//! Owns: the true history, what of it lies on a target, restoring from one and comparing. Does not own: what must hold of one
//! call (`place`).
//!
//! What a target restores to is the history without what is missing, applied in the order of history; and what is missing
//! conflicts with nothing that is there (O6).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::place::Place;
use super::world::World;
use crate::clock;
use crate::format::checkpoint::Complete;
use crate::format::key::{self, CheckpointFile, Key};
use crate::format::record::{Change, Record, VoidReason};
use crate::format::segment;
use crate::format::writer::Writer;
use crate::id::{ChunkHash, Epoch, InodeId, SegmentNumber, Seq, WriterId};
use crate::meta::history::{assert_consistent, dump, empty_store_of};
use crate::meta::journal;
use crate::meta::{Meta, Options};
use crate::replication::conflicts::{Deferred, Footprint};
use crate::replication::holds::{Hold, JournalHolds};
use crate::restore::{self, Source};

/// All records of a world, and its garbage.
#[derive(Default)]
pub(super) struct Truth {
    pub records: BTreeMap<Seq, Change>,
    /// Those that returned.
    pub fsyncs: Vec<Fsync>,
    /// All up to here are known.
    known: Seq,
    /// Keeps those that are not.
    hold: Option<Hold>,
    /// Chunks that nothing refers to, and when that was first seen.
    dead: BTreeMap<ChunkHash, (Seq, Duration)>,
}

/// An `fsync` that returned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fsync {
    pub ino: InodeId,
    /// Of the journal, when it was called.
    pub called: Seq,
    /// The same when it was seen to have returned.
    pub answered: Seq,
}

/// What lies on a target.
struct Held {
    records: Vec<Record>,
    /// Complete checkpoints.
    checkpoints: usize,
    /// Of the newest one: everything up to here is in it.
    base: Seq,
}

impl Truth {
    /// Takes note of the records that have their content now. What is not known yet is held, so that nobody drops it.
    pub(super) fn learn(&mut self, meta: &Meta, holds: &Arc<JournalHolds>) {
        let now = clock::simulated::now().unwrap_or_default();
        let dead: Vec<(ChunkHash, Seq)> = meta
            .read(|conn| {
                let mut rows = conn.prepare_cached("SELECT hash, dead_seq FROM chunk WHERE dead_seq IS NOT NULL")?;
                let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .unwrap();
        let known = std::mem::take(&mut self.dead);
        let since = |(hash, seq)| match known.get(&hash) {
            Some((of, at)) if *of == seq => (hash, (seq, *at)),
            _ => (hash, (seq, now)),
        };
        self.dead = dead.into_iter().map(since).collect();
        let rows: Vec<(Seq, Vec<u8>)> = meta
            .read(|conn| {
                let sql = "SELECT seq, body FROM journal WHERE body IS NOT NULL AND seq > ?1";
                let mut rows = conn.prepare_cached(sql)?;
                let rows = rows.query_map([self.known], |row| Ok((row.get(0)?, row.get(1)?)))?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .unwrap();
        for (seq, body) in rows {
            let change = journal::decode(seq, &body).unwrap().change;
            let known = self.records.entry(seq).or_insert_with(|| change.clone());
            assert_eq!(*known, change, "record {seq} changed");
        }
        while self.records.contains_key(&self.known.next()) {
            self.known = self.known.next();
        }
        self.hold = Some(holds.hold(self.known.next()));
    }

    /// The record with the content that a file had at this place of history, if it took one before; `None`, too, if that
    /// came to nothing.
    fn content_at(&self, ino: InodeId, at: Seq) -> Option<Seq> {
        let of_file = |(seq, change): (&Seq, &Change)| match change {
            Change::Content(content) if content.ino == ino => Some((*seq, None)),
            Change::Void { ino: of, why, .. } if *of == ino => Some((*seq, Some(*why))),
            _ => None,
        };
        match self.records.range(..=at).rev().find_map(of_file)? {
            (seq, None) => Some(seq),
            // Moved: it came later, as one unit with this.
            (seq, Some(VoidReason::Moved)) => {
                let moved = |of: &(Seq, Option<VoidReason>)| of.1 != Some(VoidReason::Moved);
                let (seq, why) = self.records.range(seq.next()..).filter_map(of_file).find(moved)?;
                why.is_none().then_some(seq)
            }
            _ => None,
        }
    }
}

impl World {
    /// Takes note of what happened.
    pub(super) fn learn(&mut self) {
        let (meta, holds) = (self.meta(), self.live().replication.journal_holds());
        self.truth.learn(&meta, &holds);
    }

    /// T9: nothing was deleted within the time of grace; no call did what none may do.
    pub(super) fn check_calls(&mut self) {
        for place in &self.places {
            if let Some(broken) = place.broken() {
                panic!("world {}: {broken}", self.seed);
            }
            for (hash, at) in place.take_deleted() {
                self.life.deletions += 1;
                // Not dead: wanted again since, or its row went because it is nowhere.
                let Some((_, died)) = self.truth.dead.get(&hash).copied() else { continue };
                assert!(
                    at.saturating_sub(died) >= self.tuning.grace,
                    "world {}: {} lost chunk {hash} {:?} after its last use",
                    self.seed,
                    place.name,
                    at.saturating_sub(died)
                );
            }
        }
    }

    fn held(&self, place: &Place) -> Held {
        let seed = self.seed;
        let objects = place.memory.objects().clone();
        let (filesystem, target) = (self.filesystem, place.id());
        let mut complete = vec![];
        let mut segments = vec![];
        let chain = chain(&objects);
        for (key, body) in &objects {
            match key::parse(key) {
                Key::Checkpoint { seq, export, file: CheckpointFile::Complete } => {
                    let decoded = Complete::decode(body, seq, export);
                    let decoded = decoded.unwrap_or_else(|e| panic!("world {seed}: {key}: {e}"));
                    // One whose put had no answer may stand above the point from which the next writer went on.
                    let writer = (decoded.epoch, decoded.writer);
                    if chain.iter().any(|(id, until)| *id == writer && decoded.seq <= *until) {
                        complete.push(decoded);
                    }
                }
                Key::Segment { epoch, writer, n } => {
                    segments.push((n, segment::Place { filesystem, target, epoch, writer, n }, body));
                }
                _ => {}
            }
        }
        segments.sort_by_key(|(n, ..)| *n);
        let newest = complete.iter().max_by_key(|complete| (complete.seq, complete.replay_from));
        let (base, from) = newest.map_or((Seq::ZERO, SegmentNumber(1)), |newest| (newest.seq, newest.replay_from));
        let mut records: Vec<Record> = self
            .truth
            .records
            .range(..=base)
            .map(|(seq, change)| Record { seq: *seq, change: change.clone() })
            .collect();
        assert_eq!(records.len() as u64, base.0, "world {seed}: {} has a checkpoint of what is not known", place.name);
        let mut unit = vec![];
        let mut next = from;
        for (n, at, body) in segments.into_iter().filter(|(n, ..)| *n >= from) {
            if n != next && place.was_misread() {
                // It was taken for one that lost objects: what follows the gap counts with its next checkpoint.
                break;
            }
            assert_eq!(n, next, "world {seed}: {} lacks a segment", place.name);
            next = n.next();
            let decoded = segment::decode(body, &at).unwrap_or_else(|e| panic!("world {seed}: {e}"));
            unit.extend(decoded.records.into_iter().filter(|record| record.seq > base));
            if decoded.trailer.end {
                records.append(&mut unit);
            }
        }
        Held { records, checkpoints: complete.len(), base }
    }

    /// Everything that must hold of a target at any moment.
    pub(super) fn check_target(&mut self, index: usize) {
        let place = self.places[index].clone();
        if place.has_lied() || !place.memory.objects().contains_key(key::SUPERBLOCK) {
            return;
        }
        let (seed, name) = (self.seed, place.name.clone());
        let held = self.held(&place);
        let seqs: BTreeSet<Seq> = held.records.iter().map(|record| record.seq).collect();
        assert_eq!(seqs.len(), held.records.len(), "world {seed}: {name} has a record twice");
        for record in &held.records {
            assert_eq!(
                self.truth.records.get(&record.seq),
                Some(&record.change),
                "world {seed}: {name} has another history"
            );
        }
        // What was confirmed is not missing.
        let row = self.meta().targets().unwrap().into_iter().find(|row| row.name == name);
        if let Some(row) = row {
            let missing = (1..=row.shipped_seq.0).map(Seq).find(|seq| !seqs.contains(seq));
            assert_eq!(missing, None, "world {seed}: {name} confirmed up to {} and lacks a record", row.shipped_seq);
        }
        // O6: nothing on it overtook what it must not overtake. (What an `fsync` covers is below: until it was called,
        // others may have overtaken it.)
        let footprints: Vec<(Seq, Footprint)> =
            self.truth.records.iter().map(|(seq, change)| (*seq, Footprint::of(change))).collect();
        let mut missing = Deferred::new();
        for (seq, footprint) in &footprints {
            if seqs.contains(seq) {
                assert!(missing.admits(footprint), "world {seed}: {name} has {seq}, which overtook what it must not");
            } else {
                missing.insert(footprint);
            }
        }
        // What came after an `fsync` is not there without what that covered, whenever it was written.
        if let Some(newest) = seqs.last() {
            for fsync in self.truth.fsyncs.iter().filter(|fsync| fsync.answered < *newest) {
                if let Some(content) = self.truth.content_at(fsync.ino, fsync.called) {
                    assert!(seqs.contains(&content), "world {seed}: {name} has {newest}, and not {content}: {fsync:?}");
                }
            }
        }
        if held.records.is_empty() {
            return;
        }
        self.life.restores += 1;
        self.restores(&[index], &held, None);
        if held.checkpoints > 1 {
            // Were the newest one damaged, the one before it would serve: all that it names must be there, too.
            let newest =
                |key: &String| matches!(key::parse(key), Key::Checkpoint { file: CheckpointFile::Complete, .. });
            let newest = place.memory.objects().keys().rfind(|key| newest(key)).cloned();
            self.restores(&[index], &held, newest);
        }
    }

    /// Restores from these targets; without one object, if that is said.
    fn restored(&mut self, indexes: &[usize], without: Option<&String>) -> (tempfile::TempDir, Meta, restore::Report) {
        let (seed, dir) = (self.seed, tempfile::tempdir_in(self.dir.path()).unwrap());
        let state = dir.path().join("state");
        let source = |index: &usize| {
            let place = &self.places[*index];
            let copy = crate::target::memory::MemoryTarget::new();
            copy.objects().extend(place.memory.objects().clone());
            if let Some(without) = without {
                copy.objects().remove(without);
            }
            Source { target: Arc::new(copy), name: place.name.clone(), uri: format!("memory://{}", place.name) }
        };
        let sources = indexes.iter().map(source).collect();
        let report =
            self.drive("restore", async { restore::restore(sources, &state, restore::Options::default()).await });
        let report = report.unwrap_or_else(|e| panic!("world {seed}: {indexes:?} cannot be restored: {e}"));
        let meta = Meta::open(&state.join("meta.sqlite"), &Options::default()).unwrap();
        (dir, meta, report)
    }

    /// These targets restore to what these records lead to, applied in the order of history.
    fn restores(&mut self, indexes: &[usize], held: &Held, without: Option<String>) {
        let seed = self.seed;
        let (_dir, restored, report) = self.restored(indexes, without.as_ref());
        assert_eq!(report.lost_chunks, 0, "world {seed}: {indexes:?} without {without:?}");
        sound(&restored);
        if without.is_none() {
            let timeless = timeless(held);
            let compared = |lines: Vec<String>| -> Vec<String> {
                lines.into_iter().map(|line| without_times(line, &timeless)).collect()
            };
            let expected = compared(self.replayed(&held.records));
            assert_eq!(compared(dump(&restored)), expected, "world {seed}: {indexes:?} restores to something else");
        }
    }

    /// What records lead to, applied in the order of history.
    fn replayed(&self, held: &[Record]) -> Vec<String> {
        let dir = tempfile::tempdir_in(self.dir.path()).unwrap();
        let model = empty_store_of(dir.path(), self.filesystem);
        let mut in_order: Vec<&Record> = held.iter().collect();
        in_order.sort_by_key(|record| record.seq);
        model
            .write(|tx| in_order.iter().try_for_each(|record| tx.replay(record)))
            .unwrap_or_else(|e| panic!("world {}: {e}", self.seed));
        sound(&model);
        dump(&model)
    }

    /// What a file holds that is restored from one target; `None`: it is not there.
    pub(super) fn content_on(&mut self, index: usize, ino: InodeId) -> Option<Vec<u8>> {
        if !self.places[index].memory.objects().contains_key(key::SUPERBLOCK)
            || self.held(&self.places[index]).records.is_empty()
        {
            return None;
        }
        let (_dir, restored, _) = self.restored(&[index], None);
        self.content_of(&restored, index, ino)
    }

    /// What a file of a restored state holds, with bytes from one target.
    pub(super) fn content_of(&self, restored: &Meta, index: usize, ino: InodeId) -> Option<Vec<u8>> {
        type Row = (i64, i64, ChunkHash, i64);
        let (size, extents): (i64, Vec<Row>) = restored
            .read(|conn| {
                let size = conn.query_row("SELECT size FROM inode WHERE ino = ?1", [ino], |row| row.get(0));
                let sql = "SELECT e.offset, e.length, c.hash, e.chunk_offset FROM inode i JOIN extent e ON e.manifest = i.manifest \
                           JOIN chunk c ON c.id = e.chunk WHERE i.ino = ?1";
                let mut rows = conn.prepare(sql)?;
                let rows = rows.query_map([ino], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
                Ok((size.unwrap_or(-1), rows.collect::<rusqlite::Result<_>>()?))
            })
            .unwrap();
        let mut content = vec![0; usize::try_from(size).ok()?];
        let objects = self.places[index].memory.objects();
        for (offset, length, hash, chunk_offset) in extents {
            let (from, to) = (chunk_offset as usize, (chunk_offset + length) as usize);
            content[offset as usize..(offset + length) as usize]
                .copy_from_slice(&objects.get(&key::chunk(hash))?[from..to]);
        }
        Some(content)
    }

    /// In the end each target alone, and all together, restore to everything.
    pub(super) fn check_whole(&mut self) {
        let everything: Vec<Record> =
            self.truth.records.iter().map(|(seq, change)| Record { seq: *seq, change: change.clone() }).collect();
        assert_eq!(everything.len() as u64, self.meta().head().0, "world {}: every record has its content", self.seed);
        let all: Vec<usize> = (0..self.places.len()).collect();
        let expected = self.replayed(&everything);
        for index in &all {
            let (_dir, restored, report) = self.restored(&[*index], None);
            assert_eq!(report.lost_chunks, 0, "world {}: {index}", self.seed);
            assert_eq!(dump(&restored), expected, "world {}: {index} restores to something else", self.seed);
        }
        let (_dir, restored, _) = self.restored(&all, None);
        assert_eq!(dump(&restored), expected, "world {}: all together restore to something else", self.seed);
        let index = self.random.below(all.len());
        for (ino, file) in &self.programs.files {
            let content = self.content_of(&restored, index, *ino);
            assert!(
                content.as_ref() == Some(file.now()),
                "world {}: {} has another {ino}",
                self.seed,
                self.places[index].name
            );
        }
    }
}

/// The writers whose history counts on a place, newest first, each with the last record from which the next one went on.
fn chain(objects: &BTreeMap<String, Bytes>) -> Vec<((Epoch, WriterId), Seq)> {
    let announced: BTreeMap<(Epoch, WriterId), Writer> = objects
        .iter()
        .filter_map(|(key, body)| match key::parse(key) {
            Key::Writer { epoch, writer } => Some(((epoch, writer), Writer::decode(body, epoch, writer).unwrap())),
            _ => None,
        })
        .collect();
    let mut next = announced.keys().next_back().map(|newest| (*newest, Seq(u64::MAX)));
    let mut chain = vec![];
    while let Some((id, until)) = next {
        chain.push((id, until));
        let parent = announced.get(&id).and_then(|writer| writer.parent);
        next = parent.map(|parent| ((parent.epoch, parent.writer), parent.seq));
    }
    chain
}

/// Files whose last slot in the snapshot brought no bytes, and whose next content is not there: slots replace extents, and a
/// size, never times (T3), so these are the ones that the slot was reserved with.
fn timeless(held: &Held) -> BTreeSet<InodeId> {
    let mut timeless = BTreeSet::new();
    let mut in_order: Vec<&Record> = held.records.iter().collect();
    in_order.sort_by_key(|record| record.seq);
    for record in in_order {
        match &record.change {
            Change::Content(content) => {
                timeless.remove(&content.ino);
            }
            Change::Void { ino, .. } if record.seq <= held.base => {
                timeless.insert(*ino);
            }
            _ => {}
        }
    }
    timeless
}

/// A line of a dump; if it is the row of such a file, without mtime and ctime.
fn without_times(line: String, timeless: &BTreeSet<InodeId>) -> String {
    let columns: Vec<&str> = line.split(' ').collect();
    let is_inode = columns.len() == 15 && columns.iter().all(|column| column.starts_with("Ok(Integer("));
    let is_timeless = |ino: &InodeId| columns[0] == format!("Ok(Integer({}))", ino.0);
    if is_inode && timeless.iter().any(is_timeless) {
        return [&columns[..10], &columns[14..]].concat().join(" ");
    }
    line
}

fn sound(meta: &Meta) {
    meta.read(|conn| {
        assert_consistent(conn);
        Ok(())
    })
    .unwrap();
}
