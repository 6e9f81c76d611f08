//! The driver against a real store, real chunk files and targets in memory that fail on purpose.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use rusqlite::params;

use super::*;
use crate::id::{ChunkHash, ChunkId};
use crate::meta::target::Configured;
use crate::meta::testing;
use crate::replication::backoff::Backoff;
use crate::replication::gate::{GateKeeper, gate};
use crate::replication::health::{Policy, State};
use crate::replication::queue::Bounds;
use crate::target::memory::MemoryTarget;
use crate::testing::faulty::{Fault, FaultyTarget};

/// Longer than anything takes on a machine that is very slow.
const LONG: Duration = Duration::from_secs(300);

fn quick() -> Options {
    let backoff = |ms| Backoff { base: Duration::from_millis(ms), max: Duration::from_millis(4 * ms) };
    Options {
        planner: Config {
            queue: Bounds { rest: Duration::from_millis(100), ..Bounds::default() },
            health: Policy { retry: backoff(2), probe: backoff(10), blocked: backoff(10), down_after: 4 },
            ..Config::default()
        },
        gather: Duration::from_millis(2),
        // Of targets that answer at once, however slow the machine is.
        patience: Patience { answer: LONG, bytes_per_second_min: 1 << 20 },
        ..Options::default()
    }
}

struct World {
    _dir: tempfile::TempDir,
    _state: tempfile::TempDir,
    meta: Arc<Meta>,
    files: ChunkFiles,
    /// Of the next chunk; also seeds its bytes.
    next: AtomicU64,
}

impl World {
    fn new(targets: usize) -> World {
        let (dir, meta) = testing::store();
        let state = tempfile::tempdir().unwrap();
        let files = ChunkFiles::new(state.path()).unwrap();
        let configured: Vec<_> = (0..targets)
            .map(|i| Configured { name: format!("t{i}"), uri: format!("memory://{i}"), id: None })
            .collect();
        meta.register_targets(&configured).unwrap();
        World { _dir: dir, _state: state, meta: Arc::new(meta), files, next: AtomicU64::new(1) }
    }

