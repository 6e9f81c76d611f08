//! Requests and replies between the command line and the daemon, over a Unix socket in the state directory.
//!
//! Owns: what may be asked and answered ([`protocol`], [`status`]), the socket and its two sides, the registry of running
//! daemons ([`registry`]).
//! Does not own: the answers (the daemon in `mount` implements [`Daemon`]), how they are shown (`cli`).
//!
//! ```text
//! cli ─▶ registry: mountpoint → state directory      never through the mount: it may hang
//!      ─▶ client ══ control.sock, JSON lines ══▶ server ─▶ trait Daemon
//!      ◀─ any number of progress, then ok or error ──┘
//! ```
//!
//! - The socket is 0600 in a directory 0700; besides, only the same user and root are answered (SO_PEERCRED).
//! - A request that is given up by closing the connection is dropped; what the daemon must finish anyway it spawns.

pub mod client;
#[cfg(test)]
mod golden;
pub mod protocol;
pub mod registry;
pub mod server;
mod socket;
pub mod status;

pub use client::Client;
pub use protocol::{
    Error, ErrorKind, Flush, Flushed, Op, Path, Progress, Said, Scrub, TargetOp, TargetProgress, Umount, Unmounted,
    Wait,
};
pub use server::{Daemon, ProgressSender};
pub use status::Status;
