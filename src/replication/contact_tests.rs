//! Contact with targets in memory: what they say, what follows, and that nothing is written before.

use super::*;
use crate::format::segment::{Builder, Encoded, Place};
use crate::id::{SegmentNumber, TargetId};
use crate::meta::target::Configured;
use crate::meta::testing::store;
use crate::target::directory::DirectoryTarget;
use crate::target::memory::MemoryTarget;
use crate::testing::faulty::{Call, Fault, FaultyTarget};

const NAME: &str = "aws";

struct World {
    _dir: tempfile::TempDir,
    meta: Arc<Meta>,
    memory: MemoryTarget,
    target: DynTarget,
}

fn bit() -> TargetBit {
    TargetBit::new(0).unwrap()
}

impl World {
    /// A filesystem with one target that it never spoke to, in its first mount.
    fn new() -> World {
        let (dir, meta) = store();
        meta.register_targets(&[Configured { name: NAME.into(), uri: "memory:///".into(), id: None }]).unwrap();
        meta.begin_mount(Epoch(0), "boot").unwrap();
        let memory = MemoryTarget::new();
        World { _dir: dir, meta: Arc::new(meta), target: Arc::new(memory.clone()), memory }
    }

    fn me(&self) -> Me {
        Me::of(&self.meta, Timestamp::new(1_763_632_800, 0).unwrap()).unwrap()
    }

    async fn verdict(&self) -> Verdict {
        let own = Own::of(&self.meta, bit()).unwrap();
        decide(NAME, &own, &gather(NAME, &self.target, &own).await.unwrap())
    }

    /// Initialises and announces.
    async fn admitted() -> World {
        let world = World::new();
        initialise(&world.meta, &world.target, NAME, &world.me(), bit()).await.unwrap();
        announce(&world.meta, &world.target, &world.me(), bit()).await.unwrap();
        world
    }

    /// The next segment of ours, or of somebody who shares our history up to now.
    fn segment(&self, epoch: Epoch, writer: WriterId, seq: u64) -> Encoded {
        let built = self.meta.cursor(bit()).unwrap().built;
        let place = Place {
            filesystem: self.meta.filesystem().unwrap(),
            target: self.meta.cursor(bit()).unwrap().id,
            epoch,
            writer,
            n: built.map_or(SegmentNumber(0), |built| built.n).next(),
        };
        let mut builder = Builder::new(place, built.map(|built| built.hash));
        let line = format!("{{\"t\":\"removexattr\",\"seq\":{seq},\"ino\":1,\"name\":\"user.k\",\"ctime\":[1,0]}}\n");
        builder.push(Seq(seq), line.as_bytes());
        builder.finish(Seq(seq), true)
    }

    async fn put(&self, segment: &Encoded) {
        self.target.put(&segment.place.key(), segment.body.clone().into(), Existing::Refuse).await.unwrap();
    }

    /// A segment of ours, stored, and confirmed if asked for; on the target in any case.
    async fn ship(&self, seq: u64, confirm: bool) -> Encoded {
        let me = self.me();
        let segment = self.segment(me.epoch, me.writer, seq);
        self.meta.store_segments(bit(), std::slice::from_ref(&segment), Seq(seq), &[]).unwrap();
        self.put(&segment).await;
        if confirm {
            self.meta.confirm_segment(bit(), segment.place.n).unwrap();
        }
        segment
    }

    async fn announce_other(&self, epoch: u64, writer: u32) {
        let other = Writer {
            filesystem: self.meta.filesystem().unwrap(),
            target: self.meta.cursor(bit()).unwrap().id,
            epoch: Epoch(epoch),
            writer: WriterId(writer),
            host: "nas2".into(),
            started: Timestamp::new(1_763_632_800, 0).unwrap(),
            version: "0.1.0".into(),
            parent: None,
            history: vec![],
        };
        self.target.put(&other.key(), other.encode().into(), Existing::Refuse).await.unwrap();
    }
}

#[track_caller]
fn conflict(verdict: Verdict) -> String {
    match verdict {
        Verdict::Conflict { reason, hint, .. } => {
            assert!(!hint.is_empty());
            reason
        }
        other => panic!("{other:?} is no conflict"),
    }
}

