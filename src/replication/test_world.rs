//! A small world for the tests of shipping: targets in memory that fail on purpose; what lies on them is decoded, and the
//! chain checked.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::backoff::Backoff;
use super::contact::Me;
use super::gate::{Gate, GateWatch, gate};
use super::holds::JournalHolds;
use super::selection::Order;
use super::shipper::{Pace, Shared, Shipper};
use crate::clock::Timestamp;
use crate::format::key;
use crate::format::record::Record;
use crate::format::segment::{self, Place, Trailer};
use crate::id::{ChunkHash, ChunkId, Epoch, Hash, InodeId, SegmentNumber, Seq, TargetBit};
use crate::meta::Meta;
use crate::meta::slot::SlotRequest;
use crate::meta::target::Configured;
use crate::meta::testing::{file, fill_slot, slot_request, store};
use crate::target::DynTarget;
use crate::target::memory::MemoryTarget;

const PATIENCE: Duration = Duration::from_secs(300);

/// One filesystem, one target in memory, and a journal filled by hand.
pub(super) struct World {
    pub(super) dir: tempfile::TempDir,
    pub(super) meta: Arc<Meta>,
    pub(super) memory: MemoryTarget,
    pub(super) waiting: Arc<Mutex<HashSet<InodeId>>>,
    pub(super) order: Order,
    pub(super) holds: Arc<JournalHolds>,
}

pub(super) fn bit() -> TargetBit {
    TargetBit::new(0).unwrap()
}

impl World {
    pub(super) fn new() -> World {
        let (dir, meta) = store();
        meta.register_targets(&[Configured { name: "aws".into(), uri: "memory:///".into(), id: None }]).unwrap();
        meta.begin_mount(Epoch(0), "boot").unwrap();
        World {
            dir,
            meta: Arc::new(meta),
            memory: MemoryTarget::new(),
            waiting: Arc::default(),
            order: Order::Overtaking,
            holds: Arc::default(),
        }
    }

    /// With a root directory, so that its checkpoints can be restored.
    pub(super) fn with_root() -> World {
        let world = World::new();
        world.meta.write(|tx| tx.restore_root()).unwrap();
        world
    }

    pub(super) fn shared(&self) -> Shared {
        let waiting = Arc::clone(&self.waiting);
        let quick = Backoff { base: Duration::from_millis(5), max: Duration::from_millis(20) };
        Shared {
            meta: Arc::clone(&self.meta),
            me: Me::of(&self.meta, Timestamp::EPOCH).unwrap(),
            births: Arc::new(move |_| waiting.lock().clone()),
            can_wait: Arc::new(|| false),
            order: self.order,
            pace: Pace {
                round: Duration::from_millis(20),
                urgent: Duration::from_millis(1),
                writers: Duration::ZERO,
                retry: quick,
                blocked: quick,
                local: Duration::from_millis(20),
            },
            holds: Arc::clone(&self.holds),
        }
    }

    pub(super) fn start_on(&self, target: DynTarget) -> (Shipper, GateWatch) {
        let (keeper, watch) = gate(Gate::Unknown);
        (Shipper::start(self.shared(), bit(), "aws", target, keeper), watch)
    }

    pub(super) fn start(&self) -> (Shipper, GateWatch) {
        self.start_on(Arc::new(self.memory.clone()))
    }

    pub(super) fn files(&self, names: &[&str]) -> Vec<InodeId> {
        self.meta.write(|tx| Ok(names.iter().map(|name| file(tx, name.as_bytes())).collect())).unwrap()
    }

    pub(super) fn slot(&self, ino: InodeId, session: u64, fsynced: bool) -> Seq {
        let request = SlotRequest { fsynced, ..slot_request(ino, session, 9) };
        self.meta.write(|tx| tx.reserve_slot(&request)).unwrap().unwrap()
    }

    pub(super) fn fill(&self, session: u64) -> ChunkHash {
        let hash = ChunkHash::of(&session.to_le_bytes());
        self.meta
            .write(|tx| {
                fill_slot(tx, session, hash);
                Ok(())
            })
            .unwrap();
        hash
    }

    pub(super) fn place(&self, hash: ChunkHash) {
        let id: ChunkId = self
            .meta
            .read(|conn| Ok(conn.query_row("SELECT id FROM chunk WHERE hash = ?1", [hash], |row| row.get(0))?))
            .unwrap();
        self.meta.place(bit(), &[id]).unwrap();
    }

    /// All segments on the target, checked: numbers without gaps, each chained to the one before.
    pub(super) fn segments(&self) -> Vec<(Trailer, Vec<Record>)> {
        let cursor = self.meta.cursor(bit()).unwrap();
        let mut found = BTreeMap::new();
        for (object, body) in self.memory.objects().iter() {
            if let key::Key::Segment { epoch, writer, n } = key::parse(object) {
                let filesystem = self.meta.filesystem().unwrap();
                let place = Place { filesystem, target: cursor.id, epoch, writer, n };
                let decoded = segment::decode(body, &place).unwrap();
                assert!(found.insert(n, (decoded.trailer, decoded.records)).is_none(), "two segments {n}");
            }
        }
        let mut prev: Option<Hash> = None;
        for (n, expected) in found.keys().zip(1..) {
            assert_eq!(*n, SegmentNumber(expected), "numbers have no gaps");
        }
        let segments: Vec<_> = found.into_values().collect();
        for (trailer, _) in &segments {
            assert_eq!(trailer.prev, prev);
            prev = Some(trailer.hash);
        }
        segments
    }

    pub(super) fn shipped_seqs(&self) -> Vec<u64> {
        self.segments().iter().flat_map(|(_, records)| records.iter().map(|record| record.seq.0)).collect()
    }

    pub(super) fn low_water(&self) -> Seq {
        self.meta.cursor(bit()).unwrap().shipped_seq
    }
}

pub(super) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    soon(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

pub(super) async fn shipped(shipper: &Shipper, seq: u64) {
    assert!(soon("shipping", shipper.shipped(Seq(seq))).await);
}
