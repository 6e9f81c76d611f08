//! Names that move: `rename`, `renameat2`.

use super::{Result, Vfs, errno, place};
use crate::clock;
use crate::id::InodeId;
use crate::meta::rename::Move;
use crate::write::Dirty;

/// What a rename does when there is something under the new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace it.
    Replace,
    /// `RENAME_NOREPLACE`: fail.
    NoReplace,
    /// `RENAME_EXCHANGE`: the two change places.
    Exchange,
}

impl Vfs {
    /// Moves a name. Dirty files that it names take their place in history first (O1).
    pub fn rename(&self, from: (InodeId, &[u8]), to: (InodeId, &[u8]), mode: RenameMode) -> Result<()> {
        let refused = |error: crate::meta::Error| errno("rename", from.0, &error);
        let (from, to) = (place(from.0, from.1)?, place(to.0, to.1)?);
        let moved = self.meta.lookup(from).map_err(refused)?;
        let dirty = self.files.dirty(moved.ino);
        match mode {
            RenameMode::Replace | RenameMode::NoReplace => {
                let no_replace = mode == RenameMode::NoReplace;
                let request = Move { from, to, no_replace, time: clock::now() };
                let slot = dirty.as_ref().map(|dirty| &dirty.request);
                let replaced = self.meta.write(|tx| tx.rename(&request, slot)).map_err(refused)?;
                self.moved(moved.ino, dirty, request.time);
                replaced.iter().for_each(|inode| self.lost_name(inode));
            }
            RenameMode::Exchange => {
                let other = self.meta.lookup(to).map_err(refused)?;
                let other_dirty = self.files.dirty(other.ino);
                let slots: Vec<_> = [&dirty, &other_dirty].into_iter().flatten().map(|dirty| dirty.request).collect();
                let time = clock::now();
                self.meta.write(|tx| tx.exchange(from, to, &slots, time)).map_err(refused)?;
                self.moved(moved.ino, dirty, time);
                self.moved(other.ino, other_dirty, time);
            }
        }
        Ok(())
    }

    fn moved(&self, ino: InodeId, dirty: Option<Dirty>, time: clock::Timestamp) {
        dirty.iter().for_each(|dirty| self.files.slot_reserved(dirty));
        self.files.attributes_set(ino, None, time);
    }
}
