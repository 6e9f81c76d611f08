//! A write session: one sparse chunk file that takes an inode's writes until it is sealed.
//!
//! Owns: the staged file, its dirty ranges and their record on disk, how often it was dirtied and how much of that its slot
//! covers. A frozen session takes no more writes.
//! Does not own: the inode's other layers (`live`), reserving slots (`slots`), sealing (`seal`).
//!
//! The staged file's length is always the file's size: a truncate cuts it, so that recovery can read the size from it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::{FallocateFlags, fallocate};

use super::layers::Layer;
use super::live::Attributes;
use super::ranges::{self, RangeSet};
use super::watch::{Seen, Watch};
use crate::chunk::file::{ChunkFiles, SessionName, ranges_path, unsynced_path};
use crate::clock::Instant;
use crate::id::{Generation, InodeId, SessionId};
use crate::testing::failpoint::{self, Point};

/// A session that takes writes.
#[derive(Debug)]
pub struct Staged {
    pub id: SessionId,
    pub base: Generation,
    pub whole: bool,
    pub base_limit: u64,
    /// Name of its chunk file.
    pub path: String,
    pub file: Arc<File>,
    pub ranges: RangeSet,
    log: Option<RangeLog>,
    /// Counts up with every change of content; a slot covers it up to `slot_dirtyings`.
    pub dirtyings: u64,
    pub slot_dirtyings: u64,
    /// Reserved a slot at least once.
    pub has_slot: bool,
    /// Its slot was asked for by an `fsync`.
    pub fsynced: bool,
    /// Bytes known to be on disk, of a whole session (S1).
    pub synced_size: Option<u64>,
    /// The synced size that its row knows.
    pub slot_synced_size: Option<u64>,
    /// Its directory entry is known to be on disk.
    pub entry_synced: bool,
    /// When it began.
    pub began: Instant,
    /// Bytes counted as used local space.
    pub accounted: u64,
    /// Written since the count was last compared with the disk.
    unchecked: u64,
    /// Counts its descriptors as long as it holds them.
    pub permit: Option<Permit>,
    /// Its file is, or was, a backing file of the kernel: `file` is open for reading only then, and what is written is seen
    /// by looking at the file.
    pub backing: Option<Watch>,
}

/// The descriptors of one session that takes writes.
#[derive(Debug)]
pub struct Permit(Arc<AtomicUsize>);

