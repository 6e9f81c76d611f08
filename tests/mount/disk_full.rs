//! The disk of the state directory is full, has no inodes, or the process has no descriptors left (D1, D2): writers get
//! `ENOSPC`, everything else goes on, and writing too as soon as there is room, without a remount.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::support::mounted::{Mounted, PATIENCE, Place, wait_for};
use crate::support::run::{finish, installed, program, shell, skipped};
use crate::support::tree::{self, Depth, assert_same, noise, truncate};

/// A small filesystem of its own below `place/disk`, which holds the state directory.
struct Disk {
    mountpoint: PathBuf,
}

impl Disk {
    /// `None`, said aloud, where there are no loop devices.
    fn new(place: &Place, mebibytes: u64, mkfs: &[&str]) -> Option<Disk> {
        if !installed(&["mkfs.ext4", "losetup"]) {
            return None;
        }
        let (image, mountpoint) = (place.path("disk.img"), place.path("disk"));
        File::create(&image).unwrap().set_len(mebibytes << 20).unwrap();
        program(
            "mkfs.ext4",
            ["-q", "-F", "-m", "0"]
                .iter()
                .map(AsRef::as_ref)
                .chain(mkfs.iter().map(Path::new))
                .chain([image.as_path()]),
        );
        std::fs::create_dir(&mountpoint).unwrap();
        let mounted = finish(Command::new("mount").args(["-o", "loop"]).args([&image, &mountpoint]));
        if mounted.code != 0 {
            skipped(&format!("no loop device on this machine: {}", mounted.stderr.trim()));
            return None;
        }
        Some(Disk { mountpoint })
    }

    /// One where a quota, not the disk, says how much there is: of `mebibytes`, on a disk with room for more. Kernels can
    /// be built without quotas of users and projects; this one's groups are always there.
    fn with_quota(place: &Place, mebibytes: u64) -> Option<Disk> {
        if !installed(&["mkfs.btrfs", "btrfs", "losetup"]) {
            return None;
        }
        let (image, mountpoint) = (place.path("disk.img"), place.path("disk"));
        File::create(&image).unwrap().set_len(1 << 30).unwrap();
        program("mkfs.btrfs", ["-q".as_ref(), "-f".as_ref(), image.as_os_str()]);
        std::fs::create_dir(&mountpoint).unwrap();
        let mounted = finish(Command::new("mount").args(["-o", "loop"]).args([&image, &mountpoint]));
        if mounted.code != 0 {
            skipped(&format!("no btrfs on this machine: {}", mounted.stderr.trim()));
            return None;
        }
        let disk = Disk { mountpoint };
        let part = disk.mountpoint.join("part");
        program("btrfs", ["quota".as_ref(), "enable".as_ref(), disk.mountpoint.as_os_str()]);
        program("btrfs", ["subvolume".as_ref(), "create".as_ref(), part.as_os_str()]);
        let limit = format!("{mebibytes}M");
        program("btrfs", ["qgroup".as_ref(), "limit".as_ref(), limit.as_ref(), part.as_os_str()]);
        Some(disk)
    }

