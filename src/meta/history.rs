//! Made-up histories for tests of replay, export and restore, with a model that knows what each must lead to.
//!
//! Every history is one that a mount could have written. The model keeps files as arrays of single bytes, each naming the
//! chunk and the offset that hold it: slow, and obviously right.

use std::collections::BTreeMap;

use rusqlite::Connection;

use super::{Created, Meta};
use crate::clock::Timestamp;
use crate::format::record::{Change, Content, Dentry, Extent, Record, VoidReason};
use crate::id::{FilesystemId, Generation, Hash, InodeId, Seq};
use crate::replication::conflicts::{Deferred, Footprint};

/// Bytes of every made-up chunk.
pub(crate) const CHUNK_LENGTH: u64 = 64;
/// No file of a made-up history is longer.
const SIZE_MAX: u64 = 96;

type Bytes = Vec<Option<(Hash, u64)>>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Body {
    Dir,
    File(Bytes),
    Link(Vec<u8>),
}

#[derive(Debug, Clone)]
struct Node {
    body: Body,
    mode: u32,
    generation: u64,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A filesystem as a test sees it, and the records that made it so.
#[derive(Debug, Clone)]
pub(crate) struct History {
    pub records: Vec<Record>,
    nodes: BTreeMap<InodeId, Node>,
    names: BTreeMap<(InodeId, Vec<u8>), InodeId>,
    next_inode: u64,
}

/// The bytes of made-up chunk `number`.
pub(crate) fn chunk_bytes(number: u8) -> Vec<u8> {
    (0..CHUNK_LENGTH as u8).map(|i| number ^ i.wrapping_mul(3)).collect()
}

/// The name of made-up chunk `number`.
pub(crate) fn chunk_hash(number: u8) -> Hash {
    Hash::of(&chunk_bytes(number))
}

/// Chunk numbers go from 0 to here.
pub(crate) const CHUNK_NUMBERS: u8 = 12;

pub(crate) fn time(seq: Seq) -> Timestamp {
    Timestamp::new(1_000_000 + seq.0 as i64, seq.0 as u32 % 1_000).unwrap()
}

impl History {
    /// A new filesystem: seq 1 sets the root's attributes.
    pub fn new() -> History {
        let root = Node { body: Body::Dir, mode: libc::S_IFDIR | 0o755, generation: 0, xattrs: BTreeMap::new() };
        let mut history = History {
            records: vec![],
            nodes: BTreeMap::from([(InodeId::ROOT, root)]),
            names: BTreeMap::new(),
            next_inode: 2,
        };
        let time = time(Seq(1));
        history.push(Change::Setattr {
            ino: InodeId::ROOT,
            mode: Some(libc::S_IFDIR | 0o755),
            uid: Some(7),
            gid: Some(8),
            atime: Some(time),
            mtime: Some(time),
            ctime: time,
        });
        history
    }

    /// A history of one record per step; bytes of a step choose what happens.
    pub fn build(steps: &[[u8; 6]]) -> History {
        let mut history = History::new();
        steps.iter().for_each(|step| history.step(*step));
        history
    }

    pub fn head(&self) -> Seq {
        Seq(self.records.len() as u64)
    }

    /// The model after only the first `count` records.
    fn push(&mut self, change: Change) -> Seq {
        let seq = self.head().next();
        self.records.push(Record { seq, change });
        seq
    }

    fn pick<T>(choices: &[T], byte: u8) -> Option<&T> {
        (!choices.is_empty()).then(|| &choices[byte as usize % choices.len()])
    }

    fn inodes(&self, wanted: impl Fn(&Node) -> bool) -> Vec<InodeId> {
        self.nodes.iter().filter(|(_, node)| wanted(node)).map(|(ino, _)| *ino).collect()
    }

    fn is_dir(&self, ino: InodeId) -> bool {
        self.nodes[&ino].body == Body::Dir
    }

    fn is_empty_dir(&self, ino: InodeId) -> bool {
        self.is_dir(ino) && !self.names.keys().any(|(parent, _)| *parent == ino)
    }

    fn is_within(&self, mut dir: InodeId, ancestor: InodeId) -> bool {
        while dir != ancestor {
            let Some(((parent, _), _)) = self.names.iter().find(|(_, ino)| **ino == dir) else { return false };
            dir = *parent;
        }
        true
    }

    fn drop_name(&mut self, parent: InodeId, name: &[u8]) {
        let ino = self.names.remove(&(parent, name.to_vec())).unwrap();
        if !self.names.values().any(|other| *other == ino) {
            self.nodes.remove(&ino);
        }
    }

