//! Slots: the places that content changes take in history before their bytes are sealed (O1).
//!
//! Owns: reserving, renewing, moving and voiding a slot, and the units these make (O6).
//! Does not own: filling one (`meta::commit`), deciding when a slot is due (`write`).

use crate::clock::Timestamp;
use crate::id::{InodeId, Seq, SessionId};

use super::{Result, Tx};

/// A dirty session asks for its place in history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotRequest {
    pub ino: InodeId,
    pub session: SessionId,
    /// Bytes of the file now.
    pub size: u64,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    /// Asked for by an `fsync`: no record may overtake it (O6).
    pub fsynced: bool,
}

impl Tx<'_> {
    /// Takes, renews or moves the slot of a dirty session, and writes size and times into the inode's row.
    /// An inode without a name takes none: `None`.
    pub fn reserve_slot(&mut self, request: &SlotRequest) -> Result<Option<Seq>> {
        let _ = request;
        todo!()
    }

    /// Voids the open slots of an inode that has just lost its last name, in the transaction of that unlink, as one unit
    /// with it, and gives up its sessions: without a name no content of it will ever be needed on a target.
    pub fn void_slots_of_unnamed(&mut self, ino: InodeId, unlink: Seq) -> Result<()> {
        let _ = (ino, unlink);
        todo!()
    }
}