    /// Another program takes all the room there is now, and nothing of what is given up meanwhile.
    fn fill(&self) -> PathBuf {
        let filler = self.mountpoint.join("filler");
        let mut file = File::create(&filler).unwrap();
        let disk = rustix::fs::statvfs(&self.mountpoint).unwrap();
        let mut left = (disk.f_bavail * disk.f_frsize) as usize;
        for size in [1 << 20, 4096] {
            let block = noise(5, size);
            while left >= size && file.write_all(&block).is_ok() {
                left -= size;
            }
        }
        filler
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for _ in 0..100 {
            if Command::new("umount").arg(&self.mountpoint).output().is_ok_and(|output| output.status.success()) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let _ = Command::new("umount").arg("-l").arg(&self.mountpoint).output();
    }
}

/// A place whose two targets lie on the large disk.
fn place(cache: &str) -> Place {
    let mut place = Place::new(&[]);
    let mut text = format!("chunk_size = \"1 MiB\"\n[cache]\n{cache}\n");
    for name in ["a", "b"] {
        text += &format!("[target.{name}]\nuri = \"fs://{}\"\n", place.path(name).display());
        let uri = format!("fs://{}", place.path(name).display());
        place.add_target(name, &uri);
    }
    let config = place.path("tandemfs.toml");
    std::fs::write(&config, text).unwrap();
    place.use_config(&config);
    place
}

fn take_targets_away(place: &Place) {
    for target in ["a", "b"] {
        std::fs::rename(place.path(target), place.path(&format!("{target}-away"))).unwrap();
    }
}

fn bring_targets_back(place: &Place) {
    for target in ["a", "b"] {
        std::fs::rename(place.path(&format!("{target}-away")), place.path(target)).unwrap();
    }
}

fn write(path: &Path, content: &[u8]) -> Result<(), Errno> {
    std::fs::write(path, content).map_err(|error| Errno::from_io_error(&error).unwrap())
}

/// Writes files of this size until the first is refused; returns how many are there.
fn write_until_full(mounted: &Mounted<'_>, size: usize, most: usize) -> usize {
    write_until(mounted, size, most, Errno::NOSPC)
}

fn write_until(mounted: &Mounted<'_>, size: usize, most: usize, end: Errno) -> usize {
    for index in 0..most {
        match write(&mounted.path(&format!("f{index}")), &noise(index as u64 + 1, size)) {
            Ok(()) => {}
            Err(refused) => {
                // A quota may free what it keeps from writers at this very moment: then it is room that is missing.
                assert!(refused == end || refused == Errno::NOSPC, "{refused:?}");
                return index;
            }
        }
    }
    panic!("{most} files of {size} bytes fit");
}

/// Names and attributes change, and everything is read.
fn everything_else_goes_on(mounted: &Mounted<'_>, files: usize, size: usize) {
    std::fs::create_dir(mounted.path("dir")).unwrap();
    std::fs::rename(mounted.path("f0"), mounted.path("dir/moved")).unwrap();
    std::fs::hard_link(mounted.path("dir/moved"), mounted.path("f0")).unwrap();
    std::fs::set_permissions(mounted.path("f1"), std::fs::Permissions::from_mode(0o600)).unwrap();
    rustix::fs::setxattr(mounted.path("f1"), "user.k", b"v", rustix::fs::XattrFlags::empty()).unwrap();
    for index in 0..files {
        let content = std::fs::read(mounted.path(&format!("f{index}"))).unwrap();
        assert!(content == noise(index as u64 + 1, size), "f{index} of {} bytes", content.len());
    }
    assert_eq!(mounted.status()["safe"], false);
}

/// Every target has everything; no file of it is one that was written in part.
fn compare_with_targets(place: &Place, mounted: Mounted<'_>) {
    let expected = tree::read(&place.mnt(), Depth::Restored);
    mounted.umount();
    for target in ["a", "b"] {
        let state = format!("restored-{target}");
        let restored = place.restore(&state, &[place.uri(target)]);
        assert_eq!(restored.code, 0, "{}", restored.stderr);
        let mounted = place.mount_read_only(&state);
        assert_same(&format!("restored from {target}"), &expected, &tree::read(&place.mnt(), Depth::Restored));
        mounted.umount();
    }
}

#[test]
fn d2_a_full_disk_stops_writers_only_and_goes_on_by_itself() {
    let place = place("reserve = \"16 MiB\"\nwait = \"2s\"");
    let Some(disk) = Disk::new(&place, 160, &[]) else { return };
    let mounted = place.mount_state("disk/state");
    write(&mounted.path("before"), b"before").unwrap();
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0);
    take_targets_away(&place);

    const SIZE: usize = 5 << 20;
    let files = write_until_full(&mounted, SIZE, 40);
    assert!(files >= 15, "{files} files fit on the disk");
    let left = std::fs::metadata(mounted.path(&format!("f{files}"))).map_or(0, |file| file.len());
    assert!(left < SIZE as u64, "what was refused is not there");
    assert!(disk.mountpoint.join("state/reserve").exists(), "content leaves the reserve alone");
    everything_else_goes_on(&mounted, files, SIZE);

    // Others take the rest: then metadata has the reserve.
    let filler = disk.fill();
    wait_for("the reserve is given up", || !disk.mountpoint.join("state/reserve").exists());
    for index in 0..200 {
        let made = || std::fs::create_dir(mounted.path(&format!("dir/d{index}")));
        // One may find the disk full before the reserve is given up.
        if made().is_err() {
            made().unwrap();
        }
    }
    std::fs::remove_file(mounted.path("f2")).unwrap();
    assert_eq!(write(&mounted.path("refused"), &noise(9, SIZE)), Err(Errno::NOSPC));
    assert!(std::fs::read(mounted.path("f3")).unwrap() == noise(4, SIZE));

