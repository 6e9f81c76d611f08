//! What a target may hold as a crash leaves it, over many crashes. Pure.
//!
//! Owns: every content and name that files ever had, what targets acknowledged of them, and whether a tree that was restored
//! from targets holds that much and is a cut (O6).
//! Does not own: one crash and what is there locally after it (`model`).
//!
//! ```text
//! restored from a target │ each file has a content and a name that it once had
//!                        │ no name is there before the content that was written before it (O1)
//!                        │ what the target acknowledged is there, or something newer
//!                        │ nothing is there that came after an `fsync`, without what that covered
//! from all of them       │ of each file what the target has that has most of it, and no file that none has
//! ```
//!
//! Of a name only its last part counts: a target may know that a file was renamed before it knows that a directory far above
//! was, and then shows a path that never was. Such records do not conflict (O7).
//!
//! A lag is allowed, so whatever is not told apart counts in the target's favour: of equal contents the newest where it
//! must be new enough, the oldest where it shows how far the target has come.

use std::collections::{BTreeMap, BTreeSet};

use super::model::{Found, History, Model, Node, Op};

/// Who had acknowledged an `fsync` when it returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acked {
    /// The local disk.
    Local,
    /// One target, nobody knows which.
    One,
    /// Each.
    All,
}

/// Whose tree it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// Restored from one target.
    Single,
    /// Restored from all of them together.
    All,
}

/// All that happened so far. Operations are numbered through.
#[derive(Debug, Default)]
pub struct Past {
    ops: u64,
    files: Vec<Lived>,
    /// Those that were there after a crash.
    by_inode: BTreeMap<u64, usize>,
    /// What directories were called.
    directories: BTreeSet<String>,
    fsyncs: Vec<Fsync>,
}

/// A file.
#[derive(Debug, Default)]
struct Lived {
    /// `None`: it came and went between two crashes.
    inode: Option<u64>,
    /// Its contents, by hash, with the operation that made each.
    versions: Vec<(u64, [u8; 32])>,
    /// Its names, whatever lay above: the operation that first gave it each, and the version that it had when it was given it.
    names: BTreeMap<String, (u64, usize)>,
    /// It was not there any more after a crash.
    gone: bool,
    /// The version that each target has at least.
    on_each: Option<usize>,
    /// The version that some target has at least.
    on_some: Option<usize>,
}

/// An `fsync` that returned before a crash.
#[derive(Debug)]
struct Fsync {
    op: u64,
    file: usize,
    version: usize,
}

impl Past {
    /// Notes what happened from `start` on, until the crash after which `found` was there. `files`: which inodes there are
    /// which files of the history ([`History::check`]). `acked`: what an `fsync` meant meanwhile.
    pub fn note(
        &mut self,
        start: &Found,
        history: &History,
        found: &Found,
        files: &BTreeMap<usize, u64>,
        acked: Acked,
    ) {
        let mut model = Model::of(start);
        let mut lived = self.numbered(start);
        self.ops += 1;
        self.look(&model, &lived, None);
        for (index, op) in history.ops.iter().enumerate() {
            self.ops += 1;
            let handle = if let Op::Fsync { handle } = op { Some(*handle) } else { None };
            let synced = handle.map(|handle| lived[model.handles[&handle]]);
            model.apply(op);
            while lived.len() < model.files.len() {
                let inode = files.get(&lived.len()).copied();
                self.files.push(Lived { inode, ..Lived::default() });
                let file = self.files.len() - 1;
                self.by_inode.extend(inode.map(|inode| (inode, file)));
                lived.push(file);
            }
            self.look(&model, &lived, Some(op));
            if let Some(file) = synced.filter(|_| index < history.told) {
                let version = self.files[file].versions.len() - 1;
                self.fsyncs.push(Fsync { op: self.ops, file, version });
                let lived = &mut self.files[file];
                if acked == Acked::All {
                    lived.on_each = Some(version);
                }
                if acked != Acked::Local {
                    lived.on_some = Some(version);
                }
            }
        }
        let there: BTreeSet<u64> = found.values().flatten().map(|(inode, _)| *inode).collect();
        for file in &mut self.files {
            file.gone = file.inode.is_none_or(|inode| !there.contains(&inode));
        }
        // From now on that is the newest, whatever else was tried.
        self.ops += 1;
        let numbered = self.numbered(found);
        self.look(&Model::of(found), &numbered, None);
    }

    /// Which of our files the files of [`Model::of`] are.
    fn numbered(&mut self, found: &Found) -> Vec<usize> {
        let mut numbered = Vec::new();
        let mut seen = BTreeSet::new();
        for (inode, _) in found.values().flatten() {
            if seen.insert(*inode) {
                numbered.push(*self.by_inode.entry(*inode).or_insert_with(|| {
                    self.files.push(Lived { inode: Some(*inode), ..Lived::default() });
                    self.files.len() - 1
                }));
            }
        }
        numbered
    }

