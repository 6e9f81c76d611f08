//! Sealed files that the kernel reads by itself (P1, P3, P5): every mix with writers, as programs see it, and what reaches
//! the targets.
//!
//! Nothing tells a program whether its descriptor is passthrough. The write lease on the chunk file tells the tests: it is
//! refused while anybody has the file open or mapped, and the daemon keeps no descriptor of a file it has not read itself.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tandemfs::chunk::lease;
use tandemfs::testing::failpoint::VARIABLE;

use super::passthrough::{Mapping, assert_restored, create, edit};
use crate::support::mounted::{Mounted, Place, wait_for};
use crate::support::run::{finish, installed, program, shell, skipped, succeed};
use crate::support::tree::{noise, truncate};

const MIB: usize = 1 << 20;

fn flush(mounted: &Mounted<'_>) {
    let done = mounted.command("flush", &["--timeout", "600"]);
    assert_eq!(done.code, 0, "{}\n{}", done.stderr, mounted.log());
}

/// The chunk files of sessions.
fn chunk_files(state: &Path) -> Vec<PathBuf> {
    let folders = std::fs::read_dir(state.join("chunks")).unwrap().map(|folder| folder.unwrap().path());
    folders.flat_map(|folder| std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path())).collect()
}

/// How many of them somebody has open or mapped.
fn held(state: &Path) -> usize {
    let is_held = |path: &PathBuf| File::open(path).is_ok_and(|file| !lease::nobody_has(&file).unwrap());
    chunk_files(state).iter().filter(|path| is_held(path)).count()
}

/// A file of this content that is on the targets, and a descriptor that the kernel serves by itself.
fn lent(place: &Place, mounted: &Mounted<'_>, name: &str, content: &[u8]) -> File {
    std::fs::write(mounted.path(name), content).unwrap();
    flush(mounted);
    wait_for("nobody has it", || held(&place.path("state")) == 0);
    passthrough_reader(place, &mounted.path(name))
}

/// A passthrough descriptor for reading of the only file that has one. While files are evicted an open may get another.
fn passthrough_reader(place: &Place, path: &Path) -> File {
    let found = std::cell::RefCell::new(None);
    wait_for("an open gets the chunk file itself", || {
        *found.borrow_mut() = None;
        *found.borrow_mut() = Some(File::open(path).unwrap());
        held(&place.path("state")) == 1
    });
    found.into_inner().unwrap()
}

fn read_all(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn p1_a_large_image_is_read_by_the_kernel_and_a_small_file_by_requests() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let content = noise(1, 3 * MIB);
    std::fs::write(mounted.path("small"), noise(2, 100_000)).unwrap();
    let large = lent(&place, &mounted, "large", &content);
    let small = File::open(mounted.path("small")).unwrap();
    wait_for("only one of them is lent", || held(&place.path("state")) == 1);
    assert!(read_all(&large) == content);
    // A whole file is written anew elsewhere; an edit leaves no image.
    edit(&mounted.path("small")).write_all_at(b"x", 5).unwrap();
    mounted.kill();
    assert!(large.read_exact_at(&mut [0; 100], 2 * MIB as u64).is_ok(), "the descriptor outlives the daemon");
    assert!(small.read_exact_at(&mut [0; 100], 50_000).is_err());
    // The next daemon lends the same file again: its image is found by its rows.
    let mounted = place.mount();
    // Also the last file of the dead connection: that keeps what was registered with it.
    drop((large, small));
    wait_for("nobody has it", || held(&place.path("state")) == 0);
    let large = passthrough_reader(&place, &mounted.path("large"));
    assert!(read_all(&large) == content);
    drop(large);
    // Its RELEASE is on its way: an edit before that would thaw the image, and leave another.
    wait_for("nobody has it", || held(&place.path("state")) == 0);
    edit(&mounted.path("large")).write_all_at(b"edited", 1000).unwrap();
    flush(&mounted);
    let large = File::open(mounted.path("large")).unwrap();
    wait_for("its content lies in two files: nothing is lent", || held(&place.path("state")) == 0);
    assert!(read_all(&large)[1000..1006] == *b"edited");
    drop(large);
    mounted.umount();
}

