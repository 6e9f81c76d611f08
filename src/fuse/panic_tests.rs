//! A handler that panics, on a mount of this process: the call fails, the mount lives.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::{MountOptions, Options, Session, Unmount};
use crate::vfs::tests::Rig;

/// The operation whose handlers panic.
static PANICS: Mutex<Option<&'static str>> = Mutex::new(None);

/// Panics in the operation that a test named.
pub(super) fn failpoint(operation: &'static str) {
    let panics = *PANICS.lock() == Some(operation);
    assert!(!panics, "a panic on purpose in {operation}");
}

/// Unmounts when the test ends, in whichever way.
struct Mounted<'a>(&'a Path, Option<Session>);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        *PANICS.lock() = None;
        let _ = super::unmount(self.0, Unmount::Lazy);
        if let Some(session) = self.1.take() {
            let _ = session.wait();
        }
    }
}

#[test]
fn a_panic_in_any_handler_fails_that_call_only() {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("SKIPPED: a real mount needs root and /dev/fuse");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mnt = dir.path().canonicalize().unwrap();
    let (rig, panics) = (Rig::new(), Arc::new(AtomicU64::new(0)));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mount = MountOptions { source: "panics".into(), ..MountOptions::default() };
    let options = Options { mount, runtime: runtime.handle().clone(), panics: panics.clone(), passthrough: false };
    let session = Session::start(rig.vfs.clone(), &mnt, &options).unwrap();
    let _mounted = Mounted(&mnt, Some(session));
    let at = |name: &str| mnt.join(name);
    std::fs::write(at("file"), "content").unwrap();
    std::fs::create_dir(at("directory")).unwrap();
    std::fs::write(at("directory/inside"), "x").unwrap();
    let write = || File::options().write(true).open(at("file"));

    type Call<'a> = Box<dyn Fn() -> std::io::Result<()> + 'a>;
    let calls: Vec<(&str, Call<'_>)> = vec![
        ("lookup", Box::new(|| std::fs::metadata(at("never looked up")).map(drop))),
        (
            "setattr",
            Box::new(|| std::fs::set_permissions(at("file"), std::os::unix::fs::PermissionsExt::from_mode(0o600))),
        ),
        ("mkdir", Box::new(|| std::fs::create_dir(at("new")))),
        (
            "mknod",
            Box::new(|| {
                Ok(rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0)?)
            }),
        ),
        ("symlink", Box::new(|| std::os::unix::fs::symlink("x", at("link")))),
        ("link", Box::new(|| std::fs::hard_link(at("file"), at("second")))),
        ("create", Box::new(|| File::create(at("created")).map(drop))),
        ("open", Box::new(|| File::open(at("file")).map(drop))),
        ("write", Box::new(|| write()?.write_all_at(b"more", 0))),
        ("fsync", Box::new(|| write()?.sync_all())),
        ("fallocate", Box::new(|| Ok(rustix::fs::fallocate(write()?, rustix::fs::FallocateFlags::empty(), 0, 100)?))),
        ("lseek", Box::new(|| Ok(rustix::fs::seek(File::open(at("file"))?, rustix::fs::SeekFrom::Data(0)).map(drop)?))),
        ("rename", Box::new(|| std::fs::rename(at("file"), at("renamed")))),
        ("unlink", Box::new(|| std::fs::remove_file(at("file")))),
        ("rmdir", Box::new(|| std::fs::remove_dir(at("directory")))),
        ("statfs", Box::new(|| Ok(rustix::fs::statfs(&mnt).map(drop)?))),
        (
            "setxattr",
            Box::new(|| Ok(rustix::fs::setxattr(at("file"), "user.x", b"v", rustix::fs::XattrFlags::empty())?)),
        ),
        ("getxattr", Box::new(|| Ok(rustix::fs::getxattr(at("file"), "user.y", &mut [0u8; 9]).map(drop)?))),
        ("listxattr", Box::new(|| Ok(rustix::fs::listxattr(at("file"), &mut [0u8; 99]).map(drop)?))),
        ("removexattr", Box::new(|| Ok(rustix::fs::removexattr(at("file"), "user.z")?))),
        ("flush", Box::new(|| close_of(write()?))),
    ];
    for (number, (operation, call)) in calls.iter().enumerate() {
        *PANICS.lock() = Some(operation);
        let failed = call().expect_err(operation);
        assert_eq!(failed.raw_os_error(), Some(libc::EIO), "{operation}");
        *PANICS.lock() = None;
        assert!(panics.load(Ordering::Relaxed) > number as u64, "{operation} is not counted");
        let mut content = String::new();
        File::open(at("file")).unwrap().read_to_string(&mut content).unwrap();
        assert!(content.starts_with("cont"), "after a panic in {operation}: {content}");
    }
    // Everything that failed works now.
    File::create(at("created")).unwrap().write_all(b"x").unwrap();
    std::fs::rename(at("file"), at("renamed")).unwrap();
    std::fs::remove_dir_all(at("directory")).unwrap();
}

/// Closes a descriptor and tells what close(2) said.
fn close_of(file: File) -> std::io::Result<()> {
    // SAFETY: the descriptor is taken out of the file, so it is closed once.
    match unsafe { libc::close(std::os::fd::IntoRawFd::into_raw_fd(file)) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
