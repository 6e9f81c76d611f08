//! What `df` shows.
//!
//! Used is what the filesystem holds, wherever its bytes are; free is what the local disk can still take before anything
//! is evicted. So the total is no fixed number, as on every filesystem that shares its space.

use super::{Result, Vfs, errno};
use crate::id::InodeId;

/// Bytes of a block in [`Statfs`].
pub const BLOCK_SIZE: u32 = 4096;
/// Bytes that a small file costs the metadata store, about: row, name, journal.
const INODE_COST: u64 = 512;

/// Numbers for `statfs(2)`, in blocks of [`BLOCK_SIZE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statfs {
    pub blocks: u64,
    pub free: u64,
    pub available: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

impl Vfs {
    /// How full the filesystem is.
    pub fn statfs(&self) -> Result<Statfs> {
        let disk = self.meta.disk().map_err(|error| errno("statfs", InodeId::ROOT, &error))?;
        let usage = self.meta.usage();
        let block = u64::from(BLOCK_SIZE);
        let inodes_free = disk.available / INODE_COST;
        Ok(Statfs {
            blocks: usage.bytes.div_ceil(block) + disk.free / block,
            free: disk.free / block,
            available: disk.available / block,
            inodes: usage.inodes + inodes_free,
            inodes_free,
        })
    }
}
