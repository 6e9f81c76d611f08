//! How far to fetch ahead of a reader. Pure.
//!
//! Owns: telling sequential readers from others, the growing depth.
//! Does not own: fetching.

use std::num::NonZeroUsize;
use std::ops::Range;

use lru::LruCache;

use crate::id::InodeId;

/// Inodes whose readers are remembered.
const INODES: usize = 1024;
/// Chunks ahead at most.
const DEPTH_MAX: u64 = 4;

/// What is known of recent readers.
#[derive(Debug)]
pub struct Ahead {
    readers: LruCache<InodeId, Reader>,
}

#[derive(Debug, Clone, Copy)]
struct Reader {
    next: u64,
    depth: u64,
}

impl Default for Ahead {
    fn default() -> Ahead {
        Ahead { readers: LruCache::new(NonZeroUsize::new(INODES).expect("the number is not zero")) }
    }
}

impl Ahead {
    /// Notes a read that needed a target and returns the range to fetch ahead: nothing for a first or random read, then
    /// one chunk, two, four behind the end of the read.
    pub fn note(&mut self, ino: InodeId, read: Range<u64>, chunk_size: u64) -> Range<u64> {
        let depth = match self.readers.get(&ino) {
            // A chunk's worth of slack: the kernel's own read-ahead arrives out of order.
            Some(reader) if read.start <= reader.next + chunk_size && read.end >= reader.next => {
                (reader.depth * 2).clamp(1, DEPTH_MAX)
            }
            _ => 0,
        };
        self.readers.put(ino, Reader { next: read.end, depth });
        read.end..read.end.saturating_add(depth * chunk_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_grows_for_a_sequential_reader_only() {
        let mut ahead = Ahead::default();
        let ino = InodeId(5);
        assert_eq!(ahead.note(ino, 0..10, 100), 10..10);
        assert_eq!(ahead.note(ino, 10..20, 100), 20..120);
        assert_eq!(ahead.note(ino, 120..130, 100), 130..330);
        assert_eq!(ahead.note(ino, 130..140, 100), 140..540);
        assert_eq!(ahead.note(ino, 140..150, 100), 150..550);
        assert_eq!(ahead.note(ino, 9000..9010, 100), 9010..9010);
        assert_eq!(ahead.note(ino, 0..10, 100), 10..10);
    }
}
