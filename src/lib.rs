//! TandemFS: a FUSE filesystem that keeps every file, whole and verifiable, in several object stores at once.
//!
//! ```text
//! kernel ─▶ fuse ─▶ vfs ─▶ write ─▶ chunk files          local disk speed
//!                    │       └─▶ meta (SQLite, journal)
//!                    ▼             │
//!                   read ◀── target ◀── replication      every target: chunks, then the journal that names them
//! ```
//!
//! The modules stand in the order in which data flows through them.

pub mod aside;
pub mod chance;
pub mod clock;
pub mod config;
pub mod id;
pub mod news;
pub mod priority;

pub mod chunk;
pub mod compaction;
pub mod format;
pub mod fuse;
pub mod gc;
pub mod meta;
pub mod read;
pub mod recovery;
pub mod replication;
pub mod restore;
pub mod scrub;
pub mod target;
pub mod vfs;
pub mod write;

pub mod cli;
pub mod control;
pub mod mount;

pub mod testing;

#[cfg(doc)]
pub mod docs;
