//! The table of faults: what a bad path to one target is to programs, to the other target, and to the time after it.
//!
//! Long, and asserts nothing about times: see the testing page.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::faults::{faults, stage};
use crate::stage::contents;
use crate::support::mounted::{Mounted, wait_at_most};
use crate::support::proxy::{Faults, Proxy};
use crate::support::tree::noise;

/// Files of one measurement: each is a chunk of its own, so that nothing waits to be gathered with others.
const LARGE: [usize; 5] = [4 << 20, 4 << 20, 4 << 20, 2 << 20, 2 << 20];
/// Measurements in a row without the fault, and at least as many with it.
const IN_A_ROW: usize = 3;
const PATIENCE: Duration = Duration::from_secs(900);

/// One line of the table.
struct Row {
    fault: &'static str,
    /// How long it lasts, at least.
    lasts: Duration,
    /// How often it comes.
    times: usize,
    faults: Faults,
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("it is a number"))
}

fn rows() -> Vec<Row> {
    let outage = Duration::from_secs(number("TANDEMFS_OUTAGE_SECS", 150));
    let row = |(fault, faults): (&'static str, Faults)| {
        let (lasts, times) = match fault {
            "silence" => (Duration::from_secs(30), 2),
            "an outage" => (outage, 1),
            _ => (Duration::from_secs(5), 3),
        };
        Row { fault, lasts, times, faults }
    };
    // Somewhere in most bodies, and the connection of each.
    let resets = |row: Row| match row.fault {
        "resets in the middle of bodies" => Row { faults: Faults { reset_every: 3 << 20, ..row.faults }, ..row },
        _ => row,
    };
    faults().into_iter().map(row).map(resets).collect()
}

/// What programs did, and saw.
#[derive(Default)]
struct Program {
    calls: u64,
    errors: Vec<String>,
    slowest: Duration,
    written: u64,
    round: u64,
}

impl Program {
    fn call<T>(&mut self, what: &str, call: impl FnOnce() -> std::io::Result<T>) -> Option<T> {
        let began = Instant::now();
        let done = call();
        self.slowest = self.slowest.max(began.elapsed());
        self.calls += 1;
        done.map_err(|error| self.errors.push(format!("{what}: {error}"))).ok()
    }

    /// Replaces files, reads one back, and what else programs do.
    fn work(&mut self, mounted: &Mounted<'_>) {
        self.round += 1;
        for (index, length) in LARGE.into_iter().enumerate() {
            let bytes = noise(self.round * 100 + index as u64, length);
            let path = mounted.path(&format!("large{}-{index}", self.round % 3));
            self.call("write", || std::fs::write(&path, &bytes));
            self.written += length as u64;
            if index == 0 {
                let read = self.call("read", || std::fs::read(&path));
                assert!(read.is_none_or(|read| read == bytes), "wrong bytes in {}", path.display());
            }
        }
        let dir = mounted.path(&format!("dir{}", self.round));
        self.call("mkdir", || std::fs::create_dir(&dir));
        self.call("write", || std::fs::write(dir.join("new"), "small"));
        self.call("rename", || std::fs::rename(dir.join("new"), dir.join("old")));
        self.call("append", || std::fs::File::options().append(true).open(dir.join("old"))?.write_all(b" more"));
        self.call("list", || std::fs::read_dir(&dir).map(Iterator::count));
        self.call("unlink", || std::fs::remove_file(dir.join("old")));
        self.call("rmdir", || std::fs::remove_dir(&dir));
    }
}

/// A daemon that is asked often, without a process for each question.
struct Daemon {
    stream: BufReader<UnixStream>,
}

impl Daemon {
    fn of(state: PathBuf) -> Daemon {
        Daemon { stream: BufReader::new(UnixStream::connect(state.join("control.sock")).unwrap()) }
    }

    fn status(&mut self) -> serde_json::Value {
        self.stream.get_mut().write_all(b"{\"v\":1,\"id\":1,\"op\":\"status\",\"args\":{}}\n").unwrap();
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        let reply: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert!(reply["ok"].is_object(), "{line}");
        reply["ok"].clone()
    }

    fn wait(&mut self, what: &str, holds: impl Fn(&serde_json::Value) -> bool) {
        let daemon = std::cell::RefCell::new(self);
        wait_at_most(PATIENCE, what, || holds(&daemon.borrow_mut().status()));
    }
}

fn number_of(status: &serde_json::Value, target: usize, what: &str) -> u64 {
    status["targets"][target][what].as_u64().unwrap()
}

const CLOUD: usize = 0;
const DISK: usize = 1;

/// Bytes per second at which what programs write comes to the healthy target.
fn pace(program: &mut Program, mounted: &Mounted<'_>, daemon: &mut Daemon) -> f64 {
    daemon.wait("the disk has what was written before", |status| number_of(status, DISK, "pending_bytes") == 0);
    let before = number_of(&daemon.status(), DISK, "placed_bytes");
    let (began, written) = (Instant::now(), program.written);
    program.work(mounted);
    let bytes = program.written - written;
    daemon.wait("the disk has it", |status| number_of(status, DISK, "placed_bytes") >= before + bytes);
    bytes as f64 / began.elapsed().as_secs_f64()
}

