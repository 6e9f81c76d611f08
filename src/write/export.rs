//! Committing what a passthrough file holds while it stays open: a private copy is sealed in its place (P4).
//!
//! Owns: when a copy is due, making it, handing the slot over to it.
//! Does not own: copying bytes (`chunk::copy`), rows (`meta::slot`), sealing (`pipeline`).
//!
//! ```text
//! staged X, on a backing file ──copy──▶ Z: frozen, takes X's slot ──▶ sealed, committed
//!        └── goes on over Z, without a slot until its next FLUSH or fsync
//! ```
//!
//! The kernel writes into the backing file and nobody can stop it, so the file itself cannot be sealed before it is closed
//! (S4). Where the filesystem shares blocks a copy is a point in time and costs nothing. Elsewhere it is a copy of bytes
//! under a writer: what was written before it began is in it, of what comes meanwhile some is, as after a power cut on a
//! local disk; so its slot is renewed after it, and the records in between are one unit with it (O6).

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::files::{Files, local_error};
use super::live::LiveFile;
use super::session::{Frozen, Staged, remove_files};
use super::slots::{Rotation, Round, reserved};
use crate::chunk::copy;
use crate::chunk::file::SessionName;
use crate::chunk::space::Admission;
use crate::clock::{self, Instant};
use crate::id::InodeId;
use crate::meta::Result;
use crate::meta::slot::SlotRequest;

/// A file up to this size is copied whenever it is due, where blocks cannot be shared; a larger one seldom.
pub(super) const COPIED_MAX: u64 = 1 << 30;
/// Between two looks whether another copy of the same file is over.
const COPYING_LOOK: Duration = Duration::from_millis(5);
/// Whoever waits for targets has no more patience than that by default.
const COPYING_MAX: Duration = Duration::from_secs(60);
/// A larger one is copied when it has been open for this long …
const LARGE_AFTER: Duration = Duration::from_secs(60);
/// … and so long after the last large copy.
const LARGE_EVERY: Duration = Duration::from_secs(600);

/// A passthrough file whose content waits for its descriptors to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    pub ino: InodeId,
    /// Nobody has it open: a mapping is left (S4).
    pub mapped: bool,
    pub bytes: u64,
    pub since: Instant,
}

impl Files {
    /// Copies what is due: of open files on backing files those changed since their last copy. One that cannot be copied
    /// keeps no other from it; the first error is returned.
    pub fn export_due(&self, rotation: &Rotation) -> Result<()> {
        let mut round = Round::default();
        for file in self.all() {
            if self.is_due(&file, rotation) {
                round.note(file.ino, self.export(&file));
            }
        }
        round.end()
    }

    fn is_due(&self, file: &LiveFile, rotation: &Rotation) -> bool {
        let now = clock::instant();
        let state = file.state.read();
        let Some(staged) = state.staged.as_ref().filter(|_| !state.unnamed && !state.exporting) else { return false };
        let Some(watch) = &staged.backing else { return false };
        let age = now.since(staged.began);
        let due = age >= rotation.after || (staged.fsynced && age >= rotation.synced_after);
        if !due || !(staged.has_slot || staged.is_dirty_by_now()) {
            return false;
        }
        let large = !self.is_copied_cheaply(watch.seen.size);
        !large || (age >= LARGE_AFTER && self.large_copy.lock().is_none_or(|last| now.since(last) >= LARGE_EVERY))
    }

    /// Gives the content of those passthrough files that are wanted their place in history, and its bytes to the sealers
    /// where a copy is cheap, or for `own`, which somebody waits for. One that cannot be copied keeps no other from it. The
    /// error is that of `own`, or without one the first.
    pub(super) fn export_where(&self, own: Option<InodeId>, wanted: impl Fn(InodeId, &Staged) -> bool) -> Result<()> {
        let mut round = Round::of(own);
        for file in self.all() {
            round.note(file.ino, self.export_if(&file, own == Some(file.ino), &wanted));
        }
        round.end()
    }

    fn export_if(
        &self,
        file: &Arc<LiveFile>,
        waited_for: bool,
        wanted: impl Fn(InodeId, &Staged) -> bool,
    ) -> Result<()> {
        let size = {
            let mut state = file.state.write();
            self.observe(file.ino, &mut state)?;
            let Some(staged) = state.staged.as_ref().filter(|staged| staged.backing.is_some()) else { return Ok(()) };
            if state.unnamed || !(staged.is_dirty() || staged.has_slot) || !wanted(file.ino, staged) {
                return Ok(());
            }
            if staged.is_dirty() {
                self.reserve(file.ino, &mut state, false)?;
            }
            state.attributes.map_or(0, |attributes| attributes.size)
        };
        // What is waited for, and may stay open for ever, would else never come. Few files get here: where somebody waits, no
        // file of that size is given to the kernel to read or write by itself; one that has it already may be thawed, or its
        // policy changed.
        if waited_for {
            // A copy that is being made began before the bytes that are waited for, perhaps.
            let until = clock::instant() + COPYING_MAX;
            while file.state.read().exporting && clock::instant() < until {
                std::thread::sleep(COPYING_LOOK);
            }
        }
        if waited_for || self.is_copied_cheaply(size) { self.export(file) } else { Ok(()) }
    }