#[test]
fn p1_holes_zeros_and_repeated_chunks_are_read_as_they_were_written() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let mut content = vec![0; 40 * MIB];
    content[3 * MIB..4 * MIB].copy_from_slice(&noise(3, MIB));
    for cell in [8, 12, 16] {
        content[cell * MIB..(cell + 4) * MIB].fill(7);
    }
    let reader = lent(&place, &mounted, "zeros", &content);
    assert!(read_all(&reader) == content);
    drop(reader);
    let mut sparse = create(&mounted.path("sparse"));
    sparse.write_all(&content[..4 * MIB]).unwrap();
    sparse.set_len(30 * MIB as u64 + 5).unwrap();
    drop(sparse);
    flush(&mounted);
    mounted.umount();
    let mounted = place.mount();
    for (name, length) in [("zeros", 40 * MIB), ("sparse", 30 * MIB + 5)] {
        let bytes = std::fs::read(mounted.path(name)).unwrap();
        let mut expected = content[..length].to_vec();
        if name == "sparse" {
            expected[4 * MIB..].fill(0);
        }
        assert!(bytes == expected, "{name}");
    }
    // What a truncate cut off and an extension brings back is zeros, though the chunk file has other bytes there.
    for size in [3 * MIB as u64 + 100, 4 * MIB as u64] {
        File::options().write(true).open(mounted.path("sparse")).unwrap().set_len(size).unwrap();
        flush(&mounted);
    }
    let mut expected = content[..4 * MIB].to_vec();
    expected[3 * MIB + 100..].fill(0);
    assert!(std::fs::read(mounted.path("sparse")).unwrap() == expected);
    mounted.umount();
    let mounted = place.mount();
    assert!(std::fs::read(mounted.path("sparse")).unwrap() == expected);
    mounted.umount();
}

/// Others than the inode itself that live off its chunk file keep their content.
#[test]
fn p3_writers_of_every_kind_join_readers_and_everybody_sees_what_they_write() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let path = mounted.path("f");
    let original = noise(4, 5 * MIB);
    std::fs::write(mounted.path("twin"), &original).unwrap();
    flush(&mounted);
    let reader = lent(&place, &mounted, "f", &original);
    drop(reader);
    shell(&place.path("mnt"), "cp --reflink=never f copied");
    let source = File::open(&path).unwrap();
    let target = edit(&mounted.path("copied"));
    let copied = rustix::fs::copy_file_range(&source, Some(&mut 0), &target, Some(&mut 0), 5 * MIB).unwrap();
    assert_eq!(copied, 5 * MIB);
    drop((source, target));
    flush(&mounted);

    let mut expected = original.clone();
    let reader = File::open(&path).unwrap();
    let map = Mapping::reading(&reader, 5 * MIB);
    assert!(map.bytes(MIB, 100) == &original[MIB..MIB + 100]);
    type Flags = i32;
    let kinds: [(Flags, bool); 6] = [
        (libc::O_RDWR, true),
        (libc::O_WRONLY, false),
        (libc::O_WRONLY | libc::O_SYNC, false),
        (libc::O_RDWR | libc::O_DSYNC, true),
        (libc::O_RDWR | libc::O_DIRECT, true),
        (libc::O_WRONLY | libc::O_APPEND, false),
    ];
    for (round, (flags, reads)) in kinds.into_iter().enumerate() {
        let writer = OpenOptions::new().read(reads).write(true).custom_flags(flags).open(&path).unwrap();
        let word = format!("written in round {round}");
        let at = if flags & libc::O_APPEND == 0 {
            let at = 1000 + round * MIB / 2;
            writer.write_all_at(word.as_bytes(), at as u64).unwrap();
            expected[at..at + word.len()].copy_from_slice(word.as_bytes());
            assert!(map.bytes(at, word.len()) == word.as_bytes(), "a reader's mapping sees round {round}");
            at
        } else {
            (&writer).write_all(word.as_bytes()).unwrap();
            expected.extend_from_slice(word.as_bytes());
            expected.len() - word.len()
        };
        let mut seen = vec![0; word.len()];
        reader.read_exact_at(&mut seen, at as u64).unwrap();
        assert_eq!(seen, word.as_bytes(), "a reader's descriptor sees round {round}");
        assert_eq!(reader.metadata().unwrap().len(), expected.len() as u64);
        if round % 2 == 1 {
            drop(writer);
        } else {
            writer.sync_all().unwrap();
        }
    }
    assert!(read_all(&reader) == expected);
    drop((reader, map));
    flush(&mounted);
    assert!(std::fs::read(&path).unwrap() == expected);
    for name in ["twin", "copied"] {
        assert!(std::fs::read(mounted.path(name)).unwrap() == original, "{name} is another file");
    }
    mounted.umount();
    assert_restored(&place, &[("f", &expected), ("twin", &original), ("copied", &original)]);
}