#[track_caller]
fn blocked(verdict: Verdict) -> String {
    match verdict {
        Verdict::Blocked { reason, hint } => {
            assert!(!hint.is_empty());
            reason
        }
        other => panic!("{other:?} is not blocked"),
    }
}

#[tokio::test]
async fn t1_an_empty_place_is_initialised_once_and_then_ours() {
    let world = World::new();
    assert_eq!(world.verdict().await, Verdict::Fresh);
    assert!(world.memory.objects().is_empty(), "looking writes nothing");
    initialise(&world.meta, &world.target, NAME, &world.me(), bit()).await.unwrap();
    assert_eq!(world.verdict().await, Verdict::Ours);
    let superblock = world.memory.objects()[key::SUPERBLOCK].clone();
    let superblock = Superblock::decode(&superblock).unwrap();
    assert_eq!(superblock.target, world.meta.cursor(bit()).unwrap().id);
    // A crash after the put and before the row: the same again is no error.
    initialise(&world.meta, &world.target, NAME, &world.me(), bit()).await.unwrap();
}

#[tokio::test]
async fn t1_a_place_that_lost_its_identity_is_an_unmounted_disk_not_a_fresh_one() {
    let world = World::admitted().await;
    world.memory.objects().clear();
    assert!(blocked(world.verdict().await).contains("not mounted"));
}

#[tokio::test]
async fn t1_another_filesystem_or_another_target_of_ours_is_a_conflict() {
    let world = World::admitted().await;
    let mut superblock = Superblock::decode(&world.memory.objects()[key::SUPERBLOCK].clone()).unwrap();
    superblock.target = TargetId::random();
    world.memory.objects().insert(key::SUPERBLOCK.into(), superblock.encode().into());
    assert!(conflict(world.verdict().await).contains("not as the target that this state directory knows"));
    superblock.target_name = "oss".into();
    world.memory.objects().insert(key::SUPERBLOCK.into(), superblock.encode().into());
    assert!(conflict(world.verdict().await).contains("is the place of target \"oss\""));
    superblock.filesystem = FilesystemId::random();
    world.memory.objects().insert(key::SUPERBLOCK.into(), superblock.encode().into());
    assert!(conflict(world.verdict().await).contains("another filesystem"));
    world.memory.objects().insert(key::SUPERBLOCK.into(), Bytes::from_static(b"{\"format\":2}"));
    assert!(blocked(world.verdict().await).contains("cannot be read"));
}

/// A target of the filesystem that this state directory has a row for and never spoke to.
async fn never_met(restored: &[KnownWriter]) -> World {
    let world = World::new();
    let superblock = Superblock {
        filesystem: world.meta.filesystem().unwrap(),
        target: TargetId::random(),
        name: "photos".into(),
        target_name: NAME.into(),
        created: Timestamp::EPOCH,
    };
    world.memory.objects().insert(key::SUPERBLOCK.into(), superblock.encode().into());
    let place = Place {
        filesystem: superblock.filesystem,
        target: superblock.target,
        epoch: Epoch(0),
        writer: WriterId(3),
        n: SegmentNumber(1),
    };
    let mut builder = Builder::new(place, None);
    builder.push(Seq(9), b"{\"t\":\"removexattr\",\"seq\":9,\"ino\":1,\"name\":\"user.k\",\"ctime\":[1,0]}\n");
    world.put(&builder.finish(Seq(4), true)).await;
    world.meta.write(|tx| tx.finish_restore(&[], restored, Epoch(0), WriterId(3))).unwrap();
    world.meta.begin_mount(Epoch(0), "boot").unwrap();
    world
}

#[tokio::test]
async fn d6_a_restored_state_takes_over_a_target_that_it_meets_and_knows_it_from_then_on() {
    let known = KnownWriter { epoch: Epoch(0), writer: WriterId(3), seq: Seq(9) };
    let world = never_met(&[known]).await;
    let before = world.memory.objects().clone();
    let Verdict::MetAgain(met) = world.verdict().await else { panic!("{:?}", world.verdict().await) };
    assert_eq!((met.highest, met.low_water), (Seq(9), Seq(4)));
    take_over(&world.meta, &world.target, NAME, bit(), &met).await.unwrap();
    assert_eq!(*world.memory.objects(), before, "nothing was written");
    assert_eq!(world.verdict().await, Verdict::Ours);
    let (row, cursor) = (world.meta.targets().unwrap().remove(0), world.meta.cursor(bit()).unwrap());
    assert_eq!((row.id, row.mode, row.shipped_seq), (met.id, crate::meta::target::Mode::Resync, Seq(4)));
    assert_eq!(cursor.confirmed.unwrap().n, SegmentNumber(1), "the next writer goes on from there");
    // Only once: a target that is known is not taken over.
    assert!(take_over(&world.meta, &world.target, NAME, bit(), &met).await.is_err());
}

