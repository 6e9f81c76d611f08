//! Lending a file's own sealed image to the kernel for reading, and having it back (P1, P3).
//!
//! Owns: which file is a whole image of which content, when it is lent, thawing it for a writer.
//! Does not own: the kernel's side of an open (`opening`), what others must not do with a lent file (`chunk::lend`), the
//! rows (`meta::image`).
//!
//! ```text
//! sealed image ──passthrough reader──▶ lent ──last one gone, nothing mapped──▶ sealed image
//!                                       └──somebody changes the content──▶ thawed: a session's file, all of it dirty
//! ```
//!
//! A reader's mapping outlives its descriptor, unseen, and shows only what is written into the file it maps. The write
//! lease tells whether anybody has the file; it is asked for when the last passthrough open is gone, and again by whoever is
//! about to change the content. Until it is granted the image counts as lent.
//!
//! **Thaw**, in this order: the file gets its session's name beside its own; what is pinned in it is copied, or all of it
//! where blocks can be shared; one transaction gives its rows to the copy or takes them away; a slot is reserved, so that
//! from here on a crash finds the session; all of that is synced; the old name goes. Only then is anybody told that he may
//! write. What was not pinned is on targets, and in the session, which is sealed as a whole: cut on the same grid, so that
//! only chunks that really changed are sent.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;

use super::files::{Files, SealJob, local_error};
use super::live::{Attributes, LiveFile, State};
use super::opening::{Backing, Kernel};
use super::session::Staged;
use crate::chunk::file::SessionName;
use crate::chunk::{copy, lease};
use crate::clock::{self, Instant};
use crate::id::{ChunkFileId, Generation, InodeId};
use crate::meta::Result;
use crate::testing::failpoint::{self, Point};

/// Smaller files are read by requests: the kernel keeps their pages from one open to the next, and an open is cheaper than
/// a registration.
pub const IMAGE_MIN: u64 = 128 << 10;
/// Bytes that a thaw may have to copy, by what is known when the image is lent (P1).
const PINNED_MAX: u64 = 64 << 20;
/// Bytes where an image must have zeros that are read to see it: where a file was written with zeros, they take space in it.
const ZEROS_MAX: u64 = 4 << 20;
/// Inodes of which it is remembered what their image is.
const KNOWN_MAX: usize = 1 << 12;
/// Between two looks whether an image is still mapped; at first, and at last.
const LOOK_FIRST: Duration = Duration::from_millis(500);
const LOOK_LAST: Duration = Duration::from_secs(60);

/// An image that the kernel may read by itself.
#[derive(Debug, Clone)]
pub struct Lent {
    image: Whole,
    look_at: Instant,
    look_after: Duration,
}

/// A local file that holds all bytes of an inode's committed content at their own offsets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Whole {
    file: ChunkFileId,
    /// Relative to the state directory.
    name: String,
    size: u64,
    /// Little of it was pinned when it was looked at.
    placed: bool,
}

impl Whole {
    /// Bytes of the file.
    pub(super) fn size(&self) -> u64 {
        self.size
    }
}

/// What is known of images, by inode and generation.
#[derive(Debug)]
pub(super) struct Images(Mutex<LruCache<InodeId, (Generation, Option<Whole>)>>);

impl Default for Images {
    fn default() -> Images {
        Images(Mutex::new(LruCache::new(NonZeroUsize::new(KNOWN_MAX).expect("the capacity is not zero"))))
    }
}

impl Images {
    fn known(&self, ino: InodeId, generation: Generation) -> Option<Option<Whole>> {
        let mut known = self.0.lock();
        known.get(&ino).filter(|(of, _)| *of == generation).map(|(_, whole)| whole.clone())
    }

    fn learn(&self, ino: InodeId, generation: Generation, whole: Option<Whole>) {
        self.0.lock().put(ino, (generation, whole));
    }
}

