//! tar, rsync, cp in their less usual ways: in place, sparse, by reference.

use std::fs::File;

use crate::support::mounted::{Place, wait_for};
use crate::support::run::{installed, shell};
use crate::support::tree::{self, Depth, assert_same, make_awkward, noise};

#[test]
fn tar_and_rsync_in_place_bring_everything_over() {
    if !installed(&["tar", "rsync"]) {
        return;
    }
    let place = Place::new(&["a"]);
    make_awkward(&place.path("original"));
    let mounted = place.mount();
    let original = tree::read(&place.path("original"), Depth::Copied);
    shell(
        &place.path(""),
        "tar --xattrs -cf archive -C original . && mkdir mnt/untarred && tar --xattrs -xpf archive -C mnt/untarred",
    );
    assert_same("untarred", &original, &tree::read(&mounted.path("untarred"), Depth::Copied));
    shell(&place.path(""), "tar -cf mnt/archive -C mnt/untarred . && mkdir again && tar -xpf mnt/archive -C again");
    // A changed block in the middle, bytes less at the end: rsync writes into the file as it is.
    std::fs::write(place.path("big"), noise(1, 8 << 20)).unwrap();
    shell(
        &place.path(""),
        "rsync --inplace big mnt/big
         printf changed | dd of=big bs=1 seek=3000000 conv=notrunc status=none; truncate -s 7000000 big
         inode=$(stat -c %i mnt/big); rsync --inplace --no-whole-file big mnt/big; cmp big mnt/big
         test $inode = $(stat -c %i mnt/big)
         echo more >> big; rsync --append-verify big mnt/big; cmp big mnt/big
         rsync --inplace --sparse --checksum big mnt/sparse; cmp big mnt/sparse",
    );
    mounted.umount();
}

#[test]
fn cp_makes_copies_by_reference_and_keeps_holes() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let file = mounted.path("file");
    std::fs::write(&file, noise(3, 20 << 20)).unwrap();
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0);
    let files = || shell(&place.path("state/chunks"), "find . -type f");
    // A file whose last RELEASE is still on its way is flushed as a copy; it stands still when one of them is left.
    wait_for("the file stands still", || files().lines().count() == 1);
    let placed = || mounted.status()["targets"][0]["placed_bytes"].as_u64().unwrap();
    let used = || mounted.status()["cache"]["used_bytes"].as_u64().unwrap();
    let before = (placed(), used());
    let files_before = files();
    // For reading and writing: such a descriptor never writes straight into a file of ours.
    let from = File::open(&file).unwrap();
    let to = File::options().read(true).write(true).create(true).truncate(true).open(mounted.path("shared")).unwrap();
    let copied = rustix::fs::copy_file_range(&from, None, &to, None, 20 << 20).unwrap();
    assert_eq!((copied, files()), (20 << 20, files_before), "no session took bytes");
    drop((from, to));
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0);
    assert_eq!((placed(), used()), before, "not a byte was stored or sent twice");
    shell(
        &place.mnt(),
        "cp --reflink=auto file copy; cp -a file another; cmp file copy; cmp file another; cmp file shared",
    );
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0);
    // What cp writes goes straight to the disk with passthrough, and stays there to be read from.
    assert_eq!(placed(), before.0, "not a byte was sent twice");
    let without_holes = used();
    shell(
        &place.mnt(),
        "printf x | dd of=copy conv=notrunc status=none; if cmp -s file copy; then exit 9; fi; cmp file another; rm file; cmp -i 1 copy another",
    );
    shell(
        &place.mnt(),
        "truncate -s 128M holes; echo middle | dd of=holes bs=1 seek=50M conv=notrunc status=none
         cp --sparse=always holes dense; cmp holes dense",
    );
    let with_holes = used();
    assert!(with_holes < without_holes + (32 << 20), "holes take space: {with_holes} after {without_holes}");
    shell(
        &place.mnt(),
        "cp --sparse=auto holes sparse; cmp holes sparse; cp --sparse=never another full; cmp another full",
    );
    for name in ["dense", "sparse"] {
        let meta = std::fs::metadata(mounted.path(name)).unwrap();
        assert_eq!(meta.len(), 128 << 20);
    }
    mounted.umount();
}
