//! What a workload did and what may be there after a crash. Pure.
//!
//! Owns: operations, the log of them, the states that they allow.
//! Does not own: carrying them out (`workload`), reading the tree that is there (`rig`).
//!
//! The log has two lines per operation: what is asked for before the call, `ok` after it returned. The last operation may
//! lack its `ok`: it was on its way.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::support::tree::noise;

/// One system call, or the few that make one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Makes a file that was not there, open for reading and writing.
    Create {
        path: String,
        handle: u32,
    },
    Open {
        path: String,
        handle: u32,
        truncate: bool,
    },
    Write {
        handle: u32,
        offset: u64,
        length: u64,
        seed: u64,
    },
    Truncate {
        handle: u32,
        size: u64,
    },
    Punch {
        handle: u32,
        offset: u64,
        length: u64,
    },
    Fsync {
        handle: u32,
    },
    Close {
        handle: u32,
    },
    Rename {
        from: String,
        to: String,
    },
    Link {
        from: String,
        to: String,
    },
    Unlink {
        path: String,
    },
    Mkdir {
        path: String,
    },
    Rmdir {
        path: String,
    },
}

/// What is under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    Directory,
    /// A file by its number in [`Model::files`].
    File(usize),
}

pub type Names = BTreeMap<String, Node>;

/// What is there: of each path, relative to the root, `None` for a directory, inode and bytes of a file.
pub type Found = BTreeMap<String, Option<(u64, Vec<u8>)>>;

/// A file and all contents that it had since the start.
#[derive(Debug, Clone, Default)]
pub struct File {
    pub versions: Vec<Vec<u8>>,
    /// The version that the newest `close` or `fsync` acknowledged.
    pub closed: usize,
    /// The version that the newest `fsync` acknowledged, if there was one.
    pub fsynced: Option<usize>,
    /// The last version of the session that this `fsync` was in, once its last handle was closed.
    session_end: Option<usize>,
    handles: u32,
}

impl File {
    pub fn latest(&self) -> &Vec<u8> {
        self.versions.last().expect("a file has a content")
    }

    fn change(&mut self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut next = self.latest().clone();
        change(&mut next);
        self.versions.push(next);
    }

    fn newest(&self) -> usize {
        self.versions.len() - 1
    }
}

/// The state that a program sees, with what it was told.
#[derive(Debug, Clone, Default)]
pub struct Model {
    pub names: Names,
    pub files: Vec<File>,
    pub handles: BTreeMap<u32, usize>,
}

impl Model {
    /// Goes on from what was found: all of it is acknowledged, and on disk.
    pub fn of(found: &Found) -> Model {
        let mut model = Model::default();
        let mut known = BTreeMap::new();
        for (path, node) in found {
            let node = match node {
                None => Node::Directory,
                Some((inode, bytes)) => Node::File(*known.entry(*inode).or_insert_with(|| {
                    model.files.push(File {
                        versions: vec![bytes.clone()],
                        fsynced: Some(0),
                        session_end: Some(0),
                        ..File::default()
                    });
                    model.files.len() - 1
                })),
            };
            model.names.insert(path.clone(), node);
        }
        model
    }

    fn of_handle(&mut self, handle: u32) -> &mut File {
        &mut self.files[self.handles[&handle]]
    }

    /// Carries out an operation that succeeds.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Create { path, handle } => {
                self.files.push(File { versions: vec![Vec::new()], handles: 1, ..File::default() });
                self.names.insert(path.clone(), Node::File(self.files.len() - 1));
                self.handles.insert(*handle, self.files.len() - 1);
            }
            Op::Open { path, handle, truncate } => {
                let Node::File(file) = self.names[path] else { panic!("{path} is opened as a file") };
                self.files[file].handles += 1;
                if *truncate {
                    self.files[file].change(Vec::clear);
                }
                self.handles.insert(*handle, file);
            }
            Op::Write { handle, offset, length, seed } => self.of_handle(*handle).change(|bytes| {
                let end = (offset + length) as usize;
                bytes.resize(end.max(bytes.len()), 0);
                bytes[*offset as usize..end].copy_from_slice(&noise(*seed, *length as usize));
            }),
            Op::Truncate { handle, size } => self.of_handle(*handle).change(|bytes| bytes.resize(*size as usize, 0)),
            Op::Punch { handle, offset, length } => self.of_handle(*handle).change(|bytes| {
                let end = ((offset + length) as usize).min(bytes.len());
                bytes[(*offset as usize).min(end)..end].fill(0);
            }),
            Op::Fsync { handle } => {
                let file = self.of_handle(*handle);
                (file.closed, file.fsynced, file.session_end) = (file.newest(), Some(file.newest()), None);
            }
            Op::Close { handle } => {
                let file = self.of_handle(*handle);
                file.closed = file.newest();
                file.handles -= 1;
                if file.handles == 0 && file.fsynced.is_some() {
                    file.session_end.get_or_insert(file.versions.len() - 1);
                }
                self.handles.remove(handle);
            }
            Op::Rename { from, to } => {
                if self.names.get(from) == self.names.get(to) {
                    // Two names of one file: nothing happens, says POSIX.
                    return;
                }
                let node = self.names.remove(from).expect("what is moved is there");
                self.names.insert(to.clone(), node);
                if node == Node::Directory {
                    let below = format!("{from}/");
                    let moved: Vec<String> =
                        self.names.keys().filter(|path| path.starts_with(&below)).cloned().collect();
                    for path in moved {
                        let node = self.names.remove(&path).expect("it was listed");
                        self.names.insert(format!("{to}/{}", &path[below.len()..]), node);
                    }
                }
            }
            Op::Link { from, to } => {
                let node = self.names[from];
                self.names.insert(to.clone(), node);
            }
            Op::Unlink { path } | Op::Rmdir { path } => drop(self.names.remove(path)),
            Op::Mkdir { path } => drop(self.names.insert(path.clone(), Node::Directory)),
        }
    }
}

