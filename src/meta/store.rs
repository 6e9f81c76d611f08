//! The connection to SQLite: opening, transactions, snapshots, durability.
//!
//! Owns: the writer lock, the pool of readers, the group sync of the WAL, its checkpoints, the counters.
//! Does not own: how connections are set up (`connection`), any table's meaning.
//!
//! S8: the database and `-shm` files are never opened here (closing any descriptor of theirs would drop the process's
//! POSIX locks on them); only `-wal` is, once, and held for life. While a store is open no other process gets at it, and what
//! its connections share lies in memory (`log_writes`).

pub(super) mod connection;

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::news as watch;
use parking_lot::{Condvar, Mutex, MutexGuard};
use rusqlite::{Connection, params};

use super::cache::{Cache, Changes, Noted};
use super::inode::Inode;
use super::steady::Steady;
use super::{Error, Result, migrate};
use crate::clock::Timestamp;
use crate::id::{Epoch, FilesystemId, InodeId, ManifestId, Seq, WriterId};
use crate::testing::failpoint::{self, Point};

const SCHEMA: &str = include_str!("schema.sql");

/// Before 3.51.3 two checkpoints that raced could silently lose commits (the WAL-reset race).
const SQLITE_VERSION_MIN: i32 = 3_051_003;
/// Idle readers kept open; more are opened when needed and closed after.
const READERS_IDLE_MAX: usize = 8;
/// Bytes of a page in a new store. A small transaction changes a few bytes each in some seven pages, and all of these go
/// through the log: with 4 KiB a create and its slot wrote 57 KiB, with 1 KiB 16 KiB.
const PAGE_SIZE: i64 = 1024;
/// Bytes in the WAL at which the checkpoint thread moves them into the database.
const CHECKPOINT_BYTES: u64 = 16 << 20;

/// How a store is opened.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Open without the right to change anything.
    pub read_only: bool,
}

/// What a new filesystem starts from.
#[derive(Debug, Clone)]
pub struct Created {
    pub filesystem: FilesystemId,
    pub name: String,
    /// Bytes; a power of two, 64 KiB … 64 MiB.
    pub chunk_size: u64,
    pub time: Timestamp,
}

/// The counters that transactions advance; a rolled back transaction leaves them as they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counters {
    seq: Seq,
    next_inode: InodeId,
    next_manifest: ManifestId,
    next_cookie: u64,
    exported: Seq,
    usage: Usage,
}

/// What the filesystem holds: kept by the transactions that change it, never counted when asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Inodes, those without a name too as long as they live.
    pub inodes: u64,
    /// Sum of the sizes of all files and symbolic links.
    pub bytes: u64,
}

/// Makes room when a transaction found none, for the reason given.
pub type WhenFull = Box<dyn Fn(&Error) + Send + Sync>;

/// Room on a disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Not in use.
    pub free: u64,
    /// Not in use, and not reserved for root.
    pub available: u64,
}

struct Writer {
    conn: Connection,
    counters: Counters,
}

