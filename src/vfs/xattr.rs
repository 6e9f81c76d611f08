//! Extended attributes: `getxattr`, `setxattr`, `listxattr`, `removexattr`.

use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::{Caller, Result, Vfs, errno};
use crate::clock;
use crate::id::InodeId;
use crate::meta::acl;
use crate::meta::xattr::{LABEL, POLICY, SetMode, SetXattr, TARGETS, is_supported};

/// Answers the virtual attribute `user.tandemfs.targets`.
pub trait Targets: Send + Sync {
    /// Where `ino` is safe, for example `aws=safe oss=pending`.
    fn targets(&self, ino: InodeId) -> crate::meta::Result<String>;
}

impl Vfs {
    /// Says who answers `user.tandemfs.targets`; the first word stands.
    pub fn answer_targets(&self, targets: Box<dyn Targets>) {
        let _ = self.targets.set(targets);
    }

    /// The value of an attribute.
    ///
    /// While no file has a label of SELinux, labels are not supported (`EOPNOTSUPP`), as on most filesystems that are not a
    /// kernel's own: then `ls -l` asks for that of one file and not of each (coreutils, `getfilecon_cache`), and the kernel
    /// never caches an attribute for FUSE.
    pub fn getxattr(&self, ino: InodeId, name: &[u8]) -> Result<Vec<u8>> {
        let refused = |error: crate::meta::Error| errno("getxattr", ino, &error);
        if name == TARGETS {
            let inode = self.meta.inode(ino).map_err(refused)?;
            return match self.targets.get() {
                Some(targets) if inode.is_file() => Ok(targets.targets(ino).map_err(refused)?.into_bytes()),
                _ => Err(Errno::NODATA),
            };
        }
        if !is_supported(name) {
            return Err(Errno::OPNOTSUPP);
        }
        match self.meta.xattr(ino, name).map_err(refused) {
            Err(Errno::NODATA) if name == LABEL && !self.has_labels.load(Ordering::Relaxed) => Err(Errno::OPNOTSUPP),
            answer => answer,
        }
    }

    /// The names of all attributes, each followed by a NUL. The virtual one is not among them, so that copies leave it.
    pub fn listxattr(&self, ino: InodeId) -> Result<Vec<u8>> {
        let names = self.meta.xattr_names(ino).map_err(|error| errno("listxattr", ino, &error))?;
        Ok(names.into_iter().flat_map(|name| name.into_iter().chain([0])).collect())
    }

    /// Sets an attribute.
    pub fn setxattr(&self, caller: &Caller, ino: InodeId, name: &[u8], value: &[u8], mode: SetMode) -> Result<()> {
        let mut clear_set_gid = false;
        if name == acl::ACCESS && !caller.is_privileged() {
            let inode = self.meta.inode(ino).map_err(|error| errno("setxattr", ino, &error))?;
            clear_set_gid = inode.mode & libc::S_ISGID != 0 && !caller.is_in_group(inode.gid);
        }
        if name == POLICY {
            self.check_stated(value)?;
        }
        let time = clock::now();
        let request = SetXattr { ino, name, value, mode, clear_set_gid, time };
        let inode = self.write("setxattr", ino, |tx| tx.set_xattr(&request))?;
        if name == POLICY {
            self.states(ino, Some(value));
        }
        if name == LABEL {
            self.has_labels.store(true, Ordering::Relaxed);
        }
        self.named(&inode);
        Ok(())
    }

    /// Removes an attribute.
    pub fn removexattr(&self, ino: InodeId, name: &[u8]) -> Result<()> {
        let inode = self.write("removexattr", ino, |tx| tx.remove_xattr(ino, name, clock::now()))?;
        if name == POLICY {
            self.states(ino, None);
        }
        self.named(&inode);
        Ok(())
    }
}