    fn step(&mut self, [op, a, b, c, d, e]: [u8; 6]) {
        let time = time(self.head().next());
        let dirs = self.inodes(|node| node.body == Body::Dir);
        let files = self.inodes(|node| matches!(node.body, Body::File(_)));
        let parent = *History::pick(&dirs, a).unwrap();
        let name = vec![b'a' + b % 4];
        let place = (parent, name.clone());
        let names: Vec<_> = self.names.iter().map(|(key, ino)| (key.clone(), *ino)).collect();
        match op % 16 {
            0..=3 if !self.names.contains_key(&place) => {
                let ino = InodeId(self.next_inode);
                self.next_inode += 1;
                self.names.insert(place, ino);
                let mode = if op % 16 == 2 { libc::S_IFDIR | 0o755 } else { libc::S_IFREG | 0o644 };
                let mode = if op % 16 == 3 { libc::S_IFLNK | 0o777 } else { mode };
                let body = match op % 16 {
                    2 => Body::Dir,
                    3 => Body::Link(vec![b'x'; 1 + c as usize]),
                    _ => Body::File(vec![]),
                };
                let xattrs = if c % 4 == 0 && op % 16 < 3 { vec![(b"user.n".to_vec(), vec![d])] } else { vec![] };
                let node = Node { body: body.clone(), mode, generation: 0, xattrs: xattrs.iter().cloned().collect() };
                self.nodes.insert(ino, node);
                let (uid, gid) = (c.into(), d.into());
                self.push(match body {
                    Body::Dir => Change::Mkdir { parent, name, ino, mode, uid, gid, time, xattrs },
                    Body::File(_) => Change::Create { parent, name, ino, mode, uid, gid, rdev: 0, time, xattrs },
                    Body::Link(target) => Change::Symlink { parent, name, ino, uid, gid, target, time },
                });
            }
            4..=7 => {
                let Some(&ino) = History::pick(&files, a) else { return };
                self.write(ino, [b, c, d, e], time);
            }
            8 => {
                let Some(&ino) = History::pick(&files, c) else { return };
                if self.names.contains_key(&place) {
                    return;
                }
                self.names.insert(place, ino);
                self.push(Change::Link { parent, name, ino, time });
            }
            9 => {
                let Some(((parent, name), ino)) = History::pick(&names, a).cloned() else { return };
                if self.is_dir(ino) {
                    if self.is_empty_dir(ino) {
                        self.drop_name(parent, &name);
                        self.push(Change::Rmdir { parent, name, ino, time });
                    }
                } else {
                    self.drop_name(parent, &name);
                    self.push(Change::Unlink { parent, name, ino, time });
                }
            }
            10 | 11 => {
                let Some((from, ino)) = History::pick(&names, c).cloned() else { return };
                let replaced = self.names.get(&place).copied();
                let dir = self.is_dir(ino);
                let fits = replaced.is_none_or(|other| {
                    other != ino && self.is_dir(other) == dir && (!dir || self.is_empty_dir(other))
                });
                if !fits || (dir && self.is_within(parent, ino)) || from == place {
                    return;
                }
                if replaced.is_some() {
                    self.drop_name(parent, &name);
                }
                self.names.remove(&from);
                self.names.insert(place, ino);
                let (from, to) = (Dentry { parent: from.0, name: from.1 }, Dentry { parent, name });
                self.push(Change::Rename { from, to, ino, replaced, dir, time });
            }
            12 => {
                let (Some((one, x)), Some((two, y))) =
                    (History::pick(&names, a).cloned(), History::pick(&names, c).cloned())
                else {
                    return;
                };
                let nested =
                    (self.is_dir(x) && self.is_within(two.0, x)) || (self.is_dir(y) && self.is_within(one.0, y));
                if one == two || nested {
                    return;
                }
                self.names.insert(one.clone(), y);
                self.names.insert(two.clone(), x);
                let [one, two] = [one, two].map(|(parent, name)| Dentry { parent, name });
                self.push(Change::Exchange { a: (one, x), b: (two, y), time });
            }
            13 => {
                let all = self.inodes(|_| true);
                let ino = *History::pick(&all, a).unwrap();
                let node = self.nodes.get_mut(&ino).unwrap();
                let mode = (b % 2 == 0).then_some(node.mode & libc::S_IFMT | (0o600 + u32::from(c % 8)));
                node.mode = mode.unwrap_or(node.mode);
                let mtime = (c % 2 == 0).then_some(time);
                self.push(Change::Setattr { ino, mode, uid: None, gid: None, atime: mtime, mtime, ctime: time });
            }
            14 => {
                let all = self.inodes(|_| true);
                let ino = *History::pick(&all, a).unwrap();
                let node = self.nodes.get_mut(&ino).unwrap();
                let name = vec![b'u', b'0' + b % 3];
                if c % 3 == 0 && node.xattrs.remove(&name).is_some() {
                    self.push(Change::Removexattr { ino, name, ctime: time });
                } else {
                    node.xattrs.insert(name.clone(), vec![d; e as usize]);
                    self.push(Change::Setxattr { ino, name, value: vec![d; e as usize], mode: None, ctime: time });
                }
            }
            15 => self.repack(a % CHUNK_NUMBERS, b % CHUNK_NUMBERS, c, d),
            _ => {}
        }
    }

