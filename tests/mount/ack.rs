//! Acknowledgement policies (D3): what `close` and `fsync` have proven when they return, and what they say when they cannot.
//!
//! The machine is "lost" by copying a target at the moment when a call has returned, and restoring from that copy alone.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{XattrFlags, getxattr, setxattr};
use rustix::io::Errno;

use crate::support::mounted::{Mounted, Place, wait_for};
use crate::support::run::program;

const POLICY: &str = "user.tandemfs.policy";

/// A deadline for what must succeed: no machine is so slow. One that must pass is short, and on another mount: then neither
/// a slow machine nor a fast one gives another answer.
const PATIENT: &str = "deadline = \"10m\"";
const SHORT: &str = "deadline = \"1s\"";

/// A place with three directory targets whose mounts have these acknowledgement settings.
fn place(acknowledge: &str) -> Place {
    let mut place = Place::new(&[]);
    configure(&place, acknowledge);
    place.use_config(&place.path("tandemfs.toml"));
    place
}

/// The next mount has these acknowledgement settings.
fn configure(place: &Place, acknowledge: &str) {
    let mut text = format!("[acknowledge]\n{acknowledge}\n");
    for name in ["a", "b", "c"] {
        text += &format!("[target.{name}]\nuri = \"fs://{}\"\n", place.path(name).display());
    }
    std::fs::write(place.path("tandemfs.toml"), text).unwrap();
}

/// As an unmounted disk: the place is gone.
fn take_away(place: &Place, target: &str) {
    std::fs::rename(place.path(target), place.path(&format!("{target}-away"))).unwrap();
}

fn bring_back(place: &Place, target: &str) {
    std::fs::rename(place.path(&format!("{target}-away")), place.path(target)).unwrap();
}

/// A copy of a target as it is now. Its daemon goes on: what is under way in `tmp` comes and goes.
fn snapshot(place: &Place, target: &str) -> tempfile::TempDir {
    let copy = tempfile::Builder::new().prefix("tandemfs-ack-").tempdir().unwrap();
    for entry in std::fs::read_dir(place.path(target)).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "tmp" {
            program("cp", [Path::new("-a"), &entry.path(), copy.path()]);
        }
    }
    copy
}

/// What a file holds in a filesystem that is restored from a copy of one target alone.
fn restored(copy: &tempfile::TempDir, file: &str) -> Option<Vec<u8>> {
    let mut place = Place::new(&[]);
    let uri = format!("fs://{}", copy.path().display());
    place.add_target("copy", &uri);
    let finished = place.restore("state", &[uri]);
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    let mounted = place.mount_read_only("state");
    let content = std::fs::read(mounted.path(file)).ok();
    mounted.umount();
    content
}

/// Writes a file and closes it, with the answer of `close(2)`, which the standard library throws away.
fn write_and_close(path: &Path, content: &[u8]) -> Result<(), Errno> {
    use std::os::fd::IntoRawFd;
    let mut file = File::create(path).unwrap();
    file.write_all(content).unwrap();
    // SAFETY: the descriptor was just taken out of its owner.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap()),
    }
}

fn fsync(file: &File) -> Result<(), Errno> {
    rustix::fs::fsync(file)
}

fn state_policy(path: &Path, value: &str) -> Result<(), Errno> {
    setxattr(path, POLICY, value.as_bytes(), XattrFlags::empty())
}

