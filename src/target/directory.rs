//! Our own store for `fs://` targets (T10).
//!
//! Owns: which directory is written to, and when an object in it counts as confirmed.
//! Does not own: the steps beneath its descriptor (`place`), the walk (`listing`), whose filesystem it holds (`identity`).
//!
//! OpenDAL's `fs` makes its root at build and parent directories at every write, so an unmounted disk would be *filled*,
//! and a power cut can leave a torn object under its final name. Here instead:
//!
//! ```text
//!              get tandemfs.json = contact                     path leads elsewhere, or nowhere
//!   unopened ─────────────────────────────▶ held (descriptor) ─────────────────────────────────▶ lost
//!       │ any other call opens too             ▲                                                   │
//!       └──────────────────────────────────────┘◀───────────────── contact ────────────────────────┘
//! ```
//!
//! - All I/O goes through the descriptor that was opened at contact. Once its path leads elsewhere the place is *lost*:
//!   everything but a new contact answers [`Kind::PlaceMissing`], so nothing is confirmed onto the disk below an unmounted one.
//! - A place without `tandemfs.json` takes nothing but that (and `tmp/` probes); nor does one take anything that carries
//!   another `tandemfs.json` than the one seen before.
//! - The directory itself is created by the put of `tandemfs.json` alone, and only its last component; until then it is
//!   an empty place, provided that its parent exists.
//! - In a mountpoint of `/etc/fstab` that stands empty no place is made: its disk is not mounted, however new the target is.
//! - A disk can hang (a dead NFS server, a failing drive). Each call has a deadline, and a target has so many threads and no
//!   more: those that hang are not the threads of other targets.
//! - `put` and a `stat` that finds something promise the same: object, entry and directories are on disk.

mod fstab;
mod listing;
mod place;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::sync::Semaphore;

use self::listing::Walk;
use self::place::{Place, TMP};
use super::pace::{FRAME, Held, Pacer};
use super::{Abilities, Body, Class, Error, Existing, Kind, PATIENCE, Page, Result, Target};
use crate::format::key::{SUPERBLOCK as IDENTITY, TEMPORARY};
use crate::format::superblock::BYTES_MAX;

/// Unfinished writes older than this are nobody's.
const UNFINISHED_SECS: i64 = 24 * 3600;
/// Objects of one page.
const PAGE: usize = 1000;
/// Calls at the same time.
const THREADS: usize = 32;

/// A target that is a local directory.
#[derive(Debug, Clone)]
pub struct DirectoryTarget {
    shared: Arc<Shared>,
    pacer: Pacer,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    state: Mutex<State>,
    threads: Arc<Semaphore>,
    patience: Duration,
    fstab: PathBuf,
    skipped: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    place: Option<Arc<Place>>,
    /// The `tandemfs.json` that this place had when it was seen first.
    identity: Option<Bytes>,
    /// What the held place carries.
    carries: Carries,
    /// The place was held once and its path leads elsewhere now.
    lost: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Carries {
    #[default]
    Nothing,
    Ours,
    Another,
}

enum Site {
    Held(Arc<Place>),
    /// The directory does not exist, but may be created.
    Vacant,
}

impl DirectoryTarget {
    /// The target at `path`, which is opened at the first call.
    pub fn new(path: impl Into<PathBuf>) -> DirectoryTarget {
        DirectoryTarget::with_patience(path.into(), PATIENCE)
    }

    fn with_patience(path: PathBuf, patience: Duration) -> DirectoryTarget {
        let threads = Arc::new(Semaphore::new(THREADS));
        let state = Mutex::default();
        let shared = Shared { path, state, threads, patience, fstab: fstab::FSTAB.into(), skipped: AtomicU64::new(0) };
        DirectoryTarget { shared: Arc::new(shared), pacer: Pacer::default() }
    }

    /// The same, keeping to limits of bandwidth.
    pub fn paced(self, pacer: Pacer) -> DirectoryTarget {
        DirectoryTarget { pacer, ..self }
    }

    /// The directory as configured.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Names met in listings that cannot be objects: not UTF-8, symlinks, devices.
    pub fn skipped(&self) -> u64 {
        self.shared.skipped.load(Ordering::Relaxed)
    }

