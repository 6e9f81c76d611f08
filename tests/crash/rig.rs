//! A mount that is made to die again and again, and everything around it. Every wait has a deadline.
//!
//! Owns: the daemon as a child process, unmounting what is dead, reading trees, restoring from each target.
//! Does not own: what must be there (`model`).
//!
//! The mount is touched only while its daemon is known to work, and then under a watch that kills the daemon when it takes
//! too long: its end aborts the connection, so that whoever waits in the mount gets an error.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tandemfs::chance::Seeded;

use super::model::{Crash, Found, History};
use super::past::{Acked, From, Past};
use super::workload::{self, Order};
use crate::support::run::{Finished, tandemfs};
use crate::support::tree::{self, Depth, Tree};

/// Longer than anything takes on a machine that is very slow.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Places: `base` holds logs and mountpoints, `state` and the targets may lie on a filesystem of their own.
pub struct Rig {
    pub base: PathBuf,
    pub state: PathBuf,
    pub targets: Vec<(String, PathBuf)>,
    /// TOML that mounts are made with.
    pub settings: String,
    /// The same: when an `fsync` returns.
    acked: Option<&'static str>,
    _dir: tempfile::TempDir,
}

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    mnt: PathBuf,
}

impl Rig {
    /// State and targets beside each other in a temporary folder.
    pub fn new(targets: &[&str]) -> Rig {
        Rig::on(None, targets)
    }

    /// State and targets below `disk`.
    pub fn on(disk: Option<&Path>, targets: &[&str]) -> Rig {
        let dir = tempfile::Builder::new().prefix("tandemfs-crash-").tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        std::fs::create_dir(base.join("mnt")).unwrap();
        let disk = disk.map_or(base.clone(), Path::to_owned);
        let targets = targets.iter().map(|name| ((*name).to_owned(), disk.join(name))).collect();
        Rig { state: disk.join("state"), base, targets, settings: String::new(), acked: None, _dir: dir }
    }

    pub fn mnt(&self) -> PathBuf {
        self.base.join("mnt")
    }

    pub fn uri(&self, target: &str) -> String {
        let (_, path) = self.targets.iter().find(|(name, _)| name == target).expect("the target was named");
        format!("fs://{}", path.display())
    }

    /// The command that mounts `state` at `mnt`.
    pub fn mount_command(&self, mnt: &Path, state: &Path) -> Command {
        let mut command = tandemfs();
        command.arg("mount").arg(mnt).arg("--state-dir").arg(state);
        if self.settings.is_empty() && self.acked.is_none() {
            for (name, _) in &self.targets {
                command.arg("--target").arg(format!("{name}={}", self.uri(name)));
            }
            return command;
        }
        let mut text = format!("{}\n", self.settings);
        if let Some(policy) = self.acked {
            text += &format!("[acknowledge]\nfsync = \"{policy}\"\n");
        }
        for (name, _) in &self.targets {
            text += &format!("[target.{name}]\nuri = \"{}\"\n", self.uri(name));
        }
        let config = self.base.join("tandemfs.toml");
        std::fs::write(&config, text).unwrap();
        command.arg("--config").arg(config);
        command
    }

    /// Mounts; an error if the daemon died before the mount was usable.
    pub fn try_mount(&self, failpoint: Option<&str>) -> Result<Daemon, String> {
        let mut command = self.mount_command(&self.mnt(), &self.state);
        if let Some(failpoint) = failpoint {
            command.env(tandemfs::testing::failpoint::VARIABLE, failpoint);
        }
        Daemon::start(command, &self.mnt())
    }

    /// Mounts; it must succeed.
    pub fn mount(&self) -> Daemon {
        self.try_mount(None).unwrap_or_else(|error| panic!("{error}\n{}", self.log()))
    }

    /// Mounts so that other users may use it; they need to reach it.
    pub fn mount_shared(&self) -> Daemon {
        let mut command = self.mount_command(&self.mnt(), &self.state);
        command.args(["-o", "allow_other"]);
        Daemon::start(command, &self.mnt()).unwrap_or_else(|error| panic!("{error}\n{}", self.log()))
    }

