//! What a long backlog costs, measured and not asserted: `cargo test --lib backlog -- --ignored --nocapture`.

use std::collections::HashSet;

use super::segments;
use super::selection::Order;
use super::shipper::empty_segment;
use super::test_world::{World, bit, shipped};
use crate::clock::{self, Timestamp};
use crate::id::{ChunkHash, ChunkId, Generation, InodeId, Seq, SessionId};
use crate::meta::commit::{Batch, SealedChunk, SealedExtent, SealedPiece, SealedSession};
use crate::meta::create::NewNode;
use crate::meta::namespace::{Name, Place};
use crate::meta::slot::SlotRequest;
use crate::meta::window::WindowLimits;

const FILES: u64 = 50_000;
/// Files that share a gathered chunk.
const GATHERED: u64 = 500;
const BYTES: u64 = 4096;

/// Creates and closes small files, as a copy of a folder does: two records each.
fn copy_a_folder(world: &World) {
    for first in (0..FILES).step_by(GATHERED as usize) {
        let mut sessions = Vec::new();
        for number in first..first + GATHERED {
            sessions.push(close_one(world, number));
        }
        let hash = ChunkHash::of(&first.to_le_bytes());
        let length = GATHERED * BYTES;
        let piece = SealedPiece { chunk_offset: 0, length, file: 0, file_offset: 0, crc32c: 0 };
        let chunks = vec![SealedChunk { hash, length, pieces: vec![piece] }];
        let batch = Batch { files: vec![(format!("file {first}"), length)], chunks, sessions };
        world.meta.write(|tx| tx.commit_content(&batch)).unwrap();
    }
}

fn close_one(world: &World, number: u64) -> SealedSession {
    let (time, session) = (Timestamp::EPOCH, SessionId(number + 1));
    let name = format!("a picture of some kind {number}.jpg");
    let ino = world
        .meta
        .write(|tx| {
            let place = Place { parent: InodeId::ROOT, name: Name::new(name.as_bytes())? };
            let mode = libc::S_IFREG | 0o644;
            Ok(tx.make_node(&NewNode { place, mode, rdev: 0, uid: 0, gid: 0, umask: 0o22, time })?.ino)
        })
        .unwrap();
    let request = SlotRequest {
        ino,
        session,
        base: Generation(0),
        whole: true,
        base_limit: 0,
        synced_size: None,
        size: BYTES,
        mtime: time,
        ctime: time,
        fsynced: false,
    };
    world.meta.write(|tx| tx.reserve_slot(&request)).unwrap();
    let extent = SealedExtent { offset: 0, length: BYTES, chunk: 0, chunk_offset: number % GATHERED * BYTES };
    SealedSession { session, ino, whole: true, base_limit: 0, extents: vec![extent], zero: vec![] }
}

fn look(world: &World, what: &str) {
    let start = clock::instant();
    let window = world.meta.journal_window(bit(), world.meta.head(), WindowLimits::default()).unwrap();
    let read = clock::instant();
    let selection = segments::select(&window, &HashSet::new(), Order::Overtaking);
    let selected = clock::instant();
    if !selection.is_empty() {
        let cursor = world.meta.cursor(bit()).unwrap();
        let place = empty_segment(&world.shared(), &cursor, Seq::ZERO).place;
        let encoded = segments::pack(&window, &selection, place, cursor.built.map(|built| built.hash));
        let packed = clock::instant();
        world.meta.sync().unwrap();
        let synced = clock::instant();
        world.meta.store_segments(bit(), &encoded, selection.position, &selection.deferred).unwrap();
        let stored = clock::instant();
        println!(
            "{what}: packed in {:?}, synced in {:?}, stored in {:?}",
            packed.since(selected),
            synced.since(packed),
            stored.since(synced)
        );
    }
    println!(
        "{what}: {} rows, {} selected, {} deferred; window {:?}, selection {:?}",
        window.rows.len(),
        selection.ship.len(),
        selection.deferred.len(),
        read.since(start),
        selected.since(read)
    );
}

#[tokio::test]
#[ignore = "a measurement"]
async fn backlog_of_100_000_records() {
    let world = World::with_root();
    let start = clock::instant();
    copy_a_folder(&world);
    println!("{} records made in {:?}", world.meta.head(), clock::instant().since(start));
    look(&world, "nothing placed");
    world.meta.place(bit(), &[ChunkId(10)]).unwrap();
    look(&world, "one chunk placed");
    let chunks: Vec<ChunkId> = (1..=FILES / GATHERED).map(ChunkId).collect();
    world.meta.place(bit(), &chunks).unwrap();
    look(&world, "all placed");
    let (shipper, _gate) = world.start();
    let start = clock::instant();
    shipped(&shipper, world.meta.head().0).await;
    println!("all shipped in {:?}, {} segments", clock::instant().since(start), world.segments().len());
    shipper.stop().await;
}
