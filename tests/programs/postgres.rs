//! PostgreSQL on the mount: its own benchmark, a restart, and a restore of its files from a target while it works (O8).

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::mounted::Place;
use crate::support::run::{installed, shell, skipped};

/// The server's programs lie outside of the PATH on Debian.
fn programs() -> Option<PathBuf> {
    let found = Command::new("sh")
        .args(["-c", "for d in $(dirname \"$(readlink -f \"$(command -v initdb)\")\") /usr/lib/postgresql/*/bin; do [ -x $d/initdb ] && echo $d && exit; done"])
        .output()
        .unwrap();
    let directory = String::from_utf8(found.stdout).unwrap().trim().to_owned();
    if directory.is_empty() {
        skipped("no PostgreSQL on this machine");
    }
    (!directory.is_empty()).then(|| directory.into())
}

/// Runs lines of shell as a user without privileges: the server refuses root.
fn as_nobody(directory: &Path, bin: &Path, lines: &str) -> String {
    let script =
        format!("export PATH={}:$PATH LC_ALL=C HOME=$PWD PGHOST=$PWD/socket PGUSER=test\n{lines}", bin.display());
    let path = directory.join("script");
    std::fs::write(&path, script).unwrap();
    shell(directory, "exec setpriv --reuid=65534 --regid=65534 --clear-groups bash -euo pipefail script < /dev/null")
}

const START: &str = "pg_ctl -s -w -t 300 -D mnt/data -l server.log -o \"-k $PWD/socket -c listen_addresses= -c shared_buffers=16MB\" start";
const STOP: &str = "pg_ctl -s -w -t 300 -D mnt/data -m fast stop";

/// Ends a server that a failed test leaves behind.
struct Server<'a> {
    root: &'a Path,
    bin: &'a Path,
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        if self.root.join("mnt/data/postmaster.pid").exists() {
            as_nobody(self.root, self.bin, "pg_ctl -s -w -t 60 -D mnt/data -m immediate stop || true");
        }
    }
}

#[test]
fn postgres_benchmarks_itself_and_recovers_from_what_a_target_holds() {
    let Some(bin) = programs() else { return };
    if !installed(&["setpriv", "pgbench"]) {
        return;
    }
    let place = Place::new(&["a"]);
    let root = place.path("");
    shell(&root, "chmod 755 . && mkdir socket && chown 65534 socket . ");
    let options: [&std::ffi::OsStr; 2] = ["-o".as_ref(), "allow_other".as_ref()];
    let mounted = place.mount_with("state", &options);
    shell(&root, "chown 65534:65534 mnt");
    let server = Server { root: &root, bin: &bin };
    as_nobody(
        &root,
        &bin,
        &format!(
            "initdb -D mnt/data -U test --no-sync > /dev/null; {START}
             createdb bench; pgbench -q -i -s 1 bench 2> /dev/null
             pgbench -c 4 -j 2 -t 50 -n bench > said; grep 'actually processed: 200/200' said
             psql -q bench -c 'CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n' -c CHECKPOINT"
        ),
    );
    // Everything up to here is on the target, with the server running and writing on.
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0);
    as_nobody(&root, &bin, &format!("pgbench -c 4 -j 2 -t 25 -n bench > said; {STOP}"));
    drop(server);
    mounted.kill();

    let restored = place.restore("restored", &[place.uri("a")]);
    assert_eq!(restored.code, 0, "{}", restored.stderr);
    let mounted = place.mount_with("restored", &options);
    let server = Server { root: &root, bin: &bin };
    let counted = as_nobody(
        &root,
        &bin,
        &format!(
            "rm -f mnt/data/postmaster.pid; {START}
             psql -qtA bench -c 'SELECT count(*), sum(n) FROM kept'
             psql -qtA bench -c 'SELECT sum(abalance) = (SELECT sum(bbalance) FROM pgbench_branches) FROM pgbench_accounts'
             pgbench -c 2 -t 20 -n bench > said; {STOP}"
        ),
    );
    assert_eq!(counted.lines().collect::<Vec<_>>(), ["1000|500500", "t"]);
    drop(server);
    mounted.umount();
}
