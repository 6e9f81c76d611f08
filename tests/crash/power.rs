//! Power cuts: state directory and targets lie on a loop filesystem that is shut down, so that everything that was not synced
//! is gone. What `fsync` returned for is there, no file is half, each target restores to the same tree. As the cut left them,
//! each target restores to a cut of history (O6) with what it had acknowledged, and all together to what any of them has.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::model::{Crash, Found, assert_same};
use super::past::{Acked, Past};
use super::rig::{Daemon, Rig, wait_until};
use super::{seed, setting};
use tandemfs::chance::Seeded;
use tandemfs::testing::failpoint::Point;

/// A filesystem on a loop device.
pub struct Disk {
    kind: &'static str,
    image: PathBuf,
    pub mnt: PathBuf,
    _dir: tempfile::TempDir,
}

impl Disk {
    /// Makes one with room to spare, so that files are written by the kernel itself, too (P1, D2); `None`, said aloud, where
    /// that is not possible.
    pub fn new(kind: &'static str) -> Option<Disk> {
        Disk::with_room(kind, 4 << 30)
    }

    /// Makes one of so many bytes. On one of 1 GiB everything is written by requests, and what is on every target is evicted.
    fn with_room(kind: &'static str, bytes: u64) -> Option<Disk> {
        if !crate::support::run::installed(&["losetup", "xfs_io", "mkfs.ext4", "mkfs.xfs"]) {
            return None;
        }
        let dir = tempfile::Builder::new().prefix("tandemfs-disk-").tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let disk = Disk { kind, image: base.join("image"), mnt: base.join("disk"), _dir: dir };
        std::fs::create_dir(&disk.mnt).unwrap();
        std::fs::File::create(&disk.image).unwrap().set_len(bytes).unwrap();
        let force: &[&str] = if kind == "ext4" { &["-q", "-F"] } else { &["-q", "-f"] };
        crate::support::run::succeed(Command::new(format!("mkfs.{kind}")).args(force).arg(&disk.image));
        if let Err(why) = disk.mount() {
            crate::support::run::skipped(&format!("no loop device for {kind}: {why}"));
            return None;
        }
        Some(disk)
    }

    fn mount(&self) -> Result<(), String> {
        // ext4 writes its journal every five seconds by itself; here only what is synced counts.
        let options = if self.kind == "ext4" { "loop,commit=600" } else { "loop" };
        let output = Command::new("mount").args(["-o", options]).arg(&self.image).arg(&self.mnt).output().unwrap();
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Cuts the power: from here on nothing reaches the disk, not even the filesystem's own log.
    fn cut(&self) {
        crate::support::run::succeed(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(&self.mnt));
    }

    /// Starts it anew after a cut; nobody uses it.
    fn restart(&self) {
        // While another mount namespace of this machine holds a copy of the mount, the same dead filesystem comes back.
        wait_until("the disk is mounted anew", || {
            wait_until("the disk can be unmounted", || {
                Command::new("umount").arg(&self.mnt).stderr(Stdio::null()).status().unwrap().success()
            });
            self.mount().unwrap();
            // What is cached can be read of a dead one, too.
            let probe = self.mnt.join("probe");
            let dead = |error: std::io::Error| error.raw_os_error() == Some(libc::EIO);
            !std::fs::write(&probe, "").and_then(|()| std::fs::remove_file(&probe)).is_err_and(dead)
        });
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.mnt).stderr(Stdio::null()).status();
    }
}

/// Lets the machine of this state directory have another boot id.
fn reboot(state: &Path) {
    let Ok(database) =
        rusqlite::Connection::open_with_flags(state.join("meta.sqlite"), rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE)
    else {
        return;
    };
    database.execute("UPDATE counter SET boot_id = 'another'", []).unwrap();
}

/// Cuts disk and daemon, and starts both anew. What `let_go` ends holds files open that the kernel writes by itself: without
/// the daemon, too, they lie on that disk.
pub fn power_cut<T>(rig: &Rig, disk: &Disk, daemon: Daemon, let_go: impl FnOnce() -> T) -> T {
    disk.cut();
    daemon.kill();
    let ended = let_go();
    disk.restart();
    reboot(&rig.state);
    ended
}

