//! The shipper against targets in memory that fail on purpose.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::*;
use crate::format::record::Change;
use crate::format::writer::Writer;
use crate::id::{Epoch, SegmentNumber, WriterId};
use crate::replication::conflicts::{Deferred, Footprint};
use crate::replication::test_world::{World, bit, shipped, soon, until};
use crate::testing::faulty::{Fault, FaultyTarget};

#[tokio::test]
async fn t2_the_journal_reaches_a_fresh_target_in_chained_segments() {
    let world = World::new();
    world.files(&["a", "b", "c"]);
    let (shipper, gate) = world.start();
    shipped(&shipper, 3).await;
    assert_eq!(gate.state(), Gate::Open);
    world.files(&["d"]);
    shipped(&shipper, 4).await;
    assert_eq!(world.shipped_seqs(), [1, 2, 3, 4]);
    let (last, _) = world.segments().pop().unwrap();
    assert_eq!((last.low_water, last.end), (Seq(4), true));
    let progress = shipper.progress();
    assert_eq!((progress.backlog, progress.last_error.clone()), (ShippingBacklog::default(), None));
    assert!(progress.whole_at.is_some());
    let rows = || -> i64 {
        world.meta.read(|conn| Ok(conn.query_row("SELECT count(*) FROM journal", [], |row| row.get(0))?)).unwrap()
    };
    until("what all followers have is dropped", || rows() == 0).await;
    shipper.stop().await;
    assert!(world.memory.objects().contains_key(key::SUPERBLOCK));
}

#[tokio::test]
async fn o7_what_does_not_conflict_overtakes_a_slow_upload_and_nothing_else_does() {
    let world = World::new();
    let (shipper, _gate) = world.start();
    let files = world.files(&["big", "b"]);
    shipped(&shipper, 2).await;
    assert_eq!(world.slot(files[0], 1, false), Seq(3));
    let hash = world.fill(1);
    // 4 names another inode, 5 the one that waits.
    for ino in [files[1], files[0]] {
        let change = Change::Removexattr { ino, name: b"user.k".to_vec(), ctime: Timestamp::EPOCH };
        world.meta.write(|tx| tx.append(&change)).unwrap();
    }
    until("record 4 passes record 3", || world.shipped_seqs().contains(&4)).await;
    assert_eq!(world.shipped_seqs(), [1, 2, 4]);
    assert_eq!(world.low_water(), Seq(2), "record 3 is missing yet");
    world.place(hash);
    shipped(&shipper, 5).await;
    assert_eq!(world.shipped_seqs(), [1, 2, 4, 3, 5]);
    shipper.stop().await;
}

#[tokio::test]
async fn plain_order_waits_for_the_slow_upload() {
    let world = World { order: Order::Plain, ..World::new() };
    let (shipper, _gate) = world.start();
    let files = world.files(&["big"]);
    world.slot(files[0], 1, false);
    world.files(&["b"]);
    let hash = world.fill(1);
    world.place(hash);
    shipped(&shipper, 3).await;
    assert_eq!(world.shipped_seqs(), [1, 2, 3]);
    shipper.stop().await;
}

#[tokio::test]
async fn o6_nothing_overtakes_a_slot_that_an_fsync_reserved_filled_or_not() {
    let world = World::new();
    let (shipper, _gate) = world.start();
    let files = world.files(&["db", "other"]);
    shipped(&shipper, 2).await;
    world.slot(files[0], 1, true);
    world.files(&["unrelated"]);
    let hash = world.fill(1);
    // Several rounds pass, and each of them leaves record 4 behind.
    for _ in 0..3 {
        let before = world.meta.head();
        shipper.ship_now();
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert_eq!(world.meta.head(), before);
        assert_eq!(world.shipped_seqs(), [1, 2]);
    }
    world.place(hash);
    shipped(&shipper, 4).await;
    assert_eq!(world.shipped_seqs(), [1, 2, 3, 4]);
    shipper.stop().await;
}

