//! Checkpoints of targets in memory: what is there is read back as a restore reads it.

use bytes::Bytes;

use super::job::take_back;
use super::trim::plan_trim;
use super::*;
use crate::clock::Timestamp;
use crate::format::checkpoint::{COMPLETE_BYTES_MAX, Complete, decode_slots};
use crate::format::key::{self, CheckpointFile, Key};
use crate::format::record::{Change, Content, Record, VoidReason};
use crate::id::{Epoch, ExportId, Generation, InodeId, WriterId};
use crate::meta::checkpoint::CheckpointRow;
use crate::meta::export::Before;
use crate::meta::import::{Expected, import};
use crate::replication::contact::{self, Own, put_once};
use crate::replication::gate::{GateKeeper, gate};
use crate::replication::shipper::{Shipper, empty_segment};
use crate::replication::test_world::{World, bit, shipped, soon, until};
use crate::target::{Class, Existing, Kind};
use crate::testing::faulty::{Fault, FaultyTarget};

fn thresholds() -> Thresholds {
    Thresholds { look: Duration::from_millis(10), ..Thresholds::default() }
}

impl World {
    fn checkpointer(&self, target: DynTarget, gate: GateWatch) -> Checkpointer {
        let targets = vec![CheckpointTarget { bit: bit(), name: "aws".into(), target, gate }];
        Checkpointer::start(self.shared(), targets, self.dir.path().join("export"), thresholds()).unwrap()
    }

    /// A shipper and a checkpointer for the target in memory.
    fn both(&self) -> (Shipper, Checkpointer) {
        let (shipper, gate) = self.start();
        let checkpointer = self.checkpointer(Arc::new(self.memory.clone()), gate);
        (shipper, checkpointer)
    }

    /// The checkpoints that say they are complete, in order.
    fn complete(&self) -> Vec<(Seq, ExportId, Complete)> {
        let objects = self.memory.objects();
        let complete = objects.iter().filter_map(|(object, body)| match key::parse(object) {
            Key::Checkpoint { seq, export, file: CheckpointFile::Complete } => {
                assert!(body.len() as u64 <= COMPLETE_BYTES_MAX);
                Some((seq, export, Complete::decode(body, seq, export).unwrap()))
            }
            _ => None,
        });
        complete.collect()
    }

    /// Restores the newest checkpoint into a fresh store, as `restore` does.
    fn restored(&self) -> (tempfile::TempDir, crate::meta::Meta) {
        let (seq, export, complete) = self.complete().pop().unwrap();
        let objects = self.memory.objects().clone();
        let read = |file| objects[&key::checkpoint_part(seq, export, file)].clone();
        let mut packed = Vec::new();
        for part in &complete.parts {
            let bytes = read(part.file);
            part.verify(&bytes).unwrap();
            packed.extend_from_slice(&bytes);
        }
        let plain = zstd::decode_all(&packed[..]).unwrap();
        assert_eq!(plain.len() as u64, complete.sqlite_bytes);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("checkpoint"), plain).unwrap();
        let expected = Expected { filesystem: self.meta.filesystem().unwrap(), seq };
        let (meta, imported) =
            import(&dir.path().join("checkpoint"), &expected, &dir.path().join("meta.sqlite")).unwrap();
        let slots = read(CheckpointFile::Slots);
        complete.slots.verify(&slots).unwrap();
        let records: Vec<_> =
            decode_slots(&slots, complete.slots_count).unwrap().collect::<crate::format::Result<_>>().unwrap();
        meta.fill_slots(&imported.slots, || Ok(records.clone().into_iter().map(Ok))).unwrap();
        (dir, meta)
    }

    /// The numbers of the segments that are there.
    fn journal(&self) -> Vec<u64> {
        let number = |object: &String| match key::parse(object) {
            Key::Segment { n, .. } => Some(n.0),
            _ => None,
        };
        self.memory.objects().keys().filter_map(number).collect()
    }

    fn checkpoint_objects(&self) -> usize {
        self.memory.objects().keys().filter(|object| object.starts_with(key::CHECKPOINTS)).count()
    }
}

