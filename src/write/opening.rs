//! Opening and releasing: how the kernel does the I/O of each handle, and what must happen to the content before.
//!
//! Owns: carrying out what `iomode` decides, under the inode's lock up to the reply; handles; whether the mount has
//! passthrough at all.
//! Does not own: the decision (`iomode`), the kernel's side (`fuse`), the end of a session (`files`).

use std::any::Any;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::files::{Files, local_error};
use super::iomode::{Content, Decision, Io, Wish};
use super::live::{Attributes, State};
use super::session::{Permit, Staged, remove_files};
use crate::chunk::file::ChunkFiles;
use crate::clock::{self, Timestamp};
use crate::id::InodeId;
use crate::meta::Result;

/// A registered backing file; the kernel forgets it when this is dropped.
pub type Backing = Arc<dyn Any + Send + Sync>;

/// The kernel's side of one open.
pub trait Kernel {
    /// Registers a file that is open for reading only.
    fn register(&self, file: &File) -> io::Result<Backing>;

    /// Answers. Called once at most, under the inode's lock: no other open of it is answered in between.
    fn opened(&mut self, opened: &Opened, backing: Option<&Backing>);
}

/// An open file as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// To be given back with each operation.
    pub handle: Handle,
    /// The kernel's pages of the file are still right: this mount is the only writer.
    pub keep_cache: bool,
    /// FLUSH has nothing to say: the descriptor cannot write, and its open changed nothing.
    pub noflush: bool,
}

/// What is to be known of an open when it is used and released: no table of handles is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handle {
    pub reads: bool,
    pub writes: bool,
    /// Its open emptied the file: its close gives that its place in history, if it writes or not.
    pub truncated: bool,
    /// Each write is synced before it returns (`O_SYNC`, `O_DSYNC`).
    pub syncs: bool,
    pub io: Io,
}

const READS: u64 = 1;
const WRITES: u64 = 2;
const SYNCS: u64 = 4;
const PASSTHROUGH: u64 = 8;
const DIRECT: u64 = 16;
const TRUNCATED: u64 = 32;

impl Handle {
    fn new(wish: &Wish, truncated: bool, io: Io) -> Handle {
        Handle { reads: wish.reads, writes: wish.writes, truncated, syncs: wish.writes && wish.syncs, io }
    }

    /// True if its close may have something to give a place in history.
    pub fn flushes(self) -> bool {
        self.writes || self.truncated
    }

    /// As the number that the kernel keeps.
    pub fn number(self) -> u64 {
        let io = match self.io {
            Io::Plain => 0,
            Io::Passthrough => PASSTHROUGH,
            Io::Direct => DIRECT,
        };
        let bit = |set, bit| if set { bit } else { 0 };
        let truncated = bit(self.truncated, TRUNCATED);
        bit(self.reads, READS) | bit(self.writes, WRITES) | bit(self.syncs, SYNCS) | truncated | io
    }

    /// The handle of a number.
    pub fn from_number(number: u64) -> Handle {
        let has = |bit| number & bit != 0;
        let io = match (has(PASSTHROUGH), has(DIRECT)) {
            (true, _) => Io::Passthrough,
            (_, true) => Io::Direct,
            _ => Io::Plain,
        };
        Handle { reads: has(READS), writes: has(WRITES), truncated: has(TRUNCATED), syncs: has(SYNCS), io }
    }

    /// A descriptor that may leave a mapping behind which still writes.
    pub fn is_mappable(self) -> bool {
        self.io != Io::Plain && self.reads && self.writes
    }
}

/// Whether the mount has passthrough.
#[derive(Debug, Default)]
pub struct Passthrough {
    on: AtomicBool,
    why_not: Mutex<Option<String>>,
}

impl Passthrough {
    /// Offers it from now on, if `probe` finds that the kernel takes a backing file of the state directory (P5). Says it
    /// once if not.
    pub fn probe(&self, files: &ChunkFiles, register: impl FnOnce(&File) -> io::Result<()>) {
        let probed = files.nameless().and_then(|file| register(&file));
        match probed {
            Ok(()) => {
                *self.why_not.lock() = None;
                self.on.store(true, Ordering::Release);
            }
            Err(error) => {
                let why = match error.raw_os_error() {
                    Some(libc::EPERM) => "this user may not register backing files (CAP_SYS_ADMIN)".into(),
                    Some(libc::ELOOP) => "the state directory lies on a stacked filesystem such as overlayfs".into(),
                    _ => format!("the kernel takes no backing file: {error}"),
                };
                self.is_off(why);
            }
        }
    }

