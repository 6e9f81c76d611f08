//! A target that is away for a week while everything else goes on, at the real bounds of T4. Time is the number of looks: the
//! mount looks at every backlog each minute, here once an hour.

use std::sync::Arc;

use rusqlite::params;

use super::resync::{Limits, Watch};
use crate::clock::Timestamp;
use crate::id::{ChunkHash, ChunkId, ExportId, InodeId, SegmentNumber, Seq, SessionId, TargetBit};
use crate::meta::Meta;
use crate::meta::commit::{Batch, SealedChunk, SealedExtent, SealedPiece, SealedSession};
use crate::meta::slot::SlotRequest;
use crate::meta::target::{Configured, Mode};
use crate::meta::testing::{file, slot_request, store};

const CHUNK: u64 = 4 << 20;
const FILES: u64 = 100;
/// Each file is 16 MiB.
const CHUNKS_OF_FILE: u64 = 4;
const REWRITTEN_AN_HOUR: u64 = 12;
const HOURS: u64 = 7 * 24;
const HOUR_BYTES: u64 = REWRITTEN_AN_HOUR * CHUNKS_OF_FILE * CHUNK;

struct World {
    _dir: tempfile::TempDir,
    meta: Arc<Meta>,
    files: Vec<InodeId>,
    sessions: u64,
}

/// The target that is there, and the one that is away.
fn bits() -> [TargetBit; 2] {
    [0, 1].map(|index| TargetBit::new(index).unwrap())
}

impl World {
    fn new() -> World {
        let (dir, meta) = store();
        let of = |name: &str| Configured { name: name.into(), uri: format!("memory://{name}"), id: None };
        meta.register_targets(&[of("here"), of("away")]).unwrap();
        let files = (0..FILES).map(|n| meta.write(|tx| Ok(file(tx, n.to_string().as_bytes()))).unwrap()).collect();
        World { _dir: dir, meta: Arc::new(meta), files, sessions: 0 }
    }

    /// Replaces the content of a file.
    fn rewrite(&mut self, index: u64) {
        let ino = self.files[index as usize];
        self.sessions += 1;
        let (session, size) = (SessionId(self.sessions), CHUNKS_OF_FILE * CHUNK);
        let base = self.meta.inode(ino).unwrap().generation;
        let time = Timestamp::EPOCH;
        let request = SlotRequest { base, mtime: time, ctime: time, ..slot_request(ino, session.0, size) };
        self.meta.write(|tx| tx.reserve_slot(&request)).unwrap();
        let of = |n: u64| {
            let piece = SealedPiece { chunk_offset: 0, length: CHUNK, file: 0, file_offset: n * CHUNK, crc32c: 0 };
            let hash = ChunkHash::of(&(session.0 * CHUNKS_OF_FILE + n).to_le_bytes());
            SealedChunk { hash, length: CHUNK, pieces: vec![piece] }
        };
        let chunks: Vec<SealedChunk> = (0..CHUNKS_OF_FILE).map(of).collect();
        let extents = (0..CHUNKS_OF_FILE as usize)
            .map(|chunk| SealedExtent { offset: chunk as u64 * CHUNK, length: CHUNK, chunk, chunk_offset: 0 })
            .collect();
        let sealed = SealedSession { session, ino, whole: true, base_limit: 0, extents, zero: vec![] };
        let batch = Batch { files: vec![(format!("chunks/00/{}", session.0), size)], chunks, sessions: vec![sealed] };
        self.meta.write(|tx| tx.commit_content(&batch)).unwrap();
        while self.meta.write(|tx| tx.release_given_up(1_000)).unwrap() {}
    }

    /// The target that is there takes everything at once.
    fn place_here(&self) {
        let [here, _] = bits();
        let mut after = ChunkId(0);
        loop {
            let page = self.meta.chunks_to_place(here, after, 10_000).unwrap();
            let ids: Vec<ChunkId> = page.chunks.iter().map(|chunk| chunk.id).collect();
            self.meta.place(here, &ids).unwrap();
            self.meta.release(&page.unneeded).unwrap();
            after = page.cursor;
            if page.end {
                break;
            }
        }
        self.ship_here();
    }

    fn ship_here(&self) {
        let head = self.meta.head();
        let sql = "UPDATE target SET position = ?1, shipped_seq = ?1 WHERE bit = 0";
        self.meta.write(|tx| Ok(tx.conn().execute(sql, [head])?)).unwrap();
    }

