//! The same calls on the mount and on a plain directory: each gives the same result or errno, and both trees are the same
//! at the end, after a remount, and restored from a target.
//!
//! Several handles on one inode, names that go while a file is open, renames over open files, links, xattrs, ACLs, set-id
//! and sticky bits, three users, holes, direct I/O, mappings that outlive their descriptors. The calls are those of
//! `src/testing/posix`. The plain directory must be on a filesystem like ext4.
//! `TANDEMFS_TWINS` sets the number of calls of each seed, `TANDEMFS_SEED` is added to the seeds: other histories.

use std::path::{Path, PathBuf};

use crate::busy;
use crate::calls::{self, c, call, gave};
use crate::posix::SET_BEFORE;
use crate::posix::call::{Dice, brief, invent_with_user};
use crate::posix::plain::Plain;
use crate::support::mounted::{Mounted, Place};
use crate::support::run::skipped;
use crate::support::tree::{self, Depth, assert_same};

const CALLS: u64 = 6_000;

fn compare(seed: u64, mounted: &Place, plain: &Path) -> PathBuf {
    let count = std::env::var("TANDEMFS_TWINS").map_or(CALLS, |count| count.parse().unwrap());
    let name = format!("seed{seed}");
    let roots = [mounted.mnt().join(&name), plain.join(&name)];
    let mut twins = roots.map(|root| {
        std::fs::create_dir(&root).unwrap();
        // For the users that are not root.
        assert_eq!(call!(chmod(c(&root).as_ptr(), 0o777)), Ok(0));
        Plain::new(root)
    });
    let mut dice = Dice(seed);
    let mut history = Vec::new();
    for number in 0..count {
        let (user, call) = invent_with_user(&mut dice);
        let shown = twins.each_mut().map(|twin| calls::as_user(user, || twin.perform(&call)));
        history.push(format!("{number}: user {user} {call:?} {:?}", brief(&shown[1])));
        let [mounted, plain] = &shown;
        if mounted != plain {
            let recent = &history[history.len().saturating_sub(40)..];
            panic!(
                "seed {seed}: call {number} by user {user} differs: {call:?}\n mount: {:?}\n plain: {:?}\nbefore:\n{}",
                brief(mounted),
                brief(plain),
                recent.join("\n")
            );
        }
    }
    drop(twins);
    plain.join(name)
}

/// The lines of a tree, without mtimes that the calls did not set: those of now differ between twins.
fn read(root: &Path) -> tree::Tree {
    let line = |line: String| {
        let mut words: Vec<&str> = line.split(' ').collect();
        if let Some(at) = words.iter().position(|word| *word == "mtime") {
            let seconds: i64 = words[at + 1].split('.').next().unwrap().parse().unwrap();
            if seconds >= SET_BEFORE {
                words.drain(at..at + 2);
            }
        }
        words.join(" ")
    };
    tree::read(root, Depth::Copied).into_iter().map(|(path, old)| (path, line(old))).collect()
}

const OPTIONS: &str = "allow_other,suid,dev";

/// With room to spare, what is created is passthrough, and so is who opens it meanwhile: handles of every kind are mixed.
#[test]
fn p1_p2_the_mount_and_a_plain_directory_give_the_same_answers() {
    let place = busy::roomy_place();
    check(&place, OPTIONS, &[1, 2], |mounted| {
        let why_not = mounted.status()["filesystem"].get("no_passthrough").cloned();
        if let Some(why) = why_not {
            return skipped(&format!("no passthrough: {why}"));
        }
        let path = mounted.path("created");
        let created = std::fs::File::create(&path).unwrap();
        assert!(busy::writes_unseen(&place, &path));
        drop(created);
        std::fs::remove_file(path).unwrap();
    });
}

/// In a tiny cache only what is sealed is passthrough, for reading.
#[test]
fn they_do_so_in_a_tiny_cache_too() {
    check(&busy::place(), OPTIONS, &[3], |_| ());
}

#[test]
fn they_do_so_without_passthrough_too() {
    check(&busy::place(), &format!("{OPTIONS},no_passthrough"), &[4, 5, 6], |_| ());
}

fn check(place: &Place, options: &str, seeds: &[u64], prove: impl Fn(&Mounted<'_>)) {
    std::fs::create_dir(place.path("plain")).unwrap();
    // SAFETY: umask(2) takes a number. The modes of both twins' files are those that the calls say.
    unsafe { libc::umask(0o022) };
    let options: [&std::ffi::OsStr; 2] = ["-o".as_ref(), options.as_ref()];
    let mounted = place.mount_with("state", &options);
    prove(&mounted);
    let other: u64 = std::env::var("TANDEMFS_SEED").map_or(0, |seed| seed.parse().unwrap());
    std::thread::scope(|scope| {
        for seed in seeds.iter().map(|seed| seed + other) {
            scope.spawn(move || compare(seed, place, &place.path("plain")));
        }
    });
    let plain = read(&place.path("plain"));
    assert_same("the mount and the plain directory", &plain, &read(&place.mnt()));
    mounted.umount();
    let mounted = place.mount_with("state", &options);
    assert_same("mounted again", &plain, &read(&place.mnt()));
    mounted.umount();
    let restored = place.restore("restored", &[place.uri("a")]);
    assert_eq!(restored.code, 0, "{}", restored.stderr);
    let mounted = place.mount_read_only("restored");
    assert_same("restored from one target", &plain, &read(&place.mnt()));
    mounted.umount();
}
