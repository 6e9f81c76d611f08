//! `tandemfs flush`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::progress::View;
use super::{Outcome, output, reach};
use crate::control::{self, Flushed, Op, Wait};

/// Wait until files are on their targets
///
/// A directory stands for everything in it, a mountpoint for the whole filesystem. What is open and written to counts
/// as it is at the call.
#[derive(Debug, Args)]
pub struct Flush {
    /// Files and directories
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// How safe is safe enough: local (on disk here), one, quorum, a number of targets, or all
    #[arg(long, default_value = "all")]
    wait: Wait,
    /// Give up after this time (10m, 90s): exit code 3, everything stays queued
    #[arg(long, value_parser = output::parse_span)]
    timeout: Option<Duration>,
}

impl Flush {
    /// Runs the command.
    pub fn run(self) -> Outcome {
        let mut view = View::stderr();
        for (entry, paths) in reach::holders(&self.paths)? {
            let request = control::Flush {
                paths,
                wait: self.wait,
                timeout_seconds: self.timeout.map(|timeout| timeout.as_millis().div_ceil(1000) as u64),
            };
            let result = reach::connect(&entry)?.call::<Flushed>(Op::Flush(request), |progress| view.show(&progress));
            view.finish();
            result?;
        }
        Ok(())
    }
}