    fn watch(&self) -> Watch {
        Watch::new(Arc::clone(&self.meta), Arc::default(), Limits::default())
    }

    fn mode(&self) -> Mode {
        self.meta.targets().unwrap()[1].mode
    }

    fn journal_rows(&self) -> u64 {
        let sql = "SELECT count(*) FROM journal";
        self.meta.read(|conn| Ok(conn.query_row(sql, [], |row| row.get::<_, i64>(0))? as u64)).unwrap()
    }

    /// Adds `rows` records with bodies of `bytes`, which nobody reads here.
    fn records(&self, rows: u64, bytes: u64) {
        let head = self.meta.head();
        self.meta
            .write(|tx| {
                tx.conn().execute(
                    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?2) \
                     INSERT INTO journal (seq, kind, ino, body) SELECT ?1 + i, 0, 1, zeroblob(?3) FROM n",
                    params![head, rows as i64, bytes as i64],
                )?;
                tx.set_head(Seq(head.0 + rows));
                Ok(())
            })
            .unwrap();
        self.ship_here();
    }
}

#[test]
fn t4_a_week_away_under_churn_keeps_local_bytes_and_rows_in_bounds() {
    let mut world = World::new();
    let mut watch = world.watch();
    (0..FILES).for_each(|index| world.rewrite(index));
    world.place_here();
    let live = FILES * CHUNKS_OF_FILE * CHUNK;
    let limits = Limits::default();
    let mut resynced_at = None;
    for hour in 0..HOURS {
        for n in 0..REWRITTEN_AN_HOUR {
            world.rewrite((hour * REWRITTEN_AN_HOUR + n) % FILES);
        }
        world.place_here();
        if !watch.look().unwrap().is_empty() {
            resynced_at = Some(hour);
        }
        let pinned = world.meta.chunk_sums().unwrap().incomplete_bytes;
        match resynced_at {
            // What is kept for it: what is still wanted, and superseded bytes up to the bound and one look's.
            None => {
                let kept = live + limits.superseded_min.max(live * limits.superseded_percent / 75) + HOUR_BYTES;
                assert!(pinned <= kept, "hour {hour}: {pinned} bytes are kept, {kept} may be");
                assert!(world.journal_rows() <= limits.rows_max);
            }
            Some(_) => {
                assert_eq!((world.mode(), pinned), (Mode::Resync, 0), "hour {hour}: nothing is kept for it");
                assert!(world.journal_rows() <= 4 * REWRITTEN_AN_HOUR, "hour {hour}: {} rows", world.journal_rows());
            }
        }
    }
    let resynced_at = resynced_at.expect("a week of it is more than is kept");
    assert!(
        resynced_at >= limits.superseded_min / HOUR_BYTES,
        "it followed as long as that was cheaper: {resynced_at} h"
    );
    // It is back: a state is chosen, and of that it is sent what is live and nothing else. (What the very last record gave up
    // counts as needed at its own seq: another record follows.)
    world.meta.write(|tx| Ok(file(tx, b"last"))).unwrap();
    let [_, away] = bits();
    world.meta.begin_checkpoint(away, world.meta.head(), ExportId(1), SegmentNumber(1)).unwrap();
    let page = world.meta.chunks_to_place(away, ChunkId(0), 10_000_000).unwrap();
    let wanted: u64 = page.chunks.iter().map(|chunk| chunk.length).sum();
    assert_eq!((page.end, page.backfill, wanted), (true, true, live));
}

#[test]
fn t4_a_million_records_and_no_more_are_kept() {
    let world = World::new();
    let mut watch = world.watch();
    world.records(1_000_000 - world.meta.head().0, 40);
    assert!(watch.look().unwrap().is_empty(), "exactly a million are kept");
    assert_eq!(world.journal_rows(), 1_000_000);
    world.records(1, 40);
    assert_eq!(watch.look().unwrap(), [bits()[1]]);
    assert_eq!((world.mode(), world.journal_rows()), (Mode::Resync, 0));
}

#[test]
fn t4_a_few_large_records_are_too_much_as_well() {
    let world = World::new();
    let mut watch = world.watch();
    world.records(250, 1 << 20);
    assert!(watch.look().unwrap().is_empty());
    world.records(20, 1 << 20);
    assert_eq!(watch.look().unwrap(), [bits()[1]]);
    assert_eq!((world.mode(), world.journal_rows()), (Mode::Resync, 0));
}
