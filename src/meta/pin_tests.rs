use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::chunk::evict::Evictor;
use crate::chunk::file::ChunkFiles;
use crate::chunk::open::OpenFiles;
use crate::chunk::space::{Limits, Space};
use crate::id::{ChunkFileId, ChunkHash, ExportId, SegmentNumber};
use crate::meta::Options;
use crate::meta::target::{Configured, Mode};
use crate::meta::testing::store;
use crate::replication::resync;

const SMALL: Bounds = Bounds { rows: 3, changes: 1 };

fn bit(index: u8) -> TargetBit {
    TargetBit::new(index).unwrap()
}

fn configured() -> [Configured; 2] {
    ["a", "b"].map(|name| Configured { name: name.into(), uri: format!("memory://{name}"), id: None })
}

fn two_targets() -> (tempfile::TempDir, Meta) {
    let (dir, meta) = store();
    meta.register_targets(&configured()).unwrap();
    (dir, meta)
}

/// Commits a chunk of ten bytes, as a seal would.
fn commit(meta: &Meta) -> ChunkId {
    meta.write(|tx| {
        let id: ChunkId = tx.conn().query_row("SELECT coalesce(max(id), 0) + 1 FROM chunk", [], |row| row.get(0))?;
        tx.conn().execute(
            "INSERT INTO chunk (id, hash, length, bytes_referenced, incomplete) VALUES (?1, ?2, 10, 10, 1)",
            params![id, ChunkHash::of(&id.0.to_le_bytes())],
        )?;
        tx.chunks_inserted(1, 10)?;
        Ok(id)
    })
    .unwrap()
}

/// The second target has fallen behind, and lacks five chunks that the first one has; then it begins to follow again.
fn beginning() -> (tempfile::TempDir, Meta) {
    let (dir, meta) = two_targets();
    meta.begin_resync(bit(1), "test", 7).unwrap();
    for _ in 0..5 {
        let chunk = commit(&meta);
        assert_eq!(meta.place(bit(0), &[chunk]).unwrap().complete, [chunk]);
    }
    meta.write(|tx| tx.set_target_mode(bit(1), Mode::Follow, None)).unwrap();
    (dir, meta)
}

fn step(meta: &Meta, of: u8) -> bool {
    meta.write(|tx| tx.pin_some(bit(of), SMALL)).unwrap()
}

fn incomplete(meta: &Meta) -> i64 {
    meta.read(|conn| Ok(conn.query_row("SELECT count(*) FROM chunk WHERE incomplete = 1", [], |row| row.get(0))?))
        .unwrap()
}

fn pending(meta: &Meta) -> Vec<u64> {
    meta.tallies().unwrap().iter().map(|(_, tally)| tally.pending_chunks).collect()
}

#[test]
fn d8_who_begins_to_follow_is_pinned_for_a_few_chunks_at_a_time() {
    let (_dir, meta) = beginning();
    assert_eq!((incomplete(&meta), pending(&meta)), (0, vec![0, 0]));
    assert!(step(&meta, 1));
    assert_eq!((incomplete(&meta), pending(&meta)), (1, vec![0, 1]));
    assert_eq!(meta.targets().unwrap()[1].unpinned_after, Some(ChunkId(1)));
    while step(&meta, 1) {}
    assert_eq!((incomplete(&meta), pending(&meta)), (5, vec![0, 5]));
    assert_eq!(meta.targets().unwrap()[1].unpinned_after, None);
    assert!(!step(&meta, 1), "it was done");
}

#[test]
fn d8_what_a_mount_did_not_come_to_the_end_of_the_next_one_does() {
    let (dir, meta) = beginning();
    step(&meta, 1);
    drop(meta);
    let meta = Meta::open(&dir.path().join("meta.sqlite"), &Options::default()).unwrap();
    assert_eq!(pending(&meta), [0, 1]);
    meta.register_targets(&configured()).unwrap();
    assert_eq!((incomplete(&meta), pending(&meta)), (5, vec![0, 5]));
}

