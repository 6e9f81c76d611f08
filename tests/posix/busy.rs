//! A mount on which everything happens all the time: tiny chunks, open files that take their place in history every second,
//! garbage that is collected (a million operations leave tens of GiB of it), and a neighbour. Either with a tiny cache, out
//! of which the neighbour pushes everybody else's bytes, where no program may write unseen (D2); or with room to spare, where
//! the kernel writes what is created by itself (P1).

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use tandemfs::chunk::lease;

pub use crate::calls::forget_pages;
use crate::support::mounted::Place;
use crate::support::tree::noise;

/// The smallest that a configuration takes.
pub const CACHE_LIMIT: u64 = 64 << 20;

/// Passthrough for writing wants 1 GiB of it free, and as much of the disk.
const ROOMY_LIMIT: u64 = 8 << 30;

/// A place whose mounts seal, evict and fetch all the time.
pub fn place() -> Place {
    place_with(CACHE_LIMIT)
}

/// A place whose mounts seal all the time, and have room to spare for passthrough.
pub fn roomy_place() -> Place {
    place_with(ROOMY_LIMIT)
}

fn place_with(limit: u64) -> Place {
    let mut place = Place::new(&["a"]);
    let config = format!(
        "chunk_size = \"128 KiB\"\nrotate = \"1s\"\nrotate_synced = \"500ms\"\n[cache]\nlimit = {limit}\nwait = \"10m\"\nreserve = \"16 MiB\"\n\
         [gc]\ngrace = \"10s\"\n[target.a]\nuri = \"{}\"\n",
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

/// The chunk files of this inode. Their names tell it: `<session>-<inode>-<base generation>-<whole|edit>` (S7).
fn chunk_files(place: &Place, ino: u64) -> Vec<PathBuf> {
    let inside = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let entries = inside(place.path("state/chunks")).flat_map(inside);
    let inode = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        u64::from_str_radix(name.split('-').nth(1)?, 16).ok()
    };
    entries.filter(|path| inode(path) == Some(ino)).collect()
}

/// True if programs that have `path` open write into its chunk file by themselves. Somebody has it open; its first bytes
/// are changed for a moment.
///
/// What is stored through a mapping is in the chunk file at once if that is what the kernel has mapped, and otherwise in
/// pages of the mount until they are written back. A kernel that has one open of an inode on a backing file refuses every
/// open that is not (P2): what is true of one is true of all until the last one is closed.
pub fn writes_unseen(place: &Place, path: &Path) -> bool {
    const MARK: &[u8; 16] = b"stored, not sent";
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut before = [0; MARK.len()];
    let size = file.metadata().unwrap().len();
    let had = file.read_at(&mut before, 0).unwrap();
    file.set_len(size.max(MARK.len() as u64)).unwrap();
    let ino = file.metadata().unwrap().ino();
    let null = std::ptr::null_mut();
    let (protection, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
    // SAFETY: a fresh mapping of an open file; its address is checked.
    let map = unsafe { libc::mmap(null, MARK.len(), protection, libc::MAP_SHARED, fd, 0) };
    assert_ne!(map, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    // SAFETY: the file is as long as the mark, and nobody cuts it meanwhile.
    unsafe { map.cast::<u8>().copy_from_nonoverlapping(MARK.as_ptr(), MARK.len()) };
    let marked = |path: &PathBuf| {
        let mut found = [0; MARK.len()];
        File::open(path).is_ok_and(|file| file.read_exact_at(&mut found, 0).is_ok()) && found == *MARK
    };
    let unseen = chunk_files(place, ino).iter().any(marked);
    // SAFETY: the mapping from above, which nothing refers to any more.
    assert_eq!(unsafe { libc::munmap(map, MARK.len()) }, 0);
    file.write_all_at(&before[..had], 0).unwrap();
    file.set_len(size).unwrap();
    unseen
}

/// A descriptor for reading of a sealed file that nobody else has open, if the kernel serves it from the chunk file: the
/// write lease on that is refused then, and was not before. The daemon itself has open what it has read for somebody.
pub fn lent_reader(place: &Place, path: &Path) -> Option<File> {
    let ino = std::fs::metadata(path).unwrap().ino();
    let held = || {
        let is_held = |path: &PathBuf| File::open(path).is_ok_and(|file| !lease::nobody_has(&file).unwrap());
        chunk_files(place, ino).into_iter().filter(is_held).collect::<Vec<_>>()
    };
    let before = held();
    let file = File::open(path).unwrap();
    held().iter().any(|name| !before.contains(name)).then_some(file)
}
