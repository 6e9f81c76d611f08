//! Attributes that `chmod`, `chown` and `utimens` set.
//!
//! Owns: the row and its record; that `chmod` and the access control list agree.
//! Does not own: size (O3: content), which set-id bits a caller may keep (`vfs::attr`), times of a live session (`write`).

use super::acl::{self, Acl};
use super::inode::Inode;
use super::{Result, Tx, xattr};
use crate::clock::Timestamp;
use crate::format::record::Change;
use crate::id::InodeId;

/// New values; absent ones stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AttributeChange {
    /// Permission and set-id bits; type bits are ignored.
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub atime: Option<Timestamp>,
    pub mtime: Option<Timestamp>,
}

impl AttributeChange {
    /// True if nothing would change, ctime neither.
    pub fn is_empty(&self) -> bool {
        *self == AttributeChange::default()
    }
}

impl Tx<'_> {
    /// Sets attributes of `ino` at `time`, which becomes its ctime. An inode without a name gets no record.
    pub fn set_attributes(&mut self, ino: InodeId, change: &AttributeChange, time: Timestamp) -> Result<Inode> {
        let mut inode = self.inode(ino)?;
        if change.is_empty() {
            return Ok(inode);
        }
        let AttributeChange { mode, uid, gid, atime, mtime } = *change;
        let mut mode = mode.map(|mode| inode.file_type() | mode & 0o7777);
        if let Some(new_mode) = mode
            && self.change_mode_with_list(&mut inode, new_mode, time)?
        {
            mode = None;
        }
        inode.uid = uid.unwrap_or(inode.uid);
        inode.gid = gid.unwrap_or(inode.gid);
        inode.mode = mode.unwrap_or(inode.mode);
        inode.atime = atime.unwrap_or(inode.atime);
        inode.mtime = mtime.unwrap_or(inode.mtime);
        inode.ctime = time;
        let rest = AttributeChange { mode, ..*change };
        if inode.nlink > 0 && !rest.is_empty() {
            let seq = self.append(&Change::Setattr { ino, mode, uid, gid, atime, mtime, ctime: time })?;
            inode.last_seq = seq;
            if inode.is_dir() && mtime.is_some() {
                // The times of a directory belong to the highest seq that set them (O7).
                inode.times_seq = seq;
            }
        }
        inode.update(self)?;
        Ok(inode)
    }

    /// `chmod` of a file with an access control list changes both, in one record. False if it has none.
    fn change_mode_with_list(&mut self, inode: &mut Inode, mode: u32, ctime: Timestamp) -> Result<bool> {
        let Some(value) = self.find_xattr(inode.ino, acl::ACCESS)? else { return Ok(false) };
        let Some(list) = Acl::decode(&value)? else { return Ok(false) };
        let value = list.with_permissions(mode).encode();
        xattr::store(self, inode.ino, acl::ACCESS, &value)?;
        inode.mode = mode;
        if inode.nlink > 0 {
            let name = acl::ACCESS.to_vec();
            inode.last_seq = self.append(&Change::Setxattr { ino: inode.ino, name, value, mode: Some(mode), ctime })?;
        }
        Ok(true)
    }
}
