//! Collecting from targets in memory, with a simulated clock: time is what the tests say.

use std::collections::BTreeSet;

use rusqlite::params;

use super::*;
use crate::id::{ChunkId, Epoch, ExportId, SegmentNumber};
use crate::meta::target::Configured;
use crate::meta::testing::{file, store};
use crate::target::Existing;
use crate::target::memory::MemoryTarget;
use crate::testing::faulty::{Fault, FaultyTarget};

const GRACE: Duration = Duration::from_secs(24 * 3600);
const HOUR: i64 = 3600;
const NO_PAUSE: Duration = Duration::ZERO;

fn bit() -> TargetBit {
    TargetBit::new(0).unwrap()
}

struct World {
    _dir: tempfile::TempDir,
    meta: Arc<Meta>,
    memory: MemoryTarget,
    next: u64,
}

impl World {
    fn new() -> World {
        let (dir, meta) = store();
        meta.register_targets(&[Configured { name: "a".into(), uri: "memory://a".into(), id: None }]).unwrap();
        meta.begin_mount(Epoch(0), "boot").unwrap();
        World { _dir: dir, meta: Arc::new(meta), memory: MemoryTarget::new(), next: 0 }
    }

    fn target(&self) -> DynTarget {
        Arc::new(self.memory.clone())
    }

    /// A chunk that a file refers to, placed.
    async fn chunk(&mut self) -> ChunkHash {
        self.next += 1;
        let body = self.next.to_le_bytes().to_vec();
        let hash = ChunkHash::of(&body);
        self.target().put(&key::chunk(hash), body.into(), Existing::Replace).await.unwrap();
        let id = ChunkId(self.next);
        self.record();
        self.meta
            .write(|tx| {
                tx.conn().execute(
                    "INSERT INTO chunk (id, hash, length, bytes_referenced, incomplete) VALUES (?1, ?2, 8, 8, 1)",
                    params![id, hash],
                )?;
                tx.chunks_inserted(1, 8)?;
                tx.place(bit(), &[id])
            })
            .unwrap();
        hash
    }

    /// The last reference to a chunk goes.
    fn kill(&self, hash: ChunkHash) {
        self.record();
        let dead = self.meta.head().next();
        self.meta
            .write(|tx| {
                Ok(tx.conn().execute(
                    "UPDATE chunk SET bytes_referenced = 0, dead_seq = ?2 WHERE hash = ?1",
                    params![hash, dead],
                )?)
            })
            .unwrap();
    }

    /// A record that is shipped at once.
    fn record(&self) {
        self.meta
            .write(|tx| {
                let name = format!("f{}", tx.head().0);
                file(tx, name.as_bytes());
                tx.conn()
                    .execute("UPDATE target SET shipped_seq = (SELECT max(seq) FROM journal), initialised = 1", [])?;
                Ok(())
            })
            .unwrap();
    }

    fn checkpoint(&self) {
        let (seq, export) = (self.meta.head(), ExportId::random());
        self.meta.begin_checkpoint(bit(), seq, export, SegmentNumber(1)).unwrap();
        self.meta.complete_checkpoint(bit(), seq, export, 1, Default::default()).unwrap();
    }

    fn plan(&self, now: i64) -> Plan {
        let row = self.meta.targets().unwrap().remove(0);
        Plan::of(&self.meta, &row, now, GRACE).unwrap()
    }

    async fn round(&self, now: i64) -> u64 {
        tick(&self.meta, now, GRACE).unwrap();
        let plan = self.plan(now);
        collect(&self.meta, &self.target(), bit(), plan.horizon.seq(), NO_PAUSE).await.unwrap()
    }

    fn stored(&self) -> usize {
        self.memory.objects().keys().filter(|key| key.starts_with("chunks/")).count()
    }

    fn rows(&self) -> u64 {
        self.meta
            .read(|conn| Ok(conn.query_row("SELECT count(*) FROM chunk", [], |row| row.get::<_, i64>(0))?))
            .unwrap() as u64
    }
}

#[tokio::test]
async fn t9_a_chunk_stays_for_the_time_of_grace_and_while_a_kept_checkpoint_may_name_it() {
    let mut world = World::new();
    let (dead, live) = (world.chunk().await, world.chunk().await);
    world.kill(dead);
    world.record();
    world.checkpoint();
    assert_eq!(world.round(0).await, 0, "one checkpoint only, and dead for no time");
    world.checkpoint();
    assert_eq!(world.round(23 * HOUR).await, 0, "within the time of grace");
    let plan = world.plan(23 * HOUR);
    assert_eq!((plan.now.chunks, plan.later.chunks), (0, 1));
    assert_eq!(world.round(24 * HOUR).await, 0, "perhaps within its last second");
    assert_eq!(world.round(24 * HOUR + 1).await, 1);
    assert_eq!(world.stored(), 1);
    assert!(world.memory.objects().contains_key(&key::chunk(live)));
    // Its row goes when its deletion is over.
    assert_eq!(world.rows(), 2);
    let now = world.meta.steady_secs() + SETTLE.as_secs() as i64 + 2;
    world.round(now).await;
    assert_eq!(world.rows(), 1);

    // Dead for long, but after the older checkpoint.
    world.kill(live);
    world.record();
    tick(&world.meta, now, GRACE).unwrap();
    world.checkpoint();
    assert_eq!(world.round(now + 48 * HOUR).await, 0);
    assert_eq!(world.plan(now + 48 * HOUR).by_checkpoints.chunks, 1);
    world.checkpoint();
    assert_eq!(world.round(now + 48 * HOUR).await, 1);
}

