//! The namespace against a small reference model: random operations, everything compared after each. A second store that
//! replays the journal must hold the same rows.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rustix::io::Errno;

use super::attr::AttributeChange;
use super::create::NewNode;
use super::inode::Inode;
use super::namespace::{Name, Place};
use super::rename::Move;
use super::xattr::{SetMode, SetXattr};
use super::{Created, Error, Meta, Result, Tx, acl, journal};
use crate::clock::Timestamp;
use crate::id::{FilesystemId, InodeId, Seq};

type Outcome<T> = std::result::Result<T, Errno>;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    mode: u32,
    uid: u32,
    gid: u32,
    atime: i64,
    mtime: i64,
    ctime: i64,
    target: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    entries: BTreeMap<Vec<u8>, u64>,
}

impl Node {
    fn is_dir(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }
}

/// A POSIX tree as simple as it can be written. Orphans are dropped at once.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Model {
    nodes: BTreeMap<u64, Node>,
}

impl Model {
    fn new(time: i64) -> Model {
        Model { nodes: BTreeMap::from([(1, Model::node(libc::S_IFDIR | 0o755, 0, 0, time))]) }
    }

    fn node(mode: u32, uid: u32, gid: u32, time: i64) -> Node {
        Node {
            mode,
            uid,
            gid,
            atime: time,
            mtime: time,
            ctime: time,
            target: Vec::new(),
            xattrs: BTreeMap::new(),
            entries: BTreeMap::new(),
        }
    }

    fn names_of(&self, ino: u64) -> usize {
        self.nodes.values().flat_map(|node| node.entries.values()).filter(|&&named| named == ino).count()
    }

    fn nlink(&self, ino: u64) -> u32 {
        let node = &self.nodes[&ino];
        if !node.is_dir() {
            return self.names_of(ino) as u32;
        }
        2 + node.entries.values().filter(|child| self.nodes[child].is_dir()).count() as u32
    }

    fn is_within(&self, mut dir: u64, ancestor: u64) -> bool {
        loop {
            if dir == ancestor {
                return true;
            }
            match self.nodes.iter().find(|(_, node)| node.entries.values().any(|&child| child == dir)) {
                Some((&parent, _)) => dir = parent,
                None => return false,
            }
        }
    }

    fn touch(&mut self, dir: u64, time: i64) {
        let node = self.nodes.get_mut(&dir).unwrap();
        (node.mtime, node.ctime) = (time, time);
    }

    fn collect(&mut self, ino: u64) {
        if self.names_of(ino) == 0 {
            self.nodes.remove(&ino);
        }
    }

    fn dir(&self, ino: u64) -> Outcome<&Node> {
        match self.nodes.get(&ino) {
            Some(node) if node.is_dir() => Ok(node),
            Some(_) => Err(Errno::NOTDIR),
            None => Err(Errno::NOENT),
        }
    }

    fn add(&mut self, parent: u64, name: &[u8], ino: u64, node: Node, time: i64) -> Outcome<()> {
        if self.dir(parent)?.entries.contains_key(name) {
            return Err(Errno::EXIST);
        }
        self.nodes.insert(ino, node);
        self.nodes.get_mut(&parent).unwrap().entries.insert(name.to_vec(), ino);
        self.touch(parent, time);
        Ok(())
    }

    fn link(&mut self, ino: u64, parent: u64, name: &[u8], time: i64) -> Outcome<()> {
        if self.dir(parent)?.entries.contains_key(name) {
            return Err(Errno::EXIST);
        }
        let node = self.nodes.get_mut(&ino).ok_or(Errno::NOENT)?;
        if node.is_dir() {
            return Err(Errno::PERM);
        }
        node.ctime = time;
        self.nodes.get_mut(&parent).unwrap().entries.insert(name.to_vec(), ino);
        self.touch(parent, time);
        Ok(())
    }

