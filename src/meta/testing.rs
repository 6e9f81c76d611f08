//! Small stores for the unit tests of `meta`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::{Connection, ffi, params};

use super::inode::Inode;
use super::slot::SlotRequest;
use super::{Created, Meta, Tx};
use crate::clock::{self, Instant, Timestamp};
use crate::format::record::{Change, Content, Extent};
use crate::id::{ChunkHash, FilesystemId, Generation, InodeId, Seq, SessionId};

/// How much the largest of the write transactions did since [`Work::measure`], in steps of SQLite's virtual machine: a row
/// that is looked at is ten or so, one that is changed a hundred. Unlike time, they are the same on every machine (D8).
#[derive(Default)]
pub(crate) struct Work {
    measuring: AtomicBool,
    most: AtomicU64,
    took: Mutex<Vec<Duration>>,
    began: Mutex<Option<Instant>>,
}

impl Work {
    /// Begins to measure, or begins anew.
    pub(crate) fn measure(&self) {
        self.measuring.store(true, Ordering::SeqCst);
        self.most.store(0, Ordering::SeqCst);
        self.took.lock().clear();
    }

    /// Steps of the largest transaction, and how long each one held the writer, the shortest first.
    pub(crate) fn most(&self) -> (u64, Vec<Duration>) {
        let mut took = self.took.lock().clone();
        took.sort();
        (self.most.load(Ordering::SeqCst), took)
    }

    pub(super) fn begin(&self, conn: &Connection) {
        if self.measuring.load(Ordering::SeqCst) {
            steps(conn);
            *self.began.lock() = Some(clock::instant());
        }
    }

    pub(super) fn end(&self, conn: &Connection) {
        if let Some(began) = self.began.lock().take() {
            self.took.lock().push(clock::instant().since(began));
            self.most.fetch_max(steps(conn), Ordering::SeqCst);
        }
    }
}

/// Steps of all prepared statements of a connection since it was last asked. (All of a transaction's are kept prepared.)
fn steps(conn: &Connection) -> u64 {
    let mut total = 0;
    // SAFETY: the handle is valid while `conn` lives, its statements while nobody finalises one: the writer is locked.
    unsafe {
        let mut statement = ffi::sqlite3_next_stmt(conn.handle(), std::ptr::null_mut());
        while !statement.is_null() {
            total += u64::from(ffi::sqlite3_stmt_status(statement, ffi::SQLITE_STMTSTATUS_VM_STEP, 1).cast_unsigned());
            statement = ffi::sqlite3_next_stmt(conn.handle(), statement);
        }
    }
    total
}

/// A new store with a root directory.
pub(crate) fn store() -> (tempfile::TempDir, Meta) {
    let dir = tempfile::tempdir().unwrap();
    let created =
        Created { filesystem: FilesystemId::random(), name: "t".into(), chunk_size: 1 << 22, time: Timestamp::EPOCH };
    let meta = Meta::create(&dir.path().join("meta.sqlite"), &created).unwrap();
    (dir, meta)
}

/// A new empty file in the root, with its `create` record.
pub(crate) fn file(tx: &mut Tx<'_>, name: &[u8]) -> InodeId {
    let ino = tx.next_inode();
    let mode = libc::S_IFREG | 0o644;
    let time = Timestamp::EPOCH;
    let seq = tx
        .append(&Change::Create {
            parent: InodeId::ROOT,
            name: name.to_vec(),
            ino,
            mode,
            uid: 0,
            gid: 0,
            rdev: 0,
            time,
            xattrs: vec![],
        })
        .unwrap();
    let inode = Inode {
        ino,
        mode,
        uid: 0,
        gid: 0,
        rdev: 0,
        nlink: 1,
        size: 0,
        generation: Generation(0),
        atime: time,
        mtime: time,
        ctime: time,
        times_seq: Seq::ZERO,
        manifest: None,
        last_seq: seq,
        parent: InodeId::ROOT,
        allocated: 0,
    };
    inode.insert(tx).unwrap();
    let cookie = tx.next_cookie();
    tx.conn().execute("INSERT INTO dirent VALUES (1, ?1, ?2, ?3)", params![name, ino, cookie]).unwrap();
    ino
}

/// The request of a whole session that wrote `size` bytes.
pub(crate) fn slot_request(ino: InodeId, session: u64, size: u64) -> SlotRequest {
    let time = Timestamp::new(1_000 + size as i64, 0).unwrap();
    SlotRequest {
        ino,
        session: SessionId(session),
        base: Generation(0),
        whole: true,
        base_limit: 0,
        synced_size: None,
        size,
        mtime: time,
        ctime: time,
        fsynced: false,
    }
}

/// Fills the open slot of `session` with one chunk of nine bytes that no target has, as a commit does.
pub(crate) fn fill_slot(tx: &mut Tx<'_>, session: u64, hash: ChunkHash) {
    let slot = tx.slot_of(SessionId(session)).unwrap().unwrap();
    tx.conn()
        .execute("INSERT INTO chunk (hash, length, bytes_referenced, incomplete) VALUES (?1, 9, 9, 1)", [hash])
        .unwrap();
    tx.chunks_added();
    let content = Content {
        ino: slot.ino,
        generation: slot.generation,
        whole: true,
        size: 9,
        mtime: slot.mtime,
        ctime: slot.ctime,
        mode: None,
        chunks: vec![(hash, 9)],
        extents: vec![Extent { offset: 0, length: 9, chunk: 0, chunk_offset: 0 }],
        zero: vec![],
        part: None,
    };
    tx.end_slot(&slot, &Change::Content(content)).unwrap();
    tx.delete_session(SessionId(session)).unwrap();
}
