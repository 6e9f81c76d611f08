//! The main job, measured: copy in, replicate to two directory targets, overwrite, restore from each target alone.
//!
//! `cargo bench --bench main_job [-- --small]` prints a report; it asserts only that the trees are equal. Times stand beside
//! the same work on the plain directory of the same disk, in the same run. The price of POSIX calls is measured by the
//! bench `posix`.

mod figures;
#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use figures::{Rss, directory_bytes, directory_objects};
use support::tandem::Tandem;
use support::work;

const TANDEMFS: &str = env!("CARGO_BIN_EXE_tandemfs");

fn main() {
    let small = std::env::args().any(|arg| arg == "--small");
    let large_bytes: u64 = if small { 256 << 20 } else { 2 << 30 };
    let huge_bytes: u64 = if small { 512 << 20 } else { 4 << 30 };
    let files = if small { 500 } else { 5000 };
    let stage = Stage::new();
    println!("# {files} files of 4-64 KiB in 200 directories, one file of {} MiB", large_bytes >> 20);
    let source = stage.path("source");
    work::small_files(&source.join("small"), files, 200);
    work::noise_file(&source.join("large"), large_bytes);
    copy_overwrite_restore(&stage, &source);
    std::fs::remove_dir_all(&source).unwrap();
    work::noise_file(&stage.path("huge"), huge_bytes);
    memory_of_a_huge_file(&stage, &stage.path("huge"));
}

fn copy_overwrite_restore(stage: &Stage, source: &Path) {
    let tandem = stage.tandem("first");
    tandem.mount();
    let mount = tandem.mountpoint();
    let copy = |name: &str, to: &Path| work::run(None, "cp", &[&"-a", &source.join(name), &to.join(name)]);
    let plain = stage.path("plain");
    std::fs::create_dir(&plain).unwrap();

    let before = directory_objects(&tandem.target("a").join("chunks"));
    let ours = timed(|| copy("small", &mount));
    let placed = timed(|| tandem.flush());
    let ext4 = timed(|| copy("small", &plain));
    let objects = directory_objects(&tandem.target("a").join("chunks")) - before;
    report("small files: cp returns", ours, ext4);
    println!(
        "small files: everywhere after a further {:.2} s, {objects} chunk objects per target",
        placed.as_secs_f64()
    );

    let rss = Rss::watch(tandem.daemon());
    let ours = timed(|| copy("large", &mount));
    let placed = timed(|| tandem.flush());
    let ext4 = timed(|| copy("large", &plain));
    report("large file: cp returns", ours, ext4);
    println!("large file: everywhere after a further {:.2} s", placed.as_secs_f64());
    println!("large file: RssAnon at peak {} MiB", rss.peak() >> 20);
    std::fs::remove_dir_all(&plain).unwrap();

    for (what, edits) in [("one 4 KiB overwrite", 1), ("a thousand 4 KiB overwrites", 1000)] {
        let before = directory_bytes(&tandem.target("a"));
        drop(work::overwrite(&mount.join("large"), edits));
        tandem.flush();
        let uploaded = directory_bytes(&tandem.target("a")) - before;
        println!("{what} in the large file: {} KiB uploaded per target", uploaded >> 10);
        drop(work::overwrite(&source.join("large"), edits));
    }

    println!("umount: {:.2} s", timed(|| tandem.unmount()).as_secs_f64());
    for target in ["a", "b"] {
        let restored = stage.tandem(&format!("restored-{target}"));
        let took = timed(|| {
            restored.restore_from(&tandem, target);
            let mut diff = Command::new("diff");
            let same = diff.args(["-r", "--no-dereference"]).arg(source).arg(restored.mountpoint()).status();
            restored.unmount();
            assert!(same.is_ok_and(|status| status.success()), "what came back from {target} differs");
        });
        println!("restored from {target} alone, compared equal, in {:.2} s", took.as_secs_f64());
        stage.remove(&format!("restored-{target}"));
    }
    stage.remove("first");
}

fn memory_of_a_huge_file(stage: &Stage, huge: &Path) {
    let tandem = stage.tandem("second");
    tandem.mount();
    let rss = Rss::watch(tandem.daemon());
    let took = timed(|| {
        work::run(None, "cp", &[&huge, &tandem.mountpoint().join("huge")]);
        tandem.flush();
    });
    let bytes = std::fs::metadata(huge).unwrap().len();
    println!(
        "{} MiB to two targets in {:.2} s, RssAnon at peak {} MiB",
        bytes >> 20,
        took.as_secs_f64(),
        rss.peak() >> 20
    );
    tandem.unmount();
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

/// A scratch folder on the disk that the project lies on; unmounted and removed at the end.
struct Stage {
    dir: PathBuf,
}

impl Stage {
    fn new() -> Stage {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("main-job-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("the target folder is writable");
        Stage { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn tandem(&self, name: &str) -> Tandem {
        Tandem::new(Path::new(TANDEMFS), &self.path(name))
    }

    /// Makes room.
    fn remove(&self, name: &str) {
        let _ = std::fs::remove_dir_all(self.path(name));
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["first", "restored-a", "restored-b", "second"] {
                self.tandem(name).force_unmount();
            }
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
