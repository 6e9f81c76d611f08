//! What tests break the system with.
//!
//! Owns: stores that fail on purpose (for tests and with the feature `testing` only), whole worlds of them and
//! random calls of programs (for tests), places
//! at which the daemon does ([`failpoint`], always compiled and inert).
//! Does not own: what must still hold then (each test says that itself).

pub mod failpoint;
#[cfg(any(test, feature = "testing"))]
pub mod faulty;
#[cfg(test)]
pub(crate) mod posix;
#[cfg(test)]
mod simulation;