    /// Everything was brought to every target.
    pub fn drained(&mut self) {
        for file in &mut self.files {
            let newest = file.versions.len().checked_sub(1);
            (file.on_each, file.on_some) = (newest, newest);
        }
    }

    /// Takes note of new names and contents.
    fn look(&mut self, model: &Model, lived: &[usize], op: Option<&Op>) {
        for (number, file) in model.files.iter().enumerate() {
            let lived = &mut self.files[lived[number]];
            let latest = *blake3::hash(file.latest()).as_bytes();
            if lived.versions.last().is_none_or(|(_, hash)| *hash != latest) {
                lived.versions.push((self.ops, latest));
            }
        }
        for (path, node) in &model.names {
            let Node::File(number) = node else {
                self.directories.insert(last_part(path).to_owned());
                continue;
            };
            let lived = &mut self.files[lived[*number]];
            let newest = lived.versions.len() - 1;
            // A directory above it that moves takes no place for what is below.
            let names_it = matches!(op, Some(Op::Rename { to, .. } | Op::Link { to, .. }) if to == path);
            lived.names.entry(last_part(path).to_owned()).or_insert((self.ops, if names_it { newest } else { 0 }));
        }
    }

    /// Says what is wrong with a tree that was restored from targets as a crash left them, if something is.
    pub fn check(&self, found: &Found, from: From) -> Result<(), String> {
        // How far the tree has come at least.
        let mut reached = 0;
        let mut held = BTreeMap::new();
        for (path, node) in found {
            let Some((inode, bytes)) = node else {
                if !self.directories.contains(last_part(path)) {
                    return Err(format!("{path} was never a directory"));
                }
                continue;
            };
            let hash = *blake3::hash(bytes).as_bytes();
            let seen = match self.by_inode.get(inode) {
                Some(file) => {
                    let lived = &self.files[*file];
                    let (first, last) =
                        lived.contents(hash).ok_or_else(|| format!("{path}: {} bytes it never had", bytes.len()))?;
                    let (named, version) = *lived
                        .names
                        .get(last_part(path))
                        .ok_or_else(|| format!("{path} was never a name of inode {inode}"))?;
                    if last < version {
                        return Err(format!("{path} has version {last}, and had {version} when it got this name"));
                    }
                    held.insert(*file, last);
                    lived.versions[first].0.max(named)
                }
                None => {
                    let nameless = self.files.iter().filter(|lived| lived.inode.is_none());
                    let told = nameless.filter_map(|lived| {
                        let (first, _) = lived.contents(hash)?;
                        let (named, _) = *lived.names.get(last_part(path))?;
                        Some(lived.versions[first].0.max(named))
                    });
                    told.min().ok_or_else(|| {
                        format!("{path}: {} bytes that no file of this name ever had, inode {inode}", bytes.len())
                    })?
                }
            };
            reached = reached.max(seen);
        }
        let lacks = |file: usize, version: usize| match held.get(&file) {
            _ if self.files[file].gone => None,
            Some(last) if *last >= version => None,
            last => Some(format!("has {last:?} of inode {:?}, {:?}", self.files[file].inode, self.files[file].names)),
        };
        for (number, file) in self.files.iter().enumerate() {
            let floor = if from == From::Single { file.on_each } else { file.on_some };
            if let Some(why) = floor.and_then(|floor| lacks(number, floor)) {
                return Err(format!("version {floor:?} was acknowledged; {why}"));
            }
        }
        for fsync in self.fsyncs.iter().filter(|fsync| fsync.op < reached) {
            if let Some(why) = lacks(fsync.file, fsync.version) {
                let Fsync { op, version, .. } = fsync;
                return Err(format!("operation {reached} is there, and not version {version} of fsync {op}; {why}"));
            }
        }
        Ok(())
    }

    /// Says why `union` is not what these trees make together, if it is not. Each was checked for itself.
    pub fn check_union(&self, union: &Found, single: &[Found]) -> Result<(), String> {
        let contents = |found: &Found| -> BTreeMap<u64, [u8; 32]> {
            found.values().flatten().map(|(inode, bytes)| (*inode, *blake3::hash(bytes).as_bytes())).collect()
        };
        let (together, single) = (contents(union), single.iter().map(contents).collect::<Vec<_>>());
        for (inode, hash) in &together {
            if !single.iter().any(|one| one.get(inode) == Some(hash)) {
                return Err(format!("inode {inode} has something that it has on no target"));
            }
        }
        for (inode, hash) in single.iter().flatten() {
            let Some(lived) = self.by_inode.get(inode).map(|file| &self.files[*file]).filter(|lived| !lived.gone)
            else {
                continue;
            };
            let Some(of_union) = together.get(inode) else { return Err(format!("inode {inode} is on a target")) };
            let (oldest, newest) = (lived.contents(*hash).map(|(first, _)| first), lived.contents(*of_union));
            if newest.map(|(_, last)| last) < oldest {
                return Err(format!("inode {inode} is of version {newest:?}, on a target of {oldest:?}"));
            }
        }
        Ok(())
    }
}

