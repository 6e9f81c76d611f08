//! From frozen sessions to committed generations: the sealer threads and the committer.
//!
//! Owns: the threads, the open batch, syncing before the commit (S2), what happens to a session's files after it.
//! Does not own: the pass over a session's bytes (`seal`), the layout of shared chunks (`gather`), the rows (`meta::commit`).
//!
//! ```text
//! jobs ─▶ sealer × n: read, cut, hash; sync if large ─▶ committer: gather, hash, sync, one transaction ─▶ live files
//!                                                            └─ a failed step keeps the batch and tries again
//! ```
//!
//! - While programs are busy nothing is sealed or committed, unless somebody waits for it (`priority`).
//! - Sessions of one inode come one after the other: the next is queued when the one before is committed.
//! - Files are removed only after the metadata log is synced past the commit that made them useless (S3).

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::files::{Files, SealJob};
use super::gather::{self, Closing, Piece};
use super::seal::{self, Sealed};
use super::session::{remove_files, remove_records};
use crate::clock::{self, Instant};
use crate::id::{ChunkFileId, ChunkHash, InodeId, SessionId};
use crate::meta::Result;
use crate::meta::commit::{Batch, Committed, SealedChunk, SealedExtent, SealedPiece, SealedSession};
use crate::priority;
use crate::testing::failpoint::{self, Point};

/// From this size on, writeback begins before a file is sealed.
const WRITEBACK_AT: u64 = 1 << 20;
/// Sealed sessions between sealers and committer at most.
const SEALED_QUEUE: usize = 256;
/// Sessions in one batch at most.
const COMMIT_SESSIONS: usize = 1024;
/// Sessions without a use that one transaction forgets (D8).
const DEAD_AT_ONCE: usize = 128;
/// From this many files in a batch on, one `syncfs` is cheaper than a sync of each (S2).
const SYNCFS_FROM: usize = 32;
/// How long after a failure (disk full, I/O error) the same step is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// The threads of the pipeline; dropping it does not stop them, [`Pipeline::stop`] does.
pub struct Pipeline {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// A session that was read and hashed, before its small pieces are.
struct Ready {
    job: SealJob,
    sealed: Sealed,
}

impl Pipeline {
    /// Starts `sealers` sealer threads and the committer.
    pub fn start(
        files: &Arc<Files>,
        queue: Receiver<SealJob>,
        sealers: usize,
        chunk_size: u64,
    ) -> io::Result<Pipeline> {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, sealed) = crossbeam_channel::bounded(SEALED_QUEUE);
        let mut threads = Vec::new();
        for index in 0..sealers {
            let (files, queue, sender, stop) = (files.clone(), queue.clone(), sender.clone(), stop.clone());
            threads.push(
                std::thread::Builder::new()
                    .name(format!("sealer-{index}"))
                    .spawn(move || run_sealer(&files, &queue, &sender, &stop, chunk_size))?,
            );
        }
        let committer = Committer {
            files: files.clone(),
            chunk_size,
            ready: Vec::new(),
            gathering: Vec::new(),
            closing: Closing::new(chunk_size, clock::instant()),
        };
        let stopping = stop.clone();
        threads.push(
            std::thread::Builder::new().name("committer".into()).spawn(move || committer.run(&sealed, &stopping))?,
        );
        Ok(Pipeline { stop, threads })
    }

    /// Ends the threads. What is not committed stays as it is, for the next mount.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the seal pipeline panicked");
            }
        }
    }
}

