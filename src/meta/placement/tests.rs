//! Every transaction is followed by [`Store::check`], which counts what the tallies claim to know.

use proptest::prelude::*;

use super::*;
use crate::id::Seq;
use crate::meta::target::Configured;
use crate::meta::testing;

struct Store {
    _dir: tempfile::TempDir,
    meta: Meta,
}

impl Store {
    fn new(targets: usize) -> Store {
        let (dir, meta) = testing::store();
        let configured: Vec<_> =
            (0..targets).map(|i| Configured { name: format!("t{i}"), uri: format!("fs:///{i}"), id: None }).collect();
        meta.register_targets(&configured).unwrap();
        Store { _dir: dir, meta }
    }

    /// Commits a chunk of `length` bytes as a seal would.
    fn commit(&self, length: u64) -> ChunkId {
        self.meta
            .write(|tx| {
                let id: i64 = tx.conn().query_row("SELECT coalesce(max(id), 0) + 1 FROM chunk", [], |row| row.get(0))?;
                tx.conn().execute(
                    "INSERT INTO chunk (id, hash, length, dead_seq, bytes_referenced, incomplete) VALUES (?1, ?2, ?3, NULL, ?3, 1)",
                    params![id, ChunkHash::of(&id.to_le_bytes()), length as i64],
                )?;
                tx.chunks_inserted(1, length)?;
                Ok(ChunkId(id as u64))
            })
            .unwrap()
    }

    fn kill(&self, chunk: ChunkId, dead_seq: Seq) {
        self.meta
            .write(|tx| {
                Ok(tx.conn().execute("UPDATE chunk SET dead_seq = ?2 WHERE id = ?1", params![chunk, dead_seq])?)
            })
            .unwrap();
    }

    fn revive(&self, chunk: ChunkId) {
        self.meta
            .write(|tx| {
                tx.conn().execute("UPDATE chunk SET dead_seq = NULL WHERE id = ?1", [chunk])?;
                tx.chunk_revived(chunk)
            })
            .unwrap();
    }

    fn ship(&self, bit: TargetBit, seq: Seq) {
        self.meta
            .write(|tx| {
                Ok(tx.conn().execute("UPDATE target SET shipped_seq = ?2 WHERE bit = ?1", params![bit, seq])?)
            })
            .unwrap();
    }

    fn todo(&self, bit: TargetBit) -> Vec<u64> {
        self.page(bit, ChunkId(0)).chunks.iter().map(|chunk| chunk.id.0).collect()
    }

    fn page(&self, bit: TargetBit, after: ChunkId) -> TodoPage {
        self.meta.chunks_to_place(bit, after, 1000).unwrap()
    }

    fn tally(&self, bit: TargetBit) -> Tally {
        self.meta.tallies().unwrap().into_iter().find(|(b, _)| *b == bit).unwrap().1
    }

    /// The named invariant of the module's head: tallies equal what counting finds.
    fn check(&self) {
        for (bit, tally) in self.meta.tallies().unwrap() {
            let counted = self
                .meta
                .write(|tx| {
                    tx.recount_tally(bit)?;
                    Ok(())
                })
                .map(|()| self.tally(bit))
                .unwrap();
            assert_eq!(tally, counted, "target {}", bit.index());
        }
    }
}

fn bit(index: u8) -> TargetBit {
    TargetBit::new(index).unwrap()
}

#[test]
fn a_target_is_given_in_order_what_it_lacks_and_only_that() {
    let store = Store::new(2);
    let (a, b) = (store.commit(10), store.commit(20));
    assert_eq!(store.todo(bit(0)), [a.0, b.0]);
    store.meta.place(bit(0), &[a]).unwrap();
    assert_eq!(store.todo(bit(0)), [b.0]);
    assert_eq!(store.todo(bit(1)), [a.0, b.0]);
    assert_eq!(store.page(bit(1), a).chunks.len(), 1);
    assert_eq!(store.tally(bit(0)), Tally { pending_chunks: 1, pending_bytes: 20, placed_chunks: 1, placed_bytes: 10 });
    store.check();
}

#[test]
fn a_chunk_is_complete_with_the_last_pinning_target_and_not_before() {
    let store = Store::new(2);
    let chunk = store.commit(10);
    assert_eq!(store.meta.place(bit(1), &[chunk]).unwrap(), Placed { chunks: 1, bytes: 10, complete: vec![] });
    assert_eq!(store.meta.place(bit(1), &[chunk]).unwrap(), Placed::default());
    assert_eq!(store.meta.place(bit(0), &[chunk]).unwrap().complete, [chunk]);
    assert_eq!(store.page(bit(0), ChunkId(0)), TodoPage { end: true, ..TodoPage::default() });
    store.check();
}