#[tokio::test]
async fn t1_a_restored_state_makes_no_directory_by_itself() {
    let known = KnownWriter { epoch: Epoch(0), writer: WriterId(3), seq: Seq(9) };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let directory: DynTarget = Arc::new(DirectoryTarget::new(&path));
    // A new filesystem makes it.
    let world = World { target: Arc::clone(&directory), ..World::new() };
    assert_eq!(world.verdict().await, Verdict::Fresh);
    let world = World { target: directory, ..never_met(&[known]).await };
    assert!(blocked(world.verdict().await).contains("does not exist"));
    assert!(!path.exists());
    // Somebody made it: that is his word.
    std::fs::create_dir(&path).unwrap();
    assert_eq!(world.verdict().await, Verdict::Fresh);
    // An empty bucket cannot be an unmounted disk.
    let world = World { target: Arc::new(MemoryTarget::new()), ..world };
    assert_eq!(world.verdict().await, Verdict::Fresh);
}

#[tokio::test]
async fn t1_what_keeps_a_place_from_being_used_is_said() {
    let world = World::admitted().await;
    let refusing = |kind, class| -> DynTarget {
        Arc::new(FaultyTarget::new(Arc::new(world.memory.clone()), move |_| Fault::Refuse(kind, class)))
    };
    let own = Own::of(&world.meta, bit()).unwrap();
    for (kind, class, word) in [
        (Kind::Denied, Class::Rejected, "rejects our credentials"),
        (Kind::Config, Class::Rejected, "cannot be used"),
        (Kind::PlaceMissing, Class::Rejected, "refused by the test"),
    ] {
        let evidence = gather(NAME, &refusing(kind, class), &own).await.unwrap();
        assert!(blocked(decide(NAME, &own, &evidence)).contains(word));
    }
    // What may pass is no verdict.
    let outage = gather(NAME, &refusing(Kind::Unreachable, Class::Temporary), &own).await;
    assert_eq!(outage.unwrap_err().kind, Kind::Unreachable);
    // A journal that nobody signs is not built upon.
    let unsigned = MemoryTarget::new();
    unsigned.objects().insert("journal/0000000001-00000001/000000000001.jsonl.zst".to_owned(), Bytes::new());
    let world = World { target: Arc::new(unsigned), ..World::new() };
    assert!(blocked(world.verdict().await).contains("objects under journal/ but no tandemfs.json"));
}

#[tokio::test]
async fn t7_a_restored_state_does_not_take_over_what_it_lacks() {
    let known = KnownWriter { epoch: Epoch(0), writer: WriterId(3), seq: Seq(8) };
    let world = never_met(&[known]).await;
    assert!(conflict(world.verdict().await).contains("has changes up to 9 that the restored state lacks"));
    // What cannot be read may be such a change.
    let world = never_met(&[KnownWriter { seq: Seq(9), ..known }]).await;
    let segment = world.memory.objects().keys().find(|key| key.starts_with(key::JOURNAL)).unwrap().clone();
    world.memory.objects().insert(segment, Bytes::from_static(b"damaged"));
    assert!(conflict(world.verdict().await).contains("may have changes"));
    // One that was never restored meets nobody again.
    let world = never_met(&[]).await;
    conflict(world.verdict().await);
}

