//! The real write path, real rows and two targets in memory; time is what the tests say.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::chunk::evict::Evictor;
use crate::chunk::file::ChunkFiles;
use crate::chunk::open::OpenFiles;
use crate::chunk::space::{Limits, Space};
use crate::clock;
use crate::format::key;
use crate::gc;
use crate::id::{ChunkHash, Epoch, ExportId, InodeId, SegmentNumber, TargetBit};
use crate::meta::history::{self, empty_store};
use crate::meta::share::Share;
use crate::meta::slot::SlotRequest;
use crate::meta::target::{Configured, Mode};
use crate::meta::{Created, journal, testing};
use crate::read::{Fetcher, Outcome as Read, Reader, Source};
use crate::replication::source;
use crate::target::memory::MemoryTarget;
use crate::target::{DynTarget, Existing};
use crate::write::iomode::Wish;
use crate::write::opening::{Handle, NoKernel};
use crate::write::pipeline::Pipeline;
use crate::write::{Files, Options};

const CHUNK: u64 = 64 << 10;
const HOUR: Duration = Duration::from_secs(3600);
const GRACE: Duration = Duration::from_secs(24 * 3600);

fn policy() -> Policy {
    Policy {
        chunk_size: CHUNK,
        rate: 1 << 30,
        // A 64th of the default, as chunks are.
        min_garbage: 4 * CHUNK,
        quiet: Duration::from_secs(600),
        settle: Duration::from_secs(60),
        pieces_max: 8,
        lag_max: 16 * CHUNK,
    }
}

struct World {
    dir: tempfile::TempDir,
    meta: Arc<Meta>,
    files: Arc<Files>,
    open_files: Arc<OpenFiles>,
    evictor: Arc<Evictor>,
    fetcher: Arc<Fetcher>,
    reader: Reader,
    compactor: Compactor,
    targets: Vec<MemoryTarget>,
    /// Targets that nothing reaches now.
    down: Vec<usize>,
    now: Instant,
    secs: i64,
    random: u64,
    /// What each file must hold.
    model: BTreeMap<Vec<u8>, (InodeId, Vec<u8>)>,
    pipeline: Option<Pipeline>,
    runtime: tokio::runtime::Runtime,
}