#[test]
fn a_blocked_target_still_pins_and_a_resyncing_one_does_not() {
    let store = Store::new(2);
    let first = store.commit(10);
    store.meta.set_target_mode(bit(1), Mode::Blocked, Some("disk not mounted")).unwrap();
    assert_eq!(store.meta.place(bit(0), &[first]).unwrap().complete, []);
    store.meta.set_target_mode(bit(1), Mode::Resync, None).unwrap();
    let second = store.commit(10);
    assert_eq!(store.meta.place(bit(0), &[second]).unwrap().complete, [second]);
    // It walks the whole table: complete or not, it lacks both.
    assert_eq!(store.todo(bit(1)), [first.0, second.0]);
    store.meta.set_target_mode(bit(1), Mode::Follow, None).unwrap();
    assert_eq!(store.tally(bit(1)).pending_chunks, 2);
    assert_eq!(store.todo(bit(1)), [first.0, second.0]);
    store.check();
}

#[test]
fn a_dead_chunk_is_needed_until_the_target_has_shipped_past_its_death() {
    let store = Store::new(1);
    let chunk = store.commit(10);
    store.kill(chunk, Seq(5));
    store.ship(bit(0), Seq(4));
    assert_eq!(store.todo(bit(0)), [chunk.0]);
    assert_eq!(store.meta.release(&[chunk]).unwrap(), 0);
    store.ship(bit(0), Seq(5));
    let page = store.page(bit(0), ChunkId(0));
    assert_eq!((page.chunks.len(), page.unneeded.as_slice()), (0, [chunk].as_slice()));
    assert_eq!(store.meta.release(&page.unneeded).unwrap(), 1);
    assert_eq!(store.tally(bit(0)), Tally::default());
    store.check();
}

#[test]
fn a_pending_checkpoint_keeps_what_its_state_names() {
    let store = Store::new(1);
    let chunk = store.commit(10);
    store.kill(chunk, Seq(5));
    store.ship(bit(0), Seq(9));
    let sql =
        "INSERT INTO checkpoint (bit, seq, export, replay_from, complete, bytes) VALUES (0, 4, '00000001', 1, 0, 0)";
    store.meta.write(|tx| Ok(tx.conn().execute(sql, [])?)).unwrap();
    assert_eq!(store.todo(bit(0)), [chunk.0]);
}

#[test]
fn a_revived_chunk_is_needed_again_by_whoever_lacks_it() {
    let store = Store::new(2);
    let chunk = store.commit(10);
    store.meta.place(bit(0), &[chunk]).unwrap();
    store.kill(chunk, Seq(1));
    store.ship(bit(0), Seq(1));
    store.ship(bit(1), Seq(1));
    assert_eq!(store.meta.release(&[chunk]).unwrap(), 1);
    let added = *store.meta.watch_chunks().borrow();
    store.revive(chunk);
    assert_eq!((store.todo(bit(0)), store.todo(bit(1))), (vec![], vec![chunk.0]));
    assert!(*store.meta.watch_chunks().borrow() > added);
    store.check();
}

#[test]
fn a_page_is_bounded_and_the_walk_goes_on_after_it() {
    let store = Store::new(1);
    for _ in 0..5 {
        store.commit(1);
    }
    let first = store.meta.chunks_to_place(bit(0), ChunkId(0), 2).unwrap();
    assert_eq!((first.chunks.len(), first.cursor, first.end), (2, ChunkId(2), false));
    let second = store.meta.chunks_to_place(bit(0), first.cursor, 10).unwrap();
    assert_eq!((second.chunks.len(), second.cursor, second.end), (3, ChunkId(5), true));
}

#[test]
fn locations_name_file_and_range_in_order_of_the_chunk() {
    let store = Store::new(1);
    let chunk = store.commit(30);
    store
        .meta
        .write(|tx| {
            tx.conn().execute_batch(
                "INSERT INTO chunk_file VALUES (7, 'chunks/aa/x', 4096, 3), (8, 'chunks/bb/y', 4096, 4);
                 INSERT INTO location VALUES (1, 8, 10, 20, 0, 99), (1, 7, 0, 10, 4096, 4294967295);",
            )?;
            Ok(())
        })
        .unwrap();
    let sources = store.meta.chunk_sources(chunk).unwrap().unwrap();
    assert_eq!(sources.pieces, store.meta.locations(chunk).unwrap());
    let [first, second] = sources.pieces.as_slice() else { panic!("{sources:?}") };
    assert_eq!(
        (first.chunk_offset, first.length, first.file_offset, first.crc32c, first.mount),
        (0, 10, 4096, u32::MAX, 3)
    );
    assert_eq!((second.name.as_str(), second.file), ("chunks/bb/y", ChunkFileId(8)));
    assert_eq!(store.meta.chunk_sources(ChunkId(2)).unwrap(), None);
}

#[derive(Debug, Clone)]
enum Op {
    Commit(u64),
    Place(u8, u64),
    Kill(u64, u64),
    Revive(u64),
    Release(u64),
    Ship(u8, u64),
    SetMode(u8, u8),
}

