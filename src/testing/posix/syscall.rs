//! System calls as they are: a number or an errno, nothing checked before the kernel sees it.
//!
//! Each test uses a part of them.
#![allow(dead_code)]

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What a call gave: its result, or the errno.
pub type Gave = Result<i64, Errno>;

/// An errno that shows its name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl std::fmt::Debug for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", rustix::io::Errno::from_raw_os_error(self.0))
    }
}

pub fn gave(result: i64) -> Gave {
    if result < 0 { Err(Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))) } else { Ok(result) }
}

pub fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// Calls a function of libc with these arguments; [`gave`] must be in scope.
macro_rules! call {
    ($function:ident($($argument:expr),* $(,)?)) => {
        // SAFETY: every pointer handed in lives over the call and has the length that is handed in with it.
        gave(unsafe { libc::$function($($argument),*) } as i64)
    };
}
pub(crate) use call;

pub fn open(path: &Path, flags: i32, mode: u32) -> Gave {
    call!(open(c(path).as_ptr(), flags | libc::O_CLOEXEC, mode))
}

pub fn close(fd: i32) -> Gave {
    call!(close(fd))
}

pub fn pread(fd: i32, length: usize, offset: i64) -> (Gave, Vec<u8>) {
    let mut buffer = vec![0; length];
    let gave = call!(pread(fd, buffer.as_mut_ptr().cast(), length, offset));
    buffer.truncate(gave.unwrap_or(0) as usize);
    (gave, buffer)
}

pub fn pwrite(fd: i32, bytes: &[u8], offset: i64) -> Gave {
    call!(pwrite(fd, bytes.as_ptr().cast(), bytes.len(), offset))
}

pub fn getxattr(path: &Path, name: &str) -> (Gave, Vec<u8>) {
    let name = CString::new(name).unwrap();
    let mut buffer = vec![0u8; 70_000];
    let gave = call!(lgetxattr(c(path).as_ptr(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()));
    buffer.truncate(gave.unwrap_or(0) as usize);
    (gave, buffer)
}

pub fn setxattr(path: &Path, name: &str, value: &[u8], flags: i32) -> Gave {
    let name = CString::new(name).unwrap();
    call!(lsetxattr(c(path).as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags))
}

pub fn removexattr(path: &Path, name: &str) -> Gave {
    let name = CString::new(name).unwrap();
    call!(lremovexattr(c(path).as_ptr(), name.as_ptr()))
}

/// Names in order, without what the machine's security modules add.
pub fn listxattr(path: &Path) -> (Gave, Vec<String>) {
    let mut buffer = vec![0u8; 70_000];
    let gave = call!(llistxattr(c(path).as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()));
    let mut names: Vec<String> = buffer[..gave.unwrap_or(0) as usize]
        .split(|&byte| byte == 0)
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .filter(|name| !name.is_empty() && !name.starts_with("security."))
        .collect();
    names.sort();
    (gave.map(|_| 0), names)
}

pub fn rename(from: &Path, to: &Path, flags: u32) -> Gave {
    call!(syscall(libc::SYS_renameat2, libc::AT_FDCWD, c(from).as_ptr(), libc::AT_FDCWD, c(to).as_ptr(), flags))
}

pub fn seek(fd: i32, offset: i64, whence: i32) -> Gave {
    call!(lseek(fd, offset, whence))
}

/// Copies through the kernel, all of it or until a call gives less than one byte.
pub fn copy_file_range(from: i32, at: i64, to: i32, to_at: i64, length: usize) -> Gave {
    let (mut at, mut to_at, mut copied) = (at, to_at, 0);
    while copied < length {
        match call!(copy_file_range(from, &raw mut at, to, &raw mut to_at, length - copied, 0)) {
            Ok(0) => break,
            Ok(count) => copied += count as usize,
            Err(errno) if copied == 0 => return Err(errno),
            Err(_) => break,
        }
    }
    Ok(copied as i64)
}

/// Writes through a shared mapping that outlives its descriptor.
pub fn map_write(fd: i32, bytes: &[u8], offset: i64) -> Gave {
    let page = 4096;
    let (start, skip) = (offset / page * page, (offset % page) as usize);
    let length = skip + bytes.len();
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a fresh mapping; its address is checked below.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, fd, start) };
    if address == libc::MAP_FAILED {
        return gave(-1);
    }
    // SAFETY: the mapping has `length` bytes, the caller keeps to the size of the file.
    unsafe {
        address.cast::<u8>().add(skip).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
    }
    call!(munmap(address, length))
}

/// What `stat` says that two filesystems must agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    pub mode: u32,
    pub links: u64,
    pub owner: (u32, u32),
    pub size: i64,
    pub rdev: u64,
    pub mtime: Option<(i64, i64)>,
}

/// `lstat`, or the errno. Sizes of directories are the filesystem's own matter; the mtime counts only if it was set.
pub fn stat(path: &Path, set_before: i64) -> Result<Stat, Errno> {
    // SAFETY: all zeros is a `stat`.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    call!(lstat(c(path).as_ptr(), &raw mut stat))?;
    let directory = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
    Ok(Stat {
        mode: stat.st_mode,
        links: stat.st_nlink,
        owner: (stat.st_uid, stat.st_gid),
        size: if directory { 0 } else { stat.st_size },
        rdev: stat.st_rdev,
        mtime: (stat.st_mtime < set_before).then_some((stat.st_mtime, stat.st_mtime_nsec)),
    })
}

/// Runs `body` with the rights of another user; only of this thread, and only towards filesystems.
pub fn as_user<T>(user: u32, body: impl FnOnce() -> T) -> T {
    if user == 0 {
        return body();
    }
    // SAFETY: setfsuid(2) and setfsgid(2) take a number.
    unsafe {
        libc::setfsgid(user);
        libc::setfsuid(user);
    }
    let result = body();
    // SAFETY: as above.
    unsafe {
        libc::setfsuid(0);
        libc::setfsgid(0);
    }
    result
}

/// Makes the kernel ask the filesystem for the bytes of a file again.
pub fn forget_pages(path: &Path) {
    let Ok(file) = std::fs::File::open(path) else { return };
    // Only clean pages go; without a write-back cache all of a FUSE file are, but those mapped now.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    let _ = std::os::unix::fs::FileExt::read_at(&file, &mut [0], 0);
}
