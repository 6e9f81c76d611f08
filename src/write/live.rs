//! A live file: an inode that is open or has content that is not committed yet.
//!
//! Owns: its layers in memory (staged session, frozen ones), how often it is open, size and times newer than the row's.
//! Does not own: the table of live files and what opens and closes mean (`files`).
//!
//! Lock order: `LiveFile::syncing` → `Files::gate` → `LiveFile::state` → the metadata writer. The table of live files is
//! never locked while one of these is waited for; it may be locked before them.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::iomode::Modes;
use super::layers::Layer;
use super::lend::Lent;
use super::opening::Backing;
use super::session::{Frozen, Staged};
use crate::clock::{Instant, Timestamp};
use crate::id::InodeId;

/// An inode that is open, dirty, or waiting for its seal.
#[derive(Debug)]
pub struct LiveFile {
    pub ino: InodeId,
    /// Held while a sync is under way and while a session is frozen: a session is not frozen under its own sync.
    pub syncing: Mutex<()>,
    pub state: RwLock<State>,
}

/// What changes about a live file.
#[derive(Debug)]
pub struct State {
    /// Open handles, and how the kernel does their I/O.
    pub modes: Modes<Backing>,
    /// Since when it is closed and yet not sealed, as a mapping may still be written through (S4).
    pub mapped_since: Option<Instant>,
    /// The sealed file that the kernel reads by itself, for passthrough readers or what they left mapped (P3).
    pub lent: Option<Lent>,
    /// Its backing file is being copied (P4).
    pub exporting: bool,
    /// It lost its last name: no slot, no seal, its bytes go with the last close.
    pub unnamed: bool,
    /// Removed from the table: whoever still holds it must look the inode up again.
    pub dead: bool,
    /// The directory it was opened through, for the order of gathered pieces.
    pub parent: InodeId,
    /// Newer than the inode's row while a session lives.
    pub attributes: Option<Attributes>,
    pub staged: Option<Staged>,
    /// Newest first; the last one is being sealed.
    pub frozen: VecDeque<Arc<Frozen>>,
}

/// Size and times that a session changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    pub size: u64,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
}

impl LiveFile {
    /// A file that nobody has open yet.
    pub fn new(ino: InodeId, parent: InodeId) -> LiveFile {
        LiveFile {
            ino,
            syncing: Mutex::new(()),
            state: RwLock::new(State {
                modes: Modes::default(),
                mapped_since: None,
                lent: None,
                exporting: false,
                unnamed: false,
                dead: false,
                parent,
                attributes: None,
                staged: None,
                frozen: VecDeque::new(),
            }),
        }
    }
}

impl State {
    /// Open handles.
    pub fn opens(&self) -> u32 {
        self.modes.opens()
    }

    /// Size and times as programs must see them now.
    pub fn current_attributes(&self) -> Option<Attributes> {
        let attributes = self.attributes?;
        Some(self.staged.as_ref().map_or(attributes, |staged| staged.observed(attributes)))
    }

    /// Sessions as layers, newest first.
    pub fn layers(&self) -> Vec<Layer<'_>> {
        self.staged.iter().map(Staged::layer).chain(self.frozen.iter().map(|frozen| frozen.layer())).collect()
    }

    /// Nothing holds it any more: not open, no session.
    pub fn is_idle(&self) -> bool {
        let stands = self.lent.is_none() && self.staged.is_none() && self.frozen.is_empty();
        stands && self.opens() == 0 && !self.exporting
    }
}