#[test]
fn p3_readers_see_a_truncate_by_open_by_descriptor_and_by_name() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let path = mounted.path("f");
    let mut expected = noise(5, 2 * MIB);
    let reader = lent(&place, &mounted, "f", &expected);
    // By name, with nobody writing.
    truncate(&path, 1_000_000).unwrap();
    expected.truncate(1_000_000);
    assert!(read_all(&reader) == expected);
    let writer = edit(&path);
    writer.set_len(500_000).unwrap();
    writer.set_len(600_000).unwrap();
    expected.truncate(500_000);
    expected.resize(600_000, 0);
    assert!(read_all(&reader) == expected);
    drop((writer, reader));
    flush(&mounted);
    wait_for("it is sealed", || held(&place.path("state")) == 0);
    let reader = passthrough_reader(&place, &path);
    std::fs::write(&path, "short").unwrap();
    assert_eq!(read_all(&reader), b"short");
    drop(reader);
    mounted.umount();
    assert_restored(&place, &[("f", b"short")]);
}

#[test]
fn p3_a_mapping_of_a_reader_sees_what_is_written_after_its_descriptor_was_closed() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let path = mounted.path("f");
    let mut expected = noise(6, 2 * MIB);
    let map = Mapping::reading(&lent(&place, &mounted, "f", &expected), 2 * MIB);
    assert!(map.bytes(0, 2 * MIB) == expected);
    // Nobody has it open any more. Beside a plain reader of another time, then alone, then again.
    for round in 0..3_u8 {
        let writer = edit(&path);
        let at = usize::from(round) * 300_000;
        writer.write_all_at(&[round; 5000], at as u64).unwrap();
        expected[at..at + 5000].fill(round);
        assert!(map.bytes(0, 2 * MIB) == expected, "round {round}");
        drop(writer);
        assert!(map.bytes(0, 2 * MIB) == expected);
        assert!(std::fs::read(&path).unwrap() == expected);
        flush(&mounted);
    }
    succeed(Command::new("dd").args(["if=/dev/zero", "bs=100", "count=1", "seek=7", "conv=notrunc"]).arg({
        let mut of = std::ffi::OsString::from("of=");
        of.push(&path);
        of
    }));
    expected[700..800].fill(0);
    assert!(map.bytes(0, 2 * MIB) == expected);
    drop(map);
    flush(&mounted);
    wait_for("it is sealed", || held(&place.path("state")) == 0);
    assert!(std::fs::read(&path).unwrap() == expected);
    mounted.umount();
    assert_restored(&place, &[("f", &expected)]);
}

#[test]
fn s4_a_writer_that_joined_readers_and_outlives_the_daemon_harms_nothing() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let path = mounted.path("f");
    let mut expected = noise(7, 2 * MIB);
    let reader = lent(&place, &mounted, "f", &expected);
    let orphan = edit(&path);
    orphan.write_all_at(b"acknowledged", 1000).unwrap();
    expected[1000..1012].copy_from_slice(b"acknowledged");
    // A close of a duplicate: from here on nothing of it may be lost.
    drop(orphan.try_clone().unwrap());
    mounted.kill();
    assert!(read_all_blind(&reader, 2 * MIB) == expected, "readers read on");
    let mounted = place.mount();
    assert!(std::fs::read(&path).unwrap() == expected);
    for _ in 0..20 {
        let _ = orphan.write_all_at(b"beside the next daemon", 1000);
    }
    flush(&mounted);
    let _ = orphan.write_all_at(b"after the seal", 1000);
    mounted.umount();
    drop((orphan, reader));
    let mounted = place.mount();
    assert!(std::fs::read(&path).unwrap() == expected);
    mounted.umount();
    assert_restored(&place, &[("f", &expected)]);
}

