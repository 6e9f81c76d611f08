use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::clock::Timestamp;
use crate::format::checkpoint::{Complete, Part, encode_slots};
use crate::format::json;
use crate::format::key::CheckpointFile;
use crate::format::record::{Change, Record};
use crate::format::segment::{Builder, Place};
use crate::format::writer::{Parent, Writer};
use crate::id::ExportId;
use crate::meta::history::{
    CHUNK_NUMBERS, History, assert_consistent, chunk_bytes, chunk_hash, dump, empty_store_of, overtaken, rich,
};
use crate::meta::target::Mode;
use crate::replication::contact;
use crate::target::memory::MemoryTarget;

const FILESYSTEM: FilesystemId = FilesystemId(uuid::Uuid::from_u128(0xf5));

/// A target as some writer left it.
#[derive(Clone)]
struct Made {
    name: &'static str,
    target: MemoryTarget,
    id: TargetId,
    writer: (Epoch, WriterId),
    last: Option<(Place, Hash)>,
    seq: Seq,
}

impl Made {
    /// A target of which only the superblock and all chunks are there.
    fn new(name: &'static str) -> Made {
        let id = TargetId::random();
        let made =
            Made { name, target: MemoryTarget::new(), id, writer: (Epoch(1), WriterId(1)), last: None, seq: Seq(0) };
        let superblock = Superblock {
            filesystem: FILESYSTEM,
            target: id,
            name: "photos".into(),
            target_name: name.into(),
            created: Timestamp::EPOCH,
        };
        made.put(key::SUPERBLOCK.into(), superblock.encode());
        for number in 0..CHUNK_NUMBERS {
            made.put(key::chunk(chunk_hash(number)), chunk_bytes(number));
        }
        made
    }

    /// The first writer with its announcement, and `records` in segments of `sizes` in turn, each the end of a unit.
    fn with(name: &'static str, records: &[Record], sizes: &[usize]) -> Made {
        let mut made = Made::new(name);
        made.mount(1, 1);
        made.segments(records, sizes);
        made
    }

    fn put(&self, key: String, bytes: Vec<u8>) {
        self.target.objects().insert(key, bytes.into());
    }

    /// A new writer, which goes on from the newest segment.
    fn mount(&mut self, epoch: u64, writer: u32) {
        let parent = self.last.map(|(place, hash)| Parent {
            epoch: place.epoch,
            writer: place.writer,
            n: place.n,
            hash,
            seq: self.seq,
        });
        self.writer = (Epoch(epoch), WriterId(writer));
        let writer = Writer {
            filesystem: FILESYSTEM,
            target: self.id,
            epoch: self.writer.0,
            writer: self.writer.1,
            host: format!("host{writer}"),
            started: Timestamp::EPOCH,
            version: "0".into(),
            parent,
            history: vec![],
        };
        self.put(writer.key(), writer.encode());
    }

    fn segment(&mut self, records: &[Record], low_water: Seq, end: bool) -> Place {
        let n = self.last.map_or(SegmentNumber(1), |(place, _)| place.n.next());
        let (epoch, writer) = self.writer;
        let place = Place { filesystem: FILESYSTEM, target: self.id, epoch, writer, n };
        let mut builder = Builder::new(place, self.last.map(|(_, hash)| hash));
        for record in records {
            json::lines(record).iter().for_each(|line| builder.push(record.seq, line));
        }
        let encoded = builder.finish(low_water, end);
        self.put(place.key(), encoded.body);
        self.last = Some((place, encoded.hash));
        self.seq = self.seq.max(encoded.seq_max);
        place
    }

    fn segments(&mut self, records: &[Record], sizes: &[usize]) {
        let mut rest = records;
        let mut sizes = sizes.iter().cycle();
        let mut held = SeqSet::up_to(self.seq);
        while !rest.is_empty() {
            let (these, later) = rest.split_at((*sizes.next().unwrap()).clamp(1, rest.len()));
            these.iter().for_each(|record| held.insert(record.seq));
            let low_water = held.first_missing(Seq(u64::MAX)).unwrap().previous();
            self.segment(these, low_water, true);
            rest = later;
        }
    }