async fn taken(checkpointer: &Checkpointer) {
    assert_eq!(soon("a checkpoint", checkpointer.now()).await, ["aws"]);
}

#[test]
fn t3_a_checkpoint_is_due_when_the_segments_outweigh_the_last_one() {
    const MIB: u64 = 1 << 20;
    let thresholds = Thresholds::default();
    let due = |segment_bytes, segment_count, last_bytes, hours: u64, occasion| {
        let age = Duration::from_secs(hours * 3600);
        thresholds.due(&Since { segment_bytes, segment_count, last_bytes, age }, occasion)
    };
    use Occasion::{Asked, Running, Unmount};
    assert!(!due(0, 0, 0, 100, Running), "nothing happened");
    assert!(!due(63 * MIB, 9_999, 0, 23, Running));
    assert!(due(64 * MIB, 10, 0, 0, Running));
    assert!(!due(64 * MIB, 10, 65 * MIB, 0, Running));
    assert!(due(65 * MIB, 10, 65 * MIB, 0, Running));
    assert!(due(0, 10_000, 0, 0, Running));
    assert!(due(1, 1, 0, 24, Running));
    assert!(!due(MIB, 1_000, 0, 100, Unmount));
    assert!(due(MIB + 1, 1, 0, 0, Unmount));
    assert!(!due(MIB + 1, 1, 10 * MIB + 10, 0, Unmount));
    assert!(due(2, 1_001, 0, 0, Unmount));
    assert!(due(0, 0, 0, 0, Asked));
}

#[tokio::test]
async fn t3_a_checkpoint_restores_what_was_there() {
    let world = World::with_root();
    world.files(&["a", "b"]);
    let (shipper, checkpointer) = world.both();
    shipped(&shipper, 2).await;
    taken(&checkpointer).await;
    let (seq, _, complete) = world.complete().pop().unwrap();
    assert_eq!((seq, complete.replay_from), (Seq(2), SegmentNumber(2)));
    assert_eq!(complete.inodes, 3);
    let (_dir, restored) = world.restored();
    assert_eq!(restored.head(), Seq(2));
    assert_eq!(world.meta.checkpoints(bit()).unwrap().len(), 1);
    let cursor = world.meta.cursor(bit()).unwrap();
    assert_eq!((cursor.segment_count, cursor.segment_bytes), (0, 0));
    assert_eq!(std::fs::read_dir(world.dir.path().join("export")).unwrap().count(), 0, "its files went");
    checkpointer.stop().await;
    shipper.stop().await;
}

#[tokio::test]
async fn t3_complete_waits_for_open_slots_and_for_chunks_and_its_slots_file_has_them() {
    let world = World::with_root();
    let ino = world.files(&["a", "b"])[0];
    let (shipper, checkpointer) = world.both();
    shipped(&shipper, 2).await;
    let slot = world.slot(ino, 1, false);
    let asked = tokio::spawn({
        let checkpointer = Arc::new(checkpointer);
        async move {
            taken(&checkpointer).await;
            checkpointer
        }
    });
    until("the parts are there", || world.checkpoint_objects() == 1).await;
    assert_eq!(world.holds.lowest(), Some(slot), "its row is kept");
    let hash = world.fill(1);
    until("the slot is read", || world.holds.lowest().is_none()).await;
    assert_eq!(world.checkpoint_objects(), 1, "its chunk is not there");
    world.place(hash);
    let checkpointer = asked.await.unwrap();
    let (_, _, complete) = world.complete().pop().unwrap();
    assert_eq!((complete.seq, complete.slots_count), (Seq(3), 1));
    let (_dir, restored) = world.restored();
    let size: i64 =
        restored.read(|conn| Ok(conn.query_row("SELECT sum(length) FROM extent", [], |row| row.get(0))?)).unwrap();
    assert_eq!(size, 9, "the bytes are in the restored tree");
    drop(checkpointer);
    shipper.stop().await;
}

