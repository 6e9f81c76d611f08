//! The rules that every record obeys, on both sides of the wire.
//!
//! Owns: ranges, order and disjointness inside one record.
//! Does not own: whether the record fits the state it is applied to (`meta::replay`).

use super::bytes::check_name;
use super::record::{Change, Content, Dentry, Extent, Record, VoidReason, Xattr};
use super::{CHUNK_BYTES_MAX, FORMAT};
use crate::clock::Timestamp;
use crate::id::{InodeId, NUMBER_MAX};

/// Bytes of the longest name of an extended attribute (`XATTR_NAME_MAX`).
const XATTR_NAME_MAX: usize = 255;
/// Bytes of the longest value of an extended attribute (`XATTR_SIZE_MAX`).
const XATTR_VALUE_MAX: usize = 64 << 10;
/// Bytes of the longest target of a symbolic link (`PATH_MAX` without its NUL).
const SYMLINK_MAX: usize = 4095;

type Checked = Result<(), String>;

/// Checks a record; the error says which rule it breaks.
pub(super) fn check(record: &Record) -> Checked {
    const { assert!(FORMAT == 1, "a new format needs its own rules") };
    positive("seq", record.seq.0)?;
    match &record.change {
        Change::Mkdir { parent, name, ino, mode, time, xattrs, .. } => {
            check_birth(*parent, name, *ino, *time)?;
            check_mode(*mode)?;
            if mode & libc::S_IFMT != libc::S_IFDIR {
                return Err(format!("mode {mode:o} is not of a directory"));
            }
            xattrs.iter().try_for_each(check_xattr)
        }
        Change::Create { parent, name, ino, mode, rdev, time, xattrs, .. } => {
            check_birth(*parent, name, *ino, *time)?;
            check_mode(*mode)?;
            match mode & libc::S_IFMT {
                libc::S_IFCHR | libc::S_IFBLK => {}
                libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK if *rdev == 0 => {}
                libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK => return Err("rdev without a device".into()),
                _ => return Err(format!("mode {mode:o} is not of a file, fifo, socket or device")),
            }
            xattrs.iter().try_for_each(check_xattr)
        }
        Change::Content(content) => check_content(content),
        Change::Void { ino, generation, why } => {
            positive("ino", ino.0)?;
            number("gen", generation.0)?;
            if let VoidReason::Lost { size, mtime, ctime } = why {
                number("size", *size)?;
                check_time("mtime", *mtime)?;
                check_time("ctime", *ctime)?;
            }
            Ok(())
        }
        Change::Symlink { parent, name, ino, target, time, .. } => {
            check_birth(*parent, name, *ino, *time)?;
            if target.is_empty() || target.len() > SYMLINK_MAX || target.contains(&0) {
                return Err("target is empty, too long or contains NUL".into());
            }
            Ok(())
        }
        Change::Link { parent, name, ino, time }
        | Change::Unlink { parent, name, ino, time }
        | Change::Rmdir { parent, name, ino, time } => check_birth(*parent, name, *ino, *time),
        Change::Rename { from, to, ino, replaced, time, .. } => {
            check_dentry(from)?;
            check_dentry(to)?;
            not_root(*ino)?;
            replaced.map_or(Ok(()), not_root)?;
            check_time("time", *time)
        }
        Change::Exchange { a, b, time } => {
            for (dentry, ino) in [a, b] {
                check_dentry(dentry)?;
                not_root(*ino)?;
            }
            check_time("time", *time)
        }
        Change::Setattr { ino, mode, atime, mtime, ctime, .. } => {
            positive("ino", ino.0)?;
            mode.map_or(Ok(()), check_mode)?;
            atime.map_or(Ok(()), |time| check_time("atime", time))?;
            mtime.map_or(Ok(()), |time| check_time("mtime", time))?;
            check_time("ctime", *ctime)
        }
        Change::Setxattr { ino, name, value, mode, ctime } => {
            positive("ino", ino.0)?;
            check_xattr_name(name)?;
            check_xattr_value(value)?;
            mode.map_or(Ok(()), check_mode)?;
            check_time("ctime", *ctime)
        }
        Change::Removexattr { ino, name, ctime } => {
            positive("ino", ino.0)?;
            check_xattr_name(name)?;
            check_time("ctime", *ctime)
        }
        Change::Repack { chunks, moves, .. } => {
            check_chunks(chunks)?;
            // The chunk that is emptied is not at hand: what can be said is that no chunk is longer than the largest.
            check_extents("moves", moves, chunks, CHUNK_BYTES_MAX)
        }
    }
}