    // Targets take it: what they have leaves the disk, and there is room again.
    bring_targets_back(&place);
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0, "{}", mounted.log());
    std::fs::remove_file(filler).unwrap();
    wait_for("there is room", || write(&mounted.path("after"), &noise(10, 3 * SIZE)).is_ok());
    wait_for("the reserve is whole again", || disk.mountpoint.join("state/reserve").exists());
    for index in [0, 1, 3, files - 1] {
        let content = std::fs::read(mounted.path(&format!("f{index}"))).unwrap();
        assert!(content == noise(index as u64 + 1, SIZE), "f{index}, from a target by now");
    }
    compare_with_targets(&place, mounted);
    drop(disk);
}

#[test]
fn d2_without_inodes_writers_wait_for_eviction_and_then_get_enospc() {
    let place = place("reserve = \"8 MiB\"");
    let Some(disk) = Disk::new(&place, 128, &["-N", "400"]) else { return };
    let mounted = place.mount_state("disk/state");
    write(&mounted.path("before"), b"before").unwrap();
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0);
    take_targets_away(&place);
    let files = write_until_full(&mounted, 1000, 1000);
    assert!(files >= 50, "{files} files on 400 inodes");
    everything_else_goes_on(&mounted, files, 1000);
    std::fs::remove_file(mounted.path("f2")).unwrap();
    bring_targets_back(&place);
    // Each further file takes an inode that another one's eviction gives back.
    wait_for("there are inodes", || write(&mounted.path("after"), b"after").is_ok());
    for index in 0..files {
        // Where placing takes longer than a writer waits, the next try finds room.
        let path = mounted.path(&format!("g{index}"));
        wait_for("there is an inode", || write(&path, &noise(index as u64, 1000)).is_ok());
    }
    compare_with_targets(&place, mounted);
    drop(disk);
}

/// Says so when it goes, also after a panic.
struct Ended<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

#[test]
fn d2_a_quota_that_is_used_up_is_a_full_disk() {
    const SIZE: usize = 3 << 20;
    let place = place("reserve = \"16 MiB\"\nwait = \"2s\"");
    let Some(disk) = Disk::with_quota(&place, 128) else { return };
    let mounted = place.mount_state("disk/part/state");
    write(&mounted.path("before"), b"before").unwrap();
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0);
    take_targets_away(&place);
    // Where written blocks get a new place, a page that was written back needs room for the next store into it: a daemon that
    // maps a file of this disk for writing would die.
    let disk_of = File::open(&disk.mountpoint).unwrap();
    let ended = std::sync::atomic::AtomicBool::new(false);
    let files = std::thread::scope(|scope| {
        let _ended = Ended(&ended);
        scope.spawn(|| {
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                rustix::fs::syncfs(&disk_of).unwrap();
            }
        });
        write_until(&mounted, SIZE, 80, Errno::DQUOT)
    });
    drop(disk_of);
    assert!(files >= 15, "{files} files fit");
    everything_else_goes_on(&mounted, files, SIZE);
    for index in 0..100 {
        let made = || std::fs::create_dir(mounted.path(&format!("dir/d{index}")));
        // One may find the quota used up before the reserve is given up.
        if made().is_err() {
            made().unwrap();
        }
    }
    // A failed disk would stay one.
    wait_for("nothing wants attention", || mounted.status()["attention"].as_array().unwrap().is_empty());
    // The daemon dies on the full disk, and the next one finds room to begin.
    mounted.kill();
    let mounted = place.mount_state("disk/part/state");
    std::fs::remove_file(mounted.path("f2")).unwrap();
    assert!(std::fs::read(mounted.path("f3")).unwrap() == noise(4, SIZE));
    // Targets take it: what they have leaves the disk, and there is room again.
    bring_targets_back(&place);
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0, "{}", mounted.log());
    wait_for("there is room", || write(&mounted.path("after"), &noise(10, 3 * SIZE)).is_ok());
    for index in [0, 1, 3, files - 1] {
        assert!(std::fs::read(mounted.path(&format!("f{index}"))).unwrap() == noise(index as u64 + 1, SIZE));
    }
    compare_with_targets(&place, mounted);
    drop(disk);
}

