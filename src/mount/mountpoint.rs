//! The directory that the filesystem appears at.

use std::io;
use std::path::{Path, PathBuf};

use super::nesting::{dead_mount, resolved};
use super::unmount;
use crate::control::registry::Registry;
use crate::control::{Error, ErrorKind};
use crate::fuse::MountOptions;

/// Checks that something can be mounted at `path`; returns it absolute and without symbolic links. What the death of an
/// earlier daemon left mounted there is no obstacle: [`clear`] takes it away once the state directory is locked.
pub fn check(path: &Path, nonempty: bool) -> Result<PathBuf, Error> {
    let usage = |message: String| Error::new(ErrorKind::Usage, message);
    let absolute = std::path::absolute(path).map_err(|e| usage(format!("mountpoint {}: {e}", path.display())))?;
    let mountpoint = resolved(&absolute).map_err(|e| usage(format!("mountpoint {}: {e}", path.display())))?;
    if is_dead(&mountpoint) {
        return Ok(mountpoint);
    }
    match std::fs::metadata(&mountpoint) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(usage(format!("mountpoint {} does not exist", path.display()))
                .hint(format!("create it: mkdir -p {}", path.display())));
        }
        Err(e) => return Err(usage(format!("mountpoint {}: {e}", path.display()))),
        Ok(meta) if !meta.is_dir() => {
            return Err(usage(format!("mountpoint {} is not a directory", path.display())).hint("name a directory"));
        }
        Ok(_) => {}
    }
    if mountpoint == Path::new("/") {
        return Err(usage("cannot mount over the root directory".into()).hint("name a directory below it"));
    }
    let mounted = unmount::is_mounted(&mountpoint, &recorded_kind(&mountpoint))
        .map_err(|e| Error::failed(format!("read the mount table: {e}")))?;
    if mounted {
        return Err(Error::new(ErrorKind::Busy, format!("a TandemFS is mounted at {} already", path.display()))
            .hint(format!("unmount it first: tandemfs umount {}", path.display())));
    }
    let mut names = std::fs::read_dir(&mountpoint).map_err(|e| usage(format!("mountpoint {}: {e}", path.display())))?;
    if names.next().is_some() && !nonempty {
        return Err(usage(format!("mountpoint {} is not empty", path.display()))
            .hint("what is in it would be hidden: choose an empty directory, or insist with -o nonempty"));
    }
    Ok(mountpoint)
}

/// Takes away the mount of a daemon that died: every call on it gives ENOTCONN. The caller holds the lock of its state
/// directory, so the daemon is gone for sure.
pub fn clear(mountpoint: &Path) -> Result<(), Error> {
    if !is_dead(mountpoint) {
        return Ok(());
    }
    tracing::info!(mountpoint = %mountpoint.display(), "taking away the mount of a daemon that died");
    unmount::unmount(mountpoint, &recorded_kind(mountpoint), true)
        .map_err(|e| Error::failed(format!("unmount {}: {e}", mountpoint.display())))
}

/// True if the mount of a dead daemon lies there. `stat` would not say so while the kernel remembers the answer of the
/// living one; statfs(2) asks each time.
fn is_dead(mountpoint: &Path) -> bool {
    rustix::fs::statfs(mountpoint).is_err_and(|errno| dead_mount(&errno.into()))
}

/// The filesystem type of a mount of ours at `mountpoint`: what its daemon recorded (`-o subtype=`), else the usual one.
fn recorded_kind(mountpoint: &Path) -> String {
    Registry::of_user().find(mountpoint).map_or_else(|| MountOptions::default().kind(), |entry| entry.kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_empty_directory_is_mounted_over() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("empty")).unwrap();
        std::fs::create_dir_all(at("full/x")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        assert!(check(&at("empty"), false).is_ok());
        assert!(check(&at("full"), true).is_ok());
        for (name, word) in [("absent", "does not exist"), ("file", "not a directory"), ("full", "not empty")] {
            let error = check(&at(name), false).unwrap_err();
            assert!(error.message.contains(word), "{error}");
            assert_eq!(error.kind, ErrorKind::Usage);
            assert!(error.hint.is_some());
        }
    }
}