/// Without asking for the size, which only a daemon knows.
fn read_all_blind(file: &File, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn p3_a_crash_in_the_middle_of_a_thaw_leaves_the_generation_before() {
    let place = Place::new(&["a"]);
    let content = noise(8, 2 * MIB);
    {
        let mounted = place.mount();
        std::fs::write(mounted.path("f"), &content).unwrap();
        mounted.umount();
    }
    succeed(place.mount_command("state").env(VARIABLE, "thaw"));
    let mounted = Mounted::found(&place, "state");
    let reader = passthrough_reader(&place, &mounted.path("f"));
    assert!(OpenOptions::new().write(true).open(mounted.path("f")).is_err(), "the daemon dies in it");
    mounted.kill();
    let mounted = place.mount();
    assert!(std::fs::read(mounted.path("f")).unwrap() == content);
    drop(reader);
    mounted.umount();
    assert_restored(&place, &[("f", &content)]);
}

#[test]
fn d1_what_is_lent_stays_under_pressure_and_leaves_after() {
    let mut place = Place::new(&[]);
    let config = place.path("tandemfs.toml");
    let uri = format!("fs://{}", place.path("a").display());
    std::fs::write(
        &config,
        format!("chunk_size = \"1 MiB\"\n[cache]\nlimit = \"64 MiB\"\nwait = \"10m\"\n[target.a]\nuri = {uri:?}\n"),
    )
    .unwrap();
    place.use_config(&config);
    place.add_target("a", &uri);
    let mounted = place.mount();
    let content = noise(9, 8 * MIB);
    let reader = lent(&place, &mounted, "f", &content);
    let name = chunk_files(&place.path("state"))
        .into_iter()
        .find(|path| path.metadata().is_ok_and(|file| file.len() == 8 << 20));
    let name = name.unwrap();
    let press = |seed: u64| {
        for index in 0..24 {
            std::fs::write(mounted.path(&format!("other{index}")), noise(seed + index, 5 * MIB)).unwrap();
        }
        flush(&mounted);
    };
    press(100);
    assert!(name.exists(), "it is held");
    assert!(read_all(&reader) == content);
    // And it can be written: by nobody else's leave than its own.
    let writer = edit(mounted.path("f").as_path());
    writer.write_all_at(b"new", 5 * MIB as u64).unwrap();
    let mut expected = content.clone();
    expected[5 * MIB..5 * MIB + 3].copy_from_slice(b"new");
    assert!(read_all(&reader) == expected);
    drop((reader, writer));
    flush(&mounted);
    press(200);
    wait_for("it leaves as any other", || {
        let large = |path: &PathBuf| path.metadata().is_ok_and(|file| file.len() == 8 << 20);
        if chunk_files(&place.path("state")).iter().any(large) {
            press(300);
            return false;
        }
        true
    });
    assert!(std::fs::read(mounted.path("f")).unwrap() == expected, "and comes back");
    mounted.umount();
}

#[test]
fn readers_keep_a_file_that_loses_its_name_or_its_place() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let (content, second) = (noise(10, 3 * MIB), noise(11, 2 * MIB));
    let removed = lent(&place, &mounted, "removed", &content);
    std::fs::remove_file(mounted.path("removed")).unwrap();
    std::fs::write(mounted.path("other"), &second).unwrap();
    flush(&mounted);
    assert!(read_all(&removed) == content);
    // A descriptor of its own for a file without a name.
    let by_descriptor = |flags: &mut OpenOptions| flags.open(format!("/proc/self/fd/{}", removed.as_raw_fd()));
    let writer = by_descriptor(OpenOptions::new().write(true)).unwrap();
    writer.write_all_at(b"still written", 7).unwrap();
    let again = by_descriptor(OpenOptions::new().read(true)).unwrap();
    let mut seen = [0; 13];
    for reader in [&removed, &again] {
        reader.read_exact_at(&mut seen, 7).unwrap();
        assert_eq!(&seen, b"still written");
    }
    drop((removed, writer, again));
    wait_for("nobody has it", || held(&place.path("state")) == 0);
    let replaced = passthrough_reader(&place, &mounted.path("other"));
    std::fs::write(mounted.path("new"), b"replacement").unwrap();
    std::fs::rename(mounted.path("new"), mounted.path("other")).unwrap();
    assert!(read_all(&replaced) == second);
    flush(&mounted);
    assert!(read_all(&replaced) == second);
    assert_eq!(std::fs::read(mounted.path("other")).unwrap(), b"replacement");
    drop(replaced);
    let large = |path: &PathBuf| path.metadata().is_ok_and(|file| file.len() >= MIB as u64);
    wait_for("the space comes back", || !chunk_files(&place.path("state")).iter().any(large));
    mounted.umount();
    assert_restored(&place, &[("other", b"replacement")]);
}

#[test]
fn copies_from_and_to_a_lent_file() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let content = noise(12, 2 * MIB);
    let source = lent(&place, &mounted, "f", &content);
    let copy = |from: &File, to: &File, at: u64, length| {
        let (mut from_at, mut to_at, mut left) = (0, at, length);
        while left > 0 {
            let copied = rustix::fs::copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), left).unwrap();
            assert!(copied > 0);
            left -= copied;
        }
    };
    let target = OpenOptions::new().read(true).write(true).create_new(true).open(mounted.path("g")).unwrap();
    copy(&source, &target, 100_000, 2 * MIB);
    drop(target);
    let mut expected = vec![0; 100_000];
    expected.extend_from_slice(&content);
    assert!(std::fs::read(mounted.path("g")).unwrap() == expected);
    flush(&mounted);
    let reader = File::open(mounted.path("g")).unwrap();
    let target = edit(&mounted.path("g"));
    copy(&source, &target, 0, MIB);
    expected[..MIB].copy_from_slice(&content[..MIB]);
    assert!(read_all(&reader) == expected);
    drop((target, reader, source));
    mounted.umount();
    assert_restored(&place, &[("f", &content), ("g", &expected)]);
}

