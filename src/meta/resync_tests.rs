use super::*;
use crate::id::ExportId;
use crate::id::SegmentNumber;
use crate::meta::target::Configured;
use crate::meta::testing::{file, store};

fn bit(index: u8) -> TargetBit {
    TargetBit::new(index).unwrap()
}

fn two_followers() -> (tempfile::TempDir, Meta) {
    let (dir, meta) = store();
    let of = |name: &str| Configured { name: name.into(), uri: format!("memory://{name}"), id: None };
    meta.register_targets(&[of("a"), of("b")]).unwrap();
    (dir, meta)
}

/// A chunk of 10 bytes that waits for both targets but those in `placed`.
fn chunk(meta: &Meta, id: u64, placed: &[u8], dead: Option<u64>) {
    meta.write(|tx| {
        tx.conn().execute(
            "INSERT INTO chunk (id, hash, length, bytes_referenced, dead_seq, incomplete) VALUES (?1, ?2, 10, ?3, ?4, 1)",
            params![ChunkId(id), ChunkHash::of(&id.to_le_bytes()), if dead.is_some() { 0 } else { 10 }, dead.map(Seq)],
        )?;
        tx.chunks_inserted(1, 10)?;
        for index in placed {
            tx.place(bit(*index), &[ChunkId(id)])?;
        }
        Ok(())
    })
    .unwrap();
}

fn incomplete(meta: &Meta) -> Vec<u64> {
    meta.read(|conn| {
        let mut statement = conn.prepare("SELECT id FROM chunk WHERE incomplete = 1 ORDER BY id")?;
        let rows = statement.query_map([], |row| Ok(row.get::<_, i64>(0)? as u64))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    })
    .unwrap()
}

fn pending(meta: &Meta) -> Vec<u64> {
    meta.tallies().unwrap().iter().map(|(_, tally)| tally.pending_chunks).collect()
}

fn settle(meta: &Meta) {
    let mut after = ChunkId(0);
    while let Some(last) = meta.settle_pins(after, 2).unwrap() {
        after = last;
    }
}

#[test]
fn t4_what_only_a_resyncer_waited_for_is_let_go_and_what_others_need_stays() {
    let (_dir, meta) = two_followers();
    meta.write(|tx| {
        for name in [b"x", b"y", b"z"] {
            file(tx, name);
        }
        tx.conn().execute("INSERT INTO deferred VALUES (1, 2)", [])?;
        Ok(())
    })
    .unwrap();
    chunk(&meta, 1, &[0], None);
    chunk(&meta, 2, &[0], Some(2));
    chunk(&meta, 3, &[], None);
    chunk(&meta, 4, &[1], None);
    assert_eq!((incomplete(&meta), pending(&meta)), (vec![1, 2, 3, 4], vec![2, 3]));
    assert!(meta.begin_resync(bit(1), "test", 7).unwrap());
    assert!(!meta.begin_resync(bit(1), "test", 7).unwrap(), "once");
    settle(&meta);
    assert_eq!((incomplete(&meta), pending(&meta)), (vec![3, 4], vec![2, 0]));
    let row = meta.targets().unwrap().remove(1);
    assert_eq!((row.mode, row.base_seq, row.whole_secs), (Mode::Resync, Seq(3), None));
    assert_eq!(meta.shipping_backlog(bit(1)).unwrap().records, 3, "nothing is deferred any more");
    // The other one has everything: no row is wanted any more.
    meta.write(|tx| Ok(tx.conn().execute("UPDATE target SET shipped_seq = 3 WHERE bit = 0", [])?)).unwrap();
    while meta.trim_journal(None).unwrap() {}
    assert_eq!(meta.journal_bytes(Seq(1), Seq(9)).unwrap(), 0);
}

#[test]
fn promise_2_with_nobody_following_what_no_target_has_stays_pinned() {
    let (_dir, meta) = two_followers();
    chunk(&meta, 1, &[], None);
    chunk(&meta, 2, &[0], None);
    chunk(&meta, 3, &[], Some(1));
    meta.begin_resync(bit(0), "test", 7).unwrap();
    meta.begin_resync(bit(1), "test", 7).unwrap();
    settle(&meta);
    assert_eq!(incomplete(&meta), [1]);
    meta.place(bit(0), &[ChunkId(1)]).unwrap();
    assert_eq!(incomplete(&meta), Vec::<u64>::new());
}

