//! The local cache keeps to its limit (D1, D2) and never gives up what is not placed (promise 2).

use std::io::Write;
use std::os::unix::fs::MetadataExt;

use crate::support::mounted::{Place, wait_for};
use crate::support::tree::{files_below, noise};

/// The smallest limit there is.
const LIMIT_MIB: u64 = 64;

/// A place whose mounts read their targets and the limit from a file. Writers wait for room so long.
fn limited(wait: &str) -> (Place, std::path::PathBuf) {
    let place = Place::new(&[]);
    let config = place.path("tandemfs.toml");
    let text = format!(
        "chunk_size = \"1 MiB\"\n[cache]\nlimit = \"{LIMIT_MIB} MiB\"\nwait = \"{wait}\"\n[target.a]\nuri = \"fs://{}\"\n[target.b]\nuri = \"fs://{}\"\n",
        place.path("a").display(),
        place.path("b").display()
    );
    std::fs::write(&config, text).unwrap();
    (place, config)
}

/// Bytes that chunk files take on disk.
fn local_bytes(place: &Place) -> u64 {
    let files = ["state/chunks", "state/fetched"].map(|name| files_below(&place.path(name)));
    files.iter().flatten().map(|(_, file)| file.blocks() * 512).sum()
}

#[test]
fn d1_placed_content_leaves_and_comes_back_when_read() {
    let (place, config) = limited("10m");
    let mounted = place.mount_with("state", &["--config".as_ref(), config.as_os_str()]);
    for index in 0..40 {
        std::fs::write(mounted.path(&format!("f{index}")), noise(index + 1, 4 << 20)).unwrap();
    }
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0);
    wait_for("the cache is within its limit", || local_bytes(&place) <= LIMIT_MIB << 20);
    for index in 0..40 {
        let content = std::fs::read(mounted.path(&format!("f{index}"))).unwrap();
        assert!(content == noise(index + 1, 4 << 20), "f{index} comes back");
    }
    // What was fetched last may still be coming in while others leave.
    wait_for("the cache is within its limit again", || local_bytes(&place) <= LIMIT_MIB << 20);
    mounted.umount();
}

#[test]
fn d2_unplaced_content_fills_the_cache_until_enospc_and_nothing_is_dropped() {
    let (place, config) = limited("10s");
    let mounted = place.mount_with("state", &["--config".as_ref(), config.as_os_str()]);
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0);
    for target in ["a", "b"] {
        std::fs::rename(place.path(target), place.path(&format!("{target}-away"))).unwrap();
    }
    let mut written = 0;
    let refused = loop {
        assert!(written < 2 * LIMIT_MIB, "{written} MiB went into a cache of {LIMIT_MIB}");
        let path = mounted.path(&format!("f{written}"));
        match std::fs::File::create(&path).and_then(|mut file| file.write_all(&noise(written + 1, 1 << 20))) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC), "{refused}");
    assert!(written >= LIMIT_MIB / 2, "only {written} MiB fit");
    for index in 0..written {
        assert!(std::fs::read(mounted.path(&format!("f{index}"))).unwrap() == noise(index + 1, 1 << 20), "f{index}");
    }
    for target in ["a", "b"] {
        std::fs::rename(place.path(&format!("{target}-away")), place.path(target)).unwrap();
    }
    wait_for("writes go again", || std::fs::write(mounted.path("again"), noise(99, 1 << 20)).is_ok());
    mounted.umount();
}
