//! Mounting and unmounting, without the FUSE crate's own way: that one unmounts by path when its session ends, which may
//! hit what is mounted below or was mounted since, gives up for good when the mount is busy, and does not escape names.
//!
//! Owns: `/dev/fuse`, mount(2), the setuid helper `fusermount3` for users without the right to mount, the mount's read-ahead,
//! trying whether the connection takes backing files.
//! Does not own: the session on the device (`session`), when to unmount (`mount`).

use std::ffi::CString;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType};

/// What comes after the dot in the filesystem type that `findmnt` and `/proc/mounts` show, unless asked for otherwise.
const SUBTYPE: &str = "tandemfs";
const HELPER: &str = "fusermount3";

/// How to mount. Set-id programs and devices are off unless asked for (D5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// What `mount` and `df` show as source.
    pub source: String,
    /// The type is `fuse.SUBTYPE`, or only `fuse`.
    pub subtype: Option<String>,
    /// Other users than the one who mounts may enter.
    pub allow_other: bool,
    /// Honour set-user-id and set-group-id bits.
    pub suid: bool,
    /// Honour device nodes.
    pub dev: bool,
    /// Do not run programs.
    pub noexec: bool,
    /// Nothing can be changed.
    pub read_only: bool,
}

impl Default for MountOptions {
    fn default() -> MountOptions {
        MountOptions {
            source: String::new(),
            subtype: Some(SUBTYPE.into()),
            allow_other: false,
            suid: false,
            dev: false,
            noexec: false,
            read_only: false,
        }
    }
}

impl MountOptions {
    /// The filesystem type as the kernel's table shows it.
    pub fn kind(&self) -> String {
        self.subtype.as_ref().map_or_else(|| "fuse".into(), |subtype| format!("fuse.{subtype}"))
    }
}

/// How to unmount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmount {
    /// Fail with `EBUSY` while anything is open.
    Clean,
    /// Take it out of the tree now; it ends with its last user.
    Lazy,
}

/// Mounts at `mountpoint` and returns the device on which the kernel will send requests.
pub(super) fn mount(mountpoint: &Path, options: &MountOptions) -> io::Result<OwnedFd> {
    match mount_directly(mountpoint, options) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => mount_with_helper(mountpoint, options),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => mount_with_helper(mountpoint, options),
        result => result,
    }
}

/// Registers a backing file on a connection that is up, and gives it back: whether files there can be passed through (P5).
pub(super) fn try_backing(connection: &OwnedFd, file: &File) -> io::Result<()> {
    let id = fuser::BackingId::create_raw(connection, file)?;
    // SAFETY: the ioctl reads the number that it gets a pointer to.
    match unsafe { libc::ioctl(connection.as_raw_fd(), BACKING_CLOSE, &raw const id) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// `FUSE_DEV_IOC_BACKING_CLOSE`: `_IOW(229, 2, u32)`.
const BACKING_CLOSE: libc::c_ulong = 0x4004_e502;

/// Bytes that the kernel reads ahead of a program that reads by requests, in KiB; it takes 128 by itself.
const READ_AHEAD_KIB: u32 = 2048;

/// Lets the kernel read further ahead of programs on this mount. Only root may; without it reads are as right.
pub(super) fn read_ahead(mountpoint: &Path) {
    let set = || {
        let device = rustix::fs::stat(mountpoint)?.st_dev;
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), READ_AHEAD_KIB.to_string())
    };
    if let Err(error) = set() {
        tracing::debug!(%error, "the kernel reads ahead no further than it does by itself");
    }
}

/// Takes the mount at `mountpoint` away. The session ends by itself then.
pub fn unmount(mountpoint: &Path, how: Unmount) -> io::Result<()> {
    let target = c_string(mountpoint.as_os_str().as_bytes())?;
    let flags = match how {
        Unmount::Clean => libc::UMOUNT_NOFOLLOW,
        Unmount::Lazy => libc::UMOUNT_NOFOLLOW | libc::MNT_DETACH,
    };
    // SAFETY: `target` is a NUL-terminated string that lives over the call.
    match unsafe { libc::umount2(target.as_ptr(), flags) } {
        0 => return Ok(()),
        _ if io::Error::last_os_error().raw_os_error() != Some(libc::EPERM) => return Err(io::Error::last_os_error()),
        _ => {}
    }
    let mut helper = Command::new(HELPER);
    helper.arg("-u");
    if how == Unmount::Lazy {
        helper.arg("-z");
    }
    let output = helper.arg("--").arg(mountpoint).stdin(Stdio::null()).output().map_err(no_helper)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    // The helper tells the errno in words only.
    if said.contains("busy") { Err(Errno::BUSY.into()) } else { Err(io::Error::other(said)) }
}