impl World {
    /// Three quarters of every gathered chunk are of no use any more.
    fn with_sparse_chunks() -> World {
        let mut world = World::new();
        for n in 0..200u32 {
            let bytes = world.noise(4_000);
            world.write(format!("{n}").as_bytes(), 0, &bytes);
        }
        world.settle();
        world.ship();
        for n in (0..200u32).filter(|n| n % 4 != 0) {
            world.remove(format!("{n}").as_bytes());
        }
        world.settle();
        world.ship();
        world
    }

    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let created = Created {
            filesystem: crate::id::FilesystemId::random(),
            name: "t".into(),
            chunk_size: CHUNK,
            time: clock::Timestamp::EPOCH,
        };
        let meta = Arc::new(Meta::create(&dir.path().join("meta.sqlite"), &created).unwrap());
        let of = |name: &str| Configured { name: name.into(), uri: format!("memory://{name}"), id: None };
        meta.register_targets(&[of("a"), of("b")]).unwrap();
        meta.write(|tx| {
            tx.make_root(0o755, 0, 0, clock::Timestamp::EPOCH)?;
            Ok(tx.conn().execute("UPDATE target SET initialised = 1", [])?)
        })
        .unwrap();
        meta.begin_mount(Epoch(0), "boot").unwrap();
        let open_files = Arc::new(OpenFiles::new(ChunkFiles::new(dir.path()).unwrap()));
        let space = Arc::new(Space::new(dir.path(), Limits { used_max: 1 << 40, free_min: 0 }, 0));
        let evictor = Arc::new(Evictor::new(meta.clone(), open_files.clone(), space.clone()));
        let (files, queue) = Files::new(Options {
            meta: meta.clone(),
            open_files: open_files.clone(),
            space: space.clone(),
            evictor: evictor.clone(),
        })
        .unwrap();
        let pipeline = Pipeline::start(&files, queue, 1, CHUNK).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let fetcher =
            Fetcher::new(meta.clone(), open_files.clone(), space.clone(), evictor.clone(), runtime.handle().clone());
        let reader =
            Reader::new(meta.clone(), files.clone(), open_files.clone(), evictor.clone(), fetcher.clone(), CHUNK);
        let rewriter = Rewriter {
            meta: meta.clone(),
            open_files: open_files.clone(),
            space,
            evictor: evictor.clone(),
            fetcher: fetcher.clone(),
        };
        let compactor = Compactor::new(meta.clone(), rewriter, policy());
        let world = World {
            dir,
            meta,
            files,
            open_files,
            evictor,
            fetcher,
            reader,
            compactor,
            targets: vec![MemoryTarget::new(), MemoryTarget::new()],
            down: Vec::new(),
            now: Instant::START + HOUR,
            secs: clock::now().secs(),
            random: 1,
            model: BTreeMap::new(),
            pipeline: Some(pipeline),
            runtime,
        };
        world.read_from(&[0, 1]);
        world
    }

    fn read_from(&self, targets: &[usize]) {
        let source = |index: &usize| Source {
            bit: bit(*index),
            name: index.to_string(),
            target: Arc::new(self.targets[*index].clone()),
            priority: 0,
        };
        self.fetcher.set_sources(targets.iter().map(source).collect());
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.random >> 33) % below
    }

    fn noise(&mut self, length: u64) -> Vec<u8> {
        (0..length).map(|_| self.random(256) as u8).collect()
    }

    /// Writes into a file, which is made if it is not there, and closes it.
    fn write(&mut self, name: &[u8], offset: u64, bytes: &[u8]) {
        let ino = match self.model.get(name) {
            Some((ino, _)) => *ino,
            None => self.meta.write(|tx| Ok(testing::file(tx, name))).unwrap(),
        };
        self.open(ino);
        self.files.write(ino, offset, bytes).unwrap();
        self.close(ino);
        let (_, content) = self.model.entry(name.to_vec()).or_insert((ino, Vec::new()));
        let end = offset as usize + bytes.len();
        content.resize(content.len().max(end), 0);
        content[offset as usize..end].copy_from_slice(bytes);
    }

    fn open(&self, ino: InodeId) {
        let wish = Wish { reads: true, writes: true, ..Wish::default() };
        self.files.open(ino, InodeId::ROOT, &wish, None, &mut NoKernel::default()).unwrap();
    }

    fn close(&self, ino: InodeId) {
        self.files.flush(ino).unwrap();
        self.files.release(ino, Handle::from_number(0)).unwrap();
    }

    fn remove(&mut self, name: &[u8]) {
        let (ino, _) = self.model.remove(name).unwrap();
        let place = crate::meta::namespace::Place {
            parent: InodeId::ROOT,
            name: crate::meta::namespace::Name::new(name).unwrap(),
        };
        self.meta.write(|tx| tx.unlink(place, clock::Timestamp::EPOCH)).unwrap();
        self.meta.write(|tx| tx.remove_orphans(&[ino])).unwrap();
    }

    fn settle(&self) {
        assert!(self.files.wait_settled(clock::instant() + Duration::from_secs(300)), "sessions are committed");
        self.evictor.round(&AtomicBool::new(false), || false).unwrap();
    }

    /// Places what targets lack and ships all records to those that are up, as far as chunks allow.
    fn ship(&self) {
        for index in (0..self.targets.len()).filter(|index| !self.down.contains(index)) {
            let mut after = ChunkId(0);
            loop {
                let page = self.meta.chunks_to_place(bit(index), after, 1000).unwrap();
                self.meta.release(&page.unneeded).unwrap();
                for chunk in &page.chunks {
                    let sources = self.meta.chunk_sources(chunk.id).unwrap().unwrap();
                    let mut files = source::Files::new(self.open_files.files());
                    let (local, _) = source::open(&mut files, 99, &sources);
                    let body = match local {
                        Some(checked) => checked.into_body(),
                        None => self.anywhere(chunk.hash).into(),
                    };
                    let target: DynTarget = Arc::new(self.targets[index].clone());
                    let key = key::chunk(chunk.hash);
                    self.runtime.block_on(target.put(&key, body, Existing::Replace)).unwrap();
                    self.meta.place(bit(index), &[chunk.id]).unwrap();
                }
                after = page.cursor;
                if page.end {
                    break;
                }
            }
            let head = self.meta.head();
            self.meta
                .write(|tx| {
                    let sql = "UPDATE target SET shipped_seq = ?1, position = ?1 WHERE bit = ?2";
                    Ok(tx.conn().execute(sql, rusqlite::params![head, bit(index)])?)
                })
                .unwrap();
        }
    }

    fn anywhere(&self, chunk: ChunkHash) -> bytes::Bytes {
        let found = self.targets.iter().find_map(|target| target.objects().get(&key::chunk(chunk)).cloned());
        found.expect("somebody has it")
    }

    fn checkpoint(&self, index: usize) {
        let (seq, export) = (self.meta.head(), ExportId::random());
        self.meta.begin_checkpoint(bit(index), seq, export, SegmentNumber(1)).unwrap();
        assert!(self.meta.complete_checkpoint(bit(index), seq, export, 1, Default::default()).unwrap());
        let rows = self.meta.checkpoints(bit(index)).unwrap();
        for row in &rows[..rows.len().saturating_sub(2)] {
            self.meta.forget_checkpoint(bit(index), row.seq, row.export).unwrap();
        }
    }

    /// A round of GC, as the mount makes it.
    fn collect(&self) {
        gc::tick(&self.meta, self.secs, GRACE).unwrap();
        self.ship();
        let live = self.meta.live_sums().unwrap().live_bytes;
        for row in self.meta.targets().unwrap().iter().filter(|row| gc::is_due(row)) {
            let index = usize::from(row.bit.index());
            if self.down.contains(&index) {
                continue;
            }
            let plan = || gc::Plan::of(&self.meta, row, self.secs, GRACE).unwrap();
            if plan().wants_checkpoints(live, 2 * policy().min_garbage) {
                self.checkpoint(index);
                self.checkpoint(index);
            }
            let target: DynTarget = Arc::new(self.targets[index].clone());
            let collected = gc::collect(&self.meta, &target, row.bit, plan().horizon.seq(), Duration::ZERO);
            self.runtime.block_on(collected).unwrap();
        }
    }

    /// Compacts until nothing is left to do; returns the bytes written.
    fn compact(&mut self) -> u64 {
        let mut written = 0;
        for _ in 0..100_000 {
            match self.compactor.round(self.now).unwrap() {
                Outcome::Idle | Outcome::Held(_) => return written,
                Outcome::Walked => {}
                Outcome::Wrote(bytes) => written += bytes,
            }
            self.ship();
        }
        panic!("it does not end");
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.secs += time.as_secs() as i64;
    }

    /// An hour: what is committed is shipped, quiet is waited for, compacted and collected.
    fn hour(&mut self) {
        self.settle();
        self.ship();
        self.compact();
        self.pass(HOUR / 2);
        self.compact();
        self.pass(HOUR / 2);
        self.ship();
        self.collect();
        self.settle();
    }

    fn stored(&self, index: usize) -> u64 {
        let objects = self.targets[index].objects();
        objects.iter().filter(|(key, _)| key.starts_with("chunks/")).map(|(_, body)| body.len() as u64).sum()
    }

    fn live(&self) -> u64 {
        self.model.values().map(|(_, content)| content.len() as u64).sum()
    }

    /// Evicts all that may go.
    fn evict(&self) {
        let ids = self.meta.chunk_files(crate::id::ChunkFileId(0), 1 << 20).unwrap();
        for id in ids {
            if let Some(gone) = self.meta.evict(id).unwrap() {
                self.open_files.forget(&gone.name);
                self.open_files.files().remove(&gone.name).unwrap();
            }
        }
    }

    fn read(&self, ino: InodeId, length: usize) -> Vec<u8> {
        let mut buffer = Vec::new();
        match self.reader.read(ino, 0..length as u64 + 1, &mut buffer).unwrap() {
            Read::Ready => buffer,
            Read::Pending(rest) => self.runtime.block_on(rest).unwrap(),
        }
    }

    /// Every file reads as it must, from here and from each target that is up alone; replay leads to what is here.
    fn check(&self) {
        let all = |from: &str| {
            for (name, (ino, content)) in &self.model {
                let found = self.read(*ino, content.len());
                assert!(found == *content, "{} from {from}", String::from_utf8_lossy(name));
            }
        };
        all("here");
        for index in (0..self.targets.len()).filter(|index| !self.down.contains(index)) {
            self.runtime.block_on(self.fetcher.landed());
            self.evict();
            self.read_from(&[index]);
            all(&format!("target {index}"));
        }
        self.runtime.block_on(self.fetcher.landed());
        self.read_from(&[0, 1]);
        let records = self
            .meta
            .read(|conn| {
                let mut rows = conn.prepare("SELECT seq, body FROM journal ORDER BY seq")?;
                let rows: Vec<(crate::id::Seq, Vec<u8>)> =
                    rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<rusqlite::Result<_>>()?;
                rows.into_iter().map(|(seq, body)| journal::decode(seq, &body)).collect::<meta::Result<Vec<_>>>()
            })
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let replayed = empty_store(dir.path());
        replayed.write(|tx| records.iter().try_for_each(|record| tx.replay(record))).unwrap();
        let extents = |meta: &Meta| {
            let lines = history::dump(meta).into_iter();
            lines.filter(|line| line.matches("Integer").count() == 4 && line.contains("Blob")).collect::<Vec<_>>()
        };
        assert_eq!(extents(&self.meta), extents(&replayed));
    }

    /// After any amount of this, with the time of grace over, little more is stored than lives.
    fn settles(mut self, hours: usize, mut work: impl FnMut(&mut World, usize)) {
        for hour in 0..hours {
            work(&mut self, hour);
            self.hour();
            if hour % 24 == 23 {
                (0..self.targets.len()).for_each(|index| self.checkpoint(index));
            }
        }
        // Everything is quiet; nobody changes anything any more.
        for _ in 0..30 {
            self.hour();
        }
        let live = self.live();
        // The slack is to a chunk what 64 MiB are to one of 4 MiB.
        let most = 2 * live + 16 * CHUNK;
        for index in 0..self.targets.len() {
            let stored = self.stored(index);
            assert!(stored <= most, "target {index} stores {stored} of {live} live bytes, more than {most}");
        }
        self.check();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(pipeline) = self.pipeline.take() {
            pipeline.stop();
        }
        assert!(self.dir.path().exists());
    }
}

