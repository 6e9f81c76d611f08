//! Calls as system calls on a directory, of a mount or of any other filesystem.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::call::{Call, Shown, acl, aligned, time_of_store};
use super::syscall::{self, Errno, c, call, gave};
use super::{BLOCK, DIRECTORIES, HANDLES, MAP_LENGTH, MAPS, SET_BEFORE, noise};

/// A directory that calls are made in, and what is open there.
pub struct Plain {
    root: PathBuf,
    handles: Vec<Option<Handle>>,
    maps: [Option<Map>; MAPS],
}

#[derive(Debug, Clone, Copy)]
struct Handle {
    fd: i32,
    /// `O_DIRECT`: offsets, lengths and buffers are aligned.
    direct: bool,
}

/// A shared, writable mapping, which most often outlives its descriptor.
struct Map {
    address: *mut u8,
    /// `O_PATH`: knows the file, and to the filesystem is not a descriptor of it.
    file: i32,
}

impl Plain {
    /// Makes the directories of the beginning in `root`, which is empty.
    pub fn new(root: PathBuf) -> Plain {
        for directory in &DIRECTORIES[1..] {
            std::fs::create_dir(root.join(directory)).unwrap();
        }
        // One more for whoever looks at everything in between.
        Plain { root, handles: vec![None; HANDLES + 1], maps: [const { None }; MAPS] }
    }

    fn at(&self, path: &Path) -> PathBuf {
        self.root.join(path)
    }

    /// Of a regular file: what size a directory shows is the filesystem's own matter.
    fn size(&self, fd: i32) -> i64 {
        // SAFETY: all zeros is a `stat`.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        let known = call!(fstat(fd, &raw mut stat)).is_ok() && stat.st_mode & libc::S_IFMT == libc::S_IFREG;
        if known { stat.st_size } else { 0 }
    }

