//! What programs do in a world, and what they may rely on.
//!
//! Owns: the calls, a plain model of names and contents, what may be there after a crash. Does not own: waiting for targets
//! (`acks`).
//!
//! Of each file all contents are kept, in order. After a kill it holds one from its newest close on (or a rename or link, which
//! give it its place too); after a power cut each of its bytes is that of one from its newest `fsync` on.

use std::collections::BTreeMap;

use super::world::World;
use crate::id::InodeId;
use crate::read::Outcome;
use crate::vfs::Caller;
use crate::vfs::attr::SetAttributes;
use crate::vfs::io::{NewFile, Written};
use crate::vfs::rename::RenameMode;
use crate::write::opening::NoKernel;

pub(super) const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0 };
/// Longer than any file.
const SIZE_MAX: u32 = 1 << 20;

/// One content of a file, by the number of the change that made it.
pub(super) type Version = u64;

/// A file as programs know it.
#[derive(Debug, Clone, Default)]
pub(super) struct FileModel {
    /// Contents from the oldest one that may still come back, the present one last.
    pub versions: BTreeMap<Version, Vec<u8>>,
    /// A kill brings back none before this.
    pub placed: Version,
    /// A power cut brings back none before this.
    pub synced: Version,
    /// It is open.
    pub handle: Option<u64>,
}

impl FileModel {
    pub(super) fn now(&self) -> &Vec<u8> {
        self.versions.values().next_back().expect("a file has a content")
    }

    pub(super) fn version(&self) -> Version {
        *self.versions.keys().next_back().expect("a file has a content")
    }

    fn becomes(&mut self, content: Vec<u8>) {
        let next = self.version() + 1;
        self.versions.insert(next, content);
    }

    fn is_placed(&mut self) {
        self.placed = self.version();
    }
}

/// Names and files.
#[derive(Debug, Clone, Default)]
pub(super) struct Programs {
    pub names: BTreeMap<(InodeId, Vec<u8>), InodeId>,
    pub files: BTreeMap<InodeId, FileModel>,
    pub dirs: Vec<InodeId>,
    /// Open files without a name.
    nameless: Vec<(InodeId, u64)>,
}

/// How a mount ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crash {
    Kill,
    PowerCut,
}

impl Programs {
    pub(super) fn new() -> Programs {
        Programs { dirs: vec![InodeId::ROOT], ..Programs::default() }
    }

    fn lost_name(&mut self, ino: InodeId) {
        if self.names.values().any(|other| *other == ino) {
            return;
        }
        if let Some(handle) = self.files.remove(&ino).and_then(|file| file.handle) {
            self.nameless.push((ino, handle));
        }
        self.dirs.retain(|dir| *dir != ino);
    }

    fn is_within(&self, mut dir: InodeId, ancestor: InodeId) -> bool {
        while dir != ancestor {
            let Some(((parent, _), _)) = self.names.iter().find(|(_, ino)| **ino == dir) else { return false };
            dir = *parent;
        }
        true
    }
}

impl World {
    /// One call of a program.
    pub(super) fn program(&mut self) {
        let parent = self.programs.dirs[self.random.below(self.programs.dirs.len())];
        let name = vec![b'a' + self.random.below(5) as u8];
        match self.random.below(24) {
            0..=4 => self.whole_file(parent, name),
            5..=8 => self.write_open(),
            9..=10 => self.open_one(),
            11..=13 => self.close_one(),
            14 => self.truncate(),
            15 => self.unlink(),
            16..=18 => self.rename(parent, name),
            19 => self.link(parent, name),
            20 => self.make_dir(parent, name),
            21 => self.remove_dir(),
            22 => self.set_mode(),
            _ => {
                if !self.programs.nameless.is_empty() {
                    let (ino, handle) = self.programs.nameless.swap_remove(0);
                    self.vfs().flush(ino).unwrap();
                    self.vfs().release(ino, handle).unwrap();
                }
            }
        }
        self.learn();
    }

    fn some_file(&mut self, wanted: impl Fn(&FileModel) -> bool) -> Option<InodeId> {
        let all: Vec<InodeId> =
            self.programs.files.iter().filter(|(_, file)| wanted(file)).map(|(ino, _)| *ino).collect();
        (!all.is_empty()).then(|| all[self.random.below(all.len())])
    }

