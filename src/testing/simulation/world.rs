//! One world: its mount, its time, its weather, its end.
//!
//! Owns: the order in which things happen, mounting as the daemon does, kills and power cuts, the end in which everything
//! drains. Does not own: what programs do (`programs`), what must hold of a target (`oracle`).

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::Runtime;

use super::acks::Wait;
use super::oracle::Truth;
use super::place::{Character, Place};
use super::programs::{Crash, Programs};
use super::repacks;
use super::trace::Trace;
use crate::chance::{self, Seeded};
use crate::chunk::evict::Evictor;
use crate::chunk::file::ChunkFiles;
use crate::chunk::open::OpenFiles;
use crate::chunk::space::{Limits, Space};
use crate::clock::{self, Instant, simulated};
use crate::compaction::Compactor;
use crate::config::{Acknowledge, Policy};
use crate::id::{FilesystemId, TargetBit};
use crate::meta::history::dump;
use crate::meta::target::{Configured, FOR_EVER, Mode, TargetRow};
use crate::meta::{Created, Meta, Options};
use crate::mount::acknowledge::{Acknowledging, Late};
use crate::mount::attention::Noticed;
use crate::mount::collector::Collector;
use crate::mount::live::Live;
use crate::mount::replication::{Replica, Replication};
use crate::mount::upkeep::{self, Resyncs};
use crate::mount::verify::Verified;
use crate::read::{Fetcher, Reader, Source};
use crate::recovery;
use crate::replication::checkpoint::Thresholds;
use crate::replication::contact::{self, Asked, Verdict};
use crate::replication::gate::Gate;
use crate::replication::resync::{self, Watch};
use crate::scrub::{Level, Pass};
use crate::target::pace::{Limit, Rate};
use crate::vfs::Vfs;
use crate::vfs::acknowledge::Policies;
use crate::write::pipeline::Stepped;
use crate::write::slots::Rotation;
use crate::write::{self, Files};

const CHUNK: u64 = 64 << 10;
/// Steps of a world before its faults end.
const STEPS: usize = 70;
/// Everything must have drained so long after the faults ended.
const DRAIN: Duration = Duration::from_secs(6 * 3600);
/// Nothing that a world waits for takes longer.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What a world came to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Life {
    pub history: u64,
    pub kills: u64,
    pub cuts: u64,
    pub acks: u64,
    pub resyncs: u64,
    pub checkpoints: u64,
    pub deletions: u64,
    pub evictions: u64,
    pub repacks: u64,
    pub replaced: u64,
    pub restores: u64,
    pub calls: u64,
    pub records: u64,
}

impl Life {
    pub(super) fn add(&mut self, other: &Life) {
        self.history ^= other.history;
        self.kills += other.kills;
        self.cuts += other.cuts;
        self.acks += other.acks;
        self.resyncs += other.resyncs;
        self.checkpoints += other.checkpoints;
        self.deletions += other.deletions;
        self.evictions += other.evictions;
        self.repacks += other.repacks;
        self.replaced += other.replaced;
        self.restores += other.restores;
        self.calls += other.calls;
        self.records += other.records;
    }
}

/// How everything is configured in a world: small, so that every bound is met.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tuning {
    pub grace: Duration,
    thresholds: Thresholds,
    acknowledge: Acknowledge,
    used_max: u64,
    rotation: Rotation,
    /// The last target may lose what it has confirmed.
    lies: bool,
    late_checkpoints: bool,
}

impl Tuning {
    fn draw(seed: u64, random: &mut Seeded) -> Tuning {
        let policies = [Policy::Local, Policy::Local, Policy::Targets(1), Policy::Quorum, Policy::All];
        let limits = resync::Limits {
            rows_max: [6, 25, 1_000_000][random.below(3)],
            superseded_min: 1 << 16,
            ..resync::Limits::default()
        };
        Tuning {
            grace: Duration::from_secs([30, 120, 600][random.below(3)]),
            thresholds: Thresholds {
                bytes: 1 << [9, 11, 26][random.below(3)],
                objects: [2, 5, 1_000][random.below(3)],
                look: Duration::from_secs(4),
                resync: limits,
                ..Thresholds::default()
            },
            acknowledge: Acknowledge {
                close: if random.below(6) == 0 { Policy::Quorum } else { Policy::Cached },
                fsync: policies[random.below(policies.len())],
                deadline: Duration::from_secs(60),
            },
            used_max: [100 << 10, 1 << 20, 1 << 30][random.below(3)],
            rotation: Rotation { synced_after: Duration::from_secs(2), after: Duration::from_secs(60) },
            lies: random.below(4) == 0,
            late_checkpoints: seed % 4 == 3,
        }
    }
}

