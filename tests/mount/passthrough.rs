//! Files that the kernel writes and reads by itself (P1–P6, S4): every mix of opens, as programs see it, and what reaches
//! the targets.
//!
//! Nothing tells a program whether its descriptor is passthrough. What tells the tests is [`outlives_the_daemon`]: such a
//! descriptor goes on writing when the daemon is dead.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::mounted::{Mounted, Place, wait_for};
use crate::support::run::{program, shell, succeed};
use crate::support::tree::noise;

const MIB: usize = 1 << 20;

pub fn create(path: &Path) -> File {
    OpenOptions::new().write(true).create(true).truncate(true).open(path).unwrap()
}

pub fn edit(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// A mapping that does not hold on to its descriptor.
pub struct Mapping {
    address: *mut libc::c_void,
    length: usize,
}

impl Mapping {
    fn new(file: &File, length: usize) -> Mapping {
        Mapping::with(file, length, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// One that cannot be written through.
    pub fn reading(file: &File, length: usize) -> Mapping {
        Mapping::with(file, length, libc::PROT_READ)
    }

    fn with(file: &File, length: usize, protection: i32) -> Mapping {
        let null = std::ptr::null_mut();
        // SAFETY: a fresh mapping of an open file.
        let address = unsafe { libc::mmap(null, length, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(address, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Mapping { address, length }
    }

    /// What it shows; the file is at least as long.
    pub fn bytes(&self, offset: usize, length: usize) -> &[u8] {
        assert!(offset + length <= self.length);
        // SAFETY: inside the mapping. The bytes may change under us, as in any shared mapping; they are only compared.
        unsafe { std::slice::from_raw_parts(self.address.cast::<u8>().add(offset), length) }
    }

    fn store(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.length);
        // SAFETY: inside the mapping; the file is not cut below it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.address.cast::<u8>().add(offset), bytes.len()) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the mapping any more.
        unsafe { libc::munmap(self.address, self.length) };
    }
}

/// Everything on target `a`, restored and read through a mount of its own, is as `expected`.
pub fn assert_restored(place: &Place, expected: &[(&str, &[u8])]) {
    assert_eq!(place.restore("restored", &[place.uri("a")]).code, 0);
    let mounted = place.mount_read_only("restored");
    for (name, bytes) in expected {
        assert!(std::fs::read(mounted.path(name)).unwrap() == *bytes, "{name} on the target");
    }
    mounted.umount();
}

fn attention(mounted: &Mounted<'_>, kind: &str) -> Option<serde_json::Value> {
    mounted.status()["attention"].as_array().unwrap().iter().find(|found| found["kind"] == kind).cloned()
}

#[test]
fn p1_a_copy_is_written_by_the_kernel_and_a_descriptor_that_outlives_the_daemon_harms_nothing() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let path = mounted.path("f");
    let mut orphan = create(&path);
    let acknowledged = noise(1, 3 * MIB);
    orphan.write_all(&acknowledged).unwrap();
    // A close of a duplicate: from here on nothing of it may be lost.
    drop(orphan.try_clone().unwrap());
    mounted.kill();
    orphan.write_all(b"written after the daemon was killed").unwrap();
    let mounted = place.mount();
    let adopted = std::fs::read(&path).unwrap();
    assert!(adopted.starts_with(&acknowledged), "what was acknowledged is there");
    for round in 0..20 {
        // On ext4 it gets EPERM from now on; elsewhere it writes into a file that is nobody's any more.
        let _ = orphan.write_all_at(format!("beside the next daemon {round}").as_bytes(), 0);
    }
    assert!(std::fs::read(&path).unwrap() == adopted, "the file is no longer the descriptor's");
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0);
    let _ = orphan.write_all_at(b"after the seal", 0);
    mounted.umount();
    drop(orphan);
    // Nothing of it is in the kernel's cache now: what is read comes from the local file.
    let mounted = place.mount();
    assert!(std::fs::read(&path).unwrap() == adopted, "no byte of it got into the sealed file");
    let quarantined = || std::fs::read_dir(place.path("state/quarantine")).map_or(0, Iterator::count);
    wait_for("S7: what it wrote is kept", || quarantined() > 0);
    assert_eq!(quarantined(), 1);
    mounted.umount();
    assert_restored(&place, &[("f", &adopted)]);
}

/// Why the mount is served by requests, as `status` says.
fn why_not(mounted: &Mounted<'_>) -> Option<String> {
    mounted.status()["filesystem"].get("no_passthrough").map(|why| why.as_str().unwrap().to_owned())
}

#[test]
fn without_passthrough_nothing_is_written_once_the_daemon_is_dead() {
    let place = Place::new(&["a"]);
    let mounted = place.mount_with("state", &["-o".as_ref(), "no_passthrough".as_ref()]);
    assert_eq!(why_not(&mounted), None, "it is as was asked for");
    // Who reads by requests is to wait for few of them.
    let device = std::fs::metadata(place.mnt()).unwrap().dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let ahead = std::fs::read_to_string(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb")).unwrap();
    assert_eq!(ahead.trim(), "2048");
    let mut file = create(&mounted.path("f"));
    file.write_all(b"bytes").unwrap();
    mounted.kill();
    assert!(file.write_all(b"more").is_err(), "the option turns it off");
}

#[test]
fn p2_a_file_is_read_while_it_is_created() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let path = mounted.path("f");
    let mut writer = create(&path);
    let content = noise(2, 2 * MIB);
    let mut reader = File::open(&path).unwrap();
    for part in content.chunks(100_000) {
        writer.write_all(part).unwrap();
        let mut seen = vec![0; part.len()];
        reader.read_exact(&mut seen).unwrap();
        assert!(seen == part, "a reader sees what was just written");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), writer.stream_position().unwrap());
    }
    drop(writer);
    assert!(std::fs::read(&path).unwrap() == content);
    drop(reader);
    assert!(std::fs::read(&path).unwrap() == content);
    mounted.umount();
    assert_restored(&place, &[("f", &content)]);
}

#[test]
fn p2_more_writers_of_every_kind_join() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let path = mounted.path("f");
    let first = create(&path);
    first.write_all_at(&[b'a'; 100], 0).unwrap();
    let second = edit(&path);
    second.write_all_at(b"second", 10).unwrap();
    let synced = OpenOptions::new().write(true).custom_flags(libc::O_SYNC).open(&path).unwrap();
    synced.write_all_at(b"synced", 20).unwrap();
    let mut appending = OpenOptions::new().append(true).open(&path).unwrap();
    appending.write_all(b"appended").unwrap();
    let direct = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    direct.write_all_at(b"unaligned", 33).unwrap();
    let mut expected = vec![b'a'; 100];
    expected[10..16].copy_from_slice(b"second");
    expected[20..26].copy_from_slice(b"synced");
    expected[33..42].copy_from_slice(b"unaligned");
    expected.extend_from_slice(b"appended");
    let mut seen = Vec::new();
    File::open(&path).unwrap().read_to_end(&mut seen).unwrap();
    assert_eq!(seen, expected);
    second.set_len(50).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 50);
    let map = Mapping::new(&second, 50);
    map.store(0, b"mapped");
    expected.truncate(50);
    expected[..6].copy_from_slice(b"mapped");
    drop((map, first, second, synced, appending, direct));
    assert_eq!(std::fs::read(&path).unwrap(), expected);
    mounted.umount();
    assert_restored(&place, &[("f", &expected)]);
}

