//! What the answers to `control` need of the running daemon, so that they can be tested without one.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::control::Error;
use crate::control::status::{Attention, Cache, Garbage, Health};
use crate::id::{InodeId, Seq, TargetBit};
use crate::meta::Meta;
use crate::meta::resync::Lacking;
use crate::replication::gate::Gate;

/// Files that are dirty: written to, and not yet sealed and committed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Files with changes that have no place in history yet.
    pub files: u64,
    /// Bytes that no commit has yet, these files' and others'.
    pub bytes: u64,
}

/// The running parts.
pub trait Parts: Send + Sync {
    /// The metadata store.
    fn meta(&self) -> &Arc<Meta>;

    /// Whether a target may be written to.
    fn gate(&self, bit: TargetBit) -> Gate;

    /// Our belief about a target, and its newest error even if that was overcome.
    fn health(&self, bit: TargetBit) -> (Health, Option<String>);

    /// What hinders a target now, and what to do about it.
    fn complaint(&self, bit: TargetBit) -> Option<(String, String)>;

    /// What a target that is being resynced lacks, as counted last, and how many seconds that will take at the pace of now.
    fn lacking(&self, _: TargetBit) -> Option<(Lacking, Option<u64>)> {
        None
    }

    /// Gives every dirty file its place in history, closed or open, and hands its bytes to the sealers. Returns the
    /// place that covers them all.
    fn settle(&self) -> Result<Seq, Error>;

    /// What is dirty now; of one inode, or all.
    fn dirty(&self, inode: Option<InodeId>) -> Dirty;

    /// While the guard lives, somebody waits for history up to `seq`: neither small files (S9) nor records (T2) wait for
    /// company.
    fn hurry(&self, seq: Seq) -> Box<dyn Send + '_>;

    /// Local bytes.
    fn cache(&self) -> Result<Cache, Error>;

    /// What an operator should look at.
    fn attention(&self) -> Vec<Attention>;

    /// What compaction has to do.
    fn garbage(&self) -> Result<Garbage, Error> {
        Ok(Garbage::default())
    }

    /// Requests of the kernel since the mount, by operation.
    fn requests(&self) -> BTreeMap<String, u64> {
        BTreeMap::new()
    }

    /// Why the kernel does no I/O on local files by itself, if it does none.
    fn no_passthrough(&self) -> Option<String> {
        None
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;
    use crate::clock::Timestamp;
    use crate::meta::create::NewNode;
    use crate::meta::namespace::{Name, Place};
    use crate::meta::target::Configured;
    use crate::meta::testing::store;

    /// Targets that have shipped up to a place, and nothing else.
    pub struct Fake {
        meta: Arc<Meta>,
        _dir: tempfile::TempDir,
        fenced: Vec<TargetBit>,
        pub dirty: Dirty,
    }

    impl Fake {
        pub fn new(targets: &[(&str, u64)]) -> Fake {
            let (dir, meta) = store();
            let configured: Vec<Configured> = targets
                .iter()
                .map(|(name, _)| Configured { name: (*name).into(), uri: format!("memory://{name}"), id: None })
                .collect();
            let rows = meta.register_targets(&configured).unwrap().configured;
            meta.write(|tx| {
                for (row, (_, shipped)) in rows.iter().zip(targets) {
                    let shipped = [i64::from(row.bit.index()), *shipped as i64];
                    tx.conn().execute("UPDATE target SET shipped_seq = ?2 WHERE bit = ?1", shipped)?;
                }
                Ok(())
            })
            .unwrap();
            meta.write(|tx| tx.make_root(0o755, 0, 0, Timestamp::EPOCH)).unwrap();
            Fake { meta: Arc::new(meta), _dir: dir, fenced: Vec::new(), dirty: Dirty::default() }
        }

        /// A new file in the root.
        pub fn file(&self, name: &str) {
            let place = Place { parent: InodeId::ROOT, name: Name::new(name.as_bytes()).unwrap() };
            let mode = libc::S_IFREG | 0o644;
            let new = NewNode { place, mode, rdev: 0, uid: 0, gid: 0, umask: 0, time: Timestamp::EPOCH };
            self.meta.write(|tx| tx.make_node(&new)).unwrap();
        }

        pub fn fence(&mut self, name: &str) {
            let rows = self.meta.targets().unwrap();
            self.fenced.push(rows.iter().find(|row| row.name == name).unwrap().bit);
        }
    }

    impl Parts for Fake {
        fn meta(&self) -> &Arc<Meta> {
            &self.meta
        }

        fn gate(&self, bit: TargetBit) -> Gate {
            if self.fenced.contains(&bit) {
                Gate::Fenced { reason: "written by nas2".into(), hint: "restore".into() }
            } else {
                Gate::Open
            }
        }

        fn health(&self, _: TargetBit) -> (Health, Option<String>) {
            (Health::Healthy, None)
        }

        fn complaint(&self, _: TargetBit) -> Option<(String, String)> {
            None
        }

        fn settle(&self) -> Result<Seq, Error> {
            Ok(self.meta.head())
        }

        fn dirty(&self, _: Option<InodeId>) -> Dirty {
            self.dirty
        }

        fn hurry(&self, _: Seq) -> Box<dyn Send + '_> {
            Box::new(())
        }

        fn cache(&self) -> Result<Cache, Error> {
            Ok(Cache::default())
        }

        fn attention(&self) -> Vec<Attention> {
            Vec::new()
        }
    }
}
