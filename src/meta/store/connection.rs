//! Connections to the database: how they are opened, and what SQLite is told.
//!
//! Owns: flags, pragmas, what an error of SQLite means on this machine. Does not own: which connections there are (`store`).

use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use crate::meta::{Error, Result, log_writes};

pub(super) fn writing(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Ok(Connection::open_with_flags_and_vfs(path, flags, log_writes::layer()?)?)
}

pub(in crate::meta) fn configure(conn: &Connection) -> Result<()> {
    conn.busy_timeout(std::time::Duration::from_secs(30))?;
    conn.pragma_update(None, "journal_mode", "WAL")?;
    // A commit writes the WAL without syncing it; durability is `Meta::sync`.
    conn.pragma_update(None, "synchronous", "NORMAL")?;
    conn.pragma_update(None, "wal_autocheckpoint", 0)?;
    conn.pragma_update(None, "cache_size", -16 * 1024)?;
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    persist_wal(conn)?;
    plan_once(conn)?;
    conn.set_prepared_statement_cache_capacity(256);
    Ok(())
}

/// Plans once. Otherwise a statement with `LIMIT ?` is parsed and planned again each time a value is bound to it
/// (`sqlite3ExprIsInteger` looks at the value): a fifth of the time of listing directories, and as much of short transactions.
fn plan_once(conn: &Connection) -> Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

/// Keeps the `-wal` file when the last connection closes, so that our descriptor of it stays the log (S8).
fn persist_wal(conn: &Connection) -> Result<()> {
    let mut on: libc::c_int = 1;
    // SAFETY: the handle is valid while `conn` lives, and SQLITE_FCNTL_PERSIST_WAL takes a pointer to an int.
    let code = unsafe {
        rusqlite::ffi::sqlite3_file_control(
            conn.handle(),
            c"main".as_ptr(),
            rusqlite::ffi::SQLITE_FCNTL_PERSIST_WAL,
            (&raw mut on).cast(),
        )
    };
    match code {
        rusqlite::ffi::SQLITE_OK => Ok(()),
        code => Err(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None).into()),
    }
}

pub(super) fn reading(path: &Path) -> Result<Connection> {
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(std::time::Duration::from_secs(30))?;
    conn.pragma_update(None, "cache_size", -4 * 1024)?;
    plan_once(&conn)?;
    conn.set_prepared_statement_cache_capacity(64);
    Ok(conn)
}

/// SQLite knows a full disk, and takes a quota that is used up for a disk that fails: the difference is in what the system
/// said last.
pub(super) fn by_quota(conn: &Connection, error: Error) -> Error {
    let Error::Sqlite(rusqlite::Error::SqliteFailure(failure, _)) = &error else { return error };
    if failure.code != rusqlite::ErrorCode::SystemIoFailure {
        return error;
    }
    // SAFETY: the handle is that of an open connection, which only this thread uses now; the call reads a number of it.
    let said = unsafe { rusqlite::ffi::sqlite3_system_errno(conn.handle()) };
    if said == libc::EDQUOT { Error::Refused(rustix::io::Errno::DQUOT) } else { error }
}