#[test]
fn t4_a_target_that_begins_to_follow_is_given_all_that_it_lacks_and_has_no_checkpoint_without_it() {
    let (_dir, meta) = beginning();
    let walked = meta.chunks_to_place(bit(1), ChunkId(0), 10).unwrap();
    assert_eq!((walked.chunks.len(), walked.end), (5, true), "though none of them is incomplete yet");
    let mut cursor = ChunkId(0);
    assert!(!meta.has_chunks_up_to(bit(1), &mut cursor, ChunkId(5)).unwrap());
    // One comes meanwhile that was not looked at yet, and one that was.
    step(&meta, 1);
    meta.place(bit(1), &[ChunkId(1), ChunkId(4)]).unwrap();
    meta.pin_all().unwrap();
    assert_eq!((incomplete(&meta), pending(&meta)), (3, vec![0, 3]));
}

#[test]
fn t9_nothing_dead_leaves_while_somebody_begins_to_follow() {
    let (_dir, meta) = beginning();
    meta.write(|tx| {
        for name in [b"x", b"y"] {
            crate::meta::testing::file(tx, name);
        }
        tx.conn().execute("UPDATE chunk SET dead_seq = 1, bytes_referenced = 0 WHERE id = 2", [])?;
        tx.conn().execute("INSERT INTO chunk_file VALUES (1, 'chunks/00/1', 10, 1)", [])?;
        tx.conn().execute("INSERT INTO location VALUES (2, 1, 0, 10, 0, 0)", [])?;
        Ok(())
    })
    .unwrap();
    let drop_dead = || meta.write(|tx| tx.drop_dead_locations(&[ChunkId(2)])).unwrap().0.len();
    assert_eq!(meta.begin_deletions(bit(0), Seq(9), 9).unwrap(), []);
    assert_eq!(drop_dead(), 0);
    meta.pin_all().unwrap();
    assert_eq!((meta.begin_deletions(bit(0), Seq(9), 9).unwrap(), drop_dead()), (vec![], 0), "it is needed");
    meta.write(|tx| Ok(tx.conn().execute("UPDATE target SET shipped_seq = 2", [])?)).unwrap();
    meta.release(&[ChunkId(2)]).unwrap();
    assert_eq!((meta.begin_deletions(bit(0), Seq(9), 9).unwrap().len(), drop_dead()), (1, 1));
}

#[test]
fn t6_ids_that_come_again_are_counted_once() {
    let (_dir, meta) = beginning();
    while meta.targets().unwrap()[1].unpinned_after.is_some_and(|after| after < ChunkId(4)) {
        step(&meta, 1);
    }
    // The rows that were looked at last go, as garbage that nobody needs does, and new chunks get their ids.
    meta.write(|tx| {
        tx.conn().execute("UPDATE chunk SET dead_seq = 0, bytes_referenced = 0 WHERE id > 2", [])?;
        tx.release(&[ChunkId(3), ChunkId(4)])?;
        Ok(tx.conn().execute("DELETE FROM chunk WHERE id > 2", [])?)
    })
    .unwrap();
    assert_eq!(commit(&meta), ChunkId(3));
    meta.pin_all().unwrap();
    assert_eq!((incomplete(&meta), pending(&meta)), (3, vec![1, 3]));
}

/// A store of `chunks` chunks of 16 bytes that the first target has, half of them dead, all in one chunk file.
fn large(chunks: i64) -> (tempfile::TempDir, Meta) {
    let (dir, meta) = two_targets();
    meta.begin_resync(bit(1), "test", 7).unwrap();
    meta.write(|tx| {
        for name in 0..9_u8 {
            crate::meta::testing::file(tx, &[b'a' + name]);
        }
        tx.conn().execute("INSERT INTO chunk_file VALUES (1, 'chunks/00/1', 10, 1)", [])?;
        let mut insert = tx.conn().prepare(
            "INSERT INTO chunk (id, hash, length, bytes_referenced, dead_seq, placed, incomplete) \
             VALUES (?1, ?2, 16, ?3, ?4, 1, 0)",
        )?;
        let mut local = tx.conn().prepare("INSERT INTO location VALUES (?1, 1, ?1 * 16, 16, ?1 * 16, 0)")?;
        for id in 1..=chunks {
            let dead = (id % 2 == 0).then_some(1 + id % 5);
            let live = if dead.is_some() { 0 } else { 16 };
            insert.execute(params![id, ChunkHash::of(&id.to_le_bytes()), live, dead])?;
            local.execute([id])?;
        }
        tx.shift_placed(bit(0), chunks, 16 * chunks)
    })
    .unwrap();
    meta.checkpoint_wal().unwrap();
    (dir, meta)
}

