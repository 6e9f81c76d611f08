//! SQLite: write-ahead log in shared memory, rollback journals, many writers, a daemon that dies under it.

use crate::support::mounted::Place;
use crate::support::run::{installed, shell};

/// Writers and readers at the same time, in journal mode `mode`.
fn check(place: &Place, mode: &str) {
    shell(
        &place.mnt(),
        &format!(
            "sqlite3 {mode}.db 'PRAGMA journal_mode={mode}; CREATE TABLE t (writer, n, filler); CREATE INDEX i ON t (n);' > /dev/null
             writer() {{ for n in $(seq 40); do
               echo \".timeout 600000
                 BEGIN IMMEDIATE; INSERT INTO t VALUES ($1, $n, hex(randomblob(500))); INSERT INTO t VALUES ($1, -$n, 'x'); COMMIT;\"
             done | sqlite3 -bail {mode}.db; }}
             reader() {{ for n in $(seq 10); do
               test $(sqlite3 -cmd '.timeout 600000' {mode}.db 'SELECT sum(n) FROM t') -ge 0 2> /dev/null || true
               test \"$(sqlite3 -cmd '.timeout 600000' {mode}.db 'PRAGMA quick_check')\" = ok
             done; }}
             pids=; for w in 1 2 3 4; do writer $w & pids=\"$pids $!\"; done; reader & pids=\"$pids $!\"
             for pid in $pids; do wait $pid; done
             test \"$(sqlite3 {mode}.db 'PRAGMA integrity_check')\" = ok
             test \"$(sqlite3 {mode}.db 'SELECT count(*), sum(n) FROM t')\" = '320|0'
             sqlite3 {mode}.db 'DELETE FROM t WHERE n < 0; VACUUM; PRAGMA wal_checkpoint(TRUNCATE);' > /dev/null
             test \"$(sqlite3 {mode}.db 'PRAGMA integrity_check; SELECT count(*) FROM t' | tr '\\n' ' ')\" = 'ok 160 '"
        ),
    );
}

#[test]
fn sqlite_keeps_its_promises_with_several_writers_in_each_journal_mode() {
    if !installed(&["sqlite3"]) {
        return;
    }
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    for mode in ["wal", "delete", "persist"] {
        check(&place, mode);
    }
    mounted.umount();
    let restored = place.restore("restored", &[place.uri("a")]);
    assert_eq!(restored.code, 0, "{}", restored.stderr);
    let mounted = place.mount_state("restored");
    for mode in ["wal", "delete", "persist"] {
        shell(&place.mnt(), &format!("test \"$(sqlite3 {mode}.db 'PRAGMA integrity_check')\" = ok"));
    }
    mounted.umount();
}
