//! Writes to SQLite's log, put together: one system call per commit.
//!
//! Owns: a thin layer between SQLite and its own access to files, in use for the write-ahead log only.
//! Does not own: what is written, when it is synced (`store`).
//!
//! SQLite writes each page of a commit by four system calls: seek and write its header, seek and write its bytes. For a small
//! transaction that is more work than all the rest. Here the frames gather in memory until the last one of the commit, which
//! its header marks, and go out by one write.
//!
//! - No frame is needed by anybody before: others read up to the last commit only, and SQLite makes that known to them
//!   after the write of the last frame has returned.
//! - What would notice the difference writes out first what is gathered: a read, a sync, a truncate, a question for the
//!   size, a write that does not continue where the last one ended. What was written once and is written again goes out
//!   at once: a transaction larger than memory does that at its end, to the checksums of its frames.
//! - A failed write is told as the failure of the last frame: the commit fails, as it would have with an earlier one.

use std::ffi::{CStr, c_int, c_void};
use std::sync::OnceLock;

use rusqlite::ffi;

use super::{Error, Result};

/// The name by which connections ask for this layer.
const NAME: &CStr = c"tandemfs-log";
/// SQLite's own access to files of one process alone: what its connections share about the log lies in memory. In a file that is
/// mapped (`-shm`) it would be at the mercy of the disk: where written blocks get a new place (btrfs), a store into a page that was
/// written back is SIGBUS as soon as the disk or a quota is full.
const OWN_NAME: &CStr = c"unix-excl";
/// Bytes of the header of a frame; its bytes 4–7 are not zero in the last frame of a commit.
const FRAME_HEADER: usize = 24;
/// What is gathered at most, but for one page: a large transaction goes out in pieces. SQLite's own write takes less than
/// 128 KiB at once.
const GATHER_MAX: usize = 48 << 10;

/// SQLite's own access to files. It lives as long as the process.
#[derive(Clone, Copy)]
struct Own(*mut ffi::sqlite3_vfs);

// SAFETY: SQLite's own object is made before it is handed out and used from any thread by design.
unsafe impl Send for Own {}
// SAFETY: likewise.
unsafe impl Sync for Own {}

static OWN: OnceLock<Option<Own>> = OnceLock::new();

/// Makes the layer known to SQLite, once; returns the name to open a connection with.
pub(super) fn layer() -> Result<&'static CStr> {
    match OWN.get_or_init(register) {
        Some(_) => Ok(NAME),
        None => Err(Error::Damaged("SQLite has no access to files of its own".into())),
    }
}

fn register() -> Option<Own> {
    // SAFETY: both calls initialize SQLite if need be. The copy has the methods of the original, all but one of which take
    // nothing from the object they are called on but its sizes, and it is never freed.
    unsafe {
        let own = ffi::sqlite3_vfs_find(OWN_NAME.as_ptr());
        if own.is_null() {
            return None;
        }
        let mut layer = *own;
        layer.szOsFile += size_of::<LogFile>() as c_int;
        layer.pNext = std::ptr::null_mut();
        layer.zName = NAME.as_ptr();
        layer.xOpen = Some(open);
        let layer = Box::leak(Box::new(layer));
        (ffi::sqlite3_vfs_register(layer, 0) == ffi::SQLITE_OK).then_some(Own(own))
    }
}

/// What SQLite holds for an open log; its own object of that file follows in the same memory.
#[repr(C)]
struct LogFile {
    methods: *const ffi::sqlite3_io_methods,
    gathered: *mut Gathered,
}

