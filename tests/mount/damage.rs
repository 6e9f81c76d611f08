//! Bad copies: never served, replaced by the other target's, mended (promise 4).

use crate::support::mounted::{Place, wait_for};
use crate::support::run::{program, shell};
use crate::support::tree::{self, Depth, assert_same, make_awkward, noise};

#[test]
fn wrong_and_missing_chunks_are_read_from_the_other_target_and_mended() {
    let place = Place::new(&["a", "b"]);
    let mounted = place.mount();
    make_awkward(&mounted.path("tree"));
    for index in 0..6 {
        std::fs::write(mounted.path(&format!("large{index}")), noise(index, 5 << 20)).unwrap();
    }
    let expected = tree::read(&place.mnt(), Depth::Restored);
    mounted.umount();
    let restored = place.restore("state2", &[place.uri("a"), place.uri("b")]);
    assert_eq!(restored.code, 0, "{}", restored.stderr);
    // Every chunk of one target is damaged in one of three ways.
    let damaged = shell(
        &place.path(""),
        "i=0; find a/chunks -type f | while read -r f; do i=$((i+1)); case $((i%3)) in
           0) rm \"$f\";; 1) echo; printf X | dd of=\"$f\" bs=1 conv=notrunc status=none;; 2) echo; truncate -s -1 \"$f\";; esac; done",
    )
    .lines()
    .count();
    let mounted = place.mount_state("state2");
    assert_same("read past the damage", &expected, &tree::read(&place.mnt(), Depth::Restored));
    let status = mounted.status();
    let kinds = status["attention"].as_array().unwrap().iter().filter(|found| found["kind"] == "damaged");
    assert!(kinds.count() > 0, "{status:#}");
    // What was asked of the damaged target and found bad is uploaded there again.
    wait_for("the copies are good again", || mounted.status()["safe"] == true);
    mounted.umount();
    // What was found bad is good now: what is still bad was never asked of this target, and waits for a scrub.
    let bad = |name: &str| {
        let objects = tree::read(&place.path(name).join("chunks"), Depth::Copied);
        let hash = |path: &[u8]| String::from_utf8_lossy(&path[path.len().saturating_sub(64)..]).into_owned();
        let wrong = objects.iter().filter(|(path, line)| line.contains("blake3") && !line.contains(&hash(path)));
        wrong.count()
    };
    assert_eq!(bad("b"), 0);
    assert!(bad("a") < damaged, "at least what was read from it was mended");
}

/// As on a disk with bad sectors: what is read of it is an error, and nothing is wrong with the targets.
#[test]
fn what_the_local_disk_does_not_give_comes_from_a_target() {
    let place = Place::new(&["a"]);
    let mount = || place.mount_with("state", &["-o".as_ref(), "no_passthrough".as_ref()]);
    let mounted = mount();
    let content = [noise(1, 5 << 20), noise(2, 3000)];
    std::fs::write(mounted.path("large"), &content[0]).unwrap();
    std::fs::write(mounted.path("small"), &content[1]).unwrap();
    mounted.umount();
    let chunk_files = tree::files_below(&place.path("state/chunks"));
    assert!(chunk_files.len() >= 2, "{chunk_files:?}");
    for (path, _) in &chunk_files {
        tree::truncate(path, 1000).unwrap();
    }
    let mounted = mount();
    for (name, content) in ["large", "small"].iter().zip(&content) {
        assert!(std::fs::read(mounted.path(name)).unwrap() == *content, "{name}");
    }
    assert!(mounted.log().contains("cannot be read; its chunks are fetched"));
    mounted.umount();
}

#[test]
fn a_file_without_any_good_copy_is_an_error_never_a_hole() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    std::fs::write(mounted.path("lost"), noise(1, 5 << 20)).unwrap();
    mounted.umount();
    let restored = place.restore("state2", &[place.uri("a")]);
    assert_eq!(restored.code, 0, "{}", restored.stderr);
    program("find", [place.path("a/chunks").as_os_str(), "-type".as_ref(), "f".as_ref(), "-delete".as_ref()]);
    let mounted = place.mount_read_only("state2");
    let error = std::fs::read(mounted.path("lost")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    mounted.umount();
}

#[test]
fn the_standalone_script_restores_the_same_tree() {
    let place = Place::new(&["a", "b"]);
    let mounted = place.mount();
    make_awkward(&mounted.path("tree"));
    shell(&place.mnt(), "cp -a tree copy; rm -r tree; head -c 9000000 /dev/urandom > large; mv large copy/moved");
    let expected = tree::read(&place.mnt(), Depth::Copied);
    mounted.umount();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/mount-examples/restore.py");
    program("python3", [script.as_ref(), place.path("b").as_os_str(), place.path("out").as_os_str()]);
    assert_same("restore.py", &expected, &tree::read(&place.path("out"), Depth::Copied));
}
