//! From write to committed content and back, without a kernel: live files, sealers, committer, rows, reader, recovery.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::chunk::evict::Evictor;
use crate::chunk::file::ChunkFiles;
use crate::chunk::open::OpenFiles;
use crate::chunk::space::{Limits, Space};
use crate::clock;
use crate::id::InodeId;
use crate::meta::{self, Meta, testing};
use crate::read::{Fetcher, Outcome, Reader};
use crate::recovery;
use crate::write::io::Fallocate;
use crate::write::iomode::Wish;
use crate::write::opening::{Handle, NoKernel};
use crate::write::pipeline::Pipeline;
use crate::write::{Files, Options};

const CHUNK: u64 = 64 << 10;

/// A mount without a kernel and without targets.
pub(crate) struct Mount {
    pub(crate) meta: Arc<Meta>,
    pub(crate) files: Arc<Files>,
    /// What recovery found.
    pub(crate) report: recovery::Report,
    reader: Reader,
    evictor: Arc<Evictor>,
    space: Arc<Space>,
    pipeline: Option<Pipeline>,
    _runtime: tokio::runtime::Runtime,
}

impl Mount {
    fn new(dir: &std::path::Path, sealing: bool) -> Mount {
        Mount::after(dir, sealing, "boot")
    }

    /// The next mount; after a power cut if `boot` is another one than before.
    pub(crate) fn after(dir: &std::path::Path, sealing: bool, boot: &str) -> Mount {
        let meta = Arc::new(Meta::open(&dir.join("meta.sqlite"), &meta::Options::default()).unwrap());
        let rebooted = meta.begin_mount(crate::id::Epoch(0), boot).unwrap().rebooted;
        let open_files = Arc::new(OpenFiles::new(ChunkFiles::new(dir).unwrap()));
        let space = Arc::new(Space::new(dir, Limits { used_max: u64::MAX, free_min: 0 }, 0));
        let evictor = Arc::new(Evictor::new(meta.clone(), open_files.clone(), space.clone()));
        let (files, queue) = Files::new(Options {
            meta: meta.clone(),
            open_files: open_files.clone(),
            space: space.clone(),
            evictor: evictor.clone(),
        })
        .unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let fetcher =
            Fetcher::new(meta.clone(), open_files.clone(), space.clone(), evictor.clone(), runtime.handle().clone());
        let reader = Reader::new(meta.clone(), files.clone(), open_files, evictor.clone(), fetcher, CHUNK);
        let report = recovery::recover(&meta, &files, rebooted).unwrap();
        meta.note_boot(boot).unwrap();
        let pipeline = sealing.then(|| Pipeline::start(&files, queue, 2, CHUNK).unwrap());
        Mount { meta, files, report, reader, evictor, space, pipeline, _runtime: runtime }
    }

    pub(crate) fn create(&self, name: &[u8]) -> InodeId {
        let ino = self.meta.write(|tx| Ok(testing::file(tx, name))).unwrap();
        self.open(ino);
        ino
    }

    pub(crate) fn open(&self, ino: InodeId) {
        let wish = Wish { reads: true, writes: true, ..Wish::default() };
        self.files.open(ino, InodeId::ROOT, &wish, None, &mut NoKernel::default()).unwrap();
    }

    pub(crate) fn release(&self, ino: InodeId) {
        self.files.release(ino, Handle::from_number(0)).unwrap();
    }

    pub(crate) fn close(&self, ino: InodeId) {
        self.files.flush(ino).unwrap();
        self.release(ino);
    }

    pub(crate) fn settle(&self) {
        assert!(self.files.wait_settled(clock::instant() + Duration::from_secs(300)), "sessions are committed");
    }

    pub(crate) fn read(&self, ino: InodeId, offset: u64, size: u64) -> Vec<u8> {
        let mut buffer = Vec::new();
        match self.reader.read(ino, offset..offset + size, &mut buffer).unwrap() {
            Outcome::Ready => buffer,
            Outcome::Pending(_) => panic!("everything is local"),
        }
    }

