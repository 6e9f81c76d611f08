//! Small reads here and there in large files that left the cache: a part of a chunk moves, checked like the whole.

use std::os::unix::fs::FileExt;

use crate::stage::{Stage, contents};
use crate::support::mounted::wait_for;
use crate::support::proxy::Proxy;
use crate::support::tree::noise;

/// Bytes of a file, one chunk each.
const CHUNK: usize = 4 << 20;
/// More than the cache takes.
const FILES: u64 = 22;

#[test]
fn a_small_read_of_a_large_chunk_moves_a_part_of_it_and_wrong_parts_are_not_served() {
    let mut stage = Stage::new(&["cloud"]);
    let proxy = Proxy::to(stage.server.address());
    let cloud =
        stage.bucket("cloud", "s3://cloud/p").replace(&stage.server.endpoint, &format!("http://{}", proxy.address));
    stage.configure("config.toml", &["[cache]\nlimit = \"64 MiB\"\n".to_owned(), cloud, stage.directory("disk")]);
    let mounted = stage.place.mount();
    for index in 0..FILES {
        std::fs::write(mounted.path(&format!("f{index}")), noise(index, CHUNK)).unwrap();
    }
    assert_eq!(mounted.command("flush", &["--timeout", "300"]).code, 0);
    // By the next mount everything must be on record that reads rest on, and the kernel has forgotten what it held.
    wait_for("the cache is within its limit", || mounted.status()["cache"]["used_bytes"].as_u64().unwrap() <= 64 << 20);
    mounted.umount();
    let mounted = stage.place.mount();
    wait_for("every target is in contact", || mounted.status()["safe"] == true);
    let used = mounted.status()["cache"]["used_bytes"].as_u64().unwrap();
    let gone = FILES - used / CHUNK as u64;
    assert!(gone >= FILES - 16, "only {gone} files left the cache");

    let read_all = |offset: usize| {
        for index in 0..FILES {
            let file = std::fs::File::open(mounted.path(&format!("f{index}"))).unwrap();
            let mut buffer = [0; 4096];
            file.read_exact_at(&mut buffer, offset as u64).unwrap();
            assert!(buffer == noise(index, CHUNK)[offset..offset + 4096], "f{index} at {offset}");
        }
    };
    let before = proxy.answered();
    read_all(3 << 20);
    let moved = proxy.answered() - before;
    // A part that is late is given up for the whole chunk, on a slow machine: never for every one of them.
    assert!(moved >= 256 << 10 && moved < gone * CHUNK as u64, "{moved} bytes moved for {gone} files");
    let mut spoiled = 0;
    for (path, bytes) in contents(&stage.bucket_path("cloud")) {
        if let Some(mut bytes) = bytes.filter(|bytes| bytes.len() == CHUNK) {
            bytes[(1 << 20) + 10] ^= 1;
            std::fs::write(path, bytes).unwrap();
            spoiled += 1;
        }
    }
    assert_eq!(spoiled, FILES);
    read_all(1 << 20);
    mounted.umount();
}
