use proptest::prelude::*;

use super::*;
use crate::format::record::Record;
use crate::id::{Generation, InodeId, SessionId, TargetBit};
use crate::meta::commit::{Batch, SealedChunk, SealedExtent, SealedPiece, SealedSession};
use crate::meta::history::empty_store;
use crate::meta::share::Share;
use crate::meta::slot::SlotRequest;
use crate::meta::target::{Configured, Mode};
use crate::meta::testing::{file, slot_request, store};

const LENGTH: u64 = 48;
const SIZE: u64 = 64;

fn chunk(number: u8) -> ChunkHash {
    ChunkHash::of(&[b'c', number])
}

fn id_of(meta: &Meta, hash: ChunkHash) -> Option<ChunkId> {
    meta.read(|conn| Ok(conn.query_row("SELECT id FROM chunk WHERE hash = ?1", [hash], |row| row.get(0)).optional()?))
        .unwrap()
}

/// Chunk, offset in the file, length, offset in the chunk.
type Run = (u8, u64, u64, u64);

/// A batch of one session with these runs.
fn batch(session: u64, ino: InodeId, whole: bool, runs: &[Run]) -> Batch {
    let mut batch = Batch { files: vec![(format!("chunks/00/{session}"), 4096)], ..Batch::default() };
    let mut extents = Vec::new();
    for &(number, offset, length, chunk_offset) in runs {
        let hash = chunk(number);
        let index = batch.chunks.iter().position(|known| known.hash == hash).unwrap_or_else(|| {
            let piece = SealedPiece { chunk_offset: 0, length: LENGTH, file: 0, file_offset: 0, crc32c: 0 };
            batch.chunks.push(SealedChunk { hash, length: LENGTH, pieces: vec![piece] });
            batch.chunks.len() - 1
        });
        extents.push(SealedExtent { offset, length, chunk: index, chunk_offset });
    }
    let session = SessionId(session);
    batch.sessions.push(SealedSession { session, ino, whole, base_limit: SIZE, extents, zero: Vec::new() });
    batch
}

fn reserve(meta: &Meta, ino: InodeId, session: u64, whole: bool) -> Seq {
    let request = SlotRequest { whole, base_limit: SIZE, ..slot_request(ino, session, SIZE) };
    meta.write(|tx| tx.reserve_slot(&request)).unwrap().unwrap()
}

fn write(meta: &Meta, ino: InodeId, session: u64, runs: &[Run]) {
    reserve(meta, ino, session, true);
    meta.write(|tx| tx.commit_content(&batch(session, ino, true, runs))).unwrap();
}

fn into(number: u8) -> NewChunk {
    NewChunk { hash: chunk(number), length: LENGTH, file: format!("fetched/00/{number}"), crc32c: 0 }
}

fn moves(list: &[(u64, u64, u64)]) -> Vec<Extent> {
    list.iter().map(|&(offset, length, chunk_offset)| Extent { offset, length, chunk: 0, chunk_offset }).collect()
}

fn repack(meta: &Meta, from: u8, to: u8, list: &[(u64, u64, u64)]) -> u64 {
    meta.write(|tx| tx.repack(chunk(from), &moves(list), &into(to))).unwrap()
}

