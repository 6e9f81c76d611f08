//! The keys of each type of line.
//!
//! Owns: keys, their order, which may be absent; both ways between [`Record`] and these.
//! Does not own: the rules that values obey (`format::check`), the trailer (`format::segment`).

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::Hex;
use super::bytes::ByteString;
use super::record::{Change, Content, Dentry, Extent, Record, VoidReason, Xattr};
use crate::clock::Timestamp;
use crate::id::{ChunkHash, Generation, InodeId, NUMBER_MAX, Seq};

/// Writes the line of a record without its newline.
pub(super) fn write(record: &Record, out: &mut Vec<u8>) -> serde_json::Result<()> {
    let seq = record.seq;
    macro_rules! put {
        ($line:expr) => {
            serde_json::to_writer(out, &$line)
        };
    }
    match &record.change {
        &Change::Mkdir { parent, ref name, ino, mode, uid, gid, time, ref xattrs } => {
            let (name, xattrs) = (bytes(name), xattr_lines(xattrs));
            put!(Mkdir { seq, parent, name, ino, mode, uid, gid, time: near(time), xattrs })
        }
        &Change::Create { parent, ref name, ino, mode, uid, gid, rdev, time, ref xattrs } => {
            let (name, xattrs) = (bytes(name), xattr_lines(xattrs));
            put!(Create { seq, parent, name, ino, mode, uid, gid, rdev, time: near(time), xattrs })
        }
        Change::Content(content) => put!(ContentLine {
            seq,
            ino: content.ino,
            r#gen: content.generation,
            whole: content.whole,
            size: content.size,
            mtime: near(content.mtime),
            ctime: near(content.ctime),
            mode: content.mode,
            chunks: chunk_lines(&content.chunks),
            extents: extent_lines(&content.extents),
            zero: Cow::Borrowed(&content.zero),
            part: content.part,
        }),
        &Change::Void { ino, generation, why } => {
            let (why, size, mtime, ctime) = match why {
                VoidReason::Unlinked => ("unlinked", None, None, None),
                VoidReason::Moved => ("moved", None, None, None),
                VoidReason::Lost { size, mtime, ctime } => ("lost", Some(size), Some(near(mtime)), Some(near(ctime))),
            };
            put!(Void { seq, ino, r#gen: generation, why: why.into(), size, mtime, ctime })
        }
        &Change::Symlink { parent, ref name, ino, uid, gid, ref target, time } => {
            let (name, target) = (bytes(name), bytes(target));
            put!(Symlink { seq, parent, name, ino, uid, gid, target, time: near(time) })
        }
        &Change::Link { parent, ref name, ino, time } => {
            put!(Link { seq, parent, name: bytes(name), ino, time: near(time) })
        }
        &Change::Rename { ref from, ref to, ino, replaced, dir, time } => {
            let (from, to) = ((from.parent, bytes(&from.name)), (to.parent, bytes(&to.name)));
            put!(Rename { seq, from, to, ino, replaced, dir, time: near(time) })
        }
        &Change::Exchange { a: (ref a, a_ino), b: (ref b, b_ino), time } => {
            let (a, b) = ((a.parent, bytes(&a.name), a_ino), (b.parent, bytes(&b.name), b_ino));
            put!(Exchange { seq, a, b, time: near(time) })
        }
        &Change::Unlink { parent, ref name, ino, time } => {
            put!(Unlink { seq, parent, name: bytes(name), ino, time: near(time) })
        }
        &Change::Rmdir { parent, ref name, ino, time } => {
            put!(Rmdir { seq, parent, name: bytes(name), ino, time: near(time) })
        }
        &Change::Setattr { ino, mode, uid, gid, atime, mtime, ctime } => {
            let (atime, mtime) = (atime.map(near), mtime.map(near));
            put!(Setattr { seq, ino, mode, uid, gid, atime, mtime, ctime: near(ctime) })
        }
        &Change::Setxattr { ino, ref name, ref value, mode, ctime } => {
            put!(Setxattr { seq, ino, name: bytes(name), value: bytes(value), mode, ctime: near(ctime) })
        }
        &Change::Removexattr { ino, ref name, ctime } => {
            put!(Removexattr { seq, ino, name: bytes(name), ctime: near(ctime) })
        }
        Change::Repack { from, chunks, moves } => {
            put!(Repack { seq, from: Hex(*from), chunks: chunk_lines(chunks), moves: extent_lines(moves) })
        }
    }
}

/// Reads a line of type `t`, not yet checked; `None` if there is no such type of record.
pub(super) fn read(t: &str, line: &[u8]) -> Option<serde_json::Result<Record>> {
    macro_rules! get {
        ($line:ident) => {
            serde_json::from_slice::<$line>(line).and_then($line::into_record)
        };
    }
    Some(match t {
        "mkdir" => get!(Mkdir),
        "create" => get!(Create),
        "content" => get!(ContentLine),
        "void" => get!(Void),
        "symlink" => get!(Symlink),
        "link" => get!(Link),
        "rename" => get!(Rename),
        "exchange" => get!(Exchange),
        "unlink" => get!(Unlink),
        "rmdir" => get!(Rmdir),
        "setattr" => get!(Setattr),
        "setxattr" => get!(Setxattr),
        "removexattr" => get!(Removexattr),
        "repack" => get!(Repack),
        _ => return None,
    })
}

type Bytes<'a> = ByteString<'a>;
type ExtentLine = (u64, u64, u32, u64);
type Read = serde_json::Result<Record>;

/// A line: its keys in the order of FORMATS.md. Reading ignores `t`, it was looked at before.
macro_rules! line {
    (
        $name:ident $(<$life:lifetime>)? $t:literal { $($(#[$meta:meta])* $key:ident: $type:ty,)* }
        $self:ident => $change:expr
    ) => {
        #[derive(Serialize, Deserialize)]
        #[serde(tag = "t", rename = $t)]
        struct $name$(<$life>)? {
            seq: Seq,
            $($(#[$meta])* $key: $type,)*
        }

        impl$(<$life>)? $name$(<$life>)? {
            fn into_record($self) -> Read {
                Ok(Record { seq: $self.seq, change: $change })
            }
        }
    };
}

line!(Mkdir<'a> "mkdir" {
    parent: InodeId,
    name: Bytes<'a>,
    ino: InodeId,
    mode: u32,
    uid: u32,
    gid: u32,
    time: Timestamp,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    xattrs: Vec<(Bytes<'a>, Bytes<'a>)>,
} self => Change::Mkdir {
    parent: self.parent,
    name: self.name.into(),
    ino: self.ino,
    mode: self.mode,
    uid: self.uid,
    gid: self.gid,
    time: self.time,
    xattrs: xattrs(self.xattrs),
});

line!(Create<'a> "create" {
    parent: InodeId,
    name: Bytes<'a>,
    ino: InodeId,
    mode: u32,
    uid: u32,
    gid: u32,
    rdev: u32,
    time: Timestamp,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    xattrs: Vec<(Bytes<'a>, Bytes<'a>)>,
} self => Change::Create {
    parent: self.parent,
    name: self.name.into(),
    ino: self.ino,
    mode: self.mode,
    uid: self.uid,
    gid: self.gid,
    rdev: self.rdev,
    time: self.time,
    xattrs: xattrs(self.xattrs),
});

line!(ContentLine<'a> "content" {
    ino: InodeId,
    r#gen: Generation,
    whole: bool,
    size: u64,
    mtime: Timestamp,
    ctime: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<u32>,
    chunks: Vec<(Hex, u64)>,
    extents: Vec<ExtentLine>,
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    zero: Cow<'a, [(u64, u64)]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    part: Option<(u32, u32)>,
} self => Change::Content(Content {
    ino: self.ino,
    generation: self.r#gen,
    whole: self.whole,
    size: self.size,
    mtime: self.mtime,
    ctime: self.ctime,
    mode: self.mode,
    chunks: chunks(self.chunks),
    extents: extents(self.extents),
    zero: self.zero.into_owned(),
    part: self.part,
}));

line!(Void<'a> "void" {
    ino: InodeId,
    r#gen: Generation,
    why: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtime: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ctime: Option<Timestamp>,
} self => Change::Void {
    ino: self.ino,
    generation: self.r#gen,
    why: match (&*self.why, self.size, self.mtime, self.ctime) {
        ("unlinked", ..) => VoidReason::Unlinked,
        ("moved", ..) => VoidReason::Moved,
        ("lost", Some(size), Some(mtime), Some(ctime)) => VoidReason::Lost { size, mtime, ctime },
        ("lost", ..) => return Err(error("a lost void without size, mtime or ctime")),
        _ => return Err(error("a void with an unknown reason")),
    },
});

line!(Symlink<'a> "symlink" {
    parent: InodeId,
    name: Bytes<'a>,
    ino: InodeId,
    uid: u32,
    gid: u32,
    target: Bytes<'a>,
    time: Timestamp,
} self => Change::Symlink {
    parent: self.parent,
    name: self.name.into(),
    ino: self.ino,
    uid: self.uid,
    gid: self.gid,
    target: self.target.into(),
    time: self.time,
});

line!(Link<'a> "link" { parent: InodeId, name: Bytes<'a>, ino: InodeId, time: Timestamp, }
    self => Change::Link { parent: self.parent, name: self.name.into(), ino: self.ino, time: self.time });

line!(Rename<'a> "rename" {
    from: (InodeId, Bytes<'a>),
    to: (InodeId, Bytes<'a>),
    ino: InodeId,
    replaced: Option<InodeId>,
    dir: bool,
    time: Timestamp,
} self => Change::Rename {
    from: dentry(self.from.0, self.from.1),
    to: dentry(self.to.0, self.to.1),
    ino: self.ino,
    replaced: self.replaced,
    dir: self.dir,
    time: self.time,
});

line!(Exchange<'a> "exchange" {
    a: (InodeId, Bytes<'a>, InodeId),
    b: (InodeId, Bytes<'a>, InodeId),
    time: Timestamp,
} self => Change::Exchange {
    a: (dentry(self.a.0, self.a.1), self.a.2),
    b: (dentry(self.b.0, self.b.1), self.b.2),
    time: self.time,
});

line!(Unlink<'a> "unlink" { parent: InodeId, name: Bytes<'a>, ino: InodeId, time: Timestamp, }
    self => Change::Unlink { parent: self.parent, name: self.name.into(), ino: self.ino, time: self.time });

line!(Rmdir<'a> "rmdir" { parent: InodeId, name: Bytes<'a>, ino: InodeId, time: Timestamp, }
    self => Change::Rmdir { parent: self.parent, name: self.name.into(), ino: self.ino, time: self.time });

line!(Setattr "setattr" {
    ino: InodeId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    atime: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtime: Option<Timestamp>,
    ctime: Timestamp,
} self => Change::Setattr {
    ino: self.ino,
    mode: self.mode,
    uid: self.uid,
    gid: self.gid,
    atime: self.atime,
    mtime: self.mtime,
    ctime: self.ctime,
});

line!(Setxattr<'a> "setxattr" {
    ino: InodeId,
    name: Bytes<'a>,
    value: Bytes<'a>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<u32>,
    ctime: Timestamp,
} self => Change::Setxattr {
    ino: self.ino,
    name: self.name.into(),
    value: self.value.into(),
    mode: self.mode,
    ctime: self.ctime,
});

