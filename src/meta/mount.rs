//! Mounts of this state directory: each is a writer of its own (T7).
//!
//! Owns: drawing epoch and writer, counting mounts, noticing that the machine started anew (S6).
//! Does not own: which epochs targets have seen (`replication::contact`), what recovery does about a restart (`recovery`).

use rusqlite::params;

use super::{Meta, Result};
use crate::id::{Epoch, WriterId};

/// What a mount is to history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mounted {
    /// Higher than any that was seen.
    pub epoch: Epoch,
    /// Random, so that two mounts of one epoch are told apart.
    pub writer: WriterId,
    /// Number of mounts, this one included.
    pub mounts: u64,
    /// The machine started anew since the last mount: only what was synced is sure (S6).
    pub rebooted: bool,
}

impl Meta {
    /// Begins a mount: takes an epoch above its own last one and above `seen`, the highest that any target has, and a new
    /// writer; durable before it returns, so that no epoch is taken twice.
    pub fn begin_mount(&self, seen: Epoch, boot_id: &str) -> Result<Mounted> {
        let mounted = self.write(|tx| {
            let (epoch, boot, mounts): (Epoch, String, i64) =
                tx.conn().query_row("SELECT epoch, boot_id, mounts FROM counter", [], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })?;
            let mounted = Mounted {
                epoch: Epoch(epoch.max(seen).0 + 1),
                writer: WriterId::random(),
                mounts: mounts as u64 + 1,
                rebooted: mounts > 0 && boot != boot_id,
            };
            tx.conn().execute(
                "UPDATE counter SET epoch = ?1, writer = ?2, boot_id = ?3, mounts = ?4",
                params![mounted.epoch, mounted.writer, boot_id, mounted.mounts as i64],
            )?;
            Ok(mounted)
        })?;
        self.sync()?;
        Ok(mounted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::testing::store;

    #[test]
    fn t7_each_mount_is_a_new_writer_above_all_that_were_seen() {
        let (_dir, meta) = store();
        let first = meta.begin_mount(Epoch(0), "boot 1").unwrap();
        assert_eq!((first.epoch, first.mounts, first.rebooted), (Epoch(1), 1, false));
        let second = meta.begin_mount(Epoch(0), "boot 1").unwrap();
        assert_eq!((second.epoch, second.mounts, second.rebooted), (Epoch(2), 2, false));
        assert_ne!(second.writer, first.writer);
        let third = meta.begin_mount(Epoch(40), "boot 2").unwrap();
        assert_eq!((third.epoch, third.rebooted), (Epoch(41), true));
        assert_eq!(meta.writer_identity().unwrap(), (third.epoch, third.writer, 3));
    }
}