    fn count(&self, sql: &str) -> i64 {
        self.meta.read(|conn| Ok(conn.query_row(sql, [], |row| row.get(0))?)).unwrap()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Some(pipeline) = self.pipeline.take() {
            pipeline.stop();
        }
    }
}

fn mount() -> (tempfile::TempDir, Mount) {
    let (dir, meta) = testing::store();
    drop(meta);
    let mount = Mount::new(dir.path(), true);
    (dir, mount)
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        })
        .collect()
}

#[test]
fn what_was_written_is_read_before_and_after_the_commit() {
    let (_dir, mount) = mount();
    let large = noise(3 * CHUNK as usize + 100, 1);
    let ino = mount.create(b"large");
    mount.files.write(ino, 0, &large).unwrap();
    assert_eq!(mount.read(ino, 0, 1 << 20), large);
    mount.close(ino);
    mount.settle();
    assert_eq!(mount.read(ino, 0, 1 << 20), large);
    assert_eq!(mount.count("SELECT count(*) FROM chunk"), 4);
    assert_eq!(mount.count("SELECT count(*) FROM slot"), 0);
    assert_eq!(mount.count("SELECT count(*) FROM session"), 0);
    assert_eq!(mount.count("SELECT count(*) FROM journal WHERE body IS NULL"), 0);
}

#[test]
fn an_overwrite_in_place_makes_one_small_chunk() {
    let (_dir, mount) = mount();
    let mut content = noise(3 * CHUNK as usize, 2);
    let ino = mount.create(b"a");
    mount.files.write(ino, 0, &content).unwrap();
    mount.close(ino);
    mount.settle();
    mount.open(ino);
    mount.files.write(ino, 70_000, b"hello").unwrap();
    content[70_000..70_005].copy_from_slice(b"hello");
    assert_eq!(mount.read(ino, 0, 1 << 20), content, "the base shows through");
    mount.close(ino);
    mount.settle();
    assert_eq!(mount.read(ino, 0, 1 << 20), content);
    assert_eq!(mount.count("SELECT count(*) FROM chunk WHERE length < 100"), 1);
}

#[test]
fn the_same_large_content_twice_is_one_set_of_chunks() {
    let (_dir, mount) = mount();
    let content = noise(2 * CHUNK as usize, 3);
    for name in [b"a", b"b"] {
        let ino = mount.create(name);
        mount.files.write(ino, 0, &content).unwrap();
        mount.close(ino);
    }
    mount.settle();
    assert_eq!(mount.count("SELECT count(*) FROM chunk"), 2);
}

#[test]
fn small_files_of_a_moment_share_chunks() {
    let (_dir, mount) = mount();
    let inodes: Vec<_> = (0..200u64)
        .map(|index| {
            let ino = mount.create(format!("f{index}").as_bytes());
            mount.files.write(ino, 0, &noise(500, index)).unwrap();
            mount.files.flush(ino).unwrap();
            ino
        })
        .collect();
    inodes.iter().for_each(|&ino| mount.release(ino));
    mount.settle();
    let chunks = mount.count("SELECT count(*) FROM chunk");
    assert!(chunks < 20, "200 files of 500 bytes took {chunks} chunks");
    for (index, &ino) in inodes.iter().enumerate() {
        assert_eq!(mount.read(ino, 0, 1000), noise(500, index as u64));
    }
}

#[test]
fn truncate_and_holes_read_as_zeros_in_every_layer() {
    let (_dir, mount) = mount();
    let ino = mount.create(b"a");
    mount.files.write(ino, 0, &[7; 20_000]).unwrap();
    mount.close(ino);
    mount.settle();
    mount.open(ino);
    mount.files.truncate(ino, 10_000, clock::now()).unwrap();
    mount.files.truncate(ino, 20_000, clock::now()).unwrap();
    mount.files.fallocate(ino, 1000..2000, Fallocate::Zero { keep_size: true }).unwrap();
    let mut expected = [vec![7; 10_000], vec![0; 10_000]].concat();
    expected[1000..2000].fill(0);
    assert_eq!(mount.read(ino, 0, 30_000), expected);
    mount.files.rotate().unwrap();
    assert_eq!(mount.read(ino, 0, 30_000), expected, "frozen");
    mount.settle();
    assert_eq!(mount.read(ino, 0, 30_000), expected, "committed");
    mount.close(ino);
}