fn late(mounted: &Mounted<'_>) -> Vec<String> {
    let status = mounted.status();
    let attention = status["attention"].as_array().cloned().unwrap_or_default();
    let late = attention.iter().filter(|attention| attention["kind"] == "late");
    late.map(|attention| attention["path"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn d3_a_close_returns_when_its_number_of_targets_could_restore_the_file() {
    let place = place(PATIENT);
    let mounted = place.mount();
    for (dir, policy) in [("one", "close=one"), ("quorum", "close=quorum"), ("all", "close=all,fsync=all")] {
        std::fs::create_dir(mounted.path(dir)).unwrap();
        state_policy(&mounted.path(dir), policy).unwrap();
        std::fs::create_dir(mounted.path(dir).join("below")).unwrap();
    }
    let path = |dir: &str, name: &str| place.mnt().join(dir).join("below").join(name);

    write_and_close(&path("all", "f"), b"everywhere").unwrap();
    let copies = ["a", "b", "c"].map(|target| snapshot(&place, target));
    for copy in &copies {
        assert_eq!(restored(copy, "all/below/f").as_deref(), Some(&b"everywhere"[..]));
    }

    take_away(&place, "c");
    write_and_close(&path("quorum", "e"), b"on two").unwrap();
    let copy = snapshot(&place, "b");
    assert_eq!(restored(&copy, "quorum/below/e").as_deref(), Some(&b"on two"[..]));
    take_away(&place, "b");
    write_and_close(&path("one", "f"), b"on one").unwrap();
    let copy = snapshot(&place, "a");
    assert_eq!(restored(&copy, "one/below/f").as_deref(), Some(&b"on one"[..]));
    mounted.kill();

    configure(&place, SHORT);
    let mounted = place.mount();
    assert_eq!(write_and_close(&path("quorum", "f"), b"on two"), Err(Errno::IO));
    assert_eq!(write_and_close(&path("all", "g"), b"on three"), Err(Errno::IO));
    let mut waiting = late(&mounted);
    waiting.sort();
    assert_eq!(waiting, ["all/below/g", "quorum/below/f"], "{:#}", mounted.status());
    assert_eq!(std::fs::read(path("all", "g")).unwrap(), b"on three", "not undone");

    // The error was about the moment: the data stayed queued.
    bring_back(&place, "b");
    wait_for("two targets have the file", || late(&mounted) == ["all/below/g"]);
    let copy = snapshot(&place, "b");
    assert_eq!(restored(&copy, "quorum/below/f").as_deref(), Some(&b"on two"[..]));
    bring_back(&place, "c");
    wait_for("what was late is everywhere", || late(&mounted).is_empty());
    let copy = snapshot(&place, "c");
    assert_eq!(restored(&copy, "all/below/g").as_deref(), Some(&b"on three"[..]));
    mounted.umount();
}

#[test]
fn d3_fsync_and_o_sync_of_an_open_file_reach_the_targets_at_once() {
    let place = place(&format!("fsync = \"all\"\n{PATIENT}"));
    let mounted = place.mount();
    let mut other = File::create(mounted.path("other")).unwrap();
    other.write_all(b"never synced, and open").unwrap();
    let mut file = File::create(mounted.path("f")).unwrap();
    let start = Instant::now();
    for round in 0..5u8 {
        file.write_all(&[round; 5000]).unwrap();
        fsync(&file).unwrap();
    }
    eprintln!("fsync on three targets: {:?} each", start.elapsed() / 5);
    let copy = snapshot(&place, "b");
    let expected: Vec<u8> = (0..5u8).flat_map(|round| [round; 5000]).collect();
    assert_eq!(restored(&copy, "f"), Some(expected), "though it is open still");
    assert_ne!(restored(&copy, "other").as_deref(), Some(&b""[..]), "no half-copied file as an empty one (O2)");

    let mut options = OpenOptions::new();
    let options = options.create(true).write(true).truncate(true).custom_flags(libc::O_DSYNC);
    let mut synced = options.open(mounted.path("s")).unwrap();
    synced.write_all(b"each write").unwrap();
    let copy_s = snapshot(&place, "c");
    assert_eq!(restored(&copy_s, "s").as_deref(), Some(&b"each write"[..]));

    std::fs::create_dir_all(mounted.path("d/e")).unwrap();
    std::fs::rename(mounted.path("f"), mounted.path("d/e/f")).unwrap();
    fsync(&File::open(mounted.path("d/e")).unwrap()).unwrap();
    let copy_d = snapshot(&place, "a");
    assert_eq!(restored(&copy_d, "d/e/f").map(|content| content.len()), Some(25_000), "a directory with its names");
    drop((file, synced, other));
    mounted.umount();
}

/// More waiters than there are threads of any kind.
const WAITERS: usize = 40;

/// Threads that each fsync a file of their own, and give back what that said, with the file.
fn waiters(mounted: &Mounted<'_>) -> Vec<std::thread::JoinHandle<(Result<(), Errno>, File)>> {
    let asking = std::sync::Arc::new(std::sync::Barrier::new(WAITERS + 1));
    let start = |index| {
        let (path, asking) = (mounted.path(&format!("f{index}")), asking.clone());
        std::thread::spawn(move || {
            let mut file = File::create(path).unwrap();
            file.write_all(b"content").unwrap();
            asking.wait();
            (fsync(&file), file)
        })
    };
    let waiters = (0..WAITERS).map(start).collect();
    asking.wait();
    waiters
}

#[test]
fn d3_who_waits_for_a_target_holds_nobody_else_up() {
    let place = place(&format!("fsync = \"all\"\n{PATIENT}"));
    let mounted = place.mount();
    std::fs::write(mounted.path("old"), b"old").unwrap();
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0);
    take_away(&place, "c");
    let waiters = waiters(&mounted);
    // By the time that the other two have all of it, everybody has asked.
    assert_eq!(mounted.command("flush", &["--wait", "2", "--timeout", "600"]).code, 0);
    assert_eq!(std::fs::read(mounted.path("old")).unwrap(), b"old");
    std::fs::write(mounted.path("new"), b"new").unwrap();
    std::fs::rename(mounted.path("new"), mounted.path("newer")).unwrap();
    assert!(waiters.iter().all(|waiter| !waiter.is_finished()), "they wait while others go on");
    bring_back(&place, "c");
    for waiter in waiters {
        assert_eq!(waiter.join().unwrap().0, Ok(()));
    }
    mounted.umount();
}

#[test]
fn d3_a_deadline_is_an_error_and_what_was_late_arrives() {
    let place = place(&format!("fsync = \"all\"\n{SHORT}"));
    let mounted = place.mount();
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0);
    take_away(&place, "c");
    let start = Instant::now();
    let files: Vec<File> = waiters(&mounted)
        .into_iter()
        .map(|waiter| {
            let (refused, file) = waiter.join().unwrap();
            assert_eq!(refused, Err(Errno::TIMEDOUT));
            file
        })
        .collect();
    assert!(start.elapsed() >= Duration::from_secs(1), "not before the deadline");
    // Where the local disk alone took as long as the deadline, no target was asked yet.
    wait_for("each is told of as late", || {
        let told = late(&mounted);
        let untold = (0..WAITERS).filter(|index| !told.contains(&format!("f{index}")));
        untold.for_each(|index| assert_eq!(fsync(&files[index]), Err(Errno::TIMEDOUT)));
        told.len() == WAITERS
    });
    bring_back(&place, "c");
    wait_for("what was late is everywhere", || late(&mounted).is_empty());
    // Nothing is left to wait for, so no deadline passes.
    assert!(files.iter().all(|file| fsync(file).is_ok()));
    assert_eq!(late(&mounted), [""; 0]);
    drop(files);
    mounted.umount();
}

#[test]
fn d3_who_cannot_write_never_waits() {
    let place = place(&format!("close = \"all\"\n{PATIENT}"));
    let mounted = place.mount();
    write_and_close(&mounted.path("f"), b"content").unwrap();
    take_away(&place, "a");
    let mut writer = OpenOptions::new().append(true).open(mounted.path("f")).unwrap();
    writer.write_all(b" and more").unwrap();
    let start = Instant::now();
    for _ in 0..10 {
        assert_eq!(std::fs::read(mounted.path("f")).unwrap(), b"content and more");
    }
    // One close that waited would take the whole deadline.
    assert!(start.elapsed() < Duration::from_secs(300), "reading took {:?}", start.elapsed());
    bring_back(&place, "a");
    drop(writer);
    mounted.umount();
}

#[test]
fn d3_a_policy_of_a_directory_is_checked_inherited_and_stays() {
    let place = place(SHORT);
    let mounted = place.mount();
    std::fs::create_dir_all(mounted.path("d/e/f")).unwrap();
    for bad in ["", "none", "close=", "close=two", "fsync=4", "close=all;fsync=all", "0"] {
        assert_eq!(state_policy(&mounted.path("d"), bad), Err(Errno::INVAL), "{bad:?}");
    }
    state_policy(&mounted.path("d"), "close=all").unwrap();
    state_policy(&mounted.path("d/e"), "fsync=all").unwrap();
    state_policy(&mounted.path("d/e/f"), "close=cached").unwrap();
    mounted.umount();

    let mounted = place.mount();
    let mut value = [0; 64];
    let length = getxattr(mounted.path("d"), POLICY, &mut value).unwrap();
    assert_eq!(&value[..length], b"close=all");
    take_away(&place, "b");
    let close = |dir: &str| write_and_close(&place.mnt().join(dir).join("x"), b"content");
    let sync = |dir: &str| fsync(&File::open(place.mnt().join(dir).join("x")).unwrap());
    assert_eq!(close(""), Ok(()), "cached: the mount's");
    assert_eq!(close("d"), Err(Errno::IO));
    assert_eq!((close("d/e"), sync("d/e")), (Err(Errno::IO), Err(Errno::TIMEDOUT)), "close from above");
    assert_eq!(
        (close("d/e/f"), sync("d/e/f")),
        (Ok(()), Err(Errno::TIMEDOUT)),
        "the nearest counts, for each call apart"
    );
    mounted.kill();

    // What needs no target that is away, however long the disk takes.
    configure(&place, PATIENT);
    let mounted = place.mount();
    assert_eq!((close(""), sync("")), (Ok(()), Ok(())), "cached and local: the mount's");
    assert_eq!(sync("d"), Ok(()), "only close has a policy there");
    rustix::fs::removexattr(mounted.path("d/e"), POLICY).unwrap();
    assert_eq!((close("d/e/f"), sync("d/e/f")), (Ok(()), Ok(())));
    // What moves follows the policy of where it is.
    std::fs::rename(mounted.path("d/e"), mounted.path("e")).unwrap();
    assert_eq!((close("e"), sync("e")), (Ok(()), Ok(())));
    bring_back(&place, "b");
    mounted.umount();
}
