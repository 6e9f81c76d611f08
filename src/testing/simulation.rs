//! Worlds: one seed, one filesystem with three targets that fail in every way, on a clock of its own.
//!
//! Real are the metadata store, the planner, the shipper with contact, selection and segments, and the restore; made up are
//! the clock, the order in which things happen, and the targets. One thread, one thing at a time, no randomness but the
//! seed's: a seed that fails, fails again.
//!
//! Owns: what happens in a world, the oracle (DESIGN §10). Does not own: chunk files, FUSE, checkpoints and resync.
//!
//! ```text
//! step: a change in the filesystem │ a transfer ends │ a shipper's pass │ time passes │ kill and remount │ faults come and go
//! end:  faults off ─▶ everything drains ─▶ every target alone restores to all of it, and all together too
//! ```
//!
//! At any moment, for each target: what it confirmed is on it; what it restores to is the history without what is missing,
//! and what is missing conflicts with nothing that is there (O6); all chunks that are named are there, unless it lost them.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::faulty::{Call, Fault, FaultyTarget};
use crate::clock::{self, Instant, Timestamp};
use crate::format::key::{self, Key};
use crate::format::record::{Change, Record, VoidReason};
use crate::format::segment;
use crate::id::{ChunkHash, FilesystemId, InodeId, Seq, SessionId, TargetBit};
use crate::meta::history::{assert_consistent, dump, empty_store_of};
use crate::meta::namespace::{Name, Place};
use crate::meta::rename::Move;
use crate::meta::slot::SlotRequest;
use crate::meta::target::Configured;
use crate::meta::testing::{file, fill_slot, slot_request};
use crate::meta::{Created, Meta, Options, journal};
use crate::replication::backoff::Backoff;
use crate::replication::conflicts::{Deferred, Footprint};
use crate::replication::contact::{self, Asked, Me};
use crate::replication::gate::{Gate, gate};
use crate::replication::planner::{Config, Effect, Event, Planner, TargetEvent};
use crate::replication::selection::Order;
use crate::replication::shipper::{Pace, Shared, Stepped};
use crate::restore::{self, Source};
use crate::target::memory::MemoryTarget;
use crate::target::{Class, DynTarget, Existing, Kind};

const NAMES: [&str; 3] = ["aws", "oss", "nas"];
/// Steps of a world before its faults end.
const STEPS: usize = 120;
/// Steps in which everything must have drained after that.
const DRAIN: usize = 3000;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// How a target fails: out of 100 calls so many.
#[derive(Debug, Clone, Copy, Default)]
struct Character {
    refuses: u64,
    throttles: u64,
    loses_replies: u64,
    reads_wrong: u64,
    reads_short: u64,
    full: bool,
    down: bool,
    /// It forgets objects that it has confirmed: what it restores to is nobody's promise.
    forgets: bool,
}

struct Target {
    bit: TargetBit,
    memory: MemoryTarget,
    faulty: DynTarget,
    character: Arc<Mutex<Character>>,
    /// What it forgot.
    forgotten: BTreeSet<String>,
    /// The highest seq up to which it confirmed everything.
    confirmed: Seq,
}

/// What lives as long as a mount.
struct Mounted {
    meta: Arc<Meta>,
    planner: Planner,
    shippers: Vec<Stepped>,
    gates: Vec<Gate>,
    flights: Vec<(TargetBit, Effect)>,
}

struct World {
    seed: u64,
    random: Random,
    dir: tempfile::TempDir,
    now: Instant,
    targets: Vec<Target>,
    mounted: Option<Mounted>,
    filesystem: FilesystemId,
    next_session: u64,
    /// Open slots.
    open: Vec<(InodeId, SessionId)>,
    /// Names in the root and their inodes.
    names: BTreeMap<Vec<u8>, InodeId>,
    contents: BTreeMap<ChunkHash, Bytes>,
    /// All records that have their content.
    truth: BTreeMap<Seq, Change>,
    /// Slots that an fsync reserved.
    synced: BTreeSet<Seq>,
    kills: u64,
}

fn time(seq: u64) -> Timestamp {
    Timestamp::new(1_000_000 + seq as i64, 0).expect("no nanoseconds")
}