impl Writer {
    fn transact<T>(
        &mut self,
        cache: &Cache,
        body: impl FnOnce(&mut Tx<'_>) -> Result<T>,
    ) -> Result<(T, Counters, Told, Changes)> {
        let mut tx = Tx {
            tx: Transaction::begin(&self.conn, "BEGIN IMMEDIATE")?,
            counters: self.counters,
            usage: Cell::new(self.counters.usage),
            told: Told::default(),
            cache,
            changes: RefCell::default(),
        };
        let value = body(&mut tx)?;
        let Tx { tx, counters, usage, told, changes, .. } = tx;
        let after = Counters { usage: usage.get(), ..counters };
        if after != self.counters {
            tx.conn
                .prepare_cached(
                    "UPDATE counter SET seq = ?1, next_inode = ?2, next_manifest = ?3, next_cookie = ?4, inodes = ?5, \
                 bytes = ?6, exported_seq = ?7",
                )?
                .execute(params![
                    after.seq,
                    after.next_inode,
                    after.next_manifest,
                    after.next_cookie as i64,
                    after.usage.inodes as i64,
                    after.usage.bytes as i64,
                    after.exported
                ])?;
        }
        tx.commit()?;
        Ok((value, after, told, changes.into_inner()))
    }
}

/// The metadata store. Shared by reference; all methods take `&self`.
pub struct Meta {
    path: PathBuf,
    writer: Mutex<Writer>,
    readers: Mutex<Vec<Connection>>,
    wal: Wal,
    head: watch::Sender<Seq>,
    /// A copy of the counters' usage, so that statfs never waits for a transaction.
    usage: Mutex<Usage>,
    chunks: watch::Sender<u64>,
    placements: watch::Sender<u64>,
    full: OnceLock<WhenFull>,
    pub(super) steady: Steady,
    pub(super) cache: Cache,
    /// The work of transactions, for tests of D8.
    #[cfg(test)]
    pub(crate) work: super::testing::Work,
}

/// Group sync of the write-ahead log: all waiters of a moment share one `fdatasync`.
struct Wal {
    file: Option<File>,
    /// Number of commits so far: read before an fdatasync, it says what that sync covers (S1).
    commits: AtomicU64,
    state: Mutex<WalState>,
    synced: Condvar,
    /// How many syncs were carried out.
    syncs: AtomicU64,
    latched: AtomicBool,
    /// Which sync failed first.
    why: OnceLock<String>,
}

#[derive(Default)]
struct WalState {
    synced: u64,
    syncing: bool,
}

/// A write transaction: changes to the tables and their journal records, all or nothing.
pub struct Tx<'a> {
    tx: Transaction<'a>,
    counters: Counters,
    /// Apart from the other counters, because rows are written through a shared reference.
    usage: Cell<Usage>,
    told: Told,
    cache: &'a Cache,
    changes: RefCell<Changes>,
}

/// An open transaction of a connection; rolled back unless it is committed. Its statements are prepared once, unlike those
/// of the crate's own type.
struct Transaction<'a> {
    conn: &'a Connection,
    open: bool,
}

impl<'a> Transaction<'a> {
    fn begin(conn: &'a Connection, how: &str) -> Result<Transaction<'a>> {
        conn.prepare_cached(how)?.execute([])?;
        Ok(Transaction { conn, open: true })
    }

    fn commit(mut self) -> Result<()> {
        self.conn.prepare_cached("COMMIT")?.execute([])?;
        self.open = false;
        Ok(())
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        // After some errors SQLite has rolled back by itself.
        if self.open
            && !self.conn.is_autocommit()
            && let Err(error) = self.conn.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "a transaction of the metadata store could not be rolled back");
        }
    }
}

/// What a transaction tells others of once it is committed.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    chunks_added: bool,
    chunks_placed: bool,
}

impl Meta {
    /// Creates the store of a new filesystem at `path`; nothing may exist there.
    pub fn create(path: &Path, created: &Created) -> Result<Meta> {
        let conn = Connection::open(path)?;
        conn.pragma_update(None, "page_size", PAGE_SIZE)?;
        connection::configure(&conn)?;
        conn.pragma_update(None, "application_id", migrate::APPLICATION_ID)?;
        conn.pragma_update(None, "user_version", migrate::USER_VERSION)?;
        let tx = conn.unchecked_transaction()?;
        tx.execute_batch(SCHEMA)?;
        for (key, value) in [
            ("filesystem", created.filesystem.to_string()),
            ("name", created.name.clone()),
            ("created", crate::format::utc(created.time)),
        ] {
            tx.execute("INSERT INTO filesystem (key, value) VALUES (?1, ?2)", params![key, value])?;
        }
        tx.execute("INSERT INTO filesystem (key, value) VALUES ('chunk_size', ?1)", [created.chunk_size as i64])?;
        tx.execute("INSERT INTO counter VALUES (1, 0, 2, 1, 1, 0, 0, '00000000', '', 0, 0, 0)", [])?;
        tx.commit()?;
        drop(conn);
        Meta::open(path, &Options::default())
    }

