//! The store itself: transactions, counters, syncs, the log.

use super::*;

fn store() -> (tempfile::TempDir, Meta) {
    let dir = tempfile::tempdir().unwrap();
    let created =
        Created { filesystem: FilesystemId::random(), name: "t".into(), chunk_size: 1 << 22, time: Timestamp::EPOCH };
    let meta = Meta::create(&dir.path().join("meta.sqlite"), &created).unwrap();
    (dir, meta)
}

#[test]
fn d8_a_statement_is_planned_once_whatever_is_bound_to_it() {
    let (dir, meta) = store();
    let plans = |conn: &Connection| {
        let mut statement =
            conn.prepare("SELECT cookie FROM dirent WHERE parent = ?1 ORDER BY cookie LIMIT ?2").unwrap();
        for limit in [1, 2, 1000] {
            statement.query((1, limit)).unwrap().next().unwrap();
        }
        statement.get_status(rusqlite::StatementStatus::RePrepare)
    };
    assert_eq!(plans(&meta.writer.lock().conn), 0);
    assert_eq!(plans(&connection::reading(&dir.path().join("meta.sqlite")).unwrap()), 0);
}

#[test]
fn a_failed_transaction_leaves_counters_and_tables_as_they_were() {
    let (_dir, meta) = store();
    let refused: Result<()> = meta.write(|tx| {
        tx.next_inode();
        tx.append(&crate::format::record::Change::Removexattr {
            ino: InodeId(1),
            name: vec![1],
            ctime: Timestamp::EPOCH,
        })?;
        Err(rustix::io::Errno::NOENT.into())
    });
    assert!(matches!(refused, Err(Error::Refused(rustix::io::Errno::NOENT))));
    assert_eq!(meta.head(), Seq::ZERO);
    let ino = meta.write(|tx| Ok(tx.next_inode())).unwrap();
    assert_eq!(ino, InodeId(2));
    let rows: i64 = meta.read(|conn| Ok(conn.query_row("SELECT count(*) FROM journal", [], |r| r.get(0))?)).unwrap();
    assert_eq!(rows, 0);
}

#[test]
fn s1_sixteen_writers_that_sync_each_commit_share_the_syncs_of_the_log() {
    let (_dir, meta) = store();
    const WRITERS: u64 = 16;
    const ROUNDS: u64 = 20;
    let (together, uncovered) = (std::sync::Barrier::new(WRITERS as usize), AtomicU64::new(0));
    let before = meta.syncs();
    std::thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    together.wait();
                    let commits = meta.wal.commits.load(Ordering::Acquire);
                    meta.write(|tx| Ok(tx.next_inode())).unwrap();
                    // All have committed before the first one syncs, on one core and on many.
                    together.wait();
                    meta.sync().unwrap();
                    // Not asserted here: the others would wait for this thread for ever.
                    uncovered.fetch_add(u64::from(meta.wal.state.lock().synced <= commits), Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(uncovered.into_inner(), 0, "everybody's own commit is covered");
    let syncs = meta.syncs() - before;
    assert_eq!(syncs, ROUNDS, "one sync for all that is committed");
}

#[test]
fn regression_the_head_is_never_told_out_of_order() {
    let (_dir, meta) = store();
    let (start, wrong) = (std::sync::Barrier::new(4), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let (meta, start, wrong) = (&meta, &start, &wrong);
            scope.spawn(move || {
                for round in 1..=500 {
                    start.wait();
                    meta.write(|tx| Ok(tx.next_seq())).unwrap();
                    start.wait();
                    // Not asserted here: the others would wait for this thread for ever.
                    if writer == 0 && meta.head() != Seq(4 * round) {
                        wrong.lock().push((round, meta.head()));
                    }
                }
            });
        }
    });
    assert_eq!(wrong.into_inner(), [], "rounds, and what was told after them");
}

#[test]
fn counters_survive_reopening() {
    let (dir, meta) = store();
    meta.write(|tx| Ok(tx.next_inode())).unwrap();
    meta.sync().unwrap();
    drop(meta);
    let meta = Meta::open(&dir.path().join("meta.sqlite"), &Options::default()).unwrap();
    assert_eq!(meta.write(|tx| Ok(tx.next_inode())).unwrap(), InodeId(3));
}

#[test]
fn the_log_is_kept_on_close() {
    let (dir, meta) = store();
    drop(meta);
    assert!(dir.path().join("meta.sqlite-wal").exists());
}

#[test]
fn s1_after_a_failed_sync_nothing_is_acknowledged_until_the_next_mount() {
    let (dir, meta) = store();
    meta.write(|tx| Ok(tx.next_inode())).unwrap();
    assert_eq!(meta.latched(), None);
    meta.latch("sync of a chunk file: EIO".into());
    meta.latch("another".into());
    assert_eq!(meta.latched(), Some("sync of a chunk file: EIO"));
    assert!(matches!(meta.sync(), Err(Error::Latched)));
    assert!(matches!(meta.write(|tx| Ok(tx.next_inode())), Err(Error::Latched)));
    assert_eq!(Error::Latched.errno(), rustix::io::Errno::IO);
    drop(meta);
    let meta = Meta::open(&dir.path().join("meta.sqlite"), &Options::default()).unwrap();
    assert_eq!(meta.write(|tx| Ok(tx.next_inode())).unwrap(), InodeId(3));
    meta.sync().unwrap();
}

#[test]
fn the_log_begins_anew_at_each_mount() {
    let (dir, meta) = store();
    meta.write(|tx| Ok(tx.next_inode())).unwrap();
    // As after a crash: nobody closes it.
    std::mem::forget(meta);
    let meta = Meta::open(&dir.path().join("meta.sqlite"), &Options::default()).unwrap();
    assert_eq!(dir.path().join("meta.sqlite-wal").metadata().unwrap().len(), 0);
    assert_eq!(meta.write(|tx| Ok(tx.next_inode())).unwrap(), InodeId(3));
}