/// Writes that have not been made yet.
#[derive(Default)]
struct Gathered {
    bytes: Vec<u8>,
    /// Where the first of them belongs.
    offset: i64,
    /// Where the last frame ended that was appended since the log began anew.
    end: i64,
    /// The last of them is the header of the last frame of a commit.
    ending: bool,
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(lock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

unsafe extern "C" fn open(
    _layer: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let Some(Some(Own(own))) = OWN.get() else { return ffi::SQLITE_CANTOPEN };
    // SAFETY: SQLite gives memory of the size that the layer asked for: a `LogFile` and SQLite's own object after it. A file
    // that is no log is SQLite's own alone, at the start of that memory.
    unsafe {
        let Some(open_own) = (**own).xOpen else { return ffi::SQLITE_CANTOPEN };
        if flags & ffi::SQLITE_OPEN_WAL == 0 {
            return open_own(*own, name, file, flags, out_flags);
        }
        let log = file.cast::<LogFile>();
        // Without methods it counts as not open.
        (*log).methods = std::ptr::null();
        let code = open_own(*own, name, inner(file), flags, out_flags);
        if code == ffi::SQLITE_OK {
            (*log).gathered = Box::into_raw(Box::default());
            (*log).methods = &METHODS;
        } else if !(*inner(file)).pMethods.is_null()
            && let Some(close) = own_methods(file).xClose
        {
            close(inner(file));
        }
        code
    }
}

/// SQLite's own object of an open log.
///
/// SAFETY: `file` is memory of a size that the layer asked for.
unsafe fn inner(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: as the caller says.
    unsafe { file.byte_add(size_of::<LogFile>()) }
}

/// SAFETY: `file` was opened by [`open`] as a log.
unsafe fn own_methods(file: *mut ffi::sqlite3_file) -> &'static ffi::sqlite3_io_methods {
    // SAFETY: SQLite's own methods of an open file are static.
    unsafe { &*(*inner(file)).pMethods }
}

/// SAFETY: `file` was opened by [`open`] as a log, and SQLite calls from one thread at a time.
unsafe fn gathered<'a>(file: *mut ffi::sqlite3_file) -> &'a mut Gathered {
    // SAFETY: made by `open`, freed by `close`.
    unsafe { &mut *(*file.cast::<LogFile>()).gathered }
}

/// Makes the writes that are gathered.
///
/// SAFETY: `file` was opened by [`open`] as a log.
unsafe fn write_out(file: *mut ffi::sqlite3_file, gathered: &mut Gathered) -> c_int {
    if gathered.bytes.is_empty() {
        return ffi::SQLITE_OK;
    }
    // SAFETY: as the caller says; the bytes live until after the call.
    let code = unsafe {
        let length = gathered.bytes.len() as c_int;
        own_methods(file).xWrite.map_or(ffi::SQLITE_IOERR_WRITE, |write| {
            write(inner(file), gathered.bytes.as_ptr().cast(), length, gathered.offset)
        })
    };
    gathered.bytes.clear();
    gathered.ending = false;
    code
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, from: *const c_void, length: c_int, offset: i64) -> c_int {
    // SAFETY: SQLite calls it with an open log and that many bytes.
    unsafe {
        let Ok(length) = usize::try_from(length) else { return ffi::SQLITE_IOERR_WRITE };
        let bytes = std::slice::from_raw_parts(from.cast::<u8>(), length);
        let gathered = gathered(file);
        if offset == 0 {
            // The header of a log that begins anew.
            gathered.end = 0;
        }
        if offset != gathered.end {
            let code = write_out(file, gathered);
            if code != ffi::SQLITE_OK {
                return code;
            }
        }
        if offset < gathered.end {
            // A frame of this transaction once more, or its checksum alone: no end would tell when to write it out.
            let Some(write) = own_methods(file).xWrite else { return ffi::SQLITE_IOERR_WRITE };
            return write(inner(file), from, length as c_int, offset);
        }
        let ended = gathered.ending;
        if gathered.bytes.is_empty() {
            gathered.offset = offset;
        }
        gathered.bytes.extend_from_slice(bytes);
        gathered.end = offset + length as i64;
        gathered.ending = length == FRAME_HEADER && bytes[4..8] != [0; 4];
        if ended || gathered.bytes.len() >= GATHER_MAX { write_out(file, gathered) } else { ffi::SQLITE_OK }
    }
}

/// Writes out what is gathered, then does what SQLite itself does.
macro_rules! after_writing {
    ($file:expr, $method:ident, $failure:expr $(, $argument:expr)*) => {{
        // SAFETY: SQLite calls it with an open log, and arguments as its own method takes them.
        unsafe {
            match write_out($file, gathered($file)) {
                ffi::SQLITE_OK => own_methods($file).$method.map_or($failure, |method| method(inner($file) $(, $argument)*)),
                code => code,
            }
        }
    }};
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, into: *mut c_void, length: c_int, offset: i64) -> c_int {
    after_writing!(file, xRead, ffi::SQLITE_IOERR_READ, into, length, offset)
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    after_writing!(file, xTruncate, ffi::SQLITE_IOERR_TRUNCATE, size)
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    after_writing!(file, xSync, ffi::SQLITE_IOERR_FSYNC, flags)
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, size: *mut i64) -> c_int {
    after_writing!(file, xFileSize, ffi::SQLITE_IOERR_FSTAT, size)
}

unsafe extern "C" fn file_control(file: *mut ffi::sqlite3_file, operation: c_int, argument: *mut c_void) -> c_int {
    after_writing!(file, xFileControl, ffi::SQLITE_NOTFOUND, operation, argument)
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite calls it with an open log, and does not use it after this. What cannot be written belongs to no commit
    // that was told of.
    unsafe {
        let _ = write_out(file, gathered(file));
        let code = own_methods(file).xClose.map_or(ffi::SQLITE_IOERR_CLOSE, |method| method(inner(file)));
        drop(Box::from_raw((*file.cast::<LogFile>()).gathered));
        (*file.cast::<LogFile>()).methods = std::ptr::null();
        code
    }
}

// SQLite locks the database file and its shared memory, never the log.
unsafe extern "C" fn lock(_file: *mut ffi::sqlite3_file, _level: c_int) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn check_reserved_lock(_file: *mut ffi::sqlite3_file, reserved: *mut c_int) -> c_int {
    // SAFETY: SQLite gives a place for the answer.
    unsafe { *reserved = 0 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite calls it with an open log.
    unsafe { own_methods(file).xSectorSize.map_or(4096, |method| method(inner(file))) }
}

unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite calls it with an open log.
    unsafe { own_methods(file).xDeviceCharacteristics.map_or(0, |method| method(inner(file))) }
}

#[cfg(test)]
mod tests {
    use rusqlite::{Connection, OpenFlags};

