//! When a dirty file takes its place in history, and what makes it durable (O1, O8, S1).
//!
//! Owns: FLUSH, fsync, rotation, and the claim of a dirty inode on a slot before a record that names it.
//! Does not own: the slot's row (`meta::slot`), what happens to a frozen session (`pipeline`).

use std::sync::Arc;
use std::time::Duration;

use super::files::{Files, local_error};
use super::live::{LiveFile, State};
use super::session::Staged;
use crate::clock::{self, Instant};
use crate::id::{InodeId, Seq, SessionId};
use crate::meta::slot::SlotRequest;
use crate::meta::{Error, Result};
use crate::testing::failpoint::{self, Point};

/// When open sessions are rotated (O8).
#[derive(Debug, Clone, Copy)]
pub struct Rotation {
    /// A session with an `fsync` slot, this long after it began.
    pub synced_after: Duration,
    /// Any session, this long after it began.
    pub after: Duration,
}

impl Default for Rotation {
    fn default() -> Rotation {
        Rotation { synced_after: Duration::from_secs(2), after: Duration::from_secs(60) }
    }
}

impl Files {
    /// FLUSH, at each `close(2)`: a file that is dirty since its last slot takes one.
    pub fn flush(&self, ino: InodeId) -> Result<()> {
        let Some(file) = self.find(ino) else { return Ok(()) };
        {
            let mut state = file.state.write();
            self.observe(ino, &mut state)?;
            if state.staged.as_ref().is_some_and(|staged| staged.is_dirty()) {
                self.reserve(ino, &mut state, false)?;
            }
        }
        self.troubles.check(ino)
    }

    /// `fsync(2)` under the policy `local`: what was written is on disk, and so is its place in history (S1). Blocks for as
    /// long as the disk takes and, for sessions that were frozen before it, until `deadline`.
    pub fn fsync(&self, ino: InodeId, deadline: Instant) -> Result<()> {
        if let Some(newest) = self.sync_open(ino)? {
            let _hurry = self.hurry();
            let mut settled = self.settled.lock();
            while self.is_frozen(ino, newest)? {
                if clock::instant() >= deadline {
                    return Err(rustix::io::Errno::TIMEDOUT.into());
                }
                self.settled_changed.wait_for(&mut settled, Duration::from_secs(1));
            }
        }
        self.meta.sync()
    }

    /// The part of an `fsync` that waits for the disk only: the bytes of the session that takes writes, their record and
    /// its place in history. Returns the newest session that was frozen before and has to be committed yet
    /// ([`Files::committed`]). What remains is the sync of the metadata.
    pub fn sync_open(&self, ino: InodeId) -> Result<Option<SessionId>> {
        let Some(file) = self.find(ino) else {
            self.meta.bar_overtaking(ino)?;
            return Ok(None);
        };
        if !self.sync_staged(&file)? {
            // A new file that is empty until now is meant to be: its birth waits for nothing (O2).
            self.births().settled(ino);
            self.meta.bar_overtaking(ino)?;
        }
        let state = file.state.read();
        Ok(if state.unnamed { None } else { state.frozen.front().map(|frozen| frozen.id) })
    }

    /// Waits until the sessions of `ino` up to `newest` are committed: their bytes are synced before that (S2), and the
    /// metadata after it. Holds no thread: while the disk is full this may take as long as targets need.
    pub async fn committed(&self, ino: InodeId, newest: SessionId, deadline: Instant) -> Result<()> {
        let _hurry = self.hurry();
        let mut news = self.settled_news.subscribe();
        while self.is_frozen(ino, newest)? {
            let left = deadline.since(clock::instant());
            if left.is_zero() {
                // Not lost, not yet proven (D3): the session stays queued.
                return Err(rustix::io::Errno::TIMEDOUT.into());
            }
            let _ = clock::timeout(left.min(Duration::from_secs(1)), news.changed()).await;
        }
        Ok(())
    }