impl Files {
    /// The image of a file without a session, if it has one that is worth lending.
    pub(super) fn image_of(&self, ino: InodeId, state: &State) -> Result<Option<(Generation, Whole)>> {
        if !state.frozen.is_empty() || state.unnamed {
            return Ok(None);
        }
        let inode = self.meta.inode(ino)?;
        if inode.size < IMAGE_MIN || inode.nlink == 0 {
            return Ok(None);
        }
        let generation = inode.generation;
        if let Some(known) = self.images.known(ino, generation) {
            return Ok(known.map(|whole| (generation, whole)));
        }
        let found = self.meta.image(ino)?;
        let whole = found.as_ref().filter(|image| image.generation == generation).and_then(|image| {
            let file = self.chunk_files().open(&image.name).ok()?;
            let mut left = ZEROS_MAX;
            let is_zero = image.gaps.iter().all(|gap| copy::is_zero(&file, gap.clone(), &mut left).unwrap_or(false));
            let (file, name) = (image.file, image.name.clone());
            is_zero.then_some(Whole { file, name, size: image.size, placed: false })
        });
        self.images.learn(ino, generation, whole.clone());
        Ok(whole.map(|whole| (generation, whole)))
    }

    /// A whole session was committed: its file is the image, and what its rows do not show (a chunk that it holds twice) is
    /// known.
    pub(super) fn learn_image(&self, job: &SealJob, state: &State, file: Option<ChunkFileId>) {
        let frozen = &job.frozen;
        let has_no_slot = state.staged.as_ref().is_none_or(|staged| !staged.has_slot);
        let is_newest = has_no_slot && state.frozen.is_empty() && !state.unnamed;
        if !frozen.whole || frozen.size < IMAGE_MIN || !is_newest {
            return;
        }
        // No younger slot was reserved: the row tells of this commit.
        if let (Some(file), Ok(inode)) = (file, self.meta.inode(job.file.ino))
            && inode.size == frozen.size
        {
            let whole = Whole { file, name: frozen.path.clone(), size: frozen.size, placed: false };
            self.images.learn(inode.ino, inode.generation, Some(whole));
        }
    }

    /// Registers the image for one more passthrough reader. `None`: it is to be read by requests, now or always.
    pub(super) fn lend(
        &self,
        ino: InodeId,
        state: &mut State,
        found: Option<(Generation, Whole)>,
        kernel: &mut dyn Kernel,
    ) -> Result<Option<Backing>> {
        let lent = state.lent.as_ref().map(|lent| lent.image.clone());
        let was_lent = lent.is_some();
        let Some(mut image) = lent.or_else(|| found.as_ref().map(|(_, image)| image.clone())) else { return Ok(None) };
        // Whoever evicts does not wait for us, nor we for him.
        let Some(_names) = self.evictor.try_keep_names() else { return Ok(None) };
        if let (false, Some((generation, _))) = (was_lent, &found) {
            if !self.meta.is_chunk_file(image.file, &image.name)? {
                self.images.learn(ino, *generation, None);
                return Ok(None);
            }
            if !image.placed {
                let pinned: u64 = match self.shares_blocks() {
                    true => 0,
                    false => {
                        let ranges = self.meta.pinned(image.file, PINNED_MAX)?;
                        ranges.into_iter().map(|range| range.end - range.start).sum()
                    }
                };
                if pinned > PINNED_MAX {
                    return Ok(None);
                }
                image.placed = true;
                self.images.learn(ino, *generation, Some(image.clone()));
            }
        }
        // Other hands than ours may have been at it; a read by requests finds a way.
        let Ok(file) = self.chunk_files().open(&image.name) else { return Ok(None) };
        if file.metadata().map_or(true, |metadata| metadata.len() != image.size) {
            return Ok(None);
        }
        let lending = self.chunk_files().lending();
        if !lending.lend(image.file, &image.name) {
            return Ok(None);
        }
        match kernel.register(&file) {
            Ok(backing) => {
                self.evictor.used(image.file);
                state.lent = Some(Lent { image, look_at: Instant::START, look_after: LOOK_FIRST });
                Ok(Some(backing))
            }
            Err(error) => {
                if !was_lent {
                    self.end_lending(&image.name);
                }
                self.passthrough.refused(&error);
                Ok(None)
            }
        }
    }

    /// Ends the lending of an image that nobody has any more.
    pub(super) fn reclaim(&self, state: &mut State) {
        let Some(lent) = &state.lent else { return };
        // Of a file without a name no content will ever be changed by a newcomer.
        if state.modes.is_passthrough() || (!state.unnamed && self.is_held(&lent.image.name)) {
            return;
        }
        let Some(Lent { image, .. }) = state.lent.take() else { return };
        self.end_lending(&image.name);
    }