#[tokio::test]
async fn t3_low_water_is_at_least_the_checkpoint_and_nothing_below_is_deferred() {
    let world = World::with_root();
    let (keeper, watch) = gate(Gate::Unknown);
    // No shipper: this target got nothing from the journal yet.
    world.files(&["a", "b"]);
    world.announce(&keeper).await;
    let checkpointer = world.checkpointer(Arc::new(world.memory.clone()), watch);
    taken(&checkpointer).await;
    let cursor = world.meta.cursor(bit()).unwrap();
    assert_eq!((cursor.shipped_seq, cursor.position, cursor.segment_count), (Seq(2), Seq(2), 0));
    assert_eq!(world.complete()[0].2.replay_from, SegmentNumber(2));
    checkpointer.stop().await;
    world.files(&["c"]);
    let (shipper, _gate) = world.start();
    shipped(&shipper, 3).await;
    assert_eq!(world.shipped_seqs(), [3], "what the checkpoint has is in no segment");
    shipper.stop().await;
}

#[tokio::test]
async fn o6_complete_waits_for_the_unit_that_a_slot_of_the_snapshot_is_part_of() {
    let world = World::with_root();
    let ino = world.files(&["a"])[0];
    let (shipper, checkpointer) = world.both();
    shipped(&shipper, 1).await;
    assert_eq!(world.slot(ino, 1, false), Seq(2));
    let checkpointer = Arc::new(checkpointer);
    let asked = tokio::spawn({
        let checkpointer = Arc::clone(&checkpointer);
        async move { taken(&checkpointer).await }
    });
    until("the parts are there", || world.checkpoint_objects() == 1).await;
    // Written to again: after the snapshot the slot is not renewed but moved.
    let moved = world.slot(ino, 1, false);
    assert_eq!(moved, Seq(3));
    let hash = world.fill(1);
    until("the slot is read", || world.holds.lowest().is_none()).await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(world.complete().len(), 0, "the file would be restored with a size and without bytes");
    }
    world.place(hash);
    asked.await.unwrap();
    assert!(world.meta.cursor(bit()).unwrap().shipped_seq >= moved);
    let (_, export, complete) = world.complete().pop().unwrap();
    let slots = world.memory.objects()[&key::checkpoint_part(Seq(2), export, CheckpointFile::Slots)].clone();
    let record = decode_slots(&slots, complete.slots_count).unwrap().next().unwrap().unwrap();
    assert!(matches!(record.change, Change::Void { why: VoidReason::Moved, .. }));
    shipper.stop().await;
}

#[tokio::test]
async fn o2_complete_waits_for_the_first_content_of_a_file_that_was_born_open() {
    let world = World::with_root();
    let ino = world.files(&["copy"])[0];
    world.waiting.lock().insert(ino);
    let (keeper, watch) = gate(Gate::Unknown);
    world.announce(&keeper).await;
    let checkpointer = Arc::new(world.checkpointer(Arc::new(world.memory.clone()), watch));
    let asked = tokio::spawn({
        let checkpointer = Arc::clone(&checkpointer);
        async move { taken(&checkpointer).await }
    });
    until("the parts are there", || world.checkpoint_objects() == 1).await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(world.complete().len(), 0);
    }
    world.waiting.lock().clear();
    asked.await.unwrap();
}

#[tokio::test]
async fn t3_two_checkpoints_stay_and_the_segments_from_the_older_one_on() {
    let world = World::with_root();
    let (shipper, checkpointer) = world.both();
    for (n, name) in ["a", "b", "c", "d"].iter().enumerate() {
        world.files(&[name]);
        shipped(&shipper, n as u64 + 1).await;
        taken(&checkpointer).await;
    }
    let seqs: Vec<u64> = world.complete().iter().map(|(seq, ..)| seq.0).collect();
    assert_eq!(seqs, [3, 4]);
    assert_eq!(world.checkpoint_objects(), 6, "nothing of the others is left");
    assert_eq!(world.journal(), [3, 4], "the older one is replayed from 4 on, and 3 proves the chain");
    let rows = world.meta.checkpoints(bit()).unwrap();
    assert_eq!(rows.iter().map(|row| row.seq.0).collect::<Vec<_>>(), [3, 4]);
    // Contact still knows the target.
    let own = Own::of(&world.meta, bit()).unwrap();
    let target: DynTarget = Arc::new(world.memory.clone());
    let evidence = contact::gather("aws", &target, &own).await.unwrap();
    assert_eq!(contact::decide("aws", &own, &evidence), contact::Verdict::Ours);
    checkpointer.stop().await;
    shipper.stop().await;
}

