//! State directories of earlier versions: their tables are brought to today's when they are opened.
//!
//! Owns: whose file this is and of which version, the steps from each version of the local schema to the next.
//! Does not own: the schema of today (`schema.sql`), formats on targets (`format`), which never change under a version.
//!
//! - All steps that are due run in one transaction: a state directory is of one version or another, whenever it is cut off.
//! - A later version is refused and left as it is; what it added is not known here.
//! - A state directory of each version that was ever released lies in `tests/fixtures/`, and is opened by the tests.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::{Error, Result};

/// "TDFS": says to `file(1)` and to us whose database this is.
pub(super) const APPLICATION_ID: i32 = 0x5444_4653;
/// Version of the local schema.
pub(super) const USER_VERSION: i32 = STEPS.len() as i32 + 1;

/// What leads from version `index + 1` to the next.
const STEPS: [&str; 4] = [
    // 2: earlier mounts, for announcements (T7); targets that come and go, are paused, resynced, and lose chunks (T4, T9).
    "CREATE TABLE mounted (
       epoch INTEGER NOT NULL, writer TEXT NOT NULL,
       seq INTEGER NOT NULL,
       PRIMARY KEY (epoch, writer)
     ) STRICT, WITHOUT ROWID;
     ALTER TABLE target ADD COLUMN paused_until INTEGER;
     ALTER TABLE target ADD COLUMN whole_secs INTEGER;
     ALTER TABLE target ADD COLUMN relist INTEGER NOT NULL DEFAULT 0;
     ALTER TABLE deletion ADD COLUMN done_secs INTEGER;
     CREATE TABLE retired (bit INTEGER PRIMARY KEY) STRICT;
     CREATE TABLE target_change (name TEXT PRIMARY KEY, uri TEXT, configured TEXT) STRICT, WITHOUT ROWID;
     CREATE TABLE seq_time (seq INTEGER PRIMARY KEY, secs INTEGER NOT NULL) STRICT;",
    // 3: chunks that are rewritten (S10, O5): who refers to a chunk, what of it is alive, repacks that are not over.
    "CREATE INDEX chunk_claimed ON chunk (id) WHERE claimed <> 0;
     CREATE INDEX chunk_sparse ON chunk (id) WHERE dead_seq IS NULL AND length - 2 * bytes_referenced > 0;
     CREATE INDEX extent_chunk ON extent (chunk, chunk_offset);
     ALTER TABLE chunk_sum ADD COLUMN alive_bytes INTEGER NOT NULL DEFAULT 0;
     ALTER TABLE chunk_sum ADD COLUMN live_bytes INTEGER NOT NULL DEFAULT 0;
     ALTER TABLE chunk_sum ADD COLUMN new_bytes INTEGER NOT NULL DEFAULT 0;
     UPDATE chunk_sum SET (alive_bytes, live_bytes, new_bytes) = (SELECT
       coalesce(sum((bytes_referenced > 0) * length), 0), coalesce(sum(min(bytes_referenced, length)), 0),
       coalesce(sum(length), 0) FROM chunk);
     CREATE TRIGGER chunk_came AFTER INSERT ON chunk BEGIN
       UPDATE chunk_sum SET alive_bytes = alive_bytes + (new.bytes_referenced > 0) * new.length,
         live_bytes = live_bytes + min(new.bytes_referenced, new.length), new_bytes = new_bytes + new.length;
     END;
     CREATE TRIGGER chunk_lives AFTER UPDATE OF bytes_referenced ON chunk WHEN new.bytes_referenced <> old.bytes_referenced BEGIN
       UPDATE chunk_sum SET alive_bytes = alive_bytes + ((new.bytes_referenced > 0) - (old.bytes_referenced > 0)) * new.length,
         live_bytes = live_bytes + min(new.bytes_referenced, new.length) - min(old.bytes_referenced, old.length);
     END;
     CREATE TRIGGER chunk_went AFTER DELETE ON chunk WHEN old.bytes_referenced > 0 BEGIN
       UPDATE chunk_sum SET alive_bytes = alive_bytes - old.length,
         live_bytes = live_bytes - min(old.bytes_referenced, old.length);
     END;
     CREATE TABLE repacked (
       seq INTEGER PRIMARY KEY,
       from_hash BLOB NOT NULL,
       to_chunk INTEGER NOT NULL,
       body BLOB NOT NULL
     ) STRICT;
     CREATE INDEX repacked_from ON repacked (from_hash, seq);
     CREATE INDEX repacked_to ON repacked (to_chunk);",
    // 4: outlines, by which parts of chunks are checked. Chunks of before get theirs when they are fetched.
    "CREATE TABLE outline (chunk INTEGER PRIMARY KEY, leads BLOB NOT NULL) STRICT;
     CREATE TRIGGER chunk_outline AFTER DELETE ON chunk BEGIN DELETE FROM outline WHERE chunk = old.id; END;",
    // 5: bytes that a file's content takes without its holes, for st_blocks.
    "ALTER TABLE inode ADD COLUMN allocated INTEGER NOT NULL DEFAULT 0;
     UPDATE inode SET allocated = (SELECT coalesce(sum(length), 0) FROM extent WHERE manifest = inode.manifest)
       WHERE manifest IS NOT NULL;",
];

