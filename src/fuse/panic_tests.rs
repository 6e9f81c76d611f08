//! A handler that panics, on a mount of this process: the call fails, the mount lives. What other users' writes take away.
//! Requests that are served at the same time.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::adapter::catch;
use super::operation::Operation;
use super::{MountOptions, Options, Session, Unmount};
use crate::clock;
use crate::testing::posix::call::acl;
use crate::testing::posix::syscall::as_user;
use crate::vfs::tests::Rig;

/// The operation whose handlers panic.
static PANICS: Mutex<Option<&'static str>> = Mutex::new(None);

/// Held by a test that has a mount: a panic on purpose is in all of this process.
static ALONE: Mutex<()> = Mutex::new(());

/// How many lookups are being served, while a test wants to know.
static LOOKUPS: Mutex<Option<u32>> = Mutex::new(None);
static MET: Condvar = Condvar::new();

/// Longer than anything takes: who waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// Panics in the operation that a test named; keeps lookups until there are two of them, if a test wants that.
pub(super) fn failpoint(operation: &'static str) {
    if operation == "lookup" {
        let mut lookups = LOOKUPS.lock();
        if let Some(serving) = &mut *lookups {
            *serving += 1;
            MET.notify_all();
            MET.wait_while_for(&mut lookups, |lookups| lookups.is_some_and(|serving| serving < 2), PATIENCE);
        }
    }
    let panics = *PANICS.lock() == Some(operation);
    assert!(!panics, "a panic on purpose in {operation}");
}

/// Unmounts when the test ends, in whichever way.
struct Mounted<'a>(&'a Path, Option<Session>);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        *PANICS.lock() = None;
        *LOOKUPS.lock() = None;
        MET.notify_all();
        let _ = super::unmount(self.0, Unmount::Lazy);
        if let Some(session) = self.1.take() {
            let _ = session.wait();
        }
    }
}

#[test]
fn a_panic_in_a_handler_is_an_input_output_error_and_counted() {
    let _alone = ALONE.lock();
    let panics = AtomicU64::new(0);
    let result: crate::vfs::Result<()> = catch(&panics, Operation::Lookup, || panic!("on purpose"));
    assert_eq!(result, Err(rustix::io::Errno::IO));
    assert_eq!(catch(&panics, Operation::Lookup, || Ok(3)), Ok(3));
    assert_eq!(panics.load(Ordering::Relaxed), 1);
}

#[test]
fn a_panic_in_any_handler_fails_that_call_only() {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("SKIPPED: a real mount needs root and /dev/fuse");
        return;
    }
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let mnt = dir.path().canonicalize().unwrap();
    let (rig, panics) = (Rig::new(), Arc::new(AtomicU64::new(0)));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mount = MountOptions { source: "panics".into(), ..MountOptions::default() };
    let options = Options {
        mount,
        runtime: runtime.handle().clone(),
        panics: panics.clone(),
        requests: Arc::default(),
        passthrough: false,
    };
    let session = Session::start(rig.vfs.clone(), &mnt, &options).unwrap();
    let _mounted = Mounted(&mnt, Some(session));
    let at = |name: &str| mnt.join(name);
    std::fs::write(at("file"), "content").unwrap();
    std::fs::create_dir(at("directory")).unwrap();
    std::fs::write(at("directory/inside"), "x").unwrap();
    let write = || File::options().write(true).open(at("file"));

    std::os::unix::fs::symlink("file", at("pointer")).unwrap();
    // Its pages are not the kernel's: made by a size alone.
    File::create(at("unread")).unwrap().set_len(100).unwrap();
    // More than the first reply takes, which tells their attributes, too: the next does not, as nobody asked for one.
    std::fs::create_dir(at("many")).unwrap();
    (0..200).for_each(|number| drop(File::create(at(&format!("many/{number:0100}"))).unwrap()));
    let (force, everything) = (rustix::fs::AtFlags::STATX_FORCE_SYNC, rustix::fs::StatxFlags::BASIC_STATS);

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
        ("getattr", Box::new(|| Ok(rustix::fs::statx(rustix::fs::CWD, at("file"), force, everything).map(drop)?))),
        ("readlink", Box::new(|| std::fs::read_link(at("pointer")).map(drop))),
        ("read", Box::new(|| File::open(at("unread"))?.read_exact(&mut [0; 4]))),
        ("readdirplus", Box::new(|| std::fs::read_dir(at("directory"))?.try_for_each(|entry| entry.map(drop)))),
        ("readdir", Box::new(|| std::fs::read_dir(at("many"))?.try_for_each(|entry| entry.map(drop)))),
        ("fsyncdir", Box::new(|| File::open(at("directory"))?.sync_all())),
        (
            "copy_file_range",
            Box::new(|| {
                let to = File::options().write(true).open(at("directory/inside"))?;
                Ok(rustix::fs::copy_file_range(File::open(at("file"))?, None, to, None, 4).map(drop)?)
            }),
        ),
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
    // These nobody waits for: nothing fails but the handler.
    for operation in ["release", "forget"] {
        let before = panics.load(Ordering::Relaxed);
        *PANICS.lock() = Some(operation);
        std::fs::write(at(operation), "x").unwrap();
        std::fs::remove_file(at(operation)).unwrap();
        let deadline = clock::instant() + PATIENCE;
        while panics.load(Ordering::Relaxed) == before {
            assert!(clock::instant() < deadline, "{operation} never comes");
            std::thread::sleep(Duration::from_millis(5));
        }
        *PANICS.lock() = None;
        assert_eq!(std::fs::read_link(at("pointer")).unwrap(), Path::new("file"), "after a panic in {operation}");
    }
    // Everything that failed works now.
    File::create(at("created")).unwrap().write_all(b"x").unwrap();
    std::fs::rename(at("file"), at("renamed")).unwrap();
    std::fs::remove_dir_all(at("directory")).unwrap();
}

