//! Content that is written again while the target still forgets it: its chunk may be put there only when the deletion is over
//! (T9), and a checkpoint that names it waits for that.
//!
//! Owns: this one course of events. Does not own: when garbage goes (`gc`, `mount::collector`).

use std::time::Duration;

use super::programs::ROOT;
use super::world::World;
use crate::clock;
use crate::format::key;
use crate::id::{ChunkHash, InodeId};
use crate::vfs::attr::SetAttributes;

/// Much longer than a deletion takes to be over.
const PATIENCE: Duration = Duration::from_secs(200);

impl World {
    fn store(&mut self, name: &[u8], bytes: &[u8]) {
        let ino = self.write_whole(InodeId::ROOT, name.to_vec(), bytes).expect("nothing fails");
        self.close(ino);
        self.seal_all();
    }

    /// What a file held is of no use any more.
    fn overwrite(&mut self, name: &[u8], bytes: &[u8]) {
        self.store(name, bytes);
        self.drain();
        // What the newest change set free waits for another one.
        let set = SetAttributes { mode: Some(0o700), ..SetAttributes::default() };
        self.vfs().setattr(&ROOT, InodeId::ROOT, &set).unwrap();
    }

    fn collect(&mut self) {
        let collector = self.collector();
        self.drive("gc", async { collector.now().await }).unwrap();
    }
}

#[test]
fn t9_a_round_that_waits_for_a_checkpoint_does_not_hold_up_the_chunk_that_this_waits_for() {
    let mut world = World::new(1);
    world.tuning.grace = Duration::from_secs(30);
    world.mount(None);
    let content = |seed: u8| (0..20_000).map(|at| seed ^ (at >> 7) as u8).collect::<Vec<u8>>();
    for (name, seed) in [(b"one", 1), (b"two", 2)] {
        world.store(name, &content(seed));
    }
    world.drain();
    world.overwrite(b"one", &content(3));
    world.advance(Duration::from_secs(40));
    world.collect();
    let chunk = key::chunk(ChunkHash::of(&content(1)));
    assert!(world.places.iter().all(|place| !place.memory.objects().contains_key(&chunk)), "it went");

    // Something that only checkpoints hold, and the same content once more.
    world.overwrite(b"two", &content(4));
    world.advance(Duration::from_secs(40));
    world.store(b"three", &content(1));
    let began = clock::instant();
    world.collect();
    let took = clock::instant().since(began);
    assert!(took < PATIENCE, "the round took {took:?}");
    world.drain();
    assert!(world.places.iter().all(|place| place.memory.objects().contains_key(&chunk)));
}
