//! Where targets and settings come from: a file, or `--target` arguments.

use std::path::PathBuf;

use clap::Args;

use crate::config::{Config, Source};
use crate::control::{Error, ErrorKind};

/// `--config FILE` or `--target NAME=URI …`
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Configured {
    /// TOML file with the targets and settings
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A target, in place of a file; may be given several times
    #[arg(long = "target", value_name = "NAME=URI")]
    targets: Vec<String>,
}

impl Configured {
    /// Where the configuration is read from, now and later.
    pub fn source(&self) -> Source {
        match &self.config {
            // The daemon leaves its directory.
            Some(path) => Source::File(std::path::absolute(path).unwrap_or_else(|_| path.clone())),
            None => Source::Arguments(self.targets.clone()),
        }
    }

    /// Reads the file or the arguments.
    pub fn read(&self) -> Result<Config, Error> {
        let config = match &self.config {
            Some(path) => Config::load(path)?,
            None => Config::from_target_arguments(&self.targets)?,
        };
        if config.targets.is_empty() {
            return Err(Error::new(ErrorKind::Usage, "no target is configured")
                .hint("add a table [target.NAME] with its uri to the file"));
        }
        Ok(config)
    }
}