    /// The end of the daemon's log.
    pub fn log(&self) -> String {
        let log = std::fs::read_to_string(self.state.join("daemon.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// What is under the mount.
    pub fn scan(&self, daemon: &Daemon) -> Found {
        let _watch = daemon.watch();
        scan(&self.mnt()).unwrap_or_else(|error| panic!("the mount cannot be read: {error}\n{}", self.log()))
    }

    /// Unmounts with every target whole.
    pub fn umount(&self, mut daemon: Daemon) {
        let finished = run(tandemfs().arg("umount").arg(self.mnt()).args(["--timeout", "500"]));
        assert_eq!(finished.code, 0, "umount: {}{}\n{}", finished.stdout, finished.stderr, self.log());
        daemon.wait();
    }

    /// Drains, unmounts, and compares what a restore from each target alone gives with what was mounted.
    pub fn check_targets(&self, daemon: Daemon) {
        let expected = {
            let _watch = daemon.watch();
            tree::read(&self.mnt(), Depth::Restored)
        };
        self.umount(daemon);
        for (name, _) in &self.targets {
            let restored = self.restored(name, |mnt| tree::read(mnt, Depth::Restored));
            tree::assert_same(&format!("restored from {name}"), &expected, &restored);
        }
    }

    /// What a restore from each target gives as they are now, and from all of them together. `None`: one of them has nothing
    /// to restore from yet.
    pub fn as_left(&self) -> Option<Left> {
        if !self.targets.iter().all(|(_, place)| place.join("tandemfs.json").exists()) {
            return None;
        }
        let names: Vec<&str> = self.targets.iter().map(|(name, _)| name.as_str()).collect();
        let from = |names: &[&str]| self.restored_from(names, |mnt| scan(mnt).unwrap());
        Some(Left { single: names.iter().map(|name| from(&[name])).collect(), together: from(&names) })
    }

    /// Mounts a restore from `target` and looks at it.
    pub fn restored<T>(&self, target: &str, look: impl FnOnce(&Path) -> T) -> T {
        self.restored_from(&[target], look)
    }

    fn restored_from<T>(&self, targets: &[&str], look: impl FnOnce(&Path) -> T) -> T {
        let (state, mnt) = (self.base.join("restored"), self.base.join("restored-mnt"));
        let _ = std::fs::remove_dir_all(&state);
        std::fs::create_dir_all(&mnt).unwrap();
        let (mut restore, mut mount) = (tandemfs(), tandemfs());
        restore.arg("restore").arg("--state-dir").arg(&state);
        mount.arg("mount").arg(&mnt).arg("--state-dir").arg(&state).arg("--read-only");
        for target in targets {
            restore.arg("--from").arg(self.uri(target));
            mount.arg("--target").arg(format!("{target}={}", self.uri(target)));
        }
        let finished = run(&mut restore);
        assert_eq!(finished.code, 0, "restore from {targets:?}: {}", finished.stderr);
        let daemon = Daemon::start(mount, &mnt).unwrap();
        let looked = {
            let _watch = daemon.watch();
            look(&mnt)
        };
        daemon.kill();
        looked
    }

    /// Starts a workload on the mount, with some pause up to `pause_max` microseconds between operations.
    pub fn workload(&self, random: &mut Seeded, ops: u64, pause_max: u64) -> (Child, PathBuf) {
        let pause_micros = random.below_u64(pause_max);
        let log = self.base.join("workload.log");
        let _ = std::fs::remove_file(&log);
        let order = Order { root: self.mnt(), log: log.clone(), seed: random.draw(), ops, pause_micros };
        (workload::start(&order), log)
    }

    /// Reads the log of a workload whose mount is dead, and ends it.
    pub fn history(&self, mut child: Child, log: &Path) -> History {
        // Its mount is gone, so it is not stuck.
        let _ = child.kill();
        wait_child(&mut child, "the workload");
        let log = std::fs::read_to_string(log).unwrap_or_default();
        assert!(!log.contains("unexpected"), "{}", log.lines().last().unwrap_or_default());
        History::parse(&log)
    }

    /// Compares what is mounted with the history; keeps what is needed to understand a failure. Returns which file is which
    /// inode.
    pub fn check(
        &self,
        what: &str,
        start: &Found,
        history: &History,
        found: &Found,
        crash: Crash,
    ) -> BTreeMap<usize, u64> {
        history.check(start, found, crash).unwrap_or_else(|why| {
            let keep = std::env::temp_dir().join("tandemfs-crash-failed");
            let _ = std::fs::create_dir_all(&keep);
            let _ = std::fs::copy(self.base.join("workload.log"), keep.join("workload.log"));
            let _ = std::fs::copy(self.state.join("daemon.log"), keep.join("daemon.log"));
            panic!("{what}: {why}\nlogs: {}\n{}", keep.display(), self.log());
        })
    }

    /// From the next mount on an `fsync` returns when so many have what it covers.
    pub fn acknowledge(&mut self, acked: Acked) {
        self.acked = Some(match acked {
            Acked::Local => "local",
            Acked::One => "one",
            Acked::All => "all",
        });
    }
}

/// What was restored from targets as a crash left them.
pub struct Left {
    single: Vec<Found>,
    together: Found,
}

impl Left {
    /// Each target holds what it acknowledged, and a cut; together they hold what any of them does.
    pub fn check(&self, what: &str, rig: &Rig, past: &Past) {
        let places = rig.targets.iter().map(|(name, _)| name.as_str());
        for (name, found) in places.zip(&self.single) {
            past.check(found, From::Single).unwrap_or_else(|why| panic!("{what}: restored from {name}: {why}"));
        }
        let union = past.check(&self.together, From::All).and_then(|()| past.check_union(&self.together, &self.single));
        union.unwrap_or_else(|why| panic!("{what}: restored from all: {why}"));
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for mnt in ["mnt", "restored-mnt"] {
            let _ = Command::new("umount").arg("-l").arg(self.base.join(mnt)).stderr(Stdio::null()).status();
        }
    }
}

impl Daemon {
    fn start(mut command: Command, mnt: &Path) -> Result<Daemon, String> {
        // As its own child and not in the background: so its end can be waited for.
        command.args(["--foreground", "--report-ready"]).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let daemon = Daemon { child, mnt: mnt.to_owned() };
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = sender.send(line);
        });
        match receiver.recv_timeout(PATIENCE) {
            Ok(line) if line.contains("\"ok\"") => Ok(daemon),
            Ok(line) => Err(format!("not mounted: {line}")),
            Err(_) => Err("the daemon neither mounts nor ends".into()),
        }
    }

    /// True if it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self) {
        wait_child(&mut self.child, "the daemon");
    }

