//! State directories of earlier versions, kept in `tests/fixtures/state-N`: they are mounted, lose nothing, and go on.
//!
//! `state-1` was written by version 0.1.0 on a machine that was lost while the daemon ran: two mounts, target `a` with all
//! but the last changes, target `b` that was never there.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::support::mounted::Place;
use crate::support::run::program;
use crate::support::tree::{self, Depth, assert_same};

fn check_contents(root: &Path) {
    let read = |name: &str| std::fs::read(root.join(name)).unwrap();
    assert_eq!(read("dir/hello"), b"Jello\n", "edited in the second mount");
    assert_eq!(read("dir/hard"), b"Jello\n");
    assert_eq!(std::fs::metadata(root.join("dir/hard")).unwrap().nlink(), 2);
    assert_eq!(read("dir/second"), b"second mount\n");
    let numbers: String = (1..=15000).map(|number| format!("{number}\n")).collect();
    assert_eq!(read("dir/sub/large"), numbers.as_bytes());
    assert_eq!(std::fs::read_link(root.join("dir/sub/link")).unwrap(), Path::new("../dir/hello"));
    let sparse = read("sparse");
    assert_eq!((sparse.len(), &sparse[500_000..500_006]), (1 << 20, &b"middle"[..]));
    assert_eq!(read("synced"), b"synced, and open when the daemon was killed\n");
    assert!(root.join("pipe2").exists() && !root.join("pipe").exists());
    let name = Path::new(std::ffi::OsStr::from_bytes(b"na\xffme"));
    assert_eq!(std::fs::read(root.join(name)).unwrap(), b"not utf-8\n");
    let mut value = [0; 8];
    assert_eq!(rustix::fs::getxattr(root.join("dir/hello"), "user.k", &mut value), Ok(1));
}

#[test]
fn a_state_directory_of_version_1_is_mounted_and_goes_on() {
    let place = Place::new(&["a", "b"]);
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/state-1");
    for name in ["state", "a"] {
        program("cp", ["-a".as_ref(), fixture.join(name).as_os_str(), place.path(name).as_os_str()]);
    }
    let mounted = place.mount();
    check_contents(&place.mnt());
    // Its size was on record, its bytes never were on disk for sure: the machine was lost.
    assert!(std::fs::metadata(place.mnt().join("last")).is_ok());
    std::fs::write(place.mnt().join("of today"), "now").unwrap();
    let tree = tree::read(&place.mnt(), Depth::Restored);
    mounted.umount();
    for name in ["a", "b"] {
        let state = format!("from-{name}");
        assert_eq!(place.restore(&state, &[place.uri(name)]).code, 0);
        let mounted = place.mount_read_only(&state);
        assert_same(&format!("restored from {name}"), &tree, &tree::read(&place.mnt(), Depth::Restored));
        mounted.umount();
    }
}
