//! Live files: what is open or dirty, and the way of written bytes from `write(2)` to a sealed, committed generation.
//!
//! Owns: sessions, their staged chunk files and ranges, slots being due, sealing, gathering, committing.
//! Does not own: names (`vfs`), rows (`meta`), uploads (`replication`).
//!
//! ```text
//! write ─▶ staged session ─FLUSH▶ slot ─last RELEASE, rotation▶ frozen ─sealer▶ hashed ─gather, sync▶ committed
//!          files, io             slots                            seal                 pipeline
//! ```

pub mod births;
pub mod export;
pub mod files;
pub mod gather;
pub mod io;
pub mod iomode;
pub mod layers;
pub mod lend;
pub mod live;
pub mod opening;
pub mod overlay;
pub mod pipeline;
#[cfg(test)]
pub(crate) mod pipeline_tests;
pub mod ranges;
pub mod report;
pub mod seal;
pub mod session;
pub mod share;
pub mod slots;
pub mod trouble;
pub mod watch;

pub use files::{Files, Options, Stale};
