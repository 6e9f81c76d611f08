//! `tandemfs umount`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::progress::View;
use super::{Outcome, output, reach};
use crate::control::{self, Op, Unmounted};

/// Bring every target up to date, then unmount
///
/// Returns 0 only when every target holds everything. Interrupting it leaves the filesystem mounted.
#[derive(Debug, Args)]
pub struct Umount {
    /// Where it is mounted
    mountpoint: PathBuf,
    /// Give up after this time (10m, 90s): exit code 3, still mounted, everything safe locally
    #[arg(long, value_parser = output::parse_span)]
    timeout: Option<Duration>,
    /// Unmount in any case; what targets lack stays in the state directory, and the next mount goes on
    #[arg(long)]
    force: bool,
}

impl Umount {
    /// Runs the command.
    pub fn run(self) -> Outcome {
        let entry = reach::mounted_at(&self.mountpoint)?;
        let mut client = reach::connect(&entry)?;
        let mut view = View::stderr();
        // By force and without a time means now.
        let timeout = self.timeout.or(self.force.then_some(Duration::ZERO));
        let request = control::Umount {
            // Rounded up: a timeout of a part of a second is not none at all.
            timeout_seconds: timeout.map(|timeout| timeout.as_millis().div_ceil(1000) as u64),
            force: self.force,
        };
        let result = client.call::<Unmounted>(Op::Umount(request), |progress| view.show(&progress));
        view.finish();
        result.map(|_| ())
    }
}
