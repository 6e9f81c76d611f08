//! The narrow waist to an object store: put, get, stat, list, delete.
//!
//! Owns: what the rest of the system may ask of a target, and the errors it may get.
//! Does not own: retries, health, pacing (`replication`), what the objects mean (`format`).
//!
//! - Keys are relative to the target's prefix and built only by [`crate::format::key`]. No key is ever used as a local path outside
//!   [`directory`], which resolves it beneath one descriptor.
//! - A `put` that returned `Ok` is *confirmed* in the sense of DESIGN §6: the store's own checksum or a `stat` of the length
//!   agreed, and for a directory target object and directory entries are synced (T10).
//! - An error of class [`Class::Ambiguous`] may have been applied: ask (`stat`) before sending again.

mod classify;
pub mod directory;
pub mod identity;
pub mod memory;
pub mod operator;
pub mod pace;
pub mod probe;
pub mod service;
pub mod swap;
mod transport;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

/// The body of an object: ranges that are sent one after the other without being copied together.
#[derive(Debug, Clone, Default)]
pub struct Body {
    parts: Vec<Bytes>,
}

impl Body {
    /// The body whose bytes are the concatenation of `parts`.
    pub fn new(parts: Vec<Bytes>) -> Body {
        Body { parts }
    }

    /// Bytes in all parts together.
    pub fn len(&self) -> u64 {
        self.parts.iter().map(|part| part.len() as u64).sum()
    }

    /// True if there is no byte.
    pub fn is_empty(&self) -> bool {
        self.parts.iter().all(|part| part.is_empty())
    }

    /// The ranges, in order.
    pub fn parts(&self) -> &[Bytes] {
        &self.parts
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Body {
        Body { parts: vec![bytes] }
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Body {
        Bytes::from(bytes).into()
    }
}

/// What a put does when the key exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Replace it: chunks, whose content is their name, so that a repair can mend a bad copy.
    Replace,
    /// Refuse with [`Kind::Exists`] where the store can tell (T8: many cannot): everything else.
    Refuse,
}

/// A listed object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Relative to the prefix, as for `get`.
    pub key: String,
    /// Bytes.
    pub length: u64,
}

/// One page of a listing.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Ascending by key.
    pub objects: Vec<Listed>,
    /// Ask again with this to go on; `None` = the end.
    pub next: Option<String>,
}

/// An object store under one prefix.
#[async_trait]
pub trait Target: Send + Sync + std::fmt::Debug {
    /// Stores an object, whole or not at all, and confirms it.
    async fn put(&self, key: &str, body: Body, existing: Existing) -> Result<()>;

    /// Reads a whole object of at most `length_max` bytes; a longer one is [`Kind::Invalid`].
    async fn get(&self, key: &str, length_max: u64) -> Result<Bytes>;

    /// Reads `length` bytes from `offset`; fewer bytes are [`Kind::Invalid`].
    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes>;

    /// Returns the length of an object in bytes, or `None` if there is none.
    async fn stat(&self, key: &str) -> Result<Option<u64>>;

    /// Lists up to 1,000 objects whose key starts with `prefix` (empty or ending in `/`), recursively, in ascending
    /// order, strictly after the key `after`.
    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page>;

    /// Removes an object; that it did not exist is success.
    async fn delete(&self, key: &str) -> Result<()>;

    /// Checks cheaply that the place is still the one that was contacted (T1, T10), before a batch of confirmations.
    async fn check_place(&self) -> Result<()>;

    /// True if asking costs next to nothing, and what is missing may be plugged in at any moment: a directory.
    fn is_local(&self) -> bool {
        false
    }

    /// Seconds that the store's clock is ahead of ours, by its last answer; `None` where it does not tell.
    fn ahead_secs(&self) -> Option<i64> {
        None
    }

    /// Tells what the store was seen to do by itself (T8). The first call may try it, beneath `tmp/`.
    async fn abilities(&self) -> Result<Abilities>;
}

/// What differs from store to store, and is made up for where it is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// It refuses to create an object twice, even in a race. Without: looked up before each write, fencing is weak (T8).
    pub create_only: bool,
    /// It verified a checksum of what it stored. Without: the length is compared after each write.
    pub checksum: bool,
}

/// Time for a call without its bytes.
const PATIENCE: Duration = Duration::from_secs(30);
/// The slowest link or disk that is worth waiting for, in bytes per second.
const RATE_MIN: u64 = 32 << 10;
/// No object of ours is longer; a bound that somebody asks for may be.
const BYTES_MAX: u64 = 64 << 20;

/// How long a call that moves `bytes` may take on top of `patience` before it is given up.
fn deadline(patience: Duration, bytes: u64) -> Duration {
    patience + Duration::from_secs(bytes.min(BYTES_MAX) / RATE_MIN)
}

/// A target shared by tasks.
pub type DynTarget = Arc<dyn Target>;

/// What kind of failure it was: what the caller can do differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// No such object.
    NotFound,
    /// The object exists and should not.
    Exists,
    /// Credentials are wrong, expired or insufficient.
    Denied,
    /// The bucket, container or directory is missing, or is not the place it was (T1).
    PlaceMissing,
    /// The place is full, or over quota.
    Full,
    /// The store asks to slow down.
    Throttled,
    /// The store cannot be reached or does not answer in time.
    Unreachable,
    /// The store failed (5xx, I/O error).
    Failed,
    /// The store answered something that cannot be right: wrong length, bad reply.
    Invalid,
    /// The configuration of the target is wrong.
    Config,
    /// The store cannot do this at all.
    Unsupported,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Not applied; the same call may succeed later.
    Temporary,
    /// It may or may not have been applied: ask before repeating.
    Ambiguous,
    /// Repeating cannot help until an operator acts.
    Rejected,
}

/// A failed call to a target.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{operation} {key:?}: {message}")]
pub struct Error {
    pub kind: Kind,
    pub class: Class,
    /// `put`, `get`, `stat`, `list`, `delete` …
    pub operation: &'static str,
    pub key: String,
    /// The cause in words, without secrets.
    pub message: String,
    /// The store's own wish (`Retry-After`).
    pub retry_after: Option<Duration>,
}

/// Result of a call to a target.
pub type Result<T> = std::result::Result<T, Error>;