impl Target {
    fn new(index: usize, seed: u64) -> Target {
        let memory = MemoryTarget::new();
        let character = Arc::new(Mutex::new(Character::default()));
        let (seen, calls) = (Arc::clone(&character), AtomicU64::new(0));
        let hook = move |call: Call<'_>| {
            let count = calls.fetch_add(1, Ordering::Relaxed);
            let character = *seen.lock();
            let draw = Random(seed ^ (index as u64) << 32 ^ count.wrapping_mul(0x2545_f491_4f6c_dd1d)).next() % 100;
            let bounds = [
                character.refuses,
                character.throttles,
                character.loses_replies,
                character.reads_wrong,
                character.reads_short,
            ];
            let mut sum = 0;
            let which = bounds.iter().position(|share| {
                sum += share;
                draw < sum
            });
            let put = call.operation == "put";
            match which {
                _ if character.down => Fault::Refuse(Kind::Unreachable, Class::Temporary),
                _ if put && character.full => Fault::Refuse(Kind::Full, Class::Temporary),
                Some(0) => Fault::Refuse(Kind::Failed, Class::Temporary),
                Some(1) => Fault::Refuse(Kind::Throttled, Class::Temporary),
                Some(2) => Fault::LostReply,
                // What is stored wrong in silence no store can be asked about; what is read wrong must be noticed.
                Some(3) if !put => Fault::WrongBytes,
                Some(4) if !put => Fault::ShortBody,
                _ => Fault::None,
            }
        };
        let faulty = Arc::new(FaultyTarget::new(Arc::new(memory.clone()), hook));
        let bit = TargetBit::new(index as u8).expect("three targets");
        Target { bit, memory, faulty, character, forgotten: BTreeSet::new(), confirmed: Seq::ZERO }
    }
}

impl World {
    fn new(seed: u64) -> World {
        let shm = Path::new("/dev/shm");
        let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
        let filesystem = FilesystemId(uuid::Uuid::from_u128(u128::from(seed) + 1));
        let created = Created { filesystem, name: "sim".into(), chunk_size: 1 << 16, time: Timestamp::EPOCH };
        let meta = Meta::create(&dir.path().join("meta.sqlite"), &created).unwrap();
        meta.write(|tx| tx.make_root(0o755, 0, 0, time(0))).unwrap();
        let configured = NAMES.map(|name| Configured { name: name.into(), uri: format!("memory://{name}"), id: None });
        meta.register_targets(&configured).unwrap();
        drop(meta);
        let mut world = World {
            seed,
            random: Random(seed),
            dir,
            now: clock::instant(),
            targets: (0..NAMES.len()).map(|index| Target::new(index, seed)).collect(),
            mounted: None,
            filesystem,
            next_session: 1,
            open: vec![],
            names: BTreeMap::new(),
            contents: BTreeMap::new(),
            truth: BTreeMap::new(),
            synced: BTreeSet::new(),
            kills: 0,
        };
        world.learn_from(&Meta::open(&world.store(), &Options::default()).unwrap());
        world
    }

    fn store(&self) -> std::path::PathBuf {
        self.dir.path().join("meta.sqlite")
    }

    fn meta(&self) -> Arc<Meta> {
        Arc::clone(&self.mounted.as_ref().expect("mounted").meta)
    }

    /// Mounts, as the daemon does: asks all targets, takes an epoch, starts everything.
    async fn mount(&mut self) {
        let meta = Arc::new(Meta::open(&self.store(), &Options::default()).unwrap());
        let asked: Vec<Asked> = self
            .targets
            .iter()
            .zip(NAMES)
            .map(|(target, name)| Asked { bit: target.bit, name: name.into(), target: target.faulty.clone() })
            .collect();
        let survey = contact::survey(&meta, &asked, Duration::from_secs(3600)).await.unwrap();
        for answer in &survey.answers {
            let forgot = !self.targets[usize::from(answer.bit.index())].forgotten.is_empty();
            // A target that lost objects may contradict itself; one that only fails never does.
            let conflict = matches!(answer.verdict, Ok(contact::Verdict::Conflict { .. }));
            let wrong_reads = self.targets[usize::from(answer.bit.index())].character.lock().reads_wrong > 0;
            assert!(!conflict || forgot || wrong_reads, "{}: {:?}", answer.name, answer.verdict);
        }
        meta.begin_mount(survey.seen, "boot").unwrap();
        let quick = Backoff { base: Duration::from_millis(5), max: Duration::from_millis(20) };
        let shared = Shared {
            meta: meta.clone(),
            me: Me::of(&meta, Timestamp::EPOCH).unwrap(),
            births: Arc::new(|_| HashSet::new()),
            can_wait: Arc::new(|| false),
            order: Order::Overtaking,
            pace: Pace {
                round: Duration::ZERO,
                urgent: Duration::ZERO,
                writers: Duration::ZERO,
                retry: quick,
                blocked: quick,
                local: Duration::ZERO,
            },
            holds: Arc::default(),
        };
        let shippers = self
            .targets
            .iter()
            .zip(NAMES)
            .map(|(target, name)| {
                let (keeper, _) = gate(Gate::Unknown);
                Stepped::new(shared.clone(), target.bit, name, target.faulty.clone(), keeper)
            })
            .collect();
        let planner = Planner::new(Config::default(), self.targets.iter().map(|target| (target.bit, None)), self.now);
        let gates = vec![Gate::Unknown; NAMES.len()];
        self.mounted = Some(Mounted { meta, planner, shippers, gates, flights: vec![] });
        self.event(Event::Tick);
    }

