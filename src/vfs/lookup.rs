//! Finding inodes and showing them: `lookup`, `stat`, `readlink`, `fsync` of a directory.

use super::{Attributes, Result, Vfs, errno, place};
use crate::id::InodeId;

impl Vfs {
    /// The inode that `parent` has under `name`.
    pub fn lookup(&self, parent: InodeId, name: &[u8]) -> Result<Attributes> {
        let inode = self.meta.lookup(place(parent, name)?).map_err(|error| errno("lookup", parent, &error))?;
        Ok(self.attributes(inode))
    }

    /// What `stat` shows of `ino`.
    pub fn getattr(&self, ino: InodeId) -> Result<Attributes> {
        let inode = self.meta.inode(ino).map_err(|error| errno("getattr", ino, &error))?;
        Ok(self.attributes(inode))
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, ino: InodeId) -> Result<Vec<u8>> {
        self.meta.readlink(ino).map_err(|error| errno("readlink", ino, &error))
    }

    /// Waits until all names and attributes as of now survive a power cut (S1).
    pub fn sync_directory(&self, ino: InodeId) -> Result<()> {
        self.meta.sync().map_err(|error| errno("fsyncdir", ino, &error))
    }
}