#[test]
fn t3_leftovers_go_and_what_is_under_way_or_of_another_lineage_stays() {
    let object = |seq, export, file| key::checkpoint_part(Seq(seq), ExportId(export), file);
    let row = |seq, export, complete| CheckpointRow {
        seq: Seq(seq),
        export: ExportId(export),
        replay_from: SegmentNumber(1),
        complete,
        bytes: 1,
    };
    use CheckpointFile::{Complete, Part, Slots};
    let objects = [
        object(1, 1, Part(0)),
        object(1, 1, Complete),
        object(2, 2, Part(0)),
        object(5, 5, Complete),
        object(6, 6, Complete),
        object(7, 7, Part(0)),
        object(9, 9, Part(0)),
        object(9, 9, Slots),
        object(9, 9, Complete),
        "checkpoints/readme".to_owned(),
    ];
    let rows = [row(5, 5, true), row(6, 6, true), row(7, 7, false)];
    let plan = plan_trim(&objects, &rows);
    assert_eq!(plan.stay, [rows[1], rows[0]]);
    assert_eq!(plan.replay_from(), Some(SegmentNumber(1)));
    // Of the oldest first what makes it complete; 9 is complete and unknown: another lineage's, not ours to judge.
    assert_eq!(plan.remove, [object(1, 1, Complete), object(1, 1, Part(0)), object(2, 2, Part(0))]);
    let plan = plan_trim(&objects, &rows[1..]);
    assert_eq!((plan.replay_from(), plan.remove), (None, vec![object(2, 2, Part(0))]), "one is not two");
    // Three of the same seq: their ids say nothing about their age, and what both need stays.
    let rows = [(3, 9), (2, 7), (4, 8)]
        .map(|(export, from)| CheckpointRow { replay_from: SegmentNumber(from), ..row(5, export, true) });
    let objects: Vec<String> = rows.iter().map(|row| key::complete(row.seq, row.export)).collect();
    let plan = plan_trim(&objects, &rows);
    assert_eq!(plan.stay, [rows[0], rows[2]]);
    assert_eq!((plan.replay_from(), plan.remove), (Some(SegmentNumber(8)), vec![objects[1].clone()]));
}

/// A listing may be older than what was written last: its parts are there, what makes it complete is not yet.
#[test]
fn t3_a_listing_that_is_late_takes_nothing_from_the_newest_checkpoint() {
    let row = |seq: u64| CheckpointRow {
        seq: Seq(seq),
        export: ExportId(seq as u32),
        replay_from: SegmentNumber(seq),
        complete: true,
        bytes: 1,
    };
    let rows = [row(5), row(6), row(7)];
    let complete = |seq| key::complete(Seq(seq), ExportId(seq as u32));
    let part = key::checkpoint_part(Seq(7), ExportId(7), CheckpointFile::Part(0));
    let plan = plan_trim(&[complete(5), complete(6), part], &rows);
    assert_eq!((plan.stay, plan.newest), (vec![rows[1], rows[0]], vec![rows[2], rows[1]]));
    assert_eq!(plan.remove, Vec::<String>::new());
}

#[tokio::test]
async fn t3_an_upload_that_fails_in_between_goes_on_under_the_same_key() {
    let world = World::with_root();
    world.files(&["a"]);
    let tries: Arc<Mutex<BTreeMap<String, u32>>> = Arc::default();
    let count = Arc::clone(&tries);
    let target: DynTarget = Arc::new(FaultyTarget::new(Arc::new(world.memory.clone()), move |call| {
        if call.operation != "put" {
            return Fault::None;
        }
        let mut tries = count.lock();
        let tries = tries.entry(call.key.to_owned()).or_default();
        *tries += 1;
        match *tries {
            1 => Fault::Refuse(Kind::Failed, Class::Temporary),
            2 => Fault::LostReply,
            _ => Fault::None,
        }
    }));
    let (keeper, watch) = gate(Gate::Unknown);
    world.announce(&keeper).await;
    let checkpointer = world.checkpointer(target, watch);
    taken(&checkpointer).await;
    assert_eq!(world.checkpoint_objects(), 3);
    assert!(tries.lock().values().all(|tries| (2..=3).contains(tries)), "{tries:?}");
    world.restored();
    checkpointer.stop().await;
}

