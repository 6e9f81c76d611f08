//! A place with targets, a state directory and a mountpoint, which leaves no mount and no process behind.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

pub use super::run::PATIENCE;
use super::run::{Finished, finish, succeed, tandemfs};

/// A temporary folder: `mnt`, `state`, and one directory per target.
pub struct Place {
    root: PathBuf,
    _dir: tempfile::TempDir,
    targets: Vec<(String, String)>,
    config: Option<PathBuf>,
    environment: Vec<(String, String)>,
}

impl Place {
    /// A place with directory targets of these names.
    pub fn new(targets: &[&str]) -> Place {
        let dir = tempfile::Builder::new().prefix("tandemfs-test-").tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("mnt")).unwrap();
        let mut place = Place { root, _dir: dir, targets: Vec::new(), config: None, environment: Vec::new() };
        for name in targets {
            let uri = format!("fs://{}", place.path(name).display());
            place.add_target(name, &uri);
        }
        place
    }

    /// One more target.
    pub fn add_target(&mut self, name: &str, uri: &str) {
        self.targets.push((name.into(), uri.into()));
    }

    /// Mounts take this file in place of the targets.
    pub fn use_config(&mut self, path: &Path) {
        self.config = Some(path.to_owned());
    }

    /// The program's environment, for secrets.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.into(), value.into()));
    }

    /// Takes a variable out of the program's environment again.
    pub fn unset_env(&mut self, name: &str) {
        self.environment.retain(|(known, _)| known != name);
    }

    /// The program with the environment of this place.
    pub fn tandemfs(&self) -> Command {
        let mut command = tandemfs();
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// A path in the place.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The mountpoint.
    pub fn mnt(&self) -> PathBuf {
        self.path("mnt")
    }

    /// The command that mounts with the state directory `state`.
    pub fn mount_command(&self, state: &str) -> Command {
        let mut command = self.tandemfs();
        command.arg("mount").arg(self.mnt()).arg("--state-dir").arg(self.path(state));
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
            return command;
        }
        for (name, uri) in &self.targets {
            command.arg("--target").arg(format!("{name}={uri}"));
        }
        command
    }

    /// Mounts; it must succeed.
    pub fn mount(&self) -> Mounted<'_> {
        self.mount_state("state")
    }

    /// Mounts with another state directory.
    pub fn mount_state(&self, state: &str) -> Mounted<'_> {
        succeed(&mut self.mount_command(state));
        Mounted { place: self, state: state.into(), ended: false }
    }

    /// Mounts with another state directory and more arguments.
    pub fn mount_with(&self, state: &str, arguments: &[&std::ffi::OsStr]) -> Mounted<'_> {
        succeed(self.mount_command(state).args(arguments));
        Mounted { place: self, state: state.into(), ended: false }
    }

    /// Mounts with another state directory, without the right to write.
    pub fn mount_read_only(&self, state: &str) -> Mounted<'_> {
        succeed(self.mount_command(state).arg("--read-only"));
        Mounted { place: self, state: state.into(), ended: false }
    }

    /// Restores the metadata from `uris` into a new state directory.
    pub fn restore(&self, state: &str, uris: &[String]) -> Finished {
        let mut command = self.tandemfs();
        command.arg("restore").arg("--state-dir").arg(self.path(state));
        for uri in uris {
            command.arg("--from").arg(uri);
        }
        finish(&mut command)
    }

    /// The same, from targets that a configuration names.
    pub fn restore_by(&self, config: &Path, state: &str, names: &[&str]) -> Finished {
        let mut command = self.tandemfs();
        command.arg("restore").arg("--config").arg(config).arg("--state-dir").arg(self.path(state));
        command.args(names.iter().flat_map(|name| ["--from", name]));
        finish(&mut command)
    }

    /// The URI of a target.
    pub fn uri(&self, name: &str) -> String {
        self.targets.iter().find(|(known, _)| known == name).expect("the target was added").1.clone()
    }
}

/// A mounted filesystem.
pub struct Mounted<'a> {
    place: &'a Place,
    state: String,
    ended: bool,
}

impl<'a> Mounted<'a> {
    /// A mount that a test made with a command of its own.
    pub fn found(place: &'a Place, state: &str) -> Mounted<'a> {
        Mounted { place, state: state.into(), ended: false }
    }

    /// A path in the mounted tree.
    pub fn path(&self, name: &str) -> PathBuf {
        self.place.mnt().join(name)
    }

    /// The daemon, by the lock file of its state directory.
    pub fn daemon(&self) -> Option<u32> {
        daemon_of(&self.place.path(&self.state))
    }

    /// Runs `tandemfs NAME MOUNTPOINT ARGUMENTS`.
    pub fn command(&self, name: &str, arguments: &[&str]) -> Finished {
        finish(tandemfs().arg(name).arg(self.place.mnt()).args(arguments))
    }

    /// `status --json`.
    pub fn status(&self) -> serde_json::Value {
        let finished = self.command("status", &["--json"]);
        assert_eq!(finished.code, 0, "{}", finished.stderr);
        serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{e}: {}", finished.stdout))
    }

    /// Unmounts through the command; every target must become whole.
    pub fn umount(mut self) {
        let finished = self.command("umount", &["--timeout", "600"]);
        assert_eq!(finished.code, 0, "umount: {}\n{}\n{}", finished.stdout, finished.stderr, end_of(&self.log()));
        self.ended = true;
        wait_for("the daemon ends", || self.daemon().is_none());
    }

    /// Ends the daemon without any warning.
    pub fn kill(mut self) {
        self.ended = true;
        self.end();
    }

    /// Waits until the daemon has ended by itself, after its mount was taken away.
    pub fn wait_end(mut self) {
        self.ended = true;
        wait_for("the daemon ends", || self.daemon().is_none());
    }

    /// The daemon's log, all of it: who waits for a line must find it, however many came after.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.place.path(&self.state).join("daemon.log")).unwrap_or_default()
    }

    fn end(&self) {
        if let Some(pid) = self.daemon().and_then(|pid| rustix::process::Pid::from_raw(pid as i32)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            wait_for("the daemon is gone", || self.daemon().is_none());
        }
        let _ = Command::new("umount").arg("-l").arg(self.place.mnt()).output();
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if !self.ended {
            if std::thread::panicking() {
                eprintln!("daemon.log of the failed test:\n{}", end_of(&self.log()));
            }
            self.end();
        }
    }
}

/// The process that holds the lock of a state directory, if it runs our program.
fn daemon_of(state: &Path) -> Option<u32> {
    let pid: u32 = std::fs::read_to_string(state.join("lock")).ok()?.trim().parse().ok()?;
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let zombie = std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
    (program == Path::new(env!("CARGO_BIN_EXE_tandemfs")) && !zombie).then_some(pid)
}

/// True while the journal of a state directory that nobody has mounted begins with the first record of all: a target that
/// comes next follows from there. A mount drops what every target has, soon after the last of them got it.
pub fn has_whole_history(state: &Path) -> bool {
    let database = rusqlite::Connection::open(state.join("meta.sqlite")).unwrap();
    database.query_row("SELECT EXISTS (SELECT 1 FROM journal WHERE seq = 1)", [], |row| row.get(0)).unwrap()
}

/// The last lines of a log.
fn end_of(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// Waits until `condition` holds, at most [`PATIENCE`].
#[track_caller]
pub fn wait_for(what: &str, condition: impl Fn() -> bool) {
    wait_at_most(PATIENCE, what, condition);
}

/// Waits until `condition` holds, for what may take long on any machine.
#[track_caller]
pub fn wait_at_most(patience: Duration, what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < patience, "waited {patience:?} and still not: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
