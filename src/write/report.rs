//! What is dirty, for `status` and for those who wait.

use super::Files;
use super::live::State;
use super::session::Staged;
use crate::id::InodeId;

/// Bytes that no commit has yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Uncommitted {
    /// Files with changes that have no place in history yet: open ones that were written to since their last FLUSH.
    pub unplaced: u64,
    /// Bytes on disk of all sessions that are not committed.
    pub bytes: u64,
}

impl Files {
    /// What is not committed, of one inode or of all.
    pub fn uncommitted_of(&self, inode: Option<InodeId>) -> Uncommitted {
        let mut sum = Uncommitted::default();
        let mut add = |state: &State| {
            if state.unnamed {
                return;
            }
            sum.unplaced += u64::from(state.staged.as_ref().is_some_and(|staged| staged.is_dirty_by_now()));
            // What an open file holds beyond its copy that was committed (P4): nothing, until it is written to again.
            let waits = |staged: &&Staged| staged.has_slot || staged.is_dirty_by_now();
            let staged = state.staged.as_ref().filter(waits).map_or(0, |staged| staged.allocated());
            sum.bytes += staged + state.frozen.iter().map(|frozen| frozen.accounted).sum::<u64>();
        };
        match inode {
            Some(inode) => {
                if let Some(file) = self.find(inode) {
                    add(&file.state.read());
                }
            }
            None => self.all().iter().for_each(|file| add(&file.state.read())),
        }
        sum
    }
}
