//! A *null FUSE filesystem*: the smallest complete pass-through daemon on the same FUSE crate, over a plain directory.
//! What it costs is the price of FUSE itself: requests, replies, and the system calls that they stand for.
//!
//! Owns: one system call or two per request, the table from node numbers to paths.
//! Does not own: anything that makes a filesystem more than that: no store, no journal, no cache of its own.
//!
//! So that the comparison is fair, it is set up as TandemFS is: the same number of threads, request sizes and
//! capabilities, names and attributes kept by the kernel without expiry, `readdirplus`, no OPENDIR, no FLUSH for
//! descriptors that cannot write. Bytes go through requests (no kernel passthrough, which is not FUSE any more).
//! Extended attributes are passed on: a filesystem that answers `ENOSYS` is never asked again and would look cheaper
//! than any that has them.
//!
//! It trusts its caller and its directory: nothing else changes that meanwhile.

mod files;
mod names;
mod nodes;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Config, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};

use nodes::Nodes;

/// Nothing but requests changes the directory: the kernel may keep what it was told.
const TTL: Duration = Duration::from_secs(365 * 24 * 3600);
/// Node numbers are never reused.
const GENERATION: Generation = Generation(0);
/// What the kernel takes for "not known" in a listing without attributes.
const UNKNOWN: INodeNo = INodeNo(0xffff_ffff);
/// As many as TandemFS has.
const THREADS: usize = 4;

/// Serves `source` at `mountpoint` until it is unmounted. `mounted` is called once requests are answered.
pub fn serve(source: &Path, mountpoint: &Path, mounted: impl FnOnce()) -> io::Result<()> {
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    config.mount_options =
        vec![MountOption::FSName("null".into()), MountOption::Subtype("null".into()), MountOption::DefaultPermissions];
    let session = fuser::Session::new(NullFuse { nodes: Nodes::new(source) }, mountpoint, &config)?;
    mounted();
    session.run()
}

struct NullFuse {
    nodes: Nodes,
}

fn errno(error: &io::Error) -> fuser::Errno {
    fuser::Errno::from_i32(error.raw_os_error().unwrap_or(libc::EIO))
}

/// The result of a system call that returns -1 on failure.
fn check(result: i64) -> io::Result<i64> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn c_path(path: &Path) -> io::Result<std::ffi::CString> {
    std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn attr(ino: u64, stat: &libc::stat) -> FileAttr {
    let time = |secs: i64, nanos: i64| -> SystemTime {
        UNIX_EPOCH + Duration::new(secs.try_into().unwrap_or(0), nanos.try_into().unwrap_or(0))
    };
    FileAttr {
        ino: INodeNo(ino),
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        crtime: UNIX_EPOCH,
        kind: kind(stat.st_mode),
        perm: (stat.st_mode & 0o7777) as u16,
        nlink: stat.st_nlink as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: stat.st_rdev as u32,
        blksize: 1 << 20,
        flags: 0,
    }
}

fn kind(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

/// What the kernel remembers of a name that is not there.
fn no_entry() -> FileAttr {
    // SAFETY: `stat` is plain numbers, for which zero is a value.
    attr(0, &unsafe { std::mem::zeroed() })
}

impl NullFuse {
    fn reply_entry(&self, reply: ReplyEntry, entry: io::Result<FileAttr>) {
        match entry {
            Ok(attr) => reply.entry(&TTL, &attr, GENERATION),
            Err(error) => reply.error(errno(&error)),
        }
    }
}

fn reply_empty(reply: ReplyEmpty, done: io::Result<()>) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(&error)),
    }
}

fn reply_attr(reply: ReplyAttr, attr: io::Result<FileAttr>) {
    match attr {
        Ok(attr) => reply.attr(&TTL, &attr),
        Err(error) => reply.error(errno(&error)),
    }
}

fn reply_xattr(reply: ReplyXattr, size: u32, read: impl FnOnce(&mut [u8]) -> io::Result<usize>) {
    let mut value = vec![0; size as usize];
    match read(&mut value) {
        Ok(length) if size == 0 => reply.size(length as u32),
        Ok(length) => reply.data(&value[..length]),
        Err(error) => reply.error(errno(&error)),
    }
}

