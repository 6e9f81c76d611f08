//! `copy_file_range(2)` by reference: no byte is moved where both files stand still.
//!
//! Owns: whether a copy can be made by reference, and that nothing changes meanwhile.
//! Does not own: the transaction (`meta::share`).
//!
//! A copy is a session that is filled at once (O3): it takes a slot and its manifest in one transaction. That needs content
//! with names: both files must be committed, without a session that takes writes or waits for its seal. Everything else the
//! kernel copies by itself, through its page cache.

use std::sync::Arc;

use rustix::io::Errno;

use super::files::Files;
use super::io::SIZE_MAX;
use super::live::LiveFile;
use crate::clock;
use crate::id::InodeId;
use crate::meta::Result;
use crate::meta::share::Share;
use crate::meta::slot::SlotRequest;

/// Smaller copies are made of bytes: many small pieces would cost every later read more than they saved.
const LENGTH_MIN: u64 = 64 << 10;

impl Files {
    /// Makes `length` bytes from `at` of `from` the bytes at `to_at` of `to`, which is open. Returns how many it were, fewer
    /// at the end of `from`; `None`: not by reference.
    pub fn share(&self, from: InodeId, at: u64, to: InodeId, to_at: u64, length: u64) -> Result<Option<u64>> {
        if to_at.checked_add(length).is_none_or(|end| end > SIZE_MAX) {
            return Err(Errno::FBIG.into());
        }
        let _gate = self.gate.read();
        // In the order of the inodes, as everywhere where two are held.
        let mut inos = vec![from, to];
        inos.sort_unstable();
        inos.dedup();
        let files: Vec<Arc<LiveFile>> = inos.into_iter().filter_map(|ino| self.find(ino)).collect();
        let mut states: Vec<_> = files.iter().map(|file| (file.ino, file.state.write())).collect();
        let standing = |state: &super::live::State| {
            state.staged.is_none() && state.frozen.is_empty() && !state.unnamed && !state.dead
        };
        if !states.iter().all(|(_, state)| standing(state)) {
            return Ok(None);
        }
        for (_, state) in states.iter_mut().filter(|(ino, _)| *ino == to) {
            self.reclaim(state);
            if state.lent.is_some() {
                // Who reads its file past us would not see the copy (P3).
                return Ok(None);
            }
        }
        let source = self.meta.inode(from)?;
        let length = length.min(source.size.saturating_sub(at));
        if length < LENGTH_MIN {
            return Ok(None);
        }
        let inode = self.meta.inode(to)?;
        let now = clock::now();
        let slot = SlotRequest {
            ino: to,
            session: self.next_session(),
            base: inode.generation,
            whole: false,
            base_limit: inode.size,
            synced_size: None,
            size: inode.size,
            mtime: now,
            ctime: now,
            fsynced: false,
        };
        let share = Share { from, at, to_at, length, slot };
        let Some(shared) = self.meta.write(|tx| tx.share_content(&share))? else { return Ok(None) };
        for (ino, state) in &mut states {
            if *ino == to {
                // What is in the row now is the newest.
                state.attributes = None;
            }
        }
        self.births().has_slot(to, shared.seq);
        Ok(Some(shared.length))
    }
}
