//! A checkpoint that is late: while it is on its way to a target that takes no chunks, everything that it names is overwritten
//! or removed.
//!
//! Owns: this one course of events, which chance alone would hardly ever bring about. Does not own: what must hold (`place`, at
//! the put of `complete.json`; `oracle`).
//!
//! ```text
//! no chunk arrives ─▶ files that it lacks ─▶ (resync) ─▶ files with a place, and no bytes yet ─▶ snapshot
//!                  ─▶ fsync of what is sealed, names that come after it ─▶ all is overwritten ─▶ chunks arrive
//! ```

use std::time::Duration;

use super::place::Character;
use super::world::World;
use crate::chance::Seeded;
use crate::id::InodeId;
use crate::meta::target::Mode;
use crate::replication::resync;

impl World {
    /// One late checkpoint of one target.
    pub(super) fn late_checkpoint(&mut self) {
        let index = self.random.below(self.places.len());
        let row = self.row(index);
        if row.paused_until.is_some() || !row.initialised || row.relist {
            return;
        }
        let place = self.places[index].clone();
        let before = place.character();
        place.is_now(Character { keeps_chunks_out: true, ..Character::default() });
        self.trace.note(format_args!("{} takes no chunks", place.name));
        let (sealed, open) = [(true, false), (false, true), (true, true)][self.random.below(3)];
        let sealed = if sealed { self.store_at(b"x") } else { None };
        self.seal_all();
        if row.mode == Mode::Follow && self.random.below(2) == 0 {
            let meta = self.meta();
            self.life.resyncs += u64::from(resync::begin(&meta, row.bit, &row.name, "the world wants it").unwrap());
            self.live().replication.walk_anew(row.bit);
        } else if let Some(sealed) = sealed {
            self.sync_what_is_sealed(index, sealed);
        }
        if open {
            // It has its place in history, and gets its bytes after the snapshot.
            self.store_at(b"z");
        }
        let live = self.live();
        let runtime = &self.mounted.as_ref().expect("mounted").runtime;
        runtime.spawn(async move { live.replication.checkpoint(&[row.bit]).await });
        for _ in 0..20 {
            self.advance(Duration::from_secs(1));
            if self.meta().checkpoints(row.bit).unwrap().iter().any(|checkpoint| !checkpoint.complete) {
                break;
            }
        }
        self.seal_all();
        for name in [b"x", b"z"] {
            self.store_at(name);
        }
        self.seal_all();
        // What nothing refers to any more is found to be dead.
        self.tend();
        self.advance(Duration::from_secs(10));
        place.is_now(before);
        self.check_target(index);
    }

    /// A file in chunks of its own, which no other file keeps alive; closed.
    fn store_at(&mut self, name: &[u8]) -> Option<InodeId> {
        let known = self.programs.names.get(&(InodeId::ROOT, name.to_vec())).copied();
        if let Some(open) = known.filter(|ino| self.programs.files.get(ino).is_some_and(|file| file.handle.is_some())) {
            self.close(open);
        }
        let seed = self.random.draw();
        let mut random = Seeded(seed);
        let bytes: Vec<u8> = (0..2100).flat_map(|_| random.draw().to_le_bytes()).collect();
        let ino = self.write_whole(InodeId::ROOT, name.to_vec(), &bytes)?;
        self.close(ino);
        Some(ino)
    }

    /// An `fsync` that finds nothing new to write: what comes after it does not overtake what it covers.
    fn sync_what_is_sealed(&mut self, index: usize, ino: InodeId) {
        self.open(ino);
        if self.programs.files.get(&ino).is_none_or(|file| file.handle.is_none()) {
            return;
        }
        self.sync(ino);
        self.advance(Duration::from_millis(10));
        for _ in 0..3 {
            self.set_mode();
        }
        self.advance(Duration::from_secs(3));
        self.check_target(index);
    }
}
