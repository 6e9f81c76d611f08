//! `tandemfs demo`: the whole story in a temporary folder, told by running the commands themselves.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;

use super::output::{self, bytes, count};
use super::{Outcome, reach};
use crate::clock;
use crate::control::{Error, ErrorKind};
use crate::fuse::{Unmount, unmount};

/// Show what it does: two targets, a copied tree, one target lost, everything restored from the other
///
/// Works in a new temporary folder with two directories as targets, and removes it at the end. Needs nothing but /dev/fuse.
#[derive(Debug, Args)]
pub struct Demo {
    /// Leave the folder and the restored mount for a look around
    #[arg(long)]
    keep: bool,
}

impl Demo {
    /// Runs the command.
    pub fn run(self) -> Outcome {
        if !Path::new("/dev/fuse").exists() {
            return Err(Error::failed("there is no /dev/fuse on this machine").hint("load the module: modprobe fuse"));
        }
        let started = clock::instant();
        let stage = Stage::new()?;
        stage.play()?;
        say(&format!("That took {:.0} seconds.", clock::instant().since(started).as_secs_f64()))?;
        if self.keep {
            let root = stage.root.clone();
            std::mem::forget(stage);
            let mount = root.join("mnt");
            return say(&format!(
                "Look around in {}; then: tandemfs umount {} && rm -r {}",
                mount.display(),
                mount.display(),
                root.display()
            ));
        }
        Ok(())
    }
}

/// The folder. Dropping it ends a mount that is left, and removes everything.
struct Stage {
    root: PathBuf,
}

impl Drop for Stage {
    fn drop(&mut self) {
        let mountpoint = self.path("mnt");
        if let Ok(entry) = reach::mounted_at(&mountpoint) {
            let _ = self.tandemfs(&["umount", "--force", "--timeout", "5"]).arg(entry.mountpoint.to_path()).output();
        }
        // Only where that failed: what is removed below must not be the mounted tree.
        let _ = unmount(&mountpoint, Unmount::Lazy);
        if std::fs::remove_dir(&mountpoint).is_ok() {
            let _ = std::fs::remove_dir_all(&self.root);
        }
    }
}

impl Stage {
    fn new() -> Result<Stage, Error> {
        let root = std::env::temp_dir().join(format!("tandemfs-demo-{}", std::process::id()));
        let made = std::fs::create_dir(&root).and_then(|()| std::fs::create_dir(root.join("mnt")));
        made.map_err(|e| Error::failed(format!("create {}: {e}", root.display())))?;
        let root = root.canonicalize().map_err(|e| Error::failed(format!("{}: {e}", root.display())))?;
        Ok(Stage { root })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn play(&self) -> Outcome {
        say("A tree to keep safe, as anybody has one:")?;
        let made = make_tree(&self.path("original")).map_err(|e| Error::failed(format!("make a tree: {e}")))?;
        say(&format!("  {} with {} in {}\n", count(made.files, "file"), bytes(made.bytes), self.root.display()))?;

        say("Mount a filesystem with two targets. Here they are directories; they may be buckets of two vendors:")?;
        let target = |name: &str| format!("{name}=fs://{}", self.path(name).display());
        self.run(&["mount", "mnt", "--state-dir", "state", "--target", &target("one"), "--target", &target("two")])?;

        say("Copy the tree in. Every write lands on the local disk; uploads go on behind:")?;
        let copying = clock::instant();
        self.run_other("cp", &["-a", "original", "mnt/tree"])?;
        say(&format!("  cp took {:.2} s\n", clock::instant().since(copying).as_secs_f64()))?;
        self.run(&["status", "mnt"])?;
        say("Wait until both targets hold it:")?;
        self.run(&["flush", "mnt"])?;
        self.run(&["status", "mnt"])?;
        self.run(&["umount", "mnt"])?;

        say("Now one vendor deletes the account, and the machine burns down with its local state:")?;
        self.run_other("rm", &["-rf", "one", "state"])?;
        say("Restore from the other target alone:")?;
        let left = format!("fs://{}", self.path("two").display());
        self.run(&["restore", "--from", &left, "--state-dir", "restored"])?;
        self.run(&["mount", "mnt", "--state-dir", "restored", "--target", &target("two")])?;
        say("Compare every name, mode, time and byte with the original:")?;
        let compared = compare(&self.path("original"), &self.path("mnt/tree"))?;
        say(&format!("  {} with {}: identical\n", count(compared.files, "file"), bytes(compared.bytes)))
    }

    /// Runs this program with paths relative to the folder, and shows what it says.
    fn run(&self, arguments: &[&str]) -> Outcome {
        let shown: Vec<&str> = arguments.to_vec();
        say(&format!("$ tandemfs {}", shown.join(" ")))?;
        let status = self.tandemfs(arguments).status();
        ended("tandemfs", arguments, status)?;
        say("")
    }

    fn run_other(&self, program: &str, arguments: &[&str]) -> Outcome {
        say(&format!("$ {program} {}", arguments.join(" ")))?;
        let status = Command::new(program).args(arguments).current_dir(&self.root).stdin(Stdio::null()).status();
        ended(program, arguments, status)
    }

    fn tandemfs(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.args(arguments).current_dir(&self.root).stdin(Stdio::null());
        command
    }
}

fn ended(program: &str, arguments: &[&str], status: std::io::Result<std::process::ExitStatus>) -> Outcome {
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Error::failed(format!("{program} {}: {status}", arguments.join(" ")))),
        Err(e) => Err(Error::failed(format!("{program}: {e}"))),
    }
}

