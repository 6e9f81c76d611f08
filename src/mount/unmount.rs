//! Taking the mount away (D7), and who is in the way.
//!
//! Does not own: the system call (`fuse::device`).

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::table::Table;
use crate::clock;
use crate::fuse::device::{self, Unmount};

/// A program that is just ending, or is being started, holds what is closed already for a moment.
const MOMENT: Duration = Duration::from_secs(2);
/// So often it is tried within that moment.
const TRY_EVERY: Duration = Duration::from_millis(20);

/// At most so many processes are named.
const USERS_MAX: usize = 8;

/// Seconds for which processes are looked at.
const LOOK_SECONDS: u64 = 5;

/// Why it is still mounted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Programs have files open or work in it.
    #[error("in use by {}", users.join(", "))]
    Busy {
        /// Name and process id of those that could be seen.
        users: Vec<String>,
    },
    /// Anything else.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Unmounts the filesystem of type `kind` at `mountpoint`; that none is mounted there is success. `lazy` takes it out of
/// the tree at once and lets programs finish with it.
pub fn unmount(mountpoint: &Path, kind: &str, lazy: bool) -> Result<(), Error> {
    if !is_mounted(mountpoint, kind)? {
        return Ok(());
    }
    let how = if lazy { Unmount::Lazy } else { Unmount::Clean };
    match device::unmount(mountpoint, how) {
        Ok(()) => Ok(()),
        // Someone else was faster.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => Err(Error::Busy { users: users(mountpoint) }),
        Err(e) => Err(e.into()),
    }
}

/// The same, and not lazily; waits a moment for those who are about to let go.
pub fn unmount_in_a_moment(mountpoint: &Path, kind: &str) -> Result<(), Error> {
    let deadline = clock::instant() + MOMENT;
    let busy = |e: &io::Error| e.raw_os_error() == Some(libc::EBUSY);
    while is_mounted(mountpoint, kind)? && clock::instant() < deadline {
        match device::unmount(mountpoint, Unmount::Clean) {
            Err(e) if busy(&e) => std::thread::sleep(TRY_EVERY),
            _ => break,
        }
    }
    unmount(mountpoint, kind, false)
}

/// True if a filesystem of type `kind` is mounted on top at `mountpoint`, by the kernel's table: it answers also when the
/// mount hangs.
pub fn is_mounted(mountpoint: &Path, kind: &str) -> io::Result<bool> {
    Ok(Table::read()?.at(mountpoint).is_some_and(|mount| mount.kind == kind.as_bytes()))
}

/// Processes that use `mountpoint`, as far as this user may see and [`LOOK_SECONDS`] allow: reading what the kernel tells of a
/// process waits while that process hangs in a system call, and one that hangs in a filesystem may do so for ever.
fn users(mountpoint: &Path) -> Vec<String> {
    let (sender, found) = crossbeam_channel::bounded(USERS_MAX + 1);
    let mountpoint = mountpoint.to_owned();
    let looking = std::thread::Builder::new().name("who-is-busy".into()).spawn(move || look(&mountpoint, &sender));
    let until = clock::instant() + Duration::from_secs(LOOK_SECONDS);
    let mut users = Vec::new();
    while let Ok(user) = found.recv_timeout(until.since(clock::instant())) {
        if users.len() == USERS_MAX {
            users.push("…".into());
            break;
        }
        users.push(user);
    }
    drop(looking);
    if users.is_empty() {
        users.push("a process that this user may not see".into());
    }
    users
}

/// Sends the processes by the names of their working directories, roots, programs, open files and mappings. Only links of
/// `/proc` are read, never the mount.
fn look(mountpoint: &Path, found: &crossbeam_channel::Sender<String>) {
    let Ok(processes) = std::fs::read_dir("/proc") else { return };
    for process in processes.filter_map(|process| process.ok()) {
        let name = process.file_name();
        if !name.as_bytes().iter().all(u8::is_ascii_digit) || !uses(&process.path(), mountpoint) {
            continue;
        }
        let command = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        if found.send(format!("{} ({})", command.trim(), name.display())).is_err() {
            return;
        }
    }
}

fn uses(process: &Path, mountpoint: &Path) -> bool {
    let within = |link: PathBuf| std::fs::read_link(link).is_ok_and(|path| path.starts_with(mountpoint));
    let any_within = |folder: &str| {
        std::fs::read_dir(process.join(folder))
            .is_ok_and(|links| links.filter_map(|link| link.ok()).any(|link| within(link.path())))
    };
    ["cwd", "root", "exe"].iter().any(|link| within(process.join(link)))
        || any_within("fd")
        || std::fs::read(process.join("maps")).is_ok_and(|maps| maps_within(&maps, mountpoint))
}

/// The sixth field of a line of `/proc/PID/maps` is the file.
fn maps_within(maps: &[u8], mountpoint: &Path) -> bool {
    maps.split(|&byte| byte == b'\n')
        .filter_map(|line| line.iter().position(|&byte| byte == b'/').map(|start| &line[start..]))
        .any(|path| Path::new(OsStr::from_bytes(path)).starts_with(mountpoint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_mounted_is_unmounted() {
        let dir = tempfile::tempdir().unwrap();
        unmount(dir.path(), "fuse.tandemfs", false).unwrap();
    }

    #[test]
    fn a_process_with_an_open_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let _open = std::fs::File::create(root.join("f")).unwrap();
        let own = format!("({})", std::process::id());
        assert!(users(&root).iter().any(|user| user.ends_with(&own)), "{:?}", users(&root));
    }
}