    /// Waits a while for it to end by itself.
    pub fn wait_for(&mut self, patience: Duration) {
        self.wait_for_or(patience, || false);
    }

    /// The same, or for something else.
    pub fn wait_for_or(&mut self, patience: Duration, mut other: impl FnMut() -> bool) {
        let start = Instant::now();
        while start.elapsed() < patience && !self.has_ended() && !other() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills it and takes the dead mount away.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        wait_child(&mut self.child, "the killed daemon");
        let _ = Command::new("umount").arg("-l").arg(&self.mnt).stderr(Stdio::null()).status();
    }

    /// While the guard lives, the daemon is killed when it takes too long.
    pub fn watch(&self) -> Watch {
        self.watch_for(PATIENCE)
    }

    /// The same, with a patience of its own.
    pub fn watch_for(&self, patience: Duration) -> Watch {
        let (sender, receiver) = mpsc::channel::<()>();
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        let thread = std::thread::spawn(move || {
            if receiver.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("the mount does not answer: its daemon is killed");
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        });
        Watch { sender: Some(sender), thread: Some(thread) }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}

/// See [`Daemon::watch`].
pub struct Watch {
    sender: Option<mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.sender.take());
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

fn wait_child(child: &mut Child, what: &str) {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < PATIENCE, "{what} does not end");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs a command that must end in time.
pub fn run(command: &mut Command) -> Finished {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = |mut from: Box<dyn std::io::Read + Send>| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = from.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    let (out, err) = (read(Box::new(out)), read(Box::new(err)));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > PATIENCE * 2 {
            let _ = child.kill();
            panic!("{command:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    Finished { code: status.code().unwrap_or(-1), stdout: out.join().unwrap(), stderr: err.join().unwrap() }
}

/// Waits until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "still not: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Reads a whole tree.
pub fn scan(root: &Path) -> std::io::Result<Found> {
    let mut found = Found::new();
    let mut pending = vec![String::new()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(root.join(&directory))? {
            let entry = entry?;
            let name = entry.file_name().into_string().expect("names are plain");
            let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
            let metadata = std::fs::symlink_metadata(root.join(&path))?;
            if metadata.is_dir() {
                pending.push(path.clone());
                found.insert(path, None);
            } else {
                let bytes = std::fs::read(root.join(&path))?;
                assert_eq!(bytes.len() as u64, metadata.len(), "{path}: its size is that of its bytes");
                found.insert(path, Some((metadata.ino(), bytes)));
            }
        }
    }
    Ok(found)
}

/// A tree without what a mount changes by being made anew.
pub fn whole(mnt: &Path) -> Tree {
    tree::read(mnt, Depth::Restored)
}
