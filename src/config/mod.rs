//! What the operator wrote: a TOML file, or `--target NAME=URI` arguments.
//!
//! Owns: the settings with their defaults and limits, errors that name the place and the next step, secrets on their way
//! to a target, refusing two targets at the same place.
//! Does not own: whether a target answers (`target`), nesting of directories (`mount`), what a setting does.
//!
//! ```toml
//! name = "photos"
//! mountpoint = "/mnt/photos"
//!
//! [cache]
//! limit = "64 GiB"
//!
//! [target.aws]
//! uri = "s3://my-bucket/photos"
//! region = "eu-central-1"
//! access_key_id = "${AWS_ACCESS_KEY_ID}"
//! secret_access_key = { file = "/etc/tandemfs/aws.secret" }
//! ```
//!
//! | key | default | |
//! |---|---|---|
//! | `name` | | of the filesystem, for people |
//! | `mountpoint`, `state_dir` | | absolute; the command line overrides them |
//! | `chunk_size` | `"4 MiB"` | power of two, 64 KiB to 64 MiB; of new chunks |
//! | `rotate`, `rotate_synced` | `"60s"`, `"2s"` | open files are committed too (O8) |
//! | `passthrough` | `true` | the kernel reads and writes local files by itself where it can (P1) |
//! | `shutdown_timeout` | `"30s"` | draining after SIGTERM (D7) |
//! | `cache.limit`, `cache.reserve` | the disk, `"512 MiB"` | local space (D2) |
//! | `cache.wait` | `"10s"` | a write waits so long for space, then it fails with `ENOSPC` |
//! | `acknowledge.close`, `.fsync` | `"cached"`, `"local"` | `cached`, `local`, `one`, `quorum`, a number, `all` (D3); a directory may say otherwise: `user.tandemfs.policy` |
//! | `acknowledge.deadline` | `"60s"` | then `close` fails with `EIO`, `fsync` with `ETIMEDOUT`; the data stays queued |
//! | `scrub.every`, `scrub.level` | never, `"sample"` | copies are checked and repaired by themselves |
//! | `cache.on_full`, `.min_copies` | `"wait"`, `1` | `"degrade"`: when full, the slowest target is resynced later while so many others follow |
//! | `backlog.records`, `.record_bytes`, `.superseded` | 1,000,000, `"256 MiB"`, `"1 GiB"` | kept for one target that is away (T4) |
//! | `gc.grace` | `"24h"` | so long chunks that nothing refers to stay on targets (T9) |
//! | `target.NAME.uri` | required | `fs:///path`, `s3://bucket/prefix?option=value` … |
//! | `target.NAME.read_priority` | `0` | the lower is read first |
//! | `target.NAME.concurrency` | found out | transfers at the same time |
//! | `bandwidth`, `target.NAME.bandwidth` | `"unlimited"` | of all uploads together, and to one target: `"20 MiB/s"`, or with windows of local time `{ always = "20 MiB/s", "08:00-18:00" = "5 MiB/s", "12:00-13:00" = "off" }` |
//! | `target.NAME.…` | | any option of OpenDAL's service |

mod error;
mod file;
mod place;
mod policy;
mod secret;
mod suggest;
mod target;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::error::{Error, Place, Result};
pub use self::policy::{Policy, Stated};
pub use self::target::{Location, TargetConfig, build};
use crate::scrub::Level;
use crate::target::pace::Schedule;

/// Bounds of a chunk (DESIGN §2): a power of two between them.
const CHUNK_SIZE: std::ops::RangeInclusive<u64> = 64 << 10..=64 << 20;

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The filesystem's name, for people; written into each target at its initialisation.
    pub name: Option<String>,
    /// Where it is mounted, unless the command line says so.
    pub mountpoint: Option<PathBuf>,
    /// Where local state lives, unless the command line says so.
    pub state_dir: Option<PathBuf>,
    /// Bytes of a new chunk at most.
    pub chunk_size: u64,
    /// Local disk space.
    pub cache: Cache,
    /// What is kept for a target that is away.
    pub backlog: Backlog,
    /// Removing garbage from targets.
    pub gc: Gc,
    /// Rewriting what is left of nearly empty chunks.
    pub compaction: Compaction,
    /// When `close` and `fsync` may return.
    pub acknowledge: Acknowledge,
    /// Open files are committed too, this long after their last commit (O8).
    pub rotate: Duration,
    /// The same for files that were synced while open (O8).
    pub rotate_synced: Duration,
    /// Let the kernel read and write local files by itself where it can (P1).
    pub passthrough: bool,
    /// Draining after SIGTERM takes at most this long (D7).
    pub shutdown_timeout: Duration,
    /// Checks of the copies that happen by themselves.
    pub scrub: Scrub,
    /// How fast all uploads together may be.
    pub bandwidth: Schedule,
    /// The targets, in the order of their names (file) or as given (command line).
    pub targets: Vec<TargetConfig>,
}

/// Limits of local disk space (D2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// Bytes of local chunk files at most; `None`: what the disk has.
    pub limit: Option<u64>,
    /// Bytes kept back for metadata when the disk is full; an eighth of the disk, if that is less.
    pub reserve: u64,
    /// How long a write waits for space before it fails with `ENOSPC`.
    pub wait: Duration,
    /// What happens when it is full of what some target lacks.
    pub on_full: OnFull,
    /// With [`OnFull::Degrade`]: so many targets go on following at least.
    pub min_copies: u32,
}

