//! `tandemfs target`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Outcome, output, reach};
use crate::control::Op;
use crate::control::status::Status;

/// Look at targets
#[derive(Debug, Args)]
pub struct Target {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the targets of a mounted filesystem
    List {
        /// Where it is mounted; without it, every mounted TandemFS of this user
        mountpoint: Option<PathBuf>,
    },
}

impl Target {
    /// Runs the command.
    pub fn run(self) -> Outcome {
        let Command::List { mountpoint } = self.command;
        let entries = match mountpoint {
            Some(mountpoint) => vec![reach::mounted_at(&mountpoint)?],
            None => reach::all()?,
        };
        for entry in entries {
            let status: Status = reach::connect(&entry)?.call(Op::Status {}, |_| ())?;
            output::print(&text(&status))?;
        }
        Ok(())
    }
}

fn text(status: &Status) -> String {
    let width = status.targets.iter().map(|target| target.name.len()).max().unwrap_or(0);
    let mut text = format!("{} on {}\n", status.filesystem.name, status.filesystem.mountpoint);
    for target in &status.targets {
        text += &format!("  {:<width$}  {}  {} placed\n", target.name, target.uri, output::bytes(target.placed_bytes));
    }
    text
}