/// Flags of mount(2), without what says that they are changed.
pub type Flags = libc::c_ulong;
/// Nothing can be changed through the mount.
pub const READ_ONLY: Flags = libc::MS_RDONLY;

/// Gives the mount at `mountpoint` these flags. Its other options stay: the kernel lets none of them be changed
/// (`fuse_parse_param` takes what a remount says as said already).
pub fn remount(mountpoint: &Path, flags: Flags) -> io::Result<()> {
    let target = c_string(mountpoint.as_os_str().as_bytes())?;
    let (none, flags) = (std::ptr::null(), flags | libc::MS_REMOUNT);
    // SAFETY: `target` is a NUL-terminated string that lives over the call; the others may be absent.
    match unsafe { libc::mount(none, target.as_ptr(), none, flags, none.cast()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn mount_directly(mountpoint: &Path, options: &MountOptions) -> io::Result<OwnedFd> {
    let device: OwnedFd = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse")?.into();
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mut data = format!("fd={},rootmode=40000,user_id={uid},group_id={gid},default_permissions", device.as_raw_fd());
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let source = c_string(options.source.as_bytes())?;
    let target = c_string(mountpoint.as_os_str().as_bytes())?;
    let kind = c_string(options.kind().as_bytes())?;
    let data = c_string(data.as_bytes())?;
    let mut flags = 0;
    for (set, flag) in [
        (!options.suid, libc::MS_NOSUID),
        (!options.dev, libc::MS_NODEV),
        (options.noexec, libc::MS_NOEXEC),
        (options.read_only, libc::MS_RDONLY),
    ] {
        flags |= if set { flag } else { 0 };
    }
    // SAFETY: all four are NUL-terminated strings that live over the call.
    let result = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) };
    if result == 0 { Ok(device) } else { Err(io::Error::last_os_error()) }
}

/// The helper mounts for us and sends the device over a socket, which it gets as its standard input.
fn mount_with_helper(mountpoint: &Path, options: &MountOptions) -> io::Result<OwnedFd> {
    let (ours, its) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let mut words = vec![format!("fsname={}", escape(&options.source)), "default_permissions".into()];
    words.extend(options.subtype.iter().map(|subtype| format!("subtype={}", escape(subtype))));
    for (set, word) in [
        (options.allow_other, "allow_other"),
        (options.suid, "suid"),
        (options.dev, "dev"),
        (options.noexec, "noexec"),
        (options.read_only, "ro"),
    ] {
        if set {
            words.push(word.into());
        }
    }
    let child = Command::new(HELPER)
        .args(["-o", &words.join(","), "--"])
        .arg(mountpoint)
        .env("_FUSE_COMMFD", "0")
        .stdin(its)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(no_helper)?;
    let device = receive_descriptor(&ours);
    let output = child.wait_with_output()?;
    match device? {
        Some(device) => Ok(device),
        None => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

/// The descriptor that comes with the first byte; `None` if the other side closes without one.
fn receive_descriptor(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

/// In the helper's option list a comma ends a value; a backslash takes that meaning away.
fn escape(source: &str) -> String {
    source.replace('\\', "\\\\").replace(',', "\\,")
}

/// Another kind than that of a missing `/dev/fuse`, which wants another remedy.
fn no_helper(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::NotFound {
        let needed = format!("{HELPER} is needed for users other than root, and is not installed");
        return io::Error::new(io::ErrorKind::PermissionDenied, needed);
    }
    error
}

fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| Errno::INVAL.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_with_a_comma_does_not_become_an_option() {
        assert_eq!(escape(r"a,allow_other\"), r"a\,allow_other\\");
    }

    #[test]
    fn a_path_with_a_nul_is_refused() {
        assert_eq!(c_string(b"a\0b").unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