line!(Removexattr<'a> "removexattr" { ino: InodeId, name: Bytes<'a>, ctime: Timestamp, }
    self => Change::Removexattr { ino: self.ino, name: self.name.into(), ctime: self.ctime });

line!(Repack "repack" { from: Hex, chunks: Vec<(Hex, u64)>, moves: Vec<ExtentLine>, }
    self => Change::Repack { from: self.from.0, chunks: chunks(self.chunks), moves: extents(self.moves) });

/// The time, moved into the range that JSON numbers keep.
fn near(time: Timestamp) -> Timestamp {
    let bound = NUMBER_MAX as i64;
    Timestamp::new(time.secs().clamp(-bound, bound), time.nanos()).expect("nanoseconds of a time are below a second")
}

fn bytes(bytes: &[u8]) -> Bytes<'_> {
    bytes.into()
}

fn xattr_lines(xattrs: &[Xattr]) -> Vec<(Bytes<'_>, Bytes<'_>)> {
    xattrs.iter().map(|(name, value)| (bytes(name), bytes(value))).collect()
}

fn xattrs(lines: Vec<(Bytes<'_>, Bytes<'_>)>) -> Vec<Xattr> {
    lines.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
}

fn chunk_lines(chunks: &[(ChunkHash, u64)]) -> Vec<(Hex, u64)> {
    chunks.iter().map(|&(hash, length)| (Hex(hash), length)).collect()
}

fn chunks(lines: Vec<(Hex, u64)>) -> Vec<(ChunkHash, u64)> {
    lines.into_iter().map(|(hash, length)| (hash.0, length)).collect()
}

fn extent_lines(extents: &[Extent]) -> Vec<ExtentLine> {
    extents.iter().map(|extent| (extent.offset, extent.length, extent.chunk, extent.chunk_offset)).collect()
}

fn extents(lines: Vec<ExtentLine>) -> Vec<Extent> {
    lines
        .into_iter()
        .map(|(offset, length, chunk, chunk_offset)| Extent { offset, length, chunk, chunk_offset })
        .collect()
}

fn dentry(parent: InodeId, name: Bytes<'_>) -> Dentry {
    Dentry { parent, name: name.into() }
}

fn error(why: &str) -> serde_json::Error {
    serde::de::Error::custom(why)
}
