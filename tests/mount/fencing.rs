//! Two that want to write one target, and places that are not what they were (T1, T7, D4): one side is refused or fenced
//! with both sides' names and the way out, and whatever happens each target restores.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::mounted::{Mounted, Place, wait_for};
use crate::support::run::{Finished, finish, program, succeed};
use crate::support::tree::{self, Depth, Tree, assert_same};

fn write(place: &Place, name: &str, text: &str) {
    std::fs::write(place.mnt().join(name), text).unwrap();
}

fn read(place: &Place) -> Tree {
    tree::read(&place.mnt(), Depth::Restored)
}

fn target(mounted: &Mounted<'_>, name: &str) -> serde_json::Value {
    let status = mounted.status();
    let targets = status["targets"].as_array().unwrap();
    targets.iter().find(|target| target["name"] == name).unwrap().clone()
}

fn flush(mounted: &Mounted<'_>, wait: &str) {
    let flushed = mounted.command("flush", &["--wait", wait, "--timeout", "600"]);
    assert_eq!(flushed.code, 0, "{}\n{}", flushed.stderr, mounted.log());
}

/// Unmounts although a target lacks something.
fn force(mounted: Mounted<'_>) {
    let ended = mounted.command("umount", &["--force", "--timeout", "0"]);
    assert!([0, 1, 3].contains(&ended.code), "{}", ended.stderr);
    mounted.wait_end();
}

fn rename(place: &Place, from: &str, to: &str) {
    std::fs::rename(place.path(from), place.path(to)).unwrap();
}

fn copy(place: &Place, from: &str, to: &str) {
    program("cp", ["-a".as_ref(), place.path(from).as_os_str(), place.path(to).as_os_str()]);
}

#[track_caller]
fn refused(finished: &Finished, words: &[&str]) {
    assert!(finished.code == 1 || finished.code == 2, "{} {}", finished.code, finished.stderr);
    for word in words.iter().chain(&["\nhint: "]) {
        assert!(finished.stderr.contains(word), "not {word:?} in {}", finished.stderr);
    }
}

/// What target `name` alone restores to.
fn restored(place: &Place, name: &str) -> Tree {
    let state = format!("restored from {name}");
    let finished = place.restore(&state, &[place.uri(name)]);
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    // Alone: the others are not even configured.
    let mut alone = Place::new(&[]);
    alone.add_target(name, &place.uri(name));
    rename_across(&place.path(&state), &alone.path("state"));
    let mounted = alone.mount_read_only("state");
    let tree = read(&alone);
    mounted.umount();
    tree
}

fn rename_across(from: &Path, to: &Path) {
    program("mv", [from, to]);
}

#[test]
fn t7_a_state_directory_from_a_backup_is_refused_and_touches_nothing() {
    let place = Place::new(&["a", "b"]);
    let mounted = place.mount();
    write(&place, "first", "1");
    mounted.umount();
    copy(&place, "state", "backup");
    let mounted = place.mount();
    write(&place, "second", "2");
    let tree = read(&place);
    mounted.umount();
    let before = (tree::bytes_below(&place.path("a")), tree::bytes_below(&place.path("b")));
    let finished = finish(&mut place.mount_command("backup"));
    refused(
        &finished,
        &["target \"a\" is written by ", "(epoch 2); this state directory wrote last in epoch 1", "tandemfs restore"],
    );
    assert!(
        before == (tree::bytes_below(&place.path("a")), tree::bytes_below(&place.path("b"))),
        "nothing was written"
    );
    let mounted = place.mount();
    assert_same("the newer one goes on", &tree, &read(&place));
    mounted.umount();
}

/// Whoever tries a restore needs not stop what he tries to restore.
#[test]
fn d6_a_restore_is_tried_read_only_while_its_target_goes_on() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    write(&place, "first", "1");
    flush(&mounted, "all");
    let tree = read(&place);
    let mut drill = Place::new(&[]);
    drill.add_target("a", &place.uri("a"));
    assert_eq!(drill.restore("state", &[place.uri("a")]).code, 0);
    write(&place, "second", "2");
    flush(&mounted, "all");
    let finished = finish(&mut drill.mount_command("state"));
    refused(&finished, &["this state directory is older than target \"a\""]);
    let tried = drill.mount_read_only("state");
    assert_same("the drill", &tree, &read(&drill));
    tried.umount();
    write(&place, "third", "3");
    flush(&mounted, "all");
    assert_eq!(target(&mounted, "a")["mode"], "follow");
    mounted.umount();
}

