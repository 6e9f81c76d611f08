//! Running daemons, found by mountpoint without touching the mount (it may hang).
//!
//! Owns: one small file per mount under `/run/tandemfs` (root) or `$XDG_RUNTIME_DIR/tandemfs`, written when the
//! filesystem is mounted and removed when its daemon ends.
//! Does not own: whether the daemon still lives: its socket says that.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::protocol;

/// Entries longer than this are not ours.
const ENTRY_MAX: u64 = 64 << 10;

/// What is known of a running daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Absolute, without symbolic links.
    pub mountpoint: protocol::Path,
    /// Where its control socket is.
    pub state_dir: protocol::Path,
    /// The daemon.
    pub pid: u32,
    /// Name of the filesystem.
    pub name: String,
    /// The type that the kernel's table shows for the mount.
    #[serde(default = "usual_kind")]
    pub kind: String,
    /// Its daemon changes nothing, whatever the mount's flags say.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

fn usual_kind() -> String {
    "fuse.tandemfs".into()
}

/// A directory of entries.
#[derive(Debug, Clone)]
pub struct Registry {
    directory: PathBuf,
}

/// The entry of this daemon; removed when dropped.
#[derive(Debug)]
pub struct Registered {
    path: PathBuf,
    pid: u32,
}

impl Registry {
    /// The registry of this user.
    pub fn of_user() -> Registry {
        let uid = rustix::process::geteuid().as_raw();
        let directory = if uid == 0 {
            "/run/tandemfs".into()
        } else {
            match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
                Some(dir) => PathBuf::from(dir).join("tandemfs"),
                None => std::env::temp_dir().join(format!("tandemfs-{uid}")),
            }
        };
        Registry { directory }
    }

    /// A registry in a directory of one's own choice.
    pub fn at(directory: PathBuf) -> Registry {
        Registry { directory }
    }

    /// Writes the entry of this daemon, in place of an older one for the same mountpoint.
    pub fn register(&self, entry: &Entry) -> io::Result<Registered> {
        match std::fs::DirBuilder::new().mode(0o700).create(&self.directory) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        self.check_owner()?;
        let path = self.directory.join(file_name(&entry.mountpoint.to_path()));
        let new = path.with_extension(format!("{}.new", entry.pid));
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        serde_json::to_writer(&mut file, entry)?;
        drop(file);
        std::fs::rename(&new, &path)?;
        Ok(Registered { path, pid: entry.pid })
    }

    /// All entries, in order of mountpoint. Entries that cannot be read are left out.
    pub fn entries(&self) -> Vec<Entry> {
        if self.check_owner().is_err() {
            return Vec::new();
        }
        let Ok(files) = std::fs::read_dir(&self.directory) else { return Vec::new() };
        let mut entries: Vec<Entry> = files
            .filter_map(|file| file.ok())
            .filter(|file| file.path().extension().is_some_and(|extension| extension == "json"))
            .filter_map(|file| read(&file.path()))
            .collect();
        entries.sort_by(|a, b| a.mountpoint.0.cmp(&b.mountpoint.0));
        entries
    }

    /// The entry for `mountpoint`, an absolute path without symbolic links.
    pub fn find(&self, mountpoint: &Path) -> Option<Entry> {
        self.check_owner().ok()?;
        read(&self.directory.join(file_name(mountpoint))).filter(|entry| entry.mountpoint.to_path() == mountpoint)
    }

    /// The entry whose mountpoint holds `path`, and the rest of the path. Resolves symbolic links on the way down to the
    /// mountpoint, never in it.
    pub fn holder(&self, path: &Path) -> io::Result<Option<(Entry, PathBuf)>> {
        let entries = self.entries();
        let absolute = std::path::absolute(path)?;
        let Some(resolved) = resolve(&absolute, |at| entries.iter().any(|entry| entry.mountpoint.to_path() == at))?
        else {
            return Ok(None);
        };
        Ok(entries.into_iter().find(|entry| entry.mountpoint.to_path() == resolved.0).map(|entry| (entry, resolved.1)))
    }

    /// Entries decide which socket is talked to: only a directory of this user or root is believed.
    fn check_owner(&self) -> io::Result<()> {
        let meta = std::fs::symlink_metadata(&self.directory)?;
        let own = rustix::process::geteuid().as_raw();
        if meta.is_dir() && (meta.uid() == own || meta.uid() == 0) {
            Ok(())
        } else {
            Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("{} belongs to another user", self.directory.display()),
            ))
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // A newer daemon may have taken the mountpoint over: then the entry is its.
        if read(&self.path).is_some_and(|entry| entry.pid == self.pid) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Walks down `path` until `is_mountpoint` says yes; returns that place and the rest, symbolic links before it resolved.
