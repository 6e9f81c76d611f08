//! Programs use the mount as they use any other directory, and every target alone brings it back.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::support::mounted::Place;
use crate::support::run::{installed, program, shell};
use crate::support::tree::{self, Depth, assert_same, make_awkward, noise};

/// Unmounts, then restores from each target with everything else gone, and compares.
fn check_restore_from_each(place: &Place, mounted: crate::support::mounted::Mounted<'_>, targets: &[&str]) {
    let before = tree::read(&place.mnt(), Depth::Restored);
    mounted.umount();
    std::fs::rename(place.path("state"), place.path("gone-state")).unwrap();
    for name in targets {
        for other in targets.iter().filter(|other| *other != name) {
            std::fs::rename(place.path(other), place.path(&format!("gone-{other}"))).unwrap();
        }
        let state = format!("state-from-{name}");
        let restored = place.restore(&state, &[place.uri(name)]);
        assert_eq!(restored.code, 0, "restore from {name}: {}", restored.stderr);
        let mounted = place.mount_read_only(&state);
        assert_same(&format!("restored from {name}"), &before, &tree::read(&place.mnt(), Depth::Restored));
        mounted.umount();
        for other in targets.iter().filter(|other| *other != name) {
            std::fs::rename(place.path(&format!("gone-{other}")), place.path(other)).unwrap();
        }
    }
}

fn source_tree() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

#[test]
fn a_copied_tree_is_the_same_and_is_restored_from_each_target_alone() {
    let place = Place::new(&["a", "b"]);
    make_awkward(&place.path("original"));
    let mounted = place.mount();
    program("cp", ["-a".as_ref(), place.path("original").as_os_str(), place.mnt().join("copy").as_os_str()]);
    program("cp", ["-a".as_ref(), source_tree().as_os_str(), place.mnt().join("src").as_os_str()]);
    let original = tree::read(&place.path("original"), Depth::Copied);
    assert_same("the copy", &original, &tree::read(&place.mnt().join("copy"), Depth::Copied));
    let src = tree::read(&source_tree(), Depth::Copied);
    assert_same("the sources", &src, &tree::read(&place.mnt().join("src"), Depth::Copied));
    check_restore_from_each(&place, mounted, &["a", "b"]);
}

#[test]
fn what_programs_do_to_files_arrives_on_each_target() {
    if !installed(&["rsync", "tar"]) {
        return;
    }
    let place = Place::new(&["a", "b"]);
    make_awkward(&place.path("original"));
    let mounted = place.mount();
    let mnt = place.mnt();
    let src = source_tree();
    shell(&mnt, &format!("mkdir t && tar cf - -C '{0}' . | tar xf - -C t && diff -r '{0}' t", src.display()));
    shell(
        &mnt,
        &format!(
            "rsync -aHX --modify-window=-1 '{}/' r/ && rsync -aHX --checksum -i '{0}/' r/",
            place.path("original").display()
        ),
    );
    assert_same(
        "rsync",
        &tree::read(&place.path("original"), Depth::Copied),
        &tree::read(&mnt.join("r"), Depth::Copied),
    );
    // Within and across directories, over existing names, directories too.
    shell(&mnt, "mkdir m && mv t/lib.rs m/ && mv m/lib.rs m/renamed && mv t/cli m/cli && mv m/renamed t/main.rs");
    shell(&mnt, "cp -a r gone && rm -rf gone && test ! -e gone");
    shell(
        &mnt,
        "echo one > log && echo two >> log && echo three >> log && truncate -s 6 log && test \"$(cat log)\" = \"$(printf 'one\\ntw')\"",
    );
    shell(&mnt, "truncate -s 1M log && truncate -s 3 log && test \"$(cat log)\" = one");
    shell(
        &mnt,
        "chmod 640 log && chown 5:6 log && touch -d '2020-02-02 02:02:02.123456789' log && setfattr -n user.k -v v log",
    );
    shell(&mnt, "ln log hard && ln -s log soft && rm log && test \"$(cat hard)\" = one && ln hard log");

    // An editor's save.
    let save = |text: &str| {
        let mut new = File::create(mnt.join(".doc.swp")).unwrap();
        new.write_all(text.as_bytes()).unwrap();
        new.sync_all().unwrap();
        std::fs::rename(mnt.join(".doc.swp"), mnt.join("doc")).unwrap();
    };
    save("first");
    save("second");
    assert_eq!(std::fs::read_to_string(mnt.join("doc")).unwrap(), "second");

    // A part of a large file in place, beyond its end, and with a hole between.
    let mut expected = noise(1, 20 << 20);
    std::fs::write(mnt.join("large"), &expected).unwrap();
    let large = File::options().read(true).write(true).open(mnt.join("large")).unwrap();
    for (offset, length) in [(0, 10), (4096, 4096), ((7 << 20) + 13, 100_000), ((20 << 20) - 5, 10)] {
        let bytes = noise(offset as u64, length);
        large.write_all_at(&bytes, offset as u64).unwrap();
        expected.resize(expected.len().max(offset + length), 0);
        expected[offset..offset + length].copy_from_slice(&bytes);
    }
    large.write_all_at(b"end", 30 << 20).unwrap();
    expected.resize(30 << 20, 0);
    expected.extend_from_slice(b"end");
    drop(large);
    assert!(std::fs::read(mnt.join("large")).unwrap() == expected, "in-place edits");
    check_restore_from_each(&place, mounted, &["a", "b"]);
}