    /// True if a file of this size can be copied whenever that is asked for (P4).
    pub(super) fn is_copied_cheaply(&self, size: u64) -> bool {
        size <= self.copied_max.load(Ordering::Relaxed) || self.shares_blocks()
    }

    /// Copies the file as it is now, and hands its slot over to the copy. A file that is closed meanwhile needs none.
    fn export(&self, file: &Arc<LiveFile>) -> Result<()> {
        let (source, session, name, before, dirtyings) = {
            let mut state = file.state.write();
            if state.unnamed || state.exporting {
                return Ok(());
            }
            self.observe(file.ino, &mut state)?;
            let (Some(staged), Some(attributes)) = (&state.staged, state.attributes) else { return Ok(()) };
            if staged.backing.is_none() || !(staged.is_dirty() || staged.has_slot) {
                return Ok(());
            }
            let name = SessionName { session: self.next_session(), ino: file.ino, base: staged.base, whole: true };
            let found = (staged.file.clone(), staged.id, name, attributes, staged.dirtyings);
            state.exporting = true;
            found
        };
        let path = name.path();
        let copied = self.copy(file, &source, session, &path);
        let mut kept = false;
        let result = match copied {
            Ok(Some(length)) => {
                let _still = self.still(Some(file));
                let mut state = file.state.write();
                let is_the_same = state.staged.as_ref().is_some_and(|staged| staged.id == session);
                if is_the_same && !state.unnamed {
                    let staged = state.staged.as_ref().expect("it is the same");
                    let request = SlotRequest {
                        ino: file.ino,
                        session,
                        base: staged.base,
                        whole: true,
                        base_limit: 0,
                        synced_size: Some(length),
                        size: length,
                        mtime: before.mtime,
                        ctime: before.ctime,
                        fsynced: staged.fsynced,
                    };
                    let slot = self.meta.write(|tx| {
                        let slot = tx.reserve_slot(&request)?;
                        if slot.is_some() {
                            tx.hand_slot(session, name.session)?;
                        }
                        Ok(slot)
                    });
                    slot.map(|slot| {
                        let Some(slot) = slot else { return };
                        kept = true;
                        self.births().has_slot(file.ino, slot);
                        reserved(&mut state, false);
                        if let Some(staged) = &mut state.staged {
                            staged.handed_over(dirtyings, clock::instant());
                            self.renumber(file.ino, staged);
                        }
                        let frozen = Arc::new(Frozen::whole(name.session, path.clone(), length));
                        state.frozen.push_front(frozen.clone());
                        if state.frozen.len() == 1 {
                            self.queue(file, frozen);
                        }
                    })
                } else {
                    Ok(())
                }
            }
            Ok(None) => Ok(()),
            Err(error) => Err(local_error(format!("copy the open file of inode {}", file.ino), error)),
        };
        if !kept && let Err(error) = remove_files(self.chunk_files(), &path) {
            tracing::warn!(%path, %error, "a copy without a use could not be removed");
        }
        file.state.write().exporting = false;
        self.forget_if_idle(file);
        result
    }

    /// Numbers of an inode's sessions grow with the age of its content: what goes on after a copy is the younger. No row
    /// names its file now, so that may get the name that belongs to the number.
    fn renumber(&self, ino: InodeId, staged: &mut Staged) {
        let name = SessionName { session: self.next_session(), ino, base: staged.base, whole: true };
        let renamed = self.chunk_files().rename(&staged.path, &name.path());
        match renamed.and_then(|()| staged.renamed(name.session, name.path())) {
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(path = %staged.path, %error, "the file of an open session keeps its old number")
            }
        }
    }

    /// Copies to `path`, synced; returns its bytes. `None`: there is no need, or no space.
    fn copy(
        &self,
        file: &LiveFile,
        source: &std::fs::File,
        session: crate::id::SessionId,
        path: &str,
    ) -> std::io::Result<Option<u64>> {
        let target = self.chunk_files().create(path)?;
        if !copy::share(source, &target)? {
            self.cannot_share_blocks();
            let metadata = source.metadata()?;
            // Holes are not copied.
            if self.space.admit(metadata.blocks() * 512) != Admission::Go {
                return Ok(None);
            }
            if !self.is_copied_cheaply(metadata.len()) {
                *self.large_copy.lock() = Some(clock::instant());
            }
            let is_wanted = || file.state.read().staged.as_ref().is_some_and(|staged: &Staged| staged.id == session);
            if !copy::bytes(source, &target, is_wanted)? {
                return Ok(None);
            }
        }
        // The slot that it takes over may have been synced (S1).
        target.sync_all()?;
        self.chunk_files().sync_entry(path)?;
        Ok(Some(target.metadata()?.len()))
    }

    /// Files that hold a place in history and cannot be sealed yet, for `status`.
    pub fn waiting_for_close(&self) -> Vec<Waiting> {
        let waiting = |file: Arc<LiveFile>| {
            let state = file.state.read();
            let staged = state.staged.as_ref().filter(|staged| staged.backing.is_some() && !state.unnamed)?;
            let bytes = state.current_attributes()?.size;
            match state.mapped_since {
                Some(since) => Some(Waiting { ino: file.ino, mapped: true, bytes, since }),
                None => staged.has_slot.then_some(Waiting { ino: file.ino, mapped: false, bytes, since: staged.began }),
            }
        };
        self.all().into_iter().filter_map(waiting).collect()
    }
}
