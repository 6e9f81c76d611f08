//! The kernel's part, and FUSE's, between a program and `Vfs`. What is done here is not asked of `Vfs`:
//!
//! - permissions, owners, the sticky bit: `default_permissions` (the local directory is believed, see `Pair::perform`);
//! - paths: components, symbolic links (`ELOOP` after 40), `ENOTDIR`;
//! - what a call wants of what it finds: `EEXIST`, `ENOENT`, `EISDIR`, `ELOOP`, `ENOTEMPTY` and `EINVAL` of a rename over a
//!   directory above, unknown flags of `renameat2`, `ENXIO` of sockets and fifos nobody reads;
//! - descriptors: `EBADF` by access mode, `ESPIPE`, the place where `O_APPEND` writes, ranges of zero length, overlapping
//!   ranges of `copy_file_range`, and copying what the filesystem does not copy;
//! - set-id bits: those that `mkdir`, `mknod`, `open` and `chmod` do not give to strangers of a group; the SETATTR without
//!   anything in it before an unprivileged write (KILLPRIV_V2);
//! - access control lists of symbolic links, default ones of files;
//! - mappings: pages that are read, changed and written back whole; the handle lives until the last mapping is gone;
//! - FLUSH at each close that has something to say, RELEASE after the last, FORGET when nobody has the inode.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::rc::Rc;

use rustix::io::Errno as E;

use crate::clock::Timestamp;
use crate::id::InodeId;
use crate::meta::xattr::SetMode;
use crate::read::Outcome;
use crate::testing::posix::call::{Call, Shown, acl, aligned, time_of_store};
use crate::testing::posix::syscall::{Errno, Stat};
use crate::testing::posix::{BLOCK, DIRECTORIES, HANDLES, MAPS, SET_BEFORE, noise};
use crate::vfs::acknowledge::Flushed;
use crate::vfs::attr::{SetAttributes, SetTime};
use crate::vfs::io::{NewFile, Written};
use crate::vfs::rename::RenameMode;
use crate::vfs::tests::Rig;
use crate::vfs::{Attributes, Caller, Result, Vfs};
use crate::write::opening::NoKernel;

/// Of every program.
pub const UMASK: u32 = 0o022;
const SYMLINKS_MAX: u32 = 40;

/// A filesystem with what a kernel keeps of it for one program.
pub struct Kernel {
    pub rig: Rig,
    root: InodeId,
    handles: Vec<Option<Rc<Handle>>>,
    maps: [Option<Rc<Handle>>; MAPS],
}

/// An open file.
#[derive(Debug)]
struct Handle {
    ino: InodeId,
    /// Type bits.
    kind: u32,
    flags: i32,
    /// The filesystem's, and if its FLUSH has nothing to say.
    number: u64,
    noflush: bool,
}

impl Handle {
    fn reads(&self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_WRONLY
    }

    fn writes(&self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_RDONLY
    }

    fn is(&self, flag: i32) -> bool {
        self.flags & flag == flag
    }

    fn is_regular(&self) -> bool {
        self.kind == libc::S_IFREG
    }
}

/// What a path leads to.
struct Found<'a> {
    parent: Attributes,
    name: std::borrow::Cow<'a, OsStr>,
    at: Option<Attributes>,
}

fn kind(attributes: &Attributes) -> u32 {
    attributes.inode.mode & libc::S_IFMT
}

impl Kernel {
    pub fn new(rig: Rig) -> Kernel {
        let mut kernel =
            Kernel { rig, root: InodeId::ROOT, handles: vec![None; HANDLES + 1], maps: [const { None }; MAPS] };
        let root = SetAttributes { mode: Some(libc::S_IFDIR | 0o777), ..SetAttributes::default() };
        kernel.vfs().setattr(&caller(0), InodeId::ROOT, &root).unwrap();
        for directory in &DIRECTORIES[1..] {
            let call = Call::MakeDirectory { path: directory.into(), mode: 0o777 };
            assert_eq!(kernel.perform(0, &call), Some(Shown::Gave(Ok(0))));
        }
        kernel
    }

    fn vfs(&self) -> &Vfs {
        &self.rig.vfs
    }