fn bit(index: usize) -> TargetBit {
    TargetBit::new(index as u8).unwrap()
}

/// Long forms by hand.
fn hours(short: usize) -> usize {
    std::env::var("TANDEMFS_HOURS").map_or(short, |text| text.parse().expect("it is a number"))
}

#[test]
fn s10_random_overwrites_of_a_large_file_settle_under_twice_what_lives() {
    let mut world = World::new();
    let bytes = world.noise(40 * CHUNK);
    world.write(b"large", 0, &bytes);
    world.settles(hours(12), |world, _| {
        for _ in 0..4 {
            let ino = world.model[&b"large"[..]].0;
            world.open(ino);
            for _ in 0..20 {
                let (offset, bytes) = (world.random(40 * CHUNK / 4096) * 4096, world.noise(4096));
                world.files.write(ino, offset, &bytes).unwrap();
                let content = &mut world.model.get_mut(&b"large"[..]).unwrap().1;
                content[offset as usize..][..4096].copy_from_slice(&bytes);
            }
            world.close(ino);
            world.settle();
        }
    });
}

#[test]
fn s10_rewritten_small_files_and_appended_logs_settle_under_twice_what_lives() {
    let mut world = World::new();
    for n in 0..200u32 {
        let length = 500 + world.random(6_000);
        let bytes = world.noise(length);
        world.write(format!("small {n}").as_bytes(), 0, &bytes);
    }
    world.settles(hours(12), |world, hour| {
        for _ in 0..30 {
            let name = format!("small {}", world.random(200));
            let length = 500 + world.random(6_000);
            let bytes = world.noise(length);
            world.write(name.as_bytes(), 0, &bytes);
        }
        for n in 0..3 {
            let log = format!("log {}", (hour / 6 + n) % 5);
            let end = world.model.get(log.as_bytes()).map_or(0, |(_, content)| content.len() as u64);
            let bytes = world.noise(300);
            world.write(log.as_bytes(), end, &bytes);
        }
    });
}

