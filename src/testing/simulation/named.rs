//! What checkpoints on a place name, so that nothing of it is missing when one becomes complete, and nothing leaves before it.
//!
//! Owns: reading a checkpoint as it lies there, without any code of restore. Does not own: the calls that change a place
//! (`place`).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use rusqlite::Connection;

use crate::format::checkpoint::{Complete, decode_slots};
use crate::format::key::{self, CheckpointFile};
use crate::format::record::Change;
use crate::id::{ChunkHash, ExportId, SegmentNumber, Seq};

/// Complete checkpoints that a restore may have to go back to (T3).
const KEPT: usize = 2;

/// The complete checkpoints of a place, with the chunks that each names.
#[derive(Debug, Default)]
pub(super) struct Named {
    /// In the order in which a restore prefers them, the best last.
    checkpoints: BTreeMap<(Seq, SegmentNumber, String), BTreeSet<ChunkHash>>,
}

impl Named {
    /// This object makes a checkpoint complete: returns what it names, snapshot and slots. `None`: its parts are gone, for a
    /// newer one was complete before this put, which nobody waits for any more, took effect.
    pub(super) fn completed(
        &mut self,
        key: &str,
        complete: &Complete,
        export: ExportId,
        objects: &BTreeMap<String, Bytes>,
    ) -> Option<&BTreeSet<ChunkHash>> {
        let newest = self.checkpoints.keys().next_back().map(|(seq, ..)| *seq);
        let mut parts = complete.parts.iter().map(|part| key::checkpoint_part(complete.seq, export, part.file));
        if newest > Some(complete.seq) && !parts.all(|part| objects.contains_key(&part)) {
            return None;
        }
        let named = read(complete, export, objects);
        Some(self.checkpoints.entry((complete.seq, complete.replay_from, key.to_owned())).or_insert(named))
    }

    /// An object was deleted: no checkpoint, if it made one complete.
    pub(super) fn forget(&mut self, deleted: &str) {
        self.checkpoints.retain(|(.., key), _| key != deleted);
    }

    /// The checkpoint that names this chunk, of those that a restore may have to go back to.
    pub(super) fn who_names(&self, chunk: ChunkHash) -> Option<&str> {
        let kept = self.checkpoints.iter().rev().take(KEPT);
        kept.filter(|(_, named)| named.contains(&chunk)).map(|((.., key), _)| key.as_str()).next()
    }
}

fn read(complete: &Complete, export: ExportId, objects: &BTreeMap<String, Bytes>) -> BTreeSet<ChunkHash> {
    let object = |file: CheckpointFile| {
        let key = key::checkpoint_part(complete.seq, export, file);
        objects.get(&key).unwrap_or_else(|| panic!("a checkpoint is complete without {key}"))
    };
    let packed: Vec<u8> = complete.parts.iter().flat_map(|part| object(part.file).to_vec()).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), zstd::decode_all(&packed[..]).unwrap()).unwrap();
    let snapshot = Connection::open(file.path()).unwrap();
    let mut rows = snapshot.prepare("SELECT DISTINCT c.hash FROM extent e JOIN chunk c ON c.id = e.chunk").unwrap();
    let mut named: BTreeSet<ChunkHash> = rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    for record in decode_slots(object(CheckpointFile::Slots), complete.slots_count).unwrap() {
        if let Change::Content(content) = record.unwrap().change {
            named.extend(content.chunks.iter().map(|(hash, _)| *hash));
        }
    }
    named
}
