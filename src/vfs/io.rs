//! Open files: open, read, write, flush, release, fsync, fallocate, lseek.
//!
//! Owns: what a handle is, waiting for local space, when an operation may block its thread.
//! Does not own: content (`write`, `read`).
//!
//! A handle carries nothing but flags: all state hangs on the inode, because any number of handles share it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::{Attributes, Caller, Result, Vfs, errno};
use crate::chunk::space::Admission;
use crate::clock::{self, Instant};
use crate::id::InodeId;
use crate::read::Outcome;
use crate::write::io::Fallocate;

/// How often it looks whether space came back without a notice.
const SPACE_LOOK: Duration = Duration::from_millis(200);

/// An open file as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// To be given back with each operation.
    pub handle: u64,
    /// The kernel's pages of the file are still right: this mount is the only writer.
    pub keep_cache: bool,
    /// FLUSH has nothing to say: the descriptor cannot write.
    pub noflush: bool,
}

/// What a write came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// The bytes are in the session.
    Done,
    /// Not written, or not synced yet: the caller takes the data off the request and goes on with
    /// [`Vfs::write_later`], which may take a while.
    Later,
}

/// The handle may write.
const WRITES: u64 = 1;
/// Each write is synced before it returns (`O_SYNC`, `O_DSYNC`).
const SYNCS: u64 = 2;

/// True if a handle may write.
pub(super) fn writes(handle: u64) -> bool {
    handle & WRITES != 0
}

impl Vfs {
    /// Opens a regular file.
    pub fn open(&self, caller: &Caller, ino: InodeId, flags: i32) -> Result<Opened> {
        let inode = self.meta().inode(ino).map_err(|error| errno("open", ino, &error))?;
        if !inode.is_file() {
            return Err(if inode.is_dir() { Errno::ISDIR } else { Errno::NXIO });
        }
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        self.files().open(ino, inode.parent);
        if flags & libc::O_TRUNC != 0
            && let Err(error) = self.truncate_at_open(caller, ino)
        {
            let _ = self.files().release(ino);
            return Err(error);
        }
        let syncs = flags & (libc::O_SYNC | libc::O_DSYNC) != 0;
        let handle = if writes { WRITES } else { 0 } | if syncs { SYNCS } else { 0 };
        Ok(Opened { handle, keep_cache: true, noflush: !writes })
    }

    fn truncate_at_open(&self, caller: &Caller, ino: InodeId) -> Result<()> {
        self.files().truncate(ino, 0, clock::now()).map_err(|error| errno("open", ino, &error))?;
        if caller.is_privileged() { Ok(()) } else { self.clear_set_ids(caller, ino) }
    }

    /// Makes a regular file and opens it. Its birth waits for its first content (O2).
    pub fn create(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        mode: u32,
        umask: u32,
        flags: i32,
    ) -> Result<(Attributes, Opened)> {
        let _creating = self.files().births().creating();
        let attributes = self.make_node(caller, parent, name, libc::S_IFREG | mode, umask, 0)?;
        let ino = attributes.inode.ino;
        self.files().births().born(ino, clock::instant());
        let opened = self.open(caller, ino, flags & !libc::O_TRUNC)?;
        Ok((attributes, opened))
    }

    /// Reads `size` bytes from `offset` into `buffer`, fewer at the end of the file.
    pub fn read(&self, ino: InodeId, offset: u64, size: u32, buffer: &mut Vec<u8>) -> Result<Outcome> {
        let range = offset..offset.saturating_add(size.into());
        self.reader().read(ino, range, buffer).map_err(|error| errno("read", ino, &error))
    }

    /// Writes `data` at `offset`, if that takes no waiting.
    pub fn write_now(&self, ino: InodeId, handle: u64, offset: u64, data: &[u8]) -> Result<Written> {
        if handle & SYNCS != 0 || self.space().admit(data.len() as u64) != Admission::Go {
            return Ok(Written::Later);
        }
        match self.files().write(ino, offset, data).map_err(|error| errno("write", ino, &error)) {
            // The disk says it itself, or inodes or descriptors are short: eviction and sealing may help.
            Err(Errno::NOSPC) => Ok(Written::Later),
            result => result.map(|()| Written::Done),
        }
    }

    /// Writes `data` at `offset` when there is space for it, or `ENOSPC`; syncs it if the handle says so.
    pub async fn write_later(self: Arc<Self>, ino: InodeId, handle: u64, offset: u64, data: Vec<u8>) -> Result<()> {
        let deadline = clock::instant() + self.space().wait();
        let data = Arc::new(data);
        loop {
            self.wait_for_space(data.len() as u64, deadline).await?;
            let (vfs, data) = (self.clone(), data.clone());
            let write = move || {
                let written = vfs.files().write(ino, offset, &data).map_err(|error| errno("write", ino, &error));
                if written == Err(Errno::NOSPC) {
                    vfs.space().wanted();
                    vfs.files().make_room().map_err(|error| errno("write", ino, &error))?;
                }
                written
            };
            match tokio::task::spawn_blocking(write).await.unwrap_or(Err(Errno::IO)) {
                Err(Errno::NOSPC) if clock::instant() < deadline => {
                    let freed = self.space().freed.notified();
                    let _ = tokio::time::timeout(SPACE_LOOK, freed).await;
                }
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        if handle & SYNCS != 0 { self.fsync_later(ino).await } else { Ok(()) }
    }

    async fn wait_for_space(&self, bytes: u64, deadline: Instant) -> Result<()> {
        loop {
            let freed = self.space().freed.notified();
            match self.space().admit(bytes) {
                Admission::Go => return Ok(()),
                Admission::Delay(delay) => {
                    tokio::time::sleep(delay).await;
                    return Ok(());
                }
                Admission::Full => {
                    let left = deadline.since(clock::instant());
                    if left.is_zero() {
                        return Err(Errno::NOSPC);
                    }
                    // A timer beside the notice: space may come back without us (another program's file goes).
                    let _ = tokio::time::timeout(left.min(SPACE_LOOK), freed).await;
                    self.space().sample();
                }
            }
        }
    }

    /// FLUSH: a descriptor was closed; dirty content takes its place in history (O1).
    pub fn flush(&self, ino: InodeId) -> Result<()> {
        self.files().flush(ino).map_err(|error| errno("flush", ino, &error))
    }

    /// RELEASE: the last descriptor of a handle is gone.
    pub fn release(&self, ino: InodeId) -> Result<()> {
        self.files().release(ino).map_err(|error| errno("release", ino, &error))
    }

    /// `fsync(2)` under the policy `local`: blocks for as long as the disk takes.
    pub fn fsync(&self, ino: InodeId) -> Result<()> {
        let deadline = clock::instant() + self.policies(ino)?.deadline;
        self.files().fsync(ino, deadline).map_err(|error| errno("fsync", ino, &error))
    }

    /// `fallocate(2)`.
    pub fn fallocate(&self, ino: InodeId, range: Range<u64>, mode: i32) -> Result<()> {
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let operation = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => Fallocate::Allocate { keep_size },
            libc::FALLOC_FL_PUNCH_HOLE if keep_size => Fallocate::Zero { keep_size },
            libc::FALLOC_FL_ZERO_RANGE => Fallocate::Zero { keep_size },
            _ => return Err(Errno::OPNOTSUPP),
        };
        let grows = range.end.saturating_sub(range.start);
        if matches!(operation, Fallocate::Allocate { .. }) && self.space().admit(grows) == Admission::Full {
            return Err(Errno::NOSPC);
        }
        self.files().fallocate(ino, range, operation).map_err(|error| errno("fallocate", ino, &error))
    }
}