#[test]
fn a_lent_file_repairs_a_target_and_can_be_written_at_once() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let content = noise(13, 6 * MIB);
    let reader = lent(&place, &mounted, "f", &content);
    let spoil = || {
        let objects = shell(&place.path(""), "find a/chunks -type f -size +100k");
        for object in objects.lines() {
            std::fs::remove_file(place.path(object)).unwrap();
        }
        assert!(objects.lines().count() > 0);
    };
    spoil();
    let done = mounted.command("scrub", &["--level", "deep", "--repair"]);
    assert_eq!(done.code, 0, "{}{}\n{}", done.stdout, done.stderr, mounted.log());
    let writer = edit(&mounted.path("f"));
    writer.write_all_at(b"new", 0).unwrap();
    let mut expected = content.clone();
    expected[..3].copy_from_slice(b"new");
    assert!(read_all(&reader) == expected);
    drop((writer, reader));
    mounted.umount();
    assert_restored(&place, &[("f", &expected)]);
}

#[test]
fn p3_what_no_target_has_yet_is_kept_for_others_when_its_file_is_written_again() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    target(&place, "pause");
    let original = noise(14, 5 * MIB);
    std::fs::write(mounted.path("f"), &original).unwrap();
    assert_eq!(mounted.command("flush", &["--wait", "local", "--timeout", "600"]).code, 0);
    let source = File::open(mounted.path("f")).unwrap();
    // Not open as a copy is: its bytes are not in a file of its own.
    std::fs::write(mounted.path("g"), b"").unwrap();
    assert_eq!(mounted.command("flush", &["--wait", "local", "--timeout", "600"]).code, 0);
    let copy = edit(&mounted.path("g"));
    let mut copied = 0;
    while copied < original.len() {
        let (mut from, mut to) = (copied as u64, copied as u64);
        copied += rustix::fs::copy_file_range(&source, Some(&mut from), &copy, Some(&mut to), 5 * MIB).unwrap();
    }
    drop((source, copy));
    assert_eq!(mounted.command("flush", &["--wait", "local", "--timeout", "600"]).code, 0);
    let reader = passthrough_reader(&place, &mounted.path("f"));
    let mut expected = original.clone();
    for round in 0..3_u8 {
        let writer = edit(&mounted.path("f"));
        writer.write_all_at(&[round; 100], u64::from(round) * 2_000_000).unwrap();
        expected[usize::from(round) * 2_000_000..][..100].fill(round);
        assert!(read_all(&reader) == expected);
        assert!(std::fs::read(mounted.path("g")).unwrap() == original, "round {round}");
    }
    drop(reader);
    target(&place, "resume");
    mounted.umount();
    assert_restored(&place, &[("f", &expected), ("g", &original)]);
}

fn target(place: &Place, change: &str) {
    succeed(place.tandemfs().args(["target", change]).arg(place.mnt()).arg("a"));
}

