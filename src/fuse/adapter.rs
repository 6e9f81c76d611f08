//! Kernel request → `vfs` call → reply. No decisions.
//!
//! A reply object is answered outside of [`Adapter::run`], which catches the panics; one that is dropped unanswered
//! answers `EIO` itself.

use std::any::Any;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};
use parking_lot::Mutex;
use rustix::io::Errno;

use super::attr::{GENERATION, TTL, file_attr, file_type, inode, no_entry, set_time};
use super::errno::reply as errno;
use super::io;
use super::operation::{Operation, Requests};
use super::session::Options;
use crate::clock;
use crate::meta::namespace::NAME_MAX;
use crate::meta::xattr::SetMode;
use crate::vfs::acknowledge::Flushed;
use crate::vfs::attr::SetAttributes;
use crate::vfs::io::{NewFile, is_full};
use crate::vfs::rename::RenameMode;
use crate::vfs::{Attributes, Caller, Result, Vfs, statfs};

/// Bytes of the largest read or write request: what the kernel's page limit allows.
const MAX_WRITE: u32 = 1 << 20;
/// Requests in the background (read-ahead, `RELEASE`, `FORGET`) before the kernel calls us congested.
const MAX_BACKGROUND: u16 = 64;

/// What we want of the kernel; each alone, as an older kernel lacks some.
///
/// Not among them, on purpose: `WRITEBACK_CACHE` (excludes passthrough, delays writes past our ordering), `POSIX_LOCKS` and
/// `FLOCK_LOCKS` (the kernel does both right by itself), `SETXATTR_EXT` (panics in this FUSE crate), `ALLOW_IDMAP`.
const CAPABILITIES: [InitFlags; 10] = [
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    InitFlags::FUSE_NO_OPENDIR_SUPPORT,
];

/// Serves the requests of one mount.
pub(super) struct Adapter {
    pub(super) vfs: Arc<Vfs>,
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) panics: Arc<AtomicU64>,
    requests: Arc<Requests>,
    /// The kernel needs no OPENDIR: it caches listings and drops them when it changes a directory itself.
    no_opendir: bool,
    passthrough: bool,
    /// The kernel agreed to it.
    has_passthrough: Arc<AtomicBool>,
}

impl Adapter {
    pub(super) fn new(vfs: Arc<Vfs>, options: &Options, has_passthrough: Arc<AtomicBool>) -> Adapter {
        let Options { runtime, panics, requests, passthrough, .. } = options.clone();
        Adapter { vfs, runtime, panics, requests, no_opendir: false, passthrough, has_passthrough }
    }

    /// Runs one operation; a panic in it is an input/output error and counted.
    fn run<T>(
        &self,
        operation: Operation,
        body: impl FnOnce(&Vfs) -> Result<T>,
    ) -> std::result::Result<T, fuser::Errno> {
        self.asked(operation, || body(&self.vfs)).map_err(errno)
    }

    /// The same, with the errno as the filesystem has it. A program asks for something: what can wait keeps out of its way.
    pub(super) fn asked<T>(&self, operation: Operation, body: impl FnOnce() -> Result<T>) -> Result<T> {
        self.requests.count(operation);
        self.vfs.files().programs().ask(clock::instant());
        catch(&self.panics, operation, body)
    }

    /// As [`Adapter::run`], for what no program waits for.
    fn run_behind<T>(
        &self,
        operation: Operation,
        body: impl FnOnce(&Vfs) -> Result<T>,
    ) -> std::result::Result<T, fuser::Errno> {
        self.requests.count(operation);
        catch(&self.panics, operation, || body(&self.vfs)).map_err(errno)
    }

    fn reply_entry(&self, operation: Operation, reply: ReplyEntry, body: impl FnOnce(&Vfs) -> Result<Attributes>) {
        match self.run(operation, body) {
            Ok(attributes) => reply.entry(&TTL, &file_attr(&attributes), GENERATION),
            Err(errno) => reply.error(errno),
        }
    }

