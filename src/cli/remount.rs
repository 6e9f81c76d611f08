//! `mount -o remount,…`, as mount(8) asks its helper for it.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{Outcome, reach};
use crate::control::{self, Error, ErrorKind, Flushed, Op, Wait};
use crate::fuse::device;
use crate::mount::remount;
use crate::mount::table::Table;

/// Seconds that the local disk may take.
const SYNC_SECONDS: u64 = 60;
/// The pauses before a mount is called busy are shorter than this, each twice as long as the one before.
const BUSY_MAX: Duration = Duration::from_secs(2);

/// Change the flags of a mount
#[derive(Debug, Args)]
pub struct Remount {
    /// Where it is mounted
    mountpoint: PathBuf,
    /// Options as in fstab(5)
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
}

/// The kernel holds a deleted file until the RELEASE of its last close is answered, and calls that busy: not for long.
fn patiently(mut remount: impl FnMut() -> std::io::Result<()>) -> std::io::Result<()> {
    let mut pause = Duration::from_millis(1);
    loop {
        match remount() {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && pause < BUSY_MAX => {
                std::thread::sleep(pause);
                pause *= 2;
            }
            done => return done,
        }
    }
}

impl Remount {
    /// Runs the command.
    pub fn run(self) -> Outcome {
        let entry = reach::mounted_at(&self.mountpoint)?;
        let mountpoint = entry.mountpoint.to_path();
        let table = Table::read().map_err(|e| Error::failed(format!("read the mount table: {e}")))?;
        let now = table.at(&mountpoint).filter(|mount| mount.kind == entry.kind.as_bytes());
        let now = now.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("no TandemFS is mounted at {}", mountpoint.display()))
                .hint("another filesystem may be mounted over it")
        })?;
        let flags = remount::flags(&self.options, now)?;
        let read_only = flags & device::READ_ONLY != 0;
        if entry.read_only && !read_only {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("{} was mounted read-only, its daemon changes nothing", mountpoint.display()),
            )
            .hint("unmount it and mount it again for writing"));
        }
        // The kernel writes back what it holds: with nobody there it would wait.
        let mut daemon = reach::connect(&entry)?;
        patiently(|| device::remount(&mountpoint, flags)).map_err(|error| {
            let failed = Error::failed(format!("remount {}: {error}", mountpoint.display()));
            match error.raw_os_error() {
                Some(libc::EBUSY) => failed.hint("files are open for writing, or open without a name"),
                Some(libc::EPERM) => failed.hint("only root may"),
                _ => failed,
            }
        })?;
        if read_only && !entry.read_only {
            // As on a local disk, on which nothing is left to be written then. No request tells the daemon.
            let paths = vec![control::Path(Vec::new())];
            let flush = control::Flush { paths, wait: Wait::Local, timeout_seconds: Some(SYNC_SECONDS) };
            daemon.call::<Flushed>(Op::Flush(flush), |_| ()).map_err(|mut error| {
                error.message = format!(
                    "{} is read-only now, but not all of it is on this disk: {}",
                    mountpoint.display(),
                    error.message
                );
                error
            })?;
        }
        Ok(())
    }
}
