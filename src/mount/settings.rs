//! What a mount is started with.

use std::path::PathBuf;
use std::sync::Arc;

use super::bandwidth::Bandwidth;
use super::fuse_options::FuseOptions;
use crate::config::{self, Config, Location, TargetConfig};
use crate::control::{Error, ErrorKind};
use crate::target::DynTarget;
use crate::target::swap::SwapTarget;

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
    pub config: Config,
    /// Where it came from, to be read again.
    pub source: config::Source,
}

/// A configured target with its store.
#[derive(Debug)]
pub struct Target {
    pub config: TargetConfig,
    pub store: DynTarget,
    /// The same, to be exchanged while it is in use.
    pub swap: Arc<SwapTarget>,
}

impl Target {
    /// The targets of a configuration. Nothing is contacted or created.
    pub fn all(config: &Config, bandwidth: &Bandwidth) -> Result<Vec<Target>, Error> {
        config.targets.iter().map(|target| Target::new(target, bandwidth)).collect()
    }

    /// One configured target. Nothing is contacted or created.
    pub fn new(config: &TargetConfig, bandwidth: &Bandwidth) -> Result<Target, Error> {
        let swap = SwapTarget::new(Target::build(config, bandwidth)?);
        Ok(Target { config: config.clone(), store: swap.clone(), swap })
    }

    /// Its store alone.
    pub fn build(config: &TargetConfig, bandwidth: &Bandwidth) -> Result<DynTarget, Error> {
        Ok(config::build(config, bandwidth.pacer(&config.name))?)
    }

    /// Of a directory target, for D4.
    pub fn directory(&self) -> Option<&std::path::Path> {
        match &self.config.location {
            Location::Directory(path) => Some(path),
            _ => None,
        }
    }
}

impl From<config::Error> for Error {
    fn from(error: config::Error) -> Error {
        let hint = error.hint.clone().unwrap_or_else(|| "mount-examples/ has configurations to start from".into());
        Error::new(ErrorKind::Usage, error.to_string()).hint(hint)
    }
}
