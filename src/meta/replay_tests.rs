use proptest::prelude::*;

use super::*;
use crate::id::Hash;
use crate::meta::Meta;
use crate::meta::history::{CHUNK_LENGTH, History, assert_consistent, chunk_hash, dump, empty_store, overtaken, time};

fn replayed(records: &[Record]) -> (tempfile::TempDir, Meta) {
    let dir = tempfile::tempdir().unwrap();
    let meta = empty_store(dir.path());
    meta.write(|tx| records.iter().try_for_each(|record| tx.replay(record))).unwrap();
    (dir, meta)
}

fn steps() -> impl Strategy<Value = Vec<[u8; 6]>> {
    prop::collection::vec(any::<[u8; 6]>(), 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn replay_leads_to_what_the_history_says(steps in steps()) {
        let history = History::build(&steps);
        let (_dir, meta) = replayed(&history.records);
        history.check(&meta);
        prop_assert_eq!(meta.head(), history.head());
    }

    #[test]
    fn o7_records_that_were_overtaken_lead_to_the_same_state(steps in steps(), late in prop::collection::vec(any::<u8>(), 60)) {
        let history = History::build(&steps);
        let (_dir, in_order) = replayed(&history.records);
        let (_dir2, reordered) = replayed(&overtaken(&history.records, &late));
        prop_assert_eq!(dump(&in_order), dump(&reordered));
    }

    /// Hostile data: records that are left out, doubled and mixed up are refused one by one, and what is kept is sound.
    #[test]
    fn records_that_contradict_the_tables_are_refused_and_change_nothing(
        steps in steps(),
        other in steps(),
        picks in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 0..60),
    ) {
        let (one, two) = (History::build(&steps).records, History::build(&other).records);
        let dir = tempfile::tempdir().unwrap();
        let meta = empty_store(dir.path());
        for (first, index) in picks {
            let records = if first { &one } else { &two };
            let record = &records[index.index(records.len())];
            let before = meta.head();
            match meta.write(|tx| tx.replay(record)) {
                Ok(()) => prop_assert!(meta.head() >= record.seq),
                Err(Error::Contradiction { seq, .. }) => {
                    prop_assert_eq!(seq, record.seq);
                    prop_assert_eq!(meta.head(), before);
                }
                Err(other) => prop_assert!(false, "{}", other),
            }
            meta.read(|conn| {
                assert_consistent(conn);
                Ok(())
            }).unwrap();
        }
    }
}

fn record(seq: u64, change: Change) -> Record {
    Record { seq: Seq(seq), change }
}

fn create(seq: u64, ino: u64, name: &[u8]) -> Record {
    let mode = libc::S_IFREG | 0o644;
    let (parent, ino, name) = (InodeId::ROOT, InodeId(ino), name.to_vec());
    record(
        seq,
        Change::Create { parent, name, ino, mode, uid: 0, gid: 0, rdev: 0, time: time(Seq(seq)), xattrs: vec![] },
    )
}

fn content(seq: u64, ino: u64, size: u64, extents: &[[u64; 3]], part: Option<(u32, u32)>) -> Record {
    let extents = extents
        .iter()
        .map(|[offset, length, at]| Extent { offset: *offset, length: *length, chunk: 0, chunk_offset: *at })
        .collect();
    record(
        seq,
        Change::Content(Content {
            ino: InodeId(ino),
            generation: Generation(seq),
            whole: true,
            size,
            mtime: time(Seq(seq)),
            ctime: time(Seq(seq)),
            mode: None,
            chunks: vec![(chunk_hash(1), CHUNK_LENGTH)],
            extents,
            zero: vec![],
            part,
        }),
    )
}

fn extents(meta: &Meta, ino: u64) -> Vec<(u64, u64, u64)> {
    let inode = meta.inode(InodeId(ino)).unwrap();
    let Some(manifest) = inode.manifest else { return vec![] };
    let rows = meta.read(|conn| extent::rows(conn, manifest, 0, 1 << 40)).unwrap();
    rows.iter().map(|row| (row.offset, row.length, row.chunk_offset)).collect()
}