/// Where standing still leaves something half.
const PLACES: &[Point] = &[
    Point::Stage,
    Point::Ranges,
    Point::Slot,
    Point::Mark,
    Point::Marked,
    Point::Seal,
    Point::Commit,
    Point::Committed,
    Point::LocationDelete,
    Point::Unlink,
    Point::Upload,
    Point::Placement,
    Point::Place,
    Point::SegmentStored,
    Point::SegmentSent,
];

fn cut_often(kind: &'static str, cuts: u64) {
    let mut random = Seeded(seed(kind));
    let small = cuts / 2;
    for (disk, cuts) in [(Disk::with_room(kind, 1 << 30), small), (Disk::new(kind), cuts - small)] {
        let Some(disk) = disk else { return };
        cut_disk(&disk, cuts, &mut random);
    }
}

fn cut_disk(disk: &Disk, cuts: u64, random: &mut Seeded) {
    let kind = disk.kind;
    let mut rig = Rig::on(Some(&disk.mnt), &["a", "b"]);
    let marker = rig.base.join("marker");
    let (mut start, mut past) = (Found::new(), Past::default());
    let (mut stood, mut looks) = (0, 0);
    // A look costs three restores.
    let look = if cuts > 50 { 3 } else { 5 };
    for round in 0..cuts {
        let _ = std::fs::remove_file(&marker);
        let point = (round % 2 == 1).then(|| PLACES[random.below(PLACES.len())]);
        let failpoint =
            point.map(|point| format!("{}:{}=stop:{}", point.name(), 1 + random.below_u64(10), marker.display()));
        let what = format!("{kind}: cut {round} at {}", failpoint.as_deref().unwrap_or("some moment"));
        let acked = [Acked::All, Acked::One, Acked::Local][round as usize % 3];
        rig.acknowledge(acked);
        let daemon = rig.try_mount(failpoint.as_deref());
        // What an earlier cut left to be done may stand still before the mount is usable: that cut is none.
        let daemon = match daemon {
            Ok(daemon) => daemon,
            Err(_) if marker.exists() => rig.mount(),
            Err(why) => panic!("{what}: {why}\n{}", rig.log()),
        };
        let (child, log) = rig.workload(random, 500, 1000);
        let moment = match point {
            Some(_) => 1500,
            None => random.below_u64(900),
        };
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_millis(moment) && !marker.exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        stood += u64::from(marker.exists());
        let told = std::fs::read_to_string(&log).unwrap_or_default();
        let history = power_cut(&rig, disk, daemon, || rig.history(child, &log)).told_by(&told);
        let left = if round % look == look - 1 { rig.as_left() } else { None };
        let daemon = rig.mount();
        let found = rig.scan(&daemon);
        let files = rig.check(&what, &start, &history, &found, Crash::Power);
        past.note(&start, &history, &found, &files, acked);
        if let Some(left) = left {
            left.check(&what, &rig, &past);
            looks += 1;
        }
        if round % 25 == 24 || round + 1 == cuts {
            rig.check_targets(daemon);
            past.drained();
        } else {
            // What was recovered is safe at once: another cut takes nothing of it.
            power_cut(&rig, disk, daemon, || ());
            let daemon = rig.mount();
            let again = rig.scan(&daemon);
            assert_same(&format!("{what}: the second recovery gives what the first gave"), &found, &again);
            daemon.kill();
        }
        start = found;
    }
    assert!(looks > 0 || cuts < 2 * look, "no cut left two targets to restore from");
    eprintln!(
        "{kind}: {cuts} cuts, {stood} of them at failpoints; {looks} times restored from each target and from all as it left them"
    );
}

#[test]
fn what_was_fsynced_survives_a_power_cut_on_ext4() {
    cut_often("ext4", setting("TANDEMFS_CUTS", 10));
}

#[test]
fn what_was_fsynced_survives_a_power_cut_on_xfs() {
    cut_often("xfs", setting("TANDEMFS_CUTS", 10));
}

/// Where a new generation is on its way to replace one that was acknowledged.
const SUPERSEDING: &[Point] = &[Point::Seal, Point::Commit, Point::Committed, Point::LocationDelete, Point::Unlink];

