//! fsx: random reads, writes, mappings, truncates, holes and copies on one file, each read compared with what was written.
//! By requests, while the file is sealed, evicted and fetched back under it; and where the kernel does the I/O by itself,
//! while copies of the open file are sealed (P4) and sealed files are made writable again (P3).
//!
//! `.ci/suites` installs it. `TANDEMFS_FSX_OPS` sets the number of operations of each I/O mode.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::busy::{self, CACHE_LIMIT, Neighbour};
use crate::support::mounted::{Mounted, Place, wait_for};
use crate::support::run::{skipped, tool};
use crate::support::tree::noise;

const OPERATIONS: u64 = 6_000;
const SEEDS: [u64; 4] = [1, 7, 42, 4711];
/// Larger than many chunks, so that most operations meet several.
const LENGTH: usize = 2 << 20;

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

/// The program, and how many operations one I/O mode gets.
struct Fsx {
    program: PathBuf,
    operations: u64,
}

impl Fsx {
    fn found(place: &Place) -> Option<Fsx> {
        let program = tool("fsx")?;
        let operations = std::env::var("TANDEMFS_FSX_OPS").map_or(OPERATIONS, |count| count.parse().unwrap());
        std::fs::write(place.path("fsx.toml"), CONFIG).unwrap();
        Some(Fsx { program, operations })
    }