    /// Removes unfinished writes older than 24 h, and returns how many there were. The first put after each contact does it
    /// unasked.
    pub async fn remove_unfinished(&self) -> Result<usize> {
        self.blocking("delete", TMP, 0, |shared, at| match shared.site(at)? {
            Site::Held(place) => {
                place.remove_unfinished(unfinished_before()).map_err(|error| shared.failed(at, &place, error))
            }
            Site::Vacant => Ok(0),
        })
        .await
    }

    /// Runs file I/O that moves `bytes` where it may block, and waits for it as long as makes sense.
    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: &str,
        bytes: u64,
        work: impl FnOnce(&Shared, &At) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = Arc::clone(&self.shared);
        let at = At { operation, key: key.to_owned() };
        let deadline = super::deadline(shared.patience, bytes);
        let hangs = |class| at.error(Kind::Unreachable, class, format!("no answer from the disk within {deadline:?}"));
        let permit = tokio::time::timeout(deadline, Arc::clone(&shared.threads).acquire_owned()).await;
        // All threads hang: this call has not begun.
        let permit = permit.map_err(|_| hangs(Class::Temporary))?.expect("the semaphore is never closed");
        let call = At { operation, key: key.to_owned() };
        let thread = tokio::task::spawn_blocking(move || {
            // Given back when the thread ends, not when its caller has lost patience.
            let _permit = permit;
            work(&shared, &call)
        });
        let class = if matches!(operation, "put" | "delete") { Class::Ambiguous } else { Class::Temporary };
        match tokio::time::timeout(deadline, thread).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(at.error(Kind::Failed, class, "the thread that did it ended early".to_owned())),
            Err(_) => Err(hangs(class)),
        }
    }
}

#[async_trait]
impl Target for DirectoryTarget {
    async fn put(&self, key: &str, body: Body, existing: Existing) -> Result<()> {
        // Before the disk is asked: a thread that waited for its turn would be one less for the others.
        let (held, mut left) = (Held::of_this_call(), body.len() as usize);
        while left > 0 {
            let frame = left.min(FRAME);
            self.pacer.turn(frame, &held).await;
            left -= frame;
        }
        self.blocking("put", key, body.len(), move |shared, at| {
            at.check_key()?;
            let place = shared.place_for_put(at)?;
            if place.first_write() {
                // A hint, not a duty: what cannot be removed now is removed another day.
                let _ = place.remove_unfinished(unfinished_before());
            }
            let mut written = place.write(&at.key, &body, existing);
            if written == Err(Errno::NOENT) {
                // Its directory was empty and went away meanwhile.
                written = place.write(&at.key, &body, existing);
            }
            written.map_err(|error| match error {
                Errno::NOENT => shared.lose(at, &place),
                error => shared.failed(at, &place, error),
            })?;
            if at.key == IDENTITY {
                shared.identified(body);
            }
            Ok(())
        })
        .await
    }

    async fn get(&self, key: &str, length_max: u64) -> Result<Bytes> {
        self.blocking("get", key, length_max, move |shared, at| {
            at.check_key()?;
            let Site::Held(place) = shared.site(at)? else { return Err(at.not_found()) };
            match place.read(&at.key, length_max) {
                Ok(Ok(bytes)) => Ok(bytes),
                Ok(Err(length)) => {
                    Err(at.invalid(format!("it has {length} bytes, at most {length_max} were expected")))
                }
                Err(error) => Err(shared.failed(at, &place, error)),
            }
        })
        .await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        self.blocking("get", key, length, move |shared, at| {
            at.check_key()?;
            let Site::Held(place) = shared.site(at)? else { return Err(at.not_found()) };
            let short = |has| at.invalid(format!("it has {has} bytes, not {length} from {offset}"));
            let (file, has) = place.object(&at.key).map_err(|error| shared.failed(at, &place, error))?;
            if offset.checked_add(length).is_none_or(|end| end > has) {
                return Err(short(has));
            }
            let bytes = place::read_exact(&file, offset, length).map_err(|error| shared.failed(at, &place, error))?;
            bytes.ok_or_else(|| short(has))
        })
        .await
    }

