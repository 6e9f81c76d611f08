//! POSIX meaning: what each file operation does, in terms of names and rows (`meta`) and live files (`write`).
//!
//! Owns: one method per operation, the errno that a program gets, orphans, set-id bits.
//! Does not own: the kernel's requests and replies (`fuse`), transactions (`meta`), bytes (`write`, `read`).
//!
//! Permissions are checked by the kernel (`default_permissions`), locks are kept by the kernel: one machine, it does both
//! right by itself.

pub mod acknowledge;
pub mod attr;
pub mod caller;
pub mod copy;
pub mod create;
pub mod io;
pub mod lookup;
#[cfg(test)]
mod model_tests;
pub mod orphans;
pub mod readdir;
pub mod remove;
pub mod rename;
pub mod seek;
pub mod statfs;
#[cfg(test)]
pub(crate) mod tests;
pub mod xattr;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use rustix::io::Errno;

pub use caller::Caller;

use crate::chunk::space::Space;
use crate::id::InodeId;
use crate::meta::inode::Inode;
use crate::meta::namespace::{Name, Place};
use crate::meta::{self, Meta, Tx};
use crate::read::Reader;
use crate::write::Files;
use crate::write::overlay::ALLOCATION_UNIT;

/// Result of a file operation: the errno is what the program gets.
pub type Result<T> = std::result::Result<T, Errno>;

/// The filesystem, without a kernel.
pub struct Vfs {
    meta: Arc<Meta>,
    files: Arc<Files>,
    reader: Reader,
    space: Arc<Space>,
    orphans: orphans::Orphans,
    targets: OnceLock<Box<dyn xattr::Targets>>,
    acknowledgement: OnceLock<(acknowledge::Policies, Box<dyn acknowledge::Acknowledger>)>,
    /// Some file has, or had in this mount, a label of SELinux.
    has_labels: AtomicBool,
}

/// What `stat` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    pub inode: Inode,
    /// Of 512 bytes.
    pub blocks: u64,
}

impl Vfs {
    /// Puts the filesystem together. Inodes without a name that an earlier mount left behind must be gone by now
    /// ([`Meta::remove_all_orphans`]).
    pub fn new(reader: Reader, space: Arc<Space>) -> std::io::Result<Vfs> {
        let (meta, files) = (reader.meta.clone(), reader.files.clone());
        let orphans = orphans::Orphans::start(meta.clone(), files.clone())?;
        let (targets, acknowledgement) = (OnceLock::new(), OnceLock::new());
        let has_labels = AtomicBool::new(meta.has_labels().map_err(std::io::Error::other)?);
        Ok(Vfs { meta, files, reader, space, orphans, targets, acknowledgement, has_labels })
    }

    /// The metadata store.
    pub fn meta(&self) -> &Arc<Meta> {
        &self.meta
    }

    /// The live files.
    pub fn files(&self) -> &Arc<Files> {
        &self.files
    }

    /// Reads of file content.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Local space.
    pub fn space(&self) -> &Arc<Space> {
        &self.space
    }

    /// What `stat` shows of a row that was just read.
    fn attributes(&self, inode: Inode) -> Attributes {
        let inode = self.current(inode);
        let bytes = if inode.is_file() { inode.allocated.next_multiple_of(ALLOCATION_UNIT) } else { inode.size };
        Attributes { inode, blocks: bytes.div_ceil(512) }
    }

    /// The row with what a session knows better.
    fn current(&self, mut inode: Inode) -> Inode {
        if !inode.is_file() || self.files.overlay(&mut inode) {
            return inode;
        }
        // A session may have been committed since the row was read: then the row is older than what programs have seen.
        self.meta.inode(inode.ino).unwrap_or(inode)
    }

    /// Runs a transaction for an operation on `ino`; twice, if it finds the disk full: whoever finds it so makes the reserve
    /// room for metadata (D2).
    fn write<T>(
        &self,
        operation: &str,
        ino: InodeId,
        mut body: impl FnMut(&mut Tx<'_>) -> meta::Result<T>,
    ) -> Result<T> {
        let mut written = self.meta.write(&mut body);
        if written.as_ref().is_err_and(meta::Error::is_full) {
            written = self.meta.write(body);
        }
        written.map_err(|error| errno(operation, ino, &error))
    }
}

/// The errno for a program; what stands behind an `EIO` goes to the log, because nobody else will say it.
fn errno(operation: &str, ino: InodeId, error: &meta::Error) -> Errno {
    let errno = error.errno();
    if errno == Errno::IO {
        tracing::error!(operation, inode = ino.0, %error, "answered with an input/output error");
    }
    errno
}

fn place(parent: InodeId, name: &[u8]) -> Result<Place<'_>> {
    Ok(Place { parent, name: Name::new(name)? })
}