/// Failed on xfs: the truncate was on disk after a power cut, what came after it was not.
#[test]
fn s3_what_an_fsync_promised_is_not_cut_off_or_punched_out_where_it_lies() {
    let (_dir, mount) = mount();
    for change in
        [(|files: &Files, ino| files.truncate(ino, 0, clock::now()).unwrap()) as fn(&Files, InodeId), |files, ino| {
            files.fallocate(ino, 0..4096, Fallocate::Zero { keep_size: true }).unwrap()
        }]
    {
        let ino = mount.create(mount.meta.head().to_string().as_bytes());
        mount.files.write(ino, 0, &[7; 8192]).unwrap();
        let session = |ino| mount.files.find(ino).unwrap().state.read().staged.as_ref().map(|staged| staged.id);
        change(&mount.files, ino);
        let before = session(ino);
        mount.files.write(ino, 0, &[7; 8192]).unwrap();
        assert_eq!(session(ino), before, "nothing was promised yet");
        mount.files.fsync(ino, clock::instant() + Duration::from_secs(300)).unwrap();
        assert_eq!(session(ino), before);
        change(&mount.files, ino);
        assert_ne!(session(ino), before, "what was promised lies in a session of its own");
        mount.close(ino);
        mount.settle();
    }
}

/// Files that are written one after the other, again and again, each round with its number.
struct Writers {
    files: Vec<InodeId>,
    rounds: AtomicU64,
    stop: Arc<AtomicBool>,
}

impl Writers {
    fn run(&self, mount: &Mount) {
        let _stop = StopWriting(self.stop.clone());
        for round in 1_u64.. {
            for ino in &self.files {
                mount.files.write(*ino, 0, &round.to_le_bytes()).unwrap();
            }
            self.rounds.store(round, Ordering::Release);
            if self.stop.load(Ordering::Acquire) {
                return;
            }
        }
    }
}

/// Ends writers, also after a panic.
struct StopWriting(Arc<AtomicBool>);

impl Drop for StopWriting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn o8_a_rotation_is_one_cut_through_files_that_are_being_written_and_ships_as_one_unit() {
    let (dir, meta) = testing::store();
    drop(meta);
    // Nobody seals: what was cut lies there to be looked at.
    let mount = Mount::new(dir.path(), false);
    let stop = Arc::new(AtomicBool::new(false));
    let writers = [b'a', b'b'].map(|group| Writers {
        files: (b'0'..b'4').map(|index| mount.create(&[group, index])).collect(),
        rounds: AtomicU64::new(0),
        stop: stop.clone(),
    });
    std::thread::scope(|scope| {
        let _stop = StopWriting(stop.clone());
        for writer in &writers {
            scope.spawn(|| writer.run(&mount));
        }
        for _ in 0..20 {
            let seen = writers.each_ref().map(|writer| writer.rounds.load(Ordering::Acquire));
            let moved = |(writer, seen): (&Writers, &u64)| writer.rounds.load(Ordering::Acquire) > seen + 1;
            while !writers.iter().zip(&seen).all(moved) {
                assert!(!stop.load(Ordering::Acquire), "a writer ended");
                std::thread::yield_now();
            }
            let before = mount.meta.head();
            let cut = mount.files.rotate().unwrap();
            for writer in &writers {
                let content = |ino: &InodeId| {
                    let file = mount.files.find(*ino).unwrap();
                    let frozen = file.state.read().frozen.front().unwrap().path.clone();
                    let bytes = std::fs::read(dir.path().join(frozen)).unwrap();
                    u64::from_le_bytes(bytes[..8].try_into().unwrap())
                };
                let cut: Vec<u64> = writer.files.iter().map(content).collect();
                let is_cut = cut.is_sorted_by(|one, next| one >= next) && cut[0] <= cut[3] + 1;
                assert!(is_cut, "no moment of the writer had {cut:?}");
            }
            // Its slots are one unit: each is joined with the next.
            let taken = cut.0 - before.0;
            assert_eq!(taken, 8, "every file was dirty");
            let joined = mount
                .meta
                .read(|conn| {
                    let sql = "SELECT count(*) FROM slot s WHERE s.seq > ?1 AND s.seq < ?2 \
                               AND EXISTS (SELECT 1 FROM unit u WHERE u.first <= s.seq AND u.last > s.seq)";
                    Ok(conn.query_row(sql, [before, cut], |row| row.get::<_, i64>(0))?)
                })
                .unwrap();
            assert_eq!(joined as u64, taken - 1);
        }
    });
}