    /// It is not offered in this mount, and why.
    pub fn is_off(&self, why: String) {
        tracing::warn!("no passthrough, reads and writes go through requests: {why}");
        self.on.store(false, Ordering::Release);
        *self.why_not.lock() = Some(why);
    }

    /// Why the kernel does no I/O on local files by itself, if it does none.
    pub fn why_not(&self) -> Option<String> {
        self.why_not.lock().clone()
    }

    /// True while it is offered.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// A backing file could not be registered. What will not get better turns passthrough off.
    pub(super) fn refused(&self, error: &io::Error) {
        let for_good = matches!(
            error.raw_os_error(),
            Some(libc::EPERM | libc::ELOOP | libc::ENOTTY | libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS)
        );
        if for_good {
            self.is_off(format!("the kernel takes no backing file: {error}"));
        } else {
            tracing::warn!(%error, "no passthrough this time: the kernel does not take a backing file");
        }
    }
}

impl Files {
    /// Opens a regular file that exists, empties it if `truncate` says when, and answers. `parent` is the directory it was
    /// found in, if known.
    pub fn open(
        &self,
        ino: InodeId,
        parent: InodeId,
        wish: &Wish,
        truncate: Option<Timestamp>,
        kernel: &mut dyn Kernel,
    ) -> Result<()> {
        let promised = truncate.and_then(|_| self.promised(ino));
        let changes = wish.fresh || wish.writes || truncate.is_some();
        let _still = changes.then(|| self.still(promised.as_ref()));
        let (file, result) = self.with_live(ino, parent, |file, state| {
            let kept = match truncate {
                Some(_) => self.keep_promised(file, state, promised.as_ref()),
                None => Ok(()),
            };
            (file.clone(), kept.and_then(|()| self.open_locked(ino, state, wish, truncate, kernel)))
        });
        if result.is_err() {
            self.forget_if_idle(&file);
        }
        result
    }

    fn open_locked(
        &self,
        ino: InodeId,
        state: &mut State,
        wish: &Wish,
        truncate: Option<Timestamp>,
        kernel: &mut dyn Kernel,
    ) -> Result<()> {
        let changes = wish.writes || wish.fresh;
        if changes {
            self.reclaim(state);
        }
        let may_lend = !changes && !wish.direct && state.opens() == 0 && self.passthrough.is_on();
        let image = match (&state.staged, &state.lent) {
            (None, None) if may_lend => self.image_of(ino, state)?,
            _ => None,
        };
        // A writer who joins its readers may wait for targets: for a copy, that is (P4).
        let image = image.filter(|(_, whole)| wish.unseen || self.is_copied_cheaply(whole.size()));
        let content = match &state.staged {
            Some(staged) if staged.backing.is_some() => Content::Backing,
            Some(_) => Content::Staged,
            None if state.lent.is_some() => Content::Lent,
            None => Content::Settled { image: image.is_some() },
        };
        let offered = self.passthrough.is_on() && self.space.has_room_to_spare();
        let (io, registered) = match state.modes.decide(content, wish, offered) {
            Decision::Begin => match self.begin_backing(ino, state, truncate, kernel)? {
                Some(registered) => (Io::Passthrough, Some(registered)),
                None => {
                    self.truncate_locked(ino, state, truncate)?;
                    (Io::Plain, None)
                }
            },
            Decision::Image => match self.lend(ino, state, image, kernel)? {
                Some(registered) => (Io::Passthrough, Some(registered)),
                None => (Io::Plain, None),
            },
            decision @ (Decision::Join(io) | Decision::Thaw(io)) => {
                if let Decision::Thaw(_) = decision {
                    self.thaw(ino, state)?;
                }
                let registered = match (state.modes.backing(), &state.staged) {
                    (None, Some(staged)) => Some(
                        kernel
                            .register(&staged.file)
                            .map_err(|e| local_error(format!("register the file of inode {ino}"), e))?,
                    ),
                    _ => None,
                };
                self.truncate_locked(ino, state, truncate)?;
                (io, registered)
            }
            Decision::Plain => {
                self.truncate_locked(ino, state, truncate)?;
                (Io::Plain, None)
            }
        };
        let handle = Handle::new(wish, truncate.is_some(), io);
        if io != Io::Plain
            && let Some(watch) = state.staged.as_mut().and_then(|staged| staged.backing.as_mut())
        {
            watch.mappable |= handle.is_mappable();
            watch.read |= handle.reads;
        }
        state.mapped_since = None;
        state.modes.opened(io, registered);
        // A passthrough open that claimed the kernel's cache would be refused by it.
        let opened = Opened { handle, keep_cache: io == Io::Plain, noflush: !handle.flushes() };
        kernel.opened(&opened, state.modes.backing().filter(|_| io != Io::Plain));
        Ok(())
    }