#[tokio::test]
async fn t7_nothing_is_completed_beside_a_higher_writer() {
    let world = World::with_root();
    let ino = world.files(&["a"])[0];
    world.slot(ino, 1, false);
    let (keeper, watch) = gate(Gate::Unknown);
    world.announce(&keeper).await;
    let checkpointer = Arc::new(world.checkpointer(Arc::new(world.memory.clone()), watch));
    let asked = tokio::spawn({
        let checkpointer = Arc::clone(&checkpointer);
        async move { checkpointer.now().await }
    });
    until("the parts are there", || world.checkpoint_objects() == 1).await;
    world.memory.objects().insert(key::writer(Epoch(9), WriterId(1)), Default::default());
    let hash = world.fill(1);
    world.place(hash);
    assert!(soon("the end", asked).await.unwrap().is_empty());
    assert!(world.complete().is_empty());
    assert!(world.meta.checkpoints(bit()).unwrap().is_empty(), "it is forgotten");
    assert_eq!(world.holds.lowest(), None);
}

#[tokio::test]
async fn t4_a_resyncer_gets_its_checkpoint_first_and_segments_after() {
    let world = World::with_root();
    world.files(&["a", "b"]);
    world.meta.set_target_mode(bit(), Mode::Resync, None).unwrap();
    let (shipper, checkpointer) = world.both();
    // Nobody asks: a resyncer is always due.
    until("it follows", || world.meta.targets().unwrap()[0].mode == Mode::Follow).await;
    world.files(&["c"]);
    shipped(&shipper, 3).await;
    assert_eq!(world.shipped_seqs(), [3]);
    let (seq, _, complete) = world.complete().pop().unwrap();
    assert_eq!((seq, complete.replay_from), (Seq(2), SegmentNumber(1)));
    checkpointer.stop().await;
    shipper.stop().await;
}

#[tokio::test]
async fn t4_a_file_that_is_written_on_after_the_snapshot_of_a_resync_is_restored_as_it_was_before() {
    let world = World::with_root();
    let ino = world.files(&["a"])[0];
    world.slot(ino, 1, false);
    world.meta.set_target_mode(bit(), Mode::Resync, None).unwrap();
    let (shipper, checkpointer) = world.both();
    until("the parts are there", || world.checkpoint_objects() == 1).await;
    assert_eq!(world.slot(ino, 1, false), Seq(3), "its bytes come with a record beyond the snapshot");
    until("it follows", || world.meta.targets().unwrap()[0].mode == Mode::Follow).await;
    let (_dir, restored) = world.restored();
    assert_eq!(restored.inode(ino).unwrap().size, 0, "not a size without bytes");
    checkpointer.stop().await;
    shipper.stop().await;
}

#[test]
fn t4_slots_that_bring_no_bytes_take_back_what_came_since_the_last_one_that_does() {
    let ino = InodeId(2);
    let at = |size: u64| Timestamp::new(size as i64, 0).unwrap();
    let was = |size| Before { size, mtime: at(size), ctime: at(size) };
    let void = |seq, why| Record { seq: Seq(seq), change: Change::Void { ino, generation: Generation(seq), why } };
    let lost = |size| VoidReason::Lost { size, mtime: at(size), ctime: at(size) };
    let content = Content {
        ino,
        generation: Generation(2),
        size: 20,
        mtime: at(20),
        ctime: at(20),
        mode: None,
        whole: true,
        part: None,
        chunks: vec![],
        extents: vec![],
        zero: vec![],
    };
    let content = Record { seq: Seq(2), change: Change::Content(content) };
    let mut records =
        [void(1, VoidReason::Moved), content.clone(), void(3, VoidReason::Moved), void(4, VoidReason::Unlinked)];
    take_back(&mut records, &[(Seq(1), was(0)), (Seq(2), was(10)), (Seq(3), was(20)), (Seq(4), was(30))].into());
    assert_eq!(records, [void(1, lost(0)), content, void(3, lost(20)), void(4, lost(20))]);
}