/// What is synced while a cut is waited for comes before it.
#[test]
fn o8_a_cut_leaves_out_nothing_that_began_while_it_was_waited_for() {
    let (_dir, mount) = mount();
    let own = mount.create(b"own");
    mount.files.write(own, 0, b"own").unwrap();
    let file = mount.files.find(own).unwrap();
    let other = std::thread::scope(|scope| {
        let syncing = file.syncing.lock();
        let (begun, begins) = std::sync::mpsc::channel();
        let cut = scope.spawn({
            let mount = &mount;
            move || {
                begun.send(()).unwrap();
                mount.files.cut_for(own).unwrap();
            }
        });
        begins.recv().unwrap();
        let other = mount.create(b"other");
        mount.files.write(other, 0, b"other").unwrap();
        mount.files.sync_open(other).unwrap();
        drop(syncing);
        cut.join().unwrap();
        other
    });
    assert!(mount.files.find(other).unwrap().state.read().staged.is_none(), "it was cut, too");
}

#[test]
fn a_closed_file_that_is_truncated_takes_a_slot_and_is_sealed() {
    let (_dir, mount) = mount();
    let ino = mount.create(b"a");
    mount.files.write(ino, 0, &[7; 100]).unwrap();
    mount.close(ino);
    mount.files.truncate(ino, 10, clock::now()).unwrap();
    mount.settle();
    assert_eq!(mount.read(ino, 0, 100), [7; 10]);
    assert_eq!(mount.meta.inode(ino).unwrap().size, 10);
    assert_eq!(mount.files.uncommitted(None), (0, 0));
}

#[test]
fn killed_after_close_nothing_is_lost() {
    let (dir, meta) = testing::store();
    drop(meta);
    // No sealers: the daemon dies with everything still staged.
    let before = Mount::new(dir.path(), false);
    let content = noise(100_000, 5);
    let ino = before.create(b"a");
    before.files.write(ino, 0, &content).unwrap();
    before.close(ino);
    let edited = before.create(b"b");
    before.files.write(edited, 5, b"abc").unwrap();
    before.files.flush(edited).unwrap();
    drop(before);
    for round in 0..2 {
        let after = Mount::new(dir.path(), round == 1);
        assert_eq!(after.read(ino, 0, 1 << 20), content, "recovery twice is recovery once");
        assert_eq!(after.read(edited, 0, 100), b"\0\0\0\0\0abc");
        if round == 1 {
            after.settle();
            assert_eq!(after.read(ino, 0, 1 << 20), content);
        }
    }
}

#[test]
fn content_of_an_unnamed_open_file_stays_readable_and_is_not_committed() {
    let (_dir, mount) = mount();
    let ino = mount.create(b"a");
    mount.files.write(ino, 0, &[7; 100]).unwrap();
    mount.files.rotate().unwrap();
    mount.files.write(ino, 50, &[8; 10]).unwrap();
    mount
        .meta
        .write(|tx| {
            let mut inode = meta::inode::Inode::get(tx.conn(), ino)?;
            inode.nlink = 0;
            inode.update(tx)?;
            let head = tx.head();
            tx.void_slots_of_unnamed(ino, head)
        })
        .unwrap();
    mount.files.unnamed(ino);
    let deadline = clock::instant() + Duration::from_secs(300);
    let discarded = || mount.files.find(ino).is_some_and(|file| file.state.read().frozen[0].kept.get().is_some());
    while !discarded() {
        assert!(clock::instant() < deadline, "the committer meets the session");
        std::thread::yield_now();
    }
    let read = mount.read(ino, 0, 100);
    assert_eq!((read[0], read[50], read[60]), (7, 8, 7));
    mount.release(ino);
    assert!(!mount.files.is_open(ino));
}