/// What happens when the cache is full of what some target lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFull {
    /// Writers wait, and then get `ENOSPC`.
    Wait,
    /// The target that lacks most is brought to a later state instead of following (T4), as long as enough others follow.
    Degrade,
}

/// What is kept for one target that is away, at most (T4); beyond it, it is resynced when it is back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backlog {
    /// Records of the journal.
    pub records: u64,
    /// Their bytes.
    pub record_bytes: u64,
    /// Bytes that were overwritten or removed meanwhile, if they are more than a quarter of all that it lacks.
    pub superseded: u64,
}

/// Removing what nothing refers to any more from targets (T9).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gc {
    /// So long it stays.
    pub grace: Duration,
}

/// Rewriting nearly empty chunks, and files in too many pieces (S10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compaction {
    /// Whether it happens by itself.
    pub enabled: bool,
    /// Bytes a second that may always be rewritten; more only as far as programs wrote as much in the last 24 h.
    pub rate: u64,
    /// Nearly empty chunks are rewritten when they would free this many bytes together.
    pub min_garbage: u64,
    /// A part of a file in many pieces is rewritten when it has not changed for this long; a chunk after a tenth of it.
    pub quiet: Duration,
    /// Nothing is rewritten while a target that follows lacks more bytes than this.
    pub lag_max: u64,
}

impl Default for Compaction {
    fn default() -> Compaction {
        Compaction {
            enabled: true,
            rate: 1 << 20,
            min_garbage: 16 << 20,
            quiet: Duration::from_secs(600),
            lag_max: 64 << 20,
        }
    }
}

/// Acknowledgement policies (D3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledge {
    /// When `close` may return.
    pub close: Policy,
    /// When `fsync` may return.
    pub fsync: Policy,
    /// They return an error after this long; the data stays queued.
    pub deadline: Duration,
}

impl Default for Acknowledge {
    fn default() -> Acknowledge {
        Acknowledge { close: Policy::Cached, fsync: Policy::Local, deadline: Duration::from_secs(60) }
    }
}

/// Scheduled scrubs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scrub {
    /// Time from the end of one pass to the next; `None`: only when asked for.
    pub every: Option<Duration>,
    /// How thorough.
    pub level: Level,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            name: None,
            mountpoint: None,
            state_dir: None,
            chunk_size: 4 << 20,
            cache: Cache {
                limit: None,
                reserve: 512 << 20,
                wait: Duration::from_secs(10),
                on_full: OnFull::Wait,
                min_copies: 1,
            },
            backlog: Backlog { records: 1_000_000, record_bytes: 256 << 20, superseded: 1 << 30 },
            gc: Gc { grace: Duration::from_secs(24 * 3600) },
            compaction: Compaction::default(),
            acknowledge: Acknowledge::default(),
            rotate: Duration::from_secs(60),
            rotate_synced: Duration::from_secs(2),
            passthrough: true,
            shutdown_timeout: Duration::from_secs(30),
            scrub: Scrub { every: None, level: Level::Sample },
            bandwidth: Schedule::default(),
            targets: Vec::new(),
        }
    }
}

impl Config {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Config> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            let message = format!("cannot read {}: {error}", path.display());
            Error::new(message).hint("name an existing TOML file; `mount-examples/` has some to start from")
        })?;
        Config::from_toml(&text, path)
    }

    /// Reads the text of a file; `path` is for messages, and what relative secret files are relative to.
    pub fn from_toml(text: &str, path: &Path) -> Result<Config> {
        let config = file::parse(text, path)?;
        config.checked()
    }

    /// Takes the arguments of `--target`, with defaults for the rest.
    pub fn from_target_arguments<S: AsRef<str>>(arguments: &[S]) -> Result<Config> {
        let targets =
            arguments.iter().map(|argument| TargetConfig::from_argument(argument.as_ref())).collect::<Result<_>>()?;
        Config { targets, ..Config::default() }.checked()
    }

    fn checked(self) -> Result<Config> {
        check_places(&self.targets)?;
        let Acknowledge { close, fsync, .. } = self.acknowledge;
        for (key, policy) in [("close", close), ("fsync", fsync)] {
            if let Policy::Targets(count) = policy
                && count as usize > self.targets.len()
            {
                let message = format!("acknowledge.{key} wants {count} targets, and there are {}", self.targets.len());
                return Err(Error::new(message).hint("no call could ever succeed; \"all\" means as many as there are"));
            }
        }
        Ok(self)
    }
}

/// Refuses targets that are one place, or lie inside one another (T1), as far as their URIs tell.
pub fn check_places(targets: &[TargetConfig]) -> Result<()> {
    place::check(targets)
}

/// Where a configuration came from, to be read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// Arguments of the command line.
    Arguments(Vec<String>),
}

impl Source {
    /// Reads it.
    pub fn read(&self) -> Result<Config> {
        match self {
            Source::File(path) => Config::load(path),
            Source::Arguments(arguments) => Config::from_target_arguments(arguments),
        }
    }
}

#[cfg(test)]
mod tests;