    /// A complete checkpoint of the state after `records`, which are all up to some seq.
    fn checkpoint(&mut self, records: &[Record]) -> (Seq, ExportId) {
        let dir = tempfile::tempdir().unwrap();
        let meta = replayed(dir.path(), records);
        let export = ExportId::random();
        let exported = meta.export(&dir.path().join("export"), export).unwrap();
        let database = std::fs::read(&exported.path).unwrap();
        let packed = zstd::bulk::compress(&database, 3).unwrap();
        // Cut anywhere: the parts are one stream.
        let parts: Vec<Part> = packed
            .chunks(packed.len() / 3 + 1)
            .enumerate()
            .map(|(index, bytes)| {
                let file = CheckpointFile::Part(index as u16);
                self.put(key::checkpoint_part(exported.seq, export, file), bytes.to_vec());
                Part::of(file, bytes)
            })
            .collect();
        let (slots, slots_count) = encode_slots([]);
        let (epoch, writer) = self.writer;
        let complete = Complete {
            filesystem: FILESYSTEM,
            target: self.id,
            epoch,
            writer,
            seq: exported.seq,
            replay_from: self.last.map_or(SegmentNumber(1), |(place, _)| place.n.next()),
            sqlite_bytes: database.len() as u64,
            parts,
            slots: Part::of(CheckpointFile::Slots, &slots),
            slots_count,
            inodes: exported.inodes,
            chunks: exported.chunks,
            chunk_bytes: exported.chunk_bytes,
            created: Timestamp::EPOCH,
        };
        self.put(key::checkpoint_part(exported.seq, export, CheckpointFile::Slots), slots);
        self.put(key::complete(exported.seq, export), complete.encode());
        self.seq = self.seq.max(exported.seq);
        (exported.seq, export)
    }

    fn source(&self) -> Source {
        let target = std::sync::Arc::new(self.target.clone());
        Source { target, name: self.name.into(), uri: format!("memory://{}", self.name) }
    }

    fn objects(&self) -> BTreeMap<String, Bytes> {
        self.target.objects().clone()
    }

    fn spoil(&self, key: &str, how: impl FnOnce(&mut Vec<u8>)) {
        let mut objects = self.target.objects();
        let mut bytes = objects[key].to_vec();
        how(&mut bytes);
        objects.insert(key.into(), bytes.into());
    }
}

fn replayed(dir: &Path, records: &[Record]) -> Meta {
    let meta = empty_store_of(dir, FILESYSTEM);
    meta.write(|tx| records.iter().try_for_each(|record| tx.replay(record))).unwrap();
    meta
}

/// What a store looks like after `records` in order.
fn state_of(records: &[Record]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    dump(&replayed(dir.path(), records))
}

struct Restored {
    _dir: tempfile::TempDir,
    meta: Meta,
    report: Report,
}

fn try_restore(targets: &[&Made]) -> Result<Restored, Error> {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = dir.path().join("state");
    let before: Vec<_> = targets.iter().map(|made| made.objects()).collect();
    let sources = targets.iter().map(|made| made.source()).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let result = runtime.block_on(restore(sources, &state_dir, Options::default()));
    for (made, before) in targets.iter().zip(before) {
        assert_eq!(made.objects(), before, "D6: nothing is written to a target");
    }
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    match result {
        Ok(report) => {
            assert_eq!(left, ["state"]);
            let meta = Meta::open(&state_dir.join("meta.sqlite"), &meta::Options::default()).unwrap();
            meta.read(|conn| {
                assert_consistent(conn);
                Ok(())
            })
            .unwrap();
            Ok(Restored { _dir: dir, meta, report })
        }
        Err(error) => {
            assert!(left.is_empty(), "a refusal leaves nothing behind: {left:?}");
            Err(error)
        }
    }
}

fn restored(targets: &[&Made]) -> Restored {
    try_restore(targets).unwrap()
}

