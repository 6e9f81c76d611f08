//! Chunks and the local files that hold their bytes.
//!
//! Owns: how a session's bytes are cut ([`layout`], pure), chunk files by name ([`mod@file`]), open descriptors ([`open`]),
//! how parts of chunks are checked ([`outline`], pure), how much local space is used and what may leave ([`space`],
//! [`evict`]), whether anybody can still write into a file
//! ([`lease`]), copying one ([`copy`]), which ones the kernel reads by itself ([`lend`]).
//! Does not own: rows that say which range of which file holds which chunk (`meta`), when to seal (`write`).

pub mod copy;
pub mod evict;
pub mod file;
pub mod group;
pub mod layout;
pub mod lease;
pub mod lend;
pub mod open;
pub mod outline;
pub mod reserve;
pub mod space;

/// Descriptors that this process may have open.
pub fn descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}