impl Permit {
    /// One more of at most `max` sessions; `None`: there are as many.
    pub fn take(held: &Arc<AtomicUsize>, max: usize) -> Option<Permit> {
        let more = |held: usize| (held < max).then_some(held + 1);
        held.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok().map(|_| Permit(held.clone()))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Bytes written after which the count of used space is compared with the disk.
const ACCOUNT_CHECK: u64 = 4 << 20;

/// What one sync covers.
#[derive(Debug)]
pub struct SyncPoint {
    file: Arc<File>,
    size: u64,
    log: Option<(Arc<File>, u64)>,
}

impl SyncPoint {
    /// Syncs the bytes.
    pub fn sync_bytes(&self) -> io::Result<()> {
        failpoint::check(Point::SyncStaged)?;
        self.file.sync_data()
    }

    /// Syncs the record that says they are synced.
    pub fn sync_record(&self) -> io::Result<()> {
        let Some((log, _)) = &self.log else { return Ok(()) };
        failpoint::check(Point::SyncRanges)?;
        log.sync_data()
    }
}

/// The record on disk of an edit session's dirty ranges.
#[derive(Debug)]
struct RangeLog {
    file: Arc<File>,
    records: u64,
}

/// A session that takes no more writes and waits for its seal, then for its commit.
#[derive(Debug)]
pub struct Frozen {
    pub id: SessionId,
    pub whole: bool,
    pub base_limit: u64,
    pub path: String,
    pub ranges: RangeSet,
    /// Bytes of the file when it was frozen.
    pub size: u64,
    /// Bytes counted as used local space until its commit counts what is really allocated.
    pub accounted: u64,
    /// Its file, when it was discarded while a handle still reads it.
    pub kept: OnceLock<Arc<File>>,
}

impl Staged {
    /// Begins a session on content of `size` bytes: whole (nothing shows through) or an edit.
    pub fn begin(
        files: &ChunkFiles,
        id: SessionId,
        ino: InodeId,
        base: Generation,
        whole: bool,
        size: u64,
        now: Instant,
    ) -> io::Result<Staged> {
        let name = SessionName { session: id, ino, base, whole };
        let path = name.path();
        let file = files.create(&path)?;
        let mut log = None;
        if !whole {
            let begun = file.set_len(size).and_then(|()| files.create(&ranges_path(&path)));
            match begun {
                Ok(file) => log = Some(RangeLog { file: Arc::new(file), records: 0 }),
                Err(error) => {
                    // The disk is full: what there is of it would never be of use.
                    let _ = remove_files(files, &path);
                    return Err(error);
                }
            }
        }
        failpoint::pass(Point::Stage);
        Ok(Staged { base_limit: if whole { 0 } else { size }, log, ..Staged::of(&name, path, Arc::new(file), now) })
    }

    /// A session on this file of which nothing is known yet.
    fn of(name: &SessionName, path: String, file: Arc<File>, began: Instant) -> Staged {
        Staged {
            id: name.session,
            base: name.base,
            whole: name.whole,
            base_limit: 0,
            path,
            file,
            ranges: RangeSet::default(),
            log: None,
            dirtyings: 0,
            slot_dirtyings: 0,
            has_slot: false,
            fsynced: false,
            synced_size: None,
            slot_synced_size: None,
            entry_synced: false,
            began,
            accounted: 0,
            unchecked: 0,
            permit: None,
            backing: None,
        }
    }

    /// Begins a session on a file that is there and that the kernel may read by itself: all of its `size` bytes are
    /// written anew (P3).
    pub fn thaw(files: &ChunkFiles, name: SessionName, now: Instant) -> io::Result<Staged> {
        let path = name.path();
        let file = Arc::new(files.open(&path)?);
        let mut watch = Watch::new(&file)?;
        watch.read = true;
        // Its bytes are on disk, but not as one state with those that come: none of it counts as synced, so after a power
        // cut before the next sync the generation before stays.
        Ok(Staged { dirtyings: 1, backing: Some(watch), ..Staged::of(&name, path, file, now) })
    }

    /// Makes its file a backing file of the kernel: what `register` gets is open for reading only, as a writable descriptor
    /// of ours would hide from the lease whether somebody else can write (S4).
    pub fn back<T>(&mut self, files: &ChunkFiles, register: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        let reader = Arc::new(files.open(&self.path)?);
        let registered = register(&reader)?;
        self.backing = Some(Watch::new(&reader)?);
        self.file = reader;
        Ok(registered)
    }

    /// What its file is written through: of a backing file a descriptor that goes at once.
    fn writer(&self) -> io::Result<Arc<File>> {
        if self.backing.is_none() {
            return Ok(self.file.clone());
        }
        // By its descriptor: a file of an inode without a name may have none either.
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        Ok(Arc::new(File::options().write(true).open(path)?))
    }

    /// Looks whether a backing file was written to since the last look, and if so counts it and tells `attributes`. A size
    /// is always the file's.
    pub fn observe(&mut self, attributes: &mut Attributes) -> io::Result<()> {
        let Some(watch) = &mut self.backing else { return Ok(()) };
        let now = Seen::of(&self.file)?;
        if now != watch.seen || watch.may_lie() {
            self.dirtyings += 1;
        }
        *attributes = watch.seen.moved_to(&now, *attributes);
        watch.seen = now;
        Ok(())
    }

    /// What [`Staged::observe`] would tell.
    pub fn observed(&self, attributes: Attributes) -> Attributes {
        match &self.backing {
            Some(watch) => Seen::of(&self.file).map_or(attributes, |now| watch.seen.moved_to(&now, attributes)),
            None => attributes,
        }
    }

    /// Takes a change of ours to a backing file, whose times are known better, as seen.
    pub fn changed_by_us(&mut self) -> io::Result<()> {
        if let Some(watch) = &mut self.backing {
            watch.seen = Seen::of(&self.file)?;
        }
        Ok(())
    }

    /// Writes `data` at `offset`: data, then the range record (S6); the caller replies after. Returns how much of it: all,
    /// but for what lies beyond the largest file that the disk takes, as write(2) has it.
    pub fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<usize> {
        let mut written = 0;
        while written < data.len() {
            match self.writer()?.write_at(&data[written..], offset + written as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::FileTooLarge && written > 0 => break,
                Err(error) => return Err(error),
            }
        }
        failpoint::pass(Point::Ranges);
        self.dirtied(offset..offset + written as u64)?;
        Ok(written)
    }

    /// A write failed, perhaps after some of its bytes (the disk is full). What it left beyond `size`, which the file had
    /// before, must not come into view when the file grows, nor be taken for content after a kill.
    pub fn take_back(&self, size: u64) {
        let cut = || if self.file.metadata()?.len() > size { self.writer()?.set_len(size) } else { Ok(()) };
        if let Err(error) = cut() {
            tracing::warn!(path = %self.path, %error, "what a failed write left could not be taken back");
        }
    }

    /// True if an `fsync` promised bytes of it. Those that the kernel writes itself cannot be kept apart (P4).
    pub fn holds_promised(&self) -> bool {
        self.fsynced && self.backing.is_none()
    }

    /// Cuts or extends the file to `size` bytes. Bytes that come into view again later are zeros.
    pub fn set_size(&mut self, size: u64) -> io::Result<()> {
        self.writer()?.set_len(size)?;
        if size < self.base_limit {
            // The row learns of the lower limit with the next slot only: until then the record says that what was cut off
            // does not show through again when the file grows. Recovery cuts it at the length of the file.
            self.record(size..self.base_limit)?;
        }
        self.ranges.cut(size);
        self.base_limit = self.base_limit.min(size);
        // With nothing below in view there is no need to know which bytes are dirty: all are.
        self.whole |= self.base_limit == 0;
        self.dirtyings += 1;
        Ok(())
    }

    /// Makes `range` zeros, of which `inside` lies inside the file. If that is nothing, no byte changes, and the times do.
    pub fn zero(&mut self, range: Range<u64>, inside: Range<u64>) -> io::Result<()> {
        // All of it: the disk says what is beyond the largest file.
        fallocate(
            &*self.writer()?,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            range.start,
            range.end - range.start,
        )?;
        if inside.is_empty() {
            self.dirtyings += 1;
            return Ok(());
        }
        failpoint::pass(Point::Punch);
        self.dirtied(inside)
    }

    /// Allocates space for `range` without changing a byte; the file grows to its end unless `keep_size`.
    pub fn allocate(&mut self, range: Range<u64>, keep_size: bool) -> io::Result<()> {
        let flags = if keep_size { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() };
        if self.whole {
            fallocate(&*self.writer()?, flags, range.start, range.end - range.start)?;
        } else if !keep_size && self.file.metadata()?.len() < range.end {
            self.file.set_len(range.end)?;
        }
        self.dirtyings += 1;
        Ok(())
    }

    fn dirtied(&mut self, range: Range<u64>) -> io::Result<()> {
        // A session that began as an edit keeps its record even when it became whole: its row may say edit still.
        if self.log.is_some() && self.ranges.insert(range.clone()) {
            self.record(range)?;
        }
        self.dirtyings += 1;
        Ok(())
    }

    fn record(&mut self, range: Range<u64>) -> io::Result<()> {
        let Some(log) = &mut self.log else { return Ok(()) };
        let mut records = Vec::with_capacity(ranges::RECORD);
        ranges::encode_range(range, &mut records);
        log.append(&records)
    }

    /// What a sync that begins now will cover: taken before it, as bytes that come meanwhile are not covered (S1).
    pub fn sync_point(&self) -> io::Result<SyncPoint> {
        Ok(SyncPoint {
            file: self.file.clone(),
            size: self.file.metadata()?.len(),
            log: self.log.as_ref().map(|log| (log.file.clone(), log.records)),
        })
    }

    /// Puts on record that the sync of `point` is done. For an edit the record itself is on disk only after
    /// [`SyncPoint::sync_record`].
    pub fn mark_synced(&mut self, point: &SyncPoint) -> io::Result<()> {
        if self.whole {
            self.synced_size = Some(point.size);
        }
        if let (Some(log), Some((_, records))) = (&mut self.log, &point.log) {
            let mut mark = Vec::with_capacity(ranges::RECORD);
            ranges::encode_mark(u32::try_from(*records).unwrap_or(u32::MAX), &mut mark);
            log.append(&mark)?;
        }
        Ok(())
    }

    /// Counts `written` bytes as used local space and returns by how much the count changed. Overwriting takes no space, so
    /// from time to time the count is set to what is really allocated.
    pub fn account(&mut self, written: u64) -> i64 {
        let before = self.accounted;
        self.accounted += written;
        self.unchecked += written;
        if self.unchecked >= ACCOUNT_CHECK || self.backing.is_some() {
            self.unchecked = 0;
            self.accounted = self.allocated();
        }
        self.accounted as i64 - before as i64
    }

    /// Dirty since its last slot, or never had one.
    pub fn is_dirty(&self) -> bool {
        self.dirtyings != self.slot_dirtyings
    }

    /// A copy of its bytes as of `dirtyings` has its slot now: the session goes on without one.
    pub fn handed_over(&mut self, dirtyings: u64, now: Instant) {
        self.slot_dirtyings = dirtyings;
        self.has_slot = false;
        self.fsynced = false;
        self.synced_size = None;
        self.slot_synced_size = None;
        self.entry_synced = false;
        self.began = now;
    }

    /// Takes the new name of its file, which changes its ctime.
    pub fn renamed(&mut self, id: SessionId, path: String) -> io::Result<()> {
        (self.id, self.path) = (id, path);
        if let Some(watch) = &mut self.backing {
            watch.renamed(Seen::of(&self.file)?);
        }
        Ok(())
    }

    /// The same, after a look at a backing file that the kernel may have written to since the last one.
    pub fn is_dirty_by_now(&self) -> bool {
        self.is_dirty() || self.backing.as_ref().is_some_and(|watch| watch.has_moved(&self.file))
    }

    /// Ends writing: the descriptors are closed.
    pub fn freeze(self, size: u64) -> Frozen {
        Frozen {
            id: self.id,
            whole: self.whole,
            base_limit: self.base_limit,
            path: self.path,
            ranges: if self.whole { RangeSet::default() } else { self.ranges },
            size,
            accounted: self.accounted,
            kept: OnceLock::new(),
        }
    }

    /// The session as a layer of content.
    pub fn layer(&self) -> Layer<'_> {
        Layer { whole: self.whole, base_limit: self.base_limit, ranges: &self.ranges }
    }

    /// Bytes allocated on disk.
    pub fn allocated(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.file.metadata().map_or(0, |metadata| metadata.blocks() * 512)
    }
}

impl Frozen {
    /// A file of `size` bytes that holds all of the content.
    pub fn whole(id: SessionId, path: String, size: u64) -> Frozen {
        Frozen {
            id,
            whole: true,
            base_limit: 0,
            path,
            ranges: RangeSet::default(),
            size,
            accounted: 0,
            kept: OnceLock::new(),
        }
    }