#[test]
fn p2_an_open_that_truncates_while_readers_hold_the_file() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let path = mounted.path("f");
    std::fs::write(&path, noise(3, 5 * MIB)).unwrap();
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0);
    let reader = File::open(&path).unwrap();
    let mut buffer = [0; 10];
    reader.read_exact_at(&mut buffer, 4 * MIB as u64).unwrap();
    for round in 0..3_u8 {
        let content = vec![round; 1000];
        std::fs::write(&path, &content).unwrap();
        assert_eq!(reader.metadata().unwrap().len(), 1000);
        let mut seen = vec![9; 2000];
        assert_eq!(reader.read_at(&mut seen, 0).unwrap(), 1000);
        assert_eq!(&seen[..1000], &content);
    }
    drop(reader);
    assert_eq!(std::fs::read(&path).unwrap(), [2; 1000]);
    mounted.umount();
    assert_restored(&place, &[("f", &[2; 1000])]);
}

#[test]
fn s4_a_mapping_that_outlives_its_descriptor_is_waited_for() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let path = mounted.path("f");
    let mut writer = create(&path);
    writer.write_all(&noise(4, MIB)).unwrap();
    let map = {
        let mappable = edit(&path);
        Mapping::new(&mappable, MIB)
    };
    drop(writer);
    let before = std::fs::metadata(&path).unwrap();
    wait_for("status tells of the mapping", || attention(&mounted, "still_mapped").is_some());
    let found = attention(&mounted, "still_mapped").unwrap();
    assert_eq!((found["path"].as_str(), found["bytes"].as_u64()), (Some("f"), Some(MIB as u64)), "{found}");
    map.store(1000, b"stored after close");
    let mut expected = noise(4, MIB);
    expected[1000..1018].copy_from_slice(b"stored after close");
    assert!(std::fs::read(&path).unwrap() == expected, "a reader that comes now sees it");
    std::thread::sleep(std::time::Duration::from_millis(20));
    map.store(5000, b"and once more");
    expected[5000..5013].copy_from_slice(b"and once more");
    drop(map);
    wait_for("the file is sealed", || attention(&mounted, "still_mapped").is_none());
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0);
    assert!(std::fs::read(&path).unwrap() == expected);
    let after = std::fs::metadata(&path).unwrap();
    assert!((after.mtime(), after.mtime_nsec()) >= (before.mtime(), before.mtime_nsec()));
    mounted.umount();
    assert_restored(&place, &[("f", &expected)]);
}

