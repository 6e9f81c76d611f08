//! Names that go, and inodes that go with their last name.
//!
//! Owns: `unlink`, `rmdir`, orphans: an inode without a name lives until the kernel has forgotten it.
//! Does not own: knowing when that is (`vfs::orphans`), releasing references of a given up manifest (`meta::orphan`, D8).

use rustix::io::Errno;

use super::inode::Inode;
use super::namespace::{Place, entry, is_empty};
use super::{Meta, Result, Tx};
use crate::clock::Timestamp;
use crate::format::record::Change;
use crate::id::{InodeId, Seq};

impl Tx<'_> {
    /// Removes a name of a non-directory. Returns the inode as it is now: with `nlink` 0 it is an orphan.
    pub fn unlink(&mut self, place: Place<'_>, time: Timestamp) -> Result<Inode> {
        let mut parent = self.directory(place.parent)?;
        let mut inode = self.named_inode(entry(self.conn(), place)?)?;
        if inode.is_dir() {
            return Err(Errno::ISDIR.into());
        }
        let change = Change::Unlink { parent: place.parent, name: place.name.bytes().to_vec(), ino: inode.ino, time };
        let seq = self.append(&change)?;
        self.delete_entry(place)?;
        self.lose_name(&mut inode, time, seq)?;
        parent.names_changed(time, seq);
        parent.update(self)?;
        Ok(inode)
    }

    /// Removes an empty directory. Returns the inode, an orphan now.
    pub fn rmdir(&mut self, place: Place<'_>, time: Timestamp) -> Result<Inode> {
        let mut parent = self.directory(place.parent)?;
        let mut inode = self.named_inode(entry(self.conn(), place)?)?;
        if !inode.is_dir() {
            return Err(Errno::NOTDIR.into());
        }
        if !is_empty(self.conn(), inode.ino)? {
            return Err(Errno::NOTEMPTY.into());
        }
        let change = Change::Rmdir { parent: place.parent, name: place.name.bytes().to_vec(), ino: inode.ino, time };
        let seq = self.append(&change)?;
        self.delete_entry(place)?;
        self.lose_name(&mut inode, time, seq)?;
        parent.nlink -= 1;
        parent.names_changed(time, seq);
        parent.update(self)?;
        Ok(inode)
    }

    /// Takes one name from `inode` and writes its row. If it was the last, its slots become void, as one unit with
    /// record `seq` (O1). The caller removed the entry.
    pub(super) fn lose_name(&mut self, inode: &mut Inode, time: Timestamp, seq: Seq) -> Result<()> {
        inode.nlink = if inode.is_dir() { 0 } else { inode.nlink - 1 };
        inode.named(time, seq);
        inode.update(self)?;
        if inode.nlink == 0 && inode.is_file() {
            self.void_slots_of_unnamed(inode.ino, seq)?;
        }
        Ok(())
    }

    /// Removes those of `inodes` that have no name: rows now, references of their content in the background (D8).
    /// Returns how many were removed. No record: replay removed them with their last name.
    pub fn remove_orphans(&mut self, inodes: &[InodeId]) -> Result<usize> {
        let mut removed = 0;
        for &ino in inodes {
            let Some(inode) = self.find_inode(ino)?.filter(|inode| inode.nlink == 0) else { continue };
            if let Some(manifest) = inode.manifest {
                self.conn().prepare_cached("INSERT INTO orphan (manifest) VALUES (?1)")?.execute([manifest])?;
            }
            self.conn().prepare_cached("DELETE FROM xattr WHERE ino = ?1")?.execute([ino])?;
            self.conn().prepare_cached("DELETE FROM symlink WHERE ino = ?1")?.execute([ino])?;
            inode.delete(self)?;
            removed += 1;
        }
        Ok(removed)
    }
}

/// Orphans removed in one transaction, so that it holds the writer below 2 ms (D8).
const REMOVED_AT_ONCE: usize = 32;

impl Meta {
    /// Removes all inodes without a name: at mount, when nobody can have one open. Returns how many there were.
    pub fn remove_all_orphans(&self) -> Result<usize> {
        let mut removed = 0;
        loop {
            let orphans = self.orphans(REMOVED_AT_ONCE)?;
            if orphans.is_empty() {
                return Ok(removed);
            }
            removed += self.write(|tx| tx.remove_orphans(&orphans))?;
        }
    }

    /// Up to `limit` inodes without a name, ascending. At mount nobody has one open: all may be removed.
    pub fn orphans(&self, limit: usize) -> Result<Vec<InodeId>> {
        self.read(|conn| {
            let mut select = conn.prepare_cached("SELECT ino FROM inode WHERE nlink = 0 ORDER BY ino LIMIT ?1")?;
            let rows = select.query_map([limit as i64], |row| row.get(0))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }
}
