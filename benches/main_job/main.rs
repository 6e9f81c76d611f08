//! The main job, measured: copy in, replicate to two directory targets, overwrite, restore from each target alone.
//!
//! `cargo bench --bench main_job [-- --small]` prints a report; it asserts only that the trees are equal. Times stand beside
//! the same work on the plain directory of the same disk, in the same run.

mod figures;
mod stage;

use std::path::Path;
use std::time::{Duration, Instant};

use figures::{Rss, directory_bytes, directory_objects};
use stage::Stage;

fn main() {
    let small = std::env::args().any(|arg| arg == "--small");
    let large_bytes: u64 = if small { 256 << 20 } else { 2 << 30 };
    let huge_bytes: u64 = if small { 512 << 20 } else { 4 << 30 };
    let files = if small { 500 } else { 5000 };
    let mut stage = Stage::new();
    let source = stage.path("source");
    println!("# {files} files of 4-64 KiB in 200 directories, one file of {} MiB", large_bytes >> 20);
    stage::small_files(&source.join("small"), files);
    stage::noise_file(&source.join("large"), large_bytes);

    stage.mount();
    let mount = stage.mountpoint();
    let tree = |to: &Path| stage::copy(&source.join("small"), &to.join("small"));
    let large = |to: &Path| stage::copy(&source.join("large"), &to.join("large"));
    let plain = stage.path("plain");
    std::fs::create_dir(&plain).unwrap();

    let before = directory_objects(&stage.target("a").join("chunks"));
    let ours = timed(|| tree(&mount));
    let placed = timed(|| stage.flush());
    let ext4 = timed(|| tree(&plain));
    let objects = directory_objects(&stage.target("a").join("chunks")) - before;
    report("small files: cp returns", ours, ext4);
    println!(
        "small files: everywhere after a further {:.2} s, {objects} chunk objects per target",
        placed.as_secs_f64()
    );

    let rss = Rss::watch(stage.daemon());
    let ours = timed(|| large(&mount));
    let placed = timed(|| stage.flush());
    let ext4 = timed(|| large(&plain));
    report("large file: cp returns", ours, ext4);
    println!("large file: everywhere after a further {:.2} s", placed.as_secs_f64());
    println!("large file: RssAnon at peak {} MiB", rss.peak() >> 20);

    for (what, edits) in [("one 4 KiB overwrite", 1), ("a thousand 4 KiB overwrites", 1000)] {
        let before = directory_bytes(&stage.target("a"));
        stage::overwrite(&mount.join("large"), edits);
        stage.flush();
        let uploaded = directory_bytes(&stage.target("a")) - before;
        println!("{what} in the large file: {} KiB uploaded per target", uploaded >> 10);
        stage::overwrite(&source.join("large"), edits);
    }

    let drained = timed(|| stage.unmount());
    println!("umount: {:.2} s", drained.as_secs_f64());
    for target in ["a", "b"] {
        let took = timed(|| stage.restore_and_compare(target, &source));
        println!("restored from {target} alone, compared equal, in {:.2} s", took.as_secs_f64());
    }

    stage.reset();
    let huge = stage.path("huge");
    stage::noise_file(&huge, huge_bytes);
    stage.mount();
    let rss = Rss::watch(stage.daemon());
    let ours = timed(|| {
        stage::copy(&huge, &stage.mountpoint().join("huge"));
        stage.flush();
    });
    println!(
        "{} MiB to two targets in {:.2} s, RssAnon at peak {} MiB",
        huge_bytes >> 20,
        ours.as_secs_f64(),
        rss.peak() >> 20
    );
    stage.unmount();
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn report(what: &str, ours: Duration, plain: Duration) {
    let ratio = ours.as_secs_f64() / plain.as_secs_f64();
    println!("{what}: {:.2} s, plain directory {:.2} s, ratio {ratio:.2}", ours.as_secs_f64(), plain.as_secs_f64());
}