/// The version of the store behind `conn`, if it is one that this program can read.
pub(super) fn version(conn: &Connection, path: &Path) -> Result<i32> {
    let application_id: i32 = conn.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version: i32 = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if application_id != APPLICATION_ID || version < 1 {
        return Err(Error::Damaged(format!("{} is no metadata store of TandemFS", path.display())));
    }
    if version > USER_VERSION {
        return Err(Error::Version { path: path.to_owned(), found: version, known: USER_VERSION });
    }
    Ok(version)
}

/// Brings the store to today's schema. Does nothing if it has it.
pub(super) fn migrate(conn: &mut Connection, path: &Path) -> Result<()> {
    if version(conn, path)? == USER_VERSION {
        return Ok(());
    }
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found = version(&tx, path)?;
    for step in &STEPS[found as usize - 1..] {
        tx.execute_batch(step)?;
    }
    tx.pragma_update(None, "user_version", USER_VERSION)?;
    tx.commit()?;
    if found != USER_VERSION {
        tracing::info!(found, now = USER_VERSION, "the state directory was brought to the schema of this version");
    }
    Ok(())
}

/// For a reader that may not change anything: the store must have today's schema.
pub(super) fn check(conn: &Connection, path: &Path) -> Result<()> {
    match version(conn, path)? {
        USER_VERSION => Ok(()),
        found => Err(Error::Version { path: path.to_owned(), found, known: USER_VERSION }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;

    use super::super::history::ALLOCATED_IS_WRONG;
    use super::super::{Meta, Options, testing};
    use super::*;

    fn fixture(version: i32) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/state-{version}/state/meta.sqlite"))
    }

    /// Every column, index and trigger, however the SQL that made it was laid out.
    fn shape(meta: &Meta) -> BTreeSet<String> {
        let statement = "SELECT m.type || ' ' || m.name || ' ' || m.tbl_name || ' ' || coalesce(c.name, '') || ' ' || \
                         coalesce(c.type, '') || ' ' || coalesce(c.[notnull], '') || ' ' || coalesce(c.dflt_value, '') || \
                         ' ' || coalesce(c.pk, '') FROM sqlite_schema m LEFT JOIN pragma_table_info(m.name) c";
        let rows = |conn: &Connection| {
            let mut rows = conn.prepare(statement)?;
            let rows = rows.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
            Ok(rows)
        };
        meta.read(rows).unwrap()
    }

    #[test]
    fn a_state_directory_of_every_version_opens_and_has_todays_schema() {
        let (_dir, today) = testing::store();
        for version in 1..USER_VERSION {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("meta.sqlite");
            std::fs::copy(fixture(version), &path).unwrap();
            let refused = Meta::open(&path, &Options { read_only: true });
            assert!(matches!(refused, Err(Error::Version { found, .. }) if found == version));
            for _ in 0..2 {
                let meta = Meta::open(&path, &Options::default()).unwrap();
                let (shape, expected) = (shape(&meta), shape(&today));
                assert_eq!(shape, expected, "version {version}: a step is missing in STEPS");
                assert!(meta.head().0 > 0 && !meta.targets().unwrap().is_empty());
                let wrong: i64 =
                    meta.read(|conn| Ok(conn.query_row(ALLOCATED_IS_WRONG, [], |row| row.get(0))?)).unwrap();
                assert_eq!(wrong, 0, "version {version}: allocated bytes are those of the extents");
            }
            Meta::open(&path, &Options { read_only: true }).unwrap();
        }
    }

    #[test]
    fn what_is_not_ours_or_of_a_later_version_is_refused_and_left_as_it_is() {
        for (application_id, version, word) in
            [(1, USER_VERSION, "no metadata store"), (APPLICATION_ID, USER_VERSION + 1, "a later version")]
        {
            let (dir, meta) = testing::store();
            drop(meta);
            let path = dir.path().join("meta.sqlite");
            let conn = Connection::open(&path).unwrap();
            conn.pragma_update(None, "application_id", application_id).unwrap();
            conn.pragma_update(None, "user_version", version).unwrap();
            drop(conn);
            for read_only in [false, true] {
                let refused = Meta::open(&path, &Options { read_only }).err().unwrap().to_string();
                assert!(refused.contains(word), "{refused}");
            }
            let conn = Connection::open(&path).unwrap();
            assert_eq!(conn.pragma_query_value(None, "user_version", |row| row.get::<_, i32>(0)).unwrap(), version);
        }
    }
}