    fn event(&mut self, event: Event) {
        let random = self.random.next();
        let mounted = self.mounted.as_mut().expect("mounted");
        mounted.flights.extend(mounted.planner.handle(self.now, event, random));
    }

    /// Kills the daemon: what was on its way has happened, or not.
    async fn kill(&mut self) {
        self.kills += 1;
        let Some(mut mounted) = self.mounted.take() else { return };
        while let Some((bit, effect)) = mounted.flights.pop() {
            if let (Effect::Put(chunk, _), 0) = (effect, self.random.below(2)) {
                let body = self.contents[&chunk.hash].clone();
                let _ = self.targets[usize::from(bit.index())]
                    .faulty
                    .put(&key::chunk(chunk.hash), body.into(), Existing::Replace)
                    .await;
            }
        }
    }

    /// One change in the filesystem.
    fn change(&mut self) {
        let meta = self.meta();
        let at = time(meta.head().0 + 1);
        let name = vec![b'a' + self.random.below(12) as u8];
        let is_open = |world: &World, ino: InodeId| world.open.iter().any(|(open, _)| *open == ino);
        match self.random.below(10) {
            0..=3 if !self.names.contains_key(&name) => {
                let ino = meta.write(|tx| Ok(file(tx, &name))).unwrap();
                self.names.insert(name, ino);
            }
            4 | 5 => {
                // A file is written and closed: its slot is taken, its bytes come later.
                let Some(ino) = self.some_file() else { return };
                if is_open(self, ino) {
                    return;
                }
                let session = SessionId(self.next_session);
                self.next_session += 1;
                let fsynced = self.random.below(3) == 0;
                let request = SlotRequest { fsynced, ..slot_request(ino, session.0, 9) };
                let seq = meta.write(|tx| tx.reserve_slot(&request)).unwrap().unwrap();
                if fsynced {
                    self.synced.insert(seq);
                }
                self.open.push((ino, session));
            }
            6 => {
                // Written to again before its bytes were sealed: the slot is renewed, or moves.
                if self.open.is_empty() {
                    return;
                }
                let (ino, session) = self.open[self.random.below(self.open.len())];
                meta.write(|tx| tx.reserve_slot(&slot_request(ino, session.0, 9))).unwrap();
            }
            7 => {
                let Some((name, ino)) = self.some_name() else { return };
                if is_open(self, ino) {
                    return;
                }
                meta.write(|tx| tx.unlink(Place { parent: InodeId::ROOT, name: Name::new(&name).unwrap() }, at))
                    .unwrap();
                self.names.remove(&name);
            }
            8 => {
                let Some((from, ino)) = self.some_name() else { return };
                let replaced = self.names.get(&name).copied();
                if from == name || is_open(self, ino) || replaced.is_some_and(|other| is_open(self, other)) {
                    return;
                }
                let at_name = |name| Place { parent: InodeId::ROOT, name: Name::new(name).unwrap() };
                let request = Move { from: at_name(&from), to: at_name(&name), no_replace: false, time: at };
                meta.write(|tx| tx.rename(&request, None)).unwrap();
                self.names.remove(&from);
                self.names.insert(name, ino);
            }
            _ => self.seal(),
        }
        self.learn_from(&meta);
        self.event(Event::Added);
    }

    fn some_file(&mut self) -> Option<InodeId> {
        self.some_name().map(|(_, ino)| ino)
    }

