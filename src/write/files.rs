//! The table of live files: opening, closing, and what others must know about them.
//!
//! Owns: which inodes are live, the end of sessions (freeze at the last close, discard without a name).
//! Does not own: I/O on them (`io`), slots (`slots`), sealing and commit (`pipeline`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crate::news as watch;
use crossbeam_channel::{Receiver, Sender};
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard};

use super::births::Births;
use super::export::COPIED_MAX;
use super::lend::Images;
use super::live::{Attributes, LiveFile, State};
use super::opening::{Handle, Passthrough};
use super::session::{Frozen, Permit, Staged, remove_files};
use super::trouble::Troubles;
use super::watch::Watch;
use crate::chunk::evict::Evictor;
use crate::chunk::file::ChunkFiles;
use crate::chunk::open::OpenFiles;
use crate::chunk::space::Space;
use crate::chunk::{copy, lease};
use crate::clock::{self, Instant, Timestamp};
use crate::id::{InodeId, SessionId};
use crate::meta::{Error, Meta, Result};
use crate::priority::Programs;

/// Session numbers of one mount: the high half is the number of the mount, so that none is ever used twice.
const SESSIONS_PER_MOUNT: u64 = 1 << 32;

/// What live files are made from.
pub struct Options {
    pub meta: Arc<Meta>,
    pub open_files: Arc<OpenFiles>,
    pub space: Arc<Space>,
    pub evictor: Arc<Evictor>,
}

/// All live files of a mount: inodes that are open or have content that is not committed yet.
pub struct Files {
    pub(super) meta: Arc<Meta>,
    pub(super) open_files: Arc<OpenFiles>,
    pub(super) space: Arc<Space>,
    pub(super) evictor: Arc<Evictor>,
    /// In an order that is the same each time: a rotation goes over all of them.
    live: Mutex<BTreeMap<InodeId, Arc<LiveFile>>>,
    births: Births,
    programs: Programs,
    /// Held for reading by every change of content, for writing by a rotation: one cut of the whole filesystem (O8).
    pub(super) gate: RwLock<()>,
    /// Sessions that take writes, each with its descriptors, and how many there may be.
    pub(super) sessions: Arc<AtomicUsize>,
    pub(super) sessions_max: usize,
    first_session: SessionId,
    next_session: AtomicU64,
    /// Chunk files of sessions whose inode lost its last name: they go once that unlink is durable (S3).
    doomed: Mutex<Vec<String>>,
    pub(super) jobs: Sender<SealJob>,
    /// Counts commits and discards of sessions, for waiters.
    pub(super) settled: Mutex<u64>,
    pub(super) settled_changed: Condvar,
    /// The same for tasks.
    pub(super) settled_news: watch::Sender<u64>,
    /// Closed files whose bytes the disk does not give.
    pub(super) troubles: Troubles,
    /// Somebody waits: gathered chunks close at once (S9).
    pub(super) hurry: AtomicUsize,
    /// The same, until this time.
    pub(super) hurry_until: Mutex<Instant>,
    pub(super) passthrough: Passthrough,
    /// The state filesystem copies files by sharing their blocks, as far as is known.
    sharing: AtomicBool,
    /// Which files are whole images.
    pub(super) images: Images,
    /// Bytes up to which an open file is copied whenever it is asked for (P4).
    pub(super) copied_max: AtomicU64,
    /// When a large file was copied last (P4).
    pub(super) large_copy: Mutex<Option<Instant>>,
    stale: (Sender<Stale>, Receiver<Stale>),
}

/// What the kernel remembers and must ask for again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stale {
    /// Size, blocks, times, mode of an inode.
    Attributes(InodeId),
    /// What a directory has under a name, or that it has nothing.
    Entry { parent: InodeId, name: Vec<u8> },
}

/// A frozen session to be sealed.
#[derive(Debug, Clone)]
pub struct SealJob {
    pub file: Arc<LiveFile>,
    pub frozen: Arc<Frozen>,
}