#[test]
fn dead_content_leaves_the_disk() {
    let (dir, mount) = mount();
    let ino = mount.create(b"a");
    mount.files.write(ino, 0, &noise(CHUNK as usize, 9)).unwrap();
    mount.close(ino);
    mount.settle();
    mount.files.truncate(ino, 0, clock::now()).unwrap();
    mount.settle();
    mount.evictor.round(&AtomicBool::new(false), || false).unwrap();
    // No target: nobody needs the chunk, so its release is all that is missing.
    let dead: Vec<_> = mount
        .meta
        .read(|conn| {
            let mut statement = conn.prepare("SELECT id FROM chunk WHERE dead_seq IS NOT NULL")?;
            let rows = statement.query_map([], |row| row.get(0))?;
            Ok(rows.collect::<rusqlite::Result<Vec<_>>>()?)
        })
        .unwrap();
    assert_eq!(dead.len(), 1);
    mount.meta.release(&dead).unwrap();
    mount.evictor.round(&AtomicBool::new(false), || false).unwrap();
    assert_eq!(mount.count("SELECT count(*) FROM chunk_file"), 0);
    let left = walk(&dir.path().join("chunks"));
    assert_eq!(left, Vec::<std::path::PathBuf>::new());
}

#[test]
fn p3_a_lent_file_stays_on_the_disk_until_nobody_has_it() {
    let (_dir, mount) = mount();
    let [lent, other] = [(b"a", 20), (b"b", 21)].map(|(name, seed)| {
        let ino = mount.create(name);
        mount.files.write(ino, 0, &noise(CHUNK as usize, seed)).unwrap();
        mount.close(ino);
        mount.settle();
        ino
    });
    mount.meta.write(|tx| Ok(tx.conn().execute("UPDATE chunk SET placed = 1, incomplete = 0", [])?)).unwrap();
    let image = |ino| mount.meta.image(ino).unwrap().unwrap();
    let (file, name) = (image(lent).file, image(lent).name);
    assert!(mount.files.chunk_files().lending().lend(file, &name));
    let evict = || {
        mount.space.denied();
        mount.evictor.round(&AtomicBool::new(false), || false).unwrap();
        mount.count("SELECT count(*) FROM chunk_file")
    };
    assert!(image(other).file != file);
    assert_eq!(evict(), 1, "only what is not lent goes");
    assert_eq!(image(lent).file, file);
    // What was used in this mount is found in another way.
    assert_eq!(mount.read(lent, 0, 9), noise(9, 20));
    assert_eq!(evict(), 1);
    assert_eq!(mount.files.chunk_files().lending().end(&name), None);
    assert_eq!(evict(), 0);
}

#[test]
fn what_is_closed_waits_for_the_end_of_a_burst_but_not_when_somebody_waits_for_it() {
    let (_dir, mount) = mount();
    if !mount.files.space.has_room_to_spare() {
        eprintln!("skipped: with less than 1 GiB free nothing waits");
        return;
    }
    let close = |name: &[u8], seed| {
        let ino = mount.create(name);
        mount.files.write(ino, 0, &noise(CHUNK as usize, seed)).unwrap();
        mount.close(ino);
        ino
    };
    let began = clock::instant();
    close(b"how long it takes here", 8);
    mount.settle();
    let takes = clock::instant().since(began);
    // A burst that no slow machine ends.
    mount.files.programs().ask(clock::instant() + Duration::from_secs(3600));
    let ino = close(b"a", 9);
    std::thread::sleep(Duration::from_millis(200) + takes * 3);
    assert!(mount.files.newest_frozen(ino).is_some(), "programs come first");
    mount.settle();
    assert_eq!(mount.files.newest_frozen(ino), None, "settling takes a hurry");
    assert_eq!(mount.count("SELECT count(*) FROM slot"), 0);
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(dir)
        .unwrap()
        .flat_map(|entry| {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path) } else { vec![path] }
        })
        .collect()
}