/// What lives as long as a mount. Dropped in this order: first all tasks, wherever they are.
pub(super) struct Mounted {
    pub runtime: Runtime,
    pub vfs: Arc<Vfs>,
    live: Arc<Live>,
    collector: Arc<Collector>,
    pub fetcher: Arc<Fetcher>,
    evictor: Arc<Evictor>,
    pub compactor: Compactor,
    pipeline: Stepped,
    watch: Watch,
    idle_since: BTreeMap<TargetBit, Instant>,
    looked: Instant,
}

pub(super) struct World {
    pub seed: u64,
    pub random: Seeded,
    pub trace: Trace,
    pub mounted: Option<Mounted>,
    pub dir: tempfile::TempDir,
    pub filesystem: FilesystemId,
    pub tuning: Tuning,
    /// The configured targets.
    pub places: Vec<Place>,
    pub programs: Programs,
    pub truth: Truth,
    pub waits: Vec<Wait>,
    pub life: Life,
    boot: u64,
    /// Targets so far: each place is another one.
    made: u64,
    _time: simulated::Guard,
}

impl Drop for World {
    fn drop(&mut self) {
        self.mounted = None;
        chance::simulated::seed(None);
    }
}

impl World {
    pub(super) fn new(seed: u64) -> World {
        let time = simulated::begin();
        chance::simulated::seed(Some(!seed));
        let mut random = Seeded(seed);
        let shm = std::path::Path::new("/dev/shm");
        let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
        let filesystem = FilesystemId::random();
        let created = Created { filesystem, name: "sim".into(), chunk_size: CHUNK, time: clock::now() };
        std::fs::create_dir(dir.path().join("state")).unwrap();
        let meta = Meta::create(&dir.path().join("state/meta.sqlite"), &created).unwrap();
        meta.write(|tx| tx.make_root(0o755, 0, 0, clock::now())).unwrap();
        let tuning = Tuning::draw(seed, &mut random);
        let mut world = World {
            seed,
            random,
            trace: Trace::default(),
            mounted: None,
            dir,
            filesystem,
            tuning,
            places: vec![],
            programs: Programs::new(),
            truth: Truth::default(),
            waits: vec![],
            life: Life::default(),
            boot: 1,
            made: 0,
            _time: time,
        };
        for name in ["aws", "oss", "nas"] {
            let place = world.new_place(name);
            world.places.push(place);
        }
        world
    }