/// (inode, offset, length, chunk, offset in it) of every file.
fn contents(meta: &Meta) -> Vec<(InodeId, u64, u64, ChunkHash, u64)> {
    meta.read(|conn| {
        let mut rows = conn.prepare(
            "SELECT i.ino, e.offset, e.length, c.hash, e.chunk_offset FROM inode i JOIN extent e \
             ON e.manifest = i.manifest JOIN chunk c ON c.id = e.chunk ORDER BY i.ino, e.offset",
        )?;
        let number = |row: &rusqlite::Row<'_>, column| row.get::<_, i64>(column).map(|value| value as u64);
        let rows = rows
            .query_map([], |row| Ok((row.get(0)?, number(row, 1)?, number(row, 2)?, row.get(3)?, number(row, 4)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    })
    .unwrap()
}

fn history(meta: &Meta) -> Vec<Record> {
    meta.read(|conn| {
        let mut rows = conn.prepare("SELECT seq, body FROM journal ORDER BY seq")?;
        let rows: Vec<(Seq, Vec<u8>)> =
            rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<rusqlite::Result<_>>()?;
        rows.into_iter().map(|(seq, body)| journal::decode(seq, &body)).collect()
    })
    .unwrap()
}

/// What a target makes of the journal is what is here, and all that is counted is right.
fn check(meta: &Meta) {
    let dir = tempfile::tempdir().unwrap();
    let replayed = empty_store(dir.path());
    replayed.write(|tx| history(meta).iter().try_for_each(|record| tx.replay(record))).unwrap();
    assert_eq!(contents(meta), contents(&replayed), "replay leads elsewhere");
    meta.write(|tx| {
        while tx.release_given_up(100)? {}
        Ok(())
    })
    .unwrap();
    let counted = |sql: &str| -> i64 { meta.read(|conn| Ok(conn.query_row(sql, [], |row| row.get(0))?)).unwrap() };
    assert_eq!(
        counted(
            "SELECT count(*) FROM chunk c WHERE bytes_referenced <> \
             (SELECT coalesce(sum(length), 0) FROM extent e WHERE e.chunk = c.id)"
        ),
        0
    );
    assert_eq!(counted("SELECT count(*) FROM chunk WHERE (dead_seq IS NULL) <> (bytes_referenced > 0)"), 0);
    let sums = meta.live_sums().unwrap();
    let alive = counted("SELECT coalesce(sum(length), 0) FROM chunk WHERE bytes_referenced > 0");
    let live = counted("SELECT coalesce(sum(min(bytes_referenced, length)), 0) FROM chunk");
    assert_eq!((sums.alive_bytes, sums.live_bytes), (alive as u64, live as u64));
    let sparse = counted(
        "SELECT count(*) FROM chunk WHERE dead_seq IS NULL AND bytes_referenced * 2 < length AND incomplete = 0",
    );
    assert_eq!(meta.sparse_chunks(ChunkId(0), 1000).unwrap().len() as i64, sparse);
}

#[test]
fn o5_a_repack_changes_where_bytes_lie_and_nothing_that_a_reader_sees() {
    let (_dir, meta) = store();
    let (a, b) = meta.write(|tx| Ok((file(tx, b"a"), file(tx, b"b")))).unwrap();
    write(&meta, a, 1, &[(1, 0, 20, 4), (1, 40, 8, 30)]);
    write(&meta, b, 2, &[(1, 10, 8, 0)]);
    let before = (meta.inode(a).unwrap(), meta.inode(b).unwrap());
    // Bytes 0…24 and 30…38 of the chunk are alive.
    assert_eq!(repack(&meta, 1, 9, &[(0, 24, 0), (30, 8, 24)]), 36);
    let new = chunk(9);
    assert_eq!(contents(&meta), [(a, 0, 20, new, 4), (a, 40, 8, new, 24), (b, 10, 8, new, 0)]);
    assert_eq!((meta.inode(a).unwrap(), meta.inode(b).unwrap()), before, "size, times, generation, place");
    assert_eq!(meta.path_of(a).unwrap().unwrap(), b"a");
    check(&meta);
    let dead: Option<Seq> = meta
        .read(|conn| Ok(conn.query_row("SELECT dead_seq FROM chunk WHERE hash = ?1", [chunk(1)], |row| row.get(0))?))
        .unwrap();
    assert_eq!(dead, Some(meta.head().next()), "T5");
}

#[test]
fn o5_what_was_written_since_the_bytes_were_read_is_not_touched() {
    let (_dir, meta) = store();
    let ino = meta.write(|tx| Ok(file(tx, b"a"))).unwrap();
    write(&meta, ino, 1, &[(1, 0, 40, 0)]);
    // The plan was made here; meanwhile a part is overwritten.
    reserve(&meta, ino, 2, false);
    meta.write(|tx| tx.commit_content(&batch(2, ino, false, &[(2, 10, 10, 3)]))).unwrap();
    assert_eq!(repack(&meta, 1, 9, &[(0, 40, 0)]), 30);
    let (new, newer) = (chunk(9), chunk(2));
    assert_eq!(contents(&meta), [(ino, 0, 10, new, 0), (ino, 10, 10, newer, 3), (ino, 20, 20, new, 20)]);
    check(&meta);
    // All of it is overwritten: nothing to move, no record, no row.
    write(&meta, ino, 3, &[(3, 0, 5, 0)]);
    meta.write(|tx| tx.release_given_up(100)).unwrap();
    let head = meta.head();
    assert_eq!(repack(&meta, 9, 10, &[(0, 40, 0)]), 0);
    assert_eq!((meta.head(), id_of(&meta, chunk(10))), (head, None));
}

#[test]
fn o5_content_that_fills_a_slot_older_than_a_repack_follows_it() {
    let (_dir, meta) = store();
    let (a, b) = meta.write(|tx| Ok((file(tx, b"a"), file(tx, b"b")))).unwrap();
    write(&meta, a, 1, &[(1, 0, 10, 0)]);
    let slot = reserve(&meta, b, 2, true);
    repack(&meta, 1, 8, &[(0, 10, 20)]);
    repack(&meta, 8, 9, &[(20, 10, 1)]);
    // Equal bytes, equal name: it names the emptied chunk at its old place.
    meta.write(|tx| tx.commit_content(&batch(2, b, true, &[(1, 5, 30, 0)]))).unwrap();
    assert!(slot < meta.head());
    assert_eq!(contents(&meta)[1..], [(b, 5, 10, chunk(9), 1), (b, 15, 20, chunk(1), 10)]);
    check(&meta);
}

#[test]
fn regression_only_what_a_late_content_brings_follows_older_repacks() {
    let (_dir, meta) = store();
    let (a, b) = meta.write(|tx| Ok((file(tx, b"a"), file(tx, b"b")))).unwrap();
    write(&meta, a, 1, &[(7, 0, 10, 0)]);
    write(&meta, b, 2, &[(1, 0, 10, 0)]);
    reserve(&meta, a, 3, false);
    repack(&meta, 1, 8, &[(0, 10, 20)]);
    // What lay elsewhere comes to the emptied range, in the same file, after it was emptied: it stays there.
    repack(&meta, 7, 1, &[(0, 10, 0)]);
    meta.write(|tx| tx.commit_content(&batch(3, a, false, &[(1, 30, 5, 2)]))).unwrap();
    assert_eq!(contents(&meta)[..2], [(a, 0, 10, chunk(1), 0), (a, 30, 5, chunk(8), 22)]);
    check(&meta);
}

#[test]
fn o5_repacks_are_kept_while_an_older_slot_is_open_or_a_follower_lacks_them() {
    let (_dir, meta) = store();
    let bit = TargetBit::new(0).unwrap();
    meta.register_targets(&[Configured { name: "a".into(), uri: "fs:///a".into(), id: None }]).unwrap();
    let (a, b) = meta.write(|tx| Ok((file(tx, b"a"), file(tx, b"b")))).unwrap();
    write(&meta, a, 1, &[(1, 0, 10, 0)]);
    reserve(&meta, b, 2, true);
    repack(&meta, 1, 8, &[(0, 10, 20)]);
    let kept = || -> i64 {
        assert!(!meta.forget_repacks().unwrap());
        meta.read(|conn| Ok(conn.query_row("SELECT count(*) FROM repacked", [], |row| row.get(0))?)).unwrap()
    };
    let ship = || {
        let shipped = meta.head();
        meta.write(|tx| Ok(tx.conn().execute("UPDATE target SET shipped_seq = ?1", [shipped])?)).unwrap();
    };
    ship();
    assert_eq!(kept(), 1, "a slot is older");
    meta.write(|tx| tx.commit_content(&batch(2, b, true, &[(1, 0, 10, 0)]))).unwrap();
    assert_eq!(kept(), 0);
    repack(&meta, 8, 9, &[(20, 10, 0)]);
    assert_eq!(kept(), 1, "the target lacks it");
    meta.set_target_mode(bit, Mode::Resync, None).unwrap();
    assert_eq!(kept(), 0, "history is kept for nobody");
}

#[test]
fn t5_on_an_idle_filesystem_history_takes_one_step_for_what_died_last() {
    let (_dir, meta) = store();
    let ino = meta.write(|tx| Ok(file(tx, b"a"))).unwrap();
    write(&meta, ino, 1, &[(1, 0, 10, 0)]);
    assert!(!meta.step_history().unwrap());
    write(&meta, ino, 2, &[(2, 0, 10, 0)]);
    while meta.write(|tx| tx.release_given_up(100)).unwrap() {}
    let head = meta.head();
    assert!(meta.step_history().unwrap());
    assert!(!meta.step_history().unwrap(), "one is enough");
    assert_eq!(meta.head(), head.next());
    check(&meta);
}

/// One step of the history below.
fn step(meta: &Meta, inodes: &[InodeId], open: &mut Vec<(u64, InodeId, bool)>, sessions: &mut u64, step: [u8; 6]) {
    let [what, a, b, c, d, e] = step;
    let ino = inodes[usize::from(a) % inodes.len()];
    match what % 8 {
        0 | 1 => {
            *sessions += 1;
            let whole = b % 3 == 0;
            reserve(meta, ino, *sessions, whole);
            open.push((*sessions, ino, whole));
        }
        2 | 3 if !open.is_empty() => {
            // The oldest of some inode: sessions of one are committed in their order.
            let (_, ino, _) = open[usize::from(b) % open.len()];
            let index = open.iter().position(|(_, of, _)| *of == ino).unwrap();
            let (session, ino, whole) = open.remove(index);
            let mut runs = Vec::new();
            let mut at = u64::from(c) % 16;
            for run in 0..u64::from(d) % 4 {
                let length = (1 + u64::from(e.rotate_left(run as u32 * 2)) % 15).min(SIZE - at);
                if length == 0 {
                    break;
                }
                let number = d.wrapping_add(run as u8 * 3) % 6;
                runs.push((number, at, length, (u64::from(c) * 7 + run * 11) % (LENGTH - length)));
                at += length + u64::from(run == 1);
            }
            meta.write(|tx| tx.commit_content(&batch(session, ino, whole, &runs))).unwrap();
        }
        4 => {
            // Only what stands still is shared, and only onto what does.
            let from = inodes[usize::from(b) % inodes.len()];
            if from != ino && open.iter().all(|(_, of, _)| *of != ino && *of != from) {
                *sessions += 1;
                let slot = SlotRequest {
                    base: Generation(0),
                    base_limit: SIZE,
                    whole: false,
                    ..slot_request(ino, *sessions, SIZE)
                };
                let (at, to_at) = (u64::from(c) % 40, u64::from(d) % 40);
                let share = Share { from, at, to_at, length: 1 + u64::from(e) % 20, slot };
                meta.write(|tx| tx.share_content(&share)).unwrap();
            }
        }
        5 | 6 => {
            let start = u64::from(c) % LENGTH;
            let length = (1 + u64::from(d) % LENGTH).min(LENGTH - start);
            let mut list = vec![(start, length.div_ceil(2), 0)];
            if length > 3 && e % 2 == 0 {
                list.push((start + length.div_ceil(2) + 1, length / 2 - 1, length.div_ceil(2)));
            }
            repack(meta, a % 6, b % 6, &list);
        }
        _ => while meta.write(|tx| tx.release_given_up(3)).unwrap() {},
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The oracle is replay, which knows only the records: whatever slots were open when, both come to the same.
    #[test]
    fn o5_here_and_on_a_target_the_same_references_move(steps in prop::collection::vec(any::<[u8; 6]>(), 0..70)) {
        let (_dir, meta) = store();
        let inodes: Vec<InodeId> =
            meta.write(|tx| Ok([b"a", b"b", b"c", b"d"].map(|name| file(tx, name)).to_vec())).unwrap();
        let (mut open, mut sessions) = (Vec::new(), 0);
        for one in steps {
            step(&meta, &inodes, &mut open, &mut sessions, one);
        }
        for (session, ino, whole) in std::mem::take(&mut open) {
            meta.write(|tx| tx.commit_content(&batch(session, ino, whole, &[(session as u8 % 6, 3, 20, 5)]))).unwrap();
        }
        check(&meta);
    }
}
