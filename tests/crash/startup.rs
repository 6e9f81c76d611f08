//! How long a mount takes until it is usable, with a large filesystem and a long queue: figures, and a bound that only
//! something quadratic would break. Only when asked for: `TANDEMFS_STARTUP` = number of files.

use std::time::{Duration, Instant};

use super::rig::{Rig, run};
use super::setting;
use crate::support::run::tandemfs;

/// Makes `files` inodes with a name and a chunk each by copying one that is there, in the database itself; `queued` of their
/// chunks are on no target yet, the others on all.
fn enlarge(state: &std::path::Path, files: u64, queued: u64) {
    let mut database = rusqlite::Connection::open(state.join("meta.sqlite")).unwrap();
    let tx = database.transaction().unwrap();
    let (ino, manifest, chunk): (i64, i64, i64) = tx
        .query_row(
            "SELECT i.ino, i.manifest, e.chunk FROM inode i JOIN extent e ON e.manifest = i.manifest LIMIT 1",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .unwrap();
    let numbers = format!("WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {files})");
    let copy = |table: &str, columns: &[(&str, &str)], which: &str| {
        let all: Vec<String> = {
            let mut select = tx.prepare(&format!("SELECT name FROM pragma_table_info('{table}')")).unwrap();
            select.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
        };
        let values: Vec<String> = all
            .iter()
            .map(|name| {
                columns.iter().find(|(own, _)| own == name).map_or(format!("t.{name}"), |(_, value)| (*value).into())
            })
            .collect();
        let sql = format!(
            "{numbers} INSERT INTO {table} ({}) SELECT {} FROM {table} t, n WHERE {which}",
            all.join(", "),
            values.join(", ")
        );
        tx.execute(&sql, []).unwrap_or_else(|e| panic!("{sql}: {e}"));
    };
    let base = 10_000_000;
    let (new_ino, new_chunk) = (format!("{base} + n.n"), format!("{base} + n.n"));
    let waits = format!("CASE WHEN n.n <= {queued} THEN 1 ELSE 0 END");
    let placed = format!("CASE WHEN n.n <= {queued} THEN 0 ELSE t.placed END");
    copy("inode", &[("ino", &new_ino), ("manifest", &new_ino)], &format!("t.ino = {ino}"));
    copy(
        "dirent",
        &[("name", "CAST('f' || n.n AS BLOB)"), ("ino", &new_ino), ("cookie", &new_ino)],
        &format!("t.ino = {ino}"),
    );
    copy(
        "chunk",
        &[("id", &new_chunk), ("hash", "randomblob(32)"), ("incomplete", &waits), ("placed", &placed)],
        &format!("t.id = {chunk}"),
    );
    copy("extent", &[("manifest", &new_ino), ("chunk", &new_chunk)], &format!("t.manifest = {manifest}"));
    copy(
        "chunk_file",
        &[("id", &new_chunk), ("name", "t.name || n.n")],
        &format!("t.id = (SELECT file FROM location WHERE chunk = {chunk})"),
    );
    copy("location", &[("chunk", &new_chunk), ("file", &new_chunk)], &format!("t.chunk = {chunk}"));
    tx.execute(
        "UPDATE counter SET next_inode = ?1, next_manifest = ?1, next_cookie = ?1, inodes = inodes + ?2",
        [base + files as i64 + 1, files as i64],
    )
    .unwrap();
    tx.commit().unwrap();
}

#[test]
fn a_mount_is_usable_at_once_whatever_is_queued() {
    let files = setting("TANDEMFS_STARTUP", 0);
    if files == 0 {
        eprintln!("SKIPPED: a large filesystem is made only when TANDEMFS_STARTUP is set");
        return;
    }
    let rig = Rig::new(&["a"]);
    let daemon = rig.mount();
    {
        let _watch = daemon.watch();
        std::fs::write(rig.mnt().join("first"), crate::support::tree::noise(1, 5000)).unwrap();
    }
    rig.umount(daemon);
    enlarge(&rig.state, files, files / 10);
    let mut times = Vec::new();
    for _ in 0..3 {
        let start = Instant::now();
        let daemon = rig.mount();
        let usable = start.elapsed();
        let _watch = daemon.watch();
        assert!(std::fs::metadata(rig.mnt().join(format!("f{files}"))).unwrap().len() == 5000);
        std::fs::write(rig.mnt().join("second"), "written at once").unwrap();
        times.push((usable, start.elapsed()));
        drop(_watch);
        let status = run(tandemfs().arg("status").arg(rig.mnt()));
        eprintln!("{}", status.stdout.lines().next().unwrap_or_default());
        daemon.kill();
    }
    eprintln!("{files} files, {} chunks queued: usable and written after {times:?}", files / 10);
    assert!(times.iter().all(|(usable, _)| *usable < Duration::from_secs(20)), "{times:?}");
}
