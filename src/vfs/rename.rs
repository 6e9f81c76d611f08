//! Names that move: `rename`, `renameat2`.

use super::{Result, Vfs, errno, place};
use crate::clock;
use crate::id::InodeId;
use crate::meta::rename::Move;
use crate::meta::slot::SlotRequest;
use crate::testing::failpoint::{self, Point};

/// What a rename does when there is something under the new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace it.
    Replace,
    /// `RENAME_NOREPLACE`: fail.
    NoReplace,
    /// `RENAME_EXCHANGE`: the two change places.
    Exchange,
}

impl Vfs {
    /// Moves a name. Dirty files that it names take their place in history first (O1).
    pub fn rename(&self, from: (InodeId, &[u8]), to: (InodeId, &[u8]), mode: RenameMode) -> Result<()> {
        let refused = |error: crate::meta::Error| errno("rename", from.0, &error);
        let (from, to) = (place(from.0, from.1)?, place(to.0, to.1)?);
        let moved = self.meta.lookup(from).map_err(refused)?.ino;
        let time = clock::now();
        match mode {
            RenameMode::Replace | RenameMode::NoReplace => {
                let request = Move { from, to, no_replace: mode == RenameMode::NoReplace, time };
                let rename = |claims: &[SlotRequest]| self.meta.write(|tx| tx.rename(&request, claims.first()));
                let replaced = self.files.with_claims(&[moved], rename).map_err(refused)?;
                self.files.attributes_set(moved, None, time);
                replaced.iter().for_each(|inode| self.lost_name(inode));
            }
            RenameMode::Exchange => {
                let other = self.meta.lookup(to).map_err(refused)?.ino;
                let exchange = |claims: &[SlotRequest]| self.meta.write(|tx| tx.exchange(from, to, claims, time));
                self.files.with_claims(&[moved, other], exchange).map_err(refused)?;
                self.files.attributes_set(moved, None, time);
                self.files.attributes_set(other, None, time);
            }
        }
        failpoint::pass(Point::Rename);
        Ok(())
    }
}