    fn write(&mut self, ino: InodeId, [b, c, d, e]: [u8; 4], time: Timestamp) {
        let node = self.nodes.get_mut(&ino).unwrap();
        let Body::File(bytes) = &mut node.body else { unreachable!("only files are picked") };
        node.generation += 1;
        let generation = Generation(node.generation);
        if b % 16 == 15 {
            let size = bytes.len() as u64;
            let why = match c % 2 {
                0 => VoidReason::Moved,
                _ => VoidReason::Lost { size, mtime: time, ctime: time },
            };
            self.push(Change::Void { ino, generation, why });
            return;
        }
        let whole = b % 3 == 0;
        let size = u64::from(c) % SIZE_MAX;
        if whole {
            bytes.clear();
        }
        bytes.resize(size as usize, None);
        // Up to three runs one after the other: pieces, with a hole at times.
        let (mut extents, mut zero, mut at) = (vec![], vec![], u64::from(d) % 24);
        let mut chunks: Vec<(Hash, u64)> = vec![];
        for run in 0..u64::from(e) % 4 {
            let length = (1 + u64::from(d.rotate_left(run as u32 * 3)) % 31).min(size.saturating_sub(at));
            if length == 0 {
                break;
            }
            let number = (d ^ e).wrapping_add(run as u8 / 2) % CHUNK_NUMBERS;
            let piece = (number % 5 != 4).then(|| (chunk_hash(number), at % (CHUNK_LENGTH - length)));
            for i in 0..length {
                bytes[(at + i) as usize] = piece.map(|(hash, offset)| (hash, offset + i));
            }
            match piece {
                Some((hash, chunk_offset)) => {
                    let chunk = chunks.iter().position(|(known, _)| *known == hash).unwrap_or_else(|| {
                        chunks.push((hash, CHUNK_LENGTH));
                        chunks.len() - 1
                    });
                    extents.push(Extent { offset: at, length, chunk: chunk as u32, chunk_offset });
                }
                None => zero.push((at, length)),
            }
            at += length + u64::from(run == 1);
        }
        let (mtime, ctime, mode, part) = (time, time, None, None);
        self.push(Change::Content(Content {
            ino,
            generation,
            whole,
            size,
            mtime,
            ctime,
            mode,
            chunks,
            extents,
            zero,
            part,
        }));
    }

    fn repack(&mut self, from: u8, to: u8, start: u8, length: u8) {
        if from == to {
            return;
        }
        let (from, to) = (chunk_hash(from), chunk_hash(to));
        let start = u64::from(start) % CHUNK_LENGTH;
        let length = (1 + u64::from(length) % CHUNK_LENGTH).min(CHUNK_LENGTH - start);
        for node in self.nodes.values_mut() {
            let Body::File(bytes) = &mut node.body else { continue };
            for byte in bytes.iter_mut().flatten() {
                if byte.0 == from && (start..start + length).contains(&byte.1) {
                    *byte = (to, byte.1 - start);
                }
            }
        }
        let moves = vec![Extent { offset: start, length, chunk: 0, chunk_offset: 0 }];
        self.push(Change::Repack { from, chunks: vec![(to, CHUNK_LENGTH)], moves });
    }

