//! What is measured beside time: memory of the daemon, objects and bytes on a target.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Samples `RssAnon` of a process until it is asked for the peak.
pub struct Rss {
    stop: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
    sampler: JoinHandle<()>,
}

impl Rss {
    /// Starts sampling process `pid`, 50 times a second.
    pub fn watch(pid: u32) -> Rss {
        let (stop, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let sampler = std::thread::spawn({
            let (stop, peak) = (stop.clone(), peak.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    peak.fetch_max(rss_anon(pid), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        });
        Rss { stop, peak, sampler }
    }

    /// The highest value seen, in bytes.
    pub fn peak(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.sampler.join().expect("the sampler does not panic");
        self.peak.load(Ordering::Relaxed)
    }
}

fn rss_anon(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib: u64 = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0);
    kib << 10
}

/// Files below a directory.
pub fn directory_objects(dir: &Path) -> usize {
    let mut count = 0;
    walk(dir, &mut |_| count += 1);
    count
}

/// Bytes of all files below a directory.
pub fn directory_bytes(dir: &Path) -> u64 {
    let mut bytes = 0;
    walk(dir, &mut |metadata| bytes += metadata.len());
    bytes
}

fn walk(dir: &Path, each: &mut impl FnMut(&std::fs::Metadata)) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => walk(&entry.path(), each),
            Ok(metadata) => each(&metadata),
            Err(_) => {}
        }
    }
}
