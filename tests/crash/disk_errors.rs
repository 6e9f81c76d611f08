//! Errors of the state disk, told by failpoints: a sync that fails is never followed by an acknowledgement (S1), `status` says
//! so, and the next mount goes on with what was synced before.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::rig::{Daemon, PATIENCE, Rig, run, wait_until};
use crate::support::run::tandemfs;
use tandemfs::testing::failpoint::Point;

fn status(rig: &Rig) -> serde_json::Value {
    let finished = run(tandemfs().arg("status").arg(rig.mnt()).arg("--json"));
    serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{e}: {}", finished.stderr))
}

fn is_latched(rig: &Rig) -> bool {
    let status = status(rig);
    let latched = status["attention"].as_array().unwrap().iter().any(|found| found["kind"] == "latched");
    assert!(!latched || status["safe"] == false, "{status:#}");
    latched
}

/// Closes a file and returns what close(2) says.
fn close(file: File) -> std::io::Result<()> {
    use std::os::fd::IntoRawFd;
    // SAFETY: the descriptor is not used after.
    if unsafe { libc::close(file.into_raw_fd()) } == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn assert_eio(what: &str, result: std::io::Result<()>) {
    assert_eq!(result.map_err(|error| error.raw_os_error()), Err(Some(libc::EIO)), "{what}");
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// A mount where the `nth` pass of `point` fails after a file `f` with the content `old` was synced.
fn failing(point: Point, nth: u32) -> (Rig, Daemon) {
    let rig = Rig::new(&["a"]);
    let daemon = rig.mount();
    {
        let _watch = daemon.watch();
        std::fs::write(rig.mnt().join("f"), "old").unwrap();
    }
    rig.umount(daemon);
    let daemon = rig.try_mount(Some(&format!("{}:{nth}=eio", point.name()))).unwrap();
    (rig, daemon)
}

/// Ends a latched mount as a user would, and mounts again. Targets lack something that it will not bring them.
fn remount(rig: &Rig, daemon: Daemon) -> Daemon {
    let (daemon, code) = remounted(rig, daemon);
    assert_ne!(code, 0, "a latched mount does not say that every target is whole");
    daemon
}

/// The same, whatever targets have; also returns what the first try to unmount said.
fn remounted(rig: &Rig, mut daemon: Daemon) -> (Daemon, i32) {
    let unmounted = run(tandemfs().arg("umount").arg(rig.mnt()).args(["--timeout", "20"]));
    if !daemon.has_ended() {
        let _ = run(tandemfs().arg("umount").arg(rig.mnt()).arg("--force"));
    }
    daemon.wait_for(PATIENCE);
    assert!(daemon.has_ended(), "a latched mount ends\n{}", rig.log());
    drop(daemon);
    (rig.mount(), unmounted.code)
}

#[test]
fn s1_an_fsync_that_failed_is_not_followed_by_one_that_lies() {
    // With a place in history, as a close of another descriptor takes it, and without.
    for (point, closed) in [(Point::SyncStaged, false), (Point::SyncStaged, true), (Point::SyncRanges, true)] {
        let (rig, daemon) = failing(point, 1);
        {
            let _watch = daemon.watch();
            let file = open(&rig.mnt().join("f"));
            file.write_all_at(b"new", 0).unwrap();
            if closed {
                drop(file.try_clone().unwrap());
            }
            assert_eio("the sync fails", file.sync_all());
            // The kernel dropped the pages: a second fdatasync of the same file would succeed.
            assert_eio("and so does every later one", file.sync_all());
            let other = open(&rig.mnt().join("f"));
            assert_eio("through other descriptors too", other.sync_data());
            file.write_all_at(b"xyz", 0).unwrap();
            assert_eio("a close acknowledges nothing", close(file));
            let _ = close(other);
        }
        assert!(is_latched(&rig), "{}: {:#}", point.name(), status(&rig));
        let daemon = remount(&rig, daemon);
        {
            let _watch = daemon.watch();
            let found = std::fs::read(rig.mnt().join("f")).unwrap();
            if point == Point::SyncStaged {
                // What the disk did not take is not taken from the page cache either.
                assert_eq!(found, b"old");
            } else {
                // The bytes were synced, only their record was not: either is right, and nobody was told.
                assert!([&b"old"[..], b"new", b"xyz"].contains(&&found[..]), "{found:?}");
            }
            let file = open(&rig.mnt().join("f"));
            file.write_all_at(b"end", 0).unwrap();
            file.sync_all().unwrap();
            close(file).unwrap();
        }
        assert!(!is_latched(&rig));
        rig.check_targets(daemon);
    }
}

#[test]
fn s2_a_sync_that_failed_before_a_commit_is_not_tried_again() {
    let (rig, daemon) = failing(Point::SyncSealed, 1);
    {
        let _watch = daemon.watch();
        let file = open(&rig.mnt().join("f"));
        file.write_all_at(b"new", 0).unwrap();
        close(file).unwrap();
        wait_until("the failed sync is noticed", || is_latched(&rig));
        assert_eq!(std::fs::read(rig.mnt().join("f")).unwrap(), b"new", "it is read while it is here");
        assert!(File::create(rig.mnt().join("g")).is_err(), "names are acknowledged no more");
    }
    let daemon = remount(&rig, daemon);
    {
        let _watch = daemon.watch();
        assert_eq!(std::fs::read(rig.mnt().join("f")).unwrap(), b"old", "nobody knows what the disk has of it");
    }
    rig.check_targets(daemon);
}

#[test]
fn s1_a_failed_sync_of_the_metadata_log_latches() {
    // The first passes are those of the mount itself.
    let rig = Rig::new(&["a"]);
    let daemon = rig.mount();
    rig.umount(daemon);
    let mut nth = 4;
    let daemon = loop {
        match rig.try_mount(Some(&format!("{}:{nth}=eio", Point::SyncWal.name()))) {
            Ok(daemon) => break daemon,
            Err(_) => nth += 1,
        }
        assert!(nth < 20, "{}", rig.log());
    };
    {
        let _watch = daemon.watch();
        wait_until("a sync of the log fails", || {
            // A sync of the daemon's own may have met it: then the file is not even made.
            let Ok(file) = File::options().write(true).create(true).truncate(false).open(rig.mnt().join("f")) else {
                return true;
            };
            let failed = file.write_all_at(b"new", 0).and_then(|()| file.sync_all()).is_err();
            let _ = close(file);
            failed
        });
        assert!(is_latched(&rig));
        assert!(File::create(rig.mnt().join("g")).is_err());
    }
    let daemon = remount(&rig, daemon);
    {
        let _watch = daemon.watch();
        File::create(rig.mnt().join("g")).unwrap().sync_all().unwrap();
    }
    rig.check_targets(daemon);
}

#[test]
fn s1_a_failed_sync_of_a_directory_entry_latches() {
    let (rig, daemon) = failing(Point::SyncEntry, 1);
    {
        let _watch = daemon.watch();
        let file = open(&rig.mnt().join("new"));
        file.write_all_at(b"new", 0).unwrap();
        assert_eio("the sync fails", file.sync_all());
        assert_eio("and so does every later one", file.sync_all());
        file.write_all_at(b"xyz", 0).unwrap();
        assert_eio("a close acknowledges nothing", close(file));
        assert!(File::create(rig.mnt().join("g")).is_err(), "names are acknowledged no more");
    }
    assert!(is_latched(&rig), "{:#}", status(&rig));
    let daemon = remount(&rig, daemon);
    {
        let _watch = daemon.watch();
        assert_eq!(std::fs::read(rig.mnt().join("f")).unwrap(), b"old", "what was synced before");
        let file = open(&rig.mnt().join("new"));
        file.write_all_at(b"new", 0).unwrap();
        file.sync_all().unwrap();
        close(file).unwrap();
    }
    assert!(!is_latched(&rig));
    rig.check_targets(daemon);
}

#[test]
fn s1_a_failed_move_of_the_metadata_log_latches_and_loses_no_name() {
    let (rig, daemon) = failing(Point::WalCheckpoint, 1);
    let mut made = 0;
    {
        let _watch = daemon.watch();
        // Many small transactions make the log so long that it is moved.
        let log = rig.state.join("meta.sqlite-wal");
        while std::fs::metadata(&log).unwrap().len() < 20 << 20 {
            match std::fs::create_dir(rig.mnt().join(format!("d{made}"))) {
                Ok(()) => made += 1,
                Err(_) => break,
            }
        }
        wait_until("the log is moved, and that fails", || is_latched(&rig));
        assert!(File::create(rig.mnt().join("g")).is_err(), "names are acknowledged no more");
    }
    // Targets may have had all of it before.
    let (daemon, _) = remounted(&rig, daemon);
    {
        let _watch = daemon.watch();
        assert_eq!(std::fs::read(rig.mnt().join("f")).unwrap(), b"old", "what was synced before");
        let lost = (0..made).find(|index| !rig.mnt().join(format!("d{index}")).is_dir());
        assert_eq!(lost, None, "of {made} that were acknowledged");
        File::create(rig.mnt().join("g")).unwrap().sync_all().unwrap();
    }
    assert!(!is_latched(&rig));
    daemon.kill();
}

/// The staged chunk file that holds so many bytes.
fn staged(rig: &Rig, bytes: u64) -> std::path::PathBuf {
    let folders = std::fs::read_dir(rig.state.join("chunks")).unwrap().map(|folder| folder.unwrap().path());
    let mut files = folders.flat_map(|folder| std::fs::read_dir(folder).unwrap()).map(|file| file.unwrap());
    files.find(|file| file.metadata().unwrap().len() == bytes).expect("it is there").path()
}

#[test]
fn d3_a_closed_file_that_the_disk_does_not_give_is_named_until_it_does() {
    let rig = Rig::new(&["a"]);
    let daemon = rig.mount();
    {
        let _watch = daemon.watch();
        let (path, away) = (rig.mnt().join("f"), rig.base.join("away"));
        let file = open(&path);
        file.write_all_at(&[7; 5000], 0).unwrap();
        // Whoever opens it anew gets an error, as of a directory that the disk cannot read; the writer's descriptor is good.
        let staged = staged(&rig, 5000);
        std::fs::rename(&staged, &away).unwrap();
        close(file).unwrap();
        let named = || {
            let status = status(&rig);
            let all = status["attention"].as_array().unwrap().clone();
            all.into_iter().find(|found| found["kind"] == "unsealed")
        };
        wait_until("status names it", || named().is_some());
        let unsealed = named().unwrap();
        assert!(unsealed["path"].as_str().unwrap().ends_with('f') && unsealed["hint"].is_string(), "{unsealed:#}");
        let told = run(tandemfs().arg("status").arg(rig.mnt())).stdout;
        assert!(told.contains("not readable from the local disk") && told.contains("waiting: 1 file,"), "{told}");
        let again = open(&path);
        assert_eio("an fsync does not lie", again.sync_all());
        assert_eio("and a close does not", close(again));
        std::fs::rename(&away, &staged).unwrap();
        wait_until("it is sealed", || named().is_none());
        open(&path).sync_all().unwrap();
        assert!(std::fs::read(&path).unwrap() == [7; 5000]);
    }
    rig.check_targets(daemon);
}