/// The copy is mounted while no target answers, so nobody refuses it; it takes the same epoch as the original.
#[test]
fn t7_a_stale_state_directory_that_was_mounted_without_targets_is_fenced_when_they_come() {
    let mut place = Place::new(&[]);
    // Disks: without them, not even the parents of the targets are there.
    for name in ["a", "b"] {
        std::fs::create_dir(place.path(&format!("disk-{name}"))).unwrap();
        let uri = format!("fs://{}", place.path(&format!("disk-{name}/{name}")).display());
        place.add_target(name, &uri);
    }
    let mounted = place.mount();
    write(&place, "first", "1");
    mounted.umount();
    copy(&place, "state", "stale");
    let mounted = place.mount();
    write(&place, "second", "2");
    let tree = read(&place);
    mounted.umount();
    for name in ["a", "b"] {
        rename(&place, &format!("disk-{name}"), &format!("away-{name}"));
    }
    let mounted = place.mount_state("stale");
    write(&place, "a change that the others never saw", "3");
    for name in ["a", "b"] {
        rename(&place, &format!("away-{name}"), &format!("disk-{name}"));
    }
    let before = (tree::bytes_below(&place.path("disk-a")), tree::bytes_below(&place.path("disk-b")));
    for name in ["a", "b"] {
        wait_for("it is fenced", || target(&mounted, name)["mode"] == "fenced");
        let status = target(&mounted, name);
        assert!(status["reason"].as_str().unwrap().contains("is written by "), "{status:#}");
        assert!(status["hint"].as_str().unwrap().contains("tandemfs restore"), "{status:#}");
    }
    assert_eq!(mounted.status()["safe"], false);
    // Local work goes on.
    write(&place, "another", "4");
    assert!(
        before == (tree::bytes_below(&place.path("disk-a")), tree::bytes_below(&place.path("disk-b"))),
        "nothing was written"
    );
    force(mounted);
    for name in ["a", "b"] {
        assert_same(&format!("restored from {name}"), &tree, &restored(&place, name));
    }
}

/// The machine was thought to be lost: a restore took over while the old daemon went on.
#[test]
fn t7_a_mount_whose_filesystem_was_restored_and_mounted_elsewhere_is_fenced() {
    let place = Place::new(&["a", "b"]);
    let old = place.mount();
    write(&place, "first", "1");
    flush(&old, "all");
    let mut elsewhere = Place::new(&[]);
    for name in ["a", "b"] {
        elsewhere.add_target(name, &place.uri(name));
    }
    let finished = elsewhere.restore("state", &[place.uri("a"), place.uri("b")]);
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    let new = elsewhere.mount();
    write(&elsewhere, "of the new one", "2");
    flush(&new, "all");
    let tree = read(&elsewhere);
    // Its next segment finds the new writer, at the latest ten seconds after the last look.
    let count = std::cell::Cell::new(0);
    for name in ["a", "b"] {
        wait_for("the old one is fenced", || {
            count.set(count.get() + 1);
            write(&place, "of the old one", &count.get().to_string());
            target(&old, name)["mode"] == "fenced"
        });
        let status = target(&old, name);
        assert!(status["reason"].as_str().unwrap().contains("epoch 2"), "{status:#}");
        assert!(status["hint"].as_str().unwrap().contains("tandemfs restore"), "{status:#}");
    }
    assert_same("what the old one wrote meanwhile is nobody's", &tree, &read(&elsewhere));
    write(&elsewhere, "later", "3");
    let tree = read(&elsewhere);
    new.umount();
    force(old);
    for name in ["a", "b"] {
        assert_same(&format!("restored from {name}"), &tree, &restored(&elsewhere, name));
    }
    refused(
        &finish(&mut place.mount_command("state")),
        &["is written by ", "this state directory wrote last in epoch 1"],
    );
}

#[test]
fn t1_a_state_directory_of_another_filesystem_is_refused() {
    let (ours, theirs) = (Place::new(&["a"]), Place::new(&["a"]));
    for place in [&ours, &theirs] {
        let mounted = place.mount();
        write(place, "f", "x");
        mounted.umount();
    }
    let mut mixed = Place::new(&[]);
    mixed.add_target("a", &theirs.uri("a"));
    copy(&ours, "state", "copy");
    rename_across(&ours.path("copy"), &mixed.path("state"));
    let before = tree::bytes_below(&theirs.path("a"));
    let finished = finish(&mut mixed.mount_command("state"));
    refused(
        &finished,
        &["target \"a\" belongs to another filesystem", "this state directory is of ", "its own state directory"],
    );
    assert!(before == tree::bytes_below(&theirs.path("a")), "nothing was written");
}