#[test]
fn p6_attributes_are_those_of_the_written_file() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let path = mounted.path("f");
    let mut file = create(&path);
    let at_birth = file.metadata().unwrap();
    assert_eq!((at_birth.len(), at_birth.blocks()), (0, 0));
    file.write_all(&noise(5, 100_000)).unwrap();
    let written = std::fs::metadata(&path).unwrap();
    assert_eq!(written.len(), 100_000);
    assert!((written.mtime(), written.mtime_nsec()) >= (at_birth.mtime(), at_birth.mtime_nsec()));
    let past = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    file.set_modified(past).unwrap();
    assert_eq!(file.metadata().unwrap().modified().unwrap(), past);
    drop(file);
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0);
    assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), past, "a later close does not move it");
    let file = edit(&path);
    file.write_all_at(b"x", 0).unwrap();
    assert!(file.metadata().unwrap().modified().unwrap() > past, "a write does");
    drop(file);
    // What cp -p does, and what must come out of it.
    shell(&place.path(""), "echo original > o && touch -d '2001-02-03 04:05:06.7' o && cp -p o mnt/o");
    let (original, copy) = (std::fs::metadata(place.path("o")).unwrap(), std::fs::metadata(mounted.path("o")).unwrap());
    assert_eq!(original.modified().unwrap(), copy.modified().unwrap());
    mounted.umount();
}

#[test]
fn p6_set_id_bits_go_when_another_user_writes() {
    let place = Place::new(&["a"]);
    std::fs::set_permissions(place.path(""), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mounted = place.mount_with("state", &["-o".as_ref(), "allow_other".as_ref()]);
    let path = mounted.path("f");
    let mut file = create(&path);
    file.write_all(b"#!/bin/sh\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o6755)).unwrap();
    let output = Stdio::from(file.try_clone().unwrap());
    succeed(Command::new("printf").arg("by root").stdout(output));
    assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o6755, "root keeps them");
    let status = Command::new("printf").arg("by a user").uid(1000).gid(1000).stdout(file.try_clone().unwrap()).status();
    assert!(status.unwrap().success());
    assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o755);
    drop(file);
    assert_eq!(std::fs::read(&path).unwrap(), b"#!/bin/sh\nby rootby a user");
    mounted.umount();
}

