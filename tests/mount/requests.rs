//! How often the kernel has to ask: requests of one mount, as `status` counts them.
//!
//! What else asks there, if anything, does so a few times; each bound leaves room for it, and is far from what comes
//! without the thing under test.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use crate::support::mounted::{Mounted, Place};
use crate::support::run::{shell, skipped};
use crate::support::tree::noise;

const FILES: u64 = 300;

/// The requests since a moment, by operation.
struct Since<'a>(&'a Mounted<'a>, BTreeMap<String, u64>);

impl<'a> Since<'a> {
    fn now(mounted: &'a Mounted<'a>) -> Since<'a> {
        Since(mounted, counts(mounted))
    }

    fn count(&self, operation: &str) -> u64 {
        counts(self.0).get(operation).unwrap_or(&0) - self.1.get(operation).unwrap_or(&0)
    }
}

fn counts(mounted: &Mounted<'_>) -> BTreeMap<String, u64> {
    serde_json::from_value(mounted.status()["requests"].clone()).unwrap()
}

#[test]
fn a_request_carries_a_mebibyte() {
    const LENGTH: usize = 8 << 20;
    let place = Place::new(&["a"]);
    let plain: [&std::ffi::OsStr; 2] = ["-o".as_ref(), "no_passthrough".as_ref()];
    let mounted = place.mount_with("state", &plain);
    let bytes = noise(1, LENGTH);
    let since = Since::now(&mounted);
    std::fs::File::create(mounted.path("file")).unwrap().write_all(&bytes).unwrap();
    let writes = since.count("write");
    assert!((8..=12).contains(&writes), "8 MiB are written by {writes} requests");
    mounted.umount();

    // The kernel has nothing of it now.
    let mounted = place.mount_with("state", &plain);
    let device = rustix::fs::stat(place.mnt()).unwrap().st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let ahead = std::fs::read_to_string(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb")).unwrap_or_default();
    if ahead.trim().parse::<u64>().is_ok_and(|kib| kib >= 1024) {
        let since = Since::now(&mounted);
        let mut read = Vec::with_capacity(LENGTH);
        std::fs::File::open(mounted.path("file")).unwrap().read_to_end(&mut read).unwrap();
        let reads = since.count("read");
        assert!(read == bytes);
        assert!((8..=16).contains(&reads), "8 MiB are read by {reads} requests");
    } else {
        skipped(&format!("the kernel reads ahead {:?} KiB, and nobody may tell it otherwise", ahead.trim()));
    }
    mounted.umount();
}

#[test]
fn listing_a_tree_asks_for_no_file_and_listing_it_again_for_nothing() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    for number in 0..FILES {
        let directory = mounted.path(&format!("d{}", number % 3));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join(format!("a file with a name {number}")), "x").unwrap();
    }
    mounted.umount();

    let mounted = place.mount();
    let list = || shell(&place.mnt(), "ls -lR | grep -c 'a file with a name'");
    let since = Since::now(&mounted);
    assert_eq!(list().trim(), FILES.to_string());
    assert!(since.count("readdirplus") > 0);
    let (lookups, getattrs) = (since.count("lookup"), since.count("getattr"));
    assert!(lookups < FILES / 3 && getattrs < FILES / 3, "{lookups} LOOKUP, {getattrs} GETATTR");

    let since = Since::now(&mounted);
    assert_eq!(list().trim(), FILES.to_string());
    let (lookups, getattrs, xattrs) = (since.count("lookup"), since.count("getattr"), since.count("getxattr"));
    assert!(lookups < FILES / 10 && getattrs < FILES / 10, "again: {lookups} LOOKUP, {getattrs} GETATTR");
    assert!(xattrs < FILES / 10, "again: {xattrs} GETXATTR");
    mounted.umount();
}