    fn remove(&mut self, parent: u64, name: &[u8], dir: bool, time: i64) -> Outcome<()> {
        let ino = *self.dir(parent)?.entries.get(name).ok_or(Errno::NOENT)?;
        let node = self.nodes.get_mut(&ino).unwrap();
        match (node.is_dir(), dir) {
            (true, false) => return Err(Errno::ISDIR),
            (false, true) => return Err(Errno::NOTDIR),
            (true, true) if !node.entries.is_empty() => return Err(Errno::NOTEMPTY),
            _ => {}
        }
        node.ctime = time;
        self.nodes.get_mut(&parent).unwrap().entries.remove(name);
        self.touch(parent, time);
        self.collect(ino);
        Ok(())
    }

    fn rename(&mut self, from: (u64, &[u8]), to: (u64, &[u8]), no_replace: bool, time: i64) -> Outcome<()> {
        self.dir(from.0)?;
        self.dir(to.0)?;
        let moved = *self.nodes[&from.0].entries.get(from.1).ok_or(Errno::NOENT)?;
        let replaced = self.nodes[&to.0].entries.get(to.1).copied();
        if no_replace && replaced.is_some() {
            return Err(Errno::EXIST);
        }
        if replaced == Some(moved) {
            return Ok(());
        }
        let dir = self.nodes[&moved].is_dir();
        if dir && self.is_within(to.0, moved) {
            return Err(Errno::INVAL);
        }
        if let Some(replaced) = replaced {
            let node = self.nodes.get_mut(&replaced).unwrap();
            match (dir, node.is_dir()) {
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
                (true, true) if !node.entries.is_empty() => return Err(Errno::NOTEMPTY),
                _ => {}
            }
            node.ctime = time;
        }
        self.nodes.get_mut(&from.0).unwrap().entries.remove(from.1);
        self.nodes.get_mut(&to.0).unwrap().entries.insert(to.1.to_vec(), moved);
        self.nodes.get_mut(&moved).unwrap().ctime = time;
        self.touch(from.0, time);
        self.touch(to.0, time);
        replaced.into_iter().for_each(|ino| self.collect(ino));
        Ok(())
    }

    fn exchange(&mut self, a: (u64, &[u8]), b: (u64, &[u8]), time: i64) -> Outcome<()> {
        self.dir(a.0)?;
        self.dir(b.0)?;
        let at_a = *self.nodes[&a.0].entries.get(a.1).ok_or(Errno::NOENT)?;
        let at_b = *self.nodes[&b.0].entries.get(b.1).ok_or(Errno::NOENT)?;
        if at_a == at_b {
            return Ok(());
        }
        for (moved, parent) in [(at_a, b.0), (at_b, a.0)] {
            if self.nodes[&moved].is_dir() && self.is_within(parent, moved) {
                return Err(Errno::INVAL);
            }
        }
        self.nodes.get_mut(&a.0).unwrap().entries.insert(a.1.to_vec(), at_b);
        self.nodes.get_mut(&b.0).unwrap().entries.insert(b.1.to_vec(), at_a);
        for ino in [at_a, at_b] {
            self.nodes.get_mut(&ino).unwrap().ctime = time;
        }
        self.touch(a.0, time);
        self.touch(b.0, time);
        Ok(())
    }
}

/// `dir` and `ino` are indexes into what exists at that moment.
#[derive(Debug, Clone)]
enum Op {
    Make { dir: usize, name: u8, kind: u8, mode: u32, umask: u32, gid: u32 },
    Link { ino: usize, dir: usize, name: u8 },
    Unlink { dir: usize, name: u8 },
    Rmdir { dir: usize, name: u8 },
    Rename { from: (usize, u8), to: (usize, u8), no_replace: bool },
    Exchange { a: (usize, u8), b: (usize, u8) },
    Chmod { ino: usize, mode: u32 },
    Chown { ino: usize, uid: u32, gid: Option<u32> },
    Utimens { ino: usize, atime: Option<i64>, mtime: Option<i64> },
    SetXattr { ino: usize, name: u8, value: u8, mode: u8 },
    SetDefaultAcl { ino: usize, permissions: u16 },
    RemoveXattr { ino: usize, name: u8 },
    RemoveOrphans,
}