    fn some_name(&mut self) -> Option<(Vec<u8>, InodeId)> {
        let count = self.names.len();
        if count == 0 {
            return None;
        }
        let index = self.random.below(count);
        self.names.iter().nth(index).map(|(name, ino)| (name.clone(), *ino))
    }

    /// The bytes of a slot come, or are lost.
    fn seal(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let meta = self.meta();
        let index = self.random.below(self.open.len());
        let (_, session) = self.open.swap_remove(index);
        let lost = self.random.below(8) == 0;
        meta.write(|tx| {
            if lost {
                let slot = tx.slot_of(session)?.expect("it is open");
                let why = VoidReason::Lost { size: 0, mtime: slot.mtime, ctime: slot.ctime };
                let (ino, generation) = (slot.ino, slot.generation);
                tx.end_slot(&slot, &Change::Void { ino, generation, why })?;
                tx.delete_session(session)
            } else {
                let body = format!("{:09}", session.0);
                let hash = ChunkHash::of(body.as_bytes());
                self.contents.insert(hash, body.into());
                fill_slot(tx, session.0, hash);
                Ok(())
            }
        })
        .unwrap();
    }

    /// Takes note of the records that have their content now.
    fn learn_from(&mut self, meta: &Meta) {
        let rows: Vec<(Seq, Vec<u8>)> = meta
            .read(|conn| {
                let mut rows = conn.prepare_cached("SELECT seq, body FROM journal WHERE body IS NOT NULL")?;
                Ok(rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<rusqlite::Result<_>>()?)
            })
            .unwrap();
        for (seq, body) in rows {
            let change = journal::decode(seq, &body).unwrap().change;
            let known = self.truth.entry(seq).or_insert_with(|| change.clone());
            assert_eq!(*known, change, "a record changed");
        }
    }

    /// A transfer, or another effect of the planner, comes to its end.
    async fn fly(&mut self) {
        let mounted = self.mounted.as_mut().expect("mounted");
        if mounted.flights.is_empty() {
            return;
        }
        let index = self.random.below(mounted.flights.len());
        let (bit, effect) = mounted.flights.swap_remove(index);
        let meta = Arc::clone(&mounted.meta);
        let target = self.targets[usize::from(bit.index())].faulty.clone();
        let event = match effect {
            Effect::Load { after, limit } => TargetEvent::Loaded(meta.chunks_to_place(bit, after, limit).unwrap()),
            Effect::Put(chunk, _) => {
                let body = self.contents[&chunk.hash].clone();
                match target.put(&key::chunk(chunk.hash), body.into(), Existing::Replace).await {
                    Ok(()) => TargetEvent::Sent(chunk.id),
                    Err(error) => TargetEvent::Failed(chunk.id, error.into()),
                }
            }
            Effect::Check(chunk) => match target.stat(&key::chunk(chunk.hash)).await {
                Ok(found) => TargetEvent::Checked(chunk.id, found),
                Err(error) => TargetEvent::Failed(chunk.id, error.into()),
            },
            Effect::Confirm(chunk) => match target.check_place().await {
                Ok(()) => {
                    meta.place(bit, &[chunk.id]).unwrap();
                    TargetEvent::Placed(vec![chunk.id])
                }
                Err(error) => TargetEvent::Unconfirmed(vec![chunk.id], error.into()),
            },
            Effect::Probe => match target.get(key::SUPERBLOCK, 64 << 10).await {
                Ok(_) => TargetEvent::Probed(Ok(())),
                Err(error) if matches!(error.kind, Kind::NotFound | Kind::Invalid) => TargetEvent::Probed(Ok(())),
                Err(error) => TargetEvent::Probed(Err(error.into())),
            },
        };
        self.event(Event::Target(bit, event));
    }

    /// A shipper does what it can.
    async fn ship(&mut self) {
        let index = self.random.below(self.targets.len());
        let mounted = self.mounted.as_mut().expect("mounted");
        let now = mounted.shippers[index].pass().await;
        let bit = self.targets[index].bit;
        self.targets[index].confirmed = mounted.meta.cursor(bit).unwrap().shipped_seq;
        if mounted.gates[index] != now {
            mounted.gates[index] = now.clone();
            self.event(Event::Target(bit, TargetEvent::Gate(now)));
        }
    }

    fn pass_time(&mut self) {
        let jump = match self.random.below(3) {
            0 => Duration::from_millis(1),
            1 => Duration::from_secs(1),
            _ => Duration::from_secs(120),
        };
        self.now = self.now + jump;
        self.event(Event::Tick);
    }