#[test]
fn a_program_that_runs_from_a_lent_file_is_busy_and_can_be_replaced() {
    let place = Place::new(&["a"]);
    std::fs::set_permissions(place.path(""), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mounted = place.mount();
    let program = mounted.path("program");
    std::fs::copy("/bin/bash", &program).unwrap();
    assert!(program.metadata().unwrap().len() > 256 << 10, "large enough to be lent");
    flush(&mounted);
    let mut command = Command::new(&program);
    command.args(["-c", "read line; echo $line"]);
    let mut running = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let busy = OpenOptions::new().write(true).open(&program).unwrap_err();
    assert_eq!(busy.raw_os_error(), Some(libc::ETXTBSY));
    std::fs::copy("/bin/true", mounted.path("new")).unwrap();
    std::fs::rename(mounted.path("new"), &program).unwrap();
    writeln!(running.stdin.take().unwrap(), "still running").unwrap();
    let mut said = String::new();
    running.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(running.wait().unwrap().success());
    assert_eq!(said, "still running\n");
    succeed(&mut Command::new(&program));
    mounted.umount();
}

/// One file, opened, read, written, mapped, truncated and sealed in any order, compared with what it must be after each step.
#[test]
fn p3_every_mix_of_opens_agrees_with_a_model() {
    let seeds: u64 = std::env::var("TANDEMFS_MIXES").map_or(4, |seeds| seeds.parse().unwrap());
    let mut place = Place::new(&["a"]);
    let config = place.path("tandemfs.toml");
    std::fs::write(&config, format!("chunk_size = \"64 KiB\"\n[target.a]\nuri = {:?}\n", place.uri("a"))).unwrap();
    place.use_config(&config);
    let mounted = place.mount();
    let mut lends = 0;
    for seed in 0..seeds {
        lends += mix(&place, &mounted, 1000 + seed, 150);
    }
    assert!(lends > 0, "no descriptor was passthrough onto a sealed file");
    mounted.umount();
}

fn mix(place: &Place, mounted: &Mounted<'_>, seed: u64, steps: usize) -> usize {
    const SIZE: usize = 300_000;
    let path = mounted.path(&format!("f{seed}"));
    let random = noise(seed, steps * 8);
    let mut model = noise(seed + 1, SIZE);
    std::fs::write(&path, &model).unwrap();
    let (mut readers, mut writers, mut maps): (Vec<File>, Vec<File>, Vec<Mapping>) = Default::default();
    let mut lends = 0;
    for step in 0..steps {
        let dice = &random[step * 8..step * 8 + 8];
        let at = usize::from(u16::from_le_bytes([dice[1], dice[2]])) * 4;
        let what = format!("seed {seed}, step {step}: {}", dice[0] % 16);
        match dice[0] % 16 {
            0..=3 => readers.push(File::open(&path).unwrap_or_else(|e| panic!("{what}: {e}"))),
            4 if !readers.is_empty() && !model.is_empty() => {
                maps.push(Mapping::reading(&readers[usize::from(dice[3]) % readers.len()], SIZE * 2));
            }
            5 | 6 => {
                let kinds =
                    [libc::O_RDWR, libc::O_WRONLY, libc::O_RDWR | libc::O_SYNC, libc::O_WRONLY | libc::O_APPEND];
                let flags = kinds[usize::from(dice[3]) % kinds.len()];
                let reads = flags & libc::O_ACCMODE == libc::O_RDWR;
                let writer = OpenOptions::new().read(reads).write(true).custom_flags(flags).open(&path);
                let writer = writer.unwrap_or_else(|e| panic!("{what}: {e}"));
                if flags & libc::O_APPEND != 0 {
                    (&writer).write_all(&[dice[4]; 100]).unwrap();
                    model.resize(model.len() + 100, dice[4]);
                    drop(writer);
                } else {
                    writers.push(writer);
                }
            }
            7 | 8 if !writers.is_empty() => {
                let writer = &writers[usize::from(dice[3]) % writers.len()];
                let bytes = vec![dice[4]; 1 + usize::from(dice[5]) * 40];
                writer.write_all_at(&bytes, at as u64).unwrap_or_else(|e| panic!("{what}: {e}"));
                model.resize(model.len().max(at + bytes.len()), 0);
                model[at..at + bytes.len()].copy_from_slice(&bytes);
            }
            9 if dice[3] < 128 => {
                let path = rustix::fs::open(&path, rustix::fs::OFlags::WRONLY, rustix::fs::Mode::empty()).unwrap();
                rustix::fs::ftruncate(&path, at as u64 + 4096).unwrap();
                model.resize(at + 4096, 0);
            }
            9 => {
                truncate(&path, at as i64 + 4096).unwrap();
                model.resize(at + 4096, 0);
            }
            10 if dice[3] < 64 => {
                std::fs::write(&path, noise(u64::from(dice[4]), SIZE)).unwrap();
                model = noise(u64::from(dice[4]), SIZE);
            }
            11 | 12 => {
                writers.clear();
                if dice[3] < 100 {
                    readers.clear();
                }
            }
            13 => drop(maps.pop()),
            14 if dice[3] < 100 => {
                writers.clear();
                readers.clear();
                if dice[4] < 128 {
                    maps.clear();
                }
                assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0, "{what}");
                let reader = File::open(&path).unwrap();
                lends += held(&place.path("state")).min(1);
                readers.push(reader);
            }
            _ => {}
        }
        for reader in &readers {
            assert!(read_all(reader) == model, "{what}: a descriptor");
        }
        for map in &maps {
            // Beyond the end a touch is SIGBUS, as anywhere.
            let length = model.len().min(SIZE * 2);
            assert!(map.bytes(0, length) == &model[..length], "{what}: a mapping");
        }
        if dice[6] < 60 {
            assert!(std::fs::read(&path).unwrap() == model, "{what}: a new open");
        }
        assert_eq!(std::fs::metadata(&path).unwrap().size(), model.len() as u64, "{what}");
    }
    drop((readers, writers, maps));
    assert!(std::fs::read(&path).unwrap() == model);
    lends
}