#[tokio::test]
async fn t4_a_resync_does_not_wait_for_what_died_since_its_snapshot_and_is_nowhere() {
    let world = World::with_root();
    let ino = world.files(&["a"])[0];
    world.slot(ino, 1, false);
    world.fill(1);
    world.meta.set_target_mode(bit(), Mode::Resync, None).unwrap();
    let (shipper, checkpointer) = world.both();
    until("the parts are there", || world.checkpoint_objects() == 1).await;
    // Nobody pins it for a resyncer, so its bytes go.
    let died = "UPDATE chunk SET dead_seq = (SELECT seq + 1 FROM counter), bytes_referenced = 0, incomplete = 0";
    world.meta.write(|tx| Ok(tx.conn().execute(died, [])?)).unwrap();
    until("it follows", || world.meta.targets().unwrap()[0].mode == Mode::Follow).await;
    let (seq, _, complete) = world.complete().pop().unwrap();
    assert_eq!((seq, complete.chunks), (Seq(3), 0), "of a moment at which it was dead");
    checkpointer.stop().await;
    shipper.stop().await;
}

/// Objects that an operator, or a store, lost.
fn lose(world: &World, lost: impl Fn(&str) -> bool) -> usize {
    let mut objects = world.memory.objects();
    let before = objects.len();
    objects.retain(|key, _| !lost(key));
    before - objects.len()
}

/// As long as the rows of made-up chunks say; nobody reads them.
const MADE_UP: Bytes = Bytes::from_static(&[0; 9]);

/// A closed file with one chunk, which is on the target.
async fn a_file_with_a_chunk(world: &World, name: &str, session: u64) -> String {
    let ino = world.files(&[name])[0];
    world.slot(ino, session, false);
    let hash = world.fill(session);
    let target: DynTarget = Arc::new(world.memory.clone());
    target.put(&key::chunk(hash), MADE_UP.into(), Existing::Replace).await.unwrap();
    world.place(hash);
    key::chunk(hash)
}

#[tokio::test]
async fn t7_a_target_that_lost_objects_is_listed_and_resynced_by_itself() {
    // In the same mount, and over a remount.
    for remount in [false, true] {
        let world = World::with_root();
        let (shipper, checkpointer) = world.both();
        let lost = a_file_with_a_chunk(&world, "a", 1).await;
        let kept = a_file_with_a_chunk(&world, "b", 2).await;
        shipped(&shipper, 4).await;
        checkpointer.stop().await;
        shipper.stop().await;
        let gone = lose(&world, |key| key.starts_with("journal/") || key == lost);
        assert!(gone >= 2, "{gone}");
        if remount {
            world.meta.begin_mount(Epoch(0), "boot").unwrap();
        }
        let (shipper, checkpointer) = world.both();
        until("what it has was listed", || {
            let row = world.meta.targets().unwrap().remove(0);
            row.mode == Mode::Resync && !row.relist && world.meta.tallies().unwrap()[0].1.placed_chunks == 1
        })
        .await;
        assert_eq!(world.low_water(), Seq(0), "nothing that it confirmed counts");
        assert!(world.complete().is_empty(), "a chunk is missing");
        // What the driver would do.
        let again = a_file_with_a_chunk_again(&world, 1).await;
        assert_eq!(again, lost);
        until("it follows", || world.meta.targets().unwrap()[0].mode == Mode::Follow).await;
        world.files(&["later"]);
        shipped(&shipper, 5).await;
        checkpointer.stop().await;
        shipper.stop().await;
        assert!(world.memory.objects().contains_key(&kept));
        let (dir, report) = restore(&world).await;
        assert_eq!((report.seq, report.inodes, &report.unproven), (Seq(5), 4, &vec![]), "remount: {remount}");
        is_ours(&world, &dir).await;
    }
}

