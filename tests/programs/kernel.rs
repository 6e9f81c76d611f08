//! What programs ask of the kernel about files here: locks, watches, mappings, direct I/O.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use crate::support::mounted::Place;
use crate::support::run::{installed, shell};
use crate::support::tree::noise;

#[test]
fn flock_and_record_locks_exclude_others() {
    if !installed(&["flock", "python3"]) {
        return;
    }
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    shell(
        &place.mnt(),
        "exec 3> lock; flock -n 3; if flock -n lock true; then exit 9; fi; flock -u 3; flock -n lock true
         echo 0 > counter
         add() { for i in $(seq 25); do flock lock sh -c 'n=$(cat counter); echo $((n + 1)) > counter'; done; }
         add & add & add & wait; test $(cat counter) = 75
         python3 - <<'END'\nimport fcntl, os\nf = open('records', 'wb+'); f.write(b'x' * 100); f.flush()\nfcntl.lockf(f, fcntl.LOCK_EX, 10, 20)\nchild = os.fork()\nif child == 0:\n    g = open('records', 'rb+')\n    fcntl.lockf(g, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)\n    try:\n        fcntl.lockf(g, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 25)\n        os._exit(1)\n    except OSError:\n        os._exit(0)\nassert os.waitpid(child, 0)[1] == 0\nEND",
    );
    mounted.umount();
}

#[test]
fn watchers_see_what_others_do() {
    use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let watcher = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap();
    let flags = WatchFlags::CREATE | WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_FROM | WatchFlags::MOVED_TO;
    inotify::add_watch(&watcher, place.mnt(), flags | WatchFlags::DELETE | WatchFlags::ATTRIB | WatchFlags::MODIFY)
        .unwrap();
    shell(&place.mnt(), "echo x > a; mv a b; chmod 600 b; rm b");
    let mut buffer = [const { std::mem::MaybeUninit::uninit() }; 4096];
    let mut reader = inotify::Reader::new(&watcher, &mut buffer);
    let mut seen = Vec::new();
    while let Ok(event) = reader.next() {
        let name = event.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        seen.push((event.events(), name));
    }
    let expected = [
        (ReadFlags::CREATE, "a"),
        (ReadFlags::MODIFY, "a"),
        (ReadFlags::CLOSE_WRITE, "a"),
        (ReadFlags::MOVED_FROM, "a"),
        (ReadFlags::MOVED_TO, "b"),
        (ReadFlags::ATTRIB, "b"),
        (ReadFlags::DELETE, "b"),
    ];
    let seen: Vec<(ReadFlags, &str)> = seen.iter().map(|(flags, name)| (*flags, name.as_str())).collect();
    assert_eq!(seen, expected);
    mounted.umount();
}

#[test]
fn stores_into_a_mapping_after_the_close_of_its_descriptor_arrive() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let path = mounted.path("mapped");
    let mut expected = noise(1, 300_000);
    std::fs::write(&path, &expected).unwrap();
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    // SAFETY: nobody makes the file shorter meanwhile.
    let mut map = unsafe { memmap2::MmapMut::map_mut(&file).unwrap() };
    drop(file);
    map[100_000..100_005].copy_from_slice(b"first");
    expected[100_000..100_005].copy_from_slice(b"first");
    assert!(std::fs::read(&path).unwrap() == expected, "another descriptor sees it");
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0);
    map[299_990..299_996].copy_from_slice(b"second");
    expected[299_990..299_996].copy_from_slice(b"second");
    map.flush().unwrap();
    map[5..10].copy_from_slice(b"third");
    expected[5..10].copy_from_slice(b"third");
    drop(map);
    assert!(std::fs::read(&path).unwrap() == expected);
    mounted.umount();
    let restored = place.restore("restored", &[place.uri("a")]);
    assert_eq!(restored.code, 0, "{}", restored.stderr);
    let mounted = place.mount_read_only("restored");
    assert!(std::fs::read(&path).unwrap() == expected, "restored");
    mounted.umount();
}

#[test]
fn direct_appending_and_synced_descriptors_do_what_they_say() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let path = mounted.path("direct");
    let direct = File::options().read(true).write(true).create(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    // Aligned in memory, length and place, as O_DIRECT wants it elsewhere.
    let mut pages = memmap2::MmapMut::map_anon(64 << 10).unwrap();
    pages.copy_from_slice(&noise(2, 64 << 10));
    direct.write_all_at(&pages, 128 << 10).unwrap();
    let mut cached = File::open(&path).unwrap();
    let mut seen = Vec::new();
    cached.read_to_end(&mut seen).unwrap();
    assert!(seen[..128 << 10].iter().all(|&byte| byte == 0) && seen[128 << 10..] == pages[..]);
    File::options().write(true).open(&path).unwrap().write_all_at(b"through the cache", 130 << 10).unwrap();
    direct.read_exact_at(&mut pages, 128 << 10).unwrap();
    assert_eq!(&pages[2 << 10..][..17], b"through the cache");
    drop((direct, cached));

    // Appenders never overwrite each other.
    let path = mounted.path("log");
    std::thread::scope(|scope| {
        for writer in 0..4u8 {
            let path = &path;
            scope.spawn(move || {
                let mut log = File::options().append(true).create(true).open(path).unwrap();
                for _ in 0..200 {
                    log.write_all(&[b'a' + writer; 37]).unwrap();
                }
            });
        }
    });
    let log = std::fs::read(&path).unwrap();
    assert_eq!(log.len(), 4 * 200 * 37);
    assert!(log.chunks(37).all(|record| record.iter().all(|byte| *byte == record[0])), "records are mixed");

    for flag in [libc::O_SYNC, libc::O_DSYNC] {
        let synced = File::options().append(true).create(true).custom_flags(flag).open(mounted.path("synced")).unwrap();
        assert_eq!(rustix::io::write(&synced, b"record").unwrap(), 6);
        assert!(synced.as_raw_fd() >= 0);
    }
    assert_eq!(std::fs::read(mounted.path("synced")).unwrap(), b"recordrecord");
    mounted.umount();
}