/// The kernel remembers for a year that a name is not there, and no reply told it that the name came.
#[test]
fn a_name_that_stays_after_a_panic_in_its_create_is_found() {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("SKIPPED: a real mount needs root and /dev/fuse");
        return;
    }
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let mnt = dir.path().canonicalize().unwrap();
    let rig = Rig::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mount = MountOptions { source: "half".into(), ..MountOptions::default() };
    let options = Options {
        mount,
        runtime: runtime.handle().clone(),
        panics: Arc::default(),
        requests: Arc::default(),
        passthrough: false,
    };
    let session = Session::start(rig.vfs.clone(), &mnt, &options).unwrap();
    let notifier = session.notifier();
    let _mounted = Mounted(&mnt, Some(session));
    let path = mnt.join("half");
    let errno = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
    assert_eq!(errno(std::fs::metadata(&path).map(drop)), Some(libc::ENOENT));
    *PANICS.lock() = Some("created");
    assert_eq!(errno(File::create(&path).map(drop)), Some(libc::EIO));
    *PANICS.lock() = None;
    // What the daemon does with it.
    rig.vfs.files().stale().try_iter().for_each(|stale| notifier.invalidate(&stale).unwrap());
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    assert_eq!(std::fs::read_dir(&mnt).unwrap().count(), 1);
}

/// Without parallel directory operations the kernel sends the second lookup when the first is answered, which waits for it.
#[test]
fn two_names_of_one_directory_are_looked_up_at_the_same_time() {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("SKIPPED: a real mount needs root and /dev/fuse");
        return;
    }
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let mnt = dir.path().canonicalize().unwrap();
    let rig = Rig::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mount = MountOptions { source: "parallel".into(), ..MountOptions::default() };
    let (panics, requests) = (Arc::default(), Arc::default());
    let options = Options { mount, runtime: runtime.handle().clone(), panics, requests, passthrough: false };
    let session = Session::start(rig.vfs.clone(), &mnt, &options).unwrap();
    let _mounted = Mounted(&mnt, Some(session));
    *LOOKUPS.lock() = Some(0);
    let began = clock::instant();
    std::thread::scope(|scope| {
        for name in ["one", "two"] {
            let path = mnt.join(name);
            scope.spawn(move || std::fs::symlink_metadata(path).unwrap_err());
        }
    });
    let waited = clock::instant().since(began);
    // Somebody else on this machine may look, too.
    assert!(LOOKUPS.lock().take() >= Some(2));
    assert!(waited < PATIENCE, "the second lookup came when the first had given up waiting for it");
}

/// Another user writes to a file with set-id bits, each write of which is synced; returns the mode that is left.
fn mode_after_a_write_of_another_user(path: &Path, written: impl FnOnce()) -> u32 {
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o6777)).unwrap();
    let writer = File::options().write(true).custom_flags(libc::O_DSYNC).open(path).unwrap();
    let write = || {
        // SAFETY: both take a number, and hold for this thread alone, which ends.
        unsafe {
            libc::setfsgid(1000);
            libc::setfsuid(1000);
        }
        writer.write_all_at(b"by a user", 1000).unwrap();
    };
    std::thread::scope(|scope| scope.spawn(write).join().unwrap());
    written();
    // The mode alone, as for execve(2): asked for what a write changes too, the kernel would look at all of it anew.
    let (flags, mode) = (rustix::fs::AtFlags::empty(), rustix::fs::StatxFlags::MODE);
    u32::from(rustix::fs::statx(rustix::fs::CWD, path, flags, mode).unwrap().stx_mode) & 0o7777
}