    /// True while sessions of `ino` up to `newest` wait for their commit. An error if the disk cannot give their bytes:
    /// waiting is of no use then.
    pub fn is_frozen(&self, ino: InodeId, newest: SessionId) -> Result<bool> {
        let Some(file) = self.find(ino) else { return Ok(false) };
        let state = file.state.read();
        if self.meta.latched().is_some() {
            return Err(Error::Latched);
        }
        let waiting = !state.unnamed && state.frozen.iter().any(|frozen| frozen.id <= newest);
        if waiting {
            self.troubles.check(ino)?
        }
        Ok(waiting)
    }

    /// The newest frozen session of `ino`.
    pub fn newest_frozen(&self, ino: InodeId) -> Option<SessionId> {
        self.find(ino)?.state.read().frozen.front().map(|frozen| frozen.id)
    }

    /// Tells of each session that came to its end.
    pub fn settled_news(&self) -> crate::news::Receiver<u64> {
        self.settled_news.subscribe()
    }

    /// False: nothing was written to it since its last session, so that no slot is its own.
    fn sync_staged(&self, file: &Arc<LiveFile>) -> Result<bool> {
        let _syncing = file.syncing.lock();
        if self.meta.latched().is_some() {
            // The kernel tells an error once. A second sync would succeed without the bytes, and be on record as if it had
            // brought them to the disk: then the next mount would count them (S6).
            return Err(Error::Latched);
        }
        let what = |what: &str| format!("{what} of inode {}", file.ino);
        let (point, path, entry) = {
            let state = file.state.read();
            let Some(staged) = state.staged.as_ref().filter(|_| !state.unnamed) else { return Ok(false) };
            let point = staged.sync_point().map_err(|e| local_error(what("stat of the staged file"), e))?;
            (point, staged.path.clone(), !staged.entry_synced)
        };
        let failed = |step: &str, source| {
            self.sync_failed(&[&path], &what(step), &source);
            local_error(what(step), source)
        };
        // The entry of a new file beside its bytes: each costs the disk a flush of its own.
        let files = self.open_files.files();
        let (bytes, entry) = std::thread::scope(|scope| {
            let entry = entry.then(|| scope.spawn(|| files.sync_entry(&path)));
            let bytes = point.sync_bytes();
            (bytes, entry.map_or(Ok(()), |entry| entry.join().expect("the sync of an entry does not panic")))
        });
        bytes.map_err(|e| failed("sync of the staged file", e))?;
        entry.map_err(|e| failed("sync of the directory entry", e))?;
        failpoint::pass(Point::Mark);
        {
            let mut state = file.state.write();
            let Some(staged) = &mut state.staged else { return Ok(false) };
            staged.mark_synced(&point).map_err(|e| local_error(what("sync mark"), e))?;
        }
        point.sync_record().map_err(|e| failed("sync of the range record", e))?;
        failpoint::pass(Point::Marked);
        let mut state = file.state.write();
        self.observe(file.ino, &mut state)?;
        let Some(staged) = &mut state.staged else { return Ok(false) };
        staged.entry_synced = true;
        // Also when only the synced size is news: a close in between renewed the slot with the old one.
        if staged.is_dirty() || !staged.fsynced || staged.synced_size != staged.slot_synced_size {
            self.reserve(file.ino, &mut state, true)?;
        }
        Ok(true)
    }

