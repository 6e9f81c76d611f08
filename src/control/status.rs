//! What `status` says, in the order in which people ask: is my data safe, what waits, which target is ill, what to do.
//!
//! Owns: the structs behind both `--json` and the text (DESIGN §8).
//! Does not own: filling them (`mount`), the text (`cli`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The state of a mounted filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Which filesystem.
    pub filesystem: Filesystem,
    /// True only if every change and every dirty session, open ones too, is on every target. Chunks that are being rewritten
    /// do not count: their bytes are where they were.
    pub safe: bool,
    /// What is not yet on every target.
    pub unreplicated: Unreplicated,
    /// In the order of the configuration.
    pub targets: Vec<Target>,
    /// What an operator should look at.
    pub attention: Vec<Attention>,
    /// Local bytes.
    pub cache: Cache,
    /// What lies in chunks although no file refers to it.
    #[serde(default)]
    pub garbage: Garbage,
    /// Requests of the kernel since the mount, by operation; what it remembers or does by itself it does not ask for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, u64>,
    /// The newest place in the journal.
    pub journal_seq: u64,
}

/// The identity of a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filesystem {
    /// As named at creation.
    pub name: String,
    /// The same on all its targets.
    pub uuid: String,
    /// Where it is mounted.
    pub mountpoint: String,
    /// Where its local state lies.
    pub state_dir: String,
    /// The number of this mount's right to write.
    pub epoch: u64,
    /// Why reads and writes of local bytes go through the daemon; absent where the kernel does them by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_passthrough: Option<String>,
}

/// What waits for at least one target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreplicated {
    /// Files whose newest content some target lacks.
    pub files: u64,
    /// Bytes that some target lacks, each counted once.
    pub bytes: u64,
    /// Age of the oldest of it; 0 if nothing waits.
    pub oldest_seconds: u64,
}

/// The state of one target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// As configured.
    pub name: String,
    /// Without secrets.
    pub uri: String,
    /// Our belief about it.
    pub health: Health,
    /// How it takes part.
    pub mode: Mode,
    /// Why it does not, if it does not.
    pub reason: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// The moment whose state a restore from it would bring, RFC 3339; null if it holds none yet.
    pub whole_as_of: Option<String>,
    /// How far a resync is.
    pub resync: Option<Resync>,
    /// Objects it lacks.
    pub pending_objects: u64,
    /// Bytes it lacks.
    pub pending_bytes: u64,
    /// Age of the oldest thing it lacks; 0 if nothing.
    pub lag_seconds: u64,
    /// Bytes it has confirmed.
    pub placed_bytes: u64,
    /// It holds every record up to this place.
    pub shipped_seq: u64,
    /// The newest error, even if it was overcome.
    pub last_error: Option<String>,
}

/// Belief about a target (DESIGN §6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It works.
    Healthy,
    /// Some calls failed.
    Suspect,
    /// Only probes run.
    Down,
    /// A probe runs.
    Probing,
    /// Halted by the operator.
    Paused,
}

/// How a target takes part (T4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It takes the journal as it grows.
    Follow,
    /// It is being brought to a later whole point.
    Resync,
    /// An operator must act; its work waits.
    Blocked,
    /// Another writer holds it.
    Fenced,
}

/// How far a resync is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resync {
    /// The point it is brought to.
    pub seq: u64,
    /// Bytes of that state that are there.
    pub placed_bytes: u64,
    /// Bytes of that state.
    pub total_bytes: u64,
    /// How long it will take at the pace of now; null while that is unknown.
    pub estimate_seconds: Option<u64>,
}

/// Something an operator should look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attention {
    /// What it is.
    pub kind: AttentionKind,
    /// The file, if it has a name.
    pub path: Option<String>,
    /// The inode, if it is about one.
    pub inode: Option<u64>,
    /// How much.
    pub bytes: Option<u64>,
    /// Since when.
    pub since_seconds: Option<u64>,
    /// What to do.
    pub hint: String,
}

/// Kinds of [`Attention`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionKind {
    /// A mapping keeps a closed file from being sealed (S4).
    StillMapped,
    /// A large passthrough file stays open (P4).
    OpenPassthrough,
    /// A power cut lost a generation that was never synced (S6).
    Void,
    /// Files that no row names (S7).
    Quarantine,
    /// Bytes that match their checksum nowhere.
    Damaged,
    /// The configuration and the targets that commands made differ.
    Configuration,
    /// A store does something wrong that replication relies on.
    Unreliable,
    /// A `close` or `fsync` failed because too few targets had the file in time; it stays queued (D3).
    Late,
    /// The local disk does not give the bytes of a closed file (D3).
    Unsealed,
    /// Calls of programs that were answered with an input/output error because a handler panicked.
    Panicked,
    /// A sync of the state disk failed: nothing more is acknowledged until remount.
    Latched,
}

/// Local bytes of chunk files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// On the local disk.
    pub used_bytes: u64,
    /// Of these, such as must stay: some target lacks them.
    pub pinned_bytes: u64,
    /// The configured limit; null = the disk.
    pub limit_bytes: Option<u64>,
}

/// What chunks hold that no file refers to, and what is done about it (S10).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Garbage {
    /// Bytes of chunks that files refer to.
    pub chunk_bytes: u64,
    /// Of these, bytes that files refer to.
    pub live_bytes: u64,
    /// Chunks of which less than half is referred to.
    pub sparse_chunks: u64,
    /// Their bytes.
    pub sparse_bytes: u64,
    /// Of these, bytes that would be written anew.
    pub sparse_live_bytes: u64,
    /// Parts of files in too many pieces, as counted last.
    pub scattered_areas: u64,
    /// Why none of it is rewritten now; null if nothing hinders it.
    pub held: Option<String>,
    /// Bytes rewritten since the mount.
    pub rewritten_bytes: u64,
}