    /// Seals and commits a chunk of `length` bytes in a file of its own; returns its bytes.
    fn commit(&self, length: usize) -> Vec<u8> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let bytes: Vec<u8> = (0..length).map(|i| (i as u64 * 31 + id * 7) as u8 ^ (i >> 8) as u8).collect();
        let name = format!("chunks/00/{id}");
        self.files.create(&name).unwrap().write_all_at(&bytes, 0).unwrap();
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &bytes) as u32;
        self.meta
            .write(|tx| {
                tx.conn().execute(
                    "INSERT INTO chunk (id, hash, length, dead_seq, bytes_referenced, incomplete) VALUES (?1, ?2, ?3, NULL, ?3, 1)",
                    params![id as i64, ChunkHash::of(&bytes), length as i64],
                )?;
                tx.conn().execute("INSERT INTO chunk_file VALUES (?1, ?2, ?3, 0)", params![id as i64, name, length as i64])?;
                tx.conn().execute(
                    "INSERT INTO location VALUES (?1, ?1, 0, ?2, 0, ?3)",
                    params![id as i64, length as i64, crc],
                )?;
                tx.chunks_inserted(1, length as u64)
            })
            .unwrap();
        bytes
    }

    fn start(&self, targets: Vec<DynTarget>, options: Options) -> Driver {
        let target = |(index, target): (usize, DynTarget)| {
            let (keeper, watch) = gate(Gate::Open);
            tokio::spawn(keep_open(keeper));
            DriverTarget { bit: bit(index), name: format!("t{index}"), target, gate: watch, requests_max: None }
        };
        let targets = targets.into_iter().enumerate().map(target).collect();
        Driver::start(Arc::clone(&self.meta), self.files.clone(), targets, options).unwrap()
    }

    fn pending(&self, index: usize) -> u64 {
        self.meta.tallies().unwrap()[index].1.pending_chunks
    }

    async fn drained(&self, driver: &Driver, indexes: &[usize]) {
        let mut placed = driver.placed_changed();
        let wait = async {
            while indexes.iter().any(|index| self.pending(*index) > 0) {
                placed.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(LONG, wait).await.is_err() {
            panic!("not drained: {:#?}", driver.status().unwrap());
        }
    }
}

/// The keeper of a target whose identity is always right.
async fn keep_open(keeper: GateKeeper) {
    loop {
        keeper.asked().await;
        keeper.set(Gate::Open);
    }
}

fn bit(index: usize) -> TargetBit {
    TargetBit::new(index as u8).unwrap()
}

fn key(bytes: &[u8]) -> String {
    key::chunk(ChunkHash::of(bytes))
}

async fn until(driver: &Driver, what: impl Fn(&[TargetStatus]) -> bool) {
    let wait = async {
        while !what(&driver.status().unwrap()) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    if tokio::time::timeout(LONG, wait).await.is_err() {
        panic!("never came: {:#?}", driver.status().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_target_gets_every_chunk_of_before_and_of_later() {
    let world = World::new(2);
    let mut contents: Vec<_> = [1, 100, 70_000, 300_000].map(|length| world.commit(length)).into();
    let stores = [MemoryTarget::new(), MemoryTarget::new()];
    let driver = world.start(stores.iter().map(|store| Arc::new(store.clone()) as DynTarget).collect(), quick());
    world.drained(&driver, &[0, 1]).await;
    contents.extend((0..30).map(|i| world.commit(1000 + i)));
    world.drained(&driver, &[0, 1]).await;
    let expected: BTreeMap<_, _> =
        contents.iter().map(|bytes| (key(bytes), bytes::Bytes::from(bytes.clone()))).collect();
    for store in &stores {
        assert_eq!(*store.objects(), expected);
    }
    until(&driver, |targets| targets.iter().all(|target| target.view.drained)).await;
    let status = driver.status().unwrap();
    assert_eq!((status[0].sent_chunks, status[0].tally.placed_chunks), (34, 34));
    assert!(status[1].bytes_per_second > 0.0);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_ends_by_itself_and_does_not_slow_the_other_target() {
    let world = World::new(2);
    let (good, ill) = (MemoryTarget::new(), MemoryTarget::new());
    let outage = FaultyTarget::outage(Arc::new(ill.clone()));
    outage.set_down(true);
    let driver = world.start(vec![Arc::new(good.clone()), Arc::new(outage.clone())], quick());
    for _ in 0..40 {
        world.commit(5000);
    }
    world.drained(&driver, &[0]).await;
    assert_eq!((good.objects().len(), ill.objects().len(), world.pending(1)), (40, 0, 40));
    until(&driver, |targets| matches!(targets[1].view.health, State::Down | State::Probing)).await;
    assert_eq!(driver.status().unwrap()[0].view.health, State::Healthy);
    assert!(driver.status().unwrap()[1].view.last_failure.as_ref().unwrap().message.contains("refused by the test"));
    outage.set_down(false);
    world.drained(&driver, &[1]).await;
    assert_eq!(ill.objects().len(), 40);
    until(&driver, |targets| targets[1].view.health == State::Healthy).await;
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_whose_reply_was_lost_is_asked_for_and_not_sent_again() {
    let world = World::new(1);
    let bytes = world.commit(5000);
    let (puts, stats) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (put_count, stat_count) = (Arc::clone(&puts), Arc::clone(&stats));
    let target = FaultyTarget::new(Arc::new(MemoryTarget::new()), move |call| match call.operation {
        "put" if put_count.fetch_add(1, Ordering::SeqCst) == 0 => Fault::LostReply,
        "stat" => {
            stat_count.fetch_add(1, Ordering::SeqCst);
            Fault::None
        }
        _ => Fault::None,
    });
    let driver = world.start(vec![Arc::new(target)], quick());
    world.drained(&driver, &[0]).await;
    assert_eq!((puts.load(Ordering::SeqCst), stats.load(Ordering::SeqCst)), (1, 1), "{}", key(&bytes));
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_that_hangs_ends_and_is_asked_for() {
    let world = World::new(1);
    world.commit(5000);
    let puts = AtomicUsize::new(0);
    let target = FaultyTarget::new(Arc::new(MemoryTarget::new()), move |call| match call.operation {
        "put" if puts.fetch_add(1, Ordering::SeqCst) == 0 => Fault::Hang,
        _ => Fault::None,
    });
    let patience = Patience { answer: Duration::from_millis(300), bytes_per_second_min: 1 << 20 };
    let impatient = Options { patience, ..quick() };
    let driver = world.start(vec![Arc::new(target)], impatient);
    world.drained(&driver, &[0]).await;
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s5_a_range_that_changed_on_disk_is_never_sent_and_stops_nothing_else() {
    let world = World::new(1);
    let spoiled = world.commit(100_000);
    let good = world.commit(100_000);
    std::fs::OpenOptions::new()
        .write(true)
        .open(world.files.locate("chunks/00/1"))
        .unwrap()
        .write_all_at(b"other bytes", 50_000)
        .unwrap();
    let store = MemoryTarget::new();
    let driver = world.start(vec![Arc::new(store.clone())], quick());
    until(&driver, |targets| targets[0].tally.pending_chunks == 1 && targets[0].view.unsendable == 1).await;
    // Long enough for it to be tried again: it is still one finding, and still not sent.
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert_eq!(store.objects().keys().cloned().collect::<Vec<_>>(), [key(&good)]);
    let (findings, count) = driver.findings();
    assert_eq!((findings.len(), count), (1, 1));
    assert_eq!((findings[0].chunk, findings[0].place.as_str()), (ChunkHash::of(&spoiled), "chunks/00/1"));
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_local_comes_from_another_target_if_its_bytes_are_right() {
    let world = World::new(2);
    let (lost, wrong) = (world.commit(100_000), world.commit(90_000));
    let (first, second) = (MemoryTarget::new(), MemoryTarget::new());
    let driver = world.start(vec![Arc::new(first.clone())], quick());
    world.drained(&driver, &[0]).await;
    driver.stop().await;
    first.objects().insert(key(&wrong), bytes::Bytes::from(vec![7; 90_000]));
    std::fs::remove_file(world.files.locate("chunks/00/1")).unwrap();
    std::fs::remove_file(world.files.locate("chunks/00/2")).unwrap();
    let driver = world.start(vec![Arc::new(first), Arc::new(second.clone())], quick());
    until(&driver, |targets| targets[1].tally.pending_chunks == 1 && targets[1].view.unsendable == 1).await;
    assert_eq!(second.objects().keys().cloned().collect::<Vec<_>>(), [key(&lost)]);
    let places: Vec<_> = driver.findings().0.into_iter().map(|finding| finding.place).collect();
    assert!(places.contains(&"t0".to_owned()) && places.contains(&"chunks/00/2".to_owned()), "{places:?}");
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_not_where_it_was_confirmed_counts_no_more_and_one_wrong_answer_loses_none() {
    let world = World::new(2);
    let bytes = world.commit(100_000);
    let (first, second) = (MemoryTarget::new(), MemoryTarget::new());
    let driver = world.start(vec![Arc::new(first.clone())], quick());
    world.drained(&driver, &[0]).await;
    driver.stop().await;
    let body = first.objects().remove(&key(&bytes)).unwrap();
    std::fs::remove_file(world.files.locate("chunks/00/1")).unwrap();
    let driver = world.start(vec![Arc::new(first.clone()), Arc::new(second.clone())], quick());
    until(&driver, |targets| targets.iter().all(|target| target.tally.pending_chunks == 1)).await;
    // It was there all the time, only the answer was wrong.
    first.objects().insert(key(&bytes), body);
    world.drained(&driver, &[0, 1]).await;
    assert_eq!(second.objects().keys().cloned().collect::<Vec<_>>(), [key(&bytes)]);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_to_a_slow_target_are_bounded() {
    let world = World::new(1);
    for _ in 0..100 {
        world.commit(100);
    }
    let (started, most) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let (store, most_seen) = (MemoryTarget::new(), Arc::clone(&most));
    let stored = store.clone();
    let target = FaultyTarget::new(Arc::new(store), move |call| {
        if call.operation == "put" {
            let started = started.fetch_add(1, Ordering::SeqCst) + 1;
            most_seen.fetch_max(started - stored.objects().len(), Ordering::SeqCst);
        }
        Fault::Slow(Duration::from_millis(2))
    });
    let driver = world.start(vec![Arc::new(target)], quick());
    world.drained(&driver, &[0]).await;
    let most = most.load(Ordering::SeqCst);
    assert!((2..=8).contains(&most), "{most} at once");
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t10_what_landed_in_another_place_is_not_recorded() {
    let world = World::new(1);
    world.commit(100);
    let moved = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let is_moved = Arc::clone(&moved);
    let target = FaultyTarget::new(Arc::new(MemoryTarget::new()), move |call| match call.operation {
        "check place" if is_moved.load(Ordering::SeqCst) => Fault::Refuse(Kind::PlaceMissing, Class::Rejected),
        _ => Fault::None,
    });
    let driver = world.start(vec![Arc::new(target)], quick());
    until(&driver, |targets| targets[0].view.last_failure.is_some()).await;
    assert_eq!(world.pending(0), 1);
    moved.store(false, Ordering::SeqCst);
    world.drained(&driver, &[0]).await;
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_passes_a_gate_that_is_not_open() {
    let world = World::new(1);
    world.commit(100);
    let store = MemoryTarget::new();
    let (keeper, watch) = gate(Gate::Unknown);
    let target: DynTarget = Arc::new(store.clone());
    let target = DriverTarget { bit: bit(0), name: "t0".into(), target, gate: watch, requests_max: None };
    let driver = Driver::start(Arc::clone(&world.meta), world.files.clone(), vec![target], quick()).unwrap();
    let blocked = Gate::Blocked { reason: "place is empty".into(), hint: "mount it".into() };
    keeper.set(blocked.clone());
    until(&driver, |targets| targets[0].view.gate == blocked).await;
    assert!(store.objects().is_empty());
    keeper.set(Gate::Open);
    world.drained(&driver, &[0]).await;
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_a_task_loses_no_job() {
    let world = World::new(1);
    world.commit(100);
    let puts = AtomicUsize::new(0);
    let target = FaultyTarget::new(Arc::new(MemoryTarget::new()), move |call| {
        assert!(call.operation != "put" || puts.fetch_add(1, Ordering::SeqCst) > 0, "a bug in a store's client");
        Fault::None
    });
    let driver = world.start(vec![Arc::new(target)], quick());
    world.drained(&driver, &[0]).await;
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_driver_goes_on_where_it_was() {
    let world = World::new(1);
    for _ in 0..50 {
        world.commit(1000);
    }
    let store = MemoryTarget::new();
    let slow = FaultyTarget::new(Arc::new(store.clone()), |_| Fault::Slow(Duration::from_millis(5)));
    let driver = world.start(vec![Arc::new(slow)], quick());
    driver.placed_changed().changed().await.unwrap();
    driver.stop().await;
    let left = world.pending(0);
    assert!(left < 50);
    let driver = world.start(vec![Arc::new(store.clone())], quick());
    world.drained(&driver, &[0]).await;
    assert_eq!(store.objects().len(), 50);
    let status = driver.status().unwrap();
    driver.stop().await;
    assert!(status[0].sent_chunks <= left, "what was recorded was not sent again");
    assert!(world.meta.chunks_to_place(bit(0), ChunkId(0), 10).unwrap().chunks.is_empty());
}

/// Anonymous memory of this process in bytes (proc_pid_status(5)).
fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures the memory of the whole process: run it alone"]
async fn bodies_are_never_copied_into_memory() {
    use crate::target::{Existing, Target, directory::DirectoryTarget};
    let world = World::new(2);
    for _ in 0..256 {
        world.commit(4 << 20);
    }
    let places = tempfile::tempdir().unwrap();
    let targets = ["a", "b"].map(|name| Arc::new(DirectoryTarget::new(places.path().join(name))));
    for target in &targets {
        target.put(key::SUPERBLOCK, b"{}".to_vec().into(), Existing::Refuse).await.unwrap();
    }
    let before = anonymous_bytes();
    let driver =
        world.start(targets.iter().map(|target| Arc::clone(target) as DynTarget).collect(), Options::default());
    let mut most = before;
    while world.pending(0) + world.pending(1) > 0 {
        most = most.max(anonymous_bytes());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    driver.stop().await;
    println!("{} MiB before, {} MiB at most", before >> 20, most >> 20);
    assert!(most - before < 24 << 20, "{} bytes more for 2 GiB in all", most - before);
}
