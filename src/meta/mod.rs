//! The metadata of the filesystem: one SQLite file in the state directory.
//!
//! Owns: the schema, domain transactions (`create`, `rename`, `commit`, `place` …), the journal's rows, durability of all
//! of it. The rest of the system never sees SQL.
//! Does not own: chunk files and their bytes (`chunk`, `write`), objects on targets (`target`), when things happen.
//!
//! ```text
//! one writer connection, BEGIN IMMEDIATE … COMMIT ──▶ WAL ──(group fdatasync)──▶ durable
//! several reader connections: snapshots, never blocked by the writer
//! ```
//!
//! - A commit survives the death of the process at once; it survives a power cut after [`Meta::sync`] (S1, S8).
//! - Every transaction that changes the filesystem appends its journal record itself: `seq` is the total order.
//! - After a failed sync, of the store or of a chunk file, nothing more is acknowledged until remount: the store is latched
//!   ([`Meta::latch`], [`Error::Latched`]).

pub mod acl;
pub mod attr;
mod cache;
pub mod checkpoint;
pub mod commit;
pub mod copies;
pub mod create;
pub mod export;
pub(crate) mod extent;
pub mod gc;
#[cfg(test)]
pub(crate) mod history;
pub mod image;
pub mod import;
pub mod inode;
pub mod journal;
pub mod location;
mod log_writes;
mod migrate;
pub mod mount;
pub mod namespace;
pub mod outline;
pub mod pin;
pub mod placement;
pub mod readdir;
pub mod remove;
pub mod rename;
pub mod repack;
mod replay;
pub mod restored;
pub mod resync;
#[cfg(test)]
mod script_tests;
pub mod scrub;
pub mod session;
pub mod share;
pub mod shipping;
pub mod slot;
mod steady;
mod store;
pub mod target;
pub mod target_set;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tree_tests;
pub mod window;
pub mod xattr;

pub use store::{Created, Disk, Meta, Options, Tx, Usage, WhenFull};

/// What can go wrong in the metadata store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// SQLite refused or failed; a full disk is among these ([`Error::is_full`]).
    #[error("metadata store: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The store is of a version that cannot be used: a later one, or an earlier one that may not be changed now.
    #[error("{} has the tables of {} version of tandemfs (schema {found}; this program has {known})", path.display(), if found > known { "a later" } else { "an earlier" })]
    Version {
        /// The file.
        path: std::path::PathBuf,
        /// Its version.
        found: i32,
        /// The newest that this program knows.
        known: i32,
    },
    /// Rows that contradict one another or cannot be decoded.
    #[error("metadata store is damaged: {0}")]
    Damaged(String),
    /// A record of history that cannot be true of the tables it is applied to, or of any.
    #[error("record {seq} about inode {ino}: {why}")]
    Contradiction {
        /// The record's place in history.
        seq: crate::id::Seq,
        /// The inode that it is about; 0 for a repack.
        ino: crate::id::InodeId,
        /// What does not fit.
        why: String,
    },
    /// A checkpoint's database that is not what it must be: nothing of it is believed (D5).
    #[error("checkpoint: {0}")]
    Checkpoint(String),
    /// A system call on the store's files failed.
    #[error("metadata store: {what}: {source}")]
    Io {
        /// The operation and the file.
        what: String,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// An earlier sync failed: what is on disk is unknown, nothing more is acknowledged until remount.
    #[error("a sync of the state disk failed, nothing more is acknowledged: look at that disk, unmount, mount again")]
    Latched,
    /// The operation itself is refused, with the errno that the caller shall see.
    #[error("{0}")]
    Refused(#[from] rustix::io::Errno),
}

impl Error {
    /// The disk is full, or a quota is used up, and nothing else is wrong.
    pub fn is_full(&self) -> bool {
        if self.is_quota() {
            return true;
        }
        let Error::Sqlite(rusqlite::Error::SqliteFailure(error, _)) = self else { return false };
        // Its shared memory is a file, too, which it lengthens before it writes.
        error.code == rusqlite::ErrorCode::DiskFull || error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE
    }

    /// A quota is used up.
    pub fn is_quota(&self) -> bool {
        matches!(self, Error::Refused(rustix::io::Errno::DQUOT))
    }

    /// The errno that a program gets for it (errno(3)).
    pub fn errno(&self) -> rustix::io::Errno {
        match self {
            Error::Refused(errno) => *errno,
            error if error.is_full() => rustix::io::Errno::NOSPC,
            _ => rustix::io::Errno::IO,
        }
    }
}

/// Result of a metadata operation.
pub type Result<T> = std::result::Result<T, Error>;