    /// Runs it on each file at once, with so many operations in all. The choices differ by seed and `round`.
    fn run(&self, place: &Place, files: &[PathBuf], operations: u64, round: u64) {
        let start = |seed: &u64, file: &PathBuf| {
            Command::new(&self.program)
                .args(["-q", "-N", &(operations / SEEDS.len() as u64).to_string()])
                .args(["-S", &(seed + 10_000 * round).to_string(), "-f"])
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
        let running: Vec<Child> = SEEDS.iter().zip(files).map(|(seed, file)| start(seed, file)).collect();
        for (seed, child) in SEEDS.iter().zip(running) {
            let output = child.wait_with_output().unwrap();
            let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            let end = |text: &str| {
                text.lines().rev().take(60).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
            };
            assert!(
                output.status.success(),
                "seed {seed}, round {round}: {}\n{}\n{}",
                output.status,
                end(&said),
                end(&complained)
            );
        }
    }
}

fn files(place: &Place) -> Vec<PathBuf> {
    SEEDS.iter().map(|seed| place.mnt().join(format!("fsx-{seed}"))).collect()
}

fn create(path: &Path) -> File {
    File::options().write(true).create(true).truncate(true).open(path).unwrap()
}

fn flush(mounted: &Mounted<'_>) {
    let done = mounted.command("flush", &["--timeout", "600"]);
    assert_eq!(done.code, 0, "{}\n{}", done.stderr, mounted.log());
}

/// The program, and a mount with passthrough; `None`, and said aloud, if there is none here.
fn passthrough(place: &Place) -> Option<(Fsx, Mounted<'_>)> {
    let fsx = Fsx::found(place)?;
    let mounted = place.mount();
    match mounted.status()["filesystem"].get("no_passthrough") {
        None => Some((fsx, mounted)),
        Some(why) => {
            skipped(&format!("no passthrough: {why}"));
            mounted.umount();
            None
        }
    }
}

/// What programs saw last is what a next mount reads from the sealed files, and what the target holds.
fn assert_kept(place: &Place, mounted: Mounted<'_>, files: &[PathBuf]) {
    let content: Vec<_> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    let assert_same = |whence: &str| {
        for (file, content) in files.iter().zip(&content) {
            assert!(std::fs::read(file).unwrap() == *content, "{} {whence}", file.display());
        }
    };
    mounted.umount();
    let mounted = place.mount();
    assert_same("mounted again");
    mounted.umount();
    let restored = place.restore("restored", &[place.uri("a")]);
    assert_eq!(restored.code, 0, "{}", restored.stderr);
    let mounted = place.mount_read_only("restored");
    assert_same("on the target");
    mounted.umount();
}

#[test]
fn fsx_finds_no_difference_without_passthrough() {
    let place = busy::place();
    let Some(fsx) = Fsx::found(&place) else { return };
    let mounted = place.mount_with("state", &["-o".as_ref(), "no_passthrough".as_ref()]);
    let files = files(&place);
    let neighbour = Neighbour::start(place.mnt().join("neighbour"), files.clone());
    fsx.run(&place, &files, fsx.operations, 0);
    let written = neighbour.end() << 20;
    assert!(written > CACHE_LIMIT, "the cache was never full");
    // A little over: what is being written, and what fetches bring while others are evicted.
    let used = || mounted.status()["cache"]["used_bytes"].as_u64().unwrap();
    wait_for("the cache is within its limit", || used() <= CACHE_LIMIT + (8 << 20));
    mounted.umount();
}

/// fsx opens its file for reading and writing, which alone is never passthrough (P1): it joins who has created it.
#[test]
fn p2_p4_fsx_finds_no_difference_in_a_file_that_the_kernel_writes() {
    let place = busy::roomy_place();
    let Some((fsx, mounted)) = passthrough(&place) else { return };
    let files = files(&place);
    let creators: Vec<File> = files.iter().map(|file| create(file)).collect();
    assert!(files.iter().all(|file| busy::writes_unseen(&place, file)), "P1: what creates a file gets passthrough");
    let neighbour = Neighbour::start(place.mnt().join("neighbour"), files.clone());
    fsx.run(&place, &files, fsx.operations / 2, 0);
    neighbour.end();
    assert!(files.iter().all(|file| busy::writes_unseen(&place, file)), "P2: nobody had it open in another way");
    drop(creators);
    assert_kept(&place, mounted, &files);
}

/// Of rounds with a reader whose sealed file is made writable again.
const ROUNDS: u64 = 5;

#[test]
fn p3_fsx_finds_no_difference_in_a_sealed_file_that_the_kernel_reads_for_somebody() {
    let place = busy::roomy_place();
    let Some((fsx, mounted)) = passthrough(&place) else { return };
    let files = files(&place);
    let mut seen = vec![Vec::new(); files.len()];
    for round in 0..ROUNDS {
        flush(&mounted);
        let readers: Vec<File> =
            files.iter().zip(&mut seen).map(|(file, seen)| lent(&place, &mounted, file, seen)).collect();
        for ((file, reader), expected) in files.iter().zip(&readers).zip(&mut seen) {
            assert!(all_of(reader) == *expected, "{} as it was sealed before round {round}", file.display());
            // The first write thaws it; the rest of it is still there, for whoever has it open.
            let writer = File::options().write(true).open(file).unwrap();
            let at = noise(round, 2);
            let at = usize::from(u16::from_le_bytes([at[0], at[1]]));
            writer.write_all_at(b"written beside a reader", at as u64).unwrap();
            expected[at..at + 23].copy_from_slice(b"written beside a reader");
            assert!(all_of(reader) == *expected, "{} after a write in round {round}", file.display());
        }
        flush(&mounted);
        // It empties the file, which thaws it once more if the flush has sealed it.
        fsx.run(&place, &files, fsx.operations / 2 / ROUNDS, round);
        for ((file, reader), seen) in files.iter().zip(&readers).zip(&mut seen) {
            assert!(busy::writes_unseen(&place, file), "P2: all who have it open share a backing file");
            *seen = std::fs::read(file).unwrap();
            assert!(all_of(reader) == *seen, "{} after round {round}", file.display());
        }
    }
    assert_kept(&place, mounted, &files);
}

/// A descriptor that the kernel serves from the sealed file, whose content is as it was `seen`. Small files are read by
/// requests, and so is what is opened while the daemon is at it: then the file is written anew, and `seen` is what it is now.
fn lent(place: &Place, mounted: &Mounted<'_>, file: &Path, seen: &mut Vec<u8>) -> File {
    /// No two files are alike: of equal ones only one has a whole image of its own.
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    let reader = std::cell::RefCell::new(None);
    if seen.len() >= LENGTH / 4 {
        *reader.borrow_mut() = busy::lent_reader(place, file);
    }
    let rewritten = std::cell::RefCell::new(None);
    wait_for("an open gets the chunk file itself", || {
        if reader.borrow().is_none() {
            let content = noise(WRITTEN.fetch_add(1, Ordering::Relaxed), LENGTH);
            std::fs::write(file, &content).unwrap();
            *rewritten.borrow_mut() = Some(content);
            flush(mounted);
            *reader.borrow_mut() = busy::lent_reader(place, file);
        }
        reader.borrow().is_some()
    });
    if let Some(content) = rewritten.into_inner() {
        *seen = content;
    }
    reader.into_inner().expect("it was waited for")
}

fn all_of(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}