    use super::*;

    fn connect(path: &std::path::Path, layer: &CStr) -> Connection {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let conn = Connection::open_with_flags_and_vfs(path, flags, layer).unwrap();
        conn.pragma_update(None, "journal_mode", "WAL").unwrap();
        conn.pragma_update(None, "synchronous", "NORMAL").unwrap();
        conn.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
        conn
    }

    fn sum(conn: &Connection) -> (i64, i64) {
        let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
        conn.query_row("SELECT count(*), coalesce(sum(length(v)), 0) FROM t", [], row).unwrap()
    }

    /// As after a kill: nothing but the files is there, and frames count by their checksums.
    fn sum_after_a_kill(dir: &std::path::Path) -> (i64, i64) {
        let copy = tempfile::tempdir().unwrap();
        for name in ["db", "db-wal"] {
            std::fs::copy(dir.join(name), copy.path().join(name)).unwrap();
        }
        sum(&Connection::open(copy.path().join("db")).unwrap())
    }

    #[test]
    fn s8_a_commit_is_in_the_log_as_soon_as_it_returns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let writer = connect(&path, layer().unwrap());
        writer.execute_batch("CREATE TABLE t (v BLOB)").unwrap();
        let reader = Connection::open(&path).unwrap();
        for round in 1..=50 {
            writer.execute("INSERT INTO t VALUES (zeroblob(3000))", []).unwrap();
            assert_eq!(sum(&reader), (round, round * 3000), "another connection sees it");
            assert_eq!(sum_after_a_kill(dir.path()), (round, round * 3000));
        }
    }

    #[test]
    fn a_transaction_larger_than_memory_holds_is_read_and_rolled_back_as_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let writer = connect(&path, layer().unwrap());
        // So few pages that it writes to the log long before it commits, reads them again, and writes them once more.
        writer.pragma_update(None, "cache_size", 10).unwrap();
        writer.execute_batch("CREATE TABLE t (v BLOB)").unwrap();
        let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) \
                    INSERT INTO t SELECT zeroblob(900) FROM n";
        for (end, rows) in [("ROLLBACK", 0), ("COMMIT", 2000), ("ROLLBACK", 2000), ("COMMIT", 4000)] {
            writer.execute_batch("BEGIN IMMEDIATE").unwrap();
            writer.execute_batch(fill).unwrap();
            writer.execute_batch("UPDATE t SET v = zeroblob(901) WHERE rowid % 7 = 0").unwrap();
            writer.execute_batch("UPDATE t SET v = zeroblob(900)").unwrap();
            writer.execute_batch(end).unwrap();
            // First: a read of its own would have it write out what it holds back.
            assert_eq!(sum_after_a_kill(dir.path()), (rows, rows * 900), "after {end} and a kill");
            assert_eq!(sum(&Connection::open(&path).unwrap()), (rows, rows * 900), "after {end}");
            assert_eq!(sum(&writer), (rows, rows * 900));
        }
        // The log begins anew, with other salts, over what is there.
        writer.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(())).unwrap();
        writer.execute("DELETE FROM t WHERE rowid > 1000", []).unwrap();
        drop(writer);
        let conn = Connection::open(&path).unwrap();
        assert_eq!(sum(&conn), (1000, 900_000));
        assert_eq!(conn.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)).unwrap(), "ok");
    }

    #[test]
    fn a_log_that_cannot_be_written_fails_the_commit_and_leaves_what_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let writer = connect(&path, layer().unwrap());
        writer.execute_batch("CREATE TABLE t (v BLOB); INSERT INTO t VALUES (zeroblob(10))").unwrap();
        // SAFETY: SQLite gives its own object of the log; the methods put in its place are of the right kind and static.
        unsafe {
            let mut file: *mut ffi::sqlite3_file = std::ptr::null_mut();
            let control = ffi::SQLITE_FCNTL_JOURNAL_POINTER;
            ffi::sqlite3_file_control(writer.handle(), c"main".as_ptr(), control, (&raw mut file).cast());
            assert_eq!((*file).pMethods, &raw const METHODS);
            let own = (*inner(file)).pMethods;
            static FULL: OnceLock<ffi::sqlite3_io_methods> = OnceLock::new();
            unsafe extern "C" fn full(_: *mut ffi::sqlite3_file, _: *const c_void, _: c_int, _: i64) -> c_int {
                ffi::SQLITE_FULL
            }
            (*inner(file)).pMethods = FULL.get_or_init(|| ffi::sqlite3_io_methods { xWrite: Some(full), ..*own });
            let refused = writer.execute("INSERT INTO t VALUES (zeroblob(10))", []).unwrap_err();
            assert_eq!(refused.sqlite_error_code(), Some(ffi::ErrorCode::DiskFull));
            assert_eq!(sum(&writer), (1, 10));
            (*inner(file)).pMethods = own;
        }
        writer.execute("INSERT INTO t VALUES (zeroblob(10))", []).unwrap();
        assert_eq!(sum(&writer), (2, 20));
        assert_eq!(sum(&Connection::open(&path).unwrap()), (2, 20));
    }
}
