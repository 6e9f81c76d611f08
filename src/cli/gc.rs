//! `tandemfs gc`.

use std::path::PathBuf;

use clap::Args;

use super::{Outcome, reach, target};
use crate::control::Op;

/// Remove from targets what no file refers to any more, once its time of grace is over
///
/// It also happens by itself, in the background.
#[derive(Debug, Args)]
pub struct Gc {
    /// Where the filesystem is mounted
    mountpoint: PathBuf,
    /// Only say what would go, with bytes and requests
    #[arg(long)]
    dry_run: bool,
}

impl Gc {
    /// Runs the command.
    pub fn run(self) -> Outcome {
        let entry = reach::mounted_at(&self.mountpoint)?;
        target::said(&reach::connect(&entry)?.call(Op::Gc { dry_run: self.dry_run }, |_| ())?)
    }
}
