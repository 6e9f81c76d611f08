//! The directory that a target is: one descriptor, and everything that is resolved beneath it.
//!
//! Owns: opening it, resolving keys beneath it, making directories that survive a power cut, writing one object.
//! Does not own: which place may be written to (`directory`), the order of a listing (`listing`).
//!
//! - The path is used twice: to open the descriptor, and to compare (T10). Keys are resolved by `openat2` with
//!   `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`: a symlink below the prefix is never followed, whoever put it there.
//! - A directory counts as durable once its parent was synced by *this* process. One that was found is synced too: the
//!   process that made it may have died between `mkdir` and `fsync`.

use std::collections::HashSet;
use std::io::IoSlice;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::format::key;
use crate::target::{Body, Existing};
use crate::testing::failpoint::{self, Point};

/// Unfinished writes ([`crate::format::key::TEMPORARY`]). Same filesystem as everything else, so that `rename` works.
pub(super) const TMP: &str = "tmp";

const DIR_MODE: Mode = Mode::RWXU;
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
const DIR_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Names of directories remembered as durable; above it they are forgotten and synced once more.
const DURABLE_MAX: usize = 4096;
/// Linux takes at most this many buffers in one `pwritev`.
const IOV_MAX: usize = 1024;

/// An opened target directory.
#[derive(Debug)]
pub(super) struct Place {
    dir: OwnedFd,
    dev: u64,
    ino: u64,
    /// Keys of directories whose entry in their parent is on disk.
    durable: Mutex<HashSet<String>>,
    /// Leftovers of `tmp/` were looked for.
    cleaned: AtomicBool,
}

/// A key that cannot be a path beneath a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadKey;

/// Splits a key into its directory (empty at the top) and its last component.
pub(super) fn split(key: &str) -> Result<(&str, &str), BadKey> {
    let fits = |part: &str| !part.is_empty() && part.len() <= 255 && part != "." && part != "..";
    if key.contains('\0') || !key.split('/').all(fits) {
        return Err(BadKey);
    }
    Ok(key.rsplit_once('/').unwrap_or(("", key)))
}

impl Place {
    /// Opens the directory at `path`; symlinks on the way to it are the operator's business.
    pub(super) fn open(path: &Path) -> Result<Place, Errno> {
        let dir = rustix::fs::open(path, DIR_FLAGS, Mode::empty())?;
        let stat = rustix::fs::fstat(&dir)?;
        Ok(Place {
            dir,
            dev: stat.st_dev,
            ino: stat.st_ino,
            durable: Mutex::default(),
            cleaned: AtomicBool::new(false),
        })
    }

