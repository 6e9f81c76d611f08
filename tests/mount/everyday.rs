//! What handles and links promise, beyond what a copied tree shows.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::support::mounted::Place;
use crate::support::run::{installed, shell};
use crate::support::tree::noise;

#[test]
fn unlinked_open_files_hold_their_bytes_and_links_share_them() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let path = mounted.path("a");
    std::fs::write(&path, b"content").unwrap();
    std::fs::hard_link(&path, mounted.path("b")).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().nlink(), 2);
    let mut open = File::options().read(true).write(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::remove_file(mounted.path("b")).unwrap();
    open.seek(SeekFrom::End(0)).unwrap();
    open.write_all(b" and more").unwrap();
    let mut content = String::new();
    open.rewind().unwrap();
    open.read_to_string(&mut content).unwrap();
    assert_eq!(content, "content and more");
    assert_eq!(open.metadata().unwrap().nlink(), 0);
    drop(open);
    mounted.umount();
    let mounted = place.mount();
    assert_eq!(std::fs::read_dir(place.mnt()).unwrap().count(), 0);
    mounted.umount();
}

#[test]
fn a_part_of_a_large_file_is_overwritten_in_every_layer() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let path = mounted.path("large");
    let mut expected = noise(7, 20 << 20);
    std::fs::write(&path, &expected).unwrap();
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    for (index, offset) in [5usize, 4 << 20, (8 << 20) - 3, 12_345_678].into_iter().enumerate() {
        let patch = noise(index as u64 + 50, 6000);
        file.write_all_at(&patch, offset as u64).unwrap();
        expected[offset..offset + patch.len()].copy_from_slice(&patch);
    }
    assert!(std::fs::read(&path).unwrap() == expected, "before the close");
    drop(file);
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0);
    assert!(std::fs::read(&path).unwrap() == expected, "after the commit");
    mounted.umount();
    let mounted = place.mount();
    assert!(std::fs::read(&path).unwrap() == expected, "mounted again");
    mounted.umount();
}

#[test]
fn git_works_on_the_mount() {
    if !installed(&["git"]) {
        return;
    }
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    shell(
        &place.mnt(),
        "export HOME=$PWD GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_COUNT=2 GIT_CONFIG_KEY_0=gc.autoDetach
         export GIT_CONFIG_VALUE_0=false GIT_CONFIG_KEY_1=maintenance.autoDetach GIT_CONFIG_VALUE_1=false; git init -q repo; cd repo; git config user.email t@example.com
         git config user.name t; cp -r \"$CARGO_MANIFEST_DIR/src\" .; git add -A; git commit -qm one; git gc -q
         git fsck --strict; git clone -q . ../clone; test -z \"$(git -C ../clone status --porcelain)\"",
    );
    mounted.umount();
}