/// Puts the chunk of a session again and records it.
async fn a_file_with_a_chunk_again(world: &World, session: u64) -> String {
    let hash = crate::id::ChunkHash::of(&session.to_le_bytes());
    let target: DynTarget = Arc::new(world.memory.clone());
    target.put(&key::chunk(hash), MADE_UP.into(), Existing::Replace).await.unwrap();
    world.place(hash);
    key::chunk(hash)
}

#[tokio::test]
async fn t4_a_resync_during_which_too_much_happens_begins_again_at_a_later_point() {
    let world = World::with_root();
    let ino = world.files(&["a"])[0];
    world.meta.set_target_mode(bit(), Mode::Resync, None).unwrap();
    // Its slot stays open, so the checkpoint that has it cannot be completed.
    world.slot(ino, 1, false);
    let (shipper, gate) = world.start();
    let targets =
        vec![CheckpointTarget { bit: bit(), name: "aws".into(), target: Arc::new(world.memory.clone()), gate }];
    let limited = Thresholds {
        resync: crate::replication::resync::Limits { rows_max: 20, ..Default::default() },
        ..thresholds()
    };
    let checkpointer = Checkpointer::start(world.shared(), targets, world.dir.path().join("export"), limited).unwrap();
    until("the first one is under way", || world.meta.checkpoints(bit()).unwrap().iter().any(|row| row.seq == Seq(2)))
        .await;
    assert_eq!(world.holds.lowest(), Some(Seq(2)));
    for round in 0..30 {
        world.files(&[&format!("f{round}")]);
    }
    until("a later one is under way", || world.meta.checkpoints(bit()).unwrap().iter().any(|row| row.seq > Seq(20)))
        .await;
    assert!(world.meta.checkpoints(bit()).unwrap().iter().all(|row| row.seq != Seq(2)), "the first was given up");
    let hash = world.fill(1);
    world.place(hash);
    until("it follows", || world.meta.targets().unwrap()[0].mode == Mode::Follow).await;
    world.files(&["later"]);
    shipped(&shipper, 33).await;
    checkpointer.stop().await;
    shipper.stop().await;
    let (_dir, report) = restore(&world).await;
    assert_eq!((report.seq, report.unproven), (Seq(33), vec![]));
}

/// What a restore from the target alone gives, and its state directory.
async fn restore(world: &World) -> (tempfile::TempDir, crate::restore::Report) {
    let dir = tempfile::tempdir().unwrap();
    let target: DynTarget = Arc::new(world.memory.clone());
    let source = crate::restore::Source { target, name: "aws".into(), uri: "memory:///".into() };
    let state = dir.path().join("state");
    let report = crate::restore::restore(vec![source], &state, Default::default()).await.unwrap();
    (dir, report)
}

/// The next mount of a restored state directory knows the target.
async fn is_ours(world: &World, restored: &tempfile::TempDir) {
    let store = restored.path().join("state").join("meta.sqlite");
    let meta = crate::meta::Meta::open(&store, &Default::default()).unwrap();
    let own = Own::of(&meta, bit()).unwrap();
    let target: DynTarget = Arc::new(world.memory.clone());
    let evidence = contact::gather("aws", &target, &own).await.unwrap();
    assert_eq!(contact::decide("aws", &own, &evidence), contact::Verdict::Ours);
}

