//! Running programs and saying what they said.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longer than anything takes on a machine that is very slow: it ends only a test that has failed.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// The program under test.
pub fn tandemfs() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tandemfs"));
    command.stdin(Stdio::null()).env("TANDEMFS_LOG", "tandemfs=debug,info").env_remove("AWS_CA_BUNDLE");
    command
}

/// What a finished program left.
#[derive(Debug)]
pub struct Finished {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a command to its end.
pub fn finish(command: &mut Command) -> Finished {
    let busy = |output: &std::io::Result<Output>| {
        output.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ExecutableFileBusy)
    };
    let (start, mut output) = (Instant::now(), command.output());
    // What this process has just written, and closed, the child of another test may hold until it executes its program.
    while busy(&output) && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(5));
        output = command.output();
    }
    let Output { status, stdout, stderr } = output.unwrap_or_else(|e| panic!("{command:?}: {e}"));
    Finished {
        code: status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    }
}

/// Runs a command that must succeed, and returns its stdout.
pub fn succeed(command: &mut Command) -> String {
    let finished = finish(command);
    assert_eq!(finished.code, 0, "{command:?} failed\nstdout: {}\nstderr: {}", finished.stdout, finished.stderr);
    finished.stdout
}

/// Runs another program that must succeed.
pub fn program<I: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = I>) -> String {
    succeed(Command::new(name).args(arguments).stdin(Stdio::null()))
}

/// Runs a line of shell in `directory`; each of its commands must succeed. (A negated one that succeeds does not end it:
/// `if command; then exit 9; fi`.)
pub fn shell(directory: &std::path::Path, line: &str) -> String {
    succeed(Command::new("bash").args(["-euo", "pipefail", "-c", line]).current_dir(directory).stdin(Stdio::null()))
}

/// True if the programs are installed; says aloud which is not. With `TANDEMFS_SKIP_NOTHING` that is a failure: a machine
/// that is to test everything does.
pub fn installed(names: &[&str]) -> bool {
    names.iter().all(|name| {
        let found = Command::new("sh").args(["-c", &format!("command -v {name}")]).output().unwrap().status.success();
        if !found {
            skipped(&format!("no {name} on this machine"));
        }
        found
    })
}

/// Says aloud that a test does not run here.
#[track_caller]
pub fn skipped(why: &str) {
    assert!(std::env::var_os("TANDEMFS_SKIP_NOTHING").is_none_or(|set| set.is_empty()), "not tested: {why}");
    eprintln!("SKIPPED: {why}");
}

/// A suite that `.ci/run` installs into `target/tools`; else one from the PATH. Says aloud when there is none.
pub fn tool(name: &str) -> Option<std::path::PathBuf> {
    let installed_here = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin").join(name);
    if installed_here.exists() {
        return Some(installed_here);
    }
    installed(&[name]).then(|| name.into())
}
