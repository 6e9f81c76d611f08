//! Open files: open, read, write, flush, release, fsync, fallocate, lseek.
//!
//! Owns: what the flags of open(2) mean, waiting for local space, when an operation may block its thread.
//! Does not own: content (`write`, `read`), how the kernel does an open's I/O (`write::iomode`).
//!
//! A handle carries nothing but flags: all state hangs on the inode, because any number of handles share it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::acknowledge::unwound;
use super::{Attributes, Caller, Result, Vfs, errno};
use crate::chunk::space::Admission;
use crate::clock::{self, Instant};
use crate::config::Policy;
use crate::id::InodeId;
use crate::meta::inode::Inode;
use crate::read::Outcome;
use crate::testing::failpoint::{self, Point};
use crate::write::io::Fallocate;
use crate::write::iomode::Wish;
use crate::write::opening::{Handle, Kernel};

/// How often it looks whether space came back without a notice.
const SPACE_LOOK: Duration = Duration::from_millis(200);

/// What a write came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// So many bytes are in the session: all, but for what no file can have.
    Done(usize),
    /// Not written, or not synced yet: the caller takes the data off the request and goes on with
    /// [`Vfs::write_later`], which may take a while.
    Later,
}

/// A regular file to be made and opened.
#[derive(Debug, Clone, Copy)]
pub struct NewFile<'a> {
    pub parent: InodeId,
    pub name: &'a [u8],
    /// Permission bits.
    pub mode: u32,
    pub umask: u32,
    /// As of open(2).
    pub flags: i32,
}

/// The kernel's side of an open that makes its file first.
pub trait Creating: Kernel {
    /// The file is there; it will be opened now.
    fn created(&mut self, attributes: &Attributes);
}

/// What the flags of open(2) ask for. `fresh`: the file is new, or emptied by this open.
fn wish(flags: i32, fresh: bool) -> Wish {
    let access = flags & libc::O_ACCMODE;
    Wish {
        reads: access != libc::O_WRONLY,
        writes: access != libc::O_RDONLY,
        fresh,
        appends: flags & libc::O_APPEND != 0,
        syncs: flags & (libc::O_SYNC | libc::O_DSYNC) != 0,
        direct: flags & libc::O_DIRECT != 0,
        unseen: true,
    }
}

/// True if there is no room on the local disk, for now: it may come with patience ([`Vfs::with_room`]).
pub fn is_full(error: Errno) -> bool {
    matches!(error, Errno::NOSPC | Errno::DQUOT)
}

/// Bytes that `fallocate(2)` takes.
fn room_for(range: &Range<u64>, mode: i32) -> u64 {
    if mode & !libc::FALLOC_FL_KEEP_SIZE == 0 { range.end.saturating_sub(range.start) } else { 0 }
}

/// True if FLUSH of a handle may have something to say.
pub(super) fn flushes(handle: u64) -> bool {
    Handle::from_number(handle).flushes()
}

/// A file that was made by an open that has not succeeded yet: without that, no reply tells the kernel of its name, and it
/// remembers for a year that there is none.
struct Made<'a> {
    vfs: &'a Vfs,
    parent: InodeId,
    name: &'a [u8],
    ino: InodeId,
}

impl Made<'_> {
    /// The kernel was told.
    fn opened(self) {
        std::mem::forget(self);
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        // While it makes the name, the kernel lets nobody else at it. A panic is not followed by work that may end in one.
        if !std::thread::panicking() && self.vfs.unlink(self.parent, self.name).is_ok() {
            // The kernel never heard of the inode.
            self.vfs.forget(self.ino);
        }
        self.vfs.files().entry_is_stale(self.parent, self.name);
    }
}

impl Vfs {
    /// Opens a regular file; `kernel` is answered, unless this fails.
    pub fn open(&self, caller: &Caller, ino: InodeId, flags: i32, kernel: &mut dyn Kernel) -> Result<()> {
        let inode = self.meta().inode(ino).map_err(|error| errno("open", ino, &error))?;
        if !inode.is_file() {
            return Err(if inode.is_dir() { Errno::ISDIR } else { Errno::NXIO });
        }
        let truncates = flags & libc::O_TRUNC != 0;
        if truncates && !caller.is_privileged() {
            self.clear_set_ids(caller, ino)?;
        }
        let wish = Wish { unseen: self.may_be_unseen(ino)?, ..wish(flags, truncates) };
        self.files()
            .open(ino, inode.parent, &wish, truncates.then(clock::now), kernel)
            .map_err(|error| errno("open", ino, &error))
    }

    /// P1: where `close` or `fsync` wait for targets, every write must be ours to cut.
    fn may_be_unseen(&self, ino: InodeId) -> Result<bool> {
        let policies = self.policies(ino)?;
        let local = |policy| matches!(policy, Policy::Cached | Policy::Local);
        Ok(local(policies.close) && local(policies.fsync))
    }

    /// Makes a regular file and opens it. Its birth waits for its first content (O2).
    pub fn create(&self, caller: &Caller, new: &NewFile<'_>, kernel: &mut dyn Creating) -> Result<()> {
        let attributes = {
            let _creating = self.files().births().creating();
            let mode = libc::S_IFREG | new.mode;
            let attributes = self.make_node(caller, new.parent, new.name, mode, new.umask, 0)?;
            self.files().births().born(attributes.inode.ino, clock::instant());
            attributes
        };
        let Inode { ino, parent, .. } = attributes.inode;
        let made = Made { vfs: self, parent, name: new.name, ino };
        kernel.created(&attributes);
        failpoint::check(Point::Create).map_err(|_| Errno::IO)?;
        let wish = Wish { unseen: self.may_be_unseen(ino)?, ..wish(new.flags, true) };
        self.files().open(ino, parent, &wish, None, kernel).map_err(|error| errno("create", ino, &error))?;
        made.opened();
        Ok(())
    }

