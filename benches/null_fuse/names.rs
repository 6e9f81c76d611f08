//! System calls on paths that the standard library does not have.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use fuser::TimeOrNow;

use super::{c_path, check};

/// What SETATTR asks for.
pub struct Set {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    /// Of access and of modification.
    pub times: (Option<TimeOrNow>, Option<TimeOrNow>),
}

/// `stat` of what a path names, not following a symbolic link.
pub fn stat(path: &Path) -> io::Result<libc::stat> {
    let path = c_path(path)?;
    // SAFETY: `path` is a NUL-terminated string, `stat` plain numbers that the call fills in.
    unsafe {
        let mut stat = std::mem::zeroed();
        check(libc::lstat(path.as_ptr(), &mut stat).into())?;
        Ok(stat)
    }
}

/// Sets attributes, the size first, the times last.
pub fn set_attributes(path: &Path, set: &Set) -> io::Result<()> {
    let path = c_path(path)?;
    if let Some(size) = set.size {
        // SAFETY: `path` is a NUL-terminated string that lives over the call; so below.
        check(unsafe { libc::truncate(path.as_ptr(), size as i64) }.into())?;
    }
    if set.uid.is_some() || set.gid.is_some() {
        let (uid, gid) = (set.uid.unwrap_or(u32::MAX), set.gid.unwrap_or(u32::MAX));
        // SAFETY: as above.
        check(unsafe { libc::lchown(path.as_ptr(), uid, gid) }.into())?;
    }
    if let Some(mode) = set.mode {
        // SAFETY: as above.
        check(unsafe { libc::chmod(path.as_ptr(), mode & 0o7777) }.into())?;
    }
    if set.times.0.is_some() || set.times.1.is_some() {
        let times = [timespec(set.times.0), timespec(set.times.1)];
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        // SAFETY: as above; `times` are two.
        check(unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), flags) }.into())?;
    }
    Ok(())
}

fn timespec(time: Option<TimeOrNow>) -> libc::timespec {
    match time {
        None => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
        Some(TimeOrNow::Now) => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW },
        Some(TimeOrNow::SpecificTime(time)) => {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            libc::timespec { tv_sec: since.as_secs() as i64, tv_nsec: since.subsec_nanos().into() }
        }
    }
}

/// `mknod(2)`.
pub fn make_node(path: &Path, mode: u32, rdev: u32) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: `path` is a NUL-terminated string that lives over the call.
    check(unsafe { libc::mknod(path.as_ptr(), mode, rdev.into()) }.into()).map(drop)
}

/// `mkdir(2)`.
pub fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: `path` is a NUL-terminated string that lives over the call.
    check(unsafe { libc::mkdir(path.as_ptr(), mode & 0o7777) }.into()).map(drop)
}

/// `renameat2(2)` with or without replacement.
pub fn rename(from: &Path, to: &Path, no_replace: bool) -> io::Result<()> {
    let (from, to) = (c_path(from)?, c_path(to)?);
    let flags = if no_replace { libc::RENAME_NOREPLACE } else { 0 };
    // SAFETY: both are NUL-terminated strings that live over the call.
    let result = unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) };
    check(result.into()).map(drop)
}

/// `statvfs(3)`.
pub fn stat_filesystem(path: &Path) -> io::Result<libc::statvfs> {
    let path = c_path(path)?;
    // SAFETY: `path` is a NUL-terminated string, `stat` plain numbers that the call fills in.
    unsafe {
        let mut stat = std::mem::zeroed();
        check(libc::statvfs(path.as_ptr(), &mut stat).into())?;
        Ok(stat)
    }
}

fn c_name(name: &OsStr) -> io::Result<CString> {
    CString::new(name.as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Reads the value of an extended attribute into `value`. Returns its length, also for an empty `value`.
pub fn xattr(path: &Path, name: &OsStr, value: &mut [u8]) -> io::Result<usize> {
    let (path, name) = (c_path(path)?, c_name(name)?);
    // SAFETY: two NUL-terminated strings and a buffer of the length that is said.
    let length = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    check(length as i64).map(|length| length as usize)
}

/// Reads the names of all extended attributes, each followed by a NUL, as [`xattr`] does.
pub fn xattr_names(path: &Path, names: &mut [u8]) -> io::Result<usize> {
    let path = c_path(path)?;
    // SAFETY: a NUL-terminated string and a buffer of the length that is said.
    let length = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    check(length as i64).map(|length| length as usize)
}

/// Sets an extended attribute.
pub fn set_xattr(path: &Path, name: &OsStr, value: &[u8], flags: i32) -> io::Result<()> {
    let (path, name) = (c_path(path)?, c_name(name)?);
    // SAFETY: two NUL-terminated strings and a buffer of the length that is said.
    let result = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
    check(result.into()).map(drop)
}

/// Removes an extended attribute.
pub fn remove_xattr(path: &Path, name: &OsStr) -> io::Result<()> {
    let (path, name) = (c_path(path)?, c_name(name)?);
    // SAFETY: two NUL-terminated strings.
    check(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) }.into()).map(drop)
}
