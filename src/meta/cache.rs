//! Inode rows in memory, so that `stat`, `open` and the questions for attributes that almost no file has cost no statement.
//!
//! Owns: which rows are kept, that a kept row is the committed one.
//! Does not own: reading and writing rows (`inode`), size and times of live sessions (`write`).
//!
//! There is one writer, so a kept row is right as long as each commit brings its changes here in the order of commits:
//! [`Meta::write`](super::Meta::write) does so before it lets the next writer in. A reader brings a row that it read from a
//! snapshot only if no commit came since it looked: the snapshot may be older than that commit.

use std::collections::HashMap;
use std::num::NonZeroUsize;

use lru::LruCache;
use parking_lot::Mutex;

use super::inode::Inode;
use crate::id::InodeId;

/// Rows kept, about 200 bytes each.
const ROWS_MAX: NonZeroUsize = NonZeroUsize::new(1 << 15).expect("not zero");

/// A row, and what else is asked about an inode all the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    pub inode: Inode,
    /// It has extended attributes; `None` if nobody has looked.
    pub xattrs: Option<bool>,
}

/// The rows that are kept.
pub(super) struct Cache {
    state: Mutex<State>,
}

struct State {
    rows: LruCache<InodeId, Known>,
    /// Number of commits: by it a reader knows that none came while it read.
    commits: u64,
}

/// When a reader looked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment(u64);

/// What a transaction has changed so far, to be brought to the cache when it commits.
#[derive(Debug, Default)]
pub(super) struct Changes {
    of: HashMap<InodeId, Change>,
    /// It changed more than can be noted: what the cache holds counts no more.
    countless: bool,
}

/// Inodes whose changes one transaction notes; a restore touches any number.
const NOTED_MAX: usize = 8192;

/// What a transaction can say of a row without asking the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Noted {
    /// Not touched: as it was committed.
    AsBefore,
    /// As it is now, or gone.
    Is(Option<Inode>),
    /// Only the table knows.
    Unknown,
}

#[derive(Debug, Clone, Copy, Default)]
struct Change {
    row: Row,
    xattrs: bool,
}

#[derive(Debug, Clone, Copy, Default)]
enum Row {
    #[default]
    AsBefore,
    /// Made by this transaction: it has the extended attributes that this transaction gave it.
    New(Inode),
    Changed(Inode),
    Gone,
}

impl Changes {
    /// The row of a new inode was written.
    pub fn inserted(&mut self, inode: &Inode) {
        self.of(inode.ino).row = Row::New(*inode);
    }

    /// The row of an inode was written.
    pub fn updated(&mut self, inode: &Inode) {
        let row = &mut self.of(inode.ino).row;
        *row = if let Row::New(_) = row { Row::New(*inode) } else { Row::Changed(*inode) };
    }

    /// The row of an inode was removed.
    pub fn removed(&mut self, ino: InodeId) {
        self.of(ino).row = Row::Gone;
    }

    /// The extended attributes of an inode are others.
    pub fn xattrs_changed(&mut self, ino: InodeId) {
        self.of(ino).xattrs = true;
    }

    fn of(&mut self, ino: InodeId) -> &mut Change {
        if self.of.len() >= NOTED_MAX {
            self.of.clear();
            self.countless = true;
        }
        self.of.entry(ino).or_default()
    }

    /// The row as this transaction left it.
    pub fn row(&self, ino: InodeId) -> Noted {
        match self.of.get(&ino).map(|change| change.row) {
            _ if self.countless => Noted::Unknown,
            None | Some(Row::AsBefore) => Noted::AsBefore,
            Some(Row::New(inode) | Row::Changed(inode)) => Noted::Is(Some(inode)),
            Some(Row::Gone) => Noted::Is(None),
        }
    }

    /// True if this transaction may have changed extended attributes of `ino`.
    pub fn has_xattrs_of(&self, ino: InodeId) -> bool {
        self.countless || self.of.get(&ino).is_some_and(|change| change.xattrs)
    }
}

impl Default for Cache {
    fn default() -> Cache {
        Cache { state: Mutex::new(State { rows: LruCache::new(ROWS_MAX), commits: 0 }) }
    }
}

impl Cache {
    /// The row as of the last commit, if it is kept.
    pub fn find(&self, ino: InodeId) -> Option<Known> {
        self.state.lock().rows.get(&ino).copied()
    }

    /// The same, and when that was.
    pub fn look(&self, ino: InodeId) -> (Option<Known>, Moment) {
        let mut state = self.state.lock();
        (state.rows.get(&ino).copied(), Moment(state.commits))
    }

