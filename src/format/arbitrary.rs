//! Random records that obey the format, for property tests.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::record::{Change, Content, Dentry, Extent, Record, VoidReason, Xattr};
use crate::clock::Timestamp;
use crate::id::{ChunkHash, Generation, InodeId, NUMBER_MAX, Seq};

/// Any record.
pub(crate) fn record() -> impl Strategy<Value = Record> {
    (1..=NUMBER_MAX, change()).prop_map(|(seq, change)| Record { seq: Seq(seq), change })
}

/// A name of any bytes, mostly short.
pub(crate) fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(b'a'), Just(b'.'), Just(0xff), Just(b'"'), Just(b'\n'), 1u8..]
        .prop_filter("/", |b| *b != b'/');
    prop_oneof![9 => vec(byte.clone(), 1..5), 1 => vec(byte, 250..=255)]
        .prop_filter("dots", |name| name != b"." && name != b"..")
}

/// A time that JSON keeps.
pub(crate) fn time() -> impl Strategy<Value = Timestamp> {
    let bound = NUMBER_MAX as i64;
    (prop_oneof![9 => -10i64..2_000_000_000, 1 => -bound..=bound], 0u32..1_000_000_000)
        .prop_map(|(secs, nanos)| Timestamp::new(secs, nanos).unwrap())
}

/// A content of a small file.
pub(crate) fn content() -> impl Strategy<Value = Content> {
    let runs = vec((0u64..50, 1u64..100, any::<bool>(), any::<prop::sample::Index>(), 0u64..20), 0..40);
    let header = (inode(2), any::<bool>(), time(), time(), option::of(permissions()), 0u64..200);
    (header, chunks(), runs).prop_map(|((ino, whole, mtime, ctime, mode, tail), chunks, runs)| {
        let (mut extents, mut zero, mut end) = (Vec::new(), Vec::new(), 0);
        for (gap, length, hole, chunk, chunk_offset) in runs {
            let offset = end + gap;
            if hole {
                zero.push((offset, length));
                end = offset + length;
            } else if !chunks.is_empty() {
                let chunk = chunk.index(chunks.len());
                let chunk_offset = chunk_offset.min(chunks[chunk].1 - 1);
                let length = length.min(chunks[chunk].1 - chunk_offset);
                extents.push(Extent { offset, length, chunk: chunk as u32, chunk_offset });
                end = offset + length;
            }
        }
        let size = extents.last().map_or(0, |extent| extent.offset + extent.length) + tail;
        let generation = Generation(3);
        Content { ino, generation, whole, size, mtime, ctime, mode, chunks, extents, zero, part: None }
    })
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (inode(1), name(), inode(2), permissions(), any::<(u32, u32)>(), time(), xattrs()).prop_map(
            |(parent, name, ino, mode, (uid, gid), time, xattrs)| Change::Mkdir {
                parent,
                name,
                ino,
                mode: libc::S_IFDIR | mode,
                uid,
                gid,
                time,
                xattrs
            }
        ),
        (inode(1), name(), inode(2), node(), any::<(u32, u32)>(), time(), xattrs()).prop_map(
            |(parent, name, ino, (mode, rdev), (uid, gid), time, xattrs)| Change::Create {
                parent,
                name,
                ino,
                mode,
                uid,
                gid,
                rdev,
                time,
                xattrs
            }
        ),
        content().prop_map(Change::Content),
        content().prop_map(Change::Content),
        (inode(2), 0..=NUMBER_MAX, void()).prop_map(|(ino, generation, why)| Change::Void {
            ino,
            generation: Generation(generation),
            why
        }),
        (inode(1), name(), inode(2), any::<(u32, u32)>(), vec(1u8.., 1..20), time()).prop_map(
            |(parent, name, ino, (uid, gid), target, time)| Change::Symlink {
                parent,
                name,
                ino,
                uid,
                gid,
                target,
                time
            }
        ),
        (inode(1), name(), inode(2), time()).prop_map(|(parent, name, ino, time)| Change::Link {
            parent,
            name,
            ino,
            time
        }),
        (dentry(), dentry(), inode(2), option::of(inode(2)), any::<bool>(), time())
            .prop_map(|(from, to, ino, replaced, dir, time)| Change::Rename { from, to, ino, replaced, dir, time }),
        (dentry(), inode(2), dentry(), inode(2), time()).prop_map(|(a, a_ino, b, b_ino, time)| Change::Exchange {
            a: (a, a_ino),
            b: (b, b_ino),
            time
        }),
        (inode(1), name(), inode(2), time()).prop_map(|(parent, name, ino, time)| Change::Unlink {
            parent,
            name,
            ino,
            time
        }),
        (inode(1), name(), inode(2), time()).prop_map(|(parent, name, ino, time)| Change::Rmdir {
            parent,
            name,
            ino,
            time
        }),
        (
            inode(1),
            option::of(permissions()),
            option::of(any::<u32>()),
            option::of(any::<u32>()),
            option::of(time()),
            option::of(time()),
            time()
        )
            .prop_map(|(ino, mode, uid, gid, atime, mtime, ctime)| Change::Setattr {
                ino,
                mode,
                uid,
                gid,
                atime,
                mtime,
                ctime
            }),
        (inode(1), xattr(), option::of(permissions()), time())
            .prop_map(|(ino, (name, value), mode, ctime)| Change::Setxattr { ino, name, value, mode, ctime }),
        (inode(1), xattr(), time()).prop_map(|(ino, (name, _), ctime)| Change::Removexattr { ino, name, ctime }),
        (any::<[u8; 32]>(), content()).prop_map(|(from, content)| Change::Repack {
            from: ChunkHash::of(&from),
            chunks: content.chunks,
            moves: content.extents
        }),
    ]
}

fn inode(first: u64) -> impl Strategy<Value = InodeId> {
    prop_oneof![9 => first..20, 1 => first..=NUMBER_MAX].prop_map(InodeId)
}

fn dentry() -> impl Strategy<Value = Dentry> {
    (inode(1), name()).prop_map(|(parent, name)| Dentry { parent, name })
}

fn permissions() -> impl Strategy<Value = u32> {
    0u32..=0o7777
}

fn node() -> impl Strategy<Value = (u32, u32)> {
    let kind = prop_oneof![
        Just((libc::S_IFREG, false)),
        Just((libc::S_IFIFO, false)),
        Just((libc::S_IFSOCK, false)),
        Just((libc::S_IFCHR, true)),
        Just((libc::S_IFBLK, true)),
    ];
    (kind, permissions(), any::<u32>())
        .prop_map(|((kind, device), mode, rdev)| (kind | mode, if device { rdev } else { 0 }))
}

fn xattr() -> impl Strategy<Value = Xattr> {
    (vec(1u8.., 1..10), vec(any::<u8>(), 0..30))
}

fn xattrs() -> impl Strategy<Value = Vec<Xattr>> {
    vec(xattr(), 0..3)
}

fn void() -> impl Strategy<Value = VoidReason> {
    prop_oneof![
        Just(VoidReason::Unlinked),
        Just(VoidReason::Moved),
        (0..=NUMBER_MAX, time(), time()).prop_map(|(size, mtime, ctime)| VoidReason::Lost { size, mtime, ctime }),
    ]
}

fn chunks() -> impl Strategy<Value = Vec<(ChunkHash, u64)>> {
    vec(1u64..200, 0..8).prop_map(|lengths| {
        (0u8..).zip(lengths).map(|(index, length)| (ChunkHash::of(&[index, length as u8]), length)).collect()
    })
}