fn last_part(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

impl Lived {
    /// The first and the last version with this content.
    fn contents(&self, hash: [u8; 32]) -> Option<(usize, usize)> {
        let is = |(_, of): &(u64, [u8; 32])| *of == hash;
        Some((self.versions.iter().position(is)?, self.versions.iter().rposition(is)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::tree::noise;

    fn write(handle: u32, seed: u64) -> Op {
        Op::Write { handle, offset: 0, length: 10, seed }
    }

    fn tree(files: &[(&str, u64, &[u8])]) -> Found {
        files.iter().map(|(path, inode, bytes)| ((*path).to_owned(), Some((*inode, bytes.to_vec())))).collect()
    }

    /// `a` is written, synced, and written again; `b` comes after; `a` is renamed to `c`.
    fn past(acked: Acked) -> Past {
        let create = |path: &str, handle| Op::Create { path: path.into(), handle };
        let ops = vec![
            create("a", 1),
            write(1, 1),
            Op::Fsync { handle: 1 },
            write(1, 2),
            create("b", 2),
            write(2, 3),
            Op::Rename { from: "a".into(), to: "c".into() },
        ];
        let history = History { told: ops.len(), ops, in_flight: false };
        let found = tree(&[("c", 7, &noise(2, 10)), ("b", 8, &noise(3, 10))]);
        let mut past = Past::default();
        past.note(&Found::new(), &history, &found, &BTreeMap::from([(0, 7), (1, 8)]), acked);
        past
    }

    #[test]
    fn a_target_may_lag_but_not_behind_what_it_acknowledged() {
        let (one, two) = (noise(1, 10), noise(2, 10));
        let (none, first) = (Found::new(), tree(&[("a", 7, &one)]));
        past(Acked::Local).check(&none, From::Single).unwrap();
        past(Acked::Local).check(&first, From::Single).unwrap();
        past(Acked::All).check(&first, From::Single).unwrap();
        past(Acked::All).check(&tree(&[("a", 7, &two)]), From::Single).unwrap();
        past(Acked::All).check(&none, From::Single).unwrap_err();
        past(Acked::All).check(&tree(&[("a", 7, &[])]), From::Single).unwrap_err();
        past(Acked::One).check(&none, From::Single).unwrap();
        past(Acked::One).check(&none, From::All).unwrap_err();
        let mut drained = past(Acked::Local);
        drained.drained();
        drained.check(&first, From::Single).unwrap_err();
        drained.check(&tree(&[("c", 7, &two), ("b", 8, &noise(3, 10))]), From::Single).unwrap();
    }

    #[test]
    fn o6_what_a_target_holds_is_a_cut() {
        let past = past(Acked::Local);
        let (one, two) = (noise(1, 10), noise(2, 10));
        past.check(&tree(&[("a", 7, &one), ("b", 8, &[])]), From::Single).unwrap();
        let overtaken = past.check(&tree(&[("b", 8, &[])]), From::Single).unwrap_err();
        assert!(overtaken.contains("of fsync"), "{overtaken}");
        past.check(&tree(&[("c", 7, &two)]), From::Single).unwrap();
        let early = past.check(&tree(&[("c", 7, &one)]), From::Single).unwrap_err();
        assert!(early.contains("got this name"), "{early}");
        past.check(&tree(&[("b", 7, &two)]), From::Single).unwrap_err();
        past.check(&tree(&[("a", 7, &noise(9, 10))]), From::Single).unwrap_err();
        past.check(&Found::from([("d".to_owned(), None)]), From::Single).unwrap_err();
    }

    #[test]
    fn d6_all_targets_together_have_what_any_of_them_has() {
        let past = past(Acked::Local);
        let (one, two) = (noise(1, 10), noise(2, 10));
        let singles = [tree(&[("a", 7, &one)]), tree(&[("a", 7, &two), ("b", 8, &[])])];
        past.check_union(&singles[1], &singles).unwrap();
        past.check_union(&singles[0], &singles).unwrap_err();
        past.check_union(&tree(&[("a", 7, &two)]), &singles).unwrap_err();
        past.check_union(&tree(&[("a", 7, &two), ("b", 8, &noise(3, 10))]), &singles).unwrap_err();
    }

    #[test]
    fn a_file_that_came_and_went_counts_by_name_and_content() {
        let ops = vec![
            Op::Create { path: "t".into(), handle: 1 },
            write(1, 1),
            Op::Close { handle: 1 },
            Op::Unlink { path: "t".into() },
        ];
        let history = History { told: ops.len(), ops, in_flight: false };
        let mut past = Past::default();
        past.note(&Found::new(), &history, &Found::new(), &BTreeMap::new(), Acked::All);
        past.check(&tree(&[("t", 9, &noise(1, 10))]), From::Single).unwrap();
        past.check(&tree(&[("t", 9, &noise(2, 10))]), From::Single).unwrap_err();
        past.check(&tree(&[("u", 9, &noise(1, 10))]), From::Single).unwrap_err();
    }
}
