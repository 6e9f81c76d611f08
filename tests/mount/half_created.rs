//! `open(O_CREAT)` that makes its file and fails to open it.

use std::fs::File;

use crate::support::mounted::{Place, wait_for};
use crate::support::tree::{self, Depth, assert_same};

/// The kernel remembers for a year that a name is not there.
#[test]
fn a_create_that_fails_half_way_leaves_no_name_that_only_some_see() {
    let mut place = Place::new(&["a"]);
    place.set_env("TANDEMFS_FAILPOINT", "create:2=eio");
    let mounted = place.mount();
    let (first, path) = (mounted.path("first"), mounted.path("half"));
    File::create(first).unwrap();
    let errno = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
    assert_eq!(errno(std::fs::metadata(&path).map(drop)), Some(libc::ENOENT));
    assert_eq!(errno(File::create(&path).map(drop)), Some(libc::EIO));
    let names = || std::fs::read_dir(place.mnt()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!(names(), ["first"]);
    assert_eq!(errno(std::fs::metadata(&path).map(drop)), Some(libc::ENOENT));
    File::options().write(true).create_new(true).open(&path).unwrap();
    wait_for("both are listed", || names() == ["first", "half"]);
    let tree = tree::read(&place.mnt(), Depth::Restored);
    mounted.umount();
    assert_eq!(place.restore("restored", &[place.uri("a")]).code, 0);
    let restored = place.mount_read_only("restored");
    assert_same("restored", &tree, &tree::read(&place.mnt(), Depth::Restored));
    restored.umount();
}
