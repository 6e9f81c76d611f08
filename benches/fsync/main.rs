//! Durable files per second: processes that create a file, write 4 KiB, `fsync` and close it, beside the plain directory
//! of the same disk, in the same run (S1: they share their syncs).
//!
//! `cargo bench --bench fsync [-- --small] [-- --policy all]` prints a report; it asserts only that every file is there.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const TANDEMFS: &str = env!("CARGO_BIN_EXE_tandemfs");
/// The first argument of a process that writes: a directory and seconds follow.
const WRITER: &str = "--writer";

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == WRITER) {
        let seconds: f64 = arguments[at + 2].parse().expect("seconds are a number");
        return write_files(Path::new(&arguments[at + 1]), Duration::from_secs_f64(seconds));
    }
    let seconds = if arguments.iter().any(|argument| argument == "--small") { 2.0 } else { 10.0 };
    let policy = arguments.iter().position(|argument| argument == "--policy").map(|at| arguments[at + 1].as_str());
    let policy = policy.unwrap_or("local");

    let stage = Stage::mount(policy);
    println!("# create, write 4 KiB, fsync, close for {seconds} s; fsync = {policy:?}; files per second");
    for writers in [1, 4, 16] {
        let ours = run(&stage.mountpoint(), writers, seconds);
        let plain = run(&stage.plain(), writers, seconds);
        println!("{writers:2} writers: {ours:6.0}, plain directory {plain:6.0}, ratio {:.2}", plain / ours);
    }
}

/// Files per second of all writers together.
fn run(directory: &Path, writers: usize, seconds: f64) -> f64 {
    let round = directory.join(format!("writers-{writers}"));
    let start = Instant::now();
    let children: Vec<_> = (0..writers)
        .map(|writer| {
            let place = round.join(writer.to_string());
            std::fs::create_dir_all(&place).expect("the place is writable");
            Command::new(std::env::current_exe().expect("the bench runs"))
                .args([WRITER, path(&place), &seconds.to_string()])
                .stdout(Stdio::piped())
                .spawn()
                .expect("the bench can be run again")
        })
        .collect();
    let mut written = 0;
    for child in children {
        let output = child.wait_with_output().expect("a writer ends");
        assert!(output.status.success());
        written += String::from_utf8_lossy(&output.stdout).trim().parse::<u64>().expect("it says how many");
    }
    let took = start.elapsed().as_secs_f64();
    let found: usize =
        (0..writers).map(|writer| std::fs::read_dir(round.join(writer.to_string())).unwrap().count()).sum();
    assert_eq!(found as u64, written);
    written as f64 / took
}

fn write_files(directory: &Path, time: Duration) {
    let start = Instant::now();
    let mut written = 0;
    while start.elapsed() < time {
        let mut file = File::create(directory.join(written.to_string())).expect("create");
        file.write_all(&[written as u8; 4096]).expect("write");
        file.sync_all().expect("fsync");
        written += 1;
    }
    println!("{written}");
}

/// A scratch folder in `target/`, on the disk that the project lies on; unmounted and removed at the end.
struct Stage(PathBuf);

impl Stage {
    fn mount(policy: &str) -> Stage {
        let stage = Stage(Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fsync-{}", std::process::id())));
        for directory in [stage.mountpoint(), stage.plain()] {
            std::fs::create_dir_all(directory).expect("the target folder is writable");
        }
        let target = |name: &str| format!("[target.{name}]\nuri = \"fs://{}\"\n", path(&stage.0.join(name)));
        let config = format!("[acknowledge]\nfsync = \"{policy}\"\n{}{}", target("a"), target("b"));
        std::fs::write(stage.0.join("tandemfs.toml"), config).unwrap();
        let (state, config) = (stage.0.join("state"), stage.0.join("tandemfs.toml"));
        stage.tandemfs(&["mount", path(&stage.mountpoint()), "--config", path(&config), "--state-dir", path(&state)]);
        stage
    }

    fn mountpoint(&self) -> PathBuf {
        self.0.join("mnt")
    }

    fn plain(&self) -> PathBuf {
        self.0.join("plain")
    }

    fn tandemfs(&self, arguments: &[&str]) {
        let output = Command::new(TANDEMFS).args(arguments).output().expect("the binary was built");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "tandemfs {arguments:?}: {}\n{said}", output.status);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let arguments: &[&str] = if std::thread::panicking() { &["--force"] } else { &["--timeout", "30m"] };
        let _ = Command::new(TANDEMFS).arg("umount").arg(self.mountpoint()).args(arguments).output();
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("the target folder has a name in UTF-8")
}
