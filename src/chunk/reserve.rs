//! A file that only takes up room, so that there is some for metadata when the disk is full (D2).
//!
//! Owns: making it, giving its room up, making it again.
//! Does not own: when that is due (`space`).
//!
//! Its blocks are allocated and never written. Other programs on the same disk cannot take them; a database transaction
//! that finds no room gets theirs.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, fallocate};

/// The reserve of a state directory.
#[derive(Debug)]
pub struct Reserve {
    path: PathBuf,
    bytes: u64,
    held: Mutex<bool>,
}

const NAME: &str = "reserve";

impl Reserve {
    /// Gives up the reserve of an earlier mount; that there is none is fine.
    pub fn give_up(state_dir: &Path) -> io::Result<()> {
        match std::fs::remove_file(state_dir.join(NAME)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Tries whether `bytes` bytes can be had now; `None`: they cannot. A filesystem that does not preallocate has them.
    pub fn find_room(state_dir: &Path, bytes: u64) -> io::Result<Option<()>> {
        let path = state_dir.join("room");
        let found = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let found = found.and_then(|file| Ok(fallocate(&file, FallocateFlags::empty(), 0, bytes)?));
        let removed = std::fs::remove_file(&path);
        match found.map_err(|error| error.raw_os_error()) {
            Err(Some(libc::ENOSPC | libc::EDQUOT)) => Ok(None),
            _ => removed.map(Some),
        }
    }

    /// The reserve in `state_dir`, of `bytes` bytes; none of it is allocated yet, or all of it from an earlier mount.
    pub fn new(state_dir: &Path, bytes: u64) -> Reserve {
        let path = state_dir.join(NAME);
        let held = std::fs::metadata(&path).is_ok_and(|file| file.len() == bytes && file.blocks() * 512 >= bytes);
        Reserve { path, bytes, held: Mutex::new(held && bytes > 0) }
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its blocks are allocated.
    pub fn is_held(&self) -> bool {
        *self.held.lock()
    }

    /// Allocates its blocks, all or none.
    pub fn make(&self) -> io::Result<()> {
        let mut held = self.held.lock();
        if *held || self.bytes == 0 {
            return Ok(());
        }
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&self.path)?;
        if let Err(error) = fallocate(&file, FallocateFlags::empty(), 0, self.bytes) {
            // A part of it would only be missing elsewhere.
            std::fs::remove_file(&self.path)?;
            return Err(error.into());
        }
        *held = true;
        Ok(())
    }

    /// Gives its blocks to whoever asks first. True if there were any.
    pub fn release(&self) -> io::Result<bool> {
        let mut held = self.held.lock();
        if !*held {
            return Ok(false);
        }
        std::fs::remove_file(&self.path)?;
        *held = false;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d2_the_reserve_is_allocated_found_again_and_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::new(dir.path(), 1 << 20);
        assert!(!reserve.is_held());
        reserve.make().unwrap();
        assert!(reserve.is_held());
        let blocks = || std::fs::metadata(dir.path().join("reserve")).map_or(0, |file| file.blocks() * 512);
        assert!(blocks() >= 1 << 20, "room that nobody else can take");
        assert!(Reserve::new(dir.path(), 1 << 20).is_held());
        assert!(!Reserve::new(dir.path(), 1 << 21).is_held(), "another size is asked for");
        assert_eq!(Reserve::find_room(dir.path(), 1 << 20).unwrap(), Some(()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(reserve.release().unwrap());
        assert_eq!(blocks(), 0);
        assert!(!reserve.release().unwrap());
        let impossible = Reserve::new(dir.path(), 1 << 60);
        assert!(impossible.make().is_err());
        assert_eq!(blocks(), 0, "all or nothing");
    }
}
