//! Everything that brings the filesystem to its targets: chunks first, then the journal that names them.
//!
//! Owns: which object goes to which target when, with what retries; confirmations; segments and checkpoints.
//! Does not own: the transfer itself (`target`), the rows (`meta`), the bytes on a target (`format`).
//!
//! ```text
//! meta (chunk_todo) ──▶ planner (pure) ──effects──▶ driver ──▶ upload ──▶ target
//!                          ▲───────────events──────────┘         └─▶ placement bits ──▶ shipper ──▶ segments
//! ```

pub mod ack;
#[cfg(test)]
mod backlog_tests;
pub mod backoff;
pub mod checkpoint;
pub mod conflicts;
pub mod contact;
pub mod driver;
pub mod gate;
pub mod health;
pub mod holds;
pub mod limit;
pub mod planner;
pub mod queue;
pub mod resync;
pub mod segments;
pub mod selection;
pub mod shipper;
pub mod source;
pub mod stock;
#[cfg(test)]
mod test_world;
pub mod upload;
pub mod walk;
#[cfg(test)]
mod week_tests;