fn say(line: &str) -> Outcome {
    output::print(&format!("{line}\n"))
}

/// What a tree holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Tally {
    files: u64,
    bytes: u64,
}

/// Makes a tree like a home directory: many small texts, some larger files, links, an empty directory.
fn make_tree(root: &Path) -> std::io::Result<Tally> {
    let mut tally = Tally::default();
    let mut file = |path: PathBuf, seed: u64, length: usize, text: bool| -> std::io::Result<()> {
        let mut content = vec![0; length];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut content);
        if text {
            content.iter_mut().for_each(|byte| *byte = b"etaoin shrdlu\n.,"[usize::from(*byte % 16)]);
        }
        tally.files += 1;
        tally.bytes += length as u64;
        File::create(path)?.write_all(&content)
    };
    for project in 0..20 {
        let directory = root.join(format!("projects/project {project}/src"));
        std::fs::create_dir_all(&directory)?;
        for index in 0..50u64 {
            let seed = project * 1000 + index;
            file(directory.join(format!("module_{index}.rs")), seed, 200 + (seed as usize * 7919) % 20_000, true)?;
        }
    }
    std::fs::create_dir_all(root.join("photos/2026"))?;
    for index in 0..20u64 {
        file(root.join(format!("photos/2026/IMG_{index:04}.jpg")), 100_000 + index, 2_500_000, false)?;
    }
    file(root.join("video.mp4"), 200_000, 60 << 20, false)?;
    std::fs::create_dir(root.join("empty"))?;
    std::os::unix::fs::symlink("photos/2026", root.join("newest"))?;
    std::fs::hard_link(root.join("video.mp4"), root.join("photos/2026/video.mp4"))?;
    Ok(tally)
}

/// Compares two trees name by name.
fn compare(original: &Path, copy: &Path) -> Result<Tally, Error> {
    let failed = |path: &Path, e: std::io::Error| Error::failed(format!("{}: {e}", path.display()));
    let names = |directory: &Path| -> Result<Vec<OsString>, Error> {
        let entries = std::fs::read_dir(directory).map_err(|e| failed(directory, e))?;
        let mut names = entries
            .map(|entry| Ok(entry?.file_name()))
            .collect::<std::io::Result<Vec<_>>>()
            .map_err(|e| failed(directory, e))?;
        names.sort();
        Ok(names)
    };
    let mut tally = Tally::default();
    let mut seen = std::collections::HashSet::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(directory) = pending.pop() {
        let found = names(&original.join(&directory))?;
        if names(&copy.join(&directory))? != found {
            return Err(differs(&directory, "the names in it"));
        }
        for name in found {
            let path = directory.join(name);
            let (left, right) = (original.join(&path), copy.join(&path));
            let a = std::fs::symlink_metadata(&left).map_err(|e| failed(&left, e))?;
            let b = std::fs::symlink_metadata(&right).map_err(|e| failed(&right, e))?;
            let facts =
                |meta: &std::fs::Metadata| (meta.mode(), meta.uid(), meta.gid(), meta.mtime(), meta.mtime_nsec());
            if facts(&a) != facts(&b) {
                return Err(differs(&path, "mode, owner or time"));
            }
            if a.is_dir() {
                pending.push(path);
            } else if a.is_symlink() {
                if std::fs::read_link(&left).ok() != std::fs::read_link(&right).ok() {
                    return Err(differs(&path, "what it links to"));
                }
            } else {
                if a.len() != b.len() || !same_bytes(&left, &right).map_err(|e| failed(&right, e))? {
                    return Err(differs(&path, "its bytes"));
                }
                if seen.insert(a.ino()) {
                    tally.files += 1;
                    tally.bytes += a.len();
                }
            }
        }
    }
    Ok(tally)
}

fn differs(path: &Path, what: &str) -> Error {
    Error::new(ErrorKind::Failed, format!("{} is not the same after the restore: {what}", path.display()))
        .hint("this must never happen; please report it")
}

fn same_bytes(left: &Path, right: &Path) -> std::io::Result<bool> {
    let (mut left, mut right) = (File::open(left)?, File::open(right)?);
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let count = left.read(&mut a)?;
        if count == 0 {
            return Ok(right.read(&mut b)? == 0);
        }
        right.read_exact(&mut b[..count])?;
        if a[..count] != b[..count] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for root in [&a, &b] {
            std::fs::create_dir(root).unwrap();
            std::fs::write(root.join("f"), "same").unwrap();
            let file = File::options().write(true).open(root.join("f")).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
        }
        assert_eq!(compare(&a, &b).unwrap(), Tally { files: 1, bytes: 4 });
        std::fs::write(b.join("g"), "").unwrap();
        assert!(compare(&a, &b).is_err());
        std::fs::remove_file(b.join("g")).unwrap();
        std::fs::write(b.join("f"), "diff").unwrap();
        File::options().write(true).open(b.join("f")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        assert!(compare(&a, &b).unwrap_err().message.contains("bytes"));
    }
}
