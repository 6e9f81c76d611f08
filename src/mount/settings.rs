//! What a mount is started with.

use std::path::PathBuf;
use std::time::Duration;

use super::fuse_options::FuseOptions;
use crate::target::DynTarget;

/// The arguments of a mount.
#[derive(Debug)]
pub struct Options {
    pub mountpoint: PathBuf,
    /// `None` = the default for the mountpoint.
    pub state_dir: Option<PathBuf>,
    /// Take no epoch, ship nothing: a drill never fences production (D6).
    pub read_only: bool,
    /// Also where syncs cannot be trusted (D4).
    pub force: bool,
    /// Report readiness over stdout and give up the terminal.
    pub background: bool,
    pub fuse: FuseOptions,
    pub settings: Settings,
}

/// The configuration.
#[derive(Debug)]
pub struct Settings {
    /// Of a new filesystem; `None` = the last part of the mountpoint.
    pub name: Option<String>,
    /// Bytes, for a new filesystem.
    pub chunk_size: u64,
    /// Bytes of chunk files; `None` = what the disk holds.
    pub cache_limit: Option<u64>,
    /// Bytes that stay free on the disk for metadata.
    pub reserve: u64,
    /// How long a daemon whose mount went away goes on bringing targets up to date (D7).
    pub shutdown_timeout: Duration,
    /// At least one.
    pub targets: Vec<Target>,
}

/// A configured target.
#[derive(Debug)]
pub struct Target {
    pub name: String,
    /// Without secrets.
    pub uri: String,
    pub target: DynTarget,
    /// Of two targets equally well, the one with the lower number is read first.
    pub read_priority: u32,
    /// Of a directory target, for D4.
    pub directory: Option<PathBuf>,
}
