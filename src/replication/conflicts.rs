//! Which records may pass which on the way to a target (O6, O7). Pure.
//!
//! A record is *deferred* when it stays behind while later ones are shipped: it names a chunk that is not placed yet, its
//! slot is still open, or it would pass a record that is deferred itself. A record *overtakes* the deferred ones before it.
//!
//! Owns: what each record reads and writes, and the rule that follows from it.
//! Does not own: which records are ready, units, births (`selection`).
//!
//! - The set that a target holds is closed: with a record it holds every earlier record that conflicts with it. Each such
//!   set is a state that a power cut on an ordinary filesystem could have left, and applied in any order that the rule
//!   allows, the whole history gives the same tree.
//! - Transitive, because a record is checked against *every* deferred one, and deferred ones become part of the set.
//! - [`Key::Directory`] is the rule's `exists(d)`, and a little more: whatever sets a directory's own times writes it. The
//!   mtime that a `create` gives its parent and the ctime that a `chmod` of that parent sets belong to one `times_seq`;
//!   applied the other way round, one of the two would be lost.

use std::collections::HashSet;

use crate::format::record::{Change, Dentry};
use crate::id::{ChunkHash, InodeId};

/// So many records may be deferred on one target; beyond that it gets plain order.
pub const DEFERRED_MAX: usize = 10_000;

/// Something that two records can meet at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// What a name in a directory refers to.
    Dentry(Dentry),
    /// Attributes, content and names of an inode.
    Inode(InodeId),
    /// Which bytes references to this chunk stand for (O5).
    Chunk(ChunkHash),
    /// That a directory exists, with its own times.
    Directory(InodeId),
}

/// What a record reads and writes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Footprint {
    /// The write set W.
    pub writes: Vec<Key>,
    /// The read set R.
    pub reads: Vec<Key>,
    /// It will read chunks that are not known yet: an open slot.
    pub reads_unknown_chunks: bool,
    /// It overtakes nothing: a directory moves to another parent, and what it passed could close a circle with it.
    pub overtakes_nothing: bool,
    /// Nothing overtakes it: such a move again, or a slot that an `fsync` reserved (O6).
    pub is_overtaken_by_nothing: bool,
}

impl Footprint {
    /// The footprint of a record.
    pub fn of(change: &Change) -> Footprint {
        let mut footprint = Footprint::default();
        match change {
            Change::Mkdir { parent, name, ino, .. } | Change::Rmdir { parent, name, ino, .. } => {
                footprint.names(*parent, name, *ino);
                footprint.writes.push(Key::Directory(*ino));
            }
            Change::Create { parent, name, ino, .. }
            | Change::Symlink { parent, name, ino, .. }
            | Change::Link { parent, name, ino, .. }
            | Change::Unlink { parent, name, ino, .. } => footprint.names(*parent, name, *ino),
            Change::Content(content) => {
                footprint.writes.push(Key::Inode(content.ino));
                footprint.reads.extend(content.chunks.iter().map(|(hash, _)| Key::Chunk(*hash)));
            }
            Change::Void { ino, .. } => footprint.writes.push(Key::Inode(*ino)),
            Change::Rename { from, to, ino, replaced, dir, .. } => {
                footprint.names(from.parent, &from.name, *ino);
                footprint.writes.push(Key::Dentry(to.clone()));
                footprint.reads.push(Key::Directory(to.parent));
                if let Some(replaced) = replaced {
                    footprint.writes.push(Key::Inode(*replaced));
                }
                if *dir {
                    // A directory replaces only an empty directory.
                    footprint.writes.push(Key::Directory(*ino));
                    footprint.writes.extend(replaced.map(Key::Directory));
                    footprint.barrier_if(from.parent != to.parent);
                }
            }
            Change::Exchange { a, b, .. } => {
                for (dentry, ino) in [a, b] {
                    footprint.names(dentry.parent, &dentry.name, *ino);
                    footprint.writes.push(Key::Directory(*ino));
                }
                // The record does not say whether one of them is a directory, so every exchange across parents counts.
                footprint.barrier_if(a.0.parent != b.0.parent);
            }
            // Whether it is a directory is not said either; nothing reads the key of another inode.
            Change::Setattr { ino, .. } | Change::Setxattr { ino, .. } | Change::Removexattr { ino, .. } => {
                footprint.writes.extend([Key::Inode(*ino), Key::Directory(*ino)]);
            }
            Change::Repack { from, chunks, .. } => {
                footprint.writes.push(Key::Chunk(*from));
                // A later repack of one of its own chunks must find the references that this one brings there.
                footprint.reads.extend(chunks.iter().map(|(hash, _)| Key::Chunk(*hash)));
            }
        }
        footprint
    }

    /// The footprint of an open slot of `ino` (O1): it will become [`Change::Content`] or [`Change::Void`].
    pub fn of_open_slot(ino: InodeId) -> Footprint {
        Footprint { writes: vec![Key::Inode(ino)], reads_unknown_chunks: true, ..Footprint::default() }
    }

    /// The same, of a slot that an `fsync` reserved: nothing overtakes it (O6).
    pub fn fsynced(mut self) -> Footprint {
        self.is_overtaken_by_nothing = true;
        self
    }

    fn names(&mut self, parent: InodeId, name: &[u8], ino: InodeId) {
        self.writes.push(Key::Dentry(Dentry { parent, name: name.to_vec() }));
        self.writes.push(Key::Inode(ino));
        self.reads.push(Key::Directory(parent));
    }

    fn barrier_if(&mut self, moves_directory: bool) {
        self.overtakes_nothing |= moves_directory;
        self.is_overtaken_by_nothing |= moves_directory;
    }
}

/// The records that stay behind, as far as later ones must know them.
#[derive(Debug, Default)]
pub struct Deferred<'a> {
    writes: HashSet<&'a Key>,
    reads: HashSet<&'a Key>,
    reads_unknown_chunks: bool,
    closed: bool,
    len: usize,
}

impl<'a> Deferred<'a> {
    /// Nothing deferred: everything may go.
    pub fn new() -> Deferred<'a> {
        Deferred::default()
    }

    /// True if a record may overtake everything that is deferred.
    pub fn admits(&self, record: &Footprint) -> bool {
        if self.closed || (record.overtakes_nothing && self.len > 0) {
            return false;
        }
        record.writes.iter().all(|key| {
            let repacks = matches!(key, Key::Chunk(_)) && self.reads_unknown_chunks;
            !repacks && !self.writes.contains(key) && !self.reads.contains(key)
        }) && record.reads.iter().all(|key| !self.writes.contains(key))
            && !(record.reads_unknown_chunks && self.writes.iter().any(|key| matches!(key, Key::Chunk(_))))
    }

    /// Adds a record that stays behind.
    pub fn insert(&mut self, record: &'a Footprint) {
        self.len += 1;
        if self.closed {
            // What it meets does not matter any more.
            return;
        }
        self.writes.extend(&record.writes);
        self.reads.extend(&record.reads);
        self.reads_unknown_chunks |= record.reads_unknown_chunks;
        self.closed |= record.is_overtaken_by_nothing || self.len > DEFERRED_MAX;
    }

    /// How many are deferred.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if none is deferred.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
#[path = "conflicts_tests.rs"]
mod tests;