    /// Reads `size` bytes from `offset` into `buffer`, fewer at the end of the file.
    pub fn read(&self, ino: InodeId, offset: u64, size: u32, buffer: &mut Vec<u8>) -> Result<Outcome> {
        let range = offset..offset.saturating_add(size.into());
        self.reader().read(ino, range, buffer).map_err(|error| errno("read", ino, &error))
    }

    /// Writes `data` at `offset`, if that takes no waiting.
    pub fn write_now(&self, ino: InodeId, handle: u64, offset: u64, data: &[u8]) -> Result<Written> {
        if Handle::from_number(handle).syncs || self.space().admit(data.len() as u64) != Admission::Go {
            return Ok(Written::Later);
        }
        match self.files().write(ino, offset, data).map_err(|error| errno("write", ino, &error)) {
            // The disk says it itself, or inodes or descriptors are short: eviction and sealing may help.
            Err(error) if is_full(error) => Ok(Written::Later),
            result => result.map(Written::Done),
        }
    }

    /// Writes `data` at `offset` when there is space for it, or `ENOSPC`; syncs it if the handle says so. Returns how much,
    /// as [`Written::Done`].
    pub async fn write_later(self: Arc<Self>, ino: InodeId, handle: u64, offset: u64, data: Vec<u8>) -> Result<usize> {
        let bytes = data.len() as u64;
        let write = move |vfs: &Vfs| vfs.files().write(ino, offset, &data).map_err(|error| errno("write", ino, &error));
        let written = self.clone().with_room(bytes, write).await?;
        if Handle::from_number(handle).syncs {
            self.fsync_later(ino).await?;
        }
        Ok(written)
    }

    /// Makes a change that found no room on the local disk, `bytes` of it content, when there is room; an error when that
    /// takes too long. A change that fails so has changed nothing.
    pub async fn with_room<T: Send + 'static>(
        self: Arc<Self>,
        bytes: u64,
        mut change: impl FnMut(&Vfs) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let deadline = clock::instant() + self.space().wait();
        loop {
            if bytes > 0 {
                self.wait_for_space(bytes, deadline).await?;
            }
            let vfs = self.clone();
            let attempt = move || {
                let mut changed = change(&vfs);
                if changed.as_ref().is_err_and(|error| is_full(*error)) {
                    vfs.space().wanted();
                    if let Err(error) = vfs.files().make_room() {
                        changed = Err(errno("make room", InodeId::ROOT, &error));
                    }
                }
                (change, changed)
            };
            let (again, changed) = crate::aside::blocking(attempt).await.map_err(unwound)?;
            match changed {
                Err(error) if is_full(error) && clock::instant() < deadline => {
                    let freed = self.space().freed.notified();
                    let _ = clock::timeout(SPACE_LOOK, freed).await;
                }
                changed => return changed,
            }
            change = again;
        }
    }

    async fn wait_for_space(&self, bytes: u64, deadline: Instant) -> Result<()> {
        loop {
            let freed = self.space().freed.notified();
            match self.space().admit(bytes) {
                Admission::Go => return Ok(()),
                Admission::Delay(delay) => {
                    clock::sleep(delay).await;
                    return Ok(());
                }
                Admission::Full => {
                    let left = deadline.since(clock::instant());
                    if left.is_zero() {
                        return Err(self.space().refusal());
                    }
                    // A timer beside the notice: space may come back without us (another program's file goes).
                    let _ = clock::timeout(left.min(SPACE_LOOK), freed).await;
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
    pub fn release(&self, ino: InodeId, handle: u64) -> Result<()> {
        self.files().release(ino, Handle::from_number(handle)).map_err(|error| errno("release", ino, &error))
    }

    /// `fsync(2)` under the policy `local`: blocks for as long as the disk takes.
    pub fn fsync(&self, ino: InodeId) -> Result<()> {
        let deadline = clock::instant() + self.policies(ino)?.deadline;
        self.files().fsync(ino, deadline).map_err(|error| errno("fsync", ino, &error))
    }

    /// `fallocate(2)` when there is room for it; more than could ever be had is refused at once.
    pub async fn fallocate_later(self: Arc<Self>, ino: InodeId, range: Range<u64>, mode: i32) -> Result<()> {
        let takes = room_for(&range, mode);
        if !self.space().could_hold(takes) {
            return Err(Errno::NOSPC);
        }
        self.with_room(takes, move |vfs| vfs.fallocate_admitted(ino, range.clone(), mode)).await
    }

    /// `fallocate(2)`, if that takes no waiting.
    pub fn fallocate(&self, ino: InodeId, range: Range<u64>, mode: i32) -> Result<()> {
        let takes = room_for(&range, mode);
        if takes > 0 && self.space().admit(takes) == Admission::Full {
            return Err(Errno::NOSPC);
        }
        self.fallocate_admitted(ino, range, mode)
    }

    fn fallocate_admitted(&self, ino: InodeId, range: Range<u64>, mode: i32) -> Result<()> {
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let operation = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => Fallocate::Allocate { keep_size },
            libc::FALLOC_FL_PUNCH_HOLE if keep_size => Fallocate::Zero { keep_size },
            libc::FALLOC_FL_ZERO_RANGE => Fallocate::Zero { keep_size },
            _ => return Err(Errno::OPNOTSUPP),
        };
        self.files().fallocate(ino, range, operation).map_err(|error| errno("fallocate", ino, &error))
    }
}
