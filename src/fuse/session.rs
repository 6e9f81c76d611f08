//! A mounted filesystem: from the mount to the end of its session.
//!
//! Owns: the connection's settings, its threads, the end of it.
//! Does not own: requests (`adapter`), unmounting (`device`): the session ends when the mount is gone.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use fuser::{Config, SessionACL};

use super::adapter::Adapter;
use super::device::{self, MountOptions};
use super::operation::Requests;
use crate::vfs::Vfs;
use crate::write::Stale;

/// Threads that serve requests: measured, a second one halves the time of a create, four serve four programs.
const THREADS: usize = 4;

/// How a session is started.
#[derive(Debug, Clone)]
pub struct Options {
    pub mount: MountOptions,
    /// Runs what must not hold up a request's thread: reads that fetch, syncs.
    pub runtime: tokio::runtime::Handle,
    /// Counts handlers that panic; each is answered with an input/output error.
    pub panics: Arc<AtomicU64>,
    /// Counts requests.
    pub requests: Arc<Requests>,
    /// Let the kernel read and write local files by itself where it can (P1).
    pub passthrough: bool,
}

/// A filesystem that is mounted.
pub struct Session {
    mountpoint: PathBuf,
    notifier: fuser::Notifier,
    thread: JoinHandle<io::Result<()>>,
}

/// Tells the kernel that something it remembers is no longer so.
#[derive(Debug, Clone)]
pub struct Notifier(fuser::Notifier);

impl Notifier {
    /// Makes the kernel ask again. Never call this while serving a request: it waits for those on the same directory.
    pub fn invalidate(&self, stale: &Stale) -> io::Result<()> {
        match stale {
            Stale::Attributes(ino) => self.0.inval_inode(fuser::INodeNo(ino.0), -1, 0),
            Stale::Entry { parent, name } => self.0.inval_entry(fuser::INodeNo(parent.0), OsStr::from_bytes(name)),
        }
    }
}

impl Session {
    /// Mounts `vfs` at `mountpoint`, which is absolute and without symbolic links. Requests are served from here on.
    pub fn start(vfs: Arc<Vfs>, mountpoint: &Path, options: &Options) -> io::Result<Session> {
        let files = vfs.files().clone();
        let agreed = Arc::new(AtomicBool::new(false));
        let adapter = Adapter::new(vfs, options, agreed.clone());
        let acl = if options.mount.allow_other { SessionACL::All } else { SessionACL::Owner };
        let mut config = Config::default();
        config.acl = acl;
        config.n_threads = Some(THREADS);
        config.clone_fd = true;
        let device = device::mount(mountpoint, &options.mount)?;
        let connection = device.try_clone()?;
        let started = fuser::Session::from_fd(adapter, device, acl, config).and_then(|session| {
            if agreed.load(Ordering::Acquire) {
                let register = |file: &File| device::try_backing(&connection, file);
                files.passthrough().probe(files.chunk_files(), register);
            } else if options.passthrough {
                files.passthrough().is_off("the kernel does not offer it (Linux 6.9 does)".into());
            }
            // The connection ends with its last descriptor.
            drop(connection);
            let notifier = session.notifier();
            let thread = std::thread::Builder::new().name("fuse".into()).spawn(move || session.run())?;
            Ok((notifier, thread))
        });
        match started {
            Ok((notifier, thread)) => {
                let session = Session { mountpoint: mountpoint.to_owned(), notifier, thread };
                device::read_ahead(mountpoint);
                Ok(session)
            }
            Err(error) => {
                // Nobody serves it: it would answer every program with ENOTCONN.
                if let Err(left) = device::unmount(mountpoint, device::Unmount::Lazy) {
                    tracing::warn!(%left, mountpoint = %mountpoint.display(), "a mount that failed stays mounted");
                }
                Err(error)
            }
        }
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// What tells the kernel that something it remembers is no longer so.
    pub fn notifier(&self) -> Notifier {
        Notifier(self.notifier.clone())
    }

    /// True once the mount is gone and [`Session::wait`] returns at once.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until the mount is gone: unmounted by us or anybody, or its connection aborted.
    pub fn wait(self) -> io::Result<()> {
        match self.thread.join() {
            // An aborted connection (/sys/fs/fuse/connections/N/abort) is an end like any other.
            Ok(Err(error)) if error.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
            Ok(result) => result,
            Err(_) => Err(io::Error::other("the thread of the FUSE session panicked")),
        }
    }
}
