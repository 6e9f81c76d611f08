//! One record of the journal: a metadata change at its place in the filesystem's history.
//!
//! Owns: what a record says. The same types are the body of a journal row (postcard) and a line of a segment (JSON).
//! Does not own: JSON (`format::json`), conflicts between records (`replication::conflicts`), their effect (`meta`).

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::id::{ChunkHash, Generation, InodeId, Seq};

/// A change and its place in history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its place in the total order of the filesystem.
    pub seq: Seq,
    /// What changed.
    pub change: Change,
}

/// What a record changes. Names, symlink targets, xattr names and values are byte strings; a name was validated
/// (1–255 bytes, no `/`, no NUL, not `.` or `..`) before it got here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A new directory.
    Mkdir {
        parent: InodeId,
        name: Vec<u8>,
        ino: InodeId,
        mode: u32,
        uid: u32,
        gid: u32,
        time: Timestamp,
        xattrs: Vec<Xattr>,
    },
    /// A new regular file, fifo, socket or device node (by the type bits of `mode`; `rdev` as in `fuse_attr`).
    Create {
        parent: InodeId,
        name: Vec<u8>,
        ino: InodeId,
        mode: u32,
        uid: u32,
        gid: u32,
        rdev: u32,
        time: Timestamp,
        xattrs: Vec<Xattr>,
    },
    /// A new generation of a regular file's bytes.
    Content(Content),
    /// A slot that brings no bytes: content stays as it was.
    Void { ino: InodeId, generation: Generation, why: VoidReason },
    /// A new symbolic link.
    Symlink { parent: InodeId, name: Vec<u8>, ino: InodeId, uid: u32, gid: u32, target: Vec<u8>, time: Timestamp },
    /// One more name for `ino`.
    Link { parent: InodeId, name: Vec<u8>, ino: InodeId, time: Timestamp },
    /// A name moved. `replaced` lost the name `to`.
    Rename { from: Dentry, to: Dentry, ino: InodeId, replaced: Option<InodeId>, dir: bool, time: Timestamp },
    /// Two names changed places: each `(directory, name)` held the inode beside it before the exchange.
    Exchange { a: (Dentry, InodeId), b: (Dentry, InodeId), time: Timestamp },
    /// A name of a non-directory went.
    Unlink { parent: InodeId, name: Vec<u8>, ino: InodeId, time: Timestamp },
    /// An empty directory went.
    Rmdir { parent: InodeId, name: Vec<u8>, ino: InodeId, time: Timestamp },
    /// New values of attributes; absent ones stay. Size never changes here.
    Setattr {
        ino: InodeId,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        atime: Option<Timestamp>,
        mtime: Option<Timestamp>,
        ctime: Timestamp,
    },
    /// An extended attribute set; `mode` if an ACL changed it.
    Setxattr { ino: InodeId, name: Vec<u8>, value: Vec<u8>, mode: Option<u32>, ctime: Timestamp },
    /// An extended attribute removed.
    Removexattr { ino: InodeId, name: Vec<u8>, ctime: Timestamp },
    /// References to ranges of chunk `from` now refer to other chunks (O5).
    Repack { from: ChunkHash, chunks: Vec<(ChunkHash, u64)>, moves: Vec<Extent> },
}

/// Name and value of an extended attribute.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Dentry {
    pub parent: InodeId,
    pub name: Vec<u8>,
}

/// A new generation of a file's bytes, as a delta (O4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    pub ino: InodeId,
    pub generation: Generation,
    /// Forget all earlier content first.
    pub whole: bool,
    /// Bytes; what lies at or beyond is cut off.
    pub size: u64,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    /// The new mode, if set-id bits were cleared by writing.
    pub mode: Option<u32>,
    /// Every chunk named once: hash and length.
    pub chunks: Vec<(ChunkHash, u64)>,
    /// Replaced ranges, ascending and disjoint.
    pub extents: Vec<Extent>,
    /// Ranges (offset, length) that became holes.
    pub zero: Vec<(u64, u64)>,
    /// `(k, of)` when one change is split over several records of the same seq, k from 1; in the journal row always `None`.
    pub part: Option<(u32, u32)>,
}

/// A run of bytes that lies in a chunk. In [`Change::Repack`] `offset` is an offset in the chunk `from`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Bytes, at least 1.
    pub length: u64,
    /// Index into the record's `chunks`.
    pub chunk: u32,
    /// Bytes from the start of the chunk.
    pub chunk_offset: u64,
}

/// Why a slot brings no bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VoidReason {
    /// The inode lost its last name.
    Unlinked,
    /// The same session holds a later slot in this unit.
    Moved,
    /// A power cut before any sync: the earlier generation stays, with its size and times.
    Lost { size: u64, mtime: Timestamp, ctime: Timestamp },
}

impl Change {
    /// The inode the record is about: born, named, unnamed or changed. A repack is about none.
    pub fn inode(&self) -> Option<InodeId> {
        match self {
            Change::Mkdir { ino, .. }
            | Change::Create { ino, .. }
            | Change::Void { ino, .. }
            | Change::Symlink { ino, .. }
            | Change::Link { ino, .. }
            | Change::Rename { ino, .. }
            | Change::Unlink { ino, .. }
            | Change::Rmdir { ino, .. }
            | Change::Setattr { ino, .. }
            | Change::Setxattr { ino, .. }
            | Change::Removexattr { ino, .. } => Some(*ino),
            Change::Content(content) => Some(content.ino),
            Change::Exchange { a, .. } => Some(a.1),
            Change::Repack { .. } => None,
        }
    }
}