#[test]
fn changes_of_size_and_holes_reach_a_file_that_the_kernel_writes() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let path = mounted.path("f");
    let mut file = create(&path);
    let mut expected = noise(6, 3 * MIB);
    file.write_all(&expected).unwrap();
    let fallocate = |mode, offset: i64, length| {
        // SAFETY: an open descriptor and numbers.
        let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, length) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    };
    fallocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 8192, 100_000);
    expected[8192..108_192].fill(0);
    fallocate(libc::FALLOC_FL_ZERO_RANGE, 200_000, 5000);
    expected[200_000..205_000].fill(0);
    fallocate(0, 0, 4 * MIB as i64);
    expected.resize(4 * MIB, 0);
    file.set_len(3 * MIB as u64 + 7).unwrap();
    expected.truncate(3 * MIB + 7);
    file.seek(SeekFrom::End(0)).unwrap();
    file.write_all(b"end").unwrap();
    expected.extend_from_slice(b"end");
    assert!(std::fs::read(&path).unwrap() == expected);
    // By name, while it is open.
    succeed(Command::new("truncate").args(["-s", "1000000"]).arg(&path));
    expected.truncate(1_000_000);
    assert_eq!(file.metadata().unwrap().len(), 1_000_000);
    drop(file);
    assert!(std::fs::read(&path).unwrap() == expected);
    mounted.umount();
    assert_restored(&place, &[("f", &expected)]);
}

#[test]
fn a_file_that_loses_its_name_while_the_kernel_writes_it() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let path = mounted.path("f");
    let mut file = create(&path);
    file.write_all(&noise(7, MIB)).unwrap();
    let reader = File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.write_all(b"more").unwrap();
    let mut end = [0; 4];
    reader.read_exact_at(&mut end, MIB as u64).unwrap();
    assert_eq!(&end, b"more");
    drop((file, reader));
    // The other way: replaced by a rename, as every careful program does.
    std::fs::write(&path, "old").unwrap();
    let old = File::open(&path).unwrap();
    let mut new = create(&mounted.path("f.tmp"));
    new.write_all(b"new content").unwrap();
    new.sync_all().unwrap();
    std::fs::rename(mounted.path("f.tmp"), &path).unwrap();
    new.write_all(b", continued").unwrap();
    drop(new);
    assert_eq!(std::fs::read(&path).unwrap(), b"new content, continued");
    let mut seen = [0; 3];
    old.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(&seen, b"old");
    drop(old);
    mounted.umount();
    assert_restored(&place, &[("f", b"new content, continued")]);
}

/// A place whose open files are committed soon.
fn impatient() -> Place {
    let mut place = Place::new(&[]);
    let config = place.path("config.toml");
    let uri = format!("fs://{}", place.path("a").display());
    let text = format!("rotate = \"1s\"\nrotate_synced = \"100ms\"\n[target.a]\nuri = {uri:?}\n");
    std::fs::write(&config, text).unwrap();
    place.use_config(&config);
    place.add_target("a", &uri);
    place
}

#[test]
fn p4_a_file_that_stays_open_reaches_the_targets() {
    let place = impatient();
    let mounted = place.mount();
    let mut log = create(&mounted.path("log"));
    let mut expected = Vec::new();
    for line in 0..3 {
        let bytes = noise(line + 10, 300_000);
        log.write_all(&bytes).unwrap();
        expected.extend_from_slice(&bytes);
        if line == 0 {
            log.sync_all().unwrap();
        }
        let safe = || mounted.status()["safe"] == true;
        wait_for("what is written is on the target while the file is open", safe);
        std::fs::write(mounted.path("marker"), [line as u8]).unwrap();
    }
    // Nothing that came after an fsync is held back by the file that stays open (O6).
    wait_for("so is what came after", || mounted.status()["safe"] == true);
    mounted.kill();
    assert_restored(&place, &[("log", &expected), ("marker", &[2])]);
    drop(log);
    let mounted = place.mount();
    assert!(std::fs::read(mounted.path("log")).unwrap() == expected);
    mounted.umount();
}

