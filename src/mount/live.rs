//! The running parts of a mount, as the answers to `control` and the virtual xattr see them.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::acknowledge::Late;
use super::answers;
use super::attention::{self, Noticed};
use super::parts::{Dirty, Parts};
use super::replication::Replication;
use super::upkeep::Resyncs;
use super::verify::Verified;
use crate::chunk::space::Space;
use crate::compaction;
use crate::control::Error;
use crate::control::status::{Attention, AttentionKind, Cache, Garbage, Health};
use crate::fuse::Requests;
use crate::id::{InodeId, Seq, TargetBit};
use crate::meta::Meta;
use crate::meta::resync::Lacking;
use crate::replication::gate::Gate;
use crate::vfs::xattr::Targets;
use crate::write::Files;

/// The running parts.
pub struct Live {
    pub meta: Arc<Meta>,
    pub files: Arc<Files>,
    pub space: Arc<Space>,
    pub replication: Replication,
    pub noticed: Noticed,
    pub late: Late,
    pub resyncs: Resyncs,
    pub verified: Verified,
    pub compaction: Arc<Mutex<compaction::Seen>>,
    pub requests: Arc<Requests>,
    /// Bytes of a full chunk.
    pub chunk_size: u64,
}

impl Parts for Live {
    fn meta(&self) -> &Arc<Meta> {
        &self.meta
    }

    fn gate(&self, bit: TargetBit) -> Gate {
        self.replication.gate(bit)
    }

    fn health(&self, bit: TargetBit) -> (Health, Option<String>) {
        self.replication.health(bit)
    }

    fn complaint(&self, bit: TargetBit) -> Option<(String, String)> {
        self.replication.complaint(bit)
    }

    fn no_passthrough(&self) -> Option<String> {
        self.files.passthrough().why_not()
    }

    fn requests(&self) -> BTreeMap<String, u64> {
        self.requests.by_name()
    }

    fn lacking(&self, bit: TargetBit) -> Option<(Lacking, Option<u64>)> {
        let lacking = self.resyncs.of(bit)?;
        let rate = self.replication.bytes_per_second(bit);
        let estimate = (rate >= 1.0 && lacking.bytes > 0).then(|| (lacking.bytes as f64 / rate) as u64);
        Some((lacking, estimate))
    }

    fn settle(&self) -> Result<Seq, Error> {
        let seq =
            self.files.rotate().map_err(|e| Error::failed(format!("give open files their place in history: {e}")))?;
        self.files.births().settled_all();
        Ok(seq)
    }

    fn dirty(&self, inode: Option<InodeId>) -> Dirty {
        let uncommitted = self.files.uncommitted_of(inode);
        Dirty { files: uncommitted.unplaced, bytes: uncommitted.bytes }
    }

    fn hurry(&self, seq: Seq) -> Box<dyn Send + '_> {
        Box::new((self.files.hurry(), self.replication.hurry(seq)))
    }

    fn cache(&self) -> Result<Cache, Error> {
        let pinned = self.meta.chunk_sums().map_err(|e| Error::failed(e.to_string()))?.incomplete_bytes;
        let limit = self.space.limits().used_max;
        Ok(Cache {
            used_bytes: self.space.used(),
            pinned_bytes: pinned + self.dirty(None).bytes,
            limit_bytes: (limit != u64::MAX).then_some(limit),
        })
    }

    fn attention(&self) -> Vec<Attention> {
        let (findings, count) = self.replication.findings();
        let mut all = self.noticed.attention(&self.meta, &findings, count);
        all.extend(self.late.attention(self));
        all.extend(attention::troubles(&self.meta, self.files.troubles()));
        all.extend(attention::waiting(&self.meta, self.files.waiting_for_close()));
        let unreliable = |hint| attention::attention(AttentionKind::Unreliable, hint);
        all.extend(self.verified.complaints().into_iter().map(unreliable));
        all
    }

    fn garbage(&self) -> Result<Garbage, Error> {
        let sums = self.meta.live_sums().map_err(|e| Error::failed(e.to_string()))?;
        let seen = self.compaction.lock().clone();
        Ok(Garbage {
            chunk_bytes: sums.alive_bytes,
            live_bytes: sums.live_bytes,
            sparse_chunks: seen.sparse_chunks,
            sparse_bytes: seen.sparse_bytes,
            sparse_live_bytes: seen.live_bytes,
            scattered_areas: seen.areas,
            held: seen.held,
            rewritten_bytes: seen.new_bytes,
        })
    }
}

/// The virtual attribute `user.tandemfs.targets`.
pub struct Attribute(pub Arc<Live>);

impl Targets for Attribute {
    fn targets(&self, ino: InodeId) -> crate::meta::Result<String> {
        answers::targets_attribute(&*self.0, ino)
    }
}