impl Filesystem for NullFuse {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // SAFETY: umask(2) cannot fail. The kernel has applied the caller's already.
        unsafe { libc::umask(0) };
        for capability in [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
        ] {
            let _ = config.add_capabilities(capability);
        }
        let _ = config.set_max_write(1 << 20);
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.nodes.lookup(parent.0, name) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => reply.entry(&TTL, &no_entry(), GENERATION),
            entry => self.reply_entry(reply, entry),
        }
    }

    fn forget(&self, _request: &Request, ino: INodeNo, lookups: u64) {
        self.nodes.forget(ino.0, lookups);
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        reply_attr(reply, self.nodes.stat(ino.0, handle));
    }

    fn setattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = names::Set { mode, uid, gid, size, times: (atime, mtime) };
        let done = names::set_attributes(&self.nodes.path(ino.0), &set);
        reply_attr(reply, done.and_then(|()| self.nodes.stat(ino.0, handle)));
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        match std::fs::read_link(self.nodes.path(ino.0)) {
            Ok(target) => reply.data(target.as_os_str().as_bytes()),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn mknod(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let made = names::make_node(&self.nodes.child_path(parent.0, name), mode, rdev);
        self.reply_entry(reply, made.and_then(|()| self.nodes.lookup(parent.0, name)));
    }

    fn mkdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let made = names::make_directory(&self.nodes.child_path(parent.0, name), mode);
        self.reply_entry(reply, made.and_then(|()| self.nodes.lookup(parent.0, name)));
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = std::fs::remove_file(self.nodes.child_path(parent.0, name));
        reply_empty(reply, done.map(|()| self.nodes.removed(parent.0, name)));
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = std::fs::remove_dir(self.nodes.child_path(parent.0, name));
        reply_empty(reply, done.map(|()| self.nodes.removed(parent.0, name)));
    }

    fn symlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let made = std::os::unix::fs::symlink(target, self.nodes.child_path(parent.0, name));
        self.reply_entry(reply, made.and_then(|()| self.nodes.lookup(parent.0, name)));
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
        if flags.contains(RenameFlags::RENAME_EXCHANGE) {
            return reply.error(fuser::Errno::EINVAL);
        }
        let from = self.nodes.child_path(parent.0, name);
        let to = self.nodes.child_path(new_parent.0, new_name);
        let done = names::rename(&from, &to, flags.contains(RenameFlags::RENAME_NOREPLACE));
        reply_empty(reply, done.map(|()| self.nodes.renamed((parent.0, name), (new_parent.0, new_name))));
    }

    fn link(&self, _request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let to: PathBuf = self.nodes.child_path(parent.0, name);
        let done = std::fs::hard_link(self.nodes.path(ino.0), to);
        self.reply_entry(reply, done.and_then(|()| self.nodes.linked(ino.0, parent.0, name)));
    }

    fn create(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let opened = files::open(&self.nodes.child_path(parent.0, name), flags | libc::O_CREAT, mode);
        let created = opened.and_then(|handle| {
            let attr = self.nodes.created(parent.0, name, handle);
            attr.inspect_err(|_| files::close(handle)).map(|attr| (attr, handle))
        });
        match created {
            Ok((attr, handle)) => reply.created(&TTL, &attr, GENERATION, handle, files::flags(flags)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn open(&self, _request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match files::open(&self.nodes.path(ino.0), flags.0, 0) {
            Ok(handle) => reply.opened(handle, files::flags(flags.0)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        files::read(handle, offset, size, |read| match read {
            Ok(bytes) => reply.data(bytes),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn write(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match files::write(handle, offset, data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn flush(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        files::close(handle);
        reply.ok();
    }

    fn fsync(&self, _request: &Request, _ino: INodeNo, handle: FileHandle, datasync: bool, reply: ReplyEmpty) {
        reply_empty(reply, files::sync(handle, datasync));
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn readdir(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.nodes.list(ino.0, offset) {
            Ok(list) => {
                for (index, entry) in list.iter().enumerate().skip(offset as usize) {
                    if reply.add(UNKNOWN, index as u64 + 1, entry.kind, &entry.name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(errno(&error)),
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
        let list = match self.nodes.list(ino.0, offset) {
            Ok(list) => list,
            Err(error) => return reply.error(errno(&error)),
        };
        for (index, entry) in list.iter().enumerate().skip(offset as usize) {
            // Entries that came after the listing and went again are left out, as by readdir(3).
            let Ok(attr) = self.nodes.listed(ino.0, &entry.name) else { continue };
            let full = reply.add(attr.ino, index as u64 + 1, &entry.name, &TTL, &attr, GENERATION);
            if full {
                // The kernel does not see it, so it holds no lookup of it.
                self.nodes.unlisted(attr.ino.0, &entry.name);
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match names::stat_filesystem(&self.nodes.path(1)) {
            Ok(s) => reply.statfs(
                s.f_blocks,
                s.f_bfree,
                s.f_bavail,
                s.f_files,
                s.f_ffree,
                s.f_bsize as u32,
                s.f_namemax as u32,
                s.f_frsize as u32,
            ),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn setxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, names::set_xattr(&self.nodes.path(ino.0), name, value, flags));
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        reply_xattr(reply, size, |value| names::xattr(&self.nodes.path(ino.0), name, value));
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        reply_xattr(reply, size, |names| names::xattr_names(&self.nodes.path(ino.0), names));
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, names::remove_xattr(&self.nodes.path(ino.0), name));
    }
}
