//! Attributes and times, ours ↔ the FUSE crate's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

use crate::clock::Timestamp;
use crate::id::InodeId;
use crate::vfs::Attributes;
use crate::vfs::attr::SetTime;

/// Names and attributes change only through this mount, so the kernel may keep what it was told. A year, not for ever:
/// the kernel computes in jiffies.
pub(super) const TTL: Duration = Duration::from_secs(365 * 24 * 3600);
/// Inode numbers are never reused, so that no second inode needs a generation to differ from the first.
pub(super) const GENERATION: fuser::Generation = fuser::Generation(0);

/// Hint for reads and writes by `stdio` and `cp`: as much as one request carries.
const BLOCK_SIZE_HINT: u32 = 1 << 20;

/// Our inode of the kernel's number.
pub(super) fn inode(ino: INodeNo) -> InodeId {
    InodeId(ino.0)
}

/// What the kernel shows for `stat`.
pub(super) fn file_attr(attributes: &Attributes) -> FileAttr {
    let inode = &attributes.inode;
    FileAttr {
        ino: INodeNo(inode.ino.0),
        size: inode.size,
        blocks: attributes.blocks,
        atime: inode.atime.into(),
        mtime: inode.mtime.into(),
        ctime: inode.ctime.into(),
        crtime: UNIX_EPOCH,
        kind: file_type(inode.mode),
        perm: (inode.mode & 0o7777) as u16,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        blksize: BLOCK_SIZE_HINT,
        flags: 0,
    }
}

/// What the kernel remembers of a name that is not there: an entry without an inode.
pub(super) fn no_entry() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_SIZE_HINT,
        flags: 0,
    }
}

/// The type in a mode; rows hold no other than these.
pub(super) fn file_type(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

/// The time that `utimensat` sets.
pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(requested_time(time)),
    }
}

/// A time of a request. fuser 0.18 reads a time before 1970, -s seconds + n nanoseconds, as 1970 − (s seconds + n
/// nanoseconds); here that is undone.
fn requested_time(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(_) => time.into(),
        Err(before) => {
            let before = before.duration();
            Timestamp::new(-(before.as_secs() as i64), before.subsec_nanos()).expect("nanoseconds are below a second")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_before_1970_keeps_its_fraction_though_the_crate_gets_it_wrong() {
        let as_fuser_reads_it = UNIX_EPOCH - Duration::new(1, 500_000_000);
        assert_eq!(requested_time(as_fuser_reads_it), Timestamp::new(-1, 500_000_000).unwrap());
        assert_eq!(requested_time(UNIX_EPOCH - Duration::new(7, 0)), Timestamp::new(-7, 0).unwrap());
        assert_eq!(requested_time(UNIX_EPOCH + Duration::new(7, 1)), Timestamp::new(7, 1).unwrap());
    }
}