#[test]
fn s10_when_most_of_every_gathered_chunk_is_deleted_the_rest_is_gathered_anew() {
    let mut world = World::new();
    for n in 0..1000u32 {
        let bytes = world.noise(3_000);
        world.write(format!("{n}").as_bytes(), 0, &bytes);
    }
    world.hour();
    world.settles(1, |world, _| {
        for n in (0..1000u32).filter(|n| n % 5 < 4) {
            world.remove(format!("{n}").as_bytes());
        }
        assert!(world.stored(0) > 2 * world.live() + 16 * CHUNK, "all of it stays alive by what is left");
    });
}

#[test]
fn o5_sessions_that_are_open_and_copies_by_reference_go_on_above_it() {
    let mut world = World::new();
    for n in 0..100u32 {
        let bytes = world.noise(4_000);
        world.write(format!("{n}").as_bytes(), 0, &bytes);
    }
    world.settle();
    world.ship();
    // One is open with changes, one is read, one is there twice by reference.
    let (edited, read) = (world.model[&b"4"[..]].0, world.model[&b"9"[..]].0);
    let copy = world.meta.write(|tx| Ok(testing::file(tx, b"copy"))).unwrap();
    let slot = SlotRequest { whole: false, ..testing::slot_request(copy, 1 << 40, 0) };
    let share = Share { from: read, at: 0, to_at: 0, length: 4_000, slot };
    assert_eq!(world.meta.write(|tx| tx.share_content(&share)).unwrap().unwrap().length, 4_000);
    let content = world.model[&b"9"[..]].1.clone();
    world.model.insert(b"copy".to_vec(), (copy, content));
    world.ship();
    world.open(edited);
    world.files.write(edited, 1_000, b"not sealed yet").unwrap();
    world.open(read);
    for n in (0..100u32).filter(|n| n % 5 != 4) {
        world.remove(format!("{n}").as_bytes());
    }
    world.settle();
    world.ship();
    let generation = world.meta.inode(read).unwrap();
    world.compact();
    world.pass(HOUR);
    assert!(world.compact() > 0);
    assert_eq!(world.meta.inode(read).unwrap(), generation, "no reader sees a change");
    world.close(edited);
    world.close(read);
    world.model.get_mut(&b"4"[..]).unwrap().1[1_000..1_014].copy_from_slice(b"not sealed yet");
    world.settle();
    world.ship();
    let left: u64 =
        world.meta.sparse_chunks(ChunkId(0), 99).unwrap().iter().map(|chunk| chunk.length - chunk.live).sum();
    assert!(left < policy().min_garbage, "{left}");
    world.check();
}