#[test]
fn t1_a_target_that_is_swapped_for_another_filesystems_under_the_mount_gets_nothing() {
    let (place, other) = (Place::new(&["a", "b"]), Place::new(&["b"]));
    let theirs = other.mount();
    write(&other, "theirs", "x");
    theirs.umount();
    let mounted = place.mount();
    write(&place, "first", "1");
    flush(&mounted, "all");
    // Complete at once: what is half there would be an empty place.
    program("cp", ["-a".as_ref(), other.path("b").as_os_str(), place.path("theirs").as_os_str()]);
    rename(&place, "b", "b is away");
    rename(&place, "theirs", "b");
    let before = tree::bytes_below(&place.path("b"));
    write(&place, "second", "2");
    flush(&mounted, "1");
    wait_for("it is noticed", || target(&mounted, "b")["mode"] == "fenced");
    let status = target(&mounted, "b");
    assert!(status["reason"].as_str().unwrap().contains("belongs to another filesystem"), "{status:#}");
    assert!(before == tree::bytes_below(&place.path("b")), "nothing was written");
    force(mounted);
    std::fs::remove_dir_all(place.path("b")).unwrap();
    rename(&place, "b is away", "b");
    let mounted = place.mount();
    let tree = read(&place);
    mounted.umount();
    assert_same("restored from b", &tree, &restored(&place, "b"));
}

#[test]
fn t10_a_disk_that_is_unmounted_under_the_mount_is_not_filled_below() {
    let mut place = Place::new(&["a"]);
    // What is bound there stands for the disk.
    let (real, disk) = (place.path("real"), place.path("disk"));
    for path in [&real, &disk] {
        std::fs::create_dir(path).unwrap();
    }
    let uri = format!("fs://{}", disk.join("b").display());
    place.add_target("b", &uri);
    let _unbind = Unbind(vec![disk.clone()]);
    let mount_disk = || succeed(Command::new("mount").arg("--bind").arg(&real).arg(&disk));
    let unmount_disk = || succeed(Command::new("umount").arg("-l").arg(&disk));
    mount_disk();
    let mounted = place.mount();
    write(&place, "first", "1");
    flush(&mounted, "all");
    unmount_disk();
    write(&place, "second", "2");
    flush(&mounted, "1");
    // Now and then it is probed.
    wait_for("it is noticed", || {
        let b = target(&mounted, "b");
        b["health"] == "down" && b["reason"].as_str().is_some_and(|reason| reason.contains("empty or not mounted"))
    });
    force(mounted);
    // Neither does the next mount.
    let mounted = place.mount();
    wait_for("it is noticed again", || target(&mounted, "b")["mode"] == "blocked");
    assert_eq!(std::fs::read_dir(&disk).unwrap().count(), 0, "nothing was written below");
    mount_disk();
    let tree = read(&place);
    mounted.umount();
    assert_same("restored from b", &tree, &restored(&place, "b"));
    unmount_disk();
}

#[test]
fn t7_a_target_that_lagged_and_one_that_missed_the_next_mount_are_both_taken_over_after_a_restore() {
    for source in ["a", "b"] {
        let place = Place::new(&["a", "b"]);
        let mounted = place.mount();
        write(&place, "first", "1");
        mounted.umount();
        // a lags when this mount ends …
        rename(&place, "a", "a is away");
        let mounted = place.mount();
        write(&place, "second", "2");
        flush(&mounted, "1");
        force(mounted);
        rename(&place, "a is away", "a");
        // … and b misses the next one, which brings a the rest …
        rename(&place, "b", "b is away");
        let mounted = place.mount();
        write(&place, "third", "3");
        flush(&mounted, "1");
        force(mounted);
        rename(&place, "b is away", "b");
        // … and a the one after, which brings b the rest.
        if source == "b" {
            rename(&place, "a", "a is away");
            let mounted = place.mount();
            flush(&mounted, "1");
            write(&place, "fourth", "4");
            flush(&mounted, "1");
            force(mounted);
            rename(&place, "a is away", "a");
        }
        std::fs::remove_dir_all(place.path("state")).unwrap();
        let finished = place.restore("state", &[place.uri(source)]);
        assert_eq!(finished.code, 0, "{}", finished.stderr);
        let mounted = place.mount();
        assert_eq!(std::fs::read(mounted.path("third")).unwrap(), b"3");
        write(&place, "last", "5");
        let tree = read(&place);
        mounted.umount();
        for name in ["a", "b"] {
            assert_same(&format!("restored from {name}"), &tree, &restored(&place, name));
        }
    }
}