    fn end_lending(&self, name: &str) {
        let Some(bytes) = self.chunk_files().lending().end(name) else { return };
        // Its rows went while it was lent, durably.
        self.open_files.forget(name);
        match self.chunk_files().remove(name) {
            Ok(()) => self.space.add(-(bytes as i64)),
            Err(error) => tracing::warn!(name, %error, "a chunk file without a use could not be removed"),
        }
    }

    /// The same now and then, while a mapping is left.
    pub(super) fn reclaim_when_due(&self, file: &Arc<LiveFile>, now: Instant) {
        let is_due = |state: &State| {
            !state.modes.is_passthrough() && state.lent.as_ref().is_some_and(|lent| now >= lent.look_at)
        };
        if !is_due(&file.state.read()) {
            return;
        }
        let mut state = file.state.write();
        self.reclaim(&mut state);
        if let Some(lent) = &mut state.lent {
            lent.look_at = now + lent.look_after;
            lent.look_after = (lent.look_after * 2).min(LOOK_LAST);
        }
    }

    fn is_held(&self, name: &str) -> bool {
        self.open_files.forget(name);
        match self.chunk_files().open(name) {
            Ok(file) => !lease::nobody_has(&file).unwrap_or(false),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Before the content of a file without a session changes: an image that somebody may still read past us becomes the
    /// session's file.
    pub(super) fn thaw_if_held(&self, ino: InodeId, state: &mut State) -> Result<()> {
        self.reclaim(state);
        if state.lent.is_some() { self.thaw(ino, state) } else { Ok(()) }
    }

    /// Makes the lent image a session's file again (P3).
    pub(super) fn thaw(&self, ino: InodeId, state: &mut State) -> Result<()> {
        let Some(lent) = &state.lent else { return Ok(()) };
        let image = lent.image.clone();
        let inode = self.meta.inode(ino)?;
        let failed = |error| local_error(format!("thaw the file of inode {ino}"), error);
        let name = |session| SessionName { session, ino, base: inode.generation, whole: true };
        let (copy, own) = (name(self.next_session()), name(self.next_session()));
        let files = self.chunk_files();
        files.link(&image.name, &own.path()).map_err(failed)?;
        let thawed = Staged::thaw(files, own, clock::instant()).map_err(failed);
        let given_up = |staged| {
            let given_up = self.give_up(ino, &image, &copy.path());
            // Latched: it is not known what the next mount's rows name.
            if given_up.is_err() && self.meta.latched().is_none() {
                self.remove_useless(&copy.path());
            }
            given_up.map(|()| staged)
        };
        let thawed = thawed.and_then(given_up);
        let mut staged = match thawed {
            Ok(staged) => staged,
            Err(error) => {
                // As it was: a second name is nothing.
                self.remove_useless(&own.path());
                return Err(error);
            }
        };
        // After the rows: who read them before finds that he must read them again.
        let rowless = files.lending().thawed(&image.name);
        state.lent = None;
        self.open_files.forget(&image.name);
        self.space.add(staged.account(0) - rowless.map_or(0, |bytes| bytes as i64));
        let known = Attributes { size: inode.size, mtime: inode.mtime, ctime: inode.ctime };
        state.attributes = Some(state.attributes.unwrap_or(known));
        let synced = self.meta.sync();
        if synced.is_ok()
            && let Err(error) = files.remove(&image.name)
        {
            tracing::warn!(name = %image.name, %error, "the old name of a file could not be removed");
        }
        let (id, path) = (staged.id, staged.path.clone());
        let renamed = staged.renamed(id, path).map_err(failed);
        state.staged = Some(staged);
        renamed?;
        synced?;
        failpoint::pass(Point::Thaw);
        self.reserve(ino, state, false).map(drop)
    }

    fn remove_useless(&self, path: &str) {
        if let Err(error) = self.chunk_files().remove(path) {
            tracing::warn!(path, %error, "a file without a use could not be removed");
        }
    }

    /// Takes the rows of an image away; what is pinned is in `copy` then. An error: no row names `copy`, which may be there.
    fn give_up(&self, ino: InodeId, image: &Whole, copy: &str) -> Result<()> {
        let failed = |error| local_error(format!("copy what is pinned of inode {ino}"), error);
        let files = self.chunk_files();
        let source = files.open(&image.name).map_err(failed)?;
        if self.shares_blocks() {
            let shared = files.create(copy).and_then(|target| {
                let shared = copy::share(&source, &target)?;
                if shared {
                    target.sync_all()?;
                    files.sync_entry(copy)?;
                }
                Ok(shared)
            });
            let replaced = match shared.map_err(failed)? {
                true => self.meta.write(|tx| tx.replace_file(image.file, &image.name, copy))?,
                false => {
                    self.cannot_share_blocks();
                    false
                }
            };
            if replaced {
                return Ok(());
            }
            files.remove(copy).map_err(failed)?;
        }
        let mut copied = Vec::new();
        let mut target: Option<File> = None;
        let (given_up, bytes) = loop {
            let pinned = self.meta.pinned(image.file, u64::MAX)?;
            for range in pinned.into_iter().filter(|range| !copied.contains(range)).collect::<Vec<_>>() {
                let target = match &mut target {
                    Some(target) => target,
                    None => target.insert(files.create(copy).map_err(failed)?),
                };
                copy::range(&source, target, range.clone()).map_err(failed)?;
                copied.push(range);
            }
            let mut bytes = 0;
            if let Some(target) = &target {
                target.sync_all().and_then(|()| files.sync_entry(copy)).map_err(failed)?;
                bytes = target.metadata().map_err(failed)?.blocks() * 512;
            }
            // A chunk may be pinned again meanwhile: a target was added, or lost it.
            let taken = self.meta.write(|tx| tx.give_up_file((image.file, &image.name), &copied, copy, bytes))?;
            if let Some(taken) = taken {
                break (taken, bytes);
            }
        };
        // The rows are gone: nothing may fail any more.
        let kept = if given_up.copied { bytes } else { 0 };
        if target.is_some() && !given_up.copied {
            self.remove_useless(copy);
        }
        self.space.add(kept as i64 - given_up.bytes as i64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::testing;
    use std::sync::atomic::Ordering;

    use crate::write::iomode::{Io, Wish};
    use crate::write::opening::{Handle, Opened};
    use crate::write::pipeline_tests::Mount;

    /// Takes every file, as the kernel does.
    struct Takes;

    impl Kernel for Takes {
        fn register(&self, _: &File) -> io::Result<Backing> {
            Ok(Arc::new(()))
        }

        fn opened(&mut self, _: &Opened, _: Option<&Backing>) {}
    }

    /// A mount with a file whose image can be lent, all of it pinned.
    fn sealed() -> (tempfile::TempDir, Mount, InodeId) {
        let (dir, meta) = testing::store();
        drop(meta);
        let mount = Mount::after(dir.path(), true, "boot");
        let ino = mount.create(b"f");
        let content: Vec<u8> = (0..IMAGE_MIN).map(|at| (at * 7 + at / 251 + 1) as u8).collect();
        mount.files.write(ino, 0, &content).unwrap();
        mount.close(ino);
        mount.settle();
        (dir, mount, ino)
    }

    /// Opens as Vfs does where `fsync` waits for targets, or not.
    fn open(mount: &Mount, ino: InodeId, writes: bool, unseen: bool) -> Handle {
        #[derive(Default)]
        struct Answer(Option<Handle>);
        impl Kernel for Answer {
            fn register(&self, _: &File) -> io::Result<Backing> {
                Ok(Arc::new(()))
            }
            fn opened(&mut self, opened: &Opened, _: Option<&Backing>) {
                self.0 = Some(opened.handle);
            }
        }
        let mut answer = Answer::default();
        let wish = Wish { reads: true, writes, unseen, ..Wish::default() };
        mount.files.open(ino, InodeId::ROOT, &wish, None, &mut answer).unwrap();
        answer.0.expect("it was answered")
    }

    #[test]
    fn p4_who_waits_for_targets_waits_for_no_reader_however_large_the_file() {
        let (_dir, mount, ino) = sealed();
        let files = &mount.files;
        files.passthrough().probe(files.chunk_files(), |_| Ok(()));
        files.cannot_share_blocks();
        files.copied_max.store(IMAGE_MIN - 1, Ordering::Relaxed);
        let reader = open(&mount, ino, false, true);
        assert_eq!(reader.io, Io::Passthrough, "lent, while nobody waits for targets");
        let writer = open(&mount, ino, true, false);
        assert_eq!(writer.io, Io::Direct, "joined, when the policy is another");
        files.write(ino, 5, b"news").unwrap();
        let slots = || {
            let count = "SELECT count(*) FROM slot";
            mount.meta.read(|conn| Ok(conn.query_row(count, [], |row| row.get::<_, u32>(0))?)).unwrap()
        };
        files.flush(ino).unwrap();
        assert_eq!(slots(), 1, "by itself it waits for its close");
        // Another copy is under way, which may be older than the last write.
        files.find(ino).unwrap().state.write().exporting = true;
        std::thread::scope(|scope| {
            let cut = scope.spawn(|| files.cut_for(ino).unwrap().expect("it has a name"));
            let until = clock::instant() + Duration::from_millis(200);
            while !cut.is_finished() && clock::instant() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
            files.find(ino).unwrap().state.write().exporting = false;
        });
        mount.settle();
        assert_eq!(slots(), 0, "a copy is committed while the reader has it");
        assert_eq!(mount.read(ino, 5, 4), b"news");
        for handle in [writer, reader] {
            files.flush(ino).unwrap();
            files.release(ino, handle).unwrap();
        }
        mount.settle();
        let reader = open(&mount, ino, false, false);
        assert_eq!(reader.io, Io::Plain, "not lent where somebody may wait");
        files.release(ino, reader).unwrap();
        files.copied_max.store(IMAGE_MIN, Ordering::Relaxed);
        assert_eq!(open(&mount, ino, false, false).io, Io::Passthrough, "one that is copied at once is");
    }

    /// All files in `chunks/`.
    fn chunk_files(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
        let entries = |path| std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        entries(dir.join("chunks")).flat_map(entries).collect()
    }

    /// Takes none; its rows go meanwhile.
    struct Refuses<'a>(&'a Mount, std::path::PathBuf);

    impl Kernel for Refuses<'_> {
        fn register(&self, _: &File) -> io::Result<Backing> {
            let files = self.0.files.chunk_files();
            let name = self.1.strip_prefix(files.state_dir()).unwrap().to_str().unwrap();
            assert!(files.lending().lost_its_row(name, 0));
            Err(io::ErrorKind::OutOfMemory.into())
        }

        fn opened(&mut self, _: &Opened, _: Option<&Backing>) {}
    }

    #[test]
    fn a_file_that_loses_its_rows_while_the_kernel_refuses_it_is_removed() {
        let (dir, mount, ino) = sealed();
        let image = chunk_files(dir.path()).remove(0);
        mount.files.with_live(ino, InodeId::ROOT, |_, state| {
            let found = mount.files.image_of(ino, state).unwrap();
            let lent = mount.files.lend(ino, state, found, &mut Refuses(&mount, image.clone())).unwrap();
            assert!(lent.is_none() && !image.exists());
        });
    }

    #[test]
    fn p3_a_thaw_that_fails_leaves_nothing_behind() {
        let (dir, mount, ino) = sealed();
        let files = &mount.files;
        files.cannot_share_blocks();
        let before = chunk_files(dir.path());
        let [image] = before.as_slice() else { panic!("one image: {before:?}") };
        files.with_live(ino, InodeId::ROOT, |_, state| {
            let found = files.image_of(ino, state).unwrap();
            files.lend(ino, state, found, &mut Takes).unwrap().expect("it is lent");
            // As good as any other error while it is copied.
            let whole = std::fs::read(image).unwrap();
            File::options().write(true).open(image).unwrap().set_len(IMAGE_MIN - 1).unwrap();
            for _ in 0..3 {
                files.thaw(ino, state).unwrap_err();
                assert_eq!(chunk_files(dir.path()), before);
            }
            std::fs::write(image, whole).unwrap();
            files.thaw(ino, state).unwrap();
            assert!(state.lent.is_none() && state.staged.is_some());
            assert_eq!(chunk_files(dir.path()).len(), 2, "the session's file, and what is pinned");
        });
    }
}