    /// Carries out a call. `None`: there is nothing open where it wants a handle.
    pub fn perform(&mut self, user: u32, call: &Call) -> Option<Shown> {
        let caller = caller(user);
        let open = |slot: &usize| self.handles[*slot].clone();
        let gave = match call {
            Call::Open { slot, path, flags, mode } => {
                if self.handles[*slot].is_some() {
                    return None;
                }
                self.open(&caller, path, *flags, *mode).map(|handle| {
                    self.handles[*slot] = Some(Rc::new(handle));
                    0
                })
            }
            Call::Close { slot } => {
                let handle = self.handles[*slot].take()?;
                let flushed = if handle.is_regular() && !handle.noflush {
                    self.vfs().flush_now(handle.ino, handle.number).map(|flushed| assert_eq!(flushed, Flushed::Done))
                } else {
                    Ok(())
                };
                self.release(handle);
                flushed.map(|()| 0)
            }
            Call::Write { slot, offset, seed, length } => {
                let handle = open(slot)?;
                let direct = handle.is(libc::O_DIRECT);
                let (offset, length) = if direct { aligned(*offset, *length) } else { (*offset, *length) };
                self.write(&caller, &handle, Some(offset), &noise(*seed, length as usize))
            }
            Call::Append { slot, seed, length } => {
                let handle = open(slot)?;
                if handle.is(libc::O_DIRECT) || !matches!(handle.kind, libc::S_IFREG | libc::S_IFDIR) {
                    return None;
                }
                self.write(&caller, &handle, None, &noise(*seed, *length as usize))
            }
            Call::Read { slot, offset, length } => {
                let handle = open(slot)?;
                let direct = handle.is(libc::O_DIRECT);
                let (offset, length) = if direct { aligned(*offset, *length) } else { (*offset, *length) };
                let read = match &*handle {
                    Handle { kind: libc::S_IFIFO, .. } => Err(E::SPIPE),
                    handle if !handle.reads() => Err(E::BADF),
                    Handle { kind: libc::S_IFDIR, .. } => Err(E::ISDIR),
                    handle => self.read(handle.ino, offset, length),
                };
                let gave = read.as_ref().map_or_else(|&errno| Err(shown(errno)), |bytes| Ok(bytes.len() as i64));
                return Some(Shown::Bytes(gave, read.unwrap_or_default()));
            }
            Call::MapWrite { slot, offset, seed, length } => {
                let handle = open(slot)?;
                let length = self.within(&handle, *offset, *length);
                match length {
                    0 => return None,
                    _ if !handle.reads() || !handle.writes() => Err(E::ACCESS),
                    length => self.store(&handle, *offset, &noise(*seed, length as usize)).map(|()| 0),
                }
            }
            Call::Map { map, slot } => {
                if self.maps[*map].is_some() {
                    return None;
                }
                let handle = open(slot).filter(|handle| handle.is_regular())?;
                if !handle.reads() || !handle.writes() {
                    Err(E::ACCESS)
                } else {
                    self.maps[*map] = Some(handle);
                    Ok(0)
                }
            }
            Call::Store { map, offset, seed, length } => {
                let handle = self.maps[*map].clone().filter(|handle| self.has_name(handle.ino))?;
                let length = self.within(&handle, *offset, *length);
                let time = Some(SetTime::At(Timestamp::new(time_of_store(*seed), 0).unwrap()));
                let times = SetAttributes { atime: time, mtime: time, ..SetAttributes::default() };
                self.store(&handle, *offset, &noise(*seed, length as usize))
                    .and_then(|()| self.set(&caller, handle.ino, times))
                    .map(|_| length as i64)
            }
            Call::Fetch { map, offset, length } => {
                let handle = self.maps[*map].clone().filter(|handle| self.has_name(handle.ino))?;
                let length = self.within(&handle, *offset, *length);
                let bytes = self.read(handle.ino, *offset, length).unwrap();
                return Some(Shown::Bytes(Ok(length as i64), bytes));
            }
            Call::Unmap { map } => {
                let handle = self.maps[*map].take()?;
                self.release(handle);
                Ok(0)
            }
            Call::Resize { slot, size } => {
                let handle = open(slot)?;
                if handle.is_regular() && handle.writes() {
                    self.resize(&caller, handle.ino, *size)
                } else {
                    Err(E::INVAL)
                }
            }
            Call::Truncate { path, size } => self.existing(path, true).and_then(|at| match kind(&at) {
                libc::S_IFDIR => Err(E::ISDIR),
                libc::S_IFREG => self.resize(&caller, at.inode.ino, *size),
                _ => Err(E::INVAL),
            }),
            Call::Allocate { slot, mode, offset, length } => match &*open(slot)? {
                _ if *length == 0 => Err(E::INVAL),
                handle if !handle.writes() => Err(E::BADF),
                handle if !handle.is_regular() => Err(E::SPIPE),
                handle => {
                    self.kill_set_ids(&caller, handle.ino);
                    self.vfs().fallocate(handle.ino, *offset..offset + length, *mode).map(|()| 0)
                }
            },
            Call::Seek { slot, offset, whence } => match &*open(slot)? {
                Handle { kind: libc::S_IFDIR, .. } => return None,
                Handle { kind: libc::S_IFIFO, .. } => Err(E::SPIPE),
                handle => self.sought(handle.ino, *offset, *whence),
            },
            Call::Copy { from, at, to, to_at, length } => {
                let (from, to) = (open(from)?, open(to)?);
                if from.is(libc::O_DIRECT) || to.is(libc::O_DIRECT) {
                    return None;
                }
                self.copy(&caller, (&from, *at), (&to, *to_at), *length)
            }
            Call::Sync { slot } => match &*open(slot)? {
                Handle { kind: libc::S_IFDIR, ino, .. } => self.vfs().sync_directory(*ino).map(|()| 0),
                handle if handle.is_regular() => self.vfs().fsync(handle.ino).map(|()| 0),
                _ => Err(E::INVAL),
            },
            Call::MakeDirectory { path, mode } => self.vacant(path).and_then(|found| {
                let mode = libc::S_IFDIR | mode & (0o777 | libc::S_ISVTX);
                self.vfs().make_node(&caller, found.parent.inode.ino, found.name.as_bytes(), mode, UMASK, 0).map(|_| 0)
            }),
            Call::MakeNode { path, mode } => self.vacant(path).and_then(|found| {
                let mode = mode_for_stranger(&caller, &found.parent, *mode);
                self.vfs().make_node(&caller, found.parent.inode.ino, found.name.as_bytes(), mode, UMASK, 0).map(|_| 0)
            }),
            Call::Symlink { to, path } => self.vacant(path).and_then(|found| {
                let (parent, name) = (found.parent.inode.ino, found.name.as_bytes());
                self.vfs().make_symlink(&caller, parent, name, to.as_os_str().as_bytes()).map(|_| 0)
            }),
            Call::Link { from, to } => self.existing(from, false).and_then(|at| {
                let found = self.vacant(to)?;
                self.vfs().link(at.inode.ino, found.parent.inode.ino, found.name.as_bytes()).map(|_| 0)
            }),
            Call::RemoveDirectory { path } => self.remove(path, Vfs::rmdir, |kind| match kind {
                libc::S_IFDIR => Ok(()),
                _ => Err(E::NOTDIR),
            }),
            Call::Unlink { path } => self.remove(path, Vfs::unlink, |kind| match kind {
                libc::S_IFDIR => Err(E::ISDIR),
                _ => Ok(()),
            }),
            Call::Rename { from, to, flags } => self.rename(from, to, *flags),
            Call::Mode { path, mode } => self.existing(path, true).and_then(|at| {
                let mode = kind(&at) | without_set_gid(&caller, at.inode.gid, *mode);
                self.set(&caller, at.inode.ino, SetAttributes { mode: Some(mode), ..SetAttributes::default() })
            }),
            Call::Owner { path, user, group } => self.existing(path, false).and_then(|at| {
                let set = SetAttributes { uid: Some(*user), gid: Some(*group), ..SetAttributes::default() };
                self.set(&caller, at.inode.ino, set)
            }),
            Call::Times { path, seconds, nanoseconds } => self.existing(path, false).and_then(|at| {
                let time = Some(SetTime::At(Timestamp::new(*seconds, *nanoseconds as u32).unwrap()));
                self.set(&caller, at.inode.ino, SetAttributes { atime: time, mtime: time, ..SetAttributes::default() })
            }),
            Call::SetXattr { path, name, length, flags } => self.existing(path, false).and_then(|at| {
                let mode = match *flags {
                    libc::XATTR_CREATE => SetMode::Create,
                    libc::XATTR_REPLACE => SetMode::Replace,
                    _ => SetMode::Any,
                };
                let value = noise(*length as u64, *length);
                self.vfs().setxattr(&caller, at.inode.ino, name.as_bytes(), &value, mode).map(|()| 0)
            }),
            Call::SetAcl { path, name, user, permissions } => self.existing(path, false).and_then(|at| {
                if kind(&at) == libc::S_IFLNK {
                    return Err(E::OPNOTSUPP);
                }
                let list = acl(*user, *permissions);
                self.vfs().setxattr(&caller, at.inode.ino, name.as_bytes(), &list, SetMode::Any).map(|()| 0)
            }),
            Call::RemoveXattr { path, name } => self.existing(path, false).and_then(|at| {
                if kind(&at) == libc::S_IFLNK && name.starts_with("system.") {
                    return Err(E::OPNOTSUPP);
                }
                self.vfs().removexattr(at.inode.ino, name.as_bytes()).map(|()| 0)
            }),
            Call::Look { path } => return Some(self.looked(path)),
            Call::ForgetPages { .. } => return None,
        };
        Some(Shown::Gave(gave.map_err(shown)))
    }