    fn new_place(&mut self, name: &str) -> Place {
        self.made += 1;
        Place::new(name, self.filesystem, self.seed ^ self.made << 48, self.trace.clone())
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(super) fn meta(&self) -> Arc<Meta> {
        self.vfs().meta().clone()
    }

    pub(super) fn vfs(&self) -> Arc<Vfs> {
        self.mounted.as_ref().expect("mounted").vfs.clone()
    }

    pub(super) fn collector(&self) -> Arc<Collector> {
        self.mounted.as_ref().expect("mounted").collector.clone()
    }

    pub(super) fn live(&self) -> Arc<Live> {
        self.mounted.as_ref().expect("mounted").live.clone()
    }

    /// Lets tasks go on.
    pub(super) fn run(&mut self, turns: usize) {
        let Some(mounted) = &self.mounted else { return };
        mounted.runtime.block_on(async {
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
        });
    }

    /// Waits for something that needs time to pass.
    pub(super) fn drive<T>(&mut self, what: &str, future: impl Future<Output = T>) -> T {
        let World { places, truth, mounted, seed, .. } = self;
        let alone;
        let runtime = match &*mounted {
            Some(mounted) => &mounted.runtime,
            None => {
                alone = runtime();
                &alone
            }
        };
        runtime.block_on(async {
            let mut future = pin!(future);
            let began = clock::instant();
            loop {
                let polled = poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
                if let Poll::Ready(value) = polled {
                    return value;
                }
                tokio::task::yield_now().await;
                tokio::task::yield_now().await;
                assert!(clock::instant().since(began) < PATIENCE, "world {seed}: {what} does not end");
                if let Some(mounted) = &*mounted {
                    truth.learn(&mounted.live.meta, &mounted.live.replication.journal_holds());
                }
                pass(places, simulated::until_next().unwrap_or(Duration::from_millis(100)));
            }
        })
    }

    /// Lets time pass, from one moment at which something happens to the next.
    pub(super) fn advance(&mut self, duration: Duration) {
        // What a call of a program did, it did before.
        if self.mounted.is_some() {
            self.learn();
        }
        let mut left = duration;
        while !left.is_zero() {
            let next = simulated::until_next().unwrap_or(left).min(left);
            pass(&self.places, next);
            left -= next;
            self.run(2);
            self.learn();
            if next.is_zero() {
                left = left.saturating_sub(Duration::from_micros(1));
            }
        }
        self.check_answers();
    }

    /// Mounts, as the daemon does: asks all targets, takes an epoch, recovers, starts everything.
    pub(super) fn mount(&mut self, crash: Option<Crash>) {
        let state = self.state();
        let meta = Arc::new(Meta::open(&state.join("meta.sqlite"), &Options::default()).unwrap());
        let configured: Vec<Configured> = self
            .places
            .iter()
            .map(|place| Configured { name: place.name.clone(), uri: format!("memory://{}", place.name), id: None })
            .collect();
        let rows = meta.register_targets(&configured).unwrap().configured;
        let asked: Vec<Asked> = rows.iter().zip(&self.places).map(|(row, place)| asked(row, place)).collect();
        let survey =
            self.drive("survey", async { contact::survey(&meta, &asked, Duration::from_secs(5)).await }).unwrap();
        for (answer, place) in survey.answers.iter().zip(&self.places) {
            let conflict = matches!(answer.verdict, Ok(Verdict::Conflict { .. }));
            assert!(
                !conflict || place.was_misread() || place.has_lied(),
                "world {}: {}: {:?}",
                self.seed,
                answer.name,
                answer.verdict
            );
        }
        let boot = format!("boot {}", self.boot);
        let rebooted = meta.begin_mount(survey.seen, &boot).unwrap().rebooted;
        let open_files = Arc::new(OpenFiles::new(ChunkFiles::new(&state).unwrap()));
        let used = meta.chunk_file_bytes().unwrap();
        let limits = Limits { used_max: self.tuning.used_max, free_min: 0 };
        let space = Arc::new(Space::new(&state, limits, used));
        let evictor = Arc::new(Evictor::new(meta.clone(), open_files.clone(), space.clone()));
        let (files, queue) = Files::new(write::Options {
            meta: meta.clone(),
            open_files: open_files.clone(),
            space: space.clone(),
            evictor: evictor.clone(),
        })
        .unwrap();
        let runtime = runtime();
        let fetcher =
            Fetcher::new(meta.clone(), open_files.clone(), space.clone(), evictor.clone(), runtime.handle().clone());
        let compactor = repacks::compactor(self.seed, CHUNK, &meta, &open_files, &space, &evictor);
        let reader = Reader::new(meta.clone(), files.clone(), open_files, evictor.clone(), fetcher.clone(), CHUNK);
        let vfs = Arc::new(Vfs::new(reader, space.clone()).unwrap());
        let report = recovery::recover(&meta, &files, rebooted).unwrap();
        if rebooted {
            meta.note_boot(&boot).unwrap();
        }
        self.trace.note(format_args!("mounted {} {rebooted} {report:?}", meta.head()));
        let replicas = rows.iter().zip(asked).map(|(row, asked)| Replica {
            asked,
            concurrency: None,
            paused: row.paused_until.is_some(),
        });
        let replication = {
            let _runtime = runtime.enter();
            Replication::start(&meta, &files, replicas.collect(), self.tuning.thresholds).unwrap()
        };
        let live = Arc::new(Live {
            meta: meta.clone(),
            files: files.clone(),
            space,
            replication,
            noticed: Noticed::new(report.lost, fetcher.clone(), Arc::default(), vec![]),
            late: Late::default(),
            resyncs: Resyncs::default(),
            verified: Verified::default(),
            compaction: Arc::default(),
            requests: Arc::default(),
            chunk_size: CHUNK,
        });
        let policies = Policies::load(self.tuning.acknowledge, &meta).unwrap();
        vfs.acknowledge_by(policies, Box::new(Acknowledging(live.clone())));
        let collector = Arc::new(Collector::new(live.clone(), self.tuning.grace, 1 << 12));
        runtime.spawn(collector.clone().run());
        resync::settle(&meta).and_then(|()| resync::sweep_retired(&meta)).unwrap();
        let watch = Watch::new(meta, live.replication.journal_holds(), self.tuning.thresholds.resync);
        let pipeline = Stepped::new(&files, queue, CHUNK);
        let (idle_since, looked) = (BTreeMap::new(), clock::instant());
        self.mounted = Some(Mounted {
            runtime,
            vfs,
            live,
            collector,
            fetcher,
            evictor,
            compactor,
            pipeline,
            watch,
            idle_since,
            looked,
        });
        self.tell_fetcher();
        self.learn();
        if let Some(crash) = crash {
            self.check_recovered(crash);
        }
    }

    fn tell_fetcher(&self) {
        let mounted = self.mounted.as_ref().expect("mounted");
        let rows = self.meta().targets().unwrap();
        let source = |place: &Place| {
            let bit = rows.iter().find(|row| row.name == place.name)?.bit;
            Some(Source { bit, name: place.name.clone(), target: Arc::new(place.clone()), priority: 0 })
        };
        mounted.fetcher.set_sources(self.places.iter().filter_map(source).collect());
    }

    pub(super) fn row(&self, index: usize) -> TargetRow {
        let name = &self.places[index].name;
        self.meta().targets().unwrap().into_iter().find(|row| row.name == *name).expect("it has a row")
    }

    /// The daemon dies; what is on its way to a target has happened, or happens later, or never.
    fn crash(&mut self, crash: Crash) {
        self.trace.note(format_args!("{crash:?}"));
        match crash {
            Crash::Kill => self.life.kills += 1,
            Crash::PowerCut => {
                self.life.cuts += 1;
                self.boot += 1;
            }
        }
        self.check_calls();
        self.waits.clear();
        self.mounted = None;
        if self.random.below(3) == 0 {
            self.recover_once_more();
        }
        self.mount(Some(crash));
    }

    /// A recovery that a kill interrupts right at its end changes nothing for the next one.
    fn recover_once_more(&mut self) {
        let recover = |world: &World| {
            let state = world.state();
            let meta = Arc::new(Meta::open(&state.join("meta.sqlite"), &Options::default()).unwrap());
            let open_files = Arc::new(OpenFiles::new(ChunkFiles::new(&state).unwrap()));
            let space = Arc::new(Space::new(&state, Limits { used_max: 1 << 40, free_min: 0 }, 0));
            let evictor = Arc::new(Evictor::new(meta.clone(), open_files.clone(), space.clone()));
            let options = write::Options { meta: meta.clone(), open_files, space, evictor };
            let boot = format!("boot {}", world.boot);
            let rebooted = meta.is_rebooted(&boot).unwrap();
            let (files, _queue) = Files::new(options).unwrap();
            recovery::recover(&meta, &files, rebooted).unwrap();
            (dump(&meta), meta.head())
        };
        let once = recover(self);
        assert_eq!(recover(self), once, "world {}: recovery twice is not recovery once", self.seed);
    }

    fn weather(&mut self) {
        let index = self.random.below(self.places.len());
        let random = &mut self.random;
        let mut share = |shares: [u64; 4]| shares[random.below(4)];
        let (refuses, throttles) = (share([0, 0, 5, 30]), share([0, 0, 0, 20]));
        let (loses_replies, hangs, tears) = (share([0, 0, 5, 30]), share([0, 0, 2, 10]), share([0, 0, 5, 20]));
        let (reads_wrong, reads_short) = (share([0, 0, 0, 6]), share([0, 0, 0, 6]));
        let character = Character {
            refuses,
            throttles,
            loses_replies,
            hangs,
            tears,
            reads_wrong,
            reads_short,
            stale: random.below(8) == 0,
            slow: random.below(6) == 0,
            full: random.below(8) == 0,
            down: random.below(4) == 0,
            keeps_chunks_out: false,
        };
        self.places[index].is_now(character);
        self.trace.note(format_args!("{} is {character:?}", self.places[index].name));
        if self.tuning.lies && index == self.places.len() - 1 && self.random.below(2) == 0 {
            self.places[index].damage(&mut self.random);
        }
    }

    /// What the daemon's threads do now and then.
    pub(super) fn tend(&mut self) {
        let mounted = self.mounted.as_mut().expect("mounted");
        let live = mounted.live.clone();
        live.files.tick(&self.tuning.rotation).unwrap();
        let before = live.space.used();
        mounted.evictor.round(&AtomicBool::new(false), || false).unwrap();
        self.life.evictions += u64::from(live.space.used() < before);
        if clock::instant().since(mounted.looked) >= Duration::from_secs(5) {
            mounted.looked = clock::instant();
            for bit in mounted.watch.look().unwrap() {
                self.life.resyncs += 1;
                live.replication.walk_anew(bit);
            }
            upkeep::count(&live, &mut mounted.idle_since).unwrap();
        }
        self.compact();
    }

    /// Sealers and committer.
    fn seal(&mut self) {
        let sessions = self.random.below(4);
        let mounted = self.mounted.as_mut().expect("mounted");
        for _ in 0..=sessions {
            mounted.pipeline.seal();
        }
        if self.random.below(3) > 0 {
            self.mounted.as_mut().expect("mounted").pipeline.commit().unwrap();
            self.learn();
        }
    }

    /// They do everything that there is to do.
    pub(super) fn seal_all(&mut self) {
        let mounted = self.mounted.as_mut().expect("mounted");
        while mounted.pipeline.seal() {}
        mounted.pipeline.commit().unwrap();
        self.learn();
    }

    /// The operator pauses a target, lets it go on, gives it another place, asks for a checkpoint or for GC.
    fn operate(&mut self) {
        let index = self.random.below(self.places.len());
        let (row, live) = (self.row(index), self.live());
        match self.random.below(7) {
            0 if row.paused_until.is_none() => {
                self.meta().set_paused(row.bit, Some(FOR_EVER)).unwrap();
                self.drive("pause", async { live.replication.pause(row.bit).await });
            }
            0 | 1 if row.paused_until.is_some() => self.resume(index),
            2 => self.replace(index),
            3 | 4 => {
                let collector = self.collector();
                self.mounted.as_ref().expect("mounted").runtime.spawn(async move { collector.now().await });
            }
            _ => {
                let runtime = &self.mounted.as_ref().expect("mounted").runtime;
                runtime.spawn(async move { live.replication.checkpoint(&[row.bit]).await });
            }
        }
        self.trace.note(format_args!("operated on {}", row.name));
    }

    fn resume(&mut self, index: usize) {
        let row = self.row(index);
        self.meta().set_paused(row.bit, None).unwrap();
        self.live().replication.resume(row.bit);
    }

    /// A target gets another, empty place: what only the old one has must be had from here.
    fn replace(&mut self, index: usize) {
        let (row, meta) = (self.row(index), self.meta());
        let mut without = crate::meta::target_set::Without::default();
        let mut after = crate::id::ChunkId(0);
        while let Some(last) = meta.count_without(row.bit, after, 1000, &mut without).unwrap() {
            after = last;
        }
        if without.lost_chunks > 0 || self.places.iter().any(|place| place.has_lied()) {
            // An operator would have to force it.
            return;
        }
        self.life.replaced += 1;
        let live = self.live();
        self.drive("remove", async { live.replication.remove(row.bit).await });
        meta.remove_target(row.bit).unwrap();
        resync::settle(&meta).and_then(|()| resync::sweep_retired(&meta)).unwrap();
        let place = self.new_place(&row.name);
        self.places[index] = place.clone();
        let bit = meta.new_target(&place.name, &format!("memory://{}", place.name)).unwrap();
        self.tell_fetcher();
        let asked = Asked { bit, name: place.name.clone(), target: Arc::new(place) };
        let mounted = self.mounted.as_ref().expect("mounted");
        let _runtime = mounted.runtime.enter();
        live.replication.add(Replica { asked, concurrency: None, paused: false });
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..=44 => self.program(),
            45..=61 => self.seal(),
            62..=69 => self.weather(),
            70..=73 => self.operate(),
            74 => self.crash(Crash::Kill),
            75 => {
                let crash = if self.random.below(2) == 0 { Crash::Kill } else { Crash::PowerCut };
                self.crash(crash);
            }
            76..=78 => {
                let index = self.random.below(self.places.len());
                self.check_target(index);
            }
            79 => {
                if let Some(ino) = self.programs.files.keys().next().copied()
                    && let Some(content) = self.read(ino)
                {
                    assert!(content == *self.programs.files[&ino].now(), "world {}: {ino} reads wrong", self.seed);
                }
            }
            81..=90 => {
                let duration = Duration::from_millis(20 << self.random.below(8));
                self.advance(duration);
                self.compact();
            }
            80 => {
                let grace = self.tuning.grace;
                self.advance(grace);
                let mounted = self.mounted.as_ref().expect("mounted");
                let collector = mounted.collector.clone();
                mounted.runtime.spawn(async move { collector.now().await });
            }
            91..=96 => {
                let duration = Duration::from_secs(1 << self.random.below(8));
                self.advance(duration);
                self.compact();
            }
            _ => self.tend(),
        }
        let turns = self.random.below(6);
        self.run(turns);
        self.check_answers();
        self.check_calls();
    }