#[tokio::test]
async fn t7_the_announcement_names_what_it_builds_on() {
    let world = World::admitted().await;
    let segment = world.ship(5, true).await;
    let first = world.me();
    world.meta.begin_mount(Epoch(0), "boot").unwrap();
    let me = world.me();
    announce(&world.meta, &world.target, &me, bit()).await.unwrap();
    assert_eq!(world.meta.cursor(bit()).unwrap().contact_epoch, me.epoch);
    let bytes = world.memory.objects()[&key::writer(me.epoch, me.writer)].clone();
    let parent = Writer::decode(&bytes, me.epoch, me.writer).unwrap().parent.unwrap();
    assert_eq!((parent.epoch, parent.writer, parent.n), (first.epoch, first.writer, SegmentNumber(1)));
    assert_eq!((parent.hash, parent.seq), (segment.hash, Seq(5)));
    let history = Writer::decode(&bytes, me.epoch, me.writer).unwrap().history;
    assert_eq!(history.iter().map(|ancestor| ancestor.writer).collect::<Vec<_>>(), [first.writer]);
    assert_eq!(world.verdict().await, Verdict::Ours);
}

#[tokio::test]
async fn t7_a_writer_at_or_above_our_epoch_is_a_conflict_that_names_it() {
    let world = World::admitted().await;
    let epoch = world.me().epoch.0;
    world.announce_other(epoch - 1, 7).await;
    assert_eq!(world.verdict().await, Verdict::Ours, "a lower one is fenced by us");
    let own = Own::of(&world.meta, bit()).unwrap();
    assert_eq!(fenced_by(&world.target, &own).await.unwrap(), None);
    world.announce_other(epoch, 8).await;
    let reason = conflict(world.verdict().await);
    assert!(reason.contains("written by nas2 since 2025-11-20T10:00:00Z"), "{reason}");
    assert_eq!(fenced_by(&world.target, &own).await.unwrap(), Some((Epoch(epoch), WriterId(8))));
}

#[tokio::test]
async fn t7_two_that_announce_themselves_at_once_both_notice() {
    let world = World::new();
    initialise(&world.meta, &world.target, NAME, &world.me(), bit()).await.unwrap();
    world.announce_other(world.me().epoch.0, 9).await;
    let result = announce(&world.meta, &world.target, &world.me(), bit()).await;
    assert!(matches!(result, Err(Failure::Fenced(_))), "{result:?}");
}

#[tokio::test]
async fn t7_a_target_that_is_ahead_makes_this_state_directory_old() {
    let world = World::admitted().await;
    world.ship(5, true).await;
    // What a newer copy of this state directory wrote under the same epoch, and so the same name.
    let me = world.me();
    let newer = world.segment(me.epoch, me.writer, 12);
    world.put(&newer).await;
    let reason = conflict(world.verdict().await);
    assert!(reason.contains("older than target \"aws\", which has 7 newer changes"), "{reason}");
}

#[tokio::test]
async fn t7_a_stored_segment_that_got_through_is_ours_only_with_the_same_bytes() {
    let world = World::admitted().await;
    world.ship(5, true).await;
    let unconfirmed = world.ship(6, false).await;
    assert_eq!(world.verdict().await, Verdict::Ours);
    let other = {
        let mut builder = Builder::new(unconfirmed.place, Some(crate::id::Hash::of(b"")));
        builder.push(Seq(6), b"{\"t\":\"removexattr\",\"seq\":6,\"ino\":1,\"name\":\"user.k\",\"ctime\":[2,0]}\n");
        builder.finish(Seq(6), true)
    };
    world.memory.objects().insert(other.place.key(), other.body.clone().into());
    conflict(world.verdict().await);
}

#[tokio::test]
async fn t7_a_target_that_lost_its_newest_segment_is_behind_and_with_foreign_ones_in_conflict() {
    let world = World::admitted().await;
    let first = world.ship(5, true).await;
    let second = world.ship(6, true).await;
    world.target.delete(&first.place.key()).await.unwrap();
    assert_eq!(world.verdict().await, Verdict::Ours, "older ones are trimmed in their time");
    world.target.delete(&second.place.key()).await.unwrap();
    match world.verdict().await {
        Verdict::Behind { reason } => assert!(reason.contains("lost data: segment 2"), "{reason}"),
        other => panic!("{other:?}"),
    }
    // Who lost our newest and has another's is no place to go on in.
    let foreign = world.segment(Epoch(0), WriterId(3), 9);
    world.put(&foreign).await;
    world.put(&world.segment(Epoch(9), WriterId(3), 9)).await;
    conflict(world.verdict().await);
}

