//! `tandemfs reload`.

use std::path::PathBuf;

use clap::Args;

use super::{Outcome, reach, target};
use crate::control::Op;

/// Read the configuration again: credentials, bandwidth and new targets take effect
///
/// SIGHUP does the same. An invalid configuration changes nothing.
#[derive(Debug, Args)]
pub struct Reload {
    /// Where the filesystem is mounted
    mountpoint: PathBuf,
}

impl Reload {
    /// Runs the command.
    pub fn run(self) -> Outcome {
        let entry = reach::mounted_at(&self.mountpoint)?;
        target::said(&reach::connect(&entry)?.call(Op::Reload {}, |_| ())?)
    }
}