    fn truncate_locked(&self, ino: InodeId, state: &mut State, truncate: Option<Timestamp>) -> Result<()> {
        truncate.map_or(Ok(()), |time| self.set_size(ino, state, 0, time))
    }

    /// Begins a session on a backing file. `None`: the kernel does not take it; the session will be a plain one.
    fn begin_backing(
        &self,
        ino: InodeId,
        state: &mut State,
        truncate: Option<Timestamp>,
        kernel: &mut dyn Kernel,
    ) -> Result<Option<Backing>> {
        // Half of the descriptors of sessions stay for those that make room when they must (O8): this one is open for as
        // long as the program wants.
        let Some(permit) = Permit::take(&self.sessions, self.sessions_max / 2) else { return Ok(None) };
        let inode = self.meta.inode(ino)?;
        let known = state.attributes.unwrap_or(Attributes { size: inode.size, mtime: inode.mtime, ctime: inode.ctime });
        let (files, session) = (self.chunk_files(), self.next_session());
        let begun = Staged::begin(files, session, ino, inode.generation, true, 0, clock::instant());
        let Ok(mut staged) = begun else {
            // No inode left, no descriptor: a plain session waits for one with its first write.
            return Ok(None);
        };
        staged.permit = Some(permit);
        let registered = match staged.back(files, |file| kernel.register(file)) {
            Ok(registered) => registered,
            Err(error) => {
                self.passthrough.refused(&error);
                remove_files(files, &staged.path)
                    .map_err(|source| local_error(format!("give up session {session} of inode {ino}"), source))?;
                return Ok(None);
            }
        };
        state.attributes = Some(match truncate {
            Some(time) => {
                staged.dirtyings += 1;
                Attributes { size: 0, mtime: time, ctime: time }
            }
            None => known,
        });
        state.staged = Some(staged);
        Ok(Some(registered))
    }
}

/// No kernel: every open is plain.
#[cfg(test)]
#[derive(Debug, Default)]
pub struct NoKernel {
    pub opened: Option<Opened>,
}

#[cfg(test)]
impl Kernel for NoKernel {
    fn register(&self, _: &File) -> io::Result<Backing> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn opened(&mut self, opened: &Opened, _: Option<&Backing>) {
        self.opened = Some(*opened);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p5_passthrough_is_offered_after_a_probe_that_works_and_says_why_not() {
        let dir = tempfile::tempdir().unwrap();
        let files = ChunkFiles::new(dir.path()).unwrap();
        let passthrough = Passthrough::default();
        for (errno, says) in [(libc::EPERM, "CAP_SYS_ADMIN"), (libc::ELOOP, "overlayfs"), (libc::ENODEV, "device")] {
            passthrough.probe(&files, |_| Err(io::Error::from_raw_os_error(errno)));
            assert!(!passthrough.is_on());
            assert!(passthrough.why_not().unwrap().contains(says), "{:?}", passthrough.why_not());
        }
        passthrough.probe(&files, |file| file.metadata().map(drop));
        assert_eq!((passthrough.is_on(), passthrough.why_not()), (true, None));
        passthrough.refused(&io::Error::from_raw_os_error(libc::ENOMEM));
        assert!(passthrough.is_on(), "it may work next time");
        passthrough.refused(&io::Error::from_raw_os_error(libc::ELOOP));
        assert!(!passthrough.is_on());
    }

    #[test]
    fn a_handle_survives_being_a_number() {
        for number in 0..64 {
            let handle = Handle::from_number(number);
            assert_eq!(Handle::from_number(handle.number()), handle);
        }
        let wish = Wish { reads: true, syncs: true, ..Wish::default() };
        assert!(!Handle::new(&wish, false, Io::Plain).syncs, "who does not write has nothing to sync");
    }
}