#[test]
fn o1_a_file_without_a_name_keeps_its_session_however_many_ranges_it_has() {
    let (_dir, mount) = mount();
    let ino = mount.create(b"a");
    mount.files.write(ino, 0, &[7; 100]).unwrap();
    mount.close(ino);
    mount.settle();
    mount.open(ino);
    mount
        .meta
        .write(|tx| {
            let mut inode = meta::inode::Inode::get(tx.conn(), ino)?;
            inode.nlink = 0;
            inode.update(tx)
        })
        .unwrap();
    mount.files.unnamed(ino);
    // One more than a session holds, and one to begin another with.
    for index in 0..super::ranges::RANGES_MAX as u64 + 2 {
        mount.files.write(ino, 2 * index, &[9]).unwrap();
    }
    mount.settle();
    let read = mount.read(ino, 0, 100);
    assert_eq!(
        (read[0], read[1], read[98], read[99]),
        (9, 7, 9, 7),
        "it takes no slot, and nobody would find its bytes again"
    );
    mount.release(ino);
}

#[test]
fn o4_an_edit_is_recorded_as_the_ranges_that_it_replaced() {
    let (_dir, mount) = mount();
    let ino = mount.create(b"a");
    mount.files.write(ino, 0, &noise(3 * CHUNK as usize, 2)).unwrap();
    mount.close(ino);
    mount.settle();
    mount.open(ino);
    let edits = [100, 2 * CHUNK + 5_000];
    for offset in edits {
        mount.files.write(ino, offset, b"hello").unwrap();
    }
    mount.close(ino);
    mount.settle();
    let newest = "SELECT seq, body FROM journal WHERE kind = 2 ORDER BY seq DESC LIMIT 1";
    let (seq, body): (crate::id::Seq, Vec<u8>) =
        mount.meta.read(|conn| Ok(conn.query_row(newest, [], |row| Ok((row.get(0)?, row.get(1)?)))?)).unwrap();
    let crate::format::record::Change::Content(content) = meta::journal::decode(seq, &body).unwrap().change else {
        panic!("the newest record is no content");
    };
    assert!(!content.whole);
    assert_eq!((content.extents.len(), content.chunks.len()), (2, 1), "{content:?}");
    for (extent, edit) in content.extents.iter().zip(edits) {
        let end = extent.offset + extent.length;
        assert!(extent.offset <= edit && edit + 5 <= end && extent.length <= 8192, "{extent:?}");
    }
}

#[test]
fn p7_who_only_reads_sends_no_flush_and_keeps_the_kernels_pages() {
    let (_dir, mount) = mount();
    let ino = mount.create(b"a");
    mount.close(ino);
    let opened = |writes, truncate: bool| {
        let wish = Wish { reads: true, writes, fresh: truncate, ..Wish::default() };
        let mut kernel = NoKernel::default();
        mount.files.open(ino, InodeId::ROOT, &wish, truncate.then(clock::now), &mut kernel).unwrap();
        mount.release(ino);
        kernel.opened.map(|opened| (opened.keep_cache, opened.noflush))
    };
    assert_eq!(opened(false, false), Some((true, true)));
    assert_eq!(opened(true, false), Some((true, false)), "its close may fail, and says so");
    assert_eq!(opened(false, true), Some((true, false)), "its open emptied the file");
}

/// A cut waits for a sync with the gate still open: whoever waited for it behind the gate would hold every writer.
#[test]
fn o8_who_waits_for_a_sync_does_not_hold_the_gate() {
    let (_dir, mount) = mount();
    let ino = mount.create(b"file");
    let file = mount.files.find(ino).unwrap();
    let syncing = file.syncing.lock();
    let begun = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            begun.wait();
            drop(mount.files.still(Some(&file)));
        });
        begun.wait();
        // Until it certainly waits: a gate that it held would stay closed.
        for _ in 0..50 {
            assert!(mount.files.gate.try_write_for(Duration::from_secs(60)).is_some());
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!waits.is_finished());
        drop(syncing);
    });
    mount.close(ino);
}