    /// Compares the tables with the model, and the tables with themselves.
    pub fn check(&self, meta: &Meta) {
        meta.read(|conn| {
            assert_consistent(conn);
            let mut names = BTreeMap::new();
            let mut rows = conn.prepare("SELECT parent, name, ino FROM dirent")?;
            let mut rows = rows.query([])?;
            while let Some(row) = rows.next()? {
                names.insert((row.get(0)?, row.get(1)?), row.get(2)?);
            }
            assert_eq!(names, self.names);
            let mut found = conn.prepare("SELECT ino, mode, size, generation FROM inode ORDER BY ino")?;
            let mut found = found.query([])?;
            let mut count = 0;
            while let Some(row) = found.next()? {
                let ino: InodeId = row.get(0)?;
                let node = &self.nodes[&ino];
                count += 1;
                assert_eq!((node.mode, Generation(node.generation)), (row.get(1)?, row.get(3)?), "inode {ino}");
                let size = row.get::<_, i64>(2)? as usize;
                match &node.body {
                    Body::Dir => assert_eq!(size, 0),
                    Body::Link(target) => {
                        assert_eq!(size, target.len());
                        let stored: Vec<u8> =
                            conn.query_row("SELECT target FROM symlink WHERE ino = ?1", [ino], |row| row.get(0))?;
                        assert_eq!(&stored, target);
                    }
                    Body::File(bytes) => assert_eq!(&file_bytes(conn, ino, size), bytes, "inode {ino}"),
                }
                let mut stored = conn.prepare("SELECT name, value FROM xattr WHERE ino = ?1")?;
                let stored = stored.query_map([ino], |row| Ok((row.get(0)?, row.get(1)?)))?;
                assert_eq!(stored.collect::<rusqlite::Result<BTreeMap<Vec<u8>, Vec<u8>>>>()?, node.xattrs);
            }
            assert_eq!(count, self.nodes.len());
            Ok(())
        })
        .unwrap();
    }
}

fn file_bytes(conn: &Connection, ino: InodeId, size: usize) -> Bytes {
    let mut bytes = vec![None; size];
    let mut rows = conn
        .prepare(
            "SELECT e.offset, e.length, c.hash, e.chunk_offset FROM inode i JOIN extent e ON e.manifest = i.manifest \
             JOIN chunk c ON c.id = e.chunk WHERE i.ino = ?1",
        )
        .unwrap();
    let mut rows = rows.query([ino]).unwrap();
    while let Some(row) = rows.next().unwrap() {
        let (offset, length, at): (i64, i64, i64) = (row.get(0).unwrap(), row.get(1).unwrap(), row.get(3).unwrap());
        for i in 0..length {
            bytes[(offset + i) as usize] = Some((row.get(2).unwrap(), (at + i) as u64));
        }
    }
    bytes
}

/// An empty store with a bare root, as replay finds it.
pub(crate) fn empty_store(dir: &std::path::Path) -> Meta {
    empty_store_of(dir, FilesystemId::random())
}

/// The same, of a filesystem that targets know.
pub(crate) fn empty_store_of(dir: &std::path::Path, filesystem: FilesystemId) -> Meta {
    let created = Created { filesystem, name: "t".into(), chunk_size: 1 << 16, time: Timestamp::EPOCH };
    let meta = Meta::create(&dir.join("meta.sqlite"), &created).unwrap();
    meta.write(|tx| tx.restore_root()).unwrap();
    meta
}

/// An order in which a target may get the records: `late` says for how many rounds a record stays behind (O6, O7).
pub(crate) fn overtaken(records: &[Record], late: &[u8]) -> Vec<Record> {
    let footprints: Vec<Footprint> = records.iter().map(|record| Footprint::of(&record.change)).collect();
    let rounds = |i: usize| late.get(i).map_or(0, |rounds| rounds % 4);
    let mut left: Vec<(u8, &Record, &Footprint)> = records
        .iter()
        .zip(&footprints)
        .enumerate()
        .map(|(i, (record, footprint))| (rounds(i), record, footprint))
        .collect();
    let mut order = vec![];
    while !left.is_empty() {
        let mut deferred = Deferred::new();
        left.retain_mut(|(rounds, record, footprint)| {
            if *rounds == 0 && deferred.admits(footprint) {
                order.push((*record).clone());
                return false;
            }
            *rounds = rounds.saturating_sub(1);
            deferred.insert(footprint);
            true
        });
    }
    order
}

/// A history with some of everything.
pub(crate) fn rich() -> History {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let bytes = state.to_le_bytes();
        [bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5]]
    };
    History::build(&(0..200).map(|_| step()).collect::<Vec<_>>())
}

/// Counts inodes whose `allocated` is not the sum of their extents.
pub(crate) const ALLOCATED_IS_WRONG: &str = "SELECT count(*) FROM inode i WHERE allocated <> \
    (SELECT coalesce(sum(length), 0) FROM extent e WHERE e.manifest = i.manifest)";

