//! Setting attributes: `chmod`, `chown`, `utimens`, `truncate`, and the set-id bits that these and writing take away.
//!
//! Set-id bits are ours (`FUSE_HANDLE_KILLPRIV_V2`). Without it the kernel asks for `security.capability` before every
//! single write (25 µs instead of 2). With it a request may carry a flag that this FUSE crate does not show for SETATTR;
//! so every change of size by an unprivileged caller, every change of owner, and the empty SETATTR that the kernel sends
//! before a write clear them: clearing where nothing was asked for cannot happen, as each of these asks for it.

use rustix::io::Errno;

use super::{Attributes, Caller, Result, Vfs, errno};
use crate::clock::{self, Timestamp};
use crate::id::InodeId;
use crate::meta::attr::AttributeChange;
use crate::meta::inode::Inode;

/// The largest size of a file: what a record can carry, as JSON has it.
const SIZE_MAX: u64 = crate::id::NUMBER_MAX;

/// A time that `utimensat` sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// `UTIME_NOW`.
    Now,
    /// This one.
    At(Timestamp),
}

/// What SETATTR asks for; absent values stay. Nothing at all asks for the set-id bits to be cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetAttributes {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
}

impl Vfs {
    /// Sets attributes and returns them all.
    pub fn setattr(&self, caller: &Caller, ino: InodeId, set: &SetAttributes) -> Result<Attributes> {
        let now = clock::now();
        let inode = self.meta.inode(ino).map_err(|error| errno("setattr", ino, &error))?;
        if let Some(size) = set.size {
            match inode {
                inode if inode.is_dir() => return Err(Errno::ISDIR),
                inode if !inode.is_file() => return Err(Errno::INVAL),
                _ if size > SIZE_MAX => return Err(Errno::FBIG),
                _ => {}
            }
            self.files.truncate(ino, size, now).map_err(|error| errno("truncate", ino, &error))?;
        }
        let at = |time| match time {
            SetTime::Now => now,
            SetTime::At(time) => time,
        };
        let change = AttributeChange {
            mode: set.mode.or_else(|| mode_without_set_ids(&inode, caller, set)),
            uid: set.uid,
            gid: set.gid,
            atime: set.atime.map(at),
            mtime: set.mtime.map(at),
        };
        if change.is_empty() {
            return self.getattr(ino);
        }
        let inode = self.write("setattr", ino, |tx| tx.set_attributes(ino, &change, now))?;
        if inode.is_file() {
            self.files.attributes_set(ino, change.mtime, now);
        }
        Ok(self.attributes(inode))
    }

    /// Takes the set-id bits away that a write by an unprivileged caller must not leave.
    pub fn clear_set_ids(&self, caller: &Caller, ino: InodeId) -> Result<()> {
        let inode = self.meta.inode(ino).map_err(|error| errno("write", ino, &error))?;
        let Some(mode) = without_set_ids(&inode, caller) else { return Ok(()) };
        let (change, now) = (AttributeChange { mode: Some(mode), ..AttributeChange::default() }, clock::now());
        self.write("write", ino, |tx| tx.set_attributes(ino, &change, now))?;
        self.files.attributes_set(ino, None, now);
        // No reply to a write or an open tells it, and who executes the file is not made to ask.
        self.files.attributes_are_stale(ino);
        Ok(())
    }
}

/// The mode to set if this request clears set-id bits, `None` if there is nothing to clear.
fn mode_without_set_ids(inode: &Inode, caller: &Caller, set: &SetAttributes) -> Option<u32> {
    let owner = set.uid.is_some() || set.gid.is_some();
    let size = set.size.is_some() && !caller.is_privileged();
    let empty = *set == SetAttributes::default();
    if (owner || size || empty) && !inode.is_dir() { without_set_ids(inode, caller) } else { None }
}

/// Set-gid without the group's execute bit is not a privilege (it once marked mandatory locking): the members of the group
/// keep it, others do not, as everywhere since Linux 6.2.
fn without_set_ids(inode: &Inode, caller: &Caller) -> Option<u32> {
    let mut mode = inode.mode & !libc::S_ISUID;
    let may_keep = || caller.is_privileged() || caller.is_in_group(inode.gid);
    if mode & libc::S_ISGID != 0 && (mode & libc::S_IXGRP != 0 || !may_keep()) {
        mode &= !libc::S_ISGID;
    }
    (mode != inode.mode).then_some(mode)
}
