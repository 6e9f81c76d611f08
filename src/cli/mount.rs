//! `tandemfs mount`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::Outcome;
use super::configured::Configured;
use crate::control::{Error, ErrorKind};
use crate::mount::settings::Options;
use crate::mount::{background, daemon, fuse_options};

/// Mount a filesystem
///
/// Returns when it is usable; the daemon goes on in the background and logs to the state directory. The first mount makes
/// the filesystem. Targets that cannot be reached then are filled later.
#[derive(Debug, Args)]
pub struct Mount {
    /// An empty directory; without it, the one named in the configuration
    mountpoint: Option<PathBuf>,
    #[command(flatten)]
    configured: Configured,
    /// Where the local state lies; one directory for each filesystem
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Change nothing, here or on any target
    #[arg(long)]
    read_only: bool,
    /// Stay in the foreground and log to stderr, too
    #[arg(long)]
    foreground: bool,
    /// Options as in fstab(5): allow_other, suid, dev, noexec, ro, nonempty, no_passthrough, fsname=, subtype=
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Accept a state directory on a network filesystem or on FUSE
    #[arg(long)]
    force: bool,
    /// Only between the command and the daemon it starts.
    #[arg(long, hide = true)]
    report_ready: bool,
}

impl Mount {
    /// Runs the command; `arguments` are those it was parsed from, for the daemon to start with.
    pub fn run(self, arguments: &[OsString]) -> Outcome {
        let fuse = fuse_options::parse(self.options.iter().map(String::as_str))?;
        let source = self.configured.source();
        let config = self.configured.read()?;
        let mountpoint = self.mountpoint.or_else(|| config.mountpoint.clone()).ok_or_else(|| {
            Error::new(ErrorKind::Usage, "no mountpoint").hint("name one: tandemfs mount MOUNTPOINT …")
        })?;
        if !self.foreground && !self.report_ready {
            return background::start(arguments);
        }
        let options = Options {
            mountpoint,
            state_dir: self.state_dir.or_else(|| fuse.state_dir.clone()).or_else(|| config.state_dir.clone()),
            read_only: self.read_only || fuse.mount.read_only,
            force: self.force,
            background: self.report_ready,
            fuse,
            config,
            source,
        };
        let outcome = daemon::run(options);
        if self.report_ready && outcome.is_err() {
            // The command that started us has said it, or the log has it.
            std::process::exit(1);
        }
        outcome
    }
}
