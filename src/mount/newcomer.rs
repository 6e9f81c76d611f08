//! A place that is to become a target of a running mount: may it?
//!
//! Owns: what is asked of it before anything is written, and the words of a refusal.
//! Does not own: whose place it is (`target::identity`), taking it in (`mount::targets`).

use std::path::Path;
use std::time::Duration;

use super::nesting::{self, Place};
use super::settings::Target;
use super::table::Table;
use crate::config::Location;
use crate::control::{Error, ErrorKind};
use crate::format::superblock::Superblock;
use crate::id::FilesystemId;
use crate::meta::target::TargetRow;
use crate::target::identity::{self, Says};

/// How long a place may take to say whose it is.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a place is to this filesystem.
#[derive(Debug)]
pub enum Newcomer {
    /// Nothing of ours lies there.
    Empty,
    /// It says that it is a target of this filesystem.
    OfThis(Superblock),
}

/// Asks a place whose it is. An error: it cannot be a target of this filesystem.
pub async fn meet(target: &Target, filesystem: FilesystemId) -> Result<Newcomer, Error> {
    let name = &target.config.name;
    let failed = |why: String, hint: &str| Err(Error::failed(format!("target {name:?}: {why}")).hint(hint));
    make_directory(target)?;
    let says = tokio::time::timeout(PATIENCE, identity::inspect(target.store.as_ref())).await;
    match says {
        Ok(Says::Empty) => Ok(Newcomer::Empty),
        Ok(Says::Identified(found)) if found.filesystem == filesystem => Ok(Newcomer::OfThis(found)),
        Ok(Says::Identified(found)) => failed(
            format!("its place holds another filesystem: {:?} ({})", found.name, found.filesystem),
            "use an empty prefix or directory; what lies there may be the only copy of that filesystem",
        ),
        Ok(Says::Leftovers(prefix)) => failed(
            format!("its place has objects under {prefix} but no tandemfs.json"),
            "use an empty prefix or directory; what lies there may be the only copy of another filesystem",
        ),
        Ok(Says::Unreadable(why)) => failed(
            format!("the tandemfs.json in its place cannot be read: {why}"),
            "use an empty prefix or directory; a newer tandemfs may have written this one",
        ),
        Ok(Says::Failed(error)) => failed(
            format!("its place cannot be used: {}", error.message),
            "it must be in reach when it is added; tandemfs check FILE tries the targets of a configuration",
        ),
        Err(_) => failed(
            format!("its place did not answer within {} s", PATIENCE.as_secs()),
            "it must be in reach when it is added",
        ),
    }
}

/// Of a directory that does not exist yet, the last component is made: whoever adds it, means it.
fn make_directory(target: &Target) -> Result<(), Error> {
    let Location::Directory(path) = &target.config.location else { return Ok(()) };
    match std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(Error::failed(format!("target {:?}: make {}: {e}", target.config.name, path.display()))
                .hint("only its last component is made: is the disk mounted?"))
        }
        _ => Ok(()),
    }
}

/// D4: a new directory must not contain anything of the mount, nor lie in it.
pub fn check_nesting(mountpoint: &Path, state_dir: &Path, others: &[&Target], new: &Target) -> Result<(), Error> {
    let Some(directory) = new.directory() else { return Ok(()) };
    let failed = |e: std::io::Error| Error::failed(format!("look at the places of this mount: {e}"));
    let table = Table::read().map_err(failed)?;
    let mut places = vec![
        Place::look(format!("target {:?}", new.config.name), directory, &table).map_err(failed)?,
        Place::look("the mountpoint", mountpoint, &table).map_err(failed)?,
        Place::look("the state directory", state_dir, &table).map_err(failed)?,
    ];
    for target in others {
        if let Some(directory) = target.directory() {
            let what = format!("target {:?}", target.config.name);
            places.push(Place::look(what, directory, &table).map_err(failed)?);
        }
    }
    // The others were checked among themselves; and the mount lies over its mountpoint by now.
    for other in 1..places.len() {
        nesting::check(&[places[0].clone(), places[other].clone()])?;
    }
    Ok(())
}

/// Why a place of this filesystem is no new target.
pub fn known_already(name: &str, found: &Superblock, rows: &[TargetRow]) -> Error {
    match rows.iter().find(|row| row.id == found.target) {
        Some(row) => Error::new(
            ErrorKind::Usage,
            format!("target {name:?}: its place is that of target {:?} ({}) already", row.name, row.uri),
        )
        .hint("each target has a place of its own: use another prefix or directory"),
        None => Error::new(
            ErrorKind::Usage,
            format!(
                "target {name:?}: its place holds this filesystem already, as target {:?} of another time",
                found.target_name
            ),
        )
        .hint(
            "it was removed from here once, or belongs to another copy of the state directory: empty it, or use another \
             prefix or directory",
        ),
    }
}
