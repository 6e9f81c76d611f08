//! The state directory: where it is, its lock, and that nothing else lies in it.
//!
//! Owns: the default path, creation (0700), the lock that makes two mounts refuse each other, taking over from a daemon
//! that is only draining (D7).
//! Does not own: what lies in it: `meta.sqlite` (`meta`), `chunks/` (`chunk`), `control.sock` (`control`).

use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;

use crate::clock;
use crate::control::{Client, Error, ErrorKind, Op};

/// How long a new mount waits for an old daemon that ends (D7): its last syncs take as long as the disk does. One that is
/// mounted says so at once.
const HAND_OVER_MAX: Duration = Duration::from_secs(60);
/// Names that a state directory may hold before it holds a filesystem.
const BEFORE_BIRTH: [&str; 5] = ["lock", "daemon.log", "daemon.log.1", "control.sock", "birth"];

/// A locked state directory. The lock goes with the process, however it ends.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Creates the directory if it is missing, and locks it. If an earlier daemon is still draining after its unmount,
    /// asks it to hand over and waits for its end.
    pub fn lock(path: &Path) -> Result<StateDir, Error> {
        StateDir::lock_within(path, HAND_OVER_MAX)
    }

    fn lock_within(path: &Path, patience: Duration) -> Result<StateDir, Error> {
        let failed = |what: &str, e: io::Error| Error::failed(format!("{what} {}: {e}", path.display()));
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|e| failed("create state directory", e))?;
        refuse_foreign(path)?;
        let lock = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join("lock"))
            .map_err(|e| failed("open the lock of state directory", e))?;
        let deadline = clock::instant() + patience;
        let mut asked = false;
        loop {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(e) => return Err(failed("lock state directory", e.into())),
            }
            if !asked {
                ask_to_hand_over(path)?;
                asked = true;
            }
            if clock::instant() > deadline {
                return Err(Error::failed(format!(
                    "state directory {} is in use by a daemon that does not end",
                    path.display()
                ))
                .hint(format!("its log is {}", path.join("daemon.log").display())));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .map_err(|e| failed("close to others the state directory", e))?;
        // For people who want to know who holds it; nothing of ours decides by it.
        lock.set_len(0)
            .and_then(|()| lock.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0))
            .map_err(|e| failed("write the lock of state directory", e))?;
        Ok(StateDir { path: path.to_owned(), _lock: lock })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The metadata store in it.
    pub fn meta(&self) -> PathBuf {
        self.path.join("meta.sqlite")
    }
}

/// The state directory of `mountpoint` when none is named: one for each mountpoint.
pub fn default_path(mountpoint: &Path) -> Result<PathBuf, Error> {
    let base = if rustix::process::geteuid().is_root() {
        PathBuf::from("/var/lib")
    } else if let Some(dir) = std::env::var_os("XDG_STATE_HOME").filter(|dir| Path::new(dir).is_absolute()) {
        dir.into()
    } else if let Some(home) = std::env::home_dir() {
        home.join(".local/state")
    } else {
        return Err(Error::new(ErrorKind::Usage, "no home directory to keep the local state in")
            .hint("name a directory: --state-dir DIR"));
    };
    Ok(base.join("tandemfs").join(escaped(mountpoint)))
}

/// A mountpoint as one file name: `/` becomes `-`, other bytes than letters, digits and `:_.` become `\xNN`.
fn escaped(mountpoint: &Path) -> std::ffi::OsString {
    let bytes = mountpoint.as_os_str().as_bytes();
    let bytes = bytes.strip_prefix(b"/").unwrap_or(bytes);
    let mut name = Vec::with_capacity(bytes.len());
    for (index, &byte) in bytes.iter().enumerate() {
        match byte {
            b'/' => name.push(b'-'),
            b'.' if index == 0 => name.extend_from_slice(b"\\x2e"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'_' | b'.' => name.push(byte),
            _ => name.extend_from_slice(format!("\\x{byte:02x}").as_bytes()),
        }
    }
    if name.len() > 200 {
        name.truncate(160);
        name.extend_from_slice(format!("-{}", &blake3::hash(bytes).to_hex()[..16]).as_bytes());
    }
    std::ffi::OsString::from_vec(name)
}

/// Refuses a directory that holds something else: files of ours beside those of others would be confusing at best.
fn refuse_foreign(path: &Path) -> Result<(), Error> {
    let failed = |e: io::Error| Error::failed(format!("read state directory {}: {e}", path.display()));
    if path.join("meta.sqlite").exists() {
        return Ok(());
    }
    for file in std::fs::read_dir(path).map_err(failed)? {
        let name = file.map_err(failed)?.file_name();
        if !BEFORE_BIRTH.iter().any(|known| name == *known) {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("{} is no state directory: it holds {:?} and no meta.sqlite", path.display(), name),
            )
            .hint("choose an empty or a new directory: --state-dir DIR"));
        }
    }
    Ok(())
}

/// A daemon that has unmounted and only drains ends at once; one that is mounted says so.
fn ask_to_hand_over(path: &Path) -> Result<(), Error> {
    let Ok(mut client) = Client::connect(path) else {
        // It is starting or ending: the lock will tell.
        return Ok(());
    };
    match client.call::<()>(Op::HandOver {}, |_| ()) {
        Err(error) if error.kind == ErrorKind::Busy => Err(error),
        // Also when it ended before it could answer.
        _ => Ok(()),
    }
}

/// Where a state directory must not lie: its locks and syncs would not mean what they say (D4).
pub fn check_filesystem(path: &Path, force: bool) -> Result<(), Error> {
    let existing = path.ancestors().find(|at| at.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statfs(existing)
        .map_err(|e| Error::failed(format!("statfs of state directory {}: {e}", path.display())))?;
    let kind = match stat.f_type as u64 & 0xffff_ffff {
        0x6573_5546 => "FUSE",
        0x6969 => "NFS",
        0xff53_4d42 | 0xfe53_4d42 | 0x517b => "SMB",
        0x0102_1997 => "9P",
        0x00c3_6400 => "Ceph",
        0x5346_414f => "AFS",
        _ => return Ok(()),
    };
    if force {
        tracing::warn!(filesystem = kind, "the state directory lies on a filesystem whose syncs we cannot trust");
        return Ok(());
    }
    Err(Error::new(ErrorKind::Usage, format!("state directory {} lies on {kind}", path.display()))
        .hint("it must lie on a local disk; name one with --state-dir DIR, or insist with --force"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mountpoint_has_a_state_directory_of_its_own() {
        assert_eq!(escaped(Path::new("/mnt/photos")), "mnt-photos");
        assert_eq!(escaped(Path::new("/mnt-photos")), "mnt\\x2dphotos");
        assert_eq!(escaped(Path::new("/.a b")), "\\x2ea\\x20b");
        let long = escaped(Path::new(&format!("/{}", "x/".repeat(300))));
        assert!(long.len() < 200);
        assert_ne!(long, escaped(Path::new(&format!("/{}y", "x/".repeat(300)))));
    }

    #[test]
    fn two_mounts_on_one_state_directory_refuse_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let first = StateDir::lock(&path).unwrap();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions()) & 0o777, 0o700);
        let error = StateDir::lock_within(&path, Duration::from_millis(50)).unwrap_err();
        assert!(error.message.contains("in use"), "{error}");
        drop(first);
        StateDir::lock(&path).unwrap();
    }

    #[test]
    fn a_directory_with_something_else_in_it_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("thesis.tex"), "").unwrap();
        let error = StateDir::lock(dir.path()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Usage);
        assert!(!dir.path().join("lock").exists());
    }
}