impl Files {
    /// An empty table, and the queue that sealer threads take frozen sessions from.
    pub fn new(options: Options) -> Result<(Arc<Files>, Receiver<SealJob>)> {
        let (_, _, mounts) = options.meta.writer_identity()?;
        let first_session = SessionId(mounts * SESSIONS_PER_MOUNT + 1);
        // Unbounded, but an entry is two pointers and each frozen session is in memory anyway.
        let (jobs, queue) = crossbeam_channel::unbounded();
        let files = Files {
            meta: options.meta,
            open_files: options.open_files,
            space: options.space,
            evictor: options.evictor,
            live: Mutex::default(),
            births: Births::default(),
            programs: Programs::default(),
            gate: RwLock::new(()),
            sessions: Arc::default(),
            // A session has two descriptors at most: half of all are left to reads, targets and the store.
            sessions_max: (crate::chunk::descriptors() / 4).max(1),
            first_session,
            next_session: AtomicU64::new(first_session.0),
            doomed: Mutex::default(),
            jobs,
            settled: Mutex::new(0),
            settled_changed: Condvar::new(),
            settled_news: watch::Sender::new(0),
            troubles: Troubles::default(),
            hurry: AtomicUsize::new(0),
            hurry_until: Mutex::new(Instant::START),
            passthrough: Passthrough::default(),
            sharing: AtomicBool::new(true),
            images: Images::default(),
            copied_max: AtomicU64::new(COPIED_MAX),
            large_copy: Mutex::new(None),
            stale: crossbeam_channel::unbounded(),
        };
        Ok((Arc::new(files), queue))
    }

    /// The chunk files of the state directory.
    pub fn chunk_files(&self) -> &ChunkFiles {
        self.open_files.files()
    }