#[tokio::test]
async fn o2_a_file_that_is_being_copied_is_not_on_the_target_as_an_empty_one() {
    let world = World::new();
    let ino = world.files(&["copy", "b"])[0];
    world.waiting.lock().insert(ino);
    let (shipper, _gate) = world.start();
    until("the other file ships", || world.shipped_seqs() == [2]).await;
    world.slot(ino, 1, false);
    world.waiting.lock().clear();
    let hash = world.fill(1);
    world.place(hash);
    shipped(&shipper, 3).await;
    let segments = world.segments();
    let (trailer, together) = segments.last().unwrap();
    assert_eq!(together.iter().map(|record| record.seq.0).collect::<Vec<_>>(), [1, 3]);
    assert!(trailer.end);
    shipper.stop().await;
}

#[tokio::test]
async fn t2_a_restart_between_store_and_put_sends_the_same_bytes_under_the_same_key() {
    let world = World::new();
    let sent: Arc<Mutex<Vec<(String, u64)>>> = Arc::default();
    let seen = Arc::clone(&sent);
    let refuses = FaultyTarget::new(Arc::new(world.memory.clone()), move |call| {
        if call.operation == "put" && call.key.starts_with(key::JOURNAL) {
            seen.lock().push((call.key.to_owned(), call.length));
            return Fault::Refuse(Kind::Failed, Class::Temporary);
        }
        Fault::None
    });
    let (shipper, _gate) = world.start_on(Arc::new(refuses));
    world.files(&["a", "b"]);
    until("the put is tried", || sent.lock().len() > 1).await;
    assert!(shipper.progress().last_error.unwrap().contains("journal/"));
    shipper.stop().await;
    let stored = world.meta.next_unconfirmed(bit()).unwrap().unwrap();

    world.meta.begin_mount(Epoch(0), "boot").unwrap();
    world.files(&["c"]);
    let (shipper, _gate) = world.start();
    shipped(&shipper, 3).await;
    shipper.stop().await;
    let (key, _) = sent.lock()[0].clone();
    assert_eq!(world.memory.objects()[&key], stored.body);
    let segments = world.segments();
    assert_eq!(segments.iter().map(|(trailer, _)| trailer.place.epoch.0).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(world.shipped_seqs(), [1, 2, 3]);
    // The second writer says that it builds on it.
    let (epoch, writer, _) = world.meta.writer_identity().unwrap();
    let announcement = world.memory.objects()[&key::writer(epoch, writer)].clone();
    let parent = Writer::decode(&announcement, epoch, writer).unwrap().parent.unwrap();
    assert_eq!((parent.n, parent.hash, parent.seq), (SegmentNumber(1), stored.id.hash, Seq(2)));
}

#[tokio::test]
async fn t2_a_put_whose_reply_was_lost_is_recognised() {
    let world = World::new();
    let puts: Arc<Mutex<u32>> = Arc::default();
    let count = Arc::clone(&puts);
    let lossy = FaultyTarget::new(Arc::new(world.memory.clone()), move |call| {
        if call.operation == "put" && call.key.starts_with(key::JOURNAL) {
            *count.lock() += 1;
            return Fault::LostReply;
        }
        Fault::None
    });
    let (shipper, _gate) = world.start_on(Arc::new(lossy));
    world.files(&["a"]);
    shipped(&shipper, 1).await;
    shipper.stop().await;
    assert_eq!(*puts.lock(), 1, "it is looked for, not sent again");
    assert_eq!(world.shipped_seqs(), [1]);
}

#[tokio::test]
async fn t7_a_segment_that_is_read_wrong_once_is_nobody_elses() {
    let world = World::new();
    let gets: Arc<Mutex<u32>> = Arc::default();
    let count = Arc::clone(&gets);
    let misread = FaultyTarget::new(Arc::new(world.memory.clone()), move |call| {
        let of_segment = call.key.starts_with(key::JOURNAL);
        match call.operation {
            "put" if of_segment => Fault::LostReply,
            "get" if of_segment => {
                *count.lock() += 1;
                if *count.lock() == 1 { Fault::ShortBody } else { Fault::None }
            }
            _ => Fault::None,
        }
    });
    let (shipper, gate) = world.start_on(Arc::new(misread));
    world.files(&["a"]);
    shipped(&shipper, 1).await;
    assert_eq!(gate.state(), Gate::Open);
    shipper.stop().await;
}

#[tokio::test]
async fn t7_a_higher_writer_stops_this_one() {
    let world = World::new();
    let (shipper, mut gate) = world.start();
    world.files(&["a"]);
    shipped(&shipper, 1).await;
    world.memory.objects().insert(key::writer(Epoch(9), WriterId(3)), Default::default());
    let before = world.memory.objects().clone();
    world.files(&["b"]);
    let fenced = soon("fencing", async {
        loop {
            if let Gate::Fenced { reason, hint } = gate.changed().await {
                return (reason, hint);
            }
        }
    })
    .await;
    assert!(fenced.0.contains("epoch 9"), "{fenced:?}");
    assert_eq!(*world.memory.objects(), before, "nothing was written after");
    let row = world.meta.targets().unwrap().remove(0);
    assert_eq!((row.mode, row.reason.as_ref()), (Mode::Fenced, Some(&fenced.0)));
    assert_eq!(shipper.progress().last_error, Some(fenced.0));

    // The other one is gone: whoever says so asks for a new look.
    world.memory.objects().remove(&key::writer(Epoch(9), WriterId(3)));
    gate.recheck();
    shipped(&shipper, 2).await;
    assert_eq!(world.meta.targets().unwrap().remove(0).mode, Mode::Follow);
    shipper.stop().await;
}

#[tokio::test]
async fn t1_after_an_outage_identity_is_read_before_the_next_put() {
    let world = World::new();
    let target = FaultyTarget::outage(Arc::new(world.memory.clone()));
    let (shipper, gate) = world.start_on(Arc::new(target.clone()));
    world.files(&["a"]);
    shipped(&shipper, 1).await;
    target.set_down(true);
    world.files(&["b"]);
    until("the outage is noticed", || gate.state() == Gate::Unknown).await;
    // While it was away somebody emptied its place: an unmounted disk.
    let kept = std::mem::take(&mut *world.memory.objects());
    target.set_down(false);
    until("the empty place is refused", || matches!(gate.state(), Gate::Blocked { .. })).await;
    assert!(world.memory.objects().is_empty());
    *world.memory.objects() = kept;
    shipped(&shipper, 2).await;
    assert_eq!(gate.state(), Gate::Open);
    shipper.stop().await;
}

#[tokio::test]
async fn o7_random_readiness_gives_an_order_that_the_rule_allows() {
    let world = World::new();
    // Sixteen files, each with a name, a slot that is filled and placed in another order, and a record after it.
    let files: Vec<InodeId> = (0..16).flat_map(|n| world.files(&[&format!("f{n}")])).collect();
    for (session, ino) in (1..).zip(&files) {
        world.slot(*ino, session, session == 7);
        let change = Change::Removexattr { ino: *ino, name: b"user.k".to_vec(), ctime: Timestamp::EPOCH };
        world.meta.write(|tx| tx.append(&change)).unwrap();
    }
    let hashes = [5, 16, 1, 9, 12, 3, 2, 14, 8, 11, 4, 15, 6, 10, 13, 7].map(|session| world.fill(session));
    let window = world.meta.journal_window(bit(), world.meta.head(), WindowLimits::default()).unwrap();
    let footprint = |row: &crate::meta::window::WindowRow| {
        let footprint = Footprint::of(row.change.as_ref().unwrap());
        (row.seq.0, if row.fsynced { footprint.fsynced() } else { footprint })
    };
    let all: BTreeMap<u64, Footprint> = window.rows.iter().map(footprint).collect();
    let (shipper, _gate) = world.start();
    for (nth, hash) in hashes.into_iter().enumerate() {
        world.place(hash);
        if nth == 0 {
            // However late the shipper is: this content is not the oldest, and the only one that is ready.
            until("it overtakes the others", || {
                let order = world.shipped_seqs();
                order.iter().any(|seq| *seq > order.len() as u64)
            })
            .await;
        }
        // Not a hope: whatever the rounds see, the order must be one that the rule allows.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    shipped(&shipper, world.meta.head().0).await;
    shipper.stop().await;
    let order = world.shipped_seqs();
    assert_eq!(order.len() as u64, world.meta.head().0);
    assert!(!order.is_sorted(), "something overtook something: the births go before the slow contents");
    for (position, seq) in order.iter().enumerate() {
        let mut overtaken = Deferred::new();
        for earlier in (1..*seq).filter(|earlier| !order[..position].contains(earlier)) {
            overtaken.insert(&all[&earlier]);
        }
        assert!(overtaken.admits(&all[seq]), "record {seq} at {position} of {order:?}");
    }
}