/// Everything in the life of targets that concerns all chunks. Returns the steps of the largest transaction of each part, and
/// how long they took.
fn everything_that_concerns_all(
    dir: &std::path::Path,
    meta: Meta,
    chunks: i64,
) -> Vec<(&'static str, u64, Vec<Duration>)> {
    let meta = Arc::new(meta);
    let done = std::cell::RefCell::new(Vec::new());
    let part = |name: &'static str, body: &dyn Fn()| {
        meta.work.measure();
        body();
        let (steps, took) = meta.work.most();
        done.borrow_mut().push((name, steps, took));
    };
    let walk = |step: &dyn Fn(ChunkId) -> Option<ChunkId>| {
        let mut after = ChunkId(0);
        while let Some(last) = step(after) {
            after = last;
        }
    };
    let hashes: Vec<(ChunkHash, u64)> = (1..=chunks).map(|id| (ChunkHash::of(&id.to_le_bytes()), 16)).collect();

    meta.begin_checkpoint(bit(1), Seq(9), ExportId(8), SegmentNumber(1)).unwrap();
    part("a resyncer follows", &|| {
        assert!(meta.complete_checkpoint(bit(1), Seq(9), ExportId(8), 7, Default::default()).unwrap());
    });
    assert_eq!(meta.tallies().unwrap()[1].1.pending_chunks, ((chunks + 1) / 2) as u64);
    part("a follower is given up", &|| {
        resync::begin(&meta, bit(1), "b", "test").unwrap();
    });
    assert_eq!(incomplete(&meta), 0);
    part("a listing is claimed", &|| {
        assert_eq!(meta.claim(bit(1), &hashes).unwrap().chunks, chunks as u64);
    });
    assert_eq!(meta.tallies().unwrap()[1].1.placed_chunks, chunks as u64);
    part("claims are taken back", &|| meta.unclaim(bit(1)).unwrap());
    assert_eq!(meta.tallies().unwrap()[1].1.placed_chunks, 0);
    part("stock is taken", &|| {
        meta.begin_relist(bit(0), "lost", 7).unwrap();
        walk(&|after| meta.forget_placed(bit(0), after, 256).unwrap());
        assert_eq!(meta.found(bit(0), &hashes).unwrap(), chunks as u64);
        meta.end_relist(bit(0)).unwrap();
    });
    assert_eq!(meta.tallies().unwrap()[0].1.placed_chunks, chunks as u64);
    part("a target is removed", &|| {
        meta.remove_target(bit(1)).unwrap();
        resync::settle(&meta).and_then(|()| resync::sweep_retired(&meta)).unwrap();
    });
    part("dead content leaves the machine, and a large file", &|| {
        let open_files = Arc::new(OpenFiles::new(ChunkFiles::new(dir).unwrap()));
        let space = Arc::new(Space::new(dir, Limits { used_max: 1 << 40, free_min: 0 }, 0));
        let evictor = Evictor::new(meta.clone(), open_files, space);
        for _ in 0..=chunks / 20_000 {
            evictor.round(&std::sync::atomic::AtomicBool::new(false), || false).unwrap();
        }
        assert!(meta.evict(ChunkFileId(1)).unwrap().is_some());
    });
    let rows: i64 =
        meta.read(|conn| Ok(conn.query_row("SELECT count(*) FROM location", [], |row| row.get(0))?)).unwrap();
    assert_eq!(rows, 0);
    done.into_inner()
}

