//! Mountpoint, state directory and directory targets must not contain one another (D4): a daemon that reads its own
//! mount waits for itself, a target in the mount copies itself.
//!
//! Owns: the facts about a place (every ancestor's device and inode after symbolic links, every path that shows it) and the
//! check of all pairs.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::table::Table;
use crate::control::{Error, ErrorKind};

/// A directory that takes part, which may not exist yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// What it is, for the message: `the mountpoint`, `target "a"`.
    pub what: String,
    path: PathBuf,
    /// Device and inode, if it exists.
    id: Option<(u64, u64)>,
    /// Of every existing ancestor.
    ancestors: Vec<(u64, u64)>,
    /// Every path that shows it, through bind mounts too: above one of these it may lie in something that none of
    /// `ancestors` tells of.
    aliases: Vec<PathBuf>,
}

impl Place {
    /// Looks at `path`, an absolute path, and everything above it.
    pub fn look(what: impl Into<String>, path: &Path, table: &Table) -> io::Result<Place> {
        let path = resolved(path)?;
        let mut ids = path.ancestors().map(|at| match std::fs::metadata(at) {
            Ok(meta) => Ok(Some((meta.dev(), meta.ino()))),
            // A dead mount has no identity, but the places above it have.
            Err(e) if absent(&e) || dead_mount(&e) => Ok(None),
            Err(e) => Err(e),
        });
        let id = ids.next().transpose()?.flatten();
        let ancestors = ids.filter_map(|id| id.transpose()).collect::<io::Result<_>>()?;
        let aliases = table.aliases(&path);
        Ok(Place { what: what.into(), path, id, ancestors, aliases })
    }

    /// True if `self` is `other` or lies in it.
    fn inside(&self, other: &Place) -> bool {
        self.path.starts_with(&other.path)
            // The same directory under another name: a bind mount.
            || other.id.is_some_and(|id| self.id == Some(id) || self.ancestors.contains(&id))
            // A bind mount of something below it.
            || self.aliases.iter().any(|own| other.aliases.iter().any(|others| own.starts_with(others)))
    }
}

/// Refuses places that contain one another, whichever way.
pub fn check(places: &[Place]) -> Result<(), Error> {
    for (index, a) in places.iter().enumerate() {
        for b in &places[index + 1..] {
            let (inner, outer) = if a.inside(b) {
                (a, b)
            } else if b.inside(a) {
                (b, a)
            } else {
                continue;
            };
            let same = a.inside(b) && b.inside(a);
            let relation = if same { "is the same directory as" } else { "lies in" };
            return Err(Error::new(
                ErrorKind::Usage,
                format!(
                    "{} ({}) {relation} {} ({})",
                    inner.what,
                    inner.path.display(),
                    outer.what,
                    outer.path.display()
                ),
            )
            .hint(
                "mountpoint, state directory and directory targets must lie apart: choose another directory for one",
            ));
        }
    }
    Ok(())
}

/// `path` without symbolic links as far as it exists, the rest by name.
pub fn resolved(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Ok(path) => Ok(path),
        Err(e) if absent(&e) || dead_mount(&e) => match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => Ok(resolved(parent)?.join(name)),
            _ => Err(e),
        },
        Err(e) => Err(e),
    }
}

/// True for the error that every call on the mount of a dead daemon gives, or one that waits while the daemon dies.
pub fn dead_mount(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
}

fn absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(dir: &Path, mountpoint: &str, state: &str, target: &str) -> bool {
        check(&[
            Place::look("the mountpoint", &dir.join(mountpoint), &Table::default()).unwrap(),
            Place::look("the state directory", &dir.join(state), &Table::default()).unwrap(),
            Place::look("target \"a\"", &dir.join(target), &Table::default()).unwrap(),
        ])
        .is_err()
    }

    #[test]
    fn d4_no_place_contains_another_whichever_way() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["m", "s", "t", "m/in", "t/in"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        std::os::unix::fs::symlink("m/in", dir.path().join("link")).unwrap();
        assert!(!refused(dir.path(), "m", "s", "t"));
        assert!(!refused(dir.path(), "m", "s", "s2"), "a common beginning of the name is no containment");
        assert!(refused(dir.path(), "m", "s", "m/in"));
        assert!(refused(dir.path(), "t/in", "s", "t"));
        assert!(refused(dir.path(), "m", "s", "s"));
        assert!(refused(dir.path(), "m", "s", "link"), "after symbolic links");
        assert!(refused(dir.path(), "m", "new", "new/deeper"), "also where nothing exists yet");
        assert!(refused(dir.path(), "m", "m/in/new", "t"));
    }

    #[test]
    fn the_refusal_names_both_sides() {
        let dir = tempfile::tempdir().unwrap();
        let place = |what: &str, name: &str| Place::look(what, &dir.path().join(name), &Table::default()).unwrap();
        let error = check(&[place("the mountpoint", "m"), place("target \"a\"", "m/t")]).unwrap_err();
        assert!(error.message.starts_with("target \"a\" ("), "{error}");
        assert!(error.message.contains("lies in the mountpoint"), "{error}");
        assert_eq!(error.kind, ErrorKind::Usage);
    }
}
