//! What `stat` shows of a file whose content is not all committed: size and times of its sessions, and what is allocated.
//!
//! Owns: putting a session's attributes over the row's, `st_blocks` while sessions live and when it must be asked for again.
//! Does not own: `st_blocks` of committed content (`Inode::allocated`).
//!
//! The kernel keeps what it was told until somebody changes the file through it. So a number may be too high while edits
//! lie over other content (what they replace counts twice), and is right from the commit on: then the kernel is told to
//! ask again, if what it was told can have been another number. It is never too low: programs take a file with fewer blocks
//! than bytes for a sparse one, some one without blocks for an empty one.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;

use rustix::fs::SeekFrom;

use super::files::Files;
use super::live::State;
use super::session::Frozen;
use crate::id::InodeId;
use crate::meta::inode::Inode;

/// What allocated bytes are counted in, as on most disks.
pub const ALLOCATION_UNIT: u64 = 4096;

impl Files {
    /// Puts what a session knows better into `inode`: size, mtime, ctime; bytes allocated, holes not among them. False:
    /// there is no session, and every one that was is committed.
    pub fn overlay(&self, inode: &mut Inode) -> bool {
        let Some(file) = self.find(inode.ino) else { return false };
        let state = file.state.read();
        let Some(attributes) = state.current_attributes() else { return false };
        inode.size = attributes.size;
        inode.mtime = attributes.mtime;
        inode.ctime = attributes.ctime;
        inode.allocated = self.allocated(inode.ino, &state, attributes.size);
        true
    }

    fn allocated(&self, ino: InodeId, state: &State, size: u64) -> u64 {
        let mut sum = 0;
        if let Some(staged) = &state.staged {
            sum += staged.file.metadata().map_or(size, |metadata| allocated(&metadata, &staged.file));
            if staged.whole {
                return sum;
            }
        }
        for frozen in &state.frozen {
            sum += self.allocated_of(frozen);
            if frozen.whole {
                return sum.min(size.next_multiple_of(ALLOCATION_UNIT));
            }
        }
        // Read while the state is held: a session that it does not name any more is committed in this row.
        sum += self.meta.inode(ino).map_or(size, |inode| inode.allocated);
        sum.min(size.next_multiple_of(ALLOCATION_UNIT))
    }

    fn allocated_of(&self, frozen: &Frozen) -> u64 {
        let path = self.open_files.files().locate(&frozen.path);
        let open = || File::open(&path).and_then(|file| Ok(allocated(&file.metadata()?, &file)));
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.blocks() > 0 => metadata.blocks() * 512,
            _ => open().unwrap_or(frozen.size),
        }
    }

    /// A session of `file_allocated` bytes was committed: whether `stat` shows another number of blocks than before.
    pub(super) fn blocks_changed(&self, ino: InodeId, state: &State, committed: &Frozen, file_allocated: u64) -> bool {
        if state.staged.is_some() || !state.frozen.is_empty() {
            // Not the last word: the session that lies over it will have that.
            return false;
        }
        let Ok(inode) = self.meta.inode(ino) else { return false };
        let shown = inode.allocated.next_multiple_of(ALLOCATION_UNIT);
        match committed.whole {
            true => shown != file_allocated,
            // Of a file without holes it was never too high.
            false => shown < inode.size,
        }
    }
}

/// What a file takes on disk. Some filesystems show no blocks for bytes that they keep elsewhere, or have not written yet.
fn allocated(metadata: &Metadata, file: &File) -> u64 {
    let has_data = || metadata.len() > 0 && rustix::fs::seek(file, SeekFrom::Data(0)).is_ok();
    match metadata.blocks() {
        0 if has_data() => ALLOCATION_UNIT,
        blocks => blocks * 512,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_data_is_never_without_blocks() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(allocated(&file.metadata().unwrap(), &file), 0);
        file.set_len(1 << 30).unwrap();
        assert_eq!(allocated(&file.metadata().unwrap(), &file), 0, "nothing but a hole");
        std::os::unix::fs::FileExt::write_all_at(&file, b"x", 1 << 20).unwrap();
        let shown = allocated(&file.metadata().unwrap(), &file);
        assert!(shown > 0 && shown < 1 << 20, "{shown}");
    }
}
