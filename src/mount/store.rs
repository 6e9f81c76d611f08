//! The metadata store of a mount: opened, or made at the first mount.
//!
//! Owns: that a filesystem is born whole or not at all, and is given up again if its first mount is refused.
//! Does not own: its tables (`meta`).

use std::path::{Path, PathBuf};

use super::state_dir::StateDir;
use crate::clock::{self, Timestamp};
use crate::control::Error;
use crate::id::FilesystemId;
use crate::meta::{self, Created, Meta, Options};

/// Where a filesystem is born: a crash leaves it there, and the next mount begins anew.
const BIRTH: &str = "birth";

/// A new filesystem that may be given up again: until [`Newborn::keep`], dropping it removes it. So a first mount that is
/// refused leaves nothing behind.
#[derive(Debug)]
pub struct Newborn {
    /// Its store; `None` once it stays.
    path: Option<PathBuf>,
}

impl Newborn {
    /// From here on it stays.
    pub fn keep(mut self) {
        self.path = None;
    }
}

impl Drop for Newborn {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            for suffix in ["", "-wal", "-shm"] {
                let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
            }
        }
    }
}

/// Opens the store in `state_dir`, or makes a new filesystem there.
pub fn open_or_create(state_dir: &StateDir, name: &str, chunk_size: u64) -> Result<(Meta, Option<Newborn>), Error> {
    let path = state_dir.meta();
    if path.exists() {
        return Ok((open(&path)?, None));
    }
    let birth = state_dir.path().join(BIRTH);
    let failed = |e: std::io::Error| Error::failed(format!("make a filesystem in {}: {e}", birth.display()));
    match std::fs::remove_dir_all(&birth) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    std::fs::create_dir(&birth).map_err(failed)?;
    let time = clock::now();
    create(&birth.join("meta.sqlite"), name, chunk_size, time)
        .map_err(|e| Error::failed(format!("make a filesystem in {}: {e}", birth.display())))?;
    std::fs::rename(birth.join("meta.sqlite"), &path).map_err(failed)?;
    std::fs::remove_dir_all(&birth).map_err(failed)?;
    sync_directory(state_dir.path()).map_err(failed)?;
    let newborn = Newborn { path: Some(path.clone()) };
    Ok((open(&path)?, Some(newborn)))
}

fn open(path: &Path) -> Result<Meta, Error> {
    Meta::open(path, &Options::default()).map_err(|e| {
        let hint = match e {
            meta::Error::Version { .. } => "mount it with that version of tandemfs, or a later one",
            _ => "if it is damaged, restore: tandemfs restore --from URI --state-dir NEW",
        };
        Error::failed(format!("open {}: {e}", path.display())).hint(hint)
    })
}

/// Closing the last connection brings everything into the one file that is renamed.
fn create(path: &Path, name: &str, chunk_size: u64, time: Timestamp) -> crate::meta::Result<()> {
    let created = Created { filesystem: FilesystemId::random(), name: name.to_owned(), chunk_size, time };
    let meta = Meta::create(path, &created)?;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    meta.write(|tx| tx.make_root(0o755, uid, gid, time))?;
    meta.sync()
}

fn sync_directory(path: &Path) -> std::io::Result<()> {
    std::fs::File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::InodeId;

    fn state_dir() -> (tempfile::TempDir, StateDir) {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = StateDir::lock(&dir.path().join("state")).unwrap();
        (dir, state_dir)
    }

    #[test]
    fn a_filesystem_is_made_once_and_found_again() {
        let (_dir, state_dir) = state_dir();
        let (meta, newborn) = open_or_create(&state_dir, "photos", 1 << 22).unwrap();
        let id = meta.filesystem().unwrap();
        assert!(meta.inode(InodeId::ROOT).unwrap().is_dir());
        newborn.expect("it is new").keep();
        drop(meta);
        let (meta, newborn) = open_or_create(&state_dir, "other", 1 << 20).unwrap();
        assert!(newborn.is_none());
        assert_eq!(meta.filesystem().unwrap(), id);
        assert_eq!(meta.filesystem_text("name").unwrap(), "photos");
    }

    #[test]
    fn a_refused_first_mount_leaves_no_filesystem_behind() {
        let (_dir, state_dir) = state_dir();
        let (meta, newborn) = open_or_create(&state_dir, "photos", 1 << 22).unwrap();
        drop(meta);
        drop(newborn);
        let left: Vec<_> =
            std::fs::read_dir(state_dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["lock"]);
    }

    #[test]
    fn a_birth_that_was_interrupted_is_begun_anew() {
        let (_dir, state_dir) = state_dir();
        std::fs::create_dir(state_dir.path().join(BIRTH)).unwrap();
        std::fs::write(state_dir.path().join(BIRTH).join("meta.sqlite"), "half").unwrap();
        let (meta, newborn) = open_or_create(&state_dir, "photos", 1 << 22).unwrap();
        assert_eq!(meta.filesystem_text("name").unwrap(), "photos");
        newborn.unwrap().keep();
    }
}
