//! Going into the background: the command executes itself again with `--foreground` and waits on a pipe for "ready" or
//! the error. Never a fork with threads.
//!
//! ```text
//! tandemfs mount …            tandemfs mount … --foreground --report-ready
//!   └─ spawn, stdout = pipe ─▶ setsid; assemble the daemon
//!      read until closed     ◀─ {"ok":null} or {"error":{kind, message, hint}}
//!      exit 0 or with error      stdin, stdout to /dev/null, stderr to the log
//! ```

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::control::Error;

/// The hidden flag of the second execution.
pub const REPORT_READY: &str = "--report-ready";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    Ok(()),
    Error(Error),
}

/// Starts the daemon with `arguments`, the first of which is the name it runs under, and returns when the filesystem is
/// usable or has failed.
pub fn start(arguments: &[OsString]) -> Result<(), Error> {
    let failed = |e: std::io::Error| Error::failed(format!("start the daemon: {e}"));
    let (name, arguments) = arguments.split_first().ok_or_else(|| Error::failed("start the daemon: no name"))?;
    // By its path, so that `ps` shows the name; by the link where the file was replaced meanwhile.
    let program = std::env::current_exe().ok().filter(|path| path.exists());
    let mut child = Command::new(program.as_deref().unwrap_or(Path::new("/proc/self/exe")))
        .arg0(name)
        // Before the others: after "--" it would be the name of a file.
        .args(&arguments[..arguments.len().min(1)])
        .arg(REPORT_READY)
        .args(arguments.iter().skip(1))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut report = Vec::new();
    child.stdout.take().expect("stdout is a pipe").read_to_end(&mut report).map_err(failed)?;
    match serde_json::from_slice(&report) {
        Ok(Report::Ok(())) => Ok(()),
        Ok(Report::Error(error)) => Err(error),
        Err(_) => {
            let status = child.wait().map_err(failed)?;
            Err(Error::failed(format!("the daemon ended before the filesystem was usable: {status}"))
                .hint("try again with --foreground to see why"))
        }
    }
}

/// The daemon's end of the pipe.
#[derive(Debug)]
pub struct Readiness {
    background: bool,
}

impl Readiness {
    /// In the background this process leads a session of its own, so that the terminal's signals do not reach it.
    pub fn new(background: bool) -> Readiness {
        if background {
            // It fails only for the leader of a process group, which then is already on its own.
            let _ = rustix::process::setsid();
        }
        Readiness { background }
    }

    /// The filesystem is usable. Whoever waited goes on; from here on this process has no terminal, `log` takes what
    /// is written to stderr. Fails when nobody waits any more: then the mount is not wanted.
    pub fn ready(self, log: &Path) -> Result<(), Error> {
        if self.background {
            let failed = |e: std::io::Error| Error::failed(format!("go into the background: {e}"));
            send(&Report::Ok(()))
                .map_err(|e| Error::failed(format!("the command that mounts was interrupted: {e}")))?;
            let null = File::options().read(true).write(true).open("/dev/null").map_err(failed)?;
            let log = File::options().append(true).create(true).open(log).map_err(failed)?;
            replace(&null, libc::STDIN_FILENO).map_err(failed)?;
            replace(&null, libc::STDOUT_FILENO).map_err(failed)?;
            replace(&log, libc::STDERR_FILENO).map_err(failed)?;
        }
        Ok(())
    }

    /// The mount failed. In the background the waiting command says it; else the caller does.
    pub fn failed(self, error: &Error) {
        if self.background {
            // If nobody waits any more, the log has it.
            let _ = send(&Report::Error(error.clone()));
        }
    }
}

/// Makes the standard descriptor `standard` refer to `file`.
fn replace(file: &File, standard: i32) -> std::io::Result<()> {
    // SAFETY: both are open descriptors; nothing in this process owns a standard one.
    match unsafe { libc::dup2(file.as_raw_fd(), standard) } {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn send(report: &Report) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&serde_json::to_vec(report)?)?;
    stdout.flush()
}