#[test]
fn d8_nothing_in_the_life_of_targets_looks_at_all_chunks_in_one_transaction() {
    const CHUNKS: i64 = 20_000;
    let (dir, meta) = large(CHUNKS);
    for (part, steps, _) in everything_that_concerns_all(dir.path(), meta, CHUNKS) {
        // A look at each of these chunks, and at nothing else, is some 200,000.
        assert!(steps > 0 && steps < 80_000, "{part}: {steps} steps in one transaction");
    }
}

/// `TANDEMFS_CHUNKS=1000000 cargo test --lib d8_how_long -- --ignored --nocapture`
#[test]
#[ignore = "takes minutes, and reports"]
fn d8_how_long_transactions_hold_the_writer() {
    let chunks = std::env::var("TANDEMFS_CHUNKS").map_or(300_000, |text| text.parse().unwrap());
    let (dir, meta) = large(chunks);
    let mut parts = Vec::new();
    // For comparison, what looks at all of them in one transaction.
    meta.work.measure();
    meta.write(|tx| tx.recount_tally(bit(1))).unwrap();
    let (steps, took) = meta.work.most();
    parts.push(("(all in one)", steps, took));
    parts.extend(everything_that_concerns_all(dir.path(), meta, chunks));
    eprintln!("{chunks} chunks | transactions | median, ms | 99 % below | longest | steps of the largest");
    for (part, steps, took) in parts {
        let at = |hundredth: usize| took[(took.len() - 1) * hundredth / 100].as_secs_f64() * 1e3;
        eprintln!("{part} | {} | {:.2} | {:.2} | {:.2} | {steps}", took.len(), at(50), at(99), at(100));
    }
}

#[derive(Debug, Clone)]
enum Op {
    Commit,
    Place(u8, u64),
    Kill(u64),
    Revive(u64),
    Release(u64),
    Misplace(u8, u64),
    Ship(u8),
    /// Begins to pin, if it does not, or stops.
    Mode(u8, u8),
    Step(u8),
    Settle,
    /// The newest row goes, if nobody needs it.
    DropNewest,
}

fn op() -> impl Strategy<Value = Op> {
    let (target, chunk) = (0..3u8, 1..8u64);
    prop_oneof![
        3 => Just(Op::Commit),
        3 => (target.clone(), chunk.clone()).prop_map(|(t, c)| Op::Place(t, c)),
        2 => chunk.clone().prop_map(Op::Kill),
        1 => chunk.clone().prop_map(Op::Revive),
        2 => chunk.clone().prop_map(Op::Release),
        1 => (target.clone(), chunk).prop_map(|(t, c)| Op::Misplace(t, c)),
        1 => target.clone().prop_map(Op::Ship),
        3 => (target.clone(), 0..4u8).prop_map(|(t, m)| Op::Mode(t, m)),
        4 => target.prop_map(Op::Step),
        1 => Just(Op::Settle),
        1 => Just(Op::DropNewest),
    ]
}