    /// Runs `name`, a transaction whose record names `inos`, with the claims of those that are dirty since their last
    /// slot: it reserves these before its own record (O1). Their sessions stand still until it has committed, so a claim
    /// is never that of a session which was sealed meanwhile.
    pub fn with_claims<T>(&self, inos: &[InodeId], name: impl FnOnce(&[SlotRequest]) -> Result<T>) -> Result<T> {
        // No rotation now: it locks many sessions, in any order. Of two name operations the order is that of the inodes.
        let _gate = self.gate.read();
        let mut inos = inos.to_vec();
        inos.sort_unstable();
        inos.dedup();
        let files: Vec<Arc<LiveFile>> = inos.into_iter().filter_map(|ino| self.find(ino)).collect();
        let mut live: Vec<_> = files.iter().map(|file| (file.ino, file.state.write())).collect();
        for (ino, state) in &mut live {
            self.observe(*ino, state)?;
        }
        let mut dirty: Vec<_> = live
            .into_iter()
            .filter(|(_, state)| !state.unnamed && state.staged.as_ref().is_some_and(|staged| staged.is_dirty()))
            .collect();
        let claims: Vec<SlotRequest> = dirty.iter().filter_map(|(ino, state)| request(*ino, state, false)).collect();
        let value = name(&claims)?;
        for (ino, state) in &mut dirty {
            reserved(state, false);
            // The head is at or after the slot: a birth waits rather too long than too short.
            self.births().has_slot(*ino, self.meta.head());
        }
        Ok(value)
    }

    /// Reserves or renews the slot of the staged session. `None`: the inode has no name.
    pub(super) fn reserve(&self, ino: InodeId, state: &mut State, fsynced: bool) -> Result<Option<Seq>> {
        let Some(request) = request(ino, state, fsynced) else { return Ok(None) };
        if state.unnamed {
            return Ok(None);
        }
        let slot = self.meta.write(|tx| tx.reserve_slot(&request))?;
        failpoint::pass(Point::Slot);
        reserved(state, fsynced);
        if let Some(slot) = slot {
            self.births().has_slot(ino, slot);
        }
        Ok(slot)
    }

    /// Rotation (O8): one cut of the whole filesystem. Every dirty open session takes its slot in one transaction, as one
    /// unit, and goes to the sealers; later writes begin fresh sessions. Files that the kernel writes into itself cannot be
    /// cut: copies of them are taken before (P4). Returns the journal head of the cut.
    /// An error: the first of a file that could not be copied; all others have their place.
    pub fn rotate(&self) -> Result<Seq> {
        let (exported, cut) = self.rotate_what_can();
        exported.and(cut)
    }

    pub(super) fn rotate_what_can(&self) -> (Result<()>, Result<Seq>) {
        (self.export_where(None, |_, _| true), self.cut(None, |_| true))
    }

