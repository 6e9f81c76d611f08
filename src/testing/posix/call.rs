//! Calls of programs, invented from a seed; what each of them shows.

use std::path::{Path, PathBuf};

use super::syscall::{Errno, Gave, Stat};
use super::{BLOCK, DIRECTORIES, HANDLES, MAPS, NAMES, SET_BEFORE, SIZE, USERS};

/// splitmix64: the same numbers everywhere.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize]
    }

    pub fn chance(&mut self, percent: u64) -> bool {
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
pub enum Call {
    Open { slot: usize, path: PathBuf, flags: i32, mode: u32 },
    Close { slot: usize },
    Write { slot: usize, offset: u64, seed: u64, length: u64 },
    Append { slot: usize, seed: u64, length: u64 },
    Read { slot: usize, offset: u64, length: u64 },
    MapWrite { slot: usize, offset: u64, seed: u64, length: u64 },
    Map { map: usize, slot: usize },
    Store { map: usize, offset: u64, seed: u64, length: u64 },
    Fetch { map: usize, offset: u64, length: u64 },
    Unmap { map: usize },
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

/// A call and who makes it.
pub fn invent_with_user(dice: &mut Dice) -> (u32, Call) {
    let call = invent(dice);
    let user = if dice.chance(25) { dice.of(&USERS) } else { 0 };
    // Only an owner may set the time that stands for that of the store.
    (if matches!(call, Call::Store { .. }) { 0 } else { user }, call)
}

/// The time that is set after a store: with mappings each filesystem has its own moment for it. FUSE tells of none before
/// the pages are written back, and of none at all where they are those of a local file (P6).
pub fn time_of_store(seed: u64) -> i64 {
    (seed % SET_BEFORE as u64) as i64
}

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
                (5, libc::O_DIRECT),
            ] {
                flags |= if dice.chance(percent) { flag } else { 0 };
            }
            if flags & libc::O_APPEND != 0 {
                // Where they append is not aligned.
                flags &= !libc::O_DIRECT;
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
        46..48 => Call::MapWrite { slot, offset: dice.offset(), seed: dice.next(), length: 1 + dice.length() },
        48..50 => {
            let map = dice.below(MAPS as u64) as usize;
            match dice.below(12) {
                0..3 => Call::Map { map, slot },
                3..8 => Call::Store { map, offset: dice.offset(), seed: dice.next(), length: 1 + dice.length() },
                8..11 => Call::Fetch { map, offset: dice.offset(), length: dice.length() },
                _ => Call::Unmap { map },
            }
        }
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
pub fn acl(user: u32, [owner, named, group, other]: [u16; 4]) -> Vec<u8> {
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
pub enum Shown {
    Gave(Gave),
    Bytes(Gave, Vec<u8>),
    Looked(Result<Stat, Errno>, Vec<String>, Vec<(String, Vec<u8>)>),
}

/// The range that direct I/O can do in place of this one.
pub fn aligned(offset: u64, length: u64) -> (u64, u64) {
    (offset / BLOCK * BLOCK, length.next_multiple_of(BLOCK))
}

/// Without the bytes of a read.
pub fn brief(shown: &Option<Shown>) -> String {
    match shown {
        Some(Shown::Bytes(gave, bytes)) => format!("{gave:?} hash {}", &blake3::hash(bytes).to_hex()[..8]),
        Some(other) => format!("{other:?}"),
        None => "nothing to do".into(),
    }
}
