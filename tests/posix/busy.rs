//! A mount on which everything happens all the time: tiny chunks, a tiny cache, open files that take their place in history
//! every second, and a neighbour whose files push everybody else's bytes out.

use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use crate::support::mounted::Place;
use crate::support::tree::noise;

/// The smallest that a configuration takes.
pub const CACHE_LIMIT: u64 = 64 << 20;

/// A place whose mounts seal, evict and fetch all the time.
pub fn place() -> Place {
    let mut place = Place::new(&["a"]);
    let config = format!(
        "chunk_size = \"128 KiB\"\nrotate = \"1s\"\nrotate_synced = \"500ms\"\n[cache]\nlimit = {CACHE_LIMIT}\nwait = \"10m\"\nreserve = \"16 MiB\"\n\
         [target.a]\nuri = \"{}\"\n",
        place.uri("a")
    );
    // Other users come by, too.
    std::fs::set_permissions(place.path(""), std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = place.path("busy.toml");
    std::fs::write(&path, config).unwrap();
    place.use_config(&path);
    place
}

/// Writes more than the cache takes, again and again, and reads back what has been evicted meanwhile.
pub struct Neighbour {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// Of 1 MiB each: half as much again as the cache takes.
const FILES: u64 = 96;

impl Neighbour {
    /// Works in `directory`, which it makes, and takes the page cache of `others` away between its files.
    pub fn start(directory: PathBuf, others: Vec<PathBuf>) -> Neighbour {
        std::fs::create_dir(&directory).unwrap();
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), rounds.clone());
        let thread = std::thread::spawn(move || {
            for number in 0.. {
                let path = directory.join((number % FILES).to_string());
                if number >= FILES {
                    let seed = number - FILES;
                    assert!(std::fs::read(&path).unwrap() == noise(seed, 1 << 20), "file of {seed} came back wrong");
                }
                std::fs::write(&path, noise(number, 1 << 20)).unwrap();
                others.iter().for_each(|other| forget_pages(other));
                counted.fetch_add(1, Ordering::Relaxed);
                if stopped.load(Ordering::Relaxed) && number >= FILES + FILES / 2 {
                    return;
                }
            }
        });
        Neighbour { stop, rounds, thread: Some(thread) }
    }

    /// Ends it; what it read back was right. Returns how many files it wrote: more than the cache holds.
    pub fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().expect("it ends once").join();
        assert!(ended.is_ok(), "the neighbour failed");
        self.rounds.load(Ordering::Relaxed)
    }
}

/// Makes the kernel ask the filesystem for the bytes of a file again.
pub fn forget_pages(path: &Path) {
    let Ok(file) = File::open(path) else { return };
    // Only clean pages go; without a write-back cache all of a FUSE file are, but those mapped now.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    let _ = file.read_at(&mut [0], 0);
}