#[tokio::test]
async fn t3_checkpoints_of_mounts_that_shipped_no_record_restore_everything() {
    let world = World::with_root();
    world.files(&["a", "b"]);
    let (shipper, checkpointer) = world.both();
    shipped(&shipper, 2).await;
    checkpointer.stop().await;
    shipper.stop().await;
    // Two mounts that bring what is new by a checkpoint alone; the last one trims all that came before.
    for (mount, names) in [(2, ["c", "d"]), (3, ["e", "f"])] {
        world.meta.begin_mount(Epoch(0), "boot").unwrap();
        world.files(&names);
        world.meta.set_target_mode(bit(), Mode::Resync, None).unwrap();
        let (shipper, checkpointer) = world.both();
        until("it follows", || world.meta.targets().unwrap()[0].mode == Mode::Follow).await;
        if mount == 3 {
            taken(&checkpointer).await;
        }
        checkpointer.idle().await;
        checkpointer.stop().await;
        shipper.stop().await;

        let (dir, report) = restore(&world).await;
        assert_eq!((report.seq, report.inodes, &report.unproven), (Seq(2 * mount), 2 * mount + 1, &vec![]));
        assert!(report.sources[0].whole);
        is_ours(&world, &dir).await;
    }
    assert!(!world.journal().contains(&1), "the records of the first mount were trimmed");
    // A mount that ships nothing at all and takes no checkpoint does not hide the checkpoints of others.
    world.meta.begin_mount(Epoch(0), "boot").unwrap();
    let (shipper, mut gate) = world.start();
    soon("contact", async { while gate.changed().await != Gate::Open {} }).await;
    shipper.stop().await;
    let (dir, report) = restore(&world).await;
    assert_eq!((report.seq, report.unproven), (Seq(6), vec![]));
    is_ours(&world, &dir).await;
}

#[tokio::test]
async fn t3_a_target_whose_first_object_is_a_checkpoint_restores_after_a_later_mount() {
    let world = World::with_root();
    world.files(&["a", "b"]);
    world.meta.set_target_mode(bit(), Mode::Resync, None).unwrap();
    let (shipper, checkpointer) = world.both();
    until("it follows", || world.meta.targets().unwrap()[0].mode == Mode::Follow).await;
    checkpointer.stop().await;
    shipper.stop().await;
    for seq in [2, 3] {
        world.meta.begin_mount(Epoch(0), "boot").unwrap();
        if seq == 3 {
            world.files(&["c"]);
        }
        let (shipper, mut gate) = world.start();
        soon("contact", async { while gate.changed().await != Gate::Open {} }).await;
        shipped(&shipper, seq).await;
        shipper.stop().await;
        let (dir, report) = restore(&world).await;
        assert_eq!((report.checkpoint, report.unproven), (Some(("aws".into(), Seq(2))), vec![]));
        assert_eq!((report.seq, report.inodes), (Seq(seq), seq + 1));
        is_ours(&world, &dir).await;
    }
}

#[tokio::test]
async fn t3_what_proves_the_chain_after_a_checkpoint_is_not_trimmed() {
    let world = World::with_root();
    let (shipper, checkpointer) = world.both();
    for (n, name) in (1..).zip(["a", "b", "c", "d"]) {
        world.files(&[name]);
        shipped(&shipper, n).await;
        taken(&checkpointer).await;
        // Nothing follows on the newest checkpoint: the segment before is what the next mount goes on from.
        let (dir, report) = restore(&world).await;
        assert_eq!((report.seq, report.unproven), (Seq(n), vec![]));
        assert!(report.sources[0].whole);
        is_ours(&world, &dir).await;
    }
    // The newest one is lost: the older one is as good, with the segment after it and the one before.
    let (seq, export, _) = world.complete().pop().unwrap();
    world.memory.objects().remove(&key::complete(seq, export));
    let (dir, report) = restore(&world).await;
    assert_eq!(report.checkpoint, Some(("aws".into(), Seq(3))));
    assert_eq!((report.seq, report.unproven), (Seq(4), vec![]));
    is_ours(&world, &dir).await;
    checkpointer.stop().await;
    shipper.stop().await;
}

impl World {
    /// Contact by hand, for tests without a shipper: with the segment that a checkpoint is signed by.
    async fn announce(&self, keeper: &GateKeeper) {
        let target: DynTarget = Arc::new(self.memory.clone());
        let me = contact::Me::of(&self.meta, Timestamp::EPOCH).unwrap();
        contact::initialise(&self.meta, &target, "aws", &me, bit()).await.unwrap();
        contact::announce(&self.meta, &target, &me, bit()).await.unwrap();
        let segment = empty_segment(&self.shared(), &self.meta.cursor(bit()).unwrap(), Seq::ZERO);
        self.meta.store_empty_segment(bit(), &segment).unwrap();
        put_once(&target, &segment.place.key(), segment.body.into()).await.unwrap();
        self.meta.confirm_segment(bit(), segment.place.n).unwrap();
        keeper.set(Gate::Open);
    }
}