    /// The whole life of a world.
    pub(super) fn live_on(&mut self) {
        self.mount(None);
        for step in 0..STEPS {
            self.step();
            if self.tuning.late_checkpoints && step % 20 == 10 {
                self.late_checkpoint();
            }
        }
        self.places.iter().for_each(|place| place.is_now(Character::default()));
        match self.random.below(3) {
            0 => self.crash(Crash::Kill),
            1 => {
                // Unmounted in order: nothing is under way any more.
                let live = self.live();
                self.drive("stop", async { live.replication.stop().await });
                self.crash(Crash::Kill);
            }
            _ => {}
        }
        for index in 0..self.places.len() {
            if self.row(index).paused_until.is_some() {
                self.resume(index);
            }
        }
        self.drain();
        self.check_local(true);
        self.scrub();
        self.drain();
        self.check_whole();
        if self.random.below(2) == 0 {
            self.age();
        }
        self.check_calls();
        for index in 0..self.places.len() {
            self.life.checkpoints += self.meta().checkpoints(self.row(index).bit).unwrap().len() as u64;
        }
        self.life.records = self.truth.records.len() as u64;
    }

    pub(super) fn whole_life(mut self) -> Life {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.live_on()));
        self.life.history = self.trace.hash();
        self.life.calls = self.places.iter().map(Place::calls).sum();
        let life = self.life;
        if let Err(panic) = outcome {
            eprintln!("world {} at {:?}, {life:?}, {:?}", self.seed, simulated::now(), self.tuning);
            std::panic::resume_unwind(panic);
        }
        life
    }

    /// Much is overwritten and removed, and the time of grace passes: garbage goes, and nothing else.
    fn age(&mut self) {
        for _ in 0..12 {
            self.program();
        }
        self.drain();
        for _ in 0..2 {
            let patience = self.tuning.grace + Duration::from_secs(90);
            self.advance(patience);
            let collector = self.collector();
            self.drive("gc", async { collector.now().await }).unwrap();
            self.check_calls();
        }
        self.drain();
        for place in &self.places {
            let needed: std::collections::BTreeSet<String> = self
                .meta()
                .read(|conn| {
                    let mut rows = conn.prepare("SELECT hash FROM chunk WHERE dead_seq IS NULL")?;
                    let rows = rows.query_map([], |row| Ok(crate::format::key::chunk(row.get(0)?)))?;
                    Ok(rows.collect::<rusqlite::Result<_>>()?)
                })
                .unwrap();
            let there: std::collections::BTreeSet<String> =
                place.memory.objects().keys().filter(|key| key.starts_with("chunks/")).cloned().collect();
            let missing: Vec<_> = needed.difference(&there).collect();
            assert!(missing.is_empty(), "world {}: {} lost {missing:?} to GC", self.seed, place.name);
        }
        self.check_local(true);
        self.check_whole();
    }

    /// Nothing fails any more: everything gets everywhere.
    pub(super) fn drain(&mut self) {
        for ino in self.programs.files.keys().copied().collect::<Vec<_>>() {
            if self.programs.files[&ino].handle.is_some() {
                self.close_for_good(ino);
            }
        }
        let began = clock::instant();
        loop {
            self.seal_all();
            self.tend();
            let (rows, head) = (self.meta().targets().unwrap(), self.meta().head());
            let live = self.live();
            let open = self.meta().has_open_slot(head).unwrap();
            let whole = |row: &TargetRow| {
                row.shipped_seq == head && row.mode == Mode::Follow && live.replication.gate(row.bit) == Gate::Open
            };
            if !open && rows.iter().all(whole) && self.waits.is_empty() {
                break;
            }
            for (row, place) in rows.iter().zip(&self.places) {
                if matches!(live.replication.gate(row.bit), Gate::Fenced { .. }) {
                    assert!(place.was_misread() || place.has_lied(), "world {}: {} is fenced", self.seed, place.name);
                    // An operator sees that nobody else writes there.
                    live.replication.recheck(row.bit);
                }
            }
            let waited = clock::instant().since(began);
            if waited >= DRAIN {
                let ill: Vec<_> = rows
                    .iter()
                    .map(|row| (row, live.replication.gate(row.bit), live.replication.complaint(row.bit)))
                    .collect();
                let waits = self.waits.len();
                panic!("world {}: not drained up to {head}, open slots: {open}, {waits} wait: {ill:#?}", self.seed);
            }
            self.advance(Duration::from_secs(if waited < Duration::from_secs(30) { 1 } else { 10 }));
        }
    }

    fn close_for_good(&mut self, ino: crate::id::InodeId) {
        let handle = self.programs.files[&ino].handle.expect("it is open");
        self.vfs().flush(ino).unwrap();
        self.vfs().release(ino, handle).unwrap();
        let file = self.programs.files.get_mut(&ino).expect("it is known");
        file.handle = None;
        file.placed = file.version();
    }

    /// Every byte of every copy is looked at. What a target lost or spoiled after it had confirmed it is found, and put right.
    fn scrub(&mut self) {
        for index in 0..self.places.len() {
            for repair in [true, false] {
                let place = self.places[index].clone();
                let pass = Pass {
                    meta: self.meta(),
                    files: self.vfs().files().chunk_files().clone(),
                    bit: self.row(index).bit,
                    source: crate::restore::Source {
                        target: Arc::new(place.clone()),
                        name: place.name.clone(),
                        uri: String::new(),
                    },
                    level: Level::Deep,
                    repair,
                    limit: Limit::new(Rate::Unlimited),
                };
                let report = self.drive("scrub", pass.run_on_chunks()).unwrap();
                let may_find = repair && place.has_lied();
                assert!(may_find || report.bad == 0, "world {}: {report:?}", self.seed);
                assert!(report.is_clean() && report.unverifiable == 0, "world {}: {report:?}", self.seed);
            }
        }
    }
}

fn asked(row: &TargetRow, place: &Place) -> Asked {
    Asked { bit: row.bit, name: row.name.clone(), target: Arc::new(place.clone()) }
}

/// No timers and no threads: whatever asked for real time would panic.
fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

fn pass(places: &[Place], duration: Duration) {
    simulated::pass(duration);
    let now = simulated::now().unwrap_or_default();
    places.iter().for_each(|place| place.catch_up(now));
}
