//! From a path to the daemon that serves it.

use std::path::{Path, PathBuf};

use crate::control::registry::{Entry, Registry};
use crate::control::{self, Client, Error, ErrorKind};

/// The daemon of the filesystem mounted at `mountpoint`.
pub fn mounted_at(mountpoint: &Path) -> Result<Entry, Error> {
    let registry = Registry::of_user();
    match registry.holder(mountpoint) {
        Ok(Some((entry, rest))) if rest.as_os_str().is_empty() => Ok(entry),
        Ok(Some((entry, _))) => Err(Error::new(
            ErrorKind::Usage,
            format!("{} lies in a TandemFS, it is not the mountpoint", mountpoint.display()),
        )
        .hint(format!("the mountpoint is {}", entry.mountpoint))),
        Ok(None) => Err(not_mounted(mountpoint, &registry)),
        Err(e) => Err(Error::failed(format!("look for {}: {e}", mountpoint.display()))),
    }
}

/// All daemons of this user.
pub fn all() -> Result<Vec<Entry>, Error> {
    let entries = Registry::of_user().entries();
    if entries.is_empty() {
        return Err(Error::new(ErrorKind::NotFound, "no TandemFS is mounted")
            .hint("mount one: tandemfs mount MOUNTPOINT --target NAME=URI"));
    }
    Ok(entries)
}

/// Paths grouped by the filesystem they lie in, each relative to its root.
pub fn holders(paths: &[PathBuf]) -> Result<Vec<(Entry, Vec<control::Path>)>, Error> {
    let registry = Registry::of_user();
    let mut groups: Vec<(Entry, Vec<control::Path>)> = Vec::new();
    for path in paths {
        let (entry, rest) = registry
            .holder(path)
            .map_err(|e| Error::failed(format!("look for {}: {e}", path.display())))?
            .ok_or_else(|| not_mounted(path, &registry))?;
        let rest = control::Path::from(rest.as_path());
        match groups.iter_mut().find(|(known, _)| *known == entry) {
            Some((_, paths)) => paths.push(rest),
            None => groups.push((entry, vec![rest])),
        }
    }
    Ok(groups)
}

/// Connects to the daemon of `entry`.
pub fn connect(entry: &Entry) -> Result<Client, Error> {
    Client::connect(&entry.state_dir.to_path()).map_err(|mut error| {
        error.message = format!("the daemon of {} does not answer: {}", entry.mountpoint, error.message);
        error
    })
}

fn not_mounted(path: &Path, registry: &Registry) -> Error {
    let error = Error::new(ErrorKind::NotFound, format!("no TandemFS is mounted at {}", path.display()));
    let mounted: Vec<String> = registry.entries().iter().map(|entry| entry.mountpoint.to_string()).collect();
    if mounted.is_empty() {
        error.hint("mount one: tandemfs mount MOUNTPOINT --target NAME=URI")
    } else {
        error.hint(format!("mounted are: {}", mounted.join(", ")))
    }
}