    /// While it is held no rotation cuts, and `syncing` is not synced. The sync comes first: a cut waits for one with the
    /// gate still open, and whoever waited for it behind the gate would hold that cut, and every writer.
    pub(super) fn still<'a>(
        &'a self,
        syncing: Option<&'a Arc<LiveFile>>,
    ) -> (Option<MutexGuard<'a, ()>>, RwLockReadGuard<'a, ()>) {
        let syncing = syncing.map(|file| file.syncing.lock());
        (syncing, self.gate.read())
    }

    /// Whether opens may be passthrough.
    pub fn passthrough(&self) -> &Passthrough {
        &self.passthrough
    }

    /// True unless a probe or a copy showed that blocks cannot be shared here.
    pub(super) fn shares_blocks(&self) -> bool {
        self.sharing.load(Ordering::Relaxed)
    }

    /// Tries whether they can.
    pub fn probe_sharing(&self) {
        if !copy::shares_in(self.chunk_files()).unwrap_or(false) {
            self.cannot_share_blocks();
        }
    }

    pub(super) fn cannot_share_blocks(&self) {
        self.sharing.store(false, Ordering::Relaxed);
    }

    /// True while the file of a session that takes no more writes is read as a layer.
    pub fn is_layer(&self, session: SessionId) -> bool {
        self.all().iter().any(|file| file.state.read().frozen.iter().any(|frozen| frozen.id == session))
    }

    /// The first session of this mount; what is below belongs to earlier ones.
    pub fn first_session(&self) -> SessionId {
        self.first_session
    }

    /// Takes over a session of an earlier mount, after all older ones of its inode: it goes on to be sealed.
    pub fn resume(&self, ino: InodeId, parent: InodeId, attributes: Attributes, frozen: Frozen) {
        self.with_live(ino, parent, |file, state| {
            state.attributes = Some(attributes);
            let frozen = Arc::new(frozen);
            state.frozen.push_front(frozen.clone());
            if state.frozen.len() == 1 {
                self.queue(file, frozen);
            }
        });
    }

    /// Closed files whose bytes the disk does not give.
    pub fn troubles(&self) -> &Troubles {
        &self.troubles
    }

    /// Births that wait for their content (O2).
    pub fn births(&self) -> &Births {
        &self.births
    }

    /// When programs asked for something: to be told of each request.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// True while what nobody waits for shall keep out of the way of programs (`priority`): they are busy, and there is room
    /// for what they do.
    pub fn can_wait(&self) -> bool {
        self.programs.are_busy(clock::instant())
            && !self.in_a_hurry()
            && self.space.has_room_to_spare()
            && !self.space.wants_eviction()
    }

    /// Counts one handle less. The last close ends the session: it takes its slot if bytes came after the last FLUSH
    /// (mapped stores), and goes to the sealers.
    pub fn release(&self, ino: InodeId, handle: Handle) -> Result<()> {
        let Some(file) = self.find(ino) else { return Ok(()) };
        let result = {
            let _syncing = file.syncing.lock();
            let mut state = file.state.write();
            state.modes.released(handle.io);
            self.reclaim(&mut state);
            if state.opens() == 0 { self.close_last(&file, &mut state) } else { Ok(()) }
        };
        if handle.is_mappable() {
            self.attributes_are_stale(ino);
        }
        self.forget_if_idle(&file);
        result
    }

    /// Attributes changed that the kernel goes on to show, as by stores through a mapping (P6): it is told to ask again.
    pub fn attributes_are_stale(&self, ino: InodeId) {
        // Nobody listens where there is no kernel.
        let _ = self.stale.0.send(Stale::Attributes(ino));
    }

    /// The kernel was told of a name something else than is so, or nothing, and that of its directory's times.
    pub fn entry_is_stale(&self, parent: InodeId, name: &[u8]) {
        let _ = self.stale.0.send(Stale::Entry { parent, name: name.to_vec() });
        self.attributes_are_stale(parent);
    }

    /// What the kernel must ask for again, as it comes. Never to be told by a request's thread.
    pub fn stale(&self) -> &Receiver<Stale> {
        &self.stale.1
    }

    /// Ends the session of a file that nobody has open. Also called again for one whose freezing failed (disk full).
    pub(super) fn close_last(&self, file: &Arc<LiveFile>, state: &mut State) -> Result<()> {
        self.births.settled(file.ino);
        if state.unnamed {
            self.discard_sessions(state);
            return Ok(());
        }
        self.freeze(file, state)
    }

    /// Freezes the staged session, if there is one, after its slot covers all of its bytes.
    pub(super) fn freeze(&self, file: &Arc<LiveFile>, state: &mut State) -> Result<()> {
        let Some(staged) = &state.staged else { return Ok(()) };
        let is_free = |watch: &Watch| match watch.read {
            // Also what only reads through a mapping: it must see what a later writer changes, and that one begins another
            // file.
            true => lease::nobody_has(&staged.file),
            false => lease::nobody_writes(&staged.file),
        };
        let free = staged.backing.as_ref().map_or(Ok(true), is_free);
        let still_mapped = !free.map_err(|e| local_error(format!("lease on the file of inode {}", file.ino), e))?;
        // After the lease: from then on nobody writes. One that may be written to is looked at once; each look would count.
        if !still_mapped || state.mapped_since.is_none() {
            self.observe(file.ino, state)?;
        }
        if still_mapped {
            state.mapped_since.get_or_insert_with(clock::instant);
            if state.staged.as_ref().is_some_and(Staged::is_dirty) {
                self.reserve(file.ino, state, false)?;
            }
            return Ok(());
        }
        let Some(staged) = &state.staged else { return Ok(()) };
        let was_mapped = state.mapped_since.take().is_some();
        if was_mapped {
            self.attributes_are_stale(file.ino);
        }
        if !staged.is_dirty() && !staged.has_slot {
            // It began, and its first change failed (disk full): there is nothing to seal.
            self.discard_sessions(state);
            return Ok(());
        }
        if staged.is_dirty() && self.reserve(file.ino, state, false)?.is_none() {
            state.unnamed = true;
            self.discard_sessions(state);
            return Ok(());
        }
        self.push_frozen(file, state);
        Ok(())
    }

    /// Looks what the kernel wrote into a backing file since the last look.
    pub(super) fn observe(&self, ino: InodeId, state: &mut State) -> Result<()> {
        let (Some(staged), Some(attributes)) = (&mut state.staged, &mut state.attributes) else { return Ok(()) };
        if staged.backing.is_some() {
            staged
                .observe(attributes)
                .map_err(|e| local_error(format!("look at the backing file of inode {ino}"), e))?;
            self.space.add(staged.account(0));
        }
        Ok(())
    }

    /// Counts the space that backing files take by now: nobody else does (D2).
    pub fn sample_backing(&self) {
        for file in self.all() {
            let mut state = file.state.write();
            if let Some(staged) = state.staged.as_mut().filter(|staged| staged.backing.is_some()) {
                self.space.add(staged.account(0));
            }
        }
        self.space.sample();
    }

    /// Turns the staged session, whose slot stands, into a frozen one and hands it to the sealers in its turn.
    pub(super) fn push_frozen(&self, file: &Arc<LiveFile>, state: &mut State) {
        let (Some(staged), Some(attributes)) = (state.staged.take(), state.attributes) else { return };
        let frozen = Arc::new(staged.freeze(attributes.size));
        state.frozen.push_front(frozen.clone());
        if state.frozen.len() == 1 {
            self.queue(file, frozen);
        }
    }

    pub(super) fn queue(&self, file: &Arc<LiveFile>, frozen: Arc<Frozen>) {
        // The receivers are gone only when the mount is; then the next mount seals what has a row.
        let _ = self.jobs.send(SealJob { file: file.clone(), frozen });
    }

    /// Makes room for sessions where there are as many as may be: those of other files go to the sealers, open or not, and
    /// begin anew with the next write (O8).
    pub fn make_room(&self) -> Result<()> {
        if self.sessions.load(Ordering::Acquire) < self.sessions_max {
            return Ok(());
        }
        let (exported, cut) = self.rotate_what_can();
        if let Err(error) = exported {
            tracing::warn!(%error, "an open file could not be copied; others made room");
        }
        cut.map(drop)
    }

    /// True while `ino` has an open handle.
    pub fn is_open(&self, ino: InodeId) -> bool {
        self.find(ino).is_some_and(|file| file.state.read().opens() > 0)
    }

    /// Tells a live session that `utimens`, `chmod` … set these (`None` = unchanged), so that a later slot carries them.
    pub fn attributes_set(&self, ino: InodeId, mtime: Option<Timestamp>, ctime: Timestamp) {
        let Some(file) = self.find(ino) else { return };
        let mut state = file.state.write();
        if let Err(error) = self.observe(ino, &mut state) {
            tracing::warn!(inode = ino.0, %error, "what was written last may show a wrong time");
        }
        if let Some(attributes) = &mut state.attributes {
            attributes.mtime = mtime.unwrap_or(attributes.mtime);
            attributes.ctime = ctime;
        }
    }

    /// Tells that `ino` lost its last name; its slots were voided in that transaction. Its sessions live while it is open.
    pub fn unnamed(&self, ino: InodeId) {
        self.births.settled(ino);
        let Some(file) = self.find(ino) else { return };
        {
            let mut state = file.state.write();
            state.unnamed = true;
            if state.opens() == 0 {
                self.reclaim(&mut state);
                self.discard_sessions(&mut state);
            }
        }
        self.forget_if_idle(&file);
    }

    /// Forgets the sessions of a file without a name that nobody has open; their files go when that is durable. One that a
    /// sealer holds is found without a slot at its commit and discarded there.
    fn discard_sessions(&self, state: &mut State) {
        if let Some(staged) = state.staged.take() {
            self.space.add(-(staged.accounted as i64));
            self.doomed.lock().push(staged.path);
        }
        state.frozen.retain(|frozen| frozen.kept.get().is_none());
        if state.frozen.is_empty() {
            state.attributes = None;
        }
    }

    /// Removes the chunk files of inodes that lost their last name, after their unlinks are durable: until then a power cut
    /// brings the name back, and with it what an `fsync` had acknowledged (S3).
    pub fn remove_doomed(&self) -> Result<()> {
        let doomed = std::mem::take(&mut *self.doomed.lock());
        if doomed.is_empty() {
            return Ok(());
        }
        // Latched: they stay for the next mount.
        self.meta.sync()?;
        for path in doomed {
            if let Err(error) = remove_files(self.open_files.files(), &path) {
                tracing::warn!(%path, %error, "a chunk file without a use could not be removed");
            }
        }
        Ok(())
    }

    /// A sync of these sessions' files failed: everything is latched, and the next mount takes their bytes for lost unless an
    /// earlier sync covered them.
    pub(super) fn sync_failed(&self, paths: &[&str], what: &str, error: &std::io::Error) {
        // Not the disk's word on the bytes: the call did not come to pass and may be repeated.
        let passing = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EINTR, libc::ENOENT];
        if error.raw_os_error().is_some_and(|code| passing.contains(&code)) {
            return;
        }
        for path in paths {
            if let Err(error) = self.open_files.files().mark_unsynced(path) {
                tracing::error!(path, %error, "that a chunk file is not synced could not be noted");
            }
        }
        self.meta.latch(format!("{what}: {error}"));
    }

    /// A system call failed that takes room on the disk.
    pub(super) fn refused(&self, what: String, source: std::io::Error) -> Error {
        if let Some(libc::ENOSPC | libc::EDQUOT) = source.raw_os_error() {
            self.space.denied();
        }
        local_error(what, source)
    }

    /// The number of the next session.
    pub(super) fn next_session(&self) -> SessionId {
        SessionId(self.next_session.fetch_add(1, Ordering::Relaxed))
    }

    /// Makes sure that a staged session takes writes, and that size and times of the file are at hand. After a change,
    /// [`Staged::changed_by_us`].
    pub(super) fn staged<'a>(
        &self,
        ino: InodeId,
        state: &'a mut State,
    ) -> Result<(&'a mut Staged, &'a mut Attributes)> {
        if state.staged.is_none() {
            self.thaw_if_held(ino, state)?;
        }
        if state.staged.is_none() {
            let inode = self.meta.inode(ino)?;
            let attributes =
                state.attributes.unwrap_or(Attributes { size: inode.size, mtime: inode.mtime, ctime: inode.ctime });
            let whole = attributes.size == 0;
            // Beyond that, reads and targets would find no descriptor. Whoever can wait lets idle sessions be sealed first.
            let permit = Permit::take(&self.sessions, self.sessions_max).ok_or(rustix::io::Errno::NOSPC)?;
            let session = self.next_session();
            let mut staged = Staged::begin(
                self.open_files.files(),
                session,
                ino,
                inode.generation,
                whole,
                attributes.size,
                clock::instant(),
            )
            .map_err(|source| self.refused(format!("begin session {session} of inode {ino}"), source))?;
            staged.permit = Some(permit);
            state.attributes = Some(attributes);
            state.staged = Some(staged);
        }
        self.observe(ino, state)?;
        match (&mut state.staged, &mut state.attributes) {
            (Some(staged), Some(attributes)) => Ok((staged, attributes)),
            _ => unreachable!("a staged session has attributes"),
        }
    }

    /// The live file of `ino`, if it is live.
    pub(super) fn find(&self, ino: InodeId) -> Option<Arc<LiveFile>> {
        self.live.lock().get(&ino).cloned()
    }

    /// All live files.
    pub(super) fn all(&self) -> Vec<Arc<LiveFile>> {
        self.live.lock().values().cloned().collect()
    }

    /// Runs `body` on the state of `ino`, which becomes live if it is not.
    pub(super) fn with_live<T>(
        &self,
        ino: InodeId,
        parent: InodeId,
        body: impl FnOnce(&Arc<LiveFile>, &mut State) -> T,
    ) -> T {
        loop {
            let file = self.live.lock().entry(ino).or_insert_with(|| Arc::new(LiveFile::new(ino, parent))).clone();
            let mut state = file.state.write();
            if !state.dead {
                return body(&file, &mut state);
            }
        }
    }

    /// Takes a file out of the table when nothing holds it.
    pub(super) fn forget_if_idle(&self, file: &Arc<LiveFile>) {
        let mut live = self.live.lock();
        // Who holds the state now looks again after, or the next tick does: the table is not held up by a file's I/O.
        let Some(mut state) = file.state.try_write() else { return };
        if state.is_idle() && !state.dead {
            state.dead = true;
            live.remove(&file.ino);
        }
    }
}

/// A failed system call on a chunk file.
pub(super) fn local_error(what: String, source: std::io::Error) -> Error {
    match source.raw_os_error() {
        // What the program shall see as it is: no space, quota, file too large.
        Some(code @ (libc::ENOSPC | libc::EDQUOT | libc::EFBIG)) => {
            Error::Refused(rustix::io::Errno::from_raw_os_error(code))
        }
        // The descriptors are ours, not the program's: to it there is no room.
        Some(libc::EMFILE | libc::ENFILE) => Error::Refused(rustix::io::Errno::NOSPC),
        _ => Error::Io { what, source },
    }
}