#[test]
fn d2_who_truncates_or_preallocates_waits_for_room_as_a_writer_does() {
    let place = place("reserve = \"8 MiB\"\nwait = \"10m\"");
    let Some(disk) = Disk::new(&place, 128, &["-N", "300"]) else { return };
    let mounted = place.mount_state("disk/state");
    write(&mounted.path("before"), b"before").unwrap();
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0);
    // What could be evicted would make room.
    std::fs::remove_file(mounted.path("before")).unwrap();
    let chunk_files = || shell(&disk.mountpoint, "find state/chunks -type f").lines().count();
    wait_for("nothing is left that may go", || chunk_files() == 0);
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0);
    take_targets_away(&place);
    let mut files = 0;
    // No writer waits yet: the last inode is taken by somebody else.
    while rustix::fs::statvfs(&disk.mountpoint).unwrap().f_favail > 8 {
        write(&mounted.path(&format!("f{files}")), &noise(files as u64 + 1, 1000)).unwrap();
        files += 1;
    }
    assert_eq!(mounted.command("flush", &["--wait", "local", "--timeout", "600"]).code, 0);
    let others: Vec<PathBuf> = (0..).map(|index| disk.mountpoint.join(format!("other{index}"))).take(100).collect();
    let took = others.iter().take_while(|path| File::create(path).is_ok()).count();
    assert!(took < others.len(), "no inode is left");
    let path = |index: usize| mounted.path(&format!("f{index}"));
    type Change = Box<dyn FnOnce() -> std::io::Result<()> + Send>;
    let (emptied, cut, grown) = (path(0), path(1), File::options().write(true).open(path(2)).unwrap());
    let changes: Vec<(&str, Change)> = vec![
        ("O_TRUNC", Box::new(move || File::options().write(true).truncate(true).open(emptied).map(drop))),
        ("truncate", Box::new(move || truncate(&cut, 10))),
        ("fallocate", Box::new(move || Ok(rustix::fs::fallocate(&grown, FallocateFlags::empty(), 0, 50_000)?))),
    ];
    let (sender, ended) = std::sync::mpsc::channel();
    let threads: Vec<_> = changes
        .into_iter()
        .map(|(name, change)| {
            let sender = sender.clone();
            std::thread::spawn(move || {
                let _ = sender.send((name, change().map_err(|error| error.to_string())));
            })
        })
        .collect();
    // Who does not wait is refused at once; no thread of the mount waits with them.
    let early = ended.recv_timeout(std::time::Duration::from_secs(1));
    assert!(early.is_err(), "{early:?}");
    assert!(std::fs::read(path(3)).unwrap() == noise(4, 1000));
    std::fs::create_dir(mounted.path("dir")).unwrap();
    bring_targets_back(&place);
    for _ in 0..3 {
        let (name, done) = ended.recv_timeout(PATIENCE).expect("room comes, and they go on");
        assert_eq!(done, Ok(()), "{name}");
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let sizes = [0, 1, 2].map(|index| std::fs::metadata(path(index)).unwrap().len());
    assert_eq!(sizes, [0, 10, 50_000]);
    for other in &others[..took] {
        std::fs::remove_file(other).unwrap();
    }
    compare_with_targets(&place, mounted);
    drop(disk);
}

#[test]
fn more_files_are_open_and_written_to_than_there_are_descriptors() {
    const FILES: usize = 1000;
    let place = place("");
    let mut command = Command::new("prlimit");
    if !installed(&["prlimit"]) {
        return;
    }
    let mount = place.mount_command("state");
    command.arg("--nofile=256:256").arg(mount.get_program()).args(mount.get_args());
    let started = finish(&mut command);
    assert_eq!(started.code, 0, "{}", started.stderr);
    let mounted = Mounted::found(&place, "state");
    let mut files: Vec<File> =
        (0..FILES).map(|index| File::create(mounted.path(&format!("f{index}"))).unwrap()).collect();
    for round in 0..2u8 {
        for (index, file) in files.iter_mut().enumerate() {
            file.write_all(&[round + 1; 3000]).unwrap_or_else(|error| panic!("f{index}: {error}\n{}", mounted.log()));
        }
        assert_eq!(std::fs::read(mounted.path("f7")).unwrap().len(), 3000 * (usize::from(round) + 1));
        mounted.status();
    }
    files.truncate(FILES / 2);
    for file in &files {
        rustix::fs::fsync(file).unwrap();
    }
    drop(files);
    for index in 0..FILES {
        let content = std::fs::read(mounted.path(&format!("f{index}"))).unwrap();
        assert_eq!(content, [[1; 3000], [2; 3000]].concat(), "f{index}");
    }
    compare_with_targets(&place, mounted);
}
