//! A database on the mount, restored from one target every few seconds while it works: its own recovery must succeed each
//! time, which is what O6 and O8 promise. Only when asked for: `TANDEMFS_PGBENCH_SECS`.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::rig::{Rig, run, wait_until};
use super::setting;
use crate::support::run::{Finished, installed, tandemfs};

/// `nobody` runs the servers: PostgreSQL refuses root.
const USER: u32 = 65534;

/// A server on a data directory; stopped at once when dropped.
struct Server {
    child: Child,
    socket: PathBuf,
}

fn as_nobody(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]).arg(program);
    command.env("LC_ALL", "C").current_dir("/");
    command
}

impl Server {
    fn start(data: &Path, socket: &Path, log: &Path) -> Server {
        std::fs::create_dir_all(socket).unwrap();
        chown(socket, Some(USER), Some(USER)).unwrap();
        let log = std::fs::File::create(log).unwrap();
        let child = as_nobody("postgres")
            .arg("-D")
            .arg(data)
            .args(["-c", "listen_addresses=", "-c", "shared_buffers=1MB", "-c", "max_connections=20"])
            // Pages are written again and again, and its log goes round in few small files.
            .args(["-c", "min_wal_size=2MB", "-c", "max_wal_size=2MB"])
            .args(["-c", "dynamic_shared_memory_type=mmap", "-c", "shared_memory_type=mmap"])
            .arg("-c")
            .arg(format!("unix_socket_directories={}", socket.display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Server { child, socket: socket.to_owned() }
    }

    fn query(&self, sql: &str) -> Finished {
        run(as_nobody("psql")
            .args(["-X", "-A", "-t", "-U", "nobody", "-d", "postgres", "-h"])
            .arg(&self.socket)
            .arg("-c")
            .arg(sql))
    }

    /// Waits until it answers; its end is a failure.
    fn wait_ready(&mut self, what: &str, log: &Path) {
        let start = Instant::now();
        while self.query("SELECT 1").code != 0 {
            let ended = self.child.try_wait().unwrap();
            let told = || std::fs::read_to_string(log).unwrap_or_default();
            assert!(ended.is_none(), "{what}: the server ended: {}", told());
            assert!(start.elapsed() < Duration::from_secs(100), "{what}: the server does not recover: {}", told());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// An immediate shutdown: as far as its files are concerned, a crash.
    fn stop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
        }
        let start = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            if start.elapsed() > Duration::from_secs(30) {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

#[test]
fn o8_a_database_restored_from_one_target_at_any_moment_recovers() {
    let seconds = setting("TANDEMFS_PGBENCH_SECS", 0);
    if seconds == 0 {
        eprintln!("SKIPPED: a database under load is restored only when TANDEMFS_PGBENCH_SECS is set");
        return;
    }
    if !installed(&["postgres", "initdb", "pgbench", "psql", "setpriv"]) {
        return;
    }
    let rig = Rig::new(&["a", "b"]);
    std::fs::set_permissions(&rig.base, std::fs::Permissions::from_mode(0o755)).unwrap();
    let daemon = rig.mount_shared();
    let _watch = daemon.watch_for(Duration::from_secs(seconds * 4 + 600));
    let data = rig.mnt().join("data");
    std::fs::create_dir(&data).unwrap();
    chown(&data, Some(USER), Some(USER)).unwrap();
    let made = run(as_nobody("initdb").args(["-A", "trust", "-U", "nobody", "--wal-segsize=1", "-D"]).arg(&data));
    assert_eq!(made.code, 0, "{}{}", made.stdout, made.stderr);
    let (socket, log) = (rig.base.join("socket"), rig.base.join("postgres.log"));
    let mut server = Server::start(&data, &socket, &log);
    server.wait_ready("the first start", &log);
    let pgbench = |arguments: &[&str]| {
        let mut command = as_nobody("pgbench");
        command.args(["-U", "nobody", "-h"]).arg(&socket).args(arguments).arg("postgres");
        command
    };
    let filled = run(&mut pgbench(&["-i", "-s", "2", "-q"]));
    assert_eq!(filled.code, 0, "{}", filled.stderr);
    let flushed = run(tandemfs().arg("flush").arg(rig.mnt()).args(["--timeout", "600"]));
    assert_eq!(flushed.code, 0, "{}", flushed.stderr);

    let mut load = pgbench(&["-c", "4", "-j", "2", "-T", &seconds.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut restores, mut newest) = (0, 0);
    std::thread::scope(|scope| {
        // What its recovery begins with moves on all the time, and with it which files it needs.
        scope.spawn(|| {
            while Instant::now() < end {
                assert_eq!(server.query("CHECKPOINT").code, 0);
            }
        });
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1500));
            newest = newest.max(recover(&rig, if restores % 2 == 0 { "a" } else { "b" }, restores));
            restores += 1;
        }
    });
    wait_until("the load ends", || load.try_wait().unwrap().is_some());
    let done: u64 = server.query("SELECT count(*) FROM pgbench_history").stdout.trim().parse().unwrap();
    eprintln!("{restores} restores recovered under load; the newest had {newest} of {done} transactions");
    assert!(restores > 0 && newest > 0, "what is restored moves on");
    drop(server);
    drop(_watch);
    rig.umount(daemon);
    assert_eq!(recover(&rig, "a", restores), done, "what was unmounted is restored wholly");
}

/// Restores from `target` as it is now, lets PostgreSQL recover there, and checks its books. Returns how many transactions it
/// has.
fn recover(rig: &Rig, target: &str, round: u64) -> u64 {
    let copy = rig.base.join(format!("copy{round}"));
    rig.restored(target, |mnt| {
        let copied = run(Command::new("cp").arg("-a").arg(mnt.join("data")).arg(&copy));
        assert_eq!(copied.code, 0, "{}", copied.stderr);
    });
    // Of a server that runs elsewhere.
    let _ = std::fs::remove_file(copy.join("postmaster.pid"));
    let (socket, log) = (rig.base.join(format!("socket{round}")), rig.base.join(format!("log{round}")));
    let what = format!("restore {round} from {target}");
    let mut server = Server::start(&copy, &socket, &log);
    server.wait_ready(&what, &log);
    // Every transaction of pgbench changes these by the same amount, or none.
    let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history) \
                AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history) \
                AND (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history)";
    let balanced = server.query(sums);
    assert_eq!(balanced.stdout.trim(), "t", "{what}: the books balance: {}", balanced.stderr);
    let count = server.query("SELECT count(*) FROM pgbench_history");
    let count = count.stdout.trim().parse().unwrap_or_else(|_| panic!("{what}: {}", count.stderr));
    drop(server);
    std::fs::remove_dir_all(&copy).unwrap();
    count
}