    fn weather(&mut self) {
        let index = self.random.below(self.targets.len());
        let share = |random: &mut Random| [0, 0, 5, 30][random.below(4)];
        let random = &mut self.random;
        let character = Character {
            refuses: share(random),
            throttles: share(random),
            loses_replies: share(random),
            reads_wrong: share(random) / 5,
            reads_short: share(random) / 5,
            full: random.below(6) == 0,
            down: random.below(5) == 0,
            // Only the last one lies, so that there is always somebody to hold the others against.
            forgets: index == 2 && random.below(6) == 0,
        };
        let target = &mut self.targets[index];
        *target.character.lock() = character;
        if character.forgets {
            let chunks: Vec<String> =
                target.memory.objects().keys().filter(|key| key.starts_with(key::CHUNKS)).cloned().collect();
            if !chunks.is_empty() {
                let lost = chunks[self.random.below(chunks.len())].clone();
                target.memory.objects().remove(&lost);
                target.forgotten.insert(lost);
            }
        }
    }

    async fn step(&mut self) {
        match self.random.below(100) {
            0..=34 => self.change(),
            35..=64 => self.fly().await,
            65..=84 => self.ship().await,
            85..=91 => self.pass_time(),
            92..=96 => self.weather(),
            97 => {
                self.kill().await;
                self.mount().await;
            }
            98 => {
                let index = self.random.below(self.targets.len());
                self.check(index).await;
            }
            _ => {
                self.seal();
                let meta = self.meta();
                self.learn_from(&meta);
                self.event(Event::Added);
            }
        }
    }

    /// What lies on a target, in whole units, in the order of replay; and whether all of it is sound.
    fn held(&self, target: &Target) -> Vec<Record> {
        let cursor = self.meta().cursor(target.bit).unwrap();
        let mut records = vec![];
        let mut unit = vec![];
        let objects = target.memory.objects().clone();
        let mut segments: Vec<_> = objects
            .iter()
            .filter_map(|(key, body)| match key::parse(key) {
                Key::Segment { epoch, writer, n } => Some((n, epoch, writer, body)),
                _ => None,
            })
            .collect();
        segments.sort_by_key(|(n, ..)| *n);
        for (n, epoch, writer, body) in segments {
            let place = segment::Place { filesystem: self.filesystem, target: cursor.id, epoch, writer, n };
            let decoded = segment::decode(body, &place).unwrap_or_else(|e| panic!("world {}: {e}", self.seed));
            unit.extend(decoded.records);
            if decoded.trailer.end {
                records.append(&mut unit);
            }
        }
        records
    }

    /// Everything that must hold of a target at any moment.
    async fn check(&self, index: usize) {
        let (seed, target) = (self.seed, &self.targets[index]);
        let name = NAMES[index];
        let held = self.held(target);
        let seqs: BTreeSet<Seq> = held.iter().map(|record| record.seq).collect();
        assert_eq!(seqs.len(), held.len(), "world {seed}: {name} has a record twice");
        for record in &held {
            assert_eq!(self.truth.get(&record.seq), Some(&record.change), "world {seed}: {name} has another history");
        }
        // Nothing that was confirmed is missing.
        for seq in 1..=target.confirmed.0 {
            assert!(
                seqs.contains(&Seq(seq)),
                "world {seed}: {name} confirmed up to {} and lacks {seq}",
                target.confirmed
            );
        }
        // O6: nothing on it overtook what it must not overtake.
        let footprints: BTreeMap<Seq, Footprint> = self
            .truth
            .iter()
            .map(|(seq, change)| {
                let footprint = Footprint::of(change);
                let fsynced = self.synced.contains(seq) && matches!(change, Change::Content(_));
                (*seq, if fsynced { footprint.fsynced() } else { footprint })
            })
            .collect();
        let mut missing = Deferred::new();
        for (seq, footprint) in &footprints {
            if seqs.contains(seq) {
                assert!(missing.admits(footprint), "world {seed}: {name} has {seq}, which overtook what it must not");
            } else {
                missing.insert(footprint);
            }
        }
        if !target.forgotten.is_empty() {
            return;
        }
        // Every chunk that is named is there, with its bytes.
        let objects = target.memory.objects().clone();
        for record in &held {
            let Change::Content(content) = &record.change else { continue };
            for (hash, _) in &content.chunks {
                let found = objects.get(&key::chunk(*hash)).map(|bytes| ChunkHash::of(bytes));
                assert_eq!(found, Some(*hash), "world {seed}: {name} names a chunk that it lacks");
            }
        }
        if !held.is_empty() {
            self.restores(&[index], &held).await;
        }
    }