/// Every invariant of the shared tables that SQL can see.
pub(crate) fn assert_consistent(conn: &Connection) {
    for (what, sql) in [
        (
            "nlink is counted",
            "SELECT count(*) FROM inode i WHERE nlink <> CASE WHEN mode & 61440 = 16384 THEN 2 + (SELECT count(*) FROM dirent d JOIN inode c ON c.ino = d.ino WHERE d.parent = i.ino AND c.mode & 61440 = 16384) ELSE (SELECT count(*) FROM dirent d WHERE d.ino = i.ino) END",
        ),
        (
            "every inode but the root has a name",
            "SELECT count(*) FROM inode WHERE ino <> 1 AND ino NOT IN (SELECT ino FROM dirent)",
        ),
        (
            "a directory knows where it is",
            "SELECT count(*) FROM dirent d JOIN inode i ON i.ino = d.ino WHERE i.mode & 61440 = 16384 AND i.parent <> d.parent",
        ),
        (
            "names are in directories",
            "SELECT count(*) FROM dirent WHERE parent NOT IN (SELECT ino FROM inode WHERE mode & 61440 = 16384) OR ino NOT IN (SELECT ino FROM inode)",
        ),
        (
            "directories are one tree",
            "WITH RECURSIVE t(ino) AS (SELECT 1 UNION SELECT d.ino FROM t JOIN dirent d ON d.parent = t.ino) SELECT count(*) FROM inode WHERE ino NOT IN (SELECT ino FROM t)",
        ),
        (
            "references are counted (T5)",
            "SELECT count(*) FROM chunk c WHERE bytes_referenced <> (SELECT coalesce(sum(length), 0) FROM extent e WHERE e.chunk = c.id)",
        ),
        ("dead is unreferenced (T5)", "SELECT count(*) FROM chunk WHERE (dead_seq IS NULL) <> (bytes_referenced > 0)"),
        (
            "extents hang on manifests (D8)",
            "SELECT count(*) FROM extent WHERE manifest NOT IN (SELECT manifest FROM inode WHERE manifest IS NOT NULL)",
        ),
        (
            "extents lie in file and chunk",
            "SELECT count(*) FROM extent e JOIN inode i ON i.manifest = e.manifest JOIN chunk c ON c.id = e.chunk WHERE e.offset + e.length > i.size OR e.chunk_offset + e.length > c.length OR e.length < 1",
        ),
        ("allocated bytes are those of the extents", ALLOCATED_IS_WRONG),
        (
            "extents are disjoint",
            "SELECT count(*) FROM extent a JOIN extent b ON a.manifest = b.manifest AND a.offset < b.offset AND a.offset + a.length > b.offset",
        ),
        (
            "rows belong to inodes",
            "SELECT (SELECT count(*) FROM xattr WHERE ino NOT IN (SELECT ino FROM inode)) + (SELECT count(*) FROM symlink WHERE ino NOT IN (SELECT ino FROM inode))",
        ),
        (
            "usage is kept",
            "SELECT (SELECT count(*) FROM inode) <> inodes OR (SELECT sum(size) FROM inode) <> bytes FROM counter",
        ),
        ("inode numbers are never reused", "SELECT count(*) FROM inode WHERE ino >= (SELECT next_inode FROM counter)"),
    ] {
        let broken: i64 = conn.query_row(sql, [], |row| row.get(0)).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(broken, 0, "{what}");
    }
}

/// The shared tables as text, without what may differ between two ways to one state: row ids, cookies, dead chunks.
pub(crate) fn dump(meta: &Meta) -> Vec<String> {
    meta.read(|conn| {
        let mut lines = vec![];
        for sql in [
            "SELECT ino, mode, uid, gid, rdev, nlink, size, generation, atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns, times_seq FROM inode ORDER BY ino",
            "SELECT parent, name, ino FROM dirent ORDER BY parent, name",
            "SELECT ino, target FROM symlink ORDER BY ino",
            "SELECT ino, name, value FROM xattr ORDER BY ino, name",
            "SELECT hash, length FROM chunk WHERE dead_seq IS NULL ORDER BY hash",
            "SELECT i.ino, e.offset, e.length, c.hash, e.chunk_offset FROM inode i JOIN extent e ON e.manifest = i.manifest JOIN chunk c ON c.id = e.chunk ORDER BY i.ino, e.offset",
            "SELECT seq, next_inode FROM counter",
        ] {
            let mut statement = conn.prepare(sql)?;
            let columns = statement.column_count();
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let values: Vec<_> = (0..columns).map(|i| format!("{:?}", row.get_ref(i))).collect();
                lines.push(values.join(" "));
            }
        }
        Ok(lines)
    })
    .unwrap()
}
