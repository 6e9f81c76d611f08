//! What is uploaded: what changed, gathered, and nothing twice (DESIGN §3).

use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::support::mounted::{Mounted, Place};
use crate::support::tree::noise;

/// Number and bytes of the chunk objects on a target.
fn chunks(target: &Path) -> (usize, u64) {
    let shards = std::fs::read_dir(target.join("chunks")).into_iter().flatten().flatten();
    shards
        .flat_map(|shard| std::fs::read_dir(shard.path()).unwrap())
        .fold((0, 0), |(count, bytes), object| (count + 1, bytes + object.unwrap().metadata().unwrap().len()))
}

fn flush(mounted: &Mounted<'_>) {
    let flushed = mounted.command("flush", &["--wait", "all", "--timeout", "600"]);
    assert_eq!(flushed.code, 0, "{}\n{}", flushed.stderr, mounted.log());
}

#[test]
fn an_overwrite_of_4_kib_uploads_kilobytes_and_a_thousand_at_most_8_mib() {
    let place = Place::new(&["a", "b"]);
    let mounted = place.mount();
    let path = mounted.path("large");
    let bytes: u64 = 128 << 20;
    let large = std::fs::File::create(&path).unwrap();
    for block in 0..bytes >> 20 {
        large.write_all_at(&noise(block + 1, 1 << 20), block << 20).unwrap();
    }
    drop(large);
    flush(&mounted);
    for (edits, most) in [(1u64, 64u64 << 10), (1000, 8 << 20)] {
        let before = ["a", "b"].map(|target| chunks(&place.path(target)).1);
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        for edit in 0..edits {
            let block = (edit + edits).wrapping_mul(0x9e37_79b9_7f4a_7c15) % (bytes / 4096);
            file.write_all_at(&noise(edit + 9, 4096), block * 4096).unwrap();
        }
        drop(file);
        flush(&mounted);
        for (target, before) in ["a", "b"].into_iter().zip(before) {
            let uploaded = chunks(&place.path(target)).1 - before;
            assert!((4096..=most).contains(&uploaded), "{edits} edits uploaded {uploaded} bytes to {target}");
        }
    }
    mounted.umount();
}

#[test]
fn s9_five_thousand_small_files_arrive_as_at_most_200_objects() {
    let place = Place::new(&["a", "b"]);
    let mounted = place.mount();
    for index in 0..5000u64 {
        let dir = mounted.path(&format!("d{:03}", index % 200));
        std::fs::create_dir_all(&dir).unwrap();
        let length = 4096 + (index * 7919) % (60 << 10);
        std::fs::write(dir.join(format!("f{index}")), noise(index + 1, length as usize)).unwrap();
    }
    flush(&mounted);
    for target in ["a", "b"] {
        let (objects, _) = chunks(&place.path(target));
        assert!((40..=200).contains(&objects), "{objects} chunk objects on {target}");
    }
    mounted.umount();
}

#[test]
fn the_same_large_content_twice_uploads_once() {
    let place = Place::new(&["a", "b"]);
    let mounted = place.mount();
    let content = noise(4, 16 << 20);
    std::fs::write(mounted.path("one"), &content).unwrap();
    flush(&mounted);
    let before = chunks(&place.path("a"));
    std::fs::write(mounted.path("two"), &content).unwrap();
    flush(&mounted);
    assert_eq!(chunks(&place.path("a")), before);
    assert!(std::fs::read(mounted.path("two")).unwrap() == content);
    mounted.umount();
}