    /// Takes what an acknowledgement waits for out of the hands of writers: the session of `ino`, and those of other files
    /// that were synced while open, as nothing overtakes these (O6). Returns the newest record about `ino`; `None` if it
    /// has no name, and so nothing to be acknowledged.
    pub fn cut_for(&self, ino: InodeId) -> Result<Option<Seq>> {
        let own = self.find(ino);
        self.export_where(Some(ino), |of, staged| of == ino || staged.fsynced)?;
        self.cut(own.as_ref(), |staged| staged.fsynced)?;
        match self.meta.inode(ino) {
            Ok(inode) if inode.nlink > 0 => Ok(Some(inode.last_seq)),
            Ok(_) | Err(Error::Refused(rustix::io::Errno::NOENT)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The cut of a rotation through the session of `own` and of each file that `wanted` says.
    fn cut(&self, own: Option<&Arc<LiveFile>>, wanted: impl Fn(&Staged) -> bool) -> Result<Seq> {
        // Its own sync is waited for, before the gate is shut: nobody waits for a sync behind the gate.
        let own_syncing = own.map(|file| (file, file.syncing.lock()));
        let _gate = self.gate.write();
        // Behind the gate: a file that began while it was waited for came before what is cut, and may not be left out.
        let files = self.all();
        let mut cut = Vec::new();
        if let Some((file, syncing)) = own_syncing {
            cut.push((file, file.state.write(), syncing));
        }
        for file in files.iter().filter(|file| own.is_none_or(|own| own.ino != file.ino)) {
            // A file whose sync is under way is left out: waiting for it would hold every writer.
            let Some(syncing) = file.syncing.try_lock() else { continue };
            let state = file.state.write();
            if state.staged.as_ref().is_some_and(&wanted) {
                cut.push((file, state, syncing));
            }
        }
        // A session that began, and whose first change failed, has nothing that could take a place.
        cut.retain(|(_, state, _)| {
            let is_ours = |staged: &Staged| staged.backing.is_none() && (staged.is_dirty() || staged.has_slot);
            !state.unnamed && state.staged.as_ref().is_some_and(is_ours)
        });
        let requests: Vec<SlotRequest> =
            cut.iter().filter_map(|(file, state, _)| request(file.ino, state, false)).collect();
        if requests.is_empty() {
            return Ok(self.meta.head());
        }
        let slots = self.meta.write(|tx| {
            let slots = requests.iter().map(|request| tx.reserve_slot(request)).collect::<Result<Vec<_>>>()?;
            let sessions: Vec<SessionId> = requests.iter().map(|request| request.session).collect();
            tx.join_slots(&sessions)?;
            Ok(slots)
        })?;
        for ((file, state, _), slot) in cut.iter_mut().zip(slots) {
            if let Some(slot) = slot {
                reserved(state, false);
                self.births().has_slot(file.ino, slot);
                self.push_frozen(file, state);
            }
        }
        failpoint::pass(Point::Rotate);
        Ok(self.meta.head())
    }

    /// Rotates if some session is due, removes files that are of no more use, and ends sessions of closed files that could
    /// not be ended before (disk full). One that cannot be ended keeps no other from it; the first error is returned.
    pub fn tick(&self, rotation: &Rotation) -> Result<()> {
        if self.meta.latched().is_some() {
            // It was said once; nothing goes on until remount.
            return Ok(());
        }
        self.remove_doomed()?;
        let now = clock::instant();
        let mut due = false;
        let mut round = Round::default();
        for file in self.all() {
            let unfinished = {
                let state = file.state.read();
                if let Some(staged) = state.staged.as_ref().filter(|staged| !state.unnamed && staged.backing.is_none())
                {
                    let age = now.since(staged.began);
                    due |= age >= rotation.after || (staged.fsynced && age >= rotation.synced_after);
                }
                state.opens() == 0 && state.staged.is_some()
            };
            self.reclaim_when_due(&file, now);
            if unfinished {
                let _syncing = file.syncing.lock();
                let mut state = file.state.write();
                if state.opens() == 0 {
                    round.note(file.ino, self.close_last(&file, &mut state));
                }
            }
            self.forget_if_idle(&file);
        }
        let cut = if due { self.cut(None, |_| true).map(drop) } else { Ok(()) };
        cut.and(round.end())
    }
}

/// A round over many files that goes on after an error.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// The file that it is for: errors of others are none of its.
    own: Option<InodeId>,
    failed: Option<Error>,
}

impl Round {
    pub(super) fn of(own: Option<InodeId>) -> Round {
        Round { own, ..Round::default() }
    }

    pub(super) fn note(&mut self, ino: InodeId, done: Result<()>) {
        let Err(error) = done else { return };
        if self.failed.is_none() && self.own.is_none_or(|own| own == ino) {
            self.failed = Some(error);
        } else {
            tracing::warn!(inode = ino.0, %error, "a file keeps its place in the round; the others go on");
        }
    }

    /// The error that counts.
    pub(super) fn end(self) -> Result<()> {
        self.failed.map_or(Ok(()), Err)
    }
}

fn request(ino: InodeId, state: &State, fsynced: bool) -> Option<SlotRequest> {
    let (staged, attributes) = (state.staged.as_ref()?, state.attributes?);
    Some(SlotRequest {
        ino,
        session: staged.id,
        base: staged.base,
        whole: staged.whole,
        base_limit: staged.base_limit,
        synced_size: staged.synced_size,
        size: attributes.size,
        mtime: attributes.mtime,
        ctime: attributes.ctime,
        fsynced: fsynced || staged.fsynced,
    })
}

/// The slot of the staged session stands, and covers everything up to now.
pub(super) fn reserved(state: &mut State, fsynced: bool) {
    if let Some(staged) = &mut state.staged {
        staged.slot_dirtyings = staged.dirtyings;
        staged.slot_synced_size = staged.synced_size;
        staged.has_slot = true;
        staged.fsynced |= fsynced;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;
    use crate::meta::testing;
    use crate::write::pipeline_tests::Mount;

    /// A file of a byte that the kernel wrote into itself.
    fn backed(mount: &Mount, name: &[u8]) -> InodeId {
        let ino = mount.create(name);
        mount.files.write(ino, 0, b"x").unwrap();
        mount.files.with_live(ino, InodeId::ROOT, |_, state| {
            state.staged.as_mut().unwrap().back(mount.files.chunk_files(), |_| Ok(())).unwrap();
        });
        ino
    }

    /// From here on its file can be looked at, and nothing else: no lease, no copy.
    fn break_file(mount: &Mount, ino: InodeId) {
        mount.files.with_live(ino, InodeId::ROOT, |_, state| {
            let staged = state.staged.as_mut().unwrap();
            let path = mount.files.chunk_files().locate(&staged.path);
            staged.file = Arc::new(OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).unwrap());
        });
    }

    fn is_staged(mount: &Mount, ino: InodeId) -> bool {
        mount.files.find(ino).is_some_and(|file| file.state.read().staged.is_some())
    }

    fn mount() -> (tempfile::TempDir, Mount) {
        let (dir, meta) = testing::store();
        drop(meta);
        let mount = Mount::after(dir.path(), true, "boot");
        (dir, mount)
    }

    #[test]
    fn a_file_that_cannot_be_ended_keeps_no_other_from_it() {
        let (_dir, mount) = mount();
        let (broken, good, open) = (backed(&mount, b"a"), backed(&mount, b"b"), mount.create(b"c"));
        assert!(broken < good, "it is met first");
        mount.files.write(open, 0, b"y").unwrap();
        break_file(&mount, broken);
        for ino in [broken, good] {
            // As if it had been released while the disk was full.
            mount.files.with_live(ino, InodeId::ROOT, |_, state| state.modes.released(super::super::iomode::Io::Plain));
        }
        let rotation = Rotation { synced_after: Duration::ZERO, after: Duration::ZERO };
        mount.files.tick(&rotation).unwrap_err();
        assert!(is_staged(&mount, broken));
        assert!(!is_staged(&mount, good), "it went to the sealers");
        assert!(!is_staged(&mount, open), "it was rotated");
    }

    #[test]
    fn p4_a_file_that_cannot_be_copied_keeps_no_other_from_it() {
        let (_dir, mount) = mount();
        let (broken, good, plain) = (backed(&mount, b"a"), backed(&mount, b"b"), mount.create(b"c"));
        assert!(broken < good, "it is met first");
        break_file(&mount, broken);
        let write = |ino| {
            mount.files.with_live(ino, InodeId::ROOT, |_, state| {
                let staged = state.staged.as_mut().unwrap();
                (staged.dirtyings, staged.fsynced) = (staged.dirtyings + 1, true);
            });
        };
        let waits = |ino| mount.files.with_live(ino, InodeId::ROOT, |_, state| state.staged.as_ref().unwrap().has_slot);
        for ino in [broken, good] {
            write(ino);
        }
        assert!(mount.files.cut_for(good).unwrap().is_some(), "the other's error is not that of this file");
        assert!(!waits(good), "its copy has the slot");
        mount.files.cut_for(broken).unwrap_err();

        write(good);
        mount.files.export_due(&Rotation { synced_after: Duration::ZERO, after: Duration::ZERO }).unwrap_err();
        assert!(waits(broken) && !waits(good));

        write(good);
        mount.files.write(plain, 0, b"y").unwrap();
        mount.files.rotate().unwrap_err();
        assert!(waits(broken) && !waits(good));
        assert!(!is_staged(&mount, plain), "it was cut");
    }
}