    /// Creates the last component of `path`, durably. Called at the first initialisation only (T10).
    pub(super) fn create(path: &Path) -> Result<(), Errno> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::NOENT) };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let parent = rustix::fs::open(parent, DIR_FLAGS, Mode::empty())?;
        make_dir(&parent, name)?;
        rustix::fs::fsync(&parent)
    }

    /// True if `path` still leads to this very directory (T10).
    pub(super) fn is_at(&self, path: &Path) -> bool {
        rustix::fs::stat(path).is_ok_and(|stat| stat.st_dev == self.dev && stat.st_ino == self.ino)
    }

    /// True if both are the same directory.
    pub(super) fn same(&self, other: &Place) -> bool {
        (self.dev, self.ino) == (other.dev, other.ino)
    }

    /// Opens the directory with key `key` (empty: the top) to list or sync it.
    pub(super) fn directory(&self, key: &str) -> Result<OwnedFd, Errno> {
        resolve(&self.dir, if key.is_empty() { "." } else { key }, DIR_FLAGS)
    }

    /// Opens an object for reading. What is not a regular file is no object.
    pub(super) fn object(&self, key: &str) -> Result<(OwnedFd, u64), Errno> {
        // NONBLOCK: a fifo that somebody put there must not hold the thread.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = resolve(&self.dir, key, flags)?;
        let length = regular(&rustix::fs::fstat(&file)?)?;
        Ok((file, length))
    }

    /// Returns an object's length after making sure that it would survive a power cut: an answer that says "it is there"
    /// may take the place of a lost reply to a put, and a put that was cut short can leave the object, but not its
    /// directory entry, on disk.
    pub(super) fn settled_length(&self, key: &str) -> Result<u64, Errno> {
        let file = resolve(&self.dir, key, OFlags::PATH | OFlags::CLOEXEC)?;
        let length = regular(&rustix::fs::fstat(&file)?)?;
        self.settle(split(key).map_err(|BadKey| Errno::INVAL)?.0)?;
        Ok(length)
    }

    fn settle(&self, dir_key: &str) -> Result<(), Errno> {
        let dir = self.durable_directory(dir_key, false)?;
        match rustix::fs::fsync(&dir) {
            // A read-only place (a restore from a snapshot) has nothing to sync.
            Err(Errno::ROFS) => Ok(()),
            result => result,
        }
    }

    /// Reads the whole object, if it is not longer than `length_max`.
    pub(super) fn read(&self, key: &str, length_max: u64) -> Result<Result<Bytes, u64>, Errno> {
        let (file, length) = self.object(key)?;
        if length > length_max {
            return Ok(Err(length));
        }
        Ok(read_exact(&file, 0, length)?.ok_or(length))
    }

    /// Writes an object: `tmp/`, fsync, rename, fsync of its directory and of each directory made for it.
    pub(super) fn write(&self, key: &str, body: &Body, existing: Existing) -> Result<(), Errno> {
        let (dir_key, name) = split(key).map_err(|BadKey| Errno::INVAL)?;
        let dir = self.durable_directory(dir_key, true)?;
        let tmp = self.durable_directory(TMP, true)?;
        let tmp_name = unique_name();
        let written = write_file(&tmp, &tmp_name, body).and_then(|()| {
            failpoint::pass(Point::Place);
            publish(&tmp, &tmp_name, &dir, name, existing)
        });
        if let Err(error) = written {
            // Best effort: what stays is removed after 24 h.
            let _ = rustix::fs::unlinkat(&tmp, &tmp_name, AtFlags::empty());
            if error == Errno::EXIST {
                // "It exists" may be taken for "it was my lost put": then it must be durable too.
                rustix::fs::fsync(&dir)?;
            }
            return Err(error);
        }
        rustix::fs::fsync(&dir).inspect_err(|_| {
            // Not confirmed, so a create-only object must not be met by the next attempt. (A chunk may stay: the next
            // attempt replaces and syncs it.)
            if existing == Existing::Refuse {
                let _ = rustix::fs::unlinkat(&dir, name, AtFlags::empty());
            }
        })
    }

    /// Removes an object, and its directory if that became empty.
    pub(super) fn remove(&self, object: &str) -> Result<(), Errno> {
        let (dir_key, name) = split(object).map_err(|BadKey| Errno::INVAL)?;
        let dir = self.directory(dir_key)?;
        rustix::fs::unlinkat(&dir, name, AtFlags::empty())?;
        // The directories of old epochs and checkpoints go with their last object; those of chunks fill up again.
        if dir_key.starts_with(key::JOURNAL) || dir_key.starts_with(key::CHECKPOINTS) {
            self.durable.lock().remove(dir_key);
            let (parent, name) = split(dir_key).map_err(|BadKey| Errno::INVAL)?;
            let _ = rustix::fs::unlinkat(self.directory(parent)?, name, AtFlags::REMOVEDIR);
        }
        Ok(())
    }

    /// Removes unfinished writes last touched before `before` (seconds since 1970); returns how many.
    pub(super) fn remove_unfinished(&self, before: i64) -> Result<usize, Errno> {
        let tmp = match self.directory(TMP) {
            Err(Errno::NOENT) => return Ok(0),
            result => result?,
        };
        let mut removed = 0;
        let mut entries = rustix::fs::Dir::read_from(&tmp)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let Ok(stat) = rustix::fs::statat(&tmp, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if regular(&stat).is_ok() && stat.st_mtime < before {
                removed += usize::from(rustix::fs::unlinkat(&tmp, entry.file_name(), AtFlags::empty()).is_ok());
            }
        }
        Ok(removed)
    }

    /// Opens a directory and makes sure that it and its ancestors survive a power cut.
    fn durable_directory(&self, key: &str, create: bool) -> Result<OwnedFd, Errno> {
        if key.is_empty() || self.durable.lock().contains(key) {
            match self.directory(key) {
                // Somebody removed it meanwhile.
                Err(Errno::NOENT) if create && !key.is_empty() => self.durable.lock().clear(),
                result => return result,
            }
        }
        let mut dir = self.directory("")?;
        let mut end = 0;
        for name in key.split('/') {
            end += name.len() + usize::from(end > 0);
            if !self.durable.lock().contains(&key[..end]) {
                if create {
                    make_dir(&dir, name)?;
                }
                match rustix::fs::fsync(&dir) {
                    Err(Errno::ROFS) if !create => {}
                    result => result?,
                }
            }
            dir = resolve(&dir, name, DIR_FLAGS)?;
            let mut durable = self.durable.lock();
            if durable.len() >= DURABLE_MAX {
                durable.clear();
            }
            durable.insert(key[..end].to_owned());
        }
        Ok(dir)
    }

    /// True the first time it is called.
    pub(super) fn first_write(&self) -> bool {
        !self.cleaned.swap(true, Ordering::Relaxed)
    }
}