fn ops() -> impl Strategy<Value = Op> {
    let place = || (0usize..6, 0u8..4);
    let ino = || 0usize..12;
    prop_oneof![
        6 => (place(), 0u8..4, 0u32..0o10000, 0u32..0o100, 0u32..3).prop_map(|((dir, name), kind, mode, umask, gid)| {
            Op::Make { dir, name, kind, mode, umask, gid }
        }),
        2 => (ino(), place()).prop_map(|(ino, (dir, name))| Op::Link { ino, dir, name }),
        3 => place().prop_map(|(dir, name)| Op::Unlink { dir, name }),
        3 => place().prop_map(|(dir, name)| Op::Rmdir { dir, name }),
        6 => (place(), place(), any::<bool>()).prop_map(|(from, to, no_replace)| Op::Rename { from, to, no_replace }),
        3 => (place(), place()).prop_map(|(a, b)| Op::Exchange { a, b }),
        1 => (ino(), 0u32..0o10000).prop_map(|(ino, mode)| Op::Chmod { ino, mode }),
        1 => (ino(), 0u32..3, proptest::option::of(0u32..3)).prop_map(|(ino, uid, gid)| Op::Chown { ino, uid, gid }),
        1 => (ino(), proptest::option::of(-5i64..5), proptest::option::of(-5i64..5))
            .prop_map(|(ino, atime, mtime)| Op::Utimens { ino, atime, mtime }),
        1 => (ino(), 0u8..3, any::<u8>(), 0u8..3)
            .prop_map(|(ino, name, value, mode)| Op::SetXattr { ino, name, value, mode }),
        1 => (ino(), 0u16..8).prop_map(|(ino, permissions)| Op::SetDefaultAcl { ino, permissions }),
        1 => (ino(), 0u8..3).prop_map(|(ino, name)| Op::RemoveXattr { ino, name }),
        1 => Just(Op::RemoveOrphans),
    ]
}

fn name(index: u8) -> Vec<u8> {
    [b"a".to_vec(), b"b".to_vec(), b"\xff\xfe".to_vec(), b"long".repeat(50)][index as usize].clone()
}

fn time(secs: i64) -> Timestamp {
    Timestamp::new(secs, 7).unwrap()
}

fn empty_store() -> (tempfile::TempDir, Meta) {
    let dir = tempfile::tempdir().unwrap();
    let created =
        Created { filesystem: FilesystemId::random(), name: "t".into(), chunk_size: 1 << 22, time: Timestamp::EPOCH };
    let meta = Meta::create(&dir.path().join("meta.sqlite"), &created).unwrap();
    (dir, meta)
}

fn store() -> (tempfile::TempDir, Meta) {
    let (dir, meta) = empty_store();
    meta.write(|tx| tx.make_root(0o755, 0, 0, time(1))).unwrap();
    (dir, meta)
}

/// The store and the model side by side.
struct Pair {
    _dirs: [tempfile::TempDir; 2],
    meta: Meta,
    model: Model,
    /// Built from the journal alone.
    replayed: Meta,
    replayed_to: Seq,
    clock: i64,
}

impl Pair {
    fn new() -> Pair {
        let (dir, meta) = store();
        let (other, replayed) = empty_store();
        replayed.write(|tx| tx.restore_root()).unwrap();
        Pair { _dirs: [dir, other], meta, model: Model::new(1), replayed, replayed_to: Seq(0), clock: 100 }
    }

    fn dir(&self, index: usize) -> u64 {
        let dirs: Vec<u64> = self.model.nodes.iter().filter(|(_, node)| node.is_dir()).map(|(&ino, _)| ino).collect();
        dirs[index % dirs.len()]
    }

