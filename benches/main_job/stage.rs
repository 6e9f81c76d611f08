//! The stage: a scratch folder with two directory targets, the daemon, and the work that is done.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const TANDEMFS: &str = env!("CARGO_BIN_EXE_tandemfs");

/// A scratch folder; unmounted and removed at the end.
pub struct Stage {
    dir: PathBuf,
    round: u32,
}

impl Stage {
    /// An empty stage in `target/`, on the disk that the project lies on.
    pub fn new() -> Stage {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("main-job-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("the target folder is writable");
        Stage { dir, round: 0 }
    }

    /// A place of its own.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn round_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}-{}", self.round))
    }

    /// Where the filesystem is mounted.
    pub fn mountpoint(&self) -> PathBuf {
        self.round_path("mnt")
    }

    /// The directory of a target.
    pub fn target(&self, name: &str) -> PathBuf {
        self.round_path(name)
    }

    /// Mounts a new filesystem with two directory targets.
    pub fn mount(&mut self) {
        std::fs::create_dir_all(self.mountpoint()).unwrap();
        let target = |name: &str| format!("{name}=fs://{}", self.target(name).display());
        tandemfs(&[
            "mount",
            path(&self.mountpoint()),
            "--target",
            &target("a"),
            "--target",
            &target("b"),
            "--state-dir",
            path(&self.round_path("state")),
        ]);
    }

    /// Process id of the daemon.
    pub fn daemon(&self) -> u32 {
        let state = self.round_path("state");
        let wanted = state.as_os_str().as_encoded_bytes();
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .find(|pid: &u32| {
                let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                line.windows(wanted.len()).any(|window| window == wanted) && *pid != std::process::id()
            })
            .expect("the daemon runs")
    }

    /// Waits until everything is on every target.
    pub fn flush(&self) {
        tandemfs(&["flush", path(&self.mountpoint()), "--wait", "all", "--timeout", "30m"]);
    }

    /// Drains and unmounts.
    pub fn unmount(&self) {
        tandemfs(&["umount", path(&self.mountpoint()), "--timeout", "30m"]);
    }

    /// Restores from one target alone into a new place, mounts that, and compares it with `source`.
    pub fn restore_and_compare(&mut self, name: &str, source: &Path) {
        let from = format!("fs://{}", self.target(name).display());
        let state = self.round_path(&format!("restored-{name}"));
        let mountpoint = self.round_path(&format!("restored-{name}-mnt"));
        std::fs::create_dir_all(&mountpoint).unwrap();
        tandemfs(&["restore", "--from", &from, "--state-dir", path(&state)]);
        let target = format!("{name}={from}");
        tandemfs(&["mount", path(&mountpoint), "--target", &target, "--state-dir", path(&state)]);
        let same = Command::new("diff").args(["-r", "--no-dereference"]).args([source, &mountpoint]).status();
        tandemfs(&["umount", path(&mountpoint), "--timeout", "30m"]);
        assert!(same.is_ok_and(|status| status.success()), "what came back from {name} differs");
    }

    /// Makes room for another filesystem.
    pub fn reset(&mut self) {
        for name in ["a", "b", "state", "restored-a", "restored-b"] {
            let _ = std::fs::remove_dir_all(self.round_path(name));
        }
        let _ = std::fs::remove_dir_all(self.dir.join("plain"));
        let _ = std::fs::remove_dir_all(self.dir.join("source"));
        self.round += 1;
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["mnt", "restored-a-mnt", "restored-b-mnt"] {
                let _ = Command::new(TANDEMFS).args(["umount", "--force", path(&self.round_path(name))]).output();
            }
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("the target folder has a name in UTF-8")
}

fn tandemfs(args: &[&str]) {
    let output = Command::new(TANDEMFS).args(args).output().expect("the binary was built");
    assert!(
        output.status.success(),
        "tandemfs {args:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

/// `cp -a`.
pub fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status().expect("cp exists");
    assert!(status.success());
}

/// Files of 4-64 KiB in 200 directories.
pub fn small_files(dir: &Path, count: u64) {
    for index in 0..count {
        let folder = dir.join(format!("d{:03}", index % 200));
        std::fs::create_dir_all(&folder).unwrap();
        let length = 4096 + (index * 7919) % (60 << 10);
        std::fs::write(folder.join(format!("f{index:05}")), noise(index + 1, length as usize)).unwrap();
    }
}

/// One file of incompressible bytes.
pub fn noise_file(to: &Path, bytes: u64) {
    let mut file = File::create(to).unwrap();
    for block in 0..bytes >> 20 {
        file.write_all(&noise(block + 1_000_000, 1 << 20)).unwrap();
    }
}

/// Overwrites 4 KiB at pseudo-random places: the same ones for the same count.
pub fn overwrite(file: &Path, edits: u64) {
    let file = File::options().write(true).open(file).unwrap();
    let blocks = file.metadata().unwrap().len() / 4096;
    for edit in 0..edits {
        let block = (edit + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) % blocks;
        file.write_all_at(&noise(edit + 77, 4096), block * 4096).unwrap();
    }
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