    /// Opens the store at `path`.
    pub fn open(path: &Path, options: &Options) -> Result<Meta> {
        let version = rusqlite::version_number();
        if version < SQLITE_VERSION_MIN {
            return Err(Error::Damaged(format!(
                "SQLite {version} is older than {SQLITE_VERSION_MIN} and may lose commits"
            )));
        }
        let conn = if options.read_only {
            let conn = connection::reading(path)?;
            migrate::check(&conn, path)?;
            conn
        } else {
            let mut conn = connection::writing(path)?;
            // What is not ours is left as it is.
            migrate::version(&conn, path)?;
            connection::configure(&conn)?;
            migrate::migrate(&mut conn, path)?;
            Meta::renew_log(&conn)?;
            conn
        };
        let (counters, steady) = (read_counters(&conn)?, Steady::of(&conn)?);
        let wal_path = PathBuf::from(format!("{}-wal", path.display()));
        let wal = match File::open(&wal_path) {
            Ok(file) => Some(file),
            Err(e) if options.read_only && e.kind() == std::io::ErrorKind::NotFound => None,
            Err(source) => return Err(Error::Io { what: format!("open {}", wal_path.display()), source }),
        };
        Ok(Meta {
            path: path.to_owned(),
            head: watch::Sender::new(counters.seq),
            usage: Mutex::new(counters.usage),
            chunks: watch::Sender::new(0),
            placements: watch::Sender::new(0),
            full: OnceLock::new(),
            steady,
            cache: Cache::default(),
            #[cfg(test)]
            work: super::testing::Work::default(),
            writer: Mutex::new(Writer { conn, counters }),
            readers: Mutex::new(Vec::new()),
            wal: Wal {
                file: wal,
                commits: AtomicU64::new(0),
                state: Mutex::default(),
                synced: Condvar::new(),
                syncs: AtomicU64::new(0),
                latched: AtomicBool::new(false),
                why: OnceLock::new(),
            },
        })
    }

