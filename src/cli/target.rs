//! `tandemfs target`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{Outcome, output, reach};
use crate::clock;
use crate::control::status::Status;
use crate::control::{Error, ErrorKind, Op, Said, TargetOp};

/// Look at targets, or change which there are while the filesystem is in use
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
    /// Add a target; it is filled from this machine and the other targets
    ///
    /// Remembered over restarts. An interrupted filling goes on where it was.
    Add {
        /// Where the filesystem is mounted
        mountpoint: PathBuf,
        /// NAME=URI; or NAME alone, for one that is in the configuration by now
        target: String,
        /// The place of this target was lost for good and is empty: begin anew there
        #[arg(long)]
        fresh: bool,
    },
    /// Remove a target; what lies there stays there
    Remove {
        /// Where the filesystem is mounted
        mountpoint: PathBuf,
        /// Name of the target
        name: String,
        /// Although it is out of reach, or holds the only copy of something
        #[arg(long)]
        force: bool,
    },
    /// Send nothing to a target for now
    Pause {
        /// Where the filesystem is mounted
        mountpoint: PathBuf,
        /// Name of the target
        name: String,
        /// Until this time (2026-11-21T08:00:00Z) or for this span (2h); without it, until it is resumed
        #[arg(long, value_name = "TIME")]
        until: Option<String>,
    },
    /// Let a paused target go on; ask a blocked one again at once, with its credentials read anew
    Resume {
        /// Where the filesystem is mounted
        mountpoint: PathBuf,
        /// Name of the target
        name: String,
    },
    /// Put a target into another place: where it was moved to, or an empty one that is filled
    Replace {
        /// Where the filesystem is mounted
        mountpoint: PathBuf,
        /// NAME=URI; or NAME alone, for what the configuration says by now
        target: String,
        /// Although the old place holds the only copy of something
        #[arg(long)]
        force: bool,
    },
    /// Take over a target that another mount wrote to
    Adopt {
        /// Where the filesystem is mounted
        mountpoint: PathBuf,
        /// Name of the target
        name: String,
        /// What the other mount changed there is discarded; nothing else is possible
        #[arg(long, required = true)]
        discard_theirs: bool,
    },
}

impl Target {
    /// Runs the command.
    pub fn run(self) -> Outcome {
        let (mountpoint, op) = match self.command {
            Command::List { mountpoint } => return list(mountpoint),
            Command::Add { mountpoint, target, fresh } => {
                let (name, uri) = name_and_uri(&target);
                (mountpoint, TargetOp::Add { name, uri, fresh })
            }
            Command::Remove { mountpoint, name, force } => (mountpoint, TargetOp::Remove { name, force }),
            Command::Pause { mountpoint, name, until } => {
                let until = until.as_deref().map(moment).transpose()?;
                (mountpoint, TargetOp::Pause { name, until })
            }
            Command::Resume { mountpoint, name } => (mountpoint, TargetOp::Resume { name }),
            Command::Replace { mountpoint, target, force } => {
                let (name, uri) = name_and_uri(&target);
                (mountpoint, TargetOp::Replace { name, uri, force })
            }
            Command::Adopt { mountpoint, name, discard_theirs: _ } => (mountpoint, TargetOp::Adopt { name }),
        };
        let entry = reach::mounted_at(&mountpoint)?;
        said(&reach::connect(&entry)?.call(Op::Target(op), |_| ())?)
    }
}

/// Prints what was done.
pub fn said(said: &Said) -> Outcome {
    said.lines.iter().try_for_each(|line| output::print(&format!("{line}\n")))
}

fn list(mountpoint: Option<PathBuf>) -> Outcome {
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

fn name_and_uri(text: &str) -> (String, Option<String>) {
    match text.split_once('=').filter(|(name, _)| !name.contains("://")) {
        Some((name, uri)) => (name.to_owned(), Some(uri.to_owned())),
        None => (text.to_owned(), None),
    }
}

/// A moment, in seconds since 1970.
fn moment(text: &str) -> Result<i64, Error> {
    if let Ok(span) = output::parse_span(text) {
        let seconds = span.max(Duration::from_secs(1)).as_secs();
        return Ok(clock::now().secs().saturating_add(i64::try_from(seconds).unwrap_or(i64::MAX)));
    }
    match text.parse::<jiff::Timestamp>() {
        Ok(moment) => Ok(moment.as_second()),
        Err(_) => Err(Error::new(ErrorKind::Usage, format!("{text:?} is no time"))
            .hint("write a time as 2026-11-21T08:00:00Z, or a span as 2h")),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_named_with_or_without_its_place() {
        let named = |text| name_and_uri(text);
        assert_eq!(named("c=fs:///c"), ("c".into(), Some("fs:///c".into())));
        assert_eq!(named("c=s3://b/p?region=r"), ("c".into(), Some("s3://b/p?region=r".into())));
        assert_eq!(named("c"), ("c".into(), None));
    }

    #[test]
    fn a_moment_is_a_time_or_a_span_from_now() {
        assert_eq!(moment("2026-11-21T08:00:00Z").unwrap(), 1_795_248_000);
        let in_two_hours = moment("2h").unwrap() - clock::now().secs();
        assert!((7_199..=7_201).contains(&in_two_hours), "{in_two_hours}");
        assert_eq!(moment("tomorrow").unwrap_err().kind, ErrorKind::Usage);
    }
}