/// How the daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// By `kill -9`: what `close` returned for is there, and every name.
    Kill,
    /// With the power: what `fsync` returned for is there, and every name that was made before it.
    Power,
}

/// What was logged: operations in order, and whether the last one returned.
#[derive(Debug, Clone, Default)]
pub struct History {
    pub ops: Vec<Op>,
    pub in_flight: bool,
    /// So many returned before the crash began. What returned after that was told by a kernel whose disk was dying: in its
    /// midst even `fdatasync` was seen to succeed for bytes that were not there later.
    pub told: usize,
}

impl History {
    /// Reads a log; a torn last line was not written before its call began.
    pub fn parse(log: &str) -> History {
        let mut history = History::default();
        for line in log.lines() {
            match line {
                "ok" => history.in_flight = false,
                line => {
                    let Ok(op) = serde_json::from_str(line) else { break };
                    assert!(!history.in_flight, "an operation begins after the one before has returned");
                    history.ops.push(op);
                    history.in_flight = true;
                }
            }
        }
        history.told = history.returned();
        history
    }

    /// Only what this beginning of the log says was told before the crash.
    pub fn told_by(mut self, log: &str) -> History {
        self.told = History::parse(log).returned();
        self
    }

    fn returned(&self) -> usize {
        self.ops.len() - usize::from(self.in_flight)
    }

    /// Says what is wrong with what is there after `crash`, if something is; else which file is which inode there.
    pub fn check(&self, start: &Found, found: &Found, crash: Crash) -> Result<BTreeMap<usize, u64>, String> {
        let mut model = Model::of(start);
        if crash == Crash::Kill {
            // What was there need not be on disk, but that is not looked at either.
            model.files.iter_mut().for_each(|file| file.fsynced = None);
        }
        let mut states = vec![model.names.clone()];
        let mut floor = 0;
        let mut changed_by_last = None;
        for (index, op) in self.ops.iter().enumerate() {
            let in_flight = index >= self.told;
            if in_flight {
                changed_by_last = op.handle().and_then(|handle| model.handles.get(&handle).copied());
                if let Op::Open { path, truncate: true, .. } = op
                    && let Node::File(file) = model.names[path]
                {
                    changed_by_last = Some(file);
                }
                let told = model.files.iter().map(|file| (file.closed, file.fsynced)).collect::<Vec<_>>();
                model.apply(op);
                // It did not return: nobody was told anything.
                for (file, told) in model.files.iter_mut().zip(told) {
                    (file.closed, file.fsynced) = told;
                }
            } else {
                model.apply(op);
            }
            states.push(model.names.clone());
            let synced = matches!(op, Op::Fsync { .. }) && !in_flight;
            let told = crash == Crash::Kill && !in_flight;
            if synced || told {
                floor = states.len() - 1;
            }
        }
        let mut problems = Vec::new();
        for names in states[floor..].iter().rev() {
            match self.check_state(&model, names, found, crash, changed_by_last) {
                Ok(files) => return Ok(files),
                Err(problem) => problems.push(problem),
            }
        }
        problems.dedup();
        Err(format!(
            "none of {} allowed states, {} of {} operations told: {}",
            states.len() - floor,
            self.told,
            self.ops.len(),
            problems[..problems.len().min(4)].join("; or ")
        ))
    }

    fn check_state(
        &self,
        model: &Model,
        names: &Names,
        found: &Found,
        crash: Crash,
        changed_by_last: Option<usize>,
    ) -> Result<BTreeMap<usize, u64>, String> {
        let all: BTreeSet<&String> = names.keys().chain(found.keys()).collect();
        let mut inodes: BTreeMap<usize, u64> = BTreeMap::new();
        for path in all {
            let (Some(expected), Some(is)) = (names.get(path), found.get(path)) else {
                let what = if names.contains_key(path) { "is absent" } else { "should not be there" };
                return Err(format!("{path} {what}"));
            };
            match (expected, is) {
                (Node::Directory, None) => {}
                (Node::File(number), Some((inode, bytes))) => {
                    if *inodes.entry(*number).or_insert(*inode) != *inode {
                        return Err(format!("{path} is another file than its other name"));
                    }
                    let file = &model.files[*number];
                    let mixed = crash == Crash::Kill && changed_by_last == Some(*number);
                    file.check(bytes, crash, mixed).map_err(|why| format!("{path}: {why}"))?;
                }
                _ => return Err(format!("{path} is of another kind")),
            }
        }
        if inodes.values().collect::<BTreeSet<_>>().len() != inodes.len() {
            return Err("two files became one".into());
        }
        Ok(inodes)
    }
}