#[test]
fn t1_a_restored_filesystem_makes_no_place_where_a_disk_may_be_missing() {
    let mut place = Place::new(&["a"]);
    std::fs::create_dir(place.path("disk")).unwrap();
    let uri = format!("fs://{}", place.path("disk/b").display());
    place.add_target("b", &uri);
    let mounted = place.mount();
    write(&place, "first", "1");
    mounted.umount();
    std::fs::remove_dir_all(place.path("state")).unwrap();
    assert_eq!(place.restore("state", &[place.uri("a")]).code, 0);
    rename(&place, "disk", "disk is away");
    std::fs::create_dir(place.path("disk")).unwrap();
    let mounted = place.mount();
    let says = |status: &serde_json::Value| status["reason"].as_str().is_some_and(|why| why.contains("does not exist"));
    wait_for("it is said", || says(&target(&mounted, "b")));
    let status = target(&mounted, "b");
    assert!(status["hint"].as_str().unwrap().contains("mount its disk, or make the directory"), "{status:#}");
    assert_eq!(std::fs::read_dir(place.path("disk")).unwrap().count(), 0, "nothing was made");
    std::fs::remove_dir(place.path("disk")).unwrap();
    rename(&place, "disk is away", "disk");
    let tree = read(&place);
    mounted.umount();
    assert_same("restored from b", &tree, &restored(&place, "b"));
}

#[test]
fn d4_places_that_lie_in_one_another_through_links_and_bind_mounts_are_refused() {
    let place = Place::new(&[]);
    for name in ["outer", "outer/in", "outer/in/deeper", "alias", "part"] {
        std::fs::create_dir(place.path(name)).unwrap();
    }
    std::os::unix::fs::symlink(place.path("outer"), place.path("link")).unwrap();
    let bind =
        |from: &str, to: &str| succeed(Command::new("mount").arg("--bind").arg(place.path(from)).arg(place.path(to)));
    let _unbind = Unbind(vec![place.path("alias"), place.path("part")]);
    bind("outer", "alias");
    // Only a part of it is shown: none of the directories above `part` is `outer`.
    bind("outer/in", "part");
    let mount = |mountpoint: &str, state: &str, target: &str| {
        let mut command = place.tandemfs();
        command.arg("mount").arg(place.path(mountpoint)).arg("--state-dir").arg(place.path(state));
        finish(command.arg("--target").arg(format!("x=fs://{}", place.path(target).display())))
    };
    for (mountpoint, state, target) in [
        ("outer/in/deeper", "state", "link"),
        ("outer/in/deeper", "state", "alias"),
        ("outer/in/deeper", "state", "part"),
        ("mnt", "outer", "part/t"),
        ("mnt", "part/deeper/state", "outer"),
        ("mnt", "part/state", "alias/in"),
        ("part/deeper", "state", "outer"),
        ("part/deeper", "link/in", "t"),
    ] {
        let finished = mount(mountpoint, state, target);
        assert_eq!(finished.code, 2, "{mountpoint} {state} {target}: {}", finished.stderr);
        refused(&finished, &["must lie apart"]);
    }
    assert!(!place.path("state").exists());
    assert_eq!(std::fs::read_dir(place.path("outer/in")).unwrap().count(), 1, "nothing was made");
}

struct Unbind(Vec<PathBuf>);

impl Drop for Unbind {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = Command::new("umount").arg("-l").arg(path).output();
        }
    }
}

#[test]
fn t1_one_place_behind_two_uris_is_refused() {
    let place = Place::new(&[]);
    for name in ["real", "alias"] {
        std::fs::create_dir(place.path(name)).unwrap();
    }
    std::os::unix::fs::symlink(place.path("real"), place.path("link")).unwrap();
    succeed(Command::new("mount").arg("--bind").arg(place.path("real")).arg(place.path("alias")));
    let _unbind = Unbind(vec![place.path("alias")]);
    for (one, two) in
        [("real", "link"), ("real", "alias"), ("link/new", "real/new"), ("alias/new", "real/new"), ("real/./", "real")]
    {
        let mut command = place.tandemfs();
        command.arg("mount").arg(place.mnt()).arg("--state-dir").arg(place.path("state"));
        for (name, path) in [("a", one), ("b", two)] {
            command.arg("--target").arg(format!("{name}=fs://{}", place.path(path).display()));
        }
        let finished = finish(&mut command);
        assert_eq!(finished.code, 2, "{one} {two}: {}", finished.stderr);
        refused(&finished, &["a", "b", "same "]);
        assert_eq!(std::fs::read_dir(place.path("real")).unwrap().count(), 0, "nothing was made");
    }
}
