//! Files with holes: what `stat`, `du` and `cp` make of them is what they make of them on a local disk.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::support::mounted::Place;
use crate::support::run::program;
use crate::support::tree::noise;

const SIZE: u64 = 1 << 30;
const DATA_AT: u64 = 512 << 20;
const DATA: usize = 1 << 20;

/// Size and blocks of `path`, which `du` adds up; a copy by `cp`, which looks at them first, has holes where it had.
fn check(when: &str, path: &Path, copy: &Path) {
    let metadata = std::fs::metadata(path).unwrap();
    assert_eq!((metadata.len(), metadata.blocks() * 512), (SIZE, DATA as u64), "{when}");
    let told = program("du", ["-B1".as_ref(), path.as_os_str()]);
    assert!(told.starts_with(&format!("{DATA}\t")), "{when}: du says {told}");
    program("cp", ["--sparse=auto".as_ref(), path.as_os_str(), copy.as_os_str()]);
    let copied = std::fs::File::open(copy).unwrap();
    let metadata = copied.metadata().unwrap();
    assert!(
        metadata.len() == SIZE && metadata.blocks() * 512 < 2 * DATA as u64,
        "{when}: {} blocks",
        metadata.blocks()
    );
    let mut bytes = vec![0; DATA];
    copied.read_exact_at(&mut bytes, DATA_AT).unwrap();
    assert!(bytes == noise(1, DATA), "{when}: the bytes between the holes");
}

#[test]
fn a_sparse_file_takes_as_many_blocks_as_it_has_and_is_copied_sparse() {
    let place = Place::new(&["a"]);
    let copy = place.path("copy");
    let mounted = place.mount();
    let path = mounted.path("sparse");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(SIZE).unwrap();
    file.write_all_at(&noise(1, DATA), DATA_AT).unwrap();
    drop(file);
    let preallocated = std::fs::File::create(mounted.path("preallocated")).unwrap();
    rustix::fs::fallocate(&preallocated, rustix::fs::FallocateFlags::empty(), 0, 8 << 20).unwrap();
    assert!(preallocated.metadata().unwrap().blocks() * 512 >= 8 << 20);
    drop(preallocated);
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0);
    check("sealed", &path, &copy);
    // What the kernel was told before the seal counts no more.
    crate::support::mounted::wait_for("unwritten ranges are holes", || {
        std::fs::metadata(mounted.path("preallocated")).unwrap().blocks() == 0
    });
    // An edit in place, of half of the data and of a hole.
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&noise(1, DATA)[..DATA / 2], DATA_AT).unwrap();
    file.write_all_at(&[7; 4096], 4096).unwrap();
    rustix::fs::fallocate(
        &file,
        rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
        4096,
        4096,
    )
    .unwrap();
    let live = file.metadata().unwrap().blocks() * 512;
    assert!(live >= DATA as u64 && live <= 64 * DATA as u64, "{live} bytes while it is edited");
    drop(file);
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0);
    crate::support::mounted::wait_for("the kernel asks for the blocks again", || {
        std::fs::metadata(&path).unwrap().blocks() * 512 == DATA as u64
    });
    check("edited", &path, &copy);
    mounted.umount();
    let mounted = place.mount();
    check("mounted again", &path, &copy);
    mounted.umount();
    assert_eq!(place.restore("restored", &[place.uri("a")]).code, 0);
    let mounted = place.mount_state("restored");
    check("restored, nothing of it local", &path, &copy);
    mounted.umount();
}
