//! `lseek(2)` with `SEEK_DATA` and `SEEK_HOLE`: holes as precise as the layer that answers for a range knows them, in live
//! files too.

use std::fs::File;
use std::ops::Range;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::{Result, Vfs, errno};
use crate::id::InodeId;
use crate::write::io::{From, Planned};

impl Vfs {
    /// Where the next data or hole begins, from `offset` on. The end of the file is a hole.
    pub fn seek(&self, ino: InodeId, offset: u64, whence: i32) -> Result<u64> {
        let hole = match whence {
            libc::SEEK_DATA => false,
            libc::SEEK_HOLE => true,
            _ => return Err(Errno::INVAL),
        };
        let inode = self.current(self.meta().inode(ino).map_err(|error| errno("lseek", ino, &error))?);
        if offset >= inode.size {
            return Err(Errno::NXIO);
        }
        let range = offset..inode.size;
        let segments =
            self.files().plan(ino, range.clone()).unwrap_or_else(|| vec![Planned { range, from: From::Manifest }]);
        for Planned { range, from } in segments {
            let found = match from {
                From::Hole => hole.then_some(range.start),
                From::Staged(file) => seek_file(&file, range, hole),
                // Gone since the plan was made: committed, then evicted. That all of it is data is true, if not precise.
                From::Frozen(path) => match self.reader().open_files.get(&path) {
                    Ok(file) => seek_file(&file, range, hole),
                    Err(_) => (!hole).then_some(range.start),
                },
                From::Manifest => self.meta().seek(ino, range, hole).map_err(|error| errno("lseek", ino, &error))?,
            };
            if let Some(found) = found {
                return Ok(found);
            }
        }
        if hole { Ok(inode.size) } else { Err(Errno::NXIO) }
    }
}

/// The same question to a session's file, whose bytes lie at their own offsets. What it cannot say counts as data.
fn seek_file(file: &File, range: Range<u64>, hole: bool) -> Option<u64> {
    let whence = if hole { SeekFrom::Hole(range.start) } else { SeekFrom::Data(range.start) };
    match rustix::fs::seek(file, whence) {
        Ok(found) => (found < range.end).then_some(found),
        // Nothing but a hole from here to the end of the file, and beyond it.
        Err(Errno::NXIO) => hole.then_some(range.start),
        Err(_) => (!hole).then_some(range.start),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_sessions_file_does_not_hold_is_a_hole() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 4096], 64 << 10).unwrap();
        assert_eq!(seek_file(&file, 0..1 << 20, false), Some(64 << 10));
        assert_eq!(seek_file(&file, 0..1 << 20, true), Some(0));
        assert_eq!(seek_file(&file, 64 << 10..1 << 20, true), Some(68 << 10));
        assert_eq!(seek_file(&file, 64 << 10..68 << 10, true), None, "the hole begins where another layer answers");
        assert_eq!(seek_file(&file, 68 << 10..1 << 20, false), None);
        assert_eq!(seek_file(&file, 2 << 20..3 << 20, true), Some(2 << 20), "beyond its end");
    }
}