#[test]
fn s10_a_file_in_many_pieces_becomes_one_when_it_is_quiet() {
    let mut world = World::new();
    let bytes = world.noise(2 * CHUNK);
    world.write(b"f", 0, &bytes);
    for n in 0..40 {
        let bytes = world.noise(700);
        world.write(b"f", (n * 7 % 40) * 1_600, &bytes);
        world.settle();
    }
    world.ship();
    let ino = world.model[&b"f"[..]].0;
    let pieces = |world: &World| {
        let manifest = world.meta.inode(ino).unwrap().manifest.unwrap();
        world.meta.area(manifest, 0, 2 * CHUNK).unwrap().len()
    };
    assert!(pieces(&world) > 40, "{}", pieces(&world));
    assert_eq!(world.compact(), 0, "it may still change");
    world.pass(Duration::from_secs(599));
    let bytes = world.noise(10);
    world.write(b"f", 5, &bytes);
    world.settle();
    world.ship();
    assert_eq!(world.compact(), 0, "it did");
    world.pass(Duration::from_secs(601));
    assert!(world.compact() > 0);
    assert!(pieces(&world) <= 9, "{}", pieces(&world));
    world.check();
}

#[test]
fn s10_nothing_is_rewritten_while_a_target_lags_and_one_that_is_resynced_hinders_nobody() {
    let mut world = World::new();
    for n in 0..400u32 {
        let bytes = world.noise(4_000);
        world.write(format!("{n}").as_bytes(), 0, &bytes);
    }
    world.settle();
    world.ship();
    world.down.push(1);
    for n in (0..400u32).filter(|n| n % 5 != 4) {
        world.remove(format!("{n}").as_bytes());
    }
    let bytes = world.noise(17 * CHUNK);
    world.write(b"for the other", 0, &bytes);
    world.settle();
    world.ship();
    world.compact();
    world.pass(HOUR);
    assert_eq!(world.compact(), 0);
    let held = world.compactor.seen().lock().held.clone();
    assert_eq!(held.as_deref(), Some("target \"b\" lags"));
    // It is given up as a follower: the other one is looked after.
    crate::replication::resync::begin(&world.meta, bit(1), "b", "test").unwrap();
    assert!(world.compact() > 0);
    world.ship();
    // It comes back, is given what the present state has, and follows again.
    world.down.clear();
    world.ship();
    world.checkpoint(1);
    assert_eq!(world.meta.targets().unwrap()[1].mode, Mode::Follow);
    for _ in 0..30 {
        world.hour();
    }
    world.check();
}