#[test]
fn a_change_in_parts_forgets_the_earlier_content_once() {
    let (_dir, meta) = replayed(&[
        create(1, 2, b"a"),
        content(2, 2, 40, &[[0, 40, 0]], None),
        content(3, 2, 40, &[[0, 4, 8]], Some((1, 2))),
        content(3, 2, 40, &[[20, 4, 0]], Some((2, 2))),
    ]);
    assert_eq!(extents(&meta, 2), [(0, 4, 8), (20, 4, 0)]);
}

#[test]
fn t3_slots_fill_extents_only_and_clip_to_the_size_of_the_snapshot() {
    let (_dir, meta) = replayed(&[create(1, 2, b"a"), content(2, 2, 40, &[[0, 40, 0]], None)]);
    let before = meta.inode(InodeId(2)).unwrap();
    meta.write(|tx| {
        tx.replay_slot(&content(3, 2, 50, &[[10, 40, 0]], None), 30)?;
        tx.settle_slots_of(Seq(3), InodeId(2), 30)
    })
    .unwrap();
    assert_eq!(extents(&meta, 2), [(10, 20, 0)]);
    let after = meta.inode(InodeId(2)).unwrap();
    assert_eq!((after.size, after.mtime, after.ctime), (30, before.mtime, before.ctime));
}

#[test]
fn content_of_an_inode_that_is_gone_is_an_error_that_names_both() {
    let unlink =
        record(2, Change::Unlink { parent: InodeId::ROOT, name: b"a".to_vec(), ino: InodeId(2), time: time(Seq(2)) });
    let (_dir, meta) = replayed(&[create(1, 2, b"a"), unlink]);
    let refused = meta.write(|tx| tx.replay(&content(3, 2, 1, &[[0, 1, 0]], None))).unwrap_err();
    assert_eq!(refused.to_string(), "record 3 about inode 2: inode 2 does not exist");
    // A slot that brought nothing says nothing about it.
    let void = Change::Void { ino: InodeId(2), generation: Generation(1), why: VoidReason::Unlinked };
    meta.write(|tx| tx.replay(&record(4, void))).unwrap();
}

#[test]
fn names_and_numbers_that_cannot_be_are_refused() {
    let (_dir, meta) = replayed(&[create(1, 2, b"a")]);
    let refused = |record: Record| {
        let result = meta.write(|tx| tx.replay(&record));
        assert!(matches!(result, Err(Error::Contradiction { .. })), "{record:?}: {result:?}");
    };
    for name in [b"".as_slice(), b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
        refused(create(2, 3, name));
    }
    refused(create(2, 0, b"b"));
    refused(create(2, u64::MAX, b"b"));
    refused(create(0, 3, b"b"));
    refused(create(u64::MAX, 3, b"b"));
    for extent in [[0, 0, 0], [0, 65, 0], [0, 10, u64::MAX], [u64::MAX, 10, 0], [95, 10, 0]] {
        refused(content(2, 2, 100, &[extent], None));
    }
    refused(content(2, 2, 100, &[[10, 10, 0], [0, 10, 0]], None));
    refused(content(2, 2, u64::MAX, &[], None));
    let mut wrong = content(2, 2, 10, &[[0, 10, 0]], None);
    if let Change::Content(content) = &mut wrong.change {
        content.chunks = vec![(Hash::of(b"huge"), 1 << 40)];
    }
    refused(wrong);
}

#[test]
fn o5_a_repack_moves_references_wherever_they_stand_and_cuts_them_at_its_borders() {
    let moves = vec![Extent { offset: 10, length: 20, chunk: 0, chunk_offset: 30 }];
    let repack = Change::Repack { from: chunk_hash(1), chunks: vec![(chunk_hash(2), CHUNK_LENGTH)], moves };
    let (_dir, meta) = replayed(&[
        create(1, 2, b"a"),
        create(2, 3, b"b"),
        content(3, 2, 40, &[[0, 40, 0]], None),
        content(4, 3, 100, &[[50, 5, 12]], None),
        record(5, repack),
    ]);
    assert_eq!(extents(&meta, 2), [(0, 10, 0), (10, 20, 30), (30, 10, 30)]);
    assert_eq!(extents(&meta, 3), [(50, 5, 32)]);
}
