//! The log: a file in the state directory, and stderr in the foreground.
//!
//! `TANDEMFS_LOG` chooses what is logged (`debug`, `tandemfs::replication=trace` …); the default is `info`.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// At a mount, a log above this becomes `daemon.log.1`.
const BYTES_MAX: u64 = 16 << 20;

/// The log of a state directory.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("daemon.log")
}

/// Starts logging into `state_dir`, and to stderr if `stderr`.
pub fn start(state_dir: &Path, stderr: bool) -> io::Result<()> {
    let path = path(state_dir);
    if std::fs::metadata(&path).is_ok_and(|meta| meta.len() > BYTES_MAX) {
        std::fs::rename(&path, path.with_extension("log.1"))?;
    }
    let file = File::options().append(true).create(true).mode(0o600).open(&path)?;
    let filter = EnvFilter::try_from_env("TANDEMFS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let to_file = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(Shared(Arc::new(file)));
    let to_stderr = stderr.then(|| {
        tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
            .with_target(false)
    });
    // Fails only if there is a subscriber: then this is a second mount in one process, whose log goes to the first's.
    let _ = tracing_subscriber::registry().with(filter).with(to_file).with(to_stderr).try_init();
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(
            thread = std::thread::current().name().unwrap_or("?"),
            "{panic}\n{}",
            std::backtrace::Backtrace::capture()
        );
    }));
    Ok(())
}

/// One file for all threads: each event is one `write(2)` in append mode.
#[derive(Clone)]
struct Shared(Arc<File>);

impl<'a> MakeWriter<'a> for Shared {
    type Writer = &'a File;

    fn make_writer(&'a self) -> &'a File {
        &self.0
    }
}