/// What counting finds that a tally claims to know.
fn counted(meta: &Meta, row: &TargetRow) -> (i64, i64) {
    let upto = row.unpinned_after.map_or(i64::MAX, |after| after.0 as i64);
    let sql = "SELECT coalesce(sum(incomplete = 1 AND placed & ?1 = 0 AND id <= ?2), 0), coalesce(sum(placed & ?1 <> 0), 0) \
               FROM chunk";
    meta.read(|conn| {
        Ok(conn.query_row(sql, params![row.bit.mask() as i64, upto], |row| Ok((row.get(0)?, row.get(1)?)))?)
    })
    .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The oracle counts after each operation; targets begin to be pinned for, and stop, at any moment.
    #[test]
    fn t6_sums_are_exact_and_nothing_is_missed_while_targets_begin_to_follow(ops in prop::collection::vec(op(), 1..60)) {
        let (_dir, meta) = store();
        let three = ["a", "b", "c"].map(|name| Configured { name: name.into(), uri: format!("memory://{name}"), id: None });
        meta.register_targets(&three).unwrap();
        // Places in history are taken one by one, so that a chunk dies at a place that no target has shipped.
        let mut head = 0;
        let exists = |c: u64| meta.chunk_sources(ChunkId(c)).unwrap().is_some();
        let dead = |c: u64| -> bool {
            let sql = "SELECT dead_seq IS NOT NULL FROM chunk WHERE id = ?1";
            meta.read(|conn| Ok(conn.query_row(sql, [ChunkId(c)], |row| row.get(0))?)).unwrap()
        };
        for op in ops {
            match op {
                Op::Commit => { commit(&meta); }
                Op::Place(t, c) => { meta.place(bit(t), &[ChunkId(c)]).unwrap(); }
                Op::Kill(c) => {
                    if exists(c) && !dead(c) {
                        head += 1;
                        meta.write(|tx| Ok(tx.conn().execute("UPDATE chunk SET dead_seq = ?2 WHERE id = ?1", params![ChunkId(c), Seq(head)])?)).unwrap();
                    }
                }
                Op::Revive(c) => {
                    if exists(c) && dead(c) {
                        meta.write(|tx| {
                            tx.conn().execute("UPDATE chunk SET dead_seq = NULL WHERE id = ?1", [ChunkId(c)])?;
                            tx.chunk_revived(ChunkId(c))
                        }).unwrap();
                    }
                }
                Op::Release(c) => { meta.release(&[ChunkId(c)]).unwrap(); }
                Op::Misplace(t, c) => meta.write(|tx| tx.misplaced(bit(t), ChunkId(c))).unwrap(),
                Op::Ship(t) => {
                    meta.write(|tx| Ok(tx.conn().execute("UPDATE target SET shipped_seq = ?2 WHERE bit = ?1", params![bit(t), Seq(head)])?)).unwrap();
                }
                Op::Mode(t, m) => {
                    let mode = [Mode::Follow, Mode::Resync, Mode::Blocked, Mode::Resync][m as usize];
                    // Without the steps, as if the process died here.
                    meta.write(|tx| tx.set_target_mode(bit(t), mode, None)).unwrap();
                }
                Op::Step(t) => { step(&meta, t); }
                Op::Settle => resync::settle(&meta).unwrap(),
                Op::DropNewest => {
                    let sql = "DELETE FROM chunk WHERE id = (SELECT max(id) FROM chunk) AND incomplete = 0 AND placed = 0 AND dead_seq IS NOT NULL";
                    meta.write(|tx| Ok(tx.conn().execute(sql, [])?)).unwrap();
                }
            }
            let rows = meta.targets().unwrap();
            let tallies = meta.tallies().unwrap();
            for row in &rows {
                let (_, tally) = tallies.iter().find(|(of, _)| *of == row.bit).unwrap();
                let (pending, placed) = counted(&meta, row);
                prop_assert_eq!(tally.placed_chunks as i64, placed);
                if row.mode.pins() {
                    prop_assert_eq!(tally.pending_chunks as i64, pending, "{:?}", row);
                    let lacking: Vec<ChunkId> = meta.read(|conn| {
                        let mut statement = conn.prepare("SELECT id FROM chunk WHERE placed & ?1 = 0 AND dead_seq IS NULL")?;
                        Ok(statement.query_map([row.bit.mask() as i64], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
                    }).unwrap();
                    let walked = meta.chunks_to_place(row.bit, ChunkId(0), 100).unwrap().chunks;
                    prop_assert!(lacking.iter().all(|id| walked.iter().any(|chunk| chunk.id == *id)), "{:?} {:?}", lacking, walked);
                }
            }
        }
        meta.pin_all().unwrap();
        for row in meta.targets().unwrap().iter().filter(|row| row.mode.pins()) {
            prop_assert_eq!(row.unpinned_after, None);
            let base = meta.read(|conn| target::base(conn, row)).unwrap();
            let missed: i64 = meta.read(|conn| Ok(conn.query_row(
                "SELECT count(*) FROM chunk WHERE incomplete = 0 AND placed & ?1 = 0 AND (dead_seq IS NULL OR dead_seq > ?2)",
                params![row.bit.mask() as i64, base],
                |row| row.get(0),
            )?)).unwrap();
            prop_assert_eq!(missed, 0, "what it needs and lacks is pinned");
        }
    }
}