impl File {
    fn check(&self, bytes: &[u8], crash: Crash, in_flight: bool) -> Result<(), String> {
        let first = if crash == Crash::Kill { self.closed } else { self.fsynced.unwrap_or(0) };
        if self.versions[first..].iter().any(|version| version == bytes) {
            return Ok(());
        }
        // Cut in the middle of a write, or of what came after an `fsync` in the same session: byte by byte old or new.
        let mix = match crash {
            Crash::Kill if in_flight => self.versions.len().saturating_sub(2).max(first)..self.versions.len(),
            Crash::Power if self.fsynced.is_some() => {
                first..self.session_end.map_or(self.versions.len(), |end| end + 1)
            }
            _ => first..first,
        };
        if is_mixture(bytes, &self.versions[mix.clone()]) {
            return Ok(());
        }
        let older = self.versions[..first].iter().rposition(|version| version == bytes);
        Err(format!(
            "{} bytes are none of versions {first}..{} (of {:?} bytes){}",
            bytes.len(),
            self.versions.len(),
            self.versions[first..].iter().map(Vec::len).collect::<Vec<_>>(),
            older.map_or(String::new(), |older| format!(", but the older version {older}"))
        ))
    }
}

/// True if each byte is that of one of the versions, and the length between theirs.
fn is_mixture(bytes: &[u8], versions: &[Vec<u8>]) -> bool {
    let lengths = versions.iter().map(Vec::len);
    let (Some(shortest), Some(longest)) = (lengths.clone().min(), lengths.max()) else { return false };
    (shortest..=longest).contains(&bytes.len())
        && bytes.iter().enumerate().all(|(at, byte)| {
            // Beyond the end of a version are the zeros that growing brings into view.
            versions.iter().any(|version| version.get(at).copied().unwrap_or(0) == *byte)
        })
}

impl Op {
    fn handle(&self) -> Option<u32> {
        match self {
            Op::Write { handle, .. } | Op::Truncate { handle, .. } | Op::Punch { handle, .. } => Some(*handle),
            _ => None,
        }
    }
}

/// Fails with the first difference between what two mounts showed.
#[track_caller]
pub fn assert_same(what: &str, first: &Found, second: &Found) {
    for path in first.keys().chain(second.keys()) {
        let (one, other) = (first.get(path), second.get(path));
        let told = |node: Option<&Option<(u64, Vec<u8>)>>| match node {
            None => "absent".to_owned(),
            Some(None) => "a directory".to_owned(),
            Some(Some((inode, bytes))) => format!("inode {inode}, {} bytes, {}", bytes.len(), blake3::hash(bytes)),
        };
        assert!(one == other, "{what}: {path} was {}, is {}", told(one), told(other));
    }
}

#[test]
fn the_oracle_knows_what_a_kill_and_a_cut_may_take() {
    let write = |seed| Op::Write { handle: 1, offset: 0, length: 10, seed };
    let create = Op::Create { path: "a".into(), handle: 1 };
    let close = Op::Close { handle: 1 };
    let history = |ops: &[Op]| History { ops: ops.to_vec(), in_flight: false, told: ops.len() };
    let one = |bytes: Vec<u8>| Found::from([("a".to_owned(), Some((7, bytes)))]);
    let start = Found::new();
    let closed = history(&[create.clone(), write(1), close.clone()]);
    closed.check(&start, &one(noise(1, 10)), Crash::Kill).unwrap();
    closed.check(&start, &one(vec![]), Crash::Kill).unwrap_err();
    closed.check(&start, &start, Crash::Kill).unwrap_err();
    closed.check(&start, &one(vec![]), Crash::Power).unwrap();
    closed.check(&start, &start, Crash::Power).unwrap();
    closed.check(&start, &one(noise(1, 5)), Crash::Power).unwrap_err();
    let synced = history(&[create.clone(), write(1), Op::Fsync { handle: 1 }, write(2)]);
    synced.check(&start, &one(noise(1, 10)), Crash::Power).unwrap();
    synced.check(&start, &one([&noise(1, 10)[..5], &noise(2, 10)[5..]].concat()), Crash::Power).unwrap();
    synced.check(&start, &one(vec![]), Crash::Power).unwrap_err();
    synced.check(&start, &start, Crash::Power).unwrap_err();
    // An `fsync` that returned when the power was going promised nothing.
    History { told: 2, ..synced.clone() }.check(&start, &start, Crash::Power).unwrap();
    History { told: 3, ..synced }.check(&start, &start, Crash::Power).unwrap_err();
    let later = history(&[create, write(1), Op::Fsync { handle: 1 }, close, Op::Mkdir { path: "d".into() }]);
    later.check(&start, &one(noise(1, 10)), Crash::Power).unwrap();
    later.check(&start, &one(noise(1, 10)), Crash::Kill).unwrap_err();
}