#[test]
fn p4_flush_takes_open_files_along() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let mut file = create(&mounted.path("f"));
    let content = noise(20, MIB);
    file.write_all(&content).unwrap();
    let finished = mounted.command("flush", &["--timeout", "600"]);
    assert_eq!(finished.code, 0, "{}\n{}", finished.stderr, mounted.log());
    file.write_all(b"later").unwrap();
    mounted.kill();
    assert_restored(&place, &[("f", &content)]);
    drop(file);
}

/// Threads open one file in every way at once; no open and no I/O may fail (P2).
#[test]
fn p2_a_hammer_of_opens_in_every_mode() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let rounds: usize = std::env::var("TANDEMFS_HAMMER").map_or(150, |rounds| rounds.parse().unwrap());
    let path = mounted.path("f");
    std::fs::write(&path, noise(30, 2 * MIB)).unwrap();
    let flags = [
        libc::O_RDONLY,
        libc::O_WRONLY | libc::O_TRUNC,
        libc::O_WRONLY,
        libc::O_RDWR,
        libc::O_RDWR | libc::O_TRUNC,
        libc::O_WRONLY | libc::O_APPEND,
        libc::O_RDWR | libc::O_SYNC,
        libc::O_RDONLY | libc::O_DIRECT,
        libc::O_WRONLY | libc::O_TRUNC | libc::O_CREAT,
    ];
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let (path, flags) = (&path, &flags);
            scope.spawn(move || {
                let random = noise(100 + thread, rounds * 2);
                for round in 0..rounds {
                    let kind = flags[usize::from(random[round]) % flags.len()];
                    let access = kind & libc::O_ACCMODE;
                    let file = OpenOptions::new()
                        .read(access != libc::O_WRONLY)
                        .write(access != libc::O_RDONLY)
                        .custom_flags(kind & !libc::O_ACCMODE)
                        .open(path)
                        .unwrap_or_else(|e| panic!("open with {kind:o}: {e}"));
                    if access != libc::O_RDONLY {
                        file.write_all_at(&random[..64], u64::from(random[round + rounds]) * 1000).unwrap();
                    }
                    if access == libc::O_RDWR && random[round] & 64 != 0 {
                        file.set_len(300_000).unwrap();
                        let map = Mapping::new(&file, 4096);
                        drop(file);
                        // Another thread may have cut the file: touching the mapping would be SIGBUS.
                        drop(map);
                    }
                }
            });
        }
    });
    let content = noise(31, MIB);
    std::fs::write(&path, &content).unwrap();
    assert!(std::fs::read(&path).unwrap() == content);
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0);
    assert!(std::fs::read(&path).unwrap() == content);
    mounted.umount();
    assert_restored(&place, &[("f", &content)]);
}

#[test]
fn p5_a_state_directory_on_overlayfs_is_served_by_requests() {
    let place = Place::new(&["a"]);
    for name in ["lower", "upper", "work", "merged"] {
        std::fs::create_dir(place.path(name)).unwrap();
    }
    let options = ["lower", "upper", "work"].map(|name| format!("{name}dir={}", place.path(name).display())).join(",");
    let merged = place.path("merged");
    program("mount", ["-t", "overlay", "overlay", "-o", &options, merged.to_str().unwrap()]);
    let mounted = place.mount_state("merged/state");
    let content = noise(40, MIB);
    std::fs::write(mounted.path("f"), &content).unwrap();
    assert!(std::fs::read(mounted.path("f")).unwrap() == content);
    assert!(why_not(&mounted).is_some(), "status says so too");
    let log = mounted.log();
    mounted.umount();
    program("umount", [merged.as_os_str()]);
    assert!(log.contains("no passthrough"), "{log}");
    assert_restored(&place, &[("f", &content)]);
}