    /// Runs `body` in one write transaction. An error rolls everything back, counters too.
    pub fn write<T>(&self, body: impl FnOnce(&mut Tx<'_>) -> Result<T>) -> Result<T> {
        if self.wal.latched.load(Ordering::Acquire) {
            return Err(Error::Latched);
        }
        let mut writer = self.writer.lock();
        #[cfg(test)]
        self.work.begin(&writer.conn);
        let (value, after, told, changes) = match writer.transact(&self.cache, body) {
            Ok(done) => {
                #[cfg(test)]
                self.work.end(&writer.conn);
                done
            }
            Err(error) => {
                let error = connection::by_quota(&writer.conn, error);
                drop(writer);
                if let (true, Some(full)) = (error.is_full(), self.full.get()) {
                    full(&error);
                }
                return Err(error);
            }
        };
        let grown = after.seq != writer.counters.seq;
        writer.counters = after;
        *self.usage.lock() = after.usage;
        self.cache.committed(changes);
        self.wal.commits.fetch_add(1, Ordering::Release);
        if grown {
            // Before others may write: told out of order the head would go back, and stay there until somebody writes again.
            self.head.send_replace(after.seq);
        }
        drop(writer);
        if told.chunks_added {
            self.chunks.send_modify(|count| *count += 1);
        }
        if told.chunks_placed {
            self.placements.send_modify(|count| *count += 1);
        }
        Ok(value)
    }

    /// Commits so far.
    #[cfg(test)]
    pub fn commits(&self) -> u64 {
        self.wal.commits.load(Ordering::Acquire)
    }

    /// Says who makes room when a transaction finds none on the disk (D2): the next one may find some. The first word
    /// stands.
    pub fn when_full(&self, make_room: WhenFull) {
        let _ = self.full.set(make_room);
    }

    /// Runs `body` on a snapshot. Keep it short: a long reader lets the WAL grow (D8: ≤ 100 ms, except the export).
    pub fn read<T>(&self, body: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let idle = self.readers.lock().pop();
        let conn = match idle {
            Some(conn) => conn,
            None => connection::reading(&self.path)?,
        };
        let tx = Transaction::begin(&conn, "BEGIN")?;
        let value = body(&conn);
        tx.commit()?;
        let mut readers = self.readers.lock();
        if readers.len() < READERS_IDLE_MAX {
            readers.push(conn);
        }
        value
    }

    /// Waits until everything committed before this call survives a power cut. Waiters of the same moment share one sync.
    pub fn sync(&self) -> Result<()> {
        let wanted = self.wal.commits.load(Ordering::Acquire);
        let mut state = self.wal.state.lock();
        loop {
            if self.wal.latched.load(Ordering::Acquire) {
                return Err(Error::Latched);
            }
            if state.synced >= wanted {
                return Ok(());
            }
            if state.syncing {
                self.wal.synced.wait(&mut state);
                continue;
            }
            state.syncing = true;
            let covered = self.wal.commits.load(Ordering::Acquire);
            self.wal.syncs.fetch_add(1, Ordering::Relaxed);
            let result = MutexGuard::unlocked(&mut state, || match &self.wal.file {
                Some(file) => failpoint::check(Point::SyncWal).and_then(|()| file.sync_data()),
                None => Ok(()),
            });
            state.syncing = false;
            match result {
                Ok(()) => state.synced = state.synced.max(covered),
                Err(error) => {
                    MutexGuard::unlocked(&mut state, || self.latch(format!("sync of the metadata log: {error}")));
                }
            }
            self.wal.synced.notify_all();
        }
    }

    /// How many syncs of the log were carried out: fewer than were asked for, as those who wait at the same moment share one.
    pub fn syncs(&self) -> u64 {
        self.wal.syncs.load(Ordering::Relaxed)
    }

    /// A sync of something on the state disk failed. What is there is unknown from now on: the kernel tells the error once and
    /// marks the pages clean, so that a second sync would report success for bytes that are gone. Every later write and
    /// sync of this store fails, and so does every acknowledgement, until the next mount looks at what is there.
    pub fn latch(&self, why: String) {
        tracing::error!(why, "nothing more is acknowledged until remount");
        // Of several the first counts.
        let _ = self.wal.why.set(why);
        self.wal.latched.store(true, Ordering::Release);
        let _state = self.wal.state.lock();
        self.wal.synced.notify_all();
    }

    /// Which sync failed, if one did.
    pub fn latched(&self) -> Option<&str> {
        self.wal.latched.load(Ordering::Acquire).then(|| self.wal.why.get().map_or("", String::as_str))
    }

    /// Moves all of the log into the database and begins it anew. At the start of a mount: after a sync that failed, frames
    /// may be in the page cache that are not on disk and never will be; those that follow them would not be found.
    fn renew_log(conn: &Connection) -> Result<()> {
        // A reader that is still there leaves the log as it is; no harm, there is none at a mount.
        conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }

    /// Moves the WAL into the database when it has grown; for a thread of its own, as it syncs. Returns true if it did.
    pub fn checkpoint_wal(&self) -> Result<bool> {
        let bytes = self.wal.file.as_ref().and_then(|wal| wal.metadata().ok()).map_or(0, |metadata| metadata.len());
        if bytes < CHECKPOINT_BYTES {
            return Ok(false);
        }
        let conn = connection::writing(&self.path)?;
        connection::configure(&conn)?;
        // PASSIVE never makes the foreground wait; the log is reused from its start once all of it is in the database.
        let moved = failpoint::check(Point::WalCheckpoint).map_err(|source| Error::Io { what: "test".into(), source });
        let moved = moved.and_then(|()| Ok(conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?));
        if let Err(error) = moved.map_err(|error| connection::by_quota(&conn, error)) {
            // It syncs the log before and the database after: as with a sync of ours, a second try would prove nothing.
            if !error.is_full() {
                self.latch(format!("moving the metadata log into the database: {error}"));
            }
            return Err(error);
        }
        Ok(true)
    }

    /// Room on the disk that the store lies on.
    pub fn disk(&self) -> Result<Disk> {
        let stat = rustix::fs::statvfs(&self.path)
            .map_err(|e| Error::Io { what: format!("statvfs {}", self.path.display()), source: e.into() })?;
        Ok(Disk { free: stat.f_bfree * stat.f_frsize, available: stat.f_bavail * stat.f_frsize })
    }

    /// What the filesystem holds, as of the last commit.
    pub fn usage(&self) -> Usage {
        *self.usage.lock()
    }

    /// The newest place in the journal, as of the last commit.
    pub fn head(&self) -> Seq {
        *self.head.borrow()
    }

    /// Tells of each growth of the journal.
    pub fn watch_head(&self) -> watch::Receiver<Seq> {
        self.head.subscribe()
    }

    /// Tells of each commit that added chunks to be placed.
    pub fn watch_chunks(&self) -> watch::Receiver<u64> {
        self.chunks.subscribe()
    }

    /// Tells of each commit that recorded placements.
    pub fn watch_placements(&self) -> watch::Receiver<u64> {
        self.placements.subscribe()
    }

    /// A value of the table `filesystem`.
    pub fn filesystem_text(&self, key: &str) -> Result<String> {
        self.read(|conn| Ok(conn.query_row("SELECT value FROM filesystem WHERE key = ?1", [key], |row| row.get(0))?))
    }

    /// The id of the filesystem.
    pub fn filesystem(&self) -> Result<FilesystemId> {
        self.read(|conn| {
            Ok(conn.query_row("SELECT value FROM filesystem WHERE key = 'filesystem'", [], |row| row.get(0))?)
        })
    }

    /// Bytes of a full chunk.
    pub fn chunk_size(&self) -> Result<u64> {
        self.read(|conn| {
            let size: i64 =
                conn.query_row("SELECT value FROM filesystem WHERE key = 'chunk_size'", [], |row| row.get(0))?;
            u64::try_from(size).map_err(|_| Error::Damaged(format!("chunk size {size}")))
        })
    }

    /// Epoch and writer of the newest mount, and how many mounts there were.
    pub fn writer_identity(&self) -> Result<(Epoch, WriterId, u64)> {
        self.read(|conn| {
            Ok(conn.query_row("SELECT epoch, writer, mounts FROM counter", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get::<_, i64>(2)? as u64))
            })?)
        })
    }

    /// The file of the store.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl<'a> Tx<'a> {
    /// The connection, for the domain transactions of this module.
    pub(crate) fn conn(&self) -> &Connection {
        self.tx.conn
    }

    /// The row of `ino` as this transaction has left it, or `None`.
    pub(crate) fn find_inode(&self, ino: InodeId) -> Result<Option<Inode>> {
        let noted = self.changes.borrow().row(ino);
        let kept = match noted {
            Noted::Is(row) => Some(row),
            // Nobody else writes: what is kept is as the last commit left it.
            Noted::AsBefore => self.cache.find(ino).map(|known| Some(known.inode)),
            Noted::Unknown => None,
        };
        match kept {
            Some(row) => {
                debug_assert_eq!(row, Inode::find(self.conn(), ino)?, "a kept row is the one in the table");
                Ok(row)
            }
            None => Inode::find(self.conn(), ino),
        }
    }

    /// The row of `ino` as this transaction has left it; that there is none is `ENOENT`.
    pub(crate) fn inode(&self, ino: InodeId) -> Result<Inode> {
        self.find_inode(ino)?.ok_or(Error::Refused(rustix::io::Errno::NOENT))
    }

    /// True if `ino` had no extended attributes when this transaction began. False also if nobody knows.
    pub(super) fn has_no_xattrs(&self, ino: InodeId) -> bool {
        self.cache.find(ino).is_some_and(|known| known.xattrs == Some(false))
    }

    /// Notes what this transaction changes about inodes (`Inode` and `xattr` do so themselves).
    pub(super) fn changes(&self) -> std::cell::RefMut<'_, Changes> {
        self.changes.borrow_mut()
    }

    /// The newest place taken, by this transaction too.
    pub fn head(&self) -> Seq {
        self.counters.seq
    }

    pub(crate) fn next_seq(&mut self) -> Seq {
        self.counters.seq = self.counters.seq.next();
        self.counters.seq
    }

    pub(crate) fn next_inode(&mut self) -> InodeId {
        let ino = self.counters.next_inode;
        self.counters.next_inode = InodeId(ino.0 + 1);
        ino
    }

    pub(crate) fn next_manifest(&mut self) -> ManifestId {
        let id = self.counters.next_manifest;
        self.counters.next_manifest = ManifestId(id.0 + 1);
        id
    }

    /// The readdir position of a new name.
    pub(crate) fn next_cookie(&mut self) -> i64 {
        let cookie = self.counters.next_cookie;
        self.counters.next_cookie += 1;
        cookie as i64
    }

    /// S of the newest snapshot that was exported. What fills a slot at or below it reaches targets as extents only, so
    /// size and times of such a slot must stay as that snapshot has them (T3).
    pub(crate) fn exported(&self) -> Seq {
        self.counters.exported
    }

    /// Notes that a snapshot of everything up to here is being exported.
    pub(crate) fn set_exported(&mut self) {
        self.counters.exported = self.counters.seq;
    }

    /// Continues history after `seq`, for replay of records that another state directory wrote.
    pub(crate) fn set_head(&mut self, seq: Seq) {
        self.counters.seq = seq;
    }

    /// Makes sure that `ino`, which another state directory handed out, is never handed out again.
    pub(crate) fn raise_next_inode(&mut self, ino: InodeId) {
        self.counters.next_inode = self.counters.next_inode.max(InodeId(ino.0 + 1));
    }

    /// Notes a row of `inode` that came, went or changed its size (`Inode` does so itself).
    pub(crate) fn note_usage(&self, inodes: i64, bytes: i64) {
        let Usage { inodes: had_inodes, bytes: had_bytes } = self.usage.get();
        self.usage.set(Usage {
            inodes: had_inodes.saturating_add_signed(inodes),
            bytes: had_bytes.saturating_add_signed(bytes),
        });
    }

    /// Tells the uploaders, once committed, that there are new chunks.
    pub(crate) fn chunks_added(&mut self) {
        self.told.chunks_added = true;
    }

    /// Tells the shippers, once committed, that a target has more chunks.
    pub(crate) fn chunks_placed(&mut self) {
        self.told.chunks_placed = true;
    }
}

fn read_counters(conn: &Connection) -> Result<Counters> {
    Ok(conn.query_row(
        "SELECT seq, next_inode, next_manifest, next_cookie, inodes, bytes, exported_seq FROM counter",
        [],
        |row| {
            Ok(Counters {
                seq: row.get(0)?,
                next_inode: row.get(1)?,
                next_manifest: row.get(2)?,
                next_cookie: row.get::<_, i64>(3)? as u64,
                exported: row.get(6)?,
                usage: Usage { inodes: row.get::<_, i64>(4)? as u64, bytes: row.get::<_, i64>(5)? as u64 },
            })
        },
    )?)
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
