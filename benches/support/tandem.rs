//! TandemFS with two directory targets, driven by its commands.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A filesystem in a folder of its own: `mnt`, `state`, and the targets `a` and `b`.
pub struct Tandem {
    program: PathBuf,
    dir: PathBuf,
}

impl Tandem {
    /// A filesystem in `dir`, which is made; not mounted yet.
    pub fn new(program: &Path, dir: &Path) -> Tandem {
        std::fs::create_dir_all(dir.join("mnt")).expect("the target folder is writable");
        Tandem { program: program.to_owned(), dir: dir.to_owned() }
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    /// The directory of a target.
    pub fn target(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Mounts it; what was there before is there again.
    pub fn mount(&self) {
        let target = |name: &str| format!("{name}=fs://{}", self.target(name).display());
        self.run(&[
            "mount",
            path(&self.mountpoint()),
            "--target",
            &target("a"),
            "--target",
            &target("b"),
            "--state-dir",
            path(&self.dir.join("state")),
        ]);
    }

    /// Process id of the daemon.
    pub fn daemon(&self) -> u32 {
        let lock = std::fs::read_to_string(self.dir.join("state/lock")).expect("a mounted state directory has a lock");
        lock.trim().parse().expect("the lock says the process")
    }

    /// Waits until everything is on every target.
    pub fn flush(&self) {
        self.run(&["flush", path(&self.mountpoint()), "--wait", "all", "--timeout", "30m"]);
    }

    /// Drains and unmounts.
    pub fn unmount(&self) {
        self.run(&["umount", path(&self.mountpoint()), "--timeout", "30m"]);
    }

    /// Unmounts whatever is there, mounted or not.
    pub fn force_unmount(&self) {
        let _ = Command::new(&self.program).args(["umount", "--force", path(&self.mountpoint())]).output();
    }

    /// Restores from the target `name` of `other` alone, and mounts that here.
    pub fn restore_from(&self, other: &Tandem, name: &str) {
        let from = format!("fs://{}", other.target(name).display());
        let state = self.dir.join("state");
        self.run(&["restore", "--from", &from, "--state-dir", path(&state)]);
        let target = format!("{name}={from}");
        self.run(&["mount", path(&self.mountpoint()), "--target", &target, "--state-dir", path(&state)]);
    }

    fn run(&self, args: &[&str]) {
        let output = Command::new(&self.program).args(args).output().expect("the binary was built");
        assert!(
            output.status.success(),
            "tandemfs {args:?}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("the target folder has a name in UTF-8")
}