    fn ino(&self, index: usize) -> u64 {
        *self.model.nodes.keys().nth(index % self.model.nodes.len()).unwrap()
    }

    fn write<T>(&self, body: impl FnOnce(&mut Tx<'_>) -> Result<T>) -> Outcome<T> {
        self.meta.write(body).map_err(|error| match error {
            Error::Refused(errno) => errno,
            other => panic!("{other}"),
        })
    }

    fn run(&mut self, op: &Op) {
        self.clock += 1;
        let now = self.clock;
        let (ours, models) = self.both(op, now);
        assert_eq!(ours, models, "{op:?}");
        self.compare();
    }

    fn both(&mut self, op: &Op, now: i64) -> (Outcome<()>, Outcome<()>) {
        match op {
            Op::Make { dir, name: index, kind, mode, umask, gid } => {
                let (parent, bytes) = (self.dir(*dir), name(*index));
                let kind = [libc::S_IFREG, libc::S_IFDIR, libc::S_IFLNK, libc::S_IFIFO][*kind as usize];
                let mode = kind | mode & if kind == libc::S_IFDIR { 0o1777 } else { 0o7777 };
                let place = Place { parent: InodeId(parent), name: Name::new(&bytes).unwrap() };
                let new = NewNode { place, mode, rdev: 0, uid: 3, gid: *gid, umask: *umask, time: time(now) };
                let ours = self.write(|tx| match kind {
                    libc::S_IFLNK => tx.make_symlink(&new, b"to"),
                    _ => tx.make_node(&new),
                });
                let ino = ours.map_or(0, |inode| inode.ino.0);
                let node = self.model_node(parent, mode, *umask, *gid, now);
                (ours.map(|_| ()), self.model.add(parent, &bytes, ino, node, now))
            }
            Op::Link { ino, dir, name: index } => {
                let (ino, parent, bytes) = (self.ino(*ino), self.dir(*dir), name(*index));
                let place = Place { parent: InodeId(parent), name: Name::new(&bytes).unwrap() };
                let ours = self.write(|tx| tx.link(InodeId(ino), place, None, time(now)));
                (ours.map(|_| ()), self.model.link(ino, parent, &bytes, now))
            }
            Op::Unlink { dir, name: index } | Op::Rmdir { dir, name: index } => {
                let (parent, bytes, dir) = (self.dir(*dir), name(*index), matches!(op, Op::Rmdir { .. }));
                let place = Place { parent: InodeId(parent), name: Name::new(&bytes).unwrap() };
                let ours = self.write(|tx| if dir { tx.rmdir(place, time(now)) } else { tx.unlink(place, time(now)) });
                (ours.map(|_| ()), self.model.remove(parent, &bytes, dir, now))
            }
            Op::Rename { from: a, to: b, .. } | Op::Exchange { a, b } => {
                let (from, to) = ((self.dir(a.0), name(a.1)), (self.dir(b.0), name(b.1)));
                let place = |at: &(u64, Vec<u8>)| (InodeId(at.0), at.1.clone());
                let (pa, pb) = (place(&from), place(&to));
                let a = Place { parent: pa.0, name: Name::new(&pa.1).unwrap() };
                let b = Place { parent: pb.0, name: Name::new(&pb.1).unwrap() };
                if let Op::Rename { no_replace, .. } = *op {
                    let request = Move { from: a, to: b, no_replace, time: time(now) };
                    let ours = self.write(|tx| tx.rename(&request, None)).map(|_| ());
                    (ours, self.model.rename((from.0, &from.1), (to.0, &to.1), no_replace, now))
                } else {
                    let ours = self.write(|tx| tx.exchange(a, b, &[], time(now)));
                    (ours, self.model.exchange((from.0, &from.1), (to.0, &to.1), now))
                }
            }
            Op::Chmod { ino, mode } => {
                let ino = self.ino(*ino);
                let node = self.model.nodes.get_mut(&ino).unwrap();
                node.mode = node.mode & libc::S_IFMT | mode;
                node.ctime = now;
                let access = node.xattrs.get(acl::ACCESS).map(|value| acl::Acl::decode(value).unwrap().unwrap());
                if let Some(access) = access {
                    node.xattrs.insert(acl::ACCESS.to_vec(), access.with_permissions(*mode).encode());
                }
                (self.set(ino, AttributeChange { mode: Some(*mode), ..Default::default() }, now), Ok(()))
            }
            Op::Chown { ino, uid, gid } => {
                let ino = self.ino(*ino);
                let node = self.model.nodes.get_mut(&ino).unwrap();
                (node.uid, node.gid, node.ctime) = (*uid, gid.unwrap_or(node.gid), now);
                (self.set(ino, AttributeChange { uid: Some(*uid), gid: *gid, ..Default::default() }, now), Ok(()))
            }
            Op::Utimens { ino, atime, mtime } => {
                let ino = self.ino(*ino);
                let node = self.model.nodes.get_mut(&ino).unwrap();
                node.atime = atime.unwrap_or(node.atime);
                node.mtime = mtime.unwrap_or(node.mtime);
                if atime.or(*mtime).is_some() {
                    node.ctime = now;
                }
                let (atime, mtime) = (atime.map(time), mtime.map(time));
                (self.set(ino, AttributeChange { atime, mtime, ..Default::default() }, now), Ok(()))
            }
            Op::SetXattr { ino, name: index, value, mode } => {
                let (ino, attribute) = (self.ino(*ino), [b"user.".as_slice(), &name(*index)].concat());
                let mode = [SetMode::Any, SetMode::Create, SetMode::Replace][*mode as usize];
                let request = SetXattr {
                    ino: InodeId(ino),
                    name: &attribute,
                    value: &[*value],
                    mode,
                    clear_set_gid: false,
                    time: time(now),
                };
                let ours = self.write(|tx| tx.set_xattr(&request)).map(|_| ());
                let node = self.model.nodes.get_mut(&ino).unwrap();
                let models = match (mode, node.xattrs.contains_key(&attribute)) {
                    (SetMode::Create, true) => Err(Errno::EXIST),
                    (SetMode::Replace, false) => Err(Errno::NODATA),
                    _ => {
                        node.xattrs.insert(attribute, vec![*value]);
                        node.ctime = now;
                        Ok(())
                    }
                };
                (ours, models)
            }
            Op::SetDefaultAcl { ino, permissions } => {
                let ino = self.ino(*ino);
                let none = u32::MAX;
                let value = acl::tests::value(&[
                    (1, 7, none),
                    (2, 7, 9),
                    (4, 5, none),
                    (16, *permissions, none),
                    (32, 1, none),
                ]);
                let request = SetXattr {
                    ino: InodeId(ino),
                    name: acl::DEFAULT,
                    value: &value,
                    mode: SetMode::Any,
                    clear_set_gid: false,
                    time: time(now),
                };
                let ours = self.write(|tx| tx.set_xattr(&request)).map(|_| ());
                let node = self.model.nodes.get_mut(&ino).unwrap();
                if !node.is_dir() {
                    return (ours, Err(Errno::ACCESS));
                }
                node.xattrs.insert(acl::DEFAULT.to_vec(), value);
                node.ctime = now;
                (ours, Ok(()))
            }
            Op::RemoveXattr { ino, name: index } => {
                let (ino, attribute) = (self.ino(*ino), [b"user.".as_slice(), &name(*index)].concat());
                let ours = self.write(|tx| tx.remove_xattr(InodeId(ino), &attribute, time(now))).map(|_| ());
                let node = self.model.nodes.get_mut(&ino).unwrap();
                let models = match node.xattrs.remove(&attribute) {
                    None => Err(Errno::NODATA),
                    Some(_) => {
                        node.ctime = now;
                        Ok(())
                    }
                };
                (ours, models)
            }
            Op::RemoveOrphans => {
                let orphans = self.meta.orphans(100).unwrap();
                assert_eq!(self.write(|tx| tx.remove_orphans(&orphans)), Ok(orphans.len()));
                assert_eq!(self.meta.usage().inodes as usize, self.model.nodes.len());
                (Ok(()), Ok(()))
            }
        }
    }

    fn set(&self, ino: u64, change: AttributeChange, now: i64) -> Outcome<()> {
        self.write(|tx| tx.set_attributes(InodeId(ino), &change, time(now))).map(|_| ())
    }

    /// The node that the model expects from `Make`: what POSIX says of umask, set-gid directories and default lists.
    fn model_node(&self, parent: u64, mode: u32, umask: u32, gid: u32, now: i64) -> Node {
        let dir = &self.model.nodes[&parent];
        let is_dir = mode & libc::S_IFMT == libc::S_IFDIR;
        let set_gid = dir.mode & libc::S_ISGID != 0;
        let gid = if set_gid { dir.gid } else { gid };
        if mode & libc::S_IFMT == libc::S_IFLNK {
            let target = b"to".to_vec();
            return Node { target, ..Model::node(libc::S_IFLNK | 0o777, 3, gid, now) };
        }
        let mode = if is_dir && set_gid { mode | libc::S_ISGID } else { mode };
        let Some(default) = dir.xattrs.get(acl::DEFAULT) else {
            return Model::node(mode & !umask, 3, gid, now);
        };
        let inherited = acl::Acl::decode(default).unwrap().unwrap().inherit(mode);
        let mut node = Model::node(inherited.mode, 3, gid, now);
        node.xattrs.extend(inherited.access.map(|list| (acl::ACCESS.to_vec(), list.encode())));
        if is_dir {
            node.xattrs.insert(acl::DEFAULT.to_vec(), default.clone());
        }
        node
    }

    fn compare(&mut self) {
        let mut bytes = 0;
        for (&ino, node) in &self.model.nodes {
            let inode = self.meta.inode(InodeId(ino)).unwrap();
            let Inode { mode, uid, gid, nlink, size, atime, mtime, ctime, .. } = inode;
            assert_eq!(
                (mode, uid, gid, nlink, size, atime.secs(), mtime.secs(), ctime.secs()),
                (
                    node.mode,
                    node.uid,
                    node.gid,
                    self.model.nlink(ino),
                    node.target.len() as u64,
                    node.atime,
                    node.mtime,
                    node.ctime
                ),
                "inode {ino}"
            );
            bytes += size;
            assert_eq!(self.read_dir(ino), node.entries, "directory {ino}");
            let names = self.meta.xattr_names(InodeId(ino)).unwrap();
            let xattrs: BTreeMap<_, _> =
                names.into_iter().map(|name| (name.clone(), self.meta.xattr(InodeId(ino), &name).unwrap())).collect();
            assert_eq!(xattrs, node.xattrs, "attributes of {ino}");
            if node.is_dir() {
                for (name, &child) in &node.entries {
                    let place = Place { parent: InodeId(ino), name: Name::new(name).unwrap() };
                    assert_eq!(self.meta.lookup(place).unwrap().ino.0, child);
                    if self.model.nodes[&child].is_dir() {
                        let path = self.meta.path_of(InodeId(child)).unwrap().unwrap();
                        assert_eq!(self.meta.resolve(&path).unwrap().ino.0, child);
                    }
                }
            }
        }
        assert!(self.meta.usage().bytes >= bytes, "orphans count until they are removed");
        self.replay();
        assert_eq!(rows(&self.replayed), rows(&self.meta), "the journal alone gives the tree");
        assert_eq!(self.replayed.usage().inodes as usize, self.model.nodes.len());
    }

    /// The entries of a directory, read in pages of two.
    fn read_dir(&self, ino: u64) -> BTreeMap<Vec<u8>, u64> {
        let (mut entries, mut cookie) = (BTreeMap::new(), 0);
        loop {
            let page = self.meta.read_dir(InodeId(ino), cookie, 2).unwrap();
            let Some(last) = page.last() else { return entries };
            cookie = last.cookie;
            for entry in page {
                assert_eq!(entries.insert(entry.name, entry.inode.ino.0), None, "listed twice");
            }
        }
    }

    fn replay(&mut self) {
        let rows: Vec<(Seq, Vec<u8>)> = self
            .meta
            .read(|conn| {
                let mut select = conn.prepare("SELECT seq, body FROM journal WHERE seq > ?1 ORDER BY seq")?;
                let rows = select.query_map([self.replayed_to], |row| Ok((row.get(0)?, row.get(1)?)))?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .unwrap();
        for (seq, body) in rows {
            let record = journal::decode(seq, &body).unwrap();
            self.replayed.write(|tx| tx.replay(&record)).unwrap();
            self.replayed_to = seq;
        }
    }
}

/// The rows of all that has a name.
fn rows(meta: &Meta) -> Vec<String> {
    let mut rows = Vec::new();
    let tables = [
        "SELECT * FROM inode WHERE nlink > 0 ORDER BY ino",
        "SELECT parent, name, ino FROM dirent ORDER BY parent, name",
        "SELECT * FROM symlink WHERE ino IN (SELECT ino FROM inode WHERE nlink > 0) ORDER BY ino",
        "SELECT * FROM xattr WHERE ino IN (SELECT ino FROM inode WHERE nlink > 0) ORDER BY ino, name",
    ];
    for sql in tables {
        meta.read(|conn| {
            let mut select = conn.prepare(sql)?;
            let columns = select.column_count();
            let mut found = select.query([])?;
            while let Some(row) = found.next()? {
                let values: rusqlite::Result<Vec<rusqlite::types::Value>> = (0..columns).map(|i| row.get(i)).collect();
                rows.push(format!("{sql}: {:?}", values?));
            }
            Ok(())
        })
        .unwrap();
    }
    rows
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn the_namespace_is_the_reference_tree_and_so_is_its_journal(ops in proptest::collection::vec(ops(), 1..60)) {
        let mut pair = Pair::new();
        ops.iter().for_each(|op| pair.run(op));
    }
}

fn place(parent: InodeId, name: &'static str) -> Place<'static> {
    Place { parent, name: Name::new(name.as_bytes()).unwrap() }
}

fn new(parent: InodeId, name: &'static str, mode: u32) -> NewNode<'static> {
    NewNode { place: place(parent, name), mode, rdev: 0, uid: 0, gid: 0, umask: 0, time: time(5) }
}

#[test]
fn an_inode_without_a_name_lives_until_it_is_removed_and_writes_no_records() {
    let (_dir, meta) = store();
    let ino = meta.write(|tx| tx.make_node(&new(InodeId::ROOT, "a", libc::S_IFIFO | 0o644))).unwrap().ino;
    let orphan = meta.write(|tx| tx.unlink(place(InodeId::ROOT, "a"), time(6))).unwrap();
    assert_eq!((orphan.ino, orphan.nlink), (ino, 0));
    let head = meta.head();
    let change = AttributeChange { mode: Some(0o600), ..Default::default() };
    assert_eq!(meta.write(|tx| tx.set_attributes(ino, &change, time(7))).unwrap().mode, libc::S_IFIFO | 0o600);
    assert_eq!(meta.head(), head, "a nameless inode is gone for every reader of the journal");
    let relink = meta.write(|tx| tx.link(ino, place(InodeId::ROOT, "b"), None, time(8)));
    assert!(matches!(relink, Err(Error::Refused(Errno::NOENT))));
    assert_eq!(meta.orphans(10).unwrap(), [ino]);
    assert_eq!(meta.write(|tx| tx.remove_orphans(&[ino, InodeId::ROOT])).unwrap(), 1, "the root has a name");
    assert!(meta.inode(ino).is_err());
}

#[test]
fn no_name_comes_into_a_removed_directory() {
    let (_dir, meta) = store();
    let dir = meta.write(|tx| tx.make_node(&new(InodeId::ROOT, "d", libc::S_IFDIR | 0o755))).unwrap().ino;
    meta.write(|tx| tx.rmdir(place(InodeId::ROOT, "d"), time(6))).unwrap();
    let made = meta.write(|tx| tx.make_node(&new(dir, "a", libc::S_IFIFO)));
    assert!(matches!(made, Err(Error::Refused(Errno::NOENT))));
}

#[test]
fn a_listing_shows_every_name_that_stays_exactly_once() {
    let (_dir, meta) = store();
    for name in ["a", "b", "c", "d"] {
        meta.write(|tx| tx.make_node(&new(InodeId::ROOT, name, libc::S_IFIFO))).unwrap();
    }
    let names = |cookie, limit| -> Vec<String> {
        let page = meta.read_dir(InodeId::ROOT, cookie, limit).unwrap();
        page.into_iter().map(|entry| String::from_utf8(entry.name).unwrap()).collect()
    };
    let first = meta.read_dir(InodeId::ROOT, 0, 2).unwrap();
    assert_eq!(names(0, 2), ["a", "b"]);
    meta.write(|tx| tx.unlink(place(InodeId::ROOT, "b"), time(6))).unwrap();
    meta.write(|tx| tx.make_node(&new(InodeId::ROOT, "0", libc::S_IFIFO))).unwrap();
    assert_eq!(names(first[1].cookie, 10), ["c", "d", "0"]);
}

#[test]
fn attributes_of_our_own_prefix_are_policy_only() {
    let (_dir, meta) = store();
    let set = |name: &[u8], value: &[u8]| {
        let request =
            SetXattr { ino: InodeId::ROOT, name, value, mode: SetMode::Any, clear_set_gid: false, time: time(5) };
        meta.write(|tx| tx.set_xattr(&request)).map(|_| ()).map_err(|error| error.errno())
    };
    assert_eq!(set(b"user.tandemfs.policy", b"quorum"), Ok(()));
    assert_eq!(set(b"user.tandemfs.policy", b"2"), Ok(()));
    assert_eq!(set(b"user.tandemfs.policy", b"never"), Err(Errno::INVAL));
    assert_eq!(set(b"user.tandemfs.targets", b"x"), Err(Errno::PERM));
    assert_eq!(set(b"user.tandemfs.other", b"x"), Err(Errno::INVAL));
    assert_eq!(set(b"system.nfs4_acl", b"x"), Err(Errno::OPNOTSUPP));
    assert_eq!(set(b"user.k", &vec![0; 65537]), Err(Errno::TOOBIG));
}

#[test]
fn an_access_list_sets_the_mode_and_one_that_says_no_more_is_not_kept() {
    let (_dir, meta) = store();
    let ino = meta.write(|tx| tx.make_node(&new(InodeId::ROOT, "a", libc::S_IFIFO | 0o2644))).unwrap().ino;
    let none = u32::MAX;
    let set = |value: &[u8], clear_set_gid| {
        let request = SetXattr { ino, name: acl::ACCESS, value, mode: SetMode::Any, clear_set_gid, time: time(5) };
        meta.write(|tx| tx.set_xattr(&request)).unwrap().mode & 0o7777
    };
    let extended = acl::tests::value(&[(1, 6, none), (2, 7, 9), (4, 4, none), (16, 7, none), (32, 0, none)]);
    assert_eq!(set(&extended, false), 0o2670);
    assert_eq!(meta.xattr_names(ino).unwrap(), [acl::ACCESS]);
    assert_eq!(set(&acl::tests::value(&[(1, 6, none), (4, 4, none), (32, 4, none)]), true), 0o644);
    assert!(meta.xattr_names(ino).unwrap().is_empty());
}
