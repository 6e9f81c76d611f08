//! Whether anybody can still write into a file: the read lease (S4).
//!
//! Owns: probing. A lease is given back at once, never held: who opens the file meanwhile would wait for us.
//! Does not own: what is done about a writer (`write`, `recovery`).
//!
//! The kernel refuses a read lease exactly while a writable description or a writable shared mapping of the file exists
//! anywhere, those of programs whose daemon was killed too. fuser(1) and the table of handles do not see them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// True if nobody can write into `file`. It must be open for reading only, and no other descriptor of ours may be open for
/// writing: that one would be found.
pub fn nobody_writes(file: &File) -> io::Result<bool> {
    probe(file, libc::F_RDLCK)
}

/// True if nobody else has `file` open or mapped, for reading neither. The same holds for descriptors of ours: `file` must
/// be the only one.
pub fn nobody_has(file: &File) -> io::Result<bool> {
    probe(file, libc::F_WRLCK)
}

fn probe(file: &File, kind: i32) -> io::Result<bool> {
    let set = |command: i32, argument: i32| {
        // SAFETY: the descriptor is open while `file` lives; both commands take an integer.
        match unsafe { libc::fcntl(file.as_raw_fd(), command, argument) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // Whoever opens it for writing in between breaks the lease, which is told by a signal: one that is ignored unless
    // somebody asks for it, where SIGIO would end the process.
    set(F_SETSIG, libc::SIGURG)?;
    match set(libc::F_SETLEASE, kind) {
        Ok(()) => {
            set(libc::F_SETLEASE, libc::F_UNLCK)?;
            Ok(true)
        }
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(false),
        Err(error) => Err(error),
    }
}

/// From `asm-generic/fcntl.h`; the libc crate does not have it.
const F_SETSIG: i32 = 10;

/// True if leases in `directory` tell the truth: without them no file there may be a backing file.
pub fn works_in(directory: &Path) -> io::Result<bool> {
    let path = directory.join(format!("lease-probe-{}", std::process::id()));
    let writer = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    let reader = File::open(&path);
    std::fs::remove_file(&path)?;
    let reader = reader?;
    let beside_a_writer = nobody_writes(&reader);
    drop(writer);
    Ok(matches!((beside_a_writer, nobody_writes(&reader)), (Ok(false), Ok(true))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use memmap2::MmapOptions;

    #[test]
    fn s4_a_lease_is_refused_while_a_descriptor_or_a_mapping_can_write() {
        let dir = tempfile::tempdir().unwrap();
        assert!(works_in(dir.path()).unwrap());
        let path = dir.path().join("f");
        std::fs::write(&path, [0; 4096]).unwrap();
        let reader = File::open(&path).unwrap();
        assert!(nobody_writes(&reader).unwrap());
        let writer = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        assert!(!nobody_writes(&reader).unwrap());
        // SAFETY: nobody truncates the file while it is mapped.
        let map = unsafe { MmapOptions::new().map_mut(&writer).unwrap() };
        drop(writer);
        assert!(!nobody_writes(&reader).unwrap(), "the mapping outlives its descriptor");
        drop(map);
        assert!(nobody_writes(&reader).unwrap());
        // SAFETY: as above.
        let map = unsafe { MmapOptions::new().map(&File::open(&path).unwrap()).unwrap() };
        assert!(nobody_writes(&reader).unwrap(), "readers do no harm");
        assert!(!nobody_has(&reader).unwrap(), "the write lease sees them");
        drop(map);
        assert!(nobody_has(&reader).unwrap());
        let other = File::open(&path).unwrap();
        assert!(!nobody_has(&reader).unwrap());
        drop(other);
    }
}