/// Opens of every kind race for a sealed file, so that it is lent, thawed and sealed all the time.
#[test]
fn p2_a_hammer_on_a_sealed_file() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let rounds: usize = std::env::var("TANDEMFS_HAMMER").map_or(150, |rounds| rounds.parse().unwrap());
    let path = mounted.path("f");
    // Every block says its number: whoever reads sees whole blocks of his file.
    let block = |number: usize| vec![number as u8; 4096];
    let content: Vec<u8> = (0..256).flat_map(block).collect();
    std::fs::write(&path, &content).unwrap();
    flush(&mounted);
    std::thread::scope(|scope| {
        for thread in 0..6_usize {
            let (path, content) = (&path, &content);
            scope.spawn(move || {
                let random = noise(200 + thread as u64, rounds * 2);
                for round in 0..rounds {
                    let number = usize::from(random[round * 2 + 1]);
                    let writes = thread == 0 && random[round * 2] < 40;
                    let mut options = OpenOptions::new();
                    options.read(true).write(writes);
                    if random[round * 2].is_multiple_of(16) {
                        options.custom_flags(libc::O_DIRECT);
                    }
                    let file = options.open(path).unwrap_or_else(|e| panic!("thread {thread}, round {round}: {e}"));
                    if writes {
                        file.write_all_at(&content[number * 4096..number * 4096 + 4096], number as u64 * 4096).unwrap();
                    }
                    let map = Mapping::reading(&file, 256 * 4096);
                    drop(file);
                    assert!(map.bytes(number * 4096, 4096) == &content[number * 4096..][..4096]);
                    if random[round * 2].is_multiple_of(5) {
                        std::thread::yield_now();
                    }
                }
            });
        }
    });
    assert!(std::fs::read(&path).unwrap() == content);
    flush(&mounted);
    assert!(std::fs::read(&path).unwrap() == content);
    assert_eq!(mounted.status()["filesystem"].get("no_passthrough"), None);
    mounted.umount();
    assert_restored(&place, &[("f", &content)]);
}

/// A state directory on xfs, where files share blocks: thaws and open files are copied by reference.
struct Xfs(PathBuf);