    fn reply_empty(&self, operation: Operation, reply: ReplyEmpty, body: impl FnOnce(&Vfs) -> Result<()>) {
        match self.run(operation, body) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    /// For operations that wait for the disk or for targets: they must not take a request's thread away from the others.
    fn reply_empty_later(
        &self,
        operation: Operation,
        reply: ReplyEmpty,
        work: impl Future<Output = Result<()>> + Send + 'static,
    ) {
        self.later(operation, work, move |done| match done {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn reply_xattr(
        &self,
        reply: ReplyXattr,
        size: u32,
        operation: Operation,
        body: impl FnOnce(&Vfs) -> Result<Vec<u8>>,
    ) {
        match self.run(operation, body) {
            Ok(value) if size == 0 => reply.size(value.len() as u32),
            Ok(value) if value.len() > size as usize => reply.error(fuser::Errno::ERANGE),
            Ok(value) => reply.data(&value),
            Err(errno) => reply.error(errno),
        }
    }
}

/// Runs `body`; a panic in it is an input/output error and counted.
pub(super) fn catch<T>(panics: &AtomicU64, operation: Operation, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let body = || {
        failpoint(operation.name());
        body()
    };
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| panicked(panics, operation, &*panic))
}

/// Where tests make a handler panic.
#[cfg(test)]
pub(super) use super::panic_tests::failpoint;

#[cfg(not(test))]
#[inline]
pub(super) fn failpoint(_operation: &'static str) {}

/// What a caught panic is answered with.
pub(super) fn panicked<T>(panics: &AtomicU64, operation: Operation, panic: &(dyn Any + Send)) -> Result<T> {
    panics.fetch_add(1, Ordering::Relaxed);
    let said = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    let said = said.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    let operation = operation.name();
    tracing::error!(operation, panic = said, "a handler panicked; answered with an input/output error");
    Err(Errno::IO)
}

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for capability in CAPABILITIES {
            if config.add_capabilities(capability).is_err() {
                tracing::info!(?capability, "the kernel does not offer this");
            }
        }
        // Whether a backing file can really be registered shows when the connection is up.
        let passthrough = self.passthrough
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(1).is_ok();
        self.has_passthrough.store(passthrough, Ordering::Release);
        self.no_opendir = config.capabilities().contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        config.set_max_write(MAX_WRITE).map_err(|nearest| std::io::Error::other(format!("max_write {nearest}")))?;
        config
            .set_max_background(MAX_BACKGROUND)
            .map_err(|nearest| std::io::Error::other(format!("background {nearest}")))?;
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.run(Operation::Lookup, |vfs| vfs.lookup(inode(parent), name.as_bytes())) {
            Ok(attributes) => reply.entry(&TTL, &file_attr(&attributes), GENERATION),
            // The kernel remembers that there is nothing: compilers ask for the same missing files again and again.
            Err(fuser::Errno::ENOENT) => reply.entry(&TTL, &no_entry(), GENERATION),
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _request: &Request, ino: INodeNo, _lookups: u64) {
        // The kernel forgets an inode as a whole, with its last reference.
        let _ = self.run_behind(Operation::Forget, |vfs| {
            vfs.forget(inode(ino));
            Ok(())
        });
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.run(Operation::Getattr, |vfs| vfs.getattr(inode(ino))) {
            Ok(attributes) => reply.attr(&TTL, &file_attr(&attributes)),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttributes { mode, uid, gid, size, atime: atime.map(set_time), mtime: mtime.map(set_time) };
        let (caller, ino) = (caller(request), inode(ino));
        let setattr = move |vfs: &Vfs| vfs.setattr(&caller, ino, &set);
        let done = self.asked(Operation::Setattr, || setattr(&self.vfs));
        let answer = |done: Result<Attributes>| match done {
            Ok(attributes) => reply.attr(&TTL, &file_attr(&attributes)),
            Err(error) => reply.error(errno(error)),
        };
        match done {
            // A truncate makes a file. As with a write, there may be room soon.
            Err(error) if set.size.is_some() && is_full(error) => {
                self.later(Operation::Setattr, self.vfs.clone().with_room(0, setattr), answer);
            }
            done => answer(done),
        }
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.run(Operation::Readlink, |vfs| vfs.readlink(inode(ino))) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.reply_entry(Operation::Mknod, reply, |vfs| {
            vfs.make_node(&caller(request), inode(parent), name.as_bytes(), mode, umask, rdev)
        });
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let mode = libc::S_IFDIR | mode & 0o7777;
        self.reply_entry(Operation::Mkdir, reply, |vfs| {
            vfs.make_node(&caller(request), inode(parent), name.as_bytes(), mode, umask, 0)
        });
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.reply_empty(Operation::Unlink, reply, |vfs| vfs.unlink(inode(parent), name.as_bytes()));
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.reply_empty(Operation::Rmdir, reply, |vfs| vfs.rmdir(inode(parent), name.as_bytes()));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes();
        self.reply_entry(Operation::Symlink, reply, |vfs| {
            vfs.make_symlink(&caller(request), inode(parent), name.as_bytes(), target)
        });
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            flags if flags.is_empty() => RenameMode::Replace,
            RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        self.reply_empty(Operation::Rename, reply, |vfs| {
            vfs.rename((inode(parent), name.as_bytes()), (inode(new_parent), new_name.as_bytes()), mode)
        });
    }

    fn link(&self, _request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.reply_entry(Operation::Link, reply, |vfs| vfs.link(inode(ino), inode(parent), name.as_bytes()));
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let mut opening = io::Opening::new(reply);
        let new = NewFile { parent: inode(parent), name: name.as_bytes(), mode, umask, flags };
        if let Err(errno) = self.run(Operation::Create, |vfs| vfs.create(&caller(request), &new, &mut opening))
            && let Some(reply) = opening.reply
        {
            reply.error(errno);
        }
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (caller, ino) = (caller(request), inode(ino));
        let opening = Arc::new(Mutex::new(io::Opening::new(reply)));
        let opened = opening.clone();
        let open = move |vfs: &Vfs| vfs.open(&caller, ino, flags.0, &mut *opened.lock());
        let answer = move |done: Result<()>| {
            if let (Err(error), Some(reply)) = (done, opening.lock().reply.take()) {
                reply.error(errno(error));
            }
        };
        match self.asked(Operation::Open, || open(&self.vfs)) {
            // One that truncates makes a file.
            Err(error) if flags.0 & libc::O_TRUNC != 0 && is_full(error) => {
                self.later(Operation::Open, self.vfs.clone().with_room(0, open), answer);
            }
            done => answer(done),
        }
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.reply_read(inode(ino), offset, size, reply);
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // A direct write was not preceded by a SETATTR, whether the program asked for it or our answer to its open; one
        // through the page cache was, if there was anything to clear by the mode that the kernel knows: an access control list
        // may have changed that.
        let kill_set_ids = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID).then(|| caller(request));
        self.reply_write(inode(ino), handle.0, offset, data, kill_set_ids, reply);
    }

    fn flush(&self, _request: &Request, ino: INodeNo, handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        let ino = inode(ino);
        match self.run(Operation::Flush, |vfs| vfs.flush_now(ino, handle.0)) {
            Ok(Flushed::Done) => reply.ok(),
            Ok(Flushed::Later(policy)) => {
                self.reply_empty_later(Operation::Flush, reply, self.vfs.clone().flush_later(ino, policy));
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        match self.run_behind(Operation::Release, |vfs| vfs.release(inode(ino), handle.0)) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.requests.count(Operation::Fsync);
        self.reply_empty_later(Operation::Fsync, reply, self.vfs.clone().fsync_later(inode(ino)));
    }

    fn fallocate(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let (ino, range) = (inode(ino), offset..offset.saturating_add(length));
        match self.run(Operation::Fallocate, |vfs| vfs.fallocate(ino, range.clone(), mode)) {
            Ok(()) => reply.ok(),
            Err(fuser::Errno::ENOSPC | fuser::Errno::EDQUOT) => {
                self.reply_empty_later(Operation::Fallocate, reply, self.vfs.clone().fallocate_later(ino, range, mode));
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn lseek(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match self.run(Operation::Lseek, |vfs| vfs.seek(inode(ino), offset as u64, whence)) {
            Ok(offset) => reply.offset(offset as i64),
            Err(errno) => reply.error(errno),
        }
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        ino_in: INodeNo,
        _handle_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _handle_out: FileHandle,
        offset_out: u64,
        length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let copied = self.run(Operation::CopyFileRange, |vfs| {
            vfs.copy_range((inode(ino_in), offset_in), (inode(ino_out), offset_out), length)
        });
        match copied {
            Ok(Some(length)) => reply.written(length as u32),
            // For this call only, the kernel copies by itself. With ENOSYS it would never ask again.
            Ok(None) => reply.error(fuser::Errno::EOPNOTSUPP),
            Err(errno) => reply.error(errno),
        }
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _data: &[u8],
        _size: u32,
        reply: ReplyIoctl,
    ) {
        // Asked by every `isatty`.
        reply.error(fuser::Errno::ENOTTY);
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.no_opendir {
            return reply.error(fuser::Errno::ENOSYS);
        }
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
    }

    fn readdir(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.run(Operation::Readdir, |vfs| {
            vfs.read_dir(inode(ino), offset, false, |entry| {
                let node = &entry.attributes.inode;
                reply.add(INodeNo(node.ino.0), entry.offset, file_type(node.mode), OsStr::from_bytes(entry.name))
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = self.run(Operation::Readdirplus, |vfs| {
            vfs.read_dir(inode(ino), offset, true, |entry| {
                let attr = file_attr(&entry.attributes);
                reply.add(attr.ino, entry.offset, OsStr::from_bytes(entry.name), &TTL, &attr, GENERATION)
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsyncdir(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.requests.count(Operation::Fsyncdir);
        self.reply_empty_later(Operation::Fsyncdir, reply, self.vfs.clone().fsync_directory_later(inode(ino)));
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.run(Operation::Statfs, Vfs::statfs) {
            Ok(stat) => reply.statfs(
                stat.blocks,
                stat.free,
                stat.available,
                stat.inodes,
                stat.inodes_free,
                statfs::BLOCK_SIZE,
                NAME_MAX as u32,
                statfs::BLOCK_SIZE,
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            0 => SetMode::Any,
            libc::XATTR_CREATE => SetMode::Create,
            libc::XATTR_REPLACE => SetMode::Replace,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        self.reply_empty(Operation::Setxattr, reply, |vfs| {
            vfs.setxattr(&caller(request), inode(ino), name.as_bytes(), value, mode)
        });
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.reply_xattr(reply, size, Operation::Getxattr, |vfs| vfs.getxattr(inode(ino), name.as_bytes()));
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.reply_xattr(reply, size, Operation::Listxattr, |vfs| vfs.listxattr(inode(ino)));
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.reply_empty(Operation::Removexattr, reply, |vfs| vfs.removexattr(inode(ino), name.as_bytes()));
    }
}