fn check_content(content: &Content) -> Checked {
    positive("ino", content.ino.0)?;
    number("gen", content.generation.0)?;
    number("size", content.size)?;
    check_time("mtime", content.mtime)?;
    check_time("ctime", content.ctime)?;
    content.mode.map_or(Ok(()), check_mode)?;
    if let Some((k, of)) = content.part
        && !(1..=of).contains(&k)
    {
        return Err(format!("part {k} of {of}"));
    }
    check_chunks(&content.chunks)?;
    check_extents("extents", &content.extents, &content.chunks, content.size)?;
    // Holes may reach beyond `size`, where everything is cut off anyway. They never overlap extents, so that the order
    // in which the two are applied cannot matter.
    let mut extents = content.extents.iter().peekable();
    let mut last_end = 0;
    for &(offset, length) in &content.zero {
        let end = range_end("zero", offset, length)?;
        if offset < last_end {
            return Err(format!("zero at {offset} overlaps the one before or is out of order"));
        }
        last_end = end;
        while extents.next_if(|extent| extent.offset + extent.length <= offset).is_some() {}
        if extents.peek().is_some_and(|extent| extent.offset < end) {
            return Err(format!("zero at {offset} overlaps an extent"));
        }
    }
    Ok(())
}

fn check_chunks(chunks: &[(crate::id::ChunkHash, u64)]) -> Checked {
    match chunks.iter().find(|(_, length)| !(1..=CHUNK_BYTES_MAX).contains(length)) {
        Some((hash, length)) => Err(format!("chunk {hash} of {length} bytes")),
        None => Ok(()),
    }
}

/// Ascending, disjoint, at least a byte, below `limit`, inside their chunks.
fn check_extents(key: &str, extents: &[Extent], chunks: &[(crate::id::ChunkHash, u64)], limit: u64) -> Checked {
    let mut last_end = 0;
    for extent in extents {
        let at = extent.offset;
        let end = range_end(key, at, extent.length)?;
        if at < last_end {
            return Err(format!("{key} at {at} overlaps the one before or is out of order"));
        }
        last_end = end;
        if end > limit {
            return Err(format!("{key} at {at} ends at {end}, beyond {limit}"));
        }
        let Some((_, chunk_length)) = chunks.get(extent.chunk as usize) else {
            return Err(format!("{key} at {at} names chunk {} of {}", extent.chunk, chunks.len()));
        };
        if range_end(key, extent.chunk_offset, extent.length)? > *chunk_length {
            return Err(format!("{key} at {at} reaches beyond its chunk of {chunk_length} bytes"));
        }
    }
    Ok(())
}

fn range_end(key: &str, offset: u64, length: u64) -> Result<u64, String> {
    if length == 0 {
        return Err(format!("{key} at {offset} is empty"));
    }
    offset
        .checked_add(length)
        .filter(|end| *end <= NUMBER_MAX)
        .ok_or_else(|| format!("{key} at {offset} ends beyond 2^53"))
}

/// What records that name one inode in one directory have in common.
fn check_birth(parent: InodeId, name: &[u8], ino: InodeId, time: Timestamp) -> Checked {
    positive("parent", parent.0)?;
    check_name(name).map_err(|e| e.to_string())?;
    not_root(ino)?;
    check_time("time", time)
}

fn check_dentry(dentry: &Dentry) -> Checked {
    positive("parent", dentry.parent.0)?;
    check_name(&dentry.name).map_err(|e| e.to_string())
}

/// The root has no name: nothing names it, moves it or replaces it.
fn not_root(ino: InodeId) -> Checked {
    positive("ino", ino.0)?;
    if ino == InodeId::ROOT { Err("the root has no name".into()) } else { Ok(()) }
}

fn positive(key: &str, value: u64) -> Checked {
    if value == 0 {
        return Err(format!("{key} is 0"));
    }
    number(key, value)
}