    /// To be asked before the snapshot begins from which rows are brought.
    pub fn moment(&self) -> Moment {
        Moment(self.state.lock().commits)
    }

    /// Keeps rows that were read from a snapshot which began after `moment`.
    pub fn bring(&self, moment: Moment, rows: impl IntoIterator<Item = Known>) {
        let mut state = self.state.lock();
        if state.commits == moment.0 {
            for known in rows {
                let had = state.rows.peek(&known.inode.ino).and_then(|known| known.xattrs);
                state.rows.put(known.inode.ino, Known { xattrs: known.xattrs.or(had), ..known });
            }
        }
    }

    /// Takes over the changes of a transaction that has committed. The caller holds the writer.
    pub fn committed(&self, changes: Changes) {
        let mut state = self.state.lock();
        state.commits += 1;
        if changes.countless {
            state.rows.clear();
            return;
        }
        for (ino, change) in changes.of {
            let had = state.rows.peek(&ino).and_then(|known| known.xattrs).filter(|_| !change.xattrs);
            match change.row {
                Row::New(inode) => {
                    let xattrs = if change.xattrs { None } else { Some(false) };
                    state.rows.put(ino, Known { inode, xattrs });
                }
                Row::Changed(inode) => {
                    state.rows.put(ino, Known { inode, xattrs: had });
                }
                Row::Gone => {
                    state.rows.pop(&ino);
                }
                Row::AsBefore => {
                    if let Some(known) = state.rows.peek_mut(&ino) {
                        known.xattrs = had;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::meta::testing::{file, store};
    use crate::meta::xattr::{SetMode, SetXattr};

    #[test]
    fn a_row_of_an_old_snapshot_is_not_brought_after_a_commit() {
        let (_dir, meta) = store();
        let ino = meta.write(|tx| Ok(file(tx, b"a"))).unwrap();
        let moment = meta.cache.moment();
        let old = meta.inode(ino).unwrap();
        let change = crate::meta::attr::AttributeChange { uid: Some(7), ..Default::default() };
        meta.write(|tx| tx.set_attributes(ino, &change, Timestamp::EPOCH)).unwrap();
        meta.cache.bring(moment, [Known { inode: old, xattrs: None }]);
        assert_eq!(meta.inode(ino).unwrap().uid, 7);
    }

    #[test]
    fn what_is_rolled_back_is_not_kept() {
        let (_dir, meta) = store();
        let ino = meta.write(|tx| Ok(file(tx, b"a"))).unwrap();
        let change = crate::meta::attr::AttributeChange { uid: Some(7), ..Default::default() };
        let refused: crate::meta::Result<()> = meta.write(|tx| {
            tx.set_attributes(ino, &change, Timestamp::EPOCH)?;
            assert_eq!(tx.inode(ino)?.uid, 7, "the transaction itself sees it");
            Err(rustix::io::Errno::NOENT.into())
        });
        assert!(refused.is_err());
        assert_eq!(meta.inode(ino).unwrap().uid, 0);
    }

    #[test]
    fn a_transaction_that_changes_more_than_is_noted_leaves_nothing_old_behind() {
        let (_dir, meta) = store();
        let ino = meta.write(|tx| Ok(file(tx, b"a"))).unwrap();
        meta.write(|tx| {
            for turn in 0..=NOTED_MAX as u64 {
                tx.changes().removed(InodeId(1_000_000 + turn));
            }
            let mut inode = tx.inode(ino)?;
            inode.uid = 7;
            inode.update(tx)?;
            assert_eq!(tx.inode(ino)?.uid, 7);
            Ok(())
        })
        .unwrap();
        assert_eq!(meta.inode(ino).unwrap().uid, 7);
    }

    #[test]
    fn that_a_file_has_no_attributes_is_known_until_it_gets_one() {
        let (_dir, meta) = store();
        let ino = meta.write(|tx| Ok(file(tx, b"a"))).unwrap();
        assert_eq!(meta.cache.find(ino).unwrap().xattrs, Some(false), "known from its birth");
        let name = b"user.k".as_slice();
        let (value, mode, time) = (b"v".as_slice(), SetMode::Any, Timestamp::EPOCH);
        meta.write(|tx| tx.set_xattr(&SetXattr { ino, name, value, mode, clear_set_gid: false, time })).unwrap();
        assert_eq!(meta.xattr(ino, name).unwrap(), value);
        meta.write(|tx| tx.remove_xattr(ino, name, time)).unwrap();
        assert!(meta.xattr(ino, name).is_err());
        assert_eq!(meta.cache.find(ino).unwrap().xattrs, Some(false), "looked up, and kept");
    }
}
