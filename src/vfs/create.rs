//! New inodes and new names: `mknod`, `mkdir`, `symlink`, `link`; `create` is `mknod` and then open.

use super::{Attributes, Caller, Result, Vfs, errno, place};
use crate::clock;
use crate::id::InodeId;
use crate::meta::create::NewNode;

impl Vfs {
    /// Makes a regular file, directory, fifo, socket or device node, by the type bits of `mode`.
    pub fn make_node(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        mode: u32,
        umask: u32,
        rdev: u32,
    ) -> Result<Attributes> {
        let place = place(parent, name)?;
        let (uid, gid, time) = (caller.uid, caller.gid, clock::now());
        let new = NewNode { place, mode, rdev, uid, gid, umask, time };
        let inode = self.write("create", parent, |tx| tx.make_node(&new))?;
        Ok(self.attributes(inode))
    }

    /// Makes a symbolic link to `target`.
    pub fn make_symlink(&self, caller: &Caller, parent: InodeId, name: &[u8], target: &[u8]) -> Result<Attributes> {
        let place = place(parent, name)?;
        let (uid, gid, time) = (caller.uid, caller.gid, clock::now());
        let new = NewNode { place, mode: libc::S_IFLNK | 0o777, rdev: 0, uid, gid, umask: 0, time };
        let inode = self.write("symlink", parent, |tx| tx.make_symlink(&new, target))?;
        Ok(self.attributes(inode))
    }

    /// Gives `ino` one more name. A dirty file takes its place in history first (O1).
    pub fn link(&self, ino: InodeId, parent: InodeId, name: &[u8]) -> Result<Attributes> {
        let place = place(parent, name)?;
        let inode = self
            .files
            .with_claims(&[ino], |claims| self.meta.write(|tx| tx.link(ino, place, claims.first(), clock::now())))
            .map_err(|error| errno("link", parent, &error))?;
        self.named(&inode);
        Ok(self.attributes(inode))
    }
}