#[test]
fn what_is_not_local_is_fetched_and_what_is_wrong_is_never_renamed() {
    let mut world = World::with_sparse_chunks();
    world.evict();
    // The copies of one target are wrong, all of them.
    for body in world.targets[0].objects().values_mut() {
        let mut wrong = body.to_vec();
        wrong[7] ^= 1;
        *body = wrong.into();
    }
    world.compact();
    world.pass(HOUR);
    assert!(world.compact() > 0);
    assert!(world.fetcher.counters().wrong.load(Ordering::Relaxed) > 0, "they were met");
    world.ship();
    world.down.push(0);
    world.check();
    // Nobody has right ones: nothing is made of them.
    let mut world = World::with_sparse_chunks();
    let files = world.meta.chunk_files(crate::id::ChunkFileId(0), 1 << 20).unwrap();
    assert!(!files.is_empty());
    world.evict();
    world.targets.iter().for_each(|target| target.objects().clear());
    world.compact();
    world.pass(HOUR);
    let head = world.meta.head();
    assert_eq!(world.compact(), 0);
    assert_eq!(world.meta.head(), head, "no record");
}

#[test]
fn s5_local_bytes_that_match_their_checksum_and_not_their_name_get_no_new_one() {
    let mut world = World::with_sparse_chunks();
    let rows: Vec<(i64, String, u64, u64)> = world
        .meta
        .read(|conn| {
            let mut rows = conn.prepare(
                "SELECT l.place, f.name, l.file_offset, l.length FROM (SELECT chunk * 1000000 + file AS place, * FROM location) l \
                 JOIN chunk_file f ON f.id = l.file",
            )?;
            let number = |row: &rusqlite::Row<'_>, column| row.get::<_, i64>(column).map(|value| value as u64);
            let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?, number(row, 2)?, number(row, 3)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .unwrap();
    assert!(!rows.is_empty());
    for (row, name, offset, length) in rows {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::options().read(true).write(true).open(world.dir.path().join(name)).unwrap();
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, offset).unwrap();
        bytes[0] ^= 1;
        file.write_all_at(&bytes, offset).unwrap();
        let crc32c = crate::write::seal::crc32c(&bytes);
        let sql = "UPDATE location SET crc32c = ?2 WHERE chunk * 1000000 + file = ?1";
        world.meta.write(|tx| Ok(tx.conn().execute(sql, rusqlite::params![row, crc32c])?)).unwrap();
    }
    world.compact();
    world.pass(HOUR);
    assert!(world.compact() > 0);
    world.ship();
    // Whoever was not rewritten is read from the targets, too.
    world.evict();
    world.check();
}