#[test]
fn s2_what_was_acknowledged_and_just_superseded_survives_a_power_cut_wherever_its_successor_is() {
    let Some(disk) = Disk::new("ext4") else { return };
    let rig = Rig::on(Some(&disk.mnt), &["a", "b"]);
    let (marker, whole, edited) = (rig.base.join("marker"), rig.mnt().join("whole"), rig.mnt().join("edited"));
    let mut daemon = rig.mount();
    for (index, point) in SUPERSEDING.iter().enumerate() {
        let content = |generation: usize| crate::support::tree::noise((2 * index + generation) as u64, 70_000);
        let (old, new) = (content(0), content(1));
        let sync = |path: &Path, content: &[u8]| {
            let mut file = File::create(path).unwrap();
            file.write_all(content).unwrap();
            file.sync_all().unwrap();
        };
        {
            let _watch = daemon.watch();
            sync(&whole, &old);
            sync(&edited, &old);
        }
        rig.umount(daemon);
        let _ = std::fs::remove_file(&marker);
        daemon = rig.try_mount(Some(&format!("{}=stop:{}", point.name(), marker.display()))).unwrap();
        let other = rig.mnt().join("other");
        let waiter;
        {
            let _watch = daemon.watch();
            std::fs::write(&whole, &new).unwrap();
            File::options().write(true).open(&edited).unwrap().write_all_at(&new, 0).unwrap();
            // Somebody who waits for it, so that it waits for no company; he is told nothing before the cut.
            waiter = std::thread::spawn({
                let edited = edited.clone();
                move || drop(File::open(edited).and_then(|file| file.sync_all()))
            });
            wait_until(&format!("{} is reached", point.name()), || marker.exists());
            // What it has committed by now becomes durable with this.
            sync(&other, &new);
        }
        power_cut(&rig, &disk, daemon, || waiter.join().unwrap());
        daemon = rig.mount();
        let _watch = daemon.watch();
        for path in [&whole, &edited] {
            let found = std::fs::read(path).unwrap();
            assert!(found == old || found == new, "cut at {}: {} is neither", point.name(), path.display());
        }
        assert!(std::fs::read(&other).unwrap() == new, "cut at {}: what was synced beside it", point.name());
    }
    rig.check_targets(daemon);
}

#[test]
fn s1_every_call_that_syncs_survives_a_power_cut() {
    let Some(disk) = Disk::new("ext4") else { return };
    let rig = Rig::on(Some(&disk.mnt), &["a"]);
    let content = crate::support::tree::noise(1, 20_000);
    let flagged = |path: &Path, flag: i32| {
        let mut file = File::options().create(true).write(true).custom_flags(flag).open(path).unwrap();
        file.write_all(&content).unwrap();
        Some(file)
    };
    type Call<'a> = Box<dyn Fn(&Path) -> Option<File> + 'a>;
    let calls: [(&str, Call<'_>); 5] = [
        ("O_SYNC", Box::new(|path| flagged(path, libc::O_SYNC))),
        ("O_DSYNC", Box::new(|path| flagged(path, libc::O_DSYNC))),
        (
            "fdatasync",
            Box::new(|path| {
                let file = flagged(path, 0).unwrap();
                file.sync_data().unwrap();
                Some(file)
            }),
        ),
        (
            "fsync of an edit",
            Box::new(|path| {
                std::fs::write(path, [0; 20_000]).unwrap();
                let file = File::options().write(true).open(path).unwrap();
                file.write_all_at(&content, 0).unwrap();
                file.sync_all().unwrap();
                Some(file)
            }),
        ),
        (
            "fsync of its directory",
            Box::new(|path| {
                let earlier = path.with_extension("earlier");
                flagged(&earlier, 0).unwrap().sync_all().unwrap();
                std::fs::rename(earlier, path).unwrap();
                File::open(path.parent().unwrap()).unwrap().sync_all().unwrap();
                None
            }),
        ),
    ];
    let mut daemon = rig.mount();
    // One after the other: the sync of one would help those before it.
    for (name, call) in &calls {
        let path = rig.mnt().join(name.replace(' ', "_"));
        let open = {
            let _watch = daemon.watch();
            call(&path)
        };
        power_cut(&rig, &disk, daemon, || drop(open));
        daemon = rig.mount();
        let _watch = daemon.watch();
        assert!(std::fs::read(&path).is_ok_and(|found| found == content), "{name} had returned");
        assert!(!path.with_extension("earlier").exists(), "{name} had returned");
    }
    rig.check_targets(daemon);
}
