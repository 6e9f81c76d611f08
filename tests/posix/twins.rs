//! The same calls on the mount and on a plain directory: each gives the same result or errno, and both trees are the same
//! at the end, after a remount, and restored from a target.
//!
//! Several handles on one inode, names that go while a file is open, renames over open files, links, xattrs, ACLs, set-id
//! and sticky bits, three users, holes, mappings. The plain directory must be on a filesystem like ext4.
//! `TANDEMFS_TWINS` sets the number of calls of each seed, `TANDEMFS_SEED` is added to the seeds: other histories.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::busy;
use crate::calls::{self, Errno, Gave, c, call};
use crate::support::mounted::{Mounted, Place};
use crate::support::run::skipped;
use crate::support::tree::{self, Depth, assert_same, noise};

const CALLS: u64 = 6_000;
const HANDLES: usize = 10;
/// Names are few, so that calls meet.
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const DIRECTORIES: [&str; 4] = ["", "d1", "d2", "d1/sub"];
/// The first is root.
const USERS: [u32; 3] = [0, 1234, 1235];
/// Times that calls set lie before this, those of now do not.
const SET_BEFORE: i64 = 1_600_000_000;
/// The largest offset of a write: many chunks of 64 KiB.
const SIZE: u64 = 600_000;

/// splitmix64: the same numbers everywhere.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize]
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn path(&mut self) -> PathBuf {
        Path::new(self.of(&DIRECTORIES)).join(self.of(&NAMES))
    }

    /// Sometimes on a block, sometimes beside it.
    fn offset(&mut self) -> u64 {
        let offset = self.below(SIZE);
        if self.chance(50) { offset / 4096 * 4096 } else { offset }
    }

    fn length(&mut self) -> u64 {
        if self.chance(30) { self.below(150_000) } else { self.below(9_000) }
    }
}

