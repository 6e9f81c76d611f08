//! The command line: one file per command.
//!
//! Owns: arguments, what is printed, exit codes.
//! Does not own: any logic that `control` could not offer to another client.
//!
//! | exit code | means |
//! |---|---|
//! | 0 | done |
//! | 1 | failed |
//! | 2 | wrong usage or configuration; nothing was touched |
//! | 3 | not drained in time; safe locally, still queued |
//! | 4 | findings that were not repaired |
//!
//! Errors go to stderr: `error: what, which object, why`, then `hint: the next step`.

mod check;
mod configured;
mod demo;
mod flush;
mod gc;
mod mount;
mod mount_helper;
mod output;
mod progress;
mod reach;
mod reload;
mod remount;
mod restore;
mod scrub;
mod status;
mod target;
mod umount;
mod whereis;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::control::{Error, ErrorKind};

/// Result of a command.
type Outcome = Result<(), Error>;

/// A filesystem that keeps every file, whole and verifiable, in several object stores at once
#[derive(Debug, Parser)]
#[command(name = "tandemfs", version, max_term_width = 100, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Mount(mount::Mount),
    Umount(umount::Umount),
    Flush(flush::Flush),
    Status(status::Status),
    Whereis(whereis::Whereis),
    Restore(restore::Restore),
    Scrub(scrub::Scrub),
    Check(check::Check),
    Target(target::Target),
    Reload(reload::Reload),
    #[command(hide = true)]
    Remount(remount::Remount),
    Gc(gc::Gc),
    Demo(demo::Demo),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let given: Vec<_> = std::env::args_os().collect();
    let Some(arguments) = mount_helper::translate(given) else { return ExitCode::SUCCESS };
    let outcome = match Arguments::parse_from(&arguments).command {
        Command::Mount(command) => command.run(&arguments),
        Command::Umount(command) => command.run(),
        Command::Flush(command) => command.run(),
        Command::Status(command) => command.run(),
        Command::Whereis(command) => command.run(),
        Command::Restore(command) => command.run(),
        Command::Scrub(command) => command.run(),
        Command::Check(command) => command.run(),
        Command::Target(command) => command.run(),
        Command::Reload(command) => command.run(),
        Command::Remount(command) => command.run(),
        Command::Gc(command) => command.run(),
        Command::Demo(command) => command.run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("{}", describe(&error));
            ExitCode::from(exit_code(error.kind))
        }
    }
}

/// The exit code of an error (DESIGN §8).
fn exit_code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Failed | ErrorKind::Busy | ErrorKind::NotFound | ErrorKind::Unreachable => 1,
        ErrorKind::Usage => 2,
        ErrorKind::Timeout => 3,
        ErrorKind::Findings => 4,
    }
}

/// An error as people see it.
fn describe(error: &Error) -> String {
    let mut text = format!("error: {}\n", error.message);
    for hint in error.hint.iter().flat_map(|hint| hint.lines()) {
        text += &format!("hint: {hint}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn an_error_is_followed_by_its_hint() {
        let error = Error::failed("target \"b2\" rejects our credentials").hint("look at its keys");
        assert_eq!(describe(&error), "error: target \"b2\" rejects our credentials\nhint: look at its keys\n");
        assert_eq!(describe(&Error::failed("x")), "error: x\n");
    }
}
