//! `copy_file_range(2)`.

use super::{Result, Vfs, errno};
use crate::id::InodeId;

/// The longest copy that a reply can report.
const LENGTH_MAX: u64 = u32::MAX as u64 & !0xfff;

impl Vfs {
    /// Copies `length` bytes from a place in a file to a place in an open file, by reference. `None`: the kernel has to copy
    /// them itself.
    pub fn copy_range(&self, from: (InodeId, u64), to: (InodeId, u64), length: u64) -> Result<Option<u64>> {
        self.files()
            .share(from.0, from.1, to.0, to.1, length.min(LENGTH_MAX))
            .map_err(|error| errno("copy_file_range", to.0, &error))
    }
}