/// One call with its arguments; paths are relative to the root of either twin, handles are numbers.
#[derive(Debug, Clone)]
enum Call {
    Open { slot: usize, path: PathBuf, flags: i32, mode: u32 },
    Close { slot: usize },
    Write { slot: usize, offset: u64, seed: u64, length: u64 },
    Append { slot: usize, seed: u64, length: u64 },
    Read { slot: usize, offset: u64, length: u64 },
    MapWrite { slot: usize, offset: u64, seed: u64, length: u64 },
    Resize { slot: usize, size: u64 },
    Truncate { path: PathBuf, size: u64 },
    Allocate { slot: usize, mode: i32, offset: u64, length: u64 },
    Seek { slot: usize, offset: u64, whence: i32 },
    Copy { from: usize, at: u64, to: usize, to_at: u64, length: u64 },
    Sync { slot: usize },
    MakeDirectory { path: PathBuf, mode: u32 },
    MakeNode { path: PathBuf, mode: u32 },
    RemoveDirectory { path: PathBuf },
    Unlink { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf, flags: u32 },
    Link { from: PathBuf, to: PathBuf },
    Symlink { to: PathBuf, path: PathBuf },
    Mode { path: PathBuf, mode: u32 },
    Owner { path: PathBuf, user: u32, group: u32 },
    Times { path: PathBuf, seconds: i64, nanoseconds: i64 },
    SetXattr { path: PathBuf, name: &'static str, length: usize, flags: i32 },
    SetAcl { path: PathBuf, name: &'static str, user: u32, permissions: [u16; 4] },
    RemoveXattr { path: PathBuf, name: &'static str },
    Look { path: PathBuf },
    ForgetPages { path: PathBuf },
}

const XATTRS: [&str; 4] = ["user.a", "user.b", "trusted.c", "system.posix_acl_access"];
const ACLS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];

fn invent(dice: &mut Dice) -> Call {
    let slot = dice.below(HANDLES as u64) as usize;
    match dice.below(100) {
        0..14 => {
            let mut flags = dice.of(&[libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR, libc::O_RDWR]);
            for (percent, flag) in [
                (60, libc::O_CREAT),
                (10, libc::O_EXCL | libc::O_CREAT),
                (20, libc::O_TRUNC),
                (10, libc::O_APPEND),
                (5, libc::O_SYNC),
                (5, libc::O_NOFOLLOW),
            ] {
                flags |= if dice.chance(percent) { flag } else { 0 };
            }
            if dice.chance(15) {
                // What `cp` and `>` do, and gets passthrough (P1).
                flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
            }
            Call::Open { slot, path: dice.path(), flags, mode: dice.of(&[0o644, 0o600, 0o4755, 0o2770, 0o666]) }
        }
        14..19 => Call::Close { slot },
        19..32 => Call::Write { slot, offset: dice.offset(), seed: dice.next(), length: dice.length() },
        32..35 => Call::Append { slot, seed: dice.next(), length: dice.length() },
        35..46 => Call::Read { slot, offset: dice.offset(), length: dice.length() },
        46..50 => Call::MapWrite { slot, offset: dice.offset(), seed: dice.next(), length: 1 + dice.length() },
        50..53 => Call::Resize { slot, size: dice.offset() },
        53..55 => Call::Truncate { path: dice.path(), size: dice.offset() },
        55..60 => {
            let keep = libc::FALLOC_FL_KEEP_SIZE;
            let mode = dice.of(&[
                0,
                keep,
                libc::FALLOC_FL_PUNCH_HOLE | keep,
                libc::FALLOC_FL_ZERO_RANGE,
                libc::FALLOC_FL_ZERO_RANGE | keep,
            ]);
            Call::Allocate { slot, mode, offset: dice.offset(), length: dice.length() }
        }
        60..63 => Call::Seek { slot, offset: dice.offset(), whence: dice.of(&[libc::SEEK_DATA, libc::SEEK_HOLE]) },
        63..67 => Call::Copy {
            from: slot,
            at: dice.offset(),
            to: dice.below(HANDLES as u64) as usize,
            to_at: dice.offset(),
            length: dice.length(),
        },
        67..69 => Call::Sync { slot },
        69..71 => Call::MakeDirectory { path: dice.path(), mode: dice.of(&[0o755, 0o1777, 0o2775, 0o700]) },
        71 => {
            Call::MakeNode { path: dice.path(), mode: dice.of(&[libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFREG]) | 0o640 }
        }
        72 => Call::RemoveDirectory { path: dice.path() },
        73..77 => Call::Unlink { path: dice.path() },
        77..81 => {
            let flags = dice.of(&[0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE, libc::RENAME_WHITEOUT << 4]);
            Call::Rename { from: dice.path(), to: dice.path(), flags }
        }
        81..83 => Call::Link { from: dice.path(), to: dice.path() },
        83 => Call::Symlink { to: dice.path(), path: dice.path() },
        84..86 => {
            Call::Mode { path: dice.path(), mode: dice.of(&[0o644, 0o4755, 0o6755, 0o2644, 0o1777, 0o000, 0o777]) }
        }
        86 => Call::Owner { path: dice.path(), user: dice.of(&USERS), group: dice.of(&USERS) },
        87 => {
            let (seconds, nanoseconds) =
                (dice.below(SET_BEFORE as u64) as i64 - 100_000_000, dice.below(1_000_000_000));
            Call::Times { path: dice.path(), seconds, nanoseconds: nanoseconds as i64 }
        }
        88..90 => Call::SetXattr {
            path: dice.path(),
            name: dice.of(&XATTRS[..3]),
            length: dice.below(300) as usize,
            flags: dice.of(&[0, 0, libc::XATTR_CREATE, libc::XATTR_REPLACE]),
        },
        90..92 => {
            let permissions = [(); 4].map(|()| dice.below(8) as u16);
            Call::SetAcl { path: dice.path(), name: dice.of(&ACLS), user: dice.of(&USERS[1..]), permissions }
        }
        92 => Call::RemoveXattr { path: dice.path(), name: dice.of(&XATTRS) },
        93..98 => Call::Look { path: dice.path() },
        _ => Call::ForgetPages { path: dice.path() },
    }
}

/// An access or default ACL: owner, one user, group, mask, others (acl(5), xattr representation of version 2).
fn acl(user: u32, [owner, named, group, other]: [u16; 4]) -> Vec<u8> {
    let undefined = u32::MAX;
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (0x01u16, owner, undefined),
        (0x02, named, user),
        (0x04, group, undefined),
        (0x10, named | group, undefined),
        (0x20, other, undefined),
    ] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// What a call showed: equal on both twins.
#[derive(Debug, PartialEq)]
enum Shown {
    Gave(Gave),
    Bytes(Gave, Vec<u8>),
    Looked(Result<calls::Stat, Errno>, Vec<String>, Vec<(String, Vec<u8>)>),
}

struct Twin {
    root: PathBuf,
    handles: Vec<Option<i32>>,
}

impl Twin {
    fn new(root: PathBuf) -> Twin {
        for directory in &DIRECTORIES[1..] {
            std::fs::create_dir(root.join(directory)).unwrap();
        }
        Twin { root, handles: vec![None; HANDLES] }
    }

    fn at(&self, path: &Path) -> PathBuf {
        self.root.join(path)
    }

    /// Of a regular file: what size a directory shows is the filesystem's own matter.
    fn size(&self, fd: i32) -> i64 {
        // SAFETY: all zeros is a `stat`.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        let known = call!(fstat(fd, &raw mut stat)).is_ok() && stat.st_mode & libc::S_IFMT == libc::S_IFREG;
        if known { stat.st_size } else { 0 }
    }

    /// Carries out a call. `None`: there is nothing open where it wants a handle.
    fn perform(&mut self, call: &Call) -> Option<Shown> {
        let fd = |slot: &usize| self.handles[*slot];
        let gave = match call {
            Call::Open { slot, path, flags, mode } => {
                if self.handles[*slot].is_some() {
                    return None;
                }
                // A fifo without a writer would wait for one.
                let opened = calls::open(&self.at(path), flags | libc::O_NONBLOCK, *mode);
                self.handles[*slot] = opened.ok().map(|fd| fd as i32);
                opened.map(|_| 0)
            }
            Call::Close { slot } => calls::close(self.handles[*slot].take()?),
            Call::Write { slot, offset, seed, length } => {
                calls::pwrite(fd(slot)?, &noise(*seed, *length as usize), *offset as i64)
            }
            Call::Append { slot, seed, length } => {
                let bytes = noise(*seed, *length as usize);
                calls::seek(fd(slot)?, 0, libc::SEEK_END).ok()?;
                call!(write(fd(slot)?, bytes.as_ptr().cast(), bytes.len()))
            }
            Call::Read { slot, offset, length } => {
                let (gave, bytes) = calls::pread(fd(slot)?, *length as usize, *offset as i64);
                return Some(Shown::Bytes(gave, bytes));
            }
            Call::MapWrite { slot, offset, seed, length } => {
                let (fd, offset) = (fd(slot)?, *offset as i64);
                let length = (self.size(fd) - offset).clamp(0, *length as i64);
                if length == 0 {
                    return None;
                }
                calls::map_write(fd, &noise(*seed, length as usize), offset)
            }
            Call::Resize { slot, size } => call!(ftruncate(fd(slot)?, *size as i64)),
            Call::Truncate { path, size } => call!(truncate(c(&self.at(path)).as_ptr(), *size as i64)),
            Call::Allocate { slot, mode, offset, length } => {
                call!(fallocate(fd(slot)?, *mode, *offset as i64, *length as i64))
            }
            Call::Seek { slot, offset, whence } => return self.sought(fd(slot)?, *offset as i64, *whence),
            Call::Copy { from, at, to, to_at, length } => {
                calls::copy_file_range(fd(from)?, *at as i64, fd(to)?, *to_at as i64, *length as usize)
            }
            Call::Sync { slot } => call!(fsync(fd(slot)?)),
            Call::MakeDirectory { path, mode } => call!(mkdir(c(&self.at(path)).as_ptr(), *mode)),
            Call::MakeNode { path, mode } => call!(mknod(c(&self.at(path)).as_ptr(), *mode, 0)),
            Call::RemoveDirectory { path } => call!(rmdir(c(&self.at(path)).as_ptr())),
            Call::Unlink { path } => call!(unlink(c(&self.at(path)).as_ptr())),
            Call::Rename { from, to, flags } => calls::rename(&self.at(from), &self.at(to), *flags),
            Call::Link { from, to } => call!(link(c(&self.at(from)).as_ptr(), c(&self.at(to)).as_ptr())),
            Call::Symlink { to, path } => call!(symlink(c(to).as_ptr(), c(&self.at(path)).as_ptr())),
            Call::Mode { path, mode } => call!(chmod(c(&self.at(path)).as_ptr(), *mode)),
            Call::Owner { path, user, group } => call!(lchown(c(&self.at(path)).as_ptr(), *user, *group)),
            Call::Times { path, seconds, nanoseconds } => {
                let times = [libc::timespec { tv_sec: *seconds, tv_nsec: *nanoseconds }; 2];
                call!(utimensat(libc::AT_FDCWD, c(&self.at(path)).as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW))
            }
            Call::SetXattr { path, name, length, flags } => {
                calls::setxattr(&self.at(path), name, &noise(*length as u64, *length), *flags)
            }
            Call::SetAcl { path, name, user, permissions } => {
                calls::setxattr(&self.at(path), name, &acl(*user, *permissions), 0)
            }
            Call::RemoveXattr { path, name } => calls::removexattr(&self.at(path), name),
            Call::Look { path } => return Some(self.looked(&self.at(path))),
            Call::ForgetPages { path } => {
                let regular = std::fs::symlink_metadata(self.at(path)).is_ok_and(|meta| meta.is_file());
                if regular {
                    busy::forget_pages(&self.at(path));
                }
                return None;
            }
        };
        Some(Shown::Gave(gave))
    }

    /// Where holes begin and end is the filesystem's own matter. What is compared is that nothing but zeros is skipped, and
    /// how a search without an answer ends.
    fn sought(&self, fd: i32, offset: i64, whence: i32) -> Option<Shown> {
        let size = self.size(fd);
        if calls::pread(fd, 0, 0).0 == Err(Errno(libc::EISDIR)) {
            return None;
        }
        let gave = calls::seek(fd, offset, whence);
        if let (Ok(found), libc::SEEK_DATA) = (gave, whence) {
            let (_, skipped) = calls::pread(fd, (found - offset) as usize, offset);
            assert!(skipped.iter().all(|&byte| byte == 0), "SEEK_DATA from {offset} to {found} skips bytes");
        }
        if let Err(Errno(libc::ENXIO)) = gave
            && offset < size
        {
            let (_, rest) = calls::pread(fd, (size - offset) as usize, offset);
            assert!(rest.iter().all(|&byte| byte == 0), "SEEK_DATA from {offset} sees no bytes where there are");
            return Some(Shown::Gave(Ok(0)));
        }
        Some(Shown::Gave(gave.map(|_| 0)))
    }

    fn looked(&self, path: &Path) -> Shown {
        let stat = calls::stat(path, SET_BEFORE);
        let mut names = Vec::new();
        match &stat {
            Ok(stat) if stat.mode & libc::S_IFMT == libc::S_IFDIR => {
                if let Ok(entries) = std::fs::read_dir(path) {
                    names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
                    names.sort();
                }
            }
            Ok(stat) if stat.mode & libc::S_IFMT == libc::S_IFLNK => {
                let to = std::fs::read_link(path).unwrap();
                names = vec![String::from_utf8_lossy(to.as_os_str().as_bytes()).into_owned()];
            }
            _ => {}
        }
        let (_, listed) = calls::listxattr(path);
        let xattrs = listed.into_iter().map(|name| (name.clone(), calls::getxattr(path, &name).1)).collect();
        Shown::Looked(stat, names, xattrs)
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        for fd in self.handles.iter().flatten() {
            let _ = calls::close(*fd);
        }
    }
}

fn compare(seed: u64, mounted: &Place, plain: &Path) -> PathBuf {
    let count = std::env::var("TANDEMFS_TWINS").map_or(CALLS, |count| count.parse().unwrap());
    let name = format!("seed{seed}");
    let roots = [mounted.mnt().join(&name), plain.join(&name)];
    let mut twins = roots.map(|root| {
        std::fs::create_dir(&root).unwrap();
        // For the users that are not root.
        assert_eq!(call!(chmod(c(&root).as_ptr(), 0o777)), Ok(0));
        Twin::new(root)
    });
    let mut dice = Dice(seed);
    let mut history = Vec::new();
    for number in 0..count {
        let call = invent(&mut dice);
        let user = if dice.chance(25) { dice.of(&USERS) } else { 0 };
        let shown = twins.each_mut().map(|twin| calls::as_user(user, || twin.perform(&call)));
        history.push(format!("{number}: user {user} {call:?} {:?}", brief(&shown[1])));
        let [mounted, plain] = &shown;
        if mounted != plain {
            let recent = &history[history.len().saturating_sub(40)..];
            panic!(
                "seed {seed}: call {number} by user {user} differs: {call:?}\n mount: {:?}\n plain: {:?}\nbefore:\n{}",
                brief(mounted),
                brief(plain),
                recent.join("\n")
            );
        }
    }
    drop(twins);
    plain.join(name)
}

/// Without the bytes of a read.
fn brief(shown: &Option<Shown>) -> String {
    match shown {
        Some(Shown::Bytes(gave, bytes)) => format!("{gave:?} hash {}", &blake3::hash(bytes).to_hex()[..8]),
        Some(other) => format!("{other:?}"),
        None => "nothing to do".into(),
    }
}

/// The lines of a tree, without mtimes that the calls did not set: those of now differ between twins.
fn read(root: &Path) -> tree::Tree {
    let line = |line: String| {
        let mut words: Vec<&str> = line.split(' ').collect();
        if let Some(at) = words.iter().position(|word| *word == "mtime") {
            let seconds: i64 = words[at + 1].split('.').next().unwrap().parse().unwrap();
            if seconds >= SET_BEFORE {
                words.drain(at..at + 2);
            }
        }
        words.join(" ")
    };
    tree::read(root, Depth::Copied).into_iter().map(|(path, old)| (path, line(old))).collect()
}

const OPTIONS: &str = "allow_other,suid,dev";

/// With room to spare, what is created is passthrough, and so is who opens it meanwhile: handles of every kind are mixed.
#[test]
fn p1_p2_the_mount_and_a_plain_directory_give_the_same_answers() {
    let place = busy::roomy_place();
    check(&place, OPTIONS, &[1, 2], |mounted| {
        let why_not = mounted.status()["filesystem"].get("no_passthrough").cloned();
        if let Some(why) = why_not {
            return skipped(&format!("no passthrough: {why}"));
        }
        let path = mounted.path("created");
        let created = std::fs::File::create(&path).unwrap();
        assert!(busy::writes_unseen(&place, &path));
        drop(created);
        std::fs::remove_file(path).unwrap();
    });
}

/// In a tiny cache only what is sealed is passthrough, for reading.
#[test]
fn they_do_so_in_a_tiny_cache_too() {
    check(&busy::place(), OPTIONS, &[3], |_| ());
}

#[test]
fn they_do_so_without_passthrough_too() {
    check(&busy::place(), &format!("{OPTIONS},no_passthrough"), &[4, 5, 6], |_| ());
}

fn check(place: &Place, options: &str, seeds: &[u64], prove: impl Fn(&Mounted<'_>)) {
    std::fs::create_dir(place.path("plain")).unwrap();
    // SAFETY: umask(2) takes a number. The modes of both twins' files are those that the calls say.
    unsafe { libc::umask(0o022) };
    let options: [&std::ffi::OsStr; 2] = ["-o".as_ref(), options.as_ref()];
    let mounted = place.mount_with("state", &options);
    prove(&mounted);
    let other: u64 = std::env::var("TANDEMFS_SEED").map_or(0, |seed| seed.parse().unwrap());
    std::thread::scope(|scope| {
        for seed in seeds.iter().map(|seed| seed + other) {
            scope.spawn(move || compare(seed, place, &place.path("plain")));
        }
    });
    let plain = read(&place.path("plain"));
    assert_same("the mount and the plain directory", &plain, &read(&place.mnt()));
    mounted.umount();
    let mounted = place.mount_with("state", &options);
    assert_same("mounted again", &plain, &read(&place.mnt()));
    mounted.umount();
    let restored = place.restore("restored", &[place.uri("a")]);
    assert_eq!(restored.code, 0, "{}", restored.stderr);
    let mounted = place.mount_read_only("restored");
    assert_same("restored from one target", &plain, &read(&place.mnt()));
    mounted.umount();
}