    async fn stat(&self, key: &str) -> Result<Option<u64>> {
        self.blocking("stat", key, 0, |shared, at| {
            at.check_key()?;
            let Site::Held(place) = shared.site(at)? else { return Ok(None) };
            match place.settled_length(&at.key).map_err(|error| shared.failed(at, &place, error)) {
                Ok(length) => Ok(Some(length)),
                Err(error) if error.kind == Kind::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        })
        .await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        let after = after.unwrap_or_default().to_owned();
        self.blocking("list", prefix, 0, move |shared, at| {
            let prefix = at.key.as_str();
            if !prefix.is_empty() && (!prefix.ends_with('/') || place::split(&prefix[..prefix.len() - 1]).is_err()) {
                return Err(at.invalid("a prefix is empty or a directory with / at its end".to_owned()));
            }
            let Site::Held(place) = shared.site(at)? else { return Ok(Page::default()) };
            if !prefix.is_empty() && after.as_str() >= prefix && !after.starts_with(prefix) {
                return Ok(Page::default());
            }
            // One more than a page tells whether it was the last.
            let mut walk = Walk { place: &place, after: &after, limit: PAGE + 1, found: Vec::new(), skipped: 0 };
            walk.run(prefix).map_err(|error| shared.failed(at, &place, error))?;
            let Walk { mut found, skipped, .. } = walk;
            if found.is_empty() && !place.is_at(&shared.path) {
                return Err(shared.lose(at, &place));
            }
            shared.skipped.fetch_add(skipped, Ordering::Relaxed);
            let more = found.len() > PAGE;
            found.truncate(PAGE);
            let next = found.last().filter(|_| more).map(|last| last.key.clone());
            Ok(Page { objects: found, next })
        })
        .await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.blocking("delete", key, 0, |shared, at| {
            at.check_key()?;
            let Site::Held(place) = shared.site(at)? else { return Ok(()) };
            match place.remove(&at.key).map_err(|error| shared.failed(at, &place, error)) {
                Err(error) if error.kind == Kind::NotFound => Ok(()),
                result => result,
            }
        })
        .await
    }

    async fn check_place(&self) -> Result<()> {
        self.blocking("check place", "", 0, |shared, at| match shared.site(at)? {
            Site::Held(place) if place.is_at(&shared.path) => Ok(()),
            Site::Held(place) => Err(shared.lose(at, &place)),
            Site::Vacant => Err(shared.gone(at, "it does not exist")),
        })
        .await
    }

    fn is_local(&self) -> bool {
        true
    }

    async fn abilities(&self) -> Result<Abilities> {
        // Synced, and compared with nothing: what a disk returns later is checked by hash.
        Ok(Abilities { create_only: true, checksum: false })
    }
}

impl Shared {
    /// Returns the place to work on. Reading the identity object is the contact: it follows the path anew.
    fn site(&self, at: &At) -> Result<Site> {
        let mut state = self.state.lock();
        if at.key != IDENTITY {
            if state.lost {
                return Err(self.gone(at, "the directory changed under its path"));
            }
            if let Some(place) = &state.place {
                return Ok(Site::Held(Arc::clone(place)));
            }
        }
        match Place::open(&self.path) {
            Ok(opened) => {
                let place = match state.place.take() {
                    Some(held) if held.same(&opened) => held,
                    _ => Arc::new(opened),
                };
                state.carries = match place.read(IDENTITY, BYTES_MAX) {
                    Ok(Ok(found)) if state.identity.get_or_insert_with(|| found.clone()) == &found => Carries::Ours,
                    Ok(_) => Carries::Another,
                    Err(Errno::NOENT) => Carries::Nothing,
                    Err(error) => return Err(at.errno(error)),
                };
                state.lost = false;
                state.place = Some(Arc::clone(&place));
                if state.carries == Carries::Nothing {
                    self.refuse_unmounted(at)?;
                }
                Ok(Site::Held(place))
            }
            Err(Errno::NOENT) if state.identity.is_none() && self.parent_exists() => {
                self.refuse_unmounted(at)?;
                Ok(Site::Vacant)
            }
            Err(error) => {
                state.lost = state.lost || state.place.take().is_some();
                Err(match error {
                    Errno::NOENT => self.gone(at, "it does not exist"),
                    Errno::NOTDIR => self.gone(at, "it is not a directory"),
                    error => at.errno(error),
                })
            }
        }
    }

    /// Refuses a place without identity in a mountpoint that stands empty.
    fn refuse_unmounted(&self, at: &At) -> Result<()> {
        match fstab::unmounted_above(&self.fstab, &self.path) {
            Some(point) => Err(self.gone(at, &format!("{point:?} is in fstab, and nothing is mounted there"))),
            None => Ok(()),
        }
    }