fn number(key: &str, value: u64) -> Checked {
    if value > NUMBER_MAX { Err(format!("{key} {value} is not below 2^53")) } else { Ok(()) }
}

/// Nanoseconds are in range by the type.
fn check_time(key: &str, time: Timestamp) -> Checked {
    if time.secs().unsigned_abs() > NUMBER_MAX {
        return Err(format!("{key} {} s is not below 2^53", time.secs()));
    }
    Ok(())
}

fn check_mode(mode: u32) -> Checked {
    if mode > (libc::S_IFMT | 0o7777) { Err(format!("mode {mode:o} has unknown bits")) } else { Ok(()) }
}

fn check_xattr((name, value): &Xattr) -> Checked {
    check_xattr_name(name)?;
    check_xattr_value(value)
}

fn check_xattr_name(name: &[u8]) -> Checked {
    if name.is_empty() || name.len() > XATTR_NAME_MAX || name.contains(&0) {
        return Err("an attribute's name is empty, too long or contains NUL".into());
    }
    Ok(())
}

fn check_xattr_value(value: &[u8]) -> Checked {
    if value.len() > XATTR_VALUE_MAX { Err(format!("an attribute's value has {} bytes", value.len())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{ChunkHash, Generation, Seq};

    fn content(chunks: &[u64], extents: &[(u64, u64, u32, u64)], zero: &[(u64, u64)]) -> Checked {
        check(&Record {
            seq: Seq(1),
            change: Change::Content(Content {
                ino: InodeId(2),
                generation: Generation(1),
                whole: false,
                size: 1000,
                mtime: Timestamp::EPOCH,
                ctime: Timestamp::EPOCH,
                mode: None,
                chunks: chunks.iter().map(|length| (ChunkHash::of(&length.to_le_bytes()), *length)).collect(),
                extents: extents
                    .iter()
                    .map(|&(offset, length, chunk, chunk_offset)| Extent { offset, length, chunk, chunk_offset })
                    .collect(),
                zero: zero.to_vec(),
                part: None,
            }),
        })
    }

    #[test]
    fn extents_are_ascending_disjoint_and_inside() {
        assert_eq!(content(&[100, 50], &[(0, 100, 0, 0), (100, 50, 1, 0), (990, 10, 0, 90)], &[]), Ok(()));
        for bad in [
            &[(0u64, 0u64, 0u32, 0u64)] as &[_], // empty
            &[(0, 101, 0, 0)],                   // longer than its chunk
            &[(0, 100, 0, 1)],                   // beyond its chunk
            &[(0, 1, 2, 0)],                     // no such chunk
            &[(950, 51, 0, 0)],                  // beyond size
            &[(10, 10, 0, 0), (19, 10, 0, 0)],   // overlap
            &[(20, 10, 0, 0), (10, 10, 0, 0)],   // order
            &[(u64::MAX, 2, 0, 0)],              // overflow
            &[(0, 2, 0, u64::MAX)],              // overflow in the chunk
        ] {
            assert!(content(&[100, 50], bad, &[]).is_err(), "{bad:?}");
        }
        assert!(content(&[0], &[], &[]).is_err());
        assert!(content(&[CHUNK_BYTES_MAX + 1], &[], &[]).is_err());
    }

    #[test]
    fn holes_never_overlap_extents() {
        let extents = &[(100, 50, 0, 0), (300, 50, 0, 0)];
        assert_eq!(content(&[100], extents, &[(0, 100), (150, 150), (350, 5000)]), Ok(()));
        for bad in [&[(99u64, 2u64)] as &[_], &[(149, 1)], &[(0, 1000)], &[(340, 1)], &[(0, 10), (5, 10)], &[(7, 0)]] {
            assert!(content(&[100], extents, bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_root_is_never_named() {
        let link = |ino| Record {
            seq: Seq(1),
            change: Change::Link { parent: InodeId(1), name: b"a".to_vec(), ino: InodeId(ino), time: Timestamp::EPOCH },
        };
        assert_eq!(check(&link(2)), Ok(()));
        assert!(check(&link(1)).is_err());
        assert!(check(&link(0)).is_err());
        assert!(check(&link(1 << 53)).is_err());
    }
}
