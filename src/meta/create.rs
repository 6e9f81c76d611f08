//! New inodes and new names for old ones.
//!
//! Owns: `create`, `mknod`, `mkdir`, `symlink`, `link`; what a new inode inherits from its directory: the group
//! (set-gid directories) and access control lists.
//! Does not own: opening what was created (`write`).

use rusqlite::params;
use rustix::io::Errno;

use super::acl::{self, Acl};
use super::inode::Inode;
use super::namespace::{Place, find_entry};
use super::slot::SlotRequest;
use super::{Result, Tx, xattr};
use crate::clock::Timestamp;
use crate::format::record::{Change, Xattr};
use crate::id::{Generation, InodeId, Seq};

/// Names that one inode may have: what `st_nlink` of every program can hold.
pub const LINK_MAX: u32 = i32::MAX as u32;
/// Bytes of the longest target of a symbolic link (`PATH_MAX` less the final NUL).
pub const SYMLINK_MAX: usize = 4095;

/// An inode that shall come into being.
#[derive(Debug, Clone, Copy)]
pub struct NewNode<'a> {
    pub place: Place<'a>,
    /// With type bits; permissions as the program asked for them, the umask not yet applied.
    pub mode: u32,
    /// As in `fuse_attr`; only devices have one.
    pub rdev: u32,
    /// The caller's.
    pub uid: u32,
    /// The caller's; a set-gid directory overrides it.
    pub gid: u32,
    /// The caller's; a default access control list overrides it.
    pub umask: u32,
    pub time: Timestamp,
}

impl Tx<'_> {
    /// Makes a regular file, fifo, socket, device node or directory, by the type bits of `new.mode`.
    pub fn make_node(&mut self, new: &NewNode<'_>) -> Result<Inode> {
        let parent = self.parent_of_new(new.place)?;
        let is_dir = new.mode & libc::S_IFMT == libc::S_IFDIR;
        if is_dir && parent.nlink >= LINK_MAX {
            return Err(Errno::MLINK.into());
        }
        let set_gid = parent.mode & libc::S_ISGID != 0;
        let gid = if set_gid { parent.gid } else { new.gid };
        let mut mode = new.mode;
        if is_dir && set_gid {
            mode |= libc::S_ISGID;
        }
        let mut xattrs: Vec<Xattr> = Vec::new();
        match self.find_xattr(parent.ino, acl::DEFAULT)? {
            None => mode &= !(new.umask & 0o777),
            Some(default) => {
                if let Some(list) = Acl::decode(&default)? {
                    let inherited = list.inherit(mode);
                    mode = inherited.mode;
                    xattrs.extend(inherited.access.map(|list| (acl::ACCESS.to_vec(), list.encode())));
                }
                if is_dir {
                    xattrs.push((acl::DEFAULT.to_vec(), default));
                }
            }
        }
        let is_device = matches!(new.mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK);
        let rdev = if is_device { new.rdev } else { 0 };
        let ino = self.next_inode();
        let (dir, name, uid, time) = (new.place.parent, new.place.name.bytes().to_vec(), new.uid, new.time);
        let change = if is_dir {
            Change::Mkdir { parent: dir, name, ino, mode, uid, gid, time, xattrs: xattrs.clone() }
        } else {
            Change::Create { parent: dir, name, ino, mode, uid, gid, rdev, time, xattrs: xattrs.clone() }
        };
        let seq = self.append(&change)?;
        for (name, value) in &xattrs {
            xattr::store(self, ino, name, value)?;
        }
        self.insert_new(parent, new.place, seq, Inode { mode, gid, rdev, ..new.inode(ino, seq) })
    }

    /// Makes a symbolic link; permissions of `new.mode` are not looked at.
    pub fn make_symlink(&mut self, new: &NewNode<'_>, target: &[u8]) -> Result<Inode> {
        if target.is_empty() {
            return Err(Errno::NOENT.into());
        }
        if target.len() > SYMLINK_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        let parent = self.parent_of_new(new.place)?;
        let gid = if parent.mode & libc::S_ISGID != 0 { parent.gid } else { new.gid };
        let ino = self.next_inode();
        let seq = self.append(&Change::Symlink {
            parent: parent.ino,
            name: new.place.name.bytes().to_vec(),
            ino,
            uid: new.uid,
            gid,
            target: target.to_vec(),
            time: new.time,
        })?;
        self.conn()
            .prepare_cached("INSERT INTO symlink (ino, target) VALUES (?1, ?2)")?
            .execute(params![ino, target])?;
        let inode = Inode { mode: libc::S_IFLNK | 0o777, gid, size: target.len() as u64, ..new.inode(ino, seq) };
        self.insert_new(parent, new.place, seq, inode)
    }

    /// Gives `ino` one more name. `slot`: the place that its content takes before, if it is dirty (O1).
    pub fn link(
        &mut self,
        ino: InodeId,
        place: Place<'_>,
        slot: Option<&SlotRequest>,
        time: Timestamp,
    ) -> Result<Inode> {
        let mut parent = self.parent_of_new(place)?;
        let before = self.inode(ino)?;
        match before {
            inode if inode.is_dir() => return Err(Errno::PERM.into()),
            // Its last name is gone: linkat(2) of /proc/self/fd would bring back what the journal has already buried.
            inode if inode.nlink == 0 => return Err(Errno::NOENT.into()),
            inode if inode.nlink >= LINK_MAX => return Err(Errno::MLINK.into()),
            _ => {}
        }
        let mut inode = self.reserve_before_naming(before, slot)?;
        let seq = self.append(&Change::Link { parent: place.parent, name: place.name.bytes().to_vec(), ino, time })?;
        self.insert_entry(place, ino)?;
        inode.nlink += 1;
        inode.parent = place.parent;
        inode.named(time, seq);
        inode.update(self)?;
        parent.names_changed(time, seq);
        parent.update(self)?;
        Ok(inode)
    }

    /// Reserves `slot` and returns the row as it is then: the reservation wrote size and times into it (O1).
    ///
    /// Also where the name belongs to another inode by now: whoever claimed the slot counts it as reserved.
    pub(super) fn reserve_before_naming(&mut self, inode: Inode, slot: Option<&SlotRequest>) -> Result<Inode> {
        let Some(slot) = slot else { return Ok(inode) };
        self.reserve_slot(slot)?;
        self.inode(inode.ino)
    }

    /// The directory of a new name: alive, and without that name.
    fn parent_of_new(&self, place: Place<'_>) -> Result<Inode> {
        let parent = self.directory(place.parent)?;
        match find_entry(self.conn(), place)? {
            None => Ok(parent),
            Some(_) => Err(Errno::EXIST.into()),
        }
    }

    fn insert_new(&mut self, mut parent: Inode, place: Place<'_>, seq: Seq, inode: Inode) -> Result<Inode> {
        inode.insert(self)?;
        self.insert_entry(place, inode.ino)?;
        if inode.is_dir() {
            parent.nlink += 1;
        }
        parent.names_changed(inode.mtime, seq);
        parent.update(self)?;
        Ok(inode)
    }
}

impl NewNode<'_> {
    fn inode(&self, ino: InodeId, seq: Seq) -> Inode {
        let is_dir = self.mode & libc::S_IFMT == libc::S_IFDIR;
        Inode {
            ino,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            nlink: if is_dir { 2 } else { 1 },
            size: 0,
            generation: Generation(0),
            atime: self.time,
            mtime: self.time,
            ctime: self.time,
            times_seq: if is_dir { seq } else { Seq::ZERO },
            manifest: None,
            last_seq: seq,
            parent: self.place.parent,
            allocated: 0,
        }
    }
}
