//! Live files: what is open or dirty, and the way of written bytes from `write(2)` to a sealed, committed generation.
//!
//! Owns: sessions, their staged chunk files and ranges, slots being due, sealing, gathering, committing.
//! Does not own: names (`vfs`), rows (`meta`), uploads (`replication`).

pub mod ranges;

use std::sync::Arc;

use crate::clock::Timestamp;
use crate::id::InodeId;
use crate::meta::inode::Inode;
use crate::meta::slot::SlotRequest;
use crate::meta::{Meta, Result};

/// All live files of a mount: inodes that are open or dirty.
pub struct Files {
    _meta: Arc<Meta>,
}

/// A claim on the place that a dirty inode must take before a record that names it (O1): reserve `request` in that
/// record's transaction before its own record, then call [`Files::slot_reserved`].
#[derive(Debug, Clone, Copy)]
pub struct Dirty {
    pub request: SlotRequest,
    /// The count of dirtyings that `request` covers.
    pub dirtyings: u64,
}

impl Files {
    /// Puts what a live session knows better into `inode`: size, mtime, ctime. Returns the bytes allocated locally if
    /// there is a session, for `st_blocks`.
    pub fn overlay(&self, inode: &mut Inode) -> Option<u64> {
        let _ = inode;
        todo!()
    }

    /// The slot that `ino` needs before a record that names it, if it is dirty since its last one.
    pub fn dirty(&self, ino: InodeId) -> Option<Dirty> {
        let _ = ino;
        todo!()
    }

    /// Notes that the slot of `dirty` was reserved.
    pub fn slot_reserved(&self, dirty: &Dirty) {
        let _ = dirty;
        todo!()
    }

    /// True while `ino` has an open handle.
    pub fn is_open(&self, ino: InodeId) -> bool {
        let _ = ino;
        todo!()
    }

    /// Tells a live session that `utimens`, `chmod` … set these (`None` = unchanged), so that a later slot carries them.
    pub fn attributes_set(&self, ino: InodeId, mtime: Option<Timestamp>, ctime: Timestamp) {
        let _ = (ino, mtime, ctime);
        todo!()
    }

    /// Sets the size of a regular file (truncate, or ftruncate through any handle): a session and later a slot, like any
    /// change of content (O3). A closed file gets its slot and is sealed at once.
    pub fn truncate(&self, ino: InodeId, size: u64, time: Timestamp) -> Result<()> {
        let _ = (ino, size, time);
        todo!()
    }

    /// Tells that `ino` lost its last name; its slots were voided in that transaction. Its sessions live while it is open.
    pub fn unnamed(&self, ino: InodeId) {
        let _ = ino;
        todo!()
    }
}