    /// Carries out a call. `None`: there is nothing open where it wants a handle.
    pub fn perform(&mut self, call: &Call) -> Option<Shown> {
        let open = |slot: &usize| self.handles[*slot];
        let fd = |slot| open(slot).map(|handle: Handle| handle.fd);
        let gave = match call {
            Call::Open { slot, path, flags, mode } => {
                if self.handles[*slot].is_some() {
                    return None;
                }
                // A fifo without a writer would wait for one.
                let opened = syscall::open(&self.at(path), flags | libc::O_NONBLOCK, *mode);
                let direct = flags & libc::O_DIRECT != 0;
                self.handles[*slot] = opened.ok().map(|fd| Handle { fd: fd as i32, direct });
                opened.map(|_| 0)
            }
            Call::Close { slot } => syscall::close(self.handles[*slot].take()?.fd),
            Call::Write { slot, offset, seed, length } => {
                let Handle { fd, direct } = open(slot)?;
                let (offset, length) = if direct { aligned(*offset, *length) } else { (*offset, *length) };
                let mut buffer = Aligned::new(length as usize);
                buffer.bytes().copy_from_slice(&noise(*seed, length as usize));
                syscall::pwrite(fd, buffer.bytes(), offset as i64)
            }
            Call::Append { slot, seed, length } => {
                let Handle { fd, direct: false } = open(slot)? else { return None };
                let bytes = noise(*seed, *length as usize);
                syscall::seek(fd, 0, libc::SEEK_END).ok()?;
                call!(write(fd, bytes.as_ptr().cast(), bytes.len()))
            }
            Call::Read { slot, offset, length } => {
                let Handle { fd, direct } = open(slot)?;
                let (offset, length) = if direct { aligned(*offset, *length) } else { (*offset, *length) };
                let mut buffer = Aligned::new(length as usize);
                let bytes = buffer.bytes();
                let gave = call!(pread(fd, bytes.as_mut_ptr().cast(), bytes.len(), offset as i64));
                return Some(Shown::Bytes(gave, bytes[..gave.unwrap_or(0) as usize].to_vec()));
            }
            Call::MapWrite { slot, offset, seed, length } => {
                let (fd, offset) = (fd(slot)?, *offset as i64);
                let length = (self.size(fd) - offset).clamp(0, *length as i64);
                if length == 0 {
                    return None;
                }
                syscall::map_write(fd, &noise(*seed, length as usize), offset)
            }
            Call::Map { map, slot } => {
                if self.maps[*map].is_some() {
                    return None;
                }
                let mapped = Map::new(fd(slot)?)?;
                let gave = mapped.as_ref().map_or_else(|errno| Err(*errno), |_| Ok(0));
                self.maps[*map] = mapped.ok();
                gave
            }
            Call::Store { map, offset, seed, length } => {
                let map = self.maps[*map].as_ref()?;
                let length = (map.size()? - *offset as i64).clamp(0, *length as i64);
                map.store(*offset as usize, &noise(*seed, length as usize));
                map.set_time(time_of_store(*seed));
                Ok(length)
            }
            Call::Fetch { map, offset, length } => {
                let map = self.maps[*map].as_ref()?;
                let length = (map.size()? - *offset as i64).clamp(0, *length as i64);
                return Some(Shown::Bytes(Ok(length), map.fetch(*offset as usize, length as usize)));
            }
            Call::Unmap { map } => {
                drop(self.maps[*map].take()?);
                Ok(0)
            }
            Call::Resize { slot, size } => call!(ftruncate(fd(slot)?, *size as i64)),
            Call::Truncate { path, size } => call!(truncate(c(&self.at(path)).as_ptr(), *size as i64)),
            Call::Allocate { slot, mode, offset, length } => {
                call!(fallocate(fd(slot)?, *mode, *offset as i64, *length as i64))
            }
            Call::Seek { slot, offset, whence } => return self.sought(fd(slot)?, *offset as i64, *whence),
            Call::Copy { from, at, to, to_at, length } => {
                let (Handle { fd: from, direct: false }, Handle { fd: to, direct: false }) = (open(from)?, open(to)?)
                else {
                    // The kernel's own copying does not align.
                    return None;
                };
                syscall::copy_file_range(from, *at as i64, to, *to_at as i64, *length as usize)
            }
            Call::Sync { slot } => call!(fsync(fd(slot)?)),
            Call::MakeDirectory { path, mode } => call!(mkdir(c(&self.at(path)).as_ptr(), *mode)),
            Call::MakeNode { path, mode } => call!(mknod(c(&self.at(path)).as_ptr(), *mode, 0)),
            Call::RemoveDirectory { path } => call!(rmdir(c(&self.at(path)).as_ptr())),
            Call::Unlink { path } => call!(unlink(c(&self.at(path)).as_ptr())),
            Call::Rename { from, to, flags } => syscall::rename(&self.at(from), &self.at(to), *flags),
            Call::Link { from, to } => call!(link(c(&self.at(from)).as_ptr(), c(&self.at(to)).as_ptr())),
            Call::Symlink { to, path } => call!(symlink(c(to).as_ptr(), c(&self.at(path)).as_ptr())),
            Call::Mode { path, mode } => call!(chmod(c(&self.at(path)).as_ptr(), *mode)),
            Call::Owner { path, user, group } => call!(lchown(c(&self.at(path)).as_ptr(), *user, *group)),
            Call::Times { path, seconds, nanoseconds } => {
                let times = [libc::timespec { tv_sec: *seconds, tv_nsec: *nanoseconds }; 2];
                call!(utimensat(libc::AT_FDCWD, c(&self.at(path)).as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW))
            }
            Call::SetXattr { path, name, length, flags } => {
                syscall::setxattr(&self.at(path), name, &noise(*length as u64, *length), *flags)
            }
            Call::SetAcl { path, name, user, permissions } => {
                let gave = syscall::setxattr(&self.at(path), name, &acl(*user, *permissions), 0);
                // Which set-id bits a write takes away FUSE decides by the mode that it knew before, until somebody asks.
                let _ = syscall::stat(&self.at(path), SET_BEFORE);
                gave
            }
            Call::RemoveXattr { path, name } => syscall::removexattr(&self.at(path), name),
            Call::Look { path } => return Some(self.looked(&self.at(path))),
            Call::ForgetPages { path } => {
                let regular = std::fs::symlink_metadata(self.at(path)).is_ok_and(|meta| meta.is_file());
                if regular {
                    syscall::forget_pages(&self.at(path));
                }
                return None;
            }
        };
        Some(Shown::Gave(gave))
    }

    /// Where holes begin and end is the filesystem's own matter. What is compared is that nothing but zeros is skipped, and
    /// how a search without an answer ends.
    fn sought(&self, fd: i32, offset: i64, whence: i32) -> Option<Shown> {
        let size = self.size(fd);
        if syscall::pread(fd, 0, 0).0 == Err(Errno(libc::EISDIR)) {
            return None;
        }
        // The kernel asks a FUSE filesystem without telling it first what is stored through mappings.
        self.maps.iter().flatten().for_each(Map::sync);
        let gave = syscall::seek(fd, offset, whence);
        if let (Ok(found), libc::SEEK_DATA) = (gave, whence) {
            let skipped = self.bytes(fd, offset, found);
            assert!(skipped.iter().all(|&byte| byte == 0), "SEEK_DATA from {offset} to {found} skips bytes");
        }
        if let Err(Errno(libc::ENXIO)) = gave
            && offset < size
        {
            let rest = self.bytes(fd, offset, size);
            assert!(rest.iter().all(|&byte| byte == 0), "SEEK_DATA from {offset} sees no bytes where there are");
            return Some(Shown::Gave(Ok(0)));
        }
        Some(Shown::Gave(gave.map(|_| 0)))
    }

