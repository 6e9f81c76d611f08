//! From options to an open state directory: what a mount checks before anything is touched, and what it then holds.
//!
//! Owns: checks of places, the lock, the log, the metadata store, the targets that take part.
//! Does not own: asking the targets (`daemon`), local files (`storage`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::chunk::space;
use crate::clock;
use crate::control::{Error, ErrorKind};
use crate::meta::Meta;
use crate::meta::target::{Configured, TargetRow};
use crate::mount::bandwidth::Bandwidth;
use crate::mount::nesting::{self, Place};
use crate::mount::settings::{Options, Target};
use crate::mount::state_dir::{self, StateDir};
use crate::mount::store::{self, Newborn};
use crate::mount::table::Table;
use crate::mount::{live_set, log, mountpoint};

/// A state directory that is ours, and what it and the configuration say of the targets.
pub(super) struct Opened {
    // Dropped in this order: what a refused mount made, the lock last.
    /// Kept once nothing refuses the mount any more.
    pub newborn: Option<Newborn>,
    pub meta: Arc<Meta>,
    pub mountpoint: PathBuf,
    pub state_path: PathBuf,
    pub bandwidth: Arc<Bandwidth>,
    pub targets: Vec<Target>,
    /// One for each of them.
    pub rows: Vec<TargetRow>,
    /// Where the configuration and the targets differ.
    pub notes: Vec<String>,
    pub state_dir: StateDir,
}

impl Opened {
    /// Refuses what cannot be mounted before anything is touched, then takes the lock.
    pub fn new(options: &Options) -> Result<Opened, Error> {
        let config = &options.config;
        let bandwidth = Arc::new(Bandwidth::new(config, clock::minute_of_day()));
        let targets = Target::all(config, &bandwidth)?;
        let mountpoint = mountpoint::check(&options.mountpoint, options.fuse.nonempty)?;
        let state_path = match &options.state_dir {
            Some(path) => std::path::absolute(path).map_err(|e| Error::new(ErrorKind::Usage, e.to_string()))?,
            None => state_dir::default_path(&mountpoint)?,
        };
        check_nesting(&mountpoint, &state_path, &targets)?;
        state_dir::check_filesystem(&state_path, options.force)?;

        let state_dir = StateDir::lock(&state_path)?;
        space::room_to_start(&state_path)
            .map_err(|e| Error::failed(format!("look for room in {}: {e}", state_path.display())))?;
        log::start(&state_path, !options.background)
            .map_err(|e| Error::failed(format!("write a log in {}: {e}", state_path.display())))?;
        mountpoint::clear(&mountpoint)?;
        let name = config.name.clone().unwrap_or_else(|| default_name(&mountpoint));
        let (meta, newborn) = store::open_or_create(&state_dir, &name, config.chunk_size)?;
        let meta = Arc::new(meta);
        let changes = meta.target_changes().map_err(|e| Error::failed(e.to_string()))?;
        let live_set = live_set::effective(&config.targets, &changes)?;
        for name in live_set.forget.iter().filter(|_| !options.read_only) {
            meta.forget_change(name).map_err(|e| Error::failed(e.to_string()))?;
        }
        for note in &live_set.notes {
            tracing::warn!(note, "the configuration and the targets differ");
        }
        let targets = if changes.is_empty() {
            targets
        } else {
            let targets: Vec<Target> =
                live_set.targets.iter().map(|target| Target::new(target, &bandwidth)).collect::<Result<_, _>>()?;
            check_nesting(&mountpoint, &state_path, &targets)?;
            targets
        };
        let rows = register(&meta, &targets)?;
        let notes = live_set.notes;
        Ok(Opened { newborn, meta, mountpoint, state_path, bandwidth, targets, rows, notes, state_dir })
    }
}

/// D4: nothing may contain anything else.
fn check_nesting(mountpoint: &Path, state_dir: &Path, targets: &[Target]) -> Result<(), Error> {
    let failed = |e: std::io::Error| Error::failed(format!("look at the places of this mount: {e}"));
    let table = Table::read().map_err(failed)?;
    let mut places = vec![
        Place::look("the mountpoint", mountpoint, &table).map_err(failed)?,
        Place::look("the state directory", state_dir, &table).map_err(failed)?,
    ];
    for target in targets {
        if let Some(directory) = target.directory() {
            let what = format!("target {:?}", target.config.name);
            places.push(Place::look(what, directory, &table).map_err(failed)?);
        }
    }
    nesting::check(&places)
}

fn default_name(mountpoint: &Path) -> String {
    mountpoint.file_name().map_or_else(|| "tandemfs".into(), |name| name.to_string_lossy().into_owned())
}

fn register(meta: &Meta, targets: &[Target]) -> Result<Vec<TargetRow>, Error> {
    let configured: Vec<Configured> = targets
        .iter()
        .map(|target| Configured { name: target.config.name.clone(), uri: target.config.uri.clone(), id: None })
        .collect();
    let registered = meta.register_targets(&configured).map_err(|e| Error::failed(e.to_string()))?;
    for row in &registered.absent {
        tracing::warn!(target = row.name, "is not in the configuration; what it lacks stays here");
    }
    Ok(registered.configured)
}