    /// Where a path leads. With `follow` a symbolic link at its end is followed, too.
    fn resolve<'a>(&self, parent: InodeId, path: &'a Path, follow: bool, links: &mut u32) -> Result<Found<'a>> {
        let mut parent = self.vfs().getattr(parent).unwrap();
        let mut names = path.iter().peekable();
        loop {
            let name = names.next().expect("paths have a last component");
            let last = names.peek().is_none();
            let at = match self.vfs().lookup(parent.inode.ino, name.as_bytes()) {
                Err(E::NOENT) => None,
                at => Some(at?),
            };
            let at = match at {
                Some(link) if kind(&link) == libc::S_IFLNK && (!last || follow) => {
                    *links += 1;
                    if *links > SYMLINKS_MAX {
                        return Err(E::LOOP);
                    }
                    let target = std::ffi::OsString::from_vec(self.vfs().readlink(link.inode.ino)?);
                    let found = self.resolve(parent.inode.ino, Path::new(&target), true, links)?;
                    if last {
                        let name = std::borrow::Cow::Owned(found.name.into_owned());
                        return Ok(Found { parent: found.parent, name, at: found.at });
                    }
                    found.at
                }
                at => at,
            };
            if last {
                return Ok(Found { parent, name: name.into(), at });
            }
            parent = at.ok_or(E::NOENT)?;
            if kind(&parent) != libc::S_IFDIR {
                return Err(E::NOTDIR);
            }
        }
    }

    fn find<'a>(&self, path: &'a Path, follow: bool) -> Result<Found<'a>> {
        self.resolve(self.root, path, follow, &mut 0)
    }

    fn existing(&self, path: &Path, follow: bool) -> Result<Attributes> {
        self.find(path, follow)?.at.ok_or(E::NOENT)
    }

    /// A place for something new.
    fn vacant<'a>(&self, path: &'a Path) -> Result<Found<'a>> {
        let found = self.find(path, false)?;
        if found.at.is_some() { Err(E::EXIST) } else { Ok(found) }
    }

    fn open(&self, caller: &Caller, path: &Path, flags: i32, mode: u32) -> Result<Handle> {
        let creates = flags & libc::O_CREAT != 0;
        let exclusive = creates && flags & libc::O_EXCL != 0;
        let found = self.find(path, !exclusive && flags & libc::O_NOFOLLOW == 0)?;
        let mut answer = NoKernel::default();
        let direct = flags & libc::O_DIRECT != 0;
        let Some(at) = found.at else {
            if !creates {
                return Err(E::NOENT);
            }
            let mode = mode_for_stranger(caller, &found.parent, mode & 0o7777);
            let (parent, name) = (found.parent.inode.ino, found.name.as_bytes());
            self.vfs().create(caller, &NewFile { parent, name, mode, umask: UMASK, flags }, &mut answer)?;
            let ino = self.vfs().lookup(parent, name)?.inode.ino;
            return Ok(handle(ino, libc::S_IFREG, flags, &answer));
        };
        if exclusive {
            return Err(E::EXIST);
        }
        let ino = at.inode.ino;
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        match kind(&at) {
            libc::S_IFLNK => return Err(E::LOOP),
            libc::S_IFDIR if creates || writes || flags & libc::O_TRUNC != 0 => return Err(E::ISDIR),
            libc::S_IFSOCK => return Err(E::NXIO),
            libc::S_IFIFO if flags & libc::O_ACCMODE == libc::O_WRONLY && !self.is_read(ino) => return Err(E::NXIO),
            libc::S_IFDIR | libc::S_IFIFO if direct => return Err(E::INVAL),
            libc::S_IFREG => {
                let asked = flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_NOCTTY);
                self.vfs().open(caller, ino, asked, &mut answer)?;
            }
            _ => {}
        }
        Ok(handle(ino, kind(&at), flags, &answer))
    }

    /// A fifo that somebody has open for reading.
    fn is_read(&self, ino: InodeId) -> bool {
        self.handles.iter().flatten().any(|handle| handle.ino == ino && handle.reads())
    }

    /// A descriptor or a mapping is gone.
    fn release(&self, handle: Rc<Handle>) {
        let Ok(handle) = Rc::try_unwrap(handle) else { return };
        if handle.is_regular() {
            self.vfs().release(handle.ino, handle.number).unwrap();
        }
        self.forget_if_gone(handle.ino);
    }

    fn forget_if_gone(&self, ino: InodeId) {
        let has = |handle: &Rc<Handle>| handle.ino == ino;
        let open = self.handles.iter().chain(&self.maps).flatten().any(has);
        // The rows of one that was forgotten before may be gone by now.
        if !open && self.vfs().getattr(ino).is_ok_and(|at| at.inode.nlink == 0) {
            self.vfs().forget(ino);
        }
    }

    /// Without an offset, at the end.
    fn write(&self, caller: &Caller, handle: &Handle, offset: Option<u64>, bytes: &[u8]) -> Result<i64> {
        if handle.kind == libc::S_IFIFO {
            return Err(E::SPIPE);
        }
        if !handle.writes() {
            return Err(E::BADF);
        }
        if bytes.is_empty() {
            return Ok(0);
        }
        let size = self.size(handle.ino);
        let offset = offset.filter(|_| !handle.is(libc::O_APPEND)).unwrap_or(size);
        if !handle.is(libc::O_DIRECT) {
            self.kill_set_ids(caller, handle.ino);
        } else if caller.uid != 0 {
            self.vfs().clear_set_ids(caller, handle.ino)?;
        }
        self.send(handle, offset, bytes)?;
        Ok(bytes.len() as i64)
    }

    /// WRITE.
    fn send(&self, handle: &Handle, offset: u64, bytes: &[u8]) -> Result<()> {
        match self.vfs().write_now(handle.ino, handle.number, offset, bytes)? {
            Written::Done(written) => {
                assert_eq!(written, bytes.len());
                Ok(())
            }
            Written::Later => {
                let later = self.rig.vfs.clone().write_later(handle.ino, handle.number, offset, bytes.to_vec());
                assert_eq!(self.rig.block_on(later)?, bytes.len());
                Ok(())
            }
        }
    }

    fn kill_set_ids(&self, caller: &Caller, ino: InodeId) {
        if caller.uid != 0 {
            self.vfs().setattr(caller, ino, &SetAttributes::default()).unwrap();
        }
    }

    fn read(&self, ino: InodeId, offset: u64, length: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if length > 0
            && let Outcome::Pending(fetch) = self.vfs().read(ino, offset, length as u32, &mut bytes)?
        {
            bytes = self.rig.block_on(fetch)?.to_vec();
        }
        Ok(bytes)
    }

    fn has_name(&self, ino: InodeId) -> bool {
        self.vfs().getattr(ino).unwrap().inode.nlink > 0
    }

    fn size(&self, ino: InodeId) -> u64 {
        self.vfs().getattr(ino).unwrap().inode.size
    }

    /// So much of a range is within the file.
    fn within(&self, handle: &Handle, offset: u64, length: u64) -> u64 {
        if handle.is_regular() { self.size(handle.ino).saturating_sub(offset).min(length) } else { 0 }
    }

    /// Through a mapping: whole pages are read and written back.
    fn store(&self, handle: &Handle, offset: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let start = offset / BLOCK * BLOCK;
        let end = (offset + bytes.len() as u64).next_multiple_of(BLOCK);
        let mut pages = self.read(handle.ino, start, end - start)?;
        pages[(offset - start) as usize..][..bytes.len()].copy_from_slice(bytes);
        self.send(handle, start, &pages)
    }

    fn set(&self, caller: &Caller, ino: InodeId, set: SetAttributes) -> Result<i64> {
        self.vfs().setattr(caller, ino, &set).map(|_| 0)
    }

    fn resize(&self, caller: &Caller, ino: InodeId, size: u64) -> Result<i64> {
        self.set(caller, ino, SetAttributes { size: Some(size), ..SetAttributes::default() })
    }

    /// What [`Plain`](crate::testing::posix::plain::Plain) asks of a search, and shows of it.
    fn sought(&self, ino: InodeId, offset: u64, whence: i32) -> Result<i64> {
        let size = self.size(ino);
        let all_zeros = |to: u64| self.read(ino, offset, to - offset).unwrap().iter().all(|&byte| byte == 0);
        match self.vfs().seek(ino, offset, whence) {
            Ok(found) => {
                assert!((offset..=size).contains(&found), "a search from {offset} to {size} finds {found}");
                assert!(
                    whence == libc::SEEK_HOLE || all_zeros(found),
                    "SEEK_DATA from {offset} to {found} skips bytes"
                );
                Ok(0)
            }
            Err(E::NXIO) if offset < size => {
                assert!(all_zeros(size), "SEEK_DATA from {offset} sees no bytes where there are");
                Ok(0)
            }
            Err(errno) => Err(errno),
        }
    }

    fn copy(&self, caller: &Caller, from: (&Handle, u64), to: (&Handle, u64), length: u64) -> Result<i64> {
        let ((from, mut at), (to, mut to_at)) = (from, to);
        let mut copied = 0;
        while copied < length {
            if [from.kind, to.kind].contains(&libc::S_IFDIR) {
                return Err(E::ISDIR);
            }
            if !from.is_regular() || !to.is_regular() {
                return Err(E::INVAL);
            }
            if !from.reads() || !to.writes() || to.is(libc::O_APPEND) {
                return Err(E::BADF);
            }
            let count = (length - copied).min(self.size(from.ino).saturating_sub(at));
            if from.ino == to.ino && to_at + count > at && to_at < at + count {
                return if copied == 0 { Err(E::INVAL) } else { Ok(copied as i64) };
            }
            if count == 0 {
                break;
            }
            self.kill_set_ids(caller, to.ino);
            let count = match self.vfs().copy_range((from.ino, at), (to.ino, to_at), count)? {
                Some(count) => count,
                None => {
                    let bytes = self.read(from.ino, at, count)?;
                    self.send(to, to_at, &bytes)?;
                    bytes.len() as u64
                }
            };
            (at, to_at, copied) = (at + count, to_at + count, copied + count);
        }
        Ok(copied as i64)
    }

    fn remove(
        &self,
        path: &Path,
        remove: impl FnOnce(&Vfs, InodeId, &[u8]) -> Result<()>,
        check: impl FnOnce(u32) -> Result<()>,
    ) -> Result<i64> {
        let found = self.find(path, false)?;
        let at = found.at.ok_or(E::NOENT)?;
        check(kind(&at))?;
        remove(self.vfs(), found.parent.inode.ino, found.name.as_bytes())?;
        self.forget_if_gone(at.inode.ino);
        Ok(0)
    }

    fn rename(&self, from: &Path, to: &Path, flags: u32) -> Result<i64> {
        let mode = match flags {
            0 => RenameMode::Replace,
            libc::RENAME_NOREPLACE => RenameMode::NoReplace,
            libc::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return Err(E::INVAL),
        };
        let (from, to) = (self.find(from, false)?, self.find(to, false)?);
        let moved = from.at.ok_or(E::NOENT)?;
        match (mode, &to.at) {
            (RenameMode::NoReplace, Some(_)) => return Err(E::EXIST),
            (RenameMode::Exchange, None) => return Err(E::NOENT),
            _ => {}
        }
        if self.is_within(&to.parent, moved.inode.ino) {
            return Err(E::INVAL);
        }
        if to.at.is_some_and(|over| self.is_within(&from.parent, over.inode.ino)) {
            return Err(if mode == RenameMode::Exchange { E::INVAL } else { E::NOTEMPTY });
        }
        let (old, new) = (from.parent.inode.ino, to.parent.inode.ino);
        self.vfs().rename((old, from.name.as_bytes()), (new, to.name.as_bytes()), mode)?;
        if let Some(over) = to.at {
            self.forget_if_gone(over.inode.ino);
        }
        Ok(0)
    }

    /// True if `directory` is `above` or lies below it.
    fn is_within(&self, directory: &Attributes, above: InodeId) -> bool {
        let mut at = *directory;
        while at.inode.ino != above {
            if at.inode.ino == InodeId::ROOT {
                return false;
            }
            at = self.vfs().getattr(at.inode.parent).unwrap();
        }
        true
    }

    fn looked(&self, path: &Path) -> Shown {
        let at = match self.existing(path, false) {
            Ok(at) => at,
            Err(errno) => return Shown::Looked(Err(shown(errno)), Vec::new(), Vec::new()),
        };
        let inode = &at.inode;
        let mut names = Vec::new();
        match kind(&at) {
            libc::S_IFDIR => {
                let add = |entry: crate::vfs::readdir::DirEntry<'_>| {
                    names.push(String::from_utf8_lossy(entry.name).into_owned());
                    false
                };
                self.vfs().read_dir(inode.ino, 2, true, add).unwrap();
                names.sort();
            }
            libc::S_IFLNK => names.push(String::from_utf8(self.vfs().readlink(inode.ino).unwrap()).unwrap()),
            _ => {}
        }
        let listed = String::from_utf8(self.vfs().listxattr(inode.ino).unwrap()).unwrap();
        let mut xattrs: Vec<(String, Vec<u8>)> = listed
            .split_terminator('\0')
            .map(|name| (name.to_owned(), self.vfs().getxattr(inode.ino, name.as_bytes()).unwrap()))
            .collect();
        xattrs.sort();
        let (seconds, nanoseconds) = (inode.mtime.secs(), inode.mtime.nanos());
        let stat = Stat {
            mode: inode.mode,
            links: inode.nlink.into(),
            owner: (inode.uid, inode.gid),
            size: if kind(&at) == libc::S_IFDIR { 0 } else { inode.size as i64 },
            rdev: inode.rdev.into(),
            mtime: (seconds < SET_BEFORE).then_some((seconds, nanoseconds.into())),
        };
        Shown::Looked(Ok(stat), names, xattrs)
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        let open: Vec<_> = self.handles.iter_mut().chain(&mut self.maps).filter_map(Option::take).collect();
        open.into_iter().for_each(|handle| self.release(handle));
    }
}

fn caller(user: u32) -> Caller {
    // Its process: what groups it is in beside that of its own.
    Caller { uid: user, gid: user, pid: std::process::id() }
}

fn handle(ino: InodeId, kind: u32, flags: i32, answer: &NoKernel) -> Handle {
    let opened = answer.opened.as_ref();
    let number = opened.map_or(0, |opened| opened.handle.number());
    Handle { ino, kind, flags, number, noflush: opened.is_some_and(|opened| opened.noflush) }
}

fn shown(errno: E) -> Errno {
    Errno(errno.raw_os_error())
}

/// A new file that runs as its group, in a set-gid directory: not for who is not in that group.
fn mode_for_stranger(caller: &Caller, parent: &Attributes, mode: u32) -> u32 {
    let both = libc::S_ISGID | libc::S_IXGRP;
    if mode & both != both || parent.inode.mode & libc::S_ISGID == 0 {
        return mode;
    }
    without_set_gid(caller, parent.inode.gid, mode)
}

fn without_set_gid(caller: &Caller, group: u32, mode: u32) -> u32 {
    if caller.uid == 0 || caller.is_in_group(group) { mode } else { mode & !libc::S_ISGID }
}