    /// Also through a descriptor that is for direct I/O; nothing, if it is not for reading.
    fn bytes(&self, fd: i32, from: i64, to: i64) -> Vec<u8> {
        let (start, skip) = (from / BLOCK as i64 * BLOCK as i64, (from % BLOCK as i64) as usize);
        let mut buffer = Aligned::new(((to - start) as u64).next_multiple_of(BLOCK) as usize);
        let bytes = buffer.bytes();
        match call!(pread(fd, bytes.as_mut_ptr().cast(), bytes.len(), start)) {
            Ok(_) => bytes[skip..(to - start) as usize].to_vec(),
            Err(_) => Vec::new(),
        }
    }

    fn looked(&self, path: &Path) -> Shown {
        let stat = syscall::stat(path, SET_BEFORE);
        let mut names = Vec::new();
        match &stat {
            Ok(stat) if stat.mode & libc::S_IFMT == libc::S_IFDIR => {
                if let Ok(entries) = std::fs::read_dir(path) {
                    names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
                    names.sort();
                }
            }
            Ok(stat) if stat.mode & libc::S_IFMT == libc::S_IFLNK => {
                let to = std::fs::read_link(path).unwrap();
                names = vec![String::from_utf8_lossy(to.as_os_str().as_bytes()).into_owned()];
            }
            _ => {}
        }
        let (_, listed) = syscall::listxattr(path);
        let xattrs = listed.into_iter().map(|name| (name.clone(), syscall::getxattr(path, &name).1)).collect();
        Shown::Looked(stat, names, xattrs)
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        for handle in self.handles.iter().flatten() {
            let _ = syscall::close(handle.fd);
        }
    }
}

impl Map {
    /// Maps a regular file, `None` if it is none.
    fn new(fd: i32) -> Option<Result<Map, Errno>> {
        // SAFETY: all zeros is a `stat`.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        call!(fstat(fd, &raw mut stat)).ok()?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            return None;
        }
        let (null, protection) = (std::ptr::null_mut(), libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a fresh mapping; its address is checked.
        let address = unsafe { libc::mmap(null, MAP_LENGTH, protection, libc::MAP_SHARED, fd, 0) };
        if address == libc::MAP_FAILED {
            return Some(gave(-1).map(|_| unreachable!("a failed call gives an errno")));
        }
        let path = format!("/proc/self/fd/{fd}");
        let file = syscall::open(Path::new(&path), libc::O_PATH, 0).expect("what is open has a path in /proc") as i32;
        Some(Ok(Map { address: address.cast(), file }))
    }

    /// Of a file that has a name: without that and without a descriptor it has nothing that a program could ask for.
    fn size(&self) -> Option<i64> {
        // SAFETY: all zeros is a `stat`.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        assert_eq!(call!(fstat(self.file, &raw mut stat)), Ok(0));
        (stat.st_nlink > 0).then_some(stat.st_size)
    }

    fn set_time(&self, seconds: i64) {
        self.sync();
        let times = [libc::timespec { tv_sec: seconds, tv_nsec: 0 }; 2];
        let path = format!("/proc/self/fd/{}", self.file);
        assert_eq!(call!(utimensat(libc::AT_FDCWD, c(Path::new(&path)).as_ptr(), times.as_ptr(), 0)), Ok(0));
    }

    fn store(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= MAP_LENGTH);
        // SAFETY: within the mapping, and within the file: the caller has asked for its size.
        unsafe { self.address.add(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    fn fetch(&self, offset: usize, length: usize) -> Vec<u8> {
        assert!(offset + length <= MAP_LENGTH);
        let mut bytes = vec![0; length];
        // SAFETY: as in `store`.
        unsafe { self.address.add(offset).copy_to_nonoverlapping(bytes.as_mut_ptr(), length) };
        bytes
    }

    fn sync(&self) {
        assert_eq!(call!(msync(self.address.cast(), MAP_LENGTH, libc::MS_SYNC)), Ok(0));
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        let _ = call!(munmap(self.address.cast(), MAP_LENGTH));
        let _ = syscall::close(self.file);
    }
}

/// Bytes at an address that direct I/O takes.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    fn new(length: usize) -> Aligned {
        let bytes = vec![0; length + BLOCK as usize];
        let start = bytes.as_ptr().align_offset(BLOCK as usize);
        Aligned { bytes, start, length }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.length]
    }
}