#[test]
fn t4_with_nobody_following_rows_go_but_not_those_of_open_slots() {
    let (_dir, meta) = two_followers();
    meta.write(|tx| {
        file(tx, b"x");
        let y = file(tx, b"y");
        tx.reserve_slot(&crate::meta::testing::slot_request(y, 1, 9))?;
        file(tx, b"z");
        Ok(())
    })
    .unwrap();
    meta.begin_resync(bit(0), "test", 7).unwrap();
    meta.begin_resync(bit(1), "test", 7).unwrap();
    while meta.trim_journal(None).unwrap() {}
    let left: Vec<i64> = meta
        .read(|conn| {
            let mut statement = conn.prepare("SELECT seq FROM journal ORDER BY seq")?;
            Ok(statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
        })
        .unwrap();
    assert_eq!(left, [3, 4]);
}

#[test]
fn t4_a_checkpoint_begun_for_a_follower_does_not_make_a_resyncer_follow() {
    let (_dir, meta) = two_followers();
    meta.begin_checkpoint(bit(1), Seq(4), ExportId(8), SegmentNumber(1)).unwrap();
    assert!(meta.is_under_way(bit(1), Seq(4), ExportId(8), false).unwrap());
    meta.begin_resync(bit(1), "test", 7).unwrap();
    assert!(!meta.is_under_way(bit(1), Seq(4), ExportId(8), false).unwrap());
    assert!(!meta.complete_checkpoint(bit(1), Seq(4), ExportId(8), 7, Default::default()).unwrap());
    assert_eq!(meta.targets().unwrap()[1].mode, Mode::Resync);
}

#[test]
fn t7_of_a_target_that_lost_objects_only_what_is_listed_counts() {
    let (_dir, meta) = two_followers();
    for id in 1..=5 {
        chunk(&meta, id, &[0, 1], None);
    }
    meta.write(|tx| Ok(tx.conn().execute("UPDATE target SET shipped_seq = 3, initialised = 1", [])?)).unwrap();
    meta.begin_relist(bit(1), "lost", 7).unwrap();
    let row = meta.targets().unwrap().remove(1);
    assert_eq!((row.mode, row.relist, row.shipped_seq), (Mode::Resync, true, Seq(0)));
    let mut after = ChunkId(0);
    while let Some(last) = meta.forget_placed(bit(1), after, 2).unwrap() {
        after = last;
    }
    let hash = |id: u64| ChunkHash::of(&id.to_le_bytes());
    assert_eq!(meta.found(bit(1), &[(hash(1), 10), (hash(2), 9), (hash(9), 10)]).unwrap(), 1);
    meta.end_relist(bit(1)).unwrap();
    assert_eq!(meta.tallies().unwrap()[1].1.placed_chunks, 1);
    let mut lacking = Lacking::default();
    let mut after = ChunkId(0);
    while let Some(last) = meta.count_lacking(bit(1), after, 2, &mut lacking).unwrap() {
        after = last;
    }
    assert_eq!(lacking, Lacking { chunks: 4, bytes: 40, total_bytes: 50 });
    assert_eq!(incomplete(&meta), Vec::<u64>::new(), "the other one has them all");
}

#[test]
fn t5_a_resyncer_lacks_what_died_after_the_snapshot_that_is_on_its_way_too() {
    let (_dir, meta) = two_followers();
    // Lost by one target, and not noticed by its walk; the other has them all.
    chunk(&meta, 1, &[0], Some(4));
    chunk(&meta, 2, &[0], Some(5));
    chunk(&meta, 3, &[0, 1], Some(5));
    chunk(&meta, 4, &[0, 1], None);
    meta.begin_relist(bit(1), "lost", 7).unwrap();
    meta.begin_checkpoint(bit(1), Seq(4), ExportId(8), SegmentNumber(1)).unwrap();
    let (mut lacking, mut after) = (Lacking::default(), ChunkId(0));
    while let Some(last) = meta.count_lacking(bit(1), after, 1, &mut lacking).unwrap() {
        after = last;
    }
    assert_eq!(lacking, Lacking { chunks: 1, bytes: 10, total_bytes: 30 });
    assert_eq!(meta.chunks_to_place(bit(1), ChunkId(0), 9).unwrap().chunks.len(), 1, "that is what it is given");
}

#[test]
fn t4_a_follower_whose_records_name_what_is_nowhere_any_more_is_told_from_one_that_waits() {
    let (_dir, meta) = two_followers();
    // Of the present state: it may turn up, and who reads it must hear of it.
    chunk(&meta, 1, &[], None);
    // The other target has it.
    chunk(&meta, 2, &[0], Some(5));
    assert!(!meta.lacks_what_is_gone(bit(1)).unwrap());
    chunk(&meta, 3, &[0], Some(5));
    meta.write(|tx| tx.misplaced(bit(0), ChunkId(3))).unwrap();
    assert!(meta.lacks_what_is_gone(bit(1)).unwrap());
    meta.begin_resync(bit(1), "lost", 7).unwrap();
    assert!(!meta.lacks_what_is_gone(bit(1)).unwrap(), "a resyncer is given what its snapshot names");
}