impl Xfs {
    fn new(place: &Place) -> Option<Xfs> {
        if !installed(&["mkfs.xfs", "losetup"]) {
            return None;
        }
        let (image, mountpoint) = (place.path("xfs.img"), place.path("xfs"));
        File::create(&image).unwrap().set_len(2 << 30).unwrap();
        program("mkfs.xfs", ["-q".as_ref(), "-f".as_ref(), "-m".as_ref(), "reflink=1".as_ref(), image.as_path()]);
        std::fs::create_dir(&mountpoint).unwrap();
        // allocsize: what is allocated is what was written, not what xfs guesses that may be.
        let mounted = finish(Command::new("mount").args(["-o", "loop,allocsize=64k"]).args([&image, &mountpoint]));
        if mounted.code != 0 {
            skipped(&format!("no loop device for xfs on this machine: {}", mounted.stderr.trim()));
            return None;
        }
        Some(Xfs(mountpoint))
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        for _ in 0..100 {
            if Command::new("umount").arg(&self.0).output().is_ok_and(|output| output.status.success()) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn p3_where_blocks_are_shared_a_thaw_keeps_the_sealed_bytes_and_their_holes() {
    let place = Place::new(&["a"]);
    let Some(xfs) = Xfs::new(&place) else { return };
    let state = xfs.0.join("state");
    let mounted = place.mount_state("xfs/state");
    let path = mounted.path("f");
    let used = || {
        let disk = rustix::fs::statvfs(&xfs.0).unwrap();
        (disk.f_blocks - disk.f_bfree) * disk.f_frsize
    };
    let before_all = used();
    // No target takes anything: all of it is pinned, and more than would be copied by its bytes.
    target(&place, "pause");
    let mut file = create(&path);
    file.write_all(&noise(20, 70 * MIB)).unwrap();
    file.set_len(300 * MIB as u64).unwrap();
    file.write_all_at(&noise(21, MIB), 200 * MIB as u64).unwrap();
    drop(file);
    let mut expected = noise(20, 70 * MIB);
    expected.resize(300 * MIB, 0);
    expected[200 * MIB..201 * MIB].copy_from_slice(&noise(21, MIB));
    assert_eq!(mounted.command("flush", &["--wait", "local", "--timeout", "600"]).code, 0);
    wait_for("it is sealed", || {
        let _reader = File::open(&path).unwrap();
        held(&state) == 1
    });
    let reader = File::open(&path).unwrap();
    // Not open as a copy is: its bytes are not in a file of its own.
    std::fs::write(mounted.path("by-reference"), b"").unwrap();
    assert_eq!(mounted.command("flush", &["--wait", "local", "--timeout", "600"]).code, 0);
    // A file whose last RELEASE is still on its way is copied by its bytes; it stands still when its session's file is gone.
    wait_for("both files stand still", || shell(&state, "find chunks -type f").lines().count() == 1);
    let copied = edit(&mounted.path("by-reference"));
    let shared = rustix::fs::copy_file_range(&reader, Some(&mut 0), &copied, Some(&mut 0), 300 * MIB).unwrap();
    assert!(shared > 0);
    drop(copied);
    let writer = edit(&path);
    writer.write_all_at(b"after the thaw", 1000).unwrap();
    let before = expected.clone();
    expected[1000..1014].copy_from_slice(b"after the thaw");
    assert!(read_all(&reader) == expected);
    // Fsynced while open: a copy of it takes its place in history (P4).
    writer.sync_all().unwrap();
    target(&place, "resume");
    flush(&mounted);
    // What was unlinked last may still be on its way out.
    wait_for("71 MiB were written, the rest is shared or a hole", || used() < before_all + (200 << 20));
    writer.write_all_at(b"and once more", 250 * MIB as u64).unwrap();
    expected[250 * MIB..250 * MIB + 13].copy_from_slice(b"and once more");
    drop((reader, writer));
    flush(&mounted);
    assert!(std::fs::read(&path).unwrap() == expected);
    let by_reference = std::fs::read(mounted.path("by-reference")).unwrap();
    assert!(by_reference == before[..by_reference.len()]);
    mounted.umount();
    drop(xfs);
    assert_restored(&place, &[("f", &expected), ("by-reference", &by_reference)]);
}

/// Larger than what is copied whenever it is asked for. Most of it is a hole.
const LARGE: u64 = (1 << 30) + (16 << 20);

/// Its descriptor is one of those that see what others write, and keep their file from being sealed.
#[test]
fn p4_who_waits_for_targets_waits_for_no_reader_however_large_the_file() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let path = mounted.path("large");
    let file = create(&path);
    file.write_all_at(&noise(1, MIB), 0).unwrap();
    file.write_all_at(&noise(2, MIB), LARGE - MIB as u64).unwrap();
    drop(file);
    flush(&mounted);
    wait_for("nobody has it", || held(&place.path("state")) == 0);
    let reader = passthrough_reader(&place, &path);
    // It was lent while nobody waited for targets; now who writes to it does.
    let policy = "close=all,fsync=all";
    rustix::fs::setxattr(place.mnt(), "user.tandemfs.policy", policy.as_bytes(), rustix::fs::XattrFlags::empty())
        .unwrap();
    let writer = edit(&path);
    writer.write_all_at(b"joined", MIB as u64).unwrap();
    writer.sync_all().unwrap();
    let mut read = [0; 6];
    reader.read_exact_at(&mut read, MIB as u64).unwrap();
    assert_eq!(&read, b"joined");
    writer.write_all_at(b"closed", MIB as u64).unwrap();
    // SAFETY: the descriptor is taken out of its owner.
    assert_eq!(unsafe { libc::close(std::os::fd::IntoRawFd::into_raw_fd(writer)) }, 0, "{}", mounted.log());
    drop(reader);
    flush(&mounted);
    wait_for("nobody has it", || held(&place.path("state")) == 0);
    // From now on it is read by requests, unless a copy costs nothing here.
    let reader = File::open(&path).unwrap();
    let writer = edit(&path);
    writer.write_all_at(b"beside", MIB as u64).unwrap();
    writer.sync_all().unwrap();
    reader.read_exact_at(&mut read, MIB as u64).unwrap();
    assert_eq!(&read, b"beside");
    drop((reader, writer));
    mounted.umount();
    assert_eq!(place.restore("restored", &[place.uri("a")]).code, 0);
    let restored = place.mount_read_only("restored");
    let file = File::open(restored.path("large")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), LARGE);
    file.read_exact_at(&mut read, MIB as u64).unwrap();
    assert_eq!(&read, b"beside");
    drop(file);
    restored.umount();
}
