//! The kernel's side: a FUSE connection, its requests and replies.
//!
//! Owns: mounting and unmounting, the session, translation of requests, replies and errnos, counting requests, catching
//! panics.
//! Does not own: what an operation does (`vfs`): nothing is decided here.
//!
//! - Every handler runs under `catch_unwind`: the FUSE crate would otherwise end the session, and the mount with it.
//! - A handler never waits for a target: a read that must fetch moves its reply into a task, and so does what waits for a
//!   disk (`fsync`).
//! - `forget` and notifications: a notification is never sent from a request's thread (the kernel may wait for that very
//!   request while it holds the lock that the notification needs).

mod adapter;
mod attr;
pub mod device;
mod errno;
mod io;
pub mod operation;
#[cfg(test)]
mod panic_tests;
pub mod session;

pub use device::{MountOptions, Unmount, unmount};
pub use operation::Requests;
pub use session::{Notifier, Options, Session};
