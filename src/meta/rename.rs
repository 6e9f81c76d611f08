//! Names that move.
//!
//! Owns: `rename` with replacement, without (`RENAME_NOREPLACE`) and `RENAME_EXCHANGE`; that the tree stays a tree.
//! Does not own: which dirty inode takes its slot first (O1: the caller passes the request).

use rusqlite::params;
use rustix::io::Errno;

use super::create::LINK_MAX;
use super::inode::Inode;
use super::namespace::{Place, entry, find_entry, is_empty, is_within};
use super::slot::SlotRequest;
use super::{Error, Result, Tx};
use crate::clock::Timestamp;
use crate::format::record::Change;
use crate::id::{InodeId, Seq};

/// A name that shall move.
#[derive(Debug, Clone, Copy)]
pub struct Move<'a> {
    pub from: Place<'a>,
    pub to: Place<'a>,
    /// `EEXIST` if there is something at `to`.
    pub no_replace: bool,
    pub time: Timestamp,
}

/// The two directories of a move, which may be one and the same.
struct Parents {
    from: Inode,
    /// `None` if it is `from`.
    to: Option<Inode>,
}

impl Parents {
    fn load(tx: &Tx<'_>, from: InodeId, to: InodeId) -> Result<Parents> {
        let from_parent = tx.directory(from)?;
        let to = if to == from { None } else { Some(tx.directory(to)?) };
        Ok(Parents { from: from_parent, to })
    }

    /// Accounts for a directory that moves from the one to the other.
    fn move_directory(&mut self) -> Result<()> {
        if let Some(to) = &mut self.to {
            if to.nlink >= LINK_MAX {
                return Err(Errno::MLINK.into());
            }
            self.from.nlink -= 1;
            to.nlink += 1;
        }
        Ok(())
    }

    fn store(mut self, tx: &Tx<'_>, time: Timestamp, seq: Seq) -> Result<()> {
        for parent in [Some(&mut self.from), self.to.as_mut()].into_iter().flatten() {
            parent.names_changed(time, seq);
            parent.update(tx)?;
        }
        Ok(())
    }
}

impl Tx<'_> {
    /// Moves a name, replacing what has the name `to`. `slot`: the place that the content of the moved inode takes
    /// before, if it is dirty (O1). Returns the inode that lost the name `to`, as it is now: with `nlink` 0 an orphan.
    pub fn rename(&mut self, request: &Move<'_>, slot: Option<&SlotRequest>) -> Result<Option<Inode>> {
        let Move { from, to, no_replace, time } = *request;
        let mut parents = Parents::load(self, from.parent, to.parent)?;
        let moved = self.named_inode(entry(self.conn(), from)?)?;
        let mut replaced = match find_entry(self.conn(), to)? {
            Some(_) if no_replace => return Err(Errno::EXIST.into()),
            // Two names of one inode: rename(2) does nothing then, but the claimed slot is counted as reserved.
            Some(ino) if ino == moved.ino => {
                self.reserve_before_naming(moved, slot)?;
                return Ok(None);
            }
            Some(ino) => Some(self.named_inode(ino)?),
            None => None,
        };
        if moved.is_dir() && is_within(self.conn(), to.parent, moved.ino)? {
            return Err(Errno::INVAL.into());
        }
        if let Some(replaced) = &replaced {
            match (moved.is_dir(), replaced.is_dir()) {
                (true, false) => return Err(Errno::NOTDIR.into()),
                (false, true) => return Err(Errno::ISDIR.into()),
                (true, true) if !is_empty(self.conn(), replaced.ino)? => return Err(Errno::NOTEMPTY.into()),
                _ => {}
            }
        }
        let mut moved = self.reserve_before_naming(moved, slot)?;
        let seq = self.append(&Change::Rename {
            from: from.dentry(),
            to: to.dentry(),
            ino: moved.ino,
            replaced: replaced.map(|inode| inode.ino),
            dir: moved.is_dir(),
            time,
        })?;
        self.delete_entry(from)?;
        if let Some(replaced) = &mut replaced {
            self.delete_entry(to)?;
            self.lose_name(replaced, time, seq)?;
            if replaced.is_dir() {
                parents.to.as_mut().unwrap_or(&mut parents.from).nlink -= 1;
            }
        }
        self.insert_entry(to, moved.ino)?;
        if moved.is_dir() {
            parents.move_directory()?;
        }
        moved.parent = to.parent;
        moved.named(time, seq);
        moved.update(self)?;
        parents.store(self, time, seq)?;
        Ok(replaced)
    }

    /// Lets two names change places. `slots`: of those of the two inodes that are dirty (O1).
    pub fn exchange(&mut self, a: Place<'_>, b: Place<'_>, slots: &[SlotRequest], time: Timestamp) -> Result<()> {
        let mut parents = Parents::load(self, a.parent, b.parent)?;
        let at_a = self.named_inode(entry(self.conn(), a)?)?;
        let at_b = self.named_inode(entry(self.conn(), b)?)?;
        if at_a.ino == at_b.ino {
            for slot in slots {
                self.reserve_slot(slot)?;
            }
            return Ok(());
        }
        for (moved, new_parent) in [(&at_a, b.parent), (&at_b, a.parent)] {
            if moved.is_dir() && is_within(self.conn(), new_parent, moved.ino)? {
                return Err(Errno::INVAL.into());
            }
        }
        for slot in slots {
            self.reserve_slot(slot)?;
        }
        let mut at_a = self.inode(at_a.ino)?;
        let mut at_b = self.inode(at_b.ino)?;
        let seq = self.append(&Change::Exchange { a: (a.dentry(), at_a.ino), b: (b.dentry(), at_b.ino), time })?;
        // The names stay where they are in the order of readdir; only what they refer to changes.
        self.point_entry(a, at_b.ino)?;
        self.point_entry(b, at_a.ino)?;
        match (at_a.is_dir(), at_b.is_dir(), &mut parents.to) {
            (true, false, Some(to)) => (parents.from.nlink, to.nlink) = (parents.from.nlink - 1, to.nlink + 1),
            (false, true, Some(to)) => (parents.from.nlink, to.nlink) = (parents.from.nlink + 1, to.nlink - 1),
            _ => {}
        }
        for (moved, new_parent) in [(&mut at_a, b.parent), (&mut at_b, a.parent)] {
            moved.parent = new_parent;
            moved.named(time, seq);
            moved.update(self)?;
        }
        parents.store(self, time, seq)
    }

    fn point_entry(&mut self, place: Place<'_>, ino: InodeId) -> Result<()> {
        let changed = self
            .conn()
            .prepare_cached("UPDATE dirent SET ino = ?3 WHERE parent = ?1 AND name = ?2")?
            .execute(params![place.parent, place.name.bytes(), ino])?;
        if changed == 1 {
            Ok(())
        } else {
            Err(Error::Damaged(format!("an exchanged name in {} is gone", place.parent)))
        }
    }
}
