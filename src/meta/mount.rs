//! Mounts of this state directory: each is a writer of its own (T7).
//!
//! Owns: drawing epoch and writer, counting mounts, noticing that the machine started anew (S6), which writers' history this
//! state goes on from.
//! Does not own: which epochs targets have seen (`replication::contact`), what recovery does about a restart (`recovery`).

use rusqlite::params;

use super::restored::KnownWriter;
use super::{Error, Meta, Result};
use crate::format::key::EPOCH_MAX;
use crate::format::writer::HISTORY_MAX;
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
    /// True if the machine started anew since the last mount (S6); for a mount that begins nothing.
    pub fn is_rebooted(&self, boot_id: &str) -> Result<bool> {
        self.read(|conn| {
            let sql = "SELECT mounts > 0 AND boot_id <> ?1 FROM counter";
            Ok(conn.query_row(sql, [boot_id], |row| row.get(0))?)
        })
    }

    /// Notes that sessions from before the machine started anew are recovered. Not before: if the recovery is interrupted,
    /// the next one must know, too.
    pub fn note_boot(&self, boot_id: &str) -> Result<()> {
        self.write(|tx| Ok(tx.conn().execute("UPDATE counter SET boot_id = ?1", [boot_id])?))?;
        self.sync()
    }

    /// Begins a mount: takes an epoch above its own last one and above `seen`, the highest that any target has, and a new
    /// writer; durable before it returns, so that no epoch is taken twice.
    pub fn begin_mount(&self, seen: Epoch, boot_id: &str) -> Result<Mounted> {
        let mounted = self.write(|tx| {
            let (epoch, writer, boot, mounts): (Epoch, WriterId, String, i64) =
                tx.conn().query_row("SELECT epoch, writer, boot_id, mounts FROM counter", [], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
                })?;
            if epoch != Epoch(0) {
                tx.conn().execute("INSERT OR REPLACE INTO mounted VALUES (?1, ?2, ?3)", params![epoch, writer, tx.head()])?;
                tx.conn().execute(
                    "DELETE FROM mounted WHERE epoch < (SELECT epoch FROM mounted ORDER BY epoch DESC LIMIT 1 OFFSET ?1)",
                    [HISTORY_MAX as i64 - 1],
                )?;
            }
            if epoch.max(seen) >= EPOCH_MAX {
                return Err(Error::Damaged(format!("epoch {} is the last one that there can be", epoch.max(seen))));
            }
            let mounted = Mounted {
                epoch: Epoch(epoch.max(seen).0 + 1),
                writer: WriterId::random(),
                mounts: mounts as u64 + 1,
                rebooted: mounts > 0 && boot != boot_id,
            };
            tx.conn().execute(
                "UPDATE counter SET epoch = ?1, writer = ?2, boot_id = ?3, mounts = ?4",
                params![
                    mounted.epoch,
                    mounted.writer,
                    if mounted.rebooted { &boot } else { boot_id },
                    mounted.mounts as i64
                ],
            )?;
            Ok(mounted)
        })?;
        self.sync()?;
        Ok(mounted)
    }

    /// The writers whose history this state goes on from, and how far: its own earlier mounts, and those that it was restored
    /// from. Ascending by epoch; of very many, the newest.
    pub fn history(&self) -> Result<Vec<KnownWriter>> {
        self.read(|conn| {
            let mut rows = conn.prepare_cached(
                "SELECT epoch, writer, max(seq) FROM (SELECT * FROM mounted UNION ALL SELECT * FROM lineage) \
                 GROUP BY epoch, writer ORDER BY epoch DESC, writer LIMIT ?1",
            )?;
            let rows = rows.query_map([HISTORY_MAX as i64], |row| {
                Ok(KnownWriter { epoch: row.get(0)?, writer: row.get(1)?, seq: row.get(2)? })
            })?;
            let mut history = rows.collect::<rusqlite::Result<Vec<_>>>()?;
            history.reverse();
            Ok(history)
        })
    }
}

impl Meta {
    /// Takes a new epoch above `seen` and a new writer in the middle of a mount; durable before it returns.
    pub fn begin_epoch(&self, seen: Epoch) -> Result<Epoch> {
        let epoch = self.write(|tx| {
            let epoch: Epoch = tx.conn().query_row("SELECT epoch FROM counter", [], |row| row.get(0))?;
            let epoch = Epoch(epoch.max(seen).0 + 1);
            tx.conn().execute("UPDATE counter SET epoch = ?1, writer = ?2", params![epoch, WriterId::random()])?;
            Ok(epoch)
        })?;
        self.sync()?;
        Ok(epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::format::record::Change;
    use crate::id::{InodeId, Seq};
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
        assert!(meta.is_rebooted("boot 2").unwrap(), "until its recovery is done");
        meta.note_boot("boot 2").unwrap();
        assert!(!meta.is_rebooted("boot 2").unwrap());
        assert_eq!(meta.writer_identity().unwrap(), (third.epoch, third.writer, 3));
    }

    #[test]
    fn t7_an_epoch_that_no_key_can_name_is_never_taken() {
        let (_dir, meta) = store();
        assert!(matches!(meta.begin_mount(EPOCH_MAX, "boot"), Err(Error::Damaged(_))));
        assert_eq!(meta.begin_mount(Epoch(EPOCH_MAX.0 - 1), "boot").unwrap().epoch, EPOCH_MAX);
    }

    #[test]
    fn t7_a_mount_knows_the_mounts_before_it_and_how_far_they_came() {
        let (_dir, meta) = store();
        let change = || Change::Removexattr { ino: InodeId(1), name: vec![1], ctime: Timestamp::EPOCH };
        let mut expected = Vec::new();
        for seq in 1..=HISTORY_MAX as u64 + 5 {
            let mounted = meta.begin_mount(Epoch(0), "boot").unwrap();
            assert_eq!(meta.history().unwrap(), expected);
            meta.write(|tx| tx.append(&change())).unwrap();
            expected.push(KnownWriter { epoch: mounted.epoch, writer: mounted.writer, seq: Seq(seq) });
            if expected.len() > HISTORY_MAX {
                expected.remove(0);
            }
        }
    }
}