fn resolve(path: &Path, is_mountpoint: impl Fn(&Path) -> bool) -> io::Result<Option<(PathBuf, PathBuf)>> {
    let mut at = PathBuf::from("/");
    let mut rest: Vec<std::ffi::OsString> = path.components().rev().map(|c| c.as_os_str().to_owned()).collect();
    let mut links = 0;
    while let Some(component) = rest.pop() {
        match component.as_bytes() {
            b"/" => at = PathBuf::from("/"),
            b"." => {}
            b".." => {
                at.pop();
            }
            _ => {
                at.push(&component);
                if is_mountpoint(&at) {
                    return Ok(Some((at, normal(rest.iter().rev()))));
                }
                match std::fs::read_link(&at) {
                    Ok(link) => {
                        links += 1;
                        if links > 40 {
                            return Err(rustix::io::Errno::LOOP.into());
                        }
                        at.pop();
                        rest.extend(link.components().rev().map(|c| c.as_os_str().to_owned()));
                    }
                    // Not a link, or not there: the walk goes on by name.
                    Err(_) => continue,
                }
            }
        }
    }
    Ok(None)
}

/// Joins components, taking `.` and `..` by name.
fn normal<'a>(components: impl Iterator<Item = &'a std::ffi::OsString>) -> PathBuf {
    let mut path = PathBuf::new();
    for component in components {
        match component.as_bytes() {
            b"." => {}
            b".." => {
                path.pop();
            }
            _ => path.push(component),
        }
    }
    path
}

fn file_name(mountpoint: &Path) -> String {
    let hash = blake3::hash(mountpoint.as_os_str().as_bytes()).to_hex();
    format!("{}.json", &hash.as_str()[..16])
}

fn read(path: &Path) -> Option<Entry> {
    let meta = std::fs::symlink_metadata(path).ok()?;
    if !meta.is_file() || meta.len() > ENTRY_MAX {
        return None;
    }
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(mountpoint: &Path, pid: u32) -> Entry {
        Entry {
            mountpoint: mountpoint.into(),
            state_dir: Path::new("/state").into(),
            pid,
            name: "photos".into(),
            kind: usual_kind(),
            read_only: false,
        }
    }

    #[test]
    fn a_daemon_is_found_by_its_mountpoint_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::at(dir.path().join("run"));
        assert_eq!(registry.entries(), []);
        let mine = registry.register(&entry(Path::new("/mnt/a"), 1)).unwrap();
        assert_eq!(registry.find(Path::new("/mnt/a")).unwrap().pid, 1);
        assert_eq!(registry.find(Path::new("/mnt/b")), None);
        drop(mine);
        assert_eq!(registry.entries(), []);
    }

    #[test]
    fn an_older_daemon_does_not_remove_its_successors_entry() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::at(dir.path().join("run"));
        let old = registry.register(&entry(Path::new("/mnt/a"), 1)).unwrap();
        let _new = registry.register(&entry(Path::new("/mnt/a"), 2)).unwrap();
        drop(old);
        assert_eq!(registry.find(Path::new("/mnt/a")).unwrap().pid, 2);
    }

    #[test]
    fn a_path_is_split_at_its_mountpoint_without_touching_what_is_below() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("mnt")).unwrap();
        std::os::unix::fs::symlink("mnt", root.join("link")).unwrap();
        let registry = Registry::at(root.join("run"));
        let _mine = registry.register(&entry(&root.join("mnt"), 1)).unwrap();
        for (path, rest) in [("mnt", Some("")), ("mnt/a/../b", Some("b")), ("link/a", Some("a")), ("other/a", None)] {
            let found = registry.holder(&root.join(path)).unwrap();
            assert_eq!(found.map(|(_, rest)| rest), rest.map(PathBuf::from), "{path}");
        }
    }

    #[test]
    fn what_is_not_an_entry_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::at(dir.path().to_owned());
        std::fs::write(dir.path().join("x.json"), "nonsense").unwrap();
        std::fs::create_dir(dir.path().join("y.json")).unwrap();
        assert_eq!(registry.entries(), []);
    }
}