/// A writer that joins passthrough readers is served by us, past the page cache: no SETATTR comes before its writes.
#[test]
fn p6_set_id_bits_go_when_another_user_writes_beside_passthrough_readers() {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("SKIPPED: a real mount needs root and /dev/fuse");
        return;
    }
    let _alone = ALONE.lock();
    let (dir, plain) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mnt = dir.path().canonicalize().unwrap();
    let rig = Rig::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mount = MountOptions { source: "set-id".into(), ..MountOptions::default() };
    let options = Options {
        mount,
        runtime: runtime.handle().clone(),
        panics: Arc::default(),
        requests: Arc::default(),
        passthrough: true,
    };
    let session = Session::start(rig.vfs.clone(), &mnt, &options).unwrap();
    let notifier = session.notifier();
    let _mounted = Mounted(&mnt, Some(session));
    let (path, twin) = (mnt.join("f"), plain.path().join("f"));
    let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&path, &content).unwrap();
    std::fs::write(&twin, &content).unwrap();

    let files = rig.vfs.files();
    let is_lent = || {
        let chunks = files.chunk_files();
        let folders =
            std::fs::read_dir(chunks.state_dir().join("chunks")).unwrap().map(|folder| folder.unwrap().path());
        let names = folders.flat_map(|folder| std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()));
        let name =
            |path: std::path::PathBuf| path.strip_prefix(chunks.state_dir()).unwrap().to_str().map(str::to_owned);
        names.filter_map(name).any(|name| chunks.lending().has(&name))
    };
    let deadline = clock::instant() + Duration::from_secs(120);
    let _reader = loop {
        // Sealed first: the RELEASE of who wrote it is on its way.
        let reader = File::open(&path).unwrap();
        if is_lent() || files.passthrough().why_not().is_some() {
            break reader;
        }
        assert!(clock::instant() < deadline, "it is never lent");
        drop(reader);
        std::thread::sleep(Duration::from_millis(10));
    };
    if let Some(why) = files.passthrough().why_not() {
        eprintln!("SKIPPED: no passthrough here: {why}");
        return;
    }
    assert_eq!(mode_after_a_write_of_another_user(&twin, || {}), 0o777);
    // What the daemon does with it.
    let told = || files.stale().try_iter().for_each(|stale| notifier.invalidate(&stale).unwrap());
    assert_eq!(mode_after_a_write_of_another_user(&path, told), 0o777);
}

/// The kernel sends a SETATTR before a write by the mode that it knows; after a list was set it knows an old one.
#[test]
fn p6_set_id_bits_go_by_the_mode_that_an_access_control_list_has_changed() {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("SKIPPED: a real mount needs root and /dev/fuse");
        return;
    }
    let _alone = ALONE.lock();
    let (dir, plain) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mnt = dir.path().canonicalize().unwrap();
    let rig = Rig::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mount = MountOptions { source: "list".into(), ..MountOptions::default() };
    let (panics, requests) = (Arc::default(), Arc::default());
    let options = Options { mount, runtime: runtime.handle().clone(), panics, requests, passthrough: false };
    let session = Session::start(rig.vfs.clone(), &mnt, &options).unwrap();
    let _mounted = Mounted(&mnt, Some(session));
    let left = [mnt.join("f"), plain.path().join("f")].map(|path| {
        let file = File::create(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(1000), Some(1000)).unwrap();
        // Without the group's right to execute, members of the group keep it.
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o2664)).unwrap();
        as_user(1000, || file.write_all_at(b"one", 0).unwrap());
        let (list, flags) = (acl(1000, [6, 5, 1, 2]), rustix::fs::XattrFlags::empty());
        rustix::fs::setxattr(&path, "system.posix_acl_access", &list, flags).unwrap();
        as_user(1000, || file.write_all_at(b"two", 0).unwrap());
        std::os::unix::fs::MetadataExt::mode(&file.metadata().unwrap()) & 0o7777
    });
    assert_eq!(left, [0o652; 2]);
}

/// Closes a descriptor and tells what close(2) said.
fn close_of(file: File) -> std::io::Result<()> {
    // SAFETY: the descriptor is taken out of the file, so it is closed once.
    match unsafe { libc::close(std::os::fd::IntoRawFd::into_raw_fd(file)) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
