//! When a part of a chunk is fetched by itself. Pure.
//!
//! Owns: telling reads that a whole chunk would be wasted on, the bound on what is fetched in parts.
//! Does not own: who reads at random (`ahead`), fetching and checking (`fetch`, `chunk::outline`).
//!
//! Each part is cheaper than its chunk, but each costs a request and none is kept. As nobody knows who will want more of a
//! chunk, at most a quarter of it is fetched in parts: then it comes whole, and stays. So a chunk is never paid for more
//! than one and a quarter times.

use std::num::NonZeroUsize;

use lru::LruCache;

use crate::id::ChunkId;

/// Chunks of which it is remembered what was fetched in parts.
const REMEMBERED: usize = 4096;
/// One in so many bytes of a chunk may be fetched in parts.
const SHARE: u64 = 4;
/// The longest part: as much as a read may hold, and the rest of its groups.
const PART_MAX: u64 = 2 << 20;

/// What was fetched in parts lately.
#[derive(Debug)]
pub(super) struct Parts(LruCache<ChunkId, u64>);

impl Default for Parts {
    fn default() -> Parts {
        Parts(LruCache::new(NonZeroUsize::new(REMEMBERED).expect("the number is not zero")))
    }
}

impl Parts {
    /// Whether a part of `bytes` of a chunk of `length` is worth a request of its own. It counts as fetched then.
    pub(super) fn take(&mut self, chunk: ChunkId, length: u64, bytes: u64) -> bool {
        let before = self.0.get(&chunk).copied().unwrap_or(0);
        let worth = bytes <= PART_MAX && before + bytes <= length / SHARE;
        if worth {
            self.0.put(chunk, before + bytes);
        }
        worth
    }

    /// The whole chunk comes: later parts, when it left the cache again, are counted anew.
    pub(super) fn comes_whole(&mut self, chunk: ChunkId) {
        self.0.pop(&chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_a_quarter_of_a_chunk_is_fetched_in_parts() {
        let mut parts = Parts::default();
        let (chunk, other, length) = (ChunkId(1), ChunkId(2), 4 << 20);
        let taken = (0..100).filter(|_| parts.take(chunk, length, 256 << 10)).count();
        assert_eq!(taken, 4);
        assert!(parts.take(other, length, 1 << 20), "each chunk by itself");
        assert!(!parts.take(other, length, 1));
        parts.comes_whole(chunk);
        assert!(parts.take(chunk, length, 256 << 10), "counted anew");
    }

    #[test]
    fn a_long_part_and_one_of_a_short_chunk_come_whole() {
        let mut parts = Parts::default();
        assert!(!parts.take(ChunkId(1), 64 << 20, 3 << 20));
        assert!(!parts.take(ChunkId(2), 1 << 20, 512 << 10));
        assert!(parts.take(ChunkId(2), 1 << 20, 256 << 10));
    }
}