    /// These targets restore to what these records lead to, applied in the order of history.
    async fn restores(&self, indexes: &[usize], held: &[Record]) {
        let seed = self.seed;
        let dir = tempfile::tempdir_in(self.dir.path()).unwrap();
        let source = |index: &usize| Source {
            target: Arc::new(self.targets[*index].memory.clone()),
            name: NAMES[*index].into(),
            uri: format!("memory://{}", NAMES[*index]),
        };
        let sources = indexes.iter().map(source).collect();
        let state = dir.path().join("state");
        let report = restore::restore(sources, &state, restore::Options::default()).await;
        let report = report.unwrap_or_else(|e| panic!("world {seed}: {indexes:?} cannot be restored: {e}"));
        assert_eq!(report.lost_chunks, 0, "world {seed}: {indexes:?}");
        let restored = Meta::open(&state.join("meta.sqlite"), &Options::default()).unwrap();
        std::fs::create_dir(dir.path().join("model")).unwrap();
        let model = empty_store_of(&dir.path().join("model"), self.filesystem);
        let mut in_order: Vec<&Record> = held.iter().collect();
        in_order.sort_by_key(|record| record.seq);
        model
            .write(|tx| in_order.iter().try_for_each(|record| tx.replay(record)))
            .unwrap_or_else(|e| panic!("world {seed}: {indexes:?}: {e}"));
        for meta in [&restored, &model] {
            meta.read(|conn| {
                assert_consistent(conn);
                Ok(())
            })
            .unwrap();
        }
        assert_eq!(dump(&restored), dump(&model), "world {seed}: {indexes:?} restores to something else");
    }

    /// The whole life of a world.
    async fn live(mut self) -> u64 {
        self.mount().await;
        for _ in 0..STEPS {
            self.step().await;
        }
        for target in &self.targets {
            *target.character.lock() = Character::default();
        }
        if self.random.below(2) == 0 {
            self.kill().await;
        } else {
            self.mounted = None;
        }
        self.mount().await;
        while !self.open.is_empty() {
            self.seal();
        }
        let meta = self.meta();
        self.learn_from(&meta);
        self.event(Event::Added);
        for step in 0.. {
            let whole = |target: &Target| {
                let fenced = matches!(
                    self.mounted.as_ref().expect("mounted").gates[usize::from(target.bit.index())],
                    Gate::Fenced { .. }
                );
                meta.cursor(target.bit).unwrap().shipped_seq == meta.head() || (fenced && !target.forgotten.is_empty())
            };
            if self.targets.iter().all(whole) {
                break;
            }
            let state: Vec<_> = self
                .targets
                .iter()
                .map(|t| (meta.cursor(t.bit).unwrap().shipped_seq, self.mounted.as_ref().unwrap().planner.view(t.bit)))
                .collect();
            assert!(step < DRAIN, "world {}: not drained up to {}: {state:#?}", self.seed, meta.head());
            self.fly().await;
            self.ship().await;
            if step % 8 == 7 {
                self.pass_time();
            }
        }
        let head = meta.head();
        assert_eq!(self.truth.len() as u64, head.0, "every record has its content");
        for index in 0..self.targets.len() {
            self.check(index).await;
        }
        let everything: Vec<Record> =
            self.truth.iter().map(|(seq, change)| Record { seq: *seq, change: change.clone() }).collect();
        self.restores(&[0, 1], &everything).await;
        self.kills
    }
}

/// Lives one world. A failure names the seed, and the same seed fails again.
fn run(seed: u64) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(World::new(seed).live())
}

#[test]
fn worlds_full_of_faults_lose_nothing_and_end_whole() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("it is a number"));
    let (first, count) = match number("TANDEMFS_WORLD") {
        Some(seed) => (seed, 1),
        None => (0, number("TANDEMFS_WORLDS").unwrap_or(100)),
    };
    let mut kills = 0;
    for seed in first..first + count {
        match std::panic::catch_unwind(|| run(seed)) {
            Ok(count) => kills += count,
            Err(panic) => {
                eprintln!("world {seed} failed: TANDEMFS_WORLD={seed} makes it again");
                std::panic::resume_unwind(panic);
            }
        }
    }
    eprintln!("{count} worlds, {kills} kills");
}