/// The middle, the lowest and the highest of some measurements, in MiB.
struct Spread([f64; 3]);

impl Spread {
    fn of(mut measured: Vec<f64>) -> Spread {
        measured.sort_by(f64::total_cmp);
        Spread([measured[measured.len() / 2], measured[0], measured[measured.len() - 1]])
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [middle, lowest, highest] = self.0;
        write!(f, "{middle:.1} ({lowest:.1} to {highest:.1})")
    }
}

fn stored(bucket: &std::path::Path) -> u64 {
    contents(bucket).values().flatten().map(|bytes| bytes.len() as u64).sum()
}

/// Bytes sent up, and those of them that the store had no use for.
#[derive(Default)]
struct Sent {
    sent: u64,
    stored: u64,
}

impl Sent {
    fn again(&self) -> f64 {
        (self.sent as f64 / self.stored as f64 - 1.0) * 100.0
    }
}

/// The path as it is for a while: what went up, and what of it is there.
fn counted<T>(into: &mut Sent, proxy: &Proxy, bucket: &std::path::Path, body: impl FnOnce() -> T) -> T {
    let (sent, there) = (proxy.sent(), stored(bucket));
    let value = body();
    into.sent += proxy.sent() - sent;
    into.stored += stored(bucket) - there;
    value
}

fn line(row: &Row) -> String {
    let (stage, proxy, _config) = stage();
    let bucket = stage.bucket_path("cloud");
    let mounted = stage.place.mount();
    let mut daemon = Daemon::of(stage.place.path("state"));
    let mut program = Program::default();
    let (mut without, mut with) = (vec![], vec![]);
    let (mut clean, mut faulty) = (Sent::default(), Sent::default());
    let (mut backlogs, mut caught_up) = (vec![], vec![]);
    let whole = |status: &serde_json::Value| status["safe"] == true;
    let mut healthy = |program: &mut Program, daemon: &mut Daemon, without: &mut Vec<f64>| {
        counted(&mut clean, &proxy, &bucket, || {
            for _ in 0..IN_A_ROW {
                without.push(pace(program, &mounted, daemon));
            }
            daemon.wait("the cloud has all", whole);
        });
    };
    // The first measurement makes directories, and connections.
    program.work(&mounted);
    daemon.wait("the cloud has all", whole);
    for _ in 0..row.times {
        healthy(&mut program, &mut daemon, &mut without);
        counted(&mut faulty, &proxy, &bucket, || {
            proxy.set(row.faults);
            let began = Instant::now();
            let mut measured = 0;
            while measured < IN_A_ROW || began.elapsed() < row.lasts {
                with.push(pace(&mut program, &mounted, &mut daemon));
                measured += 1;
                if measured >= IN_A_ROW {
                    // A long fault is met by work now and then.
                    let rest = row.lasts.saturating_sub(began.elapsed());
                    std::thread::sleep(rest.min(row.lasts / 12));
                }
            }
            backlogs.push(number_of(&daemon.status(), CLOUD, "pending_bytes") as f64 / 1048576.0);
            proxy.set(Faults::default());
            let began = Instant::now();
            daemon.wait("the cloud has all", whole);
            caught_up.push(began.elapsed().as_secs_f64());
        });
    }
    healthy(&mut program, &mut daemon, &mut without);
    assert!(program.errors.is_empty(), "{}: {:?}", row.fault, program.errors);
    let scrubbed = mounted.command("scrub", &["--level", "deep"]);
    assert_eq!(scrubbed.code, 0, "{}: {}{}", row.fault, scrubbed.stdout, scrubbed.stderr);
    mounted.umount();
    let mebibytes = |measured: Vec<f64>| Spread::of(measured.into_iter().map(|bytes| bytes / 1048576.0).collect());
    let (without, with) = (mebibytes(without), mebibytes(with));
    format!(
        "| {} | {} calls, 0 errors, slowest {} ms | {without} | {with} | {:.2} | {} | {} | {:.1} % | {:.1} % |",
        row.fault,
        program.calls,
        program.slowest.as_millis(),
        with.0[0] / without.0[0],
        Spread::of(backlogs),
        Spread::of(caught_up),
        faulty.again(),
        clean.again(),
    )
}

#[test]
#[ignore = "takes ten minutes, and reports"]
fn the_table_of_faults() {
    let only = std::env::var("TANDEMFS_FAULT").unwrap_or_default();
    let mut table = vec![
        "| fault | what programs saw | healthy target without it, MiB/s | with it, MiB/s | ratio | backlog at its end, MiB | \
         caught up after, s | sent again | sent again without it |"
            .to_owned(),
        "|---|---|---|---|---|---|---|---|---|".to_owned(),
    ];
    for row in rows().iter().filter(|row| row.fault.contains(&only)) {
        table.push(line(row));
        eprintln!("{}", table.last().expect("a line was added"));
    }
    println!("{}", table.join("\n"));
}