    fn some_name(&mut self) -> Option<((InodeId, Vec<u8>), InodeId)> {
        let count = self.programs.names.len();
        let index = if count == 0 { return None } else { self.random.below(count) };
        self.programs.names.iter().nth(index).map(|(place, ino)| (place.clone(), *ino))
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = match self.random.below(16) {
            0 => 16_384 + self.random.below(60_000),
            1..=3 => 1 + self.random.below(5_000),
            _ => 1 + self.random.below(60),
        };
        // Some contents come again: chunks are shared.
        let kind = self.random.below(6) as u64;
        let seed = if kind == 0 { 7 } else { self.random.draw() };
        let mut random = crate::chance::Seeded(seed);
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend(random.draw().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }

    /// `cp`: a new file, or one that is emptied, is written and closed.
    fn whole_file(&mut self, parent: InodeId, name: Vec<u8>) {
        let bytes = self.bytes();
        if let Some(ino) = self.write_whole(parent, name, &bytes)
            && self.random.below(4) > 0
        {
            self.close(ino);
        }
    }

    /// A new file, or one that is emptied, is written; `None`: it was refused, or is open.
    pub(super) fn write_whole(&mut self, parent: InodeId, name: Vec<u8>, bytes: &[u8]) -> Option<InodeId> {
        let vfs = self.vfs();
        let mut kernel = NoKernel::default();
        let known = self.programs.names.get(&(parent, name.clone())).copied();
        let ino = match known {
            Some(ino) if self.programs.files.get(&ino).is_none_or(|file| file.handle.is_some()) => return None,
            Some(ino) => {
                if let Err(error) = vfs.open(&ROOT, ino, libc::O_RDWR | libc::O_TRUNC, &mut kernel) {
                    self.refused("open", error);
                    return None;
                }
                ino
            }
            None => {
                let flags = libc::O_RDWR | libc::O_CREAT;
                let new = NewFile { parent, name: &name, mode: 0o644, umask: 0o022, flags };
                let created = vfs.create(&ROOT, &new, &mut kernel);
                let ino = vfs.lookup(parent, &name).map(|found| found.inode.ino);
                if let Ok(ino) = ino {
                    let empty = FileModel { versions: BTreeMap::from([(0, vec![])]), ..FileModel::default() };
                    self.programs.files.insert(ino, empty);
                    self.programs.names.insert((parent, name), ino);
                }
                match (created, ino) {
                    (Ok(()), Ok(ino)) => ino,
                    (Err(error), _) | (_, Err(error)) => {
                        self.refused("create", error);
                        return None;
                    }
                }
            }
        };
        let handle = kernel.opened.expect("it was opened").handle.number();
        let file = self.programs.files.get_mut(&ino).expect("it is known");
        file.handle = Some(handle);
        if known.is_some() {
            file.becomes(vec![]);
        }
        self.write(ino, 0, bytes);
        Some(ino)
    }

    fn refused(&mut self, call: &str, error: rustix::io::Errno) {
        self.trace.note(format_args!("{call}: {error}"));
        assert_eq!(error, rustix::io::Errno::NOSPC, "world {}: {call}", self.seed);
    }

    fn write(&mut self, ino: InodeId, offset: u64, bytes: &[u8]) {
        let file = self.programs.files.get_mut(&ino).expect("it is known");
        let handle = file.handle.expect("it is open");
        let mounted = self.mounted.as_ref().expect("mounted");
        match mounted.vfs.write_now(ino, handle, offset, bytes) {
            Ok(Written::Done(_)) => {
                let mut content = file.now().clone();
                let end = offset as usize + bytes.len();
                content.resize(content.len().max(end), 0);
                content[offset as usize..end].copy_from_slice(bytes);
                file.becomes(content);
                self.trace.note(format_args!("write {ino} {offset} {}", bytes.len()));
            }
            Ok(Written::Later) => self.trace.note(format_args!("write {ino}: no room")),
            Err(error) => self.refused("write", error),
        }
    }

    fn write_open(&mut self) {
        let Some(ino) = self.some_file(|file| file.handle.is_some()) else { return };
        let length = self.programs.files[&ino].now().len();
        let mut bytes = self.bytes();
        let offset = match self.random.below(3) {
            0 => length,
            _ => self.random.below(length + 1),
        };
        bytes.truncate(1 + self.random.below(8_000));
        if self.random.below(5) == 0 && length > 10 {
            let from = self.random.below(length);
            let to = (from + 1 + self.random.below(6_000)).min(length);
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            let punched = self.vfs().fallocate(ino, from as u64..to as u64, mode);
            if let Err(error) = punched {
                return self.refused("punch", error);
            }
            let file = self.programs.files.get_mut(&ino).expect("it is known");
            let mut content = file.now().clone();
            content[from..to].fill(0);
            file.becomes(content);
            self.trace.note(format_args!("punch {ino} {from}..{to}"));
            return;
        }
        self.write(ino, offset as u64, &bytes);
    }

    fn open_one(&mut self) {
        if let Some(ino) = self.some_file(|file| file.handle.is_none()) {
            self.open(ino);
        }
    }

    pub(super) fn open(&mut self, ino: InodeId) {
        let mut kernel = NoKernel::default();
        if let Err(error) = self.vfs().open(&ROOT, ino, libc::O_RDWR, &mut kernel) {
            return self.refused("open", error);
        }
        let handle = kernel.opened.expect("it was opened").handle.number();
        self.programs.files.get_mut(&ino).expect("it is known").handle = Some(handle);
    }

    fn close_one(&mut self) {
        let Some(ino) = self.some_file(|file| file.handle.is_some()) else { return };
        match self.random.below(6) {
            0 | 1 => self.sync(ino),
            2 => {
                // A duplicate of the descriptor is closed.
                self.vfs().flush(ino).unwrap();
                self.programs.files.get_mut(&ino).expect("it is known").is_placed();
                self.trace.note(format_args!("flush {ino}"));
            }
            _ => self.close(ino),
        }
    }

    pub(super) fn close(&mut self, ino: InodeId) {
        let handle = self.programs.files[&ino].handle.expect("it is open");
        self.flush(ino, handle);
        self.vfs().release(ino, handle).unwrap();
        let file = self.programs.files.get_mut(&ino).expect("it is known");
        file.is_placed();
        file.handle = None;
        self.trace.note(format_args!("close {ino}"));
    }

    fn truncate(&mut self) {
        let Some(ino) = self.some_file(|_| true) else { return };
        let length = self.programs.files[&ino].now().len();
        let size = self.random.below(length * 3 / 2 + 1);
        let set = SetAttributes { size: Some(size as u64), ..SetAttributes::default() };
        if let Err(error) = self.vfs().setattr(&ROOT, ino, &set) {
            return self.refused("truncate", error);
        }
        let file = self.programs.files.get_mut(&ino).expect("it is known");
        let mut content = file.now().clone();
        content.resize(size, 0);
        file.becomes(content);
        if file.handle.is_none() {
            file.is_placed();
        }
        self.trace.note(format_args!("truncate {ino} {size}"));
    }

    fn unlink(&mut self) {
        let Some(((parent, name), ino)) = self.some_name() else { return };
        if !self.programs.files.contains_key(&ino) {
            return;
        }
        self.vfs().unlink(parent, &name).unwrap();
        self.programs.names.remove(&(parent, name));
        self.programs.lost_name(ino);
        self.trace.note(format_args!("unlink {ino}"));
    }

    fn rename(&mut self, parent: InodeId, name: Vec<u8>) {
        let Some(((from, old), ino)) = self.some_name() else { return };
        let replaced = self.programs.names.get(&(parent, name.clone())).copied();
        let is_dir = |ino: InodeId| self.programs.dirs.contains(&ino);
        if replaced == Some(ino) || (is_dir(ino) && self.programs.is_within(parent, ino)) {
            return;
        }
        let exchange = replaced.is_some() && self.random.below(4) == 0;
        let mode = if exchange { RenameMode::Exchange } else { RenameMode::Replace };
        if replaced.is_some_and(|other| exchange && is_dir(other) && self.programs.is_within(from, other)) {
            return;
        }
        if let Err(error) = self.vfs().rename((from, &old), (parent, &name), mode) {
            let expected = [rustix::io::Errno::NOTEMPTY, rustix::io::Errno::ISDIR, rustix::io::Errno::NOTDIR];
            assert!(expected.contains(&error) && replaced.is_some(), "world {}: rename: {error}", self.seed);
            return;
        }
        self.programs.names.remove(&(from, old.clone()));
        self.programs.names.insert((parent, name), ino);
        if exchange {
            self.programs.names.insert((from, old), replaced.expect("something was there"));
        } else if let Some(replaced) = replaced {
            self.programs.lost_name(replaced);
        }
        for ino in [Some(ino), replaced.filter(|_| exchange)].into_iter().flatten() {
            if let Some(file) = self.programs.files.get_mut(&ino) {
                file.is_placed();
            }
        }
        self.trace.note(format_args!("rename {ino} over {replaced:?} {mode:?}"));
    }

    fn link(&mut self, parent: InodeId, name: Vec<u8>) {
        let Some(ino) = self.some_file(|_| true) else { return };
        if self.programs.names.contains_key(&(parent, name.clone())) {
            return;
        }
        self.vfs().link(ino, parent, &name).unwrap();
        self.programs.names.insert((parent, name), ino);
        self.programs.files.get_mut(&ino).expect("it is known").is_placed();
        self.trace.note(format_args!("link {ino}"));
    }

    fn make_dir(&mut self, parent: InodeId, name: Vec<u8>) {
        if self.programs.names.contains_key(&(parent, name.clone())) || self.programs.dirs.len() > 4 {
            return;
        }
        let made = self.vfs().make_node(&ROOT, parent, &name, libc::S_IFDIR | 0o755, 0o022, 0).unwrap();
        self.programs.names.insert((parent, name), made.inode.ino);
        self.programs.dirs.push(made.inode.ino);
        self.trace.note(format_args!("mkdir {}", made.inode.ino));
    }

    fn remove_dir(&mut self) {
        let empty = |ino: &InodeId| !self.programs.names.keys().any(|(parent, _)| parent == ino);
        let found = self.programs.names.iter().find(|(_, ino)| self.programs.dirs.contains(ino) && empty(ino));
        let Some(((parent, name), ino)) = found.map(|(place, ino)| (place.clone(), *ino)) else { return };
        self.vfs().rmdir(parent, &name).unwrap();
        self.programs.names.remove(&(parent, name));
        self.programs.lost_name(ino);
        self.trace.note(format_args!("rmdir {ino}"));
    }

    pub(super) fn set_mode(&mut self) {
        let Some((_, ino)) = self.some_name() else { return };
        let mode = Some(0o600 + self.random.below(64) as u32);
        self.vfs().setattr(&ROOT, ino, &SetAttributes { mode, ..SetAttributes::default() }).unwrap();
        self.trace.note(format_args!("chmod {ino}"));
    }

    /// What a file holds now; `None`: no target can give some of it now.
    pub(super) fn read(&mut self, ino: InodeId) -> Option<Vec<u8>> {
        let mut buffer = Vec::new();
        match self.vfs().read(ino, 0, SIZE_MAX, &mut buffer).unwrap() {
            Outcome::Ready => Some(buffer),
            Outcome::Pending(rest) => {
                let read = self.drive("read", rest);
                if let Err(error) = &read {
                    assert_eq!(*error, rustix::io::Errno::IO);
                }
                read.ok()
            }
        }
    }

    /// Everything is as programs left it. What only targets have may be out of reach, unless `whole`.
    pub(super) fn check_local(&mut self, whole: bool) {
        self.check_names();
        for ino in self.programs.files.keys().copied().collect::<Vec<_>>() {
            let Some(content) = self.read(ino) else {
                assert!(!whole, "world {}: {ino} cannot be read", self.seed);
                continue;
            };
            let expected = self.programs.files[&ino].now();
            assert!(
                content == *expected,
                "world {}: {ino} holds something else: {}",
                self.seed,
                differ(&content, expected)
            );
        }
    }

    fn check_names(&self) {
        let names: BTreeMap<(InodeId, Vec<u8>), InodeId> = self
            .meta()
            .read(|conn| {
                let mut select = conn.prepare("SELECT parent, name, ino FROM dirent")?;
                let rows = select.query_map([], |row| Ok(((row.get(0)?, row.get(1)?), row.get(2)?)))?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .unwrap();
        assert_eq!(names, self.programs.names, "world {}", self.seed);
    }

    /// After a crash: what was acknowledged is there. What is there, is what programs have from now on.
    pub(super) fn check_recovered(&mut self, crash: Crash) {
        self.check_names();
        self.programs.nameless.clear();
        for ino in self.programs.files.keys().copied().collect::<Vec<_>>() {
            let read = self.read(ino);
            let seed = self.seed;
            let file = self.programs.files.get_mut(&ino).expect("it is known");
            file.handle = None;
            let Some(content) = read else { continue };
            let from = if crash == Crash::Kill { file.placed } else { file.synced };
            let allowed: Vec<&Vec<u8>> = file.versions.range(from..).map(|(_, content)| content).collect();
            let is_allowed = match crash {
                Crash::Kill => allowed.contains(&&content),
                Crash::PowerCut => {
                    let byte_of_one =
                        |(at, byte): (usize, &u8)| allowed.iter().any(|of| of.get(at).copied().unwrap_or(0) == *byte);
                    allowed.iter().any(|of| of.len() == content.len()) && content.iter().enumerate().all(byte_of_one)
                }
            };
            let newest = allowed.last().map(|newest| differ(&content, newest));
            assert!(is_allowed, "world {seed}: after a {crash:?} {ino} holds none of its contents: {newest:?}");
            let version = file.version() + 1;
            if crash == Crash::PowerCut {
                file.versions.clear();
                file.synced = version;
            } else {
                let synced = file.synced;
                file.versions.retain(|of, _| *of >= synced);
            }
            file.versions.insert(version, content);
            file.placed = version;
        }
    }
}

fn differ(one: &[u8], other: &[u8]) -> String {
    let at = one.iter().zip(other).position(|(one, other)| one != other);
    format!("{} bytes, not {}; the first other one at {at:?}", one.len(), other.len())
}
