//! The socket file: bound and reached through a descriptor of its directory, as a socket address holds 107 bytes only (D4).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// Name of the socket in the state directory.
const NAME: &str = "control.sock";

/// Creates the socket of `state_dir`, in place of what an earlier daemon left. Only the holder of the directory's lock
/// may do this.
pub(super) fn bind(state_dir: &Path) -> io::Result<UnixListener> {
    let directory = open(state_dir)?;
    let path = through(&directory);
    match std::fs::remove_file(&path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// Connects to the daemon of `state_dir`.
pub(super) fn connect(state_dir: &Path) -> io::Result<UnixStream> {
    let directory = open(state_dir)?;
    UnixStream::connect(through(&directory))
}

/// Removes the socket when the daemon ends.
pub(super) fn remove(state_dir: &Path) {
    if let Ok(directory) = open(state_dir) {
        // Absent or not, a client finds no daemon either way.
        let _ = std::fs::remove_file(through(&directory));
    }
}

fn open(state_dir: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(state_dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn through(directory: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{NAME}", directory.as_raw_fd()))
}
