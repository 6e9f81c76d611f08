//! fsx: random reads, writes, mappings, truncates, holes and copies on one file, each read compared with what was written,
//! while the file is sealed, evicted and fetched back under it.
//!
//! `.ci/suites` installs it. `TANDEMFS_FSX_OPS` sets the number of operations of each mode.

use std::process::{Child, Command, Stdio};

use crate::busy::{self, CACHE_LIMIT, Neighbour};
use crate::support::mounted::wait_for;
use crate::support::run::tool;

const OPERATIONS: u64 = 6_000;
const SEEDS: [u64; 4] = [1, 7, 42, 4711];

/// Larger than many chunks, so that most operations meet several.
const CONFIG: &str = "flen = 2097152
[opsize]
max = 262144
[weights]
close_open = 3.0
invalidate = 2.0
mapread = 10.0
mapwrite = 10.0
read = 10.0
write = 10.0
truncate = 5.0
fsync = 0.5
fdatasync = 0.5
posix_fallocate = 3.0
punch_hole = 5.0
sendfile = 3.0
posix_fadvise = 3.0
copy_file_range = 10.0
";

fn check(options: &str) {
    let Some(fsx) = tool("fsx") else { return };
    let operations = std::env::var("TANDEMFS_FSX_OPS").map_or(OPERATIONS, |count| count.parse().unwrap());
    let place = busy::place();
    std::fs::write(place.path("fsx.toml"), CONFIG).unwrap();
    let mounted = place.mount_with("state", &["-o".as_ref(), options.as_ref()]);
    let files: Vec<_> = SEEDS.iter().map(|seed| place.mnt().join(format!("fsx-{seed}"))).collect();
    let neighbour = Neighbour::start(place.mnt().join("neighbour"), files.clone());
    let start = |seed: &u64, file: &std::path::PathBuf| {
        Command::new(&fsx)
            .args(["-q", "-N", &(operations / SEEDS.len() as u64).to_string(), "-S", &seed.to_string()])
            .arg("-f")
            .arg(place.path("fsx.toml"))
            .arg("-P")
            .arg(place.path(""))
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let running: Vec<Child> = SEEDS.iter().zip(&files).map(|(seed, file)| start(seed, file)).collect();
    for (seed, child) in SEEDS.iter().zip(running) {
        let output = child.wait_with_output().unwrap();
        let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let end = |text: &str| {
            text.lines().rev().take(60).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
        };
        assert!(output.status.success(), "seed {seed}: {}\n{}\n{}", output.status, end(&said), end(&complained));
    }
    let written = neighbour.end() << 20;
    assert!(written > CACHE_LIMIT, "the cache was never full");
    // A little over: what is being written, and what fetches bring while others are evicted.
    let used = || mounted.status()["cache"]["used_bytes"].as_u64().unwrap();
    wait_for("the cache is within its limit", || used() <= CACHE_LIMIT + (8 << 20));
    mounted.umount();
}

#[test]
fn fsx_finds_no_difference() {
    check("rw");
}

#[test]
fn fsx_finds_no_difference_without_passthrough() {
    check("no_passthrough");
}
