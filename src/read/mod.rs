//! Reading: from live sessions, from local chunk files, from targets.
//!
//! Owns: assembling the bytes of a read ([`reader`]), fetching chunks from targets with failover ([`fetch`]) in an order of
//! their own (`sources`, pure), when to fetch ahead ([`ahead`], pure), a part of a chunk by itself where that is cheaper
//! (`part`, `parts`).
//! Does not own: which layer answers (`write::layers`), where chunks lie (`meta::location`), what may be cached (`chunk`).
//!
//! Nothing that is read from a target is served before its BLAKE3 was checked (promise 4), and no thread of the kernel's
//! requests waits for a target: what is not local becomes a future.

pub mod ahead;
pub mod fetch;
mod part;
mod parts;
pub mod reader;
mod sources;

pub use fetch::{Fetcher, Source};
pub use reader::{Outcome, Reader};