#[tokio::test]
async fn t9_after_any_amount_of_overwriting_what_is_stored_settles() {
    let mut world = World::new();
    let mut live: Vec<ChunkHash> = Vec::new();
    let start = world.meta.steady_secs();
    let mut most = 0;
    for hour in 0..24 * 14 {
        let now = start + hour * HOUR;
        // Every hour all three are overwritten; every day there is a checkpoint.
        for hash in std::mem::take(&mut live) {
            world.kill(hash);
        }
        for _ in 0..3 {
            live.push(world.chunk().await);
        }
        if hour % 24 == 0 {
            world.checkpoint();
        }
        world.round(now).await;
        let stored: BTreeSet<String> = world.memory.objects().keys().cloned().collect();
        assert!(live.iter().all(|hash| stored.contains(&key::chunk(*hash))), "what lives is never collected");
        if hour > 24 * 4 {
            most = most.max(world.stored());
        }
    }
    // Three an hour: those of the time of grace and of two days between checkpoints.
    assert!((3 * 24..=3 * 24 * 3 + 6).contains(&most), "{most}");
    assert!(world.rows() < 3 * 24 * 5, "{}", world.rows());
}

#[tokio::test]
async fn t9_what_a_crash_or_an_outage_interrupts_is_gone_on_with_and_loses_nothing() {
    let mut world = World::new();
    let mut dead = Vec::new();
    for _ in 0..10 {
        dead.push(world.chunk().await);
    }
    let live = world.chunk().await;
    dead.iter().for_each(|hash| world.kill(*hash));
    world.record();
    world.checkpoint();
    world.checkpoint();
    tick(&world.meta, 0, GRACE).unwrap();
    let horizon = world.plan(24 * HOUR + 1).horizon.seq();
    // The fourth DELETE is applied and its answer lost, then nothing answers any more.
    let deletes = std::sync::atomic::AtomicUsize::new(0);
    let faulty = FaultyTarget::new(world.target(), move |call| {
        if call.operation != "delete" {
            return Fault::None;
        }
        match deletes.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            0..3 => Fault::None,
            3 => Fault::LostReply,
            _ => Fault::Refuse(target::Kind::Unreachable, target::Class::Temporary),
        }
    });
    let failing: DynTarget = Arc::new(faulty);
    assert!(matches!(collect(&world.meta, &failing, bit(), horizon, NO_PAUSE).await, Err(Error::Target(_))));
    assert_eq!(world.stored(), 7);
    let all_gone = |hash: &ChunkHash| world.meta.is_leaving(bit(), *hash).unwrap();
    assert!(dead.iter().all(all_gone), "no bit is left for what may be gone");
    // The next mount has no horizon yet, and goes on all the same.
    assert_eq!(collect(&world.meta, &world.target(), bit(), None, NO_PAUSE).await.unwrap(), 7);
    assert_eq!(world.stored(), 1);
    assert!(world.memory.objects().contains_key(&key::chunk(live)));
}

#[tokio::test]
async fn t7_nothing_is_collected_beside_a_higher_writer() {
    let mut world = World::new();
    let dead = world.chunk().await;
    world.kill(dead);
    world.record();
    world.checkpoint();
    world.checkpoint();
    tick(&world.meta, 0, GRACE).unwrap();
    let horizon = world.plan(24 * HOUR + 1).horizon.seq();
    let other = key::writer(Epoch(9), crate::id::WriterId(7));
    world.target().put(&other, b"{}".to_vec().into(), Existing::Refuse).await.unwrap();
    assert!(matches!(collect(&world.meta, &world.target(), bit(), horizon, NO_PAUSE).await, Err(Error::Fenced)));
    assert_eq!(world.stored(), 1);
}

#[test]
fn checkpoints_are_taken_for_garbage_that_outweighs_what_lives() {
    let plan = |bytes, stored| Plan {
        bit: bit(),
        name: "a".into(),
        horizon: Horizon { checkpoint: None, grace: None },
        now: Amount::default(),
        later: Amount { chunks: 1, bytes },
        by_checkpoints: Amount { chunks: 1, bytes },
        stored,
    };
    let slack = 32 << 20;
    assert!(!plan(slack / 2, 1 << 40).wants_checkpoints(0, slack), "little is not worth two checkpoints");
    assert!(plan(slack, slack + 1).wants_checkpoints(0, slack));
    assert!(!plan(slack, (2 << 30) + slack).wants_checkpoints(1 << 30, slack));
    assert!(plan(slack, (2 << 30) + slack + 1).wants_checkpoints(1 << 30, slack));
}

#[tokio::test]
async fn t5_what_the_last_change_of_all_set_free_goes_too() {
    let mut world = World::new();
    let dead = world.chunk().await;
    // It dies by a commit that fills a place taken before: the journal does not grow by it.
    let head = world.meta.head().next();
    world
        .meta
        .write(|tx| {
            let sql = "UPDATE chunk SET bytes_referenced = 0, dead_seq = ?2 WHERE hash = ?1";
            Ok(tx.conn().execute(sql, params![dead, head])?)
        })
        .unwrap();
    let ship = || {
        let sql = "UPDATE target SET shipped_seq = (SELECT max(seq) FROM journal)";
        world.meta.write(|tx| Ok(tx.conn().execute(sql, [])?)).unwrap();
    };
    tick(&world.meta, 0, GRACE).unwrap();
    assert_eq!(world.meta.head().next(), head, "it may go on at any moment");
    tick(&world.meta, IDLE_SECS, GRACE).unwrap();
    assert_eq!(world.meta.head(), head);
    ship();
    tick(&world.meta, 2 * IDLE_SECS, GRACE).unwrap();
    assert_eq!(world.meta.head(), head, "one step is enough");
    world.checkpoint();
    world.checkpoint();
    assert_eq!(world.round(2 * IDLE_SECS + 24 * HOUR + 1).await, 1);
}