fn op() -> impl Strategy<Value = Op> {
    let (target, chunk, seq) = (0..3u8, 1..8u64, 0..6u64);
    prop_oneof![
        (1..100u64).prop_map(Op::Commit),
        (target.clone(), chunk.clone()).prop_map(|(t, c)| Op::Place(t, c)),
        (chunk.clone(), seq.clone()).prop_map(|(c, s)| Op::Kill(c, s)),
        chunk.clone().prop_map(Op::Revive),
        chunk.prop_map(Op::Release),
        (target.clone(), seq).prop_map(|(t, s)| Op::Ship(t, s)),
        (target, 0..4u8).prop_map(|(t, m)| Op::SetMode(t, m)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_a_pinning_target_needs_and_lacks_is_incomplete(ops in prop::collection::vec(op(), 1..40)) {
        let store = Store::new(3);
        let mut chunks = 0;
        for op in ops {
            match op {
                Op::Commit(length) => { store.commit(length); chunks += 1; }
                Op::Place(t, c) => { store.meta.place(bit(t), &[ChunkId(c)]).unwrap(); }
                Op::Kill(c, s) => store.kill(ChunkId(c), Seq(s)),
                Op::Revive(c) if c <= chunks => store.revive(ChunkId(c)),
                Op::Revive(_) => {}
                Op::Release(c) => { store.meta.release(&[ChunkId(c)]).unwrap(); }
                Op::Ship(t, s) => {
                    // A low water only grows (T2).
                    if store.meta.targets().unwrap()[t as usize].shipped_seq <= Seq(s) { store.ship(bit(t), Seq(s)); }
                }
                Op::SetMode(t, m) => {
                    let mode = [Mode::Follow, Mode::Resync, Mode::Blocked, Mode::Fenced][m as usize];
                    store.meta.set_target_mode(bit(t), mode, None).unwrap();
                }
            }
            let pinning: Vec<_> = store.meta.targets().unwrap().into_iter().filter(|row| row.mode.pins()).collect();
            // The oracle: every referenced chunk that a pinning target lacks is found by its walk.
            for target in &pinning {
                let lacking: Vec<u64> = store.meta.read(|conn| {
                    let mut statement = conn.prepare("SELECT id FROM chunk WHERE placed & ?1 = 0 AND dead_seq IS NULL ORDER BY id")?;
                    let ids = statement.query_map([target.bit.mask() as i64], |row| row.get::<_, i64>(0))?;
                    ids.map(|id| Ok(id? as u64)).collect()
                }).unwrap();
                let walked = store.todo(target.bit);
                prop_assert!(lacking.iter().all(|id| walked.contains(id)), "{lacking:?} not all in {walked:?}");
            }
            // The sum over all chunks is exact, too.
            let counted = store.meta.read(|conn| Ok(conn.query_row(
                "SELECT coalesce(sum(length), 0) FROM chunk WHERE incomplete = 1",
                [],
                |row| row.get::<_, i64>(0),
            )?)).unwrap();
            prop_assert_eq!(store.meta.chunk_sums().unwrap().incomplete_bytes, counted as u64);
            // Tallies of pinning targets are exact.
            for target in &pinning {
                let before = store.tally(target.bit);
                store.meta.write(|tx| tx.recount_tally(target.bit)).unwrap();
                prop_assert_eq!(before, store.tally(target.bit));
            }
        }
    }
}

#[test]
fn d8_copies_that_turn_out_not_to_be_there_are_counted_one_by_one() {
    let store = Store::new(2);
    let (a, b) = (store.commit(10), store.commit(20));
    store.meta.place(bit(0), &[a, b]).unwrap();
    store.meta.place(bit(1), &[a]).unwrap();
    let misplaced = |bit, chunks: &[ChunkId]| store.meta.write(|tx| tx.misplaced_all(bit, chunks)).unwrap();
    // One that every target had, and one that the other still waits for.
    misplaced(bit(0), &[a, b]);
    assert_eq!(store.tally(bit(0)), Tally { pending_chunks: 2, pending_bytes: 30, placed_chunks: 0, placed_bytes: 0 });
    assert_eq!(store.tally(bit(1)), Tally { pending_chunks: 1, pending_bytes: 20, placed_chunks: 1, placed_bytes: 10 });
    misplaced(bit(0), &[a, b]);
    assert_eq!(store.todo(bit(0)), [a.0, b.0]);
    store.check();
}

#[test]
fn s5_a_row_of_another_chunk_is_no_source() {
    let store = Store::new(1);
    let (id, length) = (store.commit(10), 10);
    let todo = |hash| ChunkTodo { id, hash, length };
    let chunks = [todo(ChunkHash::of(&id.0.to_le_bytes())), todo(ChunkHash::of(b"another"))];
    let sources = store.meta.put_sources(TargetBit::new(0).unwrap(), &chunks).unwrap();
    assert!(matches!(sources[0], PutSource::From(_)), "{sources:?}");
    assert_eq!(sources[1], PutSource::Gone);
}