fn run_sealer(files: &Files, queue: &Receiver<SealJob>, sender: &Sender<Ready>, stop: &AtomicBool, chunk_size: u64) {
    priority::stand_back();
    while !stop.load(Ordering::Acquire) {
        let Ok(job) = queue.recv_timeout(Duration::from_millis(100)) else { continue };
        priority::wait_while(stop, || files.can_wait());
        match seal_one(files, &job, chunk_size) {
            Ok(sealed) => {
                let mut ready = Ready { job, sealed };
                while let Err(crossbeam_channel::SendTimeoutError::Timeout(back)) =
                    sender.send_timeout(ready, Duration::from_millis(100))
                {
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                    ready = back;
                }
            }
            Err(error) => {
                if job.file.state.read().unnamed && files.meta.sync().is_ok() {
                    files.settle(&job, End::Discarded, None);
                    continue;
                }
                if files.meta.latched().is_some() {
                    // Its row and its files stay for the next mount.
                    continue;
                }
                files.troubles.note(job.file.ino, &error);
                tracing::error!(inode = %job.file.ino, path = %job.frozen.path, %error, "sealing failed, will be tried again");
                pause(RETRY, stop);
                files.queue(&job.file, job.frozen);
            }
        }
    }
}

/// Waits, but not longer than until `stop`.
fn pause(duration: Duration, stop: &AtomicBool) {
    let end = clock::instant() + duration;
    while clock::instant() < end && !stop.load(Ordering::Acquire) {
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

fn seal_one(files: &Files, job: &SealJob, chunk_size: u64) -> io::Result<Sealed> {
    let path = &job.frozen.path;
    let file = files.open_files.files().open(path)?;
    if job.frozen.size >= WRITEBACK_AT {
        begin_writeback(&file);
    }
    let sealed = seal::seal(&file, &job.frozen, chunk_size)?;
    failpoint::pass(Point::Seal);
    if !sealed.own.is_empty() {
        // A large file is synced here, so that the small ones of its moment do not wait for it.
        sync_sealed(files, path, &file).inspect_err(|e| files.sync_failed(&[path], &format!("sync of {path}"), e))?;
    }
    Ok(sealed)
}

/// The disk writes while the file is read and hashed, so that the sync finds little to do. Not at FLUSH: it waits for the disk's
/// queue, and `close` would be as slow as the disk.
fn begin_writeback(file: &File) {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open while `file` lives. A failure only means that the sync has more to do.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Makes a sealed file survive a power cut: its bytes and its name.
fn sync_sealed(files: &Files, path: &str, file: &File) -> io::Result<()> {
    failpoint::check(Point::SyncSealed)?;
    file.sync_data()?;
    files.open_files.files().sync_entry(path)
}

struct Committer {
    files: Arc<Files>,
    chunk_size: u64,
    /// Sessions without small pieces: committed as soon as nothing more is at hand.
    ready: Vec<Ready>,
    /// Sessions whose small pieces wait for a shared chunk.
    gathering: Vec<Ready>,
    closing: Closing,
}

impl Committer {
    fn run(mut self, sealed: &Receiver<Ready>, stop: &AtomicBool) {
        while !stop.load(Ordering::Acquire) {
            priority::wait_while(stop, || self.files.can_wait());
            let hurry = self.files.in_a_hurry();
            let now = clock::instant();
            let due = self.closing.due(hurry);
            let wait = match due {
                _ if !self.ready.is_empty() => Duration::ZERO,
                Some(due) if !hurry => due.since(now).min(POLL),
                Some(_) => COMPANY,
                None => POLL,
            };
            match sealed.recv_timeout(wait) {
                Ok(ready) => {
                    self.add(ready);
                    // Even in a hurry, what is at hand goes together.
                    let due = self.closing.due(false).is_some_and(|due| due <= now);
                    if self.ready.len() < COMMIT_SESSIONS && !due {
                        continue;
                    }
                }
                Err(RecvTimeoutError::Timeout) if hurry && self.ready.is_empty() && !self.files.jobs.is_empty() => {
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if !self.ready.is_empty() {
                let batch = std::mem::take(&mut self.ready);
                self.commit(batch, stop);
            }
            if self.closing.due(hurry).is_some_and(|due| due <= clock::instant()) {
                let batch = std::mem::take(&mut self.gathering);
                self.closing.closed();
                self.commit(batch, stop);
            }
        }
    }

    fn add(&mut self, ready: Ready) {
        if ready.sealed.small.is_empty() {
            self.ready.push(ready);
            return;
        }
        let now = clock::instant();
        for run in &ready.sealed.small {
            self.closing.add(run.end - run.start, now);
        }
        self.gathering.push(ready);
    }

    /// Commits a batch, trying again until it succeeds: its sessions hold acknowledged bytes.
    fn commit(&self, mut batch: Vec<Ready>, stop: &AtomicBool) {
        loop {
            match self.try_commit(&mut batch) {
                Ok(()) => return,
                // The rows and files stay for the next mount.
                Err(_) if self.files.meta.latched().is_some() => return,
                Err(error) => {
                    tracing::error!(sessions = batch.len(), %error, "commit of sealed sessions failed, will be tried again");
                    pause(RETRY, stop);
                }
            }
            if stop.load(Ordering::Acquire) {
                return;
            }
        }
    }

    /// Commits what it can of a batch; what came to its end leaves the batch.
    fn try_commit(&self, readies: &mut Vec<Ready>) -> Result<()> {
        let mut ended = HashSet::new();
        let result = self.commit_groups(readies, &mut ended);
        readies.retain(|ready| !ended.contains(&ready.job.frozen.id));
        result
    }

    fn commit_groups(&self, readies: &[Ready], ended: &mut HashSet<SessionId>) -> Result<()> {
        // A file that lost its name meanwhile may be gone from the disk, too: nothing of it is needed.
        let (live, dead): (Vec<&Ready>, Vec<&Ready>) =
            readies.iter().partition(|ready| !ready.job.file.state.read().unnamed);
        let batch = self
            .build(&live)
            .map_err(|source| super::files::local_error("read of sealed chunk files".into(), source))?;
        self.sync(&live)?;
        failpoint::pass(Point::Commit);
        for few in dead.chunks(DEAD_AT_ONCE) {
            self.files.meta.write(|tx| few.iter().try_for_each(|ready| tx.delete_session(ready.job.frozen.id)))?;
        }
        let mut outcome = Committed { files: vec![None; live.len()], ..Committed::default() };
        let mut done = Vec::new();
        let mut failed = None;
        for group in batch.groups() {
            match self.files.meta.write(|tx| tx.commit_group(&batch, &group)) {
                Ok(committed) => outcome.merge(committed),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
            done.extend(group);
        }
        failpoint::pass(Point::Committed);
        let index_of: HashMap<SessionId, usize> =
            live.iter().enumerate().map(|(index, ready)| (ready.job.frozen.id, index)).collect();
        self.files.meta.sync()?;
        for index in done {
            let ready = live[index];
            let Some(id) = outcome.files[index] else { continue };
            // Its bytes serve chunks; only the record of its ranges is of no more use.
            self.files.space.add(ready.sealed.allocated as i64);
            self.files.evictor.used(id);
            if let Err(error) = remove_records(self.files.open_files.files(), &ready.job.frozen.path) {
                tracing::warn!(path = %ready.job.frozen.path, %error, "a record without a use could not be removed");
            }
        }
        ended.extend(outcome.committed.iter().chain(&outcome.discarded));
        ended.extend(dead.iter().map(|ready| ready.job.frozen.id));
        for id in &outcome.committed {
            let index = index_of[id];
            let end = End::Committed { allocated: live[index].sealed.allocated };
            self.files.settle(&live[index].job, end, outcome.files[index]);
            if outcome.files[index].is_none() {
                // No chunk lies in it. After the layer: a reader that finds no file plans again, without the layer.
                let path = &live[index].job.frozen.path;
                self.files.open_files.forget(path);
                if let Err(error) = remove_files(self.files.open_files.files(), path) {
                    tracing::warn!(%path, %error, "a chunk file without a use could not be removed");
                }
            }
        }
        for id in outcome.discarded {
            let index = index_of[&id];
            // As filler of a shared chunk its file has a row and serves on.
            let end = if outcome.files[index].is_some() { End::Filler } else { End::Discarded };
            self.files.settle(&live[index].job, end, None);
        }
        for ready in dead {
            self.files.settle(&ready.job, End::Discarded, None);
        }
        self.keep_outlines(outcome.committed.iter().map(|id| live[index_of[id]]));
        failed.map_or(Ok(()), Err)
    }

    /// Nothing rests on outlines: one that is missing costs the fetch of a whole chunk.
    fn keep_outlines<'a>(&self, committed: impl Iterator<Item = &'a Ready>) {
        let chunks = committed.flat_map(|ready| &ready.sealed.own);
        let outlines: Vec<_> = chunks.filter_map(|chunk| Some((chunk.hash, chunk.outline.as_ref()?))).collect();
        if let Err(error) = self.files.meta.keep_outlines(&outlines) {
            tracing::warn!(%error, "outlines of chunks could not be kept");
        }
    }

    /// Hashes the shared chunks, syncs the files, and describes the batch for its transaction.
    fn build(&self, readies: &[&Ready]) -> io::Result<Batch> {
        let mut batch = Batch {
            files: readies.iter().map(|ready| (ready.job.frozen.path.clone(), ready.sealed.allocated)).collect(),
            ..Batch::default()
        };
        let mut extents: Vec<Vec<SealedExtent>> = vec![Vec::new(); readies.len()];
        for (index, ready) in readies.iter().enumerate() {
            for own in &ready.sealed.own {
                let chunk = batch.chunks.len();
                let mut pieces = Vec::with_capacity(own.runs.len());
                let mut at = 0;
                for (run, crc32c) in &own.runs {
                    let length = run.end - run.start;
                    pieces.push(SealedPiece {
                        chunk_offset: at,
                        length,
                        file: index,
                        file_offset: run.start,
                        crc32c: *crc32c,
                    });
                    extents[index].push(SealedExtent { offset: run.start, length, chunk, chunk_offset: at });
                    at += length;
                }
                batch.chunks.push(SealedChunk { hash: own.hash, length: own.length, pieces });
            }
        }
        self.gather(readies, &mut batch, &mut extents)?;
        for (ready, mut extents) in readies.iter().zip(extents) {
            extents.sort_unstable_by_key(|extent| extent.offset);
            let frozen = &ready.job.frozen;
            batch.sessions.push(SealedSession {
                session: frozen.id,
                ino: ready.job.file.ino,
                whole: frozen.whole,
                base_limit: frozen.base_limit,
                extents,
                zero: ready.sealed.zero.clone(),
            });
        }
        Ok(batch)
    }

    fn gather(&self, readies: &[&Ready], batch: &mut Batch, extents: &mut [Vec<SealedExtent>]) -> io::Result<()> {
        let mut pieces = Vec::new();
        for (session, ready) in readies.iter().enumerate() {
            let file = &ready.job.file;
            let parent = file.state.read().parent;
            for run in &ready.sealed.small {
                pieces.push(Piece { parent, ino: file.ino, offset: run.start, length: run.end - run.start, session });
            }
        }
        let mut opened: HashMap<usize, File> = HashMap::new();
        let mut buffer = Vec::new();
        for plan in gather::layout(pieces, self.chunk_size) {
            let mut hasher = blake3::Hasher::new();
            let chunk = batch.chunks.len();
            let mut sealed = SealedChunk { hash: ChunkHash::of(b""), length: plan.length, pieces: Vec::new() };
            let mut at = 0;
            for (session, run) in plan.runs {
                // Pieces are in order of files: one descriptor at a time.
                if !opened.contains_key(&session) {
                    opened.clear();
                    let path = &readies[session].job.frozen.path;
                    opened.insert(session, self.files.open_files.files().open(path)?);
                }
                let length = run.end - run.start;
                read_run(&opened[&session], &run, &mut buffer)?;
                hasher.update(&buffer);
                sealed.pieces.push(SealedPiece {
                    chunk_offset: at,
                    length,
                    file: session,
                    file_offset: run.start,
                    crc32c: seal::crc32c(&buffer),
                });
                extents[session].push(SealedExtent { offset: run.start, length, chunk, chunk_offset: at });
                at += length;
            }
            sealed.hash = hasher.finalize().into();
            batch.chunks.push(sealed);
        }
        Ok(())
    }

    /// Makes the bytes of the small sessions survive a power cut, before they are committed (S2).
    fn sync(&self, readies: &[&Ready]) -> Result<()> {
        let gathered: Vec<&str> = readies
            .iter()
            .filter(|ready| !ready.sealed.small.is_empty())
            .map(|ready| ready.job.frozen.path.as_str())
            .collect();
        let files = self.files.open_files.files();
        if gathered.len() >= SYNCFS_FROM {
            let what = "sync of the filesystem of the state directory";
            return failpoint::check(Point::SyncSealed)
                .and_then(|()| File::open(files.state_dir()))
                .and_then(|state_dir| Ok(rustix::fs::syncfs(&state_dir)?))
                .inspect_err(|e| self.files.sync_failed(&gathered, what, e))
                .map_err(|source| super::files::local_error(what.into(), source));
        }
        for path in gathered {
            let what = format!("sync of {path}");
            files
                .open(path)
                .and_then(|file| sync_sealed(&self.files, path, &file))
                .inspect_err(|e| self.files.sync_failed(&[path], &what, e))
                .map_err(|source| super::files::local_error(what, source))?;
        }
        Ok(())
    }
}

/// A pipeline whose steps are made one by one, by a simulation that decides when.
#[cfg(test)]
pub(crate) struct Stepped {
    queue: Receiver<SealJob>,
    committer: Committer,
}

#[cfg(test)]
impl Stepped {
    pub(crate) fn new(files: &Arc<Files>, queue: Receiver<SealJob>, chunk_size: u64) -> Stepped {
        let (files, closing) = (files.clone(), Closing::new(chunk_size, clock::instant()));
        Stepped { queue, committer: Committer { files, chunk_size, ready: vec![], gathering: vec![], closing } }
    }

    /// Reads and hashes one session; false: none waits.
    pub(crate) fn seal(&mut self) -> bool {
        let Ok(job) = self.queue.try_recv() else { return false };
        let Committer { files, chunk_size, .. } = &self.committer;
        match seal_one(files, &job, *chunk_size) {
            Ok(sealed) => self.committer.ready.push(Ready { job, sealed }),
            Err(error) => {
                assert!(job.file.state.read().unnamed, "{} cannot be sealed: {error}", job.frozen.path);
                files.meta.sync().unwrap();
                files.settle(&job, End::Discarded, None);
            }
        }
        true
    }

    /// Commits what is sealed, in one batch.
    pub(crate) fn commit(&mut self) -> Result<()> {
        let mut batch = std::mem::take(&mut self.committer.ready);
        self.committer.try_commit(&mut batch)
    }
}

/// The committer looks at least this often for somebody in a hurry.
const POLL: Duration = Duration::from_millis(20);
/// So long a batch that is due by somebody's hurry waits for the next sealed session.
const COMPANY: Duration = Duration::from_millis(3);

fn read_run(file: &File, run: &std::ops::Range<u64>, buffer: &mut Vec<u8>) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let length = usize::try_from(run.end - run.start).map_err(|_| io::ErrorKind::FileTooLarge)?;
    buffer.resize(length, 0);
    file.read_exact_at(buffer, run.start)
}

/// How a frozen session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It is the content of its inode.
    Committed {
        /// Bytes that its file takes on disk.
        allocated: u64,
    },
    /// Its inode has no name; its file goes.
    Discarded,
    /// Its inode has no name; its file stays, as others share a chunk with it.
    Filler,
}

/// While it lives, gathered chunks close at once.
pub struct Hurry<'a> {
    files: &'a Files,
}

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.files.hurry.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Files {
    /// Somebody waits for what is frozen: do not wait for company (S9).
    pub fn hurry(&self) -> Hurry<'_> {
        self.hurry.fetch_add(1, Ordering::AcqRel);
        Hurry { files: self }
    }

    /// Takes a session that came to its end out of its live file. `file`: the row of its chunk file.
    fn settle(&self, job: &SealJob, end: End, file: Option<ChunkFileId>) {
        {
            let mut state = job.file.state.write();
            self.space.add(-(job.frozen.accounted as i64));
            if let End::Committed { allocated } = end {
                state.frozen.retain(|frozen| frozen.id != job.frozen.id);
                self.learn_image(job, &state, file);
                if self.blocks_changed(job.file.ino, &state, &job.frozen, allocated) {
                    self.attributes_are_stale(job.file.ino);
                }
            } else if state.opens() > 0 {
                // Still read through an open handle: the descriptor keeps its bytes, whatever becomes of the name.
                match self.open_files.files().open(&job.frozen.path) {
                    Ok(file) => drop(job.frozen.kept.set(Arc::new(file))),
                    Err(error) => tracing::warn!(path = %job.frozen.path, %error, "content of an open file is gone"),
                }
            } else {
                state.frozen.retain(|frozen| frozen.id != job.frozen.id);
            }
            if end == End::Discarded {
                self.open_files.forget(&job.frozen.path);
                if let Err(error) = remove_files(self.open_files.files(), &job.frozen.path) {
                    tracing::warn!(path = %job.frozen.path, %error, "a chunk file without a use could not be removed");
                }
            }
            match state.frozen.iter().rev().find(|frozen| frozen.kept.get().is_none()).cloned() {
                Some(next) => self.queue(&job.file, next),
                None if state.frozen.is_empty() && state.staged.is_none() => state.attributes = None,
                None => {}
            }
        }
        self.forget_if_idle(&job.file);
        self.troubles.over(job.file.ino);
        *self.settled.lock() += 1;
        self.settled_changed.notify_all();
        self.settled_news.send_modify(|count| *count += 1);
    }

    /// Does not wait for company with what is, or soon will be, frozen.
    pub fn hurry_for(&self, duration: Duration) {
        *self.hurry_until.lock() = clock::instant() + duration;
    }

    pub(super) fn in_a_hurry(&self) -> bool {
        self.hurry.load(Ordering::Acquire) > 0 || clock::instant() < *self.hurry_until.lock()
    }

    /// Files whose content is not committed yet, and their bytes as far as they are counted: those open and dirty, and
    /// those waiting for their seal. Of one inode, or of all.
    pub fn uncommitted(&self, only: Option<InodeId>) -> (u64, u64) {
        let files = match only {
            Some(ino) => self.find(ino).into_iter().collect(),
            None => self.all(),
        };
        let (mut count, mut bytes) = (0, 0);
        for file in files {
            let state = file.state.read();
            if state.unnamed || (state.staged.is_none() && state.frozen.is_empty()) {
                continue;
            }
            count += 1;
            bytes += state.staged.as_ref().map_or(0, |staged| staged.accounted);
            bytes += state.frozen.iter().map(|frozen| frozen.accounted).sum::<u64>();
        }
        (count, bytes)
    }

    /// Waits until every session frozen by now is committed, or `deadline`; true if they are.
    pub fn wait_settled(&self, deadline: Instant) -> bool {
        let _hurry = self.hurry();
        let mut settled = self.settled.lock();
        loop {
            let waiting = self.all().iter().any(|file| {
                let state = file.state.read();
                !state.unnamed && !state.frozen.is_empty()
            });
            if !waiting {
                return true;
            }
            if clock::instant() >= deadline || self.meta.latched().is_some() {
                return false;
            }
            self.settled_changed.wait_for(&mut settled, Duration::from_millis(200));
        }
    }
}