/// Returns the length of a regular file; of anything else `EISDIR` or `EINVAL`.
pub(super) fn regular(stat: &Stat) -> Result<u64, Errno> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(stat.st_size.max(0) as u64),
        FileType::Directory => Err(Errno::ISDIR),
        _ => Err(Errno::INVAL),
    }
}

/// Reads exactly `length` bytes; `None` if the file ends before.
pub(super) fn read_exact(file: &OwnedFd, offset: u64, length: u64) -> Result<Option<Bytes>, Errno> {
    // The caller has compared `length` with a bound or with the length of the file.
    let mut bytes = vec![0; length as usize];
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pread(file, &mut bytes[done..], offset + done as u64) {
            Ok(0) => return Ok(None),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(bytes.into()))
}

fn resolve(dir: impl AsFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut attempts = 0;
    loop {
        match rustix::fs::openat2(&dir, path, flags, Mode::empty(), BENEATH) {
            // The kernel saw a rename meanwhile and could not prove "beneath".
            Err(Errno::AGAIN | Errno::INTR) if attempts < 100 => attempts += 1,
            result => return result,
        }
    }
}

/// Makes a directory that only we can read, whatever the umask; one that exists is left alone.
fn make_dir<P: rustix::path::Arg + Copy>(parent: &OwnedFd, name: P) -> Result<(), Errno> {
    match rustix::fs::mkdirat(parent, name, DIR_MODE) {
        Ok(()) => match rustix::fs::chmodat(parent, name, DIR_MODE, AtFlags::empty()) {
            // Filesystems without modes (FAT).
            Err(Errno::PERM | Errno::NOTSUP) => Ok(()),
            result => result,
        },
        Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

fn unique_name() -> String {
    let random = crate::chance::u64();
    format!("{}-{random:016x}", std::process::id())
}

fn write_file(dir: &OwnedFd, name: &str, body: &Body) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, FILE_MODE)?;
    match rustix::fs::fchmod(&file, FILE_MODE) {
        Ok(()) | Err(Errno::PERM | Errno::NOTSUP) => {}
        Err(error) => return Err(error),
    }
    let mut offset = 0;
    let mut parts: Vec<IoSlice<'_>> =
        body.parts().iter().filter(|part| !part.is_empty()).map(|part| IoSlice::new(part)).collect();
    let mut parts = parts.as_mut_slice();
    while !parts.is_empty() {
        match rustix::io::pwritev(&file, &parts[..parts.len().min(IOV_MAX)], offset) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(count) => {
                offset += count as u64;
                IoSlice::advance_slices(&mut parts, count);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    rustix::fs::fsync(&file)
}

/// Gives a synced file its final name.
fn publish(tmp: &OwnedFd, tmp_name: &str, dir: &OwnedFd, name: &str, existing: Existing) -> Result<(), Errno> {
    if existing == Existing::Replace {
        return rustix::fs::renameat(tmp, tmp_name, dir, name);
    }
    match rustix::fs::renameat_with(tmp, tmp_name, dir, name, RenameFlags::NOREPLACE) {
        // NFS and some others know no NOREPLACE, but `link` refuses an existing name just as atomically.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
        result => return result,
    }
    match rustix::fs::linkat(tmp, tmp_name, dir, name, AtFlags::empty()) {
        Err(Errno::PERM | Errno::NOSYS | Errno::NOTSUP) => {}
        result => {
            result?;
            return rustix::fs::unlinkat(tmp, tmp_name, AtFlags::empty());
        }
    }
    // No hard links either (exFAT). Look, then rename: only another machine on the same disk could come between, and T7
    // lists `writers/` again because stores without create-only writes exist anyway.
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Err(Errno::EXIST),
        Err(Errno::NOENT) => rustix::fs::renameat(tmp, tmp_name, dir, name),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_never_leaves_the_place() {
        for bad in ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "a/.", "a\0b", &"x".repeat(256)] {
            assert_eq!(split(bad), Err(BadKey), "{bad:?}");
        }
        assert_eq!(split("tandemfs.json"), Ok(("", "tandemfs.json")));
        assert_eq!(split("chunks/3f/3f9a"), Ok(("chunks/3f", "3f9a")));
    }
}
