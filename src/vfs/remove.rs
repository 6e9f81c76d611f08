//! Names that go: `unlink`, `rmdir`, and the kernel's word that it has forgotten an inode.

use super::{Result, Vfs, place};
use crate::clock;
use crate::id::InodeId;
use crate::meta::inode::Inode;

impl Vfs {
    /// Removes a name of a non-directory.
    pub fn unlink(&self, parent: InodeId, name: &[u8]) -> Result<()> {
        let place = place(parent, name)?;
        let inode = self.write("unlink", parent, |tx| tx.unlink(place, clock::now()))?;
        self.lost_name(&inode);
        Ok(())
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: InodeId, name: &[u8]) -> Result<()> {
        let place = place(parent, name)?;
        let inode = self.write("rmdir", parent, |tx| tx.rmdir(place, clock::now()))?;
        self.lost_name(&inode);
        Ok(())
    }

    /// The kernel has dropped `ino` from its caches; it asks for it by name when it wants it again.
    pub fn forget(&self, ino: InodeId) {
        self.orphans.forgotten(ino);
    }

    /// An inode lost a name, or its last one.
    pub(super) fn lost_name(&self, inode: &Inode) {
        if inode.nlink > 0 {
            return self.named(inode);
        }
        if inode.is_file() {
            self.files.unnamed(inode.ino);
        }
        self.orphans.add(inode.ino);
    }

    /// A record changed the ctime of an inode; a later slot of it must not bring the old one back.
    pub(super) fn named(&self, inode: &Inode) {
        if inode.is_file() {
            self.files.attributes_set(inode.ino, None, inode.ctime);
        }
    }
}
