//! Session files that somebody still writes into: a passthrough descriptor, or a mapping, outlives its daemon, and neither
//! unmounting nor aborting the connection stops it (S4).
//!
//! Owns: finding such writers, giving the session a file of its own, stopping them where that is possible.
//! Does not own: what counts of a session (`plan`), sealing.
//!
//! ```text
//! read lease granted ──▶ adopted in place
//!            refused ──▶ clone, or barrier (+i) and copy ─▶ the copy takes the name ─▶ the file itself goes to quarantine
//! ```
//!
//! - Where blocks are shared, the clone is the file at one moment. Elsewhere only a file that cannot change can be copied:
//!   the immutable flag stops open descriptors (`EPERM`) and mappings (SIGBUS) on ext4, measured; on other filesystems
//!   without sharing it does not, and what is written during the copy may or may not be in it.
//! - The flag stays on in quarantine, so that the program learns of it, and goes at the first mount that finds no writer.
//! - An open that the dead daemon had answered was carried out within microseconds; no later one reaches the file. So a
//!   lease that is granted now is granted for good.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{CWD, IFlags, RenameFlags};

use crate::chunk::file::ChunkFiles;
use crate::chunk::{copy, lease};

/// Makes sure that nobody but us changes the session file `path`. True if somebody could: then it is a copy now, and the
/// file itself lies in quarantine.
pub fn adopt(files: &ChunkFiles, path: &str) -> io::Result<bool> {
    let original = files.open(path)?;
    let nobody = lease::nobody_writes(&original).or_else(|error| match error.raw_os_error() {
        // No leases here, so no passthrough either.
        Some(libc::EINVAL | libc::EACCES | libc::EPERM | libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS) => Ok(true),
        _ => Err(error),
    })?;
    if nobody {
        // A mount that was interrupted right here left it on.
        set_immutable(&original, false)?;
        return Ok(false);
    }
    let temporary = format!("{path}.adopted");
    files.remove(&temporary)?;
    let own = files.create(&temporary)?;
    if !copy::share(&original, &own)? {
        if let Err(error) = set_immutable(&original, true) {
            tracing::warn!(%path, %error, "a program that outlived the last mount cannot be kept from writing while its file is copied");
        }
        copy::bytes(&original, &own, || true)?;
    }
    // Its slot takes the time of its youngest bytes (O1).
    own.set_times(std::fs::FileTimes::new().set_modified(original.metadata()?.modified()?))?;
    own.sync_all()?;
    set_immutable(&original, false)?;
    let (named, other) = (files.locate(path), files.locate(&temporary));
    rustix::fs::renameat_with(CWD, &other, CWD, &named, RenameFlags::EXCHANGE)?;
    let kept = files.locate("quarantine").join(named.file_name().unwrap_or_default());
    std::fs::rename(&other, &kept)?;
    files.sync_entry(path)?;
    if let Err(error) = set_immutable(&original, true) {
        tracing::warn!(%path, %error, "a program that outlived the last mount goes on writing into a file that is no longer used");
    }
    Ok(true)
}

/// Takes the barrier off files in quarantine that nobody writes into any more.
pub fn release(files: &ChunkFiles) -> io::Result<()> {
    for entry in std::fs::read_dir(files.locate("quarantine"))? {
        release_one(&entry?.path()).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
    }
    Ok(())
}

fn release_one(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    if file.metadata()?.is_file() && is_immutable(&file)? && lease::nobody_writes(&file)? {
        set_immutable(&file, false)?;
    }
    Ok(())
}

/// Filesystems without flags have no immutable files.
fn is_immutable(file: &File) -> io::Result<bool> {
    match rustix::fs::ioctl_getflags(file) {
        Ok(flags) => Ok(flags.contains(IFlags::IMMUTABLE)),
        Err(rustix::io::Errno::NOTTY | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn set_immutable(file: &File, immutable: bool) -> io::Result<()> {
    if is_immutable(file)? == immutable {
        return Ok(());
    }
    let mut flags = rustix::fs::ioctl_getflags(file)?;
    flags.set(IFlags::IMMUTABLE, immutable);
    Ok(rustix::fs::ioctl_setflags(file, flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn s4_what_a_surviving_descriptor_writes_does_not_reach_the_adopted_file() {
        let dir = tempfile::tempdir().unwrap();
        let files = ChunkFiles::new(dir.path()).unwrap();
        let path = "chunks/05/0000000000000005-2-0-whole";
        let survivor = files.create(path).unwrap();
        survivor.write_all_at(b"acknowledged", 0).unwrap();
        assert!(adopt(&files, path).unwrap());
        let _ = survivor.write_all_at(b"afterwards..", 0);
        assert_eq!(std::fs::read(files.locate(path)).unwrap(), b"acknowledged");
        let kept = files.locate("quarantine/0000000000000005-2-0-whole");
        assert!(kept.exists(), "S7: nothing is deleted");
        assert!(!adopt(&files, path).unwrap(), "twice is once");
        release(&files).unwrap();
        drop(survivor);
        release(&files).unwrap();
        std::fs::remove_file(kept).unwrap();
    }

    #[test]
    fn s4_a_file_that_nobody_writes_is_adopted_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let files = ChunkFiles::new(dir.path()).unwrap();
        let path = "chunks/05/0000000000000005-2-0-whole";
        let file = files.create(path).unwrap();
        file.write_all_at(b"bytes", 0).unwrap();
        // As a mount leaves it that is cut off while it copies; where flags or the right to set them are missing, it never is.
        let _ = set_immutable(&file, true);
        drop(file);
        assert!(!adopt(&files, path).unwrap());
        files.remove(path).expect("the barrier is off");
    }
}