/// What the next mount will think of the target (T7).
fn contact(restored: &Restored, made: &Made) -> contact::Verdict {
    let own = contact::Own::of(&restored.meta, only_bit(&restored.meta)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let evidence = runtime.block_on(contact::gather(made.name, &made.source().target, &own)).unwrap();
    contact::decide(made.name, &own, &evidence)
}

fn only_bit(meta: &Meta) -> TargetBit {
    meta.targets().unwrap()[0].bit
}

#[test]
fn a_history_comes_back_from_segments_alone() {
    let history = rich();
    let made = Made::with("aws", &history.records, &[1, 7, 3]);
    let restored = restored(&[&made]);
    history.check(&restored.meta);
    assert_eq!(dump(&restored.meta), state_of(&history.records));
    let report = &restored.report;
    assert_eq!((report.seq, report.records), (history.head(), history.head().0));
    assert_eq!((&report.checkpoint, &report.unproven[..], report.lost_chunks), (&None, &[][..], 0));
    assert_eq!((report.name.as_str(), report.filesystem), ("photos", FILESYSTEM));

    // The shipper goes on from the newest segment.
    let row = &restored.meta.targets().unwrap()[0];
    assert_eq!((row.id, row.mode, row.initialised), (made.id, Mode::Follow, true));
    assert_eq!((row.name.as_str(), row.uri.as_str()), ("aws", "memory://aws"));
    let cursor = restored.meta.cursor(row.bit).unwrap();
    let (place, hash) = made.last.unwrap();
    let built = cursor.built.unwrap();
    assert_eq!((built.epoch, built.writer, built.n, built.hash), (place.epoch, place.writer, place.n, hash));
    assert_eq!(cursor.confirmed, cursor.built);
    assert_eq!((cursor.position, cursor.shipped_seq), (history.head(), history.head()));
    assert_eq!((cursor.contact_epoch, restored.meta.writer_identity().unwrap().0), (Epoch(1), Epoch(1)));
    // Its bits are claims, and nothing waits to be placed.
    let (claimed, todo): (i64, i64) = restored
        .meta
        .read(|conn| {
            Ok(conn.query_row(
                "SELECT sum(claimed = placed AND placed = 1), sum(incomplete) FROM chunk",
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?)
        })
        .unwrap();
    assert_eq!((claimed as u64, todo), (report.sources[0].chunks, 0));
}

#[test]
fn t3_a_checkpoint_and_the_segments_after_it() {
    let history = rich();
    let (early, late) = history.records.split_at(100);
    let mut made = Made::with("aws", early, &[9]);
    let (seq, export) = made.checkpoint(early);
    made.segments(late, &[5]);
    let objects = made.objects();
    let newest = restored(&[&made]);
    assert_eq!(newest.report.checkpoint, Some(("aws".into(), seq)));
    assert_eq!(newest.report.records, late.len() as u64);
    assert_eq!(dump(&newest.meta), state_of(&history.records));
    assert!(newest.report.unproven.is_empty(), "{:?}", newest.report.unproven);
    let checkpoints: i64 = newest
        .meta
        .read(|conn| Ok(conn.query_row("SELECT count(*) FROM checkpoint WHERE complete", [], |r| r.get(0))?))
        .unwrap();
    assert_eq!(checkpoints, 1);

    // Whatever of it is spoiled: the history from its beginning gives the same, and the report says so.
    for file in [CheckpointFile::Part(0), CheckpointFile::Part(2), CheckpointFile::Slots, CheckpointFile::Complete] {
        for how in 0..3 {
            let key = key::checkpoint_part(seq, export, file);
            match how {
                0 => made.spoil(&key, |bytes| bytes[0] ^= 1),
                1 => made.spoil(&key, |bytes| bytes.truncate(bytes.len() / 2)),
                _ => drop(made.target.objects().remove(&key)),
            }
            let older = restored(&[&made]);
            assert_eq!(dump(&older.meta), state_of(&history.records), "{file}");
            assert_eq!(older.report.checkpoint, None);
            let silent = how == 2 && file == CheckpointFile::Complete;
            assert_eq!(older.report.unproven.len(), usize::from(!silent), "{:?}", older.report.unproven);
            *made.target.objects() = objects.clone();
        }
    }
}

#[test]
fn t3_an_older_checkpoint_stands_in_for_one_that_is_not_sound() {
    let history = rich();
    let mut made = Made::with("aws", &history.records[..40], &[9]);
    let (first, _) = made.checkpoint(&history.records[..40]);
    made.segments(&history.records[40..90], &[9]);
    let (second, export) = made.checkpoint(&history.records[..90]);
    made.segments(&history.records[90..], &[9]);
    assert_eq!(restored(&[&made]).report.checkpoint, Some(("aws".into(), second)));
    made.spoil(&key::checkpoint_part(second, export, CheckpointFile::Part(1)), |bytes| bytes[9] ^= 1);
    let older = restored(&[&made]);
    assert_eq!(older.report.checkpoint, Some(("aws".into(), first)));
    assert_eq!(dump(&older.meta), state_of(&history.records));
    assert!(matches!(&older.report.unproven[..], [Unproven::Checkpoint { seq, .. }] if *seq == second));
}

#[test]
fn the_hash_of_the_segment_before_a_checkpoint_is_what_the_next_writer_goes_on_from() {
    let history = rich();
    let mut made = Made::with("aws", &history.records, &[9]);
    made.checkpoint(&history.records);
    let (place, hash) = made.last.unwrap();
    let whole = restored(&[&made]);
    let built = whole.meta.cursor(only_bit(&whole.meta)).unwrap().built.unwrap();
    assert_eq!((built.n, built.hash), (place.n, hash));
    // Gone: the state is whole, the number goes on, and the report says that the hash is not known.
    made.target.objects().remove(&place.key());
    let trimmed = restored(&[&made]);
    assert_eq!(dump(&trimmed.meta), state_of(&history.records));
    assert_eq!(trimmed.meta.cursor(only_bit(&trimmed.meta)).unwrap().built.unwrap().n, place.n);
    assert_eq!(trimmed.report.unproven.len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A segment that is missing or not sound ends the replay at the last whole point before it.
    #[test]
    fn replay_ends_before_what_cannot_be_proved(spoilt in any::<prop::sample::Index>(), how in 0..5, at in any::<prop::sample::Index>()) {
        let history = rich();
        let made = Made::with("aws", &history.records, &[7]);
        let segments: Vec<String> = made.objects().into_keys().filter(|key| key.starts_with(key::JOURNAL)).collect();
        let index = spoilt.index(segments.len());
        let key = &segments[index];
        let other = made.objects()[&segments[(index + 1) % segments.len()]].to_vec();
        match how {
            0 => made.spoil(key, |bytes| { let at = at.index(bytes.len()); bytes[at] ^= 0x55 }),
            1 => made.spoil(key, |bytes| bytes.truncate(at.index(bytes.len()))),
            2 => made.spoil(key, |bytes| *bytes = other),
            3 => made.spoil(key, |bytes| bytes.clear()),
            _ => drop(made.target.objects().remove(key)),
        }
        let whole = history.records.len().min(index * 7);
        match try_restore(&[&made]) {
            Ok(restored) => {
                // A flipped bit that zstd does not care about changes nothing.
                if restored.report.unproven.is_empty() {
                    // The last one missing looks like a target that got less.
                    let last = how == 4 && index + 1 == segments.len();
                    prop_assert!(how == 0 || last);
                    prop_assert_eq!(restored.report.seq.0 as usize, if last { whole } else { history.records.len() });
                } else {
                    prop_assert_eq!(restored.report.seq, Seq(whole as u64));
                    prop_assert_eq!(dump(&restored.meta), state_of(&history.records[..whole]));
                    let named = matches!(&restored.report.unproven[..], [Unproven::Journal { segment, .. }] if segment.0 == index as u64 + 1);
                    prop_assert!(named, "{:?}", restored.report.unproven);
                }
            }
            Err(Error::Nothing(_)) => prop_assert_eq!(whole, 0),
            Err(Error::Format { error: format::Error::Unsupported { .. }, .. }) => prop_assert_eq!(how, 0),
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    /// D6: two targets got the records in different orders and to different points; together they give the union.
    #[test]
    fn d6_several_sources_give_the_union_of_their_records(
        steps in prop::collection::vec(any::<[u8; 6]>(), 1..50),
        late in prop::collection::vec(any::<u8>(), 100),
        cuts in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        checkpoint in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let records = History::build(&steps).records;
        let orders = [overtaken(&records, &late[..50]), overtaken(&records, &late[50..])];
        let cut = [cuts.0.index(records.len()) + 1, cuts.1.index(records.len()) + 1];
        let one = Made::with("one", &orders[0][..cut[0]], &[1, 4]);
        let mut two = Made::new("two");
        two.mount(1, 1);
        let mut union: Vec<Record> = orders[0][..cut[0]].to_vec();
        if let Some(checkpoint) = checkpoint {
            let state = &records[..checkpoint.index(records.len())];
            two.checkpoint(state);
            union.extend_from_slice(state);
        }
        let rest: Vec<Record> = orders[1][..cut[1]].iter().filter(|record| record.seq > two.seq).cloned().collect();
        two.segments(&rest, &[3, 2]);
        union.extend(rest);
        union.sort_by_key(|record| record.seq);
        union.dedup_by_key(|record| record.seq);

        for targets in [[&one, &two], [&two, &one]] {
            let restored = restored(&targets);
            prop_assert!(restored.report.unproven.is_empty(), "{:?}", restored.report.unproven);
            prop_assert_eq!(dump(&restored.meta), state_of(&union));
            // A source that lacks something that the other one has is not whole.
            let held: Vec<usize> = restored.report.sources.iter().map(|source| source.segments as usize).collect();
            prop_assert_eq!(held.len(), 2);
            for source in &restored.report.sources {
                let followed = restored.meta.targets().unwrap().iter().any(|row| row.name == source.name && row.mode == Mode::Follow);
                prop_assert_eq!(source.whole, followed);
                if source.seq < restored.report.seq {
                    prop_assert!(!source.whole);
                }
            }
        }
    }

    /// Hostile: whatever one object becomes, the answer is an error or a sound state, never a panic.
    #[test]
    fn no_object_can_make_restore_panic(object in any::<prop::sample::Index>(), flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let history = rich();
        let mut made = Made::with("aws", &history.records[..60], &[9]);
        made.checkpoint(&history.records[..60]);
        made.mount(2, 2);
        made.segments(&history.records[60..], &[30]);
        let keys: Vec<String> = made.objects().into_keys().filter(|key| !key.starts_with(key::CHUNKS)).collect();
        made.spoil(&keys[object.index(keys.len())], |bytes| {
            for (index, byte) in flips {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
        });
        let _ = try_restore(&[&made]);
    }
}

#[test]
fn o6_a_unit_that_was_never_finished_counts_as_nothing() {
    let history = rich();
    let mut made = Made::with("aws", &history.records[..50], &[10]);
    let (last, _) = made.last.unwrap();
    made.segment(&history.records[50..60], Seq(50), false);
    made.segment(&history.records[60..70], Seq(50), false);
    let restored = restored(&[&made]);
    assert_eq!(dump(&restored.meta), state_of(&history.records[..50]));
    assert!(matches!(&restored.report.unproven[..], [Unproven::Journal { segment: SegmentNumber(6), .. }]));
    assert_eq!(restored.meta.cursor(only_bit(&restored.meta)).unwrap().confirmed.unwrap().n, last.n);
    assert_eq!(contact(&restored, &made), contact::Verdict::Ours, "its remains are no reason to refuse the target");
    // With its end it is there as a whole.
    made.segment(&history.records[70..80], Seq(80), true);
    assert_eq!(self::restored(&[&made]).report.seq, Seq(80));
}

#[test]
fn a_record_that_contradicts_the_state_takes_its_whole_unit_with_it() {
    let history = rich();
    let mut made = Made::with("aws", &history.records[..50], &[10]);
    let change = Change::Rmdir {
        parent: crate::id::InodeId(1),
        name: b"nothing".to_vec(),
        ino: crate::id::InodeId(999),
        time: Timestamp::EPOCH,
    };
    made.segment(&history.records[50..55], Seq(50), false);
    made.segment(&[Record { seq: Seq(56), change }], Seq(50), true);
    let restored = restored(&[&made]);
    assert_eq!(dump(&restored.meta), state_of(&history.records[..50]));
    let [Unproven::Journal { why, .. }] = &restored.report.unproven[..] else {
        panic!("{:?}", restored.report.unproven)
    };
    assert!(why.contains("record 56 about inode 999"), "{why}");
}

#[test]
fn what_came_with_a_checkpoint_that_is_gone_is_not_passed_over_in_silence() {
    let history = rich();
    let mut made = Made::with("aws", &history.records[..50], &[10]);
    // The target was brought forward: records 51 to 90 never came in segments (T4).
    let (seq, export) = made.checkpoint(&history.records[..90]);
    made.segments(&history.records[90..], &[10]);
    assert_eq!(dump(&restored(&[&made]).meta), state_of(&history.records));
    made.target.objects().remove(&key::complete(seq, export));
    let older = restored(&[&made]);
    assert_eq!(dump(&older.meta), state_of(&history.records[..50]));
    let [Unproven::Journal { why, segment, .. }] = &older.report.unproven[..] else {
        panic!("{:?}", older.report.unproven)
    };
    assert_eq!(*segment, SegmentNumber(6));
    assert!(why.contains("record 51"), "{why}");
}

#[test]
fn t3_discarded_history_is_left_out() {
    let history = rich();
    let mut made = Made::with("aws", &history.records[..50], &[10]);
    let fork = made.clone();
    // What the first writer went on to write, and nobody took over.
    let other = History::build(&[[2, 0, 3, 1, 1, 1]; 30]);
    made.segment(&other.records[1..2], Seq(0), true);
    made.last = fork.last;
    made.seq = fork.seq;
    made.mount(2, 2);
    made.segments(&history.records[50..], &[10]);
    let restored = restored(&[&made]);
    assert_eq!(dump(&restored.meta), state_of(&history.records));
    assert!(restored.report.unproven.is_empty());
    assert_eq!(restored.meta.writer_identity().unwrap().0, Epoch(2));
    assert_eq!(contact(&restored, &made), contact::Verdict::Ours);
}

#[test]
fn t7_the_next_mount_goes_on_where_the_restored_history_ends() {
    let history = rich();
    let mut made = Made::with("aws", &history.records[..50], &[10]);
    assert_eq!(contact(&restored(&[&made]), &made), contact::Verdict::Ours);
    // A writer that went on from there and never wrote: what the one before it wrote later is discarded.
    let (last, seq) = (made.last, made.seq);
    made.segment(&history.records[50..60], Seq(60), true);
    (made.last, made.seq) = (last, seq);
    made.mount(2, 2);
    let restored_without = restored(&[&made]);
    assert_eq!(restored_without.report.seq, Seq(50));
    assert_eq!(contact(&restored_without, &made), contact::Verdict::Ours);
}

#[test]
fn t7_changes_that_could_not_be_proved_are_not_given_up_in_silence() {
    let history = rich();
    let made = Made::with("aws", &history.records[..50], &[10]);
    let place = Place { n: SegmentNumber(3), ..made.last.unwrap().0 };
    made.spoil(&place.key(), |bytes| bytes.clear());
    let restored = restored(&[&made]);
    assert_eq!(restored.report.seq, Seq(20));
    assert!(matches!(contact(&restored, &made), contact::Verdict::Conflict { .. }));
}

#[test]
fn the_golden_target_restores() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1/target");
    let target = MemoryTarget::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let key = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                target.objects().insert(key, std::fs::read(&path).unwrap().into());
            }
        }
    }
    let restored = restored(&[&Made { target, ..Made::new("golden") }]);
    let report = &restored.report;
    // It ends with a unit that was never finished.
    assert!(
        matches!(&report.unproven[..], [Unproven::Journal { segment: SegmentNumber(5), .. }]),
        "{:?}",
        report.unproven
    );
    assert_eq!((report.name.as_str(), report.lost_chunks, report.sources[0].whole), ("photos", 0, true));
    assert_eq!(restored.meta.writer_identity().unwrap().0, Epoch(3));
    for path in [b"final".as_slice(), b"bin/\xfffoo", b"link", b"sym", b"sparse"] {
        assert!(restored.meta.resolve(path).is_ok(), "{}", String::from_utf8_lossy(path));
    }
}

#[test]
fn t3_two_writers_of_one_epoch_are_refused_and_named() {
    let history = rich();
    let mut one = Made::with("one", &history.records[..50], &[10]);
    let mut two = Made::new("two");
    two.mount(2, 22);
    one.mount(2, 11);
    let Err(Error::TwoWriters(refused)) = try_restore(&[&one, &two]) else { panic!("not refused") };
    let text = refused.to_string();
    assert!(text.contains("host11") && text.contains("host22"), "{text}");
    assert!(try_restore(&[&one]).is_ok());
}

#[test]
fn d6_a_source_with_another_history_gives_nothing() {
    let history = rich();
    let mut one = Made::with("one", &history.records[..50], &[10]);
    one.mount(3, 3);
    let mut two = Made::new("two");
    two.mount(2, 2);
    two.segments(&History::build(&[[2, 0, 3, 1, 1, 1]; 80]).records, &[10]);
    let restored = restored(&[&two, &one]);
    assert_eq!(dump(&restored.meta), state_of(&history.records[..50]));
    assert!(
        restored.report.unproven.iter().any(|u| matches!(u, Unproven::OtherHistory { source, .. } if source == "two"))
    );
    assert!(!restored.report.sources[0].whole);
}

#[test]
fn d6_of_a_source_that_the_newest_writer_never_reached_counts_what_it_went_on_from() {
    let history = rich();
    let mut one = Made::with("one", &history.records[..50], &[10]);
    one.mount(2, 2);
    one.segments(&history.records[50..60], &[10]);
    // The first writer got further here, before it lost its right: that is not the history that goes on.
    let two = Made::with("two", &history.records[..55], &[5]);
    let restored = restored(&[&one, &two]);
    assert_eq!(dump(&restored.meta), state_of(&history.records[..60]));
    assert_eq!(
        restored.report.sources.iter().map(|s| (s.whole, s.seq.0)).collect::<Vec<_>>(),
        [(true, 60), (false, 50)]
    );
}

#[test]
fn o6_places_that_nobody_has_are_filled_so_that_history_stays_dense() {
    let history = rich();
    let late: Vec<u8> = (0..history.records.len()).map(|i| if i % 5 == 0 { 3 } else { 0 }).collect();
    let order = overtaken(&history.records, &late);
    let holes_after = |count: usize| -> Vec<Seq> {
        let mut set = SeqSet::default();
        order[..count].iter().for_each(|record| set.insert(record.seq));
        set.missing().collect()
    };
    let cut = (1..order.len()).max_by_key(|count| holes_after(*count).len()).unwrap();
    let holes = holes_after(cut);
    let mut made = Made::with("aws", &order[..cut], &[1]);
    let first = restored(&[&made]);
    assert!(!holes.is_empty(), "the test wants records that were overtaken and are lost");
    let filled: Vec<Record> = first
        .meta
        .read(|conn| {
            let mut rows =
                conn.prepare("SELECT j.seq, j.body FROM journal j JOIN deferred d USING (seq) ORDER BY seq")?;
            let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.map(|row| {
                let (seq, body): (Seq, Vec<u8>) = row?;
                meta::journal::decode(seq, &body)
            })
            .collect()
        })
        .unwrap();
    assert_eq!(filled.iter().map(|record| record.seq).collect::<Vec<_>>(), holes);
    assert!(first.report.sources[0].whole);

    // The next writer ships them, and the restore after that finds nothing missing.
    made.mount(2, 2);
    made.segment(&filled, made.seq, true);
    let second = restored(&[&made]);
    assert!(second.report.unproven.is_empty(), "{:?}", second.report.unproven);
    assert_eq!(dump(&second.meta), dump(&first.meta));
    let holes: i64 =
        second.meta.read(|conn| Ok(conn.query_row("SELECT count(*) FROM deferred", [], |r| r.get(0))?)).unwrap();
    assert_eq!(holes, 0);
}

#[test]
fn d6_only_chunks_that_are_listed_whole_are_claimed() {
    let history = rich();
    let made = Made::with("aws", &history.records, &[20]);
    let used: Vec<Hash> = restored(&[&made])
        .meta
        .read(|conn| {
            let mut rows = conn.prepare("SELECT hash FROM chunk WHERE dead_seq IS NULL ORDER BY id")?;
            let hashes = rows.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
            Ok(hashes)
        })
        .unwrap();
    made.target.objects().remove(&key::chunk(used[0]));
    made.spoil(&key::chunk(used[1]), |bytes| bytes.truncate(5));
    made.put(key::chunk(Hash::of(b"nobody's")), b"nobody's".to_vec());
    made.put("chunks/readme.txt".into(), b"?".to_vec());
    let restored = restored(&[&made]);
    let report = &restored.report;
    assert_eq!((report.lost_chunks, report.lost_examples.len()), (2, 2));
    let source = &report.sources[0];
    assert_eq!((source.missing_chunks, source.foreign_objects), (2, 1));
    assert!(source.unneeded_chunks >= 1);
    // Another target that has them makes the files whole; they wait to be placed on the first one again.
    let other = Made::with("oss", &history.records, &[11]);
    let both = self::restored(&[&made, &other]);
    assert_eq!(both.report.lost_chunks, 0);
    let todo: i64 =
        both.meta.read(|conn| Ok(conn.query_row("SELECT sum(incomplete) FROM chunk", [], |r| r.get(0))?)).unwrap();
    assert_eq!(todo, 2);
}

#[test]
fn a_new_filesystem_without_history_restores_to_an_empty_root() {
    let restored = restored(&[&Made::new("aws")]);
    assert_eq!((restored.report.seq, restored.report.inodes), (Seq(0), 1));
}

#[test]
fn refusals_name_what_is_in_the_way() {
    let history = rich();
    let made = Made::with("aws", &history.records[..10], &[10]);
    assert!(matches!(try_restore(&[]), Err(Error::NoSource)));
    let other = Made { name: "twin", ..made.clone() };
    assert!(
        matches!(try_restore(&[&made, &other]), Err(Error::SameTarget { one, two }) if (one.as_str(), two.as_str()) == ("aws", "twin"))
    );
    let empty = Made { target: MemoryTarget::new(), ..Made::new("empty") };
    assert!(matches!(try_restore(&[&empty]), Err(Error::NotATarget { name }) if name == "empty"));
    let foreign = Made::new("foreign");
    foreign.spoil(key::SUPERBLOCK, |bytes| {
        let mut superblock = Superblock::decode(bytes).unwrap();
        superblock.filesystem = FilesystemId::random();
        *bytes = superblock.encode();
    });
    assert!(matches!(try_restore(&[&made, &foreign]), Err(Error::DifferentFilesystems { .. })));
    let later = Made::new("later");
    later.spoil(key::SUPERBLOCK, |bytes| {
        *bytes = String::from_utf8(bytes.clone()).unwrap().replace("\"format\": 1", "\"format\": 2").into_bytes();
    });
    assert!(matches!(try_restore(&[&later]), Err(Error::Format { .. })));

    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mine"), b"mine").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let refused = runtime.block_on(restore(vec![made.source()], dir.path(), Options::default()));
    assert!(matches!(refused, Err(Error::NotEmpty(_))));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn an_empty_directory_may_become_the_state_directory() {
    use std::os::unix::fs::MetadataExt;
    let made = Made::with("aws", &rich().records[..10], &[10]);
    let dir = tempfile::tempdir().unwrap();
    let state_dir = dir.path().join("a/b/state");
    std::fs::create_dir_all(&state_dir).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(restore(vec![made.source()], &state_dir, Options::default())).unwrap();
    assert_eq!(std::fs::metadata(&state_dir).unwrap().mode() & 0o777, 0o700);
    assert!(!state_dir.join("scratch").exists());
    assert!(Meta::open(&state_dir.join("meta.sqlite"), &meta::Options::default()).is_ok());
}