#[tokio::test]
async fn t7_what_was_on_its_way_when_a_target_lost_others_is_ours_whenever_it_is_seen() {
    let world = World::admitted().await;
    let confirmed = world.ship(5, true).await;
    let stored = [world.ship(6, false).await, world.ship(7, false).await];
    // One listing was late, or they were lost.
    world.target.delete(&confirmed.place.key()).await.unwrap();
    world.target.delete(&stored[0].place.key()).await.unwrap();
    world.target.delete(&stored[1].place.key()).await.unwrap();
    assert!(matches!(world.verdict().await, Verdict::Behind { .. }));
    world.meta.begin_relist(bit(), "lost", 7).unwrap();
    // The way to a segment behind the gap was cut off. A put without an answer has its effect now.
    world.put(&stored[1]).await;
    assert!(matches!(world.verdict().await, Verdict::Behind { .. }), "{:?}", world.verdict().await);
    // The listing shows everything again.
    world.put(&confirmed).await;
    world.put(&stored[0]).await;
    assert_eq!(world.verdict().await, Verdict::Ours);
    // What somebody else wrote after them is not ours.
    let me = world.me();
    world.put(&world.segment(me.epoch, me.writer, 12)).await;
    conflict(world.verdict().await);
}

#[tokio::test]
async fn t7_a_history_that_we_never_wrote_is_not_continued() {
    let world = World::admitted().await;
    let segment = world.segment(Epoch(0), WriterId(3), 9);
    world.put(&segment).await;
    conflict(world.verdict().await);
}

#[tokio::test]
async fn t7_a_survey_writes_nothing_and_waits_for_nobody_longer_than_it_says() {
    let world = World::admitted().await;
    world.announce_other(41, 8).await;
    world
        .meta
        .register_targets(&[
            Configured { name: NAME.into(), uri: "memory:///".into(), id: None },
            Configured { name: "slow".into(), uri: "memory:///2".into(), id: None },
            Configured { name: "new".into(), uri: "memory:///3".into(), id: None },
        ])
        .unwrap();
    let fresh = MemoryTarget::new();
    let hangs = |call: Call<'_>| {
        assert_ne!(call.operation, "put");
        Fault::Hang
    };
    let asked = |index: u8, name: &str, target: DynTarget| Asked {
        bit: TargetBit::new(index).unwrap(),
        name: name.into(),
        target,
    };
    let before = world.memory.objects().clone();
    let survey = survey(
        &world.meta,
        &[
            asked(0, NAME, Arc::clone(&world.target)),
            asked(1, "slow", Arc::new(FaultyTarget::new(Arc::new(MemoryTarget::new()), hangs))),
            asked(2, "new", Arc::new(fresh.clone())),
        ],
        Duration::from_secs(1),
    )
    .await
    .unwrap();
    assert_eq!(survey.seen, Epoch(41));
    assert_eq!(survey.refusals().len(), 1);
    assert!(survey.answers[1].verdict.as_ref().unwrap_err().contains("1s"));
    assert_eq!(survey.answers[2].verdict, Ok(Verdict::Fresh));
    assert_eq!(*world.memory.objects(), before);
    assert!(fresh.objects().is_empty());
    let mounted = world.meta.begin_mount(survey.seen, "boot").unwrap();
    assert_eq!(mounted.epoch, Epoch(42));
}

#[tokio::test]
async fn an_object_written_once_is_recognised_after_a_lost_reply() {
    let memory = MemoryTarget::new();
    let lossy: DynTarget = Arc::new(FaultyTarget::new(Arc::new(memory.clone()), |call| {
        if call.operation == "put" { Fault::LostReply } else { Fault::None }
    }));
    put_once(&lossy, "writers/x", Bytes::from_static(b"mine")).await.unwrap();
    put_once(&lossy, "writers/x", Bytes::from_static(b"mine")).await.unwrap();
    for other in [&b"else"[..], b"longer than mine", b""] {
        memory.objects().insert("writers/x".into(), Bytes::copy_from_slice(other));
        let result = put_once(&lossy, "writers/x", Bytes::from_static(b"mine")).await;
        assert!(matches!(result, Err(Failure::Fenced(_))), "{result:?}");
    }
}