    /// Returns the place if it may be written to.
    fn place_for_put(&self, at: &At) -> Result<Arc<Place>> {
        let place = match self.site(at)? {
            Site::Held(place) => place,
            Site::Vacant if at.key == IDENTITY => {
                Place::create(&self.path).map_err(|error| match error {
                    Errno::NOENT => self.gone(at, "its parent does not exist"),
                    error => at.errno(error),
                })?;
                match self.site(at)? {
                    Site::Held(place) => return Ok(place),
                    Site::Vacant => return Err(self.gone(at, "it does not exist")),
                }
            }
            Site::Vacant => return Err(self.gone(at, "it does not exist")),
        };
        if at.key == IDENTITY || at.key.starts_with(TEMPORARY) {
            return Ok(place);
        }
        if self.state.lock().carries == Carries::Nothing {
            // Perhaps another process has initialised it: look again.
            self.site(&At { operation: at.operation, key: IDENTITY.to_owned() })?;
        }
        match self.state.lock().carries {
            Carries::Ours => Ok(place),
            Carries::Nothing => Err(self.gone(at, "it has no tandemfs.json")),
            Carries::Another => Err(self.gone(at, "it carries another tandemfs.json than before")),
        }
    }

    fn identified(&self, body: Body) {
        let mut state = self.state.lock();
        state.identity = Some(body.parts().concat().into());
        state.carries = Carries::Ours;
    }

    fn parent_exists(&self) -> bool {
        self.path.parent().is_some_and(|parent| parent.as_os_str().is_empty() || parent.is_dir())
    }

    /// Turns a failure on a held place into an error; "not found" only if the place itself is still there.
    fn failed(&self, at: &At, place: &Arc<Place>, error: Errno) -> Error {
        let error = at.errno(error);
        if error.kind == Kind::NotFound && !place.is_at(&self.path) { self.lose(at, place) } else { error }
    }

    /// Gives up a place whose path leads elsewhere.
    fn lose(&self, at: &At, place: &Arc<Place>) -> Error {
        let mut state = self.state.lock();
        if state.place.as_ref().is_some_and(|held| Arc::ptr_eq(held, place)) {
            state.place = None;
            state.lost = true;
        }
        self.gone(at, "the directory is gone from its path")
    }

    fn gone(&self, at: &At, why: &str) -> Error {
        let message = format!("place {:?} is empty or not mounted: {why}", self.path);
        at.error(Kind::PlaceMissing, Class::Rejected, message)
    }
}

/// The call that is being served.
struct At {
    operation: &'static str,
    key: String,
}

impl At {
    fn error(&self, kind: Kind, class: Class, message: String) -> Error {
        Error { kind, class, operation: self.operation, key: self.key.clone(), message, retry_after: None }
    }

    fn not_found(&self) -> Error {
        self.error(Kind::NotFound, Class::Rejected, "no such object".to_owned())
    }

    fn invalid(&self, message: String) -> Error {
        self.error(Kind::Invalid, Class::Rejected, message)
    }

    fn check_key(&self) -> Result<()> {
        place::split(&self.key).map(drop).map_err(|_| self.invalid("not a key".to_owned()))
    }

    /// What an errno of a file operation means to the caller. Nothing here is ambiguous: a write that failed left no
    /// object that a later `stat` would confirm.
    fn errno(&self, errno: Errno) -> Error {
        let (kind, class) = match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::ISDIR => return self.not_found(),
            Errno::EXIST => (Kind::Exists, Class::Rejected),
            Errno::NOSPC | Errno::DQUOT => (Kind::Full, Class::Temporary),
            Errno::ACCESS | Errno::PERM | Errno::ROFS => (Kind::Denied, Class::Rejected),
            Errno::NODEV | Errno::NXIO | Errno::STALE | Errno::NOTCONN => (Kind::PlaceMissing, Class::Rejected),
            Errno::LOOP | Errno::XDEV | Errno::NAMETOOLONG | Errno::INVAL => (Kind::Invalid, Class::Rejected),
            Errno::FBIG => (Kind::Unsupported, Class::Rejected),
            Errno::TIMEDOUT | Errno::HOSTDOWN | Errno::HOSTUNREACH => (Kind::Unreachable, Class::Temporary),
            _ => (Kind::Failed, Class::Temporary),
        };
        self.error(kind, class, std::io::Error::from(errno).to_string())
    }
}

fn unfinished_before() -> i64 {
    crate::clock::now().secs() - UNFINISHED_SECS
}

#[cfg(test)]
mod tests;