    /// The session as a layer of content.
    pub fn layer(&self) -> Layer<'_> {
        Layer { whole: self.whole, base_limit: self.base_limit, ranges: &self.ranges }
    }
}

impl RangeLog {
    fn append(&mut self, records: &[u8]) -> io::Result<()> {
        self.file.write_all_at(records, self.records * ranges::RECORD as u64)?;
        self.records += (records.len() / ranges::RECORD) as u64;
        Ok(())
    }
}

/// Removes what only its session needed beside a chunk file.
pub fn remove_records(files: &ChunkFiles, path: &str) -> io::Result<()> {
    files.remove(&ranges_path(path))?;
    files.remove(&unsynced_path(path))
}

/// Removes a session's files; that some are gone already is fine.
pub fn remove_files(files: &ChunkFiles, path: &str) -> io::Result<()> {
    remove_records(files, path)?;
    files.remove(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    fn staged(whole: bool, size: u64) -> (tempfile::TempDir, ChunkFiles, Staged) {
        let dir = tempfile::tempdir().unwrap();
        let files = ChunkFiles::new(dir.path()).unwrap();
        let staged =
            Staged::begin(&files, SessionId(7), InodeId(2), Generation(1), whole, size, Instant::START).unwrap();
        (dir, files, staged)
    }

    fn log(files: &ChunkFiles, staged: &Staged) -> Vec<u8> {
        std::fs::read(files.locate(&ranges_path(&staged.path))).unwrap()
    }

    #[test]
    fn p6_what_the_kernel_writes_makes_it_dirty_though_its_size_stays() {
        let (_dir, files, mut staged) = staged(true, 0);
        let kernel = File::options().write(true).open(files.locate(&staged.path)).unwrap();
        staged.back(&files, |_| Ok(())).unwrap();
        let epoch = Timestamp::EPOCH;
        let mut seen = Attributes { size: 0, mtime: epoch, ctime: epoch };
        for bytes in [b"first", b"other", b"third"] {
            kernel.write_all_at(bytes, 0).unwrap();
            staged.observe(&mut seen).unwrap();
            assert!(staged.is_dirty(), "{bytes:?}");
            assert!(seen.size == 5 && seen.mtime > epoch && seen.ctime > epoch, "{seen:?}");
            // Its slot covers that; where two writes may look alike, it counts as dirty each time.
            staged.slot_dirtyings = staged.dirtyings;
            staged.observe(&mut seen).unwrap();
            assert_eq!(staged.is_dirty(), staged.backing.as_ref().unwrap().may_lie());
            staged.slot_dirtyings = staged.dirtyings;
        }
    }

    #[test]
    fn s6_a_write_is_on_record_before_it_returns() {
        let (_dir, files, mut staged) = staged(false, 100);
        staged.write_at(10, b"abc").unwrap();
        let recovered = ranges::decode(&log(&files, &staged), ranges::Trust::All);
        assert_eq!(recovered.ranges, staged.ranges);
        assert_eq!(staged.file.metadata().unwrap().len(), 100, "the length of the staged file is the size");
    }

    #[test]
    fn s1_a_mark_covers_what_was_written_before_its_sync() {
        let (_dir, files, mut staged) = staged(false, 100);
        staged.write_at(10, b"abc").unwrap();
        let point = staged.sync_point().unwrap();
        point.sync_bytes().unwrap();
        staged.write_at(50, b"abc").unwrap();
        staged.mark_synced(&point).unwrap();
        point.sync_record().unwrap();
        let recovered = ranges::decode(&log(&files, &staged), ranges::Trust::Synced);
        assert_eq!(recovered.ranges.iter().collect::<Vec<_>>(), [10..13]);
    }

    #[test]
    fn regression_what_a_truncate_cut_off_does_not_come_back_after_a_kill() {
        let (_dir, files, mut staged) = staged(false, 100);
        staged.write_at(10, b"abc").unwrap();
        staged.set_size(50).unwrap();
        staged.set_size(200).unwrap();
        // The row still says that 100 bytes of the earlier content show through.
        let mut recovered = ranges::decode(&log(&files, &staged), ranges::Trust::All).ranges;
        recovered.cut(staged.file.metadata().unwrap().len());
        assert_eq!(recovered.iter().collect::<Vec<_>>(), [10..13, 50..100]);
    }

    #[test]
    fn regression_an_edit_that_became_whole_stays_on_record() {
        let (_dir, files, mut staged) = staged(false, 100);
        staged.set_size(0).unwrap();
        staged.write_at(0, b"new").unwrap();
        let mut recovered = ranges::decode(&log(&files, &staged), ranges::Trust::All).ranges;
        recovered.cut(staged.file.metadata().unwrap().len());
        assert_eq!(recovered.iter().collect::<Vec<_>>(), [0..3], "its row may say edit still");
    }

    #[test]
    fn d2_what_a_failed_write_left_beyond_the_size_is_taken_back() {
        let (_dir, _files, mut staged) = staged(true, 0);
        staged.write_at(0, b"whole").unwrap();
        // As a write of which the disk took a part.
        staged.file.write_all_at(b"a part", 5).unwrap();
        staged.take_back(5);
        staged.take_back(100);
        assert_eq!(staged.file.metadata().unwrap().len(), 5);
    }

    #[test]
    fn sessions_that_take_writes_are_bounded_by_descriptors() {
        let held = Arc::default();
        let permits: Vec<Permit> = (0..3).map(|_| Permit::take(&held, 3).unwrap()).collect();
        assert!(Permit::take(&held, 3).is_none());
        drop(permits);
        assert!(Permit::take(&held, 3).is_some());
    }

    #[test]
    fn an_edit_cut_to_nothing_is_whole() {
        let (_dir, _files, mut staged) = staged(false, 100);
        staged.write_at(10, b"abc").unwrap();
        staged.set_size(50).unwrap();
        assert!(!staged.whole && staged.base_limit == 50);
        staged.set_size(0).unwrap();
        assert!(staged.whole);
    }
}
